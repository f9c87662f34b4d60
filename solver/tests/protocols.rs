//! Every tool protocol: what its reader makes of a text however the text is cut, and whole attempts on a scripted model.

use std::sync::Arc;

use engine::chat::harmony::Control;
use sandbox::Status;
use solver::attempt::{Attempt, AttemptEnd, Step};
use solver::protocol::{Part, Reply, TOOL};
use solver::rollout::{Solved, Solver};
use solver::testing::{FakePython, Script, ScriptedModel};
use solver::{CancelToken, Problem, Protocol, SolverOptions, StopRule};

/// Texts with calls, thoughts and mistakes in every protocol's form; each protocol has to read all of them.
const CORPUS: [&str; 24] = [
    "So:\n```json\n{\"name\": \"python\", \"arguments\": {\"code\": \"print(1)\"}}\n```\nand ```json\n{\"a\": 1}\n``` b",
    "```json\n{\"name\": \"python\", \"arguments\": {\"code\": \"\"\"\nx\n\"\"\"}} <think>```json\n</think>",
    "Hm.\n```python\nprint(1)\n```\nSo \\boxed{1}",
    "<think>a \\boxed{2}\n```py\nx = '<think>'\n```\nb</think>c\n```python\ny\n``` \\boxed{3}",
    "```python\nx\n```\nthen\n```python\ny\n```\n```output\n7\n```\nso",
    "```python\nx = '''\n```\n```output\n7\n```\n",
    "```output\n7\n```\n```python\nx\n",
    "a <tool_call>\n{\"name\": \"python\", \"arguments\": {\"code\": \"print(1)\"}}\n</tool_call> b",
    "<tool_call>{\"name\": \"bash\", \"arguments\": {}}</tool_call><tool_call>{]</tool_call>",
    "<think>no <tool_call>\nx\n</tool_call></think><tool_call>\nprint('</tool_')\n</tool_call>\n```output\n",
    "<tool_call>\n```python\nx > y\n```\n</tool_call>",
    "<tool_call>{\"name\": \"python\", \"arguments\": {\"code\": \"a\nb\"}",
    "</think><think></think> < <t <think <tool_cal </tool_call> ` `` <thi",
    "<think>never closed \\boxed{9}",
    "<|channel|>analysis<|message|>Hm \\boxed{2}<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{3}<|return|>",
    "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
    " to=python<|channel|>analysis code<|message|>print('é')<|call|>",
    "<|channel|>commentary to=functions.python <|constrain|>json<|message|>{\"code\": \"1\"}<|call|>",
    "<|channel|>commentary to=browser.search<|message|>{}<|call|>",
    "<|channel|>analysis to=python code<|message|>print(1)",
    "<|channel|>commentary<|message|>Now I compute.<|end|><|start|>assistant<|channel|>odd<|message|>x<|end|>",
    "<|message|>no channel \\boxed{4}<|return|>",
    "no header at all \\boxed{5}<|return|>",
    "é ```python\né\n``` <think>é</think>é",
];

/// A text with control tokens spelled out, as tokens: `true` for control tokens.
fn tokens(text: &str) -> Vec<(&str, bool)> {
    let (mut tokens, mut rest) = (Vec::new(), text);
    loop {
        let next = Control::ALL.into_iter().filter_map(|c| rest.find(c.name()).map(|at| (at, c.name()))).min();
        let at = next.map_or(rest.len(), |(at, _)| at);
        if at > 0 {
            tokens.push((&rest[..at], false));
        }
        let Some((_, name)) = next else { return tokens };
        tokens.push((name, true));
        rest = &rest[at + name.len()..];
    }
}

