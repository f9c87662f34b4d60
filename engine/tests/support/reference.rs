//! A decoder in plain f64, one token after another, written from the papers. Shares nothing with the engine but the
//! decoding of weight blocks.

use super::{BASE, EPS, Scaling, TinyModel, dot};

impl TinyModel {
    /// Logits of the last token, `[n_vocab]`.
    pub fn reference_logits(&self, tokens: &[u32]) -> Vec<f64> {
        let (s, ne) = (&self.spec, self.spec.n_embd);
        let embd = &self.weights["token_embd.weight"];
        let mut x: Vec<Vec<f64>> =
            tokens.iter().map(|&t| embd[t as usize * ne..(t as usize + 1) * ne].to_vec()).collect();
        for il in 0..s.n_layer {
            let layer = Layer { model: self, il };
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (pos, x) in x.iter_mut().enumerate() {
                let h = rms_norm(x, layer.weight("attn_norm.weight"));
                add(x, &layer.attention(&h, pos, &mut keys, &mut values));
                let norm = if s.arch == "gpt-oss" { "post_attention_norm.weight" } else { "ffn_norm.weight" };
                let h = rms_norm(x, layer.weight(norm));
                add(x, &if s.experts.is_some() { layer.mixture(&h) } else { layer.dense(&h, "") });
            }
        }
        let last = rms_norm(x.last().expect("tokens"), &self.weights["output_norm.weight"]);
        multiply(self.weights.get("output.weight").unwrap_or(embd), &last)
    }
}

struct Layer<'m> {
    model: &'m TinyModel,
    il: usize,
}

impl<'m> Layer<'m> {
    fn find(&self, part: &str) -> Option<&'m [f64]> {
        self.model.weights.get(&format!("blk.{}.{part}", self.il)).map(Vec::as_slice)
    }

    fn weight(&self, part: &str) -> &'m [f64] {
        self.find(part).unwrap_or_else(|| panic!("{part}"))
    }

    /// `W · h + b`, with `b` where there is one.
    fn project(&self, h: &[f64], part: &str) -> Vec<f64> {
        let mut y = multiply(self.weight(&format!("{part}.weight")), h);
        if let Some(b) = self.find(&format!("{part}.bias")) {
            add(&mut y, b);
        }
        y
    }

    fn attention(&self, h: &[f64], pos: usize, keys: &mut Vec<Vec<f64>>, values: &mut Vec<Vec<f64>>) -> Vec<f64> {
        let (s, hd) = (&self.model.spec, self.model.spec.head_dim);
        let (n_head, n_head_kv) = s.heads(self.il);
        let (mut q, mut k) = (self.project(h, "attn_q"), self.project(h, "attn_k"));
        for (part, heads) in [("attn_q_norm.weight", &mut q), ("attn_k_norm.weight", &mut k)] {
            for head in heads.chunks_exact_mut(hd) {
                if let Some(norm) = self.find(part) {
                    head.copy_from_slice(&rms_norm(head, norm));
                }
                self.model.rope(head, pos);
            }
        }
        keys.push(k);
        values.push(self.project(h, "attn_v"));
        let windowed = s.arch == "gpt-oss" && self.il.is_multiple_of(2);
        let first = if windowed { (pos + 1).saturating_sub(s.window) } else { 0 };
        let mut out = Vec::with_capacity(n_head * hd);
        for (h, q) in q.chunks_exact(hd).enumerate() {
            let at = h / (n_head / n_head_kv) * hd;
            let mut scores: Vec<f64> =
                keys[first..].iter().map(|k| dot(q, &k[at..at + hd]) / (hd as f64).sqrt()).collect();
            // The sink takes its share of the softmax and gives nothing.
            scores.extend(self.find("attn_sinks.weight").map(|sinks| sinks[h]));
            let weights = softmax(&scores);
            let seen = &values[first..];
            out.extend((0..hd).map(|d| weights.iter().zip(seen).map(|(w, v)| w * v[at + d]).sum::<f64>()));
        }
        self.project(&out, "attn_output")
    }

    /// A gated feed-forward layer whose tensors' names end in `suffix`.
    fn dense(&self, h: &[f64], suffix: &str) -> Vec<f64> {
        let (gate, up) = (self.project(h, &format!("ffn_gate{suffix}")), self.project(h, &format!("ffn_up{suffix}")));
        let act: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect();
        self.project(&act, &format!("ffn_down{suffix}"))
    }

    fn mixture(&self, h: &[f64]) -> Vec<f64> {
        let s = &self.model.spec;
        let e = s.experts.expect("experts");
        let logits = self.project(h, "ffn_gate_inp");
        let mut order: Vec<usize> = (0..e.n).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let used = &order[..e.n_used];
        let weights = if s.arch == "qwen2moe" {
            let all = softmax(&logits);
            used.iter().map(|&i| all[i]).collect()
        } else {
            softmax(&used.iter().map(|&i| logits[i]).collect::<Vec<_>>())
        };
        let mut out = vec![0.0; s.n_embd];
        for (&expert, weight) in used.iter().zip(weights) {
            let part = |name: &str, input: &[f64], rows: usize| {
                let w = self.weight(&format!("ffn_{name}_exps.weight"));
                let mut y = multiply(&w[expert * rows * input.len()..(expert + 1) * rows * input.len()], input);
                if let Some(b) = self.find(&format!("ffn_{name}_exps.bias")) {
                    add(&mut y, &b[expert * rows..(expert + 1) * rows]);
                }
                y
            };
            let (gate, up) = (part("gate", h, e.n_ff), part("up", h, e.n_ff));
            let act: Vec<f64> = if s.arch == "gpt-oss" {
                let clamped = gate.iter().zip(&up).map(|(g, u)| (g.min(7.0), u.clamp(-7.0, 7.0)));
                clamped.map(|(g, u)| g * sigmoid(1.702 * g) * (u + 1.0)).collect()
            } else {
                gate.iter().zip(&up).map(|(g, u)| g * sigmoid(*g) * u).collect()
            };
            let y = part("down", &act, s.n_embd);
            out.iter_mut().zip(y).for_each(|(o, y)| *o += weight * y);
        }
        if let Some(gate) = self.find("ffn_gate_inp_shexp.weight") {
            let scale = sigmoid(dot(gate, h));
            let shared = self.dense(h, "_shexp");
            out.iter_mut().zip(shared).for_each(|(o, y)| *o += scale * y);
        }
        out
    }
}

