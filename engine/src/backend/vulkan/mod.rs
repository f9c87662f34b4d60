//! Vulkan backend.

/// Why a Vulkan device can't be used, or how it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VulkanError {}
