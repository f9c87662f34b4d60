//! What a driver makes of the kernels: compiles every variant that a device would use and reports on the code
//! (registers, waves, spills, size, instructions and their kinds). Needs no memory and runs nothing, so it works on
//! drivers that only compile, such as RADV without its hardware.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shaders::{Kernel, WeightType};

use super::device::{Device, DeviceOptions};
use super::error::VulkanError;
use super::instance::DeviceInfo;
use super::kernels::linear::{MANY, Method};
use super::kernels::{
    attention, embed, gated, gather, half_rows, kv_store, linear, moe_sum, place_heads, probe, prompt_attention,
    quantize, rms_norm, rope, route, scale_by_sigmoid, swiglu,
};
use super::mix::InstructionMix;
use super::pipelines::{Compiled, Pipelines, Variant};
use super::tune::Stored;
use super::tuning::{Extent, Tuning};
use crate::kv::{KvOptions, KvType};
use crate::model::{Activation, MoeConfig, RopeLayout};

/// Head sizes, and query heads per key/value head, of the models that the engine is made for.
const HEADS: [(usize, usize); 5] = [(64, 7), (64, 8), (128, 8), (128, 5), (256, 4)];
/// Largest batch that variants are listed for.
const N_BATCH: usize = 1024;
/// Experts, and experts per token, of the models that the engine is made for.
const EXPERTS: [(usize, usize); 3] = [(32, 4), (128, 4), (128, 8)];

/// A device opened to look at compiled kernels.
pub struct Inspector {
    pipelines: Pipelines,
    info: DeviceInfo,
    tuning: Tuning,
}

impl Inspector {
    /// Opens a device.
    pub fn open(options: DeviceOptions<'_>) -> Result<Inspector, VulkanError> {
        let device = Device::open(options, true)?;
        let tuning = Stored::of(&device).apply(Tuning::of(&device.info));
        Ok(Inspector { info: device.info.clone(), tuning, pipelines: Pipelines::new(device)? })
    }

    /// What device this is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Every variant that the backend uses on this device.
    pub fn variants(&self) -> Vec<Variant> {
        let t = &self.tuning;
        let mut all = products(t);
        // What `--exact` uses in their place.
        for variant in products(&t.exact()) {
            if !all.contains(&variant) {
                all.push(variant);
            }
        }
        if t.matrix.is_some() {
            all.push(half_rows::variant(t));
        }
        all.extend(WeightType::ALL.iter().map(|&ty| embed::variant(t, ty)));
        let moe = |(n_expert, n_expert_used)| MoeConfig {
            n_expert,
            n_expert_used,
            n_ff_exp: 768,
            renormalise: true,
            weights_scale: 1.0,
            activation: Activation::Swiglu,
        };
        all.extend(EXPERTS.map(|e| route::variant(t, &moe(e))));
        all.extend([Activation::Swiglu, Activation::SwigluOai].map(|a| swiglu::variant(t, a)));
        all.extend([moe_sum::variant(t), scale_by_sigmoid::variant(t)]);
        all.extend([quantize::variant(t), rms_norm::quantized::variant(t)]);
        for ty in KvType::ALL {
            let types = KvOptions { k: ty, v: ty };
            for (head_dim, group) in HEADS {
                let exact = prompt_attention::variant(&t.exact(), head_dim, types);
                let new = attention::variants(t, head_dim, group, types).chain(exact);
                new.for_each(|v| {
                    if !all.contains(&v) {
                        all.push(v)
                    }
                });
                all.extend(
                    [RopeLayout::Interleaved, RopeLayout::Neox].map(|l| place_heads::variant(t, head_dim, l, types)),
                );
            }
            all.push(kv_store::variant(t, HEADS[0].0, types));
        }
        all.extend([RopeLayout::Interleaved, RopeLayout::Neox].map(|layout| rope::variant(t, layout)));
        all.extend([rms_norm::variant(t), gather::variant(t)]);
        all.extend(probe::variants());
        all.extend(t.matrix.map(|m| probe::matrix_variant(&m.tiles[0])));
        let used = |k: Kernel| all.iter().any(|v| v.kernel == k);
        let not_here = |k: Kernel| match k {
            Kernel::DotMatvec(_) | Kernel::DotGatedMatvec(_) => !self.info.fast_dot,
            Kernel::HalfPromptAttention => t.prompt_matrix.is_none() || !t.prompt_on_matrix,
            Kernel::HalfMatmul(_) | Kernel::HalfGatedMatmul(_) | Kernel::HalfRows | Kernel::MatrixFma => {
                t.matrix.is_none()
            }
            _ => false,
        };
        debug_assert!(Kernel::all().all(|k| used(k) || not_here(k)), "every kernel is used");
        all
    }

    /// Compiles `variants` on all cores.
    pub fn prepare(&mut self, variants: &[Variant]) -> Result<(), VulkanError> {
        self.pipelines.prepare(variants)
    }

