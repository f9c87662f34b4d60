//! A pass: recorded anew each time, submitted and waited for. A decoded token is one submit and one wait; a long prompt
//! is cut into several, so that none takes long enough for the system to think that the GPU hangs. How much goes into one
//! follows from what earlier ones took (`pace`), by the device's own clock or, where it has none, by the processor's; two
//! are under way at most, so that a prompt of many submits is already cut by what its first ones took. Barriers are put
//! where an op touches memory that an earlier op of the pass wrote, or writes what it read: an op can only get at a
//! region's address through [`Op::reads`] or [`Op::writes`], which say so.

use std::sync::Arc;
use std::time::Instant;

use ash::vk;

use super::device::Device;
use super::error::{VulkanError, check};
use super::memory::Region;
use super::pace::Pace;
use super::pipelines::Pipeline;
use super::profile::{Clock, PassStats};

/// Longest wait for one submit. Software devices need minutes for a long prompt; a hung GPU is reset long before.
const WAIT_SECONDS: u64 = 600;

/// Submits of a pass that may be under way at once.
const IN_FLIGHT: usize = 2;
/// Submits of a pass that are measured; a longer one has taught enough by then.
const MEASURED: usize = 256;

/// Records and runs passes.
pub(super) struct Commands {
    device: Arc<Device>,
    pool: vk::CommandPool,
    /// The one that is recorded stands last of those in use; the others of this pass were submitted.
    submits: Vec<Submit>,
    n_used: usize,
    /// Submits of this pass that were waited for.
    n_done: usize,
    /// When the last of them was found to be done.
    done_at: Option<Instant>,
    /// Times of the begin and the end of each submit; null where the queue has no clock.
    times: vk::QueryPool,
    hazards: Hazards,
    recording: bool,
    /// Set when the device stopped answering: nothing can be recorded any more.
    lost: bool,
    pub clock: Option<Clock>,
    stats: PassStats,
    /// What was started in this pass.
    pipelines: Vec<vk::Pipeline>,
    pace: Pace,
    /// The pass should be one submit.
    whole: bool,
}

/// A command buffer and what is known of it.
struct Submit {
    buffer: vk::CommandBuffer,
    /// Signalled when it is done.
    fence: vk::Fence,
    work: Cost,
    /// When it was handed to the queue; before that, when it was made.
    submitted_at: Instant,
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
}

impl Commands {
    pub fn new(device: Arc<Device>, pace: Pace) -> Result<Commands, VulkanError> {
        let pool_info = vk::CommandPoolCreateInfo::default().queue_family_index(device.queue_family);
        // SAFETY: the device is alive; what is made here is destroyed in `drop`, also if a later step fails.
        let pool = check("vkCreateCommandPool", unsafe { device.raw.create_command_pool(&pool_info, None) })?;
        let mut commands = Commands {
            device,
            pool,
            submits: Vec::new(),
            n_used: 0,
            n_done: 0,
            done_at: None,
            times: vk::QueryPool::null(),
            hazards: Hazards::default(),
            recording: false,
            lost: false,
            pace,
            whole: false,
            clock: None,
            stats: PassStats::default(),
            pipelines: Vec::new(),
        };
        commands.clock = Clock::new(commands.device.clone())?;
        if commands.device.timestamp_bits > 0 {
            let info = vk::QueryPoolCreateInfo::default()
                .query_type(vk::QueryType::TIMESTAMP)
                .query_count(2 * MEASURED as u32);
            // SAFETY: the device is alive.
            let times = unsafe { commands.device.raw.create_query_pool(&info, None) };
            commands.times = check("vkCreateQueryPool", times)?;
        }
        Ok(commands)
    }

    /// Goes on with another expectation of the device and another budget.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// This pass is one submit, unless that would take several budgets.
    pub fn keep_whole(&mut self) {
        self.whole = true;
    }

