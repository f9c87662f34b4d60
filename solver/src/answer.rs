//! Answers: the range that counts, and the `\boxed{…}` that a model's own text ends an attempt with.
//!
//! [`BoxWatcher`] is fed what the model says as it streams (never the prompt, thoughts, code or tool output) and reports
//! a box the moment its last brace closes. What a box means is `integer`'s business. Called by `attempt`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::integer::{self, NotInteger};

/// Inclusive range of answers that count, written `min..max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerRange {
    min: i64,
    max: i64,
}

impl Default for AnswerRange {
    fn default() -> Self {
        AnswerRange { min: 0, max: 99_999 }
    }
}

impl AnswerRange {
    /// Smallest answer.
    pub fn min(&self) -> i64 {
        self.min
    }

    /// Largest answer.
    pub fn max(&self) -> i64 {
        self.max
    }

    /// Whether an answer counts.
    pub fn contains(&self, answer: i64) -> bool {
        (self.min..=self.max).contains(&answer)
    }

    /// The answer in a box, or why there is none.
    pub fn judge(&self, content: &str) -> Result<i64, BoxRejected> {
        let value = integer::parse(content)?;
        i64::try_from(value)
            .ok()
            .filter(|v| self.contains(*v))
            .ok_or(BoxRejected::OutOfRange { found: value, range: *self })
    }
}

impl fmt::Display for AnswerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.min, self.max)
    }
}

impl Serialize for AnswerRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AnswerRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for AnswerRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (min, max) = text.split_once("..").ok_or_else(|| RangeError::Shape { found: text.to_string() })?;
        let bound = |part: &str| {
            part.trim()
                .parse::<i64>()
                .map_err(|_| RangeError::Bound { found: part.trim().to_string(), range: text.to_string() })
        };
        let (min, max) = (bound(min)?, bound(max.strip_prefix('=').unwrap_or(max))?);
        if min > max { Err(RangeError::Empty { min, max }) } else { Ok(AnswerRange { min, max }) }
    }
}

/// A text that isn't an answer range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// No `..` in it.
    #[error("answer range {found:?} isn't of the form MIN..MAX, such as 0..99999 (both ends count)")]
    Shape {
        /// Text given.
        found: String,
    },
    /// An end that isn't an integer.
    #[error("answer range {range:?}: {found:?} isn't an integer; expected MIN..MAX, such as 0..99999")]
    Bound {
        /// The end.
        found: String,
        /// Text given.
        range: String,
    },
    /// Nothing lies in it.
    #[error("answer range {min}..{max} is empty: {min} is greater than {max}")]
    Empty {
        /// Lower end.
        min: i64,
        /// Upper end.
        max: i64,
    },
}

/// Why a box holds no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoxRejected {
    /// Not an integer.
    #[error(transparent)]
    NotInteger(#[from] NotInteger),
    /// An integer that doesn't count.
    #[error("{found} is outside {range}")]
    OutOfRange {
        /// Value in the box.
        found: i128,
        /// Range in force.
        range: AnswerRange,
    },
}

/// Longest content of a box, in bytes; a brace that is open for longer isn't an answer.
pub const MAX_BOX_BYTES: usize = 256;

const BOX: &str = "\\boxed";

/// Finds complete boxes in streamed prose.
#[derive(Debug, Clone, Default)]
pub struct BoxWatcher {
    /// Text that could still be the beginning of a box.
    pending: String,
}

impl BoxWatcher {
    /// Takes the next piece of prose; gives the contents of the boxes that it completes, in order.
    pub fn push(&mut self, piece: &str) -> Vec<String> {
        self.pending.push_str(piece);
        let mut boxes = Vec::new();
        let mut at = 0;
        while let Some(start) = self.pending[at..].find(BOX).map(|i| at + i) {
            let after = start + BOX.len();
            at = match braced(&self.pending[after..]) {
                Braced::Complete { content, len } => {
                    boxes.push(content.to_string());
                    after + len
                }
                Braced::Open => {
                    self.pending.drain(..start);
                    return boxes;
                }
                Braced::No => after,
            };
        }
        let keep = held_back(&self.pending[at..]);
        self.pending.drain(..self.pending.len() - keep);
        boxes
    }
}

/// Bytes at the end of the text that could be the beginning of a box.
fn held_back(text: &str) -> usize {
    (1..BOX.len()).rev().find(|&n| text.ends_with(&BOX[..n])).unwrap_or(0)
}

enum Braced<'a> {
    /// `len` bytes were read, both braces included.
    Complete { content: &'a str, len: usize },
    /// More text is needed.
    Open,
    /// No group, or one that is too long.
    No,
}