/// The parts of a text that is cut at these characters.
fn read(protocol: Protocol, in_thought: bool, text: &str, cuts: &[usize]) -> Vec<Part> {
    let mut reader = protocol.reader(in_thought);
    let (mut parts, mut n_chars) = (Vec::new(), 0);
    for (token, is_control) in tokens(text) {
        if is_control {
            parts.extend(reader.control(token));
            continue;
        }
        let mut start = 0;
        for (at, _) in token.char_indices() {
            if cuts.contains(&n_chars) {
                parts.extend(reader.text(&token[start..at]));
                start = at;
            }
            n_chars += 1;
        }
        parts.extend(reader.text(&token[start..]));
    }
    parts.extend(reader.finish());
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(text)) => before.push_str(&text),
            (Some(Part::Thought(before)), Part::Thought(text)) => before.push_str(&text),
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn n_chars(text: &str) -> usize {
    tokens(text).iter().filter(|(_, is_control)| !is_control).map(|(t, _)| t.chars().count()).sum()
}

#[test]
fn any_split_in_three_gives_the_same_parts() {
    for protocol in Protocol::ALL {
        for text in CORPUS {
            for in_thought in [false, true] {
                let (whole, n) = (read(protocol, in_thought, text, &[]), n_chars(text));
                for i in 0..=n {
                    for j in i..=n {
                        assert_eq!(
                            read(protocol, in_thought, text, &[i, j]),
                            whole,
                            "{protocol}: {text:?} at {i}, {j}"
                        );
                    }
                }
                let all: Vec<usize> = (0..=n).collect();
                assert_eq!(read(protocol, in_thought, text, &all), whole, "{protocol}: {text:?} char by char");
            }
        }
    }
}

#[test]
fn random_texts_give_the_same_parts_char_by_char() {
    let words = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "```python\n",
        "```output",
        "```",
        "`",
        "<",
        "\n",
        "'''",
        "\"",
        "{\"name\": \"python\", \"arguments\": {\"code\": \"x\"}}",
        "\\boxed{1}",
        "x",
        "é",
        " to=python",
        "analysis",
        "final",
        "<|channel|>",
        "<|message|>",
        "<|start|>",
        "<|end|>",
        "<|call|>",
        "<|return|>",
        "<|constrain|>",
        "<|channel|>analysis to=python<|message|>",
    ];
    let mut state = 1u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut n_calls = [0; Protocol::ALL.len()];
    for round in 0..3000 {
        let text: String = (0..draw(24)).map(|_| words[draw(words.len())]).collect();
        for protocol in Protocol::ALL {
            let whole = read(protocol, round % 2 == 0, &text, &[]);
            let all: Vec<usize> = (0..=n_chars(&text)).collect();
            assert_eq!(read(protocol, round % 2 == 0, &text, &all), whole, "{protocol}: {text:?}");
            n_calls[protocol as usize] +=
                whole.iter().filter(|p| matches!(p, Part::Call { .. } | Part::BadCall { .. })).count();
        }
    }
    assert!(n_calls.iter().all(|n| *n > 300), "the texts hold calls in every protocol: {n_calls:?}");
}

#[test]
fn random_characters_never_break_a_reader() {
    let mut state = 3u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..2000 {
        let text: String = (0..draw(60))
            .map(|_| match draw(3) {
                0 => ['<', '>', '`', '\n', '{', '}', '"', '\\', '/', '|'][draw(10)],
                1 => char::from(b'a' + draw(26) as u8),
                _ => char::from_u32(draw(0x1_1000) as u32).unwrap_or('\u{fffd}'),
            })
            .collect();
        for protocol in Protocol::ALL {
            let all: Vec<usize> = (0..=text.chars().count()).collect();
            assert_eq!(read(protocol, false, &text, &all), read(protocol, false, &text, &[]), "{protocol}: {text:?}");
        }
    }
}

fn call(code: &str) -> Part {
    Part::Call { tool: TOOL.to_string(), code: code.to_string() }
}

