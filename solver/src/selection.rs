//! Choosing between answers by asking the model (GenSelect, as in arXiv 2504.16891): each distinct answer stands in a
//! prompt with the end of the surest attempt that gave it, several judges name the best, most names win. Ties and no
//! names at all fall back on the vote's order.
//!
//! Owns the prompt, the judges' sequences and the count. Called by `rollout` where attempts disagree.

use serde::{Deserialize, Serialize};

use crate::answer::BoxWatcher;
use crate::attempt::{Attempt, Step};
use crate::model::{LanguageModel, Message, ModelError, SamplerParams};
use crate::options::{SolverOptions, attempt_seed};
use crate::problem::Problem;
use crate::protocol::{Part, Reader};
use crate::rollout::{CancelToken, Deadline};
use crate::tool::cut_middle;
use crate::vote::VoteTable;

/// What chooses between the attempts' answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// The vote.
    #[default]
    Vote,
    /// The model, shown a summary of each.
    GenSelect,
}

/// What the judges said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The answers that were shown, in their order.
    pub candidates: Vec<i64>,
    /// What each judge wrote.
    pub judgements: Vec<Judgement>,
    /// The answer that was chosen.
    pub answer: i64,
}

/// One judge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// What it wrote.
    pub text: String,
    /// Tokens that this took.
    pub generated_tokens: usize,
    /// The answer that it named; none where it named no candidate or didn't come to its end.
    pub answer: Option<i64>,
}

/// Most candidates that are shown, those with most votes.
const MOST_CANDIDATES: usize = 8;
/// Characters of an attempt that are shown.
const SUMMARY_CHARS: usize = 1600;

