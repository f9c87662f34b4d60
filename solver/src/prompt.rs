//! Everything that is said to the model, in one place.
//!
//! Owns the wording only, one for each protocol. It is written for small models too: short, explicit, with a worked
//! example where the model wasn't trained on the form. The problem's text goes in unchanged; what it may not do (spell
//! control tokens) is the model adapter's business. Called by `rollout` and `attempt`.

use crate::answer::AnswerRange;
use crate::model::Message;
use crate::options::SolverOptions;
use crate::protocol::{BadCall, Protocol, TOOL};

/// The conversation that an attempt begins with, in the words that fit how the model calls Python.
pub fn opening(problem: &str, options: &SolverOptions) -> Vec<Message> {
    let problem = problem.trim();
    match options.protocol {
        Protocol::Nemotron | Protocol::FirstBlock if options.no_python => {
            vec![Message::new("user", format!("{problem}\n\n{}", without_tool(options)))]
        }
        _ if options.no_python => vec![Message::new("system", without_tool(options)), Message::new("user", problem)],
        Protocol::Fenced => vec![Message::new("system", fenced(options)), Message::new("user", problem)],
        Protocol::OutputFence => vec![Message::new("system", output_fence(options)), Message::new("user", problem)],
        Protocol::Harmony => vec![Message::new("system", with_tool(options)), Message::new("user", problem)],
        Protocol::Hermes => {
            let system = format!("{}\n\n{HERMES_EXAMPLE}", with_tool(options));
            vec![Message::new("system", system), Message::new("user", problem)]
        }
        // These models were trained without a system message.
        Protocol::Nemotron => vec![Message::new("user", format!("{}\n\n{problem}", nemotron(options)))],
        Protocol::FirstBlock => vec![Message::new("user", format!("{problem}\n\n{}", first_block(options)))],
    }
}

/// What the Python tool is, for protocols that list tools.
pub fn python_tool(options: &SolverOptions) -> String {
    format!(
        "Runs a Python program and gives back what it prints; a bare expression in the last line is printed too. {} A \
         call may run for {} seconds. There is no network and no file system.",
        libraries(options, "call"),
        seconds(options),
    )
}

