//! `dst = x · weightᵀ (+ bias) (+ dst)`: for a few tokens by `f32_anyw_matvec.comp`, which reads each weight once for
//! up to 16 of them, for many by `f32_anyw_matmul.comp`, which keeps tiles of both sides in shared memory, or by
//! `f16_anyw_matmul.comp`, which does so on the device's matrix units. With a routing, the same kernels multiply each
//! pair of it with its expert's matrix. A few tokens whose activations are there in bytes are multiplied by
//! `q8_anyw_matvec.comp`, if the weights are quantised.

use shaders::{Kernel, WeightType};

use super::half_rows::{self, HalfRows};
use super::quantize::QuantizedRows;
use super::route::Routing;
use super::{Rows, flat_grid, push_constants};
use crate::backend::vulkan::commands::{Op, ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Extent, Gpu, MatmulTile, MatrixTile, Tuning, Variant, VulkanError, Weight};

const ACCUMULATE: u32 = 1;
/// Flag of [`super::gated`] too.
pub(super) const HAS_BIAS: u32 = 2;
const HAS_FACTORS: u32 = 4;

push_constants! {
    struct Push {
        quants: ReadAddress,
        high: ReadAddress,
        scales: ReadAddress,
        x: ReadAddress,
        bias: ReadAddress,
        dst: WriteAddress,
        tiles: ReadAddress,
        entries: ReadAddress,
        factors: ReadAddress,
        n_rows: u32,
        n_units: u32,
        n_tokens: u32,
        x_stride4: u32,
        dst_stride: u32,
        bias_stride: u32,
        x_share: u32,
        flags: u32,
    }
}

/// A product.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// `[n_tokens, k]`, with a routing `[n_tokens or n_pairs, k]`; elements from there to the stride are finite (they
    /// meet zero weights).
    pub x: Rows<'a>,
    /// The same in bytes, for those products that can run in integers.
    pub quantized: Option<QuantizedRows<'a>>,
    /// `[rows, k]`; with a routing `[n_expert * rows, k]`.
    pub weight: &'a Weight,
    /// `[rows]`; with a routing `[n_expert, rows]`.
    pub bias: Option<&'a Weight>,
    /// `[n_tokens or n_pairs, rows]`.
    pub dst: Rows<'a>,
    /// Add to `dst` instead of overwriting it. With a routing, of a single token and weighted: add up its pairs onto
    /// `dst`, `[1, rows]`, which ends the token's experts in one step.
    pub accumulate: bool,
    /// With it, each pair is multiplied with its expert's matrix.
    pub routing: Option<&'a Routing<'a>>,
    /// Multiply the results with the pairs' routing weights.
    pub weighted: bool,
}

impl<'a> Product<'a> {
    /// `dst = x · weightᵀ`.
    pub fn new(x: Rows<'a>, weight: &'a Weight, dst: Rows<'a>) -> Product<'a> {
        Product { x, quantized: None, weight, bias: None, dst, accumulate: false, routing: None, weighted: false }
    }
}

/// More rows than keep any device busy.
pub const MANY: usize = 1 << 24;

/// Which kernel computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Matrix–vector products of up to so many columns.
    Matvec {
        /// Columns of a workgroup.
        columns: u32,
    },
    /// Tiles.
    Matmul {
        /// Rows and columns of a workgroup.
        tile: MatmulTile,
    },
    /// Tiles on the matrix units, with activations in f16.
    Matrix {
        /// Rows and columns of a workgroup and its subgroups.
        tile: MatrixTile,
    },
}

impl Method {
    /// For all of a batch with one matrix of type `ty`. F32 matrices (routers among them) are never rounded to f16.
    pub fn of(tuning: &Tuning, ty: WeightType, extent: Extent) -> Method {
        match tuning.matrix {
            Some(matrix) if ty != WeightType::F32 && extent.n_tokens >= matrix.from => {
                Method::Matrix { tile: matrix.for_extent(extent) }
            }
            _ if extent.n_tokens < tuning.matmul_from => Method::matvec(tuning, extent.n_tokens),
            _ => Method::Matmul { tile: tuning.matmul },
        }
    }

