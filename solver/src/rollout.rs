//! All attempts at one problem, together: one batch a step, Python beside it, the vote watched as answers come.
//!
//! Carries out what each [`Attempt`] asks for. An attempt that waits for Python is out of the batch; one that can't
//! start yet because every sequence is taken starts when one is freed. Ends when the vote is decided, the time is up,
//! the run is interrupted or every attempt has ended. Attempts that ended in an earlier process of the run vote too.
//! Called by `run`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sandbox::Outcome;
use serde::{Deserialize, Serialize};

use crate::attempt::{Action, Attempt, AttemptEnd, MIN_ANSWER_TOKENS};
use crate::clock::Clock;
use crate::model::{LanguageModel, Message, ModelError, ModelEvent, Rendered, SamplerParams};
use crate::options::{SolverOptions, attempt_seed};
use crate::problem::Problem;
use crate::prompt;
use crate::selection::{self, Select, Selection};
use crate::tool::{Interpreter, Workers};
use crate::verify::Verifier;
use crate::vote::{Ballot, StopRule, VoteTable};

/// Solves problems one after the other.
pub struct Solver<'a, M: LanguageModel> {
    /// The model.
    pub model: &'a mut M,
    /// Where code runs.
    pub python: Arc<dyn Interpreter>,
    /// Settings.
    pub options: &'a SolverOptions,
    /// Ends the run early.
    pub cancel: CancelToken,
}

/// When work on a problem ends at the latest.
#[derive(Clone, Copy)]
pub struct Deadline<'c> {
    /// The run's clock.
    pub clock: &'c dyn Clock,
    /// Time on it.
    pub at: Duration,
}

impl Deadline<'_> {
    pub(crate) fn is_over(&self) -> bool {
        self.clock.now() >= self.at
    }
}

/// Asks a run to end; clones share one flag, which may be set from a signal handler.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What became of a problem.
#[derive(Debug)]
pub struct Solved {
    /// All attempts, by number.
    pub attempts: Vec<Attempt>,
    /// Their votes.
    pub votes: VoteTable,
    /// What the model chose between answers that differ, where that was asked for.
    pub selection: Option<Selection>,
    /// Why it ended.
    pub stop: ProblemStop,
    /// Wall-clock time.
    pub elapsed: Duration,
    /// The model's failure, where that ended it. The model can't be used any more.
    pub fault: Option<ModelError>,
}

/// Why work on a problem ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemStop {
    /// Every attempt ended by itself.
    AllEnded,
    /// The vote was decided while attempts were running.
    Unbeatable,
    /// As many attempts agreed as were asked for.
    Agreed,
    /// The problem's time was up.
    TimeUp,
    /// The run was interrupted.
    Cancelled,
    /// The model failed.
    Fault,
    /// It was never begun: the run had ended before.
    NotReached,
}

/// What happens while a problem is worked on. Attempts are given by number, from 1.
#[derive(Debug)]
#[non_exhaustive]
pub enum SolveEvent<'e> {
    /// An attempt has its place in the batch.
    AttemptStarted {
        /// Number.
        attempt: usize,
    },
    /// The model wrote.
    Text {
        /// Attempt.
        attempt: usize,
        /// What it wrote; may be empty.
        text: &'e str,
    },
    /// A block began to run.
    ToolStarted {
        /// Attempt.
        attempt: usize,
        /// The block.
        code: &'e str,
    },
    /// The model was shown something: the output of its code, or a user turn.
    Given {
        /// Attempt.
        attempt: usize,
        /// What.
        text: &'e str,
        /// Whether it is a turn of its own.
        is_user_turn: bool,
    },
    /// A block has run.
    ToolFinished {
        /// Attempt.
        attempt: usize,
        /// Its outcome.
        outcome: &'e Outcome,
    },
    /// An attempt has ended.
    AttemptFinished {
        /// The attempt.
        attempt: &'e Attempt,
    },
    /// A batch step has been worked off.
    Progress {
        /// All attempts.
        attempts: &'e [Attempt],
        /// Tokens that they have written together.
        generated_tokens: usize,
        /// Tokens per second over the last few seconds.
        tokens_per_s: f64,
        /// Time since the problem was begun.
        elapsed: Duration,
    },
}

/// Longest wait for Python when no sequence can run, so that limits and interrupts are seen.
const IDLE_WAIT: Duration = Duration::from_millis(20);

