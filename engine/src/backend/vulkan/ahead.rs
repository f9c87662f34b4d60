//! Which kernels the passes of a model use: all of them are compiled when it is loaded, at once and on all cores, and
//! the driver's code is saved with all of them in it. What depends on a pass is the number of its tokens alone; every
//! number that the limits allow is thought of. The backend notes each weight here that it uploads.

use shaders::WeightType;

use super::Weight;
use super::kernels::linear::Method;
use super::kernels::{
    attention, embed, gated, gather, half_rows, linear, moe_sum, place_heads, quantize, rms_norm, route,
    scale_by_sigmoid, swiglu,
};
use super::pipelines::Variant;
use super::state::groups;
use super::tuning::Tuning;
use crate::backend::{Limits, Role};
use crate::model::{Activation, Config, MoeConfig, RopeLayout};

/// What is multiplied with, each once: the type of matrices and their rows.
#[derive(Default)]
pub(super) struct Multiplied {
    matrices: Vec<(WeightType, usize)>,
    /// Of dense feed-forward layers, which a kernel multiplies together where their types are the same.
    gates: Vec<(WeightType, usize)>,
    ups: Vec<(WeightType, usize)>,
    /// Of experts.
    experts: Vec<WeightType>,
}

impl Multiplied {
    /// Takes note of a weight.
    pub fn note(&mut self, role: Role, weight: &Weight) {
        let matrix = (weight.ty, weight.rows);
        match role {
            Role::Matrix => insert(&mut self.matrices, matrix),
            Role::Gate => insert(&mut self.gates, matrix),
            Role::Up => insert(&mut self.ups, matrix),
            Role::Experts => insert(&mut self.experts, weight.ty),
            Role::Vector => {}
        }
    }

    /// Every variant that passes within `limits` use; some may stand there twice.
    pub fn variants(&self, tuning: &Tuning, config: &Config, limits: Limits, layout: RopeLayout) -> Vec<Variant> {
        let (kv, n_batch) = (limits.kv, limits.n_batch);
        let mut all = vec![rms_norm::variant(tuning), gather::variant(tuning)];
        all.extend(self.tables(config.n_vocab).map(|ty| embed::variant(tuning, ty)));
        all.extend(self.matrices.iter().flat_map(|&(ty, n_rows)| linear::variants(tuning, ty, n_rows, n_batch)));
        all.push(place_heads::variant(tuning, config.head_dim, layout, kv));
        all.extend(groups(config).into_iter().flat_map(|g| attention::variants(tuning, config.head_dim, g, kv)));
        all.extend(self.dense(tuning, n_batch));
        if let Some(moe) = &config.moe {
            all.extend(self.mixture(tuning, moe, n_batch));
            if config.layers.iter().any(|layer| layer.n_ff > 0) {
                all.extend(shared_gate(tuning, n_batch));
            }
        }
        if tuning.dot_from[0] < usize::MAX {
            all.extend([quantize::variant(tuning), rms_norm::quantized::variant(tuning)]);
        }
        if tuning.matrix.is_some() {
            all.push(half_rows::variant(tuning));
        }
        all
    }

    /// Types of matrices with as many rows as there are tokens: the table of embeddings is one of them.
    fn tables(&self, n_vocab: usize) -> impl Iterator<Item = WeightType> {
        self.matrices.iter().filter(move |(_, n_rows)| *n_rows == n_vocab).map(|&(ty, _)| ty)
    }

    /// Of gates and ups: together, and apart if a layer may have two types.
    fn dense(&self, tuning: &Tuning, n_batch: usize) -> Vec<Variant> {
        let mut all = Vec::new();
        for &(ty, n_rows) in self.gates.iter().filter(|gate| self.ups.contains(gate)) {
            let methods = Method::all(n_batch, |n| Method::of(tuning, ty, gated::extent(n_rows, n)));
            all.extend(gated::variants(tuning, ty, Activation::Swiglu, &methods, false));
        }
        let both = || self.gates.iter().chain(&self.ups);
        if both().any(|(ty, _)| *ty != self.gates[0].0) {
            all.extend(both().flat_map(|&(ty, n_rows)| linear::variants(tuning, ty, n_rows, n_batch)));
            all.push(swiglu::variant(tuning, Activation::Swiglu));
        }
        all
    }

    /// Of experts and their choice.
    fn mixture(&self, tuning: &Tuning, moe: &MoeConfig, n_batch: usize) -> Vec<Variant> {
        let methods = Method::all(n_batch, |n| Method::of_experts(tuning, n, moe.n_expert, moe.n_expert_used));
        let mut all = vec![route::variant(tuning, moe), moe_sum::variant(tuning)];
        for &ty in &self.experts {
            all.extend(linear::expert_variants(tuning, ty, &methods));
            all.extend(gated::variants(tuning, ty, moe.activation, &methods, true));
        }
        if self.experts.len() > 1 {
            // Gate and up may have two types, and are computed apart then.
            all.push(swiglu::variant(tuning, moe.activation));
        }
        all
    }
}

/// Of the gate of a shared expert, a vector in f32.
fn shared_gate(tuning: &Tuning, n_batch: usize) -> Vec<Variant> {
    let mut all = linear::variants(tuning, WeightType::F32, 1, n_batch);
    all.push(scale_by_sigmoid::variant(tuning));
    all
}

fn insert<T: PartialEq>(all: &mut Vec<T>, one: T) {
    if !all.contains(&one) {
        all.push(one);
    }
}