/// Asks the model; none where there is nothing to choose. Ends early with the judges so far at the deadline or when
/// the run is cancelled.
pub(crate) fn select<M: LanguageModel>(
    model: &mut M,
    options: &SolverOptions,
    problem: &Problem,
    attempts: &[Attempt],
    votes: &VoteTable,
    (deadline, cancel): (Option<Deadline<'_>>, &CancelToken),
) -> Result<Option<Selection>, ModelError> {
    let rows = &votes.rows[..votes.rows.len().min(MOST_CANDIDATES)];
    if rows.len() < 2 {
        return Ok(None);
    }
    let shown = rows.iter().map(|row| {
        let of_row = attempts.iter().filter(|a| row.attempts.contains(&a.number));
        let surest = of_row.max_by(|a, b| a.confidence.mean().total_cmp(&b.confidence.mean()));
        (row.answer, surest.map_or_else(String::new, summary))
    });
    let shown: Vec<(i64, String)> = shown.collect();
    let prompt = model.render_chat(&[Message::new("user", question(&problem.text, &shown))])?;
    let mut judges: Vec<Judge<M::Seq>> = (1..=options.select_votes).map(|_| Judge::new()).collect();
    let n_left = |judges: &[Judge<M::Seq>]| judges.iter().filter(|j| !j.ended).count();
    let result = loop {
        if n_left(&judges) == 0 || cancel.is_cancelled() || deadline.is_some_and(|d| d.is_over()) {
            break Ok(());
        }
        let n_live = judges.iter().filter(|j| j.seq.is_some()).count();
        let waiting = judges.iter_mut().enumerate().filter(|(_, j)| j.seq.is_none() && !j.ended);
        let mut started = Ok(());
        for (n, judge) in waiting.take(model.n_seq().saturating_sub(n_live)) {
            let seed = attempt_seed(options.seed, &format!("{}\u{0}select", problem.id), n + 1);
            match model.start(&prompt.tokens, &SamplerParams { seed, ..options.sampling }) {
                Ok(seq) => {
                    judge.reader = options.protocol.plain_reader(prompt.opens_thought);
                    judge.seq = Some(seq);
                }
                // Several candidates may be more than the context holds: then the vote stands.
                Err(ModelError::TooLong { .. }) => judge.ended = true,
                Err(error) => started = Err(error),
            }
        }
        if let Err(error) = started {
            break Err(error);
        }
        if !model.has_work() {
            break Ok(());
        }
        let events = match model.step() {
            Ok(events) => events,
            Err(error) => break Err(error),
        };
        for event in events {
            let Some(judge) = judges.iter_mut().find(|j| j.seq == Some(event.seq)) else { continue };
            judge.take(&event.text, event.control.as_deref(), shown.len());
            if judge.ended || event.end.is_some() || judge.n_tokens >= options.token_limit() {
                judge.ended = true;
                judge.seq = None;
                model.release(event.seq);
            }
        }
    };
    for judge in &mut judges {
        if let Some(seq) = judge.seq.take() {
            model.release(seq);
        }
    }
    result?;
    let judgements: Vec<Judgement> = judges
        .into_iter()
        .map(|j| Judgement { text: j.text, generated_tokens: j.n_tokens, answer: j.chosen.map(|i| shown[i].0) })
        .collect();
    let candidates: Vec<i64> = shown.iter().map(|(answer, _)| *answer).collect();
    let names = |answer: i64| judgements.iter().filter(|j| j.answer == Some(answer)).count();
    // The first of those with most names: candidates stand in the vote's order.
    let answer = candidates.iter().copied().rev().max_by_key(|&a| names(a)).unwrap_or(candidates[0]);
    Ok(Some(Selection { candidates, judgements, answer }))
}

struct Judge<Seq> {
    seq: Option<Seq>,
    reader: Reader,
    watcher: BoxWatcher,
    text: String,
    n_tokens: usize,
    /// Candidate that it named, from 0.
    chosen: Option<usize>,
    ended: bool,
}

impl<Seq> Judge<Seq> {
    fn new() -> Judge<Seq> {
        Judge {
            seq: None,
            reader: crate::protocol::Protocol::default().plain_reader(false),
            watcher: BoxWatcher::default(),
            text: String::new(),
            n_tokens: 0,
            chosen: None,
            ended: false,
        }
    }

    /// A box that names a candidate ends the judgement; one inside a thought says nothing.
    fn take(&mut self, text: &str, control: Option<&str>, n_candidates: usize) {
        self.n_tokens += 1;
        self.text.push_str(text);
        let mut parts = self.reader.text(text);
        if let Some(name) = control {
            parts.extend(self.reader.control(name));
        }
        for part in parts {
            let Part::Text(said) = part else { continue };
            for content in self.watcher.push(&said) {
                let number = content.trim().parse::<usize>().ok();
                if let Some(number) = number.filter(|n| (1..=n_candidates).contains(n)) {
                    self.chosen = Some(number - 1);
                    self.ended = true;
                    return;
                }
            }
        }
    }
}

fn question(problem: &str, candidates: &[(i64, String)]) -> String {
    let mut text = format!(
        "A problem and {} solutions that disagree follow. Check each of them: does it answer what is asked, is every \
         step right, does its program compute what it should, is a modulus applied where one is asked for? Do not solve \
         the problem anew. Name the solution whose answer is right by its number in \\boxed{{}}, such as \\boxed{{1}}.\n\n\
         Problem\n{}\n",
        candidates.len(),
        problem.trim(),
    );
    for (n, (answer, summary)) in (1..).zip(candidates) {
        text += &format!("\nSolution {n}, with the answer {answer}\n{summary}\n");
    }
    text
}

/// The end of an attempt without its thoughts: what it said, ran and was shown.
fn summary(attempt: &Attempt) -> String {
    let mut text = String::new();
    for step in &attempt.steps {
        match step {
            Step::Thought(_) | Step::User(_) | Step::NotRun(_) => {}
            Step::Text(said) => text += said,
            Step::Call { code, .. } => text += &format!("\n```python\n{}\n```\n", code.trim()),
            Step::Result(output) => text += &format!("```output\n{}\n```\n", cut_middle(output.trim(), 400)),
        }
    }
    let n_chars = text.chars().count();
    let tail: String = text.chars().skip(n_chars.saturating_sub(SUMMARY_CHARS)).collect();
    if n_chars > SUMMARY_CHARS { format!("[…]{tail}") } else { tail.trim().to_string() }
}
