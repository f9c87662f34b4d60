//! One problem on a scripted model: every way that an attempt can go and every way that a problem can end.

use std::sync::Arc;
use std::time::Duration;

use sandbox::{Outcome, Status};
use solver::attempt::{Attempt, AttemptEnd, Step};
use solver::clock::FakeClock;
use solver::confidence::PruneOptions;
use solver::rollout::{Deadline, ProblemStop, Solved, Solver};
use solver::testing::{FakePython, Script, ScriptedModel};
use solver::{CancelToken, Problem, Protocol, SolveEvent, SolverOptions, StopRule};

const CALL: &str = "I count.\n```python\nprint(391)\n```\n";
const ANSWER: &str = "The answer is $\\boxed{391}$. And more text that nobody needs.";

fn problem() -> Problem {
    Problem { id: "p".to_string(), text: "What is $17 \\cdot 23$? \\boxed{1}".to_string(), answer: Some(391) }
}

fn options(attempts: usize) -> SolverOptions {
    SolverOptions { attempts, ..SolverOptions::default() }
}

/// Python that prints the argument of the first `print(`, fails on `bad` and knows some limits by name.
fn python() -> Arc<FakePython> {
    Arc::new(FakePython::new(|code, _| match code.trim() {
        "bad" => exception(),
        "slow" => FakePython::outcome(Status::TimedOut { limit_ms: 6000 }, "[stopped after 6 s]"),
        "big" => FakePython::outcome(Status::OutOfMemory { limit_bytes: 1 << 30 }, "[out of memory]"),
        "box" => FakePython::ok("\\boxed{5}"),
        "quiet" => FakePython::ok(""),
        "long" => FakePython::ok(&format!("HEAD{}TAIL", "x".repeat(100_000))),
        other => {
            let argument = other.split("print(").nth(1).and_then(|r| r.split(')').next()).unwrap_or("");
            FakePython::ok(&format!("{argument}\n"))
        }
    }))
}

fn exception() -> Outcome {
    let status = Status::Exception { kind: "NameError".to_string(), message: "name 'bad' is not defined".to_string() };
    FakePython::outcome(status, "Traceback (most recent call last):\nNameError: name 'bad' is not defined\n")
}

fn solve_with(model: &mut ScriptedModel, python: Arc<FakePython>, options: &SolverOptions) -> Solved {
    let mut solver = Solver { model, python, options, cancel: CancelToken::default() };
    let solved = solver.solve(&problem(), None, &mut |_| {});
    assert_eq!(model.n_live(), 0, "every sequence is released");
    solved
}

/// One attempt with this script.
fn attempt(script: Script, options: &SolverOptions) -> (Attempt, String) {
    let mut model = ScriptedModel::new([script]);
    let mut solved = solve_with(&mut model, python(), &SolverOptions { attempts: 1, ..options.clone() });
    (solved.attempts.remove(0), model.text(0).to_string())
}

fn answer_of(turns: &[&str]) -> (Option<AttemptEnd>, Attempt, String) {
    let (attempt, text) = attempt(Script::new(turns), &options(1));
    (attempt.end.clone(), attempt, text)
}

fn answered(answer: i64) -> Option<AttemptEnd> {
    Some(AttemptEnd::Answer { answer })
}

#[test]
fn an_answer_without_code_ends_the_attempt_at_its_last_brace() {
    let (end, attempt, text) = answer_of(&[ANSWER]);
    assert_eq!(end, answered(391));
    assert!(!text.contains("nobody"), "generation went on: {text}");
    assert_eq!(attempt.tool_calls, 0);
    assert!((attempt.mean_logprob() + 0.5).abs() < 1e-9);
}

