//! Keys and values of the CPU backend: f16, `[layer][slot][position][kv_dim]`. Zeroed memory from the system, so that
//! positions never used are never touched.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// The cache of a whole model.
#[derive(Default)]
pub(super) struct KvCache {
    keys: Vec<u16>,
    values: Vec<u16>,
    n_seq: usize,
    n_ctx: usize,
    kv_dim: usize,
}

/// One layer's cache.
#[derive(Clone, Copy)]
pub(super) struct KvLayer<'a> {
    keys: &'a [f16],
    values: &'a [f16],
    n_ctx: usize,
    kv_dim: usize,
}

impl KvCache {
    pub(super) fn new(n_layer: usize, n_seq: usize, n_ctx: usize, kv_dim: usize) -> Self {
        let n = n_layer * n_seq * n_ctx * kv_dim;
        KvCache { keys: vec![0; n], values: vec![0; n], n_seq, n_ctx, kv_dim }
    }

    /// Rounds one token's keys and values, `[kv_dim]` each, to f16 and keeps them.
    pub(super) fn store(&mut self, layer: usize, seq: usize, pos: usize, keys: &[f32], values: &[f32]) {
        assert!(seq < self.n_seq && pos < self.n_ctx, "slot {seq}, position {pos}");
        let at = ((layer * self.n_seq + seq) * self.n_ctx + pos) * self.kv_dim;
        let range = at..at + self.kv_dim;
        self.keys[range.clone()].reinterpret_cast_mut::<f16>().convert_from_f32_slice(keys);
        self.values[range].reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
    }

    /// Positions `0..n_pos` of slot `from` to slot `to`, in every layer.
    pub(super) fn copy(&mut self, from: usize, to: usize, n_pos: usize) {
        assert!(from < self.n_seq && to < self.n_seq && n_pos <= self.n_ctx, "{n_pos} positions, {from} to {to}");
        let slot = self.n_ctx * self.kv_dim;
        for half in [&mut self.keys, &mut self.values] {
            for layer in half.chunks_exact_mut(self.n_seq * slot) {
                layer.copy_within(from * slot..from * slot + n_pos * self.kv_dim, to * slot);
            }
        }
    }

    pub(super) fn layer(&self, layer: usize) -> KvLayer<'_> {
        let n = self.n_seq * self.n_ctx * self.kv_dim;
        let range = layer * n..(layer + 1) * n;
        KvLayer {
            keys: self.keys[range.clone()].reinterpret_cast(),
            values: self.values[range].reinterpret_cast(),
            n_ctx: self.n_ctx,
            kv_dim: self.kv_dim,
        }
    }
}

impl<'a> KvLayer<'a> {
    /// Key and value of one head at one position, `[head_dim]` each.
    #[inline(always)]
    pub(super) fn head(&self, seq: usize, pos: usize, head: usize, head_dim: usize) -> (&'a [f16], &'a [f16]) {
        let at = (seq * self.n_ctx + pos) * self.kv_dim + head * head_dim;
        (&self.keys[at..at + head_dim], &self.values[at..at + head_dim])
    }
}
