//! `x[t] += Σ` of the weighted outputs of a token's experts (`f32_moe_sum.comp`).

use shaders::Kernel;

use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError};

push_constants! {
    struct Push {
        y: ReadAddress,
        x: WriteAddress,
        n_used: u32,
        stride4: u32,
        width: u32,
        padding: u32,
    }
}

/// The variant in use.
pub fn variant(tuning: &Tuning) -> Variant {
    Variant { kernel: Kernel::MoeSum, constants: vec![tuning.elementwise] }
}

/// Records the sums of `y` (`[n_tokens * n_used, width]`) onto `x` (`[n_tokens, width]`).
pub fn record(gpu: &mut Gpu, y: Rows<'_>, x: Rows<'_>) -> Result<(), VulkanError> {
    y.check("y");
    x.check("x");
    assert_eq!((y.width, y.stride, y.n_rows % x.n_rows), (x.width, x.stride, 0), "shapes of y and x");
    let (workgroup, stride4) = (gpu.tuning.elementwise, x.stride4("x"));
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
    let mut op = gpu.commands.op();
    let n_used = (y.n_rows / x.n_rows) as u32;
    let (y_address, x_address) = (op.reads(y.region), op.writes(x.region));
    let push = Push { y: y_address, x: x_address, n_used, stride4, width: x.width as u32, padding: 0 };
    let cost = Cost { read_bytes: y.bytes() + x.bytes(), written_bytes: x.bytes(), flops: y.bytes() / 4 };
    op.dispatch(pipeline, [stride4.div_ceil(workgroup), x.n_rows as u32, 1], &push, cost)
}
