//! Chat templates: what Hugging Face's environment offers, small templates of our own, and hostile ones.

use engine::chat::{ChatError, ChatTemplate, Clock, MAX_SOURCE_BYTES, MAX_TAG_BYTES, Message};
use engine::gguf::{Metadata, Value};
use engine::tokenizer::Tokenizer;
use serde_json::json;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<s>", "</s>").unwrap().with_clock(Clock::Fixed { unix_seconds: 1_700_000_000 })
}

#[track_caller]
fn renders(source: &str, extra: serde_json::Value, expected: &str) {
    let messages = [Message::new("user", "Hi <b>\"there\"</b>")];
    assert_eq!(template(source).render(&messages, true, &extra).unwrap(), expected, "{source}");
}

fn fails(source: &str) -> ChatError {
    template(source).render(&[Message::new("user", "hi")], true, &json!({})).unwrap_err()
}

#[test]
fn chatml() {
    let source = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                  '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
                  {% endif %}";
    let t = template(source);
    assert_eq!(t.source(), source);
    let messages = [Message::new("system", "S"), Message::new("user", "U"), Message::new("assistant", "A")];
    let expected =
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n";
    assert_eq!(t.render(&messages, false, &json!(null)).unwrap(), expected);
    assert_eq!(t.render(&messages, true, &json!({})).unwrap(), format!("{expected}<|im_start|>assistant\n"));
}

#[test]
fn the_environment_of_hugging_face() {
    renders("{{ bos_token }}|{{ eos_token }}|{{ messages[0].content }}", json!({}), "<s>|</s>|Hi <b>\"there\"</b>");
    renders("{{ tools is none }} {{ tools is defined }} {{ x is defined }}", json!({}), "True True False");
    renders("{{ tools | length }} {{ enable_thinking }}", json!({"tools": [1], "enable_thinking": false}), "1 False");
    renders(
        "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%d %b %Y, %H:%M\") }}",
        json!({}),
        "2023-11-14 14 Nov 2023, 22:13",
    );
    renders("{{ ' a '.strip() }}{{ 'a</x>b'.split('</x>')[-1] }}{{ 'ab'.startswith('a') }}", json!({}), "abTrue");
    renders(
        "{{ {'a': 1}.get('b', 2) }}{% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %}",
        json!({"x": {"b": 1, "a": 2}}),
        "2b=1;a=2;",
    );
    renders(
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        json!({}),
        "02",
    );
    renders(
        "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
        json!({}),
        "3",
    );
    renders(
        "{{ 'x' is iterable }} {{ [1] is iterable }} {{ 3 is iterable }} {{ 'x' is string }}",
        json!({}),
        "True True False True",
    );
    renders("{% for m in [1, 2, 3][::-1] %}{{ m }}{% endfor %}{{ [1, 2, 3][1:] | join(',') }}", json!({}), "3212,3");
    renders(
        "{{ '{} of {:>4}'.format('a', 7) }}{{ 'aXbX'.replace('X', '--') }}{{ '+'.join(['a', 'b']) }}",
        json!({}),
        "a of    7a--b--a+b",
    );
    renders("a\n    {% if true %}\nb\n    {% endif %}\nc\n", json!({}), "a\nb\nc");
    renders("{%- generation -%} x {%- endgeneration %}y", json!({}), "xy");
    renders("{% macro f(x, y=2) %}{{ x }}{{ y }}{{ bos_token }}{% endmacro %}{{ f(1) }}", json!({}), "12<s>");
    renders(
        "{% set ns = namespace(x=[]) %}{% for i in range(50) %}{% set ns.x = ns.x + [i] %}{% endfor %}\
         {{ ns.x[48:] }} {{ (ns.x * 2) | length }} {{ ([1] + [2] * 2)[::-1] }} {{ [1, 2][1:] + ['a'] }}",
        json!({}),
        "[48, 49] 100 [2, 2, 1] [2, 'a']",
    );
    renders(
        "{{ 1 + 2 }} {{ 1.5 * 2 }} {{ 'a' + 'b' * 2 }} {{ 'abc'[1:] }} {{ (1, 2) + (3,) }}",
        json!({}),
        "3 3.0 abb bc (1, 2, 3)",
    );
    let t = ChatTemplate::new("{{ strftime_now('%Y') }}", "", "").unwrap();
    let year: i32 = t.render(&[], true, &json!({})).unwrap().parse().unwrap();
    assert!(year >= 2024, "the machine's clock");
}

