//! `cargo xtask coopmat`: the tests of the kernels for matrix units, on a machine without any.
//!
//! The software Vulkan driver of Mesa 26 has cooperative matrices, the distribution's often has none. This task
//! unpacks a newer one from Debian's development suite into the user's cache, with the loader, the validation layers
//! and every library down to the C library, and starts the test program through that C library's own dynamic linker:
//! nothing is installed, and the machine's own driver stays what it is. What is there is kept; `--refresh` takes what is
//! in the archive now. `--exec PROGRAM -- ARGUMENTS` runs any program of this checkout in the same way.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::setup::archive::Archive;
use crate::setup::{self, Need};
use crate::{models, shell};

/// Debian's suite whose Mesa has cooperative matrices.
const SUITE: &str = "sid";
const PACKAGES: [&str; 3] = ["mesa-vulkan-drivers", "libvulkan1", "vulkan-validationlayers"];
/// The test programs of the crate `engine`.
const TESTS: [&str; 1] = ["vulkan_matrix"];

/// Arguments of the task.
#[derive(clap::Args)]
pub struct Args {
    /// Take the driver anew from the archive
    #[arg(long)]
    refresh: bool,
    /// Run this program instead of the tests
    #[arg(long)]
    exec: Option<PathBuf>,
    /// Arguments for the test programs, e.g. a test's name, or for the program
    #[arg(last = true)]
    more: Vec<OsString>,
}

/// Sets the driver up, builds the tests and runs them with it.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    let driver = Driver::set_up(&setup::cache_dir()?.join("coopmat"), args.refresh)?;
    if let Some(program) = &args.exec {
        return shell::run(driver.command(program).args(&args.more));
    }
    setup::ensure(&[Need::Compiler])?;
    for test in TESTS {
        let program = build_test(root, test)?;
        shell::step(&format!("running {test}"));
        shell::run(
            driver
                .command(&program)
                .args(&args.more)
                .current_dir(root.join("engine"))
                .env("AIMO_MODELS_DIR", models::dir()?)
                // Without matrix units the tests fail instead of being skipped.
                .env("AIMO_NEED_MATRIX_UNITS", "1")
                .stdin(Stdio::null()),
        )?;
    }
    Ok(())
}

/// Builds a test program of the workspace and finds it.
fn build_test(root: &Path, name: &str) -> Result<PathBuf> {
    shell::step(&format!("building the test program {name}"));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics", "--test", name])
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the test program {name} can't be built ({})", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs =
        messages.filter(|m| m["target"]["name"] == name).filter_map(|m| m["executable"].as_str().map(PathBuf::from));
    programs.next().with_context(|| format!("cargo named no program of the test {name}"))
}

/// The unpacked driver.
struct Driver {
    /// Folder with its libraries.
    libraries: PathBuf,
    linker: PathBuf,
    /// Manifest of the software driver.
    manifest: PathBuf,
    /// Folder with the manifests of layers.
    layers: PathBuf,
}

impl Driver {
    fn set_up(folder: &Path, refresh: bool) -> Result<Driver> {
        let root = folder.join("root");
        if !refresh && let Ok(driver) = Driver::find(&root) {
            shell::step(&format!("the driver is in {}", root.display()));
            return Ok(driver);
        }
        shell::step(&format!("unpacking Mesa's software driver of Debian {SUITE} into {}", root.display()));
        let archive = Archive::new(&folder.join("apt"), SUITE)?;
        archive.update()?;
        // Whole or not at all: an interrupted run leaves only the draft.
        let draft = folder.join("draft");
        for old in [&draft, &root] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        archive.unpack_with_dependencies(&PACKAGES, &draft)?;
        fs::rename(&draft, &root).with_context(|| format!("cannot rename {}", draft.display()))?;
        Driver::find(&root)
    }

    fn find(root: &Path) -> Result<Driver> {
        let first = |folder: &Path, wanted: &dyn Fn(&str) -> bool| -> Result<PathBuf> {
            let entries = fs::read_dir(folder).with_context(|| format!("no folder {}", folder.display()))?;
            let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            all.sort();
            let is_wanted = |p: &PathBuf| p.file_name().is_some_and(|n| wanted(&n.to_string_lossy()));
            all.into_iter().find(is_wanted).with_context(|| format!("{} lacks a file", folder.display()))
        };
        let libraries = first(&root.join("usr/lib"), &|name| name.contains("-linux-"))?;
        Ok(Driver {
            linker: first(&libraries, &|name| name.starts_with("ld-linux"))?,
            manifest: first(&root.join("usr/share/vulkan/icd.d"), &|name| name.starts_with("lvp_icd"))?,
            layers: first(&root.join("usr/share/vulkan"), &|name| name == "explicit_layer.d")?,
            libraries,
        })
    }

    /// A command that runs `program` with the driver's libraries.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.linker);
        command
            .arg("--library-path")
            .arg(&self.libraries)
            .arg(program)
            .env("VK_DRIVER_FILES", &self.manifest)
            .env("VK_LAYER_PATH", &self.layers);
        command
    }
}
