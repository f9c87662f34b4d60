//! The engine's error type. Variants carry what was found and what was allowed; the command line adds the next step.

use thiserror::Error as ThisError;

/// Anything that can go wrong between a file and its tokens.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The file is not a GGUF file that can be used.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// The file is sound but its model can't be run.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    /// The vocabulary can't be used, or a text or id doesn't fit it.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// The chat template can't be rendered.
    #[error(transparent)]
    Chat(#[from] crate::chat::ChatError),
    /// The Vulkan device refused or failed.
    #[error(transparent)]
    Vulkan(#[from] crate::backend::vulkan::VulkanError),
    /// A request that can't be served within the limits it was given.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// A request that can't be served.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum RequestError {
    /// There is nothing to compute.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The text doesn't fit the context; nothing is cut silently.
    #[error("{found} tokens don't fit the context of {n_ctx} tokens")]
    ContextExceeded {
        /// Tokens that the sequence would have.
        found: usize,
        /// Tokens that it may have.
        n_ctx: usize,
    },
    /// A token id that the vocabulary doesn't have.
    #[error("token {token} is outside the vocabulary of {n_vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Tokens in the vocabulary.
        n_vocab: usize,
    },
    /// All key/value slots are in use.
    #[error("all {n_seq} sequences are in use")]
    NoFreeSequence {
        /// Slots there are.
        n_seq: usize,
    },
    /// Keys or values can't be stored in a type: its blocks would hold elements of two heads.
    #[error(
        "a cache of type {ty} needs heads of a multiple of {} elements; this model's have {head_dim}",
        crate::kv::BLOCK
    )]
    CacheType {
        /// The type that was asked for.
        ty: crate::kv::KvType,
        /// Elements per head.
        head_dim: usize,
    },
    /// The bytes allowed for keys and values don't hold one sequence.
    #[error("a cache of {bytes} bytes is too small: one sequence of this context needs {least}")]
    CacheTooSmall {
        /// Bytes allowed.
        bytes: u64,
        /// Bytes that one sequence needs.
        least: u64,
    },
    /// Sequences that are longer, or more, than the cache's page tables can name.
    #[error(
        "{n_seq} sequences of {n_ctx} tokens are too many for a cache: at most {} tokens in all",
        crate::kv::MAX_PAGES * crate::kv::PAGE
    )]
    CacheTooLarge {
        /// Sequences.
        n_seq: usize,
        /// Tokens of each.
        n_ctx: usize,
    },
    /// The system has no memory for keys and values.
    #[error("no memory for keys and values: {bytes} bytes for those of one layer were refused")]
    CacheMemory {
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// A pass whose tokens or positions can't be counted in 32 bits.
    #[error(
        "a pass of {n_seq} sequences with {n_tokens} tokens each after {depth} others is too large: \
         at most {most} tokens and positions"
    )]
    PassTooLarge {
        /// Sequences.
        n_seq: usize,
        /// Tokens of each.
        n_tokens: usize,
        /// Tokens that each holds before.
        depth: usize,
        /// Tokens of a pass and positions of a sequence that there may be.
        most: usize,
    },
    /// A prompt that would be accounted for in more passes than anybody waits for.
    #[error("a prompt of {n_tokens} tokens in passes of {n_batch} takes {found} passes; at most {most} are counted")]
    TooManyPasses {
        /// Tokens of the prompt.
        n_tokens: usize,
        /// Most tokens of a pass.
        n_batch: usize,
        /// Passes that they make.
        found: usize,
        /// Passes that there may be.
        most: usize,
    },
    /// No page of the cache is left for a pass.
    #[error("all {n_pages} pages of the cache are in use")]
    CacheFull {
        /// Pages there are.
        n_pages: usize,
    },
    /// A sequence is to go on from a position whose sliding windows were given back.
    #[error("position {position} of a sequence of {n_stored} has left a sliding window: it must start over from 0")]
    WindowPassed {
        /// Where it was to go on.
        position: usize,
        /// Positions it has.
        n_stored: usize,
    },
    /// The backend has no kernels for mixtures of experts.
    #[error("this backend can't run mixtures of experts")]
    NoExperts,
    /// A chunk of a text that leaves nothing to predict.
    #[error("a chunk of {found} tokens is too short for a perplexity; the least is {least}")]
    ChunkTooShort {
        /// Tokens per chunk.
        found: usize,
        /// Tokens that it must have.
        least: usize,
    },
    /// A text that is too short for a perplexity.
    #[error("the text has {found} tokens; a perplexity in chunks of {chunk} needs at least {least}")]
    TextTooShort {
        /// Tokens of the text.
        found: usize,
        /// Tokens that it must have.
        least: usize,
        /// Tokens per chunk.
        chunk: usize,
    },
    /// The logits are not numbers: the model or a kernel is broken.
    #[error("the model gave logits that are not finite at position {position}")]
    NotFinite {
        /// Position of the token they belong to.
        position: usize,
    },
}
