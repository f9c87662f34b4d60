//! `aimo-engine python --serve`: sessions over HTTP, and what it refuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::tools::{aimo, command};

/// A server on a free port; ended when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn server(args: &[&str]) -> Server {
    let mut child = command()
        .args(["-q", "python", "--serve", "--port", "0"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line:?}")).to_owned();
    Server { child, address }
}

impl Server {
    /// Sends bytes as they are and reads what comes back until the end.
    fn raw(&self, request: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        // The server may refuse before it has read everything.
        let _ = stream.write_all(request.as_bytes());
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        let status = text.split(' ').nth(1).unwrap_or_else(|| panic!("{text:?} {read:?}")).parse().unwrap();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn ask(&self, method: &str, path: &str, body: &str, headers: &str) -> (u16, Value) {
        let json = "Content-Type: application/json";
        let (host, n_bytes) = (&self.address, body.len());
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{json}\r\nContent-Length: {n_bytes}\r\nConnection: close\r\n{headers}\r\n{body}"
        ))
    }

    fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask("POST", path, &body.to_string(), "")
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, "", "")
    }

    fn create(&self) -> String {
        let (status, session) = self.post("/sessions", json!({ "seed": 5 }));
        assert_eq!(status, 201, "{session}");
        session["id"].as_str().unwrap().to_owned()
    }

    fn run(&self, id: &str, code: &str) -> Value {
        let (status, outcome) = self.post(&format!("/sessions/{id}/run"), json!({ "code": code }));
        assert_eq!(status, 200, "{outcome}");
        outcome
    }
}

#[test]
fn sessions_live_fork_reset_and_end() {
    let server = server(&["--timeout", "30"]);
    assert_eq!(server.get("/health"), (200, json!({ "status": "ok" })));
    let id = server.create();
    let outcome = server.run(&id, "from sympy import *\nx = 20\nfactorint(2**32 + 1)");
    assert_eq!(outcome["output"], "{641: 1, 6700417: 1}\n");
    assert_eq!(outcome["status"]["kind"], "ok");
    assert_eq!(server.run(&id, "1 // 0")["status"]["exception"], "ZeroDivisionError");
    let (status, fork) = server.ask("POST", &format!("/sessions/{id}/fork"), "", "");
    assert_eq!(status, 201, "{fork}");
    let fork = fork["id"].as_str().unwrap().to_owned();
    assert_eq!(server.run(&fork, "x += 1; x")["output"], "21\n");
    assert_eq!(server.run(&id, "x")["output"], "20\n");
    let (status, list) = server.get("/sessions");
    assert_eq!((status, list["sessions"].as_array().unwrap().len()), (200, 2), "{list}");
    assert_eq!(list["sessions"][0]["n_calls"], 3);
    assert_eq!(server.ask("POST", &format!("/sessions/{id}/reset"), "", "").0, 200);
    assert_eq!(server.run(&id, "x")["status"]["exception"], "NameError");
    assert_eq!(server.ask("DELETE", &format!("/sessions/{id}"), "", "").0, 200);
    let (status, error) = server.get(&format!("/sessions/{id}"));
    assert_eq!(status, 404);
    assert!(error["error"].as_str().unwrap().contains(&id), "{error}");
    assert_eq!(server.run(&fork, "x")["output"], "21\n", "a fork outlives what it was made of");
}

