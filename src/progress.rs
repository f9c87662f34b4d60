//! Live progress of a run on standard error: two lines that are redrawn on a terminal, a line per problem and one
//! every few seconds in a log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use solver::attempt::{Attempt, AttemptEnd};
use solver::{ProblemReport, RunEvent, SolveEvent};

use crate::terminal::clock_text;

/// How often the lines of a terminal are redrawn.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a log gets a line while a problem is worked on.
const LOG_INTERVAL: Duration = Duration::from_secs(15);

/// Shows the events of a run.
pub struct Progress {
    sink: Sink,
    n_problems: usize,
    run_time_ms: Option<u64>,
    started: Instant,
    run_started: Option<Instant>,
    first_token: Option<Duration>,
    last_shown: Instant,
    index: usize,
    id: String,
    in_python: Vec<usize>,
}

enum Sink {
    Terminal(ProgressBar),
    Log,
    Hidden,
}

impl Progress {
    /// For a run of `n_problems`; `started` is when the command was, for the time to the first token.
    pub fn new(n_problems: usize, run_time_ms: Option<u64>, started: Instant, quiet: bool) -> Progress {
        let sink = if quiet {
            Sink::Hidden
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(n_problems as u64), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:20} {pos}/{len}  {elapsed_precise}{prefix}\n{wide_msg}")
                .expect("the template is a constant");
            bar.set_style(style);
            Sink::Terminal(bar)
        } else {
            Sink::Log
        };
        Progress {
            sink,
            n_problems,
            run_time_ms,
            started,
            run_started: None,
            first_token: None,
            last_shown: Instant::now(),
            index: 0,
            id: String::new(),
            in_python: Vec::new(),
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &RunEvent<'_>) {
        match event {
            RunEvent::ProblemStarted { index, problem, .. } => {
                self.run_started.get_or_insert_with(Instant::now);
                (self.index, self.id) = (*index, problem.id.clone());
                self.in_python.clear();
                self.last_shown = Instant::now();
                if let Sink::Log = self.sink {
                    eprintln!("problem {} of {} ({})", index + 1, self.n_problems, problem.id);
                }
            }
            RunEvent::Solving { event, .. } => self.solving(event),
            RunEvent::ProblemFinished { index, report } => {
                if let Sink::Terminal(bar) = &self.sink {
                    bar.set_position(*index as u64 + 1);
                }
                self.line(&finished_text(*index, self.n_problems, report));
            }
            RunEvent::ProblemRestored { index, report } => {
                if let Sink::Terminal(bar) = &self.sink {
                    bar.set_position(*index as u64 + 1);
                }
                self.line(&format!("{} (finished before)", finished_text(*index, self.n_problems, report)));
            }
            RunEvent::Warning { message } => self.line(&format!("warning: {message}")),
            _ => {}
        }
    }

    /// Takes the redrawn lines away.
    pub fn finish(&mut self) {
        if let Sink::Terminal(bar) = &self.sink {
            bar.finish_and_clear();
        }
    }

    /// Seconds from the start of the command to the first text of a model.
    pub fn first_token_s(&self) -> Option<f64> {
        self.first_token.map(|d| d.as_secs_f64())
    }

    fn solving(&mut self, event: &SolveEvent<'_>) {
        match event {
            SolveEvent::Text { text, .. } if !text.is_empty() => {
                self.first_token.get_or_insert_with(|| self.started.elapsed());
            }
            SolveEvent::ToolStarted { attempt, .. } => self.in_python.push(*attempt),
            SolveEvent::ToolFinished { attempt, .. } => self.in_python.retain(|a| a != attempt),
            SolveEvent::Progress { attempts, generated_tokens, tokens_per_s, elapsed } => {
                let interval = if let Sink::Log = self.sink { LOG_INTERVAL } else { REDRAW };
                if self.last_shown.elapsed() < interval {
                    return;
                }
                self.last_shown = Instant::now();
                let states: Vec<String> = attempts.iter().map(|a| self.attempt_text(a)).collect();
                let text = format!(
                    "{}: {}  {generated_tokens} tokens, {tokens_per_s:.1} tok/s, {}",
                    self.id,
                    states.join("  "),
                    clock_text(elapsed.as_secs()),
                );
                match &self.sink {
                    Sink::Terminal(bar) => {
                        bar.set_prefix(self.time_left().map_or_else(String::new, |t| format!("  left {t}")));
                        bar.set_message(text);
                    }
                    Sink::Log => eprintln!("{text}"),
                    Sink::Hidden => {}
                }
            }
            _ => {}
        }
    }

    fn attempt_text(&self, attempt: &Attempt) -> String {
        let n = attempt.number;
        match &attempt.end {
            Some(AttemptEnd::Answer { answer }) => format!("#{n} = {answer}"),
            Some(end) => format!("#{n} {}", end.name()),
            None if self.in_python.contains(&n) => format!("#{n} python"),
            None if attempt.given_tokens == 0 => format!("#{n} waits"),
            None => format!("#{n} {}", attempt.generated_tokens),
        }
    }

    /// What the finished problems took on average, for those that are left; at most what the run's limit leaves.
    fn time_left(&self) -> Option<String> {
        let elapsed = self.run_started?.elapsed();
        let by_pace = (self.index > 0).then(|| elapsed / self.index as u32 * (self.n_problems - self.index) as u32);
        let by_limit = self.run_time_ms.map(|ms| Duration::from_millis(ms).saturating_sub(elapsed));
        let left = [by_pace, by_limit].into_iter().flatten().min()?;
        Some(clock_text(left.as_secs()))
    }

    fn line(&self, text: &str) {
        match &self.sink {
            Sink::Terminal(bar) => bar.println(text),
            Sink::Log => eprintln!("{text}"),
            Sink::Hidden => {}
        }
    }
}

fn finished_text(index: usize, n_problems: usize, p: &ProblemReport) -> String {
    let answer = match p.votes.rows.iter().find(|row| Some(row.answer) == p.answer) {
        Some(row) => format!("{} ({} of {} attempts)", row.answer, row.votes, p.attempts.len()),
        None => "no answer".to_owned(),
    };
    let verdict = p.correct().map_or("", |ok| if ok { ", right" } else { ", wrong" });
    let rate = if p.elapsed_s > 0.0 { p.generated_tokens() as f64 / p.elapsed_s } else { 0.0 };
    format!(
        "problem {} of {n_problems} ({}): {answer}{verdict}; {} tokens, {rate:.1} tok/s, {:.1} s",
        index + 1,
        p.id,
        p.generated_tokens(),
        p.elapsed_s,
    )
}
