//! Device memory: a few large blocks, handed out in order and freed together when the device is closed (nothing is
//! allocated or freed during a pass). On devices whose own memory the processor can write (unified memory, lavapipe)
//! uploads go straight into place; elsewhere through a staging buffer.
//!
//! A [`Region`] is a plain handle. It is valid for as long as the [`Memory`] it came from, which the backend that
//! holds both guarantees by dropping them together.

use std::sync::Arc;

use ash::vk;

use super::device::Device;
use super::error::{VulkanError, check};

/// Bytes of a block that several regions share; what is larger gets a block of its own.
const BLOCK_BYTES: u64 = 64 << 20;
/// Alignment of regions: at least every alignment that a copy or a vec4 needs, and a whole memory burst.
const ALIGN_BYTES: u64 = 256;

/// Who reads and writes a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryUse {
    /// Kernels; mapped only on devices with unified memory.
    Device,
    /// Written by the processor for each pass, read by kernels.
    Upload,
    /// Written by the device, read by the processor.
    Readback,
}

/// A piece of device memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Device address of the first byte.
    pub address: u64,
    /// Size.
    pub bytes: u64,
    pub(super) buffer: vk::Buffer,
    pub(super) offset: u64,
    mapped: Option<*mut u8>,
}

// SAFETY: the mapping is of memory that any thread may access; `write` needs `&mut` and `read` ties its slice to a
// borrow of the region, so a region that is moved to another thread takes its accesses along.
unsafe impl Send for Region {}
// SAFETY: as above; through a shared reference a region can only be read.
unsafe impl Sync for Region {}

impl Region {
    /// Whether the processor can access the region.
    pub fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// The bytes, to be written by the processor.
    ///
    /// # Panics
    /// If the region is not mapped (a broken invariant: only mapped uses call this).
    pub fn write(&mut self) -> &mut [u8] {
        let start = self.mapped.expect("a mapped region");
        // SAFETY: the mapping covers `bytes` bytes and lives as long as the memory; the device does not run while the
        // processor writes, since every submit is waited for.
        unsafe { std::slice::from_raw_parts_mut(start, self.bytes as usize) }
    }

    /// The bytes, written by the device in a submit that was waited for.
    ///
    /// # Panics
    /// If the region is not mapped.
    pub fn read(&self) -> &[u8] {
        let start = self.mapped.expect("a mapped region");
        // SAFETY: as in `write`; the memory is coherent, so the device's writes are visible after its fence.
        unsafe { std::slice::from_raw_parts(start, self.bytes as usize) }
    }

    /// `bytes` bytes from `offset` on, as a region of their own.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub fn slice(&self, offset: u64, bytes: u64) -> Region {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "{offset} + {bytes} of {}", self.bytes);
        Region {
            address: self.address + offset,
            bytes,
            offset: self.offset + offset,
            // SAFETY: `offset` is at most the size of the mapping.
            mapped: self.mapped.map(|start| unsafe { start.add(offset as usize) }),
            ..*self
        }
    }
}

/// All memory taken from a device.
pub(super) struct Memory {
    device: Arc<Device>,
    blocks: Vec<Block>,
    device_type: u32,
    upload_type: u32,
    readback_type: u32,
}

struct Block {
    memory: vk::DeviceMemory,
    region: Region,
    used: u64,
    type_index: u32,
}

impl Memory {
    pub fn new(device: Arc<Device>) -> Result<Memory, VulkanError> {
        let types = &device.memory;
        let mapped = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let local = vk::MemoryPropertyFlags::DEVICE_LOCAL;
        let cached = vk::MemoryPropertyFlags::HOST_CACHED;
        let largest_heap = largest_local_heap(types);
        let on_largest = |i: u32| Some(types.memory_types[i as usize].heap_index) == largest_heap;
        let device_type = find(types, local | mapped, on_largest).or_else(|| find(types, local, on_largest));
        let upload_type = find(types, local | mapped, |_| true).or_else(|| find(types, mapped, |_| true));
        let readback_type = find(types, mapped | cached, |_| true).or_else(|| find(types, mapped, |_| true));
        match (device_type, upload_type, readback_type) {
            (Some(device_type), Some(upload_type), Some(readback_type)) => {
                Ok(Memory { device, blocks: Vec::new(), device_type, upload_type, readback_type })
            }
            _ => Err(VulkanError::Unusable {
                device: device.info.name.clone(),
                missing: vec!["memory for kernels and for the processor".to_owned()],
            }),
        }
    }

