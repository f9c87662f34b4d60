//! Weights in device memory: the parts of their blocks moved apart so that each part is aligned (18-, 22-, 34- and
//! 210-byte blocks are not), one copy per tensor, made once at load on all cores. The only place that knows both
//! layouts; the shaders' side is `shaders/include/weights.glsl`.
//!
//! Vectors (norms, biases) are decoded to f32, so kernels read them without looking at their type.

use rayon::prelude::*;
use shaders::WeightType;

use super::Gpu;
use super::commands::ReadAddress;
use super::error::VulkanError;
use super::memory::{MemoryUse, Region};
use crate::backend::{Role, TensorView};
use crate::gguf::GgmlType;
use crate::quant::dequantize_row;

/// Bytes of the staging buffer on devices whose memory the processor can't write.
pub(super) const STAGING_BYTES: u64 = 32 << 20;
/// Bytes that one task of the pool moves: little enough to stay in a core's cache while its parts are taken apart.
const TASK_BYTES: usize = 256 << 10;
/// Kernels count units of a tensor in 32 bits, with room for the index arithmetic.
const MAX_UNITS: u64 = 1 << 27;

/// A weight tensor on the device, `[rows, cols]`.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Name in the file, for messages.
    pub name: String,
    /// Type it is stored in on the device.
    pub ty: WeightType,
    /// Rows.
    pub rows: usize,
    /// Elements per row.
    pub cols: usize,
    row_bytes: u64,
    pub(super) quants: ReadAddress,
    pub(super) high: ReadAddress,
    pub(super) scales: ReadAddress,
}

impl Weight {
    /// Bytes of a row on the device.
    pub(super) fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    /// Elements from one row to the next, of f32 weights.
    pub(super) fn stride(&self) -> u32 {
        (self.row_bytes / 4) as u32
    }

    /// Units that one invocation decodes at a time, per row.
    pub(super) fn units_per_row(&self) -> u32 {
        self.cols.div_ceil(self.ty.unit()) as u32
    }
}

/// The kernels' name of a file's type.
pub fn weight_type(ty: GgmlType) -> WeightType {
    match ty {
        GgmlType::F32 => WeightType::F32,
        GgmlType::F16 => WeightType::F16,
        GgmlType::BF16 => WeightType::BF16,
        GgmlType::Q4_0 => WeightType::Q4_0,
        GgmlType::Q4_1 => WeightType::Q4_1,
        GgmlType::Q5_0 => WeightType::Q5_0,
        GgmlType::Q5_1 => WeightType::Q5_1,
        GgmlType::Q8_0 => WeightType::Q8_0,
        GgmlType::Q2_K => WeightType::Q2_K,
        GgmlType::Q3_K => WeightType::Q3_K,
        GgmlType::Q4_K => WeightType::Q4_K,
        GgmlType::Q5_K => WeightType::Q5_K,
        GgmlType::Q6_K => WeightType::Q6_K,
        GgmlType::IQ4_NL => WeightType::IQ4_NL,
        GgmlType::IQ4_XS => WeightType::IQ4_XS,
        GgmlType::MXFP4 => WeightType::MXFP4,
    }
}

