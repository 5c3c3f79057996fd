use proptest::prelude::*;

use super::*;
use crate::guest::OutsideRam;

struct Ram(Vec<u8>);

impl Ram {
    fn new() -> Self {
        Self(vec![0; 0x10_0000])
    }
    fn put(&mut self, at: u64, value: u64) {
        self.write(Gpa::new(at), &value.to_le_bytes()).unwrap();
    }
    fn put32(&mut self, at: u64, value: u32) {
        self.write(Gpa::new(at), &value.to_le_bytes()).unwrap();
    }
    fn entry(&self, at: u64) -> u64 {
        read_entry(self, at, 8).unwrap()
    }
}

impl GuestMemory for Ram {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        let start = usize::try_from(at.get()).map_err(|_| OutsideRam)?;
        let end = start.checked_add(into.len()).ok_or(OutsideRam)?;
        into.copy_from_slice(self.0.get(start..end).ok_or(OutsideRam)?);
        Ok(())
    }
    fn write(&mut self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        let start = usize::try_from(at.get()).map_err(|_| OutsideRam)?;
        let end = start.checked_add(from.len()).ok_or(OutsideRam)?;
        self.0.get_mut(start..end).ok_or(OutsideRam)?.copy_from_slice(from);
        Ok(())
    }
}

const PW: u64 = PRESENT | WRITE;
const PWU: u64 = PRESENT | WRITE | USER;
const LONG_MODE: Paging = Paging {
    cr0: CR0_PE_PG | CR0_WP,
    cr3: 0x1000,
    cr4: CR4_PAE | CR4_SMEP | CR4_SMAP,
    efer: EFER_LMA | EFER_NXE | 1 << 8,
    rflags: 2,
};

/// A four-level tree for addresses from `0xffff_8000_0000_0000`, with one entry of each kind.
fn long_mode() -> Ram {
    let mut ram = Ram::new();
    ram.put(0x1000 + 256 * 8, 0x2000 | PWU);
    ram.put(0x2000, 0x3000 | PWU);
    ram.put(0x2008, 0x4000_0000 | LARGE | PW); // 1 GiB page, far outside RAM
    ram.put(0x3000, 0x4000 | PWU);
    ram.put(0x3008, 0x20_0000 | LARGE | PWU | NO_EXECUTE); // 2 MiB
    ram.put(0x4000, 0x8000 | PW);
    ram.put(0x4008, 0x9000 | PRESENT); // read-only
    ram.put(0x4010, 0xa000 | PWU); // user
    ram.put(0x4018, 0xb000 | PW | NO_EXECUTE);
    ram.put(0x4020, 0xff_0000 | PW); // a page outside RAM
    ram.put(0x3010, 0xff_0000 | PW); // a table outside RAM
    ram
}

const BASE: u64 = 0xffff_8000_0000_0000;

fn error_code(result: Result<Gpa, AccessError>) -> u32 {
    match result {
        Err(AccessError::PageFault(fault)) => fault.error_code,
        other => panic!("no page fault: {other:?}"),
    }
}

#[test]
fn long_mode_pages_of_every_size_are_found() {
    let ram = long_mode();
    for (gva, gpa) in [
        (BASE | 0x123, 0x8123),
        (BASE | 0x1fff, 0x9fff),
        (BASE | 0x20_1234, 0x20_1234),
        (BASE | 0x4000_5678, 0x4000_5678),
    ] {
        let found = translate(&ram, &LONG_MODE, Gva::new(gva), Access::Read(0));
        let lifted = Paging { rflags: 2 | RFLAGS_AC, ..LONG_MODE };
        let found = found.or_else(|_| translate(&ram, &lifted, Gva::new(gva), Access::Read(0)));
        assert_eq!(found, Ok(Gpa::new(gpa)), "{gva:#x}");
    }
}

