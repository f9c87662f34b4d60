//! Installs what the build, the tests and the model download need and this machine lacks.
//!
//! What is there is found by its effect (a compiler that answers, a driver's manifest), so that machines without
//! Debian's package manager are served too: they get the list of packages to install instead of an installation.
//! Surprising fact: Debian 12's own Mesa is too old for the shaders' extensions, so there the driver comes from
//! the release's backports, whose suite is added to apt's sources once.

pub mod apt;
pub mod archive;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Oldest Mesa whose lavapipe runs the shaders (integer dot product, 16-bit storage, cooperative matrix in 26).
const MESA_MAJOR_MIN: u32 = 25;

/// Directories in which the Vulkan loader looks for the manifests of drivers and layers.
const VULKAN_DIRS: [&str; 3] = ["/etc/vulkan", "/usr/local/share/vulkan", "/usr/share/vulkan"];

/// One thing that a task needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A C++ compiler: the GLSL compiler is built from source.
    Compiler,
    /// `libvulkan.so.1`.
    VulkanLoader,
    /// Mesa's drivers: RADV for AMD's GPUs, lavapipe for machines without one.
    MesaDrivers,
    /// Khronos' validation layers.
    ValidationLayers,
    /// pip, which downloads the models' parts.
    Pip,
}

impl Need {
    /// Everything.
    pub const ALL: [Need; 5] =
        [Need::Compiler, Need::VulkanLoader, Need::MesaDrivers, Need::ValidationLayers, Need::Pip];

    fn name(self) -> &'static str {
        match self {
            Need::Compiler => "C++ compiler",
            Need::VulkanLoader => "Vulkan loader",
            Need::MesaDrivers => "Mesa's Vulkan drivers, version 25 or newer",
            Need::ValidationLayers => "Vulkan validation layers",
            Need::Pip => "pip for python3",
        }
    }

    /// The package on Debian and its relatives.
    fn debian_package(self) -> &'static str {
        match self {
            Need::Compiler => "g++",
            Need::VulkanLoader => "libvulkan1",
            Need::MesaDrivers => "mesa-vulkan-drivers",
            Need::ValidationLayers => "vulkan-validationlayers",
            Need::Pip => "python3-pip",
        }
    }

    /// The package on Fedora and on Arch, for the message of a machine that we can't install on.
    fn other_packages(self) -> (&'static str, &'static str) {
        match self {
            Need::Compiler => ("gcc-c++", "gcc"),
            Need::VulkanLoader => ("vulkan-loader", "vulkan-icd-loader"),
            Need::MesaDrivers => ("mesa-vulkan-drivers", "vulkan-swrast vulkan-radeon"),
            Need::ValidationLayers => ("vulkan-validation-layers", "vulkan-validation-layers"),
            Need::Pip => ("python3-pip", "python-pip"),
        }
    }

    /// Whether this machine has it.
    fn is_met(self) -> bool {
        match self {
            Need::Compiler => {
                let cxx = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
                shell::capture(Command::new(cxx).arg("--version")).is_some()
            }
            Need::VulkanLoader => has_vulkan_loader(),
            Need::MesaDrivers => has_manifest("icd.d", "lvp_icd") && mesa_major().is_none_or(|v| v >= MESA_MAJOR_MIN),
            Need::ValidationLayers => has_manifest("explicit_layer.d", "VkLayer_khronos_validation"),
            Need::Pip => shell::capture(Command::new("python3").args(["-m", "pip", "--version"])).is_some(),
        }
    }
}

/// Installs those of `needs` that this machine lacks.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = needs.iter().copied().filter(|n| !n.is_met()).collect();
    let Some(_) = missing.first() else {
        shell::step("set-up: everything that is needed is installed");
        return Ok(());
    };
    let names: Vec<&str> = missing.iter().map(|n| n.name()).collect();
    shell::step(&format!("set-up: missing: {}", names.join(", ")));
    if shell::capture(Command::new("apt-get").arg("--version")).is_none() {
        bail!("{}", packages_message(&missing));
    }
    let release = apt::Release::of_this_machine();
    let backports = missing.contains(&Need::MesaDrivers) && release.needs_backports();
    if backports {
        apt::add_backports(&release)?;
    }
    apt::update()?;
    let (from_backports, plain): (Vec<Need>, Vec<Need>) =
        missing.iter().partition(|n| backports && **n == Need::MesaDrivers);
    let package_names = |needs: &[Need]| needs.iter().map(|n| n.debian_package()).collect::<Vec<_>>();
    apt::install(&package_names(&plain), None)?;
    apt::install(&package_names(&from_backports), Some(&release.backports_suite()))?;
    let still: Vec<Need> = missing.into_iter().filter(|n| !n.is_met()).collect();
    if !still.is_empty() {
        bail!("{}", packages_message(&still));
    }
    Ok(())
}

/// `$XDG_CACHE_HOME/aimo-engine`, or below `~/.cache`.
pub fn cache_dir() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    let root = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    Ok(root.context("set XDG_CACHE_HOME or HOME")?.join("aimo-engine"))
}

fn packages_message(missing: &[Need]) -> String {
    let mut text = "this machine lacks what the task needs, and it could not be installed from here:".to_owned();
    for need in missing {
        let (fedora, arch) = need.other_packages();
        text += &format!("\n  {} (Debian: {}; Fedora: {fedora}; Arch: {arch})", need.name(), need.debian_package());
    }
    text + "\nInstall them with the system's package manager, then run the task again."
}

fn has_vulkan_loader() -> bool {
    let listed = ["ldconfig", "/sbin/ldconfig"].iter().find_map(|p| shell::capture(Command::new(p).arg("-p")));
    listed.is_some_and(|text| text.contains("libvulkan.so.1"))
}

fn has_manifest(kind: &str, prefix: &str) -> bool {
    VULKAN_DIRS.iter().any(|dir| {
        fs::read_dir(Path::new(dir).join(kind))
            .is_ok_and(|entries| entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with(prefix)))
    })
}

/// Major version of the installed Mesa drivers, where the package manager knows it.
pub fn mesa_major() -> Option<u32> {
    let text = shell::capture(Command::new("dpkg-query").args(["-W", "-f=${Version}", "mesa-vulkan-drivers"]))?;
    apt::upstream_major(&text)
}
