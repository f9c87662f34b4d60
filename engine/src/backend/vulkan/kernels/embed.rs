//! `x[t] = table[token[t]]`, decoded to f32 (`f32_anyw_embed.comp`).

use shaders::{Kernel, WeightType};

use super::{Rows, check_indices, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError, Weight};

push_constants! {
    struct Push {
        quants: ReadAddress,
        high: ReadAddress,
        scales: ReadAddress,
        tokens: ReadAddress,
        x: WriteAddress,
        n_units: u32,
        x_stride4: u32,
    }
}

/// The variant for tables of type `ty`.
pub fn variant(tuning: &Tuning, ty: WeightType) -> Variant {
    Variant { kernel: Kernel::Embed(ty), constants: vec![tuning.elementwise] }
}

/// Records the look-up of `tokens` (`[x.n_rows] u32`, all below the table's rows) into `x`.
pub fn record(gpu: &mut Gpu, table: &Weight, tokens: &Region, x: Rows<'_>) -> Result<(), VulkanError> {
    x.check("x");
    check_indices(tokens, x.n_rows, "tokens");
    assert_eq!(table.cols, x.width, "width of {}", table.name);
    let n_units = table.units_per_row();
    assert!(n_units as usize * table.ty.unit() <= x.stride, "a padded row of {} fits", table.name);
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, table.ty))?;
    let mut op = gpu.commands.op();
    let push = Push {
        quants: table.quants,
        high: table.high,
        scales: table.scales,
        tokens: op.reads(tokens),
        x: op.writes(x.region),
        n_units,
        x_stride4: x.stride4("x"),
    };
    let cost = Cost { read_bytes: x.n_rows as u64 * table.row_bytes(), written_bytes: x.bytes(), ..Cost::default() };
    op.dispatch(pipeline, [x.n_rows as u32, 1, 1], &push, cost)
}
