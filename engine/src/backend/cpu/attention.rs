//! Causal attention over the key/value cache with an online softmax (FlashAttention, arXiv 2205.14135): keys and
//! values are widened to f32 a tile at a time, once for all query heads and tokens that share them.

use super::kv::KvLayer;
use super::output::Output;
use super::simd::{SimdLevel, add_scaled, dot, exp, vectorised};
use crate::backend::BatchToken;
use rayon::prelude::*;

/// Positions widened at once.
const TILE_POSITIONS: usize = 64;
/// Most consecutive tokens of one sequence that share a tile.
const TILE_TOKENS: usize = 16;

/// Head counts, width and what a layer's heads see.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) n_head: usize,
    pub(super) n_head_kv: usize,
    pub(super) head_dim: usize,
    /// Positions that a token attends to, itself included.
    pub(super) window: Option<usize>,
    /// `[n_head]`: one more logit per head, without a value.
    pub(super) sinks: Option<&'a [f32]>,
}

impl Heads<'_> {
    /// First position that a token at `pos` attends to.
    #[inline(always)]
    fn first_visible(&self, pos: usize) -> usize {
        self.window.map_or(0, |w| (pos + 1).saturating_sub(w))
    }
}

/// `out[t] = softmax(q[t] · Kᵀ / √head_dim, sink) · V` over the positions up to `pos` of each token's sequence.
///
/// `q`: `[n_tokens, n_head · head_dim]`.
pub(super) fn attention(
    level: SimdLevel,
    heads: Heads<'_>,
    batch: &[BatchToken],
    q: &[f32],
    kv: KvLayer<'_>,
    out: &Output<'_>,
) {
    let runs = runs_of_one_sequence(batch);
    (0..runs.len() * heads.n_head_kv).into_par_iter().for_each_init(
        || Scratch::new(heads),
        |scratch, unit| {
            let run = runs[unit / heads.n_head_kv].clone();
            let head_kv = unit % heads.n_head_kv;
            vectorised!(level, || attend(heads, &batch[run.clone()], run.start, head_kv, q, kv, scratch, out));
        },
    );
}

/// Ranges of the batch with consecutive positions of one sequence, at most [`TILE_TOKENS`] long.
fn runs_of_one_sequence(batch: &[BatchToken]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (t, token) in batch.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if batch[run.start].seq == token.seq && run.len() < TILE_TOKENS => run.end = t + 1,
            _ => runs.push(t..t + 1),
        }
    }
    runs
}

/// What a thread needs for its units.
struct Scratch {
    /// `[TILE_POSITIONS, head_dim]` each.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Running maximum, denominator and weighted values per (token, query head of the group).
    max: Vec<f32>,
    sum: Vec<f32>,
    acc: Vec<f32>,
    scores: Vec<f32>,
}

impl Scratch {
    fn new(heads: Heads<'_>) -> Self {
        let states = TILE_TOKENS * heads.n_head / heads.n_head_kv;
        let tile = TILE_POSITIONS * heads.head_dim;
        Scratch {
            keys: vec![0.0; tile],
            values: vec![0.0; tile],
            max: vec![0.0; states],
            sum: vec![0.0; states],
            acc: vec![0.0; states * heads.head_dim],
            scores: vec![0.0; TILE_POSITIONS],
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one call site; a struct would only repeat the names")]
fn attend(
    heads: Heads<'_>,
    tokens: &[BatchToken],
    first_row: usize,
    head_kv: usize,
    q: &[f32],
    kv: KvLayer<'_>,
    s: &mut Scratch,
    out: &Output<'_>,
) {
    let Heads { n_head, n_head_kv, head_dim, .. } = heads;
    let group = n_head / n_head_kv;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let query = |i: usize| {
        let (t, h) = (i / group, head_kv * group + i % group);
        &q[((first_row + t) * n_head + h) * head_dim..][..head_dim]
    };
    let n_states = tokens.len() * group;
    for state in 0..n_states {
        // A sink is a score that was seen before any position.
        let sink = heads.sinks.map(|sinks| sinks[head_kv * group + state % group]);
        s.max[state] = sink.unwrap_or(f32::NEG_INFINITY);
        s.sum[state] = if sink.is_some() { 1.0 } else { 0.0 };
    }
    s.acc[..n_states * head_dim].fill(0.0);
    let last = tokens.iter().map(|t| t.pos as usize).max().unwrap_or(0);
    let first = heads.first_visible(tokens.iter().map(|t| t.pos as usize).min().unwrap_or(0));
    // Tiles begin at the same positions whichever tokens are computed together: their sums round alike.
    for start in (first / TILE_POSITIONS * TILE_POSITIONS..=last).step_by(TILE_POSITIONS) {
        let n = TILE_POSITIONS.min(last + 1 - start);
        // What lies before the first visible position may be gone from the cache.
        for i in first.saturating_sub(start)..n {
            let range = i * head_dim..(i + 1) * head_dim;
            let (key, value) = (&mut s.keys[range.clone()], &mut s.values[range]);
            kv.load(tokens[0].seq as usize, start + i, head_kv, key, value);
        }
        for state in 0..n_states {
            let pos = tokens[state / group].pos as usize;
            // What this token sees of the tile.
            let hidden = heads.first_visible(pos).saturating_sub(start);
            if pos < start || hidden >= n {
                continue;
            }
            let visible = n.min(pos + 1 - start);
            let query = query(state);
            let scores = &mut s.scores[..visible - hidden];
            let mut largest = s.max[state];
            for (score, key) in scores.iter_mut().zip(s.keys.chunks_exact(head_dim).skip(hidden)) {
                *score = dot(query, key) * scale;
                largest = largest.max(*score);
            }
            let acc = &mut s.acc[state * head_dim..(state + 1) * head_dim];
            let shrink = exp(s.max[state] - largest);
            acc.iter_mut().for_each(|a| *a *= shrink);
            scores.iter_mut().for_each(|v| *v = exp(*v - largest));
            s.sum[state] = s.sum[state] * shrink + scores.iter().sum::<f32>();
            s.max[state] = largest;
            for (weight, value) in scores.iter().zip(s.values.chunks_exact(head_dim).skip(hidden)) {
                add_scaled(acc, *weight, value);
            }
        }
    }
    for state in 0..n_states {
        let acc = &mut s.acc[state * head_dim..(state + 1) * head_dim];
        let inverse = 1.0 / s.sum[state];
        acc.iter_mut().for_each(|a| *a *= inverse);
        out.put(first_row + state / group, (head_kv * group + state % group) * head_dim, acc);
    }
}
