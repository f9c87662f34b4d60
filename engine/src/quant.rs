//! Decoding of weight blocks to f32: the readable reference that every fast path is tested against.
//! Layouts: ggml's `ggml-common.h`. Input is a whole row; its length was checked by the header validator.

use crate::gguf::GgmlType;
use half::{bf16, f16};

/// Decodes a row of `out.len()` weights of type `ty` from `row` (`ty.row_bytes(out.len())` bytes).
///
/// # Panics
/// If `row` is not exactly that long (a broken invariant: sizes are checked when the file is opened).
pub fn dequantize_row(ty: GgmlType, row: &[u8], out: &mut [f32]) {
    assert_eq!(row.len(), ty.row_bytes(out.len()), "row of {} {ty} weights", out.len());
    let blocks = row.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len()));
    for (block, out) in blocks {
        match ty {
            GgmlType::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            GgmlType::F16 => out[0] = f16_at(block, 0),
            GgmlType::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            GgmlType::Q4_0 => legacy(out, &block[2..], None, 4, f16_at(block, 0), -8.0 * f16_at(block, 0)),
            GgmlType::Q4_1 => legacy(out, &block[4..], None, 4, f16_at(block, 0), f16_at(block, 2)),
            GgmlType::Q5_0 => {
                legacy(out, &block[6..], Some(&block[2..6]), 5, f16_at(block, 0), -16.0 * f16_at(block, 0));
            }
            GgmlType::Q5_1 => legacy(out, &block[8..], Some(&block[4..8]), 5, f16_at(block, 0), f16_at(block, 2)),
            GgmlType::Q8_0 => {
                let d = f16_at(block, 0);
                out.iter_mut().zip(&block[2..]).for_each(|(o, &q)| *o = d * f32::from(q as i8));
            }
            GgmlType::MXFP4 => table4(out, &block[1..], e8m0_half(block[0]), &MXFP4_DOUBLED),
            GgmlType::IQ4_NL => table4(out, &block[2..], f16_at(block, 0), &IQ4_VALUES),
            GgmlType::IQ4_XS => iq4_xs(out, block),
            GgmlType::Q2_K => q2_k(out, block),
            GgmlType::Q3_K => q3_k(out, block),
            GgmlType::Q4_K => q4_k(out, block),
            GgmlType::Q5_K => q5_k(out, block),
            GgmlType::Q6_K => q6_k(out, block),
        }
    }
}

/// The f16 at byte `at` of a block.
pub(crate) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Q4_0, Q4_1, Q5_0, Q5_1: low nibbles are elements 0–15, high nibbles 16–31; bit `i` of `high` is the fifth bit of
/// element `i`. `w = d · q + m`.
fn legacy(out: &mut [f32], qs: &[u8], high: Option<&[u8]>, bits: u32, d: f32, m: f32) {
    let high = high.map_or(0, |h| u32::from_le_bytes([h[0], h[1], h[2], h[3]]));
    debug_assert!(bits == 5 || high == 0);
    for i in 0..16 {
        let lo = u32::from(qs[i] & 15) | (high >> i & 1) << 4;
        let hi = u32::from(qs[i] >> 4) | (high >> (i + 16) & 1) << 4;
        out[i] = d * lo as f32 + m;
        out[i + 16] = d * hi as f32 + m;
    }
}

/// The sixteen values of IQ4_NL and IQ4_XS (ggml's `kvalues_iq4nl`).
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the sixteen values of FP4 E2M1 (OCP Microscaling Formats 1.0, table 5): whole numbers.
pub(crate) const MXFP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two that an E8M0 byte stands for, 2^(e − 128), since the table holds doubled values; subnormal
/// for e < 2. 0xFF is not a number (OCP Microscaling Formats 1.0, section 5.4.1).
pub(crate) fn e8m0_half(e: u8) -> f32 {
    match e {
        0xFF => f32::NAN,
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits((u32::from(e) - 1) << 23),
    }
}

/// MXFP4, IQ4_NL: low nibbles are elements 0–15, high nibbles 16–31, both indices into a table. `w = d · table[q]`.
fn table4(out: &mut [f32], qs: &[u8], d: f32, table: &[i8; 16]) {
    for (i, q) in qs.iter().enumerate() {
        out[i] = d * f32::from(table[usize::from(q & 15)]);
        out[i + 16] = d * f32::from(table[usize::from(q >> 4)]);
    }
}

/// The 6-bit scale of sub-block `j` (0–7) of an IQ4_XS block, −32..=31: low four bits in `scales_l`, high two in
/// `scales_h`.
pub(crate) fn iq4_xs_scale(block: &[u8], j: usize) -> i8 {
    let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * j) & 3;
    (low | (high as u8) << 4) as i8 - 32
}

