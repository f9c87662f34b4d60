//! What the page shows, as plain data: texts, and numbers for positions. The template adds no logic of its own.

use sandbox::Status;
use serde::Serialize;

use crate::attempt::{AttemptEnd, Step};
use crate::evaluation::Evaluation;
use crate::html::highlight::{self, Span};
use crate::journal::{AttemptHistory, History, ProblemHistory};
use crate::report::{ProblemReport, RunEnd};
use crate::transcript::status_name;

/// Points of the curve of tokens per second.
const MOST_POINTS: u64 = 160;
/// Text reaches the journal up to a second late: a shorter interval would show that, not the model.
const SHORTEST_INTERVAL_MS: u64 = 2000;

#[derive(Serialize)]
pub(super) struct View<'h> {
    title: String,
    model: &'h str,
    backend: &'h str,
    set: &'h str,
    began: &'h str,
    program: &'h str,
    state: String,
    tiles: Vec<(&'static str, String)>,
    settings: Vec<(String, String)>,
    rate: Option<Rate>,
    problems: Vec<ProblemView<'h>>,
    warnings: &'h [String],
}

/// Tokens per second over the run: a path in a box of 1000 × 100.
#[derive(Serialize)]
struct Rate {
    path: String,
    most: String,
    end: String,
    resumed: Vec<String>,
}

#[derive(Serialize)]
struct ProblemView<'h> {
    number: usize,
    id: &'h str,
    text: &'h str,
    answer: String,
    expected: Option<i64>,
    verdict: &'static str,
    stop: String,
    facts: String,
    end: String,
    votes: Vec<VoteView>,
    judgements: Vec<(String, String)>,
    lanes: Vec<Lane>,
    attempts: Vec<AttemptView<'h>>,
}

#[derive(Serialize)]
struct VoteView {
    answer: i64,
    votes: usize,
    verified: usize,
    percent: String,
    confidence: String,
    verdict: &'static str,
}

/// An attempt on the time line, in percent of its problem's time.
#[derive(Serialize)]
struct Lane {
    number: usize,
    left: String,
    width: String,
    end: String,
    verdict: &'static str,
    calls: Vec<Call>,
}

#[derive(Serialize)]
struct Call {
    left: String,
    width: String,
    title: String,
    class: &'static str,
}

#[derive(Serialize)]
struct AttemptView<'h> {
    number: usize,
    end: String,
    verdict: &'static str,
    confidence: String,
    confidence_percent: String,
    facts: Vec<(&'static str, String)>,
    rejected: Vec<&'h str>,
    steps: Vec<StepView<'h>>,
}

#[derive(Serialize)]
struct StepView<'h> {
    kind: &'static str,
    title: String,
    text: &'h str,
    spans: Vec<Span<'h>>,
    output: &'h str,
    failed: bool,
}

