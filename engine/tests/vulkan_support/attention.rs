//! Attention of a batch on the device against plain f64: what the tests of both kernels for prompts, and of that for
//! single tokens, have in common.

use engine::backend::vulkan::kernels::attention::{self, View};
use engine::backend::vulkan::kernels::attention_work::Work;
use engine::backend::vulkan::kernels::kv_store::{CacheShape, Places};
use engine::backend::vulkan::{Gpu, MemoryUse, Tuning};
use engine::kv::{KvOptions, KvType, NO_PAGE, PAGE};
use half::f16;

use super::cache::{Cache, F16, MIXED, N_PAGES, Q8_0, SEQ_PAGES, TABLES, cache_row};
use super::{Matrix, Random, TestWeight, assert_close, indices, run};

/// A batch and its heads.
#[derive(Clone, Debug)]
pub struct AttentionCase {
    /// Query heads, key/value heads, elements of a head.
    pub heads: [usize; 3],
    /// Sequence and position of each token.
    pub places: Vec<(u32, u32)>,
    /// Positions that a token sees.
    pub window: Option<usize>,
    pub has_sinks: bool,
    pub types: KvOptions,
}

/// So many tokens of a sequence from a position on.
fn run_of(seq: u32, from: u32, n: u32) -> impl Iterator<Item = (u32, u32)> {
    (from..from + n).map(move |pos| (seq, pos))
}

/// Prompts: tiles in part, one row, behind what the cache holds, windows, sinks, several sequences, decoded tokens beside
/// them, all sizes of heads, both types.
pub fn prompt_cases() -> Vec<AttentionCase> {
    let case = |heads, places: Vec<(u32, u32)>, window, has_sinks, types| AttentionCase {
        heads,
        places,
        window,
        has_sinks,
        types,
    };
    let two = || run_of(0, 0, 40).chain(run_of(1, 0, 23)).collect();
    vec![
        case([14, 2, 64], run_of(0, 0, 70).collect(), None, false, F16),
        case([8, 1, 64], run_of(1, 101, 37).collect(), None, true, Q8_0),
        case([8, 2, 64], run_of(0, 0, 150).collect(), Some(33), true, F16),
        case([10, 2, 128], two(), None, false, Q8_0),
        case([3, 3, 96], run_of(2, 5, 90).collect(), None, false, F16),
        case([4, 4, 80], run_of(2, 190, 30).collect(), Some(100), true, F16),
        case([12, 1, 32], run_of(2, 9, 11).collect(), Some(4), false, MIXED),
        case([4, 1, 256], run_of(0, 60, 9).collect(), None, false, F16),
        case([2, 1, 192], run_of(1, 3, 21).collect(), None, true, Q8_0),
        case([71, 1, 64], run_of(1, 8, 2).collect(), None, false, F16),
        // Decoded tokens in front of prompts and behind them, a draft that is too short for tiles, a row of one token.
        case([2, 2, 64], [(2, 200)].into_iter().chain(two()).collect(), None, false, F16),
        case([5, 1, 64], run_of(1, 30, 19).chain([(0, 17)]).collect(), Some(16), true, Q8_0),
        case([2, 1, 128], run_of(2, 77, 2).chain(run_of(1, 0, 34)).collect(), None, true, F16),
        case([1, 1, 64], run_of(0, 0, 4).collect(), None, false, F16),
        case([3, 3, 24], run_of(0, 0, 33).collect(), None, false, F16),
    ]
}

impl AttentionCase {
    /// The tuning with which positions are cut into `n` pieces, some of them empty, where a token sees as many.
    pub fn in_splits(&self, tuning: Tuning, n: usize) -> Tuning {
        let most = if n == 1 { 1 } else { n * self.places.len() * self.heads[0] };
        Tuning { attention_groups: most, prompt_groups: most, attention_split: (224 / n).max(1), ..tuning }
    }

    /// Runs the case with random numbers, every element within `tolerance` of f64. What no token sees is not there to
    /// be read: pages are missing from the tables, positions hold NaN.
    pub fn check(&self, gpu: &mut Gpu, random: &mut Random, tolerance: f64) {
        // Scores that differ by much more than exp's range of one workgroup.
        self.check_scaled(gpu, random, 8.0, tolerance);
    }

