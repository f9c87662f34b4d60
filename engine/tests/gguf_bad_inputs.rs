//! Broken GGUF files: each is refused with an error that names the thing, what was found and what is allowed, and none
//! makes the reader panic or take more than a few bytes of memory. Headers are spelled byte by byte here, since the
//! writer makes only sound ones.

use std::path::Path;

use engine::gguf::writer::GgufWriter;
use engine::gguf::{GgmlType, GgufError, GgufFile, Header, MAX_KEYS};

/// A header spelled piece by piece.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(n_tensors: u64, n_keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_keys)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, v: u32) -> Raw {
        self.bytes(&v.to_le_bytes())
    }

    fn u64(self, v: u64) -> Raw {
        self.bytes(&v.to_le_bytes())
    }

    fn str(self, s: &[u8]) -> Raw {
        self.u64(s.len() as u64).bytes(s)
    }

    fn key_u32(self, key: &[u8], v: u32) -> Raw {
        self.str(key).u32(4).u32(v)
    }

    /// A tensor's entry with one dimension per element of `dims`.
    fn tensor(self, name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Raw {
        let entry = self.str(name).u32(dims.len() as u32);
        dims.iter().fold(entry, |entry, dim| entry.u64(*dim)).u32(ty).u64(offset)
    }

    /// Pads to 32 bytes and adds `n` bytes of tensor data.
    fn data(mut self, n: usize) -> Raw {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + n, 0);
        self
    }
}

/// The error's message, which must hold each of the fragments.
#[track_caller]
fn refused(case: &str, file: &[u8], fragments: &[&str]) {
    let message = match Header::parse(file) {
        Ok(header) => panic!("{case}: accepted as {header:?}"),
        Err(error) => error.to_string(),
    };
    for fragment in fragments {
        assert!(message.contains(fragment), "{case}: `{fragment}` is not in the message: {message}");
    }
}

/// One F32 tensor of 8 elements with its entry changed.
fn one_tensor(name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    Raw::new(1, 0).tensor(name, dims, ty, offset).data(32).0
}

#[test]
fn row_01_short_files() {
    for n in 0..24 {
        let file = &Raw::new(0, 0).0[..n];
        refused("short", file, &[&format!("has {n} bytes"), "24"]);
    }
    assert!(Header::parse(&Raw::new(0, 0).0).is_ok(), "24 bytes without keys and tensors are a sound file");
}

#[test]
fn row_02_magic_and_version() {
    let with_magic = |magic: &[u8; 4]| Raw(magic.to_vec()).u32(3).u64(0).u64(0).0;
    refused("noise", &with_magic(b"abcd"), &["not a GGUF file", "61, 62, 63, 64"]);
    refused("swapped magic", &with_magic(b"FUGG"), &["big-endian", "byte-swapped"]);
    refused("old format", &with_magic(b"tjgg"), &["old GGML"]);
    refused("zip", &with_magic(b"PK\x03\x04"), &["PyTorch"]);
    refused("lfs", b"version https://git-lfs.github.com/spec/v1\n", &["Git LFS pointer"]);
    refused("web page", b"<!DOCTYPE html><html></html>", &["web page"]);
    refused("lower case", &with_magic(b"gguf"), &["not a GGUF file"]);
    let with_version = |v: u32| Raw(b"GGUF".to_vec()).u32(v).u64(0).u64(0).0;
    for v in [0, 1, 4, 0x0300_0001, u32::MAX] {
        refused("version", &with_version(v), &[&format!("version {v} "), "2 and 3"]);
    }
    refused("swapped version", &with_version(0x0300_0000), &["big-endian", "byte-swapped 3"]);
    refused("swapped version", &with_version(0x0200_0000), &["big-endian", "byte-swapped 2"]);
    for v in [2, 3] {
        assert_eq!(Header::parse(&with_version(v)).unwrap().version, v);
    }
}

