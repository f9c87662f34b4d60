//! Progress on standard error: a bar where it is a terminal, a few plain lines where it is a log.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Seconds between the plain lines of a long step.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Progress of a step that moves a known number of bytes.
pub enum ByteProgress {
    /// On a terminal.
    Bar(ProgressBar),
    /// In a log.
    Lines {
        /// What is being done.
        what: String,
        /// When the last line was written.
        last: Instant,
    },
    /// Nothing is shown.
    Hidden,
}

impl ByteProgress {
    /// Begins to show the progress of `what`.
    pub fn new(what: &str, quiet: bool) -> ByteProgress {
        if quiet {
            return ByteProgress::Hidden;
        }
        if !std::io::stderr().is_terminal() {
            return ByteProgress::Lines { what: what.to_owned(), last: Instant::now() };
        }
        let bar = ProgressBar::new(0).with_message(what.to_owned());
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
            .expect("the template is a constant");
        bar.set_style(style);
        ByteProgress::Bar(bar)
    }

    /// Shows how far the step has come.
    pub fn set(&mut self, done_bytes: u64, all_bytes: u64) {
        match self {
            ByteProgress::Bar(bar) => {
                bar.set_length(all_bytes);
                bar.set_position(done_bytes);
            }
            ByteProgress::Lines { what, last } => {
                if last.elapsed() >= LINE_INTERVAL {
                    *last = Instant::now();
                    eprintln!("{what}: {} of {} MB", done_bytes / 1_000_000, all_bytes / 1_000_000);
                }
            }
            ByteProgress::Hidden => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let ByteProgress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Progress of a step that has a known number of parts, with a value that is shown as it grows.
pub struct CountProgress {
    sink: CountSink,
    what: String,
    started: Instant,
}

enum CountSink {
    Bar(ProgressBar),
    Lines { last: Instant },
    Hidden,
}

impl CountProgress {
    /// Begins to show the progress of `n` parts, each called `what`.
    pub fn new(what: &str, n: usize, quiet: bool) -> CountProgress {
        let sink = if quiet {
            CountSink::Hidden
        } else if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{prefix} {pos}/{len} {wide_bar} {msg}  left {eta}")
                .expect("the template is a constant");
            CountSink::Bar(ProgressBar::new(n as u64).with_style(style).with_prefix(what.to_owned()))
        } else {
            CountSink::Lines { last: Instant::now() }
        };
        CountProgress { sink, what: what.to_owned(), started: Instant::now() }
    }

    /// Shows that `done` of `n` parts are there, and the value so far.
    pub fn set(&mut self, done: usize, n: usize, value: &str) {
        match &mut self.sink {
            CountSink::Bar(bar) => {
                bar.set_message(value.to_owned());
                bar.set_position(done as u64);
            }
            CountSink::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                let left = self.started.elapsed().as_secs_f64() / done.max(1) as f64 * (n - done) as f64;
                eprintln!("{} {done} of {n}: {value}, left {}", self.what, clock_text(left as u64));
            }
            CountSink::Lines { .. } | CountSink::Hidden => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let CountSink::Bar(bar) = self.sink {
            bar.finish_and_clear();
        }
    }
}

/// Writes a warning, once however often the same is found: a command may load several models on one device.
pub fn warn_once(text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
        eprintln!("warning: {text}");
    }
}

/// 1 234 567 bytes as `1.2 MB`.
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// 75 seconds as `1:15`, 3 700 as `1:01:40`.
pub fn clock_text(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_readable() {
        assert_eq!(bytes_text(999), "999 B");
        assert_eq!(bytes_text(1_117_320_768), "1.12 GB");
        assert_eq!(clock_text(59), "0:59");
        assert_eq!(clock_text(3_700), "1:01:40");
    }
}
