//! What a guest must not find: SVM, SKINIT, the TPM, the IOMMU.

use crate::fault::UD;
use crate::{Test, Verdict, attempt, check, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("cpuid_hides_svm_and_skinit", cpuid_hides_svm),
    ("svm_instructions_are_absent", svm_instructions),
    ("the_tpm_cannot_be_reached", tpm),
    ("the_iommu_cannot_be_reached", iommu),
    ("holes_read_as_ones_and_drop_writes", holes),
    ("code_in_a_hole_is_no_instruction", code_in_a_hole),
    ("the_manufacturers_other_pages_are_empty", other_pages),
];

fn cpuid_hides_svm() -> Verdict {
    let features = cpu::cpuid(0x8000_0001, 0).ecx;
    check(features & 1 << 2 == 0, "SVM shows")?;
    check(features & 1 << 12 == 0, "SKINIT shows")?;
    let leaf = cpu::cpuid(0x8000_000a, 0);
    check(leaf.eax | leaf.ebx | leaf.ecx | leaf.edx == 0, "the SVM leaf answers")?;
    check(cpu::cpuid(1, 0).ecx & 1 << 3 == 0, "MONITOR shows")
}

fn svm_instructions() -> Verdict {
    let absent = |fault: Option<crate::fault::Fault>, why| check(fault.is_some_and(|f| f.is(UD)), why);
    absent(attempt!("vmrun rax", in("rax") 0), "vmrun is not #UD")?;
    absent(attempt!("vmload rax", in("rax") 0), "vmload is not #UD")?;
    absent(attempt!("vmsave rax", in("rax") 0), "vmsave is not #UD")?;
    absent(attempt!("stgi"), "stgi is not #UD")?;
    absent(attempt!("clgi"), "clgi is not #UD")?;
    absent(attempt!("invlpga rax, ecx", in("rax") 0, in("ecx") 1), "invlpga is not #UD")?;
    absent(attempt!("skinit eax", in("eax") 0x10_0000), "skinit is not #UD")
}

/// A page that is not there: all ones, whatever is written.
fn is_empty(at: u64) -> bool {
    let before = cpu::read32(at);
    cpu::write32(at, 0);
    before == u32::MAX && cpu::read32(at) == u32::MAX
}

fn tpm() -> Verdict {
    for locality in 0..5 {
        check(is_empty(0xfed4_0000 + locality * 0x1000), "a locality answers")?;
    }
    check(is_empty(0xfed4_0f00), "the vendor's identity answers")
}

fn iommu() -> Verdict {
    check(is_empty(0xfed8_0000), "the device table's register answers")?;
    check(is_empty(0xfed8_0018), "the control register answers")?;
    check(is_empty(0xfed8_2000), "the second half answers")
}

fn holes() -> Verdict {
    check(is_empty(0xd000_0000), "the hole below 4 GiB answers")?;
    check(is_empty(0xfec0_1000), "the page behind the I/O APIC answers")?;
    check(is_empty(0xffff_f000), "the firmware's flash answers")
}

fn other_pages() -> Verdict {
    check(is_empty(0xfed0_0000), "a timer that no table names answers")?;
    check(is_empty(0xfed2_0000), "TXT's registers answer")
}

fn code_in_a_hole() -> Verdict {
    let fault = attempt!("jmp {value}", value = in(reg) 0xd000_0000u64);
    check(fault.is_some_and(|fault| fault.is(UD)), "not #UD")
}
