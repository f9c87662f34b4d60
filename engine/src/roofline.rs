//! What a pass must move and compute at least, op by op, and how fast a device could be at best. The forward pass
//! itself is run by a backend that only keeps account ([`Ledger`]), so the list of ops is the engine's own.
//!
//! Bytes are those of weights (each once per pass; of experts those that a batch is expected to choose), of keys and
//! values (each position that a sequence sees, once), and of activations (what an op reads and writes). Kernels are those
//! that the Vulkan backend starts with the sizes of a device, which need not be here. Called by the commands `roofline`
//! and `bench`.

use std::convert::Infallible;

use serde::Serialize;

use crate::backend::vulkan::kernels::linear::Method;
use crate::backend::vulkan::kernels::{attention, gated};
use crate::backend::vulkan::{DeviceInfo, Extent, Tuning, weight_type};
use crate::backend::{Act, Backend, BatchToken, Limits, Linear, TensorView};
use crate::error::{Error, RequestError};
use crate::gguf::{GgmlType, Header};
use crate::kv::{KvLayout, KvOptions, KvPages, PageCopy};
use crate::model::{Config, ExpertWeights, RopeTable, Slot, Weights, forward, plan};
use crate::trace::label;

/// Most tokens of a pass, and most positions of a sequence.
const MAX_TOKENS: usize = u32::MAX as usize;
/// Most passes of a prompt: more take minutes to count.
const MAX_PASSES: usize = 1 << 14;
/// Bytes of an activation of 4 bytes, once it is one with a share of a scale and of sums (`quantize`), or f16.
const IN_BYTES: f64 = 80.0 / 64.0;
const IN_HALVES: f64 = 2.0;

/// A pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Sequences.
    pub n_seq: usize,
    /// Tokens of each, one after the other.
    pub n_tokens: usize,
    /// Tokens that each sequence holds before.
    pub depth: usize,
}

impl Pass {
    fn check(self) -> Result<(), RequestError> {
        let Pass { n_seq, n_tokens, depth } = self;
        let [all, last] = [n_seq.checked_mul(n_tokens), depth.checked_add(n_tokens)];
        if [all, last].into_iter().all(|n| n.is_some_and(|n| n <= MAX_TOKENS)) {
            return Ok(());
        }
        Err(RequestError::PassTooLarge { n_seq, n_tokens, depth, most: MAX_TOKENS })
    }
}

/// What one op, or all ops of a name, must do at least.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OpCost {
    /// Name, and what it writes, as the engine's profile calls it, e.g. `linear → Q+K+V`.
    pub op: String,
    /// Types of its weights.
    pub types: Vec<&'static str>,
    /// Ops of this name in the pass.
    pub n_ops: usize,
    /// Kernels that the Vulkan backend starts for them.
    pub n_dispatches: usize,
    /// Bytes of weights.
    pub weight_bytes: f64,
    /// Bytes of keys and values.
    pub kv_bytes: f64,
    /// Bytes of activations, read and written.
    pub act_bytes: f64,
    /// Floating-point operations; a multiply-add is two.
    pub flops: f64,
}

impl OpCost {
    /// All bytes.
    pub fn bytes(&self) -> f64 {
        self.weight_bytes + self.kv_bytes + self.act_bytes
    }

    /// Seconds that a device with these peaks needs at least.
    pub fn bound_s(&self, roof: &Roof) -> f64 {
        (self.bytes() / (roof.gb_per_s * 1e9)).max(self.flops / (roof.tflops * 1e12))
    }

    fn add(&mut self, other: &OpCost) {
        self.n_ops += other.n_ops;
        self.n_dispatches += other.n_dispatches;
        self.weight_bytes += other.weight_bytes;
        self.kv_bytes += other.kv_bytes;
        self.act_bytes += other.act_bytes;
        self.flops += other.flops;
        for ty in &other.types {
            if !self.types.contains(ty) {
                self.types.push(ty);
            }
        }
    }
}

/// What a device can do at best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roof {
    /// Bytes read per second, 10⁹.
    pub gb_per_s: f64,
    /// Operations per second, 10¹².
    pub tflops: f64,
}

