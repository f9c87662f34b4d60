//! A model of random weights with a byte vocabulary: small enough to be made by each test, complete enough for every
//! command. Its text is noise, so a run on it finds no answers.

use std::path::{Path, PathBuf};

use engine::gguf::GgmlType;
use engine::gguf::writer::GgufWriter;

const N_EMBD: u64 = 64;
const N_FF: u64 = 128;
const HEAD_DIM: u64 = 32;
const N_HEAD: u64 = 2;
const N_HEAD_KV: u64 = 1;
const N_LAYER: u32 = 2;

/// Trained context of the tiny model.
pub const N_CTX: u32 = 2048;

const CHAT_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What can be wrong with a tiny model on purpose.
#[derive(Clone, Copy)]
pub struct Tiny<'a> {
    pub architecture: &'a str,
    pub pre_tokenizer: &'a str,
    pub with_template: bool,
    /// Control tokens beside those of ChatML.
    pub more_controls: &'a [&'a str],
}

impl Default for Tiny<'_> {
    fn default() -> Self {
        Tiny { architecture: "qwen2", pre_tokenizer: "qwen2", with_template: true, more_controls: &[] }
    }
}

impl Tiny<'_> {
    /// Writes the model into `dir`.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("tiny.gguf");
        std::fs::write(&path, self.bytes()).expect("the test directory is writable");
        path
    }

    /// The model's file.
    pub fn bytes(&self) -> Vec<u8> {
        let (tokens, types) = vocabulary(self.more_controls);
        let n_vocab = tokens.len() as u64;
        let end = tokens.iter().position(|t| t == "<|im_end|>").expect("it is in the vocabulary") as u32;
        let arch = self.architecture;
        let key = |name: &str| format!("{arch}.{name}");
        let mut file = GgufWriter::new()
            .meta("general.architecture", arch)
            .meta("general.name", "tiny random model")
            .meta(&key("block_count"), N_LAYER)
            .meta(&key("context_length"), N_CTX)
            .meta(&key("embedding_length"), N_EMBD as u32)
            .meta(&key("feed_forward_length"), N_FF as u32)
            .meta(&key("attention.head_count"), N_HEAD as u32)
            .meta(&key("attention.head_count_kv"), N_HEAD_KV as u32)
            .meta(&key("attention.layer_norm_rms_epsilon"), 1e-6f32)
            .meta(&key("rope.freq_base"), 10_000f32)
            .meta("tokenizer.ggml.model", "gpt2")
            .meta("tokenizer.ggml.pre", self.pre_tokenizer)
            .meta("tokenizer.ggml.tokens", tokens)
            .meta("tokenizer.ggml.token_type", types)
            .meta("tokenizer.ggml.merges", vec!["a b"])
            .meta("tokenizer.ggml.eos_token_id", end);
        if self.with_template {
            file = file.meta("tokenizer.chat_template", CHAT_TEMPLATE);
        }
        let (q, kv) = (N_HEAD * HEAD_DIM, N_HEAD_KV * HEAD_DIM);
        let mut weights = Weights { state: 7 };
        file = weights.matrix(file, "token_embd.weight", N_EMBD, n_vocab);
        for i in 0..N_LAYER {
            let name = |part: &str| format!("blk.{i}.{part}");
            file = weights.ones(file, &name("attn_norm.weight"), N_EMBD);
            for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                file = weights.matrix(file, &name(&format!("{part}.weight")), N_EMBD, rows);
                file = weights.ones(file, &name(&format!("{part}.bias")), rows);
            }
            file = weights.matrix(file, &name("attn_output.weight"), q, N_EMBD);
            file = weights.ones(file, &name("ffn_norm.weight"), N_EMBD);
            file = weights.matrix(file, &name("ffn_gate.weight"), N_EMBD, N_FF);
            file = weights.matrix(file, &name("ffn_up.weight"), N_EMBD, N_FF);
            file = weights.matrix(file, &name("ffn_down.weight"), N_FF, N_EMBD);
        }
        file = weights.ones(file, "output_norm.weight", N_EMBD);
        file.to_vec().expect("memory can be written to")
    }
}

/// One token per byte in GPT-2's printable spelling, one merge, and the control tokens of ChatML and others; with their
/// types (1 = normal, 3 = control).
fn vocabulary(more_controls: &[&str]) -> (Vec<String>, Vec<i32>) {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut tokens: Vec<String> = (0..256u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).expect("a code point below 0x200").to_string()
        })
        .collect();
    tokens.push("ab".to_owned());
    let mut types = vec![1; tokens.len()];
    for control in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].iter().chain(more_controls) {
        tokens.push((*control).to_owned());
        types.push(3);
    }
    (tokens, types)
}

/// A reproducible stream of weights.
struct Weights {
    state: u64,
}

impl Weights {
    fn matrix<'a>(&mut self, file: GgufWriter<'a>, name: &str, cols: u64, rows: u64) -> GgufWriter<'a> {
        let scale = 1.0 / (cols as f32).sqrt();
        let data: Vec<u8> = (0..cols * rows).flat_map(|_| (self.next() * scale).to_le_bytes()).collect();
        file.tensor(name, GgmlType::F32, &[cols, rows], data)
    }

    fn ones<'a>(&mut self, file: GgufWriter<'a>, name: &str, n: u64) -> GgufWriter<'a> {
        let value: f32 = if name.ends_with("bias") { 0.0 } else { 1.0 };
        file.tensor(name, GgmlType::F32, &[n], (0..n).flat_map(|_| value.to_le_bytes()).collect())
    }

    /// In -1 .. 1.
    fn next(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