    /// The same with queries of this size.
    pub fn check_scaled(&self, gpu: &mut Gpu, random: &mut Random, scale: f32, tolerance: f64) {
        let what = format!("{self:?} with {:?}", gpu.tuning());
        let [n_head, n_head_kv, head_dim] = self.heads;
        let shape = CacheShape { n_pages: N_PAGES, n_head_kv, head_dim, types: self.types };
        let mut cache = Cache::random(gpu, random, shape);
        let (n, width) = (self.places.len(), n_head * head_dim);
        let values: Vec<f32> = random.values(n * width).into_iter().map(|v| v * scale).collect();
        let q = Matrix::new(gpu, n, width, &values);
        let sink_values: Vec<f32> = random.values(n_head).into_iter().map(|v| v * 20.0).collect();
        let sinks = TestWeight::vector(&sink_values).upload(gpu, "sinks");
        let seqs = indices(gpu, &self.places.iter().map(|p| p.0).collect::<Vec<u32>>());
        let positions = indices(gpu, &self.places.iter().map(|p| p.1).collect::<Vec<u32>>());
        let tables = indices(gpu, &self.hide(shape, &mut cache).concat());
        let at = Places { tables: &tables, pages_per_seq: SEQ_PAGES, seqs: &seqs, positions: &positions };
        let group = n_head / n_head_kv;
        let work = Work::of(gpu.tuning(), group, head_dim, &self.places);
        let mut tiles = gpu.allocate(MemoryUse::Upload, Work::bytes(n, group), "attention's tiles").expect("memory");
        work.write(&mut tiles);
        let partial_bytes = (3 * n * n_head * (4 + head_dim) * 4) as u64;
        let partials = gpu.allocate(MemoryUse::Device, partial_bytes, "partial results").expect("memory");
        let dst = Matrix::untouched(gpu, n, width);
        let view = View {
            window: self.window,
            sinks: self.has_sinks.then_some(&sinks),
            work: &work,
            tiles: &tiles,
            partials: &partials,
        };
        run(gpu, &what, |g| attention::record(g, q.rows(), &at, shape, &cache.layer, dst.rows(), &view));
        let want = self.reference(shape, &cache, &values, &sink_values);
        assert_close(&what, &dst.read(), &want, |_| tolerance);
    }

    /// First position that a token sees.
    fn first_seen(&self, pos: u32) -> usize {
        self.window.map_or(0, |w| (pos as usize + 1).saturating_sub(w))
    }

    /// The sequences' page tables without the pages that no token sees, whose other positions get NaN.
    fn hide(&self, shape: CacheShape, cache: &mut Cache) -> [[u32; SEQ_PAGES]; 3] {
        let mut tables = TABLES;
        for (seq, table) in (0..).zip(&mut tables) {
            let of = || self.places.iter().filter(|p| p.0 == seq).map(|p| p.1);
            let (first, end) = (of().map(|p| self.first_seen(p)).min().unwrap_or(0), of().max().map_or(0, |p| p + 1));
            let seen = first / PAGE..(end as usize).div_ceil(PAGE);
            for (i, page) in table.iter_mut().enumerate().filter(|(i, _)| !seen.contains(i)) {
                assert_eq!(*page, TABLES[seq as usize][i]);
                *page = NO_PAGE;
            }
            for pos in end as usize..seen.end * PAGE {
                for h in 0..shape.n_head_kv {
                    let row = cache_row(shape, seq, pos, h);
                    put_nan(&mut cache.layer.k, self.types.k, shape.head_dim, row);
                    put_nan(&mut cache.layer.v, self.types.v, shape.head_dim, row);
                }
            }
        }
        tables
    }

    fn reference(&self, shape: CacheShape, cache: &Cache, values: &[f32], sinks: &[f32]) -> Vec<f64> {
        let [n_head, n_head_kv, head_dim] = self.heads;
        let mut want = Vec::new();
        for (t, &(seq, pos)) in self.places.iter().enumerate() {
            for h in 0..n_head {
                let query = &values[(t * n_head + h) * head_dim..][..head_dim];
                let row = |all: &[f64], p: usize| {
                    all[cache_row(shape, seq, p, h / (n_head / n_head_kv)) * head_dim..][..head_dim].to_vec()
                };
                let first = self.first_seen(pos);
                let scores: Vec<f64> = (first..=pos as usize)
                    .map(|p| row(&cache.k, p).iter().zip(query).map(|(k, &q)| k * f64::from(q)).sum::<f64>())
                    .map(|s| s / (head_dim as f64).sqrt())
                    .collect();
                let sink = if self.has_sinks { f64::from(sinks[h]) } else { f64::NEG_INFINITY };
                let max = scores.iter().copied().fold(sink, f64::max);
                let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = exps.iter().sum::<f64>() + (sink - max).exp();
                let mut out = vec![0.0; head_dim];
                for (p, e) in (first..).zip(&exps) {
                    out.iter_mut().zip(row(&cache.v, p)).for_each(|(o, v)| *o += e / total * v);
                }
                want.extend(out);
            }
        }
        want
    }
}

/// Makes NaN of a row of a cache: of its elements, or of its scales.
fn put_nan(region: &mut engine::backend::vulkan::Region, ty: KvType, head_dim: usize, row: usize) {
    let nan = f16::NAN.to_le_bytes();
    let (part, row) = (row / PAGE, row % PAGE);
    let (start, n) = match ty {
        KvType::F16 => ((part * PAGE + row) * head_dim * 2, head_dim),
        KvType::Q8_0 => {
            let n = head_dim / engine::kv::BLOCK;
            (part * PAGE * (head_dim + 2 * n) + PAGE * head_dim + row * 2 * n, n)
        }
    };
    region.write()[start..start + 2 * n].chunks_exact_mut(2).for_each(|half| half.copy_from_slice(&nan));
}
