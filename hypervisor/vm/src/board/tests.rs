use super::*;
use crate::testing::Ram;
use proptest::prelude::*;

const CONFIG: BoardConfig = BoardConfig {
    tsc_khz: 1_000_000,
    ram_bytes: 0x800_0000,
    wall_clock_ns: 1_709_210_096_000_000_000,
    created_at: 0,
};

/// A board on which Linux has set up x2APIC mode, pin 4 of the I/O APIC and the console.
fn running() -> Board {
    let mut board = Board::new(CONFIG);
    let mut ram = Ram::new(0);
    assert_eq!(board.msr_write(MSR_APIC_BASE, 0xfee0_0d00, 0, &mut ram), MsrAnswer::Done);
    assert_eq!(board.msr_write(0x80f, 0x1ff, 0, &mut ram), MsrAnswer::Done);
    for (index, value) in [(0x19, 0), (0x18, 0x24)] {
        assert_eq!(board.mmio_write(Gpa::new(IO_APIC_BASE), 4, index, 0), Some(Effect::None));
        assert_eq!(board.mmio_write(Gpa::new(IO_APIC_BASE + 0x10), 4, value, 0), Some(Effect::None));
    }
    for (register, value) in [(2, 0x81), (3, 0x03), (4, 0x0b), (1, 0x05)] {
        assert_eq!(board.port_write(UART_PORT + register, 1, value, 0), Effect::None);
    }
    board
}

/// Takes the pending interrupt and ends it.
fn serve(board: &mut Board) -> Option<u8> {
    let vector = board.pending_vector()?;
    board.acknowledge(vector);
    assert_eq!(board.msr_write(0x80b, 0, 0, &mut Ram::new(0)), MsrAnswer::Done);
    Some(vector)
}

#[test]
fn a_byte_from_the_console_interrupts_and_is_read() {
    let mut board = running();
    assert!(board.console_in(b'a'));
    assert_eq!(serve(&mut board), Some(0x24));
    assert_eq!(board.port_read(UART_PORT + 2, 1, 0), 0xcc);
    assert_eq!(board.port_read(UART_PORT, 1, 0), u32::from(b'a'));
    assert_eq!((board.pending_vector(), board.console_room()), (None, 16));
}

#[test]
fn each_byte_sent_brings_a_new_interrupt_while_the_guest_wants_them() {
    let mut board = running();
    assert_eq!(board.port_write(UART_PORT + 1, 1, 0x02, 0), Effect::None);
    assert_eq!(serve(&mut board), Some(0x24));
    assert_eq!(board.port_write(UART_PORT, 1, u32::from(b'x'), 0), Effect::ConsoleOut(b'x'));
    assert_eq!(serve(&mut board), Some(0x24), "although it never read the cause");
    assert_eq!(board.port_read(UART_PORT + 2, 1, 0), 0xc2);
    assert_eq!(board.pending_vector(), None);
}

#[test]
fn the_deadline_timer_is_the_next_deadline_and_fires() {
    let mut board = running();
    let mut ram = Ram::new(0);
    assert_eq!(board.msr_write(0x832, 0x4_00ec, 0, &mut ram), MsrAnswer::Done);
    assert_eq!(board.msr_write(MSR_TSC_DEADLINE, 5000, 10, &mut ram), MsrAnswer::Done);
    assert_eq!(board.next_deadline(), Some(5000));
    board.advance(5000);
    assert_eq!((board.pending_vector(), board.next_deadline()), (Some(0xec), None));
    assert_eq!(board.msr_read(MSR_TSC_DEADLINE, 5001), MsrAnswer::Value(0));
}

#[test]
fn a_self_ipi_comes_back_and_an_nmi_to_all_too() {
    let mut board = running();
    let mut ram = Ram::new(0);
    assert_eq!(board.msr_write(0x83f, 0x55, 0, &mut ram), MsrAnswer::Done);
    assert_eq!(serve(&mut board), Some(0x55));
    assert_eq!(board.msr_write(0x830, 0x8_0400, 0, &mut ram), MsrAnswer::Done);
    assert!(board.pending_nmi());
    board.acknowledge_nmi();
    assert!(!board.pending_nmi());
    assert_eq!(board.msr_write(0x830, 0xc_0400, 0, &mut ram), MsrAnswer::Done);
    assert!(!board.pending_nmi(), "to the others, of whom there are none");
}

#[test]
fn the_xapic_page_moves_with_its_base_and_goes_with_x2apic() {
    let mut board = Board::new(CONFIG);
    let mut ram = Ram::new(0);
    let version = Some(0x5_0014);
    assert_eq!(board.mmio_read(Gpa::new(0xfee0_0030), 4, 0), version);
    assert_eq!(board.msr_write(MSR_APIC_BASE, 0xf000_0900, 0, &mut ram), MsrAnswer::Done);
    assert_eq!(board.mmio_read(Gpa::new(0xfee0_0030), 4, 0), None);
    assert_eq!(board.mmio_read(Gpa::new(0xf000_0030), 4, 0), version);
    assert_eq!(board.msr_write(MSR_APIC_BASE, 0xf000_0d00, 0, &mut ram), MsrAnswer::Done);
    assert_eq!(board.mmio_read(Gpa::new(0xf000_0030), 4, 0), None);
    assert_eq!(board.msr_read(0x803, 0), MsrAnswer::Value(0x5_0014));
}

