//! A serial port of the emulated machine: everything it says is kept, and waits for lines are bounded.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::ui::Kept;

/// Lines shown when a wait fails.
const SHOWN: usize = 25;

/// Key of the shared console after which the name of the guest follows that shall get the keys: Ctrl-^.
const ATTACH: u8 = 0x1e;

/// Bytes received so far.
#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    closed: bool,
}

/// Shared between the thread that reads the port and those who wait for lines.
#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    news: Condvar,
    /// On a shared console: the guest that gets what is sent.
    attached: Mutex<Option<String>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket on which the emulator will connect a serial port.
#[derive(Debug)]
pub(crate) struct Port {
    listener: UnixListener,
    path: PathBuf,
}

impl Port {
    /// Opens the socket, before the emulator starts.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Where the emulator shall connect.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the emulator; what the port says also goes to `transcript`.
    pub(crate) fn accept(self, name: &'static str, transcript: &Path, limit: Duration) -> Result<Stream> {
        self.listener.set_nonblocking(true).context("cannot wait with a limit")?;
        let deadline = Instant::now().checked_add(limit).context("the time limit is too far away")?;
        let socket = loop {
            match self.listener.accept() {
                Ok((socket, _)) => break socket,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(anyhow!(error).context(format!("the emulator did not open {name}"))),
            }
        };
        socket.set_nonblocking(false).context("cannot read a serial port")?;
        Stream::over(socket, name, transcript)
    }
}

fn listen(mut socket: UnixStream, mut transcript: std::fs::File, shared: &Shared) {
    let mut piece = [0; 4096];
    loop {
        let count = socket.read(&mut piece).unwrap_or(0);
        let bytes = piece.get(..count).unwrap_or_default();
        let mut heard = shared.lock();
        if bytes.is_empty() || transcript.write_all(bytes).is_err() {
            heard.closed = true;
            shared.news.notify_all();
            return;
        }
        heard.bytes.extend_from_slice(bytes);
        shared.news.notify_all();
    }
}

/// A connected serial port.
#[derive(Debug)]
pub(crate) struct Stream {
    name: &'static str,
    socket: UnixStream,
    shared: Arc<Shared>,
    cursor: usize,
    /// The guest whose lines alone are heard, if the port is the console that guests share.
    guest: Option<String>,
}

impl Stream {
    /// A port that is connected already; what it says also goes to `transcript`.
    pub(crate) fn over(socket: UnixStream, name: &'static str, transcript: &Path) -> Result<Self> {
        let file = std::fs::File::create(transcript)
            .with_context(|| format!("cannot write {}", transcript.display()))?;
        let shared = Arc::new(Shared::default());
        let (reader, heard) = (socket.try_clone().context("cannot read a serial port")?, Arc::clone(&shared));
        std::thread::spawn(move || listen(reader, file, &heard));
        Ok(Self { name, socket, shared, cursor: 0, guest: None })
    }

    /// One guest's part of this port, the console that guests share.
    pub(crate) fn guest(&self, name: &str) -> Result<Self> {
        self.with_guest(Some(name.to_owned()))
    }

    fn with_guest(&self, guest: Option<String>) -> Result<Self> {
        let socket = self.socket.try_clone().context("cannot share a serial port")?;
        Ok(Self { name: self.name, socket, shared: Arc::clone(&self.shared), cursor: 0, guest })
    }