#[test]
fn code_runs_and_its_output_goes_into_the_same_turn() {
    let (end, attempt, text) = answer_of(&[CALL, ANSWER]);
    assert_eq!(end, answered(391));
    assert_eq!((attempt.tool_calls, attempt.tool_errors), (1, 0));
    let assistant = text.rsplit("<|assistant|>\n").next().unwrap();
    assert!(assistant.starts_with("I count.\n```python\nprint(391)\n```"), "{assistant}");
    assert!(assistant.contains("\n```output\n391\n```\nThe answer is"), "{assistant}");
    assert!(!assistant.contains("```\n\n\n"), "{assistant}");
}

#[test]
fn a_model_never_gets_to_write_the_output_itself() {
    let (end, _, text) = answer_of(&["```python\nprint(391)\n```\n```output\n999\n```\n\\boxed{999}", ANSWER]);
    assert_eq!(end, answered(391));
    let (_, assistant) = text.split_once("<|assistant|>\n").unwrap();
    assert!(!assistant.contains("999"), "{assistant}");
}

#[test]
fn answers_are_not_taken_from_the_prompt_code_output_or_thoughts() {
    let script = [
        "```python\nbox\n```",
        "<think>maybe \\boxed{3}</think> so\n```python\nprint(\"\\\\boxed{4}\")\n```",
        "no idea",
        "none",
    ];
    let (end, attempt, text) = answer_of(&script);
    assert_eq!(end, Some(AttemptEnd::NoAnswer), "{text}");
    assert_eq!(attempt.tool_calls, 2);
    assert!(attempt.rejected.is_empty(), "{:?}", attempt.rejected);
}

#[test]
fn failing_code_shows_its_traceback_and_can_be_corrected() {
    let (end, attempt, text) = answer_of(&["```python\nbad\n```", CALL, ANSWER]);
    assert_eq!(end, answered(391));
    assert_eq!((attempt.tool_calls, attempt.tool_errors), (2, 1));
    assert!(text.contains("```output\nTraceback"), "{text}");
    assert!(text.contains("NameError: name 'bad' is not defined\n```\n"), "{text}");
}

#[test]
fn limits_in_python_are_told_to_the_model() {
    let (end, attempt, text) = answer_of(&["```python\nslow\n```", "```python\nbig\n```", ANSWER]);
    assert_eq!(end, answered(391));
    assert_eq!((attempt.tool_calls, attempt.tool_errors), (2, 2));
    assert!(text.contains("[stopped after 6 s]\nUse a faster method"), "{text}");
    assert!(text.contains("[out of memory]\nUse a method that needs less memory"), "{text}");
}

#[test]
fn long_output_is_cut_in_the_middle_and_none_is_said() {
    let (_, attempt, text) = answer_of(&["```python\nlong\n```", "```python\nquiet\n```", ANSWER]);
    let (_, text) = text.split_once("<|assistant|>\n").unwrap();
    let shown = text.split("```output\n").nth(1).unwrap().split("\n```").next().unwrap();
    assert!(shown.starts_with("HEADx") && shown.ends_with("xTAIL"), "{shown}");
    assert!(shown.contains("[... 97960 characters left out ...]") && shown.len() < 2200, "{}", shown.len());
    assert!(text.contains("```output\n(no output: print the result)\n```"), "{text}");
    let full = attempt.steps.iter().find_map(|s| if let Step::Call { outcome, .. } = s { Some(outcome) } else { None });
    assert_eq!(full.unwrap().output.len(), 100_008, "the record keeps all of it");
}

#[test]
fn a_turn_without_answer_or_code_is_asked_once() {
    let (end, attempt, text) = answer_of(&["I think it is 391.", ANSWER]);
    assert_eq!(end, answered(391));
    let asked = "<|end|>\n<|user|>\nNow give the final answer, one integer from 0 to 99999, in \\boxed{}.<|end|>\n<|assistant|>\n";
    assert!(text.contains(&format!("I think it is 391.{asked}The answer")), "{text}");
    assert!(attempt.steps.iter().any(|s| matches!(s, Step::User(_))));
    let (end, _, text) = answer_of(&["Hm.", "Hm again.", ANSWER]);
    assert_eq!(end, Some(AttemptEnd::NoAnswer));
    assert_eq!(text.matches("Now give the final answer").count(), 1);
}

