//! `aimo-engine run`: solves a set of problems. Inputs and outputs are checked before the model is loaded; progress
//! goes to standard error, the result table (or one JSON object) to standard output.
//!
//! Every event goes to the journal in the run's folder, so a run can be gone on with (`--resume`) whatever ended it. An
//! interrupt (Ctrl-C) ends the run within a step: the submission holds a row for every id at any time. A second one
//! ends the program at once.

pub mod args;
mod stdio;
pub mod table;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::chat::ChatTemplate;
use engine::model::Config;
use engine::scheduler::Stats;
use sandbox::Workers;
use serde_json::{Map, Value};
use solver::clock::MonotonicClock;
use solver::journal::{self, Header, History, Journal, JournalError, ModelIdentity, Recorder};
use solver::local::LocalModel;
use solver::remote::{Api, RemoteError};
use solver::{
    CancelToken, ChatSettings, LanguageModel, Outputs, ProblemSet, Protocol, RemoteModel, Run, RunEnd, RunError,
    RunReport, Setup, SolverOptions,
};

pub use args::Args;

use crate::failure::Failure;
use crate::load;
use crate::progress::Progress;

/// Sequences that are computed together unless another number is asked for.
const DEFAULT_PARALLEL: usize = 8;

/// A run that is ready but for its model.
pub struct Prepared {
    /// Its arguments.
    pub args: Args,
    /// What they come to.
    pub options: SolverOptions,
    /// Its problems.
    pub problems: ProblemSet,
    journal: Journal,
    history: Option<History>,
    folder: PathBuf,
    identity: ModelIdentity,
    remote: Option<RemoteModel>,
    /// Kept in the journal beside the arguments.
    more_settings: Map<String, Value>,
}

/// What runs are carried out with; one after the other may use it.
pub struct Machine {
    model: Model,
    python: Arc<Workers>,
    backend: String,
}

/// A model of either kind.
enum Model {
    /// In this process.
    Local(Box<LocalModel>),
    /// Behind servers.
    Remote(Box<RemoteModel>),
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let started = Instant::now();
    // Before the first output is written: from then on an interrupt has something to keep.
    let cancel = cancel_on_interrupt()?;
    let prepared = match &args.resume {
        Some(folder) => resume(args, folder, &args::given_on_command_line("run"))?,
        None => begin(args)?,
    };
    let json = args.json;
    let mut machine = None;
    let finished = carry_out(prepared, &mut machine, started, cancel, quiet, out)?;
    let Finished { report, args, folder, transcripts, model, backend, first_token_s, served } = &finished;
    if json {
        let mut value = table::json_report(report, model, backend, *first_token_s)?;
        if let Some(served) = served {
            value["serving"] = table::serving_json(served);
        }
        writeln!(out, "{value:#}")?;
    } else if !args.stdio {
        writeln!(out, "{}", table::table(&report.problems))?;
        writeln!(out, "{}", table::summary(report, *first_token_s))?;
    }
    if let Some(served) = served.as_ref().filter(|s| !quiet && s.generated_tokens > 0) {
        eprintln!("{}", table::serving_text(served));
    }
    if !quiet {
        for path in args.submissions() {
            eprintln!("answers: {}", path.display());
        }
        if let Some(path) = transcripts {
            eprintln!("transcripts: {}", path.display());
        }
        eprintln!("run: {}", folder.display());
    }
    finished.ended()
}

/// A new run: everything that can be refused is, before the journal is made.
fn begin(args: &Args) -> Result<Prepared, Failure> {
    if !args.has_model() {
        return Err(Failure::Usage(
            "the model is missing: give it with -m FILE (--model), or --endpoint URL".to_owned(),
        ));
    }
    args.options()?;
    begin_with(args, args.problem_set()?, Map::new())
}

/// A new run on these problems.
pub fn begin_with(args: &Args, problems: ProblemSet, more_settings: Map<String, Value>) -> Result<Prepared, Failure> {
    args.model.device.check()?;
    let mut options = args.options()?;
    let (protocol, identity, remote) = find_model(args)?;
    options.protocol = protocol;
    let mut args = args.clone();
    if args.kaggle {
        args.output.get_or_insert_with(|| PathBuf::from("submission.csv"));
    }
    for path in args.submissions() {
        // The default folder of transcripts would otherwise make it.
        check_folder_of(&path)?;
    }
    let folder = args.run_dir.clone().map_or_else(fresh_folder, Ok)?;
    // Before the outputs: a folder that is in use already must not cost the answers of its run.
    let journal = Journal::create(&folder).map_err(|e| journal_failure(&e))?;
    if let Err(failure) = outputs(&args, &problems) {
        std::fs::remove_file(journal.path()).ok();
        std::fs::remove_dir(&folder).ok();
        return Err(failure);
    }
    Ok(Prepared { args, options, problems, journal, history: None, folder, identity, remote, more_settings })
}

