//! `aimo-engine roofline`: what every op of a model must move and compute at least, how fast a device could run it at
//! best (one stream, many, a prompt), and how far measured kernels are from that.

use std::io::Write;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, Table, presets};
use engine::RequestError;
use engine::backend::vulkan::{DeviceOptions, Gpu, Tuning, measure_peaks};
use engine::gguf::Header;
use engine::kv::{KvOptions, KvType};
use engine::roofline::{Account, OpCost, Pass, Roof, Roofline};
use serde_json::{Value, json};

use crate::args::{batch, kv_type, sequences, some_tokens, tokens};
use crate::commands::synth::LikeArgs;
use crate::failure::Failure;
use crate::load;
use crate::measure::{KernelTime, Measured};
use crate::terminal::bytes_text;

/// Arguments of `roofline`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file; of a model in several shards, any
    #[arg(value_name = "MODEL", required_unless_present_any = ["model_flag", "like"])]
    model: Option<PathBuf>,
    /// The same, as a flag
    #[arg(short, long = "model", value_name = "FILE", conflicts_with = "model")]
    model_flag: Option<PathBuf>,
    /// strix-halo (236 GB/s, 55.5 TFLOPS), `this` (measured on this machine's Vulkan device), or GB/s and TFLOPS, such
    /// as 3350,800
    #[arg(long, value_name = "DEVICE", default_value = "strix-halo")]
    device: String,
    /// Numbers of sequences that generate together
    #[arg(long = "npl", visible_alias = "n-parallel", value_name = "N,…", value_delimiter = ',',
          default_value = "1,2,4,8,16,32,64", value_parser = sequences)]
    n_parallel: Vec<usize>,
    /// Prompt lengths
    #[arg(short = 'p', long, value_name = "N,…", value_delimiter = ',', default_value = "512,2048",
          value_parser = some_tokens)]
    n_prompt: Vec<usize>,
    /// Tokens in the context before
    #[arg(short = 'd', long, value_name = "N,…", value_delimiter = ',', default_value = "0", value_parser = tokens)]
    n_depth: Vec<usize>,
    /// Most tokens of a prompt in one pass
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = batch)]
    batch_size: usize,
    /// Type of the keys, f16 or q8_0; short: -ctk
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type())]
    cache_type_k: KvType,
    /// Type of the values, f16 or q8_0; short: -ctv
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type())]
    cache_type_v: KvType,
    /// Times of kernels, as `aimo-engine kernels --time --json` writes them, to be held against the bounds
    #[arg(long, value_name = "KERNELS.json")]
    measured: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    like: LikeArgs,
}

