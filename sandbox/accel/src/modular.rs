//! Arithmetic modulo a number: Montgomery's for odd moduli of one or two machine words, and what is built on it.
//!
//! Called by every other module. Residues inside [`Odd`] are in Montgomery form and never leave it unconverted.

/// An odd modulus with what Montgomery multiplication needs (Montgomery 1985).
#[derive(Clone, Copy, Debug)]
pub struct Odd<W> {
    modulus: W,
    /// −modulus⁻¹ modulo the word.
    negated_inverse: W,
    /// The word squared, modulo the modulus.
    square: W,
}

macro_rules! odd_modulus {
    ($word:ty, $wide_mul:expr) => {
        impl Odd<$word> {
            /// The modulus must be odd and greater than 1.
            pub fn new(modulus: $word) -> Self {
                assert!(modulus % 2 == 1 && modulus > 1, "modulus {modulus}");
                // Newton's iteration doubles the correct bits: 3 of them at first.
                let mut inverse = modulus;
                while modulus.wrapping_mul(inverse) != 1 {
                    inverse = inverse.wrapping_mul((2 as $word).wrapping_sub(modulus.wrapping_mul(inverse)));
                }
                // The word modulo the modulus, doubled as often as the word has bits.
                let mut square = (<$word>::MAX % modulus + 1) % modulus;
                for _ in 0..<$word>::BITS {
                    square = add(square, square, modulus);
                }
                Odd { modulus, negated_inverse: inverse.wrapping_neg(), square }
            }

            /// The modulus itself.
            pub fn modulus(&self) -> $word {
                self.modulus
            }

            /// Montgomery form of `value`.
            #[inline]
            pub fn enter(&self, value: $word) -> $word {
                self.mul(value % self.modulus, self.square)
            }

            /// The value of a Montgomery form.
            #[inline]
            pub fn leave(&self, form: $word) -> $word {
                self.reduce(form, 0)
            }

            /// Product of two Montgomery forms.
            #[inline]
            pub fn mul(&self, a: $word, b: $word) -> $word {
                let (low, high) = $wide_mul(a, b);
                self.reduce(low, high)
            }

            /// Sum of two Montgomery forms.
            #[inline]
            pub fn add(&self, a: $word, b: $word) -> $word {
                add(a, b, self.modulus)
            }

            /// Difference of two Montgomery forms.
            #[inline]
            pub fn sub(&self, a: $word, b: $word) -> $word {
                if a >= b { a - b } else { a.wrapping_sub(b).wrapping_add(self.modulus) }
            }

            #[inline]
            fn reduce(&self, low: $word, high: $word) -> $word {
                let factor = low.wrapping_mul(self.negated_inverse);
                let (_, carried) = $wide_mul(factor, self.modulus);
                // low + factor·modulus is 0 modulo the word; it carries unless low is 0.
                let carry = (low != 0) as $word;
                let (sum, over) = high.overflowing_add(carried);
                let (sum, over_again) = sum.overflowing_add(carry);
                if over || over_again || sum >= self.modulus { sum.wrapping_sub(self.modulus) } else { sum }
            }

            /// Power of a Montgomery form.
            pub fn pow(&self, base: $word, exponent: u128) -> $word {
                let mut result = self.enter(1);
                for idx in (0..128 - exponent.leading_zeros()).rev() {
                    result = self.mul(result, result);
                    if exponent >> idx & 1 == 1 {
                        result = self.mul(result, base);
                    }
                }
                result
            }
        }
    };
}

trait Word: Copy + PartialOrd {
    fn wrapping_sum(self, other: Self) -> (Self, bool);
    fn less(self, other: Self) -> Self;
}

