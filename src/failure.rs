//! How a command fails: one line that names the thing, one next step, an exit status. Never a backtrace.

use std::io;
use std::path::Path;

use engine::backend::vulkan::VulkanError;
use engine::gguf::GgufError;

/// Why a command ended without doing what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Arguments that don't go together; what clap can't see.
    Usage(String),
    /// The work could not be done.
    Failed {
        /// What went wrong, beginning with the file or thing that it is about.
        message: String,
        /// What the user can do about it.
        next: Option<String>,
    },
    /// Whoever read standard output has gone away.
    ClosedPipe,
    /// The user stopped the command; what was done so far is kept.
    Interrupted,
    /// Code that ended with its own exit status (`sys.exit(3)` in the sandbox).
    Status(u8),
}

impl Failure {
    /// A failure with a next step.
    pub fn new(message: impl Into<String>, next: impl Into<String>) -> Failure {
        Failure::Failed { message: message.into(), next: Some(next.into()) }
    }

    /// A failure whose message says all there is to do.
    pub fn plain(message: impl Into<String>) -> Failure {
        Failure::Failed { message: message.into(), next: None }
    }

    /// An error of the engine about a model file.
    pub fn engine(path: &Path, error: &engine::Error) -> Failure {
        let message = format!("{}: {error}", path.display());
        match error {
            engine::Error::Gguf(e) => Failure::gguf(path, e),
            engine::Error::Vulkan(e) => Failure::vulkan(e),
            engine::Error::Request(engine::RequestError::CacheType { .. }) => {
                Failure::new(message, "leave -ctk and -ctv out: f16 fits any model")
            }
            engine::Error::Request(engine::RequestError::CacheTooSmall { .. }) => Failure::new(
                message,
                "raise --kv-memory, lower the context with -c, or store it smaller with -ctk q8_0 -ctv q8_0",
            ),
            engine::Error::Request(
                engine::RequestError::CacheTooLarge { .. } | engine::RequestError::CacheMemory { .. },
            ) => Failure::new(message, "lower the context (-c; of `bench` -p, -n and -d) or the number of sequences"),
            engine::Error::Request(engine::RequestError::PassTooLarge { .. }) => {
                Failure::new(message, "lower the number of sequences, of tokens or the depth")
            }
            engine::Error::Request(engine::RequestError::TooManyPasses { .. }) => {
                Failure::new(message, "raise the tokens of a pass with -b, or shorten the prompt with -p")
            }
            engine::Error::Request(_) => {
                Failure::new(error.to_string(), "shorten the prompt or raise the context with -c")
            }
            _ => Failure::new(message, format!("`aimo-engine info {}` shows what the file holds", path.display())),
        }
    }

    /// An error of a Vulkan device in a command that can do nothing without one.
    pub fn device(error: &VulkanError) -> Failure {
        match error {
            VulkanError::Shader(_) => Failure::vulkan(error),
            _ => Failure::new(error.to_string(), "`aimo-engine devices` lists what is there"),
        }
    }

    /// An error of a Vulkan device.
    pub fn vulkan(error: &VulkanError) -> Failure {
        let next = match error {
            VulkanError::Shader(_) => "`aimo-engine kernels --export DIR` writes the built-in shaders to start from",
            _ => "`aimo-engine devices` lists what is there; `--backend cpu` needs none",
        };
        Failure::new(error.to_string(), next)
    }

    /// An error of the file reader.
    pub fn gguf(path: &Path, error: &GgufError) -> Failure {
        let next = match error {
            GgufError::Io(e) if e.kind() == io::ErrorKind::NotFound => {
                "check the path; `cargo xtask models` fetches a model into the cache directory"
            }
            GgufError::Io(_) => "check that the file can be read",
            GgufError::ShardName { .. } => "give the file the name that it was published under",
            GgufError::MissingShard { .. } => "fetch the missing shard into the same folder",
            GgufError::ShardKey(_) | GgufError::TensorInTwoShards { .. } | GgufError::ShardTensors { .. } => {
                "fetch the shards again, all of the same model"
            }
            GgufError::UnsupportedTensorType { .. } => {
                "use a quantisation with the supported types, e.g. Q4_K_M or Q8_0"
            }
            _ => "fetch or convert the file again",
        };
        Failure::new(format!("{}: {error}", path.display()), next)
    }

    /// An error of reading or writing a file.
    pub fn file(action: &str, path: &Path, error: &io::Error) -> Failure {
        let next = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check the permissions, or choose another path",
            io::ErrorKind::InvalidData => "the file must be UTF-8 text",
            _ => "check the path and the space that is left",
        };
        Failure::new(format!("cannot {action} {}: {error}", path.display()), next)
    }

    /// Prints the failure to standard error.
    pub fn report(&self) {
        match self {
            Failure::Usage(message) => {
                eprintln!(
                    "error: {message}\n  next: `aimo-engine help` and `aimo-engine COMMAND --help` list the arguments"
                );
            }
            Failure::Failed { message, next } => {
                eprintln!("error: {message}");
                if let Some(next) = next {
                    eprintln!("  next: {next}");
                }
            }
            Failure::ClosedPipe | Failure::Interrupted | Failure::Status(_) => {}
        }
    }

    /// The exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Failure::Failed { .. } => 1,
            Failure::Usage(_) => 2,
            Failure::ClosedPipe => 0,
            Failure::Interrupted => 130,
            Failure::Status(code) => *code,
        }
    }
}

/// For writes to standard output; errors of other files go through [`Failure::file`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::ClosedPipe;
        }
        Failure::new(format!("cannot write to standard output: {error}"), "check where the output goes")
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::from(io::Error::from(error))
    }
}
