//! Finds a model's tensors in its file, checks each one's shape against the hyper-parameters, and hands them to the
//! backend. All checks come before the first upload.

use super::config::{Architecture, Config, MoeConfig};
use super::read_ahead::reading_ahead;
use super::{ExpertWeights, FeedForward, GatedWeights, Layer, ModelError, MoeWeights, SharedExpert, Weights};
use crate::backend::{Backend, Role, TensorView};
use crate::error::Error;
use crate::gguf::{GgmlType, GgufFile, Header, TensorInfo};

/// One weight of the plan.
pub struct Slot<'f> {
    info: &'f TensorInfo,
    role: Role,
    rows: usize,
    cols: usize,
}

impl Slot<'_> {
    /// Type, rows, and elements per row.
    pub(crate) fn shape(&self) -> (GgmlType, usize, usize) {
        (self.info.ty, self.rows, self.cols)
    }
}

/// The weights of a file as slots: found and checked, not yet uploaded.
pub type Plan<'f> = Weights<Slot<'f>>;

/// Finds and checks every tensor that `config` calls for.
///
/// # Errors
/// A tensor is missing, or has another shape, or a vector has a block-quantised type.
pub fn plan<'f>(header: &'f Header, config: &Config) -> Result<Plan<'f>, ModelError> {
    let find = Finder { header };
    Ok(Weights {
        token_embd: find.matrix("token_embd.weight", config.n_vocab, config.n_embd)?,
        layers: (0..config.n_layer()).map(|il| layer(&find, config, il)).collect::<Result<_, _>>()?,
        output_norm: find.vector("output_norm.weight", config.n_embd)?,
        output: find.optional_matrix("output.weight", config.n_vocab, config.n_embd)?,
    })
}

fn layer<'f>(find: &Finder<'f>, c: &Config, il: usize) -> Result<Layer<Slot<'f>>, ModelError> {
    let (q_dim, kv_dim) = (c.q_dim(il), c.kv_dim(il));
    let name = |part: &str| format!("blk.{il}.{part}");
    let matrix = |part: &str, rows, cols| find.matrix(&name(&format!("{part}.weight")), rows, cols);
    let vector = |part: &str, len| find.vector(&name(part), len);
    let is_gpt_oss = c.arch == Architecture::GptOss;
    let bias = |part: &str, len| match matches!(c.arch, Architecture::Qwen2 | Architecture::Qwen2Moe) || is_gpt_oss {
        true => vector(part, len).map(Some),
        false => find.optional_vector(&name(part), len),
    };
    let vector_if = |has: bool, part: &str, len| if has { vector(part, len).map(Some) } else { Ok(None) };
    Ok(Layer {
        attn_norm: vector("attn_norm.weight", c.n_embd)?,
        attn_q: matrix("attn_q", q_dim, c.n_embd)?,
        attn_k: matrix("attn_k", kv_dim, c.n_embd)?,
        attn_v: matrix("attn_v", kv_dim, c.n_embd)?,
        attn_output: matrix("attn_output", c.n_embd, q_dim)?,
        attn_q_bias: bias("attn_q.bias", q_dim)?,
        attn_k_bias: bias("attn_k.bias", kv_dim)?,
        attn_v_bias: bias("attn_v.bias", kv_dim)?,
        attn_output_bias: match is_gpt_oss {
            true => Some(vector("attn_output.bias", c.n_embd)?),
            false => find.optional_vector(&name("attn_output.bias"), c.n_embd)?,
        },
        attn_q_norm: vector_if(c.arch.has_head_norms(), "attn_q_norm.weight", c.head_dim)?,
        attn_k_norm: vector_if(c.arch.has_head_norms(), "attn_k_norm.weight", c.head_dim)?,
        attn_sinks: vector_if(is_gpt_oss, "attn_sinks.weight", c.layers[il].n_head)?,
        ffn_norm: vector(if is_gpt_oss { "post_attention_norm.weight" } else { "ffn_norm.weight" }, c.n_embd)?,
        ffn: match &c.moe {
            None => FeedForward::Dense(gated(find, &name("ffn_{}.weight"), c.layers[il].n_ff, c.n_embd)?),
            Some(moe) => FeedForward::Moe(mixture(find, c, moe, il)?),
        },
    })
}

/// The three matrices whose names are `pattern` with `gate`, `up` and `down` for `{}`.
fn gated<'f>(
    find: &Finder<'f>,
    pattern: &str,
    n_ff: usize,
    n_embd: usize,
) -> Result<GatedWeights<Slot<'f>>, ModelError> {
    let matrix = |part: &str, rows, cols| find.matrix(&pattern.replace("{}", part), rows, cols);
    Ok(GatedWeights {
        gate: Slot { role: Role::Gate, ..matrix("gate", n_ff, n_embd)? },
        up: Slot { role: Role::Up, ..matrix("up", n_ff, n_embd)? },
        down: matrix("down", n_embd, n_ff)?,
    })
}

