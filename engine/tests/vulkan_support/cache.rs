//! A random cache of keys and values for the tests of the kernels that write and read it: three sequences whose pages lie
//! in no order, in both types.

use engine::backend::vulkan::kernels::kv_store::{CacheShape, LayerCache};
use engine::backend::vulkan::{Gpu, MemoryUse, Region};
use engine::kv::{BLOCK, KvOptions, KvType, PAGE};
use half::f16;

use super::Random;

pub const F16: KvOptions = KvOptions { k: KvType::F16, v: KvType::F16 };
pub const Q8_0: KvOptions = KvOptions { k: KvType::Q8_0, v: KvType::Q8_0 };
pub const MIXED: KvOptions = KvOptions { k: KvType::Q8_0, v: KvType::F16 };

/// A cache with random keys and values in every place, and the same as f64, `[page, head, row, head_dim]`.
pub struct Cache {
    pub layer: LayerCache,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
}

impl Cache {
    pub fn random(gpu: &mut Gpu, random: &mut Random, shape: CacheShape) -> Cache {
        let mut half = |ty: KvType, what: &str| {
            let n_bytes = shape.bytes(ty) as usize;
            let mut region = gpu.allocate(MemoryUse::Device, n_bytes as u64, what).expect("memory");
            let halves = |values: Vec<f32>| -> Vec<u8> {
                values.into_iter().flat_map(|v| f16::from_f32(v).to_le_bytes()).collect()
            };
            let bytes = match ty {
                KvType::F16 => halves(random.values(n_bytes / 2)),
                KvType::Q8_0 => {
                    let rows = PAGE * shape.head_dim;
                    let part = |_| {
                        let codes: Vec<u8> = (0..rows).map(|_| random.bits() as u8).collect();
                        [codes, halves(random.values(rows / BLOCK).into_iter().map(|v| v / 127.0).collect())].concat()
                    };
                    (0..shape.n_pages * shape.n_head_kv).flat_map(part).collect()
                }
            };
            region.write()[..n_bytes].copy_from_slice(&bytes);
            (region, decoded(shape, ty, &region))
        };
        let ((k_region, k), (v_region, v)) = (half(shape.types.k, "keys"), half(shape.types.v, "values"));
        Cache { layer: LayerCache { k: k_region, v: v_region }, k, v }
    }
}

/// What stands in keys or values of type `ty`.
pub fn decoded(shape: CacheShape, ty: KvType, region: &Region) -> Vec<f64> {
    let bytes = &region.read()[..shape.bytes(ty) as usize];
    let half = |b: &[u8]| f64::from(f16::from_le_bytes([b[0], b[1]]));
    match ty {
        KvType::F16 => bytes.chunks_exact(2).map(half).collect(),
        KvType::Q8_0 => {
            let rows = PAGE * shape.head_dim;
            let part = |part: &[u8]| -> Vec<f64> {
                let (codes, scales) = part.split_at(rows);
                let value = |(i, code): (usize, &u8)| (f64::from(*code) - 128.0) * half(&scales[i / BLOCK * 2..]);
                codes.iter().enumerate().map(value).collect()
            };
            bytes.chunks_exact(rows + rows / BLOCK * 2).flat_map(part).collect()
        }
    }
}

/// Pages of a sequence of 224 positions, and of three.
pub const SEQ_PAGES: usize = 224 / PAGE;
pub const N_PAGES: usize = 3 * SEQ_PAGES;

/// Pages of three sequences, in no order.
pub const TABLES: [[u32; SEQ_PAGES]; 3] = {
    let (mut tables, mut i) = ([[0; SEQ_PAGES]; 3], 0);
    while i < N_PAGES {
        // 37 shares no factor with 3 · 7 · 2ⁿ.
        tables[i / SEQ_PAGES][i % SEQ_PAGES] = ((37 * i + 5) % N_PAGES) as u32;
        i += 1;
    }
    tables
};

/// Row of the cache that holds a position of a sequence, for key/value head `h`.
pub fn cache_row(shape: CacheShape, seq: u32, pos: usize, h: usize) -> usize {
    let page = TABLES[seq as usize][pos / PAGE] as usize;
    (page * shape.n_head_kv + h) * PAGE + pos % PAGE
}
