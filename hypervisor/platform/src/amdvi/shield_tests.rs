use super::super::fake::{BLOCK, FakeUnit, Fault, tables};
use super::*;

/// Every optional part.
const UNIT: Unit = Unit { function: None, registers: 0xfed8_0000, header: 1 << 25 | 1 << 27 };

fn unit(fault: Fault) -> FakeUnit {
    FakeUnit {
        fault,
        block: Some(BLOCK),
        features: feature::INVALIDATE_ALL,
        devices: tables().devices,
        ..FakeUnit::default()
    }
}

fn close(io: &mut FakeUnit, unit: &Unit) -> Result<bool, ShieldError> {
    build_deny_table(io, tables().devices, DEVICE_TABLE_BYTES);
    let is_denied = arm(io, unit, &tables())?;
    build_deny_table(io, tables().devices, DEVICE_TABLE_BYTES);
    enforce(io, unit, &tables())?;
    Ok(is_denied)
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn a_closed_unit_refuses_every_device() {
    let mut io = unit(Fault::None);
    assert!(io.passes(0x10), "before");
    assert_eq!(close(&mut io, &UNIT), Ok(true));
    assert!((0..0x1_0000).all(|id| !io.passes(id)));
    let seen = io.reg(Register::Control);
    assert_eq!(
        seen,
        control::ENABLE | control::TUNNEL | control::COHERENT | control::COMMANDS | control::EVENT_LOG
    );
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn an_armed_unit_refuses_every_device_with_and_without_denied_fetches() {
    for (block, is_denied) in [(Some(BLOCK), true), (None, false)] {
        let mut io = FakeUnit { block, ..unit(Fault::None) };
        build_deny_table(&mut io, tables().devices, DEVICE_TABLE_BYTES);
        assert_eq!(arm(&mut io, &UNIT, &tables()), Ok(is_denied));
        assert!((0..0x1_0000).all(|id| !io.passes(id)), "{is_denied}");
        let base = if is_denied { BLOCK | 15 } else { tables().devices | 0x1ff };
        assert_eq!(io.reg(Register::DeviceTable), base);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn every_fault_of_a_unit_is_found_and_named() {
    let table = [
        (Fault::NeverStops, ShieldError::Timeout(Step::Stop, status::COMMANDS_RUNNING)),
        (Fault::ExclusionSticks, ShieldError::NotTaken(Register::ExclusionBase, 1)),
        (Fault::TableSticks, ShieldError::NotTaken(Register::DeviceTable, 0)),
        (Fault::NeverCompletes, ShieldError::NotCompleted(Step::Invalidate)),
        (Fault::StoresConstant, ShieldError::NotCompleted(Step::Invalidate)),
        (Fault::Rewritten(0), ShieldError::TableDiffers(0)),
        (Fault::Rewritten(0x1f_ffe0), ShieldError::TableDiffers(0x1f_ffe0)),
        (Fault::Logs(1 << 60), ShieldError::Event(EventCode(1))),
        (Fault::Logs(3 << 60), ShieldError::Event(EventCode(3))),
        (Fault::Logs(5 << 60), ShieldError::Event(EventCode(5))),
        (
            Fault::Disabled,
            ShieldError::NotTaken(
                Register::Control,
                control::TUNNEL | control::COHERENT | control::COMMANDS | control::EVENT_LOG,
            ),
        ),
    ];
    for (fault, want) in table {
        assert_eq!(close(&mut unit(fault), &UNIT), Err(want), "{fault:?}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn refusals_in_the_event_log_are_what_a_noisy_device_gets() {
    for code in [2 << 60, 8 << 60] {
        assert_eq!(close(&mut unit(Fault::Logs(code)), &UNIT), Ok(true), "{code:#x}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long in the interpreter")]
fn a_unit_without_the_command_for_it_forgets_each_thing_by_name() {
    for (features, header) in [(0, UNIT.header), (feature::INVALIDATE_ALL, 0)] {
        let mut io = FakeUnit { features, ..unit(Fault::None) };
        assert_eq!(close(&mut io, &Unit { header, ..UNIT }), Ok(true));
        for opcode in [2, 3, 5] {
            let count = io.executed.iter().filter(|command| command[0] >> 60 == opcode).count();
            assert_eq!(count, 2 * 0x1_0000, "opcode {opcode}");
        }
        assert!(io.executed.iter().all(|command| command[0] >> 60 != 8));
    }
}
