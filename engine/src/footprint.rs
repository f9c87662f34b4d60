//! What a model is and takes, computed from its header alone: parameters, bytes that a token reads, keys and values, and
//! memory for a context length. Nothing is allocated, and the file need not be there (a planned one will do). Called by
//! the commands `info` and `synth`.

use crate::backend::{Act, Limits};
use crate::error::RequestError;
use crate::gguf::Header;
use crate::kv::{KvLayout, KvOptions, KvType};
use crate::model::{Config, ModelError, plan};

/// Keys and values in any precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvBytes {
    /// Elements, keys and values together.
    pub elements: u64,
}

impl KvBytes {
    /// With keys and values of these types.
    pub fn of(self, options: KvOptions) -> u64 {
        options.bytes(self.elements / 2)
    }

    /// At f16.
    pub fn f16(self) -> u64 {
        KvType::F16.bytes(self.elements)
    }

    /// At q8_0: 34 bytes for 32 elements.
    pub fn q8_0(self) -> u64 {
        KvType::Q8_0.bytes(self.elements)
    }
}

/// Layers that see the same stretch of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// Positions that a token attends to; `None` for all.
    pub window: Option<usize>,
    /// How many layers.
    pub n_layer: usize,
    /// What each position adds; in a window only until it is full.
    pub per_token: KvBytes,
}

/// What a model is and takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Footprint {
    /// All weights.
    pub n_params: u64,
    /// Weights that take part in one token: all but the experts that it doesn't use.
    pub n_params_active: u64,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Weight bytes that decoding one token reads.
    pub weight_bytes_per_token: u64,
    /// Keys and values, layers of the same window together; those that see everything first.
    pub kv: Vec<KvGroup>,
}

/// Memory for a context length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights.
    pub weight_bytes: u64,
    /// The whole cache.
    pub kv: KvBytes,
    /// Activations of the largest batch.
    pub activation_bytes: u64,
}

impl Memory {
    /// All of it, with a cache of these types.
    pub fn total(&self, options: KvOptions) -> u64 {
        self.weight_bytes + self.kv.of(options) + self.activation_bytes
    }
}

impl Footprint {
    /// Computes it.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn new(header: &Header, config: &Config) -> Result<Footprint, ModelError> {
        let plan = plan(header, config)?;
        let mut kv: Vec<KvGroup> = Vec::new();
        for (il, layer) in config.layers.iter().enumerate() {
            let elements = 2 * config.kv_dim(il) as u64;
            match kv.iter_mut().find(|g| g.window == layer.window) {
                Some(group) => {
                    group.n_layer += 1;
                    group.per_token.elements += elements;
                }
                None => kv.push(KvGroup { window: layer.window, n_layer: 1, per_token: KvBytes { elements } }),
            }
        }
        kv.sort_by_key(|g| g.window.map_or(0, |w| w));
        Ok(Footprint {
            n_params: plan.n_params(),
            n_params_active: plan.n_params_active(config),
            weight_bytes: plan.bytes(),
            weight_bytes_per_token: plan.bytes_per_token(config),
            kv,
        })
    }

    /// Keys and values that each further position of a long sequence adds: those of the layers without a window.
    pub fn kv_per_token(&self) -> KvBytes {
        KvBytes { elements: self.kv.iter().filter(|g| g.window.is_none()).map(|g| g.per_token.elements).sum() }
    }

    /// Keys and values of one sequence whose windows are all full, beyond what grows with every token.
    pub fn kv_windows(&self) -> KvBytes {
        KvBytes { elements: self.kv.iter().filter_map(|g| Some(g.window? as u64 * g.per_token.elements)).sum() }
    }

    /// Memory that an engine with these limits takes.
    ///
    /// # Errors
    /// The bytes allowed for the cache don't hold one sequence.
    pub fn memory(&self, config: &Config, limits: &Limits) -> Result<Memory, RequestError> {
        let layout = KvLayout::new(config, limits)?;
        let elements = (0..config.n_layer()).map(|il| 2 * layout.layer_elements(config, il) as u64).sum();
        let rows = |act| if matches!(act, Act::Out | Act::Logits) { limits.n_outputs } else { limits.n_batch };
        let floats: usize = Act::ALL.into_iter().map(|act| rows(act) * act.max_width(config)).sum();
        // Gate and up of each chosen expert.
        let experts = config.moe.map_or(0, |m| 2 * limits.n_batch * m.n_expert_used * m.n_ff_exp);
        Ok(Memory {
            weight_bytes: self.weight_bytes,
            kv: KvBytes { elements },
            activation_bytes: 4 * (floats + experts) as u64,
        })
    }
}
