//! Python's methods on strings, lists and dicts, paid for before they run.
//!
//! The methods are minijinja-contrib's. They make their result first and are charged for it afterwards, so a single
//! `replace` could ask for more memory than there is; here the size of the result is bounded beforehand.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Bytes that one unit of fuel pays for, as in minijinja itself.
pub(super) const BYTES_PER_FUEL: usize = 64;
/// A string may come back in pieces, each with a header.
const BYTES_PER_FUEL_CUT: usize = 8;

/// The callback for methods that minijinja itself doesn't know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        state.consume_fuel((text.len() / BYTES_PER_FUEL_CUT) as u64)?;
        match method {
            "replace" => charge(state, replaced_bytes(text, args))?,
            "format" => charge(state, formatted_bytes(text, args))?,
            "join" => charge_join(state, text, args)?,
            _ => {}
        }
    }
    unknown_method_callback(state, value, method, args)
}

fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
}

fn replaced_bytes(text: &str, args: &[Value]) -> usize {
    let (Some(old), Some(new)) = (args.first().and_then(Value::as_str), args.get(1).and_then(Value::as_str)) else {
        return 0;
    };
    // An empty pattern matches around every character.
    let n_matches = if old.is_empty() { text.len() + 1 } else { text.len() / old.len() };
    let n_matches = if new.len() > old.len() && !old.is_empty() { text.matches(old).count() } else { n_matches };
    text.len().saturating_add(n_matches.saturating_mul(new.len()))
}

/// At most: every number in the text taken for a width, and every argument written at every place. Where widths may
/// come from arguments, those count too.
fn formatted_bytes(text: &str, args: &[Value]) -> usize {
    let number = |digits: &str| if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) };
    let widths = text.split(|c: char| !c.is_ascii_digit()).map(number).fold(0, usize::saturating_add);
    let n_places = text.matches('{').count();
    let arg_bytes = args.iter().map(|arg| arg.as_str().map_or(32, str::len)).fold(0, usize::saturating_add);
    let has_nested_spec = text.split(':').skip(1).any(|spec| spec.find('{') < spec.find('}'));
    let arg_widths =
        if has_nested_spec { args.iter().filter_map(Value::as_usize).fold(0, usize::saturating_add) } else { 0 };
    widths
        .saturating_add(text.len())
        .saturating_add(n_places.saturating_mul(arg_bytes))
        .saturating_add(n_places.saturating_mul(arg_widths))
}

fn charge_join(state: &State, separator: &str, args: &[Value]) -> Result<(), Error> {
    let Some(items) = args.first().filter(|items| matches!(items.kind(), ValueKind::Seq | ValueKind::Iterable)) else {
        return Ok(());
    };
    for item in items.try_iter()? {
        let item_bytes = item.as_str().map_or(0, str::len);
        state.consume_fuel(1 + (item_bytes.saturating_add(separator.len()) / BYTES_PER_FUEL) as u64)?;
    }
    Ok(())
}
