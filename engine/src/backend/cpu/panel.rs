//! Products of weight panels with many quantised tokens: what prompts spend their time in. Bound by arithmetic.
//!
//! A panel is eight rows (sixteen with AVX-512) of one group of 256 columns, unpacked once and then multiplied with
//! every token of the batch. Its codes are interleaved, `[k/4][row][4]`, so that one vector holds four columns of all
//! rows and a token's four activations are broadcast against it: the sums stay apart by row and nothing is added
//! across lanes. Caller: `product`, from [`MIN_TOKENS`] tokens on.

use super::CpuWeight;
use super::activation::{GROUP, QuantizedRows, ScaleSpan};
use super::group::{SmallGroup, SuperGroup, group_of, span_of};
use super::rows::small_sum;
use super::simd::SimdLevel;
use crate::gguf::GgmlType;
use std::ops::Range;

/// Below this many tokens, unpacking costs more than it saves and the row kernels are used.
pub(super) const MIN_TOKENS: usize = 8;

/// Most rows of one task: several panels, so that the activations of a group are read from cache.
pub(super) const TASK_ROWS: usize = 32;

/// Steps of four columns in a group.
pub(super) const STEPS: usize = GROUP / 4;

/// Eight or sixteen K-quant rows of one group.
#[repr(C, align(64))]
pub(super) struct SuperPanel<const R: usize> {
    pub(super) codes: [[[u8; 4]; R]; STEPS],
    /// Scale of each 16 columns, twice, to multiply pairs.
    pub(super) scale: [[[i16; 2]; R]; 16],
    /// Minima of columns `32i..32i+16` and `32i+16..32i+32`, to multiply pairs of sums.
    pub(super) min: [[[i16; 2]; R]; 8],
    pub(super) d: [f32; R],
    pub(super) dmin: [f32; R],
}

/// Eight or sixteen rows with 32-weight blocks of one group.
#[repr(C, align(64))]
pub(super) struct SmallPanel<const R: usize> {
    pub(super) codes: [[[u8; 4]; R]; STEPS],
    pub(super) d: [[f32; R]; 8],
    pub(super) m: [[f32; R]; 8],
}

impl<const R: usize> SuperPanel<R> {
    pub(super) const ZERO: Self = SuperPanel {
        codes: [[[0; 4]; R]; STEPS],
        scale: [[[0; 2]; R]; 16],
        min: [[[0; 2]; R]; 8],
        d: [0.0; R],
        dmin: [0.0; R],
    };

    /// Unpacks group `g` of `rows` (at most `R`; the others become zeros) by way of `groups`.
    pub(super) fn fill<K: PanelKernel<R>>(
        &mut self,
        groups: &mut [SuperGroup; R],
        weight: &CpuWeight,
        rows: Range<usize>,
        g: usize,
    ) {
        for (r, group) in groups.iter_mut().enumerate() {
            match rows.start + r < rows.end {
                true => K::unpack_super(weight.ty, group_of(weight.ty, weight.row(rows.start + r), g), group),
                false => *group = SuperGroup::ZERO,
            }
            for j in 0..16 {
                self.scale[j][r] = [group.scale[j]; 2];
                self.min[j / 2][r][j % 2] = group.min[j];
            }
            (self.d[r], self.dmin[r]) = (group.d, group.dmin);
        }
        K::interleave(groups.each_ref().map(|g| &g.codes), &mut self.codes);
    }
}

impl<const R: usize> SmallPanel<R> {
    pub(super) const ZERO: Self = SmallPanel { codes: [[[0; 4]; R]; STEPS], d: [[0.0; R]; 8], m: [[0.0; R]; 8] };

    /// Unpacks group `g` of `rows` (at most `R`; the others become zeros) by way of `groups`.
    pub(super) fn fill<K: PanelKernel<R>>(
        &mut self,
        groups: &mut [SmallGroup; R],
        weight: &CpuWeight,
        rows: Range<usize>,
        g: usize,
    ) {
        for (r, group) in groups.iter_mut().enumerate() {
            match rows.start + r < rows.end {
                true => K::unpack_small(weight.ty, group_of(weight.ty, weight.row(rows.start + r), g), group),
                false => *group = SmallGroup::ZERO,
            }
            for b in 0..8 {
                (self.d[b][r], self.m[b][r]) = (group.d[b], group.m[b]);
            }
        }
        K::interleave(groups.each_ref().map(|g| &g.codes), &mut self.codes);
    }
}

