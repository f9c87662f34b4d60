//! The native module `_arrays`: the arrays of the crate `accel` as Python objects, for `numpy` (`python/numpy`).
//!
//! A `Buffer` holds elements; a view is passed as `(shape, strides, offset)`, checked here against its buffer.

use rustpython_vm::pymodule;

#[pymodule]
pub mod _arrays {
    use accel::array::{
        self, ArrayError, Binary, Buffer, Complex, Kind, Layout, MAX_ELEMENTS, Order, Reduction, Unary, linalg,
    };
    use num_traits::ToPrimitive;
    use rustpython_vm::{
        AsObject, Py, PyObject, PyObjectRef, PyPayload, PyRef, PyResult, VirtualMachine,
        builtins::{PyBaseExceptionRef, PyBool, PyComplex, PyFloat, PyInt, PyListRef, PyStrRef, PyTuple},
        convert::ToPyObject,
        pyclass,
    };
    use std::cell::RefCell;

    #[pyattr]
    #[pyclass(module = "_arrays", name = "Buffer")]
    #[derive(Debug, PyPayload)]
    pub struct Elements {
        data: RefCell<Buffer>,
    }

    type ElementsRef = PyRef<Elements>;

    #[pyclass(flags(DISALLOW_INSTANTIATION))]
    impl Elements {
        #[pygetset]
        fn kind(zelf: &Py<Self>) -> &'static str {
            match zelf.data.borrow().kind() {
                Kind::Bool => "bool",
                Kind::Int => "int64",
                Kind::Float => "float64",
                Kind::Complex => "complex128",
            }
        }