    /// What the driver made of a variant; only its name and constants where the driver doesn't tell.
    pub fn report(&mut self, variant: &Variant) -> Result<CodeReport, VulkanError> {
        let compiled = self.pipelines.compiled(variant)?.unwrap_or_default();
        Ok(CodeReport::new(variant, &compiled))
    }

    /// Name and text of the driver's representations of a variant, from the first to the last step of its compiler.
    pub fn texts(&mut self, variant: &Variant) -> Result<Vec<(String, String)>, VulkanError> {
        Ok(self.pipelines.compiled(variant)?.unwrap_or_default().texts)
    }
}

/// The variants of products of every type.
fn products(t: &Tuning) -> Vec<Variant> {
    let mut all: Vec<Variant> = WeightType::ALL.iter().flat_map(|&ty| linear::variants(t, ty, MANY, N_BATCH)).collect();
    let methods = Method::all(N_BATCH, |n| Method::of_experts(t, n, EXPERTS[0].0, EXPERTS[0].1));
    for ty in WeightType::ALL {
        // gpt-oss's activation with the type of its experts.
        let activation = if ty == WeightType::MXFP4 { Activation::SwigluOai } else { Activation::Swiglu };
        all.extend(linear::expert_variants(t, ty, &methods));
        all.extend(gated::variants(t, ty, activation, &methods, true));
    }
    let dense = |ty| Method::all(N_BATCH, |n_tokens| Method::of(t, ty, Extent { n_rows: MANY, n_tokens }));
    all.extend(WeightType::ALL.iter().flat_map(|&ty| gated::variants(t, ty, Activation::Swiglu, &dense(ty), false)));
    all
}

/// Environment in which the Vulkan loader finds only RADV and RADV only pretends to have hardware of family `isa`
/// (such as `gfx1151`): it compiles and runs nothing. For a process to be started; `None` where RADV is not installed.
/// Mesa 25.0 has this; 26 removed it.
pub fn compile_only_environment(isa: &str) -> Option<[(&'static str, String); 3]> {
    let folders = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
    let files = folders.iter().flat_map(|f| std::fs::read_dir(f).into_iter().flatten().flatten());
    let is_radv = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("radeon_icd"));
    let manifest = files.map(|e| e.path()).find(is_radv)?;
    Some([
        ("RADV_FORCE_FAMILY", isa.to_owned()),
        // Code from the cache has no statistics.
        ("MESA_SHADER_CACHE_DISABLE", "true".to_owned()),
        ("VK_DRIVER_FILES", manifest.to_string_lossy().into_owned()),
    ])
}

/// A variant's code, as far as the driver tells. Counts of instructions are of the code, not of a run of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CodeReport {
    /// Name of the kernel, with its weight type.
    pub kernel: String,
    /// Specialization constants, by id.
    pub constants: Vec<u32>,
    /// Invocations of a subgroup (wave).
    pub subgroup_size: u32,
    /// Vector registers that the code takes.
    pub vgprs: Option<u64>,
    /// Vector registers before the driver's scheduler, which takes more where that costs no waves: the need.
    pub vgprs_needed: Option<u64>,
    /// Scalar registers.
    pub sgprs: Option<u64>,
    /// Waves that one SIMD of gfx1151 can hold, by registers and shared memory.
    pub waves: Option<u64>,
    /// Bytes of shared memory per workgroup.
    pub lds_bytes: Option<u64>,
    /// Registers that were spilled, and bytes of scratch memory: both must be 0.
    pub spills: Option<u64>,
    /// Size of the code.
    pub code_bytes: Option<u64>,
    /// Instructions.
    pub instructions: Option<u64>,
    /// These by kind; `None` where the driver gives no listing of its code.
    pub mix: Option<InstructionMix>,
    /// Of these, on four products of bytes at a time.
    pub dot4: u64,
    /// Of these, on matrices.
    pub wmma: u64,
    /// The compiler's estimate of the cycles of one wave.
    pub latency: Option<u64>,
    /// The compiler's estimate of the cycles between waves.
    pub inverse_throughput: Option<u64>,
    /// Instructions of the innermost loop that decodes weights, per weight decoded and column, of matrix–vector
    /// kernels.
    pub instructions_per_weight: Option<f64>,
}

