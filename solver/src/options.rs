//! Every setting of a run with its default, and the checks that need nothing but the settings.
//!
//! Owns no behaviour. The command line fills a [`SolverOptions`]; reports store it whole, so that a run can be
//! repeated. Each limit is a hard bound: what a model writes can't stretch it.

use engine::chat::harmony::ReasoningEffort;
use sandbox::Limits;
use serde::{Deserialize, Deserializer, Serialize};

use crate::answer::AnswerRange;
use crate::clock::budget::BudgetOptions;
use crate::confidence::PruneOptions;
use crate::model::SamplerParams;
use crate::protocol::Protocol;
use crate::selection::Select;
use crate::vote::{Counting, DEFAULT_CAP, StopRule, VoteRule};

/// What the interpreter that is part of the program can import, as a model is told it.
pub const LIBRARIES: &str = "Python's standard library, sympy and mpmath";

/// How a run is carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SolverOptions {
    /// How the model calls Python. Default [`Protocol::Fenced`].
    pub protocol: Protocol,
    /// How long the model is asked to think, where it can be asked. Default: as the model has it.
    #[serde(default, deserialize_with = "effort")]
    pub reasoning: Option<ReasoningEffort>,
    /// Attempts per problem. Default 4.
    pub attempts: usize,
    /// Answers that count. Default `0..99999`.
    pub answer_range: AnswerRange,
    /// Answer written for a problem without any vote. Default 0.
    pub default_answer: i64,
    /// Tokens that one attempt may generate (tool output isn't counted). Default `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// The model is told of no Python, and what it writes is never run. Default off.
    #[serde(default)]
    pub no_python: bool,
    /// Python blocks that one attempt may run. Default 6.
    pub max_turns: usize,
    /// What the model is told that it can import. Default [`LIBRARIES`], which the built-in interpreter has.
    #[serde(default = "default_libraries")]
    pub libraries: String,
    /// Limits of each Python block. Default 6 s, 1 GiB, 64 KiB of output.
    #[serde(with = "LimitFields")]
    pub python: Limits,
    /// Characters of a block's output that the model gets to see; head and tail are kept. Default 2048.
    pub output_chars: usize,
    /// When a problem may end before all its attempts have. Default [`StopRule::Unbeatable`].
    pub stop: StopRule,
    /// Sampling of every attempt; its seed is replaced by the attempt's own.
    pub sampling: SamplerParams,
    /// Seed of the run, from which each attempt's is derived. Default 0.
    pub seed: u64,
    /// What decides the vote. Default [`VoteRule::Majority`].
    pub vote: VoteRule,
    /// Confidence that counts in full. Default 20.
    pub confidence_cap: f64,
    /// Cuts attempts short that are less sure than the earlier ones. Default off.
    pub prune: Option<PruneOptions>,
    /// Runs an answer's code again in a fresh session; where it prints the answer, the vote counts twice. Default off.
    pub verify: bool,
    /// What chooses between answers that differ. Default [`Select::Vote`].
    #[serde(default)]
    pub select: Select,
    /// Judges where the model chooses. Default 4.
    #[serde(default = "default_select_votes")]
    pub select_votes: usize,
    /// Time limits. Default none.
    pub budget: BudgetOptions,
}

impl Default for SolverOptions {
    fn default() -> Self {
        SolverOptions {
            protocol: Protocol::default(),
            reasoning: None,
            attempts: 4,
            answer_range: AnswerRange::default(),
            default_answer: 0,
            max_tokens: None,
            no_python: false,
            max_turns: 6,
            libraries: default_libraries(),
            python: Limits::default(),
            output_chars: 2048,
            stop: StopRule::Unbeatable,
            sampling: SamplerParams::default(),
            seed: 0,
            vote: VoteRule::Majority,
            confidence_cap: DEFAULT_CAP,
            prune: None,
            verify: false,
            select: Select::Vote,
            select_votes: default_select_votes(),
            budget: BudgetOptions::default(),
        }
    }
}

fn default_libraries() -> String {
    LIBRARIES.to_string()
}

fn default_select_votes() -> usize {
    4
}

/// Reads a reasoning effort by its name: the engine only writes it.
pub fn effort<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ReasoningEffort>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    let parse = |name: String| {
        name.parse().map_err(|_| serde::de::Error::custom(format!("no reasoning effort is called {name:?}")))
    };
    name.map(parse).transpose()
}

/// The sandbox knows no serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Limits")]
struct LimitFields {
    time_ms: u64,
    memory_bytes: u64,
    output_bytes: usize,
    grace_ms: u64,
    n_calls: u64,
    /// Journals from before it was there have none.
    #[serde(default)]
    allow_clock: bool,
}

/// Most attempts per problem: a bound on memory, far above what one machine can serve.
pub const MAX_ATTEMPTS: usize = 4096;

