#version 460
#extension GL_GOOGLE_include_directive : require
// Chooses each token's N_USED experts: those with the largest logits, the first of equal ones, largest first; and
// their weights: scale · softmax over the chosen logits (RENORMALISE = 1: arXiv 2401.04088, equal to a softmax over
// all that is renormalised) or over all logits (RENORMALISE = 0). Then groups the batch by expert: `entries` lists
// for each expert the pairs token · N_USED + slot that chose it, in order of tokens, and `tiles` cuts these lists into
// pieces of at most `tile_width`: tiles[0].x is their number, tiles[1 …] are (expert, first place in entries, length).
// One workgroup for the whole batch. Its subgroups take a token each; after each round of tokens, every invocation
// appends what the round chose to the lists of its experts, so lists are in order without atomics.
// Bound by latency: N_USED scans of the logits per token, n_tokens · N_USED steps for the lists.
// CPU twin: sort of the logits; the same experts exactly, weights within 1e-6.
// Specialization constants: 0 WG_SIZE, 1 N_EXPERT, 2 N_USED, 3 RENORMALISE. Subgroup size ≥ 4, subgroup arithmetic;
// shared memory 4 · (N_EXPERT + WG_SIZE / 4 · (N_USED + 3)) bytes.
#include "buffers.glsl"
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint N_EXPERT = 32;
layout(constant_id = 2) const uint N_USED = 4;
layout(constant_id = 3) const uint RENORMALISE = 1;

layout(push_constant) uniform Push {
    ReadF32 logits;   // [n_tokens, stride]
    WriteF32 weights; // [n_tokens, N_USED]
    WriteU32 entries; // [N_EXPERT, n_tokens]
    WriteU32x4 tiles;
    uint n_tokens;
    uint stride;
    uint tile_width;
    float scale;
} push;

const uint MAX_SUBGROUPS = WG_SIZE / 4;

shared uint counts[N_EXPERT];
shared uint chosen[MAX_SUBGROUPS * N_USED];
shared float tops[MAX_SUBGROUPS];   // largest logit of the subgroup's token
shared float totals[MAX_SUBGROUPS]; // sum of exp(logit - top) of those that take part
shared uint scan[MAX_SUBGROUPS];

// Numbers in the order of the floats: total, so that even NaNs leave every pick a different expert. -0 is 0.
uint order_of(float v) {
    uint bits = floatBitsToUint(v);
    if (bits == 0x80000000u) bits = 0;
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// The subgroup picks the experts of token `t`.
void choose(uint t) {
    uint row = t * push.stride;
    uint last_key = 0xFFFFFFFFu;
    int last = -1;
    float top = 0.0, total = 0.0;
    for (uint i = 0; i < N_USED; i++) {
        // The best of those that come after the last pick: smaller, or equal with a higher number.
        uint best_key = 0;
        int best = int(N_EXPERT);
        for (int e = int(gl_SubgroupInvocationID); e < int(N_EXPERT); e += int(gl_SubgroupSize)) {
            uint key = order_of(push.logits.v[row + e]);
            bool is_left = key < last_key || key == last_key && e > last;
            if (is_left && (best == int(N_EXPERT) || key > best_key)) {
                best_key = key;
                best = e;
            }
        }
        last_key = subgroupMax(best_key);
        last = subgroupMin(best_key == last_key ? best : int(N_EXPERT));
        float logit = push.logits.v[row + last];
        if (i == 0) top = logit;
        total += exp(logit - top);
        if (subgroupElect()) chosen[gl_SubgroupID * N_USED + i] = last;
    }
    if (RENORMALISE == 0) {
        float sum = 0.0;
        for (uint e = gl_SubgroupInvocationID; e < N_EXPERT; e += gl_SubgroupSize) sum += exp(push.logits.v[row + e] - top);
        total = subgroupAdd(sum);
    }
    if (subgroupElect()) {
        tops[gl_SubgroupID] = top;
        totals[gl_SubgroupID] = total;
    }
}

// Sum of `value` over the invocations before this one; `total` over all.
uint exclusive_add(uint value, out uint total) {
    uint before = subgroupExclusiveAdd(value), sum = subgroupAdd(value);
    if (subgroupElect()) scan[gl_SubgroupID] = sum;
    barrier();
    total = 0;
    for (uint s = 0; s < gl_NumSubgroups; s++) {
        if (s < gl_SubgroupID) before += scan[s];
        total += scan[s];
    }
    barrier();
    return before;
}

void main() {
    uint tid = gl_LocalInvocationID.x;
    for (uint e = tid; e < N_EXPERT; e += WG_SIZE) counts[e] = 0;
    for (uint t0 = 0; t0 < push.n_tokens; t0 += gl_NumSubgroups) {
        if (t0 + gl_SubgroupID < push.n_tokens) choose(t0 + gl_SubgroupID);
        barrier();
        uint n_pairs = min(gl_NumSubgroups, push.n_tokens - t0) * N_USED;
        for (uint i = tid; i < n_pairs; i += WG_SIZE) {
            float logit = push.logits.v[(t0 + i / N_USED) * push.stride + chosen[i]];
            push.weights.v[t0 * N_USED + i] = exp(logit - tops[i / N_USED]) / totals[i / N_USED] * push.scale;
        }
        for (uint e = tid; e < N_EXPERT; e += WG_SIZE) {
            uint n = counts[e];
            for (uint i = 0; i < n_pairs; i++) {
                if (chosen[i] == e) {
                    push.entries.v[e * push.n_tokens + n] = t0 * N_USED + i;
                    n++;
                }
            }
            counts[e] = n;
        }
        barrier();
    }

    uint n_tiles = 0;
    for (uint e0 = 0; e0 < N_EXPERT; e0 += WG_SIZE) {
        uint e = e0 + tid, n = e < N_EXPERT ? counts[e] : 0, total;
        uint at = n_tiles + exclusive_add((n + push.tile_width - 1) / push.tile_width, total);
        for (uint i = 0; i < n; i += push.tile_width) {
            push.tiles.v[1 + at + i / push.tile_width] = uvec4(e, e * push.n_tokens + i, min(push.tile_width, n - i), 0);
        }
        n_tiles += total;
    }
    if (tid == 0) push.tiles.v[0] = uvec4(n_tiles, 0, 0, 0);
}
