//! A model behind an OpenAI-compatible server, or behind several, as a [`LanguageModel`]: for those who have outgrown one
//! machine and keep the solver and the sandbox. Every sequence is one streamed request at a time.
//!
//! Two ways to talk. [`Api::Completions`] holds the conversation as text in the model's own template, which llama.cpp's
//! server fills in, so a tool's output stands inside the model's turn. [`Api::Chat`] works everywhere: output comes as a
//! user's turn, and a request that broke off goes on behind what was said. There is no tokenizer here: four bytes of text
//! pass for a token where lengths are counted. Called by the command line.

mod endpoint;
mod packing;
mod request;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use endpoint::RemoteError;

use crate::conversation::tool_schema;
use crate::model::{LanguageModel, Message, ModelError, ModelEvent, Rendered, SamplerParams, TurnEnd};
use crate::prompt;
use endpoint::{Client, Endpoint, Remedy, choose};
use packing::{BYTES_PER_TOKEN, Kind, defused, pack, rendered, unpack};
use request::{Conversation, around_user, prompt_of, request_body};
use stream::Piece;

/// How a server is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`, with the template of llama.cpp's server.
    Completions,
}

/// Which servers, and how they are used.
#[derive(Debug, Clone)]
pub struct RemoteSettings {
    /// Addresses, such as `http://localhost:8080/v1`.
    pub endpoints: Vec<String>,
    /// Model; the first that the servers have where it isn't given.
    pub model: Option<String>,
    /// How to talk; found out where it isn't given.
    pub api: Option<Api>,
    /// Sequences at once.
    pub n_seq: usize,
    /// Tokens of context; the server is asked where it isn't given.
    pub n_ctx: Option<usize>,
    /// Longest silence.
    pub patience: Duration,
    /// Tries of one request.
    pub max_tries: u32,
    /// Sent with every request.
    pub key: Option<String>,
    /// What the model is told of the Python tool, where its protocol lists tools.
    pub tool: Option<String>,
}

/// Context where nobody says how long it is.
const DEFAULT_CTX: usize = 32_768;
/// Longest wait for the next piece before the caller looks at its clock again.
const WAIT: Duration = Duration::from_millis(20);
/// Rest of a server after its first failure; doubled with each more.
const REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// A model behind servers.
pub struct RemoteModel {
    client: Client,
    endpoints: Vec<Endpoint>,
    name: String,
    api: Api,
    /// What stands around a user's turn that follows the assistant's, in completions.
    around_user: (String, String),
    n_ctx: usize,
    n_seq: usize,
    patience: Duration,
    max_tries: u32,
    tool: Option<String>,
    seqs: BTreeMap<u64, Seq>,
    next: u64,
    sender: Sender<Delivery>,
    deliveries: Receiver<Delivery>,
}

struct Seq {
    sampling: SamplerParams,
    conversation: Conversation,
    /// Bytes of the conversation, and of what was written since.
    n_bytes: usize,
    running: bool,
    request: Option<Request>,
    queue: VecDeque<Piece>,
    in_thought: bool,
    endpoint: Option<usize>,
    n_tries: u32,
    retry_at: Option<Instant>,
}

struct Request {
    id: u64,
    endpoint: usize,
    cancelled: Arc<AtomicBool>,
    last: Instant,
}

struct Delivery {
    seq: u64,
    request: u64,
    what: Result<Piece, RemoteError>,
}

