//! Row kernels of the types with a scale per 32 weights, once for AVX2 and AVX-512 VNNI: they differ only in how 32
//! codes meet 32 activations ([`ByteDot`]). Callers: `avx2::dot_rows` and `avx512::dot_rows`, which are compiled for
//! their instructions; everything here is inlined into them, and unsafe for that reason alone.

use super::activation::QuantizedRows;
use super::avx2::{load_i8, load_ps, load128, load256, prefetch_behind, store_ps, store256, sum_ps};
use super::group::{MXFP4_CODES, SmallGroup};
use super::group_sums::sums_of_eight;
use crate::gguf::GgmlType;
use crate::quant::{IQ4_VALUES, iq4_xs_scale};
use std::arch::x86_64::*;

/// Sums of four products each, of unsigned codes and signed activations, times the activations' factors (one per pair),
/// as eight 32-bit numbers.
pub(super) trait ByteDot {
    /// Whether codes are taken as signed numbers where the type has such; else as unsigned ones, 128 more. As the level's
    /// panel kernels do.
    const SIGNS: bool;
    /// # Safety
    /// Only inside code compiled for the instructions.
    unsafe fn dot(codes: __m256i, q: __m256i, factors: __m256i) -> __m256i;
}

/// AVX2: `vpmaddubsw` sums pairs in 16 bits, which hold 2 · 128 · 127.
pub(super) struct Maddubs;
impl ByteDot for Maddubs {
    const SIGNS: bool = true;
    #[inline(always)]
    unsafe fn dot(codes: __m256i, q: __m256i, factors: __m256i) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), factors) }
    }
}

/// AVX-512 VNNI: one instruction for the products.
pub(super) struct Dpbusd;
impl ByteDot for Dpbusd {
    const SIGNS: bool = false;
    #[inline(always)]
    unsafe fn dot(codes: __m256i, q: __m256i, factors: __m256i) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe {
            let products = _mm256_dpbusd_epi32(_mm256_setzero_si256(), codes, q);
            // Both factors of a lane are the same: one of them, as 32 bits.
            _mm256_mullo_epi32(products, _mm256_srai_epi32::<16>(factors))
        }
    }
}

/// What a value is, beside `d · code`.
#[derive(Clone, Copy, PartialEq)]
enum Codes {
    /// Unsigned codes: `d · (code + offset)`.
    Offset(f32),
    /// Unsigned codes: `d · code + m` with `m` stored behind `d`.
    Minimum,
    /// Signed codes: `d · code`.
    Signed,
}

/// A type with a scale per 32 weights.
trait SmallType {
    /// Bytes of 256 weights.
    const GROUP_BYTES: usize;
    const CODES: Codes;
    /// The scales of a group's eight blocks.
    ///
    /// # Safety
    /// Only inside code compiled for AVX2 and F16C.
    unsafe fn scales(group: &[u8]) -> __m256;
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
            let unsigned = match T::CODES {
                Codes::Signed => _mm256_xor_si256(codes, _mm256_set1_epi8(-128)),
                _ => codes,
            };
            store256(&mut group.codes, 32 * b, unsigned);
        }
        let d = T::scales(blocks);
        group.d = store_ps(d);
        group.m = store_ps(minima::<T>(blocks, d));
    }
}

/// What is added to `d · code` of each block, with unsigned codes.
///
/// # Safety
/// As [`unpack_small_type`].
#[inline(always)]
unsafe fn minima<T: SmallType>(group: &[u8], d: __m256) -> __m256 {
    // SAFETY: by the caller's promise.
    unsafe {
        match T::CODES {
            Codes::Offset(offset) => _mm256_mul_ps(d, _mm256_set1_ps(offset)),
            Codes::Minimum => eight_f16(group, T::GROUP_BYTES / 8, 2),
            Codes::Signed => _mm256_mul_ps(d, _mm256_set1_ps(-128.0)),
        }
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
        let mut sums = [0.0; N];
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
        sums
    }
}

