//! Hyper-parameters of a model, read from the metadata of its file and checked before any weight is touched.

use super::ModelError;
use crate::gguf::GgufFile;

/// Largest value of any count in the metadata: far above every model, far below what overflows a product of three.
const MAX_COUNT: usize = 1 << 20;
/// Longest context that is believed, in tokens.
const MAX_CONTEXT: usize = 1 << 27;

/// Model families this engine knows. Each decides names of tensors, biases, norms and the RoPE layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2/3 and relatives: interleaved RoPE, no biases, optional `rope_freqs`.
    Llama,
    /// Qwen2/2.5: NEOX RoPE, biases on q, k and v.
    Qwen2,
    /// Qwen3 dense: NEOX RoPE, RMS norm per head on q and k, no biases.
    Qwen3,
}

impl Architecture {
    /// All supported architectures.
    pub const ALL: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
        }
    }

    /// The architecture of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// Which pairs of a head's elements RoPE turns together.
    pub fn rope_layout(self) -> RopeLayout {
        match self {
            Architecture::Llama => RopeLayout::Interleaved,
            Architecture::Qwen2 | Architecture::Qwen3 => RopeLayout::Neox,
        }
    }
}

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Pairs (2i, 2i+1), as in the RoFormer paper.
    Interleaved,
    /// Pairs (i, i + n_rot/2), as in GPT-NeoX.
    Neox,
}

/// How positions past the trained context are mapped (`{arch}.rope.scaling.*`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Angles as trained.
    None,
    /// All angles divided by `factor`.
    Linear {
        /// Ratio of the extended context to the trained one.
        factor: f32,
    },
    /// YaRN (arXiv 2309.00071) with ggml's rounding of the ramp's bounds.
    Yarn {
        /// Ratio of the extended context to the trained one.
        factor: f32,
        /// Context the model was trained at, in tokens.
        original_context: u32,
    },
}

/// Hyper-parameters of a dense decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Model family.
    pub arch: Architecture,
    /// `general.name`, empty where absent.
    pub name: String,
    /// Decoder layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the feed-forward layer.
    pub n_ff: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; `n_head` is a multiple of it.
    pub n_head_kv: usize,
    /// Elements per head (the same for keys and values).
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Context the model was trained at, in tokens.
    pub n_ctx_train: usize,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Rotated elements per head, at most `head_dim`.
    pub n_rot: usize,
    /// RoPE frequency base θ.
    pub rope_base: f32,
    /// RoPE scaling.
    pub rope_scaling: RopeScaling,
}

