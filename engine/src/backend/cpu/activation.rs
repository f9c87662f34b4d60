//! Activations quantised to 8 bits, so that products with quantised weights run in integers.
//!
//! Two forms, after ggml's Q8_K and Q8_0 but with structure-of-arrays layout and a second level of scales: for the
//! K-quants (`Super`) a float scale per 256 elements, for the others (`Small`) one per 32, and below it small integers, one
//! per 32 or 16. A kernel multiplies these into integers that it multiplies anyway (the weights' own scales, the ones that
//! add up pairs), so that they cost next to nothing and a large element takes the precision from few others. Elements lie
//! in groups of 256, `[group][token][256]`, so that a kernel walking a group over many tokens reads memory in order. A last
//! short group is padded with zeros.

use super::simd::{SimdLevel, vectorised};
use rayon::prelude::*;

/// Elements per group.
pub(super) const GROUP: usize = 256;

/// How many elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScaleSpan {
    /// One scale per 256 elements and a factor of it per 32 (Q2_K … Q6_K weights).
    Super,
    /// One scale per 32 elements and a factor of it per 16 (Q4_0 … Q8_0, IQ4 and MXFP4 weights).
    Small,
}

impl ScaleSpan {
    /// Scales per group of 256.
    pub(super) fn per_group(self) -> usize {
        match self {
            ScaleSpan::Super => 1,
            ScaleSpan::Small => 8,
        }
    }

    /// Largest factor. With 8 no sum of a K-quant's group overflows 32 bits, whatever a file holds: Q6_K's is the
    /// largest, 256 · 63 · 127 · 128 · 8 < 2³¹. With 16 a sum of sixteen still fits 16 bits.
    fn max_factor(self) -> f32 {
        match self {
            ScaleSpan::Super => 8.0,
            ScaleSpan::Small => 16.0,
        }
    }

    /// Factors per group that kernels of `Small` read beside each pair of elements.
    fn pairs(self) -> usize {
        match self {
            ScaleSpan::Super => 0,
            ScaleSpan::Small => GROUP / 2,
        }
    }
}

/// A batch of quantised activation rows. Reused between products; it grows to the largest and stays there.
#[derive(Default)]
pub(super) struct QuantizedRows {
    /// Tokens.
    pub(super) n: usize,
    /// Groups per token.
    pub(super) groups: usize,
    /// Scales per group, from the span.
    per_group: usize,
    /// Factors of pairs per group, from the span.
    pairs: usize,
    /// `[groups][n][256]`, each in −127..=127.
    pub(super) q: Vec<i8>,
    /// `[groups][n][per_group]`.
    pub(super) scale: Vec<f32>,
    /// `[groups][n][16]`: what the scale is multiplied with for each 16 elements, 1 to 8 or 16; in `Super` the same for both
    /// halves of 32.
    pub(super) factor16: Vec<i16>,
    /// `[groups][n][128]` in `Small`, nothing in `Super`: the same for each pair of elements.
    factor2: Vec<i16>,
    /// `[groups][n][16]`: sum of each 16 elements of `q` times their factor.
    pub(super) sum16: Vec<i16>,
    /// `[groups][n][8]`: sum of each 32 elements of `q` times their scale.
    pub(super) total32: Vec<f32>,
}

/// One token's group.
#[derive(Clone, Copy)]
pub(super) struct GroupRef<'a> {
    pub(super) q: &'a [i8; GROUP],
    pub(super) scale: &'a [f32],
    pub(super) factor16: &'a [i16; 16],
    pub(super) factor2: &'a [i16],
    pub(super) sum16: &'a [i16; 16],
    pub(super) total32: &'a [f32; 8],
}

/// One group of `T` tokens that lie side by side, with `S` scales per group.
#[derive(Clone, Copy)]
pub(super) struct TileRef<'a, const T: usize, const S: usize> {
    pub(super) q: &'a [[i8; GROUP]; T],
    pub(super) scale: &'a [[f32; S]; T],
    pub(super) factor16: &'a [[i16; 16]; T],
    /// Empty in `Super`.
    pub(super) factor2: &'a [[i16; GROUP / 2]],
    pub(super) sum16: &'a [[i16; 16]; T],
    pub(super) total32: &'a [[f32; 8]; T],
}

