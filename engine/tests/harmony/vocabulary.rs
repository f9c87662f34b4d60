//! The vocabulary of gpt-oss as a GGUF file would hold it, made from tiktoken's table, and both encoders on many texts.

use std::collections::HashMap;
use std::sync::OnceLock;

use engine::gguf::{Metadata, Strings, Value};
use engine::tokenizer::Tokenizer;
use tiktoken_rs::CoreBPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const N_VOCAB: u32 = 201_088;
/// Tokens below are text, those from here on are special.
const N_WORDS: u32 = 199_998;

pub struct O200k {
    pub ours: Tokenizer,
    pub theirs: CoreBPE,
}

pub fn o200k() -> &'static O200k {
    static VOCABULARY: OnceLock<O200k> = OnceLock::new();
    VOCABULARY.get_or_init(|| {
        let theirs = tiktoken_rs::o200k_harmony().unwrap();
        let ours = Tokenizer::from_gguf(&metadata(&theirs)).unwrap();
        O200k { ours, theirs }
    })
}

/// Tokens in the byte alphabet of GPT-2, and every merge of two tokens that makes a third, best first: as converters
/// write them.
fn metadata(theirs: &CoreBPE) -> Metadata {
    let bytes: Vec<Vec<u8>> = theirs._decode_native_and_split((0..N_VOCAB).collect()).collect();
    assert_eq!(bytes.len(), N_VOCAB as usize);
    let (words, specials) = bytes.split_at(N_WORDS as usize);
    let alphabet = alphabet();
    let spell = |bytes: &[u8]| bytes.iter().map(|b| alphabet[*b as usize]).collect::<String>();
    let rank: HashMap<&[u8], usize> = words.iter().map(Vec::as_slice).zip(0..).collect();
    let mut merges = Vec::new();
    for word in words {
        let mut splits: Vec<(usize, usize, usize)> =
            (1..word.len()).filter_map(|at| Some((*rank.get(&word[..at])?, *rank.get(&word[at..])?, at))).collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(_, _, at)| format!("{} {}", spell(&word[..at]), spell(&word[at..]))));
    }
    let special_texts = specials.iter().map(|s| String::from_utf8(s.clone()).unwrap());
    let tokens: Vec<String> = words.iter().map(|w| spell(w)).chain(special_texts).collect();
    let types: Vec<i32> = (0..N_VOCAB).map(|id| if id < N_WORDS { 1 } else { 3 }).collect();
    let entries = [
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.pre", Value::from("gpt-4o")),
        ("tokenizer.ggml.tokens", Value::from(tokens)),
        ("tokenizer.ggml.token_type", Value::from(types)),
        ("tokenizer.ggml.merges", Value::from(merges.iter().map(String::as_str).collect::<Strings>())),
        ("tokenizer.ggml.bos_token_id", Value::from(199_998u32)),
        ("tokenizer.ggml.eos_token_id", Value::from(200_002u32)),
        // As some files have it, though the model goes on after it.
        ("tokenizer.ggml.eot_token_id", Value::from(200_007u32)),
    ];
    Metadata::from_entries(entries.map(|(key, value)| (key.to_owned(), value)))
}

/// The character that stands for each byte.
fn alphabet() -> Vec<char> {
    let moved = (0..256u32).filter(|b| !matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff));
    let mut chars: Vec<char> = (0..=255u8).map(char::from).collect();
    for (byte, code) in moved.zip(0x100..) {
        chars[byte as usize] = char::from_u32(code).unwrap();
    }
    let known = ByteLevel::alphabet();
    assert!(chars.iter().all(|c| known.contains(c)));
    chars
}

#[track_caller]
fn check(text: &str) {
    let O200k { ours, theirs } = o200k();
    assert_eq!(ours.encode_ordinary(text), theirs.encode_ordinary(text), "{text:?}");
    assert_eq!(ours.encode(text, false), theirs.encode_ordinary(text), "{text:?}");
    let ids = ours.encode(text, true);
    assert_eq!(ids, theirs.encode_with_special_tokens(text), "{text:?}");
    assert_eq!(ours.decode(&ids, true), text);
}

