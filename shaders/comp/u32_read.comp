#version 460
#extension GL_GOOGLE_include_directive : require
// Reads n4 vectors of 16 bytes once and keeps their exclusive or: how fast the device reads memory at best.
// Every invocation takes every (number of invocations)-th vector, four of them in flight at a time. Bound by bytes.
// CPU twin: the exclusive or of all words of the buffer is that of all words of dst, exact.
// Specialization constants: 0 WG_SIZE. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 256;

layout(push_constant) uniform Push {
    ReadU32x4 src;   // [n4]
    WriteU32x4 dst;  // one per invocation
    uint n4;
    uint stride;     // invocations
} push;

void main() {
    uint i = gl_WorkGroupID.x * WG_SIZE + gl_LocalInvocationID.x;
    uvec4 all = uvec4(0);
    uint at = i;
    for (; at + 3 * push.stride < push.n4; at += 4 * push.stride) {
        uvec4 v[4];
        [[unroll]] for (uint j = 0; j < 4; j++) v[j] = push.src.v[at + j * push.stride];
        all ^= v[0] ^ v[1] ^ v[2] ^ v[3];
    }
    for (; at < push.n4; at += push.stride) all ^= push.src.v[at];
    push.dst.v[i] = all;
}
