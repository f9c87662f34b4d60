//! The native module `_ntheory`: the crate `accel` as Python functions.
//!
//! Every function answers None where its arguments lie outside what `accel` does (other types, negative or huge
//! numbers); `_sympy_patches.py` and `gmpy2.py` then do it their own way. Long computations let interrupts through.

use rustpython_vm::pymodule;

#[pymodule]
pub mod _ntheory {
    use accel::{factor, group, prime, sieve};
    use num_traits::ToPrimitive;
    use rustpython_vm::{
        AsObject, PyObjectRef, PyResult, VirtualMachine, builtins::PyInt, builtins::PyIntRef, convert::ToPyObject,
        function::ArgIterable,
    };

    /// The value of an int that is not negative and fits; subclasses of int (bool among them) are left to Python.
    fn natural(n: &PyObjectRef, vm: &VirtualMachine) -> Option<u128> {
        n.downcast_ref_if_exact::<PyInt>(vm)?.as_bigint().to_u128()
    }

    fn positive(n: &PyObjectRef, vm: &VirtualMachine) -> Option<u128> {
        natural(n, vm).filter(|n| *n > 0)
    }

    fn modulus(n: &PyObjectRef, vm: &VirtualMachine) -> Option<u128> {
        positive(n, vm).filter(|n| *n <= group::MAX_MODULUS)
    }

    /// A list of ints.
    fn list(numbers: impl IntoIterator<Item = u128>, vm: &VirtualMachine) -> PyObjectRef {
        vm.ctx.new_list(numbers.into_iter().map(|n| int(n, vm)).collect()).into()
    }

    fn int(n: u128, vm: &VirtualMachine) -> PyObjectRef {
        // One word is the usual case and cheaper to turn into a big integer.
        match u64::try_from(n) {
            Ok(word) => vm.ctx.new_int(word).into(),
            Err(_) => vm.ctx.new_int(n).into(),
        }
    }

    #[pyfunction]
    fn is_prime(n: PyObjectRef, vm: &VirtualMachine) -> Option<bool> {
        prime::is_prime(natural(&n, vm)?)
    }

    #[pyfunction]
    fn next_prime(n: PyObjectRef, vm: &VirtualMachine) -> Option<PyObjectRef> {
        prime::next_prime(natural(&n, vm)?).map(|n| int(n, vm))
    }

    #[pyfunction]
    fn prev_prime(n: PyObjectRef, vm: &VirtualMachine) -> Option<PyObjectRef> {
        prime::prev_prime(natural(&n, vm)?).map(|n| int(n, vm))
    }

