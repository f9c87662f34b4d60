//! Fenced Python: "```python" … "```", found in streamed text, however it is cut into pieces.
//!
//! [`CallParser`] tells prose from code and reports a block with its closing fence; [`OutputFence`] holds blocks back
//! until the model opens an "```output" block itself. Called by the readers.

use super::thought::held_back;

/// A piece of text, classified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fenced {
    /// Text outside code.
    Prose(String),
    /// A complete block.
    Call(String),
}

/// Tells prose from Python blocks in streamed text.
///
/// A block opens with three backquotes, `python` or `py`, and a line break; it closes with three backquotes outside
/// strings and comments. Inside a triple-quoted string a fence at the beginning of a line is taken for text; if the
/// string is never closed (the usual case is a mistake of the model), the block ended at the first such fence after
/// all, which shows when an `output` fence or the end of the text follows.
#[derive(Debug, Clone, Default)]
pub(super) struct CallParser {
    /// Text not classified yet.
    pending: String,
    block: Option<Block>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    code: String,
    lexer: Lexer,
    /// Where the code would end if the string that is open now were a mistake.
    first_fence_in_string: Option<usize>,
}

/// Where in Python's lexical structure the code so far ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Lexer {
    #[default]
    Code,
    Comment,
    /// `'…'` or `"…"`.
    Text(char),
    /// `'''…'''` or `"""…"""`.
    LongText(char),
}

const FENCE: &str = "```";
/// Longest language tag that can be ours, blanks included.
const MAX_TAG_BYTES: usize = 32;

impl CallParser {
    /// Takes the next piece of text; gives what it settles, in order.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Fenced> {
        self.pending.push_str(piece);
        let mut parts = Vec::new();
        loop {
            let progressed = match self.block.take() {
                None => self.scan_prose(&mut parts),
                Some(block) => self.scan_code(block, &mut parts),
            };
            if !progressed {
                return parts;
            }
        }
    }

    /// The text has ended: an open block is closed, held-back text is prose.
    pub(super) fn finish(&mut self) -> Vec<Fenced> {
        let rest = std::mem::take(&mut self.pending);
        match self.block.take() {
            None if rest.is_empty() => Vec::new(),
            None => vec![Fenced::Prose(rest)],
            Some(block) => {
                let at = block.first_fence_in_string;
                let mut code = block.code;
                match at {
                    Some(at) => code.truncate(at),
                    None if rest.starts_with(FENCE) => {}
                    // Up to two backquotes, or a quote, were waiting for what follows them.
                    None => code.push_str(rest.trim_end_matches('`')),
                }
                vec![Fenced::Call(dedent(&code))]
            }
        }
    }

    fn scan_prose(&mut self, parts: &mut Vec<Fenced>) -> bool {
        let mut settled = 0;
        while let Some(found) = self.pending[settled..].find(FENCE) {
            let start = settled + found;
            let info = start + self.pending[start..].len() - self.pending[start..].trim_start_matches('`').len();
            match opening(&self.pending[info..]) {
                Opening::Python { len } => {
                    emit(parts, &self.pending[..start]);
                    self.pending.drain(..info + len);
                    self.block = Some(Block::default());
                    return true;
                }
                Opening::Undecided => {
                    emit(parts, &self.pending[..start]);
                    self.pending.drain(..start);
                    return false;
                }
                Opening::Other => settled = info,
            }
        }
        // One or two backquotes at the end may be the beginning of a fence.
        let cut = self.pending.trim_end_matches('`').len();
        emit(parts, &self.pending[..cut]);
        self.pending.drain(..cut);
        false
    }

    fn scan_code(&mut self, mut block: Block, parts: &mut Vec<Fenced>) -> bool {
        let mut at = 0;
        let end = loop {
            let rest = &self.pending[at..];
            let Some(c) = rest.chars().next() else { break None };
            let after = at + c.len_utf8();
            let n_same = rest.chars().take(3).take_while(|&d| d == c).count();
            let undecided = n_same < 3 && rest.len() == n_same * c.len_utf8();
            let mut n_bytes = c.len_utf8();
            match (block.lexer, c) {
                (Lexer::Code, '`') if n_same == 3 => break Some((at + 3, block.code.len())),
                (Lexer::Code, '`') if undecided => break None,
                (Lexer::Code, '#') => block.lexer = Lexer::Comment,
                (Lexer::Code, '"' | '\'') => match n_same {
                    3 => {
                        block.lexer = Lexer::LongText(c);
                        n_bytes = 3;
                    }
                    _ if undecided => break None,
                    2 => n_bytes = 2,
                    _ => block.lexer = Lexer::Text(c),
                },
                (Lexer::Comment | Lexer::Text(_), '\n') => block.lexer = Lexer::Code,
                (Lexer::Text(quote), _) if c == quote => block.lexer = Lexer::Code,
                (Lexer::LongText(quote), _) if c == quote => match n_same {
                    3 => {
                        block.lexer = Lexer::Code;
                        block.first_fence_in_string = None;
                        n_bytes = 3;
                    }
                    _ if undecided => break None,
                    _ => {}
                },
                (Lexer::Text(_) | Lexer::LongText(_), '\\') => match self.pending[after..].chars().next() {
                    None => break None,
                    // A line break stays a line break, so that a short string ends with its line.
                    Some('\n') => {}
                    Some(escaped) => n_bytes += escaped.len_utf8(),
                },
                (Lexer::LongText(_), '`') if begins_line(&block.code) => {
                    if undecided {
                        break None;
                    }
                    if n_same == 3 {
                        let Some((tag, _)) = self.pending[at + 3..].split_once('\n') else { break None };
                        let is_block = is_python(tag) && block.first_fence_in_string.is_some();
                        if tag.trim().eq_ignore_ascii_case("output") || is_block {
                            break Some((at, block.first_fence_in_string.unwrap_or(block.code.len())));
                        }
                        block.first_fence_in_string.get_or_insert(block.code.len());
                        n_bytes = 3;
                    }
                }
                _ => {}
            }
            block.code.push_str(&self.pending[at..at + n_bytes]);
            at += n_bytes;
        };
        match end {
            Some((read, code_len)) => {
                self.pending.drain(..read);
                block.code.truncate(code_len);
                parts.push(Fenced::Call(dedent(&block.code)));
                true
            }
            None => {
                self.pending.drain(..at);
                self.block = Some(block);
                false
            }
        }
    }
}