#[test]
fn row_03_counts() {
    for n in [u64::MAX, 1 << 63, 65_537] {
        refused("tensors", &Raw::new(n, 0).data(64).0, &["number of tensors", &n.to_string(), "65536"]);
        refused("keys", &Raw::new(0, n).data(64).0, &["number of metadata keys", &n.to_string(), "65536"]);
    }
    refused("more tensors than bytes", &Raw::new(60_000, 0).data(64).0, &["60000 tensors", "left in the file"]);
    refused("more keys than bytes", &Raw::new(0, 60_000).data(64).0, &["number of metadata keys", "left in the file"]);
}

#[test]
fn row_04_key_lengths() {
    refused("u64::MAX", &Raw::new(0, 1).u64(u64::MAX).data(64).0, &["length of metadata key 0", "65535"]);
    let file = Raw::new(0, 1).u64(33).bytes(&[b'k'; 32]).0;
    refused("one more than there is", &file, &["metadata key 0", "33 bytes needed", "32 left"]);
    refused("empty", &Raw::new(0, 1).key_u32(b"", 1).0, &["metadata key 0", "is empty"]);
    refused("NUL", &Raw::new(0, 1).key_u32(b"a\0b", 1).0, &["metadata key 0", "NUL"]);
    refused("not UTF-8", &Raw::new(0, 1).key_u32(b"a\xff", 1).0, &["metadata key 0", "UTF-8"]);
    assert!(Header::parse(&Raw::new(0, 1).key_u32(&[b'k'; 65_535], 1).0).is_ok(), "the longest key");
    refused("too long", &Raw::new(0, 1).key_u32(&[b'k'; 65_536], 1).0, &["65536", "65535"]);
}

#[test]
fn row_05_string_of_a_gigabyte() {
    let file = Raw::new(0, 1).str(b"general.name").u32(8).u64(1 << 30).data(100).0;
    refused("1 GiB", &file, &["value of `general.name`", "1073741824"]);
    let file = Raw::new(0, 1).str(b"general.name").u32(8).u64(200_000_000).data(100).0;
    refused("under the limit, past the file", &file, &["value of `general.name`", "200000000 bytes needed"]);
    let file = Raw::new(0, 1).str(b"general.name").u32(8).str(b"\xc3(").0;
    refused("not UTF-8", &file, &["value of `general.name`", "UTF-8"]);
}

#[test]
fn row_06_array_counts() {
    let array = |element: u32, n: u64| Raw::new(0, 1).str(b"a").u32(9).u32(element).u64(n).data(96).0;
    for element in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12] {
        refused("count × size overflows", &array(element, u64::MAX / 4), &["length of the array `a`"]);
        refused("beyond the limit", &array(element, (1 << 24) + 1), &["length of the array `a`", "16777216"]);
        refused("past the file", &array(element, 1 << 20), &["length of the array `a`", "left in the file"]);
    }
    let strings = Raw::new(0, 1).str(b"a").u32(9).u32(8).u64(13).bytes(&[0; 103]).0;
    refused("strings: 8 bytes each at least", &strings, &["length of the array `a`", "104 bytes needed", "103 left"]);
}

#[test]
fn row_07_nested_arrays() {
    let file = Raw::new(0, 1).str(b"a").u32(9).u32(9).u64(1).u32(4).u64(1).u32(7).0;
    refused("nested", &file, &["`a`", "array of arrays"]);
}

#[test]
fn row_08_value_types() {
    for ty in [13, 14, u32::MAX] {
        let file = Raw::new(0, 1).str(b"k").u32(ty).data(64).0;
        refused("type", &file, &["`k`", &ty.to_string(), "0 to 12"]);
        let file = Raw::new(0, 1).str(b"k").u32(9).u32(ty).u64(1).data(64).0;
        refused("element type", &file, &["`k`", &ty.to_string(), "0 to 12"]);
    }
    refused("bool 7", &Raw::new(0, 1).str(b"k").u32(7).bytes(&[7, 0]).0, &["`k`", "bool 7", "0 and 1"]);
    let file = Raw::new(0, 1).str(b"k").u32(9).u32(7).u64(2).bytes(&[1, 2]).0;
    refused("bool 2 in an array", &file, &["`k`", "bool 2"]);
    let header = Header::parse(&Raw::new(0, 1).key_u32(b"general.architecture", 5).0).unwrap();
    let message = header.metadata.str("general.architecture").unwrap_err().to_string();
    assert_eq!(message, "the key `general.architecture` is of type u32; expected string");
    let message = header.metadata.u32("llama.block_count").unwrap_err().to_string();
    assert_eq!(message, "the key `llama.block_count` (u32) is missing");
}

