//! Whole passes of small models on the software device, under the validation layers, against plain f64: every
//! architecture and weight type, prompts of one to many tokens, batches of several sequences, shared prompts.

mod support;
mod vulkan_support;

use engine::backend::BatchToken;
use engine::drafts::DraftOptions;
use engine::gguf::GgmlType;
use engine::kv::{KvOptions, KvType};
use engine::sampler::SamplerParams;
use engine::scheduler::Scheduler;
use engine::{BackendChoice, Engine, EngineOptions};
use support::{Scaling, TinyExperts, TinyModel, TinySpec, cosine, tokens};
use vulkan_support::software_device;

const K_MIX: [GgmlType; 3] = [GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K];
const SMALL_MIX: [GgmlType; 5] = [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0];
const FLOATS: [GgmlType; 3] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
/// f32 arithmetic and an f16 cache against f64.
const LEAST_COSINE: f64 = 0.99999;

fn load(model: &TinyModel, n_seq: usize, n_batch: usize) -> Engine {
    load_with(model, n_seq, n_batch, EngineOptions::default())
}

fn load_with_cache(model: &TinyModel, n_seq: usize, n_batch: usize, kv: KvOptions) -> Engine {
    load_with(model, n_seq, n_batch, EngineOptions { kv, ..EngineOptions::default() })
}

fn load_with(model: &TinyModel, n_seq: usize, n_batch: usize, options: EngineOptions) -> Engine {
    let options = EngineOptions {
        backend: BackendChoice::Vulkan,
        device: Some(software_device()),
        n_ctx: 256,
        n_seq,
        n_batch,
        validation: true,
        ..options
    };
    Engine::load(&model.path, &options, &mut |_, _| {}).unwrap_or_else(|e| panic!("{:?}: {e}", model.spec))
}

fn check(model: &TinyModel, engine: &mut Engine, n: usize) {
    check_to(LEAST_COSINE, model, engine, n);
}

fn check_to(least: f64, model: &TinyModel, engine: &mut Engine, n: usize) {
    let prompt = tokens(n, model.n_vocab, n as u64);
    let got = engine.prompt_logits(&prompt).unwrap_or_else(|e| panic!("{:?}, {n} tokens: {e}", model.spec));
    let cosine = cosine(&got, &model.reference_logits(&prompt));
    assert!(cosine >= least, "{:?}, {n} tokens: cosine {cosine}", model.spec);
}

/// 8-bit keys and values: the bound is that of the CPU backend's test.
#[test]
fn q8_0_caches_are_close_to_f64() {
    let kv = KvOptions { k: KvType::Q8_0, v: KvType::Q8_0 };
    let gpt_oss = TinySpec { n_layer: 3, window: 20, ..TinySpec::new("gpt-oss", &FLOATS[1..2]) };
    for spec in [TinySpec::new("qwen3", &FLOATS[1..2]), gpt_oss] {
        let model = TinyModel::new(spec);
        let mut engine = load_with_cache(&model, 1, 16, kv);
        for n in [1, 70] {
            check_to(0.9995, &model, &mut engine, n);
        }
    }
}

/// Several positions of a sequence in one pass, each with its logits.
#[test]
fn sequences_write_the_same_with_drafts() {
    let model = TinyModel::new(TinySpec::new("qwen3", &FLOATS[1..2]));
    let prompts = [tokens(12, model.n_vocab, 3), tokens(25, model.n_vocab, 4)];
    // The likeliest token leads into repetitions, which drafts find.
    let sampling = [0.0, 0.5].map(|temperature| SamplerParams { temperature, seed: 3, ..SamplerParams::default() });
    let write = |drafts: DraftOptions| {
        let options = EngineOptions {
            backend: BackendChoice::Vulkan,
            device: Some(software_device()),
            n_ctx: 256,
            n_seq: 2,
            n_batch: 32,
            n_outputs: 8,
            validation: true,
            ..EngineOptions::default()
        };
        let engine = Engine::load(&model.path, &options, &mut |_, _| {}).expect("a loaded model");
        let mut scheduler = Scheduler::new(engine).with_drafts(drafts);
        let ids = [0, 1].map(|i| scheduler.start(&prompts[i], &sampling[i]).expect("a sequence"));
        let mut written = [Vec::new(), Vec::new()];
        while scheduler.has_work() && written.iter().any(|w: &Vec<u32>| w.len() < 60) {
            for event in scheduler.step().expect("a step") {
                written[ids.iter().position(|id| *id == event.seq).expect("a known sequence")].push(event.token);
            }
        }
        let n = written.each_ref().map(Vec::len).into_iter().min().unwrap_or(0);
        (written.map(|w| w[..n].to_vec()), scheduler.stats())
    };
    let (alone, _) = write(DraftOptions::default());
    let (drafted, stats) = write(DraftOptions { max: 3, min: 3 });
    let n = alone[0].len().min(drafted[0].len());
    assert!(n >= 40, "{n} tokens");
    for (alone, drafted) in alone.iter().zip(&drafted) {
        assert_eq!(alone[..n], drafted[..n]);
    }
    assert!(stats.accepted_tokens > 20, "{stats:?}");
}

