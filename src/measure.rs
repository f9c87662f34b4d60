//! A model to measure kernels on (a file, or random weights of a published shape), and a pass of it with every kernel
//! timed. Used by the commands `kernels --time`, `kernels --check` and `tune`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use engine::backend::BatchToken;
use engine::backend::vulkan::{DeviceInfo, DeviceOptions, Gpu, Peaks, Tuning, VulkanError, measure_peaks};
use engine::synth::{Plan, WriteOptions};
use engine::{BackendChoice, Engine, EngineOptions};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::commands::synth::{self, LikeArgs};
use crate::failure::Failure;
use crate::terminal::{ByteProgress, warn_once};

/// A model file; one that was made for the measurement is removed afterwards.
pub struct ModelFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What it is called.
    pub name: String,
    _folder: Option<TempDir>,
}

impl ModelFile {
    /// A file that is there.
    pub fn given(path: &Path) -> ModelFile {
        ModelFile { path: path.to_owned(), name: path.display().to_string(), _folder: None }
    }

    /// Random weights in the shapes of a published model, in a temporary file.
    ///
    /// # Errors
    /// There is no such model, or no room for it.
    pub fn like(like: &LikeArgs, is_small: bool, quiet: bool) -> Result<ModelFile, Failure> {
        let plan: Plan = like.to_measure(is_small).plan(0)?;
        let folder = tempfile::tempdir().map_err(|e| Failure::file("make a folder in", &std::env::temp_dir(), &e))?;
        remove_when_interrupted(folder.path());
        let path = folder.path().join(format!("{}.gguf", plan.target.name));
        let mut progress = ByteProgress::new(&format!("making {}", plan.target.name), quiet);
        let written = plan.write(&path, &WriteOptions::default(), &mut |done, all| {
            progress.set(done.min(all), all);
            Ok(())
        });
        progress.finish();
        written.map_err(|e| synth::failure(&e))?;
        let (t, s) = (plan.target, &plan.shape);
        let experts = s.moe.map(|m| format!(", {} experts", m.n_expert)).unwrap_or_default();
        let name = format!("{} of {} layers, width {}{experts}", t.name, s.n_layer, s.n_embd);
        Ok(ModelFile { path, name, _folder: Some(folder) })
    }
}

/// Has a folder removed if the program is interrupted: it holds gigabytes.
fn remove_when_interrupted(folder: &Path) {
    static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    static WATCHING: OnceLock<()> = OnceLock::new();
    let folders = || FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    folders().push(folder.to_owned());
    WATCHING.get_or_init(|| {
        let watch = ctrlc::set_handler(move || {
            folders().iter().for_each(|folder| _ = std::fs::remove_dir_all(folder));
            std::process::exit(130);
        });
        // Without a handler an interrupt ends the program too, and leaves the folder to the system.
        _ = watch;
    });
}

/// What the chosen device is and can do at best.
pub fn device(options: DeviceOptions<'_>, with_peaks: bool) -> Result<(DeviceInfo, Option<Peaks>), Failure> {
    let failed = |e| Failure::device(&e);
    let mut gpu = Gpu::open(options).map_err(failed)?;
    let peaks = if with_peaks { Some(measure_peaks(&mut gpu).map_err(failed)?) } else { None };
    Ok((gpu.info().clone(), peaks))
}

/// A model that can't be measured: what its passes take, the command line decides.
fn not_loaded(path: &Path, error: &engine::Error) -> Failure {
    match error {
        engine::Error::Vulkan(
            VulkanError::OutOfMemory { .. } | VulkanError::TooLarge { .. } | VulkanError::UnsupportedShape { .. },
        )
        | engine::Error::Request(_) => Failure::new(
            format!("{}: {error}", path.display()),
            "lower the depth with -d, or measure fewer tokens at once",
        ),
        engine::Error::Vulkan(e) => Failure::device(e),
        _ => Failure::engine(path, error),
    }
}

/// Tokens of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Batch {
    /// One token in each of so many sequences.
    Columns(usize),
    /// So many tokens of one sequence, from its start.
    Prompt(usize),
}

impl Batch {
    /// Tokens in all.
    pub fn n_tokens(self) -> usize {
        match self {
            Batch::Columns(n) | Batch::Prompt(n) => n,
        }
    }

    /// Sequences.
    pub fn n_seq(self) -> usize {
        match self {
            Batch::Columns(n) => n,
            Batch::Prompt(_) => 1,
        }
    }
}