/// How tools are called, for models whose template doesn't say it. `schema` is the tool's JSON schema.
pub fn tool_listing(schema: &str) -> String {
    format!(
        "# Tools

There is one tool, described by this schema:
<tools>
{schema}
</tools>

To call it, write its name and arguments as JSON between tags:
<tool_call>
{{\"name\": \"python\", \"arguments\": {{\"code\": \"print(1 + 1)\"}}}}
</tool_call>"
    )
}

fn seconds(options: &SolverOptions) -> u64 {
    options.python.time_ms.div_ceil(1000)
}

fn libraries(options: &SolverOptions, unit: &str) -> String {
    format!("You have {}; names stay defined from {unit} to {unit}.", options.libraries)
}

/// The most frequent ways to lose a solved problem.
const CHECK: &str = "Check what exactly is asked. If the problem asks for a remainder or says \"modulo\", apply it.";

fn fenced(options: &SolverOptions) -> String {
    let range = options.answer_range;
    let (min, max) = (range.min(), range.max());
    let (seconds, libraries) = (seconds(options), &options.libraries);
    format!(
        "You solve maths problems by running Python. The answer is one integer from {min} to {max}.

Begin your reply with a ```python block: a short program that computes the answer and prints it. Do not derive the \
answer by hand first. The program is run for you, and an ```output block with its result follows; never write the \
output yourself. You have {libraries}; names stay defined from block to block; a \
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

fn output_fence(options: &SolverOptions) -> String {
    let range = options.answer_range;
    format!(
        "Solve the problem step by step, in words and with Python programs. The answer is one integer from {} to {}.

Write each program as a ```python block that prints what it finds, and open an ```output block after it: the program \
is run there and you see its result. {} A program may run for {} seconds.

{CHECK} Put the final integer in \\boxed{{}}.",
        range.min(),
        range.max(),
        libraries(options, "block"),
        seconds(options),
    )
}

fn with_tool(options: &SolverOptions) -> String {
    let range = options.answer_range;
    format!(
        "You solve maths problems. The answer is one integer from {} to {}.

Work with the tool {TOOL}: compute what can be computed, try small cases, and check your reasoning with a program \
before you answer. Never guess what a program would print. If a result is an error or can't be right, correct the \
program and call again. You have at most {} calls.

{CHECK} When you are sure, finish with one line: The answer is \\boxed{{integer}}",
        range.min(),
        range.max(),
        options.max_turns,
    )
}

fn without_tool(options: &SolverOptions) -> String {
    let range = options.answer_range;
    format!(
        "Solve the maths problem step by step. The answer is one integer from {} to {}. {CHECK} When you are sure, finish \
with one line: The answer is \\boxed{{integer}}",
        range.min(),
        range.max(),
    )
}

/// Small models know the form better from an example than from its description in the template.
const HERMES_EXAMPLE: &str = r#"Example
User: How many integers from 1 to 100 are multiples of 7?
Assistant:
<tool_call>
{"name": "python", "arguments": {"code": "print(sum(1 for n in range(1, 101) if n % 7 == 0))"}}
</tool_call>
Tool: 14
Assistant: The answer is \boxed{14}"#;

fn nemotron(options: &SolverOptions) -> String {
    let range = options.answer_range;
    format!(
        "Solve this maths problem by reasoning and by running Python, at most {} times. Python between <tool_call> and \
</tool_call> is run, and an ```output block with its result follows. {} A program may run for {} seconds. {CHECK} The \
answer is one integer from {} to {}; put it, and nothing else, in \\boxed{{}}.",
        options.max_turns,
        libraries(options, "call"),
        seconds(options),
        range.min(),
        range.max(),
    )
}

fn first_block(options: &SolverOptions) -> String {
    let range = options.answer_range;
    format!(
        "Reason step by step. {CHECK} The answer is one integer from {} to {}; put it in \\boxed{{}}. Where a computation \
settles it better than reasoning, write a ```python block after your thinking instead: it is run for you, for at most \
{} seconds, and an ```output block with its result follows. {}",
        range.min(),
        range.max(),
        seconds(options),
        libraries(options, "block"),
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
    if max_turns == 0 {
        return "[not run: there is no Python here. Give the final integer in \\boxed{} now.]".to_string();
    }
    format!("[not run: all {max_turns} blocks are used up. Give the final integer in \\boxed{{}} now.]")
}

/// Output of a call that can't be carried out.
pub fn bad_call(problem: &BadCall) -> String {
    format!("[not run: {problem}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_states_range_tool_libraries_and_modulus() {
        for protocol in Protocol::ALL {
            let answer_range = "5..777".parse().unwrap();
            let libraries = "sympy and numpy".to_string();
            let options = SolverOptions { protocol, answer_range, libraries, ..SolverOptions::default() };
            let messages = opening(" Find x. \n", &options);
            let mut text: String = messages.iter().map(|m| m.content.as_str()).collect();
            let how = match protocol {
                Protocol::Hermes | Protocol::Harmony => {
                    text += &python_tool(&options);
                    "the tool python"
                }
                Protocol::Nemotron => "<tool_call>",
                _ => "```python",
            };
            for needed in ["from 5 to 777", how, "sympy and numpy", "6 seconds", "modulo", "\\boxed{", "Find x."] {
                assert!(text.contains(needed), "{protocol}: {needed} is missing from {text}");
            }
            assert!(!text.contains("Find x. \n"), "{protocol}");
        }
    }

    #[test]
    fn without_python_nothing_is_said_of_it() {
        for protocol in Protocol::ALL {
            let options = SolverOptions { protocol, no_python: true, ..SolverOptions::default() };
            let text: String = opening("Find x.", &options).iter().map(|m| format!("{}\n", m.content)).collect();
            for needed in ["from 0 to 99999", "modulo", "\\boxed{", "Find x."] {
                assert!(text.contains(needed), "{protocol}: {needed} is missing from {text}");
            }
            for left_out in ["ython", "```", "tool", "block"] {
                assert!(!text.contains(left_out), "{protocol}: {left_out} in {text}");
            }
        }
    }

    #[test]
    fn a_nudge_names_the_range_and_what_was_wrong() {
        let range = AnswerRange::default();
        assert_eq!(nudge(range, None), "Now give the final answer, one integer from 0 to 99999, in \\boxed{}.");
        assert!(nudge(range, Some("-4 is outside 0..99999")).starts_with("-4 is outside 0..99999. The answer is"));
    }
}
