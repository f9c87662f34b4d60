#version 460
#extension GL_GOOGLE_include_directive : require
// Rotates the pairs (a, b) of every head in place: a' = a·cos − b·sin, b' = a·sin + b·cos (arXiv 2104.09864).
// NEOX = 1: pairs (i, i + n_rot/2); NEOX = 0: pairs (2i, 2i + 1). Elements past n_rot stay.
// cos and sin come from the host, computed in f64 for each token of the batch (a shader's sin and cos may be off by
// 2⁻¹¹), already scaled by YaRN's magnitude.
// One invocation per (pair, head, token); workgroup y = token. Bound by bytes: x read and written once.
// CPU twin: f64, tolerance 1e-6 of the pair's length.
// Specialization constants: 0 WG_SIZE, 1 NEOX. Any subgroup size.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint NEOX = 1;

layout(push_constant) uniform Push {
    WriteF32 x;       // [n_tokens, stride], rotated in place
    ReadF32 cos_sin;  // [n_tokens, 2, n_pairs]: cosines, then sines
    uint n_pairs;     // n_rot / 2
    uint n_heads;
    uint head_dim;
    uint stride;
} push;

void main() {
    uint i = gl_GlobalInvocationID.x, t = gl_WorkGroupID.y;
    if (i >= push.n_pairs * push.n_heads) return;
    uint head = i / push.n_pairs, pair = i % push.n_pairs;
    float c = push.cos_sin.v[t * 2 * push.n_pairs + pair];
    float s = push.cos_sin.v[(t * 2 + 1) * push.n_pairs + pair];
    uint base = t * push.stride + head * push.head_dim;
    uint at_a = base + (NEOX != 0 ? pair : 2 * pair);
    uint at_b = NEOX != 0 ? at_a + push.n_pairs : at_a + 1;
    float a = push.x.v[at_a], b = push.x.v[at_b];
    push.x.v[at_a] = a * c - b * s;
    push.x.v[at_b] = a * s + b * c;
}
