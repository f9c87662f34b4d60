//! Two independent views of every block type: a reference that reads one element at a time from the format's
//! description, and a plain quantiser that says how far each weight may come back from what it was.

use engine::gguf::GgmlType;
use half::{bf16, f16};

/// Values of the non-linear 4-bit types.
const IQ4: [i32; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Half the widest gap of that table.
const IQ4_HALF_GAP: f32 = 12.0;
/// Values of MXFP4 without their sign.
const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Bits `from..from + n` of a little-endian bit string.
fn bits(bytes: &[u8], from: usize, n: usize) -> u32 {
    (0..n).fold(0, |v, i| v | u32::from(bytes[(from + i) / 8] >> ((from + i) % 8) & 1) << i)
}

fn half(block: &[u8], at: usize) -> f64 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f64()
}

/// Weight `e` of a block, in f64.
pub fn element(ty: GgmlType, b: &[u8], e: usize) -> f64 {
    // Position of the 4-bit quant in types of 32: element i and i + 16 share byte i.
    let nibble32 = |qs: usize| f64::from(bits(b, 8 * (qs + e % 16) + e / 16 * 4, 4));
    let fifth32 = |qh: usize| 16.0 * f64::from(bits(b, 8 * qh + e, 1));
    // In Q4_K and Q5_K each run of 64 elements has 32 bytes: the first 32 elements are the low nibbles.
    let nibble256 = |qs: usize| f64::from(bits(b, 8 * (qs + e / 64 * 32 + e % 32) + e % 64 / 32 * 4, 4));
    match ty {
        GgmlType::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        GgmlType::F16 => half(b, 0),
        GgmlType::BF16 => f64::from(f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)),
        GgmlType::Q4_0 => half(b, 0) * (nibble32(2) - 8.0),
        GgmlType::Q4_1 => half(b, 0) * nibble32(4) + half(b, 2),
        GgmlType::Q5_0 => half(b, 0) * (nibble32(6) + fifth32(2) - 16.0),
        GgmlType::Q5_1 => half(b, 0) * (nibble32(8) + fifth32(4)) + half(b, 2),
        GgmlType::Q8_0 => half(b, 0) * f64::from(b[2 + e] as i8),
        GgmlType::Q2_K => {
            // 16 bytes of scale (low) and minimum (high); each run of 128 has 32 bytes of four 2-bit planes.
            let q = f64::from(bits(b, 8 * (16 + e / 128 * 32 + e % 32) + e % 128 / 32 * 2, 2));
            let s = b[e / 16];
            half(b, 80) * f64::from(s & 15) * q - half(b, 82) * f64::from(s >> 4)
        }
        GgmlType::Q3_K => {
            // hmask: bit e/32 of byte e%32 is the third bit, 0 meaning minus 4.
            let low = f64::from(bits(b, 8 * (32 + e / 128 * 32 + e % 32) + e % 128 / 32 * 2, 2));
            let third = f64::from(bits(b, 8 * (e % 32) + e / 32, 1));
            half(b, 108) * (q3_scale(&b[96..108], e / 16) - 32.0) * (low + 4.0 * third - 4.0)
        }
        GgmlType::Q4_K => {
            let (scale, min) = k_scale_min(&b[4..16], e / 32);
            half(b, 0) * scale * nibble256(16) - half(b, 2) * min
        }
        GgmlType::Q5_K => {
            let (scale, min) = k_scale_min(&b[4..16], e / 32);
            let fifth = f64::from(bits(b, 8 * (16 + e % 32) + e / 32, 1));
            half(b, 0) * scale * (nibble256(48) + 16.0 * fifth) - half(b, 2) * min
        }
        GgmlType::Q6_K => {
            // Each run of 128: 64 bytes of low nibbles (elements 0–63 low, 64–127 high), 32 bytes of four 2-bit planes.
            let low = bits(b, 8 * (e / 128 * 64 + e % 64) + e % 128 / 64 * 4, 4);
            let high = bits(b, 8 * (128 + e / 128 * 32 + e % 32) + e % 128 / 32 * 2, 2);
            half(b, 208) * f64::from(b[192 + e / 16] as i8) * (f64::from(low + 16 * high) - 32.0)
        }
        GgmlType::IQ4_NL => half(b, 0) * f64::from(IQ4[nibble32(2) as usize]),
        GgmlType::IQ4_XS => {
            // Eight sub-blocks of 32: six-bit scales, four bits in scales_l, two in scales_h.
            let j = e / 32;
            let scale = bits(b, 8 * 4 + 4 * j, 4) + 16 * bits(b, 8 * 2 + 2 * j, 2);
            let q = bits(b, 8 * (8 + 16 * j + e % 16) + e % 32 / 16 * 4, 4);
            half(b, 0) * (f64::from(scale) - 32.0) * f64::from(IQ4[q as usize])
        }
        GgmlType::MXFP4 => {
            let code = bits(b, 8 * (1 + e % 16) + e / 16 * 4, 4) as usize;
            let sign = if code >= 8 { -1.0 } else { 1.0 };
            let scale = if b[0] == 0xff { f64::NAN } else { 2f64.powi(i32::from(b[0]) - 127) };
            sign * E2M1[code % 8] * scale
        }
    }
}