/// The panel kernels of an instruction set.
pub(super) trait PanelKernel<const R: usize> {
    /// As [`SuperGroup::unpack`].
    fn unpack_super(ty: GgmlType, block: &[u8], group: &mut SuperGroup);
    /// As [`SmallGroup::unpack`].
    fn unpack_small(ty: GgmlType, blocks: &[u8], group: &mut SmallGroup);
    /// Lays the codes of `R` rows out in steps of four columns.
    fn interleave(rows: [&[u8; GROUP]; R], codes: &mut [[[u8; 4]; R]; STEPS]);
    /// Adds the panel's products with group `g` of the tokens from `t0` on to `sums`, `[token][R]`.
    fn super_panel(ty: GgmlType, panel: &SuperPanel<R>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]);
    /// As [`Self::super_panel`].
    fn small_panel(ty: GgmlType, panel: &SmallPanel<R>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]);
}

/// `out[i][r] = row r of rows · x[tokens.start + i]` for at most [`TASK_ROWS`] rows; `out` is `[tokens][rows]`, `sums`
/// is scratch.
pub(super) fn multiply(
    level: SimdLevel,
    weight: &CpuWeight,
    rows: Range<usize>,
    x: &QuantizedRows,
    tokens: Range<usize>,
    sums: &mut Vec<f32>,
    out: &mut [f32],
) {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512Vnni => multiply_with::<16, Avx512Vnni>(weight, rows, x, tokens, sums, out),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => multiply_with::<8, Avx2>(weight, rows, x, tokens, sums, out),
        _ => multiply_with::<8, Portable>(weight, rows, x, tokens, sums, out),
    }
}

fn multiply_with<const R: usize, K: PanelKernel<R>>(
    weight: &CpuWeight,
    rows: Range<usize>,
    x: &QuantizedRows,
    tokens: Range<usize>,
    sums: &mut Vec<f32>,
    out: &mut [f32],
) {
    let span = span_of(weight.ty).expect("a quantised weight");
    let (n, t0) = (tokens.len(), tokens.start);
    assert!(rows.len() <= TASK_ROWS && out.len() == rows.len() * n);
    // `[panel][token][R]`.
    sums.clear();
    sums.resize(rows.len().div_ceil(R) * n * R, 0.0);
    let panels = rows.clone().step_by(R).map(|first| first..rows.end.min(first + R));
    match span {
        ScaleSpan::Super => {
            let (mut panel, mut groups) = (SuperPanel::<R>::ZERO, [const { SuperGroup::ZERO }; R]);
            for g in 0..x.groups {
                for (rows, sums) in panels.clone().zip(sums.chunks_exact_mut(n * R)) {
                    panel.fill::<K>(&mut groups, weight, rows, g);
                    K::super_panel(weight.ty, &panel, x, g, t0, sums);
                }
            }
        }
        ScaleSpan::Small => {
            let (mut panel, mut groups) = (SmallPanel::<R>::ZERO, [const { SmallGroup::ZERO }; R]);
            for g in 0..x.groups {
                for (rows, sums) in panels.clone().zip(sums.chunks_exact_mut(n * R)) {
                    panel.fill::<K>(&mut groups, weight, rows, g);
                    K::small_panel(weight.ty, &panel, x, g, t0, sums);
                }
            }
        }
    }
    for (i, out) in out.chunks_exact_mut(rows.len()).enumerate() {
        for (p, out) in out.chunks_mut(R).enumerate() {
            out.copy_from_slice(&sums[(p * n + i) * R..][..out.len()]);
        }
    }
}

/// Plain Rust.
struct Portable;

impl PanelKernel<8> for Portable {
    fn unpack_super(ty: GgmlType, block: &[u8], group: &mut SuperGroup) {
        group.unpack(ty, block);
    }

    fn unpack_small(ty: GgmlType, blocks: &[u8], group: &mut SmallGroup) {
        group.unpack(ty, blocks);
    }

