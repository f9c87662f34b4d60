//! What a driver makes of the kernels: a table of registers, waves, spills and sizes, the code itself, and what is
//! different from an earlier listing.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use comfy_table::{ContentArrangement, Table, presets};
use engine::backend::vulkan::{CodeReport, Inspector, VulkanError, compile_only_environment};
use serde::{Deserialize, Serialize};

use super::{Args, failure};
use crate::failure::Failure;
use crate::terminal::CountProgress;

/// Variants that are compiled before progress is shown again.
const CHUNK: usize = 16;

/// What is shown, and what `--diff` reads.
#[derive(Serialize, Deserialize)]
struct Listing {
    device: String,
    driver: String,
    kernels: Vec<CodeReport>,
}

/// Two versions of a variant; either may be missing.
#[derive(Serialize)]
struct Change {
    kernel: String,
    constants: Vec<u32>,
    before: Option<CodeReport>,
    after: Option<CodeReport>,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    if let Some(isa) = &args.isa
        && std::env::var_os("RADV_FORCE_FAMILY").is_none_or(|family| family != isa.as_str())
    {
        return run_as_if_there(isa, out);
    }
    let old = args.diff.as_deref().map(read_listing).transpose()?;
    let failed = |e: VulkanError| failure(args, &e);
    let mut inspector = Inspector::open(args.device_options()).map_err(failed)?;
    let mut variants = inspector.variants();
    variants.retain(|v| args.filter.as_ref().is_none_or(|text| v.kernel.name().contains(text)));
    if variants.is_empty() {
        let text = args.filter.as_deref().unwrap_or_default();
        return Err(Failure::new(format!("no kernel's name holds {text:?}"), "without --filter all are listed"));
    }
    if args.code {
        variants.truncate(1);
    }
    let mut progress = CountProgress::new("compiling kernels", variants.len(), quiet);
    for (i, chunk) in variants.chunks(CHUNK).enumerate() {
        progress.set(i * CHUNK, variants.len(), &chunk[0].kernel.name());
        inspector.prepare(chunk).map_err(failed)?;
    }
    progress.finish();
    if args.code {
        for (name, text) in inspector.texts(&variants[0]).map_err(failed)? {
            writeln!(out, "; {} {:?}: {name}\n{text}", variants[0].kernel.name(), variants[0].constants)?;
        }
        return Ok(());
    }
    let kernels = variants.iter().map(|v| inspector.report(v)).collect::<Result<_, _>>().map_err(failed)?;
    let info = inspector.info();
    let new = Listing { device: info.name.clone(), driver: info.driver.clone(), kernels };
    match (old, args.json) {
        (Some(old), json) => show_changes(&changes(old, new), json, out),
        (None, true) => Ok(writeln!(out, "{}", json_text(&new))?),
        (None, false) => {
            writeln!(out, "{} ({})\n{}", new.device, new.driver, table(&new.kernels))?;
            Ok(writeln!(out, "{}", summary(&new.kernels))?)
        }
    }
}

/// Runs this command again in a process whose Vulkan driver takes itself to be on that chip.
fn run_as_if_there(isa: &str, out: &mut impl Write) -> Result<(), Failure> {
    let environment = compile_only_environment(isa).ok_or_else(|| {
        Failure::new("--isa needs AMD's driver RADV", "install it (Debian and Ubuntu: package mesa-vulkan-drivers)")
    })?;
    let program = std::env::current_exe().map_err(|e| Failure::plain(format!("this program can't be found: {e}")))?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .envs(environment)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| Failure::plain(format!("this program can't be started again: {e}")))?;
    let copied = std::io::copy(child.stdout.as_mut().expect("standard output is piped"), out);
    // A reader that went away closes the child's pipe too.
    drop(child.stdout.take());
    let status = child.wait()?;
    copied?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Status(code as u8)),
        None => Err(Failure::new(
            format!("AMD's driver stopped while it compiled for {isa}: {status}"),
            "check the chip's name, such as gfx1151",
        )),
    }
}

