//! A row's weights unpacked into groups of 256 codes with their scales: the form in which the integer products are
//! written. Portable and plain; the row kernels of `avx2` and `avx512` do the same in registers.

use super::activation::{GROUP, ScaleSpan};
use crate::gguf::GgmlType;
use crate::quant::{IQ4_VALUES, MXFP4_DOUBLED, e8m0_half, f16_at, iq4_xs_scale, k_scale_min, q3_k_scale};

/// Which activation form a weight type multiplies with, or `None` for float types.
pub(super) fn span_of(ty: GgmlType) -> Option<ScaleSpan> {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => None,
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0 => Some(ScaleSpan::Small),
        // IQ4_XS has blocks of 256 but nothing below its eight scales: to a kernel it is eight blocks of 32.
        GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => Some(ScaleSpan::Small),
        GgmlType::Q2_K | GgmlType::Q3_K | GgmlType::Q4_K | GgmlType::Q5_K | GgmlType::Q6_K => Some(ScaleSpan::Super),
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

/// A group of a row with a scale per 32 weights: `w[k] = d[k/32] · code[k] + m[k/32]`; blocks past the row's end are
/// zero.
pub(super) struct SmallGroup {
    pub(super) codes: [u8; GROUP],
    pub(super) d: [f32; 8],
    pub(super) m: [f32; 8],
}

impl SuperGroup {
    pub(super) const ZERO: Self = SuperGroup { codes: [0; GROUP], scale: [0; 16], min: [0; 16], d: 0.0, dmin: 0.0 };

    /// Unpacks one block of 256.
    #[inline(always)]
    pub(super) fn unpack(&mut self, ty: GgmlType, block: &[u8]) {
        match ty {
            GgmlType::Q2_K => {
                two_bits(&mut self.codes, &block[16..80]);
                for (j, s) in block[..16].iter().enumerate() {
                    self.scale[j] = i16::from(s & 15);
                    self.min[j] = i16::from(s >> 4);
                }
                (self.d, self.dmin) = (f16_at(block, 80), f16_at(block, 82));
            }
            GgmlType::Q3_K => {
                two_bits(&mut self.codes, &block[32..96]);
                for (j, codes) in self.codes.chunks_exact_mut(32).enumerate() {
                    for (code, high) in codes.iter_mut().zip(&block[..32]) {
                        *code |= (high >> j & 1) << 2;
                    }
                }
                for j in 0..16 {
                    self.scale[j] = i16::from(q3_k_scale(&block[96..108], j));
                }
                self.min = self.scale;
                self.d = f16_at(block, 108);
                self.dmin = 4.0 * self.d;
            }
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
            other => unreachable!("{other} has no scales within blocks of 256"),
        }
    }

    #[inline(always)]
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
#[inline(always)]
fn nibbles(codes: &mut [u8; GROUP], qs: &[u8]) {
    for (codes, qs) in codes.chunks_exact_mut(64).zip(qs.chunks_exact(32)) {
        let (low, high) = codes.split_at_mut(32);
        for i in 0..32 {
            low[i] = qs[i] & 15;
            high[i] = qs[i] >> 4;
        }
    }
}

/// Q2_K and Q3_K: each 32 bytes hold four times 32 codes of two bits, lowest bits first.
#[inline(always)]
fn two_bits(codes: &mut [u8; GROUP], qs: &[u8]) {
    for (codes, qs) in codes.chunks_exact_mut(128).zip(qs.chunks_exact(32)) {
        for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, q) in codes.iter_mut().zip(qs) {
                *code = q >> (2 * j) & 3;
            }
        }
    }
}

/// IQ4_NL's values as codes: 128 more.
const IQ4_CODES: [u8; 16] = shifted(IQ4_VALUES, 128);
/// MXFP4's doubled values as codes: 12 more.
pub(super) const MXFP4_CODES: [u8; 16] = shifted(MXFP4_DOUBLED, 12);

const fn shifted(values: [i8; 16], by: i16) -> [u8; 16] {
    let mut codes = [0; 16];
    let mut i = 0;
    while i < 16 {
        codes[i] = (values[i] as i16 + by) as u8;
        i += 1;
    }
    codes
}

impl SmallGroup {
    pub(super) const ZERO: Self = SmallGroup { codes: [0; GROUP], d: [0.0; 8], m: [0.0; 8] };

    /// Unpacks up to eight blocks of 32, or one of IQ4_XS. What has signed values (Q8_0, the IQ4 types, MXFP4) becomes
    /// unsigned codes by adding the magnitude of the least.
    #[inline(always)]
    pub(super) fn unpack(&mut self, ty: GgmlType, blocks: &[u8]) {
        if ty == GgmlType::IQ4_XS {
            let d = f16_at(blocks, 0);
            for (b, codes) in self.codes.chunks_exact_mut(32).enumerate() {
                self.d[b] = d * f32::from(iq4_xs_scale(blocks, b));
                self.m[b] = -128.0 * self.d[b];
                halves(codes, &blocks[8 + 16 * b..24 + 16 * b], |q| IQ4_CODES[usize::from(q)]);
            }
            return;
        }
        let n = blocks.len() / ty.block_bytes();
        self.d[n..].fill(0.0);
        self.m[n..].fill(0.0);
        self.codes[n * 32..].fill(0);
        for (b, (block, codes)) in
            blocks.chunks_exact(ty.block_bytes()).zip(self.codes.chunks_exact_mut(32)).enumerate()
        {
            let d = if ty == GgmlType::MXFP4 { e8m0_half(block[0]) } else { f16_at(block, 0) };
            self.d[b] = d;
            self.m[b] = match ty {
                GgmlType::Q4_0 => -8.0 * d,
                GgmlType::Q5_0 => -16.0 * d,
                GgmlType::Q8_0 | GgmlType::IQ4_NL => -128.0 * d,
                GgmlType::MXFP4 => -12.0 * d,
                _ => f16_at(block, 2),
            };
            match ty {
                GgmlType::Q8_0 => codes.iter_mut().zip(&block[2..]).for_each(|(c, q)| *c = q ^ 0x80),
                GgmlType::MXFP4 => halves(codes, &block[1..], |q| MXFP4_CODES[usize::from(q)]),
                GgmlType::IQ4_NL => halves(codes, &block[2..], |q| IQ4_CODES[usize::from(q)]),
                GgmlType::Q4_0 => halves(codes, &block[2..], |q| q),
                GgmlType::Q4_1 => halves(codes, &block[4..], |q| q),
                GgmlType::Q5_0 => {
                    halves(codes, &block[6..], |q| q);
                    fifth_bits(codes, &block[2..6]);
                }
                _ => {
                    halves(codes, &block[8..], |q| q);
                    fifth_bits(codes, &block[4..8]);
                }
            }
        }
    }
}

/// Sixteen bytes to 32 codes: low nibbles, then high ones.
#[inline(always)]
fn halves(codes: &mut [u8], qs: &[u8], code: impl Fn(u8) -> u8) {
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(qs) {
        *low = code(q & 15);
        *high = code(q >> 4);
    }
}

/// Bit `i` of the 32-bit mask is the fifth bit of code `i`.
#[inline(always)]
fn fifth_bits(codes: &mut [u8], mask: &[u8]) {
    let mask = u32::from_le_bytes([mask[0], mask[1], mask[2], mask[3]]);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((mask >> i & 1) as u8) << 4;
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
            let cols = if ty.block_len() == 256 { 512 } else { 256 + 96 };
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
