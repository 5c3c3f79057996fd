//! What is measured goes into PCR 18 and the event log; on the way out both dynamic PCRs are capped.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;

use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::handoff::MAX_BANKS;
use dolmen_drtm::log::LogWriter;
use dolmen_drtm::{BankSet, DigestSet};
use dolmen_machine::tpm_mmio::TisRegisters;
use dolmen_tpm::codec::DecodeError;
use dolmen_tpm::command::{Digest, PcrIndex};
use dolmen_tpm::tis::{Locality, Tis};
use dolmen_tpm::{TpmError, Transport, measure};
use dolmen_vm::manifest::EventName;

use crate::console::print;
use crate::host::Host;
use crate::measure::Hex;
use crate::stop::Reason;

/// The TPM at locality 2.
pub(crate) type Tpm = Tis<TisRegisters>;

/// The event log may grow to this many bytes: 96 components and 32 command lines in 8 banks need less.
const LOG_BYTES: usize = 0x1_0000;

/// The TPM, and what it holds of this launch.
pub(crate) struct Meter {
    pub(crate) tpm: Tpm,
    /// What PCR 17 holds.
    pub(crate) pcr17: DigestSet,
    /// What PCR 18 holds.
    pub(crate) pcr18: DigestSet,
}

/// The launch's event log, while events are added to it.
pub(crate) struct EventLog {
    bytes: Vec<u8>,
    length: usize,
}

impl EventLog {
    /// Goes on with what the launch image wrote.
    pub(crate) fn begin(host: &mut Host) -> Result<Self, Reason> {
        let mut bytes = vec![0; LOG_BYTES];
        let begun = host.machine.handoff().event_log;
        let begun = host.copy(begun)?;
        bytes.get_mut(..begun.len()).ok_or(Reason::OutOfMemory("the event log"))?.copy_from_slice(&begun);
        Ok(Self { bytes, length: begun.len() })
    }

    /// Extends PCR 18 and writes the event.
    pub(crate) fn record(
        &mut self,
        host: &mut Host,
        digests: &DigestSet,
        name: EventName<'_>,
    ) -> Result<(), Reason> {
        let full = |_| Reason::OutOfMemory("the event log");
        let mut data = Name::default();
        write!(data, "{name}").map_err(|_| Reason::OutOfMemory("an event's name"))?;
        extend(&mut host.meter.tpm, PCR_CONFIGURATION, digests)?;
        host.meter.pcr18 = host.meter.pcr18.extended(digests);
        let mut writer = LogWriter::resume(&mut self.bytes, self.length).map_err(full)?;
        writer.append(PCR_CONFIGURATION, digests, data.bytes()).map_err(full)?;
        self.length = writer.len();
        Ok(())
    }

    /// Checks that the PCRs hold what was recorded; gives the log.
    pub(crate) fn finish(mut self, host: &mut Host) -> Result<Vec<u8>, Reason> {
        check_pcrs(&mut host.meter)?;
        self.bytes.truncate(self.length);
        report(&host.meter);
        Ok(self.bytes)
    }
}

/// Extends one PCR in every active bank, in one command. Does not allocate: the way out uses it too.
fn extend(tpm: &mut impl Transport, pcr: u8, digests: &DigestSet) -> Result<(), TpmError> {
    let impossible = |value: u8| TpmError::Decode(DecodeError::Value(u32::from(value)));
    let index = PcrIndex::new(pcr).ok_or(impossible(pcr))?;
    let mut found = digests.iter().filter_map(|(algorithm, bytes)| Digest::new(algorithm, bytes));
    let first = found.next().ok_or(impossible(0))?;
    let mut list = [first; MAX_BANKS];
    let mut count = 1usize;
    for (slot, digest) in list.iter_mut().skip(1).zip(found) {
        *slot = digest;
        count = count.saturating_add(1);
    }
    measure::extend_all(tpm, index, list.get(..count).unwrap_or_default())
}

/// Checks that every computed bank of PCR 17 and 18 holds what was predicted.
fn check_pcrs(meter: &mut Meter) -> Result<(), Reason> {
    for (pcr, want) in [(PCR_CODE, meter.pcr17), (PCR_CONFIGURATION, meter.pcr18)] {
        let index = PcrIndex::new(pcr).ok_or(Reason::Pcr(pcr))?;
        for (algorithm, bytes) in want.measured() {
            let value = measure::read_pcr(&mut meter.tpm, algorithm.id(), index)?;
            if value.is_none_or(|value| value.bytes() != bytes) {
                return Err(Reason::Pcr(pcr));
            }
        }
    }
    Ok(())
}

fn report(meter: &Meter) {
    for (pcr, values) in [(PCR_CODE, &meter.pcr17), (PCR_CONFIGURATION, &meter.pcr18)] {
        if let Some(value) = values.get(dolmen_drtm::Algorithm::Sha256) {
            log::info!(target: "measure", "pcr{pcr} sha256={}", Hex(value));
        }
    }
}

/// What the way out caps the PCRs with: a TPM driver of its own, since the one in use may be in the middle of a command.
pub(crate) struct Cap {
    tpm: Tpm,
    banks: BankSet,
}

impl Cap {
    /// For these banks.
    pub(crate) const fn new(registers: TisRegisters, banks: BankSet) -> Self {
        Self { tpm: Tis::new(registers, Locality::Two), banks }
    }

    /// Caps PCR 17 and 18, and says how that went.
    pub(crate) fn put_on(&mut self) {
        match self.extend_all() {
            Ok(()) => print(format_args!("stop: memory wiped, PCR 17 and 18 capped\n")),
            Err(error) => print(format_args!(
                "stop: memory wiped, but PCR 17 and 18 are NOT capped: {error:?}; switch the machine off\n"
            )),
        }
    }

    /// Extends PCR 17 and 18 with the cap in every bank.
    fn extend_all(&mut self) -> Result<(), TpmError> {
        let Self { tpm, banks } = self;
        // Whatever command is in progress is not ours to finish.
        tpm.seize()?;
        tpm.relinquish()?;
        tpm.claim()?;
        let capped = DigestSet::capped(banks);
        extend(tpm, PCR_CODE, &capped)?;
        extend(tpm, PCR_CONFIGURATION, &capped)
    }
}

/// Event data while it is written.
#[derive(Default)]
struct Name(alloc::string::String);

impl Name {
    fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.try_reserve(text.len()).map_err(|_| core::fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}
