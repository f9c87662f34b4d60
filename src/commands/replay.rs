//! `aimo-engine replay RUN`: shows a run again from its journal, as it happened: what the models wrote, what their code
//! gave, how attempts and problems ended. At the speed of reading, or of the run itself with `--speed`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use solver::attempt::{AttemptEnd, Step};
use solver::journal::history::{HistoryError, TimedStep};
use solver::journal::{AttemptHistory, History, ProblemHistory, path_of};
use solver::transcript::status_name;

use crate::args::positive;
use crate::commands::run::table;
use crate::failure::Failure;
use crate::terminal::clock_text;

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the run, or its journal
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Only the problem with this id
    #[arg(long, value_name = "ID")]
    problem: Option<String>,
    /// Only this attempt of each problem, from 1
    #[arg(long, value_name = "N")]
    attempt: Option<usize>,
    /// As fast as it was, times X; all at once by default
    #[arg(long, value_name = "X", value_parser = positive)]
    speed: Option<f64>,
    /// The run's report as one JSON object
    #[arg(long)]
    json: bool,
}

/// Longest pause between two things that are shown.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Reads a run, with errors that name its journal.
pub fn read(run: &std::path::Path) -> Result<History, Failure> {
    let path = path_of(run);
    History::read(run).map_err(|e| {
        let next = match &e {
            HistoryError::Io(_) => "give the folder of a run, the one that `run` names when it ends",
            HistoryError::Damaged(_) => "`aimo-engine run --resume DIR --salvage` goes on from the records before it",
            _ => "check that the file is the journal of a run",
        };
        Failure::new(format!("{}: {e}", path.display()), next)
    })
}

/// Runs the command.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let history = read(&args.run)?;
    let report = history.report();
    if args.json {
        let header = &history.header;
        let value = table::json_report(&report, &header.model.name, &header.backend, None)?;
        writeln!(out, "{value:#}")?;
        return Ok(());
    }
    if let Some(id) = &args.problem
        && !history.problems.iter().any(|p| p.problem.id == *id)
    {
        let known: Vec<&str> = history.problems.iter().map(|p| p.problem.id.as_str()).collect();
        let message = format!("{}: no problem {id:?} was begun in this run", args.run.display());
        return Err(Failure::new(message, format!("it has {}", known.join(", "))));
    }
    let header = &history.header;
    writeln!(out, "{} on {}, seed {}", header.model.name, header.backend, header.options.seed)?;
    for problem in &history.problems {
        if args.problem.as_ref().is_none_or(|id| *id == problem.problem.id) {
            show_problem(args, problem, out)?;
        }
    }
    writeln!(out, "\n{}\n{}", table::table(&report.problems), table::summary(&report, None))?;
    if history.end.is_none() {
        writeln!(out, "The run was cut short, or goes on: `aimo-engine run --resume {}`", args.run.display())?;
    }
    Ok(())
}

fn show_problem(args: &Args, problem: &ProblemHistory, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n== {} ==\n{}", problem.problem.id, problem.problem.text)?;
    let attempts = problem.attempts.iter().filter(|a| args.attempt.is_none_or(|n| n == a.number));
    // Everything that happened, in its order; what began earlier first.
    let mut moments: Vec<(u64, &AttemptHistory, Option<&TimedStep>)> = Vec::new();
    for attempt in attempts {
        moments.extend(attempt.steps.iter().map(|step| (step.to_ms, attempt, Some(step))));
        moments.extend(attempt.ended_ms.map(|t_ms| (t_ms, attempt, None)));
    }
    moments.sort_by_key(|&(t_ms, attempt, step)| (t_ms, step.is_none(), attempt.number));
    let mut now_ms = problem.started_ms;
    for (t_ms, attempt, step) in moments {
        if let Some(speed) = args.speed {
            out.flush()?;
            let pause = Duration::from_millis(t_ms.saturating_sub(now_ms)).div_f64(speed);
            std::thread::sleep(pause.min(LONGEST_PAUSE));
        }
        now_ms = t_ms;
        let since = clock_text(t_ms.saturating_sub(problem.started_ms) / 1000);
        match step {
            Some(step) => show_step(attempt.number, &since, &step.step, out)?,
            None => writeln!(out, "\n[{since} #{}] ended: {}", attempt.number, end_text(attempt))?,
        }
    }
    if let Some(report) = &problem.report {
        let votes: Vec<String> = report.votes.rows.iter().map(|r| format!("{}×{}", r.votes, r.answer)).collect();
        let answer = report.answer.map_or_else(|| "none".to_owned(), |a| a.to_string());
        for (n, judge) in (1..).zip(report.selection.iter().flat_map(|s| &s.judgements)) {
            let named = judge.answer.map_or_else(|| "no candidate".to_owned(), |a| a.to_string());
            writeln!(out, "\n[judge {n}: {named}]\n{}", judge.text.trim())?;
        }
        writeln!(out, "\nanswer of {}: {answer}  votes: {}", problem.problem.id, votes.join(" "))?;
    }
    Ok(())
}

fn show_step(attempt: usize, since: &str, step: &Step, out: &mut impl Write) -> io::Result<()> {
    match step {
        Step::Text(text) | Step::Thought(text) | Step::NotRun(text) => {
            writeln!(out, "\n[{since} #{attempt}]\n{}", text.trim_end())
        }
        Step::Result(text) => writeln!(out, "\n[{since} #{attempt}] is shown\n{}", text.trim()),
        Step::User(text) => writeln!(out, "\n[{since} #{attempt}] is told\n{}", text.trim()),
        Step::Call { outcome, .. } => {
            let status = status_name(&outcome.status);
            writeln!(out, "\n[{since} #{attempt}] Python: {status} in {} ms", outcome.elapsed_ms)
        }
    }
}

fn end_text(attempt: &AttemptHistory) -> String {
    match attempt.end() {
        Some(AttemptEnd::Answer { answer }) => format!("answer {answer}"),
        Some(AttemptEnd::Error { message }) => format!("error: {message}"),
        Some(end) => end.name().to_owned(),
        None => "still running".to_owned(),
    }
}
