//! The vote over one problem's answers: most votes win; ties go to the higher mean token log-probability, then to the
//! earlier attempt.
//!
//! [`VoteTable::is_unbeatable`] is exact: it holds only where no way that the running attempts could still end would
//! change the winner, so stopping then gives the answer of the full vote. Called by `rollout` and reports.

use serde::Serialize;

/// One attempt's vote.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ballot {
    /// Number of the attempt.
    pub attempt: usize,
    /// Its answer.
    pub answer: i64,
    /// Mean natural log-probability of the tokens that it wrote.
    pub mean_logprob: f64,
}

/// All votes of one problem, the winner first.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct VoteTable {
    /// One row per answer, best first.
    pub rows: Vec<VoteRow>,
}

/// The votes for one answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VoteRow {
    /// The answer.
    pub answer: i64,
    /// How many attempts gave it.
    pub votes: usize,
    /// Mean over those attempts of their mean token log-probability.
    pub mean_logprob: f64,
    /// Their numbers, ascending.
    pub attempts: Vec<usize>,
}

impl VoteTable {
    /// Counts the ballots; their order doesn't matter.
    pub fn count(ballots: impl IntoIterator<Item = Ballot>) -> VoteTable {
        let mut ballots: Vec<Ballot> = ballots.into_iter().collect();
        ballots.sort_by_key(|b| (b.answer, b.attempt));
        let mut rows: Vec<VoteRow> = ballots
            .chunk_by(|a, b| a.answer == b.answer)
            .map(|same| VoteRow {
                answer: same[0].answer,
                votes: same.len(),
                mean_logprob: same.iter().map(|b| finite(b.mean_logprob)).sum::<f64>() / same.len() as f64,
                attempts: same.iter().map(|b| b.attempt).collect(),
            })
            .collect();
        rows.sort_by(|a, b| {
            b.votes
                .cmp(&a.votes)
                .then(b.mean_logprob.total_cmp(&a.mean_logprob))
                .then(a.attempts[0].cmp(&b.attempts[0]))
        });
        VoteTable { rows }
    }

    /// The winning answer.
    pub fn winner(&self) -> Option<i64> {
        self.rows.first().map(|r| r.answer)
    }

    /// Whether `n_running` more attempts can't change the winner, whatever they answer.
    pub fn is_unbeatable(&self, n_running: usize) -> bool {
        let votes = |i: usize| self.rows.get(i).map_or(0, |r| r.votes);
        votes(0) > votes(1) + n_running
    }
}

/// A model that returns NaN gives its answer the least confidence, not an undefined order.
fn finite(logprob: f64) -> f64 {
    if logprob.is_finite() { logprob } else { f64::MIN / 1e9 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballots(answers: &[(i64, f64)]) -> Vec<Ballot> {
        let ballot =
            |(i, &(answer, mean_logprob)): (usize, &(i64, f64))| Ballot { attempt: i + 1, answer, mean_logprob };
        answers.iter().enumerate().map(ballot).collect()
    }

    fn winner(answers: &[(i64, f64)]) -> Option<i64> {
        VoteTable::count(ballots(answers)).winner()
    }

    #[test]
    fn most_votes_win_and_ties_have_an_order() {
        assert_eq!(winner(&[]), None);
        assert_eq!(winner(&[(7, -9.0)]), Some(7));
        assert_eq!(winner(&[(1, -0.1), (2, -3.0), (2, -3.0)]), Some(2), "votes before confidence");
        assert_eq!(winner(&[(1, -0.5), (2, -0.2)]), Some(2), "confidence breaks a tie");
        assert_eq!(winner(&[(2, -0.5), (1, -0.5)]), Some(2), "then the earlier attempt");
        assert_eq!(winner(&[(1, f64::NAN), (2, -5.0)]), Some(2), "NaN is the least confidence");
        assert_eq!(winner(&[(1, f64::NEG_INFINITY), (2, f64::NAN)]), Some(1), "and is ordered");
    }

    #[test]
    fn the_table_keeps_every_vote() {
        let table = VoteTable::count(ballots(&[(5, -1.0), (3, -0.5), (5, -2.0)]));
        assert_eq!(
            table.rows,
            [
                VoteRow { answer: 5, votes: 2, mean_logprob: -1.5, attempts: vec![1, 3] },
                VoteRow { answer: 3, votes: 1, mean_logprob: -0.5, attempts: vec![2] },
            ]
        );
    }

    /// Every way that the first attempts can have ended (one of three answers or none) against every way that the
    /// rest could end, with confidences that favour whoever is behind.
    #[test]
    fn unbeatable_is_exact_for_all_small_outcomes() {
        const FRESH: i64 = 9;
        let mut n_unbeatable = 0;
        for n_done in 0..=5u32 {
            for done_code in 0..4usize.pow(n_done) {
                let digit = |code: usize, i: u32| (code / 4usize.pow(i) % 4) as i64;
                let done: Vec<i64> = (0..n_done).map(|i| digit(done_code, i)).filter(|&d| d > 0).collect();
                let table = VoteTable::count(ballots(&done.iter().map(|&d| (d, -5.0)).collect::<Vec<_>>()));
                for n_running in 0..=3u32 {
                    // 0 = no answer, 1..3 = a known answer, 4 = one that nobody has given yet.
                    let can_change = (0..5usize.pow(n_running)).any(|code| {
                        let rest = (0..n_running).map(|i| (code / 5usize.pow(i) % 5) as i64).filter(|&d| d > 0);
                        let rest = rest.map(|d| (if d == 4 { FRESH } else { d }, 0.0));
                        let mut all: Vec<(i64, f64)> = done.iter().map(|&d| (d, -5.0)).collect();
                        all.extend(rest);
                        winner(&all) != table.winner()
                    });
                    let unbeatable = table.is_unbeatable(n_running as usize);
                    assert!(!(unbeatable && can_change), "{done:?} with {n_running} running");
                    n_unbeatable += usize::from(unbeatable);
                    if !unbeatable && n_running > 0 {
                        assert!(can_change, "stops too late: {done:?} with {n_running} running");
                    }
                }
            }
        }
        assert!(n_unbeatable > 1000, "{n_unbeatable}");
    }
}