impl Roof {
    /// A Radeon 8060S (gfx1151): 236 GB/s of its 256 were streamed in published tests, 55.5 TFLOPS of f16 products
    /// with f32 sums measured on its matrix units.
    pub const STRIX_HALO: Roof = Roof { gb_per_s: 236.0, tflops: 55.5 };
}

/// Ops of one pass by name, in the order of the pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// The ops.
    pub ops: Vec<OpCost>,
    /// Experts of a layer that the batch is expected to choose; 0 without experts.
    pub experts: f64,
}

impl Account {
    /// All ops together.
    pub fn total(&self) -> OpCost {
        let mut total = OpCost { op: "total".to_owned(), ..OpCost::default() };
        self.ops.iter().for_each(|op| total.add(op));
        total
    }

    /// Seconds that the pass takes at least: one op after the other, each bound by its bytes or its operations.
    pub fn bound_s(&self, roof: &Roof) -> f64 {
        self.ops.iter().map(|op| op.bound_s(roof)).sum()
    }
}

/// Experts of `n_expert` that `n_tokens` tokens are expected to choose if each takes `n_used` of them at random:
/// E · (1 − (1 − k/E)^B).
pub fn expected_experts(n_expert: usize, n_used: usize, n_tokens: usize) -> f64 {
    let (e, k) = (n_expert as f64, n_used as f64);
    e * (1.0 - (1.0 - k / e).powi(i32::try_from(n_tokens).unwrap_or(i32::MAX)))
}

/// A model whose passes can be accounted for, from its header alone.
pub struct Roofline {
    config: Config,
    weights: Weights<Shape>,
    cache: KvOptions,
    tuning: Tuning,
}

impl Roofline {
    /// Finds the model's tensors. Kernels are those of a Radeon 8060S.
    ///
    /// # Errors
    /// The header is not that of a model that can be run.
    pub fn new(header: &Header) -> Result<Roofline, Error> {
        let config = Config::from_header(header)?;
        let plan = plan(header, &config)?;
        let shapes: Result<Weights<Shape>, Infallible> = plan.map(&mut |slot| Ok(Shape::of(slot)));
        let Ok(weights) = shapes;
        let tuning = Tuning::of(&DeviceInfo::strix_halo());
        Ok(Roofline { config, weights, cache: KvOptions::default(), tuning })
    }

    /// With the kernels of another device, or of one that is told to be exact.
    pub fn with_tuning(self, tuning: Tuning) -> Roofline {
        Roofline { tuning, ..self }
    }