fn read_listing(path: &Path) -> Result<Listing, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))?;
    serde_json::from_str(&text).map_err(|e| {
        Failure::new(format!("{}: {e}", path.display()), "`aimo-engine kernels --json` writes such a file")
    })
}

fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data can be written")
}

/// The line below the table: how many kernels spill, as far as the driver tells.
fn summary(kernels: &[CodeReport]) -> String {
    let n_spilling = kernels.iter().filter(|k| k.spills.is_some_and(|n| n > 0)).count();
    let n_unknown = kernels.iter().filter(|k| k.spills.is_none()).count();
    let n = kernels.len();
    match n_unknown {
        0 => format!("{n} variants, {n_spilling} of them spill registers"),
        _ if n_unknown == n => format!("{n} variants; the driver doesn't tell which of them spill registers"),
        _ => format!("{n} variants, {n_spilling} of them spill registers, of {n_unknown} the driver doesn't tell"),
    }
}

/// Whether two reports are of the same code. What a listing that was written earlier doesn't have is no difference.
fn is_same_code(before: &CodeReport, after: &CodeReport) -> bool {
    let both_have_mixes = before.mix.is_some() && after.mix.is_some();
    let compared = |k: &CodeReport| CodeReport { mix: k.mix.filter(|_| both_have_mixes), ..k.clone() };
    compared(before) == compared(after)
}

/// What is different between two listings. Where only a part was compiled (`--filter`), the rest is not missing.
fn changes(old: Listing, new: Listing) -> Vec<Change> {
    let partner = |all: &[CodeReport], one: &CodeReport| all.iter().find(|k| k.is_same_variant(one)).cloned();
    let names: Vec<&str> = new.kernels.iter().map(|k| &*k.kernel).collect();
    let gone = old.kernels.iter().filter(|k| names.contains(&&*k.kernel) && partner(&new.kernels, k).is_none());
    let gone = gone.map(|k| (Some(k.clone()), None));
    let there = new.kernels.iter().map(|k| (partner(&old.kernels, k), Some(k.clone())));
    there
        .chain(gone)
        .filter(|(before, after)| !before.as_ref().zip(after.as_ref()).is_some_and(|(b, a)| is_same_code(b, a)))
        .map(|(before, after)| {
            let one = after.as_ref().or(before.as_ref()).expect("one of the two is there");
            Change { kernel: one.kernel.clone(), constants: one.constants.clone(), before, after }
        })
        .collect()
}

fn show_changes(changes: &[Change], json: bool, out: &mut impl Write) -> Result<(), Failure> {
    if json {
        return Ok(writeln!(out, "{}", json_text(&changes))?);
    }
    if changes.is_empty() {
        return Ok(writeln!(out, "no kernel is different")?);
    }
    let mut table = new_table();
    table.set_header(HEADER);
    for change in changes {
        let [before, after] = [&change.before, &change.after].map(|k| k.as_ref().map(cells));
        let name = [change.kernel.clone(), constants_text(&change.constants)];
        let values = (0..HEADER.len() - name.len()).map(|i| match (&before, &after) {
            (Some(b), Some(a)) if b[i] == a[i] => a[i].clone(),
            (Some(b), Some(a)) => format!("{} → {}", b[i], a[i]),
            (None, Some(a)) => format!("new {}", a[i]),
            (Some(b), None) => format!("was {}", b[i]),
            (None, None) => String::new(),
        });
        table.add_row(name.iter().cloned().chain(values));
    }
    Ok(writeln!(out, "{table}")?)
}

const HEADER: [&str; 16] = [
    "kernel",
    "constants",
    "wave",
    "VGPRs",
    "needed",
    "SGPRs",
    "waves",
    "LDS",
    "spills",
    "bytes",
    "instr.",
    "VALU/SALU/VMEM/LDS/SMEM/wait/jump/other",
    "dot4",
    "wmma",
    "latency / inv. thr.",
    "instr./weight",
];

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn table(kernels: &[CodeReport]) -> Table {
    let mut table = new_table();
    table.set_header(HEADER);
    for k in kernels {
        table.add_row([k.kernel.clone(), constants_text(&k.constants)].into_iter().chain(cells(k)));
    }
    table
}

