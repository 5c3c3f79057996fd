//! Stage 3: copies the core and the manifest to where no device can write, hashes the copies, and extends them.
//!
//! Every active bank of PCR 17 and 18 is compared with what it must hold before the first extend (so that this
//! launch is the one that the processor measured) and after each of them.

use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::check::Passed;
use dolmen_drtm::handoff::{CoreHeader, MAX_BANKS};
use dolmen_drtm::log::{CORE_EVENT, LAUNCH_EVENT, LogWriter, MANIFEST_EVENT};
use dolmen_drtm::{Algorithm, BankSet, DigestSet};
use dolmen_machine::cpu;
use dolmen_machine::launch::{ShieldedRegion, Staged};
use dolmen_machine::tpm_mmio::TisRegisters;
use dolmen_tpm::TpmError;
use dolmen_tpm::codec::DecodeError;
use dolmen_tpm::command::{Digest, PcrIndex};
use dolmen_tpm::measure::{extend_all as extend_banks, is_pcr, read_banks};
use dolmen_tpm::tis::{Locality, Tis};
use zerocopy::FromBytes;

use crate::console::Line;
use crate::reason::{Reason, Stopped};
use crate::stop::stop;
use crate::shield::{Iommus, Shielded};

/// Bytes that the event log may grow to.
pub(crate) const LOG_CAPACITY: u64 = 0x8000;
pub(crate) const PAGE: u64 = 0x1000;

/// Core and manifest are in the region as they were measured.
pub(crate) struct Measured {
    pub(crate) passed: Passed<'static>,
    pub(crate) region: ShieldedRegion,
    pub(crate) iommus: Iommus,
    pub(crate) core: Core,
    pub(crate) manifest: &'static [u8],
    /// All that the event log may fill, and how much it does.
    pub(crate) log: &'static [u8],
    pub(crate) logged: usize,
    /// What PCR 17 and 18 hold.
    pub(crate) pcrs: [DigestSet; 2],
    /// Time-stamp counter at the beginning, when DMA was closed, and now.
    pub(crate) tsc: [u64; 3],
}

/// The core as it will run.
pub(crate) struct Core {
    pub(crate) header: &'static CoreHeader,
    pub(crate) file: &'static [u8],
}

/// The TPM, and what PCR 17 and 18 hold.
struct Meter {
    tpm: Tis<TisRegisters>,
    pcrs: [DigestSet; 2],
}

/// Measures the core and the manifest.
#[inline(never)]
pub(crate) fn extend_all(shielded: Shielded) -> Result<Measured, Stopped> {
    let Shielded { staged, passed, mut region, measured, iommus, tpm, tsc: [began, shielded_at] } = shielded;
    let (core, manifest) = copy(&staged, &mut region)?;
    let log = region.take(LOG_CAPACITY).ok_or(Reason::Region)?;
    let mut tpm = Tis::new(tpm, Locality::Two);
    tpm.claim()?;
    let banks = choose_banks(&mut tpm)?;
    let mut meter = Meter { tpm, pcrs: [DigestSet::zero(&banks); 2] };
    let mut writer = LogWriter::begin(log, &banks).map_err(|_| Reason::Region)?;
    for (pcr, event, bytes) in [
        (PCR_CODE, LAUNCH_EVENT, measured),
        (PCR_CODE, CORE_EVENT, core.file),
        (PCR_CONFIGURATION, MANIFEST_EVENT, manifest),
    ] {
        let digests = DigestSet::of(&banks, bytes);
        // The first event is the processor's: it has measured and extended already.
        if event == LAUNCH_EVENT { meter.confirm_launch(&digests)? } else { meter.extend(pcr, &digests)? }
        writer.append(pcr, &digests, event).map_err(|_| Reason::Region)?;
    }
    let logged = writer.len();
    meter.tpm.relinquish()?;
    meter.report();
    let (pcrs, tsc) = (meter.pcrs, [began, shielded_at, cpu::read_tsc()]);
    Ok(Measured { passed, region, iommus, core, manifest, log, logged, pcrs, tsc })
}

