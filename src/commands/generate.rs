//! `aimo-engine generate`: one completion, streamed to standard output.

use std::io::Write;
use std::path::PathBuf;

use engine::chat::harmony::ReasoningEffort;
use engine::chat::{ChatTemplate, Clock};
use engine::gguf::GgufFile;
use engine::sampler::SamplerParams;
use engine::scheduler::{EndReason, Event, Scheduler};
use serde_json::json;
use solver::local::LocalModel;
use solver::protocol::Reader;
use solver::{ChatSettings, LanguageModel, Message, Protocol};

use crate::args::{DraftArgs, ModelArgs, SamplingArgs, at_least_one, reasoning_effort};
use crate::commands::read_text;
use crate::failure::Failure;
use crate::load;
use crate::thoughts::Transcriber;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["prompt", "file"])))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    drafts: DraftArgs,
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
    /// How long the model is asked to think, where it can be asked
    #[arg(long, value_name = "EFFORT", requires = "chat", value_parser = reasoning_effort())]
    reasoning: Option<ReasoningEffort>,
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
    args.model.device.check()?;
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => return Err(Failure::Usage("give a text with -p or -f".to_owned())),
    };
    let failed = |e: engine::Error| Failure::engine(&args.model.model, &e);
    if args.chat {
        check_chat(args)?;
    }
    let scheduler = load::load_to_serve(&args.model, &args.drafts, 1, quiet)?;
    let Prompt { mut scheduler, tokens, reader } = prompt(args, scheduler, &text)?;
    let sampling = SamplerParams { n_top_logprobs: args.logprobs, ..args.sampling.params() };
    let seq = scheduler.start(&tokens, &sampling).map_err(|e| failed(e.into()))?;
    let mut transcriber = reader.map(|reader| Transcriber::new(reader, !args.json));
    let mut events = Vec::new();
    let mut finish = "length";
    'steps: while scheduler.has_work() {
        for event in scheduler.step().map_err(failed)? {
            match &mut transcriber {
                Some(transcriber) => {
                    let tokenizer = scheduler.engine().tokenizer();
                    let is_control = tokenizer.is_control(event.token);
                    let control = is_control.then(|| tokenizer.decode(&[event.token], true));
                    transcriber.push(&event.text, control.as_deref(), out)?;
                }
                None if !args.json => {
                    write!(out, "{}", event.text)?;
                    out.flush()?;
                }
                None => {}
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
    if let Some(transcriber) = &mut transcriber {
        transcriber.finish(out)?;
    }
    if args.json {
        let (text, thinking) = match transcriber {
            Some(said) => (said.text, Some(said.thinking)),
            None => (events.iter().map(|e| e.text.as_str()).collect(), None),
        };
        let value = json!({
            "text": text,
            "thinking": thinking,
            "tokens": events.iter().map(|e| e.token).collect::<Vec<_>>(),
            "logprobs": events.iter().map(|e| logprob_entry(e, args.logprobs)).collect::<Vec<_>>(),
            "finish_reason": finish,
            "n_prompt": stats.prompt_tokens,
            "n_gen": stats.generated_tokens,
            "prompt_ms": stats.prompt_ms,
            "gen_ms": stats.decode_ms,
            "n_drafted": stats.drafted_tokens,
            "n_draft_accepted": stats.accepted_tokens,
            "overhead_ms": stats.overhead_ms,
            "backend": scheduler.engine().backend_name(),
        });
        writeln!(out, "{value}")?;
    } else {
        writeln!(out)?;
    }
    if !quiet {
        let rate = |n: u64, ms: f64| if ms > 0.0 { n as f64 * 1e3 / ms } else { 0.0 };
        let drafts = match stats.drafted_tokens {
            0 => String::new(),
            n => format!(", {} of {n} drafted ones right", stats.accepted_tokens),
        };
        eprintln!(
            "prompt {} tokens, {:.1} tok/s; generated {} tokens, {:.1} tok/s{drafts}; {finish}",
            stats.prompt_tokens,
            rate(stats.prompt_tokens, stats.prompt_ms),
            stats.generated_tokens,
            rate(stats.generated_tokens, stats.decode_ms),
        );
    }
    Ok(())
}

/// A prompt and what it is computed with.
struct Prompt {
    scheduler: Scheduler,
    tokens: Vec<u32>,
    /// Tells thinking from the answer in a conversation.
    reader: Option<Reader>,
}

/// What the file's header tells about whether the model takes this conversation.
fn check_chat(args: &Args) -> Result<(), Failure> {
    let path = &args.model.model;
    let file = load::open(path)?;
    let tokenizer = load::tokenizer(&file)?;
    let template =
        ChatTemplate::from_gguf(file.metadata(), &tokenizer).map_err(|e| Failure::engine(path, &e.into()))?;
    let settings = chat_settings(args, &file);
    if template.is_none() && settings.protocol != Protocol::Harmony {
        return Err(Failure::new(
            format!("{}: holds no chat template", path.display()),
            "leave --chat out to continue plain text",
        ));
    }
    settings.check(&tokenizer, template.as_ref()).map_err(|e| load::chat_failure(path, &e))
}

fn chat_settings(args: &Args, file: &GgufFile) -> ChatSettings {
    ChatSettings {
        protocol: Protocol::of_model(file.metadata()).protocol,
        effort: args.reasoning,
        python: None,
        date: Some(Clock::System.today()),
    }
}

/// A conversation is rendered by the solver, which keeps contents from spelling control tokens.
fn prompt(args: &Args, scheduler: Scheduler, text: &str) -> Result<Prompt, Failure> {
    let engine = scheduler.engine();
    if !args.chat {
        let tokens = engine.tokenizer().encode_with_bos(text, args.parse_special);
        return Ok(Prompt { scheduler, tokens, reader: None });
    }
    let failed = |e| load::chat_failure(&args.model.model, &e);
    let system = args.system.as_deref().map(|s| Message::new("system", s));
    let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
    let settings = chat_settings(args, engine.gguf());
    let protocol = settings.protocol;
    let model = LocalModel::new(scheduler).with_chat(settings).map_err(failed)?;
    let rendered = model.render_chat(&messages).map_err(failed)?;
    let reader = Some(protocol.plain_reader(rendered.opens_thought));
    Ok(Prompt { scheduler: model.into_scheduler(), tokens: rendered.tokens, reader })
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
