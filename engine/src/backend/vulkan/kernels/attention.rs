//! Causal attention over the cache: single tokens and short drafts by `f32_anykv_attention.comp`, sequences with many
//! query rows in tiles (`prompt_attention`); for long contexts in several splits that `f32_attention_merge.comp` brings
//! together. Which is which, [`Work`] says.

use shaders::{Kernel, WeightType};

use super::attention_work::{Span, Work};
use super::kv_store::{CacheShape, LayerCache, Places, constant};
use super::{Rows, prompt_attention, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::tune::MAX_ATTENTION_GROUPS;
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError, Weight};
use crate::kv::{KvOptions, PAGE};

/// Most query heads that a workgroup computes: their sums stay in registers.
const MAX_GROUP: usize = 8;

push_constants! {
    struct Push {
        q: ReadAddress,
        k_cache: ReadAddress,
        v_cache: ReadAddress,
        tables: ReadAddress,
        seqs: ReadAddress,
        positions: ReadAddress,
        sinks: ReadAddress,
        tiles: ReadAddress,
        dst: WriteAddress,
        partials: WriteAddress,
        n_head_kv: u32,
        group: u32,
        pages_per_seq: u32,
        window: u32,
        has_sinks: u32,
        q_stride4: u32,
        scale: f32,
        n_splits: u32,
    }
}

/// Push constants of the merge.
pub(super) mod merge {
    use super::{ReadAddress, WriteAddress, push_constants};

    push_constants! {
        struct Push {
            partials: ReadAddress,
            sinks: ReadAddress,
            dst: WriteAddress,
            n_splits: u32,
            has_sinks: u32,
            stride4: u32,
            padding: u32,
        }
    }
}

/// Specialization constant with the size of subgroups.
pub(in crate::backend::vulkan) const SUBGROUP_ID: usize = 6;

/// Query heads of a workgroup where `group` share a key/value head: the largest divisor up to 8.
fn heads_at_once(group: usize) -> usize {
    (1..=MAX_GROUP.min(group)).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1)
}

/// The variants for heads of `head_dim` elements of which `group` share keys and values.
pub fn variants(
    tuning: &Tuning,
    head_dim: usize,
    group: usize,
    types: KvOptions,
) -> impl Iterator<Item = Variant> + use<> {
    let few = [attention(tuning, head_dim, group, types), merge(tuning, head_dim)];
    few.into_iter().chain(prompt_attention::variant(tuning, head_dim, types))
}

fn attention(tuning: &Tuning, head_dim: usize, group: usize, types: KvOptions) -> Variant {
    let ([k, v], heads) = ([types.k, types.v].map(constant), heads_at_once(group) as u32);
    let head_dim4 = (head_dim / 4) as u32;
    let constants = vec![tuning.attention, head_dim4, PAGE as u32, heads, k, v, tuning.attention_subgroup];
    Variant { kernel: Kernel::Attention, constants }
}

fn merge(tuning: &Tuning, head_dim: usize) -> Variant {
    Variant { kernel: Kernel::AttentionMerge, constants: vec![tuning.place_heads, (head_dim / 4) as u32] }
}

/// What a layer's tokens see, and how they are shared out among kernels.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Positions that a token attends to, itself included; `None` for all.
    pub window: Option<usize>,
    /// `[n_head]`: one more logit per head, without a value.
    pub sinks: Option<&'a Weight>,
    /// The batch.
    pub work: &'a Work,
    /// Its tiles, as [`Work::write`] has put them there.
    pub tiles: &'a Region,
    /// Room for the results of positions in several pieces: [`partial_bytes`].
    pub partials: &'a Region,
}

/// The attention of a span of a batch: rows and places are those of its tokens alone.
pub(super) struct Task<'a> {
    pub q: Rows<'a>,
    pub dst: Rows<'a>,
    pub places: Places<'a>,
    pub shape: CacheShape,
    pub cache: &'a LayerCache,
    pub view: &'a View<'a>,
    pub span: &'a Span,
}

