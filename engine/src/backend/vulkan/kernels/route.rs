//! The choice of each token's experts, and the batch sorted by them (`f32_moe_route.comp`).

use shaders::Kernel;

use super::linear::Method;
use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError};
use crate::model::MoeConfig;
use crate::roofline::expected_experts;

/// Most experts of a layer: their counters share a workgroup's memory.
pub const MAX_EXPERTS: usize = 1024;
/// Most experts of a token.
pub const MAX_USED: usize = 32;

push_constants! {
    struct Push {
        logits: ReadAddress,
        weights: WriteAddress,
        entries: WriteAddress,
        tiles: WriteAddress,
        n_tokens: u32,
        stride: u32,
        tile_width: u32,
        scale: f32,
    }
}

/// A batch's choice of experts on the device, and its shape. A pair is a token and one of its slots, numbered
/// `token * n_used + slot`.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'r> {
    /// Routing weight of each pair, `[n_pairs] f32`.
    pub weights: &'r Region,
    /// Pairs that chose each expert, `[n_expert, n_tokens] u32`.
    pub entries: &'r Region,
    /// Number of tiles, then (expert, first place in `entries`, length) of each; four words each.
    pub tiles: &'r Region,
    /// Tokens of the batch.
    pub n_tokens: usize,
    /// Experts.
    pub n_expert: usize,
    /// Experts of each token.
    pub n_used: usize,
    /// How the experts' products are computed, which decides the length of tiles.
    pub method: Method,
}

impl Routing<'_> {
    /// Tokens times experts of each.
    pub fn n_pairs(&self) -> usize {
        self.n_tokens * self.n_used
    }

    /// Most experts that a batch can choose.
    pub fn max_active(&self) -> usize {
        self.n_pairs().min(self.n_expert)
    }

    /// Experts that a batch is expected to choose, if it chooses at random: what a cost counts.
    pub fn expected_active(&self) -> usize {
        expected_experts(self.n_expert, self.n_used, self.n_tokens).round() as usize
    }

    /// Most tiles that there can be: a full one for every `tile_width` pairs, and a rest for each expert.
    pub fn max_tiles(&self) -> usize {
        let width = self.method.tile_width() as usize;
        // No expert has more pairs than there are tokens.
        let full = if width >= self.n_tokens { 0 } else { self.n_pairs() / width };
        (full + self.max_active()).min(self.n_pairs())
    }

    /// Checks that everything lies in its region.
    pub(super) fn check(&self) {
        assert!(self.n_tokens > 0 && self.n_used > 0 && self.n_used <= self.n_expert, "{self:?}");
        assert!(4 * self.n_pairs() as u64 <= self.weights.bytes, "{self:?}");
        assert!(4 * (self.n_expert * self.n_tokens) as u64 <= self.entries.bytes, "{self:?}");
        assert!(16 * (1 + self.max_tiles()) as u64 <= self.tiles.bytes, "{self:?}");
    }
}

/// Bytes of the weights, entries and tiles of batches of up to `n_batch` tokens, whatever the tiles.
pub fn bytes(n_batch: usize, moe: &MoeConfig) -> [u64; 3] {
    let n_pairs = n_batch * moe.n_expert_used;
    [4 * n_pairs as u64, 4 * (moe.n_expert * n_batch) as u64, 16 * (1 + n_pairs) as u64]
}

/// The variant for a model's experts.
pub fn variant(tuning: &Tuning, moe: &MoeConfig) -> Variant {
    let constants = vec![tuning.route, moe.n_expert as u32, moe.n_expert_used as u32, u32::from(moe.renormalise)];
    Variant { kernel: Kernel::MoeRoute, constants }
}

/// Records the choice from `logits` (`[n_tokens, n_expert]`) into what `routing` names.
pub fn record(gpu: &mut Gpu, logits: Rows<'_>, moe: &MoeConfig, routing: &Routing<'_>) -> Result<(), VulkanError> {
    logits.check("logits");
    routing.check();
    let shape = (routing.n_tokens, routing.n_expert, routing.n_used);
    assert_eq!((logits.n_rows, logits.width, moe.n_expert_used), shape, "shape of the routing");
    assert!(moe.n_expert <= MAX_EXPERTS && moe.n_expert_used <= MAX_USED, "{moe:?}");
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, moe))?;
    let mut op = gpu.commands.op();
    let push = Push {
        logits: op.reads(logits.region),
        weights: op.writes(routing.weights),
        entries: op.writes(routing.entries),
        tiles: op.writes(routing.tiles),
        n_tokens: logits.n_rows as u32,
        stride: logits.stride as u32,
        tile_width: routing.method.tile_width(),
        scale: moe.weights_scale,
    };
    let n_pairs = routing.n_pairs() as u64;
    let cost = Cost {
        read_bytes: logits.bytes(),
        written_bytes: 8 * n_pairs + 16 * routing.max_tiles() as u64,
        flops: n_pairs * moe.n_expert as u64,
    };
    op.dispatch(pipeline, [1, 1, 1], &push, cost)
}