/// Where a bound comes from.
struct Device {
    name: String,
    roof: Roof,
    /// How its kernels are run; of a device that isn't here, as on strix-halo.
    tuning: Option<Tuning>,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let measured = args.measured.as_deref().map(read_measured).transpose()?;
    let (name, header) = match args.model.as_ref().or(args.model_flag.as_ref()) {
        None => {
            let plan = args.like.plan(0)?;
            (plan.target.name.to_owned(), Some(plan.header()))
        }
        Some(_) if args.like.is_given() => {
            return Err(Failure::Usage("give a model file or --like, not both".to_owned()));
        }
        Some(path) => (path.display().to_string(), None),
    };
    let file = match &header {
        None => Some(load::open(Path::new(&name))?),
        Some(_) => None,
    };
    let header: &Header = header.as_ref().unwrap_or_else(|| file.as_ref().expect("one of the two is there").header());
    let failed = |e: engine::Error| Failure::engine(Path::new(&name), &e);
    let device = device(&args.device)?;
    let cache = KvOptions { k: args.cache_type_k, v: args.cache_type_v };
    let mut roofline = Roofline::new(header).map_err(failed)?.with_cache(cache);
    if let Some(ty) = cache.unfit(roofline.config().head_dim) {
        return Err(failed(RequestError::CacheType { ty, head_dim: roofline.config().head_dim }.into()));
    }
    if let Some(tuning) = device.tuning {
        roofline = roofline.with_tuning(tuning);
    }
    let depth = args.n_depth.first().copied().unwrap_or(0);
    let one = roofline.account(Pass { n_seq: 1, n_tokens: 1, depth }).map_err(failed)?;
    let mut streams = Vec::new();
    let mut prompts = Vec::new();
    for &depth in &args.n_depth {
        for &n_seq in &args.n_parallel {
            streams.push((depth, n_seq, roofline.account(Pass { n_seq, n_tokens: 1, depth }).map_err(failed)?));
        }
        for &n in &args.n_prompt {
            prompts.push((depth, n, roofline.prompt(n, depth, args.batch_size).map_err(failed)?));
        }
    }
    let measured = measured.unwrap_or_default();
    let held: Vec<Held> =
        measured.iter().map(|m| Held::new(&roofline, m, &device.roof)).collect::<Result<_, _>>().map_err(failed)?;
    let n_layer = roofline.config().n_layer();
    if args.json {
        let value = json!({
            "model": name,
            "device": device.name,
            "gb_per_s": device.roof.gb_per_s,
            "tflops": device.roof.tflops,
            "n_layer": n_layer,
            "ops": one.ops.iter().map(|op| op_json(op, &device.roof)).collect::<Vec<_>>(),
            "total": op_json(&one.total(), &device.roof),
            "streams": streams.iter().map(|(d, n, a)| pass_json(*d, *n, *n, a, &device.roof)).collect::<Vec<_>>(),
            "prompts": prompts.iter().map(|(d, n, a)| pass_json(*d, 1, *n, a, &device.roof)).collect::<Vec<_>>(),
            "measured": held.iter().map(Held::json).collect::<Vec<_>>(),
        });
        return Ok(writeln!(out, "{value:#}")?);
    }
    writeln!(out, "{name} on {}: {:.1} GB/s, {:.3} TFLOPS\n", device.name, device.roof.gb_per_s, device.roof.tflops)?;
    writeln!(out, "one token of one sequence at depth {depth}\n{}\n", ops_table(&one, &device.roof))?;
    let total = one.total();
    let outside = one.ops.iter().filter(|op| op.n_ops < n_layer).map(|op| op.n_dispatches).sum::<usize>();
    writeln!(
        out,
        "{} dispatches: {} outside of the layers, {:.1} in each of {n_layer}\n",
        total.n_dispatches,
        outside,
        (total.n_dispatches - outside) as f64 / n_layer as f64
    )?;
    writeln!(out, "{}\n\n{}", streams_table(&streams, &device.roof), prompts_table(&prompts, &device.roof))?;
    if !held.is_empty() {
        writeln!(out, "\n{}", held_table(&held))?;
    }
    Ok(())
}

fn device(text: &str) -> Result<Device, Failure> {
    if text == "strix-halo" {
        return Ok(Device { name: "strix-halo".to_owned(), roof: Roof::STRIX_HALO, tuning: None });
    }
    if text == "this" {
        let mut gpu = Gpu::open(DeviceOptions::default()).map_err(|e| Failure::device(&e))?;
        let peaks = measure_peaks(&mut gpu).map_err(|e| Failure::device(&e))?;
        let (tflops, of) = match peaks.matrix_tflops {
            Some(tflops) => (tflops, "matrix units"),
            None => (peaks.f32_tflops, "f32"),
        };
        let roof = Roof { gb_per_s: peaks.gb_per_s(), tflops };
        let (name, tuning) = (format!("{} (measured, {of})", gpu.info().name), Some(*gpu.tuning()));
        return Ok(Device { name, roof, tuning });
    }
    let numbers: Vec<Option<f64>> =
        text.split(',').map(|n| n.trim().parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0)).collect();
    match numbers[..] {
        [Some(gb_per_s), Some(tflops)] => {
            Ok(Device { name: "a device".to_owned(), roof: Roof { gb_per_s, tflops }, tuning: None })
        }
        _ => Err(Failure::Usage(format!(
            "--device {text:?} is not known: strix-halo, this, or GB/s,TFLOPS such as 236,55.5"
        ))),
    }
}

