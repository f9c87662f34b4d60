#version 460
#extension GL_GOOGLE_include_directive : require
// dst[t, g] = x[t, g] / sqrt(mean(x[t, g]²) + eps) · weight, for each token t and each group g of `width` elements
// (arXiv 1910.07467). One group of n_embd is a block's norm; n_head groups of head_dim are Qwen3's QK-norm.
// One workgroup per (group, token). x and dst may be the same.
// Bound by bytes: the group read twice (the second time from cache), written once.
// CPU twin: f64 sums, relative tolerance 1e-5 of the largest element.
// Specialization constants: 0 WG_SIZE. Subgroup size ≥ 4, subgroup arithmetic.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 128;

#include "reduce.glsl"

layout(push_constant) uniform Push {
    ReadF32 x;      // [n_tokens, stride]
    ReadF32 weight; // [width]
    WriteF32 dst;   // [n_tokens, stride]
    uint width;
    uint stride;
    float eps;
} push;

void main() {
    uint base = gl_WorkGroupID.y * push.stride + gl_WorkGroupID.x * push.width;
    float sum = 0.0;
    for (uint i = gl_LocalInvocationID.x; i < push.width; i += WG_SIZE) {
        float v = push.x.v[base + i];
        sum += v * v;
    }
    float scale = inversesqrt(workgroup_add(sum) / float(push.width) + push.eps);
    for (uint i = gl_LocalInvocationID.x; i < push.width; i += WG_SIZE) {
        push.dst.v[base + i] = push.x.v[base + i] * scale * push.weight.v[i];
    }
}
