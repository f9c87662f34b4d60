//! `aimo-engine info`: what a model is and takes, from its header alone; also of a model that isn't there (`--like`).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use engine::backend::Limits;
use engine::footprint::{Footprint, Memory};
use engine::gguf::{GgmlType, Header};
use engine::kv::{KvOptions, KvType};
use engine::model::Config;
use engine::synth::Plan;
use engine::tokenizer::Tokenizer;
use serde_json::{Value, json};
use solver::Protocol;
use solver::protocol::Choice;

use crate::args::{CacheArgs, DraftArgs, at_least_one};
use crate::commands::synth::LikeArgs;
use crate::failure::Failure;
use crate::load;
use crate::terminal::bytes_text;

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file; of a model in several shards, any
    #[arg(value_name = "MODEL", required_unless_present_any = ["model_flag", "like"])]
    model: Option<PathBuf>,
    /// The same, as a flag
    #[arg(short, long = "model", value_name = "FILE", conflicts_with = "model")]
    model_flag: Option<PathBuf>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    like: LikeArgs,
}

/// What memory is computed for.
#[derive(Clone, Copy, Debug, clap::Args)]
struct SizeArgs {
    /// Compute the memory for sequences of this many tokens; 0 = as trained
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    ctx_size: usize,
    /// Compute the memory for this many sequences at once
    #[arg(long, visible_alias = "np", value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    parallel: usize,
    /// Compute the memory for passes of this many tokens
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    batch_size: usize,
    /// Types of keys and values.
    #[command(flatten)]
    cache: CacheArgs,
}

impl SizeArgs {
    fn limits(&self, config: &Config) -> Limits {
        let n_ctx = if self.ctx_size == 0 { config.n_ctx_train } else { self.ctx_size };
        let (n_batch, n_seq) = (self.batch_size, self.parallel);
        Limits {
            n_batch,
            // As `run` serves them: with drafts.
            n_outputs: (n_seq * (1 + DraftArgs::default().draft_max)).min(n_batch),
            n_seq,
            n_ctx,
            kv: self.cache.options(),
            kv_bytes: self.cache.kv_memory,
        }
    }
}

/// Where a header comes from.
struct Source {
    files: Vec<(String, Option<u64>)>,
    version: u32,
    bytes: u64,
    is_planned: bool,
}

/// What is shown; `None` where the file can't be run and `problems` says why.
struct Summary<'h> {
    header: &'h Header,
    types: BTreeMap<GgmlType, (u64, u64)>,
    runnable: Option<Runnable>,
    tokenizer: Option<Tokenizer>,
    has_template: bool,
    protocol: Choice,
    problems: Vec<String>,
}

/// What only a model that can be run has.
struct Runnable {
    config: Config,
    footprint: Footprint,
    limits: Limits,
    memory: Memory,
}

/// Runs the command. A sound file that can't be run is shown, with the reason; a damaged one is an error.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let Some(path) = args.model.as_ref().or(args.model_flag.as_ref()) else {
        let plan = args.like.plan(0)?;
        let name = vec![PathBuf::from(format!("{}.gguf", plan.target.name))];
        return show_planned(&plan, &name, &args.sizes, args.json, out);
    };
    if args.like.is_given() {
        return Err(Failure::Usage("give a model file or --like, not both".to_owned()));
    }
    let file = load::open(path)?;
    let files = file.files().map(|(path, bytes)| (path.display().to_string(), Some(bytes))).collect();
    let source = Source { files, version: file.version(), bytes: file.file_bytes(), is_planned: false };
    show(&source, &Summary::new(file.header(), &args.sizes), args.json, out)
}

/// Shows a model that `synth` would write.
pub fn show_plan(plan: &Plan, files: &[PathBuf], as_json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let sizes = SizeArgs { ctx_size: 0, parallel: 1, batch_size: 512, cache: CacheArgs::default() };
    show_planned(plan, files, &sizes, as_json, out)
}

fn show_planned(
    plan: &Plan,
    files: &[PathBuf],
    sizes: &SizeArgs,
    as_json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let header = plan.header();
    let files = files.iter().map(|f| (f.display().to_string(), None)).collect();
    let source = Source { files, version: header.version, bytes: plan.file_bytes(), is_planned: true };
    show(&source, &Summary::new(&header, sizes), as_json, out)
}

fn show(source: &Source, summary: &Summary<'_>, as_json: bool, out: &mut impl Write) -> Result<(), Failure> {
    if as_json {
        writeln!(out, "{:#}", summary.json(source))?;
        return Ok(());
    }
    for (name, value) in summary.lines(source) {
        writeln!(out, "{name:<16} {value}")?;
    }
    Ok(())
}

