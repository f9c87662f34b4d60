//! Products of one matrix, and the check of one against its f64 twin.

use super::{Bytes, Matrix, Random, TestWeight, assert_close, run};
use engine::backend::vulkan::kernels::linear::Product;
use engine::backend::vulkan::kernels::quantize;
use engine::backend::vulkan::{Gpu, VulkanError};

/// What a kernel computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32.
    Single,
    /// f16 factors and f32 sums.
    Half,
    /// Activations in bytes, compared with products of what the bytes stand for.
    Integer,
}

impl Arithmetic {
    /// Most that a sum of products may be off, for the sizes of its terms and of its factors.
    pub fn error(self, sizes: Sizes) -> f64 {
        match self {
            // f32 sums in another order, and weights that may be rounded once less.
            Arithmetic::Single | Arithmetic::Integer => 2e-5 * sizes.terms,
            // Both factors are rounded to 11 bits: 2 · 2^-11; weights below 2^-14 to multiples of 2^-24.
            Arithmetic::Half => 1e-3 * sizes.terms + 3e-8 * sizes.x,
        }
    }
}

/// Sums of absolute values: of the products of weights and activations, and of the activations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    pub terms: f64,
    pub x: f64,
}

/// Runs the product of `n` random columns and compares it with f64.
pub fn check_product(
    gpu: &mut Gpu,
    random: &mut Random,
    weight: &TestWeight,
    n: usize,
    options: (bool, bool),
    arithmetic: Arithmetic,
    record: impl Fn(&mut Gpu, &Product<'_>) -> Result<(), VulkanError>,
) {
    let values = random.values(n * weight.cols);
    check_product_of(gpu, random, weight, &values, options, arithmetic, record);
}

/// Runs the product of `values`, `[n, weight.cols]`, and compares it with f64.
pub fn check_product_of(
    gpu: &mut Gpu,
    random: &mut Random,
    weight: &TestWeight,
    values: &[f32],
    (with_bias, accumulate): (bool, bool),
    arithmetic: Arithmetic,
    record: impl Fn(&mut Gpu, &Product<'_>) -> Result<(), VulkanError>,
) {
    let (ty, rows, cols) = (weight.ty, weight.rows, weight.cols);
    let n = values.len() / cols;
    let what = format!("{n} tokens × {ty} [{rows}, {cols}], bias {with_bias}, accumulate {accumulate}, {arithmetic:?}");
    let on_device = weight.upload(gpu, "weight");
    let before = random.values(n * rows);
    let bias_values = random.values(rows);
    let bias = with_bias.then(|| TestWeight::vector(&bias_values).upload(gpu, "bias"));
    let x = Matrix::new(gpu, n, cols, values);
    let dst = Matrix::new(gpu, n, rows, &before);
    let product = Product { bias: bias.as_ref(), accumulate, ..Product::new(x.rows(), &on_device, dst.rows()) };
    let bytes = (arithmetic == Arithmetic::Integer).then(|| Bytes::new(gpu, n, cols));
    run(gpu, &what, |g| {
        if let Some(bytes) = &bytes {
            quantize::record(g, x.rows(), bytes.rows())?;
        }
        record(g, &Product { quantized: bytes.as_ref().map(Bytes::rows), ..product })
    });
    let seen = bytes.map(|b| b.decoded());
    let values = seen.as_deref().unwrap_or(values);
    let (mut want, mut errors, mut squares) = (Vec::new(), Vec::new(), 0.0);
    for t in 0..n {
        for r in 0..rows {
            let (mut sum, mut sizes) = (0.0, Sizes::default());
            for (&a, &b) in values[t * cols..][..cols].iter().zip(weight.row(r)) {
                let term = f64::from(a) * f64::from(b);
                sum += term;
                sizes = Sizes { terms: sizes.terms + term.abs(), x: sizes.x + f64::from(a).abs() };
                squares += term * term;
            }
            let bias = if with_bias { f64::from(bias_values[r]) } else { 0.0 };
            let old = if accumulate { f64::from(before[t * rows + r]) } else { 0.0 };
            want.push(sum + bias + old);
            errors.push(arithmetic.error(sizes) + 2e-5 * (bias.abs() + old.abs()));
        }
    }
    let got = dst.read();
    assert_close(&what, &got, &want, |i| errors[i]);
    if arithmetic == Arithmetic::Half && want.len() >= 64 {
        // Rounded to nearest, errors are independent: of a term about 0.6 · 2^-11 in the mean of squares.
        let off: f64 = got.iter().zip(&want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
        let most = (2f64.powi(-11) * squares.sqrt()).max(1e-6 * super::largest(&want));
        assert!(off.sqrt() <= most, "{what}: off by {:e} in all, at most {most:e}", off.sqrt());
    }
}
