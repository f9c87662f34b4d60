//! Products of matrices, and linear algebra on small dense ones.
//!
//! Elimination with partial pivoting for determinants and systems, Householder's reflections for least squares,
//! Hessenberg form and shifted QR steps on complex numbers for eigenvalues. Matrices are row-major, n columns.

use super::{ArrayError, Buffer, Complex, Kind, Layout};

/// The product of an (n, k) and a (k, m) view as n·m elements.
pub fn matmul((a, a_layout): (&Buffer, &Layout), (b, b_layout): (&Buffer, &Layout)) -> Result<Buffer, ArrayError> {
    let (&[n, k], &[other_k, m]) = (&a_layout.shape[..], &b_layout.shape[..]) else {
        panic!("a product of {:?} and {:?}", a_layout.shape, b_layout.shape)
    };
    if k != other_k {
        return Err(ArrayError::Core(k, other_k));
    }
    let kind = a.kind().max(b.kind());
    fn multiply<T: Copy>(
        (a, b): (&[T], &[T]),
        (n, k, m): (usize, usize, usize),
        zero: T,
        step: impl Fn(T, T, T) -> T,
    ) -> Vec<T> {
        let mut product = vec![zero; n * m];
        for row in 0..n {
            let target = &mut product[row * m..][..m];
            for (factor, line) in a[row * k..][..k].iter().zip(b.chunks_exact(m.max(1))) {
                target.iter_mut().zip(line).for_each(|(sum, value)| *sum = step(*sum, *factor, *value));
            }
        }
        product
    }
    let size = (n, k, m);
    Ok(match (a.gather(a_layout, kind), b.gather(b_layout, kind)) {
        (Buffer::Bool(a), Buffer::Bool(b)) => Buffer::Bool(multiply((&a, &b), size, false, |sum, x, y| sum | (x & y))),
        (Buffer::Int(a), Buffer::Int(b)) => {
            Buffer::Int(multiply((&a, &b), size, 0, |sum, x, y| sum.wrapping_add(x.wrapping_mul(y))))
        }
        (Buffer::Float(a), Buffer::Float(b)) => Buffer::Float(multiply((&a, &b), size, 0.0, |sum, x, y| sum + x * y)),
        (Buffer::Complex(a), Buffer::Complex(b)) => {
            Buffer::Complex(multiply((&a, &b), size, Complex::default(), |sum, x, y| sum + x * y))
        }
        _ => unreachable!("both were converted to {kind:?}"),
    })
}

/// A square matrix after elimination: factors of a row-permuted matrix.
struct Eliminated {
    lu: Vec<f64>,
    /// Row of the original that ended up in each place.
    rows: Vec<usize>,
    is_odd: bool,
    n: usize,
    is_singular: bool,
}

fn eliminate(mut lu: Vec<f64>, n: usize) -> Eliminated {
    let mut rows: Vec<usize> = (0..n).collect();
    let (mut is_odd, mut is_singular) = (false, false);
    for column in 0..n {
        let largest =
            |best: usize, row: usize| if lu[row * n + column].abs() > lu[best * n + column].abs() { row } else { best };
        let pivot = (column + 1..n).fold(column, largest);
        if lu[pivot * n + column] == 0.0 {
            is_singular = true;
            continue;
        }
        if pivot != column {
            (0..n).for_each(|k| lu.swap(pivot * n + k, column * n + k));
            rows.swap(pivot, column);
            is_odd = !is_odd;
        }
        for row in column + 1..n {
            let factor = lu[row * n + column] / lu[column * n + column];
            lu[row * n + column] = factor;
            if factor != 0.0 {
                for k in column + 1..n {
                    lu[row * n + k] -= factor * lu[column * n + k];
                }
            }
        }
    }
    Eliminated { lu, rows, is_odd, n, is_singular }
}

/// Determinant of an (n, n) matrix.
pub fn det(matrix: Vec<f64>, n: usize) -> f64 {
    let eliminated = eliminate(matrix, n);
    if eliminated.is_singular {
        return 0.0;
    }
    let sign = if eliminated.is_odd { -1.0 } else { 1.0 };
    (0..n).fold(sign, |product, k| product * eliminated.lu[k * n + k])
}

