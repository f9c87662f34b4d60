//! The Vulkan loader, the instance, and what the devices of this machine are. The loader is opened at run time, so a
//! machine without one gets an error and not a program that does not start. With validation, the layer's messages are
//! collected and become errors of the next submit.

use std::ffi::{CStr, c_void};
use std::sync::{Arc, Mutex};

use ash::{ext, vk};

use super::error::{VulkanError, check};

/// Name of the validation layer.
const VALIDATION_LAYER: &CStr = c"VK_LAYER_KHRONOS_validation";
/// Oldest API version with everything the kernels are written for.
const API_VERSION: u32 = vk::API_VERSION_1_3;
/// Smallest subgroup that the reductions make room for.
const MIN_SUBGROUP_SIZE: u32 = 4;
/// Workgroup size and shared memory that the largest kernels use.
const MIN_WORKGROUP_SIZE: u32 = 256;
const MIN_SHARED_BYTES: u32 = 16 << 10;

/// Messages of the validation layer.
pub(super) type Messages = Arc<Mutex<Vec<String>>>;

/// A Vulkan instance. Destroyed when dropped; devices made from it hold it.
pub(super) struct Instance {
    pub raw: ash::Instance,
    debug: Option<Debug>,
    /// Keeps the loader's library open.
    _entry: ash::Entry,
}

struct Debug {
    functions: ext::debug_utils::Instance,
    messenger: vk::DebugUtilsMessengerEXT,
    messages: Messages,
}

/// A device of this machine, as shown by `aimo-engine devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Place in the loader's list; a selector.
    pub index: usize,
    /// Name given by the driver.
    pub name: String,
    /// Discrete, integrated, virtual, CPU.
    pub kind: DeviceKind,
    /// Name and version of the driver.
    pub driver: String,
    /// Vulkan version of the driver: major, minor, patch.
    pub api_version: (u32, u32, u32),
    /// Bytes of all device-local heaps.
    pub memory_bytes: u64,
    /// Default subgroup size (wave size).
    pub subgroup_size: u32,
    /// Optional features that kernels may make use of.
    pub features: Vec<&'static str>,
    /// Matrices that its matrix units multiply in f16 with f32 sums; none without cooperative matrices.
    pub matrices: Vec<MatrixShape>,
    /// What the device lacks; it is usable if this is empty.
    pub missing: Vec<String>,
    /// Compute units (AMD) or streaming multiprocessors (NVIDIA), where the driver tells them.
    pub compute_units: Option<u32>,
    pub(super) driver_version: u32,
    pub(super) shared_bytes: u32,
    /// The smallest and the largest subgroup that a kernel may ask for; equal where it can't.
    pub(super) subgroup_sizes: (u32, u32),
    /// Whether four products of signed bytes are one instruction.
    pub(super) fast_dot: bool,
}

/// A product of matrices that a subgroup computes in one step: `m × k` times `k × n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// Rows of the first and of the result.
    pub m: u32,
    /// Columns of the second and of the result.
    pub n: u32,
    /// What is summed over.
    pub k: u32,
}

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// A graphics card with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU lent to a virtual machine.
    Virtual,
    /// Something else.
    Other,
    /// Software on the processor (lavapipe).
    Cpu,
}

impl DeviceInfo {
    /// Whether the kernels run on this device.
    pub fn is_usable(&self) -> bool {
        self.missing.is_empty()
    }

    /// Whether this is software on the processor: slower than the CPU backend, for tests.
    pub fn is_cpu(&self) -> bool {
        self.kind == DeviceKind::Cpu
    }

    /// A Radeon 8060S (gfx1151) with RADV, as far as the choice of kernels goes: for what is said of it on other machines.
    pub fn strix_halo() -> DeviceInfo {
        DeviceInfo {
            index: 0,
            name: "Radeon 8060S Graphics (RADV GFX1151)".to_owned(),
            kind: DeviceKind::Integrated,
            driver: String::new(),
            api_version: (1, 3, 0),
            memory_bytes: 0,
            subgroup_size: 64,
            features: Vec::new(),
            matrices: vec![MatrixShape { m: 16, n: 16, k: 16 }],
            missing: Vec::new(),
            compute_units: Some(40),
            driver_version: 0,
            shared_bytes: 64 << 10,
            subgroup_sizes: (32, 64),
            fast_dot: true,
        }
    }

