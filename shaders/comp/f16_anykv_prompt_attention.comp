#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, h] = softmax(q[t, h] · Kᵀ · scale, sink[h]) · V as in f32_anykv_prompt_attention.comp, on the matrix units: factors
// in f16, sums and the softmax in f32.
// One workgroup per (key/value head, tile of ROWS query rows, split of the positions). For each block of BLOCK positions
// it puts the keys and the transposed values into shared memory as f16 (while one block is multiplied, the next one is on
// its way in registers). Each subgroup has WAVE_ROWS rows of its own, whose queries stay in registers: it
// multiplies Kᵀ-wise, so that a query is a column: scores = K · Qᵀ, sums += Vᵀ · weightsᵀ. A column's
// rescaling by a new maximum is then one number for all that an invocation holds of it on AMD's units. Scores and weights
// pass through a stage in shared memory that belongs to the subgroup alone, where SUBGROUP / WAVE_ROWS invocations take
// the maximum and the exponentials of a row. Every subgroup takes every block that one of the tile's rows sees, also
// those that none of its own rows sees: with subgroups that skip blocks results came out wrong on a driver on the
// processor (lavapipe of Mesa 26).
// A query row is divided by the power of two that brings its largest element to 2^14; keys and values of type Q8_0 are
// clamped to ±65504. Weights are at most LIFT, so that small ones keep their bits.
// Bound by operations: 4 · head_dim for each row and position of the blocks that its tile sees.
// CPU twin: f64 over the same cache; tolerance 2e-3 of the largest value, and of a score 1e-3 of the sum of its products.
// Specialization constants: 0 WG_SIZE, 1 HEAD_DIM4 = head_dim / 4 (even), 2 PAGE (8), 3 K_TYPE, 4 V_TYPE, 5 ROWS, 6 BLOCK,
// 7 WAVE_ROWS, 8 MAT_M, 9 MAT_N, 10 MAT_K, 11 SUBGROUP. Cooperative matrices of f16 with f32 sums, subgroups of
// SUBGROUP, subgroup arithmetic; shared memory: MatrixPromptTile.
#include "buffers.glsl"
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 256;
layout(constant_id = 1) const uint HEAD_DIM4 = 16;
layout(constant_id = 2) const uint PAGE = 8;
layout(constant_id = 3) const uint K_TYPE = 0;
layout(constant_id = 4) const uint V_TYPE = 0;
layout(constant_id = 5) const uint ROWS = 128;
layout(constant_id = 6) const uint BLOCK = 32;
layout(constant_id = 7) const uint WAVE_ROWS = 16;
layout(constant_id = 8) const uint MAT_M = 16;
layout(constant_id = 9) const uint MAT_N = 16;
layout(constant_id = 10) const uint MAT_K = 16;
layout(constant_id = 11) const uint SUBGROUP = 32;
#include "kv_cache.glsl"
#include "attention.glsl"
#include "prompt_attention.glsl"

// Scores are kept as logarithms to base 2, which is what the hardware's exponential takes.
const float LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;
const float LIFT = 1024.0, LIFT_LOG2 = 10.0;
// The maximum before anything was seen: more than what is hidden (LOWEST), whose weights are then 0, too.
const float NOTHING = -1.0e38;

// Heads are multiplied in whole matrices; what lies behind their elements is zero.
const uint MAT_HEAD = MAT_M > MAT_K ? MAT_M : MAT_K;
const uint HEAD_PAD = (HEAD_DIM4 * 4 + MAT_HEAD - 1) / MAT_HEAD * MAT_HEAD;
// Pieces of eight halves, 16 bytes, in which shared memory is counted. One more per row: neighbours fall into different
// banks.
const uint HEAD_PIECES = HEAD_DIM4 / 2;
const uint K_STRIDE = HEAD_PAD / 8 + 1, V_STRIDE = BLOCK / 8 + 1;
const uint N_WAVES = ROWS / WAVE_ROWS;
// A subgroup's stage: scores of its rows in f32, then weights in f16, then sums on their way out.
const uint ROW_LANES = SUBGROUP / WAVE_ROWS;
const uint S_STRIDE = BLOCK / 4 + 1, OUT_STRIDE = MAT_M / 4 + 1;
const uint STAGE_QUADS = WAVE_ROWS * S_STRIDE;
const uint V_BASE = BLOCK * K_STRIDE;
const uint STAGE_BASE = V_BASE + HEAD_PAD * V_STRIDE;
const uint STAGES_END = STAGE_BASE + N_WAVES * STAGE_QUADS;
// Queries lie where keys, values and stages come later.
const uint Q_END = ROWS * K_STRIDE;

