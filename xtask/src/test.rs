//! `cargo xtask test`: every test of the workspace, on a machine that may be fresh. The last lines on the terminal
//! are the test runner's own.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::setup::{self, Need};
use crate::{models, shell};

/// The model that the tests on a real model use; small enough for a CI machine.
const TEST_MODEL: &str = "qwen0.5b";

/// Mesa whose RADV compiles for chips that are not there; 26 removed that.
const MESA_WITH_NULL_DEVICE: u32 = 25;

/// Arguments of the test run.
#[derive(clap::Args)]
pub struct Args {
    /// Don't fetch the test model; tests that want it skip with a message where it is absent
    #[arg(long)]
    no_models: bool,
    /// Arguments for `cargo test`, e.g. a test's name
    #[arg(last = true)]
    more: Vec<String>,
}

/// Sets up, fetches the test model and runs `cargo test --workspace`.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    let dir = models::dir()?;
    let mut needs = vec![Need::Compiler, Need::VulkanLoader, Need::MesaDrivers, Need::ValidationLayers];
    let model = models::by_name(TEST_MODEL)?;
    if !args.no_models && !models::is_here(model, &dir) {
        needs.push(Need::Pip);
    }
    setup::ensure(&needs)?;
    if !args.no_models {
        models::fetch(model, &dir)?;
    }
    shell::step("running the tests");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tests = Command::new(cargo);
    tests.args(["test", "--workspace"]).args(&args.more).current_dir(root);
    tests.env("AIMO_MODELS_DIR", &dir).stdin(Stdio::null());
    if setup::mesa_major() == Some(MESA_WITH_NULL_DEVICE) {
        // Code for gfx1151 is checked then, or the test fails.
        tests.env("AIMO_NEED_RADV", "1");
    }
    shell::run(&mut tests)
}
