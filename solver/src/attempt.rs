//! One attempt at a problem as a state machine: text, calls and results go in, what to do next comes out.
//!
//! Owns the attempt's budgets, its record (for the transcript) and its end. It touches neither the model nor Python:
//! `rollout` carries out each [`Action`] and reports back, so every path can be tested without either. An answer is
//! taken only from the model's own prose, outside code and thoughts, and ends the attempt at once.

use std::time::{Duration, Instant};

use sandbox::{Outcome, Status};
use serde::Serialize;

use crate::answer::BoxWatcher;
use crate::model::TurnEnd;
use crate::options::SolverOptions;
use crate::prompt;
use crate::protocol::{CallParser, Part, Protocol};
use crate::tool::{cut_middle, is_error};

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// From 1.
    pub number: usize,
    /// Seed of its sampling and of its Python session.
    pub seed: u64,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// Tokens that the model wrote.
    pub generated_tokens: usize,
    /// Tokens that were put in: the prompt, tool output, follow-up turns.
    pub given_tokens: usize,
    /// Python blocks that ran.
    pub tool_calls: usize,
    /// Those among them that failed: an exception, a limit, a crash.
    pub tool_errors: usize,
    /// Time spent in Python.
    pub tool_ms: u64,
    /// Boxes that didn't count, with the reason.
    pub rejected: Vec<String>,
    /// Set once it has ended.
    pub end: Option<AttemptEnd>,
    started: Option<Instant>,
    elapsed: Duration,
    logprob_sum: f64,
    protocol: Protocol,
    parser: CallParser,
    watcher: BoxWatcher,
    options: SolverOptions,
    /// The model ended its turn inside the block that runs now.
    turn_ended: bool,
    nudged: bool,
    call_refused: bool,
}

/// Something that happened in an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The model wrote.
    Text(String),
    /// A block ran.
    Call {
        /// The block.
        code: String,
        /// Its outcome.
        outcome: Outcome,
    },
    /// The model was shown this inside its own turn.
    Shown(String),
    /// A user turn was added.
    User(String),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum AttemptEnd {
    /// It boxed an integer in range.
    Answer {
        /// The integer.
        answer: i64,
    },
    /// It ended its turn without one, also after the nudge.
    NoAnswer,
    /// No room in the context.
    ContextFull,
    /// `max_tokens` are spent.
    TokenBudget,
    /// It went on calling Python after `max_turns` blocks.
    TurnBudget,
    /// The problem's time was up.
    TimeUp,
    /// The vote was decided, or the run was interrupted.
    Cancelled,
    /// The model failed.
    Error {
        /// Why.
        message: String,
    },
}

impl AttemptEnd {
    /// Short name for tables.
    pub fn name(&self) -> &'static str {
        match self {
            AttemptEnd::Answer { .. } => "answer",
            AttemptEnd::NoAnswer => "no answer",
            AttemptEnd::ContextFull => "context full",
            AttemptEnd::TokenBudget => "token budget",
            AttemptEnd::TurnBudget => "turn budget",
            AttemptEnd::TimeUp => "time up",
            AttemptEnd::Cancelled => "cancelled",
            AttemptEnd::Error { .. } => "error",
        }
    }
}

/// What the caller has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Go on generating.
    Continue,
    /// Pause the sequence, run this code, report with [`Attempt::on_outcome`].
    Run(String),
    /// Append this text to the model's turn.
    Say(String),
    /// Append a user turn with this text; report with [`Attempt::turn_opened`].
    Ask(String),
    /// The attempt has ended.
    Done,
}

/// Fewest tokens that an answer needs; a turn isn't continued with less.
pub const MIN_ANSWER_TOKENS: usize = 16;

impl Attempt {
    /// An attempt that hasn't started.
    pub fn new(number: usize, seed: u64, options: &SolverOptions) -> Attempt {
        let protocol = Protocol::default();
        Attempt {
            number,
            seed,
            steps: Vec::new(),
            generated_tokens: 0,
            given_tokens: 0,
            tool_calls: 0,
            tool_errors: 0,
            tool_ms: 0,
            rejected: Vec::new(),
            end: None,
            started: None,
            elapsed: Duration::ZERO,
            logprob_sum: 0.0,
            protocol,
            parser: protocol.parser(),
            watcher: BoxWatcher::default(),
            options: options.clone(),
            turn_ended: false,
            nudged: false,
            call_refused: false,
        }
    }

    /// The model has been given the prompt.
    pub fn started(&mut self, prompt_tokens: usize, opens_thought: bool) {
        self.started = Some(Instant::now());
        self.turn_opened(prompt_tokens, opens_thought);
    }

    /// A new assistant turn begins after `given_tokens` more tokens.
    pub fn turn_opened(&mut self, given_tokens: usize, opens_thought: bool) {
        self.given_tokens += given_tokens;
        self.turn_ended = false;
        self.fresh_line();
        self.watcher = BoxWatcher::new(opens_thought);
    }

    /// Text was appended to the model's turn.
    pub fn said(&mut self, given_tokens: usize) {
        self.given_tokens += given_tokens;
        self.fresh_line();
    }

    fn fresh_line(&mut self) {
        self.parser = self.protocol.parser();
        // A box can't reach across what somebody else wrote.
        self.watcher = BoxWatcher::new(self.watcher.in_thought());
    }

    /// The answer, where the attempt ended with one.
    pub fn answer(&self) -> Option<i64> {
        if let Some(AttemptEnd::Answer { answer }) = self.end { Some(answer) } else { None }
    }

