//! Sessions that run in a process of their own: a second wall behind WebAssembly's, and a process that may die.
//!
//! [`Workers`] starts one confined process per session and speaks with it over its standard input and output. A worker
//! that is killed, hangs or breaks the protocol gives an outcome that says so, and the next call gets a fresh one.
//! Called by programs that want the wall; [`serve`] is the worker's side, called by the worker program. Surprising
//! fact: a worker loads no file by name. It inherits the compiled interpreter, already verified, from descriptor 3 on.

mod messages;

use crate::{
    confine::{self, Confinement},
    outcome::{Completeness, Limits, Outcome, SandboxError, Status},
    pages,
    python::Python,
    warm::Warm,
};
use messages::{Reply, Request, read_frame, write_frame};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// The first of the descriptors that a worker inherits the compiled interpreter as.
const MODULE_FD: i32 = 3;
/// Most files that an interpreter has (`Python::files`).
const MAX_FILES: usize = 3;
/// Descriptors that are in nobody's way while others are put into their places.
const SPARE_FD: i32 = 100;
/// What a worker may take beyond a call's limits before it is killed.
const MARGIN: Duration = Duration::from_secs(5);
/// What a worker may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// What a worker may take to hand over its session's memory, a gigabyte or more.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(60);
/// Room in a reply for everything but the output.
const REPLY_BYTES: usize = 1 << 20;

/// Starts sessions in worker processes.
#[derive(Clone)]
pub struct Workers {
    program: Arc<Program>,
    warm: Arc<Warm<Process>>,
}

/// What starts a worker.
struct Program {
    python: Python,
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Workers {
    /// `program` with `arguments` must call [`serve`] and do nothing else.
    pub fn new(python: Python, program: PathBuf, arguments: impl IntoIterator<Item = OsString>) -> Workers {
        let program = Program { python, path: program, arguments: arguments.into_iter().collect() };
        Workers { program: Arc::new(program), warm: Arc::new(Warm::new()) }
    }

    /// Keeps `n` processes started ahead for the sessions to come; each has loaded and confined itself already.
    pub fn keep_warm(&self, n: usize) {
        let program = Arc::clone(&self.program);
        // What is wrong with one is said when a session is asked for.
        self.warm.keep(n, move || Process::start(&program).ok());
    }

    /// A session in a process of its own.
    pub fn session(&self, limits: Limits, seed: u64) -> Result<WorkerSession, SandboxError> {
        let process = self.process(&Request::Start(limits, seed))?;
        Ok(WorkerSession { workers: self.clone(), limits, seed, process: Some(process) })
    }

    /// A process that has begun a session.
    fn process(&self, begin: &Request) -> Result<Process, SandboxError> {
        // One that was made ahead may have been killed since.
        if let Some(process) = self.warm.take().and_then(|process| process.begin(begin).ok()) {
            return Ok(process);
        }
        Process::start(&self.program)?.begin(begin)
    }
}

/// A session whose interpreter is another process.
pub struct WorkerSession {
    workers: Workers,
    limits: Limits,
    seed: u64,
    /// None after the worker was lost, until the next call.
    process: Option<Process>,
}

impl WorkerSession {
    /// Runs `code` as one notebook cell, as `Session::run` does. A lost worker is [`Status::Crashed`]; the call after
    /// it starts from nothing, in a new process.
    pub fn run(&mut self, code: &str) -> Outcome {
        let limits = self.limits;
        let wait = Duration::from_millis(limits.time_ms.saturating_add(limits.grace_ms)) + MARGIN;
        let started = Instant::now();
        match self.ask(&Request::Run(code.to_owned()), wait) {
            Ok(Reply::Outcome(outcome)) => outcome,
            Ok(reply) => self.lost(started, format!("its worker answered {reply:?}")),
            Err(reason) => self.lost(started, reason),
        }
    }

    /// Whether `code` is a whole cell, as `Session::is_complete` answers it.
    pub fn is_complete(&mut self, code: &str) -> Completeness {
        match self.ask(&Request::IsComplete(code.to_owned()), MARGIN) {
            Ok(Reply::Completeness(answer)) => answer,
            _ => {
                self.process = None;
                Completeness::Invalid
            }
        }
    }

