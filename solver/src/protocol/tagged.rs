//! Calls between `<tool_call>` and `</tool_call>`: a JSON object (Hermes, Qwen3) or bare Python (OpenMath-Nemotron).
//!
//! [`TagParser`] finds the calls; what a call's body means is `hermes`' business or, for bare code, that of
//! [`bare_code`]. Small models that are asked for tags around JSON often write a "```json" fence instead; where that is
//! to be seen, it is a body too. Called by the readers.

use super::thought::held_back;

/// What opens a call and what closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Marks {
    open: &'static str,
    close: &'static str,
}

const TAGS: Marks = Marks { open: "<tool_call>", close: "</tool_call>" };
const JSON_FENCE: Marks = Marks { open: "```json\n", close: "\n```" };

/// A piece of text, classified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tagged {
    Text(String),
    /// What stands between the tags.
    Body(String),
    /// What stands in a JSON fence, and all of it as it was written: it need not be a call.
    Fence {
        body: String,
        raw: String,
    },
}

/// Reads text in pieces of any size.
#[derive(Debug, Clone)]
pub(super) struct TagParser {
    marks: &'static [Marks],
    /// Outside a call: the end of the text, where it could be the beginning of a mark.
    pending: String,
    call: Option<OpenCall>,
}

#[derive(Debug, Clone)]
struct OpenCall {
    marks: Marks,
    body: String,
    /// The closing mark doesn't begin before this.
    n_searched: usize,
}

impl OpenCall {
    fn finish(self, is_closed: bool) -> Tagged {
        let OpenCall { marks, body, .. } = self;
        if marks == TAGS {
            return Tagged::Body(body);
        }
        let raw = format!("{}{body}{}", marks.open, if is_closed { marks.close } else { "" });
        Tagged::Fence { body, raw }
    }
}

impl TagParser {
    /// Sees tags only.
    pub(super) fn tags() -> TagParser {
        TagParser { marks: &[TAGS], pending: String::new(), call: None }
    }

    /// Sees tags and JSON fences.
    pub(super) fn tags_and_fences() -> TagParser {
        TagParser { marks: &[TAGS, JSON_FENCE], ..TagParser::tags() }
    }

    /// Takes the next piece; gives what it settles.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Tagged> {
        let mut parts = Vec::new();
        let mut rest = piece.to_string();
        loop {
            if let Some(mut call) = self.call.take() {
                call.body.push_str(&rest);
                let close = call.marks.close;
                let from = call.body.floor_char_boundary(call.n_searched.saturating_sub(close.len()));
                let Some(at) = call.body[from..].find(close).map(|at| from + at) else {
                    call.n_searched = call.body.len();
                    self.call = Some(call);
                    return parts;
                };
                rest = call.body[at + close.len()..].to_string();
                call.body.truncate(at);
                parts.push(call.finish(true));
            }
            let text = std::mem::take(&mut self.pending) + &rest;
            let opens = self.marks.iter().filter_map(|m| text.find(m.open).map(|at| (at, *m)));
            let Some((at, marks)) = opens.min_by_key(|(at, _)| *at) else {
                let opening: Vec<&str> = self.marks.iter().map(|m| m.open).collect();
                let settled = text.len() - held_back(&text, &opening);
                emit(&mut parts, &text[..settled]);
                self.pending = text[settled..].to_string();
                return parts;
            };
            emit(&mut parts, &text[..at]);
            rest = text[at + marks.open.len()..].to_string();
            self.call = Some(OpenCall { marks, body: String::new(), n_searched: 0 });
        }
    }

    /// The text has ended: an open call ends with it.
    pub(super) fn finish(&mut self) -> Vec<Tagged> {
        let mut parts = Vec::new();
        emit(&mut parts, &std::mem::take(&mut self.pending));
        parts.extend(self.call.take().map(|call| call.finish(false)));
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
        let mut parser = TagParser::tags();
        let parts = parser.push("a <tool_call>\n1\n</tool_call> b<tool_call>2</tool_call><tool");
        let (text, body) = (|t: &str| Tagged::Text(t.to_string()), |t: &str| Tagged::Body(t.to_string()));
        assert_eq!(parts, [text("a "), body("\n1\n"), text(" b"), body("2")]);
        assert_eq!(parser.finish(), [text("<tool")]);
        parser.push("<tool_call>3</tool_cal");
        assert_eq!(parser.finish(), [body("3</tool_cal")]);
        assert_eq!(parser.finish(), []);
    }

    #[test]
    fn json_fences_are_seen_where_they_are_looked_for() {
        let text = "a ```json\n{}\n``` b ```json\n[";
        let fence = |body: &str, raw: &str| Tagged::Fence { body: body.to_string(), raw: raw.to_string() };
        let mut parser = TagParser::tags_and_fences();
        let text_part = |t: &str| Tagged::Text(t.to_string());
        assert_eq!(parser.push(text), [text_part("a "), fence("{}", "```json\n{}\n```"), text_part(" b ")]);
        assert_eq!(parser.finish(), [fence("[", "```json\n[")]);
        assert_eq!(TagParser::tags().push(text), [text_part(text)]);
    }

    #[test]
    fn a_fence_around_bare_code_is_taken_off() {
        assert_eq!(bare_code("\nprint(1)\n"), "print(1)");
        assert_eq!(bare_code("```python\nfor i in a:\n    b\n```\n"), "for i in a:\n    b");
        assert_eq!(bare_code("```"), "");
        assert_eq!(bare_code(" x = '''`'''"), "x = '''`'''");
    }
}
