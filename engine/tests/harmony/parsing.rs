//! What models write, and what they shouldn't: every text is read the same way however it is cut into pieces.

use engine::chat::harmony::{
    Author, Channel, Control, End, Event, HarmonyTokens, HeaderProblem, Item, MAX_HEADER_BYTES, Parser, TokenParser,
};

use crate::vocabulary::o200k;

/// A text with control tokens spelled out, as control tokens and text.
fn items(text: &str) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    let mut rest = text;
    loop {
        let next =
            Control::ALL.into_iter().filter_map(|c| rest.find(c.name()).map(|at| (at, c))).min_by_key(|(at, _)| *at);
        let (at, control) = next.map_or((rest.len(), None), |(at, control)| (at, Some(control)));
        if at > 0 {
            items.push(Item::Text(&rest[..at]));
        }
        let Some(control) = control else { return items };
        items.push(Item::Control(control));
        rest = &rest[at + control.name().len()..];
    }
}

/// Events of items for a model that goes on after `<|start|>assistant`, texts joined.
fn read(items: &[Item<'_>]) -> Vec<Event> {
    let mut parser = Parser::within_header(Author::Assistant);
    let mut events: Vec<Event> = items.iter().flat_map(|item| parser.push(*item)).collect();
    events.extend(parser.finish());
    joined(events)
}

fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (_, Event::Text(text)) if text.is_empty() => panic!("an empty text"),
            (Some(Event::Text(before)), Event::Text(text)) => before.push_str(&text),
            (_, event) => joined.push(event),
        }
    }
    joined
}

/// Events as one line a message: `author>recipient channel type problem "text" end`.
fn told(events: &[Event]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for event in events {
        match event {
            Event::Begin(h) => {
                let mut line = h.author.name().to_owned();
                h.recipient.iter().for_each(|r| line += &format!(">{r}"));
                h.channel.iter().for_each(|c| line += &format!(" {}", c.name()));
                h.content_type.iter().for_each(|t| line += &format!(" {t}"));
                h.problem.iter().for_each(|p| {
                    line += match p {
                        HeaderProblem::NoChannel => " no-channel",
                        HeaderProblem::UnknownChannel { .. } => " unknown-channel",
                        HeaderProblem::NoHeader => " no-header",
                        HeaderProblem::TooLong => " too-long",
                    }
                });
                lines.push(line);
            }
            Event::Text(text) => *lines.last_mut().unwrap() += &format!(" {text:?}"),
            Event::End(end) => {
                *lines.last_mut().unwrap() += match end {
                    End::Message => " end",
                    End::Call => " call",
                    End::Return => " return",
                    End::Cut => " cut",
                }
            }
        }
    }
    lines
}

