//! What a guest may put on a line that it shares with the hypervisor's log.
//!
//! Text, and of control characters only what cannot leave the guest's own part of its line: backspace over what
//! it wrote itself, return to its own beginning, erase to the end. Everything else is left out (escape
//! sequences) or shown as `^X` and `?`: nothing moves the cursor into the prefix or another line, changes the order of
//! letters, or the terminal's state.

/// Longest escape sequence that is left out as one; what follows is text.
const MAX_SEQUENCE: u8 = 64;

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;

/// What becomes of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Nothing, for now.
    Nothing,
    /// These bytes, which take so many columns.
    Bytes(Few, isize),
    /// The line is complete.
    EndOfLine,
    /// Back to the line's beginning; this byte comes next.
    StartOfLine { then: u8 },
}

/// A few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Few {
    bytes: [u8; 4],
    count: usize,
}

impl Few {
    fn new(text: &[u8]) -> Self {
        let mut few = Self { bytes: [0; 4], count: text.len().min(4) };
        few.bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        few
    }

    /// The bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.count).unwrap_or_default()
    }
}

/// In the middle of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    /// A return that a line feed may follow.
    Return,
    Escape,
    /// A control sequence: its only digit so far, if it has no other parameter.
    Sequence {
        left: u8,
        digit: Option<u8>,
    },
    /// An operating system command, or another string for the terminal.
    String {
        left: u8,
    },
    Utf8 {
        bytes: [u8; 4],
        have: usize,
        want: usize,
    },
}

/// Cleans what one guest sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    state: State,
    /// Characters before the cursor that a backspace may go over: each of one column.
    erasable: usize,
}

impl Filter {
    pub(super) const fn new() -> Self {
        Self { state: State::Text, erasable: 0 }
    }

    /// The port is at the beginning of a line of this guest again.
    pub(super) const fn begin_line(&mut self) {
        self.erasable = 0;
    }

    /// Takes the next byte.
    pub(super) fn take(&mut self, byte: u8) -> Piece {
        match core::mem::replace(&mut self.state, State::Text) {
            State::Text => self.text(byte),
            State::Return if byte == b'\n' => Piece::EndOfLine,
            State::Return => self.after_return(byte),
            State::Escape => {
                self.state = match byte {
                    b'[' => State::Sequence { left: MAX_SEQUENCE, digit: Some(b'0') },
                    b']' | b'P' | b'X' | b'^' | b'_' => State::String { left: MAX_SEQUENCE },
                    ESCAPE => State::Escape,
                    _ => State::Text,
                };
                if byte == b'\n' { Piece::EndOfLine } else { Piece::Nothing }
            }
            State::Sequence { left, digit } => self.sequence(byte, left, digit),
            State::String { left } => self.string(byte, left),
            State::Utf8 { bytes, have, want } => self.utf8(byte, bytes, have, want),
        }
    }

    fn text(&mut self, byte: u8) -> Piece {
        match byte {
            b'\n' => Piece::EndOfLine,
            b'\r' => {
                self.state = State::Return;
                Piece::Nothing
            }
            b'\t' => {
                self.erasable = 0;
                Piece::Bytes(Few::new(b"\t"), 8)
            }
            BACKSPACE if self.erasable > 0 => {
                self.erasable = self.erasable.saturating_sub(1);
                Piece::Bytes(Few::new(b"\x08"), -1)
            }
            0 | BACKSPACE | BELL => Piece::Nothing,
            ESCAPE => {
                self.state = State::Escape;
                Piece::Nothing
            }
            b' '..=b'~' => self.shown(&[byte]),
            DELETE => self.shown(b"^?"),
            0x01..=0x1f => self.shown(&[b'^', byte | 0x40]),
            0x80.. => {
                let want = match byte {
                    0xc2..=0xdf => 2,
                    0xe0..=0xef => 3,
                    0xf0..=0xf4 => 4,
                    _ => return self.shown(b"?"),
                };
                self.state = State::Utf8 { bytes: [byte, 0, 0, 0], have: 1, want };
                Piece::Nothing
            }
        }
    }

    /// Bytes of one column each.
    fn shown(&mut self, bytes: &[u8]) -> Piece {
        self.erasable = self.erasable.saturating_add(bytes.len());
        Piece::Bytes(Few::new(bytes), isize::try_from(bytes.len()).unwrap_or(1))
    }

    /// A return that is not the end of a line: the byte after it is text of the same line, or another return.
    fn after_return(&mut self, byte: u8) -> Piece {
        self.erasable = 0;
        if byte == b'\r' {
            self.state = State::Return;
            return Piece::Nothing;
        }
        Piece::StartOfLine { then: byte }
    }

    /// ECMA-48, 5.4: parameters and intermediates, then one final byte. Only "erase to the end" is kept.
    fn sequence(&mut self, byte: u8, left: u8, digit: Option<u8>) -> Piece {
        match byte {
            b'K' | b'J' if digit == Some(b'0') => Piece::Bytes(Few::new(b"\x1b[K"), 0),
            b'\n' => Piece::EndOfLine,
            0x20..=0x3f if left > 0 => {
                let digit = if byte == b'0' { digit } else { None };
                self.state = State::Sequence { left: left.saturating_sub(1), digit };
                Piece::Nothing
            }
            ESCAPE => {
                self.state = State::Escape;
                Piece::Nothing
            }
            _ => Piece::Nothing,
        }
    }

    /// ECMA-48, 5.6: up to a bell or an escape.
    fn string(&mut self, byte: u8, left: u8) -> Piece {
        match byte {
            b'\n' => Piece::EndOfLine,
            BELL => Piece::Nothing,
            ESCAPE => {
                self.state = State::Escape;
                Piece::Nothing
            }
            _ => {
                if left > 0 {
                    self.state = State::String { left: left.saturating_sub(1) };
                }
                Piece::Nothing
            }
        }
    }

    fn utf8(&mut self, byte: u8, mut bytes: [u8; 4], have: usize, want: usize) -> Piece {
        if !(0x80..=0xbf).contains(&byte) {
            // Cut short: the byte that cut it is looked at by itself, the rest is lost.
            return self.text(byte);
        }
        if let Some(slot) = bytes.get_mut(have) {
            *slot = byte;
        }
        let have = have.saturating_add(1);
        if have < want {
            self.state = State::Utf8 { bytes, have, want };
            return Piece::Nothing;
        }
        let text = bytes.get(..have).unwrap_or_default();
        let letter = core::str::from_utf8(text).ok().and_then(|text| text.chars().next());
        match letter {
            Some(letter) if !is_dangerous(letter) => {
                // Its width is the terminal's affair: nothing may go back over it.
                self.erasable = 0;
                Piece::Bytes(Few::new(text), 1)
            }
            Some(_) | None => self.shown(b"?"),
        }
    }
}

/// Controls, line ends, and what changes the order in which letters are shown (Unicode, annex 9).
const fn is_dangerous(letter: char) -> bool {
    matches!(letter,
        '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
