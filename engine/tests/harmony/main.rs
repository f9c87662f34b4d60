//! Harmony: the vocabulary against tiktoken's copy of it, rendering against the published template and by hand, parsing
//! of what models write and of what they shouldn't.

mod parsing;
mod rendering;
mod vocabulary;
