// What all kernels for attention have in common: push constants, and where a position lies in the cache.
// Include after buffers.glsl and kv_cache.glsl.
layout(push_constant) uniform Push {
    ReadF32x4 q;        // [n_tokens, q_stride4 * 4]
    ReadU32x2 k_cache;  // two words hold four f16; or as K_TYPE says
    ReadU32x2 v_cache;
    ReadU32 tables;     // [n_seq, pages_per_seq]
    ReadU32 seqs;       // [n_tokens]
    ReadU32 positions;  // [n_tokens]
    ReadF32 sinks;      // [n_head], read if has_sinks
    ReadU32x2 tiles;    // [n_tiles]: first row, rows; of the attention of prompts
    WriteF32x4 dst;     // [n_tokens, q_stride4 * 4]
    WriteF32x4 partials; // [n_tokens, n_head, n_splits, 1 + HEAD_DIM4]: maximum and sum, then the values; if n_splits > 1
    uint n_head_kv;
    uint group;         // query heads per key/value head
    uint pages_per_seq;
    uint window;        // 0xFFFFFFFF: no limit
    uint has_sinks;
    uint q_stride4;
    float scale;        // 1 / sqrt(head_dim)
    uint n_splits;
} push;

// Less than any score of finite activations, and still finite: exp(LOWEST - x) is 0, not NaN.
const float LOWEST = -3.0e38;

// Which part of the cache (a page of one head) holds a position of key/value head `head_kv`; `table` is where the table
// of the sequence begins.
uint part_of(uint table, uint head_kv, uint pos) {
    return push.tables.v[table + pos / PAGE] * push.n_head_kv + head_kv;
}
