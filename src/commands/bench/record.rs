//! What `bench` says of a test: its record, and records as a table or as lines of CSV. A field has llama-bench's name where
//! that has the field; those beside it say what bounds the speed and what it costs.

use std::io::Write;
use std::path::Path;

use comfy_table::{Table, presets};
use engine::Engine;
use serde::Serialize;

use super::system::{cpu_name, peak_rss_bytes};
use super::{Passes, Test};
use crate::failure::Failure;

/// One test of one model. Field names are llama-bench's where it has the field.
#[derive(Debug, Serialize)]
pub struct Record {
    pub build_number: &'static str,
    pub cpu_info: String,
    pub backends: String,
    pub model_filename: String,
    pub model_type: String,
    pub model_size: u64,
    pub model_n_params: u64,
    pub n_batch: usize,
    pub n_threads: usize,
    pub type_k: &'static str,
    pub type_v: &'static str,
    pub n_prompt: usize,
    pub n_gen: usize,
    pub n_depth: usize,
    /// Sequences that generate together.
    pub n_parallel: usize,
    /// Whether the prompt is that of all sequences, and its time ends with the first token of each.
    pub is_pp_shared: bool,
    pub avg_ns: u64,
    pub stddev_ns: u64,
    pub avg_ts: f64,
    pub stddev_ts: f64,
    pub samples_ns: Vec<u64>,
    pub samples_ts: Vec<f64>,
    /// Weights and cache that one step of generation reads, times steps per second; absent for prompts. Of experts those
    /// count that the sequences are expected to choose.
    pub gb_per_s: Option<f64>,
    /// Read bandwidth of the memory, measured after the tests: of the Vulkan device, or of the CPU with the same threads.
    pub bandwidth_gb_per_s: f64,
    /// `gb_per_s / bandwidth_gb_per_s`.
    pub bandwidth_share: Option<f64>,
    /// Most resident memory of the process so far (mapped weights included), where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Time from the program's request for the model to its being ready.
    pub load_ms: f64,
    /// Of a prompt: until the logits of its last token are there.
    pub first_token_ms: Option<f64>,
    /// On Vulkan: kernels that a step of generation starts, submits that it is cut into.
    pub dispatches_per_step: Option<f64>,
    pub submits_per_step: Option<f64>,
    /// On Vulkan: time on the device per token, where it tells.
    pub device_us_per_token: Option<f64>,
    /// Processor time per token: on Vulkan of the thread that records and submits, on the CPU of all threads.
    pub cpu_us_per_token: Option<f64>,
}

impl Record {
    /// What its passes were made of.
    pub fn add(&mut self, passes: &Passes, is_vulkan: bool) {
        let n_tokens = ((self.n_prompt + self.n_gen * self.n_parallel) * self.samples_ns.len()) as f64;
        self.cpu_us_per_token = passes.cpu_ns.map(|ns| ns as f64 / n_tokens / 1e3);
        self.first_token_ms = (self.n_prompt > 0).then_some(self.avg_ns as f64 / 1e6);
        if is_vulkan && self.n_gen > 0 {
            self.dispatches_per_step = Some(passes.dispatches as f64 / passes.n as f64);
            self.submits_per_step = Some(passes.submits as f64 / passes.n as f64);
            self.device_us_per_token = passes.device_ns.map(|ns| ns as f64 / n_tokens / 1e3);
        }
    }
}

/// The record of a test that took `samples_ns`, whose steps of generation read `step_bytes` each.
pub fn record(
    engine: &Engine,
    path: &Path,
    threads: usize,
    test: Test,
    samples_ns: Vec<u64>,
    step_bytes: f64,
) -> Record {
    let n_tokens = (test.n_prompt + test.n_gen * test.n_parallel) as f64;
    let samples_ts: Vec<f64> = samples_ns.iter().map(|ns| n_tokens * 1e9 / *ns as f64).collect();
    let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
    let (avg_ns, stddev_ns) = mean_and_deviation(&samples_ns.iter().map(|ns| *ns as f64).collect::<Vec<_>>());
    let config = engine.config();
    let kv = engine.kv_options();
    let file = engine.gguf();
    Record {
        build_number: env!("CARGO_PKG_VERSION"),
        cpu_info: cpu_name(),
        backends: engine.backend_name(),
        model_filename: path.display().to_string(),
        model_type: format!("{} {}", config.arch.name(), largest_type(engine)),
        model_size: file.tensors().iter().map(|t| t.bytes).sum(),
        model_n_params: file.tensors().iter().map(|t| t.dims.iter().product::<u64>()).sum(),
        n_batch: engine.n_batch(),
        n_threads: effective_threads(threads),
        type_k: kv.k.name(),
        type_v: kv.v.name(),
        n_prompt: test.n_prompt,
        n_gen: test.n_gen,
        n_depth: test.n_depth,
        n_parallel: test.n_parallel,
        is_pp_shared: test.is_shared,
        avg_ns: avg_ns as u64,
        stddev_ns: stddev_ns as u64,
        avg_ts,
        stddev_ts,
        samples_ns,
        samples_ts,
        gb_per_s: (test.n_gen > 0).then(|| step_bytes * avg_ts / test.n_parallel as f64 / 1e9),
        bandwidth_gb_per_s: 0.0,
        bandwidth_share: None,
        peak_rss_bytes: peak_rss_bytes(),
        load_ms: 0.0,
        first_token_ms: None,
        dispatches_per_step: None,
        submits_per_step: None,
        device_us_per_token: None,
        cpu_us_per_token: None,
    }
}

