//! Hyper-parameters of a model, read from the metadata of its file and checked before any weight is touched.

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
