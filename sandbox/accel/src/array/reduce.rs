//! Reductions along an axis, running sums and products, sorting.
//!
//! Sums of floats are taken in numpy's order (pairwise in blocks of eight along the last axis, row by row along any
//! other), so that they agree to the last bit.

use super::{ArrayError, Buffer, Complex, Kind, Layout};
use std::cmp::Ordering;

/// What a reduction leaves of each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Sum; truth values are counted.
    Sum,
    /// Product.
    Prod,
    /// Smallest element.
    Min,
    /// Largest element.
    Max,
    /// Position of the first smallest.
    Argmin,
    /// Position of the first largest.
    Argmax,
    /// Whether all are true.
    All,
    /// Whether any is true.
    Any,
}

impl Reduction {
    /// By numpy's name.
    pub fn by_name(name: &str) -> Option<Reduction> {
        Some(match name {
            "sum" => Reduction::Sum,
            "prod" => Reduction::Prod,
            "min" => Reduction::Min,
            "max" => Reduction::Max,
            "argmin" => Reduction::Argmin,
            "argmax" => Reduction::Argmax,
            "all" => Reduction::All,
            "any" => Reduction::Any,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Reduction::Sum => "sum",
            Reduction::Prod => "prod",
            Reduction::Min => "minimum",
            Reduction::Max => "maximum",
            Reduction::Argmin => "argmin",
            Reduction::Argmax => "argmax",
            Reduction::All => "all",
            Reduction::Any => "any",
        }
    }
}

/// Reduces a view along `axis`, or as one line.
pub fn reduce(
    reduction: Reduction,
    (a, layout): (&Buffer, &Layout),
    axis: Option<usize>,
) -> Result<(Buffer, Vec<usize>), ArrayError> {
    let kind = match reduction {
        Reduction::Sum | Reduction::Prod => a.kind().max(Kind::Int),
        Reduction::All | Reduction::Any => Kind::Bool,
        _ => a.kind(),
    };
    let values = a.gather(layout, kind);
    let shape = &layout.shape;
    let (n_outer, n_line, n_inner) = match axis {
        None => (1, layout.len(), 1),
        Some(axis) => (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()),
    };
    let rest = axis.map_or(Vec::new(), |axis| [&shape[..axis], &shape[axis + 1..]].concat());
    let has_neutral = matches!(reduction, Reduction::Sum | Reduction::Prod | Reduction::All | Reduction::Any);
    if n_line == 0 && !has_neutral && (axis.is_none() || rest.iter().product::<usize>() > 0) {
        return Err(ArrayError::Empty(reduction.name()));
    }
    let lines = Lines { n_outer, n_line, n_inner };
    let result = match (reduction, values) {
        (Reduction::Sum, Buffer::Float(v)) => Buffer::Float(lines.sum(&v, |a, b| a + b, 0.0)),
        (Reduction::Sum, Buffer::Complex(v)) => Buffer::Complex(lines.sum(&v, |a, b| a + b, Complex::default())),
        (Reduction::Sum, Buffer::Int(v)) => Buffer::Int(lines.fold(&v, 0, i64::wrapping_add)),
        (Reduction::Prod, Buffer::Float(v)) => Buffer::Float(lines.fold(&v, 1.0, |a, b| a * b)),
        (Reduction::Prod, Buffer::Complex(v)) => Buffer::Complex(lines.fold(&v, Complex::from(1.0), |a, b| a * b)),
        (Reduction::Prod, Buffer::Int(v)) => Buffer::Int(lines.fold(&v, 1, i64::wrapping_mul)),
        (Reduction::All, Buffer::Bool(v)) => Buffer::Bool(lines.fold(&v, true, |a, b| a & b)),
        (Reduction::Any, Buffer::Bool(v)) => Buffer::Bool(lines.fold(&v, false, |a, b| a | b)),
        (_, values) => {
            let positions = match &values {
                Buffer::Bool(v) => lines.extremes(v, reduction, |a, b| a.cmp(b), |_| false),
                Buffer::Int(v) => lines.extremes(v, reduction, |a, b| a.cmp(b), |_| false),
                Buffer::Float(v) => lines.extremes(v, reduction, f64::total_cmp_numbers, |x| x.is_nan()),
                Buffer::Complex(v) => lines.extremes(v, reduction, compare_complex, |x| x.re.is_nan()),
            };
            match reduction {
                Reduction::Min | Reduction::Max => values.pick(&positions),
                _ => Buffer::Int(lines.line_positions(&positions)),
            }
        }
    };
    Ok((result, rest))
}

/// Ordering of floats that are numbers; those that are not come last.
trait Numbers {
    fn total_cmp_numbers(&self, other: &Self) -> Ordering;
}

impl Numbers for f64 {
    fn total_cmp_numbers(&self, other: &f64) -> Ordering {
        self.partial_cmp(other).unwrap_or_else(|| self.is_nan().cmp(&other.is_nan()))
    }
}

fn compare_complex(a: &Complex, b: &Complex) -> Ordering {
    a.re.total_cmp_numbers(&b.re).then(a.im.total_cmp_numbers(&b.im))
}

/// A contiguous array as lines: element k of line (o, i) is at (o · n_line + k) · n_inner + i.
struct Lines {
    n_outer: usize,
    n_line: usize,
    n_inner: usize,
}

impl Lines {
    fn fold<T: Copy>(&self, values: &[T], first: T, f: impl Fn(T, T) -> T) -> Vec<T> {
        let mut results = vec![first; self.n_outer * self.n_inner];
        for outer in 0..self.n_outer {
            let row = &mut results[outer * self.n_inner..][..self.n_inner];
            for k in 0..self.n_line {
                let line = &values[(outer * self.n_line + k) * self.n_inner..][..self.n_inner];
                row.iter_mut().zip(line).for_each(|(result, value)| *result = f(*result, *value));
            }
        }
        results
    }

