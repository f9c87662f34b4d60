//! From logits to a token: repetition penalty, top-k, top-p, min-p, temperature, in llama.cpp's order, with a generator
//! whose sequence is fixed for all time: the same seed gives the same tokens.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// How tokens are drawn. The defaults are llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplerParams {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens; 0 for all.
    pub top_k: usize,
    /// Only the smallest set of tokens whose probabilities reach `top_p`; 1 for all.
    pub top_p: f32,
    /// Only tokens at least `min_p` times as probable as the most probable one; 0 for all.
    pub min_p: f32,
    /// Positive logits of recent tokens are divided by it, negative ones multiplied; 1 for none.
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty looks at.
    pub repeat_last_n: usize,
    /// Seed of the generator.
    pub seed: u64,
    /// How many of the most probable tokens are reported with their log-probabilities. No setting of a run: not stored.
    #[serde(skip)]
    pub n_top_logprobs: usize,
}

impl Default for SamplerParams {
    fn default() -> Self {
        SamplerParams {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
            n_top_logprobs: 0,
        }
    }
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Its natural log-probability under the model (temperature 1, nothing cut away).
    pub logprob: f32,
    /// The most probable tokens with theirs, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Where a sampler stands: what its next tokens depend on beside the logits.
#[derive(Clone)]
pub struct SamplerState {
    rng: Xoshiro256PlusPlus,
    recent: std::collections::VecDeque<u32>,
}

/// Draws the tokens of one sequence.
pub struct Sampler {
    params: SamplerParams,
    rng: Xoshiro256PlusPlus,
    /// The last `repeat_last_n` tokens, oldest first.
    recent: std::collections::VecDeque<u32>,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler at the start of its sequence.
    pub fn new(params: SamplerParams) -> Self {
        let rng = Xoshiro256PlusPlus::seed_from_u64(params.seed);
        Sampler { params, rng, recent: Default::default(), candidates: Vec::new() }
    }

    /// Where it stands.
    pub fn state(&self) -> SamplerState {
        SamplerState { rng: self.rng.clone(), recent: self.recent.clone() }
    }

    /// Goes back to where it stood.
    pub fn restore(&mut self, state: SamplerState) {
        (self.rng, self.recent) = (state.rng, state.recent);
    }

