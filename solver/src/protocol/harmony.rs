//! Harmony's messages as parts: analysis and commentary are thinking, `final` is text, a message to `python` is a call.
//!
//! The recipient decides what is a call, wherever the header names it and however the message ends. A message without
//! a channel is taken for an answer, since that is what a reader would see; one on a channel that doesn't exist, for
//! thinking. Called by the readers.

use engine::chat::harmony::{Author, Channel, Control, Event, Header, HeaderProblem, Item, Parser};

use super::Part;
use super::hermes::{BadCall, code_in, code_or_arguments, is_python};

/// Reads text and control tokens.
#[derive(Debug, Clone)]
pub(super) struct HarmonyReader {
    parser: Parser,
    message: Kind,
}

/// The message that is being read.
#[derive(Debug, Clone)]
enum Kind {
    Thought,
    Text,
    Call { header: Header, content: String },
}

impl HarmonyReader {
    /// For text that goes on after `<|start|>assistant`.
    pub(super) fn new() -> HarmonyReader {
        HarmonyReader { parser: Parser::within_header(Author::Assistant), message: Kind::Thought }
    }

    pub(super) fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        let events = self.parser.push(Item::Text(text));
        self.take(events, parts);
    }

    /// Control tokens of other formats are skipped.
    pub(super) fn control(&mut self, name: &str, parts: &mut Vec<Part>) {
        if let Some(control) = Control::from_name(name) {
            let events = self.parser.push(Item::Control(control));
            self.take(events, parts);
        }
    }

    pub(super) fn finish(&mut self, parts: &mut Vec<Part>) {
        let events = self.parser.finish();
        self.take(events, parts);
    }

    fn take(&mut self, events: Vec<Event>, parts: &mut Vec<Part>) {
        for event in events {
            match (event, &mut self.message) {
                (Event::Begin(header), _) => self.message = kind_of(header),
                (Event::Text(text), Kind::Thought) => parts.push(Part::Thought(text)),
                (Event::Text(text), Kind::Text) => parts.push(Part::Text(text)),
                (Event::Text(text), Kind::Call { content, .. }) => content.push_str(&text),
                (Event::End(_), Kind::Call { header, content }) => {
                    parts.push(call(header, std::mem::take(content)));
                    self.message = Kind::Thought;
                }
                (Event::End(_), _) => self.message = Kind::Thought,
            }
        }
    }
}

fn kind_of(header: Header) -> Kind {
    if header.author != Author::Assistant {
        // The model plays somebody else: nothing of it counts.
        return Kind::Thought;
    }
    if header.recipient.is_some() {
        return Kind::Call { header, content: String::new() };
    }
    match (header.channel, &header.problem) {
        (Some(Channel::Final), _) => Kind::Text,
        (Some(Channel::Analysis | Channel::Commentary), _) | (None, Some(HeaderProblem::UnknownChannel { .. })) => {
            Kind::Thought
        }
        (None, _) => Kind::Text,
    }
}

fn call(header: &Header, content: String) -> Part {
    let recipient = header.recipient.clone().unwrap_or_default();
    if !is_python(&recipient) {
        let found = recipient.clone();
        return Part::BadCall { tool: recipient, raw: content, problem: BadCall::UnknownTool { found } };
    }
    // Functions take JSON; the built-in tool takes code, which some models nevertheless wrap up in JSON.
    let parsed = if recipient.starts_with("functions.") {
        code_in(&content.clone().into())
    } else {
        Ok(code_or_arguments(&content))
    };
    match parsed {
        Ok(code) => Part::Call { tool: recipient, code },
        Err(problem) => Part::BadCall { tool: recipient, raw: content, problem },
    }
}
