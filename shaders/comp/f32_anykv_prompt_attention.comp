#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, h] = softmax(q[t, h] · Kᵀ · scale, sink[h]) · V as in f32_anykv_attention.comp, for many tokens of a sequence:
// keys and values are read once for a tile of ROWS query rows (see prompt_attention.glsl) and not once per token. The
// softmax is computed online (arXiv 2205.14135), all in f32.
// One workgroup per (key/value head, tile, split of the positions). It walks over blocks of BLOCK positions: keys go to
// shared memory, each invocation scores THREAD_ROWS rows × THREAD_POS positions; then the values take the keys' place, and
// each invocation adds up THREAD_ROWS rows × its share of the head's vec4s. What a row needs to know of its maximum is
// shared by the POS_LANES invocations that score it; its sum each keeps for its own positions until the end. With several
// splits (short prompts behind long contexts) each leaves its part in `partials` for f32_attention_merge.comp.
// Cache layout: see kv_cache.glsl. Blocks are kept in f32: codes of a byte with their scales don't fit f16.
// Bound by operations: 4 · head_dim for each row and position that it sees.
// CPU twin: f64 over the same cache, tolerance 1e-5 of the largest value.
// Specialization constants: 0 WG_SIZE, 1 HEAD_DIM4 = head_dim / 4, 2 PAGE, 3 K_TYPE, 4 V_TYPE, 5 ROWS, 6 BLOCK (a
// multiple of PAGE and of POS_LANES), 7 THREAD_ROWS (a multiple of 4). Any subgroup size; shared memory: PromptTile.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint HEAD_DIM4 = 16;
layout(constant_id = 2) const uint PAGE = 8;
layout(constant_id = 3) const uint K_TYPE = 0;
layout(constant_id = 4) const uint V_TYPE = 0;
layout(constant_id = 5) const uint ROWS = 32;
layout(constant_id = 6) const uint BLOCK = 32;
layout(constant_id = 7) const uint THREAD_ROWS = 4;
#include "kv_cache.glsl"
#include "attention.glsl"
#include "prompt_attention.glsl"

const uint ROW_LANES = ROWS / THREAD_ROWS, POS_LANES = WG_SIZE / ROW_LANES;
const uint THREAD_POS = BLOCK / POS_LANES;
const uint THREAD_ROWS4 = THREAD_ROWS / 4;
// vec4s of a head that an invocation adds up, rounded up.
const uint MY_D4 = (HEAD_DIM4 + POS_LANES - 1) / POS_LANES;
// One more vec4 than a row has: neighbours fall into different banks.
const uint HEAD_STRIDE = HEAD_DIM4 + 1, WEIGHT_STRIDE = ROWS / 4 + 1;

shared vec4 query[ROWS * HEAD_STRIDE];
shared vec4 block[BLOCK * HEAD_STRIDE]; // of keys, then of values
shared vec4 weights[BLOCK * WEIGHT_STRIDE]; // of four rows each
shared vec4 exchanged[POS_LANES * ROWS / 4]; // maxima of four rows each; at the end, sums

// Puts the block's keys or values into shared memory. Behind the last position are zeros: a weight of 0 times what was
// never written might be NaN.
void stage(QueryTile tile, ReadU32x2 cache, uint type, uint first) {
    for (uint i = gl_LocalInvocationID.x; i < BLOCK * HEAD_DIM4; i += WG_SIZE) {
        uint at = i / HEAD_DIM4, d = i % HEAD_DIM4, pos = first + at;
        vec4 v = vec4(0.0);
        if (pos < tile.end) v = cached_vec4(cache, type, part_of(tile, pos), pos % PAGE, d);
        block[at * HEAD_STRIDE + d] = v;
    }
}

// Gives `values` of this invocation's rows to those that share the rows; afterwards `exchanged_of` has all of them.
void exchange(float values[THREAD_ROWS], uint row_lane, uint pos_lane) {
    [[unroll]] for (uint i = 0; i < THREAD_ROWS4; i++)
        exchanged[pos_lane * (ROWS / 4) + row_lane * THREAD_ROWS4 + i] =
            vec4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]);
    barrier();
}

vec4 exchanged_of(uint row_lane, uint i, uint lane) {
    return exchanged[lane * (ROWS / 4) + row_lane * THREAD_ROWS4 + i];
}

