//! The rollout with the real sandbox: state between blocks, echo, errors, limits, seeds.

use std::sync::Arc;

use solver::rollout::Solver;
use solver::testing::{Script, ScriptedModel};
use solver::{CancelToken, Problem, SolverOptions, StopRule};

#[test]
fn blocks_run_in_the_sandbox_and_each_attempt_has_its_own_names() {
    let python = Arc::new(sandbox::Python::load(&mut |_| {}).expect("the sandbox loads"));
    let block = |code: &str| format!("```python\n{code}\n```\n");
    let answer = "So \\boxed{1234}".to_string();
    let turns = |blocks: &[&str]| {
        let turns: Vec<String> = blocks.iter().map(|b| block(b)).chain([answer.clone()]).collect();
        Script::new(&turns.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut model = ScriptedModel::new([
        turns(&["x = 1230", "from sympy import isprime\nprint(isprime(7))\nx + 4"]),
        turns(&["print(x)"]),
        turns(&["while True: pass"]),
        turns(&["import random\nprint(random.random())"]),
        turns(&["import random\nprint(random.random())"]),
    ]);
    let mut options = SolverOptions { attempts: 5, stop: StopRule::All, ..SolverOptions::default() };
    options.python.time_ms = 1000;
    let problem = Problem { id: "p".to_string(), text: "?".to_string(), answer: None };
    let mut solver = Solver { model: &mut model, python, options: &options, cancel: CancelToken::default() };
    let solved = solver.solve(&problem, None, &mut |_| {});
    assert_eq!(solved.votes.rows[0].votes, 5, "every attempt goes on to its answer");
    let said = |n: usize| model.text(n).split_once("<|assistant|>\n").expect("a turn").1.to_string();
    assert!(said(0).contains("```output\nTrue\n1234\n```"), "{}", said(0));
    assert!(said(1).contains("NameError"), "{}", said(1));
    assert!(said(2).contains("Use a faster method"), "{}", said(2));
    assert_ne!(said(3), said(4), "each attempt has its own random numbers");
    assert_eq!(solved.attempts.iter().map(|a| a.tool_errors).collect::<Vec<_>>(), [0, 1, 1, 0, 0]);
}
