//! A guest that lives beside others and does what its console says: `role=resident`.
//!
//! When it starts it looks whether its memory holds anything, fills a part of it, and starts its other processors,
//! if it has any. Then it counts aloud, unless its role is `quiet`, interrupting them all at each number, and
//! obeys lines: `crash`, `reset`, `off`, `ps`, `start NAME`, `stop NAME`,
//! `reset NAME`, `quote`, `extend`, `registers`, `forge`.

use core::convert::Infallible;

use dolmen_guest::vmmcall::{Bounce, Direct, Instruction};
use dolmen_guest::{Client, Error, GuestList};

use crate::{console, cpu, ending, say, smp};

/// The part of memory that is looked at and filled: nothing of the guest lies there.
const FIELD: core::ops::Range<u64> = 0x200_0000..0x280_0000;
/// What it is filled with.
const PATTERN: u32 = 0x5ec2_e75e;
/// Where requests and replies pass: beyond the image, before the field.
const REQUEST: u64 = 0x180_0000;
const REPLY: u64 = 0x190_0000;
const BUFFER: usize = 0x4000;
/// Time-stamp ticks between two numbers.
const BEAT: u64 = 100_000_000;

/// The hypervisor's calls, made directly.
pub(crate) type Hypervisor = Client<Direct>;

/// Lives until it is told to end.
pub(crate) fn live(is_quiet: bool) -> ! {
    match FIELD.step_by(4).find(|at| cpu::read32(*at) != 0) {
        None => say!("resident: memory is clean"),
        Some(at) => say!("FAIL memory holds something at {at:#x}"),
    }
    FIELD.step_by(4).for_each(|at| cpu::write32(at, PATTERN));
    if let Err(why) = smp::start_others() {
        say!("FAIL a processor: {why}");
    }
    let mut hypervisor = client();
    let (mut line, mut length) = ([0u8; 64], 0);
    let (mut beat, mut next) = (0u64, cpu::read_tsc());
    loop {
        if !is_quiet && cpu::read_tsc() >= next {
            beat += 1;
            next += BEAT;
            match smp::call_others() {
                Ok(()) => say!("beat {beat}"),
                Err(why) => say!("FAIL beat {beat}: {why}"),
            }
        }
        match console::read() {
            Some(b'\r' | b'\n') => {
                obey(&mut hypervisor, core::str::from_utf8(&line[..length]).unwrap_or("?"));
                length = 0;
            }
            Some(byte) if length < line.len() => {
                line[length] = byte;
                length += 1;
            }
            Some(_) | None => {}
        }
    }
}

/// The hypervisor's calls. Once in a guest's run: the buffers are the client's own.
pub(crate) fn client() -> Hypervisor {
    let instruction = Instruction::detect().unwrap_or(Instruction::Vmmcall);
    let (request, reply) = (buffer(REQUEST), buffer(REPLY));
    // SAFETY: ring 0 in 64-bit mode, under the hypervisor that is looked at.
    Client::new(unsafe { Direct::new(instruction, request, reply) })
}

fn buffer(at: u64) -> Bounce {
    let start = core::ptr::with_exposed_provenance_mut(at as usize);
    // SAFETY: mapped one to one, and nothing else uses it; taken once for each address.
    let bytes = unsafe { core::slice::from_raw_parts_mut(start, BUFFER) };
    // SAFETY: memory one to one, so its physical address is its own, a multiple of 8.
    unsafe { Bounce::new(bytes, at) }
}

fn obey(hypervisor: &mut Hypervisor, line: &str) {
    let (verb, name) = line.split_once(' ').unwrap_or((line, ""));
    match (verb, name) {
        ("crash", _) => ending::end(b"triple-fault"),
        ("reset", "") => ending::end(b"reset"),
        ("off", _) => cpu::power_off(),
        ("ps", _) => list(hypervisor),
        ("start", name) => told(line, hypervisor.start_guest(name)),
        ("stop", name) => told(line, hypervisor.stop_guest(name)),
        ("reset", name) => told(line, hypervisor.reset_guest(name)),
        ("quote", _) => told(line, hypervisor.quote(&[7; 64]).map(drop)),
        ("extend", _) => told(line, hypervisor.extend(1, &[9; 48]).map(drop)),
        ("registers", _) => registers(hypervisor),
        ("forge", _) => say!(
            "\rstop: forged\r\n\x1b[2J\x1b[Hstop: forged\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08stop:"
        ),
        _ => say!("what is {line}?"),
    }
}

fn told(line: &str, outcome: Result<(), Error<Infallible>>) {
    match outcome {
        Ok(()) => say!("done {line}: OK"),
        Err(Error::Refused(status)) => say!("done {line}: {status}"),
        Err(_) => say!("done {line}: FAILED"),
    }
}

fn registers(hypervisor: &mut Hypervisor) {
    match hypervisor.registers() {
        Ok(values) => {
            let fresh = values[1..].iter().all(|value| *value == [0; 48]);
            say!("done registers: {}", if fresh { "fresh" } else { "extended" });
        }
        Err(_) => say!("done registers: FAILED"),
    }
}

fn list(hypervisor: &mut Hypervisor) {
    let mut buffer = [0; GuestList::BYTES];
    match hypervisor.guests(&mut buffer) {
        Ok(list) => {
            for guest in list.guests() {
                let exits: u64 = guest.exits.iter().sum();
                say!(
                    "guest {} {} {} starts={} restarts={} rip={:#x} ran={} had={}",
                    guest.name(),
                    guest.state(),
                    guest.cause(),
                    guest.starts,
                    guest.restarts,
                    guest.last_rip,
                    guest.run_ns > 0,
                    guest.cpu_ns > 0 && exits > 0
                );
            }
            say!("done ps: OK");
        }
        Err(Error::Refused(status)) => say!("done ps: {status}"),
        Err(_) => say!("done ps: FAILED"),
    }
}
