// Push constants and ends of the kernels that compute out = act(gate · x (+ bias), up · x (+ bias)), with one pair of
// matrices or one per expert. Include after the specialization constants.
#include "activation.glsl"

const uint HAS_BIAS = 2;
const uint N_MATRICES = 2;

layout(push_constant) uniform Push {
    WEIGHT_MEMBERS      // gate: [n_rows, k] of every expert
    ReadU32x4 up_quants;
    ReadU32 up_high;
    SCALES up_scales;
#ifdef X_Q8
    ReadU32x4 x;        // [n_tokens], rows of quantize.glsl with n_pieces = x_stride4
#else
    ReadF32x4 x;        // [n_tokens, x_stride4 * 4]
#endif
    ReadF32 gate_bias;  // [experts, bias_stride], read if HAS_BIAS
    ReadF32 up_bias;
    WriteF32 dst;       // [n_tokens or pairs, dst_stride]
    ReadU32x4 tiles;    // these two if GROUPED: see tiles.glsl
    ReadU32 entries;
    uint n_rows;
    uint n_units;       // per row
    uint n_tokens;
    uint n_used;        // experts per token; 1 without groups
    uint x_stride4;
    uint dst_stride;
    uint bias_stride;
    uint flags;
} push;

#include "tiles.glsl"
#ifdef X_Q8
#include "unpack.glsl"

void unpack_matrix(uint m, uint unit, out uint w[8], out vec4 s) {
    if (m == 0) {
        unpack(push.quants, push.high, push.scales, unit, w, s);
    } else {
        unpack(push.up_quants, push.up_high, push.up_scales, unit, w, s);
    }
}
#else
#include "decode.glsl"

void decode_matrix(uint m, uint unit, out vec4 w[UNIT4]) {
    if (m == 0) {
        decode(push.quants, push.high, push.scales, unit, w);
    } else {
        decode(push.up_quants, push.up_high, push.up_scales, unit, w);
    }
}
#endif

uint x_row(uint pair) {
    return pair / push.n_used;
}

float x_factor(uint pair) {
    return 1.0;
}

void store(uint row, uint expert, uint pair, float sums[N_MATRICES]) {
    if ((push.flags & HAS_BIAS) != 0) {
        sums[0] += push.gate_bias.v[expert * push.bias_stride + row];
        sums[1] += push.up_bias.v[expert * push.bias_stride + row];
    }
    push.dst.v[pair * push.dst_stride + row] = activate(ACTIVATION, sums[0], sums[1]);
}
