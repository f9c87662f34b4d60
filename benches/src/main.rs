//! Measures `aimo-engine bench` and, where one is given, `llama-bench` alternately on the same model and threads, so
//! that both meet the same state of the machine; prints medians with their ratio and keeps the raw records.
//!
//! Owns no measurement itself: both programs time their own work and report it in the same JSON fields. Ratios of two
//! separate runs are never formed. Records lie under `benches/runs/<date>-<machine>/`.

mod record;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use record::{Machine, Run, Sample, Subject};

/// Measures prompt and generation speed and peak memory, side by side with llama-bench.
#[derive(Debug, Parser)]
struct Args {
    /// GGUF files
    #[arg(short, long, required = true, value_delimiter = ',')]
    model: Vec<PathBuf>,
    /// llama-bench; without it only this engine is measured
    #[arg(long, env = "LLAMA_BENCH", value_name = "PROGRAM")]
    llama_bench: Option<PathBuf>,
    /// aimo-engine; by default the one that was built with this program
    #[arg(long, value_name = "PROGRAM")]
    aimo_engine: Option<PathBuf>,
    /// CPU threads
    #[arg(short, long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
    /// Prompt lengths
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Numbers of generated tokens
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "64")]
    n_gen: Vec<usize>,
    /// Tokens in the context before a test
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0")]
    n_depth: Vec<usize>,
    /// Rounds; each runs every test once with each program
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// Context for the memory measurement; 0 = none
    #[arg(long, default_value_t = 4096)]
    memory_ctx: usize,
    /// Where the records go
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/runs"))]
    runs: PathBuf,
    /// More arguments for aimo-engine bench, e.g. `--backend cpu`
    #[arg(last = true)]
    more: Vec<String>,
}

/// One test; llama-bench's three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let ours = match &args.aimo_engine {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("aimo-engine"),
    };
    if !ours.is_file() {
        bail!("{} is not there; build it with `cargo build --release` or give --aimo-engine", ours.display());
    }
    if cfg!(debug_assertions) && args.aimo_engine.is_none() {
        bail!("this is a debug build, and so is the engine beside it; measure with `cargo run --release -p benches`");
    }
    let mut programs = vec![(Subject::AimoEngine, ours)];
    programs.extend(args.llama_bench.clone().map(|path| (Subject::LlamaBench, path)));
    let machine = Machine::this()?;
    for model in &args.model {
        let run = measure(&args, &programs, model, &machine)?;
        print!("{}", run.table());
        let path = run.save(&args.runs)?;
        println!("\nrecords: {}\n", path.display());
    }
    Ok(())
}

fn measure(args: &Args, programs: &[(Subject, PathBuf)], model: &Path, machine: &Machine) -> Result<Run> {
    let mut tests = Vec::new();
    for &n_depth in &args.n_depth {
        tests.extend(args.n_prompt.iter().map(|&n_prompt| Test { n_prompt, n_gen: 0, n_depth }));
        tests.extend(args.n_gen.iter().map(|&n_gen| Test { n_prompt: 0, n_gen, n_depth }));
    }
    tests.retain(|t| t.n_prompt + t.n_gen > 0);
    let mut run = Run::new(machine.clone(), model, args.threads)?;
    for round in 1..=args.rounds {
        for test in &tests {
            for (subject, program) in programs {
                let record = measure_once(args, *subject, program, model, *test)?;
                let sample = Sample { round, subject: *subject, record };
                eprintln!("round {round} of {}: {}", args.rounds, sample.line());
                run.samples.push(sample);
            }
        }
    }
    if args.memory_ctx > 16 {
        let test = Test { n_prompt: 0, n_gen: 16, n_depth: args.memory_ctx - 16 };
        let (subject, program) = &programs[0];
        run.memory = Some(measure_once(args, *subject, program, model, test)?);
    }
    Ok(run)
}

/// Runs one program once and gives its only record.
fn measure_once(args: &Args, subject: Subject, program: &Path, model: &Path, test: Test) -> Result<serde_json::Value> {
    let mut command = Command::new(program);
    if subject == Subject::AimoEngine {
        command.args(["--quiet", "bench"]).args(&args.more);
    }
    command.arg("-m").arg(model).args(["-o", "json", "-r", "1"]);
    for (flag, n) in [("-t", args.threads), ("-p", test.n_prompt), ("-n", test.n_gen), ("-d", test.n_depth)] {
        command.args([flag, &n.to_string()]);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", program.display(), output.status, message.trim());
    }
    let records: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{} did not print a JSON array", program.display()))?;
    match <[serde_json::Value; 1]>::try_from(records) {
        Ok([record]) => Ok(record),
        Err(records) => bail!("{} printed {} records; expected 1", program.display(), records.len()),
    }
}