impl Task<'_> {
    pub fn n_head(&self) -> usize {
        self.q.width / self.shape.head_dim
    }

    /// Bytes of the results of one piece of the positions.
    pub fn result_bytes(&self) -> u64 {
        (self.q.n_rows * self.n_head() * (4 + self.shape.head_dim) * 4) as u64
    }

    /// Records `groups` workgroups of a kernel, whose last dimension are the pieces of the positions, and what brings
    /// several together. It reads `n_read` positions, and its tokens see `n_seen`.
    pub fn dispatch(
        &self,
        gpu: &mut Gpu,
        variant: &Variant,
        groups: [u32; 3],
        tiles: Option<&Region>,
        [n_read, n_seen]: [u64; 2],
    ) -> Result<(), VulkanError> {
        let Task { q, dst, places, shape, cache, view, .. } = self;
        let n_splits = groups[2] as usize;
        let is_split = n_splits > 1;
        let written_bytes = if is_split { self.result_bytes() * n_splits as u64 } else { dst.bytes() };
        assert!(!is_split || written_bytes <= view.partials.bytes, "{n_splits} splits of {} tokens", q.n_rows);
        let pipeline = gpu.pipelines.get(variant)?;
        let mut op = gpu.commands.op();
        let push = Push {
            q: op.reads(q.region),
            k_cache: op.reads(&cache.k),
            v_cache: op.reads(&cache.v),
            tables: op.reads(places.tables),
            seqs: op.reads(places.seqs),
            positions: op.reads(places.positions),
            sinks: view.sinks.map_or(ReadAddress::NONE, |s| s.quants),
            tiles: tiles.map_or(ReadAddress::NONE, |tiles| op.reads(tiles)),
            // Only one of the two is written.
            dst: if is_split { WriteAddress::NONE } else { op.writes(dst.region) },
            partials: if is_split { op.writes(view.partials) } else { WriteAddress::NONE },
            n_head_kv: shape.n_head_kv as u32,
            group: view.work.group() as u32,
            pages_per_seq: places.pages_per_seq as u32,
            window: view.window.map_or(u32::MAX, |w| w as u32),
            has_sinks: u32::from(view.sinks.is_some()),
            q_stride4: q.stride4("q"),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            n_splits: n_splits as u32,
        };
        let cost = Cost {
            read_bytes: q.bytes() + n_read * shape.types.bytes((shape.n_head_kv * shape.head_dim) as u64),
            written_bytes,
            flops: n_seen * 4 * q.width as u64,
        };
        op.dispatch(pipeline, groups, &push, cost)?;
        if is_split { merge_splits(gpu, *dst, shape.head_dim, view, n_splits) } else { Ok(()) }
    }
}

/// Kernels that start for the attention of sequences of `n_tokens` neighbouring tokens each, the last of which sees
/// `longest` positions: one, and one more where positions are cut into pieces.
pub(crate) fn n_launches(
    tuning: &Tuning,
    (n_head, n_head_kv, head_dim): (usize, usize, usize),
    (n_seq, n_tokens, longest): (usize, usize, usize),
) -> usize {
    let group = n_head / n_head_kv;
    let n_rows = n_tokens * group;
    let tile_rows = tuning.prompt_kernel(head_dim).filter(|_| n_tokens > 1 && n_rows >= tuning.prompt_from);
    let n_pieces = match tile_rows {
        Some(kernel) => {
            let n_groups = n_seq * n_rows.div_ceil(kernel.rows() as usize) * n_head_kv;
            let result_bytes = (n_seq * n_tokens * n_head * (4 + head_dim) * 4) as u64;
            prompt_attention::n_splits(tuning, n_groups, longest as u64, result_bytes, room_bytes(tuning, head_dim))
        }
        None => n_splits(tuning, n_seq * n_tokens, n_head, group, longest as u64),
    };
    1 + usize::from(n_pieces > 1)
}

/// Into how many pieces the positions of each token are cut, so that few tokens with long contexts (at most
/// `max_positions`) keep the whole device busy.
fn n_splits(tuning: &Tuning, n_tokens: usize, n_head: usize, group: usize, max_positions: u64) -> usize {
    let n_groups = n_tokens * n_head / heads_at_once(group);
    let wanted = tuning.attention_groups.div_ceil(n_groups);
    wanted.min((max_positions as usize).div_ceil(tuning.attention_split)).max(1)
}

/// Bytes that are set aside for the results of splits: for every number of them that may be tried.
pub(in crate::backend::vulkan) fn room_bytes(tuning: &Tuning, head_dim: usize) -> u64 {
    let attention_groups = tuning.attention_groups.max(MAX_ATTENTION_GROUPS);
    partial_bytes(&Tuning { attention_groups, ..*tuning }, head_dim)
}

