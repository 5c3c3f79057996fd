//! The event log: does it have the shape that Dolmen writes?

use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::log::{CORE_EVENT, EVENT_TYPE, HEADER_TYPE, LAUNCH_EVENT, MANIFEST_EVENT, SIGNATURE};
use dolmen_drtm::replay::{Event, EventLog};

/// What every event of a guest's component begins with.
const GUEST_EVENT: &[u8] = b"guest/";

/// Why a log is not one of Dolmen, though it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogProblem {
    /// An event of another type.
    #[error("event {index} is of type {kind:#x}; Dolmen writes only {EVENT_TYPE:#x}")]
    Kind {
        /// Which event, from 0.
        index: usize,
        /// Its type.
        kind: u32,
    },
    /// An event for another register.
    #[error("event {index} is for PCR {pcr}; Dolmen writes only 17 and 18")]
    Pcr {
        /// Which event, from 0.
        index: usize,
        /// Its register.
        pcr: u32,
    },
    /// PCR 17 is not launch image, then core.
    #[error("the events of PCR 17 are not \"SKINIT\", then \"core\"")]
    Code,
    /// PCR 18 is not manifest, then guests' components.
    #[error("the events of PCR 18 are not \"manifest\", then components of guests")]
    Configuration,
}

/// Checks that the events are those of a launch of Dolmen, in order.
///
/// # Errors
/// The first thing that is otherwise.
pub fn check_events(log: &EventLog<'_>) -> Result<(), LogProblem> {
    for (index, event) in log.events().enumerate() {
        if event.kind != EVENT_TYPE {
            return Err(LogProblem::Kind { index, kind: event.kind });
        }
        if ![PCR_CODE, PCR_CONFIGURATION].map(u32::from).contains(&event.pcr) {
            return Err(LogProblem::Pcr { index, pcr: event.pcr });
        }
    }
    if !events_of(log, PCR_CODE).map(|event| event.data).eq([LAUNCH_EVENT, CORE_EVENT]) {
        return Err(LogProblem::Code);
    }
    let mut configuration = events_of(log, PCR_CONFIGURATION).map(|event| event.data);
    let begins = configuration.next() == Some(MANIFEST_EVENT);
    if begins && configuration.all(|data| data.starts_with(GUEST_EVENT)) {
        Ok(())
    } else {
        Err(LogProblem::Configuration)
    }
}

/// Whether `bytes` are exactly what Dolmen writes for what the log tells: nothing signs the header, nor the order in
/// which a record has its digests, so only one form of them is accepted.
pub(crate) fn is_as_written(bytes: &[u8], log: &EventLog<'_>) -> bool {
    rewritten(log).as_deref() == Some(bytes)
}

/// The log as Dolmen writes it, with the banks in their order; nothing if it has a bank that Dolmen has not.
fn rewritten(log: &EventLog<'_>) -> Option<Vec<u8>> {
    let count = u32::try_from(log.algorithms().count()).ok()?;
    // Signature, class, version and width, the count, the algorithms, and no vendor data.
    let length = count.checked_mul(4)?.checked_add(16 + 8 + 4 + 1)?;
    let mut out = Vec::new();
    out.extend(0u32.to_le_bytes());
    out.extend(HEADER_TYPE.to_le_bytes());
    out.extend([0; 20]);
    out.extend(length.to_le_bytes());
    out.extend(SIGNATURE);
    out.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    out.extend(count.to_le_bytes());
    for algorithm in log.algorithms() {
        out.extend(algorithm.id().to_le_bytes());
        out.extend(u16::try_from(algorithm.size()).ok()?.to_le_bytes());
    }
    out.push(0);
    for event in log.events() {
        out.extend(event.pcr.to_le_bytes());
        out.extend(event.kind.to_le_bytes());
        out.extend(count.to_le_bytes());
        for algorithm in log.algorithms() {
            out.extend(algorithm.id().to_le_bytes());
            out.extend(event.digest(algorithm)?);
        }
        out.extend(u32::try_from(event.data.len()).ok()?.to_le_bytes());
        out.extend(event.data);
    }
    Some(out)
}

fn events_of<'a>(log: &EventLog<'a>, pcr: u8) -> impl Iterator<Item = Event<'a>> {
    log.events().filter(move |event| event.pcr == u32::from(pcr))
}
