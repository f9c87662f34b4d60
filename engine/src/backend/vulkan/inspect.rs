//! What a driver makes of the kernels: compiles every variant that a device would use and gives the driver's
//! statistics (registers, spills, code size). Needs no memory and runs nothing, so it works on drivers that only
//! compile, such as RADV without its hardware.

use shaders::{Kernel, WeightType};

use super::device::{Device, DeviceOptions};
use super::error::VulkanError;
use super::instance::DeviceInfo;
use super::kernels::{attention, embed, gather, kv_store, linear, rms_norm, rope, swiglu};
use super::pipelines::{Pipelines, Variant};
use super::tuning::Tuning;
use crate::model::RopeLayout;

/// Head sizes of the models that the engine is made for.
const HEAD_DIMS: [usize; 4] = [64, 80, 128, 256];
/// Largest batch that variants are listed for.
const N_BATCH: usize = 512;

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
        all.extend(HEAD_DIMS.iter().map(|&d| attention::variant(t, d)));
        all.extend([RopeLayout::Interleaved, RopeLayout::Neox].map(|layout| rope::variant(t, layout)));
        all.extend([rms_norm::variant(t), kv_store::variant(t), swiglu::variant(t), gather::variant(t)]);
        debug_assert!(Kernel::all().all(|k| all.iter().any(|v| v.kernel == k)), "every kernel is used");
        all
    }

    /// Name and value of each of the driver's statistics of a variant; none where the driver gives none.
    pub fn statistics(&mut self, variant: &Variant) -> Result<Vec<(String, f64)>, VulkanError> {
        self.pipelines.statistics(variant)
    }
}
