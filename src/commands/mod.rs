//! One file per command: its arguments, how they are resolved, and its output.

pub mod bench;
pub mod devices;
pub mod eval;
pub mod generate;
pub mod info;
pub mod kernels;
pub mod logits;
pub mod perplexity;
pub mod python;
pub mod replay;
pub mod report;
pub mod roofline;
pub mod run;
pub mod synth;
pub mod tokenize;
pub mod tune;

use std::io::Read;
use std::path::Path;

use crate::failure::Failure;

/// Text of a file, or of standard input for `-`.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| Failure::file("read", Path::new("standard input"), &e))?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))
}
