//! One line of a journal: `CHECKSUM NUMBER JSON`, a CRC-32 over what follows it, the record's number from 0, and the
//! record itself without line breaks.
//!
//! Reading tells two kinds of damage apart. An end without a line break is a write that a crash cut short: it is
//! dropped. A line that has its end but not its checksum, or a number that is missing, is damage to what was once safe:
//! it is refused by position. Every line has a bound on its length. Called by `writer` and `history`.

use std::io::{self, BufRead};

/// Longest line that is read or written, its line break included.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// A line for a record; `json` must not hold a line break.
pub fn encode(number: u64, json: &str) -> Vec<u8> {
    debug_assert!(!json.contains('\n'), "JSON without line breaks");
    let body = format!("{number} {json}");
    format!("{:08x} {body}\n", crc32fast::hash(body.as_bytes())).into_bytes()
}

/// Why a line is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Longer than any record is.
    #[error("it is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// Not of the form of a record.
    #[error("it doesn't begin with a checksum and a number")]
    Shape,
    /// The contents aren't what was written.
    #[error("its checksum is {found:08x} where it should be {expected:08x}")]
    Checksum {
        /// In the line.
        found: u32,
        /// Of the line.
        expected: u32,
    },
}

/// Damage to a journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A whole line that is no record.
    #[error("record {number} (byte {offset}) is damaged: {reason}")]
    Damaged {
        /// Number that it should have.
        number: u64,
        /// Where the line begins.
        offset: u64,
        /// What is wrong.
        reason: BadLine,
    },
    /// A whole record, but not the next one.
    #[error("record {expected} is missing (byte {offset}): record {found} stands in its place")]
    Missing {
        /// Number that comes next.
        expected: u64,
        /// Number that is there.
        found: u64,
        /// Where the line begins.
        offset: u64,
    },
}

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Scan {
    /// Records that were given to the caller.
    pub n_records: u64,
    /// Bytes that they take: what follows was cut short and is to be dropped.
    pub good_bytes: u64,
    /// Bytes behind them.
    pub torn_bytes: u64,
    /// Damage to what was once whole; the records before it were given.
    pub damage: Option<ReadError>,
}

/// Reads records one after the other and gives each one's JSON to `take`, until the end, damage, or `take` refuses.
pub fn scan<E>(reader: &mut impl BufRead, mut take: impl FnMut(u64, &str) -> Result<(), E>) -> io::Result<Scan>
where
    E: Into<io::Error>,
{
    let mut scan = Scan::default();
    let mut offset = 0;
    let mut line = Vec::new();
    loop {
        let n_bytes = read_line(reader, &mut line)?;
        offset += n_bytes;
        // An end without a line break, or the end itself.
        if line.last() != Some(&b'\n') {
            break;
        }
        let at = scan.good_bytes;
        match parse(&line) {
            Ok((number, json)) if number == scan.n_records => {
                take(number, json).map_err(Into::into)?;
                scan.n_records += 1;
                scan.good_bytes = offset;
            }
            Ok((found, _)) => {
                scan.damage = Some(ReadError::Missing { expected: scan.n_records, found, offset: at });
                break;
            }
            Err(reason) => {
                scan.damage = Some(ReadError::Damaged { number: scan.n_records, offset: at, reason });
                break;
            }
        }
    }
    scan.torn_bytes = offset - scan.good_bytes;
    Ok(scan)
}

/// Reads up to and including the next line break; keeps no more than the bound and the line break. Gives the bytes
/// read.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut n_bytes = 0;
    loop {
        let chunk = match reader.fill_buf() {
            Ok(chunk) => chunk,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let end = chunk.iter().position(|&b| b == b'\n');
        let taken = end.map_or(chunk.len(), |i| i + 1);
        let kept = taken.min((MAX_LINE_BYTES + 1).saturating_sub(line.len()));
        line.extend_from_slice(&chunk[..kept]);
        if end.is_some() && kept < taken {
            line.push(b'\n');
        }
        reader.consume(taken);
        n_bytes += taken as u64;
        if end.is_some() || taken == 0 {
            return Ok(n_bytes);
        }
    }
}