impl GroupRef<'_> {
    /// What element `k` of the group is multiplied with.
    #[cfg(test)]
    pub(super) fn scale_at(&self, k: usize) -> f32 {
        self.scale[k / (GROUP / self.scale.len())] * f32::from(self.factor16[k / 16])
    }
}

impl QuantizedRows {
    /// Quantises `x`, `[n, width]` f32.
    pub(super) fn quantize(&mut self, level: SimdLevel, x: &[f32], n: usize, width: usize, span: ScaleSpan) {
        assert_eq!(x.len(), n * width, "activations of {n} tokens × {width}");
        let groups = width.div_ceil(GROUP);
        let (cells, per) = (groups * n, span.per_group());
        (self.n, self.groups, self.per_group, self.pairs) = (n, groups, per, span.pairs());
        self.q.resize(cells * GROUP, 0);
        self.scale.resize(cells * per, 0.0);
        self.factor16.resize(cells * 16, 1);
        self.factor2.resize(cells * self.pairs, 1);
        self.sum16.resize(cells * 16, 0);
        self.total32.resize(cells * 8, 0.0);
        // A task takes all tokens of some groups; one token's worth is too little to share out.
        let tokens = if n > 1 { n } else { cells };
        self.q
            .par_chunks_mut(tokens * GROUP)
            .zip(self.scale.par_chunks_mut(tokens * per))
            .zip(self.factor16.par_chunks_mut(tokens * 16))
            .zip(self.sum16.par_chunks_mut(tokens * 16))
            .zip(self.total32.par_chunks_mut(tokens * 8))
            .enumerate()
            .for_each(|(task, ((((q, scale), factor16), sum16), total32))| {
                let cell = |i: usize| {
                    let (g, t) = ((task * tokens + i) / n, (task * tokens + i) % n);
                    let row = &x[t * width..(t + 1) * width];
                    let out = GroupMut {
                        q: &mut q[i * GROUP..(i + 1) * GROUP],
                        scale: &mut scale[i * per..(i + 1) * per],
                        factor16: &mut factor16[i * 16..(i + 1) * 16],
                        sum16: &mut sum16[i * 16..(i + 1) * 16],
                        total32: &mut total32[i * 8..(i + 1) * 8],
                    };
                    quantize_group(span, &row[g * GROUP..width.min((g + 1) * GROUP)], out);
                };
                vectorised!(level, || (0..tokens).for_each(cell));
            });
        if span == ScaleSpan::Small {
            for (pairs, factor) in self.factor2.as_chunks_mut::<8>().0.iter_mut().zip(&self.factor16) {
                *pairs = [*factor; 8];
            }
        }
    }

    /// Takes rows of `from`, in this order and as often as they are named.
    pub(super) fn gather(&mut self, from: &QuantizedRows, rows: &[u32]) {
        let (groups, per, pairs, n) = (from.groups, from.per_group, from.pairs, rows.len());
        (self.n, self.groups, self.per_group, self.pairs) = (n, groups, per, pairs);
        self.q.resize(groups * n * GROUP, 0);
        self.scale.resize(groups * n * per, 0.0);
        self.factor16.resize(groups * n * 16, 1);
        self.factor2.resize(groups * n * pairs, 1);
        self.sum16.resize(groups * n * 16, 0);
        self.total32.resize(groups * n * 8, 0.0);
        for g in 0..groups {
            for (i, &t) in rows.iter().enumerate() {
                let (x, to) = (from.group(g, t as usize), g * n + i);
                self.q[to * GROUP..(to + 1) * GROUP].copy_from_slice(x.q);
                self.scale[to * per..(to + 1) * per].copy_from_slice(x.scale);
                self.factor16[to * 16..(to + 1) * 16].copy_from_slice(x.factor16);
                self.factor2[to * pairs..(to + 1) * pairs].copy_from_slice(x.factor2);
                self.sum16[to * 16..(to + 1) * 16].copy_from_slice(x.sum16);
                self.total32[to * 8..(to + 1) * 8].copy_from_slice(x.total32);
            }
        }
    }

