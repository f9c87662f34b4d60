//! A loaded model on a chosen backend: the one object that the scheduler, the benchmarks and the command line hold.

use crate::backend::cpu::{Cpu, Precision};
use crate::backend::vulkan::{DeviceKind, DeviceOptions, DispatchTime, Vulkan, best_real_gpu};
use crate::backend::{Backend, BatchToken, Limits};
use crate::chat::ChatTemplate;
use crate::context;
use crate::error::{Error, RequestError};
use crate::gguf::GgufFile;
use crate::kv::{KvLayout, KvOptions, KvPages};
use crate::model::{Config, RopeTable, Weights, forward, plan, rope_factors};
use crate::tokenizer::Tokenizer;
use crate::trace::{Difference, Traced, compare, label, observe, trace};
use std::path::{Path, PathBuf};

/// Which device runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// A real GPU where there is one, else the CPU backend. Never a software Vulkan driver.
    #[default]
    Auto,
    /// The CPU backend.
    Cpu,
    /// A Vulkan device, the first GPU unless one is named.
    Vulkan,
}

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Device kind.
    pub backend: BackendChoice,
    /// Vulkan device: its index or part of its name.
    pub device: Option<String>,
    /// Tokens per sequence; 0 for the trained context, as far as memory allows.
    pub n_ctx: usize,
    /// Sequences that can be live at once.
    pub n_seq: usize,
    /// Most tokens in one pass.
    pub n_batch: usize,
    /// Most tokens of a pass whose logits are wanted; 0 for one per sequence.
    pub n_outputs: usize,
    /// CPU threads; 0 for one per core.
    pub n_threads: usize,
    /// Keep activations in f32 in all products (slower, closer to the reference).
    pub exact: bool,
    /// On the CPU, copy weights into the form in which batches are fastest, where several sequences are served and there
    /// is memory for both; results don't change.
    pub repack: bool,
    /// Products of a few tokens in integers on every Vulkan device, not only on those that are fast at it.
    pub integer_dot: bool,
    /// Turn on Vulkan's validation layers.
    pub validation: bool,
    /// Folder of edited shaders, which stand for the built-in ones of the same names.
    pub shaders: Option<PathBuf>,
    /// How keys and values are stored.
    pub kv: KvOptions,
    /// Most bytes of keys and values; `None` for the full context of every sequence, or half of the free memory where
    /// `n_ctx` is 0. With less, sequences take turns.
    pub kv_bytes: Option<u64>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            backend: BackendChoice::Auto,
            device: None,
            n_ctx: 0,
            n_seq: 1,
            n_batch: 512,
            n_outputs: 0,
            n_threads: 0,
            exact: false,
            repack: true,
            integer_dot: false,
            validation: false,
            shaders: None,
            kv: KvOptions::default(),
            kv_bytes: None,
        }
    }
}

/// Whether there is memory for a second copy of `bytes`, and a quarter more for what else a model takes. Where the system
/// doesn't say, there is.
fn has_room(bytes: u64) -> bool {
    context::free_memory().is_none_or(|free| bytes + bytes / 4 <= free)
}

impl EngineOptions {
    /// Sizes for a model; `free_bytes` tells the memory that is left beside its weights, where that is known.
    fn limits(&self, config: &Config, free_bytes: impl FnOnce() -> Option<u64>) -> Limits {
        let n_seq = self.n_seq.max(1);
        let n_outputs = if self.n_outputs == 0 { n_seq } else { self.n_outputs };
        let (n_batch, n_ctx) = (self.n_batch, self.n_ctx);
        let mut limits = Limits { n_batch, n_outputs, n_seq, n_ctx, kv: self.kv, kv_bytes: self.kv_bytes };
        if n_ctx == 0 {
            limits = context::fit(config, limits, free_bytes());
        }
        limits.n_batch = n_batch.clamp(1, limits.n_ctx.saturating_mul(n_seq));
        limits.n_outputs = n_outputs.min(limits.n_batch);
        limits
    }
}

