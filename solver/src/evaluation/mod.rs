//! What runs over a set with known answers came to: accuracy of the chosen answers, pass@k, maj@k, what it cost, over
//! one run or several with mean and spread, and the score of a contest that counts two runs.
//!
//! Plain arithmetic over [`RunReport`]s, which journals give; it starts nothing. A problem that its run was cut short
//! before is left out, one that the run's own clock left no time for is wrong. Called by `eval` and `report`.

pub mod compare;
mod estimate;

use serde::Serialize;

pub use compare::Comparison;

use crate::attempt::AttemptEnd;
use crate::report::{ProblemReport, RunEnd, RunReport};
use crate::rollout::ProblemStop;
use estimate::{majority_at, pass_at};

/// A number over several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the sample; none for a single run.
    pub sd: Option<f64>,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; none without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square = |x: &f64| (x - mean).powi(2);
        Some(Spread {
            mean,
            sd: (values.len() > 1).then(|| (values.iter().map(square).sum::<f64>() / (n - 1.0)).sqrt()),
            min: values.iter().copied().reduce(f64::min)?,
            max: values.iter().copied().reduce(f64::max)?,
        })
    }
}

/// A share that holds for `k` attempts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AtK {
    /// Attempts.
    pub k: usize,
    /// Mean over the problems, 0 to 1.
    pub share: f64,
    /// Problems with that many attempts that ended.
    pub n_problems: usize,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunFigures {
    /// Seed of the run.
    pub seed: u64,
    /// Problems that count.
    pub n_problems: usize,
    /// Problems that the run was cut short before.
    pub n_unfinished: usize,
    /// Problems whose chosen answer is right.
    pub n_correct: usize,
    /// Their share.
    pub accuracy: f64,
    /// Chance that one of `k` attempts is right, by the unbiased estimator.
    pub pass_at: Vec<AtK>,
    /// Chance that the most frequent answer of `k` attempts is right; a tie counts in part.
    pub majority_at: Vec<AtK>,
    /// Attempts that ended by themselves or by their limits.
    pub n_attempts: usize,
    /// Attempts that were cut off because the vote was decided; figures at `k` leave them out.
    pub n_cancelled: usize,
    /// Attempts that gave an answer.
    pub n_answered: usize,
    /// Tokens that all attempts wrote.
    pub generated_tokens: usize,
    /// Python blocks.
    pub tool_calls: usize,
    /// Those among them that failed.
    pub tool_errors: usize,
    /// Time of the problems that count, in seconds.
    pub elapsed_s: f64,
}

/// One problem over all runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProblemFigures {
    /// Its id.
    pub id: String,
    /// The right answer.
    pub expected: i64,
    /// What each run chose, by run; a run that was cut short before it isn't there.
    pub answers: Vec<Option<i64>>,
    /// Runs that chose the right one.
    pub n_correct: usize,
    /// Attempts of all runs that were right.
    pub right_attempts: usize,
    /// Attempts of all runs that ended.
    pub n_attempts: usize,
}

/// The score of a contest that runs everything twice: 1, ½ or 0 per problem for both, one or neither right. Over every
/// pair of runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DoubleRun {
    /// Pairs of runs.
    pub n_pairs: usize,
    /// Problems that all runs have.
    pub n_problems: usize,
    /// Score of a pair.
    pub score: Spread,
    /// Problems that both runs of a pair have right, on average.
    pub both: f64,
    /// Problems that one of them has right, on average.
    pub one: f64,
    /// Problems that neither has right, on average.
    pub neither: f64,
}

/// All figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Run by run.
    pub runs: Vec<RunFigures>,
    /// Problem by problem, in the order of the first run that has them.
    pub problems: Vec<ProblemFigures>,
    /// With two runs or more.
    pub double_run: Option<DoubleRun>,
}

