#version 460
#extension GL_GOOGLE_include_directive : require
// dst[t] = x[t] in bytes with a scale per block of 32 elements, for products in integers: the format is in quantize.glsl.
// Runs before products whose input no norm has made: attention's output, what goes into a feed-forward layer's down
// projection. One invocation per block. Bound by bytes, and these are few: it is there and gone.
// CPU twin: the formula in f32; d to 1e-6, q to 1 where x / d lies halfway between two integers.
// Specialization constants: 0 WG_SIZE. Any subgroup size.
#include "buffers.glsl"
#include "quantize.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;

layout(push_constant) uniform Push {
    ReadF32x4 x;    // [n_rows, x_stride4 * 4]
    WriteU32x4 dst; // [n_rows, 5/4 * n_pieces]
    uint width4;    // vec4s of a row that are in use; the rest counts as 0
    uint x_stride4;
    uint n_pieces;
    uint n_blocks;  // of all rows: n_rows * n_pieces / 2
} push;

void main() {
    uint i = (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * WG_SIZE + gl_LocalInvocationID.x;
    if (i >= push.n_blocks) return;
    uint row = i / (push.n_pieces / 2), block = i % (push.n_pieces / 2);
    vec4 x[8];
    [[unroll]] for (uint j = 0; j < 8; j++) {
        uint at = 8 * block + j;
        x[j] = at < push.width4 ? push.x.v[row * push.x_stride4 + at] : vec4(0.0);
    }
    quantize_block(push.dst, row * (push.n_pieces + push.n_pieces / 4), push.n_pieces, block, x);
}