/// The banks that must be extended.
#[inline(never)]
fn choose_banks(tpm: &mut Tis<TisRegisters>) -> Result<BankSet, Stopped> {
    let shown = read_banks(tpm)?;
    Ok(BankSet::select(shown.active().map(|bank| (bank.algorithm, bank.pcrs)))?)
}

impl Meter {
    /// PCR 17 and 18 in every bank are what the processor leaves when it launches this image, and nothing else.
    fn confirm_launch(&mut self, image: &DigestSet) -> Result<(), Stopped> {
        let [code, _] = &mut self.pcrs;
        code.extend(image);
        self.check(PCR_CODE)?;
        self.check(PCR_CONFIGURATION)?;
        let banks = image.banks().list().len();
        Line::new("measure: launch confirmed banks=").number(u64::try_from(banks).unwrap_or(0)).end();
        Ok(())
    }

    /// Extends one PCR in every active bank, in one command, and reads it back.
    #[inline(never)]
    fn extend(&mut self, pcr: u8, digests: &DigestSet) -> Result<(), Stopped> {
        extend(&mut self.tpm, pcr, &|index| {
            let (algorithm, bytes) = digests.iter().nth(index)?;
            Digest::new(algorithm, bytes)
        })?;
        let [code, configuration] = &mut self.pcrs;
        if pcr == PCR_CODE { code.extend(digests) } else { configuration.extend(digests) }
        self.check(pcr)
    }

    /// Compares a PCR with what it must hold, in every bank that can be computed.
    #[inline(never)]
    fn check(&mut self, pcr: u8) -> Result<(), Stopped> {
        let index = PcrIndex::new(pcr).ok_or(Reason::Defect)?;
        let [code, configuration] = &self.pcrs;
        let expected = if pcr == PCR_CODE { code } else { configuration };
        for (algorithm, want) in expected.measured() {
            if !is_pcr(&mut self.tpm, algorithm.id(), index, want)? {
                stop(&Reason::Pcr(pcr, algorithm.id()));
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn report(&self) {
        for (pcr, value) in [PCR_CODE, PCR_CONFIGURATION].into_iter().zip(&self.pcrs) {
            let value = value.get(Algorithm::Sha256).unwrap_or(&[]);
            Line::new("measure: pcr").number(pcr.into()).text(" sha256=").bytes(value).end();
        }
    }
}

/// TPM2_PCR_Extend with the digests that `digest` gives, of which there must be one.
pub(crate) fn extend<'a>(
    tpm: &mut Tis<TisRegisters>,
    pcr: u8,
    digest: &dyn Fn(usize) -> Option<Digest<'a>>,
) -> Result<(), TpmError> {
    let wrong = TpmError::Decode(DecodeError::Value(u32::from(pcr)));
    let mut list = [digest(0).ok_or(wrong)?; MAX_BANKS];
    let mut count = 0usize;
    while let (Some(slot), Some(digest)) = (list.get_mut(count), digest(count)) {
        *slot = digest;
        count = count.saturating_add(1);
    }
    extend_banks(tpm, PcrIndex::new(pcr).ok_or(wrong)?, list.get(..count).unwrap_or(&[]))
}

/// Copies core and manifest in, and checks the copy's header.
#[inline(never)]
fn copy(staged: &Staged, region: &mut ShieldedRegion) -> Result<(Core, &'static [u8]), Stopped> {
    let length = staged.core_bytes();
    let file = region.take(length).ok_or(Reason::Region)?;
    staged.copy_core(file);
    let file: &[u8] = file;
    let (header, _) = CoreHeader::ref_from_prefix(file).map_err(|_| Reason::Core)?;
    let is_core = header.magic == CoreHeader::MAGIC
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
    staged.copy_manifest(manifest);
    // What follows begins at a page again.
    region.take(length.wrapping_neg() % PAGE).ok_or(Reason::Region)?.fill(0);
    Ok((Core { header, file }, manifest))
}
