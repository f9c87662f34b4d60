// Weight types, part 2: the scales of a unit and what else decoding to f32 (decode.glsl) and unpacking to bytes
// (unpack.glsl) have in common.

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

#if defined(WEIGHT_IQ4_XS)
float iq4_xs_scale(ReadU32 high, uint unit) {
    uint head = high.v[(unit >> 3) * 2], low = high.v[(unit >> 3) * 2 + 1], j = unit & 7;
    uint scale = low >> 4 * j & 0xF | (head >> 16 + 2 * j & 3) << 4;
    return unpackHalf2x16(head).x * (float(scale) - 32.0);
}
#endif

#if defined(WEIGHT_Q2_K)
// Scale and minimum (negated) of the halves of a unit, as of all types below.
vec4 q2_k_scales(ReadU32x4 quants, SCALES scales, uint unit) {
    uint half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1;
    vec2 d = unpackHalf2x16(scales.v[unit >> 3]);
    uint sub = quants.v[(unit >> 3) * 5][half128 * 2 + pair] >> 8 * part;
    return vec4(d.x, -d.y, d.x, -d.y) * vec4(sub & 0xF, sub >> 4 & 0xF, sub >> 16 & 0xF, sub >> 20 & 0xF);
}
#endif

#if defined(WEIGHT_Q3_K)
vec2 q3_k_scales(ReadU32 high, SCALES scales, uint unit) {
    uint half128 = unit >> 2 & 1, pair = unit >> 1 & 1, part = unit & 1, head = (unit >> 3) * 3;
    uint low = high.v[head + pair] >> 8 * part + 4 * half128 & 0x000F000Fu;
    uint top = high.v[head + 2] >> 8 * part + 4 * half128 + 2 * pair & 0x00030003u;
    uint sub = low | top << 4;
    return float(scales.v[unit >> 3]) * (vec2(sub & 0x3F, sub >> 16) - 32.0);
}
#endif

#if defined(WEIGHT_Q6_K)
vec2 q6_k_scales(ReadU32x4 quants, SCALES scales, uint unit) {
    uint pair = unit >> 1 & 1, part = unit & 1;
    uvec4 packed_scales = quants.v[(unit >> 3) * 13 + 12];
    float d = float(scales.v[unit >> 3]);
    // Groups 2 * half … of 16: words 2 * half and 2 * half + 1 hold the scales of groups 0–1 and 2–3 of this half.
    uint shift = pair * 16 + part * 8;
    uvec2 words = (unit >> 2 & 1) == 0 ? packed_scales.xy : packed_scales.zw;
    return d * vec2(int(words.x >> shift << 24) >> 24, int(words.y >> shift << 24) >> 24);
}
#endif