#[test]
fn row_09_duplicate_and_many_keys() {
    let file = Raw::new(0, 3).key_u32(b"a", 1).key_u32(b"b", 1).key_u32(b"a", 2).0;
    refused("duplicate", &file, &["`a` occurs twice"]);
    let many = |n: u64| (0..n).fold(Raw::new(0, n), |raw, i| raw.key_u32(format!("k{i}").as_bytes(), 0)).0;
    assert_eq!(Header::parse(&many(MAX_KEYS)).unwrap().metadata.len() as u64, MAX_KEYS);
    refused("a million", &many(1_000_000), &["1000000", "65536"]);
}

#[test]
fn row_10_alignment() {
    for v in [0, 1, 4, 13, 24, 1 << 31] {
        let file = Raw::new(0, 1).key_u32(b"general.alignment", v).0;
        refused("alignment", &file, &["general.alignment", &v.to_string(), "powers of two"]);
    }
    let file = Raw::new(0, 1).str(b"general.alignment").u32(8).str(b"32").0;
    refused("string", &file, &["general.alignment", "string", "u32"]);
    for v in [8, 32, 64, 65_536] {
        let header = Header::parse(&Raw::new(0, 1).key_u32(b"general.alignment", v).0).unwrap();
        assert_eq!(header.alignment, u64::from(v));
        assert!(header.data_start.is_multiple_of(header.alignment));
    }
}

#[test]
fn row_11_number_of_dimensions() {
    for n in [0, 5, u32::MAX] {
        let file = Raw::new(1, 0).str(b"t").u32(n).data(96).0;
        refused("n_dims", &file, &["`t`", &format!("{n} dimensions"), "1 to 4"]);
    }
}

#[test]
fn rows_12_and_13_dimensions_and_sizes() {
    for dim in [0, 1 << 63, u64::MAX] {
        refused("dimension 0", &one_tensor(b"t", &[dim], 0, 0), &["dimension 0", "`t`", &dim.to_string()]);
        refused("dimension 2", &one_tensor(b"t", &[8, 1, dim], 0, 0), &["dimension 2", "`t`", &dim.to_string()]);
    }
    refused("product", &one_tensor(b"t", &[1 << 32, 1 << 32], 0, 0), &["`t`", "overflows"]);
    refused("product of four", &one_tensor(b"t", &[1 << 16; 4], 0, 0), &["`t`", "overflows"]);
    refused("bytes", &one_tensor(b"t", &[1 << 62], 0, 0), &["`t`", "overflows"]);
    refused("bytes of blocks", &one_tensor(b"t", &[1 << 62], 8, 0), &["`t`", "takes", "truncated"]);
}

#[test]
fn row_15_type_ids() {
    for id in [4, 5, 31, 33, 36, 38] {
        let file = one_tensor(b"t", &[256], id, 0);
        refused("removed", &file, &["`t`", &format!("removed type id {id}"), "supported: F32, F16, Q4_0"]);
    }
    for id in [42, 43, 1 << 31, u32::MAX] {
        refused("unknown", &one_tensor(b"t", &[256], id, 0), &["`t`", &format!("unknown type id {id}"), "BF16"]);
    }
    for (id, name) in [(9, "Q8_1"), (16, "IQ2_XXS"), (24, "I8"), (34, "TQ1_0"), (40, "NVFP4")] {
        refused("unsupported", &one_tensor(b"t", &[256], id, 0), &["`t`", &format!("of type {name}"), "supported:"]);
    }
    for ty in GgmlType::ALL {
        assert!(GgmlType::unsupported_name(ty as u32).is_none() && !GgmlType::is_removed(ty as u32));
    }
}

