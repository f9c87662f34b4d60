//! Many primes at once: ranges, their number, the n-th one.
//!
//! Ranges come from a segmented sieve of Eratosthenes over odd numbers; π(n) is counted without listing (Lucy's
//! recurrence, O(n^3/4)). Memory is bounded by [`SEGMENT`] and √n.

use crate::{Poll, modular::isqrt};

/// Odd numbers per segment: one byte each, so that a segment stays in the cache.
const SEGMENT: usize = 1 << 18;

/// Largest end of a range: the sieve needs the primes below its root.
pub const MAX_END: u64 = 1 << 48;

/// The odd primes up to `limit`.
fn odd_primes(limit: usize) -> Vec<u32> {
    let mut is_composite = vec![false; limit / 2 + 1];
    let mut primes = Vec::new();
    // Index i stands for 2i + 1.
    for idx in 1..limit.div_ceil(2) {
        if !is_composite[idx] {
            let prime = 2 * idx + 1;
            primes.push(prime as u32);
            (prime * prime / 2..is_composite.len()).step_by(prime).for_each(|multiple| is_composite[multiple] = true);
        }
    }
    primes
}

/// Calls `found` for every prime in `start..end`, in order, until it answers false. `end` is at most [`MAX_END`].
pub fn for_each_prime<P: Poll>(
    start: u64,
    end: u64,
    poll: &mut P,
    mut found: impl FnMut(u64) -> bool,
) -> Result<(), P::Stop> {
    assert!(end <= MAX_END, "range up to {end}");
    if start <= 2 && end > 2 && !found(2) {
        return Ok(());
    }
    let mut low = start.max(3) | 1;
    if low >= end {
        return Ok(());
    }
    let primes = odd_primes(isqrt(u128::from(end)) as usize + 1);
    let mut is_composite = vec![false; SEGMENT.min((end - low).div_ceil(2) as usize)];
    while low < end {
        poll.poll()?;
        let n_odd = ((end - low).div_ceil(2) as usize).min(is_composite.len());
        let high = low + 2 * n_odd as u64;
        is_composite[..n_odd].fill(false);
        for prime in primes.iter().map(|prime| u64::from(*prime)).take_while(|prime| prime * prime < high) {
            let first = (prime * prime).max(low.div_ceil(prime) * prime);
            let first = if first % 2 == 0 { first + prime } else { first };
            let mut idx = ((first - low) / 2) as usize;
            while idx < n_odd {
                is_composite[idx] = true;
                idx += prime as usize;
            }
        }
        for (idx, _) in is_composite[..n_odd].iter().enumerate().filter(|(_, composite)| !**composite) {
            if !found(low + 2 * idx as u64) {
                return Ok(());
            }
        }
        low = high;
    }
    Ok(())
}

/// Most memory that counting may take is two tables of √n numbers of eight bytes.
pub const MAX_COUNT: u64 = 1 << 44;

/// π(n): how many primes are at most `n`, which is at most [`MAX_COUNT`].
pub fn prime_pi<P: Poll>(n: u64, poll: &mut P) -> Result<u64, P::Stop> {
    assert!(n <= MAX_COUNT, "π({n})");
    if n < 2 {
        return Ok(0);
    }
    let root = isqrt(u128::from(n)) as usize;
    // small[v] counts what the sieve so far leaves of 2..=v, large[k] of 2..=n/k.
    let mut small: Vec<u64> = (0..=root as u64).map(|v| v.saturating_sub(1)).collect();
    let mut large: Vec<u64> = std::iter::once(0).chain((1..=root as u64).map(|k| n / k - 1)).collect();
    for prime in 2..=root as u64 {
        let p = prime as usize;
        if small[p] == small[p - 1] {
            continue;
        }
        let (below, square) = (small[p - 1], prime * prime);
        if square > n {
            break;
        }
        poll.poll()?;
        let n_large = (root as u64).min(n / square) as usize;
        for k in 1..=n_large {
            let rest = k * p;
            let counted = if rest <= root { large[rest] } else { small[(n / rest as u64) as usize] };
            large[k] -= counted - below;
        }
        for v in (square as usize..=root).rev() {
            small[v] -= small[v / p] - below;
        }
    }
    Ok(large[1])
}

/// Largest argument of [`nth_prime`].
pub const MAX_NTH: u64 = 1 << 37;

/// The n-th prime, from 1; `n` is at most [`MAX_NTH`].
pub fn nth_prime<P: Poll>(n: u64, poll: &mut P) -> Result<u64, P::Stop> {
    assert!((1..=MAX_NTH).contains(&n), "prime {n}");
    // A lower bound that is close (Dusart 1999: p_n ≥ n (ln n + ln ln n − 1)), counted exactly and walked up from.
    let x = n as f64;
    let bound = if n < 10 { 0 } else { (x * (x.ln() + x.ln().ln() - 1.0)) as u64 };
    let mut left = n - prime_pi(bound, poll)?;
    let (mut start, mut answer) = (bound + 1, 0);
    while left > 0 {
        let end = start + (left * 40).max(1000);
        for_each_prime(start, end, poll, |prime| {
            left -= 1;
            answer = prime;
            left > 0
        })?;
        start = end;
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{prime::is_prime, testing::never};

    fn range(start: u64, end: u64) -> Vec<u64> {
        let mut primes = Vec::new();
        let Ok(()) = for_each_prime(start, end, &mut never(), |prime| {
            primes.push(prime);
            true
        });
        primes
    }

    #[test]
    fn ranges_hold_the_primes_and_nothing_else() {
        let ends = [0, 1, 2, 3, 4, 5, 9, 10, 25, 26, 49, 121, 122, 1000];
        for start in ends {
            for end in ends {
                let expected: Vec<u64> = (start..end).filter(|n| is_prime(u128::from(*n)).unwrap()).collect();
                assert_eq!(range(start, end), expected, "{start}..{end}");
            }
        }
        let far = 1_000_000_000_000;
        let expected: Vec<u64> = (far..far + 2000).filter(|n| is_prime(u128::from(*n)).unwrap()).collect();
        assert_eq!(range(far, far + 2000), expected);
        // Over several segments.
        let all = range(0, 3_000_000);
        assert_eq!((all.len(), all[216_815]), (216_816, 2_999_999));
    }

    #[test]
    fn counts_agree_with_lists_and_with_known_values() {
        for n in 0..2000 {
            assert_eq!(prime_pi(n, &mut never()), Ok(range(0, n + 1).len() as u64), "{n}");
        }
        // OEIS A006880.
        for (n, count) in [(10u64.pow(6), 78_498), (10u64.pow(9), 50_847_534), (10u64.pow(10), 455_052_511)] {
            assert_eq!(prime_pi(n, &mut never()), Ok(count));
        }
    }

    #[test]
    fn the_nth_prime() {
        let all = range(0, 110_000);
        for n in (1..200).chain(10_000..10_010) {
            assert_eq!(nth_prime(n, &mut never()), Ok(all[n as usize - 1]), "{n}");
        }
        assert_eq!(nth_prime(1_000_000, &mut never()), Ok(15_485_863));
        assert_eq!(nth_prime(10_000_000, &mut never()), Ok(179_424_673));
    }

    #[test]
    fn a_poll_ends_the_work() {
        let mut n_left = 3;
        let mut poll = || {
            n_left -= 1;
            if n_left == 0 { Err("stopped") } else { Ok(()) }
        };
        assert_eq!(for_each_prime(0, 1 << 40, &mut poll, |_| true), Err("stopped"));
        assert_eq!(prime_pi(1 << 40, &mut || Err("at once")), Err("at once"));
    }
}
