//! `aimo-engine tune`: measures the candidates of every size that the Vulkan kernels can be run with on this device, and
//! stores the choice for the engine to use from then on, size by size: what an interrupted run has measured stays.
//! A slow device gets fewer passes for each candidate; sizes that there is no time for stay as they are.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use engine::BackendChoice;
use engine::backend::vulkan::tune::{KNOBS, Knob, Value};
use engine::backend::vulkan::{DeviceOptions, Gpu, Tuning};
use serde::Serialize;
use serde_json::json;

use crate::args::{duration, repetitions, tokens};
use crate::commands::synth::LikeArgs;
use crate::failure::Failure;
use crate::measure::{Batch, Bench, ModelFile};
use crate::terminal::{CountProgress, warn_once};

/// Models whose shapes are measured unless one is named: a dense one and one with experts.
const MODELS: [&str; 2] = ["qwen3-8b", "gpt-oss-20b"];
/// A candidate must be faster than the size in use by this factor to be chosen: less may be noise.
const MIN_GAIN: f64 = 1.02;
/// Measurements by which a choice is confirmed: the size that was in use, and the faster one.
const N_AGAIN: usize = 2;
/// Software devices take an eighth of the prompts, and short contexts: they take minutes to fill long ones.
const CPU_PROMPT_DIVISOR: usize = 8;
const CPU_DEPTH: usize = 16;
/// Sizes that matter behind long contexts are measured behind so many times the usual one: 16,384 tokens.
const DEEP: usize = 16;

/// Arguments of `tune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Vulkan device: its number in `aimo-engine devices`, or a part of its name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Folder of edited shaders, which replace the built-in ones of the same names
    #[arg(long, value_name = "DIR")]
    shaders: Option<PathBuf>,
    /// GGUF files whose shapes and types are measured
    #[arg(short, long, value_name = "FILE,…", value_delimiter = ',', conflicts_with = "like")]
    model: Vec<PathBuf>,
    /// Only sizes whose name holds this text; the others stay as they are
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Tokens in the context before a token; sizes that only long contexts depend on take 16 times as many
    #[arg(short = 'd', long, value_name = "N", default_value_t = 1024, value_parser = tokens)]
    n_depth: usize,
    /// Most passes that are timed for each candidate, after one that is not
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = repetitions)]
    repetitions: usize,
    /// Time for all sizes, such as 10m: fewer passes where -r takes longer; sizes that it ends before stay as they are
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    budget: Duration,
    /// Measure and show, and store nothing
    #[arg(long)]
    dry_run: bool,
    /// Forget what was stored for this device: the shipped sizes are used again
    #[arg(long, conflicts_with_all = ["dry_run", "model", "like", "filter"])]
    reset: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    like: LikeArgs,
}