#[test]
fn a_call_is_reported_with_its_last_token() {
    for (protocol, before, last, code) in [
        (Protocol::Fenced, "```python\nx\n``", "`", "x"),
        (Protocol::OutputFence, "```python\nx\n```\n```outpu", "t", "x"),
        (Protocol::Nemotron, "<tool_call>\nx\n</tool_call", ">", "x"),
        (Protocol::FirstBlock, "```python\nx\n``", "`", "x"),
        (Protocol::Hermes, "<tool_call>{\"name\":\"python\",\"arguments\":{\"code\":\"x\"}}</tool_call", ">", "x"),
    ] {
        let mut reader = protocol.reader(false);
        assert!(!reader.text(before).iter().any(|p| matches!(p, Part::Call { .. })), "{protocol}");
        assert_eq!(reader.text(last).last(), Some(&call(code)), "{protocol}");
        // Tags that a vocabulary has as control tokens count like text.
        let mut reader = protocol.reader(false);
        if before.starts_with("<tool_call>") {
            reader.control("<tool_call>");
            reader.text(before.trim_start_matches("<tool_call>").trim_end_matches("</tool_call"));
            assert_eq!(reader.control("</tool_call>").last(), Some(&call(code)), "{protocol}");
        }
    }
}

#[test]
fn calls_in_thoughts_run_where_models_work_like_that() {
    let text = "<think>```python\na\n```</think>```python\nb\n```";
    let calls = |protocol, text: &str| {
        let is_call = |p| if let Part::Call { code, .. } = p { Some(code) } else { None };
        read(protocol, false, text, &[]).into_iter().filter_map(is_call).collect::<Vec<_>>()
    };
    assert_eq!(calls(Protocol::Fenced, text), ["a", "b"]);
    assert_eq!(calls(Protocol::FirstBlock, text), ["b"]);
    assert_eq!(calls(Protocol::Nemotron, "<think><tool_call>a</tool_call></think>"), ["a"]);
    let json =
        |code: &str| format!("<tool_call>{{\"name\":\"python\",\"arguments\":{{\"code\":\"{code}\"}}}}</tool_call>");
    assert_eq!(calls(Protocol::Hermes, &format!("<think>{}</think>{}", json("a"), json("b"))), ["b"]);
    let fenced = "```json\n{\"name\": \"python\", \"arguments\": {\"code\": \"c\"}}\n``` ```json\n{\"a\": 1}\n```";
    assert_eq!(calls(Protocol::Hermes, fenced), ["c"], "tags forgotten");
    let rest = read(Protocol::Hermes, false, fenced, &[]).pop();
    assert_eq!(rest, Some(Part::Text(" ```json\n{\"a\": 1}\n```".to_string())), "other JSON is text");
    assert_eq!(calls(Protocol::OutputFence, "```python\na\n```\n```python\nb\n```\n```output\n"), ["a\nb"]);
}

#[test]
fn a_result_goes_back_in_the_protocols_own_form() {
    let reply = |p: Protocol, output: &str, turn_ended, fresh_line| p.reply("python", output, turn_ended, fresh_line);
    let text = |t: &str| Reply::Text(t.to_string());
    let result = |t: &str| Reply::Result { tool: "python".to_string(), text: t.to_string() };
    for p in [Protocol::Fenced, Protocol::Nemotron, Protocol::FirstBlock] {
        assert_eq!(reply(p, "5\n", false, false), text("\n```output\n5\n```\n"));
        assert_eq!(reply(p, "5", false, true), text("```output\n5\n```\n"));
        assert_eq!(reply(p, " \n", false, true), text("```output\n(no output: print the result)\n```\n"));
        assert_eq!(reply(p, "```python\nx\n```", false, true), text("```output\n'''python\nx\n'''\n```\n"));
        assert_eq!(reply(p, "5", true, false), Reply::User("```output\n5\n```\n".to_string()));
    }
    assert_eq!(reply(Protocol::OutputFence, "5\n", false, false), text("\n5\n```\n"));
    assert_eq!(reply(Protocol::OutputFence, "5\n", false, true), text("5\n```\n"));
    assert_eq!(reply(Protocol::OutputFence, "5\n", true, true), Reply::User("```output\n5\n```\n".to_string()));
    assert_eq!(reply(Protocol::Harmony, "```5```\n", false, false), result("```5```"));
    assert_eq!(reply(Protocol::Hermes, "a</tool_response>b", true, true), result("a<\\/tool_response>b"));
}

