//! `x[t] *= sigmoid(gate[t])` (`f32_scale_by_sigmoid.comp`).

use shaders::Kernel;

use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError};

push_constants! {
    struct Push {
        x: WriteAddress,
        gate: ReadAddress,
        stride4: u32,
        gate_stride: u32,
    }
}

/// The variant in use.
pub fn variant(tuning: &Tuning) -> Variant {
    Variant { kernel: Kernel::ScaleBySigmoid, constants: vec![tuning.elementwise] }
}

/// Records the scaling of `x` (`[n_tokens, width]`) by `gate` (`[n_tokens, 1]`).
pub fn record(gpu: &mut Gpu, x: Rows<'_>, gate: Rows<'_>) -> Result<(), VulkanError> {
    x.check("x");
    gate.check("gate");
    assert_eq!((x.n_rows, gate.width), (gate.n_rows, 1), "shape of the gate");
    let (workgroup, stride4) = (gpu.tuning.elementwise, x.stride4("x"));
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
    let mut op = gpu.commands.op();
    let push = Push { x: op.writes(x.region), gate: op.reads(gate.region), stride4, gate_stride: gate.stride as u32 };
    let cost = Cost { read_bytes: x.bytes(), written_bytes: x.bytes(), flops: x.bytes() };
    op.dispatch(pipeline, [stride4.div_ceil(workgroup), x.n_rows as u32, 1], &push, cost)
}
