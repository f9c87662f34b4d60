//! The chat templates of the target models, as published with them, beside the repository. Each test says so and passes
//! where they are absent. Expected texts follow the models' documented formats.

use std::path::Path;

use engine::chat::{ChatTemplate, Clock, Message};
use serde_json::json;

const ALL: [&str; 7] = [
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen-QwQ-32B",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "meta-llama-Llama-3.3-70B-Instruct",
    "openai-gpt-oss-120b",
];

fn load(name: &str) -> Option<ChatTemplate> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/templates").join(format!("{name}.jinja"));
    let Ok(source) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    };
    let bos = if name.starts_with("deepseek") { "<｜begin▁of▁sentence｜>" } else { "<|begin_of_text|>" };
    let template = ChatTemplate::new(&source, bos, "<eos>").unwrap();
    Some(template.with_clock(Clock::Fixed { unix_seconds: 1_700_000_000 }))
}

fn user() -> Vec<Message> {
    vec![Message::new("user", "What is 2+2?")]
}

fn system_and_user() -> Vec<Message> {
    vec![Message::new("system", "Be brief."), Message::new("user", "What is 2+2?")]
}

fn turns() -> Vec<Message> {
    let more = [Message::new("assistant", "<think>\neasy\n</think>\n\n4"), Message::new("user", "And 3+3?")];
    system_and_user().into_iter().chain(more).collect()
}

fn tools() -> serde_json::Value {
    json!({"tools": [{"type": "function", "function": {
        "name": "run_python",
        "description": "Runs Python & returns <output>.",
        "parameters": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "The code."},
                "timeout": {"type": "number", "default": 1.5},
                "tags": {"type": "array", "items": {"type": "string"}},
                "mode": {"type": "string", "enum": ["fast", "safe"]},
            },
            "required": ["code"],
        },
    }}]})
}

#[track_caller]
fn check(t: &ChatTemplate, messages: &[Message], extra: serde_json::Value, expected: &str) {
    assert_eq!(t.render(messages, true, &extra).unwrap(), expected);
}

#[test]
fn all_templates_take_all_conversations() {
    for name in ALL {
        let Some(t) = load(name) else { continue };
        for messages in [user(), system_and_user(), turns()] {
            for extra in [json!({}), tools(), json!({"enable_thinking": false}), json!({"reasoning_effort": "high"})] {
                let text = t.render(&messages, true, &extra).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(text.contains("What is 2+2?"), "{name}: {text}");
                assert_eq!(text.contains("Be brief."), messages.len() > 1, "{name}: {text}");
                assert_eq!(text.contains("And 3+3?"), messages.len() == 4, "{name}: {text}");
                // DeepSeek's templates know no tools.
                let takes_tools = !name.starts_with("deepseek") && extra.get("tools").is_some();
                assert_eq!(text.contains("run_python"), takes_tools, "{name}: {text}");
                let open = t.render(&messages, false, &extra).unwrap();
                assert!(text.starts_with(&open) && text.len() > open.len(), "{name}: the prompt's end comes last");
            }
        }
    }
}

#[test]
fn qwen25() {
    let Some(t) = load("Qwen-Qwen2.5-7B-Instruct") else { return };
    let identity = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
    check(
        &t,
        &user(),
        json!(null),
        &format!(
            "<|im_start|>system\n{identity}<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
        ),
    );
    check(
        &t,
        &turns(),
        json!({}),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n\
         <|im_start|>assistant\n<think>\neasy\n</think>\n\n4<|im_end|>\n<|im_start|>user\nAnd 3+3?<|im_end|>\n\
         <|im_start|>assistant\n",
    );
    let text = t.render(&system_and_user(), true, &tools()).unwrap();
    let function = r#"{"type": "function", "function": {"name": "run_python", "description": "Runs Python & returns <output>.", "parameters": {"type": "object", "properties": {"code": {"type": "string", "description": "The code."}, "timeout": {"type": "number", "default": 1.5}, "tags": {"type": "array", "items": {"type": "string"}}, "mode": {"type": "string", "enum": ["fast", "safe"]}}, "required": ["code"]}}}"#;
    assert!(text.contains(&format!("<tools>\n{function}\n</tools>\n")), "{text}");
    assert!(text.starts_with("<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call"), "{text}");
}

#[test]
fn qwen3() {
    let Some(t) = load("Qwen-Qwen3-0.6B") else { return };
    let asked = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n";
    check(&t, &user(), json!({}), asked);
    check(&t, &user(), json!({"enable_thinking": true}), asked);
    check(&t, &user(), json!({"enable_thinking": false}), &format!("{asked}<think>\n\n</think>\n\n"));
    // Thinking of earlier turns is dropped.
    check(
        &t,
        &turns(),
        json!({}),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n4\
         <|im_end|>\n<|im_start|>user\nAnd 3+3?<|im_end|>\n<|im_start|>assistant\n",
    );
    // What a tool returned is shown within a user turn, and the thinking before it is kept.
    let mut with_tool = turns();
    with_tool.truncate(3);
    with_tool.push(Message::new("tool", "4"));
    check(
        &t,
        &with_tool,
        json!({}),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n\
         <think>\neasy\n</think>\n\n4<|im_end|>\n<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n\
         <|im_start|>assistant\n",
    );
}

