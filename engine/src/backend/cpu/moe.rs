//! Mixture of experts: which experts each token uses, and their products, with every chosen expert's weights read once
//! for the whole batch. Caller: `Cpu::route` and `Cpu::experts`.
//!
//! Tokens are sorted by expert. A row of the sorted order, an *assignment*, is one token in one of its experts: gate,
//! up and activation fill one hidden row for each, `down` adds them back into the tokens' residual rows.

use super::activation::{QuantizedRows, ScaleSpan};
use super::output::Output;
use super::product::{self, Inputs, block_rows, integer_span, with_scratch};
use super::simd::{SimdLevel, exp, vectorised};
use super::{CpuWeight, Precision};
use crate::model::{Activation, ExpertWeights, MoeConfig, SWIGLU_OAI_ALPHA, SWIGLU_OAI_LIMIT};
use rayon::prelude::*;
use std::ops::Range;

/// Routing of the current batch and the buffers of its experts, kept between passes.
#[derive(Default)]
pub(super) struct Moe {
    routing: Routing,
    /// Inputs of the assignments: 8-bit forms, or `[n_assignments, n_embd]`.
    inputs: [QuantizedRows; 2],
    inputs_float: Vec<f32>,
    /// `[n_assignments, n_ff_exp]`, and its 8-bit forms.
    hidden: Vec<f32>,
    hidden_quantized: [QuantizedRows; 2],
    /// (expert, first row) of the blocks of gate and up.
    blocks: Vec<(usize, usize)>,
}

/// Assignments, sorted by expert and then by token.
#[derive(Default)]
struct Routing {
    /// `[n_expert + 1]`: where each expert's assignments start.
    starts: Vec<usize>,
    /// `[n_assignments]`: the token of each.
    tokens: Vec<u32>,
    /// `[n_assignments]`: its routing weight.
    weights: Vec<f32>,
    /// Experts with at least one token.
    used: Vec<usize>,
    /// `[n_tokens, n_expert_used]`, best first: what the sorted form is made from.
    chosen: Vec<(usize, f32)>,
}

impl Routing {
    /// From `logits`, `[n_tokens, n_expert]`.
    fn choose(&mut self, moe: &MoeConfig, logits: &[f32]) {
        self.chosen.clear();
        for row in logits.chunks_exact(moe.n_expert) {
            let first = self.chosen.len();
            top_k(row, moe.n_expert_used, &mut self.chosen);
            routing_weights(moe, row, &mut self.chosen[first..]);
        }
        // A counting sort keeps the tokens of an expert in order.
        self.starts.clear();
        self.starts.resize(moe.n_expert + 1, 0);
        self.chosen.iter().for_each(|&(expert, _)| self.starts[expert + 1] += 1);
        self.used.clear();
        self.used.extend((0..moe.n_expert).filter(|e| self.starts[e + 1] > 0));
        for e in 0..moe.n_expert {
            self.starts[e + 1] += self.starts[e];
        }
        self.tokens.resize(self.chosen.len(), 0);
        self.weights.resize(self.chosen.len(), 0.0);
        // `starts[e]` moves up as expert `e` fills and ends as the start of the next.
        for (i, &(expert, weight)) in self.chosen.iter().enumerate() {
            let at = self.starts[expert];
            self.tokens[at] = (i / moe.n_expert_used) as u32;
            self.weights[at] = weight;
            self.starts[expert] += 1;
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// Assignments of an expert.
    fn of(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }
}

/// Appends the `k` largest logits with their indices, largest first, of equal ones the first.
fn top_k(logits: &[f32], k: usize, chosen: &mut Vec<(usize, f32)>) {
    let first = chosen.len();
    for (expert, &logit) in logits.iter().enumerate() {
        let best = &chosen[first..];
        let at = best.iter().position(|&(_, other)| logit > other).unwrap_or(best.len());
        if at < k {
            if best.len() == k {
                chosen.pop();
            }
            chosen.insert(first + at, (expert, logit));
        }
    }
}

/// Turns the chosen experts' logits into their weights.
fn routing_weights(moe: &MoeConfig, logits: &[f32], chosen: &mut [(usize, f32)]) {
    let largest = chosen[0].1;
    let total: f32 = if moe.renormalise {
        chosen.iter().map(|&(_, logit)| (logit - largest).exp()).sum()
    } else {
        logits.iter().map(|logit| (logit - largest).exp()).sum()
    };
    for (_, weight) in chosen {
        *weight = (*weight - largest).exp() / total * moe.weights_scale;
    }
}

/// What the experts' products are computed with.
#[derive(Clone, Copy)]
pub(super) struct Kind<'a> {
    pub(super) moe: &'a MoeConfig,
    pub(super) n_embd: usize,
    pub(super) precision: Precision,
    pub(super) level: SimdLevel,
}

impl Moe {
    /// Chooses the experts of every row of `logits`, `[n_tokens, n_expert]`.
    pub(super) fn route(&mut self, moe: &MoeConfig, logits: &[f32]) {
        self.routing.choose(moe, logits);
    }

