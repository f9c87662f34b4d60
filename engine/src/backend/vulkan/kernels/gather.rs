//! `dst[i] = x[rows[i]]` (`f32_gather.comp`).

use shaders::Kernel;

use super::{Rows, check_indices, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError};

push_constants! {
    struct Push {
        x: ReadAddress,
        rows: ReadAddress,
        dst: WriteAddress,
        stride4: u32,
        padding: u32,
    }
}

/// The variant in use.
pub fn variant(tuning: &Tuning) -> Variant {
    Variant { kernel: Kernel::Gather, constants: vec![tuning.elementwise] }
}

/// Records the copy of the rows that `rows` (`[dst.n_rows] u32`, all below `x.n_rows`) names.
pub fn record(gpu: &mut Gpu, x: Rows<'_>, rows: &Region, dst: Rows<'_>) -> Result<(), VulkanError> {
    x.check("x");
    dst.check("dst");
    check_indices(rows, dst.n_rows, "rows");
    assert_eq!((x.width, x.stride), (dst.width, dst.stride), "shapes of x and dst");
    let (workgroup, stride4) = (gpu.tuning.elementwise, x.stride4("x"));
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
    let mut op = gpu.commands.op();
    let push = Push { x: op.reads(x.region), rows: op.reads(rows), dst: op.writes(dst.region), stride4, padding: 0 };
    let cost = Cost { read_bytes: dst.bytes(), written_bytes: dst.bytes(), flops: 0 };
    op.dispatch(pipeline, [stride4.div_ceil(workgroup), dst.n_rows as u32, 1], &push, cost)
}
