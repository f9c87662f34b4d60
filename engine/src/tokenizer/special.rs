//! Finds tokens that are spelled out in text: control tokens where the text may hold them, user-defined ones always.
//!
//! At one place the longest wins, as the tokenizers of the model's authors do it. (llama.cpp takes the longest in the
//! whole text first, which differs only where two such tokens overlap.)

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;
use super::vocab::{TokenKind, Vocab};

/// The two searches.
pub(super) struct Specials {
    user_defined: Search,
    all: Search,
}

impl Specials {
    pub(super) fn new(vocab: &Vocab) -> Result<Specials, TokenizerError> {
        Ok(Specials {
            user_defined: Search::new(vocab, |kind| kind == TokenKind::UserDefined)?,
            all: Search::new(vocab, |kind| {
                matches!(kind, TokenKind::UserDefined | TokenKind::Control | TokenKind::Unknown)
            })?,
        })
    }

    /// Places of special tokens in the text, in order and apart.
    pub(super) fn find<'s>(&'s self, text: &'s str, control: bool) -> impl Iterator<Item = (Range<usize>, u32)> + 's {
        let search = if control { &self.all } else { &self.user_defined };
        search.automaton.find_iter(text).map(|found| (found.range(), search.ids[found.pattern().as_usize()]))
    }
}

struct Search {
    automaton: AhoCorasick,
    /// Token of each pattern.
    ids: Vec<u32>,
}

impl Search {
    fn new(vocab: &Vocab, wanted: impl Fn(TokenKind) -> bool) -> Result<Search, TokenizerError> {
        let tokens: Vec<(u32, &[u8])> = vocab
            .iter()
            .filter(|(_, kind, text)| wanted(*kind) && !text.is_empty())
            .map(|(id, _, text)| (id, text))
            .collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, text)| text))
            .map_err(|e| TokenizerError::Specials { problem: e.to_string() })?;
        Ok(Search { automaton, ids: tokens.into_iter().map(|(id, _)| id).collect() })
    }
}
