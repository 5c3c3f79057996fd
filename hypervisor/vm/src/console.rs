//! One physical serial port for the hypervisor's log and the consoles of many guests.
//!
//! Each line of a guest begins with `[name] `, and a line of two guests does not exist: who writes while another
//! one's line is open waits, or the open line is broken. What a guest sends is cleaned, so that nothing of it
//! can look like a line of the hypervisor's log, which never begins with `[`: see `filter`. Keys go to one
//! guest at a time; Ctrl-^ says to which: see `keys`.
//!
//! Guests reach only their own [`Line`], whose rings need no lock: one side writes, one reads. The
//! [`Multiplexer`] belongs to whoever drives the port at the moment.

mod filter;
mod keys;
mod line;

#[cfg(test)]
mod tests;

use core::fmt::{self, Write};

pub use keys::Command;
pub use line::{INPUT_BYTES, Line, OUTPUT_BYTES, Ring};

use filter::{Filter, Piece};
use keys::{Key, Keys};

/// How long a line may stay unfinished before it is shown, or is broken for somebody else's.
const HOLD_MS: u64 = 100;
/// How long keys wait for a guest that does not read them.
const PATIENCE_MS: u64 = 1000;
/// Characters of a guest in one line; what is longer goes on in the next.
const MAX_COLUMNS: usize = 512;
/// A ring with less room than this is emptied whether its line is complete or not.
const LOW_ROOM: usize = OUTPUT_BYTES / 4;

/// What the multiplexer knows of one guest.
#[derive(Clone, Copy, Debug)]
struct Channel {
    filter: Filter,
    /// Since when an unfinished line waits in its ring.
    waits_since: Option<u64>,
    columns: usize,
}

/// Most guests on one port.
const CHANNELS: usize = dolmen_abi::MAX_GUESTS;

/// The port, shared. Guests are known by their place in the manifest.
#[derive(Debug)]
pub struct Multiplexer<'a> {
    lines: &'a [Line],
    channels: [Channel; CHANNELS],
    /// Whose line is open on the port.
    speaker: Option<usize>,
    /// Whose turn it is when several have something to say.
    turn: usize,
    /// Something of the hypervisor's stands on the open line.
    is_log_open: bool,
    staged: Staged,
    keys: Keys,
    attached: Option<usize>,
    /// Since when the attached guest has had no room for a key.
    blocked_since: Option<u64>,
    notice: Option<Notice>,
    /// It was said that keys are lost.
    is_loss_told: bool,
}

/// Something that the hypervisor says about the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    Attached,
    Unknown,
    Deaf,
    Help { next: usize },
}

/// What a key led to.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressed {
    /// Nothing for a guest.
    Nothing,
    /// This guest has a new byte to read.
    For(usize),
}

impl<'a> Multiplexer<'a> {
    /// The guests that share the port; the first of them gets the keys.
    pub fn new(lines: &'a [Line]) -> Self {
        let channel = Channel { filter: Filter::new(), waits_since: None, columns: 0 };
        let attached = lines.iter().position(Line::is_shared);
        Self {
            lines,
            channels: [channel; CHANNELS],
            speaker: None,
            turn: 0,
            is_log_open: false,
            staged: Staged::new(),
            keys: Keys::new(),
            attached,
            blocked_since: None,
            notice: attached.map(|_| Notice::Attached),
            is_loss_told: false,
        }
    }

    /// Who gets the keys.
    pub const fn attached(&self) -> Option<usize> {
        self.attached
    }

    /// The next byte for the port, if there is one now.
    pub fn pull(&mut self, now_ms: u64) -> Option<u8> {
        // Each turn of the loop takes a byte out of a ring, ends a line or begins one.
        for _ in 0..OUTPUT_BYTES {
            if let Some(byte) = self.staged.pull() {
                return Some(byte);
            }
            if self.is_log_open {
                return None;
            }
            let goes_on = match self.speaker {
                Some(guest) => self.go_on(guest, now_ms),
                None => self.stage_notice() || self.begin(now_ms),
            };
            if !goes_on {
                return None;
            }
        }
        None
    }

    /// Whether [`Self::pull`] may have something soon: the port must be looked after.
    pub fn is_busy(&self) -> bool {
        !self.staged.is_empty()
            || self.notice.is_some()
            || self.lines.iter().any(|line| line.is_shared() && !line.output.is_empty())
    }

    /// Writes a text of the hypervisor's log to `port` at once, on lines of its own.
    pub fn log(&mut self, text: &str, mut port: impl FnMut(u8)) {
        if text.is_empty() {
            return;
        }
        while let Some(byte) = self.staged.pull() {
            port(byte);
        }
        if let Some(guest) = self.speaker.take() {
            self.close(guest);
            port(b'\r');
            port(b'\n');
        }
        for byte in text.bytes() {
            if byte == b'\n' {
                port(b'\r');
            }
            port(byte);
        }
        self.is_log_open = !text.ends_with('\n');
    }