    /// A second session, in a process of its own, that goes on from where this one is.
    pub fn fork(&mut self) -> Result<WorkerSession, SandboxError> {
        let failed = |reason: String| SandboxError::Session { reason };
        let snapshot = match self.ask(&Request::Snapshot, SNAPSHOT_LIMIT) {
            Ok(Reply::Snapshot(bytes)) => bytes,
            Ok(reply) => {
                self.process = None;
                return Err(failed(format!("its worker answered {reply:?}")));
            }
            Err(reason) => {
                self.process = None;
                return Err(failed(format!("{reason}; its names are lost")));
            }
        };
        let process = self.workers.process(&Request::Restore(self.limits, snapshot))?;
        Ok(WorkerSession {
            workers: self.workers.clone(),
            limits: self.limits,
            seed: self.seed,
            process: Some(process),
        })
    }

    /// What confines the worker.
    pub fn confinement(&self) -> Option<Confinement> {
        self.process.as_ref().map(|process| process.confinement)
    }

    /// The worker's process id.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    fn ask(&mut self, request: &Request, wait: Duration) -> Result<Reply, String> {
        if self.process.is_none() {
            let process = self.workers.process(&Request::Start(self.limits, self.seed));
            self.process = Some(process.map_err(|error| error.to_string())?);
        }
        let process = self.process.as_mut().expect("started above");
        let max_bytes = match request {
            // All of its memory, a page's index with each page.
            Request::Snapshot => usize::try_from(self.limits.memory_bytes).unwrap_or(usize::MAX).saturating_mul(2),
            _ => self.limits.output_bytes,
        };
        process.ask(request, max_bytes.saturating_add(REPLY_BYTES), wait)
    }

    /// The outcome of a call whose worker is gone; what is left of it is removed.
    fn lost(&mut self, started: Instant, reason: String) -> Outcome {
        self.process = None;
        let reason = format!("{reason}; its names are lost");
        Outcome {
            output: format!("[Python failed: {reason}]\n"),
            status: Status::Crashed { reason },
            elapsed_ms: started.elapsed().as_millis() as u64,
            truncated_bytes: 0,
            rolled_back: false,
        }
    }
}

/// What a worker says, until a moment.
struct Replies {
    pipe: ChildStdout,
    until: Instant,
}

impl Read for Replies {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            let mut pipe = libc::pollfd { fd: self.pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // Rounded up, so that the last millisecond is not spent on asking again and again.
            let wait_ms = libc::c_int::try_from(left.as_millis() + 1).unwrap_or(libc::c_int::MAX);
            // SAFETY: `pipe` is one valid pollfd that outlives the call; the descriptor is open.
            match unsafe { libc::poll(&mut pipe, 1, wait_ms) } {
                0 if self.until <= Instant::now() => return Err(io::ErrorKind::TimedOut.into()),
                0 => {}
                n if n > 0 => return self.pipe.read(buffer),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// A running worker; killed when dropped.
struct Process {
    child: Child,
    input: ChildStdin,
    output: Replies,
    confinement: Confinement,
}

impl Process {
    /// A new process that has loaded the interpreter, or is about to.
    fn start(program: &Program) -> Result<Process, SandboxError> {
        let failed = |what: &str, error: io::Error| SandboxError::Session { reason: format!("{what}: {error}") };
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let files = program.python.files().map_err(|error| failed("the compiled interpreter", error))?;
        hand_down(&mut command, &files);
        let started = command.spawn();
        let mut child = started.map_err(|error| failed(&program.path.display().to_string(), error))?;
        let input = child.stdin.take().expect("piped");
        let output = Replies { pipe: child.stdout.take().expect("piped"), until: Instant::now() };
        let mut process = Process { child, input, output, confinement: Confinement::default() };
        // What is wrong with a worker that can't be told is said when it is asked something.
        let _ = write_frame(&mut process.input, &[files.len() as u8]);
        Ok(process)
    }

    /// Has it begin a session.
    fn begin(mut self, begin: &Request) -> Result<Process, SandboxError> {
        match self.ask(begin, REPLY_BYTES, START_LIMIT) {
            Ok(Reply::Started(confinement)) => {
                self.confinement = confinement;
                Ok(self)
            }
            Ok(Reply::Refused(reason)) => Err(SandboxError::Session { reason }),
            Ok(reply) => Err(SandboxError::Session { reason: format!("a worker answered {reply:?}") }),
            Err(reason) => Err(SandboxError::Session { reason }),
        }
    }

    fn ask(&mut self, request: &Request, max_bytes: usize, wait: Duration) -> Result<Reply, String> {
        if let Err(error) = write_frame(&mut self.input, &request.encode()) {
            return Err(self.end_of(&error));
        }
        self.output.until = Instant::now() + wait;
        match read_frame(&mut self.output, max_bytes).and_then(|frame| Reply::decode(&frame)) {
            Ok(reply) => Ok(reply),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err("its worker did not answer and was killed".into())
            }
            Err(error) => Err(self.end_of(&error)),
        }
    }

    /// Why the worker ended, once it has stopped talking.
    fn end_of(&mut self, error: &io::Error) -> String {
        if error.kind() == io::ErrorKind::InvalidData {
            return format!("its worker broke the protocol ({error}) and was killed");
        }
        // It closed its pipes: it has ended or is about to.
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return format!("its worker ended ({status})");
            }
            thread::sleep(Duration::from_millis(5));
        }
        "its worker stopped answering and was killed".into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the child find `files` from [`MODULE_FD`] on.
#[cfg(unix)]
fn hand_down(command: &mut Command, files: &[File]) {
    use std::os::unix::process::CommandExt;
    let mut fds = [-1; MAX_FILES];
    fds.iter_mut().zip(files).for_each(|(fd, file)| *fd = file.as_raw_fd());
    let place = move || {
        let check = |fd: i32| if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) };
        let mut spare = [-1; MAX_FILES];
        // Out of the way first: a file may have the number that another one is to get.
        for (spare, fd) in spare.iter_mut().zip(fds).filter(|(_, fd)| *fd >= 0) {
            // SAFETY: fcntl takes descriptors and is safe between fork and exec.
            *spare = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, SPARE_FD) })?;
        }
        for (target, fd) in (MODULE_FD..).zip(spare).filter(|(_, fd)| *fd >= 0) {
            // SAFETY: dup2 takes descriptors and is safe between fork and exec.
            check(unsafe { libc::dup2(fd, target) })?;
        }
        Ok(())
    };
    // SAFETY: `place` makes system calls and allocates nothing on its way to success.
    unsafe { command.pre_exec(place) };
}

