//! Products of one weight row with one to four quantised tokens: what decoding spends its time in. Bound by memory:
//! each row is read once, in the file's own layout.
//!
//! Here stand the portable kernels and the choice; `avx2` and `avx512` hold the same in vector instructions. All take
//! exact integer sums per scale, so levels differ only in the order of the few f32 additions per 256 weights.

use super::activation::{QuantizedRows, ScaleSpan};
use super::group::{SmallGroup, SuperGroup, group_of, span_of};
use super::simd::SimdLevel;
use crate::gguf::GgmlType;

/// Most tokens a row kernel takes at once.
pub(super) const MAX_TOKENS: usize = 4;

/// Consecutive rows of a quantised weight.
#[derive(Clone, Copy)]
pub(super) struct RowBlock<'a> {
    pub(super) ty: GgmlType,
    pub(super) row_bytes: usize,
    /// Whole rows.
    pub(super) data: &'a [u8],
}

/// `out[i][r] = row r · x[t0 + i]` for `n` ≤ 4 tokens; `out` is `[n][rows]`, `x` holds the type's span.
pub(super) fn dot_rows(level: SimdLevel, rows: RowBlock<'_>, x: &QuantizedRows, t0: usize, n: usize, out: &mut [f32]) {
    debug_assert!(x.groups == rows.row_bytes.div_ceil(super::group::group_bytes(rows.ty)));
    match n {
        1 => fixed::<1>(level, rows, x, t0, out),
        2 => fixed::<2>(level, rows, x, t0, out),
        3 => fixed::<3>(level, rows, x, t0, out),
        4 => fixed::<4>(level, rows, x, t0, out),
        n => unreachable!("{n} tokens for one row kernel"),
    }
}

fn fixed<const N: usize>(level: SimdLevel, rows: RowBlock<'_>, x: &QuantizedRows, t0: usize, out: &mut [f32]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels are only chosen where `SimdLevel::detect` has seen their instructions.
        SimdLevel::Avx512Vnni => unsafe { super::avx512::dot_rows::<N>(rows, x, t0, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx2 => unsafe { super::avx2::dot_rows::<N>(rows, x, t0, out) },
        _ => each_row(rows, out, |row| portable::<N>(rows.ty, row, x, t0)),
    }
}

/// Calls `dot` for every row and lays its `N` sums out as `[N][rows]`.
#[inline(always)]
pub(super) fn each_row<const N: usize>(rows: RowBlock<'_>, out: &mut [f32], dot: impl Fn(&[u8]) -> [f32; N]) {
    let n_rows = rows.data.len() / rows.row_bytes;
    assert!(out.len() >= N * n_rows);
    for (r, row) in rows.data.chunks_exact(rows.row_bytes).enumerate() {
        for (t, sum) in dot(row).into_iter().enumerate() {
            out[t * n_rows + r] = sum;
        }
    }
}

fn portable<const N: usize>(ty: GgmlType, row: &[u8], x: &QuantizedRows, t0: usize) -> [f32; N] {
    let mut sums = [0.0f32; N];
    let (mut wide, mut small) = (SuperGroup::ZERO, SmallGroup::ZERO);
    for g in 0..x.groups {
        let bytes = group_of(ty, row, g);
        match span_of(ty) {
            Some(ScaleSpan::Super) => {
                wide.unpack(ty, bytes);
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum += super_group_dot(&wide, x, g, t0 + t);
                }
            }
            Some(ScaleSpan::Small) => {
                small.unpack(ty, bytes);
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum += small_group_dot(&small, x, g, t0 + t);
                }
            }
            None => unreachable!("{ty} rows are not multiplied in integers"),
        }
    }
    sums
}

fn super_group_dot(w: &SuperGroup, x: &QuantizedRows, g: usize, t: usize) -> f32 {
    let x = x.group(g, t);
    let (mut products, mut mins) = (0i32, 0i32);
    for j in 0..16 {
        products += i32::from(w.scale[j]) * code_dot(&w.codes[j * 16..(j + 1) * 16], &x.q[j * 16..(j + 1) * 16]);
        mins += i32::from(w.min[j]) * i32::from(x.sum16[j]);
    }
    x.scale[0] * (w.d * products as f32 - w.dmin * mins as f32)
}

fn small_group_dot(w: &SmallGroup, x: &QuantizedRows, g: usize, t: usize) -> f32 {
    let x = x.group(g, t);
    (0..8)
        .map(|b| {
            let products = code_dot(&w.codes[b * 32..(b + 1) * 32], &x.q[b * 32..(b + 1) * 32]);
            w.d[b] * x.scale[b] * products as f32 + w.m[b] * x.total32[b]
        })
        .sum()
}

fn code_dot(codes: &[u8], q: &[i8]) -> i32 {
    codes.iter().zip(q).map(|(&c, &q)| i32::from(c) * i32::from(q)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::random_row;
    use super::*;
    use crate::quant::dequantize_row;

    /// Every level against an f64 product of the decoded weights with the quantised activations: only the order of
    /// f32 additions may differ.
    #[test]
    fn every_level_and_type_matches_f64() {
        for ty in GgmlType::ALL {
            let Some(span) = span_of(ty) else { continue };
            for cols in if span == ScaleSpan::Super { vec![256, 1536, 2048] } else { vec![32, 256, 896, 1056] } {
                let row = random_row(ty, cols, cols as u64);
                let mut weights = vec![0.0; cols];
                dequantize_row(ty, &row, &mut weights);
                let n = 5;
                let x: Vec<f32> = (0..n * cols).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 400.0).collect();
                for level in SimdLevel::available() {
                    let mut rows = QuantizedRows::default();
                    rows.quantize(level, &x, n, cols, span);
                    for tokens in 1..=MAX_TOKENS {
                        // The same row twice: the sums must lie where they belong.
                        let twice = [&row[..], &row[..]].concat();
                        let mut out = vec![0.0; 2 * tokens];
                        let block = RowBlock { ty, row_bytes: row.len(), data: &twice };
                        dot_rows(level, block, &rows, n - tokens, tokens, &mut out);
                        for (i, pair) in out.chunks_exact(2).enumerate() {
                            let got = &pair[0];
                            assert_eq!(pair[0], pair[1]);
                            let t = n - tokens + i;
                            let (mut want, mut size) = (0.0f64, 0.0f64);
                            for (k, weight) in weights.iter().enumerate() {
                                let g = rows.group(k / 256, t);
                                let scale = g.scale[k % 256 / (256 / span.per_group())];
                                let term = f64::from(*weight) * f64::from(scale) * f64::from(g.q[k % 256]);
                                want += term;
                                size += term.abs();
                            }
                            let error = (f64::from(*got) - want).abs();
                            assert!(
                                error <= 1e-5 * size,
                                "{ty} {level:?} cols={cols} tokens={tokens}: {got} for {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}