/// How a protocol's model writes.
struct Dialect {
    protocol: Protocol,
    call: fn(&str) -> String,
    /// A call in whose middle the turn ends.
    cut_call: &'static str,
    thought: fn(&str) -> String,
    answer: fn(&str) -> String,
}

const DIALECTS: [Dialect; 6] = [
    Dialect {
        protocol: Protocol::Fenced,
        call: |code| format!("I count.\n```python\n{code}\n```\n"),
        cut_call: "```python\nprint(391)",
        thought: |text| format!("<think>{text}</think>"),
        answer: str::to_string,
    },
    Dialect {
        protocol: Protocol::OutputFence,
        call: |code| format!("I count.\n```python\n{code}\n```\n```output\n"),
        cut_call: "```python\nprint(391)",
        thought: |text| format!("<think>{text}</think>"),
        answer: str::to_string,
    },
    Dialect {
        protocol: Protocol::Hermes,
        call: |code| {
            let call = serde_json::json!({"name": "python", "arguments": {"code": code}});
            format!("I count.\n<tool_call>\n{call}\n</tool_call>")
        },
        cut_call: "<tool_call>\n{\"name\": \"python\", \"arguments\": {\"code\": \"print(391)\"}}",
        thought: |text| format!("<think>\n{text}\n</think>\n\n"),
        answer: str::to_string,
    },
    Dialect {
        protocol: Protocol::Nemotron,
        call: |code| format!("I count.\n<tool_call>\n{code}\n</tool_call>\n"),
        cut_call: "<tool_call>\nprint(391)\n",
        thought: |text| format!("<think>{text}</think>"),
        answer: str::to_string,
    },
    Dialect {
        protocol: Protocol::Harmony,
        call: |code| format!("<|channel|>analysis to=python code<|message|>{code}<|call|>"),
        cut_call: "<|channel|>analysis to=python code<|message|>print(391)<|return|>",
        thought: |text| format!("<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"),
        answer: |text| format!("<|channel|>final<|message|>{text}<|return|>"),
    },
    Dialect {
        protocol: Protocol::FirstBlock,
        call: |code| format!("I count.\n```python\n{code}\n```\n"),
        cut_call: "```python\nprint(391)",
        thought: |text| format!("<think>{text}</think>"),
        answer: str::to_string,
    },
];

const BOX: &str = "The answer is $\\boxed{391}$.";

fn python() -> Arc<FakePython> {
    Arc::new(FakePython::new(|code, _| match code.trim() {
        "bad" => {
            let status = Status::Exception { kind: "NameError".to_string(), message: "no bad".to_string() };
            FakePython::outcome(status, "NameError: no bad\n")
        }
        "slow" => FakePython::outcome(Status::TimedOut { limit_ms: 6000 }, "[stopped after 6 s]"),
        "killed" => {
            let status = Status::Crashed { reason: "its worker ended (signal: 9); its names are lost".to_string() };
            FakePython::outcome(status, "[Python failed: its worker ended (signal: 9); its names are lost]\n")
        }
        other => {
            let argument = other.split("print(").nth(1).and_then(|r| r.split(')').next()).unwrap_or("");
            FakePython::ok(&format!("{argument}\n"))
        }
    }))
}

/// One attempt in which each sequence that is started has the next of these scripts.
fn attempt_of(scripts: &[&[String]], options: &SolverOptions, seed: u64) -> (Attempt, ScriptedModel) {
    let script = |turns: &&[String]| Script::new(&turns.iter().map(String::as_str).collect::<Vec<_>>());
    let (mut solved, model) = solve(scripts.iter().map(script), options, seed);
    (solved.attempts.remove(0), model)
}

