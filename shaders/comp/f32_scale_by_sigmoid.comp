#version 460
#extension GL_GOOGLE_include_directive : require
// x[t] *= 1 / (1 + exp(−gate[t, 0])): the gate of a shared expert (arXiv 2407.10671).
// Workgroup y = token; one invocation per four elements. Bound by bytes: x read and written once.
// CPU twin: f64, relative tolerance 1e-5.
// Specialization constants: 0 WG_SIZE. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;

layout(push_constant) uniform Push {
    WriteF32x4 x;   // [n_tokens, stride4 * 4]
    ReadF32 gate;   // [n_tokens, gate_stride]
    uint stride4;
    uint gate_stride;
} push;

void main() {
    uint i = gl_GlobalInvocationID.x, t = gl_WorkGroupID.y;
    if (i >= push.stride4) return;
    push.x.v[t * push.stride4 + i] /= 1.0 + exp(-push.gate.v[t * push.gate_stride]);
}
