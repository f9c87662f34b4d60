//! JSON between the program and templates: variables going in, and the `tojson` filter as Hugging Face defines it.
//!
//! Models were trained on what Python's `json.dumps` writes: a space after each comma and colon, letters beyond ASCII as
//! they are, no escapes for HTML, floats in Python's notation. Any other spelling costs accuracy in tool calls.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Deepest nesting that is written.
const MAX_DEPTH: usize = 128;

/// The filter: `value | tojson(indent=none, ensure_ascii=false, separators=none, sort_keys=false)`.
pub(super) fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<(String, String)> = match kwargs.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let parts: Vec<String> = pair.try_iter()?.map(|part| part.to_string()).collect();
            let [item, key]: [String; 2] = parts.try_into().map_err(|_| refuse("separators must be two strings"))?;
            Some((item, key))
        }
        _ => None,
    };
    let item_separator = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or_else(|| (item_separator.to_owned(), ": ".to_owned()));
    let mut writer = Writer {
        out: String::new(),
        indent,
        item,
        key,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        charged_bytes: 0,
    };
    kwargs.assert_all_used()?;
    writer.value(state, value, 0)?;
    Ok(writer.out)
}

/// A variable for the template. Written out, since serialising may turn numbers into objects: a dependency of the tests
/// turns on `arbitrary_precision`.
pub(super) fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(v) => Value::from(*v),
        serde_json::Value::Number(v) => match (v.as_i64(), v.as_u64()) {
            (Some(v), _) => Value::from(v),
            (None, Some(v)) => Value::from(v),
            (None, None) => Value::from(v.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(v) => Value::from(v.as_str()),
        serde_json::Value::Array(v) => v.iter().map(to_value).collect(),
        serde_json::Value::Object(v) => Value::from_pairs(v.iter().map(|(key, value)| (key.as_str(), to_value(value)))),
    }
}

/// The type of a JSON value, for messages.
pub(super) fn type_name(json: &serde_json::Value) -> &'static str {
    match json {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a bool",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    }
}

struct Writer {
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
    /// How much of `out` the template has paid for.
    charged_bytes: usize,
}

impl Writer {
    fn value(&mut self, state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse("tojson: nested too deeply"));
        }
        state.consume_fuel(1 + ((self.out.len() - self.charged_bytes) / 64) as u64)?;
        self.charged_bytes = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.items(state, "[]", depth, value.try_iter()?, |writer, item| {
                    writer.value(state, &item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.items(state, "{}", depth, keys.into_iter(), |writer, key| {
                    writer.string(key.as_str().unwrap_or(&key.to_string()));
                    writer.out.push_str(&writer.key.clone());
                    writer.value(state, &value.get_item(&key)?, depth + 1)
                })?;
            }
            other => return Err(refuse(&format!("tojson: a value of type {other} has no JSON"))),
        }
        Ok(())
    }

    /// A list or an object: brackets, separators and line breaks around what `write` puts out for each item.
    fn items(
        &mut self,
        state: &State,
        brackets: &str,
        depth: usize,
        items: impl Iterator<Item = Value>,
        write: impl Fn(&mut Writer, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (open, close) = brackets.split_at(1);
        self.out.push_str(open);
        let mut is_empty = true;
        for item in items {
            state.consume_fuel(1)?;
            if !is_empty {
                self.out.push_str(&self.item.clone());
            }
            is_empty = false;
            self.line_break(depth + 1);
            write(self, item)?;
        }
        if !is_empty {
            self.line_break(depth);
        }
        self.out.push_str(close);
        Ok(())
    }

    fn line_break(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.min(16) * depth));
        }
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
        } else {
            self.out.push_str(&python_float(f64::try_from(value.clone())?));
        }
        Ok(())
    }

    fn string(&mut self, s: &str) {
        self.out.push('"');
        for c in s.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back the same, with an exponent of two digits and
/// more below 1e-4 and from 1e16.
fn python_float(v: f64) -> String {
    if v.is_nan() {
        return "NaN".to_owned();
    }
    if v.is_infinite() {
        return if v > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes a number after `e`");
    if v != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{v}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

fn refuse(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (v, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(python_float(v), expected);
        }
    }
}
