//! `aimo-engine synth`: a model of random weights with the shapes and types of a published one.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use comfy_table::{Table, presets};
use engine::gguf::GgufFile;
use engine::synth::{FileType, Plan, Stopped, SynthError, SynthOptions, TARGETS, Target, WriteOptions};
use serde_json::json;

use crate::args::at_least_one;
use crate::commands::info;
use crate::failure::Failure;
use crate::load;
use crate::terminal::{ByteProgress, bytes_text};

/// Arguments of `synth`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    like: LikeArgs,
    /// The file to write; shards are named after it
    #[arg(short, long, value_name = "FILE.gguf", required_unless_present_any = ["dry_run", "list"])]
    output: Option<PathBuf>,
    /// Seed: the same seed gives the same bytes
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Cut into shards of at most this many bytes of weights, e.g. 40G or 500M
    #[arg(long, value_name = "N(M|G)", value_parser = size)]
    split_max_size: Option<u64>,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// List the models that can be imitated
    #[arg(long, conflicts_with_all = ["like", "output", "dry_run"])]
    list: bool,
    /// One JSON object (an array with --list)
    #[arg(long)]
    json: bool,
}

/// Which published model, and how much of it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Model to imitate")]
pub struct LikeArgs {
    /// The model; `aimo-engine synth --list` shows the names
    #[arg(long, value_name = "NAME")]
    like: Option<String>,
    /// Types of the weights, e.g. Q4_K_M, Q8_0, MXFP4, F16; without it, what people run the model in
    #[arg(long, value_name = "TYPE", requires = "like")]
    file_type: Option<String>,
    /// Number of layers instead of the model's own
    #[arg(long, value_name = "N", requires = "like")]
    layers: Option<usize>,
    /// Number of experts instead of the model's own
    #[arg(long, value_name = "N", requires = "like")]
    experts: Option<usize>,
    /// Size of the vocabulary instead of the model's own
    #[arg(long, value_name = "N", requires = "like")]
    vocab_size: Option<usize>,
    /// Divide widths and head counts by N; 1 = as published
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "like")]
    shrink: Option<usize>,
    /// Take the vocabulary and chat template of this file; without it, a stand-in vocabulary
    #[arg(long, value_name = "FILE.gguf", requires = "like")]
    vocab_from: Option<PathBuf>,
}

impl LikeArgs {
    /// A published model as it is.
    pub fn named(name: &str) -> LikeArgs {
        LikeArgs {
            like: Some(name.to_owned()),
            file_type: None,
            layers: None,
            experts: None,
            vocab_size: None,
            shrink: None,
            vocab_from: None,
        }
    }

    /// Whether a model is named.
    pub fn is_given(&self) -> bool {
        self.like.is_some()
    }

    /// The same model in a size for measuring its kernels: two layers, which have all kinds of layers and types, unless
    /// another number was asked for; for a software device (`is_small`) narrow and with few experts and tokens.
    pub fn to_measure(&self, is_small: bool) -> LikeArgs {
        let small = |chosen: Option<usize>, value: usize| if is_small { chosen.or(Some(value)) } else { chosen };
        let target = self.like.as_deref().and_then(Target::find);
        let n_expert = target.and_then(|t| t.moe).map(|moe| moe.n_expert.min(16));
        LikeArgs {
            layers: self.layers.or(Some(2)),
            shrink: small(self.shrink, 4),
            experts: n_expert.map_or(self.experts, |n| small(self.experts, n)),
            vocab_size: small(self.vocab_size, 4096),
            ..self.clone()
        }
    }

