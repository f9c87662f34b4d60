//! The verifier pass: an attempt's blocks are run again in a fresh session, and its answer counts as verified where the
//! last block prints it. What the model only claims to have computed doesn't pass.
//!
//! Every block is run, since later ones use names of earlier ones; the last one's output is what counts. Called by
//! `rollout`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sandbox::{Limits, Outcome};

use crate::tool::{Interpreter, Workers, is_error};

/// Runs the code of attempts again; one slot per attempt.
pub struct Verifier {
    workers: Workers,
    slots: Vec<Option<Check>>,
}

struct Check {
    answer: i64,
    /// Blocks that come after the one that runs.
    rest: VecDeque<String>,
}

impl Verifier {
    /// One slot per seed; the sessions get the seeds that they had.
    pub fn new(python: Arc<dyn Interpreter>, limits: Limits, seeds: Vec<u64>) -> Verifier {
        let slots = seeds.iter().map(|_| None).collect();
        Verifier { workers: Workers::new(python, limits, seeds), slots }
    }

    /// Begins to run an attempt's blocks again; false where there are none.
    pub fn begin(&mut self, slot: usize, codes: Vec<String>, answer: i64) -> bool {
        let mut rest = VecDeque::from(codes);
        let Some(first) = rest.pop_front() else { return false };
        self.workers.call(slot, first);
        self.slots[slot] = Some(Check { answer, rest });
        true
    }

    /// The next verdict as slot and whether its answer was printed, waiting for it no longer than `wait`.
    pub fn poll(&mut self, wait: Duration) -> Option<(usize, bool)> {
        if !self.workers.is_busy() {
            return None;
        }
        let (slot, outcome) = self.workers.poll(wait)?;
        let check = self.slots[slot].as_mut()?;
        if let Some(code) = check.rest.pop_front() {
            self.workers.call(slot, code);
            return None;
        }
        let verified = prints(&outcome, check.answer);
        self.slots[slot] = None;
        Some((slot, verified))
    }
}

/// Whether the integer stands in the output as a number of its own.
fn prints(outcome: &Outcome, answer: i64) -> bool {
    if is_error(&outcome.status) {
        return false;
    }
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '-' | '.');
    let number = |token: &str| {
        let token = token.trim_end_matches('.');
        let token = token.strip_suffix(".0").unwrap_or(token);
        token.parse::<i64>() == Ok(answer)
    };
    outcome.output.split(|c| !is_number(c)).any(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePython;

    #[test]
    fn an_answer_is_found_as_a_number_of_its_own() {
        for (output, expected) in [
            ("42", true),
            ("The answer is 42.", true),
            ("x = 42.0", true),
            ("[1, 42, 7]", true),
            ("142 420 4.2", false),
            ("-42", false),
            ("", false),
        ] {
            assert_eq!(prints(&FakePython::ok(output), 42), expected, "{output}");
        }
        let failed = sandbox::Status::TimedOut { limit_ms: 1 };
        assert!(!prints(&FakePython::outcome(failed, "42"), 42));
        assert!(prints(&FakePython::ok("x: -7"), -7));
    }

    #[test]
    fn all_blocks_run_again_in_order_in_one_fresh_session() {
        let python = Arc::new(FakePython::new(|code, n| FakePython::ok(&format!("{code} {n}"))));
        let mut verifier = Verifier::new(python.clone(), Limits::default(), vec![1, 2]);
        assert!(!verifier.begin(0, Vec::new(), 5), "nothing to run");
        assert!(verifier.begin(1, vec!["a".into(), "b".into(), "c".into()], 3));
        let verdict = loop {
            if let Some(verdict) = verifier.poll(Duration::from_secs(20)) {
                break verdict;
            }
        };
        assert_eq!(verdict, (1, true), "the third block says 3");
        assert_eq!(python.codes(), ["a", "b", "c"]);
        assert_eq!(python.n_sessions(), 1);
    }
}