/// Bytes of the results of the splits of any batch of single tokens.
pub fn partial_bytes(tuning: &Tuning, head_dim: usize) -> u64 {
    // `n_splits` makes at most twice the wanted number of workgroups, each of up to MAX_GROUP heads.
    (2 * tuning.attention_groups * MAX_GROUP * (4 + head_dim) * 4) as u64
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
    let n_head = q.width / shape.head_dim;
    assert_eq!(q.width, view.work.group() * shape.n_head_kv * shape.head_dim, "query elements for {shape:?}");
    assert_eq!(q.n_rows, view.work.n_tokens(), "tokens");
    if let Some(sinks) = view.sinks {
        assert_eq!((sinks.rows, sinks.cols, sinks.ty), (1, n_head, WeightType::F32), "shape of {}", sinks.name);
    }
    for span in view.work.spans() {
        let (first, n) = (span.tokens.start as u64, span.tokens.len());
        let rows = |all: Rows<'_>| all.region.slice(first * all.stride as u64 * 4, (n * all.stride) as u64 * 4);
        let numbers = |all: &Region| all.slice(4 * first, 4 * n as u64);
        let (q_region, dst_region) = (rows(q), rows(dst));
        let (seqs, positions) = (numbers(places.seqs), numbers(places.positions));
        let task = Task {
            q: Rows { region: &q_region, n_rows: n, ..q },
            dst: Rows { region: &dst_region, n_rows: n, ..dst },
            places: Places { seqs: &seqs, positions: &positions, ..*places },
            shape,
            cache,
            view,
            span,
        };
        if span.tiles.is_empty() {
            record_tokens(gpu, &task)?;
        } else {
            prompt_attention::record(gpu, &task)?;
        }
    }
    Ok(())
}

/// Records the attention of tokens one by one.
fn record_tokens(gpu: &mut Gpu, task: &Task<'_>) -> Result<(), VulkanError> {
    let (head_dim, workgroup, group) = (task.shape.head_dim, gpu.tuning.attention, task.view.work.group());
    assert!(head_dim / 4 <= workgroup as usize, "a head of {head_dim} and workgroups of {workgroup}");
    let (n_head, n_tokens) = (task.n_head(), task.q.n_rows);
    let (n_positions, most) = task.view.work.seen(task.span, task.view.window);
    let n_splits = n_splits(&gpu.tuning, n_tokens, n_head, group, most);
    let variant = attention(&gpu.tuning, head_dim, group, task.shape.types);
    let groups = [n_head / heads_at_once(group), n_tokens, n_splits].map(|n| n as u32);
    task.dispatch(gpu, &variant, groups, None, [n_positions; 2])
}

/// Brings the results of several pieces of the positions together.
fn merge_splits(
    gpu: &mut Gpu,
    dst: Rows<'_>,
    head_dim: usize,
    view: &View<'_>,
    n_splits: usize,
) -> Result<(), VulkanError> {
    let n_head = dst.width / head_dim;
    let pipeline = gpu.pipelines.get(&merge(&gpu.tuning, head_dim))?;
    let mut op = gpu.commands.op();
    let push = merge::Push {
        partials: op.reads(view.partials),
        sinks: view.sinks.map_or(ReadAddress::NONE, |s| s.quants),
        dst: op.writes(dst.region),
        n_splits: n_splits as u32,
        has_sinks: u32::from(view.sinks.is_some()),
        stride4: dst.stride4("dst"),
        padding: 0,
    };
    let read_bytes = (dst.n_rows * n_head * n_splits * (4 + head_dim) * 4) as u64;
    let cost = Cost { read_bytes, written_bytes: dst.bytes(), flops: read_bytes / 2 };
    op.dispatch(pipeline, [n_head as u32, dst.n_rows as u32, 1], &push, cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tokens_with_long_contexts_are_split_within_the_memory_set_aside() {
        let tuning = Tuning { attention_groups: 160, attention_split: 256, ..Tuning::for_tests() };
        assert_eq!(n_splits(&tuning, 1, 64, 8, 100), 1);
        assert_eq!(n_splits(&tuning, 1, 64, 8, 32_768), 20);
        assert_eq!(n_splits(&tuning, 512, 64, 8, 32_768), 1);
        for n_tokens in 1..200 {
            for (n_head, n_head_kv) in [(64, 8), (14, 2), (32, 32), (71, 1), (40, 4)] {
                let n = n_splits(&tuning, n_tokens, n_head, n_head / n_head_kv, 1 << 20);
                let bytes = n_tokens * n_head * n * (4 + 128) * 4;
                assert!(
                    n == 1 || bytes as u64 <= partial_bytes(&tuning, 128),
                    "{n_tokens} tokens, {n_head}/{n_head_kv}"
                );
            }
        }
    }

    #[test]
    fn a_workgroup_takes_whole_parts_of_a_group() {
        let at_once = [1, 2, 7, 8, 12, 16, 71].map(heads_at_once);
        assert_eq!(at_once, [1, 2, 7, 8, 6, 8, 1]);
    }
}
