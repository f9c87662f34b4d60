//! Hyper-parameters of a model, read from the metadata of its file and checked before any weight is touched.

use super::ModelError;
use crate::gguf::{GgufError, GgufFile, Header, Metadata, Value};

/// Largest value of any count in the metadata: far above every model, far below what overflows a product of three.
const MAX_COUNT: usize = 1 << 20;
/// Longest context that is believed, in tokens.
const MAX_CONTEXT: usize = 1 << 27;

/// Model families this engine knows. Each decides names of tensors, biases, norms and the RoPE layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2/3 and relatives: interleaved RoPE, no biases, optional `rope_freqs`; with experts it is Mixtral.
    Llama,
    /// Qwen2/2.5: NEOX RoPE, biases on q, k and v.
    Qwen2,
    /// Qwen1.5/2 with experts: Qwen2's attention, a shared expert with a gate of its own.
    Qwen2Moe,
    /// Qwen3 dense: NEOX RoPE, RMS norm per head on q and k, no biases.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// gpt-oss: NEOX RoPE with YaRN, biases everywhere, attention sinks, a sliding window on every other layer.
    GptOss,
}

impl Architecture {
    /// All supported architectures.
    pub const ALL: [Architecture; 6] = [
        Architecture::Llama,
        Architecture::Qwen2,
        Architecture::Qwen2Moe,
        Architecture::Qwen3,
        Architecture::Qwen3Moe,
        Architecture::GptOss,
    ];

    /// The value of `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen2Moe => "qwen2moe",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3moe",
            Architecture::GptOss => "gpt-oss",
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
            _ => RopeLayout::Neox,
        }
    }

    /// Whether queries and keys are normed per head before RoPE.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Architecture::Qwen3 | Architecture::Qwen3Moe)
    }

    /// Whether the feed-forward layers are always mixtures of experts (`llama` has both kinds).
    fn needs_experts(self) -> bool {
        matches!(self, Architecture::Qwen2Moe | Architecture::Qwen3Moe | Architecture::GptOss)
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

/// Head counts and widths of one decoder layer; in most files they are the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; `n_head` is a multiple of it.
    pub n_head_kv: usize,
    /// Width of the dense feed-forward layer; in a mixture of experts that of the shared expert, 0 without one.
    pub n_ff: usize,
    /// Positions that a token attends to, itself included; `None` for all.
    pub window: Option<usize>,
}

/// How the layers' experts are chosen and weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeConfig {
    /// Experts per layer.
    pub n_expert: usize,
    /// Experts that each token uses.
    pub n_expert_used: usize,
    /// Width of an expert's feed-forward layer.
    pub n_ff_exp: usize,
    /// The routing weights: a softmax over the chosen experts' logits (equal to a softmax over all that is
    /// renormalised over the chosen), or without this, the softmax over all as it is.
    pub renormalise: bool,
    /// Factor on the routing weights.
    pub weights_scale: f32,
    /// What an expert does between its projections.
    pub activation: Activation,
}

/// Gated activation of a feed-forward layer, from `gate` and `up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) · up` (arXiv 2002.05202).
    Swiglu,
    /// gpt-oss: `gate` clamped above at 7, `up` to ±7, then `gate · sigmoid(1.702 · gate) · (up + 1)` (its model card).
    SwigluOai,
}

/// gpt-oss's slope and limit of [`Activation::SwigluOai`].
pub const SWIGLU_OAI_ALPHA: f32 = 1.702;
/// See [`SWIGLU_OAI_ALPHA`].
pub const SWIGLU_OAI_LIMIT: f32 = 7.0;

/// Hyper-parameters of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Model family.
    pub arch: Architecture,
    /// `general.name`, empty where absent.
    pub name: String,
    /// One per decoder layer.
    pub layers: Vec<LayerConfig>,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Elements per head (the same for keys and values, in every layer).
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
    /// Set where the feed-forward layers are mixtures of experts.
    pub moe: Option<MoeConfig>,
}