const CORPUS: &[(&str, &[&str])] = &[
    (
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        &["assistant analysis \"Think.\" end", "assistant final \"4\" return"],
    ),
    (
        "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        &["assistant>python analysis code \"print(1)\" call"],
    ),
    (
        " to=python<|channel|>analysis code<|message|>print(1)<|call|>",
        &["assistant>python analysis code \"print(1)\" call"],
    ),
    (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        &["assistant>functions.f commentary json \"{}\" call"],
    ),
    (
        " to=functions.f<|channel|>commentary<|constrain|>json<|message|>{}<|call|>",
        &["assistant>functions.f commentary json \"{}\" call"],
    ),
    (
        "<|channel|>commentary <|constrain|>json to=functions.f<|message|>{}<|call|>",
        &["assistant>functions.f commentary json \"{}\" call"],
    ),
    // A conversation as it goes on with tool results.
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>python to=assistant<|channel|>analysis<|message|>4<|end|>\
         <|start|>user:Ann<|message|>é<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
        &[
            "assistant analysis \"a\" end",
            "python analysis \"4\" end",
            "user \"é\" end",
            "assistant final \"b\" return",
        ],
    ),
    // No channel; a channel that doesn't exist; two; nothing after it.
    ("<|message|>4<|return|>", &["assistant no-channel \"4\" return"]),
    ("<|channel|>thoughts<|message|>4<|end|>", &["assistant unknown-channel \"4\" end"]),
    ("<|channel|>analysis<|channel|>final<|message|>4<|return|>", &["assistant final \"4\" return"]),
    ("<|channel|><|message|>4<|end|>", &["assistant no-channel \"4\" end"]),
    ("assistant<|channel|>final<|message|>4", &["assistant final \"4\" cut"]),
    ("to= python<|channel|>analysis<|message|>1<|end|>", &["assistant>python analysis \"1\" end"]),
    // No end, no start, no header.
    (
        "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b",
        &["assistant analysis \"a\" cut", "assistant final \"b\" cut"],
    ),
    (
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
        &["assistant analysis \"a\" cut", "assistant final \"b\" return"],
    ),
    (
        "<|channel|>analysis<|message|>a<|end|> assistant<|channel|>final<|message|>b<|return|>",
        &["assistant analysis \"a\" end", "assistant final \"b\" return"],
    ),
    (
        "<|channel|>analysis<|message|>a<|end|><|message|>b<|return|>",
        &["assistant analysis \"a\" end", "assistant no-channel \"b\" return"],
    ),
    ("The answer is 4.", &["assistant no-header \"The answer is 4.\" cut"]),
    (" The answer is 4.<|return|>", &["assistant no-header \" The answer is 4.\" return"]),
    (
        "It is 4.<|start|>assistant<|channel|>final<|message|>5<|return|>",
        &["assistant no-header \"It is 4.\" cut", "assistant final \"5\" return"],
    ),
    // Control tokens where they mean nothing.
    ("<|channel|>final<|message|>a<|message|>b<|constrain|>c<|return|>", &["assistant final \"abc\" return"]),
    (
        "<|end|><|end|><|call|><|constrain|><|channel|>final<|message|>a<|return|><|return|>",
        &["assistant final \"a\" return"],
    ),
    ("<|start|><|start|>assistant<|start|>assistant<|channel|>final<|message|>a", &["assistant final \"a\" cut"]),
    ("<|channel|>analysis to=python code<|call|>", &["assistant>python analysis code call"]),
    ("<|channel|>final<|message|><|return|>", &["assistant final return"]),
    ("<|channel|>analysis", &[]),
    ("<|return|>", &[]),
    ("", &[]),
];

#[test]
fn every_message_is_read_as_it_was_meant() {
    for (text, expected) in CORPUS {
        assert_eq!(told(&read(&items(text))), *expected, "{text}");
    }
    let problem = HeaderProblem::UnknownChannel { found: "x".to_owned() };
    assert_eq!(problem.to_string(), "the header names the channel \"x\"; there are analysis, commentary and final");
}

/// Cuts the texts among items at these characters of the whole.
fn cut<'t>(items: &[Item<'t>], cuts: &[usize]) -> Vec<Item<'t>> {
    let (mut cut_items, mut n_chars) = (Vec::new(), 0);
    for item in items {
        let Item::Text(text) = item else {
            cut_items.push(*item);
            continue;
        };
        let mut start = 0;
        for (at, _) in text.char_indices() {
            if cuts.contains(&n_chars) && at > start {
                cut_items.push(Item::Text(&text[start..at]));
                start = at;
            }
            n_chars += 1;
        }
        cut_items.push(Item::Text(&text[start..]));
    }
    cut_items
}

