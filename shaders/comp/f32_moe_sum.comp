#version 460
#extension GL_GOOGLE_include_directive : require
// x[t] += Σ_s y[t · n_used + s]: the experts of a token, already weighted, in the order of their slots, onto the
// residual stream.
// Workgroup y = token; one invocation per four elements. Bound by bytes: n_used + 1 rows read, one written.
// CPU twin: f64, tolerance 1e-6 of Σ|y|.
// Specialization constants: 0 WG_SIZE. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;

layout(push_constant) uniform Push {
    ReadF32x4 y;   // [n_tokens * n_used, stride4 * 4]
    WriteF32x4 x;  // [n_tokens, stride4 * 4]
    uint n_used;
    uint stride4;
    uint width;    // elements of a row in use; those of x after them become 0
} push;

void main() {
    uint i = gl_GlobalInvocationID.x, t = gl_WorkGroupID.y;
    if (i >= push.stride4) return;
    vec4 sum = push.x.v[t * push.stride4 + i];
    for (uint s = 0; s < push.n_used; s++) sum += push.y.v[(t * push.n_used + s) * push.stride4 + i];
    [[unroll]] for (uint e = 0; e < 4; e++) sum[e] = 4 * i + e < push.width ? sum[e] : 0.0;
    push.x.v[t * push.stride4 + i] = sum;
}
