//! Why the processor refuses an entry, in words (SDM vol. 3C, 27.2 and 27.3): asked before the first entry of a state
//! that the hypervisor itself has made, and after an entry that was refused.
//!
//! The checks are those of state that guests or this hypervisor can bring about; what no path of ours can make wrong
//! (host state, addresses of our own frames) is left to the processor.

use core::fmt;

use super::capability::Capabilities;
use super::field::{Bits32, Field, guest};
use super::intercept::{Entry, Secondary};
use super::state::{Fields, UNUSABLE};
use crate::msr::is_valid_pat;
use crate::register::{Cr0, Cr4, Efer, Rflags};

/// What is wrong with the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Controls that this processor does not take.
    Controls,
    /// CR0 has bits that VMX operation does not allow, or paging without protection.
    Cr0(u64),
    /// CR4 has bits that this processor or VMX operation does not allow.
    Cr4(u64),
    /// EFER disagrees with the entry control, or LMA with LME.
    Efer(u64),
    /// Long mode without paging or without PAE; or process identifiers outside of it.
    LongMode,
    /// The page attribute table names a type that does not exist.
    Pat(u64),
    /// The upper half of DR7 is not zero.
    Dr7(u64),
    /// RFLAGS: a fixed bit is wrong, or virtual-8086 mode in long mode.
    Rflags(u64),
    /// RIP is too long for the code segment.
    Rip(u64),
    /// The code segment is none.
    Code(u32),
    /// A segment's limit disagrees with its granularity, or reserved bits of its rights are set.
    Segment(&'static str, u32),
    /// The task register is unusable or no busy task.
    Task(u32),
    /// STI's and MOV SS's shadow at once, or STI's with interrupts off.
    Shadow(u32),
    /// An event that cannot be delivered in this state.
    Injection(u32),
    /// The link pointer is not that of a structure without a shadow.
    LinkPointer,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Controls => f.write_str("a control has a value that this processor does not take"),
            Self::Cr0(value) => {
                write!(f, "CR0={value:#x}: fixed bits are wrong, or paging without protection")
            }
            Self::Cr4(value) => write!(f, "CR4={value:#x}: bits that this processor does not have"),
            Self::Efer(value) => {
                write!(f, "EFER={value:#x}: LMA disagrees with LME or with the entry control")
            }
            Self::LongMode => f.write_str("long mode without paging or PAE, or PCIDs outside of it"),
            Self::Pat(value) => write!(f, "PAT={value:#x}: a memory type that does not exist"),
            Self::Dr7(value) => write!(f, "DR7={value:#x}: its upper half is not zero"),
            Self::Rflags(value) => write!(f, "RFLAGS={value:#x}: a fixed bit is wrong, or VM in long mode"),
            Self::Rip(value) => write!(f, "RIP={value:#x}: too long for its code segment"),
            Self::Code(rights) => write!(f, "CS rights={rights:#x}: no code segment"),
            Self::Segment(name, rights) => write!(f, "{name} rights={rights:#x}: disagree with its limit"),
            Self::Task(rights) => write!(f, "TR rights={rights:#x}: no busy task"),
            Self::Shadow(value) => {
                write!(f, "interruptibility={value:#x}: impossible together, or with IF clear")
            }
            Self::Injection(value) => write!(f, "injection={value:#x}: not in this state"),
            Self::LinkPointer => f.write_str("the link pointer is set"),
        }
    }
}

/// Looks for what the processor would refuse; the first thing found.
///
/// # Errors
/// [`Refusal`].
pub fn explain(fields: &impl Fields, capabilities: &Capabilities) -> Result<(), Refusal> {
    controls(fields, capabilities)?;
    control_registers(fields, capabilities)?;
    registers(fields)?;
    segments(fields)?;
    events(fields)
}

fn ensure(holds: bool, refusal: Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(refusal) }
}

/// 27.2.1.
fn controls(fields: &impl Fields, capabilities: &Capabilities) -> Result<(), Refusal> {
    for (field, allowed) in [
        (guest::PIN_CONTROLS, capabilities.pin),
        (guest::PRIMARY_CONTROLS, capabilities.primary),
        (guest::SECONDARY_CONTROLS, capabilities.secondary),
        (guest::EXIT_CONTROLS, capabilities.exit),
        (guest::ENTRY_CONTROLS, capabilities.entry),
    ] {
        let value = fields.read(field);
        ensure(value & allowed.must == allowed.must && value & !allowed.may == 0, Refusal::Controls)?;
    }
    ensure(fields.read(guest::LINK_POINTER) == u64::MAX, Refusal::LinkPointer)
}