    /// Whether a key can be taken from the port. While the attached guest has no room keys wait, but not for ever: the
    /// one that lets go of it must come through.
    pub fn wants_key(&mut self, now_ms: u64) -> bool {
        let is_full = self.line(self.attached).is_some_and(|line| line.input.room() == 0);
        if !is_full || !self.keys.is_plain() {
            self.blocked_since = None;
            return true;
        }
        now_ms.saturating_sub(*self.blocked_since.get_or_insert(now_ms)) >= PATIENCE_MS
    }

    /// Takes a key from the port.
    pub fn press(&mut self, byte: u8) -> Pressed {
        match self.keys.press(byte) {
            Key::Swallowed => {}
            Key::Plain(byte) => return self.send(byte),
            Key::Command(command) => self.obey(&command),
        }
        Pressed::Nothing
    }

    fn send(&mut self, byte: u8) -> Pressed {
        let Some(guest) = self.attached else {
            self.notice = Some(Notice::Attached);
            return Pressed::Nothing;
        };
        match self.line(Some(guest)) {
            Some(line) if line.input.push(byte) => {
                self.is_loss_told = false;
                Pressed::For(guest)
            }
            Some(_) | None => {
                if !core::mem::replace(&mut self.is_loss_told, true) {
                    self.notice = Some(Notice::Deaf);
                }
                Pressed::Nothing
            }
        }
    }

    fn obey(&mut self, command: &Command) {
        let found = match command {
            Command::Help => {
                self.notice = Some(Notice::Help { next: 0 });
                return;
            }
            Command::Detach => {
                (self.attached, self.notice) = (None, Some(Notice::Attached));
                return;
            }
            Command::Unknown => None,
            Command::Number(number) => {
                Some(usize::from(*number)).filter(|guest| self.line(Some(*guest)).is_some())
            }
            Command::Name(name) => self.find(name.text()),
        };
        self.blocked_since = None;
        self.notice = Some(if found.is_some() { Notice::Attached } else { Notice::Unknown });
        self.attached = found.or(self.attached);
    }

    /// The guest of this name, or the only one whose name begins so.
    fn find(&self, name: &str) -> Option<usize> {
        let named = |wanted: &dyn Fn(&str) -> bool| {
            let mut found = self.shared().filter(|(_, line)| wanted(line.name()));
            let first = found.next().map(|(guest, _)| guest);
            first.filter(|_| found.next().is_none())
        };
        named(&|own| own == name).or_else(|| named(&|own| !name.is_empty() && own.starts_with(name)))
    }

    fn shared(&self) -> impl Iterator<Item = (usize, &'a Line)> {
        self.lines.iter().enumerate().filter(|(_, line)| line.is_shared())
    }

