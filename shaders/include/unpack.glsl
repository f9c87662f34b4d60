// Weight types, part 3 as well: unpacking a unit to bytes, for products in integers. A kernel calls `decode_setup` before
// anything else. The same numbers as decode.glsl: those that are a scale times a small integer have none rounded.
// Needs WG_SIZE (specialization constant).
//
// Word j of a unit holds its elements 4 * j … 4 * j + 3 as signed bytes. A weight is s * (byte - WEIGHT_OFFSET) + m:
// s.x, s.y are scale and minimum of the unit's first half, s.z, s.w of its second, or the first two of both
// (UNIT_SCALES 1).
#extension GL_EXT_integer_dot_product : require

#include "scales.glsl"

#if defined(WEIGHT_Q2_K) || defined(WEIGHT_Q3_K) || defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K) || defined(WEIGHT_Q6_K)
#define UNIT_SCALES 2
#else
#define UNIT_SCALES 1
#endif

#if defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_1) || defined(WEIGHT_Q2_K) || defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K)
#define WEIGHT_HAS_MIN
#endif

#if defined(WEIGHT_Q4_0)
const int WEIGHT_OFFSET = 8;
#elif defined(WEIGHT_Q5_0)
const int WEIGHT_OFFSET = 16;
#elif defined(WEIGHT_Q3_K)
const int WEIGHT_OFFSET = 4;
#elif defined(WEIGHT_Q6_K)
const int WEIGHT_OFFSET = 32;
#else
const int WEIGHT_OFFSET = 0;
#endif

#if defined(WEIGHT_IQ4_NL) || defined(WEIGHT_IQ4_XS)
// For each byte of two codes, IQ4_NL's value (ggml's `kvalues_iq4nl`) of the low one in byte 0 and of the high one in
// byte 2: a byte is one look-up, and four of them are put together in four instructions.
shared uint iq4_pairs[256];

uint iq4_value(uint code) {
    const uvec4 values = uvec4(0xBFAD9881u, 0xF6EADDCFu, 0x26190D01u, 0x71594535u);
    return values[code / 4] >> 8 * (code % 4) & 0xFF;
}

void decode_setup() {
    for (uint i = gl_LocalInvocationID.x; i < 256; i += WG_SIZE)
        iq4_pairs[i] = iq4_value(i & 0xF) | iq4_value(i >> 4) << 16;
    barrier();
}

// The values of the low codes of `q`'s bytes, and of the high ones.
uvec2 iq4(uint q) {
    uint a = iq4_pairs[q & 0xFF] | iq4_pairs[q >> 8 & 0xFF] << 8;
    uint b = iq4_pairs[q >> 16 & 0xFF] | iq4_pairs[q >> 24] << 8;
    return uvec2(a & 0xFFFFu | b << 16, a >> 16 | b & 0xFFFF0000u);
}
#else
void decode_setup() {}
#endif

#if defined(WEIGHT_MXFP4)
// Twice the FP4 (E2M1) numbers in the low nibbles of the bytes of `q`, by arithmetic on all four at once. Of a magnitude's
// bits e l1 l0, with l = l1 l0: it is l without e, else 4, 6, 8, 12, which is 4 + 2 l, and 2 more for l = 3. The upload
// leaves no negative zero, so negating carries nothing into the next byte.
uint fp4(uint q) {
    uint code = q & 0x07070707u;
    uint e = code >> 2 & 0x01010101u;
    uint magnitude = code + (code & e * 3) + ((code + 0x01010101u & 0x08080808u) >> 2);
    uint negative = q >> 3 & 0x01010101u;
    return (magnitude ^ (negative << 8) - negative) + negative;
}
#endif

// Unpacks unit `unit`, counted over the whole tensor that lies at these addresses.
void unpack(ReadU32x4 quants, ReadU32 high, SCALES scales, uint unit, out uint w[8], out vec4 s) {
    s = vec4(0.0);
#if defined(WEIGHT_Q8_0)
    s.x = float(scales.v[unit]);
    uvec4 q0 = quants.v[unit * 2], q1 = quants.v[unit * 2 + 1];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = q0[i];
        w[i + 4] = q1[i];
    }
