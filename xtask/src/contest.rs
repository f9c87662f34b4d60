//! `cargo xtask contest`: the notebook cell against a stand-in of the contest's gateway. It makes a virtual environment
//! with gRPC and data frames in the target directory, builds the program and writes a small model of random weights,
//! whose answers don't matter. Called by hand; the default tests need none of that.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::shell;

const PACKAGES: [&str; 5] = ["grpcio", "protobuf", "pyarrow", "polars", "pandas"];

/// Runs the cell's tests, those without the gateway too.
pub fn run(root: &Path) -> Result<()> {
    let folder = root.join("target/contest");
    let python = folder.join("venv/bin/python");
    let imports = "import grpc, google.protobuf, pyarrow, polars, pandas";
    if shell::capture(Command::new(&python).args(["-c", imports])).is_none() {
        shell::step("making a virtual environment with gRPC and data frames");
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
        shell::run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    }
    shell::step("building");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    shell::run(Command::new(cargo).args(["build", "--workspace"]).current_dir(root))?;
    let engine = root.join("target/debug/aimo-engine");
    let model = folder.join("random.gguf");
    if !model.is_file() {
        let like = ["synth", "--like", "qwen2.5-math-1.5b", "--layers", "2", "--shrink", "4", "-o"];
        shell::run(Command::new(&engine).args(like).arg(&model))?;
    }
    for test in ["test_cell.py", "test_gateway.py"] {
        shell::step(test);
        let mut command = Command::new(&python);
        command.args(["-W", "ignore::ResourceWarning"]).arg(root.join("tests/contest").join(test));
        shell::run(command.env("AIMO_ENGINE", &engine).env("AIMO_MODEL", &model))?;
    }
    Ok(())
}
