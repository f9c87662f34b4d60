//! The body of a Hermes call: `{"name": "python", "arguments": {"code": "…"}}`.
//!
//! Small models break JSON in a few known ways: line breaks inside strings, Python's triple quotes around the code, the
//! object's last brace missing, arguments as a string, other words for the keys. Those are read as they are meant. Anything else is a [`BadCall`], whose
//! message the model gets to see. Also used for Harmony's calls with JSON. Called by the readers.

use serde_json::Value;

/// A call that can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCall {
    /// Another tool than the one there is.
    #[error("there is no tool {found:?}; the only tool is {TOOL}")]
    UnknownTool {
        /// Name in the call.
        found: String,
    },
    /// Not JSON.
    #[error("the call isn't valid JSON ({problem}); expected {FORM}")]
    Json {
        /// What the parser says.
        problem: String,
    },
    /// JSON of another form.
    #[error("the call has no {missing}; expected {FORM}")]
    Form {
        /// What isn't there.
        missing: &'static str,
    },
}

/// Name of the one tool.
pub const TOOL: &str = "python";
const FORM: &str = r#"{"name": "python", "arguments": {"code": "..."}}"#;

/// Names that models give the tool.
const NAMES: [&str; 7] =
    [TOOL, "run_python", "python_interpreter", "code_interpreter", "execute_python", "python3", "functions.python"];

/// Whether a call by that name means Python.
pub(super) fn is_python(name: &str) -> bool {
    NAMES.iter().any(|known| known.eq_ignore_ascii_case(name.trim()))
}

/// The code of a call.
pub(super) fn code_of(body: &str) -> Result<String, BadCall> {
    let call = parse(body)?;
    let text = |value: &Value| value.as_str().map(str::to_string);
    let name = ["name", "function", "tool"].iter().find_map(|key| call.get(key).and_then(text));
    match name {
        None => return Err(BadCall::Form { missing: "\"name\"" }),
        Some(name) if !is_python(&name) => {
            return Err(BadCall::UnknownTool { found: name.chars().take(64).collect() });
        }
        Some(_) => {}
    }
    let arguments = ["arguments", "parameters", "args"].iter().find_map(|key| call.get(key));
    code_in(arguments.ok_or(BadCall::Form { missing: "\"arguments\"" })?)
}

/// The code in a call's arguments: `{"code": "…"}`, the same as a string, or the code itself as a string.
pub(super) fn code_in(arguments: &Value) -> Result<String, BadCall> {
    let object = match arguments {
        Value::String(text) => match parse(text) {
            Ok(object) if object.is_object() => object,
            _ => return Ok(text.clone()),
        },
        other => other.clone(),
    };
    let keys = ["code", "script", "source", "program", "input"];
    let code = keys.iter().find_map(|key| object.get(key)).and_then(Value::as_str);
    code.map(str::to_string).ok_or(BadCall::Form { missing: "\"code\" with a string" })
}

/// The code in text that is either Python or arguments in JSON, as models on the Python channel write both.
pub(super) fn code_or_arguments(text: &str) -> String {
    let looks_like_json = text.trim_start().starts_with('{');
    let arguments = looks_like_json.then(|| parse(text).ok()).flatten().filter(|v| v.get("code").is_some());
    arguments.and_then(|a| code_in(&a).ok()).unwrap_or_else(|| text.to_string())
}

/// JSON, read twice: as it is, then with what is usually wrong put right.
fn parse(text: &str) -> Result<Value, BadCall> {
    let text = text.trim().trim_start_matches("```json").trim_matches('`').trim();
    let problem = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(problem) => problem,
    };
    serde_json::from_str(&repaired(text)).map_err(|_| BadCall::Json { problem: problem.to_string() })
}

/// Strings in triple quotes become JSON's, control characters inside strings are escaped, and brackets that are still
/// open are closed.
fn repaired(text: &str) -> String {
    let mut parts = text.split("\"\"\"");
    let mut text = parts.next().unwrap_or_default().to_string();
    while let (Some(inside), Some(after)) = (parts.next(), parts.next()) {
        text += &Value::from(inside).to_string();
        text += after;
    }
    let mut out = String::with_capacity(text.len() + 16);
    let (mut open, mut in_string, mut escaped) = (Vec::new(), false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '\n' | '\r' | '\t' if in_string => {
                out.push_str(match c {
                    '\n' => "\\n",
                    '\r' => "\\r",
                    _ => "\\t",
                });
                continue;
            }
            '{' if !in_string => open.push('}'),
            '[' if !in_string => open.push(']'),
            // A bracket too many ends the call.
            '}' | ']' if !in_string && open.pop() != Some(c) => break,
            _ => {}
        }
        out.push(c);
    }
    out.extend(open.into_iter().rev());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_in_every_form_that_models_write() {
        for body in [
            r#"{"name": "python", "arguments": {"code": "print(1)\nx"}}"#,
            "\n{\"name\": \"python\", \"arguments\": {\"code\": \"print(1)\nx\"}}\n",
            r#"{"name": "python", "arguments": "{\"code\": \"print(1)\\nx\"}"}"#,
            r#"{"name": "python", "arguments": "print(1)\nx"}"#,
            r#"{"arguments": {"code": "print(1)\nx"}, "name": "Python"}"#,
            r#"{"name": "code_interpreter", "parameters": {"code": "print(1)\nx"}}"#,
            r#"{"name": "python", "arguments": {"code": "print(1)\nx"}"#,
            r#"{"name": "python", "arguments": {"code": "print(1)\nx"}}}"#,
            "{\"name\": \"python\", \"arguments\": {\"code\": \"\"\"print(1)\nx\"\"\"}}",
            "```json\n{\"name\": \"python\", \"arguments\": {\"code\": \"print(1)\\nx\"}}\n```",
        ] {
            assert_eq!(code_of(body).as_deref(), Ok("print(1)\nx"), "{body}");
        }
        assert_eq!(
            code_of(r#"{"name":"python","arguments":{"code":"s = \"a\\nb\"\tx"}}"#).unwrap(),
            "s = \"a\\nb\"\tx"
        );
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let message = |body: &str| code_of(body).unwrap_err().to_string();
        assert_eq!(
            message(r#"{"name": "bash", "arguments": {}}"#),
            "there is no tool \"bash\"; the only tool is python"
        );
        assert!(message("print(1)").starts_with("the call isn't valid JSON (expected value at line 1 column 1)"));
        assert!(message("").contains("isn't valid JSON"));
        assert!(message("[1]").starts_with("the call has no \"name\"; expected {\"name\""));
        assert!(message(r#"{"name": "python"}"#).starts_with("the call has no \"arguments\""));
        assert!(message(r#"{"name": "python", "arguments": {"code": 1}}"#).starts_with("the call has no \"code\""));
        assert!(message(r#"{"name": "python", "arguments": [1]}"#).starts_with("the call has no \"code\""));
        assert!(message(&"[".repeat(100_000)).contains("isn't valid JSON"), "nesting is bounded");
        assert!(message(&format!(r#"{{"name": "{}"}}"#, "x".repeat(9999))).len() < 200);
    }

    #[test]
    fn python_that_looks_like_json_stays_python() {
        assert_eq!(code_or_arguments("print(1)"), "print(1)");
        assert_eq!(code_or_arguments("{1: 2}[1]"), "{1: 2}[1]");
        assert_eq!(code_or_arguments("{\"a\": 1}"), "{\"a\": 1}");
        assert_eq!(code_or_arguments("{\"code\": \"print(1)\"}"), "print(1)");
    }
}
