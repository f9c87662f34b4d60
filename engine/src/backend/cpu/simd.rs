//! Which vector instructions the products use, chosen once at run time, and the small f32 helpers that are written
//! so that the compiler vectorises them in whichever function they are inlined into.

/// Instruction set of the CPU kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// Plain Rust; any machine.
    Portable,
    /// AVX2, FMA and F16C (Intel since 2013, AMD since 2015).
    Avx2,
    /// AVX-512 F, BW, VL and VNNI (Intel since 2019, AMD since 2022).
    Avx512Vnni,
}

impl SimdLevel {
    /// The best level this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let vnni = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && vnni {
                return SimdLevel::Avx512Vnni;
            }
            if avx2 {
                return SimdLevel::Avx2;
            }
        }
        SimdLevel::Portable
    }

    /// All levels this machine can run, for tests that compare them.
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512Vnni].into_iter().filter(|l| *l <= best).collect()
    }

    /// Name shown to the user.
    pub fn name(self) -> &'static str {
        match self {
            SimdLevel::Portable => "portable",
            SimdLevel::Avx2 => "AVX2",
            SimdLevel::Avx512Vnni => "AVX-512 VNNI",
        }
    }
}

/// Runs `$body` compiled for the instruction set of `$level`. The body must be `#[inline(always)]` code.
macro_rules! vectorised {
    ($level:expr, $body:expr) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            #[inline]
            fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            if $level >= $crate::backend::cpu::simd::SimdLevel::Avx2 {
                // SAFETY: the level is only above `Portable` where `detect` has seen avx2, fma and f16c.
                unsafe { with_avx2($body) }
            } else {
                ($body)()
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = $level;
            ($body)()
        }
    }};
}
pub(super) use vectorised;

const LANES: usize = 16;

/// `Σ a·b` with sixteen partial sums, so that it vectorises and rounds less than one long chain.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = ac.remainder().iter().zip(bc.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in ac.zip(bc) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// `y += s · x`.
#[inline(always)]
pub(super) fn add_scaled(y: &mut [f32], s: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.mul_add(s, *y);
    }
}

/// `eˣ` to 2 ulp for x ≤ 0 and for silu's range; below −87 it gives 0. Cephes-style: 2ⁿ times a polynomial in the
/// remainder, so that it vectorises where `f32::exp` is a call.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.3, 88.7);
    let n = (clamped * std::f32::consts::LOG2_E + 0.5).floor();
    // ln 2 in two parts, so that n·ln 2 is subtracted without rounding.
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, clamped));
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_66);
    let p = p.mul_add(r, 0.5);
    let poly = p.mul_add(r * r, r) + 1.0;
    let scale = f32::from_bits((((n as i32) + 127) as u32) << 23);
    if x < -87.3 { 0.0 } else { poly * scale }
}

/// `Σ e^(x − max)`, in as many partial sums as [`dot`].
pub(crate) fn sum_exp(x: &[f32], max: f32) -> f32 {
    vectorised!(SimdLevel::detect(), || {
        let mut lanes = [0.0f32; LANES];
        let (chunks, tail) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += exp(chunk[i] - max);
            }
        }
        lanes.iter().sum::<f32>() + tail.iter().map(|v| exp(v - max)).sum::<f32>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, expected {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn dot_takes_every_length() {
        for n in [0, 1, 15, 16, 17, 64, 100] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot(&a, &a), want, "n = {n}");
        }
    }
}
