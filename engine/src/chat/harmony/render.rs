//! Writes a conversation as control tokens and plain text, and encodes it: the only place that knows what a message
//! looks like from outside. Called by whoever makes prompts for the model.

use super::message::{Call, ContentType, Conversation, DeveloperMessage, HeaderOrder, SystemMessage, Turn};
use super::schema::namespace;
use super::{Control, HarmonyTokens};
use crate::tokenizer::Tokenizer;

/// A stretch of a written conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Control(Control),
    Text(String),
}

impl Conversation {
    /// The conversation's tokens, up to the opening of the assistant's next message (`<|start|>assistant`), where the
    /// model goes on.
    pub fn tokens(&self, tokens: &HarmonyTokens, tokenizer: &Tokenizer) -> Vec<u32> {
        encode(self.pieces(), tokens, tokenizer)
    }

    /// The same as text, with control tokens spelled out: for people to read, not for models.
    pub fn text(&self) -> String {
        let spell = |piece: &Piece| match piece {
            Piece::Control(control) => control.name().to_owned(),
            Piece::Text(text) => text.clone(),
        };
        self.pieces().iter().map(spell).collect()
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut out = Writer::default();
        out.message("system", &system_text(&self.system, !self.developer.functions.is_empty()));
        let developer = developer_text(&self.developer);
        if !developer.is_empty() {
            out.message("developer", &developer);
        }
        self.history().for_each(|turn| out.turn(turn));
        out.opening();
        out.0
    }
}

impl Turn {
    /// The tokens of turns that continue a conversation, and the opening of the assistant's next message.
    pub fn tokens_of(turns: &[Turn], tokens: &HarmonyTokens, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut out = Writer::default();
        turns.iter().for_each(|turn| out.turn(turn));
        out.opening();
        encode(out.0, tokens, tokenizer)
    }
}

fn encode(pieces: Vec<Piece>, tokens: &HarmonyTokens, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Control(control) => ids.push(tokens.id(control)),
            Piece::Text(text) => ids.extend(tokenizer.encode_ordinary(&text)),
        }
    }
    ids
}

#[derive(Default)]
struct Writer(Vec<Piece>);

impl Writer {
    fn control(&mut self, control: Control) {
        self.0.push(Piece::Control(control));
    }

    /// Text between two control tokens is one piece: so it is encoded as the model's own.
    fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(before)) => before.push_str(text),
            _ => self.0.push(Piece::Text(text.to_owned())),
        }
    }

    fn message(&mut self, author: &str, content: &str) {
        self.control(Control::Start);
        self.text(author);
        self.control(Control::Message);
        self.text(content);
        self.control(Control::End);
    }

    fn opening(&mut self) {
        self.control(Control::Start);
        self.text("assistant");
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::User { text } => self.message("user", text),
            Turn::Assistant { channel, text } => {
                self.opening();
                self.control(Control::Channel);
                self.text(channel.name());
                self.control(Control::Message);
                self.text(text);
                self.control(Control::End);
            }
            Turn::Call(call) => self.call(call),
            Turn::Result { tool, channel, text } => {
                self.control(Control::Start);
                self.text(tool);
                self.text(" to=assistant");
                self.control(Control::Channel);
                self.text(channel.name());
                self.control(Control::Message);
                self.text(text);
                self.control(Control::End);
            }
        }
    }

    fn call(&mut self, call: &Call) {
        let recipient = format!(" to={}", call.recipient);
        self.opening();
        if call.order == HeaderOrder::RecipientFirst {
            self.text(&recipient);
        }
        self.control(Control::Channel);
        self.text(call.channel.name());
        if call.order == HeaderOrder::ChannelFirst {
            self.text(&recipient);
        }
        if let Some(ContentType { name, constrained }) = &call.content_type {
            self.text(" ");
            if *constrained {
                self.control(Control::Constrain);
            }
            self.text(name);
        }
        self.control(Control::Message);
        self.text(&call.arguments);
        self.control(Control::Call);
    }
}

fn system_text(system: &SystemMessage, has_functions: bool) -> String {
    let mut head = vec![system.identity.clone()];
    head.extend(system.knowledge_cutoff.iter().map(|month| format!("Knowledge cutoff: {month}")));
    head.extend(system.current_date.iter().map(|day| format!("Current date: {day}")));
    let mut sections = vec![head.join("\n"), format!("Reasoning: {}", system.effort)];
    if !system.tools.is_empty() {
        sections.push("# Tools".to_owned());
        sections.extend(system.tools.iter().map(|tool| format!("## {}\n\n{}", tool.name, tool.description.trim_end())));
    }
    let mut channels =
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.".to_owned();
    if has_functions {
        channels.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
    }
    sections.push(channels);
    sections.join("\n\n")
}

/// Empty where there is nothing to say.
fn developer_text(developer: &DeveloperMessage) -> String {
    let mut sections = Vec::new();
    if !developer.instructions.is_empty() {
        sections.push(format!("# Instructions\n\n{}", developer.instructions));
    }
    if !developer.functions.is_empty() {
        sections.push(format!("# Tools\n\n{}", namespace("functions", &developer.functions)));
    }
    sections.join("\n\n")
}
