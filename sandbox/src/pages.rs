//! A checkpoint of a session's linear memory: the pages that differ from the image every session starts from.
//!
//! Called by `session` before each call, so that a call that is ended by force can be undone. On Linux the kernel
//! says which pages were ever written (they are private copies of the image's), and, where it can write-protect them
//! without telling anyone (userfaultfd, Linux 6.7), which were written since the last checkpoint: only those are
//! copied. Without that, all written pages are; elsewhere all pages. Surprising facts: restoring writes into a *fresh*
//! instance, whose memory already is the image, so that no page of the image is ever stored twice; a page is shared
//! by all checkpoints that have it, so that a fork of a session copies only what was written since its last call began;
//! and a page that was written stays open to writes for a few calls, since comparing it costs a tenth of a fault.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::Arc,
};

/// Granularity of a checkpoint. A multiple of the host's page size on every supported machine but those with 16 or
/// 64 KiB pages, where a few neighbours are copied as well.
const PAGE_BYTES: usize = 4096;

/// Most pages that are left open to writes, which every update compares: a megabyte.
const MAX_OPEN: usize = 256;
/// An open page is protected again when so many updates in a row found it as it was.
const MAX_SAME: u8 = 8;

/// The pages of a memory at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checkpoint {
    pages: BTreeMap<usize, Arc<[u8; PAGE_BYTES]>>,
    memory_bytes: usize,
    watch: Watch,
}

/// What the kernel was told about the memory.
#[derive(Clone, Debug, Default)]
struct Watch {
    /// How much of the memory is watched for writes; 0 before the first `update`.
    bytes: usize,
    /// Watched pages that aren't protected and count as written, each with the number of updates in a row that found it
    /// as it was.
    open: BTreeMap<usize, u8>,
}

impl Watch {
    /// Whether a page that was written since the last update may be written without anyone being told, from now on.
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
    pub(crate) fn of(memory: &[u8], last: Option<&Checkpoint>) -> Checkpoint {
        let mut checkpoint = last.cloned().unwrap_or_default();
        for page_idx in written_since(memory, checkpoint.watch.bytes).into_iter().flatten() {
            checkpoint.keep(memory, page_idx);
        }
        checkpoint.memory_bytes = memory.len();
        checkpoint.watch = Watch::default();
        checkpoint
    }