    /// Tells the sampler of a token that became part of the sequence (prompt, tool output or its own).
    pub fn accept(&mut self, token: u32) {
        if self.params.repeat_last_n == 0 {
            return;
        }
        if self.recent.len() == self.params.repeat_last_n {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }

    /// Draws from `logits`, `[n_vocab]`. The caller passes the token to [`Self::accept`].
    pub fn sample(&mut self, logits: &[f32]) -> Sampled {
        let norm = log_sum_exp(logits);
        let token = self.draw(logits);
        let mut top_logprobs = Vec::new();
        if self.params.n_top_logprobs > 0 {
            fill_best(&mut self.candidates, logits, self.params.n_top_logprobs);
            top_logprobs = self.candidates.iter().map(|&(t, l)| (t, l - norm)).collect();
        }
        Sampled { token, logprob: logits[token as usize] - norm, top_logprobs }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let p = &self.params;
        let penalised;
        let logits = if p.repeat_penalty == 1.0 || self.recent.is_empty() {
            logits
        } else {
            penalised = penalise(logits, &self.recent, p.repeat_penalty);
            &penalised
        };
        if p.temperature <= 0.0 {
            return argmax(logits);
        }
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let n_vocab = logits.len();
        if (1..n_vocab).contains(&p.top_k) {
            fill_best(&mut self.candidates, logits, p.top_k);
            return pick(p, &self.candidates, None, uniform).unwrap_or_else(|| argmax(logits));
        }
        // Without a bound the few best tokens decide nearly always; sorting a whole vocabulary takes longer than a GPU
        // takes to compute it.
        let whole = Whole::of(logits, p);
        for n in FEW.into_iter().filter(|n| *n < n_vocab) {
            fill_best(&mut self.candidates, logits, n);
            if let Some(token) = pick(p, &self.candidates, Some(&whole), uniform) {
                return token;
            }
        }
        fill_best(&mut self.candidates, logits, n_vocab);
        pick(p, &self.candidates, None, uniform).unwrap_or_else(|| argmax(logits))
    }
}

/// So many of the best tokens are looked at, first and then, where no top-k bounds them.
const FEW: [usize; 2] = [256, 4096];

/// Sums over all tokens, for a choice from the best of them.
struct Whole {
    /// Of the probabilities relative to the best token's.
    mass: f64,
    /// The same at the temperature.
    weight: f64,
}

impl Whole {
    fn of(logits: &[f32], p: &SamplerParams) -> Whole {
        let best = largest(logits);
        let sum_at = |temperature: f32| -> f64 {
            let mut scaled = [0.0f32; 1024];
            let sum = |chunk: &[f32]| {
                let scaled = &mut scaled[..chunk.len()];
                scaled.iter_mut().zip(chunk).for_each(|(s, l)| *s = (l - best) / temperature);
                f64::from(crate::backend::cpu::sum_exp(scaled, 0.0))
            };
            logits.chunks(1024).map(sum).sum()
        };
        Whole {
            mass: if p.top_p < 1.0 { sum_at(1.0) } else { 0.0 },
            weight: if p.top_p < 1.0 || p.min_p > 0.0 { 0.0 } else { sum_at(p.temperature) },
        }
    }
}

/// The token that `uniform` (0 ≤ u < 1) falls on among `candidates`, sorted, of which those that top-p and min-p allow
/// count. With `whole` they are the best of more: `None` where these can't decide.
fn pick(p: &SamplerParams, candidates: &[(u32, f32)], whole: Option<&Whole>, uniform: f64) -> Option<u32> {
    let best = candidates.first()?.1;
    let (mut n_kept, mut is_cut) = (candidates.len(), whole.is_none());
    // Probabilities relative to the best one; their sum is needed for top-p only.
    if p.top_p < 1.0 {
        let mass = |c: &(u32, f32)| f64::from(c.1 - best).exp();
        let total = whole.map_or_else(|| candidates.iter().map(mass).sum(), |w| w.mass);
        let mut reached = 0.0;
        let last = candidates.iter().position(|c| {
            reached += mass(c) / total;
            reached >= f64::from(p.top_p)
        });
        if let Some(last) = last {
            (n_kept, is_cut) = (last + 1, true);
        }
    }
    if p.min_p > 0.0 {
        let floor = best + p.min_p.ln();
        let n_above = candidates.partition_point(|c| c.1 >= floor);
        is_cut |= n_above < candidates.len();
        n_kept = n_kept.min(n_above);
    }
    let has_cuts = p.top_p < 1.0 || p.min_p > 0.0;
    if has_cuts && !is_cut {
        return None;
    }
    let weight = |c: &(u32, f32)| (f64::from(c.1 - best) / f64::from(p.temperature)).exp();
    let kept = &candidates[..n_kept];
    let total = match whole {
        Some(whole) if !has_cuts => whole.weight,
        _ => kept.iter().map(weight).sum(),
    };
    let mut left = uniform * total;
    for c in kept {
        left -= weight(c);
        if left < 0.0 {
            return Some(c.0);
        }
    }
    // Rounding may leave a last bit; of more tokens, others may follow.
    kept.last().filter(|_| is_cut).map(|c| c.0)
}

/// Whether all are numbers, and none infinite.
pub(crate) fn are_finite(logits: &[f32]) -> bool {
    // Without a way out of the inner loop it is vector instructions.
    logits.chunks(1024).all(|chunk| chunk.iter().fold(true, |all, l| all & l.is_finite()))
}

/// `ln Σ eˡ`.
fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = largest(logits);
    let part = |part: &[f32]| f64::from(crate::backend::cpu::sum_exp(part, max));
    max + logits.chunks(1024).map(part).sum::<f64>().ln() as f32
}

fn largest(logits: &[f32]) -> f32 {
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    // Several at a time: one chain of comparisons takes as long as their latency.
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    lanes.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// The first of the largest logits.
fn argmax(logits: &[f32]) -> u32 {
    let max = largest(logits);
    logits.iter().position(|l| *l == max).unwrap_or(0) as u32
}

/// The `k` largest logits with their tokens, best first; equal ones by token, so that the order is one.
fn fill_best(candidates: &mut Vec<(u32, f32)>, logits: &[f32], k: usize) {
    candidates.clear();
    let k = k.clamp(1, logits.len());
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // Few logits reach the k best so far: they are collected, and cut back to k now and then.
    let mut least = f32::NEG_INFINITY;
    for (i, &l) in logits.iter().enumerate() {
        if l >= least {
            candidates.push((i as u32, l));
            if candidates.len() >= 4 * k + 64 {
                candidates.select_nth_unstable_by(k - 1, order);
                candidates.truncate(k);
                least = candidates[k - 1].1;
            }
        }
    }
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, order);
        candidates.truncate(k);
    }
    candidates.sort_unstable_by(order);
}

