//! Servers: what is asked of them, which one is asked next, and what their refusals mean.

use std::io::BufReader;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;

use crate::remote::stream::{self, Piece, StreamError, error_text};

/// Largest answer that isn't a stream.
const MAX_ANSWER_BYTES: u64 = 8 << 20;
/// Longest that one answer is streamed.
const LONGEST_ANSWER: Duration = Duration::from_secs(24 * 3600);

/// A failure of a server, or of the way to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Not an address.
    #[error("endpoint {found:?} isn't an address; expected http://HOST:PORT/v1")]
    Address {
        /// Text given.
        found: String,
    },
    /// No answer at all.
    #[error("{endpoint}: {message}")]
    Unreachable {
        /// The server.
        endpoint: String,
        /// Why.
        message: String,
    },
    /// A refusal.
    #[error("{endpoint} answers with status {status}: {message}")]
    Status {
        /// The server.
        endpoint: String,
        /// HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// A stream that can't be read to its end.
    #[error("{endpoint}: {message}")]
    Stream {
        /// The server.
        endpoint: String,
        /// Why.
        message: String,
    },
    /// Nothing came for too long.
    #[error("{endpoint} has sent nothing for {seconds} s")]
    Slow {
        /// The server.
        endpoint: String,
        /// How long.
        seconds: u64,
    },
    /// It serves other models.
    #[error("{endpoint} doesn't serve {wanted:?}; it has {}", found.join(", "))]
    NoSuchModel {
        /// The server.
        endpoint: String,
        /// Model asked for.
        wanted: String,
        /// Models there are.
        found: Vec<String>,
    },
    /// Every try failed.
    #[error("{n_tries} tries failed, the last one: {last}")]
    GaveUp {
        /// Tries.
        n_tries: u32,
        /// The last failure.
        last: Box<RemoteError>,
    },
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Try again later, or elsewhere.
    Again,
    /// The conversation is too long for the model.
    TooLong,
    /// Ask without log-probabilities.
    NoLogprobs,
    /// This server will never do it.
    Never,
}

impl RemoteError {
    /// What to do about it.
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            // Servers have no common code for this, only words.
            RemoteError::Status { status: 400 | 413 | 422, message, .. } => {
                let message = message.to_lowercase();
                let says = |parts: [&str; 2]| parts.iter().all(|p| message.contains(p));
                if says(["context", "length"]) || says(["context", "size"]) || says(["exceed", "context"]) {
                    Remedy::TooLong
                } else if message.contains("logprob") {
                    Remedy::NoLogprobs
                } else {
                    Remedy::Never
                }
            }
            RemoteError::Status { status: 408 | 425 | 429 | 500..=599, .. } => Remedy::Again,
            RemoteError::Status { .. } | RemoteError::Address { .. } | RemoteError::NoSuchModel { .. } => Remedy::Never,
            _ => Remedy::Again,
        }
    }
}

/// A server.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Address up to and with `/v1`.
    pub base: String,
    /// Requests under way.
    pub n_active: usize,
    /// Not asked before this.
    pub rests_until: Option<Instant>,
    /// Never asked again.
    pub is_dead: bool,
    /// Whether it gives log-probabilities.
    pub logprobs: bool,
}

impl Endpoint {
    pub fn new(address: &str) -> Result<Endpoint, RemoteError> {
        let base = address.trim().trim_end_matches('/');
        let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://")).unwrap_or("");
        let is_address = !host.is_empty() && !host.starts_with('/') && !base.contains(char::is_whitespace);
        if !is_address {
            return Err(RemoteError::Address { found: address.to_string() });
        }
        let base = if host.contains('/') { base.to_string() } else { format!("{base}/v1") };
        Ok(Endpoint { base, n_active: 0, rests_until: None, is_dead: false, logprobs: true })
    }

    /// The server's own root, beside the OpenAI-compatible part.
    pub fn root(&self) -> &str {
        self.base.strip_suffix("/v1").unwrap_or(&self.base)
    }
}

/// The server with least to do among those that can be asked: not dead, rested if any is, `before` in a tie.
pub(super) fn choose(endpoints: &[Endpoint], before: Option<usize>, now: Instant) -> Option<usize> {
    let rests = |e: &Endpoint| e.rests_until.is_some_and(|until| until > now);
    let alive = endpoints.iter().enumerate().filter(|(_, e)| !e.is_dead);
    alive.min_by_key(|(i, e)| (rests(e), e.n_active, Some(*i) != before, *i)).map(|(i, _)| i)
}

/// Asks servers.
#[derive(Debug, Clone)]
pub(super) struct Client {
    agent: Agent,
    key: Option<String>,
}

