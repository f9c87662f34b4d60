//! Kernels timed on the device, and ops compared with the CPU backend's, in passes of a model: of a file, or of two
//! layers of random weights in the shapes and types of a published one.
//!
//! A timed kernel runs alone: it waits for the ones before, and what it reads has been flushed from the caches by the
//! rest of the pass, as in real use.

use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use engine::BackendChoice;
use engine::backend::vulkan::{DeviceInfo, Peaks};
use engine::trace::Difference;
use serde_json::json;

use super::Args;
use crate::failure::Failure;
use crate::measure::{Batch, Bench, KernelTime, Measured, ModelFile, device};
use crate::terminal::CountProgress;

/// Largest relative difference of an op that computes in f32: sums in another order, keys and values rounded to f16.
const F32_LIMIT: f64 = 1e-4;
/// The same where activations are rounded to 8 bits or f16 before a product.
const ROUNDED_LIMIT: f64 = 2e-2;

/// Times every kernel.
pub fn time(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let (info, peaks) = device(args.device_options(), true)?;
    let peaks = peaks.expect("measured");
    let model = model(args, &info, quiet)?;
    let batches = batches(args);
    let n_passes = batches.len() * (args.measure.repetitions + 1);
    let depth = args.measure.n_depth;
    let backend = BackendChoice::Vulkan;
    let mut bench =
        Bench::load(&model, backend, args.device_options(), args.measure.exact, &batches, (depth, n_passes))?;
    let mut progress = CountProgress::new("timing", batches.len(), quiet);
    let mut passes = Vec::new();
    for (i, &batch) in batches.iter().enumerate() {
        progress.set(i, batches.len(), &batch_text(batch));
        let mut measured = bench.time(batch, args.measure.repetitions)?;
        measured.keep(|kernel| args.filter.as_ref().is_none_or(|text| kernel.contains(text)));
        passes.push(measured);
    }
    progress.finish();
    if passes.iter().all(|p| p.ops.is_empty()) {
        return Err(nothing_left(args));
    }
    if args.json {
        let value = json!({
            "device": info.name, "driver": info.driver, "model": model.name, "peaks": peaks, "passes": passes,
        });
        return Ok(writeln!(out, "{value:#}")?);
    }
    writeln!(
        out,
        "{} ({})\nmeasured peaks: {:.1} GB/s read, {:.1} GB/s copied, {:.3} TFLOPS in f32{}\n{}",
        info.name,
        info.driver,
        peaks.read_gb_per_s,
        peaks.copy_gb_per_s,
        peaks.f32_tflops,
        peaks.matrix_tflops.map(|t| format!(", {t:.3} on matrix units")).unwrap_or_default(),
        model.name
    )?;
    for (batch, measured) in batches.iter().zip(&passes).filter(|(_, measured)| !measured.ops.is_empty()) {
        writeln!(out, "\n{}{}\n{}", batch_text(*batch), depth_text(measured), table(measured, &peaks))?;
    }
    Ok(())
}

/// Compares every op with the CPU backend's.
pub fn check(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let (info, _) = device(args.device_options(), false)?;
    let model = model(args, &info, quiet)?;
    let batches = batches(args);
    let sizes = (args.measure.n_depth, 3 * batches.len());
    let vulkan = BackendChoice::Vulkan;
    let mut ours = Bench::load(&model, vulkan, args.device_options(), args.measure.exact, &batches, sizes)?;
    let mut twin = Bench::load(&model, BackendChoice::Cpu, Default::default(), true, &batches, sizes)?;
    let mut progress = CountProgress::new("comparing", batches.len(), quiet);
    let (mut rows, mut n_off) = (Vec::new(), 0);
    for (i, &batch) in batches.iter().enumerate() {
        progress.set(i, batches.len(), &batch_text(batch));
        let failed = |e: engine::Error| Failure::engine(&model.path, &e);
        // Both make the same tokens. What fills the cache is compared too, so that both caches hold the same.
        let mut differences = Vec::new();
        for (tokens, same) in ours.passes(batch).into_iter().zip(twin.passes(batch)) {
            let traced = twin.engine.trace(&same).map_err(failed)?;
            differences = ours.engine.compare(&tokens, &traced).map_err(failed)?;
        }
        for d in differences {
            let names = &d.kernels;
            if args.filter.as_ref().is_some_and(|text| !names.iter().any(|n| n.contains(text))) {
                continue;
            }
            let is_f32 = names.iter().all(|n| n.starts_with("f32_"));
            let limit = if is_f32 { F32_LIMIT } else { ROUNDED_LIMIT };
            let is_close = d.relative <= limit;
            n_off += usize::from(!is_close);
            rows.push(Compared { batch, difference: d, limit, is_close });
        }
    }
    progress.finish();
    if rows.is_empty() {
        return Err(nothing_left(args));
    }
    if args.json {
        let ops: Vec<_> = rows
            .iter()
            .map(|row| {
                let d = &row.difference;
                json!({
                    "n_tokens": row.batch.n_tokens(), "n_seq": row.batch.n_seq(), "layer": d.layer, "op": d.op,
                    "kernels": d.kernels, "relative": number(d.relative), "largest": number(d.largest),
                    "limit": row.limit, "close": row.is_close,
                })
            })
            .collect();
        let value = json!({
            "device": info.name, "driver": info.driver, "model": model.name, "n_off": n_off, "ops": ops,
        });
        writeln!(out, "{value:#}")?;
    } else {
        let table = worst_table(&rows);
        writeln!(out, "{} ({})\n{}\n{table}", info.name, info.driver, model.name)?;
        writeln!(out, "{} ops compared with the CPU's, {n_off} of them off", rows.len())?;
    }
    match n_off {
        0 => Ok(()),
        n => Err(Failure::new(
            format!("{n} of {} ops are further from the CPU's than they may be", rows.len()),
            "`--filter KERNEL` shows one; `--shaders DIR` tries an edit",
        )),
    }
}