fn penalise(logits: &[f32], recent: &std::collections::VecDeque<u32>, penalty: f32) -> Vec<f32> {
    let mut out = logits.to_vec();
    for &t in recent {
        let (i, l) = (t as usize, logits[t as usize]);
        out[i] = if l > 0.0 { l / penalty } else { l * penalty };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f32) -> SamplerParams {
        SamplerParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 11, ..Default::default() }
    }

    fn draws(params: SamplerParams, logits: &[f32], n: usize) -> Vec<u32> {
        let mut s = Sampler::new(params);
        (0..n).map(|_| s.sample(logits).token).collect()
    }

    fn logits_of(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn greedy_takes_the_first_largest() {
        assert_eq!(draws(params(0.0), &[0.1, 3.0, -1.0, 3.0], 3), [1, 1, 1]);
    }

    #[test]
    fn the_best_are_those_of_a_full_sort() {
        // With many equal ones, rising and falling.
        for step in [7919usize, 1, 100_002] {
            let logits: Vec<f32> = (0..3000).map(|i| (i * step % 100_003 / 97) as f32).collect();
            let mut want: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &l)| (i as u32, l)).collect();
            want.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            for k in [1, 2, 40, 2999, 3000, 5000] {
                let mut best = Vec::new();
                fill_best(&mut best, &logits, k);
                assert_eq!(best, want[..k.min(3000)], "step {step}, k {k}");
            }
        }
    }

    /// A vocabulary with one token much better than the others, or none.
    fn large_vocabulary(steepness: f32) -> Vec<f32> {
        (0..50_000u32).map(|i| -steepness * (1.0 + (i * 7919 % 50_000) as f32).ln()).collect()
    }

    #[test]
    fn the_few_best_decide_as_all_would() {
        let all_of = |logits: &[f32]| {
            let mut all = Vec::new();
            fill_best(&mut all, logits, logits.len());
            all
        };
        for steepness in [0.0, 0.5, 1.1, 4.0] {
            let logits = large_vocabulary(steepness);
            let all = all_of(&logits);
            for (top_p, min_p, temperature) in
                [(1.0, 0.0, 1.0), (1.0, 0.0, 0.6), (0.95, 0.0, 1.0), (1.0, 0.02, 1.3), (0.9, 0.01, 0.7)]
            {
                let p = SamplerParams { top_p, min_p, ..params(temperature) };
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(p.seed);
                let want: Vec<u32> = (0..20)
                    .map(|_| {
                        let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                        pick(&p, &all, None, uniform).expect("all tokens decide")
                    })
                    .collect();
                assert_eq!(draws(p, &logits, 20), want, "steepness {steepness}, {p:?}");
            }
        }
    }

    #[test]
    fn few_tokens_say_so_where_they_cannot_decide() {
        let logits = large_vocabulary(0.0);
        let mut few = Vec::new();
        fill_best(&mut few, &logits, FEW[0]);
        for (top_p, min_p) in [(1.0, 0.0), (0.9, 0.0), (1.0, 0.5)] {
            let p = SamplerParams { top_p, min_p, ..params(1.0) };
            let whole = Whole::of(&logits, &p);
            assert_eq!(pick(&p, &few, Some(&whole), 0.5), None, "{p:?}");
        }
        let p = SamplerParams { top_p: 0.000_99, ..params(1.0) };
        let n = 50;
        assert_eq!(
            pick(&p, &few, Some(&Whole::of(&logits, &p)), 0.999),
            Some(few[n - 1].0),
            "50 of 50,000 are a thousandth"
        );
    }

    #[test]
    fn numbers_that_are_none_are_seen() {
        let mut logits = large_vocabulary(1.1);
        assert!(are_finite(&logits));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            logits[49_999] = bad;
            assert!(!are_finite(&logits), "{bad}");
        }
    }

    #[test]
    fn the_norm_is_the_logarithm_of_the_sum() {
        let logits: Vec<f32> = (0..5000).map(|i| (i * 7919 % 2003) as f32 / 100.0 - 15.0).collect();
        let want = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        assert!((f64::from(log_sum_exp(&logits)) - want).abs() < 1e-5);
    }

    #[test]
    fn a_seed_fixes_the_sequence() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let a = draws(params(1.0), &logits, 200);
        assert_eq!(a, draws(params(1.0), &logits, 200));
        assert_ne!(a, draws(SamplerParams { seed: 12, ..params(1.0) }, &logits, 200));
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let p = [0.5, 0.3, 0.15, 0.05];
        let n = 40_000;
        let drawn = draws(params(1.0), &logits_of(&p), n);
        for (token, p) in p.iter().enumerate() {
            let seen = drawn.iter().filter(|&&t| t as usize == token).count() as f32 / n as f32;
            // Five standard deviations.
            let allowed = 5.0 * (p * (1.0 - p) / n as f32).sqrt();
            assert!((seen - p).abs() < allowed, "token {token}: {seen} for {p}");
        }
    }

    #[test]
    fn temperature_sharpens() {
        let drawn = draws(params(0.5), &logits_of(&[0.6, 0.4]), 20_000);
        // 0.36 : 0.16
        let seen = drawn.iter().filter(|&&t| t == 0).count() as f32 / 20_000.0;
        assert!((seen - 0.36 / 0.52).abs() < 0.02, "{seen}");
    }

    #[test]
    fn cuts_leave_only_what_they_allow() {
        let logits = logits_of(&[0.4, 0.3, 0.2, 0.1]);
        let set = |p: SamplerParams| {
            let mut d = draws(p, &logits, 2_000);
            d.sort_unstable();
            d.dedup();
            d
        };
        assert_eq!(set(SamplerParams { top_k: 2, ..params(1.0) }), [0, 1]);
        assert_eq!(set(SamplerParams { top_p: 0.65, ..params(1.0) }), [0, 1]);
        assert_eq!(set(SamplerParams { top_p: 0.75, ..params(1.0) }), [0, 1, 2]);
        assert_eq!(set(SamplerParams { min_p: 0.45, ..params(1.0) }), [0, 1, 2]);
        assert_eq!(set(SamplerParams { top_k: 1, ..params(5.0) }), [0]);
        assert_eq!(set(params(1.0)), [0, 1, 2, 3]);
    }

    #[test]
    fn repetition_is_penalised_within_its_window() {
        let mut s = Sampler::new(SamplerParams { repeat_penalty: 2.0, repeat_last_n: 1, ..params(0.0) });
        let logits = [1.0, 1.5, -1.0];
        s.accept(1);
        assert_eq!(s.sample(&logits).token, 0);
        s.accept(0);
        assert_eq!(s.sample(&logits).token, 1, "token 1 has left the window");
    }

    #[test]
    fn log_probabilities_are_the_models() {
        let mut s = Sampler::new(SamplerParams { n_top_logprobs: 2, top_k: 1, ..params(0.3) });
        let got = s.sample(&logits_of(&[0.2, 0.7, 0.1]));
        assert!((got.logprob - 0.7f32.ln()).abs() < 1e-5);
        assert_eq!(got.top_logprobs.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 0]);
        assert!((got.top_logprobs[1].1 - 0.2f32.ln()).abs() < 1e-5);
    }
}
