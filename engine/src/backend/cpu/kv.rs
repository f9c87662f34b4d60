//! Keys and values of the CPU backend: f16 or q8_0, per layer `[page][position in page][kv_dim]`, and the pages of the
//! current pass's sequences. Codes and scales of q8_0 lie apart, so that both are read in order. Zeroed memory from the
//! system, so that pages never used are never touched.

use crate::backend::BatchToken;
use crate::error::RequestError;
use crate::kv::{BLOCK, KvLayout, KvPages, KvType, PAGE, PageCopy, quantize_block};
use crate::model::Config;
use bytemuck::allocation::try_zeroed_vec;
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
    keys: Elements,
    values: Elements,
    kv_dim: usize,
    kind: usize,
}

/// Keys or values of a layer.
enum Elements {
    F16(Vec<u16>),
    Q8_0 {
        codes: Vec<i8>,
        /// f16 bits, one per [`BLOCK`] codes.
        scales: Vec<u16>,
    },
}

impl Elements {
    /// `n` zeros; an error where the system has no memory for them.
    fn zero(ty: KvType, n: usize) -> Result<Elements, RequestError> {
        let elements = match ty {
            KvType::F16 => try_zeroed_vec(n).map(Elements::F16),
            KvType::Q8_0 => {
                try_zeroed_vec(n).and_then(|codes| Ok(Elements::Q8_0 { codes, scales: try_zeroed_vec(n / BLOCK)? }))
            }
        };
        elements.map_err(|()| RequestError::CacheMemory { bytes: ty.bytes(n as u64) })
    }

    /// Rounds `values` into the elements from `at` on; with blocks, both are whole ones.
    fn store(&mut self, at: usize, values: &[f32]) {
        match self {
            Elements::F16(bits) => {
                bits[at..at + values.len()].reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
            }
            Elements::Q8_0 { codes, scales } => {
                let codes = codes[at..at + values.len()].as_chunks_mut::<BLOCK>().0;
                for ((values, codes), scale) in
                    values.as_chunks::<BLOCK>().0.iter().zip(codes).zip(&mut scales[at / BLOCK..])
                {
                    *scale = quantize_block(values, codes).to_bits();
                }
            }
        }
    }

    /// Widens the elements from `at` on.
    #[inline(always)]
    fn load(&self, at: usize, out: &mut [f32]) {
        match self {
            Elements::F16(bits) => bits[at..at + out.len()].reinterpret_cast::<f16>().convert_to_f32_slice(out),
            Elements::Q8_0 { codes, scales } => {
                let codes = codes[at..at + out.len()].as_chunks::<BLOCK>().0;
                for ((out, codes), scale) in
                    out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(codes).zip(&scales[at / BLOCK..])
                {
                    let scale = f16::from_bits(*scale).to_f32();
                    out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(*code));
                }
            }
        }
    }

    fn copy(&mut self, from: usize, to: usize, n: usize) {
        match self {
            Elements::F16(bits) => bits.copy_within(from..from + n, to),
            Elements::Q8_0 { codes, scales } => {
                codes.copy_within(from..from + n, to);
                scales.copy_within(from / BLOCK..(from + n) / BLOCK, to / BLOCK);
            }
        }
    }
}

/// One layer's cache, as attention reads it.
#[derive(Clone, Copy)]
pub(super) struct KvLayer<'a> {
    keys: &'a Elements,
    values: &'a Elements,
    kv_dim: usize,
    /// `[seq][position / PAGE]`.
    tables: &'a [Vec<u32>],
}

impl KvCache {
    /// A cache of zeros.
    ///
    /// # Errors
    /// The system has no memory for it.
    pub(super) fn new(config: &Config, layout: &KvLayout) -> Result<Self, RequestError> {
        let layer = |il: usize| {
            let n = layout.layer_elements(config, il);
            let (kv_dim, kind) = (config.kv_dim(il), layout.layer_kind[il]);
            let (k, v) = (layout.options.k, layout.options.v);
            Ok(LayerCache { keys: Elements::zero(k, n)?, values: Elements::zero(v, n)?, kv_dim, kind })
        };
        Ok(KvCache {
            layers: (0..config.n_layer()).map(layer).collect::<Result<_, _>>()?,
            tables: vec![vec![Vec::new(); layout.n_seq]; layout.kinds.len()],
        })
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

    /// Rounds one token's keys and values, `[kv_dim]` each, to the cache's types and keeps them.
    pub(super) fn store(&mut self, il: usize, token: &BatchToken, keys: &[f32], values: &[f32]) {
        let layer = &mut self.layers[il];
        let table = &self.tables[layer.kind][token.seq as usize];
        let at = row(table, token.pos as usize) * layer.kv_dim;
        layer.keys.store(at, keys);
        layer.values.store(at, values);
    }

    /// Copies pages in every layer of their kind.
    pub(super) fn copy_pages(&mut self, copies: &[PageCopy]) {
        for copy in copies {
            for layer in self.layers.iter_mut().filter(|l| l.kind == copy.kind) {
                let n = PAGE * layer.kv_dim;
                let (from, to) = (copy.from as usize * n, copy.to as usize * n);
                layer.keys.copy(from, to, n);
                layer.values.copy(from, to, n);
            }
        }
    }

    pub(super) fn layer(&self, il: usize) -> KvLayer<'_> {
        let layer = &self.layers[il];
        KvLayer { keys: &layer.keys, values: &layer.values, kv_dim: layer.kv_dim, tables: &self.tables[layer.kind] }
    }
}

/// Row of a layer's cache that holds a position.
#[inline(always)]
fn row(table: &[u32], pos: usize) -> usize {
    table[pos / PAGE] as usize * PAGE + pos % PAGE
}

impl KvLayer<'_> {
    /// Widens key and value of one head at one position, `[head_dim]` each.
    #[inline(always)]
    pub(super) fn load(&self, seq: usize, pos: usize, head: usize, key: &mut [f32], value: &mut [f32]) {
        let at = row(&self.tables[seq], pos) * self.kv_dim + head * key.len();
        self.keys.load(at, key);
        self.values.load(at, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        for ty in KvType::ALL {
            let n = usize::MAX / 64;
            // Memory that nobody looks at is not asked for.
            let refused = std::hint::black_box(Elements::zero(ty, n)).err();
            assert_eq!(refused, Some(RequestError::CacheMemory { bytes: ty.bytes(n as u64) }));
            assert!(Elements::zero(ty, 64).is_ok());
        }
    }
}
