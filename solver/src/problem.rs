//! Problems: csv (`id,problem` or `id,problem,answer`), JSON lines with the same fields, a single text, and the
//! built-in demo set.
//!
//! A set is read and checked whole before any work starts; every refusal names the file, the line, the value found and
//! what is expected. Whether a file is csv or JSON lines is decided by its first character. Column order is free,
//! other columns are ignored, and an empty answer means that it isn't known. Published sets, with other names and with
//! answers in words, are `dataset`'s business, which reads their rows here.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{AnswerRange, BoxRejected};

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Unique within its set.
    pub id: String,
    /// The statement, LaTeX as given.
    pub text: String,
    /// The right answer, where it is known.
    pub answer: Option<i64>,
}

/// Problems in their order, none missing anything, no id twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProblemSet {
    /// Where it comes from, for messages and reports.
    pub name: String,
    /// The file, where there is one.
    pub path: Option<PathBuf>,
    /// At least one problem.
    pub problems: Vec<Problem>,
}

/// Largest problem file that is read.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

const DEMO: &str = include_str!("../problems/demo.csv");

impl ProblemSet {
    /// Reads a csv or JSON-lines file. Known answers must lie in `range`.
    pub fn read(path: &Path, range: AnswerRange) -> Result<ProblemSet, ProblemError> {
        let file = path.display().to_string();
        let text = read_text(path)?;
        let rows = rows(&file, &text, &OWN)?;
        let problems = unique(&file, rows.iter().map(|row| Ok((row.line, check(&file, row, range)?))))?;
        Ok(ProblemSet { name: file, path: Some(path.to_path_buf()), problems })
    }

    /// The first `limit` problems.
    pub fn limited(mut self, limit: Option<usize>) -> ProblemSet {
        self.problems.truncate(limit.unwrap_or(usize::MAX));
        self
    }

    /// One problem without a file.
    pub fn single(text: &str) -> Result<ProblemSet, ProblemError> {
        let name = "--problem".to_string();
        if text.trim().is_empty() {
            return Err(ProblemError::EmptyProblem { file: name, line: 1, id: "1".to_string() });
        }
        let problem = Problem { id: "1".to_string(), text: text.trim().to_string(), answer: None };
        Ok(ProblemSet { name, path: None, problems: vec![problem] })
    }
}

impl Problem {
    /// A problem from one JSON object; `file` and `line` are for messages.
    pub fn from_json(file: &str, line: u64, json: &str, range: AnswerRange) -> Result<Problem, ProblemError> {
        check(file, &json_row(file, line, 1, json, &OWN)?, range)
    }
}

/// Ten problems of our own making, from a one-liner to a contest problem, with their answers.
pub fn demo_set() -> ProblemSet {
    let name = "the built-in demo set".to_string();
    let range = AnswerRange::default();
    let problem = |row: &Row| Ok((row.line, check(&name, row, range)?));
    let problems = rows(&name, DEMO, &OWN).and_then(|rows| unique(&name, rows.iter().map(problem)));
    let problems = problems.expect("the built-in problems are tested");
    ProblemSet { name, path: None, problems }
}

