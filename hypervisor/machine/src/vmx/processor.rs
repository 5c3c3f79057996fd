//! One processor of the host, and which virtual processor it holds.
#![expect(unsafe_code, reason = "INVEPT and INVVPID")]
// UNSAFETY: both only drop cached translations; they exist where `Capabilities::detect` found them.

use core::arch::asm;

use dolmen_arch::msr::PAT_RESET;
use dolmen_arch::vmx::field::{enclave, host, timer};
use dolmen_memory::{Hfn, Hpa};

use super::frame::HostFields;
use super::switch;
use super::vcpu::{Place, Vmx};
use crate::cpu;
use crate::cpus::{self, CpuId};
use crate::extension::HostCpu;
use crate::segments::{self, HostSegments};

/// A processor in VMX root operation.
#[derive(Debug)]
pub struct VmxCpu {
    id: CpuId,
    segments: HostSegments,
    /// Whose state the registers hold that no control structure switches.
    resident: Option<Hpa>,
}

impl VmxCpu {
    /// The processor that executes this.
    pub(super) fn new() -> Self {
        let id = cpus::this();
        Self { id, segments: segments::host(id), resident: None }
    }

    /// The host's half of a control structure (SDM vol. 3C, 25.5).
    fn describe(&self, fields: &mut HostFields) {
        let own = &self.segments;
        fields.set(host::CR0, cpu::read_cr0());
        fields.set(host::CR3, cpu::read_cr3());
        fields.set(host::CR4, cpu::read_cr4());
        fields.set(host::EFER, cpu::read_efer());
        fields.set(host::PAT, PAT_RESET);
        fields.set(host::CS_SELECTOR, own.code);
        for selector in [host::SS_SELECTOR, host::DS_SELECTOR, host::ES_SELECTOR] {
            fields.set(selector, own.data);
        }
        fields.set(host::FS_SELECTOR, 0);
        fields.set(host::GS_SELECTOR, 0);
        fields.set(host::TR_SELECTOR, own.task);
        fields.set(host::FS_BASE, 0);
        fields.set(host::GS_BASE, own.block);
        fields.set(host::TR_BASE, own.task_base);
        fields.set(host::GDTR_BASE, own.gdt_base);
        fields.set(host::IDTR_BASE, own.idt_base);
        fields.set(host::SYSENTER_CS, 0);
        fields.set(host::SYSENTER_ESP, 0);
        fields.set(host::SYSENTER_EIP, 0);
        fields.set(host::RIP, switch::exit_address());
    }
}

impl HostCpu for VmxCpu {
    type Vcpu = Vmx;

    fn load(&mut self, vmx: &mut Vmx) {
        let whose = vmx.identity();
        let was_here = vmx.ran_on() == Some(self.id);
        let still_there = was_here && self.resident == Some(whose);
        vmx.extended.load(still_there);
        vmx.resident.load(still_there);
        self.resident = Some(whose);
        let (period, hides_enclaves) = (vmx.period(), vmx.hides_enclaves());
        vmx.vmcs.load(|fields| {
            self.describe(fields);
            if let Some(period) = period {
                fields.set(timer::VALUE, period);
            }
            if hides_enclaves {
                fields.set(enclave::ENCLS_EXITS, u64::MAX);
            }
        });
        if !was_here {
            // It may have been here before, and have changed its tables elsewhere.
            vmx.flush_translations();
        }
        vmx.settle(Place { cpu: self.id });
    }

    fn save(&mut self, vmx: &mut Vmx) {
        vmx.extended.save();
        vmx.resident.save();
        vmx.vmcs.save();
        vmx.leave();
    }
}

/// The pointer to nested tables of four levels in write-back memory, without accessed and dirty flags (table 25-9).
pub(super) const fn ept_pointer(root: Hfn) -> u64 {
    const WRITE_BACK: u64 = 6;
    const FOUR_LEVELS: u64 = 3 << 3;
    root.base().get() | WRITE_BACK | FOUR_LEVELS
}

const ONE: u64 = 1;
const ALL: u64 = 2;

/// Drops everything that was cached for any guest; whether the processor does so.
pub(super) fn invalidate_all() -> bool {
    invvpid(ALL, 0) && invept(ALL, 0)
}

/// Drops what is cached under one identifier, or more where the processor cannot do less.
pub(super) fn invalidate_vpid(vpid: u16, only_one: bool) -> bool {
    invvpid(if only_one { ONE } else { ALL }, vpid.into())
}

/// Drops what is cached of one guest's nested tables, or more where the processor cannot do less.
pub(super) fn invalidate_ept(pointer: u64, only_one: bool) -> bool {
    invept(if only_one { ONE } else { ALL }, pointer)
}

fn invvpid(kind: u64, vpid: u64) -> bool {
    let descriptor = [vpid, 0u64];
    let failed: u8;
    // SAFETY: VMX is on; the descriptor is 16 bytes, its reserved bits zero.
    unsafe {
        asm!("invvpid {kind}, [{at}]", "setna {failed}", kind = in(reg) kind, at = in(reg) &raw const descriptor,
             failed = out(reg_byte) failed, options(nostack));
    }
    failed == 0
}

fn invept(kind: u64, pointer: u64) -> bool {
    let descriptor = [pointer, 0u64];
    let failed: u8;
    // SAFETY: as above.
    unsafe {
        asm!("invept {kind}, [{at}]", "setna {failed}", kind = in(reg) kind, at = in(reg) &raw const descriptor,
             failed = out(reg_byte) failed, options(nostack));
    }
    failed == 0
}