/// A problem whose sequences follow these scripts.
fn solve(scripts: impl Iterator<Item = Script>, options: &SolverOptions, seed: u64) -> (Solved, ScriptedModel) {
    let mut model = ScriptedModel::new(scripts).with_split(1 + seed as usize % 9, seed);
    if options.protocol == Protocol::Harmony {
        model = model.with_controls(&Control::ALL.map(Control::name), &["<|call|>", "<|return|>"]);
    }
    let problem = Problem { id: "p".to_string(), text: "What is $17 \\cdot 23$?".to_string(), answer: Some(391) };
    let mut solver = Solver { model: &mut model, python: python(), options, cancel: CancelToken::default() };
    let solved = solver.solve(&problem, None, &mut |_| {});
    assert_eq!(model.n_live(), 0, "every sequence is released");
    (solved, model)
}

fn options(protocol: Protocol) -> SolverOptions {
    SolverOptions { protocol, attempts: 1, ..SolverOptions::default() }
}

fn answered(answer: i64) -> Option<AttemptEnd> {
    Some(AttemptEnd::Answer { answer })
}

/// Runs an attempt for every protocol, with tokens of many sizes.
fn for_all(turns: impl Fn(&Dialect) -> Vec<String>, check: impl Fn(&Dialect, &Attempt, &ScriptedModel)) {
    for dialect in &DIALECTS {
        for seed in 0..24 {
            let turns = turns(dialect);
            // Harmony asks again in a sequence of its own.
            let (attempt, model) = attempt_of(&[&turns, &turns[turns.len() - 1..]], &options(dialect.protocol), seed);
            check(dialect, &attempt, &model);
        }
    }
}

#[test]
fn a_call_runs_and_its_result_comes_back() {
    for_all(
        |d| vec![(d.call)("print(391)"), (d.answer)(BOX)],
        |d, attempt, model| {
            let p = d.protocol;
            assert_eq!(attempt.end, answered(391), "{p}");
            assert_eq!((attempt.tool_calls, attempt.tool_errors), (1, 0), "{p}");
            let (shown, _) = model.text(0).rsplit_once(&(d.answer)(BOX)[..10]).unwrap();
            let expected = match p {
                Protocol::Hermes => "</tool_call>[cut]<|end|>\n<|tool python|>\n391<|end|>\n<|assistant|>\n",
                Protocol::Harmony => "<|call|>[cut]<|end|>\n<|tool python|>\n391<|end|>\n<|assistant|>\n",
                _ => "```output\n391\n```\n",
            };
            assert!(shown.ends_with(expected), "{p}: {shown}");
            assert!(attempt.steps.iter().any(|s| matches!(s, Step::Call { code, .. } if code == "print(391)")), "{p}");
            assert!(attempt.steps.contains(&Step::Result("391".to_string())), "{p}: {:?}", attempt.steps);
        },
    );
}

#[test]
fn failing_code_shows_its_error_and_can_be_corrected() {
    for_all(
        |d| vec![(d.call)("bad"), (d.call)("print(391)"), (d.answer)(BOX)],
        |d, attempt, model| {
            assert_eq!(attempt.end, answered(391), "{}", d.protocol);
            assert_eq!((attempt.tool_calls, attempt.tool_errors), (2, 1), "{}", d.protocol);
            assert!(
                model.text(0).contains("\nNameError: no bad\n")
                    || d.protocol == Protocol::Hermes
                    || d.protocol == Protocol::Harmony
            );
            assert!(model.text(0).contains("\nNameError: no bad"), "{}", d.protocol);
        },
    );
}

