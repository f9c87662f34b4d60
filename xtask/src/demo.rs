//! `cargo xtask demo`: from a bare checkout to solved problems, in one command.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Need};
use crate::{models, shell};

/// Arguments of the demo.
#[derive(clap::Args)]
pub struct Args {
    /// A model that can be fetched (qwen0.5b, qwen1.5b), or the path of a GGUF file
    #[arg(short, long, default_value = "qwen1.5b")]
    model: String,
    /// Attempts per problem
    #[arg(long)]
    attempts: Option<u32>,
    /// More arguments for `aimo-engine run`, e.g. `--temp 0.6`
    #[arg(last = true)]
    more: Vec<String>,
}

/// Sets up, builds, fetches, prepares the sandbox and solves the built-in problems.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    let mut needs = vec![Need::Compiler];
    // A GPU's render node: only then is the Vulkan loader of use, the demo runs on the CPU otherwise.
    if Path::new("/dev/dri/renderD128").exists() {
        needs.extend([Need::VulkanLoader, Need::MesaDrivers]);
    }
    let fetched = match models::by_name(&args.model) {
        Ok(model) => Some(model),
        Err(e) if !Path::new(&args.model).is_file() => {
            return Err(e.context(format!("--model {}: not a file and not a known name", args.model)));
        }
        Err(_) => None,
    };
    if let Some(model) = fetched
        && !models::is_here(model, &models::dir()?)
    {
        needs.push(Need::Pip);
    }
    setup::ensure(&needs)?;
    shell::step("building aimo-engine (release; the first time takes some minutes)");
    let program = build_release(root)?;
    let model = match fetched {
        Some(model) => models::fetch(model, &models::dir()?)?,
        None => PathBuf::from(&args.model),
    };
    shell::step("preparing the Python sandbox (once; it is kept in the cache directory)");
    shell::run(Command::new(&program).args(["python", "-c", "import sympy; print('Python is ready')"]))?;
    shell::step("solving the built-in problems");
    let mut command = Command::new(&program);
    command.arg("run").arg("--model").arg(&model).arg("--demo").args(&args.more);
    // A small model that begins to repeat itself would do so to the end of its context.
    let is_limit = |arg: &String| ["-n", "--max-tokens", "--predict"].iter().any(|name| arg.starts_with(name));
    if fetched.is_some() && !args.more.iter().any(is_limit) {
        command.args(["--max-tokens", "2048"]);
    }
    if let Some(n) = args.attempts {
        command.args(["--attempts", &n.to_string()]);
    }
    shell::run(&mut command)
}

/// Builds the program with cargo's own progress on the terminal and gives the path that cargo reports for it.
fn build_release(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--package", "aimo-engine", "--message-format=json-render-diagnostics"])
        .current_dir(root)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the build failed");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact" && m["target"]["name"] == "aimo-engine")
        .find_map(|m| m["executable"].as_str().map(PathBuf::from))
        .context("cargo did not say where it put the program")
}
