//! Models of random weights with the exact shapes and types of published ones: to measure kernels at full size where the
//! real weights can't be had, and to make small models for tests. The weights are scaled so that activations stay near 1
//! through all layers; what such a model writes is noise.
//!
//! A [`Plan`] is made from a [`Target`] and [`SynthOptions`] without touching the disk; it can be shown, or written
//! ([`Plan::write`]). Refused: sizes that no such model can have, vocabularies that don't fit. Called by the commands
//! `synth` and `info`, and by tests.

mod blocks;
mod recipe;
mod targets;
mod tensors;
mod vocab;
mod write;

use std::path::PathBuf;

use crate::gguf::writer::GgufWriter;
use crate::gguf::{GgmlType, GgufFile, Header, Metadata, Value};
use crate::model::Architecture;
pub use recipe::FileType;
pub use targets::{Experts, TARGETS, Target};
pub use vocab::Family;
pub use write::{Stopped, WriteOptions};

/// What is made of a target.
#[derive(Clone, Copy, Debug)]
pub struct SynthOptions {
    /// The model to imitate.
    pub target: &'static Target,
    /// File type; the target's own unless set.
    pub file_type: Option<FileType>,
    /// Layers; the target's unless set.
    pub n_layer: Option<usize>,
    /// Experts per layer; the target's unless set.
    pub n_expert: Option<usize>,
    /// Tokens in the vocabulary; the target's unless set.
    pub n_vocab: Option<usize>,
    /// Widths and head counts are divided by this; 1 = as published.
    pub shrink: usize,
    /// The same seed gives the same bytes.
    pub seed: u64,
}

impl SynthOptions {
    /// The target as it is.
    pub fn new(target: &'static Target) -> SynthOptions {
        SynthOptions { target, file_type: None, n_layer: None, n_expert: None, n_vocab: None, shrink: 1, seed: 0 }
    }
}

/// A model that can be written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The published model.
    pub target: &'static Target,
    /// Shapes of the model that is made.
    pub shape: Target,
    /// Its mix of types.
    pub file_type: FileType,
    metadata: Vec<(String, Value)>,
    tensors: Vec<PlannedTensor>,
    seed: u64,
}

#[derive(Clone, Debug)]
struct PlannedTensor {
    name: String,
    ty: GgmlType,
    dims: Vec<u64>,
    values: blocks::Values,
}

impl PlannedTensor {
    fn bytes(&self) -> u64 {
        self.dims.iter().product::<u64>() / self.ty.block_len() as u64 * self.ty.block_bytes() as u64
    }
}

impl Plan {
    /// Plans a model. Its vocabulary is that of `vocab_from`, or a stand-in.
    ///
    /// # Errors
    /// A size that the target can't have, or a vocabulary that doesn't fit.
    pub fn new(options: &SynthOptions, vocab_from: Option<&GgufFile>) -> Result<Plan, SynthError> {
        let shape = shape(options)?;
        let file_type = options.file_type.unwrap_or(options.target.file_type);
        if file_type == FileType::Mxfp4 && shape.moe.is_none() {
            let (name, found) = ("file type", "MXFP4".to_owned());
            return Err(SynthError::Option {
                name,
                found,
                allowed: "another type: this model has no experts".to_owned(),
            });
        }
        let mut metadata = metadata(options.target, &shape, file_type);
        metadata.extend(match vocab_from {
            Some(file) => vocab::of_file(file, shape.n_vocab)?,
            None => vocab::stand_in(shape.family, shape.n_vocab),
        });
        let tensors = tensors::tensors(options.target, &shape, file_type);
        Ok(Plan { target: options.target, shape, file_type, metadata, tensors, seed: options.seed })
    }

    /// The header that the file will have, as if it were in one piece.
    pub fn header(&self) -> Header {
        let tensors = self.tensors.iter().map(|t| (t.name.clone(), t.ty, t.dims.clone()));
        Header::planned(Metadata::from_entries(self.metadata.iter().cloned()), tensors)
    }

    /// Weights of all tensors.
    pub fn n_params(&self) -> u64 {
        self.tensors.iter().map(|t| t.dims.iter().product::<u64>()).sum()
    }

    /// The file in the making, its tensors to be generated when it is written.
    fn writer(&self) -> GgufWriter<'_> {
        let writer = self.metadata.iter().fold(GgufWriter::new(), |w, (key, value)| w.meta(key, value.clone()));
        self.tensors.iter().fold(writer, |w, t| {
            let source = blocks::Source::new(self.seed, &t.name, t.ty, t.bytes(), t.values.clone());
            w.tensor_with(&t.name, t.ty, &t.dims, move |out| write::pieces(&source, out))
        })
    }
}

