//! `aimo-engine bench`: prompt and generation speed with llama-bench's flags and field names, and beside each speed
//! what bounds it: bytes read per second as a share of the memory's measured bandwidth.
//!
//! Tokens are random and their meaning is ignored, end-of-text included; every repetition starts at the same depth.
//! With `--npl` (llama-batched-bench's `-npl`) several sequences generate side by side; the speed is that of all
//! together, and counts generated tokens only. With `--pps` (its `-pps`) a prompt is that of all of them, and its time ends
//! when each has its first token: through the scheduler, which computes it once.

mod record;
mod system;

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use engine::backend::BatchToken;
use engine::backend::vulkan::DeviceOptions;
use engine::roofline::{Pass, Roofline};
use engine::sampler::SamplerParams;
use engine::scheduler::{Scheduler, SeqId};
use engine::{Engine, EngineOptions};

use record::{Record, load_lines, record, table, write_csv};
pub use system::cpu_name;
use system::cpu_ns;

use crate::args::{CacheArgs, DeviceArgs, batch, repetitions, sequences, threads, tokens};
use crate::bandwidth;
use crate::failure::Failure;
use crate::{load, measure};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF files
    #[arg(short, long, value_name = "FILE", required = true, value_delimiter = ',')]
    model: Vec<PathBuf>,
    /// Prompt lengths; 0 = no prompt test
    #[arg(short = 'p', long, value_name = "N,…", value_delimiter = ',', default_value = "512", value_parser = tokens)]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to generate; 0 = no generation test
    #[arg(short = 'n', long, value_name = "N,…", value_delimiter = ',', default_value = "128", value_parser = tokens)]
    n_gen: Vec<usize>,
    /// Tokens in the context before a test starts
    #[arg(short = 'd', long, value_name = "N,…", value_delimiter = ',', default_value = "0", value_parser = tokens)]
    n_depth: Vec<usize>,
    /// Numbers of sequences that generate together (llama-batched-bench's -npl)
    #[arg(long = "npl", visible_alias = "n-parallel", value_name = "N,…", value_delimiter = ',', default_value = "1",
          value_parser = sequences)]
    n_parallel: Vec<usize>,
    /// Prompt tests of sequences that share the prompt, up to the first token of each (llama-batched-bench's -pps)
    #[arg(long = "pps")]
    is_shared: bool,
    /// Most tokens in one pass
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "512", value_parser = batch)]
    batch_size: Vec<usize>,
    /// CPU threads; 0 = all cores
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "0", value_parser = threads)]
    threads: Vec<usize>,
    /// Repetitions of each test, after one that is not counted
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = repetitions)]
    repetitions: usize,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    output: Format,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A Markdown table
    Md,
    /// A JSON array of objects
    Json,
    /// One line per test, with a header
    Csv,
}

/// What the passes of a test were made of, in all.
#[derive(Clone, Copy, Debug, Default)]
struct Passes {
    n: u64,
    dispatches: u64,
    submits: u64,
    /// `None` once a pass had no time.
    device_ns: Option<u64>,
    cpu_ns: Option<u64>,
}

impl Passes {
    /// Counts the pass that the engine has just run.
    fn count(&mut self, engine: &mut Engine) {
        let Some(vulkan) = engine.vulkan() else { return };
        let pass = vulkan.gpu().last_pass();
        self.device_ns =
            if self.n == 0 { pass.device_ns } else { self.device_ns.zip(pass.device_ns).map(|(a, b)| a + b) };
        self.n += 1;
        self.dispatches += u64::from(pass.n_dispatches);
        self.submits += u64::from(pass.n_submits);
    }
}

/// What is measured: `n_prompt` tokens in batches, or `n_gen` tokens one by one in each of `n_parallel` sequences, after
/// `n_depth` tokens; with `is_shared` the time until all sequences have the first token behind a common prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_parallel: usize,
    is_shared: bool,
}

