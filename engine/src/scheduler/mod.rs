//! Many sequences, one batch a step. A step takes the next token of every decoding sequence and fills what is left of
//! the batch with pending prompt tokens. Sequences that share a prefix compute it once: the pages of the longest
//! common prefix are shared with a neighbour, or with an earlier prompt that is still kept, instead of being computed
//! again (`prefix`). Sequences that wait with the same prompt draw their first tokens from the one row of its logits.
//!
//! Where the cache is bounded and its pages run out, the sequence that was started last gives its pages up. It keeps
//! its tokens and the state of its sampler, waits until there is room, and is computed again from its tokens: nothing
//! that it has written changes. The oldest sequence that can run never gives way and a cache always holds one, so every
//! step brings some sequence further.
//!
//! Where it pays, drafts of the next tokens (`drafts`) are computed along with a sequence's last token. The sampler draws
//! from each position's logits in turn, for as long as what it draws is what was drafted: the tokens are those that
//! steps one by one would give. They are handed out one a step, so that callers see no difference.

mod batch;
mod prefix;
mod sequence;

use crate::backend::BatchToken;
use crate::drafts::{DraftOptions, Drafter};
use crate::engine::Engine;
use crate::error::{Error, RequestError};
use crate::kv::{Occupancy, ParkedId};
use crate::sampler::{Sampled, Sampler, SamplerParams};
use batch::Part;
use sequence::{Drawn, Sequence, draw};
use std::collections::VecDeque;
use std::time::Instant;

/// Names a sequence from `start` to `release`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SeqId(u64);

/// A drawn token.
#[derive(Clone, Debug)]
pub struct Event {
    /// Whose it is.
    pub seq: SeqId,
    /// The token.
    pub token: u32,
    /// Text that it completes; empty inside a code point and for control tokens.
    pub text: String,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The most probable tokens, as many as the sampler was asked for.
    pub top_logprobs: Vec<(u32, f32)>,
    /// Set when the sequence can't or won't go on by itself.
    pub end: Option<EndReason>,
}

/// Why a sequence pauses itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// The model ended its turn; `append` may open another.
    EndOfGeneration,
    /// There is no room for another token.
    ContextFull,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Prompt and appended tokens that were computed.
    pub prompt_tokens: u64,
    /// Prompt tokens whose keys and values came from a neighbour or an earlier prompt.
    pub shared_tokens: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Time of steps that held prompt tokens.
    pub prompt_ms: f64,
    /// Time of steps that only decoded.
    pub decode_ms: f64,
    /// Time of all steps outside the model: batches, page tables, sampling, text.
    pub overhead_ms: f64,
    /// Tokens that were drafted and verified.
    pub drafted_tokens: u64,
    /// Of these, those that were drawn.
    pub accepted_tokens: u64,
    /// Times that a sequence gave its pages up to others.
    pub n_preempted: u64,
    /// Tokens that were computed again for that reason.
    pub replayed_tokens: u64,
    /// The cache at its fullest.
    pub kv_peak: Occupancy,
}

impl Stats {
    /// Share of the steps' time that is not the model's, 0 ..= 1.
    pub fn overhead_share(&self) -> f64 {
        let all = self.prompt_ms + self.decode_ms;
        if all > 0.0 { self.overhead_ms / all } else { 0.0 }
    }
}
/// Runs sequences on an engine.
pub struct Scheduler {
    engine: Engine,
    /// One per key/value slot.
    slots: Vec<Option<Sequence>>,
    /// Prompts whose keys and values are kept as long as there is room, with their tokens.
    parked: Vec<(ParkedId, Vec<u32>)>,
    next_id: u64,
    stats: Stats,
    batch: Vec<BatchToken>,
    drafter: Drafter,
}

impl Scheduler {
    /// A scheduler with no sequences.
    pub fn new(engine: Engine) -> Self {
        let slots = (0..engine.n_seq()).map(|_| None).collect();
        Scheduler {
            engine,
            slots,
            parked: Vec::new(),
            next_id: 0,
            stats: Stats::default(),
            batch: Vec::new(),
            drafter: Drafter::new(DraftOptions::default()),
        }
    }

    /// With drafts, as far as the engine was loaded for so many rows of logits.
    pub fn with_drafts(self, options: DraftOptions) -> Self {
        Scheduler { drafter: Drafter::new(options), ..self }
    }