/// The (n, m) solution of matrix · x = right.
pub fn solve(matrix: Vec<f64>, right: &[f64], n: usize, m: usize) -> Result<Vec<f64>, ArrayError> {
    let Eliminated { lu, rows, n, is_singular, .. } = eliminate(matrix, n);
    if is_singular {
        return Err(ArrayError::Singular);
    }
    let mut x: Vec<f64> = rows.iter().flat_map(|row| &right[row * m..][..m]).copied().collect();
    for column in 0..m {
        for row in 0..n {
            for k in 0..row {
                x[row * m + column] -= lu[row * n + k] * x[k * m + column];
            }
        }
        for row in (0..n).rev() {
            for k in row + 1..n {
                x[row * m + column] -= lu[row * n + k] * x[k * m + column];
            }
            x[row * m + column] /= lu[row * n + row];
        }
    }
    Ok(x)
}

/// The x that makes |matrix · x − right| smallest, for an (n, k) matrix of full rank with n ≥ k, with that length
/// squared.
pub fn least_squares(mut a: Vec<f64>, mut right: Vec<f64>, n: usize, k: usize) -> Result<(Vec<f64>, f64), ArrayError> {
    for column in 0..k {
        let length = (column..n).map(|row| a[row * k + column].powi(2)).sum::<f64>().sqrt();
        if length == 0.0 {
            return Err(ArrayError::Singular);
        }
        let head = a[column * k + column];
        let alpha = -length.copysign(head);
        let mut v: Vec<f64> = (column..n).map(|row| a[row * k + column]).collect();
        v[0] -= alpha;
        let norm: f64 = v.iter().map(|x| x * x).sum();
        let reflect = |target: &mut [f64], stride: usize, offset: usize| {
            let dot: f64 = v.iter().enumerate().map(|(i, x)| x * target[(column + i) * stride + offset]).sum();
            for (i, x) in v.iter().enumerate() {
                target[(column + i) * stride + offset] -= 2.0 * dot / norm * x;
            }
        };
        (column..k).for_each(|other| reflect(&mut a, k, other));
        reflect(&mut right, 1, 0);
    }
    let mut x = right[..k].to_vec();
    for row in (0..k).rev() {
        for other in row + 1..k {
            x[row] -= a[row * k + other] * x[other];
        }
        x[row] /= a[row * k + row];
    }
    Ok((x, right[k..].iter().map(|r| r * r).sum()))
}

/// Steps per eigenvalue before the search is given up.
const MAX_STEPS: usize = 300;

/// Eigenvalues of an (n, n) matrix; those of a real matrix with vanishing imaginary parts come out real.
pub fn eigenvalues(matrix: &Buffer, n: usize) -> Result<Vec<Complex>, ArrayError> {
    let is_real = matrix.kind() != Kind::Complex;
    let Buffer::Complex(mut h) = matrix.gather(&Layout::contiguous(&[matrix.len()]), Kind::Complex) else {
        unreachable!("converted to complex")
    };
    let scale = h.iter().map(|z| z.abs()).fold(0.0, f64::max);
    hessenberg(&mut h, n);
    let mut values = vec![Complex::default(); n];
    let mut high = n;
    let mut n_steps = 0;
    while high > 0 {
        let last = high - 1;
        // Where the subdiagonal vanishes the matrix splits.
        let mut low = last;
        while low > 0 {
            let around = h[(low - 1) * n + low - 1].abs() + h[low * n + low].abs();
            let around = if around == 0.0 { scale } else { around };
            if h[low * n + low - 1].abs() <= f64::EPSILON * around {
                h[low * n + low - 1] = Complex::default();
                break;
            }
            low -= 1;
        }
        if low == last {
            values[last] = h[last * n + last];
            high -= 1;
            n_steps = 0;
            continue;
        }
        n_steps += 1;
        if n_steps > MAX_STEPS {
            return Err(ArrayError::NoConvergence);
        }
        let shift = if n_steps % 10 == 0 {
            // An exceptional shift breaks cycles.
            h[last * n + last] + Complex::from(h[last * n + last - 1].abs())
        } else {
            wilkinson(&h, n, last)
        };
        qr_step(&mut h, n, low, high, shift);
    }
    if is_real {
        pair_up(&mut values, scale);
    }
    Ok(values)
}

