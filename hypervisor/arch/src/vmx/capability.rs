//! What VMX this processor has, by its capability registers (SDM vol. 3D, appendix A).

use crate::bits::low32;
use crate::cpuid::CpuidSource;
use crate::register::{Cr0, Cr4};

const FEATURES: u32 = 1;
const ECX_VMX: u32 = 1 << 5;

const FEATURE_CONTROL: u32 = crate::msr::FEATURE_CONTROL;
const BASIC: u32 = 0x480;
const MISC: u32 = 0x485;
const CR0_FIXED0: u32 = 0x486;
const CR0_FIXED1: u32 = 0x487;
const CR4_FIXED0: u32 = 0x488;
const CR4_FIXED1: u32 = 0x489;
const SECONDARY: u32 = 0x48b;
const EPT_VPID: u32 = 0x48c;
const TRUE_PIN: u32 = 0x48d;
const TRUE_PRIMARY: u32 = 0x48e;
const TRUE_EXIT: u32 = 0x48f;
const TRUE_ENTRY: u32 = 0x490;

/// Bits of IA32_FEATURE_CONTROL (SDM vol. 3C, 24.7).
pub mod feature_control {
    /// The register is locked.
    pub const LOCKED: u64 = 1 << 0;
    /// VMXON works outside of SMX operation.
    pub const VMX_OUTSIDE_SMX: u64 = 1 << 2;
}

/// Whether the processor can trace itself (Intel PT, SDM vol. 3C, 33.3). A trace goes to physical addresses that
/// whoever began it chose, past all tables of ours.
pub fn has_trace(cpu: &impl CpuidSource) -> bool {
    const STRUCTURED_FEATURES: u32 = 7;
    const EBX_TRACE: u32 = 1 << 25;
    cpu.leaf(0, 0).eax >= STRUCTURED_FEATURES && cpu.leaf(STRUCTURED_FEATURES, 0).ebx & EBX_TRACE != 0
}

/// Whoever can read the processor's registers: the processor, or a test's table.
pub trait MsrSource {
    /// Reads a register that the processor has.
    fn msr(&self, msr: u32) -> u64;
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// CPUID does not report VMX.
    Vmx,
    /// Firmware switched VMX off and locked it (IA32_FEATURE_CONTROL).
    Enabled,
    /// No capability registers that tell the controls which need not be 1.
    TrueControls,
    /// No secondary controls.
    SecondaryControls,
    /// No extended page tables.
    Ept,
    /// No unrestricted guest: real mode would have to be emulated.
    UnrestrictedGuest,
    /// No identifiers for translations.
    Vpid,
    /// Extended page tables without four levels, write-back memory, 2 MiB pages or invalidation.
    EptParts,
    /// Identifiers that cannot be invalidated one by one.
    VpidParts,
    /// A control among those that keep a guest in: which register tells it, and the bits that are missing.
    Control(u32, u32),
}

/// One register of controls: which bits must be 1, and which may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Bits that are always 1.
    pub must: u32,
    /// Bits that can be 1.
    pub may: u32,
}

impl Allowed {
    /// From a capability register: allowed-0 settings low, allowed-1 settings high (SDM vol. 3D, A.3.1).
    pub const fn from_raw(raw: u64) -> Self {
        Self { must: low32(raw), may: low32(raw >> 32) }
    }

    /// What must be written to have `wanted`, and `optional` as far as it exists; or the wanted bits that do not.
    ///
    /// # Errors
    /// The bits that are missing.
    pub const fn adjust(self, wanted: u32, optional: u32) -> Result<u32, u32> {
        let missing = wanted & !self.may;
        if missing == 0 { Ok(wanted | optional & self.may | self.must) } else { Err(missing) }
    }
}

/// What VMX this processor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Identifies the format of control structures.
    pub revision: u32,
    /// Pin-based controls.
    pub pin: Allowed,
    /// Primary processor-based controls.
    pub primary: Allowed,
    /// Secondary processor-based controls.
    pub secondary: Allowed,
    /// Exit controls.
    pub exit: Allowed,
    /// Entry controls.
    pub entry: Allowed,
    /// CR0 bits that must be 1, and those that can be.
    pub cr0: (u64, u64),
    /// CR4 bits that must be 1, and those that can be.
    pub cr4: (u64, u64),
    /// The preemption timer counts each so manieth tick of the time-stamp counter, as a power of two.
    pub timer_shift: u32,
    /// One identifier can be invalidated without its global translations being spared.
    pub flushes_one_vpid: bool,
    /// One guest's tables can be invalidated.
    pub flushes_one_ept: bool,
}