    /// The engine below.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Starts a sequence.
    ///
    /// # Errors
    /// The prompt is empty, too long for the context (one position is kept for an answer) or holds unknown tokens, or
    /// no slot is free.
    pub fn start(&mut self, prompt: &[u32], sampling: &SamplerParams) -> Result<SeqId, RequestError> {
        if prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        self.check_tokens(prompt)?;
        let n_ctx = self.engine.n_ctx();
        if prompt.len() >= n_ctx {
            return Err(RequestError::ContextExceeded { found: prompt.len(), n_ctx });
        }
        let n_seq = self.slots.len();
        let slot = self.slots.iter().position(Option::is_none).ok_or(RequestError::NoFreeSequence { n_seq })?;
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let mut sampler = Sampler::new(*sampling);
        prompt.iter().for_each(|&t| sampler.accept(t));
        self.slots[slot] = Some(Sequence::new(id, prompt, sampler, self.engine.tokenizer().stream()));
        self.drafter.extend(id.0, prompt);
        Ok(id)
    }

    /// Adds text that the model did not write and lets the sequence go on.
    ///
    /// # Errors
    /// The text doesn't fit the context or holds unknown tokens; the sequence stays as it was.
    ///
    /// # Panics
    /// If the sequence was released.
    pub fn append(&mut self, seq: SeqId, tokens: &[u32]) -> Result<(), RequestError> {
        self.check_tokens(tokens)?;
        let n_ctx = self.engine.n_ctx();
        self.rewind(seq);
        let s = self.sequence(seq);
        let found = s.len() + tokens.len();
        if found >= n_ctx {
            return Err(RequestError::ContextExceeded { found, n_ctx });
        }
        s.pending.extend_from_slice(tokens);
        tokens.iter().for_each(|&t| s.sampler.accept(t));
        s.paused = false;
        self.drafter.extend(seq.0, tokens);
        Ok(())
    }

    /// Takes a sequence out of the batch until `append`.
    pub fn pause(&mut self, seq: SeqId) {
        self.rewind(seq);
        self.sequence(seq).paused = true;
    }

    /// Drops what was drawn ahead: the sequence goes on from the last token that was handed out.
    fn rewind(&mut self, seq: SeqId) {
        let at = self.slots.iter().position(|s| s.as_ref().is_some_and(|s| s.id == seq));
        let Some((slot, s)) = at.and_then(|i| Some((i, self.slots[i].as_mut()?))) else { return };
        if let Some(state) = s.resume_at.take() {
            s.sampler.restore(state);
            s.ready.clear();
            self.engine.kv_mut().truncate(slot, s.stored.len());
        }
    }

