//! The CPU backend: the oracle of every kernel, and the fallback on machines without a GPU.
//!
//! Ops run at once, in the order of the forward pass. Quantised weights meet activations quantised to 8 bits
//! (`activation`), by rows when few tokens are in flight (`rows`, bound by memory) and by panels for prompts
//! (`panel`, bound by arithmetic); with [`Precision::Exact`] activations stay f32 (`float`). `product` chooses.

mod activation;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod group;
#[cfg(target_arch = "x86_64")]
mod group_sums;
mod kv;
mod moe;
mod output;
#[cfg(target_arch = "x86_64")]
mod packed;
#[cfg(target_arch = "x86_64")]
mod packed_avx2;
mod panel;
#[cfg(target_arch = "x86_64")]
mod panel_avx2;
mod product;
mod rows;
mod simd;
#[cfg(target_arch = "x86_64")]
mod small;

use super::{Act, Backend, BatchToken, Limits, Linear, TensorView};
use crate::error::Error;
use crate::gguf::GgmlType;
use crate::kv::{KvLayout, KvPages, PageCopy};
use crate::model::{Activation, Config, ExpertWeights, RopeLayout, RopeTable, Weights};
use crate::trace::Taps;
use activation::QuantizedRows;
use attention::Heads;
use kv::KvCache;
use moe::Moe;
use output::Output;
#[cfg(target_arch = "x86_64")]
use packed::Packed;
use product::{Inputs, with_scratch};
use rayon::prelude::*;
pub use simd::SimdLevel;
pub(crate) use simd::sum_exp;
use simd::vectorised;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

/// What activations are multiplied as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout.
    Exact,
    /// 8-bit activations against quantised weights, as other engines do.
    Fast,
}

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
    moe: Moe,
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
#[derive(Clone)]
pub struct CpuWeight {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    data: &'static [u8],
    /// The same in the form that products are fastest with, see [`Cpu::repack`].
    #[cfg(target_arch = "x86_64")]
    packed: Option<Arc<Packed>>,
}

