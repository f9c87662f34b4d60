// Weight types, part 1: how the blocks of a tensor lie in device memory, and the geometry of a *unit*, the piece of
// a row that one invocation decodes at a time. Parts 2 (scales.glsl) and 3 (decode.glsl, or
// unpack.glsl for products in integers) decode units.
//
// At upload the host moves the parts of a block apart so that each is aligned (engine/src/backend/vulkan/weights.rs):
//   quants  16-byte pieces: what most of the bytes are. Q2_K: 16 bytes of scales and minima, then 64 of quants; Q3_K:
//           32 of third bits, then 64 of low bits
//   high    words: fifth bits of Q5_0 and Q5_1 (1 per block); the packed scales of Q3_K (3); IQ4_XS's scale with the
//           high bits of the sub-blocks' scales, then their low bits (2)
//   scales  one f16 (Q4_0, Q5_0, Q8_0, Q6_K, IQ4_NL, Q3_K), f16 pair (Q4_1, Q5_1, Q2_K) or exponent byte (MXFP4) per
//           block
// F32, F16, BF16 (rows padded with zeros to a multiple of 8), Q4_K and Q5_K (144 and 176 bytes) stay as in the file.
//
// UNIT4    vec4s per unit.
// GAP4     vec4s of the row that lie between the two halves of a unit: the low and the high nibbles of the same
//          bytes belong to different places of a row.
// A unit's vec4 `j` is vec4 `unit_start4(u) + j + (j >= UNIT4 / 2 ? GAP4 : 0)` of its row.

#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#define UNIT4 2
#define GAP4 0
#elif defined(WEIGHT_Q2_K) || defined(WEIGHT_Q3_K) || defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K)
#define UNIT4 8
#define GAP4 4
#elif defined(WEIGHT_Q6_K)
#define UNIT4 8
#define GAP4 12
#else
#define UNIT4 8
#define GAP4 0
#endif

#if defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_1) || defined(WEIGHT_Q2_K) || defined(WEIGHT_MXFP4)
#define SCALES ReadU32
#else
#define SCALES ReadF16
#endif

#define WEIGHT_MEMBERS \
    ReadU32x4 quants;  \
    ReadU32 high;      \
    SCALES scales;

// First vec4 of unit `u` of a row.
uint unit_start4(uint u) {
#if defined(WEIGHT_Q2_K) || defined(WEIGHT_Q3_K) || defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K)
    // 256 weights: four groups of 64, of which 32 low and 32 high nibbles (or pairs of two bits); a unit is half a group.
    return (u >> 3) * 64 + (u >> 1 & 3) * 16 + (u & 1) * 4;
#elif defined(WEIGHT_Q6_K)
    // 256 weights: two halves of four groups of 32; groups 0 and 2, and 1 and 3, share bytes; a unit is half of a pair.
    return (u >> 3) * 64 + (u >> 2 & 1) * 32 + (u >> 1 & 1) * 8 + (u & 1) * 4;
#else
    return u * UNIT4;
#endif
}

// Place in its row of vec4 `j` of the unit that starts at `start4`.
uint unit_vec4(uint start4, uint j) {
    return start4 + j + (j >= UNIT4 / 2 ? GAP4 : 0);
}