    /// Sends bytes to the machine; on a shared console to this stream's guest.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let closed = || format!("{} is closed", self.name);
        // Held until all is sent, so that bytes for two guests do not mix.
        let mut attached = self.shared.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = &self.guest
            && attached.as_ref() != Some(guest)
        {
            let keys = [&[ATTACH], guest.as_bytes(), b"\r"].concat();
            self.socket.write_all(&keys).with_context(closed)?;
            *attached = Some(guest.clone());
        }
        self.socket.write_all(bytes).with_context(closed)
    }

    /// What begins each of this stream's lines.
    fn prefix(&self) -> String {
        self.guest.as_ref().map(|name| format!("[{name}] ")).unwrap_or_default()
    }

    /// Waits for the next whole line for which `wanted` answers something; earlier lines are passed over.
    pub(crate) fn find<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now().checked_add(limit).context("the time limit is too far away")?;
        let (shared, prefix) = (Arc::clone(&self.shared), self.prefix());
        let mut heard = shared.lock();
        loop {
            while let Some((line, next)) = next_line(&heard.bytes, self.cursor) {
                self.cursor = next;
                if let Some(found) = own_part(&line, &prefix).and_then(&mut wanted) {
                    return Ok(found);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if heard.closed || left.is_zero() {
                let why = if heard.closed { "the port was closed" } else { "nothing came in time" };
                let recent = recent(&heard.bytes);
                drop(heard);
                return Err(anyhow!(
                    "{}: waited {} s for {what}: {why}. It said:\n{recent}",
                    self.name,
                    limit.as_secs()
                ));
            }
            heard = shared.news.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line that contains `text`, and returns it.
    pub(crate) fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.find(&format!("`{text}`"), limit, |line| line.contains(text).then(|| line.to_owned()))
    }

    /// Waits until bytes that end in `text` arrive (prompts do not end a line), and passes over them.
    pub(crate) fn wait_for_prompt(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(limit).context("the time limit is too far away")?;
        let shared = Arc::clone(&self.shared);
        let text = self.prefix() + text;
        let mut heard = shared.lock();
        loop {
            let fresh = heard.bytes.get(self.cursor..).unwrap_or_default();
            if let Some(at) = fresh.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.cursor = self.cursor.saturating_add(at).saturating_add(text.len());
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if heard.closed || left.is_zero() {
                let recent = recent(&heard.bytes);
                drop(heard);
                return Err(anyhow!(
                    "{}: waited {} s for `{text}`. It said:\n{recent}",
                    self.name,
                    limit.as_secs()
                ));
            }
            heard = shared.news.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything heard so far, as lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let heard = self.shared.lock();
        let prefix = self.prefix();
        let text = String::from_utf8_lossy(&heard.bytes);
        let lines = text.lines().map(|line| line.trim_end_matches('\r'));
        lines.filter_map(|line| own_part(line, &prefix).map(str::to_owned)).collect()
    }

    /// Gives each line, as it comes, to `show`, in a thread of its own that ends with the port.
    pub(crate) fn follow(&self, show: impl Fn(&str) + Send + 'static) {
        let (shared, kept) = (Arc::clone(&self.shared), Kept::of_this_thread());
        std::thread::spawn(move || {
            Kept::listen(kept);
            let mut at = 0;
            let mut heard = shared.lock();
            loop {
                while let Some((line, next)) = next_line(&heard.bytes, at) {
                    at = next;
                    show(&line);
                }
                if heard.closed {
                    return;
                }
                heard = shared.news.wait(heard).unwrap_or_else(PoisonError::into_inner);
            }
        });
    }

    /// Gives all bytes, as they come, to `show`, in a thread of its own that ends with the port.
    pub(crate) fn follow_bytes(&self, show: impl Fn(&[u8]) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            let mut at = 0;
            let mut heard = shared.lock();
            loop {
                let fresh = heard.bytes.get(at..).unwrap_or_default().to_vec();
                at = heard.bytes.len();
                let closed = heard.closed;
                drop(heard);
                show(&fresh);
                if closed {
                    return;
                }
                heard = shared.lock();
                if heard.bytes.len() == at && !heard.closed {
                    heard = shared.news.wait(heard).unwrap_or_else(PoisonError::into_inner);
                }
            }
        });
    }

    /// The same port once more, heard from its beginning.
    pub(crate) fn again(&self) -> Result<Self> {
        self.with_guest(None)
    }

    /// Waits until the emulator closes the port.
    pub(crate) fn wait_closed(&self, limit: Duration) -> bool {
        let heard = self.shared.lock();
        let outcome = self.shared.news.wait_timeout_while(heard, limit, |heard| !heard.closed);
        !outcome.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// The line that starts at `from` if it is complete, and where the next one starts.
fn next_line(bytes: &[u8], from: usize) -> Option<(String, usize)> {
    let rest = bytes.get(from..)?;
    let length = rest.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8_lossy(rest.get(..length)?).trim_end_matches('\r').to_owned();
    Some((line, from.checked_add(length)?.checked_add(1)?))
}

/// What a line holds after the last `prefix`: a guest that returns to the start of its line begins it anew.
fn own_part<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    let own = line.strip_prefix(prefix)?;
    if prefix.is_empty() {
        return Some(own);
    }
    Some(own.rsplit_once(&format!("\r{prefix}")).map_or(own, |(_, last)| last))
}

fn recent(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = String::new();
    for line in lines.iter().skip(lines.len().saturating_sub(SHOWN)) {
        // Writing to a string cannot fail; an error would only shorten the message.
        if writeln!(shown, "    | {}", line.trim_end()).is_err() {
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_hears_its_own_lines_alone() {
        assert_eq!(own_part("[alice] hello", "[alice] "), Some("hello"));
        assert_eq!(own_part("[bob] hello", "[alice] "), None);
        assert_eq!(own_part("serve: guest runs", "[alice] "), None);
        assert_eq!(own_part("[alice] 10%\r[alice] 20%", "[alice] "), Some("20%"));
        assert_eq!(own_part("[alice] hello", ""), Some("[alice] hello"));
    }

    #[test]
    fn what_is_sent_to_a_guest_on_a_shared_console_follows_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let port = Port::open(&folder.path().join("port")).unwrap();
        let mut machine = UnixStream::connect(port.path()).unwrap();
        let log = port.accept("log", &folder.path().join("log"), Duration::from_secs(5)).unwrap();
        let (mut alice, mut bob) = (log.guest("alice").unwrap(), log.guest("bob").unwrap());
        alice.send(b"one\n").unwrap();
        alice.send(b"two\n").unwrap();
        bob.send(b"three\n").unwrap();
        let mut sent = [0; 30];
        machine.read_exact(&mut sent[..25]).unwrap();
        assert_eq!(&sent[..25], b"\x1ealice\rone\ntwo\n\x1ebob\rthree\n".get(..25).unwrap());
        machine.write_all(b"[bob] no\r\nlog\r\n[alice] yes\r\n").unwrap();
        assert_eq!(
            alice.find("a line", Duration::from_secs(5), |line| Some(line.to_owned())).unwrap(),
            "yes"
        );
    }

    #[test]
    fn a_line_counts_only_once_it_is_complete() {
        assert_eq!(next_line(b"shield: dma", 0), None);
        assert_eq!(next_line(b"a\r\nb\n", 0), Some(("a".to_owned(), 3)));
        assert_eq!(next_line(b"a\r\nb\n", 3), Some(("b".to_owned(), 5)));
    }
}
