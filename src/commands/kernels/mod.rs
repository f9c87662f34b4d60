//! `aimo-engine kernels`: the compute kernels and their variants, what a driver makes of them (the chosen device's, or
//! with `--isa` AMD's compiler for a chip that this machine need not have), how fast they are on a model's shapes, how
//! far from the CPU's results, and their sources, to be edited.

mod code;
mod time;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::backend::vulkan::{DeviceOptions, VulkanError, compile_only_environment};

use crate::args::{prompt, repetitions, sequences, tokens};
use crate::commands::synth::LikeArgs;
use crate::failure::Failure;

/// Arguments of `kernels`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compile for this chip with AMD's driver, such as gfx1151; it need not be here
    #[arg(long, value_name = "CHIP", conflicts_with = "device")]
    isa: Option<String>,
    /// Vulkan device: its number in `aimo-engine devices`, or a part of its name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Folder of edited shaders, which replace the built-in ones of the same names
    #[arg(long, value_name = "DIR")]
    shaders: Option<PathBuf>,
    /// Only kernels whose name holds this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Show the code that the driver made of the first kernel that is left
    #[arg(long, requires = "filter", conflicts_with_all = ["json", "diff"])]
    code: bool,
    /// Show what is different from an earlier `--json`
    #[arg(long, value_name = "OLD.json")]
    diff: Option<PathBuf>,
    /// Write the built-in shaders' sources into this folder, to be edited and given back with --shaders
    #[arg(long, value_name = "DIR",
          conflicts_with_all = ["isa", "device", "shaders", "filter", "code", "diff", "json", "measuring"])]
    export: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    measure: MeasureArgs,
    #[command(flatten)]
    like: LikeArgs,
}

/// What `--time` and `--check` run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Measuring")]
struct MeasureArgs {
    /// Time every kernel on the device, alone, in passes of a model (-m or --like)
    #[arg(long, group = "measuring", conflicts_with_all = ["isa", "code", "diff"])]
    time: bool,
    /// Compare every op of a pass with the CPU backend's, each from the same inputs
    #[arg(long, group = "measuring", conflicts_with_all = ["isa", "code", "diff", "time"])]
    check: bool,
    /// GGUF file whose shapes, types and weights are used
    #[arg(short, long, value_name = "FILE", conflicts_with = "like")]
    model: Option<PathBuf>,
    /// Passes of so many sequences with a token each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8", requires = "measuring",
          value_parser = sequences)]
    columns: Vec<usize>,
    /// Passes of so many tokens of one sequence, a prompt; 0 = none
    #[arg(short = 'p', long, value_name = "N,…", value_delimiter = ',', default_value = "0", requires = "measuring",
          value_parser = prompt)]
    prompt: Vec<usize>,
    /// Tokens in the context before a token
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0, requires = "measuring", value_parser = tokens)]
    n_depth: usize,
    /// Passes of each kind that are timed, after one that is not
    #[arg(short, long, value_name = "N", default_value_t = 10, requires = "time", value_parser = repetitions)]
    repetitions: usize,
    /// Keep activations in f32 in products with quantised weights
    #[arg(long, requires = "measuring")]
    exact: bool,
    /// Run under Vulkan's validation layers
    #[arg(long)]
    validation: bool,
}

impl Args {
    fn device_options(&self) -> DeviceOptions<'_> {
        let (selector, shaders) = (self.device.as_deref(), self.shaders.as_deref());
        DeviceOptions { selector, shaders, validation: self.measure.validation, ..DeviceOptions::default() }
    }
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    if let Some(folder) = &args.export {
        return export(folder, out);
    }
    match &args.measure {
        m if m.time => time::time(args, quiet, out),
        m if m.check => time::check(args, quiet, out),
        m if m.model.is_some() || args.like.is_given() => {
            Err(Failure::Usage("a model is used to measure: add --time or --check".to_owned()))
        }
        _ => {
            args.isa.as_deref().map_or(Ok(()), check_chip)?;
            code::run(args, quiet, out)
        }
    }
}

/// Refuses a chip that AMD's driver doesn't know: it ends the process that asks it, with a message of its own. So another
/// one asks first, whose messages nobody sees. What else there is to refuse is left to the listing.
fn check_chip(isa: &str) -> Result<(), Failure> {
    let Some(environment) = compile_only_environment(isa) else { return Ok(()) };
    if std::env::var_os("RADV_FORCE_FAMILY").is_some_and(|family| family == isa) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|e| Failure::plain(format!("this program can't be found: {e}")))?;
    let mut command = Command::new(program);
    command.arg("devices").envs(environment).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().map_err(|e| Failure::plain(format!("this program can't be started again: {e}")))?;
    match status.code() {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            format!("--isa {isa:?}: AMD's driver on this machine knows no such chip"),
            "name one as the driver does, such as gfx1151, or navi31 for gfx1100",
        )),
    }
}

fn export(folder: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let (written, kept) =
        engine::backend::vulkan::write_shader_sources(folder).map_err(|e| Failure::file("write", folder, &e))?;
    let kept = if kept > 0 { format!(", {kept} were there and are kept") } else { String::new() };
    Ok(writeln!(out, "{written} files written to {}{kept}", folder.display())?)
}

fn failure(args: &Args, error: &VulkanError) -> Failure {
    match (error, &args.isa) {
        (VulkanError::Shader(_), _) => Failure::vulkan(error),
        (_, Some(isa)) => Failure::new(
            format!("RADV can't compile for {isa} here: {error}"),
            "Mesa 25.0 compiles for chips that are not there; check the chip's name, such as gfx1151",
        ),
        (_, None) => {
            Failure::new(error.to_string(), "`aimo-engine devices` lists what is there; `--isa gfx1151` needs none")
        }
    }
}
