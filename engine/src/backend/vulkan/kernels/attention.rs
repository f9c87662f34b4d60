//! Causal attention over the cache (`f32_f16kv_attention.comp`).

use shaders::{Kernel, WeightType};

use super::kv_store::{CacheShape, LayerCache, Places};
use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError, Weight};
use crate::kv::PAGE;

push_constants! {
    struct Push {
        q: ReadAddress,
        k_cache: ReadAddress,
        v_cache: ReadAddress,
        tables: ReadAddress,
        seqs: ReadAddress,
        positions: ReadAddress,
        sinks: ReadAddress,
        dst: WriteAddress,
        n_head_kv: u32,
        group: u32,
        pages_per_seq: u32,
        window: u32,
        has_sinks: u32,
        q_stride4: u32,
        scale: f32,
        padding: u32,
    }
}

/// The variant for heads of `head_dim` elements.
pub fn variant(tuning: &Tuning, head_dim: usize) -> Variant {
    Variant { kernel: Kernel::Attention, constants: vec![tuning.attention, (head_dim / 4) as u32, PAGE as u32] }
}

/// What a layer's tokens see.
#[derive(Clone, Copy, Debug, Default)]
pub struct View<'a> {
    /// Positions that a token attends to, itself included; `None` for all.
    pub window: Option<usize>,
    /// `[n_head]`: one more logit per head, without a value.
    pub sinks: Option<&'a Weight>,
    /// Positions that are read over all tokens, for the cost.
    pub n_positions: u64,
}

/// Records the attention of `q` (`[n_tokens, n_head * head_dim]`) over what each token sees of its sequence.
pub fn record(
    gpu: &mut Gpu,
    q: Rows<'_>,
    places: &Places<'_>,
    shape: CacheShape,
    cache: &LayerCache,
    dst: Rows<'_>,
    view: &View<'_>,
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
    if let Some(sinks) = view.sinks {
        assert_eq!((sinks.rows, sinks.cols, sinks.ty), (1, n_head, WeightType::F32), "shape of {}", sinks.name);
    }
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, head_dim))?;
    let mut op = gpu.commands.op();
    let push = Push {
        q: op.reads(q.region),
        k_cache: op.reads(&cache.k),
        v_cache: op.reads(&cache.v),
        tables: op.reads(places.tables),
        seqs: op.reads(places.seqs),
        positions: op.reads(places.positions),
        sinks: view.sinks.map_or(ReadAddress::NONE, |s| s.quants),
        dst: op.writes(dst.region),
        n_head_kv: shape.n_head_kv as u32,
        group: (n_head / shape.n_head_kv) as u32,
        pages_per_seq: places.pages_per_seq as u32,
        window: view.window.map_or(u32::MAX, |w| w as u32),
        has_sinks: u32::from(view.sinks.is_some()),
        q_stride4: q.stride4("q"),
        scale: 1.0 / (head_dim as f32).sqrt(),
        padding: 0,
    };
    let cost = Cost {
        read_bytes: q.bytes() + view.n_positions * (shape.n_head_kv * head_dim * 4) as u64,
        written_bytes: dst.bytes(),
        flops: view.n_positions * 4 * q.width as u64,
    };
    op.dispatch(pipeline, [n_head as u32, q.n_rows as u32, 1], &push, cost)
}