#[test]
fn row_16_rows_of_part_blocks() {
    let file = one_tensor(b"t", &[33, 2], GgmlType::Q8_0 as u32, 0);
    refused("Q8_0", &file, &["`t`", "Q8_0", "33", "multiple of 32"]);
    let file = one_tensor(b"t", &[128, 2], GgmlType::Q4_K as u32, 0);
    refused("Q4_K", &file, &["`t`", "Q4_K", "128", "multiple of 256"]);
}

#[test]
fn rows_14_17_and_18_offsets() {
    refused("past the end", &one_tensor(b"t", &[8], 0, 32), &["`t`", "32 bytes at offset 32", "the file has"]);
    refused("wraps", &one_tensor(b"t", &[8], 0, u64::MAX - 31), &["`t`", "truncated or corrupt"]);
    refused("misaligned", &one_tensor(b"t", &[8], 0, 4), &["`t`", "offset 4", "alignment 32"]);
    let mut file = one_tensor(b"t", &[8], 0, 0);
    assert!(Header::parse(&file).is_ok());
    file.pop();
    refused(
        "short by one byte",
        &file,
        &["`t`", "32 bytes at offset 0", &format!("the file has {} bytes", file.len())],
    );
    let two = |first: u64, second: u64| {
        Raw::new(2, 0).tensor(b"a", &[16], 0, first).tensor(b"b", &[16], 0, second).data(192).0
    };
    for (first, second) in [(0, 0), (0, 32), (32, 0)] {
        refused("overlap", &two(first, second), &["`a`", "`b`", "overlap"]);
    }
    for (first, second) in [(0, 64), (64, 0), (0, 128)] {
        assert!(Header::parse(&two(first, second)).is_ok(), "{first} and {second} don't overlap");
    }
}

#[test]
fn row_19_tensor_names() {
    let file = Raw::new(2, 0).tensor(b"a", &[8], 0, 0).tensor(b"a", &[8], 0, 32).data(64).0;
    refused("duplicate", &file, &["`a` occurs twice"]);
    assert!(Header::parse(&one_tensor(&[b'n'; 64], &[8], 0, 0)).is_ok(), "the longest name");
    refused("over-long", &one_tensor(&[b'n'; 65], &[8], 0, 0), &["name of tensor 0", "65", "64"]);
    refused("empty", &one_tensor(b"", &[8], 0, 0), &["name of tensor 0", "is empty"]);
    refused("NUL", &one_tensor(b"a\0", &[8], 0, 0), &["name of tensor 0", "NUL"]);
    refused("not UTF-8", &one_tensor(b"a\xc0", &[8], 0, 0), &["name of tensor 0", "UTF-8"]);
}

#[test]
fn row_24_file_truncated_while_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, small_file()).unwrap();
    let gguf = GgufFile::open(&path).unwrap();
    gguf.check_unchanged().unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = gguf.check_unchanged().unwrap_err();
    assert!(matches!(error, GgufError::Changed { now_bytes: 100, .. }), "{error}");
}

#[test]
fn row_25_not_a_regular_file() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| GgufFile::open(path).unwrap_err();
    let error = open(dir.path());
    assert_eq!(error.to_string(), "is a directory, not a regular file");
    assert!(
        matches!(open(&dir.path().join("absent.gguf")), GgufError::Io(e) if e.kind() == std::io::ErrorKind::NotFound)
    );
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(open(&empty), GgufError::TooShort { file_bytes: 0, .. }));
    #[cfg(target_os = "linux")]
    {
        assert_eq!(open(Path::new("/dev/zero")).to_string(), "is a device, not a regular file");
        let fifo = dir.path().join("pipe.gguf");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        assert_eq!(open(&fifo).to_string(), "is a pipe, not a regular file");
    }
}