#[test]
fn a_box_in_a_thought_is_no_answer() {
    for_all(
        |d| vec![(d.thought)("maybe \\boxed{5}, or \\boxed{6}") + &(d.answer)("So it is \\boxed{391}")],
        |d, attempt, _| {
            assert_eq!(attempt.end, answered(391), "{}", d.protocol);
            assert!(attempt.rejected.is_empty());
            let thought =
                attempt.steps.iter().find_map(|s| if let Step::Thought(t) = s { Some(t.trim()) } else { None });
            assert_eq!(thought, Some("maybe \\boxed{5}, or \\boxed{6}"), "{}", d.protocol);
        },
    );
    // Also where the turn ends with it, or inside it.
    for_all(
        |d| vec![(d.thought)("\\boxed{5}") + &(d.answer)("I don't know."), (d.answer)(BOX)],
        |d, attempt, _| assert_eq!(attempt.end, answered(391), "{}", d.protocol),
    );
    for_all(
        |d| {
            let open =
                (d.thought)("\\boxed{5}").replace("</think>", "").replace("<|end|><|start|>assistant", "<|return|>");
            vec![open, (d.answer)(BOX)]
        },
        |d, attempt, _| assert_eq!(attempt.end, answered(391), "{}", d.protocol),
    );
}

#[test]
fn a_thought_that_the_template_opened_holds_no_answer() {
    for protocol in [Protocol::Hermes, Protocol::FirstBlock, Protocol::Nemotron] {
        let mut model = ScriptedModel::new([Script::new(&["\\boxed{5}</think>So \\boxed{391}"])]).opening_thoughts();
        let options = options(protocol);
        let problem = Problem { id: "p".to_string(), text: "?".to_string(), answer: None };
        let mut solver =
            Solver { model: &mut model, python: python(), options: &options, cancel: CancelToken::default() };
        assert_eq!(solver.solve(&problem, None, &mut |_| {}).votes.winner(), Some(391), "{protocol}");
    }
}

#[test]
fn a_turn_without_a_box_is_asked_once() {
    for_all(
        |d| vec![(d.thought)("It is 391.") + &(d.answer)("It is 391."), (d.answer)(BOX)],
        |d, attempt, model| {
            assert_eq!(attempt.end, answered(391), "{}", d.protocol);
            let last = model.text(model.n_started() - 1);
            assert!(last.contains("<|user|>\nNow give the final answer, one integer from 0 to 99999"), "{last}");
            // Harmony's conversation begins anew and hands the thought to the renderer, which drops it.
            assert_eq!(model.n_started(), if d.protocol == Protocol::Harmony { 2 } else { 1 });
            if d.protocol == Protocol::Harmony {
                assert!(last.contains("<|assistant|>\n[thought It is 391.]It is 391.<|end|>\n<|user|>\nNow"), "{last}");
                assert!(last.starts_with(model.text(0).split("<|assistant|>").next().unwrap()), "{last}");
            }
        },
    );
    for_all(
        |d| vec![(d.answer)("Hm."), (d.answer)("Hm.")],
        |d, attempt, _| assert_eq!(attempt.end, Some(AttemptEnd::NoAnswer), "{}", d.protocol),
    );
}

#[test]
fn a_call_that_the_turn_ends_in_still_runs() {
    for_all(
        |d| vec![d.cut_call.to_string(), (d.answer)(BOX)],
        |d, attempt, model| {
            assert_eq!(attempt.end, answered(391), "{}", d.protocol);
            assert_eq!((attempt.tool_calls, attempt.tool_errors), (1, 0), "{}", d.protocol);
            let text = model.text(0);
            assert!(!text.contains("[cut]") || d.protocol == Protocol::Harmony, "the turn has ended: {text}");
            let shown = match d.protocol {
                Protocol::Hermes | Protocol::Harmony => "<|tool python|>\n391<|end|>",
                _ => "<|user|>\n```output\n391\n```\n<|end|>",
            };
            assert!(text.contains(shown), "{}: {text}", d.protocol);
        },
    );
}

