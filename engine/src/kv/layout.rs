//! How large the cache of a model is: pages of each kind of layers, for all that its sequences could fill, or as many as
//! the bytes that are allowed hold. Refuses what doesn't hold one sequence. Called by `Engine`; both backends allocate
//! what it says.

use super::{KvOptions, MAX_PAGES, PAGE};
use crate::backend::Limits;
use crate::error::RequestError;
use crate::model::Config;

/// Sizes of the cache, fixed when the model is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Kinds of layers.
    pub kinds: Vec<KvKind>,
    /// Index into `kinds` for each layer.
    pub layer_kind: Vec<usize>,
    /// Entries of a sequence's table.
    pub pages_per_seq: usize,
    /// Sequences.
    pub n_seq: usize,
    /// Element types.
    pub options: KvOptions,
}

/// Layers that share a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvKind {
    /// Positions that a token attends to, itself included; `None` for all.
    pub window: Option<usize>,
    /// Pages in the pool.
    pub n_pages: usize,
    /// Pages that one sequence alone can need.
    pub pages_alone: usize,
}

impl KvLayout {
    /// The layout of a model within limits: every sequence can fill its context, windowed layers only their windows,
    /// unless [`Limits::kv_bytes`] allows less.
    ///
    /// # Errors
    /// The allowed bytes don't hold a single sequence, or there are more pages than [`MAX_PAGES`].
    pub fn new(config: &Config, limits: &Limits) -> Result<KvLayout, RequestError> {
        let pages_per_seq = limits.n_ctx.div_ceil(PAGE);
        let all = limits.n_seq.saturating_mul(pages_per_seq);
        let mut kinds: Vec<KvKind> = Vec::new();
        let mut layer_kind = Vec::with_capacity(config.n_layer());
        for layer in &config.layers {
            let found = kinds.iter().position(|k| k.window == layer.window);
            layer_kind.push(found.unwrap_or(kinds.len()));
            if found.is_none() {
                // Of a window, both ends may lie inside a page; a pass adds its tokens before any are given back.
                let live = |w: usize, n_seq: usize| {
                    n_seq.saturating_mul(w.div_ceil(PAGE) + 2).saturating_add(limits.n_batch.div_ceil(PAGE))
                };
                kinds.push(KvKind {
                    window: layer.window,
                    n_pages: layer.window.map_or(all, |w| live(w, limits.n_seq).min(all)),
                    pages_alone: layer.window.map_or(pages_per_seq, |w| live(w, 1).min(pages_per_seq)),
                });
            }
        }
        let mut layout = KvLayout { kinds, layer_kind, pages_per_seq, n_seq: limits.n_seq, options: limits.kv };
        if let Some(bytes) = limits.kv_bytes {
            layout.bound(config, bytes)?;
        }
        if pages_per_seq > MAX_PAGES || layout.kinds.iter().any(|k| k.n_pages > MAX_PAGES) {
            return Err(RequestError::CacheTooLarge { n_seq: limits.n_seq, n_ctx: limits.n_ctx });
        }
        Ok(layout)
    }

    /// Cuts the pools down to `bytes` in all: what one sequence needs first, then windows, then the rest.
    fn bound(&mut self, config: &Config, bytes: u64) -> Result<(), RequestError> {
        let page_bytes: Vec<u64> = (0..self.kinds.len())
            .map(|kind| {
                let layers = (0..config.n_layer()).filter(|&il| self.layer_kind[il] == kind);
                layers.map(|il| self.options.bytes((PAGE * config.kv_dim(il)) as u64)).sum()
            })
            .collect();
        let of_one = self.kinds.iter().zip(&page_bytes).map(|(k, b)| (k.pages_alone as u64).saturating_mul(*b));
        let least = of_one.fold(0, u64::saturating_add);
        let mut left = bytes.checked_sub(least).ok_or(RequestError::CacheTooSmall { bytes, least })?;
        let mut order: Vec<usize> = (0..self.kinds.len()).collect();
        order.sort_by_key(|&kind| self.kinds[kind].window.unwrap_or(usize::MAX));
        for kind in order {
            let k = &mut self.kinds[kind];
            let more = (left / page_bytes[kind]).min((k.n_pages - k.pages_alone) as u64);
            left -= more * page_bytes[kind];
            k.n_pages = k.pages_alone + more as usize;
        }
        Ok(())
    }

    /// Elements of the keys (or the values) of layer `il`.
    pub fn layer_elements(&self, config: &Config, il: usize) -> usize {
        self.kinds[self.layer_kind[il]].n_pages * PAGE * config.kv_dim(il)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{Plan, SynthOptions, Target};

    #[test]
    fn caches_whose_pages_cannot_be_named_are_refused() {
        for name in ["qwen3-0.6b", "gpt-oss-20b"] {
            let target = Target::find(name).expect("a known model");
            let header = Plan::new(&SynthOptions::new(target), None).expect("a plan").header();
            let config = Config::from_header(&header).expect("a sound one");
            let kv = KvOptions::default();
            let layout = |n_seq, n_ctx, kv_bytes| {
                KvLayout::new(&config, &Limits { n_batch: 512, n_outputs: 1, n_seq, n_ctx, kv, kv_bytes })
            };
            let longest = MAX_PAGES * PAGE;
            assert!(layout(1, longest, None).is_ok() && layout(8, longest / 16, None).is_ok(), "{name}");
            for (n_seq, n_ctx) in [(1, longest + 1), (2, longest), (1 << 40, 1 << 40), (1, usize::MAX)] {
                let refused = layout(n_seq, n_ctx, None).expect_err("too large");
                assert_eq!(refused, RequestError::CacheTooLarge { n_seq, n_ctx });
                let refused = layout(n_seq, n_ctx, Some(1 << 30)).expect_err("too small");
                assert!(matches!(refused, RequestError::CacheTooSmall { bytes: 0x4000_0000, .. }), "{name}: {refused}");
            }
        }
    }
}
