//! The calls: number, group, request and reply of each.
#![expect(
    missing_debug_implementations,
    reason = "of helper types that zerocopy derives through a macro; every structure here derives it"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::binding::{Binding, MAX_PATH, REPORT_DATA_BYTES};
use crate::layout::wire;
use crate::manage::{GuestInfo, GuestName, ListGuestsReply, MAX_GUESTS};
use crate::seal::{BlobHeader, MAX_LABEL, MAX_SECRET, SEALED_OVERHEAD};
use crate::{CallGroup, NAME_BYTES, NUMBER_BASE, REGISTER_BYTES, Registers};

/// Most random bytes in one call.
pub const MAX_RANDOM: usize = 1024;
/// Most bytes of the event log in one call.
pub const MAX_LOG_WINDOW: usize = 16 * 1024;
/// Longest attestation key, as `TPM2B_PUBLIC`.
pub const MAX_AK_PUBLIC: usize = 512;
/// Longest quote, as `TPMS_ATTEST`.
pub const MAX_ATTEST: usize = 256;
/// Longest signature, as `TPMT_SIGNATURE`.
pub const MAX_SIGNATURE: usize = 512;

/// Longest nonce of a quote about the host.
pub const MAX_HOST_NONCE: usize = 64;
/// Registers that a quote about the host can be over.
pub const HOST_PCRS: usize = 24;
/// Longest certificate of an endorsement key.
pub const MAX_CERTIFICATE: usize = 4096;
/// Longest credential: `TPM2B_ID_OBJECT` without its size.
pub const MAX_CREDENTIAL: usize = 132;
/// Longest encrypted seed of a credential: `TPM2B_ENCRYPTED_SECRET` without its size.
pub const MAX_ENCRYPTED_SECRET: usize = 256;
/// Most bytes that a credential can hold.
pub const MAX_ACTIVATED: usize = 64;
/// Groups each of which lets a guest read the attestation keys' public parts.
const KEY_READERS: CallGroup = CallGroup::QUOTE.union(CallGroup::HOST_QUOTE).union(CallGroup::ENROL);

/// One hypercall: a number, a request and a reply, each a structure that data may follow.
pub trait Call {
    /// Number for EAX: [`NUMBER_BASE`] and the call's own part.
    const NUMBER: u32;
    /// The group that the manifest must allow, or groups of which one is enough; empty if every guest may call.
    const GROUP: CallGroup;
    /// Most bytes that may follow the request; 0 if its length is fixed.
    const REQUEST_DATA: usize = 0;
    /// Most bytes that may follow the reply; 0 if its length is fixed.
    const REPLY_DATA: usize = 0;
    /// Start of the request.
    type Request: FromBytes + IntoBytes + Immutable + KnownLayout;
    /// Start of the reply.
    type Reply: FromBytes + IntoBytes + Immutable + KnownLayout;
}

/// A call's row in the table of all calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallInfo {
    /// Number for EAX.
    pub number: u32,
    /// Name.
    pub name: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// The group that the manifest must allow, or groups of which one is enough.
    pub group: CallGroup,
    /// Bytes of the request's structure.
    pub request_bytes: usize,
    /// Most bytes after it.
    pub request_data: usize,
    /// Bytes of the reply's structure.
    pub reply_bytes: usize,
    /// Most bytes after it.
    pub reply_data: usize,
}

macro_rules! calls {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident = $number:literal, group: $group:expr,
            request: $request:ty, then: $request_data:expr, reply: $reply:ty, then: $reply_data:expr;
    )*) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl Call for $name {
                const NUMBER: u32 = NUMBER_BASE | $number;
                const GROUP: CallGroup = $group;
                const REQUEST_DATA: usize = $request_data;
                const REPLY_DATA: usize = $reply_data;
                type Request = $request;
                type Reply = $reply;
            }
        )*

        /// Every call.
        pub const CALLS: &[CallInfo] = &[ $( CallInfo {
            number: $name::NUMBER,
            name: stringify!($name),
            meaning: concat!($($doc),+),
            group: $group,
            request_bytes: size_of::<$request>(),
            request_data: $request_data,
            reply_bytes: size_of::<$reply>(),
            reply_data: $reply_data,
        }, )* ];
    };
}

