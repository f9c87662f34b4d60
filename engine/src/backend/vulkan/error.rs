//! What can go wrong with a Vulkan device. Variants carry what was looked for and what was found.

use ash::vk;

/// Why a Vulkan device can't be used, or how it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VulkanError {
    /// There is no Vulkan loader on this machine.
    #[error("no Vulkan loader: {reason} (Debian and Ubuntu: package libvulkan1)")]
    NoLoader {
        /// The dynamic linker's message.
        reason: String,
    },
    /// The loader found no driver, or its drivers no device.
    #[error("no Vulkan device: no installed driver offers one (Debian and Ubuntu: package mesa-vulkan-drivers)")]
    NoDevice,
    /// No device has this index or name.
    #[error("no Vulkan device matches {selector:?}; there are: {}", available.join(", "))]
    NoSuchDevice {
        /// What was asked for.
        selector: String,
        /// Index and name of every device.
        available: Vec<String>,
    },
    /// Several devices have this name.
    #[error("{selector:?} matches several Vulkan devices, choose one by its index: {}", matches.join(", "))]
    AmbiguousDevice {
        /// What was asked for.
        selector: String,
        /// Index and name of every match.
        matches: Vec<String>,
    },
    /// The device lacks something that the kernels need.
    #[error("the Vulkan device {device} can't be used: it lacks {}", missing.join(", "))]
    Unusable {
        /// Name of the device.
        device: String,
        /// Everything that is missing.
        missing: Vec<String>,
    },
    /// Validation was asked for and its layer is not installed.
    #[error(
        "the Vulkan validation layer VK_LAYER_KHRONOS_validation is not installed \
         (Debian and Ubuntu: package vulkan-validationlayers)"
    )]
    ValidationLayerMissing,
    /// The validation layer objected: a bug of this program.
    #[error("Vulkan validation: {}", messages.join("\n"))]
    Validation {
        /// The layer's messages.
        messages: Vec<String>,
    },
    /// The device has no room left.
    #[error("out of memory on the Vulkan device: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Size of the request.
        bytes: u64,
    },
    /// A single thing is larger than the device or its kernels can address.
    #[error("{what} is too large for the Vulkan device: {size}, at most {limit}")]
    TooLarge {
        /// What was too large.
        what: String,
        /// Its size.
        size: u64,
        /// The most that fits.
        limit: u64,
    },
    /// The model has a shape that the kernels don't handle.
    #[error("the Vulkan backend can't run a model with {what} = {value}: {rule}")]
    UnsupportedShape {
        /// The hyper-parameter.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What the value must be.
        rule: String,
    },
    /// An edited shader can't be used.
    #[error(transparent)]
    Shader(#[from] shaders::ShaderError),
    /// The driver refused a kernel.
    #[error("the Vulkan driver can't compile the kernel {kernel}: {result}")]
    Pipeline {
        /// Name of the kernel.
        kernel: String,
        /// The driver's answer.
        result: vk::Result,
    },
    /// The device stopped working (driver reset, hang, removal).
    #[error("the Vulkan device was lost during {during}")]
    DeviceLost {
        /// The call that noticed.
        during: &'static str,
    },
    /// The device did not finish a pass.
    #[error("the Vulkan device did not finish within {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
    /// Any other failure of a Vulkan call.
    #[error("{call} failed: {result}")]
    Call {
        /// The Vulkan function.
        call: &'static str,
        /// Its answer.
        result: vk::Result,
    },
}

/// Turns the result of `call` into this module's error.
pub(super) fn check<T>(call: &'static str, result: Result<T, vk::Result>) -> Result<T, VulkanError> {
    result.map_err(|result| match result {
        vk::Result::ERROR_DEVICE_LOST => VulkanError::DeviceLost { during: call },
        result => VulkanError::Call { call, result },
    })
}