    /// With keys and values of other types than f16.
    pub fn with_cache(self, cache: KvOptions) -> Roofline {
        Roofline { cache, ..self }
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The ops of a pass. Each sequence wants the logits of its last token.
    ///
    /// # Errors
    /// The pass has more tokens or positions than can be; those of the forward pass.
    pub fn account(&self, pass: Pass) -> Result<Account, Error> {
        pass.check()?;
        // The account is kept of the numbers in `pass`: no token and no page is looked at.
        let limits = Limits { n_batch: 1, n_outputs: 1, n_seq: 1, n_ctx: 1, kv: self.cache, kv_bytes: None };
        let kv = KvPages::new(KvLayout::new(&self.config, &limits)?);
        let mut ledger = Ledger::new(self, pass);
        forward(&mut ledger, &self.weights, &[], &kv)?;
        let moe = self.config.moe.as_ref();
        let experts = moe.map_or(0.0, |m| expected_experts(m.n_expert, m.n_expert_used, ledger.n_tokens()));
        Ok(Account { ops: by_name(ledger.ops), experts })
    }

    /// A prompt of `n_tokens` after `depth`, in passes of up to `n_batch`.
    ///
    /// # Errors
    /// As [`Self::account`]; it takes too many passes.
    pub fn prompt(&self, n_tokens: usize, depth: usize, n_batch: usize) -> Result<Account, Error> {
        let n_batch = n_batch.max(1);
        let found = n_tokens.div_ceil(n_batch);
        if found > MAX_PASSES {
            return Err(RequestError::TooManyPasses { n_tokens, n_batch, found, most: MAX_PASSES }.into());
        }
        // So that no sum below wraps.
        Pass { n_seq: 1, n_tokens, depth }.check()?;
        let mut ops = Vec::new();
        let mut experts = 0.0;
        for start in (0..n_tokens).step_by(n_batch) {
            let n = n_batch.min(n_tokens - start);
            let account = self.account(Pass { n_seq: 1, n_tokens: n, depth: depth + start })?;
            experts = f64::max(experts, account.experts);
            ops.extend(account.ops);
        }
        Ok(Account { ops: by_name(ops), experts })
    }
}

/// Ops of the same name together, in the order of their first.
fn by_name(ops: Vec<OpCost>) -> Vec<OpCost> {
    let mut all: Vec<OpCost> = Vec::new();
    for op in ops {
        match all.iter_mut().find(|known| known.op == op.op) {
            Some(known) => known.add(&op),
            None => all.push(op),
        }
    }
    all
}

/// A weight as far as the account goes: `[rows, cols]`.
struct Shape {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    bytes: f64,
}

impl Shape {
    fn of(slot: &Slot<'_>) -> Shape {
        let (ty, rows, cols) = slot.shape();
        Shape { ty, rows, cols, bytes: (rows * ty.row_bytes(cols)) as f64 }
    }
}

/// The backend that computes nothing and keeps account.
struct Ledger<'c> {
    config: &'c Config,
    cache: KvOptions,
    tuning: &'c Tuning,
    pass: Pass,
    layer: usize,
    /// The activation that is there in bytes too, for products in integers: as in the Vulkan backend's state.
    in_bytes_of: Option<Act>,
    ops: Vec<OpCost>,
}

