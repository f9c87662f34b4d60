//! Kernels of eight weight rows against one to four tokens at a time in AVX2, for `panel` and `packed`: these differ only
//! in where the codes of eight rows come from ([`SuperSource`], [`SmallSource`]).
//!
//! Products of codes and activations are summed in 16 bits for as long as they can't overflow (`RUN` steps, by the
//! width of the codes), and only then widened and scaled: that is what makes them cheaper than a row kernel.

use super::activation::{QuantizedRows, TileRef};
use super::avx2::{load_ps, load256, store256};
use super::panel::{STEPS, SmallPanel, SuperPanel};
use crate::gguf::GgmlType;
use std::arch::x86_64::*;

/// Eight rows of a K-quant's group, whose codes come in steps of four columns: `[row][4]` in a vector.
pub(super) trait SuperSource {
    /// Steps whose products are summed in 16 bits: 2, 4 or 8.
    const RUN: usize;
    /// Steps `8b + 2i` and the next.
    ///
    /// # Safety
    /// Only inside code compiled for AVX2, as everything here.
    unsafe fn codes(&self, b: usize, i: usize) -> (__m256i, __m256i);
    /// Each row's scale of columns `16j..16j + 16`, twice, as 16-bit numbers.
    ///
    /// # Safety
    /// As above.
    unsafe fn scale(&self, j: usize) -> __m256i;
    /// Each row's minima of columns `32b..32b + 16` and `32b + 16..32b + 32`, as 16-bit numbers.
    ///
    /// # Safety
    /// As above.
    unsafe fn min(&self, b: usize) -> __m256i;
    /// Each row's `d` and `dmin`.
    ///
    /// # Safety
    /// As above, and for F16C.
    unsafe fn d(&self) -> (__m256, __m256);
}

/// Eight rows of a group of a type with a scale per 32 weights.
pub(super) trait SmallSource {
    /// Whether codes are signed, and nothing is added to `d · code`.
    const SIGNED: bool;
    /// Blocks of 32 columns that there are, at most eight; the others count as zeros.
    fn n_blocks(&self) -> usize;
    /// Steps `2i` and `2i + 1` of block `b`.
    ///
    /// # Safety
    /// Only inside code compiled for AVX2, as everything here.
    unsafe fn codes(&self, b: usize, i: usize) -> (__m256i, __m256i);
    /// Each row's `d` of block `b`, and what is added to `d · code`.
    ///
    /// # Safety
    /// As above, and for F16C.
    unsafe fn d_m(&self, b: usize) -> (__m256, __m256);
}

/// A panel that was unpacked to bytes.
pub(super) struct Unpacked<'a, const RUN: usize>(pub(super) &'a SuperPanel<8>);

impl<const RUN: usize> SuperSource for Unpacked<'_, RUN> {
    const RUN: usize = RUN;
    #[inline(always)]
    unsafe fn codes(&self, b: usize, i: usize) -> (__m256i, __m256i) {
        // SAFETY: by the caller's promise.
        unsafe { (rows_at(&self.0.codes[8 * b + 2 * i]), rows_at(&self.0.codes[8 * b + 2 * i + 1])) }
    }
    #[inline(always)]
    unsafe fn scale(&self, j: usize) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { rows_at(&self.0.scale[j]) }
    }
    #[inline(always)]
    unsafe fn min(&self, b: usize) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { rows_at(&self.0.min[b]) }
    }
    #[inline(always)]
    unsafe fn d(&self) -> (__m256, __m256) {
        // SAFETY: by the caller's promise.
        unsafe { (load_ps(&self.0.d), load_ps(&self.0.dmin)) }
    }
}

/// As [`Unpacked`]; codes were made unsigned by adding 128 where they are signed.
pub(super) struct UnpackedSmall<'a, const SIGNED: bool>(pub(super) &'a SmallPanel<8>);

