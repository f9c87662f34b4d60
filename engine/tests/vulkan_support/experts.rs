//! Layers of experts on the processor and on the device, and the check of one against the other.

use super::products::{Arithmetic, Sizes};
use super::{Bytes, Matrix, Random, TestWeight, activate, assert_close, run};
use engine::backend::vulkan::kernels::gated::{self, Gated};
use engine::backend::vulkan::kernels::linear::{self, Method, Product};
use engine::backend::vulkan::kernels::quantize;
use engine::backend::vulkan::kernels::route::{self, Routing};
use engine::backend::vulkan::{Gpu, MemoryUse, Region};
use engine::gguf::GgmlType;
use engine::model::{Activation, MoeConfig};

pub fn config(n_expert: usize, n_expert_used: usize) -> MoeConfig {
    MoeConfig {
        n_expert,
        n_expert_used,
        n_ff_exp: 1,
        renormalise: true,
        weights_scale: 1.0,
        activation: Activation::Swiglu,
    }
}

/// Memory of a routing; every word starts as one that is no pair and no expert.
pub struct RoutingMemory {
    pub weights: Region,
    pub entries: Region,
    pub tiles: Region,
}

impl RoutingMemory {
    pub fn new(gpu: &mut Gpu, n_tokens: usize, moe: &MoeConfig) -> RoutingMemory {
        let mut take = |bytes| {
            let mut region = gpu.allocate(MemoryUse::Device, bytes, "a test routing").expect("memory");
            region.write().fill(0xFF);
            region
        };
        let [weights, entries, tiles] = route::bytes(n_tokens, moe).map(&mut take);
        RoutingMemory { weights, entries, tiles }
    }

    pub fn routing(&self, n_tokens: usize, moe: &MoeConfig, method: Method) -> Routing<'_> {
        let (n_expert, n_used) = (moe.n_expert, moe.n_expert_used);
        let (weights, entries, tiles) = (&self.weights, &self.entries, &self.tiles);
        Routing { weights, entries, tiles, n_tokens, n_expert, n_used, method }
    }

    pub fn words(region: &Region) -> &[u32] {
        bytemuck::cast_slice(region.read())
    }
}

/// Experts of one token, best first, and their weights.
pub fn choice(logits: &[f32], moe: &MoeConfig) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("numbers").then(a.cmp(&b)));
    let chosen = &order[..moe.n_expert_used];
    let exp = |e: usize| (f64::from(logits[e]) - f64::from(logits[order[0]])).exp();
    let total: f64 = if moe.renormalise { chosen } else { &order[..] }.iter().map(|&e| exp(e)).sum();
    chosen.iter().map(|&e| (e, exp(e) / total * f64::from(moe.weights_scale))).collect()
}

/// A layer of experts with one type for gate and up and one for down, on the processor and on the device.
pub struct Layer {
    moe: MoeConfig,
    n_embd: usize,
    gate: TestWeight,
    up: TestWeight,
    down: TestWeight,
    biases: Option<[TestWeight; 3]>,
}

impl Layer {
    pub fn random(random: &mut Random, moe: MoeConfig, n_embd: usize, types: [GgmlType; 2], with_bias: bool) -> Layer {
        let (e, ff) = (moe.n_expert, moe.n_ff_exp);
        let biases = with_bias.then(|| {
            [ff, ff, n_embd].map(|n| {
                let bytes = random.values(e * n).iter().flat_map(|v| v.to_le_bytes()).collect();
                TestWeight::from_bytes(GgmlType::F32, e, n, bytes)
            })
        });
        Layer {
            moe,
            n_embd,
            gate: TestWeight::random(random, types[0], e * ff, n_embd),
            up: TestWeight::random(random, types[0], e * ff, n_embd),
            down: TestWeight::random(random, types[1], e * n_embd, ff),
            biases,
        }
    }

    /// Row `row` of expert `e`'s matrix times `x`, plus its bias, and what that may be off.
    fn product(&self, which: usize, e: usize, row: usize, x: &[f32], arithmetic: Arithmetic) -> (f64, f64) {
        let matrix = [&self.gate, &self.up, &self.down][which];
        let n_rows = matrix.rows / self.moe.n_expert;
        let bias = self.biases.as_ref().map_or(0.0, |b| f64::from(b[which].row(e)[row]));
        let (mut sum, mut sizes) = (bias, Sizes { terms: bias.abs(), x: 0.0 });
        for (&w, &x) in matrix.row(e * n_rows + row).iter().zip(x) {
            let term = f64::from(w) * f64::from(x);
            sum += term;
            sizes = Sizes { terms: sizes.terms + term.abs(), x: sizes.x + f64::from(x).abs() };
        }
        (sum, arithmetic.error(sizes))
    }

    /// Routes random logits and compares every step with f64, each from what the device made of the one before.
    pub fn check(&self, gpu: &mut Gpu, random: &mut Random, n_tokens: usize, method: Method) {
        let arithmetic = match method {
            Method::Matrix { .. } => Arithmetic::Half,
            _ => Arithmetic::Single,
        };
        self.check_with(gpu, random, n_tokens, method, arithmetic);
    }

    /// The same with activations in bytes.
    pub fn check_in_bytes(&self, gpu: &mut Gpu, random: &mut Random, n_tokens: usize, method: Method) {
        self.check_with(gpu, random, n_tokens, method, Arithmetic::Integer);
    }

