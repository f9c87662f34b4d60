//! A checkpoint of a session's linear memory: the pages that differ from the image every session starts from.
//!
//! Called by `session` before each call, so that a call that is ended by force can be undone. On Linux the kernel says
//! which pages were ever written (they are private copies of the image's), and, where it can (`pagemap`), which were
//! written since the last checkpoint: only those are copied. Without that, all written pages are compared; elsewhere all
//! pages.
//! Surprising facts: restoring writes into a *fresh* instance, whose memory already is the image, so that no page of the
//! image is ever stored twice; a page is shared by all checkpoints that have it, so that a fork of a session copies only
//! what was written since its last call began; a page that was written stays open to writes for a few calls, since
//! comparing it costs a tenth of a fault; and chunks that nothing was written to are closed (`chunks`) and not looked at.

use crate::chunks::{CHUNK_BYTES, Chunks};
#[cfg(target_os = "linux")]
use crate::pagemap;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::Arc,
};

/// Granularity of a checkpoint. A multiple of the host's page size on every supported machine but those with 16 or
/// 64 KiB pages, where a few neighbours are copied as well.
pub(crate) const PAGE_BYTES: usize = 4096;
const CHUNK_PAGES: usize = CHUNK_BYTES / PAGE_BYTES;

/// Most pages that are left open to writes, which every update compares: a megabyte.
const MAX_OPEN: usize = 256;
/// An open page is protected again when so many updates in a row found it as it was.
const MAX_SAME: u8 = 8;
/// A chunk is closed when so many updates in a row found no page of it written.
const MAX_QUIET: u8 = 3;

/// The pages of a memory at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checkpoint {
    pages: BTreeMap<usize, Arc<[u8; PAGE_BYTES]>>,
    memory_bytes: usize,
    watch: Watch,
}

/// What the kernel was told about the memory; nothing before the first `update`.
#[derive(Clone, Debug, Default)]
struct Watch {
    /// The memory's whole chunks at the last update, whose writes the kernel was asked to note, where it can.
    chunks: Vec<Chunk>,
    /// Pages that aren't protected and count as written, each with the number of updates in a row that found it as it was.
    open: BTreeMap<usize, u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    /// Its pages are protected, all but the open ones. Else every page of its own counts as written.
    is_protected: bool,
    /// Updates in a row that found no page of it written.
    n_quiet: u8,
}

impl Watch {
    /// Ranges of pages that hold every page written since the last update, none of them in two chunks that differ in
    /// whether they are protected. Nothing was written to closed chunks.
    fn written(&self, memory: &[u8], chunks: Option<&Chunks>) -> Vec<Range<usize>> {
        let n_pages = memory.len() / PAGE_BYTES;
        let is_open = |chunk: &usize| chunks.is_none_or(|chunks| !chunks.is_closed(*chunk));
        let open: Vec<usize> = (0..n_pages.div_ceil(CHUNK_PAGES)).filter(is_open).collect();
        let runs = open.chunk_by(|a, b| a + 1 == *b && self.is_protected(*a) == self.is_protected(*b));
        let written = |run: &[usize]| {
            let pages = run[0] * CHUNK_PAGES..((run[0] + run.len()) * CHUNK_PAGES).min(n_pages);
            written_in(memory, pages, self.is_protected(run[0]))
        };
        runs.flat_map(written).collect()
    }

    fn is_protected(&self, chunk: usize) -> bool {
        self.chunks.get(chunk).is_some_and(|chunk| chunk.is_protected)
    }

    /// Whether a protected page that was written since the last update may be written without anyone being told, from now
    /// on.
    fn stays_open(&mut self, page_idx: usize, is_same: bool) -> bool {
        let has_room = self.open.len() < MAX_OPEN;
        match self.open.entry(page_idx) {
            Entry::Vacant(new) if has_room => drop(new.insert(0)),
            Entry::Vacant(_) => return false,
            Entry::Occupied(known) if is_same && *known.get() + 1 == MAX_SAME => {
                known.remove();
                return false;
            }
            Entry::Occupied(mut known) => *known.get_mut() = if is_same { *known.get() + 1 } else { 0 },
        }
        true
    }

