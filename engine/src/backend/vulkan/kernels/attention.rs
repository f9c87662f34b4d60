//! Causal attention over a slot's cache (`f32_f16kv_attention.comp`).

use shaders::Kernel;

use super::kv_store::{CacheShape, LayerCache, Places};
use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError};

push_constants! {
    struct Push {
        q: ReadAddress,
        k_cache: ReadAddress,
        v_cache: ReadAddress,
        slots: ReadAddress,
        positions: ReadAddress,
        dst: WriteAddress,
        n_head_kv: u32,
        group: u32,
        n_ctx: u32,
        q_stride4: u32,
        scale: f32,
        padding: u32,
    }
}

/// The variant for heads of `head_dim` elements.
pub fn variant(tuning: &Tuning, head_dim: usize) -> Variant {
    Variant { kernel: Kernel::Attention, constants: vec![tuning.attention, (head_dim / 4) as u32] }
}

/// Records the attention of `q` (`[n_tokens, n_head * head_dim]`) over positions 0 to its own of each token's slot;
/// `n_positions` is the number of positions over all tokens, for the cost.
pub fn record(
    gpu: &mut Gpu,
    q: Rows<'_>,
    places: &Places<'_>,
    shape: CacheShape,
    cache: &LayerCache,
    dst: Rows<'_>,
    n_positions: u64,
) -> Result<(), VulkanError> {
    q.check("q");
    dst.check("dst");
    places.check(q.n_rows);
    shape.check(cache);
    assert_eq!((q.n_rows, q.width, q.stride), (dst.n_rows, dst.width, dst.stride), "shapes of q and dst");
    let (head_dim, workgroup) = (shape.head_dim, gpu.tuning.attention);
    assert!(q.width.is_multiple_of(shape.n_head_kv * head_dim), "{} query elements for {shape:?}", q.width);
    assert!(head_dim / 4 <= workgroup as usize, "a head of {head_dim} and workgroups of {workgroup}");
    let n_head = q.width / head_dim;
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, head_dim))?;
    let mut op = gpu.commands.op();
    let push = Push {
        q: op.reads(q.region),
        k_cache: op.reads(&cache.k),
        v_cache: op.reads(&cache.v),
        slots: op.reads(places.slots),
        positions: op.reads(places.positions),
        dst: op.writes(dst.region),
        n_head_kv: shape.n_head_kv as u32,
        group: (n_head / shape.n_head_kv) as u32,
        n_ctx: shape.n_ctx as u32,
        q_stride4: q.stride4("q"),
        scale: 1.0 / (head_dim as f32).sqrt(),
        padding: 0,
    };
    let cost = Cost {
        read_bytes: q.bytes() + n_positions * (shape.n_head_kv * head_dim * 4) as u64,
        written_bytes: dst.bytes(),
        flops: n_positions * 4 * q.width as u64,
    };
    op.dispatch(pipeline, [n_head as u32, q.n_rows as u32, 1], &push, cost)
}