    /// Takes `bytes` bytes for `what` (named in errors). Contents are undefined.
    pub fn allocate(&mut self, usage: MemoryUse, bytes: u64, what: &str) -> Result<Region, VulkanError> {
        let bytes = bytes.max(1).next_multiple_of(ALIGN_BYTES);
        let limit = self.device.max_allocation_bytes;
        if bytes > limit {
            return Err(VulkanError::TooLarge { what: format!("{what} (bytes)"), size: bytes, limit });
        }
        let type_index = match usage {
            MemoryUse::Device => self.device_type,
            MemoryUse::Upload => self.upload_type,
            MemoryUse::Readback => self.readback_type,
        };
        let room = |b: &Block| b.type_index == type_index && b.region.bytes - b.used >= bytes;
        if !self.blocks.iter().any(room) {
            let block = self.new_block(type_index, bytes.max(BLOCK_BYTES.min(limit)), bytes, what)?;
            self.blocks.push(block);
        }
        let block = self.blocks.iter_mut().rev().find(|b| room(b)).expect("a block with room was just made");
        let region = block.region.slice(block.used, bytes);
        block.used += bytes;
        Ok(region)
    }

    /// Whether the processor reads mapped [`MemoryUse::Device`] memory at full speed.
    pub fn reads_are_cached(&self) -> bool {
        let flags = self.device.memory.memory_types[self.device_type as usize].property_flags;
        flags.contains(vk::MemoryPropertyFlags::HOST_CACHED)
    }

    fn new_block(&self, type_index: u32, bytes: u64, wanted: u64, what: &str) -> Result<Block, VulkanError> {
        let raw = &self.device.raw;
        let out_of_memory = |call, result| match result {
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY => {
                VulkanError::OutOfMemory { what: what.to_owned(), bytes: wanted }
            }
            result => VulkanError::Call { call, result },
        };
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).sharing_mode(vk::SharingMode::EXCLUSIVE);
        // SAFETY: the device is alive and `info` is complete; the buffer is destroyed with the block or just below.
        let buffer = unsafe { raw.create_buffer(&info, None) }.map_err(|r| out_of_memory("vkCreateBuffer", r))?;
        // SAFETY: `buffer` was just made on this device.
        let needs = unsafe { raw.get_buffer_memory_requirements(buffer) };
        assert!(needs.memory_type_bits >> type_index & 1 == 1, "storage buffers fit memory type {type_index}");
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(needs.size)
            .memory_type_index(type_index)
            .push_next(&mut flags);
        // SAFETY: the type index is one of the device's.
        let memory = unsafe { raw.allocate_memory(&info, None) }.map_err(|r| {
            // SAFETY: nothing uses the buffer yet.
            unsafe { raw.destroy_buffer(buffer, None) };
            out_of_memory("vkAllocateMemory", r)
        })?;
        let mut block = Block {
            memory,
            region: Region { address: 0, bytes, buffer, offset: 0, mapped: None },
            used: 0,
            type_index,
        };
        match self.bind(&mut block) {
            Ok(()) => Ok(block),
            Err(error) => {
                self.free(&block);
                Err(error)
            }
        }
    }

    fn bind(&self, block: &mut Block) -> Result<(), VulkanError> {
        let raw = &self.device.raw;
        let flags = self.device.memory.memory_types[block.type_index as usize].property_flags;
        // SAFETY: buffer and memory are fresh, of matching size and type; the memory is mapped once, whole, and only
        // if its type can be.
        unsafe {
            check("vkBindBufferMemory", raw.bind_buffer_memory(block.region.buffer, block.memory, 0))?;
            let address = vk::BufferDeviceAddressInfo::default().buffer(block.region.buffer);
            block.region.address = raw.get_buffer_device_address(&address);
            if flags.contains(vk::MemoryPropertyFlags::HOST_VISIBLE) {
                let start = raw.map_memory(block.memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty());
                block.region.mapped = Some(check("vkMapMemory", start)?.cast());
            }
        }
        Ok(())
    }

    fn free(&self, block: &Block) {
        // SAFETY: no submit is running (each is waited for) and regions are not used after the memory is dropped.
        unsafe {
            self.device.raw.destroy_buffer(block.region.buffer, None);
            self.device.raw.free_memory(block.memory, None);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.blocks.iter().for_each(|block| self.free(block));
    }
}

/// The first memory type with all of `flags` that `accept` accepts; drivers list the better ones first.
fn find(
    types: &vk::PhysicalDeviceMemoryProperties,
    flags: vk::MemoryPropertyFlags,
    accept: impl Fn(u32) -> bool,
) -> Option<u32> {
    (0..types.memory_type_count).find(|&i| types.memory_types[i as usize].property_flags.contains(flags) && accept(i))
}

/// The heap that the weights go to. A small host-visible window into a card's memory is not it.
fn largest_local_heap(types: &vk::PhysicalDeviceMemoryProperties) -> Option<u32> {
    (0..types.memory_heap_count)
        .filter(|&i| types.memory_heaps[i as usize].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
        .max_by_key(|&i| types.memory_heaps[i as usize].size)
}
