//! Row and panel kernels in AVX-512 with VNNI, see `rows` and `panel`: `vpdpbusd` sums four products of unsigned
//! codes and signed activations straight into 32 bits, so nothing can overflow and the codes of all types serve as
//! they are.

use super::activation::{Group, QuantizedRows};
use super::avx2::{Q2K, Q3K, Q6K, dot_sixteens};
use super::panel::{STEPS, SixteenPanel, SmallPanel};
use super::rows::{RowBlock, each_row};
use super::small::{Dpbusd, dot_small_type};
use crate::gguf::GgmlType;
use std::arch::x86_64::*;
use std::ops::Range;

/// Tokens that share a load of the panel.
const TILE: usize = 4;

/// `out[i][r] = row r · x[tokens.start + i]`, see `rows::dot_rows`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn dot_rows(rows: RowBlock<'_>, x: &QuantizedRows, tokens: Range<usize>, out: &mut [f32]) {
    each_row!(rows, tokens, out, |row, t, N| dot::<N>(rows.ty, row, x, t));
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot<const N: usize>(ty: GgmlType, row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    match ty {
        // Scales within a register's lanes: wider registers gain nothing, AVX2's kernels will do.
        GgmlType::Q2_K => dot_sixteens::<Q2K, N>(row, x, t0),
        GgmlType::Q3_K => dot_sixteens::<Q3K, N>(row, x, t0),
        GgmlType::Q6_K => dot_sixteens::<Q6K, N>(row, x, t0),
        // SAFETY: this function is compiled for the instructions.
        ty => unsafe { dot_small_type::<Dpbusd, N>(ty, row, x, t0) },
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rows_at<T>(rows: &[T; 16]) -> __m512i {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: sixteen elements of four bytes are 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(rows.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn floats_at(rows: &[f32; 16]) -> __m512 {
    _mm512_castsi512_ps(rows_at(rows))
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast_quad(q: &[i8; 256], step: usize) -> __m512i {
    debug_assert!(step < STEPS);
    let q = &q[4 * step..4 * step + 4];
    _mm512_set1_epi32(i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]))
}

/// `sums += value`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(sums: &mut [f32], value: __m512) {
    let sums: &mut [f32; 16] = sums.try_into().expect("sixteen rows");
    let total = _mm512_add_ps(value, floats_at(sums));
    // SAFETY: the array is 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) }
}

/// Adds `panel · x[g]` to `sums`, `[token][16]`, for types with a scale per 16 weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn sixteen_panel(panel: &SixteenPanel<16>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    let n = sums.len() / 16;
    let whole = n / TILE * TILE;
    for t in (0..whole).step_by(TILE) {
        sixteen_tile::<TILE>(panel, x.groups(g, t0 + t), &mut sums[t * 16..]);
    }
    for t in whole..n {
        sixteen_tile::<1>(panel, [x.group(g, t0 + t)], &mut sums[t * 16..]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sixteen_tile<const T: usize>(panel: &SixteenPanel<16>, x: [&Group; T], sums: &mut [f32]) {
    let mut totals: [__m512; T] = [_mm512_setzero_ps(); T];
    for b in 0..8 {
        for parity in 0..2 {
            let mut products = [_mm512_setzero_si512(); T];
            for j in 2 * b..2 * b + 2 {
                let mut narrow = [_mm512_setzero_si512(); T];
                for step in [4 * j + parity, 4 * j + parity + 2] {
                    let codes = rows_at(&panel.codes[step]);
                    for t in 0..T {
                        narrow[t] = _mm512_dpbusd_epi32(narrow[t], codes, broadcast_quad(&x[t].q, step));
                    }
                }
                // The scale stands twice in each lane, as two 16-bit halves.
                let scale = _mm512_srai_epi32::<16>(rows_at(&panel.scale[j]));
                for t in 0..T {
                    products[t] = _mm512_add_epi32(products[t], _mm512_mullo_epi32(narrow[t], scale));
                }
            }
            for t in 0..T {
                let scale = _mm512_set1_ps(x[t].scale[b][parity]);
                totals[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t]), scale, totals[t]);
            }
        }
    }
    let d = floats_at(&panel.d);
    for total in &mut totals {
        *total = _mm512_mul_ps(*total, d);
    }
    for (j, m) in panel.m.iter().enumerate() {
        let m = floats_at(m);
        for t in 0..T {
            totals[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(x[t].total16[j]), totals[t]);
        }
    }
    for t in 0..T {
        add(&mut sums[t * 16..t * 16 + 16], totals[t]);
    }
}

/// Adds `panel · x[g]` to `sums`, `[token][16]`, for types with a scale per 32 weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn small_panel(panel: &SmallPanel<16>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    let n = sums.len() / 16;
    let whole = n / TILE * TILE;
    for t in (0..whole).step_by(TILE) {
        small_tile::<TILE>(panel, x.groups(g, t0 + t), &mut sums[t * 16..]);
    }
    for t in whole..n {
        small_tile::<1>(panel, [x.group(g, t0 + t)], &mut sums[t * 16..]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn small_tile<const T: usize>(panel: &SmallPanel<16>, x: [&Group; T], sums: &mut [f32]) {
    let mut totals: [__m512; T] = [_mm512_setzero_ps(); T];
    for b in 0..8 {
        let mut scaled = [_mm512_setzero_ps(); T];
        for parity in 0..2 {
            let mut products = [_mm512_setzero_si512(); T];
            for step in (8 * b + parity..8 * b + 8).step_by(2) {
                let codes = rows_at(&panel.codes[step]);
                for t in 0..T {
                    products[t] = _mm512_dpbusd_epi32(products[t], codes, broadcast_quad(&x[t].q, step));
                }
            }
            for t in 0..T {
                let scale = _mm512_set1_ps(x[t].scale[b][parity]);
                scaled[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t]), scale, scaled[t]);
            }
        }
        let (d, m) = (floats_at(&panel.d[b]), floats_at(&panel.m[b]));
        for t in 0..T {
            totals[t] = _mm512_fmadd_ps(d, scaled[t], totals[t]);
            totals[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(x[t].total32[b]), totals[t]);
        }
    }
    for t in 0..T {
        add(&mut sums[t * 16..t * 16 + 16], totals[t]);
    }
}