#[test]
fn sequences_with_a_q8_0_cache_share_pages_and_copy_them() {
    let kv = KvOptions { k: KvType::Q8_0, v: KvType::F16 };
    shared_prompt(&TinyModel::new(TinySpec::new("llama", &FLOATS[1..2])), kv);
}

#[test]
fn architectures_and_types_match_f64() {
    for (arch, types) in [("llama", &FLOATS[..]), ("qwen2", &SMALL_MIX), ("qwen3", &K_MIX)] {
        let model = TinyModel::new(TinySpec::new(arch, types));
        let mut engine = load(&model, 1, 512);
        for n in [1, 2, 5, 9, 70] {
            check(&model, &mut engine, n);
        }
    }
}

#[test]
fn mixtures_of_experts_match_f64() {
    let mixtral = TinySpec {
        experts: Some(TinyExperts { n: 5, n_used: 1, n_ff: 96 }),
        ..TinySpec::new("llama", &[GgmlType::F16, GgmlType::Q8_0])
    };
    for (spec, n_batch) in [
        // A shared expert with its gate; gate and up of different types.
        (TinySpec::new("qwen2moe", &[GgmlType::Q8_0, GgmlType::F16, GgmlType::Q5_0, GgmlType::Q4_K]), 512),
        (TinySpec::new("qwen3moe", &[GgmlType::Q4_K]), 512),
        // Biases, sinks, clamped activation, windows; pieces smaller than the window.
        (TinySpec { scaling: Scaling::Yarn(8.0, 64), ..TinySpec::new("gpt-oss", &[GgmlType::MXFP4]) }, 16),
        (mixtral, 512),
    ] {
        let model = TinyModel::new(spec);
        let mut engine = load(&model, 1, n_batch);
        for n in [1, 2, 9, 70] {
            check(&model, &mut engine, n);
        }
    }
}

/// Activations in bytes lose what llama.cpp's lose: the bound is that of the CPU backend's.
const LEAST_COSINE_IN_INTEGERS: f64 = 0.999;

#[test]
fn products_in_integers_are_near_f64_in_every_architecture() {
    let shared = [GgmlType::Q8_0, GgmlType::F16, GgmlType::Q5_0, GgmlType::Q4_K];
    for (spec, n_batch) in [
        (TinySpec::new("llama", &SMALL_MIX), 512),
        (TinySpec::new("qwen3", &K_MIX), 512),
        (TinySpec::new("qwen2moe", &shared), 512),
        (TinySpec { scaling: Scaling::Yarn(8.0, 64), ..TinySpec::new("gpt-oss", &[GgmlType::MXFP4]) }, 16),
    ] {
        let model = TinyModel::new(spec);
        let mut engine = load_with(&model, 1, n_batch, EngineOptions { integer_dot: true, ..EngineOptions::default() });
        for n in [1, 2, 9, 70] {
            let prompt = tokens(n, model.n_vocab, n as u64);
            let got = engine.prompt_logits(&prompt).unwrap_or_else(|e| panic!("{:?}, {n} tokens: {e}", model.spec));
            let cosine = cosine(&got, &model.reference_logits(&prompt));
            assert!(cosine >= LEAST_COSINE_IN_INTEGERS, "{:?}, {n} tokens: cosine {cosine}", model.spec);
            if n == 2 {
                assert!(cosine < 0.999_999_9, "{:?}: f32 was used: cosine {cosine}", model.spec);
            }
        }
    }
}

