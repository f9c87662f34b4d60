//! The file of a journal: made once, locked while a process writes to it, appended to, synced.
//!
//! A record that couldn't be written (full disk) is kept and tried again with the next one, up to a bound; a sync that
//! failed ends the journal for good, since the system may have dropped what it held. Neither ends the run: the error is
//! kept for its report. Called by `recorder`, and by the command line, which opens journals.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::journal::history::{History, HistoryError};
use crate::journal::{Entry, FILE_NAME, record};

/// Most bytes that wait for a disk to have room again.
const MAX_PENDING_BYTES: usize = 64 << 20;
/// How long a journal that another process has is waited for.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// Why a journal can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The folder holds a run already.
    #[error("{} holds the journal of a run already", folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process writes to it.
    #[error("{} is in use: another process works on this run", path.display())]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// The system refused to make, open or read it.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The journal.
        path: PathBuf,
        /// Why.
        source: HistoryError,
    },
    /// Records couldn't be written.
    #[error("cannot write {}: {source}; {n_records} records are not in it", path.display())]
    Write {
        /// The journal.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
        /// Records that wait, or that are lost.
        n_records: u64,
    },
    /// Records may not have reached the disk.
    #[error("cannot sync {}: {source}; it ends here", path.display())]
    Sync {
        /// The journal.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What a journal needs of a file; a trait, so that tests can let it fail.
pub trait Store: Send {
    /// Writes at the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Waits until what was written is on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Drops what lies behind this length.
    fn truncate(&mut self, n_bytes: u64) -> io::Result<()>;
}

impl Store for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&mut self, n_bytes: u64) -> io::Result<()> {
        self.set_len(n_bytes)?;
        self.seek(SeekFrom::Start(n_bytes)).map(|_| ())
    }
}

/// A journal that is written to.
pub struct Journal {
    path: PathBuf,
    store: Box<dyn Store>,
    next_number: u64,
    /// Length up to which everything is whole.
    good_bytes: u64,
    /// Encoded records that aren't in the file.
    pending: Vec<u8>,
    n_pending: u64,
    /// The file may end in a part of a record.
    torn: bool,
    /// Nothing more is written.
    closed: bool,
}