    /// Group `g` of token `t`.
    #[inline(always)]
    pub(super) fn group(&self, g: usize, t: usize) -> GroupRef<'_> {
        assert!(g < self.groups && t < self.n, "group {g} of {}, token {t} of {}", self.groups, self.n);
        let cell = g * self.n + t;
        // SAFETY: `quantize` has sized every array for `groups · n` cells, and the cell is one of them.
        unsafe {
            GroupRef {
                q: &*self.q.as_ptr().add(cell * GROUP).cast(),
                scale: std::slice::from_raw_parts(self.scale.as_ptr().add(cell * self.per_group), self.per_group),
                factor16: &*self.factor16.as_ptr().add(cell * 16).cast(),
                factor2: std::slice::from_raw_parts(self.factor2.as_ptr().add(cell * self.pairs), self.pairs),
                sum16: &*self.sum16.as_ptr().add(cell * 16).cast(),
                total32: &*self.total32.as_ptr().add(cell * 8).cast(),
            }
        }
    }

    /// Group `g` of `T` tokens from `t0` on.
    #[inline(always)]
    pub(super) fn tile<const T: usize, const S: usize>(&self, g: usize, t0: usize) -> TileRef<'_, T, S> {
        assert!(g < self.groups && t0 + T <= self.n, "group {g} of {}, token {t0} of {}", self.groups, self.n);
        assert!(S == self.per_group, "{S} scales of {}", self.per_group);
        let cell = g * self.n + t0;
        let pairs = if self.pairs > 0 { T } else { 0 };
        // SAFETY: `quantize` has sized every array for `groups · n` cells, and `cell..cell + T` are among them.
        unsafe {
            TileRef {
                q: &*self.q.as_ptr().add(cell * GROUP).cast(),
                scale: &*self.scale.as_ptr().add(cell * S).cast(),
                factor16: &*self.factor16.as_ptr().add(cell * 16).cast(),
                factor2: std::slice::from_raw_parts(self.factor2.as_ptr().add(cell * self.pairs).cast(), pairs),
                sum16: &*self.sum16.as_ptr().add(cell * 16).cast(),
                total32: &*self.total32.as_ptr().add(cell * 8).cast(),
            }
        }
    }

    /// Group `g` of `N` tokens from `t0` on.
    #[inline(always)]
    pub(super) fn groups<const N: usize>(&self, g: usize, t0: usize) -> [GroupRef<'_>; N] {
        // A loop and not `array::from_fn`: a closure is not inlined into code compiled for other instructions.
        let mut all = [self.group(g, t0); N];
        for (t, x) in all.iter_mut().enumerate().skip(1) {
            *x = self.group(g, t0 + t);
        }
        all
    }
}

/// One token's group while it is written.
struct GroupMut<'a> {
    q: &'a mut [i8],
    scale: &'a mut [f32],
    factor16: &'a mut [i16],
    sum16: &'a mut [i16],
    total32: &'a mut [f32],
}

/// Symmetric rounding to −127..=127; `x` may be shorter than the group.
#[inline(always)]
fn quantize_group(span: ScaleSpan, x: &[f32], out: GroupMut<'_>) {
    let mut largest = [0.0f32; 16];
    for (i, largest) in largest.iter_mut().enumerate() {
        *largest = largest_magnitude(sixteen(x, i));
    }
    // Sixteens per factor.
    let alike = if span == ScaleSpan::Super { 2 } else { 1 };
    let per_scale = 16 / out.scale.len();
    for ((scale, factors), largest) in
        out.scale.iter_mut().zip(out.factor16.chunks_exact_mut(per_scale)).zip(largest.chunks_exact_mut(per_scale))
    {
        let most = maximum(largest);
        let unit = most / span.max_factor();
        *scale = unit / 127.0;
        for (factors, largest) in factors.chunks_exact_mut(alike).zip(largest.chunks_exact_mut(alike)) {
            let steps = if unit > 0.0 { maximum(largest) / unit } else { 0.0 };
            let factor = steps.ceil().clamp(1.0, span.max_factor());
            factors.fill(factor as i16);
            largest.fill(unit * factor);
        }
    }
    for (i, (q, largest)) in out.q.chunks_exact_mut(16).zip(largest).enumerate() {
        let part = sixteen(x, i);
        // Below this the inverse overflows, and nothing that small has ever mattered.
        let inverse = if largest > 1e-35 { 127.0 / largest } else { 0.0 };
        q[part.len()..].fill(0);
        for (q, x) in q.iter_mut().zip(part) {
            *q = round_to_i8(x * inverse);
        }
    }
    for ((sum, factor), q) in out.sum16.iter_mut().zip(&*out.factor16).zip(out.q.chunks_exact(16)) {
        *sum = factor * q.iter().map(|&v| i16::from(v)).sum::<i16>();
    }
    for (i, (total, pair)) in out.total32.iter_mut().zip(out.sum16.chunks_exact(2)).enumerate() {
        *total = out.scale[2 * i / per_scale] * (i32::from(pair[0]) + i32::from(pair[1])) as f32;
    }
}

