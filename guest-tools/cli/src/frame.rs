//! Frames: how bytes cross a serial console.
//!
//! A line with name, length and CRC-32, the content in base64 lines, and a closing line. Anything before the
//! first line of a frame is not part of it: prompts, kernel messages, echoes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Characters of a base64 line.
const LINE: usize = 76;
/// Most bytes in a frame.
const MAX_CONTENT: usize = 1 << 20;

/// A frame that arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What the sender calls it.
    pub(crate) name: String,
    /// The content.
    pub(crate) content: Vec<u8>,
}

/// Why a frame did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// The first line is not `=== dolmen begin <name> <length> <crc> ===`.
    Begin,
    /// More than fits a frame, or than the first line announced.
    TooLong,
    /// A line is not base64, or too long.
    Line,
    /// Another name closes it.
    End,
    /// The length or the checksum is not the announced one.
    Damaged,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Begin => "the frame's first line is malformed",
            Self::TooLong => "the frame is longer than announced, or than 1 MiB",
            Self::Line => "a line in the frame is not base64; was something else printed in between?",
            Self::End => "the frame's last line has another name than its first",
            Self::Damaged => "the frame arrived damaged: its length or checksum is wrong",
        })
    }
}

/// Writes a frame.
pub(crate) fn encode(name: &str, content: &[u8]) -> String {
    let mut text =
        format!("=== dolmen begin {name} {} {:08x} ===\n", content.len(), crc32fast::hash(content));
    let encoded = STANDARD.encode(content);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, later) = rest.split_at_checked(LINE).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = later;
    }
    text.push_str(&format!("=== dolmen end {name} ===\n"));
    text
}

/// Reads one frame byte by byte.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    line: Vec<u8>,
    open: Option<Open>,
}

/// A frame of which the first line has come.
#[derive(Debug)]
struct Open {
    name: String,
    length: usize,
    checksum: u32,
    encoded: String,
}

impl Reader {
    /// Takes the next byte; the frame, once its last line is complete.
    pub(crate) fn push(&mut self, byte: u8) -> Option<Result<Frame, FrameError>> {
        if byte != b'\n' && byte != b'\r' {
            if self.line.len() > 4096 {
                return Some(Err(FrameError::Line)).filter(|_| self.open.is_some());
            }
            self.line.push(byte);
            return None;
        }
        let line = core::mem::take(&mut self.line);
        self.take_line(&line).transpose()
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<Frame>, FrameError> {
        let line = core::str::from_utf8(line).unwrap_or("\u{fffd}");
        match &mut self.open {
            None => {
                // Something unrelated may stand before it on the line, such as a prompt.
                if let Some(at) = line.find("=== dolmen begin ") {
                    self.open = Some(Open::begin(line.get(at..).unwrap_or_default())?);
                }
                Ok(None)
            }
            Some(_) if line.is_empty() => Ok(None), // "\r\n" is one end of line
            Some(open) if !line.starts_with("===") => {
                let is_base64 = line.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
                if !is_base64 {
                    return Err(FrameError::Line);
                }
                open.encoded.push_str(line);
                let most = open.length.div_ceil(3).saturating_mul(4);
                if open.encoded.len() > most { Err(FrameError::TooLong) } else { Ok(None) }
            }
            Some(_) => self.open.take().ok_or(FrameError::End)?.close(line).map(Some),
        }
    }
}

impl Open {
    fn begin(line: &str) -> Result<Self, FrameError> {
        let fields: Vec<&str> = line.split(' ').collect();
        let ["===", "dolmen", "begin", name, length, checksum, "==="] = fields.as_slice() else {
            return Err(FrameError::Begin);
        };
        let length = length.parse().map_err(|_| FrameError::Begin)?;
        let checksum = u32::from_str_radix(checksum, 16).map_err(|_| FrameError::Begin)?;
        if length > MAX_CONTENT {
            return Err(FrameError::TooLong);
        }
        Ok(Self { name: (*name).to_owned(), length, checksum, encoded: String::new() })
    }

    fn close(self, line: &str) -> Result<Frame, FrameError> {
        if line != format!("=== dolmen end {} ===", self.name) {
            return Err(FrameError::End);
        }
        let content = STANDARD.decode(&self.encoded).map_err(|_| FrameError::Damaged)?;
        if content.len() != self.length || crc32fast::hash(&content) != self.checksum {
            return Err(FrameError::Damaged);
        }
        Ok(Frame { name: self.name, content })
    }
}

/// Reads the one frame in `bytes`.
#[cfg(test)]
pub(crate) fn decode(bytes: &[u8]) -> Option<Frame> {
    let mut reader = Reader::default();
    bytes.iter().find_map(|byte| reader.push(*byte)).and_then(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Option<Result<Frame, FrameError>> {
        let mut reader = Reader::default();
        bytes.iter().find_map(|byte| reader.push(*byte))
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let want = "=== dolmen begin blob 3 352441c2 ===\nYWJj\n=== dolmen end blob ===\n";
        assert_eq!(encode("blob", b"abc"), want);
        let lengths: Vec<usize> = encode("b", &[7; 100]).lines().map(str::len).collect();
        assert_eq!(lengths[1..3], [76, 60]);
    }

    #[test]
    fn noise_before_a_frame_and_carriage_returns_do_not_matter() {
        let text = encode("x", b"content").replace('\n', "\r\n");
        let noisy = format!("\u{1b}[0m\r\n[ 1.0] kernel talks\r\n# {text}");
        assert_eq!(decode(noisy.as_bytes()).unwrap().content, b"content");
        assert_eq!(
            decode([b"\xff\xfe\n".as_slice(), text.as_bytes()].concat().as_slice()).unwrap().name,
            "x"
        );
    }

    #[test]
    fn what_does_not_arrive_whole_is_refused() {
        let good = encode("x", &[9; 200]);
        for (name, bad, want) in [
            ("a changed letter", good.replacen("CQ", "Cg", 1), FrameError::Damaged),
            (
                "a lost line",
                good.lines().enumerate().filter(|(n, _)| *n != 2).map(|(_, l)| format!("{l}\n")).collect(),
                FrameError::Damaged,
            ),
            ("a line in between", good.replacen("\n", "\n[ 1.0] kernel talks\n", 1), FrameError::Line),
            ("a line too many", good.replacen("\n", "\nAAAA\n", 1), FrameError::TooLong),
            ("another end", good.replace("end x", "end y"), FrameError::End),
            ("no length", "=== dolmen begin x ===\n".to_owned(), FrameError::Begin),
            ("no number", "=== dolmen begin x y 00000000 ===\n".to_owned(), FrameError::Begin),
            ("a huge length", "=== dolmen begin x 99999999 00000000 ===\n".to_owned(), FrameError::TooLong),
        ] {
            assert_eq!(read(bad.as_bytes()), Some(Err(want)), "{name}");
        }
    }

    #[test]
    fn a_frame_without_its_end_is_not_one_yet() {
        let text = encode("x", b"content");
        for length in 0..text.len() {
            assert_eq!(read(&text.as_bytes()[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives(content in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(decode(encode("any", &content).as_bytes()).unwrap().content, content);
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..500), begun in any::<bool>()) {
            let mut all = if begun { b"=== dolmen begin x 9 00000000 ===\n".to_vec() } else { Vec::new() };
            all.extend(bytes);
            let frame = read(&all);
            prop_assert!(!matches!(frame, Some(Ok(_))));
        }
    }
}
