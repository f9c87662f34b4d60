//! Products of weight rows with a few quantised tokens: what decoding spends its time in. Bound by memory for one
//! token: each row is read once, in the file's own layout, and multiplied with all tokens while it is in the cache.
//!
//! Here stand the portable kernels and the choice; `avx2`, `avx512` and `small` hold the same in vector instructions.
//! All take exact integer sums per scale, so levels differ only in the order of the few f32 additions per 256 weights;
//! within a level rows and panels round alike: a token's result doesn't depend on how many others are beside it.

use super::activation::{QuantizedRows, ScaleSpan};
use super::group::{SmallGroup, SuperGroup, group_of, span_of};
use super::simd::SimdLevel;
use crate::gguf::GgmlType;
use std::ops::Range;

/// Consecutive rows of a quantised weight.
#[derive(Clone, Copy)]
pub(super) struct RowBlock<'a> {
    pub(super) ty: GgmlType,
    pub(super) row_bytes: usize,
    /// Whole rows.
    pub(super) data: &'a [u8],
}

/// Runs a kernel of 1 to 4 tokens over all rows and tokens: `$dot` gives the `$n` sums of row `$row` with the tokens
/// from `$t` on. A macro, because a closure would not be inlined into code compiled for other instructions.
macro_rules! each_row {
    ($rows:expr, $tokens:expr, $out:expr, |$row:ident, $t:ident, $n:ident| $dot:expr) => {{
        let (tokens, out): (std::ops::Range<usize>, &mut [f32]) = ($tokens, $out);
        let n_rows = $rows.data.len() / $rows.row_bytes;
        assert!(out.len() >= tokens.len() * n_rows);
        for (r, $row) in $rows.data.chunks_exact($rows.row_bytes).enumerate() {
            let mut $t = tokens.start;
            while $t < tokens.end {
                macro_rules! some {
                    ($count:literal) => {{
                        const $n: usize = $count;
                        let sums: [f32; $count] = $dot;
                        for (i, sum) in sums.into_iter().enumerate() {
                            out[($t - tokens.start + i) * n_rows + r] = sum;
                        }
                        $t += $count;
                    }};
                }
                match tokens.end - $t {
                    1 => some!(1),
                    2 => some!(2),
                    3 => some!(3),
                    _ => some!(4),
                }
            }
        }
    }};
}
pub(super) use each_row;

/// `out[i][r] = row r · x[tokens.start + i]`; `out` is `[tokens][rows]`, `x` holds the type's span.
pub(super) fn dot_rows(level: SimdLevel, rows: RowBlock<'_>, x: &QuantizedRows, tokens: Range<usize>, out: &mut [f32]) {
    debug_assert!(x.groups == rows.row_bytes.div_ceil(super::group::group_bytes(rows.ty)));
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these levels are only chosen where `SimdLevel::detect` has seen their instructions.
        SimdLevel::Avx512Vnni => unsafe { super::avx512::dot_rows(rows, x, tokens, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx2 => unsafe { super::avx2::dot_rows(rows, x, tokens, out) },
        _ => each_row!(rows, tokens, out, |row, t, N| portable::<N>(rows.ty, row, x, t)),
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
        let scale = i32::from(w.scale[j]) * i32::from(x.factor16[j]);
        products += scale * code_dot(&w.codes[j * 16..(j + 1) * 16], &x.q[j * 16..(j + 1) * 16]);
        mins += i32::from(w.min[j]) * i32::from(x.sum16[j]);
    }
    x.scale[0] * (w.d * products as f32 - w.dmin * mins as f32)
}

fn small_group_dot(w: &SmallGroup, x: &QuantizedRows, g: usize, t: usize) -> f32 {
    let x = x.group(g, t);
    small_sum(|b| {
        let half =
            |j: usize| i32::from(x.factor16[j]) * code_dot(&w.codes[j * 16..(j + 1) * 16], &x.q[j * 16..(j + 1) * 16]);
        let products = half(2 * b) + half(2 * b + 1);
        w.d[b] * x.scale[b] * products as f32 + w.m[b] * x.total32[b]
    })
}

/// The values of a group's eight blocks, added up.
pub(super) fn small_sum(value: impl Fn(usize) -> f32) -> f32 {
    (0..8).map(value).sum()
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
            for cols in if ty.block_len() == 256 { vec![256, 1536, 2048] } else { vec![32, 256, 896, 1056] } {
                let row = random_row(ty, cols, cols as u64);
                let mut weights = vec![0.0; cols];
                dequantize_row(ty, &row, &mut weights);
                let n = 9;
                let x: Vec<f32> = (0..n * cols).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 400.0).collect();
                for level in SimdLevel::available() {
                    let mut rows = QuantizedRows::default();
                    rows.quantize(level, &x, n, cols, span);
                    for tokens in 1..=n {
                        // The same row twice: the sums must lie where they belong.
                        let twice = [&row[..], &row[..]].concat();
                        let mut out = vec![0.0; 2 * tokens];
                        let block = RowBlock { ty, row_bytes: row.len(), data: &twice };
                        dot_rows(level, block, &rows, n - tokens..n, &mut out);
                        for (i, pair) in out.chunks_exact(2).enumerate() {
                            let got = &pair[0];
                            assert_eq!(pair[0], pair[1]);
                            let t = n - tokens + i;
                            let (mut want, mut size) = (0.0f64, 0.0f64);
                            for (k, weight) in weights.iter().enumerate() {
                                let g = rows.group(k / 256, t);
                                let term =
                                    f64::from(*weight) * f64::from(g.scale_at(k % 256)) * f64::from(g.q[k % 256]);
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