/// Eight sub-blocks of 32 through IQ4_NL's table: `w = d·scale·table[q]`.
fn iq4_xs(out: &mut [f32], block: &[u8]) {
    for (j, (out, qs)) in out.chunks_exact_mut(32).zip(block[8..].chunks_exact(16)).enumerate() {
        table4(out, qs, f16_at(block, 0) * f32::from(iq4_xs_scale(block, j)), &IQ4_VALUES);
    }
}

/// Sixteen sub-blocks of 16 with 4-bit scales and minima: `w = d·scale·q − dmin·min`. Each half of 128 elements has
/// four groups of 32 whose two bits share 32 bytes of `qs`.
fn q2_k(out: &mut [f32], block: &[u8]) {
    let (scales, qs, d, dmin) = (&block[..16], &block[16..80], f16_at(block, 80), f16_at(block, 82));
    for (e, o) in out.iter_mut().enumerate() {
        let q = qs[e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3;
        let scale = scales[e / 16];
        *o = d * f32::from(scale & 15) * f32::from(q) - dmin * f32::from(scale >> 4);
    }
}

/// The 6-bit scale of sub-block `j` (0–15) of a Q3_K block, −32..=31, from its 12 packed bytes: low four bits in the
/// nibbles of the first eight, high two bits in the last four.
pub(crate) fn q3_k_scale(packed: &[u8], j: usize) -> i8 {
    let low = packed[j % 8] >> (j / 8 * 4) & 15;
    let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// As Q2_K with a third bit and signed scales: `w = d·scale·(q − 4)`. Bit `g` of `high[i]` belongs to element `i` of
/// group `g` of 32.
fn q3_k(out: &mut [f32], block: &[u8]) {
    let (high, qs, scales, d) = (&block[..32], &block[32..96], &block[96..108], f16_at(block, 108));
    for (e, o) in out.iter_mut().enumerate() {
        let low = qs[e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3;
        let q = low | (high[e % 32] >> (e / 32) & 1) << 2;
        *o = d * f32::from(q3_k_scale(scales, e / 16)) * (f32::from(q) - 4.0);
    }
}

/// The 6-bit scale and minimum of sub-block `j` (0–7) of a Q4_K or Q5_K block, from its 12 packed bytes.
pub(crate) fn k_scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// Eight sub-blocks of 32: `w = d·scale·q − dmin·min`. Each 32 bytes hold two sub-blocks: low nibbles, high nibbles.
fn q4_k(out: &mut [f32], block: &[u8]) {
    let (d, dmin, scales, qs) = (f16_at(block, 0), f16_at(block, 2), &block[4..16], &block[16..]);
    for j in 0..8 {
        let (scale, min) = k_scale_min(scales, j);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        for i in 0..32 {
            let q = qs[j / 2 * 32 + i] >> (j % 2 * 4) & 15;
            out[j * 32 + i] = d * f32::from(q) - m;
        }
    }
}

/// As Q4_K with a fifth bit: bit `j` of `qh[i]` belongs to element `i` of sub-block `j`.
fn q5_k(out: &mut [f32], block: &[u8]) {
    let (d, dmin, scales) = (f16_at(block, 0), f16_at(block, 2), &block[4..16]);
    let (qh, qs) = (&block[16..48], &block[48..]);
    for j in 0..8 {
        let (scale, min) = k_scale_min(scales, j);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        for i in 0..32 {
            let q = qs[j / 2 * 32 + i] >> (j % 2 * 4) & 15 | (qh[i] >> j & 1) << 4;
            out[j * 32 + i] = d * f32::from(q) - m;
        }
    }
}

/// Sixteen sub-blocks of 16 with signed 8-bit scales: `w = d·scale·(q − 32)`. Each half of 128 elements has four
/// groups of 32 whose low nibbles lie in 64 bytes of `ql` and whose top two bits share 32 bytes of `qh`.
fn q6_k(out: &mut [f32], block: &[u8]) {
    let (ql, qh, scales, d) = (&block[..128], &block[128..192], &block[192..208], f16_at(block, 208));
    for (e, o) in out.iter_mut().enumerate() {
        let (half, group, i) = (e / 128, e / 32 % 4, e % 32);
        let low = ql[half * 64 + group % 2 * 32 + i] >> (group / 2 * 4) & 15;
        let high = qh[half * 32 + i] >> (group * 2) & 3;
        let scale = f32::from(scales[e / 16] as i8);
        *o = d * scale * (f32::from(low | high << 4) - 32.0);
    }
}
