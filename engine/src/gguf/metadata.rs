//! The keys and values of a file, with getters that say what they expected and what they found.
//!
//! Integers are read by value and not by width: a `u32` may be stored as any integer type as long as it fits, since
//! converters differ. Filled by `header`, asked by the model's configuration, the tokenizer and the chat template.

use std::collections::HashMap;

use super::error::GgufError;
use super::value::{Array, Strings, Value};

/// Keys and values in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// Metadata of its own, without a file. A later value of a key replaces an earlier one.
    pub fn from_entries(entries: impl IntoIterator<Item = (String, Value)>) -> Metadata {
        let mut metadata = Metadata::default();
        for (key, value) in entries {
            if let Some(idx) = metadata.index.get(&key) {
                metadata.entries[*idx].1 = value;
            } else {
                metadata.insert_new(key, value);
            }
        }
        metadata
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|idx| &self.entries[*idx].1)
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A required integer that fits 32 bits, unsigned.
    ///
    /// # Errors
    /// The key is missing, is no integer, or doesn't fit.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        required(self.opt_u32(key)?, key, "u32")
    }

    /// An optional integer that fits 32 bits, unsigned.
    ///
    /// # Errors
    /// The key is there but is no integer, or doesn't fit.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.integer(key, "u32")
    }

    /// A required integer that fits 64 bits, unsigned.
    ///
    /// # Errors
    /// The key is missing, is no integer, or doesn't fit.
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        required(self.opt_u64(key)?, key, "u64")
    }

    /// An optional integer that fits 64 bits, unsigned.
    ///
    /// # Errors
    /// The key is there but is no integer, or doesn't fit.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.integer(key, "u64")
    }

    /// A required float (an f64 is rounded). NaN and infinities are passed on.
    ///
    /// # Errors
    /// The key is missing or is no float.
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        required(self.opt_f32(key)?, key, "f32")
    }

    /// An optional float (an f64 is rounded). NaN and infinities are passed on.
    ///
    /// # Errors
    /// The key is there but is no float.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(*v)),
            Some(Value::F64(v)) => Ok(Some(*v as f32)),
            Some(other) => Err(wrong_type(key, other, "f32")),
        }
    }

    /// A required bool.
    ///
    /// # Errors
    /// The key is missing or is no bool.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        required(self.opt_bool(key)?, key, "bool")
    }

    /// An optional bool.
    ///
    /// # Errors
    /// The key is there but is no bool.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(other) => Err(wrong_type(key, other, "bool")),
        }
    }

    /// A required string.
    ///
    /// # Errors
    /// The key is missing or is no string.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        required(self.opt_str(key)?, key, "string")
    }

    /// An optional string.
    ///
    /// # Errors
    /// The key is there but is no string.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(other) => Err(wrong_type(key, other, "string")),
        }
    }

    /// A required array of strings.
    ///
    /// # Errors
    /// The key is missing or is no array of strings.
    pub fn strings(&self, key: &str) -> Result<&Strings, GgufError> {
        required(self.opt_strings(key)?, key, "array of string")
    }

    /// An optional array of strings.
    ///
    /// # Errors
    /// The key is there but is no array of strings.
    pub fn opt_strings(&self, key: &str) -> Result<Option<&Strings>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(v))) => Ok(Some(v)),
            Some(other) => Err(wrong_type(key, other, "array of string")),
        }
    }

    /// A required array of integers of any width.
    ///
    /// # Errors
    /// The key is missing, is no array of integers, or holds one above `i64::MAX`.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, GgufError> {
        required(self.opt_integers(key)?, key, "array of integers")
    }

    /// An optional array of integers of any width.
    ///
    /// # Errors
    /// The key is there but is no array of integers, or holds one above `i64::MAX`.
    pub fn opt_integers(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        const EXPECTED: &str = "array of integers";
        let array = match self.value(key) {
            None => return Ok(None),
            Some(Value::Array(array)) => array,
            Some(other) => return Err(wrong_type(key, other, EXPECTED)),
        };
        Ok(Some(match array {
            Array::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I64(v) => v.clone(),
            Array::U64(v) => v
                .iter()
                .map(|&x| {
                    i64::try_from(x).map_err(|_| GgufError::OutOfRange {
                        key: key.to_owned(),
                        found: x.to_string(),
                        expected: "elements up to 2^63 - 1",
                    })
                })
                .collect::<Result<_, _>>()?,
            Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::String(_) => {
                return Err(wrong_type(key, &self.entries[self.index[key]].1, EXPECTED));
            }
        }))
    }

    /// A required array of f32.
    ///
    /// # Errors
    /// The key is missing or is no array of f32.
    pub fn f32s(&self, key: &str) -> Result<&[f32], GgufError> {
        required(self.opt_f32s(key)?, key, "array of f32")
    }

    /// An optional array of f32.
    ///
    /// # Errors
    /// The key is there but is no array of f32.
    pub fn opt_f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(v))) => Ok(Some(v)),
            Some(other) => Err(wrong_type(key, other, "array of f32")),
        }
    }

    /// Adds a key; false where it is there already.
    pub(super) fn insert_new(&mut self, key: String, value: Value) -> bool {
        if self.index.contains_key(&key) {
            return false;
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        true
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, GgufError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let integer = value.as_integer().ok_or_else(|| wrong_type(key, value, expected))?;
        let fitting = T::try_from(integer).map_err(|_| GgufError::OutOfRange {
            key: key.to_owned(),
            found: integer.to_string(),
            expected,
        })?;
        Ok(Some(fitting))
    }
}

fn required<T>(value: Option<T>, key: &str, expected: &'static str) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::MissingKey { key: key.to_owned(), expected })
}

fn wrong_type(key: &str, found: &Value, expected: &'static str) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), found: found.type_text(), expected }
}
