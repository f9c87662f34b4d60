//! Models in several files: names of shards (`PREFIX-00001-of-00003.gguf`), the keys that tie them together (`split.no`,
//! `split.count`, `split.tensors.count`), and the checks that turn the headers of all shards into one.
//!
//! Any shard may be named; the others are looked for beside it, under names made of its own. Nothing inside a file leads
//! to another file. Keys of the model are those of the first shard; the others usually have none but `split.*`. Refused:
//! a missing shard, one that isn't what its name says, keys that contradict the first shard, a tensor in two shards, and
//! another number of tensors than the set should have. Called by [`GgufFile::open`](super::GgufFile::open).

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use super::MappedFile;
use super::error::{GgufError, ShardMismatch};
use super::header::{Header, MAX_TENSORS};
use super::metadata::Metadata;

/// Most shards of a model. The largest published models have some hundred.
pub const MAX_SHARDS: usize = 1024;

/// Key of a shard's number, counted from 0.
pub(super) const KEY_NO: &str = "split.no";
/// Key of the number of shards.
pub(super) const KEY_COUNT: &str = "split.count";
/// Key of the number of tensors in all shards.
pub(super) const KEY_TENSORS: &str = "split.tensors.count";

/// The name of a shard's file: `{prefix}-{no + 1:05}-of-{count:05}.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    /// What the names of all shards begin with.
    pub prefix: String,
    /// Number of the shard, counted from 0 (the name counts from 1).
    pub no: usize,
    /// Number of shards.
    pub count: usize,
}

impl ShardName {
    /// Takes a file name apart; `None` where it doesn't have the form of a shard's.
    pub fn parse(file_name: &str) -> Option<ShardName> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, no) = rest.rsplit_once('-')?;
        let number = |digits: &str| -> Option<usize> {
            (digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
        };
        let (no, count) = (number(no)?, number(count)?);
        (1..=count).contains(&no).then(|| ShardName { prefix: prefix.to_owned(), no: no - 1, count })
    }

    /// The name of another shard of the same set.
    pub fn sibling(&self, no: usize) -> ShardName {
        ShardName { no, ..self.clone() }
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.prefix, self.no + 1, self.count)
    }
}

/// The `split.*` keys of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    no: usize,
    pub(super) count: usize,
    n_tensors: Option<u64>,
}

impl Split {
    /// The keys of a file that is one of several; `None` for a file that is a whole model.
    pub(super) fn of(m: &Metadata) -> Result<Option<Split>, GgufError> {
        let out_of_range = |key: &str, found: u64, expected| GgufError::OutOfRange {
            key: key.to_owned(),
            found: found.to_string(),
            expected,
        };
        let count = match m.opt_u64(KEY_COUNT)? {
            None | Some(0 | 1) => return Ok(None),
            Some(count) if count > MAX_SHARDS as u64 => {
                return Err(out_of_range(KEY_COUNT, count, "at most 1024 shards"));
            }
            Some(count) => count,
        };
        let no = m.u64(KEY_NO)?;
        if no >= count {
            return Err(out_of_range(KEY_NO, no, "a number below split.count"));
        }
        Ok(Some(Split { no: no as usize, count: count as usize, n_tensors: m.opt_u64(KEY_TENSORS)? }))
    }
}

/// Opens the other shards of the set that `opened` (at `path`) belongs to and checks them against each other. Gives the
/// files in their order and one header: the first shard's keys, the tensors of all.
pub(super) fn open_set(
    path: &Path,
    opened: MappedFile,
    header: Header,
    split: Split,
) -> Result<(Vec<MappedFile>, Header), GgufError> {
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let own = ShardName::parse(&file_name)
        .ok_or_else(|| GgufError::ShardName { found: file_name.clone(), count: split.count })?;
    expect(&own, KEY_COUNT, split.count, own.count, "as its name says")?;
    expect(&own, KEY_NO, split.no, own.no, "as its name says")?;
    let mut set = Set::new(split.count);
    let mut opened = Some((opened, header));
    for no in 0..split.count {
        let name = own.sibling(no);
        let (file, header) = match opened.take_if(|_| no == own.no) {
            Some(opened) => opened,
            None => open_sibling(path, &name)?,
        };
        set.add(&name, file, header)?;
    }
    set.finish()
}

fn open_sibling(path: &Path, name: &ShardName) -> Result<(MappedFile, Header), GgufError> {
    let opened = MappedFile::open(&path.with_file_name(name.to_string()));
    let parsed = opened.and_then(|file| Header::parse(&file.map).map(|header| (file, header)));
    parsed.map_err(|error| match error {
        GgufError::Io(e) if e.kind() == std::io::ErrorKind::NotFound => {
            GgufError::MissingShard { name: name.to_string(), no: name.no + 1, count: name.count }
        }
        error => GgufError::Shard { name: name.to_string(), error: Box::new(error) },
    })
}

