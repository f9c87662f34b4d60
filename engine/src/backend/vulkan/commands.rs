//! A pass: recorded anew each time, submitted and waited for. A decoded token is one submit; a long prompt is cut into
//! several, so that none takes long enough for the system to think that the GPU hangs. Barriers are put where an op
//! touches memory that an earlier op of the pass wrote, or writes what it read: an op can only get at a region's
//! address through [`Op::reads`] or [`Op::writes`], which say so.

use std::sync::Arc;

use ash::vk;

use super::device::Device;
use super::error::{VulkanError, check};
use super::memory::Region;
use super::pipelines::Pipeline;
use super::profile::{Clock, PassStats};

/// Longest wait for one submit. Software devices need minutes for a long prompt; a hung GPU is reset long before.
const WAIT_SECONDS: u64 = 600;

/// What one submit should take on the device: systems reset a GPU whose submit takes seconds, and a desktop waits for it.
const SUBMIT_NS: f64 = 200e6;
/// Passes shorter than this say little of how fast the device is: launches and waits are most of them.
const MIN_PACE_NS: u64 = 20_000_000;
/// The budget is at most this many times more or less than the table's.
const MAX_PACE: f64 = 64.0;

/// Records and runs passes.
pub(super) struct Commands {
    device: Arc<Device>,
    pool: vk::CommandPool,
    /// The one that is recorded stands last of those in use; the others of this pass were submitted.
    buffers: Vec<vk::CommandBuffer>,
    n_used: usize,
    fence: vk::Fence,
    hazards: Hazards,
    recording: bool,
    /// Set while submits of an unfinished pass may be running.
    in_flight: bool,
    /// Set when the device stopped answering: nothing can be recorded any more.
    lost: bool,
    budget: Cost,
    /// Share of the budget after which a pass is cut: learned from the time of earlier passes.
    pace: f64,
    recorded: Cost,
    pub clock: Option<Clock>,
    stats: PassStats,
    /// What was started in this pass.
    pipelines: Vec<vk::Pipeline>,
}

/// What an op must move and compute at least: the basis of submit budgets and of rooflines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read from memory, each once.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Floating-point operations; a multiply-add is two.
    pub flops: u64,
}

impl Cost {
    pub(super) fn add(&mut self, other: Cost) {
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.flops += other.flops;
    }

    /// How much of `budget` this is, 1 being all of it.
    fn share_of(&self, budget: Cost) -> f64 {
        let share = |used: u64, all: u64| used as f64 / all.max(1) as f64;
        share(self.read_bytes, budget.read_bytes)
            + share(self.written_bytes, budget.written_bytes)
            + share(self.flops, budget.flops)
    }
}

impl Commands {
    pub fn new(device: Arc<Device>, budget: Cost) -> Result<Commands, VulkanError> {
        let pool_info = vk::CommandPoolCreateInfo::default().queue_family_index(device.queue_family);
        // SAFETY: the device is alive; what is made here is destroyed in `drop`, also if a later step fails.
        let pool = check("vkCreateCommandPool", unsafe { device.raw.create_command_pool(&pool_info, None) })?;
        let mut commands = Commands {
            device,
            pool,
            buffers: Vec::new(),
            n_used: 0,
            fence: vk::Fence::null(),
            hazards: Hazards::default(),
            recording: false,
            in_flight: false,
            lost: false,
            budget,
            pace: 1.0,
            recorded: Cost::default(),
            clock: None,
            stats: PassStats::default(),
            pipelines: Vec::new(),
        };
        commands.clock = Clock::new(commands.device.clone())?;
        let raw = &commands.device.raw;
        // SAFETY: the device is alive.
        commands.fence = check("vkCreateFence", unsafe { raw.create_fence(&vk::FenceCreateInfo::default(), None) })?;
        Ok(commands)
    }

    /// Work after which a pass goes on in another submit.
    pub fn set_budget(&mut self, budget: Cost) {
        (self.budget, self.pace) = (budget, 1.0);
    }

