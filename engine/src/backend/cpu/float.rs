//! Products with f32 activations: float weights always, quantised ones when exactness is asked for. Rows are decoded
//! to f32 a few at a time and multiplied with every token; accumulation is f32 in eight partial sums, in the same order
//! for any number of tokens.

use super::CpuWeight;
use super::simd::{SimdLevel, vectorised};
use crate::gguf::GgmlType;
use crate::quant::dequantize_row;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// Rows and tokens of a register tile.
const TILE: usize = 4;
const LANES: usize = 8;

/// `out[i][r] = row r of rows · x[tokens.start + i]`; `x` is `[n, cols]` f32, `out` `[tokens][rows]`, `decoded` scratch.
pub(super) fn multiply(
    level: SimdLevel,
    weight: &CpuWeight,
    rows: Range<usize>,
    x: &[f32],
    tokens: Range<usize>,
    decoded: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (cols, n, width) = (weight.cols, tokens.len(), rows.len());
    let x = &x[tokens.start * cols..tokens.end * cols];
    assert_eq!(out.len(), n * width);
    decoded.resize(TILE * cols, 0.0);
    let mut r = 0;
    while r < width {
        let n_rows = if width - r >= TILE { TILE } else { 1 };
        for (i, decoded) in decoded.chunks_exact_mut(cols).take(n_rows).enumerate() {
            vectorised!(level, || decode_row(weight.ty, weight.row(rows.start + r + i), decoded));
        }
        let mut t = 0;
        while t < n {
            let x = &x[t * cols..];
            t += if n_rows == TILE && n - t >= TILE {
                store(vectorised!(level, || tile::<TILE, TILE>(decoded, x, cols)), &mut out[t * width + r..], width)
            } else if n_rows == TILE {
                store(vectorised!(level, || tile::<TILE, 1>(decoded, x, cols)), &mut out[t * width + r..], width)
            } else {
                store(vectorised!(level, || tile::<1, 1>(decoded, x, cols)), &mut out[t * width + r..], width)
            };
        }
        r += n_rows;
    }
}

/// Puts a tile's results into `out`, whose rows have `width` elements; gives its number of tokens.
fn store<const R: usize, const T: usize>(sums: [[f32; R]; T], out: &mut [f32], width: usize) -> usize {
    for (t, sums) in sums.iter().enumerate() {
        out[t * width..][..R].copy_from_slice(sums);
    }
    T
}

/// Decodes a row; float types through the converters that use F16C where it is there.
#[inline(always)]
pub(super) fn decode_row(ty: GgmlType, row: &[u8], out: &mut [f32]) {
    match (ty, bytemuck::try_cast_slice::<u8, half::f16>(row)) {
        (GgmlType::F16, Ok(halves)) => halves.convert_to_f32_slice(out),
        (GgmlType::BF16, _) => {
            for (o, b) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        (GgmlType::F32, _) => {
            for (o, b) in out.iter_mut().zip(row.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        _ => dequantize_row(ty, row, out),
    }
}

/// `R` rows of `w` times `T` tokens of `x`, `[token][row]`. Each sum is taken in the same order in tiles of any size.
#[inline(always)]
fn tile<const R: usize, const T: usize>(w: &[f32], x: &[f32], cols: usize) -> [[f32; R]; T] {
    let mut lanes = [[[0.0f32; LANES]; R]; T];
    let whole = cols / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        let at = |m: &[f32], i: usize| -> [f32; LANES] {
            m[i * cols + k..i * cols + k + LANES].try_into().expect("eight lanes")
        };
        let rows: [[f32; LANES]; R] = std::array::from_fn(|r| at(w, r));
        for (t, lanes) in lanes.iter_mut().enumerate() {
            let x = at(x, t);
            for (lanes, row) in lanes.iter_mut().zip(&rows) {
                for ((lane, w), x) in lanes.iter_mut().zip(row).zip(&x) {
                    *lane = w.mul_add(*x, *lane);
                }
            }
        }
    }
    std::array::from_fn(|t| {
        std::array::from_fn(|r| {
            let tail: f32 = (whole..cols).map(|k| w[r * cols + k] * x[t * cols + k]).sum();
            lanes[t][r].iter().sum::<f32>() + tail
        })
    })
}
