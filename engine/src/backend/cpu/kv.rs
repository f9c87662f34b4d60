//! Keys and values of the CPU backend: f16, per layer `[page][position in page][kv_dim]`, and the pages of the current
//! pass's sequences. Zeroed memory from the system, so that pages never used are never touched.

use crate::backend::BatchToken;
use crate::kv::{KvLayout, KvPages, PAGE, PageCopy};
use crate::model::Config;
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// The cache of a whole model.
#[derive(Default)]
pub(super) struct KvCache {
    layers: Vec<LayerCache>,
    /// `[kind][seq]`: the pages of the sequences in the current pass.
    tables: Vec<Vec<Vec<u32>>>,
}

struct LayerCache {
    keys: Vec<u16>,
    values: Vec<u16>,
    kv_dim: usize,
    kind: usize,
}

/// One layer's cache, as attention reads it.
#[derive(Clone, Copy)]
pub(super) struct KvLayer<'a> {
    keys: &'a [f16],
    values: &'a [f16],
    kv_dim: usize,
    /// `[seq][position / PAGE]`.
    tables: &'a [Vec<u32>],
}

impl KvCache {
    pub(super) fn new(config: &Config, layout: &KvLayout) -> Self {
        let layer = |il: usize| {
            let n = layout.layer_elements(config, il);
            let (kv_dim, kind) = (config.kv_dim(il), layout.layer_kind[il]);
            LayerCache { keys: vec![0; n], values: vec![0; n], kv_dim, kind }
        };
        KvCache {
            layers: (0..config.n_layer()).map(layer).collect(),
            tables: vec![vec![Vec::new(); layout.n_seq]; layout.kinds.len()],
        }
    }

    /// Takes over the page tables of the sequences in `batch`.
    pub(super) fn begin(&mut self, batch: &[BatchToken], pages: &KvPages) {
        for (i, token) in batch.iter().enumerate() {
            let seq = token.seq as usize;
            if i > 0 && batch[i - 1].seq == token.seq {
                continue;
            }
            for (kind, tables) in self.tables.iter_mut().enumerate() {
                tables[seq].clear();
                tables[seq].extend_from_slice(pages.table(kind, seq));
            }
        }
    }

    /// Rounds one token's keys and values, `[kv_dim]` each, to f16 and keeps them.
    pub(super) fn store(&mut self, il: usize, token: &BatchToken, keys: &[f32], values: &[f32]) {
        let layer = &mut self.layers[il];
        let table = &self.tables[layer.kind][token.seq as usize];
        let at = row(table, token.pos as usize) * layer.kv_dim;
        let range = at..at + layer.kv_dim;
        layer.keys[range.clone()].reinterpret_cast_mut::<f16>().convert_from_f32_slice(keys);
        layer.values[range].reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
    }

    /// Copies pages in every layer of their kind.
    pub(super) fn copy_pages(&mut self, copies: &[PageCopy]) {
        for copy in copies {
            for layer in self.layers.iter_mut().filter(|l| l.kind == copy.kind) {
                let n = PAGE * layer.kv_dim;
                let (from, to) = (copy.from as usize * n, copy.to as usize * n);
                layer.keys.copy_within(from..from + n, to);
                layer.values.copy_within(from..from + n, to);
            }
        }
    }

    pub(super) fn layer(&self, il: usize) -> KvLayer<'_> {
        let layer = &self.layers[il];
        KvLayer {
            keys: layer.keys.reinterpret_cast(),
            values: layer.values.reinterpret_cast(),
            kv_dim: layer.kv_dim,
            tables: &self.tables[layer.kind],
        }
    }
}

/// Row of a layer's cache that holds a position.
#[inline(always)]
fn row(table: &[u32], pos: usize) -> usize {
    table[pos / PAGE] as usize * PAGE + pos % PAGE
}

impl<'a> KvLayer<'a> {
    /// Key and value of one head at one position, `[head_dim]` each.
    #[inline(always)]
    pub(super) fn head(&self, seq: usize, pos: usize, head: usize, head_dim: usize) -> (&'a [f16], &'a [f16]) {
        let at = row(&self.tables[seq], pos) * self.kv_dim + head * head_dim;
        (&self.keys[at..at + head_dim], &self.values[at..at + head_dim])
    }
}
