#version 460
#extension GL_GOOGLE_include_directive : require
// Between the projections of a token and its attention, for each of its heads: RMS norm of the head (arXiv 1910.07467)
// if the model has weights for it, rotation of its pairs (arXiv 2104.09864), and for keys and values the store in the
// cache, rounded to its types. Queries stay where they are; values are only stored.
// NEOX = 1: pairs (i, i + n_pairs); NEOX = 0: pairs (2i, 2i + 1). Elements past 2 · n_pairs are not rotated. cos and sin
// come from the host (see f32_rope.comp). Cache layout: see kv_cache.glsl.
// Saves five dispatches and their barriers: two norms, two rotations and the store.
// One workgroup per (head of q, then k, then v; token). Bound by latency: the head is read and written once.
// CPU twin: f64; 1e-5 of the largest element for queries; for keys and values as in f32_kv_store.comp, keys in f16 1 ulp.
// Specialization constants: 0 WG_SIZE (a multiple of 8), 1 HEAD_DIM, 2 PAGE, 3 NEOX, 4 K_TYPE, 5 V_TYPE. Subgroup size
// ≥ 4, subgroup arithmetic, 16-bit storage; shared memory 4 · (HEAD_DIM + WG_SIZE + WG_SIZE / 4) bytes.
#include "buffers.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint PAGE = 32;
layout(constant_id = 3) const uint NEOX = 1;
layout(constant_id = 4) const uint K_TYPE = 0;
layout(constant_id = 5) const uint V_TYPE = 0;
const uint HAS_Q_NORM = 1, HAS_K_NORM = 2;
const uint HEAD_DIM4 = HEAD_DIM / 4;

#include "reduce.glsl"
#include "kv_cache.glsl"

layout(push_constant) uniform Push {
    WriteF32 q;         // [n_tokens, q_stride], in place
    ReadF32 k;          // [n_tokens, kv_stride]
    ReadF32 v;          // [n_tokens, kv_stride]
    WriteF16 k_cache;   // read as what K_TYPE says
    WriteF16 v_cache;
    ReadU32 tables;     // [n_seq, pages_per_seq]
    ReadU32 seqs;       // [n_tokens]
    ReadU32 positions;  // [n_tokens]
    ReadF32 cos_sin;    // [n_tokens, 2, n_pairs]: cosines, then sines
    ReadF32 q_norm;     // [HEAD_DIM], read if HAS_Q_NORM
    ReadF32 k_norm;     // [HEAD_DIM], read if HAS_K_NORM
    uint n_head;
    uint n_head_kv;
    uint q_stride;
    uint kv_stride;
    uint pages_per_seq;
    uint n_pairs;
    float eps;
    uint flags;
} push;

shared float head[HEAD_DIM];
shared float largest[WG_SIZE];

// Element `d` of the head after the rotation.
float rotated(uint t, uint d) {
    if (d >= 2 * push.n_pairs) return head[d];
    bool is_second = NEOX != 0 ? d >= push.n_pairs : (d & 1) != 0;
    uint pair = NEOX != 0 ? (is_second ? d - push.n_pairs : d) : d / 2;
    uint other = NEOX != 0 ? (is_second ? pair : pair + push.n_pairs) : d ^ 1;
    float c = push.cos_sin.v[t * 2 * push.n_pairs + pair];
    float s = push.cos_sin.v[(t * 2 + 1) * push.n_pairs + pair];
    return head[d] * c + head[other] * (is_second ? s : -s);
}

// Element `d` of the key, from `head`, or of the value at `from`.
float stored(uint t, uint from, uint d, bool is_key) {
    return is_key ? rotated(t, d) : push.v.v[from + d];
}

// Stores key/value head `h` of token `t`. All invocations must call.
void store(WriteF16 cache, uint type, uint t, uint h, uint from, bool is_key) {
    uint tid = gl_LocalInvocationID.x, pos = push.positions.v[t], row = pos % PAGE;
    uint page = push.tables.v[push.seqs.v[t] * push.pages_per_seq + pos / PAGE];
    uint part = page * push.n_head_kv + h;
    if (type == KV_F16) {
        uint to = (part * PAGE + row) * HEAD_DIM;
        for (uint d = tid; d < HEAD_DIM; d += WG_SIZE) cache.v[to + d] = float16_t(stored(t, from, d, is_key));
        return;
    }
    // An invocation takes four elements, eight neighbours a block.
    uint at = part * Q8_WORDS;
    for (uint first = 0; first < HEAD_DIM4; first += WG_SIZE) {
        uint d4 = first + tid;
        vec4 values = vec4(0.0);
        if (d4 < HEAD_DIM4)
            for (uint i = 0; i < 4; i++) values[i] = stored(t, from, 4 * d4 + i, is_key);
        barrier(); // the maxima of the round before have been read
        largest[tid] = largest_of(values);
        barrier();
        if (d4 >= HEAD_DIM4) continue;
        float top = 0.0;
        for (uint i = 0; i < 8; i++) top = max(top, largest[tid / 8 * 8 + i]);
        float scale = top / 127.0;
        WriteU32(cache).v[at + row * HEAD_DIM4 + d4] = q8_codes(values, scale > 0.0 ? 1.0 / scale : 0.0);
        if (d4 % 8 == 0) cache.v[q8_scale_at(at, row) + d4 / 8] = float16_t(scale);
    }
}

void main() {
    uint h = gl_WorkGroupID.x, t = gl_WorkGroupID.y, tid = gl_LocalInvocationID.x;
    if (h >= push.n_head + push.n_head_kv) {
        h -= push.n_head + push.n_head_kv;
        store(push.v_cache, V_TYPE, t, h, t * push.kv_stride + h * HEAD_DIM, false);
        return;
    }
    bool is_query = h < push.n_head;
    if (!is_query) h -= push.n_head;
    uint from = is_query ? t * push.q_stride + h * HEAD_DIM : t * push.kv_stride + h * HEAD_DIM;
    float sum = 0.0;
    for (uint d = tid; d < HEAD_DIM; d += WG_SIZE) {
        float x = is_query ? push.q.v[from + d] : push.k.v[from + d];
        head[d] = x;
        sum += x * x;
    }
    if ((push.flags & (is_query ? HAS_Q_NORM : HAS_K_NORM)) != 0) {
        float scale = inversesqrt(workgroup_add(sum) / float(HEAD_DIM) + push.eps);
        for (uint d = tid; d < HEAD_DIM; d += WG_SIZE)
            head[d] *= scale * (is_query ? push.q_norm.v[d] : push.k_norm.v[d]);
    }
    barrier();
    if (is_query) {
        for (uint d = tid; d < HEAD_DIM; d += WG_SIZE) push.q.v[from + d] = rotated(t, d);
    } else {
        store(push.k_cache, K_TYPE, t, h, from, true);
    }
}