impl Config {
    /// Reads and checks the hyper-parameters of a file.
    ///
    /// # Errors
    /// An unknown architecture, a missing key, or a value that no such model has.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        Self::from_header(file.header())
    }

    /// The same for a header whose file need not be there.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub fn from_header(header: &Header) -> Result<Self, ModelError> {
        let m = &header.metadata;
        let arch_name = m.str("general.architecture")?;
        let arch = Architecture::from_name(arch_name)
            .ok_or_else(|| ModelError::UnknownArchitecture { found: arch_name.to_owned() })?;
        if header.tensors.is_empty() {
            return Err(ModelError::NoWeights);
        }
        let keys = Keys { metadata: m, arch };
        let n_embd = keys.required("embedding_length")?;
        let n_layer = keys.required("block_count")?;
        let heads =
            keys.per_layer("attention.head_count", n_layer)?.ok_or_else(|| keys.missing("attention.head_count"))?;
        let heads_kv = keys.per_layer("attention.head_count_kv", n_layer)?.unwrap_or_else(|| heads.clone());
        let head_dim = match keys.count("attention.key_length")? {
            Some(n) => n,
            None if n_embd.is_multiple_of(heads[0]) => n_embd / heads[0],
            None => return Err(bad(&keys.name("attention.head_count"), heads[0], &format!("a divisor of {n_embd}"))),
        };
        if let Some(value_length) = keys.count("attention.value_length")?
            && value_length != head_dim
        {
            return Err(bad(&keys.name("attention.value_length"), value_length, &format!("{head_dim}, as for keys")));
        }
        let n_rot = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
        if n_rot > head_dim || !n_rot.is_multiple_of(2) {
            let expected = format!("an even number up to {head_dim}");
            return Err(bad(&keys.name("rope.dimension_count"), n_rot, &expected));
        }
        let (moe, widths) = feed_forward(&keys, n_layer)?;
        let window = match arch {
            Architecture::GptOss => Some(keys.required("attention.sliding_window")?),
            _ => None,
        };
        let mut layers = Vec::with_capacity(n_layer);
        for (il, ((&n_head, &n_head_kv), &n_ff)) in heads.iter().zip(&heads_kv).zip(&widths).enumerate() {
            if !n_head.is_multiple_of(n_head_kv) {
                let expected = format!("a divisor of the {n_head} query heads");
                return Err(bad(&keys.name("attention.head_count_kv"), n_head_kv, &expected));
            }
            // gpt-oss: the even layers see a window, the odd ones everything.
            layers.push(LayerConfig { n_head, n_head_kv, n_ff, window: window.filter(|_| il % 2 == 0) });
        }
        // The vocabulary's length: what the embedding table holds.
        let n_vocab = match header.tensor("token_embd.weight") {
            Some(t) => in_range("rows of token_embd.weight", t.rows() as u64, 1, MAX_COUNT as u64 * 4)?,
            None => return Err(ModelError::MissingTensor { name: "token_embd.weight".into() }),
        };
        let context_key = keys.name("context_length");
        Ok(Config {
            arch,
            name: m.opt_str("general.name")?.unwrap_or_default().to_owned(),
            layers,
            n_embd,
            head_dim,
            n_vocab,
            n_ctx_train: in_range(&context_key, m.u64(&context_key)?, 1, MAX_CONTEXT as u64)?,
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon", None)?,
            n_rot,
            rope_base: keys.positive("rope.freq_base", Some(10_000.0))?,
            rope_scaling: rope_scaling(&keys)?,
            moe,
        })
    }

    /// Decoder layers.
    pub fn n_layer(&self) -> usize {
        self.layers.len()
    }

    /// Elements of all query heads of one token in layer `il`.
    pub fn q_dim(&self, il: usize) -> usize {
        self.layers[il].n_head * self.head_dim
    }

    /// Elements of all key (or value) heads of one token in layer `il`.
    pub fn kv_dim(&self, il: usize) -> usize {
        self.layers[il].n_head_kv * self.head_dim
    }

    /// Elements of keys and values that a sequence of `n_pos` positions has, over all layers: a layer with a window
    /// counts no more than its window.
    pub fn kv_elements(&self, n_pos: usize) -> usize {
        (0..self.n_layer()).map(|il| 2 * self.kv_dim(il) * self.layers[il].window.map_or(n_pos, |w| w.min(n_pos))).sum()
    }
}