shared uvec4 quads[Q_END > STAGES_END ? Q_END : STAGES_END];
// A number of each invocation: what those that share a row tell each other, what a row is multiplied by.
shared float numbers[N_WAVES * SUBGROUP];

// Matrices along a head as factor and as result, along a block, and of a subgroup's rows.
const uint HEAD_K = HEAD_PAD / MAT_K, HEAD_M = HEAD_PAD / MAT_M;
const uint BLOCK_M = BLOCK / MAT_M, BLOCK_K = BLOCK / MAT_K;
const uint ROWS_N = WAVE_ROWS / MAT_N;
// What an invocation loads of a block, rounded up: pieces of keys, and vec4s of the values of a page.
const uint MY_K = (BLOCK * HEAD_PIECES + WG_SIZE - 1) / WG_SIZE;
const uint MY_V = (BLOCK / 8 * HEAD_DIM4 + WG_SIZE - 1) / WG_SIZE;
// Quads of scores of a row that an invocation takes.
const uint MY_QUADS = BLOCK / 4 / ROW_LANES;

coopmat<float16_t, gl_ScopeSubgroup, MAT_K, MAT_N, gl_MatrixUseB> queries[HEAD_K * ROWS_N];
coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator> sums[HEAD_M * ROWS_N];

// As they are in the cache: eight halves, or two words of codes and their scale; of values two words, or one and the scale.
uvec4 k_raw[MY_K];
uvec2 v_raw[MY_V * 8];

// Starts to load the block from position `first` on. Behind the last position it loads that one again, so that all loads
// are on their way together, without branches: such keys' scores are hidden later, such values made zeros.
void load_block(QueryTile tile, uint first) {
    uint last = tile.end - 1;
    [[unroll]] for (uint n = 0; n < MY_K; n++) {
        uint i = min(gl_LocalInvocationID.x + n * WG_SIZE, BLOCK * HEAD_PIECES - 1), piece = i % HEAD_PIECES;
        uint pos = min(first + i / HEAD_PIECES, last), part = part_of(tile, pos), row = pos % PAGE;
        if (K_TYPE == KV_F16) {
            k_raw[n] = ReadU32x4(push.k_cache).v[(part * PAGE + row) * HEAD_PIECES + piece];
        } else {
            uint words = part * Q8_WORDS;
            k_raw[n].xy = push.k_cache.v[(words + row * HEAD_DIM4) / 2 + piece];
            k_raw[n].z = packFloat2x16(f16vec2(ReadF16(push.k_cache).v[q8_scale_at(words, row) + piece / 4], 0.0));
        }
    }
    [[unroll]] for (uint n = 0; n < MY_V; n++) {
        uint i = min(gl_LocalInvocationID.x + n * WG_SIZE, BLOCK / 8 * HEAD_DIM4 - 1), d4 = i % HEAD_DIM4;
        uint part = part_of(tile, min(first + i / HEAD_DIM4 * 8, last));
        [[unroll]] for (uint r = 0; r < 8; r++) {
            if (V_TYPE == KV_F16) {
                v_raw[n * 8 + r] = push.v_cache.v[(part * PAGE + r) * HEAD_DIM4 + d4];
            } else {
                uint words = part * Q8_WORDS;
                v_raw[n * 8 + r].x = ReadU32(push.v_cache).v[words + r * HEAD_DIM4 + d4];
                v_raw[n * 8 + r].y =
                    packFloat2x16(f16vec2(ReadF16(push.v_cache).v[q8_scale_at(words, r) + d4 / 8], 0.0));
            }
        }
    }
}

uvec2 halves(vec4 v) {
    return uvec2(packFloat2x16(f16vec2(v.xy)), packFloat2x16(f16vec2(v.zw)));
}

// Four codes with their scale (in the lower half of a word) as halves.
uvec2 decoded(uint codes, uint scale) {
    return halves(clamp(q8_values(codes, unpackHalf2x16(scale).x), -65504.0, 65504.0));
}

