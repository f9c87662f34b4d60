#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, r] = Σ_k weight[r, k] · x[t, k] (+ bias[r]) (+ out[t, r]) for many tokens t (prompts) on the matrix units:
// weights and activations in f16, sums in f32. With GROUPED = 1, with a matrix per expert: see f32_anyw_matvec.comp.
// Work of a workgroup: see coopmat.glsl.
// Bound by flops of the matrix units: 2 · n_rows · n_tokens · k.
// CPU twin: f64 products of decoded weights and activations, tolerance 1.1e-3 of Σ|w·x| (both sides rounded to 11
// bits) and what f16 makes of the smallest numbers: 4e-8 · Σ|x| for weights, 2e-9 · max|x| · Σ|w| for activations.
// Specialization constants: 0 WG_SIZE = SUBGROUP · BLOCK_ROWS / WAVE_ROWS · BLOCK_TOKENS / WAVE_TOKENS, 1 BLOCK_ROWS,
// 2 BLOCK_TOKENS, 3 WAVE_ROWS, 4 WAVE_TOKENS, 5 MAT_M (a multiple of 4), 6 MAT_N, 7 MAT_K (of 8),
// 8 TILE_K (of 32 and MAT_K), 9 N_BUFFERS, 10 SUBGROUP, 11 GROUPED. Subgroups of exactly SUBGROUP; cooperative matrices, float16, 16-bit storage,
// buffer addresses; shared memory: `MatrixTile::shared_bytes`.
#define X_BUFFER ReadU32x4
#include "buffers.glsl"
#include "weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 128;
layout(constant_id = 1) const uint BLOCK_ROWS = 64;
layout(constant_id = 2) const uint BLOCK_TOKENS = 64;
layout(constant_id = 3) const uint WAVE_ROWS = 32;
layout(constant_id = 4) const uint WAVE_TOKENS = 32;
layout(constant_id = 5) const uint MAT_M = 16;
layout(constant_id = 6) const uint MAT_N = 16;
layout(constant_id = 7) const uint MAT_K = 16;
layout(constant_id = 8) const uint TILE_K = 32;
layout(constant_id = 9) const uint N_BUFFERS = 1;
layout(constant_id = 10) const uint SUBGROUP = 32;
layout(constant_id = 11) const uint GROUPED = 0;

#include "product.glsl"
#include "coopmat.glsl"
