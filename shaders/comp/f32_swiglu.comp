#version 460
#extension GL_GOOGLE_include_directive : require
// gate = act(gate, up): see activation.glsl. Zeros give zero.
// One invocation per four elements of the whole batch. Bound by bytes: two buffers read, one written.
// CPU twin: f64, relative tolerance 1e-5.
// Specialization constants: 0 WG_SIZE, 1 ACTIVATION. Any subgroup size.
#include "buffers.glsl"
#include "activation.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint ACTIVATION = 0;

layout(push_constant) uniform Push {
    WriteF32x4 gate;  // [n4], overwritten
    ReadF32x4 up;     // [n4]
    uint n4;
} push;

void main() {
    uint i = (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * WG_SIZE + gl_LocalInvocationID.x;
    if (i >= push.n4) return;
    vec4 gate = push.gate.v[i], up = push.up.v[i];
    [[unroll]] for (uint e = 0; e < 4; e++) gate[e] = activate(ACTIVATION, gate[e], up[e]);
    push.gate.v[i] = gate;
}