impl Journal {
    /// Makes the journal of a new run in a folder, which is made too. A journal that holds not even its first record
    /// (a crash came before it) is begun anew.
    pub fn create(folder: &Path) -> Result<Journal, JournalError> {
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| JournalError::Io { action, path, source }
        };
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
        let path = folder.join(FILE_NAME);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(failed("write", &path))?;
        lock(&file, &path)?;
        let scan = record::scan(&mut BufReader::new(&file), |_, _| Ok::<(), io::Error>(()));
        if scan.map_err(failed("read", &path))?.n_records > 0 {
            return Err(JournalError::Exists { folder: folder.to_path_buf() });
        }
        file.truncate(0).map_err(failed("write", &path))?;
        // The file's name, and the folder's, have to survive a crash too.
        sync_folder(folder).map_err(failed("sync", folder))?;
        if let Some(parent) = folder.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            sync_folder(parent).map_err(failed("sync", parent))?;
        }
        Ok(Journal::new(path, Box::new(file), 0, 0))
    }

    /// Opens the journal of a run to go on with it, and reads what it holds. A record that a crash cut short is
    /// dropped. Damage to what was once whole is refused, unless `salvage` asks to go on from the records before it;
    /// the file is kept beside the journal then.
    pub fn resume(folder: &Path, salvage: bool) -> Result<(Journal, History), JournalError> {
        let path = folder.join(FILE_NAME);
        let failed = |action| {
            let path = path.clone();
            move |source| JournalError::Io { action, path, source }
        };
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open"))?;
        lock(&file, &path)?;
        let history = History::read_from(&mut BufReader::new(&file), salvage);
        let history = history.map_err(|source| JournalError::Read { path: path.clone(), source })?;
        if history.damage.is_some() {
            fs::copy(&path, path.with_extension("damaged")).map_err(failed("copy"))?;
        }
        file.truncate(history.good_bytes).map_err(failed("write"))?;
        let journal = Journal::new(path, Box::new(file), history.n_records, history.good_bytes);
        Ok((journal, history))
    }

    /// A journal on any store.
    pub fn new(path: PathBuf, store: Box<dyn Store>, next_number: u64, good_bytes: u64) -> Journal {
        Journal { path, store, next_number, good_bytes, pending: Vec::new(), n_pending: 0, torn: false, closed: false }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record; `sync` waits until it and everything before it are on the disk.
    pub fn append(&mut self, entry: &Entry, sync: bool) -> Result<(), JournalError> {
        let json = serde_json::to_string(entry).expect("an entry is plain data with string keys");
        let line = record::encode(self.next_number, &json);
        let fits = line.len() <= record::MAX_LINE_BYTES && self.pending.len() + line.len() <= MAX_PENDING_BYTES;
        self.n_pending += 1;
        if self.closed || !fits {
            self.closed = true;
            return Err(self.not_written(io::Error::other("it was given up")));
        }
        self.next_number += 1;
        self.pending.extend_from_slice(&line);
        self.flush(sync)
    }

    /// Whether records wait to be written, or are lost.
    pub fn is_behind(&self) -> bool {
        self.closed || self.n_pending > 0
    }

    /// Tries again to write what couldn't be written, and syncs.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if self.closed {
            return Err(self.not_written(io::Error::other("it was given up")));
        }
        self.flush(true)
    }

    fn flush(&mut self, sync: bool) -> Result<(), JournalError> {
        let mut written = Ok(());
        if self.torn {
            written = self.store.truncate(self.good_bytes);
        }
        let written = written.and_then(|()| self.store.append(&self.pending));
        self.torn = written.is_err();
        if let Err(source) = written {
            return Err(self.not_written(source));
        }
        self.good_bytes += self.pending.len() as u64;
        self.pending.clear();
        self.n_pending = 0;
        if sync {
            self.store.sync().map_err(|source| {
                self.closed = true;
                JournalError::Sync { path: self.path.clone(), source }
            })?;
        }
        Ok(())
    }

    fn not_written(&self, source: io::Error) -> JournalError {
        JournalError::Write { path: self.path.clone(), source, n_records: self.n_pending }
    }
}

