//! Every kernel compiled by AMD's driver for gfx1151, which RADV does on any machine (its null device): all must
//! compile, and none may spill registers. Skipped, with a message, where RADV or its null device is not there.

use std::process::Command;

use engine::backend::vulkan::{DeviceOptions, Inspector, compile_only_environment};

/// Set in the process that does the work: the driver reads its environment when it starts.
const CHILD: &str = "AIMO_ENGINE_TEST_RADV";

#[test]
fn every_kernel_compiles_for_gfx1151_without_spills() {
    if std::env::var_os(CHILD).is_some() {
        return compile_all();
    }
    let Some(environment) = compile_only_environment("gfx1151") else {
        println!("skipped: RADV is not installed (Debian and Ubuntu: package mesa-vulkan-drivers)");
        return;
    };
    let output = child(environment);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    print!("{text}");
    assert!(output.status.success(), "kernels for gfx1151: {}", output.status);
}

fn child(environment: [(&str, String); 3]) -> std::process::Output {
    let cache = tempfile::tempdir().expect("a temporary folder");
    Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "every_kernel_compiles_for_gfx1151_without_spills", "--nocapture"])
        .env(CHILD, "1")
        .envs(environment)
        .env("XDG_CACHE_HOME", cache.path())
        .output()
        .expect("this program starts again")
}

/// In the child: compiles all variants and prints what matters of their code.
fn compile_all() {
    let mut inspector = match Inspector::open(DeviceOptions::default()) {
        Ok(inspector) => inspector,
        Err(error) => {
            println!("skipped: this RADV has no null device for gfx1151 (Mesa 25.0 does): {error}");
            return;
        }
    };
    println!("{}: {}", inspector.info().name, inspector.info().driver);
    let variants = inspector.variants();
    assert!(variants.len() > 200, "all kernels and variants: {}", variants.len());
    inspector.prepare(&variants).expect("all kernels compile");
    let mut spilling = Vec::new();
    for variant in variants {
        let report = inspector.report(&variant).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
        let Some(spills) = report.spills else { panic!("{report:?} has no count of spills") };
        println!("{report:?}");
        assert!(report.waves.is_some_and(|n| n > 0), "{report:?}");
        if spills > 0 {
            spilling.push(report.clone());
        }
    }
    assert!(spilling.is_empty(), "these kernels spill registers: {spilling:#?}");
}