fn constants_text(constants: &[u32]) -> String {
    constants.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The columns after name and constants.
fn cells(k: &CodeReport) -> [String; HEADER.len() - 2] {
    let text = |v: Option<u64>| v.map_or("–".to_owned(), |v| v.to_string());
    let wave = if k.subgroup_size > 0 { k.subgroup_size.to_string() } else { "–".to_owned() };
    let estimates = format!("{} / {}", text(k.latency), text(k.inverse_throughput));
    let per_weight = k.instructions_per_weight.map_or("–".to_owned(), |v| format!("{v:.2}"));
    let [dot4, wmma] = [k.dot4, k.wmma].map(|n| n.to_string());
    let mix = k.mix.map_or("–".to_owned(), |mix| mix.parts().map(|n| n.to_string()).join("/"));
    let [vgprs, needed, sgprs, waves] = [k.vgprs, k.vgprs_needed, k.sgprs, k.waves].map(text);
    let [lds, spills, bytes, instructions] = [k.lds_bytes, k.spills, k.code_bytes, k.instructions].map(text);
    [wave, vgprs, needed, sgprs, waves, lds, spills, bytes, instructions, mix, dot4, wmma, estimates, per_weight]
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::backend::vulkan::InstructionMix;

    fn report(kernel: &str, constants: &[u32], vgprs: u64) -> CodeReport {
        CodeReport {
            kernel: kernel.to_owned(),
            constants: constants.to_vec(),
            vgprs: Some(vgprs),
            ..CodeReport::default()
        }
    }

    fn listing(kernels: Vec<CodeReport>) -> Listing {
        Listing { device: "a".to_owned(), driver: "b".to_owned(), kernels }
    }

    #[test]
    fn changes_are_those_of_the_kernels_that_were_compiled() {
        let old =
            listing(vec![report("a", &[1], 10), report("a", &[2], 10), report("a", &[3], 10), report("b", &[], 1)]);
        let new = listing(vec![report("a", &[1], 10), report("a", &[2], 12), report("a", &[4], 9)]);
        let found: Vec<_> =
            changes(old, new).into_iter().map(|c| (c.constants, c.before.is_some(), c.after.is_some())).collect();
        assert_eq!(found, [(vec![2], true, true), (vec![4], false, true), (vec![3], true, false)]);
    }

    #[test]
    fn a_listing_without_mixes_is_different_only_where_its_code_is() {
        let text = r#"{"device":"a","driver":"b","kernels":[
            {"kernel":"a","constants":[1],"vgprs":10,"instructions":7},
            {"kernel":"a","constants":[2],"vgprs":10,"instructions":7}]}"#;
        let old: Listing = serde_json::from_str(text).expect("readable");
        let mix = Some(InstructionMix { valu: 7, ..InstructionMix::default() });
        let with =
            |vgprs, constants: &[u32]| CodeReport { instructions: Some(7), mix, ..report("a", constants, vgprs) };
        let found = changes(old, listing(vec![with(10, &[1]), with(12, &[2])]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].constants, [2]);
    }

    #[test]
    fn spills_are_unknown_where_the_driver_does_not_tell() {
        let with = |spills| CodeReport { spills, ..report("a", &[1], 10) };
        let of = |spills: &[Option<u64>]| summary(&spills.iter().map(|&s| with(s)).collect::<Vec<_>>());
        assert_eq!(of(&[Some(0), Some(3)]), "2 variants, 1 of them spill registers");
        assert_eq!(of(&[None, None]), "2 variants; the driver doesn't tell which of them spill registers");
        assert_eq!(of(&[None, Some(0)]), "2 variants, 0 of them spill registers, of 1 the driver doesn't tell");
    }

    #[test]
    fn a_listing_is_read_back_as_it_was_written() {
        let listing = listing(vec![report("a", &[1, 2], 3)]);
        let again: Listing = serde_json::from_str(&json_text(&listing)).expect("readable");
        assert_eq!(again.kernels, listing.kernels);
    }
}
