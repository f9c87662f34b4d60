//! Many sequences, one batch a step. A step takes the next token of every decoding sequence and fills what is left of
//! the batch with pending prompt tokens. Sequences that share a prefix compute it once: the pages of the longest
//! common prefix are shared with a neighbour, or with an earlier prompt that is still kept, instead of being computed
//! again.
//!
//! Where the cache is bounded and its pages run out, the sequence that was started last gives its pages up. It keeps
//! its tokens and the state of its sampler, waits until there is room, and is computed again from its tokens: nothing
//! that it has written changes. The oldest sequence that can run never gives way and a cache always holds one, so every
//! step brings some sequence further.
//!
//! Where it pays, drafts of the next tokens (`drafts`) are computed along with a sequence's last token. The sampler draws
//! from each position's logits in turn, for as long as what it draws is what was drafted: the tokens are those that
//! steps one by one would give. They are handed out one a step, so that callers see no difference.

use crate::backend::BatchToken;
use crate::drafts::{Draft, DraftOptions, Drafter};
use crate::engine::Engine;
use crate::error::{Error, RequestError};
use crate::kv::{KvPages, Occupancy, ParkedId};
use crate::sampler::{Sampled, Sampler, SamplerParams, SamplerState};
use crate::tokenizer::StreamDecoder;
use rayon::prelude::*;
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

/// Free pages per running sequence that a sequence finds before it is computed (again) beside them: with fewer it would
/// soon give way once more.
const SPARE_PAGES: usize = 4;

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

struct Sequence {
    id: SeqId,
    sampler: Sampler,
    decoder: StreamDecoder,
    /// Tokens whose keys and values are stored.
    stored: Vec<u32>,
    /// Tokens that come next; the last one's logits give the next token.
    pending: Vec<u32>,
    paused: bool,
    /// Tokens it was started with.
    prompt_len: usize,
    /// Has not computed anything yet, or not since it gave its pages up: may take a prefix from a neighbour.
    fresh: bool,
    /// Has its share of the cache. Others wait for room.
    admitted: bool,
    /// Of `pending`, the tokens that were computed before its pages were given up.
    n_replayed: usize,
    /// Tokens that were drawn in the last pass and not handed out yet. `pending` and all but the last of these have
    /// their keys and values stored.
    ready: VecDeque<Drawn>,
    /// Where the sampler stood after `pending`, while anything is ready.
    resume_at: Option<SamplerState>,
}

/// A token that was drawn.
struct Drawn {
    sampled: Sampled,
    /// Where the sampler stood after it; kept where it isn't the last one of its pass.
    state: Option<SamplerState>,
}

impl Sequence {
    fn len(&self) -> usize {
        self.stored.len() + self.pending.len()
    }

    fn runnable(&self) -> bool {
        !self.paused && !self.pending.is_empty()
    }
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
        let mut sampler = Sampler::new(sampling.clone());
        prompt.iter().for_each(|&t| sampler.accept(t));
        self.slots[slot] = Some(Sequence {
            id,
            sampler,
            decoder: self.engine.tokenizer().stream(),
            stored: Vec::new(),
            pending: prompt.to_vec(),
            paused: false,
            prompt_len: prompt.len(),
            fresh: true,
            admitted: false,
            n_replayed: 0,
            ready: VecDeque::new(),
            resume_at: None,
        });
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
        for (part, drawn) in parts.iter().zip(drawn) {
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
                park_prompt(self.engine.kv_mut(), &mut self.parked, part.slot, &s.stored);
            }
            let mut drawn = VecDeque::from(drawn);
            let Some(first) = drawn.pop_front() else { continue };
            if part.n_draft > 0 {
                let n_accepted = drawn.len();
                self.stats.drafted_tokens += part.n_draft as u64;
                self.stats.accepted_tokens += n_accepted as u64;
                self.drafter.learn(part.n_matched, part.n_draft, n_accepted);
                // What was drafted wrongly is taken back.
                self.engine.kv_mut().truncate(part.slot, s.stored.len() + n_accepted);
                (s.ready, s.resume_at) = (drawn, first.state);
            }
            events.push(self.deliver(part.slot, first.sampled));
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

    /// Gives fresh sequences what a neighbour has already computed of their prompt, or what was kept of an earlier one.
    fn share_prefixes(&mut self) {
        for slot in self.by_age() {
            let Some(s) = self.slots[slot].as_ref().filter(|s| s.fresh) else { continue };
            if self.waits_for_neighbour(slot) {
                continue;
            }
            // The last token is always computed: its logits are wanted.
            let prompt = &s.pending[..s.pending.len() - 1];
            let neighbours = self.slots.iter().enumerate().filter(|(i, _)| *i != slot);
            let mut sources: Vec<(usize, Source)> = neighbours
                .filter_map(|(i, other)| Some((common_prefix(&other.as_ref()?.stored, prompt), Source::Slot(i))))
                .chain(self.parked.iter().map(|(id, tokens)| (common_prefix(tokens, prompt), Source::Parked(*id))))
                .filter(|&(n, _)| n > s.stored.len())
                .collect();
            sources.sort_by_key(|&(n, _)| std::cmp::Reverse(n));
            // A sliding window may have left the longest one behind.
            let kv = self.engine.kv_mut();
            let taken = sources.into_iter().find(|&(n, source)| match source {
                Source::Slot(from) => kv.share(from, slot, n),
                Source::Parked(id) => kv.adopt(id, slot, n),
            });
            let Some((n, _)) = taken else { continue };
            let s = self.slots[slot].as_mut().expect("the slot was just looked at");
            s.stored = s.pending.drain(..n).collect();
            s.n_replayed = s.n_replayed.saturating_sub(n);
            s.fresh = false;
            self.stats.shared_tokens += n as u64;
        }
    }

