//! `aimo-engine logits`: the logits of a prompt's last position, to compare with a reference.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use serde_json::json;

use crate::args::{ModelArgs, at_least_one};
use crate::failure::Failure;
use crate::load;

/// Arguments of `logits`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["tokens", "prompt"])))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, separated by commas
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    tokens: Vec<u32>,
    /// A text; control tokens that it spells stay text
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// How many of the largest logits to print
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one)]
    top: usize,
    /// One JSON object: `n_tokens`, `rms` of all logits, `top` as pairs of id and logit
    #[arg(long)]
    json: bool,
    /// Save all logits: a numpy file, f32 [n_vocab]
    #[arg(long, value_name = "FILE.npy")]
    save: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    args.model.device.check()?;
    // Before the model is loaded: an output that can't be written.
    let save = args.save.as_deref().map(|path| Ok::<_, Failure>((path, temporary_beside(path)?))).transpose()?;
    let mut engine = load::load(&args.model, quiet)?;
    let tokens = match &args.prompt {
        Some(text) => engine.tokenizer().encode_with_bos(text, false),
        None => args.tokens.clone(),
    };
    let logits = engine.prompt_logits(&tokens).map_err(|e| Failure::engine(&args.model.model, &e))?;
    if let Some(bad) = logits.iter().position(|x| !x.is_finite()) {
        return Err(Failure::plain(format!(
            "{}: the logit of token {bad} is {}; the file's weights are damaged or the device miscalculates",
            args.model.model.display(),
            logits[bad]
        )));
    }
    let rms = (logits.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / logits.len() as f64).sqrt();
    let top = largest(&logits, args.top);
    if let Some((path, file)) = save {
        save_npy(path, file, &logits)?;
    }
    if args.json {
        let top: Vec<_> = top.iter().map(|id| json!([id, logits[*id]])).collect();
        let value = json!({
            "n_tokens": tokens.len(), "rms": rms, "top": top,
            "n_vocab": logits.len(), "backend": engine.backend_name(),
        });
        writeln!(out, "{value}")?;
        return Ok(());
    }
    for id in top {
        let bytes = engine.tokenizer().token_bytes(id as u32).unwrap_or_default();
        writeln!(out, "{id:>8} {:>10.4}  \"{}\"", logits[id], bytes.escape_ascii())?;
    }
    Ok(())
}

/// Indexes of the `n` largest values, largest first; equal values in the order of their indexes.
fn largest(values: &[f32], n: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..values.len()).collect();
    ids.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    ids.truncate(n);
    ids
}

fn temporary_beside(path: &Path) -> Result<tempfile::NamedTempFile, Failure> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::NamedTempFile::new_in(dir).map_err(|e| Failure::file("write", path, &e))
}

fn save_npy(path: &Path, file: tempfile::NamedTempFile, logits: &[f32]) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::file("write", path, &e);
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&[logits.len() as u64])
        .writer(BufWriter::new(file.as_file()))
        .begin_nd()
        .map_err(failed)?;
    writer.extend(logits.iter().copied()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_ties_keep_their_order() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 3.0, -4.0], 3), [1, 3, 2]);
        assert_eq!(largest(&[1.0], 20), [0]);
    }
}
