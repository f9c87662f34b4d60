//! Row kernels in AVX2: a weight row times one to four tokens, see `rows`; those of the types with a scale per 32
//! weights are in `small`.
//!
//! Codes are unsigned bytes and activations signed ones, as `vpmaddubsw` wants them; what a type subtracts from its
//! codes comes back through the sums of the activations. No pair overflows 16 bits: 2 · 63 · 127 < 2¹⁵.

use super::activation::QuantizedRows;
use super::group::{SmallGroup, SuperGroup};
use super::group_sums::GroupSums;
use super::rows::{RowBlock, each_row};
use super::small::{Maddubs, dot_small_type, unpack_small_type};
use crate::gguf::GgmlType;
use std::arch::x86_64::*;
use std::ops::Range;

/// `out[i][r] = row r · x[tokens.start + i]`, see `rows::dot_rows`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_rows(rows: RowBlock<'_>, x: &QuantizedRows, tokens: Range<usize>, out: &mut [f32]) {
    each_row!(rows, tokens, out, |row, t, N| dot::<N>(rows.ty, row, x, t));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot<const N: usize>(ty: GgmlType, row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    match ty {
        GgmlType::Q2_K => dot_sixteens::<Q2K, N>(row, x, t0),
        GgmlType::Q3_K => dot_sixteens::<Q3K, N>(row, x, t0),
        GgmlType::Q4_K => dot_super::<Q4K, N>(row, x, t0),
        GgmlType::Q5_K => dot_super::<Q5K, N>(row, x, t0),
        GgmlType::Q6_K => dot_sixteens::<Q6K, N>(row, x, t0),
        // SAFETY: this function is compiled for the instructions.
        ty => unsafe { dot_small_type::<Maddubs, N>(ty, row, x, t0) },
    }
}

/// [`SuperGroup::unpack`] in vectors.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn unpack_super(ty: GgmlType, block: &[u8], group: &mut SuperGroup) {
    match ty {
        GgmlType::Q2_K => unpack_sixteens::<Q2K>(block, group),
        GgmlType::Q3_K => unpack_sixteens::<Q3K>(block, group),
        GgmlType::Q4_K => unpack_eights::<Q4K>(block, group),
        GgmlType::Q5_K => unpack_eights::<Q5K>(block, group),
        _ => unpack_sixteens::<Q6K>(block, group),
    }
}

