//! Computes the f32 reference logits of the reference prompts, once, for those real models that are in the cache: all
//! logits of the last position, as `golden/MODEL.PROMPT.npy` beside the models' folder. `engine/tests/real_models.rs`
//! compares whole logits where they are there, and else the twenty that the reference data hold.
//!
//! The reference is the numpy program beside the checkout; it takes seconds for the small models and minutes for a
//! long prompt of a real one. Refuses to start where the program or the data are missing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::models;

/// What is used of an entry of the reference data.
#[derive(Deserialize)]
struct Entry {
    model: String,
    prompt_name: String,
    tokens: Vec<u32>,
}

/// Runs the task.
pub fn run(root: &Path) -> Result<()> {
    let shared = root.join("../shared");
    let (data, program) = (shared.join("data/golden/logits.json"), shared.join("tools/ref_forward.py"));
    ensure!(program.is_file(), "the reference program {} is not there", program.display());
    let text = fs::read_to_string(&data).with_context(|| format!("the reference data {}", data.display()))?;
    let mut entries: Vec<Entry> = serde_json::from_str(&text).with_context(|| format!("in {}", data.display()))?;
    entries.sort_by_key(|e| e.tokens.len());
    let models = models::dir()?;
    let golden = models.with_file_name("golden");
    fs::create_dir_all(&golden).with_context(|| format!("can't make {}", golden.display()))?;
    for entry in entries {
        let model = models.join(&entry.model);
        let name = entry.model.trim_end_matches(".gguf");
        let file = golden.join(format!("{name}.{}.npy", entry.prompt_name));
        if file.is_file() {
            println!("{}: here", file.display());
            continue;
        }
        if !model.is_file() {
            println!("{}: skipped, the model is not in {}", entry.model, models.display());
            continue;
        }
        println!("{}: {} tokens", file.display(), entry.tokens.len());
        let tokens = entry.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        // numpy adds the suffix where it is missing.
        let partial = file.with_extension("partial.npy");
        let status = Command::new("python3")
            .arg(&program)
            .arg(&model)
            .arg(tokens)
            .arg("--save")
            .arg(&partial)
            .stdout(Stdio::null())
            .status()
            .context("python3 can't be started")?;
        ensure!(status.success(), "the reference needs python3 with gguf and numpy: python3 -m pip install gguf numpy");
        fs::rename(&partial, &file)?;
    }
    Ok(())
}