calls! {
    /// Version, allowed calls, launch facts, limits and the guest's name.
    Version = 0x01, group: CallGroup::empty(), request: (), then: 0, reply: VersionReply, then: 0;
    /// Random bytes from the hypervisor's generator.
    Random = 0x02, group: CallGroup::RANDOM, request: RandomRequest, then: 0, reply: (), then: MAX_RANDOM;
    /// The values of G0 to G7.
    ReadRegisters = 0x10, group: CallGroup::REGISTERS, request: (), then: 0, reply: RegistersReply, then: 0;
    /// Extends one of G1 to G7: new value = SHA-384(old value ‖ digest).
    Extend = 0x11, group: CallGroup::REGISTERS, request: ExtendRequest, then: 0, reply: ExtendReply, then: 0;
    /// Seals data under a label; label and data follow the request, the reply is a blob.
    Seal = 0x20, group: CallGroup::SEAL, request: SealRequest, then: MAX_LABEL.saturating_add(MAX_SECRET),
        reply: BlobHeader, then: MAX_SECRET.saturating_add(crate::TAG_BYTES);
    /// Opens a blob; label and blob follow the request, the reply is what was sealed.
    Unseal = 0x21, group: CallGroup::SEAL, request: UnsealRequest,
        then: MAX_LABEL.saturating_add(MAX_SECRET).saturating_add(SEALED_OVERHEAD), reply: (), then: MAX_SECRET;
    /// A TPM quote over PCR 17 and 18 that binds the guest, its registers and 64 bytes of its choice.
    Quote = 0x30, group: CallGroup::QUOTE, request: QuoteRequest, then: 0, reply: QuoteReply, then: 0;
    /// The attestation key's public part as TPM2B_PUBLIC.
    AkPublic = 0x31, group: CallGroup::QUOTE, request: (), then: 0, reply: (), then: MAX_AK_PUBLIC;
    /// A window of the launch's event log (TCG crypto-agile format).
    EventLog = 0x32, group: CallGroup::LOG, request: EventLogRequest, then: 0,
        reply: EventLogReply, then: MAX_LOG_WINDOW;
    /// A TPM quote about the host: a nonce as it is, registers of the caller's choice and their values.
    HostQuote = 0x33, group: CallGroup::HOST_QUOTE, request: HostQuoteRequest, then: 0,
        reply: HostQuoteReply, then: 0;
    /// An attestation key's public part as TPM2B_PUBLIC; made if it was not there.
    KeyPublic = 0x34, group: KEY_READERS, request: KeyRequest, then: 0, reply: (), then: MAX_AK_PUBLIC;
    /// An endorsement key's public part as TPM2B_PUBLIC.
    EndorsementKey = 0x35, group: CallGroup::ENROL, request: KeyRequest, then: 0, reply: (), then: MAX_AK_PUBLIC;
    /// An endorsement key's certificate as the TPM's maker stored it.
    EkCertificate = 0x36, group: CallGroup::ENROL, request: KeyRequest, then: 0,
        reply: (), then: MAX_CERTIFICATE;
    /// Opens a credential that was made for an attestation key; credential and encrypted seed follow the request.
    ActivateCredential = 0x37, group: CallGroup::ENROL, request: ActivateRequest,
        then: MAX_CREDENTIAL.saturating_add(MAX_ENCRYPTED_SECRET), reply: (), then: MAX_ACTIVATED;
    /// A part of the chain of certificates that the TPM's maker stored behind those of its endorsement keys.
    EkChain = 0x38, group: CallGroup::ENROL, request: ChainRequest, then: 0, reply: (), then: MAX_CERTIFICATE;
    /// An attestation by a key that speaks of the host that it is itself, with a nonce as it is.
    Certify = 0x39, group: CallGroup::HOST_QUOTE, request: CertifyRequest, then: 0, reply: CertifyReply, then: 0;
    /// All guests: state, last stop, counters.
    ListGuests = 0x40, group: CallGroup::MANAGE, request: (), then: 0,
        reply: ListGuestsReply, then: MAX_GUESTS.saturating_mul(size_of::<GuestInfo>());
    /// Asks that a guest that is off or stopped be started; answered at once.
    StartGuest = 0x41, group: CallGroup::MANAGE, request: GuestName, then: 0, reply: (), then: 0;
    /// Asks that a guest be stopped and its memory wiped; answered at once.
    StopGuest = 0x42, group: CallGroup::MANAGE, request: GuestName, then: 0, reply: (), then: 0;
    /// Asks that a guest be stopped, wiped and started again; answered at once.
    ResetGuest = 0x43, group: CallGroup::MANAGE, request: GuestName, then: 0, reply: (), then: 0;
}

