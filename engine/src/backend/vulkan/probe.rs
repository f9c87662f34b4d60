//! What the device can do at best, measured: bytes read and copied per second, operations per second in f32 and on the
//! matrix units. Percentages of kernels are of these and not of a data sheet. Takes up to half a gigabyte of device memory and about a second.

use std::time::Instant;

use super::error::VulkanError;
use super::gpu::Gpu;
use super::kernels::probe::{WORKGROUP, matrix_group_bytes, record_fma, record_matrix_fma, record_read};
use super::memory::{MemoryUse, Region};

/// Bytes of the buffers: more than the caches of any device, 512 MiB; of a software device less.
const GPU_BYTES: u64 = 256 << 20;
const CPU_BYTES: u64 = 64 << 20;
/// Measurements, of which the fastest counts: others may use the device too.
const N_ROUNDS: usize = 5;
/// A round takes at least this long.
const MIN_ROUND_NS: f64 = 5e6;
/// Most repetitions of a round.
const MAX_REPEATS: u32 = 64;

/// Measured peaks of a device.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Peaks {
    /// Bytes read by a kernel that does nothing else, 10⁹ per second.
    pub read_gb_per_s: f64,
    /// Bytes read plus bytes written by the driver's copy, 10⁹ per second.
    pub copy_gb_per_s: f64,
    /// f32 operations of a kernel that only multiplies and adds, 10¹² per second.
    pub f32_tflops: f64,
    /// Operations of a kernel that only multiplies f16 matrices with f32 sums, 10¹² per second; `None` without matrix
    /// units that are of use.
    #[serde(default)]
    pub matrix_tflops: Option<f64>,
}

impl Peaks {
    /// The most that a kernel that mostly reads can reach.
    pub fn gb_per_s(&self) -> f64 {
        self.read_gb_per_s.max(self.copy_gb_per_s)
    }

    /// The most operations that a kernel of this name can reach, 10¹² per second, where that was measured: not of
    /// products in integers.
    pub fn tflops_of(&self, kernel: &str) -> Option<f64> {
        match kernel.split_once('_')?.0 {
            "f16" => self.matrix_tflops,
            "f32" => Some(self.f32_tflops),
            _ => None,
        }
    }
}

/// Measures the device.
///
/// # Errors
/// It has no room for the buffers, or fails.
pub fn measure_peaks(gpu: &mut Gpu) -> Result<Peaks, VulkanError> {
    let is_cpu = gpu.info().is_cpu();
    let bytes = if is_cpu { CPU_BYTES } else { GPU_BYTES };
    let mut take = |what| gpu.allocate(MemoryUse::Device, bytes, what);
    let (a, b) = (take("a buffer to measure reads")?, take("a buffer to measure copies")?);
    let n_groups = if is_cpu { 64 } else { 2048 };
    let results = gpu.allocate(MemoryUse::Device, u64::from(n_groups * WORKGROUP) * 16, "results of a measurement")?;
    gpu.begin()?;
    [a, b].iter().for_each(|region| gpu.zero(region));
    gpu.submit_and_wait()?;
    let copy = |gpu: &mut Gpu, i: u32| -> Result<(), VulkanError> {
        let (from, to) = if i.is_multiple_of(2) { (&a, &b) } else { (&b, &a) };
        gpu.copy(from, to);
        Ok(())
    };
    let read = |gpu: &mut Gpu, i: u32| record_read(gpu, if i.is_multiple_of(2) { &a } else { &b }, &results, n_groups);
    let n_fma = if is_cpu { 256 } else { 4096 };
    let fma = |gpu: &mut Gpu, _: u32| fmas(gpu, &results, n_fma, n_groups);
    let read_ns = fastest(gpu, read)?;
    let copy_ns = fastest(gpu, copy)?;
    let fma_ns = fastest(gpu, fma)?;
    let flops = f64::from(n_groups * WORKGROUP) * f64::from(n_fma) * 64.0;
    let matrix = gpu.tuning().matrix.map(|m| m.tiles[0]);
    let matrix_tflops = match matrix {
        Some(tile) => {
            let (n, n_groups) = (n_fma / 4, (results.bytes / matrix_group_bytes(&tile)).min(1024) as u32);
            let ns = fastest(gpu, |gpu, _| record_matrix_fma(gpu, &tile, &results, [0.5, 0.5], n, n_groups))?;
            let written = u64::from(n_groups) * matrix_group_bytes(&tile);
            let flops = written / 4 * u64::from(n) * 8 * u64::from(tile.shape.k);
            Some(flops as f64 / ns / 1e3)
        }
        None => None,
    };
    Ok(Peaks {
        matrix_tflops,
        read_gb_per_s: bytes as f64 / read_ns,
        copy_gb_per_s: 2.0 * bytes as f64 / copy_ns,
        f32_tflops: flops / fma_ns / 1e3,
    })
}

fn fmas(gpu: &mut Gpu, dst: &Region, n: u32, n_groups: u32) -> Result<(), VulkanError> {
    // Stays near 1 however many rounds there are.
    record_fma(gpu, dst, [0.5, 0.5], n, n_groups)
}

/// Nanoseconds of one repetition of what `record` records, in the fastest of several rounds of many.
fn fastest(gpu: &mut Gpu, record: impl Fn(&mut Gpu, u32) -> Result<(), VulkanError>) -> Result<f64, VulkanError> {
    let mut round = |n: u32| -> Result<f64, VulkanError> {
        gpu.begin()?;
        (0..n).try_for_each(|i| record(gpu, i))?;
        let start = Instant::now();
        gpu.submit_and_wait()?;
        let waited_ns = start.elapsed().as_nanos() as f64;
        Ok(gpu.last_pass().device_ns.map_or(waited_ns, |ns| ns as f64).max(1.0) / f64::from(n))
    };
    // The first one compiles the kernel and touches the memory.
    round(1)?;
    let once = round(1)?;
    let n = ((MIN_ROUND_NS / once).ceil() as u32).clamp(1, MAX_REPEATS);
    let mut best = f64::INFINITY;
    for _ in 0..N_ROUNDS {
        best = best.min(round(n)?);
    }
    Ok(best)
}
