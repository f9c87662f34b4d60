//! Activations in bytes, for products in integers (`f32_quantize.comp`; the format is in `shaders/include/quantize.glsl`).

use shaders::Kernel;

use super::{Rows, flat_grid, push_constants};
use crate::backend::vulkan::commands::{Op, ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError};

/// Blocks that share a scale have 32 elements; rows are whole pairs of them.
const PAIR: usize = 64;
/// Bytes of a pair: its elements, two scales, two times two sums.
const PAIR_BYTES: usize = PAIR + 16;

push_constants! {
    struct Push {
        x: ReadAddress,
        dst: WriteAddress,
        width4: u32,
        x_stride4: u32,
        n_pieces: u32,
        n_blocks: u32,
    }
}

/// `[n_rows, width]` in bytes with a scale per 32, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRows<'r> {
    /// Where it lies.
    pub region: &'r Region,
    /// Rows.
    pub n_rows: usize,
    /// Elements per row.
    pub width: usize,
}

impl QuantizedRows<'_> {
    /// Bytes of so many rows.
    pub fn bytes_of(n_rows: usize, width: usize) -> u64 {
        (n_rows * width.div_ceil(PAIR) * PAIR_BYTES) as u64
    }

    /// Bytes that the rows take.
    pub(super) fn bytes(&self) -> u64 {
        Self::bytes_of(self.n_rows, self.width)
    }

    /// Pieces of 16 bytes of a row before its scales, as the kernels count.
    pub(super) fn n_pieces(&self) -> u32 {
        (self.width.div_ceil(PAIR) * PAIR / 16) as u32
    }

    /// Checks that the rows lie in the region and are as many and as wide as those of `x`.
    pub(super) fn check(&self, x: Rows<'_>) {
        assert_eq!((self.n_rows, self.width), (x.n_rows, x.width), "rows in bytes");
        let bytes = self.bytes();
        // The kernels count pieces in 32 bits, and scales of half a piece.
        assert!(bytes <= self.region.bytes && bytes < 1 << 34, "{bytes} bytes of {}", self.region.bytes);
    }

    /// Address for an op that reads the rows.
    pub(super) fn read(&self, op: &mut Op<'_>) -> ReadAddress {
        op.reads(&self.region.slice(0, self.bytes()))
    }

    /// Address for an op that writes the rows.
    pub(super) fn written(&self, op: &mut Op<'_>) -> WriteAddress {
        op.writes(&self.region.slice(0, self.bytes()))
    }
}

/// The variant in use.
pub fn variant(tuning: &Tuning) -> Variant {
    Variant { kernel: Kernel::Quantize, constants: vec![tuning.elementwise] }
}

/// Records `dst = x` in bytes. What lies between the width and the next multiple of 4 elements of `x` is zero.
pub fn record(gpu: &mut Gpu, x: Rows<'_>, dst: QuantizedRows<'_>) -> Result<(), VulkanError> {
    x.check("x");
    dst.check(x);
    let n_blocks = x.n_rows as u32 * dst.n_pieces() / 2;
    let groups = flat_grid(n_blocks.div_ceil(gpu.tuning.elementwise), gpu.max_groups());
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
    let mut op = gpu.commands.op();
    let push = Push {
        x: op.reads(x.region),
        dst: dst.written(&mut op),
        width4: x.width.div_ceil(4) as u32,
        x_stride4: x.stride4("x"),
        n_pieces: dst.n_pieces(),
        n_blocks,
    };
    let cost = Cost { read_bytes: x.bytes(), written_bytes: dst.bytes(), flops: x.bytes() };
    op.dispatch(pipeline, groups, &push, cost)
}