    /// Whether so few tokens take the matrix–vector kernel, whatever the number of rows.
    pub fn is_matvec(tuning: &Tuning, ty: WeightType, n_tokens: usize) -> bool {
        matches!(Method::of(tuning, ty, Extent { n_rows: 1, n_tokens }), Method::Matvec { .. })
    }

    /// For a batch whose tokens choose `n_used` of `n_expert` matrices each. No expert has more than `n_tokens`
    /// columns, so with up to 8 tokens each chosen expert is one tile: it is read once.
    pub fn of_experts(tuning: &Tuning, n_tokens: usize, n_expert: usize, n_used: usize) -> Method {
        let n_pairs = n_tokens * n_used;
        match tuning.matrix {
            Some(matrix) if n_tokens > 8 && n_pairs >= matrix.experts_from * n_expert => {
                // Of so many experts there are enough workgroups.
                Method::Matrix {
                    tile: matrix.for_extent(Extent { n_rows: MANY, n_tokens: n_pairs.div_ceil(n_expert) }),
                }
            }
            _ if n_pairs < tuning.experts_matmul_from * n_expert => Method::matvec(tuning, n_tokens),
            _ => Method::Matmul { tile: tuning.experts },
        }
    }

    /// The matrix–vector kernel with enough columns for `n_tokens`, or the most there are.
    pub fn matvec(tuning: &Tuning, n_tokens: usize) -> Method {
        let all = tuning.matvec_columns;
        let columns = all.iter().find(|&&c| c as usize >= n_tokens).or(all.last());
        Method::Matvec { columns: *columns.expect("a tuning has a number of columns") }
    }

    /// Whether there is a kernel that takes activations in bytes, for weights of type `ty`.
    pub fn can_dot(self, ty: WeightType) -> bool {
        matches!(self, Method::Matvec { .. }) && ty.is_quantised()
    }

    /// Columns of a workgroup.
    pub fn tile_width(self) -> u32 {
        match self {
            Method::Matvec { columns } => columns,
            Method::Matmul { tile } => tile.block_tokens,
            Method::Matrix { tile } => tile.block_tokens,
        }
    }

    /// Whether the kernel takes its activations in f16.
    pub(super) fn is_of_halves(self) -> bool {
        matches!(self, Method::Matrix { .. })
    }

    /// Every method that passes of 1 to `n_batch` tokens use, by `of`.
    pub(in crate::backend::vulkan) fn all(n_batch: usize, of: impl Fn(usize) -> Method) -> Vec<Method> {
        let mut all: Vec<Method> = Vec::new();
        for method in (1..=n_batch).map(of) {
            if !all.contains(&method) {
                all.push(method);
            }
        }
        all
    }

    /// Grid of a kernel that computes `rows_per_group` of `n_rows` rows, of a batch or of each tile of a routing.
    pub(super) fn grid(
        self,
        gpu: &Gpu,
        n_rows: usize,
        rows_per_group: u32,
        n_tokens: usize,
        routing: Option<&Routing<'_>>,
    ) -> [u32; 3] {
        let row_groups = (n_rows as u32).div_ceil(rows_per_group);
        let col_groups = (n_tokens as u32).div_ceil(self.tile_width());
        let groups = match (self, routing) {
            (Method::Matvec { .. }, _) => {
                let [_, y, z] = gpu.max_groups();
                let [y, z, _] = flat_grid(row_groups, [y, z, 1]);
                [routing.map_or(col_groups, |r| r.max_tiles() as u32), y, z]
            }
            (Method::Matmul { .. } | Method::Matrix { .. }, None) => [row_groups, col_groups, 1],
            (Method::Matmul { .. } | Method::Matrix { .. }, Some(r)) => [row_groups, r.max_tiles() as u32, 1],
        };
        let max = gpu.max_groups();
        assert!(groups.iter().zip(max).all(|(&n, max)| n <= max), "{groups:?} workgroups, at most {max:?}");
        groups
    }
}

/// Records the product with the kernel that suits the number of tokens, or that the routing was made for.
pub fn record(gpu: &mut Gpu, product: &Product<'_>) -> Result<(), VulkanError> {
    record_all(gpu, std::slice::from_ref(product))
}

