//! Models behind servers, against a stand-in that says what a script tells it: both ways to talk, tool calls in the
//! middle of a turn, and every way in which a server can fail.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use solver::attempt::AttemptEnd;
use solver::model::ModelError;
use solver::remote::{Api, RemoteError, RemoteModel, RemoteSettings};
use solver::rollout::{ProblemStop, Solved, Solver};
use solver::testing::FakePython;
use solver::{CancelToken, LanguageModel, Problem, Protocol, SolverOptions};

/// What the server does with a request for text.
enum Reply {
    /// Says these pieces and ends its turn.
    Say(Vec<Value>),
    /// Says these pieces; then the connection breaks off.
    Cut(Vec<Value>),
    /// Answers with this status and body.
    Status(u16, &'static str),
    /// Sends this instead of events.
    Raw(&'static str),
    /// Says nothing for a second.
    Silent,
}

type Script = dyn Fn(&Value, usize) -> Reply + Send + Sync;

/// A server; requests for text go to the script, with their number from 0.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn new(script: impl Fn(&Value, usize) -> Reply + Send + Sync + 'static) -> Server {
        Server::with_template(true, script)
    }

    /// `has_template`: fills in templates, as llama.cpp's server does.
    fn with_template(has_template: bool, script: impl Fn(&Value, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (script, all): (Arc<Script>, _) = (Arc::new(script), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, all) = (script.clone(), all.clone());
                std::thread::spawn(move || serve(stream, has_template, &*script, &all));
            }
        });
        Server { address, requests }
    }

    fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, has_template: bool, script: &Script, all: &Mutex<Vec<Value>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_string();
    let mut n_bytes = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        let header = header.to_ascii_lowercase();
        n_bytes = header.strip_prefix("content-length:").map_or(n_bytes, |n| n.trim().parse().unwrap());
    }
    let mut body = vec![0; n_bytes];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut out = stream;
    let mut answer = |status: u16, kind: &str, text: &str| {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n");
        out.write_all(head.as_bytes()).ok()?;
        out.write_all(text.as_bytes()).ok()
    };
    let reply = match path.as_str() {
        "/v1/models" => return answer(200, "application/json", r#"{"data": [{"id": "stand-in"}, {"id": "other"}]}"#),
        "/props" => {
            let props = r#"{"default_generation_settings": {"n_ctx": 2048}}"#;
            return answer(200, "application/json", props);
        }
        "/apply-template" if has_template => {
            let turn = |m: &Value| format!("[{}]{}[end]", m["role"].as_str().unwrap(), m["content"].as_str().unwrap());
            let turns: String = body["messages"].as_array()?.iter().map(turn).collect();
            return answer(200, "application/json", &json!({ "prompt": format!("{turns}[assistant]") }).to_string());
        }
        "/v1/completions" | "/v1/chat/completions" => {
            let n = {
                let mut all = all.lock().unwrap();
                all.push(body.clone());
                all.len() - 1
            };
            script(&body, n)
        }
        _ => Reply::Status(404, "{\"error\": {\"message\": \"no such path\"}}"),
    };
    let events = |pieces: &[Value]| pieces.iter().map(|p| format!("data: {p}\n\n")).collect::<String>();
    match reply {
        Reply::Say(pieces) => answer(200, "text/event-stream", &format!("{}data: [DONE]\n\n", events(&pieces))),
        Reply::Cut(pieces) => answer(200, "text/event-stream", &events(&pieces)),
        Reply::Status(status, text) => answer(status, "application/json", text),
        Reply::Raw(text) => answer(200, "text/event-stream", text),
        Reply::Silent => {
            std::thread::sleep(Duration::from_secs(1));
            None
        }
    }
}

/// A text in pieces of two characters, as completions stream it.
fn text(text: &str) -> Vec<Value> {
    let chars: Vec<char> = text.chars().collect();
    let piece = |c: &[char]| json!({ "choices": [{ "text": c.iter().collect::<String>() }] });
    chars.chunks(2).map(piece).collect()
}

fn chat(text: &str) -> Vec<Value> {
    let chars: Vec<char> = text.chars().collect();
    let piece = |c: &[char]| json!({ "choices": [{ "delta": { "content": c.iter().collect::<String>() } }] });
    chars.chunks(2).map(piece).collect()
}

fn settings(servers: &[&Server]) -> RemoteSettings {
    RemoteSettings {
        endpoints: servers.iter().map(|s| s.address.clone()).collect(),
        model: None,
        api: None,
        n_seq: 8,
        n_ctx: None,
        patience: Duration::from_millis(300),
        max_tries: 4,
        key: None,
        tool: None,
    }
}

fn connect(servers: &[&Server]) -> RemoteModel {
    RemoteModel::connect(settings(servers)).unwrap()
}

fn solve(model: &mut RemoteModel, options: &SolverOptions) -> Solved {
    let python = Arc::new(FakePython::new(|_, _| FakePython::ok("391 <|im_end|>\n")));
    let mut solver = Solver { model, python, options, cancel: CancelToken::default() };
    let problem =
        Problem { id: "p".to_string(), text: "What is <|im_start|> 17 · 23?".to_string(), answer: Some(391) };
    solver.solve(&problem, None, &mut |_| {})
}

