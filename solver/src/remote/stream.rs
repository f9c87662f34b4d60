//! One streamed answer of a server: server-sent events to pieces of text with their probabilities.
//!
//! Understands `/v1/chat/completions` and `/v1/completions`, with log-probabilities in the form of either. Bounded: a
//! line that is too long, bytes that are no UTF-8 and JSON that isn't any are errors, never a panic.

use std::io::{BufRead, Read};

use serde_json::Value;

use crate::confidence;

/// Longest event that is taken: a token with its twenty alternatives takes a few kilobytes.
const MAX_EVENT_BYTES: u64 = 1 << 20;

/// What a stream says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Text, of one token as a rule.
    Text { text: String, is_thought: bool, logprob: f32, confidence: f32 },
    /// The turn is over; `length`: because nothing more fits.
    End { length: bool },
}

/// Why a stream can't be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the connection broke off: {0}")]
    Cut(String),
    #[error("it sent what isn't JSON: {0}")]
    Json(String),
    #[error("it reports: {0}")]
    Reported(String),
}

/// Reads events until the turn's end; `take` says false to stop.
pub(super) fn read(reader: &mut impl BufRead, mut take: impl FnMut(Piece) -> bool) -> Result<(), StreamError> {
    let mut line = Vec::new();
    let mut ended = false;
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_EVENT_BYTES).read_until(b'\n', &mut line);
        let n_bytes = read.map_err(|e| StreamError::Cut(e.to_string()))?;
        if n_bytes == 0 {
            return if ended {
                Ok(())
            } else {
                Err(StreamError::Cut("it ended in the middle of the answer".to_string()))
            };
        }
        if line.last() != Some(&b'\n') && n_bytes as u64 == MAX_EVENT_BYTES {
            return Err(StreamError::Json(format!("an event of more than {MAX_EVENT_BYTES} bytes")));
        }
        let text = std::str::from_utf8(&line).map_err(|e| StreamError::Json(e.to_string()))?.trim();
        // Comments, other fields and blank lines between events say nothing.
        let Some(data) = text.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            if !ended {
                take(Piece::End { length: false });
            }
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).map_err(|e| StreamError::Json(e.to_string()))?;
        if let Some(error) = event.get("error").filter(|e| !e.is_null()) {
            return Err(StreamError::Reported(error_text(error)));
        }
        for piece in pieces(&event) {
            ended |= matches!(piece, Piece::End { .. });
            if !take(piece) {
                return Ok(());
            }
        }
    }
}

/// The message of an error object, however it is built.
pub(super) fn error_text(error: &Value) -> String {
    let message = error.get("message").or_else(|| error.get("error")).unwrap_or(error);
    let text = message.as_str().map_or_else(|| message.to_string(), str::to_string);
    text.chars().take(500).collect()
}

fn pieces(event: &Value) -> Vec<Piece> {
    let mut all = Vec::new();
    let Some(choice) = event.get("choices").and_then(|c| c.get(0)) else { return all };
    let field = |of: &Value, name: &str| of.get(name).and_then(Value::as_str).unwrap_or("").to_string();
    let delta = choice.get("delta").unwrap_or(&Value::Null);
    let thought = [field(delta, "reasoning_content"), field(delta, "reasoning")].into_iter().find(|t| !t.is_empty());
    let text = [field(delta, "content"), field(choice, "text")].into_iter().find(|t| !t.is_empty());
    let (logprob, confidence) = probabilities(choice.get("logprobs").unwrap_or(&Value::Null));
    for (text, is_thought) in [(thought, true), (text, false)] {
        all.extend(text.map(|text| Piece::Text { text, is_thought, logprob, confidence }));
    }
    if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
        all.push(Piece::End { length: reason == "length" });
    }
    all
}

