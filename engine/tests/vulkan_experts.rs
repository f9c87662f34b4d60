//! The kernels of a mixture of experts on the software device, under the validation layers, against plain f64: choices
//! with ties, experts with no tokens and with all of them, one token, partial tiles, every weight type.

mod vulkan_support;

use engine::backend::vulkan::kernels::gated::{self, Gated};
use engine::backend::vulkan::kernels::linear::{self, Method, Product};
use engine::backend::vulkan::kernels::route;
use engine::backend::vulkan::kernels::{moe_sum, quantize, scale_by_sigmoid};
use engine::backend::vulkan::{Gpu, MatmulTile, Tuning};
use engine::gguf::GgmlType;
use engine::model::{Activation, MoeConfig};
use vulkan_support::experts::{Layer, RoutingMemory, choice, config};
use vulkan_support::products::Arithmetic::{Integer, Single};
use vulkan_support::products::{Arithmetic, Sizes};
use vulkan_support::{Bytes, Matrix, Random, TestWeight, UNTOUCHED, activate, assert_close, gpu, run};

fn matvec(columns: u32) -> Method {
    Method::Matvec { columns }
}

/// Routes `logits` (`[n_tokens, n_expert]`) and checks weights, entries and tiles.
fn check_route(gpu: &mut Gpu, logits: &[f32], moe: &MoeConfig, method: Method) {
    let n_tokens = logits.len() / moe.n_expert;
    let what = format!("{n_tokens} tokens, {moe:?}, {method:?}");
    let memory = RoutingMemory::new(gpu, n_tokens, moe);
    let routing = memory.routing(n_tokens, moe, method);
    let x = Matrix::new(gpu, n_tokens, moe.n_expert, logits);
    run(gpu, &what, |g| route::record(g, x.rows(), moe, &routing));
    let chosen: Vec<Vec<(usize, f64)>> = logits.chunks_exact(moe.n_expert).map(|row| choice(row, moe)).collect();

    let want: Vec<f64> = chosen.iter().flatten().map(|c| c.1).collect();
    let got: &[f32] = bytemuck::cast_slice(&memory.weights.read()[..4 * want.len()]);
    assert_close(&what, got, &want, |_| 1e-6 * f64::from(moe.weights_scale));

    let width = method.tile_width() as usize;
    let (entries, tiles) = (RoutingMemory::words(&memory.entries), RoutingMemory::words(&memory.tiles));
    let mut want_tiles: Vec<[u32; 4]> = Vec::new();
    for e in 0..moe.n_expert {
        let pairs: Vec<u32> = (0u32..)
            .zip(chosen.iter().flatten())
            .filter(|(_, (expert, _))| *expert == e)
            .map(|(pair, _)| pair)
            .collect();
        assert_eq!(entries[e * n_tokens..][..pairs.len()], pairs, "{what}: pairs of expert {e}");
        for (i, tile) in pairs.chunks(width).enumerate() {
            want_tiles.push([e as u32, (e * n_tokens + i * width) as u32, tile.len() as u32, 0]);
        }
    }
    assert!(want_tiles.len() <= routing.max_tiles(), "{what}: {} tiles", want_tiles.len());
    assert_eq!(tiles[..4], [want_tiles.len() as u32, 0, 0, 0], "{what}: number of tiles");
    assert_eq!(tiles[4..][..4 * want_tiles.len()], want_tiles.concat(), "{what}: tiles");
}

#[test]
fn tokens_choose_their_best_experts_and_are_grouped_by_them() {
    let (mut gpu, mut random) = (gpu(), Random(30));
    for (n_tokens, n_expert, n_used, width) in [
        (1, 1, 1, 1),
        (5, 1, 1, 2),
        (1, 4, 1, 1),
        (1, 128, 8, 1),
        (3, 32, 4, 4),
        (9, 8, 8, 4),
        (37, 60, 4, 8),
        (70, 5, 2, 32),
        (17, 300, 10, 1),
    ] {
        for moe in
            [config(n_expert, n_used), MoeConfig { renormalise: false, weights_scale: 2.5, ..config(n_expert, n_used) }]
        {
            let logits: Vec<f32> = random.values(n_tokens * n_expert).into_iter().map(|v| v * 10.0).collect();
            check_route(&mut gpu, &logits, &moe, matvec(width));
        }
    }
}

