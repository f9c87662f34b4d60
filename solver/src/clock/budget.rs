//! How much time each problem gets: a base for everyone, a bonus out of what earlier problems left in the bank, a floor
//! that is kept back for every problem still to come, and a reserve at the end of the run in which nothing is begun.
//!
//! With `left` the time to the hard stop and `others` the problems after this one:
//! `budget = clamp(base + min(bonus, bank), floor, left − floor · others)`, and an equal share of `left` once the floors
//! can't be kept any more. The hard stop is `limit − reserve`. Owns no clock. Called by `run`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The time settings of a run, in milliseconds. What is missing gets a default from the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BudgetOptions {
    /// Limit of the whole run, from the start of the program.
    pub limit_ms: Option<u64>,
    /// Most that any problem gets, whatever is in the bank.
    pub problem_ms: Option<u64>,
    /// What a problem gets without a bonus. Default: an equal share.
    pub base_ms: Option<u64>,
    /// Most that a problem gets from the bank on top. Default: the base once more.
    pub bonus_ms: Option<u64>,
    /// What is kept back for every problem still to come. Default: half the base.
    pub floor_ms: Option<u64>,
    /// Time before the limit in which nothing is computed. Default: 1 % of the limit, 1 to 60 s, at most a tenth.
    pub reserve_ms: Option<u64>,
}

/// The plan of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// None where the run has no limit.
    run: Option<RunPlan>,
    problem: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RunPlan {
    usable: Duration,
    n_problems: u32,
    base: Duration,
    bonus: Duration,
    floor: Duration,
}

impl Plan {
    /// The plan for `n_problems`, which may be an estimate.
    pub fn new(options: &BudgetOptions, n_problems: usize) -> Plan {
        let ms = Duration::from_millis;
        let n_problems = u32::try_from(n_problems.max(1)).unwrap_or(u32::MAX);
        let run = options.limit_ms.map(|limit_ms| {
            let usable = ms(limit_ms - reserve_ms(options, limit_ms));
            let base = options.base_ms.map_or(usable / n_problems, ms);
            let bonus = options.bonus_ms.map_or(base, ms);
            let floor = options.floor_ms.map_or(base / 2, ms);
            RunPlan { usable, n_problems, base, bonus, floor }
        });
        Plan { run, problem: options.problem_ms.map(ms) }
    }

    /// When the run stops, whatever it is doing.
    pub fn hard_stop(&self) -> Option<Duration> {
        self.run.map(|r| r.usable)
    }

    /// What the next problem gets, `elapsed` after the start with `n_done` problems behind it. None without limits.
    pub fn budget(&self, elapsed: Duration, n_done: usize) -> Option<Duration> {
        let share = self.run.map(|r| r.budget(elapsed, u32::try_from(n_done).unwrap_or(u32::MAX)));
        [share, self.problem].into_iter().flatten().min()
    }
}

impl RunPlan {
    fn budget(&self, elapsed: Duration, n_done: u32) -> Duration {
        let left = self.usable.saturating_sub(elapsed);
        let others = self.n_problems.saturating_sub(n_done).saturating_sub(1);
        let bank = self.base.saturating_mul(n_done).saturating_sub(elapsed);
        let most = left.saturating_sub(self.floor.saturating_mul(others));
        if most < self.floor {
            return left / (others + 1);
        }
        (self.base.saturating_add(self.bonus.min(bank))).clamp(self.floor, most)
    }
}

fn reserve_ms(options: &BudgetOptions, limit_ms: u64) -> u64 {
    let default = (limit_ms / 100).clamp(1_000, 60_000).min(limit_ms / 10);
    options.reserve_ms.unwrap_or(default).min(limit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn plan(limit_s: u64, base: u64, bonus: u64, floor: u64, n: usize) -> Plan {
        let ms = |s: u64| Some(s * 1000);
        let options = BudgetOptions {
            limit_ms: ms(limit_s),
            base_ms: ms(base),
            bonus_ms: ms(bonus),
            floor_ms: ms(floor),
            reserve_ms: Some(0),
            ..BudgetOptions::default()
        };
        Plan::new(&options, n)
    }

    #[test]
    fn a_problem_gets_the_base_then_what_others_left_up_to_the_bonus() {
        let plan = plan(17_500, 350, 210, 60, 50);
        assert_eq!(plan.budget(Duration::ZERO, 0), Some(350 * S), "nothing in the bank yet");
        assert_eq!(plan.budget(100 * S, 1), Some(560 * S), "250 in the bank, 210 at most");
        assert_eq!(plan.budget(300 * S, 1), Some(400 * S), "50 in the bank");
        assert_eq!(plan.budget(1000 * S, 1), Some(350 * S), "a debt isn't taken from the next");
    }

    #[test]
    fn floors_are_kept_for_problems_still_to_come() {
        let plan = plan(1000, 500, 500, 100, 5);
        assert_eq!(plan.budget(Duration::ZERO, 0), Some(500 * S), "4 floors fit behind it");
        assert_eq!(plan.budget(500 * S, 1), Some(200 * S), "500 left, 300 kept for three");
        assert_eq!(plan.budget(700 * S, 2), Some(100 * S));
        assert_eq!(plan.budget(800 * S, 3), Some(100 * S));
        assert_eq!(plan.budget(900 * S, 4), Some(100 * S));
        assert_eq!(plan.budget(960 * S, 3), Some(20 * S), "an equal share once floors can't be kept");
        assert_eq!(plan.budget(2000 * S, 4), Some(Duration::ZERO));
    }

    #[test]
    fn defaults_come_from_the_limit() {
        let options = BudgetOptions { limit_ms: Some(18_000_000), ..BudgetOptions::default() };
        let plan = Plan::new(&options, 50);
        assert_eq!(plan.hard_stop(), Some(17_940 * S), "60 s kept back of 5 h");
        assert_eq!(plan.budget(Duration::ZERO, 0), Some(17_940 * S / 50));
        let short = BudgetOptions { limit_ms: Some(300), ..options };
        assert_eq!(Plan::new(&short, 3).hard_stop(), Some(Duration::from_millis(270)), "a tenth at most");
        let own = BudgetOptions { limit_ms: None, problem_ms: Some(7000), ..options };
        assert_eq!(Plan::new(&own, 3).budget(100 * S, 1), Some(7 * S));
        assert_eq!(Plan::new(&BudgetOptions::default(), 3).budget(S, 0), None);
        let more_than_expected = Plan::new(&options, 2);
        assert_eq!(more_than_expected.budget(17_000 * S, 9), Some(940 * S), "the estimate was too low");
    }

    /// Whatever problems do with their budgets, the run ends in time and nobody falls under the floor.
    #[test]
    fn no_order_of_short_and_long_problems_breaks_the_plan() {
        let mut state = 1u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..2000 {
            let n = 1 + draw(40) as usize;
            let limit = 1 + draw(20_000);
            let base = draw(2 * limit / n as u64 + 2);
            let floor = draw(limit / n as u64 + 1);
            let plan = plan(limit, base, draw(limit + 1), floor, n);
            let mut elapsed = Duration::ZERO;
            for done in 0..n {
                let budget = plan.budget(elapsed, done).unwrap();
                assert!(budget >= Duration::from_secs(floor), "{budget:?} < {floor} s at problem {done} of {n}");
                let used = if draw(2) == 0 { budget } else { budget.mul_f64(draw(100) as f64 / 100.0) };
                elapsed += used;
                assert!(elapsed <= plan.hard_stop().unwrap(), "{elapsed:?} of {limit} s after {done}");
            }
        }
    }
}
