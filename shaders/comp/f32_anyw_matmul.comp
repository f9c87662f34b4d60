#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, r] = Σ_k weight[r, k] · x[t, k] (+ bias[r]) (+ out[t, r]) for many tokens t (prompts), f32 throughout.
// One workgroup computes a tile of BLOCK_ROWS rows by BLOCK_TOKENS tokens: 32 weights of each row are decoded once
// into shared memory beside the matching 32 activations of each token; each invocation keeps a THREAD_ROWS ×
// THREAD_TOKENS tile of sums in registers. The order of k is that of the units (see weights.glsl), for both sides.
// Bound by flops: 2 · n_rows · n_tokens · k.
// CPU twin: f64 products of decoded weights, tolerance 2e-5 of Σ|w·x|.
// Specialization constants: 0 WG_SIZE = BLOCK_ROWS / THREAD_ROWS · BLOCK_TOKENS / THREAD_TOKENS, 1 BLOCK_ROWS,
// 2 BLOCK_TOKENS, 3 THREAD_ROWS, 4 THREAD_TOKENS. Any subgroup size; 16-bit storage, buffer addresses; shared memory
// 128 · (BLOCK_ROWS + BLOCK_TOKENS + 2) bytes. Rows and tokens beyond the end are read as the last one, not stored.
#include "buffers.glsl"
#include "weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 256;
layout(constant_id = 1) const uint BLOCK_ROWS = 64;
layout(constant_id = 2) const uint BLOCK_TOKENS = 64;
layout(constant_id = 3) const uint THREAD_ROWS = 4;
layout(constant_id = 4) const uint THREAD_TOKENS = 4;
const uint ACCUMULATE = 1, HAS_BIAS = 2;
const uint TILE_K = 32;
const uint TILE_UNITS = TILE_K / (4 * UNIT4);
// One more than the tile: the writes of a vec4's components fall into different banks.
const uint W_STRIDE = BLOCK_ROWS + 1, X_STRIDE = BLOCK_TOKENS + 1;
const uint ROW_THREADS = BLOCK_ROWS / THREAD_ROWS, TOKEN_THREADS = BLOCK_TOKENS / THREAD_TOKENS;

layout(push_constant) uniform Push {
    WEIGHT_MEMBERS
    ReadF32x4 x;      // [n_tokens, x_stride4 * 4]
    ReadF32 bias;     // [n_rows], read if HAS_BIAS
    WriteF32 dst;     // [n_tokens, dst_stride]
    uint n_rows;
    uint n_units;     // per row
    uint n_tokens;
    uint x_stride4;
    uint dst_stride;
    uint flags;
} push;

#include "decode.glsl"

shared float w_tile[TILE_K * W_STRIDE];
shared float x_tile[TILE_K * X_STRIDE];

void load_weights(uint row0, uint unit0) {
    for (uint i = gl_LocalInvocationID.x; i < BLOCK_ROWS * TILE_UNITS; i += WG_SIZE) {
        uint r = i % BLOCK_ROWS, u = i / BLOCK_ROWS;
        vec4 w[UNIT4];
        if (unit0 + u < push.n_units) {
            decode(min(row0 + r, push.n_rows - 1) * push.n_units + unit0 + u, w);
        } else {
            [[unroll]] for (uint j = 0; j < UNIT4; j++) w[j] = vec4(0.0);
        }
        [[unroll]] for (uint j = 0; j < UNIT4; j++)
            [[unroll]] for (uint e = 0; e < 4; e++) w_tile[((u * UNIT4 + j) * 4 + e) * W_STRIDE + r] = w[j][e];
    }
}

void load_activations(uint token0, uint unit0) {
    for (uint i = gl_LocalInvocationID.x; i < BLOCK_TOKENS * TILE_K / 4; i += WG_SIZE) {
        uint v = i % (TILE_K / 4), t = i / (TILE_K / 4);
        uint u = unit0 + v / UNIT4;
        vec4 x = vec4(0.0);
        if (u < push.n_units) {
            x = push.x.v[min(token0 + t, push.n_tokens - 1) * push.x_stride4 + unit_vec4(unit_start4(u), v % UNIT4)];
        }
        [[unroll]] for (uint e = 0; e < 4; e++) x_tile[(v * 4 + e) * X_STRIDE + t] = x[e];
    }
}

void main() {
    uint row0 = gl_WorkGroupID.x * BLOCK_ROWS, token0 = gl_WorkGroupID.y * BLOCK_TOKENS;
    uint row_thread = gl_LocalInvocationID.x % ROW_THREADS, token_thread = gl_LocalInvocationID.x / ROW_THREADS;

    float sums[THREAD_ROWS][THREAD_TOKENS];
    [[unroll]] for (uint i = 0; i < THREAD_ROWS; i++)
        [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) sums[i][j] = 0.0;

    for (uint unit0 = 0; unit0 < push.n_units; unit0 += TILE_UNITS) {
        load_weights(row0, unit0);
        load_activations(token0, unit0);
        barrier();
        for (uint k = 0; k < TILE_K; k++) {
            float w[THREAD_ROWS], x[THREAD_TOKENS];
            [[unroll]] for (uint i = 0; i < THREAD_ROWS; i++) w[i] = w_tile[k * W_STRIDE + row_thread + i * ROW_THREADS];
            [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) x[j] = x_tile[k * X_STRIDE + token_thread + j * TOKEN_THREADS];
            [[unroll]] for (uint i = 0; i < THREAD_ROWS; i++)
                [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) sums[i][j] = fma(w[i], x[j], sums[i][j]);
        }
        barrier();
    }

    [[unroll]] for (uint i = 0; i < THREAD_ROWS; i++) {
        uint row = row0 + row_thread + i * ROW_THREADS;
        if (row >= push.n_rows) continue;
        float bias = (push.flags & HAS_BIAS) != 0 ? push.bias.v[row] : 0.0;
        [[unroll]] for (uint j = 0; j < THREAD_TOKENS; j++) {
            uint token = token0 + token_thread + j * TOKEN_THREADS;
            if (token >= push.n_tokens) continue;
            uint at = token * push.dst_stride + row;
            float sum = sums[i][j] + bias;
            if ((push.flags & ACCUMULATE) != 0) sum += push.dst.v[at];
            push.dst.v[at] = sum;
        }
    }
}