/// The same for several products of one input.
pub fn record_all(gpu: &mut Gpu, products: &[Product<'_>]) -> Result<(), VulkanError> {
    record_all_with(gpu, products, |tuning, product| match product.routing {
        Some(routing) => routing.method,
        None => Method::of(tuning, product.weight.ty, Extent { n_rows: product.dst.width, n_tokens: product.x.n_rows }),
    })
}

/// Every variant that passes of 1 to `n_batch` tokens use for weights of type `ty` with so many rows.
pub fn variants(tuning: &Tuning, ty: WeightType, n_rows: usize, n_batch: usize) -> Vec<Variant> {
    let methods = Method::all(n_batch, |n_tokens| Method::of(tuning, ty, Extent { n_rows, n_tokens }));
    with_dot(tuning, ty, &methods).map(|(m, dot)| variant(tuning, ty, m, Grouped::No, dot)).collect()
}

/// Each method as it is used with weights of type `ty`: with f32 (`false`), in integers, or either.
pub(super) fn with_dot(tuning: &Tuning, ty: WeightType, methods: &[Method]) -> impl Iterator<Item = (Method, bool)> {
    let [from, everywhere_from] = tuning.dot_from;
    let used = move |&(m, dot): &(Method, bool)| {
        let Method::Matvec { columns } = m else { return !dot };
        let smaller = tuning.matvec_columns.iter().rev().find(|&&c| c < columns).map_or(0, |&c| c as usize);
        match m.can_dot(ty) {
            true if dot => columns as usize >= from,
            true => smaller + 1 < everywhere_from,
            false => !dot,
        }
    };
    methods.iter().flat_map(|&m| [(m, false), (m, true)]).filter(used)
}

/// The same for the down projections of experts, and that of a single token.
pub fn expert_variants(tuning: &Tuning, ty: WeightType, methods: &[Method]) -> Vec<Variant> {
    let pairs = with_dot(tuning, ty, methods).map(|(m, dot)| variant(tuning, ty, m, Grouped::Pairs, dot));
    let single = with_dot(tuning, ty, &[SINGLE]).map(|(m, dot)| variant(tuning, ty, m, Grouped::Token, dot));
    pairs.chain(single).collect()
}

/// The method of a single token.
const SINGLE: Method = Method::Matvec { columns: 1 };

/// What a workgroup multiplies: the kernels' constant.
#[derive(Clone, Copy, Debug)]
enum Grouped {
    /// Tokens with one matrix.
    No = 0,
    /// Pairs that chose an expert with its matrix.
    Pairs = 1,
    /// All pairs of a token, added up.
    Token = 2,
}

fn variant(tuning: &Tuning, ty: WeightType, method: Method, grouped: Grouped, dot: bool) -> Variant {
    match method {
        Method::Matvec { columns } => {
            let constants = vec![tuning.matvec, tuning.rows_for(columns, dot), columns, grouped as u32];
            let kernel = if dot { Kernel::DotMatvec(ty) } else { Kernel::Matvec(ty) };
            Variant { kernel, constants }
        }
        Method::Matmul { tile } => {
            let mut constants = tile.constants().to_vec();
            constants.push(grouped as u32);
            Variant { kernel: Kernel::Matmul(ty), constants }
        }
        Method::Matrix { tile } => {
            let mut constants = tile.constants().to_vec();
            constants.push(grouped as u32);
            Variant { kernel: Kernel::HalfMatmul(ty), constants }
        }
    }
}

/// Records the product with the kernel of `method`.
pub fn record_with(gpu: &mut Gpu, product: &Product<'_>, method: Method) -> Result<(), VulkanError> {
    record_all_with(gpu, std::slice::from_ref(product), |_, _| method)
}

/// Records products of one input, each with the kernel of its method.
fn record_all_with(
    gpu: &mut Gpu,
    products: &[Product<'_>],
    method_of: impl Fn(&Tuning, &Product<'_>) -> Method,
) -> Result<(), VulkanError> {
    let Some(Product { x, .. }) = products.first() else { return Ok(()) };
    let is_of_x = |p: &Product<'_>| p.x.region.address == x.region.address && p.x.n_rows == x.n_rows;
    assert!(products.iter().all(is_of_x), "products of one input");
    let methods: Vec<Method> = products.iter().map(|p| method_of(&gpu.tuning, p)).collect();
    let half = match methods.iter().any(|m| m.is_of_halves()) {
        true => Some(half_rows::record(gpu, *x)?),
        false => None,
    };
    let mut all = products.iter().zip(methods);
    all.try_for_each(|(product, method)| record_one(gpu, product, method, half.filter(|_| method.is_of_halves())))
}

/// Records the product, of `half` in place of its input where that is there.
fn record_one(gpu: &mut Gpu, product: &Product<'_>, method: Method, half: Option<HalfRows>) -> Result<(), VulkanError> {
    let Product { x, quantized, weight, bias, dst, accumulate, routing, weighted } = product;
    x.check("x");
    dst.check("dst");
    let n_matrices = routing.map_or(1, |r| r.n_expert);
    assert_eq!((x.width, dst.width * n_matrices), (weight.cols, weight.rows), "input and output of {}", weight.name);
    assert!(routing.is_some() || !weighted, "only pairs have weights");
    let (grouped, method, x_share, n_pairs) = match routing {
        None => (Grouped::No, method, 1, dst.n_rows),
        Some(r) if *accumulate => {
            assert!(r.n_tokens == 1 && *weighted, "the pairs of a single token can be added up: {r:?}");
            assert_eq!((x.n_rows, dst.n_rows), (r.n_pairs(), 1), "pairs of x, rows of dst");
            assert!(half.is_none(), "a single token needs no tiles");
            (Grouped::Token, SINGLE, 1, r.n_pairs())
        }
        Some(r) => {
            let x_share = if x.n_rows == r.n_tokens { r.n_used } else { 1 };
            (Grouped::Pairs, method, x_share, dst.n_rows)
        }
    };
    if !matches!(grouped, Grouped::Token) {
        assert_eq!(x.n_rows * x_share, dst.n_rows, "tokens of x and dst");
    }
    check_padded(weight, *x);
    check_bias(*bias, n_matrices, dst.width);
    let quantized = quantized.filter(|_| method.can_dot(weight.ty));
    let variant = variant(&gpu.tuning, weight.ty, method, grouped, quantized.is_some());
    // The second constant is the number of rows in all kernels.
    let rows = variant.constants[1];
    let groups = match grouped {
        Grouped::Token => method.grid(gpu, dst.width, rows, 1, None),
        _ => method.grid(gpu, dst.width, rows, x.n_rows, *routing),
    };
    let pipeline = gpu.pipelines.get(&variant)?;
    let mut op = gpu.commands.op();
    let method = if matches!(grouped, Grouped::Token) { routing.map_or(method, |r| r.method) } else { method };
    let [tiles, entries, factors] = routing_addresses(&mut op, *routing, method, n_pairs);
    let input = Input::new(&mut op, *x, quantized, half);
    let push = Push {
        quants: weight.quants,
        high: weight.high,
        scales: weight.scales,
        x: input.address,
        bias: bias.map_or(ReadAddress::NONE, |b| b.quants),
        dst: op.writes(dst.region),
        tiles,
        entries,
        factors,
        n_rows: dst.width as u32,
        n_units: weight.units_per_row(),
        n_tokens: x.n_rows as u32,
        x_stride4: input.stride4,
        dst_stride: dst.stride as u32,
        bias_stride: bias.map_or(0, Weight::stride),
        x_share: x_share as u32,
        flags: if *accumulate { ACCUMULATE } else { 0 }
            | if bias.is_some() { HAS_BIAS } else { 0 }
            | if *weighted { HAS_FACTORS } else { 0 },
    };
    let n_active = routing.map_or(1, Routing::expected_active);
    let cost = Cost {
        read_bytes: (n_active * dst.width) as u64 * weight.row_bytes() + input.bytes,
        written_bytes: dst.bytes(),
        flops: 2 * (n_pairs * dst.width * weight.cols) as u64,
    };
    op.dispatch(pipeline, groups, &push, cost)
}

/// The activations that a product reads: as f32, in f16, or in bytes.
pub(super) struct Input {
    pub address: ReadAddress,
    /// From row to row in f32 and f16; to the scales in bytes.
    pub stride4: u32,
    pub bytes: u64,
}

impl Input {
    pub fn new(op: &mut Op<'_>, x: Rows<'_>, quantized: Option<QuantizedRows<'_>>, half: Option<HalfRows>) -> Input {
        if let Some(half) = half {
            let (address, stride4) = half.read(op, x);
            return Input { address, stride4, bytes: half_rows::bytes(x.n_rows, x.stride) };
        }
        let Some(q) = quantized else {
            return Input { address: op.reads(x.region), stride4: x.stride4("x"), bytes: x.bytes() };
        };
        q.check(x);
        Input { address: q.read(op), stride4: q.n_pieces(), bytes: q.bytes() }
    }
}

/// Checks that a row of `x` is as long as a padded row of the weight.
pub(super) fn check_padded(weight: &Weight, x: Rows<'_>) {
    assert!(weight.units_per_row() as usize * weight.ty.unit() <= x.stride, "a padded row of {} fits", weight.name);
}

/// Checks the shape of a bias of `n_matrices` times `n` elements.
pub(super) fn check_bias(bias: Option<&Weight>, n_matrices: usize, n: usize) {
    let Some(bias) = bias else { return };
    assert_eq!((bias.rows, bias.cols, bias.ty), (n_matrices, n, WeightType::F32), "shape of {}", bias.name);
}

/// Addresses of the tiles, entries and factors of a routing of `n_pairs` pairs.
pub(super) fn routing_addresses(
    op: &mut Op<'_>,
    routing: Option<&Routing<'_>>,
    method: Method,
    n_pairs: usize,
) -> [ReadAddress; 3] {
    let Some(r) = routing else { return [ReadAddress::NONE; 3] };
    r.check();
    assert_eq!((method, n_pairs), (r.method, r.n_pairs()), "the routing's tiles and pairs");
    [r.tiles, r.entries, r.weights].map(|region| op.reads(region))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prepared_variants_are_those_that_passes_ask_for() {
        let tuning = Tuning::for_tests();
        for n_batch in [1, 2, 3, 5, 8, 9, 33, 512] {
            let exact = Tuning { dot_from: [usize::MAX; 2], ..tuning };
            let prepared = variants(&exact, WeightType::Q4_K, MANY, n_batch);
            let mut used = Vec::new();
            for n_tokens in 1..=n_batch {
                let method = Method::of(&tuning, WeightType::Q4_K, Extent { n_rows: MANY, n_tokens });
                let variant = variant(&tuning, WeightType::Q4_K, method, Grouped::No, false);
                if !used.contains(&variant) {
                    used.push(variant);
                }
            }
            assert_eq!(prepared, used, "batches of up to {n_batch}");
            assert_eq!(variants(&tuning, WeightType::F16, MANY, n_batch).len(), used.len(), "f16 has no other");
            let kernels: Vec<Kernel> =
                variants(&tuning, WeightType::Q4_K, MANY, n_batch).iter().map(|v| v.kernel).collect();
            // One token with f32 where that saves a launch, all others in integers.
            let matvecs = used.iter().filter(|v| matches!(v.kernel, Kernel::Matvec(_))).count();
            assert_eq!(kernels.iter().filter(|k| matches!(k, Kernel::DotMatvec(_))).count(), matvecs);
            assert_eq!(kernels.iter().filter(|k| matches!(k, Kernel::Matvec(_))).count(), 1);
        }
    }

    #[test]
    fn tiles_of_experts_are_wide_enough_for_small_batches() {
        let tuning = Tuning::for_tests();
        for n in 1..=8 {
            assert!(Method::of_experts(&tuning, n, 128, 8).tile_width() as usize >= n);
        }
        assert!(matches!(Method::of_experts(&tuning, 512, 32, 4), Method::Matmul { .. }));
    }
}
