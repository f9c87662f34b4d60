//! Calls between `<tool_call>` and `</tool_call>`: a JSON object (Hermes, Qwen3) or bare Python (OpenMath-Nemotron).
//!
//! [`TagParser`] finds the calls; what a call's body means is `hermes`' business or, for bare code, that of
//! [`bare_code`]. Called by the readers.

use super::thought::held_back;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A piece of text, classified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tagged {
    Text(String),
    /// What stands between the tags.
    Body(String),
}

/// Reads text in pieces of any size.
#[derive(Debug, Clone, Default)]
pub(super) struct TagParser {
    /// Outside a call: the end of the text, where it could be the beginning of a tag.
    pending: String,
    /// Inside a call: its body so far, closing tag searched up to `n_searched`.
    body: Option<String>,
    n_searched: usize,
}

impl TagParser {
    /// Takes the next piece; gives what it settles.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Tagged> {
        let mut parts = Vec::new();
        let mut rest = piece.to_string();
        loop {
            match &mut self.body {
                Some(body) => {
                    body.push_str(&rest);
                    let from = body.floor_char_boundary(self.n_searched.saturating_sub(CLOSE.len()));
                    let Some(at) = body[from..].find(CLOSE).map(|at| from + at) else {
                        self.n_searched = body.len();
                        return parts;
                    };
                    rest = body[at + CLOSE.len()..].to_string();
                    body.truncate(at);
                    parts.extend(self.body.take().map(Tagged::Body));
                }
                None => {
                    let text = std::mem::take(&mut self.pending) + &rest;
                    if let Some(at) = text.find(OPEN) {
                        emit(&mut parts, &text[..at]);
                        rest = text[at + OPEN.len()..].to_string();
                        (self.body, self.n_searched) = (Some(String::new()), 0);
                    } else {
                        let settled = text.len() - held_back(&text, &[OPEN]);
                        emit(&mut parts, &text[..settled]);
                        self.pending = text[settled..].to_string();
                        return parts;
                    }
                }
            }
        }
    }

    /// The text has ended: an open call ends with it.
    pub(super) fn finish(&mut self) -> Vec<Tagged> {
        let mut parts = Vec::new();
        emit(&mut parts, &std::mem::take(&mut self.pending));
        parts.extend(self.body.take().map(Tagged::Body));
        parts
    }
}

fn emit(parts: &mut Vec<Tagged>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Tagged::Text(before)) => before.push_str(text),
        _ => parts.push(Tagged::Text(text.to_string())),
    }
}

/// The Python in a body: models often put a fence around it.
pub(super) fn bare_code(body: &str) -> String {
    let code = body.trim_matches(['\n', '\r', ' ']);
    let Some(fenced) = code.strip_prefix("```") else { return code.to_string() };
    let inside = fenced.split_once('\n').map_or("", |(_, rest)| rest);
    inside.trim_end().trim_end_matches('`').trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_and_text_come_apart() {
        let mut parser = TagParser::default();
        let parts = parser.push("a <tool_call>\n1\n</tool_call> b<tool_call>2</tool_call><tool");
        let (text, body) = (|t: &str| Tagged::Text(t.to_string()), |t: &str| Tagged::Body(t.to_string()));
        assert_eq!(parts, [text("a "), body("\n1\n"), text(" b"), body("2")]);
        assert_eq!(parser.finish(), [text("<tool")]);
        parser.push("<tool_call>3</tool_cal");
        assert_eq!(parser.finish(), [body("3</tool_cal")]);
        assert_eq!(parser.finish(), []);
    }

    #[test]
    fn a_fence_around_bare_code_is_taken_off() {
        assert_eq!(bare_code("\nprint(1)\n"), "print(1)");
        assert_eq!(bare_code("```python\nfor i in a:\n    b\n```\n"), "for i in a:\n    b");
        assert_eq!(bare_code("```"), "");
        assert_eq!(bare_code(" x = '''`'''"), "x = '''`'''");
    }
}
