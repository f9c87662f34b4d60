//! Causal attention of many tokens of a sequence, in tiles of query rows that share what they read of the cache
//! (`f32_anykv_prompt_attention.comp`, on matrix units `f16_anykv_prompt_attention.comp`). `attention` records it for the
//! spans of a batch that are cut into tiles.

use shaders::Kernel;

use super::attention::{View, merge_splits};
use super::attention_work::Span;
use super::kv_store::{CacheShape, LayerCache, Places, constant};
use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, MatrixPromptTile, PromptTile, Tuning, Variant, VulkanError};
use crate::kv::{KvOptions, PAGE};

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

/// The kernel for the tiles of a device and a size of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptKernel {
    /// All in f32.
    Single(PromptTile),
    /// On matrix units, with factors in f16.
    Matrix(MatrixPromptTile),
}

impl PromptKernel {
    /// Query rows of a tile.
    pub fn rows(self) -> u32 {
        match self {
            PromptKernel::Single(tile) => tile.rows,
            PromptKernel::Matrix(tile) => tile.rows,
        }
    }

    /// The variant for heads of `head_dim` elements.
    fn variant(self, head_dim: usize, types: KvOptions) -> Variant {
        let [k, v] = [types.k, types.v].map(constant);
        let (head_dim4, page) = ((head_dim / 4) as u32, PAGE as u32);
        match self {
            PromptKernel::Single(PromptTile { workgroup, rows, block, thread_rows }) => Variant {
                kernel: Kernel::PromptAttention,
                constants: vec![workgroup, head_dim4, page, k, v, rows, block, thread_rows],
            },
            PromptKernel::Matrix(tile) => Variant {
                kernel: Kernel::HalfPromptAttention,
                constants: [&[tile.workgroup(), head_dim4, page, k, v][..], &tile.constants()].concat(),
            },
        }
    }
}

/// The variant in use for heads of `head_dim` elements, if they have any.
pub fn variant(tuning: &Tuning, head_dim: usize, types: KvOptions) -> Option<Variant> {
    tuning.prompt_kernel(head_dim).map(|kernel| kernel.variant(head_dim, types))
}

/// Into how many pieces the positions of each tile are cut, so that a short prompt behind a long context keeps the
/// whole device busy; as far as there is room for their results.
fn n_splits(tuning: &Tuning, n_groups: usize, most_positions: u64, result_bytes: u64, room_bytes: u64) -> usize {
    let wanted = tuning.prompt_groups.div_ceil(n_groups);
    let useful = (most_positions as usize).div_ceil(tuning.attention_split);
    wanted.min(useful).min((room_bytes / result_bytes) as usize).max(1)
}

/// Records the attention of the tokens of `span`, of which `q`, `dst` and `places` are those alone.
pub(super) fn record(
    gpu: &mut Gpu,
    q: Rows<'_>,
    places: &Places<'_>,
    shape: CacheShape,
    cache: &LayerCache,
    dst: Rows<'_>,
    (view, span): (&View<'_>, &Span),
) -> Result<(), VulkanError> {
    let (head_dim, n_head_kv) = (shape.head_dim, shape.n_head_kv);
    let n_head = q.width / head_dim;
    let kernel = gpu.tuning.prompt_kernel(head_dim).expect("tiles were cut for it");
    let pipeline = gpu.pipelines.get(&kernel.variant(head_dim, shape.types))?;
    let (n_read, most) = view.work.read_by_tiles(span, view.window);
    let (n_seen, _) = view.work.seen(span, view.window);
    let result_bytes = (q.n_rows * n_head * (4 + head_dim) * 4) as u64;
    let n_groups = span.tiles.len() * n_head_kv;
    let n_splits = n_splits(&gpu.tuning, n_groups, most, result_bytes, view.partials.bytes);
    let partial_bytes = if n_splits > 1 { result_bytes * n_splits as u64 } else { 0 };
    let tiles = view.tiles.slice(8 * span.tiles.start as u64, 8 * span.tiles.len() as u64);
    let sinks = view.sinks.map_or(ReadAddress::NONE, |s| s.quants);
    let mut op = gpu.commands.op();
    let push = Push {
        q: op.reads(q.region),
        k_cache: op.reads(&cache.k),
        v_cache: op.reads(&cache.v),
        tables: op.reads(places.tables),
        seqs: op.reads(places.seqs),
        positions: op.reads(places.positions),
        sinks,
        tiles: op.reads(&tiles),
        // Only one of the two is written.
        dst: if n_splits > 1 { WriteAddress::NONE } else { op.writes(dst.region) },
        partials: if n_splits > 1 { op.writes(view.partials) } else { WriteAddress::NONE },
        n_head_kv: n_head_kv as u32,
        group: view.work.group() as u32,
        pages_per_seq: places.pages_per_seq as u32,
        window: view.window.map_or(u32::MAX, |w| w as u32),
        has_sinks: u32::from(view.sinks.is_some()),
        q_stride4: q.stride4("q"),
        scale: 1.0 / (head_dim as f32).sqrt(),
        n_splits: n_splits as u32,
    };
    let cost = Cost {
        read_bytes: q.bytes() + n_read * shape.types.bytes((n_head_kv * head_dim) as u64),
        written_bytes: if n_splits > 1 { partial_bytes } else { dst.bytes() },
        flops: n_seen * 4 * q.width as u64,
    };
    op.dispatch(pipeline, [n_head_kv as u32, span.tiles.len() as u32, n_splits as u32], &push, cost)?;
    if n_splits > 1 { merge_splits(gpu, dst, head_dim, view, n_splits) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_prompts_behind_long_contexts_are_split_as_far_as_there_is_room() {
        let tuning = Tuning { prompt_groups: 60, attention_split: 256, ..Tuning::for_tests() };
        assert_eq!(n_splits(&tuning, 256, 32_768, 100, 1_000_000), 1, "workgroups enough");
        assert_eq!(n_splits(&tuning, 16, 32_768, 100, 1_000_000), 4);
        assert_eq!(n_splits(&tuning, 16, 500, 100, 1_000_000), 2, "pieces of {} positions", 256);
        assert_eq!(n_splits(&tuning, 16, 32_768, 100, 299), 2, "room for two");
        assert_eq!(n_splits(&tuning, 16, 32_768, 100, 99), 1);
    }
}