/// Six-bit scale and minimum of sub-block `j` of eight: the first four in the low six bits of bytes 0–3 and 4–7; of the
/// last four, the low four bits share bytes 8–11 and the top two are the top bits of bytes 0–3 and 4–7.
fn k_scale_min(p: &[u8], j: usize) -> (f64, f64) {
    let (scale, min) = if j < 4 {
        (bits(p, 8 * j, 6), bits(p, 8 * (j + 4), 6))
    } else {
        (
            bits(p, 8 * (j + 4), 4) + 16 * bits(p, 8 * (j - 4) + 6, 2),
            bits(p, 8 * (j + 4) + 4, 4) + 16 * bits(p, 8 * j + 6, 2),
        )
    };
    (f64::from(scale), f64::from(min))
}

/// Six-bit scale of sub-block `j` of sixteen: low four bits in the nibbles of bytes 0–7 (scales 0–7 low, 8–15 high), top
/// two bits in the four planes of bytes 8–11.
fn q3_scale(p: &[u8], j: usize) -> f64 {
    f64::from(bits(p, 8 * (j % 8) + j / 8 * 4, 4) + 16 * bits(p, 8 * (8 + j % 4) + j / 4 * 2, 2))
}

/// A block and how far each weight may be off.
pub struct Encoded {
    pub bytes: Vec<u8>,
    pub bounds: Vec<f32>,
}

/// Quantises one block: nearest value under scales that are never too small.
pub fn encode(ty: GgmlType, x: &[f32]) -> Encoded {
    assert_eq!(x.len(), ty.block_len());
    let mut bytes = vec![0u8; ty.block_bytes()];
    let bounds = match ty {
        GgmlType::F32 => {
            bytes.copy_from_slice(&x[0].to_le_bytes());
            vec![0.0]
        }
        GgmlType::F16 => {
            bytes.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes());
            vec![x[0].abs() / 2048.0 + 3e-8]
        }
        GgmlType::BF16 => {
            bytes.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes());
            vec![x[0].abs() / 256.0]
        }
        GgmlType::Q4_0 => symmetric(&mut bytes, x, 4),
        GgmlType::Q5_0 => symmetric(&mut bytes, x, 5),
        GgmlType::Q4_1 => with_minimum(&mut bytes, x, 4),
        GgmlType::Q5_1 => with_minimum(&mut bytes, x, 5),
        GgmlType::Q8_0 => {
            let d = put_up(&mut bytes, 0, amax(x) / 127.0);
            bytes[2..].iter_mut().zip(x).for_each(|(b, x)| *b = nearest(x / d, -127, 127) as i8 as u8);
            vec![d / 2.0; 32]
        }
        GgmlType::Q2_K => k_minima(&mut bytes, x, KMinima { sub: 16, top: 3, top_scale: 15, d_at: 80 }),
        GgmlType::Q4_K => k_minima(&mut bytes, x, KMinima { sub: 32, top: 15, top_scale: 63, d_at: 0 }),
        GgmlType::Q5_K => k_minima(&mut bytes, x, KMinima { sub: 32, top: 31, top_scale: 63, d_at: 0 }),
        GgmlType::Q3_K => q3_k(&mut bytes, x),
        GgmlType::Q6_K => q6_k(&mut bytes, x),
        GgmlType::IQ4_NL => {
            let d = put_up(&mut bytes, 0, amax(x) / 113.0);
            (0..32).for_each(|e| put(&mut bytes, 8 * (2 + e % 16) + e / 16 * 4, 4, nearest_iq4(x[e] / d)));
            vec![IQ4_HALF_GAP * d; 32]
        }
        GgmlType::IQ4_XS => {
            let scales = sub_scales(x, 32, 113.0);
            let d = put_up(&mut bytes, 0, amax(&scales) / 31.0);
            let mut bounds = Vec::new();
            for (e, x) in x.iter().enumerate() {
                let (j, scale) = (e / 32, (scales[e / 32] / d).ceil());
                put(&mut bytes, 8 * 4 + 4 * j, 4, (scale as u32 + 32) & 15);
                put(&mut bytes, 8 * 2 + 2 * j, 2, (scale as u32 + 32) >> 4);
                put(&mut bytes, 8 * (8 + 16 * j + e % 16) + e % 32 / 16 * 4, 4, nearest_iq4(x / (d * scale)));
                bounds.push(IQ4_HALF_GAP * d * scale);
            }
            bounds
        }
        GgmlType::MXFP4 => {
            let exponent = (amax(x) / 6.0).log2().ceil() as i32;
            let d = 2f32.powi(exponent);
            bytes[0] = (exponent + 127) as u8;
            for (e, x) in x.iter().enumerate() {
                let size = f64::from(x.abs() / d);
                let code = (0..8).min_by(|a, b| (E2M1[*a] - size).abs().total_cmp(&(E2M1[*b] - size).abs())).unwrap();
                put(&mut bytes, 8 * (1 + e % 16) + e / 16 * 4, 4, code as u32 | u32::from(*x < 0.0) << 3);
            }
            vec![d; 32]
        }
    };
    Encoded { bytes, bounds }
}

