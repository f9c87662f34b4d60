//! The program `aimo-engine`: arguments in, output out. It owns no logic that a library could own: the engine, the
//! solver and the sandbox are crates of their own.
//!
//! Exit status: 0 when the command did what it was asked, 1 when it failed, 2 for wrong usage, 130 when it was
//! interrupted. A reader of standard output that goes away (`| head`) ends the program quietly.

mod args;
mod bandwidth;
mod commands;
mod failure;
mod interpreter;
mod load;
mod measure;
mod progress;
mod terminal;
mod thoughts;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::with_long_dashes(std::env::args_os()));
    let quiet = cli.quiet;
    let mut out = std::io::stdout().lock();
    let result = match cli.command {
        Command::Run(args) => commands::run::run(&args, quiet, &mut out),
        Command::Eval(args) => commands::eval::run(&args, quiet, &mut out),
        Command::Replay(args) => commands::replay::run(&args, &mut out),
        Command::Report(args) => commands::report::run(&args, &mut out),
        Command::Generate(args) => commands::generate::run(&args, quiet, &mut out),
        Command::Info(args) => commands::info::run(&args, &mut out),
        Command::Tokenize(args) => commands::tokenize::run(&args, &mut out),
        Command::Logits(args) => commands::logits::run(&args, quiet, &mut out),
        Command::Bench(args) => commands::bench::run(&args, quiet, &mut out),
        Command::Perplexity(args) => commands::perplexity::run(&args, quiet, &mut out),
        Command::Synth(args) => commands::synth::run(&args, quiet, &mut out),
        Command::Devices(args) => commands::devices::run(&args, &mut out),
        Command::Kernels(args) => commands::kernels::run(&args, quiet, &mut out),
        Command::Roofline(args) => commands::roofline::run(&args, &mut out),
        Command::Tune(args) => commands::tune::run(&args, quiet, &mut out),
        Command::Python(args) => commands::python::run(&args, quiet, &mut out),
        Command::PythonWorker => commands::python::serve_worker(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_status())
        }
    }
}