/// A measured size.
#[derive(Serialize)]
struct Outcome {
    name: &'static str,
    what: &'static str,
    /// In use before, and chosen.
    before: Value,
    chosen: Value,
    /// Each candidate with its time, as a multiple of that of the size in use before; below 1 is faster.
    candidates: Vec<(Value, f64)>,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let options = DeviceOptions {
        selector: args.device.as_deref(),
        shaders: args.shaders.as_deref(),
        ..DeviceOptions::default()
    };
    let gpu = Gpu::open(options).map_err(|e| Failure::device(&e))?;
    if args.reset {
        return reset(&gpu, args.json, out);
    }
    // Those that there is a choice for on this device.
    let known: Vec<&Knob> = KNOBS.iter().filter(|k| !k.candidates(gpu.info()).is_empty()).collect();
    let is_wanted = |k: &&Knob| args.filter.as_ref().is_none_or(|text| k.name.contains(text));
    let knobs: Vec<&Knob> = known.iter().copied().filter(is_wanted).collect();
    if knobs.is_empty() {
        return Err(nothing_to_choose(args.filter.as_deref().unwrap_or_default(), &known, &gpu.info().name));
    }
    if let Some(problem) = &gpu.stored_tuning().problem {
        warn_once(problem);
    }
    let (info, before) = (gpu.info().clone(), *gpu.tuning());
    let is_cpu = info.is_cpu();
    let models = models(args, is_cpu, quiet)?;
    let batches = |knob: &Knob| {
        let prompts = knob.prompts.iter().map(|n| Batch::Prompt(if is_cpu { n / CPU_PROMPT_DIVISOR } else { *n }));
        knob.columns.iter().map(|n| Batch::Columns(*n)).chain(prompts).collect::<Vec<_>>()
    };
    let all: Vec<Batch> = knobs.iter().flat_map(|k| batches(k)).collect();
    let n_candidates: usize = knobs.iter().map(|k| k.candidates(&info).len() + 1 + N_AGAIN).sum();
    let n_passes = all.len().div_ceil(knobs.len()) * n_candidates * (args.repetitions + 1) + all.len();
    let depth = if is_cpu { args.n_depth.min(CPU_DEPTH) } else { args.n_depth };
    let depth_of = |knob: &Knob| if knob.deep { DEEP * depth } else { depth };
    let deepest = knobs.iter().map(|k| depth_of(k)).max().unwrap_or(depth);
    let mut benches = Vec::new();
    for model in &models {
        benches.push(Bench::load(model, BackendChoice::Vulkan, options, false, &all, (deepest, n_passes))?);
    }
    let mut progress = CountProgress::new("measuring", n_candidates, quiet);
    let first = if is_cpu { 1 } else { args.repetitions };
    let (end, most) = (Instant::now() + args.budget, args.repetitions);
    let pace = Pace { end, n_left: n_candidates, first, most, pass: None };
    let mut measurer = Measurer { benches, pace, n_repeats: args.repetitions, done: 0 };
    let mut tuning = before;
    let (mut outcomes, mut left_out, mut unused, mut path) = (Vec::new(), Vec::new(), Vec::new(), None);
    for knob in knobs {
        if measurer.pace.is_over() {
            left_out.push(knob.name);
            continue;
        }
        let mut shown = |done: usize| progress.set(done, n_candidates, knob.name);
        measurer.benches.iter_mut().for_each(|bench| bench.set_depth(depth_of(knob)));
        let outcome = measurer.measure(knob, &knob.candidates(&info), &batches(knob), &tuning, &mut shown)?;
        match outcome {
            Some(outcome) => {
                tuning = knob.with(&tuning, &outcome.chosen);
                outcomes.push(outcome);
                if !args.dry_run {
                    path = Some(store(&gpu, &outcomes)?);
                }
            }
            None if measurer.pace.is_over() => left_out.push(knob.name),
            None => unused.push(knob.name),
        }
    }
    progress.finish();
    if args.json {
        let value = json!({
            "device": info.name, "driver": info.driver, "models": models.iter().map(|m| &m.name).collect::<Vec<_>>(),
            "stored": path, "sizes": outcomes, "left_out": left_out, "unused": unused,
        });
        return Ok(writeln!(out, "{value:#}")?);
    }
    writeln!(out, "{} ({})", info.name, info.driver)?;
    models.iter().try_for_each(|m| writeln!(out, "{}", m.name))?;
    if !outcomes.is_empty() {
        writeln!(out, "{}", table(&outcomes))?;
    }
    if !unused.is_empty() {
        writeln!(out, "not measured, since these models run no kernel that they are about: {}", unused.join(", "))?;
    }
    if !left_out.is_empty() {
        writeln!(out, "not measured, since the time was over (--budget): {}", left_out.join(", "))?;
    }
    match path {
        Some(path) => Ok(writeln!(out, "stored in {}", path.display())?),
        None if args.dry_run => Ok(writeln!(out, "nothing was stored (--dry-run)")?),
        None => Ok(writeln!(out, "nothing was stored: no size was measured")?),
    }
}

