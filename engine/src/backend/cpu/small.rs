//! Row kernels of the types with a scale per 32 weights, once for AVX2 and AVX-512 VNNI: they differ only in how 32
//! codes meet 32 activations ([`ByteDot`]). Callers: `avx2::dot_rows` and `avx512::dot_rows`, which are compiled for
//! their instructions; everything here is inlined into them, and unsafe for that reason alone.

use super::activation::{Group, QuantizedRows};
use super::avx2::{f16_to_f32, load_i8, load_ps, load128, load256, prefetch_behind, store_ps, store256, sum_ps};
use super::group::{MXFP4_CODES, SmallGroup};
use crate::gguf::GgmlType;
use crate::quant::{IQ4_VALUES, iq4_xs_scale};
use std::arch::x86_64::*;

/// Sums of four products each, of unsigned codes and signed activations, as eight 32-bit numbers.
pub(super) trait ByteDot {
    /// # Safety
    /// Only inside code compiled for the instructions.
    unsafe fn dot(codes: __m256i, q: __m256i) -> __m256i;
}

/// AVX2: `vpmaddubsw` sums pairs in 16 bits, which hold 2 · 128 · 127.
pub(super) struct Maddubs;
impl ByteDot for Maddubs {
    #[inline(always)]
    unsafe fn dot(codes: __m256i, q: __m256i) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), _mm256_set1_epi16(1)) }
    }
}

/// AVX-512 VNNI: one instruction.
pub(super) struct Dpbusd;
impl ByteDot for Dpbusd {
    #[inline(always)]
    unsafe fn dot(codes: __m256i, q: __m256i) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, q) }
    }
}

/// A type with a scale per 32 weights.
trait SmallType {
    /// Bytes of 256 weights.
    const GROUP_BYTES: usize;
    /// Signed codes: `w = d · code`. Else codes are unsigned and `w = d · code + m`.
    const SIGNED: bool;
    /// The scales of a group's eight blocks.
    ///
    /// # Safety
    /// Only inside code compiled for AVX2 and F16C.
    unsafe fn scales(group: &[u8]) -> __m256;
    /// `m` of the eight blocks, from their scales or the file; for signed codes what makes up for 128 more.
    ///
    /// # Safety
    /// Only inside code compiled for AVX2 and F16C.
    unsafe fn minima(group: &[u8], d: __m256) -> __m256;
    /// The codes of block `b`.
    ///
    /// # Safety
    /// Only inside code compiled for AVX2.
    unsafe fn codes(group: &[u8], b: usize) -> __m256i;
}

/// Most bytes of a group.
const MAX_GROUP_BYTES: usize = 8 * 34;

/// [`dot_small`] of a type known at run time.
///
/// # Safety
/// As [`dot_small`].
#[inline(always)]
pub(super) unsafe fn dot_small_type<D: ByteDot, const N: usize>(
    ty: GgmlType,
    row: &[u8],
    x: &QuantizedRows,
    t0: usize,
) -> [f32; N] {
    // SAFETY: by the caller's promise.
    unsafe {
        match ty {
            GgmlType::Q4_0 => dot_small::<Q40, D, N>(row, x, t0),
            GgmlType::Q4_1 => dot_small::<Q41, D, N>(row, x, t0),
            GgmlType::Q5_0 => dot_small::<Q50, D, N>(row, x, t0),
            GgmlType::Q5_1 => dot_small::<Q51, D, N>(row, x, t0),
            GgmlType::Q8_0 => dot_small::<Q80, D, N>(row, x, t0),
            GgmlType::Q4_K => dot_small::<Q4K, D, N>(row, x, t0),
            GgmlType::Q5_K => dot_small::<Q5K, D, N>(row, x, t0),
            GgmlType::IQ4_NL => dot_small::<Iq4Nl, D, N>(row, x, t0),
            GgmlType::IQ4_XS => dot_small::<Iq4Xs, D, N>(row, x, t0),
            GgmlType::MXFP4 => dot_small::<Mxfp4, D, N>(row, x, t0),
            ty => unreachable!("{ty} rows are not multiplied in integers"),
        }
    }
}

