//! From the events of a run to lines of its journal. Text is collected for a second or a kilobyte, so that a line isn't
//! spent on every token; what ends an attempt or a problem is synced before anything else happens.
//!
//! A journal that can't be written never ends a run: the first failure of a series is given back as a warning, and
//! [`Recorder::finish`] says in the end whether anything is missing. Called by `run`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Clock;
use crate::journal::{Entry, Event, Header, Journal, JournalError};
use crate::report::{AttemptReport, RunEnd};
use crate::rollout::SolveEvent;
use crate::run::RunEvent;

/// Longest time that text is held back, and longest time between two syncs while something is written.
const HOLD: Duration = Duration::from_secs(1);
/// Most text that is held back.
const HOLD_BYTES: usize = 1024;

/// Writes a run's events.
pub struct Recorder {
    journal: Journal,
    clock: Arc<dyn Clock>,
    /// Text by attempt that hasn't been written yet, of the problem that is worked on.
    held: BTreeMap<usize, Held>,
    index: usize,
    last_sync: Duration,
    failing: bool,
}

struct Held {
    since: Duration,
    text: String,
    tokens: usize,
}

impl Recorder {
    /// Begins the journal of a new run.
    pub fn begin(journal: Journal, clock: Arc<dyn Clock>, header: Header) -> Result<Recorder, JournalError> {
        let mut recorder = Recorder::new(journal, clock);
        recorder.write(Event::RunStarted(Box::new(header)), true)?;
        Ok(recorder)
    }

    /// Goes on with the journal of a run.
    pub fn resume(journal: Journal, clock: Arc<dyn Clock>, backend: &str) -> Result<Recorder, JournalError> {
        let mut recorder = Recorder::new(journal, clock);
        recorder.write(Event::RunResumed { unix_s: unix_s(), backend: backend.to_string() }, true)?;
        Ok(recorder)
    }

    fn new(journal: Journal, clock: Arc<dyn Clock>) -> Recorder {
        let last_sync = clock.now();
        Recorder { journal, clock, held: BTreeMap::new(), index: 0, last_sync, failing: false }
    }

    /// Writes an event. A message comes back where the journal has just become unwritable.
    pub fn record(&mut self, event: &RunEvent<'_>) -> Option<String> {
        match self.try_record(event) {
            Ok(()) => {
                self.failing = self.journal.is_behind();
                None
            }
            Err(error) => (!std::mem::replace(&mut self.failing, true)).then(|| error.to_string()),
        }
    }

    /// Writes the end of the run; an error says that the journal isn't whole.
    pub fn finish(&mut self, end: &RunEnd) -> Result<(), JournalError> {
        self.release(|_| true)?;
        self.write(Event::RunFinished { end: end.clone() }, true)
    }

    fn try_record(&mut self, event: &RunEvent<'_>) -> Result<(), JournalError> {
        match event {
            RunEvent::ProblemStarted { index, problem, budget } => {
                self.index = *index;
                let event = Event::ProblemStarted {
                    index: *index,
                    id: problem.id.clone(),
                    text: problem.text.clone(),
                    expected: problem.answer,
                    budget_ms: budget.map(|b| u64::try_from(b.as_millis()).unwrap_or(u64::MAX)),
                };
                self.write(event, true)
            }
            RunEvent::Solving { event, .. } => self.solving(event),
            RunEvent::ProblemFinished { index, report } => {
                self.release(|_| true)?;
                self.write(Event::ProblemFinished { index: *index, report: (*report).clone() }, true)
            }
            RunEvent::Warning { message } => self.write(Event::Warning { message: (*message).to_string() }, false),
            RunEvent::ProblemRestored { .. } => Ok(()),
        }
    }

    fn solving(&mut self, event: &SolveEvent<'_>) -> Result<(), JournalError> {
        let index = self.index;
        match *event {
            SolveEvent::AttemptStarted { attempt } => self.write(Event::AttemptStarted { index, attempt }, false),
            SolveEvent::Text { attempt, text } => {
                let since = self.clock.now();
                let held = self.held.entry(attempt).or_insert(Held { since, text: String::new(), tokens: 0 });
                held.text.push_str(text);
                held.tokens += 1;
                Ok(())
            }
            SolveEvent::ToolStarted { attempt, code } => {
                self.release(|a| a == attempt)?;
                self.write(Event::ToolStarted { index, attempt, code: code.to_string() }, false)
            }
            SolveEvent::ToolFinished { attempt, outcome } => {
                self.write(Event::ToolFinished { index, attempt, outcome: outcome.clone() }, false)
            }
            SolveEvent::Given { attempt, text, is_user_turn } => {
                self.release(|a| a == attempt)?;
                self.write(Event::Given { index, attempt, text: text.to_string(), is_user_turn }, false)
            }
            SolveEvent::AttemptFinished { attempt } => {
                self.release(|a| a == attempt.number)?;
                let report = AttemptReport::new(attempt);
                // One that is cancelled will be made again: the end of its problem syncs it.
                let sync = report.end.is_final();
                self.write(Event::AttemptFinished { index, report, steps: attempt.steps.clone() }, sync)
            }
            SolveEvent::Progress { .. } => self.release_old(),
        }
    }

    /// Writes the text of attempts that has been held back for long enough.
    fn release_old(&mut self) -> Result<(), JournalError> {
        let now = self.clock.now();
        let is_due = |h: &Held| now.saturating_sub(h.since) >= HOLD || h.text.len() >= HOLD_BYTES;
        let due: Vec<usize> = self.held.iter().filter(|(_, h)| is_due(h)).map(|(&a, _)| a).collect();
        self.release(|attempt| due.contains(&attempt))
    }

    fn release(&mut self, which: impl Fn(usize) -> bool) -> Result<(), JournalError> {
        let attempts: Vec<usize> = self.held.keys().copied().filter(|&a| which(a)).collect();
        let mut result = Ok(());
        for attempt in attempts {
            let Some(Held { text, tokens, .. }) = self.held.remove(&attempt) else { continue };
            // The journal keeps what it couldn't write: nothing is lost by going on.
            let written = self.write(Event::Text { index: self.index, attempt, text, tokens }, false);
            result = result.and(written);
        }
        result
    }

    fn write(&mut self, event: Event, sync: bool) -> Result<(), JournalError> {
        let now = self.clock.now();
        let sync = sync || now.saturating_sub(self.last_sync) >= HOLD;
        if sync {
            self.last_sync = now;
        }
        let t_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.journal.append(&Entry { t_ms, event }, sync)
    }
}

/// Seconds since 1970, for people; nothing is decided by it.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
