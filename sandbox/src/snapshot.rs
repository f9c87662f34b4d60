//! Turns the interpreter module into one that has already started: sympy imported, caches warm.
//!
//! Runs the module's `init` once and writes the memory it leaves behind into a new module's data (Wizer). Called by
//! `python` when no compiled interpreter is cached. Surprising fact: the stack below its resting point is zeroed
//! first. It is garbage, and pages that are zero need no room.

use crate::{outcome::SandboxError, stack::on_large_stack, wasi};
use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};
use wasmtime::{Engine, Instance, Module, Store, Val};
use wasmtime_wizer::{InstanceState, SnapshotVal, ValType, Wizer};

/// Memory that `init` may use.
const INIT_BYTES: usize = 2 << 30;
/// What `init` may print when it fails.
const INIT_OUTPUT_BYTES: usize = 16 << 10;

/// The module `wasm` with the state that its `init` leaves behind.
pub(crate) fn snapshot(engine: &Engine, wasm: &[u8]) -> Result<Vec<u8>, SandboxError> {
    let prepare = |stage| move |error: wasmtime::Error| SandboxError::Prepare { stage, reason: format!("{error:#}") };
    let wizer = Wizer::new();
    let (context, instrumented) = wizer.instrument(wasm).map_err(prepare("reading the module"))?;
    let module = Module::new(engine, &instrumented).map_err(prepare("compiling the module"))?;
    let started = on_large_stack(|| start(&module)).map_err(wasmtime::Error::from).flatten();
    let mut started = started.map_err(prepare("importing sympy"))?;
    let snapshot = ready(wizer.snapshot(&context, &mut started));
    snapshot.map_err(prepare("writing the snapshot"))
}

struct Started {
    store: Store<wasi::Host>,
    instance: Instance,
    /// Resting point of the stack, which grows down to address 0.
    stack_top: usize,
}

fn start(module: &Module) -> wasmtime::Result<Started> {
    let engine = module.engine();
    let host = wasi::Host::new(INIT_BYTES, INIT_OUTPUT_BYTES);
    let mut store = Store::new(engine, host);
    store.limiter(|host| host);
    let instance = wasi::linker(engine, module)?.instantiate(&mut store, module)?;
    if let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut store, "_initialize") {
        initialize.call(&mut store, ())?;
    }
    let stack_top = match instance.get_global(&mut store, "__stack_pointer").map(|global| global.get(&mut store)) {
        Some(Val::I32(address)) => address as u32 as usize,
        _ => 0,
    };
    let init = instance.get_typed_func::<(), i32>(&mut store, "init")?;
    let status = init.call(&mut store, ());
    let said = std::mem::replace(&mut store.data_mut().output, crate::output::Output::new(0)).finish().0;
    match status {
        Ok(0) => Ok(Started { store, instance, stack_top }),
        Ok(status) => Err(wasmtime::Error::msg(format!("init returned {status}: {said}"))),
        Err(error) => Err(error.context(said)),
    }
}

/// Wizer asks for state through futures; ours never wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("reading an instance's state does not wait"),
    }
}

impl InstanceState for Started {
    async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
        let global = self.instance.get_global(&mut self.store, name).expect("an export that wizer added");
        match global.get(&mut self.store) {
            Val::I32(value) => SnapshotVal::I32(value),
            Val::I64(value) => SnapshotVal::I64(value),
            Val::F32(value) => SnapshotVal::F32(value),
            Val::F64(value) => SnapshotVal::F64(value),
            Val::V128(value) => SnapshotVal::V128(value.as_u128()),
            other => unreachable!("a global of type {other:?} in a module without reference types"),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.instance.get_memory(&mut self.store, name).expect("an export that wizer added");
        let data = memory.data_mut(&mut self.store);
        data[..self.stack_top].fill(0);
        contents(data);
    }
}
