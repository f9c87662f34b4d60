//! What the Vulkan tests share: the software device with validation on, random weights and activations, buffers in
//! and out, and comparison with a stated tolerance.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod attention;
pub mod cache;
pub mod experts;
pub mod products;

use engine::backend::vulkan::kernels::Rows;
use engine::backend::vulkan::kernels::quantize::QuantizedRows;
use engine::backend::vulkan::{DeviceKind, DeviceOptions, Gpu, MemoryUse, Region, VulkanError, Weight, devices};
use engine::backend::{Role, TensorView};
use engine::gguf::GgmlType;
use engine::model::Activation;
use engine::quant::dequantize_row;
use half::f16;

/// Index of the software device (lavapipe). These tests fail without it: `cargo xtask test` installs it.
pub fn software_device() -> String {
    let wanted = "the Vulkan tests need lavapipe (Debian and Ubuntu: packages libvulkan1, mesa-vulkan-drivers)";
    let all = devices().unwrap_or_else(|e| panic!("{wanted}: {e}"));
    let lavapipe = all.iter().find(|d| d.kind == DeviceKind::Cpu && d.is_usable());
    lavapipe.unwrap_or_else(|| panic!("{wanted}; there are {all:?}")).index.to_string()
}

/// The software device, under the validation layers.
pub fn gpu() -> Gpu {
    gpu_with(DeviceOptions::default())
}

/// The software device with other options, under the validation layers.
pub fn gpu_with(options: DeviceOptions<'_>) -> Gpu {
    let selector = software_device();
    match Gpu::open(DeviceOptions { selector: Some(&selector), validation: true, ..options }) {
        Err(e @ VulkanError::ValidationLayerMissing) => panic!("the Vulkan tests run under validation: {e}"),
        other => other.unwrap_or_else(|e| panic!("{e}")),
    }
}

/// SplitMix64: the same numbers in every run.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1 .. 1.
    pub fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.signed()).collect()
    }
}

/// A random weight as it lies in a file, and decoded.
pub struct TestWeight {
    pub role: Role,
    pub ty: GgmlType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: Vec<u8>,
    pub decoded: Vec<f32>,
}

impl TestWeight {
    /// Random blocks; the scales are small, finite and of both signs.
    pub fn random(random: &mut Random, ty: GgmlType, rows: usize, cols: usize) -> TestWeight {
        let mut bytes = Vec::with_capacity(rows * ty.row_bytes(cols));
        for _ in 0..rows * cols / ty.block_len() {
            let start = bytes.len();
            bytes.extend((0..ty.block_bytes()).map(|_| random.bits() as u8));
            let block = &mut bytes[start..];
            let mut half = |at: usize, scale: f32| {
                block[at..at + 2].copy_from_slice(&f16::from_f32(random.signed() * scale).to_le_bytes());
            };
            match ty {
                GgmlType::F32 => block.copy_from_slice(&random.signed().to_le_bytes()),
                GgmlType::F16 => half(0, 1.0),
                GgmlType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.signed()).to_le_bytes()),
                GgmlType::Q4_0 | GgmlType::Q5_0 => half(0, 0.1),
                GgmlType::Q8_0 => half(0, 0.01),
                GgmlType::Q4_1 | GgmlType::Q5_1 => (half(0, 0.1), half(2, 1.0)).0,
                GgmlType::Q4_K | GgmlType::Q5_K => (half(0, 0.002), half(2, 0.02)).0,
                GgmlType::Q6_K => half(208, 0.0005),
                GgmlType::IQ4_NL => half(0, 0.01),
                GgmlType::IQ4_XS => half(0, 0.0005),
                GgmlType::MXFP4 => block[0] = 120 + block[0] % 8,
                GgmlType::Q2_K => (half(80, 0.05), half(82, 0.05)).0,
                GgmlType::Q3_K => half(108, 0.01),
            }
        }
        Self::from_bytes(ty, rows, cols, bytes)
    }

    pub fn from_bytes(ty: GgmlType, rows: usize, cols: usize, bytes: Vec<u8>) -> TestWeight {
        let mut decoded = vec![0.0; rows * cols];
        for (row, out) in bytes.chunks_exact(ty.row_bytes(cols)).zip(decoded.chunks_exact_mut(cols)) {
            dequantize_row(ty, row, out);
        }
        TestWeight { role: Role::Matrix, ty, rows, cols, bytes, decoded }
    }

    /// An f32 vector.
    pub fn vector(values: &[f32]) -> TestWeight {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TestWeight { role: Role::Vector, ..Self::from_bytes(GgmlType::F32, 1, values.len(), bytes) }
    }

    pub fn upload(&self, gpu: &mut Gpu, name: &str) -> Weight {
        let TestWeight { role, ty, rows, cols, ref bytes, .. } = *self;
        let view = TensorView { name, role, ty, rows, cols, data: bytes };
        gpu.upload(view).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn row(&self, r: usize) -> &[f32] {
        &self.decoded[r * self.cols..][..self.cols]
    }
}

/// What fills a buffer before a kernel runs, to see what it leaves alone.
pub const UNTOUCHED: f32 = -12345.0;

