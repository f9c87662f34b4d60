//! A language model that follows a script, and a Python that is a closure: for tests of everything that sits on top
//! of the rollout, without weights or WebAssembly.
//!
//! [`ScriptedModel`] cuts its script into tokens of any size, keeps the real model's rules (a paused sequence gets no
//! token, a full context ends a turn, a sequence too many is refused) and panics where its caller breaks them. A token
//! of a text is one of its characters, so a sequence can be read back with [`ScriptedModel::text`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox::{Limits, Outcome, Status};

use crate::clock::FakeClock;
use crate::model::{LanguageModel, Message, ModelError, ModelEvent, Rendered, SamplerParams, TurnEnd};
use crate::tool::{Interpreter, PythonSession};

/// What one sequence writes.
#[derive(Debug, Clone)]
pub struct Script {
    /// Its texts: the first after the prompt, then one after each append. The model ends its turn after each.
    pub turns: Vec<String>,
    /// Log-probability of each of its tokens.
    pub logprob: f32,
    /// Confidence of each of its tokens.
    pub confidence: f32,
    /// Steps before its first token.
    pub delay_steps: usize,
    /// The last text is written again and again.
    pub endless: bool,
}

impl Script {
    /// Writes these texts.
    pub fn new(turns: &[&str]) -> Script {
        let turns = turns.iter().map(|t| t.to_string()).collect();
        Script { turns, logprob: -0.5, confidence: 10.0, delay_steps: 0, endless: false }
    }

    /// With another log-probability.
    pub fn logprob(self, logprob: f32) -> Script {
        Script { logprob, ..self }
    }

    /// With another confidence.
    pub fn confidence(self, confidence: f32) -> Script {
        Script { confidence, ..self }
    }

    /// Begins after this many steps.
    pub fn delayed(self, delay_steps: usize) -> Script {
        Script { delay_steps, ..self }
    }

    /// Never ends its last text.
    pub fn endless(self) -> Script {
        Script { endless: true, ..self }
    }
}

/// Follows a script per sequence, in the order in which sequences are started.
///
/// Where it has control tokens, a script spells them: each is one token, and those that end a turn end it where they
/// stand. What the script has after them is not written.
#[derive(Debug)]
pub struct ScriptedModel {
    controls: Vec<&'static str>,
    turn_ends: Vec<&'static str>,
    opens_thought: bool,
    scripts: VecDeque<Script>,
    seqs: Vec<ScriptedSeq>,
    n_seq: usize,
    n_ctx: usize,
    max_piece_chars: usize,
    fail_at_step: Option<usize>,
    n_steps: usize,
    largest_batch: usize,
    split_state: u64,
    /// Moved by this much in every step.
    clock: Option<(FakeClock, Duration)>,
}

#[derive(Debug)]
struct ScriptedSeq {
    sampling: SamplerParams,
    text: String,
    n_tokens: usize,
    turns: VecDeque<String>,
    turn: String,
    at: usize,
    logprob: f32,
    confidence: f32,
    delay_steps: usize,
    endless: bool,
    running: bool,
    released: bool,
}

impl ScriptedModel {
    /// One script for each sequence that will be started; 64 sequences of a million tokens, tokens of 3 characters.
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> ScriptedModel {
        ScriptedModel {
            controls: Vec::new(),
            turn_ends: Vec::new(),
            opens_thought: false,
            scripts: scripts.into_iter().collect(),
            seqs: Vec::new(),
            n_seq: 64,
            n_ctx: 1_000_000,
            max_piece_chars: 3,
            fail_at_step: None,
            n_steps: 0,
            largest_batch: 0,
            split_state: 0,
            clock: None,
        }
    }

    /// With this many sequences at once.
    pub fn with_n_seq(self, n_seq: usize) -> ScriptedModel {
        ScriptedModel { n_seq, ..self }
    }

    /// With this context length.
    pub fn with_n_ctx(self, n_ctx: usize) -> ScriptedModel {
        ScriptedModel { n_ctx, ..self }
    }

    /// Tokens of 1 to `max_piece_chars` characters, drawn from `seed`.
    pub fn with_split(self, max_piece_chars: usize, seed: u64) -> ScriptedModel {
        ScriptedModel { max_piece_chars, split_state: seed, ..self }
    }

    /// With these control tokens; `turn_ends` are those among them that end a turn.
    pub fn with_controls(self, controls: &[&'static str], turn_ends: &[&'static str]) -> ScriptedModel {
        ScriptedModel { controls: controls.to_vec(), turn_ends: turn_ends.to_vec(), ..self }
    }

    /// With a template that opens a thought at the beginning of each turn.
    pub fn opening_thoughts(self) -> ScriptedModel {
        ScriptedModel { opens_thought: true, ..self }
    }

    /// Fails at the n-th step, from 1, and ever after.
    pub fn failing_at_step(self, n: usize) -> ScriptedModel {
        ScriptedModel { fail_at_step: Some(n), ..self }
    }

    /// Moves a clock with every step.
    pub fn with_clock(self, clock: FakeClock, step: Duration) -> ScriptedModel {
        ScriptedModel { clock: Some((clock, step)), ..self }
    }

