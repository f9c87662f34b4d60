//! Random weights in every block type, in bulk: random bytes for the quants, and scales that give the weights the wanted
//! deviation and a mean of zero. A mean would add up along a row and drown the rest after a few layers; so types with a
//! minimum get the one that centres them, and the others a random sign on their scale.
//!
//! A tensor is made in pieces, each from its own generator, seeded by the file's seed, the tensor's name and the piece's
//! number: the bytes depend on nothing else, not on threads and not on the other tensors.

use half::{bf16, f16};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use crate::gguf::GgmlType;

/// Most bytes of a piece.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// What a tensor holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Values {
    /// Random weights of mean 0 with this standard deviation.
    Random {
        /// Standard deviation.
        deviation: f32,
    },
    /// Around 1: the weights of a norm.
    Norm,
    /// These, F32.
    Fixed(Vec<f32>),
}

/// A tensor's bytes, piece by piece.
#[derive(Clone, Debug)]
pub(super) struct Source {
    seed: u64,
    ty: GgmlType,
    bytes: u64,
    values: Values,
}

impl Source {
    /// `bytes` bytes of blocks of `ty` for the tensor `name`.
    pub(super) fn new(seed: u64, name: &str, ty: GgmlType, bytes: u64, values: Values) -> Source {
        // FNV-1a.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Source { seed: hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), ty, bytes, values }
    }

    /// Pieces there are.
    pub(super) fn n_pieces(&self) -> usize {
        self.bytes.div_ceil(self.piece_bytes() as u64) as usize
    }

    /// The bytes of one piece.
    pub(super) fn piece(&self, idx: usize) -> Vec<u8> {
        let start = idx as u64 * self.piece_bytes() as u64;
        let n = (self.bytes - start).min(self.piece_bytes() as u64) as usize;
        if let Values::Fixed(values) = &self.values {
            let first = start as usize / 4;
            return values[first..first + n / 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        }
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.seed.wrapping_add(idx as u64));
        let mut bytes = vec![0; n];
        rng.fill_bytes(&mut bytes);
        match self.values {
            Values::Random { deviation } => shape(self.ty, &mut bytes, 0.0, deviation),
            Values::Norm => shape(self.ty, &mut bytes, 1.0, 0.05),
            Values::Fixed(_) => unreachable!("returned above"),
        }
        bytes
    }

    /// Whole blocks.
    fn piece_bytes(&self) -> usize {
        PIECE_BYTES / self.ty.block_bytes() * self.ty.block_bytes()
    }
}

/// Root mean square of the integers `lo..=hi`.
fn rms(lo: i32, hi: i32) -> f32 {
    let sum: i64 = (lo..=hi).map(|q| i64::from(q) * i64::from(q)).sum();
    (sum as f64 / f64::from(hi - lo + 1)).sqrt() as f32
}

/// Deviation of `n` equally likely steps of 1.
fn steps(n: i32) -> f32 {
    (f64::from(n * n - 1) / 12.0).sqrt() as f32
}

/// Root mean square of the table that IQ4_NL and IQ4_XS share.
const IQ4_RMS: f32 = 67.44;
/// Root mean square of MXFP4's doubled values.
const MXFP4_RMS: f32 = 5.852;

