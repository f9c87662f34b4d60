//! Arrays of numbers with numpy's element types, broadcasting, promotion and results.
//!
//! A [`Buffer`] holds elements; a [`Layout`] says which of them an array consists of, so that slices are views.
//! Every operation reads views and makes a new contiguous buffer. Called by `sandbox/guest/src/arrays.rs`; indexing and
//! printing are written in Python there. Integers wrap as numpy's do.

mod elementwise;
pub mod linalg;
mod reduce;

pub use elementwise::{Binary, Unary, binary, unary};
pub use reduce::{Order, Reduction, cumulate, order, reduce};

/// A complex number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Complex {
    /// Real part.
    pub re: f64,
    /// Imaginary part.
    pub im: f64,
}

/// Element types, in the order in which they are promoted: bool, int64, float64, complex128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Truth values.
    Bool,
    /// int64.
    Int,
    /// float64.
    Float,
    /// complex128.
    Complex,
}

/// Elements of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer {
    /// Truth values.
    Bool(Vec<bool>),
    /// int64.
    Int(Vec<i64>),
    /// float64.
    Float(Vec<f64>),
    /// complex128.
    Complex(Vec<Complex>),
}

/// Which elements of a buffer an array consists of. Strides count elements, not bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Distance between neighbours on each axis; 0 where an axis is broadcast.
    pub strides: Vec<isize>,
    /// The first element.
    pub offset: usize,
}

