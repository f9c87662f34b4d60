//! Which pages of the key/value cache belong to which sequence. A page holds [`PAGE`] consecutive positions of one
//! sequence, for all layers of one kind: those that attend to everything, and those with a sliding window of some
//! width. Pages are counted references: sequences that share a prefix share its pages, and the first write into a
//! shared page gives the writer a copy of its own. What has left a layer's window goes back to the pool, so a
//! windowed layer holds a ring of few pages however long its sequence grows. A prefix can be parked: its pages stay
//! while nobody else needs them, so that a later sequence need not compute it again. Where the cache is bounded to
//! less than all sequences could fill, [`KvPages::make_room`] says whether a pass fits; who makes way is its caller's
//! choice.
//!
//! Owns numbers only; the bytes lie in the backends, which see tables through [`KvPages::table`] at the start of each
//! pass. Called by `Engine`.

mod layout;
mod types;

use crate::backend::BatchToken;
use crate::error::RequestError;
pub use layout::{KvKind, KvLayout};
use std::collections::VecDeque;
pub use types::{BLOCK, KvOptions, KvType, quantize_block};

/// Positions per page. Half a page of a sequence is empty on average, so small; a row is read by its own address, so that
/// pages need not be long to be fast.
pub const PAGE: usize = 8;

/// Table entry of a page that was given back or never taken.
pub const NO_PAGE: u32 = u32::MAX;

/// Most pages of a kind, so that positions too are counted in 32 bits.
pub const MAX_PAGES: usize = (1 << 32) / PAGE - 1;

/// A page to be copied, in every layer of its kind, before the next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// Index into [`KvLayout::kinds`].
    pub kind: usize,
    /// Page to read.
    pub from: u32,
    /// Page to write.
    pub to: u32,
}

/// The page tables of all sequences.
pub struct KvPages {
    layout: KvLayout,
    /// One per kind.
    pools: Vec<Pool>,
    /// One per sequence.
    tables: Vec<Table>,
    /// Prefixes without a sequence, the longest unused first.
    parked: VecDeque<(ParkedId, Table)>,
    next_parked: u64,
}

/// How full the pages in use are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Pages that somebody holds, over all kinds.
    pub n_pages: usize,
    /// Positions stored in them.
    pub n_positions: usize,
}

impl Occupancy {
    /// Share of the pages in use that holds nothing, 0 ..= 1.
    pub fn waste(self) -> f64 {
        if self.n_pages == 0 { 0.0 } else { 1.0 - self.n_positions as f64 / (self.n_pages * PAGE) as f64 }
    }
}

/// Names a parked prefix for as long as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedId(u64);

/// Most prefixes that are kept.
const MAX_PARKED: usize = 16;

/// Takes memory for pages that were in use once, not for those that a long context may need one day.
struct Pool {
    n_pages: usize,
    /// Pages that were given back.
    free: Vec<u32>,
    /// Tables that hold the page, for each that was ever taken: the first ones.
    refs: Vec<u32>,
}

#[derive(Clone, Default)]
struct Table {
    /// Positions stored.
    n_pos: usize,
    /// `[kind][position / PAGE]`.
    pages: Vec<Vec<u32>>,
}

impl Pool {
    fn n_free(&self) -> usize {
        self.free.len() + self.n_pages - self.refs.len()
    }

    fn take(&mut self) -> u32 {
        if let Some(page) = self.free.pop() {
            self.refs[page as usize] = 1;
            return page;
        }
        assert!(self.refs.len() < self.n_pages, "a free page: `make_room` has counted them");
        self.refs.push(1);
        (self.refs.len() - 1) as u32
    }

    /// The same pages, held once more.
    fn share(&mut self, pages: &[u32]) -> Vec<u32> {
        pages.iter().filter(|&&p| p != NO_PAGE).for_each(|&p| self.refs[p as usize] += 1);
        pages.to_vec()
    }

    fn drop_ref(&mut self, page: u32) {
        let refs = &mut self.refs[page as usize];
        *refs -= 1;
        if *refs == 0 {
            self.free.push(page);
        }
    }
}

