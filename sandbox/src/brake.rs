//! Stops a running call from outside, and tells its code that something is due, without the code having to ask.
//!
//! The compiled interpreter has no checks for this, which would cost a fifth of its speed. A call whose time is over
//! loses its memory instead: the pages become inaccessible, and the next access is a trap, which wasmtime ends the call
//! with. What is milder (`TimeoutError`, `MemoryError`) is written where the interpreter looks between its
//! instructions. Called by `alarm`'s clock from its thread, by `session` around each call, by `wasi` within it.
//! Surprising fact: code that can't be stopped where it meets inaccessible pages (the host's, in a long copy of memory, or
//! an access that the compiler knows to be valid) gets them back from a signal handler, those around it alone, and goes
//! on until it needs others.

use std::{
    cell::Cell,
    ops::Range,
    ptr::{null, null_mut},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::chunks::Chunks;

/// How long a call may take to stop once its memory was taken away; taken away again then.
const REPEAT: Duration = Duration::from_millis(10);
/// What is given back on either side of a place first, then twice as much each time. A multiple of the page size.
const FIRST_BYTES: usize = 64 << 10;

/// How far away the deadline of an interpreter is that is only being prepared.
const UNSET: Duration = Duration::from_secs(600);

/// How running Python code is told that something is due.
#[derive(Clone, Debug)]
pub(crate) enum Interrupt {
    /// RustPython: addresses in its memory (`guest/src/interrupt.rs`).
    Flag {
        /// Byte whose bit 0 makes the interpreter look at the kind.
        flag: usize,
        /// Byte with the kind.
        kind: usize,
    },
    /// CPython: bits that a pending signal sets (`cpython::image`). It raises `MemoryError` by itself.
    Signal(Arc<[Bits]>),
}

/// Bits of one byte of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bits {
    pub(crate) address: u32,
    pub(crate) bits: u8,
}

/// What is due; the numbers are shared with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Time = 1,
    Memory = 2,
}

impl Interrupt {
    /// Where it is written.
    fn addresses(&self) -> impl Iterator<Item = usize> {
        let (flags, bits) = match self {
            Interrupt::Flag { flag, kind } => (vec![*flag, *kind], &[][..]),
            Interrupt::Signal(bits) => (vec![], &bits[..]),
        };
        flags.into_iter().chain(bits.iter().map(|bits| bits.address as usize))
    }

    /// Whether every address lies in a memory of this length.
    pub(crate) fn fits(&self, memory_bytes: usize) -> bool {
        self.addresses().all(|address| address < memory_bytes)
    }

    /// Whether an exception for the time limit was asked for and not raised yet.
    pub(crate) fn is_time_pending(&self, data: &[u8]) -> bool {
        match self {
            Interrupt::Flag { kind, .. } => data[*kind] == Kind::Time as u8,
            Interrupt::Signal(bits) => {
                bits.iter().all(|Bits { address, bits }| data[*address as usize] & bits == *bits) && !bits.is_empty()
            }
        }
    }
}

/// When a call is told to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// When it is ended by force.
    pub(crate) hard: Instant,
    /// When `TimeoutError` is raised in its code next.
    pub(crate) soft: Option<Instant>,
    /// How long after it is raised again, if it was caught.
    pub(crate) repeat: Duration,
}

/// The brake of one instance.
#[derive(Debug)]
pub(crate) struct Brake {
    deadlines: Mutex<Deadlines>,
    /// Set when `TimeoutError` was raised in this call.
    raised_timeout: AtomicBool,
    place: OnceLock<Place>,
    /// Length of the memory that can be taken away: all that it had when it grew last.
    n_bytes: AtomicUsize,
    /// Set when it was taken away in this call.
    was_pulled: AtomicBool,
    /// How much is given back on either side of the next place.
    next_bytes: AtomicUsize,
}

/// Where an instance's memory lies and what its interpreter looks at. The memory stays there as long as the instance
/// lives (`Config::memory_may_move`).
#[derive(Debug)]
struct Place {
    base: usize,
    interrupt: Interrupt,
    chunks: Chunks,
}

