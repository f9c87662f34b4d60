//! Interrupts: how the host raises an exception inside running Python code.
//!
//! The host writes a kind into [`KIND`] and then sets the interpreter's flag (`interrupt_flag` of the patched
//! RustPython); before its next instruction the interpreter calls [`raise`]. Code that is inside a native function
//! goes on until that returns or polls. Called by `lib.rs` at start and, through the exports, by the host.

use rustpython_vm::{PyResult, VirtualMachine, signal};
use std::sync::atomic::{AtomicU8, Ordering};

/// What the host wants raised; 0 for nothing.
static KIND: AtomicU8 = AtomicU8::new(0);

/// Kinds, shared with the host (`sandbox/src/brake.rs`).
const TIME: u8 = 1;
const MEMORY: u8 = 2;

/// Lets interrupts through to the code that runs from now on.
pub fn install() {
    // Set once: the interpreter is made once.
    let _ = signal::INTERRUPT.set(raise);
}

/// Forgets an interrupt that came too late for the call it was meant for.
pub fn clear() {
    KIND.store(0, Ordering::Relaxed);
}

fn raise(vm: &VirtualMachine) -> PyResult<()> {
    match KIND.swap(0, Ordering::Relaxed) {
        TIME => {
            let kind = vm.ctx.exceptions.timeout_error.to_owned();
            Err(vm.new_os_subtype_error(kind, None, "the time limit of this cell is reached").upcast())
        }
        MEMORY => Err(vm.new_memory_error("the memory limit of this session is nearly reached")),
        _ => Ok(()),
    }
}

/// Address of the byte that asks the interpreter to look at the kind.
#[unsafe(no_mangle)]
pub extern "C" fn interrupt_flag() -> *const u8 {
    signal::interrupt_flag()
}

/// Address of the kind.
#[unsafe(no_mangle)]
pub extern "C" fn interrupt_kind() -> *const u8 {
    KIND.as_ptr()
}
