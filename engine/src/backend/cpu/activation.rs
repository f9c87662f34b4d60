//! Activations quantised to 8 bits, so that products with quantised weights run in integers.
//!
//! A block of 32 has two scales, one for its even quads of four and one for its odd quads: finer than the one scale per
//! 32 or 256 that ggml's formats have, and for a row kernel no dearer, because the lanes of its sums are quads. Elements
//! lie in groups of 256, `[group][token][256]`, so that a kernel walking a group over many tokens reads memory in
//! order. A last short group is padded with zeros.

use super::simd::{SimdLevel, vectorised};
use rayon::prelude::*;

/// Elements per group.
pub(super) const GROUP: usize = 256;

/// A batch of quantised activation rows. Reused between products; it grows to the largest and stays there.
#[derive(Default)]
pub(super) struct QuantizedRows {
    /// Tokens.
    pub(super) n: usize,
    /// Groups per token.
    pub(super) groups: usize,
    /// `[groups][n]`.
    cells: Vec<Group>,
}

/// One token's group.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Group {
    /// Each in −127..=127.
    pub(super) q: [i8; GROUP],
    /// Of the even and the odd quads of each 32 elements.
    pub(super) scale: [[f32; 2]; 8],
    /// Sum of each 16 elements, scaled.
    pub(super) total16: [f32; 16],
    /// Sum of each 32 elements, scaled.
    pub(super) total32: [f32; 8],
}

impl Group {
    const ZERO: Self = Group { q: [0; GROUP], scale: [[0.0; 2]; 8], total16: [0.0; 16], total32: [0.0; 8] };

    /// Symmetric rounding to −127..=127 per scale; `x` may be shorter than the group.
    #[inline(always)]
    fn quantize(&mut self, x: &[f32]) {
        let mut padded = [0.0f32; GROUP];
        padded[..x.len()].copy_from_slice(x);
        for (b, (x, q)) in padded.as_chunks::<32>().0.iter().zip(self.q.as_chunks_mut::<32>().0).enumerate() {
            // Lanes 0–3 are an even quad, lanes 4–7 the odd one behind it.
            let mut lanes = [0.0f32; 8];
            for eight in x.as_chunks::<8>().0 {
                for i in 0..8 {
                    lanes[i] = if eight[i].abs() > lanes[i] { eight[i].abs() } else { lanes[i] };
                }
            }
            let mut inverse = [0.0f32; 8];
            for p in 0..2 {
                let quad = &lanes[4 * p..4 * p + 4];
                let largest = quad[0].max(quad[1]).max(quad[2].max(quad[3]));
                self.scale[b][p] = largest / 127.0;
                inverse[4 * p..4 * p + 4].fill(if largest > 0.0 { 127.0 / largest } else { 0.0 });
            }
            for (q, x) in q.as_chunks_mut::<8>().0.iter_mut().zip(x.as_chunks::<8>().0) {
                for i in 0..8 {
                    q[i] = round_to_i8(x[i] * inverse[i]);
                }
            }
            for (h, half) in q.as_chunks::<16>().0.iter().enumerate() {
                let mut sums = [0i32; 2];
                for (i, &v) in half.iter().enumerate() {
                    sums[i / 4 % 2] += i32::from(v);
                }
                self.total16[2 * b + h] = self.scale[b][0] * sums[0] as f32 + self.scale[b][1] * sums[1] as f32;
            }
            self.total32[b] = self.total16[2 * b] + self.total16[2 * b + 1];
        }
    }
}

impl QuantizedRows {
    /// Quantises `x`, `[n, width]` f32.
    pub(super) fn quantize(&mut self, level: SimdLevel, x: &[f32], n: usize, width: usize) {
        assert_eq!(x.len(), n * width, "activations of {n} tokens × {width}");
        (self.n, self.groups) = (n, width.div_ceil(GROUP));
        self.cells.resize(self.groups * n, Group::ZERO);
        // A task takes all tokens of some groups; one token's worth is too little to share out.
        let per_task = if n > 1 { n } else { self.cells.len() };
        self.cells.par_chunks_mut(per_task).enumerate().for_each(|(task, cells)| {
            vectorised!(level, || {
                for (i, cell) in cells.iter_mut().enumerate() {
                    let (g, t) = ((task * per_task + i) / n, (task * per_task + i) % n);
                    let row = &x[t * width..(t + 1) * width];
                    cell.quantize(&row[g * GROUP..width.min((g + 1) * GROUP)]);
                }
            });
        });
    }

