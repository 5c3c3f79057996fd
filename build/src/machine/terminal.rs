//! This terminal as the keyboard and screen of a serial port.

use std::io::{IsTerminal, Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::stream::Stream;

/// Ctrl-A: the next key is for us, as in QEMU.
const ESCAPE: u8 = 0x01;
/// After Ctrl-A: switch the machine off.
const QUIT: [u8; 2] = [b'x', b'X'];

/// The terminal with its line editing off, until this is dropped.
#[derive(Debug)]
pub(crate) struct Raw {
    settings: Option<String>,
}

impl Raw {
    /// Switches line editing off, if there is a terminal.
    pub(crate) fn enter() -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self { settings: None });
        }
        let settings = stty(&["-g"])?;
        stty(&["raw", "-echo"])?;
        Ok(Self { settings: Some(settings.trim().to_owned()) })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(settings) = &self.settings {
            // There is nothing to do about a terminal that is gone.
            drop(stty(&[settings]));
        }
    }
}

fn stty(arguments: &[&str]) -> Result<String> {
    let done = Command::new("stty")
        .args(arguments)
        .stdin(Stdio::inherit())
        .output()
        .context("cannot set the terminal (stty)")?;
    String::from_utf8(done.stdout).context("stty wrote something else than text")
}

/// Shows what the port says and sends it the keys, in the background; the returned receiver hears when the user
/// wants the machine off.
pub(crate) fn attach(port: &Stream) -> Result<std::sync::mpsc::Receiver<()>> {
    port.follow_bytes(|bytes| {
        let mut screen = std::io::stdout().lock();
        // A screen that is gone is no reason to stop the machine.
        drop(screen.write_all(bytes).and_then(|()| screen.flush()));
    });
    let (quit, off) = std::sync::mpsc::channel();
    let mut keys = port.again()?;
    std::thread::spawn(move || {
        let mut filter = Keys::default();
        let (mut input, mut key) = (std::io::stdin(), [0]);
        while matches!(input.read(&mut key), Ok(1)) {
            let pressed = key.first().and_then(|key| filter.press(*key));
            let sent = match pressed {
                Some(Pressed::Key(key)) => keys.send(&[key]).is_ok(),
                Some(Pressed::Quit) => quit.send(()).is_err(),
                None => true,
            };
            if !sent {
                return;
            }
        }
        // The end of a file with commands is no wish to switch off: what they started goes on.
        std::mem::forget(quit);
    });
    Ok(off)
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pressed {
    Key(u8),
    Quit,
}

/// Tells keys for the machine from those for us.
#[derive(Clone, Copy, Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    fn press(&mut self, key: u8) -> Option<Pressed> {
        if !std::mem::replace(&mut self.escaped, false) {
            self.escaped = key == ESCAPE;
            return (key != ESCAPE).then_some(Pressed::Key(key));
        }
        Some(if QUIT.contains(&key) { Pressed::Quit } else { Pressed::Key(key) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_ends_and_ctrl_a_twice_sends_one() {
        let pressed = |keys: &[u8]| {
            let mut filter = Keys::default();
            keys.iter().filter_map(|key| filter.press(*key)).collect::<Vec<_>>()
        };
        assert_eq!(pressed(b"ax"), [Pressed::Key(b'a'), Pressed::Key(b'x')]);
        assert_eq!(pressed(b"\x01x"), [Pressed::Quit]);
        assert_eq!(pressed(b"\x01\x01x"), [Pressed::Key(1), Pressed::Key(b'x')]);
    }
}
