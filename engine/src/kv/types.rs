//! How keys and values are stored, and how much of them: element types with their sizes, their conversion to and from
//! f32 on the processor, and the bounds of a cache. Called by the layout of the pages and by both backends.

use half::f16;
use std::fmt;
use std::str::FromStr;

/// Elements that share a scale.
pub const BLOCK: usize = 32;

/// Element type of keys or values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KvType {
    /// Two bytes per element.
    #[default]
    F16,
    /// A byte per element and an f16 scale per [`BLOCK`] elements: `x = scale · code`, `|code| ≤ 127`.
    Q8_0,
}

impl KvType {
    /// Every type.
    pub const ALL: [KvType; 2] = [KvType::F16, KvType::Q8_0];

    /// ggml's name in small letters, as the command line takes it.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }

    /// Bytes of `n` elements.
    pub const fn bytes(self, n: u64) -> u64 {
        match self {
            KvType::F16 => 2 * n,
            KvType::Q8_0 => n * (BLOCK as u64 + 2) / BLOCK as u64,
        }
    }

    /// Whether heads of this size can be stored: no block may hold elements of two heads.
    pub const fn fits(self, head_dim: usize) -> bool {
        match self {
            KvType::F16 => true,
            KvType::Q8_0 => head_dim.is_multiple_of(BLOCK),
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<KvType, String> {
        KvType::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| "must be f16 or q8_0".to_owned())
    }
}

/// What a cache is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KvOptions {
    /// Type of the keys (llama.cpp's `-ctk`).
    pub k: KvType,
    /// Type of the values (llama.cpp's `-ctv`).
    pub v: KvType,
}

impl KvOptions {
    /// Bytes of `n` elements of keys and as many of values.
    pub const fn bytes(self, n: u64) -> u64 {
        self.k.bytes(n) + self.v.bytes(n)
    }

    /// The first of the two types that can't store heads of this size.
    pub fn unfit(self, head_dim: usize) -> Option<KvType> {
        [self.k, self.v].into_iter().find(|t| !t.fits(head_dim))
    }
}

impl fmt::Display for KvOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.k == self.v { self.k.fmt(f) } else { write!(f, "{} keys, {} values", self.k, self.v) }
    }
}

/// Rounds a block to codes; gives its scale. As ggml's q8_0: the largest magnitude becomes 127.
#[inline(always)]
pub fn quantize_block(values: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> f16 {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).round_ties_even() as i8;
    }
    f16::from_f32(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_values_to_half_a_code() {
        for size in [1e-3f32, 1.0, 300.0] {
            let values: [f32; BLOCK] = std::array::from_fn(|i| ((i * 37 % 32) as f32 - 15.3) * size);
            let mut codes = [0; BLOCK];
            let scale = f32::from(quantize_block(&values, &mut codes));
            for (value, code) in values.iter().zip(codes) {
                let error = (value - scale * f32::from(code)).abs();
                // Half a code, and what the scale loses as f16: 2⁻¹¹ of it, 127 times.
                assert!(error <= 0.57 * scale, "{value} became {}", scale * f32::from(code));
            }
        }
        let mut codes = [1; BLOCK];
        assert_eq!(quantize_block(&[0.0; BLOCK], &mut codes), f16::ZERO);
        assert_eq!(codes, [0; BLOCK]);
    }

    #[test]
    fn sizes_and_names_are_ggmls() {
        assert_eq!(KvType::F16.bytes(64), 128);
        assert_eq!(KvType::Q8_0.bytes(64), 68);
        for ty in KvType::ALL {
            assert_eq!(ty.name().parse(), Ok(ty));
        }
        assert_eq!("q4_0".parse::<KvType>(), Err("must be f16 or q8_0".to_owned()));
        assert!(KvType::F16.fits(20) && KvType::Q8_0.fits(96) && !KvType::Q8_0.fits(80));
        let mixed = KvOptions { k: KvType::F16, v: KvType::Q8_0 };
        assert_eq!((mixed.unfit(80), mixed.unfit(64)), (Some(KvType::Q8_0), None));
        assert_eq!((mixed.bytes(32), mixed.to_string().as_str()), (98, "f16 keys, q8_0 values"));
    }
}
