//! The native module `_sandbox`: writing to the host and compiling a cell.
//!
//! A cell is compiled in two parts, its statements and its last bare expression, from one syntax tree, so that the
//! value can be echoed and every traceback still points at the user's own line and column.

use rustpython_vm::pymodule;

#[pymodule]
pub mod _sandbox {
    use rustpython_vm::{
        PyObjectRef, PyResult, VirtualMachine,
        builtins::{PyCode, PyStrRef},
        compiler::{Mode, ast, codegen, parser},
    };
    use std::{fs::File, io::Write, mem::ManuallyDrop, os::fd::FromRawFd};

    /// Writes text to stdout, unbuffered; returns its length in characters as `file.write` does.
    #[pyfunction]
    fn write_out(text: PyStrRef) -> usize {
        write(1, &text)
    }

    /// Writes text to stderr.
    #[pyfunction]
    fn write_err(text: PyStrRef) -> usize {
        write(2, &text)
    }

    fn write(fd: i32, text: &PyStrRef) -> usize {
        // SAFETY: descriptors 1 and 2 are the host's and stay open for the life of the module; ManuallyDrop keeps
        // this handle from closing them.
        let mut file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        // The host takes every byte; what it does not keep, it counts.
        let _ = file.write_all(text.to_string_lossy().as_bytes());
        text.char_len()
    }

    /// `(statements, expression)`: code objects, either may be None. Raises SyntaxError.
    #[pyfunction]
    fn compile_cell(source: PyStrRef, filename: PyStrRef, vm: &VirtualMachine) -> PyResult<(PyObjectRef, PyObjectRef)> {
        let source = source.to_string_lossy().replace("\r\n", "\n");
        let filename = filename.to_string_lossy().into_owned();
        let whole = vm
            .compile(&source, Mode::Exec, filename.clone())
            .map_err(|error| error.into_pyexception(vm, Some(&source)))?;
        let Ok(parsed) = parser::parse_module(&source) else {
            return Ok((whole.into(), vm.ctx.none()));
        };
        let mut module = parsed.into_syntax();
        let Some(ast::Stmt::Expr(_)) = module.body.last() else {
            return Ok((whole.into(), vm.ctx.none()));
        };
        let Some(ast::Stmt::Expr(last)) = module.body.pop() else {
            unreachable!("the last statement was matched above")
        };
        let expression = ast::ModExpression { node_index: Default::default(), range: last.range, body: last.value };
        let file = ruff_source_file::SourceFileBuilder::new(filename.as_str(), source.as_str()).finish();
        let compile = |tree: ast::Mod, mode: Mode| {
            codegen::compile::compile_top(tree, file.clone(), mode, vm.compile_opts())
                .map(|code| PyCode::new_ref_from_bytecode(vm, code).into())
                .map_err(|error| vm.new_syntax_error(&error.into(), Some(&source)))
        };
        let body = if module.body.is_empty() { vm.ctx.none() } else { compile(ast::Mod::Module(module), Mode::Exec)? };
        Ok((body, compile(ast::Mod::Expression(expression), Mode::Eval)?))
    }
}
