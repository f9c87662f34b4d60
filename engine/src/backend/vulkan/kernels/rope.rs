//! Rotary position embedding in place (`f32_rope.comp`).

use shaders::Kernel;

use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError};
use crate::model::RopeLayout;

push_constants! {
    struct Push {
        x: WriteAddress,
        cos_sin: ReadAddress,
        n_pairs: u32,
        n_heads: u32,
        head_dim: u32,
        stride: u32,
    }
}

/// How heads are rotated.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'r> {
    /// `[n_tokens, 2, n_pairs] f32`: the cosines of a token, then its sines.
    pub cos_sin: &'r Region,
    /// Pairs that are rotated in each head.
    pub n_pairs: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Which elements are a pair.
    pub layout: RopeLayout,
}

/// The variant for pairs of this layout.
pub fn variant(tuning: &Tuning, layout: RopeLayout) -> Variant {
    Variant { kernel: Kernel::Rope, constants: vec![tuning.elementwise, u32::from(layout == RopeLayout::Neox)] }
}

/// Records the rotation of every head of `x`.
pub fn record(gpu: &mut Gpu, x: Rows<'_>, rotation: &Rotation<'_>) -> Result<(), VulkanError> {
    let Rotation { cos_sin, n_pairs, head_dim, layout } = *rotation;
    x.check("x");
    assert!(n_pairs > 0 && 2 * n_pairs <= head_dim && x.width.is_multiple_of(head_dim), "{rotation:?} of {x:?}");
    assert!((x.n_rows * 2 * n_pairs * 4) as u64 <= cos_sin.bytes, "angles of {} tokens", x.n_rows);
    let (workgroup, n_heads) = (gpu.tuning.elementwise, (x.width / head_dim) as u32);
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, layout))?;
    let mut op = gpu.commands.op();
    let push = Push {
        x: op.writes(x.region),
        cos_sin: op.reads(cos_sin),
        n_pairs: n_pairs as u32,
        n_heads,
        head_dim: head_dim as u32,
        stride: x.stride as u32,
    };
    let cost = Cost { read_bytes: x.bytes(), written_bytes: x.bytes(), flops: x.bytes() };
    op.dispatch(pipeline, [(n_pairs as u32 * n_heads).div_ceil(workgroup), x.n_rows as u32, 1], &push, cost)
}
