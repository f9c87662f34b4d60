//! The world as the guest sees it: standard output, a seeded random source, a clock that starts at a fixed date unless
//! the machine's own is allowed.
//!
//! Owns the dozen WASI functions that do anything; every other import answers "not supported". There is no file
//! system (but the one of `cpython::files`), network, environment or argument list, and standard input is at its end.
//! Called by wasmtime only. Surprising fact: `sleep` really waits, but never past the call's deadline.

use crate::{
    brake::{Brake, Deadlines, Kind},
    cpython::Files,
    output::Output,
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use wasmtime::{Caller, Engine, Extern, ExternType, Linker, Memory, Module, ResourceLimiter, Result, Val};

/// The state of one session on the host's side.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) output: Output,
    /// What ends the call, and tells its code what is due.
    pub(crate) brake: Arc<Brake>,
    pub(crate) limit_bytes: usize,
    /// Memory beyond which the guest's code gets a `MemoryError`.
    pub(crate) soft_limit_bytes: usize,
    /// The same for the current call: more where the session began it with less than that left, so that there is room
    /// to look at what fills the memory and to let go of it.
    pub(crate) call_soft_limit_bytes: usize,
    /// Set when the guest asked for more memory than the limit allows.
    pub(crate) refused_memory: bool,
    pub(crate) random: Random,
    pub(crate) memory: Option<Memory>,
    /// The clock's zero.
    pub(crate) started: Instant,
    /// Whether the date is the machine's.
    pub(crate) allow_clock: bool,
    /// What CPython sees of a file system and of its calls; nothing for RustPython.
    pub(crate) files: Files,
}

impl Host {
    pub(crate) fn new(limit_bytes: usize, output_bytes: usize) -> Self {
        Host {
            output: Output::new(output_bytes),
            brake: Arc::new(Brake::new()),
            limit_bytes,
            soft_limit_bytes: usize::MAX,
            call_soft_limit_bytes: usize::MAX,
            refused_memory: false,
            random: Random(0),
            memory: None,
            started: Instant::now(),
            allow_clock: false,
            files: Files::default(),
        }
    }

    /// Nanoseconds since the session began, in whole milliseconds: too coarse to time the host with.
    fn elapsed_ns(&self) -> u64 {
        whole_ms(self.started.elapsed())
    }

    /// Nanoseconds that WASI's clock `id` shows; 0 is the date, which counts from 1970, the others count from the
    /// session's beginning.
    fn clock_ns(&self, id: u32) -> u64 {
        match id {
            0 if self.allow_clock => whole_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            0 => EPOCH_NS + self.elapsed_ns(),
            _ => self.elapsed_ns(),
        }
    }
}

/// Nanoseconds, without what is below a millisecond.
fn whole_ms(time: Duration) -> u64 {
    time.as_millis() as u64 * 1_000_000
}

/// Most elements of the guest's function table.
const MAX_TABLE_ELEMENTS: usize = 1 << 16;

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let allowed = desired <= self.limit_bytes;
        self.refused_memory |= !allowed;
        self.brake.memory_grows(current);
        if allowed && desired > self.call_soft_limit_bytes {
            self.brake.raise(Kind::Memory);
        }
        Ok(allowed)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        // Asked for the module's own table too, of about 9,200 functions (CPython's: 39,000); nothing in the guest
        // grows it.
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}

/// Why the host ended a call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    #[error("the deadline has passed")]
    Deadline,
    #[error("the process ended with status {0}")]
    Exit(i32),
}

/// SplitMix64 (Steele, Lea, Flood 2014): the guest's only source of "entropy", a function of the session's seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

pub(crate) const PREVIEW1: &str = "wasi_snapshot_preview1";
/// 2026-01-01T00:00:00Z, the moment at which every session begins.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;
/// Writes of one `fd_write` are read in pieces of at most this size.
const MAX_IOVECS: u32 = 1024;

/// WASI error numbers (wasi-libc `__errno_values.h`).
pub(crate) mod errno {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const BADF: i32 = 8;
    pub(crate) const FAULT: i32 = 21;
    pub(crate) const INVAL: i32 = 28;
    pub(crate) const ISDIR: i32 = 31;
    pub(crate) const MFILE: i32 = 33;
    pub(crate) const NOENT: i32 = 44;
    pub(crate) const NOSYS: i32 = 52;
    pub(crate) const NOTDIR: i32 = 54;
    pub(crate) const ROFS: i32 = 69;
    pub(crate) const SPIPE: i32 = 70;
}

