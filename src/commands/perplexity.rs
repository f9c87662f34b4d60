//! `aimo-engine perplexity`: how well a model predicts a text, by llama-perplexity's conventions, to judge a change of
//! weights' types or kernels.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::EngineOptions;
use engine::perplexity::{MIN_CHUNK, Perplexity};
use serde_json::json;

use crate::args::{CacheArgs, DeviceArgs, at_least_one, threads};
use crate::commands::read_text;
use crate::failure::Failure;
use crate::load;
use crate::terminal::CountProgress;

/// Most rows of logits in one pass: 100 MB at the largest vocabularies.
const MAX_OUTPUTS: usize = 128;

/// Arguments of `perplexity`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// A file with the text; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens per chunk; the first half of each is context, the second is predicted
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = chunk)]
    ctx_size: usize,
    /// Most chunks to compute
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    chunks: Option<usize>,
    /// Most tokens in one pass; short chunks are computed side by side
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    batch_size: usize,
    /// CPU threads; 0 = all cores
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = threads)]
    threads: usize,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    args.device.check()?;
    let text = read_text(&args.file)?;
    // Before the model is loaded: a text that is too short.
    let tokenizer = load::tokenizer(&load::open(&args.model)?)?;
    let tokens = tokenizer.encode_with_bos(&text, false);
    if tokens.len() < 2 * args.ctx_size {
        return Err(too_short(&args.file, tokens.len(), args.ctx_size));
    }
    let options = EngineOptions {
        n_ctx: args.ctx_size,
        n_seq: (args.batch_size / args.ctx_size).max(1),
        n_batch: args.batch_size,
        n_outputs: MAX_OUTPUTS.min(args.batch_size),
        n_threads: args.threads,
        ..args.device.options(&args.cache)
    };
    let mut engine = load::load_with(&args.model, &options, quiet)?;
    let failed = |e: engine::Error| Failure::engine(&args.model, &e);
    let backend = engine.backend_name();
    let start = Instant::now();
    let mut perplexity =
        Perplexity::new(&mut engine, tokens, args.ctx_size, args.chunks).map_err(|e| failed(e.into()))?;
    let n_chunks = perplexity.n_chunks();
    let mut progress = CountProgress::new("chunk", n_chunks, quiet);
    let mut running = Vec::with_capacity(n_chunks);
    while perplexity.n_done() < n_chunks {
        running.extend(perplexity.step().map_err(failed)?.iter().map(|e| e.perplexity));
        let e = perplexity.estimate();
        progress.set(perplexity.n_done(), n_chunks, &format!("PPL = {:.4} +/- {:.5}", e.perplexity, e.error));
    }
    progress.finish();
    let estimate = perplexity.estimate();
    let tokens_per_s = (n_chunks * args.ctx_size) as f64 / start.elapsed().as_secs_f64();
    if args.json {
        let value = json!({
            "model": args.model.display().to_string(),
            "file": args.file.display().to_string(),
            "perplexity": estimate.perplexity,
            "error": estimate.error,
            "nll": estimate.nll,
            "n_ctx": args.ctx_size,
            "n_chunks": n_chunks,
            "n_tokens": estimate.n_tokens,
            "running": running,
            "tokens_per_s": tokens_per_s,
            "backend": backend,
        });
        writeln!(out, "{value}")?;
    } else {
        writeln!(out, "Final estimate: PPL = {:.4} +/- {:.5}", estimate.perplexity, estimate.error)?;
        if !quiet {
            eprintln!(
                "{n_chunks} chunks of {}, {} tokens predicted, {tokens_per_s:.1} tok/s",
                args.ctx_size, estimate.n_tokens
            );
        }
    }
    Ok(())
}

/// A chunk in which something is predicted.
fn chunk(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n >= MIN_CHUNK => Ok(n),
        _ => Err(format!("must be a whole number of at least {MIN_CHUNK}")),
    }
}

fn too_short(file: &Path, found: usize, chunk: usize) -> Failure {
    Failure::new(
        format!(
            "{}: the text has {found} tokens; a perplexity in chunks of {chunk} needs at least {}",
            file.display(),
            2 * chunk
        ),
        "give a longer text, or shorter chunks with -c",
    )
}