/// Elements `16i..16i + 16` of a group, or what there is of them.
#[inline(always)]
fn sixteen(x: &[f32], i: usize) -> &[f32] {
    &x[x.len().min(16 * i)..x.len().min(16 * (i + 1))]
}

#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| if *v > m { *v } else { m })
}

#[inline(always)]
fn largest_magnitude(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let chunks = x.chunks_exact(8);
    let tail = chunks.remainder().iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for c in chunks {
        for i in 0..8 {
            lanes[i] = if c[i].abs() > lanes[i] { c[i].abs() } else { lanes[i] };
        }
    }
    lanes.iter().fold(tail, |m, v| m.max(*v))
}

/// Nearest integer (ties to even) of a value within ±127.5, by adding 1.5·2²³ so that the mantissa holds the integer.
#[inline(always)]
fn round_to_i8(v: f32) -> i8 {
    ((v + 12_582_912.0).to_bits() as i32 - 0x4B40_0000) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_what_was_given() {
        for span in [ScaleSpan::Super, ScaleSpan::Small] {
            for (n, width) in [(1, 256), (3, 896), (2, 32), (40, 2048)] {
                let x: Vec<f32> = (0..n * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
                let mut rows = QuantizedRows::default();
                rows.quantize(SimdLevel::detect(), &x, n, width, span);
                for t in 0..n {
                    for k in 0..rows.groups * GROUP {
                        let g = rows.group(k / GROUP, t);
                        let scale = g.scale_at(k % GROUP);
                        let got = f32::from(g.q[k % GROUP]) * scale;
                        let want = if k < width { x[t * width + k] } else { 0.0 };
                        assert!((got - want).abs() <= scale * 0.5 + 1e-6, "{span:?} n={n} k={k}: {got} for {want}");
                        if k % 32 == 0 {
                            let values = (k % GROUP..k % GROUP + 32).map(|i| f32::from(g.q[i]) * g.scale_at(i));
                            let total: f32 = values.clone().sum();
                            let size: f32 = values.map(f32::abs).sum();
                            assert!((g.total32[k % GROUP / 32] - total).abs() <= 1e-5 * size);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn gathered_rows_are_those_named() {
        for span in [ScaleSpan::Super, ScaleSpan::Small] {
            let x: Vec<f32> = (0..4 * 300).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let (mut rows, mut some) = (QuantizedRows::default(), QuantizedRows::default());
            rows.quantize(SimdLevel::detect(), &x, 4, 300, span);
            let named = [2u32, 0, 2, 3, 3];
            some.gather(&rows, &named);
            for (i, &t) in named.iter().enumerate() {
                for g in 0..2 {
                    let (got, want) = (some.group(g, i), rows.group(g, t as usize));
                    assert_eq!((got.q, got.scale, got.sum16), (want.q, want.scale, want.sum16), "{span:?} row {i}");
                    assert_eq!((got.factor16, got.factor2), (want.factor16, want.factor2));
                    assert_eq!(got.total32, want.total32);
                }
            }
        }
    }

    #[test]
    fn zeros_and_a_smaller_batch_leave_nothing_behind() {
        let mut rows = QuantizedRows::default();
        rows.quantize(SimdLevel::detect(), &vec![3.0; 512], 2, 256, ScaleSpan::Super);
        rows.quantize(SimdLevel::detect(), &[0.0; 100], 1, 100, ScaleSpan::Super);
        assert!(rows.q.iter().all(|&q| q == 0) && rows.scale.iter().all(|&s| s == 0.0));
    }
}