thread_local! {
    /// The brake of the call that runs in this thread.
    static RUNNING: Cell<*const Brake> = const { Cell::new(null()) };
}

impl Brake {
    /// A brake that stops nothing until it is fixed to an instance.
    pub(crate) fn new() -> Brake {
        let deadlines = Deadlines { hard: Instant::now() + UNSET, soft: None, repeat: Duration::ZERO };
        Brake {
            deadlines: Mutex::new(deadlines),
            raised_timeout: AtomicBool::new(false),
            place: OnceLock::new(),
            n_bytes: AtomicUsize::new(0),
            was_pulled: AtomicBool::new(false),
            next_bytes: AtomicUsize::new(FIRST_BYTES),
        }
    }

    /// Fixes it to an instance whose memory begins at `base`; the addresses of `interrupt` must fit (`Interrupt::fits`).
    ///
    /// # Safety
    /// `base` is the memory's, and stays so while calls run ([`Brake::during`]).
    pub(crate) unsafe fn fix(&self, base: *mut u8, interrupt: Interrupt) {
        // SAFETY: as promised to this function.
        let chunks = unsafe { Chunks::new(base as usize, interrupt.addresses()) };
        // An instance is made ready once.
        let _ = self.place.set(Place { base: base as usize, interrupt, chunks });
    }

    /// The memory's chunks, once it is fixed to one.
    pub(crate) fn chunks(&self) -> Option<&Chunks> {
        self.place.get().map(|place| &place.chunks)
    }

    /// Sets the deadlines of the next call.
    pub(crate) fn set(&self, deadlines: Deadlines) {
        *self.lock() = deadlines;
        self.raised_timeout.store(false, Ordering::Relaxed);
    }

    pub(crate) fn deadlines(&self) -> Deadlines {
        *self.lock()
    }

    pub(crate) fn raised_timeout(&self) -> bool {
        self.raised_timeout.load(Ordering::Relaxed)
    }

    /// Whether the exception of the time limit is still on its way to the code.
    pub(crate) fn is_time_pending(&self, data: &[u8]) -> bool {
        self.raised_timeout() && self.place.get().is_some_and(|place| place.interrupt.is_time_pending(data))
    }

    /// The memory is about to grow and was `n_bytes` long until now.
    pub(crate) fn memory_grows(&self, n_bytes: usize) {
        self.n_bytes.store(n_bytes, Ordering::Relaxed);
    }

