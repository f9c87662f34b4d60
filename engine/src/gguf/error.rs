//! Why a GGUF file can't be used. Every variant names the thing, what was found and what is allowed; the path is added
//! by whoever reports it.

use super::{GgmlType, ValueType};

/// Why a GGUF file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named and the messages say what they are")]
pub enum GgufError {
    /// Opening, mapping or asking for the size failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A directory, pipe, device or socket.
    #[error("is {found}, not a regular file")]
    NotRegularFile { found: &'static str },
    /// More bytes than this process can address.
    #[error("{file_bytes} bytes are more than this machine can map")]
    TooLargeToMap { file_bytes: u64 },
    /// Shorter than any GGUF file.
    #[error("has {file_bytes} bytes; a GGUF header alone takes {min_bytes}: the download or copy is incomplete")]
    TooShort { file_bytes: u64, min_bytes: u64 },
    /// The first four bytes are not `GGUF`.
    #[error("is not a GGUF file: it starts with the bytes {found:02x?}{hint}")]
    Magic { found: [u8; 4], hint: &'static str },
    /// A big-endian file, told by its magic or version.
    #[error("is a big-endian GGUF file ({sign}); only little-endian files can be read: convert it again")]
    BigEndian { sign: String },
    /// A version that is not read here.
    #[error("GGUF version {found} can't be read; supported: 2 and 3")]
    Version { found: u32 },
    /// The file ends inside its header.
    #[error(
        "ends inside {what}: {need} bytes needed at offset {offset}, {have} left in the file; it is truncated or corrupt"
    )]
    Truncated { what: String, offset: u64, need: u64, have: u64 },
    /// The header is larger than any sensible one.
    #[error("the header goes past {limit_bytes} bytes (in {what}); the file is corrupt")]
    HeaderTooLarge { what: String, limit_bytes: u64 },
    /// A count or length above its limit.
    #[error("{what} is {found} at offset {offset}; the limit is {limit}: the file is corrupt")]
    Limit { what: String, offset: u64, found: u64, limit: u64 },
    /// A key or tensor name that is empty, or holds NUL or control characters, or is not UTF-8.
    #[error("{what} at offset {offset} {problem}")]
    Text { what: String, offset: u64, problem: &'static str },
    /// A key that is there twice.
    #[error("the key `{key}` occurs twice (again at offset {offset})")]
    DuplicateKey { key: String, offset: u64 },
    /// A value type id that GGUF doesn't define.
    #[error("{what} has the value type {found} at offset {offset}; GGUF defines 0 to 12")]
    ValueType { what: String, offset: u64, found: u32 },
    /// An array of arrays.
    #[error("the key `{key}` holds an array of arrays, which is not supported (offset {offset})")]
    NestedArray { key: String, offset: u64 },
    /// A bool that is neither 0 nor 1.
    #[error("{what} holds the bool {found} at offset {offset}; allowed: 0 and 1")]
    Bool { what: String, offset: u64, found: u8 },
    /// A required key is absent.
    #[error("the key `{key}` ({expected}) is missing")]
    MissingKey { key: String, expected: &'static str },
    /// A key has a value of another type.
    #[error("the key `{key}` is of type {found}; expected {expected}")]
    WrongType { key: String, found: String, expected: &'static str },
    /// An integer that doesn't fit what it is read as.
    #[error("the key `{key}` is {found}; expected {expected}")]
    OutOfRange { key: String, found: String, expected: &'static str },
    /// `general.alignment` is not usable.
    #[error("general.alignment is {found}; allowed: powers of two from 8 to {max}")]
    Alignment { found: String, max: u64 },
    /// Two tensors of one name.
    #[error("the tensor `{name}` occurs twice (again at offset {offset})")]
    DuplicateTensor { name: String, offset: u64 },
    /// A tensor with no or too many dimensions.
    #[error("tensor `{tensor}` has {found} dimensions; allowed: 1 to 4")]
    Dimensions { tensor: String, found: u32 },
    /// A dimension of zero or beyond what can be addressed.
    #[error("dimension {idx} of tensor `{tensor}` is {found}; allowed: 1 to 2^63 - 1")]
    Dimension { tensor: String, idx: usize, found: u64 },
    /// The product of the dimensions, or their bytes, can't be addressed.
    #[error("the size of tensor `{tensor}` with dimensions {dims:?} overflows")]
    TensorSize { tensor: String, dims: Vec<u64> },
    /// A type id that ggml doesn't define (or no longer does).
    #[error("tensor `{tensor}` has the {what} type id {found}; supported: {}", supported())]
    UnknownTensorType { tensor: String, found: u32, what: &'static str },
    /// A type of ggml's that has no decoder here.
    #[error("tensor `{tensor}` is of type {found}, which is not supported; supported: {}", supported())]
    UnsupportedTensorType { tensor: String, found: &'static str },
    /// A row that doesn't hold a whole number of blocks.
    #[error("tensor `{tensor}` of type {ty} has rows of {cols} weights; they must be a multiple of {block_len}")]
    RowNotBlocks { tensor: String, ty: GgmlType, cols: u64, block_len: u64 },
    /// Tensor data that starts at a place that the alignment forbids.
    #[error(
        "tensor `{tensor}` starts at offset {offset} of the data, which is not a multiple of the alignment {alignment}"
    )]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    /// Tensor data outside the file.
    #[error(
        "tensor `{tensor}` takes {bytes} bytes at offset {offset} of the data, which starts at {data_start}; the file \
         has {file_bytes} bytes: it is truncated or corrupt"
    )]
    OutsideFile { tensor: String, offset: u64, bytes: u64, data_start: u64, file_bytes: u64 },
    /// Two tensors that share bytes.
    #[error(
        "tensors `{first}` and `{second}` overlap: one ends at byte {first_end}, the other starts at {second_start}"
    )]
    Overlap { first: String, second: String, first_end: u64, second_start: u64 },
    /// One of several shards, under a name that doesn't tell the names of the others.
    #[error(
        "is one of {count} shards, but the name `{found}` doesn't end with -NNNNN-of-{count:05}.gguf, by which the \
         others are found"
    )]
    ShardName { found: String, count: usize },
    /// A shard that is not beside the one that was named.
    #[error("shard {no} of {count} is missing: there is no `{name}` in the same folder")]
    MissingShard { name: String, no: usize, count: usize },
    /// What is wrong with another shard than the one that was named.
    #[error("shard `{name}`: {error}")]
    Shard { name: String, error: Box<GgufError> },
    /// A shard that doesn't fit its name or the other shards.
    #[error("{0}")]
    ShardKey(Box<ShardMismatch>),
    /// A tensor that two shards hold.
    #[error("the tensor `{tensor}` is in two shards, `{first}` and `{second}`")]
    TensorInTwoShards { tensor: String, first: String, second: String },
    /// Shards that together hold too few or too many tensors.
    #[error("the shards hold {found} tensors together; expected {expected}")]
    ShardTensors { found: u64, expected: String },
    /// The file's size changed while it was open.
    #[error(
        "{file} changed while it was open: {opened_bytes} bytes then, {now_bytes} now; keep the file as it is and start again"
    )]
    Changed { file: String, opened_bytes: u64, now_bytes: u64 },
}

/// A key by which a shard doesn't fit its name or the other shards.
#[derive(Debug, thiserror::Error)]
#[error("shard `{name}`: the key `{key}` is {found}; expected {expected}")]
#[allow(missing_docs, reason = "the fields are named and the message says what they are")]
pub struct ShardMismatch {
    pub name: String,
    pub key: String,
    pub found: String,
    pub expected: String,
}

impl GgufError {
    pub(super) fn wrong_type(key: &str, found: ValueType, expected: &'static str) -> GgufError {
        GgufError::WrongType { key: key.to_owned(), found: found.name().to_owned(), expected }
    }
}

fn supported() -> String {
    GgmlType::ALL.map(GgmlType::name).join(", ")
}
