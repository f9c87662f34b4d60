//! The Python library inside the module: bytecode that `build.rs` compiled from the standard library, sympy and
//! mpmath, in RustPython's own frozen format.

use rustpython_compiler_core::frozen::FrozenLib;
use rustpython_vm::frozen::FrozenModule;

static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/library.frozen"));

/// Every frozen module by its dotted name.
pub fn library() -> impl Iterator<Item = (&'static str, FrozenModule)> {
    FrozenLib::from_ref(LIBRARY).decode()
}
