//! The state save area (APM vol. 2, table B-2), without what only encrypted guests use.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::segment::Segment;

/// The guest's registers that VMRUN, VMLOAD and their opposites move. Fields carry no invariant of their
/// own: the processor checks them at VMRUN. Change them through [`super::Vmcb`], which keeps clean bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "the manual's names say it")]
pub struct SaveArea {
    pub es: Segment,   // 000h
    pub cs: Segment,   // 010h
    pub ss: Segment,   // 020h
    pub ds: Segment,   // 030h
    pub fs: Segment,   // 040h
    pub gs: Segment,   // 050h
    pub gdtr: Segment, // 060h
    pub ldtr: Segment, // 070h
    pub idtr: Segment, // 080h
    pub tr: Segment,   // 090h
    _rsvd0: [u8; 0xcb - 0xa0],
    pub cpl: u8, // 0CBh
    _rsvd1: u32,
    pub efer: u64, // 0D0h
    _rsvd2: [u8; 0x148 - 0xd8],
    pub cr4: u64,    // 148h
    pub cr3: u64,    // 150h
    pub cr0: u64,    // 158h
    pub dr7: u64,    // 160h
    pub dr6: u64,    // 168h
    pub rflags: u64, // 170h
    pub rip: u64,    // 178h
    _rsvd3: [u8; 0x1d8 - 0x180],
    pub rsp: u64, // 1D8h
    _rsvd4: [u8; 0x1f8 - 0x1e0],
    pub rax: u64,            // 1F8h
    pub star: u64,           // 200h
    pub lstar: u64,          // 208h
    pub cstar: u64,          // 210h
    pub sfmask: u64,         // 218h
    pub kernel_gs_base: u64, // 220h
    pub sysenter_cs: u64,    // 228h
    pub sysenter_esp: u64,   // 230h
    pub sysenter_eip: u64,   // 238h
    pub cr2: u64,            // 240h
    _rsvd5: [u8; 0x268 - 0x248],
    pub pat: u64,           // 268h
    pub debug_control: u64, // 270h
    _rsvd6: [u8; 0xc00 - 0x278],
}

const _: () = {
    assert!(size_of::<SaveArea>() == 0xc00);
    assert!(offset_of!(SaveArea, gdtr) == 0x60);
    assert!(offset_of!(SaveArea, tr) == 0x90);
    assert!(offset_of!(SaveArea, cpl) == 0xcb);
    assert!(offset_of!(SaveArea, efer) == 0xd0);
    assert!(offset_of!(SaveArea, cr4) == 0x148);
    assert!(offset_of!(SaveArea, dr7) == 0x160);
    assert!(offset_of!(SaveArea, rip) == 0x178);
    assert!(offset_of!(SaveArea, rsp) == 0x1d8);
    assert!(offset_of!(SaveArea, rax) == 0x1f8);
    assert!(offset_of!(SaveArea, sysenter_eip) == 0x238);
    assert!(offset_of!(SaveArea, cr2) == 0x240);
    assert!(offset_of!(SaveArea, pat) == 0x268);
};