// The `e`th halves of two rows of four.
uint pair_of(uvec2 a, uvec2 b, uint e) {
    uint x = a[e / 2], y = b[e / 2];
    return e % 2 == 0 ? (x & 0xFFFFu) | y << 16 : x >> 16 | (y & 0xFFFF0000u);
}

// Puts what was loaded into shared memory: the block from position `first` on. Values behind the last position become
// zeros, since what was never written might be NaN, and a weight of 0 times NaN is one.
void put_block(QueryTile tile, uint first) {
    bool is_partial = first + BLOCK > tile.end;
    [[unroll]] for (uint n = 0; n < MY_K; n++) {
        uint i = gl_LocalInvocationID.x + n * WG_SIZE;
        if (i >= BLOCK * HEAD_PIECES) continue;
        uvec4 piece = k_raw[n];
        if (K_TYPE != KV_F16) piece = uvec4(decoded(piece.x, piece.z), decoded(piece.y, piece.z));
        quads[i / HEAD_PIECES * K_STRIDE + i % HEAD_PIECES] = piece;
    }
    [[unroll]] for (uint n = 0; n < MY_V; n++) {
        uint i = gl_LocalInvocationID.x + n * WG_SIZE;
        if (i >= BLOCK / 8 * HEAD_DIM4) continue;
        uvec2 rows[8];
        [[unroll]] for (uint r = 0; r < 8; r++) {
            rows[r] = v_raw[n * 8 + r];
            if (V_TYPE != KV_F16) rows[r] = decoded(rows[r].x, rows[r].y);
            if (is_partial && first + i / HEAD_DIM4 * 8 + r >= tile.end) rows[r] = uvec2(0);
        }
        [[unroll]] for (uint e = 0; e < 4; e++) {
            uvec4 column;
            [[unroll]] for (uint r = 0; r < 4; r++) column[r] = pair_of(rows[2 * r], rows[2 * r + 1], e);
            quads[V_BASE + (i % HEAD_DIM4 * 4 + e) * V_STRIDE + i / HEAD_DIM4] = column;
        }
    }
}

// What this subgroup wrote into its stage becomes visible to all of it.
void stage_barrier() {
    subgroupMemoryBarrierShared();
    subgroupBarrier();
}

void put_number(float value) {
    numbers[gl_SubgroupID * SUBGROUP + gl_SubgroupInvocationID] = value;
    stage_barrier();
}

// The number of another invocation of the subgroup.
float number_of(uint lane) {
    return numbers[gl_SubgroupID * SUBGROUP + lane];
}

// Puts the subgroup's queries into shared memory, each row divided by a power of two; gives that of this invocation's row.
float put_queries(QueryTile tile, uint wave_row, uint my_row) {
    float mine = 1.0;
    for (uint r = 0; r < WAVE_ROWS; r++) {
        uint from = place_of(row_of(tile, wave_row + r)), to = (wave_row + r) * K_STRIDE;
        float top = 0.0;
        for (uint d = gl_SubgroupInvocationID; d < HEAD_DIM4; d += SUBGROUP) top = max(top, largest_of(push.q.v[from + d]));
        top = subgroupMax(top) * push.scale;
        // 2^-126 at least: what is smaller is nothing.
        int exponent = clamp(int(floatBitsToUint(top) >> 23) - 127 - 14, -112, 112);
        float power = uintBitsToFloat(uint(127 + exponent) << 23), inverse = uintBitsToFloat(uint(127 - exponent) << 23);
        if (r == my_row) mine = power;
        float factor = push.scale * inverse;
        for (uint d = gl_SubgroupInvocationID; d < HEAD_PAD / 8; d += SUBGROUP) {
            uvec4 piece = uvec4(0);
            if (d < HEAD_PIECES)
                piece = uvec4(halves(push.q.v[from + 2 * d] * factor), halves(push.q.v[from + 2 * d + 1] * factor));
            quads[to + d] = piece;
        }
    }
    stage_barrier();
    return mine;
}

