//! `aimo-engine devices`: what a model can run on: the Vulkan devices of this machine, and its CPU.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use engine::backend::cpu::SimdLevel;
use engine::backend::vulkan::{DeviceInfo, DeviceKind, VulkanError, devices};
use serde_json::json;

use crate::commands::bench::cpu_name;
use crate::failure::Failure;
use crate::terminal::bytes_text;

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. A machine without Vulkan is no failure: it has its CPU.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let (vulkan, problem) = match devices() {
        Ok(devices) => (devices, None),
        Err(e @ (VulkanError::NoLoader { .. } | VulkanError::NoDevice)) => (Vec::new(), Some(e.to_string())),
        Err(e) => return Err(Failure::new(e.to_string(), "`--backend cpu` works without Vulkan")),
    };
    let (cpu, n_cores) = (cpu_name(), std::thread::available_parallelism().map_or(1, usize::from));
    let simd = SimdLevel::detect().name();
    if args.json {
        let value = json!({
            "vulkan": vulkan.iter().map(device_json).collect::<Vec<_>>(),
            "vulkan_problem": problem,
            "cpu": { "name": cpu, "n_cores": n_cores, "simd": simd },
        });
        writeln!(out, "{value:#}")?;
        return Ok(());
    }
    if !vulkan.is_empty() {
        writeln!(out, "{}", table(&vulkan))?;
    }
    if let Some(problem) = problem {
        writeln!(out, "Vulkan: {problem}")?;
    }
    writeln!(out, "CPU: {cpu}, {n_cores} cores, {simd}")?;
    Ok(())
}

fn table(devices: &[DeviceInfo]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["--device", "name", "kind", "driver", "Vulkan", "memory", "subgroup", "features"]);
    for d in devices {
        let features =
            if d.is_usable() { d.features.join(", ") } else { format!("not usable: lacks {}", d.missing.join(", ")) };
        table.add_row([
            d.index.to_string(),
            d.name.clone(),
            kind_name(d.kind).to_owned(),
            d.driver.clone(),
            format!("{}.{}.{}", d.api_version.0, d.api_version.1, d.api_version.2),
            bytes_text(d.memory_bytes),
            d.subgroup_size.to_string(),
            features,
        ]);
    }
    table
}

fn device_json(d: &DeviceInfo) -> serde_json::Value {
    json!({
        "index": d.index,
        "name": d.name,
        "kind": kind_name(d.kind),
        "driver": d.driver,
        "api_version": format!("{}.{}.{}", d.api_version.0, d.api_version.1, d.api_version.2),
        "memory_bytes": d.memory_bytes,
        "subgroup_size": d.subgroup_size,
        "features": d.features,
        "missing": d.missing,
        "usable": d.is_usable(),
    })
}

fn kind_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Discrete => "discrete",
        DeviceKind::Integrated => "integrated",
        DeviceKind::Virtual => "virtual",
        DeviceKind::Other => "other",
        DeviceKind::Cpu => "software",
    }
}
