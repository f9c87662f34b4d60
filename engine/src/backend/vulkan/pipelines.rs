//! Compute pipelines by kernel and specialization constants, made on first use or ahead (`prepare`), and the driver's
//! compiled code kept on disk between runs. The cache file is named by device, driver and a hash of all shaders, so a
//! stale one is never read; a damaged one is ignored; it is written whole or not at all.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs, process};

use ash::{khr, vk};
use rayon::prelude::*;
use shaders::Kernel;

use super::attention_tiles::MatrixPromptTile;
use super::device::Device;
use super::error::{VulkanError, check};
use super::kernels::{attention, probe};
use super::tuning::MatrixTile;

/// First bytes of a cache file; then the checksum of the rest, then the driver's data.
const CACHE_MAGIC: &[u8; 8] = b"aimovkpc";
/// Largest cache file that is read: far more than the code of all kernels.
const CACHE_MAX_BYTES: u64 = 64 << 20;

/// A kernel with the values of its specialization constants 0, 1, 2 …
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: Kernel,
    /// Its constants, by id.
    pub constants: Vec<u32>,
}

impl Variant {
    /// The size that the kernel's subgroups must have; `None` where any will do.
    fn subgroup_size(&self) -> Option<u32> {
        match self.kernel {
            // A workgroup is one subgroup.
            Kernel::Matvec(_) | Kernel::GatedMatvec(_) | Kernel::DotMatvec(_) | Kernel::DotGatedMatvec(_) => {
                self.constants.first().copied()
            }
            Kernel::HalfMatmul(_) | Kernel::HalfGatedMatmul(_) => Some(self.constants[MatrixTile::SUBGROUP_ID]),
            Kernel::MatrixFma => Some(self.constants[probe::SUBGROUP_ID]),
            Kernel::Attention => Some(self.constants[attention::SUBGROUP_ID]),
            Kernel::HalfPromptAttention => Some(self.constants[MatrixPromptTile::SUBGROUP_ID]),
            _ => None,
        }
    }
}

/// A compiled variant; a plain handle, valid while its [`Pipelines`] lives.
#[derive(Clone, Copy)]
pub(super) struct Pipeline {
    pub raw: vk::Pipeline,
    pub layout: vk::PipelineLayout,
    pub push_bytes: u32,
}

/// What a driver tells of the code that it made of a kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Compiled {
    /// Invocations of a subgroup.
    pub subgroup_size: u32,
    /// Name and value of each statistic.
    pub statistics: Vec<(String, f64)>,
    /// Name and text of each representation, from the first to the last step of the compiler.
    pub texts: Vec<(String, String)>,
}

/// All pipelines of a device.
pub(super) struct Pipelines {
    device: Arc<Device>,
    cache: vk::PipelineCache,
    cache_file: Option<PathBuf>,
    loaded_bytes: usize,
    layouts: HashMap<u32, vk::PipelineLayout>,
    made: HashMap<Variant, Pipeline>,
}

impl Pipelines {
    pub fn new(device: Arc<Device>) -> Result<Pipelines, VulkanError> {
        let cache_file = cache_folder().map(|folder| folder.join(cache_name(&device)));
        let data = cache_file.as_deref().and_then(|path| read_cache(path, &device)).unwrap_or_default();
        let info = vk::PipelineCacheCreateInfo::default().initial_data(&data);
        // SAFETY: the device is alive; the data passed our checksum and carries this driver's own header.
        let cache = check("vkCreatePipelineCache", unsafe { device.raw.create_pipeline_cache(&info, None) })?;
        let loaded_bytes = data.len();
        Ok(Pipelines { device, cache, cache_file, loaded_bytes, layouts: HashMap::new(), made: HashMap::new() })
    }

    /// The pipeline of `variant`.
    pub fn get(&mut self, variant: &Variant) -> Result<Pipeline, VulkanError> {
        if let Some(pipeline) = self.made.get(variant) {
            return Ok(*pipeline);
        }
        let layout = self.layout(variant.kernel)?;
        let pipeline = self.compile(variant, layout)?;
        self.made.insert(variant.clone(), pipeline);
        Ok(pipeline)
    }

    /// Variants that were made.
    pub fn len(&self) -> usize {
        self.made.len()
    }

