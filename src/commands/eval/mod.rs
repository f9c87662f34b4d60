//! `aimo-engine eval`: a model on a set with known answers, over one run or several, and two evaluations side by side.
//!
//! An evaluation is a folder of journalled runs, `run-1`, `run-2`, …, whose seeds count up; the figures are read from
//! the journals. So it can be gone on with after anything (`--resume`), shown again (`--show`), and each run can be
//! replayed. How problems are solved is `run`'s business.

mod show;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value};
use solver::dataset::Dataset;
use solver::evaluation::{Comparison, Evaluation};
use solver::journal::history::HistoryError;
use solver::journal::{History, path_of};
use solver::{ProblemSet, RunEnd};

use crate::args::{DraftArgs, ModelArgs, SamplingArgs, at_least_one};
use crate::commands::replay;
use crate::commands::run::args::{self as run_args, NO_MODEL, RemoteArgs, SolvingArgs, TimeArgs};
use crate::commands::run::{self, Machine};
use crate::failure::Failure;

/// Arguments of `eval`.
#[derive(Clone, Debug, clap::Args)]
#[command(mut_arg("model", |a| a.required(false).default_value(NO_MODEL).hide_default_value(true)))]
#[command(mut_arg("stop", |a| a.default_value("all")))]
pub struct Args {
    /// Problems with answers, csv or JSON lines: id,problem,answer, or as GSM8K, MATH, MATH-500 and AIME are published
    #[arg(value_name = "SET")]
    set: Option<PathBuf>,
    /// Only the problems whose answer is an integer in the answer range; other sets are refused
    #[arg(long)]
    integers: bool,
    /// Only the first N problems (of those that are left)
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Runs over the set, with seeds that count up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    repeat: usize,
    /// Folder of the evaluation; by default a new one under runs/, named by date and time
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Go on with the evaluation in this folder; nothing finished is done again
    #[arg(long, value_name = "DIR", conflicts_with_all = ["set", "dir", "show", "compare"])]
    resume: Option<PathBuf>,
    /// Show what a run or an evaluation came to; nothing is computed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["set", "dir", "compare"])]
    show: Option<PathBuf>,
    /// Compare two runs or evaluations: which problems changed, and how likely that is by chance
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["set", "dir"])]
    compare: Option<Vec<PathBuf>>,
    /// The figures as one JSON object
    #[arg(long)]
    json: bool,
    /// The model.
    #[command(flatten)]
    model: ModelArgs,
    /// Drafts.
    #[command(flatten)]
    drafts: DraftArgs,
    /// A model behind servers.
    #[command(flatten)]
    remote: RemoteArgs,
    /// How problems are worked on.
    #[command(flatten)]
    solving: SolvingArgs,
    /// Limits of time, of each run.
    #[command(flatten)]
    time: TimeArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Name under which the number of runs is kept in the journal of each.
const REPEAT: &str = "eval_repeat";

/// An evaluation that is begun or gone on with.
struct Plan {
    folder: PathBuf,
    /// Arguments of the first run.
    args: run::Args,
    problems: ProblemSet,
    repeat: usize,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    if let Some([a, b]) = args.compare.as_deref() {
        return compare(args, a, b, out);
    }
    if let Some(folder) = &args.show {
        return show_folder(folder, args.json, out);
    }
    let cancel = run::cancel_on_interrupt()?;
    let plan = match &args.resume {
        Some(folder) => Plan::of_folder(folder)?,
        None => Plan::new(args, quiet)?,
    };
    let mut machine: Option<Machine> = None;
    let mut ended = Ok(());
    for number in 1..=plan.repeat {
        if cancel.is_cancelled() {
            ended = Err(Failure::Interrupted);
            break;
        }
        let Some(prepared) = plan.run(number)? else { continue };
        if !quiet && plan.repeat > 1 {
            eprintln!("run {number} of {}, seed {}", plan.repeat, prepared.options.seed);
        }
        let finished = run::carry_out(prepared, &mut machine, Instant::now(), cancel.clone(), quiet, out)?;
        ended = finished.ended();
        if ended.is_err() {
            break;
        }
    }
    show_folder(&plan.folder, args.json, out)?;
    if !quiet {
        eprintln!("evaluation: {}", plan.folder.display());
        if ended.is_err() {
            eprintln!("it isn't whole: go on with `aimo-engine eval --resume {}`", plan.folder.display());
        }
    }
    ended
}