    fn interleave(rows: [&[u8; GROUP]; 8], codes: &mut [[[u8; 4]; 8]; STEPS]) {
        for (r, row) in rows.into_iter().enumerate() {
            for (step, quad) in codes.iter_mut().zip(row.as_chunks::<4>().0) {
                step[r] = *quad;
            }
        }
    }

    fn super_panel(_: GgmlType, panel: &SuperPanel<8>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
        for (t, sums) in sums.chunks_exact_mut(8).enumerate() {
            let x = x.group(g, t0 + t);
            for (r, sum) in sums.iter_mut().enumerate() {
                let (mut products, mut mins) = (0i32, 0i32);
                for j in 0..16 {
                    let quads = quads(&panel.codes[j * 4..(j + 1) * 4], r, &x.q[j * 16..]);
                    products += i32::from(panel.scale[j][r][0]) * i32::from(x.factor16[j]) * quads;
                    mins += i32::from(panel.min[j / 2][r][j % 2]) * i32::from(x.sum16[j]);
                }
                *sum += x.scale[0] * (panel.d[r] * products as f32 - panel.dmin[r] * mins as f32);
            }
        }
    }

    fn small_panel(_: GgmlType, panel: &SmallPanel<8>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
        for (t, sums) in sums.chunks_exact_mut(8).enumerate() {
            let x = x.group(g, t0 + t);
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum += small_sum(|b| {
                    let half = |j: usize| {
                        i32::from(x.factor16[j]) * quads(&panel.codes[j * 4..(j + 1) * 4], r, &x.q[j * 16..])
                    };
                    let products = half(2 * b) + half(2 * b + 1);
                    panel.d[b][r] * x.scale[b] * products as f32 + panel.m[b][r] * x.total32[b]
                });
            }
        }
    }
}

/// AVX2.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl PanelKernel<8> for Avx2 {
    fn unpack_super(ty: GgmlType, block: &[u8], group: &mut SuperGroup) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::avx2::unpack_super(ty, block, group) }
    }

    fn unpack_small(ty: GgmlType, blocks: &[u8], group: &mut SmallGroup) {
        // SAFETY: as above.
        unsafe { super::avx2::unpack_small(ty, blocks, group) }
    }

    fn interleave(rows: [&[u8; GROUP]; 8], codes: &mut [[[u8; 4]; 8]; STEPS]) {
        // SAFETY: as above.
        unsafe { super::panel_avx2::interleave(rows, codes) }
    }

    fn super_panel(ty: GgmlType, panel: &SuperPanel<8>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::panel_avx2::super_panel(ty, panel, x, g, t0, sums) }
    }

    fn small_panel(ty: GgmlType, panel: &SmallPanel<8>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::panel_avx2::small_panel(ty, panel, x, g, t0, sums) }
    }
}

#[cfg(target_arch = "x86_64")]
struct Avx512Vnni;

#[cfg(target_arch = "x86_64")]
impl PanelKernel<16> for Avx512Vnni {
    fn unpack_super(ty: GgmlType, block: &[u8], group: &mut SuperGroup) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::avx2::unpack_super(ty, block, group) }
    }

    fn unpack_small(ty: GgmlType, blocks: &[u8], group: &mut SmallGroup) {
        // SAFETY: as above.
        unsafe { super::avx2::unpack_small(ty, blocks, group) }
    }

    fn interleave(rows: [&[u8; GROUP]; 16], codes: &mut [[[u8; 4]; 16]; STEPS]) {
        // SAFETY: as above.
        unsafe { super::panel_avx2::interleave(rows, codes) }
    }

    fn super_panel(_: GgmlType, panel: &SuperPanel<16>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::avx512::super_panel(panel, x, g, t0, sums) }
    }

    fn small_panel(_: GgmlType, panel: &SmallPanel<16>, x: &QuantizedRows, g: usize, t0: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::avx512::small_panel(panel, x, g, t0, sums) }
    }
}

