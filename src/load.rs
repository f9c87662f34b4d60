//! From arguments to a loaded model, with progress and with errors that name the file.

use std::path::Path;
use std::time::Instant;

use engine::gguf::GgufFile;
use engine::scheduler::Scheduler;
use engine::tokenizer::Tokenizer;
use engine::{Engine, EngineOptions};
use solver::ModelError;

use crate::args::{DraftArgs, ModelArgs};
use crate::failure::Failure;
use crate::terminal::{ByteProgress, bytes_text, warn_once};

/// Opens a model file; its header is checked, its weights are not read.
pub fn open(path: &Path) -> Result<GgufFile, Failure> {
    GgufFile::open(path).map_err(|e| Failure::gguf(path, &e))
}

/// The tokenizer of a model file.
pub fn tokenizer(file: &GgufFile) -> Result<Tokenizer, Failure> {
    Tokenizer::from_gguf(file.metadata()).map_err(|e| Failure::engine(file.path(), &e.into()))
}

/// A model that can't be talked to as it was asked to be.
pub fn chat_failure(path: &Path, error: &ModelError) -> Failure {
    let message = format!("{}: {error}", path.display());
    match error {
        ModelError::NoReasoningEffort => Failure::new(message, "leave --reasoning out"),
        ModelError::Harmony(_) => Failure::new(message, "choose another --protocol, or leave it out"),
        _ => Failure::plain(message),
    }
}

/// Loads a model that serves up to `n_seq` sequences at once, with drafts.
pub fn load_to_serve(args: &ModelArgs, drafts: &DraftArgs, n_seq: usize, quiet: bool) -> Result<Scheduler, Failure> {
    let drafts = drafts.options();
    let engine = load_for(args, n_seq, n_seq * (1 + drafts.max), quiet)?;
    Ok(Scheduler::new(engine).with_drafts(drafts))
}

/// Loads a model for one sequence.
pub fn load(args: &ModelArgs, quiet: bool) -> Result<Engine, Failure> {
    load_for(args, 1, 1, quiet)
}

fn load_for(args: &ModelArgs, n_seq: usize, n_outputs: usize, quiet: bool) -> Result<Engine, Failure> {
    let options = EngineOptions {
        n_ctx: args.ctx_size,
        n_seq,
        n_batch: args.batch_size,
        n_outputs,
        n_threads: args.threads,
        ..args.device.options(&args.cache)
    };
    load_with(&args.model, &options, quiet)
}

/// Loads a model with the engine's own options.
pub fn load_with(path: &Path, options: &EngineOptions, quiet: bool) -> Result<Engine, Failure> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut progress = ByteProgress::new(&format!("loading {name}"), quiet);
    let start = Instant::now();
    let engine = Engine::load(path, options, &mut |done, all| progress.set(done, all));
    progress.finish();
    let mut engine = engine.map_err(|e| Failure::engine(path, &e))?;
    if let Some(warning) = engine.warning() {
        warn_once(&warning);
    }
    if options.shaders.is_some() && !engine.is_vulkan() {
        return Err(Failure::new(
            "--shaders is given and the model runs on the CPU",
            "choose a device: --backend vulkan",
        ));
    }
    if !quiet {
        let n_trained = engine.config().n_ctx_train;
        let trained = match options.n_ctx == 0 && engine.n_ctx() < n_trained {
            true => format!(
                " of the {n_trained} it was trained for: memory lacks for more (-c asks for more, -ctk and -ctv q8_0 need half)"
            ),
            false => String::new(),
        };
        eprintln!(
            "loaded {name} ({}) in {:.1} s: {}, context {} tokens{trained}, up to {} of keys and values",
            bytes_text(engine.gguf().file_bytes()),
            start.elapsed().as_secs_f64(),
            engine.backend_name(),
            engine.n_ctx(),
            bytes_text(engine.kv_bytes()),
        );
    }
    Ok(engine)
}
