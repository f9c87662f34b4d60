//! Where the compiled interpreter is kept between runs, and the checks before it is trusted.
//!
//! Loading precompiled code runs it, so a file is used only if its SHA-256 is the one recorded when it was written and
//! nobody but its owner can write it. Files appear by rename, under a lock: two processes that prepare at once end up
//! with one file. Called by `python` only.

use crate::outcome::SandboxError;
use sha2::{Digest, Sha256};
use std::{
    env,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

/// The directory of the compiled interpreters.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    /// What the names of this kind of entry begin with.
    prefix: &'static str,
}

/// Held while an entry is being made; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

const PREFIX: &str = "python-";

impl Cache {
    /// `$XDG_CACHE_HOME/aimo-engine/python`, or below `~/.cache`.
    pub(crate) fn of_user() -> Result<Cache, SandboxError> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let root = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        Cache::in_directory(root.ok_or(SandboxError::NoCacheDir)?.join("aimo-engine").join("python"))
    }

    pub(crate) fn in_directory(directory: PathBuf) -> Result<Cache, SandboxError> {
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        Ok(Cache { directory, prefix: PREFIX })
    }

    /// The same directory for entries of another kind.
    pub(crate) fn of_kind(&self, prefix: &'static str) -> Cache {
        Cache { prefix, ..self.clone() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{}{key}.cwasm", self.prefix))
    }

    /// The file of `key`, opened and verified; None when there is none or it can't be trusted.
    pub(crate) fn open(&self, key: &str) -> Option<File> {
        let path = self.path(key);
        let recorded = fs::read_to_string(path.with_extension("sha256")).ok()?;
        let mut file = File::open(&path).ok()?;
        let is_trusted = is_owners_alone(&file) && digest(&mut file).ok()? == recorded.trim();
        is_trusted.then_some(file)
    }

    /// Waits until no other process prepares an entry.
    pub(crate) fn lock(&self) -> Result<Lock, SandboxError> {
        let path = self.directory.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(failed("open", &path))?;
        file.lock().map_err(failed("lock", &path))?;
        Ok(Lock { _file: file })
    }

    /// Stores `bytes` under `key` and removes the entries of other versions.
    pub(crate) fn store(&self, _lock: &Lock, key: &str, bytes: &[u8]) -> Result<(), SandboxError> {
        let path = self.path(key);
        self.remove_others(key);
        self.replace(&path, bytes)?;
        self.replace(&path.with_extension("sha256"), format!("{:x}\n", Sha256::digest(bytes)).as_bytes())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), SandboxError> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory).map_err(failed("write in", &self.directory))?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed("write", path))?;
        file.persist(path).map(drop).map_err(|error| failed("write", path)(error.error))
    }

    /// Entries are large and only one version of a kind is in use; a process that still runs an old one keeps its open file.
    fn remove_others(&self, key: &str) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(self.prefix) && !name.starts_with(&format!("{}{key}", self.prefix)) {
                // A file that can't be removed costs space and nothing else.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SandboxError + 'a {
    move |source| SandboxError::Cache { action, path: path.to_owned(), source }
}

fn digest(file: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n_read = file.read(&mut buffer)?;
        if n_read == 0 {
            break;
        }
        hasher.update(&buffer[..n_read]);
    }
    file.rewind()?;
    Ok(format!("{:x}", hasher.finalize()))
}

#[cfg(unix)]
fn is_owners_alone(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
    file.metadata().is_ok_and(|metadata| metadata.mode() & GROUP_OR_OTHERS_WRITE == 0)
}

#[cfg(not(unix))]
fn is_owners_alone(_file: &File) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::in_directory(directory.path().join("a/b")).unwrap();
        (directory, cache)
    }

    fn content(file: Option<File>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        file?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    #[test]
    fn an_entry_comes_back_and_replaces_other_versions() {
        let (_directory, cache) = cache();
        assert!(cache.open("one").is_none());
        cache.store(&cache.lock().unwrap(), "one", b"first").unwrap();
        assert_eq!(content(cache.open("one")).unwrap(), b"first");
        cache.store(&cache.lock().unwrap(), "two", b"second").unwrap();
        assert!(cache.open("one").is_none());
        assert_eq!(content(cache.open("two")).unwrap(), b"second");
    }

    #[test]
    fn a_damaged_entry_is_refused() {
        let (_directory, cache) = cache();
        let entry = vec![5u8; 3 << 20];
        let damages: [fn(&mut Vec<u8>); 4] =
            [|b| b[0] ^= 1, |b| b[2 << 20] ^= 0x80, |b| b.truncate(1000), |b| b.push(0)];
        for damage in damages {
            cache.store(&cache.lock().unwrap(), "k", &entry).unwrap();
            assert!(cache.open("k").is_some());
            let mut bytes = entry.clone();
            damage(&mut bytes);
            fs::write(cache.path("k"), bytes).unwrap();
            assert!(cache.open("k").is_none());
        }
        cache.store(&cache.lock().unwrap(), "k", &entry).unwrap();
        fs::remove_file(cache.path("k").with_extension("sha256")).unwrap();
        assert!(cache.open("k").is_none());
    }

    #[cfg(unix)]
    #[test]
    fn an_entry_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, cache) = cache();
        cache.store(&cache.lock().unwrap(), "k", b"entry").unwrap();
        fs::set_permissions(cache.path("k"), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(cache.open("k").is_none());
    }

    #[test]
    fn many_that_prepare_at_once_end_up_with_one_whole_entry() {
        let (_directory, cache) = cache();
        let entry = |i: u8| vec![i; 1 << 20];
        std::thread::scope(|scope| {
            for i in 0..8 {
                let cache = &cache;
                scope.spawn(move || {
                    let lock = cache.lock().unwrap();
                    if cache.open("k").is_none() {
                        cache.store(&lock, "k", &entry(i)).unwrap();
                    }
                    drop(lock);
                    assert_eq!(content(cache.open("k")).unwrap().len(), 1 << 20);
                });
            }
        });
        let kept = content(cache.open("k")).unwrap();
        assert!(kept.iter().all(|byte| *byte == kept[0]));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let error = Cache::in_directory("/dev/null/x".into()).unwrap_err().to_string();
        assert!(error.contains("cannot create /dev/null/x"), "{error}");
    }
}