/// Steps that sequences may be ahead of the last one that gets its first token.
const SHARED_ROOM: usize = 8;

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let tests = tests(args);
    if tests.is_empty() {
        return Err(Failure::Usage("nothing to measure: -p and -n are both 0".to_owned()));
    }
    if let Some(depth) = args.n_depth.iter().find(|d| args.is_shared && **d > 0) {
        return Err(Failure::Usage(format!("-d {depth} and -pps don't go together: a shared prompt starts a context")));
    }
    args.device.check()?;
    // Every file before the first measurement.
    args.model.iter().try_for_each(|path| load::open(path).map(|_| ()))?;
    let mut records = Vec::new();
    for path in &args.model {
        for (&threads, &n_batch) in args.threads.iter().flat_map(|t| args.batch_size.iter().map(move |b| (t, b))) {
            let first = records.len();
            let is_vulkan = measure_model(args, path, (threads, n_batch), &tests, quiet, &mut records)?;
            // After the tests, so that its buffer is not part of their peak memory.
            let bandwidth = match is_vulkan {
                true => device_bandwidth(args)?,
                false => bandwidth::read_gb_per_s(records[first].n_threads),
            };
            for record in &mut records[first..] {
                record.bandwidth_gb_per_s = bandwidth;
                record.bandwidth_share = record.gb_per_s.map(|rate| rate / bandwidth);
            }
        }
    }
    match args.output {
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &records)?;
            writeln!(out)?;
        }
        Format::Csv => write_csv(&records, out)?,
        Format::Md => {
            writeln!(out, "{}\n", table(&records))?;
            load_lines(&records).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
    }
    Ok(())
}

/// Read bandwidth of the Vulkan device.
fn device_bandwidth(args: &Args) -> Result<f64, Failure> {
    let options = DeviceOptions { selector: args.device.device.as_deref(), ..DeviceOptions::default() };
    Ok(measure::device(options, true)?.1.map_or(0.0, |peaks| peaks.gb_per_s()))
}

/// Prompt tests before generation tests, at each depth.
fn tests(args: &Args) -> Vec<Test> {
    let mut tests = Vec::new();
    for &n_depth in &args.n_depth {
        let test = Test { n_prompt: 0, n_gen: 0, n_depth, n_parallel: 1, is_shared: false };
        let prompt = args.n_prompt.iter().filter(|_| !args.is_shared).map(|&n_prompt| Test { n_prompt, ..test });
        let generation = args
            .n_gen
            .iter()
            .flat_map(|&n_gen| args.n_parallel.iter().map(move |&n_parallel| Test { n_gen, n_parallel, ..test }));
        tests.extend(prompt.chain(generation).filter(|t| t.n_prompt + t.n_gen > 0));
    }
    // Last: the scheduler takes the engine over.
    for &n_prompt in args.n_prompt.iter().filter(|n| args.is_shared && **n > 0) {
        tests.extend(args.n_parallel.iter().map(|&n_parallel| Test {
            n_prompt,
            n_gen: 0,
            n_depth: 0,
            n_parallel,
            is_shared: true,
        }));
    }
    tests
}