/// A run that goes on: everything comes from its journal, and what is given again (arguments of these names) has to be
/// the same.
pub fn resume(args: &Args, folder: &Path, given: &[String]) -> Result<Prepared, Failure> {
    let (journal, history) = Journal::resume(folder, args.salvage).map_err(|e| journal_failure(&e))?;
    let header = &history.header;
    let resumed = args.resumed(&header.settings, given)?;
    let differs = |e: journal::identity::Differs, next: &str| Failure::new(format!("{}: {e}", folder.display()), next);
    if Args::names_problems(given) {
        let next = "leave the problems out (the journal holds them), or begin a new run without --resume";
        let again = Args { limit: resumed.limit, ..args.clone() };
        header.check_problems(&again.problem_set()?).map_err(|e| differs(e, next))?;
    }
    let (protocol, identity, remote) = find_model(&resumed)?;
    let options = SolverOptions { protocol, ..resumed.options()? };
    header.check_options(&options).map_err(|e| differs(e, "begin a new run without --resume"))?;
    header.check_model(&identity).map_err(|e| differs(e, "give the model that the run was begun with with -m"))?;
    let problems =
        ProblemSet { name: header.set_name.clone(), path: resumed.problems.clone(), problems: header.problems.clone() };
    for path in resumed.submissions() {
        check_folder_of(&path)?;
    }
    let folder = folder.to_path_buf();
    let (history, more_settings) = (Some(history), Map::new());
    Ok(Prepared { args: resumed, options, problems, journal, history, folder, identity, remote, more_settings })
}

impl Machine {
    fn load(
        args: &Args,
        options: &SolverOptions,
        remote: Option<RemoteModel>,
        quiet: bool,
    ) -> Result<Machine, Failure> {
        let python = Arc::new(args.solving.python.load_workers(quiet)?);
        if let Some(mut model) = remote {
            let lists_tools = options.protocol == Protocol::Hermes && !options.no_python;
            model.set_tool(lists_tools.then(|| solver::prompt::python_tool(options)));
            let backend = model.addresses().join(", ");
            if !quiet {
                let api = if model.api() == Api::Chat { "chat" } else { "completions" };
                eprintln!("using {} at {backend} ({api}), context {} tokens", model.name(), model.n_ctx());
            }
            return Ok(Machine { model: Model::Remote(Box::new(model)), python, backend });
        }
        let parallel = args.solving.parallel.unwrap_or(DEFAULT_PARALLEL).min(options.attempts);
        let scheduler = load::load_to_serve(&args.model, &args.drafts, parallel, quiet)?;
        let backend = scheduler.engine().backend_name();
        let model = LocalModel::new(scheduler).with_chat(chat_settings(options));
        let model = model.map_err(|e| load::chat_failure(&args.model.model, &e))?;
        Ok(Machine { model: Model::Local(Box::new(model)), python, backend })
    }
}

/// What a run came to, and what is needed to show it.
pub struct Finished {
    /// What it came to.
    pub report: RunReport,
    args: Args,
    folder: PathBuf,
    transcripts: Option<PathBuf>,
    model: String,
    backend: String,
    first_token_s: Option<f64>,
    /// What the scheduler did, where the model is in this process.
    served: Option<Stats>,
}

/// Works on a run to its end, with the machine that is there, which is loaded where there is none yet.
pub fn carry_out(
    mut prepared: Prepared,
    machine: &mut Option<Machine>,
    started: Instant,
    cancel: CancelToken,
    quiet: bool,
    out: &mut impl Write,
) -> Result<Finished, Failure> {
    let (outputs, transcripts) = outputs(&prepared.args, &prepared.problems)?;
    if let (false, Some(history)) = (quiet, &prepared.history) {
        eprintln!("{}", resumed_text(&prepared.folder, history));
    }
    let Machine { model, python, backend } = match machine {
        Some(machine) => machine,
        None => machine.insert(Machine::load(&prepared.args, &prepared.options, prepared.remote.take(), quiet)?),
    };
    let python = Arc::clone(python);
    let outputs = (outputs, transcripts);
    let how = (started, cancel, quiet);
    // What was left to the machine holds for the whole run, whatever is free when it goes on.
    let (sizes, is_begun) = (&mut prepared.args.model, prepared.history.is_some());
    match model {
        Model::Local(model) if !is_begun => sizes.keep(model.scheduler().engine()),
        Model::Remote(model) if !is_begun => sizes.ctx_size = model.n_ctx(),
        _ => {}
    }
    match model {
        Model::Local(model) => {
            let finished = solve(prepared, outputs, &mut **model, python, backend, how, out)?;
            Ok(Finished { served: Some(model.scheduler().stats()), ..finished })
        }
        Model::Remote(model) => solve(prepared, outputs, &mut **model, python, backend, how, out),
    }
}