/// Holds blocks back until the model opens a block for their output.
#[derive(Debug, Clone, Default)]
pub(super) struct OutputFence {
    parser: CallParser,
    /// Blocks that wait, one after the other.
    code: String,
    /// The end of the prose, where it could be the beginning of an output fence.
    pending: String,
}

const OUTPUT_FENCE: &str = "```output";

impl OutputFence {
    /// Takes the next piece of text; gives what it settles, in order. What follows an output fence in the same piece
    /// stays prose.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Fenced> {
        let parts = self.parser.push(piece);
        self.take(parts)
    }

    /// The text has ended: blocks that wait are called.
    pub(super) fn finish(&mut self) -> Vec<Fenced> {
        let parts = self.parser.finish();
        let mut parts = self.take(parts);
        emit(&mut parts, &std::mem::take(&mut self.pending));
        let code = std::mem::take(&mut self.code);
        if !code.is_empty() {
            parts.push(Fenced::Call(code));
        }
        parts
    }

    fn take(&mut self, parts: Vec<Fenced>) -> Vec<Fenced> {
        let mut taken = Vec::new();
        for part in parts {
            match part {
                Fenced::Call(block) => {
                    emit(&mut taken, &std::mem::take(&mut self.pending));
                    if !self.code.is_empty() {
                        self.code.push('\n');
                    }
                    self.code.push_str(&block);
                }
                Fenced::Prose(text) => {
                    let text = std::mem::take(&mut self.pending) + &text;
                    let mut rest = text.as_str();
                    // Without code an output fence is the model's own invention, and text like any other.
                    while let Some(at) = rest.find(OUTPUT_FENCE).filter(|_| !self.code.is_empty()) {
                        emit(&mut taken, &rest[..at]);
                        taken.push(Fenced::Call(std::mem::take(&mut self.code)));
                        rest = &rest[at + OUTPUT_FENCE.len()..];
                    }
                    let settled = rest.len() - held_back(rest, &[OUTPUT_FENCE]);
                    emit(&mut taken, &rest[..settled]);
                    self.pending = rest[settled..].to_string();
                }
            }
        }
        taken
    }
}

