//! Small random models as GGUF files, and a plain f64 forward pass to hold the backends against. The pass is written
//! from the papers and shares nothing with the engine but the decoding of weight blocks.

#![allow(dead_code, reason = "each test binary uses its own part")]

use engine::gguf::writer::GgufWriter;
use engine::gguf::{Array, GgmlType, Strings, Value};
use engine::quant::dequantize_row;
use std::collections::HashMap;
use std::path::PathBuf;

/// A small generator: the tests' random numbers never change.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Roughly normal, standard deviation 1.
    pub fn normal(&mut self) -> f64 {
        let unit = |r: &mut Self| (r.next() >> 11) as f64 / (1u64 << 53) as f64;
        (0..12).map(|_| unit(self)).sum::<f64>() - 6.0
    }
}

/// What a small model looks like.
#[derive(Clone, Debug)]
pub struct TinySpec {
    pub arch: &'static str,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    pub n_rot: usize,
    /// Matrices take these types in turn.
    pub types: Vec<GgmlType>,
    pub tied: bool,
    pub scaling: Scaling,
    pub rope_factors: bool,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    None,
    Linear(f32),
    Yarn(f32, u32),
}

impl TinySpec {
    pub fn new(arch: &'static str, types: &[GgmlType]) -> Self {
        TinySpec {
            arch,
            n_layer: 2,
            n_embd: 256,
            n_head: 4,
            n_head_kv: 2,
            head_dim: 64,
            n_ff: 512,
            n_rot: 64,
            types: types.to_vec(),
            tied: arch != "llama",
            scaling: Scaling::None,
            rope_factors: false,
            seed: 1,
        }
    }
}

/// A small model on disk with its weights decoded.
pub struct TinyModel {
    pub spec: TinySpec,
    pub path: PathBuf,
    pub n_vocab: usize,
    weights: HashMap<String, Vec<f64>>,
    _dir: tempfile::TempDir,
}

const EPS: f64 = 1e-6;
const BASE: f64 = 10_000.0;