    /// Everything in the n-th sequence that was started: prompt, written and appended text.
    pub fn text(&self, n: usize) -> &str {
        &self.seqs[n].text
    }

    /// Sampling of the n-th sequence that was started.
    pub fn sampling(&self, n: usize) -> &SamplerParams {
        &self.seqs[n].sampling
    }

    /// Sequences started so far.
    pub fn n_started(&self) -> usize {
        self.seqs.len()
    }

    /// Sequences that live.
    pub fn n_live(&self) -> usize {
        self.seqs.iter().filter(|s| !s.released).count()
    }

    /// Most tokens that one step gave.
    pub fn largest_batch(&self) -> usize {
        self.largest_batch
    }

    fn piece_chars(&mut self) -> usize {
        self.split_state =
            self.split_state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (self.split_state >> 33) as usize % self.max_piece_chars
    }

    fn rendered(&self, text: &str) -> Rendered {
        Rendered { tokens: tokens(text), opens_thought: self.opens_thought }
    }

    /// The next token of a script: a control token, or up to `n_chars` of the text before the next one.
    fn next_token<'s>(&self, rest: &'s str, n_chars: usize) -> (&'s str, bool) {
        let starts = |at: &usize| self.controls.iter().find(|c| rest[*at..].starts_with(**c));
        if let Some(control) = starts(&0) {
            return (&rest[..control.len()], true);
        }
        let mut ends = rest.char_indices().map(|(at, _)| at).skip(1).chain([rest.len()]);
        let end = ends.by_ref().enumerate().find(|(n, at)| n + 1 == n_chars || starts(at).is_some());
        (&rest[..end.map_or(rest.len(), |(_, at)| at)], false)
    }

    fn live(&mut self, seq: usize) -> &mut ScriptedSeq {
        let entry = &mut self.seqs[seq];
        assert!(!entry.released, "sequence {seq} was released");
        entry
    }
}

fn tokens(text: &str) -> Vec<u32> {
    text.chars().map(u32::from).collect()
}