    /// After a look at the whole memory that found the chunks `touched`: protects what was written, but for the pages that
    /// stay open (`shut` don't), where the kernel `notes` writes, and closes what is quiet. None where the kernel can't.
    #[cfg(target_os = "linux")]
    fn go_on(
        &mut self,
        memory: &[u8],
        shut: &[Range<usize>],
        touched: &[bool],
        chunks: &Chunks,
        notes: bool,
    ) -> Option<()> {
        self.chunks.resize(memory.len() / CHUNK_BYTES, Chunk::default());
        let (mut to_protect, mut to_close) = (Ranges::default(), Ranges::default());
        for (idx, chunk) in self.chunks.iter_mut().enumerate().filter(|(idx, _)| !chunks.is_closed(*idx)) {
            if touched[idx] {
                chunk.n_quiet = 0;
                if notes && !chunk.is_protected {
                    chunk.is_protected = true;
                    to_protect.push(idx);
                }
                continue;
            }
            chunk.n_quiet = chunk.n_quiet.saturating_add(1);
            // Where writes are noted, a chunk that isn't protected has not been written to yet.
            if notes && !chunk.is_protected || chunk.n_quiet >= MAX_QUIET {
                to_close.push(idx);
            }
        }
        let pages = |run: Range<usize>| run.start * CHUNK_PAGES..run.end * CHUNK_PAGES;
        let mut protected = to_protect.0.into_iter().map(pages).chain(shut.iter().cloned());
        protected.try_for_each(|pages| pagemap::protect(memory, &pages))?;
        to_close.0.into_iter().for_each(|run| chunks.close(run));
        Some(())
    }

    /// The whole chunks of `memory` that the kernel wasn't asked to note writes of yet.
    #[cfg(target_os = "linux")]
    fn new_chunks<'m>(&self, memory: &'m [u8]) -> &'m [u8] {
        &memory[self.chunks.len() * CHUNK_BYTES..memory.len() / CHUNK_BYTES * CHUNK_BYTES]
    }
}

/// Ascending numbers as ranges.
#[derive(Default)]
struct Ranges(Vec<Range<usize>>);

impl Ranges {
    fn push(&mut self, number: usize) {
        match self.0.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => self.0.push(number..number + 1),
        }
    }
}

impl Checkpoint {
    /// Length of the memory, in bytes; 0 for a checkpoint that was never taken.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Length of what is kept, in bytes.
    pub(crate) fn n_bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// A checkpoint of `memory` as it is now, for another memory; `last` is this memory's own, if it has one, and stays
    /// as it is.
    pub(crate) fn of(memory: &[u8], chunks: Option<&Chunks>, last: Option<&Checkpoint>) -> Checkpoint {
        let mut checkpoint = last.cloned().unwrap_or_default();
        for page_idx in checkpoint.watch.written(memory, chunks).into_iter().flatten() {
            checkpoint.keep(memory, page_idx);
        }
        checkpoint.memory_bytes = memory.len();
        checkpoint.watch = Watch::default();
        checkpoint
    }

    /// Brings the checkpoint up to date with `memory`, which must be the memory of the last `update`; chunks that are
    /// quiet are closed.
    pub(crate) fn update(&mut self, memory: &[u8], chunks: Option<&Chunks>) {
        #[cfg(target_os = "linux")]
        self.update_where(memory, chunks, pagemap::register);
        #[cfg(not(target_os = "linux"))]
        self.update_where(memory, chunks, |_| None);
    }

    /// The same; `register` asks the kernel to note writes, where it can.
    fn update_where(&mut self, memory: &[u8], chunks: Option<&Chunks>, register: impl Fn(&[u8]) -> Option<()>) {
        let mut touched = vec![false; memory.len().div_ceil(CHUNK_BYTES)];
        let mut shut = Ranges::default();
        for page_idx in self.watch.written(memory, chunks).into_iter().flatten() {
            let (is_same, chunk) = (self.keep(memory, page_idx), page_idx / CHUNK_PAGES);
            let is_protected = self.watch.is_protected(chunk);
            touched[chunk] |= is_protected || !is_same;
            if is_protected && !self.watch.stays_open(page_idx, is_same) {
                shut.push(page_idx);
            }
        }
        self.memory_bytes = memory.len();
        #[cfg(target_os = "linux")]
        let goes_on = chunks.and_then(|chunks| {
            let notes = register(self.watch.new_chunks(memory)).is_some();
            self.watch.go_on(memory, &shut.0, &touched, chunks, notes)
        });
        #[cfg(not(target_os = "linux"))]
        let goes_on = register(memory);
        if goes_on.is_none() {
            self.watch = Watch::default();
        }
    }

