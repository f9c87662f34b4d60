//! Models of random weights: the types and sizes of the files that they imitate, the same bytes for the same seed, whole
//! files or none, and logits that can be computed with for every target.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use engine::footprint::Footprint;
use engine::gguf::{GgufFile, Header};
use engine::model::Config;
use engine::synth::{FileType, Plan, Stopped, SynthError, SynthOptions, TARGETS, Target, WriteOptions};
use engine::{BackendChoice, Engine, EngineOptions};
use support::tokens;

fn target(name: &str) -> &'static Target {
    Target::find(name).unwrap_or_else(|| panic!("{name} is no target"))
}

fn full(name: &str) -> Plan {
    Plan::new(&SynthOptions::new(target(name)), None).unwrap()
}

/// Two layers, eight experts, a small vocabulary, an eighth of the widths.
fn small(target: &'static Target) -> SynthOptions {
    SynthOptions {
        n_layer: Some(2),
        n_expert: target.moe.map(|_| 8),
        n_vocab: Some(600),
        shrink: 8,
        seed: 3,
        ..SynthOptions::new(target)
    }
}

fn write(plan: &Plan, path: &Path) {
    plan.write(path, &WriteOptions::default(), &mut |_, _| Ok(())).unwrap();
}

fn counts(header: &Header) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    header.tensors.iter().for_each(|t| *counts.entry(t.ty.name()).or_default() += 1);
    counts
}

/// Counts of types as loaders print them for the published files.
#[test]
fn types_are_those_of_the_published_files() {
    for (name, expected) in [
        ("gpt-oss-20b", &[("F32", 289), ("MXFP4", 72), ("Q8_0", 98)][..]),
        ("gpt-oss-120b", &[("F32", 433), ("MXFP4", 108), ("Q8_0", 146)]),
        ("qwen3-0.6b", &[("F32", 113), ("Q8_0", 197)]),
        ("qwen3-4b", &[("F32", 145), ("Q4_K", 216), ("Q6_K", 37)]),
        ("qwen3-8b", &[("F32", 145), ("Q4_K", 217), ("Q6_K", 37)]),
        ("qwen3-30b-a3b", &[("F32", 241), ("Q4_K", 289), ("Q6_K", 49)]),
        ("r1-distill-qwen-7b", &[("F32", 141), ("Q4_K", 169), ("Q6_K", 29)]),
        ("r1-distill-llama-8b", &[("F32", 66), ("Q4_K", 193), ("Q6_K", 33)]),
        ("r1-distill-llama-70b", &[("F32", 162), ("Q4_K", 441), ("Q5_K", 40), ("Q6_K", 81)]),
        ("qwen2.5-coder-0.5b", &[("F32", 121), ("Q4_K", 12), ("Q5_0", 133), ("Q6_K", 12), ("Q8_0", 13)]),
    ] {
        assert_eq!(counts(&full(name).header()), expected.iter().copied().collect(), "{name}");
    }
}

/// Parameters as the model cards give them, and sizes of published files in GB.
#[test]
fn sizes_are_those_of_the_published_models() {
    for (name, billions, active, file_gb) in [
        ("gpt-oss-20b", 20.91, 4.19, 12.11),
        ("gpt-oss-120b", 116.83, 5.71, 63.39),
        ("qwen3-0.6b", 0.596, 0.596, 0.639),
        ("qwen3-8b", 8.19, 8.19, 5.03),
        ("qwen3-32b", 32.76, 32.76, 19.76),
        ("qwen3-30b-a3b", 30.53, 3.35, 18.56),
        ("r1-distill-qwen-32b", 32.76, 32.76, 19.85),
        ("r1-distill-llama-70b", 70.55, 70.55, 42.52),
        ("qwen2.5-coder-1.5b", 1.78, 1.78, 1.117),
    ] {
        let plan = full(name);
        let header = plan.header();
        let footprint = Footprint::new(&header, &Config::from_header(&header).unwrap()).unwrap();
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.006;
        let (found, found_active) = (footprint.n_params as f64 / 1e9, footprint.n_params_active as f64 / 1e9);
        assert!(near(found, billions) && near(found_active, active), "{name}: {found} and {found_active} billion");
        let gb = plan.file_bytes() as f64 / 1e9;
        assert!(near(gb, file_gb), "{name}: {gb} GB, published {file_gb}");
    }
}

