//! Stage 3: copies the core and the manifest to where no device can write, hashes the copies, and extends them.
//!
//! Every active bank of PCR 17 and 18 is compared with what it must hold before the first extend (so that this
//! launch is the one that the processor measured) and after each of them.

use dolmen_abi::LaunchFacts;
use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::check::Passed;
use dolmen_drtm::digest::MAX_DIGEST;
use dolmen_drtm::handoff::{Bank, CoreHandoff, CoreHeader, Extent, MAX_BANKS};
use dolmen_drtm::log::{CORE_EVENT, LAUNCH_EVENT, LogWriter, MANIFEST_EVENT};
use dolmen_drtm::{Algorithm, BankSet, DigestSet};
use dolmen_machine::cpu;
use dolmen_machine::launch::{ShieldedRegion, Staged, extent_of};
use dolmen_machine::tpm_mmio::TisRegisters;
use dolmen_tpm::TpmError;
use dolmen_tpm::codec::EncodeError;
use dolmen_tpm::command::{Digest, PcrIndex};
use dolmen_tpm::measure::{extend_each, is_pcr, read_banks};
use dolmen_tpm::tis::{Locality, Tis};
use zerocopy::FromBytes;

use crate::console::Line;
use crate::reason::{Reason, Stopped};
use crate::shield::{Iommus, Shielded};
use crate::stop::stop;

/// Bytes that the event log may grow to.
const LOG_CAPACITY: u64 = 0x8000;
/// Bytes kept for the hand-off.
const HANDOFF_BYTES: u64 = 2 * PAGE;
const _: () = assert!(size_of::<CoreHandoff>() <= 0x2000, "the hand-off fits");
const PAGE: u64 = 0x1000;

/// Core and manifest are in the region as they were measured, and the hand-off says so.
pub(crate) struct Measured {
    pub(crate) region: ShieldedRegion,
    /// The core's entry point, as an offset.
    pub(crate) entry: u32,
    pub(crate) handoff: &'static mut CoreHandoff,
}

/// The TPM, and what PCR 17 and 18 hold in each bank: the hand-off has it.
struct Meter {
    tpm: Tis<TisRegisters>,
    banks: BankSet,
    handoff: &'static mut CoreHandoff,
}

/// Measures the core and the manifest.
#[inline(never)]
pub(crate) fn extend_all(shielded: Shielded) -> Result<Measured, Stopped> {
    let Shielded { staged, passed, mut region, measured, iommus, tpm, tsc } = shielded;
    let (header, file, manifest) = copy(&staged, &mut region)?;
    let log = region.take(LOG_CAPACITY).ok_or(Reason::Region)?;
    let handoff = region.take(HANDOFF_BYTES).ok_or(Reason::Region)?;
    handoff.fill(0);
    let (handoff, _) = CoreHandoff::mut_from_prefix(handoff).map_err(|_| Reason::Defect)?;
    describe(handoff, &passed, &iommus);
    handoff.region = region.extent();
    handoff.core = Extent { base: handoff.region.base, length: header.memory_length };
    handoff.manifest = extent_of(manifest);
    handoff.event_log = extent_of(log);
    handoff.event_log_capacity = LOG_CAPACITY;
    let mut tpm = Tis::new(tpm, Locality::Two);
    tpm.claim()?;
    let banks = choose_banks(&mut tpm)?;
    handoff.bank_count = fill(&mut handoff.banks, banks.list());
    let mut meter = Meter { tpm, banks, handoff };
    let mut writer = LogWriter::begin(log, &banks).map_err(|_| Reason::Region)?;
    meter.event(&mut writer, PCR_CODE, LAUNCH_EVENT, measured)?;
    meter.event(&mut writer, PCR_CODE, CORE_EVENT, file)?;
    meter.event(&mut writer, PCR_CONFIGURATION, MANIFEST_EVENT, manifest)?;
    meter.report();
    let Meter { mut tpm, handoff, .. } = meter;
    tpm.relinquish()?;
    handoff.event_log.length = u64::try_from(writer.len()).map_err(|_| Reason::Defect)?;
    let facts = LaunchFacts::from_bits_retain(handoff.facts);
    if banks.has_capped() {
        handoff.facts = facts.union(LaunchFacts::BANKS_CAPPED).bits();
    }
    let [began, shielded_at] = tsc;
    handoff.tsc = [began, shielded_at, cpu::read_tsc(), 0];
    Ok(Measured { region, entry: header.entry, handoff })
}

/// Says what the stages before have found.
fn describe(handoff: &mut CoreHandoff, passed: &Passed<'_>, iommus: &Iommus) {
    handoff.slb = passed.slb();
    handoff.guest_pool = passed.guest_pool();
    handoff.rsdp = passed.rsdp();
    handoff.component_count = fill(&mut handoff.components, passed.components());
    handoff.memory_count = fill(&mut handoff.memory, passed.memory());
    handoff.cpu_count = fill(&mut handoff.apic_ids, passed.apic_ids());
    handoff.cpus_left_out = passed.cpus_left_out();
    handoff.iommu_count = iommus.count;
    handoff.iommus = iommus.list;
    // SMM runs from the first STGI on, and nothing isolates it.
    let mut facts = LaunchFacts::AMD_SKINIT | LaunchFacts::IOMMU_SHIELDED | LaunchFacts::SMM_NOT_ISOLATED;
    facts.set(LaunchFacts::SHIELD_RACE, iommus.has_race);
    facts.set(LaunchFacts::DEBUG, cfg!(debug_assertions));
    handoff.facts = facts.bits();
}

