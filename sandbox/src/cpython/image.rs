//! CPython as every session starts from it: numpy, scipy and sympy imported, `driver.py` ready to answer.
//!
//! Owns the file of that memory: how it is made, once, and how it is laid under an instance, copy-on-write, so that all
//! sessions of all processes share its pages. Called by `cpython`. Surprising fact: how running code is interrupted is
//! found out by experiment. The interpreter is told that a signal has come, and the bits that this changes are kept;
//! the host sets the same bits later, while Python runs.

use super::{
    files::{Content, Files, Tree},
    module,
};
use crate::{brake::Bits, outcome::SandboxError, output::Output, wasi::Host};
use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};
use wasmtime::{AsContextMut, Engine, Instance, InstancePre, Memory, Store, TypedFunc, WasmParams, WasmResults};

/// Memory that the start may use.
const START_BYTES: usize = 2 << 30;
/// What it may print when it fails.
const START_OUTPUT_BYTES: usize = 64 << 10;
/// The signal whose handler raises `TimeoutError` (`driver.py`; SIGXCPU).
const TIME_SIGNAL: i32 = 24;
/// A pending signal is three flags; what changes more is something else.
const MAX_BITS: usize = 16;
/// Stack that CPython leaves alone when it raises RecursionError in code that goes through C.
const SPARE_STACK_BYTES: u32 = 4 << 20;

/// Where the sources of `driver.py` lie while it is imported.
const DRIVER_FOLDER: &str = "sandbox";
const SOURCES: [(&str, &str); 5] = [
    ("_driver.py", include_str!("driver.py")),
    ("_cell.py", include_str!("../../guest/python/_cell.py")),
    ("asyncio.unix_events.py", include_str!("../../guest/python/asyncio/unix_events.py")),
    ("concurrent.futures.process.py", include_str!("../../guest/python/concurrent/futures/process.py")),
    ("concurrent.futures.thread.py", include_str!("../../guest/python/concurrent/futures/thread.py")),
];
/// Run once; the value that it shows is nobody's.
const START: &str = "(__import__('sys').path.insert(0, '/sandbox'), __import__('_driver').start())[:0]";

/// All that an image depends on beside the interpreter and its library.
pub(super) fn sources() -> String {
    SOURCES.map(|(name, text)| format!("{name}\n{text}\n")).concat() + START
}

/// The memory of a started interpreter, in a file.
#[derive(Debug)]
pub(crate) struct Image {
    file: File,
    /// Length of the memory.
    pub(crate) memory_bytes: usize,
    /// What a pending signal looks like.
    pub(crate) interrupt: Arc<[Bits]>,
    /// Address of the function object that answers a call.
    pub(crate) answer: u32,
    /// 315 of Python 3.15, in the name of the library.
    pub(super) version: u32,
}

/// The file is the memory, then an address and one byte for each of the bits, then this: how many bits, the address of
/// the function, the version, nothing, the memory's length.
const FOOTER_BYTES: usize = 24;
const BITS_BYTES: usize = 5;

impl Image {
    pub(super) fn open(file: File) -> Option<Image> {
        let n_bytes = usize::try_from(file.metadata().ok()?.len()).ok()?;
        let at = n_bytes.checked_sub(FOOTER_BYTES)?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, at as u64).ok()?;
        let word = |at: usize| u32::from_le_bytes(footer[at..][..4].try_into().expect("four bytes"));
        let (n_bits, answer, version) = (word(0) as usize, word(4), word(8));
        let memory_bytes = usize::try_from(u64::from_le_bytes(footer[16..].try_into().expect("eight bytes"))).ok()?;
        if n_bits > MAX_BITS || memory_bytes.checked_add(n_bits * BITS_BYTES)? != at {
            return None;
        }
        let mut bits = vec![0; n_bits * BITS_BYTES];
        file.read_exact_at(&mut bits, memory_bytes as u64).ok()?;
        let interrupt = bits
            .chunks_exact(BITS_BYTES)
            .map(|entry| Bits {
                address: u32::from_le_bytes(entry[..4].try_into().expect("four bytes")),
                bits: entry[4],
            })
            .collect();
        Some(Image { file, memory_bytes, interrupt, answer, version })
    }

    fn encode(mut memory: Vec<u8>, interrupt: &[Bits], answer: u32, version: u32) -> Vec<u8> {
        let memory_bytes = memory.len() as u64;
        for Bits { address, bits } in interrupt {
            memory.extend_from_slice(&address.to_le_bytes());
            memory.push(*bits);
        }
        for word in [interrupt.len() as u32, answer, version, 0] {
            memory.extend_from_slice(&word.to_le_bytes());
        }
        memory.extend_from_slice(&memory_bytes.to_le_bytes());
        memory
    }

    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Makes the memory of a fresh instance the image's. Nothing is copied until it is written.
    pub(crate) fn lay_under(&self, store: &mut Store<Host>, memory: Memory) -> wasmtime::Result<()> {
        let missing_bytes = self.memory_bytes.saturating_sub(memory.data_size(&*store)) as u64;
        let missing_pages = missing_bytes.div_ceil(memory.page_size(&*store));
        memory.grow(&mut *store, missing_pages)?;
        let data = memory.data_mut(store);
        if data.len() != self.memory_bytes {
            return Err(wasmtime::Error::msg("the interpreter's memory is longer than its image"));
        }
        map(&self.file, data)?;
        Ok(())
    }
}

