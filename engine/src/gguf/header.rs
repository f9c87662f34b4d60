//! The header of a GGUF file, parsed and checked wholly: version, keys, tensors, and where their data lies.
//!
//! Memory and time are bounded by the header's bytes, which are themselves limited: every count is checked against what
//! the remaining bytes can hold before anything is allocated. Tensors may come in any order and with gaps between them
//! (padding), but never overlap. Bytes after the last tensor are padding too and accepted.
//! Layout: the GGUF specification in ggml's documentation.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::error::GgufError;
use super::metadata::Metadata;
use super::types::GgmlType;
use super::value::{Array, Strings, Value, ValueType};
use super::writer::tensor_bytes;

/// Alignment of tensor data where `general.alignment` is absent.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment that is accepted.
pub const MAX_ALIGNMENT: u64 = 1 << 16;
/// Largest header. The largest known ones, with vocabularies of 200,000 tokens, take some 15 MB.
pub const MAX_HEADER_BYTES: u64 = 1 << 28;
/// Most metadata keys.
pub const MAX_KEYS: u64 = 1 << 16;
/// Longest metadata key (the specification's limit).
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Most elements of an array.
pub const MAX_ARRAY_LEN: u64 = 1 << 24;
/// Most tensors.
pub const MAX_TENSORS: u64 = 1 << 16;
/// Longest tensor name (the specification's limit).
pub const MAX_TENSOR_NAME_BYTES: u64 = 64;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Magic, version and the two counts.
const FIXED_BYTES: u64 = 24;
/// Key length and one byte of key, type, one byte of value.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Name length and one byte of name, number of dimensions and one of them, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A checked header. Of a model in several shards: the first one's, with the tensors of all.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// Tensors in the order of the header; of all shards, one after the other.
    pub tensors: Vec<TensorInfo>,
    /// Alignment of tensor data in bytes.
    pub alignment: u64,
    /// Where tensor data starts in the file. Past the end of a file without tensors.
    pub data_start: u64,
    index: HashMap<String, usize>,
}

/// A tensor's entry in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Which shard of the model holds it, counted from 0; 0 for a model in one file.
    pub shard: usize,
    /// Element type.
    pub ty: GgmlType,
    /// 1 to 4 dimensions in ggml's order: `dims[0]` is contiguous.
    pub dims: Vec<u64>,
    /// Where its bytes start in the file (of its shard).
    pub offset: u64,
    /// How many bytes they are.
    pub bytes: u64,
}

impl TensorInfo {
    /// Elements of a row: `dims[0]`.
    pub fn cols(&self) -> usize {
        self.dims[0] as usize
    }

    /// Rows: the product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product::<u64>() as usize
    }
}

impl Header {
    /// Parses and checks the header of the file whose bytes these are, all of them.
    ///
    /// # Errors
    /// Whatever is wrong with it: see [`GgufError`].
    pub fn parse(file: &[u8]) -> Result<Header, GgufError> {
        check_minimum_magic(file)?;
        let mut cursor = Cursor::new(file);
        check_magic(cursor.array(&|| "the magic".to_owned())?)?;
        let version = check_version(cursor.u32(&|| "the version".to_owned())?)?;
        let n_tensors = cursor.u64(&|| "the number of tensors".to_owned())?;
        if n_tensors > MAX_TENSORS {
            let what = "the number of tensors".to_owned();
            return Err(GgufError::Limit { what, offset: 8, found: n_tensors, limit: MAX_TENSORS });
        }
        let n_keys = cursor.count(MAX_KEYS, MIN_KEY_BYTES, &|| "the number of metadata keys".to_owned())?;
        let mut metadata = Metadata::default();
        for idx in 0..n_keys {
            let offset = cursor.offset();
            let key = cursor.name(MAX_KEY_BYTES, &|| format!("metadata key {idx}"))?;
            let value = read_value(&mut cursor, key)?;
            if !metadata.insert_new(key.to_owned(), value) {
                return Err(GgufError::DuplicateKey { key: key.to_owned(), offset });
            }
        }
        let alignment = alignment(&metadata)?;
        let tensor_bytes = n_tensors * MIN_TENSOR_BYTES;
        if tensor_bytes > cursor.remaining() {
            return Err(GgufError::Truncated {
                what: format!("the list of {n_tensors} tensors"),
                offset: cursor.offset(),
                need: tensor_bytes,
                have: cursor.remaining(),
            });
        }
        let mut tensors = Vec::with_capacity(n_tensors as usize);
        let mut index = HashMap::with_capacity(n_tensors as usize);
        for idx in 0..n_tensors {
            let offset = cursor.offset();
            let tensor = read_tensor(&mut cursor, idx)?;
            if index.insert(tensor.name.clone(), tensors.len()).is_some() {
                return Err(GgufError::DuplicateTensor { name: tensor.name, offset });
            }
            tensors.push(tensor);
        }
        // At most 2^28 + 2^16: can't overflow.
        let data_start = cursor.offset().next_multiple_of(alignment);
        place(&mut tensors, data_start, alignment, file.len() as u64)?;
        Ok(Header { version, metadata, tensors, alignment, data_start, index })
    }

