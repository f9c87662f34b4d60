//! Chat templates: the Jinja program in a GGUF file that turns messages into the text its model was trained on.
//!
//! Templates are written for Hugging Face's Python environment; what they use of it is provided: methods of Python's
//! strings and dicts, `raise_exception`, `strftime_now`, `tojson` as `json.dumps` writes it, loop controls, the
//! `generation` tag. A template is a program from an untrusted file: its length, the work it does and the memory it
//! makes are bounded, and since the parser recurses into long expressions, it runs on a thread with a large stack.
//! Called by the engine (once, at load) and by whoever makes prompts.

mod clock;
pub mod harmony;
mod json;
mod methods;
mod program;

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind};
use regex::Regex;

use crate::gguf::{GgufError, Metadata};
use crate::tokenizer::Tokenizer;
pub use clock::Clock;

/// Longest template. The longest published ones take some 20 kB.
pub const MAX_SOURCE_BYTES: usize = 128 << 10;
/// Longest tag (`{{ … }}` or `{% … %}`), text in quotes not counted. The parser's work grows with the square of it.
pub const MAX_TAG_BYTES: usize = 4 << 10;
/// Work that a template may do whatever its input: one unit is an instruction or 64 bytes of data.
const BASE_FUEL: u64 = 1_000_000;
/// Further work for each message.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// Stack of the thread that parses and renders. Expressions and values nest as deep as a tag and the work allow, a level
/// under 2 kB. Memory is only taken as far as it is used.
const STACK_BYTES: usize = 256 << 20;
const NAME: &str = "chat template";

/// A file's chat template, parsed.
pub struct ChatTemplate {
    source: String,
    /// The source as minijinja can parse it.
    parseable: String,
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// What an assistant thought before it, as templates know it by `thinking` or `reasoning_content`; empty = nothing.
    pub thinking: String,
    /// Tools that an assistant's message calls.
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool in an assistant's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool.
    pub name: String,
    /// Its arguments: an object for tools with a schema, a string for those that take text.
    pub arguments: serde_json::Value,
}

impl Message {
    /// A message of that role.
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.to_owned(), content: content.into(), thinking: String::new(), tool_calls: Vec::new() }
    }

    /// The message as templates see it. What is empty is left out, since templates ask what there is.
    fn to_value(&self) -> Value {
        let mut fields = vec![("role", Value::from(self.role.as_str())), ("content", self.content.as_str().into())];
        if !self.thinking.is_empty() {
            fields.extend(["thinking", "reasoning_content"].map(|key| (key, self.thinking.as_str().into())));
        }
        if !self.tool_calls.is_empty() {
            let function = |call: &ToolCall| {
                Value::from_pairs([("name", call.name.as_str().into()), ("arguments", json::to_value(&call.arguments))])
            };
            let call = |call| Value::from_pairs([("type", Value::from("function")), ("function", function(call))]);
            fields.push(("tool_calls", self.tool_calls.iter().map(call).collect()));
        }
        Value::from_pairs(fields)
    }

    fn text_bytes(&self) -> usize {
        let call_bytes = |call: &ToolCall| call.name.len() + call.arguments.to_string().len();
        self.role.len()
            + self.content.len()
            + self.thinking.len()
            + self.tool_calls.iter().map(call_bytes).sum::<usize>()
    }
}

impl ChatTemplate {
    /// The template of a file (`tokenizer.chat_template`), or `None` where it has none.
    ///
    /// # Errors
    /// The template is no string, too long, or no valid Jinja.
    pub fn from_gguf(m: &Metadata, t: &Tokenizer) -> Result<Option<ChatTemplate>, ChatError> {
        let text_of = |id: Option<u32>| id.map(|id| t.decode(&[id], true)).unwrap_or_default();
        match m.opt_str("tokenizer.chat_template")? {
            Some(source) if !source.trim().is_empty() => {
                ChatTemplate::new(source, &text_of(t.bos()), &text_of(t.eos())).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Parses a template. `bos` and `eos` are the texts of those tokens, empty where there are none.
    ///
    /// # Errors
    /// The template is too long or no valid Jinja.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, ChatError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(ChatError::TooLong { bytes: source.len(), limit: MAX_SOURCE_BYTES });
        }
        if let Some((line, bytes)) = longest_tag(source).filter(|(_, bytes)| *bytes > MAX_TAG_BYTES) {
            return Err(ChatError::LongTag { line, bytes, limit: MAX_TAG_BYTES });
        }
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(methods::call);
        environment.add_filter("tojson", json::tojson);
        // Python iterates over strings, and templates tell text from parts by the order in which they ask.
        environment.add_test("iterable", |value: &Value| value.as_str().is_some() || value.try_iter().is_ok());
        environment.add_function("raise_exception", raise_exception);
        program::install(&mut environment);
        Clock::default().install(&mut environment);
        let parseable = without_generation_tags(source);
        on_large_stack(|| program::compile(&parseable).map(|_| ()))?.map_err(|e| ChatError::Syntax {
            line: e.line().unwrap_or(0),
            problem: e.detail().map_or_else(|| e.kind().to_string(), str::to_owned),
        })?;
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(ChatTemplate { source, parseable, environment, bos, eos })
    }

    /// The same template with another idea of today's date, for `strftime_now`.
    pub fn with_clock(mut self, clock: Clock) -> ChatTemplate {
        clock.install(&mut self.environment);
        self
    }

    /// Renders a conversation. `add_generation_prompt` ends it where the model is to go on. `extra` is an object of
    /// further variables such as `tools`, `enable_thinking` or `reasoning_effort`, or null.
    ///
    /// The text may hold control tokens, those of the template and any that a message spells: who must keep users from
    /// forging them encodes the messages' text apart.
    ///
    /// # Errors
    /// The template refuses the conversation ([`ChatError::Refused`]), fails, or takes more work than a template may.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &serde_json::Value,
    ) -> Result<String, ChatError> {
        let mut variables = vec![("tools".to_owned(), Value::from(())), ("documents".to_owned(), Value::from(()))];
        match extra {
            serde_json::Value::Null => {}
            serde_json::Value::Object(map) => {
                variables.extend(map.iter().map(|(key, value)| (key.clone(), json::to_value(value))));
            }
            other => return Err(ChatError::Extra { found: json::type_name(other) }),
        }
        variables.extend([
            ("messages".to_owned(), messages.iter().map(Message::to_value).collect()),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ("bos_token".to_owned(), Value::from(self.bos.as_str())),
            ("eos_token".to_owned(), Value::from(self.eos.as_str())),
        ]);
        let text_bytes: usize = messages.iter().map(Message::text_bytes).sum();
        let fuel = BASE_FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + text_bytes as u64;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        // Errors hold values of the template, which may be nested so deep that dropping them needs the large stack too.
        on_large_stack(move || {
            let rendered = program::run(&environment, &self.parseable, Value::from_pairs(variables));
            rendered.map_err(|e| ChatError::from_render(&e, fuel))
        })?
    }