impl<'h> View<'h> {
    pub fn of(history: &'h History, began: &'h str) -> View<'h> {
        let header = &history.header;
        let report = history.report();
        let mut tiles = Vec::new();
        if let Some(accuracy) = report.accuracy() {
            tiles.push(("right", format!("{} of {}", report.n_correct(), report.n_known())));
            tiles.push(("accuracy", format!("{:.1} %", 100.0 * accuracy)));
            let evaluation = Evaluation::of(std::slice::from_ref(&report));
            for (k, name) in [(1, "pass@1"), (header.options.attempts, "pass@all")] {
                let share = evaluation.spread_at(k, |r| &r.pass_at).filter(|_| k > 1 || name == "pass@1");
                tiles.extend(share.map(|s| (name, format!("{:.1} %", 100.0 * s.mean))));
            }
        }
        let answered = report.problems.iter().filter(|p| p.answer.is_some()).count();
        tiles.push(("answered", format!("{answered} of {}", report.problems.len())));
        let tokens = report.generated_tokens();
        tiles.push(("tokens", tokens.to_string()));
        if report.elapsed_s > 0.0 {
            tiles.push(("tokens per second", format!("{:.1}", tokens as f64 / report.elapsed_s)));
        }
        let sum = |of: fn(&ProblemReport) -> usize| report.problems.iter().map(of).sum::<usize>();
        let (calls, errors) = (sum(ProblemReport::tool_calls), sum(ProblemReport::tool_errors));
        tiles.push(("Python blocks", format!("{calls}, {errors} failed")));
        tiles.push(("time", clock(history.elapsed_ms)));
        View {
            title: format!("{} · {}", header.set_name, began),
            model: &header.model.name,
            backend: &header.backend,
            set: &header.set_name,
            began,
            program: &header.program,
            state: match &history.end {
                Some(RunEnd::Complete) => "complete".to_string(),
                Some(RunEnd::TimeUp) => "the time was up".to_string(),
                Some(RunEnd::Cancelled) => "interrupted".to_string(),
                Some(RunEnd::Fault { problem_id, message }) => format!("the model failed in {problem_id}: {message}"),
                None => "cut short, or still working".to_string(),
            },
            tiles,
            settings: settings(history),
            rate: Rate::of(history),
            problems: history.problems.iter().map(|p| ProblemView::of(p, history)).collect(),
            warnings: &history.warnings,
        }
    }
}

/// Every setting of the solver, nested ones by their path.
fn settings(history: &History) -> Vec<(String, String)> {
    fn flatten(name: &str, value: &serde_json::Value, all: &mut Vec<(String, String)>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| {
                flatten(&if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, value, all);
            }),
            serde_json::Value::Null => {}
            serde_json::Value::String(text) => all.push((name.to_string(), text.clone())),
            value => all.push((name.to_string(), value.to_string())),
        }
    }
    let mut all = Vec::new();
    flatten("", &serde_json::to_value(&history.header.options).unwrap_or_default(), &mut all);
    all
}

impl Rate {
    fn of(history: &History) -> Option<Rate> {
        let tokens = history.problems.iter().flat_map(|p| &p.attempts).flat_map(|a| &a.tokens);
        let end_ms = history.elapsed_ms.max(1);
        let interval_ms = end_ms.div_ceil(MOST_POINTS).max(SHORTEST_INTERVAL_MS);
        let mut counts = vec![0usize; usize::try_from(end_ms / interval_ms).unwrap_or(0) + 1];
        for &(t_ms, n) in tokens {
            let at = usize::try_from(t_ms / interval_ms).unwrap_or(0).min(counts.len() - 1);
            counts[at] += n;
        }
        let most = counts.iter().copied().max().filter(|&most| most > 0)?;
        let x = |t_ms: u64| 1000.0 * (t_ms.min(end_ms) as f64 / end_ms as f64);
        let mut path = "M0,100".to_string();
        for (i, &n) in counts.iter().enumerate() {
            let (from, to) = (interval_ms * i as u64, interval_ms * (i as u64 + 1));
            let y = 100.0 - 100.0 * n as f64 / most as f64;
            path += &format!("L{:.1},{y:.1}L{:.1},{y:.1}", x(from), x(to));
        }
        path += "L1000,100Z";
        Some(Rate {
            path,
            most: format!("{:.1}", most as f64 * 1000.0 / interval_ms as f64),
            end: clock(end_ms),
            resumed: history.resumed_ms.iter().map(|&t_ms| format!("{:.1}", x(t_ms))).collect(),
        })
    }
}

