//! Stacks that are large enough for the interpreter.
//!
//! A call runs in the thread that it comes from, on a stack of its own that is kept for the next one. Called by
//! `session`, `snapshot` and `cpython` around everything that runs compiled code. Surprising fact: a kept stack gives its
//! depths back after each call, since a deep recursion would else hold a hundred megabytes for as long as the program
//! runs.

use crate::python::STACK_BYTES;
use corosensei::stack::{DefaultStack, Stack};
use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Stacks that are kept. More calls at once than that make stacks of their own.
const MAX_IDLE: usize = 16;
/// What a kept stack keeps of its pages.
#[cfg(target_os = "linux")]
const KEPT_BYTES: usize = 256 << 10;

/// Stacks that nothing runs on. Poisoning says nothing here: a push or a pop leaves a whole list behind.
fn idle() -> MutexGuard<'static, Vec<DefaultStack>> {
    static IDLE: Mutex<Vec<DefaultStack>> = Mutex::new(Vec::new());
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `act` with a stack of [`STACK_BYTES`] below it. Fails where there is no address space for one.
pub(crate) fn on_large_stack<T>(act: impl FnOnce() -> T) -> io::Result<T> {
    let kept = idle().pop();
    let mut stack = kept.map_or_else(|| DefaultStack::new(STACK_BYTES), Ok)?;
    let result = corosensei::on_stack(&mut stack, act);
    release_depths(&stack);
    let mut idle = idle();
    if idle.len() < MAX_IDLE {
        idle.push(stack);
    }
    Ok(result)
}

/// Gives the pages of an idle stack back, all but the uppermost.
#[cfg(target_os = "linux")]
fn release_depths(stack: &DefaultStack) {
    /// A multiple of every page size.
    const STEP_BYTES: usize = 64 << 10;
    // The lowest step has the guard page in it, which stays.
    let bottom = stack.limit().get().next_multiple_of(STEP_BYTES) + STEP_BYTES;
    let top = stack.base().get().saturating_sub(KEPT_BYTES) / STEP_BYTES * STEP_BYTES;
    if top > bottom {
        // SAFETY: the range lies inside the stack, which nothing runs on; what it held is never read again. Failure leaves
        // the pages as they are.
        unsafe { libc::madvise(bottom as *mut libc::c_void, top - bottom, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(target_os = "linux"))]
fn release_depths(_: &DefaultStack) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        thread,
    };

    #[test]
    fn work_has_a_large_stack_wherever_it_comes_from() {
        fn depth(n: usize) -> usize {
            let frame = std::hint::black_box([n; 512]);
            if n == 0 { frame[0] } else { depth(n - 1) + frame[1].min(1) }
        }
        // 40 MB of frames, far more than this thread has.
        assert_eq!(on_large_stack(|| depth(10_000)).unwrap(), 10_000);
        assert_eq!(on_large_stack(|| on_large_stack(|| depth(10_000)).unwrap()).unwrap(), 10_000);
    }

    #[test]
    fn a_panic_comes_back_and_the_next_work_is_done() {
        let panicked = catch_unwind(AssertUnwindSafe(|| on_large_stack(|| panic!("on purpose"))));
        assert_eq!(*panicked.unwrap_err().downcast_ref::<&str>().unwrap(), "on purpose");
        assert_eq!(on_large_stack(|| 7).unwrap(), 7);
    }

    #[test]
    fn many_at_once_all_finish() {
        thread::scope(|scope| {
            let squares: Vec<_> = (0..40u64).map(|i| scope.spawn(move || on_large_stack(|| i * i).unwrap())).collect();
            for (i, square) in (0..40).zip(squares) {
                assert_eq!(square.join().unwrap(), i * i);
            }
        });
        assert!(idle().len() <= MAX_IDLE);
    }

    /// How much of a stack is in memory.
    #[cfg(target_os = "linux")]
    fn resident_bytes(stack: &DefaultStack) -> usize {
        // SAFETY: sysconf has no preconditions.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let (limit, n_bytes) = (stack.limit().get(), stack.base().get() - stack.limit().get());
        let mut pages = vec![0u8; n_bytes.div_ceil(page_bytes)];
        // SAFETY: the range is a mapping of whole pages, and there is a byte for each of them.
        assert_eq!(unsafe { libc::mincore(limit as *mut libc::c_void, n_bytes, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count() * page_bytes
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_idle_stack_keeps_little() {
        let stack = DefaultStack::new(STACK_BYTES).unwrap();
        const USED_BYTES: usize = 20 << 20;
        // SAFETY: these are the stack's uppermost bytes, and nothing runs there.
        unsafe { std::ptr::write_bytes((stack.base().get() - USED_BYTES) as *mut u8, 1, USED_BYTES) };
        assert!(resident_bytes(&stack) >= USED_BYTES);
        release_depths(&stack);
        assert!(resident_bytes(&stack) <= 2 * KEPT_BYTES);
    }
}
