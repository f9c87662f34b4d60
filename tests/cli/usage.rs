//! Arguments: what is refused before anything is opened, and what help says.

use crate::tools::aimo;

#[test]
fn help_lists_every_command() {
    let text = aimo(["--help"]).ok();
    for command in ["run", "generate", "info", "tokenize", "logits", "bench", "devices", "python"] {
        assert!(text.lines().any(|l| l.trim_start().starts_with(command)), "{command} is not in {text}");
        assert!(aimo([command, "--help"]).ok().contains("Usage:"), "{command}");
    }
    assert!(aimo(["--version"]).ok().starts_with("aimo-engine "));
}

#[test]
fn wrong_arguments_end_with_status_2() {
    aimo::<&str>([]).is_usage_error("Usage");
    aimo(["fly"]).is_usage_error("fly");
    aimo(["generate", "-p", "x"]).is_usage_error("--model");
    aimo(["generate", "-m", "m.gguf"]).is_usage_error("--prompt");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "-f", "y"]).is_usage_error("--file");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "--temp=-1"]).is_usage_error("at least 0");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "--top-p", "1.5"]).is_usage_error("from 0 to 1");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "-n", "0"]).is_usage_error("at least 1");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "--backend", "tpu"]).is_usage_error("vulkan");
    aimo(["logits", "-m", "m.gguf", "--tokens", "1,x"]).is_usage_error("x");
    aimo(["logits", "-m", "m.gguf"]).is_usage_error("--tokens");
    aimo(["tokenize", "-m", "m.gguf"]).is_usage_error("--prompt");
    aimo(["bench", "-m", "m.gguf", "-p", "0", "-n", "0"]).is_usage_error("nothing to measure");
    aimo(["python", "--timeout", "0", "-c", "1"]).is_usage_error("above 0");
    aimo(["info"]).is_usage_error("MODEL");
    aimo(["run", "-m", "m.gguf"]).is_usage_error("--problem");
    aimo(["run", "-m", "m.gguf", "p.csv", "--demo"]).is_usage_error("--demo");
    aimo(["run", "-m", "m.gguf", "p.csv", "-o", "s.csv", "--answer-range", "9..1"]).is_usage_error("9");
    aimo(["run", "-m", "m.gguf", "p.csv", "-o", "s.csv", "--attempts", "0"]).is_usage_error("at least 1");
}

#[test]
fn devices_names_the_cpu_with_or_without_vulkan() {
    let text = aimo(["devices"]).ok();
    assert!(text.lines().any(|l| l.starts_with("CPU: ") && l.contains("cores")), "{text}");
    let value = aimo(["devices", "--json"]).json();
    assert!(value["cpu"]["n_cores"].as_u64().unwrap() >= 1);
    assert_eq!(value["vulkan"].as_array().unwrap().is_empty(), !value["vulkan_problem"].is_null(), "{value}");
}