impl<'c> Ledger<'c> {
    fn new(of: &'c Roofline, pass: Pass) -> Ledger<'c> {
        let Roofline { config, cache, tuning, .. } = of;
        Ledger { config, cache: *cache, tuning, pass, layer: 0, in_bytes_of: None, ops: Vec::new() }
    }

    /// Bytes of a position's keys and values in the cache of this layer.
    fn stored(&self) -> f64 {
        self.cache.bytes(self.config.kv_dim(self.layer) as u64) as f64
    }

    fn n_rows(&self, act: Act) -> usize {
        let n = if matches!(act, Act::Out | Act::Logits) { 1 } else { self.pass.n_tokens };
        self.pass.n_seq * n
    }

    fn n_tokens(&self) -> usize {
        self.pass.n_seq * self.pass.n_tokens
    }

    /// Bytes of an activation.
    fn act(&self, act: Act) -> f64 {
        4.0 * self.n_rows(act) as f64 * act.width(self.config, self.layer) as f64
    }

    fn log(&mut self, name: &str, acts: &[Act], cost: OpCost) -> Result<(), Error> {
        self.ops.push(OpCost { op: label(name, acts), n_ops: 1, ..cost });
        Ok(())
    }

    /// What of an op's bytes and kernels is due to the form in which a product by `method` with weights of type `ty` takes
    /// `x`: a kernel that puts it in bytes, if none has left it so and the number of tokens is worth it, and the reading.
    /// A conversion to f16 is made once for all products of an op: see [`Self::halves`].
    fn reads(&mut self, x: Act, ty: GgmlType, method: Method) -> OpCost {
        let (bytes, n_rows) = (self.act(x), self.n_rows(x));
        let read = |act_bytes: f64| OpCost { act_bytes, ..OpCost::default() };
        match method {
            Method::Matrix { .. } => return read(bytes / 4.0 * IN_HALVES),
            _ if !method.can_dot(weight_type(ty)) => return read(bytes),
            _ if self.in_bytes_of == Some(x) => return read(bytes / 4.0 * IN_BYTES),
            _ if n_rows < self.tuning.dot_from[1] => return read(bytes),
            _ => {}
        }
        self.in_bytes_of = Some(x);
        OpCost { n_dispatches: 1, act_bytes: bytes + 2.0 * bytes / 4.0 * IN_BYTES, ..OpCost::default() }
    }

    /// The conversion of activations of so many bytes to f16, if any product of an op takes them so.
    fn halves(methods: &[Method], bytes: f64) -> OpCost {
        if !methods.iter().any(|m| matches!(m, Method::Matrix { .. })) {
            return OpCost::default();
        }
        OpCost { n_dispatches: 1, act_bytes: bytes + bytes / 4.0 * IN_HALVES, ..OpCost::default() }
    }

    /// What was left of `act` in bytes is no longer what it holds.
    fn overwrites(&mut self, act: Act) {
        self.in_bytes_of = self.in_bytes_of.filter(|&of| of != act);
    }

    /// How the experts' products of this pass are computed.
    fn method_of_experts(&self) -> Option<Method> {
        let moe = self.config.moe.as_ref()?;
        Some(Method::of_experts(self.tuning, self.n_tokens(), moe.n_expert, moe.n_expert_used))
    }

    /// The same as [`Self::reads`] of the experts' two products, of `x` and of what lies between (`hidden` bytes).
    fn experts_in(&self, x: Act, e: &ExpertWeights<Shape>, hidden: f64) -> OpCost {
        let method = self.method_of_experts().expect("a mixture of experts");
        let mut cost = Self::halves(&[method], self.act(x));
        cost.add(&Self::halves(&[method], hidden));
        let is_made = self.n_tokens() >= self.tuning.dot_from[1] && method.can_dot(weight_type(e.down.ty));
        if is_made {
            let act_bytes = hidden + hidden / 4.0 * IN_BYTES;
            cost.add(&OpCost { n_dispatches: 1, act_bytes, ..OpCost::default() });
        }
        let there = |is_in_bytes: bool| match method {
            Method::Matrix { .. } => IN_HALVES / 4.0,
            _ if is_in_bytes => IN_BYTES / 4.0,
            _ => 1.0,
        };
        let is_left = self.in_bytes_of == Some(x) && method.can_dot(weight_type(e.gate.ty));
        cost.act_bytes += there(is_left) * self.act(x) + there(is_made) * hidden;
        cost
    }

    /// Positions that all tokens of the pass see in this layer, and keys and values that must be read for them: those
    /// of a sequence once for all of its tokens.
    fn positions(&self) -> (f64, f64) {
        let (n, d) = (self.pass.n_tokens, self.pass.depth);
        let window = self.config.layers[self.layer].window.unwrap_or(usize::MAX);
        // Token by token one more, until the window is full.
        let n_growing = window.saturating_sub(d).min(n);
        let growing = n_growing as f64 * (2 * d + n_growing + 1) as f64 / 2.0;
        let seen = growing + (n - n_growing) as f64 * window as f64;
        let read = (d + n).min(window.saturating_add(n - 1)) as f64;
        (seen * self.pass.n_seq as f64, read * self.pass.n_seq as f64)
    }
}

impl Backend for Ledger<'_> {
    type Weight = Shape;

    fn name(&self) -> String {
        "account".to_owned()
    }

    fn upload(&mut self, tensor: TensorView<'static>) -> Result<Shape, Error> {
        let (ty, rows, cols) = (tensor.ty, tensor.rows, tensor.cols);
        Ok(Shape { ty, rows, cols, bytes: tensor.data.len() as f64 })
    }

    fn allocate(&mut self, _: &Config, _: Limits, _: &RopeTable, _: &KvLayout) -> Result<(), Error> {
        Ok(())
    }

    fn begin(&mut self, _: &[BatchToken], _: &KvPages) -> Result<(), Error> {
        Ok(())
    }

    fn begin_layer(&mut self, il: usize) -> Result<(), Error> {
        self.layer = il;
        Ok(())
    }

    fn embed(&mut self, table: &Shape) -> Result<(), Error> {
        let weight_bytes = self.n_rows(Act::X) as f64 * table.bytes / table.rows as f64;
        let (types, act_bytes) = (vec![table.ty.name()], self.act(Act::X));
        self.log("embed", &[Act::X], OpCost { types, n_dispatches: 1, weight_bytes, act_bytes, ..OpCost::default() })
    }

