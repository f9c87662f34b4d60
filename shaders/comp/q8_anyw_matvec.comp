#version 460
#extension GL_GOOGLE_include_directive : require
// out[c, r] = Σ_k weight[r, k] · x[c, k] (+ bias[r]) (+ out[c, r]) for a few columns (tokens) c, x in bytes
// (quantize.glsl), sums of 16 or 32 products in integers, those over k in f32. Groups of experts as in
// f32_anyw_matvec.comp, of which this is the faster and coarser twin. Work of a workgroup: see matvec.glsl.
// Bound by bytes: the weights, once per N_COLS columns.
// CPU twin: f64 products of decoded weights and decoded x, tolerance 2e-5 of Σ|w·x| (f32 sums in another order).
// Specialization constants: 0 WG_SIZE, 1 N_ROWS, 2 N_COLS, 3 GROUPED. Subgroup size ≥ 4, subgroup arithmetic, 16-bit
// storage, buffer addresses, integer dot products. Rows beyond the end are computed from the last one and not stored.
#define X_Q8
#include "buffers.glsl"
#include "weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint N_ROWS = 2;
layout(constant_id = 2) const uint N_COLS = 1;
layout(constant_id = 3) const uint GROUPED = 0;

#include "product.glsl"
#include "matvec.glsl"
