//! Products of weight panels with many quantised tokens: what prompts spend their time in. Bound by arithmetic.
//!
//! A panel is eight rows (sixteen with AVX-512) of one group of 256 columns, unpacked once and then multiplied with
//! every token of the batch. Its codes are interleaved, `[k/4][row][4]`, so that one vector holds four columns of all
//! rows and a token's four activations are broadcast against it: the sums stay apart by row and nothing is added
//! across lanes. Callers: `Cpu::linear`, from [`MIN_TOKENS`] tokens on.

use super::CpuWeight;
use super::activation::{GROUP, QuantizedRows, ScaleSpan};
use super::group::{SmallGroup, SuperGroup, group_of, span_of};
use super::output::Output;
use super::simd::SimdLevel;
use crate::gguf::GgmlType;
use rayon::prelude::*;
use std::ops::Range;

/// Below this many tokens, unpacking costs more than it saves and the row kernels are used.
pub(super) const MIN_TOKENS: usize = 8;

/// Rows of one task: several panels, so that the activations of a group are read from cache.
const TASK_ROWS: usize = 32;

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
    fn zero() -> Box<Self> {
        Box::new(SuperPanel {
            codes: [[[0; 4]; R]; STEPS],
            scale: [[[0; 2]; R]; 16],
            min: [[[0; 2]; R]; 8],
            d: [0.0; R],
            dmin: [0.0; R],
        })
    }

    /// Unpacks group `g` of `rows` (at most `R`; the others become zeros).
    fn fill(&mut self, weight: &CpuWeight, rows: Range<usize>, g: usize) {
        let mut group = SuperGroup::ZERO;
        for r in 0..R {
            match rows.clone().nth(r) {
                Some(row) => group.unpack(weight.ty, group_of(weight.ty, weight.row(row), g)),
                None => group = SuperGroup::ZERO,
            }
            self.set_row(r, &group);
        }
    }

    fn set_row(&mut self, r: usize, w: &SuperGroup) {
        interleave(&mut self.codes, r, &w.codes);
        for j in 0..16 {
            self.scale[j][r] = [w.scale[j]; 2];
            self.min[j / 2][r][j % 2] = w.min[j];
        }
        (self.d[r], self.dmin[r]) = (w.d, w.dmin);
    }
}

impl<const R: usize> SmallPanel<R> {
    fn zero() -> Box<Self> {
        Box::new(SmallPanel { codes: [[[0; 4]; R]; STEPS], d: [[0.0; R]; 8], m: [[0.0; R]; 8] })
    }

    /// Unpacks group `g` of `rows` (at most `R`; the others become zeros).
    fn fill(&mut self, weight: &CpuWeight, rows: Range<usize>, g: usize) {
        let mut group = SmallGroup::ZERO;
        for r in 0..R {
            match rows.clone().nth(r) {
                Some(row) => group.unpack(weight.ty, group_of(weight.ty, weight.row(row), g)),
                None => group = SmallGroup::ZERO,
            }
            self.set_row(r, &group);
        }
    }

    fn set_row(&mut self, r: usize, w: &SmallGroup) {
        interleave(&mut self.codes, r, &w.codes);
        for b in 0..8 {
            (self.d[b][r], self.m[b][r]) = (w.d[b], w.m[b]);
        }
    }
}

#[inline(always)]
fn interleave<const R: usize>(codes: &mut [[[u8; 4]; R]; STEPS], r: usize, row: &[u8; GROUP]) {
    for (step, quad) in codes.iter_mut().zip(row.chunks_exact(4)) {
        step[r].copy_from_slice(quad);
    }
}

/// The panel kernels of an instruction set: both add the panel's products with group `g` of every token to `sums`,
/// `[token][R]`.
trait PanelKernel<const R: usize> {
    fn super_panel(ty: GgmlType, panel: &SuperPanel<R>, x: &QuantizedRows, g: usize, sums: &mut [f32]);
    fn small_panel(ty: GgmlType, panel: &SmallPanel<R>, x: &QuantizedRows, g: usize, sums: &mut [f32]);
}

/// `out = x · weightᵀ` for all tokens of `x`.
pub(super) fn multiply(level: SimdLevel, weight: &CpuWeight, x: &QuantizedRows, out: &Output<'_>) {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512Vnni => multiply_with::<16, Avx512Vnni>(weight, x, out),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => multiply_with::<8, Avx2>(weight, x, out),
        _ => multiply_with::<8, Portable>(weight, x, out),
    }
}

fn multiply_with<const R: usize, K: PanelKernel<R>>(weight: &CpuWeight, x: &QuantizedRows, out: &Output<'_>) {
    let span = span_of(weight.ty).expect("a quantised weight");
    (0..weight.rows.div_ceil(TASK_ROWS)).into_par_iter().for_each_init(
        || Scratch::<R>::new(x.n),
        |scratch, task| {
            let rows = task * TASK_ROWS..weight.rows.min((task + 1) * TASK_ROWS);
            scratch.sums.fill(0.0);
            for g in 0..x.groups {
                for (p, first) in rows.clone().step_by(R).enumerate() {
                    let panel_rows = first..rows.end.min(first + R);
                    let sums = &mut scratch.sums[p * x.n * R..(p + 1) * x.n * R];
                    match span {
                        ScaleSpan::Super => {
                            scratch.wide.fill(weight, panel_rows, g);
                            K::super_panel(weight.ty, &scratch.wide, x, g, sums);
                        }
                        ScaleSpan::Small => {
                            scratch.small.fill(weight, panel_rows, g);
                            K::small_panel(weight.ty, &scratch.small, x, g, sums);
                        }
                    }
                }
            }
            for (p, first) in rows.clone().step_by(R).enumerate() {
                let n_rows = rows.end.min(first + R) - first;
                for t in 0..x.n {
                    out.put(t, first, &scratch.sums[(p * x.n + t) * R..][..n_rows]);
                }
            }
        },
    );
}

