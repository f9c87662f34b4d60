//! The module's allocator: free lists by size in front of the C library's.
//!
//! An interpreter allocates and frees small objects all the time, and Rust tells an allocator the size of what it
//! frees. So a small block has no header, and its free list needs no search: both ways take a few instructions.
//! Larger blocks are the C library's. Surprising fact: memory of one size class is never used for another again; what
//! a session frees, it mostly needs again at the same size.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::UnsafeCell,
    ptr,
};

/// Sizes are rounded up to this; it is also the alignment of every small block.
const STEP_BYTES: usize = 16;
/// The largest small block.
const MAX_SMALL_BYTES: usize = 512;
/// What is taken from the C library at once, to be cut into small blocks.
const CHUNK_BYTES: usize = 32 << 10;

/// A free block: the address of the next one of its size.
struct Free {
    next: *mut Free,
}

struct State {
    /// One list for each size: 16, 32, …
    free: [*mut Free; MAX_SMALL_BYTES / STEP_BYTES],
    /// The part of the last chunk that was never used.
    rest: *mut u8,
    rest_bytes: usize,
}

/// See the head of this file.
pub struct Allocator(UnsafeCell<State>);

// SAFETY: the module has one thread (its target has no others).
unsafe impl Sync for Allocator {}

impl Allocator {
    /// An allocator that holds nothing.
    pub const fn new() -> Allocator {
        let free = [ptr::null_mut(); MAX_SMALL_BYTES / STEP_BYTES];
        Allocator(UnsafeCell::new(State { free, rest: ptr::null_mut(), rest_bytes: 0 }))
    }
}

/// Index of the list that a small layout belongs to; None for a large one.
#[inline(always)]
fn class_of(layout: Layout) -> Option<usize> {
    let is_small = layout.size() <= MAX_SMALL_BYTES && layout.align() <= STEP_BYTES;
    // A size of 0 never reaches an allocator.
    is_small.then(|| layout.size().wrapping_sub(1) / STEP_BYTES)
}

/// A block of a size whose list is empty.
#[cold]
#[inline(never)]
fn cut(state: &mut State, class: usize) -> *mut u8 {
    let block_bytes = (class + 1) * STEP_BYTES;
    if state.rest_bytes < block_bytes {
        // The old rest, less than a block, joins the list of its own size.
        if let Some(class) = (state.rest_bytes / STEP_BYTES).checked_sub(1) {
            let free: *mut Free = state.rest.cast();
            // SAFETY: the rest is unused, aligned and at least STEP_BYTES long.
            unsafe { free.write(Free { next: state.free[class] }) };
            state.free[class] = free;
        }
        let layout = Layout::from_size_align(CHUNK_BYTES, STEP_BYTES).expect("a constant layout");
        // SAFETY: the layout's size is not 0.
        let chunk = unsafe { System.alloc(layout) };
        if chunk.is_null() {
            state.rest_bytes = 0;
            return chunk;
        }
        (state.rest, state.rest_bytes) = (chunk, CHUNK_BYTES);
    }
    let block = state.rest;
    state.rest = block.wrapping_add(block_bytes);
    state.rest_bytes -= block_bytes;
    block
}

// SAFETY: small blocks are cut from chunks that are never given back, at multiples of STEP_BYTES, and handed out again
// only after they were freed; all others are the system allocator's. Nothing here unwinds.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_of(layout) else {
            // SAFETY: the caller's contract is the system allocator's.
            return unsafe { System.alloc(layout) };
        };
        // SAFETY: one thread, and nothing called below comes back here.
        let state = unsafe { &mut *self.0.get() };
        let free = state.free[class];
        if free.is_null() {
            return cut(state, class);
        }
        // SAFETY: a block on a list is free and starts with its link.
        state.free[class] = unsafe { (*free).next };
        free.cast()
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = class_of(layout) else {
            // SAFETY: large blocks came from there, by the same layout.
            return unsafe { System.dealloc(block, layout) };
        };
        // SAFETY: as in `alloc`.
        let state = unsafe { &mut *self.0.get() };
        let free: *mut Free = block.cast();
        // SAFETY: the block is the allocator's again, aligned and long enough for a link.
        unsafe { free.write(Free { next: state.free[class] }) };
        state.free[class] = free;
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        // SAFETY: the caller vouches for the new size, rounded up to the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(new_bytes, layout.align()) };
        match (class_of(layout), class_of(new)) {
            // SAFETY: both are the system allocator's.
            (None, None) => unsafe { System.realloc(block, layout, new_bytes) },
            (Some(old), Some(new)) if old == new => block,
            _ => {
                // SAFETY: as the default method: a new block, as much of the old one as fits, the old one freed.
                unsafe {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(block, moved, layout.size().min(new_bytes));
                        self.dealloc(block, layout);
                    }
                    moved
                }
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if class_of(layout).is_none() {
            // SAFETY: as in `alloc`; fresh pages need no zeroing there.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as in `alloc`; the block is `layout.size()` long.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }
}
