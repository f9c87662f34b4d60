//! What a call prints, bounded: the head and the tail are kept, the middle is counted.
//!
//! Called by the WASI host for every write of the guest. A gigabyte of output costs no more memory than the limit.

use std::collections::VecDeque;

/// Collects bytes; holds at most `limit_bytes` of them.
#[derive(Debug)]
pub(crate) struct Output {
    head: Vec<u8>,
    head_limit_bytes: usize,
    tail: VecDeque<u8>,
    tail_limit_bytes: usize,
    dropped_bytes: usize,
}

impl Output {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let tail_limit_bytes = limit_bytes / 2;
        let head_limit_bytes = limit_bytes - tail_limit_bytes;
        Output { head: Vec::new(), head_limit_bytes, tail: VecDeque::new(), tail_limit_bytes, dropped_bytes: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let n_head = bytes.len().min(self.head_limit_bytes - self.head.len());
        let (head, rest) = bytes.split_at(n_head);
        self.head.extend_from_slice(head);
        let n_passed = rest.len().saturating_sub(self.tail_limit_bytes);
        let n_pushed_out = (self.tail.len() + rest.len() - n_passed).saturating_sub(self.tail_limit_bytes);
        self.tail.drain(..n_pushed_out);
        self.tail.extend(&rest[n_passed..]);
        self.dropped_bytes += n_passed + n_pushed_out;
    }

    /// The text and the number of bytes dropped. A code point that the cut went through is dropped whole.
    pub(crate) fn finish(mut self) -> (String, usize) {
        if self.dropped_bytes == 0 {
            self.head.extend(&self.tail);
            return (String::from_utf8_lossy(&self.head).into_owned(), 0);
        }
        let n_head = self.head.len() - partial_suffix(&self.head);
        let tail: Vec<u8> = self.tail.into();
        let n_partial = tail.iter().take_while(|byte| is_continuation(**byte)).count().min(3);
        let dropped_bytes = self.dropped_bytes + (self.head.len() - n_head) + n_partial;
        let head = String::from_utf8_lossy(&self.head[..n_head]);
        let tail = String::from_utf8_lossy(&tail[n_partial..]);
        let gap = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
        (format!("{head}{gap}[... {dropped_bytes} bytes of output dropped ...]\n{tail}"), dropped_bytes)
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// Length of an unfinished UTF-8 sequence at the end of `bytes`.
fn partial_suffix(bytes: &[u8]) -> usize {
    let n_continuation = bytes.iter().rev().take(3).take_while(|byte| is_continuation(**byte)).count();
    let Some(lead_idx) = bytes.len().checked_sub(n_continuation + 1) else { return 0 };
    let n_expected = match bytes[lead_idx] {
        0b1100_0000..=0b1101_1111 => 2,
        0b1110_0000..=0b1110_1111 => 3,
        0b1111_0000..=0b1111_0111 => 4,
        _ => 1,
    };
    if n_continuation + 1 < n_expected { n_continuation + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(limit_bytes: usize, pieces: &[&str]) -> (String, usize) {
        let mut output = Output::new(limit_bytes);
        pieces.iter().for_each(|piece| output.push(piece.as_bytes()));
        output.finish()
    }

    #[test]
    fn short_output_is_whole() {
        assert_eq!(collect(10, &["abc", "defg", "hij"]), ("abcdefghij".into(), 0));
        assert_eq!(collect(0, &[]), (String::new(), 0));
    }

    #[test]
    fn long_output_keeps_head_and_tail() {
        let (text, dropped) = collect(10, &["0123456789", "abcdefghij"]);
        assert_eq!((text.as_str(), dropped), ("01234\n[... 10 bytes of output dropped ...]\nfghij", 10));
        let (text, dropped) = collect(4, &["ab", "c", "defghij"]);
        assert_eq!((text.as_str(), dropped), ("ab\n[... 6 bytes of output dropped ...]\nij", 6));
    }

    #[test]
    fn pieces_do_not_matter() {
        let text: String = (0..1000).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
        let whole = collect(64, &[&text]);
        for size in [1, 7, 31, 33, 64, 65, 999] {
            let pieces: Vec<&str> = text.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).unwrap()).collect();
            assert_eq!(collect(64, &pieces), whole, "pieces of {size}");
        }
    }

    #[test]
    fn a_cut_never_splits_a_code_point() {
        for limit in 0..40 {
            let (text, dropped) = collect(limit, &["é€😀", "é€😀é€😀", "é€😀"]);
            assert!(!text.contains('\u{fffd}'), "limit {limit}: {text}");
            let shown: usize = text.chars().filter(|c| "é€😀".contains(*c)).map(char::len_utf8).sum();
            assert_eq!(shown, 36 - dropped, "limit {limit}: {text}");
        }
    }
}
