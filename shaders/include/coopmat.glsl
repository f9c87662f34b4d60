// Products of N_MATRICES equally shaped matrices with many columns on the matrix units: the body of those kernels.
// One workgroup computes BLOCK_ROWS rows of each matrix for a tile of up to BLOCK_TOKENS pairs (see block.glsl), in steps
// of TILE_K: it decodes the weights to f16 in shared memory, beside the f16 activations of each pair, and each subgroup multiplies its
// WAVE_ROWS × WAVE_TOKENS part as matrices of MAT_M × MAT_K and MAT_K × MAT_N with f32 sums. With N_BUFFERS = 2 the
// tiles of the next step are made while those of this one are multiplied; with 1 shared memory holds twice the
// workgroups.
// Activations come from f32_half_rows.comp: 16 bytes, of which the first four are what the row was divided by (a power
// of two, exact), then the row. f16 weights are rounded to nearest; those of F32 and BF16 are clamped to ±65504.
// The kernel gives `decode_matrix` (a unit of matrix m), `x_row` (the row of x of a pair) and `store`.
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require

#include "block.glsl"

// Halves are kept eight at a time, as 16 bytes. Another 16 of padding put neighbouring rows into different banks.
const uint ROW_QUADS = TILE_K / 8 + 1;
const uint UNIT_QUADS = UNIT4 / 2;
const uint TILE_PIECES = TILE_K / 8;
const uint X_BASE = W_ROWS * ROW_QUADS;
const uint BUFFER_QUADS = (W_ROWS + BLOCK_TOKENS) * ROW_QUADS;
const uint TILE_QUADS = N_BUFFERS * BUFFER_QUADS;
// What an invocation decodes and copies in a step, rounded up.
const uint MY_UNITS = (W_UNITS + WG_SIZE - 1) / WG_SIZE;
const uint MY_PIECES = (BLOCK_TOKENS * TILE_PIECES + WG_SIZE - 1) / WG_SIZE;

const uint N_WAVES = WG_SIZE / SUBGROUP;
const uint WAVES_DOWN = BLOCK_ROWS / WAVE_ROWS;
const uint FRAGMENTS_DOWN = WAVE_ROWS / MAT_M, FRAGMENTS_ACROSS = WAVE_TOKENS / MAT_N;
// Sums on their way out: MAT_N pairs by WAVE_ROWS rows of each matrix, by subgroup, where the tiles were.
const uint STAGE_STRIDE = WAVE_ROWS / 4 + 1;
const uint STAGE_QUADS = N_MATRICES * MAT_N * STAGE_STRIDE;
const uint ALL_STAGES = N_WAVES * STAGE_QUADS;

shared uvec4 quads[TILE_QUADS > ALL_STAGES ? TILE_QUADS : ALL_STAGES];

// Four numbers as halves, rounded to nearest.
uvec2 halves(vec4 v) {
#if defined(WEIGHT_F32) || defined(WEIGHT_BF16)
    v = clamp(v, -65504.0, 65504.0);
#endif
    return uvec2(packFloat2x16(f16vec2(v.xy)), packFloat2x16(f16vec2(v.zw)));
}

// This invocation's part of the weights of a step.
uvec4 w_quads[MY_UNITS][UNIT_QUADS];
uvec4 x_quads[MY_PIECES];
// Where they begin: units of the weight, 16-byte pieces of x. Found once, since it takes divisions.
uint w_starts[MY_UNITS], x_starts[MY_PIECES];

void locate(Tile tile, uint row0) {
    [[unroll]] for (uint n = 0; n < MY_UNITS; n++)
        w_starts[n] = first_unit(tile, row0, weight_part(gl_LocalInvocationID.x + n * WG_SIZE).row);
    [[unroll]] for (uint n = 0; n < MY_PIECES; n++) {
        uint t = min((gl_LocalInvocationID.x + n * WG_SIZE) / TILE_PIECES, BLOCK_TOKENS - 1);
        x_starts[n] = x_row(pairs[t]) * push.x_stride4 + 1;
    }
}