    /// Whether this is a driver that computes on the processor, and what all invocations of a subgroup have in common
    /// once: lavapipe of Mesa 26. That of 25.0 (which tells no version) reads an address once for each invocation.
    pub(super) fn has_scalars(&self) -> bool {
        self.is_cpu() && self.driver_version >> 22 >= 26
    }

    fn label(&self) -> String {
        format!("{}: {}", self.index, self.name)
    }
}

/// The Vulkan devices of this machine, usable or not. An empty list is [`VulkanError::NoDevice`].
pub fn devices() -> Result<Vec<DeviceInfo>, VulkanError> {
    Ok(Instance::new(false)?.devices()?.into_iter().map(|(_, info)| info).collect())
}

/// The best usable device that is not software, if there is one. A machine without Vulkan has none.
pub fn best_real_gpu() -> Result<Option<DeviceInfo>, VulkanError> {
    match devices() {
        Ok(all) => Ok(all.into_iter().filter(|d| d.is_usable() && !d.is_cpu()).min_by_key(rank)),
        Err(VulkanError::NoLoader { .. } | VulkanError::NoDevice) => Ok(None),
        Err(other) => Err(other),
    }
}

/// Order of preference: kind, then the larger memory, then the loader's order.
fn rank(info: &DeviceInfo) -> (DeviceKind, std::cmp::Reverse<u64>, usize) {
    (info.kind, std::cmp::Reverse(info.memory_bytes), info.index)
}

/// Picks from `all` the device with index `selector` or a name that contains it (ignoring case); without a selector
/// the best usable one, software last.
pub(super) fn choose(all: &[DeviceInfo], selector: Option<&str>) -> Result<usize, VulkanError> {
    let Some(selector) = selector else {
        let best =
            all.iter().filter(|d| d.is_usable()).min_by_key(|d| rank(d)).or_else(|| all.iter().min_by_key(|d| rank(d)));
        return best.map(|d| d.index).ok_or(VulkanError::NoDevice);
    };
    if let Ok(index) = selector.parse::<usize>()
        && index < all.len()
    {
        return Ok(index);
    }
    let wanted = selector.to_lowercase();
    let matches: Vec<&DeviceInfo> = all.iter().filter(|d| d.name.to_lowercase().contains(&wanted)).collect();
    match matches[..] {
        [one] => Ok(one.index),
        [] => Err(VulkanError::NoSuchDevice {
            selector: selector.to_owned(),
            available: all.iter().map(DeviceInfo::label).collect(),
        }),
        _ => Err(VulkanError::AmbiguousDevice {
            selector: selector.to_owned(),
            matches: matches.iter().map(|d| d.label()).collect(),
        }),
    }
}

impl Instance {
    pub fn new(validation: bool) -> Result<Instance, VulkanError> {
        // SAFETY: loading the system's Vulkan loader runs its initialisers; it is the library every Vulkan program
        // loads, and `Instance` keeps it open for as long as a function of it can be called.
        let entry = unsafe { ash::Entry::load() }.map_err(|e| VulkanError::NoLoader { reason: e.to_string() })?;
        // SAFETY: the entry was just loaded.
        let version = unsafe { entry.try_enumerate_instance_version() };
        let version = check("vkEnumerateInstanceVersion", version)?.unwrap_or(vk::API_VERSION_1_0);
        if version < API_VERSION {
            let reason = format!("the installed one knows Vulkan {}, 1.3 is needed", version_text(version));
            return Err(VulkanError::NoLoader { reason });
        }
        let app = vk::ApplicationInfo::default().application_name(c"aimo-engine").api_version(API_VERSION);
        let mut layers = Vec::new();
        let mut extensions = Vec::new();
        if validation {
            // SAFETY: the entry was just loaded.
            let known =
                check("vkEnumerateInstanceLayerProperties", unsafe { entry.enumerate_instance_layer_properties() })?;
            if !known.iter().any(|l| l.layer_name_as_c_str() == Ok(VALIDATION_LAYER)) {
                return Err(VulkanError::ValidationLayerMissing);
            }
            layers.push(VALIDATION_LAYER.as_ptr());
            extensions.extend([ext::debug_utils::NAME.as_ptr(), ext::validation_features::NAME.as_ptr()]);
        }
        let enabled = [vk::ValidationFeatureEnableEXT::SYNCHRONIZATION_VALIDATION];
        let mut validation_features = vk::ValidationFeaturesEXT::default().enabled_validation_features(&enabled);
        let mut info = vk::InstanceCreateInfo::default()
            .application_info(&app)
            .enabled_layer_names(&layers)
            .enabled_extension_names(&extensions);
        if validation {
            info = info.push_next(&mut validation_features);
        }
        // SAFETY: every pointer in `info` is to a local that outlives the call.
        let raw = unsafe { entry.create_instance(&info, None) }.map_err(|result| match result {
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => VulkanError::NoDevice,
            result => VulkanError::Call { call: "vkCreateInstance", result },
        })?;
        let mut instance = Instance { raw, debug: None, _entry: entry };
        if validation {
            instance.debug = Some(Debug::new(&instance)?);
        }
        Ok(instance)
    }

