//! The hypercall service of one guest: random numbers, registers, sealing, quotes, the event log.
//!
//! Everything that comes from the guest is hostile: a request is copied once, checked whole, then served; the
//! reply is copied out once, and only then does anything change. So a call that fails has done nothing, and
//! request and reply may overlap. Each bad case is a [`Status`]; no guest bytes reach a panic.
//! `docs/abi.md` is the specification.
//!
//! The core makes one [`Service`] per guest, after measuring it and before its first instruction, and one
//! [`TpmService`] for all of them, behind a [`Platform`]:
//!
//! ```ignore
//! static SCRATCH: TakeOnce<Scratch> = TakeOnce::new(Scratch::new());
//!
//! let mut service = Service::new(
//!     ServiceConfig {
//!         slot: GuestSlot::new(0)?,            // one per guest: its place at the quote desk
//!         name: config.name,
//!         identity: measure_guest(&config, &digests)?,
//!         manifest: pcr18,                     // what it holds in the SHA-256 bank
//!         groups: config.hypercalls(),
//!         facts,
//!         sealing_root: facts.is_launched().then_some(root),
//!     },
//!     SCRATCH.take()?,
//! );
//! // On every VmExit::Hypercall:
//! let args = CallArgs { rdi, rsi, rdx, rcx };
//! let result = service.call(eax, args, cpl == 0 && long_mode, &mut guest_ram, &mut tpm);
//! (rax, rdx) = (result.status, result.reply_len);
//! // On every way out:
//! service.scrub();
//! ```

use dolmen_abi::{
    ActivateCredential, AkPublic, BUFFER_ALIGN, CALLS, Call, CallGroup, CallInfo, Certify, EkCertificate,
    EkChain, EndorsementKey, EventLog, Extend, HostQuote, KeyPublic, LaunchFacts, ListGuests, NAME_BYTES,
    Quote, REGISTER_BYTES, REGISTER_COUNT, Random, ReadRegisters, Registers, ResetGuest, Seal, StartGuest,
    Status, StopGuest, TpmFailure, Unseal, Version,
};
use dolmen_memory::{Gpa, GuestMemory};

mod desk;
mod errand;
mod errands;
mod handler;
mod limit;
mod manage;
mod platform;
mod scratch;
mod seal;
mod secret;

#[cfg(any(test, feature = "testing"))]
pub mod fake;
#[cfg(test)]
mod tests;

pub use desk::{GuestSlot, QuoteDesk, serve_waiting};
pub use errand::{Bytes, Errand, ErrandAnswer, ErrandDesk};
pub use platform::{GuestTable, NoEntropy, Platform, QuotePoll, SignedQuote, TpmBusy, TpmService};
pub use scratch::Scratch;
pub use secret::Secret;

use crate::lifecycle::Request;
use limit::Bucket;

/// The argument registers of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallArgs {
    /// Guest-physical address of the request.
    pub rdi: u64,
    /// Length of the request in bytes.
    pub rsi: u64,
    /// Guest-physical address of the reply.
    pub rdx: u64,
    /// Room for the reply in bytes.
    pub rcx: u64,
}

/// What goes back to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallResult {
    /// For RAX.
    pub status: u64,
    /// For RDX: bytes written, or what RDX was if no call has the number.
    pub reply_len: u64,
}

/// What the service must know of its guest.
#[derive(Debug)]
pub struct ServiceConfig {
    /// The guest's place at the quote desk; no two guests have one.
    pub slot: GuestSlot,
    /// Name, padded with zeroes, as the manifest has it.
    pub name: [u8; NAME_BYTES],
    /// G0.
    pub identity: [u8; REGISTER_BYTES],
    /// The manifest and the files of all its guests: PCR 18 of the SHA-256 bank.
    pub manifest: [u8; 32],
    /// Calls that the manifest allows.
    pub groups: CallGroup,
    /// How the machine was launched.
    pub facts: LaunchFacts,
    /// What sealing keys come from; absent without a dynamic launch.
    pub sealing_root: Option<Secret<[u8; 32]>>,
}

