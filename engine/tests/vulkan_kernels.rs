//! Every kernel on the software device, under the validation layers, against its plain f64 twin: all weight types,
//! odd sizes, one token, partial tiles, contexts that cross workgroups.

mod vulkan_support;

use engine::backend::vulkan::kernels::Rows;
use engine::backend::vulkan::kernels::kv_store::{CacheShape, LayerCache, Places};
use engine::backend::vulkan::kernels::linear::{self, Method, Product};
use engine::backend::vulkan::kernels::place_heads::Projections;
use engine::backend::vulkan::kernels::rope::Rotation;
use engine::backend::vulkan::kernels::{embed, gather, kv_store, place_heads, probe, quantize, rms_norm, rope, swiglu};
use engine::backend::vulkan::{Cost, DeviceOptions, Gpu, MatmulTile, MemoryUse, PromptTile, Tuning, VulkanError};
use engine::gguf::GgmlType;
use engine::kv::{BLOCK, KvType};
use engine::model::{Activation, RopeLayout};
use half::f16;
use vulkan_support::attention::{AttentionCase, prompt_cases};
use vulkan_support::cache::{Cache, F16, MIXED, N_PAGES, Q8_0, TABLES, cache_row, decoded};
use vulkan_support::products::Arithmetic::{Integer, Single};
use vulkan_support::products::{Arithmetic, check_product};
use vulkan_support::{
    Bytes, Matrix, Random, TestWeight, UNTOUCHED, activate, assert_close, gpu, gpu_with, indices, largest, run,
};

#[test]
fn embed_decodes_rows_of_every_type() {
    let (mut gpu, mut random) = (gpu(), Random(1));
    for ty in GgmlType::ALL {
        let cols = if ty.block_len() == 1 { 100 } else { 512 };
        let table = TestWeight::random(&mut random, ty, 7, cols);
        let weight = table.upload(&mut gpu, "table");
        for tokens in [&[3][..], &[6, 0, 6, 5, 1]] {
            let ids = indices(&mut gpu, tokens);
            let x = Matrix::untouched(&mut gpu, tokens.len(), cols);
            run(&mut gpu, &format!("embed {ty}"), |g| embed::record(g, &weight, &ids, x.rows()));
            let want: Vec<f64> = tokens.iter().flat_map(|&t| table.row(t as usize)).map(|&v| f64::from(v)).collect();
            // The twin rounds `d * q + m` twice, the kernel may once.
            let tolerance = 1e-6 * largest(&want);
            assert_close(&format!("embed {ty}"), &x.read(), &want, |_| tolerance);
        }
    }
}

#[test]
fn rms_norm_of_rows_and_of_heads() {
    let (mut gpu, mut random) = (gpu(), Random(2));
    // (tokens, groups per row, elements per group): rows of a block, then heads of Qwen3.
    for (n, groups, width) in [(1, 1, 896), (3, 1, 5), (2, 1, 1537), (1, 14, 64), (3, 2, 128), (33, 1, 64)] {
        let what = format!("rms_norm {n} × {groups} × {width}");
        let values = random.values(n * groups * width);
        let gain = random.values(width);
        let weight = TestWeight::vector(&gain).upload(&mut gpu, "norm");
        let x = Matrix::new(&mut gpu, n, groups * width, &values);
        let dst = Matrix::untouched(&mut gpu, n, groups * width);
        let eps = 1e-5f32;
        run(&mut gpu, &what, |g| rms_norm::record(g, x.rows(), &weight, eps, dst.rows()));
        let want: Vec<f64> = values
            .chunks_exact(width)
            .flat_map(|group| {
                let mean = group.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                group.iter().zip(&gain).map(move |(&v, &w)| f64::from(v) * scale * f64::from(w)).collect::<Vec<_>>()
            })
            .collect();
        let tolerance = 1e-5 * largest(&want);
        assert_close(&what, &dst.read(), &want, |_| tolerance);
        run(&mut gpu, &what, |g| rms_norm::record(g, x.rows(), &weight, eps, x.rows()));
        assert_eq!(x.read(), dst.read(), "{what}: the same in place");
    }
}

/// Records a product with the kernel for a few columns, however many there are.
fn record_matvec(gpu: &mut Gpu, product: &Product<'_>) -> Result<(), VulkanError> {
    let method = Method::matvec(gpu.tuning(), product.x.n_rows);
    linear::record_with(gpu, product, method)
}

/// Records a product with the kernel for many columns, however few there are.
fn record_matmul(gpu: &mut Gpu, product: &Product<'_>) -> Result<(), VulkanError> {
    let tile = gpu.tuning().matmul;
    linear::record_with(gpu, product, Method::Matmul { tile })
}

/// All numbers of columns that are used on gfx1151, and of rows one where there are many columns: the software device
/// compiles slowly what is unrolled.
fn all_columns(tuning: &Tuning) -> Tuning {
    Tuning { matvec_rows: [2, 1], dot_rows: [2, 1], ..as_on_gfx1151(tuning) }
}

/// Numbers of columns and rows as on gfx1151.
fn as_on_gfx1151(tuning: &Tuning) -> Tuning {
    Tuning { matvec_rows: [2, 2], dot_rows: [2, 4], matvec_columns: &[1, 2, 4, 8, 16], ..*tuning }
}

