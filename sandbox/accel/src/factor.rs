//! Factorisation, and the functions that follow from it.
//!
//! Trial division by small primes, a few steps of Fermat's method for factors that lie close together, then Pollard's rho
//! in Brent's form on Montgomery residues. A composite part that can't be told from a prime here (beyond
//! `prime::PROVEN`) is handed back unfactored.

use crate::{
    Poll,
    modular::{Odd, gcd, isqrt},
    prime::is_prime,
};

/// Primes below this are divided out first.
const TRIAL_LIMIT: u64 = 1000;
/// Steps of Fermat's method; this many find factors that differ by up to about √(8 · steps) · n^¼.
const FERMAT_STEPS: u128 = 16;
/// Steps of rho between two greatest common divisors.
const BATCH: u64 = 128;
/// Batches between two polls.
const BATCHES_PER_POLL: u64 = 32;

/// A factorisation: n = rest · Π prime^exponent, sorted by prime; rest is 1, or a number without factors below
/// [`TRIAL_LIMIT`] whose primality is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Factors {
    /// Primes and their exponents, ascending.
    pub primes: Vec<(u128, u32)>,
    /// What is left.
    pub rest: u128,
}

/// Factors `n` > 0.
pub fn factor<P: Poll>(n: u128, poll: &mut P) -> Result<Factors, P::Stop> {
    assert!(n > 0, "0 has no factorisation");
    let mut primes: Vec<(u128, u32)> = Vec::new();
    let mut left = n;
    let mut divide = |left: &mut u128, candidate: u64| {
        let candidate = u128::from(candidate);
        let mut exponent = 0;
        while left.is_multiple_of(candidate) {
            *left /= candidate;
            exponent += 1;
        }
        if exponent > 0 {
            primes.push((candidate, exponent));
        }
    };
    divide(&mut left, 2);
    divide(&mut left, 3);
    // Numbers that are 1 or 5 modulo 6; those that are composite no longer divide anything.
    let mut candidate = 5;
    while candidate < TRIAL_LIMIT && u128::from(candidate * candidate) <= left {
        if left <= u128::from(u64::MAX) {
            // One division tells whether there is anything to divide out.
            let word = left as u64;
            if word.is_multiple_of(candidate) {
                divide(&mut left, candidate);
            }
            if word.is_multiple_of(candidate + 2) {
                divide(&mut left, candidate + 2);
            }
        } else {
            divide(&mut left, candidate);
            divide(&mut left, candidate + 2);
        }
        candidate += 6;
    }
    if left > 1 && u128::from(candidate * candidate) > left {
        primes.push((left, 1));
        left = 1;
    }
    let mut rest = 1;
    let mut open = if left > 1 { vec![left] } else { Vec::new() };
    while let Some(part) = open.pop() {
        match is_prime(part) {
            Some(true) => match primes.iter_mut().find(|(prime, _)| *prime == part) {
                Some((_, exponent)) => *exponent += 1,
                None => primes.push((part, 1)),
            },
            None => rest *= part,
            Some(false) => {
                let divisor = split(part, poll)?;
                open.extend([divisor, part / divisor]);
            }
        }
    }
    primes.sort_unstable();
    Ok(Factors { primes, rest })
}

/// A proper divisor of an odd composite.
fn split<P: Poll>(n: u128, poll: &mut P) -> Result<u128, P::Stop> {
    let root = isqrt(n);
    if root * root == n {
        return Ok(root);
    }
    if let Some(divisor) = close_divisor(n, root) {
        return Ok(divisor);
    }
    for increment in 1u64.. {
        let found = match u64::try_from(n) {
            Ok(small) => rho_word(small, increment, poll)?.map(u128::from),
            Err(_) => rho_wide(n, u128::from(increment), poll)?,
        };
        if let Some(divisor) = found {
            return Ok(divisor);
        }
    }
    unreachable!("some increment splits a composite")
}

/// The smaller of two divisors of an odd composite that lie close together: n = a² - b² with a just above √n.
fn close_divisor(n: u128, root: u128) -> Option<u128> {
    /// Bit r says whether r is a square modulo 64.
    const SQUARES: u64 = 0x0202_0212_0203_0213;
    for a in root + 1..=root + FERMAT_STEPS {
        let difference = a.checked_mul(a)? - n;
        if SQUARES >> (difference % 64) & 1 == 1 {
            let b = isqrt(difference);
            if b * b == difference {
                return Some(a - b);
            }
        }
    }
    None
}

macro_rules! rho {
    ($name:ident, $word:ty) => {
        /// Brent's variant (1980) of Pollard's rho for x² + increment; None where the walk closes without a divisor.
        fn $name<P: Poll>(n: $word, increment: $word, poll: &mut P) -> Result<Option<$word>, P::Stop> {
            let modulus = Odd::<$word>::new(n);
            let increment = modulus.enter(increment);
            let step = |x: $word| modulus.add(modulus.mul(x, x), increment);
            let divisor = |x: $word| gcd(u128::from(x), u128::from(n)) as $word;
            let (mut y, mut length) = (modulus.enter(2), 1u64);
            let mut n_batches = 0;
            loop {
                let x = y;
                for _ in 0..length {
                    y = step(y);
                }
                let mut n_done = 0;
                while n_done < length {
                    let (start, n_steps) = (y, BATCH.min(length - n_done));
                    let mut product = modulus.enter(1);
                    for _ in 0..n_steps {
                        y = step(y);
                        product = modulus.mul(product, modulus.sub(x, y));
                    }
                    // A Montgomery form and its value differ by a unit.
                    let mut found = divisor(product);
                    if found == n {
                        // Too far: the batch again, one by one.
                        y = start;
                        loop {
                            y = step(y);
                            found = divisor(modulus.sub(x, y));
                            if found != 1 {
                                break;
                            }
                        }
                    }
                    if found != 1 {
                        return Ok((found != n).then_some(found));
                    }
                    n_done += n_steps;
                    n_batches += 1;
                    if n_batches % BATCHES_PER_POLL == 0 {
                        poll.poll()?;
                    }
                }
                length *= 2;
            }
        }
    };
}