/// Every field of the records but the lists of samples.
pub fn write_csv(records: &[Record], out: &mut impl Write) -> Result<(), Failure> {
    let mut writer = csv::Writer::from_writer(out);
    let failed = |e: csv::Error| Failure::from(std::io::Error::other(e));
    for (i, record) in records.iter().enumerate() {
        let value = serde_json::to_value(record)?;
        let fields: Vec<_> = value.as_object().into_iter().flatten().filter(|(_, v)| !v.is_array()).collect();
        if i == 0 {
            writer.write_record(fields.iter().map(|(name, _)| name.as_str())).map_err(failed)?;
        }
        let text = |v: &serde_json::Value| match v {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        writer.write_record(fields.iter().map(|(_, v)| text(v))).map_err(failed)?;
    }
    Ok(writer.flush()?)
}

/// A row for each test.
pub fn table(records: &[Record]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header([
        "model",
        "size",
        "params",
        "backend",
        "cache",
        "threads",
        "test",
        "t/s",
        "GB/s",
        "of memory",
        "peak MB",
        "first ms",
        "launches",
        "GPU µs",
        "CPU µs",
    ]);
    for r in records {
        table.add_row([
            r.model_type.clone(),
            format!("{:.2} GiB", r.model_size as f64 / f64::from(1 << 30)),
            format!("{:.2} B", r.model_n_params as f64 / 1e9),
            r.backends.clone(),
            if r.type_k == r.type_v { r.type_k.to_owned() } else { format!("{}/{}", r.type_k, r.type_v) },
            r.n_threads.to_string(),
            Test::of(r).name(),
            format!("{:.2} ± {:.2}", r.avg_ts, r.stddev_ts),
            r.gb_per_s.map_or_else(String::new, |x| format!("{x:.1}")),
            r.bandwidth_share
                .map_or_else(String::new, |x| format!("{:.0} % of {:.1}", 100.0 * x, r.bandwidth_gb_per_s)),
            r.peak_rss_bytes.map_or_else(String::new, |x| (x / 1_000_000).to_string()),
            number(r.first_token_ms),
            number(r.dispatches_per_step),
            number(r.device_us_per_token),
            number(r.cpu_us_per_token),
        ]);
    }
    table
}

/// How long each model took to load: a line for each time that one was.
pub fn load_lines(records: &[Record]) -> Vec<String> {
    let of = |r: &Record| (r.model_filename.clone(), r.n_threads, r.n_batch, r.load_ms.to_bits());
    let loads: Vec<&Record> = records.chunk_by(|a, b| of(a) == of(b)).map(|tests| &tests[0]).collect();
    let line = |r: &&Record| {
        let rate = r.model_size as f64 / r.load_ms / 1e6;
        let threads = if r.n_threads == 1 { "thread" } else { "threads" };
        format!(
            "{} loaded in {:.0} ms, {rate:.2} GB/s ({} {threads}, up to {} tokens in a pass)",
            r.model_filename, r.load_ms, r.n_threads, r.n_batch
        )
    };
    loads.iter().map(line).collect()
}

/// Nothing where there is no value.
fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |x| format!("{x:.0}"))
}

/// The type that holds most of the weights.
fn largest_type(engine: &Engine) -> &'static str {
    let mut bytes = std::collections::BTreeMap::new();
    for t in engine.gguf().tensors() {
        *bytes.entry(t.ty).or_insert(0u64) += t.bytes;
    }
    bytes.into_iter().max_by_key(|(_, n)| *n).map_or("", |(ty, _)| ty.name())
}

fn effective_threads(threads: usize) -> usize {
    if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    if samples.len() < 2 {
        return (mean, 0.0);
    }
    let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_sample_deviation() {
        assert_eq!(mean_and_deviation(&[2.0, 4.0, 6.0]), (4.0, 2.0));
        assert_eq!(mean_and_deviation(&[3.0]), (3.0, 0.0));
    }
}
