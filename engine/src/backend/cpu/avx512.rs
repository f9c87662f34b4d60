//! Row and panel kernels in AVX-512 with VNNI, see `rows` and `panel`: `vpdpbusd` sums four products of unsigned
//! codes and signed activations straight into 32 bits, so nothing can overflow and the codes of all types serve as
//! they are.

use super::activation::{GroupRef, QuantizedRows};
use super::avx2::{Q2K, Q3K, Q4K, Q5K, SuperBlock, dot_sixteens};
use super::avx2::{f16_to_f32, k_scales_mins, load128, load256, prefetch_behind};
use super::group_sums::GroupSums;
use super::panel::{STEPS, SmallPanel, SuperPanel};
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
        // Rare types: AVX2's kernel will do.
        GgmlType::Q2_K => dot_sixteens::<Q2K, N>(row, x, t0),
        GgmlType::Q3_K => dot_sixteens::<Q3K, N>(row, x, t0),
        GgmlType::Q4_K => dot_super::<Q4K, N>(row, x, t0),
        GgmlType::Q5_K => dot_super::<Q5K, N>(row, x, t0),
        GgmlType::Q6_K => dot_q6_k(row, x, t0),
        // SAFETY: this function is compiled for the instructions.
        ty => unsafe { dot_small_type::<Dpbusd, N>(ty, row, x, t0) },
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load512(q: &[i8; 256], at: usize) -> __m512i {
    let bytes: &[i8; 64] = q[at..at + 64].try_into().expect("64 activations");
    // SAFETY: the array is 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The factor of each 16 activations of a group, as 32-bit numbers.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn factors(x: GroupRef<'_>) -> __m512i {
    _mm512_cvtepi16_epi32(load256(bytemuck::cast_slice(x.factor16), 0))
}

/// The factor of each 32 activations of a group in lanes 0–7, and once more in lanes 8–15.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn factors_once(x: GroupRef<'_>) -> __m512i {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
    _mm512_permutexvar_epi32(even, factors(x))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_super<B: SuperBlock, const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    // Lanes 0–7 take the scale of the first sub-block of a pair, lanes 8–15 that of the second.
    let first_or_second = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    let mut sums = GroupSums::<N>::new();
    for (g, block) in row.chunks_exact(B::BYTES).enumerate() {
        prefetch_behind(block, B::BYTES);
        let (d, dmin) = (f16_to_f32(block, 0), f16_to_f32(block, 2));
        let scales_mins = k_scales_mins(block);
        let in_order = _mm256_permute4x64_epi64::<0b11_01_10_00>(scales_mins);
        let scales = _mm512_castsi256_si512(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(in_order)));
        let min = _mm256_unpackhi_epi16(scales_mins, scales_mins);
        let xs = x.groups::<N>(g, t0);
        let mut products = [_mm512_setzero_si512(); N];
        let mut scaled = [scales; N];
        for t in 0..N {
            scaled[t] = _mm512_mullo_epi32(scales, factors_once(xs[t]));
        }
        for i in 0..4 {
            let (first, second) = B::codes(block, i);
            let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
            let pair = _mm512_add_epi32(first_or_second, _mm512_set1_epi32(2 * i as i32));
            for t in 0..N {
                let scale = _mm512_permutexvar_epi32(pair, scaled[t]);
                let p = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, load512(xs[t].q, 64 * i));
                products[t] = _mm512_add_epi32(products[t], _mm512_mullo_epi32(p, scale));
            }
        }
        let (mut halves, mut mins) = ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
        for t in 0..N {
            halves[t] = fold(products[t]);
            mins[t] = _mm256_madd_epi16(min, load256(bytemuck::cast_slice(xs[t].sum16), 0));
        }
        sums.add(halves, mins, (d, dmin), xs);
    }
    sums.finish()
}

/// The upper half added to the lower one.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold(v: __m512i) -> __m256i {
    _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v))
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_q6_k<const N: usize>(row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let (low, top) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    let quarter = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let mut sums = GroupSums::<N>::new();
    for (g, block) in row.chunks_exact(210).enumerate() {
        prefetch_behind(block, 210);
        let d = f16_to_f32(block, 208);
        let packed = load128(block, 192);
        let scales = _mm512_cvtepi8_epi32(packed);
        let in_order = _mm256_cvtepi8_epi16(packed);
        let xs = x.groups::<N>(g, t0);
        let mut products = [_mm512_setzero_si512(); N];
        let mut scaled = [scales; N];
        for t in 0..N {
            scaled[t] = _mm512_mullo_epi32(scales, factors(xs[t]));
        }
        for half in 0..2 {
            let (a, b) = (load256(block, 64 * half), load256(block, 64 * half + 32));
            let ql = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
            let high = load256(block, 128 + 32 * half);
            // Elements 0–63 of the half take bits 0–1 and 2–3 of `high`, elements 64–127 bits 4–5 and 6–7.
            let front = _mm512_inserti64x4::<1>(
                _mm512_castsi256_si512(_mm256_slli_epi16::<4>(high)),
                _mm256_slli_epi16::<2>(high),
            );
            let back = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(high), _mm256_srli_epi16::<2>(high));
            let codes = [
                _mm512_or_si512(_mm512_and_si512(ql, low), _mm512_and_si512(front, top)),
                _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(ql), low), _mm512_and_si512(back, top)),
            ];
            for (i, codes) in codes.into_iter().enumerate() {
                let j = 2 * half + i;
                let four = _mm512_add_epi32(quarter, _mm512_set1_epi32(4 * j as i32));
                for t in 0..N {
                    let scale = _mm512_permutexvar_epi32(four, scaled[t]);
                    let p = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, load512(xs[t].q, 64 * j));
                    products[t] = _mm512_add_epi32(products[t], _mm512_mullo_epi32(p, scale));
                }
            }
        }
        let (mut halves, mut mins) = ([_mm256_setzero_si256(); N], [_mm256_setzero_si256(); N]);
        for t in 0..N {
            halves[t] = fold(products[t]);
            mins[t] = _mm256_madd_epi16(in_order, load256(bytemuck::cast_slice(xs[t].sum16), 0));
        }
        // The codes are 32 too large.
        sums.add(halves, mins, (d, 32.0 * d), xs);
    }
    sums.finish()
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

