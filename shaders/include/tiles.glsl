// Which activation rows a workgroup of a product works on: neighbours of a batch (GROUPED = 0), those that chose one
// expert (GROUPED = 1), or, of a single token, all of its experts one after the other (GROUPED = 2). f32_moe_route.comp sorts the batch's pairs (token, slot) by expert and cuts each expert's list
// into tiles; a workgroup takes one, so an expert's weights are read once per tile. A pair is numbered
// token * n_used + slot; without groups, a pair is a token.
// Include after the push constants, of which `tiles` and `entries` are used.
struct Tile {
    uint expert;
    uint first; // place of the tile's first pair in `entries`, or that pair
    uint n;     // pairs in the tile; 0: there is no such tile
};

// Tile `i`; the grid holds as many as there can be.
Tile expert_tile(uint i) {
    if (i >= push.tiles.v[0].x) return Tile(0, 0, 0);
    uvec4 t = push.tiles.v[1 + i];
    return Tile(t.x, t.y, t.z);
}

// Pair `i` of the tile, or its last.
uint pair_of(Tile tile, uint i) {
    uint at = tile.first + min(i, tile.n - 1);
    return GROUPED != 0 ? push.entries.v[at] : at;
}
