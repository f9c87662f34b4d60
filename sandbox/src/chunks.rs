//! Chunks of a session's memory that nobody wrote to for a while: write-protected, so that checkpoints skip them.
//!
//! `pages` closes a chunk; the first write to it faults, and `brake`'s handler opens it here. Surprising fact: a fault for
//! each chunk that a call comes back to costs less than asking the kernel about each of its pages at every call.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// Length of a chunk.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// A WebAssembly memory has at most 4 GiB.
const N_WORDS: usize = (4 << 30) / CHUNK_BYTES / 64;

/// The chunks of one memory, numbered from its start.
#[derive(Debug)]
pub(crate) struct Chunks {
    base: usize,
    /// Chunks that are never closed: other threads than the call's write there, whose faults nobody handles.
    pinned: Vec<usize>,
    closed: [AtomicU64; N_WORDS],
}

impl Chunks {
    /// The chunks of a memory that begins at `base`, all of them open; those with the bytes `pinned` stay so.
    ///
    /// # Safety
    /// The memory stays there as long as chunks are closed and opened.
    pub(crate) unsafe fn new(base: usize, pinned: impl Iterator<Item = usize>) -> Chunks {
        let pinned = pinned.map(|address| address / CHUNK_BYTES).collect();
        Chunks { base, pinned, closed: [const { AtomicU64::new(0) }; N_WORDS] }
    }

    /// Whether writes to a chunk fault.
    pub(crate) fn is_closed(&self, chunk: usize) -> bool {
        let (word, bit) = place(chunk);
        self.closed.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Makes writes to these chunks fault, which must lie in accessible memory that no call uses now; all but those that
    /// can't be closed.
    pub(crate) fn close(&self, chunks: Range<usize>) {
        let may_close = |chunk: &usize| !self.pinned.contains(chunk) && place(*chunk).0 < N_WORDS;
        let chunks: Vec<usize> = chunks.filter(may_close).collect();
        for run in chunks.chunk_by(|chunk, next| chunk + 1 == *next) {
            if self.protect(run[0]..run[0] + run.len(), libc::PROT_READ) {
                run.iter().map(|chunk| place(*chunk)).for_each(|(word, bit)| {
                    self.closed[word].fetch_or(bit, Ordering::Relaxed);
                });
            }
        }
    }

    /// Opens the chunk of an address that was written to, from a signal handler; whether it was closed.
    pub(crate) fn open_at(&self, address: usize) -> bool {
        let Some(chunk) = address.checked_sub(self.base).map(|offset| offset / CHUNK_BYTES) else { return false };
        if !self.is_closed(chunk) {
            return false;
        }
        let open = libc::PROT_READ | libc::PROT_WRITE;
        if self.protect(chunk..chunk + 1, open) {
            let (word, bit) = place(chunk);
            self.closed[word].fetch_and(!bit, Ordering::Relaxed);
            return true;
        }
        // The process has as many mappings as it may: as one they are fewer. The memory ends behind its last closed chunk.
        let end = (chunk..N_WORDS * 64).rev().find(|chunk| self.is_closed(*chunk)).map_or(0, |last| last + 1);
        let are_open = self.protect(0..end, open);
        if are_open {
            self.were_opened();
        }
        are_open
    }

    /// All of the memory was made accessible.
    pub(crate) fn were_opened(&self) {
        self.closed.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn protect(&self, chunks: Range<usize>, protection: libc::c_int) -> bool {
        let start = self.base + chunks.start * CHUNK_BYTES;
        // SAFETY: the chunks lie in the memory (`new`, `close`). Closed, they can be read as before, and a write from the
        // call's thread opens them again; failure leaves them as they are.
        unsafe { libc::mprotect(start as *mut libc::c_void, chunks.len() * CHUNK_BYTES, protection) == 0 }
    }
}

/// Word and bit of a chunk.
fn place(chunk: usize) -> (usize, u64) {
    (chunk / 64, 1 << (chunk % 64))
}
