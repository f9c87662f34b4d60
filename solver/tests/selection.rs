//! The model chooses between answers that differ: what the judges are shown, how their names are counted, and what
//! happens when they can't.

use std::sync::Arc;

use solver::attempt::AttemptEnd;
use solver::rollout::{ProblemStop, Solved, Solver};
use solver::selection::Select;
use solver::testing::{FakePython, Script, ScriptedModel};
use solver::{CancelToken, Problem, SolverOptions, StopRule};

const N_ATTEMPTS: usize = 3;

fn options(select_votes: usize) -> SolverOptions {
    SolverOptions {
        attempts: N_ATTEMPTS,
        stop: StopRule::All,
        select: Select::GenSelect,
        select_votes,
        ..SolverOptions::default()
    }
}

fn solve(model: &mut ScriptedModel, options: &SolverOptions) -> Solved {
    let python = Arc::new(FakePython::new(|_, _| FakePython::ok("7\n")));
    let mut solver = Solver { model, python, options, cancel: CancelToken::default() };
    let problem = Problem { id: "p".to_string(), text: "What is it?".to_string(), answer: Some(5) };
    let solved = solver.solve(&problem, None, &mut |_| {});
    assert_eq!(model.n_live(), 0, "every sequence is released");
    solved
}

/// Attempts that answer 5, 7 and 7, then these judges.
fn model(judges: &[&str]) -> ScriptedModel {
    let attempts = [
        Script::new(&["It is five.\n\\boxed{5}"]),
        Script::new(&["```python\nprint(7)\n```", "<think>secret</think>Seven: \\boxed{7}"]).confidence(12.0),
        Script::new(&["Guess: \\boxed{7}"]),
    ];
    ScriptedModel::new(attempts.into_iter().chain(judges.iter().map(|j| Script::new(&[j]))))
}

fn chosen(judges: &[&str]) -> (i64, Vec<Option<i64>>) {
    let solved = solve(&mut model(judges), &options(judges.len()));
    let selection = solved.selection.expect("there was something to choose");
    assert_eq!(selection.candidates, [7, 5], "in the vote's order");
    assert_eq!(solved.votes.winner(), Some(7), "the vote is kept");
    (selection.answer, selection.judgements.iter().map(|j| j.answer).collect())
}

#[test]
fn most_judges_decide_and_the_vote_breaks_ties() {
    assert_eq!(chosen(&["The second: \\boxed{2}", "\\boxed{1}", "\\boxed{ 2 }"]), (5, vec![Some(5), Some(7), Some(5)]));
    assert_eq!(chosen(&["\\boxed{2}", "\\boxed{1}"]), (7, vec![Some(5), Some(7)]));
    assert_eq!(chosen(&["I can't tell.", "\\boxed{3} or \\boxed{x}"]), (7, vec![None, None]));
    assert_eq!(chosen(&["<think>\\boxed{1}</think>no: \\boxed{9}, \\boxed{2}"]), (5, vec![Some(5)]));
}

#[test]
fn judges_see_the_problem_and_the_end_of_the_surest_attempt() {
    let mut model = model(&["\\boxed{1} and much more that nobody needs"]);
    solve(&mut model, &options(1));
    let text = model.text(N_ATTEMPTS);
    for part in [
        "What is it?",
        "Solution 1, with the answer 7\n```python\nprint(7)\n```\n```output\n7\n```\nSeven: \\boxed{7}",
        "Solution 2, with the answer 5\nIt is five.",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("secret") && !text.contains("Guess") && !text.contains("nobody"), "{text}");
    let seeds: Vec<u64> = (0..=N_ATTEMPTS).map(|n| model.sampling(n).seed).collect();
    assert!((0..N_ATTEMPTS).all(|n| seeds[n] != seeds[N_ATTEMPTS]), "{seeds:?}");
}

#[test]
fn nobody_is_asked_where_all_agree_or_the_vote_is_to_decide() {
    let same = || (0..3).map(|_| Script::new(&["\\boxed{7}"]));
    let mut agreed = ScriptedModel::new(same());
    assert_eq!(solve(&mut agreed, &options(4)).selection, None);
    assert_eq!(agreed.n_started(), N_ATTEMPTS);
    let mut by_vote = model(&[]);
    assert_eq!(solve(&mut by_vote, &SolverOptions { select: Select::Vote, ..options(4) }).selection, None);
}

#[test]
fn more_judges_than_places_take_turns() {
    let judges = ["\\boxed{2}"; 5];
    let mut model = model(&judges).with_n_seq(2);
    let solved = solve(&mut model, &options(5));
    assert_eq!(solved.selection.unwrap().judgements.len(), 5);
    assert_eq!(model.n_started(), N_ATTEMPTS + 5);
}

#[test]
fn the_vote_stands_where_the_judges_cannot_be_asked() {
    // Each attempt fits by itself; the question with both solutions doesn't.
    let long = "It is so. ".repeat(150);
    let attempts = [5, 7, 7].map(|answer| Script::new(&[&format!("{long}\\boxed{{{answer}}}")]));
    let solved = solve(&mut ScriptedModel::new(attempts).with_n_ctx(3400), &options(1));
    assert!(solved.attempts.iter().all(|a| a.end.as_ref().is_some_and(|e| matches!(e, AttemptEnd::Answer { .. }))));
    assert_eq!(solved.selection.map(|s| (s.answer, s.judgements[0].answer)), Some((7, None)));
    let all_voted = |n: &usize| {
        let solved = solve(&mut model(&["\\boxed{2}"]).failing_at_step(*n), &options(1));
        solved.attempts.iter().all(|a| a.answer().is_some())
    };
    let n_steps = (1..1000).find(all_voted).expect("the attempts end");
    let failing = solve(&mut model(&["\\boxed{2}"]).failing_at_step(n_steps), &options(1));
    assert_eq!((failing.stop, failing.selection, failing.votes.winner()), (ProblemStop::Fault, None, Some(7)));
    assert!(failing.fault.is_some());
}
