//! The file system that CPython sees: a tree of read-only files in the host's memory, and the pipes of its calls.
//!
//! Owns the WASI functions on descriptors and paths that RustPython does without. Nothing of the machine's own file
//! system is reachable: a path is looked up in the tree, and there is no other place to look. Whatever would change a
//! file is answered "read-only file system". Called by wasmtime only. Surprising fact: the library's zip file is
//! mapped once per process, and every session reads the same pages.

use crate::wasi::{self, FileType, Host, PREVIEW1, answer, bytes_mut, errno, fdstat, filestat, put, slice, word};
use memmap2::Mmap;
use std::{collections::BTreeMap, sync::Arc};
use wasmtime::{Caller, Linker, Result};

/// Descriptor of the one directory that is there from the start, the root.
const ROOT: u32 = 3;
/// Descriptor that the guest reads a call's request from (`driver.py`).
const REQUEST: u32 = 10;
/// Descriptor that it writes the reply to.
const REPLY: u32 = 11;
/// Descriptors that `path_open` gives.
const FIRST_OPENED: u32 = 16;
/// Files that a session may have open.
const MAX_OPEN: usize = 64;
/// Longest path that is looked at.
const MAX_PATH_BYTES: u32 = 4096;
/// A reply is a status, an exception's class and its message; what is longer is cut.
const MAX_REPLY_BYTES: usize = 1 << 20;

/// The content of a file.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Text(&'static str),
    Mapped(Arc<Mmap>),
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Content::Text(text) => text.as_bytes(),
            Content::Mapped(map) => map,
        }
    }
}

/// Files by path, without the slash in front.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, Content>,
}

/// What a path leads to.
enum Entry<'a> {
    Directory,
    File(&'a Content),
}

impl Tree {
    pub(crate) fn new(files: impl IntoIterator<Item = (String, Content)>) -> Tree {
        Tree { files: files.into_iter().collect() }
    }

    fn entry(&self, path: &str) -> Option<Entry<'_>> {
        if let Some(content) = self.files.get(path) {
            return Some(Entry::File(content));
        }
        let is_directory = path.is_empty() || self.files.keys().any(|file| is_below(file, path).is_some());
        is_directory.then_some(Entry::Directory)
    }

    /// Names in a directory, each once.
    fn names(&self, directory: &str) -> Vec<(&str, FileType)> {
        let mut names: Vec<(&str, FileType)> = Vec::new();
        for file in self.files.keys() {
            let Some(rest) = is_below(file, directory) else { continue };
            let (name, kind) = match rest.split_once('/') {
                Some((name, _)) => (name, FileType::Directory),
                None => (rest, FileType::RegularFile),
            };
            if names.last().is_none_or(|(last, _)| *last != name) {
                names.push((name, kind));
            }
        }
        names
    }
}

/// The part of `file`'s path behind `directory`, if it lies there.
fn is_below<'a>(file: &'a str, directory: &str) -> Option<&'a str> {
    if directory.is_empty() { Some(file) } else { file.strip_prefix(directory)?.strip_prefix('/') }
}

/// `base` and `path` joined, with `.` and `..` resolved; `..` of the root is the root.
fn join(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { base.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("/")
}

/// An open file or directory of a session.
#[derive(Clone, Debug)]
struct Open {
    path: String,
    offset: u64,
}

/// A session's view: the tree, what it has open, and the call that it answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    tree: Arc<Tree>,
    open: BTreeMap<u32, Open>,
    request: Arc<[u8]>,
    n_request_read: usize,
    reply: Vec<u8>,
}

impl Files {
    pub(crate) fn new(tree: Arc<Tree>) -> Files {
        let root = Open { path: String::new(), offset: 0 };
        Files { tree, open: [(ROOT, root)].into(), ..Files::default() }
    }

    /// What the guest reads next from its request descriptor.
    pub(crate) fn ask(&mut self, request: Vec<u8>) {
        self.request = request.into();
        self.n_request_read = 0;
        self.reply.clear();
    }

    /// What it wrote in answer.
    pub(crate) fn take_reply(&mut self) -> Vec<u8> {
        self.request = Arc::default();
        std::mem::take(&mut self.reply)
    }

    /// The same files open as now, for another instance.
    pub(crate) fn opened(&self) -> Files {
        Files { tree: Arc::clone(&self.tree), open: self.open.clone(), ..Files::default() }
    }

