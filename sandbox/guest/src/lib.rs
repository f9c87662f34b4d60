//! The Python interpreter as a WebAssembly module: RustPython with a frozen standard library, sympy and mpmath.
//!
//! Owns the calls that the host makes (`init`, `seed`, `run`, `is_complete`) and the native module `_sandbox` that
//! Python's `_cell.py` builds on; what a cell *means* (echo, tracebacks, hints) is written there. Called only by the
//! host in `sandbox/src`. Surprising fact: `init` runs once per machine, not once per session. The memory it leaves
//! behind, with sympy imported, is what every session starts from.

mod allocator;
mod arrays;
mod cell;
mod draws;
mod facts;
mod frozen;
mod interrupt;
mod ntheory;

use rustpython_vm::{AsObject, Interpreter, InterpreterBuilder, PyObjectRef, PyResult, Settings, VirtualMachine};
use std::{cell::RefCell, panic};

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator::new();

/// What lives as long as the module's memory.
#[derive(Default)]
struct Guest {
    interpreter: Option<Interpreter>,
    /// The code of the next call, written by the host.
    input: Vec<u8>,
    /// Kind and message of the last call's exception, separated by a NUL.
    report: Vec<u8>,
}

thread_local! {
    static GUEST: RefCell<Guest> = RefCell::default();
}

/// Statuses of `run`, shared with the host (`sandbox/src/session.rs`) and `_cell.py`, which also answers 2 for
/// "the code left by SystemExit".
const STATUS_OK: i32 = 0;
const STATUS_EXCEPTION: i32 = 1;
const STATUS_BROKEN: i32 = 3;

/// Stack of the module (`build.rs` has the linker reserve it), and the part of it that the interpreter leaves alone
/// when it raises RecursionError; the parser, which does not count its depth, has that much more room.
const STACK_BYTES: usize = 32 << 20;
const SPARE_STACK_BYTES: usize = 8 << 20;
/// The interpreter cannot measure a WebAssembly stack: it assumes that this much lies below the place where it was made.
const ASSUMED_STACK_BYTES: usize = 8 << 20;
const INIT_DEPTH_BYTES: usize = STACK_BYTES - SPARE_STACK_BYTES - ASSUMED_STACK_BYTES;

/// Builds the interpreter and imports what contest code uses. Returns 0, or 1 after printing why it failed.
#[unsafe(no_mangle)]
pub extern "C" fn init() -> i32 {
    // The interpreter is made deep in the stack, so that what it assumes to be below it is there to be used.
    let mut depth = std::mem::MaybeUninit::<[u8; INIT_DEPTH_BYTES]>::uninit();
    std::hint::black_box(&mut depth);
    let status = build_interpreter();
    std::hint::black_box(&mut depth);
    status
}

#[inline(never)]
fn build_interpreter() -> i32 {
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("unknown");
        eprintln!("the interpreter itself failed: {message}");
    }));
    let mut settings = Settings::default();
    // The same hashes in every session: sets iterate alike, runs can be repeated.
    settings.hash_seed = Some(0);
    settings.int_max_str_digits = 0;
    settings.import_site = false;
    settings.write_bytecode = false;
    settings.install_signal_handlers = false;
    settings.safe_path = true;
    settings.argv = vec!["".into()];
    let builder = InterpreterBuilder::new().settings(settings);
    let stdlib = rustpython_stdlib::stdlib_module_defs(&builder.ctx);
    let own = [
        cell::_sandbox::module_def(&builder.ctx),
        ntheory::_ntheory::module_def(&builder.ctx),
        arrays::_arrays::module_def(&builder.ctx),
        draws::_draws::module_def(&builder.ctx),
        facts::_facts::module_def(&builder.ctx),
    ];
    let interpreter =
        builder.add_native_modules(&stdlib).add_native_modules(&own).add_frozen_modules(frozen::library()).build();
    interrupt::install();
    let ready = interpreter.enter(|vm| {
        let started = vm.new_scope_with_main().and_then(|_| call(vm, "start", ()));
        started.map_err(|error| vm.print_exception(&error)).is_ok()
    });
    GUEST.with_borrow_mut(|guest| guest.interpreter = Some(interpreter));
    if ready { 0 } else { 1 }
}

