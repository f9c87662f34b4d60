//! Runs untrusted Python: a RustPython interpreter compiled to WebAssembly, with its standard library, sympy and
//! mpmath inside, on wasmtime; or a CPython that the user brings ([`Python::load_cpython`]).
//!
//! Owns the policy (limits, isolation, rollback) and the host side of the sandbox; it knows nothing of models: it gets
//! code and limits and gives back an [`Outcome`]. Code in a session can reach no file, socket, environment variable,
//! real clock or entropy. The interpreter itself is `sandbox/guest`, a separate workspace whose compiled module is kept
//! beside this crate. Surprising fact: a session is not "started"; it is a copy-on-write copy of the memory of an
//! interpreter that has already imported sympy.
//!
//! A program that uses wasmtime for other things loads a [`Python`] before it makes an engine of its own: this crate's
//! handler of faults has to be there before wasmtime's.

mod alarm;
mod brake;
mod cache;
mod chunks;
mod confine;
mod cpython;
mod guest;
mod outcome;
mod output;
#[cfg(target_os = "linux")]
mod pagemap;
mod pages;
mod python;
mod session;
mod snapshot;
mod stack;
mod warm;
mod wasi;
mod worker;

pub use confine::Confinement;
pub use outcome::{Completeness, Limits, Outcome, Progress, SandboxError, Status};
pub use python::Python;
pub use session::{Session, Snapshot};
pub use worker::{WorkerSession, Workers, serve};