    /// The variant that a pipeline was made of.
    pub fn variant_of(&self, pipeline: vk::Pipeline) -> Option<&Variant> {
        self.made.iter().find(|(_, made)| made.raw == pipeline).map(|(variant, _)| variant)
    }

    /// Makes all of `variants` at once, on all cores.
    pub fn prepare(&mut self, variants: &[Variant]) -> Result<(), VulkanError> {
        let mut seen = HashSet::new();
        let missing: Vec<&Variant> =
            variants.iter().filter(|v| !self.made.contains_key(v) && seen.insert(*v)).collect();
        let layouts: Vec<_> = missing.iter().map(|v| self.layout(v.kernel)).collect::<Result<_, _>>()?;
        let this = &*self;
        let made: Vec<_> = missing.into_par_iter().zip(layouts).map(|(v, l)| (v.clone(), this.compile(v, l))).collect();
        // Every pipeline that was made is kept before an error is looked at, so that none leaks.
        let mut outcome = Ok(());
        for (variant, result) in made {
            match result {
                Ok(pipeline) => _ = self.made.insert(variant, pipeline),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// What the driver tells of a variant's code, where it does.
    pub fn compiled(&mut self, variant: &Variant) -> Result<Option<Compiled>, VulkanError> {
        let pipeline = self.get(variant)?;
        let Some(functions) = &self.device.executable_properties else { return Ok(None) };
        let executable = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline.raw).executable_index(0);
        let info = vk::PipelineInfoKHR::default().pipeline(pipeline.raw);
        // SAFETY: the pipeline was made with statistics and representations and has one executable, its compute stage.
        let (properties, statistics, texts) = unsafe {
            (
                functions.get_pipeline_executable_properties(&info),
                functions.get_pipeline_executable_statistics(&executable),
                internal_texts(functions, &executable),
            )
        };
        let properties = check("vkGetPipelineExecutablePropertiesKHR", properties)?;
        let statistics = check("vkGetPipelineExecutableStatisticsKHR", statistics)?;
        Ok(Some(Compiled {
            subgroup_size: properties.first().map_or(0, |p| p.subgroup_size),
            statistics: statistics.iter().map(statistic).collect(),
            texts: check("vkGetPipelineExecutableInternalRepresentationsKHR", texts)?,
        }))
    }

    /// Writes the driver's compiled code to disk if there is more of it than was read. A cache is a convenience: if
    /// it can't be written, the next start is slower and nothing else.
    pub fn save(&mut self) {
        let Some(path) = &self.cache_file else { return };
        // SAFETY: cache and device are alive.
        let Ok(data) = (unsafe { self.device.raw.get_pipeline_cache_data(self.cache) }) else { return };
        if data.len() > self.loaded_bytes && write_cache(path, &data).is_ok() {
            self.loaded_bytes = data.len();
            remove_stale(path);
        }
    }

    fn layout(&mut self, kernel: Kernel) -> Result<(vk::PipelineLayout, u32), VulkanError> {
        let bytes = shaders::reflect::interface(self.device.shaders.spirv(kernel)?).push_bytes().next_multiple_of(8);
        if let Some(layout) = self.layouts.get(&bytes) {
            return Ok((*layout, bytes));
        }
        let ranges = [vk::PushConstantRange { stage_flags: vk::ShaderStageFlags::COMPUTE, offset: 0, size: bytes }];
        let info = vk::PipelineLayoutCreateInfo::default().push_constant_ranges(&ranges);
        // SAFETY: the device is alive and `info` complete.
        let layout = check("vkCreatePipelineLayout", unsafe { self.device.raw.create_pipeline_layout(&info, None) })?;
        self.layouts.insert(bytes, layout);
        Ok((layout, bytes))
    }

    fn compile(
        &self,
        variant: &Variant,
        (layout, push_bytes): (vk::PipelineLayout, u32),
    ) -> Result<Pipeline, VulkanError> {
        let raw = &self.device.raw;
        let fail = |result| match result {
            vk::Result::ERROR_DEVICE_LOST => VulkanError::DeviceLost { during: "vkCreateComputePipelines" },
            result => VulkanError::Pipeline { kernel: variant.kernel.name(), result },
        };
        let code = vk::ShaderModuleCreateInfo::default().code(self.device.shaders.spirv(variant.kernel)?);
        // SAFETY: the code is a whole SPIR-V module, compiled and checked when this program was built, or just now
        // from an edited source with the same push constants.
        let module = unsafe { raw.create_shader_module(&code, None) }.map_err(fail)?;
        let entries: Vec<_> = (0..variant.constants.len() as u32)
            .map(|i| vk::SpecializationMapEntry { constant_id: i, offset: 4 * i, size: 4 })
            .collect();
        let constants =
            vk::SpecializationInfo::default().map_entries(&entries).data(bytemuck::cast_slice(&variant.constants));
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            .specialization_info(&constants);
        let mut subgroup = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default();
        let (smallest, largest) = self.device.info.subgroup_sizes;
        let can_have = |size: &u32| smallest < largest && (smallest..=largest).contains(size) && size.is_power_of_two();
        if let Some(size) = variant.subgroup_size().filter(can_have) {
            subgroup = subgroup.required_subgroup_size(size);
            stage = stage.flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS).push_next(&mut subgroup);
        }
        let flags = if self.device.executable_properties.is_some() {
            vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR
        } else {
            vk::PipelineCreateFlags::empty()
        };
        let info = [vk::ComputePipelineCreateInfo::default().flags(flags).stage(stage).layout(layout)];
        // SAFETY: module, layout and cache are alive; the cache is synchronised by the driver; the module may be
        // destroyed once the pipeline exists.
        let result = unsafe {
            let result = raw.create_compute_pipelines(self.cache, &info, None);
            raw.destroy_shader_module(module, None);
            result
        };
        let pipelines = result.map_err(|(_, result)| fail(result))?;
        Ok(Pipeline { raw: pipelines[0], layout, push_bytes })
    }
}

impl Drop for Pipelines {
    fn drop(&mut self) {
        self.save();
        // SAFETY: no submit is running: the commands were dropped before.
        unsafe {
            self.made.values().for_each(|p| self.device.raw.destroy_pipeline(p.raw, None));
            self.layouts.values().for_each(|&l| self.device.raw.destroy_pipeline_layout(l, None));
            self.device.raw.destroy_pipeline_cache(self.cache, None);
        }
    }
}

/// The driver's representations of an executable that are text.
///
/// # Safety
/// `info` names an executable of a live pipeline that was made with representations.
unsafe fn internal_texts(
    functions: &khr::pipeline_executable_properties::Device,
    info: &vk::PipelineExecutableInfoKHR<'_>,
) -> Result<Vec<(String, String)>, vk::Result> {
    // Twice: first for the sizes of the texts, then for the texts.
    // SAFETY: as promised by the caller; with null pointers the driver writes sizes only.
    let mut all = unsafe { functions.get_pipeline_executable_internal_representations(info) }?;
    let mut buffers: Vec<Vec<u8>> = all.iter().map(|r| vec![0; r.data_size]).collect();
    for (r, buffer) in all.iter_mut().zip(&mut buffers) {
        r.p_data = buffer.as_mut_ptr().cast();
    }
    let mut count = all.len() as u32;
    let call = functions.fp().get_pipeline_executable_internal_representations_khr;
    // SAFETY: as above; each buffer has the size that its entry says.
    unsafe { call(functions.device(), info, &mut count, all.as_mut_ptr()) }.result()?;
    let name = |r: &vk::PipelineExecutableInternalRepresentationKHR<'_>| {
        r.name_as_c_str().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let text = |b: Vec<u8>| String::from_utf8_lossy(b.split(|&c| c == 0).next().unwrap_or_default()).into_owned();
    Ok(all.iter().map(name).zip(buffers.into_iter().map(text)).collect())
}

fn statistic(s: &vk::PipelineExecutableStatisticKHR<'_>) -> (String, f64) {
    let name = s.name_as_c_str().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // SAFETY: `format` says which member of the union the driver has written.
    let value = unsafe {
        match s.format {
            vk::PipelineExecutableStatisticFormatKHR::BOOL32 => f64::from(s.value.b32),
            vk::PipelineExecutableStatisticFormatKHR::INT64 => s.value.i64 as f64,
            vk::PipelineExecutableStatisticFormatKHR::UINT64 => s.value.u64 as f64,
            _ => s.value.f64,
        }
    };
    (name, value)
}

/// `aimo-engine` in the user's cache folder.
pub(super) fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("aimo-engine"))
}