void load_weights(uint unit0) {
    [[unroll]] for (uint n = 0; n < MY_UNITS; n++) {
        uint i = gl_LocalInvocationID.x + n * WG_SIZE;
        WeightPart part = weight_part(i);
        if (i < W_UNITS && unit0 + part.unit < push.n_units) {
            vec4 w[UNIT4];
            decode_matrix(part.matrix, w_starts[n] + unit0 + part.unit, w);
            [[unroll]] for (uint j = 0; j < UNIT_QUADS; j++)
                w_quads[n][j] = uvec4(halves(w[2 * j]), halves(w[2 * j + 1]));
        } else {
            [[unroll]] for (uint j = 0; j < UNIT_QUADS; j++) w_quads[n][j] = uvec4(0);
        }
    }
}

void load_activations(uint unit0) {
    [[unroll]] for (uint n = 0; n < MY_PIECES; n++) {
        uint i = gl_LocalInvocationID.x + n * WG_SIZE;
        uint v = i % TILE_PIECES * 2, t = i / TILE_PIECES;
        x_quads[n] = uvec4(0);
        if (t < BLOCK_TOKENS && unit_of_vec4(unit0, v) < push.n_units)
            x_quads[n] = push.x.v[x_starts[n] + place_of_vec4(unit0, v) / 2];
    }
}

void put_tiles(uint base) {
    [[unroll]] for (uint n = 0; n < MY_UNITS; n++) {
        uint i = gl_LocalInvocationID.x + n * WG_SIZE;
        WeightPart part = weight_part(i);
        if (i >= W_UNITS) continue;
        uint at = base + (part.matrix * BLOCK_ROWS + part.row) * ROW_QUADS + part.unit * UNIT_QUADS;
        [[unroll]] for (uint j = 0; j < UNIT_QUADS; j++) quads[at + j] = w_quads[n][j];
    }
    [[unroll]] for (uint n = 0; n < MY_PIECES; n++) {
        uint i = gl_LocalInvocationID.x + n * WG_SIZE;
        uint piece = i % TILE_PIECES, t = i / TILE_PIECES;
        if (t < BLOCK_TOKENS) quads[base + X_BASE + t * ROW_QUADS + piece] = x_quads[n];
    }
}

coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator>
    sums[N_MATRICES * FRAGMENTS_DOWN * FRAGMENTS_ACROSS];

void multiply(uint base, uint wave_row, uint wave_token) {
    [[unroll]] for (uint k = 0; k < TILE_K / 8; k += MAT_K / 8) {
        coopmat<float16_t, gl_ScopeSubgroup, MAT_M, MAT_K, gl_MatrixUseA> w[N_MATRICES * FRAGMENTS_DOWN];
        [[unroll]] for (uint i = 0; i < N_MATRICES * FRAGMENTS_DOWN; i++) {
            uint row = i / FRAGMENTS_DOWN * BLOCK_ROWS + wave_row + i % FRAGMENTS_DOWN * MAT_M;
            coopMatLoad(w[i], quads, base + row * ROW_QUADS + k, ROW_QUADS, gl_CooperativeMatrixLayoutRowMajor);
        }
        [[unroll]] for (uint j = 0; j < FRAGMENTS_ACROSS; j++) {
            coopmat<float16_t, gl_ScopeSubgroup, MAT_K, MAT_N, gl_MatrixUseB> x;
            uint at = base + X_BASE + (wave_token + j * MAT_N) * ROW_QUADS + k;
            coopMatLoad(x, quads, at, ROW_QUADS, gl_CooperativeMatrixLayoutColumnMajor);
            [[unroll]] for (uint i = 0; i < N_MATRICES * FRAGMENTS_DOWN; i++) {
                uint s = i * FRAGMENTS_ACROSS + j;
                sums[s] = coopMatMulAdd(w[i], x, sums[s]);
            }
        }
    }
}