/// Copies `tensor` to the device.
pub(super) fn upload(gpu: &mut Gpu, tensor: TensorView<'_>) -> Result<Weight, VulkanError> {
    if tensor.role == Role::Vector && tensor.ty != GgmlType::F32 {
        let mut values = vec![0.0; tensor.rows * tensor.cols];
        let rows = tensor.data.chunks_exact(tensor.ty.row_bytes(tensor.cols));
        rows.zip(values.chunks_exact_mut(tensor.cols)).for_each(|(row, out)| dequantize_row(tensor.ty, row, out));
        return upload(gpu, TensorView { ty: GgmlType::F32, data: bytemuck::cast_slice(&values), ..tensor });
    }
    let ty = weight_type(tensor.ty);
    let layout = Layout::new(tensor.ty, ty, tensor.cols);
    assert_eq!(tensor.data.len(), tensor.rows * layout.file_row, "bytes of {}", tensor.name);
    let units = tensor.rows as u64 * tensor.cols.div_ceil(ty.unit()) as u64;
    if units > MAX_UNITS {
        return Err(VulkanError::TooLarge { what: format!("{} (blocks)", tensor.name), size: units, limit: MAX_UNITS });
    }
    let mut parts: [Option<Region>; 3] = [None; 3];
    for (part, row_bytes) in parts.iter_mut().zip(layout.rows()) {
        if row_bytes > 0 {
            *part = Some(gpu.memory.allocate(MemoryUse::Device, (tensor.rows * row_bytes) as u64, tensor.name)?);
        }
    }
    let direct = !gpu.staged_uploads && parts.iter().flatten().all(Region::is_mapped);
    if direct {
        let [quants, high, scales] = &mut parts;
        // A part's region may be rounded up; a type may lack a part.
        let [quants, high, scales] =
            [(quants, layout.quants_row), (high, layout.high_row), (scales, layout.scales_row)]
                .map(|(part, row)| part.as_mut().map_or(&mut [][..], |r| &mut r.write()[..tensor.rows * row]));
        layout.repack(tensor.data, quants, high, scales);
    } else {
        stage(gpu, tensor, &layout, &parts)?;
    }
    let address = |part: &Option<Region>| part.as_ref().map_or(ReadAddress::NONE, ReadAddress::of_constant);
    Ok(Weight {
        name: tensor.name.to_owned(),
        ty,
        rows: tensor.rows,
        cols: tensor.cols,
        row_bytes: layout.rows().iter().sum::<usize>() as u64,
        quants: address(&parts[0]),
        high: address(&parts[1]),
        scales: address(&parts[2]),
    })
}

/// Repacks into the staging buffer, as many rows at a time as fit, and copies from there.
fn stage(
    gpu: &mut Gpu,
    tensor: TensorView<'_>,
    layout: &Layout,
    parts: &[Option<Region>; 3],
) -> Result<(), VulkanError> {
    let staging = match gpu.staging {
        Some(region) => region,
        None => *gpu.staging.insert(gpu.memory.allocate(MemoryUse::Upload, STAGING_BYTES, "the staging buffer")?),
    };
    // Each part starts on a multiple of 256 bytes.
    let rows_at_once = (STAGING_BYTES as usize - 3 * 256) / layout.rows().iter().sum::<usize>();
    if rows_at_once == 0 {
        let what = format!("a row of {} (bytes)", tensor.name);
        return Err(VulkanError::TooLarge { what, size: layout.file_row as u64, limit: STAGING_BYTES });
    }
    for first in (0..tensor.rows).step_by(rows_at_once) {
        let n = rows_at_once.min(tensor.rows - first);
        let mut start = 0;
        let mut pieces = layout.rows().map(|row_bytes| {
            let piece = staging.slice(start, (n * row_bytes) as u64);
            start += ((n * row_bytes) as u64).next_multiple_of(256);
            piece
        });
        let [quants, high, scales] = &mut pieces;
        let data = &tensor.data[first * layout.file_row..][..n * layout.file_row];
        layout.repack(data, quants.write(), high.write(), scales.write());
        gpu.commands.begin()?;
        for ((piece, part), row_bytes) in pieces.iter().zip(parts).zip(layout.rows()) {
            if let Some(part) = part {
                gpu.commands.op().copy(piece, &part.slice((first * row_bytes) as u64, piece.bytes));
            }
        }
        gpu.commands.submit_and_wait()?;
    }
    Ok(())
}

/// How a row of a type lies in the file and on the device.
struct Layout {
    ty: GgmlType,
    /// Bytes of a row in the file.
    file_row: usize,
    /// Bytes of a row's quants, high bits and scales on the device.
    quants_row: usize,
    high_row: usize,
    scales_row: usize,
}

