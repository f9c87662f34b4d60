//! One attempt at a problem as a state machine: text, calls and results go in, what to do next comes out.
//!
//! Owns the attempt's budgets, its record (for the transcript) and its end. It touches neither the model nor Python:
//! `rollout` carries out each [`Action`] and reports back, so every path can be tested without either. How calls look
//! is `protocol`'s business. An answer is taken only from the model's own text, outside code and thoughts, and ends the
//! attempt at once.

use std::time::{Duration, Instant};

use sandbox::{Outcome, Status};
use serde::{Deserialize, Serialize};

use crate::answer::BoxWatcher;
use crate::confidence::{TAIL_TOKENS, Window};
use crate::journal::event::OutcomeFields;
use crate::model::{Message, ToolCall, TurnEnd};
use crate::options::SolverOptions;
use crate::prompt;
use crate::protocol::{BadCall, Part, Protocol, Reader, Reply, TOOL};
use crate::report::AttemptReport;
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
    /// Confidence of its last tokens.
    pub confidence: Window,
    /// Whether running its code again printed its answer; none where that wasn't tried.
    pub verified: Option<bool>,
    /// Set once it has ended.
    pub end: Option<AttemptEnd>,
    started: Option<Instant>,
    elapsed: Duration,
    logprob_sum: f64,
    protocol: Protocol,
    reader: Reader,
    watcher: BoxWatcher,
    options: SolverOptions,
    /// Whether what the model wrote last ended a line.
    ends_line: bool,
    /// Whom the call that runs now is addressed to.
    called: String,
    /// The model ended its turn inside the block that runs now.
    turn_ended: bool,
    nudged: bool,
    call_refused: bool,
}

/// Something that happened in an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The model thought.
    Thought(String),
    /// The model said.
    Text(String),
    /// The model called Python with this, which couldn't be run.
    NotRun(String),
    /// A block ran.
    Call {
        /// The block.
        code: String,
        /// Its outcome.
        #[serde(with = "OutcomeFields")]
        outcome: Outcome,
    },
    /// The model was shown this output.
    Result(String),
    /// A user turn was added.
    User(String),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// It was less sure of itself than the attempts before it.
    Pruned,
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
            AttemptEnd::Pruned => "pruned",
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
    /// Append a tool's turn; report with [`Attempt::turn_opened`].
    Return {
        /// The tool.
        tool: String,
        /// Its output.
        output: String,
        /// Whether the model has ended its turn.
        turn_ended: bool,
    },
    /// Begin the conversation anew: the opening, then these messages; report with [`Attempt::turn_opened`].
    Reopen(Vec<Message>),
    /// The attempt has ended.
    Done,
}

/// Fewest tokens that an answer needs; a turn isn't continued with less.
pub const MIN_ANSWER_TOKENS: usize = 16;

