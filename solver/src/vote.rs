//! The vote over one problem's answers. [`VoteRule::Majority`]: most votes win, ties go to the higher capped
//! confidence, then to the earlier attempt. [`VoteRule::Confidence`]: the sum of capped confidences wins, ties go to
//! the most votes, then to the earlier attempt. A vote that the verifier has confirmed counts twice.
//!
//! All sums are integers (confidence in millionths of its cap), so the order of the ballots never matters and
//! [`VoteTable::is_unbeatable`] is exact: it holds if and only if no way that the running attempts could still end
//! would change the winner. Called by `rollout` and reports.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What decides a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoteRule {
    /// The number of votes.
    #[default]
    Majority,
    /// The sum of their capped confidences.
    Confidence,
}

/// How ballots are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counting {
    /// What decides.
    pub rule: VoteRule,
    /// Confidence that counts in full; what lies above counts no more.
    pub confidence_cap: f64,
    /// Whether running attempts may still be verified, and so count twice.
    pub verifies: bool,
}

impl Default for Counting {
    fn default() -> Self {
        Counting { rule: VoteRule::Majority, confidence_cap: DEFAULT_CAP, verifies: false }
    }
}

/// Default of [`Counting::confidence_cap`].
pub const DEFAULT_CAP: f64 = 20.0;

/// Weight of one vote at the cap.
const FULL: u64 = 1_000_000;

/// One attempt's vote.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ballot {
    /// Number of the attempt.
    pub attempt: usize,
    /// Its answer.
    pub answer: i64,
    /// Confidence over the tail of the attempt, not capped.
    pub confidence: f64,
    /// Whether running its code again printed the answer.
    pub verified: bool,
}

/// All votes of one problem, the winner first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct VoteTable {
    /// One row per answer, best first.
    pub rows: Vec<VoteRow>,
}

/// The votes for one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRow {
    /// The answer.
    pub answer: i64,
    /// How many attempts gave it.
    pub votes: usize,
    /// Those among them that were verified.
    pub verified: usize,
    /// Votes, verified ones twice.
    pub points: u64,
    /// Sum of capped confidences in millionths of the cap, verified ones twice.
    pub weight: u64,
    /// Numbers of the attempts, ascending.
    pub attempts: Vec<usize>,
}

impl VoteRow {
    /// Mean capped confidence of its votes as a share of the cap, 0 to 1.
    pub fn mean_confidence(&self) -> f64 {
        self.weight as f64 / (self.points.max(1) * FULL) as f64
    }

    fn standing(&self) -> Standing {
        let first = self.attempts.first().copied().unwrap_or(usize::MAX);
        Standing { points: self.points, weight: self.weight, first }
    }
}

/// What the order of two answers depends on.
#[derive(Debug, Clone, Copy)]
struct Standing {
    points: u64,
    weight: u64,
    first: usize,
}

impl Standing {
    fn cmp(&self, other: &Standing, rule: VoteRule) -> Ordering {
        let decided = match rule {
            VoteRule::Majority => self.points.cmp(&other.points).then(self.weight.cmp(&other.weight)),
            VoteRule::Confidence => self.weight.cmp(&other.weight).then(self.points.cmp(&other.points)),
        };
        decided.then(other.first.cmp(&self.first))
    }
}

impl Counting {
    fn weight(&self, confidence: f64) -> u64 {
        let share = confidence / self.confidence_cap;
        // NaN is no confidence.
        if share > 0.0 { (share.min(1.0) * FULL as f64).round() as u64 } else { 0 }
    }

    /// Counts the ballots; their order doesn't matter.
    pub fn count(&self, ballots: impl IntoIterator<Item = Ballot>) -> VoteTable {
        let mut ballots: Vec<Ballot> = ballots.into_iter().collect();
        ballots.sort_by_key(|b| (b.answer, b.attempt));
        let units = |b: &Ballot| if b.verified { 2 } else { 1 };
        let mut rows: Vec<VoteRow> = ballots
            .chunk_by(|a, b| a.answer == b.answer)
            .map(|same| VoteRow {
                answer: same[0].answer,
                votes: same.len(),
                verified: same.iter().filter(|b| b.verified).count(),
                points: same.iter().map(units).sum(),
                weight: same.iter().map(|b| units(b) * self.weight(b.confidence)).sum(),
                attempts: same.iter().map(|b| b.attempt).collect(),
            })
            .collect();
        rows.sort_by(|a, b| b.standing().cmp(&a.standing(), self.rule));
        VoteTable { rows }
    }

    /// Whether the attempts that still run, given by number, can't change the winner, whatever they answer.
    pub fn is_unbeatable(&self, table: &VoteTable, running: &[usize]) -> bool {
        let Some(leader) = table.rows.first() else { return false };
        let Some(&earliest) = running.iter().min() else { return true };
        let units = if self.verifies { 2 } else { 1 } * running.len() as u64;
        let nobody = Standing { points: 0, weight: 0, first: usize::MAX };
        // More votes, more weight and an earlier first attempt can only help: the best that a rival can come to is all
        // of what is left.
        table.rows[1..].iter().map(VoteRow::standing).chain([nobody]).all(|rival| {
            let best = Standing {
                points: rival.points + units,
                weight: rival.weight + units * FULL,
                first: rival.first.min(earliest),
            };
            best.cmp(&leader.standing(), self.rule) == Ordering::Less
        })
    }
}