#[test]
fn tojson_writes_what_python_writes() {
    // Each expected text is `json.dumps(x, ensure_ascii=False, …)` of Python 3.
    let x = json!({"b": [1, 2.0, -3, true, null], "a": {"text": "é <b>&'\"\\\n\u{1}\u{7f}"}, "e": [], "o": {}, "n": u64::MAX});
    let extra = || json!({"x": x.clone()});
    renders(
        "{{ x | tojson }}",
        extra(),
        "{\"b\": [1, 2.0, -3, true, null], \"a\": {\"text\": \"é <b>&'\\\"\\\\\\n\\u0001\u{7f}\"}, \"e\": [], \"o\": {}, \
         \"n\": 18446744073709551615}",
    );
    renders(
        "{{ x | tojson(indent=2) }}",
        json!({"x": {"b": [1, {"c": 2}], "e": [], "o": {}}}),
        "{\n  \"b\": [\n    1,\n    {\n      \"c\": 2\n    }\n  ],\n  \"e\": [],\n  \"o\": {}\n}",
    );
    renders("{{ x | tojson(sort_keys=true) }}", json!({"x": {"b": 1, "a": 2}}), "{\"a\": 2, \"b\": 1}");
    renders("{{ x | tojson(separators=(',', ':')) }}", json!({"x": {"b": [1, 2]}}), "{\"b\":[1,2]}");
    renders("{{ 'é🦙' | tojson(ensure_ascii=true) }}", json!({}), "\"\\u00e9\\ud83e\\udd99\"");
    renders("{{ (1, 'a') | tojson }}{{ 1e-5 | tojson }}", json!({}), "[1, \"a\"]1e-05");
    assert!(fails("{{ nothing | tojson }}").to_string().contains("undefined"));
    assert!(fails("{{ 1 | tojson(indnt=1) }}").to_string().contains("indnt"));
}

#[test]
fn refusals_come_through() {
    for source in [
        "{{ raise_exception('Roles must alternate') }}",
        "{% macro f() %}{{ raise_exception('Roles must alternate') }}{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}",
    ] {
        let error = fails(source);
        assert!(matches!(&error, ChatError::Refused { message } if message == "Roles must alternate"), "{error}");
    }
}

#[test]
fn errors_name_the_line() {
    let error = ChatTemplate::new("a\nb {% if %}", "", "").unwrap_err();
    assert!(matches!(error, ChatError::Syntax { line: 2, .. }), "{error}");
    let error = fails("a\n\n{{ 'x'.nosuch() }}");
    assert!(matches!(&error, ChatError::Render { line: 3, problem } if problem.contains("nosuch")), "{error}");
    let error = fails("{{ strftime_now('%!') }}");
    assert!(error.to_string().contains("strftime_now"), "{error}");
    let error = template("x").render(&[], true, &json!([1])).unwrap_err();
    assert_eq!(error.to_string(), "the template's variables are an array; expected an object");
    let long = "x".repeat(MAX_SOURCE_BYTES + 1);
    assert!(matches!(ChatTemplate::new(&long, "", ""), Err(ChatError::TooLong { .. })));
    let t = template(&"x".repeat(MAX_SOURCE_BYTES));
    assert_eq!(t.render(&[], true, &json!({})).unwrap().len(), MAX_SOURCE_BYTES);
}

#[test]
fn row_31_work_without_end() {
    for source in [
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a' * 1000000000000 }}",
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% for i in range(99999) %}{% for j in range(99) %}{{ messages | tojson }}{% endfor %}{% endfor %}",
        "{{ 'x' | tojson(indent=1000000000000) }}{{ ['y'] * 100000000000 | list }}",
        "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
        "{{ 'x'.join(range(99999)).replace('', 'x' * 99999) }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ ('x' * 1000000).join(range(99999)) }}",
        "{{ 'x'.join([('x' * 1000000)] * 1000000) }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 99999999999) }}",
        "{{ ('{0}' * 1000000).format('x' * 1000000) }}",
        // Lists that double, whole and empty, as one knows them and as promises of minijinja's.
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x * 2 %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = (ns.x + ns.x)[:] %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x | chain(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x | zip(ns.x) %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f(x, n) %}{% if n %}{{ f(x + x, n - 1) }}{% endif %}{% endmacro %}{{ f([1], 60) }}",
        "{% set ns = namespace(x=range(99999) | list) %}{% for i in range(9999) %}{% set ns.x = ns.x[1:] * 1 %}{% endfor %}",
    ] {
        let error = fails(source);
        assert!(matches!(error, ChatError::TooMuchWork { .. } | ChatError::Render { .. }), "{source}: {error}");
    }
    // Empty ones cost no memory, and no time.
    let empty =
        "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}";
    assert_eq!(template(empty).render(&[], true, &json!({})).unwrap(), "[]");
    // A list inside a list inside a list: made, written and dropped on a stack that holds it.
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    assert_eq!(template(nested).render(&[], true, &json!({})).unwrap(), "");
    let error = fails(&format!("{nested}{{{{ ns.x | tojson }}}}"));
    assert!(error.to_string().contains("nested too deeply"), "{error}");
}

