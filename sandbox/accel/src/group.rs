//! The multiplicative group modulo a number: orders, primitive roots, square roots, discrete logarithms.
//!
//! The modulus is at most [`MAX_MODULUS`], so that its group's order can be factored and two of its powers searched.

use crate::{
    Poll,
    factor::factor,
    modular::{gcd, inverse, isqrt, mul, pow},
};
use std::collections::HashMap;

/// Largest modulus of this module.
pub const MAX_MODULUS: u128 = (1 << 64) - 1;

/// Order of `a` modulo `n`, both at most [`MAX_MODULUS`]; None where they have a common factor.
pub fn order<P: Poll>(a: u128, n: u128, poll: &mut P) -> Result<Option<u128>, P::Stop> {
    assert!((1..=MAX_MODULUS).contains(&n), "modulus {n}");
    if gcd(a, n) != 1 {
        return Ok(None);
    }
    let mut group_order = 1u128;
    for (prime, exponent) in factor(n, poll)?.primes {
        group_order *= (prime - 1) * prime.pow(exponent - 1);
    }
    let mut order = group_order;
    for (prime, _) in factor(group_order, poll)?.primes {
        while order.is_multiple_of(prime) && pow(a, order / prime, n) == 1 % n {
            order /= prime;
        }
    }
    Ok(Some(order))
}

/// The smallest primitive root of an odd prime.
pub fn primitive_root<P: Poll>(prime: u128, poll: &mut P) -> Result<u128, P::Stop> {
    assert!(prime > 2 && prime <= MAX_MODULUS, "prime {prime}");
    let factors = factor(prime - 1, poll)?.primes;
    let is_root = |g: &u128| factors.iter().all(|(q, _)| pow(*g, (prime - 1) / q, prime) != 1);
    Ok((2..).find(is_root).expect("every prime has a primitive root"))
}

/// The smaller square root of `a` modulo an odd prime (Tonelli, Shanks); None where there is none.
pub fn sqrt_mod_prime(a: u128, prime: u128) -> Option<u128> {
    assert!(prime > 2 && prime % 2 == 1 && prime <= MAX_MODULUS, "prime {prime}");
    let a = a % prime;
    if a == 0 {
        return Some(0);
    }
    if pow(a, (prime - 1) / 2, prime) != 1 {
        return None;
    }
    let shift = (prime - 1).trailing_zeros();
    let odd_part = (prime - 1) >> shift;
    let non_residue = (2..).find(|z| pow(*z, (prime - 1) / 2, prime) == prime - 1).expect("half of all are");
    let (mut m, mut c) = (shift, pow(non_residue, odd_part, prime));
    let (mut t, mut root) = (pow(a, odd_part, prime), pow(a, odd_part.div_ceil(2), prime));
    while t != 1 {
        let (mut idx, mut square) = (0, t);
        while square != 1 {
            square = mul(square, square, prime);
            idx += 1;
        }
        let b = pow(c, 1 << (m - idx - 1), prime);
        (m, c) = (idx, mul(b, b, prime));
        (t, root) = (mul(t, c, prime), mul(root, b, prime));
    }
    Some(root.min(prime - root))
}

/// Most steps of a baby-step table, 16 bytes each and more.
const MAX_BABY_STEPS: u128 = 1 << 21;

/// How a search for a logarithm ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// The smallest exponent ≥ 0.
    Found(u128),
    /// There is none.
    Nowhere,
    /// The group has a prime factor too large for a table.
    TooLarge,
}

/// The smallest x ≥ 0 with base^x = a modulo `n` (Pohlig, Hellman; baby and giant steps). The base must be coprime to
/// `n`.
pub fn discrete_log<P: Poll>(n: u128, a: u128, base: u128, poll: &mut P) -> Result<Log, P::Stop> {
    let Some(order) = order(base, n, poll)? else { return Ok(Log::TooLarge) };
    let a = a % n;
    if gcd(a, n) != 1 || pow(a, order, n) != 1 % n {
        return Ok(Log::Nowhere);
    }
    let (mut residue, mut modulus) = (0u128, 1u128);
    for (prime, exponent) in factor(order, poll)?.primes {
        if prime > MAX_BABY_STEPS * MAX_BABY_STEPS {
            return Ok(Log::TooLarge);
        }
        let (mut digits, mut power) = (0, 1);
        let generator = pow(base, order / prime, n);
        let table = Table::new(generator, prime, n, poll)?;
        for _ in 0..exponent {
            // a·base^(−digits), raised so that only the next digit in base `prime` is left.
            let known = pow(inverse(base, n).expect("coprime"), digits, n);
            let target = pow(mul(a, known, n), order / (power * prime), n);
            match table.find(target, poll)? {
                Some(digit) => digits += digit * power,
                None => return Ok(Log::Nowhere),
            }
            power *= prime;
        }
        // residue + modulus·k ≡ digits modulo power.
        let difference = (digits + power - residue % power) % power;
        let step = inverse(modulus % power, power).expect("coprime powers");
        residue += modulus * mul(difference, step, power);
        modulus *= power;
    }
    // Every digit was found, but they need not fit together where `a` lies outside the base's group.
    Ok(if pow(base, residue, n) == a { Log::Found(residue) } else { Log::Nowhere })
}

/// The baby steps of one generator.
struct Table {
    steps: HashMap<u64, u32>,
    /// generator^(−number of steps).
    giant: u128,
    n_giants: u128,
    modulus: u128,
}

