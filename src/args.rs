//! The command line: names and defaults of all commands and of the argument groups they share. Parsing does no I/O;
//! each command resolves its arguments itself. Where llama.cpp has a flag, it is called the same here.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::chat::harmony::ReasoningEffort;
use engine::drafts::{DraftOptions, MAX_DRAFT};
use engine::kv::{KvOptions, KvType};
use engine::sampler::SamplerParams;
use engine::{Engine, EngineOptions};
use serde::{Deserialize, Serialize};
use solver::Protocol;

use crate::commands::{
    bench, devices, eval, generate, info, kernels, logits, perplexity, python, replay, report, roofline, run, synth,
    tokenize, tune,
};
use crate::failure::Failure;

/// Solves olympiad-level maths problems with a local language model, offline, in one program.
#[derive(Debug, Parser)]
#[command(name = "aimo-engine", version, max_term_width = 110)]
pub struct Cli {
    /// No progress on standard error
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The arguments with the long flags that llama.cpp writes with one dash (`-ctk q8_0`, and in its benchmarks
/// `-npl 1,2,4`) as clap knows them.
pub fn with_long_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut is_bench = false;
    args.map(move |arg| {
        is_bench |= arg == "bench";
        match arg.to_str() {
            Some("-npl") if is_bench => "--npl".into(),
            Some("-pps") if is_bench => "--pps".into(),
            Some("-ctk") => "--cache-type-k".into(),
            Some("-ctv") => "--cache-type-v".into(),
            _ => arg,
        }
    })
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Solve problems: the model thinks, writes Python, sees its output, and answers; attempts vote
    Run(Box<run::Args>),
    /// Measure a model on a set with answers: pass@k, maj@k, accuracy, cost, over several runs; compare two
    Eval(Box<eval::Args>),
    /// Show a run again from its journal
    Replay(replay::Args),
    /// Write a run as one HTML page, or in short as text
    Report(report::Args),
    /// Continue a text, or answer a message with --chat
    Generate(Box<generate::Args>),
    /// Show what a model is and takes: parameters, bytes per token, memory; also of one that isn't there
    Info(info::Args),
    /// Show the tokens of a text
    Tokenize(tokenize::Args),
    /// Print or save the logits of a prompt's last position
    Logits(logits::Args),
    /// Measure prompt and generation speed, memory bandwidth and peak memory
    Bench(bench::Args),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::Args),
    /// Write a model of random weights with the shapes and types of a published one
    Synth(synth::Args),
    /// List the devices that a model can run on
    Devices(devices::Args),
    /// List the compute kernels, time and check them, see what a driver makes of them, also for a chip that is not here
    Kernels(Box<kernels::Args>),
    /// Show what every op of a model must move and compute, and how fast a device could run it at best
    Roofline(Box<roofline::Args>),
    /// Measure which sizes of the Vulkan kernels are fastest on this device, and use them from then on
    Tune(Box<tune::Args>),
    /// Run Python in the sandbox: a REPL, `-c CODE`, or a file
    Python(python::Args),
    /// One session's process, started by the program itself
    #[command(hide = true)]
    PythonWorker,
}

/// Which device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A real GPU where there is one, else the CPU
    Auto,
    /// A Vulkan device: the best GPU, or a software one where there is no other
    Vulkan,
    /// The CPU
    Cpu,
}

impl From<Backend> for engine::BackendChoice {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => engine::BackendChoice::Auto,
            Backend::Vulkan => engine::BackendChoice::Vulkan,
            Backend::Cpu => engine::BackendChoice::Cpu,
        }
    }
}

