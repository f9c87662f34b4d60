#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, h] = softmax(q[t, h] · Kᵀ · scale, sink[h]) · V over the last `window` positions up to pos[t] of the token's
// sequence, with the softmax in f32 and computed online (arXiv 2205.14135): shared memory does not grow with the
// context. Query head h reads key/value head h / group. A sink is one more score per head, without a value.
// One workgroup per (GROUP query heads that share a key/value head, token, split of the positions), so that keys and
// values are read once for the GROUP heads. For each tile of WG_SIZE positions, every invocation scores one position,
// then the invocations share out the head's vec4s (and, where there are more invocations than vec4s, the positions) to
// add up the weighted values. With several splits (long contexts, few tokens: arXiv 2311.01282) each leaves its
// maximum, sum and weighted values in `partials`, and f32_attention_merge.comp finishes.
// Cache layout: see kv_cache.glsl.
// Bound by bytes: keys and values of all positions, once per GROUP query heads.
// CPU twin: f64 over the same cache, tolerance 1e-5 of the largest value.
// Specialization constants: 0 WG_SIZE (≥ HEAD_DIM4), 1 HEAD_DIM4 = head_dim / 4, 2 PAGE, 3 GROUP,
// 4 K_TYPE, 5 V_TYPE, 6 SUBGROUP (what the host asks the driver for; nothing here depends on it). Subgroup size ≥ 4,
// subgroup arithmetic; shared memory 16 · max(GROUP · HEAD_DIM4, WG_SIZE) + 5 · GROUP · WG_SIZE bytes.
#include "buffers.glsl"
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint HEAD_DIM4 = 16;
layout(constant_id = 2) const uint PAGE = 32;
layout(constant_id = 3) const uint GROUP = 1;
layout(constant_id = 4) const uint K_TYPE = 0;
layout(constant_id = 5) const uint V_TYPE = 0;
#include "kv_cache.glsl"
#include "attention.glsl"

const uint N_PARTS = WG_SIZE / HEAD_DIM4;
const uint MAX_SUBGROUPS = WG_SIZE / 4;

// Queries; at the end, sums of the parts.
shared vec4 query[GROUP * HEAD_DIM4 > WG_SIZE ? GROUP * HEAD_DIM4 : WG_SIZE];
shared float weights[GROUP * WG_SIZE];
shared float reduced[GROUP * MAX_SUBGROUPS];

// Maxima over the workgroup, of every head at once.
void workgroup_max(inout float values[GROUP]) {
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        values[g] = subgroupMax(values[g]);
        if (gl_NumSubgroups > 1 && subgroupElect()) reduced[g * MAX_SUBGROUPS + gl_SubgroupID] = values[g];
    }
    if (gl_NumSubgroups == 1) return;
    barrier();
    [[unroll]] for (uint g = 0; g < GROUP; g++)
        for (uint s = 0; s < gl_NumSubgroups; s++) values[g] = max(values[g], reduced[g * MAX_SUBGROUPS + s]);
}

// Sums over the workgroup, of every head at once. A barrier lies between this and the last use of `reduced`.
void workgroup_add(inout float values[GROUP]) {
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        values[g] = subgroupAdd(values[g]);
        if (gl_NumSubgroups > 1 && subgroupElect()) reduced[g * MAX_SUBGROUPS + gl_SubgroupID] = values[g];
    }
    if (gl_NumSubgroups == 1) return;
    barrier();
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        values[g] = 0.0;
        for (uint s = 0; s < gl_NumSubgroups; s++) values[g] += reduced[g * MAX_SUBGROUPS + s];
    }
}

// Adds to `scores` the products of the queries with the key in row `row` of `part`.
void add_products(inout float scores[GROUP], uint part, uint row) {
    if (K_TYPE == KV_F16) {
        uint at = (part * PAGE + row) * HEAD_DIM4;
        for (uint d = 0; d < HEAD_DIM4; d++) {
            vec4 k = halves_to_vec4(push.k_cache.v[at + d]);
            [[unroll]] for (uint g = 0; g < GROUP; g++) scores[g] += dot(query[g * HEAD_DIM4 + d], k);
        }
        return;
    }
    uint words = part * Q8_WORDS, at = (words + row * HEAD_DIM4) / 4, scale_at = q8_scale_at(words, row);
    for (uint block = 0; block < HEAD_DIM4 / 8; block++) {
        float scale = float(ReadF16(push.k_cache).v[scale_at + block]);
        [[unroll]] for (uint half_block = 0; half_block < 2; half_block++) {
            uvec4 codes = ReadU32x4(push.k_cache).v[at + 2 * block + half_block];
            [[unroll]] for (uint i = 0; i < 4; i++) {
                vec4 k = q8_values(codes[i], scale);
                uint d = 8 * block + 4 * half_block + i;
                [[unroll]] for (uint g = 0; g < GROUP; g++) scores[g] += dot(query[g * HEAD_DIM4 + d], k);
            }
        }
    }
}

