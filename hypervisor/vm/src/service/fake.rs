//! A guest's memory and a TPM that tests and fuzzing can hold: what they do is visible and can be bent.

use core::cell::RefCell;
use core::ops::Range;

use dolmen_abi::{
    AkId, BlobHeader, Call, CertifyReply, GuestInfo, HostQuoteReply, MAX_ATTEST, MAX_SIGNATURE, NAME_BYTES,
    Status, Unseal, UnsealRequest,
};
use dolmen_memory::{Gpa, GuestMemory, OutsideRam};
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

use super::{
    CallArgs, Errand, ErrandAnswer, ErrandDesk, GuestSlot, GuestTable, NoEntropy, Platform, QuoteDesk,
    QuotePoll, Scratch, Secret, Service, ServiceConfig, SignedQuote, TpmBusy, TpmService,
};
use crate::lifecycle::{Components, Lifecycle, Outcome, Request, Rules, WIPE_BYTES};
use crate::manifest::Answer;

/// Bytes of [`FakeRam`].
pub const RAM_BYTES: usize = 0x1_8000;
/// First byte after the hole in [`FakeRam`], where a real guest would have MMIO.
const HOLE: Range<usize> = 0x1_0000..0x1_1000;

/// RAM from address 0 with a hole of one page that is not RAM.
#[derive(Clone, Debug)]
pub struct FakeRam {
    bytes: [u8; RAM_BYTES],
    /// Reads so far.
    pub reads: core::cell::Cell<usize>,
    /// Writes so far.
    pub writes: usize,
}

impl FakeRam {
    /// All zeroes.
    pub const fn new() -> Self {
        Self { bytes: [0; RAM_BYTES], reads: core::cell::Cell::new(0), writes: 0 }
    }

    fn range(at: Gpa, length: usize) -> Result<Range<usize>, OutsideRam> {
        let start = usize::try_from(at.get()).map_err(|_| OutsideRam)?;
        let end = start.checked_add(length).filter(|end| *end <= RAM_BYTES).ok_or(OutsideRam)?;
        let is_ram = end <= HOLE.start || start >= HOLE.end;
        if is_ram { Ok(start..end) } else { Err(OutsideRam) }
    }
}

impl Default for FakeRam {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestMemory for FakeRam {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        self.reads.set(self.reads.get().saturating_add(1));
        into.copy_from_slice(self.bytes.get(Self::range(at, into.len())?).ok_or(OutsideRam)?);
        Ok(())
    }

    fn write(&mut self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        self.writes = self.writes.saturating_add(1);
        self.bytes.get_mut(Self::range(at, from.len())?).ok_or(OutsideRam)?.copy_from_slice(from);
        Ok(())
    }
}

/// Three guests without images, which live a step of their lives each time somebody looks at them: `first`, which runs,
/// and `second` and `third`, which are off.
#[derive(Debug)]
pub struct FakeGuests([RefCell<Lifecycle>; 3]);

/// Names of [`FakeGuests`].
pub const GUESTS: [&str; 3] = ["first", "second", "third"];
/// Memory of each of them.
const GUEST_BYTES: u64 = 2 * WIPE_BYTES;

impl Default for FakeGuests {
    fn default() -> Self {
        let rules = Rules {
            on_reboot: Answer::Restart,
            on_crash: Answer::Restart,
            on_power_off: Answer::Stop,
            restart_limit: 3,
        };
        let lives = [(); 3].map(|()| RefCell::new(Lifecycle::new(rules, Components::NONE, GUEST_BYTES)));
        let [first, ..] = &lives;
        first.borrow_mut().started_at_boot(0);
        Self(lives)
    }
}

impl FakeGuests {
    /// The life of one of them, to be bent.
    pub fn life(&mut self, index: usize) -> Option<&mut Lifecycle> {
        self.0.get_mut(index).map(RefCell::get_mut)
    }
}

/// A name as structures have it.
pub fn padded(name: &str) -> [u8; NAME_BYTES] {
    let mut padded = [0; NAME_BYTES];
    padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    padded
}

impl GuestTable for FakeGuests {
    fn uptime_ns(&self) -> u64 {
        2_000_000_000
    }

