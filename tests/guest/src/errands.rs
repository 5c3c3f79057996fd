//! A guest that asks of the TPM whatever the byte says that it is sent, once, and tells how that ended.

use core::convert::Infallible;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use dolmen_abi::{AkId, EkId, MAX_ACTIVATED, MAX_CERTIFICATE, SealPolicy, Status};
use dolmen_guest::vmmcall::{Bounce, Direct, Instruction};
use dolmen_guest::{Client, Error, Transport};

use crate::{company, console, cpu, say};

/// Where the requests and replies of calls lie: nothing of the guest's is there.
const REQUEST: u64 = 0x180_0000;
const REPLY: u64 = 0x190_0000;
const ROOM: usize = 0x1_0000;
/// Bytes of the longest credential with its encrypted seed, each with its size.
const CREDENTIAL: usize = 400;
/// Requests for random bytes after which the generator wants a fresh seed, and some more.
const FLOOD: usize = 4200;
/// Errands on end: twice as many as one guest has at once.
const RUSH: usize = 16;
/// Calls are repeated at once.
static HURRIES: AtomicBool = AtomicBool::new(false);

/// Calls that sleep until the next tick before they are repeated, unless there is a hurry.
struct Patient(Direct);

impl Transport for Patient {
    type Error = Infallible;

    fn call(
        &mut self,
        number: u32,
        request: &[&[u8]],
        reply: &mut [u8],
    ) -> Result<(Status, usize), Infallible> {
        self.0.call(number, request, reply)
    }

    fn wait(&mut self, _: Status, _: u32) -> Result<(), Infallible> {
        if !HURRIES.load(Ordering::Relaxed) {
            cpu::wait_for_interrupt();
        }
        Ok(())
    }
}

type Outcome = Result<usize, Error<Infallible>>;

fn client() -> Option<Client<Patient>> {
    let bounce = |at: u64| {
        // SAFETY: memory of this guest's, mapped one to one, that nothing else uses; called once for each address.
        let bytes = unsafe { core::slice::from_raw_parts_mut(at as *mut u8, ROOM) };
        // SAFETY: as above; both addresses are multiples of 8.
        unsafe { Bounce::new(bytes, at) }
    };
    let instruction = Instruction::detect()?;
    // SAFETY: this guest is in 64-bit mode at CPL 0 all the time, and the instruction was just found.
    let direct = unsafe { Direct::new(instruction, bounce(REQUEST), bounce(REPLY)) };
    Some(Client::new(Patient(direct)))
}

/// Bytes as hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A credential that comes over the console in pieces, as hexadecimal digits.
struct Credential {
    bytes: [u8; CREDENTIAL],
    digits: usize,
}

impl Credential {
    fn take(&mut self, digit: u8) {
        let value = (digit as char).to_digit(16).unwrap_or(0) as u8;
        if let Some(byte) = self.bytes.get_mut(self.digits / 2) {
            *byte = *byte << 4 | value;
            self.digits += 1;
        }
    }

    /// `TPM2B_ID_OBJECT` and `TPM2B_ENCRYPTED_SECRET`, both without their sizes.
    fn parts(&self) -> Option<(&[u8], &[u8])> {
        let (credential, rest) = sized(self.bytes.get(..self.digits / 2)?)?;
        Some((credential, sized(rest)?.0))
    }
}

fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(u16::from_be_bytes(*size).into())
}

/// Does errands for ever.
pub(crate) fn live() -> ! {
    say!("here");
    company::start_periodic();
    let mut credential = Credential { bytes: [0; CREDENTIAL], digits: 0 };
    if let Some(mut client) = client() {
        loop {
            cpu::wait_for_interrupt();
            while let Some(byte) = console::read() {
                serve(byte, &mut client, &mut credential);
            }
        }
    }
    cpu::power_off()
}

fn serve(byte: u8, client: &mut Client<Patient>, credential: &mut Credential) {
    match byte {
        b'0'..=b'9' | b'a'..=b'f' => credential.take(byte),
        b'-' => credential.digits = 0,
        b'?' => say!("digits {}", credential.digits),
        other => {
            let mut out = [0; MAX_CERTIFICATE];
            match run(other, client, credential, &mut out) {
                Ok(length) => say!("done {}: OK {}", other as char, Hex(&out[..length])),
                Err(Error::Tpm(code)) => say!("done {}: TPM_FAILED {code:#x}", other as char),
                Err(Error::Refused(status)) => say!("done {}: {status}", other as char),
                Err(error) => say!("done {}: {error:?}", other as char),
            }
        }
    }
}

/// What a byte asks for. Bytes that nobody else knows are in `out`.
fn run(
    byte: u8,
    client: &mut Client<Patient>,
    credential: &Credential,
    out: &mut [u8; MAX_CERTIFICATE],
) -> Outcome {
    let report = [byte; 64];
    match byte {
        b'q' => client.quote_by(AkId::GUEST_ECDSA, &report).map(|_| 0),
        b'r' => client.quote_by(AkId::GUEST_RSA, &report).map(|_| 0),
        b'h' => client.host_quote(AkId::HOST_ECDSA, 0x00ff_ffff, &report).map(|_| 0),
        b'H' => client.certify(AkId::HOST_ECDSA, &report).map(|_| 0),
        b'V' => client.certify(AkId::HOST_RSA, &report).map(|_| 0),
        b'k' => client.key_public(AkId::GUEST_ECDSA, out),
        b'p' => client.key_public(AkId::HOST_RSA, out),
        b'E' => client.endorsement_key(EkId::ECC, out),
        b'R' => client.endorsement_key(EkId::RSA, out),
        b'C' => client.ek_certificate(EkId::RSA, out),
        b'X' => client.ek_chain(0, out).map(|length| length.unwrap_or(0)),
        b'A' => {
            let (credential, secret) = credential.parts().ok_or(Error::Length)?;
            let mut opened = [0; MAX_ACTIVATED];
            let key = (AkId::GUEST_ECDSA, EkId::ECC);
            let length = client.activate_credential(key, credential, secret, &mut opened)?;
            out[..MAX_ACTIVATED].copy_from_slice(&opened);
            Ok(length)
        }
        b'Z' => client.random(&mut out[..32]).map(|()| 32),
        b'F' => (0..FLOOD).try_for_each(|_| client.random(&mut [0; 8])).map(|()| 0),
        b'S' => seal(client, out),
        b'K' => {
            HURRIES.store(true, Ordering::Relaxed);
            let mut outcome = Ok(0);
            for _ in 0..RUSH {
                outcome = outcome.and_then(|_| client.key_public(AkId::GUEST_ECDSA, out));
            }
            HURRIES.store(false, Ordering::Relaxed);
            outcome
        }
        _ => Err(Error::Length),
    }
}

/// Seals fresh random bytes and opens them again; `out` has them, then the blob.
fn seal(client: &mut Client<Patient>, out: &mut [u8; MAX_CERTIFICATE]) -> Outcome {
    let (mut data, mut blob, mut opened) = ([0; 32], [0; 512], [0; 32]);
    client.random(&mut data)?;
    let length = client.seal(SealPolicy::default(), b"traffic", &data, &mut blob)?;
    if client.unseal(b"traffic", &blob[..length], &mut opened)? != data.len() || opened != data {
        return Err(Error::Reply);
    }
    out[..32].copy_from_slice(&data);
    Ok(32)
}