impl KvPages {
    /// Empty tables.
    pub fn new(layout: KvLayout) -> KvPages {
        let pool = |k: &KvKind| Pool { n_pages: k.n_pages, free: Vec::new(), refs: Vec::new() };
        let table = Table { n_pos: 0, pages: vec![Vec::new(); layout.kinds.len()] };
        KvPages {
            pools: layout.kinds.iter().map(pool).collect(),
            tables: vec![table; layout.n_seq],
            layout,
            parked: VecDeque::new(),
            next_parked: 0,
        }
    }

    /// Sizes.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The pages of sequence `seq` for layers of `kind`, by position / [`PAGE`]; [`NO_PAGE`] where the window has
    /// passed. Positions that the next pass stores are included once [`Self::prepare`] has seen it.
    pub fn table(&self, kind: usize, seq: usize) -> &[u32] {
        &self.tables[seq].pages[kind]
    }

    /// Positions of `seq` that are stored.
    pub fn n_pos(&self, seq: usize) -> usize {
        self.tables[seq].n_pos
    }

    /// Pages in use, over all kinds.
    pub fn n_used(&self) -> usize {
        self.pools.iter().map(|p| p.n_pages - p.n_free()).sum()
    }

    /// Pages in use and positions stored in them: the rest of the pages is waste.
    pub fn occupancy(&self) -> Occupancy {
        let mut filled: Vec<Vec<usize>> = self.pools.iter().map(|p| vec![0; p.refs.len()]).collect();
        for table in self.tables.iter().chain(self.parked.iter().map(|(_, table)| table)) {
            for (filled, pages) in filled.iter_mut().zip(&table.pages) {
                for (i, &page) in pages.iter().enumerate().filter(|(_, page)| **page != NO_PAGE) {
                    let n = &mut filled[page as usize];
                    *n = (*n).max(PAGE.min(table.n_pos - i * PAGE));
                }
            }
        }
        Occupancy { n_pages: self.n_used(), n_positions: filled.iter().flatten().sum() }
    }

    /// Whether less than all sequences' contexts fit at once.
    pub fn is_bounded(&self) -> bool {
        let full = |k: &KvKind| k.window.is_some() || k.n_pages >= self.layout.n_seq * self.layout.pages_per_seq;
        !self.layout.kinds.iter().all(full)
    }

    /// Makes room for a pass, by giving back what windows have passed and, as far as needed, parked prefixes. False
    /// where pages lack even so: then sequences have to be given up first.
    ///
    /// # Errors
    /// A sequence starts over at a position whose window was given back: see [`Self::prepare`].
    pub fn make_room(&mut self, batch: &[BatchToken]) -> Result<bool, RequestError> {
        (0..self.tables.len()).for_each(|seq| self.trim(seq));
        let runs = || batch.chunk_by(|a, b| a.seq == b.seq);
        for first in runs().map(|run| run[0]) {
            let (seq, pos) = (first.seq as usize, first.pos as usize);
            if pos < self.tables[seq].n_pos {
                if !self.is_whole(&self.tables[seq], pos) {
                    return Err(RequestError::WindowPassed { position: pos, n_stored: self.tables[seq].n_pos });
                }
                self.truncate(seq, pos);
            }
        }
        loop {
            let mut lacks = false;
            for (kind, pool) in self.pools.iter().enumerate() {
                let needed = |run: &[BatchToken]| {
                    let pages = &self.tables[run[0].seq as usize].pages[kind];
                    let new = (run[run.len() - 1].pos as usize / PAGE + 1).saturating_sub(pages.len());
                    let shared = pages.get(run[0].pos as usize / PAGE).is_some_and(|&p| pool.refs[p as usize] > 1);
                    new + usize::from(shared)
                };
                lacks |= runs().map(needed).sum::<usize>() > pool.n_free();
            }
            if !lacks {
                return Ok(true);
            }
            if !self.forget_oldest() {
                return Ok(false);
            }
        }
    }

