//! What a session and its worker process say to each other: frames of a length and bytes, little-endian.
//!
//! Decoding trusts nothing: a worker is where untrusted code lives.

use crate::{
    confine::Confinement,
    outcome::{Completeness, Limits, Outcome, Status},
};
use std::io::{self, Read, Write};

/// To a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Start(Limits, u64),
    Run(String),
    IsComplete(String),
    Snapshot,
    /// As Start, but the session goes on from a snapshot.
    Restore(Limits, Vec<u8>),
}

/// From a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Started(Confinement),
    Refused(String),
    Outcome(Outcome),
    Completeness(Completeness),
    /// The session as bytes that only a session understands.
    Snapshot(Vec<u8>),
}

/// Writes a frame.
pub(super) fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(|_| bad("a message of 4 GiB or more"))?;
    // One write, one wake-up of the other side.
    to.write_all(&[&len.to_le_bytes(), bytes].concat())?;
    to.flush()
}

/// Reads a frame of at most `max_bytes`.
pub(super) fn read_frame(from: &mut impl Read, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > max_bytes {
        return Err(bad("a message that is too long"));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[derive(Default)]
struct Encoder(Vec<u8>);

impl Encoder {
    fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn number(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    fn bytes(self, value: &[u8]) -> Self {
        let mut encoder = self.number(value.len() as u64);
        encoder.0.extend_from_slice(value);
        encoder
    }

    fn limits(self, limits: &Limits) -> Self {
        let Limits { time_ms, grace_ms, memory_bytes, output_bytes, n_calls, allow_clock } = *limits;
        let sizes = self.number(time_ms).number(grace_ms).number(memory_bytes).number(output_bytes as u64);
        sizes.number(n_calls).byte(u8::from(allow_clock))
    }
}

struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, n: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or_else(|| bad("a message that ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn flag(&mut self) -> io::Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(bad("a flag that is neither 0 nor 1")),
        }
    }

    fn number(&mut self) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    fn size(&mut self) -> io::Result<usize> {
        usize::try_from(self.number()?).map_err(|_| bad("a size beyond this machine's"))
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let len = self.size()?;
        self.take(len)
    }

    fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| bad("text that is not UTF-8"))
    }

    fn limits(&mut self) -> io::Result<Limits> {
        let (time_ms, grace_ms, memory_bytes) = (self.number()?, self.number()?, self.number()?);
        let (output_bytes, n_calls, allow_clock) = (self.size()?, self.number()?, self.flag()?);
        Ok(Limits { time_ms, grace_ms, memory_bytes, output_bytes, n_calls, allow_clock })
    }

    fn end<T>(self, value: T) -> io::Result<T> {
        if self.0.is_empty() { Ok(value) } else { Err(bad("a message with more than its parts")) }
    }
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let encoder = Encoder::default();
        match self {
            Request::Start(limits, seed) => encoder.byte(0).limits(limits).number(*seed),
            Request::Run(code) => encoder.byte(1).text(code),
            Request::IsComplete(code) => encoder.byte(2).text(code),
            Request::Snapshot => encoder.byte(3),
            Request::Restore(limits, snapshot) => encoder.byte(4).limits(limits).bytes(snapshot),
        }
        .0
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Request> {
        let mut from = Decoder(bytes);
        let request = match from.byte()? {
            0 => Request::Start(from.limits()?, from.number()?),
            1 => Request::Run(from.text()?),
            2 => Request::IsComplete(from.text()?),
            3 => Request::Snapshot,
            4 => Request::Restore(from.limits()?, from.bytes()?.to_vec()),
            _ => return Err(bad("a request of no known kind")),
        };
        from.end(request)
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Vec<u8> {
        let encoder = Encoder::default();
        match self {
            Reply::Started(Confinement { has_limits, has_landlock, has_seccomp }) => {
                encoder.byte(0).byte(u8::from(*has_limits)).byte(u8::from(*has_landlock)).byte(u8::from(*has_seccomp))
            }
            Reply::Refused(reason) => encoder.byte(1).text(reason),
            Reply::Outcome(outcome) => {
                let encoder = match &outcome.status {
                    Status::Ok => encoder.byte(2).byte(0),
                    Status::Exception { kind, message } => encoder.byte(2).byte(1).text(kind).text(message),
                    Status::TimedOut { limit_ms } => encoder.byte(2).byte(2).number(*limit_ms),
                    Status::OutOfMemory { limit_bytes } => encoder.byte(2).byte(3).number(*limit_bytes),
                    Status::Crashed { reason } => encoder.byte(2).byte(4).text(reason),
                    Status::NoCallsLeft { limit } => encoder.byte(2).byte(5).number(*limit),
                    Status::Exited { code } => encoder.byte(2).byte(6).number(*code as u32 as u64),
                };
                encoder
                    .text(&outcome.output)
                    .number(outcome.elapsed_ms)
                    .number(outcome.truncated_bytes as u64)
                    .byte(u8::from(outcome.rolled_back))
            }
            Reply::Completeness(answer) => encoder.byte(3).byte(match answer {
                Completeness::Complete => 0,
                Completeness::Incomplete => 1,
                Completeness::Invalid => 2,
            }),
            Reply::Snapshot(bytes) => encoder.byte(4).bytes(bytes),
        }
        .0
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Reply> {
        let mut from = Decoder(bytes);
        let reply = match from.byte()? {
            0 => Reply::Started(Confinement {
                has_limits: from.flag()?,
                has_landlock: from.flag()?,
                has_seccomp: from.flag()?,
            }),
            1 => Reply::Refused(from.text()?),
            2 => {
                let status = match from.byte()? {
                    0 => Status::Ok,
                    1 => Status::Exception { kind: from.text()?, message: from.text()? },
                    2 => Status::TimedOut { limit_ms: from.number()? },
                    3 => Status::OutOfMemory { limit_bytes: from.number()? },
                    4 => Status::Crashed { reason: from.text()? },
                    5 => Status::NoCallsLeft { limit: from.number()? },
                    6 => Status::Exited { code: from.number()? as u32 as i32 },
                    _ => return Err(bad("an outcome of no known kind")),
                };
                Reply::Outcome(Outcome {
                    status,
                    output: from.text()?,
                    elapsed_ms: from.number()?,
                    truncated_bytes: from.size()?,
                    rolled_back: from.flag()?,
                })
            }
            3 => Reply::Completeness(match from.byte()? {
                0 => Completeness::Complete,
                1 => Completeness::Incomplete,
                2 => Completeness::Invalid,
                _ => return Err(bad("a completeness of no known kind")),
            }),
            4 => Reply::Snapshot(from.bytes()?.to_vec()),
            _ => return Err(bad("a reply of no known kind")),
        };
        from.end(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies() -> Vec<Reply> {
        let outcome = |status| {
            Reply::Outcome(Outcome {
                status,
                output: "é\n".into(),
                elapsed_ms: 7,
                truncated_bytes: 9,
                rolled_back: true,
            })
        };
        vec![
            Reply::Started(Confinement { has_limits: true, has_landlock: false, has_seccomp: true }),
            Reply::Refused("no".into()),
            outcome(Status::Ok),
            outcome(Status::Exception { kind: "E".into(), message: String::new() }),
            outcome(Status::TimedOut { limit_ms: 5 }),
            outcome(Status::OutOfMemory { limit_bytes: 1 << 40 }),
            outcome(Status::Crashed { reason: "r".into() }),
            outcome(Status::NoCallsLeft { limit: u64::MAX }),
            outcome(Status::Exited { code: -3 }),
            Reply::Completeness(Completeness::Incomplete),
            Reply::Snapshot(vec![0, 255, 7]),
        ]
    }

    #[test]
    fn messages_come_back_as_they_were() {
        for reply in replies() {
            assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
        }
        let requests = [
            Request::Start(Limits::default(), 3),
            Request::Start(Limits { allow_clock: true, ..Limits::default() }, 3),
            Request::Run("x = 1".into()),
            Request::IsComplete("".into()),
            Request::Snapshot,
            Request::Restore(Limits::default(), vec![1, 2, 3]),
        ];
        for request in requests {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
    }

    #[test]
    fn damaged_messages_are_errors() {
        for reply in replies() {
            let bytes = reply.encode();
            for len in 0..bytes.len() {
                assert!(Reply::decode(&bytes[..len]).is_err(), "{reply:?} cut to {len}");
            }
            assert!(Reply::decode(&[&bytes[..], &[0]].concat()).is_err(), "{reply:?} and a byte more");
        }
        assert!(Reply::decode(&[9]).is_err());
        let endless = [&[1u8][..], &u64::MAX.to_le_bytes(), b"abc"].concat();
        assert!(Reply::decode(&endless).is_err());
        assert!(read_frame(&mut &[255u8, 255, 255, 255, 0][..], 1000).is_err());
    }
}