impl<const SIGNED: bool> SmallSource for UnpackedSmall<'_, SIGNED> {
    const SIGNED: bool = SIGNED;
    #[inline(always)]
    fn n_blocks(&self) -> usize {
        8
    }
    #[inline(always)]
    unsafe fn codes(&self, b: usize, i: usize) -> (__m256i, __m256i) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (first, second) = (rows_at(&self.0.codes[8 * b + 2 * i]), rows_at(&self.0.codes[8 * b + 2 * i + 1]));
            let offset = _mm256_set1_epi8(if SIGNED { -128 } else { 0 });
            (_mm256_xor_si256(first, offset), _mm256_xor_si256(second, offset))
        }
    }
    #[inline(always)]
    unsafe fn d_m(&self, b: usize) -> (__m256, __m256) {
        // SAFETY: by the caller's promise.
        unsafe { (load_ps(&self.0.d[b]), load_ps(&self.0.m[b])) }
    }
}

/// Lays the codes of `R` rows, a multiple of eight, out in steps of four columns: an 8 × 8 transposition of 32-bit
/// numbers for each eight rows and 32 columns.
#[target_feature(enable = "avx2")]
pub(super) fn interleave<const R: usize>(rows: [&[u8; 256]; R], codes: &mut [[[u8; 4]; R]; STEPS]) {
    const { assert!(R.is_multiple_of(8)) };
    for r in (0..R).step_by(8) {
        for (b, steps) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut x = [_mm256_setzero_si256(); 8];
            for i in 0..8 {
                x[i] = load256(rows[r + i], 32 * b);
            }
            let mut pairs = x;
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
            }
            let mut fours = pairs;
            for i in 0..2 {
                let p = &pairs[4 * i..4 * i + 4];
                fours[4 * i] = _mm256_unpacklo_epi64(p[0], p[2]);
                fours[4 * i + 1] = _mm256_unpackhi_epi64(p[0], p[2]);
                fours[4 * i + 2] = _mm256_unpacklo_epi64(p[1], p[3]);
                fours[4 * i + 3] = _mm256_unpackhi_epi64(p[1], p[3]);
            }
            for i in 0..4 {
                let low = _mm256_permute2x128_si256::<0x20>(fours[i], fours[4 + i]);
                let high = _mm256_permute2x128_si256::<0x31>(fours[i], fours[4 + i]);
                store256(steps[i][r..r + 8].as_flattened_mut(), 0, low);
                store256(steps[4 + i][r..r + 8].as_flattened_mut(), 0, high);
            }
        }
    }
}

/// Adds `panel · x[g]` to `sums`, `[token][8]`, for K-quants.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn super_panel(
    ty: GgmlType,
    panel: &SuperPanel<8>,
    x: &QuantizedRows,
    g: usize,
    t0: usize,
    sums: &mut [f32],
) {
    // SAFETY: this function is compiled for the instructions.
    unsafe {
        match ty {
            // 8 steps of pairs: 8 · 2 · 15 · 127 < 2¹⁵.
            GgmlType::Q4_K => super_tiles(&Unpacked::<8>(panel), x, g, t0, sums),
            // 4 · 2 · 31 · 127 < 2¹⁵; Q2_K and Q3_K have a scale per four steps.
            GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q5_K => super_tiles(&Unpacked::<4>(panel), x, g, t0, sums),
            // 2 · 2 · 63 · 127 < 2¹⁵.
            _ => super_tiles(&Unpacked::<2>(panel), x, g, t0, sums),
        }
    }
}

/// Adds `panel · x[g]` to `sums`, `[token][8]`, for types with a scale per 32 weights.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn small_panel(
    ty: GgmlType,
    panel: &SmallPanel<8>,
    x: &QuantizedRows,
    g: usize,
    t0: usize,
    sums: &mut [f32],
) {
    // SAFETY: this function is compiled for the instructions.
    unsafe {
        match ty {
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::MXFP4 => {
                small_tiles(&UnpackedSmall::<false>(panel), x, g, t0, sums)
            }
            _ => small_tiles(&UnpackedSmall::<true>(panel), x, g, t0, sums),
        }
    }
}