/// Why an operation has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArrayError {
    /// Shapes that can't be broadcast together.
    Broadcast(Vec<usize>, Vec<usize>),
    /// Inner lengths of a product that differ.
    Core(usize, usize),
    /// An operation that the kind of element does not have.
    Kind(&'static str, Kind),
    /// An integer to a negative integer power.
    NegativePower,
    /// A reduction without elements that has no neutral one.
    Empty(&'static str),
    /// A matrix without an inverse.
    Singular,
    /// Eigenvalues that did not converge.
    NoConvergence,
    /// A result with more elements than [`MAX_ELEMENTS`].
    TooLarge(Vec<usize>),
}

/// Most elements of one array.
pub const MAX_ELEMENTS: usize = 1 << 27;

/// How many elements a shape has, if they are not too many.
pub fn n_elements(shape: &[usize]) -> Result<usize, ArrayError> {
    let n = shape.iter().try_fold(1usize, |n, length| n.checked_mul(*length)).filter(|n| *n <= MAX_ELEMENTS);
    n.ok_or_else(|| ArrayError::TooLarge(shape.to_vec()))
}

impl Buffer {
    /// The kind of the elements.
    pub fn kind(&self) -> Kind {
        match self {
            Buffer::Bool(_) => Kind::Bool,
            Buffer::Int(_) => Kind::Int,
            Buffer::Float(_) => Kind::Float,
            Buffer::Complex(_) => Kind::Complex,
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Buffer::Bool(v) => v.len(),
            Buffer::Int(v) => v.len(),
            Buffer::Float(v) => v.len(),
            Buffer::Complex(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `n` zeros.
    pub fn zeros(kind: Kind, n: usize) -> Buffer {
        match kind {
            Kind::Bool => Buffer::Bool(vec![false; n]),
            Kind::Int => Buffer::Int(vec![0; n]),
            Kind::Float => Buffer::Float(vec![0.0; n]),
            Kind::Complex => Buffer::Complex(vec![Complex::default(); n]),
        }
    }

    /// The elements of a view in order, converted: floats to integers as C does, complex numbers to their real part.
    pub fn gather(&self, layout: &Layout, kind: Kind) -> Buffer {
        macro_rules! gathered {
            ($variant:ident, $values:expr, $convert:expr) => {
                Buffer::$variant(layout.indices().map(|idx| $convert($values[idx])).collect())
            };
        }
        match (self, kind) {
            (Buffer::Bool(v), Kind::Bool) => gathered!(Bool, v, |x: bool| x),
            (Buffer::Bool(v), Kind::Int) => gathered!(Int, v, i64::from),
            (Buffer::Bool(v), Kind::Float) => gathered!(Float, v, |x: bool| f64::from(u8::from(x))),
            (Buffer::Bool(v), Kind::Complex) => gathered!(Complex, v, |x: bool| Complex::from(f64::from(u8::from(x)))),
            (Buffer::Int(v), Kind::Bool) => gathered!(Bool, v, |x: i64| x != 0),
            (Buffer::Int(v), Kind::Int) => gathered!(Int, v, |x: i64| x),
            (Buffer::Int(v), Kind::Float) => gathered!(Float, v, |x: i64| x as f64),
            (Buffer::Int(v), Kind::Complex) => gathered!(Complex, v, |x: i64| Complex::from(x as f64)),
            (Buffer::Float(v), Kind::Bool) => gathered!(Bool, v, |x: f64| x != 0.0),
            (Buffer::Float(v), Kind::Int) => gathered!(Int, v, float_to_int),
            (Buffer::Float(v), Kind::Float) => gathered!(Float, v, |x: f64| x),
            (Buffer::Float(v), Kind::Complex) => gathered!(Complex, v, Complex::from),
            (Buffer::Complex(v), Kind::Bool) => gathered!(Bool, v, |x: Complex| x.re != 0.0 || x.im != 0.0),
            (Buffer::Complex(v), Kind::Int) => gathered!(Int, v, |x: Complex| float_to_int(x.re)),
            (Buffer::Complex(v), Kind::Float) => gathered!(Float, v, |x: Complex| x.re),
            (Buffer::Complex(v), Kind::Complex) => gathered!(Complex, v, |x: Complex| x),
        }
    }

    /// Writes a view of `source` (same shape) into a view of this buffer, converted.
    pub fn scatter(&mut self, layout: &Layout, source: &Buffer, from: &Layout) {
        // Gathered first: the two may be the same elements.
        let values = source.gather(from, self.kind());
        macro_rules! scattered {
            ($target:expr, $values:expr) => {
                layout.indices().zip($values).for_each(|(idx, value)| $target[idx] = value)
            };
        }
        match (self, values) {
            (Buffer::Bool(t), Buffer::Bool(v)) => scattered!(t, v),
            (Buffer::Int(t), Buffer::Int(v)) => scattered!(t, v),
            (Buffer::Float(t), Buffer::Float(v)) => scattered!(t, v),
            (Buffer::Complex(t), Buffer::Complex(v)) => scattered!(t, v),
            (target, values) => unreachable!("{:?} into {:?}", values.kind(), target.kind()),
        }
    }

    /// The elements at `positions` of the buffer.
    pub fn pick(&self, positions: &[usize]) -> Buffer {
        match self {
            Buffer::Bool(v) => Buffer::Bool(positions.iter().map(|p| v[*p]).collect()),
            Buffer::Int(v) => Buffer::Int(positions.iter().map(|p| v[*p]).collect()),
            Buffer::Float(v) => Buffer::Float(positions.iter().map(|p| v[*p]).collect()),
            Buffer::Complex(v) => Buffer::Complex(positions.iter().map(|p| v[*p]).collect()),
        }
    }

    /// Writes `values` (converted, repeated as often as needed) to `positions`.
    pub fn put(&mut self, positions: &[usize], values: &Buffer) {
        let values = values.gather(&Layout::contiguous(&[values.len()]), self.kind());
        macro_rules! put {
            ($target:expr, $values:expr) => {
                positions.iter().zip($values.iter().cycle()).for_each(|(p, value)| $target[*p] = *value)
            };
        }
        match (self, &values) {
            (Buffer::Bool(t), Buffer::Bool(v)) => put!(t, v),
            (Buffer::Int(t), Buffer::Int(v)) => put!(t, v),
            (Buffer::Float(t), Buffer::Float(v)) => put!(t, v),
            (Buffer::Complex(t), Buffer::Complex(v)) => put!(t, v),
            (target, values) => unreachable!("{:?} into {:?}", values.kind(), target.kind()),
        }
    }
}

/// C's conversion on x86-64: what does not fit becomes the smallest integer.
fn float_to_int(x: f64) -> i64 {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if (-LIMIT..LIMIT).contains(&x) { x as i64 } else { i64::MIN }
}

impl Layout {
    /// C order, from the first element on.
    pub fn contiguous(shape: &[usize]) -> Layout {
        let mut strides = vec![0; shape.len()];
        let mut stride = 1;
        for (axis, length) in shape.iter().enumerate().rev() {
            strides[axis] = stride;
            stride *= *length as isize;
        }
        Layout { shape: shape.to_vec(), strides, offset: 0 }
    }

    /// How many elements the view has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The view repeated along axes of length 1 and new leading axes; None where that does not give `shape`.
    pub fn broadcast_to(&self, shape: &[usize]) -> Option<Layout> {
        let n_new = shape.len().checked_sub(self.shape.len())?;
        let mut strides = vec![0; shape.len()];
        for (axis, length) in self.shape.iter().enumerate() {
            strides[n_new + axis] = match (*length, shape[n_new + axis]) {
                (have, want) if have == want => self.strides[axis],
                (1, _) => 0,
                _ => return None,
            };
        }
        Some(Layout { shape: shape.to_vec(), strides, offset: self.offset })
    }

    /// Positions in the buffer, in C order.
    pub fn indices(&self) -> Indices<'_> {
        Indices { layout: self, at: vec![0; self.shape.len()], position: self.offset as isize, left: self.len() }
    }

    /// Whether every position lies in a buffer of `n` elements.
    pub fn fits(&self, n: usize) -> bool {
        if self.strides.len() != self.shape.len() {
            return false;
        }
        if self.shape.contains(&0) {
            return true;
        }
        let (mut low, mut high) = (self.offset as i128, self.offset as i128);
        for (length, stride) in self.shape.iter().zip(&self.strides) {
            let reach = (*length as i128 - 1) * *stride as i128;
            if reach < 0 { low += reach } else { high += reach }
        }
        low >= 0 && high < n as i128
    }
}

/// The shape that two shapes broadcast to.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, ArrayError> {
    let n = a.len().max(b.len());
    let length = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(n).map_or(1, |axis| shape[axis]);
    let shape: Vec<usize> = (0..n)
        .map(|axis| match (length(a, axis), length(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, x) | (x, 1) => Ok(x),
            _ => Err(ArrayError::Broadcast(a.to_vec(), b.to_vec())),
        })
        .collect::<Result<_, _>>()?;
    n_elements(&shape).map(|_| shape)
}

/// An odometer over a view.
pub struct Indices<'a> {
    layout: &'a Layout,
    at: Vec<usize>,
    position: isize,
    left: usize,
}

impl Iterator for Indices<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let position = self.position as usize;
        for axis in (0..self.at.len()).rev() {
            self.at[axis] += 1;
            self.position += self.layout.strides[axis];
            if self.at[axis] < self.layout.shape[axis] {
                break;
            }
            self.position -= self.layout.strides[axis] * self.layout.shape[axis] as isize;
            self.at[axis] = 0;
        }
        Some(position)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Indices<'_> {}

impl From<f64> for Complex {
    fn from(re: f64) -> Complex {
        Complex { re, im: 0.0 }
    }
}

impl std::ops::Add for Complex {
    type Output = Complex;
    fn add(self, b: Complex) -> Complex {
        Complex { re: self.re + b.re, im: self.im + b.im }
    }
}

impl std::ops::Sub for Complex {
    type Output = Complex;
    fn sub(self, b: Complex) -> Complex {
        Complex { re: self.re - b.re, im: self.im - b.im }
    }
}

impl std::ops::Mul for Complex {
    type Output = Complex;
    fn mul(self, b: Complex) -> Complex {
        Complex { re: self.re * b.re - self.im * b.im, im: self.re * b.im + self.im * b.re }
    }
}

impl std::ops::Div for Complex {
    type Output = Complex;
    /// Smith's algorithm (1962), as numpy divides.
    fn div(self, b: Complex) -> Complex {
        if b.re.abs() >= b.im.abs() {
            if b.re == 0.0 && b.im == 0.0 {
                return Complex { re: self.re / b.re.abs(), im: self.im / b.re.abs() };
            }
            let ratio = b.im / b.re;
            let scale = 1.0 / (b.re + b.im * ratio);
            Complex { re: (self.re + self.im * ratio) * scale, im: (self.im - self.re * ratio) * scale }
        } else {
            let ratio = b.re / b.im;
            let scale = 1.0 / (b.im + b.re * ratio);
            Complex { re: (self.re * ratio + self.im) * scale, im: (self.im * ratio - self.re) * scale }
        }
    }
}

impl Complex {
    /// |z|.
    pub fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn from_polar(radius: f64, angle: f64) -> Complex {
        Complex { re: radius * angle.cos(), im: radius * angle.sin() }
    }

    fn exp(self) -> Complex {
        Complex::from_polar(self.re.exp(), self.im)
    }

    fn ln(self) -> Complex {
        Complex { re: self.abs().ln(), im: self.im.atan2(self.re) }
    }

    fn sqrt(self) -> Complex {
        if self.re == 0.0 && self.im == 0.0 {
            return Complex { re: 0.0, im: self.im };
        }
        let half = ((self.re.abs() + self.abs()) / 2.0).sqrt();
        if self.re >= 0.0 {
            Complex { re: half, im: self.im / (2.0 * half) }
        } else {
            Complex { re: self.im.abs() / (2.0 * half), im: half.copysign(self.im) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_walked_in_order() {
        let layout = Layout { shape: vec![2, 3], strides: vec![-3, 1], offset: 3 };
        assert_eq!(layout.indices().collect::<Vec<_>>(), [3, 4, 5, 0, 1, 2]);
        assert!(layout.fits(6) && !layout.fits(5));
        let scalar = Layout::contiguous(&[]);
        assert_eq!(scalar.indices().collect::<Vec<_>>(), [0]);
        assert_eq!(Layout::contiguous(&[2, 0]).indices().count(), 0);
        let row = Layout::contiguous(&[3]).broadcast_to(&[2, 3]).unwrap();
        assert_eq!(row.indices().collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        assert!(Layout::contiguous(&[3]).broadcast_to(&[2, 4]).is_none());
    }

    #[test]
    fn shapes_broadcast_as_numpys_do() {
        assert_eq!(broadcast(&[2, 1], &[3]), Ok(vec![2, 3]));
        assert_eq!(broadcast(&[], &[4]), Ok(vec![4]));
        assert_eq!(broadcast(&[0], &[1]), Ok(vec![0]));
        assert!(broadcast(&[2], &[3]).is_err());
        assert!(matches!(broadcast(&[1, 1 << 20], &[1 << 20, 1]), Err(ArrayError::TooLarge(_))));
    }

    #[test]
    fn overlapping_views_of_one_buffer_are_copied_whole() {
        let mut buffer = Buffer::Int(vec![1, 2, 3, 4]);
        let source = buffer.clone();
        let from = Layout { shape: vec![3], strides: vec![1], offset: 0 };
        let to = Layout { shape: vec![3], strides: vec![1], offset: 1 };
        buffer.scatter(&to, &source, &from);
        assert_eq!(buffer, Buffer::Int(vec![1, 1, 2, 3]));
    }
}