/// The braced group that the text begins with (after blanks); `\{` and `\}` don't count as braces.
fn braced(text: &str) -> Braced<'_> {
    let blanks = text.len() - text.trim_start_matches([' ', '\t']).len();
    let group = &text[blanks..];
    if group.is_empty() {
        return if blanks > MAX_BOX_BYTES { Braced::No } else { Braced::Open };
    }
    if !group.starts_with('{') {
        return Braced::No;
    }
    let (mut depth, mut escaped) = (0usize, false);
    for (i, c) in group.char_indices() {
        if i > MAX_BOX_BYTES {
            return Braced::No;
        }
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Braced::Complete { content: &group[1..i], len: blanks + i + 1 };
                }
            }
            _ => {}
        }
    }
    Braced::Open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_with_both_ends_included() {
        let range: AnswerRange = "0..99999".parse().unwrap();
        assert_eq!(range, AnswerRange::default());
        assert!(range.contains(0) && range.contains(99_999) && !range.contains(100_000) && !range.contains(-1));
        assert_eq!("-5 .. =7".parse::<AnswerRange>().unwrap_err().to_string(), RANGE_SPACE_EQ);
        assert_eq!("-5..=7".parse::<AnswerRange>().unwrap().to_string(), "-5..7");
        assert_eq!("3..3".parse::<AnswerRange>().unwrap().to_string(), "3..3");
    }

    const RANGE_SPACE_EQ: &str =
        "answer range \"-5 .. =7\": \"=7\" isn't an integer; expected MIN..MAX, such as 0..99999";

    #[test]
    fn bad_ranges_say_what_is_wrong() {
        assert_eq!("99".parse::<AnswerRange>(), Err(RangeError::Shape { found: "99".into() }));
        assert_eq!("9..1".parse::<AnswerRange>(), Err(RangeError::Empty { min: 9, max: 1 }));
        for bad in ["..", "0..", "..9", "a..b", "0..9..9", "0..99999999999999999999"] {
            assert!(matches!(bad.parse::<AnswerRange>(), Err(RangeError::Bound { .. })), "{bad}");
        }
    }

    #[test]
    fn the_last_complete_box_counts() {
        for (text, expected) in [
            (r"so \boxed{12}, no, \boxed{13}.", Some("13")),
            (r"\boxed{12} and \boxed{13", Some("12")),
            (r"\boxed {7}", Some("7")),
            (r"\boxed{\text{{4}}}", Some(r"\text{{4}}")),
            (r"\boxed{\{3\}}", Some(r"\{3\}")),
            (r"\boxed42", None),
            (r"boxed{42}", None),
            ("", None),
        ] {
            assert_eq!(BoxWatcher::default().push(text).pop().as_deref(), expected, "{text}");
        }
        let long = format!(r"\boxed{{{}}} \boxed{{5}}", "9".repeat(300));
        assert_eq!(BoxWatcher::default().push(&long), ["5"]);
    }

    #[test]
    fn a_box_is_reported_with_its_last_brace() {
        let mut watcher = BoxWatcher::default();
        for piece in ["The answer is $\\bo", "xed", "{", "3", "9", "1"] {
            assert_eq!(watcher.push(piece), Vec::<String>::new(), "{piece}");
        }
        assert_eq!(watcher.push("}$."), ["391"]);
        assert_eq!(watcher.push(" done"), Vec::<String>::new());
    }

    #[test]
    fn any_split_of_a_text_finds_the_same_boxes() {
        let text = r"a \boxed{1} x \boxe \boxed2 b \boxed \boxed{\frac{3}{1}} <\boxed{é}\\boxed{4";
        let whole = BoxWatcher::default().push(text);
        assert_eq!(whole, ["1", r"\frac{3}{1}", "é"]);
        let cuts: Vec<usize> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
        for &i in &cuts {
            for &j in cuts.iter().filter(|&&j| j >= i) {
                let mut watcher = BoxWatcher::default();
                let mut found = watcher.push(&text[..i]);
                found.extend(watcher.push(&text[i..j]));
                found.extend(watcher.push(&text[j..]));
                assert_eq!(found, whole, "cut at {i} and {j}");
            }
        }
    }

    #[test]
    fn what_is_held_back_stays_small() {
        let mut watcher = BoxWatcher::default();
        for _ in 0..10_000 {
            watcher.push(r"words \boxed{ {{{{ ");
            assert!(watcher.pending.len() <= 2 * MAX_BOX_BYTES, "{}", watcher.pending.len());
        }
    }

    #[test]
    fn a_box_is_judged_against_the_range() {
        let range = AnswerRange::default();
        assert_eq!(range.judge("391"), Ok(391));
        assert_eq!(range.judge("100000"), Err(BoxRejected::OutOfRange { found: 100_000, range }));
        assert_eq!(range.judge("-1").unwrap_err().to_string(), "-1 is outside 0..99999");
        assert_eq!(range.judge("2^{100}").unwrap_err().to_string(), format!("{} is outside 0..99999", 1i128 << 100));
        assert!(matches!(range.judge("x"), Err(BoxRejected::NotInteger(_))));
    }
}