    /// Whether `seq` could grow to `n_pos` positions and leave `spare` pages of each kind free, once parked prefixes
    /// have made way.
    pub fn could_hold(&mut self, seq: usize, n_pos: usize, spare: usize) -> bool {
        loop {
            let table = &self.tables[seq];
            let fits = |((kind, pool), pages): ((&KvKind, &Pool), &Vec<u32>)| {
                let held = pages.iter().filter(|&&p| p != NO_PAGE).count();
                let last_is_shared =
                    !table.n_pos.is_multiple_of(PAGE) && pages.last().is_some_and(|&p| pool.refs[p as usize] > 1);
                let needed = n_pos.div_ceil(PAGE).min(kind.pages_alone).saturating_sub(held);
                // Windows of neighbours don't grow.
                let spare = if kind.window.is_none() { spare } else { 0 };
                needed + usize::from(last_is_shared) + spare <= pool.n_free()
            };
            if self.layout.kinds.iter().zip(&self.pools).zip(&table.pages).all(fits) {
                return true;
            }
            if !self.forget_oldest() {
                return false;
            }
        }
    }

    /// Gives each token of a pass its place, in pages that nobody shares. A token below a sequence's end starts the
    /// sequence over from there. Gives the pages whose contents must be copied first.
    ///
    /// # Errors
    /// Pages lack, or a sequence starts over behind its windows: it has to be computed again from its beginning. No
    /// place was given.
    ///
    /// # Panics
    /// If a sequence leaves a gap.
    pub fn prepare(&mut self, batch: &[BatchToken]) -> Result<Vec<PageCopy>, RequestError> {
        if !self.make_room(batch)? {
            return Err(RequestError::CacheFull { n_pages: self.layout.kinds.iter().map(|k| k.n_pages).sum() });
        }
        let mut copies = Vec::new();
        for token in batch {
            let (seq, pos) = (token.seq as usize, token.pos as usize);
            let table = &mut self.tables[seq];
            assert_eq!(pos, table.n_pos, "the next position of sequence {seq}");
            for (kind, (pool, pages)) in self.pools.iter_mut().zip(&mut table.pages).enumerate() {
                match pages.get_mut(pos / PAGE) {
                    None => pages.push(pool.take()),
                    Some(page) if pool.refs[*page as usize] > 1 => {
                        let own = pool.take();
                        copies.push(PageCopy { kind, from: *page, to: own });
                        pool.drop_ref(*page);
                        *page = own;
                    }
                    Some(_) => {}
                }
            }
            table.n_pos = pos + 1;
        }
        Ok(copies)
    }

    /// Lets `to` begin with the first `n_pos` positions of `from`, in the same pages; what `to` had is given back.
    /// False, and nothing changed, where a window of `from` has passed them already.
    pub fn share(&mut self, from: usize, to: usize, n_pos: usize) -> bool {
        assert!(from != to, "sequence {from} can't share with itself");
        let source = self.tables[from].clone();
        self.begin_with(&source, to, n_pos)
    }

    /// Keeps the first `n_pos` positions of `seq`, in the same pages, until they are needed for something else.
    ///
    /// # Panics
    /// If a window has passed them: whoever takes them over could not go on.
    pub fn park(&mut self, seq: usize, n_pos: usize) -> ParkedId {
        if self.parked.len() == MAX_PARKED {
            self.forget_oldest();
        }
        let source = &self.tables[seq];
        assert!(self.is_whole(source, n_pos), "a window of sequence {seq} has passed position {n_pos}");
        let mut table = Table { n_pos, pages: Vec::with_capacity(source.pages.len()) };
        for (pool, pages) in self.pools.iter_mut().zip(&source.pages) {
            table.pages.push(pool.share(&pages[..n_pos.div_ceil(PAGE)]));
        }
        let id = ParkedId(self.next_parked);
        self.next_parked += 1;
        self.parked.push_back((id, table));
        id
    }

    /// Whether a parked prefix is still there.
    pub fn is_parked(&self, id: ParkedId) -> bool {
        self.parked.iter().any(|(other, _)| *other == id)
    }

