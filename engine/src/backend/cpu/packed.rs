//! Weights repacked for the CPU, as llama.cpp's `--repack` does in its own way: the rows of a matrix in panels of eight,
//! their codes interleaved in steps of four columns, `[panel][group][step][row][4]`, and still in as few bits as the
//! file has them. A vector then holds four columns of eight rows, whatever the number of tokens: sums stay apart by row,
//! nothing is added across lanes, and nothing has to be unpacked for a batch.
//!
//! The order of a record (eight rows × 256 columns of a K-quant, or × 32 columns of the others) is: low nibbles, two
//! steps to a vector; higher bits of the codes, [`PackedType::high_bits`] of each step; scales; `d`, and `dmin`. It is as
//! long as the eight blocks that it is made of.
//!
//! Callers: `Cpu::repack` makes them, `product` multiplies with them. AVX2 only; other machines (those with AVX-512 have
//! wider panels), and types without a record, use the file's own blocks by way of `rows` and `panel`. Results are the same
//! to the bit.

use super::CpuWeight;
use super::activation::{GROUP, QuantizedRows, ScaleSpan};
use super::group::{SmallGroup, SuperGroup, group_of, span_of};
use super::packed_avx2;
use super::panel::{Avx2, SmallPanel, SuperPanel};
use super::simd::{SimdLevel, vectorised};
use crate::gguf::GgmlType;
use memmap2::{Advice, MmapMut};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a panel.
pub(super) const PANEL_ROWS: usize = 8;

/// A repacked matrix.
pub(super) struct Packed {
    pub(super) ty: PackedType,
    /// Groups of 256 columns per row, the last of which may be short.
    pub(super) groups: usize,
    /// Bytes of a panel, all its groups.
    panel_bytes: usize,
    /// Anonymous memory, in large pages where the system has them.
    data: MmapMut,
}

/// A type that has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PackedType {
    Q4_0,
    Q5_0,
    Q8_0,
    Mxfp4,
    Q4K,
    Q5K,
    Q6K,
}

impl PackedType {
    fn of(ty: GgmlType) -> Option<Self> {
        Some(match ty {
            GgmlType::Q4_0 => PackedType::Q4_0,
            GgmlType::Q5_0 => PackedType::Q5_0,
            GgmlType::Q8_0 => PackedType::Q8_0,
            GgmlType::MXFP4 => PackedType::Mxfp4,
            GgmlType::Q4_K => PackedType::Q4K,
            GgmlType::Q5_K => PackedType::Q5K,
            GgmlType::Q6_K => PackedType::Q6K,
            _ => return None,
        })
    }

    /// Bits of a code above its nibble; Q8_0's codes are whole bytes.
    fn high_bits(self) -> usize {
        match self {
            PackedType::Q5_0 | PackedType::Q5K => 1,
            PackedType::Q6K => 2,
            _ => 0,
        }
    }
}

impl Packed {
    /// Repacks `weight` on the current thread pool, if its type and shape allow it and there is memory for it.
    pub(super) fn new(weight: &CpuWeight) -> Option<Self> {
        let ty = PackedType::of(weight.ty).filter(|_| weight.rows.is_multiple_of(PANEL_ROWS))?;
        let panel_bytes = PANEL_ROWS * weight.ty.row_bytes(weight.cols);
        let mut data = MmapMut::map_anon(weight.data.len()).ok()?;
        // Only a wish: without large pages it works as well.
        let _ = data.advise(Advice::HugePage);
        let groups = weight.cols.div_ceil(GROUP);
        data.par_chunks_exact_mut(panel_bytes).enumerate().for_each_init(Scratch::default, |scratch, (p, panel)| {
            let rows = p * PANEL_ROWS..(p + 1) * PANEL_ROWS;
            for (g, records) in panel.chunks_mut(PANEL_ROWS * weight.ty.row_bytes(GROUP)).enumerate() {
                scratch.pack(ty, weight, rows.clone(), g, records);
            }
        });
        Some(Packed { ty, groups, panel_bytes, data })
    }

    /// The records of panel `p`.
    pub(super) fn panel(&self, p: usize) -> &[u8] {
        &self.data[p * self.panel_bytes..(p + 1) * self.panel_bytes]
    }

