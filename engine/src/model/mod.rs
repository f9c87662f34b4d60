//! A model: hyper-parameters ([`Config`]), weights ([`Weights`]) and the forward pass ([`forward`]), generic over the
//! backend. Refuses files whose metadata or tensors don't fit their architecture, before a weight is read.

mod config;
mod forward;
mod rope;

pub use config::{Architecture, Config, RopeLayout, RopeScaling};
pub use forward::forward;
pub use rope::RopeTable;

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
    /// `[n_embd]`.
    pub ffn_norm: W,
    /// `[n_ff, n_embd]`.
    pub ffn_gate: W,
    /// `[n_ff, n_embd]`.
    pub ffn_up: W,
    /// `[n_embd, n_ff]`.
    pub ffn_down: W,
}

/// Why a sound GGUF file can't be run as a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {}
