//! `aimo-engine run`: solves a set of problems. Inputs and outputs are checked before the model is loaded; progress
//! goes to standard error, the result table (or one JSON object) to standard output.
//!
//! An interrupt (Ctrl-C) ends the run within a step: the submission holds a row for every id at any time. A second
//! one ends the program at once.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use engine::chat::ChatTemplate;
use engine::chat::harmony::ReasoningEffort;
use engine::model::Config;
use engine::scheduler::Scheduler;
use sandbox::Limits;
use solver::local::LocalModel;
use solver::{
    AnswerRange, CancelToken, ChatSettings, Outputs, ProblemReport, ProblemSet, Protocol, RunEnd, RunError, RunReport,
    Sampling, SolverOptions, StopRule, demo_set,
};

use crate::args::{ModelArgs, SamplingArgs, at_least_one, protocol, reasoning_effort, seconds};
use crate::commands::python::load_workers;
use crate::failure::Failure;
use crate::load;
use crate::progress::Progress;
use crate::terminal::clock_text;

/// Sequences that are computed together unless another number is asked for.
const DEFAULT_PARALLEL: usize = 8;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["problems", "problem", "demo"])))]
pub struct Args {
    /// Problems: csv with the columns id,problem[,answer], or JSON lines with these fields
    #[arg(value_name = "PROBLEMS")]
    problems: Option<PathBuf>,
    /// One problem
    #[arg(long, value_name = "TEXT")]
    problem: Option<String>,
    /// Ten built-in problems
    #[arg(long)]
    demo: bool,
    /// The answers: csv id,answer with a row for every problem, written anew after each one
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Folder for a transcript of each attempt; with -o the default is OUTPUT.transcripts
    #[arg(long, value_name = "DIR")]
    transcripts: Option<PathBuf>,
    /// The report as one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    solving: SolvingArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// How problems are worked on.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Solving")]
struct SolvingArgs {
    /// How the model calls Python; without it the model file decides (`aimo-engine info` shows what)
    #[arg(long, value_name = "NAME", value_parser = protocol())]
    protocol: Option<Protocol>,
    /// How long the model is asked to think, where it can be asked
    #[arg(long, value_name = "EFFORT", value_parser = reasoning_effort())]
    reasoning: Option<ReasoningEffort>,
    /// Attempts per problem, which vote
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    attempts: usize,
    /// Most attempts that are computed together; by default all, at most 8
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    parallel: Option<usize>,
    /// Answers that count
    #[arg(long, value_name = "MIN..MAX", default_value = "0..99999")]
    answer_range: AnswerRange,
    /// Answer of problems without any vote
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    default_answer: i64,
    /// Most tokens that an attempt writes
    #[arg(short = 'n', long, visible_alias = "predict", value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    max_tokens: usize,
    /// Most Python blocks that an attempt runs
    #[arg(long, value_name = "N", default_value_t = 6)]
    max_turns: usize,
    /// Time limit of the whole run; problems share what is left of it
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    time_limit: Option<f64>,
    /// Time limit of each problem
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    problem_time: Option<f64>,
    /// Time limit of each Python block
    #[arg(long, value_name = "SECONDS", default_value_t = 6.0, value_parser = seconds)]
    python_timeout: f64,
    /// When a problem ends: when the vote is decided, or when all attempts have ended
    #[arg(long, value_enum, default_value_t = Stop::Unbeatable)]
    stop: Stop,
}

/// When a problem ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stop {
    /// As soon as the running attempts can't change the winner
    Unbeatable,
    /// When every attempt has ended
    All,
}

impl Args {
    fn problem_set(&self, options: &SolverOptions) -> Result<ProblemSet, Failure> {
        match (&self.problems, &self.problem) {
            (Some(path), _) => ProblemSet::read(path, options.answer_range)
                .map_err(|e| Failure::new(e.to_string(), "see `aimo-engine run --help` for the form of problem files")),
            (None, Some(text)) => ProblemSet::single(text).map_err(|e| Failure::Usage(e.to_string())),
            (None, None) => Ok(demo_set()),
        }
    }