/// The eigenvalue of the last 2×2 block that is closer to its last element.
fn wilkinson(h: &[Complex], n: usize, last: usize) -> Complex {
    let (a, b) = (h[(last - 1) * n + last - 1], h[(last - 1) * n + last]);
    let (c, d) = (h[last * n + last - 1], h[last * n + last]);
    let half = (a - d) * Complex::from(0.5);
    let root = (half * half + b * c).sqrt();
    let (plus, minus) = (half + root, half - root);
    d + if plus.abs() < minus.abs() { plus } else { minus }
}

/// Householder's reflections to zeros below the subdiagonal.
fn hessenberg(h: &mut [Complex], n: usize) {
    for column in 0..n.saturating_sub(2) {
        let mut v: Vec<Complex> = (column + 1..n).map(|row| h[row * n + column]).collect();
        let length = v.iter().map(|z| z.re * z.re + z.im * z.im).sum::<f64>().sqrt();
        if length == 0.0 {
            continue;
        }
        let phase = if v[0].abs() == 0.0 { Complex::from(1.0) } else { v[0] / Complex::from(v[0].abs()) };
        v[0] = v[0] + phase * Complex::from(length);
        let norm: f64 = v.iter().map(|z| z.re * z.re + z.im * z.im).sum();
        let conj = |z: Complex| Complex { re: z.re, im: -z.im };
        for other in 0..n {
            let dot = v
                .iter()
                .enumerate()
                .fold(Complex::default(), |sum, (i, z)| sum + conj(*z) * h[(column + 1 + i) * n + other]);
            for (i, z) in v.iter().enumerate() {
                let target = &mut h[(column + 1 + i) * n + other];
                *target = *target - *z * dot * Complex::from(2.0 / norm);
            }
        }
        for row in 0..n {
            let dot =
                v.iter().enumerate().fold(Complex::default(), |sum, (i, z)| sum + h[row * n + column + 1 + i] * *z);
            for (i, z) in v.iter().enumerate() {
                let target = &mut h[row * n + column + 1 + i];
                *target = *target - dot * conj(*z) * Complex::from(2.0 / norm);
            }
        }
    }
}

/// One QR step with Givens rotations on rows and columns `low..high`.
fn qr_step(h: &mut [Complex], n: usize, low: usize, high: usize, shift: Complex) {
    let conj = |z: Complex| Complex { re: z.re, im: -z.im };
    (low..high).for_each(|k| h[k * n + k] = h[k * n + k] - shift);
    let mut rotations = Vec::with_capacity(high - low);
    for k in low..high - 1 {
        let (x, y) = (h[k * n + k], h[(k + 1) * n + k]);
        let length = x.abs().hypot(y.abs());
        let (c, s) = if length == 0.0 {
            (Complex::from(1.0), Complex::default())
        } else {
            (x / Complex::from(length), y / Complex::from(length))
        };
        for column in k..high {
            let (upper, lower) = (h[k * n + column], h[(k + 1) * n + column]);
            h[k * n + column] = conj(c) * upper + conj(s) * lower;
            h[(k + 1) * n + column] = c * lower - s * upper;
        }
        rotations.push((c, s));
    }
    for (k, (c, s)) in (low..).zip(rotations) {
        for row in low..(k + 2).min(high) {
            let (left, right) = (h[row * n + k], h[row * n + k + 1]);
            h[row * n + k] = left * c + right * s;
            h[row * n + k + 1] = right * conj(c) - left * conj(s);
        }
    }
    (low..high).for_each(|k| h[k * n + k] = h[k * n + k] + shift);
}