impl Evaluation {
    /// The figures of these runs. Problems without a known answer are left out.
    pub fn of(runs: &[RunReport]) -> Evaluation {
        let mut problems: Vec<ProblemFigures> = Vec::new();
        for run in runs {
            for (p, expected) in counted(run) {
                let at = problems.iter().position(|f| f.id == p.id).unwrap_or_else(|| {
                    let (answers, n_correct, right_attempts, n_attempts) = (Vec::new(), 0, 0, 0);
                    let id = p.id.clone();
                    problems.push(ProblemFigures { id, expected, answers, n_correct, right_attempts, n_attempts });
                    problems.len() - 1
                });
                let ended = Ended::of(p, expected);
                let figures = &mut problems[at];
                figures.answers.push(p.answer);
                figures.n_correct += usize::from(p.answer == Some(expected));
                figures.right_attempts += ended.n_right;
                figures.n_attempts += ended.n;
            }
        }
        let double_run = double_run(&problems, runs.len());
        Evaluation { runs: runs.iter().map(RunFigures::of).collect(), problems, double_run }
    }

    /// A figure over all runs that have problems.
    pub fn spread(&self, figure: impl Fn(&RunFigures) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().filter(|r| r.n_problems > 0).map(figure))
    }

    /// Every `k` that figures are given for.
    pub fn ks(&self) -> Vec<usize> {
        let mut ks: Vec<usize> = self.runs.iter().flat_map(|r| r.pass_at.iter().map(|a| a.k)).collect();
        ks.sort_unstable();
        ks.dedup();
        ks
    }

    /// A figure at `k` over the runs that have it: of `pass_at` or `majority_at`.
    pub fn spread_at(&self, k: usize, of: impl Fn(&RunFigures) -> &[AtK]) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(|r| of(r).iter().find(|a| a.k == k).map(|a| a.share)))
    }
}

impl RunFigures {
    fn of(run: &RunReport) -> RunFigures {
        let counted: Vec<(&ProblemReport, i64)> = counted(run).collect();
        let n_known = run.n_known();
        let ended: Vec<Ended> = counted.iter().map(|&(p, expected)| Ended::of(p, expected)).collect();
        let most = ended.iter().map(|e| e.n).max().unwrap_or(0);
        let mean_at = |k: usize, share: &dyn Fn(&Ended) -> Option<f64>| {
            let shares: Vec<f64> = ended.iter().filter(|e| e.n >= k).filter_map(share).collect();
            let n_problems = shares.len();
            (n_problems > 0).then(|| AtK { k, share: shares.iter().sum::<f64>() / n_problems as f64, n_problems })
        };
        let n_correct = counted.iter().filter(|(p, expected)| p.answer == Some(*expected)).count();
        let sum = |value: fn(&ProblemReport) -> usize| counted.iter().map(|(p, _)| value(p)).sum();
        let at = |share: fn(&Ended, usize) -> Option<f64>| -> Vec<AtK> {
            ks_up_to(most).filter_map(|k| mean_at(k, &|e| share(e, k))).collect()
        };
        RunFigures {
            seed: run.options.seed,
            n_problems: counted.len(),
            n_unfinished: n_known - counted.len(),
            n_correct,
            accuracy: n_correct as f64 / counted.len().max(1) as f64,
            pass_at: at(|e, k| Some(pass_at(e.n, e.n_right, k))),
            majority_at: at(|e, k| majority_at(e.n, e.n_right, &e.others, k)),
            n_attempts: ended.iter().map(|e| e.n).sum(),
            n_cancelled: ended.iter().map(|e| e.n_cancelled).sum(),
            n_answered: ended.iter().map(|e| e.n_right + e.others.iter().sum::<usize>()).sum(),
            generated_tokens: sum(ProblemReport::generated_tokens),
            tool_calls: sum(ProblemReport::tool_calls),
            tool_errors: sum(ProblemReport::tool_errors),
            elapsed_s: counted.iter().map(|(p, _)| p.elapsed_s).sum(),
        }
    }
}

/// The problems of a run that count, with their right answers.
fn counted(run: &RunReport) -> impl Iterator<Item = (&ProblemReport, i64)> {
    let by_clock = matches!(run.end, RunEnd::Complete | RunEnd::TimeUp);
    let is_whole = move |p: &&ProblemReport| {
        by_clock || !matches!(p.stop, ProblemStop::Cancelled | ProblemStop::Fault | ProblemStop::NotReached)
    };
    run.problems.iter().filter(is_whole).filter_map(|p| Some((p, p.expected?)))
}