/// The experts, and per layer the width of the dense feed-forward part.
fn feed_forward(keys: &Keys<'_>, n_layer: usize) -> Result<(Option<MoeConfig>, Vec<usize>), ModelError> {
    let n_expert = keys.opt_count("expert_count", 0)?.unwrap_or(0);
    let dense = keys.per_layer("feed_forward_length", n_layer)?;
    if n_expert == 0 {
        if keys.arch.needs_experts() {
            return Err(bad(&keys.name("expert_count"), n_expert, "at least 1"));
        }
        return Ok((None, dense.ok_or_else(|| keys.missing("feed_forward_length"))?));
    }
    if !keys.arch.needs_experts() && keys.arch != Architecture::Llama {
        return Err(bad(&keys.name("expert_count"), n_expert, "0: this architecture has no experts"));
    }
    let n_expert_used = keys.required("expert_used_count")?;
    if n_expert_used > n_expert {
        let expected = format!("at most the {n_expert} experts");
        return Err(bad(&keys.name("expert_used_count"), n_expert_used, &expected));
    }
    let n_ff = || dense.as_ref().map(|d| d[0]).ok_or_else(|| keys.missing("feed_forward_length"));
    // Files from before the key existed: Mixtral's experts have the full width, Qwen's share it.
    let n_ff_exp = match (keys.count("expert_feed_forward_length")?, keys.arch) {
        (Some(n), _) => n,
        (None, Architecture::Qwen2Moe | Architecture::Qwen3Moe) => (n_ff()? / n_expert_used).max(1),
        (None, _) => n_ff()?,
    };
    let n_ff_shexp = match keys.arch {
        Architecture::Qwen2Moe => match keys.count("expert_shared_feed_forward_length")? {
            Some(n) => n,
            None => n_ff()?,
        },
        _ => 0,
    };
    let renormalise = match keys.metadata.opt_bool(&keys.name("expert_weights_norm"))? {
        Some(norm) => norm,
        None => keys.arch != Architecture::Qwen2Moe,
    };
    let moe = MoeConfig {
        n_expert,
        n_expert_used,
        n_ff_exp,
        renormalise,
        weights_scale: keys.positive("expert_weights_scale", Some(1.0))?,
        activation: match keys.arch {
            Architecture::GptOss => Activation::SwigluOai,
            _ => Activation::Swiglu,
        },
    };
    Ok((Some(moe), vec![n_ff_shexp; n_layer]))
}

/// The metadata under an architecture's prefix.
struct Keys<'m> {
    metadata: &'m Metadata,
    arch: Architecture,
}

impl Keys<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.arch.name())
    }

    fn missing(&self, part: &str) -> ModelError {
        GgufError::MissingKey { key: self.name(part), expected: "u32" }.into()
    }

    /// A count of `least` to [`MAX_COUNT`].
    fn opt_count(&self, part: &str, least: u64) -> Result<Option<usize>, ModelError> {
        let key = self.name(part);
        let Some(value) = self.metadata.opt_u64(&key)? else { return Ok(None) };
        in_range(&key, value, least, MAX_COUNT as u64).map(Some)
    }

    fn count(&self, part: &str) -> Result<Option<usize>, ModelError> {
        self.opt_count(part, 1)
    }

    fn required(&self, part: &str) -> Result<usize, ModelError> {
        self.count(part)?.ok_or_else(|| self.missing(part))
    }

    /// A count for all layers, or an array with one per layer.
    fn per_layer(&self, part: &str, n_layer: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let key = self.name(part);
        if !matches!(self.metadata.value(&key), Some(Value::Array(_))) {
            return Ok(self.count(part)?.map(|n| vec![n; n_layer]));
        }
        let values = self.metadata.integers(&key)?;
        if values.len() != n_layer {
            return Err(bad(&key, format!("{} numbers", values.len()), &format!("one for each of {n_layer} layers")));
        }
        let counts = values.iter().map(|&v| in_range(&key, v.max(0) as u64, 1, MAX_COUNT as u64));
        counts.collect::<Result<Vec<_>, _>>().map(Some)
    }

    fn positive(&self, part: &str, default: Option<f32>) -> Result<f32, ModelError> {
        let key = self.name(part);
        let value = match (self.metadata.opt_f32(&key)?, default) {
            (Some(v), _) => v,
            (None, Some(d)) => d,
            (None, None) => self.metadata.f32(&key)?,
        };
        if value.is_finite() && value > 0.0 { Ok(value) } else { Err(bad(&key, value, "a positive number")) }
    }
}

fn rope_scaling(keys: &Keys<'_>) -> Result<RopeScaling, ModelError> {
    let m = keys.metadata;
    let key = |part: &str| keys.name(&format!("rope.scaling.{part}"));
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
