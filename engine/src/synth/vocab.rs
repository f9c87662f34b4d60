//! Vocabularies for models without training: a stand-in of any size, or the one of a given file.
//!
//! The stand-in has all bytes, then words of letters in the order of their length with the merges that build them, then
//! the special tokens of the model's family, at their true ids when the size is the true one. So text is cut into about
//! as many tokens as by a real vocabulary, and headers are as large as real ones.

use super::SynthError;
use crate::gguf::{GgufFile, Strings, Value};
use crate::tokenizer::Tokenizer;

/// Families of models that share special tokens and a form of conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen2.5: ChatML.
    Qwen2,
    /// Qwen3: ChatML with thinking and tool calls.
    Qwen3,
    /// R1 distilled into Qwen2.5.
    R1Qwen,
    /// R1 distilled into Llama 3.
    R1Llama,
    /// gpt-oss: harmony.
    GptOss,
    /// Begin and end of text only.
    Plain,
}

/// `tokenizer.ggml.token_type` of text, control tokens, tokens that are always one piece, and padding.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// What the special tokens of a family are.
struct Specials {
    /// `tokenizer.ggml.pre`.
    pre: &'static str,
    /// Id of the first special token in the true vocabulary.
    first: usize,
    /// Consecutive from `first`. `""` = a reserved one.
    tokens: Vec<(&'static str, i32)>,
    bos: &'static str,
    eos: &'static str,
    adds_bos: bool,
    template: &'static str,
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const CHATML_TOOLS: &str = "{% if tools %}<|im_start|>system\nTools, as JSON schemas:\n<tools>\
    {% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n\
    To call one, write <tool_call>\n{\"name\": …, \"arguments\": …}\n</tool_call><|im_end|>\n{% endif %}\
    {% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n\
    </tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}";

const R1: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}\
    {% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>{% else %}{{ m.content }}\
    {% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}";

const HARMONY: &str = "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}\
    <|message|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}";

const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

/// What Qwen2.5 has from `<|quad_start|>` on.
const QWEN_TAIL: [(&str, i32); 15] = [
    ("<|quad_start|>", CONTROL),
    ("<|quad_end|>", CONTROL),
    ("<|vision_start|>", CONTROL),
    ("<|vision_end|>", CONTROL),
    ("<|vision_pad|>", CONTROL),
    ("<|image_pad|>", CONTROL),
    ("<|video_pad|>", CONTROL),
    ("<tool_call>", USER_DEFINED),
    ("</tool_call>", USER_DEFINED),
    ("<|fim_prefix|>", USER_DEFINED),
    ("<|fim_middle|>", USER_DEFINED),
    ("<|fim_suffix|>", USER_DEFINED),
    ("<|fim_pad|>", USER_DEFINED),
    ("<|repo_name|>", USER_DEFINED),
    ("<|file_sep|>", USER_DEFINED),
];

impl Family {
    fn specials(self) -> Specials {
        let qwen = |tail: &[(&'static str, i32)], template| Specials {
            pre: "qwen2",
            first: 151_643,
            tokens: [
                ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|t| (t, CONTROL)).as_slice(),
                ["<|object_ref_start|>", "<|object_ref_end|>"].map(|t| (t, CONTROL)).as_slice(),
                ["<|box_start|>", "<|box_end|>"].map(|t| (t, CONTROL)).as_slice(),
                QWEN_TAIL.as_slice(),
                tail,
            ]
            .concat(),
            bos: "<|endoftext|>",
            eos: "<|im_end|>",
            adds_bos: false,
            template,
        };
        match self {
            Family::Qwen2 => qwen(&[], CHATML),
            Family::Qwen3 => qwen(
                &["<tool_response>", "</tool_response>", "<think>", "</think>"].map(|t| (t, USER_DEFINED)),
                CHATML_TOOLS,
            ),
            Family::R1Qwen => Specials {
                pre: "deepseek-r1-qwen",
                first: 151_643,
                tokens: [
                    [("<｜end▁of▁sentence｜>", CONTROL), ("<｜User｜>", USER_DEFINED)].as_slice(),
                    [("<｜Assistant｜>", USER_DEFINED), ("<｜begin▁of▁sentence｜>", CONTROL)].as_slice(),
                    ["<|EOT|>", "<think>", "</think>"].map(|t| (t, USER_DEFINED)).as_slice(),
                    QWEN_TAIL.as_slice(),
                ]
                .concat(),
                bos: "<｜begin▁of▁sentence｜>",
                eos: "<｜end▁of▁sentence｜>",
                adds_bos: true,
                template: R1,
            },
            Family::R1Llama => {
                let mut tokens = vec![("<｜begin▁of▁sentence｜>", CONTROL), ("<｜end▁of▁sentence｜>", CONTROL)];
                tokens.resize(11, ("", CONTROL));
                tokens.extend(["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"].map(|t| (t, USER_DEFINED)));
                Specials {
                    pre: "llama-bpe",
                    first: 128_000,
                    tokens,
                    bos: "<｜begin▁of▁sentence｜>",
                    eos: "<｜end▁of▁sentence｜>",
                    adds_bos: true,
                    template: R1,
                }
            }
            Family::GptOss => Specials {
                pre: "gpt-4o",
                first: 199_998,
                tokens: [
                    "<|startoftext|>",
                    "<|endoftext|>",
                    "",
                    "",
                    "<|return|>",
                    "<|constrain|>",
                    "",
                    "<|channel|>",
                    "<|start|>",
                    "<|end|>",
                    "<|message|>",
                    "",
                    "",
                    "",
                    "<|call|>",
                    "",
                    "",
                    "",
                    "",
                    "",
                    "<|endofprompt|>",
                ]
                .map(|t| (t, CONTROL))
                .to_vec(),
                bos: "<|startoftext|>",
                eos: "<|return|>",
                adds_bos: false,
                template: HARMONY,
            },
            Family::Plain => Specials {
                pre: "llama-bpe",
                first: 31_998,
                tokens: vec![("<s>", CONTROL), ("</s>", CONTROL)],
                bos: "<s>",
                eos: "</s>",
                adds_bos: true,
                template: PLAIN,
            },
        }
    }

    /// Fewest tokens that a stand-in vocabulary can have: all bytes and the special tokens.
    pub fn min_vocab(self) -> usize {
        256 + self.specials().tokens.len()
    }
}

/// `tokenizer.*` keys of a stand-in vocabulary of `n_vocab` tokens, at least [`Family::min_vocab`].
pub(super) fn stand_in(family: Family, n_vocab: usize) -> Vec<(String, Value)> {
    let s = family.specials();
    let first = s.first.min(n_vocab - s.tokens.len());
    let (mut tokens, merges) = words(first);
    let mut types = vec![NORMAL; first];
    for (text, ty) in &s.tokens {
        let id = tokens.len();
        tokens.push(if text.is_empty() { format!("<|reserved_{id}|>") } else { (*text).to_owned() });
        types.push(*ty);
    }
    let id = |text: &str| (first + s.tokens.iter().position(|t| t.0 == text).expect("listed above")) as u32;
    let (bos, eos) = (id(s.bos), id(s.eos));
    for id in tokens.len()..n_vocab {
        tokens.push(format!("[PAD{id}]"));
        types.push(UNUSED);
    }
    let key = |name: &str, value: Value| (format!("tokenizer.{name}"), value);
    vec![
        key("ggml.model", "gpt2".into()),
        key("ggml.pre", s.pre.into()),
        key("ggml.tokens", tokens.into()),
        key("ggml.token_type", types.into()),
        key("ggml.merges", merges.into()),
        key("ggml.bos_token_id", bos.into()),
        key("ggml.eos_token_id", eos.into()),
        key("ggml.add_bos_token", s.adds_bos.into()),
        key("chat_template", s.template.into()),
    ]
}

/// `n` tokens, the 256 bytes first, and the merges that make the others.
fn words(n: usize) -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_letter(byte).to_string()).collect();
    let mut merges = Vec::with_capacity(n.saturating_sub(256));
    // Words begin with a letter, or with a space, which byte-level vocabularies spell `Ġ`.
    let mut shorter: Vec<String> = ('a'..='z').chain(['Ġ']).map(String::from).collect();
    while tokens.len() < n {
        let mut longer = Vec::with_capacity(shorter.len() * 26);
        for (word, last) in shorter.iter().flat_map(|word| ('a'..='z').map(move |last| (word, last))) {
            if tokens.len() + longer.len() == n {
                break;
            }
            merges.push(format!("{word} {last}"));
            longer.push(format!("{word}{last}"));
        }
        tokens.extend_from_slice(&longer);
        shorter = longer;
    }
    (tokens, merges)
}