    fn stat(&self, path: &str) -> Option<(FileType, [u8; 64])> {
        let (kind, n_bytes) = match self.tree.entry(path)? {
            Entry::Directory => (FileType::Directory, 0),
            Entry::File(content) => (FileType::RegularFile, content.bytes().len() as u64),
        };
        // Programs take two files with one number for the same file.
        let inode = path
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Some((kind, filestat(kind, inode, n_bytes)))
    }

    fn stat_fd(&self, fd: u32) -> Option<(FileType, [u8; 64])> {
        match fd {
            0..=2 | REQUEST | REPLY => Some((FileType::CharacterDevice, filestat(FileType::CharacterDevice, 0, 0))),
            fd => self.stat(&self.open.get(&fd)?.path),
        }
    }

    fn open_path(&mut self, directory: u32, path: &str, flags: u32, rights: u64) -> std::result::Result<u32, i32> {
        const CREATE: u32 = 1;
        const DIRECTORY: u32 = 2;
        const TRUNCATE: u32 = 8;
        const RIGHT_TO_WRITE: u64 = 1 << 6;
        let base = self.open.get(&directory).ok_or(errno::BADF)?;
        let path = join(&base.path, path);
        match self.tree.entry(&path) {
            None if flags & CREATE != 0 => return Err(errno::ROFS),
            None => return Err(errno::NOENT),
            Some(Entry::File(_)) if flags & DIRECTORY != 0 => return Err(errno::NOTDIR),
            Some(Entry::File(_)) if flags & TRUNCATE != 0 || rights & RIGHT_TO_WRITE != 0 => return Err(errno::ROFS),
            Some(Entry::Directory) if rights & RIGHT_TO_WRITE != 0 => return Err(errno::ISDIR),
            Some(_) => {}
        }
        if self.open.len() >= MAX_OPEN {
            return Err(errno::MFILE);
        }
        let fd = (FIRST_OPENED..).find(|fd| !self.open.contains_key(fd)).expect("more numbers than open files");
        self.open.insert(fd, Open { path, offset: 0 });
        Ok(fd)
    }