/// A filter that leaves no size: none has such a name, or those that do are of no use on the device.
fn nothing_to_choose(text: &str, known: &[&Knob], device: &str) -> Failure {
    let useless: Vec<&str> = KNOBS.iter().map(|k| k.name).filter(|name| name.contains(text)).collect();
    let names: Vec<&str> = known.iter().map(|k| k.name).collect();
    let message = match useless[..] {
        [] => format!("no size has {text:?} in its name (--filter)"),
        _ => format!("{device} lacks what these sizes are about (--filter {text:?}): {}", useless.join(", ")),
    };
    Failure::new(message, format!("there are {}", names.join(", ")))
}

fn reset(gpu: &Gpu, as_json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let stored = gpu.stored_tuning();
    let Some(path) = stored.path.as_ref().filter(|path| path.exists()) else {
        return match as_json {
            true => Ok(writeln!(out, "{}", json!({ "removed": null }))?),
            false => Ok(writeln!(out, "nothing is stored for {}", gpu.info().name)?),
        };
    };
    std::fs::remove_file(path).map_err(|e| Failure::file("remove", path, &e))?;
    match as_json {
        true => Ok(writeln!(out, "{}", json!({ "removed": path }))?),
        false => Ok(writeln!(out, "{} removed: the shipped sizes are used again", path.display())?),
    }
}

fn models(args: &Args, is_cpu: bool, quiet: bool) -> Result<Vec<ModelFile>, Failure> {
    if !args.model.is_empty() {
        return Ok(args.model.iter().map(|path| ModelFile::given(path)).collect());
    }
    if args.like.is_given() {
        return Ok(vec![ModelFile::like(&args.like, is_cpu, quiet)?]);
    }
    MODELS.iter().map(|name| ModelFile::like(&LikeArgs::named(name), is_cpu, quiet)).collect()
}

/// What was measured, on top of what is stored of the rest.
fn store(gpu: &Gpu, outcomes: &[Outcome]) -> Result<PathBuf, Failure> {
    let mut values: BTreeMap<String, Value> = gpu.stored_tuning().values.clone();
    values.extend(outcomes.iter().map(|o| (o.name.to_owned(), o.chosen.clone())));
    gpu.store_tuning(&values).map_err(|e| {
        let path = gpu.stored_tuning().path.clone().unwrap_or_default();
        Failure::file("write", &path, &e)
    })
}

/// How many passes there is time for.
struct Pace {
    end: Instant,
    /// Candidates that are still to be measured.
    n_left: usize,
    /// Timed passes for each while nothing is known, and at most.
    first: usize,
    most: usize,
    /// Time of a candidate's passes of every kind, once each, as last seen.
    pass: Option<Duration>,
}

impl Pace {
    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Timed passes for each candidate of the next size, beside one that is not timed.
    fn repeats(&self) -> usize {
        let Some(pass) = self.pass else { return self.first };
        let share = self.end.saturating_duration_since(Instant::now()) / self.n_left.max(1) as u32;
        let n_passes = share.as_nanos() / pass.as_nanos().max(1);
        (n_passes.saturating_sub(1) as usize).clamp(1, self.most)
    }

    /// A candidate was measured, with so many timed passes.
    fn count(&mut self, took: Duration, n_repeats: usize) {
        self.n_left = self.n_left.saturating_sub(1);
        self.pass = Some(took / (n_repeats as u32 + 1));
    }
}

struct Measurer {
    benches: Vec<Bench>,
    pace: Pace,
    /// Timed passes of the candidates of the size at hand.
    n_repeats: usize,
    done: usize,
}

