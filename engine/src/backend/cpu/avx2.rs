//! Row kernels in AVX2: a weight row times one to four tokens, see `rows`.
//!
//! Codes are unsigned bytes and activations signed ones, as `vpmaddubsw` wants them; what a type subtracts from its
//! codes comes back through the sums of the activations. No pair overflows 16 bits: 2 · 63 · 127 < 2¹⁵.

use super::activation::QuantizedRows;
use crate::gguf::GgmlType;
use std::arch::x86_64::*;

/// `row · x[t0 + i]` for `N` tokens.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_row<const N: usize>(ty: GgmlType, row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    match ty {
        GgmlType::Q4_K => dot_super::<Q4K, N>(row, x, t0),
        GgmlType::Q5_K => dot_super::<Q5K, N>(row, x, t0),
        GgmlType::Q6_K => dot_q6_k(row, x, t0),
        GgmlType::Q4_0 => dot_small::<Q40, N>(row, x, t0),
        GgmlType::Q4_1 => dot_small::<Q41, N>(row, x, t0),
        GgmlType::Q5_0 => dot_small::<Q50, N>(row, x, t0),
        GgmlType::Q5_1 => dot_small::<Q51, N>(row, x, t0),
        GgmlType::Q8_0 => dot_q8_0(row, x, t0),
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => unreachable!("{ty} rows are not multiplied in integers"),
    }
}