impl Config {
    /// Reads and checks the hyper-parameters of a file.
    ///
    /// # Errors
    /// An unknown architecture, a missing key, or a value that no such model has.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        let m = file.metadata();
        let arch_name = m.str("general.architecture")?;
        let arch = Architecture::from_name(arch_name)
            .ok_or_else(|| ModelError::UnknownArchitecture { found: arch_name.to_owned() })?;
        if file.tensors().is_empty() {
            return Err(ModelError::NoWeights);
        }
        let key = |part: &str| format!("{}.{part}", arch.name());
        let count = |part: &str| -> Result<Option<usize>, ModelError> {
            let key = key(part);
            let Some(value) = m.opt_u64(&key)? else { return Ok(None) };
            in_range(&key, value, 1, MAX_COUNT as u64).map(Some)
        };
        let required = |part: &str| -> Result<usize, ModelError> {
            let key = key(part);
            in_range(&key, m.u64(&key)?, 1, MAX_COUNT as u64)
        };
        let n_embd = required("embedding_length")?;
        let n_head = required("attention.head_count")?;
        let n_head_kv = count("attention.head_count_kv")?.unwrap_or(n_head);
        let head_dim = match count("attention.key_length")? {
            Some(n) => n,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => return Err(bad(&key("attention.head_count"), n_head, &format!("a divisor of {n_embd}"))),
        };
        if let Some(value_length) = count("attention.value_length")?
            && value_length != head_dim
        {
            return Err(bad(&key("attention.value_length"), value_length, &format!("{head_dim}, as for keys")));
        }
        if !n_head.is_multiple_of(n_head_kv) {
            let expected = format!("a divisor of the {n_head} query heads");
            return Err(bad(&key("attention.head_count_kv"), n_head_kv, &expected));
        }
        let n_rot = count("rope.dimension_count")?.unwrap_or(head_dim);
        if n_rot > head_dim || !n_rot.is_multiple_of(2) {
            let expected = format!("an even number up to {head_dim}");
            return Err(bad(&key("rope.dimension_count"), n_rot, &expected));
        }
        let positive = |part: &str, default: Option<f32>| -> Result<f32, ModelError> {
            let key = key(part);
            let value = match (m.opt_f32(&key)?, default) {
                (Some(v), _) => v,
                (None, Some(d)) => d,
                (None, None) => m.f32(&key)?,
            };
            if value.is_finite() && value > 0.0 { Ok(value) } else { Err(bad(&key, value, "a positive number")) }
        };
        // The vocabulary's length: what the embedding table holds.
        let n_vocab = match file.tensor("token_embd.weight") {
            Some(t) => in_range("rows of token_embd.weight", t.rows() as u64, 1, MAX_COUNT as u64 * 4)?,
            None => return Err(ModelError::MissingTensor { name: "token_embd.weight".into() }),
        };
        let context_key = key("context_length");
        Ok(Config {
            arch,
            name: m.opt_str("general.name")?.unwrap_or_default().to_owned(),
            n_layer: required("block_count")?,
            n_embd,
            n_ff: required("feed_forward_length")?,
            n_head,
            n_head_kv,
            head_dim,
            n_vocab,
            n_ctx_train: in_range(&context_key, m.u64(&context_key)?, 1, MAX_CONTEXT as u64)?,
            rms_eps: positive("attention.layer_norm_rms_epsilon", None)?,
            n_rot,
            rope_base: positive("rope.freq_base", Some(10_000.0))?,
            rope_scaling: rope_scaling(file, arch)?,
        })
    }

    /// Elements of all query heads of one token.
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Elements of all key (or value) heads of one token.
    pub fn kv_dim(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Bytes of keys and values of one token over all layers, at f16.
    pub fn kv_bytes_per_token(&self) -> usize {
        2 * self.n_layer * self.kv_dim() * 2
    }
}

fn rope_scaling(file: &GgufFile, arch: Architecture) -> Result<RopeScaling, ModelError> {
    let m = file.metadata();
    let key = |part: &str| format!("{}.rope.scaling.{part}", arch.name());
    let kind = m.opt_str(&key("type"))?.unwrap_or("none");
    let factor = || -> Result<f32, ModelError> {
        let factor = m.f32(&key("factor"))?;
        if factor.is_finite() && factor >= 1.0 {
            Ok(factor)
        } else {
            Err(bad(&key("factor"), factor, "a number of at least 1"))
        }
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "yarn" => {
            let original = key("original_context_length");
            let original_context = in_range(&original, m.u64(&original)?, 1, MAX_CONTEXT as u64)? as u32;
            Ok(RopeScaling::Yarn { factor: factor()?, original_context })
        }
        other => Err(bad(&key("type"), other, "none, linear or yarn")),
    }
}

fn in_range(key: &str, value: u64, low: u64, high: u64) -> Result<usize, ModelError> {
    if (low..=high).contains(&value) {
        Ok(value as usize)
    } else {
        Err(bad(key, value, &format!("a number from {low} to {high}")))
    }
}

fn bad(key: &str, found: impl std::fmt::Display, expected: &str) -> ModelError {
    ModelError::BadValue { key: key.to_owned(), found: found.to_string(), expected: expected.to_owned() }
}