fn solve<M: LanguageModel>(
    prepared: Prepared,
    (outputs, transcripts): (Outputs, Option<PathBuf>),
    model: &mut M,
    python: Arc<Workers>,
    backend: &str,
    (started, cancel, quiet): (Instant, CancelToken, bool),
    out: &mut impl Write,
) -> Result<Finished, Failure> {
    let Prepared { args, options, problems, journal, history, folder, identity, more_settings, .. } = prepared;
    let name = identity.name.clone();
    let used = history.as_ref().map_or(Duration::ZERO, |h| Duration::from_millis(h.elapsed_ms));
    let clock = Arc::new(MonotonicClock::resumed(started, used));
    if history.is_none() {
        solver::run::check_prompts(model, &problems, &options).map_err(|e| run_failure(&e))?;
    }
    let recorder = match &history {
        Some(_) => Recorder::resume(journal, clock.clone(), backend),
        None => {
            let header = Header {
                version: journal::event::VERSION,
                program: env!("CARGO_PKG_VERSION").to_owned(),
                unix_s: journal::recorder::unix_s(),
                model: identity,
                backend: backend.to_owned(),
                options: options.clone(),
                settings: args.settings()?.into_iter().chain(more_settings).collect(),
                set_name: problems.name.clone(),
                problems: problems.problems.clone(),
            };
            Recorder::begin(journal, clock.clone(), header)
        }
    };
    let recorder = recorder.map_err(|e| journal_failure(&e))?;
    let n_expected = if args.stdio { args.expect_problems } else { problems.problems.len() };
    let mut progress = Progress::new(n_expected, options.budget.limit_ms, started, quiet);
    let setup = Setup {
        outputs,
        recorder: Some(recorder),
        history,
        clock,
        cancel: cancel.clone(),
        ..Setup::new(&options, n_expected)
    };
    let report = {
        let mut show = |event: solver::RunEvent<'_>| progress.show(&event);
        let mut run = Run::new(model, python, setup, &mut show);
        if args.stdio {
            stdio::serve(&mut run, &options, &cancel, out)?;
        } else {
            for (index, problem) in problems.problems.iter().enumerate() {
                run.solve(index, problem);
            }
        }
        run.finish()
    };
    progress.finish();
    let first_token_s = progress.first_token_s();
    let backend = backend.to_owned();
    Ok(Finished { report, args, folder, transcripts, model: name, backend, first_token_s, served: None })
}

impl Finished {
    /// Exit status and message of the run.
    pub fn ended(&self) -> Result<(), Failure> {
        let Finished { report, folder, .. } = self;
        if let Some(reason) = &report.unwritten {
            return Err(Failure::new(
                format!("the last answers could not be written: {reason}"),
                "they are in the table above; free the output's disk or choose another -o and enter them",
            ));
        }
        if let Some(reason) = &report.journal {
            return Err(Failure::new(
                format!("the journal isn't whole: {reason}"),
                "the answers above are complete; free the disk of the run's folder, or choose another --run-dir",
            ));
        }
        match &report.end {
            RunEnd::Complete | RunEnd::TimeUp => Ok(()),
            RunEnd::Cancelled => Err(Failure::Interrupted),
            RunEnd::Fault { problem_id, message } => Err(Failure::new(
                format!("the model failed in problem {problem_id}: {message}"),
                match self.args.remote.endpoint.is_empty() {
                    true => format!(
                        "the answers so far are kept; go on with `aimo-engine run --resume {}`, or begin anew with \
                         `--backend cpu` or a smaller context",
                        folder.display()
                    ),
                    false => format!(
                        "the answers so far are kept; when the server is back, go on with `aimo-engine run --resume {}`",
                        folder.display()
                    ),
                },
            )),
        }
    }
}

/// The run's outputs, made ready, and the folder of transcripts.
fn outputs(args: &Args, problems: &ProblemSet) -> Result<(Outputs, Option<PathBuf>), Failure> {
    let default_transcripts = args.output.as_deref().map(Outputs::default_transcripts);
    let transcripts = args.transcripts.clone().or(default_transcripts);
    let outputs = Outputs::prepare(&args.submissions(), transcripts.as_deref(), problems, args.solving.default_answer)
        .map_err(|e| Failure::new(e.to_string(), "choose another path with -o or --transcripts"))?;
    Ok((outputs, transcripts))
}