    /// `out[i][r] = row r of rows · x[tokens.start + i]`; `out` is `[tokens][rows]`, `rows` are whole panels, `sums` is
    /// scratch.
    pub(super) fn multiply(
        &self,
        rows: Range<usize>,
        x: &QuantizedRows,
        tokens: Range<usize>,
        sums: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let n = tokens.len();
        assert!(rows.start.is_multiple_of(PANEL_ROWS) && rows.len().is_multiple_of(PANEL_ROWS), "rows {rows:?}");
        assert!(out.len() == rows.len() * n && x.groups == self.groups);
        // `[panel][token][8]`.
        sums.clear();
        sums.resize(rows.len() * n, 0.0);
        packed_avx2::multiply(self, rows.start / PANEL_ROWS, x, tokens.start, n, sums);
        for (i, out) in out.chunks_exact_mut(rows.len()).enumerate() {
            for (p, out) in out.chunks_exact_mut(PANEL_ROWS).enumerate() {
                out.copy_from_slice(&sums[(p * n + i) * PANEL_ROWS..][..PANEL_ROWS]);
            }
        }
    }
}

/// What a thread needs to repack.
struct Scratch {
    supers: [SuperGroup; PANEL_ROWS],
    smalls: [SmallGroup; PANEL_ROWS],
    super_panel: SuperPanel<PANEL_ROWS>,
    small_panel: SmallPanel<PANEL_ROWS>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch {
            supers: [const { SuperGroup::ZERO }; PANEL_ROWS],
            smalls: [const { SmallGroup::ZERO }; PANEL_ROWS],
            super_panel: SuperPanel::ZERO,
            small_panel: SmallPanel::ZERO,
        }
    }
}

impl Scratch {
    /// Writes the record, or the records, of group `g`.
    fn pack(&mut self, ty: PackedType, weight: &CpuWeight, rows: Range<usize>, g: usize, out: &mut [u8]) {
        let block = |r: usize| group_of(weight.ty, weight.row(rows.start + r), g);
        if span_of(weight.ty) == Some(ScaleSpan::Super) {
            self.super_panel.fill::<Avx2>(&mut self.supers, weight, rows.clone(), g);
            let panel = &self.super_panel;
            let (codes, scales) = out.split_at_mut(GROUP / 32 * (128 + 32 * ty.high_bits()));
            let (low, high) = codes.split_at_mut(GROUP / 32 * 128);
            pack_codes(ty, panel.codes.as_flattened().as_flattened(), low, high);
            // Bytes of `d` in a file's block, and where `dmin` is stored too.
            let (d_at, n_d) = if ty == PackedType::Q6K { (208, 1) } else { (0, 2) };
            let (scales, d) = scales.split_at_mut(scales.len() - n_d * 2 * PANEL_ROWS);
            if ty == PackedType::Q6K {
                let all = panel.scale.as_flattened().iter();
                scales.iter_mut().zip(all).for_each(|(out, scale)| *out = scale[0] as i8 as u8);
            } else {
                pack_scales_mins(panel, scales);
            }
            for i in 0..n_d * PANEL_ROWS {
                let at = d_at + i / PANEL_ROWS * 2;
                d[2 * i..2 * i + 2].copy_from_slice(&block(i % PANEL_ROWS)[at..at + 2]);
            }
            return;
        }
        self.small_panel.fill::<Avx2>(&mut self.smalls, weight, rows.clone(), g);
        let block_bytes = weight.ty.block_bytes();
        let d_bytes = if ty == PackedType::Mxfp4 { 1 } else { 2 };
        let codes = self.small_panel.codes.as_flattened().as_flattened().chunks_exact(32 * PANEL_ROWS);
        for (b, (record, codes)) in out.chunks_exact_mut(PANEL_ROWS * block_bytes).zip(codes).enumerate() {
            let (packed, d) = record.split_at_mut(record.len() - d_bytes * PANEL_ROWS);
            if ty == PackedType::Q8_0 {
                // Unsigned in the panel, signed here.
                packed.iter_mut().zip(codes).for_each(|(out, code)| *out = code ^ 0x80);
            } else {
                let (low, high) = packed.split_at_mut(128);
                pack_codes(ty, codes, low, high);
            }
            for (r, d) in d.chunks_exact_mut(d_bytes).enumerate() {
                d.copy_from_slice(&block(r)[b * block_bytes..][..d_bytes]);
            }
        }
    }
}

/// Splits `codes`, `[step][8 rows][4]`, into nibbles, two steps to 32 bytes, and what is above them: one bit of eight
/// steps, or two bits of four, to each byte.
fn pack_codes(ty: PackedType, codes: &[u8], low: &mut [u8], high: &mut [u8]) {
    match ty {
        // The panel's codes are values; a nibble stands for each.
        PackedType::Mxfp4 => pack_nibbles(codes, low, mxfp4_nibble),
        _ => vectorised!(SimdLevel::Avx2, || pack_nibbles(codes, low, |code| code & 15)),
    }
    match ty.high_bits() {
        0 => {}
        1 => vectorised!(SimdLevel::Avx2, || pack_high::<1>(codes, high)),
        _ => vectorised!(SimdLevel::Avx2, || pack_high::<2>(codes, high)),
    }
}