        #[pygetset]
        fn size(zelf: &Py<Self>) -> usize {
            zelf.data.borrow().len()
        }
    }

    fn wrap(data: Buffer, vm: &VirtualMachine) -> ElementsRef {
        Elements { data: RefCell::new(data) }.into_ref(&vm.ctx)
    }

    fn kind_by_name(name: &PyStrRef, vm: &VirtualMachine) -> PyResult<Kind> {
        Ok(match &*name.to_string_lossy() {
            "bool" => Kind::Bool,
            "int64" => Kind::Int,
            "float64" => Kind::Float,
            "complex128" => Kind::Complex,
            other => return Err(vm.new_type_error(format!("data type '{other}' not understood"))),
        })
    }

    fn raise(error: ArrayError, vm: &VirtualMachine) -> PyBaseExceptionRef {
        let shown = |shape: &[usize]| match shape {
            [length] => format!("({length},)"),
            _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",")),
        };
        match error {
            ArrayError::Broadcast(a, b) => vm.new_value_error(format!(
                "operands could not be broadcast together with shapes {} {} ",
                shown(&a),
                shown(&b)
            )),
            ArrayError::Core(k, other) => vm.new_value_error(format!(
                "matmul: Input operand 1 has a mismatch in its core dimension 0, with gufunc signature \
                 (n?,k),(k,m?)->(n?,m?) (size {other} is different from {k})"
            )),
            ArrayError::Kind("subtract", Kind::Bool) => vm.new_type_error(
                "numpy boolean subtract, the `-` operator, is not supported, use the bitwise_xor, the `^` operator, \
                 or the logical_xor function instead.",
            ),
            ArrayError::Kind(name, _) => vm.new_type_error(format!(
                "ufunc '{name}' not supported for the input types, and the inputs could not be safely coerced to any \
                 supported types according to the casting rule ''safe''"
            )),
            ArrayError::NegativePower => vm.new_value_error("Integers to negative integer powers are not allowed."),
            ArrayError::Empty(name @ ("argmin" | "argmax")) => {
                vm.new_value_error(format!("attempt to get {name} of an empty sequence"))
            }
            ArrayError::Empty(name) => {
                vm.new_value_error(format!("zero-size array to reduction operation {name} which has no identity"))
            }
            ArrayError::Singular => vm.new_value_error("Singular matrix"),
            ArrayError::NoConvergence => vm.new_value_error("Eigenvalues did not converge"),
            ArrayError::TooLarge(shape) => {
                vm.new_memory_error(format!("Unable to allocate an array with shape {}", shown(&shape)))
            }
        }
    }

    fn lengths(object: &PyObject, vm: &VirtualMachine) -> PyResult<Vec<isize>> {
        let tuple = object.downcast_ref::<PyTuple>().ok_or_else(|| vm.new_type_error("a tuple of ints is needed"))?;
        tuple.iter().map(|item| item.try_to_value(vm)).collect()
    }

    fn shape(object: &PyObject, vm: &VirtualMachine) -> PyResult<Vec<usize>> {
        let lengths = lengths(object, vm)?;
        let shape: Option<Vec<usize>> = lengths.iter().map(|length| usize::try_from(*length).ok()).collect();
        let shape = shape.ok_or_else(|| vm.new_value_error("negative dimensions are not allowed"))?;
        array::n_elements(&shape).map_err(|error| raise(error, vm))?;
        Ok(shape)
    }

    /// A view that lies inside `elements`.
    fn view(object: &PyObject, elements: &Elements, vm: &VirtualMachine) -> PyResult<Layout> {
        let parts = object.downcast_ref::<PyTuple>().map(|tuple| tuple.as_slice()).unwrap_or_default();
        let [lengths_object, strides, offset] = parts else {
            return Err(vm.new_type_error("a view is (shape, strides, offset)"));
        };
        let layout = Layout {
            shape: shape(lengths_object, vm)?,
            strides: lengths(strides, vm)?,
            offset: offset.try_to_value(vm)?,
        };
        match layout.fits(elements.data.borrow().len()) {
            true => Ok(layout),
            false => Err(vm.new_index_error("the view leaves its buffer")),
        }
    }

    fn tuple(shape: Vec<usize>, vm: &VirtualMachine) -> PyObjectRef {
        vm.ctx.new_tuple(shape.into_iter().map(|length| length.to_pyobject(vm)).collect()).into()
    }

    fn scalar(buffer: &Buffer, position: usize, vm: &VirtualMachine) -> PyObjectRef {
        match buffer {
            Buffer::Bool(v) => v[position].to_pyobject(vm),
            Buffer::Int(v) => v[position].to_pyobject(vm),
            Buffer::Float(v) => v[position].to_pyobject(vm),
            Buffer::Complex(v) => {
                let Complex { re, im } = v[position];
                vm.ctx.new_complex(num_complex::Complex64::new(re, im)).into()
            }
        }
    }

    /// The narrowest kind that holds every element of a list, by name; None where one is no number.
    #[pyfunction]
    fn kind_of(list: PyListRef, vm: &VirtualMachine) -> Option<&'static str> {
        let mut kind = None;
        for item in list.borrow_vec().iter() {
            let own = if item.downcastable::<PyBool>() {
                Kind::Bool
            } else if item.downcastable::<PyInt>() {
                Kind::Int
            } else if item.downcastable::<PyFloat>() {
                Kind::Float
            } else if item.downcastable::<PyComplex>() {
                Kind::Complex
            } else if item.number().is_index() || item.class().has_attr(vm.ctx.intern_str("__index__")) {
                Kind::Int
            } else if item.class().has_attr(vm.ctx.intern_str("__float__")) {
                Kind::Float
            } else {
                return None;
            };
            kind = kind.max(Some(own));
        }
        Some(match kind {
            Some(Kind::Bool) => "bool",
            Some(Kind::Int) => "int64",
            None | Some(Kind::Float) => "float64",
            Some(Kind::Complex) => "complex128",
        })
    }

    /// The elements of a list, converted to `kind`.
    #[pyfunction]
    fn from_list(list: PyListRef, kind: PyStrRef, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let items = list.borrow_vec().to_vec();
        let float = |item: &PyObjectRef| -> PyResult<f64> { Ok(item.try_float(vm)?.to_f64()) };
        let data = match kind_by_name(&kind, vm)? {
            Kind::Bool => Buffer::Bool(items.iter().map(|item| item.clone().try_to_bool(vm)).collect::<PyResult<_>>()?),
            Kind::Int => {
                let int = |item: &PyObjectRef| -> PyResult<i64> {
                    let number = if item.downcastable::<PyFloat>() {
                        item.try_int(vm)?
                    } else {
                        item.try_index(vm).or_else(|_| item.try_int(vm))?
                    };
                    let too_large = || vm.new_overflow_error("Python int too large to convert to C long");
                    number.as_bigint().to_i64().ok_or_else(too_large)
                };
                Buffer::Int(items.iter().map(int).collect::<PyResult<_>>()?)
            }
            Kind::Float => Buffer::Float(items.iter().map(float).collect::<PyResult<_>>()?),
            Kind::Complex => {
                let complex = |item: &PyObjectRef| -> PyResult<Complex> {
                    match item.downcast_ref::<PyComplex>() {
                        Some(number) => Ok(Complex { re: number.as_complex().re, im: number.as_complex().im }),
                        None => Ok(Complex { re: float(item)?, im: 0.0 }),
                    }
                };
                Buffer::Complex(items.iter().map(complex).collect::<PyResult<_>>()?)
            }
        };
        Ok(wrap(data, vm))
    }

    #[pyfunction]
    fn zeros(kind: PyStrRef, size: PyObjectRef, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let n = array::n_elements(&shape(&size, vm)?).map_err(|error| raise(error, vm))?;
        Ok(wrap(Buffer::zeros(kind_by_name(&kind, vm)?, n), vm))
    }

    /// `n` integers from `start` on, `step` apart.
    #[pyfunction]
    fn count(start: i64, step: i64, n: usize, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        array::n_elements(&[n]).map_err(|error| raise(error, vm))?;
        Ok(wrap(Buffer::Int((0..n as i64).map(|k| start.wrapping_add(step.wrapping_mul(k))).collect()), vm))
    }

    /// The elements of a view as a flat list.
    #[pyfunction]
    fn to_list(elements: ElementsRef, layout: PyObjectRef, vm: &VirtualMachine) -> PyResult<PyListRef> {
        let layout = view(&layout, &elements, vm)?;
        let data = elements.data.borrow();
        Ok(vm.ctx.new_list(layout.indices().map(|position| scalar(&data, position, vm)).collect()))
    }

    #[pyfunction]
    fn get(elements: ElementsRef, position: usize, vm: &VirtualMachine) -> PyResult<PyObjectRef> {
        let data = elements.data.borrow();
        if position >= data.len() {
            return Err(vm.new_index_error("the position leaves the buffer"));
        }
        Ok(scalar(&data, position, vm))
    }

    /// A contiguous copy of a view, converted to `kind`.
    #[pyfunction]
    fn gather(
        elements: ElementsRef,
        layout: PyObjectRef,
        kind: PyStrRef,
        vm: &VirtualMachine,
    ) -> PyResult<ElementsRef> {
        let layout = view(&layout, &elements, vm)?;
        let copy = elements.data.borrow().gather(&layout, kind_by_name(&kind, vm)?);
        Ok(wrap(copy, vm))
    }

    /// Writes one view into another; the source is broadcast.
    #[pyfunction]
    fn scatter(
        target: ElementsRef,
        layout: PyObjectRef,
        source: ElementsRef,
        from: PyObjectRef,
        vm: &VirtualMachine,
    ) -> PyResult<()> {
        let (layout, from) = (view(&layout, &target, vm)?, view(&from, &source, vm)?);
        let mismatch = || raise(ArrayError::Broadcast(from.shape.clone(), layout.shape.clone()), vm);
        let spread = from.broadcast_to(&layout.shape).ok_or_else(mismatch)?;
        // A copy where both are one buffer: it can't be read while it is written.
        let source = source.data.borrow().gather(&spread, target.data.borrow().kind());
        let contiguous = Layout::contiguous(&layout.shape);
        target.data.borrow_mut().scatter(&layout, &source, &contiguous);
        Ok(())
    }

    /// Positions out of integers.
    fn positions(elements: &Elements, n: usize, vm: &VirtualMachine) -> PyResult<Vec<usize>> {
        let Buffer::Int(positions) = &*elements.data.borrow() else {
            return Err(vm.new_index_error("arrays used as indices must be of integer (or boolean) type"));
        };
        let position = |p: &i64| usize::try_from(*p).ok().filter(|p| *p < n);
        let found: Option<Vec<usize>> = positions.iter().map(position).collect();
        found.ok_or_else(|| vm.new_index_error("a position leaves the buffer"))
    }

    #[pyfunction]
    fn pick(elements: ElementsRef, at: ElementsRef, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let data = elements.data.borrow();
        Ok(wrap(data.pick(&positions(&at, data.len(), vm)?), vm))
    }

    #[pyfunction]
    fn put(elements: ElementsRef, at: ElementsRef, values: ElementsRef, vm: &VirtualMachine) -> PyResult<()> {
        let positions = positions(&at, elements.data.borrow().len(), vm)?;
        let values = values.data.borrow().clone();
        elements.data.borrow_mut().put(&positions, &values);
        Ok(())
    }

    /// Positions of a view's elements in its buffer, as integers.
    #[pyfunction]
    fn places(elements: ElementsRef, layout: PyObjectRef, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let layout = view(&layout, &elements, vm)?;
        Ok(wrap(Buffer::Int(layout.indices().map(|position| position as i64).collect()), vm))
    }

    /// Where a view is true, counted in C order.
    #[pyfunction]
    fn true_places(elements: ElementsRef, layout: PyObjectRef, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let layout = view(&layout, &elements, vm)?;
        let Buffer::Bool(truth) = elements.data.borrow().gather(&layout, Kind::Bool) else {
            unreachable!("converted to bool")
        };
        let places = truth.iter().enumerate().filter(|(_, truth)| **truth).map(|(place, _)| place as i64);
        Ok(wrap(Buffer::Int(places.collect()), vm))
    }

    #[pyfunction]
    fn binary(
        name: PyStrRef,
        a: ElementsRef,
        a_view: PyObjectRef,
        b: ElementsRef,
        b_view: PyObjectRef,
        vm: &VirtualMachine,
    ) -> PyResult<(ElementsRef, PyObjectRef)> {
        let operation = Binary::by_name(&name.to_string_lossy());
        let operation = operation.ok_or_else(|| vm.new_type_error("no such operation"))?;
        let (a_view, b_view) = (view(&a_view, &a, vm)?, view(&b_view, &b, vm)?);
        let result = array::binary(operation, (&a.data.borrow(), &a_view), (&b.data.borrow(), &b_view));
        let (data, shape) = result.map_err(|error| raise(error, vm))?;
        Ok((wrap(data, vm), tuple(shape, vm)))
    }

    #[pyfunction]
    fn unary(name: PyStrRef, a: ElementsRef, layout: PyObjectRef, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let operation = Unary::by_name(&name.to_string_lossy());
        let operation = operation.ok_or_else(|| vm.new_type_error("no such operation"))?;
        let layout = view(&layout, &a, vm)?;
        let data = array::unary(operation, (&a.data.borrow(), &layout)).map_err(|error| raise(error, vm))?;
        Ok(wrap(data, vm))
    }

    #[pyfunction]
    fn reduce(
        name: PyStrRef,
        a: ElementsRef,
        layout: PyObjectRef,
        axis: Option<usize>,
        vm: &VirtualMachine,
    ) -> PyResult<(ElementsRef, PyObjectRef)> {
        let reduction = Reduction::by_name(&name.to_string_lossy());
        let reduction = reduction.ok_or_else(|| vm.new_type_error("no such reduction"))?;
        let layout = view(&layout, &a, vm)?;
        check_axis(axis, &layout, vm)?;
        let result = array::reduce(reduction, (&a.data.borrow(), &layout), axis);
        let (data, shape) = result.map_err(|error| raise(error, vm))?;
        Ok((wrap(data, vm), tuple(shape, vm)))
    }

    fn check_axis(axis: Option<usize>, layout: &Layout, vm: &VirtualMachine) -> PyResult<()> {
        match axis.is_some_and(|axis| axis >= layout.shape.len()) {
            true => Err(vm.new_index_error("the axis is out of bounds")),
            false => Ok(()),
        }
    }

    #[pyfunction]
    fn cumulate(
        product: bool,
        a: ElementsRef,
        layout: PyObjectRef,
        axis: usize,
        vm: &VirtualMachine,
    ) -> PyResult<ElementsRef> {
        let layout = view(&layout, &a, vm)?;
        check_axis(Some(axis), &layout, vm)?;
        let data = array::cumulate(product, (&a.data.borrow(), &layout), axis);
        Ok(wrap(data, vm))
    }

    /// Each line of the last axis sorted, or the positions that sort it.
    #[pyfunction]
    fn order(positions: bool, a: ElementsRef, layout: PyObjectRef, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let layout = view(&layout, &a, vm)?;
        let what = if positions { Order::Positions } else { Order::Sorted };
        Ok(wrap(array::order(what, (&a.data.borrow(), &layout)), vm))
    }

    #[pyfunction]
    fn matmul(
        a: ElementsRef,
        a_view: PyObjectRef,
        b: ElementsRef,
        b_view: PyObjectRef,
        vm: &VirtualMachine,
    ) -> PyResult<ElementsRef> {
        let (a_view, b_view) = (view(&a_view, &a, vm)?, view(&b_view, &b, vm)?);
        if a_view.shape.len() != 2 || b_view.shape.len() != 2 {
            return Err(vm.new_value_error("a product of matrices needs two axes"));
        }
        array::n_elements(&[a_view.shape[0], b_view.shape[1]]).map_err(|error| raise(error, vm))?;
        let product = linalg::matmul((&a.data.borrow(), &a_view), (&b.data.borrow(), &b_view));
        Ok(wrap(product.map_err(|error| raise(error, vm))?, vm))
    }

    /// A contiguous float matrix with `rows` rows, and its number of columns.
    fn matrix(elements: &Elements, rows: usize, vm: &VirtualMachine) -> PyResult<(Vec<f64>, usize)> {
        match &*elements.data.borrow() {
            Buffer::Float(data) if rows == 0 || data.len() % rows == 0 => {
                Ok((data.clone(), data.len().checked_div(rows).unwrap_or(0)))
            }
            _ => Err(vm.new_value_error("a contiguous float64 matrix is needed")),
        }
    }

    fn square(elements: &Elements, n: usize, vm: &VirtualMachine) -> PyResult<Vec<f64>> {
        let (data, columns) = matrix(elements, n, vm)?;
        if columns == n { Ok(data) } else { Err(vm.new_value_error("Last 2 dimensions of the array must be square")) }
    }

    #[pyfunction]
    fn det(elements: ElementsRef, n: usize, vm: &VirtualMachine) -> PyResult<f64> {
        Ok(linalg::det(square(&elements, n, vm)?, n))
    }

    #[pyfunction]
    fn solve(elements: ElementsRef, right: ElementsRef, n: usize, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let (right, columns) = matrix(&right, n, vm)?;
        let solution = linalg::solve(square(&elements, n, vm)?, &right, n, columns);
        Ok(wrap(Buffer::Float(solution.map_err(|error| raise(error, vm))?), vm))
    }

    /// `(solution, squared length of what is left)`.
    #[pyfunction]
    fn least_squares(
        elements: ElementsRef,
        right: ElementsRef,
        n: usize,
        vm: &VirtualMachine,
    ) -> PyResult<(ElementsRef, f64)> {
        let (data, columns) = matrix(&elements, n, vm)?;
        let (right, one) = matrix(&right, n, vm)?;
        if one != 1 || columns > n {
            return Err(vm.new_value_error("a system with at least as many equations as unknowns is needed"));
        }
        let solution = linalg::least_squares(data, right, n, columns);
        let (x, rest) = solution.map_err(|error| raise(error, vm))?;
        Ok((wrap(Buffer::Float(x), vm), rest))
    }

    /// Complex eigenvalues of a contiguous square matrix.
    #[pyfunction]
    fn eigenvalues(elements: ElementsRef, n: usize, vm: &VirtualMachine) -> PyResult<ElementsRef> {
        let data = elements.data.borrow();
        if n.checked_mul(n) != Some(data.len()) || n > MAX_ELEMENTS {
            return Err(vm.new_value_error("Last 2 dimensions of the array must be square"));
        }
        let values = linalg::eigenvalues(&data, n).map_err(|error| raise(error, vm))?;
        Ok(wrap(Buffer::Complex(values), vm))
    }
}