    /// Starts recording; what was recorded and not submitted is forgotten.
    pub fn begin(&mut self) -> Result<(), VulkanError> {
        if self.lost {
            return Err(VulkanError::DeviceLost { during: "an earlier pass" });
        }
        self.hazards = Hazards::default();
        self.whole = false;
        // If the last pass was given up, parts of it may still run; what was recorded last was never submitted.
        if std::mem::take(&mut self.recording) {
            self.n_used -= 1;
            self.wait(self.n_used)?;
        }
        (self.n_used, self.n_done, self.done_at) = (0, 0, None);
        // SAFETY: no buffer of the pool is executing: every submit was waited for.
        let reset = unsafe { self.device.raw.reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty()) };
        check("vkResetCommandPool", reset)?;
        self.begin_submit()?;
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
    fn begin_submit(&mut self) -> Result<(), VulkanError> {
        let raw = &self.device.raw;
        if self.n_used == self.submits.len() {
            let info = vk::CommandBufferAllocateInfo::default()
                .command_pool(self.pool)
                .level(vk::CommandBufferLevel::PRIMARY)
                .command_buffer_count(1);
            // SAFETY: the device is alive.
            let fence = check("vkCreateFence", unsafe { raw.create_fence(&vk::FenceCreateInfo::default(), None) })?;
            // SAFETY: pool and device are alive.
            let buffers = unsafe { raw.allocate_command_buffers(&info) }.inspect_err(|_| {
                // SAFETY: nothing uses the fence yet.
                unsafe { raw.destroy_fence(fence, None) };
            });
            let buffer = check("vkAllocateCommandBuffers", buffers)?[0];
            self.submits.push(Submit { buffer, fence, work: Cost::default(), submitted_at: Instant::now() });
        }
        let submit = &mut self.submits[self.n_used];
        submit.work = Cost::default();
        let info = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: the buffer is in the initial state: fresh, or its pool was reset.
        check("vkBeginCommandBuffer", unsafe { raw.begin_command_buffer(submit.buffer, &info) })?;
        let buffer = submit.buffer;
        if let Some(first) = self.query(self.n_used) {
            // SAFETY: the buffer is in the recording state; the queries are of a submit that was waited for.
            unsafe {
                raw.cmd_reset_query_pool(buffer, self.times, first, 2);
                raw.cmd_write_timestamp2(buffer, vk::PipelineStageFlags2::ALL_COMMANDS, self.times, first);
            }
        }
        self.n_used += 1;
        Ok(())
    }

    /// The first of a submit's two queries, if it is measured.
    fn query(&self, submit: usize) -> Option<u32> {
        (self.times != vk::QueryPool::null() && submit < MEASURED).then_some(2 * submit as u32)
    }

    /// The buffer that is recorded.
    fn buffer(&self) -> vk::CommandBuffer {
        self.submits[self.n_used - 1].buffer
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
        self.submit()?;
        self.wait(self.n_used)?;
        self.stats.n_submits = self.n_used as u32;
        if let Some(clock) = &mut self.clock {
            self.stats.device_ns = Some(clock.read()?);
        }
        self.device.check_validation()
    }

    /// Ends the buffer that is recorded and submits it.
    fn submit(&mut self) -> Result<(), VulkanError> {
        let raw = &self.device.raw;
        let submit = &mut self.submits[self.n_used - 1];
        submit.submitted_at = Instant::now();
        let submit = &self.submits[self.n_used - 1];
        let buffers = [vk::CommandBufferSubmitInfo::default().command_buffer(submit.buffer)];
        let submits = [vk::SubmitInfo2::default().command_buffer_infos(&buffers)];
        // Until a wait has succeeded, what was submitted may still be running.
        self.lost = true;
        // SAFETY: the buffer is in the recording state, its fence unsignalled; both outlive the wait for it.
        unsafe {
            if let Some(first) = self.query(self.n_used - 1) {
                let stage = vk::PipelineStageFlags2::ALL_COMMANDS;
                raw.cmd_write_timestamp2(submit.buffer, stage, self.times, first + 1);
            }
            check("vkEndCommandBuffer", raw.end_command_buffer(submit.buffer))?;
            check("vkQueueSubmit2", raw.queue_submit2(self.device.queue, &submits, submit.fence))?;
        }
        self.lost = false;
        Ok(())
    }

