//! The commands: from arguments and input to a result, through a client.

use core::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dolmen_abi::evidence::MAX_EVENT_LOG;
use dolmen_abi::{AkId, Blob, MAX_AK_PUBLIC, MAX_SECRET, SEALED_OVERHEAD, SealPolicy, Status};
use dolmen_guest::{Client, Transport};
use sha2::{Digest, Sha384};
use zeroize::Zeroizing;

use crate::args::{Action, Extend, HostQuote, Quote};
use crate::failure::Failure;
use crate::manage::{self, Request};
use crate::output::Product;
use crate::{enrol, guests, report};

/// Reads what the command takes as input: a file, or standard input for `-`. Empty if it takes none.
pub(crate) fn gather(action: &Action) -> Result<Zeroizing<Vec<u8>>, Failure> {
    match action {
        Action::Seal { file, .. } => read(file, MAX_SECRET),
        Action::Unseal { file, .. } => read(file, MAX_SECRET.saturating_add(SEALED_OVERHEAD)),
        Action::Answer { file } => read(file, enrol::MAX_CHALLENGE),
        Action::Extend(Extend { file: Some(file), .. }) => hash(file),
        Action::Status
        | Action::Random { .. }
        | Action::Registers
        | Action::Extend(_)
        | Action::Quote(_)
        | Action::HostQuote(_)
        | Action::Enrol { .. }
        | Action::Log
        | Action::Ak { .. }
        | Action::Ps
        | Action::Start(_)
        | Action::Stop(_)
        | Action::Reset(_)
        | Action::Top { .. }
        | Action::Provision(_)
        | Action::Receive { .. } => Ok(Zeroizing::new(Vec::new())),
    }
}

/// Does what was asked for.
pub(crate) fn run<T>(client: &mut Client<T>, action: &Action, input: &[u8]) -> Result<Product, Failure>
where
    T: Transport<Error: fmt::Display>,
{
    match action {
        Action::Status => Ok(report::status(&client.version()?)),
        Action::Random { bytes } => {
            let mut out = Zeroizing::new(vec![0; usize::try_from(*bytes).unwrap_or_default()]);
            client.random(&mut out)?;
            Ok(Product::bytes("random", out))
        }
        Action::Registers => Ok(report::registers(&client.registers()?)),
        Action::Extend(extend) => {
            let digest = digest(extend, input)?;
            Ok(report::extended(extend.index, &client.extend(extend.index, &digest)?))
        }
        Action::Seal { label, policy, .. } => {
            let mut blob = vec![0; input.len().saturating_add(SEALED_OVERHEAD)];
            let length = client.seal(*policy, label.as_bytes(), input, &mut blob)?;
            blob.truncate(length);
            Ok(Product::bytes("blob", Zeroizing::new(blob)))
        }
        Action::Unseal { label, .. } => {
            let mut secret = Zeroizing::new(vec![0; MAX_SECRET]);
            let opened = client.unseal(label.as_bytes(), input, &mut secret);
            let length = opened.map_err(|error| shut(error, input))?;
            secret.truncate(length);
            Ok(Product::bytes("secret", secret))
        }
        Action::Quote(Quote { nonce, report_data, key }) => {
            let bound = nonce.or(*report_data).ok_or_else(|| Failure::plain(&"nothing to bind"))?;
            Ok(Product::bytes("evidence", Zeroizing::new(client.evidence_by(*key, &bound)?)))
        }
        Action::HostQuote(HostQuote { nonce, key, pcrs }) => {
            let evidence = client.host_evidence(*key, *pcrs, &nonce.0)?;
            Ok(Product::bytes("host-evidence", Zeroizing::new(evidence)))
        }
        Action::Enrol { key, ek } => enrol::request(client, *key, *ek),
        Action::Answer { .. } => enrol::answer(client, input),
        Action::Log => {
            let mut log = Zeroizing::new(vec![0; MAX_EVENT_LOG]);
            let length = client.event_log(&mut log)?;
            log.truncate(length);
            Ok(Product::bytes("log", log))
        }
        Action::Ak { key } => {
            let mut public = Zeroizing::new(vec![0; MAX_AK_PUBLIC]);
            let length = match *key {
                AkId::GUEST_ECDSA => client.ak_public(&mut public)?,
                other => client.key_public(other, &mut public)?,
            };
            public.truncate(length);
            Ok(Product::bytes("ak", public))
        }
        Action::Ps => Ok(guests::list(&manage::snapshot(client)?)),
        Action::Start(target) => manage::carry_out(client, Request::Start, target),
        Action::Stop(target) => manage::carry_out(client, Request::Stop, target),
        Action::Reset(target) => manage::carry_out(client, Request::Reset, target),
        Action::Top { .. } => Err(Failure::plain(&"watching is a command of its own")),
        Action::Provision(_) => Err(Failure::plain(&"provisioning is done without a hypervisor")),
        Action::Receive { .. } => Err(Failure::plain(&"receiving needs no hypervisor")),
    }
}

/// Why a blob did not open; if it was refused, with what it says that it is bound to.
fn shut<E: fmt::Display>(error: dolmen_guest::Error<E>, blob: &[u8]) -> Failure {
    let is_refused = matches!(error, dolmen_guest::Error::Refused(Status::REFUSED));
    let failure = Failure::from(error);
    match Blob::read(blob) {
        Ok(blob) if is_refused => {
            let mut text = ": it says this hypervisor".to_owned();
            for (_, word, _) in SealPolicy::ALL.iter().filter(|entry| blob.policy.contains(entry.0)) {
                text.push_str(", ");
                text.push_str(word);
            }
            failure.because(&text)
        }
        Ok(_) | Err(_) => failure,
    }
}

/// The digest to extend: given, or that of the text, or the one that was made of the file.
fn digest(extend: &Extend, input: &[u8]) -> Result<[u8; 48], Failure> {
    match (&extend.digest, &extend.data) {
        (Some(digest), _) => Ok(*digest),
        (None, Some(text)) => Ok(Sha384::digest(text).into()),
        (None, None) => input.try_into().map_err(|_| Failure::plain(&"nothing to extend")),
    }
}

fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(File::open(path).map_err(|error| Failure::file("open", path, &error))?))
}

/// Reads a file of at most `limit` bytes; `-` is standard input.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Room for one byte too many, and from the start: a vector that grows leaves copies of the secret behind.
    let room = limit.saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let most = u64::try_from(room).unwrap_or(u64::MAX);
    let outcome = open(path)?.take(most).read_to_end(&mut bytes);
    outcome.map_err(|error| Failure::file("read", path, &error))?;
    if bytes.len() > limit {
        return Err(Failure::plain(&format!("{} is longer than the {limit} bytes that fit", path.display())));
    }
    Ok(bytes)
}

fn hash(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let (mut file, mut hash, mut chunk) = (open(path)?, Sha384::new(), [0; 8192]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(Zeroizing::new(hash.finalize().to_vec())),
            Ok(length) => hash.update(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::file("read", path, &error)),
        }
    }
}

#[cfg(test)]
mod tests;