fn amax(x: &[f32]) -> f32 {
    // Not 0: every scale can be divided by.
    x.iter().fold(1e-4, |m, x| m.max(x.abs()))
}

fn nearest(x: f32, low: i32, high: i32) -> i32 {
    (x.round() as i32).clamp(low, high)
}

fn nearest_iq4(x: f32) -> u32 {
    (0..16).min_by(|a, b| (IQ4[*a] as f32 - x).abs().total_cmp(&(IQ4[*b] as f32 - x).abs())).unwrap() as u32
}

/// Stores the smallest f16 that is at least `d`, and gives it.
fn put_up(bytes: &mut [u8], at: usize, d: f32) -> f32 {
    let mut h = f16::from_f32(d);
    if h.to_f32() < d {
        h = f16::from_bits(h.to_bits() + 1);
    }
    bytes[at..at + 2].copy_from_slice(&h.to_le_bytes());
    h.to_f32()
}

/// Sets bits `from..from + n` of a little-endian bit string.
fn put(bytes: &mut [u8], from: usize, n: usize, value: u32) {
    for i in 0..n {
        let (byte, bit) = ((from + i) / 8, (from + i) % 8);
        bytes[byte] = bytes[byte] & !(1 << bit) | (((value >> i & 1) as u8) << bit);
    }
}

/// Q4_0 and Q5_0.
fn symmetric(bytes: &mut [u8], x: &[f32], n_bits: usize) -> Vec<f32> {
    let half = 1 << (n_bits - 1);
    let d = put_up(bytes, 0, amax(x) / (half - 1) as f32);
    for (e, x) in x.iter().enumerate() {
        put_32(bytes, 2, n_bits, e, (nearest(x / d, -half, half - 1) + half) as u32);
    }
    vec![d / 2.0; 32]
}

/// Q4_1 and Q5_1.
fn with_minimum(bytes: &mut [u8], x: &[f32], n_bits: usize) -> Vec<f32> {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // The minimum rounded down, so that nothing lies below it.
    let mut m = f16::from_f32(low);
    if m.to_f32() > low {
        m = f16::from_f32(low - low.abs() / 1024.0 - 1e-7);
    }
    bytes[2..4].copy_from_slice(&m.to_le_bytes());
    let top = (1 << n_bits) - 1;
    let d = put_up(bytes, 0, ((high - m.to_f32()) / top as f32).max(1e-6));
    for (e, x) in x.iter().enumerate() {
        put_32(bytes, 4, n_bits, e, nearest((x - m.to_f32()) / d, 0, top) as u32);
    }
    vec![d / 2.0; 32]
}

/// Quant `e` of a block of 32 whose high bits (if it has five) and nibbles begin at byte `at`.
fn put_32(bytes: &mut [u8], at: usize, n_bits: usize, e: usize, q: u32) {
    let qs = if n_bits == 5 { at + 4 } else { at };
    put(bytes, 8 * (qs + e % 16) + e / 16 * 4, 4, q & 15);
    if n_bits == 5 {
        put(bytes, 8 * at + e, 1, q >> 4);
    }
}

