//! `gate = act(gate, up)` (`f32_swiglu.comp`).

use shaders::Kernel;

use super::{Rows, flat_grid, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError};
use crate::model::Activation;

push_constants! {
    struct Push {
        gate: WriteAddress,
        up: ReadAddress,
        n4: u32,
        padding: u32,
    }
}

/// The variant of an activation.
pub fn variant(tuning: &Tuning, activation: Activation) -> Variant {
    Variant { kernel: Kernel::Swiglu, constants: vec![tuning.elementwise, activation_code(activation)] }
}

/// Number of an activation in `activation.glsl`.
pub(super) fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Swiglu => 0,
        Activation::SwigluOai => 1,
    }
}

/// Records the activation of whole rows: what lies between the width and the stride is finite, and stays so.
pub fn record(gpu: &mut Gpu, gate: Rows<'_>, up: Rows<'_>, activation: Activation) -> Result<(), VulkanError> {
    gate.check("gate");
    up.check("up");
    assert_eq!((gate.n_rows, gate.width, gate.stride), (up.n_rows, up.width, up.stride), "shapes of gate and up");
    let workgroup = gpu.tuning.elementwise;
    let n4 = gate.n_rows as u32 * gate.stride4("gate");
    let groups = flat_grid(n4.div_ceil(workgroup), gpu.max_groups());
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, activation))?;
    let mut op = gpu.commands.op();
    let push = Push { gate: op.writes(gate.region), up: op.reads(up.region), n4, padding: 0 };
    let cost = Cost { read_bytes: gate.bytes() + up.bytes(), written_bytes: gate.bytes(), flops: gate.bytes() };
    op.dispatch(pipeline, groups, &push, cost)
}