/// [`SmallGroup::unpack`] in vectors.
///
/// # Safety
/// Only inside code compiled for AVX2 and F16C.
#[inline(always)]
pub(super) unsafe fn unpack_small_type(ty: GgmlType, blocks: &[u8], group: &mut SmallGroup) {
    // SAFETY: by the caller's promise.
    unsafe {
        match ty {
            GgmlType::Q4_0 => unpack::<Q40>(blocks, group),
            GgmlType::Q4_1 => unpack::<Q41>(blocks, group),
            GgmlType::Q5_0 => unpack::<Q50>(blocks, group),
            GgmlType::Q5_1 => unpack::<Q51>(blocks, group),
            GgmlType::Q8_0 => unpack::<Q80>(blocks, group),
            GgmlType::Q4_K => unpack::<Q4K>(blocks, group),
            GgmlType::Q5_K => unpack::<Q5K>(blocks, group),
            GgmlType::IQ4_NL => unpack::<Iq4Nl>(blocks, group),
            GgmlType::IQ4_XS => unpack::<Iq4Xs>(blocks, group),
            GgmlType::MXFP4 => unpack::<Mxfp4>(blocks, group),
            ty => unreachable!("{ty} has no scales per 32 weights"),
        }
    }
}

/// # Safety
/// As [`unpack_small_type`].
#[inline(always)]
unsafe fn unpack<T: SmallType>(blocks: &[u8], group: &mut SmallGroup) {
    let mut padded = [0u8; MAX_GROUP_BYTES];
    let blocks = if blocks.len() == T::GROUP_BYTES {
        blocks
    } else {
        padded[..blocks.len()].copy_from_slice(blocks);
        &padded[..T::GROUP_BYTES]
    };
    // SAFETY: by the caller's promise.
    unsafe {
        for b in 0..8 {
            let codes = T::codes(blocks, b);
            let unsigned = if T::SIGNED { _mm256_xor_si256(codes, _mm256_set1_epi8(-128)) } else { codes };
            store256(&mut group.codes, 32 * b, unsigned);
        }
        let d = T::scales(blocks);
        group.d = store_ps(d);
        group.m = store_ps(T::minima(blocks, d));
    }
}

/// The sums of a row with `N` tokens from `t0` on.
///
/// # Safety
/// Only inside code compiled for AVX2, FMA and F16C, and what `D` needs.
#[inline(always)]
unsafe fn dot_small<T: SmallType, D: ByteDot, const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); N];
        let mut groups = row.chunks_exact(T::GROUP_BYTES);
        let mut g = 0;
        for group in groups.by_ref() {
            group_dot::<T, D, N>(group, x, g, t0, &mut sums);
            g += 1;
        }
        let rest = groups.remainder();
        if !rest.is_empty() {
            // A last short group is filled up with zero blocks.
            let mut padded = [0u8; MAX_GROUP_BYTES];
            padded[..rest.len()].copy_from_slice(rest);
            group_dot::<T, D, N>(&padded[..T::GROUP_BYTES], x, g, t0, &mut sums);
        }
        let mut out = [0.0; N];
        for t in 0..N {
            out[t] = sum_ps(sums[t]);
        }
        out
    }
}

/// # Safety
/// As [`dot_small`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "a block's number finds its codes, its scales and its activations")]
unsafe fn group_dot<T: SmallType, D: ByteDot, const N: usize>(
    group: &[u8],
    x: &QuantizedRows,
    g: usize,
    t0: usize,
    sums: &mut [__m256; N],
) {
    assert!(group.len() == T::GROUP_BYTES);
    // SAFETY: by the caller's promise.
    unsafe {
        prefetch_behind(group, T::GROUP_BYTES);
        let xs = x.groups::<N>(g, t0);
        let d = T::scales(group);
        // Each scale twice, to meet the scales of even and odd quads.
        let (front, back) = (_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
        let d_pairs = [_mm256_permutevar8x32_ps(d, front), _mm256_permutevar8x32_ps(d, back)];
        let mut scales = [[0i64; 8]; N];
        for t in 0..N {
            scales[t] = scaled_pairs(d_pairs, xs[t]);
            if !T::SIGNED {
                // All lanes are added in the end: it does not matter that these are blocks and the others quads.
                sums[t] = _mm256_fmadd_ps(T::minima(group, d), load_ps(&xs[t].total32), sums[t]);
            }
        }
        // Read back from memory, so that broadcasting a pair is a load and takes no arithmetic unit. The compiler
        // would shuffle registers instead if it saw through the store.
        let scales = std::hint::black_box(&scales);
        for b in 0..8 {
            let codes = T::codes(group, b);
            if T::SIGNED {
                // The product is taken as |w| · (x with w's sign).
                let magnitude = _mm256_abs_epi8(codes);
                for t in 0..N {
                    let p = D::dot(magnitude, _mm256_sign_epi8(load_i8(&xs[t].q, 32 * b), codes));
                    sums[t] = _mm256_fmadd_ps(broadcast_pair(scales[t][b]), _mm256_cvtepi32_ps(p), sums[t]);
                }
            } else {
                for t in 0..N {
                    let p = D::dot(codes, load_i8(&xs[t].q, 32 * b));
                    sums[t] = _mm256_fmadd_ps(broadcast_pair(scales[t][b]), _mm256_cvtepi32_ps(p), sums[t]);
                }
            }
        }
    }
}

/// The activations' scales times `d`, as pairs of f32.
#[inline]
#[target_feature(enable = "avx2")]
fn scaled_pairs(d_pairs: [__m256; 2], x: &Group) -> [i64; 8] {
    let scale = x.scale.as_flattened();
    let front = store_ps(_mm256_mul_ps(d_pairs[0], load_ps(&scale[..8])));
    let back = store_ps(_mm256_mul_ps(d_pairs[1], load_ps(&scale[8..])));
    bytemuck::cast([front, back])
}

/// A pair of f32 in every pair of lanes: lanes of sums are quads, even and odd ones in turn.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn broadcast_pair(pair: i64) -> __m256 {
    _mm256_castsi256_ps(_mm256_set1_epi64x(pair))
}

