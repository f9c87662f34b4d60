//! How sure a model was of what it wrote: the mean over the last tokens of −(mean log-probability of the `k` likeliest
//! tokens), as in DeepConf (arXiv 2508.15260). A peaked distribution leaves its runners-up tiny probabilities, so
//! higher is surer.
//!
//! Owns the sliding window and the bar under which attempts are cut short. Called by `attempt` and `rollout`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Tokens whose log-probabilities make up a token's confidence.
pub const TOP_K: usize = 20;
/// Tokens at the end of an attempt that its confidence is taken from.
pub const TAIL_TOKENS: usize = 2048;
/// Most that one token contributes, in nats: what lies above is noise of the tail of the distribution.
const MOST: f64 = 100.0;

/// Confidence of one token from the log-probabilities of the likeliest ones.
pub fn of_token(top_logprobs: impl IntoIterator<Item = f32>) -> f32 {
    let (mut sum, mut n) = (0.0f64, 0u32);
    for logprob in top_logprobs {
        sum += bounded(-f64::from(logprob));
        n += 1;
    }
    if n == 0 { 0.0 } else { (sum / f64::from(n)) as f32 }
}

/// NaN is no confidence at all.
fn bounded(confidence: f64) -> f64 {
    if confidence.is_nan() { 0.0 } else { confidence.clamp(0.0, MOST) }
}

/// The mean over a sliding window of tokens.
#[derive(Debug, Clone)]
pub struct Window {
    size: usize,
    tokens: VecDeque<f32>,
    sum: f64,
    lowest: f64,
}

impl Window {
    /// An empty window of this many tokens, at least one.
    pub fn new(size: usize) -> Window {
        Window { size: size.max(1), tokens: VecDeque::new(), sum: 0.0, lowest: f64::INFINITY }
    }

    /// A window that only says what it came to.
    pub fn restored(mean: f64, lowest: f64) -> Window {
        Window { size: 1, tokens: VecDeque::from([mean as f32]), sum: mean, lowest }
    }

    /// Takes the confidence of the next token.
    pub fn push(&mut self, confidence: f32) {
        let confidence = bounded(f64::from(confidence)) as f32;
        if self.tokens.len() == self.size {
            self.sum -= f64::from(self.tokens.pop_front().unwrap_or(0.0));
        }
        self.tokens.push_back(confidence);
        self.sum += f64::from(confidence);
        if self.is_full() {
            self.lowest = self.lowest.min(self.mean());
        }
    }

    /// Whether it holds as many tokens as it can.
    pub fn is_full(&self) -> bool {
        self.tokens.len() == self.size
    }

    /// Mean over what it holds, to six places, so that it is the same after it has been written and read; 0 if empty.
    pub fn mean(&self) -> f64 {
        if self.tokens.is_empty() { 0.0 } else { (self.sum / self.tokens.len() as f64 * 1e6).round() / 1e6 }
    }

    /// The lowest mean that a full window has had; the mean of all tokens where it was never full.
    pub fn lowest(&self) -> f64 {
        if self.lowest.is_finite() { self.lowest } else { self.mean() }
    }
}

/// Cuts attempts short whose confidence falls below that of the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PruneOptions {
    /// Attempts that have to have ended by themselves before any is cut. Default 4.
    pub warmup: usize,
    /// Share of those attempts, in percent, that would have survived. Default 90.
    pub keep_percent: f64,
    /// Tokens of the sliding window. Default 2048.
    pub window_tokens: usize,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions { warmup: 4, keep_percent: 90.0, window_tokens: 2048 }
    }
}

impl PruneOptions {
    /// The bar that a running attempt's window has to stay above, from the lowest windows of the attempts that have
    /// ended; none during the warm-up.
    pub fn bar(&self, lowest: &[f64]) -> Option<f64> {
        if lowest.len() < self.warmup.max(1) {
            return None;
        }
        let mut sorted = lowest.to_vec();
        sorted.sort_by(f64::total_cmp);
        // The value that `keep_percent` of them reach.
        let cut = ((100.0 - self.keep_percent.clamp(0.0, 100.0)) * sorted.len() as f64 / 100.0).floor() as usize;
        Some(sorted[cut.min(sorted.len() - 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peaked_distribution_is_surer_and_nothing_is_not_a_number() {
        assert!(of_token([-0.01, -9.0, -11.0]) > of_token([-1.0, -1.1, -1.2]));
        assert_eq!(of_token([]), 0.0);
        assert_eq!(of_token([f32::NAN, -2.0]), 1.0);
        assert_eq!(of_token([f32::NEG_INFINITY]), 100.0);
    }

    #[test]
    fn a_window_slides_and_remembers_its_lowest_mean() {
        let mut window = Window::new(3);
        assert_eq!((window.mean(), window.lowest()), (0.0, 0.0));
        for (confidence, mean, lowest) in
            [(6.0, 6.0, 6.0), (2.0, 4.0, 4.0), (1.0, 3.0, 3.0), (3.0, 2.0, 2.0), (8.0, 4.0, 2.0)]
        {
            window.push(confidence);
            assert!((window.mean() - mean).abs() < 1e-9 && (window.lowest() - lowest).abs() < 1e-9, "{window:?}");
        }
        window.push(f32::NAN);
        assert!(window.mean().is_finite());
    }

    #[test]
    fn the_bar_is_what_the_kept_share_reaches() {
        let options = PruneOptions { warmup: 3, keep_percent: 90.0, window_tokens: 8 };
        assert_eq!(options.bar(&[1.0, 2.0]), None);
        assert_eq!(options.bar(&[3.0, 1.0, 2.0]), Some(1.0), "all of three stay");
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(options.bar(&ten), Some(2.0), "the lowest of ten would have been cut");
        assert_eq!(PruneOptions { keep_percent: 10.0, ..options }.bar(&ten), Some(10.0));
        assert_eq!(PruneOptions { keep_percent: 0.0, ..options }.bar(&ten), Some(10.0));
    }
}
