//! Every kernel compiled by AMD's driver for gfx1151, which RADV does on any machine (its null device): all must
//! compile, none may spill registers, and the code must be what `docs/kernels.md` and the records in `benches/runs` say:
//! byte products where integers are multiplied, matrix products where there are tiles in f16, and waves enough to keep
//! the bus busy while a token is decoded.
//!
//! RADV comes in the package that brings lavapipe, so the test fails without it. Mesa 26 has no null device: then the
//! test says so and passes; with AIMO_NEED_RADV set it fails.

use std::io::Write as _;
use std::process::Command;

use engine::backend::vulkan::{CodeReport, DeviceOptions, Inspector, VulkanError, compile_only_environment};

/// Set in the process that does the work: the driver reads its environment when it starts.
const CHILD: &str = "AIMO_ENGINE_TEST_RADV";

#[test]
fn every_kernel_is_compiled_for_gfx1151_to_the_code_it_was_made_for() {
    if std::env::var_os(CHILD).is_some() {
        return compile_all();
    }
    let environment = compile_only_environment("gfx1151")
        .expect("this test needs RADV (Debian and Ubuntu: package mesa-vulkan-drivers)");
    let output = child(environment);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    print!("{text}");
    if let Some(line) = text.lines().find(|line| line.contains(SKIPPED)) {
        // Past the capture of a test's output.
        writeln!(std::io::stderr(), "{line}").expect("standard error");
    }
    assert!(output.status.success(), "kernels for gfx1151: {}", output.status);
}

fn child(environment: [(&str, String); 3]) -> std::process::Output {
    let cache = tempfile::tempdir().expect("a temporary folder");
    Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "every_kernel_is_compiled_for_gfx1151_to_the_code_it_was_made_for", "--nocapture"])
        .env(CHILD, "1")
        .envs(environment)
        .env("XDG_CACHE_HOME", cache.path())
        .output()
        .expect("this program starts again")
}

/// What the message of a child begins with that has nothing to compile for.
const SKIPPED: &str = "skipped: ";

/// RADV as if it were on the chip; `None` where it has no null device.
fn open() -> Option<Inspector> {
    let found = match Inspector::open(DeviceOptions::default()) {
        Err(VulkanError::NoDevice) => None,
        other => Some(other.unwrap_or_else(|e| panic!("RADV for gfx1151: {e}"))),
    };
    // Without the null device, RADV may still be there for other hardware of this machine.
    let found = found.filter(|inspector| inspector.info().name.contains("GFX1151"));
    if found.is_none() {
        assert!(std::env::var_os("AIMO_NEED_RADV").is_none(), "RADV has no null device for gfx1151");
        println!("{SKIPPED}this RADV has no null device for gfx1151 (Mesa 25.0 does)");
    }
    found
}

/// In the child: compiles all variants, prints what matters of their code and checks it.
fn compile_all() {
    let Some(mut inspector) = open() else { return };
    println!("{}: {}", inspector.info().name, inspector.info().driver);
    let variants = inspector.variants();
    assert!(variants.len() > 900, "all kernels and variants: {}", variants.len());
    inspector.prepare(&variants).expect("all kernels compile");
    let mut wrong = Vec::new();
    for variant in variants {
        let report = inspector.report(&variant).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
        println!("{report:?}");
        wrong.extend(objections(&report).into_iter().map(|what| format!("{what}: {report:?}")));
    }
    assert!(
        wrong.is_empty(),
        "{} of the kernels' figures are not those of gfx1151:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What is not as it should be.
fn objections(report: &CodeReport) -> Vec<&'static str> {
    let mix = report.mix.unwrap_or_default();
    let rules = [
        (report.spills == Some(0), "registers are spilled, or it isn't known"),
        (report.waves >= Some(least_waves(report)), "too few waves"),
        (report.dot4 > 0 || !report.kernel.starts_with("q8_"), "no v_dot4_i32_iu8"),
        (report.wmma > 0 || !report.kernel.starts_with("f16_"), "no v_wmma"),
        (report.instructions == Some(mix.total()), "the parts of the mix are not the instructions counted"),
        (mix.valu >= report.dot4 + report.wmma, "products that are no vector instructions"),
    ];
    rules.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
}

/// Waves per SIMD that a kernel must leave room for. 12 of 32 lanes have what the bus needs under way; fewer only where
/// the bus is not the bound, or where `Tuning::of` says why it is enough.
fn least_waves(report: &CodeReport) -> u64 {
    let kernel = &*report.kernel;
    let is_any = |names: &[&str]| names.iter().any(|name| kernel.ends_with(name));
    match report.constants[..] {
        // Prompts, bound by products: tiles in shared memory, sums in registers.
        _ if kernel.starts_with("f16_") && is_any(&["matmul"]) => 4,
        _ if kernel == "f16_anykv_prompt_attention" => 6,
        _ if is_any(&["matmul", "prompt_attention"]) => 1,
        // 16 columns: sums of 4 rows in integers, or of 2 in f32.
        [_, _, 16, ..] if is_any(&["matvec"]) => 10,
        // Few columns in integers, which are most of what a decoded token runs.
        [_, _, 1 | 2, ..] if kernel.starts_with("q8_") && is_any(&["matvec"]) => 16,
        _ => 12,
    }
}