impl TinyModel {
    fn rope(&self, head: &mut [f64], pos: usize) {
        let s = &self.spec;
        let half = s.n_rot / 2;
        let correction = |rotations: f64, n: u32| {
            s.n_rot as f64 * (f64::from(n) / (rotations * std::f64::consts::TAU)).ln() / (2.0 * BASE.ln())
        };
        for i in 0..half {
            let mut freq = BASE.powf(-(2.0 * i as f64) / s.n_rot as f64);
            let mut magnitude = 1.0;
            match s.scaling {
                Scaling::None => {}
                Scaling::Linear(f) => freq /= f64::from(f),
                Scaling::Yarn(f, n) => {
                    let low = correction(32.0, n).floor().max(0.0);
                    let high = correction(1.0, n).ceil().min(s.n_rot as f64 - 1.0);
                    let keep = 1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    freq = freq * keep + freq / f64::from(f) * (1.0 - keep);
                    magnitude = 1.0 + 0.1 * f64::from(f).ln();
                }
            }
            if let Some(factors) = self.weights.get("rope_freqs.weight") {
                freq /= factors[i];
            }
            let (sin, cos) = (pos as f64 * freq).sin_cos();
            let (a, b) = if s.arch == "llama" { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (x, y) = (head[a], head[b]);
            head[a] = (x * cos - y * sin) * magnitude;
            head[b] = (x * sin + y * cos) * magnitude;
        }
    }
}

fn multiply(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = x.iter().map(|v| (v - max).exp()).sum();
    x.iter().map(|v| (v - max).exp() / total).collect()
}

fn rms_norm(x: &[f64], w: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + EPS).sqrt();
    x.iter().zip(w).map(|(x, w)| x * scale * w).collect()
}