impl SolverOptions {
    /// Checks what can be checked without a model or a file.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let at_least = |name, found: usize, min| {
            if found < min { Err(OptionsError::TooSmall { name, found, min }) } else { Ok(()) }
        };
        at_least("attempts", self.attempts, 1)?;
        at_least("max-tokens", self.token_limit(), 1)?;
        at_least("output characters", self.output_chars, 64)?;
        at_least("python timeout (ms)", usize::try_from(self.python.time_ms).unwrap_or(usize::MAX), 1)?;
        let at_most = |name, found: usize, max| {
            if found > max { Err(OptionsError::TooLarge { name, found, max }) } else { Ok(()) }
        };
        at_most("attempts", self.attempts, MAX_ATTEMPTS)?;
        at_least("select-votes", self.select_votes, 1)?;
        at_most("select-votes", self.select_votes, MAX_ATTEMPTS)?;
        if let StopRule::FirstK(k) = self.stop {
            at_most("first-k", k, self.attempts)?;
        }
        if !(self.confidence_cap.is_finite() && self.confidence_cap > 0.0) {
            return Err(OptionsError::ConfidenceCap { found: self.confidence_cap });
        }
        if !self.answer_range.contains(self.default_answer) {
            return Err(OptionsError::DefaultAnswer { found: self.default_answer, range: self.answer_range });
        }
        Ok(())
    }

    /// Tokens that one attempt may generate, should the context hold so many.
    pub fn token_limit(&self) -> usize {
        self.max_tokens.unwrap_or(usize::MAX)
    }

    /// How ballots are counted.
    pub fn counting(&self) -> Counting {
        Counting { rule: self.vote, confidence_cap: self.confidence_cap, verifies: self.verify }
    }
}

/// A setting outside its limits.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Below the smallest value that makes sense.
    #[error("{name} is {found}; it must be at least {min}")]
    TooSmall {
        /// Setting.
        name: &'static str,
        /// Value given.
        found: usize,
        /// Smallest value allowed.
        min: usize,
    },
    /// Above the largest value that memory is planned for.
    #[error("{name} is {found}; it must be at most {max}")]
    TooLarge {
        /// Setting.
        name: &'static str,
        /// Value given.
        found: usize,
        /// Largest value allowed.
        max: usize,
    },
    /// Confidence is a positive number of nats.
    #[error("the confidence cap is {found}; it must be a number above 0")]
    ConfidenceCap {
        /// Value given.
        found: f64,
    },
    /// The answer for unsolved problems would itself be refused.
    #[error("the default answer {found} is outside the answer range {range}")]
    DefaultAnswer {
        /// Value given.
        found: i64,
        /// Range in force.
        range: AnswerRange,
    },
}

/// Seed of one attempt: depends on the run's seed, the problem's id and the attempt's number only, so that neither
/// the order of problems nor the scheduling of attempts changes what is sampled.
pub fn attempt_seed(run_seed: u64, problem_id: &str, attempt: usize) -> u64 {
    // FNV-1a over the id, then SplitMix64's finaliser over each ingredient.
    let id = problem_id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mix = |z: u64| {
        let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    mix(mix(mix(run_seed) ^ id) ^ attempt as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ_in_every_ingredient_and_repeat() {
        let base = attempt_seed(1, "a", 1);
        assert_eq!(base, attempt_seed(1, "a", 1));
        for other in [attempt_seed(2, "a", 1), attempt_seed(1, "b", 1), attempt_seed(1, "a", 2)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn options_are_the_same_after_they_were_written_and_read() {
        let options = SolverOptions {
            stop: StopRule::FirstK(3),
            prune: Some(PruneOptions::default()),
            seed: u64::MAX,
            budget: BudgetOptions { limit_ms: Some(18_000_000), ..BudgetOptions::default() },
            ..SolverOptions::default()
        };
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<SolverOptions>(&text).unwrap(), options);
    }

    #[test]
    fn limits_are_checked_with_the_name_of_the_setting() {
        assert_eq!(SolverOptions::default().validate(), Ok(()));
        let none = SolverOptions { attempts: 0, ..SolverOptions::default() };
        assert_eq!(none.validate(), Err(OptionsError::TooSmall { name: "attempts", found: 0, min: 1 }));
        let many = SolverOptions { attempts: 1 << 40, ..SolverOptions::default() };
        assert!(matches!(many.validate(), Err(OptionsError::TooLarge { name: "attempts", .. })));
        let first = SolverOptions { stop: StopRule::FirstK(5), ..SolverOptions::default() };
        assert_eq!(first.validate().unwrap_err().to_string(), "first-k is 5; it must be at most 4");
        let cap = SolverOptions { confidence_cap: f64::NAN, ..SolverOptions::default() };
        assert!(matches!(cap.validate(), Err(OptionsError::ConfidenceCap { .. })));
        let outside = SolverOptions { default_answer: -1, ..SolverOptions::default() };
        assert_eq!(
            outside.validate().unwrap_err().to_string(),
            "the default answer -1 is outside the answer range 0..99999"
        );
    }
}
