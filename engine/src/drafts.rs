//! Drafts without a second model: what a sequence may write next, taken from places where it, or a sequence beside it,
//! has written the same before (prompt lookup; suffix matching as in arXiv 2411.04975). The scheduler has them verified
//! in the batch and keeps what the sampler would have drawn anyway, so they change the time that tokens take and nothing
//! else.
//!
//! Owns the texts, an index of their trigrams, how often drafts were accepted and what a step of so many columns
//! costs; from these [`Drafter::choose`] decides how much drafting pays, if any does. Called by the scheduler.

use std::collections::{HashMap, VecDeque};

/// Tokens of a key of the index: the shortest match.
const KEY: usize = 3;
/// Places that are kept per key, the latest.
const PLACES: usize = 8;
/// Longest match that is told apart.
const MAX_MATCH: usize = 32;
/// Tokens of finished sequences that are kept.
const MAX_FINISHED: usize = 1 << 16;
/// Most tokens of a draft.
pub const MAX_DRAFT: usize = 16;
/// Largest batch whose cost is learned.
const MAX_COLUMNS: usize = 256;
/// Steps after which a measured cost is out of date.
const COST_STEPS: u64 = 1024;
/// How much faster a step with drafts must be than one without, by the estimate.
const LEAST_GAIN: f64 = 1.03;
/// Share of what was learned about acceptance that a step keeps.
const KEEP: f64 = 0.998;

/// What may come next in a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Tokens before them that were the same at the place they are from.
    pub n_matched: usize,
}

/// How long drafts are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftOptions {
    /// Most tokens of a draft, at most [`MAX_DRAFT`]; 0: no drafts.
    pub max: usize,
    /// Tokens of a draft that are verified wherever one is found, whether that is expected to pay or not.
    pub min: usize,
}

/// Finds drafts and decides how long they are.
pub struct Drafter {
    options: DraftOptions,
    texts: HashMap<u64, Vec<u32>>,
    /// Texts of sequences that are gone, the oldest first.
    finished: VecDeque<u64>,
    /// Where each trigram ends.
    index: HashMap<[u32; KEY], Vec<Place>>,
    rates: [Rate; BUCKETS.len()],
    costs: Costs,
}

#[derive(Clone, Copy)]
struct Place {
    text: u64,
    end: usize,
}

/// Least lengths of matches that are counted together, with the acceptance that is assumed before any is seen.
const BUCKETS: [(usize, f64); 6] = [(3, 0.3), (4, 0.4), (5, 0.5), (8, 0.6), (12, 0.7), (20, 0.8)];

/// How often a drafted token was the one drawn.
#[derive(Clone, Copy, Default)]
struct Rate {
    offered: f64,
    accepted: f64,
}

impl Rate {
    /// The estimate: what was seen, and `prior` as if seen four times.
    fn of(self, prior: f64) -> f64 {
        (self.accepted + 4.0 * prior) / (self.offered + 4.0)
    }
}

fn bucket(n_matched: usize) -> usize {
    BUCKETS.iter().rposition(|&(least, _)| n_matched >= least).unwrap_or(0)
}

impl Drafter {
    /// A drafter that knows no texts.
    pub fn new(options: DraftOptions) -> Drafter {
        let max = options.max.min(MAX_DRAFT);
        Drafter {
            options: DraftOptions { max, min: options.min.min(max) },
            texts: HashMap::new(),
            finished: VecDeque::new(),
            index: HashMap::new(),
            rates: Default::default(),
            costs: Costs::default(),
        }
    }

    /// Whether there are drafts at all.
    pub fn is_on(&self) -> bool {
        self.options.max > 0
    }

    /// Adds to a sequence's text.
    pub fn extend(&mut self, seq: u64, tokens: &[u32]) {
        if !self.is_on() {
            return;
        }
        let text = self.texts.entry(seq).or_default();
        for &token in tokens {
            text.push(token);
            if let Some(key) = text.last_chunk::<KEY>() {
                note(&mut self.index, *key, Place { text: seq, end: text.len() });
            }
        }
    }

