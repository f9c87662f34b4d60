//! Products of some rows of a weight with some tokens, by whichever kernel suits: repacked weights (`packed`), rows
//! for few tokens (`rows`), panels for many (`panel`), f32 where the weight or the precision calls for it (`float`). Everything that multiplies,
//! `Cpu::linear` and `moe`, cuts its work into such blocks and runs them side by side.

use super::activation::{QuantizedRows, ScaleSpan};
use super::rows::RowBlock;
use super::simd::SimdLevel;
use super::{CpuWeight, Precision, float, group, panel, rows};
use std::cell::RefCell;
use std::ops::Range;

/// Most rows of a block.
const MAX_BLOCK_ROWS: usize = 128;
/// Most rows of a block of f32 products.
const FLOAT_BLOCK_ROWS: usize = 16;

/// Whether a weight is multiplied in integers, and with which form of activations.
pub(super) fn integer_span(weight: &CpuWeight, precision: Precision) -> Option<ScaleSpan> {
    group::span_of(weight.ty).filter(|_| precision == Precision::Fast)
}

/// The activations of a product in the forms that its weights call for.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// `[n, cols]`.
    pub(super) float: &'a [f32],
    /// By [`ScaleSpan`]; only the forms that a weight has are filled.
    pub(super) quantized: &'a [QuantizedRows; 2],
    pub(super) precision: Precision,
    pub(super) level: SimdLevel,
}

/// Quantises `x`, `[n, cols]`, in the forms that `weights` call for.
pub(super) fn quantize<'w>(
    forms: &mut [QuantizedRows; 2],
    level: SimdLevel,
    precision: Precision,
    x: &[f32],
    n: usize,
    weights: impl Iterator<Item = &'w CpuWeight> + Clone,
) {
    for span in [ScaleSpan::Super, ScaleSpan::Small] {
        if let Some(weight) = weights.clone().find(|w| integer_span(w, precision) == Some(span)) {
            forms[span as usize].quantize(level, x, n, weight.cols, span);
        }
    }
}

/// Rows that one block of `weight` should have, when `total` rows are shared out and `n` tokens meet each.
pub(super) fn block_rows(weight: &CpuWeight, precision: Precision, total: usize, n: usize) -> usize {
    // Several blocks per thread, so that none waits long for the last.
    let fair = (total / (rayon::current_num_threads() * 8)).max(8);
    match integer_span(weight, precision) {
        None => fair.min(FLOAT_BLOCK_ROWS),
        Some(_) if n >= panel::MIN_TOKENS => panel::TASK_ROWS,
        // Whole panels of repacked weights.
        Some(_) => fair.min(MAX_BLOCK_ROWS).next_multiple_of(8),
    }
}

/// `out[i][r] = row r of rows · x[tokens.start + i]`; `out` is `[tokens][rows]`.
pub(super) fn multiply(
    weight: &CpuWeight,
    rows: Range<usize>,
    x: Inputs<'_>,
    tokens: Range<usize>,
    scratch: &mut KernelScratch,
    out: &mut [f32],
) {
    match integer_span(weight, x.precision) {
        None => float::multiply(x.level, weight, rows, x.float, tokens, &mut scratch.decoded, out),
        #[cfg(target_arch = "x86_64")]
        Some(span) if let Some(packed) = weight.packed(&rows) => {
            packed.multiply(rows, &x.quantized[span as usize], tokens, &mut scratch.sums, out);
        }
        Some(span) if tokens.len() >= panel::MIN_TOKENS => {
            let x_rows = &x.quantized[span as usize];
            panel::multiply(x.level, weight, rows, x_rows, tokens, &mut scratch.sums, out);
        }
        Some(span) => {
            let row_bytes = weight.ty.row_bytes(weight.cols);
            let data = &weight.data[rows.start * row_bytes..rows.end * row_bytes];
            let block = RowBlock { ty: weight.ty, row_bytes, data };
            rows::dot_rows(x.level, block, &x.quantized[span as usize], tokens, out);
        }
    }
}

/// What a worker thread keeps between blocks.
#[derive(Default)]
pub(super) struct Scratch {
    /// For the results of a block, or of two.
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
    pub(super) kernel: KernelScratch,
}

/// What the kernels need for themselves.
#[derive(Default)]
pub(super) struct KernelScratch {
    sums: Vec<f32>,
    decoded: Vec<f32>,
}

/// Runs `f` with this thread's scratch. `f` must not run parallel loops.
pub(super) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
    SCRATCH.with_borrow_mut(f)
}
