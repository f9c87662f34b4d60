//! What ends a call when its time is over: one alarm clock for all of them.
//!
//! The clock is a thread that sleeps until something is due in one of the running calls, and then uses that call's
//! brake. Called by `session` around each call. Surprising fact: a call that ends leaves the clock asleep, and one that
//! begins wakes it only if it has to look earlier than it would anyway.

use crate::brake::Brake;
use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Instant,
};

/// A running call that the clock looks after until this is dropped.
pub(crate) struct Alarm {
    number: u64,
}

struct Clock {
    calls: Mutex<Calls>,
    has_earlier: Condvar,
}

#[derive(Default)]
struct Calls {
    /// By the moment at which something is due; the number tells calls apart.
    brakes: BTreeMap<(Instant, u64), Arc<Brake>>,
    n_set: u64,
    /// When the clock looks again by itself; mostly for a call that has ended since, so that a new one need not wake it.
    looks_at: Option<Instant>,
}

impl Alarm {
    /// Rings `brake` at its deadlines, and then again until the call has ended.
    pub(crate) fn set(brake: &Arc<Brake>) -> Alarm {
        let clock = clock();
        let mut calls = clock.lock();
        calls.n_set += 1;
        let number = calls.n_set;
        let key = (brake.next(), number);
        let is_earlier = calls.looks_at.is_none_or(|at| key.0 < at);
        calls.brakes.insert(key, Arc::clone(brake));
        drop(calls);
        if is_earlier {
            clock.has_earlier.notify_one();
        }
        Alarm { number }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        clock().lock().brakes.retain(|(_, number), _| *number != self.number);
    }
}

impl Clock {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut calls = self.lock();
        loop {
            let now = Instant::now();
            while let Some(first) = calls.brakes.first_entry().filter(|first| first.key().0 <= now) {
                let ((_, number), brake) = first.remove_entry();
                calls.brakes.insert((brake.ring(now), number), brake);
            }
            calls.looks_at = calls.brakes.first_key_value().map(|((due, _), _)| *due);
            calls = match calls.looks_at.map(|due| due - now) {
                Some(wait) => self.has_earlier.wait_timeout(calls, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.has_earlier.wait(calls).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn clock() -> &'static Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    static STARTED: OnceLock<()> = OnceLock::new();
    let clock = CLOCK.get_or_init(|| Clock { calls: Mutex::default(), has_earlier: Condvar::new() });
    STARTED.get_or_init(|| {
        let thread = thread::Builder::new().name("python-alarm".into()).spawn(|| clock.run());
        drop(thread.expect("a thread for the clock"));
    });
    clock
}