#[test]
fn keys_and_values_of_windows_are_told_apart() {
    let header = full("gpt-oss-120b").header();
    let footprint = Footprint::new(&header, &Config::from_header(&header).unwrap()).unwrap();
    // 18 layers that see everything, 18 with windows of 128; 8 heads of 64, keys and values.
    assert_eq!(footprint.kv_per_token().f16(), 18 * 2 * 512 * 2);
    assert_eq!(footprint.kv_per_token().q8_0(), 18 * 2 * 512 * 34 / 32);
    assert_eq!(footprint.kv_windows().f16(), 128 * 18 * 2 * 512 * 2);
    let windows: Vec<_> = footprint.kv.iter().map(|g| (g.window, g.n_layer)).collect();
    assert_eq!(windows, [(None, 18), (Some(128), 18)]);
}

#[test]
fn every_target_shrunk_gives_finite_logits() {
    let dir = tempfile::tempdir().unwrap();
    for target in &TARGETS {
        let plan = Plan::new(&small(target), None).unwrap();
        let path = dir.path().join(format!("{}.gguf", target.name));
        write(&plan, &path);
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.file_bytes(), plan.file_bytes(), "{}", target.name);
        let (planned, written) = (plan.header(), file.header());
        assert!(planned.metadata.iter().eq(written.metadata.iter()), "{}", target.name);
        let shape = |h: &Header| h.tensors.iter().map(|t| (t.name.clone(), t.ty, t.dims.clone())).collect::<Vec<_>>();
        assert_eq!(shape(&planned), shape(written), "{}", target.name);
        // Shrunk or not, the same mix of types.
        assert!(
            counts(&planned).keys().all(|ty| counts(&full(target.name).header()).contains_key(ty)),
            "{}",
            target.name
        );
        let options = EngineOptions { backend: BackendChoice::Cpu, n_ctx: 64, ..EngineOptions::default() };
        let mut engine =
            Engine::load(&path, &options, &mut |_, _| {}).unwrap_or_else(|e| panic!("{}: {e}", target.name));
        let prompt = tokens(40, 600, 1);
        let logits = engine.prompt_logits(&prompt).unwrap_or_else(|e| panic!("{}: {e}", target.name));
        let rms = (logits.iter().map(|l| l * l).sum::<f32>() / logits.len() as f32).sqrt();
        assert!((0.3..5.0).contains(&rms), "{}: logits of size {rms}", target.name);
        let others = engine.prompt_logits(&tokens(40, 600, 2)).unwrap();
        assert!(logits.iter().zip(&others).any(|(a, b)| (a - b).abs() > 0.1), "{}: the prompt matters", target.name);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn activations_stay_near_one_through_all_layers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep.gguf");
    let options = SynthOptions { n_layer: None, shrink: 16, ..small(target("r1-distill-llama-70b")) };
    write(&Plan::new(&options, None).unwrap(), &path);
    let options = EngineOptions { backend: BackendChoice::Cpu, n_ctx: 64, ..EngineOptions::default() };
    let mut engine = Engine::load(&path, &options, &mut |_, _| {}).unwrap();
    let logits = engine.prompt_logits(&tokens(20, 600, 1)).unwrap();
    let rms = (logits.iter().map(|l| l * l).sum::<f32>() / logits.len() as f32).sqrt();
    assert!((0.3..5.0).contains(&rms), "logits of size {rms} after 80 layers");
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |name: &str, threads: usize, options: SynthOptions| {
        let path = dir.path().join(name);
        let plan = Plan::new(&options, None).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| write(&plan, &path));
        std::fs::read(&path).unwrap()
    };
    let options = SynthOptions { n_vocab: Some(20_000), ..small(target("gpt-oss-20b")) };
    let one = bytes("one", 1, options);
    assert!(one.len() > 5 << 20, "several pieces: {} bytes", one.len());
    assert!(one == bytes("four", 4, options));
    assert!(one != bytes("other", 2, SynthOptions { seed: 4, ..options }));
    // A tensor doesn't depend on what is before it.
    let fewer = bytes("fewer", 2, SynthOptions { n_layer: Some(1), ..options });
    let tensor = |bytes: &[u8], name: &str| {
        let header = Header::parse(bytes).unwrap();
        let t = header.tensor(name).unwrap();
        bytes[t.offset as usize..(t.offset + t.bytes) as usize].to_vec()
    };
    for name in ["output.weight", "blk.0.attn_q.weight", "blk.0.ffn_gate_exps.weight"] {
        assert!(tensor(&one, name) == tensor(&fewer, name), "{name}");
    }
}

