//! Tells thinking from speech in text that marks it with `<think>` and `</think>`. The marks themselves are left out.
//!
//! Models that think this way write the closing mark, and often the template has already written the opening one. A
//! closing mark outside a thought and an opening one inside say nothing new and are dropped. Called by the readers.

use super::Part;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Reads text in pieces of any size.
#[derive(Debug, Clone, Default)]
pub(super) struct ThoughtSplitter {
    in_thought: bool,
    /// The end of the text so far, where it could be the beginning of a mark.
    pending: String,
}

impl ThoughtSplitter {
    /// For text that begins inside a thought, or outside.
    pub(super) fn new(in_thought: bool) -> ThoughtSplitter {
        ThoughtSplitter { in_thought, pending: String::new() }
    }

    pub(super) fn in_thought(&self) -> bool {
        self.in_thought
    }

    /// Takes the next piece; adds what it settles.
    pub(super) fn push(&mut self, piece: &str, parts: &mut Vec<Part>) {
        let text = std::mem::take(&mut self.pending) + piece;
        let mut rest = text.as_str();
        while let Some((at, mark)) = [OPEN, CLOSE].into_iter().filter_map(|m| rest.find(m).map(|at| (at, m))).min() {
            self.emit(&rest[..at], parts);
            self.in_thought = mark == OPEN;
            rest = &rest[at + mark.len()..];
        }
        let n_held = held_back(rest, &[OPEN, CLOSE]);
        let (settled, held) = rest.split_at(rest.len() - n_held);
        self.emit(settled, parts);
        self.pending = held.to_string();
    }

    /// No more text comes, or something else than text does: what was held back is no mark.
    pub(super) fn flush(&mut self, parts: &mut Vec<Part>) {
        let held = std::mem::take(&mut self.pending);
        self.emit(&held, parts);
    }

    fn emit(&self, text: &str, parts: &mut Vec<Part>) {
        match parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Thought(before)) if self.in_thought => before.push_str(text),
            Some(Part::Text(before)) if !self.in_thought => before.push_str(text),
            _ if self.in_thought => parts.push(Part::Thought(text.to_string())),
            _ => parts.push(Part::Text(text.to_string())),
        }
    }
}

/// Bytes at the end of the text that could be the beginning of a mark.
pub(super) fn held_back(text: &str, marks: &[&str]) -> usize {
    let beginnings = marks.iter().flat_map(|m| (1..m.len()).filter(move |&n| text.ends_with(&m[..n])));
    beginnings.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(in_thought: bool, text: &str) -> Vec<Part> {
        let (mut splitter, mut parts) = (ThoughtSplitter::new(in_thought), Vec::new());
        splitter.push(text, &mut parts);
        splitter.flush(&mut parts);
        parts
    }

    #[test]
    fn marks_change_sides_and_vanish() {
        let text = |t: &str| Part::Text(t.to_string());
        let thought = |t: &str| Part::Thought(t.to_string());
        assert_eq!(split(false, "a<think>b</think>c"), [text("a"), thought("b"), text("c")]);
        assert_eq!(split(true, "b</think>c"), [thought("b"), text("c")]);
        assert_eq!(split(false, "a</think>b"), [text("ab")]);
        assert_eq!(split(true, "a<think>b"), [thought("ab")]);
        assert_eq!(split(false, "<think></think>"), []);
        assert_eq!(split(false, "a<thin<think>b</thi"), [text("a<thin"), thought("b</thi")]);
    }
}
