//! What a model says as people read it: thinking between `<think>` and `</think>`, whatever the model marks it with,
//! and dim on a terminal. Used by `generate --chat`.

use std::io::{self, IsTerminal, Write};

use solver::protocol::{Part, Reader};

/// Tells thinking from text, shows both, and keeps both apart.
pub struct Transcriber {
    reader: Reader,
    /// Shown as it comes.
    shows: bool,
    dims: bool,
    in_thought: bool,
    /// What was said.
    pub text: String,
    /// What was thought.
    pub thinking: String,
}

impl Transcriber {
    /// For a reader at the beginning of a turn. With `shows` everything is written as it comes.
    pub fn new(reader: Reader, shows: bool) -> Transcriber {
        let dims = shows && io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Transcriber { reader, shows, dims, in_thought: false, text: String::new(), thinking: String::new() }
    }

    /// Takes the next token: text, and the name of a control token.
    pub fn push(&mut self, text: &str, control: Option<&str>, out: &mut impl Write) -> io::Result<()> {
        let mut parts = self.reader.text(text);
        if let Some(name) = control {
            parts.extend(self.reader.control(name));
        }
        self.take(parts, out)
    }

    /// The model has stopped writing.
    pub fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        let parts = self.reader.finish();
        self.take(parts, out)?;
        self.switch(false, out)
    }

    fn take(&mut self, parts: Vec<Part>, out: &mut impl Write) -> io::Result<()> {
        for part in parts {
            match part {
                Part::Thought(text) => {
                    self.switch(true, out)?;
                    self.write(&text, out)?;
                    self.thinking.push_str(&text);
                }
                Part::Text(text) => self.say(&text, out)?,
                // Nobody offered it a tool.
                Part::Call { tool, code: raw } | Part::BadCall { tool, raw, .. } => {
                    self.say(&format!("[call of {tool}]\n{raw}\n"), out)?;
                }
            }
        }
        Ok(())
    }

    fn say(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        self.switch(false, out)?;
        // Line breaks between a thought and the answer belong to neither.
        let text = if self.text.is_empty() && !self.thinking.is_empty() { text.trim_start_matches('\n') } else { text };
        self.write(text, out)?;
        self.text.push_str(text);
        Ok(())
    }

    fn switch(&mut self, to_thought: bool, out: &mut impl Write) -> io::Result<()> {
        if std::mem::replace(&mut self.in_thought, to_thought) == to_thought {
            return Ok(());
        }
        let (dim, plain) = if self.dims { ("\u{1b}[2m", "\u{1b}[0m") } else { ("", "") };
        if to_thought {
            let line_break = if self.text.is_empty() || self.text.ends_with('\n') { "" } else { "\n" };
            self.write(&format!("{line_break}{dim}<think>\n"), out)
        } else {
            let line_break = if self.thinking.ends_with('\n') { "" } else { "\n" };
            self.write(&format!("{line_break}</think>{plain}\n\n"), out)
        }
    }

    fn write(&self, text: &str, out: &mut impl Write) -> io::Result<()> {
        if self.shows && !text.is_empty() {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use solver::Protocol;

    fn shown(protocol: Protocol, tokens: &[&str]) -> (String, String, String) {
        let mut transcriber = Transcriber::new(protocol.plain_reader(false), true);
        transcriber.dims = false;
        let mut out = Vec::new();
        for token in tokens {
            let control = token.starts_with("<|").then_some(*token);
            transcriber.push(if control.is_some() { "" } else { token }, control, &mut out).unwrap();
        }
        transcriber.finish(&mut out).unwrap();
        (String::from_utf8(out).unwrap(), transcriber.text, transcriber.thinking)
    }

    #[test]
    fn thinking_is_marked_the_same_way_whatever_the_model() {
        let expected = ("<think>\neasy\n</think>\n\n4".to_owned(), "4".to_owned(), "easy".to_owned());
        let mut tagged = shown(Protocol::Hermes, &["<thi", "nk>", "easy", "</think>\n\n", "4"]);
        assert_eq!(tagged, expected);
        tagged = shown(
            Protocol::Harmony,
            &[
                "<|channel|>",
                "analysis",
                "<|message|>",
                "easy",
                "<|end|>",
                "<|start|>",
                "assistant",
                "<|channel|>",
                "final",
                "<|message|>",
                "4",
                "<|return|>",
            ],
        );
        assert_eq!(tagged, expected);
    }

    #[test]
    fn text_without_thinking_is_left_as_it_is() {
        let (out, text, thinking) = shown(Protocol::Fenced, &["\n```python\n1\n", "```\n<tool_call>"]);
        assert_eq!(out, "\n```python\n1\n```\n<tool_call>");
        assert_eq!((text, thinking.as_str()), (out, ""));
    }

    #[test]
    fn a_thought_that_is_cut_off_is_closed() {
        let (out, text, _) = shown(Protocol::Hermes, &["Hm.", "<think>", "why"]);
        assert_eq!((out.as_str(), text.as_str()), ("Hm.\n<think>\nwhy\n</think>\n\n", "Hm."));
    }
}
