//! Reads what the model writes, token by token: headers, contents, ends. Contents are given out as they come and not
//! kept; a header is bounded by [`MAX_HEADER_BYTES`].
//!
//! A model errs: it leaves out a channel, an end or a start, repeats control tokens, or writes plain text without any
//! header. None of this is an error here. Every input has a reading, the same for every way of cutting text into
//! pieces, and a header that isn't as it should be says what was wrong with it ([`HeaderProblem`]). Called by the
//! solver's Harmony protocol.

use super::message::{Author, Channel};
use super::{Control, HarmonyTokens};
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Longest header, in bytes of text; what is longer was never meant as one.
pub const MAX_HEADER_BYTES: usize = 256;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who writes.
    pub author: Author,
    /// Who is called.
    pub recipient: Option<String>,
    /// What the message is for. `None` is always explained by `problem` where the author is the assistant.
    pub channel: Option<Channel>,
    /// Form of the content, such as `json` or `code`.
    pub content_type: Option<String>,
    /// What is wrong with the header.
    pub problem: Option<HeaderProblem>,
}

/// What can be wrong with a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderProblem {
    /// An assistant's message without a channel.
    #[error("the header names no channel")]
    NoChannel,
    /// A channel that doesn't exist.
    #[error("the header names the channel {found:?}; there are analysis, commentary and final")]
    UnknownChannel {
        /// What it names.
        found: String,
    },
    /// Text where a header should be.
    #[error("there is no header")]
    NoHeader,
    /// No end after [`MAX_HEADER_BYTES`].
    #[error("the header doesn't end within {MAX_HEADER_BYTES} bytes")]
    TooLong,
}

/// What the parser has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message begins.
    Begin(Header),
    /// More of its content; never empty.
    Text(String),
    /// It has ended.
    End(End),
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With `<|end|>`.
    Message,
    /// With `<|call|>`.
    Call,
    /// With `<|return|>`.
    Return,
    /// Without an end token: another message began, or the tokens were used up.
    Cut,
}

/// A piece of the token stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A control token.
    Control(Control),
    /// Any text, cut anywhere.
    Text(&'a str),
}

/// Reads a token stream.
#[derive(Clone, Debug)]
pub struct Parser {
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Between messages.
    Outside,
    Header(Draft),
    Content,
}

/// A header that hasn't ended.
#[derive(Clone, Debug)]
struct Draft {
    /// Known before its text was: the prompt ended in `<|start|>assistant`.
    author: Option<Author>,
    n_bytes: usize,
    before_channel: String,
    channel: Option<String>,
    constrain: Option<String>,
}

impl Draft {
    fn of(author: Option<Author>) -> Draft {
        Draft { author, n_bytes: 0, before_channel: String::new(), channel: None, constrain: None }
    }

    fn in_channel() -> Draft {
        Draft { channel: Some(String::new()), ..Draft::of(Some(Author::Assistant)) }
    }

    /// Takes as much of the text as fits; gives the rest.
    fn push<'t>(&mut self, text: &'t str) -> &'t str {
        let (fits, rest) = text.split_at(text.floor_char_boundary(MAX_HEADER_BYTES - self.n_bytes));
        self.n_bytes += fits.len();
        self.constrain.as_mut().or(self.channel.as_mut()).unwrap_or(&mut self.before_channel).push_str(fits);
        rest
    }

    fn is_header(&self) -> bool {
        let is_role = |word: &str| !matches!(Author::from_name(word), Author::Tool(_));
        let is_known = |word: &str| is_role(word) || word.starts_with("to=");
        self.channel.is_some() || self.constrain.is_some() || self.before_channel.split_whitespace().all(is_known)
    }

    /// Everything that was taken for a header, as it was written.
    fn into_text(self) -> String {
        [Some(self.before_channel), self.channel, self.constrain].into_iter().flatten().collect()
    }

    fn header(&self) -> Header {
        let mut header = Header {
            author: self.author.clone().unwrap_or(Author::Assistant),
            recipient: None,
            channel: None,
            content_type: None,
            problem: None,
        };
        let parts = [Some(&self.before_channel), self.channel.as_ref(), self.constrain.as_ref()];
        let (mut channel, mut n_words) = (None, [0; 3]);
        for (part, text) in parts.into_iter().enumerate() {
            let mut words = text.map_or("", String::as_str).split_whitespace();
            while let Some(word) = words.next() {
                if let Some(recipient) = word.strip_prefix("to=") {
                    let recipient = if recipient.is_empty() { words.next().unwrap_or_default() } else { recipient };
                    header.recipient = Some(recipient.to_owned()).filter(|r| !r.is_empty() && r != "assistant");
                    continue;
                }
                n_words[part] += 1;
                match part {
                    // An author may have a name: `user:Ann`.
                    0 if n_words[0] == 1 => header.author = Author::from_name(word.split(':').next().unwrap_or(word)),
                    1 if n_words[1] == 1 => channel = Some(word),
                    _ => header.content_type = Some(word.to_owned()),
                }
            }
        }
        header.channel = channel.and_then(Channel::from_name);
        header.problem = match channel {
            _ if header.channel.is_some() => None,
            Some(found) => Some(HeaderProblem::UnknownChannel { found: found.to_owned() }),
            None if header.author == Author::Assistant => Some(HeaderProblem::NoChannel),
            None => None,
        };
        header
    }
}