impl<M: LanguageModel> Solver<'_, M> {
    /// Works on one problem until `deadline` at the latest.
    pub fn solve(
        &mut self,
        problem: &Problem,
        deadline: Option<Deadline<'_>>,
        observer: &mut dyn FnMut(SolveEvent<'_>),
    ) -> Solved {
        self.resume(problem, Vec::new(), deadline, observer)
    }

    /// Like [`Solver::solve`], with attempts that have ended already: each takes the place of the one with its number.
    pub fn resume(
        &mut self,
        problem: &Problem,
        ended: Vec<Attempt>,
        deadline: Option<Deadline<'_>>,
        observer: &mut dyn FnMut(SolveEvent<'_>),
    ) -> Solved {
        let started = Instant::now();
        let options = self.options;
        let seeds: Vec<u64> = (1..=options.attempts).map(|n| attempt_seed(options.seed, &problem.id, n)).collect();
        let mut attempts: Vec<Attempt> =
            seeds.iter().zip(1..).map(|(&seed, n)| Attempt::new(n, seed, options)).collect();
        for attempt in ended {
            let i = attempt.number - 1;
            attempts[i] = attempt;
        }
        let mut work = Work {
            model: self.model,
            options,
            opening: prompt::opening(&problem.text, options),
            workers: Workers::new(Arc::clone(&self.python), options.python, seeds.iter().copied()),
            verifier: Verifier::new(Arc::clone(&self.python), options.python, seeds),
            waiting: (0..options.attempts).filter(|&i| attempts[i].end.is_none()).collect(),
            live: HashMap::new(),
            code: vec![None; options.attempts],
            seqs: vec![None; options.attempts],
            verifying: BTreeSet::new(),
            bar: None,
            attempts,
            rate: Rate::default(),
            started,
            observer,
        };
        work.raise_bar();
        let stop = work.run(deadline, &self.cancel);
        let (stop, fault) = match stop {
            Ok(stop) => (stop, None),
            Err(fault) => (ProblemStop::Fault, Some(fault)),
        };
        let end = match (&fault, stop) {
            (Some(fault), _) => AttemptEnd::Error { message: fault.to_string() },
            (None, ProblemStop::TimeUp) => AttemptEnd::TimeUp,
            (None, _) => AttemptEnd::Cancelled,
        };
        for i in std::mem::take(&mut work.verifying) {
            work.finished(i);
        }
        for i in 0..work.attempts.len() {
            if work.attempts[i].end.is_none() {
                work.attempts[i].finish(end.clone());
                work.free(i);
                work.finished(i);
            }
        }
        let (votes, attempts) = (work.votes(), work.attempts);
        let (mut selection, mut stop, mut fault) = (None, stop, fault);
        let may_go_on = !matches!(stop, ProblemStop::Cancelled | ProblemStop::Fault | ProblemStop::TimeUp);
        if options.select == Select::GenSelect && may_go_on {
            match selection::select(self.model, options, problem, &attempts, &votes, (deadline, &self.cancel)) {
                Ok(selected) => selection = selected,
                Err(error) => (stop, fault) = (ProblemStop::Fault, Some(error)),
            }
        }
        Solved { attempts, votes, selection, stop, elapsed: started.elapsed(), fault }
    }
}

/// The state of one problem's batch. Attempts are indexed from 0 here.
struct Work<'w, M: LanguageModel> {
    model: &'w mut M,
    options: &'w SolverOptions,
    /// What every attempt begins with.
    opening: Vec<Message>,
    workers: Workers,
    verifier: Verifier,
    attempts: Vec<Attempt>,
    /// Attempts that have no sequence yet.
    waiting: VecDeque<usize>,
    live: HashMap<M::Seq, usize>,
    /// The block that runs in each attempt.
    code: Vec<Option<String>>,
    seqs: Vec<Option<M::Seq>>,
    /// Attempts that have answered and whose code is being run again: they don't vote yet.
    verifying: BTreeSet<usize>,
    /// Confidence that a running attempt has to keep, where that is asked for.
    bar: Option<f64>,
    rate: Rate,
    started: Instant,
    observer: &'w mut dyn FnMut(SolveEvent<'_>),
}

