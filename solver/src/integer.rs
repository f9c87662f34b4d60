//! The integer that the inside of a box stands for: `1,234`, `\text{42}`, `x = 42`, `2^{10}`, `\frac{84}{2}`, `5!`.
//!
//! Exact arithmetic in 128 bits; anything that isn't certainly one integer is refused with the reason: `3, 5` (two
//! numbers), `1/2`, `12.5`, `x+1`, `7 \pmod{10}`. Model output is untrusted, so depth and sizes are bounded.

/// Why a text is no integer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} isn't an integer: {reason}")]
pub struct NotInteger {
    /// The text.
    pub found: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Reads the content of a box.
pub fn parse(content: &str) -> Result<i128, NotInteger> {
    let refuse = |reason| NotInteger { found: content.trim().to_string(), reason };
    let tokens = tokens(content).map_err(refuse)?;
    let tokens = right_hand_side(&tokens);
    if tokens.is_empty() {
        return Err(refuse("it is empty"));
    }
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let value = parser.sum().map_err(refuse)?;
    if parser.at < tokens.len() {
        return Err(refuse("something follows the number"));
    }
    Ok(value)
}

/// Deepest nesting of braces and fractions.
const MAX_DEPTH: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Number(i128),
    Name,
    Open,
    Close,
    Plus,
    Minus,
    Times,
    Divide,
    Power,
    Factorial,
    Frac,
    Equals,
}

type Reason = &'static str;

/// Commands that only change how their argument looks: the braces that follow are left as a group.
const STYLES: [&str; 9] = ["text", "textbf", "mathrm", "mathbf", "boldsymbol", "bf", "rm", "displaystyle", "boxed"];
/// Commands for white space and sizes.
const BLANKS: [&str; 5] = ["quad", "qquad", "left", "right", "thinspace"];

