// The cache of keys or values of one layer: per page, per head, PAGE rows of HEAD_DIM elements, in one of two types.
//   F16:  [n_pages, n_head_kv, PAGE, HEAD_DIM] f16.
//   Q8_0: [n_pages, n_head_kv], each first PAGE rows of codes (a byte each, 128 more than the signed code, so that
//         their conversion to f32 is one instruction), then PAGE rows of scales (f16, one per 32 codes).
// A page is one run of bytes in both, so that it can be copied as a whole. Mirrors `CacheShape` on the host.
// Include after buffers.glsl, PAGE and HEAD_DIM4 (head_dim / 4; both constants).
const uint KV_F16 = 0, KV_Q8_0 = 1;

// 32-bit words of one head's part of a page of codes and scales.
const uint Q8_WORDS = PAGE * HEAD_DIM4 / 16 * 17;

// First scale (counted in f16s) of row `row` of the part that starts at word `part`.
uint q8_scale_at(uint part, uint row) {
    return 2 * (part + PAGE * HEAD_DIM4) + row * (HEAD_DIM4 / 8);
}

// Four codes as numbers, times their scale.
vec4 q8_values(uint word, float scale) {
    vec4 codes = vec4(word & 0xFFu, (word >> 8) & 0xFFu, (word >> 16) & 0xFFu, word >> 24);
    return fma(codes, vec4(scale), vec4(-128.0 * scale));
}

vec4 halves_to_vec4(uvec2 words) {
    return vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
}

// vec4 `d4` of row `row` of a part.
vec4 cached_vec4(ReadU32x2 cache, uint type, uint part, uint row, uint d4) {
    if (type == KV_F16) return halves_to_vec4(cache.v[(part * PAGE + row) * HEAD_DIM4 + d4]);
    uint words = part * Q8_WORDS;
    float scale = float(ReadF16(cache).v[q8_scale_at(words, row) + d4 / 8]);
    return q8_values(ReadU32(cache).v[words + row * HEAD_DIM4 + d4], scale);
}

// Four values as codes; `inverse` is 1 / scale, or 0.
uint q8_codes(vec4 values, float inverse) {
    uvec4 codes = uvec4(roundEven(values * inverse) + 128.0);
    return codes.x | codes.y << 8 | codes.z << 16 | codes.w << 24;
}

float largest_of(vec4 v) {
    vec4 a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}