fn read_measured(path: &Path) -> Result<Vec<Measured>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))?;
    let all: Value = serde_json::from_str(&text).unwrap_or_default();
    let wrong = |reason: String| {
        Failure::new(
            format!("{}: no times of kernels: {reason}", path.display()),
            "`aimo-engine kernels --time --like NAME --json` writes such a file",
        )
    };
    let passes: Vec<Measured> = serde_json::from_value(all["passes"].clone()).map_err(|e| wrong(e.to_string()))?;
    let is_uneven = |m: &&Measured| m.n_seq == 0 || m.n_tokens == 0 || !m.n_tokens.is_multiple_of(m.n_seq);
    match passes.iter().find(is_uneven) {
        Some(m) => Err(wrong(format!("{} tokens (n_tokens) in {} sequences (n_seq)", m.n_tokens, m.n_seq))),
        None => Ok(passes),
    }
}

/// A measured kind of pass, held against the bounds.
struct Held {
    n_tokens: usize,
    n_seq: usize,
    depth: usize,
    ops: Vec<HeldOp>,
    /// Seconds that the whole model would take if each of its ops reached the share of its bound that was measured;
    /// `None` where an op was not measured.
    model_s: Option<f64>,
}

/// Microseconds that an op took, and that its own bytes and operations take at least.
struct HeldOp {
    op: String,
    us: f64,
    bound_us: f64,
}

impl Held {
    /// Bounds of the ops of a measured pass. They are of the shapes that were measured, which may be fewer and smaller
    /// than the model's.
    fn new(roofline: &Roofline, measured: &Measured, roof: &Roof) -> Result<Held, engine::Error> {
        let Measured { n_tokens, n_seq, depth, .. } = *measured;
        let ops: Vec<HeldOp> = measured
            .ops
            .iter()
            .map(|op| {
                let bound = |k: &KernelTime| {
                    let (bytes, flops) = (k.bytes as f64 / roof.gb_per_s / 1e3, k.flops as f64 / roof.tflops / 1e6);
                    k.n_dispatches as f64 * bytes.max(flops)
                };
                HeldOp { op: op.op.clone(), us: op.us, bound_us: op.kernels.iter().map(bound).sum() }
            })
            .collect();
        let account = roofline.account(Pass { n_seq, n_tokens: n_tokens / n_seq, depth })?;
        let slowed = |op: &OpCost| {
            let held = ops.iter().find(|held| held.op == op.op && held.bound_us > 0.0)?;
            Some(op.bound_s(roof) * held.us / held.bound_us)
        };
        let model_s = account.ops.iter().map(slowed).sum();
        Ok(Held { n_tokens, n_seq, depth, ops, model_s })
    }

    fn json(&self) -> Value {
        let ops: Vec<Value> = self
            .ops
            .iter()
            .map(|h| json!({ "op": h.op, "us": h.us, "bound_us": h.bound_us, "share": h.bound_us / h.us }))
            .collect();
        json!({
            "n_tokens": self.n_tokens, "n_seq": self.n_seq, "depth": self.depth, "ops": ops,
            "model_tokens_per_s": self.model_s.map(|s| self.n_tokens as f64 / s),
        })
    }
}

fn op_json(op: &OpCost, roof: &Roof) -> Value {
    let mut value = serde_json::to_value(op).expect("plain data can be written");
    value["bound_us"] = (op.bound_s(roof) * 1e6).into();
    value
}