#[test]
fn each_protection_gives_its_error_code() {
    let ram = long_mode();
    for (offset, access, code) in [
        (0x1000, Access::Write(0), 3), // read-only, WP
        (0x0000, Access::Read(3), 5),  // supervisor page, user read
        (0x0000, Access::Write(3), 7),
        (0x2000, Access::Read(0), 1),     // SMAP
        (0x2000, Access::Fetch(0), 0x11), // SMEP
        (0x3000, Access::Fetch(0), 0x11), // no-execute
        (0x5000, Access::Read(0), 0),     // not present
        (0x5000, Access::Fetch(3), 0x14),
        (0x60_0000, Access::Write(3), 6), // not present at the second level
    ] {
        let found = translate(&ram, &LONG_MODE, Gva::new(BASE + offset), access);
        assert_eq!(error_code(found), code, "{offset:#x} {access:?}");
    }
    let relaxed = Paging { cr0: CR0_PE_PG, cr4: CR4_PAE, ..LONG_MODE };
    assert!(translate(&ram, &relaxed, Gva::new(BASE + 0x1000), Access::Write(0)).is_ok());
    assert!(translate(&ram, &relaxed, Gva::new(BASE + 0x2000), Access::Fetch(0)).is_ok());
    assert!(translate(&ram, &LONG_MODE, Gva::new(BASE + 0x2000), Access::Write(3)).is_ok());
}

#[test]
fn addresses_that_are_not_canonical_and_tables_outside_ram_are_refused() {
    let ram = long_mode();
    let at = |gva| translate(&ram, &LONG_MODE, Gva::new(gva), Access::Read(0));
    assert_eq!(at(0x8000_0000_0000), Err(AccessError::NotCanonical));
    assert_eq!(at(BASE | 0x40_0000), Err(AccessError::OutsideRam));
}

#[test]
fn pae_and_32_bit_paging_and_no_paging_are_understood() {
    let mut ram = Ram::new();
    ram.put(0x1020 + 8, 0x2000 | PRESENT); // PDPT at a 32-byte boundary, second GiB
    ram.put(0x2000, 0x3000 | PW);
    ram.put(0x2008, 0x60_0000 | LARGE | PW);
    ram.put(0x3008, 0x7000 | PW);
    let pae = Paging { cr0: CR0_PE_PG, cr3: 0x1020, cr4: CR4_PAE, efer: 0, rflags: 2 };
    let at = |gva, paging: &Paging, ram: &Ram| translate(ram, paging, Gva::new(gva), Access::Fetch(0));
    assert_eq!(at(0x4000_1abc, &pae, &ram), Ok(Gpa::new(0x7abc)));
    assert_eq!(at(0x4020_0abc, &pae, &ram), Ok(Gpa::new(0x60_0abc)));

    ram.put32(0x5000 + 4, 0x6007);
    ram.put32(0x6000 + 8, 0x8007);
    ram.put32(0x5000 + 8, 0x0080_2087); // 4 MiB page, address bits 39:32 = 1
    let legacy = Paging { cr0: CR0_PE_PG, cr3: 0x5000, cr4: CR4_PSE, efer: 0, rflags: 2 };
    assert_eq!(at(0x40_2123, &legacy, &ram), Ok(Gpa::new(0x8123)));
    assert_eq!(at(0x80_0123, &legacy, &ram), Ok(Gpa::new(0x1_0080_0123)));

    let unpaged = Paging { cr0: 1, ..Paging::default() };
    assert_eq!(at(0x1_2345_6789, &unpaged, &ram), Ok(Gpa::new(0x2345_6789)));
}

