//! Arguments: what is refused before anything is opened, and what help says.

use crate::tools::aimo;

#[test]
fn help_lists_every_command() {
    let text = aimo(["--help"]).ok();
    for command in [
        "run",
        "eval",
        "replay",
        "report",
        "generate",
        "info",
        "tokenize",
        "logits",
        "bench",
        "perplexity",
        "synth",
        "devices",
        "python",
    ] {
        assert!(text.lines().any(|l| l.trim_start().starts_with(command)), "{command} is not in {text}");
        assert!(aimo([command, "--help"]).ok().contains("Usage:"), "{command}");
    }
    assert!(aimo(["--version"]).ok().starts_with("aimo-engine "));
}

#[test]
fn wrong_arguments_end_with_status_2() {
    aimo::<&str>([]).refuses_usage("Usage");
    aimo(["fly"]).refuses_usage("fly");
    aimo(["generate", "-p", "x"]).refuses_usage("--model");
    aimo(["generate", "-m", "m.gguf"]).refuses_usage("--prompt");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "-f", "y"]).refuses_usage("--file");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "--temp=-1"]).refuses_usage("at least 0");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "--top-p", "1.5"]).refuses_usage("from 0 to 1");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "-n", "0"]).refuses_usage("at least 1");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "--backend", "tpu"]).refuses_usage("vulkan");
    aimo(["logits", "-m", "m.gguf", "--tokens", "1,x"]).refuses_usage("x");
    aimo(["logits", "-m", "m.gguf"]).refuses_usage("--tokens");
    aimo(["tokenize", "-m", "m.gguf"]).refuses_usage("--prompt");
    aimo(["bench", "-m", "m.gguf", "-p", "0", "-n", "0"]).refuses_usage("nothing to measure");
    aimo(["python", "--timeout", "0", "-c", "1"]).refuses_usage("above 0");
    aimo(["info"]).refuses_usage("MODEL");
    aimo(["run", "-m", "m.gguf"]).refuses_usage("--problem");
    aimo(["run", "-m", "m.gguf", "p.csv", "--demo"]).refuses_usage("--demo");
    aimo(["run", "-m", "m.gguf", "p.csv", "-o", "s.csv", "--answer-range", "9..1"]).refuses_usage("9");
    aimo(["run", "-m", "m.gguf", "p.csv", "-o", "s.csv", "--attempts", "0"]).refuses_usage("at least 1");
    aimo(["run", "-m", "m.gguf", "p.csv", "--protocol", "react"]).refuses_usage("output-fence");
    aimo(["run", "-m", "m.gguf", "p.csv", "--reasoning", "max"]).refuses_usage("medium");
    aimo(["generate", "-m", "m.gguf", "-p", "x", "--reasoning", "low"]).refuses_usage("--chat");
    aimo(["run", "-m", "m.gguf", "p.csv", "--stop", "first-k:9"]).refuses_usage("at most 4");
    aimo(["run", "-m", "m.gguf", "p.csv", "--stop", "soon"]).refuses_usage("first-k:K");
    aimo(["run", "-m", "m.gguf", "p.csv", "--time-limit", "5 moons"]).refuses_usage("such as 5h");
    aimo(["run", "-m", "m.gguf", "p.csv", "--problem-base", "5s"]).refuses_usage("--time-limit");
    aimo(["run", "p.csv"]).refuses_usage("-m FILE");
}

/// Numbers for which nobody has the memory or the time, before anything is opened.
#[test]
fn numbers_of_measurements_have_bounds() {
    let with_model = ["-m", "m.gguf"];
    let like = ["--like", "qwen3-8b"];
    let all: [(&str, &[&str], &[&str]); 4] = [
        ("bench", &with_model, &["-p", "-n", "-d", "-npl", "-b", "-t", "-r"]),
        ("roofline", &like, &["-p", "-d", "--npl", "-b"]),
        ("kernels", &["--time", "-m", "m.gguf"], &["-p", "-d", "--columns", "-r"]),
        ("tune", &with_model, &["-d", "-r"]),
    ];
    for (command, model, flags) in all {
        for flag in flags {
            for number in ["18446744073709551615", "100000000000000", "2000000000", "-1", "x"] {
                let value = format!("{flag}={number}");
                // Flags of one dash that are long ones have their value apart.
                let given = if *flag == "-npl" { vec![*flag, number] } else { vec![&*value] };
                let done = aimo([&[command][..], model, &given].concat());
                if number != "-1" || *flag != "-npl" {
                    assert!(done.stderr.contains(number), "{command} {flag}: {}", done.stderr);
                    done.refuses_usage("must be a whole number from ");
                }
            }
        }
    }
    for command in ["generate", "perplexity", "run"] {
        aimo([command, "-m", "m.gguf", "-t", "18446744073709551615"]).refuses_usage("from 0 to 1024");
    }
}

#[test]
fn a_vulkan_device_for_the_cpu_is_refused() {
    let given = ["-m", "m.gguf", "--backend", "cpu", "--device", "0"];
    let more: [(&str, &[&str]); 5] = [
        ("bench", &[]),
        ("generate", &["-p", "x"]),
        ("logits", &["--tokens", "1"]),
        ("perplexity", &["-f", "text.txt"]),
        ("run", &["--demo"]),
    ];
    for (command, args) in more {
        aimo([&[command][..], &given, args].concat()).refuses_usage("--device 0");
    }
}

#[test]
fn devices_names_the_cpu_with_or_without_vulkan() {
    let text = aimo(["devices"]).ok();
    assert!(text.lines().any(|l| l.starts_with("CPU: ") && l.contains("cores")), "{text}");
    let value = aimo(["devices", "--json"]).json();
    assert!(value["cpu"]["n_cores"].as_u64().unwrap() >= 1);
    assert_eq!(value["vulkan"].as_array().unwrap().is_empty(), !value["vulkan_problem"].is_null(), "{value}");
}
