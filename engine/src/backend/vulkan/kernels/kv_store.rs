//! Keys and values of the batch into a layer's cache, rounded to f16 (`f32_kv_store.comp`).

use shaders::Kernel;

use super::{Rows, check_indices, push_constants};
use crate::backend::vulkan::commands::{ReadAddress, WriteAddress};
use crate::backend::vulkan::{Cost, Gpu, Region, Tuning, Variant, VulkanError};
use crate::kv::PAGE;

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
        head_dim4: u32,
        pages_per_seq: u32,
        stride4: u32,
    }
}

/// Keys and values of one layer, each `[n_pages, n_head_kv, PAGE, head_dim] f16`.
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
    /// Elements per head, a multiple of 4.
    pub head_dim: usize,
}

impl CacheShape {
    /// Bytes of the keys (or the values) of one layer.
    pub fn bytes(&self) -> u64 {
        self.n_pages as u64 * self.page_bytes()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> u64 {
        (self.n_head_kv * PAGE * self.head_dim * 2) as u64
    }

    /// Checks that `cache` has this shape.
    pub(super) fn check(&self, cache: &LayerCache) {
        assert!(self.head_dim.is_multiple_of(4), "{self:?}");
        assert!(self.bytes() <= cache.k.bytes.min(cache.v.bytes), "{self:?} in {cache:?}");
        assert!(self.bytes() / 8 < 1 << 31, "kernels count the vec4s of a cache in 32 bits: {self:?}");
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
pub fn variant(tuning: &Tuning) -> Variant {
    Variant { kernel: Kernel::KvStore, constants: vec![tuning.elementwise, PAGE as u32] }
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
    let pipeline = gpu.pipelines.get(&variant(&gpu.tuning))?;
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
        head_dim4: (shape.head_dim / 4) as u32,
        pages_per_seq: places.pages_per_seq as u32,
        stride4: k.stride4("k"),
    };
    let cost = Cost { read_bytes: k.bytes() + v.bytes(), written_bytes: k.bytes(), flops: 0 };
    op.dispatch(pipeline, [(k.width as u32 / 4).div_ceil(workgroup), k.n_rows as u32, 2], &push, cost)
}
