//! A run as one HTML file that needs nothing else: score, time line, tokens per second, votes, confidence, and every
//! transcript, searchable, on a phone too, light and dark.
//!
//! Everything in it is untrusted (problems, what models wrote, what their code printed): it goes through the template
//! engine's escaping, no script or style holds any of it, and a content policy lets only the file's own script run.
//! Called by `report`.

mod highlight;
mod view;

use std::collections::BTreeMap;

use minijinja::{Environment, Value, context};
use sha2::{Digest, Sha256};

use crate::journal::History;
use view::View;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[error("the page can't be made: {0}")]
pub struct HtmlError(#[from] minijinja::Error);

/// The page. `began` is the run's date and time for people.
pub fn render(history: &History, began: &str) -> Result<String, HtmlError> {
    let mut environment = Environment::new();
    // The name's ending turns escaping on.
    environment.add_template("report.html", include_str!("report.html"))?;
    let view = serde_json::to_value(View::of(history, began)).expect("it is plain data with string keys");
    // Unknown before the run has ended, so nothing in the run can have been written to match it.
    let mut hash = Sha256::new();
    for attempt in history.problems.iter().flat_map(|p| &p.attempts) {
        hash.update(format!("{:?}{:?}", attempt.steps, attempt.report));
    }
    let nonce: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let mut page = environment.get_template("report.html")?.render(context! {
        run => template_value(view),
        nonce,
        style => Value::from_safe_string(include_str!("report.css").to_string()),
        script => Value::from_safe_string(include_str!("report.js").to_string()),
    })?;
    page.push('\n');
    Ok(page)
}

/// Data as the template engine has it; texts stay unsafe, so they are escaped.
fn template_value(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(is) => Value::from(is),
        serde_json::Value::Number(n) => n.as_i64().map_or_else(|| Value::from(n.to_string()), Value::from),
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(all) => all.into_iter().map(template_value).collect(),
        serde_json::Value::Object(map) => {
            map.into_iter().map(|(name, value)| (name, template_value(value))).collect::<BTreeMap<_, _>>().into()
        }
    }
}