#[test]
fn sessions_are_bounded_in_number_limits_and_idle_time() {
    let server = server(&["--max-sessions", "2", "--idle-timeout", "2", "--timeout", "3"]);
    let (status, limits) = server.get("/limits");
    assert_eq!((status, &limits["time_ms"], &limits["max_sessions"]), (200, &json!(3000), &json!(2)));
    let (status, error) = server.post("/sessions", json!({ "limits": { "time_ms": 3001 } }));
    assert_eq!(status, 400);
    let text = error["error"].as_str().unwrap();
    assert!(text.contains("limits.time_ms = 3001") && text.contains("3000"), "{text}");
    let (status, error) = server.post("/sessions", json!({ "limits": { "allow_clock": true } }));
    assert_eq!(status, 400);
    assert!(error["error"].as_str().unwrap().contains("--allow-clock"), "{error}");
    let (status, session) = server.post("/sessions", json!({ "limits": { "time_ms": 200, "grace_ms": 100 } }));
    assert_eq!((status, &session["limits"]["time_ms"]), (201, &json!(200)), "{session}");
    let id = session["id"].as_str().unwrap().to_owned();
    assert_eq!(server.run(&id, "while True: pass")["status"]["kind"], "timed_out");
    server.create();
    let (status, error) = server.post("/sessions", json!({}));
    assert_eq!(status, 429);
    assert!(error["error"].as_str().unwrap().contains("--max-sessions"), "{error}");
    // Both are gone a while later.
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while !server.get("/sessions").1["sessions"].as_array().unwrap().is_empty() {
        assert!(std::time::Instant::now() < until, "idle sessions stay");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_session_runs_one_call_at_a_time() {
    let server = server(&["--timeout", "30"]);
    let id = server.create();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| server.run(&id, "import time; time.sleep(3); 5"));
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while server.get(&format!("/sessions/{id}")).1["busy"] != true && !slow.is_finished() {
            assert!(std::time::Instant::now() < until, "it is never busy");
        }
        if !slow.is_finished() {
            let (status, error) = server.post(&format!("/sessions/{id}/run"), json!({ "code": "1" }));
            assert!(status == 409 || slow.is_finished(), "{status} {error}");
        }
        assert_eq!(slow.join().unwrap()["output"], "5\n");
    });
}

#[test]
fn what_is_no_request_is_refused() {
    let server = server(&[]);
    let refused = |(status, body): (u16, Value), expected: u16, naming: &str| {
        assert_eq!(status, expected, "{body}");
        let text = body["error"].as_str().unwrap_or_else(|| panic!("{body}"));
        assert!(text.contains(naming), "{text}");
    };
    refused(server.get("/nothing"), 404, "/nothing");
    refused(server.ask("PUT", "/sessions", "", ""), 405, "PUT");
    refused(server.post("/sessions/none/run", json!({ "code": "1" })), 404, "none");
    refused(server.ask("POST", "/sessions", "{", ""), 400, "the body");
    refused(server.post("/sessions", json!({ "sed": 1 })), 400, "sed");
    refused(server.post("/sessions", json!({ "seed": -1 })), 400, "-1");
    refused(server.post("/sessions", json!({ "seed": "1" })), 400, "string");
    refused(server.ask("POST", "/sessions", &"[".repeat(100_000), ""), 400, "the body");
    refused(server.ask("POST", "/sessions", &" ".repeat(5 << 20), ""), 413, "4194304");
    refused(server.ask("GET", "/sessions", "", "Origin: https://example.org\r\n"), 403, "example.org");
    let host = |host: &str| server.raw(&format!("GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    refused(host("example.org"), 403, "example.org");
    assert_eq!(host("localhost:1").0, 200);
    let form = "POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"seed\": 1}";
    refused(server.raw(form), 415, "text/plain");
    assert_eq!(server.raw("\0\0\0\r\n\r\n").0, 400);
    assert_eq!(server.get("/sessions").1["sessions"], json!([]), "nothing was made by any of these");
}

#[test]
fn wrong_arguments_are_refused() {
    for part in ["--host 0.0.0.0", "--api-key"] {
        aimo(["python", "--serve", "--host", "0.0.0.0"]).refuses_usage(part);
    }
    aimo(["python", "--port", "1", "-c", "1"]).refuses_usage("--serve");
    aimo(["python", "--serve", "-c", "1"]).refuses_usage("-c");
    aimo(["python", "--serve", "--limits"]).refuses_usage("--limits");
    aimo(["python", "--serve", "--port", "70000"]).refuses_usage("70000");
}

#[test]
fn a_key_is_asked_for() {
    let server = server(&["--api-key", "open sesame"]);
    assert_eq!(server.get("/sessions").0, 401);
    assert_eq!(server.ask("GET", "/sessions", "", "Authorization: Bearer open sesam\r\n").0, 401);
    assert_eq!(server.ask("GET", "/sessions", "", "Authorization: Bearer open sesame\r\n").0, 200);
}
