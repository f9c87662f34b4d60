//! The alphabet of byte-level BPE: each byte is written as one printable character, so that tokens can be kept as text.
//!
//! The 188 bytes that are printable in Latin-1 stand for themselves; the other 68 become U+0100 and on, in their order
//! (a space is `Ġ`, a newline `Ċ`). Source: GPT-2's encoder (Radford et al., 2019). Used by `vocab` and the encoder.

/// The text with each byte written as its character.
pub(super) fn to_alphabet(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| CHARS[*byte as usize]).collect()
}

/// The bytes that a text in the alphabet stands for; `None` when it holds any other character.
pub(super) fn from_alphabet(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

/// Bytes that occur in UTF-8.
pub(super) fn in_utf8() -> impl Iterator<Item = u8> {
    (0..=0xf4u8).filter(|byte| !matches!(byte, 0xc0 | 0xc1))
}

const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character of each byte.
const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut n_moved = 0;
    let mut byte = 0;
    while byte < 256 {
        chars[byte] = if is_printable(byte as u8) {
            byte as u8 as char
        } else {
            n_moved += 1;
            match char::from_u32(0xff + n_moved) {
                Some(c) => c,
                None => panic!("U+0100 to U+0143 are characters"),
            }
        };
        byte += 1;
    }
    chars
};

/// The bytes that are moved to U+0100 and on.
const MOVED: [u8; 68] = {
    let mut moved = [0; 68];
    let mut n_moved = 0;
    let mut byte = 0;
    while byte < 256 {
        if !is_printable(byte as u8) {
            moved[n_moved] = byte as u8;
            n_moved += 1;
        }
        byte += 1;
    }
    moved
};

fn byte_of(c: char) -> Option<u8> {
    match u8::try_from(c) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => MOVED.get((c as usize).checked_sub(0x100)?).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let all: Vec<u8> = (0..=255).collect();
        let text = to_alphabet(&all);
        assert_eq!(text.chars().collect::<std::collections::HashSet<_>>().len(), 256);
        assert!(text.chars().all(|c| !c.is_whitespace() && !c.is_control()));
        assert_eq!(from_alphabet(&text), Some(all));
        assert_eq!(to_alphabet(b" \n\ta\xff\x00"), "ĠĊĉaÿĀ");
        assert_eq!((from_alphabet("a b"), from_alphabet("\u{144}"), from_alphabet("日")), (None, None, None));
        assert_eq!(in_utf8().count(), 243);
    }
}