impl Layout {
    fn new(ty: GgmlType, kind: WeightType, cols: usize) -> Layout {
        let blocks = cols / ty.block_len();
        let (quants, high, scales) = match ty {
            // Rows are padded so that kernels read 8 weights at a time.
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {
                let quants_row = cols.next_multiple_of(kind.unit()) * ty.block_bytes();
                return Layout { ty, file_row: ty.row_bytes(cols), quants_row, high_row: 0, scales_row: 0 };
            }
            GgmlType::Q4_0 => (16, 0, 2),
            GgmlType::Q4_1 => (16, 0, 4),
            GgmlType::Q5_0 => (16, 4, 2),
            GgmlType::Q5_1 => (16, 4, 4),
            GgmlType::Q8_0 => (32, 0, 2),
            GgmlType::Q2_K => (80, 0, 4),
            GgmlType::Q3_K => (96, 12, 2),
            GgmlType::Q4_K | GgmlType::Q5_K => (ty.block_bytes(), 0, 0),
            GgmlType::Q6_K => (208, 0, 2),
            GgmlType::IQ4_NL => (16, 0, 2),
            GgmlType::IQ4_XS => (128, 8, 0),
            GgmlType::MXFP4 => (16, 0, 1),
        };
        Layout {
            ty,
            file_row: ty.row_bytes(cols),
            quants_row: blocks * quants,
            high_row: blocks * high,
            scales_row: blocks * scales,
        }
    }

    /// Bytes of a row of each part.
    fn rows(&self) -> [usize; 3] {
        [self.quants_row, self.high_row, self.scales_row]
    }

    /// Moves whole rows from the file's layout to the device's, on all cores.
    fn repack(&self, data: &[u8], mut quants: &mut [u8], mut high: &mut [u8], mut scales: &mut [u8]) {
        let n_rows = data.len() / self.file_row;
        let rows_per_task = (TASK_BYTES / self.file_row).max(1);
        let mut tasks = Vec::with_capacity(n_rows.div_ceil(rows_per_task));
        for data in data.chunks(rows_per_task * self.file_row) {
            let n = data.len() / self.file_row;
            let (q, h, s);
            (q, quants) = quants.split_at_mut(n * self.quants_row);
            (h, high) = high.split_at_mut(n * self.high_row);
            (s, scales) = scales.split_at_mut(n * self.scales_row);
            tasks.push((data, q, h, s));
        }
        tasks.into_par_iter().for_each(|(data, q, h, s)| self.repack_rows(data, q, h, s));
    }

    fn repack_rows(&self, data: &[u8], quants: &mut [u8], high: &mut [u8], scales: &mut [u8]) {
        match self.ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {
                for (row, out) in data.chunks_exact(self.file_row).zip(quants.chunks_exact_mut(self.quants_row)) {
                    let (weights, padding) = out.split_at_mut(self.file_row);
                    weights.copy_from_slice(row);
                    padding.fill(0);
                }
            }
            GgmlType::Q4_K | GgmlType::Q5_K => quants.copy_from_slice(data),
            GgmlType::Q4_0 | GgmlType::Q8_0 | GgmlType::IQ4_NL => {
                split(self.ty, data, [(2, quants), (0, scales)]);
            }
            GgmlType::Q4_1 => split(self.ty, data, [(4, quants), (0, scales)]),
            GgmlType::Q5_0 => split(self.ty, data, [(6, quants), (2, high), (0, scales)]),
            GgmlType::Q5_1 => split(self.ty, data, [(8, quants), (4, high), (0, scales)]),
            GgmlType::Q2_K => split(self.ty, data, [(0, quants), (80, scales)]),
            GgmlType::Q3_K => split(self.ty, data, [(0, quants), (96, high), (108, scales)]),
            GgmlType::Q6_K => split(self.ty, data, [(0, quants), (208, scales)]),
            GgmlType::IQ4_XS => split(self.ty, data, [(8, quants), (0, high)]),
            GgmlType::MXFP4 => {
                split(self.ty, data, [(0, scales)]);
                for (block, out) in data.chunks_exact(self.ty.block_bytes()).zip(quants.chunks_exact_mut(16)) {
                    let codes = u128::from_le_bytes(block[1..].try_into().expect("16 bytes of codes"));
                    out.copy_from_slice(&without_negative_zeros(codes).to_le_bytes());
                }
            }
        }
    }
}

/// 32 FP4 codes with plain zeros for negative ones, as kernels that negate four bytes at a time need them.
fn without_negative_zeros(codes: u128) -> u128 {
    const LOWEST: u128 = u128::MAX / 0xF;
    let is_zero = !(codes | codes >> 1 | codes >> 2) & LOWEST;
    codes & !(is_zero << 3)
}

