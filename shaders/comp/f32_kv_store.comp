#version 460
#extension GL_GOOGLE_include_directive : require
// Rounds the keys and values of the batch to f16 and stores them in the cache of one layer.
// Cache layout, for keys and for values: [n_pages, n_head_kv, PAGE, head_dim] f16, so that a head's positions follow
// each other within a page; a sequence's table says which page holds which positions. Workgroup y = token, z = 0 for keys, 1 for values; one invocation per four elements.
// Bound by bytes: the rows read and written once.
// CPU twin: half::f16::from_f32 (round to nearest even), exact. (packHalf2x16 may truncate; a conversion does not.)
// Specialization constants: 0 WG_SIZE, 1 PAGE (positions per page). Any subgroup size; 16-bit storage.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint PAGE = 32;

layout(push_constant) uniform Push {
    ReadF32x4 k;         // [n_tokens, stride4 * 4]
    ReadF32x4 v;         // [n_tokens, stride4 * 4]
    WriteF16x4 k_cache;
    WriteF16x4 v_cache;
    ReadU32 tables;      // [n_seq, pages_per_seq]
    ReadU32 seqs;        // [n_tokens]
    ReadU32 positions;   // [n_tokens]
    uint n_head_kv;
    uint head_dim4;
    uint pages_per_seq;
    uint stride4;
} push;

void main() {
    uint i = gl_GlobalInvocationID.x, t = gl_WorkGroupID.y;
    if (i >= push.n_head_kv * push.head_dim4) return;
    uint head = i / push.head_dim4, d4 = i % push.head_dim4;
    uint pos = push.positions.v[t];
    uint page = push.tables.v[push.seqs.v[t] * push.pages_per_seq + pos / PAGE];
    uint row = (page * push.n_head_kv + head) * PAGE + pos % PAGE;
    uint from = t * push.stride4 + i, to = row * push.head_dim4 + d4;
    if (gl_WorkGroupID.z == 0) {
        push.k_cache.v[to] = f16vec4(push.k.v[from]);
    } else {
        push.v_cache.v[to] = f16vec4(push.v.v[from]);
    }
}
