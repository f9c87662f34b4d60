//! From a K-quant group's integer sums, spread over the lanes of vectors, to a row's result: the end of the row kernels
//! of `avx2` and `avx512`. Each group gives `sum += (d · Σproducts − dmin · Σmins) · scale` in exactly the roundings and
//! the order of the panel kernels, so that a token's result has the same bits however many others are beside it.
//!
//! Adding across lanes is dear. With several tokens their groups are added together; with one, eight groups wait for one
//! another.

use super::activation::GroupRef;
use super::avx2::{load_ps, store_ps};
use std::arch::x86_64::*;

/// Groups of a single token that are added up together.
const WAITING: usize = 8;

/// The sums of a row with `N` tokens, one to four.
pub(super) struct GroupSums<const N: usize> {
    /// Sums of groups that were added.
    sums: __m128,
    /// Of a single token: the groups that wait, and how many they are.
    products: [__m256i; WAITING],
    mins: [__m256i; WAITING],
    d: [f32; WAITING],
    dmin: [f32; WAITING],
    scale: [f32; WAITING],
    n: usize,
}

impl<const N: usize> GroupSums<N> {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new() -> Self {
        const { assert!(N >= 1 && N <= 4) };
        let zero = [_mm256_setzero_si256(); WAITING];
        let none = [0.0; WAITING];
        GroupSums { sums: _mm_setzero_ps(), products: zero, mins: zero, d: none, dmin: none, scale: none, n: 0 }
    }

    /// Adds a group of every token; `(d, dmin)` are the block's.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn add(
        &mut self,
        products: [__m256i; N],
        mins: [__m256i; N],
        (d, dmin): (f32, f32),
        x: [GroupRef<'_>; N],
    ) {
        if N == 1 {
            let i = self.n % WAITING;
            (self.products[i], self.mins[i]) = (products[0], mins[0]);
            (self.d[i], self.dmin[i], self.scale[i]) = (d, dmin, x[0].scale[0]);
            self.n = i + 1;
            if self.n == WAITING {
                self.add_waiting();
            }
            return;
        }
        let zero = _mm256_setzero_si256();
        let of = |v: &[__m256i; N], i: usize| v.get(i).copied().unwrap_or(zero);
        let (p, m) = if N == 2 {
            let both = sums_of_four([of(&products, 0), of(&products, 1), of(&mins, 0), of(&mins, 1)]);
            (both, _mm_unpackhi_epi64(both, both))
        } else {
            (
                sums_of_four(std::array::from_fn(|i| of(&products, i))),
                sums_of_four(std::array::from_fn(|i| of(&mins, i))),
            )
        };
        let scale = |i: usize| x.get(i).map_or(0.0, |x| x.scale[0]);
        let scales = _mm_setr_ps(scale(0), scale(1), scale(2), scale(3));
        let below = _mm_mul_ps(_mm_set1_ps(dmin), _mm_cvtepi32_ps(m));
        let value = _mm_fmsub_ps(_mm_set1_ps(d), _mm_cvtepi32_ps(p), below);
        self.sums = _mm_fmadd_ps(value, scales, self.sums);
    }

    /// Adds the groups that wait, one after the other.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add_waiting(&mut self) {
        let (p, m) = (sums_of_eight(self.products), sums_of_eight(self.mins));
        let below = _mm256_mul_ps(load_ps(&self.dmin), _mm256_cvtepi32_ps(m));
        let values = store_ps(_mm256_fmsub_ps(load_ps(&self.d), _mm256_cvtepi32_ps(p), below));
        let mut sum = _mm_cvtss_f32(self.sums);
        for (value, scale) in values.iter().zip(&self.scale).take(self.n) {
            sum = value.mul_add(*scale, sum);
        }
        self.sums = _mm_set_ss(sum);
        self.n = 0;
    }

    /// The sums of all tokens.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn finish(mut self) -> [f32; N] {
        if N == 1 {
            self.add_waiting();
        }
        let mut out = [0.0; 4];
        // SAFETY: the array is 16 writable bytes; the store needs no alignment.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), self.sums) };
        std::array::from_fn(|i| out[i])
    }
}

/// The sum of each of four vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn sums_of_four(v: [__m256i; 4]) -> __m128i {
    let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves))
}

/// The sum of each of eight vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sums_of_eight(v: [__m256i; 8]) -> __m256i {
    let first = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    let last = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    let (low, high) = (_mm256_permute2x128_si256::<0x20>(first, last), _mm256_permute2x128_si256::<0x31>(first, last));
    _mm256_add_epi32(low, high)
}