    fn options(&self) -> Result<SolverOptions, Failure> {
        let milliseconds = |s: f64| (s * 1e3).ceil() as u64;
        let (s, sampling) = (&self.solving, &self.sampling);
        let defaults = SolverOptions::default();
        let options = SolverOptions {
            reasoning: s.reasoning,
            attempts: s.attempts,
            answer_range: s.answer_range,
            default_answer: s.default_answer,
            max_tokens: s.max_tokens,
            max_turns: s.max_turns,
            python: Limits { time_ms: milliseconds(s.python_timeout), ..defaults.python },
            stop: match s.stop {
                Stop::Unbeatable => StopRule::Unbeatable,
                Stop::All => StopRule::All,
            },
            sampling: Sampling {
                temperature: sampling.temp,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repeat_penalty: sampling.repeat_penalty,
                repeat_last_n: sampling.repeat_last_n,
                seed: sampling.seed,
            },
            seed: sampling.seed,
            problem_time_ms: s.problem_time.map(milliseconds),
            run_time_ms: s.time_limit.map(milliseconds),
            ..defaults
        };
        options.validate().map_err(|e| Failure::Usage(e.to_string()))?;
        Ok(options)
    }
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let started = Instant::now();
    let mut options = args.options()?;
    let problems = args.problem_set(&options)?;
    options.protocol = check_model(args)?;
    if let Some(path) = &args.output {
        // The default folder of transcripts would otherwise make it.
        check_folder_of(path)?;
    }
    let default_transcripts = args.output.as_deref().map(Outputs::default_transcripts);
    let transcripts = args.transcripts.clone().or(default_transcripts);
    let outputs = Outputs::prepare(args.output.as_deref(), transcripts.as_deref(), &problems, options.default_answer)
        .map_err(|e| Failure::new(e.to_string(), "choose another path with -o or --transcripts"))?;
    let cancel = cancel_on_interrupt()?;
    let python = Arc::new(load_workers(quiet)?);
    let parallel = args.solving.parallel.unwrap_or(DEFAULT_PARALLEL).min(options.attempts);
    let engine = load::load(&args.model, parallel, quiet)?;
    let backend = engine.backend_name();
    let model = LocalModel::new(Scheduler::new(engine)).with_chat(chat_settings(&options));
    let mut model = model.map_err(|e| load::chat_failure(&args.model.model, &e))?;
    let mut progress = Progress::new(problems.problems.len(), options.run_time_ms, started, quiet);
    let report =
        solver::run(&mut model, python, &problems, &options, outputs, &cancel, &mut |event| progress.show(&event));
    progress.finish();
    let report = report.map_err(|e| run_failure(&e))?;
    if args.json {
        let value = json_report(args, &report, &backend, progress.first_token_s())?;
        writeln!(out, "{value:#}")?;
    } else {
        writeln!(out, "{}", table(&report.problems))?;
        writeln!(out, "{}", summary(&report, progress.first_token_s()))?;
        if let (false, Some(path)) = (quiet, &args.output) {
            eprintln!("answers: {}", path.display());
        }
        if let (false, Some(path)) = (quiet, &transcripts) {
            eprintln!("transcripts: {}", path.display());
        }
    }
    if let Some(reason) = report.unwritten {
        return Err(Failure::new(
            format!("the last answers could not be written: {reason}"),
            "they are in the table above; free the output's disk or choose another -o and enter them",
        ));
    }
    match report.end {
        RunEnd::Complete | RunEnd::TimeUp => Ok(()),
        RunEnd::Cancelled => Err(Failure::Interrupted),
        RunEnd::Fault { problem_id, message } => Err(Failure::new(
            format!("the model failed in problem {problem_id}: {message}"),
            "the answers so far are kept; try `--backend cpu`, or a smaller context with -c",
        )),
    }
}

/// Refuses an output whose folder isn't there: it is likelier to be misspelt than to be wanted.
fn check_folder_of(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    let message = format!("cannot write {}: there is no folder {}", path.display(), folder.display());
    Err(Failure::new(message, "make the folder, or choose another path with -o"))
}

/// What the header tells about whether the model can be run, before any output file is touched. Gives its protocol.
fn check_model(args: &Args) -> Result<Protocol, Failure> {
    let path = &args.model.model;
    let file = load::open(path)?;
    Config::from_gguf(&file).map_err(|e| Failure::engine(path, &e.into()))?;
    let tokenizer = load::tokenizer(&file)?;
    let template =
        ChatTemplate::from_gguf(file.metadata(), &tokenizer).map_err(|e| Failure::engine(path, &e.into()))?;
    let protocol = args.solving.protocol.unwrap_or_else(|| Protocol::of_model(file.metadata()).protocol);
    let settings = ChatSettings { protocol, effort: args.solving.reasoning, ..ChatSettings::default() };
    settings.check(&tokenizer, template.as_ref()).map_err(|e| load::chat_failure(path, &e))?;
    Ok(protocol)
}