/// Why a model can't be planned or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are named and the messages say what they are")]
pub enum SynthError {
    /// A size that the target can't have.
    #[error("{name} is {found}; allowed: {allowed}")]
    Option { name: &'static str, found: String, allowed: String },
    /// The file that should give the vocabulary has none that can be used.
    #[error("{file}: its vocabulary can't be used: {problem}")]
    Vocabulary { file: String, problem: String },
    /// A vocabulary of more tokens than the model has.
    #[error("{file}: its vocabulary has {found} tokens, more than the model's {n_vocab}")]
    VocabularyTooLarge { file: String, found: usize, n_vocab: usize },
    /// A file that is there already.
    #[error("{} is there already", .path.display())]
    Exists { path: PathBuf },
    /// The disk has too little space.
    #[error("{} bytes are needed in {}, {} are free", .need_bytes, .dir.display(), .free_bytes)]
    NoSpace { dir: PathBuf, need_bytes: u64, free_bytes: u64 },
    /// More shards than can be opened again.
    #[error("{found} shards would be needed; at most {max} can be read: allow larger ones")]
    Shards { found: usize, max: usize },
    /// Creating, writing or renaming a file failed.
    #[error("cannot write {}: {error}", .path.display())]
    Write { path: PathBuf, error: std::io::Error },
    /// The caller stopped it; nothing is left on the disk.
    #[error("stopped")]
    Stopped,
}

/// The target with the options' sizes.
fn shape(options: &SynthOptions) -> Result<Target, SynthError> {
    let t = options.target;
    let check = |name, found: usize, low: usize, high: usize| {
        if (low..=high).contains(&found) {
            return Ok(found);
        }
        Err(SynthError::Option { name, found: found.to_string(), allowed: format!("{low} to {high}") })
    };
    let mut shape = t.clone();
    let shrink = check("the divisor of the widths", options.shrink, 1, 64)?;
    shape.n_layer = check("the number of layers", options.n_layer.unwrap_or(t.n_layer), 1, 1024)?;
    let (min_vocab, n_vocab) = (t.family.min_vocab(), options.n_vocab.unwrap_or(t.n_vocab));
    shape.n_vocab = check("the number of tokens", n_vocab, min_vocab, 1 << 20)?;
    shape.n_embd = divided(t.n_embd, shrink);
    shape.n_ff = divided(t.n_ff, shrink);
    shape.n_head_kv = (t.n_head_kv / shrink).max(1);
    let q_dim = |n_head_kv: usize| n_head_kv * t.group() * t.head_dim;
    // As for the widths: whole blocks of 256 where there were such.
    while q_dim(t.n_head_kv).is_multiple_of(256) && !q_dim(shape.n_head_kv).is_multiple_of(256) {
        shape.n_head_kv += 1;
    }
    shape.n_head = shape.n_head_kv * t.group();
    match (&mut shape.moe, options.n_expert) {
        (None, None) => {}
        (None, Some(found)) => {
            let allowed = "none: this model has no experts".to_owned();
            return Err(SynthError::Option { name: "the number of experts", found: found.to_string(), allowed });
        }
        (Some(moe), n_expert) => {
            moe.n_expert = check("the number of experts", n_expert.unwrap_or(moe.n_expert), 1, 1024)?;
            moe.n_used = moe.n_used.min(moe.n_expert);
            moe.n_ff = divided(moe.n_ff, shrink);
            moe.n_ff_shared = if moe.n_ff_shared == 0 { 0 } else { divided(moe.n_ff_shared, shrink) };
        }
    }
    Ok(shape)
}

/// A width divided and rounded up so that rows have the block types that they had: whole blocks of 256 where the width
/// has such, else blocks of 32 only.
fn divided(width: usize, by: usize) -> usize {
    if by == 1 {
        return width;
    }
    let part = width.div_ceil(by);
    if width.is_multiple_of(256) {
        return part.next_multiple_of(256);
    }
    let part = part.next_multiple_of(32);
    if part.is_multiple_of(256) { part + 32 } else { part }
}

/// Every key but those of the vocabulary.
fn metadata(target: &Target, t: &Target, file_type: FileType) -> Vec<(String, Value)> {
    let mut keys: Vec<(String, Value)> = vec![
        ("general.architecture".into(), t.arch.name().into()),
        ("general.name".into(), format!("{} (random weights)", target.name).into()),
        ("general.file_type".into(), file_type.id().into()),
        ("general.quantization_version".into(), 2u32.into()),
    ];
    let mut key = |part: &str, value: Value| keys.push((format!("{}.{part}", t.arch.name()), value));
    let n = |n: usize| Value::U32(n as u32);
    key("block_count", n(t.n_layer));
    key("context_length", t.n_ctx.into());
    key("embedding_length", n(t.n_embd));
    key("feed_forward_length", n(t.n_ff));
    key("attention.head_count", n(t.n_head));
    key("attention.head_count_kv", n(t.n_head_kv));
    key("attention.key_length", n(t.head_dim));
    key("attention.value_length", n(t.head_dim));
    key("attention.layer_norm_rms_epsilon", t.rms_eps.into());
    key("rope.freq_base", t.rope_base.into());
    key("vocab_size", n(t.n_vocab));
    if t.arch == Architecture::Llama {
        key("rope.dimension_count", n(t.head_dim));
    }
    if let Some(moe) = &t.moe {
        key("expert_count", n(moe.n_expert));
        key("expert_used_count", n(moe.n_used));
        key("expert_feed_forward_length", n(moe.n_ff));
        if moe.n_ff_shared > 0 {
            key("expert_shared_feed_forward_length", n(moe.n_ff_shared));
        }
    }
    if t.arch == Architecture::GptOss {
        key("attention.sliding_window", 128u32.into());
        key("rope.scaling.type", "yarn".into());
        key("rope.scaling.factor", 32f32.into());
        key("rope.scaling.original_context_length", 4096u32.into());
    }
    keys
}
