//! Row kernels in AVX2: a weight row times one to four tokens, see `rows`.
//!
//! Codes are unsigned bytes and activations signed ones, as `vpmaddubsw` wants them; what a type subtracts from its
//! codes comes back through the sums of the activations. No pair overflows 16 bits: 2 · 63 · 127 < 2¹⁵.

use super::activation::QuantizedRows;
use super::rows::RowBlock;
use crate::gguf::GgmlType;
use std::arch::x86_64::*;

/// `out[i][r] = row r · x[t0 + i]` for `N` tokens, see `rows::dot_rows`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_rows<const N: usize>(rows: RowBlock<'_>, x: &QuantizedRows, t0: usize, out: &mut [f32]) {
    let n_rows = rows.data.len() / rows.row_bytes;
    assert!(out.len() >= N * n_rows);
    for (r, row) in rows.data.chunks_exact(rows.row_bytes).enumerate() {
        let sums: [f32; N] = match rows.ty {
            GgmlType::Q4_K => dot_super::<Q4K, N>(row, x, t0),
            GgmlType::Q5_K => dot_super::<Q5K, N>(row, x, t0),
            GgmlType::Q6_K => dot_q6_k(row, x, t0),
            GgmlType::Q4_0 => dot_small::<Q40, N>(row, x, t0),
            GgmlType::Q4_1 => dot_small::<Q41, N>(row, x, t0),
            GgmlType::Q5_0 => dot_small::<Q50, N>(row, x, t0),
            GgmlType::Q5_1 => dot_small::<Q51, N>(row, x, t0),
            GgmlType::Q8_0 => dot_q8_0(row, x, t0),
            ty => unreachable!("{ty} rows are not multiplied in integers"),
        };
        for (t, sum) in sums.into_iter().enumerate() {
            out[t * n_rows + r] = sum;
        }
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
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(bits as i16)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_ps(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// How far ahead of their use weights are fetched, in bytes. The hardware's own prefetching stops at each page.
const PREFETCH_BYTES: usize = 2048;

/// Fetches the `bytes` that lie [`PREFETCH_BYTES`] behind the start of `block`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch_behind(block: &[u8], bytes: usize) {
    for at in (0..bytes).step_by(64) {
        // A prefetch never faults, wherever it points.
        _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(PREFETCH_BYTES + at).cast());
    }
}

/// The 12 packed bytes of Q4_K and Q5_K as 16-bit numbers: scales 0–3, minima 0–3 in the low lane, scales 4–7, minima
/// 4–7 in the high one.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn k_scales_mins(block: &[u8]) -> __m256i {
    let first = u64::from_le_bytes(block[4..12].try_into().expect("8 bytes"));
    let last = u64::from(u32::from_le_bytes(block[12..16].try_into().expect("4 bytes")));
    let low = first & 0x3f3f_3f3f_3f3f_3f3f;
    let nibbles = (last | last << 28) & 0x0f0f_0f0f_0f0f_0f0f;
    let high = nibbles | first >> 2 & 0x3030_3030_3030_3030;
    _mm256_cvtepu8_epi16(_mm_set_epi64x(high as i64, low as i64))
}