/// Adds a group's products to `sums`. The eight blocks of a token stand side by side from their integer sums on, and are
/// rounded and added as the panel kernels do it, so that a token gets the same bits from both.
///
/// # Safety
/// As [`dot_small`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "a block's number finds its codes and its activations")]
unsafe fn group_dot<T: SmallType, D: ByteDot, const N: usize>(
    group: &[u8],
    x: &QuantizedRows,
    g: usize,
    t0: usize,
    sums: &mut [f32; N],
) {
    assert!(group.len() == T::GROUP_BYTES);
    // SAFETY: by the caller's promise.
    unsafe {
        prefetch_behind(group, T::GROUP_BYTES);
        let xs = x.groups::<N>(g, t0);
        let signs = D::SIGNS && T::CODES == Codes::Signed;
        let d = T::scales(group);
        // Not used where codes keep their signs.
        let m = minima::<T>(group, d);
        let mut codes = [_mm256_setzero_si256(); 8];
        for b in 0..8 {
            let of_block = T::codes(group, b);
            let unsigned = T::CODES != Codes::Signed || D::SIGNS;
            codes[b] = if unsigned { of_block } else { _mm256_xor_si256(of_block, _mm256_set1_epi8(-128)) };
        }
        for t in 0..N {
            let mut products = [_mm256_setzero_si256(); 8];
            for b in 0..8 {
                let q = load_i8(xs[t].q, 32 * b);
                let factors = load256(bytemuck::cast_slice(xs[t].factor2), 32 * b);
                products[b] = if signs {
                    // |w| · (x with w's sign).
                    D::dot(_mm256_abs_epi8(codes[b]), _mm256_sign_epi8(q, codes[b]), factors)
                } else {
                    D::dot(codes[b], q, factors)
                };
            }
            let scaled = _mm256_mul_ps(d, load_ps(xs[t].scale));
            let mut values = _mm256_mul_ps(_mm256_cvtepi32_ps(sums_of_eight(products)), scaled);
            if !signs {
                values = _mm256_fmadd_ps(m, load_ps(xs[t].total32), values);
            }
            sums[t] += sum_ps(values);
        }
    }
}

/// The f16 at byte `at` of each of eight blocks.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn eight_f16(group: &[u8], block_bytes: usize, at: usize) -> __m256 {
    let half = |b: usize| i16::from_le_bytes([group[b * block_bytes + at], group[b * block_bytes + at + 1]]);
    _mm256_cvtph_ps(_mm_set_epi16(half(7), half(6), half(5), half(4), half(3), half(2), half(1), half(0)))
}

/// The bytes at the start of eight blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_bytes(group: &[u8], block_bytes: usize) -> __m256i {
    let e = |b: usize| i32::from(group[b * block_bytes]);
    _mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7))
}

/// `2^(e − 128)` of eight bytes, see `quant::e8m0_half`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn eight_e8m0(e: __m256i) -> __m256 {
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

macro_rules! small_type {
    ($name:ident, $block_bytes:literal, $codes:expr, |$group:ident| $scales:expr, |$at:ident| $block_codes:expr) => {
        struct $name;
        impl SmallType for $name {
            const GROUP_BYTES: usize = 8 * $block_bytes;
            const CODES: Codes = $codes;
            #[inline(always)]
            unsafe fn scales($group: &[u8]) -> __m256 {
                // SAFETY: by the caller's promise.
                unsafe { $scales }
            }
            #[inline(always)]
            unsafe fn codes($group: &[u8], b: usize) -> __m256i {
                let $at = b * $block_bytes;
                // SAFETY: by the caller's promise.
                unsafe { $block_codes }
            }
        }
    };
}
small_type!(Q40, 18, Codes::Offset(-8.0), |group| eight_f16(group, 18, 0), |at| nibbles(group, at + 2));
small_type!(Q41, 20, Codes::Minimum, |group| eight_f16(group, 20, 0), |at| nibbles(group, at + 4));
small_type!(Q50, 22, Codes::Offset(-16.0), |group| eight_f16(group, 22, 0), |at| {
    _mm256_or_si256(nibbles(group, at + 6), fifth_bits(group, at + 2))
});
small_type!(Q51, 24, Codes::Minimum, |group| eight_f16(group, 24, 0), |at| {
    _mm256_or_si256(nibbles(group, at + 8), fifth_bits(group, at + 4))
});
small_type!(Q80, 34, Codes::Signed, |group| eight_f16(group, 34, 0), |at| load256(group, at + 2));
small_type!(Iq4Nl, 18, Codes::Signed, |group| eight_f16(group, 18, 0), |at| {
    nibbles_through(bytemuck::cast_ref(&IQ4_VALUES), group, at + 2)
});
small_type!(Mxfp4, 17, Codes::Offset(-12.0), |group| eight_e8m0(eight_bytes(group, 17)), |at| {
    nibbles_through(&MXFP4_CODES, group, at + 1)
});

/// One block of 256 with eight scales.
struct Iq4Xs;
impl SmallType for Iq4Xs {
    const GROUP_BYTES: usize = 136;
    const CODES: Codes = Codes::Signed;
    #[inline(always)]
    unsafe fn scales(group: &[u8]) -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe {
            let scale = |b: usize| i32::from(iq4_xs_scale(group, b));
            let all = _mm256_setr_epi32(scale(0), scale(1), scale(2), scale(3), scale(4), scale(5), scale(6), scale(7));
            let d = super::avx2::f16_to_f32(group, 0);
            _mm256_mul_ps(_mm256_cvtepi32_ps(all), _mm256_set1_ps(d))
        }
    }
    #[inline(always)]
    unsafe fn codes(group: &[u8], b: usize) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { nibbles_through(bytemuck::cast_ref(&IQ4_VALUES), group, 8 + 16 * b) }
    }
}
