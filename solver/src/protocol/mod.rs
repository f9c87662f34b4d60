//! Tool protocols: how a model calls Python, how its thinking is told from its answer, and how a result goes back.
//!
//! One seam for all of them: a [`Reader`] turns what the model streams (text in pieces of any size, control tokens)
//! into [`Part`]s, and [`Protocol::reply`] says in which form a result is shown. Which protocol a model file speaks is
//! decided in `choice`. A call is reported the moment it is complete, so a model never gets to make up its result.
//! Called by `attempt`, and by the command line to tell thinking from answers.

mod choice;
mod fenced;
mod harmony;
mod hermes;
mod tagged;
mod thought;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use choice::Choice;
pub use hermes::{BadCall, TOOL};

use fenced::{CallParser, Fenced, OutputFence};
use harmony::HarmonyReader;
use tagged::{TagParser, Tagged, bare_code};
use thought::ThoughtSplitter;

/// How a model calls Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// A "```python" block runs when it closes, thoughts included; an "```output" block inside the same turn answers.
    #[default]
    Fenced,
    /// The same blocks, which run when the model opens an "```output" block (Qwen2.5-Math, Numina, ToRA).
    OutputFence,
    /// JSON between `<tool_call>` tags (or in a "```json" fence), never in a thought; a tool's turn answers (Qwen3,
    /// Hermes).
    Hermes,
    /// Python between `<tool_call>` tags, thoughts included; an "```output" block answers (OpenMath-Nemotron).
    Nemotron,
    /// Messages with channels and recipients (gpt-oss).
    Harmony,
    /// A "```python" block after the thinking (DeepSeek-R1's distillations); what comes first, block or box, counts.
    FirstBlock,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 6] = [
        Protocol::Fenced,
        Protocol::OutputFence,
        Protocol::Hermes,
        Protocol::Nemotron,
        Protocol::Harmony,
        Protocol::FirstBlock,
    ];

    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Fenced => "fenced",
            Protocol::OutputFence => "output-fence",
            Protocol::Hermes => "hermes",
            Protocol::Nemotron => "nemotron",
            Protocol::Harmony => "harmony",
            Protocol::FirstBlock => "first-block",
        }
    }

    /// In a few words.
    pub fn description(self) -> &'static str {
        match self {
            Protocol::Fenced => "```python blocks, run when they close",
            Protocol::OutputFence => "```python blocks, run when the model opens ```output",
            Protocol::Hermes => "<tool_call> with JSON, answered by a tool's turn",
            Protocol::Nemotron => "<tool_call> with Python, answered by an ```output block",
            Protocol::Harmony => "channels; messages to python",
            Protocol::FirstBlock => "the first ```python block or box after the thinking",
        }
    }

    /// A reader for a turn of the model that begins inside a thought or outside.
    pub fn reader(self, in_thought: bool) -> Reader {
        let text = |calls, calls_in_thoughts| {
            Reader(Inner::Text(TextReader { calls, thoughts: ThoughtSplitter::new(in_thought), calls_in_thoughts }))
        };
        match self {
            Protocol::Fenced => text(Calls::Fenced(CallParser::default()), true),
            Protocol::OutputFence => text(Calls::OutputFence(OutputFence::default()), true),
            Protocol::Hermes => text(Calls::Json(TagParser::tags_and_fences()), false),
            Protocol::Nemotron => text(Calls::Bare(TagParser::tags()), true),
            Protocol::FirstBlock => text(Calls::Fenced(CallParser::default()), false),
            Protocol::Harmony => Reader(Inner::Harmony(HarmonyReader::new())),
        }
    }

    /// A reader for conversations without tools: it only tells thinking from text.
    pub fn plain_reader(self, in_thought: bool) -> Reader {
        match self {
            Protocol::Harmony => self.reader(in_thought),
            _ => Reader(Inner::Text(TextReader {
                calls: Calls::None,
                thoughts: ThoughtSplitter::new(in_thought),
                calls_in_thoughts: false,
            })),
        }
    }

    /// In which form the output of `tool` goes back. `turn_ended`: the model has ended its turn; otherwise
    /// `fresh_line` says whether its text ended with a line break.
    pub fn reply(self, tool: &str, output: &str, turn_ended: bool, fresh_line: bool) -> Reply {
        let output = output.trim_end();
        let output = if output.is_empty() { NO_OUTPUT } else { output };
        match self {
            Protocol::Hermes => {
                // The closing tag inside the output would end the response early.
                let text = output.replace("</tool_response>", "<\\/tool_response>");
                Reply::Result { tool: tool.to_string(), text }
            }
            Protocol::Harmony => Reply::Result { tool: tool.to_string(), text: output.to_string() },
            Protocol::Fenced | Protocol::OutputFence | Protocol::Nemotron | Protocol::FirstBlock => {
                // So would a fence.
                let output = output.replace("```", "'''");
                let line_break = if fresh_line || turn_ended { "" } else { "\n" };
                match self {
                    _ if turn_ended => Reply::User(format!("```output\n{output}\n```\n")),
                    // The model has opened the block itself.
                    Protocol::OutputFence => Reply::Text(format!("{line_break}{output}\n```\n")),
                    _ => Reply::Text(format!("{line_break}```output\n{output}\n```\n")),
                }
            }
        }
    }

    /// Whether a new question opens the conversation anew, without the thinking that an answer came out of, instead of
    /// going on behind it.
    pub fn forgets_thinking(self) -> bool {
        self == Protocol::Harmony
    }
}

const NO_OUTPUT: &str = "(no output: print the result)";

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        let known = Protocol::ALL.into_iter().find(|p| p.name() == text);
        known.ok_or_else(|| UnknownProtocol { found: text.to_string() })
    }
}