    /// All devices with what is known of them, in the loader's order.
    pub fn devices(&self) -> Result<Vec<(vk::PhysicalDevice, DeviceInfo)>, VulkanError> {
        // SAFETY: the instance is alive.
        let all = check("vkEnumeratePhysicalDevices", unsafe { self.raw.enumerate_physical_devices() })?;
        if all.is_empty() {
            return Err(VulkanError::NoDevice);
        }
        all.into_iter().enumerate().map(|(i, d)| Ok((d, self.describe(i, d)?))).collect()
    }

    /// The validation messages so far, which are thereby forgotten.
    pub fn take_messages(&self) -> Vec<String> {
        let Some(debug) = &self.debug else { return Vec::new() };
        std::mem::take(&mut *debug.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn describe(&self, index: usize, device: vk::PhysicalDevice) -> Result<DeviceInfo, VulkanError> {
        // SAFETY: `device` comes from this instance.
        let (basic, memory) = unsafe {
            (self.raw.get_physical_device_properties(device), self.raw.get_physical_device_memory_properties(device))
        };
        let limits = &basic.limits;
        let mut info = DeviceInfo {
            index,
            name: text(&basic.device_name),
            kind: match basic.device_type {
                vk::PhysicalDeviceType::DISCRETE_GPU => DeviceKind::Discrete,
                vk::PhysicalDeviceType::INTEGRATED_GPU => DeviceKind::Integrated,
                vk::PhysicalDeviceType::VIRTUAL_GPU => DeviceKind::Virtual,
                vk::PhysicalDeviceType::CPU => DeviceKind::Cpu,
                _ => DeviceKind::Other,
            },
            driver: String::new(),
            api_version: version_parts(basic.api_version),
            memory_bytes: memory
                .memory_heaps_as_slice()
                .iter()
                .filter(|h| h.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL))
                .map(|h| h.size)
                .sum(),
            subgroup_size: 0,
            features: Vec::new(),
            matrices: Vec::new(),
            missing: Vec::new(),
            compute_units: None,
            driver_version: basic.driver_version,
            shared_bytes: limits.max_compute_shared_memory_size,
            subgroup_sizes: (0, 0),
            fast_dot: false,
        };
        if basic.api_version < API_VERSION {
            info.missing.push(format!("Vulkan 1.3 (its driver knows {})", version_text(basic.api_version)));
            return Ok(info);
        }
        let mut p11 = vk::PhysicalDeviceVulkan11Properties::default();
        let mut p12 = vk::PhysicalDeviceVulkan12Properties::default();
        let mut p13 = vk::PhysicalDeviceVulkan13Properties::default();
        let mut properties =
            vk::PhysicalDeviceProperties2::default().push_next(&mut p11).push_next(&mut p12).push_next(&mut p13);
        let mut f11 = vk::PhysicalDeviceVulkan11Features::default();
        let mut f12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut f13 = vk::PhysicalDeviceVulkan13Features::default();
        let mut features =
            vk::PhysicalDeviceFeatures2::default().push_next(&mut f11).push_next(&mut f12).push_next(&mut f13);
        // SAFETY: `device` comes from this instance and knows Vulkan 1.3, so it fills all the chained structs.
        unsafe {
            self.raw.get_physical_device_properties2(device, &mut properties);
            self.raw.get_physical_device_features2(device, &mut features);
        }
        // SAFETY: as above.
        let (families, extensions) = unsafe {
            (
                self.raw.get_physical_device_queue_family_properties(device),
                check("vkEnumerateDeviceExtensionProperties", self.raw.enumerate_device_extension_properties(device))?,
            )
        };
        let has = |name: &CStr| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
        info.driver = format!("{} {}", text(&p12.driver_name), text(&p12.driver_info)).trim().to_owned();
        info.subgroup_size = p11.subgroup_size;
        let arithmetic = p11.subgroup_supported_operations.contains(vk::SubgroupFeatureFlags::ARITHMETIC)
            && p11.subgroup_supported_stages.contains(vk::ShaderStageFlags::COMPUTE);
        let workgroup = limits.max_compute_work_group_invocations.min(limits.max_compute_work_group_size[0]);
        let required = [
            (f12.buffer_device_address != 0, "buffer device addresses (bufferDeviceAddress)".to_owned()),
            (f11.storage_buffer16_bit_access != 0, "16-bit storage (storageBuffer16BitAccess)".to_owned()),
            (f13.synchronization2 != 0, "synchronization2".to_owned()),
            (f13.maintenance4 != 0, "maintenance4".to_owned()),
            (f13.shader_integer_dot_product != 0, "integer dot products (shaderIntegerDotProduct)".to_owned()),
            (arithmetic, "subgroup arithmetic in compute shaders".to_owned()),
            (
                p11.subgroup_size >= MIN_SUBGROUP_SIZE,
                format!("subgroups of {MIN_SUBGROUP_SIZE} (it has {})", p11.subgroup_size),
            ),
            (
                workgroup >= MIN_WORKGROUP_SIZE,
                format!("workgroups of {MIN_WORKGROUP_SIZE} invocations (it has {workgroup})"),
            ),
            (
                limits.max_compute_shared_memory_size >= MIN_SHARED_BYTES,
                format!("{MIN_SHARED_BYTES} bytes of shared memory (it has {})", limits.max_compute_shared_memory_size),
            ),
            (families.iter().any(|f| f.queue_flags.contains(vk::QueueFlags::COMPUTE)), "a compute queue".to_owned()),
        ];
        info.missing.extend(required.into_iter().filter(|(present, _)| !present).map(|(_, what)| what));
        info.fast_dot = p13.integer_dot_product4x8_bit_packed_signed_accelerated != 0;
        let optional = [
            (f12.shader_float16 != 0, "float16"),
            (f12.shader_int8 != 0, "int8"),
            (info.fast_dot, "fast integer dot product"),
            (f13.subgroup_size_control != 0, "subgroup size control"),
            (has(ash::khr::cooperative_matrix::NAME), "cooperative matrix"),
        ];
        info.features.extend(optional.into_iter().filter(|(present, _)| *present).map(|(_, what)| what));
        let can_choose = f13.subgroup_size_control != 0
            && f13.compute_full_subgroups != 0
            && p13.required_subgroup_size_stages.contains(vk::ShaderStageFlags::COMPUTE);
        info.subgroup_sizes = match can_choose {
            true => (p13.min_subgroup_size, p13.max_subgroup_size),
            false => (info.subgroup_size, info.subgroup_size),
        };
        if has(ash::khr::cooperative_matrix::NAME)
            && f12.shader_float16 != 0
            && f12.vulkan_memory_model != 0
            && can_choose
        {
            info.matrices = self.matrices(device)?;
        }
        info.compute_units = self.compute_units(device, has);
        Ok(info)
    }

    /// Compute units of the device, from the extension of its vendor, if it `has` one.
    fn compute_units(&self, device: vk::PhysicalDevice, has: impl Fn(&CStr) -> bool) -> Option<u32> {
        let mut amd = vk::PhysicalDeviceShaderCorePropertiesAMD::default();
        let mut nvidia = vk::PhysicalDeviceShaderSMBuiltinsPropertiesNV::default();
        let mut properties = vk::PhysicalDeviceProperties2::default();
        if has(ash::amd::shader_core_properties::NAME) {
            properties = properties.push_next(&mut amd);
        }
        if has(ash::nv::shader_sm_builtins::NAME) {
            properties = properties.push_next(&mut nvidia);
        }
        // SAFETY: `device` comes from this instance and has the extensions that the chained structs belong to.
        unsafe { self.raw.get_physical_device_properties2(device, &mut properties) };
        let arrays = amd.shader_engine_count.saturating_mul(amd.shader_arrays_per_engine_count);
        let units = arrays.saturating_mul(amd.compute_units_per_shader_array).max(nvidia.shader_sm_count);
        (units > 0).then_some(units)
    }

    /// What the device's matrix units multiply in f16 with f32 sums, from its own list.
    fn matrices(&self, device: vk::PhysicalDevice) -> Result<Vec<MatrixShape>, VulkanError> {
        let mut feature = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
        let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut feature);
        // SAFETY: `device` comes from this instance and has the extension that the chained struct belongs to.
        unsafe { self.raw.get_physical_device_features2(device, &mut features) };
        if feature.cooperative_matrix == 0 {
            return Ok(Vec::new());
        }
        let functions = ash::khr::cooperative_matrix::Instance::new(&self._entry, &self.raw);
        // SAFETY: as above.
        let all = unsafe { functions.get_physical_device_cooperative_matrix_properties(device) };
        let all = check("vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR", all)?;
        let (half, single) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
        let fits = |p: &&vk::CooperativeMatrixPropertiesKHR<'_>| {
            (p.a_type, p.b_type, p.c_type, p.result_type) == (half, half, single, single)
                && p.scope == vk::ScopeKHR::SUBGROUP
        };
        Ok(all.iter().filter(fits).map(|p| MatrixShape { m: p.m_size, n: p.n_size, k: p.k_size }).collect())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: whatever was made from the instance holds it, so nothing is left; the messenger goes first.
        unsafe {
            if let Some(debug) = &self.debug {
                debug.functions.destroy_debug_utils_messenger(debug.messenger, None);
            }
            self.raw.destroy_instance(None);
        }
    }
}

