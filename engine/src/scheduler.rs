//! Many sequences, one batch a step. A step takes the next token of every decoding sequence and fills what is left of
//! the batch with pending prompt tokens. Sequences that share a prefix compute it once: the pages of the longest
//! common prefix are shared with a neighbour, or with an earlier prompt that is still kept, instead of being computed
//! again.

use crate::backend::BatchToken;
use crate::engine::Engine;
use crate::error::{Error, RequestError};
use crate::kv::ParkedId;
use crate::sampler::{Sampler, SamplerParams};
use crate::tokenizer::StreamDecoder;
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
    /// Has not computed anything yet: may take a prefix from a neighbour.
    fresh: bool,
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
        Scheduler { engine, slots, parked: Vec::new(), next_id: 0, stats: Stats::default(), batch: Vec::new() }
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
        });
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
        let s = self.sequence(seq);
        let found = s.len() + tokens.len();
        if found >= n_ctx {
            return Err(RequestError::ContextExceeded { found, n_ctx });
        }
        s.pending.extend_from_slice(tokens);
        tokens.iter().for_each(|&t| s.sampler.accept(t));
        s.paused = false;
        Ok(())
    }

    /// Takes a sequence out of the batch until `append`.
    pub fn pause(&mut self, seq: SeqId) {
        self.sequence(seq).paused = true;
    }

    /// Ends a sequence and frees its slot.
    pub fn release(&mut self, seq: SeqId) {
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(|s| s.id == seq) {
                *slot = None;
                self.engine.kv_clear(i);
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

    /// One pass: a token for each decoding sequence, and chunks of pending prompts.
    ///
    /// # Errors
    /// The device failed, or the model gives logits that are not finite.
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        self.share_prefixes();
        let parts = self.fill_batch();
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let n_vocab = self.engine.config().n_vocab;
        let logits = self.engine.forward(&self.batch)?.to_vec();
        let mut rows = logits.chunks_exact(n_vocab);
        let mut events = Vec::new();
        let (mut prompt_tokens, n_ctx) = (0, self.engine.n_ctx());
        for part in parts {
            let Some(s) = self.slots[part.slot].as_mut() else { continue };
            let computed: Vec<u32> = s.pending.drain(..part.n_tokens).collect();
            s.stored.extend(computed);
            s.fresh = false;
            if s.stored.len() == s.prompt_len {
                park_prompt(&mut self.engine, &mut self.parked, part.slot, &s.stored);
            }
            if part.n_tokens > 1 || !part.output {
                prompt_tokens += part.n_tokens;
            }
            if !part.output {
                continue;
            }
            let row = rows.next().expect("one row of logits per output");
            if !row.iter().all(|l| l.is_finite()) {
                return Err(RequestError::NotFinite { position: s.stored.len() - 1 }.into());
            }
            let drawn = s.sampler.sample(row);
            s.sampler.accept(drawn.token);
            s.pending.push(drawn.token);
            let tokenizer = self.engine.tokenizer();
            let end = if tokenizer.is_end_of_generation(drawn.token) {
                Some(EndReason::EndOfGeneration)
            } else if s.len() >= n_ctx {
                Some(EndReason::ContextFull)
            } else {
                None
            };
            let mut text = String::new();
            if !tokenizer.is_control(drawn.token) {
                text = s.decoder.push(tokenizer, drawn.token);
            }
            if end.is_some() {
                text.push_str(&s.decoder.flush());
                s.paused = true;
            }
            let (token, logprob, top_logprobs) = (drawn.token, drawn.logprob, drawn.top_logprobs);
            events.push(Event { seq: s.id, token, text, logprob, top_logprobs, end });
        }
        let ms = started.elapsed().as_secs_f64() * 1e3;
        self.stats.generated_tokens += events.len() as u64;
        self.stats.prompt_tokens += prompt_tokens as u64;
        *(if prompt_tokens > 0 { &mut self.stats.prompt_ms } else { &mut self.stats.decode_ms }) += ms;
        Ok(events)
    }

    /// Gives fresh sequences what a neighbour has already computed of their prompt, or what was kept of an earlier one.
    fn share_prefixes(&mut self) {
        for slot in 0..self.slots.len() {
            let Some(s) = self.slots[slot].as_ref().filter(|s| s.fresh && s.runnable()) else { continue };
            if self.waits_for_neighbour(slot) {
                continue;
            }
            // The last prompt token is always computed: its logits are wanted.
            let prompt = &s.pending[..s.pending.len() - 1];
            let neighbours = self.slots.iter().enumerate().filter(|(i, _)| *i != slot);
            let mut sources: Vec<(usize, Source)> = neighbours
                .filter_map(|(i, other)| Some((common_prefix(&other.as_ref()?.stored, prompt), Source::Slot(i))))
                .chain(self.parked.iter().map(|(id, tokens)| (common_prefix(tokens, prompt), Source::Parked(*id))))
                .filter(|&(n, _)| n > 0)
                .collect();
            sources.sort_by_key(|&(n, _)| std::cmp::Reverse(n));
            // A sliding window may have left the longest one behind.
            let taken = sources.into_iter().find(|&(n, source)| match source {
                Source::Slot(from) => self.engine.kv_share(from, slot, n),
                Source::Parked(id) => self.engine.kv_adopt(id, slot, n),
            });
            let Some((n, _)) = taken else { continue };
            let s = self.slots[slot].as_mut().expect("the slot was just looked at");
            s.stored = s.pending.drain(..n).collect();
            s.fresh = false;
            self.stats.shared_tokens += n as u64;
        }
    }

    /// Whether a neighbour in a lower slot is still computing a prompt that this fresh sequence shares further than
    /// what is stored by now: then waiting is cheaper than computing it twice.
    fn waits_for_neighbour(&self, slot: usize) -> bool {
        let Some(s) = self.slots[slot].as_ref().filter(|s| s.fresh) else { return false };
        self.slots[..slot].iter().flatten().any(|other| {
            let prompt = other.stored.iter().chain(&other.pending);
            let common = prompt.zip(&s.pending[..s.pending.len() - 1]).take_while(|(a, b)| a == b).count();
            other.runnable() && common > other.stored.len() && common > 1
        })
    }

    /// Fills the batch; says which sequences take part.
    fn fill_batch(&mut self) -> Vec<Part> {
        self.batch.clear();
        let n_batch = self.engine.n_batch();
        let mut order: Vec<usize> = (0..self.slots.len())
            .filter(|&i| self.slots[i].as_ref().is_some_and(Sequence::runnable) && !self.waits_for_neighbour(i))
            .collect();
        // Decoding sequences first: prompts take what is left.
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
            parts.push(Part { slot, n_tokens, output });
        }
        parts
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
fn park_prompt(engine: &mut Engine, parked: &mut Vec<(ParkedId, Vec<u32>)>, slot: usize, prompt: &[u32]) {
    parked.retain(|(id, _)| engine.kv_is_parked(*id));
    if !parked.iter().any(|(_, tokens)| tokens == prompt) {
        parked.push((engine.kv_park(slot, prompt.len()), prompt.to_vec()));
    }
}

/// A sequence's share of a batch.
struct Part {
    slot: usize,
    n_tokens: usize,
    /// The last of its tokens gives the next token.
    output: bool,
}
