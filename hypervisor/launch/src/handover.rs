//! Stage 4: goes to the core.

use core::convert::Infallible;

use dolmen_drtm::handoff::CoreHandoff;
use dolmen_machine::cpu;

use crate::console::Line;
use crate::measure::Measured;
use crate::reason::{Reason, Stopped};

/// Completes the hand-off and jumps to the core.
pub(crate) fn enter_core(measured: Measured) -> Result<Infallible, Stopped> {
    let Measured { mut region, entry, handoff } = measured;
    let root = region.map_for_core().ok_or(Reason::Region)?;
    Line::new("launch: core at ").hex(region.extent().base).text(" entry=").hex(entry.into()).end();
    handoff.magic = CoreHandoff::MAGIC;
    handoff.version = CoreHandoff::VERSION;
    handoff.free = region.free();
    let [.., left] = &mut handoff.tsc;
    *left = cpu::read_tsc();
    region.enter_core(root, entry, handoff)
}
