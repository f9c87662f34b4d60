// Weight types, part 2: decoding a unit to f32. Include after the push constants, which hold WEIGHT_MEMBERS.
// CPU twin: engine::quant::dequantize_row, exact but for the rounding of `scale * q + min`.

// The four bytes of `q` as numbers.
vec4 bytes_to_vec4(uint q) {
    return vec4(q & 0xFF, q >> 8 & 0xFF, q >> 16 & 0xFF, q >> 24);
}

// The same for signed bytes.
vec4 signed_bytes_to_vec4(uint q) {
    int s = int(q);
    return vec4(s << 24 >> 24, s << 16 >> 24, s << 8 >> 24, s >> 24);
}

// Bits 0–3 of `h`, each moved to bit 4 of its own byte.
uint fifth_bits(uint h) {
    return ((h & 0xF) * 0x00204081u & 0x01010101u) << 4;
}

#if defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K)
// Scales and minima of sub-blocks `2 * g` and `2 * g + 1` from a block's first 16 bytes (d, dmin, 12 packed bytes):
// x = scale, min of the first, z, w = of the second.
vec4 k_scales(uvec4 head, uint g) {
    uint scales, mins;
    if (g < 2) {
        scales = head.y & 0x3F3F3F3Fu;
        mins = head.z & 0x3F3F3F3Fu;
    } else {
        scales = head.w & 0x0F0F0F0Fu | head.y >> 2 & 0x30303030u;
        mins = head.w >> 4 & 0x0F0F0F0Fu | head.z >> 2 & 0x30303030u;
    }
    uint shift = (g & 1) * 16;
    vec2 d = unpackHalf2x16(head.x);
    return d.xyxy * vec4(scales >> shift & 0xFF, mins >> shift & 0xFF, scales >> shift + 8 & 0xFF, mins >> shift + 8 & 0xFF);
}
#endif

// Decodes unit `unit`, counted over the whole tensor.
void decode(uint unit, out vec4 w[UNIT4]) {
#if defined(WEIGHT_F32)
    w[0] = uintBitsToFloat(push.quants.v[unit * 2]);
    w[1] = uintBitsToFloat(push.quants.v[unit * 2 + 1]);
#elif defined(WEIGHT_F16)
    uvec4 q = push.quants.v[unit];
    w[0] = vec4(unpackHalf2x16(q.x), unpackHalf2x16(q.y));
    w[1] = vec4(unpackHalf2x16(q.z), unpackHalf2x16(q.w));
#elif defined(WEIGHT_BF16)
    uvec4 q = push.quants.v[unit];
    w[0] = uintBitsToFloat(uvec4(q.x << 16, q.x & 0xFFFF0000u, q.y << 16, q.y & 0xFFFF0000u));
    w[1] = uintBitsToFloat(uvec4(q.z << 16, q.z & 0xFFFF0000u, q.w << 16, q.w & 0xFFFF0000u));
#elif defined(WEIGHT_Q8_0)
    float d = float(push.scales.v[unit]);
    [[unroll]] for (uint half16 = 0; half16 < 2; half16++) {
        uvec4 q = push.quants.v[unit * 2 + half16];
        [[unroll]] for (uint i = 0; i < 4; i++) w[half16 * 4 + i] = d * signed_bytes_to_vec4(q[i]);
    }
#elif defined(WEIGHT_Q4_0) || defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
    uvec4 q = push.quants.v[unit];
#if defined(WEIGHT_Q4_0)
    float d = float(push.scales.v[unit]), m = -8.0 * d;
#elif defined(WEIGHT_Q5_0)
    float d = float(push.scales.v[unit]), m = -16.0 * d;
#else
    vec2 dm = unpackHalf2x16(push.scales.v[unit]);
    float d = dm.x, m = dm.y;
#endif
#if defined(WEIGHT_Q5_0) || defined(WEIGHT_Q5_1)
    uint h = push.high.v[unit];
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
#elif defined(WEIGHT_Q4_K)
    uint block = (unit >> 3) * 9, g = unit >> 1 & 3;
    vec4 s = k_scales(push.quants.v[block], g);
    uvec4 q = push.quants.v[block + 1 + (unit & 7)];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s.x * bytes_to_vec4(q[i] & 0x0F0F0F0Fu) - s.y;
        w[i + 4] = s.z * bytes_to_vec4(q[i] >> 4 & 0x0F0F0F0Fu) - s.w;
    }
#elif defined(WEIGHT_Q5_K)
    uint block = (unit >> 3) * 11, g = unit >> 1 & 3;
    vec4 s = k_scales(push.quants.v[block], g);
    uvec4 h = push.quants.v[block + 1 + (unit & 1)] >> 2 * g;
    uvec4 q = push.quants.v[block + 3 + (unit & 7)];
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s.x * bytes_to_vec4(q[i] & 0x0F0F0F0Fu | (h[i] & 0x01010101u) << 4) - s.y;
        w[i + 4] = s.z * bytes_to_vec4(q[i] >> 4 & 0x0F0F0F0Fu | (h[i] >> 1 & 0x01010101u) << 4) - s.w;
    }
#elif defined(WEIGHT_Q6_K)
    // 13 pieces: ql 8, qh 4, scales 1. Within a half, bit 1 of the unit picks the pair of groups, bit 0 the 16 bytes.
    uint block = (unit >> 3) * 13, half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    uvec4 q = push.quants.v[block + (unit & 7)];
    uvec4 h = push.quants.v[block + 8 + half128 * 2 + part] >> pair * 2;
    uvec4 packed_scales = push.quants.v[block + 12];
    float d = float(push.scales.v[unit >> 3]);
    // Groups 2 * half … of 16: words 2 * half and 2 * half + 1 hold the scales of groups 0–1 and 2–3 of this half.
    uint shift = pair * 16 + part * 8;
    uvec2 words = half128 == 0 ? packed_scales.xy : packed_scales.zw;
    float s_lo = d * float(int(words.x >> shift << 24) >> 24), s_hi = d * float(int(words.y >> shift << 24) >> 24);
    [[unroll]] for (uint i = 0; i < 4; i++) {
        w[i] = s_lo * (bytes_to_vec4(q[i] & 0x0F0F0F0Fu | (h[i] & 0x03030303u) << 4) - 32.0);
        w[i + 4] = s_hi * (bytes_to_vec4(q[i] >> 4 & 0x0F0F0F0Fu | (h[i] >> 4 & 0x03030303u) << 4) - 32.0);
    }
#endif
}
