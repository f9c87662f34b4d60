#version 460
#extension GL_GOOGLE_include_directive : require
// out[c, r] = Σ_k weight[r, k] · x[c, k] (+ bias[r]) (+ out[c, r]) for a few columns (tokens) c, f32 throughout.
// One workgroup computes N_ROWS rows for N_COLS columns: each weight is read and decoded once for all columns.
// Its invocations take the units of the rows in turn, so that neighbours read neighbouring 16 bytes; decoded weights
// stay in registers while x streams past. Workgroup z takes columns z·N_COLS ….
// Bound by bytes: the weights, once per N_COLS columns.
// CPU twin: f64 products of decoded weights, tolerance 2e-5 of Σ|w·x| (f32 sums in another order).
// Specialization constants: 0 WG_SIZE, 1 N_ROWS, 2 N_COLS. Subgroup size ≥ 4, subgroup arithmetic, 16-bit storage,
// buffer addresses. Rows and columns beyond the end are computed from the last one and not stored.
#include "buffers.glsl"
#include "weights.glsl"
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG_SIZE = 64;
layout(constant_id = 1) const uint N_ROWS = 2;
layout(constant_id = 2) const uint N_COLS = 1;
const uint N_SUMS = N_ROWS * N_COLS;
const uint ACCUMULATE = 1, HAS_BIAS = 2;

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

shared float partials[WG_SIZE / 4 * N_SUMS];

// sum + a · b as four fused multiply-adds.
float add_dot(float sum, vec4 a, vec4 b) {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

void store(uint row, uint token, float sum) {
    if (row >= push.n_rows || token >= push.n_tokens) return;
    if ((push.flags & HAS_BIAS) != 0) sum += push.bias.v[row];
    uint at = token * push.dst_stride + row;
    if ((push.flags & ACCUMULATE) != 0) sum += push.dst.v[at];
    push.dst.v[at] = sum;
}

void main() {
    uint row0 = (gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x) * N_ROWS;
    uint col0 = gl_WorkGroupID.z * N_COLS;
    if (row0 >= push.n_rows) return; // whole workgroups: the grid is rounded up to a rectangle

    uint row_units[N_ROWS], x_rows[N_COLS];
    [[unroll]] for (uint r = 0; r < N_ROWS; r++) row_units[r] = min(row0 + r, push.n_rows - 1) * push.n_units;
    [[unroll]] for (uint c = 0; c < N_COLS; c++) x_rows[c] = min(col0 + c, push.n_tokens - 1) * push.x_stride4;

    float sums[N_ROWS][N_COLS];
    [[unroll]] for (uint r = 0; r < N_ROWS; r++)
        [[unroll]] for (uint c = 0; c < N_COLS; c++) sums[r][c] = 0.0;

    for (uint u = gl_LocalInvocationID.x; u < push.n_units; u += WG_SIZE) {
        vec4 w[N_ROWS][UNIT4];
        [[unroll]] for (uint r = 0; r < N_ROWS; r++) decode(row_units[r] + u, w[r]);
        uint start4 = unit_start4(u);
        [[unroll]] for (uint c = 0; c < N_COLS; c++) {
            // All loads of a column first: they are in flight together.
            vec4 x[UNIT4];
            [[unroll]] for (uint j = 0; j < UNIT4; j++) x[j] = push.x.v[unit_vec4(x_rows[c] + start4, j)];
            [[unroll]] for (uint j = 0; j < UNIT4; j++)
                [[unroll]] for (uint r = 0; r < N_ROWS; r++) sums[r][c] = add_dot(sums[r][c], w[r][j], x[j]);
        }
    }

    [[unroll]] for (uint r = 0; r < N_ROWS; r++)
        [[unroll]] for (uint c = 0; c < N_COLS; c++) {
            float sum = subgroupAdd(sums[r][c]);
            if (subgroupElect()) partials[gl_SubgroupID * N_SUMS + r * N_COLS + c] = sum;
        }
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < N_SUMS; i += WG_SIZE) {
        float sum = 0.0;
        for (uint s = 0; s < gl_NumSubgroups; s++) sum += partials[s * N_SUMS + i];
        store(row0 + i / N_COLS, col0 + i % N_COLS, sum);
    }
}
