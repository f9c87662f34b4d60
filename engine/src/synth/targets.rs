//! The models that can be imitated: their shapes as published in each model's `config.json`, and the file type in which
//! people usually run them. Called by the plan; knows nothing of bytes.

use super::recipe::FileType;
use super::vocab::Family;
use crate::model::Architecture;

/// A published model.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Name on the command line.
    pub name: &'static str,
    /// Model family.
    pub arch: Architecture,
    /// File type that is written unless another one is asked for.
    pub file_type: FileType,
    /// What special tokens and template the stand-in vocabulary has.
    pub family: Family,
    /// Decoder layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the dense feed-forward layer (`feed_forward_length`).
    pub n_ff: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Tokens, with the padding of the embedding table.
    pub n_vocab: usize,
    /// Trained context.
    pub n_ctx: u32,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// RoPE base.
    pub rope_base: f32,
    /// Whether the output is the embedding table.
    pub tied: bool,
    /// Experts, where there are any.
    pub moe: Option<Experts>,
}

/// The experts of a published model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts per layer.
    pub n_expert: usize,
    /// Experts that a token uses.
    pub n_used: usize,
    /// Width of an expert.
    pub n_ff: usize,
    /// Width of the shared expert; 0 = none.
    pub n_ff_shared: usize,
}

impl Target {
    /// The target of that name, upper case or lower.
    pub fn find(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|t| t.name.eq_ignore_ascii_case(name))
    }

    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.n_head / self.n_head_kv
    }
}

const QWEN3: Target = Target {
    name: "",
    arch: Architecture::Qwen3,
    file_type: FileType::Q4_K_M,
    family: Family::Qwen3,
    n_layer: 36,
    n_embd: 4096,
    n_ff: 12288,
    n_head: 32,
    n_head_kv: 8,
    head_dim: 128,
    n_vocab: 151_936,
    n_ctx: 40_960,
    rms_eps: 1e-6,
    rope_base: 1e6,
    tied: false,
    moe: None,
};

const QWEN2: Target = Target {
    arch: Architecture::Qwen2,
    family: Family::Qwen2,
    n_layer: 28,
    n_embd: 3584,
    n_ff: 18_944,
    n_head: 28,
    n_head_kv: 4,
    n_vocab: 152_064,
    n_ctx: 32_768,
    ..QWEN3
};

const R1_QWEN: Target = Target { family: Family::R1Qwen, n_ctx: 131_072, rope_base: 10_000.0, ..QWEN2 };

const R1_LLAMA: Target = Target {
    arch: Architecture::Llama,
    family: Family::R1Llama,
    n_layer: 32,
    n_embd: 4096,
    n_ff: 14_336,
    n_head: 32,
    n_vocab: 128_256,
    n_ctx: 131_072,
    rms_eps: 1e-5,
    rope_base: 5e5,
    ..QWEN3
};

const GPT_OSS: Target = Target {
    name: "gpt-oss-20b",
    arch: Architecture::GptOss,
    file_type: FileType::Mxfp4,
    family: Family::GptOss,
    n_layer: 24,
    n_embd: 2880,
    n_ff: 2880,
    n_head: 64,
    n_head_kv: 8,
    head_dim: 64,
    n_vocab: 201_088,
    n_ctx: 131_072,
    rms_eps: 1e-5,
    rope_base: 150_000.0,
    tied: false,
    moe: Some(Experts { n_expert: 32, n_used: 4, n_ff: 2880, n_ff_shared: 0 }),
};

