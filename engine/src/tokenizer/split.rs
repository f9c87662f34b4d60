//! Cuts text into the words that merges stay within, as each vocabulary was trained.
//!
//! The published patterns end in `\s+(?!\S)|\s+`: a run of spaces leaves its last one to the word that follows. The
//! look-ahead is done by hand after the match, so that the patterns run on a linear-time engine: a megabyte of spaces
//! is as cheap as a megabyte of prose. Called by the encoder only.

use regex::Regex;

/// A way of cutting text into words (`tokenizer.ggml.pre`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// Qwen2, Qwen2.5 and Qwen3: each digit alone.
    Qwen2,
    /// DeepSeek-R1's distillations into Qwen: as `Qwen2`.
    DeepSeekR1Qwen,
    /// Llama 3: digits in groups of up to three from the left.
    LlamaBpe,
    /// o200k (gpt-oss): words also end before a capital that follows a small letter.
    Gpt4o,
    /// SmolLM and SmolLM2: each digit alone, then GPT-2's words.
    SmolLm,
}

impl PreTokenizer {
    const ALL: [PreTokenizer; 5] = [
        PreTokenizer::Qwen2,
        PreTokenizer::DeepSeekR1Qwen,
        PreTokenizer::LlamaBpe,
        PreTokenizer::Gpt4o,
        PreTokenizer::SmolLm,
    ];

    /// The value of `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        match self {
            PreTokenizer::Qwen2 => "qwen2",
            PreTokenizer::DeepSeekR1Qwen => "deepseek-r1-qwen",
            PreTokenizer::LlamaBpe => "llama-bpe",
            PreTokenizer::Gpt4o => "gpt-4o",
            PreTokenizer::SmolLm => "smollm",
        }
    }

    /// The pre-tokenizer of that name.
    pub fn from_name(name: &str) -> Option<PreTokenizer> {
        Self::ALL.into_iter().find(|pre| pre.name() == name)
    }

    /// All names, for messages.
    pub(super) fn known_names() -> String {
        Self::ALL.map(PreTokenizer::name).join(", ")
    }

    /// Whether a word that is a token is taken whole, even where its merges don't lead to it. So do tiktoken's
    /// vocabularies, which Llama 3's and o200k are.
    pub(super) fn whole_words_first(self) -> bool {
        matches!(self, PreTokenizer::LlamaBpe | PreTokenizer::Gpt4o)
    }

    /// Whether the family's prompts begin with BOS where the file doesn't say.
    pub(super) fn adds_bos(self) -> bool {
        self == PreTokenizer::LlamaBpe
    }

    /// The words, without the look-ahead for spaces.
    fn pattern(self) -> &'static str {
        match self {
            PreTokenizer::Qwen2 | PreTokenizer::DeepSeekR1Qwen => concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
            ),
            PreTokenizer::LlamaBpe => concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
            ),
            PreTokenizer::Gpt4o => concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
            ),
            PreTokenizer::SmolLm => r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+",
        }
    }

    /// Whether a run of spaces that ends in a newline is a word of its own, so that none of it goes to the next word.
    fn newlines_end_words(self) -> bool {
        self != PreTokenizer::SmolLm
    }
}

/// A pre-tokenizer with its pattern compiled.
pub(super) struct Splitter {
    pre: PreTokenizer,
    words: Regex,
}

impl Splitter {
    pub(super) fn new(pre: PreTokenizer) -> Splitter {
        Splitter { pre, words: Regex::new(pre.pattern()).expect("the patterns above are valid") }
    }

    pub(super) fn pre(&self) -> PreTokenizer {
        self.pre
    }