/// Memory that is left beside `weight_bytes` of weights where the model will be.
fn free_bytes(vulkan: Option<&Vulkan>, weight_bytes: u64) -> Option<u64> {
    let free = match vulkan.map(Vulkan::info) {
        Some(info) if matches!(info.kind, DeviceKind::Discrete | DeviceKind::Virtual) => Some(info.memory_bytes),
        // More than the system has: it was set apart from the system's.
        Some(info)
            if info.kind == DeviceKind::Integrated
                && context::all_memory().is_some_and(|bytes| bytes < info.memory_bytes) =>
        {
            Some(info.memory_bytes)
        }
        // The device's memory is the machine's.
        Some(info) => context::free_memory().map(|bytes| bytes.min(info.memory_bytes)),
        None => context::free_memory(),
    };
    free.map(|bytes| bytes.saturating_sub(weight_bytes))
}

/// An op of a profiled pass.
#[derive(Clone, Debug)]
pub struct OpTime {
    /// Name, and what it writes, as in [`crate::trace`].
    pub op: String,
    /// Layer; `None` outside of the layers.
    pub layer: Option<usize>,
    /// Its kernels.
    pub dispatches: Vec<DispatchTime>,
}

/// A model that is ready to run.
pub struct Engine {
    // The runner's weights point into the mapped file: it stands first, so that it is dropped first.
    runner: Runner,
    config: Config,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    limits: Limits,
    kv: KvPages,
    bytes_per_token: u64,
    gguf: Box<GgufFile>,
}

enum Runner {
    Cpu(Box<Cpu>, Weights<<Cpu as Backend>::Weight>),
    Vulkan(Box<Vulkan>, Weights<<Vulkan as Backend>::Weight>),
}

