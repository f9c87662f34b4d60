//! How an evaluation and a comparison look in the terminal and as JSON.

use std::io::{self, Write};
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};
use solver::evaluation::{Comparison, Evaluation, RunFigures, Spread};
use solver::journal::Header;

use crate::failure::Failure;
use crate::terminal::clock_text;

/// The tables of an evaluation.
pub fn text(header: &Header, evaluation: &Evaluation, out: &mut impl Write) -> io::Result<()> {
    let Evaluation { runs, problems, .. } = evaluation;
    let options = &header.options;
    let python = if options.no_python { ", no Python" } else { "" };
    let seeds: Vec<String> = runs.iter().map(|r| r.seed.to_string()).collect();
    writeln!(out, "{} on {}", header.model.name, header.backend)?;
    writeln!(
        out,
        "{}: {} problems, {} attempts each{python}, stop {}, seed {}",
        header.set_name,
        problems.len(),
        options.attempts,
        options.stop,
        seeds.join(" "),
    )?;
    writeln!(out, "{}", problem_table(evaluation))?;
    writeln!(out, "{}", figures(evaluation))?;
    if let Some(double) = &evaluation.double_run {
        let spread = if double.n_pairs > 1 {
            format!(", {} to {} over {} pairs", double.score.min, double.score.max, double.n_pairs)
        } else {
            String::new()
        };
        writeln!(
            out,
            "score of two runs: {:.1} of {} (both right {:.1}, one {:.1}, neither {:.1}{spread})",
            double.score.mean, double.n_problems, double.both, double.one, double.neither,
        )?;
    }
    let (unfinished, cancelled) = runs.iter().fold((0, 0), |(u, c), r| (u + r.n_unfinished, c + r.n_cancelled));
    if unfinished > 0 {
        writeln!(out, "{unfinished} problems are still to be worked on and are left out")?;
    }
    if cancelled > 0 {
        writeln!(
            out,
            "{cancelled} attempts were cut off by the stop rule: pass@k and maj@k leave them out (--stop all)"
        )?;
    }
    Ok(())
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    for i in 1..header.len() {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn answers_text(answers: &[Option<i64>], expected: i64) -> String {
    let text = |a: &Option<i64>| match a {
        Some(a) if *a == expected => format!("{a} ✓"),
        Some(a) => format!("{a} ✗"),
        None => "– ✗".to_owned(),
    };
    answers.iter().map(text).collect::<Vec<_>>().join("  ")
}

fn problem_table(evaluation: &Evaluation) -> Table {
    let mut table = new_table(&["id", "expected", "chosen, by run", "right attempts"]);
    for p in &evaluation.problems {
        let attempts = format!("{} of {}", p.right_attempts, p.n_attempts);
        table.add_row([p.id.clone(), p.expected.to_string(), answers_text(&p.answers, p.expected), attempts]);
    }
    table
}

/// A row per figure: mean, spread, each run.
fn figures(evaluation: &Evaluation) -> Table {
    const MOST_COLUMNS: usize = 8;
    let runs = &evaluation.runs;
    let single = runs.len() == 1;
    let shown = if single || runs.len() > MOST_COLUMNS { &[] } else { runs.as_slice() };
    let mut header = vec!["".to_owned(), if single { "value" } else { "mean" }.to_owned()];
    if !single {
        header.extend(["sd".to_owned(), "min".to_owned(), "max".to_owned()]);
    }
    header.extend((1..=shown.len()).map(|n| format!("run {n}")));
    let mut table = new_table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let number = |x: f64| if x < 100.0 { format!("{x:.1}") } else { format!("{x:.0}") };
    let seconds = |x: f64| if x < 100.0 { format!("{x:.1} s") } else { clock_text(x.round() as u64) };
    let mut row = |name: String,
                   spread: Option<Spread>,
                   each: &dyn Fn(&RunFigures) -> Option<f64>,
                   form: &dyn Fn(f64) -> String| {
        let Some(Spread { mean, sd, min, max }) = spread else { return };
        let mut cells = vec![name, form(mean)];
        if !single {
            cells.extend([sd.map_or(String::new(), form), form(min), form(max)]);
        }
        cells.extend(shown.iter().map(|r| each(r).map_or("–".to_owned(), form)));
        table.add_row(cells);
    };
    type Figure = fn(&RunFigures) -> f64;
    let accuracy: Figure = |r| r.accuracy;
    row("chosen answer right".to_owned(), evaluation.spread(accuracy), &|r| Some(accuracy(r)), &percent);
    for (name, of) in [("pass", (|r| &r.pass_at) as fn(&RunFigures) -> &Vec<_>), ("maj", |r| &r.majority_at)] {
        for k in evaluation.ks() {
            let share = |r: &RunFigures| of(r).iter().find(|a| a.k == k).map(|a| a.share);
            let few = runs.iter().any(|r| of(r).iter().any(|a| a.k == k && a.n_problems < r.n_problems));
            let problems = runs.iter().flat_map(|r| of(r).iter().filter(|a| a.k == k).map(|a| a.n_problems)).min();
            let over = if few { format!(" (of {} problems)", problems.unwrap_or(0)) } else { String::new() };
            row(format!("{name}@{k}{over}"), evaluation.spread_at(k, |r| of(r)), &share, &percent);
        }
    }
    type Form<'f> = &'f dyn Fn(f64) -> String;
    let rest: [(&str, Figure, Form<'_>); 6] = [
        ("attempts with an answer", |r| r.n_answered as f64 / r.n_attempts.max(1) as f64, &percent),
        ("tokens per problem", |r| r.generated_tokens as f64 / r.n_problems.max(1) as f64, &number),
        ("Python blocks per problem", |r| r.tool_calls as f64 / r.n_problems.max(1) as f64, &number),
        ("Python blocks that failed", |r| r.tool_errors as f64 / r.tool_calls.max(1) as f64, &percent),
        ("time per problem", |r| r.elapsed_s / r.n_problems.max(1) as f64, &seconds),
        ("time", |r| r.elapsed_s, &seconds),
    ];
    for (name, of, form) in rest {
        row(name.to_owned(), evaluation.spread(of), &|r| Some(of(r)), form);
    }
    table
}

/// All figures as one object.
pub fn json(header: &Header, evaluation: &Evaluation) -> Result<Value, Failure> {
    let at = |of: fn(&RunFigures) -> &Vec<solver::evaluation::AtK>| -> Vec<Value> {
        let ks = evaluation.ks().into_iter();
        ks.map(|k| json!({ "k": k, "share": evaluation.spread_at(k, |r| of(r)) })).collect()
    };
    let mut value = json!({
        "model": header.model.name,
        "backend": header.backend,
        "set": header.set_name,
        "options": header.options,
        "accuracy": evaluation.spread(|r| r.accuracy),
        "pass_at": at(|r| &r.pass_at),
        "majority_at": at(|r| &r.majority_at),
        "generated_tokens": evaluation.spread(|r| r.generated_tokens as f64),
        "tool_calls": evaluation.spread(|r| r.tool_calls as f64),
        "tool_errors": evaluation.spread(|r| r.tool_errors as f64),
        "elapsed_s": evaluation.spread(|r| r.elapsed_s),
    });
    if let (Some(object), Value::Object(figures)) = (value.as_object_mut(), serde_json::to_value(evaluation)?) {
        object.extend(figures);
    }
    Ok(value)
}

/// Two evaluations side by side.
pub fn comparison(a: &Path, b: &Path, c: &Comparison, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "A: {}\nB: {}", a.display(), b.display())?;
    let mut table = new_table(&["id", "expected", "A", "B", "B − A"]);
    for change in &c.changed {
        table.add_row([
            change.id.clone(),
            change.expected.to_string(),
            answers_text(&change.answers_a, change.expected),
            answers_text(&change.answers_b, change.expected),
            format!("{:+.2}", change.gain),
        ]);
    }
    if !c.changed.is_empty() {
        writeln!(out, "{table}")?;
    }
    let gains = c.changed.iter().filter(|x| x.gain > 0.0).count();
    writeln!(
        out,
        "{} of {} problems changed: {gains} better in B, {} worse",
        c.changed.len(),
        c.n_common,
        c.changed.len() - gains
    )?;
    writeln!(
        out,
        "right: {:.1} % in A, {:.1} % in B ({:+.1} points); such a difference by chance: {}",
        100.0 * c.accuracy_a,
        100.0 * c.accuracy_b,
        100.0 * (c.accuracy_b - c.accuracy_a),
        c.p_value.map_or_else(String::new, |p| format!("p = {p:.3}")),
    )?;
    if c.n_apart > 0 {
        writeln!(out, "{} problems are only in one of them, or have another answer there: left out", c.n_apart)?;
    }
    Ok(())
}