/// Runs `$tile::<_, T>` over all tokens of `sums`, `[token][8]`: four at a time, and what is left.
macro_rules! each_tile {
    ($tile:ident, $scales:literal, $w:ident, $x:ident, $g:ident, $t0:ident, $sums:ident) => {{
        let mut t = $t0;
        let mut fours = $sums.chunks_exact_mut(4 * 8);
        for sums in fours.by_ref() {
            $tile::<_, 4>($w, $x.tile::<4, $scales>($g, t), sums);
            t += 4;
        }
        let sums = fours.into_remainder();
        match sums.len() / 8 {
            3 => $tile::<_, 3>($w, $x.tile::<3, $scales>($g, t), sums),
            2 => $tile::<_, 2>($w, $x.tile::<2, $scales>($g, t), sums),
            1 => $tile::<_, 1>($w, $x.tile::<1, $scales>($g, t), sums),
            _ => {}
        }
    }};
}

/// Adds `w · x[g]` of the tokens from `t0` on to `sums`, `[token][8]`.
///
/// # Safety
/// Only inside code compiled for AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn super_tiles<S: SuperSource>(w: &S, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    // SAFETY: by the caller's promise.
    unsafe { each_tile!(super_tile, 1, w, x, g, t0, sums) }
}

/// As [`super_tiles`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn small_tiles<S: SmallSource>(w: &S, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    // SAFETY: by the caller's promise.
    unsafe { each_tile!(small_tile, 8, w, x, g, t0, sums) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn rows_at<T>(rows: &[T; 8]) -> __m256i {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: eight elements of four bytes are 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(rows.as_ptr().cast()) }
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_quad(q: &[i8; 256], step: usize) -> __m256i {
    let quads: &[[u8; 4]; STEPS] = bytemuck::cast_ref(q);
    _mm256_set1_epi32(i32::from_le_bytes(quads[step]))
}

/// A pair of 16-bit numbers in every lane: as one number of 32 bits, which takes only a load.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_pair<const N: usize>(values: &[i16; N], at: usize) -> __m256i {
    let pair: [i16; 2] = values[at..at + 2].try_into().expect("two numbers");
    _mm256_set1_epi32(bytemuck::cast(pair))
}

/// Adds the products of a tile to `sums`, `[T][8]`.
///
/// # Safety
/// As [`super_tiles`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "a token's number finds its sums and its activations")]
unsafe fn super_tile<S: SuperSource, const T: usize>(w: &S, x: TileRef<'_, T, 1>, sums: &mut [f32]) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut products = [_mm256_setzero_si256(); T];
        for b in 0..8 {
            for run in 0..8 / S::RUN {
                let mut narrow = [_mm256_setzero_si256(); T];
                for i in run * S::RUN / 2..(run + 1) * S::RUN / 2 {
                    add_products(&mut narrow, w.codes(b, i), x.q, 8 * b + 2 * i);
                }
                let scale = w.scale(2 * b + run * S::RUN / 4);
                for t in 0..T {
                    // Both are small: their product fits 16 bits.
                    let scaled = _mm256_mullo_epi16(scale, broadcast_pair(&x.factor16[t], 2 * b));
                    products[t] = _mm256_add_epi32(products[t], _mm256_madd_epi16(narrow[t], scaled));
                }
            }
        }
        let mut mins = [_mm256_setzero_si256(); T];
        for b in 0..8 {
            let min = w.min(b);
            for t in 0..T {
                mins[t] = _mm256_add_epi32(mins[t], _mm256_madd_epi16(min, broadcast_pair(&x.sum16[t], 2 * b)));
            }
        }
        let (d, dmin) = w.d();
        for t in 0..T {
            let below = _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(mins[t]));
            let value = _mm256_fmsub_ps(d, _mm256_cvtepi32_ps(products[t]), below);
            add(&mut sums[t * 8..t * 8 + 8], value, x.scale[t][0]);
        }
    }
}

