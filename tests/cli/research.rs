//! What a kernel researcher uses: kernels timed and checked on the software device, an edited shader, the roofline, sizes
//! measured and stored. No test looks at how long anything took.

use std::path::Path;

use serde_json::Value;

use crate::tiny::Tiny;
use crate::tools::{Done, aimo, command};

/// The software device.
const DEVICE: [&str; 2] = ["--device", "llvmpipe"];

fn on_software<'a>(args: &[&'a str]) -> Done {
    let args: Vec<&'a str> = args.iter().copied().chain(DEVICE).collect();
    aimo(args)
}

/// The program with a cache folder of its own.
fn with_cache(cache: &Path, args: &[&str]) -> Done {
    let mut command = command();
    command.args(args).args(DEVICE).env("XDG_CACHE_HOME", cache);
    Done::from(command.output().expect("the program starts"))
}

#[test]
fn ops_are_compared_with_the_cpu() {
    for (like, part) in [("qwen3-0.6b", "gated"), ("gpt-oss-20b", "experts"), ("qwen3-30b-a3b", "experts")] {
        let args =
            ["kernels", "--check", "--like", like, "--shrink", "8", "--columns", "1,3", "-p", "9", "--json", "-q"];
        let found = on_software(&args).json();
        assert_eq!(found["n_off"], 0, "{found}");
        let ops = found["ops"].as_array().expect("a list");
        assert!(ops.iter().any(|op| op["op"].as_str().is_some_and(|o| o.starts_with(part))), "{found}");
        for op in ops {
            assert!(op["kernels"].as_array().is_some_and(|k| !k.is_empty()), "{op}");
            assert!(op["relative"].as_f64().is_some_and(|r| r < 0.02), "{op}");
        }
    }
}

#[test]
fn a_wrong_edit_of_a_shader_is_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().to_str().expect("a UTF-8 path");
    aimo(["kernels", "--export", dir]).ok();
    let path = folder.path().join("include/activation.glsl");
    let text = std::fs::read_to_string(&path).expect("exported");
    std::fs::write(&path, text.replace("exp(-gate)", "exp(-1.1 * gate)")).expect("written");
    let args =
        ["kernels", "--check", "--like", "qwen3-0.6b", "--shrink", "8", "--columns", "1", "--shaders", dir, "-q"];
    let done = on_software(&args);
    assert!(done.stdout.lines().any(|l| l.contains("gated") && l.contains("OFF")), "{}", done.stdout);
    assert!(done.stdout.lines().any(|l| l.contains("attention") && !l.contains("OFF")), "{}", done.stdout);
    done.fails_naming(&["further from the CPU's"]);
}

