//! Small random models as GGUF files, and a plain f64 forward pass (`reference`) to hold the backends against.

#![allow(dead_code, reason = "each test binary uses its own part")]

mod reference;

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
    /// Mixture of experts in place of the dense feed-forward layers; `n_ff` is the shared expert's width then.
    pub experts: Option<TinyExperts>,
    /// gpt-oss: what the even layers see, in tokens.
    pub window: usize,
    /// (query heads, key/value heads) of each layer where they differ; else empty.
    pub layer_heads: Vec<(usize, usize)>,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TinyExperts {
    pub n: usize,
    pub n_used: usize,
    pub n_ff: usize,
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
            experts: match arch {
                "qwen2moe" | "qwen3moe" | "gpt-oss" => Some(TinyExperts { n: 8, n_used: 3, n_ff: 256 }),
                _ => None,
            },
            window: 24,
            layer_heads: Vec::new(),
            seed: 1,
        }
    }

    /// Query and key/value heads of layer `il`.
    pub fn heads(&self, il: usize) -> (usize, usize) {
        self.layer_heads.get(il).copied().unwrap_or((self.n_head, self.n_head_kv))
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
            .meta(&key("attention.head_count"), head_counts(&spec, |il| spec.heads(il).0))
            .meta(&key("attention.head_count_kv"), head_counts(&spec, |il| spec.heads(il).1))
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
        if let Some(e) = spec.experts {
            w = w
                .meta(&key("expert_count"), u32_value(e.n))
                .meta(&key("expert_used_count"), u32_value(e.n_used))
                .meta(&key("expert_feed_forward_length"), u32_value(e.n_ff));
            if spec.arch == "qwen2moe" {
                w = w.meta(&key("expert_shared_feed_forward_length"), u32_value(spec.n_ff));
            }
        }
        if spec.arch == "gpt-oss" {
            w = w.meta(&key("attention.sliding_window"), u32_value(spec.window));
        }
        let mut weights = HashMap::new();
        let mut n_matrix = 0;
        for Tensor { name, dims, scale } in tensors(&spec, n_vocab) {
            // Vectors, biases of experts and routers are floats in real files too.
            let float = dims.len() == 1 || name.ends_with(".bias") || name.contains("ffn_gate_inp");
            let ty = if float { GgmlType::F32 } else { spec.types[n_matrix % spec.types.len()] };
            n_matrix += usize::from(!float);
            let rows = dims[1..].iter().product();
            let (bytes, values) = random_tensor(&mut rng, ty, rows, dims[0], scale, name.contains("norm"));
            let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
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
}

/// A number for all layers, or an array where they differ.
fn head_counts(spec: &TinySpec, of: impl Fn(usize) -> usize) -> Value {
    if spec.layer_heads.is_empty() {
        return Value::U32(of(0) as u32);
    }
    Value::Array(Array::I32((0..spec.n_layer).map(|il| of(il) as i32).collect()))
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

/// A tensor to be made.
struct Tensor {
    name: String,
    /// Contiguous one first.
    dims: Vec<usize>,
    /// Standard deviation of its values.
    scale: f64,
}

fn tensors(s: &TinySpec, n_vocab: usize) -> Vec<Tensor> {
    let unit = |cols: usize| 1.0 / (cols as f64).sqrt();
    let tensor = |name: &str, dims: &[usize], scale| Tensor { name: name.to_owned(), dims: dims.to_vec(), scale };
    let is_gpt_oss = s.arch == "gpt-oss";
    let mut list = vec![tensor("token_embd.weight", &[s.n_embd, n_vocab], 1.0)];
    for il in 0..s.n_layer {
        let mut add = |part: &str, dims: &[usize], scale| list.push(tensor(&format!("blk.{il}.{part}"), dims, scale));
        let (n_head, n_head_kv) = s.heads(il);
        let (q, kv) = (n_head * s.head_dim, n_head_kv * s.head_dim);
        add("attn_norm.weight", &[s.n_embd], 0.1);
        add("attn_q.weight", &[s.n_embd, q], 1.5 * unit(s.n_embd));
        add("attn_k.weight", &[s.n_embd, kv], 1.5 * unit(s.n_embd));
        add("attn_v.weight", &[s.n_embd, kv], unit(s.n_embd));
        add("attn_output.weight", &[q, s.n_embd], unit(q));
        if matches!(s.arch, "qwen2" | "qwen2moe" | "gpt-oss") {
            add("attn_q.bias", &[q], 0.3);
            add("attn_k.bias", &[kv], 0.3);
            add("attn_v.bias", &[kv], 0.3);
        }
        if is_gpt_oss {
            add("attn_output.bias", &[s.n_embd], 0.3);
            add("attn_sinks.weight", &[n_head], 1.0);
        }
        if matches!(s.arch, "qwen3" | "qwen3moe") {
            add("attn_q_norm.weight", &[s.head_dim], 0.1);
            add("attn_k_norm.weight", &[s.head_dim], 0.1);
        }
        add(if is_gpt_oss { "post_attention_norm.weight" } else { "ffn_norm.weight" }, &[s.n_embd], 0.1);
        let Some(e) = s.experts else {
            add("ffn_gate.weight", &[s.n_embd, s.n_ff], unit(s.n_embd));
            add("ffn_up.weight", &[s.n_embd, s.n_ff], unit(s.n_embd));
            add("ffn_down.weight", &[s.n_ff, s.n_embd], unit(s.n_ff));
            continue;
        };
        add("ffn_gate_inp.weight", &[s.n_embd, e.n], 2.0 * unit(s.n_embd));
        // Wide enough that gpt-oss's limits are reached now and then.
        let wide = if is_gpt_oss { 3.0 } else { 1.0 };
        add("ffn_gate_exps.weight", &[s.n_embd, e.n_ff, e.n], wide * unit(s.n_embd));
        add("ffn_up_exps.weight", &[s.n_embd, e.n_ff, e.n], wide * unit(s.n_embd));
        add("ffn_down_exps.weight", &[e.n_ff, s.n_embd, e.n], unit(e.n_ff) / wide);
        if is_gpt_oss {
            add("ffn_gate_inp.bias", &[e.n], 0.5);
            add("ffn_gate_exps.bias", &[e.n_ff, e.n], 0.3);
            add("ffn_up_exps.bias", &[e.n_ff, e.n], 0.3);
            add("ffn_down_exps.bias", &[s.n_embd, e.n], 0.3);
        }
        if s.arch == "qwen2moe" {
            add("ffn_gate_inp_shexp.weight", &[s.n_embd], 2.0 * unit(s.n_embd));
            add("ffn_gate_shexp.weight", &[s.n_embd, s.n_ff], unit(s.n_embd));
            add("ffn_up_shexp.weight", &[s.n_embd, s.n_ff], unit(s.n_embd));
            add("ffn_down_shexp.weight", &[s.n_ff, s.n_embd], unit(s.n_ff));
        }
    }
    list.push(tensor("output_norm.weight", &[s.n_embd], 0.1));
    if !s.tied {
        list.push(tensor("output.weight", &[s.n_embd, n_vocab], 3.0 * unit(s.n_embd)));
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
