// What both kernels for the attention of prompts have in common: a workgroup's tile of query rows, what each row sees, and
// where it goes.
// A query row is a token with one of the `group` query heads that share a key/value head: row = token * group + head. A
// tile is up to ROWS neighbouring rows of one sequence, whose positions ascend; a prompt's tiles begin and end anywhere
// in a token, so that only the last one of a sequence has room left, whatever the group.
// Include after attention.glsl.
struct QueryTile {
    uint head_kv;
    uint first_row;
    uint n_rows;
    uint table; // of its sequence
    uint start; // positions that its rows see, and that are of this split; the first one of a page
    uint end;
};

struct Row {
    uint token;
    uint head;
};

Row row_of(QueryTile tile, uint r) {
    uint row = tile.first_row + min(r, tile.n_rows - 1);
    return Row(row / push.group, tile.head_kv * push.group + row % push.group);
}

// Where a row's head lies in q and dst, in vec4s.
uint place_of(Row row) {
    return row.token * push.q_stride4 + row.head * HEAD_DIM4;
}

// First and last + 1 of the positions of this split that a row sees; a row beyond the tile's sees none.
uvec2 seen_by(QueryTile tile, uint r) {
    if (r >= tile.n_rows) return uvec2(0);
    uint end = push.positions.v[row_of(tile, r).token] + 1, last = min(end, tile.end);
    return uvec2(min(end - min(end, push.window), last), last);
}

// This workgroup's tile: x is the key/value head, y the tile (the last first, since it sees most), z the split.
QueryTile query_tile() {
    uvec2 rows = push.tiles.v[gl_NumWorkGroups.y - 1 - gl_WorkGroupID.y];
    uint first_token = rows.x / push.group, last_token = (rows.x + rows.y - 1) / push.group;
    uint table = push.seqs.v[first_token] * push.pages_per_seq;
    uint least = push.positions.v[first_token] + 1, end = push.positions.v[last_token] + 1;
    uint start = (least - min(least, push.window)) / PAGE * PAGE;
    if (push.n_splits > 1) {
        // Whole blocks each; the last may be short, and some may be empty.
        uint per_split = ((end - start + push.n_splits - 1) / push.n_splits + BLOCK - 1) / BLOCK * BLOCK;
        start += min(gl_WorkGroupID.z * per_split, end - start);
        end = min(start + per_split, end);
    }
    return QueryTile(gl_WorkGroupID.x, rows.x, rows.y, table, start, end);
}

uint part_of(QueryTile tile, uint pos) {
    return part_of(tile.table, tile.head_kv, pos);
}

// Where a row's partial results begin, if there are several splits.
uint partial_of(Row row) {
    uint n_head = push.n_head_kv * push.group;
    return ((row.token * n_head + row.head) * push.n_splits + gl_WorkGroupID.z) * (1 + HEAD_DIM4);
}

// Where a row's values go: to the result, or to its part of it.
struct Result {
    WriteF32x4 out4;
    uint first;
};

Result result_of(Row row) {
    if (push.n_splits > 1) return Result(push.partials, partial_of(row) + 1);
    return Result(push.dst, place_of(row));
}

// Leaves a row's maximum and sum for the merge of several splits.
void put_maximum(Row row, float maximum, float sum) {
    push.partials.v[partial_of(row)] = vec4(maximum, sum, 0.0, 0.0);
}

// What the weighted values of a row are multiplied by at the end: one over the sum of the weights, and of the sink.
float final_factor(uint head, float maximum, float sum) {
    if (push.has_sinks == 0) return 1.0 / sum;
    float sink = push.sinks.v[head], top = max(sink, maximum);
    float factor = exp(maximum - top);
    return factor / (sum * factor + exp(sink - top));
}
