//! Two evaluations side by side: the problems whose outcome changed, and how likely such a difference is by chance.
//!
//! The chance is that of a sign-flip test over the problems that both have: if both were equally good, each problem's
//! difference would be as likely to point the other way. It is computed exactly; for one run against one it is
//! McNemar's exact test.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::evaluation::{Evaluation, ProblemFigures};

/// Two evaluations, A and B.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Problems that both have, with the same right answer.
    pub n_common: usize,
    /// Problems that only one of them has, or that have another right answer in it.
    pub n_apart: usize,
    /// Mean accuracy of A over the common problems.
    pub accuracy_a: f64,
    /// That of B.
    pub accuracy_b: f64,
    /// Common problems that another share of the runs has right, the largest gains of B first.
    pub changed: Vec<Change>,
    /// Chance of a difference at least as large if both were equally good; none without common problems.
    pub p_value: Option<f64>,
}

/// A problem with another outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Its id.
    pub id: String,
    /// The right answer.
    pub expected: i64,
    /// What A's runs chose.
    pub answers_a: Vec<Option<i64>>,
    /// What B's runs chose.
    pub answers_b: Vec<Option<i64>>,
    /// Share of B's runs that are right less that of A's.
    pub gain: f64,
}

impl Comparison {
    /// Compares by the ids of the problems.
    pub fn of(a: &Evaluation, b: &Evaluation) -> Comparison {
        let in_b: HashMap<&str, &ProblemFigures> = b.problems.iter().map(|p| (p.id.as_str(), p)).collect();
        let share = |p: &ProblemFigures| p.n_correct as f64 / p.answers.len() as f64;
        let twin = |p: &&ProblemFigures| in_b.get(p.id.as_str()).copied().filter(|q| q.expected == p.expected);
        let common: Vec<(&ProblemFigures, &ProblemFigures)> =
            a.problems.iter().filter_map(|p| Some((p, twin(&p)?))).collect();
        let n = common.len();
        let mean = |shares: &mut dyn Iterator<Item = f64>| shares.sum::<f64>() / n.max(1) as f64;
        let mut changed: Vec<Change> = common
            .iter()
            .filter(|(p, q)| p.n_correct * q.answers.len() != q.n_correct * p.answers.len())
            .map(|(p, q)| Change {
                id: p.id.clone(),
                expected: p.expected,
                answers_a: p.answers.clone(),
                answers_b: q.answers.clone(),
                gain: share(q) - share(p),
            })
            .collect();
        changed.sort_by(|x, y| y.gain.total_cmp(&x.gain));
        let differences: Vec<i64> = common
            .iter()
            .map(|(p, q)| (q.n_correct * p.answers.len()) as i64 - (p.n_correct * q.answers.len()) as i64)
            .collect();
        Comparison {
            n_common: n,
            n_apart: a.problems.len() + b.problems.len() - 2 * n,
            accuracy_a: mean(&mut common.iter().map(|(p, _)| share(p))),
            accuracy_b: mean(&mut common.iter().map(|(_, q)| share(q))),
            changed,
            p_value: (n > 0).then(|| sign_flip(&differences)),
        }
    }
}

/// Share of all choices of signs whose sum is at least as far from 0. Values are small integers: the distribution of the
/// sum is built up one value at a time.
fn sign_flip(differences: &[i64]) -> f64 {
    let seen = differences.iter().sum::<i64>().abs();
    let mut chances = BTreeMap::from([(0i64, 1.0f64)]);
    for &d in differences.iter().filter(|d| **d != 0) {
        let mut next = BTreeMap::new();
        for (sum, chance) in chances {
            *next.entry(sum + d).or_insert(0.0) += chance / 2.0;
            *next.entry(sum - d).or_insert(0.0) += chance / 2.0;
        }
        chances = next;
    }
    chances.into_iter().filter(|(sum, _)| sum.abs() >= seen).map(|(_, chance)| chance).sum::<f64>().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::tests::{problem, run};

    #[test]
    fn the_chance_is_mcnemars_for_single_runs() {
        // 5 gained, 1 lost: 2 · (C(6,0) + C(6,1)) / 2⁶.
        let p = sign_flip(&[1, 1, 1, 1, 1, -1, 0, 0, 0]);
        assert!((p - 14.0 / 64.0).abs() < 1e-12, "{p}");
        assert_eq!(sign_flip(&[0, 0]), 1.0);
        assert_eq!(sign_flip(&[2, -2]), 1.0);
        // By force over all signs of three values of different size.
        let (values, seen) = ([4i64, -1, 2], 5);
        let count = (0..8).filter(|mask| {
            let signed = values.iter().enumerate().map(|(i, v)| if mask >> i & 1 == 1 { *v } else { -v });
            signed.sum::<i64>().abs() >= seen
        });
        assert_eq!(sign_flip(&values), count.count() as f64 / 8.0);
    }

    #[test]
    fn problems_that_changed_are_listed() {
        let (right, wrong) = ([Some(7)], [Some(8)]);
        let a = Evaluation::of(&[run(0, vec![problem("x", &wrong), problem("y", &right), problem("z", &right)])]);
        let b = Evaluation::of(&[
            run(0, vec![problem("y", &wrong), problem("x", &right), problem("new", &right), problem("z", &right)]),
            run(1, vec![problem("y", &right), problem("x", &right), problem("new", &right), problem("z", &right)]),
        ]);
        let c = Comparison::of(&a, &b);
        assert_eq!((c.n_common, c.n_apart), (3, 1));
        assert!((c.accuracy_a - 2.0 / 3.0).abs() < 1e-12 && (c.accuracy_b - 2.5 / 3.0).abs() < 1e-12);
        let gains: Vec<(&str, f64)> = c.changed.iter().map(|c| (c.id.as_str(), c.gain)).collect();
        assert_eq!(gains, [("x", 1.0), ("y", -0.5)]);
        assert_eq!(c.changed[1].answers_b, [Some(8), Some(7)]);
        assert_eq!(c.p_value, Some(1.0), "|1 − ½| is reached by every choice of signs");
        assert_eq!(Comparison::of(&a, &Evaluation::of(&[])).p_value, None);
    }
}