/// What can be wrong with a set of problems.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what the messages say")]
pub enum ProblemError {
    #[error("cannot read {file}: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("{file} is larger than {limit_bytes} bytes: is it a file of problems?")]
    TooLarge { file: String, limit_bytes: u64 },
    #[error("{file}, line {line}: byte 0x{byte:02x} isn't UTF-8; save the file as UTF-8")]
    NotUtf8 { file: String, line: usize, byte: u8 },
    #[error("{file} is empty; expected a csv with the columns {expected} or one JSON object per line")]
    Empty { file: String, expected: &'static str },
    #[error("{file} has a header but no problems")]
    NoProblems { file: String },
    #[error("{file} has no column {column:?}; found {}; expected {expected}", found.join(","))]
    MissingColumn { file: String, column: &'static str, found: Vec<String>, expected: &'static str },
    #[error("{file} has two columns {column:?}")]
    DuplicateColumn { file: String, column: &'static str },
    #[error("{file}, line {line}: {found} fields where the header has {expected}; quote fields that hold commas")]
    FieldCount { file: String, line: u64, expected: u64, found: u64 },
    #[error("{file}, line {line}: a quote is opened that is never closed")]
    UnclosedQuote { file: String, line: usize },
    #[error("{file}: {message}")]
    Csv { file: String, message: String },
    #[error("{file}, line {line}: not a JSON object: {message}")]
    Json { file: String, line: u64, message: String },
    #[error("{file} holds a JSON array; expected one JSON object per line, without brackets around them")]
    JsonArray { file: String },
    #[error("{file}, line {line}: field {field:?} is {found}; expected {expected}")]
    JsonField { file: String, line: u64, field: &'static str, found: String, expected: &'static str },
    #[error("{file}, line {line}: the id is empty")]
    EmptyId { file: String, line: u64 },
    #[error("{file}, line {line}: problem {id:?} has no text")]
    EmptyProblem { file: String, line: u64, id: String },
    #[error("{file}, line {line}: id {id:?} was used in line {first_line} already; ids must be unique")]
    DuplicateId { file: String, line: u64, id: String, first_line: u64 },
    #[error("{file}, line {line}: answer {found:?} of problem {id:?} isn't an integer")]
    AnswerNotInteger { file: String, line: u64, id: String, found: String },
    #[error("{file}, line {line}: answer {found} of problem {id:?} is outside {range} (see --answer-range)")]
    AnswerOutOfRange { file: String, line: u64, id: String, found: i64, range: AnswerRange },
    #[error("{file}, line {line}: problem {id:?} has no answer to compare with")]
    NoAnswer { file: String, line: u64, id: String },
    #[error("{file}, line {line}: the answer of problem {id:?} can't be given: {reason}")]
    Unanswerable { file: String, line: u64, id: String, reason: BoxRejected },
    #[error("{file}: none of its {n_problems} problems has an integer answer in {range}")]
    NoIntegers { file: String, n_problems: usize, range: AnswerRange },
}

/// How the fields of a row are called; the first name that is there counts. Case doesn't matter.
pub(crate) struct Names {
    /// Without one of these, the number of the row is its id, where that is allowed.
    pub id: &'static [&'static str],
    pub needs_id: bool,
    pub problem: &'static [&'static str],
    pub answer: &'static [&'static str],
    pub solution: &'static [&'static str],
    /// For messages.
    pub expected: &'static str,
}

const OWN: Names = Names {
    id: &["id"],
    needs_id: true,
    problem: &["problem"],
    answer: &["answer"],
    solution: &[],
    expected: "id,problem[,answer]",
};

/// A row as it stands in the file.
pub(crate) struct Row {
    pub line: u64,
    pub id: String,
    pub text: String,
    pub answer: String,
    pub solution: String,
}

/// The text of a problem file.
pub(crate) fn read_text(path: &Path) -> Result<String, ProblemError> {
    let file = path.display().to_string();
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| ProblemError::Read { file: file.clone(), source })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ProblemError::TooLarge { file, limit_bytes: MAX_FILE_BYTES });
    }
    String::from_utf8(bytes).map_err(|e| {
        let (bytes, valid_bytes) = (e.as_bytes(), e.utf8_error().valid_up_to());
        let line = 1 + bytes[..valid_bytes].iter().filter(|&&b| b == b'\n').count();
        ProblemError::NotUtf8 { file, line, byte: bytes[valid_bytes] }
    })
}

/// The rows of a csv or JSON-lines text, at least one.
pub(crate) fn rows(file: &str, text: &str, names: &Names) -> Result<Vec<Row>, ProblemError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = match text.trim_start().chars().next() {
        None => return Err(ProblemError::Empty { file: file.to_string(), expected: names.expected }),
        Some('[') => return Err(ProblemError::JsonArray { file: file.to_string() }),
        Some('{') => json_rows(file, text, names)?,
        Some(_) => csv_rows(file, text, names)?,
    };
    if rows.is_empty() { Err(ProblemError::NoProblems { file: file.to_string() }) } else { Ok(rows) }
}

/// The problems with their lines, unless an id is there twice.
pub(crate) fn unique(
    file: &str,
    problems: impl Iterator<Item = Result<(u64, Problem), ProblemError>>,
) -> Result<Vec<Problem>, ProblemError> {
    let mut lines = HashMap::new();
    let mut all = Vec::new();
    for problem in problems {
        let (line, problem) = problem?;
        if let Some(first_line) = lines.insert(problem.id.clone(), line) {
            return Err(ProblemError::DuplicateId { file: file.to_string(), line, id: problem.id, first_line });
        }
        all.push(problem);
    }
    Ok(all)
}

