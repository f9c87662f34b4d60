//! Which protocol a model file speaks, from its header: vocabulary, name, chat template. The rules are those of
//! [`Protocol::of_model`]; there are no others. Called by the command line and the model adapter.

use engine::chat::harmony::Control;
use engine::gguf::Metadata;

use super::Protocol;

/// A protocol and why it was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The protocol.
    pub protocol: Protocol,
    /// What in the file decided, as a phrase.
    pub reason: &'static str,
}

impl Protocol {
    /// The protocol of a model file. The first rule that applies decides:
    ///
    /// 1. The vocabulary holds all of Harmony's control tokens: [`Protocol::Harmony`].
    /// 2. The name (`general.name`, `.basename` or `.finetune`) says OpenMath-Nemotron: [`Protocol::Nemotron`].
    /// 3. The name says Qwen2-Math, Qwen2.5-Math, Numina or ToRA: [`Protocol::OutputFence`].
    /// 4. The name says DeepSeek-R1, the pre-tokenizer is that of its Qwen distillations, or the template writes
    ///    `<｜Assistant｜>` and knows `</think>`: [`Protocol::FirstBlock`].
    /// 5. The name says Hermes, or the template writes tools as `<tool_call>` and knows `</think>` (Qwen3, QwQ), or
    ///    does so for a `qwen3` or `qwen3moe` model: [`Protocol::Hermes`].
    /// 6. Anything else: [`Protocol::Fenced`]. That holds for Qwen2.5 too, whose template has `<tool_call>`: its small
    ///    and its coding models write fences far more reliably.
    pub fn of_model(metadata: &Metadata) -> Choice {
        let text = |key: &str| metadata.opt_str(key).ok().flatten().unwrap_or_default();
        let names = ["general.name", "general.basename", "general.finetune"].map(text).join(" ");
        // Words of a name are put together in every way: `DeepSeek-R1`, `DeepSeek R1`, `deepseek_r1`.
        let name: String = names.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == '.').collect();
        let says = |words: &[&str]| words.iter().any(|word| name.contains(word));
        let has_word = |word: &str| names.split(|c: char| !c.is_alphanumeric()).any(|w| w.eq_ignore_ascii_case(word));
        let template = text("tokenizer.chat_template");
        let writes_tool_calls = template.contains("<tool_call>");
        let thinks = template.contains("</think>");
        let choice = |protocol, reason| Choice { protocol, reason };
        if has_harmony_tokens(metadata) {
            return choice(Protocol::Harmony, "the vocabulary has Harmony's control tokens");
        }
        if says(&["openmath"]) {
            return choice(Protocol::Nemotron, "the model's name");
        }
        if says(&["qwen2math", "qwen2.5math", "numina"]) || has_word("tora") {
            return choice(Protocol::OutputFence, "the model's name");
        }
        if says(&["deepseekr1", "r1distill"]) {
            return choice(Protocol::FirstBlock, "the model's name");
        }
        if text("tokenizer.ggml.pre") == "deepseek-r1-qwen" {
            return choice(Protocol::FirstBlock, "the pre-tokenizer is that of DeepSeek-R1's distillations");
        }
        if template.contains("<｜Assistant｜>") && thinks {
            return choice(Protocol::FirstBlock, "the chat template is DeepSeek-R1's");
        }
        if says(&["hermes"]) {
            return choice(Protocol::Hermes, "the model's name");
        }
        let is_qwen3 = matches!(text("general.architecture"), "qwen3" | "qwen3moe");
        if writes_tool_calls && (thinks || is_qwen3) {
            return choice(Protocol::Hermes, "the chat template writes tools as <tool_call>");
        }
        choice(Protocol::Fenced, "no sign of another one")
    }
}