macro_rules! word {
    ($word:ty) => {
        impl Word for $word {
            #[inline]
            fn wrapping_sum(self, other: Self) -> (Self, bool) {
                self.overflowing_add(other)
            }
            #[inline]
            fn less(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    };
}

word!(u64);
word!(u128);

/// a + b modulo `modulus`; both are below it.
#[inline]
fn add<W: Word>(a: W, b: W, modulus: W) -> W {
    let (sum, over) = a.wrapping_sum(b);
    if over || sum >= modulus { sum.less(modulus) } else { sum }
}

odd_modulus!(u64, |a: u64, b: u64| {
    let product = u128::from(a) * u128::from(b);
    (product as u64, (product >> 64) as u64)
});

odd_modulus!(u128, wide_product);

/// Low and high half of a product of two 128-bit numbers.
#[inline]
fn wide_product(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a0, a1, b0, b1) = (a & LOW, a >> 64, b & LOW, b >> 64);
    let low = a0 * b0;
    let cross = a1 * b0 + (low >> 64);
    let other = a0 * b1 + (cross & LOW);
    ((other << 64) | (low & LOW), a1 * b1 + (cross >> 64) + (other >> 64))
}

/// a·b modulo any `modulus` > 0; both are below it.
pub fn mul(a: u128, b: u128, modulus: u128) -> u128 {
    if let (Ok(a), Ok(b)) = (u64::try_from(a), u64::try_from(b)) {
        return u128::from(a) * u128::from(b) % modulus;
    }
    let (mut result, mut term) = (0, a);
    for idx in 0..128 - b.leading_zeros() {
        if b >> idx & 1 == 1 {
            result = add(result, term, modulus);
        }
        term = add(term, term, modulus);
    }
    result
}

/// base^exponent modulo any `modulus` > 0.
pub fn pow(base: u128, exponent: u128, modulus: u128) -> u128 {
    if modulus == 1 {
        return 0;
    }
    if modulus % 2 == 1 {
        return match u64::try_from(modulus) {
            Ok(small) => {
                let odd = Odd::<u64>::new(small);
                u128::from(odd.leave(odd.pow(odd.enter((base % modulus) as u64), exponent)))
            }
            Err(_) => {
                let odd = Odd::<u128>::new(modulus);
                odd.leave(odd.pow(odd.enter(base), exponent))
            }
        };
    }
    let (mut result, mut square) = (1, base % modulus);
    for idx in 0..128 - exponent.leading_zeros() {
        if exponent >> idx & 1 == 1 {
            result = mul(result, square, modulus);
        }
        square = mul(square, square, modulus);
    }
    result
}

/// Greatest common divisor.
pub fn gcd(mut a: u128, mut b: u128) -> u128 {
    // Most calls are on one word, where the machine divides by itself.
    while b != 0 {
        if let (Ok(mut x), Ok(mut y)) = (u64::try_from(a), u64::try_from(b)) {
            while y != 0 {
                (x, y) = (y, x % y);
            }
            return u128::from(x);
        }
        (a, b) = (b, a % b);
    }
    a
}

/// a⁻¹ modulo `modulus`, None where they have a common factor.
pub fn inverse(a: u128, modulus: u128) -> Option<u128> {
    if modulus == 1 {
        return Some(0);
    }
    let (mut r, mut next_r) = (modulus, a % modulus);
    let (mut t, mut next_t) = (0u128, 1u128);
    while next_r != 0 {
        let quotient = r / next_r;
        (r, next_r) = (next_r, r % next_r);
        let taken = mul(quotient % modulus, next_t, modulus);
        (t, next_t) = (next_t, if t >= taken { t - taken } else { t + (modulus - taken) });
    }
    (r == 1).then_some(t)
}

/// ⌊√n⌋.
pub fn isqrt(n: u128) -> u128 {
    n.isqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Schoolbook: shift and add.
    fn slow_mul(a: u128, b: u128, m: u128) -> u128 {
        let (mut result, mut a) = (0u128, a % m);
        for idx in 0..128 {
            if b >> idx & 1 == 1 {
                result = if result >= m - a { result - (m - a) } else { result + a };
            }
            a = if a >= m - a { a - (m - a) } else { a + a };
        }
        result
    }

    #[test]
    fn products_agree_with_shift_and_add() {
        let mut random = Random(1);
        for round in 0..3000 {
            let modulus = match round {
                0 => u128::MAX,
                1 => u128::MAX - 158,
                2 => (1 << 64) + 1,
                3 => 3,
                _ => random.bits(128).max(2),
            };
            let (a, b) = (random.bits(128) % modulus, random.bits(128) % modulus);
            let expected = slow_mul(a, b, modulus);
            assert_eq!(mul(a, b, modulus), expected, "{a} {b} {modulus}");
            if modulus % 2 == 1 {
                let odd = Odd::<u128>::new(modulus);
                assert_eq!(odd.leave(odd.mul(odd.enter(a), odd.enter(b))), expected, "{a} {b} {modulus}");
                assert_eq!(odd.leave(odd.enter(a)), a);
            }
            if let (Ok(small), true) = (u64::try_from(modulus), modulus % 2 == 1 && modulus > 1) {
                let odd = Odd::<u64>::new(small);
                assert_eq!(u128::from(odd.leave(odd.mul(odd.enter(a as u64), odd.enter(b as u64)))), expected);
            }
        }
    }

    #[test]
    fn powers_inverses_and_divisors() {
        let mut random = Random(2);
        for _ in 0..500 {
            let modulus = random.bits(128).max(1);
            let (a, e) = (random.bits(128), random.bits(16));
            let expected = (0..e.min(300)).fold(1 % modulus, |p, _| slow_mul(p, a, modulus));
            assert_eq!(pow(a, e.min(300), modulus), expected, "{a} {e} {modulus}");
            match inverse(a, modulus) {
                Some(inverse) => assert_eq!(slow_mul(a, inverse, modulus), 1 % modulus, "{a} {modulus}"),
                None => assert!(gcd(a, modulus) > 1, "{a} {modulus}"),
            }
            let common = random.bits(60).max(1);
            let (x, y) = (random.bits(60) * common, random.bits(60) * common);
            assert_eq!(gcd(x, y) % common, 0);
        }
        assert_eq!((gcd(0, 0), gcd(0, 7), gcd(12, 18)), (0, 7, 6));
        assert_eq!((inverse(3, 7), inverse(2, 4), inverse(5, 1)), (Some(5), None, Some(0)));
        assert_eq!((pow(0, 0, 5), pow(2, 10, 1), pow(7, 0, 1)), (1, 0, 0));
    }
}
