//! What a driver makes of the kernels: compiles every variant that a device would use and gives the driver's
//! statistics (registers, spills, code size). Needs no memory and runs nothing, so it works on drivers that only
//! compile, such as RADV without its hardware.

use shaders::{Kernel, WeightType};

use super::device::{Device, DeviceOptions};
use super::error::VulkanError;
use super::instance::DeviceInfo;
use super::kernels::linear::Method;
use super::kernels::{
    attention, embed, gated, gather, kv_store, linear, moe_sum, rms_norm, rope, route, scale_by_sigmoid, swiglu,
};
use super::pipelines::{Pipelines, Variant};
use super::tuning::Tuning;
use crate::model::{Activation, MoeConfig, RopeLayout};

/// Head sizes of the models that the engine is made for.
const HEAD_DIMS: [usize; 4] = [64, 80, 128, 256];
/// Largest batch that variants are listed for.
const N_BATCH: usize = 512;
/// Experts, and experts per token, of the models that the engine is made for.
const EXPERTS: [(usize, usize); 3] = [(32, 4), (128, 4), (128, 8)];

/// A device opened to look at compiled kernels.
pub struct Inspector {
    pipelines: Pipelines,
    info: DeviceInfo,
}

impl Inspector {
    /// Opens the device with this index or part of a name; without a selector the best one.
    pub fn open(selector: Option<&str>) -> Result<Inspector, VulkanError> {
        let device = Device::open(DeviceOptions { selector, ..DeviceOptions::default() }, true)?;
        Ok(Inspector { info: device.info.clone(), pipelines: Pipelines::new(device)? })
    }

    /// What device this is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Every variant that the backend uses on this device.
    pub fn variants(&self) -> Vec<Variant> {
        let t = &Tuning::of(&self.info);
        let mut all: Vec<Variant> = WeightType::ALL.iter().flat_map(|&ty| linear::variants(t, ty, N_BATCH)).collect();
        all.extend(WeightType::ALL.iter().map(|&ty| embed::variant(t, ty)));
        let methods = Method::all(N_BATCH, |n| Method::of_experts(t, n, EXPERTS[0].0, EXPERTS[0].1));
        for ty in WeightType::ALL {
            // gpt-oss's activation with the type of its experts.
            let activation = if ty == WeightType::MXFP4 { Activation::SwigluOai } else { Activation::Swiglu };
            all.extend(linear::expert_variants(t, ty, &methods));
            all.extend(gated::variants(t, ty, activation, &methods, true));
        }
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
        all.extend(HEAD_DIMS.iter().map(|&d| attention::variant(t, d)));
        all.extend([RopeLayout::Interleaved, RopeLayout::Neox].map(|layout| rope::variant(t, layout)));
        all.extend([rms_norm::variant(t), kv_store::variant(t), gather::variant(t)]);
        debug_assert!(Kernel::all().all(|k| all.iter().any(|v| v.kernel == k)), "every kernel is used");
        all
    }

    /// Name and value of each of the driver's statistics of a variant; none where the driver gives none.
    pub fn statistics(&mut self, variant: &Variant) -> Result<Vec<(String, f64)>, VulkanError> {
        self.pipelines.statistics(variant)
    }
}
