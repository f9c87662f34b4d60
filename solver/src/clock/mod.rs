//! Time as a run sees it: a clock that only goes forward, and the plan that shares it out over the problems.
//!
//! Nothing in the solver that decides anything asks the wall clock: a machine whose date is set back in the middle of
//! a run would get an endless one. Tests use [`FakeClock`]. Called by `run` and `rollout`.

pub mod budget;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time since the run began; never decreases.
pub trait Clock: Send + Sync {
    /// Time since the run began.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct MonotonicClock {
    started: Instant,
    /// What earlier processes of the same run have used.
    used: Duration,
}

impl MonotonicClock {
    /// A clock that began at `started`.
    pub fn since(started: Instant) -> MonotonicClock {
        MonotonicClock { started, used: Duration::ZERO }
    }

    /// The clock of a run that goes on after `used`.
    pub fn resumed(started: Instant, used: Duration) -> MonotonicClock {
        MonotonicClock { started, used }
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.used + self.started.elapsed()
    }
}

/// A clock that stands still until it is moved; clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeClock(Arc<AtomicU64>);

impl FakeClock {
    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst))
    }
}