    fn line(&self, guest: Option<usize>) -> Option<&'a Line> {
        self.lines.get(guest?).filter(|line| line.is_shared())
    }

    /// Goes on with the open line. Somebody else's line does not wait for it longer than [`HOLD_MS`].
    fn go_on(&mut self, guest: usize, now_ms: u64) -> bool {
        let Some(line) = self.line(Some(guest)) else { return self.break_line(guest) };
        let Some(channel) = self.channels.get_mut(guest) else { return false };
        if let Some(byte) = line.output.pop() {
            channel.waits_since = None;
            self.take(guest, byte);
            return true;
        }
        let since = *channel.waits_since.get_or_insert(now_ms);
        let is_wanted = self.notice.is_some()
            || (0..self.lines.len()).any(|other| other != guest && self.is_ready(other, now_ms));
        is_wanted && now_ms.saturating_sub(since) >= HOLD_MS && self.break_line(guest)
    }

    /// Cleans one byte of the open line.
    fn take(&mut self, guest: usize, byte: u8) {
        let Some(channel) = self.channels.get_mut(guest) else { return };
        match channel.filter.take(byte) {
            Piece::Nothing => {}
            Piece::Bytes(bytes, columns) => {
                self.staged.push(bytes.as_slice());
                channel.columns = channel.columns.saturating_add_signed(columns);
                if channel.columns >= MAX_COLUMNS {
                    self.break_line(guest);
                    self.hurry(guest);
                }
            }
            Piece::EndOfLine => {
                self.break_line(guest);
            }
            Piece::StartOfLine { then } => {
                channel.columns = 0;
                self.staged.push(b"\r");
                self.stage_prefix(guest);
                self.take(guest, then);
            }
        }
    }

    fn break_line(&mut self, guest: usize) -> bool {
        self.staged.push(b"\r\n");
        self.speaker = None;
        self.close(guest);
        true
    }

    /// The rest of a line that was too long does not wait for its end.
    fn hurry(&mut self, guest: usize) {
        if let Some(channel) = self.channels.get_mut(guest) {
            channel.waits_since = Some(0);
        }
    }

    fn close(&mut self, guest: usize) {
        if let Some(channel) = self.channels.get_mut(guest) {
            (channel.columns, channel.waits_since) = (0, None);
            channel.filter.begin_line();
        }
    }

    /// Gives the port to the next guest that has something to say.
    fn begin(&mut self, now_ms: u64) -> bool {
        let (count, turn) = (self.lines.len(), self.turn);
        let mut order = (0..count).map(|step| turn.saturating_add(step).checked_rem(count).unwrap_or(0));
        let Some(guest) = order.find(|guest| self.is_due(*guest, now_ms)) else { return false };
        self.turn = guest.saturating_add(1);
        self.speaker = Some(guest);
        if let Some(channel) = self.channels.get_mut(guest) {
            channel.waits_since = None;
        }
        self.stage_prefix(guest);
        true
    }

    /// Whether a guest has a line for the port; notes since when it has an unfinished one.
    fn is_due(&mut self, guest: usize, now_ms: u64) -> bool {
        let is_empty = self.line(Some(guest)).is_none_or(|line| line.output.is_empty());
        if let Some(channel) = self.channels.get_mut(guest) {
            if is_empty {
                channel.waits_since = None;
                return false;
            }
            channel.waits_since.get_or_insert(now_ms);
        }
        self.is_ready(guest, now_ms)
    }

    fn is_ready(&self, guest: usize, now_ms: u64) -> bool {
        let (Some(line), Some(channel)) = (self.line(Some(guest)), self.channels.get(guest)) else {
            return false;
        };
        let has_waited = channel.waits_since.is_some_and(|since| now_ms.saturating_sub(since) >= HOLD_MS);
        !line.output.is_empty()
            && (self.attached == Some(guest)
                || has_waited
                || line.output.room() < LOW_ROOM
                || line.output.contains(b'\n'))
    }

    fn stage_prefix(&mut self, guest: usize) {
        let name = self.line(Some(guest)).map_or("", Line::name);
        self.staged.push(b"[");
        self.staged.push(name.as_bytes());
        self.staged.push(b"] ");
    }

    /// Stages a line about the console, if one is due.
    fn stage_notice(&mut self) -> bool {
        let Some(notice) = self.notice.take() else { return false };
        let name = self.line(self.attached).map(Line::name);
        let text = &mut self.staged;
        let written = match (notice, name) {
            (Notice::Attached, Some(name)) => {
                write!(text, "console: keys go to {name}; Ctrl-^ ? for help\r\n")
            }
            (Notice::Attached | Notice::Deaf, None) => {
                text.write_str("console: keys go nowhere; Ctrl-^ ? for help\r\n")
            }
            (Notice::Unknown, _) => {
                text.write_str("console: no such guest or command; Ctrl-^ ? for help\r\n")
            }
            (Notice::Deaf, Some(name)) => {
                write!(text, "console: {name} does not read its keys; some are lost\r\n")
            }
            (Notice::Help { next }, _) => return self.stage_help(next),
        };
        written.is_ok()
    }

    fn stage_help(&mut self, next: usize) -> bool {
        let guests =
            self.shared().skip(next.saturating_sub(1)).map(|(guest, line)| (guest, line.name())).next();
        let attached = self.attached;
        let text = &mut self.staged;
        let written = match (next, guests) {
            (0, _) => text.write_str("console: Ctrl-^ NUMBER or NAME Enter: keys go to that guest; Ctrl-^ . nowhere; Ctrl-^ Ctrl-^ sends one\r\n"),
            (_, Some((guest, name))) => {
                let mark = if attached == Some(guest) { " <- keys" } else { "" };
                write!(text, "console: {guest} {name}{mark}\r\n")
            }
            (_, None) => return false,
        };
        self.notice = Some(Notice::Help { next: next.saturating_add(1) });
        written.is_ok()
    }
}

/// Bytes that are cleaned and wait for the port: the longest is a line of help.
#[derive(Debug)]
struct Staged {
    bytes: [u8; 160],
    next: usize,
    end: usize,
}

impl Staged {
    const fn new() -> Self {
        Self { bytes: [0; 160], next: 0, end: 0 }
    }

    const fn is_empty(&self) -> bool {
        self.next == self.end
    }

    fn pull(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.next..self.end)?.first().copied()?;
        self.next = self.next.saturating_add(1);
        if self.is_empty() {
            (self.next, self.end) = (0, 0);
        }
        Some(byte)
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.end.saturating_add(bytes.len());
        if let Some(room) = self.bytes.get_mut(self.end..end) {
            room.copy_from_slice(bytes);
            self.end = end;
        }
    }
}

impl Write for Staged {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}