fn pass_json(depth: usize, n_seq: usize, n_tokens: usize, account: &Account, roof: &Roof) -> Value {
    let (total, bound_s) = (account.total(), account.bound_s(roof));
    json!({
        "depth": depth, "n_seq": n_seq, "n_tokens": n_tokens,
        "weight_bytes": total.weight_bytes, "kv_bytes": total.kv_bytes, "act_bytes": total.act_bytes,
        "flops": total.flops, "n_dispatches": total.n_dispatches, "experts_per_layer": account.experts,
        "bound_s": bound_s, "bound_tokens_per_s": n_tokens as f64 / bound_s,
    })
}

/// A table whose columns from the third on are numbers.
fn table(header: &[&str], n_left: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(n_left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn ops_table(account: &Account, roof: &Roof) -> Table {
    let mut table =
        table(&["op", "types", "ops", "dispatches", "weights MB", "cache MB", "acts MB", "MFLOP", "bound µs", "by"], 2);
    let mb = |bytes: f64| format!("{:.2}", bytes / 1e6);
    let mut row = |op: &OpCost, bound_s: f64, by: &str| {
        table.add_row([
            op.op.clone(),
            if op.op == "total" { String::new() } else { op.types.join(",") },
            op.n_ops.to_string(),
            op.n_dispatches.to_string(),
            mb(op.weight_bytes),
            mb(op.kv_bytes),
            mb(op.act_bytes),
            format!("{:.1}", op.flops / 1e6),
            format!("{:.1}", bound_s * 1e6),
            by.to_owned(),
        ]);
    };
    for op in &account.ops {
        let by = if op.bytes() / roof.gb_per_s >= op.flops / 1e3 / roof.tflops { "bytes" } else { "flops" };
        row(op, op.bound_s(roof), by);
    }
    row(&account.total(), account.bound_s(roof), "");
    table
}

fn streams_table(streams: &[(usize, usize, Account)], roof: &Roof) -> Table {
    let mut table =
        table(&["depth", "streams", "experts", "GB/step", "of it cache", "GFLOP", "tok/s at most", "each"], 0);
    for (depth, n_seq, account) in streams {
        let (total, bound_s) = (account.total(), account.bound_s(roof));
        table.add_row([
            depth.to_string(),
            n_seq.to_string(),
            if account.experts > 0.0 { format!("{:.1}", account.experts) } else { "–".to_owned() },
            format!("{:.2}", total.bytes() / 1e9),
            bytes_text(total.kv_bytes as u64),
            format!("{:.1}", total.flops / 1e9),
            format!("{:.1}", *n_seq as f64 / bound_s),
            format!("{:.1}", 1.0 / bound_s),
        ]);
    }
    table
}

fn prompts_table(prompts: &[(usize, usize, Account)], roof: &Roof) -> Table {
    let mut table = table(&["depth", "prompt", "GB", "TFLOP", "tok/s at most", "ms at least"], 0);
    for (depth, n, account) in prompts {
        let (total, bound_s) = (account.total(), account.bound_s(roof));
        table.add_row([
            depth.to_string(),
            n.to_string(),
            format!("{:.2}", total.bytes() / 1e9),
            format!("{:.2}", total.flops / 1e12),
            format!("{:.0}", *n as f64 / bound_s),
            format!("{:.1}", bound_s * 1e3),
        ]);
    }
    table
}

fn held_table(held: &[Held]) -> Table {
    let mut table = table(&["tokens", "op", "measured µs", "bound µs", "% of the bound"], 2);
    for h in held {
        for op in &h.ops {
            table.add_row([
                h.n_tokens.to_string(),
                op.op.clone(),
                format!("{:.1}", op.us),
                format!("{:.1}", op.bound_us),
                format!("{:.0}", 100.0 * op.bound_us / op.us),
            ]);
        }
        if let Some(s) = h.model_s {
            let rate = format!("the whole model at these shares: {:.1} tok/s", h.n_tokens as f64 / s);
            table.add_row([h.n_tokens.to_string(), rate, String::new(), String::new(), String::new()]);
        }
    }
    table
}