impl<'h> Summary<'h> {
    fn new(header: &'h Header, sizes: &SizeArgs) -> Summary<'h> {
        let metadata = &header.metadata;
        let mut types: BTreeMap<GgmlType, (u64, u64)> = BTreeMap::new();
        for tensor in &header.tensors {
            let (count, bytes) = types.entry(tensor.ty).or_default();
            *count += 1;
            *bytes += tensor.bytes;
        }
        let mut problems = Vec::new();
        let runnable = Config::from_header(header).and_then(|config| {
            let footprint = Footprint::new(header, &config)?;
            Ok((config, footprint))
        });
        let runnable = runnable.map_err(|e| problems.push(e.to_string())).ok().and_then(|(config, footprint)| {
            let limits = sizes.limits(&config);
            let memory = footprint.memory(&config, &limits).map_err(|e| problems.push(e.to_string())).ok()?;
            Some(Runnable { config, footprint, limits, memory })
        });
        let tokenizer = Tokenizer::from_gguf(metadata).map_err(|e| problems.push(e.to_string())).ok();
        let has_template = metadata.value("tokenizer.chat_template").is_some();
        let protocol = Protocol::of_model(metadata);
        Summary { header, types, runnable, tokenizer, has_template, protocol, problems }
    }

    fn text(&self, key: &str) -> &str {
        self.header.metadata.opt_str(key).ok().flatten().unwrap_or_default()
    }

    /// Weights of all tensors, whether the model can be run or not.
    fn n_params(&self) -> u64 {
        self.header.tensors.iter().map(|t| t.dims.iter().product::<u64>()).sum()
    }

    fn lines(&self, source: &Source) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        let mut line = |name: &'static str, value: String| lines.push((name, value));
        for (i, (name, bytes)) in source.files.iter().enumerate() {
            let size =
                bytes.filter(|_| source.files.len() > 1).map_or(String::new(), |b| format!(", {}", bytes_text(b)));
            let label = match i {
                0 if source.is_planned => "planned file",
                0 => "file",
                _ => "",
            };
            line(label, format!("{name}{size}"));
        }
        line("format", format!("GGUF version {}, {}", source.version, bytes_text(source.bytes)));
        line("architecture", self.text("general.architecture").to_owned());
        line("name", self.text("general.name").to_owned());
        line("parameters", self.parameters_text());
        for (ty, (count, bytes)) in &self.types {
            line("", format!("{:<6} {count:>4} tensors, {}", ty.name(), bytes_text(*bytes)));
        }
        if let Some(runnable) = &self.runnable {
            runnable.lines(&mut line);
        }
        if let Some(t) = &self.tokenizer {
            line("tokenizer", format!("{}, {} tokens", t.pre_tokenizer(), t.n_vocab()));
        }
        line("chat template", if self.has_template { "yes" } else { "no" }.to_owned());
        line("tool protocol", format!("{} ({})", self.protocol.protocol, self.protocol.reason));
        for problem in &self.problems {
            line("can't be run", problem.clone());
        }
        lines
    }

    fn parameters_text(&self) -> String {
        let all = format!("{:.2} billion in {} tensors", self.n_params() as f64 / 1e9, self.header.tensors.len());
        match &self.runnable {
            Some(r) if r.config.moe.is_some() => {
                format!("{all}, {:.2} billion active in a token", r.footprint.n_params_active as f64 / 1e9)
            }
            _ => all,
        }
    }

    fn json(&self, source: &Source) -> Value {
        let types: serde_json::Map<String, Value> = self
            .types
            .iter()
            .map(|(ty, (count, bytes))| (ty.name().to_owned(), json!({ "tensors": count, "bytes": bytes })))
            .collect();
        let files: Vec<Value> =
            source.files.iter().map(|(file, bytes)| json!({ "file": file, "bytes": bytes })).collect();
        let mut value = json!({
            "file": source.files.first().map(|f| &f.0),
            "planned": source.is_planned,
            "shards": files,
            "version": source.version,
            "file_bytes": source.bytes,
            "architecture": self.text("general.architecture"),
            "name": self.text("general.name"),
            "n_params": self.n_params(),
            "n_tensors": self.header.tensors.len(),
            "types": types,
            "pre_tokenizer": self.tokenizer.as_ref().map(Tokenizer::pre_tokenizer),
            "n_vocab": self.tokenizer.as_ref().map(Tokenizer::n_vocab),
            "chat_template": self.has_template,
            "protocol": self.protocol.protocol.name(),
            "protocol_reason": self.protocol.reason,
            "problems": self.problems,
        });
        if let (Some(runnable), Value::Object(map)) = (&self.runnable, &mut value) {
            map.extend(runnable.json());
        }
        value
    }
}