/// The worker's side: answers requests on standard input until it is closed. Reads and writes the descriptors
/// themselves: the caller may hold the locks of [`io::stdin`] and [`io::stdout`].
#[cfg(unix)]
pub fn serve() -> Result<(), SandboxError> {
    use std::{mem::ManuallyDrop, os::fd::FromRawFd};
    let refused = |error: io::Error| SandboxError::Session { reason: error.to_string() };
    // SAFETY: 0 and 1 are this process's pipes, open for as long as it lives; they are not closed by these files.
    let [input, output] = [0, 1].map(|fd| ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }));
    let n_files = match read_frame(&mut &*input, 1).map_err(refused)?.first() {
        Some(n) if usize::from(*n) <= MAX_FILES => i32::from(*n),
        _ => return Err(refused(io::ErrorKind::InvalidData.into())),
    };
    // SAFETY: the descriptors were handed down by `hand_down` and belong to nobody else in this process.
    let files = (MODULE_FD..MODULE_FD + n_files).map(|fd| unsafe { File::from_raw_fd(fd) }).collect();
    let python = Python::of_files(files)?;
    pages::prepare();
    serve_here(&python, &*input, &*output)
}

#[cfg(unix)]
fn serve_here(python: &Python, mut input: impl Read, mut output: impl Write) -> Result<(), SandboxError> {
    // Ctrl-C goes to the whole group of processes; what it means is decided by the program that started this one.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let confinement = confine::confine();
    match answer_all(python, confinement, &mut input, &mut output) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(SandboxError::Session { reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// The longest request: code, or a session's memory. What is asked comes from the program that started this one.
const MAX_REQUEST_BYTES: usize = u32::MAX as usize;

fn answer_all(
    python: &Python,
    confinement: Confinement,
    input: &mut impl Read,
    output: &mut impl Write,
) -> io::Result<()> {
    let mut session = None;
    loop {
        let request = Request::decode(&read_frame(input, MAX_REQUEST_BYTES)?)?;
        let reply = match (request, &mut session) {
            (Request::Start(limits, seed), _) => match python.session(limits, seed) {
                Ok(started) => {
                    session = Some(started);
                    Reply::Started(confinement)
                }
                Err(error) => Reply::Refused(error.to_string()),
            },
            (Request::Restore(limits, snapshot), _) => match python.session_from(limits, &snapshot) {
                Ok(started) => {
                    session = Some(started);
                    Reply::Started(confinement)
                }
                Err(error) => Reply::Refused(error.to_string()),
            },
            (Request::Snapshot, Some(session)) => Reply::Snapshot(session.snapshot().encode()),
            (Request::Run(code), Some(session)) => Reply::Outcome(session.run(&code)),
            (Request::IsComplete(code), Some(session)) => Reply::Completeness(session.is_complete(&code)),
            (_, None) => Reply::Refused("no session was started".into()),
        };
        write_frame(output, &reply.encode())?;
        if let Some(session) = &mut session {
            // While the other side is busy with the answer.
            session.save();
        }
    }
}
