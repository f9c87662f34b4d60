//! `cargo xtask`: the tasks that a developer or a newcomer runs from the checkout.
//!
//! Owns the set-up of a fresh machine, the demo, the test run and the download of models; it contains nothing of the
//! engine and starts the built program as a process. Every task can be run again: what is already there is kept, and
//! each task says what it does before it does it.

mod contest;
mod coopmat;
mod cpython;
mod demo;
mod golden;
mod guest;
mod models;
mod setup;
mod shell;
mod test;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Tasks of the aimo-engine checkout.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine (compiler, Vulkan loader and drivers, validation layers, pip)
    Setup,
    /// From nothing to solved problems: install, build, fetch a model, solve the built-in problems
    Demo(demo::Args),
    /// Install what is missing and run every test of the workspace
    Test(test::Args),
    /// Run the tests of the kernels for matrix units, on a software driver that is unpacked into the user's cache
    Coopmat(coopmat::Args),
    /// Try the contest's notebook cell against a stand-in of the gateway (makes a virtual environment with gRPC)
    Contest,
    /// Build the Python interpreter of the sandbox for WebAssembly (its result is kept in the repository)
    Guest,
    /// Run CPython's own tests, or sympy's, in the sandbox: `suites cpython`, `suites sympy --native`
    Suites {
        /// cpython or sympy, --python PYTHON, --record, --native, names of modules
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Fetch CPython for the sandbox (`--python cpython:DIR`), and with --test run the tests on it
    Cpython(cpython::Args),
    /// Compute the whole reference logits of the models in the cache (needs python3 with gguf and numpy)
    Golden,
    /// Fetch models into the cache directory
    Models {
        /// Which ones
        #[arg(value_parser = models::known_names(), default_value = "qwen1.5b")]
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => setup::ensure(&setup::Need::ALL),
        Task::Demo(args) => demo::run(&root(), &args),
        Task::Test(args) => test::run(&root(), &args),
        Task::Coopmat(args) => coopmat::run(&root(), &args),
        Task::Contest => contest::run(&root()),
        Task::Guest => guest::build(&root()),
        Task::Suites { args } => {
            let mut cargo = Command::new("cargo");
            cargo.current_dir(root()).args(["run", "--release", "-p", "sandbox", "--example", "suites", "--"]);
            shell::run(cargo.args(args))
        }
        Task::Cpython(args) => cpython::run(&root(), &args),
        Task::Golden => golden::run(&root()),
        Task::Models { names } => setup::ensure(&[setup::Need::Pip]).and_then(|()| {
            names.iter().try_for_each(|name| models::fetch(models::by_name(name)?, &models::dir()?).map(|_| ()))
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies inside the workspace").to_path_buf()
}