    /// Waits for the first `n` submits of the pass, and learns what they took.
    fn wait(&mut self, n: usize) -> Result<(), VulkanError> {
        for i in self.n_done.min(n)..n {
            self.lost = true;
            let fence = [self.submits[i].fence];
            let raw = &self.device.raw;
            // SAFETY: the fence was submitted and is used by this pass alone.
            let was_done = unsafe { raw.get_fence_status(fence[0]) };
            let was_done = check("vkGetFenceStatus", was_done)?;
            // SAFETY: as above.
            let waited = unsafe { raw.wait_for_fences(&fence, true, WAIT_SECONDS * 1_000_000_000) };
            if waited == Err(vk::Result::TIMEOUT) {
                return Err(VulkanError::Timeout { seconds: WAIT_SECONDS });
            }
            check("vkWaitForFences", waited)?;
            // SAFETY: as above; its submit is done.
            check("vkResetFences", unsafe { raw.reset_fences(&fence) })?;
            self.learn(i, was_done)?;
            self.n_done = i + 1;
            self.lost = false;
        }
        Ok(())
    }

    /// Tells the pace what a submit took that was waited for; `was_done`: it was done before the wait.
    fn learn(&mut self, i: usize, was_done: bool) -> Result<(), VulkanError> {
        let now = Instant::now();
        // The queue does one after the other.
        let start = self.done_at.map_or(self.submits[i].submitted_at, |done| done.max(self.submits[i].submitted_at));
        self.done_at = Some(now);
        match self.measured(i)? {
            Some(seconds) => self.pace.observe(self.submits[i].work, seconds),
            None if was_done => self.pace.observe_at_most(self.submits[i].work, (now - start).as_secs_f64()),
            None => self.pace.observe(self.submits[i].work, (now - start).as_secs_f64()),
        }
        Ok(())
    }

    /// What was started in this pass so far, in order.
    pub fn pipelines(&self) -> &[vk::Pipeline] {
        &self.pipelines
    }

    /// What the last pass was made of.
    pub fn last_pass(&self) -> PassStats {
        self.stats
    }

    /// Seconds that a submit took which was waited for; `None` without a clock.
    fn measured(&self, submit: usize) -> Result<Option<f64>, VulkanError> {
        let Some(first) = self.query(submit) else { return Ok(None) };
        let mut ticks = [0u64; 2];
        // SAFETY: both queries were written by a submit that is done; there is room for both results.
        let got = unsafe {
            self.device.raw.get_query_pool_results(self.times, first, &mut ticks, vk::QueryResultFlags::TYPE_64)
        };
        check("vkGetQueryPoolResults", got)?;
        let mask = u64::MAX >> (64 - self.device.timestamp_bits.min(64));
        let n_ticks = ticks[1].wrapping_sub(ticks[0]) & mask;
        Ok(Some(n_ticks as f64 * f64::from(self.device.limits.timestamp_period) * 1e-9))
    }

    /// Goes on in another submit if this one has enough work. Barriers reach across submits to one queue, so the
    /// hazards stay as they are.
    fn cut(&mut self) -> Result<(), VulkanError> {
        if !self.pace.is_full(self.submits[self.n_used - 1].work, self.whole) {
            return Ok(());
        }
        self.recording = false;
        self.submit()?;
        self.wait((self.n_used + 1).saturating_sub(IN_FLIGHT).max(self.n_done))?;
        self.begin_submit()?;
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
            self.submits.iter().for_each(|s| self.device.raw.destroy_fence(s.fence, None));
            self.device.raw.destroy_query_pool(self.times, None);
            self.device.raw.destroy_command_pool(self.pool, None);
        }
    }
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
        let last = self.commands.n_used - 1;
        self.commands.submits[last].work.add(cost);
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
