//! A logical device with one compute queue. Refuses devices that lack a needed feature, naming it. Everything that is
//! made on the device (memory, pipelines, commands) holds it, so it is destroyed last.

use std::path::Path;
use std::sync::Arc;

use ash::{khr, vk};
use shaders::ShaderSet;

use super::error::{VulkanError, check};
use super::instance::{DeviceInfo, Instance, choose};

/// How to open a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceOptions<'a> {
    /// Index, or part of the name; `None` for the best.
    pub selector: Option<&'a str>,
    /// Turn the validation layer on; its messages become errors.
    pub validation: bool,
    /// Folder of edited shaders, which stand for the built-in ones of the same names.
    pub shaders: Option<&'a Path>,
    /// Upload through a staging buffer even where the processor could write the device's memory (for tests).
    pub staged_uploads: bool,
    /// Do without the device's timestamps, as on a device that has none (for tests).
    pub no_timestamps: bool,
}

/// An open device.
pub(super) struct Device {
    pub raw: ash::Device,
    pub queue: vk::Queue,
    pub queue_family: u32,
    /// Bits of its queue's timestamps; 0 without any.
    pub timestamp_bits: u32,
    pub info: DeviceInfo,
    pub memory: vk::PhysicalDeviceMemoryProperties,
    pub limits: vk::PhysicalDeviceLimits,
    pub max_allocation_bytes: u64,
    pub cache_uuid: [u8; vk::UUID_SIZE],
    pub vendor_id: u32,
    pub device_id: u32,
    pub executable_properties: Option<khr::pipeline_executable_properties::Device>,
    pub shaders: ShaderSet,
    instance: Instance,
}

impl Device {
    /// `statistics`: the driver keeps statistics of compiled kernels (registers, spills), where it can.
    pub fn open(options: DeviceOptions<'_>, statistics: bool) -> Result<Arc<Device>, VulkanError> {
        let shaders = options.shaders.map_or(Ok(ShaderSet::built_in()), ShaderSet::with_folder)?;
        let instance = Instance::new(options.validation)?;
        let (handles, infos): (Vec<_>, Vec<_>) = instance.devices()?.into_iter().unzip();
        let index = choose(&infos, options.selector)?;
        let (physical, info) = (handles[index], infos[index].clone());
        if !info.is_usable() {
            return Err(VulkanError::Unusable { device: info.name, missing: info.missing });
        }
        // SAFETY: `physical` comes from `instance`, which is alive.
        let (families, memory, known) = unsafe {
            (
                instance.raw.get_physical_device_queue_family_properties(physical),
                instance.raw.get_physical_device_memory_properties(physical),
                check(
                    "vkEnumerateDeviceExtensionProperties",
                    instance.raw.enumerate_device_extension_properties(physical),
                )?,
            )
        };
        let queue_family = compute_family(&families).ok_or_else(|| VulkanError::Unusable {
            device: info.name.clone(),
            missing: vec!["a compute queue".into()],
        })?;
        let with_statistics = statistics
            && known.iter().any(|e| e.extension_name_as_c_str() == Ok(khr::pipeline_executable_properties::NAME));

        let priorities = [1.0];
        let queues =
            [vk::DeviceQueueCreateInfo::default().queue_family_index(queue_family).queue_priorities(&priorities)];
        let mut f11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
        let mut f12 = vk::PhysicalDeviceVulkan12Features::default().buffer_device_address(true);
        let mut f13 = vk::PhysicalDeviceVulkan13Features::default()
            .synchronization2(true)
            .maintenance4(true)
            .shader_integer_dot_product(true);
        if info.subgroup_sizes.0 < info.subgroup_sizes.1 {
            f13 = f13.subgroup_size_control(true).compute_full_subgroups(true);
        }
        let mut executable_info =
            vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
        let mut matrix = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let mut extensions = Vec::new();
        let with_matrices = !info.matrices.is_empty();
        if with_matrices {
            // Kernels for the matrix units are written for the Vulkan memory model and whole subgroups of a set size.
            f12 = f12.shader_float16(true).vulkan_memory_model(true);
            f13 = f13.subgroup_size_control(true).compute_full_subgroups(true);
        }
        let mut create = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .push_next(&mut f11)
            .push_next(&mut f12)
            .push_next(&mut f13);
        if with_matrices {
            extensions.push(khr::cooperative_matrix::NAME.as_ptr());
            create = create.push_next(&mut matrix);
        }
        if with_statistics {
            extensions.push(khr::pipeline_executable_properties::NAME.as_ptr());
            create = create.push_next(&mut executable_info);
        }
        let create = create.enabled_extension_names(&extensions);
        // SAFETY: every pointer in `create` is to a local that outlives the call; the features were found present.
        let raw = check("vkCreateDevice", unsafe { instance.raw.create_device(physical, &create, None) })?;
        // SAFETY: the device was created with one queue of this family.
        let queue = unsafe { raw.get_device_queue(queue_family, 0) };
        let mut p11 = vk::PhysicalDeviceVulkan11Properties::default();
        let mut p13 = vk::PhysicalDeviceVulkan13Properties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut p11).push_next(&mut p13);
        // SAFETY: `physical` knows Vulkan 1.3 and fills the chained structs.
        unsafe { instance.raw.get_physical_device_properties2(physical, &mut properties) };
        let basic = properties.properties;
        let max_allocation_bytes = p11.max_memory_allocation_size.min(p13.max_buffer_size);
        let executable_properties =
            with_statistics.then(|| khr::pipeline_executable_properties::Device::new(&instance.raw, &raw));
        Ok(Arc::new(Device {
            raw,
            queue,
            queue_family,
            timestamp_bits: match options.no_timestamps {
                true => 0,
                false => families[queue_family as usize].timestamp_valid_bits,
            },
            info,
            memory,
            limits: basic.limits,
            max_allocation_bytes,
            cache_uuid: basic.pipeline_cache_uuid,
            vendor_id: basic.vendor_id,
            device_id: basic.device_id,
            executable_properties,
            shaders,
            instance,
        }))
    }

    /// An error if the validation layer has objected since the last call.
    pub fn check_validation(&self) -> Result<(), VulkanError> {
        let messages = self.instance.take_messages();
        if messages.is_empty() { Ok(()) } else { Err(VulkanError::Validation { messages }) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything made on the device holds an `Arc` of it, so all of that is gone.
        unsafe { self.raw.destroy_device(None) };
    }
}

/// A family for compute alone where there is one (it runs beside the desktop's graphics), else any that computes.
fn compute_family(families: &[vk::QueueFamilyProperties]) -> Option<u32> {
    let with = |wanted: vk::QueueFlags, unwanted: vk::QueueFlags| {
        families.iter().position(|f| f.queue_flags.contains(wanted) && !f.queue_flags.intersects(unwanted))
    };
    with(vk::QueueFlags::COMPUTE, vk::QueueFlags::GRAPHICS)
        .or_else(|| with(vk::QueueFlags::COMPUTE, vk::QueueFlags::empty()))
        .map(|i| i as u32)
}
