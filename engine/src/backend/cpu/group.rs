//! A row's weights unpacked into groups of 256 codes with their scales: the form in which the integer products are
//! written. Portable and plain; the row kernels of `avx2` and `avx512` do the same in registers.

use super::activation::{GROUP, ScaleSpan};
use crate::gguf::GgmlType;
use crate::quant::{f16_at, k_scale_min};

/// Which activation form a weight type multiplies with, or `None` for float types.
pub(super) fn span_of(ty: GgmlType) -> Option<ScaleSpan> {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => None,
        GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => None,
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0 => Some(ScaleSpan::Small),
        GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => Some(ScaleSpan::Super),
    }
}

/// Bytes of a full group of a quantised type.
pub(super) fn group_bytes(ty: GgmlType) -> usize {
    ty.row_bytes(GROUP)
}

/// A group of a K-quant row: `w[k] = d · scale[k/16] · code[k] − dmin · min[k/16]`.
pub(super) struct SuperGroup {
    pub(super) codes: [u8; GROUP],
    pub(super) scale: [i16; 16],
    pub(super) min: [i16; 16],
    pub(super) d: f32,
    pub(super) dmin: f32,
}

/// A group of a row with 32-weight blocks: `w[k] = d[k/32] · code[k] + m[k/32]`; blocks past the row's end are zero.
pub(super) struct SmallGroup {
    pub(super) codes: [u8; GROUP],
    pub(super) d: [f32; 8],
    pub(super) m: [f32; 8],
}

impl SuperGroup {
    pub(super) const ZERO: Self = SuperGroup { codes: [0; GROUP], scale: [0; 16], min: [0; 16], d: 0.0, dmin: 0.0 };

    /// Unpacks one block of 256.
    pub(super) fn unpack(&mut self, ty: GgmlType, block: &[u8]) {
        match ty {
            GgmlType::Q4_K => {
                self.k_scales(block);
                nibbles(&mut self.codes, &block[16..144]);
            }
            GgmlType::Q5_K => {
                self.k_scales(block);
                nibbles(&mut self.codes, &block[48..176]);
                for (j, codes) in self.codes.chunks_exact_mut(32).enumerate() {
                    for (code, high) in codes.iter_mut().zip(&block[16..48]) {
                        *code |= (high >> j & 1) << 4;
                    }
                }
            }
            GgmlType::Q6_K => {
                for (half, codes) in self.codes.chunks_exact_mut(128).enumerate() {
                    let (ql, qh) = (&block[half * 64..][..64], &block[128 + half * 32..][..32]);
                    for i in 0..32 {
                        codes[i] = ql[i] & 15 | (qh[i] & 3) << 4;
                        codes[i + 32] = ql[i + 32] & 15 | (qh[i] >> 2 & 3) << 4;
                        codes[i + 64] = ql[i] >> 4 | (qh[i] >> 4 & 3) << 4;
                        codes[i + 96] = ql[i + 32] >> 4 | (qh[i] >> 6) << 4;
                    }
                }
                for (j, &s) in block[192..208].iter().enumerate() {
                    self.scale[j] = i16::from(s as i8);
                }
                self.min = self.scale;
                self.d = f16_at(block, 208);
                self.dmin = 32.0 * self.d;
            }
            other => unreachable!("{other} has no 256-weight blocks"),
        }
    }

    fn k_scales(&mut self, block: &[u8]) {
        for j in 0..8 {
            let (scale, min) = k_scale_min(&block[4..16], j);
            self.scale[2 * j..2 * j + 2].fill(i16::from(scale));
            self.min[2 * j..2 * j + 2].fill(i16::from(min));
        }
        self.d = f16_at(block, 0);
        self.dmin = f16_at(block, 2);
    }
}

/// Q4_K and Q5_K: each 32 bytes hold 32 low nibbles, then 32 high nibbles.
fn nibbles(codes: &mut [u8; GROUP], qs: &[u8]) {
    for (codes, qs) in codes.chunks_exact_mut(64).zip(qs.chunks_exact(32)) {
        for i in 0..32 {
            codes[i] = qs[i] & 15;
            codes[i + 32] = qs[i] >> 4;
        }
    }
}

impl SmallGroup {
    pub(super) const ZERO: Self = SmallGroup { codes: [0; GROUP], d: [0.0; 8], m: [0.0; 8] };

