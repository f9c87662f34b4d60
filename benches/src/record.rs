//! What is kept of a run: the machine, every program's own records, and the table that is made of them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

/// One model measured on one machine.
#[derive(Debug, Serialize)]
pub struct Run {
    machine: Machine,
    model: String,
    model_file_bytes: u64,
    threads: usize,
    /// In the order in which they were measured.
    pub samples: Vec<Sample>,
    /// The record of the run with a long context, for its peak memory.
    pub memory: Option<serde_json::Value>,
}

/// Where and on what a run was made.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    date: String,
    commit: String,
    cpu: String,
    n_cores: usize,
}

/// A program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// This project's.
    AimoEngine,
    /// llama.cpp's.
    LlamaBench,
}

/// One record of one program.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// From 1.
    pub round: usize,
    /// Who was measured.
    pub subject: Subject,
    /// The program's own JSON object.
    pub record: serde_json::Value,
}

impl Machine {
    /// The machine that this runs on.
    pub fn this() -> Result<Machine> {
        let line = |program: &str, args: &[&str]| -> Option<String> {
            let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(key, _)| key.trim() == "model name")
            .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
        Ok(Machine {
            date: line("date", &["-u", "+%F"]).context("the program `date` gave no date")?,
            commit: line("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_default(),
            cpu,
            n_cores: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }

    /// `2026-01-31-amd-epyc-2-cores`.
    fn slug(&self) -> String {
        let cpu: String = self.cpu.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { ' ' }).collect();
        let words: Vec<String> = cpu.split_whitespace().map(str::to_lowercase).collect();
        format!("{}-{}-{}-cores", self.date, words.join("-"), self.n_cores)
    }
}

impl Sample {
    /// `aimo-engine pp512: 100.00 tok/s`.
    pub fn line(&self) -> String {
        format!("{} {}: {:.2} tok/s", self.subject.name(), test_name(&self.record), number(&self.record, "avg_ts"))
    }
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Subject::AimoEngine => "aimo-engine",
            Subject::LlamaBench => "llama-bench",
        }
    }
}

impl Run {
    /// An empty run.
    pub fn new(machine: Machine, model: &Path, threads: usize) -> Result<Run> {
        let file = std::fs::metadata(model).with_context(|| format!("cannot read {}", model.display()))?;
        let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned();
        Ok(Run { machine, model: name, model_file_bytes: file.len(), threads, samples: Vec::new(), memory: None })
    }

    /// A Markdown table: medians with their ranges, ratios, share of the memory's bandwidth, peak memory.
    pub fn table(&self) -> String {
        let m = &self.machine;
        let mut text = format!(
            "{} on {} ({} cores), {} threads, commit {}, {}\n\n",
            self.model, m.cpu, m.n_cores, self.threads, m.commit, m.date
        );
        text += "| test | aimo-engine tok/s | llama-bench tok/s | ratio | GB/s | of memory |\n";
        text += "|---|---|---|---|---|---|\n";
        let mut tests: Vec<String> = Vec::new();
        for sample in &self.samples {
            let name = test_name(&sample.record);
            if !tests.contains(&name) {
                tests.push(name);
            }
        }
        for test in &tests {
            let ours = self.values(Subject::AimoEngine, test, "avg_ts");
            let theirs = self.values(Subject::LlamaBench, test, "avg_ts");
            let ratio = match (median(&ours), median(&theirs)) {
                (Some(a), Some(b)) => format!("{:.2}", a / b),
                _ => String::new(),
            };
            let rate = median(&self.values(Subject::AimoEngine, test, "gb_per_s"));
            let share = median(&self.values(Subject::AimoEngine, test, "bandwidth_share"));
            writeln!(
                text,
                "| {test} | {} | {} | {ratio} | {} | {} |",
                median_text(&ours),
                median_text(&theirs),
                rate.map_or_else(String::new, |x| format!("{x:.1}")),
                share.map_or_else(String::new, |x| format!("{:.0} %", 100.0 * x)),
            )
            .expect("a string can be written to");
        }
        if let Some(record) = &self.memory {
            let peak = number(record, "peak_rss_bytes");
            writeln!(
                text,
                "\nPeak memory at a context of {}: {:.0} MB; the file has {:.0} MB, so {:.0} MB beside the weights.",
                number(record, "n_depth") + number(record, "n_gen"),
                peak / 1e6,
                self.model_file_bytes as f64 / 1e6,
                (peak - self.model_file_bytes as f64) / 1e6,
            )
            .expect("a string can be written to");
        }
        text
    }

