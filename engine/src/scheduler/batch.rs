//! What goes into a pass: who is given room in the cache, whose pending tokens are computed, which drafts are verified,
//! and who gives way where pages lack.

use super::Scheduler;
use crate::backend::BatchToken;
use crate::drafts::Draft;
use crate::error::Error;
use crate::kv::PAGE;

/// Free positions per running sequence that a sequence finds before it is computed (again) beside them: with fewer it
/// would soon give way once more.
const SPARE_POSITIONS: usize = 128;

/// A sequence's share of a batch.
pub(super) struct Part {
    pub(super) slot: usize,
    pub(super) n_tokens: usize,
    /// The last of its tokens gives the next token.
    pub(super) output: bool,
    /// Drafted tokens behind them, and how long a past they have in common with the place that they are from.
    pub(super) n_draft: usize,
    pub(super) n_matched: usize,
    /// Sequences that wait with the same prompt: they take over its pages and draw from its logits.
    pub(super) twins: Vec<usize>,
}

impl Scheduler {
    /// Fills the batch and makes room for it; says which sequences take part.
    pub(super) fn fill_batch(&mut self) -> Result<Vec<Part>, Error> {
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
                || self.engine.kv_mut().could_hold(slot, s.len() + 1, (SPARE_POSITIONS / PAGE) * n_running);
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
            if parts.iter().any(|p: &Part| p.twins.contains(&slot)) {
                continue;
            }
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
            let twins = if output { self.twins(slot) } else { Vec::new() };
            parts.push(Part { slot, n_tokens, output, n_draft: 0, n_matched: 0, twins });
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
}
