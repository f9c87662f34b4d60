//! The forward pass of the dense decoders, in the papers' order, once for all backends.

use super::{Layer, Weights};
use crate::backend::{Act, Backend, BatchToken, Linear};
use crate::error::Error;

/// Runs `batch` through the model and gives the logits of the tokens that asked for them, `[n_outputs, n_vocab]`.
///
/// Llama (arXiv 2302.13971), Qwen2 (2407.10671: biases on q, k, v), Qwen3 (2505.09388: QK-norm). What a file does
/// not hold (`Option` in [`Layer`]) is not computed.
pub fn forward<'b, B: Backend>(
    backend: &'b mut B,
    weights: &Weights<B::Weight>,
    batch: &[BatchToken],
) -> Result<&'b [f32], Error> {
    backend.pass(|b| decoder(b, weights, batch))?;
    backend.finish()
}

fn decoder<B: Backend>(b: &mut B, weights: &Weights<B::Weight>, batch: &[BatchToken]) -> Result<(), Error> {
    b.begin(batch)?;
    b.embed(&weights.token_embd)?;
    for (il, layer) in weights.layers.iter().enumerate() {
        attention_block(b, layer, il)?;
        feed_forward_block(b, layer)?;
    }
    b.gather_outputs()?;
    b.rms_norm(Act::Out, &weights.output_norm, Act::Out)?;
    let head = weights.output.as_ref().unwrap_or(&weights.token_embd);
    b.linear(Act::Out, &[Linear { weight: head, bias: None, out: Act::Logits, accumulate: false }])
}

fn attention_block<B: Backend>(b: &mut B, l: &Layer<B::Weight>, il: usize) -> Result<(), Error> {
    b.rms_norm(Act::X, &l.attn_norm, Act::H)?;
    b.linear(
        Act::H,
        &[
            Linear { weight: &l.attn_q, bias: l.attn_q_bias.as_ref(), out: Act::Q, accumulate: false },
            Linear { weight: &l.attn_k, bias: l.attn_k_bias.as_ref(), out: Act::K, accumulate: false },
            Linear { weight: &l.attn_v, bias: l.attn_v_bias.as_ref(), out: Act::V, accumulate: false },
        ],
    )?;
    if let Some(norm) = &l.attn_q_norm {
        b.head_norm(Act::Q, norm)?;
    }
    if let Some(norm) = &l.attn_k_norm {
        b.head_norm(Act::K, norm)?;
    }
    b.rope(Act::Q)?;
    b.rope(Act::K)?;
    b.kv_store(il)?;
    b.attention(il)?;
    b.linear(
        Act::Attn,
        &[Linear { weight: &l.attn_output, bias: l.attn_output_bias.as_ref(), out: Act::X, accumulate: true }],
    )
}

fn feed_forward_block<B: Backend>(b: &mut B, l: &Layer<B::Weight>) -> Result<(), Error> {
    b.rms_norm(Act::X, &l.ffn_norm, Act::H)?;
    b.linear(
        Act::H,
        &[
            Linear { weight: &l.ffn_gate, bias: None, out: Act::Gate, accumulate: false },
            Linear { weight: &l.ffn_up, bias: None, out: Act::Up, accumulate: false },
        ],
    )?;
    b.swiglu()?;
    b.linear(Act::Gate, &[Linear { weight: &l.ffn_down, bias: None, out: Act::X, accumulate: true }])
}
