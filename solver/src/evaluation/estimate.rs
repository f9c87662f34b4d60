//! pass@k and maj@k of one problem from all its attempts: exact expectations over the ways to choose `k` of them.

/// Most attempts for which [`majority_at`] chooses among them: binomials beyond leave f64's range.
const MOST_ATTEMPTS: usize = 1000;

/// Chance that one of `k` attempts drawn from `n`, of which `right` are right, is right: 1 − C(n−right, k) / C(n, k)
/// (Chen et al., arXiv 2107.03374), as a product so that nothing overflows. `k` ≤ `n`.
pub(super) fn pass_at(n: usize, right: usize, k: usize) -> f64 {
    assert!(k <= n && right <= n, "{k} and {right} of {n} attempts");
    if n - right < k {
        return 1.0;
    }
    1.0 - (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// Chance that the right answer has most votes among `k` attempts drawn from `n`; in a tie of `t` answers it counts
/// 1/`t`. `others` are the votes of each wrong answer; attempts without an answer don't vote. None where it can't be
/// computed.
pub(super) fn majority_at(n: usize, right: usize, others: &[usize], k: usize) -> Option<f64> {
    let voting = right + others.iter().sum::<usize>();
    assert!(k <= n && voting <= n, "{k} and {voting} of {n} attempts");
    if n > MOST_ATTEMPTS && k != n {
        return None;
    }
    if k == n {
        let most = others.iter().copied().max().unwrap_or(0);
        let n_tied = others.iter().filter(|&&votes| votes == most).count();
        return Some(match right {
            0 => 0.0,
            _ if right > most => 1.0,
            _ if right == most => 1.0 / (1 + n_tied) as f64,
            _ => 0.0,
        });
    }
    let mut share = 0.0;
    for votes in 1..=right.min(k) {
        // ways[chosen][tied]: ways to choose so many attempts from the others, none of which gets more than `votes`,
        // with so many of them getting as many.
        let n_tied_most = k / votes;
        let mut ways = vec![vec![0.0; n_tied_most + 1]; k - votes + 1];
        ways[0][0] = 1.0;
        for &of in others {
            let mut next = vec![vec![0.0; n_tied_most + 1]; k - votes + 1];
            for (chosen, row) in ways.iter().enumerate() {
                for (tied, &w) in row.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                    for more in 0..=of.min(votes).min(k - votes - chosen) {
                        next[chosen + more][tied + usize::from(more == votes)] += w * choose(of, more);
                    }
                }
            }
            ways = next;
        }
        for (chosen, row) in ways.iter().enumerate() {
            let silent = choose(n - voting, k - votes - chosen);
            let won: f64 = row.iter().enumerate().map(|(tied, w)| w / (1 + tied) as f64).sum();
            share += choose(right, votes) * silent * won;
        }
    }
    Some(share / choose(n, k))
}

/// C(n, k); 0 where `k` > `n`.
fn choose(n: usize, k: usize) -> f64 {
    if k > n { 0.0 } else { (0..k.min(n - k)).map(|i| (n - i) as f64 / (i + 1) as f64).product() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to choose `k` of the answers; 0 is right, None is silent.
    fn by_force(answers: &[Option<usize>], k: usize) -> (f64, f64) {
        let (mut pass, mut majority, mut n_ways) = (0.0, 0.0, 0.0);
        for mask in 0u32..1 << answers.len() {
            if mask.count_ones() as usize != k {
                continue;
            }
            n_ways += 1.0;
            let mut votes = [0usize; 8];
            for (i, answer) in answers.iter().enumerate() {
                if let (1, Some(a)) = (mask >> i & 1, answer) {
                    votes[*a] += 1;
                }
            }
            let most = votes.iter().copied().max().unwrap();
            pass += f64::from(u8::from(votes[0] > 0));
            if votes[0] == most && most > 0 {
                majority += 1.0 / votes.iter().filter(|&&v| v == most).count() as f64;
            }
        }
        (pass / n_ways, majority / n_ways)
    }

    #[test]
    fn both_are_the_mean_over_every_choice() {
        for right in 0..=4 {
            for others in [vec![], vec![1], vec![3], vec![2, 2], vec![1, 1, 2], vec![4, 1]] {
                for silent in 0..=2 {
                    let mut answers = vec![Some(0); right];
                    for (i, &n) in others.iter().enumerate() {
                        answers.extend(vec![Some(i + 1); n]);
                    }
                    answers.extend(vec![None; silent]);
                    let n = answers.len();
                    for k in 1..=n {
                        let (pass, majority) = by_force(&answers, k);
                        let what = format!("{right} right, {others:?}, {silent} silent, k = {k}");
                        assert!((pass_at(n, right, k) - pass).abs() < 1e-12, "{what}");
                        let found = majority_at(n, right, &others, k).unwrap();
                        assert!((found - majority).abs() < 1e-12, "{what}: {found} for {majority}");
                    }
                }
            }
        }
    }

    #[test]
    fn many_attempts_stay_in_range() {
        assert!((pass_at(4096, 1, 2048) - 0.5).abs() < 1e-9);
        let half = majority_at(1000, 500, &[500], 501).unwrap();
        assert!((half - 0.5).abs() < 1e-9, "{half}");
        assert_eq!(majority_at(2000, 1000, &[900], 4), None);
        assert_eq!(majority_at(2000, 1000, &[900], 2000), Some(1.0));
    }
}
