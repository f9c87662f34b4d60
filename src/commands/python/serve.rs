//! `aimo-engine python --serve`: sessions over HTTP and JSON, for programs that want the sandbox alone.
//!
//! Owns the routes, the table of sessions and its bounds: sessions, bodies, connections, time to read a request, idle
//! time. Every session is a confined process (`sandbox::Workers`). Listens on this machine only unless there is a key.
//! Refuses what a web page could send: another Host, a foreign Origin, a body that is not declared as JSON. Called by
//! `python`. Surprising fact: a session runs one call at a time and says so (409); nothing waits in a queue.

mod table;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, ORIGIN};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use sandbox::Limits;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::table::{Table, TableError};
use super::outcome_json;
use crate::failure::Failure;
use crate::interpreter::Interpreter;

/// Arguments of `python --serve`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServeArgs {
    /// Serve sessions over HTTP and JSON instead of running code
    #[arg(long)]
    pub serve: bool,
    /// Address to listen on; beyond this machine only with --api-key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", requires = "serve")]
    host: IpAddr,
    /// Port to listen on; 0 for any free one
    #[arg(long, value_name = "PORT", default_value_t = 8321, requires = "serve")]
    port: u16,
    /// Sessions at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = crate::args::at_least_one, requires = "serve")]
    max_sessions: usize,
    /// Seconds without a request after which a session is deleted
    #[arg(long, value_name = "SECONDS", default_value_t = 900.0, value_parser = crate::args::seconds, requires = "serve")]
    idle_timeout: f64,
    /// Key that requests must carry as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", env = "AIMO_ENGINE_API_KEY", hide_env_values = true, requires = "serve")]
    api_key: Option<String>,
}

/// Most bytes of a request's body.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Time for a request's head, and again for its body.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// Connections at once, beyond one for each session.
const SPARE_CONNECTIONS: usize = 64;
/// How often idle sessions are looked for.
const SWEEP: Duration = Duration::from_secs(1);

struct Server {
    table: Table,
    /// The names that this server is reached by, without the port.
    hosts: Vec<String>,
    api_key: Option<String>,
}

/// Serves until the program is ended.
pub fn serve(
    args: &ServeArgs,
    limits: Limits,
    python: &Interpreter,
    quiet: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    if !args.host.is_loopback() && args.api_key.is_none() {
        return Err(Failure::Usage(format!(
            "--host {} can be reached from other machines: give --api-key too, or listen on 127.0.0.1",
            args.host
        )));
    }
    let workers = python.load_workers(quiet)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(args.max_sessions + SPARE_CONNECTIONS)
        .build()
        .map_err(|e| Failure::plain(format!("cannot start the server: {e}")))?;
    let idle = Duration::from_secs_f64(args.idle_timeout);
    let server = Arc::new(Server {
        table: Table::new(workers, limits, args.max_sessions, idle),
        hosts: vec!["localhost".into(), "127.0.0.1".into(), "[::1]".into(), host_name(args.host)],
        api_key: args.api_key.clone(),
    });
    let address = SocketAddr::new(args.host, args.port);
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.map_err(|e| {
            Failure::new(format!("cannot listen on {address}: {e}"), "choose another --port, or 0 for any free one")
        })?;
        let bound = listener.local_addr().map_err(|e| Failure::plain(format!("cannot listen on {address}: {e}")))?;
        writeln!(out, "listening on http://{bound}")?;
        out.flush()?;
        accept(server, listener, args.max_sessions + SPARE_CONNECTIONS).await
    })
}

fn host_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

async fn accept(server: Arc<Server>, listener: TcpListener, max_connections: usize) -> Result<(), Failure> {
    let sweeper = Arc::clone(&server);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            let server = Arc::clone(&sweeper);
            // Ending a process waits for it. A panic there would only skip one sweep.
            let _ = tokio::task::spawn_blocking(move || server.table.sweep()).await;
        }
    });
    let connections = Arc::new(Semaphore::new(max_connections));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, or the client is gone already: neither is this server's end.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let server = Arc::clone(&server);
                async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(READ_LIMIT);
            // A connection that breaks is the client's affair; its session goes on.
            let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            drop(permit);
        });
    }
}

/// A refusal: its status and what it says.
struct Refusal(StatusCode, String);

impl From<TableError> for Refusal {
    fn from(error: TableError) -> Self {
        let status = match &error {
            TableError::Unknown(_) => StatusCode::NOT_FOUND,
            TableError::Busy(_) => StatusCode::CONFLICT,
            TableError::Full(_) => StatusCode::TOO_MANY_REQUESTS,
            TableError::Limit { .. } | TableError::NoClock => StatusCode::BAD_REQUEST,
            TableError::Sandbox(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, error.to_string())
    }
}

/// What a session is made with.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    limits: table::Asked,
}

/// Code to run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    code: String,
}