/// Copies the parts of every block, each from its offset in the block, to where the parts of that kind follow each
/// other.
fn split<const N: usize>(ty: GgmlType, data: &[u8], parts: [(usize, &mut [u8]); N]) {
    let (block_bytes, n_blocks) = (ty.block_bytes(), data.len() / ty.block_bytes());
    for (offset, part) in parts {
        let from = (data, block_bytes, offset);
        match part.len() / n_blocks {
            1 => copy_parts::<1>(from, part),
            2 => copy_parts::<2>(from, part),
            4 => copy_parts::<4>(from, part),
            8 => copy_parts::<8>(from, part),
            12 => copy_parts::<12>(from, part),
            16 => copy_parts::<16>(from, part),
            32 => copy_parts::<32>(from, part),
            80 => copy_parts::<80>(from, part),
            96 => copy_parts::<96>(from, part),
            128 => copy_parts::<128>(from, part),
            208 => copy_parts::<208>(from, part),
            n => unreachable!("no part of a block has {n} bytes"),
        }
    }
}

/// Copies `N` bytes of every block: of a known number, which is a few instructions and no call.
fn copy_parts<const N: usize>((data, block_bytes, offset): (&[u8], usize, usize), part: &mut [u8]) {
    for (block, out) in data.chunks_exact(block_bytes).zip(part.as_chunks_mut::<N>().0) {
        out.copy_from_slice(&block[offset..offset + N]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_block_goes_to_one_part_and_keeps_its_order() {
        for ty in GgmlType::ALL {
            let (rows, cols) = (3, 512);
            let layout = Layout::new(ty, weight_type(ty), cols);
            let mut data: Vec<u8> = (0..rows * layout.file_row).map(|i| (i * 31 % 251) as u8).collect();
            if ty == GgmlType::MXFP4 {
                // No negative zeros, which are not kept.
                data.iter_mut().for_each(|b| *b = *b & 0x77 | 0x11);
            }
            let [mut q, mut h, mut s] = layout.rows().map(|n| vec![0; rows * n]);
            layout.repack(&data, &mut q, &mut h, &mut s);
            assert_eq!(q.len() + h.len() + s.len(), data.len(), "{ty}: the same number of bytes");
            // Put the blocks together again, in the order of ggml's structs.
            let n_blocks = data.len() / ty.block_bytes();
            let part = |p: &[u8], b: usize| p[b * p.len() / n_blocks..][..p.len() / n_blocks].to_vec();
            let again: Vec<u8> = (0..n_blocks)
                .flat_map(|b| match ty {
                    GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q6_K => {
                        [part(&q, b), part(&h, b), part(&s, b)].concat()
                    }
                    _ => [part(&s, b), part(&h, b), part(&q, b)].concat(),
                })
                .collect();
            assert_eq!(again, data, "{ty}");
        }
    }

    #[test]
    fn negative_zeros_become_zeros_and_other_codes_stay() {
        for code in 0..16u128 {
            let want = if code == 8 { 0 } else { code };
            for at in [0, 4, 60, 124] {
                let others = !(0xF << at) & (u128::MAX / 0xF);
                assert_eq!(without_negative_zeros(others | code << at), others | want << at, "{code} at bit {at}");
            }
        }
    }

    #[test]
    fn odd_rows_of_plain_types_are_padded_with_zeros() {
        let layout = Layout::new(GgmlType::F16, WeightType::F16, 5);
        let data: Vec<u8> = (1..=20).collect();
        let mut quants = vec![0xFF; 32];
        layout.repack(&data, &mut quants, &mut [], &mut []);
        assert_eq!(quants[..10], data[..10]);
        assert_eq!(quants[10..16], [0; 6]);
        assert_eq!(quants[16..26], data[10..]);
        assert_eq!(quants[26..], [0; 6]);
    }

    #[test]
    fn many_rows_are_repacked_by_several_tasks() {
        let layout = Layout::new(GgmlType::Q8_0, WeightType::Q8_0, 32 * 1024);
        let rows = 2 * TASK_BYTES / layout.file_row + 3;
        let data: Vec<u8> = (0..rows * layout.file_row).map(|i| (i / 7 % 253) as u8).collect();
        let [mut q, _, mut s] = layout.rows().map(|n| vec![0; rows * n]);
        layout.repack(&data, &mut q, &mut [], &mut s);
        let (last_q, last_s) = (&q[q.len() - 32..], &s[s.len() - 2..]);
        assert_eq!([last_s, last_q].concat(), data[data.len() - 34..]);
    }
}