impl VoteTable {
    /// The winning answer.
    pub fn winner(&self) -> Option<i64> {
        self.rows.first().map(|r| r.answer)
    }

    /// Votes of the answer that has most.
    pub fn most_votes(&self) -> usize {
        self.rows.iter().map(|r| r.votes).max().unwrap_or(0)
    }
}

/// When a problem may end before all its attempts have. Written `unbeatable`, `first-k:4` or `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRule {
    /// As soon as the running attempts can't change the winner any more. The answer is that of [`StopRule::All`].
    Unbeatable,
    /// As soon as this many attempts agree.
    FirstK(usize),
    /// When every attempt has ended.
    All,
}

impl StopRule {
    /// Whether the votes so far decide, with these attempts still running.
    pub fn is_decided(self, counting: &Counting, table: &VoteTable, running: &[usize]) -> bool {
        match self {
            StopRule::Unbeatable => counting.is_unbeatable(table, running),
            StopRule::FirstK(k) => table.most_votes() >= k,
            StopRule::All => false,
        }
    }
}

impl fmt::Display for StopRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopRule::Unbeatable => f.write_str("unbeatable"),
            StopRule::FirstK(k) => write!(f, "first-k:{k}"),
            StopRule::All => f.write_str("all"),
        }
    }
}

/// A text that names no stop rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stop rule {found:?} isn't one of unbeatable, first-k:K (K agree, at least 1) and all")]
pub struct StopRuleError {
    /// Text given.
    pub found: String,
}

impl FromStr for StopRule {
    type Err = StopRuleError;

    fn from_str(text: &str) -> Result<StopRule, StopRuleError> {
        let k = || text.strip_prefix("first-k:")?.parse().ok().filter(|&k| k >= 1);
        match text {
            "unbeatable" => Ok(StopRule::Unbeatable),
            "all" => Ok(StopRule::All),
            _ => k().map(StopRule::FirstK).ok_or_else(|| StopRuleError { found: text.to_string() }),
        }
    }
}

