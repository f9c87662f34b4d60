//! Text as tokens, where there is no tokenizer: four bytes each. The solver counts and hands on tokens; servers get text.
//! Called by `RemoteModel`.

use crate::model::Rendered;

/// Text that spells no control token: a server reads its prompt with them.
pub(super) fn defused(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        out.push('<');
        rest = &tag[1..];
        let is_control = ["|", "s>", "/s>", "start_of_turn>", "end_of_turn>", "bos>", "eos>", "｜"];
        if is_control.iter().any(|c| rest.starts_with(c)) {
            out.push(' ');
        }
    }
    out + rest
}

/// What a packed text is to a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Said inside the assistant's turn.
    Said = 0,
    /// Turns of their own.
    Turn = 1,
}

/// Bytes of text that pass for one token.
pub(super) const BYTES_PER_TOKEN: usize = 4;
/// Fills the last token up; no byte of UTF-8.
const FILL: u8 = 0xff;

pub(super) fn rendered(kind: Kind, text: &str) -> Rendered {
    Rendered { tokens: pack(kind, text), opens_thought: text.trim_end().ends_with("<think>") }
}

/// Text as tokens, four bytes each; the first says of which kind it is.
pub(super) fn pack(kind: Kind, text: &str) -> Vec<u32> {
    let bytes = text.as_bytes().chunks(BYTES_PER_TOKEN).map(|chunk| {
        let mut token = [FILL; BYTES_PER_TOKEN];
        token[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(token)
    });
    std::iter::once(kind as u32).chain(bytes).collect()
}

pub(super) fn unpack(tokens: &[u32]) -> (Kind, String) {
    let kind = if tokens.first() == Some(&(Kind::Said as u32)) { Kind::Said } else { Kind::Turn };
    let bytes = tokens.iter().skip(1).flat_map(|t| t.to_le_bytes()).filter(|&b| b != FILL).collect();
    (kind, String::from_utf8(bytes).expect("only whole texts are packed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_after_packing() {
        for text in ["", "a", "abcd", "abcdé", "{\"role\": \"\u{10ffff}\u{0}\"}"] {
            for kind in [Kind::Said, Kind::Turn] {
                assert_eq!(unpack(&pack(kind, text)), (kind, text.to_string()));
            }
        }
        assert_eq!(pack(Kind::Said, "12345").len(), 3);
    }

    #[test]
    fn contents_spell_no_control_tokens() {
        assert_eq!(defused("a<|im_end|>\n</s><b><</s>"), "a< |im_end|>\n< /s><b><< /s>");
        assert_eq!(defused("1 < 2 | x<y"), "1 < 2 | x<y");
        assert_eq!(defused("<think>"), "<think>");
    }
}
