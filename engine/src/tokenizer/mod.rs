//! Text to token ids and back, by the vocabulary in a GGUF file: byte-level BPE (`tokenizer.ggml.model` = `gpt2`) with
//! the pre-tokenizers of [`PreTokenizer`]. Merging is the `tokenizers` crate's; cutting the text into words, control
//! tokens and bytes is ours.
//!
//! Refused: other vocabulary kinds, unknown pre-tokenizers, tables of different lengths, merges and ids that point
//! outside the vocabulary. Called by the engine, the scheduler and the command line. Text is never normalised: what is
//! encoded comes back byte for byte, though Qwen's own tokenizer applies NFC first.

mod bytes;
mod special;
mod split;
mod stream;
mod vocab;

use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use crate::gguf::{GgufError, Metadata};
use special::Specials;
pub use split::PreTokenizer;
use split::Splitter;
pub use stream::StreamDecoder;
pub use vocab::TokenKind;
use vocab::Vocab;

/// Longest word, in bytes, that is merged as one; longer ones are cut. Merging takes some 200 bytes of memory per byte
/// of a word, so this bounds it. No natural text has such words, and a cut one still decodes to the same bytes.
const MAX_WORD_BYTES: usize = 1 << 17;

/// A vocabulary ready to encode and decode. Shared between threads by reference.
pub struct Tokenizer {
    vocab: Vocab,
    bpe: BPE,
    splitter: Splitter,
    specials: Specials,
    add_bos: bool,
}

impl Tokenizer {
    /// Reads the vocabulary of a file.
    ///
    /// # Errors
    /// What keeps the vocabulary from being used, naming the key or token.
    pub fn from_gguf(m: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let model = m.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::Model { found: model.to_owned() });
        }
        let pre = m.opt_str("tokenizer.ggml.pre")?.unwrap_or_default();
        let pre = PreTokenizer::from_name(pre).ok_or_else(|| TokenizerError::PreTokenizer {
            found: pre.to_owned(),
            known: PreTokenizer::known_names(),
        })?;
        let vocab = Vocab::from_gguf(m)?;
        let bpe = vocab.bpe(m.strings("tokenizer.ggml.merges")?, pre.whole_words_first())?;
        let specials = Specials::new(&vocab)?;
        let asked_for_bos = m.opt_bool("tokenizer.ggml.add_bos_token")?;
        if asked_for_bos == Some(true) && vocab.bos().is_none() {
            return Err(TokenizerError::NoBos);
        }
        let add_bos = asked_for_bos.unwrap_or(pre.adds_bos());
        Ok(Tokenizer { vocab, bpe, splitter: Splitter::new(pre), specials, add_bos })
    }

    /// Ids of a text. No BOS is added.
    ///
    /// With `parse_special`, control tokens spelled in the text become those tokens: for text of our own making, such
    /// as a rendered chat template. Without it they stay text, whatever a user writes. Tokens that the vocabulary marks
    /// as user-defined (such as `<tool_call>`) are matched in both cases. Of several matches at one place the longest
    /// wins.
    pub fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        let mut plain_start = 0;
        for (range, id) in self.specials.find(text, parse_special) {
            self.encode_plain(&text[plain_start..range.start], &mut ids);
            ids.push(id);
            plain_start = range.end;
        }
        self.encode_plain(&text[plain_start..], &mut ids);
        ids
    }

    /// Ids of a text that nobody vouches for: no special token of any kind comes out of it, whatever it spells.
    pub fn encode_ordinary(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        self.encode_plain(text, &mut ids);
        ids
    }

    /// Ids of a text, after BOS where the file asks for it (`tokenizer.ggml.add_bos_token`; where that is absent, the
    /// `llama-bpe` family has it) and the text doesn't begin with it.
    pub fn encode_with_bos(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let mut ids = self.encode(text, parse_special);
        if let Some(bos) = self.bos()
            && self.add_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// The bytes that a token stands for: part of a text, not always whole characters. For control, user-defined and
    /// unused tokens, the token's name in UTF-8.
    ///
    /// # Errors
    /// The id is not in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>, TokenizerError> {
        let bytes = self.vocab.bytes(id);
        bytes.map(<[u8]>::to_vec).ok_or_else(|| TokenizerError::Id { found: id, n_vocab: self.n_vocab() })
    }

    /// Text of ids. Control and unused tokens are left out unless `render_special`. Bytes that are not UTF-8 and ids
    /// outside the vocabulary become U+FFFD.
    pub fn decode(&self, ids: &[u32], render_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            match self.vocab.bytes(*id) {
                Some(piece) if render_special || !self.is_hidden(*id) => bytes.extend_from_slice(piece),
                Some(_) => {}
                None => bytes.extend_from_slice("\u{fffd}".as_bytes()),
            }
        }
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// A decoder for tokens that come one by one.
    pub fn stream(&self) -> StreamDecoder {
        StreamDecoder::default()
    }

    /// Whether the token steers the model and is no text (`<|im_start|>`, the unknown token). False outside the
    /// vocabulary.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.vocab.kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// Whether a model that writes this token has finished its turn: the file's end-of-sequence, -turn and -message
    /// tokens, and the well-known ones (`<|im_end|>`, `<|eot_id|>`, `<|endoftext|>`, …) that its vocabulary holds.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocab.end_of_generation().contains(&id)
    }

    /// Every token of which [`Self::is_end_of_generation`] is true, in ascending order.
    pub fn end_of_generation(&self) -> &[u32] {
        self.vocab.end_of_generation()
    }

    /// Number of tokens; ids are below it.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos()
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos()
    }

    /// End of turn, where the file names one.
    pub fn eot(&self) -> Option<u32> {
        self.vocab.eot()
    }

    /// Whether [`Self::encode_with_bos`] adds a BOS.
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos().is_some()
    }

    /// What sort of token this is; `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.vocab.kind(id)
    }

    /// The id of a token by the text that it stands for, such as `<|im_end|>` or `" the"`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id_of(text.as_bytes())
    }

    /// Name of the pre-tokenizer (`tokenizer.ggml.pre`).
    pub fn pre_tokenizer(&self) -> &str {
        self.splitter.pre().name()
    }

    /// Bytes that no token stands for, though UTF-8 uses them. They are dropped from encoded text, as there is no way
    /// to tell them to the model. Empty for all but carelessly trained vocabularies.
    pub fn unencodable_bytes(&self) -> &[u8] {
        self.vocab.unencodable_bytes()
    }

    /// Text without special tokens: words, then merges.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        self.splitter.split(text, &mut |word| {
            let mut rest = word;
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(rest.floor_char_boundary(MAX_WORD_BYTES));
                let tokens = self.bpe.tokenize(&bytes::to_alphabet(head.as_bytes()));
                let tokens = tokens.expect("a BPE model without dropout and unknown token has no way to fail");
                ids.extend(tokens.iter().map(|token| token.id));
                rest = tail;
            }
        });
    }

    /// Whether the token leaves no trace in text.
    fn is_hidden(&self, id: u32) -> bool {
        self.is_control(id) || self.vocab.kind(id) == Some(TokenKind::Unused)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (n_vocab, pre) = (self.n_vocab(), self.pre_tokenizer());
        f.debug_struct("Tokenizer").field("n_vocab", &n_vocab).field("pre", &pre).finish_non_exhaustive()
    }
}