// Zeros behind the heads' elements, in keys and transposed values.
void pad_heads() {
    const uint PAD = HEAD_PAD - HEAD_DIM4 * 4;
    if (PAD == 0) return;
    for (uint i = gl_LocalInvocationID.x; i < BLOCK * PAD / 8; i += WG_SIZE)
        quads[i / (PAD / 8) * K_STRIDE + HEAD_PIECES + i % (PAD / 8)] = uvec4(0);
    for (uint i = gl_LocalInvocationID.x; i < PAD * BLOCK / 8; i += WG_SIZE)
        quads[V_BASE + (HEAD_DIM4 * 4 + i / (BLOCK / 8)) * V_STRIDE + i % (BLOCK / 8)] = uvec4(0);
}

// Scores of the subgroup's rows with the block's keys, into the stage.
void score(uint stage) {
    [[unroll]] for (uint i = 0; i < BLOCK_M; i++) {
        coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator> scores[ROWS_N];
        [[unroll]] for (uint j = 0; j < ROWS_N; j++)
            scores[j] = coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator>(0.0);
        [[unroll]] for (uint k = 0; k < HEAD_K; k++) {
            coopmat<float16_t, gl_ScopeSubgroup, MAT_M, MAT_K, gl_MatrixUseA> keys;
            coopMatLoad(keys, quads, i * MAT_M * K_STRIDE + k * MAT_K / 8, K_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint j = 0; j < ROWS_N; j++)
                scores[j] = coopMatMulAdd(keys, queries[k * ROWS_N + j], scores[j]);
        }
        [[unroll]] for (uint j = 0; j < ROWS_N; j++)
            coopMatStore(scores[j], quads, stage + j * MAT_N * S_STRIDE + i * MAT_M / 4, S_STRIDE,
                gl_CooperativeMatrixLayoutColumnMajor);
    }
    stage_barrier();
}

// Adds the block's weighted values to the sums, which are multiplied by the rows' numbers before.
void add_values(uint stage) {
    coopmat<float16_t, gl_ScopeSubgroup, MAT_K, MAT_N, gl_MatrixUseB> weights[BLOCK_K * ROWS_N];
    coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator> keep[ROWS_N];
    [[unroll]] for (uint j = 0; j < ROWS_N; j++) {
        [[unroll]] for (uint k = 0; k < BLOCK_K; k++)
            coopMatLoad(weights[k * ROWS_N + j], quads, stage + j * MAT_N * S_STRIDE + k * MAT_K / 8, S_STRIDE,
                gl_CooperativeMatrixLayoutColumnMajor);
        // All rows of the matrix are the same: its columns' numbers.
        coopMatLoad(keep[j], numbers, gl_SubgroupID * SUBGROUP + j * MAT_N, 0, gl_CooperativeMatrixLayoutRowMajor);
    }
    [[unroll]] for (uint i = 0; i < HEAD_M; i++) {
        [[unroll]] for (uint j = 0; j < ROWS_N; j++) sums[i * ROWS_N + j] = sums[i * ROWS_N + j] * keep[j];
        [[unroll]] for (uint k = 0; k < BLOCK_K; k++) {
            coopmat<float16_t, gl_ScopeSubgroup, MAT_M, MAT_K, gl_MatrixUseA> values;
            uint at = V_BASE + i * MAT_M * V_STRIDE + k * MAT_K / 8;
            coopMatLoad(values, quads, at, V_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint j = 0; j < ROWS_N; j++)
                sums[i * ROWS_N + j] = coopMatMulAdd(values, weights[k * ROWS_N + j], sums[i * ROWS_N + j]);
        }
    }
    stage_barrier();
}

// Stores the sums of MAT_M elements of the subgroup's rows, each times its row's number.
void put_sums(QueryTile tile, uint stage, uint wave_row, uint i) {
    [[unroll]] for (uint j = 0; j < ROWS_N; j++)
        coopMatStore(sums[i * ROWS_N + j], quads, stage + j * MAT_N * OUT_STRIDE, OUT_STRIDE,
            gl_CooperativeMatrixLayoutColumnMajor);
    stage_barrier();
    for (uint e = gl_SubgroupInvocationID; e < WAVE_ROWS * MAT_M / 4; e += SUBGROUP) {
        uint r = e / (MAT_M / 4), d4 = i * MAT_M / 4 + e % (MAT_M / 4);
        if (wave_row + r >= tile.n_rows || d4 >= HEAD_DIM4) continue;
        vec4 sum = uintBitsToFloat(quads[stage + r * OUT_STRIDE + e % (MAT_M / 4)]);
        Result result = result_of(row_of(tile, wave_row + r));
        result.out4.v[result.first + d4] = sum * number_of(r);
    }
    stage_barrier();
}

