//! When things happen on the device: the start and end of every pass, and while profiling of every dispatch, by
//! timestamps that the device writes itself. A profiled pass waits after each dispatch for all of it, so that a time
//! belongs to one kernel; it is slower than the same pass unprofiled. Devices without timestamps have no clock.

use std::sync::Arc;

use ash::vk;

use super::commands::Cost;
use super::device::Device;
use super::error::{VulkanError, check};

/// Dispatches of a pass that can be told apart; later ones have no times.
const MAX_DISPATCHES: u32 = 8192;
/// Queries: start and end of the pass, then those of each dispatch.
const N_QUERIES: u32 = 2 + 2 * MAX_DISPATCHES;

/// What a pass was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassStats {
    /// Kernels that were started.
    pub n_dispatches: u32,
    /// Submits that the pass was cut into.
    pub n_submits: u32,
    /// Waits of one dispatch for earlier ones.
    pub n_barriers: u32,
    /// What it must move and compute at least.
    pub cost: Cost,
    /// Nanoseconds on the device, from the start of the first to the end of the last; `None` without timestamps.
    pub device_ns: Option<u64>,
}

/// A dispatch of a profiled pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timed {
    pub pipeline: vk::Pipeline,
    pub cost: Cost,
    pub ns: f64,
}

/// A device's timestamps.
pub(super) struct Clock {
    device: Arc<Device>,
    pool: vk::QueryPool,
    /// Bits of a timestamp that count.
    mask: u64,
    ns_per_tick: f64,
    is_profiling: bool,
    dispatches: Vec<(vk::Pipeline, Cost)>,
    timed: Vec<Timed>,
}

impl Clock {
    /// The clock of `device`, if its queue has one.
    pub fn new(device: Arc<Device>) -> Result<Option<Clock>, VulkanError> {
        if device.timestamp_bits == 0 {
            return Ok(None);
        }
        let info = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(N_QUERIES);
        // SAFETY: the device is alive; the pool is destroyed with the clock.
        let pool = check("vkCreateQueryPool", unsafe { device.raw.create_query_pool(&info, None) })?;
        let mask = if device.timestamp_bits >= 64 { u64::MAX } else { (1 << device.timestamp_bits) - 1 };
        let ns_per_tick = f64::from(device.limits.timestamp_period);
        let (dispatches, timed) = (Vec::new(), Vec::new());
        Ok(Some(Clock { device, pool, mask, ns_per_tick, is_profiling: false, dispatches, timed }))
    }

    /// From the next pass on, whether every dispatch is timed.
    pub fn set_profiling(&mut self, on: bool) {
        self.is_profiling = on;
    }

    /// Whether every dispatch is timed.
    pub fn is_profiling(&self) -> bool {
        self.is_profiling
    }

    /// The dispatches of the last profiled pass.
    pub fn take_timed(&mut self) -> Vec<Timed> {
        std::mem::take(&mut self.timed)
    }

    /// The pass begins with what follows in `buffer`, which is being recorded.
    pub fn begin(&mut self, buffer: vk::CommandBuffer) {
        self.dispatches.clear();
        self.timed.clear();
        let n = if self.is_profiling { N_QUERIES } else { 2 };
        // SAFETY: the buffer is in the recording state, outside of any query; no submit uses the pool.
        unsafe { self.device.raw.cmd_reset_query_pool(buffer, self.pool, 0, n) };
        self.mark(buffer, 0);
    }

    /// A dispatch follows.
    pub fn before(&mut self, buffer: vk::CommandBuffer) {
        if self.is_profiling && self.has_room() {
            self.mark(buffer, self.query());
        }
    }

    /// It was recorded.
    pub fn after(&mut self, buffer: vk::CommandBuffer, pipeline: vk::Pipeline, cost: Cost) {
        if self.is_profiling && self.has_room() {
            self.mark(buffer, self.query() + 1);
            self.dispatches.push((pipeline, cost));
        }
    }

    /// The pass ends here.
    pub fn end(&mut self, buffer: vk::CommandBuffer) {
        self.mark(buffer, 1);
    }

    /// Nanoseconds of the pass, which was waited for.
    pub fn read(&mut self) -> Result<u64, VulkanError> {
        let mut ticks = vec![0u64; 2 + 2 * self.dispatches.len()];
        let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        // SAFETY: these queries were written in a pass that was waited for.
        let read = unsafe { self.device.raw.get_query_pool_results(self.pool, 0, &mut ticks, flags) };
        check("vkGetQueryPoolResults", read)?;
        let ns = |pair: &[u64]| (pair[1].wrapping_sub(pair[0]) & self.mask) as f64 * self.ns_per_tick;
        let times = ticks[2..].chunks_exact(2).map(ns);
        let timed = self.dispatches.iter().zip(times).map(|(&(pipeline, cost), ns)| Timed { pipeline, cost, ns });
        self.timed = timed.collect();
        Ok(ns(&ticks[..2]) as u64)
    }

    fn has_room(&self) -> bool {
        self.dispatches.len() < MAX_DISPATCHES as usize
    }

    /// First query of the next dispatch.
    fn query(&self) -> u32 {
        2 + 2 * self.dispatches.len() as u32
    }

    fn mark(&self, buffer: vk::CommandBuffer, query: u32) {
        // All commands before this one are done when it is written.
        let stage = vk::PipelineStageFlags2::ALL_COMMANDS;
        // SAFETY: the buffer is in the recording state and the query was reset in this pass.
        unsafe { self.device.raw.cmd_write_timestamp2(buffer, stage, self.pool, query) };
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // SAFETY: no submit is running: the commands wait for the device before they drop their clock.
        unsafe { self.device.raw.destroy_query_pool(self.pool, None) };
    }
}