/// Which device, and how it computes.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub backend: Backend,
    /// Vulkan device: its number in `aimo-engine devices`, or a part of its name
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Keep activations in f32 in products with quantised weights (slower, closer to the reference)
    #[arg(long)]
    pub exact: bool,
    /// Leave the weights as they lie in the file: less memory, and slower for several sequences on the CPU
    #[arg(long)]
    #[serde(default)]
    pub no_repack: bool,
    /// Products of a few tokens in integers on every Vulkan device, not only on those that are fast at it
    #[arg(long, conflicts_with = "exact")]
    #[serde(default)]
    pub integer_dot: bool,
    /// Run under Vulkan's validation layers
    #[arg(long)]
    pub validation: bool,
    /// Folder of edited shaders, which replace the built-in ones of the same names (docs/kernels.md)
    #[arg(long, value_name = "DIR")]
    #[serde(default)]
    pub shaders: Option<PathBuf>,
}

impl DeviceArgs {
    /// Refuses a Vulkan device for what runs on the CPU.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.device {
            Some(device) if self.backend == Backend::Cpu => Err(Failure::Usage(format!(
                "--device {device} names a Vulkan device and --backend cpu uses none: give one of the two"
            ))),
            _ => Ok(()),
        }
    }

    /// The engine's options, but for sizes and threads.
    pub fn options(&self, cache: &CacheArgs) -> EngineOptions {
        EngineOptions {
            backend: self.backend.into(),
            device: self.device.clone(),
            exact: self.exact,
            repack: !self.no_repack,
            integer_dot: self.integer_dot,
            validation: self.validation,
            shaders: self.shaders.clone(),
            kv: cache.options(),
            kv_bytes: cache.kv_memory,
            ..EngineOptions::default()
        }
    }
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Cache")]
#[serde(default)]
pub struct CacheArgs {
    /// Type of the keys, f16 or q8_0; short: -ctk
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type())]
    #[serde(with = "as_text")]
    pub cache_type_k: KvType,
    /// Type of the values, f16 or q8_0; short: -ctv
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_type())]
    #[serde(with = "as_text")]
    pub cache_type_v: KvType,
    /// Most memory for keys and values, such as 512M or 8G; by default the full context of every sequence with -c, half
    /// of the free memory without. When it is used up, sequences take turns: the one started last waits and is computed
    /// again later
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub kv_memory: Option<u64>,
}

impl CacheArgs {
    /// The engine's options.
    pub fn options(&self) -> KvOptions {
        KvOptions { k: self.cache_type_k, v: self.cache_type_v }
    }
}

/// A type of keys or values, by name.
pub fn kv_type() -> impl TypedValueParser<Value = KvType> {
    PossibleValuesParser::new(KvType::ALL.map(KvType::name)).map(|name| name.parse().expect("only names of types"))
}

/// Values that the journal keeps as their names.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'d, T: FromStr<Err = String>, D: Deserializer<'d>>(from: D) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// Drafts of the next tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Drafts")]
#[serde(default)]
pub struct DraftArgs {
    /// Most tokens that are drafted from what was written before and verified at once, where that is faster; the text
    /// stays the same. 0 = none
    #[arg(long, visible_aliases = ["draft", "draft-n"], value_name = "N", default_value_t = DraftArgs::default().draft_max,
          value_parser = draft_length)]
    pub draft_max: usize,
    /// Tokens of a draft that are verified even where that isn't expected to be faster
    #[arg(long, visible_alias = "draft-n-min", value_name = "N", default_value_t = 0, value_parser = draft_length)]
    pub draft_min: usize,
    /// No drafts
    #[arg(long)]
    pub no_drafts: bool,
}

impl Default for DraftArgs {
    fn default() -> Self {
        DraftArgs { draft_max: 8, draft_min: 0, no_drafts: false }
    }
}

impl DraftArgs {
    /// The engine's options.
    pub fn options(&self) -> DraftOptions {
        if self.no_drafts {
            return DraftOptions::default();
        }
        DraftOptions { max: self.draft_max, min: self.draft_min.min(self.draft_max) }
    }
}

fn draft_length(text: &str) -> Result<usize, String> {
    whole(text, 0..=MAX_DRAFT)
}

