#version 460
#extension GL_GOOGLE_include_directive : require
// out[c, r] = Σ_k weight[r, k] · x[c, k] (+ bias[r]) (+ out[c, r]) for a few columns (tokens) c, f32 throughout.
// With GROUPED = 1, with a matrix per expert: out[p] = (weight[e] · x[p] + bias[e]) (· factor[p]) for the pairs p that
// chose expert e. With GROUPED = 2, the end of a token's experts: out[0] += Σ_p factor[p] · (weight[e] · x[p] + bias[e]),
// in the order of the experts. Work of a workgroup: see matvec.glsl.
// Bound by bytes: the weights, once per N_COLS columns.
// CPU twin: f64 products of decoded weights, tolerance 2e-5 of Σ|w·x| (f32 sums in another order).
// Specialization constants: 0 WG_SIZE, 1 N_ROWS, 2 N_COLS, 3 GROUPED. Subgroup size ≥ 4, subgroup arithmetic, 16-bit
// storage, buffer addresses. Rows beyond the end are computed from the last one and not stored.
#include "buffers.glsl"
#include "weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint N_ROWS = 2;
layout(constant_id = 2) const uint N_COLS = 1;
layout(constant_id = 3) const uint GROUPED = 0;

#include "product.glsl"
#include "matvec.glsl"
