//! Sound GGUF files: what the writer writes is what the reader reads, and the reader agrees with gguf-rs (the oracle)
//! on files made here and on the vocabulary files beside the repository where they are present.

use std::path::{Path, PathBuf};

use engine::gguf::writer::GgufWriter;
use engine::gguf::{Array, GgmlType, GgufFile, Header, Metadata, Value};

fn all_types() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("test.u8", 250u8)
        .meta("test.i8", -3i8)
        .meta("test.u16", 60_000u16)
        .meta("test.i16", -300i16)
        .meta("test.u32", 4_000_000_000u32)
        .meta("test.i32", -70_000i32)
        .meta("test.f32", 1.5f32)
        .meta("test.bool", true)
        .meta("test.text", "Ġ\u{1F999}\n")
        .meta("test.u64", u64::MAX)
        .meta("test.i64", i64::MIN)
        .meta("test.f64", -0.1f64)
        .meta("test.u8s", vec![1u8, 2])
        .meta("test.i8s", vec![-1i8])
        .meta("test.u16s", vec![1u16, 65_535])
        .meta("test.i16s", vec![-1i16, 5])
        .meta("test.u32s", vec![7u32; 5])
        .meta("test.i32s", vec![-7i32, 8])
        .meta("test.f32s", vec![0.25f32, -2.0])
        .meta("test.bools", vec![true, false, true])
        .meta("tokenizer.ggml.tokens", vec!["a", "", "Ġb", "日本"])
        .meta("test.u64s", vec![1u64 << 40])
        .meta("test.i64s", vec![-1i64 << 40])
        .meta("test.f64s", vec![1e300f64])
        .meta("test.empty", Vec::<u32>::new());
    for (idx, ty) in GgmlType::ALL.into_iter().enumerate() {
        let (cols, rows) = (2 * ty.block_len() as u64, 3);
        let bytes = rows as usize * ty.row_bytes(cols as usize);
        writer = writer.tensor(&format!("blk.{idx}.w"), ty, &[cols, rows], vec![idx as u8 + 1; bytes]);
    }
    writer
}

fn write_to_temp(writer: &GgufWriter) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    writer.write(std::io::BufWriter::new(std::fs::File::create(&path).unwrap())).unwrap();
    (dir, path)
}

#[test]
fn what_is_written_is_read() {
    let (_dir, path) = write_to_temp(&all_types());
    let gguf = GgufFile::open(&path).unwrap();
    assert_eq!((gguf.version(), gguf.path()), (3, path.as_path()));
    assert_eq!(gguf.file_bytes(), std::fs::metadata(&path).unwrap().len());
    let m = gguf.metadata();
    assert_eq!(m.str("test.text").unwrap(), "Ġ\u{1F999}\n");
    assert_eq!(m.value("test.i8"), Some(&Value::I8(-3)));
    assert_eq!(m.value("test.f64"), Some(&Value::F64(-0.1)));
    assert_eq!(m.value("test.bools"), Some(&Value::Array(Array::Bool(vec![true, false, true]))));
    assert_eq!(m.strings("tokenizer.ggml.tokens").unwrap().iter().collect::<Vec<_>>(), ["a", "", "Ġb", "日本"]);
    assert_eq!(m.f32s("test.f32s").unwrap(), [0.25, -2.0]);
    assert_eq!(m.integers("test.i64s").unwrap(), [-1 << 40]);
    assert!(m.integers("test.empty").unwrap().is_empty());
    let first_keys: Vec<&str> = m.iter().map(|(key, _)| key).take(3).collect();
    assert_eq!(first_keys, ["general.architecture", "test.u8", "test.i8"], "the order of the file");
    assert_eq!(gguf.tensors().len(), GgmlType::ALL.len());
    for (idx, ty) in GgmlType::ALL.into_iter().enumerate() {
        let t = gguf.tensor(&format!("blk.{idx}.w")).unwrap();
        assert_eq!((t.ty, t.cols(), t.rows()), (ty, 2 * ty.block_len(), 3));
        assert_eq!(t.bytes as usize, 3 * 2 * ty.block_bytes());
        assert!(t.offset.is_multiple_of(32));
        assert_eq!(gguf.data(t), vec![idx as u8 + 1; t.bytes as usize]);
    }
    assert!(gguf.tensor("blk.0").is_none());
}

#[test]
fn tensors_in_many_dimensions() {
    let bytes = GgufWriter::new()
        .meta("general.alignment", 64u32)
        .tensor("four", GgmlType::F16, &[2, 3, 4, 5], vec![9; 240])
        .tensor_with("streamed", GgmlType::F32, &[4], |out| out.write_all(&[1; 16]))
        .to_vec()
        .unwrap();
    let header = Header::parse(&bytes).unwrap();
    let four = header.tensor("four").unwrap();
    assert_eq!((four.cols(), four.rows(), four.bytes), (2, 60, 240));
    let streamed = header.tensor("streamed").unwrap();
    assert_eq!(streamed.offset, four.offset + 256);
    assert_eq!(bytes[streamed.offset as usize..], [1; 16]);
    assert!(four.offset.is_multiple_of(64));
    let short = GgufWriter::new().tensor_with("t", GgmlType::F32, &[4], |out| out.write_all(&[1; 15])).to_vec();
    assert!(short.unwrap_err().to_string().contains("16 bytes, 15 were written"));
}