/// The id and the text of a row, neither empty.
pub(crate) fn id_and_text(file: &str, row: &Row) -> Result<(String, String), ProblemError> {
    let (file, line, id) = (file.to_string(), row.line, row.id.trim().to_string());
    if id.is_empty() {
        return Err(ProblemError::EmptyId { file, line });
    }
    let text = row.text.trim().to_string();
    if text.is_empty() { Err(ProblemError::EmptyProblem { file, line, id }) } else { Ok((id, text)) }
}

fn check(file: &str, row: &Row, range: AnswerRange) -> Result<Problem, ProblemError> {
    let (id, text) = id_and_text(file, row)?;
    let (file, line) = (file.to_string(), row.line);
    let answer = match row.answer.trim() {
        "" => None,
        found => match found.parse::<i64>() {
            Err(_) => return Err(ProblemError::AnswerNotInteger { file, line, id, found: found.to_string() }),
            Ok(found) if !range.contains(found) => {
                return Err(ProblemError::AnswerOutOfRange { file, line, id, found, range });
            }
            Ok(found) => Some(found),
        },
    };
    Ok(Problem { id, text, answer })
}

fn csv_rows(file: &str, text: &str, names: &Names) -> Result<Vec<Row>, ProblemError> {
    if let Some(line) = unclosed_quote(text) {
        return Err(ProblemError::UnclosedQuote { file: file.to_string(), line });
    }
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let header: Vec<String> = match reader.headers() {
        Ok(header) => header.iter().map(|h| h.trim().to_string()).collect(),
        Err(error) => return Err(csv_error(file, &error)),
    };
    let column = |columns: &[&'static str]| {
        for &column in columns {
            let mut at = header.iter().enumerate().filter(|(_, h)| h.eq_ignore_ascii_case(column)).map(|(i, _)| i);
            let first = at.next();
            if at.next().is_some() {
                return Err(ProblemError::DuplicateColumn { file: file.to_string(), column });
            }
            if first.is_some() {
                return Ok(first);
            }
        }
        Ok(None)
    };
    let missing = |columns: &[&'static str]| ProblemError::MissingColumn {
        file: file.to_string(),
        column: columns[0],
        found: header.clone(),
        expected: names.expected,
    };
    let id = column(names.id)?;
    if id.is_none() && names.needs_id {
        return Err(missing(names.id));
    }
    let problem = column(names.problem)?.ok_or_else(|| missing(names.problem))?;
    let (answer, solution) = (column(names.answer)?, column(names.solution)?);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| csv_error(file, &e))?;
        let field = |i: usize| record.get(i).unwrap_or("").to_string();
        rows.push(Row {
            line: record.position().map_or(0, csv::Position::line),
            id: id.map_or_else(|| (rows.len() + 1).to_string(), field),
            text: field(problem),
            answer: answer.map(field).unwrap_or_default(),
            solution: solution.map(field).unwrap_or_default(),
        });
    }
    Ok(rows)
}

fn csv_error(file: &str, error: &csv::Error) -> ProblemError {
    let file = file.to_string();
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => ProblemError::FieldCount {
            file,
            line: pos.as_ref().map_or(0, csv::Position::line),
            expected: *expected_len,
            found: *len,
        },
        _ => ProblemError::Csv { file, message: error.to_string() },
    }
}

/// Line of a quote that the end of the file closes: the csv reader would take everything after it for one field.
fn unclosed_quote(text: &str) -> Option<usize> {
    let (mut open, mut line, mut field_begins) = (None, 1, true);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (open, c) {
            (Some(_), '"') if chars.peek() == Some(&'"') => {
                chars.next();
            }
            (Some(_), '"') => open = None,
            (None, '"') if field_begins => open = Some(line),
            _ => {}
        }
        line += usize::from(c == '\n');
        field_begins = open.is_none() && matches!(c, ',' | '\n' | '\r');
    }
    open
}

