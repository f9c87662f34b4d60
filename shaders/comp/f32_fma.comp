#version 460
#extension GL_GOOGLE_include_directive : require
// Eight chains of fused multiply-adds per invocation, n rounds of them: how fast the device computes in f32 at best.
// Bound by flops: 2 · 8 · 4 · n per invocation. CPU twin: x ← x · a + b, n times, relative tolerance 1e-5.
// Specialization constants: 0 WG_SIZE. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 256;

layout(push_constant) uniform Push {
    WriteF32x4 dst;  // one per invocation
    float a;
    float b;
    uint n;
} push;

void main() {
    uint i = gl_WorkGroupID.x * WG_SIZE + gl_LocalInvocationID.x;
    vec4 x[8];
    [[unroll]] for (uint j = 0; j < 8; j++) x[j] = vec4(float(j), float(j) + 0.25, float(j) + 0.5, float(j) + 0.75);
    for (uint k = 0; k < push.n; k++)
        [[unroll]] for (uint j = 0; j < 8; j++) x[j] = fma(x[j], vec4(push.a), vec4(push.b));
    vec4 sum = vec4(0.0);
    [[unroll]] for (uint j = 0; j < 8; j++) sum += x[j];
    push.dst.v[i] = sum;
}