#[test]
fn harmony_takes_the_recipient_in_both_places_and_json_too() {
    for call in [
        " to=python<|channel|>analysis code<|message|>print(391)<|call|>",
        "<|channel|>commentary to=python code<|message|>print(391)<|call|>",
        "<|channel|>analysis to=python <|constrain|>json<|message|>{\"code\": \"print(391)\"}<|call|>",
        "<|channel|>commentary to=functions.python <|constrain|>json<|message|>{\"code\": \"print(391)\"}<|call|>",
        "<|channel|>analysis<|message|>I compute.<|end|><|start|>assistant to=python<|channel|>analysis<|message|>print(391)<|call|>",
    ] {
        for seed in 0..24 {
            let turns = [call.to_string(), "<|channel|>final<|message|>\\boxed{391}<|return|>".to_string()];
            let (attempt, model) = attempt_of(&[&turns], &options(Protocol::Harmony), seed);
            assert_eq!(attempt.end, answered(391), "{call}");
            assert_eq!((attempt.tool_calls, attempt.tool_errors), (1, 0), "{call}");
            let tool = if call.contains("functions") { "functions.python" } else { "python" };
            assert!(model.text(0).contains(&format!("<|tool {tool}|>\n391<|end|>")), "{}", model.text(0));
        }
    }
}

#[test]
fn calls_that_cannot_be_carried_out_are_answered_with_the_reason() {
    let hermes = |body: &str| format!("<tool_call>\n{body}\n</tool_call>");
    for (protocol, call, tool, reason) in [
        (Protocol::Hermes, hermes("{\"name\": \"bash\", \"arguments\": {}}"), "python", "there is no tool \"bash\""),
        (Protocol::Hermes, hermes("{\"name\": \"python\", oops"), "python", "the call isn't valid JSON"),
        (Protocol::Hermes, hermes("{\"name\": \"python\", \"arguments\": {}}"), "python", "the call has no \"code\""),
        (
            Protocol::Harmony,
            "<|channel|>commentary to=browser.open<|message|>{}<|call|>".to_string(),
            "browser.open",
            "there is no tool \"browser.open\"; the only tool is python",
        ),
        (
            Protocol::Harmony,
            "<|channel|>commentary to=functions.python<|message|>{\"x\": 1}<|call|>".to_string(),
            "functions.python",
            "the call has no \"code\"",
        ),
    ] {
        let dialect = DIALECTS.iter().find(|d| d.protocol == protocol).unwrap();
        let turns = [call.clone(), (dialect.answer)(BOX)];
        let (attempt, model) = attempt_of(&[&turns], &options(protocol), 5);
        assert_eq!(attempt.end, answered(391), "{call}");
        assert_eq!((attempt.tool_calls, attempt.tool_errors), (1, 1), "{call}");
        assert!(model.text(0).contains(&format!("<|tool {tool}|>\n[not run: {reason}")), "{}", model.text(0));
        assert!(attempt.steps.iter().any(|s| matches!(s, Step::NotRun(_))));
        // Broken calls use up the budget like others.
        let turns = vec![call.clone(); 5];
        let few = SolverOptions { max_turns: 2, ..options(protocol) };
        let (attempt, model) = attempt_of(&[&turns], &few, 5);
        assert_eq!((attempt.end, attempt.tool_calls), (Some(AttemptEnd::TurnBudget), 2), "{call}");
        assert_eq!(model.text(0).matches("all 2 blocks are used up").count(), 1);
    }
}

#[test]
fn what_follows_a_call_is_not_read() {
    for_all(
        |d| {
            let invented = match d.protocol {
                Protocol::Harmony => "<|start|>assistant<|channel|>final<|message|>\\boxed{5}<|return|>",
                Protocol::Hermes => "\n<tool_response>5</tool_response>\\boxed{5}",
                _ => "```output\n5\n```\n\\boxed{5}",
            };
            vec![(d.call)("print(391)") + invented, (d.answer)(BOX)]
        },
        |d, attempt, _| assert_eq!(attempt.end, answered(391), "{}", d.protocol),
    );
}

