#version 460
#extension GL_GOOGLE_include_directive : require
// Rounds the keys and values of the batch to the types of one layer's cache and stores them there.
// Cache layout: see kv_cache.glsl; a head's positions follow each other within a page, and a sequence's table says which
// page holds which positions. Workgroup y = token, z = 0 for keys, 1 for values; one invocation per four elements.
// Bound by bytes: the rows read and written once.
// CPU twin: f16: half::f16::from_f32 (round to nearest even), exact (packHalf2x16 may truncate; a conversion does not);
// q8_0: kv::quantize_block, a value within 0.57 of a code.
// Specialization constants: 0 WG_SIZE (a multiple of 8), 1 HEAD_DIM4, 2 PAGE (positions per page), 3 K_TYPE, 4 V_TYPE
// (kv_cache.glsl). Any subgroup size; 16-bit storage; shared memory 4 · WG_SIZE bytes.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint HEAD_DIM4 = 16;
layout(constant_id = 2) const uint PAGE = 32;
layout(constant_id = 3) const uint K_TYPE = 0;
layout(constant_id = 4) const uint V_TYPE = 0;
#include "kv_cache.glsl"

layout(push_constant) uniform Push {
    ReadF32x4 k;         // [n_tokens, stride4 * 4]
    ReadF32x4 v;         // [n_tokens, stride4 * 4]
    WriteF16x4 k_cache;  // read as what K_TYPE says
    WriteF16x4 v_cache;
    ReadU32 tables;      // [n_seq, pages_per_seq]
    ReadU32 seqs;        // [n_tokens]
    ReadU32 positions;   // [n_tokens]
    uint n_head_kv;
    uint pages_per_seq;
    uint stride4;
} push;

shared float largest[WG_SIZE];

void store(vec4 values, WriteF16x4 cache, uint type, uint part, uint row, uint d4) {
    if (type == KV_F16) {
        cache.v[(part * PAGE + row) * HEAD_DIM4 + d4] = f16vec4(values);
        return;
    }
    uint first = gl_LocalInvocationID.x / 8 * 8;
    float top = 0.0;
    for (uint i = 0; i < 8; i++) top = max(top, largest[first + i]);
    float scale = top / 127.0;
    uint at = part * Q8_WORDS;
    WriteU32(cache).v[at + row * HEAD_DIM4 + d4] = q8_codes(values, scale > 0.0 ? 1.0 / scale : 0.0);
    if (d4 % 8 == 0) WriteF16(cache).v[q8_scale_at(at, row) + d4 / 8] = float16_t(scale);
}

void main() {
    uint i = gl_GlobalInvocationID.x, t = gl_WorkGroupID.y;
    bool is_inside = i < push.n_head_kv * HEAD_DIM4, is_key = gl_WorkGroupID.z == 0;
    uint head = i / HEAD_DIM4, d4 = i % HEAD_DIM4, from = t * push.stride4 + i;
    vec4 values = vec4(0.0);
    if (is_inside) values = is_key ? push.k.v[from] : push.v.v[from];
    if (K_TYPE == KV_Q8_0 || V_TYPE == KV_Q8_0) {
        largest[gl_LocalInvocationID.x] = largest_of(values);
        barrier();
    }
    if (!is_inside) return;
    uint pos = push.positions.v[t];
    uint page = push.tables.v[push.seqs.v[t] * push.pages_per_seq + pos / PAGE];
    uint part = page * push.n_head_kv + head, row = pos % PAGE;
    if (is_key) {
        store(values, push.k_cache, K_TYPE, part, row, d4);
    } else {
        store(values, push.v_cache, V_TYPE, part, row, d4);
    }
}
