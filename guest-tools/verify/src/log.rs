//! The event log: does it have the shape that Dolmen writes?

use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::log::{CORE_EVENT, EVENT_TYPE, LAUNCH_EVENT, MANIFEST_EVENT};
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
        if event.pcr != PCR_CODE.into() && event.pcr != PCR_CONFIGURATION.into() {
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

fn events_of<'a>(log: &EventLog<'a>, pcr: u8) -> impl Iterator<Item = Event<'a>> {
    log.events().filter(move |event| event.pcr == u32::from(pcr))
}