    /// Starts recording; what was recorded and not submitted is forgotten.
    pub fn begin(&mut self) -> Result<(), VulkanError> {
        if self.lost {
            return Err(VulkanError::DeviceLost { during: "an earlier pass" });
        }
        self.hazards = Hazards::default();
        self.recording = false;
        self.n_used = 0;
        if self.in_flight {
            // The last pass was given up after a part of it was submitted.
            // SAFETY: the device is alive and used by this thread alone.
            check("vkDeviceWaitIdle", unsafe { self.device.raw.device_wait_idle() })?;
            self.in_flight = false;
        }
        // SAFETY: no buffer of the pool is executing: every pass was waited for, or `lost` was set.
        let reset = unsafe { self.device.raw.reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty()) };
        check("vkResetCommandPool", reset)?;
        self.begin_buffer()?;
        self.recording = true;
        self.stats = PassStats::default();
        self.pipelines.clear();
        let buffer = self.buffer();
        if let Some(clock) = &mut self.clock {
            clock.begin(buffer);
        }
        // What earlier passes wrote (the cache, weights copied through staging) becomes visible to this one.
        self.barrier();
        Ok(())
    }

    /// Takes another command buffer and starts to record it.
    fn begin_buffer(&mut self) -> Result<(), VulkanError> {
        let raw = &self.device.raw;
        if self.n_used == self.buffers.len() {
            let info = vk::CommandBufferAllocateInfo::default()
                .command_pool(self.pool)
                .level(vk::CommandBufferLevel::PRIMARY)
                .command_buffer_count(1);
            // SAFETY: pool and device are alive.
            let new = check("vkAllocateCommandBuffers", unsafe { raw.allocate_command_buffers(&info) })?;
            self.buffers.extend(new);
        }
        let info = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: the buffer is in the initial state: fresh, or its pool was reset.
        check("vkBeginCommandBuffer", unsafe { raw.begin_command_buffer(self.buffers[self.n_used], &info) })?;
        self.n_used += 1;
        self.recorded = Cost::default();
        Ok(())
    }

    /// The buffer that is recorded.
    fn buffer(&self) -> vk::CommandBuffer {
        self.buffers[self.n_used - 1]
    }

    /// Whether a pass is being recorded.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// An op whose regions are named next.
    pub fn op(&mut self) -> Op<'_> {
        assert!(self.recording, "an op is recorded between begin and submit");
        Op { commands: self, reads: Vec::new(), writes: Vec::new() }
    }

    /// Ends the recording, submits it and waits until all of the pass is done.
    pub fn submit_and_wait(&mut self) -> Result<(), VulkanError> {
        assert!(self.recording, "a recorded pass is submitted");
        self.recording = false;
        let buffer = self.buffer();
        if let Some(clock) = &mut self.clock {
            clock.end(buffer);
        }
        // What kernels and copies wrote becomes visible to the processor.
        let to_host = vk::MemoryBarrier2::default()
            .src_stage_mask(vk::PipelineStageFlags2::COMPUTE_SHADER | vk::PipelineStageFlags2::TRANSFER)
            .src_access_mask(vk::AccessFlags2::SHADER_WRITE | vk::AccessFlags2::TRANSFER_WRITE)
            .dst_stage_mask(vk::PipelineStageFlags2::HOST)
            .dst_access_mask(vk::AccessFlags2::HOST_READ);
        let barriers = [to_host];
        // SAFETY: the buffer is in the recording state.
        unsafe {
            let info = vk::DependencyInfo::default().memory_barriers(&barriers);
            self.device.raw.cmd_pipeline_barrier2(self.buffer(), &info);
        }
        // Until the wait has succeeded, what was submitted may still be running.
        self.lost = true;
        self.submit(self.fence)?;
        // SAFETY: the fence was submitted just now and is used by this pass alone.
        unsafe {
            let raw = &self.device.raw;
            let waited = raw.wait_for_fences(&[self.fence], true, WAIT_SECONDS * 1_000_000_000);
            if waited == Err(vk::Result::TIMEOUT) {
                return Err(VulkanError::Timeout { seconds: WAIT_SECONDS });
            }
            check("vkWaitForFences", waited)?;
            check("vkResetFences", raw.reset_fences(&[self.fence]))?;
        }
        (self.lost, self.in_flight) = (false, false);
        self.stats.n_submits += 1;
        if let Some(clock) = &mut self.clock {
            let ns = clock.read()?;
            self.stats.device_ns = Some(ns);
            self.pace = next_pace(self.pace, self.stats.cost.share_of(self.budget), ns);
        }
        self.device.check_validation()
    }

    /// What was started in this pass so far, in order.
    pub fn pipelines(&self) -> &[vk::Pipeline] {
        &self.pipelines
    }

    /// What the last pass was made of.
    pub fn last_pass(&self) -> PassStats {
        self.stats
    }

    /// Ends the buffer that is recorded and submits it; `fence` may be null.
    fn submit(&self, fence: vk::Fence) -> Result<(), VulkanError> {
        let raw = &self.device.raw;
        let buffers = [vk::CommandBufferSubmitInfo::default().command_buffer(self.buffer())];
        let submits = [vk::SubmitInfo2::default().command_buffer_infos(&buffers)];
        // SAFETY: the buffer is in the recording state; buffer and fence outlive the wait at the end of the pass.
        unsafe {
            check("vkEndCommandBuffer", raw.end_command_buffer(self.buffer()))?;
            check("vkQueueSubmit2", raw.queue_submit2(self.device.queue, &submits, fence))
        }
    }

    /// Goes on in another submit if this one has enough work. Barriers reach across submits to one queue, so the
    /// hazards stay as they are.
    fn cut(&mut self) -> Result<(), VulkanError> {
        if self.recorded.share_of(self.budget) < self.pace {
            return Ok(());
        }
        self.recording = false;
        self.lost = true;
        self.submit(vk::Fence::null())?;
        self.stats.n_submits += 1;
        self.in_flight = true;
        self.begin_buffer()?;
        self.lost = false;
        self.recording = true;
        Ok(())
    }

    fn barrier(&mut self) {
        let stages = vk::PipelineStageFlags2::COMPUTE_SHADER | vk::PipelineStageFlags2::TRANSFER;
        let writes = vk::AccessFlags2::SHADER_WRITE | vk::AccessFlags2::TRANSFER_WRITE;
        let reads = vk::AccessFlags2::SHADER_READ | vk::AccessFlags2::TRANSFER_READ;
        let all = vk::MemoryBarrier2::default()
            .src_stage_mask(stages)
            .src_access_mask(writes)
            .dst_stage_mask(stages)
            .dst_access_mask(reads | writes);
        let barriers = [all];
        // SAFETY: the buffer is in the recording state.
        unsafe {
            let info = vk::DependencyInfo::default().memory_barriers(&barriers);
            self.device.raw.cmd_pipeline_barrier2(self.buffer(), &info);
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        // SAFETY: after the wait nothing of this is in use. If the device was lost or timed out the wait returns an
        // error, and there is nothing better to do than to go on.
        unsafe {
            let _ = self.device.raw.device_wait_idle();
            self.clock = None;
            self.device.raw.destroy_fence(self.fence, None);
            self.device.raw.destroy_command_pool(self.pool, None);
        }
    }
}

