//! The CPU backend: the oracle of every kernel, and the fallback on machines without a GPU.
//!
//! Ops run at once, in the order of the forward pass. Quantised weights meet activations quantised to 8 bits
//! (`activation`), by rows when few tokens are in flight (`rows`, bound by memory) and by panels for prompts
//! (`panel`, bound by arithmetic); with [`Precision::Exact`] activations stay f32 (`float`).

mod activation;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod group;
mod kv;
mod output;
mod panel;
#[cfg(target_arch = "x86_64")]
mod panel_avx2;
mod rows;
mod simd;

use super::{Act, Backend, BatchToken, Limits, Linear, TensorView};
use crate::error::Error;
use crate::gguf::GgmlType;
use crate::kv::{KvLayout, KvPages, PageCopy};
use crate::model::{Config, ExpertWeights, RopeLayout, RopeTable};
use activation::{QuantizedRows, ScaleSpan};
use attention::Heads;
use kv::KvCache;
use output::Output;
use rayon::prelude::*;
use rows::RowBlock;
pub use simd::SimdLevel;
use simd::vectorised;
use std::sync::Arc;

/// What activations are multiplied as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    Exact,
    /// 8-bit activations against quantised weights, as other engines do.
    Fast,
}

/// Most rows that a thread takes at once when it decodes.
const MAX_TASK_ROWS: usize = 128;

/// The CPU as a [`Backend`].
pub struct Cpu {
    level: SimdLevel,
    precision: Precision,
    pool: Arc<rayon::ThreadPool>,
    acts: Vec<Vec<f32>>,
    kv: KvCache,
    batch: Vec<BatchToken>,
    /// The layer that ops belong to.
    layer: usize,
    /// Rows of the batch whose logits are wanted.
    outputs: Vec<usize>,
    /// Input of the current product, per scale span.
    quantized: [QuantizedRows; 2],
    /// Set by `allocate`.
    shape: Option<Shape>,
}

/// What the ops need of a model.
struct Shape {
    config: Config,
    rope: RopeTable,
    limits: Limits,
}

/// A tensor in the mapped file.
#[derive(Clone, Copy)]
pub struct CpuWeight {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    data: &'static [u8],
}

impl CpuWeight {
    fn row(&self, r: usize) -> &'static [u8] {
        let bytes = self.ty.row_bytes(self.cols);
        &self.data[r * bytes..(r + 1) * bytes]
    }

    /// A vector as f32 (norm weights, biases).
    fn to_f32(self) -> Vec<f32> {
        let mut v = vec![0.0; self.cols];
        float::decode_row(self.ty, self.data, &mut v);
        v
    }
}

impl Cpu {
    /// A backend with `n_threads` workers (0: one per core).
    pub fn new(n_threads: usize, precision: Precision) -> Self {
        Self::with_simd(n_threads, precision, SimdLevel::detect())
    }

    /// The same with a chosen instruction set, no better than [`SimdLevel::detect`] gives.
    pub fn with_simd(n_threads: usize, precision: Precision, level: SimdLevel) -> Self {
        assert!(level <= SimdLevel::detect(), "this machine has no {}", level.name());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("cpu-{i}"))
            .build()
            .expect("threads can be started");
        Cpu {
            level,
            precision,
            pool: Arc::new(pool),
            acts: vec![Vec::new(); Act::ALL.len()],
            kv: KvCache::default(),
            batch: Vec::new(),
            layer: 0,
            outputs: Vec::new(),
            quantized: Default::default(),
            shape: None,
        }
    }

    fn shape(&self) -> &Shape {
        self.shape.as_ref().expect("`allocate` comes before any pass")
    }

    /// Worker threads.
    pub fn n_threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Rows of `act` in the current batch.
    fn n_rows(&self, act: Act) -> usize {
        match act {
            Act::Out | Act::Logits => self.outputs.len(),
            _ => self.batch.len(),
        }
    }

    /// Elements per row of `act` in the current layer.
    fn width(&self, act: Act) -> usize {
        act.width(&self.shape().config, self.layer)
    }

    /// Takes the buffer of `act`, cut to the current batch; [`Self::give`] brings it back.
    fn take(&mut self, act: Act) -> Vec<f32> {
        let mut buffer = std::mem::take(&mut self.acts[act as usize]);
        buffer.resize(self.n_rows(act) * self.width(act), 0.0);
        buffer
    }

    fn give(&mut self, act: Act, buffer: Vec<f32>) {
        self.acts[act as usize] = buffer;
    }

    fn get(&self, act: Act) -> &[f32] {
        &self.acts[act as usize][..self.n_rows(act) * self.width(act)]
    }

    /// Whether a product runs in integers, and with which form of activations.
    fn integer_span(&self, weight: &CpuWeight) -> Option<ScaleSpan> {
        group::span_of(weight.ty).filter(|_| self.precision == Precision::Fast)
    }
}

