//! Prompts that are computed once: what a sequence takes over from a neighbour, from a prompt of the past, or from a
//! twin whose prompt is its own.

use super::{Scheduler, Sequence};
use crate::kv::ParkedId;

impl Scheduler {
    /// Gives fresh sequences what a neighbour has already computed of their prompt, or what was kept of an earlier one.
    pub(super) fn share_prefixes(&mut self) {
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
    /// Whether an older neighbour is still computing a prompt that this fresh sequence shares further than what is
    /// stored by now: then waiting is cheaper than computing it twice.
    pub(super) fn waits_for_neighbour(&self, slot: usize) -> bool {
        let Some(s) = self.slots[slot].as_ref().filter(|s| s.fresh) else { return false };
        self.slots.iter().flatten().filter(|other| other.id.0 < s.id.0 && other.runnable()).any(|other| {
            let prompt = other.stored.iter().chain(&other.pending);
            let common = prompt.zip(&s.pending[..s.pending.len() - 1]).take_while(|(a, b)| a == b).count();
            common > other.stored.len() && common > 1
        })
    }

    /// Those that wait for their first tokens behind the prompt of `slot`, and have their share of the cache.
    pub(super) fn twins(&self, slot: usize) -> Vec<usize> {
        let Some(first) = self.slots[slot].as_ref() else { return Vec::new() };
        let is_twin = |s: &Sequence| s.id != first.id && s.runnable() && s.admitted && s.is_twin_of(first);
        (0..self.slots.len()).filter(|&i| self.slots[i].as_ref().is_some_and(is_twin)).collect()
    }

    /// Lets a twin stand where `from` stands behind their prompt, which was just computed.
    pub(super) fn take_over(&mut self, from: usize, twin: usize) {
        let Some(s) = self.slots[twin].as_mut() else { return };
        self.stats.shared_tokens += s.pending.len() as u64;
        let mut pending = std::mem::take(&mut s.pending);
        s.stored.append(&mut pending);
        (s.fresh, s.n_replayed) = (false, 0);
        let is_shared = self.engine.kv_mut().share(from, twin, s.prompt_len);
        assert!(is_shared, "the windows of slot {from} reach back from the end of its prompt");
    }

    /// Keeps a prompt that was just computed, once, and forgets those that had to make way.
    pub(super) fn park_prompt(&mut self, slot: usize) {
        let Some(s) = self.slots[slot].as_ref() else { return };
        let kv = self.engine.kv_mut();
        self.parked.retain(|(id, _)| kv.is_parked(*id));
        if !self.parked.iter().any(|(_, tokens)| *tokens == s.stored) {
            self.parked.push((kv.park(slot, s.stored.len()), s.stored.clone()));
        }
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
