//! Panel kernels in AVX2, see `panel`: eight rows against four tokens at a time.
//!
//! Products of codes and activations are summed in 16 bits for as long as they can't overflow (`RUN` steps, by the
//! width of the codes), and only then widened and scaled: that is what makes them cheaper than a row kernel.

use super::activation::{GroupRef, QuantizedRows};
use super::avx2::{load256, store256};
use super::panel::{STEPS, SmallPanel, SuperPanel};
use crate::gguf::GgmlType;
use std::arch::x86_64::*;

/// Tokens that share a load of the panel.
const TILE: usize = 4;

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
#[target_feature(enable = "avx2,fma")]
pub(super) fn super_panel(
    ty: GgmlType,
    panel: &SuperPanel<8>,
    x: &QuantizedRows,
    g: usize,
    t0: usize,
    sums: &mut [f32],
) {
    match ty {
        // 8 steps of pairs: 8 · 2 · 15 · 127 < 2¹⁵.
        GgmlType::Q4_K => super_tiles::<8>(panel, x, g, t0, sums),
        // 4 · 2 · 31 · 127 < 2¹⁵; Q2_K and Q3_K have a scale per four steps.
        GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q5_K => super_tiles::<4>(panel, x, g, t0, sums),
        // 2 · 2 · 63 · 127 < 2¹⁵.
        _ => super_tiles::<2>(panel, x, g, t0, sums),
    }
}