    /// Copies bytes at `offset` of an open file.
    fn read_at(&self, fd: u32, offset: u64, into: &mut [u8]) -> std::result::Result<usize, i32> {
        let open = self.open.get(&fd).ok_or(errno::BADF)?;
        let Some(Entry::File(content)) = self.tree.entry(&open.path) else { return Err(errno::ISDIR) };
        let rest = usize::try_from(offset).ok().and_then(|offset| content.bytes().get(offset..)).unwrap_or_default();
        let n = rest.len().min(into.len());
        into[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    /// Copies bytes from where a descriptor stands and moves it.
    fn read(&mut self, fd: u32, into: &mut [u8]) -> std::result::Result<usize, i32> {
        match fd {
            0 => Ok(0),
            REQUEST => {
                let rest = &self.request[self.n_request_read..];
                let n = rest.len().min(into.len());
                into[..n].copy_from_slice(&rest[..n]);
                self.n_request_read += n;
                Ok(n)
            }
            fd => {
                let offset = self.open.get(&fd).ok_or(errno::BADF)?.offset;
                let n = self.read_at(fd, offset, into)?;
                self.open.get_mut(&fd).expect("open above").offset += n as u64;
                Ok(n)
            }
        }
    }

    fn seek(&mut self, fd: u32, delta: i64, whence: u32) -> std::result::Result<u64, i32> {
        if fd <= 2 || fd == REQUEST || fd == REPLY {
            return Err(errno::SPIPE);
        }
        let end = self.stat_fd(fd).ok_or(errno::BADF)?.1;
        let open = self.open.get_mut(&fd).ok_or(errno::BADF)?;
        let base = match whence {
            0 => 0,
            1 => open.offset,
            2 => u64::from_le_bytes(end[32..40].try_into().expect("eight bytes")),
            _ => return Err(errno::INVAL),
        };
        open.offset = base.checked_add_signed(delta).ok_or(errno::INVAL)?;
        Ok(open.offset)
    }

    /// Takes a part of a reply.
    fn reply(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(MAX_REPLY_BYTES - self.reply.len());
        self.reply.extend_from_slice(&bytes[..n]);
    }
}

/// The functions on descriptors and paths, in place of those that know no files.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    type Guest<'a> = Caller<'a, Host>;
    linker.func_wrap(PREVIEW1, "fd_prestat_get", |mut guest: Guest<'_>, fd: u32, result: u32| {
        // prestat: u8 tag (0: directory), u32 length of its name at offset 4.
        if fd == ROOT { answer(put(&mut guest, result, &[0, 0, 0, 0, 1, 0, 0, 0])) } else { errno::BADF }
    })?;
    linker.func_wrap(PREVIEW1, "fd_prestat_dir_name", |mut guest: Guest<'_>, fd: u32, name: u32, len: u32| {
        if fd == ROOT && len >= 1 { answer(put(&mut guest, name, b"/")) } else { errno::BADF }
    })?;
    linker.func_wrap(PREVIEW1, "fd_fdstat_get", |mut guest: Guest<'_>, fd: u32, result: u32| {
        match guest.data().files.stat_fd(fd) {
            Some((kind, _)) => answer(put(&mut guest, result, &fdstat(kind))),
            None => errno::BADF,
        }
    })?;
    linker.func_wrap(PREVIEW1, "fd_filestat_get", |mut guest: Guest<'_>, fd: u32, result: u32| {
        match guest.data().files.stat_fd(fd) {
            Some((_, stat)) => answer(put(&mut guest, result, &stat)),
            None => errno::BADF,
        }
    })?;
    linker.func_wrap(
        PREVIEW1,
        "path_filestat_get",
        |mut guest: Guest<'_>, fd: u32, _flags: u32, path: u32, path_len: u32, result: u32| {
            let Some(path) = path_of(&mut guest, path, path_len) else { return errno::FAULT };
            let files = &guest.data().files;
            let Some(base) = files.open.get(&fd) else { return errno::BADF };
            match files.stat(&join(&base.path, &path)) {
                Some((_, stat)) => answer(put(&mut guest, result, &stat)),
                None => errno::NOENT,
            }
        },
    )?;
    linker.func_wrap(
        PREVIEW1,
        "path_open",
        |mut guest: Guest<'_>,
         fd: u32,
         _: u32,
         path: u32,
         len: u32,
         flags: u32,
         rights: u64,
         _: u64,
         _: u32,
         result: u32| {
            let Some(path) = path_of(&mut guest, path, len) else { return errno::FAULT };
            match guest.data_mut().files.open_path(fd, &path, flags, rights) {
                Ok(opened) => answer(put(&mut guest, result, &opened.to_le_bytes())),
                Err(error) => error,
            }
        },
    )?;
    linker.func_wrap(PREVIEW1, "fd_close", |mut guest: Guest<'_>, fd: u32| {
        let is_ours = fd <= ROOT || fd == REQUEST || fd == REPLY;
        if is_ours || guest.data_mut().files.open.remove(&fd).is_some() { errno::SUCCESS } else { errno::BADF }
    })?;
    linker.func_wrap(
        PREVIEW1,
        "fd_read",
        |mut guest: Guest<'_>, fd: u32, iovecs: u32, n_iovecs: u32, n_read: u32| {
            let read = |files: &mut Files, into: &mut [u8]| files.read(fd, into);
            read_all(&mut guest, iovecs, n_iovecs, n_read, read)
        },
    )?;
    linker.func_wrap(
        PREVIEW1,
        "fd_pread",
        |mut guest: Guest<'_>, fd: u32, iovecs: u32, n_iovecs: u32, mut offset: u64, n_read: u32| {
            let read = |files: &mut Files, into: &mut [u8]| {
                let n = files.read_at(fd, offset, into)?;
                offset = offset.saturating_add(n as u64);
                Ok(n)
            };
            read_all(&mut guest, iovecs, n_iovecs, n_read, read)
        },
    )?;
    linker.func_wrap(PREVIEW1, "fd_seek", |mut guest: Guest<'_>, fd: u32, delta: i64, whence: u32, result: u32| {
        match guest.data_mut().files.seek(fd, delta, whence) {
            Ok(offset) => answer(put(&mut guest, result, &offset.to_le_bytes())),
            Err(error) => error,
        }
    })?;
    linker.func_wrap(PREVIEW1, "fd_tell", |mut guest: Guest<'_>, fd: u32, result: u32| {
        match guest.data_mut().files.seek(fd, 0, 1) {
            Ok(offset) => answer(put(&mut guest, result, &offset.to_le_bytes())),
            Err(error) => error,
        }
    })?;
    linker.func_wrap(PREVIEW1, "fd_write", |mut guest: Guest<'_>, fd: u32, iovecs: u32, n: u32, n_written: u32| {
        match fd {
            1 | 2 => wasi::fd_write(guest, fd, iovecs, n, n_written),
            REPLY => write_reply(&mut guest, iovecs, n, n_written),
            _ => errno::BADF,
        }
    })?;
    linker.func_wrap(PREVIEW1, "fd_readdir", fd_readdir)?;
    for name in ["path_create_directory", "path_remove_directory", "path_unlink_file"] {
        linker.func_wrap(PREVIEW1, name, |_: u32, _: u32, _: u32| errno::ROFS)?;
    }
    linker.func_wrap(PREVIEW1, "path_rename", |_: u32, _: u32, _: u32, _: u32, _: u32, _: u32| errno::ROFS)?;
    linker.func_wrap(PREVIEW1, "path_readlink", |_: u32, _: u32, _: u32, _: u32, _: u32, _: u32| errno::INVAL)?;
    Ok(())
}