    /// A sequence has ended: its text serves others for a while.
    pub fn finish(&mut self, seq: u64) {
        if !self.texts.contains_key(&seq) {
            return;
        }
        self.finished.push_back(seq);
        let size = |d: &Drafter| -> usize { d.finished.iter().map(|s| d.texts[s].len()).sum() };
        if size(self) <= MAX_FINISHED {
            return;
        }
        // Half of it goes at once, since the index is made anew.
        while size(self) > MAX_FINISHED / 2
            && let Some(oldest) = self.finished.pop_front()
        {
            self.texts.remove(&oldest);
        }
        self.index.clear();
        let mut ids: Vec<u64> = self.texts.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            for (i, key) in self.texts[&id].windows(KEY).enumerate() {
                let key = key.try_into().expect("a window of this length");
                note(&mut self.index, key, Place { text: id, end: i + KEY });
            }
        }
    }

    /// What may come next in `seq`: what followed the place whose past is like its own the furthest, of equal ones the
    /// latest. At most `most` tokens; empty where there is no such place.
    pub fn propose(&self, seq: u64, most: usize) -> Draft {
        let most = most.min(self.options.max);
        let Some((text, key)) = self.texts.get(&seq).and_then(|t| Some((t, t.last_chunk::<KEY>()?))) else {
            return Draft::default();
        };
        let mut best: Option<(usize, &[u32], usize)> = None;
        for place in self.index.get(key).into_iter().flatten() {
            let Some(other) = self.texts.get(&place.text) else { continue };
            if place.end >= other.len() {
                continue;
            }
            let past = other[..place.end].iter().rev();
            let n_matched = past.zip(text.iter().rev()).take(MAX_MATCH).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|(n, ..)| n_matched >= n) {
                best = Some((n_matched, other, place.end));
            }
        }
        let Some((n_matched, other, end)) = best else { return Draft::default() };
        let mut tokens: Vec<u32> = Vec::with_capacity(most);
        for i in 0..most {
            // Behind the end of its own text a repetition goes on with itself.
            let next = other.get(end + i).copied().or_else(|| {
                let is_own = std::ptr::eq(other.as_ptr(), text.as_ptr());
                if is_own { tokens.get(end + i - other.len()).copied() } else { None }
            });
            match next {
                Some(token) => tokens.push(token),
                None => break,
            }
        }
        Draft { tokens, n_matched }
    }

    /// How many tokens of each draft to verify beside `n_base` sequences' own tokens, at most `most` in all: as many as
    /// make the expected number of tokens per time the largest, by what was measured, or [`DraftOptions::min`] of each.
    pub fn choose(&mut self, drafts: &[Draft], n_base: usize, most: usize) -> Vec<usize> {
        self.costs.step += 1;
        for rate in &mut self.rates {
            rate.offered *= KEEP;
            rate.accepted *= KEEP;
        }
        let mut lengths = vec![0; drafts.len()];
        // Chance of each drafted token to be kept, likeliest first: those of one draft stay in order.
        let mut chances: Vec<(f64, usize)> = Vec::new();
        for (i, draft) in drafts.iter().enumerate() {
            let at = bucket(draft.n_matched);
            let p = self.rates[at].of(BUCKETS[at].1);
            chances.extend((1..=draft.tokens.len()).map(|n| (p.powi(n as i32), i)));
        }
        chances.sort_by(|a, b| b.0.total_cmp(&a.0));
        let most = most.min(MAX_COLUMNS.saturating_sub(n_base));
        chances.truncate(most);
        let mut left = most;
        for (length, draft) in lengths.iter_mut().zip(drafts) {
            *length = self.options.min.min(draft.tokens.len()).min(left);
            left -= *length;
        }
        let Some(alone_ms) = self.costs.of(n_base).filter(|_| left == most) else { return lengths };
        let alone = n_base as f64 / alone_ms;
        let (mut tokens, mut best) = (n_base as f64, (alone * LEAST_GAIN, 0));
        for (i, (chance, _)) in chances.iter().enumerate() {
            tokens += chance;
            let Some(ms) = self.costs.of(n_base + i + 1) else { break };
            if tokens / ms > best.0 {
                best = (tokens / ms, i + 1);
            }
        }
        chances[..best.1].iter().for_each(|&(_, i)| lengths[i] += 1);
        lengths
    }

    /// Of a draft, `n_offered` tokens were verified and the first `n_accepted` kept.
    pub fn learn(&mut self, n_matched: usize, n_offered: usize, n_accepted: usize) {
        let rate = &mut self.rates[bucket(n_matched)];
        // What stands behind the first wrong token says nothing.
        rate.offered += n_offered.min(n_accepted + 1) as f64;
        rate.accepted += n_accepted as f64;
    }

    /// A step of `n_columns` tokens, each with its logits, took so long.
    pub fn measured(&mut self, n_columns: usize, ms: f64) {
        if self.is_on() {
            self.costs.add(n_columns, ms);
        }
    }
}