/// Passes of a kind after which a sequence starts over: a longer cache would only take memory.
const MAX_PASSES: usize = 1024;

/// A loaded model whose passes are measured. Positions go on from pass to pass, since windows can't go back but to the
/// start.
pub struct Bench {
    /// The model.
    pub engine: Engine,
    path: PathBuf,
    /// Tokens that each sequence holds.
    filled: Vec<usize>,
    depth: usize,
    state: u64,
}

impl Bench {
    /// Loads `model` for passes of up to the largest of `batches`, `n_passes` in all, at a depth of `depth` tokens.
    ///
    /// # Errors
    /// The model can't be loaded.
    pub fn load(
        model: &ModelFile,
        backend: BackendChoice,
        device: DeviceOptions<'_>,
        exact: bool,
        batches: &[Batch],
        (depth, n_passes): (usize, usize),
    ) -> Result<Bench, Failure> {
        let most = |of: fn(Batch) -> usize| batches.iter().map(|b| of(*b)).max().unwrap_or(1);
        let options = EngineOptions {
            backend,
            device: device.selector.map(str::to_owned),
            n_ctx: (depth + n_passes.min(MAX_PASSES)).max(most(Batch::n_tokens)) + 1,
            n_seq: most(Batch::n_seq),
            n_batch: most(Batch::n_tokens).max(depth.min(512)),
            exact,
            validation: device.validation,
            shaders: device.shaders.map(Path::to_owned),
            ..EngineOptions::default()
        };
        let loaded = Engine::load(&model.path, &options, &mut |_, _| {});
        let mut engine = loaded.map_err(|e| not_loaded(&model.path, &e))?;
        if let Some(warning) = engine.warning() {
            warn_once(&warning);
        }
        let filled = vec![0; engine.n_seq()];
        Ok(Bench { engine, path: model.path.clone(), filled, depth, state: 1 })
    }

    /// From the next pass on, sequences hold at least so many tokens; no more than the model was loaded for.
    pub fn set_depth(&mut self, depth: usize) {
        self.depth = depth;
    }

    /// Uses other sizes of kernels from the next pass on.
    pub fn retune(&mut self, tuning: &Tuning) {
        if let Some(vulkan) = self.engine.vulkan() {
            vulkan.retune(*tuning);
        }
    }

    /// The passes that come next for one of this kind: those that fill its sequences up to the depth, and itself.
    pub fn passes(&mut self, batch: Batch) -> Vec<Vec<BatchToken>> {
        let mut passes = Vec::new();
        match batch {
            Batch::Columns(n) => {
                for seq in 0..n {
                    if self.filled[seq] == self.engine.n_ctx() {
                        self.filled[seq] = 0;
                    }
                    while self.filled[seq] < self.depth {
                        let n = (self.depth - self.filled[seq]).min(self.engine.n_batch());
                        passes.push((0..n).map(|_| self.token(seq, false)).collect());
                    }
                }
                passes.push((0..n).map(|seq| self.token(seq, true)).collect());
            }
            Batch::Prompt(n) => {
                self.filled[0] = 0;
                passes.push((0..n).map(|i| self.token(0, i + 1 == n)).collect());
            }
        }
        passes
    }

    fn token(&mut self, seq: usize, output: bool) -> BatchToken {
        // A linear congruential generator: which tokens they are doesn't matter.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = ((self.state >> 33) % self.engine.config().n_vocab as u64) as u32;
        let pos = self.filled[seq] as u32;
        self.filled[seq] += 1;
        BatchToken { token, seq: seq as u32, pos, output }
    }

