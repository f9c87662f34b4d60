//! The tokens of a file: their bytes, kinds and special roles, checked against each other; and the merges built on them.
//!
//! Only normal tokens take part in merges. A merge of or into a control token is left out, so that no spelling of user
//! text can reach one.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};

use super::{TokenizerError, bytes};
use crate::gguf::{Metadata, Strings};

/// What sort of token it is (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Part of text.
    Normal,
    /// Stands for what the vocabulary can't express.
    Unknown,
    /// Steers the model; never text.
    Control,
    /// Text that is always one token, such as `<tool_call>`.
    UserDefined,
    /// Filler that pads the vocabulary to a round size.
    Unused,
}

/// Texts of tokens that end a turn, in whatever vocabulary they occur. They are taken for control tokens even where a
/// converter marked them as something else.
const END_TOKENS: [&str; 13] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_sentence|>",
    "<｜end▁of▁sentence｜>",
    "<|eot|>",
    "<|end_of_turn|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|EOT|>",
];

/// Texts of tokens that give Harmony's messages their structure; control tokens like those above.
const HARMONY_TOKENS: [&str; 4] = ["<|start|>", "<|message|>", "<|channel|>", "<|constrain|>"];

/// Tokens by id and by text.
pub(super) struct Vocab {
    /// Bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// End of each token in `bytes`.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    /// Normal tokens by the bytes that they stand for: what merges work on.
    words: HashMap<Box<[u8]>, u32>,
    /// All others by their name.
    names: HashMap<Box<[u8]>, u32>,
    unencodable: Vec<u8>,
    /// Ascending.
    end_of_generation: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
}

impl Vocab {
    /// Reads tokens, kinds and special ids.
    pub(super) fn from_gguf(m: &Metadata) -> Result<Vocab, TokenizerError> {
        let texts = m.strings("tokenizer.ggml.tokens")?;
        if texts.is_empty() {
            return Err(TokenizerError::Empty);
        }
        let kinds = read_kinds(m, texts)?;
        if let Some(scores) = m.opt_f32s("tokenizer.ggml.scores")? {
            check_count("tokenizer.ggml.scores", scores.len(), texts.len())?;
        }
        let mut vocab = Vocab {
            bytes: Vec::new(),
            ends: Vec::with_capacity(texts.len()),
            kinds,
            words: HashMap::with_capacity(texts.len()),
            names: HashMap::new(),
            unencodable: Vec::new(),
            end_of_generation: Vec::new(),
            bos: special_id(m, "tokenizer.ggml.bos_token_id", texts.len())?,
            eos: special_id(m, "tokenizer.ggml.eos_token_id", texts.len())?,
            eot: special_id(m, "tokenizer.ggml.eot_token_id", texts.len())?,
        };
        for (id, text) in (0u32..).zip(texts.iter()) {
            vocab.push(id, text)?;
        }
        vocab.unencodable = bytes::in_utf8().filter(|byte| !vocab.words.contains_key([*byte].as_slice())).collect();
        let eom = special_id(m, "tokenizer.ggml.eom_token_id", texts.len())?;
        vocab.end_of_generation = vocab.ends_of_generation(eom);
        Ok(vocab)
    }