fn json_rows(file: &str, text: &str, names: &Names) -> Result<Vec<Row>, ProblemError> {
    let lines = (1..).zip(text.lines()).filter(|(_, json)| !json.trim().is_empty());
    lines.zip(1..).map(|((line, json), number)| json_row(file, line, number, json, names)).collect()
}

/// A row from one JSON object, the `number`-th of its file.
fn json_row(file: &str, line: u64, number: usize, json: &str, names: &Names) -> Result<Row, ProblemError> {
    let object: serde_json::Map<String, Value> = serde_json::from_str(json).map_err(|e| ProblemError::Json {
        file: file.to_string(),
        line,
        message: e.to_string(),
    })?;
    let wrong = |field, value: Option<&Value>, expected| ProblemError::JsonField {
        file: file.to_string(),
        line,
        field,
        found: value.map_or("missing".to_string(), Value::to_string),
        expected,
    };
    let number_text = |v: &Value| v.as_number().map(ToString::to_string);
    let string = |v: &Value| v.as_str().map(str::to_string);
    let get = |fields: &[&str]| {
        let called = |name: &str| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        fields.iter().find_map(|name| called(name)).map(|(_, value)| value)
    };
    let (id, problem, answer) = (get(names.id), get(names.problem), get(names.answer));
    Ok(Row {
        line,
        id: match id {
            None if !names.needs_id => number.to_string(),
            id => id
                .and_then(|v| string(v).or_else(|| number_text(v)))
                .ok_or_else(|| wrong(names.id[0], id, "a string or a number"))?,
        },
        text: problem.and_then(string).ok_or_else(|| wrong(names.problem[0], problem, "a string"))?,
        answer: match answer {
            None | Some(Value::Null) => String::new(),
            Some(v) => string(v)
                .or_else(|| number_text(v))
                .ok_or_else(|| wrong(names.answer[0], answer, "an integer, a string that holds one, or null"))?,
        },
        solution: get(names.solution).and_then(string).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Problem>, ProblemError> {
        read_bytes(text.as_bytes())
    }

    fn read_bytes(bytes: &[u8]) -> Result<Vec<Problem>, ProblemError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.csv");
        std::fs::write(&path, bytes).unwrap();
        let set = ProblemSet::read(&path, AnswerRange::default());
        set.map(|s| s.problems)
    }

    /// The message without the folder of the test.
    fn message(text: &str) -> String {
        let message = read(text).unwrap_err().to_string();
        message[message.find("p.csv").unwrap_or_else(|| panic!("no file name in {message}"))..].to_string()
    }

    fn problem(id: &str, text: &str, answer: Option<i64>) -> Problem {
        Problem { id: id.to_string(), text: text.to_string(), answer }
    }

    #[test]
    fn csv_in_any_column_order_with_quotes_line_breaks_and_a_byte_order_mark() {
        let text = "\u{feff}answer,Problem,note,id\r\n42,\"Let $f(x,y)$ be\n\"\"odd\"\".\",n,a\r\n,$x$,,b\r\n";
        assert_eq!(
            read(text).unwrap(),
            [problem("a", "Let $f(x,y)$ be\n\"odd\".", Some(42)), problem("b", "$x$", None)]
        );
        assert_eq!(read("id,problem\n7,x").unwrap(), [problem("7", "x", None)]);
    }

    #[test]
    fn json_lines_with_numbers_or_strings() {
        let text = "{\"id\": 1, \"problem\": \"a\\nb\", \"answer\": 5}\n\n{\"id\": \"x\", \"problem\": \"c\", \"answer\": \"6\"}\n\
                    {\"problem\": \"d\", \"id\": \"y\", \"answer\": null, \"source\": {}}\n";
        assert_eq!(
            read(text).unwrap(),
            [problem("1", "a\nb", Some(5)), problem("x", "c", Some(6)), problem("y", "d", None)]
        );
    }

    #[test]
    fn csv_that_cannot_be_used_is_refused_by_line_and_value() {
        for (text, expected) in [
            ("", "p.csv is empty; expected a csv with the columns id,problem[,answer] or one JSON object per line"),
            (
                "\u{feff} \n",
                "p.csv is empty; expected a csv with the columns id,problem[,answer] or one JSON object per line",
            ),
            ("id,problem\n", "p.csv has a header but no problems"),
            ("name,text\na,b\n", "p.csv has no column \"id\"; found name,text; expected id,problem[,answer]"),
            ("id,text\na,b\n", "p.csv has no column \"problem\"; found id,text; expected id,problem[,answer]"),
            ("id,problem,ID\na,b,c\n", "p.csv has two columns \"id\""),
            (
                "id,problem\na,b\nc,d,e\n",
                "p.csv, line 3: 3 fields where the header has 2; quote fields that hold commas",
            ),
            ("id,problem\na,b\nc,\"d\ne,f\n", "p.csv, line 3: a quote is opened that is never closed"),
            ("id,problem\n,b\n", "p.csv, line 2: the id is empty"),
            ("id,problem\na,b\nc, \n", "p.csv, line 3: problem \"c\" has no text"),
            (
                "id,problem\na,\"x\ny\"\nb,z\na,w\n",
                "p.csv, line 5: id \"a\" was used in line 2 already; ids must be unique",
            ),
            ("id,problem,answer\na,b,4.5\n", "p.csv, line 2: answer \"4.5\" of problem \"a\" isn't an integer"),
            (
                "id,problem,answer\na,b,100000\n",
                "p.csv, line 2: answer 100000 of problem \"a\" is outside 0..99999 (see --answer-range)",
            ),
            (
                "id,problem,answer\na,b,-1\n",
                "p.csv, line 2: answer -1 of problem \"a\" is outside 0..99999 (see --answer-range)",
            ),
        ] {
            assert_eq!(message(text), expected, "{text:?}");
        }
    }

    #[test]
    fn json_that_cannot_be_used_is_refused_by_line_and_field() {
        for (text, expected) in [
            (
                "[{\"id\":1}]",
                "p.csv holds a JSON array; expected one JSON object per line, without brackets around them",
            ),
            ("{\"problem\":\"x\"}", "p.csv, line 1: field \"id\" is missing; expected a string or a number"),
            ("{\"id\":[1],\"problem\":\"x\"}", "p.csv, line 1: field \"id\" is [1]; expected a string or a number"),
            (
                "{\"id\":1,\"problem\":\"x\"}\n{\"id\":2}",
                "p.csv, line 2: field \"problem\" is missing; expected a string",
            ),
            (
                "{\"id\":1,\"problem\":\"x\",\"answer\":true}",
                "p.csv, line 1: field \"answer\" is true; expected an integer, a string that holds one, or null",
            ),
            (
                "{\"id\":1,\"problem\":\"x\",\"answer\":1.5}",
                "p.csv, line 1: answer \"1.5\" of problem \"1\" isn't an integer",
            ),
            ("{\"id\":1,\"problem\":\"\"}", "p.csv, line 1: problem \"1\" has no text"),
        ] {
            assert_eq!(message(text), expected, "{text:?}");
        }
        assert!(message("{\"id\":1,\"problem\":\"x\"}\n{\"id\":2,").starts_with("p.csv, line 2: not a JSON object: "));
        assert!(
            message(&format!("{{\"id\":{}", "[".repeat(100_000))).starts_with("p.csv, line 1: not a JSON object: ")
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named() {
        let error = read_bytes(b"id,problem\na,b\nc,\xe9\n").unwrap_err();
        assert!(matches!(error, ProblemError::NotUtf8 { line: 3, byte: 0xe9, .. }), "{error}");
        assert!(matches!(read_bytes(b"\xff\xfei\0d\0").unwrap_err(), ProblemError::NotUtf8 { line: 1, .. }));
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.csv");
        for path in [missing.as_path(), dir.path()] {
            let error = ProblemSet::read(path, AnswerRange::default()).unwrap_err();
            assert!(matches!(error, ProblemError::Read { .. }), "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_single_problem_is_a_set_of_one() {
        assert_eq!(ProblemSet::single(" 1+1? ").unwrap().problems, [problem("1", "1+1?", None)]);
        assert_eq!(ProblemSet::single(" ").unwrap_err().to_string(), "--problem, line 1: problem \"1\" has no text");
    }

    #[test]
    fn the_demo_set_has_ten_problems_with_answers() {
        let set = demo_set();
        assert_eq!(set.problems.len(), 10);
        assert!(set.problems.iter().all(|p| p.answer.is_some()));
    }
}
