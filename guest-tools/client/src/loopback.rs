//! The hypervisor's own service within the process, on a fake TPM: what tests of guest tools talk to.

use std::convert::Infallible;

use dolmen_abi::Status;
use dolmen_memory::{Gpa, GuestMemory};
use dolmen_vm::service::fake::{FakeRam, FakeTpm, launched_config};
use dolmen_vm::service::{CallArgs, GuestSlot, Scratch, Service, ServiceConfig};

use crate::Transport;

const REQUEST: u64 = 0;
const REPLY: u64 = 0x8000;

/// A guest of a hypervisor that is not there.
#[derive(Debug)]
pub struct Loopback {
    service: Service<'static>,
    ram: Box<FakeRam>,
    /// The fake TPM, to be bent.
    pub tpm: Box<FakeTpm>,
    /// Waits so far, with the status that caused each.
    pub waits: Vec<Status>,
}

impl Loopback {
    /// A guest with this configuration; each leaks a few pages.
    pub fn with(config: ServiceConfig) -> Self {
        let scratch = Box::leak(Box::new(Scratch::new()));
        let service = Service::new(config, scratch);
        Self { service, ram: Box::default(), tpm: Box::default(), waits: Vec::new() }
    }

    /// A guest `first` after a dynamic launch, allowed everything; nothing if the first slot does not exist.
    pub fn launched() -> Option<Self> {
        Some(Self::with(launched_config(GuestSlot::new(0)?)))
    }

    /// Another guest of the same hypervisor and manifest.
    pub fn neighbour() -> Option<Self> {
        Some(Self::with(ServiceConfig { identity: [0x61; 48], ..launched_config(GuestSlot::new(1)?) }))
    }
}

impl Transport for Loopback {
    type Error = Infallible;

    fn call(
        &mut self,
        number: u32,
        request: &[&[u8]],
        reply: &mut [u8],
    ) -> Result<(Status, usize), Infallible> {
        let request = request.concat();
        if self.ram.write(Gpa::new(REQUEST), &request).is_err() {
            return Ok((Status::BAD_LENGTH, 0));
        }
        let size = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let args = CallArgs { rdi: REQUEST, rsi: size(request.len()), rdx: REPLY, rcx: size(reply.len()) };
        let result = self.service.call(number, args, true, &mut *self.ram, &mut *self.tpm);
        let status = Status::from_rax(result.status);
        let filled = usize::try_from(result.reply_len).unwrap_or(usize::MAX).min(reply.len());
        let out = reply.get_mut(..filled).unwrap_or_default();
        Ok(match self.ram.read(Gpa::new(REPLY), out) {
            Ok(()) => (status, filled),
            Err(_) => (Status::BAD_REPLY_ADDRESS, 0),
        })
    }

    fn wait(&mut self, status: Status, _: u32) -> Result<(), Infallible> {
        self.waits.push(status);
        self.tpm.now_ms = self.tpm.now_ms.saturating_add(10);
        Ok(())
    }
}