#[test]
fn the_rest_of_the_weight_types_match_f64() {
    let types = [GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::IQ4_NL, GgmlType::IQ4_XS, GgmlType::MXFP4];
    let model = TinyModel::new(TinySpec::new("qwen3", &types));
    let mut engine = load(&model, 1, 64);
    for n in [1, 3, 70] {
        check(&model, &mut engine, n);
    }
}

#[test]
fn layers_with_other_numbers_of_heads_match_f64() {
    let model = TinyModel::new(TinySpec { layer_heads: vec![(6, 2), (4, 1)], ..TinySpec::new("qwen3", &FLOATS[1..2]) });
    check(&model, &mut load(&model, 1, 16), 37);
}

#[test]
fn shapes_and_rope_variants_match_f64() {
    let base = TinySpec::new("llama", &FLOATS[1..2]);
    for spec in [
        TinySpec { scaling: Scaling::Linear(4.0), ..base.clone() },
        TinySpec { scaling: Scaling::Yarn(8.0, 64), n_rot: 32, ..TinySpec::new("qwen3", &FLOATS[1..2]) },
        TinySpec { rope_factors: true, n_head_kv: 4, ..base.clone() },
        // Widths that are no multiple of a vec4, a head that is no power of two.
        TinySpec { n_embd: 102, n_ff: 77, head_dim: 20, n_rot: 20, n_head_kv: 1, ..base },
    ] {
        let model = TinyModel::new(spec);
        check(&model, &mut load(&model, 1, 16), 37);
    }
}

#[test]
fn sequences_in_one_batch_do_not_see_each_other() {
    for arch in ["qwen3", "gpt-oss"] {
        sequences_in_one_batch(&TinyModel::new(TinySpec::new(arch, &FLOATS[1..2])));
    }
}

fn sequences_in_one_batch(model: &TinyModel) {
    let prompts: Vec<Vec<u32>> = (0..3).map(|s| tokens(4 + 17 * s, model.n_vocab, 40 + s as u64)).collect();
    let mut engine = load(model, 3, 128);
    // What an earlier sequence left in the slots must not matter.
    engine.prompt_logits(&tokens(90, model.n_vocab, 7)).expect("logits");
    let mut batch = Vec::new();
    for (s, prompt) in prompts.iter().enumerate() {
        batch.extend((0..).zip(prompt).map(|(pos, &token)| BatchToken {
            token,
            seq: s as u32,
            pos,
            output: pos as usize + 1 == prompt.len(),
        }));
    }
    let logits = engine.forward(&batch).expect("logits").to_vec();
    assert_eq!(logits.len(), 3 * model.n_vocab);
    for (row, prompt) in logits.chunks_exact(model.n_vocab).zip(&prompts) {
        let cosine = cosine(row, &model.reference_logits(prompt));
        assert!(cosine >= LEAST_COSINE, "{} tokens: cosine {cosine}", prompt.len());
    }
}

#[test]
fn a_batch_without_outputs_only_fills_the_cache() {
    let model = TinyModel::new(TinySpec::new("qwen2", &FLOATS[1..2]));
    let prompt = tokens(21, model.n_vocab, 5);
    let mut engine = load(&model, 1, 16);
    let whole = engine.prompt_logits(&prompt).expect("logits");
    let part = |range: std::ops::Range<usize>, output| -> Vec<BatchToken> {
        range.map(|i| BatchToken { token: prompt[i], seq: 0, pos: i as u32, output: output && i == 20 }).collect()
    };
    assert_eq!(engine.forward(&part(0..13, false)).expect("no logits"), &[] as &[f32]);
    let logits = engine.forward(&part(13..21, true)).expect("logits");
    let want: Vec<f64> = whole.into_iter().map(f64::from).collect();
    assert!(cosine(logits, &want) > 0.999_999, "the same in other pieces");
}