impl<'h> ProblemView<'h> {
    fn of(problem: &'h ProblemHistory, history: &History) -> ProblemView<'h> {
        let options = &history.header.options;
        let unfinished = || ProblemReport::of_attempts(&problem.problem, options, problem.reports());
        let report = problem.report.clone().unwrap_or_else(unfinished);
        let expected = report.expected;
        let last_ms =
            problem.attempts.iter().flat_map(|a| a.ended_ms.into_iter().chain(a.steps.last().map(|s| s.to_ms)));
        let end_ms = problem.ended_ms.or_else(|| last_ms.max()).unwrap_or(problem.started_ms);
        // A problem that was begun again keeps attempts from before.
        let begin_ms = problem.attempts.iter().map(|a| a.started_ms).chain([problem.started_ms]).min().unwrap_or(0);
        let span = Span01 { begin_ms, end_ms: end_ms.max(begin_ms + 1) };
        let all: u64 = report.votes.rows.iter().map(|r| r.points).sum();
        ProblemView {
            number: problem.index + 1,
            id: &problem.problem.id,
            text: &problem.problem.text,
            answer: report.answer.map_or_else(|| "none".to_string(), |a| a.to_string()),
            expected,
            verdict: verdict(report.correct()),
            stop: match &problem.report {
                Some(report) => name_of(&report.stop),
                None => "not finished".to_string(),
            },
            facts: format!(
                "{} tokens, {} Python blocks ({} failed), {:.1} s",
                report.generated_tokens(),
                report.tool_calls(),
                report.tool_errors(),
                report.elapsed_s,
            ),
            end: clock(span.end_ms - span.begin_ms),
            votes: report
                .votes
                .rows
                .iter()
                .map(|row| VoteView {
                    answer: row.answer,
                    votes: row.votes,
                    verified: row.verified,
                    percent: format!("{:.1}", 100.0 * row.points as f64 / all.max(1) as f64),
                    confidence: format!("{:.2}", row.mean_confidence()),
                    verdict: verdict(expected.map(|e| e == row.answer)),
                })
                .collect(),
            judgements: report
                .selection
                .iter()
                .flat_map(|s| &s.judgements)
                .map(|j| (j.answer.map_or_else(|| "no candidate".to_string(), |a| format!("for {a}")), j.text.clone()))
                .collect(),
            lanes: problem.attempts.iter().map(|a| Lane::of(a, &span, expected)).collect(),
            attempts: problem.attempts.iter().map(|a| AttemptView::of(a, options.confidence_cap, expected)).collect(),
        }
    }
}

/// A stretch of time that positions are given in.
struct Span01 {
    begin_ms: u64,
    end_ms: u64,
}

impl Span01 {
    fn percent(&self, t_ms: u64) -> f64 {
        let t_ms = t_ms.clamp(self.begin_ms, self.end_ms);
        100.0 * (t_ms - self.begin_ms) as f64 / (self.end_ms - self.begin_ms) as f64
    }

