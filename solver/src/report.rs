//! What a run came to, as plain data: for the table in the terminal, for JSON, for comparisons.
//!
//! Owns no behaviour beyond sums. Built by `run`.

use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, AttemptEnd};
use crate::options::SolverOptions;
use crate::problem::Problem;
use crate::rollout::{ProblemStop, Solved};
use crate::selection::Selection;
use crate::vote::{Ballot, VoteTable};

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Settings.
    pub options: SolverOptions,
    /// One entry per problem of the set, in its order.
    pub problems: Vec<ProblemReport>,
    /// How the run ended.
    pub end: RunEnd,
    /// Wall-clock time.
    pub elapsed_s: f64,
    /// What went wrong without ending the run, such as a transcript that couldn't be written.
    pub warnings: Vec<String>,
    /// Why the submission on disk isn't up to date, where it isn't: then this report is all that holds the answers.
    pub unwritten: Option<String>,
    /// Why the journal doesn't hold all of this, where it doesn't: then the run can't be gone on with.
    pub journal: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RunEnd {
    /// Every problem was worked on.
    Complete,
    /// The run's time was up.
    TimeUp,
    /// It was interrupted.
    Cancelled,
    /// The model failed and can't be used any more.
    Fault {
        /// The problem that was worked on.
        problem_id: String,
        /// The failure.
        message: String,
    },
}

impl RunReport {
    /// Problems whose right answer is known.
    pub fn n_known(&self) -> usize {
        self.problems.iter().filter(|p| p.expected.is_some()).count()
    }

    /// Problems answered as expected. A default answer that happens to be right doesn't count.
    pub fn n_correct(&self) -> usize {
        self.problems.iter().filter(|p| p.correct() == Some(true)).count()
    }

    /// Share of the known problems that are right; none where none is known.
    pub fn accuracy(&self) -> Option<f64> {
        let n_known = self.n_known();
        (n_known > 0).then(|| self.n_correct() as f64 / n_known as f64)
    }

    /// Tokens written by all attempts.
    pub fn generated_tokens(&self) -> usize {
        self.problems.iter().map(|p| p.generated_tokens()).sum()
    }
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProblemReport {
    /// Its id.
    pub id: String,
    /// What was chosen; none where nobody answered and the default stands.
    pub answer: Option<i64>,
    /// The right answer, where it is known.
    pub expected: Option<i64>,
    /// All votes.
    pub votes: VoteTable,
    /// What the model chose between answers that differ, where that was asked for.
    #[serde(default)]
    pub selection: Option<Selection>,
    /// Why work on it ended.
    pub stop: ProblemStop,
    /// Wall-clock time.
    pub elapsed_s: f64,
    /// Its attempts, by number.
    pub attempts: Vec<AttemptReport>,
}

impl ProblemReport {
    pub(crate) fn new(problem: &Problem, solved: &Solved) -> ProblemReport {
        ProblemReport {
            id: problem.id.clone(),
            answer: solved.selection.as_ref().map(|s| s.answer).or(solved.votes.winner()),
            expected: problem.answer,
            votes: solved.votes.clone(),
            selection: solved.selection.clone(),
            stop: solved.stop,
            elapsed_s: solved.elapsed.as_secs_f64(),
            attempts: solved.attempts.iter().map(AttemptReport::new).collect(),
        }
    }

    /// What a problem comes to by the attempts that have ended, before it has ended itself.
    pub(crate) fn of_attempts(
        problem: &Problem,
        options: &SolverOptions,
        attempts: Vec<AttemptReport>,
    ) -> ProblemReport {
        let ballots = attempts.iter().filter_map(|a| {
            let AttemptEnd::Answer { answer } = a.end else { return None };
            let (confidence, verified) = (a.confidence, a.verified == Some(true));
            Some(Ballot { attempt: a.number, answer, confidence, verified })
        });
        let votes = options.counting().count(ballots);
        ProblemReport {
            answer: votes.winner(),
            votes,
            stop: ProblemStop::Cancelled,
            elapsed_s: attempts.iter().map(|a| a.elapsed_s).fold(0.0, f64::max),
            attempts,
            ..ProblemReport::not_reached(problem)
        }
    }

    pub(crate) fn not_reached(problem: &Problem) -> ProblemReport {
        ProblemReport {
            id: problem.id.clone(),
            answer: None,
            expected: problem.answer,
            votes: VoteTable::default(),
            selection: None,
            stop: ProblemStop::NotReached,
            elapsed_s: 0.0,
            attempts: Vec::new(),
        }
    }

    /// Whether the vote chose the right answer, where that is known.
    pub fn correct(&self) -> Option<bool> {
        self.expected.map(|expected| self.answer == Some(expected))
    }

    /// Tokens written by its attempts, and by judges between them.
    pub fn generated_tokens(&self) -> usize {
        let judged = self.selection.iter().flat_map(|s| &s.judgements).map(|j| j.generated_tokens);
        self.attempts.iter().map(|a| a.generated_tokens).chain(judged).sum()
    }

    /// Python blocks that its attempts ran.
    pub fn tool_calls(&self) -> usize {
        self.attempts.iter().map(|a| a.tool_calls).sum()
    }

    /// Those among them that failed.
    pub fn tool_errors(&self) -> usize {
        self.attempts.iter().map(|a| a.tool_errors).sum()
    }
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// From 1.
    pub number: usize,
    /// Seed of its sampling and its Python session.
    pub seed: u64,
    /// How it ended.
    pub end: AttemptEnd,
    /// Tokens that it wrote.
    pub generated_tokens: usize,
    /// Tokens that it was given: prompt, tool output, follow-up turns.
    pub given_tokens: usize,
    /// Python blocks that ran.
    pub tool_calls: usize,
    /// Those among them that failed.
    pub tool_errors: usize,
    /// Time in Python.
    pub tool_s: f64,
    /// Mean natural log-probability of its tokens.
    pub mean_logprob: f64,
    /// Confidence of its last tokens, see [`crate::confidence`].
    pub confidence: f64,
    /// The lowest confidence of any window of its tokens.
    pub lowest_confidence: f64,
    /// Whether running its code again printed its answer; none where that wasn't tried.
    pub verified: Option<bool>,
    /// Wall-clock time.
    pub elapsed_s: f64,
    /// Boxes that didn't count, with the reason.
    pub rejected: Vec<String>,
}

impl AttemptReport {
    pub(crate) fn new(attempt: &Attempt) -> AttemptReport {
        AttemptReport {
            number: attempt.number,
            seed: attempt.seed,
            end: attempt.end.clone().unwrap_or(AttemptEnd::Cancelled),
            generated_tokens: attempt.generated_tokens,
            given_tokens: attempt.given_tokens,
            tool_calls: attempt.tool_calls,
            tool_errors: attempt.tool_errors,
            tool_s: attempt.tool_ms as f64 / 1000.0,
            mean_logprob: attempt.mean_logprob(),
            confidence: attempt.confidence.mean(),
            lowest_confidence: attempt.confidence.lowest(),
            verified: attempt.verified,
            elapsed_s: attempt.elapsed().as_secs_f64(),
            rejected: attempt.rejected.clone(),
        }
    }
}
