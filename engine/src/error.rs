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
    Request(#[from] crate::scheduler::RequestError),
}
