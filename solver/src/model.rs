//! What a rollout needs from a language model, and nothing more: sequences that are started, stepped together,
//! appended to, paused and released.
//!
//! Implemented by `local` (the engine's scheduler) and by `testing::ScriptedModel`. The core of the solver sees
//! only this trait, so it knows neither tensors nor devices.

use std::fmt::Debug;
use std::hash::Hash;

use engine::chat::harmony::HarmonyError;
pub use engine::chat::{Message, ToolCall};
pub use engine::sampler::SamplerParams;

/// A language model that serves many sequences, one batch a step.
pub trait LanguageModel {
    /// Names a live sequence.
    type Seq: Copy + Eq + Hash + Debug;

    /// Most sequences that live at once.
    fn n_seq(&self) -> usize;
    /// Tokens that one sequence holds.
    fn n_ctx(&self) -> usize;
    /// The conversation in the model's own template, up to where the assistant's turn begins. Contents can't spell
    /// control tokens.
    fn render_chat(&self, messages: &[Message]) -> Result<Rendered, ModelError>;
    /// What follows an assistant's turn that the model has ended itself: the rest of the turn's closing, a user turn
    /// that says `user`, the opening of the next assistant turn.
    fn render_follow_up(&self, user: &str) -> Result<Rendered, ModelError>;
    /// A tool's turn with its output, and the opening of the assistant's next one. `turn_ended`: the model has ended its
    /// turn itself; otherwise that is done here.
    fn render_result(&self, tool: &str, output: &str, turn_ended: bool) -> Result<Rendered, ModelError>;
    /// Plain text to tokens; special tokens that the text spells stay text.
    fn tokenize_text(&self, text: &str) -> Vec<u32>;
    /// Begins a sequence. Refuses a prompt that doesn't fit and a sequence too many.
    fn start(&mut self, prompt: &[u32], sampling: &SamplerParams) -> Result<Self::Seq, ModelError>;
    /// Adds tokens that the model didn't write, and resumes the sequence.
    fn append(&mut self, seq: Self::Seq, tokens: &[u32]) -> Result<(), ModelError>;
    /// Takes a sequence out of the batch until something is appended.
    fn pause(&mut self, seq: Self::Seq);
    /// Ends a sequence and frees its place.
    fn release(&mut self, seq: Self::Seq);
    /// Tokens that still fit a sequence.
    fn room(&self, seq: Self::Seq) -> usize;
    /// One pass over the batch: at most one token per sequence. Empty where only prompts were worked on.
    fn step(&mut self) -> Result<Vec<ModelEvent<Self::Seq>>, ModelError>;
    /// Whether a step would do anything.
    fn has_work(&self) -> bool;
}

/// Template output, ready to be computed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// Tokens.
    pub tokens: Vec<u32>,
    /// Whether the template itself has opened a thought (`<think>`), so that the model's text begins inside it.
    pub opens_thought: bool,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelEvent<Seq> {
    /// Its sequence.
    pub seq: Seq,
    /// Text that became complete with it; may be empty.
    pub text: String,
    /// Its name where it is a control token, which comes after the text.
    pub control: Option<String>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// How peaked the distribution was that it was drawn from, see [`crate::confidence`]; 0 where that isn't known.
    pub confidence: f32,
    /// Set on the last token of a turn.
    pub end: Option<TurnEnd>,
}

/// Why the model stopped writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    /// It ended its turn; its end token is part of the sequence.
    EndOfTurn,
    /// No further token fits.
    ContextFull,
}

/// A model's refusal or failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The conversation doesn't fit Harmony, or the model doesn't speak it.
    #[error(transparent)]
    Harmony(#[from] HarmonyError),
    /// The template and the protocol know no reasoning effort.
    #[error("this model can't be told how long to think: only Harmony models and templates with reasoning_effort can")]
    NoReasoningEffort,
    /// More tokens than the context holds.
    #[error("{tokens} tokens don't fit: the context holds {room}")]
    TooLong {
        /// Tokens to hold.
        tokens: usize,
        /// Tokens that fit.
        room: usize,
    },
    /// Every place is taken.
    #[error("all {n_seq} sequences are in use")]
    NoFreeSequence {
        /// Places there are.
        n_seq: usize,
    },
    /// From a server.
    #[error(transparent)]
    Remote(Box<crate::remote::RemoteError>),
    /// The model stopped working.
    #[error("{0}")]
    Failed(String),
}