    fn describe(&self, index: usize) -> Option<GuestInfo> {
        let mut life = self.0.get(index)?.borrow_mut();
        if life.take(self.uptime_ns()).is_some() {
            life.done(Outcome::Done, self.uptime_ns());
        }
        let mut info = GuestInfo {
            name: padded(GUESTS.get(index)?),
            vcpus: 1,
            memory: GUEST_BYTES,
            identity: [0x60; 48],
            ..GuestInfo::default()
        };
        life.describe(&mut info, self.uptime_ns());
        Some(info)
    }

    fn request(&mut self, name: &[u8; NAME_BYTES], request: Request) -> Result<(), Status> {
        let index = GUESTS.iter().position(|known| padded(known) == *name).ok_or(Status::NO_SUCH_GUEST)?;
        self.life(index).ok_or(Status::NO_SUCH_GUEST)?.request(request, 1_000_000_000)
    }
}

/// A TPM whose quotes are 145 bytes that end in the extra data, "signed" with 72 bytes of 5Ah.
#[derive(Debug)]
pub struct FakeTpm {
    desk: QuoteDesk,
    errands: ErrandDesk,
    /// The errand in flight, and polls until it is done.
    pub errand: Option<(Errand, u32)>,
    /// Errands started.
    pub errands_started: u32,
    /// Certificate of the RSA endorsement key; the other has none.
    pub certificate: &'static [u8],
    /// The key of the quote in flight.
    pub key: AkId,
    /// The guests.
    pub guests: FakeGuests,
    /// Counts up for each block of random bytes.
    pub drawn: u64,
    /// Whether the generator has a seed.
    pub has_entropy: bool,
    /// Whether a quote can be started.
    pub is_free: bool,
    /// Polls until a quote is done.
    pub delay: u32,
    /// Response code that the next quotes fail with, unless 0.
    pub failure: u32,
    /// Extra data of the quote in flight.
    pub in_flight: Option<[u8; 32]>,
    /// Quotes started.
    pub started: u32,
    /// The clock.
    pub now_ms: u64,
    /// The event log.
    pub log: &'static [u8],
    /// Happens once, after the next step at the TPM: what a call on another processor does between two steps.
    pub interference: Option<fn(&mut Self)>,
    remaining: u32,
}

impl Default for FakeTpm {
    fn default() -> Self {
        Self {
            desk: QuoteDesk::new(),
            errands: ErrandDesk::new(),
            errand: None,
            errands_started: 0,
            certificate: b"a certificate",
            key: AkId::GUEST_ECDSA,
            guests: FakeGuests::default(),
            drawn: 0,
            has_entropy: true,
            is_free: true,
            delay: 2,
            failure: 0,
            in_flight: None,
            started: 0,
            now_ms: 1000,
            log: b"a log, for a test no better than another",
            interference: None,
            remaining: 0,
        }
    }
}

/// Bytes before the extra data in a fake quote.
pub const ATTEST_HEAD: usize = 113;

impl Platform for FakeTpm {
    type Tpm = Self;

    fn with_tpm<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        let done = work(self);
        if let Some(interfere) = self.interference.take() {
            interfere(self);
        }
        done
    }

    fn ak_public(&self) -> &[u8] {
        b"the public part of a key"
    }

    fn event_log(&self) -> &[u8] {
        self.log
    }

    fn uptime_ms(&self) -> u64 {
        self.now_ms
    }

    fn guests(&mut self) -> &mut impl GuestTable {
        &mut self.guests
    }
}

impl TpmService for FakeTpm {
    fn random(&mut self, _: GuestSlot, out: &mut [u8]) -> Result<(), NoEntropy> {
        if !self.has_entropy {
            return Err(NoEntropy);
        }
        for chunk in out.chunks_mut(32) {
            self.drawn = self.drawn.wrapping_add(1);
            let block = Sha256::digest(self.drawn.to_le_bytes());
            chunk.iter_mut().zip(block).for_each(|(byte, random)| *byte = random);
        }
        Ok(())
    }

    fn start_quote(&mut self, key: AkId, extra_data: [u8; 32]) -> Result<(), TpmBusy> {
        if !self.is_free || self.in_flight.is_some() || self.errand.is_some() {
            return Err(TpmBusy);
        }
        self.key = key;
        self.in_flight = Some(extra_data);
        self.remaining = self.delay;
        self.started = self.started.wrapping_add(1);
        Ok(())
    }