    /// Adds the chosen experts' outputs for `x`, `[n_tokens, n_embd]`, to `out`, of the same shape. `quantized` is
    /// scratch.
    pub(super) fn experts(
        &mut self,
        kind: Kind<'_>,
        x: &[f32],
        w: &ExpertWeights<CpuWeight>,
        quantized: &mut [QuantizedRows; 2],
        out: &mut [f32],
    ) {
        self.gather(kind, x, [&w.gate, &w.up], quantized);
        self.hidden.resize(self.routing.tokens.len() * kind.moe.n_ff_exp, 0.0);
        self.gate_and_up(kind, w);
        let n = self.routing.tokens.len();
        let down = std::iter::once(&w.down);
        product::quantize(&mut self.hidden_quantized, kind.level, kind.precision, &self.hidden, n, down);
        self.down(kind, w, out);
    }

    /// The tokens' activations in the order of the assignments.
    fn gather(&mut self, kind: Kind<'_>, x: &[f32], weights: [&CpuWeight; 2], quantized: &mut [QuantizedRows; 2]) {
        let (n, tokens) = (x.len() / kind.n_embd, &self.routing.tokens);
        product::quantize(quantized, kind.level, kind.precision, x, n, weights.into_iter());
        for span in [ScaleSpan::Super, ScaleSpan::Small] {
            if weights.iter().any(|w| integer_span(w, kind.precision) == Some(span)) {
                self.inputs[span as usize].gather(&quantized[span as usize], tokens);
            }
        }
        self.inputs_float.clear();
        if weights.iter().any(|w| integer_span(w, kind.precision).is_none()) {
            let row = |t: &u32| &x[*t as usize * kind.n_embd..(*t as usize + 1) * kind.n_embd];
            tokens.iter().for_each(|t| self.inputs_float.extend_from_slice(row(t)));
        }
    }

    /// `hidden = act(gate · x + b, up · x + b)` of every assignment, all experts' rows in one parallel loop.
    fn gate_and_up(&mut self, kind: Kind<'_>, w: &ExpertWeights<CpuWeight>) {
        let (n_ff, routing) = (kind.moe.n_ff_exp, &self.routing);
        let rows_of = |expert: usize| {
            let (n, total) = (routing.of(expert).len(), n_ff * routing.used.len());
            let rows = |weight| block_rows(weight, kind.precision, total, n);
            rows(&w.gate).min(rows(&w.up))
        };
        self.blocks.clear();
        for &expert in &routing.used {
            self.blocks.extend((0..n_ff).step_by(rows_of(expert)).map(|first| (expert, first)));
        }
        let (level, precision) = (kind.level, kind.precision);
        let x = Inputs { float: &self.inputs_float, quantized: &self.inputs, precision, level };
        let hidden = Output::new(&mut self.hidden, n_ff, None, false);
        self.blocks.par_iter().for_each(|&(expert, first)| {
            let rows = first..n_ff.min(first + rows_of(expert));
            let (tokens, width) = (routing.of(expert), rows.len());
            let all = expert * n_ff + rows.start..expert * n_ff + rows.end;
            with_scratch(|s| {
                s.first.resize(tokens.len() * width, 0.0);
                s.second.resize(tokens.len() * width, 0.0);
                for (weight, bias, out) in [(&w.gate, &w.gate_bias, &mut s.first), (&w.up, &w.up_bias, &mut s.second)] {
                    product::multiply(weight, all.clone(), x, tokens.clone(), &mut s.kernel, out);
                    if let Some(bias) = bias {
                        let add = |(i, b): (usize, f32)| out.iter_mut().skip(i).step_by(width).for_each(|v| *v += b);
                        bias.elements(expert, rows.clone()).enumerate().for_each(add);
                    }
                }
                vectorised!(level, || activate(kind.moe.activation, &mut s.first, &s.second));
                for (row, values) in tokens.zip(s.first.chunks_exact(width)) {
                    hidden.put(row, rows.start, values);
                }
            });
        });
    }