    /// The session goes on in another memory: the next `update` has to look at everything.
    pub(crate) fn memory_was_replaced(&mut self) {
        self.watch = Watch::default();
    }

    /// Keeps a page as it is now; whether it was so before.
    fn keep(&mut self, memory: &[u8], page_idx: usize) -> bool {
        let now = &memory[page_idx * PAGE_BYTES..][..PAGE_BYTES];
        let kept = self.pages.get_mut(&page_idx);
        if kept.as_ref().is_some_and(|kept| kept[..] == *now) {
            return true;
        }
        match kept.and_then(Arc::get_mut) {
            Some(kept) => kept.copy_from_slice(now),
            None => {
                let kept: Arc<[u8]> = now.into();
                self.pages.insert(page_idx, kept.try_into().expect("a whole page"));
            }
        }
        false
    }

    /// The checkpoint as bytes: the memory's length, then each page behind its index, little-endian.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        into.reserve(8 + self.pages.len() * (8 + PAGE_BYTES));
        into.extend_from_slice(&(self.memory_bytes as u64).to_le_bytes());
        for (page_idx, page) in &self.pages {
            into.extend_from_slice(&(*page_idx as u64).to_le_bytes());
            into.extend_from_slice(&page[..]);
        }
    }

    /// What `encode` wrote; None for bytes that it can't have written.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Checkpoint> {
        let (memory_bytes, pages) = bytes.split_first_chunk::<8>()?;
        let memory_bytes = usize::try_from(u64::from_le_bytes(*memory_bytes)).ok()?;
        let entries = pages.chunks_exact(8 + PAGE_BYTES);
        let is_whole = entries.remainder().is_empty();
        let entry = |entry: &[u8]| {
            let (page_idx, page) = entry.split_first_chunk::<8>()?;
            let page_idx = usize::try_from(u64::from_le_bytes(*page_idx)).ok()?;
            let is_inside = page_idx < memory_bytes / PAGE_BYTES;
            let page: Arc<[u8]> = page.into();
            is_inside.then_some((page_idx, page.try_into().ok()?))
        };
        let pages = entries.map(entry).collect::<Option<BTreeMap<_, _>>>()?;
        is_whole.then_some(Checkpoint { pages, memory_bytes, watch: Watch::default() })
    }

    /// Writes the checkpoint into the memory of a fresh instance, which must be as long as the one it was taken of.
    pub(crate) fn restore(&self, memory: &mut [u8]) {
        for (page_idx, page) in &self.pages {
            memory[page_idx * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(&page[..]);
        }
    }
}

/// Opens what checkpoints read, for a process that soon can open nothing.
pub(crate) fn prepare() {
    #[cfg(target_os = "linux")]
    pagemap::prepare();
}