fn measure_model(
    args: &Args,
    path: &Path,
    (threads, n_batch): (usize, usize),
    tests: &[Test],
    quiet: bool,
    records: &mut Vec<Record>,
) -> Result<bool, Failure> {
    let room = |t: &Test| if t.is_shared { SHARED_ROOM } else { 0 };
    let longest = tests.iter().map(|t| t.n_depth + t.n_prompt + t.n_gen + room(t)).max().unwrap_or(0);
    let options = EngineOptions {
        n_ctx: longest,
        n_seq: tests.iter().map(|t| t.n_parallel).max().unwrap_or(1),
        // A step of generation is one pass.
        n_batch: tests.iter().map(|t| t.n_parallel).fold(n_batch, usize::max),
        n_threads: threads,
        ..args.device.options(&args.cache)
    };
    let start = Instant::now();
    let mut engine = load::load_with(path, &options, quiet)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let failed = |e: engine::Error| Failure::engine(path, &e);
    let roofline = Roofline::new(engine.gguf().header()).map_err(failed)?.with_cache(engine.kv_options());
    for &test in tests.iter().filter(|t| !t.is_shared) {
        let mut passes = Passes::default();
        let mut tokens = RandomTokens::new(engine.config().n_vocab);
        let mut samples_ns = Vec::with_capacity(args.repetitions);
        for repetition in 0..=args.repetitions {
            // What a sliding window has passed is gone, so such a model can't go back to the depth.
            if test.n_depth > 0 && (repetition == 0 || engine.config().layers.iter().any(|l| l.window.is_some())) {
                for seq in 0..test.n_parallel {
                    pass_in_batches(&mut engine, &mut tokens, seq, 0, test.n_depth).map_err(failed)?;
                }
            }
            let cpu_start = cpu_ns(engine.is_vulkan());
            let start = Instant::now();
            if test.n_prompt > 0 {
                pass_in_batches(&mut engine, &mut tokens, 0, test.n_depth, test.n_prompt).map_err(failed)?;
                if repetition > 0 {
                    passes.count(&mut engine);
                }
            } else {
                // The first repetition warms up: a few tokens touch every weight.
                let n = if repetition == 0 { test.n_gen.min(4) } else { test.n_gen };
                for i in 0..n {
                    generate(&mut engine, &mut tokens, test.n_parallel, test.n_depth + i).map_err(failed)?;
                    if repetition > 0 {
                        passes.count(&mut engine);
                    }
                }
            }
            if repetition > 0 {
                samples_ns.push(start.elapsed().as_nanos() as u64);
                let cpu = cpu_start.zip(cpu_ns(engine.is_vulkan())).map(|(start, end)| end - start);
                passes.cpu_ns = if repetition == 1 { cpu } else { passes.cpu_ns.zip(cpu).map(|(a, b)| a + b) };
            }
        }
        let step_bytes = step_bytes(&roofline, test).map_err(failed)?;
        let mut record = record(&engine, path, threads, test, samples_ns, step_bytes);
        record.load_ms = load_ms;
        record.add(&passes, engine.is_vulkan());
        keep(record, quiet, records);
    }
    let is_vulkan = engine.is_vulkan();
    let mut scheduler = Scheduler::new(engine);
    // One stream for all tests: an earlier prompt would not be computed again.
    let mut tokens = RandomTokens::new(scheduler.engine().config().n_vocab);
    for &test in tests.iter().filter(|t| t.is_shared) {
        let mut samples_ns = Vec::with_capacity(args.repetitions);
        for repetition in 0..=args.repetitions {
            let ns = first_tokens(&mut scheduler, &mut tokens, test).map_err(failed)?;
            if repetition > 0 {
                samples_ns.push(ns);
            }
        }
        let mut record = record(scheduler.engine(), path, threads, test, samples_ns, 0.0);
        record.load_ms = load_ms;
        record.first_token_ms = Some(record.avg_ns as f64 / 1e6);
        keep(record, quiet, records);
    }
    Ok(is_vulkan)
}

/// Weights and cache that a step of generation reads: keys and values of all earlier positions, on average over the
/// test, with the weights, those of each sequence.
fn step_bytes(roofline: &Roofline, test: Test) -> Result<f64, engine::Error> {
    let pass = Pass { n_seq: test.n_parallel, n_tokens: 1, depth: test.n_depth + test.n_gen / 2 };
    let total = roofline.account(pass)?.total();
    Ok(total.weight_bytes + total.kv_bytes)
}

fn keep(record: Record, quiet: bool, records: &mut Vec<Record>) {
    if !quiet {
        eprintln!("{}: {:.2} ± {:.2} tok/s", Test::of(&record).name(), record.avg_ts, record.stddev_ts);
    }
    records.push(record);
}

