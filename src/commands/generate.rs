//! `aimo-engine generate`: one completion, streamed to standard output.

use std::io::Write;
use std::path::PathBuf;

use engine::Engine;
use engine::scheduler::{EndReason, Event, Scheduler};
use serde_json::json;
use solver::local::LocalModel;
use solver::{LanguageModel, Message};

use crate::args::{ModelArgs, SamplingArgs, at_least_one};
use crate::commands::read_text;
use crate::failure::Failure;
use crate::load;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["prompt", "file"])))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// The text to continue, or the user's message with --chat
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file with the text; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Put the text into the model's chat template
    #[arg(long)]
    chat: bool,
    /// A system message before the user's
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Control tokens that the text spells become control tokens
    #[arg(long, conflicts_with = "chat")]
    parse_special: bool,
    /// Most tokens to generate; without it the model decides, within its context
    #[arg(short = 'n', long, visible_alias = "n-predict", value_name = "N", value_parser = at_least_one)]
    predict: Option<usize>,
    /// Report the N likeliest tokens at each step, with their log-probabilities (with --json)
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    logprobs: usize,
    /// One JSON object at the end instead of streamed text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => return Err(Failure::Usage("give a text with -p or -f".to_owned())),
    };
    let failed = |e: engine::Error| Failure::engine(&args.model.model, &e);
    let (mut scheduler, prompt) = prompt_tokens(args, load::load(&args.model, 1, quiet)?, &text)?;
    let seq = scheduler.start(&prompt, &args.sampling.params(args.logprobs)).map_err(|e| failed(e.into()))?;
    let mut events = Vec::new();
    let mut finish = "length";
    'steps: while scheduler.has_work() {
        for event in scheduler.step().map_err(failed)? {
            if !args.json {
                write!(out, "{}", event.text)?;
                out.flush()?;
            }
            let end = event.end;
            events.push(event);
            if let Some(end) = end {
                finish = finish_reason(end);
                break 'steps;
            }
            if args.predict.is_some_and(|n| events.len() >= n) {
                break 'steps;
            }
        }
    }
    scheduler.release(seq);
    let stats = scheduler.stats();
    if args.json {
        let value = json!({
            "text": events.iter().map(|e| e.text.as_str()).collect::<String>(),
            "tokens": events.iter().map(|e| e.token).collect::<Vec<_>>(),
            "logprobs": events.iter().map(|e| logprob_entry(e, args.logprobs)).collect::<Vec<_>>(),
            "finish_reason": finish,
            "n_prompt": stats.prompt_tokens,
            "n_gen": stats.generated_tokens,
            "prompt_ms": stats.prompt_ms,
            "gen_ms": stats.decode_ms,
            "backend": scheduler.engine().backend_name(),
        });
        writeln!(out, "{value}")?;
    } else {
        writeln!(out)?;
    }
    if !quiet {
        let rate = |n: u64, ms: f64| if ms > 0.0 { n as f64 * 1e3 / ms } else { 0.0 };
        eprintln!(
            "prompt {} tokens, {:.1} tok/s; generated {} tokens, {:.1} tok/s; {finish}",
            stats.prompt_tokens,
            rate(stats.prompt_tokens, stats.prompt_ms),
            stats.generated_tokens,
            rate(stats.generated_tokens, stats.decode_ms),
        );
    }
    Ok(())
}

/// The prompt's tokens. A conversation is rendered by the solver, which keeps contents from spelling control tokens.
fn prompt_tokens(args: &Args, engine: Engine, text: &str) -> Result<(Scheduler, Vec<u32>), Failure> {
    if !args.chat {
        let tokens = engine.tokenizer().encode_with_bos(text, args.parse_special);
        return Ok((Scheduler::new(engine), tokens));
    }
    let path = &args.model.model;
    if engine.chat_template().is_none() {
        return Err(Failure::new(
            format!("{}: holds no chat template", path.display()),
            "leave --chat out to continue plain text",
        ));
    }
    let system = args.system.as_deref().map(|s| Message::new("system", s));
    let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
    let model = LocalModel::new(Scheduler::new(engine));
    let rendered = model.render_chat(&messages).map_err(|e| Failure::plain(format!("{}: {e}", path.display())))?;
    Ok((model.into_scheduler(), rendered.tokens))
}

fn finish_reason(end: EndReason) -> &'static str {
    match end {
        EndReason::EndOfGeneration => "stop",
        EndReason::ContextFull => "context full",
    }
}

fn logprob_entry(event: &Event, n_top: usize) -> serde_json::Value {
    if n_top == 0 {
        return json!(event.logprob);
    }
    let top: Vec<_> = event.top_logprobs.iter().map(|(id, logprob)| json!([id, logprob])).collect();
    json!({ "token": event.token, "logprob": event.logprob, "top": top })
}