#[inline(always)]
fn pack_nibbles(codes: &[u8], low: &mut [u8], nibble: impl Fn(u8) -> u8) {
    for (out, steps) in low.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
        for i in 0..32 {
            out[i] = nibble(steps[i]) | nibble(steps[32 + i]) << 4;
        }
    }
}

#[inline(always)]
fn pack_high<const BITS: usize>(codes: &[u8], high: &mut [u8]) {
    for (out, steps) in high.as_chunks_mut::<32>().0.iter_mut().zip(codes.chunks_exact(32 * 8 / BITS)) {
        *out = [0; 32];
        for (s, step) in steps.as_chunks::<32>().0.iter().enumerate() {
            for i in 0..32 {
                out[i] |= step[i] >> 4 << (BITS * s);
            }
        }
    }
}

/// The nibble of a value that `group::MXFP4_CODES` has; of those for which there are two, 0 and −0, the first.
fn mxfp4_nibble(code: u8) -> u8 {
    super::group::MXFP4_CODES.iter().position(|c| *c == code).unwrap_or(0) as u8
}

/// Q4_K's and Q5_K's eight scales and minima of eight rows, 6 bits each, in 96 bytes: scales 0–3, scales 4–7 and minima
/// 0–3 in the low bits of 32 bytes each, minima 4–7 in the bits above these, two at a time.
fn pack_scales_mins(panel: &SuperPanel<PANEL_ROWS>, out: &mut [u8]) {
    for b in 0..4 {
        for r in 0..PANEL_ROWS {
            let scale = |b: usize| panel.scale[2 * b][r][0] as u8;
            let min = |b: usize| panel.min[b][r][0] as u8;
            let last = min(b + 4);
            let at = b * PANEL_ROWS + r;
            out[at] = scale(b) | last << 6;
            out[32 + at] = scale(b + 4) | last >> 2 << 6;
            out[64 + at] = min(b) | last >> 4 << 6;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::random_row;
    use super::super::rows::{RowBlock, dot_rows};
    use super::*;

    /// The bits of the row kernels, for every number of tokens up to where records are unpacked, and beyond.
    #[test]
    fn repacked_weights_give_the_same_bits() {
        if SimdLevel::detect() < SimdLevel::Avx2 {
            return;
        }
        let mut types = 0;
        for ty in GgmlType::ALL {
            let Some(span) = span_of(ty) else { continue };
            let cols = if ty.block_len() == 256 { 768 } else { 608 };
            let n_rows = 40;
            let data: Vec<u8> = (0..n_rows).flat_map(|r| random_row(ty, cols, r as u64 + 1)).collect();
            let weight = CpuWeight { ty, rows: n_rows, cols, data: Vec::leak(data), packed: None };
            let Some(packed) = Packed::new(&weight) else { continue };
            types += 1;
            assert_eq!(packed.data.len(), weight.data.len(), "{ty}");
            let n = 37;
            let x: Vec<f32> = (0..n * cols).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 400.0).collect();
            let mut x_rows = QuantizedRows::default();
            x_rows.quantize(SimdLevel::Avx2, &x, n, cols, span);
            let mut sums = vec![1.0; 7];
            for tokens in [0..1, 3..5, 7..10, 1..5, 2..7, 0..8, 5..16, 0..16, 1..18, 0..n] {
                for rows in [0..n_rows, 8..24] {
                    let row_bytes = ty.row_bytes(cols);
                    let data = &weight.data[rows.start * row_bytes..rows.end * row_bytes];
                    let mut want = vec![0.0; tokens.len() * rows.len()];
                    let block = RowBlock { ty, row_bytes, data };
                    dot_rows(SimdLevel::Avx2, block, &x_rows, tokens.clone(), &mut want);
                    let mut got = vec![1.0; want.len()];
                    packed.multiply(rows.clone(), &x_rows, tokens.clone(), &mut sums, &mut got);
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        let place = format!("{ty} tokens {tokens:?} rows {rows:?} element {i}");
                        assert_eq!(got.to_bits(), want.to_bits(), "{place}: {got} for {want}");
                    }
                }
            }
        }
        assert_eq!(types, 7);
    }

    #[test]
    fn other_types_and_odd_numbers_of_rows_stay_as_they_are() {
        for (ty, rows) in [(GgmlType::Q4_K, 12), (GgmlType::Q3_K, 16), (GgmlType::F16, 16)] {
            let data = (0..rows).flat_map(|r| random_row(ty, 256, r as u64 + 1)).collect();
            let weight = CpuWeight { ty, rows, cols: 256, data: Vec::leak(data), packed: None };
            assert!(Packed::new(&weight).is_none(), "{ty}");
        }
    }
}
