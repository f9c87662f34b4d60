//! Norms and rotation of a batch's heads, and its keys and values into the cache, in one dispatch
//! (`f32_place_heads.comp`).

use shaders::{Kernel, WeightType};

use super::kv_store::{CacheShape, LayerCache, Places, constant};
use super::rope::Rotation;
use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError, Weight};
use crate::kv::{KvOptions, PAGE};
use crate::model::RopeLayout;

const HAS_Q_NORM: u32 = 1;
const HAS_K_NORM: u32 = 2;

push_constants! {
    struct Push {
        q: WriteAddress,
        k: ReadAddress,
        v: ReadAddress,
        k_cache: WriteAddress,
        v_cache: WriteAddress,
        tables: ReadAddress,
        seqs: ReadAddress,
        positions: ReadAddress,
        cos_sin: ReadAddress,
        q_norm: ReadAddress,
        k_norm: ReadAddress,
        n_head: u32,
        n_head_kv: u32,
        q_stride: u32,
        kv_stride: u32,
        pages_per_seq: u32,
        n_pairs: u32,
        eps: f32,
        flags: u32,
    }
}

/// The variant for heads of `head_dim` elements.
pub fn variant(tuning: &Tuning, head_dim: usize, layout: RopeLayout, types: KvOptions) -> Variant {
    let neox = u32::from(layout == RopeLayout::Neox);
    let [k, v] = [types.k, types.v].map(constant);
    let constants = vec![tuning.place_heads, head_dim as u32, PAGE as u32, neox, k, v];
    Variant { kernel: Kernel::PlaceHeads, constants }
}

/// Projections of a batch.
#[derive(Clone, Copy)]
pub struct Projections<'a> {
    /// `[n_tokens, n_head * head_dim]`, normed and rotated in place.
    pub q: Rows<'a>,
    /// `[n_tokens, n_head_kv * head_dim]`.
    pub k: Rows<'a>,
    /// As `k`.
    pub v: Rows<'a>,
    /// `[head_dim]`.
    pub q_norm: Option<&'a Weight>,
    /// `[head_dim]`.
    pub k_norm: Option<&'a Weight>,
    /// Of the norms.
    pub eps: f32,
}

/// Records all that happens to the projections before attention.
pub fn record(
    gpu: &mut Gpu,
    projections: &Projections<'_>,
    rotation: &Rotation<'_>,
    places: &Places<'_>,
    shape: CacheShape,
    cache: &LayerCache,
) -> Result<(), VulkanError> {
    let Projections { q, k, v, q_norm, k_norm, eps } = *projections;
    let Rotation { cos_sin, n_pairs, head_dim, layout } = *rotation;
    q.check("q");
    k.check("k");
    v.check("v");
    places.check(q.n_rows);
    shape.check(cache);
    assert_eq!((k.n_rows, k.width, k.stride), (v.n_rows, v.width, v.stride), "shapes of k and v");
    assert_eq!((q.n_rows, head_dim), (k.n_rows, shape.head_dim), "tokens and heads of q and k");
    assert_eq!(k.width, shape.n_head_kv * head_dim, "width of k");
    assert!(q.width.is_multiple_of(head_dim), "{} query elements in heads of {head_dim}", q.width);
    assert!(n_pairs > 0 && 2 * n_pairs <= head_dim, "{rotation:?}");
    assert!((q.n_rows * 2 * n_pairs * 4) as u64 <= cos_sin.bytes, "angles of {} tokens", q.n_rows);
    for norm in [q_norm, k_norm].into_iter().flatten() {
        assert_eq!((norm.rows, norm.cols, norm.ty), (1, head_dim, WeightType::F32), "shape of {}", norm.name);
    }
    let n_head = q.width / head_dim;
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, head_dim, layout, shape.types))?;
    let mut op = gpu.commands.op();
    let address = |norm: Option<&Weight>| norm.map_or(ReadAddress::NONE, |w| w.quants);
    let push = Push {
        q: op.writes(q.region),
        k: op.reads(k.region),
        v: op.reads(v.region),
        k_cache: op.writes(&cache.k),
        v_cache: op.writes(&cache.v),
        tables: op.reads(places.tables),
        seqs: op.reads(places.seqs),
        positions: op.reads(places.positions),
        cos_sin: op.reads(cos_sin),
        q_norm: address(q_norm),
        k_norm: address(k_norm),
        n_head: n_head as u32,
        n_head_kv: shape.n_head_kv as u32,
        q_stride: q.stride as u32,
        kv_stride: k.stride as u32,
        pages_per_seq: places.pages_per_seq as u32,
        n_pairs: n_pairs as u32,
        eps,
        flags: if q_norm.is_some() { HAS_Q_NORM } else { 0 } | if k_norm.is_some() { HAS_K_NORM } else { 0 },
    };
    let cost = Cost {
        read_bytes: q.bytes() + k.bytes() + v.bytes(),
        written_bytes: q.bytes() + k.bytes(),
        flops: 2 * (q.bytes() + k.bytes()),
    };
    let groups = [(n_head + 2 * shape.n_head_kv) as u32, q.n_rows as u32, 1];
    op.dispatch(pipeline, groups, &push, cost)
}
