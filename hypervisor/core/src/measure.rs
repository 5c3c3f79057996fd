//! Stage 3: every guest component, hashed where no device can write it, into PCR 18; then the TPM's keys.
//!
//! Promise: PCR 18 is extended for all guests before the first guest instruction, and never again until the
//! way out; what it holds afterwards is what was predicted, in every active bank.

use alloc::vec;
use alloc::vec::Vec;

use dolmen_drtm::DigestSet;
use dolmen_drtm::handoff::Extent;
use dolmen_drtm::stream::Hasher;
use dolmen_memory::Hpa;
use dolmen_vm::manifest::{ComponentDigest, GuestConfig, Manifest, measure_guest};

use crate::host::Host;
use crate::record::EventLog;
use crate::shield::Shielded;
use crate::stop::Reason;
use crate::trust::{self, Trust};

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
    let mut log = EventLog::begin(&mut host)?;
    let mut guests = Vec::new();
    let mut staged = host.components().to_vec();
    for config in manifest.guests() {
        let rest = staged.split_off(config.components().len().min(staged.len()));
        guests.push(measure_one(&mut host, &mut log, config, staged)?);
        staged = rest;
    }
    let event_log = log.finish(&mut host)?;
    let trust = trust::derive(&mut host, manifest.sealing_root())?;
    Ok(Measured { host, guests, event_log, trust })
}

fn measure_one(
    host: &mut Host,
    log: &mut EventLog,
    config: GuestConfig,
    components: Vec<Extent>,
) -> Result<MeasuredGuest, Reason> {
    let mut digests = Vec::new();
    for (index, (component, at)) in config.components().iter().zip(&components).enumerate() {
        let Some(name) = config.component_event(index) else { continue };
        let (set, sha384) = hash(host, *at)?;
        log.record(host, &set, name)?;
        digests.push(ComponentDigest { kind: component.kind, length: at.length, sha384 });
    }
    let set = DigestSet::of(&host.banks, config.cmdline());
    log.record(host, &set, config.cmdline_event())?;
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

/// Bytes in hexadecimal.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl core::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
