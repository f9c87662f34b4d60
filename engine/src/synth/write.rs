//! Writing a planned model at the disk's speed: pieces are generated on all cores while earlier ones are written. The
//! file appears under its name only when it is complete; whatever ends the writing earlier leaves nothing behind.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tempfile::NamedTempFile;

use super::blocks::{PIECE_BYTES, Source};
use super::{Plan, SynthError};
use crate::gguf::{MAX_SHARDS, ShardName};

/// Pieces that are generated while others are written.
const BATCH: usize = 16;

/// How a model is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Shards of at most this many bytes of data; in one file unless set.
    pub max_shard_bytes: Option<u64>,
    /// Replace files that are there.
    pub replace: bool,
}

/// Asked for by the progress callback: end the writing and remove what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Plan {
    /// The files that [`Self::write`] makes of `path`: itself, or its shards (`model.gguf` becomes
    /// `model-00001-of-00002.gguf` and so on).
    ///
    /// # Errors
    /// There would be more shards than can be read.
    pub fn files(&self, path: &Path, options: &WriteOptions) -> Result<Vec<PathBuf>, SynthError> {
        let Some(max_bytes) = options.max_shard_bytes else { return Ok(vec![path.to_owned()]) };
        let count = self.writer().shards(max_bytes).len();
        if count > MAX_SHARDS {
            return Err(SynthError::Shards { found: count, max: MAX_SHARDS });
        }
        if count == 1 {
            return Ok(vec![path.to_owned()]);
        }
        let prefix = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = |no| ShardName { prefix: prefix.clone(), no, count }.to_string();
        Ok((0..count).map(|no| path.with_file_name(name(no))).collect())
    }

    /// Writes the model; gives the paths of its files. `progress` is told the bytes done and in all, and may stop it.
    ///
    /// # Errors
    /// A file is there already, the disk has too little space, or writing failed; nothing is left behind.
    pub fn write(
        &self,
        path: &Path,
        options: &WriteOptions,
        progress: &mut dyn FnMut(u64, u64) -> Result<(), Stopped>,
    ) -> Result<Vec<PathBuf>, SynthError> {
        let files = self.files(path, options)?;
        if let Some(path) = files.iter().find(|f| !options.replace && f.exists()) {
            return Err(SynthError::Exists { path: path.clone() });
        }
        let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let writer = self.writer();
        let total = writer.file_bytes();
        check_space(dir, total)?;
        let shards = options.max_shard_bytes.filter(|_| files.len() > 1).map(|max| writer.shards(max));
        let mut sink = Progress { done: 0, total, stopped: false, report: progress };
        let mut written = Vec::with_capacity(files.len());
        for (no, path) in files.iter().enumerate() {
            let failed = |error| SynthError::Write { path: path.clone(), error };
            // Beside its destination, so that it can be renamed; removed when dropped.
            let mut file = tempfile::Builder::new().prefix(".synth-").tempfile_in(dir).map_err(failed)?;
            let out =
                Reporting { file: io::BufWriter::with_capacity(PIECE_BYTES, file.as_file_mut()), sink: &mut sink };
            let result = match &shards {
                Some(shards) => writer.write_shard(shards, no, out),
                None => writer.write(out),
            };
            if sink.stopped {
                return Err(SynthError::Stopped);
            }
            result.map_err(failed)?;
            written.push(file);
        }
        persist(written, &files)?;
        Ok(files)
    }

    /// Bytes of the file, in one piece.
    pub fn file_bytes(&self) -> u64 {
        self.writer().file_bytes()
    }
}

/// Gives the files their names. If one can't have it, those that had theirs lose it again.
fn persist(written: Vec<NamedTempFile>, files: &[PathBuf]) -> Result<(), SynthError> {
    for (idx, (file, path)) in written.into_iter().zip(files).enumerate() {
        if let Err(e) = readable(&file).and_then(|()| file.persist(path).map_err(|e| e.error)) {
            files[..idx].iter().for_each(|done| drop(std::fs::remove_file(done)));
            return Err(SynthError::Write { path: path.clone(), error: e });
        }
    }
    Ok(())
}

/// Temporary files are their owner's alone; a model is readable like any other file.
fn readable(file: &NamedTempFile) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

fn check_space(dir: &Path, need_bytes: u64) -> Result<(), SynthError> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(dir)
            .map_err(|e| SynthError::Write { path: dir.to_owned(), error: io::Error::from(e) })?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        if need_bytes > free_bytes {
            return Err(SynthError::NoSpace { dir: dir.to_owned(), need_bytes, free_bytes });
        }
    }
    Ok(())
}

/// Writes a tensor: a batch of its pieces goes out while the next is generated.
pub(super) fn pieces(source: &Source, out: &mut dyn Write) -> io::Result<()> {
    let n = source.n_pieces();
    let generate = |from: usize| -> Vec<Vec<u8>> {
        (from..n.min(from + BATCH)).into_par_iter().map(|idx| source.piece(idx)).collect()
    };
    let (mut ready, mut next) = (generate(0), BATCH);
    while !ready.is_empty() {
        let mut following = Vec::new();
        rayon::in_place_scope(|scope| {
            if next < n {
                scope.spawn(|_| following = generate(next));
            }
            ready.iter().try_for_each(|piece| out.write_all(piece))
        })?;
        (ready, next) = (following, next + BATCH);
    }
    Ok(())
}

/// Who hears of the bytes that were written.
struct Progress<'p> {
    done: u64,
    total: u64,
    stopped: bool,
    report: &'p mut dyn FnMut(u64, u64) -> Result<(), Stopped>,
}

struct Reporting<'s, 'p, W> {
    file: W,
    sink: &'s mut Progress<'p>,
}

impl<W: Write> Write for Reporting<'_, '_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.sink.done += n as u64;
        if (self.sink.report)(self.sink.done, self.sink.total).is_err() {
            self.sink.stopped = true;
            return Err(io::Error::other("stopped"));
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