/// 27.3.1.1.
fn control_registers(fields: &impl Fields, capabilities: &Capabilities) -> Result<(), Refusal> {
    let cr0 = Cr0::from_bits_retain(fields.read(guest::CR0));
    let secondary = Secondary::from_bits_retain(fields.read(guest::SECONDARY_CONTROLS));
    let wanted = if secondary.contains(Secondary::UNRESTRICTED_GUEST) {
        capabilities.guest_cr0()
    } else {
        cr0.union(Cr0::PE)
    };
    // CD and NW are not checked against the fixed bits, but NW wants CD.
    let is_allowed = cr0.bits() & !capabilities.cr0.1 == 0 && cr0.contains(wanted) && cr0.is_valid();
    ensure(is_allowed, Refusal::Cr0(cr0.bits()))?;
    let cr4 = Cr4::from_bits_retain(fields.read(guest::CR4));
    let (must, may) = capabilities.cr4;
    ensure(cr4.bits() & must == must && cr4.bits() & !may == 0, Refusal::Cr4(cr4.bits()))?;
    let is_long = fields.read(guest::ENTRY_CONTROLS) & Entry::LONG.bits() != 0;
    let is_complete = cr0.contains(Cr0::PG) && cr4.contains(Cr4::PAE);
    ensure(if is_long { is_complete } else { !cr4.contains(Cr4::PCIDE) }, Refusal::LongMode)?;
    let efer = Efer::from_bits_retain(fields.read(guest::EFER));
    let is_active = efer.contains(Efer::LMA);
    let agrees = is_active == is_long && (!cr0.contains(Cr0::PG) || is_active == efer.contains(Efer::LME));
    ensure(agrees, Refusal::Efer(efer.bits()))?;
    ensure(is_valid_pat(fields.read(guest::PAT)), Refusal::Pat(fields.read(guest::PAT)))
}

/// 27.3.1.1 and 27.3.1.4.
fn registers(fields: &impl Fields) -> Result<(), Refusal> {
    const RESERVED: u64 = !0x3f_7fd7;
    const LONG_CODE: u32 = 1 << 13;
    let dr7 = fields.read(guest::DR7);
    ensure(dr7 >> 32 == 0, Refusal::Dr7(dr7))?;
    let is_long = fields.read(guest::ENTRY_CONTROLS) & Entry::LONG.bits() != 0;
    let flags = Rflags::from_bits_retain(fields.read(guest::RFLAGS));
    let is_virtual = flags.contains(Rflags::VM);
    let is_protected = fields.read(guest::CR0) & Cr0::PE.bits() != 0;
    let is_sound = flags.bits() & RESERVED == 0
        && flags.contains(Rflags::FIXED)
        && !(is_virtual && (is_long || !is_protected));
    ensure(is_sound, Refusal::Rflags(flags.bits()))?;
    let is_long_code = is_long && fields.read(guest::CS_RIGHTS) & LONG_CODE != 0;
    let rip = fields.read(guest::RIP);
    ensure(is_long_code || rip >> 32 == 0, Refusal::Rip(rip))
}

/// 27.3.1.2.
fn segments(fields: &impl Fields) -> Result<(), Refusal> {
    const CODE_OR_DATA: u32 = 1 << 4;
    const ACCESSED: u32 = 1;
    const BUSY_TASK: [u32; 2] = [3, 11];
    if fields.read(guest::RFLAGS) & Rflags::VM.bits() != 0 {
        return Ok(());
    }
    let code = fields.read(guest::CS_RIGHTS);
    ensure(code & (UNUSABLE | CODE_OR_DATA | ACCESSED) == CODE_OR_DATA | ACCESSED, Refusal::Code(code))?;
    for (name, rights, limit) in [
        ("CS", guest::CS_RIGHTS, guest::CS_LIMIT),
        ("SS", guest::SS_RIGHTS, guest::SS_LIMIT),
        ("DS", guest::DS_RIGHTS, guest::DS_LIMIT),
        ("ES", guest::ES_RIGHTS, guest::ES_LIMIT),
        ("FS", guest::FS_RIGHTS, guest::FS_LIMIT),
        ("GS", guest::GS_RIGHTS, guest::GS_LIMIT),
        ("LDTR", guest::LDTR_RIGHTS, guest::LDTR_LIMIT),
    ] {
        granularity(fields, name, rights, limit)?;
    }
    granularity(fields, "TR", guest::TR_RIGHTS, guest::TR_LIMIT)?;
    let task = fields.read(guest::TR_RIGHTS);
    ensure(task & UNUSABLE == 0 && BUSY_TASK.contains(&(task & 0x1f)), Refusal::Task(task))
}

fn granularity(
    fields: &impl Fields,
    name: &'static str,
    rights: Field<Bits32>,
    limit: Field<Bits32>,
) -> Result<(), Refusal> {
    const GRANULAR: u32 = 1 << 15;
    const PRESENT: u32 = 1 << 7;
    const RESERVED: u32 = !(0xf0ff | UNUSABLE);
    let (rights, limit) = (fields.read(rights), fields.read(limit));
    if rights & UNUSABLE != 0 {
        return Ok(());
    }
    let fits = if rights & GRANULAR == 0 { limit >> 20 == 0 } else { limit & 0xfff == 0xfff };
    ensure(fits && rights & PRESENT != 0 && rights & RESERVED == 0, Refusal::Segment(name, rights))
}

