//! What a model needs on the device beside its weights: activations, the cache, the experts' pairs, what the processor
//! writes for each pass. Made once, when the model is loaded, for the largest batch; a model whose shapes the kernels
//! don't handle is refused here. The backend asks it for the rows that an op of the current pass reads and writes.

use super::kernels::attention_work::Work;
use super::kernels::kv_store::{CacheShape, LayerCache, Places};
use super::kernels::linear::Method;
use super::kernels::quantize::QuantizedRows;
use super::kernels::rope::Rotation;
use super::kernels::route::Routing;
use super::kernels::{Rows, attention, half_rows, route};
use super::{Gpu, MemoryUse, Region, Tuning, VulkanError};
use crate::backend::{Act, BatchToken, Limits};
use crate::kv::{KvLayout, KvPages};
use crate::model::{Config, MoeConfig, RopeTable};

/// Rows of activations are padded to a multiple of this, the unit of the plain weight types.
const ROW_ALIGN: usize = 8;

/// What `allocate` made.
pub(super) struct ModelState {
    pub config: Config,
    pub limits: Limits,
    pub rope: RopeTable,
    pub kv: KvLayout,
    /// One per layer.
    pub shapes: Vec<CacheShape>,
    pub acts: [Region; Act::ALL.len()],
    /// An activation in bytes, for products in integers, and which one it is, if it still is.
    pub in_bytes: Region,
    pub in_bytes_of: Option<Act>,
    pub cache: Vec<LayerCache>,
    pub experts: Option<Experts>,
    /// Results of attention in several splits.
    pub partials: Region,
    pub inputs: Inputs,
    /// Where the logits can be read by the processor; the logits themselves if they are.
    pub readback: Region,
    pub n_tokens: usize,
    pub n_outputs: usize,
    /// How the pass's tokens are shared out among attention's kernels, for each number of query heads per key/value head.
    pub attention: Vec<AttentionWork>,
    /// The layer that ops belong to.
    pub layer: usize,
}

/// What a mixture of experts needs beside the activations. A pair is a token and one of its experts.
pub(super) struct Experts {
    pub config: MoeConfig,
    /// Of each pair, its pairs by expert, and the tiles of these: see [`Routing`].
    pub weights: Region,
    pub entries: Region,
    pub tiles: Region,
    /// Activated product of each pair, `[n_pairs, n_ff_exp]`.
    pub hidden: Region,
    /// The same in bytes.
    pub hidden_in_bytes: Region,
    /// Weighted output of each pair, `[n_pairs, n_embd]`; before that, where gate and up are computed apart, up.
    pub output: Region,
}

/// A pass's work for layers of which `group` query heads share a key/value head, and its tiles on the device.
pub(super) struct AttentionWork {
    group: usize,
    pub work: Work,
    pub tiles: Region,
}

/// What the processor writes for each pass.
pub(super) struct Inputs {
    pub tokens: Region,
    /// One per kind of layer.
    pub tables: Vec<Region>,
    pub seqs: Region,
    pub positions: Region,
    pub output_rows: Region,
    pub cos_sin: Region,
}

