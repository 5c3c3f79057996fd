//! The calls that are errands: from the request in the scratch buffer to the reply in it.

use dolmen_abi::{
    ActivateRequest, AkId, CertifyRequest, ChainRequest, EkId, HOST_PCRS, HostQuoteRequest, KeyRequest,
    MAX_HOST_NONCE, Status, TpmFailure,
};

use super::desk::serve_waiting;
use super::errand::{Bytes, Errand, Found};
use super::handler::{all_zero, put, put_bytes, take};
use super::platform::{Platform, TpmService};
use super::{Answer, Change, Service};

impl Service<'_> {
    pub(super) fn host_quote<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        self.demand_launch()?;
        let (request, _) = take::<HostQuoteRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        let (key, nonce) = host_key(request.key, request.nonce_length, &request.nonce)?;
        if request.pcrs == 0 || request.pcrs >> HOST_PCRS != 0 {
            return Err(Status::BAD_ARGUMENT);
        }
        self.errand(Errand::HostQuote { key, pcrs: request.pcrs, nonce }, platform)
    }

    pub(super) fn certify<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        self.demand_launch()?;
        let (request, _) = take::<CertifyRequest>(self.scratch)?;
        let (key, nonce) = host_key(request.key, request.nonce_length, &request.nonce)?;
        self.errand(Errand::Certify { key, nonce }, platform)
    }

    pub(super) fn key_public<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        let key = attestation_key(self.key_request()?).ok_or(Status::BAD_ARGUMENT)?;
        self.errand(Errand::KeyPublic(key), platform)
    }

    pub(super) fn endorsement_key<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        let key = endorsement_key(self.key_request()?).ok_or(Status::BAD_ARGUMENT)?;
        self.errand(Errand::EndorsementKey(key), platform)
    }

    pub(super) fn ek_certificate<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        let key = endorsement_key(self.key_request()?).ok_or(Status::BAD_ARGUMENT)?;
        self.certificate(Errand::Certificate(key), platform)
    }

    pub(super) fn ek_chain<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        self.demand_launch()?;
        let (request, _) = take::<ChainRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        let part = u8::try_from(request.part).map_err(|_| Status::BAD_ARGUMENT)?;
        self.certificate(Errand::Chain(part), platform)
    }

    /// An errand for certificates, of which there may be none.
    fn certificate<P: Platform>(&mut self, errand: Errand, platform: &mut P) -> Result<Answer, Status> {
        let answer = self.errand(errand, platform)?;
        if answer.status == Status::OK && answer.length == 0 {
            self.commit(answer.change, platform);
            return Err(Status::NO_CERTIFICATE);
        }
        Ok(answer)
    }

    pub(super) fn activate_credential<P: Platform>(&mut self, platform: &mut P) -> Result<Answer, Status> {
        self.demand_launch()?;
        let (request, data) = take::<ActivateRequest>(self.scratch)?;
        let key = attestation_key(request.key).ok_or(Status::BAD_ARGUMENT)?;
        let ek = endorsement_key(request.ek).ok_or(Status::BAD_ARGUMENT)?;
        let length = |bytes: u32| usize::try_from(bytes).map_err(|_| Status::BAD_LENGTH);
        let (credential, secret) =
            data.split_at_checked(length(request.credential_length)?).ok_or(Status::BAD_LENGTH)?;
        if secret.len() != length(request.secret_length)? {
            return Err(Status::BAD_LENGTH);
        }
        let credential = Bytes::new(credential).ok_or(Status::BAD_LENGTH)?;
        let secret = Bytes::new(secret).ok_or(Status::BAD_LENGTH)?;
        self.errand(Errand::Activate { key, ek, credential, secret }, platform)
    }

    fn key_request(&self) -> Result<u32, Status> {
        self.demand_launch()?;
        let (request, _) = take::<KeyRequest>(self.scratch)?;
        all_zero(request.reserved)?;
        Ok(request.key)
    }

    /// Puts the errand in line, or brings its answer.
    fn errand<P: Platform>(&mut self, errand: Errand, platform: &mut P) -> Result<Answer, Status> {
        let (slot, now) = (self.slot, platform.uptime_ms());
        let (scratch, rate) = (&mut *self.scratch, &mut self.errand_rate);
        // One step: between two, another guest would find what this one found, and act on it too.
        let answer = platform.with_tpm(|tpm| {
            serve_waiting(tpm);
            match tpm.errands().look(slot, &errand, now) {
                Found::Working => Err(Status::AGAIN),
                Found::Taken => Err(Status::BUSY),
                Found::Free if !rate.take(now) => Err(Status::BUSY),
                Found::Free if !tpm.errands().submit(slot, errand) => Err(Status::BUSY),
                Found::Free => {
                    serve_waiting(tpm);
                    Err(Status::AGAIN)
                }
                Found::Done => put_bytes(scratch, 0, tpm.errands().answer()),
                Found::Failed(response_code) => {
                    let answer = put(scratch, &TpmFailure { response_code, reserved: 0 })?;
                    Ok(Answer { status: Status::TPM_FAILED, ..answer })
                }
            }
        })?;
        Ok(Answer { change: Change::ErrandTaken, ..answer })
    }
}

/// A key that signs what somebody chose, and what that is.
fn host_key(
    number: u32,
    length: u32,
    padded: &[u8; MAX_HOST_NONCE],
) -> Result<(AkId, Bytes<MAX_HOST_NONCE>), Status> {
    let key = attestation_key(number).filter(|key| key.is_host()).ok_or(Status::BAD_ARGUMENT)?;
    let length = usize::try_from(length).map_err(|_| Status::BAD_ARGUMENT)?;
    let (nonce, padding) = padded.split_at_checked(length).ok_or(Status::BAD_ARGUMENT)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Status::RESERVED_NOT_ZERO);
    }
    Ok((key, Bytes::new(nonce).ok_or(Status::BAD_ARGUMENT)?))
}

fn attestation_key(number: u32) -> Option<AkId> {
    AkId::ALL.iter().map(|entry| entry.0).find(|key| key.0 == number)
}

fn endorsement_key(number: u32) -> Option<EkId> {
    EkId::ALL.iter().map(|entry| entry.0).find(|key| key.0 == number)
}
