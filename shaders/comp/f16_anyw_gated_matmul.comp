#version 460
#extension GL_GOOGLE_include_directive : require
// out[t, r] = act(gate[r] · x[t] (+ bias), up[r] · x[t] (+ bias)) for many tokens t (prompts) on the matrix units:
// weights and activations in f16, sums in f32. With GROUPED = 1, of experts: see f32_anyw_gated_matvec.comp.
// Work of a workgroup: see coopmat.glsl.
// Bound by flops of the matrix units: 4 · n_rows · n_tokens · k.
// CPU twin: f64 products of decoded weights and f64 activation, tolerance that of f16_anyw_matmul.comp for both sums
// and what the activation makes of it.
// Specialization constants: those of f16_anyw_matmul.comp (rows are of each matrix), 12 ACTIVATION; the same needs.
#define X_BUFFER ReadU32x4
#include "buffers.glsl"
#include "weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 128;
layout(constant_id = 1) const uint BLOCK_ROWS = 32;
layout(constant_id = 2) const uint BLOCK_TOKENS = 64;
layout(constant_id = 3) const uint WAVE_ROWS = 16;
layout(constant_id = 4) const uint WAVE_TOKENS = 32;
layout(constant_id = 5) const uint MAT_M = 16;
layout(constant_id = 6) const uint MAT_N = 16;
layout(constant_id = 7) const uint MAT_K = 16;
layout(constant_id = 8) const uint TILE_K = 32;
layout(constant_id = 9) const uint N_BUFFERS = 1;
layout(constant_id = 10) const uint SUBGROUP = 32;
layout(constant_id = 11) const uint GROUPED = 0;
layout(constant_id = 12) const uint ACTIVATION = 0;

#include "gated_product.glsl"
#include "coopmat.glsl"
