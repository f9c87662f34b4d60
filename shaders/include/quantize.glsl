// Activations quantised to bytes in blocks of 32, as products in integers take them (after ggml's Q8_1: q = round(x / d),
// d = max|x| / 127, but d stays f32). A row is n_pieces = 4 * ceil(width / 64) pieces of 16 bytes: those of block b at
// 2 * b and 2 * b + 1; then, 8 bytes per block, d and the sums of q over the block's halves as two 16-bit integers. The
// row is 5/4 * n_pieces pieces long. What fills the last pair of blocks up to 64 elements is quantised like the rest.
// Twin: engine/tests/vulkan_dot.rs.

// Writes `block` of a row that starts at piece `row`; x[i] is element 4 * i of it.
void quantize_block(WriteU32x4 dst, uint row, uint n_pieces, uint block, vec4 x[8]) {
    vec4 most = abs(x[0]);
    [[unroll]] for (uint i = 1; i < 8; i++) most = max(most, abs(x[i]));
    float d = max(max(most.x, most.y), max(most.z, most.w)) / 127.0;
    float inverse = d > 0.0 ? 1.0 / d : 0.0;
    uint words[8];
    int sums[2] = {0, 0};
    [[unroll]] for (uint i = 0; i < 8; i++) {
        // |x| / d can be a rounding error above 127, and is anything where x is no number.
        ivec4 q = clamp(ivec4(roundEven(x[i] * inverse)), -127, 127);
        sums[i / 4] += q.x + q.y + q.z + q.w;
        uvec4 b = uvec4(q) & 0xFFu;
        words[i] = b.x | b.y << 8 | b.z << 16 | b.w << 24;
    }
    dst.v[row + 2 * block] = uvec4(words[0], words[1], words[2], words[3]);
    dst.v[row + 2 * block + 1] = uvec4(words[4], words[5], words[6], words[7]);
    WriteU32x2 scales = WriteU32x2(dst);
    scales.v[2 * (row + n_pieces) + block] = uvec2(floatBitsToUint(d), uint(sums[0]) & 0xFFFFu | uint(sums[1]) << 16);
}