/// Adds the products of steps `step` and the next to sums of 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn add_products<const T: usize>(
    narrow: &mut [__m256i; T],
    (first, second): (__m256i, __m256i),
    q: &[[i8; 256]; T],
    step: usize,
) {
    for (narrow, q) in narrow.iter_mut().zip(q) {
        for (codes, step) in [(first, step), (second, step + 1)] {
            *narrow = _mm256_add_epi16(*narrow, _mm256_maddubs_epi16(codes, broadcast_quad(q, step)));
        }
    }
}

/// `sums += value · scale`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add(sums: &mut [f32], value: __m256, scale: f32) {
    let sums: &mut [f32; 8] = sums.try_into().expect("eight rows");
    let total = _mm256_fmadd_ps(value, _mm256_set1_ps(scale), load_ps(sums));
    // SAFETY: the array is 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), total) }
}

/// Adds the products of a tile to `sums`, `[T][8]`: its blocks in the order of `sum_ps`, as the row kernels add them.
///
/// # Safety
/// As [`super_tiles`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "a token's number finds its sums and its activations")]
unsafe fn small_tile<S: SmallSource, const T: usize>(w: &S, x: TileRef<'_, T, 8>, sums: &mut [f32]) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut total = [_mm256_setzero_ps(); T];
        for odd in 0..2 {
            let mut half = [_mm256_setzero_ps(); T];
            for b in [odd, odd + 2] {
                let (low, high) = (small_block(w, &x, b), small_block(w, &x, b + 4));
                for t in 0..T {
                    half[t] = _mm256_add_ps(half[t], _mm256_add_ps(low[t], high[t]));
                }
            }
            for t in 0..T {
                total[t] = _mm256_add_ps(total[t], half[t]);
            }
        }
        for t in 0..T {
            add(&mut sums[t * 8..t * 8 + 8], total[t], 1.0);
        }
    }
}

/// The products of block `b`.
///
/// # Safety
/// As [`super_tiles`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "a token's number finds its sums and its activations")]
unsafe fn small_block<S: SmallSource, const T: usize>(w: &S, x: &TileRef<'_, T, 8>, b: usize) -> [__m256; T] {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut values = [_mm256_setzero_ps(); T];
        if b >= w.n_blocks() {
            return values;
        }
        let mut products = [_mm256_setzero_si256(); T];
        // A factor per four steps.
        for run in 0..2 {
            if S::SIGNED {
                for i in [2 * run, 2 * run + 1] {
                    let (first, second) = w.codes(b, i);
                    for (step, codes) in [(2 * i, first), (2 * i + 1, second)] {
                        // Codes of 8 bits would overflow: |w| times the activations with w's sign.
                        let magnitude = _mm256_abs_epi8(codes);
                        for t in 0..T {
                            let q = _mm256_sign_epi8(broadcast_quad(&x.q[t], 8 * b + step), codes);
                            let factor = broadcast_pair(&x.factor2[t], (8 * b + 4 * run) * 2);
                            let p = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, q), factor);
                            products[t] = _mm256_add_epi32(products[t], p);
                        }
                    }
                }
            } else {
                // 4 · 2 · 31 · 127 < 2¹⁵.
                let mut narrow = [_mm256_setzero_si256(); T];
                for i in [2 * run, 2 * run + 1] {
                    add_products(&mut narrow, w.codes(b, i), x.q, 8 * b + 2 * i);
                }
                for t in 0..T {
                    let factor = broadcast_pair(&x.factor2[t], (8 * b + 4 * run) * 2);
                    products[t] = _mm256_add_epi32(products[t], _mm256_madd_epi16(narrow[t], factor));
                }
            }
        }
        let (d, m) = w.d_m(b);
        for t in 0..T {
            let scaled = _mm256_mul_ps(d, _mm256_set1_ps(x.scale[t][b]));
            let product = _mm256_mul_ps(_mm256_cvtepi32_ps(products[t]), scaled);
            values[t] = if S::SIGNED { product } else { _mm256_fmadd_ps(m, _mm256_set1_ps(x.total32[t][b]), product) };
        }
        values
    }
}
