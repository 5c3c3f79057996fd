//! The ways a guest switches itself off or resets itself, and the other system ports that software expects.
//!
//! Sleep and reset registers are the ones of hardware-reduced ACPI (ACPI 6.5, 4.8.3.6 and 4.8.3.7); the
//! guest's FADT names their ports. The keyboard controller is absent but for its reset command.

use crate::board::Effect;

/// ACPI sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// Reset control register of PC chip sets, which is the ACPI reset register too.
pub const RESET_CONTROL: u16 = 0xcf9;
/// What resets when written to [`RESET_CONTROL`]: system reset, now.
pub const RESET_VALUE: u8 = 0x06;
/// The sleep type of the soft-off state in `\_S5`.
pub const SOFT_OFF_TYPE: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const RESET_NOW: u8 = 1 << 2;
/// Command port of the keyboard controller.
pub const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// System control port A.
pub const SYSTEM_CONTROL: u16 = 0x92;
/// Fast A20 gate: always open.
const SYSTEM_A20: u8 = 1 << 1;
const SYSTEM_RESET: u8 = 1 << 0;

/// System ports.
#[derive(Debug, Default)]
pub struct Power {
    reset_control: u8,
}

impl Power {
    /// Reads `port`; `None` if it is no port of this device.
    pub const fn read(&self, port: u16) -> Option<u8> {
        match port {
            SLEEP_CONTROL | SLEEP_STATUS => Some(0),
            RESET_CONTROL => Some(self.reset_control),
            SYSTEM_CONTROL => Some(SYSTEM_A20),
            _ => None,
        }
    }

    /// Writes `port`; `None` if it is no port of this device.
    pub fn write(&mut self, port: u16, value: u8) -> Option<Effect> {
        let effect = match port {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == SOFT_OFF_TYPE => {
                Effect::PowerOff
            }
            RESET_CONTROL if value & RESET_NOW != 0 => Effect::Reset,
            RESET_CONTROL => {
                self.reset_control = value;
                Effect::None
            }
            SYSTEM_CONTROL if value & SYSTEM_RESET != 0 => Effect::Reset,
            KEYBOARD_COMMAND if value == KEYBOARD_RESET => Effect::Reset,
            SLEEP_CONTROL | SLEEP_STATUS | SYSTEM_CONTROL | KEYBOARD_COMMAND => Effect::None,
            _ => return None,
        };
        Some(effect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_out_has_its_effect() {
        for (port, value, effect) in [
            (SLEEP_CONTROL, 0x34, Some(Effect::PowerOff)),
            (SLEEP_CONTROL, 0x14, Some(Effect::None)), // type without enable
            (SLEEP_CONTROL, 0x24, Some(Effect::None)), // S1, which the guest was not offered
            (SLEEP_STATUS, 0x80, Some(Effect::None)),
            (RESET_CONTROL, RESET_VALUE, Some(Effect::Reset)),
            (RESET_CONTROL, 0x0e, Some(Effect::Reset)),
            (RESET_CONTROL, 0x02, Some(Effect::None)),
            (KEYBOARD_COMMAND, 0xfe, Some(Effect::Reset)),
            (KEYBOARD_COMMAND, 0xd1, Some(Effect::None)),
            (SYSTEM_CONTROL, 0x03, Some(Effect::Reset)),
            (SYSTEM_CONTROL, 0x02, Some(Effect::None)),
            (0x80, 0xff, None),
        ] {
            assert_eq!(Power::default().write(port, value), effect, "{port:#x} <- {value:#x}");
        }
    }

    #[test]
    fn the_keyboard_controller_is_absent() {
        assert_eq!(Power::default().read(KEYBOARD_COMMAND), None);
    }
}