    /// Mean natural log-probability of the tokens that the model wrote; 0 where it wrote none.
    pub fn mean_logprob(&self) -> f64 {
        if self.generated_tokens == 0 { 0.0 } else { self.logprob_sum / self.generated_tokens as f64 }
    }

    /// Time from its start to its end, or to now.
    pub fn elapsed(&self) -> Duration {
        match (self.started, &self.end) {
            (Some(started), None) => started.elapsed(),
            _ => self.elapsed,
        }
    }

    /// Ends the attempt from outside (time, interruption, failure); no effect on one that has ended.
    pub fn finish(&mut self, end: AttemptEnd) -> Action {
        if self.end.is_none() {
            self.elapsed = self.started.map_or(Duration::ZERO, |s| s.elapsed());
            self.end = Some(end);
        }
        Action::Done
    }

    /// The model wrote a token.
    pub fn on_token(&mut self, text: &str, logprob: f32) -> Action {
        self.generated_tokens += 1;
        self.logprob_sum += f64::from(logprob);
        match self.steps.last_mut() {
            _ if text.is_empty() => {}
            Some(Step::Text(written)) => written.push_str(text),
            _ => self.steps.push(Step::Text(text.to_string())),
        }
        let parts = self.parser.push(text);
        match self.take_parts(parts) {
            Action::Continue if self.tokens_left() == 0 => self.finish(AttemptEnd::TokenBudget),
            action => action,
        }
    }

    /// The model stopped writing.
    pub fn on_turn_end(&mut self, end: TurnEnd) -> Action {
        self.turn_ended = true;
        let parts = self.parser.finish();
        match end {
            TurnEnd::EndOfTurn => match self.take_parts(parts) {
                Action::Continue => self.ask_for_answer(),
                action => action,
            },
            TurnEnd::ContextFull => {
                let prose = parts.into_iter().filter(|p| matches!(p, Part::Prose(_))).collect();
                match self.take_parts(prose) {
                    Action::Done => Action::Done,
                    _ => self.finish(AttemptEnd::ContextFull),
                }
            }
        }
    }

    /// A block that [`Action::Run`] asked for has run.
    pub fn on_outcome(&mut self, code: String, outcome: Outcome) -> Action {
        self.tool_ms += outcome.elapsed_ms;
        self.tool_errors += usize::from(is_error(&outcome.status));
        let output = output_for_model(&outcome, self.options.output_chars);
        self.steps.push(Step::Call { code, outcome });
        self.show(&output)
    }

    fn tokens_left(&self) -> usize {
        self.options.max_tokens.saturating_sub(self.generated_tokens)
    }

    /// Acts on the first part that matters; what the model wrote after a call in the same token was written without
    /// knowing the result and is not read.
    fn take_parts(&mut self, parts: Vec<Part>) -> Action {
        for part in parts {
            match part {
                Part::Prose(text) => {
                    for content in self.watcher.push(&text) {
                        match self.options.answer_range.judge(&content) {
                            Ok(answer) => return self.finish(AttemptEnd::Answer { answer }),
                            Err(reason) => self.rejected.push(reason.to_string()),
                        }
                    }
                }
                Part::Call(code) => return self.called(code),
            }
        }
        Action::Continue
    }

    fn called(&mut self, code: String) -> Action {
        if self.tokens_left() < MIN_ANSWER_TOKENS.min(self.options.max_tokens) {
            return self.finish(AttemptEnd::TokenBudget);
        }
        if self.tool_calls < self.options.max_turns {
            self.tool_calls += 1;
            return Action::Run(code);
        }
        if std::mem::replace(&mut self.call_refused, true) {
            return self.finish(AttemptEnd::TurnBudget);
        }
        let refusal = prompt::no_more_calls(self.options.max_turns);
        self.show(&refusal)
    }

    /// Puts an output block into the model's turn, or, where it has ended that turn, into a user turn.
    fn show(&mut self, output: &str) -> Action {
        if self.turn_ended {
            let text = self.protocol.format_output(output, true);
            self.steps.push(Step::User(text.clone()));
            return Action::Ask(text);
        }
        let fresh_line =
            self.steps.iter().rev().find_map(|s| if let Step::Text(t) = s { Some(t.ends_with('\n')) } else { None });
        let text = self.protocol.format_output(output, fresh_line.unwrap_or(true));
        self.steps.push(Step::Shown(text.clone()));
        Action::Say(text)
    }

    fn ask_for_answer(&mut self) -> Action {
        if self.nudged || self.tokens_left() < MIN_ANSWER_TOKENS {
            let spent = self.tokens_left() == 0;
            return self.finish(if spent { AttemptEnd::TokenBudget } else { AttemptEnd::NoAnswer });
        }
        self.nudged = true;
        let text = prompt::nudge(self.options.answer_range, self.rejected.last().map(String::as_str));
        self.steps.push(Step::User(text.clone()));
        Action::Ask(text)
    }
}

/// What the model is shown of an outcome.
fn output_for_model(outcome: &Outcome, max_chars: usize) -> String {
    let text = cut_middle(outcome.output.trim_end(), max_chars);
    match &outcome.status {
        Status::TimedOut { .. } => format!("{text}\nUse a faster method or a smaller search."),
        Status::OutOfMemory { .. } => format!("{text}\nUse a method that needs less memory."),
        _ => text,
    }
}
