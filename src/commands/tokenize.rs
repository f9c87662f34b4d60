//! `aimo-engine tokenize`: the tokens of a text in a model's vocabulary.

use std::io::Write;
use std::path::PathBuf;

use crate::commands::read_text;
use crate::failure::Failure;
use crate::load;

/// Arguments of `tokenize`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("text").required(true).args(["prompt", "file"])))]
pub struct Args {
    /// GGUF file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// The text
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file with the text; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only the ids, on one line
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    /// A JSON array of objects with `id` and `text`
    #[arg(long)]
    json: bool,
    /// Control tokens that the text spells become control tokens
    #[arg(long)]
    parse_special: bool,
    /// Put the vocabulary's begin-of-text token first where the model asks for it
    #[arg(long)]
    bos: bool,
}

/// Runs the command.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => return Err(Failure::Usage("give a text with -p or -f".to_owned())),
    };
    let file = load::open(&args.model)?;
    let tokenizer = load::tokenizer(&file)?;
    let ids = if args.bos {
        tokenizer.encode_with_bos(&text, args.parse_special)
    } else {
        tokenizer.encode(&text, args.parse_special)
    };
    if args.ids {
        let line: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", line.join(" "))?;
        return Ok(());
    }
    let mut entries = Vec::with_capacity(ids.len());
    for id in ids {
        let bytes = tokenizer.token_bytes(id).map_err(|e| Failure::engine(&args.model, &e.into()))?;
        entries.push((id, bytes));
    }
    if args.json {
        let values: Vec<serde_json::Value> = entries
            .iter()
            .map(|(id, bytes)| match std::str::from_utf8(bytes) {
                Ok(text) => serde_json::json!({ "id": id, "text": text }),
                Err(_) => serde_json::json!({ "id": id, "bytes": bytes }),
            })
            .collect();
        serde_json::to_writer(&mut *out, &values)?;
        writeln!(out)?;
        return Ok(());
    }
    for (id, bytes) in entries {
        writeln!(out, "{id:>8}  \"{}\"", bytes.escape_ascii())?;
    }
    Ok(())
}
