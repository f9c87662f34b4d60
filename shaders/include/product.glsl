// Push constants and ends of the kernels that multiply by one matrix, or one matrix per expert: out = W · x (+ bias)
// (· factor) (+ out). Include after the specialization constants.
const uint ACCUMULATE = 1, HAS_BIAS = 2, HAS_FACTORS = 4;
const uint N_MATRICES = 1;

layout(push_constant) uniform Push {
    WEIGHT_MEMBERS    // [n_rows, k] of every expert
#ifdef X_Q8
    ReadU32x4 x;      // [n_tokens or pairs / x_share], rows of quantize.glsl with n_pieces = x_stride4
#else
    ReadF32x4 x;      // [n_tokens or pairs / x_share, x_stride4 * 4]
#endif
    ReadF32 bias;     // [experts, bias_stride], read if HAS_BIAS
    WriteF32 dst;     // [n_tokens or pairs, dst_stride]
    ReadU32x4 tiles;  // these three if GROUPED: see tiles.glsl
    ReadU32 entries;
    ReadF32 factors;  // [pairs]: routing weights, read if HAS_FACTORS
    uint n_rows;
    uint n_units;     // per row
    uint n_tokens;
    uint x_stride4;
    uint dst_stride;
    uint bias_stride;
    uint x_share;     // pairs that have one row of x in common, 1 without groups
    uint flags;
} push;

#include "tiles.glsl"
#ifdef X_Q8
#include "unpack.glsl"

void unpack_matrix(uint m, uint unit, out uint w[8], out vec4 s) {
    unpack(push.quants, push.high, push.scales, unit, w, s);
}
#else
#include "decode.glsl"

void decode_matrix(uint m, uint unit, out vec4 w[UNIT4]) {
    decode(push.quants, push.high, push.scales, unit, w);
}
#endif

uint x_row(uint pair) {
    return pair / push.x_share;
}

float x_factor(uint pair) {
    return push.factors.v[pair];
}

void store(uint row, uint expert, uint pair, float sums[N_MATRICES]) {
    float sum = sums[0];
    if (GROUPED == 2) {
        // The pairs' weights are in the sum; it belongs to the only token.
        for (uint i = 0; (push.flags & HAS_BIAS) != 0 && i < push.tiles.v[0].x; i++) {
            Tile tile = expert_tile(i);
            sum += push.bias.v[tile.expert * push.bias_stride + row] * push.factors.v[pair_of(tile, 0)];
        }
        push.dst.v[row] += sum;
        return;
    }
    if ((push.flags & HAS_BIAS) != 0) sum += push.bias.v[expert * push.bias_stride + row];
    if ((push.flags & HAS_FACTORS) != 0) sum *= push.factors.v[pair];
    uint at = pair * push.dst_stride + row;
    if ((push.flags & ACCUMULATE) != 0) sum += push.dst.v[at];
    push.dst.v[at] = sum;
}