fn n_chars(items: &[Item<'_>]) -> usize {
    items.iter().map(|item| if let Item::Text(text) = item { text.chars().count() } else { 0 }).sum()
}

#[test]
fn any_split_of_the_stream_gives_the_same_messages() {
    for (text, _) in CORPUS {
        let items = items(text);
        let (whole, n) = (read(&items), n_chars(&items));
        for i in 0..=n {
            for j in i..=n {
                assert_eq!(read(&cut(&items, &[i, j])), whole, "{text} cut at {i}, {j}");
            }
        }
        assert_eq!(read(&cut(&items, &(0..=n).collect::<Vec<_>>())), whole, "{text} char by char");
    }
}

#[test]
fn token_ids_give_the_same_messages() {
    let ours = &o200k().ours;
    let tokens = HarmonyTokens::of(ours).unwrap();
    for (text, expected) in CORPUS {
        for ids in [ours.encode(text, true), bytewise(text)] {
            let mut parser = TokenParser::new(tokens, Parser::within_header(Author::Assistant));
            let mut events: Vec<Event> = ids.iter().flat_map(|id| parser.push(ours, *id)).collect();
            events.extend(parser.finish());
            assert_eq!(told(&joined(events)), *expected, "{text}");
        }
    }
    // A control token inside a character, other control tokens, ids that don't exist.
    let mut parser = TokenParser::new(tokens, Parser::within_header(Author::Assistant));
    let mut ids = ours.encode("<|channel|>final<|message|>", true);
    let half = bytewise("é")[0];
    ids.extend([half, tokens.id(Control::Message), 200_500, 199_999, u32::MAX, half]);
    let mut events: Vec<Event> = ids.iter().flat_map(|id| parser.push(ours, *id)).collect();
    events.extend(parser.finish());
    assert_eq!(told(&joined(events)), ["assistant final \"\u{fffd}\u{fffd}\u{fffd}\" cut"]);
}

/// Tokens of a text with a token for each byte of what isn't a control token.
fn bytewise(text: &str) -> Vec<u32> {
    let ours = &o200k().ours;
    let tokens = HarmonyTokens::of(ours).unwrap();
    let byte = |b: &u8| (0..256).find(|&id| ours.token_bytes(id).unwrap() == [*b]).unwrap();
    items(text)
        .into_iter()
        .flat_map(|item| match item {
            Item::Control(control) => vec![tokens.id(control)],
            Item::Text(text) => text.as_bytes().iter().map(byte).collect(),
        })
        .collect()
}

#[test]
fn random_streams_are_read_without_loss_and_the_same_char_by_char() {
    let words =
        ["assistant", "user", "to=python", "to=", " ", "\n", "analysis", "final", "code", "x", "é", "a longer text. "];
    let mut state = 1u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut n_messages = 0;
    for round in 0..8000 {
        let mut items = Vec::new();
        for _ in 0..draw(24) {
            items.push(match draw(2) {
                0 => Item::Control(Control::ALL[draw(7)]),
                _ => Item::Text(words[draw(words.len())]),
            });
        }
        if round % 8 == 0 {
            items.extend(std::iter::repeat_n(Item::Text("word é "), 40 + draw(20)));
        }
        let events = read(&items);
        let n = n_chars(&items);
        assert_eq!(read(&cut(&items, &(0..=n).collect::<Vec<_>>())), events, "{items:?}");
        // Begin, text, end, in this order and complete.
        let mut is_open = false;
        for event in &events {
            match event {
                Event::Begin(header) => {
                    assert!(!std::mem::replace(&mut is_open, true));
                    let is_explained = header.channel.is_some() || header.problem.is_some();
                    assert!(is_explained || header.author != Author::Assistant, "{header:?}");
                    n_messages += 1;
                }
                Event::Text(_) => assert!(is_open),
                Event::End(_) => assert!(std::mem::replace(&mut is_open, false)),
            }
        }
        assert!(!is_open);
        // All text between a message token and the next start or end comes out.
        let mut expected = String::new();
        let mut in_content = false;
        for item in &items {
            match item {
                Item::Control(Control::Message) => in_content = true,
                Item::Control(Control::Constrain) => {}
                Item::Control(_) => in_content = false,
                Item::Text(text) if in_content => expected.push_str(text),
                Item::Text(_) => {}
            }
        }
        let texts: String =
            events.iter().filter_map(|e| if let Event::Text(t) = e { Some(t.as_str()) } else { None }).collect();
        let mut found = texts.chars();
        assert!(expected.chars().all(|c| found.any(|f| f == c)), "{expected:?} is not within {texts:?}");
    }
    assert!(n_messages > 5000, "{n_messages}");
}

#[test]
fn a_header_without_end_is_text_and_memory_stays_bounded() {
    let long = "word ".repeat(MAX_HEADER_BYTES);
    assert_eq!(told(&read(&[Item::Text(&long)])), [format!("assistant no-header {long:?} cut")]);
    let events = read(&[Item::Control(Control::Channel), Item::Text("analysis "), Item::Text(&long)]);
    assert_eq!(told(&events), [format!("assistant analysis too-long \"analysis {}\" cut", long)]);
    // Fed for long, it gives back all but a header's worth.
    let mut parser = Parser::within_header(Author::Assistant);
    let mut n_bytes = 0;
    for n in 1..10_000 {
        for event in parser.push(Item::Text("wordé ")) {
            n_bytes += if let Event::Text(text) = event { text.len() } else { 0 };
        }
        assert!(n * "wordé ".len() - n_bytes <= MAX_HEADER_BYTES);
    }
    let channel = Parser::within_header(Author::Assistant).push(Item::Control(Control::Channel));
    assert_eq!(channel, []);
    assert_eq!(Channel::from_name("final"), Some(Channel::Final));
}