#[test]
fn boxes_that_do_not_count_are_kept_and_named_in_the_question() {
    let (end, attempt, text) = answer_of(&["\\boxed{} \\boxed{x+1} so \\boxed{100000}", ANSWER]);
    assert_eq!(end, answered(391));
    assert_eq!(
        attempt.rejected,
        [
            "\"\" isn't an integer: it is empty",
            "\"x+1\" isn't an integer: it has letters in it",
            "100000 is outside 0..99999"
        ]
    );
    assert!(text.contains("<|user|>\n100000 is outside 0..99999. The answer is an integer from 0 to 99999."), "{text}");
    let narrow = SolverOptions { answer_range: "0..300".parse().unwrap(), ..options(1) };
    let (attempt, _) = attempt_with(&[ANSWER, ANSWER], &narrow);
    assert_eq!(attempt.end, Some(AttemptEnd::NoAnswer));
}

fn attempt_with(turns: &[&str], options: &SolverOptions) -> (Attempt, String) {
    attempt(Script::new(turns), options)
}

#[test]
fn a_block_that_the_turn_ends_in_still_runs() {
    let (end, attempt, text) = answer_of(&["Code:\n```python\nprint(391)", ANSWER]);
    assert_eq!(end, answered(391));
    assert_eq!(attempt.tool_calls, 1);
    assert!(
        text.contains("print(391)<|end|>\n<|user|>\n```output\n391\n```\n<|end|>\n<|assistant|>\nThe answer"),
        "{text}"
    );
}

#[test]
fn the_token_budget_ends_an_attempt() {
    let options = SolverOptions { max_tokens: Some(40), ..options(1) };
    let (attempt, _) = attempt(Script::new(&["word "]).endless(), &options);
    assert_eq!(attempt.end, Some(AttemptEnd::TokenBudget));
    assert_eq!(attempt.generated_tokens, 40);
    // Too few tokens left for an answer: code isn't run, nothing is asked.
    let tight = SolverOptions { max_tokens: Some(20), ..options };
    let (attempt, _) = attempt_with(&[CALL, ANSWER], &tight);
    assert_eq!((attempt.end, attempt.tool_calls), (Some(AttemptEnd::TokenBudget), 0));
    let (attempt, _) = attempt_with(&["A turn that has no answer in it.", ANSWER], &tight);
    assert_eq!(attempt.end, Some(AttemptEnd::NoAnswer));
}

#[test]
fn the_turn_budget_is_said_once_and_then_ends_the_attempt() {
    let options = SolverOptions { max_turns: 2, ..options(1) };
    let (attempt, text) = attempt_with(&[CALL, CALL, CALL, ANSWER], &options);
    assert_eq!((attempt.end, attempt.tool_calls), (answered(391), 2));
    assert!(text.contains("```output\n[not run: all 2 blocks are used up."), "{text}");
    let (attempt, _) = attempt_with(&[CALL, CALL, CALL, CALL, ANSWER], &options);
    assert_eq!((attempt.end, attempt.tool_calls), (Some(AttemptEnd::TurnBudget), 2));
    let none = SolverOptions { max_turns: 0, ..options };
    let (attempt, _) = attempt_with(&[CALL, ANSWER], &none);
    assert_eq!((attempt.end, attempt.tool_calls), (answered(391), 0));
}

