//! What `run`, `replay` and `eval` print of a run: a table of its problems, one line of sums, and the report as JSON.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use engine::scheduler::Stats;
use serde_json::json;
use solver::{ProblemReport, RunEnd, RunReport};

use crate::failure::Failure;
use crate::terminal::clock_text;

/// A row per problem.
pub fn table(problems: &[ProblemReport]) -> Table {
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

/// The sums in one line.
pub fn summary(report: &RunReport, first_token_s: Option<f64>) -> String {
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

/// How the sequences were served, in one line.
pub fn serving_text(stats: &Stats) -> String {
    let mut parts = vec![format!(
        "served: {} prompt tokens computed, {} shared; scheduling {:.1} % of the time; cache at its fullest {} pages, \
         {:.1} % of them wasted",
        stats.prompt_tokens,
        stats.shared_tokens,
        100.0 * stats.overhead_share(),
        stats.kv_peak.n_pages,
        100.0 * stats.kv_peak.waste(),
    )];
    if stats.drafted_tokens > 0 {
        parts.push(format!("{} of {} drafted tokens right", stats.accepted_tokens, stats.drafted_tokens));
    }
    if stats.n_preempted > 0 {
        parts.push(format!(
            "{} times a sequence gave its pages up, {} tokens computed again",
            stats.n_preempted, stats.replayed_tokens
        ));
    }
    parts.join("; ")
}

/// The same as an object.
pub fn serving_json(stats: &Stats) -> serde_json::Value {
    json!({
        "prompt_tokens": stats.prompt_tokens,
        "shared_tokens": stats.shared_tokens,
        "generated_tokens": stats.generated_tokens,
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "prompt_ms": stats.prompt_ms,
        "decode_ms": stats.decode_ms,
        "overhead_ms": stats.overhead_ms,
        "overhead_share": stats.overhead_share(),
        "preempted": stats.n_preempted,
        "replayed_tokens": stats.replayed_tokens,
        "kv_peak_pages": stats.kv_peak.n_pages,
        "kv_peak_waste": stats.kv_peak.waste(),
    })
}

/// The report as one object.
pub fn json_report(
    report: &RunReport,
    model: &str,
    backend: &str,
    first_token_s: Option<f64>,
) -> Result<serde_json::Value, Failure> {
    let mut value = serde_json::to_value(report)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("model".to_owned(), model.into());
        object.insert("backend".to_owned(), backend.into());
        object.insert("accuracy".to_owned(), report.accuracy().into());
        object.insert("generated_tokens".to_owned(), report.generated_tokens().into());
        object.insert("first_token_s".to_owned(), first_token_s.into());
    }
    Ok(value)
}