fn text_of(tokens: &[u32]) -> String {
    tokens.iter().map(|&t| char::from_u32(t).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

impl LanguageModel for ScriptedModel {
    type Seq = usize;

    fn n_seq(&self) -> usize {
        self.n_seq
    }

    fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    fn render_chat(&self, messages: &[Message]) -> Result<Rendered, ModelError> {
        let turn = |m: &Message| {
            let calls: String = m.tool_calls.iter().map(|c| format!("[calls {} {}]", c.name, c.arguments)).collect();
            let thought = if m.thinking.is_empty() { String::new() } else { format!("[thought {}]", m.thinking) };
            format!("<|{}|>\n{thought}{}{calls}<|end|>\n", m.role, m.content)
        };
        let turns: String = messages.iter().map(turn).collect();
        Ok(self.rendered(&format!("{turns}<|assistant|>\n")))
    }

    fn render_follow_up(&self, user: &str) -> Result<Rendered, ModelError> {
        Ok(self.rendered(&format!("<|end|>\n<|user|>\n{user}<|end|>\n<|assistant|>\n")))
    }

    fn render_result(&self, tool: &str, output: &str, turn_ended: bool) -> Result<Rendered, ModelError> {
        let end = if turn_ended { "" } else { "[cut]" };
        Ok(self.rendered(&format!("{end}<|end|>\n<|tool {tool}|>\n{output}<|end|>\n<|assistant|>\n")))
    }

    fn tokenize_text(&self, text: &str) -> Vec<u32> {
        tokens(text)
    }

    fn start(&mut self, prompt: &[u32], sampling: &SamplerParams) -> Result<usize, ModelError> {
        if self.n_live() == self.n_seq {
            return Err(ModelError::NoFreeSequence { n_seq: self.n_seq });
        }
        if prompt.len() >= self.n_ctx {
            return Err(ModelError::TooLong { tokens: prompt.len(), room: self.n_ctx });
        }
        let script =
            self.scripts.pop_front().ok_or_else(|| ModelError::Failed("the scripts are used up".to_string()))?;
        let mut turns: VecDeque<String> = script.turns.into();
        self.seqs.push(ScriptedSeq {
            sampling: *sampling,
            text: text_of(prompt),
            n_tokens: prompt.len(),
            turn: turns.pop_front().unwrap_or_default(),
            turns,
            at: 0,
            logprob: script.logprob,
            confidence: script.confidence,
            delay_steps: script.delay_steps,
            endless: script.endless,
            running: true,
            released: false,
        });
        Ok(self.seqs.len() - 1)
    }

    fn append(&mut self, seq: usize, tokens: &[u32]) -> Result<(), ModelError> {
        let room = self.room(seq);
        if tokens.len() > room {
            return Err(ModelError::TooLong { tokens: tokens.len(), room });
        }
        let entry = self.live(seq);
        entry.text += &text_of(tokens);
        entry.n_tokens += tokens.len();
        entry.turn = entry.turns.pop_front().unwrap_or_default();
        entry.at = 0;
        entry.running = true;
        Ok(())
    }

    fn pause(&mut self, seq: usize) {
        self.live(seq).running = false;
    }

    fn release(&mut self, seq: usize) {
        let entry = self.live(seq);
        entry.released = true;
        entry.running = false;
    }

    fn room(&self, seq: usize) -> usize {
        self.n_ctx - self.seqs[seq].n_tokens
    }

    fn step(&mut self) -> Result<Vec<ModelEvent<usize>>, ModelError> {
        self.n_steps += 1;
        if let Some((clock, step)) = &self.clock {
            clock.advance(*step);
        }
        if self.fail_at_step.is_some_and(|n| self.n_steps >= n) {
            return Err(ModelError::Failed("the device was lost".to_string()));
        }
        let mut events = Vec::new();
        for seq in 0..self.seqs.len() {
            if !self.seqs[seq].running {
                continue;
            }
            if self.seqs[seq].delay_steps > 0 {
                self.seqs[seq].delay_steps -= 1;
                continue;
            }
            let n_chars = self.piece_chars();
            let room = self.room(seq);
            let entry = &mut self.seqs[seq];
            if entry.endless && entry.turns.is_empty() && entry.at == entry.turn.len() {
                entry.at = 0;
            }
            let entry = &self.seqs[seq];
            let (token, is_control) = self.next_token(&entry.turn[entry.at..], n_chars);
            let token = token.to_string();
            let end = match () {
                _ if token.is_empty() || self.turn_ends.contains(&token.as_str()) => Some(TurnEnd::EndOfTurn),
                _ if room <= 1 => Some(TurnEnd::ContextFull),
                _ => None,
            };
            let entry = &mut self.seqs[seq];
            entry.at += token.len();
            entry.text += &token;
            entry.n_tokens += 1;
            entry.running = end.is_none();
            let (logprob, confidence) = (entry.logprob, entry.confidence);
            let (text, control) = if is_control { (String::new(), Some(token)) } else { (token, None) };
            events.push(ModelEvent { seq, text, control, logprob, confidence, end });
        }
        self.largest_batch = self.largest_batch.max(events.len());
        Ok(events)
    }

    fn has_work(&self) -> bool {
        self.seqs.iter().any(|s| s.running)
    }
}

type Handler = dyn Fn(&str, usize, u64) -> Outcome + Send + Sync;

/// Python by closure.
pub struct FakePython {
    handler: Arc<Handler>,
    broken: Option<String>,
    n_sessions: AtomicUsize,
    codes: Arc<Mutex<Vec<String>>>,
}

impl FakePython {
    /// Answers a block with the closure's outcome; it also gets the number of the call in its session, from 1.
    pub fn new(handler: impl Fn(&str, usize) -> Outcome + Send + Sync + 'static) -> FakePython {
        FakePython::with_seed(move |code, n, _| handler(code, n))
    }

    /// Like [`FakePython::new`]; the closure also gets the session's seed.
    pub fn with_seed(handler: impl Fn(&str, usize, u64) -> Outcome + Send + Sync + 'static) -> FakePython {
        FakePython { handler: Arc::new(handler), broken: None, n_sessions: AtomicUsize::new(0), codes: Arc::default() }
    }

    /// Says which call of which session it is.
    pub fn counting() -> FakePython {
        FakePython::with_seed(|_, n, seed| FakePython::ok(&format!("call {n} of seed {seed}")))
    }

    /// Can't make a session.
    pub fn broken(reason: &str) -> FakePython {
        FakePython { broken: Some(reason.to_string()), ..FakePython::counting() }
    }

    /// An outcome with this output.
    pub fn ok(output: &str) -> Outcome {
        FakePython::outcome(Status::Ok, output)
    }

    /// An outcome of any kind.
    pub fn outcome(status: Status, output: &str) -> Outcome {
        Outcome { status, output: output.to_string(), elapsed_ms: 1, truncated_bytes: 0, rolled_back: false }
    }

    /// Sessions made so far.
    pub fn n_sessions(&self) -> usize {
        self.n_sessions.load(Ordering::SeqCst)
    }

    /// Blocks that were run, in the order in which they were begun.
    pub fn codes(&self) -> Vec<String> {
        self.codes.lock().expect("no test panics while it holds the lock").clone()
    }
}

impl Interpreter for FakePython {
    fn session(&self, _: &Limits, seed: u64) -> Result<Box<dyn PythonSession>, String> {
        if let Some(reason) = &self.broken {
            return Err(reason.clone());
        }
        self.n_sessions.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeSession { handler: self.handler.clone(), codes: self.codes.clone(), seed, n_calls: 0 }))
    }
}

struct FakeSession {
    handler: Arc<Handler>,
    codes: Arc<Mutex<Vec<String>>>,
    seed: u64,
    n_calls: usize,
}

impl PythonSession for FakeSession {
    fn run(&mut self, code: &str) -> Outcome {
        self.n_calls += 1;
        self.codes.lock().expect("no test panics while it holds the lock").push(code.to_string());
        (self.handler)(code, self.n_calls, self.seed)
    }
}
