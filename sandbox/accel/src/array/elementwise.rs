//! Operations element by element, with numpy's promotion: `/` always gives floats, comparisons truth values.

use super::{ArrayError, Buffer, Complex, Kind, Layout, broadcast};

macro_rules! operations {
    ($(#[$about:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each is numpy's function of that name")]
        pub enum $name { $($variant,)* }

        impl $name {
            /// By numpy's name.
            pub fn by_name(name: &str) -> Option<$name> {
                Some(match name {
                    $($text => $name::$variant,)*
                    _ => return None,
                })
            }

            /// numpy's name.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

operations! {
    /// Operations on two arrays.
    Binary {
        Add = "add", Subtract = "subtract", Multiply = "multiply", Divide = "divide", FloorDivide = "floor_divide",
        Remainder = "remainder", Power = "power", Maximum = "maximum", Minimum = "minimum",
        Less = "less", LessEqual = "less_equal", Greater = "greater", GreaterEqual = "greater_equal",
        Equal = "equal", NotEqual = "not_equal",
        And = "bitwise_and", Or = "bitwise_or", Xor = "bitwise_xor", LeftShift = "left_shift", RightShift = "right_shift",
        LogicalAnd = "logical_and", LogicalOr = "logical_or", LogicalXor = "logical_xor",
        Gcd = "gcd", Lcm = "lcm", Arctan2 = "arctan2", Hypot = "hypot",
    }
}

operations! {
    /// Operations on one array.
    Unary {
        Negative = "negative", Positive = "positive", Absolute = "absolute", Invert = "invert",
        LogicalNot = "logical_not", Sqrt = "sqrt", Cbrt = "cbrt", Exp = "exp", Expm1 = "expm1", Log = "log",
        Log2 = "log2", Log10 = "log10", Log1p = "log1p", Sin = "sin", Cos = "cos", Tan = "tan", Arcsin = "arcsin",
        Arccos = "arccos", Arctan = "arctan", Sinh = "sinh", Cosh = "cosh", Tanh = "tanh", Floor = "floor",
        Ceil = "ceil", Trunc = "trunc", Rint = "rint", Sign = "sign", Isnan = "isnan", Isinf = "isinf",
        Isfinite = "isfinite", Square = "square", Reciprocal = "reciprocal", Conjugate = "conjugate", Real = "real",
        Imag = "imag", Angle = "angle", Degrees = "degrees", Radians = "radians",
    }
}

/// `operation` on two views: the elements of the result and its shape.
pub fn binary(
    operation: Binary,
    (a, a_layout): (&Buffer, &Layout),
    (b, b_layout): (&Buffer, &Layout),
) -> Result<(Buffer, Vec<usize>), ArrayError> {
    let shape = broadcast(&a_layout.shape, &b_layout.shape)?;
    let kind = operand_kind(operation, a.kind().max(b.kind()))?;
    let spread = |layout: &Layout| layout.broadcast_to(&shape).expect("shapes that were broadcast");
    let (a, b) = (a.gather(&spread(a_layout), kind), b.gather(&spread(b_layout), kind));
    let result = match (a, b) {
        (Buffer::Bool(a), Buffer::Bool(b)) => bools(operation, &a, &b)?,
        (Buffer::Int(a), Buffer::Int(b)) => ints(operation, &a, &b)?,
        (Buffer::Float(a), Buffer::Float(b)) => floats(operation, &a, &b)?,
        (Buffer::Complex(a), Buffer::Complex(b)) => complexes(operation, &a, &b)?,
        _ => unreachable!("both were converted to {kind:?}"),
    };
    Ok((result, shape))
}

/// What both operands are converted to.
fn operand_kind(operation: Binary, common: Kind) -> Result<Kind, ArrayError> {
    use Binary::*;
    Ok(match operation {
        Divide | Arctan2 | Hypot => common.max(Kind::Float),
        LogicalAnd | LogicalOr | LogicalXor => Kind::Bool,
        FloorDivide | Remainder | Power | LeftShift | RightShift => common.max(Kind::Int),
        Gcd | Lcm if common == Kind::Bool => return Err(ArrayError::Kind(operation.name(), common)),
        _ => common,
    })
}

fn zip<T: Copy, R>(a: &[T], b: &[T], f: impl Fn(T, T) -> R) -> Vec<R> {
    a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect()
}

fn bools(operation: Binary, a: &[bool], b: &[bool]) -> Result<Buffer, ArrayError> {
    use Binary::*;
    Ok(Buffer::Bool(match operation {
        Add | Or | LogicalOr | Maximum => zip(a, b, |x, y| x | y),
        Multiply | And | LogicalAnd | Minimum => zip(a, b, |x, y| x & y),
        Xor | LogicalXor | NotEqual => zip(a, b, |x, y| x ^ y),
        Equal => zip(a, b, |x, y| x == y),
        Less => zip(a, b, |x, y| !x & y),
        LessEqual => zip(a, b, |x, y| x <= y),
        Greater => zip(a, b, |x, y| x & !y),
        GreaterEqual => zip(a, b, |x, y| x >= y),
        _ => return Err(ArrayError::Kind(operation.name(), Kind::Bool)),
    }))
}

fn ints(operation: Binary, a: &[i64], b: &[i64]) -> Result<Buffer, ArrayError> {
    use Binary::*;
    Ok(match operation {
        Add => Buffer::Int(zip(a, b, i64::wrapping_add)),
        Subtract => Buffer::Int(zip(a, b, i64::wrapping_sub)),
        Multiply => Buffer::Int(zip(a, b, i64::wrapping_mul)),
        FloorDivide => Buffer::Int(zip(a, b, |x, y| {
            let quotient = x.checked_div(y).unwrap_or(if y == 0 { 0 } else { i64::MIN });
            quotient - i64::from(y != 0 && x.wrapping_rem(y) != 0 && (x < 0) != (y < 0))
        })),
        Remainder => Buffer::Int(zip(a, b, |x, y| match x.checked_rem(y) {
            Some(rest) if rest != 0 && (rest < 0) != (y < 0) => rest + y,
            Some(rest) => rest,
            None => 0,
        })),
        Power if b.iter().any(|y| *y < 0) => return Err(ArrayError::NegativePower),
        Power => Buffer::Int(zip(a, b, |mut x, mut y| {
            let mut power = 1i64;
            while y > 0 {
                if y & 1 == 1 {
                    power = power.wrapping_mul(x);
                }
                x = x.wrapping_mul(x);
                y >>= 1;
            }
            power
        })),
        Maximum => Buffer::Int(zip(a, b, i64::max)),
        Minimum => Buffer::Int(zip(a, b, i64::min)),
        And => Buffer::Int(zip(a, b, |x, y| x & y)),
        Or => Buffer::Int(zip(a, b, |x, y| x | y)),
        Xor => Buffer::Int(zip(a, b, |x, y| x ^ y)),
        LeftShift => Buffer::Int(zip(a, b, |x, y| if (0..64).contains(&y) { x << y } else { 0 })),
        RightShift => Buffer::Int(zip(a, b, |x, y| x >> if (0..64).contains(&y) { y } else { 63 })),
        Gcd => Buffer::Int(zip(a, b, gcd)),
        Lcm => Buffer::Int(zip(a, b, |x, y| match gcd(x, y) {
            0 => 0,
            common => (x / common).wrapping_mul(y).wrapping_abs(),
        })),
        Less => Buffer::Bool(zip(a, b, |x, y| x < y)),
        LessEqual => Buffer::Bool(zip(a, b, |x, y| x <= y)),
        Greater => Buffer::Bool(zip(a, b, |x, y| x > y)),
        GreaterEqual => Buffer::Bool(zip(a, b, |x, y| x >= y)),
        Equal => Buffer::Bool(zip(a, b, |x, y| x == y)),
        NotEqual => Buffer::Bool(zip(a, b, |x, y| x != y)),
        _ => return Err(ArrayError::Kind(operation.name(), Kind::Int)),
    })
}

fn gcd(a: i64, b: i64) -> i64 {
    let (mut x, mut y) = (a.unsigned_abs(), b.unsigned_abs());
    while y != 0 {
        (x, y) = (y, x % y);
    }
    x as i64
}

fn floats(operation: Binary, a: &[f64], b: &[f64]) -> Result<Buffer, ArrayError> {
    use Binary::*;
    // A result that is not a number stays one in maximum and minimum.
    let chosen = |x: f64, y: f64, first: bool| if x.is_nan() || (first && !y.is_nan()) { x } else { y };
    Ok(match operation {
        Add => Buffer::Float(zip(a, b, |x, y| x + y)),
        Subtract => Buffer::Float(zip(a, b, |x, y| x - y)),
        Multiply => Buffer::Float(zip(a, b, |x, y| x * y)),
        Divide => Buffer::Float(zip(a, b, |x, y| x / y)),
        FloorDivide => Buffer::Float(zip(a, b, |x, y| if y == 0.0 { x / y } else { floor_divide(x, y) })),
        Remainder => Buffer::Float(zip(a, b, remainder)),
        Power => Buffer::Float(zip(a, b, f64::powf)),
        Maximum => Buffer::Float(zip(a, b, |x, y| chosen(x, y, x >= y))),
        Minimum => Buffer::Float(zip(a, b, |x, y| chosen(x, y, x <= y))),
        Arctan2 => Buffer::Float(zip(a, b, f64::atan2)),
        Hypot => Buffer::Float(zip(a, b, f64::hypot)),
        Less => Buffer::Bool(zip(a, b, |x, y| x < y)),
        LessEqual => Buffer::Bool(zip(a, b, |x, y| x <= y)),
        Greater => Buffer::Bool(zip(a, b, |x, y| x > y)),
        GreaterEqual => Buffer::Bool(zip(a, b, |x, y| x >= y)),
        Equal => Buffer::Bool(zip(a, b, |x, y| x == y)),
        NotEqual => Buffer::Bool(zip(a, b, |x, y| x != y)),
        _ => return Err(ArrayError::Kind(operation.name(), Kind::Float)),
    })
}

fn remainder(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest == 0.0 {
        0f64.copysign(y)
    } else if (rest < 0.0) != (y < 0.0) {
        rest + y
    } else {
        rest
    }
}

fn floor_divide(x: f64, y: f64) -> f64 {
    let quotient = (x - remainder(x, y)) / y;
    // The difference is a multiple of y but for rounding.
    if quotient == 0.0 { 0f64.copysign(x / y) } else { quotient.round() }
}

fn complexes(operation: Binary, a: &[Complex], b: &[Complex]) -> Result<Buffer, ArrayError> {
    use Binary::*;
    Ok(match operation {
        Add => Buffer::Complex(zip(a, b, |x, y| x + y)),
        Subtract => Buffer::Complex(zip(a, b, |x, y| x - y)),
        Multiply => Buffer::Complex(zip(a, b, |x, y| x * y)),
        Divide => Buffer::Complex(zip(a, b, |x, y| x / y)),
        Power => Buffer::Complex(zip(a, b, power)),
        Equal => Buffer::Bool(zip(a, b, |x, y| x == y)),
        NotEqual => Buffer::Bool(zip(a, b, |x, y| x != y)),
        _ => return Err(ArrayError::Kind(operation.name(), Kind::Complex)),
    })
}

fn power(x: Complex, y: Complex) -> Complex {
    const MAX_MULTIPLICATIONS: f64 = 100.0;
    if y.im == 0.0 && y.re.fract() == 0.0 && y.re.abs() <= MAX_MULTIPLICATIONS {
        let (mut power, mut square, mut n) = (Complex::from(1.0), x, y.re.abs() as u32);
        while n > 0 {
            if n & 1 == 1 {
                power = power * square;
            }
            square = square * square;
            n >>= 1;
        }
        return if y.re < 0.0 { Complex::from(1.0) / power } else { power };
    }
    if x.re == 0.0 && x.im == 0.0 { x } else { (y * x.ln()).exp() }
}

/// `operation` on a view: the elements of the result, in order.
pub fn unary(operation: Unary, (a, layout): (&Buffer, &Layout)) -> Result<Buffer, ArrayError> {
    use Unary::*;
    let needs_float = matches!(
        operation,
        Sqrt | Cbrt
            | Exp
            | Expm1
            | Log
            | Log2
            | Log10
            | Log1p
            | Sin
            | Cos
            | Tan
            | Arcsin
            | Arccos
            | Arctan
            | Sinh
            | Cosh
            | Tanh
            | Rint
            | Angle
            | Degrees
            | Radians
    );
    let kind = if needs_float { a.kind().max(Kind::Float) } else { a.kind() };
    if operation == LogicalNot {
        let Buffer::Bool(values) = a.gather(layout, Kind::Bool) else { unreachable!("converted to bool") };
        return Ok(Buffer::Bool(values.iter().map(|x| !x).collect()));
    }
    let error = Err(ArrayError::Kind(operation.name(), kind));
    Ok(match a.gather(layout, kind) {
        Buffer::Bool(values) => match operation {
            Invert => Buffer::Bool(values.iter().map(|x| !x).collect()),
            Absolute | Conjugate | Real | Square | Floor | Ceil | Trunc => Buffer::Bool(values),
            Imag | Isnan | Isinf => Buffer::Bool(vec![false; values.len()]),
            Isfinite => Buffer::Bool(vec![true; values.len()]),
            _ => return error,
        },
        Buffer::Int(values) => {
            let map = |f: fn(i64) -> i64| Buffer::Int(values.iter().map(|x| f(*x)).collect());
            match operation {
                Negative => map(i64::wrapping_neg),
                Absolute => map(i64::wrapping_abs),
                Invert => map(|x| !x),
                Sign => map(i64::signum),
                Square => map(|x| x.wrapping_mul(x)),
                Reciprocal => map(|x| 1i64.checked_div(x).unwrap_or(i64::MIN)),
                Imag => map(|_| 0),
                Positive | Conjugate | Real | Floor | Ceil | Trunc => Buffer::Int(values),
                Isnan | Isinf => Buffer::Bool(vec![false; values.len()]),
                Isfinite => Buffer::Bool(vec![true; values.len()]),
                _ => return error,
            }
        }
        Buffer::Float(values) => {
            let test = |f: fn(f64) -> bool| Buffer::Bool(values.iter().map(|x| f(*x)).collect());
            match operation {
                Isnan => test(f64::is_nan),
                Isinf => test(f64::is_infinite),
                Isfinite => test(f64::is_finite),
                Invert => return error,
                _ => Buffer::Float(values.iter().map(|x| float_function(operation, *x)).collect()),
            }
        }
        Buffer::Complex(values) => {
            let map = |f: fn(Complex) -> Complex| Buffer::Complex(values.iter().map(|x| f(*x)).collect());
            let real = |f: fn(Complex) -> f64| Buffer::Float(values.iter().map(|x| f(*x)).collect());
            match operation {
                Negative => map(|x| Complex { re: -x.re, im: -x.im }),
                Conjugate => map(|x| Complex { re: x.re, im: -x.im }),
                Square => map(|x| x * x),
                Reciprocal => map(|x| Complex::from(1.0) / x),
                Sqrt => map(Complex::sqrt),
                Exp => map(Complex::exp),
                Log => map(Complex::ln),
                Positive => Buffer::Complex(values),
                Absolute => real(Complex::abs),
                Real => real(|x| x.re),
                Imag => real(|x| x.im),
                Angle => real(|x| x.im.atan2(x.re)),
                Isnan => Buffer::Bool(values.iter().map(|x| x.re.is_nan() || x.im.is_nan()).collect()),
                Isinf => Buffer::Bool(values.iter().map(|x| x.re.is_infinite() || x.im.is_infinite()).collect()),
                Isfinite => Buffer::Bool(values.iter().map(|x| x.re.is_finite() && x.im.is_finite()).collect()),
                _ => return error,
            }
        }
    })
}

fn float_function(operation: Unary, x: f64) -> f64 {
    use Unary::*;
    match operation {
        Negative => -x,
        Positive | Conjugate | Real => x,
        Absolute => x.abs(),
        Sqrt => x.sqrt(),
        Cbrt => x.cbrt(),
        Exp => x.exp(),
        Expm1 => x.exp_m1(),
        Log => x.ln(),
        Log2 => x.log2(),
        Log10 => x.log10(),
        Log1p => x.ln_1p(),
        Sin => x.sin(),
        Cos => x.cos(),
        Tan => x.tan(),
        Arcsin => x.asin(),
        Arccos => x.acos(),
        Arctan => x.atan(),
        Sinh => x.sinh(),
        Cosh => x.cosh(),
        Tanh => x.tanh(),
        Floor => x.floor(),
        Ceil => x.ceil(),
        Trunc => x.trunc(),
        Rint => x.round_ties_even(),
        Sign if x == 0.0 || x.is_nan() => x,
        Sign => x.signum(),
        Square => x * x,
        Reciprocal => 1.0 / x,
        Imag => 0.0,
        Angle if x < 0.0 => std::f64::consts::PI,
        Angle => 0.0,
        Degrees => x.to_degrees(),
        Radians => x.to_radians(),
        Invert | LogicalNot | Isnan | Isinf | Isfinite => unreachable!("{operation:?} gives no float"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(name: &str, a: Buffer, b: Buffer) -> Result<Buffer, ArrayError> {
        let (x, y) = (Layout::contiguous(&[a.len()]), Layout::contiguous(&[b.len()]));
        binary(Binary::by_name(name).unwrap(), (&a, &x), (&b, &y)).map(|(result, _)| result)
    }

    #[test]
    fn integers_divide_and_wrap_as_numpys_do() {
        let int = |v: &[i64]| Buffer::Int(v.to_vec());
        let (a, b) = (int(&[7, -7, 7, -7, 5, i64::MIN]), int(&[2, 2, -2, -2, 0, -1]));
        assert_eq!(apply("floor_divide", a.clone(), b.clone()), Ok(int(&[3, -4, -4, 3, 0, i64::MIN])));
        assert_eq!(apply("remainder", a, b), Ok(int(&[1, 1, -1, -1, 0, 0])));
        assert_eq!(apply("add", int(&[i64::MAX]), int(&[1])), Ok(int(&[i64::MIN])));
        assert_eq!(apply("power", int(&[2, 3, -2]), int(&[62, 4, 3])), Ok(int(&[1 << 62, 81, -8])));
        assert_eq!(apply("power", int(&[2]), int(&[-1])), Err(ArrayError::NegativePower));
        assert_eq!(apply("lcm", int(&[4, 0, -6]), int(&[6, 5, 4])), Ok(int(&[12, 0, 12])));
        assert_eq!(apply("divide", int(&[1]), int(&[2])), Ok(Buffer::Float(vec![0.5])));
    }

    #[test]
    fn floats_and_truth_values() {
        let float = |v: &[f64]| Buffer::Float(v.to_vec());
        let (a, b) = (float(&[7.5, -7.5, 7.5, 1.0]), float(&[2.0, 2.0, -2.0, 0.1]));
        assert_eq!(apply("floor_divide", a.clone(), b.clone()), Ok(float(&[3.0, -4.0, -4.0, 9.0])));
        let Ok(Buffer::Float(rest)) = apply("remainder", a, b) else { panic!() };
        assert_eq!(rest[..3], [1.5, 0.5, -0.5]);
        let bools = |v: &[bool]| Buffer::Bool(v.to_vec());
        assert_eq!(apply("add", bools(&[true]), bools(&[true])), Ok(bools(&[true])));
        assert!(matches!(apply("subtract", bools(&[true]), bools(&[true])), Err(ArrayError::Kind("subtract", _))));
        assert_eq!(apply("power", bools(&[true]), bools(&[false])), Ok(Buffer::Int(vec![1])));
        let root = unary(Unary::Sqrt, (&Buffer::Int(vec![4]), &Layout::contiguous(&[1])));
        assert_eq!(root, Ok(float(&[2.0])));
    }
}