impl RemoteModel {
    /// Asks every server for its models; all must have the same one.
    pub fn connect(settings: RemoteSettings) -> Result<RemoteModel, RemoteError> {
        let client = Client::new(settings.key, settings.patience);
        let endpoints = settings.endpoints.iter().map(|e| Endpoint::new(e)).collect::<Result<Vec<_>, _>>()?;
        let mut name = settings.model;
        let mut n_ctx = settings.n_ctx;
        for endpoint in &endpoints {
            let models = client.get(&format!("{}/models", endpoint.base))?;
            let models: Vec<&Value> = models.get("data").and_then(Value::as_array).into_iter().flatten().collect();
            let id = |m: &&Value| m.get("id").and_then(Value::as_str).map(str::to_string);
            let found: Vec<String> = models.iter().filter_map(id).collect();
            let wanted = name.clone().or_else(|| found.first().cloned()).unwrap_or_default();
            let Some(at) = found.iter().position(|m| *m == wanted) else {
                return Err(RemoteError::NoSuchModel { endpoint: endpoint.base.clone(), wanted, found });
            };
            let longest = models[at].get("max_model_len").and_then(Value::as_u64);
            // llama.cpp's server says it elsewhere.
            let props = || client.get(&format!("{}/props", endpoint.root())).ok();
            let longest = longest.or_else(|| props()?.get("default_generation_settings")?.get("n_ctx")?.as_u64());
            let longest = longest.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
            if settings.n_ctx.is_none() {
                n_ctx = [n_ctx, longest].into_iter().flatten().min();
            }
            name = Some(wanted);
        }
        let template = |endpoint: &Endpoint| around_user(&client, endpoint);
        let (api, around_user) = match settings.api {
            Some(Api::Chat) => (Api::Chat, None),
            Some(Api::Completions) => (Api::Completions, Some(template(&endpoints[0])?)),
            None => match endpoints.iter().map(template).collect::<Result<Vec<_>, _>>() {
                Ok(mut all) => (Api::Completions, all.pop()),
                Err(_) => (Api::Chat, None),
            },
        };
        let (sender, deliveries) = channel();
        Ok(RemoteModel {
            client,
            endpoints,
            name: name.unwrap_or_default(),
            api,
            around_user: around_user.unwrap_or_default(),
            n_ctx: n_ctx.unwrap_or(DEFAULT_CTX),
            n_seq: settings.n_seq,
            patience: settings.patience,
            max_tries: settings.max_tries.max(1),
            tool: settings.tool,
            seqs: BTreeMap::new(),
            next: 0,
            sender,
            deliveries,
        })
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the servers are talked to.
    pub fn api(&self) -> Api {
        self.api
    }

    /// Addresses of the servers.
    pub fn addresses(&self) -> Vec<&str> {
        self.endpoints.iter().map(|e| e.base.as_str()).collect()
    }

    /// What the model is told of the tool, where its protocol lists tools.
    pub fn set_tool(&mut self, tool: Option<String>) {
        self.tool = tool;
    }

    /// The messages as they are sent: contents can't spell control tokens, tools stand in the first.
    fn messages(&self, messages: &[Message]) -> Vec<Value> {
        let mut all: Vec<(String, String)> =
            messages.iter().map(|m| (m.role.clone(), defused(m.content.trim()))).collect();
        if let (Some(tool), Some((_, first))) = (&self.tool, all.first_mut()) {
            *first = format!("{first}\n\n{}", prompt::tool_listing(&tool_schema(tool).to_string()));
        }
        all.into_iter().map(|(role, content)| json!({ "role": role, "content": content })).collect()
    }

    fn user_turn(&self, user: &str) -> Rendered {
        let user = defused(user.trim());
        let text = match self.api {
            Api::Completions => format!("{}{user}{}", self.around_user.0, self.around_user.1),
            Api::Chat => user,
        };
        rendered(Kind::Turn, &text)
    }

    /// Begins the request of a sequence that has none.
    fn launch(&mut self, seq: u64) -> Result<(), RemoteError> {
        let now = Instant::now();
        let entry = self.seqs.get_mut(&seq).expect("it is a live sequence");
        let Some(at) = choose(&self.endpoints, entry.endpoint, now) else {
            let last = RemoteError::Unreachable {
                endpoint: self.endpoints[0].base.clone(),
                message: "no endpoint can be used any more".to_string(),
            };
            return Err(last);
        };
        let endpoint = &mut self.endpoints[at];
        endpoint.n_active += 1;
        entry.endpoint = Some(at);
        entry.retry_at = None;
        let room = self.n_ctx.saturating_sub(entry.n_bytes.div_ceil(BYTES_PER_TOKEN)).max(1);
        let body = request_body(&self.name, &entry.conversation, &entry.sampling, room, endpoint.logprobs);
        let path = if self.api == Api::Chat { "chat/completions" } else { "completions" };
        let url = format!("{}/{path}", endpoint.base);
        let id = self.next;
        self.next += 1;
        let cancelled = Arc::new(AtomicBool::new(false));
        entry.request = Some(Request { id, endpoint: at, cancelled: cancelled.clone(), last: now });
        let (client, sender) = (self.client.clone(), self.sender.clone());
        let work = move || {
            let deliver = |what| sender.send(Delivery { seq, request: id, what }).is_ok();
            let result = client.stream(&url, &body, |piece| !cancelled.load(Ordering::Relaxed) && deliver(Ok(piece)));
            if let Err(error) = result {
                deliver(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name(format!("remote-{seq}")).spawn(work);
        if let Err(error) = thread {
            let message = format!("no thread for a request: {error}");
            self.sender
                .send(Delivery {
                    seq,
                    request: id,
                    what: Err(RemoteError::Stream { endpoint: url_of(self, at), message }),
                })
                .ok();
        }
        Ok(())
    }

    /// Takes a delivery, unless it comes from a request that was given up.
    fn take(&mut self, delivery: Delivery) -> Result<(), RemoteError> {
        let Some(seq) = self.seqs.get_mut(&delivery.seq) else { return Ok(()) };
        let Some(request) = seq.request.as_mut().filter(|r| r.id == delivery.request) else { return Ok(()) };
        match delivery.what {
            Ok(piece) => {
                request.last = Instant::now();
                seq.n_tries = 0;
                self.endpoints[request.endpoint].rests_until = None;
                if matches!(piece, Piece::End { .. }) {
                    self.drop_request(delivery.seq);
                }
                self.seqs.get_mut(&delivery.seq).expect("it was just there").queue.push_back(piece);
                Ok(())
            }
            Err(error) => self.failed(delivery.seq, error),
        }
    }

    /// A request has failed: it is made again, later or elsewhere, unless that is hopeless.
    fn failed(&mut self, seq: u64, error: RemoteError) -> Result<(), RemoteError> {
        let at = self.drop_request(seq);
        let entry = self.seqs.get_mut(&seq).expect("it is a live sequence");
        let remedy = error.remedy();
        match (remedy, at) {
            (Remedy::TooLong, _) => {
                entry.queue.push_back(Piece::End { length: true });
                return Ok(());
            }
            (Remedy::NoLogprobs, Some(at)) => self.endpoints[at].logprobs = false,
            (Remedy::Never, Some(at)) => self.endpoints[at].is_dead = true,
            _ => {}
        }
        entry.n_tries += 1;
        let n_tries = entry.n_tries;
        if n_tries >= self.max_tries || self.endpoints.iter().all(|e| e.is_dead) {
            return Err(RemoteError::GaveUp { n_tries, last: Box::new(error) });
        }
        let now = Instant::now();
        let rest = REST.saturating_mul(1 << (n_tries - 1).min(10)).min(LONGEST_REST);
        if let (Remedy::Again, Some(at)) = (remedy, at) {
            self.endpoints[at].rests_until = Some(now + rest);
        }
        let another = self.endpoints.iter().any(|e| !e.is_dead && e.rests_until.is_none_or(|until| until <= now));
        entry.retry_at = (!another).then(|| now + rest);
        Ok(())
    }

    /// Gives up the request of a sequence; the server sees the connection close. Gives its server.
    fn drop_request(&mut self, seq: u64) -> Option<usize> {
        let request = self.seqs.get_mut(&seq)?.request.take()?;
        request.cancelled.store(true, Ordering::Relaxed);
        self.endpoints[request.endpoint].n_active -= 1;
        Some(request.endpoint)
    }

    /// What has come is taken; nothing is waited for while something is there.
    fn collect(&mut self) -> Result<(), RemoteError> {
        let has_piece = self.seqs.values().any(|s| s.running && !s.queue.is_empty());
        if !has_piece && let Ok(delivery) = self.deliveries.recv_timeout(WAIT) {
            self.take(delivery)?;
        }
        while let Ok(delivery) = self.deliveries.try_recv() {
            self.take(delivery)?;
        }
        let silent = |s: &Seq| s.request.as_ref().is_some_and(|r| r.last.elapsed() > self.patience);
        let late: Vec<u64> = self.seqs.iter().filter(|(_, s)| silent(s)).map(|(&seq, _)| seq).collect();
        for seq in late {
            let at = self.seqs[&seq].request.as_ref().map_or(0, |r| r.endpoint);
            let error = RemoteError::Slow { endpoint: url_of(self, at), seconds: self.patience.as_secs() };
            self.failed(seq, error)?;
        }
        Ok(())
    }
}

fn url_of(model: &RemoteModel, endpoint: usize) -> String {
    model.endpoints[endpoint].base.clone()
}

impl LanguageModel for RemoteModel {
    type Seq = u64;

    fn n_seq(&self) -> usize {
        self.n_seq
    }

    fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    fn render_chat(&self, messages: &[Message]) -> Result<Rendered, ModelError> {
        let messages = self.messages(messages);
        if self.api == Api::Chat {
            return Ok(rendered(Kind::Turn, &Value::from(messages).to_string()));
        }
        let url = format!("{}/apply-template", self.endpoints[0].root());
        let answer = self.client.post(&url, &json!({ "messages": messages }));
        let answer = match (answer, messages.as_slice()) {
            // Some templates have no system turn: what it says goes before the first question.
            (Err(RemoteError::Status { .. }), [system, user, rest @ ..]) if system["role"] == "system" => {
                let text = |m: &Value| m["content"].as_str().unwrap_or("").to_string();
                let first = json!({ "role": "user", "content": format!("{}\n\n{}", text(system), text(user)) });
                let merged: Vec<Value> = std::iter::once(first).chain(rest.iter().cloned()).collect();
                self.client.post(&url, &json!({ "messages": merged }))
            }
            (answer, _) => answer,
        };
        Ok(rendered(Kind::Turn, &prompt_of(&url, &answer?)?))
    }

    fn render_follow_up(&self, user: &str) -> Result<Rendered, ModelError> {
        Ok(self.user_turn(user))
    }

    fn render_result(&self, _: &str, output: &str, _: bool) -> Result<Rendered, ModelError> {
        Ok(self.user_turn(&format!("<tool_response>\n{output}\n</tool_response>")))
    }

    fn tokenize_text(&self, text: &str) -> Vec<u32> {
        pack(Kind::Said, &defused(text))
    }

    fn start(&mut self, prompt: &[u32], sampling: &SamplerParams) -> Result<u64, ModelError> {
        if self.seqs.len() >= self.n_seq {
            return Err(ModelError::NoFreeSequence { n_seq: self.n_seq });
        }
        if prompt.len() >= self.n_ctx {
            return Err(ModelError::TooLong { tokens: prompt.len(), room: self.n_ctx });
        }
        let (_, text) = unpack(prompt);
        let conversation = match self.api {
            Api::Completions => Conversation::Text(text),
            Api::Chat => {
                let messages = serde_json::from_str(&text).map_err(|e| ModelError::Failed(e.to_string()))?;
                Conversation::Messages { messages, turn: String::new() }
            }
        };
        let seq = self.next;
        self.next += 1;
        let entry = Seq {
            sampling: *sampling,
            conversation,
            n_bytes: prompt.len() * BYTES_PER_TOKEN,
            running: true,
            request: None,
            queue: VecDeque::new(),
            in_thought: false,
            endpoint: None,
            n_tries: 0,
            retry_at: None,
        };
        self.seqs.insert(seq, entry);
        Ok(seq)
    }

    fn append(&mut self, seq: u64, tokens: &[u32]) -> Result<(), ModelError> {
        let room = self.room(seq);
        if tokens.len() > room {
            return Err(ModelError::TooLong { tokens: tokens.len(), room });
        }
        self.drop_request(seq);
        let entry = self.seqs.get_mut(&seq).expect("it is a live sequence");
        let (_, text) = unpack(tokens);
        entry.n_bytes += text.len();
        entry.queue.clear();
        entry.in_thought = false;
        entry.running = true;
        match &mut entry.conversation {
            Conversation::Text(all) => all.push_str(&text),
            Conversation::Messages { messages, turn } => {
                let said = std::mem::take(turn);
                if !said.is_empty() {
                    messages.push(json!({ "role": "assistant", "content": said }));
                }
                messages.push(json!({ "role": "user", "content": text }));
            }
        }
        Ok(())
    }

    fn pause(&mut self, seq: u64) {
        self.drop_request(seq);
        let entry = self.seqs.get_mut(&seq).expect("it is a live sequence");
        entry.queue.clear();
        entry.running = false;
    }

    fn release(&mut self, seq: u64) {
        self.drop_request(seq);
        self.seqs.remove(&seq);
    }

    fn room(&self, seq: u64) -> usize {
        self.n_ctx.saturating_sub(self.seqs[&seq].n_bytes.div_ceil(BYTES_PER_TOKEN))
    }

    fn step(&mut self) -> Result<Vec<ModelEvent<u64>>, ModelError> {
        let now = Instant::now();
        let waits =
            |s: &Seq| s.running && s.request.is_none() && s.queue.is_empty() && s.retry_at.is_none_or(|at| at <= now);
        let due: Vec<u64> = self.seqs.iter().filter(|(_, s)| waits(s)).map(|(&seq, _)| seq).collect();
        for seq in due {
            self.launch(seq)?;
        }
        self.collect()?;
        let mut events = Vec::new();
        for (&seq, entry) in self.seqs.iter_mut().filter(|(_, s)| s.running) {
            let Some(piece) = entry.queue.pop_front() else { continue };
            let mut event =
                ModelEvent { seq, text: String::new(), control: None, logprob: 0.0, confidence: 0.0, end: None };
            match piece {
                Piece::Text { text, is_thought, logprob, confidence } => {
                    (event.logprob, event.confidence) = (logprob, confidence);
                    let mark = match (entry.in_thought, is_thought) {
                        (false, true) => "<think>",
                        (true, false) => "</think>",
                        _ => "",
                    };
                    entry.in_thought = is_thought;
                    event.text = format!("{mark}{text}");
                }
                Piece::End { length } => {
                    if std::mem::take(&mut entry.in_thought) {
                        event.text = "</think>".to_string();
                    }
                    event.end = Some(if length { TurnEnd::ContextFull } else { TurnEnd::EndOfTurn });
                    entry.running = false;
                }
            }
            entry.n_bytes += event.text.len();
            match &mut entry.conversation {
                Conversation::Text(all) => all.push_str(&event.text),
                Conversation::Messages { turn, .. } => turn.push_str(&event.text),
            }
            events.push(event);
        }
        Ok(events)
    }

    fn has_work(&self) -> bool {
        self.seqs.values().any(|s| s.running)
    }
}

impl From<RemoteError> for ModelError {
    fn from(error: RemoteError) -> ModelError {
        ModelError::Remote(Box::new(error))
    }
}