impl ModelState {
    /// Takes all memory that passes need, for the largest batch. Refuses shapes that the kernels don't handle.
    pub fn allocate(
        gpu: &mut Gpu,
        config: &Config,
        limits: Limits,
        rope: &RopeTable,
        kv: &KvLayout,
    ) -> Result<ModelState, VulkanError> {
        let shapes: Vec<CacheShape> = (0..config.n_layer()).map(|il| cache_shape(config, kv, il)).collect();
        check_shapes(config, &limits, &shapes, &gpu.tuning, gpu.max_groups())?;
        let mut acts = Vec::with_capacity(Act::ALL.len());
        for act in Act::ALL {
            let n_rows = if matches!(act, Act::Out | Act::Logits) { limits.n_outputs } else { limits.n_batch };
            // What a model has no use for gets the smallest region.
            let bytes = n_rows as u64 * stride(act, config).max(ROW_ALIGN) as u64 * 4;
            acts.push(gpu.allocate(MemoryUse::Device, bytes, &format!("activations {act:?}"))?);
        }
        let acts: [Region; Act::ALL.len()] = acts.try_into().expect("one region per activation");
        let logits = acts[Act::Logits as usize];
        let readback = if logits.is_mapped() && gpu.memory.reads_are_cached() {
            logits
        } else {
            gpu.allocate(MemoryUse::Readback, logits.bytes, "the logits' way back")?
        };
        let widest = Act::ALL.iter().filter(|&&act| act != Act::Logits).map(|act| act.max_width(config)).max();
        let bytes = QuantizedRows::bytes_of(limits.n_batch, widest.unwrap_or(0));
        let in_bytes = gpu.allocate(MemoryUse::Device, bytes, "activations in bytes")?;
        let mut cache = Vec::with_capacity(config.n_layer());
        for (il, shape) in shapes.iter().enumerate() {
            let mut half =
                |ty, what| gpu.allocate(MemoryUse::Device, shape.bytes(ty), &format!("{what} of layer {il}"));
            cache.push(LayerCache { k: half(kv.options.k, "keys")?, v: half(kv.options.v, "values")? });
        }
        let partials = gpu.allocate(
            MemoryUse::Device,
            attention::room_bytes(&gpu.tuning, config.head_dim),
            "partial results of attention",
        )?;
        let experts = match &config.moe {
            Some(moe) => Some(allocate_experts(gpu, config, moe, limits.n_batch)?),
            None => None,
        };
        if gpu.tuning.matrix.is_some() {
            gpu.reserve_half_rows(half_rows_bytes(config, limits.n_batch))?;
        }
        let mut words = |n: usize, what: &str| gpu.allocate(MemoryUse::Upload, (n * 4) as u64, what);
        let n_entries = kv.n_seq * kv.pages_per_seq;
        let tables = kv.kinds.iter().map(|_| words(n_entries, "page tables")).collect::<Result<_, _>>()?;
        let mut input = |per_token: usize, what: &str| words(limits.n_batch * per_token, what);
        let inputs = Inputs {
            tokens: input(1, "token ids")?,
            tables,
            seqs: input(1, "sequences")?,
            positions: input(1, "positions")?,
            output_rows: input(1, "output rows")?,
            cos_sin: input(2 * rope.inv_freq.len(), "angles")?,
        };
        let mut attention = Vec::new();
        for group in groups(config) {
            let tiles = gpu.allocate(MemoryUse::Upload, Work::bytes(limits.n_batch, group), "attention's tiles")?;
            attention.push(AttentionWork { group, work: Work::default(), tiles });
        }
        // The padding of rows must be zero, and stays so.
        gpu.begin()?;
        acts.iter().chain(experts.iter().flat_map(|e| [&e.hidden, &e.output])).for_each(|act| gpu.zero(act));
        gpu.submit_and_wait()?;
        Ok(ModelState {
            config: config.clone(),
            limits,
            rope: rope.clone(),
            kv: kv.clone(),
            shapes,
            acts,
            in_bytes,
            in_bytes_of: None,
            cache,
            experts,
            partials,
            inputs,
            readback,
            n_tokens: 0,
            n_outputs: 0,
            attention,
            layer: 0,
        })
    }