/// The hypercalls of one guest.
#[derive(Debug)]
pub struct Service<'a> {
    slot: GuestSlot,
    name: [u8; NAME_BYTES],
    groups: CallGroup,
    facts: LaunchFacts,
    manifest: [u8; 32],
    root: Option<Secret<[u8; 32]>>,
    registers: Registers,
    /// The request that the guest's slot at the desk belongs to.
    quoting: Option<(dolmen_abi::AkId, dolmen_abi::Binding)>,
    quote_rate: Bucket,
    errand_rate: Bucket,
    scratch: &'a mut Scratch,
}

/// What a handler wants to happen: first the reply is written, then the change is made.
struct Answer {
    status: Status,
    /// Bytes of `scratch.reply` that go to the guest.
    length: usize,
    change: Change,
}

/// What a call changes, once its reply is out.
enum Change {
    Nothing,
    Register { index: usize, value: [u8; REGISTER_BYTES] },
    QuoteTaken,
    ErrandTaken,
}

impl Answer {
    const fn reply(length: usize) -> Self {
        Self { status: Status::OK, length, change: Change::Nothing }
    }
}

impl<'a> Service<'a> {
    /// The service of a guest whose registers G1 to G7 are zero. Without a dynamic launch the root is dropped.
    pub fn new(config: ServiceConfig, scratch: &'a mut Scratch) -> Self {
        let mut registers = [[0; REGISTER_BYTES]; REGISTER_COUNT];
        let [identity, ..] = &mut registers;
        *identity = config.identity;
        Self {
            slot: config.slot,
            name: config.name,
            groups: config.groups,
            facts: config.facts,
            manifest: config.manifest,
            root: config.sealing_root.filter(|_| config.facts.is_launched()),
            registers,
            quoting: None,
            quote_rate: Bucket::QUOTES,
            errand_rate: Bucket::ERRANDS,
            scratch,
        }
    }

    /// Serves one call. `privileged`: the guest was in 64-bit mode at CPL 0.
    pub fn call<M: GuestMemory, P: Platform>(
        &mut self,
        number: u32,
        args: CallArgs,
        privileged: bool,
        mem: &mut M,
        platform: &mut P,
    ) -> CallResult {
        let Some(call) = CALLS.iter().find(|call| call.number == number) else {
            return CallResult { status: Status::NO_SUCH_CALL.to_rax(), reply_len: args.rdx };
        };
        let (status, length) = match self.admit(call, args, privileged) {
            Ok(()) => self.serve(call, args, mem, platform).unwrap_or_else(|status| (status, 0)),
            Err(status) => (status, 0),
        };
        self.scratch.wipe_used();
        CallResult { status: status.to_rax(), reply_len: u64::try_from(length).unwrap_or(0) }
    }

    /// Wipes every secret; nothing can be sealed or opened any more.
    pub fn scrub(&mut self) {
        self.root = None;
        self.scratch.wipe();
    }

    /// Forgets the guest's last run: its registers but G0, its quote, whatever a call left. The root stays: what
    /// it sealed opens again.
    pub fn restart(&mut self, tpm: &mut impl TpmService) {
        let [_, own @ ..] = &mut self.registers;
        *own = [[0; REGISTER_BYTES]; REGISTER_COUNT.wrapping_sub(1)];
        if self.quoting.take().is_some() {
            tpm.desk().release(self.slot);
        }
        tpm.errands().release(self.slot);
        self.scratch.wipe();
    }

    /// The guest's registers.
    pub const fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Whether the guest may make this call with these lengths, before any of its memory is touched.
    fn admit(&self, call: &CallInfo, args: CallArgs, privileged: bool) -> Result<(), Status> {
        let longest = call.request_bytes.saturating_add(call.request_data);
        if !privileged {
            Err(Status::NOT_PRIVILEGED)
        } else if !call.group.is_empty() && !self.groups.intersects(call.group) {
            Err(Status::NOT_PERMITTED)
        } else if !usize::try_from(args.rsi)
            .is_ok_and(|length| (call.request_bytes..=longest).contains(&length))
        {
            Err(Status::BAD_LENGTH)
        } else if !Gpa::new(args.rdi).is_aligned(BUFFER_ALIGN) || !Gpa::new(args.rdx).is_aligned(BUFFER_ALIGN)
        {
            Err(Status::BAD_ALIGNMENT)
        } else if capacity(args) < call.reply_bytes {
            Err(Status::REPLY_TOO_SMALL)
        } else {
            Ok(())
        }
    }