/// What a thread needs for its tasks.
struct Scratch<const R: usize> {
    /// `[panel][token][R]`.
    sums: Vec<f32>,
    wide: Box<SuperPanel<R>>,
    small: Box<SmallPanel<R>>,
}

impl<const R: usize> Scratch<R> {
    fn new(n: usize) -> Self {
        Scratch { sums: vec![0.0; TASK_ROWS.div_ceil(R) * R * n], wide: SuperPanel::zero(), small: SmallPanel::zero() }
    }
}

/// Plain Rust.
struct Portable;

impl PanelKernel<8> for Portable {
    fn super_panel(_: GgmlType, panel: &SuperPanel<8>, x: &QuantizedRows, g: usize, sums: &mut [f32]) {
        for (t, sums) in sums.chunks_exact_mut(8).enumerate() {
            let x = x.group(g, t);
            for (r, sum) in sums.iter_mut().enumerate() {
                let (mut products, mut mins) = (0i32, 0i32);
                for j in 0..16 {
                    let quads = quads(&panel.codes[j * 4..(j + 1) * 4], r, &x.q[j * 16..]);
                    products += i32::from(panel.scale[j][r][0]) * quads;
                    mins += i32::from(panel.min[j / 2][r][j % 2]) * i32::from(x.sum16[j]);
                }
                *sum += x.scale[0] * (panel.d[r] * products as f32 - panel.dmin[r] * mins as f32);
            }
        }
    }

    fn small_panel(_: GgmlType, panel: &SmallPanel<8>, x: &QuantizedRows, g: usize, sums: &mut [f32]) {
        for (t, sums) in sums.chunks_exact_mut(8).enumerate() {
            let x = x.group(g, t);
            for (r, sum) in sums.iter_mut().enumerate() {
                for b in 0..8 {
                    let products = quads(&panel.codes[b * 8..(b + 1) * 8], r, &x.q[b * 32..]);
                    *sum += panel.d[b][r] * x.scale[b] * products as f32 + panel.m[b][r] * x.total32[b];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct Avx2;

#[cfg(target_arch = "x86_64")]
impl PanelKernel<8> for Avx2 {
    fn super_panel(ty: GgmlType, panel: &SuperPanel<8>, x: &QuantizedRows, g: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::panel_avx2::super_panel(ty, panel, x, g, sums) }
    }

    fn small_panel(ty: GgmlType, panel: &SmallPanel<8>, x: &QuantizedRows, g: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::panel_avx2::small_panel(ty, panel, x, g, sums) }
    }
}

#[cfg(target_arch = "x86_64")]
struct Avx512Vnni;

#[cfg(target_arch = "x86_64")]
impl PanelKernel<16> for Avx512Vnni {
    fn super_panel(_: GgmlType, panel: &SuperPanel<16>, x: &QuantizedRows, g: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::avx512::super_panel(panel, x, g, sums) }
    }

    fn small_panel(_: GgmlType, panel: &SmallPanel<16>, x: &QuantizedRows, g: usize, sums: &mut [f32]) {
        // SAFETY: this kernel is only chosen where `SimdLevel::detect` has seen its instructions.
        unsafe { super::avx512::small_panel(panel, x, g, sums) }
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
            let cols = if span == ScaleSpan::Super { 768 } else { 608 };
            let (n_rows, n) = (45, 23);
            let data: Vec<u8> = (0..n_rows).flat_map(|r| random_row(ty, cols, r as u64 + 1)).collect();
            let weight = CpuWeight { ty, rows: n_rows, cols, data: Vec::leak(data) };
            let x: Vec<f32> = (0..n * cols).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 400.0).collect();
            let mut rows = QuantizedRows::default();
            rows.quantize(SimdLevel::Portable, &x, n, cols, span);
            let mut want = vec![0.0; n * n_rows];
            let block = RowBlock { ty, row_bytes: ty.row_bytes(cols), data: weight.data };
            for (t, want) in want.chunks_exact_mut(n_rows).enumerate() {
                dot_rows(SimdLevel::Portable, block, &rows, t, 1, want);
            }
            let size = want.iter().map(|w| w * w).sum::<f32>().sqrt() / (want.len() as f32).sqrt();
            let bias: Vec<f32> = (0..n_rows).map(|r| r as f32).collect();
            for level in SimdLevel::available() {
                let mut got = vec![1.0; n * n_rows];
                multiply(level, &weight, &rows, &Output::new(&mut got, n_rows, Some(&bias), true));
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let error = (got - want - 1.0 - bias[i % n_rows]).abs();
                    assert!(error <= 2e-5 * size.max(1.0), "{ty} {level:?} element {i}: {got} for {want}");
                }
            }
        }
    }
}