/// [`SmallGroup::unpack`] in vectors.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unpack_small(ty: GgmlType, blocks: &[u8], group: &mut SmallGroup) {
    // SAFETY: this function is compiled for the instructions.
    unsafe { unpack_small_type(ty, blocks, group) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn unpack_eights<B: SuperBlock>(block: &[u8], group: &mut SuperGroup) {
    for i in 0..4 {
        let (first, second) = B::codes(block, i);
        store256(&mut group.codes, 64 * i, first);
        store256(&mut group.codes, 64 * i + 32, second);
    }
    let mut scales_mins = [0i16; 16];
    store256(bytemuck::cast_slice_mut(&mut scales_mins), 0, k_scales_mins(block));
    for j in 0..8 {
        let at = j / 4 * 8 + j % 4;
        group.scale[2 * j..2 * j + 2].fill(scales_mins[at]);
        group.min[2 * j..2 * j + 2].fill(scales_mins[at + 4]);
    }
    (group.d, group.dmin) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn unpack_sixteens<B: SixteenBlock>(block: &[u8], group: &mut SuperGroup) {
    for half in 0..2 {
        for (i, codes) in B::codes(block, half).into_iter().enumerate() {
            store256(&mut group.codes, 128 * half + 32 * i, codes);
        }
    }
    store256(bytemuck::cast_slice_mut(&mut group.scale), 0, _mm256_cvtepi8_epi16(B::scales(block)));
    store256(bytemuck::cast_slice_mut(&mut group.min), 0, _mm256_cvtepi8_epi16(B::mins(block)));
    group.d = f16_to_f32(block, B::D_AT);
    group.dmin = match B::OFFSET_LOG2 {
        Some(log2) => group.d * (1 << log2) as f32,
        None => f16_to_f32(block, B::D_AT + 2),
    };
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
pub(super) fn store256(bytes: &mut [u8], at: usize, v: __m256i) {
    let bytes: &mut [u8; 32] = (&mut bytes[at..at + 32]).try_into().expect("32 bytes");
    // SAFETY: the array is 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v) }
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
    let mut sums = GroupSums::<N>::new();
    for (g, block) in row.chunks_exact(B::BYTES).enumerate() {
        prefetch_behind(block, B::BYTES);
        let scales_mins = k_scales_mins(block);
        let xs = x.groups::<N>(g, t0);
        // Each scale twice, as one 32-bit number, times the token's factor: broadcasting it from memory takes no
        // arithmetic unit. The compiler would shuffle registers instead if it saw through the store.
        let mut scales = [[0i32; 8]; N];
        let pairs = _mm256_unpacklo_epi16(scales_mins, scales_mins);
        for t in 0..N {
            let scaled = _mm256_mullo_epi16(pairs, load256(bytemuck::cast_slice(xs[t].factor16), 0));
            store256(bytemuck::cast_slice_mut(&mut scales[t]), 0, scaled);
        }
        let scales = std::hint::black_box(&scales);
        let min = _mm256_unpackhi_epi16(scales_mins, scales_mins);
        let mut products = [_mm256_setzero_si256(); N];
        for i in 0..4 {
            let (first, second) = B::codes(block, i);
            for t in 0..N {
                let (scale0, scale1) = (_mm256_set1_epi32(scales[t][2 * i]), _mm256_set1_epi32(scales[t][2 * i + 1]));
                let p0 = _mm256_maddubs_epi16(first, load_i8(xs[t].q, 64 * i));
                let p1 = _mm256_maddubs_epi16(second, load_i8(xs[t].q, 64 * i + 32));
                let p = _mm256_add_epi32(_mm256_madd_epi16(p0, scale0), _mm256_madd_epi16(p1, scale1));
                products[t] = _mm256_add_epi32(products[t], p);
            }
        }
        let mut mins = [_mm256_setzero_si256(); N];
        for t in 0..N {
            mins[t] = _mm256_madd_epi16(min, load256(bytemuck::cast_slice(xs[t].sum16), 0));
        }
        sums.add(products, mins, (f16_to_f32(block, 0), f16_to_f32(block, 2)), xs);
    }
    sums.finish()
}

/// Even-numbered scales to the low half, odd ones to the high half: after widening, each lane holds its own.
#[inline]
#[target_feature(enable = "avx2")]
fn even_odd_bytes() -> __m128i {
    _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)
}

/// A K-quant with a scale per 16 weights.
pub(super) trait SixteenBlock {
    const BYTES: usize;
    /// What the codes are too large by, as a power of two; `None` where the type stores minima.
    const OFFSET_LOG2: Option<i32>;
    /// Byte of `d`; `dmin` stands behind it where there is one.
    const D_AT: usize;
    /// Sixteen scales, signed bytes.
    fn scales(block: &[u8]) -> __m128i;
    /// Sixteen minima, bytes.
    fn mins(block: &[u8]) -> __m128i;
    /// Four times 32 codes of a half.
    fn codes(block: &[u8], half: usize) -> [__m256i; 4];
}

pub(super) struct Q2K;
impl SixteenBlock for Q2K {
    const BYTES: usize = 84;
    const OFFSET_LOG2: Option<i32> = None;
    const D_AT: usize = 80;
    #[inline(always)]
    fn scales(block: &[u8]) -> __m128i {
        // SAFETY: only row kernels call this, inside code compiled for AVX2.
        unsafe { _mm_and_si128(load128(block, 0), _mm_set1_epi8(15)) }
    }
    #[inline(always)]
    fn mins(block: &[u8]) -> __m128i {
        // SAFETY: as above.
        unsafe { _mm_and_si128(_mm_srli_epi16::<4>(load128(block, 0)), _mm_set1_epi8(15)) }
    }
    #[inline(always)]
    fn codes(block: &[u8], half: usize) -> [__m256i; 4] {
        // SAFETY: as above.
        unsafe { two_bits(load256(block, 16 + 32 * half)) }
    }
}

pub(super) struct Q3K;
impl SixteenBlock for Q3K {
    const BYTES: usize = 110;
    const OFFSET_LOG2: Option<i32> = Some(2);
    const D_AT: usize = 108;
    #[inline(always)]
    fn scales(block: &[u8]) -> __m128i {
        let packed: [u32; 3] = std::array::from_fn(|i| {
            let at = 96 + 4 * i;
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        });
        let (low, high) = (0x0f0f_0f0f, 0x0303_0303);
        let four = |nibbles: u32, j: u32| (nibbles & low | (packed[2] >> (2 * j) & high) << 4) as i32;
        // SAFETY: as above.
        unsafe {
            let scales = _mm_setr_epi32(
                four(packed[0], 0),
                four(packed[1], 1),
                four(packed[0] >> 4, 2),
                four(packed[1] >> 4, 3),
            );
            _mm_sub_epi8(scales, _mm_set1_epi8(32))
        }
    }
    #[inline(always)]
    fn mins(block: &[u8]) -> __m128i {
        Self::scales(block)
    }
    #[inline(always)]
    fn codes(block: &[u8], half: usize) -> [__m256i; 4] {
        // SAFETY: as above.
        unsafe {
            let mut codes = two_bits(load256(block, 32 + 32 * half));
            // Bit 4·half + i of each byte, moved to bit 2.
            let high = _mm256_srl_epi16(load256(block, 0), _mm_cvtsi32_si128(4 * half as i32));
            let bit = _mm256_set1_epi8(4);
            codes[0] = _mm256_or_si256(codes[0], _mm256_and_si256(_mm256_slli_epi16::<2>(high), bit));
            codes[1] = _mm256_or_si256(codes[1], _mm256_and_si256(_mm256_slli_epi16::<1>(high), bit));
            codes[2] = _mm256_or_si256(codes[2], _mm256_and_si256(high, bit));
            codes[3] = _mm256_or_si256(codes[3], _mm256_and_si256(_mm256_srli_epi16::<1>(high), bit));
            codes
        }
    }
}

/// Four times 32 codes of two bits, lowest bits first.
#[inline]
#[target_feature(enable = "avx2")]
fn two_bits(qs: __m256i) -> [__m256i; 4] {
    let low = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(qs, low),
        _mm256_and_si256(_mm256_srli_epi16::<2>(qs), low),
        _mm256_and_si256(_mm256_srli_epi16::<4>(qs), low),
        _mm256_and_si256(_mm256_srli_epi16::<6>(qs), low),
    ]
}

pub(super) struct Q6K;
impl SixteenBlock for Q6K {
    const BYTES: usize = 210;
    const OFFSET_LOG2: Option<i32> = Some(5);
    const D_AT: usize = 208;
    #[inline(always)]
    fn scales(block: &[u8]) -> __m128i {
        // SAFETY: only row kernels call this, inside code compiled for AVX2.
        unsafe { load128(block, 192) }
    }
    #[inline(always)]
    fn mins(block: &[u8]) -> __m128i {
        Self::scales(block)
    }
    #[inline(always)]
    fn codes(block: &[u8], half: usize) -> [__m256i; 4] {
        // SAFETY: as above.
        unsafe {
            let (low, top) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
            let (a, b) = (load256(block, 64 * half), load256(block, 64 * half + 32));
            let high = load256(block, 128 + 32 * half);
            [
                _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16::<4>(high), top)),
                _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16::<2>(high), top)),
                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16::<4>(a), low), _mm256_and_si256(high, top)),
                _mm256_or_si256(
                    _mm256_and_si256(_mm256_srli_epi16::<4>(b), low),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(high), top),
                ),
            ]
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_sixteens<B: SixteenBlock, const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    // Hidden from the compiler, which would turn one shuffle by a known mask into several.
    let masks = std::hint::black_box(&BROADCAST_I16);
    let mut sums = GroupSums::<N>::new();
    for (g, block) in row.chunks_exact(B::BYTES).enumerate() {
        prefetch_behind(block, B::BYTES);
        let d = f16_to_f32(block, B::D_AT);
        let scales = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(B::scales(block), even_odd_bytes()));
        let mins = _mm256_cvtepi8_epi16(B::mins(block));
        let xs = x.groups::<N>(g, t0);
        let mut products = [_mm256_setzero_si256(); N];
        let mut scaled = [scales; N];
        for t in 0..N {
            // The factor of each 32 elements once per lane, in order.
            let twice = load256(bytemuck::cast_slice(xs[t].factor16), 0);
            let once = _mm256_srli_epi32::<16>(twice);
            let factors = _mm256_permute4x64_epi64::<0b10_00_10_00>(_mm256_packs_epi32(once, once));
            scaled[t] = _mm256_mullo_epi16(scales, factors);
        }
        for half in 0..2 {
            for (i, codes) in B::codes(block, half).into_iter().enumerate() {
                let j = 4 * half + i;
                let mask = load256(&masks[j], 0);
                for t in 0..N {
                    let scale = _mm256_shuffle_epi8(scaled[t], mask);
                    let p = _mm256_maddubs_epi16(codes, load_i8(xs[t].q, 32 * j));
                    products[t] = _mm256_add_epi32(products[t], _mm256_madd_epi16(p, scale));
                }
            }
        }
        let mut offsets = [_mm256_setzero_si256(); N];
        for t in 0..N {
            offsets[t] = _mm256_madd_epi16(mins, load256(bytemuck::cast_slice(xs[t].sum16), 0));
        }
        let dmin = match B::OFFSET_LOG2 {
            Some(log2) => d * (1 << log2) as f32,
            None => f16_to_f32(block, B::D_AT + 2),
        };
        sums.add(products, offsets, (d, dmin), xs);
    }
    sums.finish()
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
