//! What the system tells of this process and its processor. Everything is optional: a system that doesn't tell leaves
//! fields of `bench` empty.

/// The processor's name; empty where the system doesn't tell.
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .filter_map(|l| l.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

/// `VmHWM` of this process.
pub fn peak_rss_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Processor time so far: of this thread alone, or of the whole process; `None` where the system doesn't tell.
pub fn cpu_ns(of_thread: bool) -> Option<u64> {
    if of_thread {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        return text.split_ascii_whitespace().next()?.parse().ok();
    }
    // User and system time are fields 14 and 15, in ticks of 10 ms; the name before may hold anything but ends with `)`.
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) * 10_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_are_read_where_the_system_tells() {
        if cfg!(target_os = "linux") {
            assert!(peak_rss_bytes().is_some_and(|n| n > 100_000));
            assert!(cpu_ns(true).is_some() && cpu_ns(false).is_some());
        }
    }
}
