//! `aimo-engine info`: what a model file holds, from its header alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use engine::gguf::{GgmlType, GgufFile};
use engine::model::Config;
use serde_json::json;

use crate::failure::Failure;
use crate::load;
use crate::terminal::bytes_text;

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(value_name = "MODEL", required_unless_present = "model_flag")]
    model: Option<PathBuf>,
    /// The same, as a flag
    #[arg(short, long = "model", value_name = "FILE", conflicts_with = "model")]
    model_flag: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What is shown; `None` where the file can't be run and `problems` says why.
struct Summary {
    architecture: String,
    name: String,
    n_params: u64,
    types: BTreeMap<GgmlType, (u64, u64)>,
    config: Option<Config>,
    tokenizer: Option<(String, usize)>,
    has_template: bool,
    problems: Vec<String>,
}

/// Runs the command. A sound file that can't be run is shown, with the reason; a damaged one is an error.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let path = args.model.as_ref().or(args.model_flag.as_ref());
    let path = path.ok_or_else(|| Failure::Usage("give a model file".to_owned()))?;
    let file = load::open(path)?;
    let summary = summarise(&file);
    if args.json { write_json(&file, &summary, out) } else { write_text(&file, &summary, out) }
}

fn summarise(file: &GgufFile) -> Summary {
    let metadata = file.metadata();
    let text = |key: &str| metadata.opt_str(key).ok().flatten().unwrap_or_default().to_owned();
    let mut types: BTreeMap<GgmlType, (u64, u64)> = BTreeMap::new();
    for tensor in file.tensors() {
        let (count, bytes) = types.entry(tensor.ty).or_default();
        *count += 1;
        *bytes += tensor.bytes;
    }
    let mut problems = Vec::new();
    let config = Config::from_gguf(file).map_err(|e| problems.push(e.to_string())).ok();
    let tokenizer = engine::tokenizer::Tokenizer::from_gguf(metadata)
        .map(|t| (t.pre_tokenizer().to_owned(), t.n_vocab()))
        .map_err(|e| problems.push(e.to_string()))
        .ok();
    Summary {
        architecture: text("general.architecture"),
        name: text("general.name"),
        n_params: file.tensors().iter().map(|t| t.dims.iter().product::<u64>()).sum(),
        types,
        config,
        tokenizer,
        has_template: metadata.value("tokenizer.chat_template").is_some(),
        problems,
    }
}

fn write_text(file: &GgufFile, s: &Summary, out: &mut impl Write) -> Result<(), Failure> {
    let mut line = |name: &str, value: String| writeln!(out, "{name:<16} {value}");
    line("file", file.path().display().to_string())?;
    line("format", format!("GGUF version {}, {}", file.version(), bytes_text(file.file_bytes())))?;
    line("architecture", s.architecture.clone())?;
    line("name", s.name.clone())?;
    line("parameters", format!("{:.2} billion in {} tensors", s.n_params as f64 / 1e9, file.tensors().len()))?;
    for (ty, (count, bytes)) in &s.types {
        line("", format!("{:<5} {count:>4} tensors, {}", ty.name(), bytes_text(*bytes)))?;
    }
    if let Some(c) = &s.config {
        let first = &c.layers[0];
        line("layers", c.n_layer().to_string())?;
        line("width", format!("{}, feed-forward {}", c.n_embd, first.n_ff))?;
        line("heads", format!("{} of {} elements, {} for keys and values", first.n_head, c.head_dim, first.n_head_kv))?;
        line("context", format!("{} tokens as trained", c.n_ctx_train))?;
        line("RoPE", format!("base {}, {} of {} elements, {:?}", c.rope_base, c.n_rot, c.head_dim, c.rope_scaling))?;
        line("cache", format!("{} per token", bytes_text(2 * c.kv_elements(1) as u64)))?;
    }
    if let Some((pre, n_vocab)) = &s.tokenizer {
        line("tokenizer", format!("{pre}, {n_vocab} tokens"))?;
    }
    line("chat template", if s.has_template { "yes" } else { "no" }.to_owned())?;
    for problem in &s.problems {
        line("can't be run", problem.clone())?;
    }
    Ok(())
}

fn write_json(file: &GgufFile, s: &Summary, out: &mut impl Write) -> Result<(), Failure> {
    let types: serde_json::Map<String, serde_json::Value> = s
        .types
        .iter()
        .map(|(ty, (count, bytes))| (ty.name().to_owned(), json!({ "tensors": count, "bytes": bytes })))
        .collect();
    let value = json!({
        "file": file.path().display().to_string(),
        "version": file.version(),
        "file_bytes": file.file_bytes(),
        "architecture": s.architecture,
        "name": s.name,
        "n_params": s.n_params,
        "n_tensors": file.tensors().len(),
        "types": types,
        "n_layer": s.config.as_ref().map(|c| c.n_layer()),
        "n_embd": s.config.as_ref().map(|c| c.n_embd),
        "n_ff": s.config.as_ref().map(|c| c.layers[0].n_ff),
        "n_head": s.config.as_ref().map(|c| c.layers[0].n_head),
        "n_head_kv": s.config.as_ref().map(|c| c.layers[0].n_head_kv),
        "head_dim": s.config.as_ref().map(|c| c.head_dim),
        "n_ctx_train": s.config.as_ref().map(|c| c.n_ctx_train),
        "kv_bytes_per_token": s.config.as_ref().map(|c| 2 * c.kv_elements(1)),
        "pre_tokenizer": s.tokenizer.as_ref().map(|t| &t.0),
        "n_vocab": s.tokenizer.as_ref().map(|t| t.1),
        "chat_template": s.has_template,
        "problems": s.problems,
    });
    writeln!(out, "{value:#}")?;
    Ok(())
}
