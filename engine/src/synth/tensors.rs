//! Names, shapes, types and deviations of a model's tensors, in the order in which a forward pass meets them.
//!
//! A matrix has the deviation 1/√cols, so that an input of deviation 1 gives an output of deviation 1; what is added to
//! the residual stream is divided by √(2·layers), so that the sum over all layers stays near 1 as well.

use super::blocks::Values;
use super::recipe::{FileType, Matrix, Role, matrix_type};
use super::{PlannedTensor, Target};
use crate::gguf::GgmlType;
use crate::model::Architecture;

/// Deviation of biases.
const BIAS: f32 = 0.05;

/// All tensors of a model of the given shape, with the types of a file of `target`.
pub(super) fn tensors(target: &Target, shape: &Target, file_type: FileType) -> Vec<PlannedTensor> {
    let mut list = List { target, shape, file_type, tensors: Vec::new() };
    let t = shape;
    let residual = 1.0 / (2.0 * t.n_layer as f32).sqrt();
    let embedding = if t.tied { Role::Output } else { Role::Embedding };
    list.matrix("token_embd.weight", embedding, 0, [t.n_embd, t.n_vocab], 1.0);
    for il in 0..t.n_layer {
        attention(&mut list, il, residual);
        match &t.moe {
            Some(_) => experts(&mut list, il, residual),
            None => {
                let name = |part: &str| format!("blk.{il}.{part}.weight");
                list.matrix(&name("ffn_gate"), Role::Other, il, [t.n_embd, t.n_ff], 1.0);
                list.matrix(&name("ffn_up"), Role::Other, il, [t.n_embd, t.n_ff], 1.0);
                list.matrix(&name("ffn_down"), Role::Down, il, [t.n_ff, t.n_embd], residual);
            }
        }
    }
    if t.arch == Architecture::Llama && t.moe.is_none() {
        list.vector("rope_freqs.weight", t.head_dim / 2, Values::Fixed(llama3_factors(t.head_dim, t.rope_base)));
    }
    list.vector("output_norm.weight", t.n_embd, Values::Norm);
    if !t.tied {
        list.matrix("output.weight", Role::Output, 0, [t.n_embd, t.n_vocab], 1.0);
    }
    list.tensors
}

/// Norms and projections of a layer's attention, and the norm of its feed-forward part.
fn attention(list: &mut List<'_>, il: usize, residual: f32) {
    let t = list.shape;
    let (q_dim, kv_dim) = (t.n_head * t.head_dim, t.n_head_kv * t.head_dim);
    let name = |part: &str| format!("blk.{il}.{part}");
    list.vector(&name("attn_norm.weight"), t.n_embd, Values::Norm);
    list.matrix(&name("attn_q.weight"), Role::Other, il, [t.n_embd, q_dim], 1.0);
    list.matrix(&name("attn_k.weight"), Role::Key, il, [t.n_embd, kv_dim], 1.0);
    list.matrix(&name("attn_v.weight"), Role::Value, il, [t.n_embd, kv_dim], 1.0);
    list.matrix(&name("attn_output.weight"), Role::AttnOutput, il, [q_dim, t.n_embd], residual);
    if matches!(t.arch, Architecture::Qwen2 | Architecture::Qwen2Moe | Architecture::GptOss) {
        for (part, len) in [("attn_q.bias", q_dim), ("attn_k.bias", kv_dim), ("attn_v.bias", kv_dim)] {
            list.vector(&name(part), len, Values::Random { deviation: BIAS });
        }
    }
    if t.arch == Architecture::GptOss {
        list.vector(&name("attn_output.bias"), t.n_embd, Values::Random { deviation: BIAS * residual });
        list.vector(&name("attn_sinks.weight"), t.n_head, Values::Random { deviation: 1.0 });
    }
    if matches!(t.arch, Architecture::Qwen3 | Architecture::Qwen3Moe) {
        list.vector(&name("attn_q_norm.weight"), t.head_dim, Values::Norm);
        list.vector(&name("attn_k_norm.weight"), t.head_dim, Values::Norm);
    }
    let norm = if t.arch == Architecture::GptOss { "post_attention_norm.weight" } else { "ffn_norm.weight" };
    list.vector(&name(norm), t.n_embd, Values::Norm);
}

