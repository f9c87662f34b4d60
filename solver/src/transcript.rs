//! A transcript per attempt, as Markdown: the prompt, what the model wrote, what its code gave, how it ended.
//!
//! What the model said goes in as it is, its thoughts as quotations. File names are made from problem ids, which may be
//! anything: what is no plain file name is replaced, and the problem's position keeps names apart. Called by `run`.

use std::fmt::Write;

use sandbox::Status;

use crate::attempt::{Attempt, AttemptEnd, Step};
use crate::model::Message;
use crate::problem::Problem;

/// File name of a transcript; `index` is the problem's position in its set, from 0.
pub fn file_name(index: usize, id: &str, attempt: usize) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
    let id: String = id.chars().map(plain).take(48).collect();
    format!("{:04}-{id}-attempt-{attempt}.md", index + 1)
}

/// The transcript of an attempt that has ended.
pub fn render(problem: &Problem, prompt: &[Message], attempt: &Attempt) -> String {
    let mut out = String::new();
    write_all(&mut out, problem, prompt, attempt).expect("writing to a string can't fail");
    out
}

fn write_all(out: &mut String, problem: &Problem, prompt: &[Message], attempt: &Attempt) -> std::fmt::Result {
    writeln!(out, "# {}, attempt {}\n", problem.id, attempt.number)?;
    let end = match &attempt.end {
        Some(AttemptEnd::Answer { answer }) => format!("answer {answer}"),
        Some(AttemptEnd::Error { message }) => format!("error: {message}"),
        Some(end) => end.name().to_string(),
        None => "running".to_string(),
    };
    writeln!(out, "- end: {end}")?;
    if let Some(expected) = problem.answer {
        writeln!(out, "- expected: {expected}")?;
    }
    let Attempt { generated_tokens, given_tokens, tool_calls, tool_errors, .. } = attempt;
    writeln!(out, "- tokens: {generated_tokens} written, {given_tokens} given")?;
    writeln!(out, "- Python: {tool_calls} blocks, {tool_errors} failed, {:.3} s", attempt.tool_ms as f64 / 1000.0)?;
    writeln!(out, "- time: {:.1} s", attempt.elapsed().as_secs_f64())?;
    writeln!(out, "- mean log-probability: {:.4}", attempt.mean_logprob())?;
    writeln!(out, "- seed: {}", attempt.seed)?;
    for rejected in &attempt.rejected {
        writeln!(out, "- box that didn't count: {rejected}")?;
    }
    for message in prompt {
        writeln!(out, "\n## {}\n\n{}", message.role, message.content)?;
    }
    writeln!(out, "\n## assistant\n")?;
    for step in &attempt.steps {
        write_step(out, step)?;
    }
    fresh_line(out);
    Ok(())
}

/// Thoughts are quoted, so that they can't be taken for what was said.
fn write_step(out: &mut String, step: &Step) -> std::fmt::Result {
    match step {
        Step::Text(text) => out.push_str(text),
        Step::Thought(text) => {
            fresh_line(out);
            out.push_str("\n> **thinking**\n>\n");
            text.trim().lines().try_for_each(|line| writeln!(out, "> {line}"))?;
            out.push('\n');
        }
        Step::User(text) => write!(out, "\n\n## user\n\n{text}\n\n## assistant\n\n")?,
        Step::Result(text) => {
            fresh_line(out);
            writeln!(out, "```output\n{}\n```", text.trim_end())?;
        }
        Step::NotRun(code) => {
            fresh_line(out);
            write!(out, "```\n{code}\n```\n\n> Python: not run\n")?;
        }
        Step::Call { code, outcome } => {
            fresh_line(out);
            let left_out = match outcome.truncated_bytes {
                0 => String::new(),
                n => format!(", {n} bytes of output left out"),
            };
            let status = status_name(&outcome.status);
            write!(out, "```python\n{code}\n```\n\n> Python: {status} in {} ms{left_out}\n", outcome.elapsed_ms)?;
        }
    }
    Ok(())
}

fn fresh_line(out: &mut String) {
    if !out.ends_with('\n') {
        out.push('\n');
    }
}

/// A status in a few words.
pub fn status_name(status: &Status) -> String {
    match status {
        Status::Ok => "ok".to_string(),
        Status::Exception { kind, .. } => kind.clone(),
        Status::TimedOut { limit_ms } => format!("stopped at its limit of {limit_ms} ms"),
        Status::OutOfMemory { limit_bytes } => format!("stopped at its limit of {} MiB", limit_bytes >> 20),
        Status::Crashed { reason } => format!("crashed: {reason}"),
        Status::Exited { code } => format!("exited with status {code}"),
        Status::NoCallsLeft { limit } => format!("refused: its limit of {limit} calls is reached"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::SolverOptions;
    use crate::protocol::Protocol;

    #[test]
    fn any_id_gives_a_plain_file_name_of_its_own() {
        assert_eq!(file_name(0, "0a8xf2", 1), "0001-0a8xf2-attempt-1.md");
        assert_eq!(file_name(1, "../../etc/passwd", 2), "0002-______etc_passwd-attempt-2.md");
        assert_eq!(file_name(2, "Äb\n\0", 1), "0003-_b__-attempt-1.md");
        assert!(file_name(3, &"x".repeat(5000), 1).len() < 80);
        assert_ne!(file_name(0, "a/b", 1), file_name(1, "a_b", 1));
    }

    #[test]
    fn thoughts_are_quoted_and_calls_stand_in_blocks() {
        let options = SolverOptions { protocol: Protocol::Hermes, ..SolverOptions::default() };
        let mut attempt = Attempt::new(1, 7, &options);
        attempt.started(10, true);
        let text = "maybe\n\\boxed{1}</think>Let me see.\n<tool_call>oops</tool_call>";
        text.split_inclusive(' ').for_each(|token| drop(attempt.on_token(token, None, -0.1)));
        attempt.turn_opened(5, false);
        attempt.on_token("So \\boxed{2}", None, -0.1);
        let problem = Problem { id: "p".to_string(), text: "?".to_string(), answer: None };
        let transcript = render(&problem, &[Message::new("user", "?")], &attempt);
        let (_, said) = transcript.split_once("## assistant\n\n").unwrap();
        let expected = "\n> **thinking**\n>\n> maybe\n> \\boxed{1}\n\nLet me see.\n```\noops\n```\n\n> Python: not run\n\
                        ```output\n[not run: the call isn't valid JSON";
        assert!(said.starts_with(expected), "{said}");
        assert!(said.ends_with("\n```\nSo \\boxed{2}\n") && transcript.contains("- end: answer 2\n"), "{transcript}");
    }
}