#[test]
fn the_first_of_equal_logits_is_chosen() {
    let mut gpu = gpu();
    let rows = [
        [0.0; 12],
        [-0.0; 12],
        [-1e30; 12],
        [f32::MAX; 12],
        [1.0, 2.0, 2.0, 0.0, -0.0, 2.0, 1.0, 0.0, 3.0, 1.0, 1.0, 1.0],
    ];
    let mut zeros = [0.0; 12];
    zeros.iter_mut().step_by(2).for_each(|v| *v = -0.0);
    check_route(&mut gpu, &[rows.concat(), zeros.to_vec()].concat(), &config(12, 5), matvec(4));
    // All tokens on one expert, none on the others.
    let logits: Vec<f32> = (0..21 * 6).map(|i| if i % 6 == 4 { 9.0 } else { -(i as f32) }).collect();
    check_route(&mut gpu, &logits, &config(6, 1), matvec(8));
}

#[test]
fn logits_that_are_no_numbers_still_choose_different_experts() {
    let mut gpu = gpu();
    let (moe, n_tokens) = (config(16, 4), 3);
    let mut logits = vec![f32::NAN; 3 * 16];
    logits[16..32].iter_mut().step_by(3).for_each(|v| *v = f32::INFINITY);
    logits[32..].fill(f32::NEG_INFINITY);
    let memory = RoutingMemory::new(&mut gpu, n_tokens, &moe);
    let routing = memory.routing(n_tokens, &moe, matvec(4));
    let x = Matrix::new(&mut gpu, n_tokens, 16, &logits);
    run(&mut gpu, "NaN", |g| route::record(g, x.rows(), &moe, &routing));
    let tiles = RoutingMemory::words(&memory.tiles);
    let (n, rest) = (tiles[0] as usize, &tiles[4..]);
    assert!(n <= routing.max_tiles(), "{n} tiles");
    let pairs: u32 = rest.chunks_exact(4).take(n).map(|t| t[2]).sum();
    assert_eq!(pairs as usize, routing.n_pairs());
    assert!(rest.chunks_exact(4).take(n).all(|t| t[0] < 16 && t[2] <= 3), "no expert twice for a token");
}

fn small_tile() -> MatmulTile {
    MatmulTile { block_rows: 32, block_tokens: 16, thread_rows: 4, thread_tokens: 4 }
}

#[test]
fn experts_of_every_type_by_matrix_vector_products() {
    let (mut gpu, mut random) = (gpu(), Random(31));
    gpu.set_tuning(Tuning { matvec_rows: [2, 2], ..*gpu.tuning() });
    for ty in GgmlType::ALL {
        let width = if ty.block_len() == 1 { 52 } else { ty.block_len() };
        let moe = MoeConfig { n_ff_exp: width, ..config(5, 2) };
        let layer = Layer::random(&mut random, moe, width, [ty, ty], false);
        // One kernel for both: compiling takes longer than running.
        layer.check(&mut gpu, &mut random, 1, matvec(2));
        layer.check(&mut gpu, &mut random, 7, matvec(2));
    }
}

#[test]
fn experts_of_every_type_in_integers() {
    let (mut gpu, mut random) = (gpu(), Random(38));
    gpu.set_tuning(Tuning { dot_rows: [2, 2], ..*gpu.tuning() });
    for ty in GgmlType::ALL.into_iter().filter(|ty| ty.block_len() > 1) {
        let width = ty.block_len();
        let moe = MoeConfig { n_ff_exp: width, ..config(5, 2) };
        let layer = Layer::random(&mut random, moe, width, [ty, ty], false);
        layer.check_in_bytes(&mut gpu, &mut random, 1, matvec(2));
        layer.check_in_bytes(&mut gpu, &mut random, 7, matvec(2));
    }
    // Biases, a clamped activation, a single token's experts, down projections that stay in f32.
    for (n_tokens, types, columns) in
        [(1, [GgmlType::MXFP4, GgmlType::MXFP4], 1), (9, [GgmlType::Q4_K, GgmlType::F16], 4)]
    {
        let moe = MoeConfig { n_ff_exp: 96, activation: Activation::SwigluOai, weights_scale: 1.5, ..config(7, 3) };
        let layer = Layer::random(&mut random, moe, 256, types, true);
        layer.check_in_bytes(&mut gpu, &mut random, n_tokens, matvec(columns));
    }
}

#[test]
fn experts_of_every_type_by_tiles() {
    let (mut gpu, mut random) = (gpu(), Random(32));
    for ty in GgmlType::ALL {
        let width = if ty.block_len() == 1 { 52 } else { ty.block_len() };
        let moe = MoeConfig { n_ff_exp: width, ..config(3, 2) };
        let layer = Layer::random(&mut random, moe, width, [ty, ty], false);
        layer.check(&mut gpu, &mut random, 27, Method::Matmul { tile: small_tile() });
    }
}