impl Capabilities {
    const FOUR_LEVELS: u64 = 1 << 6;
    const WRITE_BACK: u64 = 1 << 14;
    const LARGE_PAGES: u64 = 1 << 16;
    const INVEPT: u64 = 1 << 20;
    const INVEPT_ONE: u64 = 1 << 25;
    const INVEPT_ALL: u64 = 1 << 26;
    const INVVPID: u64 = 1 << 32;
    const INVVPID_ONE: u64 = 1 << 41;
    const INVVPID_ALL: u64 = 1 << 42;

    /// Reads them.
    ///
    /// # Errors
    /// [`Lack`]: the first thing that is missing of what Dolmen's guests need.
    pub fn detect(cpu: &impl CpuidSource, registers: &impl MsrSource) -> Result<Self, Lack> {
        const HAS_TRUE_CONTROLS: u64 = 1 << 55;
        const ACTIVATES_SECONDARY: u32 = 1 << 31;
        if cpu.leaf(FEATURES, 0).ecx & ECX_VMX == 0 {
            return Err(Lack::Vmx);
        }
        let control = registers.msr(FEATURE_CONTROL);
        if control & feature_control::LOCKED != 0 && control & feature_control::VMX_OUTSIDE_SMX == 0 {
            return Err(Lack::Enabled);
        }
        let basic = registers.msr(BASIC);
        if basic & HAS_TRUE_CONTROLS == 0 {
            return Err(Lack::TrueControls);
        }
        let allowed = |register| Allowed::from_raw(registers.msr(register));
        let primary = allowed(TRUE_PRIMARY);
        if primary.may & ACTIVATES_SECONDARY == 0 {
            return Err(Lack::SecondaryControls);
        }
        let secondary = allowed(SECONDARY);
        let found = Self {
            revision: low32(basic) & 0x7fff_ffff,
            pin: allowed(TRUE_PIN),
            primary,
            secondary,
            exit: allowed(TRUE_EXIT),
            entry: allowed(TRUE_ENTRY),
            cr0: (registers.msr(CR0_FIXED0), registers.msr(CR0_FIXED1)),
            cr4: (registers.msr(CR4_FIXED0), registers.msr(CR4_FIXED1)),
            timer_shift: low32(registers.msr(MISC)) & 0x1f,
            ..Self::default()
        };
        found.with_tables(|| registers.msr(EPT_VPID), registers.msr(MISC))
    }

    /// What the processor has of nested tables; the register that tells it exists with either of the two controls.
    fn with_tables(self, told: impl FnOnce() -> u64, misc: u64) -> Result<Self, Lack> {
        use super::intercept::Secondary;
        const EPT_PARTS: u64 = Capabilities::FOUR_LEVELS
            | Capabilities::WRITE_BACK
            | Capabilities::LARGE_PAGES
            | Capabilities::INVEPT;
        /// Exits store EFER.LMA in the entry controls: so it is wherever there is unrestricted guest (appendix A.6).
        const STORES_LMA: u64 = 1 << 5;
        let has = |control: Secondary| self.secondary.may & control.bits() != 0;
        if !has(Secondary::EPT) {
            return Err(Lack::Ept);
        }
        if !has(Secondary::UNRESTRICTED_GUEST) || misc & STORES_LMA == 0 {
            return Err(Lack::UnrestrictedGuest);
        }
        if !has(Secondary::VPID) {
            return Err(Lack::Vpid);
        }
        let told = told();
        if told & EPT_PARTS != EPT_PARTS || told & (Self::INVEPT_ONE | Self::INVEPT_ALL) == 0 {
            return Err(Lack::EptParts);
        }
        if told & Self::INVVPID == 0 || told & (Self::INVVPID_ONE | Self::INVVPID_ALL) == 0 {
            return Err(Lack::VpidParts);
        }
        Ok(Self {
            flushes_one_vpid: told & Self::INVVPID_ONE != 0,
            flushes_one_ept: told & Self::INVEPT_ONE != 0,
            ..self
        })
    }

    /// CR0 as VMX operation wants it of the host (SDM vol. 3C, 24.8).
    pub const fn host_cr0(&self, now: Cr0) -> Cr0 {
        Cr0::from_bits_retain((now.bits() | self.cr0.0) & self.cr0.1)
    }

    /// CR4 likewise.
    pub const fn host_cr4(&self, now: Cr4) -> Cr4 {
        Cr4::from_bits_retain((now.bits() | self.cr4.0) & self.cr4.1)
    }