#[test]
fn msrs_of_others_are_not_claimed_and_wrong_ones_fault() {
    let mut board = Board::new(CONFIG);
    let mut ram = Ram::new(4096);
    assert_eq!(board.msr_read(0xc000_0080, 0), MsrAnswer::Unclaimed);
    assert_eq!(board.msr_write(0xc000_0080, 0, 0, &mut ram), MsrAnswer::Unclaimed);
    assert_eq!(board.msr_read(0x802, 0), MsrAnswer::Fault, "not in x2APIC mode");
    assert_eq!(board.msr_write(MSR_APIC_BASE, 1, 0, &mut ram), MsrAnswer::Fault);
    assert_eq!(board.msr_write(pvclock::MSR_SYSTEM_TIME, 0x1001, 0, &mut ram), MsrAnswer::Fault);
    assert_eq!(board.msr_write(pvclock::MSR_SYSTEM_TIME, 0x0801, 7, &mut ram), MsrAnswer::Done);
    assert_eq!(board.msr_read(pvclock::MSR_SYSTEM_TIME, 0), MsrAnswer::Value(0x0801));
    assert_eq!(ram.u64(0x808), 7);
}

#[test]
fn ports_of_nobody_read_all_ones() {
    let mut board = Board::new(CONFIG);
    for (port, size, value) in [(0x80, 1, 0xff), (0x21, 2, 0xffff), (0x3e8, 4, u32::MAX), (0xffff, 1, 0xff)] {
        assert_eq!(board.port_read(port, size, 0), value, "{port:#x}");
        assert_eq!(board.port_write(port, size, 0x1234_5678, 0), Effect::None);
    }
}

#[test]
fn linux_finds_configuration_mechanism_1() {
    let mut board = Board::new(CONFIG);
    assert_eq!(board.port_write(0xcfb, 1, 0x01, 0), Effect::None);
    assert_eq!(board.port_write(0xcf8, 4, 0x8000_0000, 0), Effect::None);
    assert_eq!(board.port_read(0xcf8, 4, 0), 0x8000_0000);
    assert_eq!(board.port_read(0xcfc, 4, 0), 0x0008_1b36);
    assert_eq!(board.port_read(0xcfe, 2, 0), 0x0008);
    assert_eq!(board.port_write(0xcf8, 4, 0x8000_0008, 0), Effect::None);
    assert_eq!(board.port_read(0xcfe, 2, 0), 0x0600);
}

#[test]
fn the_clock_chip_goes_by_the_counter() {
    let mut board = Board::new(CONFIG);
    assert_eq!(board.port_write(0x70, 1, 0x00, 0), Effect::None);
    assert_eq!(board.port_read(0x71, 1, 0), 0x56);
    assert_eq!(board.port_read(0x71, 1, 3_000_000_000), 0x59);
}

#[test]
fn a_wide_write_resets_if_one_of_its_bytes_does() {
    let mut board = Board::new(CONFIG);
    assert_eq!(board.port_write(0xcf8, 2, 0x0600, 0), Effect::Reset);
    assert_eq!(board.port_write(0x600, 1, 0x34, 0), Effect::PowerOff);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(
        steps in prop::collection::vec((0u8..7, any::<u32>(), 0u8..4, any::<u64>()), 0..200)
    ) {
        let mut board = running();
        let mut ram = Ram::new(4096);
        let mut now = 0u64;
        for (what, at, size, value) in steps {
            now = now.saturating_add(value >> 40);
            let size = 1 << size;
            let page = if at & 1 == 0 { IO_APIC_BASE } else { 0xfee0_0000 };
            let gpa = Gpa::new(page + u64::from(at & 0x1ff0));
            match what {
                0 => { let _value = board.port_read(at as u16, size, now); }
                1 => { let _effect = board.port_write(at as u16, size, value as u32, now); }
                2 => { let _value = board.mmio_read(gpa, size, now); }
                3 => { let _effect = board.mmio_write(gpa, size, value, now); }
                4 => { let _answer = board.msr_write(0x800 + (at & 0xff), value & 0xf_ffff, now, &mut ram); }
                5 => { let _answer = board.msr_read(at, now); }
                _ => board.advance(now),
            }
            let room = board.console_room();
            prop_assert_eq!(board.console_in(at as u8), room > 0);
            if let Some(vector) = board.pending_vector() {
                board.acknowledge(vector);
            }
        }
    }
}