rho!(rho_word, u64);
rho!(rho_wide, u128);

/// All divisors, ascending.
pub fn divisors(primes: &[(u128, u32)]) -> Vec<u128> {
    let mut all = vec![1u128];
    for (prime, exponent) in primes {
        let n_before = all.len();
        for idx in 0..n_before * *exponent as usize {
            all.push(all[idx] * prime);
        }
    }
    all.sort_unstable();
    all
}

/// How many divisors there are.
pub fn n_divisors(primes: &[(u128, u32)]) -> u128 {
    primes.iter().map(|(_, exponent)| u128::from(*exponent) + 1).product()
}

/// Euler's φ.
pub fn totient(primes: &[(u128, u32)]) -> u128 {
    primes.iter().map(|(prime, exponent)| prime.pow(exponent - 1) * (prime - 1)).product()
}

/// Möbius' μ.
pub fn mobius(primes: &[(u128, u32)]) -> i32 {
    if primes.iter().any(|(_, exponent)| *exponent > 1) {
        0
    } else if primes.len().is_multiple_of(2) {
        1
    } else {
        -1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, never};

    fn factors(n: u128) -> Vec<(u128, u32)> {
        let Ok(factors) = factor(n, &mut never());
        assert_eq!(factors.rest, 1, "{n}");
        let product: u128 = factors.primes.iter().map(|(p, e)| p.pow(*e)).product();
        assert_eq!(product, n);
        assert!(factors.primes.is_sorted_by(|a, b| a.0 < b.0));
        assert!(factors.primes.iter().all(|(p, _)| is_prime(*p) == Some(true)), "{n}: {factors:?}");
        factors.primes
    }

    #[test]
    fn every_small_number() {
        let gcd_count = |n: u128| (1..=n).filter(|k| gcd(*k, n) == 1).count() as u128;
        for n in 1..3000u128 {
            let primes = factors(n);
            let expected: Vec<u128> = (1..=n).filter(|d| n % d == 0).collect();
            assert_eq!(divisors(&primes), expected, "{n}");
            assert_eq!(n_divisors(&primes), expected.len() as u128);
            assert_eq!(totient(&primes), gcd_count(n), "{n}");
            // Σ μ(d) over the divisors is 1 for 1, else 0.
            let sum: i32 = expected.iter().map(|d| mobius(&factors(*d))).sum();
            assert_eq!(sum, i32::from(n == 1), "{n}");
        }
    }

    #[test]
    fn random_numbers_of_every_length() {
        let mut random = Random(5);
        for _ in 0..400 {
            factors(random.bits(64).max(1));
        }
        for _ in 0..60 {
            factors(random.bits(80).max(1));
        }
    }

    #[test]
    fn semiprimes_squares_and_powers() {
        let p = 4_294_967_291u128;
        assert_eq!(factors(p * p), [(p, 2)]);
        assert_eq!(factors(p * p * 7), [(7, 1), (p, 2)]);
        assert_eq!(factors(1009u128.pow(7)), [(1009, 7)]);
        assert_eq!(factors(1_000_000_007 * 9_999_999_967), [(1_000_000_007, 1), (9_999_999_967, 1)]);
        assert_eq!(factors(9_999_999_967 * 9_999_999_943), [(9_999_999_943, 1), (9_999_999_967, 1)]);
        assert_eq!(factors(1 << 127), [(2, 127)]);
        assert_eq!(factors(600_851_475_143), [(71, 1), (839, 1), (1471, 1), (6857, 1)]);
    }

    #[test]
    fn factors_that_lie_close_together_are_found_without_a_walk() {
        for n in (9..20_000u128).step_by(2).filter(|n| is_prime(*n) == Some(false)) {
            let (root, smallest) = (isqrt(n), (3..n).find(|d| n % d == 0).unwrap());
            // Where the closest pair of divisors is one of `FERMAT_STEPS` it is found; a square is not looked for.
            let closest = (smallest..=root).rev().find(|d| n % d == 0).unwrap();
            let half_sum = (closest + n / closest) / 2;
            let is_near = half_sum > root && half_sum <= root + FERMAT_STEPS;
            if root * root != n {
                assert_eq!(close_divisor(n, root), is_near.then_some(closest), "{n}");
            }
        }
        for (p, q) in [(9_999_999_943, 9_999_999_967), (1_000_003, 1_000_033), (4_294_967_279, 4_294_967_291)] {
            assert_eq!(close_divisor(p * q, isqrt(p * q)), Some(p));
        }
        assert_eq!(close_divisor(1_000_000_007 * 9_999_999_967, isqrt(1_000_000_007 * 9_999_999_967)), None);
        // a² does not fit.
        assert_eq!(close_divisor(u128::MAX, isqrt(u128::MAX)), None);
    }

    #[test]
    fn what_cannot_be_decided_is_handed_back() {
        let mersenne = (1u128 << 107) - 1;
        let Ok(found) = factor(mersenne * 6, &mut never());
        assert_eq!(found, Factors { primes: vec![(2, 1), (3, 1)], rest: mersenne });
    }

    #[test]
    fn a_poll_ends_the_work() {
        let hard = 1_000_000_000_039u128 * 2_000_000_000_003;
        assert_eq!(factor(hard, &mut || Err("stopped")), Err("stopped"));
    }
}