    fn poll_quote(&mut self, into: &mut SignedQuote) -> QuotePoll {
        if let Some(rest) = self.remaining.checked_sub(1) {
            self.remaining = rest;
            return QuotePoll::Pending;
        }
        match self.in_flight.take() {
            Some(_) if self.failure != 0 => QuotePoll::Failed(self.failure),
            Some(extra_data) => {
                let mut attest = [0xa7; ATTEST_HEAD.saturating_add(32)];
                attest.iter_mut().rev().zip(extra_data.iter().rev()).for_each(|(to, from)| *to = *from);
                if into.set(&attest, &[0x5a; 72]) { QuotePoll::Done } else { QuotePoll::Failed(0) }
            }
            None => QuotePoll::Failed(0),
        }
    }

    fn start_errand(&mut self, errand: &Errand) -> Result<(), TpmBusy> {
        if !self.is_free || self.in_flight.is_some() || self.errand.is_some() {
            return Err(TpmBusy);
        }
        self.errand = Some((*errand, self.delay));
        self.errands_started = self.errands_started.wrapping_add(1);
        Ok(())
    }

    fn poll_errand(&mut self, into: &mut ErrandAnswer) -> QuotePoll {
        let Some((errand, remaining)) = self.errand else { return QuotePoll::Failed(0) };
        if let Some(rest) = remaining.checked_sub(1) {
            self.errand = Some((errand, rest));
            return QuotePoll::Pending;
        }
        self.errand = None;
        if self.failure != 0 {
            return QuotePoll::Failed(self.failure);
        }
        if into.set(&[&self.answer(&errand)]) { QuotePoll::Done } else { QuotePoll::Failed(0) }
    }

    fn errands(&mut self) -> &mut ErrandDesk {
        &mut self.errands
    }

    fn desk(&mut self) -> &mut QuoteDesk {
        &mut self.desk
    }
}

/// Bytes of the longest fake answer.
const ANSWER: usize = size_of::<HostQuoteReply>();

impl FakeTpm {
    /// What this TPM makes of an errand, padded with zeroes where it must be of one length.
    fn answer(&self, errand: &Errand) -> FakeAnswer {
        let text = |text: &[u8]| FakeAnswer::of(text);
        match errand {
            Errand::HostQuote { nonce, pcrs, .. } => {
                let mut reply = HostQuoteReply {
                    attest_length: u32::try_from(nonce.get().len()).unwrap_or(0),
                    signature_length: 72,
                    attest: [0; MAX_ATTEST],
                    signature: [0; MAX_SIGNATURE],
                    values: [[0; 32]; 24],
                };
                reply.attest.iter_mut().zip(nonce.get()).for_each(|(to, from)| *to = *from);
                reply.signature.iter_mut().take(72).for_each(|byte| *byte = 0x5a);
                for (index, value) in (0u32..).zip(reply.values.iter_mut()) {
                    let is_quoted = pcrs.wrapping_shr(index) & 1 != 0;
                    *value = if is_quoted { [u8::try_from(index).unwrap_or(0); 32] } else { [0; 32] };
                }
                text(reply.as_bytes())
            }
            Errand::Certify { nonce, .. } => {
                let mut reply = CertifyReply {
                    attest_length: u32::try_from(nonce.get().len()).unwrap_or(0),
                    signature_length: 72,
                    attest: [0; MAX_ATTEST],
                    signature: [0; MAX_SIGNATURE],
                };
                reply.attest.iter_mut().zip(nonce.get()).for_each(|(to, from)| *to = *from);
                reply.signature.iter_mut().take(72).for_each(|byte| *byte = 0xa5);
                text(reply.as_bytes())
            }
            Errand::KeyPublic(key) => text(&[b'k', u8::try_from(key.0).unwrap_or(0xff)]),
            Errand::EndorsementKey(key) => text(&[b'e', u8::try_from(key.0).unwrap_or(0xff)]),
            Errand::Certificate(dolmen_abi::EkId::RSA) => text(self.certificate),
            Errand::Certificate(_) => text(&[]),
            Errand::Chain(part @ 0..2) => text(&[b'c', *part]),
            Errand::Chain(_) => text(&[]),
            Errand::Activate { credential, .. } => text(credential.get()),
        }
    }
}

/// A fake answer.
struct FakeAnswer([u8; ANSWER], usize);

impl FakeAnswer {
    fn of(bytes: &[u8]) -> Self {
        let mut answer = Self([0; ANSWER], bytes.len().min(ANSWER));
        answer.0.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        answer
    }
}

