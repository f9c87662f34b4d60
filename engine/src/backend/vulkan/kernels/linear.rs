//! `dst = x · weightᵀ (+ bias) (+ dst)`: for a few tokens by `f32_anyw_matvec.comp`, which reads each weight once for
//! up to 8 of them, for many by `f32_anyw_matmul.comp`, which keeps tiles of both sides in shared memory.

use shaders::{Kernel, WeightType};

use super::{Rows, flat_grid, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Tuning, Variant, VulkanError, Weight};

const ACCUMULATE: u32 = 1;
const HAS_BIAS: u32 = 2;

push_constants! {
    struct Push {
        quants: ReadAddress,
        high: ReadAddress,
        scales: ReadAddress,
        x: ReadAddress,
        bias: ReadAddress,
        dst: WriteAddress,
        n_rows: u32,
        n_units: u32,
        n_tokens: u32,
        x_stride4: u32,
        dst_stride: u32,
        flags: u32,
    }
}

/// A product.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// `[n_tokens, weight.cols]`; elements from there to the stride are finite (they meet zero weights).
    pub x: Rows<'a>,
    /// `[rows, cols]`.
    pub weight: &'a Weight,
    /// `[rows]`.
    pub bias: Option<&'a Weight>,
    /// `[n_tokens, weight.rows]`.
    pub dst: Rows<'a>,
    /// Add to `dst` instead of overwriting it.
    pub accumulate: bool,
}

/// Records the product with the kernel that suits the number of tokens.
pub fn record(gpu: &mut Gpu, product: &Product<'_>) -> Result<(), VulkanError> {
    if product.x.n_rows < gpu.tuning.matmul_from { record_matvec(gpu, product) } else { record_matmul(gpu, product) }
}

/// Records the product as matrix–vector products of a few tokens each.
pub fn record_matvec(gpu: &mut Gpu, product: &Product<'_>) -> Result<(), VulkanError> {
    let n_tokens = product.x.n_rows as u32;
    let variant = matvec(&gpu.tuning, product.weight.ty, n_tokens);
    let &[_, rows, columns] = &variant.constants[..] else { unreachable!("three constants") };
    let [x, y, _] = flat_grid((product.weight.rows as u32).div_ceil(rows), gpu.max_groups());
    dispatch(gpu, product, &variant, [x, y, n_tokens.div_ceil(columns)])
}

/// Records the product as one of tiles.
pub fn record_matmul(gpu: &mut Gpu, product: &Product<'_>) -> Result<(), VulkanError> {
    let variant = matmul(&gpu.tuning, product.weight.ty);
    let tile = gpu.tuning.matmul;
    let n_rows = (product.weight.rows as u32).div_ceil(tile.block_rows);
    dispatch(gpu, product, &variant, [n_rows, (product.x.n_rows as u32).div_ceil(tile.block_tokens), 1])
}

/// Every variant that passes of 1 to `n_batch` tokens use for weights of type `ty`.
pub fn variants(tuning: &Tuning, ty: WeightType, n_batch: usize) -> Vec<Variant> {
    let few = n_batch.min(tuning.matmul_from - 1) as u32;
    let mut all: Vec<Variant> = (1..=few).map(|n| matvec(tuning, ty, n)).collect();
    all.dedup();
    if n_batch >= tuning.matmul_from {
        all.push(matmul(tuning, ty));
    }
    all
}

fn matvec(tuning: &Tuning, ty: WeightType, n_tokens: u32) -> Variant {
    let all = tuning.matvec_columns;
    let columns = *all.iter().find(|&&c| c >= n_tokens).or(all.last()).expect("a tuning has a number of columns");
    let rows = tuning.matvec_rows[usize::from(columns > 2)];
    Variant { kernel: Kernel::Matvec(ty), constants: vec![tuning.matvec, rows, columns] }
}

fn matmul(tuning: &Tuning, ty: WeightType) -> Variant {
    let tile = tuning.matmul;
    let constants = vec![tile.workgroup(), tile.block_rows, tile.block_tokens, tile.thread_rows, tile.thread_tokens];
    Variant { kernel: Kernel::Matmul(ty), constants }
}

fn dispatch(gpu: &mut Gpu, product: &Product<'_>, variant: &Variant, groups: [u32; 3]) -> Result<(), VulkanError> {
    let Product { x, weight, bias, dst, accumulate } = product;
    x.check("x");
    dst.check("dst");
    assert_eq!((x.width, dst.width), (weight.cols, weight.rows), "input and output of {}", weight.name);
    assert_eq!(x.n_rows, dst.n_rows, "tokens of x and dst");
    assert!(weight.units_per_row() as usize * weight.ty.unit() <= x.stride, "a padded row of {} fits", weight.name);
    if let Some(bias) = bias {
        assert_eq!((bias.rows, bias.cols, bias.ty), (1, weight.rows, WeightType::F32), "shape of {}", bias.name);
    }
    let pipeline = gpu.pipelines.get(variant)?;
    let mut op = gpu.commands.op();
    let push = Push {
        quants: weight.quants,
        high: weight.high,
        scales: weight.scales,
        x: op.reads(x.region),
        bias: bias.map_or(ReadAddress::NONE, |b| b.quants),
        dst: op.writes(dst.region),
        n_rows: weight.rows as u32,
        n_units: weight.units_per_row(),
        n_tokens: x.n_rows as u32,
        x_stride4: x.stride4("x"),
        dst_stride: dst.stride as u32,
        flags: if *accumulate { ACCUMULATE } else { 0 } | if bias.is_some() { HAS_BIAS } else { 0 },
    };
    let cost = Cost {
        read_bytes: weight.rows as u64 * weight.row_bytes() + x.bytes(),
        written_bytes: dst.bytes(),
        flops: 2 * (x.n_rows * weight.rows * weight.cols) as u64,
    };
    op.dispatch(pipeline, groups, &push, cost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::vulkan::tuning::MatmulTile;

    #[test]
    fn the_prepared_variants_are_those_that_passes_ask_for() {
        let tile = MatmulTile { block_rows: 64, block_tokens: 64, thread_rows: 4, thread_tokens: 4 };
        let tuning = Tuning {
            elementwise: 64,
            norm: 64,
            attention: 64,
            matvec: 32,
            matvec_rows: [4, 2],
            matvec_columns: &[1, 2, 4, 8],
            matmul_from: 33,
            matmul: tile,
            submit_budget: Cost::default(),
        };
        for n_batch in [1, 2, 3, 5, 8, 9, 33, 512] {
            let prepared = variants(&tuning, WeightType::Q4_K, n_batch);
            let mut used = Vec::new();
            for n in 1..=n_batch {
                let variant = if n < tuning.matmul_from {
                    matvec(&tuning, WeightType::Q4_K, n as u32)
                } else {
                    matmul(&tuning, WeightType::Q4_K)
                };
                if !used.contains(&variant) {
                    used.push(variant);
                }
            }
            assert_eq!(prepared, used, "batches of up to {n_batch}");
        }
    }
}