/// A terabyte of zeros costs nothing on disk; neither may it cost time or memory to refuse.
#[cfg(target_os = "linux")]
#[test]
fn row_25_sparse_terabyte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.gguf");
    let open_with = |start: &[u8]| {
        std::fs::write(&path, start).unwrap();
        let resized = std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40);
        resized.is_ok().then(|| GgufFile::open(&path).unwrap_err().to_string())
    };
    let Some(message) = open_with(b"") else {
        eprintln!("skipped: this file system has no sparse files of a terabyte");
        return;
    };
    assert!(message.contains("not a GGUF file"), "{message}");
    // Zeros read as empty strings: only the limit on arrays keeps this from taking all memory.
    let strings = Raw::new(0, 1).str(b"a").u32(9).u32(8).u64(1 << 36).0;
    let message = open_with(&strings).unwrap();
    assert!(message.contains("length of the array `a` is 68719476736"), "{message}");
    let long_text = Raw::new(0, 1).str(b"a").u32(8).u64((1 << 28) - 8).0;
    let message = open_with(&long_text).unwrap();
    assert!(message.contains("past 268435456 bytes"), "{message}");
}

#[test]
fn row_26_trailing_bytes_are_padding() {
    let mut file = small_file();
    let tensors = Header::parse(&file).unwrap().tensors;
    file.extend_from_slice(&[7; 1000]);
    assert_eq!(Header::parse(&file).unwrap().tensors, tensors);
}

/// A small sound file with every kind of value and three tensors.
fn small_file() -> Vec<u8> {
    GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("general.alignment", 64u32)
        .meta("test.u8", 200u8)
        .meta("test.i16s", vec![-1i16, 2])
        .meta("test.f64", 0.5f64)
        .meta("test.flags", vec![true, false])
        .meta("tokenizer.ggml.tokens", vec!["a", "", "ĠΩ"])
        .tensor("token_embd.weight", GgmlType::Q8_0, &[32, 3], vec![1; 3 * 34])
        .tensor("norm", GgmlType::F32, &[5], vec![2; 20])
        .tensor("cube", GgmlType::F16, &[2, 3, 4], vec![3; 48])
        .to_vec()
        .unwrap()
}

#[test]
fn truncation_at_every_byte() {
    let file = small_file();
    assert!(Header::parse(&file).is_ok());
    for n in 0..file.len() {
        let error = Header::parse(&file[..n]).expect_err("the last tensor ends at the last byte");
        assert!(
            matches!(error, GgufError::TooShort { .. } | GgufError::Truncated { .. } | GgufError::OutsideFile { .. }),
            "{n} bytes: {error}"
        );
    }
}

/// Whatever a header says, parsing it ends with an error or with tensors that lie inside the file.
#[test]
fn random_mutations() {
    let sound = small_file();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut accepted, mut rejected) = (0, 0);
    for _ in 0..20_000 {
        let mut file = sound.clone();
        for _ in 0..1 + next() % 4 {
            let at = next() as usize % file.len();
            match next() % 4 {
                0 => file[at] ^= 1 << (next() % 8),
                1 => file[at] = next() as u8,
                2 => {
                    let wide = [0, 1, u64::MAX, 1 << 63, 1 << 31, 0x7fff_ffff, next()][next() as usize % 7];
                    let end = (at + 8).min(file.len());
                    file[at..end].copy_from_slice(&wide.to_le_bytes()[..end - at]);
                }
                _ => {
                    file.drain(at..(at + next() as usize % 16).min(file.len()));
                }
            }
            if file.is_empty() {
                break;
            }
        }
        match Header::parse(&file) {
            Ok(header) => {
                accepted += 1;
                for t in &header.tensors {
                    assert!(t.offset + t.bytes <= file.len() as u64);
                    assert_eq!(t.bytes, t.rows() as u64 * t.ty.row_bytes(t.cols()) as u64);
                }
            }
            Err(error) => {
                rejected += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(accepted > 1000 && rejected > 1000, "{accepted} accepted, {rejected} rejected: the mutations say little");
}