fn emit(parts: &mut Vec<Fenced>, prose: &str) {
    match parts.last_mut() {
        _ if prose.is_empty() => {}
        Some(Fenced::Prose(text)) => text.push_str(prose),
        _ => parts.push(Fenced::Prose(prose.to_string())),
    }
}

enum Opening {
    /// `len` bytes, the line break included.
    Python {
        len: usize,
    },
    Undecided,
    Other,
}

/// What the text after backquotes opens.
fn opening(info: &str) -> Opening {
    match info.find('\n') {
        Some(end) if is_python(&info[..end]) && end <= MAX_TAG_BYTES => Opening::Python { len: end + 1 },
        Some(_) => Opening::Other,
        None => {
            let tag = info.trim_start().to_ascii_lowercase();
            let could_be = TAGS.iter().any(|t| t.starts_with(&tag) || tag.trim_end() == *t);
            if could_be && info.len() <= MAX_TAG_BYTES { Opening::Undecided } else { Opening::Other }
        }
    }
}

const TAGS: [&str; 4] = ["python", "python3", "py", "py3"];

fn is_python(info: &str) -> bool {
    TAGS.iter().any(|t| info.trim().eq_ignore_ascii_case(t))
}

fn begins_line(code: &str) -> bool {
    code.rsplit('\n').next().is_some_and(|line| line.trim().is_empty())
}

