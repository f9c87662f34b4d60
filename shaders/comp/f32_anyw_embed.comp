#version 460
#extension GL_GOOGLE_include_directive : require
// x[t] = table[token[t]], decoded to f32.
// One workgroup per token; its invocations take the units of the row in turn.
// Bound by bytes: one row of the table read, one f32 row written per token.
// CPU twin: engine::quant::dequantize_row, relative tolerance 1e-6. Ids were checked by the host.
// Specialization constants: 0 WG_SIZE. Any subgroup size. Needs 16-bit storage, buffer addresses.
#include "buffers.glsl"
#include "weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;

layout(push_constant) uniform Push {
    WEIGHT_MEMBERS
    ReadU32 tokens;  // [n_tokens]
    WriteF32x4 x;    // [n_tokens, x_stride4 * 4]
    uint n_units;    // per row of the table
    uint x_stride4;
} push;

#include "decode.glsl"

void main() {
    decode_setup();
    uint t = gl_WorkGroupID.x;
    uint row_unit = push.tokens.v[t] * push.n_units;
    for (uint u = gl_LocalInvocationID.x; u < push.n_units; u += WG_SIZE) {
        vec4 w[UNIT4];
        decode(push.quants, push.high, push.scales, row_unit + u, w);
        uint start4 = t * push.x_stride4 + unit_start4(u);
        [[unroll]] for (uint j = 0; j < UNIT4; j++) push.x.v[unit_vec4(start4, j)] = w[j];
    }
}