#[test]
fn special_tokens_are_where_the_format_has_them() {
    let O200k { ours, .. } = o200k();
    for (name, id) in [
        ("<|startoftext|>", 199_998),
        ("<|endoftext|>", 199_999),
        ("<|return|>", 200_002),
        ("<|constrain|>", 200_003),
        ("<|channel|>", 200_005),
        ("<|start|>", 200_006),
        ("<|end|>", 200_007),
        ("<|message|>", 200_008),
        ("<|call|>", 200_012),
    ] {
        assert_eq!(ours.token_id(name), Some(id), "{name}");
        assert!(ours.is_control(id), "{name}");
    }
    assert_eq!(ours.n_vocab(), N_VOCAB as usize);
    assert_eq!(ours.end_of_generation(), [199_999, 200_002, 200_012], "end of text, return, call; not end");
    assert_eq!(ours.unencodable_bytes(), [0u8; 0]);
}

#[test]
fn texts_of_all_kinds_are_encoded_as_by_tiktoken() {
    for text in [
        "",
        " ",
        "Hello, world!",
        "We need to find the number of positive integers n ≤ 10^5 such that $\\varphi(n) = 2^k$.",
        "\\[\n\\sum_{i=1}^{\\infty} \\frac{1}{i^2} = \\frac{\\pi^2}{6}\n\\]",
        "from sympy import *\n\nfor i in range(10):\n\tprint(f\"{i:>3}\", i**2)   # squares\n\n\n",
        "I'LL don't CAN'T we've it's HE'D 'sure 'Tis",
        "camelCase HTMLParser XMLHttpRequest ABCdefGHI aB Ab ΑΒγδ ǅabc",
        "1234567890 3.14159 1,000,000 ²³ Ⅷ ٣٤٥ ½",
        "   leading\n\n  \n\ttabs \u{a0}nbsp\u{3000}wide\r\n\r\nend   ",
        "a//b http://x.y/z?q=1//\n///\n!!!/\r\n",
        "日本語のテキスト 中文 한국어 العربية עברית हिन्दी ไทย",
        "👩‍👩‍👧‍👦 🇩🇪 ☺️ e\u{301} \u{200d}\u{feff}",
        "<|start|>assistant<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        "<|start|>user<|message|><|end|><|return|><|reserved_200500|><|nope|> <|endoftext|>",
        "<|sta<|start|>rt|> <| start |>",
        "\0\u{1}\u{7f}\u{80}",
    ] {
        check(text);
    }
    check(&"ab".repeat(3000));
    check(&format!("x{}y", " ".repeat(3000)));
    check(&"9".repeat(1000));
    check(include_str!("vocabulary.rs"));
    check(include_str!("../../src/chat/harmony/parser.rs"));
}

#[test]
fn random_texts_are_encoded_as_by_tiktoken() {
    const WORDS: [&str; 44] = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "a",
        "the",
        "The",
        "THE",
        "Don't",
        "'s",
        "'LL",
        "'",
        "é",
        "ß",
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
        "٣",
        "!",
        "//",
        "/",
        "$\\frac{",
        "—",
        "🦙",
        "\u{200d}",
        "_",
        "x_1",
        "<|",
        "|>",
        "<|end|>",
        "<|message|>",
        "\\boxed{",
    ];
    let mut state = 7u64;
    let mut next = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..6000 {
        let text: String = (0..1 + next(14)).map(|_| WORDS[next(WORDS.len())]).collect();
        check(&text);
    }
    for _ in 0..2000 {
        let text: String = (0..next(30)).filter_map(|_| char::from_u32(next(0x3_0000) as u32)).collect();
        check(&text);
    }
}
