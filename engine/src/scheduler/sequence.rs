//! What the scheduler knows of one sequence, and how the tokens of a pass are drawn. Called by `Scheduler` alone.

use super::SeqId;
use super::batch::Part;
use crate::backend::BatchToken;
use crate::error::RequestError;
use crate::sampler::{Sampled, Sampler, SamplerState, are_finite};
use crate::tokenizer::StreamDecoder;
use rayon::prelude::*;
use std::collections::VecDeque;

pub(super) struct Sequence {
    pub(super) id: SeqId,
    pub(super) sampler: Sampler,
    pub(super) decoder: StreamDecoder,
    /// Tokens whose keys and values are stored.
    pub(super) stored: Vec<u32>,
    /// Tokens that come next; the last one's logits give the next token.
    pub(super) pending: Vec<u32>,
    pub(super) paused: bool,
    /// Tokens it was started with.
    pub(super) prompt_len: usize,
    /// Has not computed anything yet, or not since it gave its pages up: may take a prefix from a neighbour.
    pub(super) fresh: bool,
    /// Has its share of the cache. Others wait for room.
    pub(super) admitted: bool,
    /// Of `pending`, the tokens that were computed before its pages were given up.
    pub(super) n_replayed: usize,
    /// Tokens that were drawn in the last pass and not handed out yet. `pending` and all but the last of these have
    /// their keys and values stored.
    pub(super) ready: VecDeque<Drawn>,
    /// Where the sampler stood after `pending`, while anything is ready.
    pub(super) resume_at: Option<SamplerState>,
}

/// A token that was drawn.
pub(super) struct Drawn {
    pub(super) sampled: Sampled,
    /// Where the sampler stood after it; kept where it isn't the last one of its pass.
    pub(super) state: Option<SamplerState>,
}

impl Sequence {
    /// One that has its prompt to compute. The sampler knows the prompt.
    pub(super) fn new(id: SeqId, prompt: &[u32], sampler: Sampler, decoder: StreamDecoder) -> Sequence {
        Sequence {
            id,
            sampler,
            decoder,
            stored: Vec::new(),
            pending: prompt.to_vec(),
            paused: false,
            prompt_len: prompt.len(),
            fresh: true,
            admitted: false,
            n_replayed: 0,
            ready: VecDeque::new(),
            resume_at: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.stored.len() + self.pending.len()
    }

    pub(super) fn runnable(&self) -> bool {
        !self.paused && !self.pending.is_empty()
    }

    /// Whether it holds its prompt and nothing else.
    fn is_at_prompt(&self) -> bool {
        self.len() == self.prompt_len
    }

    /// Whether both wait for their first tokens behind the same prompt: then one row of logits serves both.
    pub(super) fn is_twin_of(&self, other: &Sequence) -> bool {
        let (tokens, others) = (self.stored.iter().chain(&self.pending), other.stored.iter().chain(&other.pending));
        self.is_at_prompt() && other.is_at_prompt() && self.len() == other.len() && tokens.eq(others)
    }
}

/// A sequence whose tokens are drawn: from these rows of logits, for as long as the tokens are those drafted.
struct Draw<'a> {
    seq: &'a mut Sequence,
    rows: &'a [f32],
    drafted: &'a [BatchToken],
    /// Of the first row.
    position: usize,
}

impl Draw<'_> {
    fn run(&mut self, n_vocab: usize, ends: &(dyn Fn(u32) -> bool + Sync)) -> Result<VecDeque<Drawn>, RequestError> {
        let mut all = VecDeque::new();
        for (i, row) in self.rows.chunks_exact(n_vocab).enumerate() {
            if !are_finite(row) {
                return Err(RequestError::NotFinite { position: self.position + i });
            }
            let sampler = &mut self.seq.sampler;
            let sampled = sampler.sample(row);
            sampler.accept(sampled.token);
            let goes_on = self.drafted.get(i).is_some_and(|t| t.token == sampled.token) && !ends(sampled.token);
            all.push_back(Drawn { state: goes_on.then(|| sampler.state()), sampled });
            if !goes_on {
                break;
            }
        }
        Ok(all)
    }
}

/// Draws the next token of each part that asked for one, and those behind it for as long as they are the drafted ones,
/// then the next token of each of its twins; side by side, from `logits`, `[n_outputs, n_vocab]`. Gives what was drawn
/// in the order of the parts, twins behind theirs.
pub(super) fn draw(
    slots: &mut [Option<Sequence>],
    parts: &[Part],
    batch: &[BatchToken],
    logits: &[f32],
    ends: &(dyn Fn(u32) -> bool + Sync),
) -> Result<Vec<VecDeque<Drawn>>, RequestError> {
    let n_outputs = batch.iter().filter(|t| t.output).count();
    // Without outputs there are no rows to cut.
    let n_vocab = logits.len().checked_div(n_outputs).unwrap_or(1);
    let mut by_slot: Vec<Option<&mut Sequence>> = slots.iter_mut().map(Option::as_mut).collect();
    let mut take = |slot: usize| by_slot[slot].take().expect("a part's sequence, once");
    let (mut row, mut token) = (0, 0);
    let mut work = Vec::with_capacity(parts.len());
    for part in parts {
        let n_rows = if part.output { 1 + part.n_draft } else { 0 };
        token += part.n_tokens;
        let drafted = &batch[token..token + part.n_draft];
        token += part.n_draft;
        let rows = &logits[row * n_vocab..(row + n_rows) * n_vocab];
        row += n_rows;
        let seq = take(part.slot);
        let position = seq.stored.len() + part.n_tokens - 1;
        work.push(Draw { seq, rows, drafted, position });
        let twins =
            part.twins.iter().map(|&twin| Draw { seq: take(twin), rows: &rows[..n_vocab], drafted: &[], position });
        work.extend(twins);
    }
    if let [one] = &mut work[..] {
        return Ok(vec![one.run(n_vocab, ends)?]);
    }
    work.par_iter_mut().map(|draw| draw.run(n_vocab, ends)).collect()
}
