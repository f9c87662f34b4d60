//! Writes GGUF files (version 3, little-endian): metadata, then tensors, each aligned as `general.alignment` says.
//!
//! A model can be cut into shards, each a file of its own. Used by tests and wherever a model is made (`synth`). It
//! refuses what the reader refuses where it can tell cheaply (shapes that don't fit the type, data of another size), but
//! not duplicate names: the reader's tests need those.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::DEFAULT_ALIGNMENT;
use super::shards::{KEY_COUNT, KEY_NO, KEY_TENSORS, ShardName};
use super::types::GgmlType;
use super::value::{Array, Strings, Value};

const KEY_ALIGNMENT: &str = "general.alignment";

/// A GGUF file in the making. `'a` is the life of borrowed tensor data.
#[derive(Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor<'a>>,
}

struct Tensor<'a> {
    name: String,
    ty: GgmlType,
    dims: Vec<u64>,
    bytes: u64,
    data: Data<'a>,
}

enum Data<'a> {
    Owned(Vec<u8>),
    Streamed(Box<Fill<'a>>),
}

/// Writes a tensor's bytes.
type Fill<'a> = dyn Fn(&mut dyn Write) -> io::Result<()> + 'a;

impl<'a> GgufWriter<'a> {
    /// An empty file.
    pub fn new() -> GgufWriter<'a> {
        GgufWriter::default()
    }

    /// Adds a key. `general.alignment` (u32) also takes effect on the data's layout.
    pub fn meta(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.metadata.push((key.to_owned(), value.into()));
        self
    }

    /// Adds a tensor with its bytes: blocks of `ty`, row after row. `dims[0]` is contiguous.
    ///
    /// # Panics
    /// When a row is not a whole number of blocks, or `data` has another size than the shape asks for.
    pub fn tensor(mut self, name: &str, ty: GgmlType, dims: &[u64], data: Vec<u8>) -> Self {
        let bytes = tensor_bytes(name, ty, dims);
        assert_eq!(data.len() as u64, bytes, "bytes of tensor {name}, {ty} {dims:?}");
        self.tensors.push(Tensor { name: name.to_owned(), ty, dims: dims.to_vec(), bytes, data: Data::Owned(data) });
        self
    }

    /// Adds a tensor whose bytes `fill` writes when the file is written, so that it need not be held in memory.
    ///
    /// # Panics
    /// When a row is not a whole number of blocks.
    pub fn tensor_with(
        mut self,
        name: &str,
        ty: GgmlType,
        dims: &[u64],
        fill: impl Fn(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Self {
        let bytes = tensor_bytes(name, ty, dims);
        let data = Data::Streamed(Box::new(fill));
        self.tensors.push(Tensor { name: name.to_owned(), ty, dims: dims.to_vec(), bytes, data });
        self
    }

    /// Writes the file.
    ///
    /// # Errors
    /// What `out` or a tensor's `fill` returns; `InvalidData` when a `fill` wrote another number of bytes than its
    /// tensor has.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        self.write_part(&self.metadata, &self.tensors, out)
    }

    /// How the tensors are cut into shards of at most `max_bytes` of data each, in their order; a tensor that is larger
    /// has a shard of its own. At least one shard.
    pub fn shards(&self, max_bytes: u64) -> Vec<Range<usize>> {
        let alignment = self.alignment();
        let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0u64);
        for (idx, t) in self.tensors.iter().enumerate() {
            let padded = t.bytes.next_multiple_of(alignment);
            if idx > start && bytes + padded > max_bytes {
                shards.push(start..idx);
                (start, bytes) = (idx, 0);
            }
            bytes += padded;
        }
        shards.push(start..self.tensors.len());
        shards
    }

    /// Writes shard `no` of `shards` (from [`Self::shards`]). The first one holds the metadata, the others only what
    /// ties them to it.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// # Panics
    /// When there are more shards than `u16` counts.
    pub fn write_shard(&self, shards: &[Range<usize>], no: usize, out: impl Write) -> io::Result<()> {
        let count = u16::try_from(shards.len()).expect("shards are counted by a u16");
        let mut metadata = match no {
            0 => self.metadata.clone(),
            _ => self.metadata.iter().filter(|(key, _)| key == KEY_ALIGNMENT).cloned().collect(),
        };
        metadata.extend([
            (KEY_NO.to_owned(), Value::U16(no as u16)),
            (KEY_COUNT.to_owned(), Value::U16(count)),
            (KEY_TENSORS.to_owned(), Value::I32(self.tensors.len() as i32)),
        ]);
        self.write_part(&metadata, &self.tensors[shards[no].clone()], out)
    }

    /// Writes all shards of at most `max_bytes` of data into `dir`, named after `prefix`; gives their paths.
    ///
    /// # Errors
    /// As [`Self::write`], and what creating a file returns.
    pub fn write_shards(&self, dir: &Path, prefix: &str, max_bytes: u64) -> io::Result<Vec<PathBuf>> {
        let shards = self.shards(max_bytes);
        let path = |no| dir.join(ShardName { prefix: prefix.to_owned(), no, count: shards.len() }.to_string());
        (0..shards.len())
            .map(|no| {
                self.write_shard(&shards, no, io::BufWriter::new(std::fs::File::create(path(no))?))?;
                Ok(path(no))
            })
            .collect()
    }

    /// Bytes of the file that [`Self::write`] makes.
    pub fn file_bytes(&self) -> u64 {
        let mut header = Counting { out: io::sink(), written: 0 };
        self.write_header(&self.metadata, &self.tensors, &mut header).expect("a sink takes everything");
        let alignment = self.alignment();
        self.tensors.iter().fold(header.written, |end, t| end.next_multiple_of(alignment) + t.bytes)
    }

    fn write_part(&self, metadata: &[(String, Value)], tensors: &[Tensor<'_>], out: impl Write) -> io::Result<()> {
        let mut out = Counting { out, written: 0 };
        self.write_header(metadata, tensors, &mut out)?;
        let alignment = self.alignment();
        for t in tensors {
            out.pad_to(alignment)?;
            let start = out.written;
            match &t.data {
                Data::Owned(data) => out.write_all(data)?,
                Data::Streamed(fill) => fill(&mut out)?,
            }
            let written = out.written - start;
            if written != t.bytes {
                let message = format!("tensor {} has {} bytes, {written} were written", t.name, t.bytes);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        out.flush()
    }

    fn write_header(
        &self,
        metadata: &[(String, Value)],
        tensors: &[Tensor<'_>],
        out: &mut Counting<impl Write>,
    ) -> io::Result<()> {
        let alignment = self.alignment();
        out.write_all(b"GGUF")?;
        out.write_all(&3u32.to_le_bytes())?;
        out.write_all(&(tensors.len() as u64).to_le_bytes())?;
        out.write_all(&(metadata.len() as u64).to_le_bytes())?;
        for (key, value) in metadata {
            write_string(out, key)?;
            out.write_all(&(value.value_type() as u32).to_le_bytes())?;
            write_value(out, value)?;
        }
        let mut offset = 0u64;
        for t in tensors {
            write_string(out, &t.name)?;
            out.write_all(&(t.dims.len() as u32).to_le_bytes())?;
            t.dims.iter().try_for_each(|dim| out.write_all(&dim.to_le_bytes()))?;
            out.write_all(&(t.ty as u32).to_le_bytes())?;
            out.write_all(&offset.to_le_bytes())?;
            offset = (offset + t.bytes).next_multiple_of(alignment);
        }
        Ok(())
    }

    /// The file as bytes.
    ///
    /// # Errors
    /// What a tensor's `fill` returns; `InvalidData` when it wrote another number of bytes than its tensor has.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        Ok(bytes)
    }

    fn alignment(&self) -> u64 {
        self.metadata
            .iter()
            .find_map(|(key, value)| match value {
                Value::U32(v) if key == KEY_ALIGNMENT && *v != 0 => Some(u64::from(*v)),
                _ => None,
            })
            .unwrap_or(DEFAULT_ALIGNMENT)
    }
}

pub(super) fn tensor_bytes(name: &str, ty: GgmlType, dims: &[u64]) -> u64 {
    let block_len = ty.block_len() as u64;
    assert!(dims.first().is_some_and(|cols| cols.is_multiple_of(block_len)), "rows of tensor {name}, {ty} {dims:?}");
    dims.iter().product::<u64>() / block_len * ty.block_bytes() as u64
}

/// Knows how many bytes went through it, which alignment needs.
struct Counting<W> {
    out: W,
    written: u64,
}

impl<W: Write> Counting<W> {
    fn pad_to(&mut self, alignment: u64) -> io::Result<()> {
        const ZEROS: [u8; 64] = [0; 64];
        let mut pad = self.written.next_multiple_of(alignment) - self.written;
        while pad > 0 {
            let n = pad.min(ZEROS.len() as u64);
            self.write_all(&ZEROS[..n as usize])?;
            pad -= n;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_string(out: &mut impl Write, s: &str) -> io::Result<()> {
    out.write_all(&(s.len() as u64).to_le_bytes())?;
    out.write_all(s.as_bytes())
}

fn write_value(out: &mut impl Write, value: &Value) -> io::Result<()> {
    match value {
        Value::U8(v) => out.write_all(&v.to_le_bytes()),
        Value::I8(v) => out.write_all(&v.to_le_bytes()),
        Value::U16(v) => out.write_all(&v.to_le_bytes()),
        Value::I16(v) => out.write_all(&v.to_le_bytes()),
        Value::U32(v) => out.write_all(&v.to_le_bytes()),
        Value::I32(v) => out.write_all(&v.to_le_bytes()),
        Value::F32(v) => out.write_all(&v.to_le_bytes()),
        Value::U64(v) => out.write_all(&v.to_le_bytes()),
        Value::I64(v) => out.write_all(&v.to_le_bytes()),
        Value::F64(v) => out.write_all(&v.to_le_bytes()),
        Value::Bool(v) => out.write_all(&[u8::from(*v)]),
        Value::String(v) => write_string(out, v),
        Value::Array(array) => {
            out.write_all(&(array.element_type() as u32).to_le_bytes())?;
            out.write_all(&(array.len() as u64).to_le_bytes())?;
            (0..array.len())
                .try_for_each(|idx| write_value(out, &array.get(idx).expect("idx is below the array's length")))
        }
    }
}

macro_rules! value_from {
    ($($kind:ident, $t:ty;)*) => {$(
        impl From<$t> for Value {
            fn from(v: $t) -> Value {
                Value::$kind(v)
            }
        }
        impl From<Vec<$t>> for Value {
            fn from(v: Vec<$t>) -> Value {
                Value::Array(Array::$kind(v))
            }
        }
    )*};
}
value_from! {
    U8, u8;
    I8, i8;
    U16, u16;
    I16, i16;
    U32, u32;
    I32, i32;
    F32, f32;
    Bool, bool;
    U64, u64;
    I64, i64;
    F64, f64;
}

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::String(v.to_owned())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Value {
        Value::String(v)
    }
}

impl From<Strings> for Value {
    fn from(v: Strings) -> Value {
        Value::Array(Array::String(v))
    }
}

impl From<Vec<&str>> for Value {
    fn from(v: Vec<&str>) -> Value {
        v.into_iter().collect::<Strings>().into()
    }
}

impl From<Vec<String>> for Value {
    fn from(v: Vec<String>) -> Value {
        v.into_iter().collect::<Strings>().into()
    }
}
