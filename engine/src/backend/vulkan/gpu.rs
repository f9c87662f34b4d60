//! An open device with everything that kernels need to run on it: memory, pipelines, the command buffer, tile sizes.
//! The backend owns one; kernel tests and tools open their own.

use super::commands::{Commands, Cost};
use super::device::{Device, DeviceOptions};
use super::error::VulkanError;
use super::instance::DeviceInfo;
use super::memory::{Memory, MemoryUse, Region};
use super::pipelines::{Pipelines, Variant};
use super::profile::{Clock, PassStats};
use super::tune::{Stored, Value};
use super::tuning::Tuning;
use super::weights::{self, Weight};
use crate::backend::TensorView;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A dispatch of a profiled pass.
#[derive(Clone, Debug)]
pub struct DispatchTime {
    /// The kernel and its constants.
    pub variant: Variant,
    /// What it must move and compute at least.
    pub cost: Cost,
    /// Nanoseconds on the device.
    pub ns: f64,
}

/// A device ready to run kernels. Fields are dropped in order: commands first, the device itself last.
pub struct Gpu {
    pub(super) commands: Commands,
    pub(super) pipelines: Pipelines,
    pub(super) memory: Memory,
    pub(super) staging: Option<Region>,
    /// Where activations are put in f16 for the matrix units.
    pub(super) half_rows: Option<Region>,
    pub(super) staged_uploads: bool,
    pub(super) tuning: Tuning,
    stored: Stored,
    device: Arc<Device>,
}

impl Gpu {
    /// Opens a device.
    pub fn open(options: DeviceOptions<'_>) -> Result<Gpu, VulkanError> {
        let device = Device::open(options, false)?;
        let stored = Stored::of(&device);
        let tuning = stored.apply(Tuning::of(&device.info));
        Ok(Gpu {
            commands: Commands::new(device.clone(), tuning.pace())?,
            pipelines: Pipelines::new(device.clone())?,
            memory: Memory::new(device.clone())?,
            staging: None,
            half_rows: None,
            staged_uploads: options.staged_uploads,
            tuning,
            stored,
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

    /// The user's file of sizes measured on this device.
    pub fn stored_tuning(&self) -> &Stored {
        &self.stored
    }

    /// Replaces the user's file of sizes of this device, and gives its path. The sizes in use stay.
    ///
    /// # Errors
    /// There is no place for the file, or it can't be written.
    pub fn store_tuning(&self, values: &BTreeMap<String, Value>) -> std::io::Result<PathBuf> {
        Stored::write(&self.device, values)
    }

    /// Uses other sizes from here on.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        self.commands.set_pace(tuning.pace());
    }

    /// Takes device memory; `what` is named if there is none left. Contents are undefined.
    pub fn allocate(&mut self, usage: MemoryUse, bytes: u64, what: &str) -> Result<Region, VulkanError> {
        self.memory.allocate(usage, bytes, what)
    }

    /// Copies a weight tensor to the device, in the kernels' layout.
    pub fn upload(&mut self, tensor: TensorView<'_>) -> Result<Weight, VulkanError> {
        weights::upload(self, tensor)
    }

    /// Makes room for f16 activations of so many bytes (see [`half_rows::bytes`](super::kernels::half_rows::bytes)).
    pub fn reserve_half_rows(&mut self, bytes: u64) -> Result<(), VulkanError> {
        if self.half_rows.is_none_or(|region| region.bytes < bytes) {
            self.half_rows = Some(self.allocate(MemoryUse::Device, bytes, "activations in f16")?);
        }
        Ok(())
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

    /// Variants that are compiled by now.
    pub fn n_pipelines(&self) -> usize {
        self.pipelines.len()
    }

    /// What the last pass was made of.
    pub fn last_pass(&self) -> PassStats {
        self.commands.last_pass()
    }

    /// Names of the kernels in the recording so far, each once.
    pub(super) fn recorded_kernels(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for &pipeline in self.commands.pipelines() {
            let name = self.pipelines.variant_of(pipeline).map(|v| v.kernel.name());
            names.extend(name.filter(|n| !names.contains(n)));
        }
        names
    }

    /// From the next pass on, times every dispatch or stops to. False where the device has no timestamps.
    pub fn set_profiling(&mut self, on: bool) -> bool {
        self.commands.clock.as_mut().map(|clock| clock.set_profiling(on)).is_some()
    }

    /// The dispatches of the last pass, if it was profiled.
    pub fn take_profile(&mut self) -> Vec<DispatchTime> {
        let timed = self.commands.clock.as_mut().map(Clock::take_timed).unwrap_or_default();
        let variant = |pipeline| self.pipelines.variant_of(pipeline).cloned();
        timed
            .iter()
            .filter_map(|t| Some(DispatchTime { variant: variant(t.pipeline)?, cost: t.cost, ns: t.ns }))
            .collect()
    }

    /// The largest number of workgroups in each direction.
    pub(super) fn max_groups(&self) -> [u32; 3] {
        self.device.limits.max_compute_work_group_count
    }
}
