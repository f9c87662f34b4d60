// What the products of many columns have in common, with matrix units (coopmat.glsl) and without (matmul.glsl): a
// workgroup's tile, and which part of the weights and activations of a step of TILE_K an invocation takes.
// The order of k is that of the units (see weights.glsl), for both sides. Rows and pairs beyond the end are computed from
// the last one and not stored.
// Workgroup x takes BLOCK_ROWS rows of each of the N_MATRICES matrices; y takes a tile of up to BLOCK_TOKENS pairs:
// neighbouring tokens, or with groups pairs that chose one expert.

const uint TILE_UNITS = TILE_K / (4 * UNIT4);
const uint W_ROWS = N_MATRICES * BLOCK_ROWS;
// Units of the weights of a step.
const uint W_UNITS = W_ROWS * TILE_UNITS;

shared uint pairs[BLOCK_TOKENS];

// Which unit of a step's weights the `i`th is: neighbours are of neighbouring rows.
struct WeightPart {
    uint matrix;
    uint row;  // of the block
    uint unit; // of the step
};

WeightPart weight_part(uint i) {
    return WeightPart(i / (BLOCK_ROWS * TILE_UNITS), i % BLOCK_ROWS, i / BLOCK_ROWS % TILE_UNITS);
}

// The first unit of a row of the block in each matrix of the tile's expert.
uint first_unit(Tile tile, uint row0, uint row) {
    return (tile.expert * push.n_rows + min(row0 + row, push.n_rows - 1)) * push.n_units;
}

// Unit of a row to which the step's `v`th vec4 of activations belongs, where its units begin at `unit0`.
uint unit_of_vec4(uint unit0, uint v) {
    return unit0 + v / UNIT4;
}

// Where that vec4 lies in a row of x.
uint place_of_vec4(uint unit0, uint v) {
    return unit_vec4(unit_start4(unit_of_vec4(unit0, v)), v % UNIT4);
}

// This workgroup's tile, whose pairs are then in shared memory; without any (the grid is an upper bound) n is 0.
Tile begin_tile() {
    decode_setup();
    uint token0 = gl_WorkGroupID.y * BLOCK_TOKENS;
    Tile tile = Tile(0, token0, min(BLOCK_TOKENS, push.n_tokens - token0));
    if (GROUPED != 0) tile = expert_tile(gl_WorkGroupID.y);
    if (tile.n == 0) return tile;
    for (uint i = gl_LocalInvocationID.x; i < BLOCK_TOKENS; i += WG_SIZE) pairs[i] = pair_of(tile, i);
    barrier();
    return tile;
}
