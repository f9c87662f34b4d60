//! Tokenizer.

/// Why a vocabulary, text or id can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {}