    /// Lets `to` begin with the first `n_pos` positions of a parked prefix. False, and nothing changed, where it is
    /// gone or a window of it has passed them.
    pub fn adopt(&mut self, id: ParkedId, to: usize, n_pos: usize) -> bool {
        let Some(at) = self.parked.iter().position(|(other, _)| *other == id) else { return false };
        let entry = self.parked.remove(at).expect("just found");
        let done = self.begin_with(&entry.1, to, n_pos);
        self.parked.push_back(entry);
        done
    }

    /// Gives back the prefix that nobody has asked for the longest; false where there is none.
    fn forget_oldest(&mut self) -> bool {
        let Some((_, table)) = self.parked.pop_front() else { return false };
        for (pool, pages) in self.pools.iter_mut().zip(table.pages) {
            pages.into_iter().filter(|&p| p != NO_PAGE).for_each(|p| pool.drop_ref(p));
        }
        true
    }

    /// Whether a sequence could go on at position `n_pos` of `table`.
    fn is_whole(&self, table: &Table, n_pos: usize) -> bool {
        let firsts = self.layout.kinds.iter().map(|k| first_page(k.window, n_pos));
        let whole =
            |(pages, first): (&Vec<u32>, usize)| pages[first..n_pos.div_ceil(PAGE)].iter().all(|&p| p != NO_PAGE);
        n_pos <= table.n_pos && table.pages.iter().zip(firsts).all(whole)
    }

    fn begin_with(&mut self, source: &Table, to: usize, n_pos: usize) -> bool {
        if !self.is_whole(source, n_pos) {
            return false;
        }
        self.truncate(to, 0);
        let table = &mut self.tables[to];
        table.n_pos = n_pos;
        for ((pool, pages), source) in self.pools.iter_mut().zip(&mut table.pages).zip(&source.pages) {
            *pages = pool.share(&source[..n_pos.div_ceil(PAGE)]);
        }
        true
    }

    /// Gives back what `seq` holds from position `n_pos` on.
    ///
    /// # Panics
    /// If a window has passed the positions before `n_pos`: the sequence could not go on from there.
    pub fn truncate(&mut self, seq: usize, n_pos: usize) {
        let table = &mut self.tables[seq];
        table.n_pos = table.n_pos.min(n_pos);
        for ((kind, pool), pages) in self.layout.kinds.iter().zip(&mut self.pools).zip(&mut table.pages) {
            let keep = n_pos.div_ceil(PAGE).min(pages.len());
            pages.drain(keep..).filter(|&p| p != NO_PAGE).for_each(|p| pool.drop_ref(p));
            let first = first_page(kind.window, n_pos).min(keep);
            assert!(pages[first..].iter().all(|&p| p != NO_PAGE), "sequence {seq} can't start over at {n_pos}");
        }
    }

    /// Gives back what a sequence's windows have passed.
    fn trim(&mut self, seq: usize) {
        let table = &mut self.tables[seq];
        for ((kind, pool), pages) in self.layout.kinds.iter().zip(&mut self.pools).zip(&mut table.pages) {
            let first = first_page(kind.window, table.n_pos).min(pages.len());
            for page in pages[..first].iter_mut().rev().take_while(|p| **p != NO_PAGE) {
                pool.drop_ref(std::mem::replace(page, NO_PAGE));
            }
        }
    }
}

