//! Perplexity of a model on a text, by llama-perplexity's conventions, so that its values can be compared: the text's
//! tokens are cut into chunks of the context's length; the first half of a chunk is context, and of the second half each
//! token but the first is predicted by those before it. With a BOS in use, it replaces each chunk's first token.
//!
//! Chunks are independent sequences; as many as fill a pass are computed side by side. Refused: texts of fewer than two
//! chunks. Called by the command `perplexity` and by tests.

use rayon::prelude::*;

use crate::backend::BatchToken;
use crate::engine::Engine;
use crate::error::{Error, RequestError};

/// Shortest chunk: one token of context, one that predicts and one that is predicted.
pub const MIN_CHUNK: usize = 4;

/// What is known after some chunks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// exp of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Standard error of `perplexity`, from the spread of the tokens' likelihoods.
    pub error: f64,
    /// Mean negative log-likelihood, in nats.
    pub nll: f64,
    /// Tokens that were predicted.
    pub n_tokens: usize,
}

/// A text's perplexity in the making.
pub struct Perplexity<'e> {
    engine: &'e mut Engine,
    tokens: Vec<u32>,
    chunk: usize,
    n_chunks: usize,
    next: usize,
    sum: f64,
    sum_of_squares: f64,
    count: usize,
}

impl<'e> Perplexity<'e> {
    /// Prepares the perplexity of `tokens` (encoded with BOS where the model asks for it) in chunks of `chunk` tokens, at
    /// most `max_chunks` of them.
    ///
    /// # Errors
    /// The chunk is shorter than [`MIN_CHUNK`] or longer than the engine's context; there are fewer than two chunks.
    pub fn new(
        engine: &'e mut Engine,
        tokens: Vec<u32>,
        chunk: usize,
        max_chunks: Option<usize>,
    ) -> Result<Self, RequestError> {
        if chunk < MIN_CHUNK {
            return Err(RequestError::ChunkTooShort { found: chunk, least: MIN_CHUNK });
        }
        if chunk > engine.n_ctx() {
            return Err(RequestError::ContextExceeded { found: chunk, n_ctx: engine.n_ctx() });
        }
        if tokens.len() < 2 * chunk {
            return Err(RequestError::TextTooShort { found: tokens.len(), least: 2 * chunk, chunk });
        }
        let n_chunks = (tokens.len() / chunk).min(max_chunks.unwrap_or(usize::MAX));
        Ok(Perplexity { engine, tokens, chunk, n_chunks, next: 0, sum: 0.0, sum_of_squares: 0.0, count: 0 })
    }

    /// Chunks in all.
    pub fn n_chunks(&self) -> usize {
        self.n_chunks
    }

    /// Chunks that are done.
    pub fn n_done(&self) -> usize {
        self.next
    }

    /// Computes the next chunks, as many as the engine has sequences, and gives the estimate after each; empty at the
    /// end.
    ///
    /// # Errors
    /// The device failed, or the model gives logits that are not finite.
    pub fn step(&mut self) -> Result<Vec<Estimate>, Error> {
        let chunks = self.next..self.n_chunks.min(self.next + self.engine.n_seq());
        let mut estimates = Vec::with_capacity(chunks.len());
        for nlls in self.compute(chunks.clone())? {
            for nll in nlls {
                self.sum += nll;
                self.sum_of_squares += nll * nll;
                self.count += 1;
            }
            estimates.push(self.estimate());
        }
        self.next = chunks.end;
        Ok(estimates)
    }

    /// The estimate over all chunks so far; NaN before the first.
    pub fn estimate(&self) -> Estimate {
        let n = self.count as f64;
        let nll = self.sum / n;
        let variance = (self.sum_of_squares / n - nll * nll).max(0.0);
        let perplexity = nll.exp();
        Estimate { perplexity, error: perplexity * (variance / (n - 1.0)).sqrt(), nll, n_tokens: self.count }
    }

    /// Negative log-likelihoods of the predicted tokens of each chunk.
    fn compute(&mut self, chunks: std::ops::Range<usize>) -> Result<Vec<Vec<f64>>, Error> {
        let first = self.chunk / 2;
        let mut nlls = vec![Vec::with_capacity(self.chunk - first - 1); chunks.len()];
        if chunks.is_empty() {
            return Ok(nlls);
        }
        (0..chunks.len()).for_each(|seq| self.engine.kv_mut().truncate(seq, 0));
        // The last token of a chunk predicts nothing and isn't computed.
        let mut start = 0;
        while start < self.chunk - 1 {
            let is_context = start < first;
            let n_rows = if is_context { self.engine.n_batch() } else { self.engine.n_outputs() };
            let stop = if is_context { first } else { self.chunk - 1 };
            let end = stop.min(start + (n_rows / chunks.len()).max(1));
            // A pass takes all sequences side by side, or one after the other where it has no room for all.
            for group in (0..chunks.len()).collect::<Vec<_>>().chunks(n_rows.max(1)) {
                self.pass(&chunks, group, start..end, !is_context, &mut nlls)?;
            }
            start = end;
        }
        Ok(nlls)
    }

    fn pass(
        &mut self,
        chunks: &std::ops::Range<usize>,
        sequences: &[usize],
        positions: std::ops::Range<usize>,
        output: bool,
        nlls: &mut [Vec<f64>],
    ) -> Result<(), Error> {
        let tokenizer = self.engine.tokenizer();
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let token = |seq: usize, pos: usize| self.tokens[(chunks.start + seq) * self.chunk + pos];
        let mut batch = Vec::with_capacity(sequences.len() * positions.len());
        let mut targets = Vec::with_capacity(batch.capacity());
        for &seq in sequences {
            for pos in positions.clone() {
                let id = bos.filter(|_| pos == 0).unwrap_or_else(|| token(seq, pos));
                batch.push(BatchToken { token: id, seq: seq as u32, pos: pos as u32, output });
                targets.push((seq, pos, token(seq, pos + 1)));
            }
        }
        let n_vocab = self.engine.config().n_vocab;
        let logits = self.engine.forward(&batch)?;
        if !output {
            return Ok(());
        }
        let rows = logits.par_chunks_exact(n_vocab).zip(&targets);
        let computed: Vec<f64> = rows.map(|(row, (_, _, target))| negative_log_likelihood(row, *target)).collect();
        for ((seq, pos, _), nll) in targets.into_iter().zip(computed) {
            if !nll.is_finite() {
                return Err(RequestError::NotFinite { position: pos }.into());
            }
            nlls[seq].push(nll);
        }
        Ok(())
    }
}

/// `-ln softmax(logits)[target]`, summed in f64; not finite where a logit isn't.
fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    sum.ln() + f64::from(max) - f64::from(logits[target as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_of_known_logits() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} and {b}");
        close(negative_log_likelihood(&[0.0; 8], 3), 8f64.ln());
        close(negative_log_likelihood(&[1000.0, 0.0], 1), 1000.0);
        close(negative_log_likelihood(&[1.0, 2.0, 3.0], 2), (1.0 + (-1f64).exp() + (-2f64).exp()).ln());
        assert!(!negative_log_likelihood(&[0.0, f32::NAN], 0).is_finite());
        assert!(!negative_log_likelihood(&[0.0, f32::INFINITY], 0).is_finite());
    }
}
