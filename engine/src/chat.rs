//! Chat templates.

/// Why a chat template can't be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {}