impl core::ops::Deref for FakeAnswer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.get(..self.1).unwrap_or_default()
    }
}

/// A configuration as a dynamic launch makes it.
pub fn launched_config(slot: GuestSlot) -> ServiceConfig {
    let mut name = [0; 32];
    name.iter_mut().zip(b"first").for_each(|(to, from)| *to = *from);
    ServiceConfig {
        slot,
        name,
        identity: [0x60; 48],
        manifest: [0x18; 32],
        groups: dolmen_abi::CallGroup::all(),
        facts: dolmen_abi::LaunchFacts::AMD_SKINIT.union(dolmen_abi::LaunchFacts::IOMMU_SHIELDED),
        sealing_root: Some(Secret::new([0x11; 32])),
    }
}

/// Lets the service open what a fuzzer made up behind a blob's magic: it is refused by name, and nothing comes of it.
pub fn open_forged(bytes: &[u8]) {
    const BLOB_MOST: usize = 0x4000;
    let mut scratch = Scratch::new();
    let Some(slot) = GuestSlot::new(0) else { return };
    let mut service = Service::new(launched_config(slot), &mut scratch);
    let (mut ram, mut tpm) = (FakeRam::new(), FakeTpm::default());
    let bytes = bytes.get(..BLOB_MOST).unwrap_or(bytes);
    let length = bytes.len().saturating_add(BlobHeader::MAGIC.len());
    let blob_length = u32::try_from(length).unwrap_or(u32::MAX);
    let head = UnsealRequest { label_length: 0, blob_length, reserved: 0 };
    let mut at = 0_u64;
    for part in [head.as_bytes(), &BlobHeader::MAGIC, bytes] {
        assert!(ram.write(Gpa::new(at), part).is_ok(), "the request has its room");
        at = at.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
    }
    let args = CallArgs { rdi: 0, rsi: at, rdx: 0x8000, rcx: 0x8000 };
    let result = service.call(Unseal::NUMBER, args, true, &mut ram, &mut tpm);
    let version = bytes.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
    let is_newer = version.is_some_and(|version| version > BlobHeader::NEWEST);
    let status = Status::from_rax(result.status);
    let is_named = match status {
        Status::NEWER_BLOB => is_newer,
        Status::BAD_BLOB | Status::REFUSED => !is_newer,
        _ => false,
    };
    assert!(is_named && result.reply_len == 0, "{status} for a forged blob");
}

/// Runs a script of calls that a fuzzer made up: nothing of it may panic, hang or write outside of the reply.
///
/// Per step: a byte that picks the call or a strange number, two bytes each for the four arguments, a byte of
/// bent circumstances, a byte of length, and that many bytes for the request.
pub fn run_script(mut script: &[u8]) {
    let mut scratch = Scratch::new();
    let Some(slot) = GuestSlot::new(3) else { return };
    let mut service = Service::new(launched_config(slot), &mut scratch);
    let (mut ram, mut tpm) = (FakeRam::new(), FakeTpm::default());
    while let Some((head, rest)) = script.split_first_chunk::<11>() {
        let [pick, a0, a1, b0, b1, c0, c1, d0, d1, bend, length] = *head;
        let address = |low, high| u64::from(u16::from_le_bytes([low, high])).wrapping_mul(2);
        let args = CallArgs {
            rdi: address(a0, a1),
            rsi: u64::from(u16::from_le_bytes([b0, b1])),
            rdx: address(c0, c1),
            rcx: u64::from(u16::from_le_bytes([d0, d1])),
        };
        let number = match dolmen_abi::CALLS.get(usize::from(pick & 0x1f)) {
            Some(call) => call.number,
            None => u32::from_le_bytes([pick, a0, b0, c0]),
        };
        tpm.has_entropy = bend & 1 == 0;
        tpm.is_free = bend & 2 == 0;
        tpm.failure = if bend & 4 == 0 { 0 } else { 0x9d1 };
        tpm.now_ms = tpm.now_ms.saturating_add(u64::from(bend));
        let (data, rest) = rest.split_at_checked(usize::from(length)).unwrap_or((rest, &[]));
        let _is_in_ram = ram.write(Gpa::new(args.rdi), data).is_ok();
        let result = service.call(number, args, bend & 0x80 == 0, &mut ram, &mut tpm);
        assert!(result.reply_len <= args.rcx || result.reply_len == args.rdx, "more than the room for it");
        script = rest;
    }
}
