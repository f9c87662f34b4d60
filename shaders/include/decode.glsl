// Weight types, part 3: decoding a unit to f32. A kernel calls `decode_setup` before anything else.
// CPU twin: engine::quant::dequantize_row, exact but for the rounding of `scale * q + min` (and MXFP4 weights of 2^114
// and more, which overflow; the smallest scale of MXFP4, 2^-127, counts as 0).
// Needs WG_SIZE (specialization constant).

#include "scales.glsl"

// The four bytes of `q` as numbers.
vec4 bytes_to_vec4(uint q) {
    return vec4(q & 0xFF, q >> 8 & 0xFF, q >> 16 & 0xFF, q >> 24);
}

// The same for signed bytes.
vec4 signed_bytes_to_vec4(uint q) {
    int s = int(q);
    return vec4(s << 24 >> 24, s << 16 >> 24, s << 8 >> 24, s >> 24);
}

#if defined(WEIGHT_IQ4_NL) || defined(WEIGHT_IQ4_XS)
// The sixteen values of IQ4_NL (ggml's `kvalues_iq4nl`), where every invocation can look them up.
shared float iq4_values[16];

void decode_setup() {
    const uvec4 values = uvec4(0xBFAD9881u, 0xF6EADDCFu, 0x26190D01u, 0x71594535u);
    for (uint i = gl_LocalInvocationID.x; i < 16; i += WG_SIZE) {
        iq4_values[i] = float(int(values[i / 4] << 24 - 8 * (i % 4)) >> 24);
    }
    barrier();
}

vec4 iq4(uint q) {
    return vec4(iq4_values[q & 0xF], iq4_values[q >> 8 & 0xF], iq4_values[q >> 16 & 0xF], iq4_values[q >> 24]);
}
#else
void decode_setup() {}
#endif

#if defined(WEIGHT_MXFP4)
// 2^-14 times the FP4 (E2M1) numbers in the low nibbles of the bytes of `q`: sign, exponent and mantissa at the places
// of an f16's highest bits, where both formats count 0 and subnormals alike.
vec4 fp4(uint q) {
    uvec2 pairs = uvec2(q, q >> 8) & 0x000F000Fu;
    pairs = (pairs & 0x00080008u) << 12 | (pairs & 0x00070007u) << 9;
    vec2 even = unpackHalf2x16(pairs.x), odd = unpackHalf2x16(pairs.y);
    return vec4(even.x, odd.x, even.y, odd.y);
}
#endif

// Decodes unit `unit`, counted over the whole tensor that lies at these addresses.
void decode(ReadU32x4 quants, ReadU32 high, SCALES scales, uint unit, out vec4 w[UNIT4]) {
#if defined(WEIGHT_F32)
    w[0] = uintBitsToFloat(quants.v[unit * 2]);
    w[1] = uintBitsToFloat(quants.v[unit * 2 + 1]);
#elif defined(WEIGHT_F16)
    uvec4 q = quants.v[unit];
    w[0] = vec4(unpackHalf2x16(q.x), unpackHalf2x16(q.y));
    w[1] = vec4(unpackHalf2x16(q.z), unpackHalf2x16(q.w));
#elif defined(WEIGHT_BF16)
    uvec4 q = quants.v[unit];
    w[0] = uintBitsToFloat(uvec4(q.x << 16, q.x & 0xFFFF0000u, q.y << 16, q.y & 0xFFFF0000u));
    w[1] = uintBitsToFloat(uvec4(q.z << 16, q.z & 0xFFFF0000u, q.w << 16, q.w & 0xFFFF0000u));
#elif defined(WEIGHT_Q8_0)
    float d = float(scales.v[unit]);
    [[unroll]] for (uint half16 = 0; half16 < 2; half16++) {
        uvec4 q = quants.v[unit * 2 + half16];
        [[unroll]] for (uint i = 0; i < 4; i++) w[half16 * 4 + i] = d * signed_bytes_to_vec4(q[i]);
    }
#elif defined(WEIGHT_Q4_0) || defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
    uvec4 q = quants.v[unit];
#if defined(WEIGHT_Q4_0)
    float d = float(scales.v[unit]), m = -8.0 * d;
#elif defined(WEIGHT_Q5_0)
    float d = float(scales.v[unit]), m = -16.0 * d;
#else
    vec2 dm = unpackHalf2x16(scales.v[unit]);
    float d = dm.x, m = dm.y;
#endif
#if defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
    uint h = high.v[unit];
#endif
    [[unroll]] for (uint i = 0; i < 4; i++) {
        uint lo = q[i] & 0x0F0F0F0Fu, hi = q[i] >> 4 & 0x0F0F0F0Fu;
#if defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
        lo |= fifth_bits(h >> i * 4);
        hi |= fifth_bits(h >> i * 4 + 16);
#endif
        w[i] = d * bytes_to_vec4(lo) + m;
        w[i + 4] = d * bytes_to_vec4(hi) + m;
    }
#elif defined(WEIGHT_MXFP4)
    uvec4 q = quants.v[unit];
    uint e = scales.v[unit >> 2] >> 8 * (unit & 3) & 0xFF;
    // 2^(e - 127), or NaN for 0xFF; 2^14 because of `fp4`.
    float d = uintBitsToFloat(e << 23 | (e == 0xFF ? 0x400000u : 0u)) * 16384.0;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = d * fp4(q[i]);
        w[i + 4] = d * fp4(q[i] >> 4);
    }
