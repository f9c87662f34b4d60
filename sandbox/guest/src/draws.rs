//! The native module `_draws`: what `random.shuffle` does with the bits that a generator gives.

use rustpython_vm::pymodule;

#[pymodule]
pub mod _draws {
    use rustpython_vm::{PyObjectRef, PyResult, VirtualMachine, builtins::PyListRef};

    /// How many swaps are made between two looks at the clock.
    const N_BETWEEN: usize = 1024;

    /// Shuffles a list in place with the numbers that `random.Random.shuffle` would draw: for each place from the last to
    /// the second one below `place + 1`, of as many of `getrandbits`' bits, drawn again while it is too large.
    #[pyfunction]
    fn shuffle(items: PyListRef, getrandbits: PyObjectRef, vm: &VirtualMachine) -> PyResult<()> {
        let n_items = items.borrow_vec().len();
        for place in (1..n_items).rev() {
            if place % N_BETWEEN == 0 {
                vm.check_signals()?;
            }
            let n_bits = usize::BITS - (place + 1).leading_zeros();
            let other = loop {
                let drawn = getrandbits.call((n_bits,), vm)?.try_to_value::<usize>(vm)?;
                if drawn <= place {
                    break drawn;
                }
            };
            // A generator of the user's own may have changed the list.
            let mut items = items.borrow_vec_mut();
            if place >= items.len() {
                return Err(vm.new_index_error("list index out of range"));
            }
            items.swap(place, other);
        }
        Ok(())
    }
}
