// Products of N_MATRICES equally shaped matrices with many columns: the body of the tiled kernels. One workgroup
// computes BLOCK_ROWS rows of each matrix for a tile of up to BLOCK_TOKENS pairs (see block.glsl): 32 weights of each row
// are decoded once into shared memory beside the matching 32 activations of each pair; each invocation keeps THREAD_ROWS ×
// THREAD_TOKENS sums per matrix in registers.
// The kernel gives `decode_matrix` (a unit of matrix m), `x_row` (the row of x of a pair) and `store`.

const uint TILE_K = 32;
#include "block.glsl"

// One more than the tile: the writes of a vec4's components fall into different banks.
const uint W_STRIDE = BLOCK_ROWS + 1, X_STRIDE = BLOCK_TOKENS + 1;
const uint ROW_THREADS = BLOCK_ROWS / THREAD_ROWS, TOKEN_THREADS = BLOCK_TOKENS / THREAD_TOKENS;

shared float w_tile[N_MATRICES * TILE_K * W_STRIDE];
shared float x_tile[TILE_K * X_STRIDE];

void load_weights(Tile tile, uint row0, uint unit0) {
    for (uint i = gl_LocalInvocationID.x; i < W_UNITS; i += WG_SIZE) {
        WeightPart part = weight_part(i);
        vec4 w[UNIT4];
        if (unit0 + part.unit < push.n_units) {
            decode_matrix(part.matrix, first_unit(tile, row0, part.row) + unit0 + part.unit, w);
        } else {
            [[unroll]] for (uint j = 0; j < UNIT4; j++) w[j] = vec4(0.0);
        }
        uint at = (part.matrix * TILE_K + part.unit * UNIT4 * 4) * W_STRIDE + part.row;
        [[unroll]] for (uint j = 0; j < UNIT4; j++)
            [[unroll]] for (uint e = 0; e < 4; e++) w_tile[at + (j * 4 + e) * W_STRIDE] = w[j][e];
    }
}

void load_activations(uint unit0) {
    for (uint i = gl_LocalInvocationID.x; i < BLOCK_TOKENS * TILE_K / 4; i += WG_SIZE) {
        uint v = i % (TILE_K / 4), t = i / (TILE_K / 4);
        vec4 x = vec4(0.0);
        if (unit_of_vec4(unit0, v) < push.n_units) x = push.x.v[x_row(pairs[t]) * push.x_stride4 + place_of_vec4(unit0, v)];
        [[unroll]] for (uint e = 0; e < 4; e++) x_tile[(v * 4 + e) * X_STRIDE + t] = x[e];
    }
}

void main() {
    Tile tile = begin_tile();
    if (tile.n == 0) return; // whole workgroups
    uint row0 = gl_WorkGroupID.x * BLOCK_ROWS;
    uint row_thread = gl_LocalInvocationID.x % ROW_THREADS, token_thread = gl_LocalInvocationID.x / ROW_THREADS;

    float sums[N_MATRICES * THREAD_ROWS][THREAD_TOKENS];
    [[unroll]] for (uint i = 0; i < N_MATRICES * THREAD_ROWS; i++)
        [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) sums[i][j] = 0.0;

    for (uint unit0 = 0; unit0 < push.n_units; unit0 += TILE_UNITS) {
        load_weights(tile, row0, unit0);
        load_activations(unit0);
        barrier();
        for (uint k = 0; k < TILE_K; k++) {
            float w[N_MATRICES * THREAD_ROWS], x[THREAD_TOKENS];
            [[unroll]] for (uint i = 0; i < N_MATRICES * THREAD_ROWS; i++) {
                uint m = i / THREAD_ROWS, r = i % THREAD_ROWS;
                w[i] = w_tile[(m * TILE_K + k) * W_STRIDE + row_thread + r * ROW_THREADS];
            }
            [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) x[j] = x_tile[k * X_STRIDE + token_thread + j * TOKEN_THREADS];
            [[unroll]] for (uint i = 0; i < N_MATRICES * THREAD_ROWS; i++)
                [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) sums[i][j] = fma(w[i], x[j], sums[i][j]);
        }
        barrier();
    }

    [[unroll]] for (uint i = 0; i < THREAD_ROWS; i++) {
        uint row = row0 + row_thread + i * ROW_THREADS;
        if (row >= push.n_rows) continue;
        [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) {
            uint t = token_thread + j * TOKEN_THREADS;
            if (t >= tile.n) continue;
            float totals[N_MATRICES];
            [[unroll]] for (uint m = 0; m < N_MATRICES; m++) totals[m] = sums[m * THREAD_ROWS + i][j];
            store(row, tile.expert, pairs[t], totals);
        }
    }
}