void main() {
    uint tid = gl_LocalInvocationID.x, row_lane = tid / POS_LANES, pos_lane = tid % POS_LANES;
    QueryTile tile = query_tile();
    for (uint i = tid; i < ROWS * HEAD_DIM4; i += WG_SIZE) {
        uint r = i / HEAD_DIM4, d = i % HEAD_DIM4;
        query[r * HEAD_STRIDE + d] = push.q.v[place_of(row_of(tile, r)) + d] * push.scale;
    }
    uvec2 seen[THREAD_ROWS];
    float running_max[THREAD_ROWS], running_sum[THREAD_ROWS];
    vec4 acc[THREAD_ROWS * MY_D4];
    [[unroll]] for (uint r = 0; r < THREAD_ROWS; r++) {
        seen[r] = seen_by(tile, row_lane * THREAD_ROWS + r);
        running_max[r] = LOWEST;
        running_sum[r] = 0.0;
        [[unroll]] for (uint j = 0; j < MY_D4; j++) acc[r * MY_D4 + j] = vec4(0.0);
    }

    for (uint first = tile.start; first < tile.end; first += BLOCK) {
        stage(tile, push.k_cache, K_TYPE, first);
        barrier();
        float scores[THREAD_ROWS * THREAD_POS];
        [[unroll]] for (uint i = 0; i < THREAD_ROWS * THREAD_POS; i++) scores[i] = 0.0;
        for (uint d = 0; d < HEAD_DIM4; d++) {
            vec4 q[THREAD_ROWS], k[THREAD_POS];
            [[unroll]] for (uint r = 0; r < THREAD_ROWS; r++) q[r] = query[(row_lane * THREAD_ROWS + r) * HEAD_STRIDE + d];
            [[unroll]] for (uint p = 0; p < THREAD_POS; p++) k[p] = block[(pos_lane + p * POS_LANES) * HEAD_STRIDE + d];
            [[unroll]] for (uint r = 0; r < THREAD_ROWS; r++)
                [[unroll]] for (uint p = 0; p < THREAD_POS; p++) {
                    float s = scores[r * THREAD_POS + p];
                    scores[r * THREAD_POS + p] =
                        fma(q[r].w, k[p].w, fma(q[r].z, k[p].z, fma(q[r].y, k[p].y, fma(q[r].x, k[p].x, s))));
                }
        }
        float maxima[THREAD_ROWS];
        [[unroll]] for (uint r = 0; r < THREAD_ROWS; r++) {
            maxima[r] = running_max[r];
            [[unroll]] for (uint p = 0; p < THREAD_POS; p++) {
                uint pos = first + pos_lane + p * POS_LANES;
                if (pos < seen[r].x || pos >= seen[r].y) scores[r * THREAD_POS + p] = LOWEST;
                maxima[r] = max(maxima[r], scores[r * THREAD_POS + p]);
            }
        }
        exchange(maxima, row_lane, pos_lane);
        // All have scored the keys.
        stage(tile, push.v_cache, V_TYPE, first);
        for (uint lane = 0; lane < POS_LANES; lane++)
            [[unroll]] for (uint i = 0; i < THREAD_ROWS4; i++) {
                vec4 other = exchanged_of(row_lane, i, lane);
                [[unroll]] for (uint e = 0; e < 4; e++) maxima[4 * i + e] = max(maxima[4 * i + e], other[e]);
            }
        [[unroll]] for (uint r = 0; r < THREAD_ROWS; r++) {
            float keep = exp(running_max[r] - maxima[r]);
            running_max[r] = maxima[r];
            running_sum[r] *= keep;
            [[unroll]] for (uint j = 0; j < MY_D4; j++) acc[r * MY_D4 + j] *= keep;
            [[unroll]] for (uint p = 0; p < THREAD_POS; p++) {
                uint pos = first + pos_lane + p * POS_LANES;
                // Where nothing was seen yet, what is hidden is as large as the maximum.
                float weight = scores[r * THREAD_POS + p] == LOWEST ? 0.0 : exp(scores[r * THREAD_POS + p] - maxima[r]);
                running_sum[r] += weight;
                scores[r * THREAD_POS + p] = weight;
            }
        }
        [[unroll]] for (uint p = 0; p < THREAD_POS; p++)
            [[unroll]] for (uint i = 0; i < THREAD_ROWS4; i++) {
                vec4 w;
                [[unroll]] for (uint e = 0; e < 4; e++) w[e] = scores[(4 * i + e) * THREAD_POS + p];
                weights[(pos_lane + p * POS_LANES) * WEIGHT_STRIDE + row_lane * THREAD_ROWS4 + i] = w;
            }
        barrier();
        uint n = min(BLOCK, tile.end - first);
        for (uint at = 0; at < n; at++) {
            vec4 w[THREAD_ROWS4], v[MY_D4];
            [[unroll]] for (uint i = 0; i < THREAD_ROWS4; i++) w[i] = weights[at * WEIGHT_STRIDE + row_lane * THREAD_ROWS4 + i];
            // What lies behind the head is the next one's, or the padding; it is added up and not stored.
            [[unroll]] for (uint j = 0; j < MY_D4; j++)
                v[j] = block[at * HEAD_STRIDE + min(pos_lane + j * POS_LANES, HEAD_DIM4 - 1)];
            [[unroll]] for (uint r = 0; r < THREAD_ROWS; r++)
                [[unroll]] for (uint j = 0; j < MY_D4; j++)
                    acc[r * MY_D4 + j] = fma(vec4(w[r / 4][r % 4]), v[j], acc[r * MY_D4 + j]);
        }
        barrier();
    }

    exchange(running_sum, row_lane, pos_lane);
    [[unroll]] for (uint r = 0; r < THREAD_ROWS; r++) {
        uint at = row_lane * THREAD_ROWS + r;
        if (at >= tile.n_rows) continue;
        float sum = 0.0;
        for (uint lane = 0; lane < POS_LANES; lane++) sum += exchanged_of(row_lane, r / 4, lane)[r % 4];
        Row row = row_of(tile, at);
        Result result = result_of(row);
        float factor = push.n_splits > 1 ? 1.0 : final_factor(row.head, running_max[r], sum);
        if (push.n_splits > 1 && pos_lane == 0) put_maximum(row, running_max[r], sum);
        [[unroll]] for (uint j = 0; j < MY_D4; j++) {
            uint d4 = pos_lane + j * POS_LANES;
            if (d4 < HEAD_DIM4) result.out4.v[result.first + d4] = acc[r * MY_D4 + j] * factor;
        }
    }
}