impl CodeReport {
    fn new(variant: &Variant, compiled: &Compiled) -> CodeReport {
        let value =
            |wanted: &str| compiled.statistics.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value as u64);
        let empty = String::new();
        let code = compiled.texts.iter().rev().map(|(_, text)| text).find(|t| t.contains("s_endpgm")).unwrap_or(&empty);
        let lds_bytes = value("LDS size");
        let workgroup = u64::from(variant.constants[0]);
        let waves = value("VGPRs")
            .map(|vgprs| waves(vgprs, u64::from(compiled.subgroup_size), lds_bytes.unwrap_or(0), workgroup));
        let spills = [value("Spilled SGPRs"), value("Spilled VGPRs"), value("Scratch size")];
        CodeReport {
            kernel: variant.kernel.name(),
            constants: variant.constants.clone(),
            subgroup_size: compiled.subgroup_size,
            vgprs: value("VGPRs"),
            vgprs_needed: value("Pre-Sched VGPRs"),
            sgprs: value("SGPRs"),
            waves,
            lds_bytes,
            spills: spills.into_iter().flatten().reduce(|a, b| a + b),
            code_bytes: value("Code size"),
            instructions: value("Instructions"),
            mix: InstructionMix::of(code),
            dot4: code.matches("v_dot4_i32_iu8").count() as u64,
            wmma: code.matches("v_wmma_").count() as u64,
            latency: value("Latency"),
            inverse_throughput: value("Inverse Throughput"),
            instructions_per_weight: weights_per_round(variant).zip(largest_loop(code)).map(|(w, n)| n as f64 / w),
        }
    }

    /// Whether this is about the same variant as `other`.
    pub fn is_same_variant(&self, other: &CodeReport) -> bool {
        (&self.kernel, &self.constants) == (&other.kernel, &other.constants)
    }
}

/// Waves per SIMD of gfx1151: 1536 registers of 32 lanes (768 of 64), taken in steps of 24 (12), at most 16 waves; the
/// 128 KiB of shared memory of four SIMDs. The driver's own figure is for other chips.
fn waves(vgprs: u64, subgroup_size: u64, lds_bytes: u64, workgroup: u64) -> u64 {
    let (registers, step) = if subgroup_size > 32 { (768, 12) } else { (1536, 24) };
    let by_registers = registers / vgprs.max(1).next_multiple_of(step);
    let waves_per_group = workgroup.div_ceil(subgroup_size.max(1));
    let by_lds = (128 << 10) / lds_bytes.max(1) * waves_per_group / 4;
    by_registers.min(16).min(by_lds.max(1))
}

/// Weights times columns that an invocation of a matrix–vector kernel works on in a round of its loop.
fn weights_per_round(variant: &Variant) -> Option<f64> {
    let (ty, n_matrices) = match variant.kernel {
        Kernel::Matvec(ty) | Kernel::DotMatvec(ty) => (ty, 1),
        Kernel::GatedMatvec(ty) | Kernel::DotGatedMatvec(ty) => (ty, 2),
        _ => return None,
    };
    let &[_, rows, columns, ..] = &variant.constants[..] else { return None };
    Some(f64::from(n_matrices * rows * columns) * ty.unit() as f64)
}

/// Instructions of the largest loop, from the block that a branch jumps back to up to that branch; waits and hints for
/// the scheduler are not counted. Reads the final representation of Mesa's compiler: a block begins with a line `BB`
/// and a number, its instructions are indented, a branch names its target as `block:` and such a name.
fn largest_loop(code: &str) -> Option<usize> {
    let mut starts: HashMap<&str, usize> = HashMap::new();
    let mut largest = None;
    let mut n = 0;
    for line in code.lines() {
        let text = line.trim();
        if text.starts_with("BB") {
            starts.insert(text, n);
        } else if line.starts_with([' ', '\t']) {
            n += usize::from(!["s_waitcnt", "s_delay_alu", "s_clause"].iter().any(|hint| text.starts_with(hint)));
            let target = text.split_once("block:").map(|(_, target)| target.trim());
            if let Some(start) = target.and_then(|t| starts.get(t)) {
                largest = largest.max(Some(n - start));
            }
        }
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_by_registers_and_by_shared_memory() {
        // The rule of design.md: 1536 registers in steps of 24, or half of both for waves of 64.
        assert_eq!(waves(96, 32, 0, 32), 16);
        assert_eq!(waves(97, 32, 0, 32), 12);
        assert_eq!(waves(256, 32, 0, 32), 5);
        assert_eq!(waves(60, 64, 0, 64), 12);
        assert_eq!(waves(24, 64, 0, 64), 16);
        // 32 KiB per workgroup of four waves: four workgroups on four SIMDs.
        assert_eq!(waves(24, 32, 32 << 10, 128), 4);
    }

    #[test]
    fn the_largest_loop_of_a_listing_is_counted() {
        let code = "BB0\n/* kind: uniform */\n\t s1: %0:s[0] = s_mov_b32 0\nBB1\n/* loop-header */\n\ts_waitcnt vmcnt(0)\n\
                    \t v1: %1:v[1] = v_fma_f32 %0, %0\n\t v1: %2:v[2] = v_mov_b32 0\n\ts_cbranch_scc0 block:BB3\nBB2\n\
                    \ts_branch block:BB1\nBB3\n\t s1: %3 = s_mov_b32 0\n\ts_cbranch_scc1 block:BB3\nBB4\n\ts_endpgm\n";
        assert_eq!(largest_loop(code), Some(4));
        assert_eq!(largest_loop("BB0\n\ts_endpgm\n"), None);
        assert_eq!(largest_loop(""), None);
    }
}
