#version 460
#extension GL_GOOGLE_include_directive : require
// dst[i] = x[rows[i]]: the rows whose logits are wanted.
// Workgroup y = output row; one invocation per four elements. Bound by bytes: each row read and written once.
// CPU twin: a copy, exact. Row numbers were checked by the host.
// Specialization constants: 0 WG_SIZE. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;

layout(push_constant) uniform Push {
    ReadF32x4 x;     // [n_tokens, stride4 * 4]
    ReadU32 rows;    // [n_outputs]
    WriteF32x4 dst;  // [n_outputs, stride4 * 4]
    uint stride4;
} push;

void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i >= push.stride4) return;
    push.dst.v[gl_WorkGroupID.y * push.stride4 + i] = push.x.v[push.rows.v[gl_WorkGroupID.y] * push.stride4 + i];
}