/// `[n_rows, width]` on the device, rows padded with zeros to a multiple of 8.
pub struct Matrix {
    pub region: Region,
    pub n_rows: usize,
    pub width: usize,
    pub stride: usize,
}

impl Matrix {
    pub fn new(gpu: &mut Gpu, n_rows: usize, width: usize, values: &[f32]) -> Matrix {
        let stride = width.next_multiple_of(8);
        let bytes = (n_rows * stride * 4) as u64;
        let mut region = gpu.allocate(MemoryUse::Device, bytes, "a test matrix").expect("memory");
        let out: &mut [f32] = bytemuck::cast_slice_mut(&mut region.write()[..bytes as usize]);
        out.fill(0.0);
        for (row, values) in out.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
            row[..width].copy_from_slice(values);
        }
        Matrix { region, n_rows, width, stride }
    }

    pub fn untouched(gpu: &mut Gpu, n_rows: usize, width: usize) -> Matrix {
        Matrix::new(gpu, n_rows, width, &vec![UNTOUCHED; n_rows * width])
    }

    pub fn rows(&self) -> Rows<'_> {
        Rows { region: &self.region, n_rows: self.n_rows, width: self.width, stride: self.stride }
    }

    /// The elements in use. Padding must still be zero.
    pub fn read(&self) -> Vec<f32> {
        let all: &[f32] = bytemuck::cast_slice(&self.region.read()[..self.n_rows * self.stride * 4]);
        let mut values = Vec::with_capacity(self.n_rows * self.width);
        for row in all.chunks_exact(self.stride) {
            values.extend_from_slice(&row[..self.width]);
            assert!(row[self.width..].iter().all(|&v| v == 0.0), "padding was written: {:?}", &row[self.width..]);
        }
        values
    }
}

/// `[n_rows, width]` in bytes on the device.
pub struct Bytes {
    pub region: Region,
    pub n_rows: usize,
    pub width: usize,
}

/// One block of 32 of [`Bytes`].
pub struct Block {
    pub d: f32,
    pub q: Vec<i8>,
    pub sums: [i16; 2],
}

impl Bytes {
    pub fn new(gpu: &mut Gpu, n_rows: usize, width: usize) -> Bytes {
        let bytes = QuantizedRows::bytes_of(n_rows, width);
        let mut region = gpu.allocate(MemoryUse::Device, bytes, "a test matrix in bytes").expect("memory");
        region.write().fill(0xA5);
        Bytes { region, n_rows, width }
    }

    pub fn rows(&self) -> QuantizedRows<'_> {
        QuantizedRows { region: &self.region, n_rows: self.n_rows, width: self.width }
    }

    /// The blocks of each row, those of a last half pair too.
    pub fn blocks(&self) -> Vec<Vec<Block>> {
        let n_blocks = self.width.div_ceil(64) * 2;
        let row = |r: usize| {
            let (quants, scales) = self.region.read()[r * n_blocks * 40..][..n_blocks * 40].split_at(n_blocks * 32);
            let block = |(q, s): (&[u8], &[u8])| Block {
                d: f32::from_le_bytes(s[..4].try_into().expect("four bytes")),
                q: q.iter().map(|&b| b as i8).collect(),
                sums: [4, 6].map(|at| i16::from_le_bytes([s[at], s[at + 1]])),
            };
            quants.chunks_exact(32).zip(scales.chunks_exact(8)).map(block).collect()
        };
        (0..self.n_rows).map(row).collect()
    }

    /// What the rows stand for, `[n_rows, width]`.
    pub fn decoded(&self) -> Vec<f32> {
        let rows = self.blocks();
        let values = |row: &[Block]| -> Vec<f32> {
            row.iter().flat_map(|b| b.q.iter().map(|&q| b.d * f32::from(q)).collect::<Vec<_>>()).collect()
        };
        rows.iter().flat_map(|row| values(row)[..self.width].to_vec()).collect()
    }
}

/// Numbers per token on the device.
pub fn indices(gpu: &mut Gpu, values: &[u32]) -> Region {
    let mut region = gpu.allocate(MemoryUse::Upload, (values.len() * 4) as u64, "test indices").expect("memory");
    region.write()[..values.len() * 4].copy_from_slice(bytemuck::cast_slice(values));
    region
}

/// Records with `record`, runs, and fails on any error or validation message.
pub fn run(gpu: &mut Gpu, what: &str, record: impl FnOnce(&mut Gpu) -> Result<(), VulkanError>) {
    gpu.begin().unwrap_or_else(|e| panic!("{what}: {e}"));
    record(gpu).unwrap_or_else(|e| panic!("{what}: {e}"));
    gpu.submit_and_wait().unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// Checks `got` against `want`, element by element, each within `tolerance(i)`.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: elements");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs();
        assert!(
            error <= tolerance(i),
            "{what}: element {i} is {g}, should be {w}: off by {error:e} of {:e}",
            tolerance(i)
        );
    }
}

/// The largest absolute value.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// A gated activation.
pub fn activate(activation: Activation, gate: f64, up: f64) -> f64 {
    match activation {
        Activation::Swiglu => gate / (1.0 + (-gate).exp()) * up,
        Activation::SwigluOai => {
            let gate = gate.min(7.0);
            gate / (1.0 + (-1.702 * gate).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        }
    }
}
