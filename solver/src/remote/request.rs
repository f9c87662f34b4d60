//! What is asked of a server: the body of a request for a sequence's next text, and the server's template where it fills
//! that in. Called by `RemoteModel`.

use serde_json::{Map, Value, json};

use super::endpoint::{Client, Endpoint, RemoteError};
use crate::confidence::TOP_K;
use crate::model::SamplerParams;

/// What was said so far.
pub(super) enum Conversation {
    /// As text.
    Text(String),
    /// As messages, and the assistant's turn as far as it has come.
    Messages { messages: Vec<Value>, turn: String },
}

/// What a request asks for.
pub(super) fn request_body(
    model: &str,
    said: &Conversation,
    sampling: &SamplerParams,
    max_tokens: usize,
    logprobs: bool,
) -> Value {
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| body.insert(name.to_string(), value);
    set("model", model.into());
    set("stream", true.into());
    set("max_tokens", max_tokens.into());
    set("temperature", f64::from(sampling.temperature).into());
    set("top_p", f64::from(sampling.top_p).into());
    // Every server takes 31 bits.
    set("seed", (sampling.seed & 0x7fff_ffff).into());
    // These aren't OpenAI's: only servers that need them are sent them.
    if sampling.top_k > 0 {
        set("top_k", sampling.top_k.into());
    }
    if sampling.min_p > 0.0 {
        set("min_p", f64::from(sampling.min_p).into());
    }
    if sampling.repeat_penalty != 1.0 {
        set("repeat_penalty", f64::from(sampling.repeat_penalty).into());
        set("repetition_penalty", f64::from(sampling.repeat_penalty).into());
        set("repeat_last_n", sampling.repeat_last_n.into());
    }
    match said {
        Conversation::Text(text) => {
            set("prompt", text.as_str().into());
            if logprobs {
                set("logprobs", TOP_K.into());
            }
        }
        Conversation::Messages { messages, turn } => {
            let mut messages = messages.clone();
            if !turn.is_empty() {
                // A request that broke off goes on behind what was said.
                messages.push(json!({ "role": "assistant", "content": turn }));
                set("continue_final_message", true.into());
                set("add_generation_prompt", false.into());
            }
            set("messages", messages.into());
            if logprobs {
                set("logprobs", true.into());
                set("top_logprobs", TOP_K.into());
            }
        }
    }
    Value::Object(body)
}

/// What stands before and behind the text of a user's turn that follows an assistant's, by the server's template.
pub(super) fn around_user(client: &Client, endpoint: &Endpoint) -> Result<(String, String), RemoteError> {
    const MARKS: [&str; 3] = ["\u{e0a1}0\u{e0a1}", "\u{e0a1}1\u{e0a1}", "\u{e0a1}2\u{e0a1}"];
    let url = format!("{}/apply-template", endpoint.root());
    let [question, answer, user] = MARKS;
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let messages = [message("user", question), message("assistant", answer), message("user", user)];
    let text = prompt_of(&url, &client.post(&url, &json!({ "messages": messages }))?)?;
    let parts = text.split_once(answer).and_then(|(_, after)| after.split_once(user));
    parts.map(|(before, behind)| (before.to_string(), behind.to_string())).ok_or_else(|| RemoteError::Stream {
        endpoint: url,
        message: "its template leaves out the assistant's turn".to_string(),
    })
}

pub(super) fn prompt_of(url: &str, answer: &Value) -> Result<String, RemoteError> {
    let prompt = answer.get("prompt").and_then(Value::as_str).map(str::to_string);
    prompt.ok_or_else(|| RemoteError::Stream { endpoint: url.to_string(), message: "it gives no prompt".to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_only_what_was_asked_for() {
        let sampling = SamplerParams { top_k: 0, min_p: 0.0, seed: u64::MAX, ..SamplerParams::default() };
        let body = request_body("m", &Conversation::Text("p".to_string()), &sampling, 5, true);
        assert_eq!((&body["prompt"], &body["logprobs"], &body["seed"]), (&"p".into(), &20.into(), &0x7fff_ffff.into()));
        assert!(body.get("top_k").is_none() && body.get("min_p").is_none() && body.get("repeat_penalty").is_none());
        let said =
            Conversation::Messages { messages: vec![json!({ "role": "user", "content": "?" })], turn: "So".into() };
        let body = request_body("m", &said, &SamplerParams::default(), 5, false);
        assert_eq!(body["messages"][1], json!({ "role": "assistant", "content": "So" }));
        assert_eq!((&body["continue_final_message"], body.get("logprobs")), (&true.into(), None));
    }
}
