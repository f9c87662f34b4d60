#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, r] = act(gate[r] · x[t] (+ bias), up[r] · x[t] (+ bias)) for many tokens t (prompts), f32 throughout.
// With GROUPED = 1, of experts: see f32_anyw_gated_matvec.comp. Work of a workgroup: see matmul.glsl.
// Bound by flops: 4 · n_rows · n_tokens · k.
// CPU twin: f64 products of decoded weights and f64 activation, tolerance 2e-5 of what the sums' errors make of it.
// Specialization constants: 0 WG_SIZE = BLOCK_ROWS / THREAD_ROWS · BLOCK_TOKENS / THREAD_TOKENS, 1 BLOCK_ROWS (of each
// matrix), 2 BLOCK_TOKENS, 3 THREAD_ROWS, 4 THREAD_TOKENS, 5 GROUPED, 6 ACTIVATION. Any subgroup size; 16-bit storage,
// buffer addresses; shared memory 128 · (2 · BLOCK_ROWS + BLOCK_TOKENS + 3) + 4 · BLOCK_TOKENS + 64 bytes.
#include "buffers.glsl"
#include "weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 256;
layout(constant_id = 1) const uint BLOCK_ROWS = 32;
layout(constant_id = 2) const uint BLOCK_TOKENS = 64;
layout(constant_id = 3) const uint THREAD_ROWS = 2;
layout(constant_id = 4) const uint THREAD_TOKENS = 4;
layout(constant_id = 5) const uint GROUPED = 0;
layout(constant_id = 6) const uint ACTIVATION = 0;

#include "gated_product.glsl"
#include "matmul.glsl"
