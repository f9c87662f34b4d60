// Products of N_MATRICES equally shaped matrices with a few columns: the body of the matrix–vector kernels. One
// workgroup computes N_ROWS rows of each matrix for the N_COLS columns of a tile: each weight is read and decoded once
// for all columns. Its invocations take the units of the rows in turn, so that neighbours read neighbouring 16 bytes.
// With as many rows as invocations or more, each invocation takes whole rows instead: nothing is left to be added up
// across them, and all read the same x at the same time, which a processor's vector instructions do at the cost of one
// (the CPU device; a GPU would read weights of rows far apart).
// The inner loop is accumulate_f32.glsl's, or with X_Q8, for x in bytes, accumulate_q8.glsl's. Workgroup x takes columns x·N_COLS …, or with groups tile x,
// y and z the rows: neighbours in time read the same rows for other columns, which are in the cache then, or different
// experts. With GROUPED = 2 a workgroup goes through all tiles of one token and adds up what they give.
// The kernel gives `decode_matrix` or `unpack_matrix` (a unit of matrix m), `x_row` (the row of x of a pair), `x_factor` (what it is
// multiplied with if GROUPED = 2) and `store`.
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

const bool WHOLE_ROWS = N_ROWS >= WG_SIZE;
// Rows that an invocation has a part in.
const uint MY_ROWS = WHOLE_ROWS ? N_ROWS / WG_SIZE : N_ROWS;
const uint N_SUMS = N_MATRICES * MY_ROWS * N_COLS;

// This invocation's sums.
float sums[N_MATRICES * MY_ROWS][N_COLS];

shared float partials[WG_SIZE / 4 * N_SUMS];

// Whether column `c` is computed. Without groups and with few columns all are, from the last one where there are fewer:
// that costs less than the branch, which keeps loads apart.
bool has_column(Tile tile, uint c) {
    return GROUPED == 0 && N_COLS <= 8 || c < tile.n;
}

// Row `r` of this invocation.
uint my_row(uint row0, uint r) {
    return row0 + (WHOLE_ROWS ? r * WG_SIZE + gl_LocalInvocationID.x : r);
}

#ifdef X_Q8
#include "accumulate_q8.glsl"
#else
#include "accumulate_f32.glsl"
#endif

void main() {
    decode_setup();
    uint row0 = (gl_WorkGroupID.z * gl_NumWorkGroups.y + gl_WorkGroupID.y) * N_ROWS, col0 = gl_WorkGroupID.x * N_COLS;
    Tile tile = Tile(0, col0, min(N_COLS, push.n_tokens - col0));
    if (GROUPED == 1) tile = expert_tile(gl_WorkGroupID.x);
    if (row0 >= push.n_rows || tile.n == 0) return; // whole workgroups: the grid is an upper bound

    [[unroll]] for (uint r = 0; r < N_MATRICES * MY_ROWS; r++)
        [[unroll]] for (uint c = 0; c < N_COLS; c++) sums[r][c] = 0.0;
    if (GROUPED == 2) {
        for (uint i = 0; i < push.tiles.v[0].x; i++) {
            tile = expert_tile(i);
            accumulate(row0, tile, x_factor(pair_of(tile, 0)));
        }
    } else {
        accumulate(row0, tile, 1.0);
    }

    if (WHOLE_ROWS) {
        [[unroll]] for (uint r = 0; r < MY_ROWS; r++) {
            if (my_row(row0, r) >= push.n_rows) continue;
            [[unroll]] for (uint c = 0; c < N_COLS; c++) {
                if (c >= tile.n) continue;
                float totals[N_MATRICES];
                [[unroll]] for (uint m = 0; m < N_MATRICES; m++) totals[m] = sums[m * MY_ROWS + r][c];
                store(my_row(row0, r), tile.expert, pair_of(tile, c), totals);
            }
        }
        return;
    }
    [[unroll]] for (uint r = 0; r < N_MATRICES * MY_ROWS; r++)
        [[unroll]] for (uint c = 0; c < N_COLS; c++) {
            if (!has_column(tile, c)) continue;
            float sum = subgroupAdd(sums[r][c]);
            if (subgroupElect()) partials[gl_SubgroupID * N_SUMS + r * N_COLS + c] = sum;
        }
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < N_ROWS * N_COLS; i += WG_SIZE) {
        uint row = row0 + i / N_COLS, c = i % N_COLS;
        if (row >= push.n_rows || c >= tile.n) continue;
        float totals[N_MATRICES];
        [[unroll]] for (uint m = 0; m < N_MATRICES; m++) {
            totals[m] = 0.0;
            for (uint s = 0; s < gl_NumSubgroups; s++) totals[m] += partials[s * N_SUMS + m * MY_ROWS * N_COLS + i];
        }
        store(row, tile.expert, pair_of(tile, c), totals);
    }
}