    /// Left edge and width.
    fn place(&self, from_ms: u64, to_ms: u64) -> (String, String) {
        let (from, to) = (self.percent(from_ms), self.percent(to_ms));
        (format!("{from:.2}"), format!("{:.2}", (to - from).max(0.0)))
    }
}

impl Lane {
    fn of(attempt: &AttemptHistory, span: &Span01, expected: Option<i64>) -> Lane {
        let (left, width) = span.place(attempt.started_ms, attempt.ended_ms.unwrap_or(span.end_ms));
        let calls = attempt.steps.iter().filter_map(|s| {
            let Step::Call { outcome, .. } = &s.step else { return None };
            let (left, width) = span.place(s.from_ms, s.to_ms);
            let class = if outcome.status == Status::Ok { "ok" } else { "failed" };
            Some(Call { left, width, title: format!("Python: {}", status_name(&outcome.status)), class })
        });
        Lane {
            number: attempt.number,
            left,
            width,
            end: end_text(attempt.end()),
            verdict: verdict_of_end(attempt.end(), expected),
            calls: calls.collect(),
        }
    }
}

impl<'h> AttemptView<'h> {
    fn of(attempt: &'h AttemptHistory, cap: f64, expected: Option<i64>) -> AttemptView<'h> {
        let mut facts = Vec::new();
        let report = attempt.report.as_ref();
        let confidence = report.map_or(0.0, |r| r.confidence);
        if let Some(r) = report {
            facts.push(("tokens", format!("{} written, {} given", r.generated_tokens, r.given_tokens)));
            facts.push(("Python", format!("{} blocks, {} failed, {:.1} s", r.tool_calls, r.tool_errors, r.tool_s)));
            facts.push(("time", format!("{:.1} s", r.elapsed_s)));
            facts.push(("confidence", format!("{confidence:.2}, lowest {:.2}", r.lowest_confidence)));
            facts.push(("mean log-probability", format!("{:.3}", r.mean_logprob)));
            facts.extend(r.verified.map(|v| ("verified", if v { "yes" } else { "no" }.to_string())));
            facts.push(("seed", r.seed.to_string()));
        }
        let steps: Vec<&Step> = match attempt.sorted.is_empty() {
            true => attempt.steps.iter().map(|s| &s.step).collect(),
            false => attempt.sorted.iter().collect(),
        };
        AttemptView {
            number: attempt.number,
            end: end_text(attempt.end()),
            verdict: verdict_of_end(attempt.end(), expected),
            confidence: format!("{confidence:.1}"),
            confidence_percent: format!("{:.1}", (100.0 * confidence / cap).clamp(0.0, 100.0)),
            facts,
            rejected: report.map(|r| r.rejected.iter().map(String::as_str).collect()).unwrap_or_default(),
            steps: step_views(&steps),
        }
    }
}

fn step_views<'h>(steps: &[&'h Step]) -> Vec<StepView<'h>> {
    let mut views = Vec::new();
    let mut printed = "";
    for &step in steps {
        let plain = |kind, title: &str, text: &'h str| StepView {
            kind,
            title: title.to_string(),
            text: text.trim_matches('\n'),
            spans: Vec::new(),
            output: "",
            failed: false,
        };
        views.push(match step {
            Step::Thought(text) => plain("thought", "thinking", text),
            Step::Text(text) => plain("text", "", text),
            Step::User(text) => plain("given", "is told", text),
            // What it is shown is most often what was printed.
            Step::Result(text) if text.trim() == printed.trim() => continue,
            Step::Result(text) => plain("given", "is shown", text),
            Step::NotRun(code) => {
                StepView { spans: highlight::python(code), failed: true, ..plain("code", "Python: not run", "") }
            }
            Step::Call { code, outcome } => {
                printed = &outcome.output;
                let left_out = match outcome.truncated_bytes {
                    0 => String::new(),
                    n => format!(", {n} bytes left out"),
                };
                let title = format!("Python: {} in {} ms{left_out}", status_name(&outcome.status), outcome.elapsed_ms);
                StepView {
                    spans: highlight::python(code),
                    output: &outcome.output,
                    failed: outcome.status != Status::Ok,
                    ..plain("code", &title, "")
                }
            }
        });
    }
    views.retain(|v| !(v.text.is_empty() && v.spans.is_empty() && v.output.is_empty()));
    views
}

fn end_text(end: Option<&AttemptEnd>) -> String {
    match end {
        Some(AttemptEnd::Answer { answer }) => format!("= {answer}"),
        Some(AttemptEnd::Error { message }) => format!("error: {message}"),
        Some(end) => end.name().to_string(),
        None => "running".to_string(),
    }
}

fn verdict(is_right: Option<bool>) -> &'static str {
    match is_right {
        Some(true) => "right",
        Some(false) => "wrong",
        None => "open",
    }
}

fn verdict_of_end(end: Option<&AttemptEnd>, expected: Option<i64>) -> &'static str {
    match (end, expected) {
        (Some(AttemptEnd::Answer { answer }), Some(expected)) => verdict(Some(*answer == expected)),
        (Some(AttemptEnd::Answer { .. }), None) => "open",
        _ => "none",
    }
}

/// A serialised name in words: `all_ended` as `all ended`.
fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name.replace('_', " "),
        _ => String::new(),
    }
}

/// 75 s as `1:15`, an hour as `1:00:00`.
fn clock(ms: u64) -> String {
    let s = ms / 1000;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}
