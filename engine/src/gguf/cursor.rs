//! A reader over the header's bytes that never goes past their end and never allocates more than they can fill.
//! Used by `header` only. Errors name the thing that was being read and the offset.

use super::error::GgufError;
use super::header::MAX_HEADER_BYTES;

/// Position in the bytes of a file's header. `what` arguments name the thing being read, for messages.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    /// Where the header must have ended: the end of the file or [`MAX_HEADER_BYTES`].
    end: usize,
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, end: bytes.len().min(MAX_HEADER_BYTES as usize), pos: 0 }
    }

    pub(super) fn offset(&self) -> u64 {
        self.pos as u64
    }

    /// Bytes that are left for the header.
    pub(super) fn remaining(&self) -> u64 {
        (self.end - self.pos) as u64
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64, what: &dyn Fn() -> String) -> Result<&'a [u8], GgufError> {
        if n <= self.remaining() {
            let slice = &self.bytes[self.pos..self.pos + n as usize];
            self.pos += n as usize;
            return Ok(slice);
        }
        let have = (self.bytes.len() - self.pos) as u64;
        if n <= have {
            return Err(GgufError::HeaderTooLarge { what: what(), limit_bytes: MAX_HEADER_BYTES });
        }
        Err(GgufError::Truncated { what: what(), offset: self.offset(), need: n, have })
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N], GgufError> {
        let slice = self.take(N as u64, what)?;
        Ok(slice.try_into().expect("take gives as many bytes as asked for"))
    }

    pub(super) fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `min_bytes` each, at most `limit` and no more than the file can hold.
    pub(super) fn count(&mut self, limit: u64, min_bytes: u64, what: &dyn Fn() -> String) -> Result<u64, GgufError> {
        let offset = self.offset();
        let n = self.u64(what)?;
        if n > limit {
            return Err(GgufError::Limit { what: what(), offset, found: n, limit });
        }
        if n * min_bytes > self.remaining() {
            let have = self.remaining();
            return Err(GgufError::Truncated { what: what(), offset: self.offset(), need: n * min_bytes, have });
        }
        Ok(n)
    }

    /// A string: its length as u64, then that many bytes of UTF-8.
    pub(super) fn string(&mut self, limit: u64, what: &dyn Fn() -> String) -> Result<&'a str, GgufError> {
        let offset = self.offset();
        let n = self.u64(&|| format!("the length of {}", what()))?;
        if n > limit {
            return Err(GgufError::Limit { what: format!("the length of {}", what()), offset, found: n, limit });
        }
        let bytes = self.take(n, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::Text { what: what(), offset, problem: "is not UTF-8" })
    }

    /// A string that names something: not empty, no control characters.
    pub(super) fn name(&mut self, limit: u64, what: &dyn Fn() -> String) -> Result<&'a str, GgufError> {
        let offset = self.offset();
        let name = self.string(limit, what)?;
        let problem = if name.is_empty() {
            "is empty"
        } else if name.chars().any(char::is_control) {
            "holds a NUL or another control character"
        } else {
            return Ok(name);
        };
        Err(GgufError::Text { what: what(), offset, problem })
    }
}