// Stores this subgroup's sums of fragments `j` across, of the pairs from `first` of the tile on.
void put_fragments(Tile tile, uint row0, uint first, uint j) {
    uint stage = gl_SubgroupID * STAGE_QUADS;
    [[unroll]] for (uint i = 0; i < N_MATRICES * FRAGMENTS_DOWN; i++) {
        uint at = stage + i / FRAGMENTS_DOWN * MAT_N * STAGE_STRIDE + i % FRAGMENTS_DOWN * MAT_M / 4;
        coopMatStore(sums[i * FRAGMENTS_ACROSS + j], quads, at, STAGE_STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
    }
    subgroupMemoryBarrierShared();
    subgroupBarrier();
    for (uint e = gl_SubgroupInvocationID; e < WAVE_ROWS * MAT_N; e += SUBGROUP) {
        uint row = row0 + e % WAVE_ROWS, t = first + j * MAT_N + e / WAVE_ROWS;
        if (row >= push.n_rows || t >= tile.n) continue;
        uint pair = pairs[t];
        float scale = uintBitsToFloat(push.x.v[x_row(pair) * push.x_stride4].x);
        float totals[N_MATRICES];
        [[unroll]] for (uint m = 0; m < N_MATRICES; m++) {
            uint at = stage + (m * MAT_N + e / WAVE_ROWS) * STAGE_STRIDE + e % WAVE_ROWS / 4;
            totals[m] = uintBitsToFloat(quads[at][e % 4]) * scale;
        }
        store(row, tile.expert, pair, totals);
    }
    subgroupBarrier();
}

// Stores this subgroup's sums. Not a loop: where a driver leaves one, it moves the sums to memory to index them.
void put_sums(Tile tile, uint row0, uint first) {
    put_fragments(tile, row0, first, 0);
    if (FRAGMENTS_ACROSS > 1) put_fragments(tile, row0, first, 1);
    if (FRAGMENTS_ACROSS > 2) put_fragments(tile, row0, first, 2);
    if (FRAGMENTS_ACROSS > 3) put_fragments(tile, row0, first, 3);
    if (FRAGMENTS_ACROSS > 4) put_fragments(tile, row0, first, 4);
    if (FRAGMENTS_ACROSS > 5) put_fragments(tile, row0, first, 5);
    if (FRAGMENTS_ACROSS > 6) put_fragments(tile, row0, first, 6);
    if (FRAGMENTS_ACROSS > 7) put_fragments(tile, row0, first, 7);
}

void main() {
    Tile tile = begin_tile();
    if (tile.n == 0) return; // whole workgroups
    uint row0 = gl_WorkGroupID.x * BLOCK_ROWS;
    uint wave_row = gl_SubgroupID % WAVES_DOWN * WAVE_ROWS, wave_token = gl_SubgroupID / WAVES_DOWN * WAVE_TOKENS;
    locate(tile, row0);
    [[unroll]] for (uint i = 0; i < N_MATRICES * FRAGMENTS_DOWN * FRAGMENTS_ACROSS; i++)
        sums[i] = coopmat<float, gl_ScopeSubgroup, MAT_M, MAT_N, gl_MatrixUseAccumulator>(0.0);

    if (N_BUFFERS == 1) {
        for (uint unit0 = 0; unit0 < push.n_units; unit0 += TILE_UNITS) {
            load_weights(unit0);
            load_activations(unit0);
            barrier();
            put_tiles(0);
            barrier();
            multiply(0, wave_row, wave_token);
        }
    } else {
        load_weights(0);
        load_activations(0);
        put_tiles(0);
        barrier();
        uint turn = 0;
        for (uint unit0 = TILE_UNITS; unit0 < push.n_units; unit0 += TILE_UNITS) {
            load_weights(unit0);
            load_activations(unit0);
            multiply(turn * BUFFER_QUADS, wave_row, wave_token);
            turn ^= 1;
            put_tiles(turn * BUFFER_QUADS);
            barrier();
        }
        multiply(turn * BUFFER_QUADS, wave_row, wave_token);
    }
    barrier();
    put_sums(tile, row0 + wave_row, wave_token);
}
