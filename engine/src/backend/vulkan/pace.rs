//! How much work goes into one submit: what the device is expected to do in the time budget. The expectation begins with
//! a guess (the tuning's) and follows what submits were measured to take, bytes and operations apart, since a decoded
//! token is bound by the one and a prompt by the other.
//!
//! Slower than expected counts at once, faster only by half: too much in a submit makes a system reset the GPU, too
//! little costs tens of microseconds. Of a device without a clock only the processor's is known: a submit that was over
//! before anybody looked took that long at most. Knows no Vulkan; `commands` asks it and tells it.

use super::commands::Cost;

/// What is held for less than this share of the budget says more of starting a submit than of its work.
const LEAST_SHARE: f64 = 0.02;
/// Most that one measurement changes: a submit that was held up by something else is no rule.
const MOST_CHANGE: f64 = 8.0;
/// Share of the budget that is filled as long as nothing was measured.
const FIRST_SHARE: f64 = 0.125;
/// Budgets that a pass of single tokens may take: it stays one submit, and still under the second at which systems begin
/// to worry.
const WHOLE_BUDGETS: f64 = 5.0;

/// The work of submits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    budget_seconds: f64,
    seconds_per_byte: f64,
    seconds_per_flop: f64,
    measured: bool,
}

impl Pace {
    /// `guess` is the work that is expected to take all of the budget, if it is all bytes or all operations.
    pub fn new(budget_seconds: f64, guess: Cost) -> Pace {
        let bytes = (guess.read_bytes.max(guess.written_bytes)).max(1);
        Pace {
            budget_seconds,
            seconds_per_byte: budget_seconds / bytes as f64,
            seconds_per_flop: budget_seconds / guess.flops.max(1) as f64,
            measured: false,
        }
    }

    /// What the work is expected to take.
    pub fn seconds(&self, work: Cost) -> f64 {
        let [bytes, flops] = self.parts(work);
        bytes + flops
    }

    /// Whether so much work is enough for a submit; `whole`: of a pass that should be one.
    pub fn is_full(&self, work: Cost, whole: bool) -> bool {
        let budgets = match (whole, self.measured) {
            (true, _) => WHOLE_BUDGETS,
            (false, true) => 1.0,
            (false, false) => FIRST_SHARE,
        };
        self.seconds(work) >= self.budget_seconds * budgets
    }

    /// Learns that `work` took so long.
    pub fn observe(&mut self, work: Cost, seconds: f64) {
        let expected = self.seconds(work);
        if expected <= 0.0 || seconds.max(expected) < LEAST_SHARE * self.budget_seconds {
            return;
        }
        self.measured = true;
        let ratio = (seconds / expected).clamp(1.0 / MOST_CHANGE, MOST_CHANGE);
        let ratio = if ratio < 1.0 { ratio.sqrt() } else { ratio };
        // Each part takes the blame for as much as it was expected to take.
        let [bytes, flops] = self.parts(work);
        self.seconds_per_byte *= ratio.powf(bytes / expected);
        self.seconds_per_flop *= ratio.powf(flops / expected);
    }

    /// Learns that `work` took no longer than this: what is known of a submit that was over before anybody looked.
    pub fn observe_at_most(&mut self, work: Cost, seconds: f64) {
        if seconds < self.seconds(work) {
            self.observe(work, seconds);
        }
    }