#[test]
fn shards_hold_what_the_whole_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan::new(&small(target("qwen3-30b-a3b")), None).unwrap();
    let whole = dir.path().join("whole.gguf");
    write(&plan, &whole);
    let options = WriteOptions { max_shard_bytes: Some(plan.file_bytes() / 3), replace: false };
    let files = plan.write(&dir.path().join("parts.gguf"), &options, &mut |_, _| Ok(())).unwrap();
    assert!(files.len() >= 3, "{files:?}");
    assert!(files[0].ends_with(format!("parts-00001-of-{:05}.gguf", files.len())));
    let (whole, parts) = (GgufFile::open(&whole).unwrap(), GgufFile::open(&files[1]).unwrap());
    for t in whole.tensors() {
        assert!(whole.data(t) == parts.data(parts.tensor(&t.name).unwrap()), "{}", t.name);
    }
    let names = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
    assert_eq!(names(dir.path()), 1 + files.len(), "nothing but the files is left");
    // Room for everything: one file under its own name.
    let options = WriteOptions { max_shard_bytes: Some(u64::MAX), replace: false };
    assert_eq!(plan.files(Path::new("m.gguf"), &options).unwrap(), [Path::new("m.gguf")]);
    let options = WriteOptions { max_shard_bytes: Some(1), replace: false };
    let many = full("gpt-oss-120b").files(Path::new("m.gguf"), &options).unwrap();
    assert_eq!(many.len(), 687);
}

#[test]
fn whole_files_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let plan = Plan::new(&small(target("qwen3-0.6b")), None).unwrap();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    // Stopped in the middle.
    let stopped = plan.write(&path, &WriteOptions::default(), &mut |done, all| {
        if done > all / 2 { Err(Stopped) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(SynthError::Stopped)), "{stopped:?}");
    assert_eq!(files(), 0);
    // A folder that isn't there; a folder of the file's name.
    let nowhere = plan.write(Path::new("/nowhere/m.gguf"), &WriteOptions::default(), &mut |_, _| Ok(()));
    assert!(matches!(nowhere, Err(SynthError::Write { .. })), "{nowhere:?}");
    // Progress ends at the whole.
    let mut last = (0, 0);
    plan.write(&path, &WriteOptions::default(), &mut |done, all| {
        assert!(done >= last.0);
        last = (done, all);
        Ok(())
    })
    .unwrap();
    assert_eq!(last, (plan.file_bytes(), plan.file_bytes()));
    // What is there stays, unless it may be replaced.
    let before = std::fs::read(&path).unwrap();
    let other = Plan::new(&SynthOptions { seed: 9, ..small(target("qwen3-0.6b")) }, None).unwrap();
    let refused = other.write(&path, &WriteOptions::default(), &mut |_, _| Ok(()));
    assert!(matches!(refused, Err(SynthError::Exists { .. })), "{refused:?}");
    assert!(std::fs::read(&path).unwrap() == before);
    other.write(&path, &WriteOptions { replace: true, ..WriteOptions::default() }, &mut |_, _| Ok(())).unwrap();
    assert!(std::fs::read(&path).unwrap() != before);
    assert_eq!(files(), 1);
}