impl Serialize for StopRule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StopRule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<StopRule, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballots(answers: &[(i64, f64)]) -> Vec<Ballot> {
        let ballot = |(i, &(answer, confidence)): (usize, &(i64, f64))| Ballot {
            attempt: i + 1,
            answer,
            confidence,
            verified: false,
        };
        answers.iter().enumerate().map(ballot).collect()
    }

    fn winner(answers: &[(i64, f64)]) -> Option<i64> {
        Counting::default().count(ballots(answers)).winner()
    }

    fn weighted(answers: &[(i64, f64)]) -> Option<i64> {
        Counting { rule: VoteRule::Confidence, ..Counting::default() }.count(ballots(answers)).winner()
    }

    #[test]
    fn most_votes_win_and_ties_have_an_order() {
        assert_eq!(winner(&[]), None);
        assert_eq!(winner(&[(7, 0.0)]), Some(7));
        assert_eq!(winner(&[(1, 19.0), (2, 3.0), (2, 3.0)]), Some(2), "votes before confidence");
        assert_eq!(winner(&[(1, 5.0), (2, 7.0)]), Some(2), "confidence breaks a tie");
        assert_eq!(winner(&[(2, 5.0), (1, 5.0)]), Some(2), "then the earlier attempt");
        assert_eq!(winner(&[(1, 30.0), (2, 90.0)]), Some(1), "above the cap all are equal");
        assert_eq!(winner(&[(1, f64::NAN), (2, 1.0)]), Some(2), "NaN is no confidence");
        assert_eq!(winner(&[(1, f64::NEG_INFINITY), (2, f64::NAN)]), Some(1), "and is ordered");
    }

    #[test]
    fn confidence_can_decide_up_to_its_cap() {
        assert_eq!(weighted(&[(1, 19.0), (2, 3.0), (2, 3.0)]), Some(1));
        assert_eq!(weighted(&[(1, 900.0), (2, 11.0), (2, 11.0)]), Some(2), "the cap holds");
        assert_eq!(weighted(&[(1, 10.0), (2, 5.0), (2, 5.0)]), Some(2), "then votes");
        assert_eq!(weighted(&[(2, 5.0), (1, 5.0)]), Some(2), "then the earlier attempt");
    }

    #[test]
    fn the_table_keeps_every_vote_and_verified_ones_count_twice() {
        let mut votes = ballots(&[(5, 10.0), (3, 5.0), (5, 20.0)]);
        votes[1].verified = true;
        let table = Counting::default().count(votes);
        let row = |answer, votes, verified, points, weight, attempts: &[usize]| VoteRow {
            answer,
            votes,
            verified,
            points,
            weight,
            attempts: attempts.to_vec(),
        };
        assert_eq!(table.rows, [row(5, 2, 0, 2, 1_500_000, &[1, 3]), row(3, 1, 1, 2, 500_000, &[2])]);
        assert_eq!(table.rows[0].mean_confidence(), 0.75);
        assert_eq!(table.rows[1].mean_confidence(), 0.25);
    }

    #[test]
    fn stop_rules_are_read_and_written() {
        for text in ["unbeatable", "all", "first-k:4"] {
            assert_eq!(text.parse::<StopRule>().unwrap().to_string(), text);
        }
        for text in ["", "first-k", "first-k:0", "first-k:x", "first"] {
            assert!(text.parse::<StopRule>().unwrap_err().to_string().contains("first-k:K"), "{text}");
        }
    }

    /// What one attempt may come to: no answer, or one of three known answers or a fresh one, at no, middling or full
    /// confidence, verified or not.
    fn outcomes(verifies: bool, confidences: &[f64]) -> Vec<Option<(i64, f64, bool)>> {
        let mut all = vec![None];
        for answer in 1..=3 {
            for &confidence in confidences {
                for verified in if verifies { vec![false, true] } else { vec![false] } {
                    all.push(Some((answer, confidence, verified)));
                }
            }
        }
        all
    }

    fn ballot(attempt: usize, (answer, confidence, verified): (i64, f64, bool)) -> Ballot {
        Ballot { attempt, answer, confidence, verified }
    }

    /// Every state that some attempts can be in, against every way that the others could end: the rule stops if and
    /// only if none of them changes the winner.
    fn check_exact(counting: Counting, n: usize, done_confidences: &[f64]) -> (usize, usize) {
        let done_outcomes = outcomes(counting.verifies, done_confidences);
        let rest_outcomes: Vec<_> = outcomes(counting.verifies, &[0.0, counting.confidence_cap])
            .into_iter()
            .chain([Some((9, counting.confidence_cap, counting.verifies))])
            .collect();
        let (mut n_stops, mut n_goes_on) = (0, 0);
        // `mask` says which attempts have ended: the tie-break looks at their numbers.
        for mask in 0..1usize << n {
            let (done, running): (Vec<usize>, Vec<usize>) = (1..=n).partition(|i| mask >> (i - 1) & 1 == 1);
            if running.len() > 3 {
                continue;
            }
            for code in 0..done_outcomes.len().pow(done.len() as u32) {
                let digit = |code: usize, i: usize, base: usize| code / base.pow(i as u32) % base;
                let votes: Vec<Ballot> = done
                    .iter()
                    .enumerate()
                    .filter_map(|(i, &a)| Some(ballot(a, done_outcomes[digit(code, i, done_outcomes.len())]?)))
                    .collect();
                let table = counting.count(votes.clone());
                let can_change = (0..rest_outcomes.len().pow(running.len() as u32)).any(|code| {
                    let rest = running
                        .iter()
                        .enumerate()
                        .filter_map(|(i, &a)| Some(ballot(a, rest_outcomes[digit(code, i, rest_outcomes.len())]?)));
                    counting.count(votes.iter().copied().chain(rest)).winner() != table.winner()
                });
                let stops = counting.is_unbeatable(&table, &running);
                let nothing_yet = table.rows.is_empty() && running.is_empty();
                assert!(stops != can_change || nothing_yet, "{counting:?}: {votes:?} with {running:?} running");
                *(if stops { &mut n_stops } else { &mut n_goes_on }) += 1;
            }
        }
        (n_stops, n_goes_on)
    }

    #[test]
    fn unbeatable_is_exact_for_votes_with_capped_confidence_in_ties() {
        let (stops, goes_on) = check_exact(Counting::default(), 4, &[0.0, 20.0, 35.0]);
        assert!(stops > 1000 && goes_on > 1000, "{stops} {goes_on}");
    }

    #[test]
    fn unbeatable_is_exact_for_capped_confidence_weights() {
        let counting = Counting { rule: VoteRule::Confidence, ..Counting::default() };
        let (stops, goes_on) = check_exact(counting, 4, &[0.0, 10.0, 20.0]);
        assert!(stops > 1000 && goes_on > 1000, "{stops} {goes_on}");
    }

    #[test]
    fn unbeatable_is_exact_where_verified_votes_count_twice() {
        for rule in [VoteRule::Majority, VoteRule::Confidence] {
            let counting = Counting { rule, verifies: true, ..Counting::default() };
            let (stops, goes_on) = check_exact(counting, 3, &[0.0, 20.0]);
            assert!(stops > 100 && goes_on > 100, "{stops} {goes_on}");
        }
    }

    #[test]
    fn first_k_stops_when_k_agree() {
        let counting = Counting::default();
        let decided = |k: usize, answers: &[(i64, f64)]| {
            StopRule::FirstK(k).is_decided(&counting, &counting.count(ballots(answers)), &[8])
        };
        assert!(!decided(2, &[(1, 0.0), (2, 0.0)]));
        assert!(decided(2, &[(1, 0.0), (2, 0.0), (1, 0.0)]));
        assert!(!StopRule::All.is_decided(&counting, &counting.count(ballots(&[(1, 0.0); 5])), &[]));
    }
}