void main() {
    QueryTile tile = query_tile();
    uint my_row = gl_SubgroupInvocationID % WAVE_ROWS, my_part = gl_SubgroupInvocationID / WAVE_ROWS;
    uint wave_row = gl_SubgroupID * WAVE_ROWS, stage = STAGE_BASE + gl_SubgroupID * STAGE_QUADS;
    float power = put_queries(tile, wave_row, my_row);
    [[unroll]] for (uint k = 0; k < HEAD_K; k++)
        [[unroll]] for (uint j = 0; j < ROWS_N; j++)
            coopMatLoad(queries[k * ROWS_N + j], quads, (wave_row + j * MAT_N) * K_STRIDE + k * MAT_K / 8, K_STRIDE,
                gl_CooperativeMatrixLayoutColumnMajor);
    barrier(); // before the padding and the keys take their place
    [[unroll]] for (uint i = 0; i < HEAD_M * ROWS_N; i++)
        sums[i] = coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator>(0.0);
    pad_heads();

    uvec2 seen = seen_by(tile, wave_row + my_row);
    uint n_seen = seen.y - seen.x;
    float to_log2 = power * LOG2_E;
    float running_max = NOTHING, running_sum = 0.0;
    load_block(tile, tile.start);
    for (uint first = tile.start; first < tile.end; first += BLOCK) {
        barrier(); // the block before has been multiplied
        put_block(tile, first);
        barrier();
        load_block(tile, first + BLOCK);
        score(stage);

        vec4 scores[MY_QUADS];
        float maximum = running_max;
        uint pos0 = first + my_part * MY_QUADS * 4, from = stage + my_row * S_STRIDE;
        [[unroll]] for (uint i = 0; i < MY_QUADS; i++) {
            scores[i] = uintBitsToFloat(quads[from + my_part * MY_QUADS + i]) * to_log2;
            [[unroll]] for (uint e = 0; e < 4; e++) {
                if (pos0 - seen.x + 4 * i + e >= n_seen) scores[i][e] = LOWEST;
                maximum = max(maximum, scores[i][e]);
            }
        }
        if (ROW_LANES > 1) {
            put_number(maximum);
            [[unroll]] for (uint p = 0; p < ROW_LANES; p++) maximum = max(maximum, number_of(p * WAVE_ROWS + my_row));
            stage_barrier();
        }
        float keep = exp2(running_max - maximum), lifted = maximum - LIFT_LOG2;
        running_max = maximum;
        running_sum *= keep;
        [[unroll]] for (uint i = 0; i < MY_QUADS / 2; i++) {
            uvec4 weights;
            [[unroll]] for (uint h = 0; h < 2; h++) {
                vec4 weight;
                [[unroll]] for (uint e = 0; e < 4; e++) {
                    weight[e] = exp2(scores[2 * i + h][e] - lifted);
                    running_sum += weight[e];
                }
                uvec2 two = halves(weight);
                weights[2 * h] = two.x;
                weights[2 * h + 1] = two.y;
            }
            quads[from + my_part * MY_QUADS / 2 + i] = weights;
        }
        // Of all invocations of a row the same; that of the first is read.
        put_number(keep);
        add_values(stage);
    }

    float sum = running_sum;
    if (ROW_LANES > 1) {
        put_number(running_sum);
        sum = 0.0;
        [[unroll]] for (uint p = 0; p < ROW_LANES; p++) sum += number_of(p * WAVE_ROWS + my_row);
        stage_barrier();
    }
    bool is_row = wave_row + my_row < tile.n_rows;
    Row row = row_of(tile, wave_row + my_row);
    float natural_max = running_max * LN_2;
    float factor = push.n_splits > 1 ? 1.0 : final_factor(row.head, natural_max, sum / LIFT);
    if (push.n_splits > 1 && is_row && my_part == 0) put_maximum(row, natural_max, sum / LIFT);
    put_number(factor / LIFT);
    [[unroll]] for (uint i = 0; i < HEAD_M; i++) put_sums(tile, stage, wave_row, i);
}