impl Plan {
    fn new(args: &Args, quiet: bool) -> Result<Plan, Failure> {
        let Some(set) = &args.set else {
            return Err(Failure::Usage(
                "no problems are given: give a SET, or --resume, --show or --compare".to_owned(),
            ));
        };
        let mut run_args = run_args::defaults();
        run_args.problems = Some(set.clone());
        run_args.limit = args.limit;
        run_args.model = args.model.clone();
        run_args.drafts = args.drafts;
        run_args.remote = args.remote.clone();
        if !run_args.has_model() {
            let message = "the model is missing: give it with -m FILE (--model), or --endpoint URL";
            return Err(Failure::Usage(message.to_owned()));
        }
        run_args.solving = args.solving.clone();
        run_args.time = args.time.clone();
        run_args.sampling = args.sampling.clone();
        let range = run_args.options()?.answer_range;
        let dataset = Dataset::read(set, range, args.integers, args.limit).map_err(|e| {
            let next = match &e {
                solver::ProblemError::Unanswerable { .. } => {
                    "--integers leaves such problems out; --answer-range says which integers count"
                }
                _ => "see `aimo-engine eval --help` for the forms of sets",
            };
            Failure::new(e.to_string(), next)
        })?;
        if !quiet {
            eprintln!("{}: {dataset}", set.display());
        }
        let folder = args.dir.clone().map_or_else(run::fresh_folder, Ok)?;
        Ok(Plan { folder, args: run_args, problems: dataset.set, repeat: args.repeat })
    }

    /// From the journal of the first run.
    fn of_folder(folder: &Path) -> Result<Plan, Failure> {
        let history = replay::read(&run_folder(folder, 1))?;
        let header = history.header;
        let repeat = header.settings.get(REPEAT).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let repeat = repeat.ok_or_else(|| {
            let message = format!("{} is no evaluation", folder.display());
            Failure::new(message, "go on with a run by `aimo-engine run --resume`")
        })?;
        let args = run_args::defaults().resumed(&header.settings, &[])?;
        let problems = ProblemSet { name: header.set_name, path: args.problems.clone(), problems: header.problems };
        Ok(Plan { folder: folder.to_path_buf(), args, problems, repeat })
    }

    /// A run that is to be begun or gone on with; none where it has ended.
    fn run(&self, number: usize) -> Result<Option<run::Prepared>, Failure> {
        let folder = run_folder(&self.folder, number);
        match History::read(&folder) {
            Ok(history) if matches!(history.end, Some(RunEnd::Complete | RunEnd::TimeUp)) => Ok(None),
            Ok(_) => run::resume(&run_args::defaults(), &folder, &[]).map(Some),
            Err(HistoryError::Empty) => self.begin(number, folder).map(Some),
            Err(HistoryError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => {
                self.begin(number, folder).map(Some)
            }
            Err(_) => replay::read(&folder).map(|_| None),
        }
    }

    fn begin(&self, number: usize, folder: PathBuf) -> Result<run::Prepared, Failure> {
        let mut args = self.args.clone();
        args.sampling.seed = args.sampling.seed.wrapping_add(number as u64 - 1);
        args.run_dir = Some(folder);
        let more = Map::from_iter([(REPEAT.to_owned(), self.repeat.into())]);
        run::begin_with(&args, self.problems.clone(), more)
    }
}

fn run_folder(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("run-{number}"))
}

/// The runs of an evaluation in their order, or the one run that a path names.
fn read_runs(folder: &Path) -> Result<Vec<History>, Failure> {
    if path_of(folder).is_file() {
        return Ok(vec![replay::read(folder)?]);
    }
    let folders = (1..).map(|n| run_folder(folder, n)).take_while(|f| path_of(f).is_file());
    let runs: Vec<History> = folders.map(|f| replay::read(&f)).collect::<Result<_, _>>()?;
    if runs.is_empty() {
        let message = format!("{} holds neither a run nor an evaluation", folder.display());
        return Err(Failure::new(message, "give the folder that `run` or `eval` names when it ends"));
    }
    Ok(runs)
}

fn evaluate(folder: &Path) -> Result<(Vec<History>, Evaluation), Failure> {
    let runs = read_runs(folder)?;
    let reports: Vec<_> = runs.iter().map(History::report).collect();
    let evaluation = Evaluation::of(&reports);
    if evaluation.problems.is_empty() && reports.iter().all(|r| r.n_known() == 0) {
        let message = format!("{}: no right answer is known for any of its problems", folder.display());
        return Err(Failure::new(message, "evaluate a set with answers"));
    }
    Ok((runs, evaluation))
}

fn show_folder(folder: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let (runs, evaluation) = evaluate(folder)?;
    let header = &runs[0].header;
    if json {
        writeln!(out, "{:#}", show::json(header, &evaluation)?)?;
    } else {
        show::text(header, &evaluation, out)?;
    }
    Ok(())
}

fn compare(args: &Args, a: &Path, b: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let comparison = Comparison::of(&evaluate(a)?.1, &evaluate(b)?.1);
    if comparison.n_common == 0 {
        let message = format!("{} and {} have no finished problem in common", a.display(), b.display());
        return Err(Failure::new(message, "compare evaluations of the same set"));
    }
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(&comparison)?)?;
    } else {
        show::comparison(a, b, &comparison, out)?;
    }
    Ok(())
}