impl Debug {
    fn new(instance: &Instance) -> Result<Debug, VulkanError> {
        let messages = Messages::default();
        let functions = ext::debug_utils::Instance::new(&instance._entry, &instance.raw);
        let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(
                vk::DebugUtilsMessageSeverityFlagsEXT::ERROR | vk::DebugUtilsMessageSeverityFlagsEXT::WARNING,
            )
            .message_type(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION)
            .pfn_user_callback(Some(on_message))
            .user_data(Arc::as_ptr(&messages).cast_mut().cast());
        // SAFETY: the user data points into `messages`, which `Debug` keeps until after the messenger is destroyed.
        let messenger = unsafe { functions.create_debug_utils_messenger(&info, None) };
        Ok(Debug { messenger: check("vkCreateDebugUtilsMessengerEXT", messenger)?, functions, messages })
    }
}

/// Called by the validation layer, on any thread.
unsafe extern "system" fn on_message(
    _severity: vk::DebugUtilsMessageSeverityFlagsEXT,
    _types: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    user_data: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: `user_data` is the mutex that `Debug::new` passed and keeps alive; `data` and its message are valid
    // during the call, as the extension promises.
    let (messages, text) = unsafe {
        let text = (*data).message_as_c_str().map(|m| m.to_string_lossy().into_owned());
        (&*user_data.cast::<Mutex<Vec<String>>>(), text)
    };
    let mut messages = messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    messages.push(text.unwrap_or_default());
    vk::FALSE
}

