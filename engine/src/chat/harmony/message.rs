//! The messages of a Harmony conversation as data, and the rule for what of a history is shown to the model again.
//!
//! Two messages are special: the system message (identity, dates, reasoning effort, built-in tools, channels) and the
//! developer message (instructions, function tools). All others are [`Turn`]s. Called by `render`.

use serde_json::Value;

use super::schema::json_text;
use super::{HarmonyError, ReasoningEffort};
use crate::chat::Message;

/// Who wrote a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Author {
    /// Facts about the session.
    System,
    /// Instructions.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool, by name.
    Tool(String),
}

impl Author {
    /// As headers spell it.
    pub fn name(&self) -> &str {
        match self {
            Author::System => "system",
            Author::Developer => "developer",
            Author::User => "user",
            Author::Assistant => "assistant",
            Author::Tool(name) => name,
        }
    }

    /// The author that a header names; what is no role is a tool.
    pub fn from_name(name: &str) -> Author {
        match name {
            "system" => Author::System,
            "developer" => Author::Developer,
            "user" => Author::User,
            "assistant" => Author::Assistant,
            tool => Author::Tool(tool.to_owned()),
        }
    }
}

/// What a message of the assistant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Thinking, and calls of built-in tools.
    Analysis,
    /// Calls of functions, and remarks between them.
    Commentary,
    /// The answer.
    Final,
}

impl Channel {
    /// All of them.
    pub const ALL: [Channel; 3] = [Channel::Analysis, Channel::Commentary, Channel::Final];

    /// As headers spell it.
    pub fn name(self) -> &'static str {
        match self {
            Channel::Analysis => "analysis",
            Channel::Commentary => "commentary",
            Channel::Final => "final",
        }
    }

    /// The channel of that name.
    pub fn from_name(name: &str) -> Option<Channel> {
        Channel::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// The first message: who the model is and what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemMessage {
    /// A sentence on who the model is.
    pub identity: String,
    /// Month up to which it knows the world, such as `2024-06`.
    pub knowledge_cutoff: Option<String>,
    /// Today, such as `2025-08-05`.
    pub current_date: Option<String>,
    /// How long it thinks.
    pub effort: ReasoningEffort,
    /// Built-in tools, such as `python`, each with its description in plain text.
    pub tools: Vec<ToolSection>,
}

impl Default for SystemMessage {
    /// What gpt-oss was trained with, without a date and without tools.
    fn default() -> Self {
        SystemMessage {
            identity: "You are ChatGPT, a large language model trained by OpenAI.".to_owned(),
            knowledge_cutoff: Some("2024-06".to_owned()),
            current_date: None,
            effort: ReasoningEffort::default(),
            tools: Vec::new(),
        }
    }
}

/// A built-in tool: the model calls it by its bare name and with text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolSection {
    /// Name, such as `python`.
    pub name: String,
    /// What it does and how it is called.
    pub description: String,
}

/// The second message: what the model is asked to keep to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeveloperMessage {
    /// Instructions; empty = none.
    pub instructions: String,
    /// Tools that are called with JSON, as `functions.NAME`.
    pub functions: Vec<Function>,
}

/// A tool that is called with JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Name, without `functions.`.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON schema of its argument, an object; null = it takes none.
    pub parameters: Value,
}

/// Where a call's header names the recipient. Models write both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderOrder {
    /// `assistant<|channel|>analysis to=python code`.
    #[default]
    ChannelFirst,
    /// `assistant to=python<|channel|>analysis code`.
    RecipientFirst,
}

/// The form of a call's content, as its header gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentType {
    /// Such as `json` or `code`.
    pub name: String,
    /// Whether `<|constrain|>` comes before it.
    pub constrained: bool,
}

/// The model calls a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `python`, or `functions.NAME`.
    pub recipient: String,
    /// Analysis for built-in tools, commentary for functions.
    pub channel: Channel,
    /// Form of the arguments.
    pub content_type: Option<ContentType>,
    /// Where the header names the recipient.
    pub order: HeaderOrder,
    /// Code, or JSON.
    pub arguments: String,
}

/// A message after the first two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The person writes.
    User {
        /// What.
        text: String,
    },
    /// The model writes.
    Assistant {
        /// Where to.
        channel: Channel,
        /// What.
        text: String,
    },
    /// The model calls a tool.
    Call(Call),
    /// The tool answers.
    Result {
        /// The call's recipient.
        tool: String,
        /// The call's channel.
        channel: Channel,
        /// What.
        text: String,
    },
}