/// A model and how it is loaded.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// GGUF file
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Tokens that a sequence can hold; 0 = as trained, as far as they fit half of the free memory (or --kv-memory)
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub ctx_size: usize,
    /// Most tokens in one pass
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub batch_size: usize,
    /// CPU threads; 0 = all cores
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Where to compute.
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceArgs,
    /// How keys and values are kept.
    #[command(flatten)]
    #[serde(flatten)]
    pub cache: CacheArgs,
}

impl ModelArgs {
    /// Takes the context that a model was loaded with, and the memory of its cache where both were left to the machine.
    pub fn keep(&mut self, engine: &Engine) {
        if self.ctx_size == 0 {
            self.ctx_size = engine.n_ctx();
            self.cache.kv_memory.get_or_insert(engine.kv_bytes());
        }
    }
}

/// How tokens are chosen.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed: the same seed gives the same tokens
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Temperature; 0 = always the likeliest token
    #[arg(long, value_name = "T", default_value_t = SamplerParams::default().temperature, value_parser = temperature)]
    pub temp: f32,
    /// Keep the K likeliest tokens; 0 = all
    #[arg(long, value_name = "K", default_value_t = SamplerParams::default().top_k)]
    pub top_k: usize,
    /// Keep the likeliest tokens whose probabilities sum to P; 1 = off
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().top_p, value_parser = probability)]
    pub top_p: f32,
    /// Keep tokens with at least P times the probability of the likeliest; 0 = off
    #[arg(long, value_name = "P", default_value_t = SamplerParams::default().min_p, value_parser = probability)]
    pub min_p: f32,
    /// Divide the logits of tokens that occurred lately by this; 1 = off
    #[arg(long, value_name = "X", default_value_t = SamplerParams::default().repeat_penalty, value_parser = penalty)]
    pub repeat_penalty: f32,
    /// How many tokens "lately" means
    #[arg(long, value_name = "N", default_value_t = SamplerParams::default().repeat_last_n)]
    pub repeat_last_n: usize,
}

impl SamplingArgs {
    /// The engine's parameters.
    pub fn params(&self) -> SamplerParams {
        SamplerParams {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed,
            n_top_logprobs: 0,
        }
    }
}

/// A protocol, by name.
pub fn protocol() -> impl TypedValueParser<Value = Protocol> {
    PossibleValuesParser::new(Protocol::ALL.map(|p| PossibleValue::new(p.name()).help(p.description())))
        .map(|name| name.parse().expect("only names of protocols are let through"))
}

/// A reasoning effort, by name.
pub fn reasoning_effort() -> impl TypedValueParser<Value = ReasoningEffort> {
    PossibleValuesParser::new(ReasoningEffort::ALL.map(ReasoningEffort::name))
        .map(|name| name.parse().expect("only names of efforts are let through"))
}

/// A count of at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n >= 1 => Ok(n),
        _ => Err("must be a whole number of at least 1".to_owned()),
    }
}

/// Most tokens of a prompt, a text or a context that is measured.
const MAX_TOKENS: usize = 1 << 24;
/// Most tokens of a pass that is measured.
const MAX_BATCH: usize = 1 << 16;
/// Most sequences that are measured together.
const MAX_SEQUENCES: usize = 1 << 12;
/// Most repetitions of a measurement.
const MAX_REPETITIONS: usize = 10_000;
/// Most threads: more than any machine has.
const MAX_THREADS: usize = 1 << 10;

/// A number of tokens to measure; 0 = none.
pub fn tokens(text: &str) -> Result<usize, String> {
    whole(text, 0..=MAX_TOKENS)
}

/// The same where there must be some.
pub fn some_tokens(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_TOKENS)
}

/// Tokens of a prompt in a single pass; 0 = none.
pub fn prompt(text: &str) -> Result<usize, String> {
    whole(text, 0..=MAX_BATCH)
}

/// Tokens of a pass.
pub fn batch(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_BATCH)
}

/// Sequences that are measured together.
pub fn sequences(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_SEQUENCES)
}

