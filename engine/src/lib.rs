//! From a GGUF file to tokens: `gguf` (the file) → `model` (hyper-parameters, weights, forward pass) →
//! `backend` (CPU, Vulkan; `kv` says where keys and values lie) → `scheduler` (sequences in batches) → `sampler` → text through `tokenizer`.
//!
//! The engine knows nothing of HTTP, Python or problems.

pub mod backend;
pub mod chat;
mod context;
pub mod drafts;
mod engine;
mod error;
pub mod footprint;
pub mod gguf;
pub mod kv;
pub mod model;
pub mod perplexity;
pub mod quant;
pub mod roofline;
pub mod sampler;
pub mod scheduler;
pub mod synth;
pub mod tokenizer;
pub mod trace;

pub use context::LEAST_CONTEXT;
pub use engine::{BackendChoice, Engine, EngineOptions, OpTime};
pub use error::{Error, RequestError};
