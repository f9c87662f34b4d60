//! Read bandwidth of the machine's memory: what a decode step on the CPU, which reads every weight once, can't beat.

use std::hint::black_box;
use std::time::Instant;

/// Size of the buffer; larger than the last-level cache of any machine this runs on.
const BUFFER_BYTES: usize = 1 << 29;

/// Passes over the buffer, of which the fastest counts: others share the machine.
const N_PASSES: usize = 6;

/// GB/s at which `n_threads` threads read one large buffer.
pub fn read_gb_per_s(n_threads: usize) -> f64 {
    // Values other than 0, so that every page exists and is read.
    let buffer: Vec<u64> = (0..(BUFFER_BYTES / 8) as u64).collect();
    let share = buffer.len().div_ceil(n_threads.max(1));
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(share) {
                scope.spawn(|| black_box(part.iter().fold(0u64, |sum, x| sum.wrapping_add(*x))));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..N_PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    BUFFER_BYTES as f64 / best / 1e9
}