/// First page that the token at position `pos` attends to.
fn first_page(window: Option<usize>, pos: usize) -> usize {
    window.map_or(0, |w| (pos + 1).saturating_sub(w) / PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(windows: &[Option<usize>], n_seq: usize, n_ctx: usize, n_batch: usize) -> KvLayout {
        let all = n_seq * n_ctx.div_ceil(PAGE);
        let live = |w: usize| (n_seq * (w.div_ceil(PAGE) + 2) + n_batch.div_ceil(PAGE)).min(all);
        let kind =
            |&window: &Option<usize>| KvKind { window, n_pages: window.map_or(all, live), pages_alone: all / n_seq };
        let kinds = windows.iter().map(kind).collect();
        let (layer_kind, options) = ((0..windows.len()).collect(), KvOptions::default());
        KvLayout { kinds, layer_kind, pages_per_seq: n_ctx.div_ceil(PAGE), n_seq, options }
    }

    fn tokens(seq: usize, range: std::ops::Range<usize>) -> Vec<BatchToken> {
        range.map(|pos| BatchToken { token: 0, seq: seq as u32, pos: pos as u32, output: false }).collect()
    }

    /// Random passes, shares and releases beside a plain model of what each position must hold: every visible position
    /// has the page that was written for it, no page has two writers, and everything comes back in the end.
    #[test]
    fn random_use_keeps_every_visible_position_and_leaks_nothing() {
        let mut state = 7u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let (n_seq, n_ctx, n_batch) = (4, 600, 96);
        let windows = [None, Some(70)];
        let mut kv = KvPages::new(layout(&windows, n_seq, n_ctx, n_batch));
        // What stands in each page: `contents[kind][page][pos % PAGE]` and what each sequence should read.
        let mut contents: Vec<Vec<[u64; PAGE]>> =
            kv.layout().kinds.iter().map(|k| vec![[0; PAGE]; k.n_pages]).collect();
        let mut want: Vec<Vec<u64>> = vec![Vec::new(); n_seq];
        let mut parked: Vec<(ParkedId, Vec<u64>)> = Vec::new();
        let (mut stamp, mut n_shared, mut n_copied, mut n_adopted, mut n_forgotten) = (0, 0, 0, 0, 0);
        for _ in 0..6000 {
            match draw(10) {
                0 => {
                    let seq = draw(n_seq);
                    kv.truncate(seq, 0);
                    want[seq].clear();
                }
                1 => {
                    let (from, to) = (draw(n_seq), draw(n_seq));
                    let n = draw(want[from].len() + 1);
                    if from != to && kv.share(from, to, n) {
                        n_shared += 1;
                        want[to] = want[from][..n].to_vec();
                    }
                }
                2 => {
                    let seq = draw(n_seq);
                    let n = want[seq].len();
                    parked.push((kv.park(seq, n), want[seq].clone()));
                }
                3 if !parked.is_empty() => {
                    // One of the latest, most of which are still there.
                    let (id, tokens) = &parked[parked.len() - 1 - draw(parked.len().min(4))];
                    let (to, n) = (draw(n_seq), tokens.len() - draw(tokens.len().min(20) + 1));
                    if kv.adopt(*id, to, n) {
                        n_adopted += 1;
                        want[to] = tokens[..n].to_vec();
                    } else if !kv.is_parked(*id) {
                        n_forgotten += 1;
                    }
                }
                _ => {
                    let (mut batch, mut room) = (Vec::new(), n_batch);
                    for (seq, want) in want.iter().enumerate() {
                        let n = draw(40).min(room).min(n_ctx - want.len());
                        room -= n;
                        batch.extend(tokens(seq, want.len()..want.len() + n));
                    }
                    for copy in kv.prepare(&batch).expect("room for all") {
                        n_copied += 1;
                        contents[copy.kind][copy.to as usize] = contents[copy.kind][copy.from as usize];
                    }
                    for token in &batch {
                        stamp += 1;
                        want[token.seq as usize].push(stamp);
                        for (kind, contents) in contents.iter_mut().enumerate() {
                            let page = kv.table(kind, token.seq as usize)[token.pos as usize / PAGE];
                            contents[page as usize][token.pos as usize % PAGE] = stamp;
                        }
                    }
                    for token in &batch {
                        for (kind, window) in windows.iter().enumerate() {
                            let (seq, last) = (token.seq as usize, token.pos as usize);
                            for pos in window.map_or(0, |w| (last + 1).saturating_sub(w))..=last {
                                let page = kv.table(kind, seq)[pos / PAGE];
                                assert_eq!(contents[kind][page as usize][pos % PAGE], want[seq][pos]);
                            }
                        }
                    }
                }
            }
        }
        assert!(n_shared > 50 && n_copied > 50, "{n_shared} shares, {n_copied} copies");
        assert!(n_adopted > 50 && n_forgotten > 50, "{n_adopted} adopted, {n_forgotten} forgotten");
        (0..n_seq).for_each(|seq| kv.truncate(seq, 0));
        while kv.forget_oldest() {}
        assert_eq!(kv.n_used(), 0);
    }

    /// Fewer pages than the sequences could fill: a pass that fits is carried out, one that doesn't changes nothing, and
    /// a sequence alone always fits.
    #[test]
    fn a_bounded_cache_refuses_what_does_not_fit_and_loses_no_page() {
        let mut state = 11u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let (n_seq, n_ctx) = (5, 400);
        let mut layout = layout(&[None, Some(70)], n_seq, n_ctx, 64);
        for kind in &mut layout.kinds {
            kind.n_pages = kind.pages_alone.min(kind.n_pages) + 4;
        }
        let mut kv = KvPages::new(layout);
        assert!(kv.is_bounded());
        let (mut n_refused, mut n_done) = (0, 0);
        for _ in 0..4000 {
            match draw(12) {
                0 => kv.truncate(draw(n_seq), 0),
                1 => {
                    let (from, to) = (draw(n_seq), draw(n_seq));
                    let n = draw(kv.n_pos(from) + 1);
                    if from != to {
                        kv.share(from, to, n);
                    }
                }
                2 => {
                    let seq = draw(n_seq);
                    kv.park(seq, kv.n_pos(seq));
                }
                _ => {
                    let mut batch = Vec::new();
                    for seq in 0..n_seq {
                        let n = draw(40).min(64 - batch.len()).min(n_ctx - kv.n_pos(seq));
                        batch.extend(tokens(seq, kv.n_pos(seq)..kv.n_pos(seq) + n));
                    }
                    let before: Vec<usize> = (0..n_seq).map(|seq| kv.n_pos(seq)).collect();
                    match kv.prepare(&batch) {
                        Ok(_) => n_done += 1,
                        Err(RequestError::CacheFull { .. }) => {
                            n_refused += 1;
                            assert_eq!(before, (0..n_seq).map(|seq| kv.n_pos(seq)).collect::<Vec<_>>());
                            // All but one give way.
                            let stays = draw(n_seq);
                            (0..n_seq).filter(|&seq| seq != stays).for_each(|seq| kv.truncate(seq, 0));
                            batch.retain(|t| t.seq as usize == stays);
                            assert!(kv.make_room(&batch).expect("no window is passed"), "one alone fits");
                        }
                        Err(e) => panic!("{e}"),
                    }
                    let held: usize = kv.occupancy().n_positions;
                    assert!(held <= kv.occupancy().n_pages * PAGE);
                }
            }
        }
        assert!(n_refused > 100 && n_done > 100, "{n_refused} refused, {n_done} done");
        (0..n_seq).for_each(|seq| kv.truncate(seq, 0));
        while kv.forget_oldest() {}
        assert_eq!(kv.n_used(), 0);
    }

    /// The tables of a context as long as can be counted, for which nobody has memory before it is used.
    #[test]
    fn pages_take_memory_once_they_are_used() {
        let n_ctx = MAX_PAGES * PAGE;
        let mut kv = KvPages::new(layout(&[None], 1, n_ctx, 64));
        assert!(kv.could_hold(0, n_ctx, 0) && !kv.could_hold(0, n_ctx, 1));
        assert!(kv.prepare(&tokens(0, 0..2 * PAGE + 1)).expect("room").is_empty());
        assert_eq!((kv.table(0, 0), kv.n_used()), (&[0, 1, 2][..], 3));
        assert_eq!(kv.occupancy(), Occupancy { n_pages: 3, n_positions: 2 * PAGE + 1 });
        assert_eq!(kv.pools[0].refs.len(), 3);
    }

    #[test]
    fn a_window_holds_few_pages_however_long_the_sequence() {
        let mut kv = KvPages::new(layout(&[Some(128)], 1, 32_768, 64));
        assert!(kv.layout().kinds[0].n_pages <= 256 / PAGE, "{:?}", kv.layout());
        for start in (0..32_768).step_by(64) {
            assert!(kv.prepare(&tokens(0, start..start + 64)).expect("room").is_empty());
        }
        assert_eq!(kv.n_pos(0), 32_768);
    }
}
