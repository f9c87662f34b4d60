//! Makes functions of CPython callable that its module has and does not export.
//!
//! The module keeps the names of its functions and globals; those in [`EXTRA`] are added to its exports, everything
//! else stays as it is (custom sections aside, which nothing reads here). Called by `cpython` before the module is
//! compiled.

use std::collections::HashMap;
use wasm_encoder::{ExportKind, ExportSection, Module, RawSection};
use wasmparser::{BinaryReaderError, ExternalKind, KnownCustom, Name, Parser, Payload};

/// What is exported where the module has it.
const EXTRA: [&str; 5] = [CALL, SET_INTERRUPT, SET_STACK, THREAD, STACK_POINTER];
/// `PyObject *PyObject_CallNoArgs(PyObject *callable)`.
pub(crate) const CALL: &str = "PyObject_CallNoArgs";
/// `int PyErr_SetInterruptEx(int signum)`: as if a signal had come.
pub(super) const SET_INTERRUPT: &str = "PyErr_SetInterruptEx";
/// `int PyUnstable_ThreadState_SetStackProtection(PyThreadState *, void *start, size_t size)` (3.15).
pub(super) const SET_STACK: &str = "PyUnstable_ThreadState_SetStackProtection";
/// `PyThreadState *PyThreadState_Get(void)`.
pub(super) const THREAD: &str = "PyThreadState_Get";
/// The global that holds the address of the stack's end.
pub(super) const STACK_POINTER: &str = "__stack_pointer";

/// What the module exports by itself.
const OWN: [&str; 3] = ["memory", "host_alloc", "turn"];

/// Why a module is not CPython's.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadModule {
    #[error("{0}")]
    Damaged(#[from] BinaryReaderError),
    #[error("it has no {0}")]
    Lacks(&'static str),
}

/// `wasm` with more exports.
pub(super) fn with_exports(wasm: &[u8]) -> Result<Vec<u8>, BadModule> {
    let found = named(wasm)?;
    let mut names = Vec::new();
    let mut module = Module::new();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::ExportSection(exports) => {
                let mut section = ExportSection::new();
                for export in exports {
                    let export = export?;
                    let kind = match export.kind {
                        ExternalKind::Func | ExternalKind::FuncExact => ExportKind::Func,
                        ExternalKind::Table => ExportKind::Table,
                        ExternalKind::Memory => ExportKind::Memory,
                        ExternalKind::Global => ExportKind::Global,
                        ExternalKind::Tag => ExportKind::Tag,
                    };
                    section.export(export.name, kind, export.index);
                    names.push(export.name);
                }
                for name in EXTRA {
                    if names.contains(&name) {
                        continue;
                    }
                    if let Some((kind, index)) = found.get(name) {
                        section.export(name, *kind, *index);
                        names.push(name);
                    }
                }
                module.section(&section);
            }
            Payload::CustomSection(_) => {}
            other => {
                if let Some((id, range)) = other.as_section() {
                    module.section(&RawSection { id, data: &wasm[range] });
                }
            }
        }
    }
    match OWN.into_iter().chain(EXTRA).find(|name| !names.contains(name)) {
        Some(name) => Err(BadModule::Lacks(name)),
        None => Ok(module.finish()),
    }
}

/// What of [`EXTRA`] is there, by the module's own names.
fn named(wasm: &[u8]) -> Result<HashMap<&'static str, (ExportKind, u32)>, BinaryReaderError> {
    let mut found = HashMap::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let Payload::CustomSection(section) = payload? else { continue };
        let KnownCustom::Name(subsections) = section.as_known() else { continue };
        for subsection in subsections {
            let (kind, names) = match subsection? {
                Name::Function(names) => (ExportKind::Func, names),
                Name::Global(names) => (ExportKind::Global, names),
                _ => continue,
            };
            for naming in names {
                let naming = naming?;
                if let Some(name) = EXTRA.iter().find(|name| **name == naming.name) {
                    found.insert(*name, (kind, naming.index));
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_encoder::{
        CodeSection, ConstExpr, Function, FunctionSection, GlobalSection, GlobalType, MemorySection, MemoryType,
        NameMap, NameSection, TypeSection, ValType,
    };

    /// A module with CPython's functions, of which each returns its index; `hidden` ones have a name and are no export.
    fn module(hidden: &[&str]) -> Vec<u8> {
        let (mut types, mut functions, mut memories, mut globals) =
            (TypeSection::new(), FunctionSection::new(), MemorySection::new(), GlobalSection::new());
        let (mut exports, mut code) = (ExportSection::new(), CodeSection::new());
        types.ty().function([], [ValType::I32]);
        memories.memory(MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None });
        let kind = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
        globals.global(kind, &ConstExpr::i32_const(1 << 16));
        exports.export("memory", ExportKind::Memory, 0);
        let (mut function_names, mut global_names) = (NameMap::new(), NameMap::new());
        global_names.append(0, STACK_POINTER);
        for (idx, name) in (0..).zip(["host_alloc", "turn", CALL, SET_INTERRUPT, SET_STACK, THREAD]) {
            functions.function(0);
            let mut body = Function::new([]);
            body.instructions().i32_const(idx as i32).end();
            code.function(&body);
            function_names.append(idx, name);
            if !hidden.contains(&name) {
                exports.export(name, ExportKind::Func, idx);
            }
        }
        let mut names = NameSection::new();
        names.functions(&function_names);
        names.globals(&global_names);
        let mut module = Module::new();
        module.section(&types).section(&functions).section(&memories).section(&globals);
        module.section(&exports).section(&code).section(&names);
        module.finish()
    }

    #[test]
    fn hidden_functions_are_exported_by_their_names() {
        let wasm = with_exports(&module(&[CALL, SET_INTERRUPT, SET_STACK, THREAD])).unwrap();
        let engine = wasmtime::Engine::default();
        let module = wasmtime::Module::new(&engine, wasm).unwrap();
        let mut store = wasmtime::Store::new(&engine, ());
        let instance = wasmtime::Instance::new(&mut store, &module, &[]).unwrap();
        let mut call = |name| {
            let function = instance.get_typed_func::<(), i32>(&mut store, name).unwrap();
            function.call(&mut store, ()).unwrap()
        };
        assert_eq!(["turn", CALL, SET_INTERRUPT, SET_STACK, THREAD].map(&mut call), [1, 2, 3, 4, 5]);
        assert!(instance.get_global(&mut store, STACK_POINTER).is_some());
    }

    #[test]
    fn a_module_that_exports_them_already_stays_as_it_is() {
        let once = with_exports(&module(&[])).unwrap();
        assert_eq!(with_exports(&once).unwrap(), once);
    }

    #[test]
    fn what_is_no_cpython_is_an_error() {
        assert!(matches!(with_exports(&module(&["turn"])), Err(BadModule::Lacks("turn"))));
        assert!(matches!(with_exports(b"\0asm\x01\0\0\0"), Err(BadModule::Lacks("memory"))));
        assert!(matches!(with_exports(b"not a module"), Err(BadModule::Damaged(_))));
        let whole = module(&[]);
        for len in 0..whole.len() - 1 {
            // Cut behind the code it lacks the names alone, which it does without.
            let _ = with_exports(&whole[..len]);
        }
    }
}
