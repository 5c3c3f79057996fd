//! A machine with an Intel processor: Debian's Bochs, headless, booted by GRUB from a CD image.
//!
//! It has VMX with nested paging, and neither TPM nor IOMMU nor dynamic launch. The serial ports connect to us by TCP,
//! the one way in and out that Bochs has, and are passed on as the sockets that [`Stream`] listens to.

use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::child;
use super::stream::Stream;
use crate::image::{self, Parts};
use crate::place;

/// Longest wait for the emulator to open its serial ports.
const OPENING: Duration = Duration::from_secs(60);
/// Instructions that make up a second of the machine's time: its time-stamp counter has as many ticks.
const INSTRUCTIONS_PER_SECOND: u32 = 40_000_000;

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Model<'a> {
    /// The processor, as Bochs calls it.
    pub(crate) processor: &'a str,
    /// How many of it.
    pub(crate) count: u32,
    /// RAM.
    pub(crate) memory_mib: u32,
}

/// A machine that is switched on. Dropping it switches it off.
#[derive(Debug)]
pub(crate) struct Bochs {
    emulator: Child,
    /// The first serial port: the hypervisor's log.
    pub(crate) log: Stream,
    /// The second serial port: the guest's console.
    pub(crate) console: Stream,
}

impl Bochs {
    /// Boots `parts` with this loader from GRUB's CD image, all made in `folder`.
    pub(crate) fn start(model: &Model<'_>, parts: &Parts, loader: &Path, folder: &Path) -> Result<Self> {
        let image = disc(parts, loader, folder)?;
        let ports = [listen()?, listen()?];
        let settings = folder.join("bochsrc");
        place::write(&settings, configuration(model, &image, folder, &ports)?.as_bytes())?;
        // The debugger that Debian's build contains waits for a word before the first instruction.
        let word = folder.join("debugger");
        place::write(&word, b"c\n")?;
        let said =
            std::fs::File::create(folder.join("bochs.out")).context("cannot write the emulator's log")?;
        let mut emulator = child::bound_to_us("bochs")
            .args(["-q", "-f"])
            .arg(&settings)
            .arg("-rc")
            .arg(&word)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .context("cannot start Bochs; `cargo xtask setup` installs it")?;
        match connect(ports, folder) {
            Ok([log, console]) => Ok(Self { emulator, log, console }),
            Err(error) => {
                child::end(&mut emulator);
                let said = std::fs::read_to_string(folder.join("bochs.out")).unwrap_or_default();
                Err(error.context(format!("Bochs did not start: {}", said.trim())))
            }
        }
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        child::end(&mut self.emulator);
    }
}

/// Makes the CD image, as `cargo xtask image` does.
fn disc(parts: &Parts, loader: &Path, folder: &Path) -> Result<PathBuf> {
    let (multiboot, disc) = (folder.join("dolmen"), folder.join("dolmen.iso"));
    image::write_multiboot(parts, loader, &multiboot)?;
    image::write_disc(&multiboot, &disc)?;
    Ok(disc)
}

/// The machine in Bochs' words.
fn configuration(model: &Model<'_>, image: &Path, folder: &Path, ports: &[TcpListener; 2]) -> Result<String> {
    let Model { processor, count, memory_mib } = model;
    let (image, log) = (image.display(), folder.join("bochs.log"));
    let mut text = format!(
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=1, extfpuirq=1, parallel=0, serial=1\n\
         memory: guest={memory_mib}, host={memory_mib}\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         cpu: model={processor}, count={count}, quantum=32, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
         clock: sync=none\n\
         boot: cdrom\n\
         ata0-master: type=cdrom, path=\"{image}\", status=inserted\n\
         display_library: rfb, options=\"timeout=0\"\n\
         sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
         speaker: enabled=0\n\
         panic: action=report\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n\
         log: {}\n",
        log.display()
    );
    for (index, listener) in (1..).zip(ports) {
        let port = listener.local_addr().context("a port without a number")?.port();
        writeln!(text, "com{index}: enabled=1, mode=socket-client, dev=localhost:{port}")
            .context("cannot write to memory")?;
    }
    Ok(text)
}

fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen for a serial port")?;
    listener.set_nonblocking(true).context("cannot wait with a limit")?;
    Ok(listener)
}

fn connect(ports: [TcpListener; 2], folder: &Path) -> Result<[Stream; 2]> {
    let [log, console] = ports;
    Ok([
        accept(&log, "hypervisor log (COM1)", &folder.join("com1.log"))?,
        accept(&console, "guest console (COM2)", &folder.join("com2.log"))?,
    ])
}

/// Waits for Bochs to connect a port.
fn accept(listener: &TcpListener, name: &'static str, transcript: &Path) -> Result<Stream> {
    let deadline = Instant::now().checked_add(OPENING).context("the time limit is too far away")?;
    let socket = loop {
        match listener.accept() {
            Ok((socket, _)) => break socket,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(anyhow!(error).context(format!("Bochs did not open {name}"))),
        }
    };
    socket.set_nonblocking(false).context("cannot read a serial port")?;
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    pass_on(&socket, &theirs)?;
    Stream::over(ours, name, transcript)
}

/// Passes bytes both ways, until one side closes.
fn pass_on(port: &TcpStream, socket: &UnixStream) -> Result<()> {
    let clones = || Ok::<_, std::io::Error>((port.try_clone()?, socket.try_clone()?));
    let (mut from_port, mut to_socket) = clones().context("cannot share a serial port")?;
    let (mut to_port, mut from_socket) = clones().context("cannot share a serial port")?;
    std::thread::spawn(move || {
        // Whoever listens sees the end of the stream, and says so.
        drop(std::io::copy(&mut from_port, &mut to_socket));
        drop(to_socket.shutdown(std::net::Shutdown::Write));
    });
    std::thread::spawn(move || drop(std::io::copy(&mut from_socket, &mut to_port)));
    Ok(())
}
