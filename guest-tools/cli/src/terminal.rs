//! The terminal while a command needs its keys for itself. It is put back whatever happens.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// A terminal without echo, line editing and signals, for as long as this lives.
pub(crate) struct Quiet {
    before: Termios,
}

impl Quiet {
    /// Silences standard input, if it is a terminal.
    pub(crate) fn begin() -> Result<Option<Self>, Failure> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let failed = |error: Errno| Failure::plain(&format!("cannot silence the terminal: {error}"));
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut quiet = before.clone();
        quiet
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        // Now, and without discarding: the sender may already have begun.
        tcsetattr(&stdin, OptionalActions::Now, &quiet).map_err(failed)?;
        Ok(Some(Self { before }))
    }

    /// Its keys.
    #[expect(clippy::unused_self, reason = "only a silenced terminal has keys to wait for")]
    pub(crate) const fn keys(&self) -> Keys {
        Keys::Terminal
    }
}

/// Who can end something that goes on for ever.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keys {
    /// Somebody at the terminal.
    Terminal,
    /// Standard input is no terminal.
    Nobody,
}

impl Keys {
    /// Waits so long; whether one of these keys, or the end of the terminal, came before.
    pub(crate) fn wait(self, pause: Duration, wanted: &[u8]) -> Result<bool, Failure> {
        let Self::Terminal = self else {
            std::thread::sleep(pause);
            return Ok(false);
        };
        let stdin = io::stdin();
        let began = Instant::now();
        loop {
            let left = pause.saturating_sub(began.elapsed());
            let limit = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&limit)) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Failure::plain(&format!("cannot wait for a key: {error}"))),
            }
            let mut typed = [0; 16];
            match rustix::io::read(&stdin, &mut typed) {
                Ok(0) => return Ok(true),
                Ok(count) if typed.iter().take(count).any(|key| wanted.contains(key)) => return Ok(true),
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(Failure::plain(&format!("cannot read a key: {error}"))),
            }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing can be done if the terminal is gone.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.before).unwrap_or_default();
    }
}