impl Parser {
    /// For a stream that begins between messages.
    pub fn new() -> Parser {
        Parser { state: State::Outside }
    }

    /// For a stream that goes on after `<|start|>` and an author's name, as a model does after its prompt.
    pub fn within_header(author: Author) -> Parser {
        Parser { state: State::Header(Draft::of(Some(author))) }
    }

    /// Takes the next piece; gives what it settles, in order.
    pub fn push(&mut self, item: Item<'_>) -> Vec<Event> {
        let mut events = Vec::new();
        match item {
            Item::Text(text) => self.text(text, &mut events),
            Item::Control(control) => self.control(control, &mut events),
        }
        events
    }

    /// The stream has ended.
    pub fn finish(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.cut(&mut events);
        events
    }

    fn text(&mut self, text: &str, events: &mut Vec<Event>) {
        match &mut self.state {
            State::Content if text.is_empty() => {}
            State::Content => events.push(Event::Text(text.to_owned())),
            State::Header(draft) => {
                let rest = draft.push(text);
                if !rest.is_empty() {
                    let problem = if draft.is_header() { HeaderProblem::TooLong } else { HeaderProblem::NoHeader };
                    self.take_as_content(problem, events);
                    self.text(rest, events);
                }
            }
            State::Outside => {
                let text = text.trim_start();
                if !text.is_empty() {
                    // The start token is missing.
                    self.state = State::Header(Draft::of(None));
                    self.text(text, events);
                }
            }
        }
    }

    fn control(&mut self, control: Control, events: &mut Vec<Event>) {
        match control {
            Control::Start => {
                self.cut(events);
                self.state = State::Header(Draft::of(None));
            }
            Control::Channel => {
                if let State::Header(draft) = &mut self.state {
                    (draft.channel, draft.constrain) = (Some(String::new()), None);
                } else {
                    self.cut(events);
                    self.state = State::Header(Draft::in_channel());
                }
            }
            Control::Constrain => {
                if let State::Header(draft) = &mut self.state {
                    draft.constrain = Some(String::new());
                }
            }
            Control::Message => match std::mem::replace(&mut self.state, State::Content) {
                State::Outside => events.push(Event::Begin(Draft::of(None).header())),
                State::Header(draft) => events.push(Event::Begin(draft.header())),
                State::Content => {}
            },
            Control::End => self.end(End::Message, events),
            Control::Call => self.end(End::Call, events),
            Control::Return => self.end(End::Return, events),
        }
    }

    fn end(&mut self, end: End, events: &mut Vec<Event>) {
        match &self.state {
            State::Outside => return,
            State::Header(draft) if draft.channel.is_some() || draft.constrain.is_some() => {
                // An empty message; a call without arguments is still a call.
                events.push(Event::Begin(draft.header()));
            }
            State::Header(draft) if draft.is_header() => {
                self.state = State::Outside;
                return;
            }
            State::Header(_) => self.take_as_content(HeaderProblem::NoHeader, events),
            State::Content => {}
        }
        events.push(Event::End(end));
        self.state = State::Outside;
    }

    /// Ends what is under way without an end token.
    fn cut(&mut self, events: &mut Vec<Event>) {
        match &self.state {
            State::Content => events.push(Event::End(End::Cut)),
            State::Header(draft) if !draft.is_header() => {
                self.take_as_content(HeaderProblem::NoHeader, events);
                events.push(Event::End(End::Cut));
            }
            State::Header(_) | State::Outside => {}
        }
        self.state = State::Outside;
    }

    /// What looked like a header is the content of a message that has none.
    fn take_as_content(&mut self, problem: HeaderProblem, events: &mut Vec<Event>) {
        if let State::Header(draft) = std::mem::replace(&mut self.state, State::Content) {
            let header = match problem {
                HeaderProblem::NoHeader => Header {
                    author: Author::Assistant,
                    recipient: None,
                    channel: None,
                    content_type: None,
                    problem: None,
                },
                _ => draft.header(),
            };
            events.push(Event::Begin(Header { content_type: None, problem: Some(problem), ..header }));
            events.push(Event::Text(draft.into_text()));
        }
    }
}

impl Default for Parser {
    fn default() -> Self {
        Parser::new()
    }
}

/// A [`Parser`] fed with token ids.
#[derive(Clone, Debug)]
pub struct TokenParser {
    tokens: HarmonyTokens,
    decoder: StreamDecoder,
    parser: Parser,
}

impl TokenParser {
    /// Around a parser.
    pub fn new(tokens: HarmonyTokens, parser: Parser) -> TokenParser {
        TokenParser { tokens, decoder: StreamDecoder::default(), parser }
    }

    /// Takes the next token. Control tokens that aren't Harmony's are skipped; a character that a control token cuts
    /// in two is U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Vec<Event> {
        let Some(control) = self.tokens.control(id) else {
            let text = self.decoder.push(tokenizer, id);
            return self.parser.push(Item::Text(&text));
        };
        let mut events = self.parser.push(Item::Text(&self.decoder.flush()));
        events.extend(self.parser.push(Item::Control(control)));
        events
    }

    /// The stream has ended.
    pub fn finish(&mut self) -> Vec<Event> {
        let mut events = self.parser.push(Item::Text(&self.decoder.flush()));
        events.extend(self.parser.finish());
        events
    }
}
