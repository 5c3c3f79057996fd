//! The keys: all go to the attached guest but those that follow Ctrl-^.
//!
//! | keys | what |
//! |---|---|
//! | Ctrl-^ 0 … Ctrl-^ 9 | keys go to the guest of this number |
//! | Ctrl-^ NAME Enter | keys go to the guest of this name, or the only one whose name begins so |
//! | Ctrl-^ . | keys go nowhere |
//! | Ctrl-^ ? | help, with the guests' numbers and names |
//! | Ctrl-^ Ctrl-^ | sends one Ctrl-^ |

use dolmen_abi::NAME_BYTES;

/// Ctrl-^: on most keyboards Ctrl-6 sends it too.
const COMMAND: u8 = 0x1e;
const ENTER: [u8; 2] = [b'\r', b'\n'];
const ERASE: [u8; 2] = [0x08, 0x7f];

/// A name that is being typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Typed {
    bytes: [u8; NAME_BYTES],
    count: usize,
}

impl Typed {
    /// What was typed.
    pub fn text(&self) -> &str {
        self.bytes.get(..self.count).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) -> bool {
        let Some(slot) = self.bytes.get_mut(self.count) else { return false };
        *slot = byte;
        self.count = self.count.saturating_add(1);
        true
    }
}

/// What is asked of the console itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Help.
    Help,
    /// Keys go nowhere.
    Detach,
    /// Keys go to the guest of this number.
    Number(u8),
    /// Keys go to the guest of this name.
    Name(Typed),
    /// No command has these keys.
    Unknown,
}

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Part of a command.
    Swallowed,
    /// For the guest.
    Plain(u8),
    /// The last of a command.
    Command(Command),
}

/// Tells commands from keys for the guest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keys {
    Plain,
    Command,
    Name(Typed),
}

impl Keys {
    pub(super) const fn new() -> Self {
        Self::Plain
    }

    /// Whether the next key is for the guest, unless it begins a command.
    pub(super) const fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// Takes a key.
    pub(super) fn press(&mut self, byte: u8) -> Key {
        match core::mem::replace(self, Self::Plain) {
            Self::Plain if byte == COMMAND => {
                *self = Self::Command;
                Key::Swallowed
            }
            Self::Plain => Key::Plain(byte),
            Self::Command => self.command(byte),
            Self::Name(typed) => self.name(typed, byte),
        }
    }

    fn command(&mut self, byte: u8) -> Key {
        match byte {
            COMMAND => Key::Plain(COMMAND),
            b'?' => Key::Command(Command::Help),
            b'.' => Key::Command(Command::Detach),
            b'0'..=b'9' => Key::Command(Command::Number(byte.wrapping_sub(b'0'))),
            b'a'..=b'z' => self.name(Typed { bytes: [0; NAME_BYTES], count: 0 }, byte),
            _ => Key::Command(Command::Unknown),
        }
    }

    fn name(&mut self, mut typed: Typed, byte: u8) -> Key {
        if ENTER.contains(&byte) {
            return Key::Command(Command::Name(typed));
        }
        let is_kept = if ERASE.contains(&byte) {
            typed.count = typed.count.saturating_sub(1);
            true
        } else {
            matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-') && typed.push(byte)
        };
        if !is_kept {
            return Key::Command(Command::Unknown);
        }
        *self = Self::Name(typed);
        Key::Swallowed
    }
}