/// Adds `panel · x[g]` to `sums`, `[token][8]`, for types with a scale per 32 weights.
#[target_feature(enable = "avx2,fma")]
pub(super) fn small_panel(
    ty: GgmlType,
    panel: &SmallPanel<8>,
    x: &QuantizedRows,
    g: usize,
    t0: usize,
    sums: &mut [f32],
) {
    match ty {
        // A factor per four steps; 4 · 2 · 31 · 127 < 2¹⁵.
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::MXFP4 => {
            small_tiles::<4, false>(panel, x, g, t0, sums)
        }
        _ => small_tiles::<1, true>(panel, x, g, t0, sums),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn super_tiles<const RUN: usize>(panel: &SuperPanel<8>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    let n = sums.len() / 8;
    let whole = n / TILE * TILE;
    for t in (0..whole).step_by(TILE) {
        super_tile::<RUN, TILE>(panel, x.groups(g, t0 + t), &mut sums[t * 8..]);
    }
    for t in whole..n {
        super_tile::<RUN, 1>(panel, [x.group(g, t0 + t)], &mut sums[t * 8..]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn rows_at<T>(rows: &[T; 8]) -> __m256i {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: eight elements of four bytes are 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(rows.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn floats_at(rows: &[f32; 8]) -> __m256 {
    _mm256_castsi256_ps(rows_at(rows))
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_quad(q: &[i8; 256], step: usize) -> __m256i {
    debug_assert!(step < STEPS);
    let q = &q[4 * step..4 * step + 4];
    _mm256_set1_epi32(i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]))
}

/// The factor at an even place and its equal neighbour in every lane: as one number of 32 bits, which takes only a load.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_factor(factors: &[i16], at: usize) -> __m256i {
    let pair: [i16; 2] = factors[at..at + 2].try_into().expect("two factors");
    _mm256_set1_epi32(bytemuck::cast(pair))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn super_tile<const RUN: usize, const T: usize>(panel: &SuperPanel<8>, x: [GroupRef<'_>; T], sums: &mut [f32]) {
    let mut products = [_mm256_setzero_si256(); T];
    for run in 0..STEPS / RUN {
        let mut narrow = [_mm256_setzero_si256(); T];
        for step in run * RUN..(run + 1) * RUN {
            let codes = rows_at(&panel.codes[step]);
            for t in 0..T {
                let p = _mm256_maddubs_epi16(codes, broadcast_quad(x[t].q, step));
                narrow[t] = _mm256_add_epi16(narrow[t], p);
            }
        }
        let sixteen = run * RUN / 4;
        let scale = rows_at(&panel.scale[sixteen]);
        for t in 0..T {
            // Both are small: their product fits 16 bits.
            let scale = _mm256_mullo_epi16(scale, broadcast_factor(x[t].factor16, sixteen / 2 * 2));
            products[t] = _mm256_add_epi32(products[t], _mm256_madd_epi16(narrow[t], scale));
        }
    }
    let mut mins = [_mm256_setzero_si256(); T];
    for (i, min) in panel.min.iter().enumerate() {
        let min = rows_at(min);
        for t in 0..T {
            let pair = i32::from(x[t].sum16[2 * i] as u16) | i32::from(x[t].sum16[2 * i + 1]) << 16;
            mins[t] = _mm256_add_epi32(mins[t], _mm256_madd_epi16(min, _mm256_set1_epi32(pair)));
        }
    }
    let (d, dmin) = (floats_at(&panel.d), floats_at(&panel.dmin));
    for t in 0..T {
        let value =
            _mm256_fmsub_ps(d, _mm256_cvtepi32_ps(products[t]), _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(mins[t])));
        add(&mut sums[t * 8..t * 8 + 8], value, x[t].scale[0]);
    }
}

/// `sums += value · scale`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add(sums: &mut [f32], value: __m256, scale: f32) {
    let sums: &mut [f32; 8] = sums.try_into().expect("eight rows");
    let total = _mm256_fmadd_ps(value, _mm256_set1_ps(scale), floats_at(sums));
    // SAFETY: the array is 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), total) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn small_tiles<const RUN: usize, const SIGNED: bool>(
    panel: &SmallPanel<8>,
    x: &QuantizedRows,
    g: usize,
    t0: usize,
    sums: &mut [f32],
) {
    let n = sums.len() / 8;
    let whole = n / TILE * TILE;
    for t in (0..whole).step_by(TILE) {
        small_tile::<RUN, SIGNED, TILE>(panel, x.groups(g, t0 + t), &mut sums[t * 8..]);
    }
    for t in whole..n {
        small_tile::<RUN, SIGNED, 1>(panel, [x.group(g, t0 + t)], &mut sums[t * 8..]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn small_tile<const RUN: usize, const SIGNED: bool, const T: usize>(
    panel: &SmallPanel<8>,
    x: [GroupRef<'_>; T],
    sums: &mut [f32],
) {
    let offset = _mm256_set1_epi8(-128);
    let mut values = [[_mm256_setzero_ps(); T]; 8];
    for (b, values) in values.iter_mut().enumerate() {
        let mut products = [_mm256_setzero_si256(); T];
        for run in 0..8 / RUN {
            let mut narrow = [_mm256_setzero_si256(); T];
            for step in 8 * b + run * RUN..8 * b + (run + 1) * RUN {
                let codes = rows_at(&panel.codes[step]);
                if SIGNED {
                    // Codes of 8 bits would overflow: take |w| times the activations with w's sign.
                    let w = _mm256_xor_si256(codes, offset);
                    let magnitude = _mm256_abs_epi8(w);
                    for t in 0..T {
                        let signed = _mm256_sign_epi8(broadcast_quad(x[t].q, step), w);
                        narrow[t] = _mm256_maddubs_epi16(magnitude, signed);
                    }
                } else {
                    for t in 0..T {
                        let p = _mm256_maddubs_epi16(codes, broadcast_quad(x[t].q, step));
                        narrow[t] = _mm256_add_epi16(narrow[t], p);
                    }
                }
            }
            for t in 0..T {
                let factor = broadcast_factor(x[t].factor2, (8 * b + run * RUN) * 2);
                products[t] = _mm256_add_epi32(products[t], _mm256_madd_epi16(narrow[t], factor));
            }
        }
        let (d, m) = (floats_at(&panel.d[b]), floats_at(&panel.m[b]));
        for t in 0..T {
            let scaled = _mm256_mul_ps(d, _mm256_set1_ps(x[t].scale[b]));
            let product = _mm256_mul_ps(_mm256_cvtepi32_ps(products[t]), scaled);
            values[t] = if SIGNED { product } else { _mm256_fmadd_ps(m, _mm256_set1_ps(x[t].total32[b]), product) };
        }
    }
    for t in 0..T {
        // In the order of `sum_ps`, as the row kernels add them.
        let pair = |i: usize| _mm256_add_ps(values[i][t], values[i + 4][t]);
        let total = _mm256_add_ps(_mm256_add_ps(pair(0), pair(2)), _mm256_add_ps(pair(1), pair(3)));
        add(&mut sums[t * 8..t * 8 + 8], total, 1.0);
    }
}