    fn check_with(&self, gpu: &mut Gpu, random: &mut Random, n_tokens: usize, method: Method, arithmetic: Arithmetic) {
        let Layer { moe, n_embd, .. } = self;
        let (n_used, ff) = (moe.n_expert_used, moe.n_ff_exp);
        let what = format!(
            "{n_tokens} tokens, {} of {} experts [{ff}, {n_embd}] {}/{}, {:?}, {method:?}, {arithmetic:?}",
            n_used, moe.n_expert, self.gate.ty, self.down.ty, moe.activation
        );
        let logits: Vec<f32> = random.values(n_tokens * moe.n_expert).into_iter().map(|v| v * 3.0).collect();
        let mut x_values = random.values(n_tokens * n_embd);
        let memory = RoutingMemory::new(gpu, n_tokens, moe);
        let routing = &memory.routing(n_tokens, moe, method);
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(|w| w.upload(gpu, "experts"));
        let biases = self.biases.as_ref().map(|b| b.each_ref().map(|w| w.upload(gpu, "ffn_exps.bias")));
        let router = Matrix::new(gpu, n_tokens, moe.n_expert, &logits);
        let x = Matrix::new(gpu, n_tokens, *n_embd, &x_values);
        let hidden = Matrix::untouched(gpu, n_tokens * n_used, ff);
        let output = Matrix::untouched(gpu, n_tokens * n_used, *n_embd);
        let in_bytes = arithmetic == Arithmetic::Integer;
        let x_bytes = in_bytes.then(|| Bytes::new(gpu, n_tokens, *n_embd));
        let hidden_bytes = in_bytes.then(|| Bytes::new(gpu, n_tokens * n_used, ff));
        let [x_quantized, hidden_quantized] = [&x_bytes, &hidden_bytes].map(|b| b.as_ref().map(Bytes::rows));
        run(gpu, &what, |g| {
            route::record(g, router.rows(), moe, routing)?;
            if let Some(bytes) = x_quantized {
                quantize::record(g, x.rows(), bytes)?;
            }
            let biases_of = biases.as_ref().map(|[gate, up, _]| [gate, up]);
            let (activation, dst) = (moe.activation, hidden.rows());
            let both = Gated {
                x: x.rows(),
                quantized: x_quantized,
                gate: &gate,
                up: &up,
                biases: biases_of,
                activation,
                dst,
                routing: Some(routing),
            };
            gated::record(g, &both)?;
            if let Some(bytes) = hidden_quantized {
                quantize::record(g, hidden.rows(), bytes)?;
            }
            let bias = biases.as_ref().map(|b| &b[2]);
            let product = Product::new(hidden.rows(), &down, output.rows());
            let product = Product { quantized: hidden_quantized, ..product };
            linear::record(g, &Product { bias, routing: Some(routing), weighted: true, ..product })
        });
        let (got_hidden, got_output) = (hidden.read(), output.read());
        // What the products saw.
        let down_in_bytes = hidden_bytes.as_ref().filter(|_| self.down.ty.block_len() > 1);
        let down_input = down_in_bytes.map_or_else(|| got_hidden.clone(), Bytes::decoded);
        if let Some(bytes) = &x_bytes {
            x_values = bytes.decoded();
        }
        if n_tokens == 1 {
            // The same in one step, onto what is there.
            let before = random.values(*n_embd);
            let sum = Matrix::new(gpu, 1, *n_embd, &before);
            run(gpu, &what, |g| {
                let bias = biases.as_ref().map(|b| &b[2]);
                let product = Product::new(hidden.rows(), &down, sum.rows());
                let product = Product { quantized: hidden_quantized, ..product };
                linear::record(
                    g,
                    &Product { bias, routing: Some(routing), weighted: true, accumulate: true, ..product },
                )
            });
            let rows = got_output.chunks_exact(*n_embd);
            let want: Vec<f64> = (0..*n_embd)
                .map(|i| f64::from(before[i]) + rows.clone().map(|row| f64::from(row[i])).sum::<f64>())
                .collect();
            let tolerance =
                2e-5 * (1.0 + got_output.iter().fold(0.0, |m, v| f64::from(v.abs()).max(m)) * n_used as f64);
            assert_close(&format!("{what}, added up"), &sum.read(), &want, |_| tolerance);
        }
        let pairs = logits.chunks_exact(moe.n_expert).flat_map(|row| choice(row, moe));
        for (pair, (e, weight)) in pairs.enumerate() {
            let x = &x_values[pair / n_used * n_embd..][..*n_embd];
            let (mut want, mut error) = (Vec::new(), Vec::new());
            for r in 0..ff {
                let [(g, g_error), (u, u_error)] = [0, 1].map(|which| self.product(which, e, r, x, arithmetic));
                want.push(activate(moe.activation, g, u));
                // The activation's slopes are at most about its other factor and 1.2.
                error.push(g_error * (u.abs() + u_error + 1.0) * 2.0 + u_error * (g.abs() + g_error + 1.0));
            }
            let got = &got_hidden[pair * ff..][..ff];
            assert_close(&format!("{what}, pair {pair}"), got, &want, |i| error[i]);
            let input = &down_input[pair * ff..][..ff];
            let sums: Vec<(f64, f64)> = (0..*n_embd).map(|r| self.product(2, e, r, input, arithmetic)).collect();
            let want: Vec<f64> = sums.iter().map(|s| s.0 * weight).collect();
            let got = &got_output[pair * n_embd..][..*n_embd];
            assert_close(&format!("{what}, output of pair {pair}"), got, &want, |i| sums[i].1 * weight.max(1.0));
        }
    }
}
