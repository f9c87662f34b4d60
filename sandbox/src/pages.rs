//! A checkpoint of a session's linear memory: the pages that differ from the image every session starts from.
//!
//! Called by `session` before each call, so that a call that is ended by force can be undone. On Linux the kernel
//! says which pages were ever written (they are private copies of the image's), and only those are compared and kept;
//! elsewhere all pages are. Surprising fact: restoring writes into a *fresh* instance, whose memory already is the
//! image, so that no page of the image is ever stored twice.

use std::collections::BTreeMap;

/// Granularity of a checkpoint. A multiple of the host's page size on every supported machine but those with 16 or
/// 64 KiB pages, where a few neighbours are copied as well.
const PAGE_BYTES: usize = 4096;

/// The pages of a memory at one moment.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    pages: BTreeMap<usize, Box<[u8; PAGE_BYTES]>>,
    memory_bytes: usize,
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

    /// Brings the checkpoint up to date with `memory`, the memory of the session it was last taken of.
    pub(crate) fn take(&mut self, memory: &[u8]) {
        self.memory_bytes = memory.len();
        for range in written_ranges(memory) {
            for page_idx in range {
                let now = &memory[page_idx * PAGE_BYTES..][..PAGE_BYTES];
                match self.pages.get_mut(&page_idx) {
                    Some(kept) if kept[..] == *now => {}
                    Some(kept) => kept.copy_from_slice(now),
                    None => {
                        let kept: Box<[u8]> = now.into();
                        self.pages.insert(page_idx, kept.try_into().expect("a whole page"));
                    }
                }
            }
        }
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
    linux::private_ranges(&[]);
}

/// Ranges of page indices that hold every page written since the memory was mapped.
fn written_ranges(memory: &[u8]) -> Vec<std::ops::Range<usize>> {
    let n_pages = memory.len() / PAGE_BYTES;
    #[cfg(target_os = "linux")]
    if let Some(ranges) = linux::private_ranges(memory) {
        return ranges;
    }
    std::iter::once(0..n_pages).collect()
}

#[cfg(target_os = "linux")]
mod linux {
    use super::PAGE_BYTES;
    use std::{fs::File, ops::Range, os::fd::AsRawFd, os::unix::fs::FileExt, sync::OnceLock};

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

    const PAGE_IS_FILE: u64 = 1 << 2;
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    const PAGE_IS_SWAPPED: u64 = 1 << 4;
    /// `_IOWR('f', 16, struct pm_scan_arg)`.
    const PAGEMAP_SCAN: u64 = (3 << 30) | ((size_of::<ScanArgs>() as u64) << 16) | ((b'f' as u64) << 8) | 16;

    fn pagemap() -> Option<&'static File> {
        static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
        PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok()).as_ref()
    }

    /// Pages of `memory` that are the process's own: present or swapped, and not backed by a file. A copy that was
    /// made when a page of the image was written is one; so is every page beyond the image that was touched.
    pub(super) fn private_ranges(memory: &[u8]) -> Option<Vec<Range<usize>>> {
        // The bits of pagemap count pages of 4 KiB only where the kernel does.
        // SAFETY: sysconf has no preconditions.
        if unsafe { libc::sysconf(libc::_SC_PAGESIZE) } != PAGE_BYTES as libc::c_long {
            return None;
        }
        let pagemap = pagemap()?;
        scan(pagemap, memory).or_else(|| read(pagemap, memory))
    }

    /// Asks the kernel for the ranges (Linux 6.7 and later).
    fn scan(pagemap: &File, memory: &[u8]) -> Option<Vec<Range<usize>>> {
        let base = memory.as_ptr() as u64;
        let end = base + memory.len() as u64;
        let mut start = base;
        let mut ranges = Vec::new();
        let mut regions = [PageRegion::default(); 512];
        while start < end {
            let mut args = ScanArgs {
                size: size_of::<ScanArgs>() as u64,
                flags: 0,
                start,
                end,
                walk_end: 0,
                regions: regions.as_mut_ptr() as u64,
                n_regions: regions.len() as u64,
                max_pages: 0,
                category_inverted: PAGE_IS_FILE,
                category_mask: PAGE_IS_FILE,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            };
            // SAFETY: `args` is a valid pm_scan_arg whose vector points at `n_regions` writable regions; both outlive
            // the call, which reads and writes nothing else.
            let n_found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &mut args) };
            let found = regions.get(..usize::try_from(n_found).ok()?)?;
            ranges.extend(found.iter().map(|region| page_idx(region.start, base)..page_idx(region.end, base)));
            if args.walk_end <= start {
                return None;
            }
            start = args.walk_end;
        }
        Some(ranges)
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
        use super::*;

        /// A memory like a session's: a private mapping of a file with an anonymous part.
        #[test]
        fn both_ways_find_every_written_page() {
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
            if let Some(ranges) = scan(pagemap, memory) {
                assert_eq!(ranges, expected);
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
        checkpoint.take(&memory);
        memory[5 * PAGE_BYTES + 9] = 43;
        memory.extend([2; PAGE_BYTES]);
        checkpoint.take(&memory);
        let taken = memory.clone();
        memory[0] = 99;
        let mut fresh = image;
        fresh.resize(checkpoint.memory_bytes(), 0);
        checkpoint.restore(&mut fresh);
        assert!(fresh == taken);
    }
}