    /// `out[token] += weight · (down · hidden + b)` of every assignment. A block is some rows of all used experts, so
    /// that no two threads add to the same element.
    fn down(&self, kind: Kind<'_>, w: &ExpertWeights<CpuWeight>, out: &mut [f32]) {
        let (n_embd, routing) = (kind.n_embd, &self.routing);
        let (level, precision) = (kind.level, kind.precision);
        let most = routing.used.iter().map(|&e| routing.of(e).len()).max().unwrap_or(0);
        let step = block_rows(&w.down, precision, n_embd, most);
        let x = Inputs { float: &self.hidden, quantized: &self.hidden_quantized, precision, level };
        let out = Output::new(out, n_embd, None, true);
        (0..n_embd.div_ceil(step)).into_par_iter().for_each(|block| {
            let rows = block * step..n_embd.min((block + 1) * step);
            with_scratch(|s| {
                for &expert in &routing.used {
                    let tokens = routing.of(expert);
                    let all = expert * n_embd + rows.start..expert * n_embd + rows.end;
                    s.first.resize(tokens.len() * rows.len(), 0.0);
                    product::multiply(&w.down, all, x, tokens.clone(), &mut s.kernel, &mut s.first);
                    s.second.clear();
                    match &w.down_bias {
                        Some(bias) => s.second.extend(bias.elements(expert, rows.clone())),
                        None => s.second.resize(rows.len(), 0.0),
                    }
                    for (row, values) in tokens.zip(s.first.chunks_exact_mut(rows.len())) {
                        let weight = routing.weights[row];
                        values.iter_mut().zip(&s.second).for_each(|(v, b)| *v = weight * (*v + b));
                        out.put(routing.tokens[row] as usize, rows.start, values);
                    }
                }
            });
        });
    }
}

/// `gate = act(gate, up)`.
#[inline(always)]
pub(super) fn activate(kind: Activation, gate: &mut [f32], up: &[f32]) {
    match kind {
        Activation::Swiglu => {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = *g / (1.0 + exp(-*g)) * u;
            }
        }
        Activation::SwigluOai => {
            for (g, u) in gate.iter_mut().zip(up) {
                // Not `min`, which would hide a NaN.
                let clamped = if *g > SWIGLU_OAI_LIMIT { SWIGLU_OAI_LIMIT } else { *g };
                let up = u.clamp(-SWIGLU_OAI_LIMIT, SWIGLU_OAI_LIMIT);
                *g = clamped / (1.0 + exp(-SWIGLU_OAI_ALPHA * clamped)) * (up + 1.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(n_expert: usize, n_expert_used: usize, renormalise: bool) -> MoeConfig {
        let activation = Activation::Swiglu;
        MoeConfig { n_expert, n_expert_used, n_ff_exp: 32, renormalise, weights_scale: 1.0, activation }
    }

    fn chosen(logits: &[f32], k: usize) -> Vec<usize> {
        let mut best = Vec::new();
        top_k(logits, k, &mut best);
        best.into_iter().map(|(e, _)| e).collect()
    }

    #[test]
    fn the_largest_are_chosen_and_of_equal_ones_the_first() {
        assert_eq!(chosen(&[0.5, 2.0, -1.0, 2.0, 3.0], 3), [4, 1, 3]);
        assert_eq!(chosen(&[1.0, 1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(chosen(&[f32::NEG_INFINITY, 0.0], 2), [1, 0]);
        // What is not a number must not break the choice; it shows in the logits.
        assert_eq!(chosen(&[f32::NAN; 4], 2).len(), 2);
    }

    #[test]
    fn weights_are_a_softmax_over_the_chosen_or_over_all() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        for renormalise in [true, false] {
            let moe = MoeConfig { weights_scale: 2.5, ..config(4, 2, renormalise) };
            let mut routing = Routing::default();
            routing.choose(&moe, &logits);
            let all: f64 =
                if renormalise { 2f64.exp() + 1f64.exp() } else { logits.iter().map(|&l| f64::from(l).exp()).sum() };
            assert_eq!(routing.used, [1, 2]);
            for (weight, logit) in routing.weights.iter().zip([1.0f64, 2.0]) {
                assert!((f64::from(*weight) - 2.5 * logit.exp() / all).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn assignments_are_sorted_by_expert_and_hold_every_choice() {
        let (n, n_expert, k) = (37, 7, 3);
        let logits: Vec<f32> = (0..n * n_expert).map(|i| (i * 7919 % 101) as f32 / 10.0).collect();
        let mut routing = Routing::default();
        // A larger batch before must leave nothing behind.
        routing.choose(&config(n_expert, k, true), &[&logits[..], &logits[..]].concat());
        routing.choose(&config(n_expert, k, true), &logits);
        let mut seen = vec![Vec::new(); n];
        for e in 0..n_expert {
            let tokens = &routing.tokens[routing.of(e)];
            assert!(tokens.is_sorted());
            assert_eq!(routing.used.contains(&e), !tokens.is_empty());
            tokens.iter().for_each(|&t| seen[t as usize].push(e));
        }
        for (row, seen) in logits.chunks_exact(n_expert).zip(&seen) {
            let mut want = chosen(row, k);
            want.sort();
            assert_eq!(seen, &want);
        }
        assert_eq!(routing.starts[n_expert], n * k);
    }
}
