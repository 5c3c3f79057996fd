//! Whatever the processors of a guest do to its board, to their own devices and to each other, and
//! instructions on device memory.
#![no_main]

use dolmen_arch::instruction::CodeSize;
use dolmen_memory::{Gpa, GuestMemory, OutsideRam};
use dolmen_vm::board::{Board, BoardConfig, SerialPort};
use dolmen_vm::bus::{Bus, VcpuSet};
use dolmen_vm::decode::decode;
use dolmen_vm::device::local_apic::Request;
use dolmen_vm::local::{LocalDevices, MsrAnswer};

struct NoRam;

impl GuestMemory for NoRam {
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), OutsideRam> {
        Err(OutsideRam)
    }

    fn write(&mut self, _: Gpa, _: &[u8]) -> Result<(), OutsideRam> {
        Ok(())
    }
}

const VCPUS: usize = 3;

/// What a write asks for goes on its way; whoever it is for and sleeps is named.
fn route(bus: &Bus, board: &mut Board, vcpu: usize, request: Request) -> VcpuSet {
    let mut wires = bus.wires();
    match request {
        Request::None => {}
        Request::Send(message) => {
            let woken = bus.send(message, Some(vcpu));
            assert!(!woken.contains(vcpu));
            return woken;
        }
        Request::EndOfInterrupt(vector) => board.end_of_interrupt(vector, &mut wires),
    }
    wires.woken()
}

libfuzzer_sys::fuzz_target!(|input: (Vec<(u8, u32, u8, u64)>, &[u8])| {
    let (steps, instruction) = input;
    for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        if let Ok(access) = decode(instruction, size) {
            assert!(access.length.get() <= instruction.len() as u64);
            assert!(matches!(access.bytes, 1 | 2 | 4 | 8));
        }
    }
    let config = BoardConfig {
        tsc_khz: 2_000_000,
        ram_bytes: 0x800_0000,
        wall_clock_ns: u64::MAX / 2,
        created_at: 7,
        second_uart: true,
    };
    let (mut board, bus) = (Board::new(config), Bus::new(VCPUS));
    let mut processors: Vec<_> = (0..VCPUS).map(|index| LocalDevices::new(index, &config)).collect();
    let mut now = 7u64;
    for (what, at, size, value) in steps {
        now = now.saturating_add(value >> 32);
        let vcpu = usize::from(what >> 3) % VCPUS;
        let (devices, mailbox) = (&mut processors[vcpu], bus.mailbox(vcpu).unwrap());
        let size = 1 << (size & 3);
        let page = if at & 1 == 0 { 0xfec0_0000 } else { 0xfee0_0000 };
        let gpa = Gpa::new(page + u64::from(at & 0x1fff));
        let mut wires = bus.wires();
        let answer = match what & 7 {
            0 => {
                board.port_read(at as u16, size, now, &mut wires);
                MsrAnswer::Unclaimed
            }
            1 => {
                let _effect = board.port_write(at as u16, size, value as u32, now, &mut wires);
                MsrAnswer::Unclaimed
            }
            2 => {
                if devices.mmio_read(gpa, size, now).is_none() {
                    board.mmio_read(gpa, size);
                }
                MsrAnswer::Unclaimed
            }
            3 => match devices.mmio_write(gpa, size, value, now) {
                Some(request) => MsrAnswer::Done(request),
                None => {
                    let _effect = board.mmio_write(gpa, size, value, &mut wires);
                    MsrAnswer::Unclaimed
                }
            },
            4 => devices.msr_read(0x800 + (at & 0xff), now),
            5 => devices.msr_write(0x800 + (at & 0xff), value & 0x7_000f_ffff, now, &mut NoRam),
            6 => devices.msr_write(at, value, now, &mut NoRam),
            _ => {
                devices.advance(now);
                MsrAnswer::Unclaimed
            }
        };
        let mut woken = wires.woken();
        if let MsrAnswer::Done(request) = answer {
            woken = woken.union(route(&bus, &mut board, vcpu, request));
        }
        for index in woken.iter() {
            assert!(!bus.mailbox(index).unwrap().is_empty(), "nobody is woken for nothing");
        }
        let port = if at & 2 == 0 { SerialPort::Com1 } else { SerialPort::Com2 };
        let room = board.console_room(port);
        let mut wires = bus.wires();
        assert_eq!(board.console_in(port, at as u8, &mut wires), room > 0);
        board.send_console(port, |byte| byte & 1 == 0, &mut wires);
        let _woken = wires.woken();
        let collected = devices.collect(mailbox);
        assert!(mailbox.is_empty());
        assert!(!(collected.start_up.is_some() && devices.awaits_start_up()));
        if let Some(vector) = devices.pending_vector() {
            assert!(vector >= 16);
            devices.acknowledge(vector);
        }
    }
});
