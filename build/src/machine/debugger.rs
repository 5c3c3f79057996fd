//! The emulator's debugger: changes the machine's memory from outside, as no software on it could.
//!
//! Of GDB's remote serial protocol only reading and writing memory; QEMU's `PhyMemMode` makes the addresses physical.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Longest wait for the emulator's answer.
const LIMIT: Duration = Duration::from_secs(20);

/// Where a machine's debugger listens.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    // Removed when the last user of the socket in it is gone.
    _folder: Arc<TempDir>,
}

impl Socket {
    /// A socket for one machine.
    pub(crate) fn new() -> Result<Self> {
        let folder = super::sockets()?;
        Ok(Self { path: folder.path().join("gdb"), _folder: folder })
    }

    /// What the emulator has to be told.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let socket = format!("socket,id=gdb,server=on,wait=off,path={}", self.path.display());
        ["-chardev", &socket, "-gdb", "chardev:gdb"].map(str::to_owned).to_vec()
    }

    /// Changes one bit at a physical address while the machine stands still.
    pub(crate) fn flip(&self, at: u64) -> Result<()> {
        let mut debugger = Debugger::attach(&self.path)?;
        debugger.expect("Qqemu.PhyMemMode:1", "OK")?;
        let old = debugger.ask(&format!("m{at:x},1"))?;
        let old = u8::from_str_radix(&old, 16).with_context(|| format!("`{old}` is no byte"))?;
        debugger.expect(&format!("M{at:x},1:{:02x}", old ^ 1), "OK")?;
        // The machine goes on.
        debugger.expect("D", "OK")
    }
}

struct Debugger {
    socket: UnixStream,
}

impl Debugger {
    fn attach(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path).context("cannot reach the emulator's debugger")?;
        socket.set_read_timeout(Some(LIMIT)).context("cannot bound the wait for the debugger")?;
        Ok(Self { socket })
    }

    fn expect(&mut self, packet: &str, want: &str) -> Result<()> {
        match self.ask(packet)? {
            answer if answer == want => Ok(()),
            answer => bail!("the debugger answers `{answer}` to `{packet}`"),
        }
    }

    /// Sends a packet and takes the answer. That the machine stands still is told unasked, as `T…`.
    fn ask(&mut self, packet: &str) -> Result<String> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.socket, "${packet}#{sum:02x}").context("the debugger does not listen")?;
        loop {
            let answer = self.packet()?;
            if !answer.starts_with('T') {
                return Ok(answer);
            }
        }
    }

    /// Takes a packet: `$`, text, `#`, two digits of checksum.
    fn packet(&mut self) -> Result<String> {
        while self.byte()? != b'$' {}
        let mut answer = String::new();
        loop {
            match self.byte()? {
                b'#' => break,
                byte => answer.push(char::from(byte)),
            }
        }
        self.byte()?;
        self.byte()?;
        self.socket.write_all(b"+").context("the debugger does not listen")?;
        Ok(answer)
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.socket.read_exact(&mut byte).context("the debugger does not answer")?;
        let [byte] = byte;
        Ok(byte)
    }
}
