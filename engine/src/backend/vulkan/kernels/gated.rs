//! `dst = act(x · gateᵀ (+ bias), x · upᵀ (+ bias))`: both products of a feed-forward layer and its activation, by
//! `f32_anyw_gated_matvec.comp` for a few tokens (`q8_anyw_gated_matvec.comp` where their activations are there in
//! bytes) and `f32_anyw_gated_matmul.comp` for many, or on the matrix units `f16_anyw_gated_matmul.comp`. With a routing,
//! of each pair's expert.

use shaders::{Kernel, WeightType};

use super::half_rows;
use super::linear::{HAS_BIAS, Input, Method, check_bias, check_padded, routing_addresses, with_dot};
use super::quantize::QuantizedRows;
use super::route::Routing;
use super::swiglu::activation_code;
use super::{Rows, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Extent, Gpu, Tuning, Variant, VulkanError, Weight};
use crate::model::Activation;

push_constants! {
    struct Push {
        quants: ReadAddress,
        high: ReadAddress,
        scales: ReadAddress,
        up_quants: ReadAddress,
        up_high: ReadAddress,
        up_scales: ReadAddress,
        x: ReadAddress,
        gate_bias: ReadAddress,
        up_bias: ReadAddress,
        dst: WriteAddress,
        tiles: ReadAddress,
        entries: ReadAddress,
        n_rows: u32,
        n_units: u32,
        n_tokens: u32,
        n_used: u32,
        x_stride4: u32,
        dst_stride: u32,
        bias_stride: u32,
        flags: u32,
    }
}

/// Two products and their activation.
#[derive(Clone, Copy)]
pub struct Gated<'a> {
    /// `[n_tokens, k]`.
    pub x: Rows<'a>,
    /// The same in bytes, for products in integers.
    pub quantized: Option<QuantizedRows<'a>>,
    /// `[rows, k]`; with a routing `[n_expert * rows, k]`.
    pub gate: &'a Weight,
    /// As `gate`, of the same type.
    pub up: &'a Weight,
    /// Biases of gate and up, `[rows]`; with a routing `[n_expert, rows]`.
    pub biases: Option<[&'a Weight; 2]>,
    /// What is made of the two.
    pub activation: Activation,
    /// `[n_tokens, rows]`; with a routing `[n_pairs, rows]`.
    pub dst: Rows<'a>,
    /// With it, each pair is computed with its expert's matrices.
    pub routing: Option<&'a Routing<'a>>,
}

/// Both matrices have `n_rows`.
pub fn extent(n_rows: usize, n_tokens: usize) -> Extent {
    Extent { n_rows: 2 * n_rows, n_tokens }
}

/// Every variant that passes with these methods use.
pub fn variants(
    tuning: &Tuning,
    ty: WeightType,
    activation: Activation,
    methods: &[Method],
    grouped: bool,
) -> Vec<Variant> {
    with_dot(tuning, ty, methods).map(|(m, dot)| variant(tuning, ty, activation, m, grouped, dot)).collect()
}

fn variant(
    tuning: &Tuning,
    ty: WeightType,
    activation: Activation,
    method: Method,
    grouped: bool,
    dot: bool,
) -> Variant {
    let code = activation_code(activation);
    match method {
        Method::Matvec { columns } => {
            // Two matrices: half the rows of each keep as many sums.
            let rows = (tuning.rows_for(columns, dot) / 2).max(1);
            let constants = vec![tuning.matvec, rows, columns, u32::from(grouped), code];
            let kernel = if dot { Kernel::DotGatedMatvec(ty) } else { Kernel::GatedMatvec(ty) };
            Variant { kernel, constants }
        }
        Method::Matmul { tile } => {
            let mut constants = tile.halved().constants().to_vec();
            constants.extend([u32::from(grouped), code]);
            Variant { kernel: Kernel::GatedMatmul(ty), constants }
        }
        Method::Matrix { tile } => {
            let mut constants = tile.halved().constants().to_vec();
            constants.extend([u32::from(grouped), code]);
            Variant { kernel: Kernel::HalfGatedMatmul(ty), constants }
        }
    }
}

/// Records the products with the kernel that suits the number of tokens, or that the routing was made for.
pub fn record(gpu: &mut Gpu, gated: &Gated<'_>) -> Result<(), VulkanError> {
    let method = match gated.routing {
        Some(routing) => routing.method,
        None => Method::of(&gpu.tuning, gated.gate.ty, extent(gated.dst.width, gated.x.n_rows)),
    };
    record_with(gpu, gated, method)
}

/// Records the products with the kernel of `method`.
pub fn record_with(gpu: &mut Gpu, gated: &Gated<'_>, method: Method) -> Result<(), VulkanError> {
    let Gated { x, quantized, gate, up, biases, activation, dst, routing } = gated;
    x.check("x");
    dst.check("dst");
    let (n_matrices, n_used) = routing.map_or((1, 1), |r| (r.n_expert, r.n_used));
    for weight in [gate, up] {
        assert_eq!((x.width, dst.width * n_matrices), (weight.cols, weight.rows), "shape of {}", weight.name);
        assert_eq!(weight.ty, gate.ty, "type of {}", weight.name);
        check_padded(weight, *x);
    }
    assert_eq!(x.n_rows * n_used, dst.n_rows, "tokens of x and dst");
    biases.iter().flatten().for_each(|b| check_bias(Some(b), n_matrices, dst.width));
    let quantized = quantized.filter(|_| method.can_dot(gate.ty));
    let variant = variant(&gpu.tuning, gate.ty, *activation, method, routing.is_some(), quantized.is_some());
    let half = match method.is_of_halves() {
        true => Some(half_rows::record(gpu, *x)?),
        false => None,
    };
    // The second constant is the number of rows in all kernels.
    let groups = method.grid(gpu, dst.width, variant.constants[1], x.n_rows, *routing);
    let pipeline = gpu.pipelines.get(&variant)?;
    let mut op = gpu.commands.op();
    let [tiles, entries, _] = routing_addresses(&mut op, *routing, method, dst.n_rows);
    let input = Input::new(&mut op, *x, quantized, half);
    let push = Push {
        quants: gate.quants,
        high: gate.high,
        scales: gate.scales,
        up_quants: up.quants,
        up_high: up.high,
        up_scales: up.scales,
        x: input.address,
        gate_bias: biases.map_or(ReadAddress::NONE, |b| b[0].quants),
        up_bias: biases.map_or(ReadAddress::NONE, |b| b[1].quants),
        dst: op.writes(dst.region),
        tiles,
        entries,
        n_rows: dst.width as u32,
        n_units: gate.units_per_row(),
        n_tokens: x.n_rows as u32,
        n_used: n_used as u32,
        x_stride4: input.stride4,
        dst_stride: dst.stride as u32,
        bias_stride: biases.map_or(0, |b| b[0].stride()),
        flags: if biases.is_some() { HAS_BIAS } else { 0 },
    };
    let n_active = routing.map_or(1, Routing::expected_active);
    let cost = Cost {
        read_bytes: 2 * (n_active * dst.width) as u64 * gate.row_bytes() + input.bytes,
        written_bytes: dst.bytes(),
        flops: 4 * (dst.n_rows * dst.width * gate.cols) as u64,
    };
    op.dispatch(pipeline, groups, &push, cost)
}
