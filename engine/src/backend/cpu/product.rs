//! Products of some rows of a weight with some tokens, by whichever kernel suits: rows for few tokens (`rows`), panels
//! for many (`panel`), f32 where the weight or the precision calls for it (`float`). Everything that multiplies,
//! `Cpu::linear` and `moe`, cuts its work into such blocks and runs them side by side.

use super::activation::QuantizedRows;
use super::rows::RowBlock;
use super::simd::SimdLevel;
use super::{CpuWeight, Precision, float, group, panel, rows};
use std::cell::RefCell;
use std::ops::Range;

/// Most rows of a block.
const MAX_BLOCK_ROWS: usize = 128;
/// Most rows of a block of f32 products.
const FLOAT_BLOCK_ROWS: usize = 16;

/// Whether a weight is multiplied in integers.
pub(super) fn is_integer(weight: &CpuWeight, precision: Precision) -> bool {
    precision == Precision::Fast && group::form_of(weight.ty).is_some()
}

/// The activations of a product in the forms that its weights call for.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// `[n, cols]`.
    pub(super) float: &'a [f32],
    /// The same in 8 bits, where a weight is multiplied in integers.
    pub(super) quantized: &'a QuantizedRows,
    pub(super) precision: Precision,
    pub(super) level: SimdLevel,
}

/// Rows that one block of `weight` should have, when `total` rows are shared out and `n` tokens meet each.
pub(super) fn block_rows(weight: &CpuWeight, precision: Precision, total: usize, n: usize) -> usize {
    // Several blocks per thread, so that none waits long for the last.
    let fair = (total / (rayon::current_num_threads() * 8)).max(8);
    match is_integer(weight, precision) {
        false => fair.min(FLOAT_BLOCK_ROWS),
        true if n >= panel::MIN_TOKENS => panel::TASK_ROWS,
        true => fair.min(MAX_BLOCK_ROWS),
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
    if !is_integer(weight, x.precision) {
        float::multiply(x.level, weight, rows, x.float, tokens, &mut scratch.decoded, out);
    } else if tokens.len() >= panel::MIN_TOKENS {
        panel::multiply(x.level, weight, rows, x.quantized, tokens, &mut scratch.sums, out);
    } else {
        let row_bytes = weight.ty.row_bytes(weight.cols);
        let data = &weight.data[rows.start * row_bytes..rows.end * row_bytes];
        rows::dot_rows(x.level, RowBlock { ty: weight.ty, row_bytes, data }, x.quantized, tokens, out);
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