    /// Runs a call in this thread, with a memory of `n_bytes`; whether it had to be stopped by force.
    pub(crate) fn during<T>(&self, n_bytes: usize, call: impl FnOnce() -> T) -> (T, bool) {
        /// However the call ends, the thread has no call afterwards, and the memory can be used.
        struct Ending<'a>(&'a Brake, *const Brake);
        impl Drop for Ending<'_> {
            fn drop(&mut self) {
                RUNNING.set(self.1);
                if self.0.was_pulled.load(Ordering::SeqCst) && give_back(self.0.range()) {
                    self.0.chunks().into_iter().for_each(Chunks::were_opened);
                }
            }
        }
        self.n_bytes.store(n_bytes, Ordering::Relaxed);
        self.was_pulled.store(false, Ordering::Relaxed);
        let ending = Ending(self, RUNNING.replace(self));
        let result = call();
        drop(ending);
        (result, self.was_pulled.load(Ordering::Relaxed))
    }

    /// When something is due.
    pub(crate) fn next(&self) -> Instant {
        let Deadlines { hard, soft, .. } = self.deadlines();
        soft.map_or(hard, |soft| soft.min(hard))
    }

    /// Does what is due at `now`, for a call that runs in another thread; when to come again, later than `now`.
    pub(crate) fn ring(&self, now: Instant) -> Instant {
        if now >= self.deadlines().hard {
            self.pull();
            return now + REPEAT;
        }
        self.raise_if_over(now);
        self.next().max(now + REPEAT)
    }

    /// Raises `TimeoutError` if its time has come.
    pub(crate) fn raise_if_over(&self, now: Instant) {
        let mut deadlines = self.lock();
        if deadlines.soft.is_none_or(|soft| now < soft) {
            return;
        }
        deadlines.soft = Some(now + deadlines.repeat);
        drop(deadlines);
        self.raised_timeout.store(true, Ordering::Relaxed);
        self.raise(Kind::Time);
    }

    /// Asks the interpreter for an exception.
    pub(crate) fn raise(&self, kind: Kind) {
        let Some(Place { base, interrupt, .. }) = self.place.get() else { return };
        // SAFETY: every address lies in the memory (`fix`), which lives as long as the instance and is only made
        // inaccessible for good when the call is to end (a fault here would be the clock's own: it rings one call at a
        // time and never after it has taken the memory away). The guest reads and writes these bytes meanwhile, as
        // another thread would: they are accessed atomically here. A bit that it overwrites is set again by the next
        // exception.
        let byte = |address: usize| unsafe { AtomicU8::from_ptr((base + address) as *mut u8) };
        match interrupt {
            Interrupt::Flag { flag, kind: address } => {
                byte(*address).store(kind as u8, Ordering::Release);
                byte(*flag).fetch_or(1, Ordering::Release);
            }
            Interrupt::Signal(bits) if kind == Kind::Time => {
                for Bits { address, bits } in bits.iter() {
                    byte(*address as usize).fetch_or(*bits, Ordering::Release);
                }
            }
            Interrupt::Signal(_) => {}
        }
    }

    /// Takes the memory away from the call that runs.
    fn pull(&self) {
        self.was_pulled.store(true, Ordering::SeqCst);
        self.next_bytes.store(FIRST_BYTES, Ordering::Relaxed);
        protect(self.range(), libc::PROT_NONE);
    }

    /// Lets this thread's call write where it met a closed chunk; whether it was that.
    fn opened_at(&self, address: usize) -> bool {
        !self.was_pulled.load(Ordering::SeqCst) && self.chunks().is_some_and(|chunks| chunks.open_at(address))
    }

    /// Gives back what lies around an address where this thread's call met inaccessible memory; whether it was that.
    fn gave_back_at(&self, address: usize) -> bool {
        let Range { start, end } = self.range();
        if !self.was_pulled.load(Ordering::SeqCst) || !(start..end).contains(&address) {
            return false;
        }
        let n_bytes = self.next_bytes.load(Ordering::Relaxed);
        self.next_bytes.store(n_bytes.saturating_mul(2), Ordering::Relaxed);
        let place = address - (address - start) % FIRST_BYTES;
        let after = place.saturating_add(FIRST_BYTES).saturating_add(n_bytes);
        give_back(place.saturating_sub(n_bytes).max(start)..after.min(end))
    }

    /// The memory that is taken away and given back.
    fn range(&self) -> Range<usize> {
        let base = self.place.get().map_or(0, |place| place.base);
        base..base + if base == 0 { 0 } else { self.n_bytes.load(Ordering::Relaxed) }
    }

    fn lock(&self) -> MutexGuard<'_, Deadlines> {
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes memory that was taken away accessible; whether it is.
fn give_back(range: Range<usize>) -> bool {
    protect(range, libc::PROT_READ | libc::PROT_WRITE)
}

/// Changes how a part of the memory of a running call can be accessed.
fn protect(range: Range<usize>, protection: libc::c_int) -> bool {
    // SAFETY: the range is a part of what the instance's memory may access, and the instance lives while a call runs.
    // Wasmtime expects accesses of compiled code to fault anywhere in it; other code that meets such a part gets it back
    // (`on_fault`). Failure leaves it as it is.
    unsafe { libc::mprotect(range.start as *mut libc::c_void, range.len(), protection) == 0 }
}

/// What handled faults before each of this module's two handlers was installed.
static BEFORE_WASMTIME: OnceLock<libc::sigaction> = OnceLock::new();
static WASMTIMES: OnceLock<libc::sigaction> = OnceLock::new();

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs the handler of faults that comes before wasmtime's, which passes on what no compiled code may do. Called
/// before the first engine is made.
pub(crate) fn prepare() {
    BEFORE_WASMTIME.get_or_init(|| install(on_unknown_fault));
}