    /// The template as the file has it.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source_bytes", &self.source.len()).finish_non_exhaustive()
    }
}

/// Why a chat template can't be used, or doesn't take a conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named and the messages say what they are")]
pub enum ChatError {
    /// The key of the template has another type.
    #[error("chat template: {0}")]
    Metadata(#[from] GgufError),
    /// Longer than any sensible template.
    #[error("the chat template has {bytes} bytes; the limit is {limit}")]
    TooLong { bytes: usize, limit: usize },
    /// A tag longer than any sensible one.
    #[error("the chat template has a tag of {bytes} bytes in line {line}; the limit is {limit}")]
    LongTag { line: usize, bytes: usize, limit: usize },
    /// No valid Jinja.
    #[error("the chat template can't be parsed: line {line}: {problem}")]
    Syntax { line: usize, problem: String },
    /// The template called `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    Refused { message: String },
    /// The template failed.
    #[error("the chat template fails: line {line}: {problem}")]
    Render { line: usize, problem: String },
    /// The template does more work than it may.
    #[error("the chat template takes more than {limit} steps; it is broken or hostile")]
    TooMuchWork { limit: u64 },
    /// The further variables are not an object.
    #[error("the template's variables are {found}; expected an object")]
    Extra { found: &'static str },
    /// There is no memory for the thread that runs templates.
    #[error("the chat template's thread can't be started: {0}")]
    Thread(std::io::Error),
}

impl ChatError {
    /// The innermost cause says what is wrong: errors inside macros are wrapped in errors of their callers.
    fn from_render(error: &minijinja::Error, fuel: u64) -> ChatError {
        let mut innermost = error;
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if let Some(Refusal(message)) = cause.downcast_ref() {
                return ChatError::Refused { message: message.clone() };
            }
            innermost = cause.downcast_ref().unwrap_or(innermost);
            source = cause.source();
        }
        if innermost.kind() == ErrorKind::OutOfFuel {
            return ChatError::TooMuchWork { limit: fuel };
        }
        let problem = match innermost.detail() {
            Some(detail) => format!("{}: {detail}", innermost.kind()),
            None => innermost.kind().to_string(),
        };
        ChatError::Render { line: innermost.line().unwrap_or(0), problem }
    }
}

/// What a template said through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
}

/// Hugging Face's `generation` tag marks what a model is trained on; it has no effect on the text. It becomes a block
/// that is always taken.
fn without_generation_tags(source: &str) -> String {
    let tag = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("the pattern is valid");
    tag.replace_all(source, |found: &regex::Captures| {
        let statement = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &found[1], &found[3])
    })
    .into_owned()
}

/// Line and length of the longest tag, text in quotes not counted. A tag that doesn't end is counted to the end.
fn longest_tag(source: &str) -> Option<(usize, usize)> {
    let bytes = source.as_bytes();
    let (mut longest, mut at) = (None, 0);
    while at + 1 < bytes.len() {
        at += match &bytes[at..at + 2] {
            b"{{" | b"{%" => {
                let (n_counted, n_read) = measure_tag(&bytes[at + 2..]);
                longest = longest.max(Some((n_counted, at)));
                2 + n_read
            }
            b"{#" => source[at + 2..].find("#}").map_or(bytes.len(), |n| n + 4),
            _ => 1,
        };
    }
    longest.map(|(n_counted, start)| (1 + bytes[..start].iter().filter(|byte| **byte == b'\n').count(), n_counted))
}

/// Bytes outside quotes, and bytes in all, of the tag whose inside starts here.
fn measure_tag(inside: &[u8]) -> (usize, usize) {
    let (mut n_counted, mut n_open_braces, mut quote) = (0, 0usize, None);
    let mut i = 0;
    while i < inside.len() {
        match (quote, inside[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, b'}' | b'%') if n_open_braces == 0 && inside.get(i + 1) == Some(&b'}') => return (n_counted, i + 2),
            (None, byte) => {
                n_counted += 1;
                match byte {
                    b'{' => n_open_braces += 1,
                    b'}' => n_open_braces = n_open_braces.saturating_sub(1),
                    _ => {}
                }
            }
        }
        i += 1;
    }
    (n_counted, inside.len())
}

/// Runs `work` on a thread whose stack is deep enough for any template of [`MAX_SOURCE_BYTES`].
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ChatError> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES);
        let handle = builder.spawn_scoped(scope, work).map_err(ChatError::Thread)?;
        Ok(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
