//! A model: hyper-parameters ([`Config`]), weights ([`Weights`]) and the forward pass ([`forward`]), generic over the
//! backend. Refuses files whose metadata or tensors don't fit their architecture, before a weight is read.

mod config;
mod forward;
mod read_ahead;
mod rope;
mod weights;

pub use config::{
    Activation, Architecture, Config, LayerConfig, MoeConfig, RopeLayout, RopeScaling, SWIGLU_OAI_ALPHA,
    SWIGLU_OAI_LIMIT,
};
pub use forward::forward;
pub use rope::RopeTable;
pub use weights::{Plan, Slot, plan, rope_factors};

/// Weights of a whole model as a backend holds them. Shapes are `[rows, cols]`, `cols` contiguous.
pub struct Weights<W> {
    /// `[n_vocab, n_embd]`.
    pub token_embd: W,
    /// One per layer.
    pub layers: Vec<Layer<W>>,
    /// `[n_embd]`.
    pub output_norm: W,
    /// `[n_vocab, n_embd]`; `None` where tied to `token_embd`.
    pub output: Option<W>,
}

/// Weights of one decoder layer. What an architecture doesn't have is `None`.
pub struct Layer<W> {
    /// `[n_embd]`.
    pub attn_norm: W,
    /// `[q_dim, n_embd]`.
    pub attn_q: W,
    /// `[kv_dim, n_embd]`.
    pub attn_k: W,
    /// `[kv_dim, n_embd]`.
    pub attn_v: W,
    /// `[n_embd, q_dim]`.
    pub attn_output: W,
    /// `[q_dim]`.
    pub attn_q_bias: Option<W>,
    /// `[kv_dim]`.
    pub attn_k_bias: Option<W>,
    /// `[kv_dim]`.
    pub attn_v_bias: Option<W>,
    /// `[n_embd]`.
    pub attn_output_bias: Option<W>,
    /// `[head_dim]`.
    pub attn_q_norm: Option<W>,
    /// `[head_dim]`.
    pub attn_k_norm: Option<W>,
    /// `[n_head]`.
    pub attn_sinks: Option<W>,
    /// `[n_embd]`.
    pub ffn_norm: W,
    /// What comes after `ffn_norm`.
    pub ffn: FeedForward<W>,
}

/// The feed-forward part of a layer.
pub enum FeedForward<W> {
    /// One for all tokens.
    Dense(GatedWeights<W>),
    /// A few of many for each token.
    Moe(MoeWeights<W>),
}

/// A gated feed-forward layer (arXiv 2002.05202).
pub struct GatedWeights<W> {
    /// `[n_ff, n_embd]`.
    pub gate: W,
    /// `[n_ff, n_embd]`.
    pub up: W,
    /// `[n_embd, n_ff]`.
    pub down: W,
}

/// A mixture of experts.
pub struct MoeWeights<W> {
    /// `[n_expert, n_embd]`.
    pub router: W,
    /// `[n_expert]`.
    pub router_bias: Option<W>,
    /// All experts.
    pub experts: ExpertWeights<W>,
    /// The expert that every token uses (Qwen2-MoE).
    pub shared: Option<SharedExpert<W>>,
}

/// All experts of a layer: tensors with one matrix after the other, seen here as one tall matrix each.
pub struct ExpertWeights<W> {
    /// `[n_expert · n_ff_exp, n_embd]`.
    pub gate: W,
    /// `[n_expert · n_ff_exp, n_embd]`.
    pub up: W,
    /// `[n_expert · n_embd, n_ff_exp]`.
    pub down: W,
    /// `[n_expert, n_ff_exp]`.
    pub gate_bias: Option<W>,
    /// `[n_expert, n_ff_exp]`.
    pub up_bias: Option<W>,
    /// `[n_expert, n_embd]`.
    pub down_bias: Option<W>,
}

/// An expert for all tokens, whose output is scaled by `sigmoid(gate_inp · x)`.
pub struct SharedExpert<W> {
    /// `[1, n_embd]`.
    pub gate_inp: W,
    /// The expert.
    pub ffn: GatedWeights<W>,
}

/// Why a sound GGUF file can't be run as a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A key is missing or holds another kind of value.
    #[error(transparent)]
    Metadata(#[from] crate::gguf::GgufError),
    /// `general.architecture` names a family that is not supported.
    #[error("architecture `{found}` is not supported; supported are {}", supported_architectures())]
    UnknownArchitecture {
        /// The name in the file.
        found: String,
    },
    /// A hyper-parameter has a value that no such model has.
    #[error("`{key}` is {found}, expected {expected}")]
    BadValue {
        /// Metadata key or tensor.
        key: String,
        /// The value in the file.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// The file has no tensors at all.
    #[error("the file holds a vocabulary but no weights")]
    NoWeights,
    /// A tensor of the architecture is not in the file.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor's dimensions don't fit the hyper-parameters.
    #[error("tensor `{name}` has dimensions {found:?}, expected {expected:?} from the file's metadata")]
    Shape {
        /// Its name.
        name: String,
        /// Dimensions in the file, contiguous one first.
        found: Vec<u64>,
        /// Dimensions that the hyper-parameters call for.
        expected: Vec<u64>,
    },
    /// A norm or bias is stored in a block-quantised type.
    #[error("tensor `{name}` is a vector of type {found}, expected F32, F16 or BF16")]
    VectorType {
        /// Its name.
        name: String,
        /// Type in the file.
        found: crate::gguf::GgmlType,
    },
}

fn supported_architectures() -> String {
    Architecture::ALL.map(Architecture::name).join(", ")
}