/// Installs the handler that is asked first. Called after the first engine was made.
pub(crate) fn prepare_first() {
    WASMTIMES.get_or_init(|| install(on_fault));
}

/// Installs a handler of faults; the one that it replaces.
fn install(handler: Handler) -> libc::sigaction {
    // SAFETY: both structures are valid for the calls; the handler has the signature that SA_SIGINFO asks for, and does
    // nothing that a signal handler may not.
    unsafe {
        let (mut action, mut previous) = std::mem::zeroed::<(libc::sigaction, libc::sigaction)>();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSEGV, &action, &mut previous);
        previous
    }
}

/// Where a fault was, and the brake of this thread's call.
///
/// # Safety
/// `info` is the kernel's. The brake lives while RUNNING points to it (`during`), which a handler is done before.
unsafe fn whose_fault<'a>(info: *const libc::siginfo_t) -> (usize, Option<&'a Brake>) {
    // SAFETY: as promised to this function.
    unsafe { ((*info).si_addr() as usize, RUNNING.get().as_ref()) }
}

/// Any fault. A write to a closed chunk of the memory of this thread's call: it is opened, the write is made again.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what the kernel calls this with.
    let (address, running) = unsafe { whose_fault(info) };
    if !running.is_some_and(|brake| brake.opened_at(address)) {
        pass_on(&WASMTIMES, signal, info, context);
    }
}

/// A fault that wasmtime doesn't know. In the memory of this thread's call: a part comes back, the access is made again.
extern "C" fn on_unknown_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: wasmtime's handler passes on what it got from the kernel.
    let (address, running) = unsafe { whose_fault(info) };
    if !running.is_some_and(|brake| brake.gave_back_at(address)) {
        pass_on(&BEFORE_WASMTIME, signal, info, context);
    }
}