/// Takes away indentation that all lines share (a block inside a list item); the last line may be the fence's own.
fn dedent(code: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let lines = || code.lines().filter(|l| !l.trim().is_empty());
    let shared = lines().map(indent).min().unwrap_or(0);
    let first = lines().next().map_or("", |l| &l[..shared]);
    if shared == 0 || !lines().all(|l| l.starts_with(first)) {
        return code.trim_end().to_string();
    }
    let dedented: Vec<&str> = code.lines().map(|l| l.get(shared..).unwrap_or("")).collect();
    dedented.join("\n").trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&str]) -> Vec<Fenced> {
        let mut parser = CallParser::default();
        let mut parts: Vec<Fenced> = pieces.iter().flat_map(|p| parser.push(p)).collect();
        parts.extend(parser.finish());
        let mut joined = Vec::new();
        for part in parts {
            match part {
                Fenced::Prose(text) => emit(&mut joined, &text),
                call => joined.push(call),
            }
        }
        joined
    }

    fn calls(text: &str) -> Vec<String> {
        let is_call = |p| if let Fenced::Call(code) = p { Some(code) } else { None };
        parse(&[text]).into_iter().filter_map(is_call).collect()
    }

    #[test]
    fn a_block_is_code_and_the_rest_is_prose() {
        assert_eq!(
            parse(&["Let's see.\n```python\nprint(1)\n```\nSo \\boxed{1}"]),
            [
                Fenced::Prose("Let's see.\n".into()),
                Fenced::Call("print(1)".into()),
                Fenced::Prose("\nSo \\boxed{1}".into())
            ]
        );
    }

    #[test]
    fn a_call_is_reported_with_the_last_backquote() {
        let mut parser = CallParser::default();
        assert_eq!(parser.push("```python\nprint(1)\n``"), []);
        assert_eq!(parser.push("`"), [Fenced::Call("print(1)".into())]);
    }

    #[test]
    fn blocks_of_all_shapes() {
        for (text, expected) in [
            ("```py\nx\n```", vec!["x"]),
            ("``` Python \nx\n```", vec!["x"]),
            ("````python3\nx\n````", vec!["x"]),
            ("so:```python\r\nx\r\n```", vec!["x"]),
            ("1. a\n   ```python\n   for i in a:\n       b\n   ```\n", vec!["for i in a:\n    b"]),
            ("```python\nx```", vec!["x"]),
            ("```python\n\n```", vec![""]),
            ("```python\nx", vec!["x"]),
            ("```python\nx\n``", vec!["x"]),
            ("```python\na\n```\n```python\nb\n```", vec!["a", "b"]),
            ("```\nx\n```", vec![]),
            ("```json\nx\n```\n```python\ny\n```", vec!["y"]),
            ("```pythonic\nx\n```", vec![]),
            ("use ```python print``` here", vec![]),
            ("```output\n5\n```", vec![]),
            ("```python", vec![]),
        ] {
            assert_eq!(calls(text), expected, "{text:?}");
        }
    }

    #[test]
    fn fences_inside_strings_and_comments_are_text() {
        for code in [
            "s = '```'\nprint(s)",
            "s = \"\"\"\n```\nx\n```\n\"\"\"\nprint(s)",
            "s = '''\n```python\nx\n```\n'''\nprint(s)",
            "# ``` is a fence\nprint(1)",
            "s = 'it\\'s ```'\nprint(s)",
            "s = ''\nt = \"\"\nprint(1)",
            "s = r'\\'\nprint(1)",
            "d = f\"{x['a']}\"\nprint('``' + '`')",
        ] {
            let text = format!("```python\n{code}\n```\nend");
            assert_eq!(calls(&text), [code], "{text}");
        }
    }

    #[test]
    fn an_unclosed_string_does_not_swallow_the_fence() {
        assert_eq!(calls("```python\nx = \"\"\"a\n```\n"), ["x = \"\"\"a"]);
        assert_eq!(calls("```python\nx = \"\"\"a\n```\n```output\n5\n```\n"), ["x = \"\"\"a"]);
        assert_eq!(calls("```python\nx = \"\"\"a\n```output\n5\n```\n"), ["x = \"\"\"a"]);
        assert_eq!(calls("```python\nx = '''\n```\n```python\nprint(2)\n```"), ["x = '''", "print(2)"]);
        assert_eq!(calls("```python\nx = 'a\n```\n"), ["x = 'a"]);
    }

    /// Texts that use every branch.
    const CORPUS: [&str; 8] = [
        "Hi ``x`` ```python\nprint(\"\"\"a\n```\nb\"\"\")\n```\nend ``",
        "```py\ns = '\\'' # ' ```\nt = \"\\\\\"\n```` ```python\nx",
        "a ``` b ```pythonx\n```python3 \n\n   x = ''\n   y = ''''''\n   ```\n",
        "```python\nx = '''é\n```\n```output\n7\n```\nso \\boxed{7}",
        "```python\nx = '''\n``` \n  ```python\nprint(2)\n``",
        "````\n```\n``python\n```PY\n\t'\\\n```",
        "```python\n\"\"\"\\\"\"\"\"```\"\"```",
        "no code at all `a` ``b`` `",
    ];

    #[test]
    fn any_split_in_three_gives_the_same_parts() {
        for text in CORPUS {
            let whole = parse(&[text]);
            let cuts: Vec<usize> = (0..=text.len()).filter(|&i| text.is_char_boundary(i)).collect();
            for &i in &cuts {
                for &j in cuts.iter().filter(|&&j| j >= i) {
                    assert_eq!(parse(&[&text[..i], &text[i..j], &text[j..]]), whole, "{text:?} cut at {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn random_texts_give_the_same_parts_char_by_char() {
        let words = ["```", "`", "python", "py", "\n", "\"", "'''", "\"\"\"", "\\", "#", " ", "output", "x", "é", "'"];
        let mut state = 1u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut n_calls = 0;
        for round in 0..4000 {
            let mut text = if round % 2 == 0 { "```python\n".to_string() } else { String::new() };
            for _ in 0..draw(24) {
                text += words[draw(words.len())];
            }
            let whole = parse(&[&text]);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(parse(&pieces), whole, "{text:?}");
            n_calls += whole.iter().filter(|p| matches!(p, Fenced::Call(_))).count();
        }
        assert!(n_calls > 2000, "the texts hold calls: {n_calls}");
    }
}