    /// Times every kernel of `n_repeats` passes, after one that is not counted.
    ///
    /// # Errors
    /// The device failed, or has no timestamps.
    pub fn time(&mut self, batch: Batch, n_repeats: usize) -> Result<Measured, Failure> {
        let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
        let mut order: Vec<Kind> = Vec::new();
        for repetition in 0..=n_repeats {
            let mut passes = self.passes(batch);
            let failed = |e: engine::Error| Failure::engine(&self.path, &e);
            let tokens = passes.pop().expect("at least the pass itself");
            for pass in passes {
                self.engine.forward(&pass).map_err(failed)?;
            }
            let ops = self.engine.profile(&tokens).map_err(failed)?;
            let ops = ops.ok_or_else(|| {
                Failure::new("this device has no timestamps", "choose another one with --device; `bench` needs none")
            })?;
            if repetition == 0 {
                continue;
            }
            // Products of other shapes are other rows. Those of a kernel are told apart by their bytes, and found again
            // in the next pass by their order: attention reads more in each.
            let mut shapes: BTreeMap<Kind, BTreeMap<u64, Row>> = BTreeMap::new();
            for op in &ops {
                for (i, d) in op.dispatches.iter().enumerate() {
                    let kind = (op.op.clone(), d.variant.kernel.name(), d.variant.constants.clone());
                    if !order.contains(&kind) {
                        order.push(kind.clone());
                    }
                    let bytes = d.cost.read_bytes + d.cost.written_bytes;
                    let row = shapes.entry(kind).or_default().entry(bytes).or_default();
                    row.n += 1;
                    row.n_ops += usize::from(i == 0);
                    row.bytes += bytes;
                    row.flops += d.cost.flops;
                    row.ns += d.ns;
                }
            }
            let sums = shapes.into_iter().flat_map(|(kind, rows)| {
                rows.into_values().rev().enumerate().map(move |(i, row)| ((kind.clone(), i), row))
            });
            for (key, sum) in sums {
                let row = rows.entry(key).or_insert_with(|| Row { samples: Vec::new(), ..sum.clone() });
                row.samples.push(sum.ns);
            }
        }
        Ok(self.measured(batch, &order, &rows))
    }

    fn measured(&self, batch: Batch, order: &[Kind], rows: &BTreeMap<Key, Row>) -> Measured {
        let mut ops: Vec<MeasuredOp> = Vec::new();
        let in_order = order.iter().flat_map(|kind| rows.iter().filter(move |((of, _), _)| of == kind));
        for (((op, kernel, constants), _), row) in in_order {
            let (op, kernel, constants) = (op.clone(), kernel.clone(), constants.clone());
            let mut samples = row.samples.clone();
            samples.sort_by(f64::total_cmp);
            let (median, least, most) = (samples[samples.len() / 2], samples[0], samples[samples.len() - 1]);
            let n = row.n as f64;
            let time = KernelTime {
                kernel,
                constants,
                n_dispatches: row.n,
                us: median / n / 1e3,
                us_range: [least / n / 1e3, most / n / 1e3],
                bytes: row.bytes / row.n as u64,
                flops: row.flops / row.n as u64,
                gb_per_s: row.bytes as f64 / median,
                tflops: row.flops as f64 / median / 1e3,
            };
            let us = median / 1e3;
            match ops.iter_mut().find(|known| known.op == op) {
                Some(known) => {
                    known.us += us;
                    known.n_ops += row.n_ops;
                    known.kernels.push(time);
                }
                None => ops.push(MeasuredOp { op, n_ops: row.n_ops, us, kernels: vec![time] }),
            }
        }
        let depth = if matches!(batch, Batch::Prompt(_)) { 0 } else { self.depth };
        Measured { n_tokens: batch.n_tokens(), n_seq: batch.n_seq(), depth, ops }
    }
}

/// Op, kernel, constants.
type Kind = (String, String, Vec<u32>);
/// The same, and which of its shapes, the largest first.
type Key = (Kind, usize);

/// Sums over a pass, and the time of each pass.
#[derive(Clone, Debug, Default)]
struct Row {
    n: usize,
    n_ops: usize,
    bytes: u64,
    flops: u64,
    ns: f64,
    samples: Vec<f64>,
}

/// A measured kind of pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Tokens in all.
    pub n_tokens: usize,
    /// Sequences that they belong to.
    pub n_seq: usize,
    /// Tokens that each sequence held before.
    pub depth: usize,
    /// Its ops, those of a name together.
    pub ops: Vec<MeasuredOp>,
}

/// All ops of a name in a pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeasuredOp {
    /// Name, and what it writes.
    pub op: String,
    /// How many.
    pub n_ops: usize,
    /// Microseconds of all of them.
    pub us: f64,
    /// Their kernels.
    pub kernels: Vec<KernelTime>,
}

/// A kernel with its constants, in the ops of one name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelTime {
    /// Name of the kernel.
    pub kernel: String,
    /// Its specialization constants.
    pub constants: Vec<u32>,
    /// Dispatches in a pass.
    pub n_dispatches: usize,
    /// Microseconds of one, the median of the passes.
    pub us: f64,
    /// The least and the most of the passes.
    pub us_range: [f64; 2],
    /// Bytes that one reads and writes at least.
    pub bytes: u64,
    /// Operations of one.
    pub flops: u64,
    /// Bytes per second, 10⁹.
    pub gb_per_s: f64,
    /// Operations per second, 10¹².
    pub tflops: f64,
}