#[test]
fn kernels_are_timed_and_held_against_the_roofline() {
    let args =
        ["kernels", "--time", "--like", "gpt-oss-20b", "--shrink", "8", "--columns", "1,2", "-r", "2", "--json", "-q"];
    let times = on_software(&args).json();
    for peak in ["read_gb_per_s", "copy_gb_per_s", "f32_tflops"] {
        assert!(times["peaks"][peak].as_f64().is_some_and(|x| x > 0.0), "{times}");
    }
    let passes = times["passes"].as_array().expect("a list");
    assert_eq!(passes.iter().map(|p| p["n_tokens"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    for pass in passes {
        for op in pass["ops"].as_array().expect("a list") {
            for k in op["kernels"].as_array().expect("a list") {
                assert!(k["us"].as_f64().is_some_and(|x| x > 0.0) && k["bytes"].as_u64() > Some(0), "{k}");
            }
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("kernels.json");
    std::fs::write(&path, times.to_string()).expect("written");
    let path = path.to_str().expect("a UTF-8 path");
    let held = aimo(["roofline", "--like", "gpt-oss-20b", "--measured", path, "--json"]).json();
    let passes = held["measured"].as_array().expect("a list");
    assert_eq!(passes.len(), 2, "{held}");
    for pass in passes {
        assert!(pass["ops"].as_array().expect("a list").iter().any(|r| r["op"] == "experts → X"), "{held}");
        assert!(pass["model_tokens_per_s"].as_f64().is_some_and(|x| x > 0.0), "every op was measured: {held}");
    }
    // One line of a table for each kernel that is left.
    let args = [
        "kernels",
        "--time",
        "--like",
        "qwen3-0.6b",
        "--shrink",
        "8",
        "--columns",
        "1",
        "-r",
        "1",
        "--filter",
        "rms_norm",
    ];
    let table = on_software(&args).ok();
    assert!(table.contains("f32_rms_norm") && !table.contains("matvec"), "{table}");
}

#[test]
fn measuring_asks_for_a_model_and_for_what_to_do_with_it() {
    on_software(&["kernels", "--time"]).refuses_usage("--like");
    on_software(&["kernels", "--like", "gpt-oss-20b"]).refuses_usage("--time");
    let args = [
        "kernels",
        "--time",
        "--like",
        "qwen3-0.6b",
        "--shrink",
        "8",
        "-r",
        "1",
        "--columns",
        "1",
        "--filter",
        "no such",
    ];
    on_software(&args).fails_naming(&["no such"]);
    // What is compared is filtered too, and nothing compared is no success.
    let args = ["kernels", "--check", "--like", "qwen3-0.6b", "--shrink", "8", "--columns", "1", "--filter", "no such"];
    on_software(&args).fails_naming(&["no such", "--filter"]);
    // Without a measurement nothing of it is taken.
    for args in [&["--exact"][..], &["--columns", "1"], &["-d", "4"], &["-p", "4"], &["-r", "2"]] {
        aimo([&["kernels"][..], args].concat()).refuses_usage("--time");
    }
}

#[test]
fn depths_that_the_device_has_no_room_for_are_named() {
    let args = ["kernels", "--time", "--like", "qwen3-0.6b", "--shrink", "8", "-d", "16777216", "-q"];
    let done = on_software(&args);
    assert!(!done.stderr.contains("--backend"), "`kernels` has no such flag: {}", done.stderr);
    done.fails_naming(&["too large for the Vulkan device", "-d"]);
}

#[test]
fn times_of_passes_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("times.json");
    let path_text = path.to_str().expect("a UTF-8 path");
    let held = |n_tokens: u64, n_seq: u64| {
        let pass = serde_json::json!({ "n_tokens": n_tokens, "n_seq": n_seq, "depth": 0, "ops": [] });
        std::fs::write(&path, serde_json::json!({ "passes": [pass] }).to_string()).expect("written");
        aimo(["roofline", "--like", "qwen3-8b", "--npl", "1", "--measured", path_text])
    };
    held(8, 4).ok();
    held(8, 3).fails_naming(&["times.json", "8 tokens", "3 sequences"]);
    held(8, 0).fails_naming(&["times.json", "0 sequences"]);
    held(1 << 40, 1 << 40).fails_naming(&["at most 4294967295"]);
    held(2_000_000_000, 2_000_000_000).ok();
}

#[test]
fn the_roofline_of_a_smaller_cache_is_higher() {
    let kv_bytes = |types: &[&str]| {
        let args = ["roofline", "--like", "qwen3-8b", "--json", "--npl", "4", "-p", "1", "-d", "4096"];
        let found = aimo(args.iter().chain(types).copied()).json();
        found["streams"][0]["kv_bytes"].as_f64().expect("a number")
    };
    let (f16, q8_0) = (kv_bytes(&[]), kv_bytes(&["-ctk", "q8_0", "-ctv", "q8_0"]));
    assert!((q8_0 / f16 - 34.0 / 64.0).abs() < 1e-9, "{q8_0} of {f16}");
    aimo(["roofline", "--like", "qwen3-8b", "-ctk", "q4_0"]).refuses_usage("q8_0");
    aimo(["roofline", "--like", "qwen3-8b", "-p", "1000000", "-b", "1"]).fails_naming(&["1000000 passes", "-b"]);
}

#[test]
fn the_roofline_is_that_of_the_published_figures() {
    let of = |name: &str| aimo(["roofline", "--like", name, "--json", "-d", "0,4096"]).json();
    let rate = |found: &Value, depth: u64, n: u64| {
        let streams = found["streams"].as_array().expect("a list");
        let row = streams.iter().find(|s| s["depth"] == depth && s["n_seq"] == n).expect("a row");
        row["bound_tokens_per_s"].as_f64().expect("a number")
    };
    let large = of("gpt-oss-120b");
    let gb = large["total"]["weight_bytes"].as_f64().expect("a number") / 1e9;
    // Published: 3.59 GB per token with an output of f16; that of the files that people run is Q8_0.
    assert!((2.9..3.7).contains(&gb), "{gb}");
    // 146 tok/s for 16 streams, 277 for 64.
    assert!((rate(&large, 0, 16) / 146.0 - 1.0).abs() < 0.1, "{}", rate(&large, 0, 16));
    assert!((rate(&large, 0, 64) / 277.0 - 1.0).abs() < 0.1, "{}", rate(&large, 0, 64));
    assert!(rate(&large, 4096, 16) < rate(&large, 0, 16), "the cache is read too");
    aimo(["roofline", "--like", "qwen3-8b", "--device", "nonsense"]).refuses_usage("strix-halo");
    aimo(["roofline"]).refuses_usage("MODEL");
}

#[test]
fn sizes_are_measured_stored_used_and_forgotten() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let run = |args: &[&str]| with_cache(cache.path(), args);
    let few = ["--like", "qwen3-0.6b", "--shrink", "8", "-r", "1", "-d", "0", "--filter", "norm", "-q"];
    let tune = |more: &[&str]| run(&[&["tune"], &few[..], more].concat());
    let files = || {
        let entries = std::fs::read_dir(cache.path().join("aimo-engine")).into_iter().flatten().flatten();
        let paths = entries.map(|e| e.path());
        paths.filter(|p| p.extension().is_some_and(|e| e == "json")).collect::<Vec<_>>()
    };
    let dry = tune(&["--dry-run", "--json"]).json();
    assert!(dry["stored"].is_null() && files().is_empty(), "{dry}");
    let sizes = dry["sizes"].as_array().expect("a list");
    assert!(sizes.len() == 1 && sizes[0]["candidates"].as_array().is_some_and(|c| c.len() > 1), "{dry}");
    let stored = tune(&[]).ok();
    let [path] = &files()[..] else { panic!("one file is stored: {stored}") };
    assert!(stored.contains(&path.display().to_string()), "{stored}");
    // Another choice than the shipped one, which the timed kernels then have as their constant.
    let text = std::fs::read_to_string(path).expect("readable");
    let mut file: Value = serde_json::from_str(&text).expect("JSON");
    file["values"]["norm"] = serde_json::json!([64]);
    std::fs::write(path, file.to_string()).expect("written");
    let timed = ["kernels", "--time", "--like", "qwen3-0.6b", "--shrink", "8", "--columns", "1", "-r", "1", "--json"];
    let constants = |done: Done| {
        let found = done.json();
        let ops = found["passes"][0]["ops"].as_array().expect("a list").clone();
        let norm = ops.iter().find(|op| op["op"] == "rms_norm → H").expect("a norm").clone();
        norm["kernels"][0]["constants"].clone()
    };
    assert_eq!(constants(run(&timed)), serde_json::json!([64]));
    // A damaged file is not used, and says so.
    std::fs::write(path, &text[..text.len() / 2]).expect("written");
    let done = run(&timed);
    assert!(done.stderr.contains("warning: ") && done.stderr.contains("damaged"), "{}", done.stderr);
    assert_ne!(constants(done), serde_json::json!([64]));
    // Once, although two models are loaded beside the device itself.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("m.gguf").to_str().expect("a UTF-8 path").to_owned();
    let synth = ["synth", "--like", "qwen3-0.6b", "--layers", "1", "--vocab-size", "4096", "--shrink", "8", "-q"];
    aimo(synth.into_iter().chain(["-o", &*model])).ok();
    let two = format!("{model},{model}");
    let done = run(&["tune", "--dry-run", "-m", &*two, "--filter", "norm", "-r", "1", "-d", "0"]);
    assert_eq!(done.stderr.matches("damaged").count(), 1, "{}", done.stderr);
    assert!(run(&["tune", "--reset"]).ok().contains("removed"));
    assert!(files().is_empty());
    assert!(run(&["tune", "--reset"]).ok().contains("nothing is stored"));
    run(&["tune", "--filter", "no such size"]).fails_naming(&["no such size", "matvec"]);
    // A size that the model has no kernel for is named, in the table's place.
    let route = ["tune", "--like", "qwen3-0.6b", "--shrink", "8", "-r", "1", "-d", "0", "--filter", "route", "-q"];
    let text = run(&route).ok();
    assert!(text.contains("no kernel that they are about: route") && text.contains("nothing was stored"), "{text}");
    let found = run(&[&route[..], &["--json"]].concat()).json();
    assert_eq!((&found["unused"], &found["sizes"]), (&serde_json::json!(["route"]), &serde_json::json!([])));
    // One that the device has no choice for is no unknown name.
    let has_matrices = aimo(["devices"]).ok().contains("cooperative matrix");
    if !has_matrices {
        run(&["tune", "--filter", "matrix.wide"]).fails_naming(&["llvmpipe", "matrix.widest", "norm"]);
    }
}

#[test]
fn bench_says_how_long_loading_took_and_refuses_what_it_would_ignore() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = Tiny::default().write(folder.path());
    let bench = ["bench", "-m", model.to_str().expect("a UTF-8 path"), "--backend", "cpu", "-r", "1", "-q"];
    let with = |more: &[&str]| aimo([&bench[..], more].concat());
    let text = with(&["-p", "4", "-n", "2", "-t", "1,2"]).ok();
    let lines: Vec<&str> = text.lines().filter(|l| l.contains("tiny.gguf loaded in ")).collect();
    assert_eq!(lines.len(), 2, "one for each load: {text}");
    assert!(lines[0].contains("(1 thread,") && lines[1].contains("2 threads"), "{text}");
    with(&["-pps", "-p", "4", "-n", "0", "-d", "0,8"]).refuses_usage("-d 8 and -pps");
    with(&["-pps", "-p", "4", "-n", "0"]).ok();
    with(&["-n", "16777216", "-p", "0", "-npl", "4096"]).fails_naming(&["4096 sequences of 16777216 tokens", "-n"]);
}

#[test]
fn bench_counts_launches_and_writes_csv() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.gguf");
    let model = path.to_str().expect("a UTF-8 path");
    let synth =
        ["synth", "--like", "gpt-oss-20b", "--layers", "2", "--experts", "8", "--vocab-size", "4096", "--shrink", "8"];
    aimo(synth.into_iter().chain(["-o", model, "-q"])).ok();
    let args = ["bench", "-m", model, "-p", "8", "-n", "4", "-npl", "1,3", "-r", "2", "-o", "csv", "-q"];
    // As on the target: the roofline's kernels are its own.
    let text = on_software(&[&args[..], &["--integer-dot"]].concat()).ok();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().expect("a header").clone();
    let records: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().expect("records");
    let field = |r: &csv::StringRecord, name: &str| {
        let at = header.iter().position(|h| h == name).unwrap_or_else(|| panic!("no {name} in {header:?}"));
        r[at].to_owned()
    };
    let tests: Vec<_> = records.iter().map(|r| ["n_prompt", "n_gen", "n_parallel"].map(|f| field(r, f))).collect();
    assert_eq!(tests, [["8", "0", "1"], ["0", "4", "1"], ["0", "4", "3"]]);
    let roofline = aimo(["roofline", model, "--npl", "1,3", "--json"]).json();
    for (record, stream) in records[1..].iter().zip(roofline["streams"].as_array().expect("a list")) {
        let launches: f64 = field(record, "dispatches_per_step").parse().expect("a number");
        assert_eq!(launches, stream["n_dispatches"].as_f64().expect("a number"), "{text}");
        assert_eq!(field(record, "submits_per_step"), "1.0");
        for name in ["gb_per_s", "bandwidth_share", "cpu_us_per_token", "device_us_per_token", "load_ms"] {
            assert!(field(record, name).parse::<f64>().is_ok_and(|x| x > 0.0), "{name} in {text}");
        }
    }
    assert!(field(&records[0], "first_token_ms").parse::<f64>().is_ok_and(|x| x > 0.0), "{text}");
}
