//! The native module `_sandbox`: writing to the host and compiling a cell.
//!
//! A cell is compiled once, as a block whose value is that of its last bare expression, so that it can be echoed and
//! every traceback still points at the user's own line and column. Surprising fact: such a block has no annotations of its
//! own; cells that annotate names are compiled in two parts.

use rustpython_vm::pymodule;

#[pymodule]
pub mod _sandbox {
    use ruff_source_file::SourceFile;
    use rustpython_vm::{
        PyObjectRef, PyResult, VirtualMachine,
        builtins::{PyCode, PyStrRef},
        compiler::{
            Mode,
            ast::{
                self,
                statement_visitor::{StatementVisitor, walk_stmt},
            },
            codegen, parser, pre_parse_source_error,
        },
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

    /// `(statements, expression)`: code objects, either may be None. The value of `expression` is the cell's. Raises
    /// SyntaxError.
    #[pyfunction]
    fn compile_cell(source: PyStrRef, filename: PyStrRef, vm: &VirtualMachine) -> PyResult<(PyObjectRef, PyObjectRef)> {
        let source = source.to_string_lossy().replace("\r\n", "\n");
        let filename = filename.to_string_lossy().into_owned();
        let file = ruff_source_file::SourceFileBuilder::new(filename.as_str(), source.as_str()).finish();
        // What is nested too deeply for the parser is an error of the compiler's own.
        let parsed = pre_parse_source_error(&file).ok().and_then(|()| parser::parse_module(&source).ok());
        let module = parsed.map(|parsed| parsed.into_syntax());
        let is_echoed = module.as_ref().is_some_and(|module| matches!(module.body.last(), Some(ast::Stmt::Expr(_))));
        let is_annotated = module.as_ref().is_some_and(|module| Annotations::are_in(&module.body));
        let mode = if is_echoed && !is_annotated { Mode::BlockExpr } else { Mode::Exec };
        let whole =
            vm.compile(&source, mode, filename).map_err(|error| error.into_pyexception(vm, Some(&source)))?.into();
        match module {
            Some(module) if is_echoed && is_annotated => in_parts(module, &file, &source, vm),
            _ if is_echoed => Ok((vm.ctx.none(), whole)),
            _ => Ok((whole, vm.ctx.none())),
        }
    }

    /// Whether a module's own names are annotated, or annotations mean something else in it.
    struct Annotations(bool);

    impl Annotations {
        fn are_in(body: &[ast::Stmt]) -> bool {
            let mut found = Annotations(false);
            found.visit_body(body);
            found.0
        }
    }

    impl StatementVisitor<'_> for Annotations {
        fn visit_stmt(&mut self, statement: &ast::Stmt) {
            match statement {
                ast::Stmt::AnnAssign(_) => self.0 = true,
                ast::Stmt::ImportFrom(import) if import.module.as_deref() == Some("__future__") => self.0 = true,
                // They have names of their own.
                ast::Stmt::FunctionDef(_) | ast::Stmt::ClassDef(_) => {}
                _ => walk_stmt(self, statement),
            }
        }
    }

    /// The statements of a cell and its last expression, each for itself.
    fn in_parts(
        mut module: ast::ModModule,
        file: &SourceFile,
        source: &str,
        vm: &VirtualMachine,
    ) -> PyResult<(PyObjectRef, PyObjectRef)> {
        let Some(ast::Stmt::Expr(last)) = module.body.pop() else {
            unreachable!("the caller has seen that the last statement is an expression")
        };
        let expression = ast::ModExpression { node_index: Default::default(), range: last.range, body: last.value };
        let compile = |tree: ast::Mod, mode: Mode| {
            codegen::compile::compile_top(tree, file.clone(), mode, vm.compile_opts())
                .map(|code| PyCode::new_ref_from_bytecode(vm, code).into())
                .map_err(|error| vm.new_syntax_error(&error.into(), Some(source)))
        };
        let body = compile(ast::Mod::Module(module), Mode::Exec)?;
        Ok((body, compile(ast::Mod::Expression(expression), Mode::Eval)?))
    }
}