    /// The rows of `act` in the current pass.
    pub fn rows(&self, act: Act) -> Rows<'_> {
        let n_rows = if matches!(act, Act::Out | Act::Logits) { self.n_outputs } else { self.n_tokens };
        Rows {
            region: &self.acts[act as usize],
            n_rows,
            width: act.width(&self.config, self.layer),
            stride: stride(act, &self.config),
        }
    }

    /// The same in bytes: what is there, or where it is put.
    pub fn bytes(&self, act: Act) -> QuantizedRows<'_> {
        let Rows { n_rows, width, .. } = self.rows(act);
        QuantizedRows { region: &self.in_bytes, n_rows, width }
    }

    /// Rows of `width` elements, one for each pair of the current pass.
    pub fn pairs<'r>(&self, region: &'r Region, width: usize) -> Rows<'r> {
        let n_used = self.config.moe.map_or(0, |moe| moe.n_expert_used);
        Rows { region, n_rows: self.n_tokens * n_used, width, stride: width.next_multiple_of(ROW_ALIGN) }
    }

    /// The choice of experts of the current pass.
    pub fn routing(&self, tuning: &Tuning) -> Routing<'_> {
        let e = self.experts.as_ref().expect("only a mixture of experts is routed");
        let (n_expert, n_used) = (e.config.n_expert, e.config.n_expert_used);
        Routing {
            weights: &e.weights,
            entries: &e.entries,
            tiles: &e.tiles,
            n_tokens: self.n_tokens,
            n_expert,
            n_used,
            method: Method::of_experts(tuning, self.n_tokens, n_expert, n_used),
        }
    }

    pub fn rotation(&self) -> Rotation<'_> {
        Rotation {
            cos_sin: &self.inputs.cos_sin,
            n_pairs: self.rope.inv_freq.len(),
            head_dim: self.config.head_dim,
            layout: self.rope.layout,
        }
    }

    pub fn places(&self) -> Places<'_> {
        Places {
            tables: &self.inputs.tables[self.kv.layer_kind[self.layer]],
            pages_per_seq: self.kv.pages_per_seq,
            seqs: &self.inputs.seqs,
            positions: &self.inputs.positions,
        }
    }

    /// The current layer's share of the pass's attention.
    pub fn attention_work(&self) -> &AttentionWork {
        let layer = &self.config.layers[self.layer];
        let group = layer.n_head / layer.n_head_kv;
        self.attention.iter().find(|of| of.group == group).expect("one for every layer")
    }

    /// Checks the batch and writes it where kernels find it.
    pub fn write_inputs(&mut self, batch: &[BatchToken], kv: &KvPages, tuning: &Tuning) {
        let l = &self.limits;
        assert!((1..=l.n_batch).contains(&batch.len()), "{} tokens in a batch of at most {}", batch.len(), l.n_batch);
        for t in batch {
            let inside =
                (t.token as usize) < self.config.n_vocab && (t.seq as usize) < l.n_seq && (t.pos as usize) < l.n_ctx;
            assert!(inside, "{t:?} with a vocabulary of {} and {l:?}", self.config.n_vocab);
        }
        let output_rows: Vec<u32> = (0..).zip(batch).filter(|(_, t)| t.output).map(|(i, _)| i).collect();
        assert!(output_rows.len() <= l.n_outputs, "{} outputs, at most {}", output_rows.len(), l.n_outputs);
        (self.n_tokens, self.n_outputs) = (batch.len(), output_rows.len());
        let places: Vec<(u32, u32)> = batch.iter().map(|t| (t.seq, t.pos)).collect();
        for of in &mut self.attention {
            of.work = Work::of(tuning, of.group, self.config.head_dim, &places);
            of.work.write(&mut of.tiles);
        }
        for (kind, region) in self.inputs.tables.iter_mut().enumerate() {
            for seq in batch.chunk_by(|a, b| a.seq == b.seq).map(|tokens| tokens[0].seq as usize) {
                let pages: &[u8] = bytemuck::cast_slice(kv.table(kind, seq));
                let start = 4 * seq * self.kv.pages_per_seq;
                region.write()[start..start + pages.len()].copy_from_slice(pages);
            }
        }
        let put = |region: &mut Region, values: &[u32]| {
            region.write()[..4 * values.len()].copy_from_slice(bytemuck::cast_slice(values));
        };
        put(&mut self.inputs.tokens, &batch.iter().map(|t| t.token).collect::<Vec<_>>());
        put(&mut self.inputs.seqs, &batch.iter().map(|t| t.seq).collect::<Vec<_>>());
        put(&mut self.inputs.positions, &batch.iter().map(|t| t.pos).collect::<Vec<_>>());
        put(&mut self.inputs.output_rows, &output_rows);
        let angles: Vec<f32> = batch.iter().flat_map(|t| cos_sin(&self.rope, t.pos)).collect();
        self.inputs.cos_sin.write()[..4 * angles.len()].copy_from_slice(bytemuck::cast_slice(&angles));
    }
}

/// Elements from one row of `act` to the next. Logits are no input of a kernel and are read back as they lie.
pub(super) fn stride(act: Act, config: &Config) -> usize {
    let width = act.max_width(config);
    if act == Act::Logits { width } else { width.next_multiple_of(ROW_ALIGN) }
}

/// Cosines, then sines, of all pairs at position `pos`, times the table's magnitude; angles in f64.
fn cos_sin(rope: &RopeTable, pos: u32) -> impl Iterator<Item = f32> + '_ {
    let angle = move |&f: &f32| f64::from(pos) * f64::from(f);
    let scaled = |v: f64| (v * f64::from(rope.magnitude)) as f32;
    let cos = rope.inv_freq.iter().map(move |f| scaled(angle(f).cos()));
    cos.chain(rope.inv_freq.iter().map(move |f| scaled(angle(f).sin())))
}

