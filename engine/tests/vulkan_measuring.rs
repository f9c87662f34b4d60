//! What is said of a pass on the software device: as many dispatches and bytes as the roofline counts, times of every
//! kernel, submits that follow what earlier ones took, and ops that agree with the CPU's, under the validation layers.

mod vulkan_support;

use engine::backend::BatchToken;
use engine::backend::vulkan::kernels::probe;
use engine::backend::vulkan::{Cost, DeviceOptions, MemoryUse, PassStats, Tuning, measure_peaks};
use engine::roofline::{Pass, Roofline};
use engine::synth::{Plan, SynthOptions, Target, WriteOptions};
use engine::{BackendChoice, Engine, EngineOptions};
use vulkan_support::software_device;

/// Two narrow layers in the shape of `name`.
fn model(folder: &std::path::Path, name: &str) -> std::path::PathBuf {
    let target = Target::find(name).expect("a target");
    let n_expert = target.moe.map(|moe| moe.n_expert.min(8));
    let options =
        SynthOptions { n_layer: Some(2), n_expert, n_vocab: Some(4096), shrink: 8, ..SynthOptions::new(target) };
    let path = folder.join(format!("{name}.gguf"));
    let plan = Plan::new(&options, None).expect("a plan");
    plan.write(&path, &WriteOptions::default(), &mut |_, _| Ok(())).expect("written");
    path
}

fn load(path: &std::path::Path, backend: BackendChoice) -> Engine {
    load_as(path, backend, true)
}

/// With products in f32, or those of a few tokens in integers.
fn load_as(path: &std::path::Path, backend: BackendChoice, exact: bool) -> Engine {
    let options = EngineOptions {
        backend,
        device: (backend == BackendChoice::Vulkan).then(software_device),
        n_ctx: 64,
        n_seq: 4,
        n_batch: 32,
        exact,
        integer_dot: !exact,
        validation: true,
        ..EngineOptions::default()
    };
    Engine::load(path, &options, &mut |_, _| {}).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One token in each of `n_seq` sequences, at position `pos`.
fn step(n_seq: usize, pos: u32) -> Vec<BatchToken> {
    (0..n_seq as u32).map(|seq| BatchToken { token: 7 + 3 * seq + pos, seq, pos, output: true }).collect()
}

fn last_pass(engine: &mut Engine) -> PassStats {
    engine.vulkan().expect("Vulkan").gpu().last_pass()
}

const MODELS: [&str; 4] = ["qwen3-0.6b", "qwen2.5-coder-7b", "gpt-oss-20b", "qwen1.5-moe-a2.7b"];

#[test]
fn a_pass_has_the_dispatches_and_bytes_of_the_roofline() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in MODELS {
        let path = model(folder.path(), name);
        for exact in [true, false] {
            let mut engine = load_as(&path, BackendChoice::Vulkan, exact);
            let tuning = *engine.vulkan().expect("Vulkan").tuning();
            let roofline = Roofline::new(engine.gguf().header()).expect("a model").with_tuning(tuning);
            let what = format!("{name}, exact {exact}");
            steps_are_as_counted(&mut engine, &roofline, &what);
            prompts_are_as_counted(&mut engine, &roofline, &what);
        }
    }
}

fn steps_are_as_counted(engine: &mut Engine, roofline: &Roofline, what: &str) {
    for n_seq in [1, 3] {
        // The first sequence starts over in the second step.
        let batch = step(n_seq, 0);
        engine.forward(&batch).expect("a pass");
        let pass = last_pass(engine);
        let account = roofline.account(Pass { n_seq, n_tokens: 1, depth: 0 }).expect("an account").total();
        let what = format!("{what}, {n_seq} sequences: {pass:?}, {account:?}");
        assert_eq!(pass.n_dispatches as usize, account.n_dispatches, "{what}");
        assert_eq!(pass.n_submits, 1, "{what}");
        let bytes = (pass.cost.read_bytes + pass.cost.written_bytes) as f64;
        assert!((bytes / account.bytes() - 1.0).abs() < 0.1, "{bytes} bytes; {what}");
        assert!((pass.cost.flops as f64 / account.flops - 1.0).abs() < 0.1, "{what}");
        assert!(pass.device_ns.is_some_and(|ns| ns > 0), "{what}");
    }
}

/// Prompts, whose attention may be computed in tiles.
fn prompts_are_as_counted(engine: &mut Engine, roofline: &Roofline, what: &str) {
    for n_tokens in [2, 20, 32] {
        let token = |i: u32| BatchToken { token: i, seq: 0, pos: i, output: i + 1 == n_tokens };
        engine.forward(&(0..n_tokens).map(token).collect::<Vec<_>>()).expect("a pass");
        let pass = Pass { n_seq: 1, n_tokens: n_tokens as usize, depth: 0 };
        let account = roofline.account(pass).expect("an account").total();
        let found = last_pass(engine).n_dispatches as usize;
        assert_eq!(found, account.n_dispatches, "{what}, a prompt of {n_tokens}");
    }
}