impl Engine {
    /// Loads a model. `progress` is told the bytes done and the bytes in all.
    ///
    /// # Errors
    /// The file, its model, vocabulary or template can't be used, or the device can't hold or run it.
    pub fn load(path: &Path, options: &EngineOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Engine, Error> {
        let gguf = Box::new(GgufFile::open(path)?);
        let config = Config::from_gguf(&gguf)?;
        if let Some(ty) = options.kv.unfit(config.head_dim) {
            return Err(RequestError::CacheType { ty, head_dim: config.head_dim }.into());
        }
        let plan = plan(gguf.header(), &config)?;
        let rope = RopeTable::new(&config, rope_factors(&gguf, &config)?.as_deref());
        let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
        let chat_template = ChatTemplate::from_gguf(gguf.metadata(), &tokenizer)?;
        let (total, bytes_per_token) = (plan.bytes(), plan.bytes_per_token(&config));
        let mut progress = |done| progress(done, total);
        let open = |selector: Option<&str>| {
            let (validation, shaders) = (options.validation, options.shaders.as_deref());
            Vulkan::open(DeviceOptions { selector, validation, shaders, ..DeviceOptions::default() })
        };
        let vulkan = match options.backend {
            BackendChoice::Cpu => None,
            BackendChoice::Vulkan => Some(open(options.device.as_deref())?),
            BackendChoice::Auto if options.device.is_some() => Some(open(options.device.as_deref())?),
            // Without a usable GPU, for whatever reason, `auto` means the CPU.
            BackendChoice::Auto => match best_real_gpu().ok().flatten() {
                Some(gpu) => Some(open(Some(&gpu.index.to_string()))?),
                None => None,
            },
        };
        let limits = options.limits(&config, || free_bytes(vulkan.as_ref(), total));
        let kv = KvPages::new(KvLayout::new(&config, &limits)?);
        let runner = match vulkan {
            Some(mut backend) => {
                let tuning = *backend.tuning();
                match (options.exact, options.integer_dot) {
                    (true, _) => backend.set_tuning(tuning.exact()),
                    (false, true) => backend.set_tuning(tuning.in_integers()),
                    (false, false) => {}
                }
                // SAFETY: `gguf` is boxed and lives in the same struct as the runner, which is dropped first.
                let weights = unsafe { plan.upload(&gguf, &mut backend, &mut progress)? };
                gguf.release();
                backend.allocate(&config, limits, &rope, kv.layout())?;
                Runner::Vulkan(Box::new(backend), weights)
            }
            None => {
                let precision = if options.exact { Precision::Exact } else { Precision::Fast };
                let mut backend = Cpu::new(options.n_threads, precision);
                // SAFETY: as above.
                let mut weights = unsafe { plan.upload(&gguf, &mut backend, &mut |_| ())? };
                // Batches gain, single tokens and prompts lose a little.
                if options.repack && limits.n_seq > 1 && has_room(total) {
                    weights = backend.repack(weights, &mut progress);
                    gguf.release();
                }
                progress(total);
                backend.allocate(&config, limits, &rope, kv.layout())?;
                Runner::Cpu(Box::new(backend), weights)
            }
        };
        drop(plan);
        Ok(Engine { runner, config, tokenizer, chat_template, limits, kv, bytes_per_token, gguf })
    }

    /// The file.
    pub fn gguf(&self) -> &GgufFile {
        &self.gguf
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The file's vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The file's chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Device as shown to the user.
    pub fn backend_name(&self) -> String {
        match &self.runner {
            Runner::Cpu(b, _) => b.name(),
            Runner::Vulkan(b, _) => b.name(),
        }
    }

    /// Whether a Vulkan device runs the model.
    pub fn is_vulkan(&self) -> bool {
        matches!(self.runner, Runner::Vulkan(..))
    }

    /// Tokens per sequence.
    pub fn n_ctx(&self) -> usize {
        self.limits.n_ctx
    }

    /// Sequences that can be live at once.
    pub fn n_seq(&self) -> usize {
        self.limits.n_seq
    }

    /// Most tokens in one pass.
    pub fn n_batch(&self) -> usize {
        self.limits.n_batch
    }

    /// Bytes of keys and values that are set aside.
    pub fn kv_bytes(&self) -> u64 {
        let layout = self.kv.layout();
        let elements = |il| layout.layer_elements(&self.config, il) as u64;
        (0..self.config.n_layer()).map(|il| layout.options.bytes(elements(il))).sum()
    }

    /// How keys and values are stored.
    pub fn kv_options(&self) -> KvOptions {
        self.limits.kv
    }

    /// Most tokens of a pass whose logits are wanted.
    pub fn n_outputs(&self) -> usize {
        self.limits.n_outputs
    }

    /// Weight bytes that decoding one token reads.
    pub fn weight_bytes(&self) -> u64 {
        self.bytes_per_token
    }

    /// Runs a batch: logits of the tokens that asked for them, `[n_outputs, n_vocab]` f32.
    ///
    /// # Errors
    /// A token is outside the vocabulary or a position outside the context, no page of the cache is left, a sequence
    /// starts over behind its sliding windows, or the device failed.
    ///
    /// # Panics
    /// If the batch is empty or larger than the engine was loaded for.
    pub fn forward(&mut self, batch: &[BatchToken]) -> Result<&[f32], Error> {
        self.forward_with_tokenizer(batch).map(|(logits, _)| logits)
    }

    /// The same, with the tokenizer beside the borrowed logits.
    pub(crate) fn forward_with_tokenizer(&mut self, batch: &[BatchToken]) -> Result<(&[f32], &Tokenizer), Error> {
        self.check(batch)?;
        let copies = self.kv.prepare(batch)?;
        let logits = match &mut self.runner {
            Runner::Cpu(b, w) => {
                b.kv_copy_pages(&copies)?;
                forward(&mut **b, w, batch, &self.kv)?
            }
            Runner::Vulkan(b, w) => {
                b.kv_copy_pages(&copies)?;
                forward(&mut **b, w, batch, &self.kv)?
            }
        };
        Ok((logits, &self.tokenizer))
    }

    /// Refuses tokens outside the vocabulary and positions outside the context.
    fn check(&self, batch: &[BatchToken]) -> Result<(), Error> {
        let (n_vocab, n_ctx) = (self.config.n_vocab, self.limits.n_ctx);
        for t in batch {
            if t.token as usize >= n_vocab {
                return Err(RequestError::TokenOutOfRange { token: t.token, n_vocab }.into());
            }
            if t.pos as usize >= n_ctx {
                return Err(RequestError::ContextExceeded { found: t.pos as usize + 1, n_ctx }.into());
            }
            assert!((t.seq as usize) < self.limits.n_seq, "sequence {} of {}", t.seq, self.limits.n_seq);
        }
        Ok(())
    }

    /// Pages of the cache and which sequence has which.
    pub fn kv(&self) -> &KvPages {
        &self.kv
    }

    /// The same, for the scheduler.
    pub(crate) fn kv_mut(&mut self) -> &mut KvPages {
        &mut self.kv
    }

    /// What the user should know of how the model was loaded.
    pub fn warning(&mut self) -> Option<String> {
        self.vulkan().and_then(|b| b.gpu().stored_tuning().problem.clone())
    }

    /// The Vulkan backend, to be measured; `None` on the CPU.
    pub fn vulkan(&mut self) -> Option<&mut Vulkan> {
        match &mut self.runner {
            Runner::Cpu(..) => None,
            Runner::Vulkan(b, _) => Some(b),
        }
    }

    /// Runs a batch with every kernel timed on the device, alone: it waits for the ones before. `None` on the CPU and on
    /// devices without timestamps.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn profile(&mut self, batch: &[BatchToken]) -> Result<Option<Vec<OpTime>>, Error> {
        self.check(batch)?;
        let copies = self.kv.prepare(batch)?;
        let Runner::Vulkan(b, w) = &mut self.runner else { return Ok(None) };
        b.kv_copy_pages(&copies)?;
        if !b.gpu().set_profiling(true) {
            return Ok(None);
        }
        // Name, layer, and number of dispatches after each op.
        let mut ends: Vec<(String, Option<usize>, usize)> = Vec::new();
        let result = observe(&mut **b, w, batch, &self.kv, &mut |b: &mut Vulkan, op, acts, layer| {
            ends.push((label(op, acts), layer, b.gpu().last_pass().n_dispatches as usize));
            Ok(())
        });
        b.gpu().set_profiling(false);
        result?;
        let times = b.gpu().take_profile();
        let mut start = 0;
        let ops = ends.into_iter().map(|(op, layer, end)| {
            let dispatches = times[start.min(times.len())..end.min(times.len())].to_vec();
            start = end;
            OpTime { op, layer, dispatches }
        });
        Ok(Some(ops.collect()))
    }

    /// Runs a batch as [`Self::forward`] does and gives what each op left in its activation.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn trace(&mut self, batch: &[BatchToken]) -> Result<Vec<Traced>, Error> {
        self.check(batch)?;
        let copies = self.kv.prepare(batch)?;
        match &mut self.runner {
            Runner::Cpu(b, w) => {
                b.kv_copy_pages(&copies)?;
                trace(&mut **b, w, batch, &self.kv)
            }
            Runner::Vulkan(b, w) => {
                b.kv_copy_pages(&copies)?;
                trace(&mut **b, w, batch, &self.kv)
            }
        }
    }

