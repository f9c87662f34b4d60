//! The command line: names and defaults of all commands and of the argument groups they share. Parsing does no I/O;
//! each command resolves its arguments itself. Where llama.cpp has a flag, it is called the same here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::chat::harmony::ReasoningEffort;
use engine::sampler::SamplerParams;
use serde::{Deserialize, Serialize};
use solver::Protocol;

use crate::commands::{
    bench, devices, eval, generate, info, kernels, logits, perplexity, python, replay, report, roofline, run, synth,
    tokenize, tune,
};

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

/// The arguments with the long flags that llama.cpp's benchmarks write with one dash (`-npl 1,2,4`) as clap knows them.
pub fn with_long_dashes(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut is_bench = false;
    args.map(move |arg| {
        is_bench |= arg == "bench";
        if is_bench && arg == "-npl" { "--npl".into() } else { arg }
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
    /// Run under Vulkan's validation layers
    #[arg(long)]
    pub validation: bool,
    /// Folder of edited shaders, which replace the built-in ones of the same names (docs/kernels.md)
    #[arg(long, value_name = "DIR")]
    #[serde(default)]
    pub shaders: Option<PathBuf>,
}

/// A model and how it is loaded.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// GGUF file
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// Tokens that a sequence can hold; 0 = as trained, at most 4096
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub ctx_size: usize,
    /// Most tokens in one pass
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub batch_size: usize,
    /// CPU threads; 0 = all cores
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Where to compute.
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceArgs,
}

/// How tokens are chosen.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed: the same seed gives the same tokens
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Temperature; 0 = always the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = temperature)]
    pub temp: f32,
    /// Keep the K likeliest tokens; 0 = all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: usize,
    /// Keep the likeliest tokens whose probabilities sum to P; 1 = off
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    pub top_p: f32,
    /// Keep tokens with at least P times the probability of the likeliest; 0 = off
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability)]
    pub min_p: f32,
    /// Divide the logits of tokens that occurred lately by this; 1 = off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = penalty)]
    pub repeat_penalty: f32,
    /// How many tokens "lately" means
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub repeat_last_n: usize,
}

impl SamplingArgs {
    /// The engine's parameters.
    pub fn params(&self, n_top_logprobs: usize) -> SamplerParams {
        SamplerParams {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: self.seed,
            n_top_logprobs,
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
    fn numbers_out_of_range_are_refused() {
        assert!(temperature("nan").is_err());
        assert!(temperature("-0.1").is_err());
        assert_eq!(temperature("0"), Ok(0.0));
        assert!(probability("1.01").is_err());
        assert!(penalty("0").is_err());
        assert!(at_least_one("0").is_err());
        assert!(seconds("inf").is_err());
        for (text, s) in [("5h", 18_000), ("1h30m", 5_400), ("1h 30m", 5_400), ("350s", 350), ("90", 90)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(s)), "{text}");
        }
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "0s", "-5h", "5x", "nan", "99999999999h"] {
            assert!(duration(text).unwrap_err().contains("such as 5h"), "{text}");
        }
    }
}
