//! Published problem sets with their answers, as they are: our own form, GSM8K (`question`, an `answer` that ends in
//! `#### 18`), MATH (`problem`, a `solution` with the answer in its last box), MATH-500 (also `answer` in LaTeX and
//! `unique_id`), and the tables of AIME (`ID`, `Problem` or `Question`, `Answer`). csv or JSON lines.
//!
//! The solver answers with integers: problems with other answers are refused, or left out where that is asked for.
//! Called by `eval`.

use std::fmt;
use std::path::Path;

use crate::answer::{AnswerRange, BoxRejected, BoxWatcher};
use crate::problem::{Names, Problem, ProblemError, ProblemSet, Row, id_and_text, read_text, rows, unique};

const PUBLISHED: Names = Names {
    id: &["id", "unique_id", "problem_id"],
    needs_id: false,
    problem: &["problem", "question"],
    answer: &["answer"],
    solution: &["solution"],
    expected: "problem (or question) and answer (or solution), optionally id",
};

/// Problems whose answers are known.
#[derive(Debug)]
pub struct Dataset {
    /// The problems.
    pub set: ProblemSet,
    /// Problems in the file.
    pub n_rows: usize,
    /// Left out since their answer is no integer.
    pub n_not_integer: usize,
    /// Left out since their answer lies outside the range.
    pub n_out_of_range: usize,
}

impl Dataset {
    /// Reads a set; every problem needs an answer. `only_integers` leaves out those whose answer is no integer in
    /// `range` instead of refusing the set; `limit` counts what is left.
    pub fn read(
        path: &Path,
        range: AnswerRange,
        only_integers: bool,
        limit: Option<usize>,
    ) -> Result<Dataset, ProblemError> {
        let file = path.display().to_string();
        let rows = rows(&file, &read_text(path)?, &PUBLISHED)?;
        let (mut n_not_integer, mut n_out_of_range) = (0, 0);
        let mut kept = Vec::new();
        for row in &rows {
            let (id, text) = id_and_text(&file, row)?;
            let Some(found) = answer_of(row) else {
                return Err(ProblemError::NoAnswer { file, line: row.line, id });
            };
            match range.judge(&found) {
                Ok(answer) => kept.push(Ok((row.line, Problem { id, text, answer: Some(answer) }))),
                Err(BoxRejected::NotInteger(_)) if only_integers => n_not_integer += 1,
                Err(BoxRejected::OutOfRange { .. }) if only_integers => n_out_of_range += 1,
                Err(reason) => return Err(ProblemError::Unanswerable { file, line: row.line, id, reason }),
            }
        }
        let problems = unique(&file, kept.into_iter())?;
        if problems.is_empty() {
            return Err(ProblemError::NoIntegers { file, n_problems: rows.len(), range });
        }
        let set = ProblemSet { name: file, path: Some(path.to_path_buf()), problems }.limited(limit);
        Ok(Dataset { set, n_rows: rows.len(), n_not_integer, n_out_of_range })
    }
}

/// `50 of 500 problems (189 without an integer answer, 12 outside the range)`.
impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} problems", self.set.problems.len(), self.n_rows)?;
        match (self.n_not_integer, self.n_out_of_range) {
            (0, 0) => Ok(()),
            (n, 0) => write!(f, " ({n} have no integer as answer)"),
            (n, m) => write!(f, " ({n} have no integer as answer, {m} one outside the range)"),
        }
    }
}

/// The answer as it is written: what follows `####`, the whole field, or the last box of the solution.
fn answer_of(row: &Row) -> Option<String> {
    let field = row.answer.rsplit("####").next().unwrap_or("").trim();
    let in_solution = || BoxWatcher::default().push(&row.solution).pop();
    if field.is_empty() { in_solution() } else { Some(field.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, only_integers: bool, limit: Option<usize>) -> Result<Dataset, ProblemError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set");
        std::fs::write(&path, text).unwrap();
        Dataset::read(&path, AnswerRange::default(), only_integers, limit)
    }

    fn problems(text: &str) -> Vec<(String, String, i64)> {
        let set = read(text, false, None).unwrap().set;
        set.problems.into_iter().map(|p| (p.id, p.text, p.answer.unwrap())).collect()
    }

    fn row(id: &str, text: &str, answer: i64) -> (String, String, i64) {
        (id.to_string(), text.to_string(), answer)
    }

    #[test]
    fn published_forms_are_read_as_they_are() {
        let gsm8k = r#"{"question":"How many eggs?","answer":"16 - 3 = <<16-3=13>>13.\n#### 1,200","idx":0}
{"question":"And now?","answer":"None. #### -0","idx":1}"#;
        assert_eq!(problems(gsm8k), [row("1", "How many eggs?", 1200), row("2", "And now?", 0)]);
        let math = r#"{"problem":"$1+1$?","level":"Level 1","type":"Algebra","solution":"First $\\boxed{7}$, no: $\\boxed{\\text{2}}$."}"#;
        assert_eq!(problems(math), [row("1", "$1+1$?", 2)]);
        let math500 = r#"{"problem":"x?","solution":"\\boxed{9}","answer":"2^{10}","unique_id":"test/algebra/1.json"}"#;
        assert_eq!(problems(math500), [row("test/algebra/1.json", "x?", 1024)]);
        let aime = "ID,Year,Problem Number,Question,Answer,Part\n2024-I-1,2024,1,\"Find $a,b$.\",025,I\n";
        assert_eq!(problems(aime), [row("2024-I-1", "Find $a,b$.", 25)]);
        let table = r#"{"ID": "2024-II-4", "Problem": "y?", "Solution": "so it is", "Answer": 33}"#;
        assert_eq!(problems(table), [row("2024-II-4", "y?", 33)]);
        assert_eq!(problems("id,problem,answer\na,z?,5\n"), [row("a", "z?", 5)]);
    }

    #[test]
    fn what_is_no_integer_is_refused_or_left_out() {
        let text = "problem,answer\na,1\nb,\\frac12\nc,-4\nd,3\ne,\"3, 5\"\n";
        let error = read(text, false, None).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("\"2\"") && error.contains("frac"), "{error}");
        let set = read(text, true, None).unwrap();
        assert_eq!(set.to_string(), "2 of 5 problems (2 have no integer as answer, 1 one outside the range)");
        assert_eq!(
            set.set.problems.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(),
            ["1", "4"],
            "rows keep their number"
        );
        assert_eq!(read(text, true, Some(1)).unwrap().set.problems.len(), 1);
        let none = read("problem,answer\na,x+1\n", true, None).unwrap_err().to_string();
        assert!(none.ends_with("none of its 1 problems has an integer answer in 0..99999"), "{none}");
        let unknown = read("problem,answer\na,1\nb,\n", true, None).unwrap_err().to_string();
        assert!(unknown.contains("line 3") && unknown.contains("no answer to compare with"), "{unknown}");
        let columns = read("text,answer\na,1\n", true, None).unwrap_err().to_string();
        assert!(columns.contains("\"problem\"") && columns.contains("question"), "{columns}");
    }
}
