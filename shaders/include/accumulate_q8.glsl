// The inner loop of matvec.glsl in integers: x is quantised (quantize.glsl), weights are unpacked to bytes only, and four
// products are one instruction. What the integers give is exact; a unit's half becomes f32 once, times the scales of
// both sides.

// Sum of q of x over half `part` of a block, from its two 16-bit sums.
int half_sum(uint sums, uint part) {
    return int(sums << 16 - 16 * part) >> 16;
}

// Adds the products of this invocation's units of the tile to `sums`.
void accumulate(uint row0, Tile tile, float factor) {
    uint row_units[MY_ROWS], x_rows[N_COLS];
    [[unroll]] for (uint r = 0; r < MY_ROWS; r++)
        row_units[r] = (tile.expert * push.n_rows + min(my_row(row0, r), push.n_rows - 1)) * push.n_units;
    [[unroll]] for (uint c = 0; c < N_COLS; c++)
        x_rows[c] = x_row(pair_of(tile, c)) * (push.x_stride4 + push.x_stride4 / 4);
    ReadU32x2 x_scales = ReadU32x2(push.x);
    for (uint u = WHOLE_ROWS ? 0 : gl_LocalInvocationID.x; u < push.n_units; u += WHOLE_ROWS ? 1 : WG_SIZE) {
        uint w[N_MATRICES * MY_ROWS][8];
        vec4 s[N_MATRICES * MY_ROWS];
        [[unroll]] for (uint r = 0; r < N_MATRICES * MY_ROWS; r++)
            unpack_matrix(r / MY_ROWS, row_units[r % MY_ROWS] + u, w[r], s[r]);
        // The pieces of x that the halves of the unit meet.
        uint piece = unit_start4(u) / 4, part = piece & 1;
        [[unroll]] for (uint c = 0; c < N_COLS; c++) {
            if (!has_column(tile, c)) continue;
            uvec4 x[2];
            x[0] = push.x.v[x_rows[c] + piece];
            x[1] = push.x.v[x_rows[c] + piece + 1 + GAP4 / 4];
            uint scale_at = 2 * (x_rows[c] + push.x_stride4) + piece / 2;
            uvec2 first = x_scales.v[scale_at];
            float d0 = uintBitsToFloat(first.x);
            if (GROUPED == 2) d0 *= factor;
#if UNIT_SCALES == 2
            uvec2 second = x_scales.v[scale_at + (1 + GAP4 / 4) / 2];
            float d1 = uintBitsToFloat(second.x);
            if (GROUPED == 2) d1 *= factor;
            int sum0 = half_sum(first.y, part), sum1 = half_sum(second.y, part);
#else
            int sum0 = half_sum(first.y, 0) + half_sum(first.y, 1);
#endif
            [[unroll]] for (uint r = 0; r < N_MATRICES * MY_ROWS; r++) {
                int dot0 = -WEIGHT_OFFSET * sum0;
                [[unroll]] for (uint j = 0; j < 4; j++) dot0 += dotPacked4x8EXT(int(w[r][j]), int(x[0][j]));
#if UNIT_SCALES == 2
                int dot1 = -WEIGHT_OFFSET * sum1;
                [[unroll]] for (uint j = 0; j < 4; j++) dot1 += dotPacked4x8EXT(int(w[r][4 + j]), int(x[1][j]));
#ifdef WEIGHT_HAS_MIN
                sums[r][c] = fma(d0, fma(s[r].x, float(dot0), s[r].y * float(sum0)), sums[r][c]);
                sums[r][c] = fma(d1, fma(s[r].z, float(dot1), s[r].w * float(sum1)), sums[r][c]);
#else
                sums[r][c] = fma(d0, s[r].x * float(dot0), sums[r][c]);
                sums[r][c] = fma(d1, s[r].z * float(dot1), sums[r][c]);
#endif
#else
                [[unroll]] for (uint j = 0; j < 4; j++) dot0 += dotPacked4x8EXT(int(w[r][4 + j]), int(x[1][j]));
#ifdef WEIGHT_HAS_MIN
                sums[r][c] = fma(d0, fma(s[r].x, float(dot0), s[r].y * float(sum0)), sums[r][c]);
#else
                sums[r][c] = fma(d0, s[r].x * float(dot0), sums[r][c]);
#endif
#endif
            }
        }
    }
}