#elif defined(WEIGHT_IQ4_NL) || defined(WEIGHT_IQ4_XS)
    uvec4 q = quants.v[unit];
#if defined(WEIGHT_IQ4_NL)
    float d = float(scales.v[unit]);
#else
    float d = iq4_xs_scale(high, unit);
#endif
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = d * iq4(q[i] & 0x0F0F0F0Fu);
        w[i + 4] = d * iq4(q[i] >> 4 & 0x0F0F0F0Fu);
    }
#elif defined(WEIGHT_Q2_K)
    // 5 pieces: scales and minima 1, quants 4 (two halves of 32 bytes). Bits 1 and 0 of the unit: which two of the four
    // groups in a byte, and which 16 bytes.
    uint block = (unit >> 3) * 5, half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    vec4 s = q2_k_scales(quants, scales, unit);
    uvec4 q = quants.v[block + 1 + half128 * 2 + part] >> 4 * pair;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s.x * bytes_to_vec4(q[i] & 0x03030303u) + s.y;
        w[i + 4] = s.z * bytes_to_vec4(q[i] >> 2 & 0x03030303u) + s.w;
    }
#elif defined(WEIGHT_Q3_K)
    // 6 pieces: third bits 2 (bit g of a byte belongs to group g of 32), low bits 4 as in Q2_K.
    uint block = (unit >> 3) * 6, half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    vec2 s = q3_k_scales(high, scales, unit);
    uvec4 h = quants.v[block + part] >> 4 * half128 + 2 * pair;
    uvec4 q = quants.v[block + 2 + half128 * 2 + part] >> 4 * pair;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s.x * (bytes_to_vec4(q[i] & 0x03030303u | (h[i] & 0x01010101u) << 2) - 4.0);
        w[i + 4] = s.y * (bytes_to_vec4(q[i] >> 2 & 0x03030303u | (h[i] >> 1 & 0x01010101u) << 2) - 4.0);
    }
#elif defined(WEIGHT_Q4_K)
    uint block = (unit >> 3) * 9, g = unit >> 1 & 3;
    vec4 s = k_scales(quants.v[block], g);
    uvec4 q = quants.v[block + 1 + (unit & 7)];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s.x * bytes_to_vec4(q[i] & 0x0F0F0F0Fu) - s.y;
        w[i + 4] = s.z * bytes_to_vec4(q[i] >> 4 & 0x0F0F0F0Fu) - s.w;
    }
#elif defined(WEIGHT_Q5_K)
    uint block = (unit >> 3) * 11, g = unit >> 1 & 3;
    vec4 s = k_scales(quants.v[block], g);
    uvec4 h = quants.v[block + 1 + (unit & 1)] >> 2 * g;
    uvec4 q = quants.v[block + 3 + (unit & 7)];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s.x * bytes_to_vec4(q[i] & 0x0F0F0F0Fu | (h[i] & 0x01010101u) << 4) - s.y;
        w[i + 4] = s.z * bytes_to_vec4(q[i] >> 4 & 0x0F0F0F0Fu | (h[i] >> 1 & 0x01010101u) << 4) - s.w;
    }
#elif defined(WEIGHT_Q6_K)
    // 13 pieces: ql 8, qh 4, scales 1. Within a half, bit 1 of the unit picks the pair of groups, bit 0 the 16 bytes.
    uint block = (unit >> 3) * 13, half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    uvec4 q = quants.v[block + (unit & 7)];
    uvec4 h = quants.v[block + 8 + half128 * 2 + part] >> pair * 2;
    vec2 s = q6_k_scales(quants, scales, unit);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s.x * (bytes_to_vec4(q[i] & 0x0F0F0F0Fu | (h[i] & 0x03030303u) << 4) - 32.0);
        w[i + 4] = s.y * (bytes_to_vec4(q[i] >> 4 & 0x0F0F0F0Fu | (h[i] >> 4 & 0x03030303u) << 4) - 32.0);
    }
#endif
}