impl Backend for Cpu {
    type Weight = CpuWeight;

    fn name(&self) -> String {
        let threads = self.n_threads();
        format!("CPU ({}, {threads} thread{})", self.level.name(), if threads == 1 { "" } else { "s" })
    }

    fn upload(&mut self, tensor: TensorView<'static>) -> Result<CpuWeight, Error> {
        Ok(CpuWeight { ty: tensor.ty, rows: tensor.rows, cols: tensor.cols, data: tensor.data })
    }

    fn allocate(&mut self, config: &Config, limits: Limits, rope: &RopeTable, kv: &KvLayout) -> Result<(), Error> {
        self.kv = KvCache::new(config, kv);
        self.shape = Some(Shape { config: config.clone(), rope: rope.clone(), limits });
        Ok(())
    }

    fn pass<R: Send>(&mut self, ops: impl FnOnce(&mut Self) -> R + Send) -> R {
        // On a worker, parallel loops start without waking the pool from outside each time.
        Arc::clone(&self.pool).install(|| ops(self))
    }

    fn begin(&mut self, batch: &[BatchToken], kv: &KvPages) -> Result<(), Error> {
        let limits = self.shape().limits;
        assert!((1..=limits.n_batch).contains(&batch.len()), "{} tokens for {}", batch.len(), limits.n_batch);
        self.batch.clear();
        self.batch.extend_from_slice(batch);
        self.outputs = batch.iter().enumerate().filter(|(_, t)| t.output).map(|(i, _)| i).collect();
        assert!(self.outputs.len() <= limits.n_outputs, "{} outputs for {}", self.outputs.len(), limits.n_outputs);
        self.kv.begin(batch, kv);
        Ok(())
    }

    fn begin_layer(&mut self, il: usize) -> Result<(), Error> {
        self.layer = il;
        Ok(())
    }

    fn embed(&mut self, table: &CpuWeight) -> Result<(), Error> {
        let mut x = self.take(Act::X);
        for (row, token) in x.chunks_exact_mut(table.cols).zip(&self.batch) {
            float::decode_row(table.ty, table.row(token.token as usize), row);
        }
        self.give(Act::X, x);
        Ok(())
    }

    fn rms_norm(&mut self, x: Act, weight: &CpuWeight, dst: Act) -> Result<(), Error> {
        let (weight, eps, level) = (weight.to_f32(), self.shape().config.rms_eps, self.level);
        let mut out = self.take(dst);
        if x != dst {
            out.copy_from_slice(self.get(x));
        }
        out.par_chunks_exact_mut(weight.len())
            .with_min_len(8)
            .for_each(|row| vectorised!(level, || rms_norm_row(row, &weight, eps)));
        self.give(dst, out);
        Ok(())
    }

    fn head_norm(&mut self, x: Act, weight: &CpuWeight) -> Result<(), Error> {
        let (weight, eps, level) = (weight.to_f32(), self.shape().config.rms_eps, self.level);
        let mut heads = self.take(x);
        heads
            .par_chunks_exact_mut(weight.len())
            .with_min_len(64)
            .for_each(|head| vectorised!(level, || rms_norm_row(head, &weight, eps)));
        self.give(x, heads);
        Ok(())
    }