#[test]
fn row_31_nesting() {
    let deep = 5000;
    let nested = [
        ("{{ ", "(", "1", ")", " }}"),
        ("{{ ", "[", "", "]", " }}"),
        ("{{ ", "{1: ", "1", "}", " }}"),
        ("", "{% if 1 %}", "", "{% endif %}", ""),
        ("", "{%for x in y%}", "", "{%endfor%}", ""),
        ("{{ ", "range(", "1", ")", " }}"),
        ("{{ ", "x[", "1", "]", " }}"),
        ("{{ ", "not ", "1", "", " }}"),
        ("{{ ", "-", "1", "", " }}"),
        ("{{ 1 ", "if 1 else 1 ", "", "", " }}"),
        ("{{ 2", "**2", "", "", " }}"),
        ("", "{% set x %}", "", "{% endset %}", ""),
        ("", "{%macro f()%}", "", "{%endmacro%}", ""),
    ];
    for (head, open, middle, close, tail) in nested {
        let source = [head, &open.repeat(deep), middle, &close.repeat(deep), tail].concat();
        // Too deep for the parser, or no harm: never a crash.
        match ChatTemplate::new(&source, "", "") {
            Ok(t) => drop(t.render(&[Message::new("user", "hi")], true, &json!({}))),
            Err(error) => {
                let expected = matches!(error, ChatError::Syntax { .. } | ChatError::LongTag { .. });
                assert!(expected, "{open}: {error}");
            }
        }
    }
    // Chains nest in the syntax tree though they don't in the text.
    for (head, link) in [
        ("x", ".b"),
        ("x", "[1]"),
        ("1", "+1"),
        ("1", "~1"),
        ("2", "**2"),
        ("1", " and 1"),
        ("1", "|int"),
        ("1", "==1"),
        ("x", "()"),
        ("1", " is odd"),
        ("1", " if x else 1"),
    ] {
        let chain = |limit: usize| format!("{{{{{head}{}}}}}", link.repeat((limit - head.len()) / link.len()));
        match ChatTemplate::new(&chain(MAX_TAG_BYTES), "", "") {
            Ok(t) => drop(t.render(&[Message::new("user", "hi")], true, &json!({}))),
            Err(error) => assert!(matches!(error, ChatError::Syntax { .. }), "{link}: {error}"),
        }
        let longer = format!("a\n{{# {{{{ #}}{{{{ 1 }}}}\n{}", chain(MAX_TAG_BYTES + 40));
        let error = ChatTemplate::new(&longer, "", "").unwrap_err();
        assert!(matches!(error, ChatError::LongTag { line: 3, .. }), "{link}: {error}");
    }
    let elifs = "{%elif 0%}".repeat((MAX_SOURCE_BYTES - 30) / 10);
    let t = template(&format!("{{% if 0 %}}{elifs}{{% endif %}}"));
    assert_eq!(t.render(&[], true, &json!({})).unwrap(), "");
    // Long text in a tag is no long tag, whatever it holds; braces and quotes don't end one.
    let text = "}} %} {{ '".repeat(4000);
    assert_eq!(template(&format!("{{{{ \"{text}\" }}}}")).render(&[], true, &json!({})).unwrap(), text);
    let hidden = format!("{{{{ {{1: {{}}}} {} }}}}", "+1".repeat(MAX_TAG_BYTES));
    assert!(matches!(ChatTemplate::new(&hidden, "", ""), Err(ChatError::LongTag { line: 1, .. })));
}

#[test]
fn long_conversations_have_room() {
    let source = "{% for message in messages[::-1] %}{% set i = loop.index0 %}{% endfor %}{% for message in messages %}\
                  {{ '<|im_start|>' + message.role + '\\n' + message.content.strip() + '<|im_end|>' + '\\n' }}{% endfor %}";
    let messages = vec![Message::new("user", "x".repeat(10_000)); 1000];
    let text = template(source).render(&messages, true, &json!({})).unwrap();
    assert!(text.len() > 10_000_000);
    let one = [Message::new("user", "y".repeat(10 << 20))];
    assert!(template(source).render(&one, true, &json!({})).unwrap().len() > 10 << 20);
}

/// Metadata of the smallest vocabulary that has a BOS.
fn metadata(template: Option<Value>) -> Metadata {
    let base = [
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.pre", Value::from("qwen2")),
        ("tokenizer.ggml.tokens", Value::from(vec!["a", "<|begin|>", "<|im_end|>"])),
        ("tokenizer.ggml.token_type", Value::from(vec![1i32, 3, 3])),
        ("tokenizer.ggml.merges", Value::from(Vec::<&str>::new())),
        ("tokenizer.ggml.bos_token_id", Value::from(1u32)),
        ("tokenizer.ggml.eos_token_id", Value::from(2u32)),
    ];
    let template = template.map(|value| ("tokenizer.chat_template", value));
    Metadata::from_entries(base.into_iter().chain(template).map(|(key, value)| (key.to_owned(), value)))
}

#[test]
fn from_a_file() {
    let open = |m: &Metadata| ChatTemplate::from_gguf(m, &Tokenizer::from_gguf(m).unwrap());
    assert!(open(&metadata(None)).unwrap().is_none());
    assert!(open(&metadata(Some("  ".into()))).unwrap().is_none());
    let t = open(&metadata(Some("{{ bos_token }}{{ eos_token }}".into()))).unwrap().unwrap();
    assert_eq!(t.render(&[], true, &json!({})).unwrap(), "<|begin|><|im_end|>");
    let error = open(&metadata(Some(Value::U32(1)))).unwrap_err();
    assert!(error.to_string().contains("`tokenizer.chat_template` is of type u32"), "{error}");
}
