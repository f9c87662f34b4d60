//! Everything that is said to the model, in one place.
//!
//! Owns the wording only. It is written for small models too: short, explicit, one worked example. The problem's text
//! goes in unchanged; what it may not do (spell control tokens) is the model adapter's business. Called by `rollout`
//! and `attempt`.

use crate::answer::AnswerRange;
use crate::model::Message;
use crate::options::SolverOptions;

/// The conversation that an attempt begins with.
pub fn opening(problem: &str, options: &SolverOptions) -> Vec<Message> {
    vec![Message::new("system", system(options)), Message::new("user", problem.trim())]
}

fn system(options: &SolverOptions) -> String {
    let range = options.answer_range;
    let (min, max) = (range.min(), range.max());
    let seconds = options.python.time_ms.div_ceil(1000);
    format!(
        "You solve maths problems by running Python. The answer is one integer from {min} to {max}.

Begin your reply with a ```python block: a short program that computes the answer and prints it. Do not derive the \
answer by hand first. The program is run for you, and an ```output block with its result follows; never write the \
output yourself. You have Python's standard library, sympy and mpmath; names stay defined from block to block; a \
block may run for {seconds} seconds. Prefer plain loops over all cases to clever formulas. If the output is an error \
or can't be right, write a corrected block.

Check what exactly is asked. If the problem asks for a remainder or says \"modulo\", the program must apply it.
When the output shows the answer, finish with one line: The answer is \\boxed{{integer}}

Example
User: How many integers from 1 to 100 are multiples of 7?
Assistant:
```python
print(sum(1 for n in range(1, 101) if n % 7 == 0))
```
```output
14
```
The answer is \\boxed{{14}}"
    )
}

/// Said once to a model that ended its turn with neither an answer nor code. `rejected` is its last box that didn't
/// count.
pub fn nudge(range: AnswerRange, rejected: Option<&str>) -> String {
    let (min, max) = (range.min(), range.max());
    match rejected {
        Some(text) => format!(
            "{text}. The answer is an integer from {min} to {max}. Check the problem again and give the final integer \
             in \\boxed{{}}."
        ),
        None => format!("Now give the final answer, one integer from {min} to {max}, in \\boxed{{}}."),
    }
}

/// Output of a call beyond the last one allowed.
pub fn no_more_calls(max_turns: usize) -> String {
    format!("[not run: all {max_turns} blocks are used up. Give the final integer in \\boxed{{}} now.]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_states_range_tool_libraries_and_modulus() {
        let options = SolverOptions { answer_range: "5..777".parse().unwrap(), ..SolverOptions::default() };
        let messages = opening(" Find x. \n", &options);
        assert_eq!(messages[1], Message::new("user", "Find x."));
        for needed in ["from 5 to 777", "```python", "sympy", "mpmath", "6 seconds", "modulo", "\\boxed{integer}"] {
            assert!(messages[0].content.contains(needed), "{needed} is missing from {}", messages[0].content);
        }
    }

    #[test]
    fn a_nudge_names_the_range_and_what_was_wrong() {
        let range = AnswerRange::default();
        assert_eq!(nudge(range, None), "Now give the final answer, one integer from 0 to 99999, in \\boxed{}.");
        assert!(nudge(range, Some("-4 is outside 0..99999")).starts_with("-4 is outside 0..99999. The answer is"));
    }
}
