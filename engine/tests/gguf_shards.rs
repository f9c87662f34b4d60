//! Models in several files: any shard opens all of them, every tensor's bytes are where they were, and a set that is
//! incomplete or mixed up is refused with the shard's name.

use std::path::{Path, PathBuf};

use engine::gguf::writer::GgufWriter;
use engine::gguf::{GgmlType, GgufError, GgufFile, Value};

const N_TENSORS: usize = 7;
const BYTES: u64 = 256;

fn data(idx: usize) -> Vec<u8> {
    (0..BYTES).map(|i| (i as usize * 7 + idx * 31) as u8).collect()
}

fn model(name: &str) -> GgufWriter<'static> {
    let writer = GgufWriter::new()
        .meta("general.architecture", "llama")
        .meta("general.name", name)
        .meta("tokenizer.ggml.tokens", vec!["a", "b"]);
    (0..N_TENSORS).fold(writer, |w, idx| w.tensor(&format!("t{idx}"), GgmlType::F32, &[BYTES / 4], data(idx)))
}

/// Three shards of three, three and one tensor.
fn split(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let paths = model(prefix).write_shards(dir, prefix, 3 * BYTES).unwrap();
    assert_eq!(paths.len(), 3);
    paths
}

#[track_caller]
fn refused(path: &Path, fragments: &[&str]) {
    let message = GgufFile::open(path).map(|_| ()).unwrap_err().to_string();
    for fragment in fragments {
        assert!(message.contains(fragment), "`{fragment}` is not in the message: {message}");
    }
}

/// Writes a shard whose `split.*` keys are given, with one tensor of that name.
fn shard(path: &Path, keys: &[(&str, Value)], tensor: &str) {
    let writer = keys.iter().fold(GgufWriter::new(), |w, (key, value)| w.meta(key, value.clone()));
    let bytes = writer.tensor(tensor, GgmlType::F32, &[BYTES / 4], data(0)).to_vec().unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn keys(no: u16, count: u16, n_tensors: i32) -> Vec<(&'static str, Value)> {
    vec![
        ("split.no", Value::U16(no)),
        ("split.count", Value::U16(count)),
        ("split.tensors.count", Value::I32(n_tensors)),
    ]
}

#[test]
fn any_shard_opens_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let paths = split(dir.path(), "m");
    assert_eq!(paths[0].file_name().unwrap(), "m-00001-of-00003.gguf");
    for path in &paths {
        let file = GgufFile::open(path).unwrap();
        assert_eq!(file.path(), path);
        assert_eq!(file.tensors().len(), N_TENSORS);
        for idx in 0..N_TENSORS {
            let tensor = file.tensor(&format!("t{idx}")).unwrap();
            assert_eq!(tensor, &file.tensors()[idx]);
            assert_eq!(tensor.shard, idx / 3);
            assert_eq!(file.data(tensor), data(idx), "t{idx}");
        }
        assert_eq!(file.metadata().str("general.name").unwrap(), "m", "the first shard's keys");
        assert_eq!(file.metadata().strings("tokenizer.ggml.tokens").unwrap().len(), 2);
        let sizes: Vec<u64> = paths.iter().map(|p| p.metadata().unwrap().len()).collect();
        assert_eq!(file.file_bytes(), sizes.iter().sum::<u64>());
        assert!(file.files().eq(paths.iter().map(PathBuf::as_path).zip(sizes)));
        file.check_unchanged().unwrap();
    }
}

#[test]
fn a_first_shard_without_tensors_and_one_shard_alone() {
    let dir = tempfile::tempdir().unwrap();
    // As made by a splitter that keeps the metadata apart.
    let first = keys(0, 2, 1).into_iter().fold(GgufWriter::new().meta("general.name", "x"), |w, (k, v)| w.meta(k, v));
    std::fs::write(dir.path().join("x-00001-of-00002.gguf"), first.to_vec().unwrap()).unwrap();
    let second = dir.path().join("x-00002-of-00002.gguf");
    shard(&second, &keys(1, 2, 1), "t");
    let file = GgufFile::open(&second).unwrap();
    assert_eq!(file.data(&file.tensors()[0]), data(0));
    assert_eq!(file.metadata().str("general.name").unwrap(), "x");
    // "1 of 1" is a whole model, whatever its name is.
    let alone = dir.path().join("alone.gguf");
    shard(&alone, &keys(0, 1, 1), "t");
    assert_eq!(GgufFile::open(&alone).unwrap().tensors().len(), 1);
}

#[test]
fn shards_end_before_they_grow_too_large() {
    let sizes = |max| model("m").shards(max).iter().map(|r| r.len()).collect::<Vec<_>>();
    assert_eq!(sizes(u64::MAX), [7]);
    assert_eq!(sizes(2 * BYTES), [2, 2, 2, 1]);
    assert_eq!(sizes(2 * BYTES - 1), [1; 7]);
    assert_eq!(sizes(1), [1; 7], "a tensor that is larger than the limit has a shard of its own");
    assert_eq!(GgufWriter::new().shards(1).len(), 1, "a file without tensors");
}

#[test]
fn row_23_missing_shards() {
    let dir = tempfile::tempdir().unwrap();
    let paths = split(dir.path(), "m");
    std::fs::remove_file(&paths[1]).unwrap();
    for path in [&paths[0], &paths[2]] {
        refused(path, &["shard 2 of 3 is missing", "`m-00002-of-00003.gguf`", "same folder"]);
    }
    std::fs::create_dir(&paths[1]).unwrap();
    refused(&paths[0], &["shard `m-00002-of-00003.gguf`", "is a directory"]);
    let elsewhere = dir.path().join("renamed.gguf");
    std::fs::rename(&paths[0], &elsewhere).unwrap();
    refused(&elsewhere, &["one of 3 shards", "`renamed.gguf`", "-NNNNN-of-00003.gguf"]);
}