/// Router and experts of a layer.
fn experts(list: &mut List<'_>, il: usize, residual: f32) {
    let t = list.shape;
    let Some(moe) = t.moe else { return };
    let name = |part: &str| format!("blk.{il}.{part}");
    let random = |deviation: f32| Values::Random { deviation };
    let dims = [t.n_embd as u64, moe.n_expert as u64];
    // Routers are F32 in every file. Twice the usual deviation: choices should be clear.
    list.float(&name("ffn_gate_inp.weight"), &dims, random(2.0 / (t.n_embd as f32).sqrt()));
    let (up, down) = ([t.n_embd, moe.n_ff, moe.n_expert], [moe.n_ff, t.n_embd, moe.n_expert]);
    list.matrix(&name("ffn_gate_exps.weight"), Role::Other, il, up, 1.0);
    list.matrix(&name("ffn_up_exps.weight"), Role::Other, il, up, 1.0);
    list.matrix(&name("ffn_down_exps.weight"), Role::Down, il, down, residual);
    if t.arch == Architecture::GptOss {
        list.vector(&name("ffn_gate_inp.bias"), moe.n_expert, random(BIAS));
        let (n_ff, n_embd, n_expert) = (moe.n_ff as u64, t.n_embd as u64, moe.n_expert as u64);
        list.float(&name("ffn_gate_exps.bias"), &[n_ff, n_expert], random(BIAS));
        list.float(&name("ffn_up_exps.bias"), &[n_ff, n_expert], random(BIAS));
        list.float(&name("ffn_down_exps.bias"), &[n_embd, n_expert], random(BIAS * residual));
    }
    if moe.n_ff_shared > 0 {
        list.vector(&name("ffn_gate_inp_shexp.weight"), t.n_embd, random(1.0 / (t.n_embd as f32).sqrt()));
        list.matrix(&name("ffn_gate_shexp.weight"), Role::Other, il, [t.n_embd, moe.n_ff_shared], 1.0);
        list.matrix(&name("ffn_up_shexp.weight"), Role::Other, il, [t.n_embd, moe.n_ff_shared], 1.0);
        list.matrix(&name("ffn_down_shexp.weight"), Role::Down, il, [moe.n_ff_shared, t.n_embd], residual);
    }
}

struct List<'t> {
    target: &'t Target,
    shape: &'t Target,
    file_type: FileType,
    tensors: Vec<PlannedTensor>,
}

impl List<'_> {
    /// `dims[0]` is the row length; a third one is the number of experts.
    fn matrix<const N: usize>(&mut self, name: &str, role: Role, layer: usize, dims: [usize; N], gain: f32) {
        let matrix = Matrix { role, layer, cols: dims[0], is_experts: N == 3 };
        let ty = matrix_type(self.file_type, self.target, self.shape.n_layer, matrix);
        let values = Values::Random { deviation: gain / (dims[0] as f32).sqrt() };
        let dims = dims.iter().map(|d| *d as u64).collect();
        self.tensors.push(PlannedTensor { name: name.to_owned(), ty, dims, values });
    }

    fn float(&mut self, name: &str, dims: &[u64], values: Values) {
        self.tensors.push(PlannedTensor { name: name.to_owned(), ty: GgmlType::F32, dims: dims.to_vec(), values });
    }

    fn vector(&mut self, name: &str, len: usize, values: Values) {
        self.float(name, &[len as u64], values);
    }
}

/// `rope_freqs` of Llama 3.1 and later: long wavelengths are stretched 8 times, with a ramp between the wavelengths of
/// an original context of 8192 tokens and a quarter of it (the model's published configuration).
fn llama3_factors(head_dim: usize, base: f32) -> Vec<f32> {
    const FACTOR: f64 = 8.0;
    const CONTEXT: f64 = 8192.0;
    const HIGH: f64 = 4.0;
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * f64::from(base).powf(2.0 * i as f64 / head_dim as f64);
            let smooth = ((CONTEXT / wavelength - 1.0) / (HIGH - 1.0)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / FACTOR + smooth)) as f32
        })
        .collect()
}