#[test]
fn experts_with_biases_clamped_activations_and_odd_shapes() {
    let (mut gpu, mut random) = (gpu(), Random(33));
    let tile = Method::Matmul { tile: small_tile() };
    for (n_tokens, n_expert, n_used, ff, n_embd, types, method) in [
        (1, 32, 4, 64, 96, [GgmlType::MXFP4, GgmlType::MXFP4], matvec(1)),
        (3, 8, 4, 77, 45, [GgmlType::F16, GgmlType::F32], matvec(4)),
        (1, 1, 1, 32, 256, [GgmlType::Q4_K, GgmlType::Q8_0], matvec(1)),
        (13, 1, 1, 32, 256, [GgmlType::Q4_K, GgmlType::Q8_0], matvec(4)),
        (40, 6, 2, 77, 45, [GgmlType::F16, GgmlType::F32], tile),
        (9, 40, 3, 64, 96, [GgmlType::MXFP4, GgmlType::Q5_0], tile),
    ] {
        let moe = MoeConfig {
            n_ff_exp: ff,
            activation: Activation::SwigluOai,
            weights_scale: 1.5,
            ..config(n_expert, n_used)
        };
        Layer::random(&mut random, moe, n_embd, types, true).check(&mut gpu, &mut random, n_tokens, method);
    }
}

#[test]
fn gated_products_without_experts() {
    let (mut gpu, mut random) = (gpu(), Random(34));
    for (n, method) in [(1, matvec(1)), (6, matvec(4)), (21, Method::Matmul { tile: small_tile() })] {
        check_gated(&mut gpu, &mut random, GgmlType::Q8_0, [n, 37, 64], method, Single);
    }
}

#[test]
fn gated_products_without_experts_of_every_type() {
    let (mut gpu, mut random) = (gpu(), Random(39));
    gpu.set_tuning(Tuning { matvec_rows: [2, 2], dot_rows: [2, 2], ..*gpu.tuning() });
    for ty in GgmlType::ALL {
        let cols = if ty.block_len() == 1 { 52 } else { ty.block_len() };
        // One kernel for all numbers of tokens: compiling takes longer than running.
        for n in [1, 2, 3] {
            check_gated(&mut gpu, &mut random, ty, [n, 7, cols], matvec(2), Single);
            if ty.block_len() > 1 {
                check_gated(&mut gpu, &mut random, ty, [n, 7, cols], matvec(2), Integer);
            }
        }
    }
}

/// Compares the gated product of `n` random columns with f64: of what the bytes stand for where they are used.
fn check_gated(
    gpu: &mut Gpu,
    random: &mut Random,
    ty: GgmlType,
    [n, rows, cols]: [usize; 3],
    method: Method,
    arithmetic: Arithmetic,
) {
    let what = format!("{n} tokens × {ty} [{rows}, {cols}], gated, {method:?}, {arithmetic:?}");
    let weights = [0, 1].map(|_| TestWeight::random(random, ty, rows, cols));
    let [gate, up] = weights.each_ref().map(|w| w.upload(gpu, "weight"));
    let mut values = random.values(n * cols);
    let (x, dst) = (Matrix::new(gpu, n, cols, &values), Matrix::untouched(gpu, n, rows));
    let bytes = (arithmetic == Integer).then(|| Bytes::new(gpu, n, cols));
    let (biases, activation, routing) = (None, Activation::Swiglu, None);
    let quantized = bytes.as_ref().map(Bytes::rows);
    let both = Gated { x: x.rows(), quantized, gate: &gate, up: &up, biases, activation, dst: dst.rows(), routing };
    run(gpu, &what, |g| {
        if let Some(bytes) = quantized {
            quantize::record(g, x.rows(), bytes)?;
        }
        gated::record_with(g, &both, method)
    });
    if let Some(bytes) = &bytes {
        values = bytes.decoded();
    }
    let (mut want, mut errors) = (Vec::new(), Vec::new());
    for x in values.chunks_exact(cols) {
        for r in 0..rows {
            let [(g, g_error), (u, u_error)] = weights.each_ref().map(|w| sum_of_products(w.row(r), x, arithmetic));
            want.push(activate(activation, g, u));
            errors.push(g_error * (u.abs() + u_error + 1.0) * 2.0 + u_error * (g.abs() + g_error + 1.0));
        }
    }
    assert_close(&what, &dst.read(), &want, |i| errors[i]);
}