impl Turn {
    /// Its channel; users have none.
    pub fn channel(&self) -> Option<Channel> {
        match self {
            Turn::User { .. } => None,
            Turn::Assistant { channel, .. } | Turn::Result { channel, .. } => Some(*channel),
            Turn::Call(call) => Some(call.channel),
        }
    }
}

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// First message.
    pub system: SystemMessage,
    /// Second message, left out where it is empty.
    pub developer: DeveloperMessage,
    /// The others.
    pub turns: Vec<Turn>,
}

impl Conversation {
    /// From messages as chat templates take them: what `system` and `developer` messages say becomes instructions, an
    /// assistant's thinking a message on the analysis channel, its calls messages to tools. A call's arguments are
    /// written as they are where they are a string, as JSON otherwise.
    ///
    /// # Errors
    /// A role that the format doesn't have, instructions that don't come first, a result that nobody asked for.
    pub fn from_messages(
        system: SystemMessage,
        functions: Vec<Function>,
        messages: &[Message],
    ) -> Result<Conversation, HarmonyError> {
        let mut instructions = Vec::new();
        let mut turns = Vec::new();
        for (position, message) in (1..).zip(messages) {
            let text = message.content.clone();
            match message.role.as_str() {
                "system" | "developer" if turns.is_empty() => instructions.push(text),
                "system" | "developer" => {
                    return Err(HarmonyError::LateInstructions { position, role: message.role.clone() });
                }
                "user" => turns.push(Turn::User { text }),
                "assistant" => push_assistant(&mut turns, message, &system.tools),
                "tool" => {
                    let called =
                        turns.iter().rev().find_map(|t| if let Turn::Call(call) = t { Some(call) } else { None });
                    let call = called.ok_or(HarmonyError::ResultWithoutCall { position })?;
                    let (tool, channel) = (call.recipient.clone(), call.channel);
                    turns.push(Turn::Result { tool, channel, text });
                }
                role => return Err(HarmonyError::Role { position, role: role.to_owned() }),
            }
        }
        let instructions = instructions.join("\n\n");
        Ok(Conversation { system, developer: DeveloperMessage { instructions, functions }, turns })
    }

    /// The turns that the model sees again: analysis is dropped once a final answer came after it, and kept otherwise,
    /// so that the model can go on from its own calls. (openai/harmony drops what lies before the *first* final
    /// message, and nothing while a later reply is under way; the published template drops as here.)
    pub fn history(&self) -> impl Iterator<Item = &Turn> {
        let answered = self.turns.iter().rposition(|t| matches!(t, Turn::Assistant { channel: Channel::Final, .. }));
        let n_answered = answered.unwrap_or(0);
        let is_kept = move |(i, turn): &(usize, &Turn)| *i >= n_answered || turn.channel() != Some(Channel::Analysis);
        self.turns.iter().enumerate().filter(is_kept).map(|(_, turn)| turn)
    }
}

fn push_assistant(turns: &mut Vec<Turn>, message: &Message, built_in: &[ToolSection]) {
    if !message.thinking.is_empty() {
        turns.push(Turn::Assistant { channel: Channel::Analysis, text: message.thinking.clone() });
    }
    if message.tool_calls.is_empty() {
        if !message.content.is_empty() || message.thinking.is_empty() {
            turns.push(Turn::Assistant { channel: Channel::Final, text: message.content.clone() });
        }
        return;
    }
    if !message.content.is_empty() {
        turns.push(Turn::Assistant { channel: Channel::Commentary, text: message.content.clone() });
    }
    for call in &message.tool_calls {
        let arguments = match &call.arguments {
            Value::String(text) => text.clone(),
            json => json_text(json),
        };
        turns.push(Turn::Call(if built_in.iter().any(|tool| tool.name == call.name) {
            Call {
                recipient: call.name.clone(),
                channel: Channel::Analysis,
                content_type: Some(ContentType { name: "code".to_owned(), constrained: false }),
                order: HeaderOrder::ChannelFirst,
                arguments,
            }
        } else {
            Call {
                recipient: format!("functions.{}", call.name),
                channel: Channel::Commentary,
                content_type: Some(ContentType { name: "json".to_owned(), constrained: true }),
                order: HeaderOrder::ChannelFirst,
                arguments,
            }
        }));
    }
}
