//! GGUF files.

mod types;

pub use types::GgmlType;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {}