impl Runnable {
    fn lines(&self, line: &mut impl FnMut(&'static str, String)) {
        let (c, f, m) = (&self.config, &self.footprint, &self.memory);
        let first = &c.layers[0];
        let windows: Vec<String> =
            f.kv.iter()
                .filter_map(|g| g.window.map(|w| format!(", {} of them with a window of {w} tokens", g.n_layer)))
                .collect();
        line("layers", format!("{}{}", c.n_layer(), windows.concat()));
        let dense = if first.n_ff > 0 { format!(", feed-forward {}", first.n_ff) } else { String::new() };
        line("width", format!("{}{dense}", c.n_embd));
        if let Some(moe) = &c.moe {
            line("experts", format!("{} of width {}, {} in a token", moe.n_expert, moe.n_ff_exp, moe.n_expert_used));
        }
        line("heads", format!("{} of {} elements, {} for keys and values", first.n_head, c.head_dim, first.n_head_kv));
        line("context", format!("{} tokens as trained", c.n_ctx_train));
        line("RoPE", format!("base {}, {} of {} elements, {:?}", c.rope_base, c.n_rot, c.head_dim, c.rope_scaling));
        line("read per token", format!("{} of weights", bytes_text(f.weight_bytes_per_token)));
        let both = |f16: u64, q8_0: u64| format!("{} at f16, {} at q8_0", bytes_text(f16), bytes_text(q8_0));
        let (grows, window) = (f.kv_per_token(), f.kv_windows());
        line("cache", format!("{} per token", both(grows.f16(), grows.q8_0())));
        if window.elements > 0 {
            line("", format!("and {} per sequence for the windows", both(window.f16(), window.q8_0())));
        }
        let n = self.limits.n_seq;
        let kv = self.limits.kv;
        let sequences = if n == 1 { "a sequence".to_owned() } else { format!("{n} sequences") };
        line(
            "memory",
            format!(
                "{} for {sequences} of {} tokens: weights {}, cache ({kv}) {}, activations {}",
                bytes_text(m.total(kv)),
                self.limits.n_ctx,
                bytes_text(m.weight_bytes),
                bytes_text(m.kv.of(kv)),
                bytes_text(m.activation_bytes),
            ),
        );
        for ty in KvType::ALL {
            let other = KvOptions { k: ty, v: ty };
            if other != kv && other.unfit(c.head_dim).is_none() {
                line("", format!("{} with the cache at {other}", bytes_text(m.total(other))));
            }
        }
    }

    fn json(&self) -> serde_json::Map<String, Value> {
        let (c, f, m) = (&self.config, &self.footprint, &self.memory);
        let first = &c.layers[0];
        let groups: Vec<Value> =
            f.kv.iter()
                .map(|g| {
                    json!({
                        "window": g.window, "n_layer": g.n_layer,
                        "bytes_per_token_f16": g.per_token.f16(), "bytes_per_token_q8_0": g.per_token.q8_0(),
                    })
                })
                .collect();
        let value = json!({
            "n_params_active": f.n_params_active,
            "n_layer": c.n_layer(),
            "n_embd": c.n_embd,
            "n_ff": first.n_ff,
            "n_head": first.n_head,
            "n_head_kv": first.n_head_kv,
            "head_dim": c.head_dim,
            "n_expert": c.moe.map(|m| m.n_expert),
            "n_expert_used": c.moe.map(|m| m.n_expert_used),
            "n_ff_exp": c.moe.map(|m| m.n_ff_exp),
            "n_ctx_train": c.n_ctx_train,
            "weight_bytes": f.weight_bytes,
            "weight_bytes_per_token": f.weight_bytes_per_token,
            "kv_bytes_per_token": f.kv_per_token().f16(),
            "kv_bytes_per_token_q8_0": f.kv_per_token().q8_0(),
            "kv_window_bytes": f.kv_windows().f16(),
            "kv_window_bytes_q8_0": f.kv_windows().q8_0(),
            "kv_layers": groups,
            "memory": {
                "n_ctx": self.limits.n_ctx,
                "n_seq": self.limits.n_seq,
                "n_batch": self.limits.n_batch,
                "weight_bytes": m.weight_bytes,
                "type_k": self.limits.kv.k.name(),
                "type_v": self.limits.kv.v.name(),
                "kv_bytes": m.kv.of(self.limits.kv),
                "kv_bytes_q8_0": m.kv.q8_0(),
                "activation_bytes": m.activation_bytes,
                "total_bytes": m.total(self.limits.kv),
                "total_bytes_q8_0": m.weight_bytes + m.kv.q8_0() + m.activation_bytes,
            },
        });
        match value {
            Value::Object(map) => map,
            _ => unreachable!("json! of braces is an object"),
        }
    }
}