/// A linker with every import of `module`.
pub(crate) fn linker(engine: &Engine, module: &Module) -> Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    linker.allow_shadowing(true);
    for import in module.imports().filter(|import| import.module() == PREVIEW1) {
        let ExternType::Func(kind) = import.ty() else { continue };
        linker.func_new(PREVIEW1, import.name(), kind, |_, _, results| {
            results.fill(Val::I32(errno::NOSYS));
            Ok(())
        })?;
    }
    for name in ["args_sizes_get", "environ_sizes_get"] {
        linker.func_wrap(PREVIEW1, name, |mut caller: Caller<'_, Host>, count: u32, size: u32| {
            answer(put(&mut caller, count, &0u32.to_le_bytes()).and(put(&mut caller, size, &0u32.to_le_bytes())))
        })?;
    }
    for name in ["args_get", "environ_get"] {
        linker.func_wrap(PREVIEW1, name, |_: u32, _: u32| errno::SUCCESS)?;
    }
    linker.func_wrap(PREVIEW1, "clock_res_get", |mut caller: Caller<'_, Host>, _clock: u32, result: u32| {
        answer(put(&mut caller, result, &1_000_000u64.to_le_bytes()))
    })?;
    linker.func_wrap(PREVIEW1, "clock_time_get", |mut caller: Caller<'_, Host>, clock: u32, _: u64, result: u32| {
        let now_ns = caller.data().clock_ns(clock);
        answer(put(&mut caller, result, &now_ns.to_le_bytes()))
    })?;
    linker.func_wrap(PREVIEW1, "random_get", |mut caller: Caller<'_, Host>, address: u32, len: u32| {
        let mut random = caller.data().random;
        let filled = bytes_mut(&mut caller, address, len).map(|bytes| {
            bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]));
        });
        caller.data_mut().random = random;
        answer(filled)
    })?;
    linker.func_wrap(PREVIEW1, "fd_write", fd_write)?;
    linker.func_wrap(PREVIEW1, "fd_read", |mut caller: Caller<'_, Host>, fd: u32, _: u32, _: u32, n_read: u32| {
        if fd == 0 { answer(put(&mut caller, n_read, &0u32.to_le_bytes())) } else { errno::BADF }
    })?;
    linker.func_wrap(PREVIEW1, "fd_fdstat_get", |mut caller: Caller<'_, Host>, fd: u32, result: u32| {
        if fd <= 2 { answer(put(&mut caller, result, &fdstat(FileType::CharacterDevice))) } else { errno::BADF }
    })?;
    linker.func_wrap(PREVIEW1, "fd_filestat_get", |mut caller: Caller<'_, Host>, fd: u32, result: u32| {
        let stat = filestat(FileType::CharacterDevice, 0, 0);
        if fd <= 2 { answer(put(&mut caller, result, &stat)) } else { errno::BADF }
    })?;
    linker.func_wrap(PREVIEW1, "fd_close", |fd: u32| if fd <= 2 { errno::SUCCESS } else { errno::BADF })?;
    linker.func_wrap(
        PREVIEW1,
        "fd_seek",
        |fd: u32, _: i64, _: u32, _: u32| {
            if fd <= 2 { errno::SPIPE } else { errno::BADF }
        },
    )?;
    linker.func_wrap(PREVIEW1, "fd_prestat_get", |_: u32, _: u32| errno::BADF)?;
    linker.func_wrap(PREVIEW1, "sched_yield", || errno::SUCCESS)?;
    linker.func_wrap(PREVIEW1, "poll_oneoff", poll_oneoff)?;
    linker.func_wrap(PREVIEW1, "proc_exit", |code: i32| -> Result<()> { Err(Stop::Exit(code).into()) })?;

    Ok(linker)
}

/// Types of files, as WASI numbers them.
#[derive(Clone, Copy)]
pub(crate) enum FileType {
    CharacterDevice = 2,
    Directory = 3,
    RegularFile = 4,
}

/// fdstat: u8 filetype, u16 flags, u64 rights at offset 8, u64 inheriting rights.
pub(crate) fn fdstat(kind: FileType) -> [u8; 24] {
    let mut stat = [0u8; 24];
    stat[0] = kind as u8;
    stat[8..].fill(0xff);
    stat
}