    /// Calls `word` with each word in order. Together they are the text.
    pub(super) fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        if self.pre != PreTokenizer::SmolLm {
            return self.split_words(text, word);
        }
        let mut start = 0;
        for (at, digit) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
            self.split_words(&text[start..at], word);
            start = at + digit.len_utf8();
            word(&text[at..start]);
        }
        self.split_words(&text[start..], word);
    }

    fn split_words<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        let mut start = 0;
        while let Some(found) = self.words.find_at(text, start) {
            if start < found.start() {
                word(&text[start..found.start()]);
            }
            let end = if found.end() < text.len() { self.leave_last_space(found.as_str()) } else { found.len() };
            word(&found.as_str()[..end]);
            start = found.start() + end;
        }
        if start < text.len() {
            word(&text[start..]);
        }
    }

    /// How much of a match stays when text follows: of a run of two spaces and more, all but the last.
    fn leave_last_space(&self, found: &str) -> usize {
        let last = match found.char_indices().next_back() {
            Some((at, c)) if at > 0 && c.is_whitespace() => (at, c),
            _ => return found.len(),
        };
        if self.pre.newlines_end_words() && matches!(last.1, '\r' | '\n') {
            return found.len();
        }
        if found.chars().all(char::is_whitespace) { last.0 } else { found.len() }
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior};

    use super::*;

    fn words(pre: PreTokenizer, text: &str) -> Vec<&str> {
        split_by(&Splitter::new(pre), text)
    }

    fn split_by<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        splitter.split(text, &mut |word| words.push(word));
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn digits() {
        assert_eq!(words(PreTokenizer::Qwen2, "x 1234"), ["x", " ", "1", "2", "3", "4"]);
        assert_eq!(words(PreTokenizer::LlamaBpe, "x 12345"), ["x", " ", "123", "45"]);
        assert_eq!(words(PreTokenizer::Gpt4o, "x 12345"), ["x", " ", "123", "45"]);
        assert_eq!(words(PreTokenizer::SmolLm, "x 123 y"), ["x", " ", "1", "2", "3", " y"]);
        assert_eq!(words(PreTokenizer::SmolLm, "a  1²"), ["a", "  ", "1", "²"]);
    }

    #[test]
    fn spaces() {
        assert_eq!(words(PreTokenizer::Qwen2, "a   b"), ["a", "  ", " b"]);
        assert_eq!(words(PreTokenizer::Qwen2, "a   "), ["a", "   "]);
        assert_eq!(words(PreTokenizer::Qwen2, "a \n \n  b"), ["a", " \n \n", " ", " b"]);
        assert_eq!(words(PreTokenizer::Qwen2, "a\t\tb"), ["a", "\t", "\tb"]);
        assert_eq!(words(PreTokenizer::SmolLm, "a \n\nb"), ["a", " \n", "\n", "b"]);
        assert_eq!(words(PreTokenizer::SmolLm, "a\u{3000}\u{3000}b"), ["a", "\u{3000}", "\u{3000}", "b"]);
    }

    #[test]
    fn contractions_and_case() {
        assert_eq!(words(PreTokenizer::LlamaBpe, "I'LL we've"), ["I", "'LL", " we", "'ve"]);
        assert_eq!(words(PreTokenizer::SmolLm, "I'LL we've"), ["I", "'", "LL", " we", "'ve"]);
        assert_eq!(words(PreTokenizer::Gpt4o, "HTMLParser don't"), ["HTMLParser", " don't"]);
        assert_eq!(words(PreTokenizer::Gpt4o, "camelCase"), ["camel", "Case"]);
        assert_eq!(words(PreTokenizer::Gpt4o, "a//\nb"), ["a", "//\n", "b"]);
        assert_eq!(words(PreTokenizer::LlamaBpe, "$x^2$"), ["$x", "^", "2", "$"]);
    }

    /// The pattern as it was published, look-ahead included, for the backtracking engine of `tokenizers`.
    fn published(pre: PreTokenizer) -> Split {
        let pattern = SplitPattern::Regex(pre.pattern().replace(r"|\s+", r"|\s+(?!\S)|\s+"));
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap()
    }

    fn split_by_published(pre: PreTokenizer, pattern: &Split, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        if pre == PreTokenizer::SmolLm {
            Digits::new(true).pre_tokenize(&mut pieces).unwrap();
        }
        pattern.pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, _, _)| piece.to_owned()).filter(|piece| !piece.is_empty()).collect()
    }

    #[test]
    fn agrees_with_the_published_patterns() {
        const PIECES: [&str; 40] = [
            " ",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{2028}",
            "a",
            "b",
            "B",
            "ß",
            "é",
            "Δ",
            "Ǆ",
            "ǅ",
            "日",
            "क",
            "ि",
            "\u{301}",
            "ʰ",
            "1",
            "23",
            "4567",
            "²",
            "Ⅷ",
            "٣",
            "'",
            "'s",
            "'LL",
            "'T",
            "!",
            "//",
            "$\\frac{",
            "—",
            "🦙",
            "😶\u{200d}🌫\u{fe0f}",
            "the",
            "Don't",
        ];
        let mut state = 1u64;
        let mut next = move |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let all = PreTokenizer::ALL.map(|pre| (Splitter::new(pre), published(pre)));
        for _ in 0..3000 {
            let text: String = (0..1 + next(12)).map(|_| PIECES[next(PIECES.len())]).collect();
            for (splitter, pattern) in &all {
                let pre = splitter.pre();
                let expected = split_by_published(pre, pattern, &text);
                assert_eq!(split_by(splitter, &text), expected, "{} of {text:?}", pre.name());
            }
        }
    }
}