/// A path that the guest gave; bytes that are not UTF-8 are in no name of the tree.
fn path_of(guest: &mut Caller<'_, Host>, address: u32, len: u32) -> Option<String> {
    let bytes = bytes_mut(guest, address, len.min(MAX_PATH_BYTES))?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

/// Buffers of a scattered read or write.
fn pieces(data: &[u8], iovecs: u32, n_iovecs: u32) -> Option<Vec<(u32, u32)>> {
    const MAX_IOVECS: u32 = 1024;
    let piece = |idx: u32| {
        let at = iovecs.checked_add(idx * 8)?;
        let (address, len) = (word(data, at)?, word(data, at.checked_add(4)?)?);
        slice(data, address, len).map(|_| (address, len))
    };
    (0..n_iovecs.min(MAX_IOVECS)).map(piece).collect()
}

/// Fills the guest's buffers in turn by `read`, until one is not filled.
fn read_all(
    guest: &mut Caller<'_, Host>,
    iovecs: u32,
    n_iovecs: u32,
    n_read: u32,
    mut read: impl FnMut(&mut Files, &mut [u8]) -> std::result::Result<usize, i32>,
) -> i32 {
    let Some(memory) = wasi::memory(guest) else { return errno::FAULT };
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let Some(pieces) = pieces(data, iovecs, n_iovecs) else { return errno::FAULT };
    let mut total = 0u32;
    for (address, len) in pieces {
        let into = &mut data[address as usize..][..len as usize];
        match read(&mut host.files, into) {
            Ok(n) => {
                total = total.saturating_add(n as u32);
                if n < into.len() {
                    break;
                }
            }
            Err(error) => return error,
        }
    }
    answer(put(guest, n_read, &total.to_le_bytes()))
}

fn write_reply(guest: &mut Caller<'_, Host>, iovecs: u32, n_iovecs: u32, n_written: u32) -> i32 {
    let Some(memory) = wasi::memory(guest) else { return errno::FAULT };
    let (data, host) = memory.data_and_store_mut(&mut *guest);
    let Some(pieces) = pieces(data, iovecs, n_iovecs) else { return errno::FAULT };
    let mut total = 0u32;
    // A reply is one write: the last one counts, whatever the code has written there.
    host.files.reply.clear();
    for (address, len) in pieces {
        host.files.reply(&data[address as usize..][..len as usize]);
        total = total.saturating_add(len);
    }
    answer(put(guest, n_written, &total.to_le_bytes()))
}

/// Writes the entries of a directory from `cookie` on, the last one cut where the buffer ends.
fn fd_readdir(mut guest: Caller<'_, Host>, fd: u32, buffer: u32, len: u32, cookie: u64, n_used: u32) -> i32 {
    let files = &guest.data().files;
    let Some(open) = files.open.get(&fd) else { return errno::BADF };
    let Some(Entry::Directory) = files.tree.entry(&open.path) else { return errno::NOTDIR };
    let mut listing = Vec::new();
    for (idx, (name, kind)) in files.tree.names(&open.path).into_iter().enumerate().skip(cookie as usize) {
        // dirent: u64 next cookie, u64 inode, u32 length of the name, u8 type, and the name behind its 24 bytes.
        let inode = files
            .stat(&join(&open.path, name))
            .map_or(0, |(_, stat)| u64::from_le_bytes(stat[8..16].try_into().expect("eight bytes")));
        listing.extend_from_slice(&(idx as u64 + 1).to_le_bytes());
        listing.extend_from_slice(&inode.to_le_bytes());
        listing.extend_from_slice(&(name.len() as u32).to_le_bytes());
        listing.extend_from_slice(&[kind as u8, 0, 0, 0]);
        listing.extend_from_slice(name.as_bytes());
    }
    listing.truncate(len as usize);
    let written = put(&mut guest, buffer, &listing);
    answer(written.and_then(|()| put(&mut guest, n_used, &(listing.len() as u32).to_le_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        let file = |path: &str, text| (path.to_owned(), Content::Text(text));
        Files::new(Arc::new(Tree::new([file("usr/lib/a.zip", "0123456789"), file("usr/lib/b/c.py", "x = 1\n")])))
    }

    #[test]
    fn paths_lead_to_the_tree_and_nowhere_else() {
        let files = files();
        let is_there = |path: &str| files.stat(&join("", path)).is_some();
        for path in ["", "/", "usr", "/usr/lib", "usr//lib/./a.zip", "../../usr/lib/b/../a.zip", "/usr/lib/b/c.py"] {
            assert!(is_there(path), "{path}");
        }
        for path in ["etc/passwd", "/etc", "usr/li", "usr/lib/a.zip/x", "..//home", "usr/lib/b/c.pyc"] {
            assert!(!is_there(path), "{path}");
        }
        assert_eq!(join("usr/lib", "../../../.."), "");
        assert_eq!(join("usr/lib", "/b"), "b");
    }

    #[test]
    fn files_are_read_and_never_written() {
        let mut files = files();
        let fd = files.open_path(ROOT, "usr/lib/a.zip", 0, 0).unwrap();
        let mut buffer = [0; 4];
        assert_eq!(files.read(fd, &mut buffer), Ok(4));
        assert_eq!(&buffer, b"0123");
        assert_eq!(files.seek(fd, -3, 2), Ok(7));
        assert_eq!(files.read(fd, &mut buffer), Ok(3));
        assert_eq!(&buffer[..3], b"789");
        assert_eq!(files.read(fd, &mut buffer), Ok(0));
        assert_eq!(files.read_at(fd, 1 << 40, &mut buffer), Ok(0));
        assert_eq!(files.seek(fd, -1, 0), Err(errno::INVAL));
        assert_eq!(files.seek(1, 0, 0), Err(errno::SPIPE));

        assert_eq!(files.open_path(ROOT, "new", 1, 0), Err(errno::ROFS));
        assert_eq!(files.open_path(ROOT, "usr/lib/a.zip", 8, 0), Err(errno::ROFS));
        assert_eq!(files.open_path(ROOT, "usr/lib/a.zip", 0, 1 << 6), Err(errno::ROFS));
        assert_eq!(files.open_path(ROOT, "usr/lib/a.zip", 2, 0), Err(errno::NOTDIR));
        assert_eq!(files.open_path(ROOT, "usr/lib", 0, 1 << 6), Err(errno::ISDIR));
        assert_eq!(files.open_path(7, "usr", 0, 0), Err(errno::BADF));
        let directory = files.open_path(ROOT, "usr", 2, 0).unwrap();
        assert_eq!(files.read(directory, &mut buffer), Err(errno::ISDIR));
        let below = files.open_path(directory, "lib/b/c.py", 0, 0).unwrap();
        assert_eq!(files.read(below, &mut buffer), Ok(4));
    }

    #[test]
    fn only_so_many_files_are_open() {
        let mut files = files();
        let opened = (0..1000).filter(|_| files.open_path(ROOT, "usr", 0, 0).is_ok()).count();
        assert_eq!(opened, MAX_OPEN - 1);
        assert_eq!(files.open_path(ROOT, "usr", 0, 0), Err(errno::MFILE));
    }

    #[test]
    fn directories_list_their_names_once() {
        let files = files();
        let names = |path: &str| files.tree.names(path).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(""), ["usr"]);
        assert_eq!(names("usr/lib"), ["a.zip", "b"]);
    }

    #[test]
    fn a_request_is_read_once_and_a_reply_is_bounded() {
        let mut files = files();
        files.ask(b"hello".to_vec());
        let mut buffer = [0; 3];
        assert_eq!(files.read(REQUEST, &mut buffer), Ok(3));
        assert_eq!(files.read(REQUEST, &mut buffer), Ok(2));
        assert_eq!(files.read(REQUEST, &mut buffer), Ok(0));
        files.reply(b"yes");
        for _ in 0..5 {
            files.reply(&vec![0; MAX_REPLY_BYTES / 2]);
        }
        assert_eq!(files.take_reply().len(), MAX_REPLY_BYTES);
        assert!(files.take_reply().is_empty());
    }
}
