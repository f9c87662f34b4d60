//! Finds a model's tensors in its file, checks each one's shape against the hyper-parameters, and hands them to the
//! backend. All checks come before the first upload.

use super::config::{Architecture, Config};
use super::{Layer, ModelError, Weights};
use crate::backend::{Backend, TensorView};
use crate::error::Error;
use crate::gguf::{GgmlType, GgufFile, TensorInfo};

/// One weight of the plan.
pub struct Slot<'f> {
    info: &'f TensorInfo,
    rows: usize,
    cols: usize,
}

/// The weights of a file as slots: found and checked, not yet uploaded.
pub type Plan<'f> = Weights<Slot<'f>>;

/// Finds and checks every tensor that `config` calls for.
///
/// # Errors
/// A tensor is missing, or has another shape, or a vector has a block-quantised type.
pub fn plan<'f>(file: &'f GgufFile, config: &Config) -> Result<Plan<'f>, ModelError> {
    let find = Finder { file };
    let c = config;
    let (q_dim, kv_dim) = (c.q_dim(), c.kv_dim());
    let biased = c.arch == Architecture::Qwen2;
    let layer = |il: usize| -> Result<Layer<Slot<'f>>, ModelError> {
        let name = |part: &str| format!("blk.{il}.{part}");
        let matrix = |part: &str, rows, cols| find.matrix(&name(&format!("{part}.weight")), rows, cols);
        let vector = |part: &str, len| find.vector(&name(part), len);
        let bias = |part: &str, len| match biased {
            true => vector(part, len).map(Some),
            false => find.optional_vector(&name(part), len),
        };
        let head_norm = |part: &str| match c.arch {
            Architecture::Qwen3 => vector(part, c.head_dim).map(Some),
            _ => Ok(None),
        };
        Ok(Layer {
            attn_norm: vector("attn_norm.weight", c.n_embd)?,
            attn_q: matrix("attn_q", q_dim, c.n_embd)?,
            attn_k: matrix("attn_k", kv_dim, c.n_embd)?,
            attn_v: matrix("attn_v", kv_dim, c.n_embd)?,
            attn_output: matrix("attn_output", c.n_embd, q_dim)?,
            attn_q_bias: bias("attn_q.bias", q_dim)?,
            attn_k_bias: bias("attn_k.bias", kv_dim)?,
            attn_v_bias: bias("attn_v.bias", kv_dim)?,
            attn_output_bias: find.optional_vector(&name("attn_output.bias"), c.n_embd)?,
            attn_q_norm: head_norm("attn_q_norm.weight")?,
            attn_k_norm: head_norm("attn_k_norm.weight")?,
            ffn_norm: vector("ffn_norm.weight", c.n_embd)?,
            ffn_gate: matrix("ffn_gate", c.n_ff, c.n_embd)?,
            ffn_up: matrix("ffn_up", c.n_ff, c.n_embd)?,
            ffn_down: matrix("ffn_down", c.n_embd, c.n_ff)?,
        })
    };
    Ok(Weights {
        token_embd: find.matrix("token_embd.weight", c.n_vocab, c.n_embd)?,
        layers: (0..c.n_layer).map(layer).collect::<Result<_, _>>()?,
        output_norm: find.vector("output_norm.weight", c.n_embd)?,
        output: find.optional_matrix("output.weight", c.n_vocab, c.n_embd)?,
    })
}

/// `rope_freqs.weight`, `[n_rot / 2]` f32, where the file has it.
pub fn rope_factors(file: &GgufFile, config: &Config) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(slot) = (Finder { file }).optional_vector("rope_freqs.weight", config.n_rot / 2)? else {
        return Ok(None);
    };
    let mut factors = vec![0.0; slot.cols];
    crate::quant::dequantize_row(slot.info.ty, file.data(slot.info), &mut factors);
    match factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
        Some(bad) => Err(ModelError::BadValue {
            key: "rope_freqs.weight".into(),
            found: bad.to_string(),
            expected: "positive factors".into(),
        }),
        None => Ok(Some(factors)),
    }
}

impl<'f> Plan<'f> {
    /// Bytes that decoding one token reads: every weight once, but only a row of an untied embedding table.
    pub fn bytes_per_token(&self) -> u64 {
        let mut total = 0;
        self.each(&mut |slot| total += slot.info.bytes);
        match &self.output {
            Some(_) => total - self.token_embd.info.bytes,
            None => total,
        }
    }