/// A model of 14 TB is refused before anything is written.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_known_before() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        SynthOptions { n_layer: Some(1024), n_expert: Some(1024), ..SynthOptions::new(target("gpt-oss-120b")) };
    let plan = Plan::new(&options, None).unwrap();
    let refused = plan.write(&dir.path().join("m.gguf"), &WriteOptions::default(), &mut |_, _| Ok(()));
    let Err(SynthError::NoSpace { need_bytes, free_bytes, .. }) = refused else { panic!("{refused:?}") };
    assert!(need_bytes > 10u64.pow(13) && free_bytes < need_bytes);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let refused = |options: SynthOptions, fragments: &[&str]| {
        let message = Plan::new(&options, None).unwrap_err().to_string();
        fragments.iter().for_each(|f| assert!(message.contains(f), "`{f}` is not in: {message}"));
    };
    let dense = SynthOptions::new(target("qwen3-8b"));
    refused(SynthOptions { n_layer: Some(0), ..dense }, &["layers is 0", "1 to 1024"]);
    refused(SynthOptions { n_vocab: Some(100), ..dense }, &["tokens is 100"]);
    refused(SynthOptions { shrink: 65, ..dense }, &["65", "1 to 64"]);
    refused(SynthOptions { n_expert: Some(8), ..dense }, &["experts is 8", "none"]);
    refused(SynthOptions { file_type: Some(FileType::Mxfp4), ..dense }, &["MXFP4", "no experts"]);
    let sparse = SynthOptions::new(target("qwen3-30b-a3b"));
    refused(SynthOptions { n_expert: Some(0), ..sparse }, &["experts is 0", "1 to 1024"]);
    // Fewer experts than a token uses: it uses all.
    let plan = Plan::new(&SynthOptions { n_expert: Some(2), ..sparse }, None).unwrap();
    assert_eq!(plan.shape.moe.unwrap().n_used, 2);
}

#[test]
fn every_file_type_can_be_planned_for_every_target() {
    for target in &TARGETS {
        for file_type in FileType::ALL.into_iter().filter(|t| *t != FileType::Mxfp4 || target.moe.is_some()) {
            let plan = Plan::new(&SynthOptions { file_type: Some(file_type), ..small(target) }, None).unwrap();
            let header = plan.header();
            let config = Config::from_header(&header).unwrap();
            Footprint::new(&header, &config).unwrap_or_else(|e| panic!("{} {}: {e}", target.name, file_type.name()));
            assert_eq!(header.metadata.u32("general.file_type").unwrap(), file_type.id());
        }
    }
}

#[test]
fn a_vocabulary_is_taken_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let donor = dir.path().join("donor.gguf");
    write(&Plan::new(&small(target("gpt-oss-20b")), None).unwrap(), &donor);
    let donor = GgufFile::open(&donor).unwrap();
    let options = SynthOptions { n_vocab: Some(700), ..small(target("qwen3-0.6b")) };
    let header = Plan::new(&options, Some(&donor)).unwrap().header();
    let tokens = header.metadata.strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens.get(699)), (700, Some("[PAD699]")));
    assert!(tokens.iter().any(|t| t == "<|call|>"));
    assert!(header.metadata.str("tokenizer.chat_template").unwrap().contains("<|start|>"));
    assert_eq!(header.metadata.str("general.architecture").unwrap(), "qwen3");
    engine::tokenizer::Tokenizer::from_gguf(&header.metadata).unwrap();
    let refused = Plan::new(&SynthOptions { n_vocab: Some(599), ..options }, Some(&donor)).unwrap_err().to_string();
    assert!(refused.contains("600 tokens") && refused.contains("599"), "{refused}");
}