impl<M: LanguageModel> Work<'_, M> {
    fn run(&mut self, deadline: Option<Deadline<'_>>, cancel: &CancelToken) -> Result<ProblemStop, ModelError> {
        let prompt = self.model.render_chat(&self.opening)?;
        loop {
            if cancel.is_cancelled() {
                return Ok(ProblemStop::Cancelled);
            }
            if deadline.is_some_and(|d| d.is_over()) {
                return Ok(ProblemStop::TimeUp);
            }
            while self.live.len() < self.model.n_seq() {
                let Some(i) = self.waiting.pop_front() else { break };
                let sampling = SamplerParams { seed: self.attempts[i].seed, ..self.options.sampling };
                match self.model.start(&prompt.tokens, &sampling) {
                    Ok(seq) => {
                        self.seqs[i] = Some(seq);
                        self.live.insert(seq, i);
                        self.attempts[i].started(prompt.tokens.len(), prompt.opens_thought);
                        (self.observer)(SolveEvent::AttemptStarted { attempt: i + 1 });
                    }
                    Err(error) => self.end(i, AttemptEnd::Error { message: error.to_string() }),
                }
            }
            let running = self.running();
            if running.is_empty() {
                return Ok(ProblemStop::AllEnded);
            }
            if self.options.stop.is_decided(&self.options.counting(), &self.votes(), &running) {
                let agreed = matches!(self.options.stop, StopRule::FirstK(_));
                return Ok(if agreed { ProblemStop::Agreed } else { ProblemStop::Unbeatable });
            }
            let wait = if self.model.has_work() { Duration::ZERO } else { IDLE_WAIT };
            if let Some((i, verified)) = self.verifier.poll(if self.workers.is_busy() { Duration::ZERO } else { wait })
            {
                self.attempts[i].verified = Some(verified);
                self.verifying.remove(&i);
                self.finished(i);
                continue;
            }
            if let Some((i, outcome)) = self.workers.poll(if self.workers.is_busy() { wait } else { Duration::ZERO }) {
                self.on_outcome(i, outcome);
                continue;
            }
            if self.model.has_work() {
                for event in self.model.step()? {
                    self.on_event(event);
                }
                self.report_progress();
            } else if !self.workers.is_busy() && self.verifying.is_empty() && !self.live.is_empty() {
                return Err(ModelError::Failed("the model has no work although attempts are running".to_string()));
            }
        }
    }

    /// Numbers of the attempts whose vote is still open.
    fn running(&self) -> Vec<usize> {
        let is_open = |&(i, a): &(usize, &Attempt)| a.end.is_none() || self.verifying.contains(&i);
        self.attempts.iter().enumerate().filter(is_open).map(|(_, a)| a.number).collect()
    }

    fn on_event(&mut self, event: ModelEvent<M::Seq>) {
        // A sequence that ended earlier in this batch may have had a token under way.
        let Some(&i) = self.live.get(&event.seq) else { return };
        self.rate.count();
        (self.observer)(SolveEvent::Text { attempt: i + 1, text: &event.text });
        self.attempts[i].confidence.push(event.confidence);
        let mut action = self.attempts[i].on_token(&event.text, event.control.as_deref(), event.logprob);
        if let (Action::Continue, Some(end)) = (&action, event.end) {
            action = self.attempts[i].on_turn_end(end);
        }
        self.act(i, action);
        let window = &self.attempts[i].confidence;
        if self.attempts[i].end.is_none() && window.is_full() && self.bar.is_some_and(|bar| window.mean() < bar) {
            self.end(i, AttemptEnd::Pruned);
        }
    }

    fn on_outcome(&mut self, i: usize, outcome: Outcome) {
        let code = self.code[i].take().unwrap_or_default();
        if self.attempts[i].end.is_none() {
            (self.observer)(SolveEvent::ToolFinished { attempt: i + 1, outcome: &outcome });
            let action = self.attempts[i].on_outcome(code, outcome);
            self.act(i, action);
        }
    }

    fn act(&mut self, i: usize, action: Action) {
        let Some(seq) = self.seqs[i] else { return };
        let result = match action {
            Action::Continue => Ok(()),
            Action::Done => {
                self.leave(i);
                Ok(())
            }
            Action::Run(code) => {
                self.model.pause(seq);
                (self.observer)(SolveEvent::ToolStarted { attempt: i + 1, code: &code });
                self.code[i] = Some(code.clone());
                self.workers.call(i, code);
                Ok(())
            }
            Action::Say(text) => {
                (self.observer)(SolveEvent::Given { attempt: i + 1, text: &text, is_user_turn: false });
                let tokens = self.model.tokenize_text(&text);
                self.append(i, seq, &tokens).map(|fits| {
                    if fits {
                        self.attempts[i].said(tokens.len())
                    }
                })
            }
            Action::Ask(text) => {
                (self.observer)(SolveEvent::Given { attempt: i + 1, text: &text, is_user_turn: true });
                self.model.render_follow_up(&text).and_then(|turn| self.open_turn(i, seq, &turn))
            }
            Action::Return { tool, output, turn_ended } => {
                (self.observer)(SolveEvent::Given { attempt: i + 1, text: &output, is_user_turn: false });
                let turn = self.model.render_result(&tool, &output, turn_ended);
                turn.and_then(|turn| self.open_turn(i, seq, &turn))
            }
            Action::Reopen(turns) => {
                let asked = turns.last().map_or("", |m| m.content.as_str());
                (self.observer)(SolveEvent::Given { attempt: i + 1, text: asked, is_user_turn: true });
                self.reopen(i, seq, &turns)
            }
        };
        if let Err(error) = result {
            self.end(i, AttemptEnd::Error { message: error.to_string() });
        }
    }

    fn open_turn(&mut self, i: usize, seq: M::Seq, turn: &Rendered) -> Result<(), ModelError> {
        if self.append(i, seq, &turn.tokens)? {
            self.attempts[i].turn_opened(turn.tokens.len(), turn.opens_thought);
        }
        Ok(())
    }

    /// Puts a sequence with the conversation so far, as the model is to see it now, in place of an attempt's own.
    fn reopen(&mut self, i: usize, seq: M::Seq, turns: &[Message]) -> Result<(), ModelError> {
        let prompt = self.model.render_chat(&[&self.opening, turns].concat())?;
        self.seqs[i] = None;
        self.live.remove(&seq);
        self.model.release(seq);
        let sampling = SamplerParams { seed: self.attempts[i].seed, ..self.options.sampling };
        let seq = self.model.start(&prompt.tokens, &sampling)?;
        self.seqs[i] = Some(seq);
        self.live.insert(seq, i);
        self.attempts[i].turn_opened(prompt.tokens.len(), prompt.opens_thought);
        Ok(())
    }

    /// Appends where an answer would still fit after it; otherwise the attempt ends.
    fn append(&mut self, i: usize, seq: M::Seq, tokens: &[u32]) -> Result<bool, ModelError> {
        if tokens.len() + MIN_ANSWER_TOKENS > self.model.room(seq) {
            self.end(i, AttemptEnd::ContextFull);
            return Ok(false);
        }
        self.model.append(seq, tokens)?;
        Ok(true)
    }

    fn end(&mut self, i: usize, end: AttemptEnd) {
        self.attempts[i].finish(end);
        self.leave(i);
    }

    /// Frees what an ended attempt holds, and has its answer verified where that is asked for.
    fn leave(&mut self, i: usize) {
        self.free(i);
        self.raise_bar();
        let attempt = &self.attempts[i];
        if let (true, Some(answer)) = (self.options.verify, attempt.answer())
            && self.verifier.begin(i, attempt.codes(), answer)
        {
            self.verifying.insert(i);
            return;
        }
        self.finished(i);
    }

    fn free(&mut self, i: usize) {
        if let Some(seq) = self.seqs[i].take() {
            self.live.remove(&seq);
            self.model.release(seq);
        }
        self.waiting.retain(|&w| w != i);
    }

    fn finished(&mut self, i: usize) {
        (self.observer)(SolveEvent::AttemptFinished { attempt: &self.attempts[i] });
    }

    /// Sets the bar of confidence from the attempts that have ended by themselves.
    fn raise_bar(&mut self) {
        let Some(prune) = self.options.prune else { return };
        let by_itself = |a: &&Attempt| {
            let cut =
                |end: &AttemptEnd| matches!(end, AttemptEnd::Pruned | AttemptEnd::Cancelled | AttemptEnd::Error { .. });
            a.generated_tokens > 0 && a.end.as_ref().is_some_and(|end| !cut(end))
        };
        let lowest: Vec<f64> = self.attempts.iter().filter(by_itself).map(|a| a.confidence.lowest()).collect();
        self.bar = prune.bar(&lowest);
    }

    fn votes(&self) -> VoteTable {
        let ballot = |(i, a): (usize, &Attempt)| {
            let answer = a.answer().filter(|_| !self.verifying.contains(&i))?;
            let (confidence, verified) = (a.confidence.mean(), a.verified == Some(true));
            Some(Ballot { attempt: a.number, answer, confidence, verified })
        };
        self.options.counting().count(self.attempts.iter().enumerate().filter_map(ballot))
    }

    fn report_progress(&mut self) {
        let generated_tokens = self.attempts.iter().map(|a| a.generated_tokens).sum();
        (self.observer)(SolveEvent::Progress {
            attempts: &self.attempts,
            generated_tokens,
            tokens_per_s: self.rate.per_second(),
            elapsed: self.started.elapsed(),
        });
    }
}

/// Tokens per second over a sliding window.
#[derive(Debug, Default)]
struct Rate {
    /// Token counts by the tenth of a second that they came in.
    ticks: VecDeque<(Instant, usize)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_secs(3);
    const TICK: Duration = Duration::from_millis(100);

    fn count(&mut self) {
        let now = Instant::now();
        match self.ticks.back_mut() {
            Some((since, n)) if now - *since < Self::TICK => *n += 1,
            _ => self.ticks.push_back((now, 1)),
        }
        while self.ticks.front().is_some_and(|(since, _)| now - *since > Self::WINDOW) {
            self.ticks.pop_front();
        }
    }

    fn per_second(&self) -> f64 {
        let Some((since, _)) = self.ticks.front() else { return 0.0 };
        let n: usize = self.ticks.iter().map(|(_, n)| n).sum();
        // The first tokens of a window came in at its very beginning: a fraction of a second says nothing.
        n as f64 / since.elapsed().max(Self::TICK).as_secs_f64()
    }
}