    fn sum<T: Copy>(&self, values: &[T], add: impl Fn(T, T) -> T + Copy, zero: T) -> Vec<T> {
        if self.n_inner != 1 {
            return self.fold(values, zero, add);
        }
        (0..self.n_outer).map(|outer| pairwise(&values[outer * self.n_line..][..self.n_line], add, zero)).collect()
    }

    fn extremes<T>(
        &self,
        values: &[T],
        reduction: Reduction,
        compare: impl Fn(&T, &T) -> Ordering,
        is_nan: impl Fn(&T) -> bool,
    ) -> Vec<usize> {
        let wanted = match reduction {
            Reduction::Min | Reduction::Argmin => Ordering::Less,
            _ => Ordering::Greater,
        };
        let mut positions = Vec::with_capacity(self.n_outer * self.n_inner);
        for outer in 0..self.n_outer {
            for inner in 0..self.n_inner {
                let at = |k: usize| (outer * self.n_line + k) * self.n_inner + inner;
                let mut best = at(0);
                for position in (1..self.n_line).map(at) {
                    if is_nan(&values[best]) {
                        break;
                    }
                    if is_nan(&values[position]) || compare(&values[position], &values[best]) == wanted {
                        best = position;
                    }
                }
                positions.push(best);
            }
        }
        positions
    }

    /// Positions in the array as positions in their lines.
    fn line_positions(&self, positions: &[usize]) -> Vec<i64> {
        positions.iter().map(|position| (position / self.n_inner % self.n_line.max(1)) as i64).collect()
    }
}

/// numpy's pairwise summation.
fn pairwise<T: Copy>(values: &[T], add: impl Fn(T, T) -> T + Copy, zero: T) -> T {
    const BLOCK: usize = 128;
    let n = values.len();
    if n < 8 {
        return values.iter().fold(zero, |sum, value| add(sum, *value));
    }
    if n <= BLOCK {
        let mut r: [T; 8] = std::array::from_fn(|k| values[k]);
        let mut eights = values[8..].chunks_exact(8);
        for eight in &mut eights {
            r.iter_mut().zip(eight).for_each(|(sum, value)| *sum = add(*sum, *value));
        }
        let sum = add(add(add(r[0], r[1]), add(r[2], r[3])), add(add(r[4], r[5]), add(r[6], r[7])));
        return eights.remainder().iter().fold(sum, |sum, value| add(sum, *value));
    }
    let half = n / 2 - n / 2 % 8;
    add(pairwise(&values[..half], add, zero), pairwise(&values[half..], add, zero))
}

/// Running sums (`product` false) or products along `axis`; the shape stays.
pub fn cumulate(product: bool, (a, layout): (&Buffer, &Layout), axis: usize) -> Buffer {
    let mut values = a.gather(layout, a.kind().max(Kind::Int));
    let n_line = layout.shape[axis];
    let n_inner: usize = layout.shape[axis + 1..].iter().product();
    macro_rules! run {
        ($values:expr, $add:expr, $multiply:expr) => {
            for position in 0..$values.len() {
                if position / n_inner % n_line > 0 {
                    let (before, here) = ($values[position - n_inner], $values[position]);
                    $values[position] = if product { $multiply(before, here) } else { $add(before, here) };
                }
            }
        };
    }
    match &mut values {
        Buffer::Int(v) => run!(v, i64::wrapping_add, i64::wrapping_mul),
        Buffer::Float(v) => run!(v, |a, b| a + b, |a, b| a * b),
        Buffer::Complex(v) => run!(v, |a, b| a + b, |a, b| a * b),
        Buffer::Bool(_) => unreachable!("converted to integers"),
    }
    values
}

/// What [`order`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The elements, ascending.
    Sorted,
    /// Their positions; equal ones stay in order.
    Positions,
}