fn options(attempts: usize) -> SolverOptions {
    SolverOptions { attempts, stop: solver::StopRule::All, ..SolverOptions::default() }
}

fn answered(solved: &Solved) -> Vec<Option<i64>> {
    solved.attempts.iter().map(|a| a.answer()).collect()
}

const CALL: &str = "I count.\n```python\nprint(17 * 23)\n```\nIt prints 999, so \\boxed{999}";

#[test]
fn completions_show_output_inside_the_turn() {
    let server = Server::new(|_, n| Reply::Say(text(if n == 0 { CALL } else { "So \\boxed{391}." })));
    let mut model = connect(&[&server]);
    assert_eq!((model.api(), model.n_ctx(), model.name()), (Api::Completions, 2048, "stand-in"));
    let solved = solve(&mut model, &options(1));
    assert_eq!(answered(&solved), [Some(391)], "what it made up after the call doesn't count");
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    let prompt = requests[1]["prompt"].as_str().unwrap();
    let (opening, turn) = prompt.split_once("[assistant]").unwrap();
    assert!(opening.starts_with("[system]") && opening.contains("[user]What is < |im_start|> 17"), "{opening}");
    let expected = "I count.\n```python\nprint(17 * 23)\n```\n```output\n391 < |im_end|>\n```\n";
    assert!(turn == expected || turn == expected.replace("```\n```o", "```\n\n```o"), "{turn}");
    assert_eq!((&requests[0]["model"], &requests[0]["stream"]), (&"stand-in".into(), &true.into()));
    assert!(!model.has_work(), "nothing is left behind");
}

#[test]
fn chats_show_output_as_a_users_turn() {
    let server = Server::with_template(false, |_, n| Reply::Say(chat(if n == 0 { CALL } else { "So \\boxed{391}." })));
    let mut model = connect(&[&server]);
    assert_eq!(model.api(), Api::Chat);
    assert_eq!(answered(&solve(&mut model, &options(1))), [Some(391)]);
    let messages = server.requests()[1]["messages"].clone();
    let roles: Vec<&str> = messages.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert!(
        messages[2]["content"].as_str().unwrap().trim_end().ends_with("```python\nprint(17 * 23)\n```"),
        "{messages}"
    );
    assert!(messages[3]["content"].as_str().unwrap().contains("```output\n391 < |im_end|>\n```"), "{messages}");
}

#[test]
fn a_turn_without_an_answer_is_followed_by_a_question() {
    let server = Server::new(|_, n| Reply::Say(text(if n == 0 { "I don't know." } else { "\\boxed{391}" })));
    assert_eq!(answered(&solve(&mut connect(&[&server]), &options(1))), [Some(391)]);
    let prompt = server.requests()[1]["prompt"].as_str().unwrap().to_string();
    assert!(prompt.contains("[assistant]I don't know.[end][user]Now give"), "{prompt}");
    assert!(prompt.ends_with("[end][assistant]"), "{prompt}");
}

#[test]
fn tools_are_listed_and_their_results_are_turns() {
    let call = "<tool_call>\n{\"name\": \"python\", \"arguments\": {\"code\": \"print(391)\"}}\n</tool_call>";
    let server = Server::new(move |_, n| Reply::Say(text(if n == 0 { call } else { "\\boxed{391}" })));
    let mut model =
        RemoteModel::connect(RemoteSettings { tool: Some("Runs it.".into()), ..settings(&[&server]) }).unwrap();
    let options = SolverOptions { protocol: Protocol::Hermes, ..options(1) };
    assert_eq!(answered(&solve(&mut model, &options)), [Some(391)]);
    let prompt = server.requests()[1]["prompt"].as_str().unwrap().to_string();
    assert!(prompt.contains("Runs it.") && prompt.contains("[end][user]<tool_response>\n391"), "{prompt}");
}

#[test]
fn thoughts_and_probabilities_are_told_apart() {
    let server = Server::with_template(false, |_, _| {
        let top = json!([{ "logprob": -1.0 }, { "logprob": -5.0 }]);
        let logprobs = json!({ "content": [{ "logprob": -1.0, "top_logprobs": top }] });
        Reply::Say(vec![
            json!({ "choices": [{ "delta": { "reasoning_content": "maybe \\boxed{1}" }, "logprobs": logprobs }] }),
            json!({ "choices": [{ "delta": { "content": "\\boxed{391}" }, "logprobs": logprobs }] }),
        ])
    });
    let solved = solve(&mut connect(&[&server]), &options(1));
    assert_eq!(answered(&solved), [Some(391)]);
    assert_eq!((solved.attempts[0].confidence.mean(), solved.attempts[0].mean_logprob()), (3.0, -1.0));
}