fn parse(line: &[u8]) -> Result<(u64, &str), BadLine> {
    if line.len() > MAX_LINE_BYTES {
        return Err(BadLine::TooLong);
    }
    let text = std::str::from_utf8(line.strip_suffix(b"\n").unwrap_or(line)).map_err(|_| BadLine::Shape)?;
    let (checksum, body) = text.split_at_checked(8).ok_or(BadLine::Shape)?;
    let body = body.strip_prefix(' ').ok_or(BadLine::Shape)?;
    let is_written_so = checksum.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    let found = u32::from_str_radix(checksum, 16).ok().filter(|_| is_written_so).ok_or(BadLine::Shape)?;
    let (number, json) = body.split_once(' ').ok_or(BadLine::Shape)?;
    let expected = crc32fast::hash(body.as_bytes());
    if found != expected {
        return Err(BadLine::Checksum { found, expected });
    }
    Ok((number.parse().map_err(|_| BadLine::Shape)?, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(n: u64) -> Vec<u8> {
        (0..n).flat_map(|i| encode(i, &format!("{{\"text\":\"größer {i}\"}}"))).collect()
    }

    fn read(bytes: &[u8]) -> (Vec<String>, Scan) {
        let mut records = Vec::new();
        let scan = scan(&mut io::BufReader::with_capacity(7, bytes), |number, json| {
            assert_eq!(number as usize, records.len());
            records.push(json.to_string());
            Ok::<(), io::Error>(())
        });
        (records, scan.unwrap())
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let bytes = journal(12);
        let (records, scan) = read(&bytes);
        assert_eq!(records.len(), 12);
        assert_eq!(records[3], "{\"text\":\"größer 3\"}");
        assert_eq!((scan.n_records, scan.good_bytes, scan.torn_bytes), (12, bytes.len() as u64, 0));
        assert!(scan.damage.is_none());
        assert_eq!(read(b"").1.n_records, 0);
    }

    #[test]
    fn a_journal_cut_at_any_byte_gives_its_whole_records() {
        let bytes = journal(5);
        let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for cut in 0..bytes.len() {
            let (records, scan) = read(&bytes[..cut]);
            let whole = ends.iter().filter(|&&end| end <= cut).count();
            assert_eq!(records.len(), whole, "cut at {cut}");
            assert!(scan.damage.is_none(), "cut at {cut}: {:?}", scan.damage);
            assert_eq!(scan.good_bytes + scan.torn_bytes, cut as u64);
            // The same with zeros in place of what was lost, as a file system may leave it.
            let zeros = [&bytes[..cut], &vec![0; bytes.len() - cut]].concat();
            assert_eq!(read(&zeros).0.len(), whole, "zeros from {cut}");
        }
    }

    #[test]
    fn any_flipped_bit_is_named() {
        let bytes = journal(4);
        let mut starts = vec![0];
        starts.extend(bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let (records, scan) = read(&flipped);
                let record = starts.iter().rposition(|&start| start <= at).unwrap();
                assert_eq!(records.len(), record, "records before byte {at}, bit {bit}");
                // The very last byte is the line break: without it the record looks like one that was being written.
                if at + 1 < bytes.len() {
                    let damage = scan.damage.unwrap_or_else(|| panic!("byte {at}, bit {bit} passes")).to_string();
                    assert!(damage.contains(&format!("record {record} ")), "byte {at}, bit {bit}: {damage}");
                } else {
                    assert!(scan.damage.is_none() && scan.torn_bytes > 0, "byte {at}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_missing_or_repeated_line_is_named() {
        let bytes = journal(4);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
        let (records, scan) = read(&[lines[0], lines[2], lines[3]].concat());
        assert_eq!(records.len(), 1);
        assert!(matches!(scan.damage, Some(ReadError::Missing { expected: 1, found: 2, .. })), "{scan:?}");
        let (_, scan) = read(&[lines[0], lines[1], lines[1]].concat());
        assert!(matches!(scan.damage, Some(ReadError::Missing { expected: 2, found: 1, .. })), "{scan:?}");
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_memory_than_the_bound() {
        let n_bytes = 2 * MAX_LINE_BYTES as u64;
        let endless = || io::Read::take(io::repeat(b'x'), n_bytes);
        let read = |reader: &mut dyn BufRead| scan(&mut { reader }, |_, _| Ok::<(), io::Error>(())).unwrap();
        let torn = read(&mut io::BufReader::new(endless()));
        assert_eq!((torn.n_records, torn.torn_bytes), (0, n_bytes));
        let ended = read(&mut io::BufReader::new(io::Read::chain(endless(), &b"\n"[..])));
        assert!(matches!(ended.damage, Some(ReadError::Damaged { reason: BadLine::TooLong, .. })), "{ended:?}");
    }
}
