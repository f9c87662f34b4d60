#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, h] = softmax(q[t, h] · Kᵀ · scale, sink[h]) · V over the last `window` positions up to pos[t] of the token's
// sequence, with the softmax in f32 and computed online (arXiv 2205.14135): shared memory does not grow with the
// context. Query head h reads key/value head h / group. A sink is one more score per head, without a value.
// One workgroup per (head, token). For each tile of WG_SIZE positions, every invocation scores one position, then the
// invocations share out the head's vec4s (and, where there are more invocations than vec4s, the positions) to add up
// the weighted values. Cache layout: see f32_kv_store.comp.
// Bound by bytes: keys and values of all positions, once per query head.
// CPU twin: f64 over the same f16 cache, tolerance 1e-5 of the largest value.
// Specialization constants: 0 WG_SIZE (≥ HEAD_DIM4), 1 HEAD_DIM4 = head_dim / 4, 2 PAGE. Subgroup size ≥ 4,
// subgroup arithmetic.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint HEAD_DIM4 = 16;
layout(constant_id = 2) const uint PAGE = 32;

#include "reduce.glsl"

layout(push_constant) uniform Push {
    ReadF32x4 q;        // [n_tokens, q_stride4 * 4]
    ReadU32x2 k_cache;  // two words hold four f16
    ReadU32x2 v_cache;
    ReadU32 tables;     // [n_seq, pages_per_seq]
    ReadU32 seqs;       // [n_tokens]
    ReadU32 positions;  // [n_tokens]
    ReadF32 sinks;      // [n_head], read if has_sinks
    WriteF32x4 dst;     // [n_tokens, q_stride4 * 4]
    uint n_head_kv;
    uint group;         // query heads per key/value head
    uint pages_per_seq;
    uint window;        // 0xFFFFFFFF: no limit
    uint has_sinks;
    uint q_stride4;
    float scale;        // 1 / sqrt(head_dim)
} push;

// Less than any score of finite activations, and still finite: exp(LOWEST - x) is 0, not NaN.
const float LOWEST = -3.0e38;
const uint N_PARTS = WG_SIZE / HEAD_DIM4;

shared vec4 query[HEAD_DIM4];
shared float weights[WG_SIZE];
shared vec4 part_sums[WG_SIZE];

// First vec4 of a position in the cache of key/value head `head_kv`.
uint cache_vec4(uint table, uint head_kv, uint pos) {
    uint page = push.tables.v[table + pos / PAGE];
    return ((page * push.n_head_kv + head_kv) * PAGE + pos % PAGE) * HEAD_DIM4;
}

vec4 halves_to_vec4(uvec2 words) {
    return vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
}

void main() {
    uint head = gl_WorkGroupID.x, t = gl_WorkGroupID.y, tid = gl_LocalInvocationID.x;
    uint n_pos = push.positions.v[t] + 1;
    uint first_pos = n_pos - min(n_pos, push.window);
    uint table = push.seqs.v[t] * push.pages_per_seq, head_kv = head / push.group;
    uint q_at = t * push.q_stride4 + head * HEAD_DIM4;
    for (uint d = tid; d < HEAD_DIM4; d += WG_SIZE) query[d] = push.q.v[q_at + d] * push.scale;
    barrier();

    uint d4 = tid % HEAD_DIM4, part = tid / HEAD_DIM4;
    float running_max = LOWEST, running_sum = 0.0;
    if (push.has_sinks != 0) {
        running_max = push.sinks.v[head];
        running_sum = tid == 0 ? 1.0 : 0.0; // the sums of all invocations are added in the end
    }
    vec4 acc = vec4(0.0);
    for (uint first = first_pos; first < n_pos; first += WG_SIZE) {
        uint pos = first + tid;
        float score = LOWEST;
        if (pos < n_pos) {
            uint k_at = cache_vec4(table, head_kv, pos);
            score = 0.0;
            for (uint d = 0; d < HEAD_DIM4; d++) score += dot(query[d], halves_to_vec4(push.k_cache.v[k_at + d]));
        }
        float new_max = max(running_max, workgroup_max(score));
        float weight = pos < n_pos ? exp(score - new_max) : 0.0;
        float keep = exp(running_max - new_max);
        running_max = new_max;
        running_sum = running_sum * keep + weight;
        weights[tid] = weight;
        barrier();
        acc *= keep;
        if (part < N_PARTS) {
            uint n = min(WG_SIZE, n_pos - first);
            for (uint i = part; i < n; i += N_PARTS) {
                acc += weights[i] * halves_to_vec4(push.v_cache.v[cache_vec4(table, head_kv, first + i) + d4]);
            }
        }
        barrier();
    }

    float total = workgroup_add(running_sum);
    part_sums[tid] = acc;
    barrier();
    if (part == 0) {
        for (uint p = 1; p < N_PARTS; p++) acc += part_sums[p * HEAD_DIM4 + d4];
        push.dst.v[q_at + d4] = acc / total;
    }
}