    /// Slots of the sequences that can run, the one that was started first in front.
    fn by_age(&self) -> Vec<usize> {
        let id = |i: &usize| self.slots[*i].as_ref().map(|s| s.id.0);
        let mut slots: Vec<usize> =
            (0..self.slots.len()).filter(|&i| self.slots[i].as_ref().is_some_and(Sequence::runnable)).collect();
        slots.sort_by_key(id);
        slots
    }

    /// Whether an older neighbour is still computing a prompt that this fresh sequence shares further than what is
    /// stored by now: then waiting is cheaper than computing it twice.
    fn waits_for_neighbour(&self, slot: usize) -> bool {
        let Some(s) = self.slots[slot].as_ref().filter(|s| s.fresh) else { return false };
        self.slots.iter().flatten().filter(|other| other.id.0 < s.id.0 && other.runnable()).any(|other| {
            let prompt = other.stored.iter().chain(&other.pending);
            let common = prompt.zip(&s.pending[..s.pending.len() - 1]).take_while(|(a, b)| a == b).count();
            common > other.stored.len() && common > 1
        })
    }

    /// Fills the batch and makes room for it; says which sequences take part.
    fn fill_batch(&mut self) -> Result<Vec<Part>, Error> {
        self.admit();
        loop {
            let mut parts = self.choose_parts();
            if self.add_drafts(&mut parts) {
                if self.engine.kv_mut().make_room(&self.batch)? {
                    return Ok(parts);
                }
                // Nobody makes way for drafts.
                parts = self.choose_parts();
            }
            if parts.is_empty() || self.engine.kv_mut().make_room(&self.batch)? {
                return Ok(parts);
            }
            let oldest = self.by_age()[0];
            let holds_pages = |i: &usize| *i != oldest && self.engine.kv().n_pos(*i) > 0;
            let Some(victim) =
                (0..self.slots.len()).filter(holds_pages).max_by_key(|&i| self.slots[i].as_ref().map(|s| s.id.0))
            else {
                // The engine refuses what even an empty cache doesn't hold.
                return Ok(parts);
            };
            self.preempt(victim);
        }
    }

    /// Takes a sequence's pages away. It will be computed again from its tokens.
    fn preempt(&mut self, slot: usize) {
        self.engine.kv_mut().truncate(slot, 0);
        let Some(s) = self.slots[slot].as_mut() else { return };
        s.n_replayed += s.stored.len();
        let mut tokens = std::mem::take(&mut s.stored);
        tokens.append(&mut s.pending);
        s.pending = tokens;
        (s.fresh, s.admitted) = (true, false);
        self.stats.n_preempted += 1;
    }

    /// Gives sequences that wait their share of the cache, the oldest first, as far as there is room beside those that
    /// run.
    fn admit(&mut self) {
        let is_bounded = self.engine.kv().is_bounded();
        let order = self.by_age();
        let mut n_running = order.iter().filter(|&&i| self.slots[i].as_ref().is_some_and(|s| s.admitted)).count();
        for (place, &slot) in order.iter().enumerate() {
            let Some(s) = self.slots[slot].as_mut() else { continue };
            if s.admitted {
                continue;
            }
            // The oldest one takes what it needs, from the others.
            let has_room = place == 0
                || !is_bounded
                || self.engine.kv_mut().could_hold(slot, s.len() + 1, SPARE_PAGES * n_running);
            if !has_room {
                // Nor does anybody younger pass it by.
                break;
            }
            s.admitted = true;
            n_running += 1;
        }
    }

    /// What of the pending tokens is computed next: decoding sequences first, prompts take what is left.
    fn choose_parts(&mut self) -> Vec<Part> {
        self.batch.clear();
        let n_batch = self.engine.n_batch();
        let mut order = self.by_age();
        order.retain(|&i| self.slots[i].as_ref().is_some_and(|s| s.admitted) && !self.waits_for_neighbour(i));
        order.sort_by_key(|&i| self.slots[i].as_ref().map_or(0, |s| s.pending.len().min(2)));
        let mut parts = Vec::new();
        for slot in order {
            let Some(s) = self.slots[slot].as_ref() else { continue };
            let n_tokens = s.pending.len().min(n_batch - self.batch.len());
            if n_tokens == 0 {
                break;
            }
            let output = n_tokens == s.pending.len();
            self.batch.extend(s.pending[..n_tokens].iter().enumerate().map(|(i, &token)| BatchToken {
                token,
                seq: slot as u32,
                pos: (s.stored.len() + i) as u32,
                output: output && i + 1 == n_tokens,
            }));
            parts.push(Part { slot, n_tokens, output, n_draft: 0, n_matched: 0 });
        }
        parts
    }