/// Replaces the pages of `memory` by a private mapping of `file`.
#[cfg(target_os = "linux")]
fn map(file: &File, memory: &mut [u8]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
    // SAFETY: `memory` is whole pages of a mapping that wasmtime made for this instance, borrowed for us alone, and it
    // stays as long and as accessible as it was: only its content becomes the file's. Wasmtime unmaps it by address
    // when the store is dropped, whatever it holds. The file is at least as long (`open`) and nobody's to write.
    let mapped =
        unsafe { libc::mmap(memory.as_mut_ptr().cast(), memory.len(), protection, flags, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(not(target_os = "linux"))]
fn map(file: &File, memory: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(memory, 0)
}

/// Starts the interpreter and returns the content of an image's file.
pub(super) fn make(
    engine: &Engine,
    instance: &InstancePre<Host>,
    library: Content,
    version: u32,
) -> Result<Vec<u8>, SandboxError> {
    start(engine, instance, library, version)
        .map_err(|error| SandboxError::Prepare { stage: "starting CPython", reason: format!("{error:#}") })
}

fn start(engine: &Engine, instance: &InstancePre<Host>, library: Content, version: u32) -> wasmtime::Result<Vec<u8>> {
    let mut host = Host::new(START_BYTES, START_OUTPUT_BYTES);
    let sources = SOURCES.map(|(name, text)| (format!("{DRIVER_FOLDER}/{name}"), Content::Text(text)));
    host.files = Files::new(Arc::new(Tree::new([(library_path(version), library)].into_iter().chain(sources))));
    let mut store = Store::new(engine, host);
    store.limiter(|host| host);
    let instance = instance.instantiate(&mut store)?;
    let memory =
        instance.get_memory(&mut store, "memory").ok_or_else(|| wasmtime::Error::msg("it exports no memory"))?;
    let stack_top = match instance.get_global(&mut store, module::STACK_POINTER).map(|global| global.get(&mut store)) {
        Some(wasmtime::Val::I32(address)) => address as u32,
        _ => return Err(wasmtime::Error::msg("it has no stack pointer")),
    };
    protect_stack(&mut store, &instance, stack_top)?;
    let answer = import_all(&mut store, &instance, memory)?;
    // Garbage: pages that are zero need no room.
    memory.data_mut(&mut store)[..stack_top as usize].fill(0);
    let started = memory.data(&store).to_vec();
    let set_interrupt: TypedFunc<i32, i32> = function(&instance, &mut store, module::SET_INTERRUPT)?;
    set_interrupt.call(&mut store, TIME_SIGNAL)?;
    let interrupt = changes(&started, memory.data(&store), stack_top as usize);
    if interrupt.is_empty() || interrupt.len() > MAX_BITS {
        return Err(wasmtime::Error::msg(format!("a signal changes {} bytes", interrupt.len())));
    }
    Ok(Image::encode(started, &interrupt, answer, version))
}

/// CPython assumes a stack of 128 KiB, whatever it was linked with: code that recurses through C would end after some
/// 200 calls.
fn protect_stack(store: &mut Store<Host>, instance: &Instance, stack_top: u32) -> wasmtime::Result<()> {
    let thread: TypedFunc<(), u32> = function(instance, &mut *store, module::THREAD)?;
    let set_stack: TypedFunc<(u32, u32, u32), i32> = function(instance, &mut *store, module::SET_STACK)?;
    let thread = thread.call(&mut *store, ())?;
    let size = stack_top.saturating_sub(SPARE_STACK_BYTES);
    match set_stack.call(&mut *store, (thread, stack_top - size, size))? {
        0 => Ok(()),
        _ => Err(wasmtime::Error::msg(format!("it can't use a stack of {size} bytes"))),
    }
}

/// Runs [`START`]; returns the address of the function that answers calls.
fn import_all(store: &mut Store<Host>, instance: &Instance, memory: Memory) -> wasmtime::Result<u32> {
    let alloc: TypedFunc<u32, u32> = function(instance, &mut *store, "host_alloc")?;
    let turn: TypedFunc<(u32, u32), i32> = function(instance, &mut *store, "turn")?;
    let address = alloc.call(&mut *store, START.len() as u32)?;
    memory.write(&mut *store, address as usize, START.as_bytes())?;
    let status = turn.call(&mut *store, (address, START.len() as u32));
    let reply = store.data_mut().files.take_reply();
    let said = std::mem::replace(&mut store.data_mut().output, Output::new(0)).finish().0;
    match status.map_err(|error| error.context(said.clone()))? {
        0 => {
            let address = std::str::from_utf8(&reply).ok().and_then(|text| text.parse().ok());
            address.ok_or_else(|| wasmtime::Error::msg(format!("no function answers: {said}")))
        }
        status => Err(wasmtime::Error::msg(format!("its start returned {status}: {said}"))),
    }
}

/// The bits that were set beyond `from`.
fn changes(before: &[u8], after: &[u8], from: usize) -> Vec<Bits> {
    let changed = before.iter().zip(after).enumerate().skip(from).filter(|(_, (before, after))| before != after);
    changed.map(|(address, (before, after))| Bits { address: address as u32, bits: after & !before }).collect()
}

/// A function that the module must export.
pub(crate) fn function<P: WasmParams, R: WasmResults>(
    instance: &Instance,
    mut store: impl AsContextMut,
    name: &str,
) -> wasmtime::Result<TypedFunc<P, R>> {
    instance.get_typed_func(&mut store, name).map_err(|error| error.context(format!("its function {name}")))
}

/// What a session sees: the library alone.
pub(super) fn tree(library: Content, version: u32) -> Arc<Tree> {
    Arc::new(Tree::new([(library_path(version), library)]))
}

/// Where CPython looks for its library.
fn library_path(version: u32) -> String {
    format!("usr/local/lib/python{version}.zip")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn an_image_comes_back_as_it_was() {
        let interrupt = [Bits { address: 70_000, bits: 1 }, Bits { address: 5, bits: 0x80 }];
        let memory: Vec<u8> = (0..3 << 16).map(|i| (i % 251) as u8).collect();
        let bytes = Image::encode(memory.clone(), &interrupt, 4711, 315);
        let image = Image::open(file(&bytes)).unwrap();
        assert_eq!((image.memory_bytes, &*image.interrupt), (memory.len(), &interrupt[..]));
        assert_eq!((image.answer, image.version), (4711, 315));
        for len in [0, 7, FOOTER_BYTES, bytes.len() - 1] {
            assert!(Image::open(file(&bytes[..len])).is_none(), "cut to {len}");
        }

        let engine = crate::python::engine_of(&Default::default()).unwrap();
        let mut store = Store::new(&engine, Host::new(usize::MAX, 0));
        let fresh = |store: &mut Store<Host>, n_pages| {
            Memory::new(&mut *store, wasmtime::MemoryType::new(n_pages, None)).unwrap()
        };
        let (one, other) = (fresh(&mut store, 1), fresh(&mut store, 2));
        for memory in [one, other] {
            image.lay_under(&mut store, memory).unwrap();
        }
        one.data_mut(&mut store)[100] = 200;
        assert_eq!(one.data(&store)[100], 200);
        assert!(one.data(&store)[101..] == memory[101..]);
        assert!(other.data(&store) == memory, "one memory's bytes are not the other's");
        one.grow(&mut store, 1).unwrap();
        assert_eq!(one.data(&store).len(), 4 << 16);
        assert_eq!(one.data(&store)[(4 << 16) - 1], 0);
        let too_long = fresh(&mut store, 4);
        assert!(image.lay_under(&mut store, too_long).is_err());
    }

    #[test]
    fn set_bits_are_found() {
        let before = [0, 7, 1, 4, 0];
        assert_eq!(changes(&before, &[1, 7, 3, 4, 8], 1), [Bits { address: 2, bits: 2 }, Bits { address: 4, bits: 8 }]);
    }
}
