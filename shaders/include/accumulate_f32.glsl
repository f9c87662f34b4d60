// The inner loop of matvec.glsl in f32: decoded weights stay in registers while x streams past.

// sum + a · b as four fused multiply-adds.
float add_dot(float sum, vec4 a, vec4 b) {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// Adds the products of this invocation's units of the tile to `sums`.
void accumulate(uint row0, Tile tile, float factor) {
    uint row_units[MY_ROWS], x_rows[N_COLS];
    [[unroll]] for (uint r = 0; r < MY_ROWS; r++)
        row_units[r] = (tile.expert * push.n_rows + min(my_row(row0, r), push.n_rows - 1)) * push.n_units;
    [[unroll]] for (uint c = 0; c < N_COLS; c++) x_rows[c] = x_row(pair_of(tile, c)) * push.x_stride4;
    for (uint u = WHOLE_ROWS ? 0 : gl_LocalInvocationID.x; u < push.n_units; u += WHOLE_ROWS ? 1 : WG_SIZE) {
        vec4 w[N_MATRICES * MY_ROWS][UNIT4];
        [[unroll]] for (uint r = 0; r < N_MATRICES * MY_ROWS; r++)
            decode_matrix(r / MY_ROWS, row_units[r % MY_ROWS] + u, w[r]);
        uint start4 = unit_start4(u);
        [[unroll]] for (uint c = 0; c < N_COLS; c++) {
            if (!has_column(tile, c)) continue;
            // All loads of a column first: they are in flight together.
            vec4 x[UNIT4];
            [[unroll]] for (uint j = 0; j < UNIT4; j++) x[j] = push.x.v[unit_vec4(x_rows[c] + start4, j)];
            if (GROUPED == 2) [[unroll]] for (uint j = 0; j < UNIT4; j++) x[j] *= factor;
            [[unroll]] for (uint j = 0; j < UNIT4; j++)
                [[unroll]] for (uint r = 0; r < N_MATRICES * MY_ROWS; r++) sums[r][c] = add_dot(sums[r][c], w[r][j], x[j]);
        }
    }
}
