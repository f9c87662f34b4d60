//! Text from tokens that come one by one. A token may end inside a character: the bytes of an unfinished one wait for
//! the next token, so that what is given out is always whole. Held by each sequence of the scheduler.

use super::Tokenizer;

/// Bytes of a character that is not complete yet (at most three).
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// The text that this token completes; empty inside a character, and for control and unused tokens. All texts
    /// and [`Self::flush`] together are what [`Tokenizer::decode`] gives without special tokens.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        match tokenizer.vocab.bytes(id) {
            Some(_) if tokenizer.is_hidden(id) => return String::new(),
            Some(bytes) => self.pending.extend_from_slice(bytes),
            None => self.pending.extend_from_slice("\u{fffd}".as_bytes()),
        }
        let mut text = String::new();
        let mut n_done = 0;
        while n_done < self.pending.len() {
            match std::str::from_utf8(&self.pending[n_done..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    n_done = self.pending.len();
                }
                Err(error) => {
                    let (valid, rest) = self.pending[n_done..].split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                    n_done = self.pending.len() - rest.len();
                    // Without a length the bytes may still become a character.
                    let Some(n_invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    n_done += n_invalid;
                }
            }
        }
        self.pending.drain(..n_done);
        text
    }

    /// What is left at the end: U+FFFD where a character was never finished.
    pub fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}