/// The share of the budget that a submit gets after a pass of `share` has taken `ns`: half-way to what would have made
/// it [`SUBMIT_NS`].
fn next_pace(pace: f64, share: f64, ns: u64) -> f64 {
    if ns < MIN_PACE_NS || share <= 0.0 {
        return pace;
    }
    let wanted = SUBMIT_NS * share / ns as f64;
    (0.5 * (pace + wanted)).clamp(1.0 / MAX_PACE, MAX_PACE)
}

/// One dispatch or copy, with the memory it touches.
pub(super) struct Op<'c> {
    commands: &'c mut Commands,
    reads: Vec<Span>,
    writes: Vec<Span>,
}

impl Op<'_> {
    /// Address of a region that the op only reads.
    pub fn reads(&mut self, region: &Region) -> ReadAddress {
        self.reads.push(Span::of(region));
        ReadAddress(region.address)
    }

    /// Address of a region that the op writes (and may read).
    pub fn writes(&mut self, region: &Region) -> WriteAddress {
        self.writes.push(Span::of(region));
        WriteAddress(region.address)
    }

    /// Runs `pipeline` over `groups` workgroups, which is `cost` of work.
    ///
    /// # Panics
    /// If the push constants are not of the size that the kernel declares, or the grid is empty.
    pub fn dispatch<P: bytemuck::NoUninit>(
        mut self,
        pipeline: Pipeline,
        groups: [u32; 3],
        push: &P,
        cost: Cost,
    ) -> Result<(), VulkanError> {
        let bytes = bytemuck::bytes_of(push);
        assert_eq!(bytes.len(), pipeline.push_bytes as usize, "size of the push constants");
        assert!(groups.iter().all(|&n| n > 0), "workgroups {groups:?}");
        self.guard();
        let buffer = self.commands.buffer();
        if let Some(clock) = &mut self.commands.clock {
            clock.before(buffer);
        }
        let raw = &self.commands.device.raw;
        // SAFETY: the buffer is recording; pipeline and layout live in `Pipelines`, which the backend drops after its
        // commands; the addresses in `push` are of live regions large enough, which the kernel's `record` checked.
        unsafe {
            raw.cmd_bind_pipeline(buffer, vk::PipelineBindPoint::COMPUTE, pipeline.raw);
            raw.cmd_push_constants(buffer, pipeline.layout, vk::ShaderStageFlags::COMPUTE, 0, bytes);
            raw.cmd_dispatch(buffer, groups[0], groups[1], groups[2]);
        }
        if let Some(clock) = &mut self.commands.clock {
            clock.after(buffer, pipeline.raw, cost);
        }
        self.commands.pipelines.push(pipeline.raw);
        self.commands.stats.n_dispatches += 1;
        self.commands.stats.cost.add(cost);
        self.commands.recorded.add(cost);
        self.commands.cut()
    }

    /// Copies `from` to the region `to` of the same size.
    pub fn copy(mut self, from: &Region, to: &Region) {
        assert_eq!(from.bytes, to.bytes, "a copy keeps the size");
        self.reads(from);
        self.writes(to);
        self.guard();
        let regions = [vk::BufferCopy { src_offset: from.offset, dst_offset: to.offset, size: from.bytes }];
        // SAFETY: both ranges lie in live buffers made for transfers, and do not overlap.
        unsafe { self.commands.device.raw.cmd_copy_buffer(self.commands.buffer(), from.buffer, to.buffer, &regions) };
    }

    /// Sets all bytes of `region` to zero.
    pub fn zero(mut self, region: &Region) {
        self.writes(region);
        self.guard();
        // SAFETY: the range lies in a live buffer made for transfers; regions are aligned to 256 bytes.
        unsafe {
            let (raw, buffer) = (&self.commands.device.raw, self.commands.buffer());
            raw.cmd_fill_buffer(buffer, region.buffer, region.offset, region.bytes, 0);
        }
    }

    /// A barrier if this op depends on one since the last barrier.
    fn guard(&mut self) {
        let is_timed = self.commands.clock.as_ref().is_some_and(Clock::is_profiling);
        if is_timed || self.commands.hazards.conflict(&self.reads, &self.writes) {
            self.commands.barrier();
            self.commands.stats.n_barriers += 1;
            self.commands.hazards = Hazards::default();
        }
        self.commands.hazards.reads.append(&mut self.reads);
        self.commands.hazards.writes.append(&mut self.writes);
    }
}