/// Refuses shapes that the kernels don't handle.
fn check_shapes(
    config: &Config,
    limits: &Limits,
    shapes: &[CacheShape],
    tuning: &Tuning,
    max_groups: [u32; 3],
) -> Result<(), VulkanError> {
    let rule = |holds: bool, what, value, rule: String| {
        if holds { Ok(()) } else { Err(VulkanError::UnsupportedShape { what, value, rule }) }
    };
    let max_head = 4 * tuning.attention as usize;
    let head = config.head_dim;
    rule(head.is_multiple_of(4) && head <= max_head, "head_dim", head, format!("a multiple of 4 up to {max_head}"))?;
    let most = max_groups[1] as usize;
    rule(limits.n_batch <= most, "n_batch", limits.n_batch, format!("at most {most}"))?;
    if let Some(moe) = &config.moe {
        let (all, used) = (route::MAX_EXPERTS, route::MAX_USED);
        rule(moe.n_expert <= all, "expert_count", moe.n_expert, format!("at most {all}"))?;
        rule(moe.n_expert_used <= used, "expert_used_count", moe.n_expert_used, format!("at most {used}"))?;
        let (pairs, most) = (limits.n_batch * moe.n_expert_used, max_groups.into_iter().min().unwrap_or(0) as usize);
        rule(pairs <= most, "expert_used_count · n_batch", pairs, format!("at most {most}"))?;
    }
    for (ty, what) in [(limits.kv.k, "the keys of a layer (bytes)"), (limits.kv.v, "the values of a layer (bytes)")] {
        let (size, limit) = (shapes.iter().map(|s| s.bytes(ty)).max().unwrap_or(0), CacheShape::max_bytes(ty));
        if size > limit {
            return Err(VulkanError::TooLarge { what: what.to_owned(), size, limit });
        }
    }
    Ok(())
}

/// Numbers of query heads that share a key/value head, each once.
pub(super) fn groups(config: &Config) -> Vec<usize> {
    let mut groups: Vec<usize> = config.layers.iter().map(|l| l.n_head / l.n_head_kv).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn allocate_experts(gpu: &mut Gpu, config: &Config, moe: &MoeConfig, n_batch: usize) -> Result<Experts, VulkanError> {
    let mut take = |bytes: u64, what: &str| gpu.allocate(MemoryUse::Device, bytes, &format!("the experts' {what}"));
    let [weights, entries, tiles] = route::bytes(n_batch, moe);
    let n_pairs = n_batch * moe.n_expert_used;
    let row_bytes = |width: usize| (n_pairs * width.next_multiple_of(ROW_ALIGN) * 4) as u64;
    Ok(Experts {
        config: *moe,
        weights: take(weights, "weights")?,
        entries: take(entries, "tokens")?,
        tiles: take(tiles, "tiles")?,
        hidden: take(row_bytes(moe.n_ff_exp), "activations")?,
        hidden_in_bytes: take(QuantizedRows::bytes_of(n_pairs, moe.n_ff_exp), "activations in bytes")?,
        output: take(row_bytes(moe.n_ff_exp.max(config.n_embd)), "outputs")?,
    })
}

/// Bytes that the f16 form of any activations of a pass may take.
fn half_rows_bytes(config: &Config, n_batch: usize) -> u64 {
    let rows = Act::ALL.map(|act| half_rows::bytes(n_batch, stride(act, config).next_multiple_of(ROW_ALIGN)));
    let of_pairs =
        |moe: &MoeConfig| half_rows::bytes(n_batch * moe.n_expert_used, moe.n_ff_exp.next_multiple_of(ROW_ALIGN));
    let inputs = Act::ALL.into_iter().zip(rows).filter(|(act, _)| *act != Act::Logits).map(|(_, bytes)| bytes);
    inputs.chain(config.moe.as_ref().map(of_pairs)).max().unwrap_or(0)
}

fn cache_shape(config: &Config, kv: &KvLayout, il: usize) -> CacheShape {
    let n_pages = kv.kinds[kv.layer_kind[il]].n_pages;
    CacheShape { n_pages, n_head_kv: config.layers[il].n_head_kv, head_dim: config.head_dim, types: kv.options }
}
