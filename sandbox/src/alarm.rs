//! Where a call runs and what ends it: threads with stacks large enough for the interpreter, and one alarm clock.
//!
//! A call that comes from an ordinary thread is handed to a kept one; a call from a thread that was made by
//! [`on_large_stack`] (a worker process has only that) runs where it is. The clock is a thread that sleeps until something
//! is due in one of the running calls, and then uses that call's brake.
//! Called by `session` and `snapshot`. Surprising fact: a kept thread gives the depths of its stack back after each
//! call, since a deep recursion would else hold a hundred megabytes for as long as the program runs.

use std::{
    cell::Cell,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Sender, channel},
    },
    thread,
    time::Instant,
};

use crate::{brake::Brake, python::STACK_BYTES};

/// Idle threads that are kept. More calls at once than that start threads of their own.
const MAX_IDLE: usize = 16;
/// Stack that an idle thread keeps.
#[cfg(target_os = "linux")]
const KEPT_STACK_BYTES: usize = 256 << 10;

thread_local! {
    /// Set in threads whose stack is [`STACK_BYTES`] long.
    static HAS_LARGE_STACK: Cell<bool> = const { Cell::new(false) };
}

/// Work for a kept thread; what it returns is run once the thread can be asked again.
type Job = Box<dyn FnOnce() -> Box<dyn FnOnce() + Send> + Send>;

/// Threads that wait for work. Poisoning says nothing here: a push or a pop leaves a whole list behind.
fn idle() -> MutexGuard<'static, Vec<Sender<Job>>> {
    static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `act` with a stack of [`STACK_BYTES`] below it.
pub(crate) fn on_large_stack<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    if HAS_LARGE_STACK.get() {
        let result = act();
        release_stack();
        return result;
    }
    let (sender, receiver) = channel();
    let job: Job = Box::new(move || {
        let result = catch_unwind(AssertUnwindSafe(act));
        // The receiver waits until this is sent.
        Box::new(move || drop(sender.send(result)))
    });
    let thread = idle().pop().unwrap_or_else(start);
    thread.send(job).expect("an idle thread waits for work");
    receiver.recv().expect("the thread answers").unwrap_or_else(|panic| resume_unwind(panic))
}

/// A new thread that does jobs.
fn start() -> Sender<Job> {
    let (sender, jobs) = channel::<Job>();
    let itself = sender.clone();
    let work = move || {
        HAS_LARGE_STACK.set(true);
        while let Ok(job) = jobs.recv() {
            let finish = job();
            release_stack();
            let mut idle = idle();
            let is_kept = idle.len() < MAX_IDLE;
            if is_kept {
                idle.push(itself.clone());
            }
            drop(idle);
            finish();
            if !is_kept {
                return;
            }
        }
    };
    let started = thread::Builder::new().name("python".into()).stack_size(STACK_BYTES).spawn(work);
    started.expect("a thread for the interpreter");
    sender
}

/// Gives the pages of this thread's stack back that lie far below the caller.
#[cfg(target_os = "linux")]
fn release_stack() {
    thread_local! {
        /// Lowest usable address of this thread's stack; 0 where it isn't known.
        static BOTTOM: usize = {
            // SAFETY: the attributes are initialised by the first call, read by the second and freed by the third; all
            // concern the calling thread alone.
            unsafe {
                let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
                if libc::pthread_getattr_np(libc::pthread_self(), &mut attributes) != 0 {
                    0
                } else {
                    let (mut address, mut n_bytes) = (std::ptr::null_mut(), 0);
                    let known = libc::pthread_attr_getstack(&attributes, &mut address, &mut n_bytes) == 0;
                    libc::pthread_attr_destroy(&mut attributes);
                    if known { address as usize } else { 0 }
                }
            }
        };
    }
    /// A multiple of every page size.
    const STEP_BYTES: usize = 64 << 10;
    let here = 0u8;
    let top = (&raw const here as usize).saturating_sub(KEPT_STACK_BYTES) / STEP_BYTES * STEP_BYTES;
    let bottom = BOTTOM.with(|bottom| *bottom).next_multiple_of(STEP_BYTES);
    if bottom > 0 && top > bottom {
        // SAFETY: the range lies inside this thread's stack, below every live frame by more than KEPT_STACK_BYTES; what
        // it held is never read again. Failure leaves the pages as they are.
        unsafe { libc::madvise(bottom as *mut libc::c_void, top - bottom, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
fn release_stack() {}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_on_a_large_stack_and_comes_back() {
        fn depth(n: usize) -> usize {
            let frame = std::hint::black_box([n; 512]);
            if n == 0 { frame[0] } else { depth(n - 1) + frame[1].min(1) }
        }
        // 40 MB of frames, far more than this thread has.
        assert_eq!(on_large_stack(|| depth(10_000)), 10_000);
        assert_eq!(on_large_stack(|| on_large_stack(|| depth(10_000))), 10_000);
    }

    #[test]
    fn a_panic_comes_back_and_the_next_work_is_done() {
        let panicked = std::panic::catch_unwind(|| on_large_stack(|| panic!("on purpose")));
        assert_eq!(*panicked.unwrap_err().downcast_ref::<&str>().unwrap(), "on purpose");
        assert_eq!(on_large_stack(|| 7), 7);
    }

    #[test]
    fn many_at_once_all_finish() {
        thread::scope(|scope| {
            let sums: Vec<_> = (0..40u64).map(|i| scope.spawn(move || on_large_stack(move || i * i))).collect();
            for (i, sum) in (0..40).zip(sums) {
                assert_eq!(sum.join().unwrap(), i * i);
            }
        });
    }
}
