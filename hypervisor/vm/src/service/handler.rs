//! One function per call: from the request in the scratch buffer to the reply in it.

use dolmen_abi::{
    ABI_VERSION, AkId, Binding, Blob, EventLogReply, EventLogRequest, ExtendReply, ExtendRequest, MAX_LABEL,
    MAX_LOG_WINDOW, MAX_PATH, MAX_RANDOM, MAX_SECRET, QuoteReply, QuoteRequest, REGISTER_COUNT,
    RandomRequest, RegistersReply, SEALED_OVERHEAD, SealPolicy, SealRequest, Status, TpmFailure,
    UnsealRequest, VersionReply,
};
use sha2::{Digest, Sha384};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::desk::{self, Progress, Slot};
use super::platform::{Platform, TpmService};
use super::scratch::Scratch;
use super::seal::{self, Here};
use super::{Answer, Change, Service};

impl Service<'_> {
    pub(super) fn version(&mut self) -> Result<Answer, Status> {
        let limit = |bytes| u32::try_from(bytes).map_err(|_| Status::BAD_LENGTH);
        let reply = VersionReply {
            abi_version: ABI_VERSION,
            groups: self.groups.bits(),
            facts: self.facts.bits(),
            max_random: limit(MAX_RANDOM)?,
            max_label: limit(MAX_LABEL)?,
            max_secret: limit(MAX_SECRET)?,
            max_log_window: limit(MAX_LOG_WINDOW)?,
            reserved: 0,
            name: self.name,
        };
        put(self.scratch, &reply)
    }

    pub(super) fn random<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        let (request, _) = take::<RandomRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        let length = usize::try_from(request.length).map_err(|_| Status::BAD_ARGUMENT)?;
        if length == 0 || length > MAX_RANDOM {
            return Err(Status::BAD_ARGUMENT);
        }
        let slot = self.slot;
        let out = self.scratch.reply_mut(length).ok_or(Status::BAD_ARGUMENT)?;
        platform.with_tpm(|tpm| tpm.random(slot, out)).map_err(|_| Status::NO_ENTROPY)?;
        Ok(Answer::reply(length))
    }

    pub(super) fn read_registers(&mut self) -> Result<Answer, Status> {
        put(self.scratch, &RegistersReply { values: self.registers })
    }

    pub(super) fn extend(&mut self) -> Result<Answer, Status> {
        let (request, _) = take::<ExtendRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        let index = usize::try_from(request.index).map_err(|_| Status::BAD_ARGUMENT)?;
        let old = match index {
            0 => return Err(Status::READ_ONLY),
            1..REGISTER_COUNT => self.registers.get(index),
            _ => None,
        };
        let hash = Sha384::new().chain_update(old.ok_or(Status::BAD_ARGUMENT)?).chain_update(request.digest);
        let value = hash.finalize().into();
        let answer = put(self.scratch, &ExtendReply { value })?;
        Ok(Answer { change: Change::Register { index, value }, ..answer })
    }

    pub(super) fn seal<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        let here = Here::new(self.root.as_ref(), &self.manifest, &self.registers)?;
        let (request, _) = take::<SealRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        let policy = SealPolicy::checked(request.policy).ok_or(Status::BAD_FLAGS)?;
        let length = usize::try_from(request.data_length).map_err(|_| Status::BAD_LENGTH)?;
        if length > MAX_SECRET {
            return Err(Status::BAD_LENGTH);
        }
        let mut salt = [0; 32];
        platform.with_tpm(|tpm| tpm.random(self.slot, &mut salt)).map_err(|_| Status::NO_ENTROPY)?;
        let sealed = length.saturating_add(SEALED_OVERHEAD);
        let (bytes, out) = self.scratch.request_and_reply(sealed).ok_or(Status::BAD_LENGTH)?;
        let (label, data) = split(bytes, size_of::<SealRequest>(), request.label_length, length)?;
        seal::seal(&here, policy, label, data, salt, out)?;
        Ok(Answer::reply(sealed))
    }

    pub(super) fn unseal(&mut self) -> Result<Answer, Status> {
        let here = Here::new(self.root.as_ref(), &self.manifest, &self.registers)?;
        let (request, _) = take::<UnsealRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        let length = usize::try_from(request.blob_length).map_err(|_| Status::BAD_LENGTH)?;
        let head = size_of::<UnsealRequest>();
        let (_, blob) = split(self.scratch.request(), head, request.label_length, length)?;
        let secret = Blob::read(blob)?.sealed.len();
        let (bytes, out) = self.scratch.request_and_reply(secret).ok_or(Status::BAD_BLOB)?;
        let (label, blob) = split(bytes, head, request.label_length, length)?;
        seal::unseal(&here, label, &Blob::read(blob)?, out)?;
        Ok(Answer::reply(secret))
    }

    pub(super) fn quote<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        self.demand_launch()?;
        let (request, _) = take::<QuoteRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        let key = match request.flags {
            0 => AkId::GUEST_ECDSA,
            QuoteRequest::RSA => AkId::GUEST_RSA,
            _ => return Err(Status::BAD_FLAGS),
        };
        let binding = Binding {
            name: self.name,
            facts: self.facts.bits(),
            reserved: 0,
            registers: self.registers,
            report_data: request.report_data,
        };
        let progress = platform.with_tpm(|tpm| {
            desk::serve_waiting(tpm);
            tpm.desk().slot(self.slot).progress
        });
        let is_ours = self.quoting == Some((key, binding));
        match progress {
            Progress::Waiting | Progress::InFlight if is_ours => Err(Status::AGAIN),
            Progress::Waiting | Progress::InFlight => Err(Status::BUSY),
            Progress::Done if is_ours => self.quoted(&binding, platform),
            Progress::Failed(response_code) if is_ours => {
                let answer = put(self.scratch, &TpmFailure { response_code, reserved: 0 })?;
                Ok(Answer { status: Status::TPM_FAILED, change: Change::QuoteTaken, ..answer })
            }
            // Nothing, or the answer to a request that the guest no longer repeats.
            Progress::Free | Progress::Done | Progress::Failed(_) => {
                self.ask_for_quote(key, &binding, platform)
            }
        }
    }

    fn ask_for_quote<P: Platform>(
        &mut self,
        key: AkId,
        binding: &Binding,
        platform: &mut P,
    ) -> Result<Answer, Status> {
        if !self.quote_rate.take(platform.uptime_ms()) {
            return Err(Status::BUSY);
        }
        let (slot, leaf) = (self.slot, desk::leaf(binding));
        self.quoting = Some((key, *binding));
        platform.with_tpm(|tpm| {
            tpm.desk().submit(slot, key, leaf);
            desk::serve_waiting(tpm);
        });
        Err(Status::AGAIN)
    }

    fn quoted<P: Platform>(&mut self, binding: &Binding, platform: &mut P) -> Result<Answer, Status> {
        let reply = platform.with_tpm(|tpm| quote_reply(binding, tpm.desk().slot(self.slot)));
        let reply = reply.ok_or(Status::BAD_LENGTH)?;
        let answer = put(self.scratch, &reply)?;
        Ok(Answer { change: Change::QuoteTaken, ..answer })
    }

    pub(super) fn demand_launch(&self) -> Result<(), Status> {
        if self.facts.is_launched() { Ok(()) } else { Err(Status::NOT_LAUNCHED) }
    }

    pub(super) fn ak_public<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        self.demand_launch()?;
        let key = platform.ak_public();
        put_bytes(self.scratch, 0, key)
    }

    pub(super) fn event_log<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        let (request, _) = take::<EventLogRequest>(self.scratch)?;
        let log = platform.event_log();
        let offset = usize::try_from(request.offset).map_err(|_| Status::BAD_ARGUMENT)?;
        let wanted = usize::try_from(request.length).map_err(|_| Status::BAD_ARGUMENT)?;
        if wanted > MAX_LOG_WINDOW {
            return Err(Status::BAD_ARGUMENT);
        }
        let rest = log.get(offset..).ok_or(Status::BAD_ARGUMENT)?;
        let window = rest.get(..wanted).unwrap_or(rest);
        let total = u32::try_from(log.len()).map_err(|_| Status::BAD_ARGUMENT)?;
        put(self.scratch, &EventLogReply { total, reserved: 0 })?;
        put_bytes(self.scratch, size_of::<EventLogReply>(), window)
    }
}

