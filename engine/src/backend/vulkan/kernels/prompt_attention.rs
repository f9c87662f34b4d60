//! Causal attention of many tokens of a sequence, in tiles of query rows that share what they read of the cache
//! (`f32_anykv_prompt_attention.comp`, on matrix units `f16_anykv_prompt_attention.comp`). `attention` records it for the
//! spans of a batch that are cut into tiles.

use shaders::Kernel;

use super::attention::Task;
use super::kv_store::constant;
use crate::backend::vulkan::{Gpu, MatrixPromptTile, PromptTile, Tuning, Variant, VulkanError};
use crate::kv::{KvOptions, PAGE};

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
pub(super) fn n_splits(
    tuning: &Tuning,
    n_groups: usize,
    most_positions: u64,
    result_bytes: u64,
    room_bytes: u64,
) -> usize {
    let wanted = tuning.prompt_groups.div_ceil(n_groups);
    let useful = (most_positions as usize).div_ceil(tuning.attention_split);
    wanted.min(useful).min((room_bytes / result_bytes) as usize).max(1)
}

/// Records the attention of tokens in tiles.
pub(super) fn record(gpu: &mut Gpu, task: &Task<'_>) -> Result<(), VulkanError> {
    let Task { view, span, shape, .. } = task;
    let kernel = gpu.tuning.prompt_kernel(shape.head_dim).expect("tiles were cut for it");
    let (n_read, most) = view.work.read_by_tiles(span, view.window);
    let (n_seen, _) = view.work.seen(span, view.window);
    let n_tiles = span.tiles.len();
    let n_splits = n_splits(&gpu.tuning, n_tiles * shape.n_head_kv, most, task.result_bytes(), view.partials.bytes);
    let tiles = view.tiles.slice(8 * span.tiles.start as u64, 8 * n_tiles as u64);
    let groups = [shape.n_head_kv, n_tiles, n_splits].map(|n| n as u32);
    task.dispatch(gpu, &kernel.variant(shape.head_dim, shape.types), groups, Some(&tiles), [n_read, n_seen])
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