/// Row `r` of some steps times as many activations.
fn quads<const R: usize>(steps: &[[[u8; 4]; R]], r: usize, q: &[i8]) -> i32 {
    let quad = |(step, q): (&[[u8; 4]; R], &[i8])| -> i32 {
        step[r].iter().zip(q).map(|(&c, &q)| i32::from(c) * i32::from(q)).sum()
    };
    steps.iter().zip(q.chunks_exact(4)).map(quad).sum()
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::random_row;
    use super::super::rows::{RowBlock, dot_rows};
    use super::*;

    /// Every level and type against the portable row kernel, with rows and tokens that fill no panel and no tile.
    #[test]
    fn panels_agree_with_rows() {
        for ty in GgmlType::ALL {
            let Some(span) = span_of(ty) else { continue };
            let cols = if ty.block_len() == 256 { 768 } else { 608 };
            let (n_rows, n) = (45, 23);
            let data: Vec<u8> = (0..n_rows).flat_map(|r| random_row(ty, cols, r as u64 + 1)).collect();
            let weight = CpuWeight { ty, rows: n_rows, cols, data: Vec::leak(data), packed: None };
            let x: Vec<f32> = (0..n * cols).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 400.0).collect();
            let mut rows = QuantizedRows::default();
            rows.quantize(SimdLevel::Portable, &x, n, cols, span);
            let mut want = vec![0.0; n * n_rows];
            let block = RowBlock { ty, row_bytes: ty.row_bytes(cols), data: weight.data };
            for (t, want) in want.chunks_exact_mut(n_rows).enumerate() {
                dot_rows(SimdLevel::Portable, block, &rows, t..t + 1, want);
            }
            let size = want.iter().map(|w| w * w).sum::<f32>().sqrt() / (want.len() as f32).sqrt();
            // Not from the first token on, and in blocks that end inside a panel.
            let tokens = 2..n;
            for level in SimdLevel::available() {
                // The same level's row kernel gives the same bits, in whatever company.
                let mut same = vec![0.0; tokens.len() * n_rows];
                dot_rows(level, block, &rows, tokens.clone(), &mut same);
                for first in (0..n_rows).step_by(TASK_ROWS) {
                    let block = first..n_rows.min(first + TASK_ROWS);
                    let mut got = vec![1.0; tokens.len() * block.len()];
                    let mut sums = vec![1.0; 7];
                    multiply(level, &weight, block.clone(), &rows, tokens.clone(), &mut sums, &mut got);
                    for (i, got) in got.iter().enumerate() {
                        let want = want[(2 + i / block.len()) * n_rows + first + i % block.len()];
                        let error = (got - want).abs();
                        assert!(error <= 2e-5 * size.max(1.0), "{ty} {level:?} element {i}: {got} for {want}");
                        let same = same[i / block.len() * n_rows + first + i % block.len()];
                        assert_eq!(got.to_bits(), same.to_bits(), "{ty} {level:?} element {i}: {got} and {same}");
                    }
                }
            }
        }
    }
    /// Vector unpacking against the plain one, with a last short group.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vectors_unpack_the_same_groups() {
        if SimdLevel::detect() < SimdLevel::Avx2 {
            return;
        }
        for ty in GgmlType::ALL {
            let Some(span) = span_of(ty) else { continue };
            let cols = if ty.block_len() == 256 { 512 } else { 256 + 96 };
            let row = random_row(ty, cols, 11);
            for g in 0..2 {
                let bytes = group_of(ty, &row, g);
                // A block of zeros has the least scale there is in MXFP4.
                let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs() + 1e-36;
                if span == ScaleSpan::Super {
                    let (mut got, mut want) = (SuperGroup::ZERO, SuperGroup::ZERO);
                    Avx2::unpack_super(ty, bytes, &mut got);
                    Portable::unpack_super(ty, bytes, &mut want);
                    assert_eq!((got.codes, got.scale, got.min), (want.codes, want.scale, want.min), "{ty} group {g}");
                    assert!(close(got.d, want.d) && close(got.dmin, want.dmin), "{ty} group {g}");
                } else {
                    let (mut got, mut want) = (SmallGroup::ZERO, SmallGroup::ZERO);
                    Avx2::unpack_small(ty, bytes, &mut got);
                    Portable::unpack_small(ty, bytes, &mut want);
                    for b in 0..8 {
                        assert!(close(got.d[b], want.d[b]) && close(got.m[b], want.m[b]), "{ty} group {g} block {b}");
                        // Where the scale is zero, codes don't matter.
                        let codes = 32 * b..32 * b + 32;
                        assert!(want.d[b] == 0.0 || got.codes[codes.clone()] == want.codes[codes], "{ty} group {g}");
                    }
                }
            }
        }
    }
}
