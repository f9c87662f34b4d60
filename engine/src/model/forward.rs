//! The forward pass, in the papers' order, once for all backends.

use super::{FeedForward, GatedWeights, Layer, MoeWeights, Weights};
use crate::backend::{Act, Backend, BatchToken, Linear};
use crate::error::Error;
use crate::kv::KvPages;

/// Runs `batch` through the model and gives the logits of the tokens that asked for them, `[n_outputs, n_vocab]`.
///
/// Llama (arXiv 2302.13971), Mixtral (2401.04088), Qwen2 and Qwen2-MoE (2407.10671: biases on q, k, v; shared expert),
/// Qwen3 (2505.09388: QK-norm), gpt-oss (2508.10925: sinks, windows, biases). What a file does not hold (`Option` in
/// [`Layer`]) is not computed. The tokens' pages in `kv` must have been prepared.
pub fn forward<'b, B: Backend>(
    backend: &'b mut B,
    weights: &Weights<B::Weight>,
    batch: &[BatchToken],
    kv: &KvPages,
) -> Result<&'b [f32], Error> {
    backend.pass(|b| decoder(b, weights, batch, kv))?;
    backend.finish()
}

fn decoder<B: Backend>(
    b: &mut B,
    weights: &Weights<B::Weight>,
    batch: &[BatchToken],
    kv: &KvPages,
) -> Result<(), Error> {
    b.begin(batch, kv)?;
    b.embed(&weights.token_embd)?;
    for (il, layer) in weights.layers.iter().enumerate() {
        b.begin_layer(il)?;
        attention_block(b, layer)?;
        b.rms_norm(Act::X, &layer.ffn_norm, Act::H)?;
        match &layer.ffn {
            FeedForward::Dense(ffn) => dense_block(b, ffn)?,
            FeedForward::Moe(moe) => moe_block(b, moe)?,
        }
    }
    b.gather_outputs()?;
    b.rms_norm(Act::Out, &weights.output_norm, Act::Out)?;
    let head = weights.output.as_ref().unwrap_or(&weights.token_embd);
    b.linear(Act::Out, &[product(head, None, Act::Logits)])
}

/// A product that overwrites `out`.
fn product<'w, W>(weight: &'w W, bias: Option<&'w W>, out: Act) -> Linear<'w, W> {
    Linear { weight, bias, out, accumulate: false }
}

fn attention_block<B: Backend>(b: &mut B, l: &Layer<B::Weight>) -> Result<(), Error> {
    b.rms_norm(Act::X, &l.attn_norm, Act::H)?;
    b.linear(
        Act::H,
        &[
            product(&l.attn_q, l.attn_q_bias.as_ref(), Act::Q),
            product(&l.attn_k, l.attn_k_bias.as_ref(), Act::K),
            product(&l.attn_v, l.attn_v_bias.as_ref(), Act::V),
        ],
    )?;
    b.place_heads(l.attn_q_norm.as_ref(), l.attn_k_norm.as_ref())?;
    b.attention(l.attn_sinks.as_ref())?;
    b.linear(
        Act::Attn,
        &[Linear { weight: &l.attn_output, bias: l.attn_output_bias.as_ref(), out: Act::X, accumulate: true }],
    )
}

/// `X += down · (silu(gate · H) · up · H)`.
fn dense_block<B: Backend>(b: &mut B, ffn: &GatedWeights<B::Weight>) -> Result<(), Error> {
    b.gated(Act::H, &ffn.gate, &ffn.up)?;
    b.linear(Act::Gate, &[Linear { weight: &ffn.down, bias: None, out: Act::X, accumulate: true }])
}

/// `X += Σ` of the chosen experts of `H`, and of the shared one, scaled by its gate, where there is one.
fn moe_block<B: Backend>(b: &mut B, moe: &MoeWeights<B::Weight>) -> Result<(), Error> {
    b.linear(Act::H, &[product(&moe.router, moe.router_bias.as_ref(), Act::Router)])?;
    b.route()?;
    b.experts(Act::H, &moe.experts)?;
    let Some(shared) = &moe.shared else { return Ok(()) };
    b.linear(Act::H, &[product(&shared.gate_inp, None, Act::SharedGate)])?;
    b.gated(Act::H, &shared.ffn.gate, &shared.ffn.up)?;
    // The gate scales the output; scaling what goes into `down` is the same, and narrower.
    b.scale_by_sigmoid(Act::Gate, Act::SharedGate)?;
    b.linear(Act::Gate, &[Linear { weight: &shared.ffn.down, bias: None, out: Act::X, accumulate: true }])
}
