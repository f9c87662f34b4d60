//! A template as a program: compiled, and run with operators on lists that are paid for.
//!
//! minijinja makes what `+`, `*` and slices of lists give only when somebody looks, and copies it unpaid where such
//! promises nest too deeply: a list doubled thirty times is nearly free until it takes all memory at once. Here their
//! instructions become calls of functions that mean the same, make the list at once and pay for each item, so that no
//! promise ever holds another. Filters that make promises and that no template for Jinja can know are left out.
//! Called by `ChatTemplate`.

use std::collections::BTreeMap;
use std::iter;
use std::sync::LazyLock;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, Expression, State};

use super::{NAME, methods::BYTES_PER_FUEL};

/// Names of the functions: no template can write them, and so none can change what they are.
const ADD: &str = "+";
const MULTIPLY: &str = "*";
const SLICE: &str = "[:]";

/// Instructions of a template and of its blocks.
type Code<'s> = (Instructions<'s>, BTreeMap<&'s str, Instructions<'s>>);

/// Adds the functions, and takes away the filters.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_function(ADD, add);
    environment.add_function(MULTIPLY, multiply);
    environment.add_function(SLICE, slice);
    ["chain", "zip"].iter().for_each(|filter| environment.remove_filter(filter));
}

/// The instructions of `source`.
pub(super) fn compile(source: &str) -> Result<Code<'_>, Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let tree = parse(source, NAME, syntax.expect("the usual delimiters are valid"))?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&tree);
    let (mut main, mut blocks) = generator.finish();
    iter::once(&mut main).chain(blocks.values_mut()).for_each(call_operators);
    Ok((main, blocks))
}

fn call_operators(code: &mut Instructions<'_>) {
    let mut i = 0;
    while let Some(instruction) = code.get_mut(i) {
        let call = match instruction {
            Instruction::Add => Some((ADD, 2)),
            Instruction::Mul => Some((MULTIPLY, 2)),
            Instruction::Slice => Some((SLICE, 4)),
            _ => None,
        };
        if let Some((name, n_args)) = call {
            *instruction = Instruction::CallFunction(name, Some(n_args));
        }
        i += 1;
    }
}

/// Compiles and runs `source` in an environment that [`install`] has seen.
pub(super) fn run<'e>(environment: &'e Environment<'e>, source: &'e str, variables: Value) -> Result<String, Error> {
    let (main, blocks) = compile(source)?;
    let mut text = String::new();
    eval(environment, &main, variables, &blocks, &mut make_string_output(&mut text), AutoEscape::None)?;
    Ok(text)
}

fn add(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    afford(state, bytes(&a).saturating_add(bytes(&b)))?;
    apply(state, &OPERATORS.add, [("a", a), ("b", b)])
}

fn multiply(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    let times = |value: &Value| value.as_usize().unwrap_or(1);
    afford(state, bytes(&a).saturating_mul(times(&b)).max(bytes(&b).saturating_mul(times(&a))))?;
    apply(state, &OPERATORS.multiply, [("a", a), ("b", b)])
}

fn slice(state: &State, a: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    afford(state, bytes(&a))?;
    apply(state, &OPERATORS.slice, [("a", a), ("start", start), ("stop", stop), ("step", step)])
}

/// Bytes of a text, or of the places of a list's items.
fn bytes(value: &Value) -> usize {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => text.len(),
        (None, ValueKind::Seq | ValueKind::Iterable) => value.len().unwrap_or(0).saturating_mul(size_of::<Value>()),
        _ => 0,
    }
}

/// Fails where the template could not pay for so much. It pays when it has the result.
fn afford(state: &State, bytes: usize) -> Result<(), Error> {
    let cost = (bytes / BYTES_PER_FUEL) as u64;
    match state.fuel_levels() {
        Some((_, left)) if cost >= left => state.consume_fuel(cost),
        _ => Ok(()),
    }
}

/// minijinja's own operators. They see no names but their operands'.
struct Operators {
    add: Expression<'static, 'static>,
    multiply: Expression<'static, 'static>,
    slice: Expression<'static, 'static>,
}

static OPERATORS: LazyLock<Operators> = LazyLock::new(|| {
    static EMPTY: LazyLock<Environment<'static>> = LazyLock::new(Environment::empty);
    let compiled = |source: &'static str| EMPTY.compile_expression(source).expect("an expression of our own");
    Operators { add: compiled("a + b"), multiply: compiled("a * b"), slice: compiled("a[start:stop:step]") }
});

fn apply<const N: usize>(
    state: &State,
    operator: &Expression<'static, 'static>,
    operands: [(&str, Value); N],
) -> Result<Value, Error> {
    let result = operator.eval(Value::from_pairs(operands)).map_err(|e| {
        // Without its place, which is in the expression here; the caller adds its own.
        let detail = e.detail().unwrap_or("the operator does not fit its operands");
        Error::new(e.kind(), detail.to_owned())
    })?;
    if result.is_tuple() || !matches!(result.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(result);
    }
    let mut items = Vec::new();
    for item in result.try_iter()? {
        state.consume_fuel(1)?;
        items.push(item);
    }
    Ok(Value::from(items))
}