/// Copies to the start of an array of the hand-off; how many that were.
fn fill<T: Copy>(array: &mut [T], from: &[T]) -> u32 {
    let mut count = 0u32;
    for (slot, value) in array.iter_mut().zip(from) {
        *slot = *value;
        count = count.saturating_add(1);
    }
    count
}

/// The banks that must be extended.
#[inline(never)]
fn choose_banks(tpm: &mut Tis<TisRegisters>) -> Result<BankSet, Stopped> {
    let shown = read_banks(tpm)?;
    Ok(BankSet::select(shown.active().map(|bank| (bank.algorithm, bank.pcrs)))?)
}

impl Meter {
    /// Measures `bytes` into `pcr`, checks it, and logs it.
    #[inline(never)]
    fn event(&mut self, log: &mut LogWriter<'_>, pcr: u8, name: &[u8], bytes: &[u8]) -> Result<(), Stopped> {
        let digests = DigestSet::of(&self.banks, bytes);
        // The launch is the processor's event: it has measured and extended already, if this is that launch.
        let is_launch = name == LAUNCH_EVENT;
        if !is_launch {
            extend(&mut self.tpm, pcr, &digests)?;
        }
        let banks = self.banks;
        banks.extend(self.values(pcr), &digests);
        self.check(pcr)?;
        if is_launch {
            self.check(PCR_CONFIGURATION)?;
            let banks = self.handoff.bank_count;
            Line::new("measure: launch confirmed banks=").number(banks.into()).end();
        }
        Ok(log.append(pcr, &digests, name).map_err(|_| Reason::Region)?)
    }

    const fn values(&mut self, pcr: u8) -> &mut [[u8; MAX_DIGEST]; MAX_BANKS] {
        if pcr == PCR_CODE { &mut self.handoff.pcr17 } else { &mut self.handoff.pcr18 }
    }

    /// Compares a PCR with what it must hold, in every bank that can be computed.
    #[inline(never)]
    fn check(&mut self, pcr: u8) -> Result<(), Stopped> {
        let Self { tpm, banks, handoff } = self;
        let values = if pcr == PCR_CODE { &handoff.pcr17 } else { &handoff.pcr18 };
        let index = PcrIndex::new(pcr).ok_or(Reason::Defect)?;
        for (bank, value) in banks.list().iter().zip(values) {
            let want = value.get(..usize::from(bank.digest_size)).unwrap_or(&[]);
            if bank.measured != 0 && !is_pcr(tpm, bank.algorithm, index, want)? {
                stop(&Reason::Pcr(pcr, bank.algorithm));
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn report(&mut self) {
        for pcr in [PCR_CODE, PCR_CONFIGURATION] {
            let sha256 = |bank: &Bank| bank.algorithm == Algorithm::Sha256.id();
            let index = self.banks.list().iter().position(sha256).unwrap_or(0);
            let value = self.values(pcr).get(index).and_then(|value| value.get(..32)).unwrap_or(&[]);
            Line::new("measure: pcr").number(pcr.into()).text(" sha256=").bytes(value).end();
        }
    }
}

/// TPM2_PCR_Extend with the digests of every bank.
#[inline(never)]
pub(crate) fn extend(tpm: &mut Tis<TisRegisters>, pcr: u8, digests: &DigestSet) -> Result<(), TpmError> {
    let pcr = PcrIndex::new(pcr).ok_or(TpmError::Encode(EncodeError::TooLong))?;
    extend_each(tpm, pcr, digests.iter().filter_map(|(algorithm, bytes)| Digest::new(algorithm, bytes)))
}

/// Copies core and manifest in, and checks the copy's header; gives header, core and manifest.
#[inline(never)]
fn copy(
    staged: &Staged,
    region: &mut ShieldedRegion,
) -> Result<(&'static CoreHeader, &'static [u8], &'static [u8]), Stopped> {
    let length = staged.core_bytes();
    let file = region.take(length).ok_or(Reason::Region)?;
    let is_copied = staged.copy_core(file);
    let file: &[u8] = file;
    let (header, _) = CoreHeader::ref_from_prefix(file).map_err(|_| Reason::Core)?;
    let is_core = is_copied
        && header.magic == CoreHeader::MAGIC
        && header.version == CoreHeader::VERSION
        && header.file_length == length
        && u64::from(header.entry) < length
        && header.memory_length >= length
        && header.memory_length % PAGE == 0;
    if !is_core {
        stop(&Reason::Core);
    }
    region.take(header.memory_length.saturating_sub(length)).ok_or(Reason::Region)?.fill(0);
    let length = staged.manifest_bytes();
    let manifest = region.take(length).ok_or(Reason::Region)?;
    if !staged.copy_manifest(manifest) {
        stop(&Reason::Core);
    }
    // What follows begins at a page again.
    region.take(length.wrapping_neg() % PAGE).ok_or(Reason::Region)?.fill(0);
    Ok((header, file, manifest))
}