impl Client {
    /// `patience` is the longest wait for the beginning of an answer.
    pub fn new(key: Option<String>, patience: Duration) -> Client {
        let config = Agent::config_builder()
            .timeout_connect(Some(patience.min(Duration::from_secs(10))))
            .timeout_recv_response(Some(patience))
            .timeout_recv_body(Some(LONGEST_ANSWER))
            .http_status_as_error(false)
            .build();
        Client { agent: Agent::new_with_config(config), key }
    }

    /// A JSON answer, without a body for a question.
    pub fn get(&self, url: &str) -> Result<Value, RemoteError> {
        let mut request = self.agent.get(url);
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        json(url, request.call())
    }

    /// A JSON answer to a JSON question.
    pub fn post(&self, url: &str, body: &Value) -> Result<Value, RemoteError> {
        json(url, self.send(url, body))
    }

    /// A streamed answer to a JSON question; `take` says false to stop.
    pub fn stream(&self, url: &str, body: &Value, take: impl FnMut(Piece) -> bool) -> Result<(), RemoteError> {
        let response = accepted(url, self.send(url, body))?;
        let mut reader = BufReader::new(response.into_body().into_reader());
        stream::read(&mut reader, take).map_err(|e| match e {
            StreamError::Reported(message) => RemoteError::Status { endpoint: url.to_string(), status: 500, message },
            e => RemoteError::Stream { endpoint: url.to_string(), message: e.to_string() },
        })
    }

    fn send(&self, url: &str, body: &Value) -> Result<Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent.post(url).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        request.send(body.to_string())
    }
}

/// The answer, unless it is a refusal.
fn accepted(url: &str, answer: Result<Response<ureq::Body>, ureq::Error>) -> Result<Response<ureq::Body>, RemoteError> {
    let endpoint = url.to_string();
    let mut response =
        answer.map_err(|e| RemoteError::Unreachable { endpoint: endpoint.clone(), message: e.to_string() })?;
    let status = response.status().as_u16();
    if (200..300).contains(&status) {
        return Ok(response);
    }
    let text = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string().unwrap_or_default();
    let message = match serde_json::from_str::<Value>(&text) {
        Ok(value) => error_text(value.get("error").unwrap_or(&value)),
        Err(_) => text.trim().chars().take(200).collect(),
    };
    Err(RemoteError::Status { endpoint, status, message })
}

fn json(url: &str, answer: Result<Response<ureq::Body>, ureq::Error>) -> Result<Value, RemoteError> {
    let mut response = accepted(url, answer)?;
    let failed = |message: String| RemoteError::Stream { endpoint: url.to_string(), message };
    let text = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
    let text = text.map_err(|e| failed(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| failed(format!("it sent what isn't JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_or_refused() {
        for (address, base, root) in [
            ("http://localhost:8080", "http://localhost:8080/v1", "http://localhost:8080"),
            (" http://h:1/v1/ ", "http://h:1/v1", "http://h:1"),
            ("https://host/api/v1", "https://host/api/v1", "https://host/api"),
            ("http://h/openai", "http://h/openai", "http://h/openai"),
        ] {
            let endpoint = Endpoint::new(address).unwrap();
            assert_eq!((endpoint.base.as_str(), endpoint.root()), (base, root), "{address}");
        }
        for address in ["", "localhost:8080", "ftp://x", "http://", "http:///v1", "http://a b"] {
            assert!(matches!(Endpoint::new(address), Err(RemoteError::Address { .. })), "{address}");
        }
    }

    #[test]
    fn the_one_with_least_to_do_is_asked_unless_it_rests() {
        let now = Instant::now();
        let mut all = vec![Endpoint::new("http://a").unwrap(), Endpoint::new("http://b").unwrap()];
        assert_eq!(choose(&all, None, now), Some(0));
        assert_eq!(choose(&all, Some(1), now), Some(1), "its cache holds the conversation");
        all[1].n_active = 1;
        assert_eq!(choose(&all, Some(1), now), Some(0));
        all[0].rests_until = Some(now + Duration::from_secs(1));
        assert_eq!(choose(&all, None, now), Some(1));
        all[1].is_dead = true;
        assert_eq!(choose(&all, None, now), Some(0), "the only one left");
        all[0].is_dead = true;
        assert_eq!(choose(&all, None, now), None);
    }

    #[test]
    fn refusals_have_their_remedies() {
        let status = |status, message: &str| {
            RemoteError::Status { endpoint: "e".to_string(), status, message: message.to_string() }.remedy()
        };
        assert_eq!(status(503, "loading"), Remedy::Again);
        assert_eq!(status(429, "too many"), Remedy::Again);
        assert_eq!(status(401, "who?"), Remedy::Never);
        assert_eq!(status(400, "the request exceeds the available context size"), Remedy::TooLong);
        assert_eq!(status(400, "This model's maximum context length is 4096 tokens"), Remedy::TooLong);
        assert_eq!(status(400, "top_logprobs must be at most 5"), Remedy::NoLogprobs);
        assert_eq!(status(400, "no"), Remedy::Never);
    }
}