/// All targets, by family and size.
pub static TARGETS: [Target; 26] = [
    GPT_OSS,
    Target {
        name: "gpt-oss-120b",
        n_layer: 36,
        moe: Some(Experts { n_expert: 128, n_used: 4, n_ff: 2880, n_ff_shared: 0 }),
        ..GPT_OSS
    },
    Target {
        name: "qwen3-0.6b",
        file_type: FileType::Q8_0,
        n_layer: 28,
        n_embd: 1024,
        n_ff: 3072,
        n_head: 16,
        tied: true,
        ..QWEN3
    },
    Target {
        name: "qwen3-1.7b",
        file_type: FileType::Q8_0,
        n_layer: 28,
        n_embd: 2048,
        n_ff: 6144,
        n_head: 16,
        tied: true,
        ..QWEN3
    },
    Target { name: "qwen3-4b", n_embd: 2560, n_ff: 9728, tied: true, ..QWEN3 },
    Target { name: "qwen3-8b", ..QWEN3 },
    Target { name: "qwen3-14b", n_layer: 40, n_embd: 5120, n_ff: 17_408, n_head: 40, ..QWEN3 },
    Target { name: "qwen3-32b", n_layer: 64, n_embd: 5120, n_ff: 25_600, n_head: 64, ..QWEN3 },
    Target {
        name: "qwen3-30b-a3b",
        arch: Architecture::Qwen3Moe,
        n_layer: 48,
        n_embd: 2048,
        n_ff: 6144,
        n_head_kv: 4,
        moe: Some(Experts { n_expert: 128, n_used: 8, n_ff: 768, n_ff_shared: 0 }),
        ..QWEN3
    },
    Target {
        name: "r1-distill-qwen-1.5b",
        n_embd: 1536,
        n_ff: 8960,
        n_head: 12,
        n_head_kv: 2,
        n_vocab: 151_936,
        ..R1_QWEN
    },
    Target { name: "r1-distill-qwen-7b", ..R1_QWEN },
    Target {
        name: "r1-distill-qwen-14b",
        n_layer: 48,
        n_embd: 5120,
        n_ff: 13_824,
        n_head: 40,
        n_head_kv: 8,
        rms_eps: 1e-5,
        rope_base: 1e6,
        ..R1_QWEN
    },
    Target {
        name: "r1-distill-qwen-32b",
        n_layer: 64,
        n_embd: 5120,
        n_ff: 27_648,
        n_head: 40,
        n_head_kv: 8,
        rms_eps: 1e-5,
        rope_base: 1e6,
        ..R1_QWEN
    },
    Target { name: "r1-distill-llama-8b", ..R1_LLAMA },
    Target { name: "r1-distill-llama-70b", n_layer: 80, n_embd: 8192, n_ff: 28_672, n_head: 64, ..R1_LLAMA },
    QWEN25_0_5B,
    QWEN25_1_5B,
    Target {
        name: "qwen2.5-coder-3b",
        n_layer: 36,
        n_embd: 2048,
        n_ff: 11_008,
        n_head: 16,
        n_head_kv: 2,
        n_vocab: 151_936,
        ..QWEN2
    },
    Target { name: "qwen2.5-coder-7b", ..QWEN2 },
    Target { name: "qwen2.5-coder-14b", n_layer: 48, n_embd: 5120, n_ff: 13_824, ..QWEN25_32B },
    QWEN25_32B,
    Target { name: "qwen2.5-math-1.5b", n_ctx: 4096, rope_base: 10_000.0, tied: true, ..QWEN25_1_5B },
    Target { name: "qwen2.5-math-7b", n_ctx: 4096, rope_base: 10_000.0, ..QWEN2 },
    Target {
        name: "qwen1.5-moe-a2.7b",
        arch: Architecture::Qwen2Moe,
        n_layer: 24,
        n_embd: 2048,
        n_ff: 5632,
        n_head: 16,
        n_head_kv: 16,
        n_vocab: 151_936,
        n_ctx: 8192,
        moe: Some(Experts { n_expert: 60, n_used: 4, n_ff: 1408, n_ff_shared: 5632 }),
        ..QWEN2
    },
    Target {
        name: "mixtral-8x7b",
        arch: Architecture::Llama,
        family: Family::Plain,
        n_layer: 32,
        n_embd: 4096,
        n_ff: 14_336,
        n_head: 32,
        n_head_kv: 8,
        n_vocab: 32_000,
        n_ctx: 32_768,
        rms_eps: 1e-5,
        moe: Some(Experts { n_expert: 8, n_used: 2, n_ff: 14_336, n_ff_shared: 0 }),
        ..QWEN3
    },
    Target {
        name: "smollm2-135m",
        file_type: FileType::Q8_0,
        family: Family::Plain,
        n_layer: 30,
        n_embd: 576,
        n_ff: 1536,
        n_head: 9,
        n_head_kv: 3,
        head_dim: 64,
        n_vocab: 49_152,
        n_ctx: 8192,
        rope_base: 1e5,
        tied: true,
        ..R1_LLAMA
    },
];

// Qwen's own files of the small ones have an output of their own, though the models' weights are tied.
const QWEN25_0_5B: Target = Target {
    name: "qwen2.5-coder-0.5b",
    n_layer: 24,
    n_embd: 896,
    n_ff: 4864,
    n_head: 14,
    n_head_kv: 2,
    head_dim: 64,
    n_vocab: 151_936,
    ..QWEN2
};

const QWEN25_1_5B: Target = Target {
    name: "qwen2.5-coder-1.5b",
    n_embd: 1536,
    n_ff: 8960,
    n_head: 12,
    n_head_kv: 2,
    n_vocab: 151_936,
    ..QWEN2
};

const QWEN25_32B: Target =
    Target { name: "qwen2.5-coder-32b", n_layer: 64, n_embd: 5120, n_ff: 27_648, n_head: 40, n_head_kv: 8, ..QWEN2 };