    /// Brings the checkpoint up to date with `memory`, which must be the memory of the last `update`.
    pub(crate) fn update(&mut self, memory: &[u8]) {
        let mut closing: Vec<Range<usize>> = Vec::new();
        for page_idx in written_since(memory, self.watch.bytes).into_iter().flatten() {
            let is_same = self.keep(memory, page_idx);
            let is_watched = page_idx < self.watch.bytes / PAGE_BYTES;
            if !is_watched || self.watch.stays_open(page_idx, is_same) {
                continue;
            }
            match closing.last_mut() {
                Some(last) if last.end == page_idx => last.end += 1,
                _ => closing.push(page_idx..page_idx + 1),
            }
        }
        self.memory_bytes = memory.len();
        match protect(memory, &closing) {
            true => self.watch.bytes = watch(memory, self.watch.bytes),
            false => self.watch = Watch::default(),
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
    linux::prepare();
}

/// Ranges of page indices that hold every page of `memory` written since it was last protected; of what lies beyond
/// `watched_bytes`, since it was mapped.
fn written_since(memory: &[u8], watched_bytes: usize) -> Vec<Range<usize>> {
    #[cfg(target_os = "linux")]
    if let Some(ranges) = linux::written_since(memory, watched_bytes) {
        return ranges;
    }
    std::iter::once(0..memory.len() / PAGE_BYTES).collect()
}

/// Protects pages of watched memory, given as ascending ranges; whether they are.
fn protect(memory: &[u8], ranges: &[Range<usize>]) -> bool {
    #[cfg(target_os = "linux")]
    return linux::protect(memory, ranges).is_some();
    #[cfg(not(target_os = "linux"))]
    return ranges.is_empty();
}

/// Watches the memory for writes from now on, all but the first `watched_bytes`, which are watched already. The length
/// that is watched now: 0 where the kernel can't.
fn watch(memory: &[u8], watched_bytes: usize) -> usize {
    #[cfg(target_os = "linux")]
    return linux::watch(memory, watched_bytes).map_or(0, |()| memory.len());
    #[cfg(not(target_os = "linux"))]
    return 0;
}

#[cfg(target_os = "linux")]
mod linux {
    use super::PAGE_BYTES;
    use std::{
        fs::File,
        ops::Range,
        os::fd::{AsRawFd, FromRawFd, OwnedFd},
        os::unix::fs::FileExt,
        sync::OnceLock,
    };

    /// `struct page_region` of linux/fs.h (6.7).
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct PageRegion {
        start: u64,
        end: u64,
        categories: u64,
    }

    /// `struct pm_scan_arg` of linux/fs.h (6.7).
    #[repr(C)]
    struct ScanArgs {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        regions: u64,
        n_regions: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }

    const PAGE_IS_WRITTEN: u64 = 1 << 1;
    const PAGE_IS_FILE: u64 = 1 << 2;
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    const PAGE_IS_SWAPPED: u64 = 1 << 4;
    /// `_IOWR('f', 16, struct pm_scan_arg)`.
    const PAGEMAP_SCAN: u64 = (3 << 30) | ((size_of::<ScanArgs>() as u64) << 16) | ((b'f' as u64) << 8) | 16;
    /// Write-protects what matches.
    const WP_MATCHING: u64 = 1;
    /// Refuses memory that isn't watched.
    const CHECK_WP_ASYNC: u64 = 1 << 1;

    /// `struct uffdio_api` of linux/userfaultfd.h.
    #[repr(C)]
    struct UffdApi {
        api: u64,
        features: u64,
        ioctls: u64,
    }

    /// `struct uffdio_register` of linux/userfaultfd.h.
    #[repr(C)]
    struct UffdRegister {
        start: u64,
        len: u64,
        mode: u64,
        ioctls: u64,
    }

    /// `_IOWR(0xAA, 0x3F, struct uffdio_api)` and `_IOWR(0xAA, 0x00, struct uffdio_register)`.
    const UFFDIO_API: u64 = (3 << 30) | ((size_of::<UffdApi>() as u64) << 16) | (0xaa << 8) | 0x3f;
    const UFFDIO_REGISTER: u64 = (3 << 30) | ((size_of::<UffdRegister>() as u64) << 16) | (0xaa << 8);
    const UFFD_API: u64 = 0xaa;
    const UFFD_USER_MODE_ONLY: libc::c_int = 1;
    /// Protected pages that were never present count as protected; a write to one is let through and noted.
    const WP_UNPOPULATED_AND_ASYNC: u64 = 1 << 13 | 1 << 15;
    const REGISTER_MODE_WP: u64 = 1 << 1;

    pub(super) fn prepare() {
        pagemap();
        watcher();
    }

    /// This process's userfaultfd; None where the kernel has none of the kind, or refuses it.
    fn watcher() -> Option<&'static OwnedFd> {
        static WATCHER: OnceLock<Option<OwnedFd>> = OnceLock::new();
        let open = || {
            // SAFETY: the call takes flags and touches no memory.
            let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
            let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0)?;
            // SAFETY: the descriptor was just made and belongs to nobody else.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let mut api = UffdApi { api: UFFD_API, features: WP_UNPOPULATED_AND_ASYNC, ioctls: 0 };
            // SAFETY: `api` is a valid uffdio_api that outlives the call.
            let is_agreed = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &mut api) } == 0;
            is_agreed.then_some(fd)
        };
        WATCHER.get_or_init(open).as_ref()
    }

    /// See the function of this name above.
    pub(super) fn written_since(memory: &[u8], watched_bytes: usize) -> Option<Vec<Range<usize>>> {
        let (watched, unwatched) = memory.split_at_checked(watched_bytes)?;
        let mut ranges = Vec::new();
        if !watched.is_empty() {
            ranges = scan(pagemap()?, watched, CHECK_WP_ASYNC, WRITTEN)?;
        }
        let first_page = watched_bytes / PAGE_BYTES;
        ranges.extend(private_ranges(unwatched)?.iter().map(|range| first_page + range.start..first_page + range.end));
        Some(ranges)
    }

    /// See the function of this name above.
    pub(super) fn watch(memory: &[u8], watched_bytes: usize) -> Option<()> {
        let (pagemap, watcher) = (pagemap()?, watcher()?);
        let unwatched = memory.get(watched_bytes..)?;
        if has_other_pages() || unwatched.is_empty() {
            return (!has_other_pages()).then_some(());
        }
        let (start, len) = (unwatched.as_ptr() as u64, unwatched.len() as u64);
        let mut register = UffdRegister { start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: `register` is a valid uffdio_register that outlives the call. Watching changes nothing that the
        // memory's owner can see.
        if unsafe { libc::ioctl(watcher.as_raw_fd(), UFFDIO_REGISTER as _, &mut register) } != 0 {
            return None;
        }
        protect_all(pagemap, unwatched)
    }

    /// See the function of this name above.
    pub(super) fn protect(memory: &[u8], ranges: &[Range<usize>]) -> Option<()> {
        let pagemap = pagemap()?;
        let bytes = |pages: &Range<usize>| memory.get(pages.start * PAGE_BYTES..pages.end * PAGE_BYTES);
        ranges.iter().try_for_each(|pages| protect_all(pagemap, bytes(pages)?))
    }

    /// The bits of pagemap count pages of 4 KiB only where the kernel does.
    fn has_other_pages() -> bool {
        // SAFETY: sysconf has no preconditions.
        unsafe { libc::sysconf(libc::_SC_PAGESIZE) != PAGE_BYTES as libc::c_long }
    }

    fn pagemap() -> Option<&'static File> {
        static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
        PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()).as_ref()
    }

    /// Pages of `memory` that are the process's own: present or swapped, and not backed by a file. A copy that was
    /// made when a page of the image was written is one; so is every page beyond the image that was touched.
    pub(super) fn private_ranges(memory: &[u8]) -> Option<Vec<Range<usize>>> {
        if has_other_pages() {
            return None;
        }
        let pagemap = pagemap()?;
        scan(pagemap, memory, 0, PRIVATE).or_else(|| read(pagemap, memory))
    }

    /// Which pages a scan asks for.
    #[derive(Clone, Copy)]
    struct Categories {
        /// All of these, but those in `unwanted`, which they must not have.
        wanted: u64,
        unwanted: u64,
        /// At least one of these, if there are any.
        one_of: u64,
        /// What a range has to agree in; never empty.
        returned: u64,
    }

    /// The kernel has a short cut for exactly these: a scan takes a tenth of the time.
    const WRITTEN: Categories =
        Categories { wanted: PAGE_IS_WRITTEN, unwanted: 0, one_of: 0, returned: PAGE_IS_WRITTEN };

    const PRIVATE: Categories = Categories {
        wanted: PAGE_IS_FILE,
        unwanted: PAGE_IS_FILE,
        one_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        returned: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };

    /// Asks the kernel for the ranges of pages of some categories (Linux 6.7 and later).
    fn scan(pagemap: &File, memory: &[u8], flags: u64, categories: Categories) -> Option<Vec<Range<usize>>> {
        let base = memory.as_ptr() as u64;
        let end = base + memory.len() as u64;
        let mut start = base;
        let mut ranges = Vec::new();
        let mut regions = [PageRegion::default(); 512];
        while start < end {
            let (n_found, walk_end) = scan_into(pagemap, &mut regions, start..end, flags, categories)?;
            let found = regions.get(..n_found)?;
            ranges.extend(found.iter().map(|region| page_idx(region.start, base)..page_idx(region.end, base)));
            if walk_end <= start {
                return None;
            }
            start = walk_end;
        }
        Some(ranges)
    }

    /// One call of the kernel: as many regions as there is room for, and the address that it came to. Without any room
    /// it looks at everything and reports nothing.
    fn scan_into(
        pagemap: &File,
        regions: &mut [PageRegion],
        addresses: Range<u64>,
        flags: u64,
        categories: Categories,
    ) -> Option<(usize, u64)> {
        let mut args = ScanArgs {
            size: size_of::<ScanArgs>() as u64,
            flags,
            start: addresses.start,
            end: addresses.end,
            walk_end: 0,
            regions: if regions.is_empty() { 0 } else { regions.as_mut_ptr() as u64 },
            n_regions: regions.len() as u64,
            max_pages: 0,
            category_inverted: categories.unwanted,
            category_mask: categories.wanted,
            category_anyof_mask: categories.one_of,
            return_mask: categories.returned,
        };
        // SAFETY: `args` is a valid pm_scan_arg whose vector, if it has one, points at `n_regions` writable regions; both
        // outlive the call, which reads and writes nothing else.
        let n_found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &mut args) };
        Some((usize::try_from(n_found).ok()?, args.walk_end))
    }

    /// Write-protects every page of watched memory, also those that aren't there yet.
    fn protect_all(pagemap: &File, memory: &[u8]) -> Option<()> {
        let start = memory.as_ptr() as u64;
        let flags = WP_MATCHING | CHECK_WP_ASYNC;
        scan_into(pagemap, &mut [], start..start + memory.len() as u64, flags, WRITTEN).map(drop)
    }

    fn page_idx(address: u64, base: u64) -> usize {
        (address - base) as usize / PAGE_BYTES
    }

    /// Reads the table entry of every page (before Linux 6.7).
    fn read(pagemap: &File, memory: &[u8]) -> Option<Vec<Range<usize>>> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE: u64 = 1 << 61;
        let first_page = memory.as_ptr() as usize / PAGE_BYTES;
        let mut entries = vec![0u8; memory.len() / PAGE_BYTES * 8];
        pagemap.read_exact_at(&mut entries, first_page as u64 * 8).ok()?;
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (page_idx, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
            if entry & (PRESENT | SWAPPED) == 0 || entry & FILE != 0 {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == page_idx => last.end += 1,
                _ => ranges.push(page_idx..page_idx + 1),
            }
        }
        Some(ranges)
    }

    #[cfg(test)]
    mod tests {
        use super::super::{Checkpoint, MAX_OPEN};
        use super::*;

        /// Pages that are written now and again, by turns open and protected, and more at once than may be open.
        #[test]
        fn a_checkpoint_of_many_calls_is_the_memory() {
            const N_PAGES: usize = 2 * MAX_OPEN;
            let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping that nothing else uses; unmapped below.
            let address = unsafe { libc::mmap(std::ptr::null_mut(), N_PAGES * PAGE_BYTES, protection, kind, -1, 0) };
            assert_ne!(address, libc::MAP_FAILED);
            // SAFETY: the mapping above is N_PAGES long and ours alone.
            let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), N_PAGES * PAGE_BYTES) };
            let mut checkpoint = Checkpoint::default();
            let mut state = 1u32;
            for call in 0..60u8 {
                let n_written = if call % 20 == 5 { N_PAGES } else { 7 };
                for i in 0..n_written {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let page_idx = if n_written == N_PAGES { i } else { state as usize >> 16 & 63 };
                    memory[page_idx * PAGE_BYTES + 11] = call;
                }
                checkpoint.update(memory);
                let mut restored = vec![0; memory.len()];
                checkpoint.restore(&mut restored);
                assert!(restored == memory, "after call {call}");
                assert!(checkpoint.watch.open.len() <= MAX_OPEN);
                let is_watched = checkpoint.watch.bytes > 0;
                assert!(!is_watched || call != 24 || checkpoint.watch.open.len() < 64, "pages are protected again");
            }
            // SAFETY: the mapping is not used after this.
            unsafe { libc::munmap(address, N_PAGES * PAGE_BYTES) };
        }

        /// A memory like a session's: a private mapping of a file with an anonymous part.
        #[test]
        fn all_ways_find_every_written_page() {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &vec![7u8; 64 * PAGE_BYTES]).unwrap();
            // SAFETY: a new private mapping of an open file that nothing else writes; unmapped below.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    64 * PAGE_BYTES,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE,
                    file.as_raw_fd(),
                    0,
                )
            };
            assert_ne!(address, libc::MAP_FAILED);
            // SAFETY: the mapping above is 64 pages long and ours alone.
            let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), 64 * PAGE_BYTES) };
            assert_eq!(memory[40 * PAGE_BYTES], 7);
            for page in [3, 4, 5, 17, 63] {
                memory[page * PAGE_BYTES + 100] = 1;
            }
            let expected = vec![3..6, 17..18, 63..64];
            let pagemap = pagemap().expect("/proc/self/pagemap");
            assert_eq!(read(pagemap, memory).unwrap(), expected);
            if let Some(ranges) = scan(pagemap, memory, 0, PRIVATE) {
                assert_eq!(ranges, expected);
            }
            assert_eq!(written_since(memory, 0).unwrap(), expected);
            // Half of it is watched, then all of it.
            let half = memory.len() / 2;
            if watch(&memory[..half], 0).is_some() {
                (memory[4 * PAGE_BYTES], memory[20 * PAGE_BYTES], memory[33 * PAGE_BYTES]) = (2, 2, 2);
                assert_eq!(memory[21 * PAGE_BYTES], 7);
                let expected = [4..5, 20..21, 33..34, 63..64];
                for _ in 0..2 {
                    assert_eq!(written_since(memory, half).unwrap(), expected);
                }
                protect(memory, &[4..5, 20..21]).unwrap();
                watch(memory, half).unwrap();
                assert!(written_since(memory, memory.len()).unwrap().is_empty());
                (memory[0], memory[63 * PAGE_BYTES]) = (3, 3);
                assert_eq!(written_since(memory, memory.len()).unwrap(), [0..1, 63..64]);
                protect(memory, &[0..1, 63..64]).unwrap();
                assert!(written_since(memory, memory.len()).unwrap().is_empty());
            }
            // SAFETY: the mapping is not used after this.
            unsafe { libc::munmap(address, 64 * PAGE_BYTES) };
        }
    }
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
        checkpoint.update(&memory);
        memory[5 * PAGE_BYTES + 9] = 43;
        memory.extend([2; PAGE_BYTES]);
        checkpoint.memory_was_replaced();
        checkpoint.update(&memory);
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
        Checkpoint::of(&memory, None).encode(&mut bytes);
        for len in [0, 7, 9, bytes.len() - 1] {
            assert!(Checkpoint::decode(&bytes[..len]).is_none(), "cut to {len}");
        }
        // A page beyond the memory.
        bytes[8..16].copy_from_slice(&4u64.to_le_bytes());
        assert!(Checkpoint::decode(&bytes).is_none());
    }
}