    fn parts(&self, work: Cost) -> [f64; 2] {
        [
            (work.read_bytes + work.written_bytes) as f64 * self.seconds_per_byte,
            work.flops as f64 * self.seconds_per_flop,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: f64 = 0.2;

    fn guess() -> Cost {
        Cost { read_bytes: 40_000_000_000, written_bytes: 40_000_000_000, flops: 400_000_000_000 }
    }

    /// A device that moves bytes and computes at rates of its own, one after the other.
    #[derive(Clone, Copy)]
    struct Device {
        bytes_per_second: f64,
        flops_per_second: f64,
    }

    impl Device {
        fn seconds(self, work: Cost) -> f64 {
            (work.read_bytes + work.written_bytes) as f64 / self.bytes_per_second
                + work.flops as f64 / self.flops_per_second
        }

        /// Runs a pass of `n` ops, cut as `pace` says, and tells it what each submit took, as late as the real one
        /// does: two submits later. Gives the seconds of each.
        fn run(self, pace: &mut Pace, op: Cost, n: usize, whole: bool) -> Vec<f64> {
            let (mut submits, mut work) = (Vec::new(), Cost::default());
            let mut told = 0;
            for i in 0..n {
                work.add(op);
                if pace.is_full(work, whole) || i + 1 == n {
                    submits.push(work);
                    work = Cost::default();
                    if submits.len() >= told + 2 {
                        pace.observe(submits[told], self.seconds(submits[told]));
                        told += 1;
                    }
                }
            }
            submits[told..].iter().for_each(|&s| pace.observe(s, self.seconds(s)));
            submits.into_iter().map(|s| self.seconds(s)).collect()
        }
    }

    /// A product of a prompt's 512 tokens, and one of a single token.
    fn prompt_op() -> Cost {
        Cost { read_bytes: 10_000_000, written_bytes: 4_000_000, flops: 2 * 512 * 4096 * 4096 }
    }

    fn token_op() -> Cost {
        Cost { read_bytes: 10_000_000, written_bytes: 16_000, flops: 2 * 4096 * 4096 }
    }

    #[test]
    fn submits_keep_to_the_budget_whatever_the_device() {
        for speed in [0.02, 0.1, 0.5, 1.0, 3.0, 20.0] {
            let device = Device { bytes_per_second: 200e9 * speed, flops_per_second: 2e12 * speed };
            let mut pace = Pace::new(BUDGET, guess());
            let first = device.run(&mut pace, prompt_op(), 250, false);
            // An op is the least that a submit can hold.
            let most = BUDGET * 1.05 + device.seconds(prompt_op());
            let late = first.iter().skip(6).find(|&&s| s > most);
            assert_eq!(late, None, "speed {speed}: after six submits, of {first:?}");
            let later = (0..6).map(|_| device.run(&mut pace, prompt_op(), 250, false)).next_back().expect("a pass");
            assert!(later.iter().all(|&s| s <= most), "speed {speed}: {later:?}");
            let least = device.seconds(prompt_op()) * 250.0 / most;
            assert!(later.len() as f64 <= 1.5 * least + 2.0, "speed {speed}: {} submits for {least}", later.len());
        }
    }

    #[test]
    fn a_device_that_slows_down_is_followed_at_once() {
        let device = Device { bytes_per_second: 200e9, flops_per_second: 20e12 };
        let mut pace = Pace::new(BUDGET, guess());
        (0..8).for_each(|_| _ = device.run(&mut pace, prompt_op(), 1000, false));
        let slower = Device { bytes_per_second: 50e9, flops_per_second: 4e12 };
        let submits = slower.run(&mut pace, prompt_op(), 1000, false);
        assert!(submits[0] > 2.0 * BUDGET, "nothing was known of it yet: {submits:?}");
        let most = BUDGET * 1.1 + slower.seconds(prompt_op());
        assert!(submits.iter().skip(3).all(|&s| s <= most), "{submits:?}");
    }

    #[test]
    fn a_decoded_token_stays_one_submit() {
        let device = Device { bytes_per_second: 200e9, flops_per_second: 2e12 };
        let mut pace = Pace::new(BUDGET, guess());
        for round in 0..20 {
            let token = device.run(&mut pace, token_op(), 400, true);
            assert_eq!(token.len(), 1, "round {round}: {token:?}");
            device.run(&mut pace, prompt_op(), 250, false);
        }
        // Also after one that was held up: 20 ms of work that took two seconds.
        pace.observe(Cost { read_bytes: 4_000_000_000, ..Cost::default() }, 2.0);
        assert_eq!(device.run(&mut pace, token_op(), 400, true).len(), 1);
    }

    #[test]
    fn bytes_and_operations_are_told_apart() {
        let device = Device { bytes_per_second: 200e9, flops_per_second: 0.2e12 };
        let mut pace = Pace::new(BUDGET, guess());
        (0..4).for_each(|_| _ = device.run(&mut pace, prompt_op(), 250, false));
        let bytes = Cost { read_bytes: 20_000_000_000, ..Cost::default() };
        assert!(pace.seconds(bytes) < 0.2, "slow products do not make bytes slow: {}", pace.seconds(bytes));
    }

    #[test]
    fn an_upper_bound_can_only_say_that_the_device_is_faster() {
        let mut pace = Pace::new(BUDGET, guess());
        let work = Cost { read_bytes: 40_000_000_000, ..Cost::default() };
        let before = pace.seconds(work);
        pace.observe_at_most(work, 10.0 * before);
        assert_eq!(pace.seconds(work), before, "it was over sometime in these seconds");
        pace.observe_at_most(work, before / 4.0);
        assert!((pace.seconds(work) - before / 2.0).abs() < 1e-9, "faster counts by half");
    }

    #[test]
    fn what_is_too_short_to_measure_teaches_nothing() {
        let mut pace = Pace::new(BUDGET, guess());
        let work = Cost { read_bytes: 1_000_000, written_bytes: 0, flops: 1_000_000 };
        let before = pace.seconds(guess());
        pace.observe(work, 0.001);
        assert_eq!(pace.seconds(guess()), before);
        assert!(
            Pace::new(BUDGET, Cost::default()).is_full(Cost { flops: 1, ..Cost::default() }, false),
            "an empty guess"
        );
    }
}
