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
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

impl WeightType {
    /// Every type, in the order of the declaration.
    pub const ALL: [WeightType; 16] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q2_K,
        WeightType::Q3_K,
        WeightType::Q4_K,
        WeightType::Q5_K,
        WeightType::Q6_K,
        WeightType::IQ4_NL,
        WeightType::IQ4_XS,
        WeightType::MXFP4,
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
            WeightType::Q2_K => "Q2_K",
            WeightType::Q3_K => "Q3_K",
            WeightType::Q4_K => "Q4_K",
            WeightType::Q5_K => "Q5_K",
            WeightType::Q6_K => "Q6_K",
            WeightType::IQ4_NL => "IQ4_NL",
            WeightType::IQ4_XS => "IQ4_XS",
            WeightType::MXFP4 => "MXFP4",
        }
    }

    /// The types whose weights are small integers times a scale, in the order of [`WeightType::ALL`].
    pub fn quantised() -> &'static [WeightType] {
        &Self::ALL[Self::N_PLAIN..]
    }

    /// Whether this is one of [`WeightType::quantised`].
    pub const fn is_quantised(self) -> bool {
        self as usize >= Self::N_PLAIN
    }

    /// Types in front of the quantised ones.
    const N_PLAIN: usize = 3;

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
    /// Product with many columns on the matrix units.
    HalfMatmul(WeightType),
    /// Two products with a few columns, and their gated activation.
    GatedMatvec(WeightType),
    /// Two products with many columns, and their gated activation.
    GatedMatmul(WeightType),
    /// The same on the matrix units.
    HalfGatedMatmul(WeightType),
    /// Rows of activations in f16, for the matrix units.
    HalfRows,
    /// Product with a few columns in bytes; of quantised types only.
    DotMatvec(WeightType),
    /// Two products with a few columns in bytes, and their gated activation; of quantised types only.
    DotGatedMatvec(WeightType),
    /// Activations to bytes.
    Quantize,
    /// RMS norm of a row, and the result in bytes too.
    RmsNormQuantize,
    /// Rotary position embedding.
    Rope,
    /// Keys and values into the cache.
    KvStore,
    /// Norms and rotation of heads, keys and values into the cache.
    PlaceHeads,
    /// Causal attention over the cache.
    Attention,
    /// The same of many tokens of a sequence.
    PromptAttention,
    /// That on the matrix units.
    HalfPromptAttention,
    /// The end of an attention in several splits.
    AttentionMerge,
    /// Gated activation.
    Swiglu,
    /// Selected rows.
    Gather,
    /// Choice of experts, and the batch sorted by them.
    MoeRoute,
    /// Sum of a token's experts.
    MoeSum,
    /// Rows scaled by a gate.
    ScaleBySigmoid,
    /// Reads memory: a measure of the device.
    Read,
    /// Multiplies and adds: a measure of the device.
    Fma,
    /// Multiplies matrices: a measure of the device's matrix units.
    MatrixFma,
}

impl Kernel {
    /// Kernels that have a variant per weight type.
    const BY_WEIGHT: [fn(WeightType) -> Kernel; 7] = [
        Kernel::Embed,
        Kernel::Matvec,
        Kernel::Matmul,
        Kernel::GatedMatvec,
        Kernel::GatedMatmul,
        Kernel::HalfMatmul,
        Kernel::HalfGatedMatmul,
    ];
    /// The others.
    const PLAIN: [Kernel; 19] = [
        Kernel::RmsNorm,
        Kernel::Rope,
        Kernel::KvStore,
        Kernel::Attention,
        Kernel::Swiglu,
        Kernel::Gather,
        Kernel::MoeRoute,
        Kernel::MoeSum,
        Kernel::ScaleBySigmoid,
        Kernel::PlaceHeads,
        Kernel::AttentionMerge,
        Kernel::Read,
        Kernel::Fma,
        Kernel::Quantize,
        Kernel::RmsNormQuantize,
        Kernel::HalfRows,
        Kernel::PromptAttention,
        Kernel::HalfPromptAttention,
        Kernel::MatrixFma,
    ];

    /// Kernels that have a variant per quantised weight type.
    const BY_QUANTISED: [fn(WeightType) -> Kernel; 2] = [Kernel::DotMatvec, Kernel::DotGatedMatvec];

    /// Every kernel and variant.
    pub fn all() -> impl Iterator<Item = Kernel> {
        let quantised = |k: fn(WeightType) -> Kernel| WeightType::quantised().iter().map(move |&w| k(w));
        Self::BY_WEIGHT
            .into_iter()
            .flat_map(|k| WeightType::ALL.map(k))
            .chain(Self::PLAIN)
            .chain(Self::BY_QUANTISED.into_iter().flat_map(quantised))
    }

