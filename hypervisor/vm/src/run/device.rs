//! Accesses to device memory.

use dolmen_memory::{Gpa, GuestMemory};

use super::{Guest, Host, Step};
use crate::backend::Backend;
use crate::policy::StopReason;

impl<B: Backend, M: GuestMemory, H: Host> Guest<'_, B, M, H> {
    pub(super) fn emulate_device(&mut self, gpa: Gpa) -> Step {
        let (bytes, _) = self.fetch();
        Err(StopReason::UnknownInstruction { gpa, bytes })
    }
}