/// The lock is the file's: it ends with the process, however that ends. One that was just killed still gives gigabytes
/// of memory back and is waited for.
fn lock(file: &File, path: &Path) -> Result<(), JournalError> {
    let patience = Instant::now() + MAX_WAIT;
    loop {
        return match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(TryLockError::WouldBlock) => Err(JournalError::Locked { path: path.to_path_buf() }),
            Err(TryLockError::Error(source)) => {
                Err(JournalError::Io { action: "lock", path: path.to_path_buf(), source })
            }
        };
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Event;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_journal_whose_process_ends_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        let waiting = thread::spawn({
            let path = path.clone();
            move || lock(&File::open(&path).unwrap(), &path)
        });
        thread::sleep(Duration::from_millis(200));
        assert!(!waiting.is_finished(), "it is still held");
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    fn entry(i: u64) -> Entry {
        Entry { t_ms: i, event: Event::Warning { message: format!("number {i}") } }
    }

    /// Fails at the calls that it is told to, after writing half of what it was given.
    #[derive(Clone, Default)]
    struct Failing {
        bytes: Arc<Mutex<Vec<u8>>>,
        n_calls: usize,
        fail_at: Vec<usize>,
        fail_syncs: bool,
    }

    impl Failing {
        fn fails(&mut self) -> bool {
            self.n_calls += 1;
            self.fail_at.contains(&self.n_calls)
        }

        fn full() -> io::Error {
            io::Error::from(io::ErrorKind::StorageFull)
        }
    }

    impl Store for Failing {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            let fails = self.fails();
            let n_bytes = if fails { bytes.len() / 2 } else { bytes.len() };
            self.bytes.lock().unwrap().extend_from_slice(&bytes[..n_bytes]);
            if fails { Err(Failing::full()) } else { Ok(()) }
        }

        fn sync(&mut self) -> io::Result<()> {
            if self.fail_syncs { Err(io::Error::other("input/output error")) } else { Ok(()) }
        }

        fn truncate(&mut self, n_bytes: u64) -> io::Result<()> {
            if self.fails() {
                return Err(Failing::full());
            }
            self.bytes.lock().unwrap().truncate(n_bytes as usize);
            Ok(())
        }
    }

    fn records(bytes: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        let scan = record::scan(&mut &bytes[..], |_, json| {
            all.push(json.to_string());
            Ok::<(), io::Error>(())
        });
        assert!(scan.unwrap().damage.is_none());
        all
    }

    #[test]
    fn a_full_disk_at_any_call_loses_nothing_once_there_is_room() {
        for fail_at in 1..12 {
            for length in 1..4 {
                let store = Failing { fail_at: (fail_at..fail_at + length).collect(), ..Failing::default() };
                let bytes = store.bytes.clone();
                let mut journal = Journal::new("j".into(), Box::new(store), 0, 0);
                let mut n_failed = 0;
                for i in 0..12 {
                    n_failed += usize::from(journal.append(&entry(i), i % 3 == 0).is_err());
                    records(&bytes.lock().unwrap()[..]);
                }
                while journal.sync().is_err() {
                    n_failed += 1;
                }
                assert_eq!(n_failed, length, "failing at {fail_at}");
                let all = records(&bytes.lock().unwrap());
                assert_eq!(all.len(), 12, "failing {length} times at {fail_at}");
                assert!(all[11].contains("number 11"));
            }
        }
    }

    #[test]
    fn a_disk_that_stays_full_is_an_error_with_the_number_of_records() {
        let store = Failing { fail_at: (3..1000).collect(), ..Failing::default() };
        let bytes = store.bytes.clone();
        let mut journal = Journal::new("j".into(), Box::new(store), 0, 0);
        let errors: Vec<String> =
            (0..5).filter_map(|i| journal.append(&entry(i), false).err()).map(|e| e.to_string()).collect();
        assert_eq!(errors.len(), 3);
        assert!(errors[2].contains("3 records are not in it"), "{errors:?}");
        assert_eq!(records(&bytes.lock().unwrap()).len(), 2);
    }

    #[test]
    fn a_sync_that_fails_ends_the_journal() {
        let store = Failing { fail_syncs: true, ..Failing::default() };
        let mut journal = Journal::new("j".into(), Box::new(store), 0, 0);
        assert!(journal.append(&entry(0), false).is_ok());
        assert!(matches!(journal.append(&entry(1), true), Err(JournalError::Sync { .. })));
        assert!(matches!(journal.append(&entry(2), false), Err(JournalError::Write { .. })));
        assert!(journal.sync().is_err());
    }

    #[test]
    fn a_run_folder_is_used_by_one_process_and_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/run");
        let mut journal = Journal::create(&folder).unwrap();
        assert!(matches!(Journal::create(&folder), Err(JournalError::Locked { .. })));
        assert!(matches!(Journal::resume(&folder, false), Err(JournalError::Locked { .. })));
        drop(journal);
        journal = Journal::create(&folder).expect("nothing was begun in it");
        journal.append(&entry(0), true).unwrap();
        drop(journal);
        assert!(matches!(Journal::create(&folder), Err(JournalError::Exists { .. })));
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(Journal::create(&file), Err(JournalError::Io { .. })));
        assert!(matches!(Journal::resume(&dir.path().join("none"), false), Err(JournalError::Io { .. })));
    }
}