impl CpuWeight {
    fn row(&self, r: usize) -> &'static [u8] {
        let bytes = self.ty.row_bytes(self.cols);
        &self.data[r * bytes..(r + 1) * bytes]
    }

    /// The repacked form, where there is one and `rows` are whole panels of it.
    #[cfg(target_arch = "x86_64")]
    fn packed(&self, rows: &Range<usize>) -> Option<&Packed> {
        let whole = |row: usize| row.is_multiple_of(packed::PANEL_ROWS);
        self.packed.as_deref().filter(|_| whole(rows.start) && whole(rows.end))
    }

    /// A vector as f32 (norm weights, biases).
    fn to_f32(&self) -> Vec<f32> {
        let mut v = vec![0.0; self.cols];
        float::decode_row(self.ty, self.data, &mut v);
        v
    }

    /// Some elements of a row of a float type (biases of experts).
    fn elements(&self, r: usize, cols: Range<usize>) -> impl Iterator<Item = f32> {
        let row = self.row(r);
        let (ty, bytes) = (self.ty, self.ty.row_bytes(1));
        cols.map(move |c| {
            let mut value = [0.0];
            float::decode_row(ty, &row[c * bytes..(c + 1) * bytes], &mut value);
            value[0]
        })
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
            moe: Moe::default(),
            shape: None,
        }
    }

    /// Copies the matrices that products are computed with into the form in which these are fastest, where this machine
    /// and their types have one; `progress` is told the bytes that are done. It takes as much memory as the matrices;
    /// those for which there is none stay as they are. No result changes.
    pub fn repack(&self, weights: Weights<CpuWeight>, progress: &mut dyn FnMut(u64)) -> Weights<CpuWeight> {
        let mut done = 0;
        // Of an embedding table that is no output matrix only rows are read.
        let rows_only = weights.output.as_ref().map(|_| weights.token_embd.data.as_ptr());
        let repacked: Result<_, Infallible> = weights.map(&mut |weight| {
            done += weight.data.len() as u64;
            progress(done);
            Ok(match rows_only == Some(weight.data.as_ptr()) {
                true => weight.clone(),
                false => self.repacked(weight),
            })
        });
        let Ok(weights) = repacked;
        weights
    }

    #[cfg(target_arch = "x86_64")]
    fn repacked(&self, weight: &CpuWeight) -> CpuWeight {
        let mut weight = weight.clone();
        if self.precision == Precision::Fast && self.level == SimdLevel::Avx2 {
            weight.packed = self.pool.install(|| Packed::new(&weight)).map(Arc::new);
        }
        weight
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn repacked(&self, weight: &CpuWeight) -> CpuWeight {
        weight.clone()
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
}

impl Backend for Cpu {
    type Weight = CpuWeight;

    fn name(&self) -> String {
        let threads = self.n_threads();
        format!("CPU ({}, {threads} thread{})", self.level.name(), if threads == 1 { "" } else { "s" })
    }

    fn upload(&mut self, tensor: TensorView<'static>) -> Result<CpuWeight, Error> {
        Ok(CpuWeight {
            ty: tensor.ty,
            rows: tensor.rows,
            cols: tensor.cols,
            data: tensor.data,
            #[cfg(target_arch = "x86_64")]
            packed: None,
        })
    }

    fn allocate(&mut self, config: &Config, limits: Limits, rope: &RopeTable, kv: &KvLayout) -> Result<(), Error> {
        self.kv = KvCache::new(config, kv)?;
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
            let weights = products.iter().map(|p| p.weight);
            product::quantize(&mut self.quantized, self.level, self.precision, &input, n, weights);
            let parts: Vec<(&CpuWeight, Output<'_>)> = products
                .iter()
                .zip(&mut outputs)
                .zip(&biases)
                .map(|((p, out), bias)| (p.weight, Output::new(out, p.weight.rows, bias.as_deref(), p.accumulate)))
                .collect();
            self.multiply(&input, n, &parts);
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
        rows.for_each(|(gate, up)| vectorised!(level, || moe::activate(Activation::Swiglu, gate, up)));
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
        let logits = self.take(Act::Router);
        let config = self.shape().config.moe.expect("a model with experts");
        self.moe.route(&config, &logits);
        self.give(Act::Router, logits);
        Ok(())
    }

    fn experts(&mut self, x: Act, experts: &ExpertWeights<CpuWeight>) -> Result<(), Error> {
        let (input, mut out) = (self.take(x), self.take(Act::X));
        let config = &self.shape().config;
        let (config, n_embd) = (config.moe.expect("a model with experts"), config.n_embd);
        let kind = moe::Kind { moe: &config, n_embd, precision: self.precision, level: self.level };
        self.moe.experts(kind, &input, experts, &mut self.quantized, &mut out);
        self.give(x, input);
        self.give(Act::X, out);
        Ok(())
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

impl Taps for Cpu {
    fn kernels(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn read_act(&mut self, act: Act) -> Result<Vec<f32>, Error> {
        Ok(self.get(act).to_vec())
    }

    fn write_act(&mut self, act: Act, values: &[f32]) -> Result<(), Error> {
        let mut buffer = self.take(act);
        buffer.copy_from_slice(values);
        self.give(act, buffer);
        Ok(())
    }
}

impl Cpu {
    /// Several products of `input`, `[n, cols]`: all weights' rows in one parallel loop, so that threads meet once.
    fn multiply(&self, input: &[f32], n: usize, products: &[(&CpuWeight, Output<'_>)]) {
        let x = Inputs { float: input, quantized: &self.quantized, precision: self.precision, level: self.level };
        let total: usize = products.iter().map(|(w, _)| w.rows).sum();
        let blocks: Vec<(usize, Range<usize>)> = products
            .iter()
            .enumerate()
            .flat_map(|(i, (w, _))| {
                let step = product::block_rows(w, self.precision, total, n);
                (0..w.rows).step_by(step).map(move |first| (i, first..w.rows.min(first + step)))
            })
            .collect();
        blocks.par_iter().for_each(|(i, rows)| {
            let (weight, out) = &products[*i];
            with_scratch(|s| {
                s.first.resize(n * rows.len(), 0.0);
                product::multiply(weight, rows.clone(), x, 0..n, &mut s.kernel, &mut s.first);
                for (t, sums) in s.first.chunks_exact(rows.len()).enumerate() {
                    out.put(t, rows.start, sums);
                }
            });
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