    /// Takes rows of `from`, in this order and as often as they are named.
    pub(super) fn gather(&mut self, from: &QuantizedRows, rows: &[u32]) {
        (self.n, self.groups) = (rows.len(), from.groups);
        self.cells.clear();
        for g in 0..from.groups {
            self.cells.extend(rows.iter().map(|&t| from.group(g, t as usize).clone()));
        }
    }

    /// Group `g` of token `t`.
    #[inline(always)]
    pub(super) fn group(&self, g: usize, t: usize) -> &Group {
        assert!(g < self.groups && t < self.n, "group {g} of {}, token {t} of {}", self.groups, self.n);
        &self.cells[g * self.n + t]
    }

    /// Group `g` of `N` tokens from `t0` on.
    #[inline(always)]
    pub(super) fn groups<const N: usize>(&self, g: usize, t0: usize) -> [&Group; N] {
        // A loop and not `array::from_fn`: a closure is not inlined into code compiled for other instructions.
        let mut all = [self.group(g, t0); N];
        for (t, x) in all.iter_mut().enumerate().skip(1) {
            *x = self.group(g, t0 + t);
        }
        all
    }
}

/// Nearest integer (ties to even) of a value within ±127.5, by adding 1.5·2²³ so that the mantissa holds the integer.
#[inline(always)]
fn round_to_i8(v: f32) -> i8 {
    ((v + 12_582_912.0).to_bits() as i32 - 0x4B40_0000) as i8
}

impl Group {
    /// The value that element `k` stands for.
    #[cfg(test)]
    pub(super) fn value(&self, k: usize) -> f64 {
        f64::from(self.scale[k / 32][k / 4 % 2]) * f64::from(self.q[k])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_what_was_given() {
        for (n, width) in [(1, 256), (3, 896), (2, 32), (40, 2048)] {
            let x: Vec<f32> = (0..n * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let mut rows = QuantizedRows::default();
            rows.quantize(SimdLevel::detect(), &x, n, width);
            for t in 0..n {
                for k in 0..rows.groups * GROUP {
                    let (g, e) = (rows.group(k / GROUP, t), k % GROUP);
                    let want = if k < width { f64::from(x[t * width + k]) } else { 0.0 };
                    let most = f64::from(g.scale[e / 32][e / 4 % 2]) * 0.5 + 1e-6;
                    assert!((g.value(e) - want).abs() <= most, "n={n} k={k}: {} for {want}", g.value(e));
                    if k % 16 == 0 {
                        let sum: f64 = (e..e + 16).map(|e| g.value(e)).sum();
                        assert!((f64::from(g.total16[e / 16]) - sum).abs() < 1e-4);
                    }
                    if k % 32 == 0 {
                        let sum: f64 = (e..e + 32).map(|e| g.value(e)).sum();
                        assert!((f64::from(g.total32[e / 32]) - sum).abs() < 1e-4);
                    }
                }
            }
        }
    }

    #[test]
    fn gathered_rows_are_those_named() {
        let x: Vec<f32> = (0..4 * 300).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let (mut rows, mut some) = (QuantizedRows::default(), QuantizedRows::default());
        rows.quantize(SimdLevel::detect(), &x, 4, 300);
        let named = [2u32, 0, 2, 3, 3];
        some.gather(&rows, &named);
        for (i, &t) in named.iter().enumerate() {
            for g in 0..2 {
                let (got, want) = (some.group(g, i), rows.group(g, t as usize));
                assert_eq!((got.q, got.scale, got.total16), (want.q, want.scale, want.total16), "row {i}");
                assert_eq!(got.total32, want.total32);
            }
        }
    }

    #[test]
    fn zeros_and_a_smaller_batch_leave_nothing_behind() {
        let mut rows = QuantizedRows::default();
        rows.quantize(SimdLevel::detect(), &vec![3.0; 512], 2, 256);
        rows.quantize(SimdLevel::detect(), &[0.0; 100], 1, 100);
        let zero = rows.group(0, 0);
        assert!(zero.q == [0; GROUP] && zero.scale == [[0.0; 2]; 8] && zero.total32 == [0.0; 8]);
    }
}