impl Table {
    fn new<P: Poll>(generator: u128, order: u128, modulus: u128, poll: &mut P) -> Result<Table, P::Stop> {
        let n_steps = isqrt(order) + 1;
        let mut steps = HashMap::with_capacity(n_steps as usize);
        let mut value = 1 % modulus;
        for step in 0..n_steps {
            steps.entry(value as u64).or_insert(step as u32);
            value = mul(value, generator, modulus);
            if step % (1 << 14) == 0 {
                poll.poll()?;
            }
        }
        let giant = inverse(value, modulus).expect("a unit");
        Ok(Table { steps, giant, n_giants: order.div_ceil(n_steps), modulus })
    }

    fn find<P: Poll>(&self, target: u128, poll: &mut P) -> Result<Option<u128>, P::Stop> {
        let n_steps = self.steps.len() as u128;
        let mut value = target;
        for giant in 0..=self.n_giants {
            if let Some(step) = self.steps.get(&(value as u64)) {
                return Ok(Some(giant * n_steps + u128::from(*step)));
            }
            value = mul(value, self.giant, self.modulus);
            if giant % (1 << 14) == 0 {
                poll.poll()?;
            }
        }
        Ok(None)
    }
}

/// The solution of x ≡ residue modulo every modulus, with the moduli's least common multiple; the outer None where it
/// leaves 128 bits, the inner where there is no solution.
pub fn crt(moduli: &[u128], residues: &[u128]) -> Option<Option<(u128, u128)>> {
    let (mut x, mut m) = (0u128, 1u128);
    for (modulus, residue) in moduli.iter().zip(residues) {
        let common = gcd(m, *modulus);
        let residue = residue % modulus;
        // Neither branch leaves 128 bits.
        let here = x % modulus;
        let difference = if residue >= here { residue - here } else { residue + (modulus - here) };
        if difference % common != 0 {
            return Some(None);
        }
        let reduced = modulus / common;
        let step = inverse(m / common % reduced, reduced).expect("coprime after division");
        let k = mul(difference / common % reduced, step, reduced);
        let lcm = m.checked_mul(reduced)?;
        x += m * k;
        m = lcm;
    }
    Some(Some((x, m)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        prime::is_prime,
        testing::{Random, never},
    };

    #[test]
    fn orders_and_roots_by_counting() {
        for n in 1..200u128 {
            for a in 0..n.max(2) {
                let mut power = a % n;
                let counted = (gcd(a, n) == 1).then(|| {
                    let mut k = 1;
                    while power != 1 % n {
                        power = power * a % n;
                        k += 1;
                    }
                    k
                });
                assert_eq!(order(a, n, &mut never()), Ok(counted), "{a} mod {n}");
            }
            if n > 2 && is_prime(n) == Some(true) {
                let by_order = (2..).find(|g| order(*g, n, &mut never()) == Ok(Some(n - 1))).unwrap();
                assert_eq!(primitive_root(n, &mut never()), Ok(by_order), "{n}");
                for a in 0..n {
                    let expected = (0..n).find(|x| x * x % n == a);
                    assert_eq!(sqrt_mod_prime(a, n), expected, "√{a} mod {n}");
                }
            }
        }
        let p = 18_446_744_073_709_551_557;
        let root = sqrt_mod_prime(1234 * 1234, p).unwrap();
        assert_eq!(root, 1234);
    }

    #[test]
    fn logarithms_by_counting() {
        for n in 2..80u128 {
            for base in (1..n).filter(|b| gcd(*b, n) == 1) {
                for a in 0..n {
                    let expected = (0..n).find(|x| pow(base, *x, n) == a).map_or(Log::Nowhere, Log::Found);
                    assert_eq!(discrete_log(n, a, base, &mut never()), Ok(expected), "{base}^x = {a} mod {n}");
                }
            }
        }
        assert_eq!(discrete_log(41, 15, 7, &mut never()), Ok(Log::Found(3)));
        // A group whose order has a prime factor of 10 digits.
        let p = 10_000_000_259;
        let x = 1_234_567_890;
        let Ok(g) = primitive_root(p, &mut never());
        assert_eq!(discrete_log(p, pow(g, x, p), g, &mut never()), Ok(Log::Found(x)));
    }

    #[test]
    fn remainders() {
        let mut random = Random(9);
        assert_eq!(crt(&[3, 5, 7], &[2, 3, 2]), Some(Some((23, 105))));
        assert_eq!(crt(&[4, 6], &[1, 2]), Some(None));
        assert_eq!(crt(&[4, 6], &[1, 3]), Some(Some((9, 12))));
        assert_eq!(crt(&[], &[]), Some(Some((0, 1))));
        for _ in 0..500 {
            let moduli: Vec<u128> = (0..4).map(|_| random.bits(30).max(1)).collect();
            let x = random.bits(100);
            let residues: Vec<u128> = moduli.iter().map(|m| x % m).collect();
            let Some(Some((found, lcm))) = crt(&moduli, &residues) else { panic!("{moduli:?}") };
            assert_eq!(found, x % lcm);
        }
        let huge = [u128::MAX, u128::MAX - 2];
        assert_eq!(crt(&huge, &[1, 1]), None);
        assert_eq!(crt(&[2, u128::MAX], &[1, u128::MAX - 1]), None);
        assert_eq!(crt(&[u128::MAX, 1], &[u128::MAX - 1, 0]), Some(Some((u128::MAX - 1, u128::MAX))));
    }
}
