//! Panel kernels in AVX2, see `panel`: eight rows against four tokens at a time.
//!
//! Products of codes and activations are summed in 16 bits for as long as they share a scale and can't overflow, and
//! only then widened and scaled: that is what makes them cheaper than a row kernel.

use super::activation::{Group, QuantizedRows};
use super::avx2::{load256, store256};
use super::panel::{STEPS, SixteenPanel, SmallPanel};
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

/// Adds `panel · x[g]` to `sums`, `[token][8]`, for types with a scale per 16 weights.
#[target_feature(enable = "avx2,fma")]
pub(super) fn sixteen_panel(panel: &SixteenPanel<8>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    let n = sums.len() / 8;
    let whole = n / TILE * TILE;
    for t in (0..whole).step_by(TILE) {
        sixteen_tile::<TILE>(panel, x.groups(g, t0 + t), &mut sums[t * 8..]);
    }
    for t in whole..n {
        sixteen_tile::<1>(panel, [x.group(g, t0 + t)], &mut sums[t * 8..]);
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
        // Codes of 8 bits.
        GgmlType::Q8_0 | GgmlType::IQ4_NL | GgmlType::IQ4_XS => small_tiles::<true>(panel, x, g, t0, sums),
        // Up to five: 4 · 2 · 31 · 127 < 2¹⁵.
        _ => small_tiles::<false>(panel, x, g, t0, sums),
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

/// `sums += value`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add(sums: &mut [f32], value: __m256) {
    let sums: &mut [f32; 8] = sums.try_into().expect("eight rows");
    let total = _mm256_add_ps(value, floats_at(sums));
    // SAFETY: the array is 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), total) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn sixteen_tile<const T: usize>(panel: &SixteenPanel<8>, x: [&Group; T], sums: &mut [f32]) {
    let mut totals: [__m256; T] = [_mm256_setzero_ps(); T];
    for b in 0..8 {
        for parity in 0..2 {
            let mut products = [_mm256_setzero_si256(); T];
            for j in 2 * b..2 * b + 2 {
                let (first, second) = (4 * j + parity, 4 * j + parity + 2);
                let (codes0, codes1) = (rows_at(&panel.codes[first]), rows_at(&panel.codes[second]));
                let scale = rows_at(&panel.scale[j]);
                for t in 0..T {
                    // 2 · 2 · 63 · 127 < 2¹⁵.
                    let p0 = _mm256_maddubs_epi16(codes0, broadcast_quad(&x[t].q, first));
                    let p1 = _mm256_maddubs_epi16(codes1, broadcast_quad(&x[t].q, second));
                    let p = _mm256_madd_epi16(_mm256_add_epi16(p0, p1), scale);
                    products[t] = _mm256_add_epi32(products[t], p);
                }
            }
            for t in 0..T {
                let scale = _mm256_set1_ps(x[t].scale[b][parity]);
                totals[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[t]), scale, totals[t]);
            }
        }
    }
    let d = floats_at(&panel.d);
    for total in &mut totals {
        *total = _mm256_mul_ps(*total, d);
    }
    for (j, m) in panel.m.iter().enumerate() {
        let m = floats_at(m);
        for t in 0..T {
            totals[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(x[t].total16[j]), totals[t]);
        }
    }
    for t in 0..T {
        add(&mut sums[t * 8..t * 8 + 8], totals[t]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn small_tiles<const SIGNED: bool>(panel: &SmallPanel<8>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    let n = sums.len() / 8;
    let whole = n / TILE * TILE;
    for t in (0..whole).step_by(TILE) {
        small_tile::<SIGNED, TILE>(panel, x.groups(g, t0 + t), &mut sums[t * 8..]);
    }
    for t in whole..n {
        small_tile::<SIGNED, 1>(panel, [x.group(g, t0 + t)], &mut sums[t * 8..]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn small_tile<const SIGNED: bool, const T: usize>(panel: &SmallPanel<8>, x: [&Group; T], sums: &mut [f32]) {
    let (ones, offset) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
    let mut totals: [__m256; T] = [_mm256_setzero_ps(); T];
    for b in 0..8 {
        let mut scaled = [_mm256_setzero_ps(); T];
        for parity in 0..2 {
            let mut products = [_mm256_setzero_si256(); T];
            for step in (8 * b + parity..8 * b + 8).step_by(2) {
                let codes = rows_at(&panel.codes[step]);
                if SIGNED {
                    // Sums of two would overflow: |w| times the activations with w's sign, widened at once.
                    let w = _mm256_xor_si256(codes, offset);
                    let magnitude = _mm256_abs_epi8(w);
                    for t in 0..T {
                        let signed = _mm256_sign_epi8(broadcast_quad(&x[t].q, step), w);
                        let p = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed), ones);
                        products[t] = _mm256_add_epi32(products[t], p);
                    }
                } else {
                    for t in 0..T {
                        let p = _mm256_maddubs_epi16(codes, broadcast_quad(&x[t].q, step));
                        products[t] = _mm256_add_epi16(products[t], p);
                    }
                }
            }
            for t in 0..T {
                let sum = if SIGNED { products[t] } else { _mm256_madd_epi16(products[t], ones) };
                let scale = _mm256_set1_ps(x[t].scale[b][parity]);
                scaled[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, scaled[t]);
            }
        }
        let (d, m) = (floats_at(&panel.d[b]), floats_at(&panel.m[b]));
        for t in 0..T {
            totals[t] = _mm256_fmadd_ps(d, scaled[t], totals[t]);
            if !SIGNED {
                totals[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(x[t].total32[b]), totals[t]);
            }
        }
    }
    for t in 0..T {
        add(&mut sums[t * 8..t * 8 + 8], totals[t]);
    }
}
