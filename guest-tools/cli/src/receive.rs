//! `dolmen receive`: one frame from standard input into a file.
//!
//! On a terminal the echo is off while the frame comes, and nothing that arrives is taken as a signal or for
//! line editing; Ctrl-C and Ctrl-D give up. The terminal is put back whatever happens.

use std::io;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::frame::{Frame, Reader};
use crate::output::{Product, write_file};
use crate::terminal::Quiet;

/// Ctrl-C and Ctrl-D.
const GIVE_UP: [u8; 2] = [0x03, 0x04];

/// Receives a frame, gives up after `timeout` seconds without a byte.
pub(crate) fn run(file: &Path, timeout: u32) -> Result<Product, Failure> {
    let frame = {
        let quiet = Quiet::begin()?;
        eprintln!("dolmen: waiting for a frame");
        receive(timeout, quiet.is_some())?
    };
    write_file(file, &frame.content)?;
    eprintln!("dolmen: {} of {} bytes is in {}", frame.name, frame.content.len(), file.display());
    Ok(Product::nothing())
}

fn receive(timeout: u32, is_terminal: bool) -> Result<Frame, Failure> {
    let stdin = io::stdin();
    let mut reader = Reader::default();
    let mut chunk = [0; 512];
    loop {
        await_byte(timeout)?;
        let length = match rustix::io::read(&stdin, &mut chunk) {
            Ok(0) => return Err(Failure::plain(&"standard input ended before the frame did")),
            Ok(length) => length,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(Failure::plain(&format!("cannot read standard input: {error}"))),
        };
        for byte in chunk.iter().take(length) {
            if is_terminal && GIVE_UP.contains(byte) {
                return Err(Failure::plain(&"given up"));
            }
            if let Some(outcome) = reader.push(*byte) {
                return outcome.map_err(|error| Failure::plain(&format!("{error}; send it again")));
            }
        }
    }
}

fn await_byte(timeout: u32) -> Result<(), Failure> {
    let stdin = io::stdin();
    let limit = Timespec { tv_sec: i64::from(timeout), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&limit)) {
            Ok(0) => {
                let text = format!("nothing came for {timeout} seconds; give more with `--timeout`");
                return Err(Failure::plain(&text));
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::plain(&format!("cannot wait for standard input: {error}"))),
        }
    }
}
