//! RMS norm of each group of `weight.cols` elements of a row (`f32_rms_norm.comp`), and that of whole rows which leaves
//! them in bytes too (`f32_rms_norm_quantize.comp`).

use shaders::Kernel;

use super::quantize::QuantizedRows;
use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError, Weight};

push_constants! {
    struct Push {
        x: ReadAddress,
        weight: ReadAddress,
        dst: WriteAddress,
        width: u32,
        stride: u32,
        eps: f32,
        padding: u32,
    }
}

/// The variant in use.
pub fn variant(tuning: &Tuning) -> Variant {
    Variant { kernel: Kernel::RmsNorm, constants: vec![tuning.norm] }
}

/// Records `dst = rms_norm(x) · weight`; `x` and `dst` have one shape and may be one buffer. A row of several times
/// `weight.cols` elements is as many groups (heads).
pub fn record(gpu: &mut Gpu, x: Rows<'_>, weight: &Weight, eps: f32, dst: Rows<'_>) -> Result<(), VulkanError> {
    check(x, weight, dst);
    assert!(x.width.is_multiple_of(weight.cols), "{} elements in groups of {}", x.width, weight.cols);
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
    let mut op = gpu.commands.op();
    // In place, the memory is written; naming it as read as well does no harm.
    let push = Push {
        x: op.reads(x.region),
        weight: weight.quants,
        dst: op.writes(dst.region),
        width: weight.cols as u32,
        stride: x.stride as u32,
        eps,
        padding: 0,
    };
    let cost = Cost { read_bytes: x.bytes(), written_bytes: x.bytes(), flops: x.bytes() };
    op.dispatch(pipeline, [(x.width / weight.cols) as u32, x.n_rows as u32, 1], &push, cost)
}

/// Checks what both norms need.
fn check(x: Rows<'_>, weight: &Weight, dst: Rows<'_>) {
    x.check("x");
    dst.check("dst");
    assert_eq!((x.n_rows, x.width, x.stride), (dst.n_rows, dst.width, dst.stride), "shapes of x and dst");
    assert_eq!((weight.rows, weight.ty), (1, shaders::WeightType::F32), "{} is a vector", weight.name);
}

/// The norm of a few tokens, whose products run in integers.
pub mod quantized {
    use super::*;

    push_constants! {
        struct Push {
            x: ReadAddress,
            weight: ReadAddress,
            dst: WriteAddress,
            quantized: WriteAddress,
            width: u32,
            stride4: u32,
            n_pieces: u32,
            eps: f32,
        }
    }

    /// The variant in use.
    pub fn variant(tuning: &Tuning) -> Variant {
        Variant { kernel: Kernel::RmsNormQuantize, constants: vec![tuning.norm] }
    }

    /// Records `dst = rms_norm(x) · weight`, and the same in bytes in `quantized`; `x` and `dst` have one shape and may
    /// be one buffer.
    pub fn record(
        gpu: &mut Gpu,
        x: Rows<'_>,
        weight: &Weight,
        eps: f32,
        dst: Rows<'_>,
        quantized: QuantizedRows<'_>,
    ) -> Result<(), VulkanError> {
        check(x, weight, dst);
        quantized.check(dst);
        assert_eq!(weight.cols, x.width, "elements of {}", weight.name);
        let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
        let mut op = gpu.commands.op();
        let push = Push {
            x: op.reads(x.region),
            weight: weight.quants,
            dst: op.writes(dst.region),
            quantized: quantized.written(&mut op),
            width: x.width as u32,
            stride4: x.stride4("x"),
            n_pieces: quantized.n_pieces(),
            eps,
        };
        let cost = Cost { read_bytes: x.bytes(), written_bytes: x.bytes() + quantized.bytes(), flops: 2 * x.bytes() };
        op.dispatch(pipeline, [x.n_rows as u32, 1, 1], &push, cost)
    }
}