/// Notes a place, the latest at the end.
fn note(index: &mut HashMap<[u32; KEY], Vec<Place>>, key: [u32; KEY], place: Place) {
    let places = index.entry(key).or_default();
    if places.len() == PLACES {
        places.remove(0);
    }
    places.push(place);
}

/// What steps cost by their number of columns.
#[derive(Default)]
struct Costs {
    step: u64,
    /// Smoothed time in ms, and the step that it was last measured in; by number of columns.
    seen: Vec<Option<(f64, u64)>>,
}

impl Costs {
    fn add(&mut self, n: usize, ms: f64) {
        if n > MAX_COLUMNS {
            return;
        }
        if self.seen.len() <= n {
            self.seen.resize(n + 1, None);
        }
        let smoothed = match self.seen[n] {
            // One slow step is the machine's, not the batch's.
            Some((old, step)) if self.step - step < COST_STEPS => old + 0.2 * (ms.min(2.0 * old) - old),
            _ => ms,
        };
        self.seen[n] = Some((smoothed, self.step));
    }

    fn at(&self, n: usize) -> Option<f64> {
        let (ms, step) = (*self.seen.get(n)?)?;
        (self.step - step < COST_STEPS).then_some(ms)
    }

    /// Time of a step of `n` columns: measured, between two that were, or from the next smaller one with cheap columns
    /// on top, so that it gets measured. `None` where nothing is known.
    fn of(&self, n: usize) -> Option<f64> {
        if let Some(ms) = self.at(n) {
            return Some(ms);
        }
        let below = (1..n).rev().find_map(|i| Some((i as f64, self.at(i)?)));
        let above = (n + 1..self.seen.len()).find_map(|i| Some((i as f64, self.at(i)?)));
        match (below, above) {
            (Some((m, a)), Some((k, b))) => Some(a + (b - a) * (n as f64 - m) / (k - m)),
            (Some((m, a)), None) => Some(a * (1.0 + 0.15 * (n as f64 - m) / m)),
            (None, Some((k, b))) => Some(b * (0.5 + 0.5 * n as f64 / k)),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_with_the_longest_common_past_is_continued() {
        let mut d = drafter(4);
        d.extend(1, &[9, 1, 2, 3, 50, 51, 8, 1, 2, 3, 60, 61, 62, 63, 64]);
        d.extend(2, &[7, 7, 9, 1, 2, 3]);
        assert_eq!(d.propose(2, 8), Draft { tokens: vec![50, 51, 8, 1], n_matched: 4 });
        d.extend(3, &[0, 1, 2, 3]);
        // Of equal matches the latest.
        assert_eq!(d.propose(3, 2), Draft { tokens: vec![60, 61], n_matched: 3 });
        d.extend(4, &[1, 2]);
        assert_eq!(d.propose(4, 8), Draft::default());
        assert_eq!(d.propose(5, 8), Draft::default(), "an unknown sequence");
        assert!(!drafter(0).is_on() && drafter(0).propose(1, 8).tokens.is_empty());
    }

    fn drafter(max: usize) -> Drafter {
        Drafter::new(DraftOptions { max, min: 0 })
    }

    #[test]
    fn a_repetition_goes_on_with_itself() {
        let mut d = drafter(8);
        d.extend(1, &[5, 1, 2, 3, 4, 1, 2, 3]);
        assert_eq!(d.propose(1, 7).tokens, [4, 1, 2, 3, 4, 1, 2]);
    }

    #[test]
    fn texts_of_the_past_are_bounded_and_those_of_the_living_stay() {
        let mut d = drafter(4);
        d.extend(0, &[1, 2, 3, 4, 5]);
        for seq in 1..200u64 {
            let text: Vec<u32> = (0..1000).map(|i| (seq as u32).wrapping_mul(7919) ^ i).collect();
            d.extend(seq, &text);
            d.finish(seq);
        }
        let kept: usize = d.finished.iter().map(|s| d.texts[s].len()).sum();
        assert!(kept <= MAX_FINISHED && d.index.len() <= MAX_FINISHED + 8, "{kept} tokens, {} keys", d.index.len());
        d.extend(300, &[1, 2, 3]);
        assert_eq!(d.propose(300, 2).tokens, [4, 5]);
        assert!(d.propose(1, 4).tokens.is_empty(), "the oldest is forgotten");
    }

    /// Steps of a machine whose columns cost `per_column` of the first one's time.
    fn run(per_column: f64, accepted: f64, n_steps: usize) -> (usize, f64) {
        let mut d = drafter(8);
        let cost = |n: usize| 10.0 * (1.0 + per_column * (n as f64 - 1.0));
        let draft = Draft { tokens: vec![1; 8], n_matched: 9 };
        let (mut n_drafted, mut n_tokens, mut ms, mut luck) = (0, 0.0, 0.0, 0.0);
        for _ in 0..n_steps {
            let n = d.choose(std::slice::from_ref(&draft), 1, 8)[0];
            d.measured(1 + n, cost(1 + n));
            ms += cost(1 + n);
            // Runs of accepted tokens without chance: as many as are due.
            let mut kept = 0;
            while kept < n {
                luck += accepted;
                if luck < 1.0 {
                    break;
                }
                luck -= 1.0;
                kept += 1;
            }
            d.learn(draft.n_matched, n, kept);
            n_drafted += n;
            n_tokens += 1.0 + kept as f64;
        }
        (n_drafted, n_tokens / ms * 10.0)
    }

    #[test]
    fn drafts_are_made_where_they_pay_and_only_there() {
        let (n, speed) = run(0.1, 0.9, 500);
        assert!(n > 1000 && speed > 2.0, "cheap and good: {n} drafted, {speed} times as fast");
        let (n, speed) = run(1.0, 0.9, 500);
        assert!(n < 60 && speed > 0.95, "as dear as steps: {n} drafted, {speed} times as fast");
        let (n, speed) = run(0.3, 0.05, 500);
        assert!(n < 150 && speed > 0.93, "never right: {n} drafted, {speed} times as fast");
    }

    #[test]
    fn only_as_many_as_there_is_room_for() {
        let mut d = drafter(8);
        d.measured(2, 10.0);
        let drafts = vec![Draft { tokens: vec![1; 8], n_matched: 30 }, Draft { tokens: vec![1; 3], n_matched: 30 }];
        let lengths = d.choose(&drafts, 2, 5);
        assert!(lengths[1] <= 3 && lengths.iter().sum::<usize>() <= 5 && lengths[0] > 0, "{lengths:?}");
        assert_eq!(d.choose(&drafts, 2, 0), [0, 0]);
        let mut d = Drafter::new(DraftOptions { max: 8, min: 4 });
        assert_eq!(d.choose(&drafts, 2, 16), [4, 3], "without a measurement, the least that was asked for");
        assert_eq!(d.choose(&drafts, 2, 5), [4, 1]);
    }
}
