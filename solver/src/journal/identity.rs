//! What must be the same when a run goes on: the model, the settings, the problems. A difference is refused by name,
//! with both values.
//!
//! A model is known by its size and a hash over both ends of its file: the head holds every key and tensor's place,
//! and hashing 60 GB at each start would take a minute. Called by `run --resume`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::journal::Header;
use crate::options::SolverOptions;
use crate::problem::{Problem, ProblemSet};

/// Bytes at each end of a model file that are hashed.
const HASHED_BYTES: u64 = 8 << 20;

/// Which model computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// File, or address.
    pub name: String,
    /// Size of the file.
    pub file_bytes: u64,
    /// Hash of the size and both ends, in hexadecimal.
    pub hash: String,
}

impl ModelIdentity {
    /// The identity of a model file.
    pub fn of_file(path: &Path) -> io::Result<ModelIdentity> {
        let mut file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut hash = Sha256::new();
        hash.update(file_bytes.to_le_bytes());
        let mut bytes = Vec::new();
        file.by_ref().take(HASHED_BYTES).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::Start(file_bytes.saturating_sub(HASHED_BYTES)))?;
        file.take(HASHED_BYTES).read_to_end(&mut bytes)?;
        hash.update(&bytes);
        let name = path.display().to_string();
        Ok(ModelIdentity { name, file_bytes, hash: hash.finalize().iter().map(|b| format!("{b:02x}")).collect() })
    }

    /// The identity of a model that servers have under this name.
    pub fn of_server(name: &str) -> ModelIdentity {
        let hash = Sha256::digest(name.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        ModelIdentity { name: name.to_string(), file_bytes: 0, hash }
    }

    /// Whether it is the same model, wherever it lies.
    pub fn is_same(&self, other: &ModelIdentity) -> bool {
        (self.file_bytes, &self.hash) == (other.file_bytes, &other.hash)
    }
}

/// What a continuation has that the run hadn't.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {now}; the run was begun with {then}")]
pub struct Differs {
    /// Which thing.
    pub what: String,
    /// Its value now.
    pub now: String,
    /// Its value when the run began.
    pub then: String,
}

impl Header {
    /// Whether this is the model that the run was begun with.
    pub fn check_model(&self, model: &ModelIdentity) -> Result<(), Differs> {
        let text =
            |m: &ModelIdentity| format!("{} ({} bytes, {})", m.name, m.file_bytes, &m.hash[..12.min(m.hash.len())]);
        if self.model.is_same(model) {
            return Ok(());
        }
        Err(Differs { what: "the model".to_string(), now: text(model), then: text(&self.model) })
    }

    /// Whether these are the settings that the run was begun with.
    pub fn check_options(&self, options: &SolverOptions) -> Result<(), Differs> {
        let json = |o: &SolverOptions| serde_json::to_value(o).unwrap_or(Value::Null);
        first_difference("", &json(options), &json(&self.options)).map_or(Ok(()), Err)
    }

    /// Whether these are the problems that the run was begun with.
    pub fn check_problems(&self, set: &ProblemSet) -> Result<(), Differs> {
        let differs = |what: String, now: String, then: String| Err(Differs { what, now, then });
        if set.problems.len() != self.problems.len() {
            let count = |n: usize| format!("{n} problems");
            return differs("the problem set".to_string(), count(set.problems.len()), count(self.problems.len()));
        }
        for (position, (now, then)) in (1..).zip(set.problems.iter().zip(&self.problems)) {
            let field = |name: &str| format!("the {name} of problem {position}");
            let Problem { id, text, answer } = now;
            if *id != then.id {
                return differs(field("id"), format!("{id:?}"), format!("{:?}", then.id));
            }
            if *text != then.text {
                return differs(field("text"), excerpt(text), excerpt(&then.text));
            }
            if *answer != then.answer {
                let number = |n: Option<i64>| n.map_or_else(|| "not given".to_string(), |n| n.to_string());
                return differs(field("answer"), number(*answer), number(then.answer));
            }
        }
        Ok(())
    }
}

/// The first value that isn't the same, by name.
fn first_difference(name: &str, now: &Value, then: &Value) -> Option<Differs> {
    if let (Value::Object(a), Value::Object(b)) = (now, then) {
        let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
        return keys.into_iter().find_map(|key| {
            let inner = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            first_difference(&inner, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
        });
    }
    let text = |v: &Value| match v {
        Value::Null => "not set".to_string(),
        Value::String(s) => s.clone(),
        v => v.to_string(),
    };
    (now != then).then(|| Differs { what: name.to_string(), now: text(now), then: text(then) })
}

fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vote::StopRule;

    fn header() -> Header {
        let problem = |id: &str| Problem { id: id.to_string(), text: format!("Find {id}."), answer: Some(1) };
        Header {
            version: 1,
            program: "0.1.0".to_string(),
            unix_s: 0,
            model: ModelIdentity { name: "m.gguf".to_string(), file_bytes: 9, hash: "00".repeat(32) },
            backend: "CPU".to_string(),
            options: SolverOptions::default(),
            settings: serde_json::Map::new(),
            set_name: "p.csv".to_string(),
            problems: vec![problem("a"), problem("b")],
        }
    }

    #[test]
    fn a_difference_is_named_with_both_values() {
        let header = header();
        assert_eq!(header.check_options(&SolverOptions::default()), Ok(()));
        let refused = |options: SolverOptions| header.check_options(&options).unwrap_err().to_string();
        let default = SolverOptions::default;
        assert_eq!(refused(SolverOptions { seed: 4, ..default() }), "seed is 4; the run was begun with 0");
        assert_eq!(
            refused(SolverOptions { stop: StopRule::FirstK(2), ..default() }),
            "stop is first-k:2; the run was begun with unbeatable"
        );
        let mut options = default();
        options.sampling.temperature = 0.5;
        assert!(refused(options).starts_with("sampling.temperature is 0.5"));
        let mut options = default();
        options.budget.limit_ms = Some(5);
        assert_eq!(refused(options), "budget.limit_ms is 5; the run was begun with not set");
    }

    #[test]
    fn other_problems_are_named() {
        let header = header();
        let set = |change: fn(&mut Vec<Problem>)| {
            let mut problems = header.problems.clone();
            change(&mut problems);
            let set = ProblemSet { name: "q.csv".to_string(), path: None, problems };
            header.check_problems(&set).map_err(|e| e.to_string())
        };
        assert_eq!(set(|_| {}), Ok(()));
        let refused = |change| set(change).unwrap_err();
        assert_eq!(refused(|p| p.truncate(1)), "the problem set is 1 problems; the run was begun with 2 problems");
        assert_eq!(refused(|p| p.swap(0, 1)), "the id of problem 1 is \"b\"; the run was begun with \"a\"");
        assert!(refused(|p| p[1].text.push('x')).starts_with("the text of problem 2 is \"Find b.x\""));
        assert_eq!(refused(|p| p[1].answer = None), "the answer of problem 2 is not given; the run was begun with 1");
    }

    #[test]
    fn a_model_is_known_by_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            ModelIdentity::of_file(&path).unwrap()
        };
        let model = file("a", b"weights");
        assert!(model.is_same(&file("b", b"weights")), "wherever it lies");
        let header = Header { model, ..header() };
        let refused = header.check_model(&file("c", b"weighty")).unwrap_err().to_string();
        assert!(refused.starts_with("the model is ") && refused.contains("/c (7 bytes"), "{refused}");
    }
}