/// The last token's log-probability and its confidence; 0 where the server doesn't say.
fn probabilities(logprobs: &Value) -> (f32, f32) {
    let number = |v: &Value| v.as_f64().map(|x| x as f32);
    if let Some(token) = logprobs.get("content").and_then(Value::as_array).and_then(|all| all.last()) {
        let top = token.get("top_logprobs").and_then(Value::as_array).into_iter().flatten();
        let top = top.filter_map(|t| number(t.get("logprob")?));
        return (token.get("logprob").and_then(number).unwrap_or(0.0), confidence::of_token(top));
    }
    let last = |name: &str| logprobs.get(name).and_then(Value::as_array).and_then(|all| all.last());
    let top = last("top_logprobs").and_then(Value::as_object).into_iter().flat_map(|map| map.values());
    (last("token_logprobs").and_then(number).unwrap_or(0.0), confidence::of_token(top.filter_map(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> (Vec<Piece>, Result<(), StreamError>) {
        let mut pieces = Vec::new();
        let result = read(&mut text.as_bytes(), |p| {
            pieces.push(p);
            true
        });
        (pieces, result)
    }

    fn said(text: &str, is_thought: bool) -> Piece {
        Piece::Text { text: text.to_string(), is_thought, logprob: 0.0, confidence: 0.0 }
    }

    #[test]
    fn chats_and_completions_give_text_thoughts_and_the_end() {
        let (pieces, result) = all(
            ": hello\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\r\n\r\n\
             data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"é\"},\"finish_reason\":null}]}\n\n\
             data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\ndata: {\"choices\":[],\"usage\":{}}\n\ndata: [DONE]\n\n",
        );
        assert_eq!(pieces, [said("hm", true), said("é", false), Piece::End { length: true }]);
        assert_eq!(result, Ok(()));
        let (pieces, _) = all("data: {\"choices\":[{\"text\":\"a\"}]}\ndata: [DONE]\n");
        assert_eq!(pieces, [said("a", false), Piece::End { length: false }]);
    }

    #[test]
    fn probabilities_are_read_in_both_forms() {
        let new = r#"data: {"choices":[{"delta":{"content":"x"},"logprobs":{"content":[{"logprob":-0.5,"top_logprobs":[{"logprob":-0.5},{"logprob":-3.5}]}]},"finish_reason":"stop"}]}"#;
        let old = r#"data: {"choices":[{"text":"x","logprobs":{"token_logprobs":[-0.5],"top_logprobs":[{"x":-0.5,"y":-3.5}]},"finish_reason":"stop"}]}"#;
        for event in [new, old] {
            let (pieces, result) = all(event);
            let text = Piece::Text { text: "x".to_string(), is_thought: false, logprob: -0.5, confidence: 2.0 };
            assert_eq!((pieces, result), (vec![text, Piece::End { length: false }], Ok(())));
        }
    }

    #[test]
    fn what_breaks_off_or_makes_no_sense_is_an_error() {
        let event = "data: {\"choices\":[{\"text\":\"a\"}]}\n";
        let (pieces, result) = all(event);
        assert_eq!(pieces.len(), 1);
        assert!(matches!(result, Err(StreamError::Cut(_))), "{result:?}");
        assert!(matches!(all("data: {\"choi").1, Err(StreamError::Json(_))));
        assert!(matches!(all(&format!("data: {}", "[".repeat(100_000))).1, Err(StreamError::Json(_))));
        assert!(matches!(all(&format!("data: \"{}", "x".repeat(2 << 20))).1, Err(StreamError::Json(_))));
        assert!(matches!(read(&mut &b"data: \xff\n"[..], |_| true), Err(StreamError::Json(_))));
        let (_, result) = all("data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n");
        assert_eq!(result, Err(StreamError::Reported("out of memory".to_string())));
        for event in ["data: 5\n", "data: {\"choices\":{}}\n", "data: {\"choices\":[{\"text\":7,\"logprobs\":[]}]}\n"] {
            assert_eq!(all(event).0, [], "{event}");
        }
    }
}