    /// Place in [`Kernel::all`].
    pub fn index(self) -> usize {
        let by_weight = |k: usize, w: WeightType| k * WeightType::ALL.len() + w as usize;
        let plain = |k: usize| Self::BY_WEIGHT.len() * WeightType::ALL.len() + k;
        let by_quantised = |k: usize, w: WeightType| {
            assert!(w.is_quantised(), "{w:?} has no products in integers");
            plain(Self::PLAIN.len()) + k * WeightType::quantised().len() + w as usize - WeightType::N_PLAIN
        };
        match self {
            Kernel::Embed(w) => by_weight(0, w),
            Kernel::Matvec(w) => by_weight(1, w),
            Kernel::Matmul(w) => by_weight(2, w),
            Kernel::GatedMatvec(w) => by_weight(3, w),
            Kernel::GatedMatmul(w) => by_weight(4, w),
            Kernel::HalfMatmul(w) => by_weight(5, w),
            Kernel::HalfGatedMatmul(w) => by_weight(6, w),
            Kernel::RmsNorm => plain(0),
            Kernel::Rope => plain(1),
            Kernel::KvStore => plain(2),
            Kernel::Attention => plain(3),
            Kernel::Swiglu => plain(4),
            Kernel::Gather => plain(5),
            Kernel::MoeRoute => plain(6),
            Kernel::MoeSum => plain(7),
            Kernel::ScaleBySigmoid => plain(8),
            Kernel::PlaceHeads => plain(9),
            Kernel::AttentionMerge => plain(10),
            Kernel::Read => plain(11),
            Kernel::Fma => plain(12),
            Kernel::Quantize => plain(13),
            Kernel::RmsNormQuantize => plain(14),
            Kernel::HalfRows => plain(15),
            Kernel::PromptAttention => plain(16),
            Kernel::HalfPromptAttention => plain(17),
            Kernel::MatrixFma => plain(18),
            Kernel::DotMatvec(w) => by_quantised(0, w),
            Kernel::DotGatedMatvec(w) => by_quantised(1, w),
        }
    }

    /// File in `comp/`.
    pub const fn source(self) -> &'static str {
        match self {
            Kernel::Embed(_) => "f32_anyw_embed.comp",
            Kernel::Matvec(_) => "f32_anyw_matvec.comp",
            Kernel::Matmul(_) => "f32_anyw_matmul.comp",
            Kernel::GatedMatvec(_) => "f32_anyw_gated_matvec.comp",
            Kernel::GatedMatmul(_) => "f32_anyw_gated_matmul.comp",
            Kernel::DotMatvec(_) => "q8_anyw_matvec.comp",
            Kernel::DotGatedMatvec(_) => "q8_anyw_gated_matvec.comp",
            Kernel::Quantize => "f32_quantize.comp",
            Kernel::RmsNormQuantize => "f32_rms_norm_quantize.comp",
            Kernel::HalfMatmul(_) => "f16_anyw_matmul.comp",
            Kernel::HalfGatedMatmul(_) => "f16_anyw_gated_matmul.comp",
            Kernel::HalfRows => "f32_half_rows.comp",
            Kernel::RmsNorm => "f32_rms_norm.comp",
            Kernel::Rope => "f32_rope.comp",
            Kernel::KvStore => "f32_kv_store.comp",
            Kernel::PlaceHeads => "f32_place_heads.comp",
            Kernel::Attention => "f32_anykv_attention.comp",
            Kernel::PromptAttention => "f32_anykv_prompt_attention.comp",
            Kernel::HalfPromptAttention => "f16_anykv_prompt_attention.comp",
            Kernel::AttentionMerge => "f32_attention_merge.comp",
            Kernel::Swiglu => "f32_swiglu.comp",
            Kernel::Gather => "f32_gather.comp",
            Kernel::MoeRoute => "f32_moe_route.comp",
            Kernel::MoeSum => "f32_moe_sum.comp",
            Kernel::ScaleBySigmoid => "f32_scale_by_sigmoid.comp",
            Kernel::Read => "u32_read.comp",
            Kernel::Fma => "f32_fma.comp",
            Kernel::MatrixFma => "f16_matrix_fma.comp",
        }
    }

    /// Weight type of a variant.
    pub const fn weight_type(self) -> Option<WeightType> {
        match self {
            Kernel::Embed(w)
            | Kernel::Matvec(w)
            | Kernel::Matmul(w)
            | Kernel::GatedMatvec(w)
            | Kernel::GatedMatmul(w)
            | Kernel::DotMatvec(w)
            | Kernel::DotGatedMatvec(w)
            | Kernel::HalfMatmul(w)
            | Kernel::HalfGatedMatmul(w) => Some(w),
            _ => None,
        }
    }

    /// The definition that makes the variant, e.g. `WEIGHT_Q4_K`.
    pub fn definition(self) -> Option<String> {
        self.weight_type().map(|w| format!("WEIGHT_{}", w.name()))
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