/// A buffer of `len` bytes for the code of the next call.
#[unsafe(no_mangle)]
pub extern "C" fn input(len: usize) -> *mut u8 {
    GUEST.with_borrow_mut(|guest| {
        guest.input.clear();
        guest.input.resize(len, 0);
        guest.input.as_mut_ptr()
    })
}

/// Seeds every random generator of the session.
#[unsafe(no_mangle)]
pub extern "C" fn seed(seed: u64) -> i32 {
    with_vm(|vm, _| match call(vm, "seed", (seed,)) {
        Ok(_) => STATUS_OK,
        Err(error) => {
            vm.print_exception(&error);
            STATUS_BROKEN
        }
    })
}

/// Runs the code in the input buffer as one cell and returns a status.
#[unsafe(no_mangle)]
pub extern "C" fn run() -> i32 {
    with_vm(|vm, source| {
        let outcome = call(vm, "run", (source,)).and_then(|result| {
            let (status, kind, message): (i32, String, String) = unpack(vm, result)?;
            Ok((status, kind, message))
        });
        match outcome {
            Ok((status, kind, message)) => {
                set_report(&kind, &message);
                status
            }
            Err(error) => {
                // `_cell.run` catches everything that a cell raises; only a broken interpreter gets here.
                set_report(&error.class().name(), "the cell runner failed");
                vm.print_exception(&error);
                STATUS_EXCEPTION
            }
        }
    })
}

/// 0: the input buffer can be run, 1: it needs more lines, 2: it can never compile.
#[unsafe(no_mangle)]
pub extern "C" fn is_complete() -> i32 {
    with_vm(|vm, source| {
        call(vm, "is_complete", (source,)).and_then(|answer| answer.try_into_value::<i32>(vm)).unwrap_or(2)
    })
}

/// Address of the last report.
#[unsafe(no_mangle)]
pub extern "C" fn report() -> *const u8 {
    GUEST.with_borrow(|guest| guest.report.as_ptr())
}

/// Length of the last report.
#[unsafe(no_mangle)]
pub extern "C" fn report_len() -> usize {
    GUEST.with_borrow(|guest| guest.report.len())
}

/// Enters the interpreter with the text of the input buffer. Bytes that are not UTF-8 become replacement characters.
fn with_vm(act: impl FnOnce(&VirtualMachine, String) -> i32) -> i32 {
    GUEST.with(|guest| {
        let source = String::from_utf8_lossy(&std::mem::take(&mut guest.borrow_mut().input)).into_owned();
        set_report("", "");
        interrupt::clear();
        // SAFETY: `interpreter` is set once, by `init`, and never moved or dropped: the reference outlives the call
        // although the cell is borrowed again (by `set_report`) while Python runs.
        let interpreter = unsafe { (*guest.as_ptr()).interpreter.as_ref() };
        interpreter.map_or(STATUS_BROKEN, |interpreter| interpreter.enter(|vm| act(vm, source)))
    })
}

fn set_report(kind: &str, message: &str) {
    GUEST.with_borrow_mut(|guest| guest.report = [kind.as_bytes(), b"\0", message.as_bytes()].concat());
}

/// Calls a function of `_cell.py`.
fn call(vm: &VirtualMachine, name: &'static str, args: impl rustpython_vm::function::IntoFuncArgs) -> PyResult {
    vm.import("_cell", 0)?.get_attr(name, vm)?.call(args, vm)
}

fn unpack(vm: &VirtualMachine, result: PyObjectRef) -> PyResult<(i32, String, String)> {
    Ok((
        result.get_item(&0usize, vm)?.try_into_value(vm)?,
        result.get_item(&1usize, vm)?.str(vm)?.to_string_lossy().into_owned(),
        result.get_item(&2usize, vm)?.str(vm)?.to_string_lossy().into_owned(),
    ))
}
