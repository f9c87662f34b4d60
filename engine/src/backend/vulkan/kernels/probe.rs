//! Kernels that measure the device and compute nothing of a model: `u32_read.comp` reads memory, `f32_fma.comp`
//! multiplies and adds, `f16_matrix_fma.comp` does on the matrix units.

use shaders::Kernel;

use super::push_constants;
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::tuning::MatrixTile;
use crate::backend::vulkan::{Cost, Gpu, Region, Variant, VulkanError};

/// Invocations per workgroup of these kernels.
pub const WORKGROUP: u32 = 256;
/// Multiply-adds of an invocation of `f32_fma` in a round.
const FMAS: u64 = 8 * 4;

/// Products of a subgroup of `f16_matrix_fma` in a round.
const MATRIX_FMAS: u64 = 4;
/// Its specialization constant with the size of subgroups.
pub(in crate::backend::vulkan) const SUBGROUP_ID: usize = 4;

/// Push constants of `u32_read`.
pub(super) mod read {
    use super::{ReadAddress, WriteAddress, push_constants};

    push_constants! {
        struct Push {
            src: ReadAddress,
            dst: WriteAddress,
            n4: u32,
            stride: u32,
        }
    }
}

push_constants! {
    struct Push {
        dst: WriteAddress,
        a: f32,
        b: f32,
        n: u32,
        padding: u32,
    }
}

/// The variants of those that any device has.
pub fn variants() -> [Variant; 2] {
    [Kernel::Read, Kernel::Fma].map(|kernel| Variant { kernel, constants: vec![WORKGROUP] })
}

/// The variant of `f16_matrix_fma` for matrices of that shape and subgroups of that size.
pub fn matrix_variant(tile: &MatrixTile) -> Variant {
    let MatrixTile { shape, subgroup, .. } = tile;
    Variant { kernel: Kernel::MatrixFma, constants: vec![WORKGROUP, shape.m, shape.n, shape.k, *subgroup] }
}

/// Bytes that a workgroup of it writes.
pub fn matrix_group_bytes(tile: &MatrixTile) -> u64 {
    u64::from(WORKGROUP / tile.subgroup * tile.shape.m * tile.shape.n * 4)
}

/// Records `n` rounds of products of matrices whose elements are `a` and `b` by `n_groups` workgroups.
pub fn record_matrix_fma(
    gpu: &mut Gpu,
    tile: &MatrixTile,
    dst: &Region,
    [a, b]: [f32; 2],
    n: u32,
    n_groups: u32,
) -> Result<(), VulkanError> {
    let written_bytes = u64::from(n_groups) * matrix_group_bytes(tile);
    assert!(written_bytes <= dst.bytes, "{dst:?}");
    let pipeline = gpu.pipelines.get(&matrix_variant(tile))?;
    let mut op = gpu.commands.op();
    let push = Push { dst: op.writes(dst), a, b, n, padding: 0 };
    let flops = written_bytes / 4 * u64::from(n) * 2 * MATRIX_FMAS * u64::from(tile.shape.k);
    op.dispatch(pipeline, [n_groups, 1, 1], &push, Cost { read_bytes: 0, written_bytes, flops })
}

/// Records a read of all of `src` by `n_groups` workgroups, each of whose invocations leaves 16 bytes in `dst`.
pub fn record_read(gpu: &mut Gpu, src: &Region, dst: &Region, n_groups: u32) -> Result<(), VulkanError> {
    let n_invocations = n_groups * WORKGROUP;
    assert!(src.bytes < 1 << 34 && u64::from(n_invocations) * 16 <= dst.bytes, "{src:?}, {dst:?}");
    let pipeline = gpu.pipelines.get(&variants()[0])?;
    let mut op = gpu.commands.op();
    let n4 = (src.bytes / 16) as u32;
    let push = read::Push { src: op.reads(src), dst: op.writes(dst), n4, stride: n_invocations };
    let cost = Cost { read_bytes: src.bytes, written_bytes: u64::from(n_invocations) * 16, flops: 0 };
    op.dispatch(pipeline, [n_groups, 1, 1], &push, cost)
}

/// Records `n` rounds of multiply-adds `x · a + b` by `n_groups` workgroups.
pub fn record_fma(gpu: &mut Gpu, dst: &Region, [a, b]: [f32; 2], n: u32, n_groups: u32) -> Result<(), VulkanError> {
    let n_invocations = u64::from(n_groups * WORKGROUP);
    assert!(n_invocations * 16 <= dst.bytes, "{dst:?}");
    let pipeline = gpu.pipelines.get(&variants()[1])?;
    let mut op = gpu.commands.op();
    let push = Push { dst: op.writes(dst), a, b, n, padding: 0 };
    let cost =
        Cost { read_bytes: 0, written_bytes: n_invocations * 16, flops: n_invocations * u64::from(n) * 2 * FMAS };
    op.dispatch(pipeline, [n_groups, 1, 1], &push, cost)
}