/// Byte masks that copy 16-bit element `j` of each 128-bit lane to the whole lane.
static BROADCAST_I16: [[u8; 32]; 8] = {
    let mut table = [[0u8; 32]; 8];
    let mut j = 0;
    while j < 8 {
        let mut i = 0;
        while i < 32 {
            table[j][i] = (2 * j + i % 2) as u8;
            i += 1;
        }
        j += 1;
    }
    table
};

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load256(bytes: &[u8], at: usize) -> __m256i {
    let bytes: &[u8; 32] = bytes[at..at + 32].try_into().expect("32 bytes");
    // SAFETY: the array is 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load128(bytes: &[u8], at: usize) -> __m128i {
    let bytes: &[u8; 16] = bytes[at..at + 16].try_into().expect("16 bytes");
    // SAFETY: the array is 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_i8(q: &[i8; 256], at: usize) -> __m256i {
    load256(bytemuck::cast_slice(q), at)
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn f16_to_f32(block: &[u8], at: usize) -> f32 {
    let bits = i32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_ps(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// The 12 packed bytes of Q4_K and Q5_K: eight 6-bit scales in the low eight bytes, eight minima in the high ones.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn k_scales_mins(block: &[u8]) -> __m128i {
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (a, b, c) = (word(4), word(8), word(12));
    let (low, top) = (0x3f3f_3f3f, 0x0f0f_0f0f);
    let scales = u64::from(a & low) | u64::from(c & top | (a >> 6 & 0x0303_0303) << 4) << 32;
    let mins = u64::from(b & low) | u64::from(c >> 4 & top | (b >> 6 & 0x0303_0303) << 4) << 32;
    _mm_set_epi64x(mins as i64, scales as i64)
}

/// A K-quant with packed 6-bit scales and minima per 32 weights.
pub(super) trait SuperBlock {
    const BYTES: usize;
    /// Sub-blocks `2i` and `2i + 1` of a block.
    fn codes(block: &[u8], i: usize) -> (__m256i, __m256i);
}

pub(super) struct Q4K;
impl SuperBlock for Q4K {
    const BYTES: usize = 144;
    #[inline(always)]
    fn codes(block: &[u8], i: usize) -> (__m256i, __m256i) {
        // SAFETY: only row kernels call this, inside code compiled for AVX2.
        unsafe {
            let low = _mm256_set1_epi8(15);
            let qs = load256(block, 16 + 32 * i);
            (_mm256_and_si256(qs, low), _mm256_and_si256(_mm256_srli_epi16::<4>(qs), low))
        }
    }
}

pub(super) struct Q5K;
impl SuperBlock for Q5K {
    const BYTES: usize = 176;
    #[inline(always)]
    fn codes(block: &[u8], i: usize) -> (__m256i, __m256i) {
        // SAFETY: only row kernels call this, inside code compiled for AVX2.
        unsafe {
            let (low, bit) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
            let qs = load256(block, 48 + 32 * i);
            // Bits 2i and 2i + 1 of each byte, moved to bit 4.
            let high = _mm256_srl_epi16(load256(block, 16), _mm_cvtsi32_si128(2 * i as i32));
            let first = _mm256_and_si256(_mm256_slli_epi16::<4>(high), bit);
            let second = _mm256_and_si256(_mm256_slli_epi16::<3>(high), bit);
            (
                _mm256_or_si256(_mm256_and_si256(qs, low), first),
                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(qs), low), second),
            )
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_super<B: SuperBlock, const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let mut sums = [_mm256_setzero_ps(); N];
    let mut mins = [_mm_setzero_ps(); N];
    for (g, block) in row.chunks_exact(B::BYTES).enumerate() {
        let (d, dmin) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
        let packed = k_scales_mins(block);
        let scales = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(packed));
        let min = _mm_cvtepu8_epi16(_mm_srli_si128::<8>(packed));
        let xs: [_; N] = std::array::from_fn(|t| x.group(g, t0 + t));
        let mut products = [_mm256_setzero_si256(); N];
        for i in 0..4 {
            let (first, second) = B::codes(block, i);
            let scale0 = _mm256_shuffle_epi8(scales, load256(&BROADCAST_I16[2 * i], 0));
            let scale1 = _mm256_shuffle_epi8(scales, load256(&BROADCAST_I16[2 * i + 1], 0));
            for t in 0..N {
                let p0 = _mm256_maddubs_epi16(first, load_i8(xs[t].q, 64 * i));
                let p1 = _mm256_maddubs_epi16(second, load_i8(xs[t].q, 64 * i + 32));
                let p = _mm256_add_epi32(_mm256_madd_epi16(p0, scale0), _mm256_madd_epi16(p1, scale1));
                products[t] = _mm256_add_epi32(products[t], p);
            }
        }
        for t in 0..N {
            let dx = xs[t].scale[0];
            sums[t] = _mm256_fmadd_ps(_mm256_set1_ps(d * dx), _mm256_cvtepi32_ps(products[t]), sums[t]);
            let m = _mm_madd_epi16(min, load128(bytemuck::cast_slice(xs[t].sum32), 0));
            mins[t] = _mm_fmadd_ps(_mm_set1_ps(dmin * dx), _mm_cvtepi32_ps(m), mins[t]);
        }
    }
    std::array::from_fn(|t| sum_ps(_mm256_sub_ps(sums[t], _mm256_zextps128_ps256(mins[t]))))
}

/// Even-numbered scales to the low half, odd ones to the high half: after widening, each lane holds its own.
#[inline]
#[target_feature(enable = "avx2")]
fn even_odd_bytes() -> __m128i {
    _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q6_k<const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let (low, top) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    let mut sums = [_mm256_setzero_ps(); N];
    for (g, block) in row.chunks_exact(210).enumerate() {
        let d = f16_to_f32(block, 208);
        let packed = load128(block, 192);
        let scales = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(packed, even_odd_bytes()));
        let in_order = _mm256_cvtepi8_epi16(packed);
        let xs: [_; N] = std::array::from_fn(|t| x.group(g, t0 + t));
        let mut products = [_mm256_setzero_si256(); N];
        for half in 0..2 {
            let (a, b) = (load256(block, 64 * half), load256(block, 64 * half + 32));
            let high = load256(block, 128 + 32 * half);
            let codes = [
                _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16::<4>(high), top)),
                _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16::<2>(high), top)),
                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(a), low), _mm256_and_si256(high, top)),
                _mm256_or_si256(
                    _mm256_and_si256(_mm256_srli_epi16::<4>(b), low),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(high), top),
                ),
            ];
            for (i, codes) in codes.into_iter().enumerate() {
                let j = 4 * half + i;
                let scale = _mm256_shuffle_epi8(scales, load256(&BROADCAST_I16[j], 0));
                for t in 0..N {
                    let p = _mm256_maddubs_epi16(codes, load_i8(xs[t].q, 32 * j));
                    products[t] = _mm256_add_epi32(products[t], _mm256_madd_epi16(p, scale));
                }
            }
        }
        for t in 0..N {
            // The codes are 32 too large.
            let m = _mm256_madd_epi16(in_order, load256(bytemuck::cast_slice(xs[t].sum16), 0));
            let exact = _mm256_sub_epi32(products[t], _mm256_slli_epi32::<5>(m));
            sums[t] = _mm256_fmadd_ps(_mm256_set1_ps(d * xs[t].scale[0]), _mm256_cvtepi32_ps(exact), sums[t]);
        }
    }
    std::array::from_fn(|t| sum_ps(sums[t]))
}

