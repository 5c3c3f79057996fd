//! The guest next door: does no harm, keeps time, answers whoever asks.

use crate::console::{self, Console};
use crate::{apic, cpu, fault, say};

/// Ticks of the timer between two looks at the console.
const TICK: u32 = 2_000_000;
const DATA_READY: u8 = 1;

/// Answers each line that begins with `ping` by `pong` and the rest of it, and says how often its timer came.
pub(super) fn answer() -> ! {
    say!("neighbour: here");
    apic::start_periodic(TICK);
    let mut line = [0u8; 64];
    let mut length = 0;
    loop {
        cpu::wait_for_interrupt();
        while cpu::read_port8(console::PORT + 5) & DATA_READY != 0 {
            let byte = cpu::read_port8(console::PORT);
            if byte == b'\n' || byte == b'\r' {
                reply(&line[..length]);
                length = 0;
            } else if length < line.len() {
                line[length] = byte;
                length += 1;
            }
        }
    }
}

fn reply(line: &[u8]) {
    match line {
        [b'p', b'i', b'n', b'g', rest @ ..] => {
            let rest = core::str::from_utf8(rest).unwrap_or("?");
            say!("pong{rest} ticks={}", fault::ticks());
        }
        b"off" => cpu::power_off(),
        _ => {}
    }
    core::fmt::Write::write_str(&mut Console, "").unwrap_or(());
}
