//! Python in colours: code cut into spans that say what they are. It never fails: what it doesn't know is plain.

use serde::Serialize;

/// A piece of code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Span<'c> {
    /// `kw`, `str`, `num`, `com`, `fn` or nothing.
    pub class: &'static str,
    /// The code itself.
    pub text: &'c str,
}

const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];

/// Cuts code into spans; together they are the code.
pub(super) fn python(code: &str) -> Vec<Span<'_>> {
    let mut spans: Vec<Span<'_>> = Vec::new();
    let (mut at, mut plain_from) = (0, 0);
    while let Some(c) = code[at..].chars().next() {
        let rest = &code[at..];
        let (class, n_bytes) = match c {
            '#' => ("com", rest.find('\n').unwrap_or(rest.len())),
            '"' | '\'' => ("str", string_bytes(rest, c)),
            '0'..='9' => ("num", run_bytes(rest, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'))),
            c if c.is_alphabetic() || c == '_' => {
                let n_bytes = run_bytes(rest, |c| c.is_alphanumeric() || c == '_');
                let (word, after) = rest.split_at(n_bytes);
                match after.chars().next() {
                    _ if KEYWORDS.contains(&word) => ("kw", n_bytes),
                    // f"…", rb'…': the string begins here.
                    Some(quote @ ('"' | '\'')) if is_prefix(word) => ("str", n_bytes + string_bytes(after, quote)),
                    Some('(') => ("fn", n_bytes),
                    _ => ("", n_bytes),
                }
            }
            c => ("", c.len_utf8()),
        };
        if !class.is_empty() {
            if plain_from < at {
                spans.push(Span { class: "", text: &code[plain_from..at] });
            }
            spans.push(Span { class, text: &rest[..n_bytes] });
            plain_from = at + n_bytes;
        }
        at += n_bytes;
    }
    if plain_from < code.len() {
        spans.push(Span { class: "", text: &code[plain_from..] });
    }
    spans
}

fn is_prefix(word: &str) -> bool {
    word.len() <= 2 && word.chars().all(|c| matches!(c.to_ascii_lowercase(), 'r' | 'b' | 'f' | 'u'))
}

fn run_bytes(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// Bytes of the string that begins here; one that isn't closed ends with its line, or in threes with the code.
fn string_bytes(text: &str, quote: char) -> usize {
    let three = [quote; 3].iter().collect::<String>();
    let (open, close, one_line) =
        if text.starts_with(&three) { (3, three, false) } else { (1, quote.to_string(), true) };
    let mut escaped = false;
    for (i, c) in text[open..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' if one_line => return open + i,
            _ if text[open + i..].starts_with(&close) => return open + i + close.len(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(code: &str) -> Vec<(&'static str, &str)> {
        python(code).into_iter().filter(|s| !s.class.is_empty()).map(|s| (s.class, s.text)).collect()
    }

    #[test]
    fn words_strings_numbers_and_comments_are_told_apart() {
        assert_eq!(
            classes("for x in range(0x1F): # é\n    s = f'a\\'{x}' + \"\"\"b\n\"c\"\"\"\n"),
            [
                ("kw", "for"),
                ("kw", "in"),
                ("fn", "range"),
                ("num", "0x1F"),
                ("com", "# é"),
                ("str", "f'a\\'{x}'"),
                ("str", "\"\"\"b\n\"c\"\"\""),
            ]
        );
    }

    #[test]
    fn whatever_the_code_is_nothing_of_it_is_lost() {
        for code in
            ["", "'", "\"\"\"", "é'ü\\", "\\", "x = '\n1.5e3j", "f", "#", "\u{0}\u{1F600}\"\\\n\"", "rb'''\\'''"]
        {
            let text: String = python(code).iter().map(|s| s.text).collect();
            assert_eq!(text, code);
        }
    }
}