/// Time in ns until sequences that start with a new, common prompt have their first tokens.
fn first_tokens(scheduler: &mut Scheduler, tokens: &mut RandomTokens, test: Test) -> Result<u64, engine::Error> {
    let prompt: Vec<u32> = (0..test.n_prompt).map(|_| tokens.next()).collect();
    let sampling = SamplerParams { temperature: 0.0, ..SamplerParams::default() };
    let start = Instant::now();
    let started = (0..test.n_parallel).map(|_| scheduler.start(&prompt, &sampling));
    let seqs: Vec<SeqId> = started.collect::<Result<_, _>>()?;
    let mut waiting: HashSet<SeqId> = seqs.iter().copied().collect();
    while !waiting.is_empty() {
        for event in scheduler.step()? {
            waiting.remove(&event.seq);
        }
    }
    let ns = start.elapsed().as_nanos() as u64;
    seqs.into_iter().for_each(|seq| scheduler.release(seq));
    Ok(ns)
}

/// One step of generation: a token at position `pos` in each of `n_parallel` sequences, with logits for all.
fn generate(
    engine: &mut Engine,
    tokens: &mut RandomTokens,
    n_parallel: usize,
    pos: usize,
) -> Result<(), engine::Error> {
    let token = |seq: usize| BatchToken { token: tokens.next(), seq: seq as u32, pos: pos as u32, output: true };
    let batch: Vec<BatchToken> = (0..n_parallel).map(token).collect();
    engine.forward(&batch).map(|_| ())
}

/// Computes `n` tokens of a sequence at positions `start..`, with logits for the last one, as a request would.
fn pass_in_batches(
    engine: &mut Engine,
    tokens: &mut RandomTokens,
    seq: usize,
    start: usize,
    n: usize,
) -> Result<(), engine::Error> {
    let n_batch = engine.n_batch();
    let mut done = 0;
    while done < n {
        let size = n_batch.min(n - done);
        let batch: Vec<BatchToken> = (done..done + size)
            .map(|i| BatchToken { token: tokens.next(), seq: seq as u32, pos: (start + i) as u32, output: i + 1 == n })
            .collect();
        engine.forward(&batch)?;
        done += size;
    }
    Ok(())
}

impl Test {
    fn of(r: &Record) -> Test {
        let (n_prompt, n_gen, n_depth, n_parallel) = (r.n_prompt, r.n_gen, r.n_depth, r.n_parallel);
        Test { n_prompt, n_gen, n_depth, n_parallel, is_shared: r.is_pp_shared }
    }

    /// llama-bench's name of the test, e.g. `pp512` or `tg128 @ d4096`.
    fn name(self) -> String {
        let kind = if self.n_prompt > 0 { format!("pp{}", self.n_prompt) } else { format!("tg{}", self.n_gen) };
        let kind = if self.is_shared { format!("{kind} shared") } else { kind };
        let kind = if self.n_parallel > 1 { format!("{kind} × {}", self.n_parallel) } else { kind };
        if self.n_depth > 0 { format!("{kind} @ d{}", self.n_depth) } else { kind }
    }
}

/// A reproducible stream of token ids (a linear congruential generator; their meaning doesn't matter).
struct RandomTokens {
    state: u64,
    n_vocab: u64,
}

impl RandomTokens {
    fn new(n_vocab: usize) -> Self {
        RandomTokens { state: 1, n_vocab: n_vocab as u64 }
    }

    fn next(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % self.n_vocab) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        let test = |n_prompt, n_gen, n_depth, n_parallel| {
            Test { n_prompt, n_gen, n_depth, n_parallel, is_shared: false }.name()
        };
        let shared = Test { n_prompt: 512, n_gen: 0, n_depth: 0, n_parallel: 8, is_shared: true };
        assert_eq!(shared.name(), "pp512 shared × 8");
        assert_eq!(test(512, 0, 0, 1), "pp512");
        assert_eq!(test(0, 128, 4096, 1), "tg128 @ d4096");
        assert_eq!(test(0, 128, 0, 8), "tg128 × 8");
    }
}