/// Turns random bytes into blocks of `ty` whose weights have the given deviation. `mean` is for float types only.
fn shape(ty: GgmlType, bytes: &mut [u8], mean: f32, deviation: f32) {
    let blocks = bytes.chunks_exact_mut(ty.block_bytes());
    // A scale of random sign: the random bit that was there.
    let signed = |d: f32| {
        let d = f16::from_f32(d).to_le_bytes();
        move |block: &mut [u8], at: usize| {
            block[at] = d[0];
            block[at + 1] = d[1] & 0x7f | block[at + 1] & 0x80;
        }
    };
    // A scale and the minimum that centres `n` steps. `sign` is -1 where the minimum is subtracted.
    let centred = |d: f32, n: i32, sign: f32| {
        let d = f16::from_f32(d);
        let m = f16::from_f32(d.to_f32() * (n - 1) as f32 / 2.0 * -sign);
        let (d, m) = (d.to_le_bytes(), m.to_le_bytes());
        move |block: &mut [u8], at: usize| {
            block[at..at + 2].copy_from_slice(&d);
            block[at + 2..at + 4].copy_from_slice(&m);
        }
    };
    // Sub-block scales of Q4_K and Q5_K: 32 to 63, the minima the same.
    let k_scale_rms = rms(32, 63);
    match ty {
        GgmlType::F32 => blocks.for_each(|b| {
            let x = mean + uniform(u32::from_le_bytes([b[0], b[1], b[2], b[3]])) * deviation;
            b.copy_from_slice(&x.to_le_bytes());
        }),
        GgmlType::F16 => blocks.for_each(|b| {
            let x = mean + uniform(u32::from_le_bytes([0, 0, b[0], b[1]])) * deviation;
            b.copy_from_slice(&f16::from_f32(x).to_le_bytes());
        }),
        GgmlType::BF16 => blocks.for_each(|b| {
            let x = mean + uniform(u32::from_le_bytes([0, 0, b[0], b[1]])) * deviation;
            b.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
        }),
        GgmlType::Q4_0 => each(blocks, signed(deviation / rms(-8, 7)), 0),
        GgmlType::Q5_0 => each(blocks, signed(deviation / rms(-16, 15)), 0),
        GgmlType::Q8_0 => each(blocks, signed(deviation / rms(-128, 127)), 0),
        GgmlType::IQ4_NL => each(blocks, signed(deviation / IQ4_RMS), 0),
        GgmlType::IQ4_XS => each(blocks, signed(deviation / IQ4_RMS / rms(-32, 31)), 0),
        GgmlType::Q3_K => each(blocks, signed(deviation / rms(-4, 3) / rms(-32, 31)), 108),
        GgmlType::Q4_1 => each(blocks, centred(deviation / steps(16), 16, 1.0), 0),
        GgmlType::Q5_1 => each(blocks, centred(deviation / steps(32), 32, 1.0), 0),
        GgmlType::Q2_K => {
            let scale = centred(deviation / steps(4) / rms(8, 15), 4, -1.0);
            blocks.for_each(|b| {
                // Scale and minimum of a sub-block in one byte: the same 8 to 15.
                b[..16].iter_mut().for_each(|s| *s = (*s & 7 | 8) * 0x11);
                scale(b, 80);
            });
        }
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let n = if ty == GgmlType::Q4_K { 16 } else { 32 };
            let scale = centred(deviation / steps(n) / k_scale_rms, n, -1.0);
            blocks.for_each(|b| {
                k_scales(&mut b[4..16]);
                scale(b, 0);
            });
        }
        GgmlType::Q6_K => {
            let scale = signed(deviation / rms(-32, 31) / rms(64, 127));
            blocks.for_each(|b| {
                // ±64 to ±127 (or 128).
                b[192..208].iter_mut().for_each(|s| *s = if *s & 0x80 == 0 { *s | 0x40 } else { *s & 0xbf });
                scale(b, 208);
            });
        }
        GgmlType::MXFP4 => {
            // Scales are powers of two: the two nearest, in the proportion that gives the deviation.
            let exact = deviation / MXFP4_RMS;
            let low = exact.log2().floor();
            let share = ((exact / low.exp2()).powi(2) - 1.0) / 3.0;
            let threshold = (share * 256.0).round() as u16;
            let exponent = (low as i32 + 128).clamp(2, 253) as u8;
            blocks.for_each(|b| b[0] = exponent + u8::from(u16::from(b[0]) < threshold));
        }
    }
}

fn each<'b>(blocks: impl Iterator<Item = &'b mut [u8]>, scale: impl Fn(&mut [u8], usize), at: usize) {
    blocks.for_each(|block| scale(block, at));
}

/// Mean 0, deviation 1, from all values of a `u32`.
fn uniform(bits: u32) -> f32 {
    (bits as i32) as f32 * (3f32.sqrt() / 2_147_483_648.0)
}

/// Packs eight equal scales and minima (32 to 63, from the random bytes that are there) into Q4_K's 12 bytes.
fn k_scales(packed: &mut [u8]) {
    let mut s = [0u8; 8];
    s.iter_mut().zip(packed.iter()).for_each(|(s, random)| *s = random & 31 | 32);
    for j in 0..4 {
        packed[j] = s[j] | s[j + 4] >> 4 << 6;
        packed[j + 4] = packed[j];
        packed[j + 8] = (s[j + 4] & 15) * 0x11;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize_row;

    #[test]
    fn every_type_has_the_wanted_deviation_and_no_mean() {
        for ty in GgmlType::ALL {
            for deviation in [0.02, 0.3] {
                let n = 1 << 16;
                let source = Source::new(1, "t", ty, ty.row_bytes(n) as u64, Values::Random { deviation });
                let bytes: Vec<u8> = (0..source.n_pieces()).flat_map(|i| source.piece(i)).collect();
                let mut weights = vec![0.0; n];
                dequantize_row(ty, &bytes, &mut weights);
                let mean = weights.iter().sum::<f32>() / n as f32;
                let rms = (weights.iter().map(|w| w * w).sum::<f32>() / n as f32).sqrt();
                assert!((rms / deviation - 1.0).abs() < 0.03, "{ty}: deviation {rms} for {deviation}");
                assert!((mean / deviation).abs() < 0.03, "{ty}: mean {mean}");
                let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
                assert!(largest < 8.0 * deviation, "{ty}: {largest}");
            }
        }
    }

    #[test]
    fn pieces_join_to_the_whole_tensor() {
        let bytes = 3 * PIECE_BYTES as u64 + 34 * 10 - 34 * 5;
        let bytes = bytes / 34 * 34;
        let source = Source::new(7, "t", GgmlType::Q8_0, bytes, Values::Random { deviation: 1.0 });
        let sizes: Vec<usize> = (0..source.n_pieces()).map(|i| source.piece(i).len()).collect();
        assert_eq!(sizes.iter().sum::<usize>() as u64, bytes);
        assert!(sizes.iter().all(|n| n % 34 == 0));
        assert_ne!(source.piece(0), source.piece(1));
        assert_ne!(source.piece(0), Source::new(8, "t", GgmlType::Q8_0, bytes, Values::Norm).piece(0));
        let values: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let fixed = Source::new(0, "f", GgmlType::F32, 40, Values::Fixed(values.clone()));
        assert_eq!(fixed.piece(0), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
}