    fn linear(&mut self, x: Act, products: &[Linear<'_, CpuWeight>]) -> Result<(), Error> {
        let input = self.take(x);
        let n = self.n_rows(x);
        let mut outputs: Vec<Vec<f32>> = products.iter().map(|p| self.take(p.out)).collect();
        let biases: Vec<Option<Vec<f32>>> = products.iter().map(|p| p.bias.map(|b| b.to_f32())).collect();
        if n > 0 {
            for span in [ScaleSpan::Super, ScaleSpan::Small] {
                if let Some(p) = products.iter().find(|p| self.integer_span(p.weight) == Some(span)) {
                    self.quantized[span as usize].quantize(self.level, &input, n, p.weight.cols, span);
                }
            }
            let (mut by_rows, mut others) = (Vec::new(), Vec::new());
            for ((p, out), bias) in products.iter().zip(&mut outputs).zip(&biases) {
                let out = Output::new(out, p.weight.rows, bias.as_deref(), p.accumulate);
                match self.integer_span(p.weight) {
                    Some(span) if n < panel::MIN_TOKENS => by_rows.push((p.weight, span, out)),
                    span => others.push((p.weight, span, out)),
                }
            }
            self.multiply_by_rows(n, &by_rows);
            for (weight, span, out) in &others {
                match span {
                    Some(span) => panel::multiply(self.level, weight, &self.quantized[*span as usize], out),
                    None => float::multiply(self.level, weight, &input, out),
                }
            }
        }
        for (p, out) in products.iter().zip(outputs) {
            self.give(p.out, out);
        }
        self.give(x, input);
        Ok(())
    }

    fn rope(&mut self, x: Act) -> Result<(), Error> {
        let mut heads = self.take(x);
        let (width, head_dim) = (self.width(x), self.shape().config.head_dim);
        let rope = &self.shape().rope;
        heads.par_chunks_exact_mut(width).zip(&self.batch).with_min_len(8).for_each_init(
            || vec![(0.0f32, 0.0f32); rope.inv_freq.len()],
            |angles, (row, token)| {
                for (angle, freq) in angles.iter_mut().zip(&rope.inv_freq) {
                    // f64, because at long contexts an f32 angle has lost the digits that matter.
                    let (sin, cos) = (f64::from(token.pos) * f64::from(*freq)).sin_cos();
                    *angle = (sin as f32 * rope.magnitude, cos as f32 * rope.magnitude);
                }
                row.chunks_exact_mut(head_dim).for_each(|head| rotate(head, angles, rope.layout));
            },
        );
        self.give(x, heads);
        Ok(())
    }

    fn kv_store(&mut self) -> Result<(), Error> {
        let (keys, values) = (self.take(Act::K), self.take(Act::V));
        let dim = self.width(Act::K);
        for ((token, k), v) in self.batch.iter().zip(keys.chunks_exact(dim)).zip(values.chunks_exact(dim)) {
            self.kv.store(self.layer, token, k, v);
        }
        self.give(Act::K, keys);
        self.give(Act::V, values);
        Ok(())
    }

    fn attention(&mut self, sinks: Option<&CpuWeight>) -> Result<(), Error> {
        let mut out = self.take(Act::Attn);
        let (c, sinks) = (&self.shape().config, sinks.map(|s| s.to_f32()));
        let layer = c.layers[self.layer];
        let heads = Heads {
            n_head: layer.n_head,
            n_head_kv: layer.n_head_kv,
            head_dim: c.head_dim,
            window: layer.window,
            sinks: sinks.as_deref(),
        };
        let output = Output::new(&mut out, self.width(Act::Attn), None, false);
        attention::attention(self.level, heads, &self.batch, self.get(Act::Q), self.kv.layer(self.layer), &output);
        self.give(Act::Attn, out);
        Ok(())
    }

    fn swiglu(&mut self) -> Result<(), Error> {
        let mut gate = self.take(Act::Gate);
        let level = self.level;
        let rows = gate.par_chunks_mut(1024).zip(self.get(Act::Up).par_chunks(1024)).with_min_len(4);
        rows.for_each(|(gate, up)| {
            vectorised!(level, || {
                for (g, u) in gate.iter_mut().zip(up) {
                    *g = *g / (1.0 + simd::exp(-*g)) * u;
                }
            });
        });
        self.give(Act::Gate, gate);
        Ok(())
    }

    fn scale_by_sigmoid(&mut self, x: Act, gate: Act) -> Result<(), Error> {
        let (mut rows, width) = (self.take(x), self.width(x));
        for (row, gate) in rows.chunks_exact_mut(width).zip(self.get(gate)) {
            let scale = 1.0 / (1.0 + (-gate).exp());
            row.iter_mut().for_each(|v| *v *= scale);
        }
        self.give(x, rows);
        Ok(())
    }

    fn route(&mut self) -> Result<(), Error> {
        Err(crate::error::RequestError::NoExperts.into())
    }

    fn experts(&mut self, _: Act, _: &ExpertWeights<CpuWeight>) -> Result<(), Error> {
        Err(crate::error::RequestError::NoExperts.into())
    }

    fn gather_outputs(&mut self) -> Result<(), Error> {
        let mut out = self.take(Act::Out);
        let width = self.shape().config.n_embd;
        for (row, &t) in out.chunks_exact_mut(width).zip(&self.outputs) {
            row.copy_from_slice(&self.get(Act::X)[t * width..(t + 1) * width]);
        }
        self.give(Act::Out, out);
        Ok(())
    }

    fn finish(&mut self) -> Result<&[f32], Error> {
        Ok(self.get(Act::Logits))
    }

    fn kv_copy_pages(&mut self, copies: &[PageCopy]) -> Result<(), Error> {
        self.kv.copy_pages(copies);
        Ok(())
    }
}

impl Cpu {
    /// Products of few tokens: all weights' rows in one parallel loop, so that threads meet once per op.
    fn multiply_by_rows(&self, n: usize, products: &[(&CpuWeight, ScaleSpan, Output<'_>)]) {
        let total: usize = products.iter().map(|(w, _, _)| w.rows).sum();
        let task_rows = (total / (rayon::current_num_threads() * 8)).clamp(8, MAX_TASK_ROWS);
        let tasks: Vec<(usize, usize)> = products
            .iter()
            .enumerate()
            .flat_map(|(i, (w, _, _))| (0..w.rows).step_by(task_rows).map(move |first| (i, first)))
            .collect();
        tasks.par_iter().for_each(|&(i, first)| {
            let (weight, span, out) = &products[i];
            let x = &self.quantized[*span as usize];
            let last = weight.rows.min(first + task_rows);
            let row_bytes = weight.ty.row_bytes(weight.cols);
            let data = &weight.data[first * row_bytes..last * row_bytes];
            let block = RowBlock { ty: weight.ty, row_bytes, data };
            let mut sums = [0.0f32; rows::MAX_TOKENS * MAX_TASK_ROWS];
            for t in (0..n).step_by(rows::MAX_TOKENS) {
                let tokens = rows::MAX_TOKENS.min(n - t);
                rows::dot_rows(self.level, block, x, t, tokens, &mut sums);
                for (i, sums) in sums.chunks_exact(last - first).take(tokens).enumerate() {
                    out.put(t + i, first, sums);
                }
            }
        });
    }
}

/// `x = x / √(mean(x²) + eps) · weight`.
#[inline(always)]
fn rms_norm_row(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (simd::dot(x, x) / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x *= scale * w;
    }
}

/// Turns the pairs of a head by (sin, cos); elements past the rotated ones stay.
fn rotate(head: &mut [f32], angles: &[(f32, f32)], layout: RopeLayout) {
    for (i, (sin, cos)) in angles.iter().enumerate() {
        let (a, b) = match layout {
            RopeLayout::Interleaved => (2 * i, 2 * i + 1),
            RopeLayout::Neox => (i, i + angles.len()),
        };
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
    }
}
