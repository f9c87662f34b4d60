//! Harmony, the conversation format of gpt-oss: typed messages to token ids, and the model's tokens back to messages.
//!
//! A message is `<|start|>` header `<|message|>` content and an end token; an assistant's header names a channel
//! (`analysis` is thinking, `commentary` holds calls and remarks, `final` is the answer) and, in a call, a recipient.
//! Structure is made of seven control tokens, looked up in the model file's vocabulary; contents are encoded as plain
//! text, so nothing that a user or a tool writes can become structure. Source: the format's public description
//! (openai/harmony). Called by the solver's model adapter and its tool protocol.

mod message;
mod parser;
mod render;
mod schema;

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::tokenizer::Tokenizer;

pub use message::{
    Author, Call, Channel, ContentType, Conversation, DeveloperMessage, Function, HeaderOrder, SystemMessage,
    ToolSection, Turn,
};
pub use parser::{End, Event, Header, HeaderProblem, Item, MAX_HEADER_BYTES, Parser, TokenParser};

/// A token that makes structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// Begins a message.
    Start,
    /// Ends a message that the conversation goes on after.
    End,
    /// Ends a header.
    Message,
    /// The channel follows.
    Channel,
    /// The form of the content follows.
    Constrain,
    /// Ends a call; the model waits for its result.
    Call,
    /// Ends the last message of a reply.
    Return,
}

impl Control {
    /// All of them.
    pub const ALL: [Control; 7] = [
        Control::Start,
        Control::End,
        Control::Message,
        Control::Channel,
        Control::Constrain,
        Control::Call,
        Control::Return,
    ];

    /// The token as vocabularies spell it.
    pub fn name(self) -> &'static str {
        match self {
            Control::Start => "<|start|>",
            Control::End => "<|end|>",
            Control::Message => "<|message|>",
            Control::Channel => "<|channel|>",
            Control::Constrain => "<|constrain|>",
            Control::Call => "<|call|>",
            Control::Return => "<|return|>",
        }
    }

    /// The control token of that spelling.
    pub fn from_name(name: &str) -> Option<Control> {
        Control::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// The control tokens' ids in one vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HarmonyTokens {
    /// In the order of [`Control::ALL`].
    ids: [u32; 7],
}

impl HarmonyTokens {
    /// Looks the control tokens up.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn of(tokenizer: &Tokenizer) -> Result<HarmonyTokens, HarmonyError> {
        let mut ids = [0; 7];
        for (id, control) in ids.iter_mut().zip(Control::ALL) {
            let name = control.name();
            *id = tokenizer.token_id(name).ok_or(HarmonyError::MissingToken { name })?;
        }
        Ok(HarmonyTokens { ids })
    }

    /// The id of a control token.
    pub fn id(&self, control: Control) -> u32 {
        self.ids[control as usize]
    }

    /// The control token of an id; `None` for all other tokens.
    pub fn control(&self, id: u32) -> Option<Control> {
        Control::ALL.into_iter().find(|&c| self.id(c) == id)
    }
}

/// How long the model is asked to think.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEffort {
    /// Briefly.
    Low,
    /// The model's default.
    #[default]
    Medium,
    /// At length.
    High,
}

impl ReasoningEffort {
    /// All of them.
    pub const ALL: [ReasoningEffort; 3] = [ReasoningEffort::Low, ReasoningEffort::Medium, ReasoningEffort::High];

    /// As the system message spells it.
    pub fn name(self) -> &'static str {
        match self {
            ReasoningEffort::Low => "low",
            ReasoningEffort::Medium => "medium",
            ReasoningEffort::High => "high",
        }
    }
}

impl fmt::Display for ReasoningEffort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ReasoningEffort {
    type Err = HarmonyError;

    fn from_str(text: &str) -> Result<Self, HarmonyError> {
        let known = ReasoningEffort::ALL.into_iter().find(|effort| effort.name() == text);
        known.ok_or_else(|| HarmonyError::Effort { found: text.to_owned() })
    }
}

/// Why a conversation can't be put into the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named and the messages say what they are")]
pub enum HarmonyError {
    /// The vocabulary is another model's.
    #[error("the vocabulary has no token `{name}`: the model doesn't speak Harmony")]
    MissingToken { name: &'static str },
    /// No such effort.
    #[error("the reasoning effort is `{found}`; allowed: low, medium, high")]
    Effort { found: String },
    /// A role that the format doesn't have.
    #[error("message {position} has the role `{role}`; Harmony knows system, developer, user, assistant and tool")]
    Role { position: usize, role: String },
    /// Instructions in the middle of a conversation.
    #[error("message {position} is a {role} message; in Harmony these come before all others")]
    LateInstructions { position: usize, role: String },
    /// A result without a call.
    #[error("message {position} is a tool's result, but no assistant message before it calls a tool")]
    ResultWithoutCall { position: usize },
}
