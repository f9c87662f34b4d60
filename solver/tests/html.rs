//! The page of a run: it is made from a journal that a scripted run wrote, whole or cut short, and nothing in the run
//! gets out of the text.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sandbox::Status;
use solver::clock::MonotonicClock;
use solver::journal::{Header, History, Journal, ModelIdentity, Recorder, event};
use solver::testing::{FakePython, Script, ScriptedModel};
use solver::{Problem, ProblemSet, Setup, SolverOptions, html};

/// Everything that has a meaning in HTML, attributes, scripts, styles or templates.
const HOSTILE: &str =
    "</code></pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{ 7*7 }}{% raw %}&lt;</style>";

/// A journal of a run in which everything that can be a text is hostile.
fn run(folder: &Path) {
    let problem =
        |id: &str| Problem { id: format!("{id}{HOSTILE}"), text: format!("What? {HOSTILE}"), answer: Some(391) };
    let problems = ProblemSet { name: HOSTILE.to_string(), path: None, problems: vec![problem("a"), problem("b")] };
    let code = format!("{HOSTILE}\n```python\nprint(1)  # {HOSTILE}\ndef f(x): return 'é'\n```");
    let scripts = [
        Script::new(&[&format!("<think>hm {HOSTILE}</think>{code}"), "So \\boxed{391}"]),
        Script::new(&[&format!("\\boxed{{{}}}", "<b>x</b>"), "\\boxed{12}"]),
        Script::new(&[&code, "\\boxed{391}"]),
        Script::new(&["no", "no"]),
    ];
    let options = SolverOptions { attempts: 2, stop: solver::StopRule::All, ..SolverOptions::default() };
    let python = Arc::new(FakePython::new(|_, _| {
        let status = Status::Exception { kind: HOSTILE.to_string(), message: HOSTILE.to_string() };
        FakePython::outcome(status, HOSTILE)
    }));
    let clock = Arc::new(MonotonicClock::since(Instant::now()));
    let header = Header {
        version: event::VERSION,
        program: HOSTILE.to_string(),
        unix_s: 0,
        model: ModelIdentity { name: HOSTILE.to_string(), file_bytes: 1, hash: "00".to_string() },
        backend: HOSTILE.to_string(),
        options: options.clone(),
        settings: serde_json::Map::new(),
        set_name: HOSTILE.to_string(),
        problems: problems.problems.clone(),
    };
    let recorder = Recorder::begin(Journal::create(folder).unwrap(), clock.clone(), header).unwrap();
    let setup = Setup { recorder: Some(recorder), clock, ..Setup::new(&options, 2) };
    let mut model = ScriptedModel::new(scripts);
    let report = solver::run(&mut model, python, &problems, setup, &mut |_| {}).unwrap();
    assert_eq!(report.n_correct(), 2);
}

/// Names of all tags, the page's own text between them, and what stands in its only script.
fn parse(page: &str) -> (Vec<String>, String) {
    let (mut tags, mut text, mut rest) = (Vec::new(), String::new(), page);
    while let Some(at) = rest.find('<') {
        text.push_str(&rest[..at]);
        let tag = &rest[at + 1..];
        let name: String = tag.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '!')).collect();
        // Attributes are quoted, and no quote is inside: the first `>` outside quotes ends the tag.
        let mut quoted = false;
        let end = tag.find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        rest = &tag[end.expect("every tag ends") + 1..];
        if matches!(name.as_str(), "style" | "script") {
            rest = &rest[rest.find(&format!("</{name}>")).expect("it is closed")..];
        }
        tags.push(name);
    }
    (tags, text + rest)
}

#[test]
fn nothing_in_a_run_gets_out_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path());
    let page = html::render(&History::read(dir.path()).unwrap(), "2026-01-02 03:04").unwrap();
    let (tags, text) = parse(&page);
    let count = |name: &str| tags.iter().filter(|t| *t == name).count();
    assert_eq!((count("script"), count("/script"), count("style"), count("img"), count("iframe")), (1, 1, 1, 0, 0));
    for name in ["details", "section", "table", "pre", "code", "div", "ul", "span"] {
        assert_eq!(count(name), count(&format!("/{name}")), "{name} is balanced");
    }
    assert_eq!(count("details"), 5, "four attempts and the settings");
    assert!(!text.contains("49"), "no template in a text is carried out");
    assert!(text.contains("alert(1)") && text.contains("{{ 7*7 }}"), "it is all there, as text");
    assert!(!page.contains("<script>alert") && !page.contains("onerror=alert(2)>\""), "{page}");
    // Only the file's own script may run.
    let nonce = page.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(nonce.len() == 64 && page.contains(&format!("<script nonce=\"{nonce}\">")));
    assert!(!page.contains("http://") && !page.contains("https://"), "the file needs nothing else");
}

#[test]
fn the_page_shows_votes_transcripts_and_times() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path());
    let page = html::render(&History::read(dir.path()).unwrap(), "2026-01-02 03:04").unwrap();
    for part in [
        "<b>2 of 2</b> right",
        "2026-01-02 03:04",
        "<span class=\"kw\">def</span>",
        "<span class=\"com\"># &lt;",
        "class=\"step thought\"",
        "class=\"step code failed\"",
        "a box that didn’t count",
        "<span class=\"wrong\">= 12</span>",
        "<span class=\"none\">no answer</span>",
        "class=\"call failed\"",
        "id=\"p2a1\"",
        "<dt>sampling.temperature</dt>",
        "@media(prefers-color-scheme:dark)",
        "width=device-width",
    ] {
        assert!(page.contains(part), "no {part:?} in {page}");
    }
}

#[test]
fn a_run_that_was_cut_short_anywhere_has_its_page() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path());
    let journal = std::fs::read(dir.path().join("journal.jsonl")).unwrap();
    let ends: Vec<usize> = journal.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    assert!(ends.len() > 10);
    for end in ends {
        let history = History::read_from(&mut &journal[..end], false).unwrap();
        let page = html::render(&history, "").unwrap();
        assert!(page.contains("</html>") && parse(&page).0.iter().filter(|t| *t == "script").count() == 1);
    }
}
