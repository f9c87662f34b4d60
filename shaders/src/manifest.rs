//! The manifest: every kernel and variant, the source it comes from and the definitions that make the variant.
//! The build script compiles exactly this list (it includes this file); the library finds a kernel's SPIR-V by its
//! place in it. A variant that is not listed here does not exist.

/// How the weights of a kernel are stored. The layouts in device memory are described in `include/weights.glsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names are the field's own")]
#[allow(missing_docs, reason = "each variant is ggml's type of the same name")]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl WeightType {
    /// Every type, in the order of the declaration.
    pub const ALL: [WeightType; 11] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q4_K,
        WeightType::Q5_K,
        WeightType::Q6_K,
    ];

    /// ggml's name, e.g. `Q4_K`; the shader's definition is `WEIGHT_` and this.
    pub const fn name(self) -> &'static str {
        match self {
            WeightType::F32 => "F32",
            WeightType::F16 => "F16",
            WeightType::BF16 => "BF16",
            WeightType::Q4_0 => "Q4_0",
            WeightType::Q4_1 => "Q4_1",
            WeightType::Q5_0 => "Q5_0",
            WeightType::Q5_1 => "Q5_1",
            WeightType::Q8_0 => "Q8_0",
            WeightType::Q4_K => "Q4_K",
            WeightType::Q5_K => "Q5_K",
            WeightType::Q6_K => "Q6_K",
        }
    }

    /// Weights that one invocation decodes at a time (`4 * UNIT4`); a padded row is a multiple of it.
    pub const fn unit(self) -> usize {
        match self {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => 8,
            _ => 32,
        }
    }
}

/// A compute shader of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Rows of a table, decoded.
    Embed(WeightType),
    /// RMS norm over groups of a row.
    RmsNorm,
    /// Product with a few columns.
    Matvec(WeightType),
    /// Product with many columns.
    Matmul(WeightType),
    /// Rotary position embedding.
    Rope,
    /// Keys and values into the cache.
    KvStore,
    /// Causal attention over the cache.
    Attention,
    /// Gated activation.
    Swiglu,
    /// Selected rows.
    Gather,
}

impl Kernel {
    /// Every kernel and variant.
    pub fn all() -> impl Iterator<Item = Kernel> {
        let by_weight = [Kernel::Embed as fn(WeightType) -> Kernel, Kernel::Matvec, Kernel::Matmul];
        let plain = [Kernel::RmsNorm, Kernel::Rope, Kernel::KvStore, Kernel::Attention, Kernel::Swiglu, Kernel::Gather];
        by_weight.into_iter().flat_map(|k| WeightType::ALL.map(k)).chain(plain)
    }

    /// Place in [`Kernel::all`].
    pub fn index(self) -> usize {
        let n = WeightType::ALL.len();
        match self {
            Kernel::Embed(w) => w as usize,
            Kernel::Matvec(w) => n + w as usize,
            Kernel::Matmul(w) => 2 * n + w as usize,
            Kernel::RmsNorm => 3 * n,
            Kernel::Rope => 3 * n + 1,
            Kernel::KvStore => 3 * n + 2,
            Kernel::Attention => 3 * n + 3,
            Kernel::Swiglu => 3 * n + 4,
            Kernel::Gather => 3 * n + 5,
        }
    }

    /// File in `comp/`.
    pub const fn source(self) -> &'static str {
        match self {
            Kernel::Embed(_) => "f32_anyw_embed.comp",
            Kernel::Matvec(_) => "f32_anyw_matvec.comp",
            Kernel::Matmul(_) => "f32_anyw_matmul.comp",
            Kernel::RmsNorm => "f32_rms_norm.comp",
            Kernel::Rope => "f32_rope.comp",
            Kernel::KvStore => "f32_kv_store.comp",
            Kernel::Attention => "f32_f16kv_attention.comp",
            Kernel::Swiglu => "f32_swiglu.comp",
            Kernel::Gather => "f32_gather.comp",
        }
    }

    /// Weight type of a variant.
    pub const fn weight_type(self) -> Option<WeightType> {
        match self {
            Kernel::Embed(w) | Kernel::Matvec(w) | Kernel::Matmul(w) => Some(w),
            _ => None,
        }
    }

    /// Name of the variant, e.g. `f32_q4_kw_matvec`.
    pub fn name(self) -> String {
        let stem = self.source().trim_end_matches(".comp");
        match self.weight_type() {
            Some(w) => stem.replace("any", &w.name().to_lowercase()),
            None => stem.to_owned(),
        }
    }
}