fn identify(model: &Path) -> Result<ModelIdentity, Failure> {
    ModelIdentity::of_file(model).map_err(|e| Failure::file("read", model, &e))
}

/// Makes `runs/DATE_TIME`, with a number behind it where that is taken: by making it, so that of two processes that
/// begin in the same second each has its own.
pub fn fresh_folder() -> Result<PathBuf, Failure> {
    let runs = Path::new("runs");
    let failed = |e: &std::io::Error| {
        Failure::new(
            format!("cannot make a folder for the run under {}: {e}", runs.display()),
            "choose one with --run-dir",
        )
    };
    std::fs::create_dir_all(runs).map_err(|e| failed(&e))?;
    let name = jiff::Zoned::now().strftime("%Y-%m-%d_%H-%M-%S").to_string();
    for n in 1u32.. {
        let folder = runs.join(if n == 1 { name.clone() } else { format!("{name}-{n}") });
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(&e)),
        }
    }
    unreachable!("there are more numbers than folders")
}

fn resumed_text(folder: &Path, history: &History) -> String {
    let done = history.problems.iter().filter(|p| p.done().is_some()).count();
    let attempts: usize = history.problems.iter().filter(|p| p.done().is_none()).map(|p| p.reports().len()).sum();
    let torn = match history.torn_bytes {
        0 => String::new(),
        n => format!("; {n} bytes of an unfinished record were dropped"),
    };
    let damage = history.damage.as_ref().map_or_else(String::new, |d| format!("; {d}: what follows it is left out"));
    format!("going on with {}: {done} problems finished, {attempts} attempts of others{torn}{damage}", folder.display())
}

fn journal_failure(error: &JournalError) -> Failure {
    let next = match error {
        JournalError::Exists { folder } => {
            format!("go on with it by `--resume {}`, or choose another folder with --run-dir", folder.display())
        }
        JournalError::Locked { .. } => "wait for it to end, or stop it".to_owned(),
        JournalError::Read { source: journal::history::HistoryError::Damaged(_), .. } => {
            "`--salvage` goes on from the records before the damage".to_owned()
        }
        JournalError::Read { .. } => "begin a new run with --run-dir".to_owned(),
        _ => "choose another folder with --run-dir, and check the space that is left".to_owned(),
    };
    Failure::new(error.to_string(), next)
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

/// The model before it is loaded: its protocol and identity, and the connection where it is behind a server.
fn find_model(args: &Args) -> Result<(Protocol, ModelIdentity, Option<RemoteModel>), Failure> {
    if args.remote.endpoint.is_empty() {
        return Ok((check_model(args)?, identify(&args.model.model)?, None));
    }
    let protocol = args.solving.protocol.unwrap_or_default();
    if protocol == Protocol::Harmony {
        let message = "--protocol harmony needs the model's file; a server that has such a model speaks it itself";
        return Err(Failure::Usage(format!("{message}: leave --protocol out")));
    }
    if args.solving.reasoning.is_some() {
        return Err(Failure::Usage("--reasoning can't be asked of a server: leave it out".to_owned()));
    }
    let parallel = args.solving.parallel.unwrap_or(DEFAULT_PARALLEL * args.remote.endpoint.len());
    let remote = RemoteModel::connect(args.remote.settings(parallel, args.model.ctx_size));
    let remote = remote.map_err(|e| {
        let next = match &e {
            RemoteError::Address { .. } => "give the server's address, such as --endpoint http://localhost:8080/v1",
            RemoteError::NoSuchModel { .. } => "choose one of them with --endpoint-model",
            RemoteError::Status { status: 401 | 403, .. } => "put the key into the environment variable AIMO_API_KEY",
            RemoteError::Status { status: 404, .. } => "check the address: it ends in /v1 for most servers",
            _ => "start the server, or check --endpoint",
        };
        Failure::new(e.to_string(), next)
    })?;
    let identity = ModelIdentity::of_server(remote.name());
    Ok((protocol, identity, Some(remote)))
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
    let python = (!options.no_python).then(|| solver::prompt::python_tool(options));
    ChatSettings { protocol: options.protocol, effort: options.reasoning, python, date: None }
}

/// Cancels on the first interrupt, ends the program on the second.
pub fn cancel_on_interrupt() -> Result<CancelToken, Failure> {
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
