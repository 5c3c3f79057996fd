//! What a guest must not find, whoever made the processor: SVM, SKINIT, VMX, SMX, the TPM, the IOMMU.

use crate::fault::{GP, UD};
use crate::{Test, Verdict, attempt, call, check, cpu};

pub(crate) const TESTS: &[Test] = &[
    ("cpuid_hides_svm_and_skinit", cpuid_hides_svm),
    ("svm_instructions_are_absent", svm_instructions),
    ("cpuid_hides_vmx_and_smx", cpuid_hides_vmx),
    ("vmx_and_smx_instructions_are_absent", vmx_instructions),
    ("the_other_makers_hypercall_is_absent", other_call),
    ("processor_trace_is_absent", processor_trace),
    ("registers_that_no_apic_has_are_absent", apic_holes),
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

fn cpuid_hides_vmx() -> Verdict {
    let features = cpu::cpuid(1, 0).ecx;
    check(features & 1 << 5 == 0, "VMX shows")?;
    check(features & 1 << 6 == 0, "SMX shows")
}

fn vmx_instructions() -> Verdict {
    let absent = |fault: Option<crate::fault::Fault>, why| check(fault.is_some_and(|f| f.is(UD)), why);
    let place = [0u64; 2];
    let at = &raw const place;
    absent(attempt!("vmxon [{at}]", at = in(reg) at), "vmxon is not #UD")?;
    absent(attempt!("vmxoff"), "vmxoff is not #UD")?;
    absent(attempt!("vmclear [{at}]", at = in(reg) at), "vmclear is not #UD")?;
    absent(attempt!("vmptrld [{at}]", at = in(reg) at), "vmptrld is not #UD")?;
    absent(attempt!("vmlaunch"), "vmlaunch is not #UD")?;
    absent(attempt!("vmresume"), "vmresume is not #UD")?;
    absent(attempt!("vmread rax, rcx", in("rcx") 0x4400, out("rax") _), "vmread is not #UD")?;
    absent(attempt!("vmwrite rcx, rax", in("rcx") 0x681e, in("rax") 0), "vmwrite is not #UD")?;
    absent(attempt!("invept rax, [{at}]", at = in(reg) at, in("rax") 2), "invept is not #UD")?;
    absent(attempt!("invvpid rax, [{at}]", at = in(reg) at, in("rax") 2), "invvpid is not #UD")?;
    absent(attempt!(".byte 0x0f, 0x01, 0xd4", in("eax") 0, in("ecx") 0), "vmfunc is not #UD")?;
    absent(attempt!(".byte 0x0f, 0x37", in("eax") 0), "getsec is not #UD")
}

fn other_call() -> Verdict {
    let fault = if call::is_intel() { attempt!("vmmcall") } else { attempt!("vmcall") };
    check(fault.is_some_and(|fault| fault.is(UD)), "not #UD")
}

fn processor_trace() -> Verdict {
    for register in [0x560, 0x561, 0x570, 0x571, 0x572, 0x580, 0x587] {
        check(cpu::read_msr(register).is_err_and(|fault| fault.is(GP)), "a read is answered")?;
        check(cpu::write_msr(register, 0).is_err_and(|fault| fault.is(GP)), "a write is taken")?;
    }
    Ok(())
}

fn apic_holes() -> Verdict {
    for register in [0x800, 0x801, 0x804, 0x840, 0x8ff] {
        check(cpu::read_msr(register).is_err_and(|fault| fault.is(GP)), "a read is answered")?;
        check(cpu::write_msr(register, 0).is_err_and(|fault| fault.is(GP)), "a write is taken")?;
    }
    Ok(())
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