/// `sums += value · scale`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(sums: &mut [f32], value: __m512, scale: f32) {
    let sums: &mut [f32; 16] = sums.try_into().expect("sixteen rows");
    let total = _mm512_fmadd_ps(value, _mm512_set1_ps(scale), floats_at(sums));
    // SAFETY: the array is 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) }
}

/// Adds `panel · x[g]` to `sums`, `[token][16]`, for K-quants.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn super_panel(panel: &SuperPanel<16>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
    let n = sums.len() / 16;
    let whole = n / TILE * TILE;
    for t in (0..whole).step_by(TILE) {
        super_tile::<TILE>(panel, x.groups(g, t0 + t), &mut sums[t * 16..]);
    }
    for t in whole..n {
        super_tile::<1>(panel, [x.group(g, t0 + t)], &mut sums[t * 16..]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn super_tile<const T: usize>(panel: &SuperPanel<16>, x: [GroupRef<'_>; T], sums: &mut [f32]) {
    let mut products = [_mm512_setzero_si512(); T];
    let mut mins = [_mm512_setzero_si512(); T];
    for j in 0..16 {
        let mut narrow = [_mm512_setzero_si512(); T];
        for step in 4 * j..4 * j + 4 {
            let codes = rows_at(&panel.codes[step]);
            for t in 0..T {
                narrow[t] = _mm512_dpbusd_epi32(narrow[t], codes, broadcast_quad(x[t].q, step));
            }
        }
        // The scale stands twice in each lane, as two 16-bit halves.
        let scale = _mm512_srai_epi32::<16>(rows_at(&panel.scale[j]));
        for t in 0..T {
            let scale = _mm512_mullo_epi32(scale, _mm512_set1_epi32(i32::from(x[t].factor16[j])));
            products[t] = _mm512_add_epi32(products[t], _mm512_mullo_epi32(narrow[t], scale));
        }
    }
    for (i, min) in panel.min.iter().enumerate() {
        let min = rows_at(min);
        for t in 0..T {
            let pair = i32::from(x[t].sum16[2 * i] as u16) | i32::from(x[t].sum16[2 * i + 1]) << 16;
            mins[t] = _mm512_add_epi32(mins[t], _mm512_madd_epi16(min, _mm512_set1_epi32(pair)));
        }
    }
    let (d, dmin) = (floats_at(&panel.d), floats_at(&panel.dmin));
    for t in 0..T {
        let below = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(mins[t]));
        let value = _mm512_fmsub_ps(d, _mm512_cvtepi32_ps(products[t]), below);
        add(&mut sums[t * 16..t * 16 + 16], value, x[t].scale[0]);
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
fn small_tile<const T: usize>(panel: &SmallPanel<16>, x: [GroupRef<'_>; T], sums: &mut [f32]) {
    let mut values = [[_mm512_setzero_ps(); T]; 8];
    for (b, values) in values.iter_mut().enumerate() {
        let mut products = [_mm512_setzero_si512(); T];
        for j in 2 * b..2 * b + 2 {
            let mut narrow = [_mm512_setzero_si512(); T];
            for step in 4 * j..4 * j + 4 {
                let codes = rows_at(&panel.codes[step]);
                for t in 0..T {
                    narrow[t] = _mm512_dpbusd_epi32(narrow[t], codes, broadcast_quad(x[t].q, step));
                }
            }
            for t in 0..T {
                let factor = _mm512_set1_epi32(i32::from(x[t].factor16[j]));
                products[t] = _mm512_add_epi32(products[t], _mm512_mullo_epi32(narrow[t], factor));
            }
        }
        let (d, m) = (floats_at(&panel.d[b]), floats_at(&panel.m[b]));
        for t in 0..T {
            let scaled = _mm512_mul_ps(d, _mm512_set1_ps(x[t].scale[b]));
            let product = _mm512_mul_ps(_mm512_cvtepi32_ps(products[t]), scaled);
            values[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(x[t].total32[b]), product);
        }
    }
    for t in 0..T {
        // In the order of `sum_ps`, as the row kernels add them.
        let pair = |i: usize| _mm512_add_ps(values[i][t], values[i + 4][t]);
        let total = _mm512_add_ps(_mm512_add_ps(pair(0), pair(2)), _mm512_add_ps(pair(1), pair(3)));
        add(&mut sums[t * 16..t * 16 + 16], total, 1.0);
    }
}