    /// All bytes of the model's weights.
    pub fn bytes(&self) -> u64 {
        let mut total = 0;
        self.each(&mut |slot| total += slot.info.bytes);
        total
    }

    fn each(&self, visit: &mut dyn FnMut(&Slot<'f>)) {
        // `map` is the one place that lists the fields; here its result is not needed.
        let _: Result<Weights<()>, std::convert::Infallible> = self.map(&mut |slot| {
            visit(slot);
            Ok(())
        });
    }

    /// Uploads everything; `progress` is told the bytes that are done.
    ///
    /// # Safety
    /// The file must stay mapped for as long as the backend holds the weights.
    pub unsafe fn upload<B: Backend>(
        &self,
        file: &GgufFile,
        backend: &mut B,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Weights<B::Weight>, Error> {
        let mut done = 0;
        self.map(&mut |slot| {
            let data = file.data(slot.info);
            // SAFETY: the caller keeps the file mapped for as long as the weights live.
            let data: &'static [u8] = unsafe { std::slice::from_raw_parts(data.as_ptr(), data.len()) };
            // The name is only for messages of this call.
            let name = &*slot.info.name;
            // SAFETY: as above; the name lives in the file's header.
            let name: &'static str = unsafe { &*std::ptr::from_ref(name) };
            let view = TensorView { name, ty: slot.info.ty, rows: slot.rows, cols: slot.cols, data };
            let weight = backend.upload(view)?;
            done += slot.info.bytes;
            progress(done);
            Ok(weight)
        })
    }
}

impl<W> Weights<W> {
    /// The same structure with every weight turned into something else, in file order of a forward pass.
    pub(super) fn map<V, E>(&self, f: &mut dyn FnMut(&W) -> Result<V, E>) -> Result<Weights<V>, E> {
        let token_embd = f(&self.token_embd)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for l in &self.layers {
            let mut option = |w: &Option<W>| w.as_ref().map(&mut *f).transpose();
            let (attn_q_bias, attn_k_bias) = (option(&l.attn_q_bias)?, option(&l.attn_k_bias)?);
            let (attn_v_bias, attn_output_bias) = (option(&l.attn_v_bias)?, option(&l.attn_output_bias)?);
            let (attn_q_norm, attn_k_norm) = (option(&l.attn_q_norm)?, option(&l.attn_k_norm)?);
            layers.push(Layer {
                attn_norm: f(&l.attn_norm)?,
                attn_q: f(&l.attn_q)?,
                attn_k: f(&l.attn_k)?,
                attn_v: f(&l.attn_v)?,
                attn_output: f(&l.attn_output)?,
                attn_q_bias,
                attn_k_bias,
                attn_v_bias,
                attn_output_bias,
                attn_q_norm,
                attn_k_norm,
                ffn_norm: f(&l.ffn_norm)?,
                ffn_gate: f(&l.ffn_gate)?,
                ffn_up: f(&l.ffn_up)?,
                ffn_down: f(&l.ffn_down)?,
            });
        }
        let output_norm = f(&self.output_norm)?;
        let output = self.output.as_ref().map(&mut *f).transpose()?;
        Ok(Weights { token_embd, layers, output_norm, output })
    }
}

struct Finder<'f> {
    file: &'f GgufFile,
}

impl<'f> Finder<'f> {
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Slot<'f>, ModelError> {
        self.optional_matrix(name, rows, cols)?.ok_or_else(|| ModelError::MissingTensor { name: name.into() })
    }

    fn optional_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Slot<'f>>, ModelError> {
        let Some(info) = self.file.tensor(name) else { return Ok(None) };
        let expected = [cols as u64, rows as u64];
        if info.dims != expected {
            return Err(ModelError::Shape { name: name.into(), found: info.dims.clone(), expected: expected.into() });
        }
        Ok(Some(Slot { info, rows, cols }))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Slot<'f>, ModelError> {
        self.optional_vector(name, len)?.ok_or_else(|| ModelError::MissingTensor { name: name.into() })
    }

    fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Slot<'f>>, ModelError> {
        let Some(info) = self.file.tensor(name) else { return Ok(None) };
        if info.dims != [len as u64] {
            let expected = vec![len as u64];
            return Err(ModelError::Shape { name: name.into(), found: info.dims.clone(), expected });
        }
        if !matches!(info.ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
            return Err(ModelError::VectorType { name: name.into(), found: info.ty });
        }
        Ok(Some(Slot { info, rows: 1, cols: len }))
    }
}