/// The start of the request as a structure, and the data after it.
pub(super) fn take<R: FromBytes + KnownLayout + Immutable>(scratch: &Scratch) -> Result<(R, &[u8]), Status> {
    R::read_from_prefix(scratch.request()).map_err(|_| Status::BAD_LENGTH)
}

/// Makes `reply` the whole reply.
pub(super) fn put<R: IntoBytes + Immutable>(scratch: &mut Scratch, reply: &R) -> Result<Answer, Status> {
    put_bytes(scratch, 0, reply.as_bytes())
}

/// Makes `bytes` the end of the reply, at `offset`.
pub(super) fn put_bytes(scratch: &mut Scratch, offset: usize, bytes: &[u8]) -> Result<Answer, Status> {
    let length = offset.saturating_add(bytes.len());
    let room = scratch.reply_mut(length).and_then(|reply| reply.get_mut(offset..));
    room.ok_or(Status::BAD_LENGTH)?.copy_from_slice(bytes);
    Ok(Answer::reply(length))
}

pub(super) fn all_zero(reserved: impl Into<u64>) -> Result<(), Status> {
    if reserved.into() == 0 { Ok(()) } else { Err(Status::RESERVED_NOT_ZERO) }
}

/// Label and data after `head` bytes of a request, if they fill it exactly.
fn split(
    request: &[u8],
    head: usize,
    label_length: u32,
    data_length: usize,
) -> Result<(&[u8], &[u8]), Status> {
    let label_length = usize::try_from(label_length).map_err(|_| Status::BAD_LENGTH)?;
    if label_length > MAX_LABEL {
        return Err(Status::BAD_LENGTH);
    }
    let rest = request.get(head..).ok_or(Status::BAD_LENGTH)?;
    let (label, data) = rest.split_at_checked(label_length).ok_or(Status::BAD_LENGTH)?;
    if data.len() == data_length { Ok((label, data)) } else { Err(Status::BAD_LENGTH) }
}

fn quote_reply(binding: &Binding, slot: &Slot) -> Option<QuoteReply> {
    let (attest, attest_length, signature, signature_length) = slot.quote.parts();
    let mut path = [[0; 32]; MAX_PATH];
    path.get_mut(..slot.path().len())?.copy_from_slice(slot.path());
    Some(QuoteReply {
        attest_length: u32::try_from(attest_length).ok()?,
        signature_length: u32::try_from(signature_length).ok()?,
        index: slot.index,
        count: slot.count,
        path_length: u32::try_from(slot.path().len()).ok()?,
        reserved: 0,
        binding: *binding,
        path,
        attest: *attest,
        signature: *signature,
    })
}