/// Names device and driver in files.
pub(super) fn device_name(device: &Device) -> String {
    let uuid: String = device.cache_uuid.iter().map(|b| format!("{b:02x}")).collect();
    let (vendor, model, driver) = (device.vendor_id, device.device_id, device.info.driver_version);
    format!("{vendor:04x}-{model:04x}-{driver:08x}-{uuid}")
}

fn cache_name(device: &Device) -> String {
    // Edited shaders have a file of their own, so that those built in need not be compiled again after an experiment.
    let (kind, hash) = device.shaders.edited_hash().map_or(("", shaders::HASH), |hash| ("edited-", hash));
    format!("pipelines-{}-{kind}{hash:016x}.bin", device_name(device))
}

/// The driver's data in the cache file, if the file is whole and of this device.
fn read_cache(path: &Path, device: &Device) -> Option<Vec<u8>> {
    if fs::metadata(path).ok()?.len() > CACHE_MAX_BYTES {
        return None;
    }
    let data = unpack(&fs::read(path).ok()?)?.to_vec();
    // The header that every driver's data starts with: length, version 1, vendor, device, UUID.
    let word = |at: usize| data.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let ours = word(4)? == 1
        && word(8)? == device.vendor_id
        && word(12)? == device.device_id
        && data.get(16..32)? == device.cache_uuid;
    ours.then_some(data)
}