    /// CR0 bits that a guest's must have: with unrestricted guest, neither protection nor paging (24.8).
    pub const fn guest_cr0(&self) -> Cr0 {
        Cr0::from_bits_retain(self.cr0.0).difference(Cr0::PE.union(Cr0::PG))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cpuid::Leaf;

    /// A processor that has everything, as an emulated Skylake tells it.
    pub(crate) const SKYLAKE: &[(u32, u64)] = &[
        (0x3a, 5),
        (0x480, 0x00d8_1000_0000_002b),
        (0x485, 0x6004_01e0),
        (0x486, 0x8000_0021),
        (0x487, 0xffff_ffff),
        (0x488, 0x2000),
        (0x489, 0x0037_27ff),
        (0x48b, 0x0217_7fff_0000_0000),
        (0x48c, 0x0000_0f01_0633_4141),
        (0x48d, 0x0000_007f_0000_0016),
        (0x48e, 0xf7f9_fffe_0400_6172),
        (0x48f, 0x007f_ffff_0003_6dfb),
        (0x490, 0x0000_ffff_0000_11fb),
    ];

    pub(crate) struct Registers(pub(crate) Vec<(u32, u64)>);

    impl Registers {
        fn but(changed: &[(u32, u64)]) -> Self {
            let pick = |(msr, value): &(u32, u64)| {
                (*msr, changed.iter().find(|(other, _)| other == msr).map_or(*value, |(_, value)| *value))
            };
            Self(SKYLAKE.iter().map(pick).collect())
        }
    }

    impl MsrSource for Registers {
        fn msr(&self, msr: u32) -> u64 {
            self.0.iter().find(|(number, _)| *number == msr).expect("a register that exists").1
        }
    }

    pub(crate) struct Vmx(pub(crate) bool);

    impl CpuidSource for Vmx {
        fn leaf(&self, _: u32, _: u32) -> Leaf {
            Leaf { ecx: if self.0 { 1 << 5 } else { 0 }, ..Leaf::default() }
        }
    }

    pub(crate) fn skylake() -> Capabilities {
        Capabilities::detect(&Vmx(true), &Registers(SKYLAKE.to_vec())).unwrap()
    }

    #[test]
    fn a_processor_that_has_everything_is_taken() {
        let found = skylake();
        assert_eq!((found.revision, found.timer_shift), (0x2b, 0));
        assert_eq!(found.pin, Allowed { must: 0x16, may: 0x7f });
        assert!(found.flushes_one_vpid && found.flushes_one_ept);
        assert_eq!(found.guest_cr0(), Cr0::NE);
        assert_eq!(found.host_cr4(Cr4::PAE), Cr4::PAE | Cr4::from_bits_retain(0x2000));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (msr, value, want) in [
            (0x3a, 1, Lack::Enabled),
            (0x480, 0x0058_1000_0000_002b, Lack::TrueControls),
            (0x48e, 0x77f9_fffe_0400_6172, Lack::SecondaryControls),
            (0x48b, 0x0217_7ffd_0000_0000, Lack::Ept),
            (0x48b, 0x0217_7f7f_0000_0000, Lack::UnrestrictedGuest),
            (0x485, 0x6004_01c0, Lack::UnrestrictedGuest),
            (0x48b, 0x0217_7fdf_0000_0000, Lack::Vpid),
            (0x48c, 0x0000_0f01_0632_4141, Lack::EptParts),
            (0x48c, 0x0000_0f01_0633_0141, Lack::EptParts),
            (0x48c, 0x0000_0f00_0633_4141, Lack::VpidParts),
        ] {
            let found = Capabilities::detect(&Vmx(true), &Registers::but(&[(msr, value)]));
            assert_eq!(found, Err(want), "{msr:#x}");
        }
        assert_eq!(Capabilities::detect(&Vmx(false), &Registers(Vec::new())), Err(Lack::Vmx));
    }

    #[test]
    fn a_processor_that_can_trace_itself_is_told_from_others() {
        struct Leaves(u32, u32);
        impl CpuidSource for Leaves {
            fn leaf(&self, leaf: u32, _: u32) -> Leaf {
                match leaf {
                    0 => Leaf { eax: self.0, ..Leaf::default() },
                    // What lies behind the last leaf is that leaf again.
                    _ => Leaf { ebx: self.1, ..Leaf::default() },
                }
            }
        }
        assert!(has_trace(&Leaves(7, 1 << 25)));
        assert!(!has_trace(&Leaves(7, !(1 << 25))));
        assert!(!has_trace(&Leaves(6, u32::MAX)));
    }

    #[test]
    fn firmware_that_left_the_lock_open_is_no_lack() {
        assert!(Capabilities::detect(&Vmx(true), &Registers::but(&[(0x3a, 0)])).is_ok());
    }

    #[test]
    fn controls_become_what_must_be_and_what_may_be() {
        let allowed = Allowed { must: 0b0011, may: 0b0111 };
        assert_eq!(allowed.adjust(0b0100, 0b1000), Ok(0b0111));
        assert_eq!(allowed.adjust(0, 0b0100), Ok(0b0111));
        assert_eq!(allowed.adjust(0b1100, 0), Err(0b1000));
    }
}