/// GPT-2's letter of a byte: the byte's own where it is printable, else the next from U+0100 on.
fn byte_letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + n_before).expect("a code point below 0x200")
}

/// `tokenizer.*` keys of a file, its tokens padded to `n_vocab`.
pub(super) fn of_file(file: &GgufFile, n_vocab: usize) -> Result<Vec<(String, Value)>, SynthError> {
    let name = || file.path().display().to_string();
    let tokenizer = Tokenizer::from_gguf(file.metadata());
    let found =
        tokenizer.map_err(|error| SynthError::Vocabulary { file: name(), problem: error.to_string() })?.n_vocab();
    if found > n_vocab {
        return Err(SynthError::VocabularyTooLarge { file: name(), found, n_vocab });
    }
    let keys = file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
    Ok(keys.map(|(key, value)| (key.to_owned(), padded(key, value, n_vocab))).collect())
}

fn padded(key: &str, value: &Value, n_vocab: usize) -> Value {
    use crate::gguf::Array;
    match (key, value) {
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))) => {
            let pads = (tokens.len()..n_vocab).map(|id| format!("[PAD{id}]"));
            tokens.iter().map(str::to_owned).chain(pads).collect::<Strings>().into()
        }
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))) => {
            let mut types = types.clone();
            types.resize(n_vocab, UNUSED);
            types.into()
        }
        ("tokenizer.ggml.scores", Value::Array(Array::F32(scores))) => {
            let mut scores = scores.clone();
            scores.resize(n_vocab, 0.0);
            scores.into()
        }
        (_, value) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ChatTemplate;
    use crate::gguf::Metadata;

    #[test]
    fn stand_ins_of_any_size_can_be_used() {
        let families = [Family::Qwen2, Family::Qwen3, Family::R1Qwen, Family::R1Llama, Family::GptOss, Family::Plain];
        for family in families {
            for n_vocab in [family.min_vocab(), 1000, 40_000] {
                let metadata = Metadata::from_entries(stand_in(family, n_vocab));
                let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
                assert_eq!(tokenizer.n_vocab(), n_vocab, "{family:?}");
                assert!(tokenizer.is_end_of_generation(tokenizer.eos().unwrap()), "{family:?}");
                assert!(tokenizer.unencodable_bytes().is_empty());
                let text = "The sum of 17 and 25 is 42,\nnaïve ∑ 学";
                assert_eq!(tokenizer.decode(&tokenizer.encode(text, false), false), text, "{family:?}");
                assert!(ChatTemplate::from_gguf(&metadata, &tokenizer).unwrap().is_some(), "{family:?}");
            }
        }
    }

    #[test]
    fn special_tokens_have_their_true_ids_at_the_true_size() {
        for (family, n_vocab, token, id) in [
            (Family::GptOss, 201_088, "<|call|>", 200_012),
            (Family::GptOss, 201_088, "<|return|>", 200_002),
            (Family::Qwen3, 151_936, "</think>", 151_668),
            (Family::Qwen2, 152_064, "<|im_end|>", 151_645),
            (Family::R1Qwen, 152_064, "<think>", 151_648),
            (Family::R1Llama, 128_256, "<think>", 128_013),
        ] {
            let tokenizer = Tokenizer::from_gguf(&Metadata::from_entries(stand_in(family, n_vocab))).unwrap();
            assert_eq!(tokenizer.token_id(token), Some(id), "{token}");
            let n = tokenizer.encode(&"some words of a text ".repeat(50), false).len();
            assert!((250..600).contains(&n), "{n} tokens for 250 words");
        }
    }
}