/// 27.3.1.5 and 27.2.1.3.
fn events(fields: &impl Fields) -> Result<(), Refusal> {
    const STI: u32 = 1;
    const MOV_SS: u32 = 2;
    const VALID: u32 = 1 << 31;
    let shadow = fields.read(guest::INTERRUPTIBILITY);
    let takes_interrupts = fields.read(guest::RFLAGS) & Rflags::IF.bits() != 0;
    let is_possible = shadow & (STI | MOV_SS) != STI | MOV_SS && (shadow & STI == 0 || takes_interrupts);
    ensure(is_possible, Refusal::Shadow(shadow))?;
    let injection = fields.read(guest::ENTRY_INTERRUPTION);
    if injection & VALID == 0 {
        return Ok(());
    }
    let is_shadowed = shadow & (STI | MOV_SS) != 0;
    let is_due = match injection >> 8 & 7 {
        0 => takes_interrupts && !is_shadowed,
        2 => shadow & MOV_SS == 0,
        _ => true,
    };
    ensure(is_due, Refusal::Injection(injection))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Attributes, Segment, SegmentName};
    use crate::vmx::capability::tests::skylake;
    use crate::vmx::field::Width;
    use crate::vmx::{Controls, Image, reset_processor, set_segment, write_cr0, write_efer};

    fn good() -> Image {
        let capabilities = skylake();
        let controls = Controls::guest(&capabilities).unwrap();
        let mut fields = Image::ZEROES;
        fields.write(guest::PIN_CONTROLS, controls.pin.bits());
        fields.write(guest::PRIMARY_CONTROLS, controls.primary.bits());
        fields.write(guest::SECONDARY_CONTROLS, controls.secondary.bits());
        fields.write(guest::EXIT_CONTROLS, controls.exit.bits());
        fields.write(guest::ENTRY_CONTROLS, controls.entry.bits());
        reset_processor(&mut fields, capabilities.guest_cr0(), capabilities.cr4.0);
        fields
    }

    fn long() -> Image {
        let mut fields = good();
        write_cr0(&mut fields, Cr0::PE | Cr0::PG | Cr0::ET);
        fields.write(guest::CR4, 0x2020);
        write_efer(&mut fields, Efer::LME | Efer::LMA);
        set_segment(&mut fields, SegmentName::Cs, Segment::flat(8, Attributes::CODE64));
        fields
    }

    fn refused<W: Width>(mut fields: Image, field: Field<W>, value: W::Value) -> Result<(), Refusal> {
        fields.write(field, value);
        explain(&fields, &skylake())
    }

    #[test]
    fn states_that_processors_enter_are_not_complained_of() {
        assert_eq!(explain(&good(), &skylake()), Ok(()), "after reset");
        assert_eq!(explain(&long(), &skylake()), Ok(()), "64-bit mode");
    }

    #[test]
    fn each_thing_that_is_wrong_is_named() {
        use Refusal as R;
        for (found, want) in [
            (refused(good(), guest::PIN_CONTROLS, 0), R::Controls),
            (refused(good(), guest::LINK_POINTER, 0), R::LinkPointer),
            (refused(good(), guest::CR0, 0x10), R::Cr0(0x10)),
            (refused(good(), guest::CR0, 0x8000_0030), R::Cr0(0x8000_0030)),
            (refused(good(), guest::CR4, 0), R::Cr4(0)),
            (refused(good(), guest::CR4, 0x2_2000), R::LongMode),
            (refused(long(), guest::CR0, 0x31), R::LongMode),
            (refused(good(), guest::EFER, 0x400), R::Efer(0x400)),
            (refused(long(), guest::EFER, 0x400), R::Efer(0x400)),
            (refused(good(), guest::PAT, 2), R::Pat(2)),
            (refused(good(), guest::DR7, 1 << 32), R::Dr7(1 << 32)),
            (refused(good(), guest::RFLAGS, 0), R::Rflags(0)),
            (refused(long(), guest::RFLAGS, 0x2_0002), R::Rflags(0x2_0002)),
            (refused(good(), guest::RIP, 1 << 32), R::Rip(1 << 32)),
            (refused(good(), guest::CS_RIGHTS, UNUSABLE), R::Code(UNUSABLE)),
            (refused(good(), guest::DS_LIMIT, 0xffff_ffff), R::Segment("DS", 0x93)),
            (refused(good(), guest::TR_RIGHTS, 0x89), R::Task(0x89)),
            (refused(good(), guest::TR_RIGHTS, UNUSABLE), R::Task(UNUSABLE)),
            (refused(good(), guest::INTERRUPTIBILITY, 1), R::Shadow(1)),
            (refused(good(), guest::ENTRY_INTERRUPTION, 0x8000_0041), R::Injection(0x8000_0041)),
        ] {
            assert_eq!(found, Err(want));
        }
    }

    #[test]
    fn a_refusal_says_what_was_found() {
        assert_eq!(Refusal::Rip(0x1_0000_0000).to_string(), "RIP=0x100000000: too long for its code segment");
    }
}
