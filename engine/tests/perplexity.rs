//! Perplexity against its definition, with the logits of a plain f64 forward pass.

mod support;

use engine::gguf::GgmlType;
use engine::perplexity::Perplexity;
use engine::{BackendChoice, Engine, EngineOptions, RequestError};
use support::{TinyModel, TinySpec, tokens};

const CHUNK: usize = 12;

fn load(model: &TinyModel, n_seq: usize, n_batch: usize, n_outputs: usize) -> Engine {
    let options = EngineOptions {
        backend: BackendChoice::Cpu,
        n_ctx: CHUNK,
        n_seq,
        n_batch,
        n_outputs,
        exact: true,
        ..EngineOptions::default()
    };
    Engine::load(&model.path, &options, &mut |_, _| {}).expect("a loaded model")
}

#[test]
fn values_are_those_of_the_definition() {
    let model = TinyModel::new(TinySpec::new("qwen3", &[GgmlType::F32]));
    // Three whole chunks and a rest that isn't used.
    let text = tokens(3 * CHUNK + 5, model.n_vocab, 4);
    let mut nlls = Vec::new();
    for chunk in text.chunks_exact(CHUNK) {
        for pos in CHUNK / 2..CHUNK - 1 {
            let logits = model.reference_logits(&chunk[..=pos]);
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            nlls.push(sum.ln() - logits[chunk[pos + 1] as usize]);
        }
    }
    let n = nlls.len() as f64;
    let mean = nlls.iter().sum::<f64>() / n;
    let variance = nlls.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let (perplexity, error) = (mean.exp(), mean.exp() * (variance / (n - 1.0)).sqrt());
    // One chunk after the other, all side by side, in passes of single tokens, with few rows of logits.
    for (n_seq, n_batch, n_outputs) in [(1, CHUNK, CHUNK), (3, 64, 64), (2, 1, 1), (3, 2, 1), (3, 64, 4)] {
        let mut engine = load(&model, n_seq, n_batch, n_outputs);
        let mut job = Perplexity::new(&mut engine, text.clone(), CHUNK, None).unwrap();
        assert_eq!(job.n_chunks(), 3);
        let mut n_estimates = 0;
        while job.n_done() < job.n_chunks() {
            n_estimates += job.step().unwrap().len();
        }
        assert!(n_estimates == 3 && job.step().unwrap().is_empty());
        let found = job.estimate();
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 2e-3;
        assert!(near(found.perplexity, perplexity) && near(found.error, error), "{found:?}: {perplexity} ± {error}");
        assert_eq!(found.n_tokens, nlls.len());
    }
}

#[test]
fn texts_and_chunks_that_are_too_short() {
    let model = TinyModel::new(TinySpec::new("qwen3", &[GgmlType::F32]));
    let mut engine = load(&model, 1, 8, 8);
    let mut refused = |n: usize, chunk: usize| {
        Perplexity::new(&mut engine, tokens(n, model.n_vocab, 1), chunk, None).map(|_| ()).unwrap_err()
    };
    assert_eq!(refused(23, 12), RequestError::TextTooShort { found: 23, least: 24, chunk: 12 });
    assert_eq!(refused(0, 12), RequestError::TextTooShort { found: 0, least: 24, chunk: 12 });
    assert_eq!(refused(100, 3), RequestError::ChunkTooShort { found: 3, least: 4 });
    assert_eq!(refused(100, 13), RequestError::ContextExceeded { found: 13, n_ctx: 12 });
}
