//! Stage 3: every guest component, hashed where no device can write it, into PCR 18; then the TPM's keys.
//!
//! Promise: PCR 18 is extended for all guests before the first guest instruction, and never again until the
//! way out; what it holds afterwards is what was predicted, in every active bank.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;

use dolmen_drtm::DigestSet;
use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::handoff::{Extent, MAX_BANKS};
use dolmen_drtm::log::LogWriter;
use dolmen_drtm::stream::Hasher;
use dolmen_memory::Hpa;
use dolmen_tpm::codec::DecodeError;
use dolmen_tpm::command::{Digest, PcrIndex};
use dolmen_tpm::{TpmError, Transport, measure};
use dolmen_vm::manifest::{ComponentDigest, EventName, GuestConfig, Manifest, measure_guest};

use crate::host::Host;
use crate::shield::Shielded;
use crate::stop::Reason;
use crate::trust::{self, Trust};

/// The event log may grow to this many bytes: 96 components and 32 command lines in 8 banks need less.
const LOG_BYTES: usize = 0x1_0000;
/// Bytes that are hashed at a time.
const PIECE: usize = 0x1_0000;

/// One guest, known by what it is made of.
pub(crate) struct MeasuredGuest {
    pub(crate) config: GuestConfig,
    /// The guest's identity, G0.
    pub(crate) identity: [u8; 48],
    /// Its components as staged.
    pub(crate) components: Vec<Extent>,
    /// What the measured ones of them hashed to.
    pub(crate) digests: Vec<ComponentDigest>,
}

/// All guests are measured, and the keys are those of this measurement.
pub(crate) struct Measured {
    pub(crate) host: Host,
    pub(crate) guests: Vec<MeasuredGuest>,
    pub(crate) event_log: Vec<u8>,
    pub(crate) trust: Trust,
}

/// Measures the manifest's guests and derives the keys.
pub(crate) fn guests(shielded: Shielded) -> Result<Measured, Reason> {
    let Shielded(mut host) = shielded;
    let handoff_manifest = host.machine.handoff().manifest;
    let bytes = host.copy(handoff_manifest)?;
    let manifest = Manifest::parse(&bytes).map_err(Reason::Manifest)?;
    if manifest.component_total() != host.components().len() {
        return Err(Reason::Components);
    }
    let mut log = vec![0; LOG_BYTES];
    let begun = host.machine.handoff().event_log;
    let begun = host.copy(begun)?;
    log.get_mut(..begun.len()).ok_or(Reason::OutOfMemory("the event log"))?.copy_from_slice(&begun);
    let mut log =
        LogWriter::resume(&mut log, begun.len()).map_err(|_| Reason::OutOfMemory("the event log"))?;
    let mut guests = Vec::new();
    let mut staged = host.components().to_vec();
    for config in manifest.guests() {
        let rest = staged.split_off(config.components().len().min(staged.len()));
        guests.push(measure_one(&mut host, &mut log, config, staged)?);
        staged = rest;
    }
    check_pcrs(&mut host)?;
    let event_log = log.bytes().to_vec();
    report(&host);
    let trust = trust::derive(&mut host)?;
    Ok(Measured { host, guests, event_log, trust })
}

fn measure_one(
    host: &mut Host,
    log: &mut LogWriter<'_>,
    config: GuestConfig,
    components: Vec<Extent>,
) -> Result<MeasuredGuest, Reason> {
    let mut digests = Vec::new();
    for (index, (component, at)) in config.components().iter().zip(&components).enumerate() {
        let Some(name) = config.component_event(index) else { continue };
        let (set, sha384) = hash(host, *at)?;
        record(host, log, &set, name)?;
        digests.push(ComponentDigest { kind: component.kind, length: at.length, sha384 });
    }
    let set = DigestSet::of(&host.banks, config.cmdline());
    record(host, log, &set, config.cmdline_event())?;
    let identity = measure_guest(&config, &digests).ok_or(Reason::Components)?;
    log::info!(target: "measure", "guest name={} g0={}", config.name(), Hex(&identity));
    Ok(MeasuredGuest { config, identity, components, digests })
}

/// Hashes a staged component. No device can write it and no other processor runs, so what is hashed here is
/// what is copied into the guest later.
fn hash(host: &mut Host, at: Extent) -> Result<(DigestSet, [u8; 48]), Reason> {
    let mut hasher = Hasher::new(&host.banks);
    let mut piece = vec![0; PIECE];
    let mut done = 0u64;
    while done < at.length {
        let left = usize::try_from(at.length.wrapping_sub(done)).unwrap_or(usize::MAX);
        let part = piece.get_mut(..left.min(PIECE)).unwrap_or_default();
        host.machine.read(Hpa::new(at.base.wrapping_add(done)), part)?;
        hasher.update(part);
        done = done.wrapping_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
    }
    Ok(hasher.finish())
}

/// Extends PCR 18 and writes the event.
fn record(
    host: &mut Host,
    log: &mut LogWriter<'_>,
    digests: &DigestSet,
    name: EventName<'_>,
) -> Result<(), Reason> {
    let mut data = Name::default();
    write!(data, "{name}").map_err(|_| Reason::OutOfMemory("an event's name"))?;
    extend(&mut host.tpm, PCR_CONFIGURATION, digests)?;
    host.pcr18 = host.pcr18.extended(digests);
    log.append(PCR_CONFIGURATION, digests, data.bytes()).map_err(|_| Reason::OutOfMemory("the event log"))
}

/// Extends one PCR in every active bank, in one command. Does not allocate: the way out uses it too.
pub(crate) fn extend(tpm: &mut impl Transport, pcr: u8, digests: &DigestSet) -> Result<(), TpmError> {
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
fn check_pcrs(host: &mut Host) -> Result<(), Reason> {
    for (pcr, want) in [(PCR_CODE, host.pcr17), (PCR_CONFIGURATION, host.pcr18)] {
        let index = PcrIndex::new(pcr).ok_or(Reason::Pcr(pcr))?;
        for (algorithm, bytes) in want.measured() {
            let value = measure::read_pcr(&mut host.tpm, algorithm.id(), index)?;
            if value.is_none_or(|value| value.bytes() != bytes) {
                return Err(Reason::Pcr(pcr));
            }
        }
    }
    Ok(())
}

fn report(host: &Host) {
    for (pcr, values) in [(PCR_CODE, &host.pcr17), (PCR_CONFIGURATION, &host.pcr18)] {
        if let Some(value) = values.get(dolmen_drtm::Algorithm::Sha256) {
            log::info!(target: "measure", "pcr{pcr} sha256={}", Hex(value));
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl core::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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
