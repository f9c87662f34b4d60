//! Primality, proven.
//!
//! The Miller–Rabin test with the first 13 primes as bases decides every number below [`PROVEN`] (Sorenson, Webster
//! 2015); above, only compositeness is ever claimed and the rest is the caller's.

use crate::modular::Odd;

/// Every number below has been decided right by the test: 3317044064679887385961981.
pub const PROVEN: u128 = 3_317_044_064_679_887_385_961_981;

/// The first 13 primes.
const BASES: [u64; 13] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41];
/// The first 12 primes decide every number of one word (Sorenson, Webster 2015).
const N_BASES_OF_ONE_WORD: usize = 12;

/// Whether `n` is prime; None where that isn't decided here (`n` ≥ [`PROVEN`] without small factors).
pub fn is_prime(n: u128) -> Option<bool> {
    if n < 2 {
        return Some(false);
    }
    for base in BASES.map(u128::from) {
        if n.is_multiple_of(base) {
            return Some(n == base);
        }
    }
    if n < 43 * 43 {
        return Some(true);
    }
    match u64::try_from(n) {
        Ok(small) => Some(is_prime_word(small)),
        Err(_) => {
            let modulus = Odd::<u128>::new(n);
            let passes = BASES.iter().all(|base| passes_wide(&modulus, u128::from(*base)));
            if n < PROVEN || !passes { Some(passes) } else { None }
        }
    }
}

/// The test for an odd number of one word without factors among the bases.
fn is_prime_word(n: u64) -> bool {
    let modulus = Odd::<u64>::new(n);
    let (one, shift) = (modulus.enter(1), (n - 1).trailing_zeros());
    let (minus_one, odd_part) = (modulus.sub(0, one), (n - 1) >> shift);
    // Three bases suffice below 4759123141 (Jaeschke 1993).
    let bases: &[u64] = if n < 4_759_123_141 { &[2, 7, 61] } else { &BASES[..N_BASES_OF_ONE_WORD] };
    bases.iter().filter(|base| **base % n != 0).all(|base| {
        let mut power = modulus.pow(modulus.enter(*base), u128::from(odd_part));
        if power == one || power == minus_one {
            return true;
        }
        (1..shift).any(|_| {
            power = modulus.mul(power, power);
            power == minus_one
        })
    })
}

fn passes_wide(modulus: &Odd<u128>, base: u128) -> bool {
    let n = modulus.modulus();
    let (one, shift) = (modulus.enter(1), (n - 1).trailing_zeros());
    let minus_one = modulus.sub(0, one);
    let mut power = modulus.pow(modulus.enter(base), (n - 1) >> shift);
    if power == one || power == minus_one {
        return true;
    }
    (1..shift).any(|_| {
        power = modulus.mul(power, power);
        power == minus_one
    })
}

/// The smallest prime above `n`; None where the search leaves what is proven.
pub fn next_prime(n: u128) -> Option<u128> {
    if n < 2 {
        return Some(2);
    }
    let mut candidate = n.checked_add(1)? | 1;
    while !is_prime(candidate)? {
        candidate = candidate.checked_add(2)?;
    }
    Some(candidate)
}

/// The largest prime below `n`; None where there is none or `n` is beyond what is proven.
pub fn prev_prime(n: u128) -> Option<u128> {
    match n {
        0..=2 => None,
        3 => Some(2),
        _ => {
            let mut candidate = (n - 2) | 1;
            while !is_prime(candidate)? {
                candidate -= 2;
            }
            Some(candidate)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_division(n: u128) -> bool {
        n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
    }

    #[test]
    fn small_numbers_agree_with_division() {
        for n in 0..20_000 {
            assert_eq!(is_prime(n), Some(by_division(n)), "{n}");
        }
        for n in (1u128 << 32) - 200..(1 << 32) + 200 {
            assert_eq!(is_prime(n), Some(by_division(n)), "{n}");
        }
    }

    #[test]
    fn pseudoprimes_and_large_primes() {
        // Strong pseudoprimes to many bases (OEIS A014233), Carmichael numbers, Mersenne numbers.
        for n in [
            2047u128,
            1_373_653,
            25_326_001,
            3_215_031_751,
            2_152_302_898_747,
            3_474_749_660_383,
            341_550_071_728_321,
            3_825_123_056_546_413_051,
            318_665_857_834_031_151_167_461,
            561,
            1105,
            825_265,
            (1 << 67) - 1,
            4_759_123_141,
            18_446_744_073_709_551_557 * 2,
        ] {
            assert_eq!(is_prime(n), Some(false), "{n}");
        }
        for n in [(1u128 << 61) - 1, 18_446_744_073_709_551_557, (1 << 64) + 13, 1_000_000_000_000_000_000_000_007] {
            assert_eq!(is_prime(n), Some(true), "{n}");
        }
        assert_eq!(is_prime((1 << 127) - 1), None);
        assert_eq!(is_prime(PROVEN), None, "the first number that fools every base");
        assert_eq!(is_prime(u128::MAX), Some(false));
    }

    #[test]
    fn neighbours() {
        assert_eq!(
            (next_prime(0), next_prime(2), next_prime(7), next_prime(89)),
            (Some(2), Some(3), Some(11), Some(97))
        );
        assert_eq!((prev_prime(2), prev_prime(3), prev_prime(4), prev_prime(100)), (None, Some(2), Some(3), Some(97)));
        assert_eq!(next_prime(u128::from(u64::MAX)), Some((1 << 64) + 13));
        assert_eq!(prev_prime(1 << 64), Some(18_446_744_073_709_551_557));
        assert_eq!(next_prime(1 << 120), None);
    }
}
