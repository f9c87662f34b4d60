//! Rows of activations as f16 for the matrix units, each divided by a power of two (`f32_half_rows.comp`), in a region
//! that the device keeps for them. Products with the same input share what one conversion made.

use shaders::Kernel;

use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{Op, ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError};

push_constants! {
    struct Push {
        x: ReadAddress,
        dst: WriteAddress,
        stride4: u32,
        padding: u32,
    }
}

/// f16 rows on the device: 16 bytes with what the row was divided by, then its elements.
#[derive(Clone, Copy, Debug)]
pub struct HalfRows {
    region: Region,
    n_rows: usize,
    stride: usize,
}

impl HalfRows {
    /// The address, for an op that reads the rows, and 16-byte pieces from one to the next.
    pub(super) fn read(&self, op: &mut Op<'_>, of: Rows<'_>) -> (ReadAddress, u32) {
        assert_eq!((self.n_rows, self.stride), (of.n_rows, of.stride), "f16 rows of {of:?}");
        (op.reads(&self.region), self.stride as u32 / 8 + 1)
    }

    /// The words, once they were computed. Only of memory that the processor can access.
    pub fn read_back(&self) -> Vec<u32> {
        bytemuck::cast_slice(self.region.read()).to_vec()
    }
}

/// Bytes of `n_rows` rows of `stride` elements.
pub fn bytes(n_rows: usize, stride: usize) -> u64 {
    (n_rows * (2 * stride + 16)) as u64
}

/// The variant of a device.
pub fn variant(tuning: &Tuning) -> Variant {
    Variant { kernel: Kernel::HalfRows, constants: vec![tuning.half_rows] }
}

/// Records the conversion of `x`, whose rows hold finite numbers up to their stride. What was converted before is gone.
pub fn record(gpu: &mut Gpu, x: Rows<'_>) -> Result<HalfRows, VulkanError> {
    x.check("x");
    assert!(x.stride.is_multiple_of(8), "stride {}", x.stride);
    gpu.reserve_half_rows(bytes(x.n_rows, x.stride))?;
    let region = gpu.half_rows.expect("reserved just now").slice(0, bytes(x.n_rows, x.stride));
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
    let mut op = gpu.commands.op();
    let push = Push { x: op.reads(x.region), dst: op.writes(&region), stride4: x.stride4("x"), padding: 0 };
    let n = (x.n_rows * x.stride) as u64;
    let cost = Cost { read_bytes: 4 * n, written_bytes: 2 * n, flops: n };
    op.dispatch(pipeline, [x.n_rows as u32, 1, 1], &push, cost)?;
    Ok(HalfRows { region, n_rows: x.n_rows, stride: x.stride })
}