/// Ranges that hold every one of `pages` that was written: since they were protected, or at all. All of them where
/// the kernel doesn't say.
fn written_in(memory: &[u8], pages: Range<usize>, is_protected: bool) -> Vec<Range<usize>> {
    #[cfg(target_os = "linux")]
    let found = if is_protected { pagemap::written(memory, &pages) } else { pagemap::private(memory, &pages) };
    #[cfg(not(target_os = "linux"))]
    let found = None;
    found.unwrap_or_else(|| vec![pages])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_restores_what_it_saw() {
        let image = vec![1u8; 8 * PAGE_BYTES];
        let mut memory = image.clone();
        let mut checkpoint = Checkpoint::default();
        memory[5 * PAGE_BYTES + 9] = 42;
        checkpoint.update(&memory, None);
        memory[5 * PAGE_BYTES + 9] = 43;
        memory.extend([2; PAGE_BYTES]);
        checkpoint.memory_was_replaced();
        checkpoint.update(&memory, None);
        let taken = memory.clone();
        memory[0] = 99;
        let mut fresh = image;
        fresh.resize(checkpoint.memory_bytes(), 0);
        checkpoint.restore(&mut fresh);
        assert!(fresh == taken);
        let mut bytes = Vec::new();
        checkpoint.encode(&mut bytes);
        let mut again = vec![1u8; 8 * PAGE_BYTES];
        again.resize(checkpoint.memory_bytes(), 0);
        Checkpoint::decode(&bytes).unwrap().restore(&mut again);
        assert!(again == taken);
    }

    #[test]
    fn a_damaged_checkpoint_is_refused() {
        let mut memory = vec![0u8; 4 * PAGE_BYTES];
        memory[0] = 1;
        let mut bytes = Vec::new();
        Checkpoint::of(&memory, None, None).encode(&mut bytes);
        for len in [0, 7, 9, bytes.len() - 1] {
            assert!(Checkpoint::decode(&bytes[..len]).is_none(), "cut to {len}");
        }
        // A page beyond the memory.
        bytes[8..16].copy_from_slice(&4u64.to_le_bytes());
        assert!(Checkpoint::decode(&bytes).is_none());
    }

    /// Pages that are written now and again, by turns open and protected, in chunks that are closed and opened, and more
    /// at once than may be open.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_checkpoint_of_many_calls_is_the_memory() {
        many_calls(pagemap::register);
        many_calls(|_| None);
    }

    #[cfg(target_os = "linux")]
    fn many_calls(register: impl Fn(&[u8]) -> Option<()>) {
        use crate::brake::{Brake, Interrupt};
        const N_CHUNKS: usize = 6;
        const N_BYTES: usize = N_CHUNKS * CHUNK_BYTES + CHUNK_BYTES / 2;
        // Faults are handled once there is an engine.
        crate::python::engine_of(&wasmtime::Config::new()).unwrap();
        let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping that nothing else uses; unmapped below.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), N_BYTES, protection, kind, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        // SAFETY: the mapping above is N_BYTES long and ours alone.
        let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), N_BYTES) };
        let brake = Brake::new();
        // SAFETY: the mapping outlives the calls below.
        unsafe { brake.fix(memory.as_mut_ptr(), Interrupt::Flag { flag: 8, kind: CHUNK_BYTES }) };
        let chunks = brake.chunks().unwrap();
        let mut checkpoint = Checkpoint::default();
        let mut state = 1u32;
        let mut random = |n: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % n
        };
        let (mut n_closed, mut n_opened) = (0, 0);
        for call in 0..120u8 {
            let was_closed: Vec<bool> = (0..N_CHUNKS).map(|chunk| chunks.is_closed(chunk)).collect();
            let pages: Vec<usize> = match call % 30 {
                5 => (0..N_BYTES / PAGE_BYTES).collect(),
                // Few pages of one chunk, which leaves the others quiet.
                _ => {
                    let first = usize::from(call / 30) * CHUNK_PAGES;
                    (0..7).map(|_| first + random(20)).collect()
                }
            };
            let ((), was_stopped) = brake.during(N_BYTES, || {
                pages.iter().for_each(|page_idx| memory[page_idx * PAGE_BYTES + 11] = call);
            });
            assert!(!was_stopped);
            n_opened += was_closed.iter().enumerate().filter(|(chunk, was)| **was && !chunks.is_closed(*chunk)).count();
            let fork = Checkpoint::of(memory, Some(chunks), Some(&checkpoint));
            checkpoint.update_where(memory, Some(chunks), &register);
            n_closed += (0..N_CHUNKS).filter(|chunk| chunks.is_closed(*chunk)).count();
            for checkpoint in [&fork, &checkpoint] {
                let mut restored = vec![0; memory.len()];
                checkpoint.restore(&mut restored);
                assert!(restored == memory, "after call {call}");
            }
            assert!(checkpoint.watch.open.len() <= MAX_OPEN);
            assert!(!chunks.is_closed(0) && !chunks.is_closed(1), "another thread writes there");
        }
        assert!(n_closed > 200 && n_opened > 10, "{n_closed} {n_opened}");
        // SAFETY: the mapping is not used after this.
        unsafe { libc::munmap(address, N_BYTES) };
    }
}