fn write_cache(path: &Path, data: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let draft = path.with_extension(format!("{}.tmp", process::id()));
    let written = fs::write(&draft, pack(data)).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        _ = fs::remove_file(&draft);
    }
    written
}

/// Removes the files of the same device and driver that were made for other versions of the shaders.
fn remove_stale(path: &Path) {
    let name_of = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name_of(path);
    let Some((device, _)) = name.rsplit_once('-') else { return };
    let others = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    for other in others.map(|entry| entry.path()) {
        let other_name = name_of(&other);
        let hash = other_name.strip_prefix(device).and_then(|rest| rest.strip_prefix('-'));
        if other_name != name && hash.is_some_and(|rest| rest.ends_with(".bin") && !rest.contains('-')) {
            _ = fs::remove_file(other);
        }
    }
}

fn pack(data: &[u8]) -> Vec<u8> {
    [CACHE_MAGIC.as_slice(), &checksum(data).to_le_bytes(), data].concat()
}

fn unpack(file: &[u8]) -> Option<&[u8]> {
    let (sum, data) = file.strip_prefix(CACHE_MAGIC.as_slice())?.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*sum) == checksum(data)).then_some(data)
}

/// FNV-1a, 64 bits: against damage, not against malice.
fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_file_is_not_used() {
        let file = pack(b"compiled code");
        assert_eq!(unpack(&file), Some(&b"compiled code"[..]));
        for n in 0..file.len() {
            assert_eq!(unpack(&file[..n]), None, "cut to {n} bytes");
            let mut bad = file.clone();
            bad[n] ^= 1;
            assert_eq!(unpack(&bad), None, "bit flipped in byte {n}");
        }
    }

    #[test]
    fn files_of_other_shaders_are_removed_and_those_of_other_devices_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = ["aa-02.bin", "aa-01.bin", "bb-01.bin", "aa-01.tmp", "aa-edited-03.bin", "aa-edited-04.bin"]
            .map(|name| folder.path().join(format!("pipelines-1-{name}")));
        names.iter().for_each(|path| fs::write(path, b"").expect("written"));
        remove_stale(&names[0]);
        assert_eq!(names.each_ref().map(|path| path.exists()), [true, false, true, true, true, true]);
        // Edited shaders have files of their own, of which the last is kept.
        remove_stale(&names[4]);
        assert_eq!(names.each_ref().map(|path| path.exists()), [true, false, true, true, true, false]);
    }

    #[test]
    fn a_cache_file_is_replaced_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new").join("cache.bin");
        write_cache(&path, b"one").expect("written");
        write_cache(&path, b"two").expect("replaced");
        assert_eq!(unpack(&fs::read(&path).expect("readable")), Some(&b"two"[..]));
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("readable").count(), 1, "no drafts are left");
    }
}