#[test]
fn reads_cross_pages_and_stop_where_memory_stops() {
    let mut ram = long_mode();
    ram.0[0x8ffe..0x9002].copy_from_slice(&[1, 2, 3, 4]);
    let mut bytes = [0; 4];
    let read = |ram: &Ram, at, bytes: &mut [u8]| {
        read_virtual(ram, &LONG_MODE, Gva::new(at), Access::Fetch(0), bytes)
    };
    assert_eq!(read(&ram, BASE | 0xffe, &mut bytes), Ok(4));
    assert_eq!(bytes, [1, 2, 3, 4]);
    assert_eq!(read(&ram, BASE | 0x1ffe, &mut bytes), Ok(2), "the next page is not for the kernel to fetch");
    assert!(read(&ram, BASE | 0x4000, &mut bytes).is_err());
}

#[test]
fn a_write_is_whole_or_not_at_all_and_marks_its_pages() {
    let mut ram = long_mode();
    ram.put(0x4000 + 0x18, 0xb000 | PW);
    let at = Gva::new(BASE | 0x3ffe);
    assert_eq!(write_virtual(&mut ram, &LONG_MODE, at, 0, &[9; 4]), Err(AccessError::OutsideRam));
    assert_eq!(ram.0[0xbffe], 0, "the part that could be written was not");
    assert_eq!(write_virtual(&mut ram, &LONG_MODE, at, 0, &[9; 2]), Ok(()));
    assert_eq!(ram.0[0xbffe..0xc000], [9, 9]);
    assert_eq!(ram.entry(0x4018) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    assert_eq!(ram.entry(0x3000) & (ACCESSED | DIRTY), ACCESSED);
    assert_eq!(ram.entry(0x1000 + 256 * 8) & ACCESSED, ACCESSED);
}

proptest! {
    #[test]
    fn no_table_contents_make_a_walk_fail_otherwise_than_by_an_error(
        entries in prop::collection::vec((0..0x1_0000u64, any::<u64>()), 0..64),
        (cr0, cr3, cr4, efer, gva) in any::<(u64, u64, u64, u64, u64)>(),
    ) {
        let mut ram = Ram::new();
        for (at, entry) in entries {
            // Keep table addresses inside RAM often enough for deep walks.
            ram.put(at & !7, entry & 0xffff_f000_000f_ffff);
        }
        let paging = Paging { cr0: cr0 | CR0_PE_PG, cr3: cr3 & 0xf_ffff, cr4, efer, rflags: 2 };
        let mut bytes = [0; 15];
        if let Ok(read) = read_virtual(&ram, &paging, Gva::new(gva), Access::Fetch(0), &mut bytes) {
            prop_assert!((1..=15).contains(&read));
        }
        let before = ram.0.clone();
        if write_virtual(&mut ram, &paging, Gva::new(gva & 0xffff), 3, &bytes).is_err() {
            prop_assert!(before == ram.0, "a refused write changes nothing");
        }
    }
}

#[test]
fn a_walk_holds_until_one_of_its_entries_changes() {
    let gva = Gva::new(0xffff_8000_0000_0000);
    let mut ram = long_mode();
    let found = walk(&ram, &LONG_MODE, gva, Access::Fetch(0)).unwrap();
    assert_eq!(found.gpa(), Gpa::new(0x8000));
    assert!(found.still_holds(&ram));
    for at in [0x1000 + 256 * 8, 0x2000, 0x3000, 0x4000] {
        let before = ram.entry(at);
        for changed in [before ^ PRESENT, before ^ NO_EXECUTE, before ^ 0x1000, before ^ ACCESSED] {
            ram.put(at, changed);
            assert!(!found.still_holds(&ram), "{at:#x} {changed:#x}");
        }
        ram.put(at, before);
    }
    assert!(found.still_holds(&ram));
}

#[test]
fn outside_of_long_mode_no_walk_is_vouched_for() {
    let ram = Ram::new();
    let unpaged = Paging { cr0: 1, ..Paging::default() };
    let found = walk(&ram, &unpaged, Gva::new(0x5000), Access::Fetch(0)).unwrap();
    assert_eq!(found.gpa(), Gpa::new(0x5000));
    assert!(!found.still_holds(&ram));
}