#[test]
fn row_23_duplicate_and_misnamed_shards() {
    let dir = tempfile::tempdir().unwrap();
    let paths = split(dir.path(), "m");
    std::fs::copy(&paths[1], &paths[2]).unwrap();
    refused(&paths[0], &["shard `m-00003-of-00003.gguf`", "`split.no` is 1", "expected 2", "copy of another shard"]);
    refused(&paths[2], &["shard `m-00003-of-00003.gguf`", "`split.no` is 1", "as its name says"]);
    let paths = split(dir.path(), "n");
    let other = dir.path().join("n-00001-of-00004.gguf");
    std::fs::copy(&paths[0], &other).unwrap();
    refused(&other, &["`split.count` is 3", "expected 4, as its name says"]);
    // A link to another shard is no way around.
    #[cfg(unix)]
    {
        std::fs::remove_file(&paths[1]).unwrap();
        std::os::unix::fs::symlink(&paths[2], &paths[1]).unwrap();
        refused(&paths[0], &["shard `n-00002-of-00003.gguf`", "`split.no` is 2", "expected 1"]);
    }
}

#[test]
fn row_23_shards_of_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let (m, other) = (split(dir.path(), "m"), split(dir.path(), "other"));
    let third = dir.path().join("m-00003-of-00003.gguf");
    shard(&third, &keys(2, 3, N_TENSORS as i32), "t0");
    refused(&m[0], &["tensor `t0`", "two shards", "`m-00001-of-00003.gguf`", "`m-00003-of-00003.gguf`"]);
    shard(&third, &keys(2, 3, 9), "t6");
    refused(&m[0], &["`m-00003-of-00003.gguf`", "`split.tensors.count` is 9", "expected 7"]);
    shard(&third, &keys(2, 4, N_TENSORS as i32), "t6");
    refused(&m[0], &["`m-00003-of-00003.gguf`", "`split.count` is 4", "expected 3"]);
    shard(&third, &[], "t6");
    refused(&m[0], &["`m-00003-of-00003.gguf`", "`split.count` is absent", "expected 3"]);
    let mut with_name = keys(2, 3, N_TENSORS as i32);
    with_name.push(("general.architecture", "qwen3".into()));
    shard(&third, &with_name, "t6");
    refused(&m[0], &["`m-00003-of-00003.gguf`", "general.architecture", "qwen3", "llama", "another model"]);
    // Of shards without keys of their own only the tensors tell.
    std::fs::copy(&other[2], &third).unwrap();
    assert!(GgufFile::open(&m[0]).is_ok());
    std::fs::copy(&other[0], &m[0]).unwrap();
    assert_eq!(GgufFile::open(&m[1]).unwrap().metadata().str("general.name").unwrap(), "other");
}

#[test]
fn row_23_counts() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("m-00001-of-00002.gguf");
    let second = dir.path().join("m-00002-of-00002.gguf");
    shard(&second, &keys(1, 2, 3), "b");
    shard(&first, &keys(0, 2, 3), "a");
    refused(&first, &["2 tensors together", "expected 3", "split.tensors.count"]);
    shard(&first, &keys(2, 2, 3), "a");
    refused(&first, &["`split.no` is 2", "below split.count"]);
    shard(&first, &[("split.no", Value::U16(0)), ("split.count", Value::U32(4_000_000_000))], "a");
    refused(&first, &["`split.count` is 4000000000", "at most 1024"]);
    shard(&first, &[("split.count", Value::U16(2))], "a");
    refused(&first, &["`split.no`", "missing"]);
    shard(&first, &[("split.no", Value::I32(-1)), ("split.count", Value::U16(2))], "a");
    refused(&first, &["`split.no` is -1"]);
    shard(&first, &[("split.no", Value::U16(0)), ("split.count", "2".into())], "a");
    refused(&first, &["`split.count` is of type string"]);
}

#[test]
fn row_23_names_lead_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let paths = split(dir.path(), "m");
    // Nothing in a file names another file: a tensor or key with a path in it is only a name.
    let first = inner.join("m-00001-of-00003.gguf");
    let mut with_path = keys(0, 3, 7);
    with_path.push(("general.name", "../m-00001-of-00003.gguf".into()));
    shard(&first, &with_path, "../../m-00002-of-00003.gguf");
    refused(&first, &["shard 2 of 3 is missing", "`m-00002-of-00003.gguf`", "same folder"]);
    // A path with `..` in its folder is the user's own choice.
    let around = inner.join("..").join(paths[0].file_name().unwrap());
    assert_eq!(GgufFile::open(&around).unwrap().tensors().len(), N_TENSORS);
}

#[test]
fn a_damaged_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let paths = split(dir.path(), "m");
    let whole = std::fs::read(&paths[1]).unwrap();
    std::fs::write(&paths[1], &whole[..whole.len() - 1]).unwrap();
    refused(&paths[0], &["shard `m-00002-of-00003.gguf`", "tensor `t5`", "truncated"]);
    std::fs::write(&paths[1], b"").unwrap();
    refused(&paths[0], &["shard `m-00002-of-00003.gguf`", "0 bytes"]);
    std::fs::write(&paths[1], &whole).unwrap();
    let file = GgufFile::open(&paths[0]).unwrap();
    std::fs::OpenOptions::new().write(true).open(&paths[1]).unwrap().set_len(100).unwrap();
    let error = file.check_unchanged().unwrap_err();
    assert!(
        matches!(&error, GgufError::Changed { file, now_bytes: 100, .. } if file == "m-00002-of-00003.gguf"),
        "{error}"
    );
}