/// A type with 32-weight blocks and unsigned codes: `w = d · code + m`.
pub(super) trait SmallBlock {
    const BYTES: usize;
    fn codes(block: &[u8]) -> __m256i;
    fn d_m(block: &[u8]) -> (f32, f32);
}

/// 16 bytes to 32 codes: low nibbles, then high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(block: &[u8], at: usize) -> __m256i {
    let qs = load128(block, at);
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(qs), qs);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// 16 in every byte whose bit of the 32-bit mask at `at` is set.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(block: &[u8], at: usize) -> __m256i {
    let mask = i32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let spread = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(mask), spread);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

macro_rules! small_block {
    ($name:ident, $bytes:literal, $qs:literal, $high:expr, $offset:expr) => {
        pub(super) struct $name;
        impl SmallBlock for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            fn codes(block: &[u8]) -> __m256i {
                let high: Option<usize> = $high;
                // SAFETY: only row kernels call this, inside code compiled for AVX2.
                unsafe {
                    match high {
                        Some(at) => _mm256_or_si256(nibbles(block, $qs), fifth_bits(block, at)),
                        None => nibbles(block, $qs),
                    }
                }
            }
            #[inline(always)]
            fn d_m(block: &[u8]) -> (f32, f32) {
                let offset: Option<f32> = $offset;
                // SAFETY: only row kernels call this, inside code compiled for AVX2 and F16C.
                let d = unsafe { f16_to_f32(block, 0) };
                // SAFETY: as above.
                (d, offset.map_or_else(|| unsafe { f16_to_f32(block, 2) }, |o| o * d))
            }
        }
    };
}
small_block!(Q40, 18, 2, None, Some(-8.0));
small_block!(Q41, 20, 4, None, None);
small_block!(Q50, 22, 6, Some(2), Some(-16.0));
small_block!(Q51, 24, 8, Some(4), None);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_small<B: SmallBlock, const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); N];
    let mut offsets = [0.0f32; N];
    for (g, blocks) in row.chunks(8 * B::BYTES).enumerate() {
        let xs: [_; N] = std::array::from_fn(|t| x.group(g, t0 + t));
        for (b, block) in blocks.chunks_exact(B::BYTES).enumerate() {
            let codes = B::codes(block);
            let (d, m) = B::d_m(block);
            for t in 0..N {
                let p = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, load_i8(xs[t].q, 32 * b)), ones);
                sums[t] = _mm256_fmadd_ps(_mm256_set1_ps(d * xs[t].scale[b]), _mm256_cvtepi32_ps(p), sums[t]);
                offsets[t] += m * xs[t].total32[b];
            }
        }
    }
    std::array::from_fn(|t| sum_ps(sums[t]) + offsets[t])
}

/// Q8_0's codes are signed: the product is taken as |w| · (x with w's sign).
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q8_0<const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); N];
    for (g, blocks) in row.chunks(8 * 34).enumerate() {
        let xs: [_; N] = std::array::from_fn(|t| x.group(g, t0 + t));
        for (b, block) in blocks.chunks_exact(34).enumerate() {
            let d = f16_to_f32(block, 0);
            let w = load256(block, 2);
            let magnitude = _mm256_abs_epi8(w);
            for t in 0..N {
                let signed = _mm256_sign_epi8(load_i8(xs[t].q, 32 * b), w);
                let p = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed), ones);
                sums[t] = _mm256_fmadd_ps(_mm256_set1_ps(d * xs[t].scale[b]), _mm256_cvtepi32_ps(p), sums[t]);
            }
        }
    }
    std::array::from_fn(|t| sum_ps(sums[t]))
}
