//! Which type each tensor of a file has: the rules by which llama.cpp's quantiser makes Q4_K_M and its relatives, so that
//! an imitation has the very mix of types that the real file has. Sources: the type counts and sizes of published files,
//! and the rules that ggml's documentation and source describe.
//!
//! Vectors, routers and norms stay F32. A row that isn't a multiple of 256 weights falls back to a type with blocks of 32.

use super::targets::Target;
use crate::gguf::GgmlType;

/// A mix of tensor types, by llama.cpp's name (`general.file_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names are the field's own")]
#[allow(missing_docs, reason = "each variant is llama.cpp's file type of the same name")]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q8_0,
    Q2_K,
    Q3_K_M,
    Q4_K_M,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    /// Experts in MXFP4, other matrices in Q8_0.
    Mxfp4,
}

impl FileType {
    /// All of them.
    pub const ALL: [FileType; 13] = [
        FileType::F32,
        FileType::F16,
        FileType::BF16,
        FileType::Q4_0,
        FileType::Q8_0,
        FileType::Q2_K,
        FileType::Q3_K_M,
        FileType::Q4_K_M,
        FileType::Q5_K_M,
        FileType::Q6_K,
        FileType::IQ4_NL,
        FileType::IQ4_XS,
        FileType::Mxfp4,
    ];

    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        match self {
            FileType::F32 => "F32",
            FileType::F16 => "F16",
            FileType::BF16 => "BF16",
            FileType::Q4_0 => "Q4_0",
            FileType::Q8_0 => "Q8_0",
            FileType::Q2_K => "Q2_K",
            FileType::Q3_K_M => "Q3_K_M",
            FileType::Q4_K_M => "Q4_K_M",
            FileType::Q5_K_M => "Q5_K_M",
            FileType::Q6_K => "Q6_K",
            FileType::IQ4_NL => "IQ4_NL",
            FileType::IQ4_XS => "IQ4_XS",
            FileType::Mxfp4 => "MXFP4",
        }
    }

    /// The file type of that name, upper case or lower.
    pub fn from_name(name: &str) -> Option<FileType> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// The value of `general.file_type`.
    pub fn id(self) -> u32 {
        match self {
            FileType::F32 => 0,
            FileType::F16 => 1,
            FileType::Q4_0 => 2,
            FileType::Q8_0 => 7,
            FileType::Q2_K => 10,
            FileType::Q3_K_M => 12,
            FileType::Q4_K_M => 15,
            FileType::Q5_K_M => 17,
            FileType::Q6_K => 18,
            FileType::IQ4_NL => 25,
            FileType::IQ4_XS => 30,
            FileType::BF16 => 32,
            FileType::Mxfp4 => 38,
        }
    }

    /// The type that most matrices have.
    fn base(self) -> GgmlType {
        match self {
            FileType::F32 => GgmlType::F32,
            FileType::F16 => GgmlType::F16,
            FileType::BF16 => GgmlType::BF16,
            FileType::Q4_0 => GgmlType::Q4_0,
            FileType::Q8_0 | FileType::Mxfp4 => GgmlType::Q8_0,
            FileType::Q2_K => GgmlType::Q2_K,
            FileType::Q3_K_M => GgmlType::Q3_K,
            FileType::Q4_K_M => GgmlType::Q4_K,
            FileType::Q5_K_M => GgmlType::Q5_K,
            FileType::Q6_K => GgmlType::Q6_K,
            FileType::IQ4_NL => GgmlType::IQ4_NL,
            FileType::IQ4_XS => GgmlType::IQ4_XS,
        }
    }
}

/// What a matrix does; the rules go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The embedding table with an output beside it.
    Embedding,
    /// The output, or the embedding table that is both.
    Output,
    /// Keys' projection.
    Key,
    /// Values' projection.
    Value,
    /// Projection of the attention's output.
    AttnOutput,
    /// Down projection of the feed-forward layer, of one, of an expert or of the shared expert.
    Down,
    /// Queries, gate and up.
    Other,
}

/// A matrix, as far as the rules look at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) role: Role,
    /// Layer, 0 for those outside.
    pub(super) layer: usize,
    /// Row length.
    pub(super) cols: usize,
    /// Whether it is one matrix per expert.
    pub(super) is_experts: bool,
}

