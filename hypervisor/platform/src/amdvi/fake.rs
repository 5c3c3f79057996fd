//! A unit in software, with the faults that tests want.

use std::collections::HashMap;

use super::format::{Register, control, status};
use super::shield::{Tables, UnitIo};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    #[default]
    None,
    /// Commands go on running after they were switched off.
    NeverStops,
    /// The exclusion range cannot be switched off.
    ExclusionSticks,
    /// The device table register ignores writes.
    TableSticks,
    /// COMPLETION_WAIT stores nothing.
    NeverCompletes,
    /// COMPLETION_WAIT stores this instead.
    StoresConstant,
    /// A device rewrites this word of the full table whenever the unit completes.
    Rewritten(u64),
    /// This event is logged at each completion.
    Logs(u64),
    /// It forgets that it was enabled.
    Disabled,
}

/// RAM from [`BLOCK`] to the end of [`tables`], in words.
#[derive(Debug)]
pub(super) struct Memory(Vec<u64>);

impl Default for Memory {
    fn default() -> Self {
        Self(vec![0; 0x660_0000 / 8])
    }
}

impl Memory {
    fn index(at: u64) -> usize {
        usize::try_from((at - BLOCK) / 8).unwrap()
    }
    fn get(&self, at: u64) -> u64 {
        self.0[Self::index(at)]
    }
    fn insert(&mut self, at: u64, value: u64) {
        self.0[Self::index(at)] = value;
    }
}

#[derive(Debug, Default)]
pub(super) struct FakeUnit {
    pub(super) fault: Fault,
    /// SL_DEV denies fetches from here on, for 64 KiB.
    pub(super) block: Option<u64>,
    pub(super) memory: Memory,
    pub(super) registers: HashMap<u64, u64>,
    pub(super) executed: Vec<[u64; 2]>,
    pub(super) features: u64,
    pub(super) devices: u64,
    pub(super) seed: u64,
    pub(super) turns: u32,
}

impl FakeUnit {
    pub(super) fn reg(&self, register: Register) -> u64 {
        self.registers.get(&register.offset()).copied().unwrap_or(0)
    }

    fn set(&mut self, register: Register, value: u64) {
        self.registers.insert(register.offset(), value);
    }

    /// What the device with this requester id gets: whether its request passes.
    pub(super) fn passes(&self, id: u64) -> bool {
        let table = self.reg(Register::DeviceTable);
        if self.reg(Register::Control) & control::ENABLE == 0 {
            return true;
        }
        let (base, pages) = (table & !0xfff, (table & 0x1ff) + 1);
        let at = base + id * 32;
        if at >= base + pages * 0x1000 || self.is_denied(at) {
            return false;
        }
        let word = |n: u64| self.memory.get(at + n * 8);
        word(0) & 1 == 0 || word(0) >> 61 != 0 || word(0) & 2 == 0
    }

    fn is_denied(&self, at: u64) -> bool {
        self.block.is_some_and(|block| (block..block + 0x1_0000).contains(&at))
    }

    fn run(&mut self) {
        let base = self.reg(Register::CommandBase) & 0x000f_ffff_ffff_f000;
        while self.reg(Register::CommandHead) != self.reg(Register::CommandTail) {
            let head = self.reg(Register::CommandHead);
            let at = base + head;
            if self.is_denied(at) {
                let stopped = self.reg(Register::Status) & !status::COMMANDS_RUNNING;
                self.set(Register::Status, stopped);
                return;
            }
            let command = [0, 8].map(|n| self.memory.get(at + n));
            self.executed.push(command);
            if command[0] >> 60 == 1 {
                self.complete(command);
            }
            self.set(Register::CommandHead, (head + 16) % 0x1000);
        }
    }

    fn complete(&mut self, [first, value]: [u64; 2]) {
        let at = first & 0x000f_ffff_ffff_fff8;
        match self.fault {
            Fault::NeverCompletes => return,
            Fault::StoresConstant => {
                self.memory.insert(at, 1);
                return;
            }
            Fault::Rewritten(offset) => {
                self.memory.insert(self.devices + offset, 0);
            }
            Fault::Logs(event) => {
                let tail = self.reg(Register::EventTail);
                let base = self.reg(Register::EventBase) & 0x000f_ffff_ffff_f000;
                self.memory.insert(base + tail, event);
                self.set(Register::EventTail, (tail + 16) % 0x1000);
            }
            Fault::None
            | Fault::NeverStops
            | Fault::ExclusionSticks
            | Fault::TableSticks
            | Fault::Disabled => {}
        }
        self.memory.insert(at, value);
    }

    fn control(&mut self, value: u64) {
        let mut seen = 0;
        if value & control::COMMANDS != 0 || self.fault == Fault::NeverStops {
            seen |= status::COMMANDS_RUNNING;
        }
        if value & control::EVENT_LOG != 0 {
            seen |= status::EVENT_RUNNING;
        }
        self.set(Register::Status, seen);
        let value = if self.fault == Fault::Disabled { value & !control::ENABLE } else { value };
        self.set(Register::Control, value);
    }
}

impl UnitIo for FakeUnit {
    fn read(&mut self, register: Register) -> u64 {
        match (register, self.fault) {
            (Register::Features, _) => self.features,
            (Register::ExclusionBase, Fault::ExclusionSticks) => 1,
            _ => self.reg(register),
        }
    }

    fn write(&mut self, register: Register, value: u64) {
        match (register, self.fault) {
            (Register::Control, _) => self.control(value),
            (Register::Status, _) | (Register::DeviceTable, Fault::TableSticks) => {}
            (Register::CommandTail, _) => {
                self.set(register, value);
                if self.reg(Register::Control) & control::COMMANDS != 0 {
                    self.run();
                }
            }
            _ => self.set(register, value),
        }
    }

    fn load(&mut self, at: u64) -> u64 {
        self.memory.get(at)
    }

    fn store(&mut self, at: u64, value: u64) {
        self.memory.insert(at, value);
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x1405_7b7e_f767_814f);
        self.seed
    }

    fn restart_deadline(&mut self, _: u32) {
        self.turns = 0;
    }

    fn expired(&mut self) -> bool {
        self.turns += 1;
        self.turns > 100
    }
}

pub(super) const BLOCK: u64 = 0x100_0000;

pub(super) const fn tables() -> Tables {
    Tables {
        block: BLOCK,
        probe: BLOCK + 0xabc0,
        devices: 0x400_0000,
        commands: 0x420_0000,
        events: 0x420_1000,
        completion: 0x420_2000,
    }
}