fn tokens(content: &str) -> Result<Vec<Token>, Reason> {
    let mut out = Vec::new();
    let mut rest = content.trim();
    while let Some(c) = rest.chars().next() {
        let tail = &rest[c.len_utf8()..];
        rest = match c {
            '0'..='9' => {
                let (value, tail) = number(rest)?;
                out.push(Token::Number(value));
                tail
            }
            '\\' => {
                let name_len = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
                let (name, after) = tail.split_at(name_len);
                match name {
                    "" => match after.chars().next() {
                        Some(',' | ';' | ':' | '!' | ' ' | '$' | '(' | ')') => &after[1..],
                        Some('%') => return Err("a percentage"),
                        _ => return Err("it has an unknown LaTeX command"),
                    },
                    "cdot" | "times" => {
                        out.push(Token::Times);
                        after
                    }
                    "frac" | "dfrac" | "tfrac" => {
                        out.push(Token::Frac);
                        after
                    }
                    "text" | "mathrm" if unit(after).is_some() => unit(after).unwrap_or(after),
                    "circ" | "degree" => return Err("it has a unit that isn't words"),
                    "pmod" | "bmod" | "mod" | "equiv" => return Err("a residue, not a number"),
                    _ if STYLES.contains(&name) || BLANKS.contains(&name) => after,
                    _ => return Err("it has an unknown LaTeX command"),
                }
            }
            '{' | '(' => {
                out.push(Token::Open);
                tail
            }
            '}' | ')' => {
                out.push(Token::Close);
                tail
            }
            '+' => {
                out.push(Token::Plus);
                tail
            }
            '-' | '\u{2212}' => {
                out.push(Token::Minus);
                tail
            }
            '*' | '\u{d7}' | '\u{b7}' => {
                out.push(Token::Times);
                tail
            }
            '/' => {
                out.push(Token::Divide);
                tail
            }
            '^' => {
                out.push(Token::Power);
                tail
            }
            '!' => {
                out.push(Token::Factorial);
                tail
            }
            '=' => {
                out.push(Token::Equals);
                tail
            }
            '$' | '~' => tail,
            '.' if tail.is_empty() && matches!(out.last(), Some(Token::Number(_))) => tail,
            ',' => return Err("more than one number"),
            c if c.is_whitespace() => tail,
            c if c.is_alphabetic() => {
                out.push(Token::Name);
                &rest[rest.len() - rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').len()..]
            }
            _ => return Err("it has a character that no integer has"),
        };
    }
    Ok(out)
}

/// After `\text`: what follows a group of words without digits (`{ ways}`), a unit that doesn't change the number.
fn unit(after: &str) -> Option<&str> {
    let (words, tail) = after.trim_start().strip_prefix('{')?.split_once('}')?;
    let is_words = |c: char| c.is_alphabetic() || c.is_whitespace() || c == '.';
    words.chars().all(is_words).then_some(tail)
}

/// Digits, grouped by threes with `,`, `{,}`, a blank or a LaTeX thin space if at all; a fraction of zeros is dropped.
fn number(text: &str) -> Result<(i128, &str), Reason> {
    let digits_of = |t: &str| t.bytes().take_while(u8::is_ascii_digit).count();
    let first = digits_of(text);
    let mut digits = text[..first].to_string();
    let mut rest = &text[first..];
    while let Some((tail, is_blank)) = strip_separator(rest) {
        match digits_of(tail) {
            0 if is_blank => break,
            3 if first <= 3 => {
                digits.push_str(&tail[..3]);
                rest = &tail[3..];
            }
            _ => return Err("more than one number"),
        }
    }
    if let Some(fraction) = rest.strip_prefix('.') {
        let n = digits_of(fraction);
        if fraction[..n].bytes().any(|b| b != b'0') {
            return Err("it has a fractional part");
        }
        rest = &fraction[n..];
    }
    let significant = digits.trim_start_matches('0');
    if significant.len() > 36 {
        return Err("it has more than 36 digits");
    }
    Ok((significant.bytes().fold(0, |v, b| v * 10 + i128::from(b - b'0')), rest))
}

/// A separator of digit groups, and whether it may as well be plain white space.
fn strip_separator(text: &str) -> Option<(&str, bool)> {
    for comma in ["{,}", "\\,", "\\!", "\\;", "\\:", ","] {
        if let Some(tail) = text.strip_prefix(comma) {
            let tail = tail.trim_start_matches("\\!").trim_start();
            return Some((tail, comma != "," && comma != "{,}"));
        }
    }
    let tail = text.trim_start();
    (tail.len() < text.len()).then_some((tail, true))
}

/// In `n = 42`, what follows the last sign, where everything before it is a name or an equation itself.
fn right_hand_side(tokens: &[Token]) -> &[Token] {
    match tokens.iter().rposition(|t| *t == Token::Equals) {
        Some(i) if i > 0 => &tokens[i + 1..],
        _ => tokens,
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

const OVERFLOW: Reason = "it is too large";
const NOT_EXACT: Reason = "a division that leaves a remainder";

impl Parser<'_> {
    fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).copied()
    }

    fn take(&mut self, token: Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn sum(&mut self) -> Result<i128, Reason> {
        let mut value = self.signed_product()?;
        loop {
            let negative = match self.peek() {
                Some(Token::Plus) => false,
                Some(Token::Minus) => true,
                _ => return Ok(value),
            };
            self.at += 1;
            let term = self.product()?;
            value = if negative { value.checked_sub(term) } else { value.checked_add(term) }.ok_or(OVERFLOW)?;
        }
    }

    fn signed_product(&mut self) -> Result<i128, Reason> {
        if self.take(Token::Minus) {
            return self.product()?.checked_neg().ok_or(OVERFLOW);
        }
        self.take(Token::Plus);
        self.product()
    }

    fn product(&mut self) -> Result<i128, Reason> {
        let mut value = self.power()?;
        loop {
            if self.take(Token::Times) {
                value = value.checked_mul(self.power()?).ok_or(OVERFLOW)?;
            } else if self.take(Token::Divide) {
                value = divide(value, self.power()?)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn power(&mut self) -> Result<i128, Reason> {
        let mut base = self.atom()?;
        while self.take(Token::Factorial) {
            if !(0..=30).contains(&base) {
                return Err(OVERFLOW);
            }
            base = (1..=base).product();
        }
        if !self.take(Token::Power) {
            return Ok(base);
        }
        let exponent = if matches!(self.peek(), Some(Token::Number(_))) { self.atom()? } else { self.group()? };
        let exponent = u32::try_from(exponent).map_err(|_| "its exponent is negative or too large")?;
        base.checked_pow(exponent).ok_or(OVERFLOW)
    }

    fn atom(&mut self) -> Result<i128, Reason> {
        match self.peek() {
            Some(Token::Number(value)) => {
                self.at += 1;
                Ok(value)
            }
            Some(Token::Open) => self.group(),
            Some(Token::Frac) => {
                self.at += 1;
                let numerator = self.group()?;
                divide(numerator, self.group()?)
            }
            Some(Token::Name) => Err("it has letters in it"),
            _ => Err("a number is missing"),
        }
    }

    fn group(&mut self) -> Result<i128, Reason> {
        if !self.take(Token::Open) {
            return Err("a group in braces is missing");
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("it is nested too deeply");
        }
        let value = self.sum()?;
        self.depth -= 1;
        if self.take(Token::Close) { Ok(value) } else { Err("its braces don't match") }
    }
}

fn divide(numerator: i128, denominator: i128) -> Result<i128, Reason> {
    match numerator.checked_rem(denominator) {
        Some(0) => Ok(numerator / denominator),
        Some(_) => Err(NOT_EXACT),
        None => Err("a division by zero"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_in_their_many_spellings() {
        for (text, expected) in [
            ("391", 391),
            (" 0042 ", 42),
            ("0", 0),
            ("-7", -7),
            ("\u{2212}7", -7),
            ("+7", 7),
            ("$12$", 12),
            ("1,234", 1234),
            ("1{,}234{,}567", 1_234_567),
            ("1\\,234", 1234),
            ("12,\\!345", 12_345),
            ("12 345", 12_345),
            ("42.", 42),
            ("42.0", 42),
            ("42.000", 42),
            ("\\text{42}", 42),
            ("\\mathbf{ 42 }", 42),
            ("{42}", 42),
            ("42\\text{ ways}", 42),
            ("42 \\mathrm{cm}", 42),
            ("\\$42", 42),
            ("\\(42\\)", 42),
            ("n = 42", 42),
            ("x_1 = 6 \\cdot 7 = 42", 42),
            ("2^{10}", 1024),
            ("2^10", 1024),
            ("3 \\cdot 5^2", 75),
            ("2 \\times (3 + 4) - 1", 13),
            ("\\frac{84}{2}", 42),
            ("84/2", 42),
            ("5!", 120),
            ("-2^{2}", -4),
            ("\\left(3\\right)", 3),
            ("42 \\quad", 42),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_certainly_one_integer_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            ("x", "it has letters in it"),
            ("x + 1", "it has letters in it"),
            ("3, 5", "more than one number"),
            ("1,2345", "more than one number"),
            ("1234,567", "more than one number"),
            ("3 5", "more than one number"),
            ("12.5", "it has a fractional part"),
            ("1/2", NOT_EXACT),
            ("\\frac{1}{0}", "a division by zero"),
            ("\\frac12", "a group in braces is missing"),
            ("7 \\pmod{10}", "a residue, not a number"),
            ("50\\%", "a percentage"),
            ("\\sqrt{16}", "it has an unknown LaTeX command"),
            ("90^\\circ", "it has a unit that isn't words"),
            ("2^{-1}", "its exponent is negative or too large"),
            ("9^{999999999}", OVERFLOW),
            ("99!", OVERFLOW),
            ("{42", "its braces don't match"),
            ("42}", "something follows the number"),
            ("42 apples", "something follows the number"),
            ("2(3)", "something follows the number"),
            ("= 42", "a number is missing"),
            ("?", "it has a character that no integer has"),
            ("\\text{none}", "it is empty"),
        ] {
            assert_eq!(parse(text).map_err(|e| e.reason), Err(reason), "{text}");
        }
        assert_eq!(parse(&"9".repeat(40)).map_err(|e| e.reason), Err("it has more than 36 digits"));
        assert_eq!(parse(&"{".repeat(250)).map_err(|e| e.reason), Err("it is nested too deeply"));
    }

    #[test]
    fn no_text_panics() {
        let alphabet: Vec<char> = "0123456789.,{}()+-*/^!=\\$ x\u{e9}\u{2212}".chars().collect();
        let words = ["\\frac{", "\\text{", "\\cdot", "\\,", "{,}", "99999999999999999999", "\\pmod"];
        let mut state = 7u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..draw(12) {
                if draw(4) == 0 { text += words[draw(words.len())] } else { text.push(alphabet[draw(alphabet.len())]) }
            }
            if let Ok(value) = parse(&text) {
                assert!(text.chars().any(|c| c.is_ascii_digit()), "{text} gave {value}");
            }
        }
    }
}
