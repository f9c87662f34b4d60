//! `aimo-engine report RUN`: a run as one HTML file that needs nothing else, or in short as text. It reads the journal,
//! so a run that was killed or still works can be looked at too.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use solver::attempt::{AttemptEnd, Step};
use solver::html;
use solver::journal::{AttemptHistory, History, ProblemHistory, path_of};
use solver::submission::write_atomically;

use crate::commands::{replay, run::table};
use crate::failure::Failure;
use crate::terminal::{bytes_text, clock_text};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the run, or its journal
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The page; by default report.html in the run's folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A short text in the terminal instead of a page
    #[arg(long, conflicts_with = "output")]
    text: bool,
}

/// Cells of a time line in the terminal.
const CELLS: usize = 40;

/// Runs the command.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let history = replay::read(&args.run)?;
    let began = i64::try_from(history.header.unix_s).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    let began = began
        .map_or_else(String::new, |t| t.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string());
    if args.text {
        return Ok(text(&history, &began, out)?);
    }
    let journal = path_of(&args.run);
    let path = args.output.clone().unwrap_or_else(|| journal.with_file_name("report.html"));
    if path.is_dir() || same_file(&path, &journal) {
        let what = if path.is_dir() { "it is a folder" } else { "it is the run's journal" };
        return Err(Failure::new(format!("cannot write {}: {what}", path.display()), "choose another path with -o"));
    }
    let page = html::render(&history, &began).map_err(|e| Failure::plain(e.to_string()))?;
    write_atomically(&path, page.as_bytes()).map_err(|e| Failure::file("write", &path, &e))?;
    writeln!(out, "{} ({})", path.display(), bytes_text(page.len() as u64))?;
    Ok(())
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn text(history: &History, began: &str, out: &mut impl Write) -> io::Result<()> {
    let header = &history.header;
    let report = history.report();
    writeln!(
        out,
        "{} on {}\n{}, {began}, seed {}",
        header.model.name, header.backend, header.set_name, header.options.seed
    )?;
    for problem in &history.problems {
        writeln!(out)?;
        show_problem(problem, out)?;
    }
    writeln!(out, "\n█ model  ▒ Python\n\n{}\n{}", table::table(&report.problems), table::summary(&report, None))?;
    for warning in &history.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

/// A line per attempt: what it did when, and what it came to.
fn show_problem(problem: &ProblemHistory, out: &mut impl Write) -> io::Result<()> {
    let begin_ms = problem.attempts.iter().map(|a| a.started_ms).min().unwrap_or(problem.started_ms);
    let last_ms = |a: &AttemptHistory| a.ended_ms.or(a.steps.last().map(|s| s.to_ms)).unwrap_or(a.started_ms);
    let end_ms = problem.attempts.iter().map(last_ms).max().unwrap_or(begin_ms).max(begin_ms + 1);
    writeln!(out, "{}  {}", problem.problem.id, clock_text((end_ms - begin_ms) / 1000))?;
    for attempt in &problem.attempts {
        let cell =
            |t_ms: u64| ((t_ms.clamp(begin_ms, end_ms) - begin_ms) as usize * CELLS) / (end_ms - begin_ms) as usize;
        let mut line = [' '; CELLS];
        let mut paint = |from_ms: u64, to_ms: u64, with: char| {
            let from = cell(from_ms).min(CELLS - 1);
            line[from..cell(to_ms).clamp(from + 1, CELLS)].fill(with);
        };
        paint(attempt.started_ms, last_ms(attempt), '█');
        for step in attempt.steps.iter().filter(|s| matches!(s.step, Step::Call { .. })) {
            paint(step.from_ms, step.to_ms, '▒');
        }
        let end = match attempt.end() {
            Some(AttemptEnd::Answer { answer }) => format!("= {answer}"),
            Some(end) => end.name().to_owned(),
            None => "running".to_owned(),
        };
        let facts = attempt.report.as_ref().map_or_else(String::new, |r| {
            let failed = if r.tool_errors > 0 { format!(" ({} failed)", r.tool_errors) } else { String::new() };
            format!(", {} tokens, {} blocks{failed}, confidence {:.1}", r.generated_tokens, r.tool_calls, r.confidence)
        });
        writeln!(out, "  #{:<3}│{}│ {end}{facts}", attempt.number, line.iter().collect::<String>())?;
    }
    Ok(())
}
