//! `run --stdio`: problems from standard input, one JSON object a line; answers to standard output, one line each,
//! flushed at once. A line that can't be used gets an error line and the run goes on; so does a problem that comes
//! after the time is up, with the default answer. The same problem again gets the same answer again.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use serde_json::{Value, json};
use solver::{CancelToken, LanguageModel, Problem, Run, RunEnd, SolverOptions};

use crate::failure::Failure;

/// Longest line that is taken.
const MAX_LINE_BYTES: u64 = 4 << 20;
/// How often an interrupt is looked for while no line comes.
const WAIT: Duration = Duration::from_millis(100);
const NAME: &str = "standard input";

/// A line as it came, without its end.
type Line = io::Result<Result<Vec<u8>, &'static str>>;

/// Answers lines until they end, or until the run is interrupted.
pub fn serve<M: LanguageModel>(
    run: &mut Run<'_, M>,
    options: &SolverOptions,
    cancel: &CancelToken,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let lines = read_lines();
    let mut answered: HashMap<String, (String, i64)> = HashMap::new();
    for number in 1u64.. {
        let Some(line) = next(&lines, cancel) else { break };
        let line = line.map_err(|e| Failure::plain(format!("cannot read {NAME}: {e}")))?;
        let problem = match line {
            Ok(line) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Ok(line) => problem(number, &line, options),
            Err(reason) => Err((Value::Null, format!("{NAME}, line {number}: {reason}"))),
        };
        let answer = problem.and_then(|problem| {
            let id = Value::from(problem.id.clone());
            match answered.get(&problem.id) {
                Some((text, answer)) if *text == problem.text => return Ok((id, *answer)),
                Some(_) => {
                    let message = format!("{NAME}, line {number}: id {:?} was another problem before", problem.id);
                    return Err((id, message));
                }
                None => {}
            }
            run.check(&problem).map_err(|e| (id.clone(), e.to_string()))?;
            let report = run.solve(run.position_of(&problem), &problem);
            let answer = report.answer.unwrap_or(options.default_answer);
            answered.insert(problem.id, (problem.text, answer));
            Ok((id, answer))
        });
        let reply = match answer {
            Ok((id, answer)) => json!({ "id": id, "answer": answer }),
            Err((id, message)) => {
                eprintln!("warning: {message}");
                json!({ "id": id, "line": number, "error": message })
            }
        };
        writeln!(out, "{reply}")?;
        out.flush()?;
        if *run.end() == RunEnd::Cancelled {
            break;
        }
    }
    Ok(())
}

/// The problem in a line; an error has the id that could be read all the same.
fn problem(number: u64, line: &[u8], options: &SolverOptions) -> Result<Problem, (Value, String)> {
    let text =
        std::str::from_utf8(line).map_err(|_| (Value::Null, format!("{NAME}, line {number}: it isn't UTF-8")))?;
    Problem::from_json(NAME, number, text, options.answer_range).map_err(|e| {
        let id = serde_json::from_str::<Value>(text).ok().and_then(|v| v.get("id").cloned());
        (id.filter(|v| v.is_string() || v.is_number()).unwrap_or(Value::Null), e.to_string())
    })
}

/// Reads on a thread of its own: an interrupt must not wait for a line that never comes.
fn read_lines() -> Receiver<Line> {
    let (sender, lines) = sync_channel(1);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        while let Some(line) = read_line(&mut input).transpose() {
            let is_last = line.is_err();
            if sender.send(line).is_err() || is_last {
                return;
            }
        }
    });
    lines
}

/// The next line, or why it can't be taken: one that is too long is read to its end and dropped.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Result<Vec<u8>, &'static str>>> {
    let mut line = Vec::new();
    if input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') || (line.len() as u64) < MAX_LINE_BYTES {
        return Ok(Some(Ok(line)));
    }
    input.skip_until(b'\n')?;
    Ok(Some(Err("it is longer than 4 MiB")))
}

fn next(lines: &Receiver<Line>, cancel: &CancelToken) -> Option<Line> {
    loop {
        match lines.recv_timeout(WAIT) {
            Ok(line) => return Some(line),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