/// Eigenvalues of a real matrix are real or come in conjugate pairs; rounding is taken out of both.
fn pair_up(values: &mut [Complex], scale: f64) {
    let tolerance = 1e-9 * scale.max(f64::MIN_POSITIVE);
    let mut is_done = vec![false; values.len()];
    for idx in 0..values.len() {
        if is_done[idx] {
            continue;
        }
        let z = values[idx];
        let distance = |k: usize| (values[k] - Complex { re: z.re, im: -z.im }).abs();
        let partner = (idx + 1..values.len())
            .filter(|k| !is_done[*k])
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
            .filter(|k| z.im.abs() > f64::EPSILON * scale && distance(*k) <= tolerance.max(z.im.abs() * 1e-6));
        match partner {
            Some(partner) if z.im.abs() > tolerance * 1e-3 => {
                let (re, im) = ((z.re + values[partner].re) / 2.0, (z.im.abs() + values[partner].im.abs()) / 2.0);
                // The partner moves next to it, positive imaginary part first, as LAPACK lists pairs.
                values[partner] = values[idx + 1];
                is_done[partner] = is_done[idx + 1];
                (values[idx], values[idx + 1]) = (Complex { re, im }, Complex { re, im: -im });
                is_done[idx + 1] = true;
            }
            _ => values[idx].im = 0.0,
        }
        is_done[idx] = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + b.abs())
    }

    #[test]
    fn determinants_and_systems() {
        assert!(close(det(vec![2.0, 0.0, 1.0, 1.0, 3.0, 2.0, 0.0, 1.0, 1.0], 3), 3.0));
        assert!(close(det(vec![0.0, 1.0, 1.0, 0.0], 2), -1.0));
        assert_eq!(det(vec![1.0, 2.0, 2.0, 4.0], 2), 0.0);
        let x = solve(vec![3.0, 1.0, 1.0, 2.0], &[9.0, 8.0], 2, 1).unwrap();
        assert!(close(x[0], 2.0) && close(x[1], 3.0), "{x:?}");
        assert_eq!(solve(vec![1.0, 2.0, 2.0, 4.0], &[1.0, 1.0], 2, 1), Err(ArrayError::Singular));
        let (x, rest) = least_squares(vec![1.0, 0.0, 1.0, 1.0, 1.0, 2.0], vec![1.0, 3.0, 5.0], 3, 2).unwrap();
        assert!(close(x[0], 1.0) && close(x[1], 2.0) && rest < 1e-20, "{x:?} {rest}");
    }

    #[test]
    fn eigenvalues_of_known_matrices() {
        let of = |m: &[f64], n: usize| {
            let mut values: Vec<(f64, f64)> = eigenvalues(&Buffer::Float(m.to_vec()), n)
                .unwrap()
                .iter()
                .map(|z| ((z.re * 1e6).round() / 1e6 + 0.0, (z.im * 1e6).round() / 1e6 + 0.0))
                .collect();
            values.sort_by(|a, b| a.partial_cmp(b).unwrap());
            values
        };
        assert_eq!(of(&[2.0, 0.0, 0.0, 3.0], 2), [(2.0, 0.0), (3.0, 0.0)]);
        assert_eq!(of(&[0.0, -1.0, 1.0, 0.0], 2), [(0.0, -1.0), (0.0, 1.0)]);
        // The companion matrix of (x − 1)(x − 2)(x − 3)(x − 4).
        let companion = [10.0, -35.0, 50.0, -24.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        assert_eq!(of(&companion, 4), [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 0.0)]);
        // A cyclic shift: the fifth roots of unity.
        let mut cycle = [0.0; 25];
        (0..5).for_each(|k| cycle[k * 5 + (k + 1) % 5] = 1.0);
        let roots = of(&cycle, 5);
        assert!(roots.iter().all(|(re, im)| (re.hypot(*im) - 1.0).abs() < 1e-5), "{roots:?}");
        assert_eq!(of(&[0.0; 9], 3), [(0.0, 0.0); 3]);
    }

    #[test]
    fn traces_and_determinants_of_random_matrices() {
        let mut random = crate::testing::Random(3);
        for n in 1..9 {
            for _ in 0..20 {
                let m: Vec<f64> = (0..n * n).map(|_| (random.next() % 2001) as f64 / 100.0 - 10.0).collect();
                let values = eigenvalues(&Buffer::Float(m.clone()), n).unwrap();
                let trace: f64 = (0..n).map(|k| m[k * n + k]).sum();
                let sum = values.iter().fold(Complex::default(), |sum, z| sum + *z);
                let product = values.iter().fold(Complex::from(1.0), |product, z| product * *z);
                let expected = det(m, n);
                assert!((sum.re - trace).abs() < 1e-6 && sum.im.abs() < 1e-6, "{n}: {sum:?} {trace}");
                assert!((product.re - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{n}: {product:?} {expected}");
            }
        }
    }
}