fn mixture<'f>(find: &Finder<'f>, c: &Config, moe: &MoeConfig, il: usize) -> Result<MoeWeights<Slot<'f>>, ModelError> {
    let name = |part: &str| format!("blk.{il}.{part}");
    let biased = c.arch == Architecture::GptOss;
    let experts = |part: &str, rows, cols| find.experts(&name(&format!("ffn_{part}_exps.weight")), moe, rows, cols);
    let bias = |part: &str, len| match biased {
        true => find.expert_bias(&name(&format!("ffn_{part}_exps.bias")), moe, len).map(Some),
        false => Ok(None),
    };
    let shared = match c.layers[il].n_ff {
        0 => None,
        n_ff => Some(SharedExpert {
            gate_inp: find.vector(&name("ffn_gate_inp_shexp.weight"), c.n_embd)?,
            ffn: gated(find, &name("ffn_{}_shexp.weight"), n_ff, c.n_embd)?,
        }),
    };
    Ok(MoeWeights {
        router: find.matrix(&name("ffn_gate_inp.weight"), moe.n_expert, c.n_embd)?,
        router_bias: match biased {
            true => Some(find.vector(&name("ffn_gate_inp.bias"), moe.n_expert)?),
            false => None,
        },
        experts: ExpertWeights {
            gate: experts("gate", moe.n_ff_exp, c.n_embd)?,
            up: experts("up", moe.n_ff_exp, c.n_embd)?,
            down: experts("down", c.n_embd, moe.n_ff_exp)?,
            gate_bias: bias("gate", moe.n_ff_exp)?,
            up_bias: bias("up", moe.n_ff_exp)?,
            down_bias: bias("down", c.n_embd)?,
        },
        shared,
    })
}

/// `rope_freqs.weight`, `[n_rot / 2]` f32, where the file has it.
pub fn rope_factors(file: &GgufFile, config: &Config) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(slot) = (Finder { header: file.header() }).optional_vector("rope_freqs.weight", config.n_rot / 2)? else {
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
    /// Bytes that decoding one token reads: every weight once, but only a row of an untied embedding table and only
    /// the experts that a token uses.
    pub fn bytes_per_token(&self, config: &Config) -> u64 {
        let mut total = self.bytes();
        if self.output.is_some() {
            total -= self.token_embd.info.bytes;
        }
        total - self.unused_expert_share(config, |slot| slot.info.bytes)
    }

    /// All bytes of the model's weights.
    pub fn bytes(&self) -> u64 {
        let mut total = 0;
        self.each(&mut |slot| total += slot.info.bytes);
        total
    }

    /// All weights of the model (parameters).
    pub fn n_params(&self) -> u64 {
        let mut total = 0;
        self.each(&mut |slot| total += (slot.rows * slot.cols) as u64);
        total
    }

    /// Weights that take part in one token: all but the experts that it doesn't use.
    pub fn n_params_active(&self, config: &Config) -> u64 {
        self.n_params() - self.unused_expert_share(config, |slot| (slot.rows * slot.cols) as u64)
    }

    /// What a token's unused experts hold, in the unit of `size`.
    fn unused_expert_share(&self, config: &Config, size: impl Fn(&Slot<'f>) -> u64) -> u64 {
        let Some(moe) = &config.moe else { return 0 };
        let all: u64 = self
            .layers
            .iter()
            .filter_map(|l| if let FeedForward::Moe(m) = &l.ffn { Some(&m.experts) } else { None })
            .flat_map(|e| {
                let biases = [&e.gate_bias, &e.up_bias, &e.down_bias];
                [&e.gate, &e.up, &e.down].into_iter().chain(biases.into_iter().flatten())
            })
            .map(size)
            .sum();
        all / moe.n_expert as u64 * (moe.n_expert - moe.n_expert_used) as u64
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
        let mut tensors = Vec::new();
        self.each(&mut |slot| tensors.push(slot.info));
        reading_ahead(file, &tensors, |copied| {
            let mut done = 0;
            self.map(&mut |slot| {
                let data = file.data(slot.info);
                // SAFETY: the caller keeps the file mapped for as long as the weights live.
                let data: &'static [u8] = unsafe { std::slice::from_raw_parts(data.as_ptr(), data.len()) };
                // The name is only for messages of this call.
                let name = &*slot.info.name;
                // SAFETY: as above; the name lives in the file's header.
                let name: &'static str = unsafe { &*std::ptr::from_ref(name) };
                let Slot { info, role, rows, cols } = *slot;
                let view = TensorView { name, role, ty: info.ty, rows, cols, data };
                let weight = backend.upload(view)?;
                done += slot.info.bytes;
                copied.set(done);
                progress(done);
                Ok(weight)
            })
        })
    }
}

impl<W> Weights<W> {
    /// The same structure with every weight turned into something else, in file order of a forward pass.
    pub(crate) fn map<V, E>(&self, f: &mut dyn FnMut(&W) -> Result<V, E>) -> Result<Weights<V>, E> {
        let token_embd = f(&self.token_embd)?;
        let layers = self.layers.iter().map(|l| l.map(f)).collect::<Result<_, _>>()?;
        let output_norm = f(&self.output_norm)?;
        let output = option(&self.output, f)?;
        Ok(Weights { token_embd, layers, output_norm, output })
    }
}

fn option<W, V, E>(weight: &Option<W>, f: &mut dyn FnMut(&W) -> Result<V, E>) -> Result<Option<V>, E> {
    weight.as_ref().map(f).transpose()
}

impl<W> Layer<W> {
    fn map<V, E>(&self, f: &mut dyn FnMut(&W) -> Result<V, E>) -> Result<Layer<V>, E> {
        Ok(Layer {
            attn_norm: f(&self.attn_norm)?,
            attn_q: f(&self.attn_q)?,
            attn_k: f(&self.attn_k)?,
            attn_v: f(&self.attn_v)?,
            attn_output: f(&self.attn_output)?,
            attn_q_bias: option(&self.attn_q_bias, f)?,
            attn_k_bias: option(&self.attn_k_bias, f)?,
            attn_v_bias: option(&self.attn_v_bias, f)?,
            attn_output_bias: option(&self.attn_output_bias, f)?,
            attn_q_norm: option(&self.attn_q_norm, f)?,
            attn_k_norm: option(&self.attn_k_norm, f)?,
            attn_sinks: option(&self.attn_sinks, f)?,
            ffn_norm: f(&self.ffn_norm)?,
            ffn: match &self.ffn {
                FeedForward::Dense(ffn) => FeedForward::Dense(ffn.map(f)?),
                FeedForward::Moe(moe) => FeedForward::Moe(moe.map(f)?),
            },
        })
    }
}

impl<W> GatedWeights<W> {
    fn map<V, E>(&self, f: &mut dyn FnMut(&W) -> Result<V, E>) -> Result<GatedWeights<V>, E> {
        Ok(GatedWeights { gate: f(&self.gate)?, up: f(&self.up)?, down: f(&self.down)? })
    }
}

impl<W> MoeWeights<W> {
    fn map<V, E>(&self, f: &mut dyn FnMut(&W) -> Result<V, E>) -> Result<MoeWeights<V>, E> {
        let e = &self.experts;
        Ok(MoeWeights {
            router: f(&self.router)?,
            router_bias: option(&self.router_bias, f)?,
            experts: ExpertWeights {
                gate: f(&e.gate)?,
                up: f(&e.up)?,
                down: f(&e.down)?,
                gate_bias: option(&e.gate_bias, f)?,
                up_bias: option(&e.up_bias, f)?,
                down_bias: option(&e.down_bias, f)?,
            },
            shared: match &self.shared {
                Some(s) => Some(SharedExpert { gate_inp: f(&s.gate_inp)?, ffn: s.ffn.map(f)? }),
                None => None,
            },
        })
    }
}

struct Finder<'f> {
    header: &'f Header,
}