/// A row times `x`, and what that may be off.
fn sum_of_products(row: &[f32], x: &[f32], arithmetic: Arithmetic) -> (f64, f64) {
    let terms = || row.iter().zip(x).map(|(&a, &b)| f64::from(a) * f64::from(b));
    let sizes = Sizes { terms: terms().map(f64::abs).sum(), x: x.iter().map(|v| f64::from(v.abs())).sum() };
    (terms().sum(), arithmetic.error(sizes))
}

#[test]
fn a_products_input_can_be_shared_by_a_tokens_experts() {
    let (mut gpu, mut random) = (gpu(), Random(35));
    let (n_tokens, moe, rows, cols) = (5, config(4, 3), 20, 64);
    let logits = random.values(n_tokens * moe.n_expert);
    let weight = TestWeight::random(&mut random, GgmlType::Q4_0, moe.n_expert * rows, cols);
    let values = random.values(n_tokens * cols);
    let memory = RoutingMemory::new(&mut gpu, n_tokens, &moe);
    let routing = &memory.routing(n_tokens, &moe, matvec(4));
    let (router, x) =
        (Matrix::new(&mut gpu, n_tokens, moe.n_expert, &logits), Matrix::new(&mut gpu, n_tokens, cols, &values));
    let dst = Matrix::untouched(&mut gpu, routing.n_pairs(), rows);
    let on_device = weight.upload(&mut gpu, "experts");
    run(&mut gpu, "shared input", |g| {
        route::record(g, router.rows(), &moe, routing)?;
        linear::record(g, &Product { routing: Some(routing), ..Product::new(x.rows(), &on_device, dst.rows()) })
    });
    let pairs = logits.chunks_exact(moe.n_expert).flat_map(|row| choice(row, &moe));
    let want: Vec<f64> = pairs
        .enumerate()
        .flat_map(|(pair, (e, _))| (0..rows).map(move |r| (pair / 3, e * rows + r)))
        .map(|(t, r)| weight.row(r).iter().zip(&values[t * cols..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
        .collect();
    assert_close("shared input", &dst.read(), &want, |_| 1e-3);
}

#[test]
fn a_tokens_experts_are_added_to_its_residual() {
    let (mut gpu, mut random) = (gpu(), Random(36));
    for (n, n_used, width) in [(1, 4, 2880), (3, 1, 5), (7, 8, 100)] {
        let (y_values, x_values) = (random.values(n * n_used * width), random.values(n * width));
        let (y, x) = (Matrix::new(&mut gpu, n * n_used, width, &y_values), Matrix::new(&mut gpu, n, width, &x_values));
        run(&mut gpu, "moe_sum", |g| moe_sum::record(g, y.rows(), x.rows()));
        let want: Vec<f64> = (0..n * width)
            .map(|i| {
                let experts = (0..n_used).map(|s| f64::from(y_values[(i / width * n_used + s) * width + i % width]));
                f64::from(x_values[i]) + experts.sum::<f64>()
            })
            .collect();
        assert_close(&format!("moe_sum {n} × {n_used} × {width}"), &x.read(), &want, |_| 1e-5);
    }
    // What lies behind the rows' ends in `y` stays there.
    let mut y = Matrix::new(&mut gpu, 2, 5, &random.values(10));
    bytemuck::cast_slice_mut::<u8, f32>(&mut y.region.write()[20..32]).fill(UNTOUCHED);
    let x = Matrix::new(&mut gpu, 1, 5, &random.values(5));
    run(&mut gpu, "moe_sum of padded rows", |g| moe_sum::record(g, y.rows(), x.rows()));
    x.read();
}

#[test]
fn rows_are_scaled_by_their_gates() {
    let (mut gpu, mut random) = (gpu(), Random(37));
    for (n, width) in [(1, 4864), (3, 7), (33, 100)] {
        let values = random.values(n * width);
        let gates: Vec<f32> = (0..n).map(|i| [0.3, -100.0, 100.0, 2.0, -1e30][i % 5]).collect();
        let (x, gate) = (Matrix::new(&mut gpu, n, width, &values), Matrix::new(&mut gpu, n, 1, &gates));
        run(&mut gpu, "scale", |g| scale_by_sigmoid::record(g, x.rows(), gate.rows()));
        let sigmoid = |v: f32| 1.0 / (1.0 + (-f64::from(v)).exp());
        let want: Vec<f64> =
            values.iter().enumerate().map(|(i, &v)| f64::from(v) * sigmoid(gates[i / width])).collect();
        assert_close(&format!("scale {n} × {width}"), &x.read(), &want, |i| 1e-5 * want[i].abs() + 1e-30);
    }
}