    /// Ends a sequence and frees its slot.
    pub fn release(&mut self, seq: SeqId) {
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(|s| s.id == seq) {
                *slot = None;
                self.drafter.finish(seq.0);
                self.engine.kv_mut().truncate(i, 0);
            }
        }
    }

    /// Tokens that still fit behind a sequence.
    pub fn room(&self, seq: SeqId) -> usize {
        let n_ctx = self.engine.n_ctx();
        self.slots.iter().flatten().find(|s| s.id == seq).map_or(0, |s| n_ctx - s.len())
    }

    /// Whether a step would compute anything.
    pub fn has_work(&self) -> bool {
        self.slots.iter().flatten().any(Sequence::runnable)
    }

    /// A token for each decoding sequence: from one pass, which also takes chunks of pending prompts, or of those that a
    /// pass has drawn ahead.
    ///
    /// # Errors
    /// The device failed, or the model gives logits that are not finite.
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        let started = Instant::now();
        let events = self.hand_out();
        if !events.is_empty() {
            return Ok(events);
        }
        self.share_prefixes();
        let parts = self.fill_batch()?;
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let forward_started = Instant::now();
        let (logits, tokenizer) = self.engine.forward_with_tokenizer(&self.batch)?;
        let forward = forward_started.elapsed();
        let drawn = draw(&mut self.slots, &parts, &self.batch, logits, &|t| tokenizer.is_end_of_generation(t))?;
        let is_prompt = parts.iter().any(|p| p.n_tokens > 1 || !p.output);
        if !is_prompt {
            self.drafter.measured(self.batch.len(), forward.as_secs_f64() * 1e3);
        }
        let mut prompt_tokens = 0;
        let mut events = Vec::with_capacity(drawn.len());
        let mut drawn = drawn.into_iter();
        for part in &parts {
            let mut drawn_ahead = drawn.next().unwrap_or_default();
            let Some(s) = self.slots[part.slot].as_mut() else { continue };
            s.stored.extend(s.pending.drain(..part.n_tokens));
            s.fresh = false;
            let n_replayed = s.n_replayed.min(part.n_tokens);
            s.n_replayed -= n_replayed;
            self.stats.replayed_tokens += n_replayed as u64;
            if part.n_tokens > 1 || !part.output {
                prompt_tokens += part.n_tokens - n_replayed;
            }
            if s.stored.len() == s.prompt_len {
                self.park_prompt(part.slot);
            }
            let Some(first) = drawn_ahead.pop_front() else { continue };
            if part.n_draft > 0 {
                self.keep_drafts(part, &first, drawn_ahead);
            }
            events.push(self.deliver(part.slot, first.sampled));
            for (&twin, drawn) in part.twins.iter().zip(&mut drawn) {
                self.take_over(part.slot, twin);
                events.extend(drawn.into_iter().map(|d| self.deliver(twin, d.sampled)));
            }
        }
        let elapsed = started.elapsed();
        let ms = elapsed.as_secs_f64() * 1e3;
        self.stats.generated_tokens += events.len() as u64;
        self.stats.prompt_tokens += prompt_tokens as u64;
        *(if is_prompt { &mut self.stats.prompt_ms } else { &mut self.stats.decode_ms }) += ms;
        self.stats.overhead_ms += (elapsed - forward).as_secs_f64() * 1e3;
        if self.engine.kv().n_used() > self.stats.kv_peak.n_pages {
            self.stats.kv_peak = self.engine.kv().occupancy();
        }
        Ok(events)
    }

    /// Notes which drafted tokens were the ones drawn, and takes the others back.
    fn keep_drafts(&mut self, part: &Part, first: &Drawn, drawn_ahead: VecDeque<Drawn>) {
        let n_accepted = drawn_ahead.len();
        self.stats.drafted_tokens += part.n_draft as u64;
        self.stats.accepted_tokens += n_accepted as u64;
        self.drafter.learn(part.n_matched, part.n_draft, n_accepted);
        let Some(s) = self.slots[part.slot].as_mut() else { return };
        self.engine.kv_mut().truncate(part.slot, s.stored.len() + n_accepted);
        (s.ready, s.resume_at) = (drawn_ahead, first.state.clone());
    }

    /// The next of the tokens that were drawn ahead, one of each sequence that has any.
    fn hand_out(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for slot in 0..self.slots.len() {
            let Some(s) = self.slots[slot].as_mut() else { continue };
            let Some(drawn) = s.ready.pop_front() else { continue };
            let mut pending = std::mem::take(&mut s.pending);
            s.stored.append(&mut pending);
            s.resume_at = drawn.state;
            events.push(self.deliver(slot, drawn.sampled));
        }
        self.stats.generated_tokens += events.len() as u64;
        events
    }

    /// Puts a drawn token behind its sequence.
    fn deliver(&mut self, slot: usize, drawn: Sampled) -> Event {
        let s = self.slots[slot].as_mut().expect("a token was drawn for it");
        let tokenizer = self.engine.tokenizer();
        let Sampled { token, logprob, top_logprobs } = drawn;
        s.pending.push(token);
        self.drafter.extend(s.id.0, &[token]);
        let end = if tokenizer.is_end_of_generation(token) {
            Some(EndReason::EndOfGeneration)
        } else if s.len() >= self.engine.n_ctx() {
            Some(EndReason::ContextFull)
        } else {
            None
        };
        let mut text = String::new();
        if !tokenizer.is_control(token) {
            text = s.decoder.push(tokenizer, token);
        }
        if end.is_some() {
            text.push_str(&s.decoder.flush());
            s.paused = true;
        }
        Event { seq: s.id, token, text, logprob, top_logprobs, end }
    }
    /// Slots of the sequences that can run, the one that was started first in front.
    fn by_age(&self) -> Vec<usize> {
        let id = |i: &usize| self.slots[*i].as_ref().map(|s| s.id.0);
        let mut slots: Vec<usize> =
            (0..self.slots.len()).filter(|&i| self.slots[i].as_ref().is_some_and(Sequence::runnable)).collect();
        slots.sort_by_key(id);
        slots
    }
    fn check_tokens(&self, tokens: &[u32]) -> Result<(), RequestError> {
        let n_vocab = self.engine.config().n_vocab;
        match tokens.iter().find(|&&t| t as usize >= n_vocab) {
            Some(&token) => Err(RequestError::TokenOutOfRange { token, n_vocab }),
            None => Ok(()),
        }
    }

    fn sequence(&mut self, seq: SeqId) -> &mut Sequence {
        let found = self.slots.iter_mut().flatten().find(|s| s.id == seq);
        found.unwrap_or_else(|| panic!("sequence {seq:?} was released"))
    }
}