/// A filter that leaves no kernel of the model.
fn nothing_left(args: &Args) -> Failure {
    let text = args.filter.as_deref().unwrap_or_default();
    Failure::new(format!("no kernel of this model has {text:?} in its name (--filter)"), "leave --filter out")
}

/// An op and its twin.
struct Compared {
    batch: Batch,
    difference: Difference,
    limit: f64,
    is_close: bool,
}

/// Of each op and the kernels that computed it, how often it was compared and where it was furthest off.
fn worst_table(rows: &[Compared]) -> Table {
    let mut table = new_table(&["op", "kernels", "compared", "difference", "largest", "limit", "worst in", ""], 2);
    let key = |row: &Compared| (row.difference.op.clone(), row.difference.kernels.clone());
    let mut seen = Vec::new();
    for row in rows {
        if seen.contains(&key(row)) {
            continue;
        }
        seen.push(key(row));
        let same: Vec<&Compared> = rows.iter().filter(|other| key(other) == key(row)).collect();
        let by_difference = |a: &&&Compared, b: &&&Compared| a.difference.relative.total_cmp(&b.difference.relative);
        let worst = same.iter().max_by(by_difference).expect("the row itself");
        let layer = worst.difference.layer.map(|il| format!(", layer {il}")).unwrap_or_default();
        table.add_row([
            row.difference.op.clone(),
            row.difference.kernels.join(" "),
            same.len().to_string(),
            format!("{:.1e}", worst.difference.relative),
            format!("{:.1e}", worst.difference.largest),
            format!("{:.0e}", row.limit),
            format!("{}{layer}", batch_text(worst.batch)),
            if same.iter().all(|r| r.is_close) { "" } else { "OFF" }.to_owned(),
        ]);
    }
    table
}

fn model(args: &Args, info: &DeviceInfo, quiet: bool) -> Result<ModelFile, Failure> {
    match &args.measure.model {
        Some(path) => Ok(ModelFile::given(path)),
        None if args.like.is_given() => ModelFile::like(&args.like, info.is_cpu(), quiet),
        None => Err(Failure::Usage(
            "name a model to measure on: -m FILE, or --like NAME for random weights in its shapes".to_owned(),
        )),
    }
}

/// Prompts last: they start their sequence over.
fn batches(args: &Args) -> Vec<Batch> {
    let prompts = args.measure.prompt.iter().filter(|n| **n > 0).map(|n| Batch::Prompt(*n));
    args.measure.columns.iter().map(|n| Batch::Columns(*n)).chain(prompts).collect()
}

fn batch_text(batch: Batch) -> String {
    match batch {
        Batch::Columns(1) => "1 column".to_owned(),
        Batch::Columns(n) => format!("{n} columns"),
        Batch::Prompt(n) => format!("prompt of {n}"),
    }
}

fn depth_text(measured: &Measured) -> String {
    if measured.depth > 0 { format!(" at depth {}", measured.depth) } else { String::new() }
}

/// JSON has no infinity.
fn number(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

fn new_table(header: &[&str], n_left: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(n_left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn table(measured: &Measured, peaks: &Peaks) -> Table {
    let header =
        ["op", "kernel", "constants", "n", "µs each", "range", "MB", "GB/s", "of peak", "GFLOPS", "of peak", "of all"];
    let mut table = new_table(&header, 3);
    let all_us: f64 = measured.ops.iter().map(|op| op.us).sum();
    for op in &measured.ops {
        for k in &op.kernels {
            let constants: Vec<String> = k.constants.iter().map(u32::to_string).collect();
            table.add_row([
                op.op.clone(),
                k.kernel.clone(),
                constants.join(","),
                k.n_dispatches.to_string(),
                format!("{:.1}", k.us),
                format!("{:.1}–{:.1}", k.us_range[0], k.us_range[1]),
                format!("{:.2}", k.bytes as f64 / 1e6),
                format!("{:.1}", k.gb_per_s),
                format!("{:.0} %", 100.0 * k.gb_per_s / peaks.gb_per_s()),
                format!("{:.1}", k.tflops * 1e3),
                peaks.tflops_of(&k.kernel).map(|peak| format!("{:.0} %", 100.0 * k.tflops / peak)).unwrap_or_default(),
                format!("{:.0} %", 100.0 * k.us * k.n_dispatches as f64 / all_us),
            ]);
        }
    }
    table
}

impl Measured {
    /// Keeps the kernels whose names are wanted.
    fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        for op in &mut self.ops {
            op.kernels.retain(|k| wanted(&k.kernel));
            op.us = op.kernels.iter().map(|k: &KernelTime| k.us * k.n_dispatches as f64).sum();
        }
        self.ops.retain(|op| !op.kernels.is_empty());
    }
}