impl Server {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let asks_to_close = request.method() == Method::POST;
        match self.route(request).await {
            Ok((status, body)) => response(status, &body),
            Err(Refusal(status, reason)) => {
                let mut response = response(status, &json!({ "error": reason }));
                if asks_to_close && status == StatusCode::PAYLOAD_TOO_LARGE {
                    // The rest of the body is not read.
                    response.headers_mut().insert(CONNECTION, "close".parse().expect("a header's value"));
                }
                if status == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(ALLOW, "GET, POST, DELETE".parse().expect("a header's value"));
                }
                response
            }
        }
    }

    async fn route(self: Arc<Self>, request: Request<Incoming>) -> Result<(StatusCode, Value), Refusal> {
        self.admit(request.headers())?;
        let path = request.uri().path().trim_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let method = request.method().clone();
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["health"]) => Ok((StatusCode::OK, json!({ "status": "ok" }))),
            ("GET", ["limits"]) => Ok((StatusCode::OK, self.table.limits_json())),
            ("GET", ["sessions"]) => Ok((StatusCode::OK, json!({ "sessions": self.table.list() }))),
            ("POST", ["sessions"]) => {
                let create: Create = body(request).await?;
                let made = move |server: &Server| server.table.create(&create.limits, create.seed);
                Ok((StatusCode::CREATED, self.blocking(made).await?))
            }
            ("GET", ["sessions", id]) => Ok((StatusCode::OK, self.table.describe(id)?)),
            ("DELETE", ["sessions", id]) => {
                let id = (*id).to_owned();
                self.blocking(move |server| server.table.delete(&id)).await?;
                Ok((StatusCode::OK, json!({ "deleted": true })))
            }
            ("POST", ["sessions", id, "run"]) => {
                let (id, run): (String, Run) = ((*id).to_owned(), body(request).await?);
                let outcome = self.blocking(move |server| server.table.run(&id, &run.code)).await?;
                Ok((StatusCode::OK, outcome_json(&outcome)))
            }
            ("POST", ["sessions", id, "fork"]) => {
                let id = (*id).to_owned();
                Ok((StatusCode::CREATED, self.blocking(move |server| server.table.fork(&id)).await?))
            }
            ("POST", ["sessions", id, "reset"]) => {
                let id = (*id).to_owned();
                Ok((StatusCode::OK, self.blocking(move |server| server.table.reset(&id)).await?))
            }
            (_, ["health" | "limits"] | ["sessions", ..]) if parts.len() <= 3 => {
                let reason = format!("{method} /{path} is not offered; see `aimo-engine python --help`");
                Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, reason))
            }
            _ => {
                let known = "/health, /limits, /sessions, /sessions/ID, /sessions/ID/run, …/fork, …/reset";
                Err(Refusal(StatusCode::NOT_FOUND, format!("no /{path} here; there are {known}")))
            }
        }
    }

    /// Keeps web pages and strangers out.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(HOST).unwrap_or_default();
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let name = name.map_or(host, |(name, _)| name);
        let is_ours = self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(name));
        // With a key, whoever has it may come by any name.
        if !is_ours && self.api_key.is_none() {
            return Err(Refusal(StatusCode::FORBIDDEN, format!("Host {host:?} is not this server's: use localhost")));
        }
        if let Some(origin) = text(ORIGIN).filter(|origin| origin.split("://").nth(1) != Some(host)) {
            return Err(Refusal(StatusCode::FORBIDDEN, format!("Origin {origin:?}: web pages are not served")));
        }
        if let Some(key) = &self.api_key {
            let given = text(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
            if !is_same(given.as_bytes(), key.as_bytes()) {
                return Err(Refusal(StatusCode::UNAUTHORIZED, "the key is missing or wrong (--api-key)".into()));
            }
        }
        Ok(())
    }

    /// Runs what waits for a process on a thread that may wait.
    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        act: impl FnOnce(&Server) -> Result<T, TableError> + Send + 'static,
    ) -> Result<T, Refusal> {
        match tokio::task::spawn_blocking(move || act(&self)).await {
            Ok(result) => Ok(result?),
            Err(error) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }
}

/// Compares in a time that depends on the lengths alone.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// The body as JSON; an empty one counts as `{}`.
async fn body<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_json = content_type.split(';').next().is_some_and(|kind| kind.trim() == "application/json");
    let declared = content_type.to_owned();
    let read = tokio::time::timeout(READ_LIMIT, Limited::new(request.into_body(), MAX_BODY_BYTES).collect());
    let bytes = match read.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let reason = format!("the body is longer than {MAX_BODY_BYTES} bytes");
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, reason));
        }
        Ok(Err(error)) => return Err(Refusal(StatusCode::BAD_REQUEST, format!("the body can't be read: {error}"))),
        Err(_) => {
            let reason = format!("the body did not arrive within {} s", READ_LIMIT.as_secs());
            return Err(Refusal(StatusCode::REQUEST_TIMEOUT, reason));
        }
    };
    let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
    if !is_json && *bytes != *b"{}" {
        let reason = format!("Content-Type {declared:?}: must be application/json");
        return Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    serde_json::from_slice(&bytes).map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("the body: {error}")))
}

fn response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a header's value"));
    response
}