    fn serve<M: GuestMemory, P: Platform>(
        &mut self,
        call: &CallInfo,
        args: CallArgs,
        mem: &mut M,
        platform: &mut P,
    ) -> Result<(Status, usize), Status> {
        let length = usize::try_from(args.rsi).map_err(|_| Status::BAD_LENGTH)?;
        let request = self.scratch.request_mut(length).ok_or(Status::BAD_LENGTH)?;
        if !request.is_empty() {
            mem.read(Gpa::new(args.rdi), request).map_err(|_| Status::BAD_REQUEST_ADDRESS)?;
        }
        // A quote takes the TPM's time: a reply that could not be written is refused before that.
        let probed = self.scratch.reply_mut(call.reply_bytes).ok_or(Status::REPLY_TOO_SMALL)?;
        if !probed.is_empty() {
            mem.read(Gpa::new(args.rdx), probed).map_err(|_| Status::BAD_REPLY_ADDRESS)?;
            probed.fill(0);
        }

        let answer = self.handle(call.number, platform)?;

        if answer.length > capacity(args) {
            return Err(Status::REPLY_TOO_SMALL);
        }
        let reply = self.scratch.reply(answer.length).ok_or(Status::REPLY_TOO_SMALL)?;
        if !reply.is_empty() {
            mem.write(Gpa::new(args.rdx), reply).map_err(|_| Status::BAD_REPLY_ADDRESS)?;
        }
        self.commit(answer.change, platform);
        Ok((answer.status, answer.length))
    }

    fn handle<P: Platform>(&mut self, number: u32, platform: &mut P) -> Result<Answer, Status> {
        match number {
            Version::NUMBER => self.version(),
            Random::NUMBER => self.random(platform),
            ReadRegisters::NUMBER => self.read_registers(),
            Extend::NUMBER => self.extend(),
            Seal::NUMBER => self.seal(platform),
            Unseal::NUMBER => self.unseal(),
            Quote::NUMBER => self.quote(platform),
            AkPublic::NUMBER => self.ak_public(platform),
            EventLog::NUMBER => self.event_log(platform),
            HostQuote::NUMBER => self.host_quote(platform),
            Certify::NUMBER => self.certify(platform),
            KeyPublic::NUMBER => self.key_public(platform),
            EndorsementKey::NUMBER => self.endorsement_key(platform),
            EkCertificate::NUMBER => self.ek_certificate(platform),
            EkChain::NUMBER => self.ek_chain(platform),
            ActivateCredential::NUMBER => self.activate_credential(platform),
            ListGuests::NUMBER => self.list_guests(platform.guests()),
            StartGuest::NUMBER => self.ask(Request::Start, platform.guests()),
            StopGuest::NUMBER => self.ask(Request::Stop, platform.guests()),
            ResetGuest::NUMBER => self.ask(Request::Reset, platform.guests()),
            _ => Err(Status::NO_SUCH_CALL),
        }
    }

    fn commit<P: Platform>(&mut self, change: Change, platform: &mut P) {
        match change {
            Change::Nothing => {}
            Change::Register { index, value } => {
                if let Some(register) = self.registers.get_mut(index) {
                    *register = value;
                }
            }
            Change::QuoteTaken => {
                self.quoting = None;
                platform.with_tpm(|tpm| tpm.desk().release(self.slot));
            }
            Change::ErrandTaken => platform.with_tpm(|tpm| tpm.errands().release(self.slot)),
        }
    }
}

/// Room for the reply; more than any reply needs counts as that.
fn capacity(args: CallArgs) -> usize {
    usize::try_from(args.rcx).unwrap_or(usize::MAX)
}

const _: () = assert!(size_of::<TpmFailure>() <= size_of::<dolmen_abi::QuoteReply>());