    /// Adds drafts to a batch of decoding sequences, where that pays; says whether it did.
    fn add_drafts(&mut self, parts: &mut [Part]) -> bool {
        if !self.drafter.is_on() || parts.is_empty() || parts.iter().any(|p| p.n_tokens > 1 || !p.output) {
            return false;
        }
        let n_base = parts.len();
        let most = self.engine.n_batch().min(self.engine.n_outputs()).saturating_sub(n_base);
        let n_ctx = self.engine.n_ctx();
        let propose = |part: &Part| {
            let Some(s) = self.slots[part.slot].as_ref() else { return Draft::default() };
            // The token behind the last drafted one has its place, too.
            self.drafter.propose(s.id.0, most.min((n_ctx - s.len()).saturating_sub(1)))
        };
        let drafts: Vec<Draft> = parts.iter().map(propose).collect();
        let lengths = self.drafter.choose(&drafts, n_base, most);
        if lengths.iter().all(|&n| n == 0) {
            return false;
        }
        let base = std::mem::take(&mut self.batch);
        for (((part, token), draft), n) in parts.iter_mut().zip(base).zip(drafts).zip(lengths) {
            self.batch.push(token);
            (part.n_draft, part.n_matched) = (n, draft.n_matched);
            let drafted = draft.tokens.into_iter().take(n).zip(token.pos + 1..);
            self.batch.extend(drafted.map(|(token_id, pos)| BatchToken { token: token_id, pos, ..token }));
        }
        true
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

/// Where a prefix can be taken over from.
#[derive(Clone, Copy)]
enum Source {
    Slot(usize),
    Parked(ParkedId),
}

/// Tokens that both begin with.
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Keeps a prompt that was just computed, once, and forgets those that had to make way.
fn park_prompt(kv: &mut KvPages, parked: &mut Vec<(ParkedId, Vec<u32>)>, slot: usize, prompt: &[u32]) {
    parked.retain(|(id, _)| kv.is_parked(*id));
    if !parked.iter().any(|(_, tokens)| tokens == prompt) {
        parked.push((kv.park(slot, prompt.len()), prompt.to_vec()));
    }
}

/// Draws the next token of each part that asked for one, and those behind it for as long as they are the drafted ones;
/// side by side, from `logits`, `[n_outputs, n_vocab]`.
fn draw(
    slots: &mut [Option<Sequence>],
    parts: &[Part],
    batch: &[BatchToken],
    logits: &[f32],
    ends: &(dyn Fn(u32) -> bool + Sync),
) -> Result<Vec<Vec<Drawn>>, RequestError> {
    let n_outputs = batch.iter().filter(|t| t.output).count();
    // Without outputs there are no rows to cut.
    let n_vocab = logits.len().checked_div(n_outputs).unwrap_or(1);
    let mut by_slot: Vec<Option<&mut Sequence>> = slots.iter_mut().map(Option::as_mut).collect();
    let (mut row, mut token) = (0, 0);
    let mut work = Vec::with_capacity(parts.len());
    for part in parts {
        let n_rows = if part.output { 1 + part.n_draft } else { 0 };
        token += part.n_tokens;
        let drafted = &batch[token..token + part.n_draft];
        token += part.n_draft;
        let rows = &logits[row * n_vocab..(row + n_rows) * n_vocab];
        row += n_rows;
        let s = by_slot[part.slot].take().expect("a part's sequence");
        let position = s.stored.len() + part.n_tokens - 1;
        work.push((s, rows, drafted, position));
    }
    let draw_part = |(s, rows, drafted, position): &mut (&mut Sequence, &[f32], &[BatchToken], usize)| {
        let mut all = Vec::new();
        for (i, row) in rows.chunks_exact(n_vocab).enumerate() {
            if !row.iter().all(|l| l.is_finite()) {
                return Err(RequestError::NotFinite { position: *position + i });
            }
            let sampled = s.sampler.sample(row);
            s.sampler.accept(sampled.token);
            let goes_on = drafted.get(i).is_some_and(|t| t.token == sampled.token) && !ends(sampled.token);
            all.push(Drawn { state: goes_on.then(|| s.sampler.state()), sampled });
            if !goes_on {
                break;
            }
        }
        Ok(all)
    };
    if let [one] = &mut work[..] {
        return Ok(vec![draw_part(one)?]);
    }
    work.par_iter_mut().map(draw_part).collect()
}

/// A sequence's share of a batch.
struct Part {
    slot: usize,
    n_tokens: usize,
    /// The last of its tokens gives the next token.
    output: bool,
    /// Drafted tokens behind them, and how long a past they have in common with the place that they are from.
    n_draft: usize,
    n_matched: usize,
}