void main() {
    uint head0 = gl_WorkGroupID.x * GROUP, t = gl_WorkGroupID.y, tid = gl_LocalInvocationID.x;
    uint head_kv = head0 / push.group;
    uint end = push.positions.v[t] + 1;
    uint start = end - min(end, push.window);
    if (push.n_splits > 1) {
        // Whole tiles each; the last may be short, and some may be empty.
        uint per_split = ((end - start + push.n_splits - 1) / push.n_splits + WG_SIZE - 1) / WG_SIZE * WG_SIZE;
        start += min(gl_WorkGroupID.z * per_split, end - start);
        end = min(start + per_split, end);
    }
    uint table = push.seqs.v[t] * push.pages_per_seq;
    uint q_at = t * push.q_stride4 + head0 * HEAD_DIM4;
    for (uint d = tid; d < GROUP * HEAD_DIM4; d += WG_SIZE) query[d] = push.q.v[q_at + d] * push.scale;
    barrier();

    uint d4 = tid % HEAD_DIM4, part = tid / HEAD_DIM4;
    float running_max[GROUP], running_sum[GROUP];
    vec4 acc[GROUP];
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        running_max[g] = LOWEST;
        running_sum[g] = 0.0;
        acc[g] = vec4(0.0);
    }
    for (uint first = start; first < end; first += WG_SIZE) {
        uint pos = first + tid;
        float scores[GROUP], maxima[GROUP];
        [[unroll]] for (uint g = 0; g < GROUP; g++) scores[g] = pos < end ? 0.0 : LOWEST;
        if (pos < end) add_products(scores, part_of(table, head_kv, pos), pos % PAGE);
        [[unroll]] for (uint g = 0; g < GROUP; g++) maxima[g] = max(scores[g], running_max[g]);
        workgroup_max(maxima);
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            float weight = pos < end ? exp(scores[g] - maxima[g]) : 0.0;
            float keep = exp(running_max[g] - maxima[g]);
            running_max[g] = maxima[g];
            running_sum[g] = running_sum[g] * keep + weight;
            acc[g] *= keep;
            weights[g * WG_SIZE + tid] = weight;
        }
        barrier();
        if (part < N_PARTS) {
            uint n = min(WG_SIZE, end - first);
            for (uint i = part; i < n; i += N_PARTS) {
                uint pos = first + i;
                vec4 v = cached_vec4(push.v_cache, V_TYPE, part_of(table, head_kv, pos), pos % PAGE, d4);
                [[unroll]] for (uint g = 0; g < GROUP; g++) acc[g] += weights[g * WG_SIZE + i] * v;
            }
        }
        barrier();
    }

    workgroup_add(running_sum);
    [[unroll]] for (uint g = 0; g < GROUP; g++) {
        barrier(); // the sums of the head before have been read
        query[tid] = acc[g];
        barrier();
        if (part != 0) continue;
        vec4 sum = acc[g];
        for (uint p = 1; p < N_PARTS; p++) sum += query[p * HEAD_DIM4 + d4];
        if (push.n_splits > 1) {
            uint n_head = push.n_head_kv * push.group;
            uint at = ((t * n_head + head0 + g) * push.n_splits + gl_WorkGroupID.z) * (1 + HEAD_DIM4);
            if (d4 == 0) push.partials.v[at] = vec4(running_max[g], running_sum[g], 0.0, 0.0);
            push.partials.v[at + 1 + d4] = sum;
        } else {
            float total = running_sum[g], factor = 1.0;
            if (push.has_sinks != 0) {
                float sink = push.sinks.v[head0 + g], top = max(sink, running_max[g]);
                factor = exp(running_max[g] - top);
                total = total * factor + exp(sink - top);
            }
            push.dst.v[q_at + g * HEAD_DIM4 + d4] = sum * (factor / total);
        }
    }
}
