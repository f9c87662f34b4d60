//! What Linux knows of the pages of a memory: which were written, and which since they were last protected.
//!
//! Called by `pages`. `pagemap` tells pages that are private copies from the image's; where the kernel can write-protect
//! pages without telling anyone (userfaultfd, Linux 6.7), it notes each that is written. Surprising fact: asking about a
//! page costs a nanosecond or two whether or not anything happened to it.

use crate::pages::PAGE_BYTES;
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

pub(crate) fn prepare() {
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

/// Asks the kernel to note writes to `memory` from now on where it is protected; None where it can't.
pub(crate) fn register(memory: &[u8]) -> Option<()> {
    let watcher = watcher().filter(|_| pagemap().is_some() && !has_other_pages())?;
    if memory.is_empty() {
        return Some(());
    }
    let (start, len) = (memory.as_ptr() as u64, memory.len() as u64);
    let mut register = UffdRegister { start, len, mode: REGISTER_MODE_WP, ioctls: 0 };
    // SAFETY: `register` is a valid uffdio_register that outlives the call. Registering changes nothing that the memory's
    // owner can see.
    let is_registered = unsafe { libc::ioctl(watcher.as_raw_fd(), UFFDIO_REGISTER as _, &mut register) } == 0;
    is_registered.then_some(())
}

/// Write-protects pages of registered memory, also those that aren't there yet: a write is let through and noted.
pub(crate) fn protect(memory: &[u8], pages: &Range<usize>) -> Option<()> {
    let start = memory.get(pages.start * PAGE_BYTES..pages.end * PAGE_BYTES)?.as_ptr() as u64;
    let flags = WP_MATCHING | CHECK_WP_ASYNC;
    let addresses = start..start + (pages.len() * PAGE_BYTES) as u64;
    scan_into(pagemap()?, &mut [], addresses, flags, WRITTEN).map(drop)
}

/// Which of the registered `pages` were written since they were protected, or are not.
pub(crate) fn written(memory: &[u8], pages: &Range<usize>) -> Option<Vec<Range<usize>>> {
    scan(pagemap()?, memory, pages, CHECK_WP_ASYNC, WRITTEN)
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

/// Which of `pages` are the process's own: present or swapped, and not backed by a file. A copy that was made when a page
/// of the image was written is one; so is every page beyond the image that was touched.
pub(crate) fn private(memory: &[u8], pages: &Range<usize>) -> Option<Vec<Range<usize>>> {
    if has_other_pages() {
        return None;
    }
    let pagemap = pagemap()?;
    scan(pagemap, memory, pages, 0, PRIVATE).or_else(|| read(pagemap, memory, pages))
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
const WRITTEN: Categories = Categories { wanted: PAGE_IS_WRITTEN, unwanted: 0, one_of: 0, returned: PAGE_IS_WRITTEN };

const PRIVATE: Categories = Categories {
    wanted: PAGE_IS_FILE,
    unwanted: PAGE_IS_FILE,
    one_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    returned: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
};

/// Asks the kernel which of `pages` are of some categories (Linux 6.7 and later).
fn scan(
    pagemap: &File,
    memory: &[u8],
    pages: &Range<usize>,
    flags: u64,
    categories: Categories,
) -> Option<Vec<Range<usize>>> {
    let base = memory.as_ptr() as u64;
    let page_idx = |address: u64| (address - base) as usize / PAGE_BYTES;
    let [mut start, end] = [pages.start, pages.end].map(|page| base + (page * PAGE_BYTES) as u64);
    let mut ranges = Vec::new();
    let mut regions = [PageRegion::default(); 128];
    while start < end {
        let (n_found, walk_end) = scan_into(pagemap, &mut regions, start..end, flags, categories)?;
        ranges.extend(regions.get(..n_found)?.iter().map(|found| page_idx(found.start)..page_idx(found.end)));
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

/// Reads the table entry of every page (before Linux 6.7).
fn read(pagemap: &File, memory: &[u8], pages: &Range<usize>) -> Option<Vec<Range<usize>>> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE: u64 = 1 << 61;
    let first_page = memory.as_ptr() as usize / PAGE_BYTES + pages.start;
    let mut entries = vec![0u8; pages.len() * 8];
    pagemap.read_exact_at(&mut entries, first_page as u64 * 8).ok()?;
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (page_idx, entry) in pages.clone().zip(entries.chunks_exact(8)) {
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
    const N_PAGES: usize = 64;

    /// A memory like a session's: a private mapping of a file with an anonymous part.
    #[test]
    fn all_ways_find_every_written_page() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &vec![7u8; N_PAGES * PAGE_BYTES]).unwrap();
        let (len, protection) = (N_PAGES * PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new private mapping of an open file that nothing else writes; unmapped below.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        assert_ne!(address, libc::MAP_FAILED);
        // SAFETY: the mapping above is N_PAGES long and ours alone.
        let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), len) };
        assert_eq!(memory[40 * PAGE_BYTES], 7);
        for page in [3, 4, 5, 17, 63] {
            memory[page * PAGE_BYTES + 100] = 1;
        }
        let pagemap = pagemap().expect("/proc/self/pagemap");
        for (pages, expected) in [(0..N_PAGES, vec![3..6, 17..18, 63..64]), (4..20, vec![4..6, 17..18])] {
            assert_eq!(read(pagemap, memory, &pages).unwrap(), expected);
            assert_eq!(private(memory, &pages).unwrap(), expected);
            if let Some(ranges) = scan(pagemap, memory, &pages, 0, PRIVATE) {
                assert_eq!(ranges, expected);
            }
        }
        // Half of it is protected, then all of it.
        let half = 0..N_PAGES / 2;
        if register(memory).is_some() {
            protect(memory, &half).unwrap();
            (memory[4 * PAGE_BYTES], memory[20 * PAGE_BYTES], memory[33 * PAGE_BYTES]) = (2, 2, 2);
            assert_eq!(memory[21 * PAGE_BYTES], 7);
            for _ in 0..2 {
                assert_eq!(written(memory, &half).unwrap(), [4..5, 20..21]);
                assert_eq!(private(memory, &(N_PAGES / 2..N_PAGES)).unwrap(), [33..34, 63..64]);
            }
            [4..5, 20..21, N_PAGES / 2..N_PAGES].iter().for_each(|pages| protect(memory, pages).unwrap());
            assert!(written(memory, &(0..N_PAGES)).unwrap().is_empty());
            (memory[0], memory[63 * PAGE_BYTES]) = (3, 3);
            assert_eq!(written(memory, &(0..N_PAGES)).unwrap(), [0..1, 63..64]);
            assert_eq!(written(memory, &(1..60)).unwrap(), []);
            [0..1, 63..64].iter().for_each(|pages| protect(memory, pages).unwrap());
            assert!(written(memory, &(0..N_PAGES)).unwrap().is_empty());
        }
        // SAFETY: the mapping is not used after this.
        unsafe { libc::munmap(address, len) };
    }
}