#[test]
fn getters_say_what_they_found() {
    let m = Metadata::from_entries([
        ("n".to_owned(), Value::I32(-1)),
        ("wide".to_owned(), Value::U64(1 << 33)),
        ("small".to_owned(), Value::U8(9)),
        ("half".to_owned(), Value::F64(0.5)),
        ("words".to_owned(), vec!["x"].into()),
        ("huge".to_owned(), vec![u64::MAX].into()),
        ("on".to_owned(), Value::Bool(true)),
    ]);
    assert_eq!(m.u32("small").unwrap(), 9, "any integer type that holds a fitting value");
    assert_eq!((m.u64("wide").unwrap(), m.f32("half").unwrap(), m.bool("on").unwrap()), (1 << 33, 0.5, true));
    let message = |e: engine::gguf::GgufError| e.to_string();
    assert_eq!(message(m.u32("n").unwrap_err()), "the key `n` is -1; expected u32");
    assert_eq!(message(m.u32("wide").unwrap_err()), "the key `wide` is 8589934592; expected u32");
    assert_eq!(message(m.opt_u32("half").unwrap_err()), "the key `half` is of type f64; expected u32");
    assert_eq!(message(m.u32("words").unwrap_err()), "the key `words` is of type array of string; expected u32");
    assert_eq!(
        message(m.f32s("words").unwrap_err()),
        "the key `words` is of type array of string; expected array of f32"
    );
    assert!(message(m.integers("huge").unwrap_err()).contains("18446744073709551615"));
    assert!(message(m.integers("words").unwrap_err()).contains("expected array of integers"));
    assert!(message(m.bool("n").unwrap_err()).contains("i32; expected bool"));
    assert!(message(m.f32("n").unwrap_err()).contains("i32; expected f32"));
    assert!(message(m.strings("n").unwrap_err()).contains("expected array of string"));
    assert_eq!((m.opt_u32("no").unwrap(), m.opt_str("no").unwrap(), m.opt_integers("no").unwrap()), (None, None, None));
    assert_eq!(message(m.str("no").unwrap_err()), "the key `no` (string) is missing");
    assert_eq!(Value::from(vec![1u8; 9]).to_string(), "[1, 1, 1, 1, 1, 1, … 9 in all]");
    assert_eq!(Value::from(vec!["a\n"]).to_string(), "[\"a\\n\"]");
}

/// Header of a file as gguf-rs reads it, compared with ours value by value.
fn compare_with_oracle(path: &Path) {
    let ours = GgufFile::open(path).unwrap();
    let mut container = gguf_rs::get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap();
    let theirs = container.decode().unwrap();
    assert_eq!(theirs.get_version(), format!("v{}", ours.version()));
    assert_eq!(theirs.metadata().len(), ours.metadata().len());
    for (key, value) in ours.metadata().iter() {
        let expected = &theirs.metadata()[key];
        match value {
            Value::Array(array) => {
                let elements = expected.as_array().unwrap();
                assert_eq!(elements.len(), array.len(), "{key}");
                for (idx, element) in elements.iter().enumerate() {
                    assert_same(key, &array.get(idx).unwrap(), element);
                }
            }
            scalar => assert_same(key, scalar, expected),
        }
    }
    assert_eq!(theirs.tensors().len(), ours.tensors().len());
    assert_eq!(theirs.alignment(), ours.header().alignment);
    assert_eq!(theirs.data_offset(), ours.header().data_start);
    for (expected, t) in theirs.tensors().iter().zip(ours.tensors()) {
        assert_eq!((&expected.name, expected.kind, &expected.shape), (&t.name, t.ty as u32, &t.dims));
        assert_eq!(theirs.data_offset() + expected.offset, t.offset, "{}", t.name);
        // gguf-rs takes these for types of 256-weight blocks.
        if !matches!(t.ty, GgmlType::BF16 | GgmlType::IQ4_NL | GgmlType::MXFP4) {
            assert_eq!(expected.size, t.bytes, "{}", t.name);
        }
    }
}

fn assert_same(key: &str, ours: &Value, theirs: &serde_json::Value) {
    match ours {
        Value::String(v) => assert_eq!(theirs.as_str(), Some(v.as_str()), "{key}"),
        Value::Bool(v) => assert_eq!(theirs.as_bool(), Some(*v), "{key}"),
        Value::F32(v) => assert_eq!(theirs.as_f64().unwrap() as f32, *v, "{key}"),
        Value::F64(v) => assert_eq!(theirs.as_f64(), Some(*v), "{key}"),
        integer => assert_eq!(theirs.to_string(), integer.to_string(), "{key}"),
    }
}

#[test]
fn agrees_with_gguf_rs() {
    let (_dir, path) = write_to_temp(&all_types());
    compare_with_oracle(&path);
    let aligned = GgufWriter::new().meta("general.alignment", 128u32).tensor("t", GgmlType::F32, &[3], vec![1; 12]);
    let (_dir, path) = write_to_temp(&aligned);
    compare_with_oracle(&path);
    // Version 2 has the layout of version 3.
    let mut bytes = all_types().to_vec().unwrap();
    bytes[4] = 2;
    std::fs::write(&path, bytes).unwrap();
    compare_with_oracle(&path);
}

#[test]
fn agrees_with_gguf_rs_on_reference_vocabularies() {
    for name in ["ggml-vocab-llama-bpe.gguf", "ggml-vocab-qwen2.gguf"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/vocab").join(name);
        if !path.exists() {
            eprintln!("skipped: {} is absent", path.display());
            continue;
        }
        compare_with_oracle(&path);
        assert!(GgufFile::open(&path).unwrap().tensors().is_empty(), "vocabulary only");
    }
}