/// filestat: u64 device, u64 inode, u8 filetype, u64 links at offset 24, u64 size, three times, which are zero.
pub(crate) fn filestat(kind: FileType, inode: u64, n_bytes: u64) -> [u8; 64] {
    let mut stat = [0u8; 64];
    stat[8..16].copy_from_slice(&inode.to_le_bytes());
    stat[16] = kind as u8;
    stat[24] = 1;
    stat[32..40].copy_from_slice(&n_bytes.to_le_bytes());
    stat
}

pub(crate) fn fd_write(mut caller: Caller<'_, Host>, fd: u32, iovecs: u32, n_iovecs: u32, n_written: u32) -> i32 {
    if fd != 1 && fd != 2 {
        return errno::BADF;
    }
    let Some(memory) = memory(&mut caller) else { return errno::FAULT };
    let (data, host) = memory.data_and_store_mut(&mut caller);
    let mut total = 0u32;
    for idx in 0..n_iovecs.min(MAX_IOVECS) {
        let Some(piece) = iovecs.checked_add(idx * 8).and_then(|at| {
            let (address, len) = (word(data, at)?, word(data, at.checked_add(4)?)?);
            slice(data, address, len)
        }) else {
            return errno::FAULT;
        };
        host.output.push(piece);
        total = total.saturating_add(piece.len() as u32);
    }
    answer(put(&mut caller, n_written, &total.to_le_bytes()))
}

/// Waits for the first clock among the subscriptions; anything else is not supported.
fn poll_oneoff(mut caller: Caller<'_, Host>, ins: u32, outs: u32, n_subscriptions: u32, n_events: u32) -> Result<i32> {
    let Some(memory) = memory(&mut caller) else { return Ok(errno::FAULT) };
    let (data, host) = memory.data_and_store_mut(&mut caller);
    // subscription, 48 bytes: u64 userdata, u8 tag (0: clock) at 8, u32 clock at 16, u64 timeout at 24, u16 flags at 40.
    let Some(subscription) = slice(data, ins, 48) else { return Ok(errno::FAULT) };
    if n_subscriptions != 1 || subscription[8] != 0 {
        return Ok(errno::NOSYS);
    }
    let timeout_ns = u64::from_le_bytes(subscription[24..32].try_into().expect("eight bytes"));
    let clock = u32::from_le_bytes(subscription[16..20].try_into().expect("four bytes"));
    let is_absolute = subscription[40] & 1 != 0;
    let now_ns = host.clock_ns(clock);
    let wait = Duration::from_nanos(if is_absolute { timeout_ns.saturating_sub(now_ns) } else { timeout_ns });
    // event, 32 bytes: u64 userdata, u16 error, u8 type (0: clock).
    let mut event = [0u8; 32];
    event[..8].copy_from_slice(&subscription[..8]);
    let now = Instant::now();
    let Deadlines { hard, soft, .. } = host.brake.deadlines();
    let left = hard.saturating_duration_since(now);
    let until_soft = soft.map_or(left, |soft| soft.saturating_duration_since(now)).min(left);
    std::thread::sleep(wait.min(until_soft));
    if wait >= left && until_soft == left {
        return Err(Stop::Deadline.into());
    }
    // A sleep that the soft deadline ends early is over: the interrupt reaches the code when it goes on.
    if wait > until_soft {
        host.brake.raise_if_over(Instant::now());
    }
    Ok(answer(put(&mut caller, outs, &event).and(put(&mut caller, n_events, &1u32.to_le_bytes()))))
}

pub(crate) fn answer(written: Option<()>) -> i32 {
    written.map_or(errno::FAULT, |()| errno::SUCCESS)
}

pub(crate) fn memory(caller: &mut Caller<'_, Host>) -> Option<Memory> {
    if caller.data().memory.is_none() {
        let found = caller.get_export("memory").and_then(Extern::into_memory);
        caller.data_mut().memory = found;
    }
    caller.data().memory
}

pub(crate) fn bytes_mut<'a>(caller: &'a mut Caller<'_, Host>, address: u32, len: u32) -> Option<&'a mut [u8]> {
    memory(caller)?.data_mut(caller).get_mut(address as usize..)?.get_mut(..len as usize)
}

pub(crate) fn put(caller: &mut Caller<'_, Host>, address: u32, bytes: &[u8]) -> Option<()> {
    bytes_mut(caller, address, bytes.len() as u32).map(|target| target.copy_from_slice(bytes))
}

pub(crate) fn slice(data: &[u8], address: u32, len: u32) -> Option<&[u8]> {
    data.get(address as usize..)?.get(..len as usize)
}

pub(crate) fn word(data: &[u8], address: u32) -> Option<u32> {
    slice(data, address, 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}