    /// Writes the run as JSON and gives its path; runs of one day don't replace each other.
    pub fn save(&self, runs: &Path) -> Result<PathBuf> {
        let dir = runs.join(self.machine.slug());
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let stem = self.model.trim_end_matches(".gguf");
        let path =
            (1..).map(|i| dir.join(format!("{stem}-{i}.json"))).find(|p| !p.exists()).expect("some number is free");
        std::fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn values(&self, subject: Subject, test: &str, field: &str) -> Vec<f64> {
        self.samples
            .iter()
            .filter(|s| s.subject == subject && test_name(&s.record) == test)
            .filter_map(|s| s.record[field].as_f64())
            .collect()
    }
}

/// `pp512`, `tg128`, `tg128 @ d4096`.
fn test_name(record: &serde_json::Value) -> String {
    let n = |field: &str| record[field].as_u64().unwrap_or(0);
    let kind = if n("n_prompt") > 0 { format!("pp{}", n("n_prompt")) } else { format!("tg{}", n("n_gen")) };
    if n("n_depth") > 0 { format!("{kind} @ d{}", n("n_depth")) } else { kind }
}

fn number(record: &serde_json::Value, field: &str) -> f64 {
    record[field].as_f64().unwrap_or(f64::NAN)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// `44.8 (43.9–45.1)`.
fn median_text(values: &[f64]) -> String {
    let sorted = sorted(values);
    match (median(values), sorted.first(), sorted.last()) {
        (Some(middle), Some(low), Some(high)) => format!("{middle:.1} ({low:.1}–{high:.1})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(round: usize, subject: Subject, avg_ts: f64) -> Sample {
        let record =
            serde_json::json!({ "n_prompt": 0, "n_gen": 64, "n_depth": 0, "avg_ts": avg_ts, "gb_per_s": 20.0 });
        Sample { round, subject, record }
    }

    fn run(samples: Vec<Sample>) -> Run {
        let machine =
            Machine { date: "2026-01-31".into(), commit: "abc".into(), cpu: "AMD EPYC (x)".into(), n_cores: 2 };
        let memory = Some(serde_json::json!({ "peak_rss_bytes": 1_600_000_000u64, "n_depth": 4080, "n_gen": 16 }));
        Run { machine, model: "m.gguf".into(), model_file_bytes: 1_000_000_000, threads: 2, samples, memory }
    }

    #[test]
    fn the_ratio_is_of_medians() {
        let text = run(vec![
            sample(1, Subject::AimoEngine, 30.0),
            sample(1, Subject::LlamaBench, 20.0),
            sample(2, Subject::AimoEngine, 50.0),
            sample(2, Subject::LlamaBench, 25.0),
            sample(3, Subject::AimoEngine, 40.0),
            sample(3, Subject::LlamaBench, 90.0),
        ])
        .table();
        assert!(text.contains("| tg64 | 40.0 (30.0–50.0) | 25.0 (20.0–90.0) | 1.60 | 20.0 |  |"), "{text}");
        assert!(text.contains("600 MB beside the weights"), "{text}");
    }

    #[test]
    fn without_the_other_program_there_is_no_ratio() {
        assert!(run(vec![sample(1, Subject::AimoEngine, 30.0)]).table().contains("| 30.0 (30.0–30.0) |  |  |"));
    }

    #[test]
    fn records_of_one_day_stand_side_by_side() {
        let dir = std::env::temp_dir().join(format!("aimo-benches-{}", std::process::id()));
        let run = run(vec![]);
        let (first, second) = (run.save(&dir).unwrap(), run.save(&dir).unwrap());
        assert_ne!(first, second);
        assert!(first.ends_with("2026-01-31-amd-epyc-x-2-cores/m-1.json"), "{}", first.display());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