/// The f16 at byte `at` of each of eight blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn eight_f16(group: &[u8], block_bytes: usize, at: usize) -> __m256 {
    let half = |b: usize| i16::from_le_bytes([group[b * block_bytes + at], group[b * block_bytes + at + 1]]);
    _mm256_cvtph_ps(_mm_set_epi16(half(7), half(6), half(5), half(4), half(3), half(2), half(1), half(0)))
}

/// `2^(e − 128)` of the bytes at the start of eight blocks, see `quant::e8m0_half`.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_e8m0(group: &[u8], block_bytes: usize) -> __m256 {
    let e = |b: usize| i32::from(group[b * block_bytes]);
    let e = _mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7));
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
    let bits = _mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e));
    // All exponent and mantissa bits: not a number.
    let nan = _mm256_cmpeq_epi32(e, _mm256_set1_epi32(0xFF));
    _mm256_castsi256_ps(_mm256_or_si256(bits, nan))
}

/// 16 bytes to 32 codes: low nibbles, then high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(group: &[u8], at: usize) -> __m256i {
    let qs = load128(group, at);
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(qs), qs);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// The same through a table.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles_through(table: &[u8; 16], group: &[u8], at: usize) -> __m256i {
    let table = _mm256_broadcastsi128_si256(load128(table, 0));
    _mm256_shuffle_epi8(table, nibbles(group, at))
}

/// 16 in every byte whose bit of the 32-bit mask at `at` is set.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(group: &[u8], at: usize) -> __m256i {
    let mask = i32::from_le_bytes([group[at], group[at + 1], group[at + 2], group[at + 3]]);
    let spread = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(mask), spread);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

/// `d` times a number.
#[inline]
#[target_feature(enable = "avx2")]
fn times(d: __m256, by: f32) -> __m256 {
    _mm256_mul_ps(d, _mm256_set1_ps(by))
}

/// What 128 more in every code has to be made up for with.
const SIGNED_OFFSET: f32 = -128.0;

