//! Things that are made ahead of time, so that whoever needs one doesn't wait: fresh instances, worker processes.
//!
//! One thread makes them, one at a time, and sleeps while there are enough. Called by `python` and `worker`.
//! Surprising fact: nothing here can fail. What can't be made ahead is made, and its error met, when it is needed.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// How long after a failure the next attempt is made.
const RETRY: Duration = Duration::from_secs(1);

/// Some `T`s, ready to be taken.
pub(crate) struct Warm<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    ready: Vec<T>,
    n_wanted: usize,
    is_started: bool,
    is_closed: bool,
}

impl<T> Shared<T> {
    /// Poisoning says nothing: a push or a pop leaves a whole list behind.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Warm<T> {
    /// Keeps none, until `keep` is called.
    pub(crate) fn new() -> Warm<T> {
        let state = State { ready: Vec::new(), n_wanted: 0, is_started: false, is_closed: false };
        Warm { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// Keeps `n` from now on, made by `make`, which must not hold what owns this.
    pub(crate) fn keep(&self, n: usize, make: impl Fn() -> Option<T> + Send + 'static) {
        let mut state = self.shared.lock();
        state.n_wanted = n;
        state.ready.truncate(n);
        if n > 0 && !state.is_started {
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new().name("python-warm".into()).spawn(move || fill(&shared, make));
            state.is_started = thread.is_ok();
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// One that is ready.
    pub(crate) fn take(&self) -> Option<T> {
        let taken = self.shared.lock().ready.pop();
        self.shared.changed.notify_all();
        taken
    }

    /// How many are ready.
    #[cfg(test)]
    pub(crate) fn n_ready(&self) -> usize {
        self.shared.lock().ready.len()
    }
}

impl<T> Drop for Warm<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        let unused = std::mem::take(&mut state.ready);
        drop(state);
        self.shared.changed.notify_all();
        drop(unused);
    }
}

fn fill<T>(shared: &Shared<T>, make: impl Fn() -> Option<T>) {
    loop {
        let mut state = shared.lock();
        while !state.is_closed && state.ready.len() >= state.n_wanted {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return;
        }
        drop(state);
        let made = make();
        let mut state = shared.lock();
        match made {
            // Fewer may be wanted by now.
            Some(made) if !state.is_closed && state.ready.len() < state.n_wanted => state.ready.push(made),
            Some(unwanted) => {
                drop(state);
                drop(unwanted);
            }
            None if state.is_closed => return,
            None => drop(shared.changed.wait_timeout(state, RETRY)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Instant,
    };

    fn until(done: impl Fn() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < Duration::from_secs(60), "it never happened");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn as_many_as_wanted_are_kept() {
        let n_made = Arc::new(AtomicUsize::new(0));
        let warm = Warm::new();
        assert!(warm.take().is_none());
        let counter = Arc::clone(&n_made);
        warm.keep(3, move || Some(counter.fetch_add(1, Relaxed)));
        until(|| warm.n_ready() == 3);
        assert!(warm.take().is_some());
        until(|| n_made.load(Relaxed) == 4 && warm.n_ready() == 3);
        warm.keep(0, || None);
        assert_eq!(warm.n_ready(), 0);
    }

    #[test]
    fn the_thread_ends_with_its_owner() {
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        let warm = Warm::new();
        warm.keep(1, move || Some(Arc::clone(&alive)));
        until(|| warm.n_ready() == 1);
        drop(warm);
        until(|| watched.upgrade().is_none());
    }

    #[test]
    fn a_failure_is_no_end() {
        let n_tries = AtomicUsize::new(0);
        let warm = Warm::new();
        warm.keep(1, move || (n_tries.fetch_add(1, Relaxed) > 0).then_some(()));
        until(|| warm.n_ready() == 1);
    }
}
