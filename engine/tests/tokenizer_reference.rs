//! The tokenizer on real vocabularies: those of llama.cpp's own tests with their expected ids, beside the repository.
//! Each test says so and passes where they are absent.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use engine::gguf::{GgufFile, Metadata};
use engine::tokenizer::{PreTokenizer, Tokenizer};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

const LLAMA: &str = "ggml-vocab-llama-bpe.gguf";
const QWEN: &str = "ggml-vocab-qwen2.gguf";

fn reference(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/vocab").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// The vocabulary of that name, read once for all tests.
fn open(name: &str) -> Option<&'static (GgufFile, Tokenizer)> {
    static OPENED: [OnceLock<Option<(GgufFile, Tokenizer)>>; 2] = [OnceLock::new(), OnceLock::new()];
    let read = || {
        let gguf = GgufFile::open(&reference(name)?).unwrap();
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
        Some((gguf, tokenizer))
    };
    OPENED[usize::from(name == QWEN)].get_or_init(read).as_ref()
}

#[test]
fn expected_ids() {
    for name in [LLAMA, QWEN] {
        let Some((_, tokenizer)) = open(name) else { continue };
        let (Some(inputs), Some(outputs)) = (reference(&format!("{name}.inp")), reference(&format!("{name}.out")))
        else {
            continue;
        };
        let (inputs, outputs) = (std::fs::read_to_string(inputs).unwrap(), std::fs::read_to_string(outputs).unwrap());
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let outputs: Vec<&str> = outputs.lines().collect();
        assert_eq!(inputs.len(), outputs.len() + usize::from(inputs.last() == Some(&"")), "{name}");
        for (text, expected) in inputs.iter().zip(&outputs) {
            let expected: Vec<u32> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let ids = tokenizer.encode(text, false);
            assert_eq!(ids, expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids, false), *text, "{name}");
        }
        eprintln!("{name}: {} cases", outputs.len());
        assert!(outputs.len() >= 40);
    }
}

/// The prompts whose logits are kept as reference were tokenised by llama.cpp; Qwen2.5-Coder has Qwen2's words.
#[test]
fn prompts_of_the_reference_logits() {
    let Some((_, tokenizer)) = open(QWEN) else { return };
    let Some(golden) = reference("../golden/logits.json") else { return };
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let mut n_prompts = 0;
    for case in golden.as_array().unwrap() {
        if !case["model"].as_str().unwrap().starts_with("qwen2.5-coder") {
            continue;
        }
        let expected: Vec<u64> = case["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let ids: Vec<u64> =
            tokenizer.encode(case["prompt"].as_str().unwrap(), false).into_iter().map(u64::from).collect();
        assert_eq!(ids, expected, "{}", case["prompt_name"]);
        n_prompts += 1;
    }
    assert!(n_prompts >= 8, "{n_prompts} prompts");
}

#[test]
fn special_tokens() {
    if let Some((_, t)) = open(LLAMA) {
        assert_eq!(
            (t.n_vocab(), t.pre_tokenizer(), t.bos(), t.eos()),
            (128_256, "llama-bpe", Some(128_000), Some(128_001))
        );
        assert_eq!(t.encode("<|eot_id|>", true), [128_009]);
        assert_eq!(t.decode(&t.encode("<|eot_id|>", false), false), "<|eot_id|>");
        assert!(t.encode("a<|eot_id|>b", false).iter().all(|id| !t.is_control(*id)));
        assert_eq!(t.end_of_generation(), [128_001, 128_009]);
        assert_eq!(
            t.encode_with_bos("Hello world", false),
            [128_000, 9906, 1917],
            "the family's prompts begin with BOS"
        );
        assert_eq!(t.encode_with_bos("<|begin_of_text|>Hello world", true), [128_000, 9906, 1917]);
        assert!(t.unencodable_bytes().is_empty());
        assert_eq!(t.token_id(" world"), Some(1917));
    }
    if let Some((_, t)) = open(QWEN) {
        assert_eq!((t.n_vocab(), t.pre_tokenizer()), (151_936, "qwen2"));
        assert_eq!(t.encode("<|im_start|>user\n", true), [151_644, 872, 198]);
        assert!(t.is_control(151_644) && !t.is_control(872));
        assert_eq!(t.end_of_generation(), [151_643, 151_645]);
        assert_eq!(t.encode_with_bos("Hello", false), t.encode("Hello", false), "no BOS");
        assert_eq!(t.encode("[PAD151700]", false), [151_700], "user-defined in this file");
    }
}

/// Text that mixes scripts, spaces, digits, marks and controls.
fn random_text(next: &mut impl FnMut() -> u64) -> String {
    let n = next() % 60;
    (0..n)
        .map(|_| match next() % 10 {
            0 => ' ',
            1 => ['\n', '\t', '\r', '\u{a0}', '\'', '"', '$', '\\'][next() as usize % 8],
            2 => (b'0' + (next() % 10) as u8) as char,
            3..=5 => (b'a' + (next() % 26) as u8) as char,
            6 => (b'A' + (next() % 26) as u8) as char,
            7 => char::from_u32((next() % 0x3000) as u32).unwrap_or('\u{fffd}'),
            _ => char::from_u32((next() % 0x11_0000) as u32).unwrap_or('\u{fffd}'),
        })
        .collect()
}

fn seeded(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}

#[test]
fn random_text_comes_back() {
    for name in [LLAMA, QWEN] {
        let Some((_, tokenizer)) = open(name) else { continue };
        let mut next = seeded(0x1234_5678_9abc_def1);
        for _ in 0..1500 {
            let text = random_text(&mut next);
            for parse_special in [false, true] {
                let ids = tokenizer.encode(&text, parse_special);
                assert_eq!(tokenizer.decode(&ids, true), text, "{name}");
                let mut stream = tokenizer.stream();
                let mut streamed: String = ids.iter().map(|id| stream.push(tokenizer, *id)).collect();
                streamed += &stream.flush();
                assert_eq!(streamed, text, "{name}");
            }
        }
    }
}

/// The whole pipeline of `tokenizers` as Hugging Face would build it from the same vocabulary.
fn oracle(m: &Metadata, pattern: &str, ignore_merges: bool) -> tokenizers::Tokenizer {
    let tokens = m.strings("tokenizer.ggml.tokens").unwrap().iter();
    let vocab: tokenizers::models::bpe::Vocab = tokens.map(str::to_owned).zip(0u32..).collect();
    let merges = m.strings("tokenizer.ggml.merges").unwrap().iter();
    let merges =
        merges.map(|merge| merge.split_once(' ').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges).build().unwrap();
    let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false).unwrap();
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    tokenizer
}

#[test]
fn agrees_with_the_whole_pipeline_of_tokenizers() {
    const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
    const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    for (name, digits, ignore_merges) in [(LLAMA, r"\p{N}{1,3}", true), (QWEN, r"\p{N}", false)] {
        let Some((gguf, tokenizer)) = open(name) else { continue };
        assert!(PreTokenizer::from_name(tokenizer.pre_tokenizer()).is_some());
        let oracle = oracle(gguf.metadata(), &format!("{WORDS}{digits}{REST}"), ignore_merges);
        let mut next = seeded(77);
        for _ in 0..1500 {
            let text = random_text(&mut next);
            let expected = oracle.encode(text.as_str(), false).unwrap();
            assert_eq!(tokenizer.encode(&text, false), expected.get_ids(), "{name}: {text:?}");
        }
    }
}
