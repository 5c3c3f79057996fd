//! The calls as functions.

use dolmen_abi::{
    ActivateCredential, ActivateRequest, AkId, AkPublic, Call, Certify, CertifyReply, CertifyRequest,
    ChainRequest, EkCertificate, EkChain, EkId, EndorsementKey, EventLog, EventLogReply, EventLogRequest,
    Extend, ExtendRequest, GuestInfo, GuestName, HostQuote, HostQuoteReply, HostQuoteRequest, KeyPublic,
    KeyRequest, ListGuests, ListGuestsReply, MAX_ACTIVATED, MAX_GUESTS, MAX_HOST_NONCE, MAX_LABEL,
    MAX_RANDOM, MAX_SECRET, Quote, QuoteReply, QuoteRequest, REGISTER_BYTES, REPORT_DATA_BYTES, Random,
    RandomRequest, ReadRegisters, Registers, ResetGuest, SEALED_OVERHEAD, Seal, SealPolicy, SealRequest,
    StartGuest, Status, StopGuest, TpmFailure, Unseal, UnsealRequest, Version, VersionReply,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::{Error, Transport};

/// Bytes of the event log that are fetched at a time.
const WINDOW: usize = 1024;

/// All guests, as [`Client::guests`] brought them.
#[derive(Clone, Copy, Debug)]
pub struct GuestList<'a> {
    /// When, and who asked.
    pub head: ListGuestsReply,
    bytes: &'a [u8],
}

impl GuestList<'_> {
    /// Bytes of the longest list.
    pub const BYTES: usize =
        size_of::<ListGuestsReply>().saturating_add(MAX_GUESTS.saturating_mul(size_of::<GuestInfo>()));

    /// The guests in manifest order.
    pub fn guests(&self) -> impl Iterator<Item = GuestInfo> + '_ {
        self.bytes.chunks_exact(size_of::<GuestInfo>()).filter_map(|one| GuestInfo::read_from_bytes(one).ok())
    }
}

/// A guest's side of the hypercalls.
#[derive(Debug)]
pub struct Client<T> {
    transport: T,
}

impl<T: Transport> Client<T> {
    /// A client that speaks through `transport`.
    pub const fn new(transport: T) -> Self {
        Self { transport }
    }

    /// Version, allowed calls, launch facts, limits and the guest's name.
    ///
    /// # Errors
    /// [`Error`]; so for all calls below.
    pub fn version(&mut self) -> Result<VersionReply, Error<T::Error>> {
        self.fixed::<Version>(&())
    }

