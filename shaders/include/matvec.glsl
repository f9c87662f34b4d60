// Products of N_MATRICES equally shaped matrices with a few columns: the body of the matrix–vector kernels. One
// workgroup computes N_ROWS rows of each matrix for the N_COLS columns of a tile: each weight is read and decoded once
// for all columns. Its invocations take the units of the rows in turn, so that neighbours read neighbouring 16 bytes;
// decoded weights stay in registers while x streams past. Without groups, workgroup z takes columns z·N_COLS …; with
// groups, workgroup x takes tile x, so that neighbours read different experts, and y the rows. With GROUPED = 2 a
// workgroup goes through all tiles of one token and adds up what they give.
// The kernel gives `decode_matrix` (a unit of matrix m), `x_row` (the row of x of a pair), `x_factor` (what it is
// multiplied with if GROUPED = 2) and `store`.
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

const uint N_SUMS = N_MATRICES * N_ROWS * N_COLS;

// This invocation's sums.
float sums[N_MATRICES * N_ROWS][N_COLS];

shared float partials[WG_SIZE / 4 * N_SUMS];

// sum + a · b as four fused multiply-adds.
float add_dot(float sum, vec4 a, vec4 b) {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Whether column `c` is computed: without groups all are, from the last one where there are fewer.
bool has_column(Tile tile, uint c) {
    return GROUPED == 0 || c < tile.n;
}

// Adds the products of this invocation's units of the tile to `sums`.
void accumulate(uint row0, Tile tile, float factor) {
    uint row_units[N_ROWS], x_rows[N_COLS];
    [[unroll]] for (uint r = 0; r < N_ROWS; r++)
        row_units[r] = (tile.expert * push.n_rows + min(row0 + r, push.n_rows - 1)) * push.n_units;
    [[unroll]] for (uint c = 0; c < N_COLS; c++) x_rows[c] = x_row(pair_of(tile, c)) * push.x_stride4;
    for (uint u = gl_LocalInvocationID.x; u < push.n_units; u += WG_SIZE) {
        vec4 w[N_MATRICES * N_ROWS][UNIT4];
        [[unroll]] for (uint r = 0; r < N_MATRICES * N_ROWS; r++)
            decode_matrix(r / N_ROWS, row_units[r % N_ROWS] + u, w[r]);
        uint start4 = unit_start4(u);
        [[unroll]] for (uint c = 0; c < N_COLS; c++) {
            if (!has_column(tile, c)) continue;
            // All loads of a column first: they are in flight together.
            vec4 x[UNIT4];
            [[unroll]] for (uint j = 0; j < UNIT4; j++) x[j] = push.x.v[unit_vec4(x_rows[c] + start4, j)];
            if (GROUPED == 2) [[unroll]] for (uint j = 0; j < UNIT4; j++) x[j] *= factor;
            [[unroll]] for (uint j = 0; j < UNIT4; j++)
                [[unroll]] for (uint r = 0; r < N_MATRICES * N_ROWS; r++) sums[r][c] = add_dot(sums[r][c], w[r][j], x[j]);
        }
    }
}

void main() {
    decode_setup();
    uint row0 = gl_WorkGroupID.y * N_ROWS, col0 = gl_WorkGroupID.z * N_COLS;
    Tile tile = Tile(0, col0, min(N_COLS, push.n_tokens - col0));
    if (GROUPED == 1) {
        tile = expert_tile(gl_WorkGroupID.x);
    } else {
        row0 = (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * N_ROWS;
    }
    if (row0 >= push.n_rows || tile.n == 0) return; // whole workgroups: the grid is an upper bound

    [[unroll]] for (uint r = 0; r < N_MATRICES * N_ROWS; r++)
        [[unroll]] for (uint c = 0; c < N_COLS; c++) sums[r][c] = 0.0;
    if (GROUPED == 2) {
        for (uint i = 0; i < push.tiles.v[0].x; i++) {
            tile = expert_tile(i);
            accumulate(row0, tile, x_factor(pair_of(tile, 0)));
        }
    } else {
        accumulate(row0, tile, 1.0);
    }

    [[unroll]] for (uint r = 0; r < N_MATRICES * N_ROWS; r++)
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
            for (uint s = 0; s < gl_NumSubgroups; s++) totals[m] += partials[s * N_SUMS + m * N_ROWS * N_COLS + i];
        }
        store(row, tile.expert, pair_of(tile, c), totals);
    }
}