/// A name that no protocol has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol {found:?}; known: {}", Protocol::ALL.map(Protocol::name).join(", "))]
pub struct UnknownProtocol {
    /// Name given.
    pub found: String,
}

/// A piece of what the model wrote, classified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Thinking: nothing in it is an answer.
    Thought(String),
    /// What the model says.
    Text(String),
    /// A complete call.
    Call {
        /// Who is called.
        tool: String,
        /// Python.
        code: String,
    },
    /// A call that can't be carried out.
    BadCall {
        /// Who is called.
        tool: String,
        /// The call as it was written.
        raw: String,
        /// Why.
        problem: BadCall,
    },
}

/// In which form something is shown to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Inside the model's own turn.
    Text(String),
    /// As a user's turn.
    User(String),
    /// As a tool's turn.
    Result {
        /// The tool.
        tool: String,
        /// Its output.
        text: String,
    },
}

/// Classifies what one turn of a model says, from its beginning, or from where somebody else's words in it end.
#[derive(Debug, Clone)]
pub struct Reader(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Text(TextReader),
    Harmony(HarmonyReader),
}

impl Reader {
    /// Takes the next piece of text; gives what it settles, in order.
    pub fn text(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        match &mut self.0 {
            Inner::Text(reader) => reader.text(text, &mut parts),
            Inner::Harmony(reader) => reader.text(text, &mut parts),
        }
        parts
    }

    /// Takes a control token, by its name in the vocabulary; gives what it settles.
    pub fn control(&mut self, name: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        match &mut self.0 {
            // Some vocabularies have the tags as control tokens.
            Inner::Text(reader) if TAGS.contains(&name) => reader.text(name, &mut parts),
            Inner::Text(_) => {}
            Inner::Harmony(reader) => reader.control(name, &mut parts),
        }
        parts
    }

    /// The turn has ended: what was held back is settled, and an open call ends.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        match &mut self.0 {
            Inner::Text(reader) => reader.finish(&mut parts),
            Inner::Harmony(reader) => reader.finish(&mut parts),
        }
        parts
    }

    /// Whether text that comes next would be inside a thought. (A Harmony message always says so itself.)
    pub fn in_thought(&self) -> bool {
        match &self.0 {
            Inner::Text(reader) => reader.thoughts.in_thought(),
            Inner::Harmony(_) => false,
        }
    }
}

const TAGS: [&str; 4] = ["<think>", "</think>", "<tool_call>", "</tool_call>"];

/// For protocols that are text throughout.
#[derive(Debug, Clone)]
struct TextReader {
    calls: Calls,
    thoughts: ThoughtSplitter,
    /// Whether a call inside a thought is one.
    calls_in_thoughts: bool,
}

#[derive(Debug, Clone)]
enum Calls {
    None,
    Fenced(CallParser),
    OutputFence(OutputFence),
    Json(TagParser),
    Bare(TagParser),
}

impl TextReader {
    fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        // A mark of a thought ends in `>`: behind one it is known whether calls count.
        for piece in text.split_inclusive('>') {
            if self.thoughts.in_thought() && !self.calls_in_thoughts {
                self.thoughts.push(piece, parts);
                continue;
            }
            match &mut self.calls {
                Calls::None => self.thoughts.push(piece, parts),
                Calls::Fenced(parser) => {
                    let found = parser.push(piece);
                    self.take_fenced(found, parts);
                }
                Calls::OutputFence(parser) => {
                    let found = parser.push(piece);
                    self.take_fenced(found, parts);
                }
                Calls::Json(parser) | Calls::Bare(parser) => {
                    let found = parser.push(piece);
                    self.take_tagged(found, parts);
                }
            }
        }
    }

    fn finish(&mut self, parts: &mut Vec<Part>) {
        match &mut self.calls {
            Calls::None => {}
            Calls::Fenced(parser) => {
                let found = parser.finish();
                self.take_fenced(found, parts);
            }
            Calls::OutputFence(parser) => {
                let found = parser.finish();
                self.take_fenced(found, parts);
            }
            Calls::Json(parser) | Calls::Bare(parser) => {
                let found = parser.finish();
                self.take_tagged(found, parts);
            }
        }
        self.thoughts.flush(parts);
    }

    fn take_fenced(&mut self, found: Vec<Fenced>, parts: &mut Vec<Part>) {
        for part in found {
            match part {
                Fenced::Prose(text) => self.thoughts.push(&text, parts),
                Fenced::Call(code) => self.call(Ok(code), parts),
            }
        }
    }

    fn take_tagged(&mut self, found: Vec<Tagged>, parts: &mut Vec<Part>) {
        for part in found {
            match part {
                Tagged::Text(text) => self.thoughts.push(&text, parts),
                Tagged::Body(body) if matches!(self.calls, Calls::Json(_)) => {
                    self.call(hermes::code_of(&body).map_err(|problem| (body, problem)), parts);
                }
                Tagged::Body(body) => self.call(Ok(bare_code(&body)), parts),
                Tagged::Fence { body, raw } => match hermes::code_of(&body) {
                    Ok(code) => self.call(Ok(code), parts),
                    // JSON of any other kind is something that the model says.
                    Err(_) => self.thoughts.push(&raw, parts),
                },
            }
        }
    }

    fn call(&mut self, call: Result<String, (String, BadCall)>, parts: &mut Vec<Part>) {
        self.thoughts.flush(parts);
        let tool = TOOL.to_string();
        parts.push(match call {
            Ok(code) => Part::Call { tool, code },
            Err((raw, problem)) => Part::BadCall { tool, raw, problem },
        });
    }
}
