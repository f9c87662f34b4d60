//! Real models, and small ones made from them, against the f32 reference logits beside the checkout. Each case is
//! skipped with a message where its model (see `cargo xtask models` and the tools beside the checkout) or the reference
//! file is not there. Whole logits are compared where `cargo xtask golden` has computed them, else the twenty largest.

#[path = "support/golden.rs"]
mod golden;

use engine::{BackendChoice, EngineOptions};
use golden::check;

fn cpu(exact: bool) -> EngineOptions {
    EngineOptions { backend: BackendChoice::Cpu, n_ctx: 1024, exact, ..EngineOptions::default() }
}

#[test]
fn float_files_match_the_reference() {
    for model in ["tiny-gpt-oss-f16.gguf", "tiny-qwen3moe-f16.gguf"] {
        check(model, &cpu(false), |_| {}, Some(0.9999), usize::MAX);
    }
}

#[test]
fn small_quantised_files_match_the_reference_with_f32_activations() {
    for model in ["tiny-gpt-oss-mxfp4.gguf", "tiny-qwen3moe-q4_k_m.gguf", "tiny-qwen3-q4_k_m.gguf"] {
        check(model, &cpu(true), |_| {}, Some(0.9999), usize::MAX);
    }
}

#[test]
fn small_quantised_files_come_at_least_as_close_as_llama_cpp() {
    for model in ["tiny-gpt-oss-mxfp4.gguf", "tiny-qwen3moe-q4_k_m.gguf", "tiny-qwen3-q4_k_m.gguf"] {
        check(model, &cpu(false), |_| {}, None, usize::MAX);
    }
}

#[test]
fn real_models_match_the_reference_with_f32_activations() {
    for model in ["qwen2.5-coder-0.5b-q4_k_m.gguf", "qwen2moe-upcycled-4x0.5b-q4_k_m.gguf"] {
        check(model, &cpu(true), |_| {}, Some(0.9999), usize::MAX);
    }
    // The long prompt takes this one minutes without integers.
    check("qwen2.5-coder-1.5b-q4_k_m.gguf", &cpu(true), |_| {}, Some(0.9999), 64);
}

#[test]
fn real_models_come_at_least_as_close_as_llama_cpp() {
    for model in
        ["qwen2.5-coder-0.5b-q4_k_m.gguf", "qwen2moe-upcycled-4x0.5b-q4_k_m.gguf", "qwen2.5-coder-1.5b-q4_k_m.gguf"]
    {
        check(model, &cpu(false), |_| {}, None, usize::MAX);
    }
}

/// lavapipe.
fn software_vulkan(n_batch: usize) -> EngineOptions {
    EngineOptions {
        backend: BackendChoice::Vulkan,
        device: Some("llvmpipe".into()),
        n_ctx: 1024,
        n_batch,
        ..EngineOptions::default()
    }
}

#[test]
fn the_half_billion_model_is_exact_on_the_software_vulkan_device() {
    // The 564-token prompt takes a software device minutes; the kernels' own tests cover long contexts.
    check("qwen2.5-coder-0.5b-q4_k_m.gguf", &software_vulkan(512), |_| {}, Some(0.9999), 64);
}

#[test]
fn the_tiny_models_are_exact_on_the_software_vulkan_device() {
    // Windows, sinks, YaRN, experts; a prompt of 769 tokens in one piece and in pieces.
    for (model, n_batch) in [
        ("tiny-gpt-oss-f16.gguf", 1024),
        ("tiny-gpt-oss-mxfp4.gguf", 100),
        ("tiny-qwen3moe-f16.gguf", 512),
        ("tiny-qwen3moe-q4_k_m.gguf", 512),
        ("tiny-qwen3-q4_k_m.gguf", 512),
    ] {
        check(model, &software_vulkan(n_batch), |_| {}, Some(0.9999), usize::MAX);
    }
}

#[test]
fn the_upcycled_mixture_is_exact_on_the_software_vulkan_device() {
    check("qwen2moe-upcycled-4x0.5b-q4_k_m.gguf", &software_vulkan(512), |_| {}, Some(0.9999), 12);
}