impl<'f> Finder<'f> {
    /// A tensor with exactly these dimensions, contiguous one first, seen as `rows` rows of `cols`.
    fn optional(&self, name: &str, role: Role, dims: &[usize], rows: usize) -> Result<Option<Slot<'f>>, ModelError> {
        let Some(info) = self.header.tensor(name) else { return Ok(None) };
        let expected: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
        if info.dims != expected {
            return Err(ModelError::Shape { name: name.into(), found: info.dims.clone(), expected });
        }
        Ok(Some(Slot { info, role, rows, cols: dims[0] }))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Slot<'f>, ModelError> {
        self.optional_matrix(name, rows, cols)?.ok_or_else(|| missing(name))
    }

    fn optional_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Slot<'f>>, ModelError> {
        self.optional(name, Role::Matrix, &[cols, rows], rows)
    }

    /// `n_expert` matrices of `[rows, cols]`.
    fn experts(&self, name: &str, moe: &MoeConfig, rows: usize, cols: usize) -> Result<Slot<'f>, ModelError> {
        let dims = [cols, rows, moe.n_expert];
        self.optional(name, Role::Experts, &dims, rows * moe.n_expert)?.ok_or_else(|| missing(name))
    }

    /// `n_expert` vectors of `len`.
    fn expert_bias(&self, name: &str, moe: &MoeConfig, len: usize) -> Result<Slot<'f>, ModelError> {
        let slot = self.optional(name, Role::Vector, &[len, moe.n_expert], moe.n_expert)?;
        let slot = slot.ok_or_else(|| missing(name))?;
        slot.check_float(name)?;
        Ok(slot)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Slot<'f>, ModelError> {
        self.optional_vector(name, len)?.ok_or_else(|| missing(name))
    }

    fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Slot<'f>>, ModelError> {
        let Some(slot) = self.optional(name, Role::Vector, &[len], 1)? else { return Ok(None) };
        slot.check_float(name)?;
        Ok(Some(slot))
    }
}

fn missing(name: &str) -> ModelError {
    ModelError::MissingTensor { name: name.into() }
}

impl Slot<'_> {
    fn check_float(&self, name: &str) -> Result<(), ModelError> {
        match self.info.ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => Ok(()),
            found => Err(ModelError::VectorType { name: name.into(), found }),
        }
    }
}