    /// The merging model over the normal tokens. `whole_words_first`: a word that is a token needs no merges.
    pub(super) fn bpe(&self, merges: &Strings, whole_words_first: bool) -> Result<BPE, TokenizerError> {
        let mut pairs = Vec::with_capacity(merges.len());
        let mut seen = std::collections::HashSet::with_capacity(merges.len());
        for (idx, merge) in merges.iter().enumerate() {
            let (left, right) = merge
                .split_once(' ')
                .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
                .ok_or_else(|| TokenizerError::Merge { idx, merge: merge.to_owned() })?;
            let joined = format!("{left}{right}");
            let mut all_words = true;
            for token in [left, right, &joined] {
                all_words &= self.is_word(token).ok_or_else(|| {
                    let (merge, token) = (merge.to_owned(), token.to_owned());
                    TokenizerError::MergeToken { idx, merge, token }
                })?;
            }
            // The first of equal merges has the better rank.
            if all_words && seen.insert(merge) {
                pairs.push((left.to_owned(), right.to_owned()));
            }
        }
        let words: BpeVocab = self.words.iter().map(|(bytes, id)| (bytes::to_alphabet(bytes), *id)).collect();
        BPE::builder()
            .vocab_and_merges(words, pairs)
            .ignore_merges(whole_words_first)
            .build()
            .map_err(|e| TokenizerError::Merges { problem: e.to_string() })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let idx = id as usize;
        let end = *self.ends.get(idx)? as usize;
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] as usize };
        Some(&self.bytes[start..end])
    }

    pub(super) fn id_of(&self, bytes: &[u8]) -> Option<u32> {
        self.names.get(bytes).or_else(|| self.words.get(bytes)).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, TokenKind, &[u8])> {
        (0u32..).zip(&self.kinds).map(|(id, kind)| (id, *kind, self.bytes(id).expect("one kind per token")))
    }

    pub(super) fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    pub(super) fn unencodable_bytes(&self) -> &[u8] {
        &self.unencodable
    }

    pub(super) fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub(super) fn eos(&self) -> Option<u32> {
        self.eos
    }

    pub(super) fn eot(&self) -> Option<u32> {
        self.eot
    }

    fn push(&mut self, id: u32, text: &str) -> Result<(), TokenizerError> {
        let kind = &mut self.kinds[id as usize];
        if END_TOKENS.contains(&text) || HARMONY_TOKENS.contains(&text) {
            *kind = TokenKind::Control;
        }
        // Only normal tokens are spelled in the byte alphabet. One that isn't is a name like the others.
        let word = if *kind == TokenKind::Normal { bytes::from_alphabet(text) } else { None };
        let map = if word.is_some() { &mut self.words } else { &mut self.names };
        let token = word.unwrap_or_else(|| text.as_bytes().to_vec());
        self.bytes.extend_from_slice(&token);
        self.ends
            .push(u32::try_from(self.bytes.len()).expect("tokens are no longer than a header, which is below 4 GiB"));
        match map.insert(token.into_boxed_slice(), id) {
            Some(first) => Err(TokenizerError::DuplicateToken { text: text.to_owned(), first, second: id }),
            None => Ok(()),
        }
    }

    /// Whether a token, as the file spells it, takes part in merges; `None` when there is no such token.
    fn is_word(&self, spelled: &str) -> Option<bool> {
        if bytes::from_alphabet(spelled).is_some_and(|bytes| self.words.contains_key(bytes.as_slice())) {
            return Some(true);
        }
        self.names.contains_key(spelled.as_bytes()).then_some(false)
    }

    fn ends_of_generation(&self, eom: Option<u32>) -> Vec<u32> {
        let by_text = |text: &str| self.id_of(text.as_bytes());
        let mut ids: Vec<u32> = END_TOKENS.into_iter().filter_map(by_text).collect();
        ids.extend([self.eos, self.eot, eom].into_iter().flatten());
        // In Harmony `<|end|>` ends a message, after which the model goes on with the next channel. Some files
        // nevertheless name it as the end of a turn.
        if by_text("<|return|>").is_some() && by_text("<|call|>").is_some() {
            ids.retain(|id| Some(*id) != by_text("<|end|>"));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn read_kinds(m: &Metadata, texts: &Strings) -> Result<Vec<TokenKind>, TokenizerError> {
    let Some(types) = m.opt_integers("tokenizer.ggml.token_type")? else {
        return Ok(vec![TokenKind::Normal; texts.len()]);
    };
    check_count("tokenizer.ggml.token_type", types.len(), texts.len())?;
    let kind = |(id, found): (u32, &i64)| match found {
        // Undefined, normal and byte tokens (the last belong to other kinds of vocabularies).
        0 | 1 | 6 => Ok(TokenKind::Normal),
        2 => Ok(TokenKind::Unknown),
        3 => Ok(TokenKind::Control),
        4 => Ok(TokenKind::UserDefined),
        5 => Ok(TokenKind::Unused),
        _ => Err(TokenizerError::TokenType { id, found: *found }),
    };
    (0u32..).zip(&types).map(kind).collect()
}

fn check_count(key: &'static str, found: usize, expected: usize) -> Result<(), TokenizerError> {
    if found == expected { Ok(()) } else { Err(TokenizerError::Count { key, found, expected }) }
}

fn special_id(m: &Metadata, key: &'static str, n_vocab: usize) -> Result<Option<u32>, TokenizerError> {
    match m.opt_u32(key)? {
        Some(found) if found as usize >= n_vocab => Err(TokenizerError::SpecialId { key, found, n_vocab }),
        id => Ok(id),
    }
}