#[test]
fn a_full_context_ends_an_attempt_but_an_answer_in_its_last_token_counts() {
    let prompt_chars = answer_of(&[ANSWER]).2.find("The answer is $\\boxed{391").unwrap();
    let with_room = |room: usize, turns: &[&str]| {
        let mut model = ScriptedModel::new([Script::new(turns)]).with_n_ctx(prompt_chars + room).with_split(1, 0);
        solve_with(&mut model, python(), &options(1)).attempts.remove(0).end
    };
    assert_eq!(with_room(30, &["word word word word word word word word"]), Some(AttemptEnd::ContextFull));
    assert_eq!(with_room(11, &["\\boxed{391}"]), answered(391));
    assert_eq!(with_room(10, &["\\boxed{391}"]), Some(AttemptEnd::ContextFull));
    assert_eq!(with_room(50, &[CALL, ANSWER]), Some(AttemptEnd::ContextFull), "no room for output and answer");
}

#[test]
fn a_model_that_fails_ends_the_problem_with_what_is_known() {
    let mut model =
        ScriptedModel::new([Script::new(&["\\boxed{5}"]), Script::new(&["word "]).endless()]).failing_at_step(30);
    let solved = solve_with(&mut model, python(), &SolverOptions { stop: StopRule::All, ..options(2) });
    assert_eq!(solved.stop, ProblemStop::Fault);
    assert_eq!(solved.fault.unwrap().to_string(), "the device was lost");
    assert_eq!(solved.votes.winner(), Some(5));
    assert_eq!(solved.attempts[1].end, Some(AttemptEnd::Error { message: "the device was lost".to_string() }));
}

#[test]
fn an_attempt_that_cannot_start_does_not_stop_the_others() {
    let mut model = ScriptedModel::new([Script::new(&[ANSWER])]);
    let solved = solve_with(&mut model, python(), &options(2));
    assert_eq!(solved.votes.winner(), Some(391));
    assert!(matches!(&solved.attempts[1].end, Some(AttemptEnd::Error { message }) if message.contains("used up")));
    assert_eq!(solved.stop, ProblemStop::AllEnded);
}

#[test]
fn python_that_cannot_start_is_shown_like_any_failure() {
    let mut model = ScriptedModel::new([Script::new(&[CALL, ANSWER])]);
    let solved = solve_with(&mut model, Arc::new(FakePython::broken("no interpreter")), &options(1));
    assert_eq!(solved.votes.winner(), Some(391));
    assert_eq!(solved.attempts[0].tool_errors, 1);
    assert!(model.text(0).contains("```output\n[Python failed: no interpreter]\n```"));
}

#[test]
fn attempts_run_in_one_batch_each_with_its_own_seed_and_session() {
    let scripts = (0..4).map(|_| Script::new(&["```python\nx\n```", "\\boxed{7}"]));
    let mut model = ScriptedModel::new(scripts);
    let python = Arc::new(FakePython::counting());
    let solved = solve_with(&mut model, python.clone(), &SolverOptions { stop: StopRule::All, ..options(4) });
    assert_eq!(solved.votes.rows[0].votes, 4);
    assert_eq!(model.largest_batch(), 4);
    assert_eq!(python.n_sessions(), 4, "each its own");
    for (n, attempt) in solved.attempts.iter().enumerate() {
        assert_eq!(model.sampling(n).seed, attempt.seed);
        assert!(model.text(n).contains(&format!("call 1 of seed {}", attempt.seed)));
        assert_eq!(attempt.seed, solver::options::attempt_seed(0, "p", n + 1));
    }
}

#[test]
fn an_attempt_in_python_leaves_the_batch_and_the_others_go_on() {
    // The block ends only when the other attempt has written its answer.
    let (answered_tx, answered_rx) = std::sync::mpsc::channel::<()>();
    let answered_rx = std::sync::Mutex::new(answered_rx);
    let python = Arc::new(FakePython::new(move |_, _| {
        answered_rx.lock().unwrap().recv_timeout(Duration::from_secs(30)).expect("the other attempt goes on");
        FakePython::ok("391")
    }));
    let scripts = [Script::new(&[CALL, ANSWER]), Script::new(&["Slowly I come to \\boxed{391}"]).delayed(200)];
    let mut model = ScriptedModel::new(scripts);
    let options = SolverOptions { stop: StopRule::All, ..options(2) };
    let mut solver = Solver { model: &mut model, python, options: &options, cancel: CancelToken::default() };
    let solved = solver.solve(&problem(), None, &mut |event| {
        if matches!(event, SolveEvent::AttemptFinished { attempt } if attempt.number == 2) {
            answered_tx.send(()).unwrap();
        }
    });
    assert_eq!(solved.votes.rows[0].attempts, [1, 2]);
}