    /// Unpacks up to eight blocks of 32. Q8_0's signed bytes become codes by adding 128.
    pub(super) fn unpack(&mut self, ty: GgmlType, blocks: &[u8]) {
        let n = blocks.len() / ty.block_bytes();
        self.d[n..].fill(0.0);
        self.m[n..].fill(0.0);
        self.codes[n * 32..].fill(0);
        for (b, (block, codes)) in
            blocks.chunks_exact(ty.block_bytes()).zip(self.codes.chunks_exact_mut(32)).enumerate()
        {
            let d = f16_at(block, 0);
            self.d[b] = d;
            self.m[b] = match ty {
                GgmlType::Q4_0 => -8.0 * d,
                GgmlType::Q5_0 => -16.0 * d,
                GgmlType::Q8_0 => -128.0 * d,
                _ => f16_at(block, 2),
            };
            let qs = match ty {
                GgmlType::Q4_0 | GgmlType::Q8_0 => &block[2..],
                GgmlType::Q4_1 => &block[4..],
                GgmlType::Q5_0 => &block[6..],
                _ => &block[8..],
            };
            if ty == GgmlType::Q8_0 {
                codes.iter_mut().zip(qs).for_each(|(c, q)| *c = q ^ 0x80);
                continue;
            }
            for i in 0..16 {
                codes[i] = qs[i] & 15;
                codes[i + 16] = qs[i] >> 4;
            }
            if matches!(ty, GgmlType::Q5_0 | GgmlType::Q5_1) {
                let at = if ty == GgmlType::Q5_0 { 2 } else { 4 };
                let high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
                for (i, code) in codes.iter_mut().enumerate() {
                    *code |= ((high >> i & 1) as u8) << 4;
                }
            }
        }
    }
}

/// Bytes of group `g` of a row: a whole group, or what is left of the row.
pub(super) fn group_of(ty: GgmlType, row: &[u8], g: usize) -> &[u8] {
    let bytes = group_bytes(ty);
    &row[g * bytes..row.len().min((g + 1) * bytes)]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quant::dequantize_row;

    /// A row of `cols` weights of `ty` from a small generator; scales are finite and of moderate size.
    pub(crate) fn random_row(ty: GgmlType, cols: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u32
        };
        let mut row: Vec<u8> = (0..ty.row_bytes(cols)).map(|_| next() as u8).collect();
        let mut f16 = |block: &mut [u8], at: usize, scale: f32| {
            let v = half::f16::from_f32((next() % 1000) as f32 / 1000.0 * scale + 0.001);
            block[at..at + 2].copy_from_slice(&v.to_le_bytes());
        };
        for block in row.chunks_exact_mut(ty.block_bytes()) {
            match ty {
                GgmlType::F32 => {
                    let v = (f32::from(block[0]) - 127.5) / 128.0;
                    block.copy_from_slice(&v.to_le_bytes());
                }
                GgmlType::F16 | GgmlType::Q8_0 | GgmlType::Q4_0 | GgmlType::Q5_0 => f16(block, 0, 0.1),
                GgmlType::BF16 => {
                    block.copy_from_slice(&half::bf16::from_f32(f32::from(block[0]) / 256.0).to_le_bytes())
                }
                GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => {
                    f16(block, 0, 0.01);
                    f16(block, 2, 0.01);
                }
                GgmlType::Q6_K => f16(block, 208, 0.01),
                GgmlType::IQ4_NL => f16(block, 0, 0.01),
                GgmlType::IQ4_XS => f16(block, 0, 0.001),
                GgmlType::Q2_K => {
                    f16(block, 80, 0.01);
                    f16(block, 82, 0.01);
                }
                GgmlType::Q3_K => f16(block, 108, 0.01),
                // 2^-8 … 2^-1
                GgmlType::MXFP4 => block[0] = 120 + block[0] % 8,
            }
        }
        row
    }

    #[test]
    fn groups_hold_the_reference_values() {
        for ty in GgmlType::ALL {
            let Some(span) = span_of(ty) else { continue };
            let cols = if span == ScaleSpan::Super { 512 } else { 256 + 96 };
            let row = random_row(ty, cols, 7);
            let mut want = vec![0.0; cols];
            dequantize_row(ty, &row, &mut want);
            for g in 0..cols.div_ceil(GROUP) {
                let got: Vec<f32> = if span == ScaleSpan::Super {
                    let mut s = SuperGroup::ZERO;
                    s.unpack(ty, group_of(ty, &row, g));
                    (0..GROUP)
                        .map(|k| {
                            s.d * f32::from(s.scale[k / 16]) * f32::from(s.codes[k]) - s.dmin * f32::from(s.min[k / 16])
                        })
                        .collect()
                } else {
                    let mut s = SmallGroup::ZERO;
                    s.unpack(ty, group_of(ty, &row, g));
                    (0..GROUP).map(|k| s.d[k / 32] * f32::from(s.codes[k]) + s.m[k / 32]).collect()
                };
                for (k, got) in got.iter().enumerate() {
                    let want = want.get(g * GROUP + k).copied().unwrap_or(0.0);
                    assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{ty} g={g} k={k}: {got} {want}");
                }
            }
        }
    }
}