impl Measurer {
    /// Measures each candidate, and the best again beside the size in use: of many noisy times the least may be luck, and
    /// a machine that others use has slow and fast minutes. `None` where no model has a kernel that the size matters to, or
    /// the time is over.
    fn measure(
        &mut self,
        knob: &'static Knob,
        candidates: &[Value],
        batches: &[Batch],
        tuning: &Tuning,
        progress: &mut impl FnMut(usize),
    ) -> Result<Option<Outcome>, Failure> {
        let before = knob.value(tuning);
        progress(self.done);
        self.n_repeats = self.pace.repeats();
        let base = self.score(knob, batches, tuning)?;
        self.done += 1;
        let Some(base) = base else {
            self.skip(candidates.len() + N_AGAIN);
            return Ok(None);
        };
        let mut times = vec![(before.clone(), 1.0)];
        for value in candidates.iter().filter(|v| **v != before) {
            if self.pace.is_over() {
                return Ok(None);
            }
            progress(self.done);
            if let Some(score) = self.score(knob, batches, &knob.with(tuning, value))? {
                times.push((value.clone(), (score - base).exp()));
            }
            self.done += 1;
        }
        let best = times.iter_mut().min_by(|a, b| a.1.total_cmp(&b.1)).expect("the size in use is there");
        let mut is_better = best.1 * MIN_GAIN < 1.0;
        if is_better {
            let again = [&before, &best.0].map(|value| knob.with(tuning, value));
            if let [Some(base), Some(score)] =
                [self.score(knob, batches, &again[0])?, self.score(knob, batches, &again[1])?]
            {
                let second = (score - base).exp();
                is_better = second < 1.0 && (best.1 * second).sqrt() * MIN_GAIN < 1.0;
                best.1 = (best.1 * second).sqrt();
            }
            self.done += N_AGAIN;
        } else {
            self.skip(N_AGAIN);
        }
        // The size in use may be no candidate, where a table of an older version holds it.
        let chosen = if is_better || !candidates.contains(&before) { best.0.clone() } else { before.clone() };
        Ok(Some(Outcome { name: knob.name, what: knob.what, before, chosen, candidates: times }))
    }

    /// Measurements that are not needed.
    fn skip(&mut self, n: usize) {
        self.done += n;
        self.pace.n_left = self.pace.n_left.saturating_sub(n);
    }

    /// Mean logarithm of the times of the knob's kernels, over models and passes: each pass counts the same, however
    /// long it takes.
    fn score(&mut self, knob: &Knob, batches: &[Batch], tuning: &Tuning) -> Result<Option<f64>, Failure> {
        let (mut sum, mut n) = (0.0, 0);
        let start = Instant::now();
        for bench in &mut self.benches {
            bench.retune(tuning);
            for &batch in batches {
                let measured = bench.time(batch, self.n_repeats)?;
                let us: f64 = measured
                    .ops
                    .iter()
                    .flat_map(|op| &op.kernels)
                    .filter(|k| knob.kernels.iter().any(|part| k.kernel.contains(part)))
                    .map(|k| k.us * k.n_dispatches as f64)
                    .sum();
                if us > 0.0 {
                    sum += us.ln();
                    n += 1;
                }
            }
        }
        self.pace.count(start.elapsed(), self.n_repeats);
        Ok((n > 0).then(|| sum / f64::from(n)))
    }
}

fn value_text(value: &[u32]) -> String {
    value.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["size", "before", "chosen", "time of each candidate"]);
    for o in outcomes {
        let times: Vec<String> =
            o.candidates.iter().map(|(value, time)| format!("{} {time:.2}", value_text(value))).collect();
        table.add_row([o.name.to_owned(), value_text(&o.before), value_text(&o.chosen), times.join("  ")]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_fit_the_time_that_is_left() {
        let end = Instant::now() + Duration::from_secs(100);
        let mut pace = Pace { end, n_left: 11, first: 4, most: 5, pass: None };
        assert_eq!(pace.repeats(), 4, "nothing is known yet");
        pace.count(Duration::from_secs(15), 5);
        // 10 seconds each are left, of 2.5 for a pass of every kind.
        assert_eq!((pace.n_left, pace.repeats()), (10, 2));
        pace.count(Duration::from_secs(60), 2);
        assert_eq!(pace.repeats(), 1, "one pass is timed however slow it is");
        pace.count(Duration::from_millis(4), 1);
        assert_eq!(pace.repeats(), 5, "more than asked for is never timed");
        assert!(!pace.is_over() && Pace { end: Instant::now(), ..pace }.is_over());
    }
}
