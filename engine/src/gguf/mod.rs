//! GGUF files, one or several (shards) to a model: opening, checking and reading them over memory maps, and writing them.
//!
//! Everything in the header is checked before anything is believed: sizes against the file, counts against limits,
//! offsets against each other. Refused: other formats, GGUF versions other than 2 and 3, big-endian files, tensor types
//! that have no decoder here, and whatever is not a regular file. Called by the model loader, the tokenizer and the
//! chat template. The header is read by our own code and not by gguf-rs, which panics on some type ids, accepts tensors
//! outside the file and duplicate keys, and shortens vocabularies; the tests compare the two on sound files.

mod cursor;
mod error;
mod header;
mod metadata;
mod shards;
mod types;
mod value;
pub mod writer;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

pub use error::{GgufError, ShardMismatch};
pub use header::{
    DEFAULT_ALIGNMENT, Header, MAX_ALIGNMENT, MAX_ARRAY_LEN, MAX_HEADER_BYTES, MAX_KEY_BYTES, MAX_KEYS,
    MAX_TENSOR_NAME_BYTES, MAX_TENSORS, TensorInfo,
};
pub use metadata::Metadata;
use shards::Split;
pub use shards::{MAX_SHARDS, ShardName};
pub use types::GgmlType;
pub use value::{Array, Strings, Value, ValueType};

/// An opened model: its checked header and the maps of its bytes, one per file (shard).
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    files: Vec<MappedFile>,
    header: Header,
}

/// A file and the map of its bytes.
#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl GgufFile {
    /// Gives the pages back that were read so far; they are read again when they are needed. For when the tensors were
    /// copied.
    pub fn release(&self) {
        self.files.iter().for_each(MappedFile::release);
    }

    /// Maps the file and checks its whole header. Tensor data is not read. Of a model in several shards any may be
    /// named: all are opened, from the same folder.
    ///
    /// The files must stay as they are while they are open: another process that truncates one makes reads past its new
    /// end fatal (SIGBUS), which no library can turn into an error. [`Self::check_unchanged`] tells, cheaply, before a
    /// long read starts.
    ///
    /// # Errors
    /// Whatever keeps the file from being used, with the offset, what was found and what is allowed; a shard that is
    /// missing or doesn't fit the others.
    pub fn open(path: &Path) -> Result<GgufFile, GgufError> {
        let file = MappedFile::open(path)?;
        let header = Header::parse(&file.map)?;
        let (files, header) = match Split::of(&header.metadata)? {
            Some(split) => shards::open_set(path, file, header, split)?,
            None => (vec![file], header),
        };
        Ok(GgufFile { path: path.to_owned(), files, header })
    }

    /// The path that the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// GGUF version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Size of all files when they were opened.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(MappedFile::bytes).sum()
    }

    /// Path and size of each file (shard), in their order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&Path, u64)> {
        self.files.iter().map(|file| (file.path.as_path(), file.bytes()))
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// Tensors in the order of the file's header, shard after shard.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensor(name)
    }

    /// The bytes of a tensor of this model: `t.bytes` of them, blocks of `t.ty`, row after row.
    ///
    /// # Panics
    /// When `t` describes a range outside this model's files, that is, when it comes from another one.
    pub fn data(&self, t: &TensorInfo) -> &[u8] {
        let range = t.offset as usize..(t.offset + t.bytes) as usize;
        self.files.get(t.shard).and_then(|file| file.map.get(range)).unwrap_or_else(|| {
            panic!(
                "tensor {} ends at {} of shard {}, outside {}",
                t.name,
                t.offset + t.bytes,
                t.shard,
                self.path.display()
            )
        })
    }

    /// Asks the system to read these bytes of a tensor of this model from the disk: it need not be done on return, and
    /// nothing depends on it.
    pub(crate) fn will_need(&self, t: &TensorInfo, range: Range<u64>) {
        if let Some(file) = self.files.get(t.shard) {
            let (start, bytes) = ((t.offset + range.start) as usize, (range.end - range.start) as usize);
            // Only time is at stake.
            let _ = file.map.advise_range(Advice::WillNeed, start, bytes);
        }
    }

    /// Checks that the files still have the sizes that they had when they were opened.
    ///
    /// # Errors
    /// [`GgufError::Changed`] when a size differs: the bytes are not the ones that were checked.
    pub fn check_unchanged(&self) -> Result<(), GgufError> {
        self.files.iter().try_for_each(MappedFile::check_unchanged)
    }
}

impl MappedFile {
    fn open(path: &Path) -> Result<MappedFile, GgufError> {
        // Asked before opening: opening a FIFO would wait for its writer.
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_file() {
            return Err(GgufError::NotRegularFile { found: describe_file_type(kind) });
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(GgufError::NotRegularFile { found: describe_file_type(metadata.file_type()) });
        }
        let file_bytes = metadata.len();
        header::check_minimum(file_bytes)?;
        if usize::try_from(file_bytes).is_err() {
            return Err(GgufError::TooLargeToMap { file_bytes });
        }
        // SAFETY: the map is read-only and lives as long as `file`. Its bytes are plain data of any value. That nobody
        // truncates the file meanwhile is the caller's side of `GgufFile::open`, stated there.
        let map = unsafe { Mmap::map(&file)? };
        Ok(MappedFile { path: path.to_owned(), file, map })
    }

    fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    fn release(&self) {
        // SAFETY: pages of a read-only map of a file are read from it again when they are needed.
        let released = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        // Only this process's count of pages is at stake.
        drop(released);
    }

    fn check_unchanged(&self) -> Result<(), GgufError> {
        let now_bytes = self.file.metadata()?.len();
        if now_bytes == self.bytes() {
            return Ok(());
        }
        let file = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned();
        Err(GgufError::Changed { file, opened_bytes: self.bytes(), now_bytes })
    }
}

fn describe_file_type(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        return "a directory";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    "a special file"
}