/// Compares products of weights of type `ty` with f64; a case is a number of tokens, and rows and columns of the weight.
fn check_products(
    gpu: &mut Gpu,
    random: &mut Random,
    ty: GgmlType,
    cases: impl IntoIterator<Item = [usize; 3]>,
    arithmetic: Arithmetic,
) {
    for [n, rows, cols] in cases {
        let weight = TestWeight::random(random, ty, rows, cols);
        for options in [(false, false), (true, true)] {
            check_product(gpu, random, &weight, n, options, arithmetic, record_matvec);
        }
    }
}

#[test]
fn matrix_vector_products_of_every_type() {
    let (mut gpu, mut random) = (gpu(), Random(3));
    gpu.set_tuning(all_columns(gpu.tuning()));
    for ty in GgmlType::ALL {
        // A width that leaves lanes idle, and one that takes several rounds.
        let [narrow, wide] = if ty.block_len() == 1 { [20, 136] } else { [256, 768] };
        check_products(&mut gpu, &mut random, ty, [[1, 67, narrow], [2, 9, wide], [3, 5, narrow]], Single);
    }
}

/// Types whose kernels of 16 columns in f32 are compiled, which takes the software device seconds each: one of every
/// way to lay weights out. The others decode as theirs of fewer columns do.
const SIXTEEN_IN_F32: [GgmlType; 6] =
    [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::MXFP4];

#[test]
fn matrix_vector_products_of_every_type_and_many_columns() {
    let (mut gpu, mut random) = (gpu(), Random(21));
    gpu.set_tuning(all_columns(gpu.tuning()));
    for ty in GgmlType::ALL {
        let [narrow, wide] = if ty.block_len() == 1 { [20, 136] } else { [256, 768] };
        check_products(&mut gpu, &mut random, ty, [[8, 33, wide], [5, 3, narrow]], Single);
        if SIXTEEN_IN_F32.contains(&ty) {
            check_products(&mut gpu, &mut random, ty, [[13, 7, narrow]], Single);
        }
    }
}

/// The types that have products in integers.
fn quantised_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.into_iter().filter(|ty| ty.block_len() > 1)
}

#[test]
fn products_in_integers_of_every_type() {
    let (mut gpu, mut random) = (gpu(), Random(43));
    gpu.set_tuning(all_columns(gpu.tuning()));
    for ty in quantised_types() {
        let small = ty.block_len();
        let cases = [[1, 67, small], [2, 9, 768], [3, 5, 11 * small], [1, 3, 256]];
        check_products(&mut gpu, &mut random, ty, cases, Integer);
    }
}

#[test]
fn products_in_integers_of_every_type_and_many_columns() {
    let (mut gpu, mut random) = (gpu(), Random(22));
    gpu.set_tuning(all_columns(gpu.tuning()));
    for ty in quantised_types() {
        let small = ty.block_len();
        check_products(&mut gpu, &mut random, ty, [[8, 33, 768], [5, 3, small], [13, 7, 3 * small]], Integer);
    }
}

#[test]
fn every_code_of_four_bits_is_unpacked_to_its_value() {
    let (mut gpu, mut random) = (gpu(), Random(44));
    for ty in [GgmlType::MXFP4, GgmlType::IQ4_NL, GgmlType::Q4_0] {
        // Row r has code r everywhere, then in the low or the high halves of the bytes only.
        let block = |low: u8, high: u8| {
            let scale: &[u8] = if ty == GgmlType::MXFP4 { &[127] } else { &[0, 0x3C] };
            [scale, &[low | high << 4; 16]].concat()
        };
        let bytes: Vec<u8> = (0..16).flat_map(|c| [block(c, c), block(c, 8), block(8, c)].concat()).collect();
        let weight = TestWeight::from_bytes(ty, 16, 96, bytes);
        check_product(&mut gpu, &mut random, &weight, 1, (false, false), Integer, record_matvec);
    }
}

