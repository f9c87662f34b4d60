//! How the host calls into an interpreter: the few requests that a session makes of either of the two.
//!
//! RustPython is our own module and exports a function for each; CPython is somebody else's, and one of its functions
//! reads the request from a descriptor (`cpython/driver.py`). Called by `session`, in the thread of a call. Surprising
//! fact: what an answer means is the same for both, since the same `_cell.py` gives it.

use crate::{
    brake::Interrupt,
    cpython::{self, CPython, Files},
    wasi::Host,
};
use std::sync::Arc;
use wasmtime::{AsContextMut, Instance, Memory, Result, Store, TypedFunc};

/// Statuses of a run (`guest/python/_cell.py`).
pub(crate) const OK: i32 = 0;
pub(crate) const EXCEPTION: i32 = 1;
pub(crate) const EXITED: i32 = 2;

/// Which interpreter a module is.
#[derive(Debug)]
pub(crate) enum Guest {
    RustPython,
    CPython(CPython),
}

/// What a session asks of its interpreter.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Seed every random generator.
    Seed(u64),
    /// Run a cell.
    Run(String),
    /// Say whether a cell is whole.
    IsComplete(String),
}

/// The functions of one instance.
pub(crate) enum Calls {
    RustPython(Box<Exports>),
    CPython {
        /// Calls a Python function.
        call: TypedFunc<u32, u32>,
        /// The one that answers.
        answer: u32,
    },
}

/// RustPython's functions.
pub(crate) struct Exports {
    input: TypedFunc<u32, u32>,
    seed: TypedFunc<u64, i32>,
    run: TypedFunc<(), i32>,
    is_complete: TypedFunc<(), i32>,
    report: TypedFunc<(), u32>,
    report_len: TypedFunc<(), u32>,
}

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: i32,
    /// Class and message of the exception, if there was one.
    pub(crate) kind: String,
    pub(crate) message: String,
}

impl Guest {
    /// What a session that has nothing open sees.
    pub(crate) fn files(&self) -> Files {
        match self {
            Guest::RustPython => Files::default(),
            Guest::CPython(cpython) => cpython.view(),
        }
    }

    /// Makes a fresh instance ready: its memory, and the host's knowledge of it.
    pub(crate) fn begin(&self, store: &mut Store<Host>, instance: &Instance, memory: Memory) -> Result<Calls> {
        store.data_mut().memory = Some(memory);
        let interrupt = match self {
            Guest::RustPython => Interrupt::Flag {
                flag: address(instance, &mut *store, "interrupt_flag")?,
                kind: address(instance, &mut *store, "interrupt_kind")?,
            },
            Guest::CPython(cpython) => {
                cpython.begin(store, memory)?;
                Interrupt::Signal(Arc::clone(&cpython.image.interrupt))
            }
        };
        if !interrupt.fits(memory.data_size(&*store)) {
            return Err(wasmtime::Error::msg("the interpreter's flags lie outside its memory"));
        }
        // SAFETY: the memory is the store's own and never moves, and its brake only touches it while the store runs a
        // call.
        unsafe { store.data().brake.fix(memory.data_ptr(&*store), interrupt) };
        Ok(match self {
            Guest::RustPython => Calls::RustPython(Box::new(Exports {
                input: instance.get_typed_func(&mut *store, "input")?,
                seed: instance.get_typed_func(&mut *store, "seed")?,
                run: instance.get_typed_func(&mut *store, "run")?,
                is_complete: instance.get_typed_func(&mut *store, "is_complete")?,
                report: instance.get_typed_func(&mut *store, "report")?,
                report_len: instance.get_typed_func(&mut *store, "report_len")?,
            })),
            Guest::CPython(cpython) => Calls::CPython {
                call: cpython::function(instance, &mut *store, cpython::CALL)?,
                answer: cpython.image.answer,
            },
        })
    }
}

impl Calls {
    /// Makes one request. An error ended the call by force.
    pub(crate) fn ask(&self, store: &mut Store<Host>, memory: Memory, request: Request) -> Result<Reply> {
        match self {
            Calls::RustPython(exports) => {
                let Exports { input, seed, run, is_complete, .. } = &**exports;
                let status = match request {
                    Request::Seed(value) => seed.call(&mut *store, value)?,
                    Request::Run(code) => {
                        put(store, memory, input, &code)?;
                        run.call(&mut *store, ())?
                    }
                    Request::IsComplete(code) => {
                        put(store, memory, input, &code)?;
                        is_complete.call(&mut *store, ())?
                    }
                };
                let (kind, message) = if status == OK { Default::default() } else { exports.report(store, memory) };
                Ok(Reply { status, kind, message })
            }
            Calls::CPython { call, answer } => {
                let (kind, text) = match request {
                    Request::Seed(value) => ('s', value.to_string()),
                    Request::Run(code) => ('r', code),
                    Request::IsComplete(code) => ('c', code),
                };
                store.data_mut().files.ask(format!("{kind}{text}").into_bytes());
                let result = call.call(&mut *store, *answer)?;
                let reply = store.data_mut().files.take_reply();
                let mut parts = reply.splitn(3, |byte| *byte == 0).map(|part| String::from_utf8_lossy(part));
                let status = parts.next().and_then(|status| status.parse().ok()).filter(|_| result != 0);
                let status = status.ok_or_else(|| wasmtime::Error::msg("the cell runner failed"))?;
                let mut next = || parts.next().unwrap_or_default().into_owned();
                Ok(Reply { status, kind: next(), message: next() })
            }
        }
    }
}

impl Exports {
    /// Kind and message of the last exception.
    fn report(&self, store: &mut Store<Host>, memory: Memory) -> (String, String) {
        let Exports { report, report_len, .. } = self;
        let mut read = || -> Result<Vec<u8>> {
            let address = report.call(&mut *store, ())? as usize;
            let mut bytes = vec![0; report_len.call(&mut *store, ())? as usize];
            memory.read(&*store, address, &mut bytes)?;
            Ok(bytes)
        };
        let report = read().unwrap_or_default();
        let mut parts = report.splitn(2, |byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }
}

/// Writes `code` where RustPython wants it.
fn put(store: &mut Store<Host>, memory: Memory, input: &TypedFunc<u32, u32>, code: &str) -> Result<()> {
    let address = input.call(&mut *store, code.len() as u32)?;
    Ok(memory.write(store, address as usize, code.as_bytes())?)
}

/// Calls an export that returns an address and does nothing else.
fn address(instance: &Instance, mut store: impl AsContextMut, name: &str) -> Result<usize> {
    let function = instance.get_typed_func::<(), u32>(&mut store, name)?;
    function.call(store, ()).map(|address| address as usize)
}