/// Why a vocabulary can't be used, or an id doesn't fit it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named and the messages say what they are")]
pub enum TokenizerError {
    /// A key of the vocabulary is missing or of the wrong type.
    #[error("vocabulary: {0}")]
    Metadata(#[from] GgufError),
    /// Not byte-level BPE.
    #[error("the vocabulary is of kind `{found}` (tokenizer.ggml.model); supported: gpt2 (byte-level BPE)")]
    Model { found: String },
    /// A pre-tokenizer that is not known here, or none.
    #[error("the pre-tokenizer is `{found}` (tokenizer.ggml.pre); known: {known}")]
    PreTokenizer { found: String, known: String },
    /// No tokens.
    #[error("the vocabulary is empty (tokenizer.ggml.tokens)")]
    Empty,
    /// Two tables of the vocabulary have different lengths.
    #[error("`{key}` has {found} entries; the vocabulary has {expected} tokens")]
    Count { key: &'static str, found: usize, expected: usize },
    /// Two tokens with one text.
    #[error("the tokens {first} and {second} are both `{text}`")]
    DuplicateToken { text: String, first: u32, second: u32 },
    /// An id in `tokenizer.ggml.token_type` that has no meaning.
    #[error("token {id} has the type {found} (tokenizer.ggml.token_type); allowed: 0 to 6")]
    TokenType { id: u32, found: i64 },
    /// A merge that is not two words with a space between them.
    #[error("merge {idx} is `{merge}` (tokenizer.ggml.merges); expected two tokens with one space between them")]
    Merge { idx: usize, merge: String },
    /// A merge of or into something that is no token.
    #[error("merge {idx}, `{merge}`, needs the token `{token}`, which is not in the vocabulary")]
    MergeToken { idx: usize, merge: String, token: String },
    /// A special token's id outside the vocabulary.
    #[error("`{key}` is {found}; the vocabulary has {n_vocab} tokens")]
    SpecialId { key: &'static str, found: u32, n_vocab: usize },
    /// A BOS is asked for and there is none.
    #[error("tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing")]
    NoBos,
    /// The search for special tokens can't be built.
    #[error("the special tokens can't be searched for: {problem}")]
    Specials { problem: String },
    /// The merges can't be used, for a reason that the checks above don't cover.
    #[error("the merges can't be used: {problem}")]
    Merges { problem: String },
    /// An id outside the vocabulary.
    #[error("the token id {found} is outside the vocabulary of {n_vocab} tokens")]
    Id { found: u32, n_vocab: usize },
}