    fn rms_norm(&mut self, x: Act, weight: &Shape, dst: Act) -> Result<(), Error> {
        let act_bytes = self.act(x) + self.act(dst);
        let mut cost = OpCost {
            n_dispatches: 1,
            weight_bytes: weight.bytes,
            act_bytes,
            flops: act_bytes / 2.0,
            ..OpCost::default()
        };
        let n_rows = self.n_rows(dst);
        let is_for_few = Method::is_matvec(self.tuning, weight_type(GgmlType::Q8_0), n_rows)
            || matches!(self.method_of_experts(), Some(Method::Matvec { .. }));
        if is_for_few && n_rows >= self.tuning.dot_from[0] {
            cost.act_bytes += self.act(dst) / 4.0 * IN_BYTES;
            self.in_bytes_of = Some(dst);
        } else {
            self.overwrites(dst);
        }
        self.log("rms_norm", &[dst], cost)
    }

    fn head_norm(&mut self, x: Act, weight: &Shape) -> Result<(), Error> {
        self.rms_norm(x, weight, x)
    }

    fn linear(&mut self, x: Act, products: &[Linear<'_, Shape>]) -> Result<(), Error> {
        let n_rows = self.n_rows(x);
        let extent = |w: &Shape| Extent { n_rows: w.rows, n_tokens: n_rows };
        let method = |w: &Shape| Method::of(self.tuning, weight_type(w.ty), extent(w));
        let methods: Vec<Method> = products.iter().map(|p| method(p.weight)).collect();
        let mut cost = Self::halves(&methods, self.act(x));
        for (p, method) in products.iter().zip(methods) {
            cost.add(&self.reads(x, p.weight.ty, method));
            cost.add(&OpCost {
                types: vec![p.weight.ty.name()],
                n_dispatches: 1,
                weight_bytes: p.weight.bytes + p.bias.map_or(0.0, |b| b.bytes),
                act_bytes: self.act(p.out) * if p.accumulate { 2.0 } else { 1.0 },
                flops: 2.0 * n_rows as f64 * (p.weight.rows * p.weight.cols) as f64,
                ..OpCost::default()
            });
        }
        products.iter().for_each(|p| self.overwrites(p.out));
        let acts: Vec<Act> = products.iter().map(|p| p.out).collect();
        self.log("linear", &acts, cost)
    }

    fn rope(&mut self, x: Act) -> Result<(), Error> {
        let act_bytes = 2.0 * self.act(x);
        self.log("rope", &[x], OpCost { n_dispatches: 1, act_bytes, flops: act_bytes, ..OpCost::default() })
    }

    fn kv_store(&mut self) -> Result<(), Error> {
        let (act_bytes, kv_bytes) = (2.0 * self.act(Act::K), self.n_tokens() as f64 * self.stored());
        self.log("kv_store", &[], OpCost { n_dispatches: 1, kv_bytes, act_bytes, ..OpCost::default() })
    }

    fn place_heads(&mut self, q_norm: Option<&Shape>, k_norm: Option<&Shape>) -> Result<(), Error> {
        let (q, k) = (self.act(Act::Q), self.act(Act::K));
        let cost = OpCost {
            n_dispatches: 1,
            weight_bytes: [q_norm, k_norm].into_iter().flatten().fold(0.0, |sum, w| sum + w.bytes),
            kv_bytes: self.n_tokens() as f64 * self.stored(),
            act_bytes: 2.0 * q + 2.0 * k,
            flops: 2.0 * (q + k),
            ..OpCost::default()
        };
        self.log("place_heads", &[Act::Q], cost)
    }

    fn attention(&mut self, sinks: Option<&Shape>) -> Result<(), Error> {
        let layer = self.config.layers[self.layer];
        let (seen, read) = self.positions();
        let head_dim = self.config.head_dim as f64;
        let Pass { n_seq, n_tokens, depth } = self.pass;
        let longest = (depth + n_tokens).min(layer.window.unwrap_or(usize::MAX));
        let heads = (layer.n_head, layer.n_head_kv, self.config.head_dim);
        self.overwrites(Act::Attn);
        let cost = OpCost {
            n_dispatches: attention::n_launches(self.tuning, heads, (n_seq, n_tokens, longest)),
            weight_bytes: sinks.map_or(0.0, |s| s.bytes),
            kv_bytes: read * self.stored(),
            act_bytes: 2.0 * self.act(Act::Attn),
            flops: 4.0 * seen * layer.n_head as f64 * head_dim,
            ..OpCost::default()
        };
        self.log("attention", &[Act::Attn], cost)
    }

    fn swiglu(&mut self) -> Result<(), Error> {
        let act_bytes = 3.0 * self.act(Act::Gate);
        self.overwrites(Act::Gate);
        self.log("swiglu", &[Act::Gate], OpCost { n_dispatches: 1, act_bytes, flops: act_bytes, ..OpCost::default() })
    }

    fn gated(&mut self, x: Act, gate: &Shape, up: &Shape) -> Result<(), Error> {
        let n_tokens = self.n_rows(x);
        let is_one = gate.ty == up.ty;
        let extent = if is_one { gated::extent(gate.rows, n_tokens) } else { Extent { n_rows: gate.rows, n_tokens } };
        let methods = [gate, up].map(|w| Method::of(self.tuning, weight_type(w.ty), extent));
        let mut cost = Self::halves(&methods, self.act(x));
        for (weight, method) in [gate, up].into_iter().zip(methods).take(if is_one { 1 } else { 2 }) {
            cost.add(&self.reads(x, weight.ty, method));
        }
        self.overwrites(Act::Gate);
        cost.add(&OpCost {
            n_dispatches: if is_one { 1 } else { 3 },
            weight_bytes: gate.bytes + up.bytes,
            act_bytes: self.act(Act::Gate) * if is_one { 1.0 } else { 5.0 },
            flops: 4.0 * n_tokens as f64 * (gate.rows * gate.cols) as f64,
            ..OpCost::default()
        });
        cost.add(&OpCost { types: vec![gate.ty.name(), up.ty.name()], ..OpCost::default() });
        self.log("gated", &[Act::Gate], cost)
    }

    fn scale_by_sigmoid(&mut self, x: Act, gate: Act) -> Result<(), Error> {
        let act_bytes = 2.0 * self.act(x) + self.act(gate);
        self.overwrites(x);
        self.log(
            "scale_by_sigmoid",
            &[x],
            OpCost { n_dispatches: 1, act_bytes, flops: act_bytes / 4.0, ..OpCost::default() },
        )
    }

    fn route(&mut self) -> Result<(), Error> {
        let moe = self.config.moe.expect("only a mixture of experts is routed");
        // Weight and place of each pair.
        let act_bytes = self.act(Act::Router) + 8.0 * (self.n_tokens() * moe.n_expert_used) as f64;
        let flops = self.n_tokens() as f64 * (moe.n_expert * moe.n_expert_used) as f64;
        self.log("route", &[], OpCost { n_dispatches: 1, act_bytes, flops, ..OpCost::default() })
    }

    fn experts(&mut self, x: Act, e: &ExpertWeights<Shape>) -> Result<(), Error> {
        let moe = self.config.moe.expect("a mixture of experts");
        let n = self.n_tokens();
        let share = expected_experts(moe.n_expert, moe.n_expert_used, n) / moe.n_expert as f64;
        let biases = [&e.gate_bias, &e.up_bias, &e.down_bias];
        let all = [&e.gate, &e.up, &e.down].into_iter().chain(biases.into_iter().flatten());
        let pairs = (n * moe.n_expert_used) as f64;
        let hidden = 4.0 * pairs * moe.n_ff_exp as f64;
        // One token's experts are added up where they are computed; more tokens' go through memory.
        let (sums, n_sums) = if n == 1 { (0.0, 0) } else { (2.0 * 4.0 * pairs * self.config.n_embd as f64, 1) };
        let mut cost = self.experts_in(x, e, hidden);
        cost.add(&OpCost {
            n_dispatches: if e.gate.ty == e.up.ty { 2 } else { 4 } + n_sums,
            weight_bytes: share * all.map(|w| w.bytes).sum::<f64>(),
            act_bytes: hidden + sums + 2.0 * self.act(Act::X),
            flops: pairs * 6.0 * (moe.n_ff_exp * self.config.n_embd) as f64,
            ..OpCost::default()
        });
        cost.add(&OpCost { types: [&e.gate, &e.up, &e.down].map(|w| w.ty.name()).to_vec(), ..OpCost::default() });
        self.log("experts", &[Act::X], cost)
    }

    fn gather_outputs(&mut self) -> Result<(), Error> {
        let act_bytes = 2.0 * self.act(Act::Out);
        self.log("gather_outputs", &[Act::Out], OpCost { n_dispatches: 1, act_bytes, ..OpCost::default() })
    }

    fn finish(&mut self) -> Result<&[f32], Error> {
        Ok(&[])
    }

    fn kv_copy_pages(&mut self, _: &[PageCopy]) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::KvType;
    use crate::synth::{Plan, SynthOptions, Target};

    fn roofline(name: &str) -> Roofline {
        let target = Target::find(name).expect("a target");
        let plan = Plan::new(&SynthOptions::new(target), None).expect("a plan");
        Roofline::new(&plan.header()).expect("a model")
    }

    fn decode(r: &Roofline, n_seq: usize) -> Account {
        r.account(Pass { n_seq, n_tokens: 1, depth: 0 }).expect("an account")
    }

    #[test]
    fn expected_experts_of_few_and_many_tokens() {
        assert!((expected_experts(128, 4, 1) - 4.0).abs() < 1e-9);
        assert!((expected_experts(128, 4, 2) - 7.875).abs() < 1e-9);
        assert!((expected_experts(128, 8, 1_000_000) - 128.0).abs() < 1e-9);
        assert_eq!(expected_experts(4, 4, 1), 4.0);
    }

    #[test]
    fn one_stream_reads_what_the_footprint_says() {
        for name in ["gpt-oss-120b", "qwen3-30b-a3b", "qwen3-8b", "qwen3-0.6b"] {
            let target = Target::find(name).expect("a target");
            let header = Plan::new(&SynthOptions::new(target), None).expect("a plan").header();
            let config = Config::from_header(&header).expect("a config");
            let read = crate::footprint::Footprint::new(&header, &config).expect("a footprint").weight_bytes_per_token;
            let r = Roofline::new(&header).expect("a model");
            let found = decode(&r, 1).total().weight_bytes;
            assert!((found / read as f64 - 1.0).abs() < 1e-3, "{name}: {found} and {read}");
        }
    }

    #[test]
    fn more_streams_read_more_experts_but_not_in_proportion() {
        let r = roofline("gpt-oss-120b");
        let rate = |n: usize| n as f64 / decode(&r, n).bound_s(&Roof::STRIX_HALO);
        let rates: Vec<f64> = [1, 2, 4, 8, 16, 32, 64].map(rate).to_vec();
        assert!(rates.is_sorted(), "{rates:?}");
        assert!((55.0..70.0).contains(&rates[0]), "{rates:?}");
        assert!(rates[6] < 8.0 * rates[0], "{rates:?}");
    }

    #[test]
    fn a_window_bounds_the_cache_that_is_read() {
        let r = roofline("gpt-oss-20b");
        let kv = |depth| r.account(Pass { n_seq: 1, n_tokens: 1, depth }).expect("an account").total().kv_bytes;
        // Half of the 24 layers see 128 positions, the others all; 8 heads of 64, keys and values, two bytes.
        let per_position = 2.0 * 2.0 * 8.0 * 64.0;
        let stored = 24.0 * per_position;
        assert_eq!(kv(9_999) - stored, 12.0 * per_position * (10_000.0 + 128.0));
    }

    #[test]
    fn launches_are_those_of_the_target_or_of_another_device() {
        let exact = Tuning::of(&DeviceInfo::strix_halo()).exact();
        let launches = |name, n_seq| {
            let both = [roofline(name), roofline(name).with_tuning(exact)];
            both.map(|r| decode(&r, n_seq).total().n_dispatches)
        };
        // 4 outside of the layers, 12 in each of 24; of several tokens a sum of experts more, and in integers two inputs
        // that no norm leaves in bytes.
        assert_eq!(launches("gpt-oss-20b", 1), [292, 292]);
        assert_eq!(launches("gpt-oss-20b", 16), [364, 316]);
        assert_eq!(launches("qwen3-8b", 1), [364, 364]);
        assert_eq!(launches("qwen3-8b", 16), [364 + 2 * 36, 364]);
        // On matrix units the inputs of q, k and v, of attention's output, of gate and up and of down become f16.
        let prompt = roofline("qwen3-8b").prompt(512, 0, 512).expect("an account").total();
        assert_eq!(prompt.n_dispatches, 364 + 4 * 36);
    }

    #[test]
    fn keys_and_values_of_other_types_are_counted_as_they_are_stored() {
        let q8_0 = KvOptions { k: KvType::Q8_0, v: KvType::Q8_0 };
        let pass = Pass { n_seq: 4, n_tokens: 1, depth: 1000 };
        let kv = |r: Roofline| r.account(pass).expect("an account").total().kv_bytes;
        assert_eq!(kv(roofline("qwen3-8b").with_cache(q8_0)), kv(roofline("qwen3-8b")) * 34.0 / 64.0);
    }

    #[test]
    fn positions_that_a_window_lets_a_prompt_see_are_all_counted() {
        let r = roofline("gpt-oss-20b");
        let il = r.config.layers.iter().position(|l| l.window.is_some()).expect("a layer with a window");
        let window = r.config.layers[il].window.expect("just seen");
        for (depth, n_tokens) in [(0, 1), (0, window), (0, 3 * window), (window - 2, 7), (window, 5), (10_000, 40)] {
            let mut ledger = Ledger::new(&r, Pass { n_seq: 3, n_tokens, depth });
            ledger.layer = il;
            let seen: usize = (depth + 1..=depth + n_tokens).map(|visible| visible.min(window)).sum();
            assert_eq!(ledger.positions().0, 3.0 * seen as f64, "{n_tokens} tokens after {depth}");
        }
    }

    #[test]
    fn passes_that_nothing_could_run_are_refused_at_once() {
        let r = roofline("qwen3-8b");
        let account = |n_seq, n_tokens, depth| r.account(Pass { n_seq, n_tokens, depth });
        for (n_seq, n_tokens, depth) in [(usize::MAX, 1, 0), (1 << 40, 1 << 40, 0), (1, 1, usize::MAX), (1, 1 << 32, 0)]
        {
            let refused = account(n_seq, n_tokens, depth).expect_err("too large");
            assert!(matches!(refused, Error::Request(RequestError::PassTooLarge { .. })), "{refused}");
        }
        assert!(account(1, 1, MAX_TOKENS).is_err() && account(1, MAX_TOKENS, 0).is_ok());
        assert!(account(1 << 16, 1 << 15, 1 << 31).expect("an account").total().flops.is_finite());
        let refused = r.prompt(100_000_000, 0, 1).expect_err("too many passes");
        assert!(matches!(refused, Error::Request(RequestError::TooManyPasses { found: 100_000_000, .. })), "{refused}");
        assert!(r.prompt(usize::MAX, 1, usize::MAX).is_err() && r.prompt(usize::MAX, 0, 1).is_err());
    }

    #[test]
    fn a_prompt_reads_the_weights_once_per_pass() {
        let r = roofline("qwen3-8b");
        let one = r.prompt(512, 0, 512).expect("an account").total();
        let four = r.prompt(2048, 0, 512).expect("an account").total();
        // But the rows of the embedding table, which are those of the tokens.
        assert!((four.weight_bytes / one.weight_bytes - 4.0).abs() < 1e-3);
        assert!(four.flops > 4.0 * one.flops, "attention grows with the context");
        assert_eq!(four.n_dispatches, 4 * one.n_dispatches);
    }
}