    /// The plan of the model.
    pub fn plan(&self, seed: u64) -> Result<Plan, Failure> {
        let name = self.like.as_deref().unwrap_or_default();
        let target = Target::find(name).ok_or_else(|| {
            let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            Failure::Usage(format!("--like {name:?} is not known; known: {}", names.join(", ")))
        })?;
        let file_type = self.file_type.as_deref().map(|name| {
            FileType::from_name(name).ok_or_else(|| {
                let names = FileType::ALL.map(FileType::name).join(", ");
                Failure::Usage(format!("--file-type {name:?} is not known; known: {names}"))
            })
        });
        let options = SynthOptions {
            file_type: file_type.transpose()?,
            n_layer: self.layers,
            n_expert: self.experts,
            n_vocab: self.vocab_size,
            shrink: self.shrink.unwrap_or(1),
            seed,
            ..SynthOptions::new(target)
        };
        let vocab: Option<GgufFile> = self.vocab_from.as_deref().map(load::open).transpose()?;
        Plan::new(&options, vocab.as_ref()).map_err(|e| failure(&e))
    }
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    if args.list {
        return list(args.json, out);
    }
    if !args.like.is_given() {
        return Err(Failure::Usage("name a model with --like; `aimo-engine synth --list` shows the names".to_owned()));
    }
    let plan = args.like.plan(args.seed)?;
    let options = WriteOptions { max_shard_bytes: args.split_max_size, replace: args.force };
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.gguf", plan.target.name)));
    let files = plan.files(&output, &options).map_err(|e| failure(&e))?;
    if args.dry_run {
        return info::show_plan(&plan, &files, args.json, out);
    }
    let stop = stop_on_interrupt()?;
    let name = output.file_name().unwrap_or(output.as_os_str()).to_string_lossy().into_owned();
    let mut progress = ByteProgress::new(&format!("writing {name}"), quiet);
    let start = Instant::now();
    let written = plan.write(&output, &options, &mut |done, all| {
        progress.set(done.min(all), all);
        if stop.load(Ordering::Relaxed) { Err(Stopped) } else { Ok(()) }
    });
    progress.finish();
    let files = written.map_err(|e| failure(&e))?;
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), plan.file_bytes());
    if !quiet {
        eprintln!("{} in {seconds:.1} s, {:.2} GB/s", bytes_text(bytes), bytes as f64 / seconds / 1e9);
    }
    if args.json {
        let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
        let rate = bytes as f64 / seconds / 1e9;
        writeln!(out, "{}", json!({ "files": files, "bytes": bytes, "seconds": seconds, "gb_per_s": rate }))?;
    } else {
        files.iter().try_for_each(|f| writeln!(out, "{}", f.display()))?;
    }
    Ok(())
}

fn list(as_json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let mut rows = Vec::with_capacity(TARGETS.len());
    for target in &TARGETS {
        let plan = Plan::new(&SynthOptions::new(target), None).map_err(|e| failure(&e))?;
        rows.push((target, plan.n_params(), plan.file_bytes()));
    }
    if as_json {
        let values: Vec<_> = rows
            .iter()
            .map(|(t, n_params, bytes)| {
                json!({
                    "name": t.name, "architecture": t.arch.name(), "file_type": t.file_type.name(),
                    "n_params": n_params, "file_bytes": bytes,
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::Value::from(values))?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["name", "architecture", "types", "parameters", "size"]);
    for (t, n_params, bytes) in rows {
        let billions = format!("{:.2} B", n_params as f64 / 1e9);
        table.add_row([t.name, t.arch.name(), t.file_type.name(), &billions, &bytes_text(bytes)]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}

/// True once the user has pressed Ctrl-C: the file in the making is removed before the program ends.
fn stop_on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .map_err(|e| Failure::plain(format!("cannot watch for interrupts: {e}")))?;
    Ok(stop)
}

/// A model that can't be planned or written.
pub fn failure(error: &SynthError) -> Failure {
    let next = match error {
        SynthError::Stopped => return Failure::Interrupted,
        SynthError::Option { .. } => "`aimo-engine synth --help` lists the sizes that can be changed",
        SynthError::Vocabulary { .. } => "give a file with a byte-level BPE vocabulary, or leave --vocab-from out",
        SynthError::VocabularyTooLarge { .. } => "give the model as many tokens with --vocab-size",
        SynthError::Exists { .. } => "choose another name with -o, or replace it with --force",
        SynthError::NoSpace { .. } => {
            "make room, choose another disk with -o, or a smaller model (--layers, --experts)"
        }
        SynthError::Shards { .. } => "raise --split-max-size",
        _ => "check the path and the space that is left",
    };
    Failure::new(error.to_string(), next)
}

/// `500M` or `40G`, as llama.cpp's splitter takes them.
fn size(text: &str) -> Result<u64, String> {
    let unit = match text.as_bytes().last() {
        Some(b'M') => 1_000_000,
        Some(b'G') => 1_000_000_000,
        _ => return Err("must be a whole number of at least 1 with M or G after it, e.g. 40G".to_owned()),
    };
    let number = text[..text.len() - 1].parse::<u64>().ok().filter(|n| *n > 0);
    number
        .and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| "must be a whole number of at least 1 with M or G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size("40G"), Ok(40_000_000_000));
        assert_eq!(size("500M"), Ok(500_000_000));
        for bad in ["", "G", "0G", "-1G", "1", "1.5G", "1T", "99999999999999999999G", "é"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
