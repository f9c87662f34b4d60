//! Reading ahead: while one tensor is copied to the device, the system is asked for the bytes of the next ones, so that
//! the disk and the processor work at the same time. A backend that only keeps references is done before anything was
//! asked for.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::gguf::{GgufFile, TensorInfo};

/// How far reading may be ahead of copying, in bytes of tensors.
const AHEAD_BYTES: u64 = 1 << 30;
/// Bytes that the system is asked for at a time.
const PIECE_BYTES: u64 = 16 << 20;

/// How many bytes were copied.
#[derive(Default)]
pub(super) struct Copied {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    bytes: u64,
    ended: bool,
}

impl Copied {
    /// `bytes` bytes of tensors in all were copied.
    pub fn set(&self, bytes: u64) {
        self.change(|state| state.bytes = bytes);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until `bytes` is at most [`AHEAD_BYTES`] past what was copied; whether copying still goes on.
    fn comes_near(&self, bytes: u64) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |state: &mut State| !state.ended && bytes > state.bytes + AHEAD_BYTES;
        !self.changed.wait_while(state, wait).unwrap_or_else(PoisonError::into_inner).ended
    }
}

/// Tells the reader that nothing more is copied, also when copying panics.
struct End<'a>(&'a Copied);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.ended = true);
    }
}

/// Runs `copy`, which copies `tensors` in this order and tells how far it is, while they are read ahead of it.
pub(super) fn reading_ahead<R>(file: &GgufFile, tensors: &[&TensorInfo], copy: impl FnOnce(&Copied) -> R) -> R {
    while_asking(tensors, |tensor, range| file.will_need(tensor, range), copy)
}

fn while_asking<R>(
    tensors: &[&TensorInfo],
    will_need: impl FnMut(&TensorInfo, Range<u64>) + Send,
    copy: impl FnOnce(&Copied) -> R,
) -> R {
    let copied = Copied::default();
    std::thread::scope(|scope| {
        let _end = End(&copied);
        let reader = || ask(tensors, &copied, will_need);
        // Without another thread the same bytes are read when they are copied.
        let _ = std::thread::Builder::new().name("read-ahead".into()).spawn_scoped(scope, reader);
        copy(&copied)
    })
}

/// Asks for every piece of `tensors` in order, as soon as copying has come near.
fn ask(tensors: &[&TensorInfo], copied: &Copied, mut will_need: impl FnMut(&TensorInfo, Range<u64>)) {
    let mut before = 0;
    for tensor in tensors {
        for start in (0..tensor.bytes).step_by(PIECE_BYTES as usize) {
            let end = (start + PIECE_BYTES).min(tensor.bytes);
            if !copied.comes_near(before + end) {
                return;
            }
            will_need(tensor, start..end);
        }
        before += tensor.bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::gguf::GgmlType;

    const PIECES_AHEAD: u64 = AHEAD_BYTES / PIECE_BYTES;

    fn tensor(name: &str, pieces: u64) -> TensorInfo {
        let bytes = pieces * PIECE_BYTES;
        TensorInfo { name: name.into(), dims: vec![bytes / 4], ty: GgmlType::F32, shard: 0, offset: 0, bytes }
    }

    fn pieces(name: &str, n: u64) -> Vec<(String, Range<u64>)> {
        (0..n).map(|i| (name.to_owned(), i * PIECE_BYTES..(i + 1) * PIECE_BYTES)).collect()
    }

    /// What is asked for while so many pieces are copied, one step after the other; `last` runs after the last step.
    fn asked(tensors: &[TensorInfo], steps: &[u64], last: impl FnOnce()) -> Vec<(String, Range<u64>)> {
        let seen = Mutex::new(Vec::new());
        let n_seen = || seen.lock().unwrap().len() as u64;
        let all: u64 = tensors.iter().map(|t| t.bytes / PIECE_BYTES).sum();
        let will_need = |t: &TensorInfo, range| seen.lock().unwrap().push((t.name.clone(), range));
        let tensors: Vec<&TensorInfo> = tensors.iter().collect();
        while_asking(&tensors, will_need, |copied| {
            for &step in steps {
                copied.set(step * PIECE_BYTES);
                let most = all.min(step + PIECES_AHEAD);
                // The reader comes as far as it may, and no farther.
                while n_seen() < most {
                    std::thread::yield_now();
                }
                assert_eq!(n_seen(), most, "{step} pieces are copied");
            }
            last();
        });
        seen.into_inner().unwrap()
    }

    #[test]
    fn pieces_are_asked_for_in_order_and_never_far_ahead() {
        let tensors = [tensor("a", PIECES_AHEAD), tensor("b", 3), tensor("c", PIECES_AHEAD)];
        let asked = asked(&tensors, &[0, 1, PIECES_AHEAD, PIECES_AHEAD + 3], || ());
        assert_eq!(asked, [pieces("a", PIECES_AHEAD), pieces("b", 3), pieces("c", PIECES_AHEAD)].concat());
    }

    #[test]
    fn the_reader_stops_where_copying_ends_or_panics() {
        let tensors = [tensor("a", PIECES_AHEAD), tensor("b", PIECES_AHEAD)];
        assert_eq!(asked(&tensors, &[0], || ()), pieces("a", PIECES_AHEAD));
        // It would wait for ever, and with it this test.
        let panicked = catch_unwind(AssertUnwindSafe(|| asked(&tensors, &[0], || panic!("copying failed"))));
        assert!(panicked.is_err());
    }
}