impl Attempt {
    /// An attempt that hasn't started.
    pub fn new(number: usize, seed: u64, options: &SolverOptions) -> Attempt {
        let protocol = options.protocol;
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
            confidence: Window::new(options.prune.map_or(TAIL_TOKENS, |p| p.window_tokens)),
            verified: None,
            end: None,
            started: None,
            elapsed: Duration::ZERO,
            logprob_sum: 0.0,
            protocol,
            reader: reader(options, false),
            watcher: BoxWatcher::default(),
            options: options.clone(),
            ends_line: true,
            called: String::new(),
            turn_ended: false,
            nudged: false,
            call_refused: false,
        }
    }

    /// An attempt that ended in an earlier process of the same run.
    pub fn restored(report: &AttemptReport, steps: Vec<Step>, options: &SolverOptions) -> Attempt {
        Attempt {
            steps,
            generated_tokens: report.generated_tokens,
            given_tokens: report.given_tokens,
            tool_calls: report.tool_calls,
            tool_errors: report.tool_errors,
            tool_ms: (report.tool_s * 1000.0).round() as u64,
            rejected: report.rejected.clone(),
            confidence: Window::restored(report.confidence, report.lowest_confidence),
            verified: report.verified,
            end: Some(report.end.clone()),
            elapsed: Duration::try_from_secs_f64(report.elapsed_s).unwrap_or_default(),
            logprob_sum: report.mean_logprob * report.generated_tokens as f64,
            ..Attempt::new(report.number, report.seed, options)
        }
    }

    /// The model has been given the prompt.
    pub fn started(&mut self, prompt_tokens: usize, opens_thought: bool) {
        self.started = Some(Instant::now());
        self.turn_opened(prompt_tokens, opens_thought);
    }

    /// A new assistant turn begins after `given_tokens` more tokens.
    pub fn turn_opened(&mut self, given_tokens: usize, opens_thought: bool) {
        self.turn_ended = false;
        self.given(given_tokens, opens_thought);
    }

    /// Text was appended to the model's turn.
    pub fn said(&mut self, given_tokens: usize) {
        self.given(given_tokens, self.reader.in_thought());
    }

    fn given(&mut self, n_tokens: usize, in_thought: bool) {
        self.given_tokens += n_tokens;
        self.reader = reader(&self.options, in_thought);
        // A box can't reach across what somebody else wrote.
        self.watcher = BoxWatcher::default();
        self.ends_line = true;
    }

    /// The answer, where the attempt ended with one.
    pub fn answer(&self) -> Option<i64> {
        if let Some(AttemptEnd::Answer { answer }) = self.end { Some(answer) } else { None }
    }

    /// The blocks that ran, in order.
    pub fn codes(&self) -> Vec<String> {
        let code = |step: &Step| if let Step::Call { code, .. } = step { Some(code.clone()) } else { None };
        self.steps.iter().filter_map(code).collect()
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
            // What was held back belongs to the record.
            for part in self.reader.finish() {
                self.record(part);
            }
            self.elapsed = self.started.map_or(Duration::ZERO, |s| s.elapsed());
            self.end = Some(end);
        }
        Action::Done
    }

    /// The model wrote a token: text, or a control token of that name.
    pub fn on_token(&mut self, text: &str, control: Option<&str>, logprob: f32) -> Action {
        self.generated_tokens += 1;
        self.logprob_sum += f64::from(logprob);
        self.ends_line = if text.is_empty() { self.ends_line } else { text.ends_with('\n') };
        let mut parts = self.reader.text(text);
        if let Some(name) = control {
            parts.extend(self.reader.control(name));
        }
        match self.take_parts(parts) {
            Action::Continue if self.tokens_left() == 0 => self.finish(AttemptEnd::TokenBudget),
            action => action,
        }
    }

    /// The model stopped writing.
    pub fn on_turn_end(&mut self, end: TurnEnd) -> Action {
        self.turn_ended = true;
        let parts = self.reader.finish();
        match end {
            TurnEnd::EndOfTurn => match self.take_parts(parts) {
                Action::Continue => self.ask_for_answer(),
                action => action,
            },
            TurnEnd::ContextFull => {
                for part in parts {
                    // A call can't be answered any more.
                    if let Some(done) = self.record(part) {
                        return done;
                    }
                }
                self.finish(AttemptEnd::ContextFull)
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
        self.options.token_limit().saturating_sub(self.generated_tokens)
    }

    /// Acts on the first part that matters; what the model wrote after a call in the same token was written without
    /// knowing the result and is not read.
    fn take_parts(&mut self, parts: Vec<Part>) -> Action {
        for part in parts {
            match part {
                Part::Call { tool, code } => return self.call(tool, Ok(code)),
                Part::BadCall { tool, raw, problem } => return self.call(tool, Err((raw, problem))),
                part => {
                    if let Some(done) = self.record(part) {
                        return done;
                    }
                }
            }
        }
        Action::Continue
    }

    /// Puts a part on record. Text may hold an answer, which ends the attempt.
    fn record(&mut self, part: Part) -> Option<Action> {
        let text = match part {
            Part::Text(text) => text,
            Part::Thought(thought) => {
                self.watcher = BoxWatcher::default();
                match self.steps.last_mut() {
                    Some(Step::Thought(before)) => before.push_str(&thought),
                    _ => self.steps.push(Step::Thought(thought)),
                }
                return None;
            }
            Part::Call { code: raw, .. } | Part::BadCall { raw, .. } => {
                self.steps.push(Step::NotRun(raw));
                return None;
            }
        };
        let boxes = self.watcher.push(&text);
        match self.steps.last_mut() {
            Some(Step::Text(before)) => before.push_str(&text),
            _ => self.steps.push(Step::Text(text)),
        }
        for content in boxes {
            match self.options.answer_range.judge(&content) {
                Ok(answer) => return Some(self.finish(AttemptEnd::Answer { answer })),
                Err(reason) => self.rejected.push(reason.to_string()),
            }
        }
        None
    }

    fn call(&mut self, tool: String, call: Result<String, (String, BadCall)>) -> Action {
        self.called = tool;
        if self.tokens_left() < MIN_ANSWER_TOKENS.min(self.options.token_limit()) {
            return self.finish(AttemptEnd::TokenBudget);
        }
        let is_allowed = self.tool_calls < self.options.max_turns && !self.options.no_python;
        let (raw, answer) = match call {
            Ok(code) if is_allowed => {
                self.tool_calls += 1;
                return Action::Run(code);
            }
            Err((raw, problem)) if is_allowed => {
                self.tool_calls += 1;
                self.tool_errors += 1;
                (raw, prompt::bad_call(&problem))
            }
            Ok(raw) | Err((raw, _)) => {
                if std::mem::replace(&mut self.call_refused, true) {
                    return self.finish(AttemptEnd::TurnBudget);
                }
                (raw, prompt::no_more_calls(if self.options.no_python { 0 } else { self.options.max_turns }))
            }
        };
        self.steps.push(Step::NotRun(raw));
        self.show(&answer)
    }

    /// Gives the model an output in the form of its protocol.
    fn show(&mut self, output: &str) -> Action {
        let turn_ended = self.turn_ended;
        match self.protocol.reply(&self.called, output, turn_ended, self.ends_line) {
            Reply::Text(text) => {
                self.steps.push(Step::Result(output.to_string()));
                Action::Say(text)
            }
            Reply::User(text) => self.ask(text),
            Reply::Result { tool, text } => {
                self.steps.push(Step::Result(text.clone()));
                Action::Return { tool, output: text, turn_ended }
            }
        }
    }

    fn ask(&mut self, text: String) -> Action {
        self.steps.push(Step::User(text.clone()));
        if self.protocol.forgets_thinking() { Action::Reopen(self.messages()) } else { Action::Ask(text) }
    }

    fn ask_for_answer(&mut self) -> Action {
        if self.nudged || self.tokens_left() < MIN_ANSWER_TOKENS {
            let spent = self.tokens_left() == 0;
            return self.finish(if spent { AttemptEnd::TokenBudget } else { AttemptEnd::NoAnswer });
        }
        self.nudged = true;
        self.ask(prompt::nudge(self.options.answer_range, self.rejected.last().map(String::as_str)))
    }

    /// Everything after the opening as messages.
    fn messages(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut said = Message::new("assistant", "");
        let say = |said: &mut Message, messages: &mut Vec<Message>| {
            let message = std::mem::replace(said, Message::new("assistant", ""));
            if message != *said {
                messages.push(message);
            }
        };
        for step in &self.steps {
            match step {
                Step::Thought(text) => said.thinking.push_str(text),
                Step::Text(text) => said.content.push_str(text),
                Step::Call { code, .. } | Step::NotRun(code) => {
                    said.tool_calls.push(ToolCall { name: TOOL.to_string(), arguments: code.as_str().into() });
                    say(&mut said, &mut messages);
                }
                Step::Result(text) => messages.push(Message::new("tool", text.as_str())),
                Step::User(text) => {
                    say(&mut said, &mut messages);
                    messages.push(Message::new("user", text.as_str()));
                }
            }
        }
        say(&mut said, &mut messages);
        messages
    }
}

/// Tells thoughts, text and, where there is Python, calls apart.
fn reader(options: &SolverOptions, in_thought: bool) -> Reader {
    let protocol = options.protocol;
    if options.no_python { protocol.plain_reader(in_thought) } else { protocol.reader(in_thought) }
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