/// Sorts each line of the last axis.
pub fn order(what: Order, (a, layout): (&Buffer, &Layout)) -> Buffer {
    let values = a.gather(layout, a.kind());
    let n_line = layout.shape.last().copied().unwrap_or(1).max(1);
    let mut positions: Vec<usize> = (0..values.len()).collect();
    for line in positions.chunks_mut(n_line) {
        match &values {
            Buffer::Bool(v) => line.sort_by_key(|p| v[*p]),
            Buffer::Int(v) => line.sort_by_key(|p| v[*p]),
            Buffer::Float(v) => line.sort_by(|p, q| v[*p].total_cmp_numbers(&v[*q])),
            Buffer::Complex(v) => line.sort_by(|p, q| compare_complex(&v[*p], &v[*q])),
        }
    }
    match what {
        Order::Sorted => values.pick(&positions),
        Order::Positions => Buffer::Int(positions.iter().map(|p| (p % n_line) as i64).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inverses(n: usize) -> Buffer {
        Buffer::Float((1..=n).map(|k| 1.0 / k as f64).collect())
    }

    #[test]
    fn sums_agree_with_numpys_to_the_last_bit() {
        // (1 / np.arange(1, n + 1)).sum(), numpy 2.4.
        for (n, expected) in [
            (7, 2.5928571428571425),
            (13, 3.180133755133755),
            (100, 5.187377517639621),
            (129, 5.440899030573669),
            (1000, 7.485470860550345),
        ] {
            let (sum, _) = reduce(Reduction::Sum, (&inverses(n), &Layout::contiguous(&[n])), None).unwrap();
            assert_eq!(sum, Buffer::Float(vec![expected]), "{n}");
        }
    }

    #[test]
    fn axes_and_empty_lines() {
        let a = Buffer::Int(vec![3, 1, 2, 9, 8, 7]);
        let layout = Layout::contiguous(&[2, 3]);
        let of = |reduction, axis| reduce(reduction, (&a, &layout), axis);
        assert_eq!(of(Reduction::Sum, Some(0)), Ok((Buffer::Int(vec![12, 9, 9]), vec![3])));
        assert_eq!(of(Reduction::Max, Some(1)), Ok((Buffer::Int(vec![3, 9]), vec![2])));
        assert_eq!(of(Reduction::Argmin, Some(1)), Ok((Buffer::Int(vec![1, 2]), vec![2])));
        assert_eq!(of(Reduction::Argmax, Some(0)), Ok((Buffer::Int(vec![1, 1, 1]), vec![3])));
        assert_eq!(of(Reduction::Prod, None), Ok((Buffer::Int(vec![3024]), vec![])));
        let none = Layout::contiguous(&[0]);
        let empty = Buffer::Float(vec![]);
        assert_eq!(reduce(Reduction::Sum, (&empty, &none), None), Ok((Buffer::Float(vec![0.0]), vec![])));
        assert_eq!(reduce(Reduction::Max, (&empty, &none), None), Err(ArrayError::Empty("maximum")));
    }

    #[test]
    fn lines_are_run_through_and_sorted() {
        let a = Buffer::Int(vec![3, 1, 2, 9, 8, 7]);
        let layout = Layout::contiguous(&[2, 3]);
        assert_eq!(cumulate(false, (&a, &layout), 1), Buffer::Int(vec![3, 4, 6, 9, 17, 24]));
        assert_eq!(cumulate(true, (&a, &layout), 0), Buffer::Int(vec![3, 1, 2, 27, 8, 14]));
        assert_eq!(order(Order::Sorted, (&a, &layout)), Buffer::Int(vec![1, 2, 3, 7, 8, 9]));
        assert_eq!(order(Order::Positions, (&a, &layout)), Buffer::Int(vec![1, 2, 0, 2, 1, 0]));
        let odd = Buffer::Float(vec![f64::NAN, 1.0, -0.0]);
        assert_eq!(order(Order::Positions, (&odd, &Layout::contiguous(&[3]))), Buffer::Int(vec![2, 1, 0]));
    }
}