#[test]
fn a_box_out_of_range_is_named_and_the_model_asked_again() {
    for_all(
        |d| vec![(d.answer)("So it is \\boxed{100000}."), (d.answer)(BOX)],
        |d, attempt, model| {
            assert_eq!(attempt.end, answered(391), "{}", d.protocol);
            assert_eq!(attempt.rejected, ["100000 is outside 0..99999"], "{}", d.protocol);
            let last = model.text(model.n_started() - 1);
            assert!(last.contains("<|user|>\n100000 is outside 0..99999. The answer is"), "{last}");
        },
    );
    for_all(
        |d| vec![(d.answer)("\\boxed{-1}"), (d.answer)("\\boxed{-1}")],
        |d, attempt, _| {
            assert_eq!(attempt.end, Some(AttemptEnd::NoAnswer), "{}", d.protocol);
            assert!(attempt.rejected.iter().all(|r| r == "-1 is outside 0..99999"), "{:?}", attempt.rejected);
        },
    );
}

#[test]
fn code_without_end_is_never_run_and_ends_with_the_tokens() {
    for dialect in &DIALECTS {
        let call = (dialect.call)("x = 1 + \\\n");
        let open = &call[..call.find("x = 1 + ").unwrap() + "x = 1 + ".len()];
        for seed in 0..24 {
            let script = Script::new(&[&(open.to_string() + &"1 + ".repeat(2000))]);
            let options = SolverOptions { max_tokens: Some(500), ..options(dialect.protocol) };
            let (solved, _) = solve([script].into_iter(), &options, seed);
            let attempt = &solved.attempts[0];
            assert_eq!(attempt.end, Some(AttemptEnd::TokenBudget), "{}", dialect.protocol);
            assert_eq!((attempt.tool_calls, attempt.generated_tokens), (0, 500), "{}", dialect.protocol);
            assert_eq!(solved.votes.winner(), None, "{}", dialect.protocol);
        }
    }
}

#[test]
fn a_sandbox_that_is_killed_or_too_slow_is_told_to_the_model_which_goes_on() {
    for_all(
        |d| vec![(d.call)("killed"), (d.call)("slow"), (d.call)("print(391)"), (d.answer)(BOX)],
        |d, attempt, model| {
            assert_eq!(attempt.end, answered(391), "{}", d.protocol);
            assert_eq!((attempt.tool_calls, attempt.tool_errors), (3, 2), "{}", d.protocol);
            let text = model.text(0);
            for told in ["Python failed: its worker ended (signal: 9); its names are lost", "Use a faster method"] {
                assert!(text.contains(told), "{}: {text}", d.protocol);
            }
        },
    );
}

#[test]
fn of_contradictory_boxes_the_first_whole_one_ends_an_attempt_and_attempts_vote() {
    for_all(
        |d| vec![(d.answer)("It is \\boxed{391}. No, it is \\boxed{392}."), (d.answer)("\\boxed{392}")],
        |d, attempt, model| {
            assert_eq!(attempt.end, answered(391), "{}", d.protocol);
            assert_eq!(model.n_started(), 1, "{}: nothing is asked", d.protocol);
        },
    );
    for dialect in &DIALECTS {
        let says = |answer: u32| Script::new(&[&(dialect.answer)(&format!("\\boxed{{{answer}}}"))]);
        let options = SolverOptions { attempts: 5, stop: StopRule::All, ..options(dialect.protocol) };
        let votes = solve([5, 391, 6, 391, 7].map(says).into_iter(), &options, 1).0.votes;
        assert_eq!(votes.winner(), Some(391), "{}", dialect.protocol);
        assert_eq!(votes.rows.iter().map(|r| r.votes).collect::<Vec<_>>(), [2, 1, 1, 1], "{}", dialect.protocol);
    }
}