/// Per sub-block, the scale under which its largest value is `top`.
fn sub_scales(x: &[f32], sub: usize, top: f32) -> Vec<f32> {
    x.chunks(sub).map(|x| amax(x) / top).collect()
}

/// Geometry of the K types with minima.
struct KMinima {
    sub: usize,
    top: i32,
    top_scale: i32,
    d_at: usize,
}

fn k_minima(bytes: &mut [u8], x: &[f32], k: KMinima) -> Vec<f32> {
    let lowest = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(-x));
    let minima: Vec<f32> = x.chunks(k.sub).map(lowest).collect();
    let dmin = put_up(bytes, k.d_at + 2, amax(&minima) / k.top_scale as f32);
    let min_of: Vec<u32> = minima.iter().map(|m| (m / dmin).ceil() as u32).collect();
    let range = |(x, m): (&[f32], &u32)| {
        let highest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ((highest + dmin * *m as f32) / k.top as f32).max(1e-6)
    };
    let scales: Vec<f32> = x.chunks(k.sub).zip(&min_of).map(range).collect();
    let d = put_up(bytes, k.d_at, amax(&scales) / k.top_scale as f32);
    let mut bounds = Vec::new();
    for (e, x) in x.iter().enumerate() {
        let j = e / k.sub;
        let (scale, min) = ((scales[j] / d).ceil(), min_of[j]);
        let q = nearest((x + dmin * min as f32) / (d * scale), 0, k.top) as u32;
        let scale_bits = scale as u32;
        match (k.sub, k.top) {
            (16, _) => {
                bytes[j] = (scale_bits | min << 4) as u8;
                put(bytes, 8 * (16 + e / 128 * 32 + e % 32) + e % 128 / 32 * 2, 2, q);
            }
            (_, top) => {
                put_k_scale_min(&mut bytes[4..16], j, scale_bits, min);
                let qs = if top == 31 { 48 } else { 16 };
                put(bytes, 8 * (qs + e / 64 * 32 + e % 32) + e % 64 / 32 * 4, 4, q & 15);
                if top == 31 {
                    put(bytes, 8 * (16 + e % 32) + e / 32, 1, q >> 4);
                }
            }
        }
        bounds.push(d * scale / 2.0);
    }
    bounds
}

fn put_k_scale_min(p: &mut [u8], j: usize, scale: u32, min: u32) {
    if j < 4 {
        put(p, 8 * j, 6, scale);
        put(p, 8 * (j + 4), 6, min);
    } else {
        put(p, 8 * (j + 4), 4, scale & 15);
        put(p, 8 * (j + 4) + 4, 4, min & 15);
        put(p, 8 * (j - 4) + 6, 2, scale >> 4);
        put(p, 8 * j + 6, 2, min >> 4);
    }
}

fn q3_k(bytes: &mut [u8], x: &[f32]) -> Vec<f32> {
    let scales = sub_scales(x, 16, 3.0);
    let d = put_up(bytes, 108, amax(&scales) / 31.0);
    let mut bounds = Vec::new();
    for (e, x) in x.iter().enumerate() {
        let (j, scale) = (e / 16, (scales[e / 16] / d).ceil());
        let code = scale as u32 + 32;
        put(bytes, 8 * (96 + j % 8) + j / 8 * 4, 4, code & 15);
        put(bytes, 8 * (96 + 8 + j % 4) + j / 4 * 2, 2, code >> 4);
        let q = (nearest(x / (d * scale), -4, 3) + 4) as u32;
        put(bytes, 8 * (32 + e / 128 * 32 + e % 32) + e % 128 / 32 * 2, 2, q & 3);
        put(bytes, 8 * (e % 32) + e / 32, 1, q >> 2);
        bounds.push(d * scale / 2.0);
    }
    bounds
}

fn q6_k(bytes: &mut [u8], x: &[f32]) -> Vec<f32> {
    let scales = sub_scales(x, 16, 31.0);
    let d = put_up(bytes, 208, amax(&scales) / 127.0);
    let mut bounds = Vec::new();
    for (e, x) in x.iter().enumerate() {
        let scale = (scales[e / 16] / d).ceil();
        bytes[192 + e / 16] = scale as i8 as u8;
        let q = (nearest(x / (d * scale), -32, 31) + 32) as u32;
        put(bytes, 8 * (e / 128 * 64 + e % 64) + e % 128 / 64 * 4, 4, q & 15);
        put(bytes, 8 * (128 + e / 128 * 32 + e % 32) + e % 128 / 32 * 2, 2, q >> 4);
        bounds.push(d * scale / 2.0);
    }
    bounds
}