fn pass_on(
    to: &OnceLock<libc::sigaction>,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let Some(previous) = to.get() else { return };
    // SAFETY: `previous` is what the kernel gave for this signal. A default action is put back, and the instruction
    // faults again; a handler gets what this one got.
    unsafe {
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => drop(libc::sigaction(signal, previous, null_mut())),
            handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                std::mem::transmute::<usize, Handler>(handler)(signal, info, context);
            }
            handler => std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{alarm::Alarm, python};
    use wasmtime::{Config, Instance, Memory, Module, Store, Trap, TypedFunc};

    /// A module with a memory of 64 pages (4 MiB), whose `run` is this loop: `(loop BODY br 0)`.
    fn endless(body: &[u8]) -> Vec<u8> {
        let mut code = [&[0, 0x03, 0x40][..], body, &[0x0c, 0, 0x0b, 0x0b]].concat();
        code.insert(0, code.len() as u8);
        let types = [1, 4, 1, 0x60, 0, 0];
        let functions = [3, 2, 1, 0];
        let memories = [5, 3, 1, 0, 64];
        let exports = *b"\x07\x10\x02\x03run\0\0\x06memory\x02\0";
        let head = [10, code.len() as u8 + 1, 1];
        [b"\0asm\x01\0\0\0", &types[..], &functions, &memories, &exports, &head, &code].concat()
    }

    /// Stores 7 at the address 3 MiB; copies 1 MiB to 0 from 1 MiB, which the host does, or 16 bytes to 0 from 32, which
    /// compiled code does without a place to trap at.
    const STORE: &[u8] = &[0x41, 0x80, 0x80, 0xc0, 0x01, 0x41, 7, 0x36, 2, 0];
    const COPY: &[u8] = &[0x41, 0, 0x41, 0x80, 0x80, 0xc0, 0x00, 0x41, 0x80, 0x80, 0xc0, 0x00, 0xfc, 0x0a, 0, 0];
    const SHORT_COPY: &[u8] = &[0x41, 0, 0x41, 32, 0x41, 16, 0xfc, 0x0a, 0, 0];

    struct Endless {
        store: Store<()>,
        memory: Memory,
        run: TypedFunc<(), ()>,
        brake: Arc<Brake>,
    }

    impl Endless {
        fn new(body: &[u8]) -> Endless {
            let engine = python::engine_of(&Config::new()).unwrap();
            let module = Module::new(&engine, endless(body)).unwrap();
            let mut store = Store::new(&engine, ());
            let instance = Instance::new(&mut store, &module, &[]).unwrap();
            let run = instance.get_typed_func::<(), ()>(&mut store, "run").unwrap();
            let memory = instance.get_memory(&mut store, "memory").unwrap();
            let brake = Arc::new(Brake::new());
            // SAFETY: the memory's own base, in a store that outlives the calls.
            unsafe { brake.fix(memory.data_ptr(&store), Interrupt::Flag { flag: 100, kind: 101 }) };
            Endless { store, memory, run, brake }
        }

        /// Runs it with what `begin` does first, in the call.
        fn run<T>(&mut self, begin: impl FnOnce(&Arc<Brake>) -> T) -> wasmtime::Result<()> {
            let n_bytes = self.memory.data_size(&self.store);
            let (result, was_stopped) = self.brake.during(n_bytes, || {
                let _kept = begin(&self.brake);
                self.run.call(&mut self.store, ())
            });
            assert!(was_stopped);
            result
        }
    }

    #[test]
    fn every_loop_ends_and_the_memory_can_be_used_afterwards() {
        let long_copies = COPY.repeat(3);
        for body in [STORE.to_vec(), [&long_copies, STORE].concat(), [&SHORT_COPY.repeat(2), STORE].concat()] {
            let mut endless = Endless::new(&body);
            for hard_ms in [5, 0, 20] {
                let hard = Instant::now() + Duration::from_millis(hard_ms);
                endless.brake.set(Deadlines { hard, soft: None, repeat: Duration::ZERO });
                // It ends: else this test would not.
                let error = endless.run(Alarm::set).unwrap_err();
                assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::MemoryOutOfBounds));
                let data = endless.memory.data_mut(&mut endless.store);
                data.fill(hard_ms as u8);
                assert!(data.iter().all(|byte| *byte == hard_ms as u8));
                assert!(!endless.brake.raised_timeout());
            }
        }
    }

    #[test]
    fn the_interpreter_is_told_before_the_call_is_ended() {
        let mut endless = Endless::new(STORE);
        let (soft, repeat) = (Instant::now() + Duration::from_secs(100), Duration::from_secs(30));
        let hard = soft + Duration::from_secs(50);
        endless.brake.set(Deadlines { hard, soft: Some(soft), repeat });
        let rings = |brake: &Arc<Brake>| {
            assert_eq!(brake.ring(soft - repeat), soft);
            assert!(!brake.raised_timeout());
            assert_eq!(brake.ring(soft), soft + repeat);
            assert!(brake.raised_timeout());
            assert_eq!(brake.ring(soft + repeat), hard);
            assert!(brake.ring(hard) > hard);
        };
        assert!(endless.run(rings).is_err());
        let data = endless.memory.data_mut(&mut endless.store);
        assert_eq!(data[100..102], [1, Kind::Time as u8]);
        assert!(endless.brake.is_time_pending(data));
        // Nothing of it is left for the next call.
        data[100..102].fill(0);
        endless.brake.set(Deadlines { hard, soft: None, repeat });
        assert!(endless.run(|brake| brake.ring(hard)).is_err());
        assert_eq!(endless.memory.data(&endless.store)[100..102], [0, 0]);
        assert!(!endless.brake.raised_timeout());
    }

    #[test]
    fn bits_of_a_signal_are_added_to_what_is_there() {
        let mut memory = [0b100u8, 0, 0xf0];
        let brake = Brake::new();
        let bits = [Bits { address: 0, bits: 1 }, Bits { address: 2, bits: 3 }];
        let interrupt = Interrupt::Signal(Arc::new(bits));
        assert!(interrupt.fits(3) && !interrupt.fits(2));
        // SAFETY: the array outlives the brake's use below.
        unsafe { brake.fix(memory.as_mut_ptr(), interrupt) };
        brake.raise(Kind::Memory);
        brake.raise(Kind::Time);
        assert_eq!(memory, [0b101, 0, 0xf3]);
    }
}
