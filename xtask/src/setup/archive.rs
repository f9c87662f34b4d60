//! Packages of another suite of Debian, unpacked into a folder and not installed: apt with sources, lists and archives
//! of its own, from the mirror that the machine already uses. The system's packages and apt's own state stay as they
//! are. Needs Debian's signing keys, `apt-get` and `dpkg`; used for the guest's toolchain and for a newer Vulkan driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::apt;
use crate::shell;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite of Debian's archive.
pub struct Archive {
    directory: PathBuf,
    suite: String,
    options: Vec<String>,
}

impl Archive {
    /// The suite, with lists and archives below `directory`.
    pub fn new(directory: &Path, suite: &str) -> Result<Archive> {
        for name in ["lists/partial", "archives/partial", "debs"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing: this needs Debian's signing keys");
        let mirror = apt::mirror().context("apt's sources name no mirror of this release: this needs Debian")?;
        let (sources, status) = (directory.join("sources.list"), directory.join("status"));
        let line = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        for (path, text) in [(&sources, line.as_str()), (&status, "")] {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let set = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        let options = [
            set("Dir::Etc::sourcelist", sources.display().to_string()),
            set("Dir::Etc::sourceparts", "/dev/null".into()),
            // Nothing is installed, as far as this apt knows: dependencies come along, down to the C library.
            set("Dir::State::status", status.display().to_string()),
            set("Dir::State::lists", directory.join("lists").display().to_string()),
            set("Dir::Cache::archives", directory.join("archives").display().to_string()),
            set("Dir::Cache::pkgcache", String::new()),
            set("Dir::Cache::srcpkgcache", String::new()),
            set("APT::Sandbox::User", String::new()),
            set("Debug::NoLocking", "true".into()),
        ];
        Ok(Archive { directory: directory.to_owned(), suite: suite.to_owned(), options: options.concat() })
    }

    /// Refreshes the lists.
    pub fn update(&self) -> Result<()> {
        shell::run(Command::new("apt-get").args(&self.options).args(["-q", "update"]))
    }

    /// The newest version of `package` that starts with `prefix`.
    pub fn newest(&self, package: &str, prefix: &str) -> Result<String> {
        let list = shell::capture(Command::new("apt-cache").args(&self.options).args(["madison", package]));
        let list = list.with_context(|| format!("apt knows no package {package}"))?;
        let versions = list.lines().filter_map(|line| line.split('|').nth(1).map(str::trim));
        match versions.filter(|version| version.starts_with(prefix)).max() {
            Some(version) => Ok(version.to_owned()),
            None => bail!("no {package} {prefix}… in {}", self.suite),
        }
    }

    /// Downloads `packages` alone and unpacks them into `prefix`.
    pub fn unpack(&self, packages: &[String], prefix: &Path) -> Result<()> {
        let debs = self.directory.join("debs");
        let mut download = Command::new("apt-get");
        shell::run(download.current_dir(&debs).args(&self.options).args(["-q", "download"]).args(packages))?;
        unpack_all(&debs, prefix)
    }

    /// The same with everything that they depend on.
    pub fn unpack_with_dependencies(&self, packages: &[&str], prefix: &Path) -> Result<()> {
        let mut download = Command::new("apt-get");
        download.args(&self.options).args(["-q", "-y", "--no-install-recommends", "--download-only", "install"]);
        shell::run(download.args(packages))?;
        unpack_all(&self.directory.join("archives"), prefix)
    }
}

/// Unpacks every package in `folder` into `prefix` and removes it.
fn unpack_all(folder: &Path, prefix: &Path) -> Result<()> {
    fs::create_dir_all(prefix).with_context(|| format!("cannot create {}", prefix.display()))?;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            shell::run(Command::new("dpkg").arg("-x").arg(&path).arg(prefix))?;
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}