    /// Runs a batch op by op, each from the results that another engine's trace of the same batch has, and gives how
    /// far each op is from that.
    ///
    /// # Errors
    /// As [`Self::forward`].
    ///
    /// # Panics
    /// If the trace is of another batch or model.
    pub fn compare(&mut self, batch: &[BatchToken], twin: &[Traced]) -> Result<Vec<Difference>, Error> {
        self.check(batch)?;
        let copies = self.kv.prepare(batch)?;
        match &mut self.runner {
            Runner::Cpu(b, w) => {
                b.kv_copy_pages(&copies)?;
                compare(&mut **b, w, batch, &self.kv, twin)
            }
            Runner::Vulkan(b, w) => {
                b.kv_copy_pages(&copies)?;
                compare(&mut **b, w, batch, &self.kv, twin)
            }
        }
    }

    /// Logits of the last token of a text that starts at position 0 of sequence 0, `[n_vocab]` f32.
    ///
    /// # Errors
    /// As [`Self::forward`]; the text is empty or longer than the context; the logits are not finite.
    pub fn prompt_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        if tokens.is_empty() {
            return Err(RequestError::EmptyPrompt.into());
        }
        if tokens.len() > self.limits.n_ctx {
            return Err(RequestError::ContextExceeded { found: tokens.len(), n_ctx: self.limits.n_ctx }.into());
        }
        let last = tokens.len() - 1;
        let batch: Vec<BatchToken> = tokens
            .iter()
            .enumerate()
            .map(|(i, &token)| BatchToken { token, seq: 0, pos: i as u32, output: i == last })
            .collect();
        let mut logits = Vec::new();
        for chunk in batch.chunks(self.limits.n_batch) {
            logits = self.forward(chunk)?.to_vec();
        }
        if !logits.iter().all(|l| l.is_finite()) {
            return Err(RequestError::NotFinite { position: last }.into());
        }
        Ok(logits)
    }
}
