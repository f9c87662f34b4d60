//! Every kernel compiled by AMD's driver for gfx1151, which RADV does on any machine (its null device): all must
//! compile, and none may spill registers. Skipped, with a message, where RADV or its null device is not there.

use std::path::Path;
use std::process::Command;

use engine::backend::vulkan::Inspector;

/// Set in the process that does the work: the driver reads its environment when it starts.
const CHILD: &str = "AIMO_ENGINE_TEST_RADV";

#[test]
fn every_kernel_compiles_for_gfx1151_without_spills() {
    if std::env::var_os(CHILD).is_some() {
        return compile_all();
    }
    let folders = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
    let manifest = folders
        .iter()
        .flat_map(|f| std::fs::read_dir(f).into_iter().flatten().flatten())
        .map(|e| e.path())
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("radeon_icd")));
    let Some(manifest) = manifest else {
        println!("skipped: RADV is not installed (Debian and Ubuntu: package mesa-vulkan-drivers)");
        return;
    };
    let output = child(&manifest);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    print!("{text}");
    assert!(output.status.success(), "kernels for gfx1151: {}", output.status);
}

fn child(manifest: &Path) -> std::process::Output {
    let cache = tempfile::tempdir().expect("a temporary folder");
    Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "every_kernel_compiles_for_gfx1151_without_spills", "--nocapture"])
        .env(CHILD, "1")
        .env("RADV_FORCE_FAMILY", "gfx1151")
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .env("VK_DRIVER_FILES", manifest)
        .env("XDG_CACHE_HOME", cache.path())
        .output()
        .expect("this program starts again")
}

/// In the child: compiles all variants and prints what matters of their statistics.
fn compile_all() {
    let mut inspector = match Inspector::open(None) {
        Ok(inspector) => inspector,
        Err(error) => {
            println!("skipped: this RADV has no null device for gfx1151 (Mesa 25.0 does): {error}");
            return;
        }
    };
    println!("{}: {}", inspector.info().name, inspector.info().driver);
    let variants = inspector.variants();
    assert!(variants.len() > 60, "all kernels and variants: {}", variants.len());
    let mut spilling = Vec::new();
    for variant in variants {
        let name = format!("{} {:?}", variant.kernel.name(), variant.constants);
        let statistics = inspector.statistics(&variant).unwrap_or_else(|e| panic!("{name}: {e}"));
        let value = |wanted: &str| statistics.iter().find(|(n, _)| n == wanted).map(|(_, v)| *v);
        let spills = value("Spilled SGPRs").zip(value("Spilled VGPRs")).zip(value("Scratch size"));
        let Some(((sgprs, vgprs), scratch)) = spills else { panic!("{name}: statistics {statistics:?}") };
        let shown = |wanted| value(wanted).map_or("?".to_owned(), |v| v.to_string());
        println!(
            "{name}: {} VGPRs, {} bytes of code, {} bytes of LDS, latency {}, inverse throughput {}",
            shown("VGPRs"),
            shown("Code size"),
            shown("LDS size"),
            shown("Latency"),
            shown("Inverse Throughput"),
        );
        if sgprs + vgprs + scratch > 0.0 {
            spilling.push(name);
        }
    }
    assert!(spilling.is_empty(), "these kernels spill registers: {spilling:#?}");
}