/// How often something is measured.
pub fn repetitions(text: &str) -> Result<usize, String> {
    whole(text, 1..=MAX_REPETITIONS)
}

/// CPU threads; 0 = all cores.
pub fn threads(text: &str) -> Result<usize, String> {
    whole(text, 0..=MAX_THREADS)
}

fn whole(text: &str, allowed: RangeInclusive<usize>) -> Result<usize, String> {
    let message = || format!("must be a whole number from {} to {}", allowed.start(), allowed.end());
    text.parse().ok().filter(|n| allowed.contains(n)).ok_or_else(message)
}

/// A size such as `8G`, `512MiB` or `1.5g`, in powers of 1024; a number alone is bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let message = || "must be a size such as 512M or 8G".to_owned();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(message()),
    };
    let number = number.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0).ok_or_else(message)?;
    Ok((number * (1u64 << shift) as f64).min(u64::MAX as f64) as u64)
}

/// A time such as `5h`, `1h30m` or `90s`; a number alone is seconds. More than 0, at most 10⁹ s.
pub fn duration(text: &str) -> Result<Duration, String> {
    let message = || "must be a time above 0, such as 5h, 1h30m, 350s or 90 (seconds)".to_owned();
    if text.parse::<f64>().is_ok() {
        return seconds(text).map(Duration::from_secs_f64).map_err(|_| message());
    }
    let time = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    time.filter(|d| !d.is_zero() && d.as_secs() <= 1_000_000_000).ok_or_else(message)
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0, "must be a number above 0")
}

/// A time of more than 0 s, at most 10⁹ s.
pub fn seconds(text: &str) -> Result<f64, String> {
    number(text, |x| x > 0.0 && x <= 1e9, "must be a number of seconds above 0")
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, |x| x >= 0.0, "must be a number of at least 0").map(|x| x as f32)
}

fn probability(text: &str) -> Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "must be a number from 0 to 1").map(|x| x as f32)
}

fn penalty(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0, "must be a number above 0").map(|x| x as f32)
}

fn number(text: &str, allowed: impl Fn(f64) -> bool, message: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|x| x.is_finite() && allowed(*x)).ok_or_else(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_llama_cpp_with_one_dash_are_understood() {
        let args = |text: &str| with_long_dashes(text.split(' ').map(OsString::from)).collect::<Vec<_>>();
        assert_eq!(args("x bench -ctk q8_0 -npl 1")[2..4], ["--cache-type-k", "q8_0"]);
        assert_eq!(args("x run -npl -ctv q8_0")[2..4], ["-npl", "--cache-type-v"]);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(temperature("nan").is_err());
        assert!(temperature("-0.1").is_err());
        assert_eq!(temperature("0"), Ok(0.0));
        assert!(probability("1.01").is_err());
        assert!(penalty("0").is_err());
        assert!(at_least_one("0").is_err());
        assert!(seconds("inf").is_err());
        assert!(draft_length("17").is_err() && draft_length("16") == Ok(16));
        assert_eq!((tokens("0"), tokens("16777216"), some_tokens("1")), (Ok(0), Ok(1 << 24), Ok(1)));
        assert!(tokens("16777217").is_err() && some_tokens("0").is_err() && tokens("-1").is_err());
        for bounded in [tokens, some_tokens, batch, sequences, repetitions, threads] {
            assert!(bounded("18446744073709551615").is_err_and(|e| e.starts_with("must be a whole number from ")));
        }
        assert_eq!(bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!((bytes("512m"), bytes("4096")), (Ok(512 << 20), Ok(4096)));
        assert!(["", "M", "-1G", "3 apples", "0"].iter().all(|t| bytes(t).is_err()));
        for (text, s) in [("5h", 18_000), ("1h30m", 5_400), ("1h 30m", 5_400), ("350s", 350), ("90", 90)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(s)), "{text}");
        }
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "0s", "-5h", "5x", "nan", "99999999999h"] {
            assert!(duration(text).unwrap_err().contains("such as 5h"), "{text}");
        }
    }
}