/// A push constant: address of memory that a kernel only reads.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct ReadAddress(u64);

impl ReadAddress {
    /// For a buffer that the kernel is told not to read.
    pub const NONE: ReadAddress = ReadAddress(0);

    /// Address of memory that no op writes (weights): it needs no barriers.
    pub fn of_constant(region: &Region) -> ReadAddress {
        ReadAddress(region.address)
    }
}

/// A push constant: address of memory that a kernel writes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct WriteAddress(u64);

impl WriteAddress {
    /// For a buffer that the kernel is told not to write.
    pub const NONE: WriteAddress = WriteAddress(0);
}

/// Device addresses `start .. end`.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    fn of(region: &Region) -> Span {
        Span { start: region.address, end: region.address + region.bytes }
    }

    fn meets(self, other: Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What was touched since the last barrier.
#[derive(Default)]
struct Hazards {
    reads: Vec<Span>,
    writes: Vec<Span>,
}

impl Hazards {
    /// Whether an op with these accesses must wait: read after write, write after write, write after read.
    fn conflict(&self, reads: &[Span], writes: &[Span]) -> bool {
        let meet = |a: &[Span], b: &[Span]| a.iter().any(|x| b.iter().any(|y| x.meets(*y)));
        meet(reads, &self.writes) || meet(writes, &self.writes) || meet(writes, &self.reads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_used_up_by_any_of_its_parts() {
        let budget = Cost { read_bytes: 100, written_bytes: 100, flops: 1000 };
        let mut used = Cost { read_bytes: 50, written_bytes: 0, flops: 250 };
        assert_eq!(used.share_of(budget), 0.75);
        used.add(Cost { written_bytes: 25, ..Cost::default() });
        assert_eq!(used.share_of(budget), 1.0);
        assert!(Cost { flops: 1, ..Cost::default() }.share_of(Cost::default()) >= 1.0, "an empty budget");
    }

    #[test]
    fn submits_come_to_take_their_time_whatever_the_table_says() {
        // A device that takes 1 s for what the table thinks takes 200 ms, and one that takes 20 ms.
        for (ns_per_share, expected) in [(1e9, 0.2), (2e7, 10.0)] {
            let pace = (0..20).fold(1.0, |pace, _| next_pace(pace, 4.0, (4.0 * ns_per_share) as u64));
            assert!((pace / expected - 1.0).abs() < 1e-3, "{pace}");
        }
        assert_eq!(next_pace(0.5, 4.0, 1_000), 0.5, "a short pass says nothing");
        assert_eq!(next_pace(1.0, 0.0, 1_000_000_000), 1.0, "nor one without work");
        assert_eq!((0..20).fold(1.0, |pace, _| next_pace(pace, 1e-9, 1_000_000_000)), 1.0 / MAX_PACE);
    }

    #[test]
    fn an_op_waits_for_what_it_depends_on_and_nothing_else() {
        let span = |start, end| Span { start, end };
        let (a, b, c) = (span(0, 10), span(10, 20), span(20, 30));
        let since = Hazards { reads: vec![a], writes: vec![b] };
        assert!(since.conflict(&[b], &[c]), "read after write");
        assert!(since.conflict(&[], &[b]), "write after write");
        assert!(since.conflict(&[c], &[a]), "write after read");
        assert!(since.conflict(&[span(19, 21)], &[]), "a byte in common is enough");
        assert!(!since.conflict(&[a], &[c]), "two reads of the same go together");
        assert!(!since.conflict(&[], &[]));
    }
}