#elif defined(WEIGHT_Q4_0) || defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
    uvec4 q = quants.v[unit];
#if defined(WEIGHT_HAS_MIN)
    s.xy = unpackHalf2x16(scales.v[unit]);
#else
    s.x = float(scales.v[unit]);
#endif
#if defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
    uint h = high.v[unit];
#endif
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = q[i] & 0x0F0F0F0Fu;
        w[i + 4] = q[i] >> 4 & 0x0F0F0F0Fu;
#if defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
        w[i] |= fifth_bits(h >> i * 4);
        w[i + 4] |= fifth_bits(h >> i * 4 + 16);
#endif
    }
#elif defined(WEIGHT_MXFP4)
    uvec4 q = quants.v[unit];
    uint e = scales.v[unit >> 2] >> 8 * (unit & 3) & 0xFF;
    // 2^(e - 127), or NaN for 0xFF; half of it because of `fp4`.
    s.x = uintBitsToFloat(e << 23 | (e == 0xFF ? 0x400000u : 0u)) * 0.5;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = fp4(q[i]);
        w[i + 4] = fp4(q[i] >> 4);
    }
#elif defined(WEIGHT_IQ4_NL) || defined(WEIGHT_IQ4_XS)
    uvec4 q = quants.v[unit];
#if defined(WEIGHT_IQ4_NL)
    s.x = float(scales.v[unit]);
#else
    s.x = iq4_xs_scale(high, unit);
#endif
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uvec2 values = iq4(q[i]);
        w[i] = values.x;
        w[i + 4] = values.y;
    }
#elif defined(WEIGHT_Q2_K)
    uint block = (unit >> 3) * 5, half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    s = q2_k_scales(quants, scales, unit);
    uvec4 q = quants.v[block + 1 + half128 * 2 + part] >> 4 * pair;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = q[i] & 0x03030303u;
        w[i + 4] = q[i] >> 2 & 0x03030303u;
    }
#elif defined(WEIGHT_Q3_K)
    uint block = (unit >> 3) * 6, half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    s.xz = q3_k_scales(high, scales, unit);
    uvec4 h = quants.v[block + part] >> 4 * half128 + 2 * pair;
    uvec4 q = quants.v[block + 2 + half128 * 2 + part] >> 4 * pair;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = q[i] & 0x03030303u | (h[i] & 0x01010101u) << 2;
        w[i + 4] = q[i] >> 2 & 0x03030303u | (h[i] << 1 & 0x04040404u);
    }
#elif defined(WEIGHT_Q4_K)
    uint block = (unit >> 3) * 9;
    s = k_scales(quants.v[block], unit >> 1 & 3) * vec4(1.0, -1.0, 1.0, -1.0);
    uvec4 q = quants.v[block + 1 + (unit & 7)];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = q[i] & 0x0F0F0F0Fu;
        w[i + 4] = q[i] >> 4 & 0x0F0F0F0Fu;
    }
#elif defined(WEIGHT_Q5_K)
    uint block = (unit >> 3) * 11, g = unit >> 1 & 3;
    s = k_scales(quants.v[block], g) * vec4(1.0, -1.0, 1.0, -1.0);
    uvec4 h = quants.v[block + 1 + (unit & 1)] >> 2 * g;
    uvec4 q = quants.v[block + 3 + (unit & 7)];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = q[i] & 0x0F0F0F0Fu | (h[i] & 0x01010101u) << 4;
        w[i + 4] = q[i] >> 4 & 0x0F0F0F0Fu | (h[i] << 3 & 0x10101010u);
    }
#elif defined(WEIGHT_Q6_K)
    uint block = (unit >> 3) * 13, half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    s.xz = q6_k_scales(quants, scales, unit);
    uvec4 q = quants.v[block + (unit & 7)];
    uvec4 h = quants.v[block + 8 + half128 * 2 + part] >> pair * 2;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = q[i] & 0x0F0F0F0Fu | (h[i] & 0x03030303u) << 4;
        w[i + 4] = q[i] >> 4 & 0x0F0F0F0Fu | (h[i] & 0x30303030u);
    }
#endif
}