/// The attempts at one problem that ended by themselves or by their limits.
struct Ended {
    n: usize,
    n_right: usize,
    /// Votes of each wrong answer.
    others: Vec<usize>,
    n_cancelled: usize,
}

impl Ended {
    fn of(problem: &ProblemReport, expected: i64) -> Ended {
        let mut answers = Vec::new();
        let mut n = 0;
        for attempt in problem.attempts.iter().filter(|a| a.end.is_final()) {
            n += 1;
            if let AttemptEnd::Answer { answer } = attempt.end {
                answers.push(answer);
            }
        }
        answers.sort_unstable();
        let (right, wrong): (Vec<&[i64]>, Vec<&[i64]>) =
            answers.chunk_by(|a, b| a == b).partition(|same| same[0] == expected);
        Ended {
            n,
            n_right: right.iter().map(|same| same.len()).sum(),
            others: wrong.iter().map(|same| same.len()).collect(),
            n_cancelled: problem.attempts.len() - n,
        }
    }
}

/// 1, 2, 4, … and `n` itself.
fn ks_up_to(n: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(1usize), |k| k.checked_mul(2)).take_while(move |&k| k < n);
    powers.chain((n > 0).then_some(n))
}

fn double_run(problems: &[ProblemFigures], n_runs: usize) -> Option<DoubleRun> {
    let common: Vec<&ProblemFigures> = problems.iter().filter(|p| p.answers.len() == n_runs).collect();
    if n_runs < 2 || common.is_empty() {
        return None;
    }
    let (mut both, mut one, mut neither, mut scores) = (0usize, 0usize, 0usize, Vec::new());
    for a in 0..n_runs {
        for b in a + 1..n_runs {
            let mut half_points = 0usize;
            for p in &common {
                let is_right = |run: usize| usize::from(p.answers[run] == Some(p.expected));
                let n_right = is_right(a) + is_right(b);
                half_points += n_right;
                *[&mut neither, &mut one, &mut both][n_right] += 1;
            }
            scores.push(half_points as f64 / 2.0);
        }
    }
    let n_pairs = scores.len();
    let mean = |n: usize| n as f64 / n_pairs as f64;
    Some(DoubleRun {
        n_pairs,
        n_problems: common.len(),
        score: Spread::of(scores)?,
        both: mean(both),
        one: mean(one),
        neither: mean(neither),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::options::SolverOptions;
    use crate::problem::Problem;
    use crate::report::AttemptReport;
    use crate::vote::VoteTable;

    fn attempt(number: usize, end: AttemptEnd) -> AttemptReport {
        AttemptReport {
            number,
            seed: 0,
            end,
            generated_tokens: 10,
            given_tokens: 5,
            tool_calls: 2,
            tool_errors: 1,
            tool_s: 0.5,
            mean_logprob: -0.5,
            confidence: 10.0,
            lowest_confidence: 9.0,
            verified: None,
            elapsed_s: 2.0,
            rejected: Vec::new(),
        }
    }

    /// A problem whose right answer is 7; `None` gave no answer, and so did attempts that were cancelled: -1.
    pub(crate) fn problem(id: &str, answers: &[Option<i64>]) -> ProblemReport {
        let end = |answer: &Option<i64>| match answer {
            Some(-1) => AttemptEnd::Cancelled,
            Some(answer) => AttemptEnd::Answer { answer: *answer },
            None => AttemptEnd::TokenBudget,
        };
        let attempts = answers.iter().zip(1..).map(|(a, n)| attempt(n, end(a))).collect();
        let problem = Problem { id: id.to_string(), text: "?".to_string(), answer: Some(7) };
        let report = ProblemReport::of_attempts(&problem, &SolverOptions::default(), attempts);
        ProblemReport { stop: ProblemStop::AllEnded, ..report }
    }

    pub(crate) fn run(seed: u64, problems: Vec<ProblemReport>) -> RunReport {
        RunReport {
            options: SolverOptions { seed, ..SolverOptions::default() },
            problems,
            end: RunEnd::Complete,
            elapsed_s: 4.0,
            warnings: Vec::new(),
            unwritten: None,
            journal: None,
        }
    }

    #[test]
    fn a_run_gives_its_figures() {
        let easy = problem("easy", &[Some(7), Some(7), Some(7), Some(3)]);
        let hard = problem("hard", &[Some(7), Some(5), Some(5), None]);
        let figures = Evaluation::of(&[run(1, vec![easy, hard])]);
        let r = &figures.runs[0];
        assert_eq!((r.n_problems, r.n_correct, r.accuracy), (2, 1, 0.5));
        let shares = |at: &[AtK]| at.iter().map(|a| (a.k, (a.share * 1000.0).round() / 1000.0)).collect::<Vec<_>>();
        // 1 − C(1,2)/C(4,2) = 1 and 1 − C(3,2)/C(4,2) = ½.
        assert_eq!(shares(&r.pass_at), [(1, 0.5), (2, 0.75), (4, 1.0)]);
        // Two of the easy one: ½ of the pairs are 7·7, ½ tie 7·3 and count half: 0.75. Of the hard one: 7·none wins,
        // 7·5 ties twice, 5·5 and 5·none lose: (1 + 2·½)/6.
        assert_eq!(
            shares(&r.majority_at),
            [(1, 0.5), (2, (0.75 + 1.0 / 3.0) / 2.0)]
                .map(|(k, s): (usize, f64)| (k, (s * 1000.0).round() / 1000.0))
                .into_iter()
                .chain([(4, 0.5)])
                .collect::<Vec<_>>()
        );
        assert_eq!((r.n_attempts, r.n_answered, r.n_cancelled), (8, 7, 0));
        assert_eq!((r.generated_tokens, r.tool_calls, r.tool_errors), (80, 16, 8));
        assert!(figures.double_run.is_none());
    }

    #[test]
    fn attempts_that_were_cut_off_are_left_out_at_k() {
        let decided = problem("decided", &[Some(7), Some(7), Some(-1), Some(-1)]);
        let whole = problem("whole", &[Some(1), Some(2), Some(3), Some(7)]);
        let r = &Evaluation::of(&[run(1, vec![decided, whole])]).runs[0];
        assert_eq!(r.n_cancelled, 2);
        assert_eq!(r.pass_at.iter().map(|a| (a.k, a.n_problems)).collect::<Vec<_>>(), [(1, 2), (2, 2), (4, 1)]);
        assert_eq!(r.pass_at[0].share, (1.0 + 0.25) / 2.0);
    }

    #[test]
    fn what_a_run_never_came_to_counts_only_if_its_clock_ended_it() {
        let missed = ProblemReport { stop: ProblemStop::NotReached, ..problem("b", &[]) };
        let report = run(0, vec![problem("a", &[Some(7)]), missed]);
        assert_eq!(Evaluation::of(std::slice::from_ref(&report)).runs[0].accuracy, 0.5);
        let cut = RunReport { end: RunEnd::Cancelled, ..report };
        let r = &Evaluation::of(&[cut]).runs[0];
        assert_eq!((r.accuracy, r.n_problems, r.n_unfinished), (1.0, 1, 1));
    }

    #[test]
    fn two_runs_score_one_half_or_nothing() {
        let (right, wrong) = ([Some(7)], [Some(8)]);
        let first = run(0, vec![problem("a", &right), problem("b", &right), problem("c", &wrong)]);
        let second = run(1, vec![problem("a", &right), problem("b", &wrong), problem("c", &wrong)]);
        let figures = Evaluation::of(&[first, second]);
        let double = figures.double_run.clone().unwrap();
        assert_eq!((double.both, double.one, double.neither), (1.0, 1.0, 1.0));
        assert_eq!((double.score.mean, double.n_pairs, double.n_problems), (1.5, 1, 3));
        let accuracy = figures.spread(|r| r.accuracy).unwrap();
        assert!((accuracy.mean - 0.5).abs() < 1e-12 && (accuracy.sd.unwrap() - (1f64 / 18.0).sqrt()).abs() < 1e-12);
        assert_eq!(figures.problems[1].answers, [Some(7), Some(8)]);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_problem_without_votes_is_wrong_whatever_the_default_is() {
        let report = ProblemReport { votes: VoteTable::default(), ..problem("a", &[None]) };
        assert_eq!(Evaluation::of(&[run(0, vec![report])]).runs[0].n_correct, 0);
    }
}
