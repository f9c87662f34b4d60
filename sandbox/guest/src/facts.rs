//! The native module `_facts`: what follows from facts, by the rules of sympy's assumptions.

use rustpython_vm::pymodule;

#[pymodule]
pub mod _facts {
    use rustpython_vm::{
        AsObject, Py, PyObject, PyObjectRef, PyResult, VirtualMachine,
        builtins::{PyDict, PyDictRef, PyListRef, PyTuple, PyTupleRef},
    };

    /// What came of telling a fact.
    enum Told {
        New,
        Known,
        /// The opposite is known.
        Wrong,
    }

    /// `FactKB.deduce_all_facts`: adds `facts`, pairs of a name and a value, to `known`, with all that follows from them.
    /// A fact implies those of `implications[name, value]` at once, and may complete the conditions of the `rules` with
    /// the numbers `triggers[name, value]`. The answer is the fact that contradicts what is known, if there is one.
    #[pyfunction]
    fn deduce(
        known: PyDictRef,
        facts: Vec<PyTupleRef>,
        implications: PyObjectRef,
        triggers: PyObjectRef,
        rules: PyListRef,
        vm: &VirtualMachine,
    ) -> PyResult<Option<PyTupleRef>> {
        let mut facts = facts;
        let mut is_due = vec![false; rules.borrow_vec().len()];
        while !facts.is_empty() {
            for fact in facts.drain(..) {
                match tell(&known, &fact, vm)? {
                    Told::Wrong => return Ok(Some(fact)),
                    Told::Known => continue,
                    Told::New if vm.is_none(pair(&fact, vm)?.1) => continue,
                    Told::New => {}
                }
                for implied in implications.get_item(fact.as_object(), vm)?.try_to_value::<Vec<PyTupleRef>>(vm)? {
                    if let Told::Wrong = tell(&known, &implied, vm)? {
                        return Ok(Some(implied));
                    }
                }
                for number in triggers.get_item(fact.as_object(), vm)?.try_to_value::<Vec<usize>>(vm)? {
                    *is_due.get_mut(number).ok_or_else(|| vm.new_index_error("no such rule"))? = true;
                }
            }
            for (number, is_due) in is_due.iter_mut().enumerate().filter(|(_, is_due)| **is_due) {
                *is_due = false;
                let rule = rules.borrow_vec().get(number).cloned();
                let rule = rule.ok_or_else(|| vm.new_index_error("no such rule"))?.try_into_value::<PyTupleRef>(vm)?;
                let (conditions, implied) = pair(&rule, vm)?;
                if holds(&known, conditions, vm)? {
                    facts.push(implied.to_owned().try_into_value(vm)?);
                }
            }
        }
        Ok(None)
    }

    /// Adds a fact, unless it is known.
    fn tell(known: &Py<PyDict>, fact: &Py<PyTuple>, vm: &VirtualMachine) -> PyResult<Told> {
        let (name, value) = pair(fact, vm)?;
        match known.inner_getitem_opt(name, vm)?.filter(|before| !vm.is_none(before)) {
            Some(before) if vm.identical_or_equal(&before, value)? => Ok(Told::Known),
            Some(_) => Ok(Told::Wrong),
            None => known.inner_setitem(name, value.to_owned(), vm).map(|()| Told::New),
        }
    }

    /// Whether all of the facts are known.
    fn holds(known: &Py<PyDict>, facts: &PyObject, vm: &VirtualMachine) -> PyResult<bool> {
        for fact in facts.try_to_value::<Vec<PyTupleRef>>(vm)? {
            let (name, value) = pair(&fact, vm)?;
            if !known.inner_getitem_opt(name, vm)?.is_some_and(|known| known.is(value)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn pair<'a>(pair: &'a Py<PyTuple>, vm: &VirtualMachine) -> PyResult<(&'a PyObject, &'a PyObject)> {
        match pair.as_slice() {
            [first, second] => Ok((first, second)),
            _ => Err(vm.new_value_error("a fact is a name and a value")),
        }
    }
}