impl TinyModel {
    pub fn new(spec: TinySpec) -> Self {
        let mut rng = Rng::new(spec.seed);
        let (tokens, merges) = vocabulary();
        let n_vocab = tokens.len();
        let key = |part: &str| format!("{}.{part}", spec.arch);
        let u32_value = |n: usize| Value::U32(n as u32);
        let mut w = GgufWriter::new()
            .meta("general.architecture", Value::String(spec.arch.into()))
            .meta("general.name", Value::String("tiny".into()))
            .meta(&key("block_count"), u32_value(spec.n_layer))
            .meta(&key("context_length"), u32_value(2048))
            .meta(&key("embedding_length"), u32_value(spec.n_embd))
            .meta(&key("feed_forward_length"), u32_value(spec.n_ff))
            .meta(&key("attention.head_count"), u32_value(spec.n_head))
            .meta(&key("attention.head_count_kv"), u32_value(spec.n_head_kv))
            .meta(&key("attention.key_length"), u32_value(spec.head_dim))
            .meta(&key("attention.value_length"), u32_value(spec.head_dim))
            .meta(&key("rope.dimension_count"), u32_value(spec.n_rot))
            .meta(&key("rope.freq_base"), Value::F32(BASE as f32))
            .meta(&key("attention.layer_norm_rms_epsilon"), Value::F32(EPS as f32))
            .meta("tokenizer.ggml.model", Value::String("gpt2".into()))
            .meta("tokenizer.ggml.pre", Value::String("qwen2".into()))
            .meta("tokenizer.ggml.token_type", Value::Array(Array::I32(token_types(n_vocab))))
            .meta("tokenizer.ggml.tokens", Value::Array(Array::String(Strings::from_iter(&tokens))))
            .meta("tokenizer.ggml.merges", Value::Array(Array::String(Strings::from_iter(&merges))))
            .meta("tokenizer.ggml.eos_token_id", u32_value(n_vocab - 1));
        w = match spec.scaling {
            Scaling::None => w,
            Scaling::Linear(f) => w
                .meta(&key("rope.scaling.type"), Value::String("linear".into()))
                .meta(&key("rope.scaling.factor"), Value::F32(f)),
            Scaling::Yarn(f, n) => w
                .meta(&key("rope.scaling.type"), Value::String("yarn".into()))
                .meta(&key("rope.scaling.factor"), Value::F32(f))
                .meta(&key("rope.scaling.original_context_length"), Value::U32(n)),
        };
        let mut weights = HashMap::new();
        let mut n_matrix = 0;
        for (name, rows, cols, scale) in tensors(&spec, n_vocab) {
            let vector = rows == 0;
            let ty = if vector { GgmlType::F32 } else { spec.types[n_matrix % spec.types.len()] };
            n_matrix += usize::from(!vector);
            let (bytes, values) =
                random_tensor(&mut rng, ty, rows.max(1), cols, scale, vector && name.contains("norm"));
            let dims: Vec<u64> = if vector { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
            w = w.tensor(&name, ty, &dims, bytes);
            weights.insert(name, values);
        }
        if spec.rope_factors {
            let factors: Vec<f32> = (0..spec.n_rot / 2).map(|i| 1.0 + i as f32 / 8.0).collect();
            let bytes = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
            w = w.tensor("rope_freqs.weight", GgmlType::F32, &[factors.len() as u64], bytes);
            weights.insert("rope_freqs.weight".into(), factors.iter().map(|&f| f64::from(f)).collect());
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("tiny.gguf");
        w.write(std::fs::File::create(&path).expect("a file")).expect("a written model");
        TinyModel { spec, path, n_vocab, weights, _dir: dir }
    }

    /// Logits of the last token, `[n_vocab]`.
    pub fn reference_logits(&self, tokens: &[u32]) -> Vec<f64> {
        let s = &self.spec;
        let (ne, hd) = (s.n_embd, s.head_dim);
        let embd = &self.weights["token_embd.weight"];
        let mut x: Vec<Vec<f64>> =
            tokens.iter().map(|&t| embd[t as usize * ne..(t as usize + 1) * ne].to_vec()).collect();
        for il in 0..s.n_layer {
            let w = |part: &str| &self.weights[&format!("blk.{il}.{part}")][..];
            let bias = |part: &str| self.weights.get(&format!("blk.{il}.{part}"));
            let project = |h: &[f64], part: &str| {
                let mut y = multiply(w(&format!("{part}.weight")), h);
                if let Some(b) = bias(&format!("{part}.bias")) {
                    y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
                }
                y
            };
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (pos, x) in x.iter_mut().enumerate() {
                let h = rms_norm(x, w("attn_norm.weight"));
                let (mut q, mut k, v) = (project(&h, "attn_q"), project(&h, "attn_k"), project(&h, "attn_v"));
                for (part, heads) in [("attn_q_norm.weight", &mut q), ("attn_k_norm.weight", &mut k)] {
                    for head in heads.chunks_exact_mut(hd) {
                        if bias(part).is_some() {
                            head.copy_from_slice(&rms_norm(head, w(part)));
                        }
                        self.rope(head, pos);
                    }
                }
                keys.push(k);
                values.push(v);
                let mut out = Vec::with_capacity(s.n_head * hd);
                for (h, q) in q.chunks_exact(hd).enumerate() {
                    let at = h / (s.n_head / s.n_head_kv) * hd;
                    let score = |k: &Vec<f64>| dot(q, &k[at..at + hd]) / (hd as f64).sqrt();
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    out.extend(
                        (0..hd).map(|d| weights.iter().zip(&values).map(|(w, v)| w * v[at + d]).sum::<f64>() / total),
                    );
                }
                let out = project(&out, "attn_output");
                x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
                let h = rms_norm(x, w("ffn_norm.weight"));
                let (gate, up) = (multiply(w("ffn_gate.weight"), &h), multiply(w("ffn_up.weight"), &h));
                let act: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let down = multiply(w("ffn_down.weight"), &act);
                x.iter_mut().zip(down).for_each(|(x, d)| *x += d);
            }
        }
        let last = rms_norm(x.last().expect("tokens"), &self.weights["output_norm.weight"]);
        multiply(self.weights.get("output.weight").unwrap_or(embd), &last)
    }

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

/// 256 bytes, a few merges, one control token.
fn vocabulary() -> (Vec<String>, Vec<String>) {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut spare = 256;
    let mut tokens: Vec<String> = (0..=255u8)
        .map(|b| {
            let code = if printable(b) {
                u32::from(b)
            } else {
                spare += 1;
                spare - 1
            };
            char::from_u32(code).expect("a character").to_string()
        })
        .collect();
    let merges = ["t h", "th e", "Ġ the", "i n", "Ġ a"].map(String::from).to_vec();
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    tokens.push("<|end|>".into());
    (tokens, merges)
}

fn token_types(n_vocab: usize) -> Vec<i32> {
    (0..n_vocab).map(|i| if i + 1 == n_vocab { 3 } else { 1 }).collect()
}

/// (name, rows, cols, scale); rows 0 = a vector.
fn tensors(s: &TinySpec, n_vocab: usize) -> Vec<(String, usize, usize, f64)> {
    let (q, kv) = (s.n_head * s.head_dim, s.n_head_kv * s.head_dim);
    let unit = |cols: usize| 1.0 / (cols as f64).sqrt();
    let mut list = vec![("token_embd.weight".to_owned(), n_vocab, s.n_embd, 1.0)];
    for il in 0..s.n_layer {
        let mut add = |part: &str, rows, cols, scale| list.push((format!("blk.{il}.{part}"), rows, cols, scale));
        add("attn_norm.weight", 0, s.n_embd, 0.1);
        add("attn_q.weight", q, s.n_embd, 1.5 * unit(s.n_embd));
        add("attn_k.weight", kv, s.n_embd, 1.5 * unit(s.n_embd));
        add("attn_v.weight", kv, s.n_embd, unit(s.n_embd));
        add("attn_output.weight", s.n_embd, q, unit(q));
        if s.arch == "qwen2" {
            add("attn_q.bias", 0, q, 0.3);
            add("attn_k.bias", 0, kv, 0.3);
            add("attn_v.bias", 0, kv, 0.3);
        }
        if s.arch == "qwen3" {
            add("attn_q_norm.weight", 0, s.head_dim, 0.1);
            add("attn_k_norm.weight", 0, s.head_dim, 0.1);
        }
        add("ffn_norm.weight", 0, s.n_embd, 0.1);
        add("ffn_gate.weight", s.n_ff, s.n_embd, unit(s.n_embd));
        add("ffn_up.weight", s.n_ff, s.n_embd, unit(s.n_embd));
        add("ffn_down.weight", s.n_embd, s.n_ff, unit(s.n_ff));
    }
    list.push(("output_norm.weight".into(), 0, s.n_embd, 0.1));
    if !s.tied {
        list.push(("output.weight".into(), n_vocab, s.n_embd, 3.0 * unit(s.n_embd)));
    }
    list
}

/// Random blocks of a type whose decoded values have about the standard deviation `scale`, with the values.
fn random_tensor(
    rng: &mut Rng,
    ty: GgmlType,
    rows: usize,
    cols: usize,
    scale: f64,
    around_one: bool,
) -> (Vec<u8>, Vec<f64>) {
    let mut bytes = Vec::with_capacity(rows * ty.row_bytes(cols));
    for _ in 0..rows * cols / ty.block_len() {
        random_block(rng, ty, scale, around_one, &mut bytes);
    }
    let mut values = vec![0.0f32; rows * cols];
    for (row, out) in bytes.chunks_exact(ty.row_bytes(cols)).zip(values.chunks_exact_mut(cols)) {
        dequantize_row(ty, row, out);
    }
    (bytes, values.into_iter().map(f64::from).collect())
}

fn random_block(rng: &mut Rng, ty: GgmlType, scale: f64, around_one: bool, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    let value = rng.normal() * scale + f64::from(u8::from(around_one));
    match ty {
        GgmlType::F32 => return bytes.extend((value as f32).to_le_bytes()),
        GgmlType::F16 => return bytes.extend(half::f16::from_f64(value).to_le_bytes()),
        GgmlType::BF16 => return bytes.extend(half::bf16::from_f64(value).to_le_bytes()),
        _ => bytes.extend((0..ty.block_bytes()).map(|_| (rng.next() >> 40) as u8)),
    }
    // Uniform codes of n levels have a standard deviation of about n / √12; the scales follow from that.
    let jitter = 0.75 + (rng.next() >> 40) as f64 / (1u64 << 24) as f64 / 2.0;
    let mut f16 = |at: usize, v: f64| {
        let v = half::f16::from_f64(v * jitter).to_le_bytes();
        bytes[start + at..start + at + 2].copy_from_slice(&v);
    };
    match ty {
        GgmlType::Q4_0 => f16(0, scale / 4.6),
        GgmlType::Q5_0 => f16(0, scale / 9.2),
        GgmlType::Q8_0 => f16(0, scale / 74.0),
        GgmlType::Q4_1 => {
            f16(0, scale / 4.6);
            f16(2, -7.5 * scale / 4.6);
        }
        GgmlType::Q5_1 => {
            f16(0, scale / 9.2);
            f16(2, -15.5 * scale / 9.2);
        }
        // Random 6-bit scales and minima average 32: the offset of the codes is about cancelled.
        GgmlType::Q4_K => {
            f16(0, scale / 4.6 / 32.0);
            f16(2, 7.5 * scale / 4.6 / 32.0);
        }
        GgmlType::Q5_K => {
            f16(0, scale / 9.2 / 32.0);
            f16(2, 15.5 * scale / 9.2 / 32.0);
        }
        GgmlType::Q6_K => f16(208, scale / 18.5 / 74.0),
        GgmlType::IQ4_NL => f16(0, scale / 67.0),
        GgmlType::IQ4_XS => f16(0, scale / 67.0 / 18.5),
        // Random 4-bit scales and minima average 7.5, codes 1.5.
        GgmlType::Q2_K => {
            f16(80, scale / 9.0);
            f16(82, 1.5 * scale / 9.0);
        }
        GgmlType::Q3_K => f16(108, scale / 2.3 / 18.5),
        // The values' root mean square is about 3; the byte is an exponent.
        GgmlType::MXFP4 => bytes[start] = (127.0 + (scale / 3.0).log2()).round() as u8,
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => unreachable!("returned above"),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn multiply(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn rms_norm(x: &[f64], w: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + EPS).sqrt();
    x.iter().zip(w).map(|(x, w)| x * scale * w).collect()
}

/// Cosine of the angle between logits and their reference.
pub fn cosine(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let got: Vec<f64> = got.iter().map(|&g| f64::from(g)).collect();
    dot(&got, want) / (dot(&got, &got) * dot(want, want)).sqrt()
}

/// Some tokens below `n_vocab`.
pub fn tokens(n: usize, n_vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| (rng.next() >> 20) as u32 % n_vocab as u32).collect()
}