#[test]
fn more_attempts_than_sequences_take_turns() {
    let mut model = ScriptedModel::new((0..5).map(|_| Script::new(&[CALL, ANSWER]))).with_n_seq(2);
    let solved = solve_with(&mut model, python(), &SolverOptions { stop: StopRule::All, ..options(5) });
    assert_eq!(solved.votes.rows[0].attempts, [1, 2, 3, 4, 5]);
    assert_eq!(model.largest_batch(), 2);
}

#[test]
fn an_unbeatable_leader_cancels_the_rest() {
    let scripts = || {
        let mut scripts = vec![Script::new(&["\\boxed{5}"]), Script::new(&["\\boxed{6}"])];
        scripts.extend((0..3).map(|i| Script::new(&["\\boxed{7}"]).delayed(20 + i)));
        scripts.push(Script::new(&["word "]).endless());
        scripts
    };
    let mut model = ScriptedModel::new(scripts());
    let solved = solve_with(&mut model, python(), &options(6));
    assert_eq!((solved.stop, solved.votes.winner()), (ProblemStop::Unbeatable, Some(7)));
    assert_eq!(solved.attempts[5].end, Some(AttemptEnd::Cancelled));
    // With one more attempt that runs, the second could still draw level.
    let mut more = scripts();
    more.insert(5, Script::new(&["\\boxed{6}"]).delayed(100));
    let mut model = ScriptedModel::new(more);
    let solved = solve_with(&mut model, python(), &SolverOptions { max_tokens: Some(1000), ..options(7) });
    assert_eq!(solved.votes.rows.iter().map(|r| r.votes).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(solved.stop, ProblemStop::AllEnded);
    assert_eq!(solved.attempts[6].end, Some(AttemptEnd::TokenBudget));
}

#[test]
fn both_stop_rules_choose_the_same_answer() {
    for code in 0..3usize.pow(5) {
        let answers: Vec<usize> = (0..5).map(|i| code / 3usize.pow(i) % 3).collect();
        let scripts = || {
            answers.iter().enumerate().map(|(i, a)| {
                let box_ = format!("\\boxed{{{a}}}");
                Script::new(&[&box_]).delayed((code * (i + 3)) % 7).confidence(2.0 * (i as f32 + 1.0))
            })
        };
        let winner = |stop| {
            let mut model = ScriptedModel::new(scripts());
            solve_with(&mut model, python(), &SolverOptions { stop, ..options(5) }).votes.winner()
        };
        assert_eq!(winner(StopRule::Unbeatable), winner(StopRule::All), "{answers:?}");
    }
}

#[test]
fn ties_go_to_the_more_confident_answer() {
    let scripts = [
        Script::new(&["\\boxed{5}"]).confidence(3.0),
        Script::new(&["\\boxed{6}"]).confidence(9.0),
        Script::new(&["\\boxed{6}"]).confidence(8.0),
        Script::new(&["\\boxed{5}"]).confidence(12.0),
    ];
    let solved = solve_with(&mut ScriptedModel::new(scripts), python(), &options(4));
    assert_eq!(solved.votes.winner(), Some(6));
    assert_eq!(solved.votes.rows.len(), 2);
}

#[test]
fn time_and_interrupts_end_a_problem_with_the_votes_so_far() {
    let scripts = || [Script::new(&["\\boxed{5}"]), Script::new(&["word "]).endless()];
    let options = SolverOptions { max_tokens: None, ..options(2) };
    let mut model = ScriptedModel::new(scripts());
    let cancel = CancelToken::default();
    let mut solver = Solver { model: &mut model, python: python(), options: &options, cancel: cancel.clone() };
    let solved = solver.solve(&problem(), None, &mut |event| {
        if matches!(event, SolveEvent::AttemptFinished { attempt } if attempt.number == 1) {
            cancel.cancel();
        }
    });
    assert_eq!((solved.stop, solved.votes.winner()), (ProblemStop::Cancelled, Some(5)));
    assert_eq!(solved.attempts[1].end, Some(AttemptEnd::Cancelled));
    let clock = FakeClock::default();
    let mut model = ScriptedModel::new(scripts()).with_clock(clock.clone(), Duration::from_millis(1));
    let mut solver = Solver { model: &mut model, python: python(), options: &options, cancel: CancelToken::default() };
    let deadline = Deadline { clock: &clock, at: Duration::from_millis(100) };
    let solved = solver.solve(&problem(), Some(deadline), &mut |_| {});
    assert_eq!(solved.attempts[1].generated_tokens, 100, "not a step longer");
    assert_eq!((solved.stop, solved.votes.winner()), (ProblemStop::TimeUp, Some(5)));
    assert_eq!(solved.attempts[1].end, Some(AttemptEnd::TimeUp));
    assert_eq!(model.n_live(), 0);
}

#[test]
fn an_interrupt_does_not_wait_for_python() {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    let never = std::sync::Mutex::new(never);
    let python = Arc::new(FakePython::new(move |_, _| {
        never.lock().unwrap().recv().ok();
        FakePython::ok("")
    }));
    let mut model = ScriptedModel::new([Script::new(&[CALL, ANSWER])]);
    let (options, cancel) = (options(1), CancelToken::default());
    let mut solver = Solver { model: &mut model, python, options: &options, cancel: cancel.clone() };
    let solved = solver.solve(&problem(), None, &mut |event| {
        if matches!(event, SolveEvent::ToolStarted { .. }) {
            cancel.cancel();
        }
    });
    assert_eq!(solved.stop, ProblemStop::Cancelled);
}

#[test]
fn however_the_text_is_cut_into_tokens_the_attempt_is_the_same() {
    let turns = [
        "<think>\\boxed{1}</think>So:\n```py\ns = '```'\nprint(391)\n```",
        "It is 391.",
        "```python\nbad\n```",
        ANSWER,
    ];
    let expected = answer_of(&turns).1;
    for seed in 0..200 {
        let mut model = ScriptedModel::new([Script::new(&turns)]).with_split(1 + seed as usize % 12, seed);
        let solved = solve_with(&mut model, python(), &options(1));
        let attempt = &solved.attempts[0];
        assert_eq!(attempt.end, expected.end);
        assert_eq!((attempt.tool_calls, attempt.tool_errors), (2, 1));
        let codes = |a: &Attempt| {
            let code = |s: &Step| if let Step::Call { code, .. } = s { Some(code.clone()) } else { None };
            a.steps.iter().filter_map(code).collect::<Vec<_>>()
        };
        assert_eq!(codes(attempt), codes(&expected));
    }
}

#[test]
fn first_k_cancels_the_rest_as_soon_as_k_agree() {
    let mut scripts = vec![Script::new(&["\\boxed{6}"]), Script::new(&["\\boxed{7}"]), Script::new(&["\\boxed{7}"])];
    scripts.extend((0..3).map(|_| Script::new(&["word "]).endless()));
    let mut model = ScriptedModel::new(scripts);
    let solved = solve_with(&mut model, python(), &SolverOptions { stop: StopRule::FirstK(2), ..options(6) });
    assert_eq!((solved.stop, solved.votes.winner()), (ProblemStop::Agreed, Some(7)));
    assert!(solved.attempts[3..].iter().all(|a| a.end == Some(AttemptEnd::Cancelled)));
}

#[test]
fn a_verified_vote_counts_twice() {
    let claimed = || Script::new(&["```python\nprint(391)\n```", "So \\boxed{17}"]);
    let computed = || Script::new(&["```python\nprint(391)\n```", "So \\boxed{391}"]);
    let answers = |verify| {
        let scripts = [claimed(), Script::new(&["\\boxed{17}"]), computed()];
        let options = SolverOptions { verify, stop: StopRule::All, ..options(3) };
        let solved = solve_with(&mut ScriptedModel::new(scripts), python(), &options);
        let verified: Vec<Option<bool>> = solved.attempts.iter().map(|a| a.verified).collect();
        (solved.votes.winner(), solved.votes.rows.iter().map(|r| r.points).collect::<Vec<_>>(), verified)
    };
    assert_eq!(answers(false), (Some(17), vec![2, 1], vec![None, None, None]));
    // Two points each: equal confidence, so the earlier attempt would win; with one claim less it doesn't.
    assert_eq!(answers(true), (Some(17), vec![2, 2], vec![Some(false), None, Some(true)]));
    let options = SolverOptions { verify: true, ..options(2) };
    let solved = solve_with(&mut ScriptedModel::new([claimed(), computed()]), python(), &options);
    assert_eq!(solved.votes.winner(), Some(391));
}

#[test]
fn attempts_that_are_less_sure_than_the_first_ones_are_cut_short() {
    let prune = PruneOptions { warmup: 2, keep_percent: 50.0, window_tokens: 8 };
    let long = "a thought of some length that fills the window; ";
    let sure = |c: f32| Script::new(&[&format!("{long}\\boxed{{7}}")]).confidence(c);
    let doubtful = Script::new(&[long]).endless().confidence(4.0).delayed(60);
    let confident = Script::new(&[&format!("{long}{long}\\boxed{{7}}")]).confidence(9.0).delayed(60);
    let mut model = ScriptedModel::new([sure(10.0), sure(5.0), doubtful, confident]);
    let options = SolverOptions { prune: Some(prune), stop: StopRule::All, ..options(4) };
    let solved = solve_with(&mut model, python(), &options);
    assert_eq!(solved.attempts[2].end, Some(AttemptEnd::Pruned));
    assert!(solved.attempts[2].generated_tokens <= 8 + 1, "{}", solved.attempts[2].generated_tokens);
    assert_eq!(solved.attempts[3].end, Some(AttemptEnd::Pruned), "9 is below the better half's 10");
    let lenient = SolverOptions { prune: Some(PruneOptions { keep_percent: 100.0, ..prune }), ..options };
    let doubtful = Script::new(&[long]).endless().confidence(4.0).delayed(60);
    let confident = Script::new(&[&format!("{long}{long}\\boxed{{7}}")]).confidence(9.0).delayed(60);
    let mut model = ScriptedModel::new([sure(10.0), sure(5.0), doubtful, confident]);
    let solved = solve_with(&mut model, python(), &lenient);
    assert_eq!(solved.attempts[2].end, Some(AttemptEnd::Pruned));
    assert_eq!(solved.votes.rows[0].attempts, [1, 2, 4]);
}

#[test]
fn without_python_blocks_are_text_and_boxes_still_count() {
    for protocol in [Protocol::Fenced, Protocol::Hermes, Protocol::Nemotron] {
        let options = SolverOptions { no_python: true, protocol, ..options(1) };
        let script =
            Script::new(&["<tool_call>\nprint(1)\n</tool_call> I count.\n```python\nprint(391)\n```\nSo \\boxed{391}"]);
        let (attempt, text) = attempt(script, &options);
        assert_eq!((attempt.end, attempt.tool_calls), (answered(391), 0), "{protocol}: {text}");
        let prompt = text.split("<|assistant|>").next().unwrap();
        assert!(!prompt.contains("ython"), "{protocol}: {prompt}");
    }
}
