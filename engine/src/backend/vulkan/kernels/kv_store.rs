//! Keys and values of the batch into a layer's cache, rounded to its types (`f32_kv_store.comp`).

use shaders::Kernel;

use super::{Rows, check_indices, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError};
use crate::kv::{KvOptions, KvType, PAGE};

push_constants! {
    struct Push {
        k: ReadAddress,
        v: ReadAddress,
        k_cache: WriteAddress,
        v_cache: WriteAddress,
        tables: ReadAddress,
        seqs: ReadAddress,
        positions: ReadAddress,
        n_head_kv: u32,
        pages_per_seq: u32,
        stride4: u32,
        padding: u32,
    }
}

/// Keys and values of one layer, each as `include/kv_cache.glsl` describes it.
#[derive(Clone, Copy, Debug)]
pub struct LayerCache {
    /// Keys.
    pub k: Region,
    /// Values.
    pub v: Region,
}

/// Shape of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Pages.
    pub n_pages: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Elements per head, a multiple of 4, with q8_0 of 32.
    pub head_dim: usize,
    /// Types of keys and values.
    pub types: KvOptions,
}

/// A type as the kernels' specialization constants name it.
pub(super) fn constant(ty: KvType) -> u32 {
    match ty {
        KvType::F16 => 0,
        KvType::Q8_0 => 1,
    }
}

impl CacheShape {
    /// Bytes of the keys (or the values) of one layer, stored as `ty`.
    pub fn bytes(&self, ty: KvType) -> u64 {
        self.n_pages as u64 * self.page_bytes(ty)
    }

    /// Bytes of a page of keys (or values).
    pub fn page_bytes(&self, ty: KvType) -> u64 {
        ty.bytes((self.n_head_kv * PAGE * self.head_dim) as u64)
    }

    /// Most bytes that kernels can count: vec4s of f16, or scales, in 32 bits.
    pub fn max_bytes(ty: KvType) -> u64 {
        match ty {
            KvType::F16 => 8 * ((1 << 31) - 1),
            KvType::Q8_0 => 2 * ((1 << 32) - 1),
        }
    }

    /// Checks that `cache` has this shape.
    pub(super) fn check(&self, cache: &LayerCache) {
        assert!(self.head_dim.is_multiple_of(4), "{self:?}");
        for (ty, region) in [(self.types.k, &cache.k), (self.types.v, &cache.v)] {
            assert!(ty.fits(self.head_dim), "{self:?}");
            assert!(self.bytes(ty) <= region.bytes.min(Self::max_bytes(ty)), "{self:?} in {cache:?}");
        }
    }
}

/// Where the tokens of the batch and their sequences stand.
#[derive(Clone, Copy, Debug)]
pub struct Places<'r> {
    /// Pages of each sequence by position / PAGE, `[n_seq, pages_per_seq] u32`.
    pub tables: &'r Region,
    /// Entries of a sequence in `tables`.
    pub pages_per_seq: usize,
    /// Sequence of each token, `[n_tokens] u32`.
    pub seqs: &'r Region,
    /// Position of each token in its sequence, `[n_tokens] u32`.
    pub positions: &'r Region,
}

impl Places<'_> {
    pub(super) fn check(&self, n_tokens: usize) {
        check_indices(self.tables, self.pages_per_seq, "page tables");
        check_indices(self.seqs, n_tokens, "sequences");
        check_indices(self.positions, n_tokens, "positions");
    }
}

/// The variant in use.
pub fn variant(tuning: &Tuning, head_dim: usize, types: KvOptions) -> Variant {
    let [k, v] = [types.k, types.v].map(constant);
    Variant { kernel: Kernel::KvStore, constants: vec![tuning.elementwise, (head_dim / 4) as u32, PAGE as u32, k, v] }
}

/// Records the stores of `k` and `v`, both `[n_tokens, n_head_kv * head_dim]`.
pub fn record(
    gpu: &mut Gpu,
    k: Rows<'_>,
    v: Rows<'_>,
    places: &Places<'_>,
    shape: CacheShape,
    cache: &LayerCache,
) -> Result<(), VulkanError> {
    k.check("k");
    v.check("v");
    places.check(k.n_rows);
    shape.check(cache);
    assert_eq!((k.n_rows, k.width, k.stride), (v.n_rows, v.width, v.stride), "shapes of k and v");
    assert_eq!(k.width, shape.n_head_kv * shape.head_dim, "width of k");
    let workgroup = gpu.tuning.elementwise;
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning, shape.head_dim, shape.types))?;
    let mut op = gpu.commands.op();
    let push = Push {
        k: op.reads(k.region),
        v: op.reads(v.region),
        k_cache: op.writes(&cache.k),
        v_cache: op.writes(&cache.v),
        tables: op.reads(places.tables),
        seqs: op.reads(places.seqs),
        positions: op.reads(places.positions),
        n_head_kv: shape.n_head_kv as u32,
        pages_per_seq: places.pages_per_seq as u32,
        stride4: k.stride4("k"),
        padding: 0,
    };
    let cost = Cost { read_bytes: k.bytes() + v.bytes(), written_bytes: k.bytes(), flops: 0 };
    op.dispatch(pipeline, [(k.width as u32 / 4).div_ceil(workgroup), k.n_rows as u32, 2], &push, cost)
}