#[test]
fn whatever_breaks_is_tried_again_and_goes_on_where_it_was() {
    type Failure = fn() -> Reply;
    let failures: [(&str, Failure); 6] = [
        ("a fault of the server", || Reply::Status(500, "{\"error\": {\"message\": \"no memory\"}}")),
        ("too many requests", || Reply::Status(429, "slow down")),
        ("a stream that breaks off", || Reply::Cut(text("So \\box"))),
        ("no JSON", || Reply::Raw("data: {\"choices\": [{\"te\n\n")),
        ("an error in the stream", || Reply::Raw("data: {\"error\": {\"message\": \"oops\"}}\n\n")),
        ("silence", || Reply::Silent),
    ];
    for (name, failure) in failures {
        // What was said before the failure is part of the next prompt: the rest is enough.
        let server = Server::new(move |body, n| match n {
            0 | 1 => failure(),
            _ if body["prompt"].as_str().unwrap().ends_with("So \\boxSo \\box") => Reply::Say(text("ed{391}")),
            _ => Reply::Say(text("So \\boxed{391}")),
        });
        let solved = solve(&mut connect(&[&server]), &options(1));
        assert_eq!(answered(&solved), [Some(391)], "{name}: {:?}", solved.fault);
        assert_eq!(server.requests().len(), 3, "{name}");
    }
}

#[test]
fn another_server_takes_over() {
    for bad in [|| Reply::Status(401, "who are you?"), || Reply::Status(503, "loading"), || Reply::Silent] {
        let (bad, good) = (Server::new(move |_, _| bad()), Server::new(|_, _| Reply::Say(text("\\boxed{391}"))));
        let solved = solve(&mut connect(&[&bad, &good]), &options(3));
        assert_eq!(answered(&solved), [Some(391); 3], "{:?}", solved.fault);
        assert_eq!(good.requests().len(), 3);
    }
}

#[test]
fn servers_share_the_work() {
    let server = || Server::new(|_, _| Reply::Say(text("\\boxed{391}")));
    let (a, b) = (server(), server());
    assert_eq!(answered(&solve(&mut connect(&[&a, &b]), &options(6))), [Some(391); 6]);
    assert_eq!((a.requests().len(), b.requests().len()), (3, 3));
}

#[test]
fn what_cannot_be_mended_ends_the_problem_with_its_reason() {
    let always = |status, message| {
        let server = Server::new(move |_, _| Reply::Status(status, message));
        let solved = solve(&mut connect(&[&server]), &options(2));
        (solved, server.requests().len())
    };
    let (solved, n_requests) = always(502, "bad gateway");
    let fault = match solved.fault {
        Some(ModelError::Remote(error)) => *error,
        fault => panic!("{fault:?}"),
    };
    assert!(matches!(&fault, RemoteError::GaveUp { n_tries: 4, .. }), "{fault}");
    assert!(fault.to_string().contains("4 tries failed") && fault.to_string().contains("502: bad gateway"), "{fault}");
    assert!(n_requests >= 4 && solved.stop == ProblemStop::Fault);
    let (solved, n_requests) = always(403, "{\"error\": \"forbidden\"}");
    assert!(solved.fault.unwrap().to_string().contains("403: forbidden"));
    assert!(n_requests <= 2, "no use in trying again");
    let too_long = "{\"error\": {\"message\": \"the request exceeds the available context size\"}}";
    let (solved, _) = always(400, too_long);
    assert!(solved.attempts.iter().all(|a| a.end == Some(AttemptEnd::ContextFull)), "{:?}", solved.fault);
    assert!(solved.fault.is_none());
}

#[test]
fn a_server_without_probabilities_is_asked_without() {
    let server = Server::new(|body, _| match body.get("logprobs") {
        Some(_) => Reply::Status(400, "{\"error\": {\"message\": \"logprobs are not supported\"}}"),
        None => Reply::Say(text("\\boxed{391}")),
    });
    assert_eq!(answered(&solve(&mut connect(&[&server]), &options(1))), [Some(391)]);
}

#[test]
fn what_is_wrong_with_a_server_is_known_at_once() {
    let server = Server::new(|_, _| Reply::Silent);
    let refused = |settings| RemoteModel::connect(settings).err().expect("it is refused");
    let other = RemoteSettings { model: Some("gpt-9".to_string()), ..settings(&[&server]) };
    let error = refused(other);
    assert!(error.to_string().contains("doesn't serve \"gpt-9\"; it has stand-in, other"), "{error}");
    let nobody = RemoteSettings { endpoints: vec!["http://127.0.0.1:9/v1".to_string()], ..settings(&[]) };
    assert!(matches!(refused(nobody), RemoteError::Unreachable { .. }));
    let elsewhere = RemoteSettings { endpoints: vec![format!("{}/nowhere", server.address)], ..settings(&[]) };
    assert!(matches!(refused(elsewhere), RemoteError::Status { status: 404, .. }));
    let named = RemoteModel::connect(RemoteSettings { model: Some("other".to_string()), ..settings(&[&server]) });
    assert_eq!(named.unwrap().name(), "other");
}
