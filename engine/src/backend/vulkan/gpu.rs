//! An open device with everything that kernels need to run on it: memory, pipelines, the command buffer, tile sizes.
//! The backend owns one; kernel tests and tools open their own.

use super::commands::Commands;
use super::device::{Device, DeviceOptions};
use super::error::VulkanError;
use super::instance::DeviceInfo;
use super::memory::{Memory, MemoryUse, Region};
use super::pipelines::{Pipelines, Variant};
use super::tuning::Tuning;
use super::weights::{self, Weight};
use crate::backend::TensorView;
use std::sync::Arc;

/// A device ready to run kernels. Fields are dropped in order: commands first, the device itself last.
pub struct Gpu {
    pub(super) commands: Commands,
    pub(super) pipelines: Pipelines,
    pub(super) memory: Memory,
    pub(super) staging: Option<Region>,
    pub(super) staged_uploads: bool,
    pub(super) tuning: Tuning,
    device: Arc<Device>,
}

impl Gpu {
    /// Opens a device.
    pub fn open(options: DeviceOptions<'_>) -> Result<Gpu, VulkanError> {
        let device = Device::open(options, false)?;
        let tuning = Tuning::of(&device.info);
        Ok(Gpu {
            commands: Commands::new(device.clone(), tuning.submit_budget)?,
            pipelines: Pipelines::new(device.clone())?,
            memory: Memory::new(device.clone())?,
            staging: None,
            staged_uploads: options.staged_uploads,
            tuning,
            device,
        })
    }

    /// What device this is.
    pub fn info(&self) -> &DeviceInfo {
        &self.device.info
    }

    /// Sizes of workgroups and tiles in use.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Uses other sizes from here on.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        self.commands.set_budget(tuning.submit_budget);
    }

    /// Takes device memory; `what` is named if there is none left. Contents are undefined.
    pub fn allocate(&mut self, usage: MemoryUse, bytes: u64, what: &str) -> Result<Region, VulkanError> {
        self.memory.allocate(usage, bytes, what)
    }

    /// Copies a weight tensor to the device, in the kernels' layout.
    pub fn upload(&mut self, tensor: TensorView<'_>) -> Result<Weight, VulkanError> {
        weights::upload(self, tensor)
    }

    /// Starts to record kernels.
    pub fn begin(&mut self) -> Result<(), VulkanError> {
        self.commands.begin()
    }

    /// Records a copy between two regions of the same size.
    pub fn copy(&mut self, from: &Region, to: &Region) {
        self.commands.op().copy(from, to);
    }

    /// Records the zeroing of a region.
    pub fn zero(&mut self, region: &Region) {
        self.commands.op().zero(region);
    }

    /// Runs what was recorded and waits for it. Objections of the validation layer are an error.
    pub fn submit_and_wait(&mut self) -> Result<(), VulkanError> {
        self.commands.submit_and_wait()
    }

    /// Compiles variants ahead of their first use, on all cores.
    pub fn prepare(&mut self, variants: &[Variant]) -> Result<(), VulkanError> {
        self.pipelines.prepare(variants)
    }

    /// The largest number of workgroups in each direction.
    pub(super) fn max_groups(&self) -> [u32; 3] {
        self.device.limits.max_compute_work_group_count
    }
}