wire! {
    /// Reply of Version.
    pub struct VersionReply {
        /// Version of the interface.
        pub abi_version: u32,
        /// Calls that the manifest allows this guest (CallGroup bits).
        pub groups: u32,
        /// How the machine was launched (LaunchFacts bits).
        pub facts: u32,
        /// Most bytes that Random gives in one call.
        pub max_random: u32,
        /// Longest label in bytes.
        pub max_label: u32,
        /// Most bytes that Seal takes.
        pub max_secret: u32,
        /// Most bytes of the event log in one call.
        pub max_log_window: u32,
        /// Zero.
        pub reserved: u32,
        /// The guest's name, padded with zeroes.
        pub name: [u8; NAME_BYTES],
    }

    /// Request of Random.
    pub struct RandomRequest {
        /// Bytes wanted: at least 1.
        pub length: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Reply of ReadRegisters.
    pub struct RegistersReply {
        /// G0 to G7.
        pub values: Registers,
    }

    /// Request of Extend.
    pub struct ExtendRequest {
        /// 1 to 7.
        pub index: u32,
        /// Zero.
        pub reserved: u32,
        /// What is extended: by convention a SHA-384 digest.
        pub digest: [u8; REGISTER_BYTES],
    }

    /// Reply of Extend.
    pub struct ExtendReply {
        /// The register's new value.
        pub value: [u8; REGISTER_BYTES],
    }

    /// Request of Seal; `label_length` bytes of label and `data_length` bytes of data follow.
    pub struct SealRequest {
        /// What to bind to (SealPolicy bits).
        pub policy: u32,
        /// Bytes of the label.
        pub label_length: u32,
        /// Bytes to seal.
        pub data_length: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Request of Unseal; `label_length` bytes of label and `blob_length` bytes of blob follow.
    pub struct UnsealRequest {
        /// Bytes of the label.
        pub label_length: u32,
        /// Bytes of the blob.
        pub blob_length: u32,
        /// Zero.
        pub reserved: u64,
    }

    /// Request of Quote.
    pub struct QuoteRequest {
        /// 0, or 1 for a quote by the RSA key.
        pub flags: u32,
        /// Zero.
        pub reserved: u32,
        /// What to bind: a nonce, a key's digest.
        pub report_data: [u8; REPORT_DATA_BYTES],
    }

    /// Reply of Quote; unused bytes are zero.
    pub struct QuoteReply {
        /// Bytes used in `attest`.
        pub attest_length: u32,
        /// Bytes used in `signature`.
        pub signature_length: u32,
        /// This request's place among the leaves.
        pub index: u32,
        /// Leaves of the tree.
        pub count: u32,
        /// Entries used in `path`.
        pub path_length: u32,
        /// Zero.
        pub reserved: u32,
        /// What the leaf hashes.
        pub binding: Binding,
        /// Siblings from the leaf to the root.
        pub path: [[u8; 32]; MAX_PATH],
        /// The quote: TPMS_ATTEST.
        pub attest: [u8; MAX_ATTEST],
        /// Its signature: TPMT_SIGNATURE.
        pub signature: [u8; MAX_SIGNATURE],
    }

    /// Request of HostQuote.
    pub struct HostQuoteRequest {
        /// Which key signs (AkId): one that speaks of the host.
        pub key: u32,
        /// Registers of the SHA-256 bank, bit n for PCR n: at least one of the first 24.
        pub pcrs: u32,
        /// Bytes of the nonce.
        pub nonce_length: u32,
        /// Zero.
        pub reserved: u32,
        /// The quote's extra data, as it is; zeroes after it.
        pub nonce: [u8; MAX_HOST_NONCE],
    }

    /// Reply of HostQuote; unused bytes are zero.
    pub struct HostQuoteReply {
        /// Bytes used in `attest`.
        pub attest_length: u32,
        /// Bytes used in `signature`.
        pub signature_length: u32,
        /// The quote: TPMS_ATTEST.
        pub attest: [u8; MAX_ATTEST],
        /// Its signature: TPMT_SIGNATURE.
        pub signature: [u8; MAX_SIGNATURE],
        /// The registers that were quoted; zeroes in place of the others.
        pub values: [[u8; 32]; HOST_PCRS],
    }

    /// Request of Certify.
    pub struct CertifyRequest {
        /// Which key (AkId): one that speaks of the host.
        pub key: u32,
        /// Bytes of the nonce.
        pub nonce_length: u32,
        /// The attestation's extra data, as it is; zeroes after it.
        pub nonce: [u8; MAX_HOST_NONCE],
    }

    /// Reply of Certify; unused bytes are zero.
    pub struct CertifyReply {
        /// Bytes used in `attest`.
        pub attest_length: u32,
        /// Bytes used in `signature`.
        pub signature_length: u32,
        /// The attestation: TPMS_ATTEST.
        pub attest: [u8; MAX_ATTEST],
        /// Its signature: TPMT_SIGNATURE.
        pub signature: [u8; MAX_SIGNATURE],
    }

    /// Request of KeyPublic, EndorsementKey and EkCertificate.
    pub struct KeyRequest {
        /// Which key (AkId or EkId).
        pub key: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Request of EkChain.
    pub struct ChainRequest {
        /// Which part, from 0: at most 255.
        pub part: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Request of ActivateCredential; `credential_length` bytes of TPM2B_ID_OBJECT and `secret_length` bytes of
    /// TPM2B_ENCRYPTED_SECRET follow, both without their sizes.
    pub struct ActivateRequest {
        /// The attestation key that the credential is for (AkId).
        pub key: u32,
        /// The endorsement key that it was encrypted to (EkId).
        pub ek: u32,
        /// Bytes of the credential.
        pub credential_length: u32,
        /// Bytes of the encrypted seed.
        pub secret_length: u32,
    }

    /// Request of EventLog.
    pub struct EventLogRequest {
        /// First byte wanted.
        pub offset: u32,
        /// Most bytes wanted; fewer come at the log's end.
        pub length: u32,
    }

    /// Reply of EventLog; the bytes follow.
    pub struct EventLogReply {
        /// Bytes of the whole log.
        pub total: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Reply of any call that ends in TPM_FAILED.
    pub struct TpmFailure {
        /// The TPM's own response code; 0 if the TPM did not answer at all.
        pub response_code: u32,
        /// Zero.
        pub reserved: u32,
    }
}

impl QuoteRequest {
    /// Flag: the RSA key signs.
    pub const RSA: u32 = 1;
}

/// Longest request of any call.
pub const MAX_REQUEST: usize = longest(true);
/// Longest reply of any call.
pub const MAX_REPLY: usize = longest(false);

const fn longest(request: bool) -> usize {
    let mut longest = size_of::<TpmFailure>();
    let mut rest = CALLS;
    while let [call, tail @ ..] = rest {
        let length = if request {
            call.request_bytes.saturating_add(call.request_data)
        } else {
            call.reply_bytes.saturating_add(call.reply_data)
        };
        if length > longest {
            longest = length;
        }
        rest = tail;
    }
    longest
}

const _: () = {
    assert!(size_of::<VersionReply>() == 64);
    assert!(size_of::<RandomRequest>() == 8);
    assert!(size_of::<RegistersReply>() == 384);
    assert!(size_of::<ExtendRequest>() == 56);
    assert!(size_of::<ExtendReply>() == 48);
    assert!(size_of::<SealRequest>() == 16);
    assert!(size_of::<UnsealRequest>() == 16);
    assert!(size_of::<QuoteRequest>() == 72);
    assert!(size_of::<QuoteReply>() == 1440);
    assert!(core::mem::offset_of!(QuoteReply, binding) == 24);
    assert!(core::mem::offset_of!(QuoteReply, path) == 512);
    assert!(core::mem::offset_of!(QuoteReply, attest) == 672);
    assert!(core::mem::offset_of!(QuoteReply, signature) == 928);
    assert!(size_of::<HostQuoteRequest>() == 80);
    assert!(size_of::<HostQuoteReply>() == 1544);
    assert!(core::mem::offset_of!(HostQuoteReply, values) == 776);
    assert!(size_of::<CertifyRequest>() == 72);
    assert!(size_of::<CertifyReply>() == 776);
    assert!(size_of::<KeyRequest>() == 8);
    assert!(size_of::<ActivateRequest>() == 16);
    assert!(size_of::<EventLogRequest>() == 8);
    assert!(size_of::<EventLogReply>() == 8);
    assert!(size_of::<TpmFailure>() == 8);

    let mut rest = CALLS;
    while let [call, tail @ ..] = rest {
        assert!(crate::is_call_number(call.number), "a number outside of Dolmen's range");
        let mut others = tail;
        while let [other, more @ ..] = others {
            assert!(call.number != other.number, "two calls have one number");
            others = more;
        }
        rest = tail;
    }
};