fn has_harmony_tokens(metadata: &Metadata) -> bool {
    let Ok(Some(tokens)) = metadata.opt_strings("tokenizer.ggml.tokens") else { return false };
    let mut found = [false; Control::ALL.len()];
    for token in tokens.iter().filter(|t| t.starts_with("<|")) {
        if let Some(control) = Control::from_name(token) {
            found[control as usize] = true;
        }
    }
    found.iter().all(|f| *f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::gguf::Value;

    const QWEN3: &str = "{% if tools %}<tool_call>{% endif %}{{ content.split('</think>') }}";

    fn choose(architecture: &str, name: &str, pre: &str, template: &str, tokens: &[&str]) -> Protocol {
        let tokens: Vec<String> = tokens.iter().map(|t| t.to_string()).collect();
        let entries = [
            ("general.architecture", Value::from(architecture)),
            ("general.name", Value::from(name)),
            ("tokenizer.ggml.pre", Value::from(pre)),
            ("tokenizer.chat_template", Value::from(template)),
            ("tokenizer.ggml.tokens", Value::from(tokens)),
        ];
        Protocol::of_model(&Metadata::from_entries(entries.map(|(k, v)| (k.to_string(), v)))).protocol
    }

    #[test]
    fn published_models_get_their_protocol() {
        let harmony: Vec<&str> = Control::ALL.map(Control::name).into();
        for (architecture, name, pre, template, expected) in [
            ("qwen2", "Qwen2.5 Coder 1.5B Instruct", "qwen2", "<tool_call>", Protocol::Fenced),
            ("qwen2", "Qwen2.5 Math 7B Instruct", "qwen2", "<tool_call>", Protocol::OutputFence),
            ("qwen2", "NuminaMath-7B-TIR", "qwen2", "", Protocol::OutputFence),
            ("llama", "tora-code-34b-v1.0", "llama-bpe", "", Protocol::OutputFence),
            ("llama", "Doctoral 8B", "llama-bpe", "", Protocol::Fenced),
            ("qwen2", "OpenMath Nemotron 14B Kaggle", "qwen2", "", Protocol::Nemotron),
            ("qwen2", "DeepSeek R1 Distill Qwen 32B", "deepseek-r1-qwen", "", Protocol::FirstBlock),
            ("qwen2", "model", "deepseek-r1-qwen", "", Protocol::FirstBlock),
            ("llama", "DeepSeek-R1-Distill-Llama-70B", "llama-bpe", "", Protocol::FirstBlock),
            ("llama", "x", "llama-bpe", "'<｜Assistant｜>' '</think>'", Protocol::FirstBlock),
            ("qwen3", "Qwen3 8B", "qwen2", QWEN3, Protocol::Hermes),
            ("qwen3moe", "Qwen3 30B A3B Instruct 2507", "qwen2", "<tool_call>", Protocol::Hermes),
            ("qwen2", "QwQ 32B", "qwen2", QWEN3, Protocol::Hermes),
            ("llama", "Hermes 3 Llama 3.1 8B", "llama-bpe", "<tool_call>", Protocol::Hermes),
            ("qwen3", "Qwen3 8B Base", "qwen2", "", Protocol::Fenced),
            ("llama", "Llama 3.3 70B Instruct", "llama-bpe", "ipython", Protocol::Fenced),
        ] {
            assert_eq!(choose(architecture, name, pre, template, &["a"]), expected, "{name}");
        }
        assert_eq!(choose("gpt-oss", "Gpt-Oss-120B", "gpt-4o", "", &harmony), Protocol::Harmony);
        assert_eq!(choose("gpt-oss", "Gpt-Oss-120B", "gpt-4o", "", &harmony[1..]), Protocol::Fenced);
        assert_eq!(Protocol::of_model(&Metadata::default()).protocol, Protocol::Fenced);
    }

    #[test]
    fn names_are_read_back() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.name().parse(), Ok(protocol));
        }
        assert_eq!(
            "react".parse::<Protocol>().unwrap_err().to_string(),
            "unknown protocol \"react\"; known: fenced, output-fence, hermes, nemotron, harmony, first-block"
        );
    }
}