/// A fixed-size C string of Vulkan's structs.
fn text(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn version_parts(version: u32) -> (u32, u32, u32) {
    (vk::api_version_major(version), vk::api_version_minor(version), vk::api_version_patch(version))
}

fn version_text(version: u32) -> String {
    let (major, minor, patch) = version_parts(version);
    format!("{major}.{minor}.{patch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: usize, name: &str, kind: DeviceKind, usable: bool) -> DeviceInfo {
        DeviceInfo {
            index,
            name: name.to_owned(),
            kind,
            driver: String::new(),
            api_version: (1, 3, 0),
            memory_bytes: 1 << 30,
            subgroup_size: 32,
            features: Vec::new(),
            matrices: Vec::new(),
            missing: if usable { Vec::new() } else { vec!["something".to_owned()] },
            compute_units: None,
            driver_version: 0,
            shared_bytes: 32 << 10,
            subgroup_sizes: (32, 32),
            fast_dot: false,
        }
    }

    #[test]
    fn chooses_by_index_by_name_and_by_kind() {
        let all = [
            device(0, "llvmpipe", DeviceKind::Cpu, true),
            device(1, "Radeon 8060S", DeviceKind::Integrated, true),
            device(2, "Radeon RX", DeviceKind::Discrete, false),
        ];
        assert_eq!(choose(&all, None).expect("one is usable"), 1);
        assert_eq!(choose(&all, Some("0")).expect("index"), 0);
        assert_eq!(choose(&all, Some("8060s")).expect("name"), 1);
        assert_eq!(choose(&all[..1], None).expect("software if there is nothing else"), 0);
        assert!(
            matches!(choose(&all, Some("radeon")), Err(VulkanError::AmbiguousDevice { matches, .. }) if matches.len() == 2)
        );
        assert!(
            matches!(choose(&all, Some("7")), Err(VulkanError::NoSuchDevice { available, .. }) if available.len() == 3)
        );
    }
}