/// The type of a matrix in a file of `target` with `n_layer` layers.
pub(super) fn matrix_type(file_type: FileType, target: &Target, n_layer: usize, m: Matrix) -> GgmlType {
    let base = file_type.base();
    if base.block_len() == 1 {
        return base;
    }
    let ty = match (file_type, m.role) {
        (FileType::Mxfp4, _) if m.is_experts => GgmlType::MXFP4,
        (FileType::Mxfp4 | FileType::Q8_0, _) => GgmlType::Q8_0,
        // A short row of the output gets Q8_0, whatever the type.
        (_, Role::Output) if !m.cols.is_multiple_of(base.block_len()) => GgmlType::Q8_0,
        (_, Role::Output) => GgmlType::Q6_K,
        (_, Role::Embedding | Role::Other) => base,
        // Models of eight experts can afford it: their attention is a small part of the file.
        (_, Role::Key | Role::Value) if has_eight_experts(target) => GgmlType::Q8_0,
        (_, Role::Key) => base,
        (_, Role::Value) => value_type(file_type, target, n_layer, m.layer),
        (_, Role::AttnOutput) => attn_output_type(file_type, target),
        (_, Role::Down) => down_type(file_type, n_layer, m.layer),
    };
    if m.cols.is_multiple_of(ty.block_len()) { ty } else { fallback(ty) }
}

fn value_type(file_type: FileType, target: &Target, n_layer: usize, layer: usize) -> GgmlType {
    let base = file_type.base();
    let ty = match file_type {
        FileType::Q2_K if target.group() >= 4 => GgmlType::Q4_K,
        FileType::Q2_K => GgmlType::Q3_K,
        FileType::Q3_K_M if layer < 2 => GgmlType::Q5_K,
        FileType::Q3_K_M => GgmlType::Q4_K,
        FileType::Q4_K_M | FileType::Q5_K_M if has_more_bits(layer, n_layer) => GgmlType::Q6_K,
        FileType::IQ4_NL | FileType::IQ4_XS if target.group() >= 4 => GgmlType::Q5_K,
        _ => base,
    };
    // The 70B models share a value among eight queries: small, and worth more bits.
    match ty {
        GgmlType::Q3_K | GgmlType::Q4_K if target.n_layer == 80 => GgmlType::Q5_K,
        ty => ty,
    }
}

fn attn_output_type(file_type: FileType, target: &Target) -> GgmlType {
    let small =
        matches!(file_type, FileType::Q2_K | FileType::Q3_K_M | FileType::Q4_K_M | FileType::IQ4_NL | FileType::IQ4_XS);
    match file_type {
        _ if has_eight_experts(target) && small => GgmlType::Q5_K,
        FileType::Q2_K => GgmlType::Q3_K,
        FileType::Q3_K_M => GgmlType::Q4_K,
        _ => file_type.base(),
    }
}

fn down_type(file_type: FileType, n_layer: usize, layer: usize) -> GgmlType {
    match file_type {
        FileType::Q2_K => GgmlType::Q3_K,
        FileType::Q3_K_M if layer < n_layer / 16 => GgmlType::Q5_K,
        FileType::Q3_K_M => GgmlType::Q4_K,
        FileType::Q4_K_M | FileType::Q5_K_M if has_more_bits(layer, n_layer) => GgmlType::Q6_K,
        FileType::IQ4_NL | FileType::IQ4_XS if layer < n_layer / 8 => GgmlType::Q5_K,
        _ => file_type.base(),
    }
}

fn has_eight_experts(target: &Target) -> bool {
    target.moe.is_some_and(|moe| moe.n_expert == 8)
}

/// The layers that matter most: the first eighth, the last eighth, and every third between.
fn has_more_bits(layer: usize, n_layer: usize) -> bool {
    let eighth = n_layer / 8;
    layer < eighth || layer >= 7 * n_layer / 8 || (layer - eighth) % 3 == 2
}

/// What stands in for a type of 256-weight blocks where a row isn't a multiple of 256.
fn fallback(ty: GgmlType) -> GgmlType {
    match ty {
        GgmlType::Q2_K | GgmlType::Q3_K => GgmlType::Q4_0,
        GgmlType::IQ4_XS => GgmlType::IQ4_NL,
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        ty => ty,
    }
}