    /// Fills `out` with random bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn random(&mut self, out: &mut [u8]) -> Result<(), Error<T::Error>> {
        for chunk in out.chunks_mut(MAX_RANDOM) {
            let request = RandomRequest { length: length_of(chunk)?, reserved: 0 };
            let wanted = chunk.len();
            if self.call::<Random>(&[request.as_bytes()], chunk)? != wanted {
                return Err(Error::Reply);
            }
        }
        Ok(())
    }

    /// The guest's registers, G0 first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn registers(&mut self) -> Result<Registers, Error<T::Error>> {
        Ok(self.fixed::<ReadRegisters>(&())?.values)
    }

    /// Extends G`index`; its new value.
    ///
    /// # Errors
    /// [`Error`].
    pub fn extend(
        &mut self,
        index: u32,
        digest: &[u8; REGISTER_BYTES],
    ) -> Result<[u8; REGISTER_BYTES], Error<T::Error>> {
        Ok(self.fixed::<Extend>(&ExtendRequest { index, reserved: 0, digest: *digest })?.value)
    }

    /// Seals `data` under `label` into `blob`; the blob's length, which is [`SEALED_OVERHEAD`] more than the data's.
    ///
    /// # Errors
    /// [`Error`].
    pub fn seal(
        &mut self,
        policy: SealPolicy,
        label: &[u8],
        data: &[u8],
        blob: &mut [u8],
    ) -> Result<usize, Error<T::Error>> {
        if label.len() > MAX_LABEL || data.len() > MAX_SECRET {
            return Err(Error::Length);
        }
        let request = SealRequest {
            policy: policy.bits(),
            label_length: length_of(label)?,
            data_length: length_of(data)?,
            reserved: 0,
        };
        let length = self.call::<Seal>(&[request.as_bytes(), label, data], blob)?;
        if length == data.len().saturating_add(SEALED_OVERHEAD) { Ok(length) } else { Err(Error::Reply) }
    }

    /// Opens `blob`, sealed under the same label, into `data`; the length of what was sealed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn unseal(&mut self, label: &[u8], blob: &[u8], data: &mut [u8]) -> Result<usize, Error<T::Error>> {
        if label.len() > MAX_LABEL || blob.len() > MAX_SECRET.saturating_add(SEALED_OVERHEAD) {
            return Err(Error::Length);
        }
        let request =
            UnsealRequest { label_length: length_of(label)?, blob_length: length_of(blob)?, reserved: 0 };
        let length = self.call::<Unseal>(&[request.as_bytes(), label, blob], data)?;
        if length.saturating_add(SEALED_OVERHEAD) == blob.len() { Ok(length) } else { Err(Error::Reply) }
    }

    /// A hardware quote that binds this guest, its registers and `report_data`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn quote(&mut self, report_data: &[u8; REPORT_DATA_BYTES]) -> Result<QuoteReply, Error<T::Error>> {
        self.quote_by(AkId::GUEST_ECDSA, report_data)
    }

    /// The same by one of the two keys that bind guests.
    ///
    /// # Errors
    /// [`Error::Length`] for a key that does not bind guests, or another [`Error`].
    pub fn quote_by(
        &mut self,
        key: AkId,
        report_data: &[u8; REPORT_DATA_BYTES],
    ) -> Result<QuoteReply, Error<T::Error>> {
        let flags = match key {
            AkId::GUEST_ECDSA => 0,
            AkId::GUEST_RSA => QuoteRequest::RSA,
            _ => return Err(Error::Length),
        };
        let request = QuoteRequest { flags, reserved: 0, report_data: *report_data };
        let reply = self.fixed::<Quote>(&request)?;
        if reply.binding.report_data == *report_data { Ok(reply) } else { Err(Error::Reply) }
    }

    /// The attestation key's public part (`TPM2B_PUBLIC`), into `out`; its length.
    ///
    /// # Errors
    /// [`Error`].
    pub fn ak_public(&mut self, out: &mut [u8]) -> Result<usize, Error<T::Error>> {
        self.call::<AkPublic>(&[], out)
    }

    /// A quote about the host by one of the two keys for that: over registers of the SHA-256 bank (bit n for PCR n),
    /// with `nonce` as its extra data, and the registers' values.
    ///
    /// # Errors
    /// [`Error::Length`] for a nonce that is too long, or another [`Error`].
    pub fn host_quote(
        &mut self,
        key: AkId,
        pcrs: u32,
        nonce: &[u8],
    ) -> Result<HostQuoteReply, Error<T::Error>> {
        let (nonce_length, nonce) = (length_of(nonce)?, padded(nonce).ok_or(Error::Length)?);
        let request = HostQuoteRequest { key: key.0, pcrs, nonce_length, reserved: 0, nonce };
        self.fixed::<HostQuote>(&request)
    }

    /// What one of the two keys that speak of the host attests of itself, with `nonce` as the attestation's extra data.
    ///
    /// # Errors
    /// [`Error::Length`] for a nonce that is too long, or another [`Error`].
    pub fn certify(&mut self, key: AkId, nonce: &[u8]) -> Result<CertifyReply, Error<T::Error>> {
        let (nonce_length, nonce) = (length_of(nonce)?, padded(nonce).ok_or(Error::Length)?);
        self.fixed::<Certify>(&CertifyRequest { key: key.0, nonce_length, nonce })
    }

    /// An attestation key's public part (`TPM2B_PUBLIC`), into `out`; its length.
    ///
    /// # Errors
    /// [`Error`].
    pub fn key_public(&mut self, key: AkId, out: &mut [u8]) -> Result<usize, Error<T::Error>> {
        self.call::<KeyPublic>(&[KeyRequest { key: key.0, reserved: 0 }.as_bytes()], out)
    }

    /// An endorsement key's public part (`TPM2B_PUBLIC`), into `out`; its length.
    ///
    /// # Errors
    /// [`Error`].
    pub fn endorsement_key(&mut self, key: EkId, out: &mut [u8]) -> Result<usize, Error<T::Error>> {
        self.call::<EndorsementKey>(&[KeyRequest { key: key.0, reserved: 0 }.as_bytes()], out)
    }

    /// An endorsement key's certificate, into `out`; its length.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Status::NO_CERTIFICATE`] if the TPM has none, or another [`Error`].
    pub fn ek_certificate(&mut self, key: EkId, out: &mut [u8]) -> Result<usize, Error<T::Error>> {
        self.call::<EkCertificate>(&[KeyRequest { key: key.0, reserved: 0 }.as_bytes()], out)
    }

    /// A part of the chain of certificates behind those of the endorsement keys, into `out`; its length, and none for one
    /// that is not there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn ek_chain(&mut self, part: u8, out: &mut [u8]) -> Result<Option<usize>, Error<T::Error>> {
        match self.call::<EkChain>(&[ChainRequest { part: part.into(), reserved: 0 }.as_bytes()], out) {
            // An older hypervisor knows no chains.
            Err(Error::Refused(Status::NO_CERTIFICATE | Status::NO_SUCH_CALL)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Opens a credential for `key` that was encrypted to `ek` (`TPM2B_ID_OBJECT` and `TPM2B_ENCRYPTED_SECRET`, both
    /// without their sizes), into `out`; its length.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Tpm`] if it is not for this key of this TPM.
    pub fn activate_credential(
        &mut self,
        (key, ek): (AkId, EkId),
        credential: &[u8],
        secret: &[u8],
        out: &mut [u8; MAX_ACTIVATED],
    ) -> Result<usize, Error<T::Error>> {
        let (credential_length, secret_length) = (length_of(credential)?, length_of(secret)?);
        let request = ActivateRequest { key: key.0, ek: ek.0, credential_length, secret_length };
        self.call::<ActivateCredential>(&[request.as_bytes(), credential, secret], out)
    }

    /// The launch's event log into `out`; its length.
    ///
    /// # Errors
    /// [`Error::Length`] if `out` is too small, or another [`Error`].
    pub fn event_log(&mut self, out: &mut [u8]) -> Result<usize, Error<T::Error>> {
        let mut have: usize = 0;
        loop {
            let mut window = [0; size_of::<EventLogReply>().saturating_add(WINDOW)];
            let offset = u32::try_from(have).map_err(|_| Error::Length)?;
            let length = u32::try_from(WINDOW).map_err(|_| Error::Length)?;
            let request = EventLogRequest { offset, length };
            let filled = self.call::<EventLog>(&[request.as_bytes()], &mut window)?;
            let reply = window.get(..filled).ok_or(Error::Reply)?;
            let (head, bytes) = EventLogReply::read_from_prefix(reply).map_err(|_| Error::Reply)?;
            let end = have.saturating_add(bytes.len());
            let total = usize::try_from(head.total).map_err(|_| Error::Reply)?;
            out.get_mut(have..end).ok_or(Error::Length)?.copy_from_slice(bytes);
            have = end;
            match total.checked_sub(have) {
                Some(0) => return Ok(have),
                Some(_) if !bytes.is_empty() => {}
                Some(_) | None => return Err(Error::Reply),
            }
        }
    }

    /// All guests of the machine, into `buffer` of [`GuestList::BYTES`] bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn guests<'a>(&mut self, buffer: &'a mut [u8]) -> Result<GuestList<'a>, Error<T::Error>> {
        let filled = self.call::<ListGuests>(&[], buffer)?;
        let reply = buffer.get(..filled).ok_or(Error::Reply)?;
        let (head, bytes) = ListGuestsReply::read_from_prefix(reply).map_err(|_| Error::Reply)?;
        let told =
            usize::try_from(head.count).ok().and_then(|count| count.checked_mul(size_of::<GuestInfo>()));
        if told == Some(bytes.len()) { Ok(GuestList { head, bytes }) } else { Err(Error::Reply) }
    }

    /// Asks that a guest be started.
    ///
    /// # Errors
    /// [`Error::Length`] for a name that no guest can have, or another [`Error`].
    pub fn start_guest(&mut self, name: &str) -> Result<(), Error<T::Error>> {
        self.ask::<StartGuest>(name)
    }

    /// Asks that a guest be stopped.
    ///
    /// # Errors
    /// As [`Self::start_guest`].
    pub fn stop_guest(&mut self, name: &str) -> Result<(), Error<T::Error>> {
        self.ask::<StopGuest>(name)
    }

    /// Asks that a guest be stopped and started again.
    ///
    /// # Errors
    /// As [`Self::start_guest`].
    pub fn reset_guest(&mut self, name: &str) -> Result<(), Error<T::Error>> {
        self.ask::<ResetGuest>(name)
    }

    fn ask<C: Call<Request = GuestName, Reply = ()>>(&mut self, name: &str) -> Result<(), Error<T::Error>> {
        self.fixed::<C>(&GuestName::new(name).ok_or(Error::Length)?)
    }

    /// The way to the hypervisor.
    pub const fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    fn fixed<C: Call>(&mut self, request: &C::Request) -> Result<C::Reply, Error<T::Error>> {
        let mut reply = C::Reply::new_zeroed();
        let length = self.call::<C>(&[request.as_bytes()], reply.as_mut_bytes())?;
        if length == size_of::<C::Reply>() { Ok(reply) } else { Err(Error::Reply) }
    }

    /// Makes a call until it is finished; the length of the reply.
    fn call<C: Call>(&mut self, request: &[&[u8]], reply: &mut [u8]) -> Result<usize, Error<T::Error>> {
        let mut attempt: u32 = 0;
        loop {
            let (status, length) =
                self.transport.call(C::NUMBER, request, reply).map_err(Error::Transport)?;
            let filled = reply.get(..length).ok_or(Error::Reply)?;
            match status {
                Status::OK => return Ok(length),
                Status::AGAIN | Status::BUSY => {
                    attempt = attempt.saturating_add(1);
                    self.transport.wait(status, attempt).map_err(Error::Transport)?;
                }
                Status::TPM_FAILED => {
                    let failure = TpmFailure::read_from_bytes(filled).map_err(|_| Error::Reply)?;
                    return Err(Error::Tpm(failure.response_code));
                }
                refused => return Err(Error::Refused(refused)),
            }
        }
    }
}

#[cfg(feature = "evidence")]
impl<T: Transport> Client<T> {
    /// Evidence for a relying party: quote, key, log and binding in one file (`docs/evidence.md`).
    ///
    /// # Errors
    /// [`Error`].
    pub fn evidence(&mut self, report_data: &[u8; REPORT_DATA_BYTES]) -> Result<Vec<u8>, Error<T::Error>> {
        self.evidence_by(AkId::GUEST_ECDSA, report_data)
    }

    /// The same by one of the two keys that bind guests.
    ///
    /// # Errors
    /// As [`Self::evidence`].
    pub fn evidence_by(
        &mut self,
        key: AkId,
        report_data: &[u8; REPORT_DATA_BYTES],
    ) -> Result<Vec<u8>, Error<T::Error>> {
        use dolmen_abi::evidence::{Evidence, MAX_EVENT_LOG, MAX_EVIDENCE};
        let mut log = vec![0; MAX_EVENT_LOG];
        let log_length = self.event_log(&mut log)?;
        let mut public = [0; dolmen_abi::MAX_AK_PUBLIC];
        let public_length = if key == AkId::GUEST_ECDSA {
            self.ak_public(&mut public)?
        } else {
            self.key_public(key, &mut public)?
        };
        let reply = self.quote_by(key, report_data)?;
        let (key, log) = (public.get(..public_length), log.get(..log_length));
        let (Some(key), Some(log)) = (key, log) else { return Err(Error::Reply) };
        let evidence = Evidence::from_reply(&reply, key, log).map_err(|_| Error::Reply)?;
        let mut file = vec![0; MAX_EVIDENCE];
        let length = evidence.encode(&mut file).map_err(|_| Error::Reply)?;
        file.truncate(length);
        Ok(file)
    }
}

#[cfg(feature = "evidence")]
impl<T: Transport> Client<T> {
    /// Evidence about the host: quote over `nonce` as it is, values, key and log in one file (`docs/evidence.md`).
    ///
    /// # Errors
    /// [`Error`].
    pub fn host_evidence(&mut self, key: AkId, pcrs: u32, nonce: &[u8]) -> Result<Vec<u8>, Error<T::Error>> {
        use dolmen_abi::evidence::MAX_EVENT_LOG;
        use dolmen_abi::evidence::host::{HostEvidence, MAX_HOST_EVIDENCE};
        let mut log = vec![0; MAX_EVENT_LOG];
        let log_length = self.event_log(&mut log)?;
        let mut public = [0; dolmen_abi::MAX_AK_PUBLIC];
        let public_length = self.key_public(key, &mut public)?;
        let reply = self.host_quote(key, pcrs, nonce)?;
        let mut values = [0; dolmen_abi::HOST_PCRS * 32];
        let values_length = HostEvidence::quoted_values(&reply, pcrs, &mut values);
        let used = |bytes: &'_ [u8], length: u32| {
            let length = usize::try_from(length).map_err(|_| Error::Reply)?;
            bytes.get(..length).map(<[u8]>::to_vec).ok_or(Error::Reply)
        };
        let attest = used(&reply.attest, reply.attest_length)?;
        let signature = used(&reply.signature, reply.signature_length)?;
        let evidence = HostEvidence {
            attest: &attest,
            signature: &signature,
            ak_public: public.get(..public_length).ok_or(Error::Reply)?,
            event_log: log.get(..log_length).ok_or(Error::Reply)?,
            pcrs,
            values: values.get(..values_length).ok_or(Error::Reply)?,
        };
        let mut file = vec![0; MAX_HOST_EVIDENCE];
        let length = evidence.encode(&mut file).map_err(|_| Error::Reply)?;
        file.truncate(length);
        Ok(file)
    }
}

/// A nonce, with zeroes after it.
fn padded(nonce: &[u8]) -> Option<[u8; MAX_HOST_NONCE]> {
    let mut padded = [0; MAX_HOST_NONCE];
    padded.get_mut(..nonce.len())?.copy_from_slice(nonce);
    Some(padded)
}

fn length_of<E>(bytes: &[u8]) -> Result<u32, Error<E>> {
    u32::try_from(bytes.len()).map_err(|_| Error::Length)
}