/// What llama.cpp's products with Q8_1 activations lose too, and no more.
#[test]
fn products_in_integers_are_near_those_in_f32() {
    let (mut gpu, mut random) = (gpu(), Random(45));
    let (rows, cols) = (64, 2048);
    for ty in [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::MXFP4] {
        let weight = TestWeight::random(&mut random, ty, rows, cols);
        let on_device = weight.upload(&mut gpu, "weight");
        let values = random.values(cols);
        let x = Matrix::new(&mut gpu, 1, cols, &values);
        let (dst, bytes) = (Matrix::untouched(&mut gpu, 1, rows), Bytes::new(&mut gpu, 1, cols));
        let product = Product { quantized: Some(bytes.rows()), ..Product::new(x.rows(), &on_device, dst.rows()) };
        run(&mut gpu, "a product in integers", |g| {
            quantize::record(g, x.rows(), bytes.rows())?;
            record_matvec(g, &product)
        });
        let exact =
            |r: usize| -> f64 { weight.row(r).iter().zip(&values).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum() };
        let want: Vec<f64> = (0..rows).map(exact).collect();
        let error: f64 = dst.read().iter().zip(&want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
        let size: f64 = want.iter().map(|w| w * w).sum();
        // Rounding to steps of 1/127 of a block's largest of 32 uniform values: 1/127/√12/(1/√3) = 0.4 % per element.
        let relative = (error / size).sqrt();
        assert!(relative < 0.008, "{ty}: {relative}");
    }
}

#[test]
fn activations_are_quantised_in_blocks_of_32() {
    let (mut gpu, mut random) = (gpu(), Random(46));
    for (n, width) in [(1, 896), (3, 5), (2, 96), (1, 1), (33, 100), (2, 2880)] {
        let what = format!("quantize {n} × {width}");
        let mut values = random.values(n * width);
        // A block of zeros, and one whose sums are as large as they get.
        values[..width.min(32)].fill(0.0);
        values[(n * width).saturating_sub(width.min(40) + 1)..].fill(-3.5);
        let (x, bytes) = (Matrix::new(&mut gpu, n, width, &values), Bytes::new(&mut gpu, n, width));
        run(&mut gpu, &what, |g| quantize::record(g, x.rows(), bytes.rows()));
        check_blocks(&what, &bytes, &values);
    }
}

/// Compares blocks with what they are made of.
fn check_blocks(what: &str, bytes: &Bytes, values: &[f32]) {
    for (row, values) in bytes.blocks().iter().zip(values.chunks_exact(bytes.width)) {
        for (b, block) in row.iter().enumerate() {
            let start = (32 * b).min(values.len());
            let mut x = values[start..values.len().min(start + 32)].to_vec();
            x.resize(32, 0.0);
            let most = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!((block.d - most / 127.0).abs() <= 1e-6 * block.d, "{what}: block {b}: {} of {most}", block.d);
            for (&q, &x) in block.q.iter().zip(&x) {
                let exact = if most > 0.0 { f64::from(x) / f64::from(block.d) } else { 0.0 };
                assert!((f64::from(q) - exact).abs() <= 0.5 + 1e-4, "{what}: block {b}: {x} became {q} of {exact}");
            }
            let sums = [0, 16].map(|at| block.q[at..at + 16].iter().map(|&q| i16::from(q)).sum::<i16>());
            assert_eq!(block.sums, sums, "{what}: block {b}");
        }
    }
}

#[test]
fn a_norm_leaves_its_result_in_bytes_too() {
    let (mut gpu, mut random) = (gpu(), Random(47));
    for (n, width) in [(1, 896), (3, 5), (2, 1537), (33, 64)] {
        let what = format!("rms_norm in bytes {n} × {width}");
        let (values, gain) = (random.values(n * width), random.values(width));
        let weight = TestWeight::vector(&gain).upload(&mut gpu, "norm");
        let x = Matrix::new(&mut gpu, n, width, &values);
        let [plain, dst] = [0, 1].map(|_| Matrix::untouched(&mut gpu, n, width));
        let bytes = Bytes::new(&mut gpu, n, width);
        run(&mut gpu, &what, |g| {
            rms_norm::record(g, x.rows(), &weight, 1e-5, plain.rows())?;
            rms_norm::quantized::record(g, x.rows(), &weight, 1e-5, dst.rows(), bytes.rows())
        });
        let want: Vec<f64> = plain.read().iter().map(|&v| f64::from(v)).collect();
        let tolerance = 1e-5 * largest(&want);
        assert_close(&what, &dst.read(), &want, |_| tolerance);
        check_blocks(&what, &bytes, &dst.read());
        run(&mut gpu, &what, |g| rms_norm::quantized::record(g, x.rows(), &weight, 1e-5, x.rows(), bytes.rows()));
        assert_eq!(x.read(), dst.read(), "{what}: the same in place");
    }
}

#[test]
fn matrix_vector_products_of_more_tokens_than_columns() {
    let (mut gpu, mut random) = (gpu(), Random(4));
    gpu.set_tuning(Tuning { matvec_columns: &[1, 2, 4, 8], ..as_on_gfx1151(gpu.tuning()) });
    for n in [2, 9, 16, 33] {
        let weight = TestWeight::random(&mut random, GgmlType::Q8_0, 21, 96);
        check_product(&mut gpu, &mut random, &weight, n, (true, false), Single, record_matvec);
    }
    // Columns that are not there are skipped where there are many.
    gpu.set_tuning(Tuning { matvec_columns: &[1, 16], ..as_on_gfx1151(gpu.tuning()) });
    for n in [1, 9, 16, 17] {
        for arithmetic in [Single, Integer] {
            let weight = TestWeight::random(&mut random, GgmlType::Q4_K, 21, 512);
            check_product(&mut gpu, &mut random, &weight, n, (true, false), arithmetic, record_matvec);
        }
    }
}

#[test]
fn a_matrix_of_one_row_is_a_matrix_too() {
    let (mut gpu, mut random) = (gpu(), Random(5));
    for ty in [GgmlType::Q4_K, GgmlType::F16] {
        let weight = TestWeight::random(&mut random, ty, 1, 256);
        check_product(&mut gpu, &mut random, &weight, 2, (false, false), Single, record_matvec);
    }
}

#[test]
fn tiled_products_of_every_type() {
    let (mut gpu, mut random) = (gpu(), Random(6));
    let tile = MatmulTile { block_rows: 32, block_tokens: 32, thread_rows: 4, thread_tokens: 4 };
    gpu.set_tuning(Tuning { matmul: tile, ..*gpu.tuning() });
    for ty in GgmlType::ALL {
        // Rows, columns and tokens that don't fill the last tile.
        let widths = if ty.block_len() == 1 { [20, 136] } else { [256, 512] };
        for (n, rows, cols) in [(9, 130, widths[1]), (70, 33, widths[0])] {
            let weight = TestWeight::random(&mut random, ty, rows, cols);
            for options in [(false, true), (true, false)] {
                check_product(&mut gpu, &mut random, &weight, n, options, Single, record_matmul);
            }
        }
    }
}

#[test]
fn products_with_other_workgroups_and_tiles_give_the_same() {
    let (mut gpu, mut random) = (gpu(), Random(7));
    let usual = *gpu.tuning();
    let tile = |block_rows, block_tokens, thread_rows, thread_tokens| MatmulTile {
        block_rows,
        block_tokens,
        thread_rows,
        thread_tokens,
    };
    // Several subgroups per workgroup, as on a GPU whose subgroups are smaller than the workgroup.
    for (matvec, rows, matmul) in [
        (usual.matvec, usual.matvec_rows, usual.matmul),
        (64, [2, 1], tile(32, 32, 4, 2)),
        (32, [1, 2], tile(16, 64, 2, 8)),
    ] {
        gpu.set_tuning(Tuning { matvec, matvec_rows: rows, matvec_columns: &[1, 2, 8], matmul, ..usual });
        let weight = TestWeight::random(&mut random, GgmlType::Q5_K, 70, 512);
        for n in [1, 2, 7] {
            check_product(&mut gpu, &mut random, &weight, n, (true, true), Single, record_matvec);
        }
        check_product(&mut gpu, &mut random, &weight, 35, (true, true), Single, record_matmul);
    }
}

#[test]
fn uploads_through_a_staging_buffer_arrive() {
    let mut gpu = gpu_with(DeviceOptions { staged_uploads: true, ..DeviceOptions::default() });
    let mut random = Random(8);
    for ty in [GgmlType::Q5_0, GgmlType::Q6_K, GgmlType::F16] {
        let weight = TestWeight::random(&mut random, ty, 5, 256);
        check_product(&mut gpu, &mut random, &weight, 1, (false, false), Single, record_matvec);
    }
    // Larger than the staging buffer of 32 MiB: two copies.
    let row = TestWeight::random(&mut random, GgmlType::Q8_0, 1, 4096);
    let rows = (40 << 20) / row.bytes.len();
    let large = TestWeight::from_bytes(GgmlType::Q8_0, rows, 4096, row.bytes.repeat(rows));
    let weight = large.upload(&mut gpu, "large");
    let values = random.values(4096);
    let x = Matrix::new(&mut gpu, 1, 4096, &values);
    let dst = Matrix::untouched(&mut gpu, 1, rows);
    let product = Product::new(x.rows(), &weight, dst.rows());
    run(&mut gpu, "large product", |g| record_matvec(g, &product));
    let got = dst.read();
    assert!(got.iter().all(|&v| v == got[0] && v != UNTOUCHED), "all rows are the same");
}

#[test]
fn rope_rotates_pairs_of_both_layouts() {
    let (mut gpu, mut random) = (gpu(), Random(9));
    for (layout, heads, head_dim, n_pairs) in [
        (RopeLayout::Neox, 14, 64, 32),
        (RopeLayout::Interleaved, 3, 128, 64),
        (RopeLayout::Neox, 2, 64, 16),
        (RopeLayout::Interleaved, 5, 20, 8),
    ] {
        for n in [1, 3, 33] {
            let what = format!("rope {layout:?} {n} × {heads} × {head_dim}, {n_pairs} pairs");
            let values = random.values(n * heads * head_dim);
            let angles: Vec<f64> = (0..n * n_pairs).map(|_| f64::from(random.signed()) * 100.0).collect();
            let cos_sin: Vec<f32> = angles
                .chunks_exact(n_pairs)
                .flat_map(|a| a.iter().map(|v| v.cos() as f32).chain(a.iter().map(|v| v.sin() as f32)))
                .collect();
            let x = Matrix::new(&mut gpu, n, heads * head_dim, &values);
            let table = Matrix::new(&mut gpu, 1, cos_sin.len(), &cos_sin);
            let rotation = Rotation { cos_sin: &table.region, n_pairs, head_dim, layout };
            run(&mut gpu, &what, |g| rope::record(g, x.rows(), &rotation));
            let mut want: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
            for (h, head) in want.chunks_exact_mut(head_dim).enumerate() {
                for p in 0..n_pairs {
                    let (a, b) = match layout {
                        RopeLayout::Neox => (p, p + n_pairs),
                        RopeLayout::Interleaved => (2 * p, 2 * p + 1),
                    };
                    let (sin, cos) = angles[h / heads * n_pairs + p].sin_cos();
                    (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
            assert_close(&what, &x.read(), &want, |_| 1e-6);
        }
    }
}

#[test]
fn kv_store_rounds_to_the_nearest_half_and_touches_nothing_else() {
    let (mut gpu, mut random) = (gpu(), Random(10));
    for (shape, places) in [
        (CacheShape { n_pages: N_PAGES, n_head_kv: 2, head_dim: 64, types: F16 }, vec![(0, 4)]),
        (
            CacheShape { n_pages: N_PAGES, n_head_kv: 3, head_dim: 20, types: F16 },
            vec![(0, 0), (2, 8), (1, 33), (2, 7)],
        ),
    ] {
        let what = format!("kv_store {shape:?}");
        let cache = Cache::random(&mut gpu, &mut random, shape);
        let (n, width) = (places.len(), shape.n_head_kv * shape.head_dim);
        // Includes values that truncation would get wrong, and some that overflow f16.
        let values: Vec<Vec<f32>> = (0..2)
            .map(|_| (0..n * width).map(|i| random.signed() * [1.0, 1e-6, 1e5, 300.0][i % 4]).collect())
            .collect();
        let (k, v) = (Matrix::new(&mut gpu, n, width, &values[0]), Matrix::new(&mut gpu, n, width, &values[1]));
        let seqs = indices(&mut gpu, &places.iter().map(|p| p.0).collect::<Vec<u32>>());
        let positions = indices(&mut gpu, &places.iter().map(|p| p.1).collect::<Vec<u32>>());
        let tables = indices(&mut gpu, &TABLES.concat());
        let pages_per_seq = TABLES[0].len();
        let at = Places { tables: &tables, pages_per_seq, seqs: &seqs, positions: &positions };
        run(&mut gpu, &what, |g| kv_store::record(g, k.rows(), v.rows(), &at, shape, &cache.layer));
        for (region, values, before) in [(cache.layer.k, &values[0], &cache.k), (cache.layer.v, &values[1], &cache.v)] {
            let mut want: Vec<f16> = before.iter().map(|&v| f16::from_f64(v)).collect();
            for (t, &(seq, pos)) in places.iter().enumerate() {
                for h in 0..shape.n_head_kv {
                    let row = cache_row(shape, seq, pos as usize, h);
                    for d in 0..shape.head_dim {
                        want[row * shape.head_dim + d] = f16::from_f32(values[t * width + h * shape.head_dim + d]);
                    }
                }
            }
            let got: &[f16] = bytemuck::cast_slice(&region.read()[..shape.bytes(KvType::F16) as usize]);
            assert!(got == want, "{what}: exactly the rounded values, only there");
        }
    }
}

#[test]
fn kv_store_keeps_blocks_to_half_a_code_and_touches_nothing_else() {
    let (mut gpu, mut random) = (gpu(), Random(16));
    for (n_head_kv, head_dim, types) in [(2, 64, Q8_0), (3, 96, Q8_0), (1, 32, MIXED), (1, 256, Q8_0)] {
        let shape = CacheShape { n_pages: N_PAGES, n_head_kv, head_dim, types };
        let what = format!("kv_store {shape:?}");
        let places = [(0, 0), (2, 8), (1, 33), (2, 7)];
        let cache = Cache::random(&mut gpu, &mut random, shape);
        let (n, width) = (places.len(), n_head_kv * head_dim);
        // Blocks of very different sizes, one of zeros.
        let values: Vec<Vec<f32>> = (0..2)
            .map(|_| (0..n * width).map(|i| random.signed() * [1.0, 0.0, 1e-3, 300.0][i / BLOCK % 4]).collect())
            .collect();
        let (k, v) = (Matrix::new(&mut gpu, n, width, &values[0]), Matrix::new(&mut gpu, n, width, &values[1]));
        let seqs = indices(&mut gpu, &places.map(|p| p.0));
        let positions = indices(&mut gpu, &places.map(|p| p.1));
        let tables = indices(&mut gpu, &TABLES.concat());
        let at = Places { tables: &tables, pages_per_seq: TABLES[0].len(), seqs: &seqs, positions: &positions };
        run(&mut gpu, &what, |g| kv_store::record(g, k.rows(), v.rows(), &at, shape, &cache.layer));
        for (ty, region, values, before) in
            [(types.k, cache.layer.k, &values[0], &cache.k), (types.v, cache.layer.v, &values[1], &cache.v)]
        {
            let (mut want, mut tolerance) = (before.clone(), vec![0.0; before.len()]);
            for (t, &(seq, pos)) in places.iter().enumerate() {
                for h in 0..n_head_kv {
                    let row = cache_row(shape, seq, pos as usize, h) * head_dim;
                    let from = &values[t * width + h * head_dim..][..head_dim];
                    for (b, block) in from.chunks_exact(BLOCK).enumerate() {
                        let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        for (d, &value) in block.iter().enumerate() {
                            let i = row + b * BLOCK + d;
                            want[i] = f64::from(value);
                            tolerance[i] = match ty {
                                KvType::F16 => f64::from(value.abs()) / 2048.0 + f64::from(f16::MIN_POSITIVE_SUBNORMAL),
                                // Half a code, and what the scale loses as f16.
                                KvType::Q8_0 => {
                                    0.57 * f64::from(largest) / 127.0 + 127.0 * f64::from(f16::MIN_POSITIVE_SUBNORMAL)
                                }
                            };
                        }
                    }
                }
            }
            let got: Vec<f32> = decoded(shape, ty, &region).into_iter().map(|v| v as f32).collect();
            assert_close(&what, &got, &want, |i| tolerance[i] + 1e-7 * want[i].abs());
        }
    }
}

#[test]
fn attention_over_contexts_that_cross_workgroups() {
    let (mut gpu, mut random) = (gpu(), Random(11));
    let single = Tuning { prompt_from: usize::MAX, ..*gpu.tuning() };
    // (query heads, key/value heads, head size), (slot, position) of the tokens
    // and how far each sees, and whether the heads have sinks.
    type Case<'a> = ([usize; 3], &'a [(u32, u32)], Option<usize>, bool);
    let cases: [Case<'_>; 10] = [
        ([14, 2, 64], &[(0, 0)], None, false),
        ([8, 2, 96], &[(0, 40), (1, 129)], None, false),
        ([4, 4, 128], &[(1, 62), (0, 63), (1, 64)], None, false),
        ([8, 1, 64], &[(0, 199)], None, false),
        ([6, 2, 80], &[(0, 127), (1, 128), (0, 5)], None, true),
        ([2, 1, 256], &[(1, 70)], None, false),
        ([3, 3, 20], &[(0, 0), (0, 1), (0, 2), (1, 130)], None, false),
        ([8, 2, 64], &[(0, 0), (0, 31), (0, 32), (1, 200)], Some(32), true),
        ([4, 1, 32], &[(2, 150), (0, 7)], Some(70), false),
        ([2, 2, 64], &[(1, 100)], Some(1), true),
    ];
    let in_f16 = cases.into_iter().map(|case| (case, F16));
    let in_blocks = [(cases[1], Q8_0), (cases[2], Q8_0), (cases[7], MIXED), (cases[9], Q8_0)];
    for ((heads, places, window, has_sinks), types) in in_f16.chain(in_blocks) {
        let case = AttentionCase { heads, places: places.to_vec(), window, has_sinks, types };
        for n_splits in [1, 3] {
            gpu.set_tuning(case.in_splits(single, n_splits));
            case.check(&mut gpu, &mut random, 2e-5);
        }
    }
}

#[test]
fn attention_of_prompts_in_tiles() {
    let (mut gpu, mut random) = (gpu(), Random(12));
    let tuning = Tuning { prompt_from: 4, ..*gpu.tuning() };
    for case in prompt_cases() {
        for n_splits in [1, 3] {
            gpu.set_tuning(case.in_splits(tuning, n_splits));
            case.check(&mut gpu, &mut random, 2e-5);
        }
    }
}

#[test]
fn every_tile_of_prompts_gives_the_same() {
    let (mut gpu, mut random) = (gpu(), Random(17));
    for (workgroup, rows, block, thread_rows) in [(128, 32, 32, 4), (32, 16, 16, 4), (16, 8, 8, 4), (64, 64, 16, 8)] {
        let prompt = PromptTile { workgroup, rows, block, thread_rows };
        gpu.set_tuning(Tuning { prompt_from: 4, prompt, ..*gpu.tuning() });
        for case in &prompt_cases()[..2] {
            assert!(prompt.for_head(case.heads[2], 32 << 10).is_some(), "{prompt:?}");
            case.check(&mut gpu, &mut random, 2e-5);
        }
    }
}

#[test]
fn heads_are_placed_as_by_their_norms_rotations_and_stores() {
    let (mut gpu, mut random) = (gpu(), Random(15));
    for (n_head, n_head_kv, head_dim, n_pairs, layout, has_norms, places, types) in [
        (4, 2, 64, 32, RopeLayout::Neox, true, &[(0, 4)][..], F16),
        (3, 1, 20, 8, RopeLayout::Interleaved, false, &[(0, 0), (2, 8), (1, 33), (2, 7)], F16),
        (7, 7, 128, 16, RopeLayout::Neox, true, &[(1, 1), (1, 2), (1, 3)], F16),
        (4, 2, 64, 32, RopeLayout::Neox, true, &[(0, 4), (1, 33)], Q8_0),
        (2, 1, 256, 64, RopeLayout::Interleaved, false, &[(0, 0), (2, 7)], MIXED),
    ] {
        let what = format!("place_heads {n_head}/{n_head_kv} × {head_dim}, {n_pairs} pairs, {layout:?}, {has_norms}");
        let shape = CacheShape { n_pages: N_PAGES, n_head_kv, head_dim, types };
        let (n, q_width, kv_width) = (places.len(), n_head * head_dim, n_head_kv * head_dim);
        let [q_values, k_values, v_values] = [q_width, kv_width, kv_width].map(|w| random.values(n * w));
        let norms = [0, 1].map(|_| TestWeight::vector(&random.values(head_dim)).upload(&mut gpu, "head norm"));
        let [q_norm, k_norm] = norms.each_ref().map(|w| has_norms.then_some(w));
        let angles: Vec<f64> = (0..n * n_pairs).map(|_| f64::from(random.signed()) * 100.0).collect();
        let cos_sin: Vec<f32> = angles
            .chunks_exact(n_pairs)
            .flat_map(|a| a.iter().map(|v| v.cos() as f32).chain(a.iter().map(|v| v.sin() as f32)))
            .collect();
        let table = Matrix::new(&mut gpu, 1, cos_sin.len(), &cos_sin);
        let rotation = Rotation { cos_sin: &table.region, n_pairs, head_dim, layout };
        let seqs = indices(&mut gpu, &places.iter().map(|p| p.0).collect::<Vec<u32>>());
        let positions = indices(&mut gpu, &places.iter().map(|p| p.1).collect::<Vec<u32>>());
        let tables = indices(&mut gpu, &TABLES.concat());
        let at = Places { tables: &tables, pages_per_seq: TABLES[0].len(), seqs: &seqs, positions: &positions };
        let eps = 1e-5;
        let before = Cache::random(&mut gpu, &mut random, shape);
        let mut copy = || {
            let [k, v] = [(types.k, before.layer.k), (types.v, before.layer.v)].map(|(ty, from)| {
                let n_bytes = shape.bytes(ty);
                let mut to = gpu.allocate(MemoryUse::Device, n_bytes, "a cache").expect("memory");
                to.write()[..n_bytes as usize].copy_from_slice(&from.read()[..n_bytes as usize]);
                to
            });
            LayerCache { k, v }
        };
        let (apart, together) = (copy(), copy());
        let mut matrix = |width: usize, values: &[f32]| Matrix::new(&mut gpu, n, width, values);
        let [q, k, v] = [(q_width, &q_values), (kv_width, &k_values), (kv_width, &v_values)].map(|(w, x)| matrix(w, x));
        let q_alone = matrix(q_width, &q_values);
        run(&mut gpu, &what, |g| {
            let (q, k, v) = (q_alone.rows(), k.rows(), v.rows());
            let all = Projections { q, k, v, q_norm, k_norm, eps };
            place_heads::record(g, &all, &rotation, &at, shape, &together)
        });
        assert_eq!(k.read(), k_values, "{what}: keys stay as they were");
        // The steps alone, each of which has its own f64 twin.
        run(&mut gpu, &what, |g| {
            for (x, norm) in [(&q, q_norm), (&k, k_norm)] {
                if let Some(norm) = norm {
                    rms_norm::record(g, x.rows(), norm, eps, x.rows())?;
                }
                rope::record(g, x.rows(), &rotation)?;
            }
            kv_store::record(g, k.rows(), v.rows(), &at, shape, &apart)
        });
        let want: Vec<f64> = q.read().into_iter().map(f64::from).collect();
        let tolerance = 1e-5 * largest(&want);
        assert_close(&what, &q_alone.read(), &want, |_| tolerance);
        assert!(decoded(shape, types.v, &together.v) == decoded(shape, types.v, &apart.v), "{what}: values");
        // Keys are rounded from numbers that may differ in their last bits: to another code, in the worst case.
        let got: Vec<f32> = decoded(shape, types.k, &together.k).into_iter().map(|v| v as f32).collect();
        let want = decoded(shape, types.k, &apart.k);
        let block = |i: usize| largest(&want[i / BLOCK * BLOCK..][..BLOCK]);
        let code = |i: usize| if types.k == KvType::Q8_0 { 1.01 * block(i) / 127.0 } else { 1e-3 * want[i].abs() };
        assert_close(&format!("{what}: keys"), &got, &want, |i| code(i) + 1e-5 * largest(&want));
    }
}

#[test]
fn activations_also_of_large_values() {
    let (mut gpu, mut random) = (gpu(), Random(12));
    for (n, width, activation) in [
        (1, 4864, Activation::Swiglu),
        (3, 7, Activation::Swiglu),
        (33, 100, Activation::Swiglu),
        (2, 77, Activation::SwigluOai),
    ] {
        let gate_values: Vec<f32> = (0..n * width).map(|i| random.signed() * [1.0, 10.0, 200.0, 0.01][i % 4]).collect();
        let up_values: Vec<f32> = random.values(n * width).into_iter().map(|v| v * 20.0).collect();
        let (gate, up) = (Matrix::new(&mut gpu, n, width, &gate_values), Matrix::new(&mut gpu, n, width, &up_values));
        run(&mut gpu, "swiglu", |g| swiglu::record(g, gate.rows(), up.rows(), activation));
        let want: Vec<f64> = gate_values
            .iter()
            .zip(&up_values)
            .map(|(&g, &u)| activate(activation, f64::from(g), f64::from(u)))
            .collect();
        let what = format!("{activation:?} {n} × {width}");
        assert_close(&what, &gate.read(), &want, |i| 1e-5 * want[i].abs() + 1e-30);
    }
}

#[test]
fn a_pass_that_is_cut_into_many_submits_gives_the_same() {
    let (mut gpu, mut random) = (gpu(), Random(14));
    let weight = TestWeight::random(&mut random, GgmlType::Q4_0, 64, 64).upload(&mut gpu, "weight");
    let ones = TestWeight::vector(&[1.0; 64]).upload(&mut gpu, "norm");
    let values = random.values(64);
    let (mut results, mut n_submits) = (Vec::new(), Vec::new());
    for flops in [u64::MAX, 200_000, 1] {
        gpu.set_tuning(Tuning { submit_work: Cost { flops, ..gpu.tuning().submit_work }, ..*gpu.tuning() });
        // A chain in which every op needs the one before.
        let (a, b) = (Matrix::new(&mut gpu, 1, 64, &values), Matrix::untouched(&mut gpu, 1, 64));
        run(&mut gpu, "chain", |g| {
            for i in 0..10 {
                let (x, dst) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
                linear::record(g, &Product::new(x.rows(), &weight, dst.rows()))?;
                rms_norm::record(g, dst.rows(), &ones, 1e-6, dst.rows())?;
            }
            Ok(())
        });
        results.push((a.read(), b.read()));
        n_submits.push(gpu.last_pass().n_submits);
    }
    assert!(n_submits[0] == 1 && n_submits[1] > 1 && n_submits[2] > n_submits[1], "{n_submits:?}");
    assert!(results[0].0.iter().all(|v| v.is_finite() && v.abs() > 0.0), "{results:?}");
    assert_eq!(results[1], results[0]);
    assert_eq!(results[2], results[0]);
}

#[test]
fn submits_become_smaller_on_a_device_that_is_slower_than_expected() {
    let (mut gpu, mut random) = (gpu(), Random(15));
    // A millisecond is expected to do what takes this device minutes.
    let work = Cost { read_bytes: 1 << 50, written_bytes: 1 << 50, flops: 1 << 50 };
    gpu.set_tuning(Tuning { submit_ms: 1, submit_work: work, ..*gpu.tuning() });
    let weight = TestWeight::random(&mut random, GgmlType::F16, 512, 512).upload(&mut gpu, "weight");
    let x = Matrix::new(&mut gpu, 64, 512, &random.values(64 * 512));
    let dst = Matrix::untouched(&mut gpu, 64, 512);
    let mut pass = || {
        let product = Product::new(x.rows(), &weight, dst.rows());
        run(&mut gpu, "ten products", |g| (0..10).try_for_each(|_| record_matmul(g, &product)));
        (gpu.last_pass().n_submits, dst.read())
    };
    let (n, first) = pass();
    assert_eq!(n, 1, "nothing was measured");
    let (_, last) = (0..40).map(|_| pass()).find(|&(n, _)| n > 1).expect("after some passes they are cut");
    assert_eq!(last, first, "the same results");
}

#[test]
fn an_objection_of_the_validation_layer_is_an_error() {
    let mut gpu = gpu();
    let region = gpu.allocate(MemoryUse::Device, 64, "a test region").expect("memory");
    gpu.begin().expect("recording");
    // Vulkan zeroes whole words.
    gpu.zero(&region.slice(2, 8));
    let error = gpu.submit_and_wait().expect_err("an offset of 2 is wrong");
    assert!(matches!(&error, VulkanError::Validation { messages } if messages[0].contains("VUID")), "{error}");
    run(&mut gpu, "the next pass", |g| {
        g.zero(&region);
        Ok(())
    });
}

#[test]
fn gather_copies_the_named_rows() {
    let (mut gpu, mut random) = (gpu(), Random(13));
    for (n, width, rows) in [(1, 64, vec![0]), (9, 100, vec![8, 0, 3]), (33, 896, vec![32])] {
        let values = random.values(n * width);
        let x = Matrix::new(&mut gpu, n, width, &values);
        let at = indices(&mut gpu, &rows);
        let dst = Matrix::untouched(&mut gpu, rows.len(), width);
        run(&mut gpu, "gather", |g| gather::record(g, x.rows(), &at, dst.rows()));
        let want: Vec<f32> = rows.iter().flat_map(|&r| values[r as usize * width..][..width].to_vec()).collect();
        assert_eq!(dst.read(), want, "rows {rows:?} of {n}");
    }
}

/// What a kernel says that is asked for something impossible.
fn refusal(record: impl FnOnce() -> Result<(), VulkanError>) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(record)).expect_err("it is refused");
    panic.downcast_ref::<String>().expect("a formatted message").clone()
}

/// Passes without rows are the backend's to leave out; a kernel that gets them has a caller that is wrong.
#[test]
fn matrices_without_rows_or_columns_are_refused() {
    let (mut gpu, mut random) = (gpu(), Random(18));
    let norm = TestWeight::vector(&[1.0; 64]).upload(&mut gpu, "norm");
    let weight = TestWeight::random(&mut random, GgmlType::Q4_0, 3, 64).upload(&mut gpu, "weight");
    let [x, dst] = [64, 64].map(|width| Matrix::untouched(&mut gpu, 2, width));
    let (ids, bytes) = (indices(&mut gpu, &[0, 1]), Bytes::new(&mut gpu, 2, 64));
    gpu.begin().expect("recording");
    for (n_rows, width) in [(0, 64), (2, 0)] {
        let [none, to] = [&x, &dst].map(|m| Rows { n_rows, width, ..m.rows() });
        let g = &mut gpu;
        let all = [
            refusal(|| embed::record(g, &weight, &ids, none)),
            refusal(|| rms_norm::record(g, none, &norm, 1e-6, to)),
            refusal(|| rms_norm::quantized::record(g, none, &norm, 1e-6, to, bytes.rows())),
            refusal(|| quantize::record(g, none, bytes.rows())),
            refusal(|| record_matvec(g, &Product::new(none, &weight, dst.rows()))),
            refusal(|| record_matvec(g, &Product::new(x.rows(), &weight, to))),
            refusal(|| record_matmul(g, &Product::new(none, &weight, dst.rows()))),
            refusal(|| gather::record(g, x.rows(), &ids, to)),
            refusal(|| swiglu::record(g, none, to, Activation::Swiglu)),
        ];
        let shape = format!("n_rows: {n_rows}, width: {width}");
        assert!(all.iter().all(|message| message.contains(&shape)), "{shape}: {all:#?}");
    }
    // Nothing to start is no op.
    let message = refusal(|| probe::record_fma(&mut gpu, &x.region, [0.5, 1.0], 1, 0));
    assert!(message.contains("workgroups [0, 1, 1]"), "{message}");
    gpu.submit_and_wait().expect("an empty pass");
    for untouched in [x, dst] {
        assert!(untouched.read().iter().all(|&v| v == UNTOUCHED), "nothing was recorded");
    }
}
