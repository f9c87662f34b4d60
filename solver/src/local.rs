//! The engine's scheduler as a [`LanguageModel`].
//!
//! Owns no sampling and no state of sequences; what a conversation looks like is `conversation`'s business. Called by
//! the command line, which builds the engine.

use engine::scheduler::{EndReason, Scheduler, SeqId};

use crate::confidence;
use crate::conversation::{Chat, ChatSettings};
use crate::model::{LanguageModel, Message, ModelError, ModelEvent, Rendered, SamplerParams, TurnEnd};
use crate::protocol::Protocol;

/// A model on this machine.
pub struct LocalModel {
    scheduler: Scheduler,
    settings: ChatSettings,
}

impl LocalModel {
    /// Takes over a scheduler. The protocol is that of the model's file.
    pub fn new(scheduler: Scheduler) -> LocalModel {
        let protocol = Protocol::of_model(scheduler.engine().gguf().metadata()).protocol;
        LocalModel { scheduler, settings: ChatSettings { protocol, ..ChatSettings::default() } }
    }

    /// Talked to in another way.
    ///
    /// # Errors
    /// The model can't be talked to like that: see [`ChatSettings::check`].
    pub fn with_chat(self, settings: ChatSettings) -> Result<LocalModel, ModelError> {
        let engine = self.scheduler.engine();
        settings.check(engine.tokenizer(), engine.chat_template())?;
        Ok(LocalModel { settings, ..self })
    }

    /// How it calls tools and marks its thinking.
    pub fn protocol(&self) -> Protocol {
        self.settings.protocol
    }

    /// The scheduler, for its statistics and its engine.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Gives the scheduler back, for callers that only want a conversation rendered.
    pub fn into_scheduler(self) -> Scheduler {
        self.scheduler
    }

    fn chat(&self) -> Chat<'_> {
        let engine = self.scheduler.engine();
        Chat { tokenizer: engine.tokenizer(), template: engine.chat_template(), settings: &self.settings }
    }
}

impl LanguageModel for LocalModel {
    type Seq = SeqId;

    fn n_seq(&self) -> usize {
        self.scheduler.engine().n_seq()
    }

    fn n_ctx(&self) -> usize {
        self.scheduler.engine().n_ctx()
    }

    fn render_chat(&self, messages: &[Message]) -> Result<Rendered, ModelError> {
        self.chat().opening(messages)
    }

    fn render_follow_up(&self, user: &str) -> Result<Rendered, ModelError> {
        self.chat().follow_up(user)
    }

    fn render_result(&self, tool: &str, output: &str, turn_ended: bool) -> Result<Rendered, ModelError> {
        self.chat().result(tool, output, turn_ended)
    }

    fn tokenize_text(&self, text: &str) -> Vec<u32> {
        self.scheduler.engine().tokenizer().encode_ordinary(text)
    }

    fn start(&mut self, prompt: &[u32], sampling: &SamplerParams) -> Result<SeqId, ModelError> {
        let params = SamplerParams { n_top_logprobs: confidence::TOP_K, ..*sampling };
        Ok(self.scheduler.start(prompt, &params).map_err(engine::Error::from)?)
    }

    fn append(&mut self, seq: SeqId, tokens: &[u32]) -> Result<(), ModelError> {
        Ok(self.scheduler.append(seq, tokens).map_err(engine::Error::from)?)
    }

    fn pause(&mut self, seq: SeqId) {
        self.scheduler.pause(seq);
    }

    fn release(&mut self, seq: SeqId) {
        self.scheduler.release(seq);
    }

    fn room(&self, seq: SeqId) -> usize {
        self.scheduler.room(seq)
    }

    fn step(&mut self) -> Result<Vec<ModelEvent<SeqId>>, ModelError> {
        let events = self.scheduler.step()?;
        let tokenizer = self.scheduler.engine().tokenizer();
        let name = |token: u32| tokenizer.is_control(token).then(|| tokenizer.decode(&[token], true));
        let event = |e: engine::scheduler::Event| ModelEvent {
            seq: e.seq,
            control: name(e.token),
            text: e.text,
            logprob: e.logprob,
            confidence: confidence::of_token(e.top_logprobs.iter().map(|&(_, logprob)| logprob)),
            end: e.end.map(|end| match end {
                EndReason::EndOfGeneration => TurnEnd::EndOfTurn,
                EndReason::ContextFull => TurnEnd::ContextFull,
            }),
        };
        Ok(events.into_iter().map(event).collect())
    }

    fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }
}