#[test]
fn a_profile_times_every_dispatch_and_changes_no_result() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = model(folder.path(), "gpt-oss-20b");
    let (mut plain, mut profiled) = (load(&path, BackendChoice::Vulkan), load(&path, BackendChoice::Vulkan));
    for pos in 0..3 {
        let batch = step(2, pos);
        let want = plain.forward(&batch).expect("a pass").to_vec();
        let ops = profiled.profile(&batch).expect("a pass").expect("lavapipe has timestamps");
        let n: usize = ops.iter().map(|op| op.dispatches.len()).sum();
        assert_eq!(n, last_pass(&mut profiled).n_dispatches as usize);
        assert!(ops.iter().flat_map(|op| &op.dispatches).all(|d| d.ns >= 0.0));
        let of_all: f64 = ops.iter().flat_map(|op| &op.dispatches).map(|d| d.ns).sum();
        assert!(of_all > 0.0 && of_all <= last_pass(&mut profiled).device_ns.expect("timestamps") as f64);
        assert!(ops.iter().any(|op| op.op == "experts → X" && op.layer == Some(1)), "{ops:?}");
        // The cache holds what it should: the next pass without profiling gives the same.
        let next = step(2, pos + 1);
        let (a, b) = (plain.forward(&next).expect("a pass").to_vec(), profiled.forward(&next).expect("a pass"));
        assert_eq!(a, b);
        assert!(want.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn every_op_agrees_with_the_cpu() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in MODELS {
        let path = model(folder.path(), name);
        let (mut gpu, mut cpu) = (load(&path, BackendChoice::Vulkan), load(&path, BackendChoice::Cpu));
        for pos in 0..2 {
            let batch = step(3, pos);
            let twin = cpu.trace(&batch).expect("a pass");
            for d in gpu.compare(&batch, &twin).expect("a pass") {
                assert!(d.relative < 5e-4 && !d.kernels.is_empty(), "{name}: {d:?}");
            }
        }
    }
}

/// With the device's clock and with the processor's.
#[test]
fn submits_become_as_small_as_the_device_is_slow() {
    for no_timestamps in [false, true] {
        let mut gpu = vulkan_support::gpu_with(DeviceOptions { no_timestamps, ..DeviceOptions::default() });
        // A millisecond, in which the device is expected to do much more than the pass.
        let submit_work = Cost { read_bytes: 1 << 50, written_bytes: 1 << 50, flops: 1 << 44 };
        gpu.set_tuning(Tuning { submit_ms: 1, submit_work, ..*gpu.tuning() });
        let n_groups = 16;
        let bytes = u64::from(n_groups * probe::WORKGROUP) * 16;
        let region = gpu.allocate(MemoryUse::Device, bytes, "results").expect("memory");
        let mut submits = Vec::new();
        for _ in 0..12 {
            gpu.begin().expect("a pass");
            for _ in 0..40 {
                probe::record_fma(&mut gpu, &region, [0.5, 1.0], 4000, n_groups).expect("a kernel");
            }
            gpu.submit_and_wait().expect("a pass");
            assert_eq!(gpu.last_pass().device_ns.is_none(), no_timestamps);
            submits.push(gpu.last_pass().n_submits);
        }
        assert_eq!(submits[0], 1, "nothing was known: {submits:?}");
        // One for each kernel, and the last with the barrier for the host.
        assert_eq!(submits[11], 41, "each kernel takes longer than the budget: {submits:?}");
    }
}

#[test]
fn peaks_are_measured() {
    let peaks = measure_peaks(&mut vulkan_support::gpu()).expect("peaks");
    let all = [peaks.read_gb_per_s, peaks.copy_gb_per_s, peaks.f32_tflops];
    assert!(all.iter().all(|x| x.is_finite() && *x > 0.0), "{peaks:?}");
    assert_eq!(peaks.gb_per_s(), peaks.read_gb_per_s.max(peaks.copy_gb_per_s));
    assert!(peaks.matrix_tflops.is_none_or(|x| x.is_finite() && x > 0.0), "{peaks:?}");
    let of = |kernel: &str| peaks.tflops_of(kernel);
    assert_eq!(of("f32_q4_kw_matvec"), Some(peaks.f32_tflops));
    assert_eq!((of("f16_q4_kw_matmul"), of("q8_q4_kw_matvec")), (peaks.matrix_tflops, None));
}
