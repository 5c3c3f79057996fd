//! Hypercall numbers and structures, shared by the hypervisor and its guests.
//!
//! A call is `VMMCALL` (AMD) or `VMCALL` (Intel) from CPL 0 in 64-bit mode with
//! EAX = [`Call::NUMBER`], RDI = guest-physical address of the request, RSI = its length in bytes,
//! RDX = guest-physical address of the reply, RCX = room for it in bytes.
//! After it RAX = [`Status`] as [`Status::to_rax`] widens it, RDX = bytes written to the reply; no other
//! register has changed. A number that no call has answers [`Status::NO_SUCH_CALL`] and leaves RDX alone.
//!
//! Promise: a number, a status, a bit and the layout of a structure never change their meaning; what is new
//! gets a new number. Reserved fields are zero both ways, and the hypervisor checks that they are.
//! All integers are little-endian. `docs/abi.md` is the specification; a test holds it to this code.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

#[cfg(target_endian = "big")]
compile_error!("the structures are little-endian in memory; Dolmen's machines are x86-64");

mod layout;

mod binding;
mod call;
pub mod cpuid;
mod facts;
mod key;
mod manage;
pub mod merkle;
mod seal;
mod status;

#[cfg(feature = "evidence")]
pub mod evidence;

pub use binding::{Binding, LEAF_PREFIX, MAX_PATH, MAX_WAITING, NODE_PREFIX, QUOTE_TAG, REPORT_DATA_BYTES};
pub use call::{
    ActivateCredential, ActivateRequest, AkPublic, CALLS, Call, CallInfo, Certify, CertifyReply,
    CertifyRequest, ChainRequest, EkCertificate, EkChain, EndorsementKey, EventLog, EventLogReply,
    EventLogRequest, Extend, ExtendReply, ExtendRequest, HOST_PCRS, HostQuote, HostQuoteReply,
    HostQuoteRequest, KeyPublic, KeyRequest, ListGuests, MAX_ACTIVATED, MAX_AK_PUBLIC, MAX_ATTEST,
    MAX_CERTIFICATE, MAX_CREDENTIAL, MAX_ENCRYPTED_SECRET, MAX_HOST_NONCE, MAX_LOG_WINDOW, MAX_RANDOM,
    MAX_REPLY, MAX_REQUEST, MAX_SIGNATURE, Quote, QuoteReply, QuoteRequest, Random, RandomRequest,
    ReadRegisters, RegistersReply, ResetGuest, Seal, SealRequest, StartGuest, StopGuest, TpmFailure, Unseal,
    UnsealRequest, Version, VersionReply,
};
pub use facts::{CallGroup, LaunchFacts};
pub use key::{AkId, EkId};
pub use layout::{Field, Layout};
pub use manage::{
    EXIT_KINDS, EXIT_SLOTS, GuestInfo, GuestName, GuestState, ListGuestsReply, MAX_GUESTS, StopCause,
};
pub use seal::{Blob, BlobHeader, MAX_LABEL, MAX_SECRET, SEALED_OVERHEAD, SealPolicy, TAG_BYTES};
pub use status::Status;

/// Version of this interface, as [`Version`] and CPUID tell it. It rises when a call, a flag or a status is added.
pub const ABI_VERSION: u32 = 5;
/// What every call's number starts with: `DL` in ASCII, clear of the small numbers other hypervisors use.
pub const NUMBER_BASE: u32 = 0x444c_0000;

/// Whether `number` can be one of Dolmen's calls: every other is answered [`Status::NO_SUCH_CALL`], which is what KVM
/// says.
pub const fn is_call_number(number: u32) -> bool {
    number & 0xffff_0000 == NUMBER_BASE
}
/// Requests and replies start at a multiple of this many bytes.
pub const BUFFER_ALIGN: u64 = 8;
/// Longest guest name in bytes; shorter ones are padded with zeroes.
pub const NAME_BYTES: usize = 32;
/// Registers of a guest: G0 is its identity, G1 to G7 are its own to extend.
pub const REGISTER_COUNT: usize = 8;
/// Bytes of a register: SHA-384.
pub const REGISTER_BYTES: usize = 48;

/// All registers of one guest, G0 first.
pub type Registers = [[u8; REGISTER_BYTES]; REGISTER_COUNT];
