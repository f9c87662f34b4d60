//! Function tools as the model was trained to read them: a TypeScript namespace made from JSON schemas, and JSON as
//! Python's `json.dumps` writes it. What a schema says beyond types, names, descriptions, enums and defaults is left
//! out; what nests too deeply becomes `any`. Called by `render` and `message`.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

use super::message::Function;

/// Deepest nesting that is written out.
const MAX_DEPTH: usize = 16;

/// A namespace with its functions.
pub(super) fn namespace(name: &str, functions: &[Function]) -> String {
    let mut out = format!("## {name}\n\nnamespace {name} {{\n\n");
    for function in functions {
        comment(&mut out, "", &function.description);
        let takes_none =
            function.parameters.get("properties").is_none_or(|p| p.as_object().is_none_or(|p| p.is_empty()));
        let argument = if takes_none { String::new() } else { format!("_: {}", ts_type(&function.parameters, 0)) };
        out.push_str(&format!("type {} = ({argument}) => any;\n\n", function.name));
    }
    out.push_str(&format!("}} // namespace {name}"));
    out
}

fn comment(out: &mut String, indent: &str, text: &str) {
    for line in text.lines() {
        out.push_str(&format!("{indent}// {line}\n"));
    }
}

fn ts_type(schema: &Value, depth: usize) -> String {
    if depth > MAX_DEPTH {
        return "any".to_owned();
    }
    let strings = |key: &str| -> Vec<&str> {
        schema
            .get(key)
            .and_then(Value::as_array)
            .map(|a| a.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default()
    };
    let variants = ["oneOf", "anyOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
    let types = strings("type");
    let plain = if let Some(variants) = variants {
        variants.iter().map(|v| ts_type(v, depth + 1)).collect::<Vec<_>>().join(" | ")
    } else if !types.is_empty() {
        types.into_iter().map(simple_type).collect::<Vec<_>>().join(" | ")
    } else {
        match schema.get("type").and_then(Value::as_str) {
            Some("string") if !strings("enum").is_empty() => {
                strings("enum").into_iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" | ")
            }
            Some("array") => {
                schema.get("items").map_or("any[]".to_owned(), |items| format!("{}[]", ts_type(items, depth + 1)))
            }
            Some("object") => object_type(schema, depth),
            Some(name) => simple_type(name).to_owned(),
            None => "any".to_owned(),
        }
    };
    let is_nullable = schema.get("nullable").and_then(Value::as_bool) == Some(true);
    if is_nullable && !plain.contains("null") { format!("{plain} | null") } else { plain }
}

fn simple_type(name: &str) -> &str {
    match name {
        "integer" => "number",
        "string" | "number" | "boolean" | "object" | "null" => name,
        "array" => "any[]",
        _ => "any",
    }
}

fn object_type(schema: &Value, depth: usize) -> String {
    let Some(properties) = schema.get("properties").and_then(Value::as_object).filter(|p| !p.is_empty()) else {
        return "object".to_owned();
    };
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|r| r.iter().any(|v| v.as_str() == Some(name)));
    let indent = "    ".repeat(depth);
    let mut out = "{\n".to_owned();
    for (name, property) in properties {
        comment(&mut out, &indent, property.get("description").and_then(Value::as_str).unwrap_or_default());
        let optional = if is_required(name) { "" } else { "?" };
        out.push_str(&format!("{indent}{name}{optional}: {},", ts_type(property, depth + 1)));
        if let Some(default) = property.get("default") {
            out.push_str(&format!(" // default: {}", json_text(default)));
        }
        out.push('\n');
    }
    out.push_str(&format!("{indent}}}"));
    out
}

/// JSON with a space after each comma and colon, and letters beyond ASCII as they are.
pub(super) fn json_text(value: &Value) -> String {
    let mut bytes = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced));
    written.expect("a JSON value can be written to memory");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