/// `d` and `dmin` of a Q4_K or Q5_K block, times `scale`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scaled_d_dmin(block: &[u8], scale: f32) -> (__m256, __m256) {
    let both = i32::from_le_bytes(block[..4].try_into().expect("4 bytes"));
    let scaled = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(both)), _mm_set1_ps(scale));
    (_mm256_broadcastss_ps(scaled), _mm256_broadcastss_ps(_mm_movehdup_ps(scaled)))
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
    for (g, block) in row.chunks_exact(B::BYTES).enumerate() {
        prefetch_behind(block, B::BYTES);
        let scales_mins = k_scales_mins(block);
        // Each scale twice, as one 32-bit number: broadcasting it from memory takes no arithmetic unit. The compiler
        // would shuffle registers instead if it saw through the store.
        let mut scales = [0i32; 8];
        // SAFETY: the array is 32 writable bytes; the store needs no alignment.
        unsafe {
            let pairs = _mm256_unpacklo_epi16(scales_mins, scales_mins);
            _mm256_storeu_si256(scales.as_mut_ptr().cast(), pairs);
        }
        let scales = std::hint::black_box(&scales);
        let min = _mm256_unpackhi_epi16(scales_mins, scales_mins);
        let xs = x.groups::<N>(g, t0);
        let mut products = [_mm256_setzero_si256(); N];
        for i in 0..4 {
            let (first, second) = B::codes(block, i);
            let (scale0, scale1) = (_mm256_set1_epi32(scales[2 * i]), _mm256_set1_epi32(scales[2 * i + 1]));
            for t in 0..N {
                let p0 = _mm256_maddubs_epi16(first, load_i8(xs[t].q, 64 * i));
                let p1 = _mm256_maddubs_epi16(second, load_i8(xs[t].q, 64 * i + 32));
                let p = _mm256_add_epi32(_mm256_madd_epi16(p0, scale0), _mm256_madd_epi16(p1, scale1));
                products[t] = _mm256_add_epi32(products[t], p);
            }
        }
        for t in 0..N {
            let (d, dmin) = scaled_d_dmin(block, xs[t].scale[0]);
            let m = _mm256_madd_epi16(min, load256(bytemuck::cast_slice(xs[t].sum16), 0));
            sums[t] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(products[t]), sums[t]);
            sums[t] = _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(m), sums[t]);
        }
    }
    let mut out = [0.0; N];
    for t in 0..N {
        out[t] = sum_ps(sums[t]);
    }
    out
}

/// Even-numbered scales to the low half, odd ones to the high half: after widening, each lane holds its own.
#[inline]
#[target_feature(enable = "avx2")]
fn even_odd_bytes() -> __m128i {
    _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q6_k<const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let (low, top) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    // Hidden from the compiler, which would turn one shuffle by a known mask into several.
    let masks = std::hint::black_box(&BROADCAST_I16);
    let mut sums = [_mm256_setzero_ps(); N];
    for (g, block) in row.chunks_exact(210).enumerate() {
        prefetch_behind(block, 210);
        let d = f16_to_f32(block, 208);
        let packed = load128(block, 192);
        let scales = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(packed, even_odd_bytes()));
        let in_order = _mm256_cvtepi8_epi16(packed);
        let xs = x.groups::<N>(g, t0);
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
                let scale = _mm256_shuffle_epi8(scales, load256(&masks[j], 0));
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
    let mut out = [0.0; N];
    for t in 0..N {
        out[t] = sum_ps(sums[t]);
    }
    out
}

/// A type with 32-weight blocks and unsigned codes: `w = d · code + m`.
pub(super) trait SmallBlock {
    const BYTES: usize;
    /// `m = OFFSET · d`, or stored behind `d` where `None`.
    const OFFSET: Option<f32>;
    fn codes(block: &[u8]) -> __m256i;
}

/// Bytes of eight blocks of the largest type.
pub(super) const MAX_GROUP_BYTES: usize = 8 * 34;

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
            const OFFSET: Option<f32> = $offset;
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
        }
    };
}
small_block!(Q40, 18, 2, None, Some(-8.0));
small_block!(Q41, 20, 4, None, None);
small_block!(Q50, 22, 6, Some(2), Some(-16.0));
small_block!(Q51, 24, 8, Some(4), None);