    /// The primes of `start..end` as a list; None beyond `sieve::MAX_END`.
    #[pyfunction]
    fn primes(start: PyObjectRef, end: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<PyObjectRef>> {
        let bounds = natural(&start, vm).zip(natural(&end, vm)).filter(|(_, end)| *end <= u128::from(sieve::MAX_END));
        let Some((start, end)) = bounds else { return Ok(None) };
        let mut found = Vec::new();
        let start = start.min(end) as u64;
        sieve::for_each_prime(start, end as u64, &mut || vm.check_signals(), |prime| {
            found.push(vm.ctx.new_int(prime).into());
            true
        })?;
        Ok(Some(vm.ctx.new_list(found).into()))
    }

    #[pyfunction]
    fn prime_pi(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<u64>> {
        let n = natural(&n, vm).filter(|n| *n <= u128::from(sieve::MAX_COUNT));
        n.map(|n| sieve::prime_pi(n as u64, &mut || vm.check_signals())).transpose()
    }

    #[pyfunction]
    fn nth_prime(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<u64>> {
        let n = positive(&n, vm).filter(|n| *n <= u128::from(sieve::MAX_NTH));
        n.map(|n| sieve::nth_prime(n as u64, &mut || vm.check_signals())).transpose()
    }

    fn factors(n: &PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<factor::Factors>> {
        positive(n, vm).map(|n| factor::factor(n, &mut || vm.check_signals())).transpose()
    }

    /// The factors, where the whole number could be factored.
    fn whole(n: &PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<Vec<(u128, u32)>>> {
        Ok(factors(n, vm)?.filter(|factors| factors.rest == 1).map(|factors| factors.primes))
    }

    /// `({prime: exponent}, rest)`.
    #[pyfunction]
    fn factor(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<(PyObjectRef, PyObjectRef)>> {
        let Some(factors) = factors(&n, vm)? else { return Ok(None) };
        let dict = vm.ctx.new_dict();
        for (prime, exponent) in factors.primes {
            dict.set_item(int(prime, vm).as_object(), exponent.to_pyobject(vm), vm)?;
        }
        Ok(Some((dict.into(), int(factors.rest, vm))))
    }

    #[pyfunction]
    fn divisors(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<PyObjectRef>> {
        Ok(whole(&n, vm)?.map(|primes| list(factor::divisors(&primes), vm)))
    }

    #[pyfunction]
    fn divisor_count(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<PyObjectRef>> {
        Ok(whole(&n, vm)?.map(|primes| int(factor::n_divisors(&primes), vm)))
    }

    #[pyfunction]
    fn totient(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<PyObjectRef>> {
        Ok(whole(&n, vm)?.map(|primes| int(factor::totient(&primes), vm)))
    }

    #[pyfunction]
    fn mobius(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<i32>> {
        Ok(whole(&n, vm)?.map(|primes| factor::mobius(&primes)))
    }

    #[pyfunction]
    fn n_order(a: PyObjectRef, n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<PyObjectRef>> {
        let Some((a, n)) = natural(&a, vm).zip(modulus(&n, vm)) else { return Ok(None) };
        Ok(group::order(a, n, &mut || vm.check_signals())?.map(|order| int(order, vm)))
    }

    /// The smallest primitive root of an odd prime.
    #[pyfunction]
    fn primitive_root(n: PyObjectRef, vm: &VirtualMachine) -> PyResult<Option<PyObjectRef>> {
        let odd_prime = modulus(&n, vm).filter(|n| *n > 2 && prime::is_prime(*n) == Some(true));
        let Some(odd_prime) = odd_prime else { return Ok(None) };
        Ok(Some(int(group::primitive_root(odd_prime, &mut || vm.check_signals())?, vm)))
    }

    /// `[root]` modulo an odd prime, or `[]`.
    #[pyfunction]
    fn sqrt_mod_prime(a: PyObjectRef, n: PyObjectRef, vm: &VirtualMachine) -> Option<PyObjectRef> {
        let odd_prime = modulus(&n, vm).filter(|n| *n > 2 && prime::is_prime(*n) == Some(true))?;
        Some(list(group::sqrt_mod_prime(natural(&a, vm)?, odd_prime), vm))
    }

    /// `[exponent]`, or `[]` where there is none.
    #[pyfunction]
    fn discrete_log(
        n: PyObjectRef,
        a: PyObjectRef,
        base: PyObjectRef,
        vm: &VirtualMachine,
    ) -> PyResult<Option<PyObjectRef>> {
        let arguments = modulus(&n, vm).zip(natural(&a, vm)).zip(natural(&base, vm));
        let Some(((n, a), base)) = arguments else { return Ok(None) };
        Ok(match group::discrete_log(n, a, base, &mut || vm.check_signals())? {
            group::Log::Found(exponent) => Some(list([exponent], vm)),
            group::Log::Nowhere => Some(list([], vm)),
            group::Log::TooLarge => None,
        })
    }

    /// `(x, product)` for moduli that have no common factors.
    #[pyfunction]
    fn crt(
        moduli: ArgIterable<PyIntRef>,
        residues: ArgIterable<PyIntRef>,
        vm: &VirtualMachine,
    ) -> PyResult<Option<(PyObjectRef, PyObjectRef)>> {
        let collect = |numbers: ArgIterable<PyIntRef>| -> PyResult<Option<Vec<u128>>> {
            let numbers: Vec<PyIntRef> = numbers.iter(vm)?.collect::<PyResult<_>>()?;
            Ok(numbers.iter().map(|n| n.as_bigint().to_u128()).collect())
        };
        let (Some(moduli), Some(residues)) = (collect(moduli)?, collect(residues)?) else { return Ok(None) };
        let product = moduli.iter().try_fold(1u128, |product, modulus| product.checked_mul(*modulus));
        if moduli.contains(&0) || moduli.len() != residues.len() {
            return Ok(None);
        }
        let solution = group::crt(&moduli, &residues).flatten().filter(|(_, lcm)| Some(*lcm) == product);
        Ok(solution.map(|(x, lcm)| (int(x, vm), int(lcm, vm))))
    }
}