#[test]
fn qwq() {
    let Some(t) = load("Qwen-QwQ-32B") else { return };
    let asked = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n";
    check(&t, &user(), json!({"enable_thinking": true}), asked);
    check(&t, &user(), json!({}), &format!("{asked}</think>"));
}

#[test]
fn llama33() {
    let Some(t) = load("meta-llama-Llama-3.3-70B-Instruct") else { return };
    let system = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
                  Today Date: 26 Jul 2024\n\n";
    let asked = "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2+2?<|eot_id|>";
    let answer = "<|start_header_id|>assistant<|end_header_id|>\n\n";
    check(&t, &user(), json!({}), &format!("{system}<|eot_id|>{asked}{answer}"));
    check(&t, &system_and_user(), json!({}), &format!("{system}Be brief.<|eot_id|>{asked}{answer}"));
    check(
        &t,
        &user(),
        json!({"date_string": "1 Jan 2025"}),
        &format!("{system}<|eot_id|>{asked}{answer}").replace("26 Jul 2024", "1 Jan 2025"),
    );
    check(
        &t,
        &turns(),
        json!({}),
        &format!(
            "{system}Be brief.<|eot_id|>{asked}{answer}<think>\neasy\n</think>\n\n4<|eot_id|>{}{answer}",
            asked.replace("What is 2+2?", "And 3+3?")
        ),
    );
    let text = t.render(&user(), true, &tools()).unwrap();
    assert!(text.contains("Environment: ipython\nCutting Knowledge Date"), "{text}");
    // `tojson(indent=4)`.
    assert!(
        text.contains("{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"run_python\",\n"),
        "{text}"
    );
    assert!(
        text.contains("\"required\": [\n                \"code\"\n            ]\n        }\n    }\n}\n\nWhat is 2+2?"),
        "{text}"
    );
    // What a tool returned is text, which Python counts as iterable: it is quoted.
    let messages = [Message::new("user", "x"), Message::new("ipython", "a\nb")];
    let text = t.render(&messages, false, &json!({})).unwrap();
    assert!(text.ends_with("<|start_header_id|>ipython<|end_header_id|>\n\n\"a\\nb\"<|eot_id|>"), "{text}");
}

#[test]
fn deepseek_r1() {
    for name in ["deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B"] {
        let Some(t) = load(name) else { continue };
        let thinking = json!({"enable_thinking": true});
        check(&t, &user(), thinking.clone(), "<｜begin▁of▁sentence｜><｜User｜>What is 2+2?<｜Assistant｜><think>\n");
        check(
            &t,
            &turns(),
            thinking,
            "<｜begin▁of▁sentence｜>Be brief.<｜User｜>What is 2+2?<｜Assistant｜>\n\n4<｜end▁of▁sentence｜>\
             <｜User｜>And 3+3?<｜Assistant｜><think>\n",
        );
    }
}

#[test]
fn gpt_oss() {
    let Some(t) = load("openai-gpt-oss-120b") else { return };
    let system = "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n\
                  Knowledge cutoff: 2024-06\nCurrent date: 2023-11-14\n\nReasoning: high\n\n\
                  # Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>";
    let asked = "<|start|>user<|message|>What is 2+2?<|end|>";
    let high = json!({"reasoning_effort": "high"});
    check(&t, &user(), high.clone(), &format!("{system}{asked}<|start|>assistant"));
    let developer = "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n<|end|>";
    check(&t, &system_and_user(), high, &format!("{system}{developer}{asked}<|start|>assistant"));
    let text = t.render(&user(), true, &json!({})).unwrap();
    assert!(text.contains("Reasoning: medium\n"), "{text}");
    let text = t.render(&user(), true, &json!({"builtin_tools": ["python"]})).unwrap();
    assert!(text.contains("# Tools\n\n## python\n\nUse this tool"), "{text}");
    assert!(!text.contains("## browser"), "{text}");
    let text = t.render(&user(), true, &tools()).unwrap();
    let namespace = "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n\
                     // Runs Python & returns <output>.\ntype run_python = (_: {\n// The code.\ncode: string,\n\
                     timeout?: number, // default: 1.5,\ntags?: string[],\nmode?: \"fast\" | \"safe\",\n}) => any;\n\n\
                     } // namespace functions<|end|>";
    assert!(text.contains(namespace), "{text}");
    // A tool's answer without a call is refused by the template itself.
    let error = t.render(&[Message::new("tool", "4")], true, &json!({})).unwrap_err();
    assert!(error.to_string().contains("refuses this conversation: Message has tool role"), "{error}");
}