/// The f16 at byte `at` of each of eight blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn eight_f16<const BYTES: usize>(blocks: &[u8], at: usize) -> __m256 {
    assert!(blocks.len() >= 8 * BYTES);
    let half = |b: usize| i16::from_le_bytes([blocks[b * BYTES + at], blocks[b * BYTES + at + 1]]);
    _mm256_cvtph_ps(_mm_set_epi16(half(7), half(6), half(5), half(4), half(3), half(2), half(1), half(0)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_ps(v: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: the array is 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_ps(v: &[f32]) -> __m256 {
    let v: &[f32; 8] = v.try_into().expect("eight numbers");
    // SAFETY: the array is 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}

/// Calls `whole` with every group of eight blocks of a row; a last short group is filled up with zero blocks.
macro_rules! each_group {
    ($row:expr, $bytes:expr, |$g:ident, $blocks:ident| $body:block) => {
        let mut groups = $row.chunks_exact(8 * $bytes);
        let mut $g = 0;
        for $blocks in groups.by_ref() {
            $body
            $g += 1;
        }
        let rest = groups.remainder();
        if !rest.is_empty() {
            let mut padded = [0u8; MAX_GROUP_BYTES];
            padded[..rest.len()].copy_from_slice(rest);
            let $blocks = &padded[..8 * $bytes];
            $body
        }
    };
}
pub(super) use each_group;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_small<B: SmallBlock, const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    match B::BYTES {
        18 => dot_small_of::<B, 18, N>(row, x, t0),
        20 => dot_small_of::<B, 20, N>(row, x, t0),
        22 => dot_small_of::<B, 22, N>(row, x, t0),
        _ => dot_small_of::<B, 24, N>(row, x, t0),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_small_of<B: SmallBlock, const BYTES: usize, const N: usize>(
    row: &[u8],
    x: &QuantizedRows,
    t0: usize,
) -> [f32; N] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); N];
    let mut offsets = [_mm256_setzero_ps(); N];
    each_group!(row, BYTES, |g, blocks| {
        prefetch_behind(blocks, 8 * BYTES);
        let xs = x.groups::<N>(g, t0);
        let d = eight_f16::<BYTES>(blocks, 0);
        let m = match B::OFFSET {
            Some(offset) => _mm256_mul_ps(d, _mm256_set1_ps(offset)),
            None => eight_f16::<BYTES>(blocks, 2),
        };
        let mut scales = [[0.0f32; 8]; N];
        for t in 0..N {
            scales[t] = store_ps(_mm256_mul_ps(d, load_ps(xs[t].scale)));
            offsets[t] = _mm256_fmadd_ps(m, load_ps(xs[t].total32), offsets[t]);
        }
        // As in `dot_super`: read back from memory, so that broadcasting is a load.
        let scales = std::hint::black_box(&scales);
        for (b, block) in blocks.chunks_exact(BYTES).enumerate() {
            let codes = B::codes(block);
            for t in 0..N {
                let p = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, load_i8(xs[t].q, 32 * b)), ones);
                sums[t] = _mm256_fmadd_ps(_mm256_set1_ps(scales[t][b]), _mm256_cvtepi32_ps(p), sums[t]);
            }
        }
    });
    let mut out = [0.0; N];
    for t in 0..N {
        out[t] = sum_ps(_mm256_add_ps(sums[t], offsets[t]));
    }
    out
}

/// Q8_0's codes are signed: the product is taken as |w| · (x with w's sign).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q8_0<const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_ps(); N];
    each_group!(row, 34, |g, blocks| {
        prefetch_behind(blocks, 8 * 34);
        let xs = x.groups::<N>(g, t0);
        let d = eight_f16::<34>(blocks, 0);
        let mut scales = [[0.0f32; 8]; N];
        for t in 0..N {
            scales[t] = store_ps(_mm256_mul_ps(d, load_ps(xs[t].scale)));
        }
        let scales = std::hint::black_box(&scales);
        for (b, block) in blocks.chunks_exact(34).enumerate() {
            let w = load256(block, 2);
            let magnitude = _mm256_abs_epi8(w);
            for t in 0..N {
                let signed = _mm256_sign_epi8(load_i8(xs[t].q, 32 * b), w);
                let p = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed), ones);
                sums[t] = _mm256_fmadd_ps(_mm256_set1_ps(scales[t][b]), _mm256_cvtepi32_ps(p), sums[t]);
            }
        }
    });
    let mut out = [0.0; N];
    for t in 0..N {
        out[t] = sum_ps(sums[t]);
    }
    out
}