    /// The header of a file that isn't written yet, of these keys and tensors (name, type, dimensions), each tensor after
    /// the one before. Offsets count from where the data will start.
    ///
    /// # Panics
    /// When a row is not a whole number of blocks.
    pub fn planned(metadata: Metadata, tensors: impl IntoIterator<Item = (String, GgmlType, Vec<u64>)>) -> Header {
        let mut header = Header {
            version: 3,
            metadata,
            tensors: Vec::new(),
            alignment: DEFAULT_ALIGNMENT,
            data_start: 0,
            index: HashMap::new(),
        };
        let mut end = 0u64;
        let place = |(name, ty, dims): (String, GgmlType, Vec<u64>)| {
            let bytes = tensor_bytes(&name, ty, &dims);
            let offset = end.next_multiple_of(DEFAULT_ALIGNMENT);
            end = offset + bytes;
            TensorInfo { name, shard: 0, ty, dims, offset, bytes }
        };
        header.append(tensors.into_iter().map(place).collect());
        header
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|idx| &self.tensors[*idx])
    }

    /// Adds the tensors of another shard, none of which is here yet.
    pub(super) fn append(&mut self, tensors: Vec<TensorInfo>) {
        let start = self.tensors.len();
        self.index.extend(tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), start + i)));
        self.tensors.extend(tensors);
    }
}

/// Refuses files that are too short to be mapped and parsed.
pub(super) fn check_minimum(file_bytes: u64) -> Result<(), GgufError> {
    if file_bytes == 0 {
        return Err(GgufError::TooShort { file_bytes, min_bytes: FIXED_BYTES });
    }
    Ok(())
}

/// A short file of another format should hear about its format, not its length.
fn check_minimum_magic(file: &[u8]) -> Result<(), GgufError> {
    if let Some(magic) = file.first_chunk::<4>() {
        check_magic(*magic)?;
    }
    if (file.len() as u64) < FIXED_BYTES {
        return Err(GgufError::TooShort { file_bytes: file.len() as u64, min_bytes: FIXED_BYTES });
    }
    Ok(())
}

fn check_magic(found: [u8; 4]) -> Result<(), GgufError> {
    let hint = match &found {
        b"GGUF" => return Ok(()),
        b"FUGG" => return Err(GgufError::BigEndian { sign: "its magic is byte-swapped".to_owned() }),
        b"lmgg" | b"fmgg" | b"tjgg" | b"GGML" | b"ggml" => " (an old GGML file: convert the model to GGUF)",
        b"PK\x03\x04" => " (a zip archive or PyTorch checkpoint: convert the model to GGUF)",
        b"vers" => " (a Git LFS pointer: fetch the file itself)",
        b"<!DO" | b"<htm" | b"<HTM" => " (a web page: the download went wrong)",
        [_, _, _, 0] if found != [0; 4] => " (perhaps a safetensors file: convert the model to GGUF)",
        _ => "",
    };
    Err(GgufError::Magic { found, hint })
}

fn check_version(version: u32) -> Result<u32, GgufError> {
    match version {
        2 | 3 => Ok(version),
        // A small number in the other byte order.
        v if v != 0 && v & 0xffff == 0 => {
            Err(GgufError::BigEndian { sign: format!("its version reads {v:#010x}, byte-swapped {}", v.swap_bytes()) })
        }
        found => Err(GgufError::Version { found }),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    let refuse = |found: String| GgufError::Alignment { found, max: MAX_ALIGNMENT };
    let found = match metadata.value(KEY) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(v)) => u64::from(*v),
        Some(Value::U64(v)) => *v,
        Some(other) => return Err(GgufError::wrong_type(KEY, other.value_type(), "u32")),
    };
    if found.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&found) {
        Ok(found)
    } else {
        Err(refuse(found.to_string()))
    }
}

fn read_value_type(cursor: &mut Cursor, what: &dyn Fn() -> String) -> Result<ValueType, GgufError> {
    let offset = cursor.offset();
    let found = cursor.u32(&|| format!("the type of {}", what()))?;
    ValueType::from_id(found).ok_or_else(|| GgufError::ValueType { what: what(), offset, found })
}

fn read_value(cursor: &mut Cursor, key: &str) -> Result<Value, GgufError> {
    let what = || format!("the value of `{key}`");
    Ok(match read_value_type(cursor, &what)? {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(&what)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(&what)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(&what)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(&what)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(&what)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(&what)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(&what)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(&what)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(&what)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(&what)?)),
        ValueType::Bool => Value::Bool(read_bool(cursor, &what)?),
        ValueType::String => Value::String(cursor.string(MAX_HEADER_BYTES, &what)?.to_owned()),
        ValueType::Array => Value::Array(read_array(cursor, key)?),
    })
}

fn read_bool(cursor: &mut Cursor, what: &dyn Fn() -> String) -> Result<bool, GgufError> {
    let offset = cursor.offset();
    match cursor.array::<1>(what)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [found] => Err(GgufError::Bool { what: what(), offset, found }),
    }
}