/// How the model is talked to. It isn't told the date: the same seed is to give the same tokens tomorrow.
fn chat_settings(options: &SolverOptions) -> ChatSettings {
    let python = Some(solver::prompt::python_tool(options));
    ChatSettings { protocol: options.protocol, effort: options.reasoning, python, date: None }
}

/// Cancels on the first interrupt, ends the program on the second.
fn cancel_on_interrupt() -> Result<CancelToken, Failure> {
    let cancel = CancelToken::default();
    let (token, again) = (cancel.clone(), AtomicBool::new(false));
    ctrlc::set_handler(move || {
        if again.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        token.cancel();
        eprintln!("\ninterrupted: finishing this step, then writing what there is (again to stop at once)");
    })
    .map_err(|e| Failure::plain(format!("cannot watch for interrupts: {e}")))?;
    Ok(cancel)
}

fn run_failure(error: &RunError) -> Failure {
    match error {
        RunError::Options(e) => Failure::Usage(e.to_string()),
        RunError::Prompt { .. } => Failure::new(error.to_string(), "use a model whose chat template has a user turn"),
        RunError::PromptTooLong { .. } => Failure::new(error.to_string(), "raise the context with -c"),
        _ => Failure::new(error.to_string(), "choose another path with -o"),
    }
}

fn table(problems: &[ProblemReport]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["id", "answer", "expected", "", "votes", "attempts", "tokens", "python", "tok/s", "time"]);
    for i in [1, 2, 6, 7, 8, 9] {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for p in problems {
        let votes: Vec<String> = p.votes.rows.iter().map(|r| format!("{}×{}", r.votes, r.answer)).collect();
        let number = |n: Option<i64>| n.map_or_else(|| "–".to_owned(), |n| n.to_string());
        table.add_row([
            p.id.clone(),
            number(p.answer),
            number(p.expected),
            p.correct().map_or("", |ok| if ok { "✓" } else { "✗" }).to_owned(),
            votes.join(" "),
            attempts_text(p),
            p.generated_tokens().to_string(),
            python_text(p),
            if p.elapsed_s > 0.0 { format!("{:.1}", p.generated_tokens() as f64 / p.elapsed_s) } else { String::new() },
            clock_text(p.elapsed_s.round() as u64),
        ]);
    }
    table
}

/// How the attempts ended: `3 answer, 1 token budget`.
fn attempts_text(p: &ProblemReport) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for attempt in &p.attempts {
        let name = attempt.end.name();
        match counts.iter_mut().find(|(n, _)| *n == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{n} {name}")).collect();
    parts.join(", ")
}

/// Python blocks that ran, and how many failed: `5 (1 failed)`.
fn python_text(p: &ProblemReport) -> String {
    match (p.tool_calls(), p.tool_errors()) {
        (calls, 0) => calls.to_string(),
        (calls, errors) => format!("{calls} ({errors} failed)"),
    }
}

fn summary(report: &RunReport, first_token_s: Option<f64>) -> String {
    let mut parts = Vec::new();
    if let Some(accuracy) = report.accuracy() {
        parts.push(format!("{} of {} right ({:.0} %)", report.n_correct(), report.n_known(), 100.0 * accuracy));
    }
    let answered = report.problems.iter().filter(|p| p.answer.is_some()).count();
    parts.push(format!("{answered} of {} answered", report.problems.len()));
    let tokens = report.generated_tokens();
    parts.push(format!("{tokens} tokens"));
    if report.elapsed_s > 0.0 {
        parts.push(format!("{:.1} tok/s", tokens as f64 / report.elapsed_s));
    }
    parts.push(clock_text(report.elapsed_s.round() as u64));
    if let Some(s) = first_token_s {
        parts.push(format!("first token after {s:.1} s"));
    }
    match &report.end {
        RunEnd::Complete => {}
        RunEnd::TimeUp => parts.push("the time was up".to_owned()),
        RunEnd::Cancelled => parts.push("interrupted".to_owned()),
        RunEnd::Fault { .. } => parts.push("the model failed".to_owned()),
    }
    parts.join(" · ")
}

fn json_report(
    args: &Args,
    report: &RunReport,
    backend: &str,
    first_token_s: Option<f64>,
) -> Result<serde_json::Value, Failure> {
    let mut value = serde_json::to_value(report)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("model".to_owned(), args.model.model.display().to_string().into());
        object.insert("backend".to_owned(), backend.into());
        object.insert("accuracy".to_owned(), report.accuracy().into());
        object.insert("generated_tokens".to_owned(), report.generated_tokens().into());
        object.insert("first_token_s".to_owned(), first_token_s.into());
    }
    Ok(value)
}
