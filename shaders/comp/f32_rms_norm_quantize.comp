#version 460
#extension GL_GOOGLE_include_directive : require
// dst[t] = x[t] / sqrt(mean(x[t]²) + eps) · weight (arXiv 1910.07467), as f32_rms_norm.comp, and the same in bytes in
// `quantized` (see quantize.glsl): the norm before q, k, v and the one before a feed-forward layer, when a few tokens
// are decoded. Saves the launch of f32_quantize.comp. One workgroup per token. x and dst may be the same.
// Bound by latency: a token's row is a few KB.
// CPU twin: f64 sums, relative tolerance 1e-5 of the largest element; the quantised row is that of dst, bit for bit.
// Specialization constants: 0 WG_SIZE. Subgroup size ≥ 4, subgroup arithmetic.
#include "buffers.glsl"
#include "quantize.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 128;

#include "reduce.glsl"

layout(push_constant) uniform Push {
    ReadF32x4 x;          // [n_tokens, stride4 * 4], zeros from the width on
    ReadF32 weight;       // [width]
    WriteF32x4 dst;       // [n_tokens, stride4 * 4]
    WriteU32x4 quantized; // [n_tokens, 5/4 * n_pieces]
    uint width;
    uint stride4;
    uint n_pieces;
    float eps;
} push;

void main() {
    uint base = gl_WorkGroupID.x * push.stride4, width4 = (push.width + 3) / 4;
    float sum = 0.0;
    for (uint i = gl_LocalInvocationID.x; i < width4; i += WG_SIZE) {
        vec4 v = push.x.v[base + i];
        sum += dot(v, v);
    }
    float scale = inversesqrt(workgroup_add(sum) / float(push.width) + push.eps);
    uint row = gl_WorkGroupID.x * (push.n_pieces + push.n_pieces / 4);
    for (uint block = gl_LocalInvocationID.x; block < push.n_pieces / 2; block += WG_SIZE) {
        vec4 y[8];
        [[unroll]] for (uint j = 0; j < 8; j++) {
            uint at = 8 * block + j;
            y[j] = at < width4 ? push.x.v[base + at] * scale : vec4(0.0);
            [[unroll]] for (uint e = 0; e < 4; e++) y[j][e] *= push.weight.v[min(4 * at + e, push.width - 1)];
            if (at < width4) push.dst.v[base + at] = y[j];
        }
        quantize_block(push.quantized, row, push.n_pieces, block, y);
    }
}
