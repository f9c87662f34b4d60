//! How long sequences may get where nobody says, and what memory their keys and values get: as long as the model was
//! trained for, as far as one sequence of that length fits into half of the memory that is free once the weights are
//! there. More sequences share that memory and take turns when it is used up.
//!
//! Owns the choice and how the system is asked for its free memory. Called by `Engine::load`.

use std::path::Path;

use crate::backend::Limits;
use crate::kv::KvLayout;
use crate::model::Config;

/// Length that is kept to where the free memory isn't known, and that memory is not asked about.
pub const LEAST_CONTEXT: usize = 4096;
/// Lengths that are shortened are multiples of it.
const STEP: usize = 256;

/// `limits` with a context as long as `free_bytes` of memory allow, or the bytes in `limits.kv_bytes` where those are
/// given; never shorter than [`LEAST_CONTEXT`] for that, if the model was trained for so much.
pub(crate) fn fit(config: &Config, limits: Limits, free_bytes: Option<u64>) -> Limits {
    let longest = config.n_ctx_train.max(1);
    let least = Limits { n_ctx: longest.min(LEAST_CONTEXT), ..limits };
    let Some(kv_bytes) = limits.kv_bytes.or(free_bytes.map(|bytes| bytes / 2)) else { return least };
    let with = |n_ctx| Limits { n_ctx, kv_bytes: Some(kv_bytes), ..limits };
    let fits = |n_ctx| KvLayout::new(config, &with(n_ctx)).is_ok();
    if fits(longest) {
        return with(longest);
    }
    // In steps, the longest that fits.
    let (mut fitting, mut too_long) = (least.n_ctx / STEP, longest.div_ceil(STEP));
    if !fits(least.n_ctx) {
        return least;
    }
    while too_long - fitting > 1 {
        let middle = fitting.midpoint(too_long);
        *(if fits(middle * STEP) { &mut fitting } else { &mut too_long }) = middle;
    }
    with((fitting * STEP).max(least.n_ctx))
}

/// Bytes of memory that programs can still take, as far as the system tells: the machine's, or what is left of this
/// process's allowance.
pub(crate) fn free_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let machine = read("/proc/meminfo").and_then(|text| field(&text, "MemAvailable:").map(|kib| kib * 1024));
    let group = "/sys/fs/cgroup";
    let number = |name: &str| read(&format!("{group}/{name}"))?.trim().parse::<u64>().ok();
    // Pages of files that are counted as used make way.
    let files = || field(&read(&format!("{group}/memory.stat"))?, "file");
    let allowance = number("memory.max").map(|max| {
        let used = number("memory.current").unwrap_or(0).saturating_sub(files().unwrap_or(0));
        max.saturating_sub(used)
    });
    [machine, allowance].into_iter().flatten().min()
}

/// Bytes of memory that the system has, as far as it tells: without what its firmware set apart for a GPU.
pub(crate) fn all_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, "MemTotal:").map(|kib| kib * 1024)
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::KvOptions;
    use crate::synth::{Plan, SynthOptions, Target};

    #[test]
    fn contexts_are_as_long_as_trained_or_as_memory_allows() {
        let target = Target::find("qwen2.5-coder-1.5b").expect("a known model");
        let header = Plan::new(&SynthOptions::new(target), None).expect("a plan").header();
        let config = Config::from_header(&header).expect("a sound one");
        let limits =
            |kv_bytes| Limits { n_batch: 512, n_outputs: 8, n_seq: 8, n_ctx: 0, kv: KvOptions::default(), kv_bytes };
        let fitted = |kv_bytes, free| {
            let Limits { n_ctx, kv_bytes, .. } = fit(&config, limits(kv_bytes), free);
            (n_ctx, kv_bytes)
        };
        // A sequence of 32768 tokens takes 28672 bytes for each.
        let whole = 32_768 * 28_672;
        assert_eq!(fitted(None, None), (4096, None), "nothing is known");
        assert_eq!(fitted(None, Some(2 * whole)), (32_768, Some(whole)));
        assert_eq!(fitted(None, Some(u64::MAX)), (32_768, Some(u64::MAX / 2)));
        assert_eq!(fitted(None, Some(whole)), (16_384, Some(whole / 2)));
        assert_eq!(fitted(None, Some(2 * whole - 2)), (32_512, Some(whole - 1)));
        assert_eq!(
            fitted(None, Some(1000)),
            (4096, None),
            "as if nothing were known: it may be swapped, or fail by name"
        );
        assert_eq!(fitted(Some(whole / 4), Some(1000)), (8192, Some(whole / 4)), "what was allowed counts");
        assert_eq!(fitted(Some(1000), None), (4096, Some(1000)), "refused when the cache is laid out");
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(field("MemFree: 1 kB\nMemAvailable:   23 kB\n", "MemAvailable:"), Some(23));
        assert_eq!(field("file_mapped 5\nfile 7\n", "file"), Some(7));
        assert_eq!(field("file", "file"), None);
        if cfg!(target_os = "linux") {
            assert!(free_memory().is_some_and(|bytes| bytes > 1 << 20));
            assert!(all_memory() >= free_memory());
        }
    }
}
