//! How a pass's tokens are shared out among the kernels for attention: sequences with a few query rows (decoded tokens,
//! short drafts) get a workgroup per token, those with many are cut into tiles that share what they read of the cache.
//! Made once per pass for each number of query heads that share a key/value head, by `state`.

use std::ops::Range;

use crate::backend::vulkan::attention_tiles::MIN_ROWS;
use crate::backend::vulkan::{Region, Tuning};

/// Neighbouring query rows of one sequence. Row `token · group + head` is a token with one of the `group` query heads
/// that share a key/value head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueryTile {
    /// Counted from the first token of its span.
    first_row: u32,
    n_rows: u32,
    /// Positions of the first and of the last row's token.
    first_pos: u32,
    last_pos: u32,
}

impl QueryTile {
    /// Positions that its rows see.
    fn n_positions(&self, window: Option<usize>) -> u64 {
        let first = window.map_or(0, |w| (u64::from(self.first_pos) + 1).saturating_sub(w as u64));
        u64::from(self.last_pos) + 1 - first
    }
}

/// Neighbouring tokens that one kernel computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Its tokens in the batch.
    pub tokens: Range<usize>,
    /// Its tiles; none: each token is computed by itself.
    pub tiles: Range<usize>,
}

/// The tokens of a pass.
#[derive(Clone, Debug, Default)]
pub struct Work {
    group: usize,
    positions: Vec<u32>,
    spans: Vec<Span>,
    tiles: Vec<QueryTile>,
}

impl Work {
    /// Bytes that the tiles of any batch take on the device.
    pub fn bytes(n_batch: usize, group: usize) -> u64 {
        // A sequence's last tile may be a short one.
        ((n_batch * group).div_ceil(MIN_ROWS as usize) + n_batch) as u64 * 8
    }

    /// Shares out the tokens with these sequences and positions, where `group` query heads of `head_dim` elements share
    /// a key/value head.
    pub fn of(tuning: &Tuning, group: usize, head_dim: usize, places: &[(u32, u32)]) -> Work {
        let tile_rows = tuning.prompt_kernel(head_dim).map(|kernel| kernel.rows() as usize);
        let mut work = Work { group, positions: places.iter().map(|p| p.1).collect(), ..Work::default() };
        let mut first = 0;
        for run in places.chunk_by(|a, b| a.0 == b.0 && a.1 + 1 == b.1) {
            let rows = tile_rows.filter(|_| run.len() > 1 && run.len() * group >= tuning.prompt_from);
            work.add_run(first..first + run.len(), rows);
            first += run.len();
        }
        work
    }

    /// Adds tokens with consecutive positions of one sequence, in tiles of `rows` or without tiles.
    fn add_run(&mut self, tokens: Range<usize>, rows: Option<usize>) {
        match self.spans.last_mut() {
            Some(span) if span.tiles.is_empty() == rows.is_none() => span.tokens.end = tokens.end,
            _ => {
                let n_tiles = self.tiles.len();
                self.spans.push(Span { tokens: tokens.clone(), tiles: n_tiles..n_tiles });
            }
        }
        let (Some(rows), Some(span)) = (rows, self.spans.last_mut()) else { return };
        let offset = (tokens.start - span.tokens.start) * self.group;
        let n_rows = tokens.len() * self.group;
        for row in (0..n_rows).step_by(rows) {
            let n = rows.min(n_rows - row);
            let position = |row: usize| self.positions[tokens.start + row / self.group];
            self.tiles.push(QueryTile {
                first_row: (offset + row) as u32,
                n_rows: n as u32,
                first_pos: position(row),
                last_pos: position(row + n - 1),
            });
        }
        span.tiles.end = self.tiles.len();
    }

    /// Writes the tiles where the kernels find them.
    pub fn write(&self, region: &mut Region) {
        let words: Vec<[u32; 2]> = self.tiles.iter().map(|t| [t.first_row, t.n_rows]).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        region.write()[..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn group(&self) -> usize {
        self.group
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Positions that the tokens of a span see, in all, and the most that one of them does.
    pub(super) fn seen(&self, span: &Span, window: Option<usize>) -> (u64, u64) {
        let visible = |&pos: &u32| (u64::from(pos) + 1).min(window.map_or(u64::MAX, |w| w as u64));
        let all = self.positions[span.tokens.clone()].iter().map(visible);
        all.fold((0, 0), |(sum, most), n| (sum + n, most.max(n)))
    }

    /// Positions that the tiles of a span read, in all, and the most that one of them does.
    pub(super) fn read_by_tiles(&self, span: &Span, window: Option<usize>) -> (u64, u64) {
        let all = self.tiles[span.tiles.clone()].iter().map(|t| t.n_positions(window));
        all.fold((0, 0), |(sum, most), n| (sum + n, most.max(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning() -> Tuning {
        Tuning { prompt_from: 16, ..Tuning::for_tests() }
    }

    #[test]
    fn sequences_with_many_rows_are_cut_into_tiles_and_others_are_not() {
        let rows = tuning().prompt_kernel(64).expect("a tile").rows() as usize;
        // Two decoded tokens, a prompt of 40 tokens behind 5 others, a draft of 3.
        let mut places = vec![(4, 17), (2, 0)];
        places.extend((5..45).map(|pos| (7, pos)));
        places.extend((90..93).map(|pos| (1, pos)));
        let work = Work::of(&tuning(), 3, 64, &places);
        let spans: Vec<Range<usize>> = work.spans().iter().map(|s| s.tokens.clone()).collect();
        assert_eq!(spans, [0..2, 2..42, 42..45]);
        assert!(work.spans[0].tiles.is_empty() && work.spans[2].tiles.is_empty());
        assert_eq!(work.spans[1].tiles.len(), (40 * 3usize).div_ceil(rows));
        assert_eq!(work.seen(&work.spans[0], None), (18 + 1, 18));
        assert_eq!(work.seen(&work.spans[2], Some(10)), (30, 10));
        // Tiles cover each row once; they read what their first and last rows see.
        let mut next = 0;
        for tile in &work.tiles {
            assert_eq!(tile.first_row, next);
            next += tile.n_rows;
            assert_eq!(tile.first_pos, 5 + tile.first_row / 3);
            assert_eq!(tile.last_pos, 5 + (next - 1) / 3);
        }
        assert_eq!(next, 120);
        assert_eq!(work.read_by_tiles(&work.spans[1], None).1, 45);
        assert_eq!(work.tiles[0].n_positions(Some(4)), u64::from(work.tiles[0].last_pos) + 1 - 2);
    }

    #[test]
    fn tiles_of_neighbouring_prompts_go_together_and_fit_the_memory_set_aside() {
        // Neighbours in the batch, but not in a sequence.
        let places: Vec<(u32, u32)> = (0..30u32).flat_map(|seq| (0..17).map(move |pos| (seq, pos))).collect();
        for group in [1, 2, 7, 8, 71] {
            let work = Work::of(&tuning(), group, 64, &places);
            assert_eq!(work.spans().len(), 1);
            let rows: u32 = work.tiles.iter().map(|t| t.n_rows).sum();
            assert_eq!(rows as usize, places.len() * group);
            assert!(work.tiles.len() as u64 * 8 <= Work::bytes(places.len(), group), "group {group}");
            assert!(work.tiles.iter().all(|t| t.first_pos <= t.last_pos), "each is of one sequence");
        }
        assert!(Work::of(&tuning(), 1, 4096, &places).tiles.is_empty(), "no tile has room for such a head");
    }
}