macro_rules! small_type {
    (
        $name:ident, $group_bytes:expr, signed $signed:literal,
        |$group:ident| $scales:expr, |$d:ident| $minima:expr, |$b:ident| $codes:expr
    ) => {
        struct $name;
        impl SmallType for $name {
            const GROUP_BYTES: usize = $group_bytes;
            const SIGNED: bool = $signed;
            #[inline(always)]
            unsafe fn scales($group: &[u8]) -> __m256 {
                // SAFETY: by the caller's promise.
                unsafe { $scales }
            }
            #[inline(always)]
            #[allow(unused_variables, reason = "minima come from the scales or from the file")]
            unsafe fn minima($group: &[u8], $d: __m256) -> __m256 {
                // SAFETY: by the caller's promise.
                unsafe { $minima }
            }
            #[inline(always)]
            unsafe fn codes($group: &[u8], $b: usize) -> __m256i {
                // SAFETY: by the caller's promise.
                unsafe { $codes }
            }
        }
    };
}
small_type!(Q40, 8 * 18, signed false, |group| eight_f16(group, 18, 0), |d| times(d, -8.0), |b| {
    nibbles(group, 18 * b + 2)
});
small_type!(Q41, 8 * 20, signed false, |group| eight_f16(group, 20, 0), |d| eight_f16(group, 20, 2), |b| {
    nibbles(group, 20 * b + 4)
});
small_type!(Q50, 8 * 22, signed false, |group| eight_f16(group, 22, 0), |d| times(d, -16.0), |b| {
    _mm256_or_si256(nibbles(group, 22 * b + 6), fifth_bits(group, 22 * b + 2))
});
small_type!(Q51, 8 * 24, signed false, |group| eight_f16(group, 24, 0), |d| eight_f16(group, 24, 2), |b| {
    _mm256_or_si256(nibbles(group, 24 * b + 8), fifth_bits(group, 24 * b + 4))
});
small_type!(Q80, 8 * 34, signed true, |group| eight_f16(group, 34, 0), |d| times(d, SIGNED_OFFSET), |b| {
    load256(group, 34 * b + 2)
});
small_type!(Iq4Nl, 8 * 18, signed true, |group| eight_f16(group, 18, 0), |d| times(d, SIGNED_OFFSET), |b| {
    nibbles_through(bytemuck::cast_ref(&IQ4_VALUES), group, 18 * b + 2)
});
small_type!(Mxfp4, 8 * 17, signed false, |group| eight_e8m0(group, 17), |d| times(d, -12.0), |b| {
    nibbles_through(&MXFP4_CODES, group, 17 * b + 1)
});
small_type!(Iq4Xs, 136, signed true, |group| iq4_xs_scales(group), |d| times(d, SIGNED_OFFSET), |b| {
    nibbles_through(bytemuck::cast_ref(&IQ4_VALUES), group, 8 + 16 * b)
});
small_type!(Q4K, 144, signed false, |group| k_scales(group), |d| k_minima(group), |b| {
    // Blocks 2i and 2i + 1 are the low and high nibbles of 32 bytes.
    let qs = load256(group, 16 + 32 * (b / 2));
    _mm256_and_si256(_mm256_srl_epi16(qs, _mm_cvtsi32_si128(4 * (b as i32 % 2))), _mm256_set1_epi8(15))
});
small_type!(Q5K, 176, signed false, |group| k_scales(group), |d| k_minima(group), |b| {
    let qs = load256(group, 48 + 32 * (b / 2));
    let low = _mm256_and_si256(_mm256_srl_epi16(qs, _mm_cvtsi32_si128(4 * (b as i32 % 2))), _mm256_set1_epi8(15));
    // Bit b of each byte is the fifth of block b.
    let bit = _mm256_srl_epi16(load256(group, 16), _mm_cvtsi32_si128(b as i32));
    _mm256_or_si256(low, _mm256_slli_epi16::<4>(_mm256_and_si256(bit, _mm256_set1_epi8(1))))
});

/// The 12 packed bytes of Q4_K and Q5_K as 16-bit numbers: eight scales, eight minima.
#[inline]
#[target_feature(enable = "avx2")]
fn k_scales_mins(group: &[u8]) -> __m256i {
    let first = u64::from_le_bytes(group[4..12].try_into().expect("8 bytes"));
    let last = u64::from(u32::from_le_bytes(group[12..16].try_into().expect("4 bytes")));
    // Scales 0–3 and minima 0–3, then scales 4–7 and minima 4–7.
    let low = first & 0x3f3f_3f3f_3f3f_3f3f;
    let nibbles = (last | last << 28) & 0x0f0f_0f0f_0f0f_0f0f;
    let high = nibbles | first >> 2 & 0x3030_3030_3030_3030;
    let in_turn = _mm256_cvtepu8_epi16(_mm_set_epi64x(high as i64, low as i64));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(in_turn)
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn k_scales(group: &[u8]) -> __m256 {
    let scales = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(k_scales_mins(group)));
    times(_mm256_cvtepi32_ps(scales), f16_to_f32(group, 0))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn k_minima(group: &[u8]) -> __m256 {
    let mins = _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(k_scales_mins(group)));
    times(_mm256_cvtepi32_ps(mins), -f16_to_f32(group, 2))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn iq4_xs_scales(group: &[u8]) -> __m256 {
    let mut scales = [0i32; 8];
    for (b, scale) in scales.iter_mut().enumerate() {
        *scale = i32::from(iq4_xs_scale(group, b));
    }
    times(_mm256_cvtepi32_ps(load256_i32(&scales)), f16_to_f32(group, 0))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load256_i32(v: &[i32; 8]) -> __m256i {
    load256(bytemuck::cast_slice(v), 0)
}
