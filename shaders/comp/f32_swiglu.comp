#version 460
#extension GL_GOOGLE_include_directive : require
// gate = silu(gate) · up, with silu(x) = x / (1 + exp(−x)) (arXiv 2002.05202).
// One invocation per four elements of the whole batch. Bound by bytes: two buffers read, one written.
// CPU twin: f64, relative tolerance 1e-5.
// Specialization constants: 0 WG_SIZE. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;

layout(push_constant) uniform Push {
    WriteF32x4 gate;  // [n4], overwritten
    ReadF32x4 up;     // [n4]
    uint n4;
} push;

void main() {
    uint i = (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * WG_SIZE + gl_LocalInvocationID.x;
    if (i >= push.n4) return;
    vec4 gate = push.gate.v[i];
    push.gate.v[i] = gate / (1.0 + exp(-gate)) * push.up.v[i];
}