fn read_array(cursor: &mut Cursor, key: &str) -> Result<Array, GgufError> {
    let what = || format!("the array `{key}`");
    let offset = cursor.offset();
    let element = read_value_type(cursor, &what)?;
    if element == ValueType::Array {
        return Err(GgufError::NestedArray { key: key.to_owned(), offset });
    }
    let n = cursor.count(MAX_ARRAY_LEN, element.min_bytes(), &|| format!("the length of the array `{key}`"))?;
    // A fixed-size array is one slice, cut into its elements.
    macro_rules! scalars {
        ($kind:ident, $t:ty) => {{
            let bytes = cursor.take(n * size_of::<$t>() as u64, &what)?;
            let (chunks, _) = bytes.as_chunks::<{ size_of::<$t>() }>();
            Array::$kind(chunks.iter().map(|chunk| <$t>::from_le_bytes(*chunk)).collect())
        }};
    }
    Ok(match element {
        ValueType::U8 => scalars!(U8, u8),
        ValueType::I8 => scalars!(I8, i8),
        ValueType::U16 => scalars!(U16, u16),
        ValueType::I16 => scalars!(I16, i16),
        ValueType::U32 => scalars!(U32, u32),
        ValueType::I32 => scalars!(I32, i32),
        ValueType::F32 => scalars!(F32, f32),
        ValueType::U64 => scalars!(U64, u64),
        ValueType::I64 => scalars!(I64, i64),
        ValueType::F64 => scalars!(F64, f64),
        ValueType::Bool => Array::Bool((0..n).map(|_| read_bool(cursor, &what)).collect::<Result<_, _>>()?),
        ValueType::String => {
            let mut strings = Strings::with_capacity(n as usize);
            for idx in 0..n {
                strings.push(cursor.string(MAX_HEADER_BYTES, &|| format!("element {idx} of the array `{key}`"))?);
            }
            Array::String(strings)
        }
        ValueType::Array => unreachable!("nested arrays were refused above"),
    })
}

/// One entry of the tensor list; `offset` is still relative to the data.
fn read_tensor(cursor: &mut Cursor, idx: u64) -> Result<TensorInfo, GgufError> {
    let name = cursor.name(MAX_TENSOR_NAME_BYTES, &|| format!("the name of tensor {idx}"))?.to_owned();
    let what = || format!("the entry of tensor `{name}`");
    let n_dims = cursor.u32(&what)?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(GgufError::Dimensions { tensor: name, found: n_dims });
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for idx in 0..n_dims as usize {
        let found = cursor.u64(&what)?;
        if found == 0 || found > i64::MAX as u64 {
            return Err(GgufError::Dimension { tensor: name, idx, found });
        }
        dims.push(found);
    }
    let ty = tensor_type(&name, cursor.u32(&what)?)?;
    let offset = cursor.u64(&what)?;
    let block_len = ty.block_len() as u64;
    if !dims[0].is_multiple_of(block_len) {
        return Err(GgufError::RowNotBlocks { tensor: name, ty, cols: dims[0], block_len });
    }
    let bytes = dims
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(*dim).filter(|p| *p <= i64::MAX as u64))
        .and_then(|n| (n / block_len).checked_mul(ty.block_bytes() as u64))
        .filter(|bytes| *bytes <= i64::MAX as u64);
    let Some(bytes) = bytes else {
        return Err(GgufError::TensorSize { tensor: name, dims });
    };
    Ok(TensorInfo { name, shard: 0, ty, dims, offset, bytes })
}

fn tensor_type(tensor: &str, id: u32) -> Result<GgmlType, GgufError> {
    if let Some(ty) = GgmlType::from_id(id) {
        return Ok(ty);
    }
    let tensor = tensor.to_owned();
    if let Some(found) = GgmlType::unsupported_name(id) {
        return Err(GgufError::UnsupportedTensorType { tensor, found });
    }
    let what = if GgmlType::is_removed(id) { "removed" } else { "unknown" };
    Err(GgufError::UnknownTensorType { tensor, found: id, what })
}

/// Checks where the tensors lie and makes their offsets absolute.
fn place(tensors: &mut [TensorInfo], data_start: u64, alignment: u64, file_bytes: u64) -> Result<(), GgufError> {
    for t in tensors.iter_mut() {
        if !t.offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { tensor: t.name.clone(), offset: t.offset, alignment });
        }
        let start = data_start.checked_add(t.offset);
        let end = start.and_then(|start| start.checked_add(t.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => t.offset = start,
            _ => {
                return Err(GgufError::OutsideFile {
                    tensor: t.name.clone(),
                    offset: t.offset,
                    bytes: t.bytes,
                    data_start,
                    file_bytes,
                });
            }
        }
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        let first_end = pair[0].offset + pair[0].bytes;
        if first_end > pair[1].offset {
            return Err(GgufError::Overlap {
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
                first_end,
                second_start: pair[1].offset,
            });
        }
    }
    Ok(())
}