/// The shards that were checked so far.
struct Set {
    count: usize,
    files: Vec<MappedFile>,
    first: Option<Header>,
    /// `split.tensors.count` of the first shard that has it.
    n_tensors: Option<u64>,
    /// Which shard a tensor is in.
    owner: HashMap<String, usize>,
}

impl Set {
    fn new(count: usize) -> Set {
        Set { count, files: Vec::with_capacity(count), first: None, n_tensors: None, owner: HashMap::new() }
    }

    fn add(&mut self, name: &ShardName, file: MappedFile, mut header: Header) -> Result<(), GgufError> {
        let within = |error| GgufError::Shard { name: name.to_string(), error: Box::new(error) };
        let Some(split) = Split::of(&header.metadata).map_err(within)? else {
            let (key, found) = (KEY_COUNT.to_owned(), "absent or 1".to_owned());
            let expected = format!("{} (it is no shard, or one of another set)", self.count);
            return Err(mismatch(ShardMismatch { name: name.to_string(), key, found, expected }));
        };
        expect(name, KEY_COUNT, split.count, self.count, "as in the other shards")?;
        expect(name, KEY_NO, split.no, name.no, "as its name says: it is a copy of another shard, or misnamed")?;
        match (split.n_tensors, self.n_tensors) {
            (Some(found), Some(all)) => expect(name, KEY_TENSORS, found, all, "as in the other shards")?,
            (found, all) => self.n_tensors = all.or(found),
        }
        if let Some(first) = &self.first {
            agree(name, &first.metadata, &header.metadata)?;
        }
        for tensor in &mut header.tensors {
            tensor.shard = name.no;
            if let Some(earlier) = self.owner.insert(tensor.name.clone(), name.no) {
                let (tensor, first) = (tensor.name.clone(), name.sibling(earlier).to_string());
                return Err(GgufError::TensorInTwoShards { tensor, first, second: name.to_string() });
            }
        }
        let n_tensors = self.owner.len() as u64;
        if n_tensors > MAX_TENSORS {
            return Err(GgufError::ShardTensors { found: n_tensors, expected: format!("at most {MAX_TENSORS}") });
        }
        self.files.push(file);
        match &mut self.first {
            None => self.first = Some(header),
            Some(first) => first.append(header.tensors),
        }
        Ok(())
    }

    fn finish(self) -> Result<(Vec<MappedFile>, Header), GgufError> {
        let found = self.owner.len() as u64;
        if let Some(all) = self.n_tensors.filter(|all| *all != found) {
            return Err(GgufError::ShardTensors { found, expected: format!("{all} ({KEY_TENSORS})") });
        }
        Ok((self.files, self.first.expect("a set has at least two shards")))
    }
}

/// A key that shards repeat must say the same in all of them: another value means another model.
fn agree(name: &ShardName, first: &Metadata, other: &Metadata) -> Result<(), GgufError> {
    for (key, found) in other.iter() {
        if key == KEY_NO || key == "general.alignment" {
            continue;
        }
        if let Some(expected) = first.value(key).filter(|expected| *expected != found) {
            return Err(mismatch(ShardMismatch {
                name: name.to_string(),
                key: key.to_owned(),
                found: found.to_string(),
                expected: format!("{expected}, as in the first shard: it belongs to another model"),
            }));
        }
    }
    Ok(())
}

fn expect<T: PartialEq + fmt::Display>(
    name: &ShardName,
    key: &str,
    found: T,
    expected: T,
    why: &str,
) -> Result<(), GgufError> {
    if found == expected {
        return Ok(());
    }
    Err(mismatch(ShardMismatch {
        name: name.to_string(),
        key: key.to_owned(),
        found: found.to_string(),
        expected: format!("{expected}, {why}"),
    }))
}

fn mismatch(mismatch: ShardMismatch) -> GgufError {
    GgufError::ShardKey(Box::new(mismatch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let name = ShardName::parse("gpt-oss-120b-mxfp4-00001-of-00003.gguf").unwrap();
        assert_eq!(name, ShardName { prefix: "gpt-oss-120b-mxfp4".into(), no: 0, count: 3 });
        assert_eq!(name.sibling(2).to_string(), "gpt-oss-120b-mxfp4-00003-of-00003.gguf");
        for bad in [
            "model.gguf",
            "model-1-of-3.gguf",
            "model-00000-of-00003.gguf",
            "model-00004-of-00003.gguf",
            "model-00001-of-00003.bin",
            "model-0000+-of-00003.gguf",
            "00001-of-00003.gguf",
        ] {
            assert_eq!(ShardName::parse(bad), None, "{bad}");
        }
    }
}