#[test]
fn sequences_that_share_a_prompt_write_what_they_would_write_alone() {
    shared_prompt(&TinyModel::new(TinySpec::new("llama", &FLOATS[1..2])), KvOptions::default());
}

fn shared_prompt(model: &TinyModel, kv: KvOptions) {
    let prompt = tokens(30, model.n_vocab, 8);
    let greedy = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
    let mut scheduler = Scheduler::new(load_with_cache(model, 2, 16, kv));
    let ids: Vec<_> = (0..2).map(|_| scheduler.start(&prompt, &greedy).expect("a sequence")).collect();
    let mut written = vec![Vec::new(); 2];
    while scheduler.has_work() && written.iter().any(|w: &Vec<u32>| w.len() < 6) {
        for event in scheduler.step().expect("a step") {
            let i = ids.iter().position(|id| *id == event.seq).expect("a known sequence");
            written[i].push(event.token);
        }
    }
    assert!(scheduler.stats().shared_tokens >= 29, "{:?}", scheduler.stats());
    let mut alone = prompt.clone();
    for _ in 0..written[0].len() {
        let logits = model.reference_logits(&alone);
        alone.push(logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("logits").0 as u32);
    }
    assert_eq!(written[0], alone[prompt.len()..], "the first");
    // The copied one started a step later or not: as far as both got.
    let n = written[0].len().min(written[1].len());
    assert!(n >= 5, "{written:?}");
    assert_eq!(written[1][..n], written[0][..n], "the one that was copied");
}

fn n_pipelines(engine: &mut Engine) -> usize {
    engine.vulkan().expect("Vulkan").gpu().n_pipelines()
}

/// One token, prompts of several lengths, several sequences' tokens, a prompt beside them, a pass without outputs.
fn batches(n_seq: u32, n_batch: usize) -> Vec<Vec<BatchToken>> {
    let token = |seq, pos, output| BatchToken { token: 7 + pos, seq, pos, output };
    let prompt = |n: usize| (0..n as u32).map(|pos| token(0, pos, pos + 1 == n as u32)).collect::<Vec<_>>();
    let decode = |n: u32, pos| (0..n).map(|seq| token(seq, pos, true)).collect::<Vec<_>>();
    let mut all = vec![decode(1, 0), decode(n_seq, 0), decode(n_seq, 1)];
    all.extend([2, 3, 5, 9, 17, n_batch].map(prompt));
    all.push([(0..20).map(|pos| token(0, pos, false)).collect(), decode(n_seq, 0)[1..].to_vec()].concat());
    all.push((0..9).map(|pos| token(1, pos, false)).collect());
    all
}

#[test]
fn passes_use_only_kernels_that_were_compiled_when_the_model_was_loaded() {
    let shared = [GgmlType::Q8_0, GgmlType::F16, GgmlType::Q5_0, GgmlType::Q4_K];
    let gpt_oss = TinySpec { scaling: Scaling::Yarn(8.0, 64), ..TinySpec::new("gpt-oss", &[GgmlType::MXFP4]) };
    for spec in [
        TinySpec::new("llama", &FLOATS[1..2]),
        // Gates and ups of two types, heads in groups of two sizes.
        TinySpec { layer_heads: vec![(6, 2), (4, 1)], ..TinySpec::new("qwen3", &SMALL_MIX) },
        TinySpec::new("qwen2moe", &shared),
        TinySpec::new("qwen3moe", &[GgmlType::Q4_K]),
        gpt_oss,
    ] {
        let model = TinyModel::new(spec);
        for integer_dot in [false, true] {
            let options = EngineOptions { integer_dot, ..EngineOptions::default() };
            let mut engine = load_with(&model, 4, 64, options);
            let n_prepared = n_pipelines(&mut engine);
            for batch in batches(4, 64) {
                engine.forward(&batch).unwrap_or_else(|e| panic!("{:?}: {e}", model.spec));
                let what = format!("{:?}, in integers {integer_dot}, {} tokens", model.spec, batch.len());
                assert_eq!(
                    n_pipelines(&mut engine),
                    n_prepared,
                    "{what}: a kernel was compiled in the middle of a pass"
                );
            }
        }
    }
}
