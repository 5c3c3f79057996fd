//! What crossed a TPM's bus, decoded, and held to what `docs/tpm.md` says of it: which commands there are, which of them
//! go through the salted session and encrypted, and that no secret is in any byte.
//!
//! Layouts: TPM 2.0 library, part 1, "Command/Response structure"; part 3 for the handles of each command.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use dolmen_tpm::constant::{cc, handle, tag};

use super::bus::{Exchange, OURS};

/// TPMA_SESSION: the command's first parameter is encrypted.
const DECRYPT: u8 = 1 << 5;
/// TPMA_SESSION: the response's first parameter is encrypted.
const ENCRYPT: u8 = 1 << 6;
/// TPM_SE_HMAC.
const HMAC_SESSION: u8 = 0;
/// As much of a secret as nobody may hear: fewer bytes are met by chance.
const GLIMPSE: usize = 8;

/// Commands that are known here: code, name, handles.
const COMMANDS: [(u32, &str, usize); 17] = [
    (cc::CREATE_PRIMARY, "TPM2_CreatePrimary", 1),
    (cc::STARTUP, "TPM2_Startup", 0),
    (cc::ACTIVATE_CREDENTIAL, "TPM2_ActivateCredential", 2),
    (cc::CERTIFY, "TPM2_Certify", 2),
    (cc::NV_READ, "TPM2_NV_Read", 2),
    (cc::POLICY_SECRET, "TPM2_PolicySecret", 2),
    (cc::HMAC, "TPM2_HMAC", 1),
    (cc::QUOTE, "TPM2_Quote", 1),
    (cc::FLUSH_CONTEXT, "TPM2_FlushContext", 0),
    (cc::NV_READ_PUBLIC, "TPM2_NV_ReadPublic", 1),
    (cc::POLICY_LOCALITY, "TPM2_PolicyLocality", 1),
    (cc::START_AUTH_SESSION, "TPM2_StartAuthSession", 2),
    (cc::GET_CAPABILITY, "TPM2_GetCapability", 0),
    (cc::GET_RANDOM, "TPM2_GetRandom", 0),
    (cc::PCR_READ, "TPM2_PCR_Read", 0),
    (cc::POLICY_PCR, "TPM2_PolicyPCR", 1),
    (cc::PCR_EXTEND, "TPM2_PCR_Extend", 1),
];

/// The name of a command.
pub(crate) fn name(code: u32) -> Option<&'static str> {
    COMMANDS.iter().find(|known| known.0 == code).map(|known| known.1)
}

/// A session of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    handle: u32,
    attributes: u8,
}

/// A command of ours, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Command {
    code: u32,
    name: &'static str,
    handles: Vec<u32>,
    sessions: Vec<Session>,
    parameters: Vec<u8>,
    /// TPM_RC.
    outcome: u32,
    /// The first word after the response's head: a handle, if the command makes one.
    made: Option<u32>,
}

/// Bytes that are taken from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("a message is too short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, bytes: usize) -> Result<u32> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn sized(&mut self) -> Result<&'a [u8]> {
        let size = usize::try_from(self.number(2)?)?;
        self.take(size)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(u8::try_from(self.number(1)?)?)
    }
}

impl Command {
    fn decode(exchange: &Exchange) -> Result<Self> {
        let mut bytes = Bytes(&exchange.command);
        let head = bytes.number(2)?;
        ensure!(usize::try_from(bytes.number(4)?)? == exchange.command.len(), "a command of another size");
        let code = bytes.number(4)?;
        let known = COMMANDS.iter().find(|known| known.0 == code);
        let (_, name, count) = *known.with_context(|| format!("no rule for the command {code:#x}"))?;
        let handles = (0..count).map(|_| bytes.number(4)).collect::<Result<_>>()?;
        let mut sessions = Vec::new();
        if head == u32::from(tag::SESSIONS) {
            let size = usize::try_from(bytes.number(4)?)?;
            let mut area = Bytes(bytes.take(size)?);
            while !area.0.is_empty() {
                let handle = area.number(4)?;
                area.sized()?; // the nonce
                let attributes = area.byte()?;
                area.sized()?; // the HMAC, or an empty password
                sessions.push(Session { handle, attributes });
            }
        }
        let mut response = Bytes(&exchange.response);
        response.take(6)?;
        let outcome = response.number(4)?;
        let made = response.number(4).ok();
        Ok(Self { code, name, handles, sessions, parameters: bytes.0.to_vec(), outcome, made })
    }

    /// Whether it starts an HMAC session that is salted and encrypts by AES-128-CFB.
    fn starts_salted_session(&self) -> Result<bool> {
        let mut bytes = Bytes(&self.parameters);
        bytes.sized()?; // our nonce
        let is_salted =
            !bytes.sized()?.is_empty() && self.handles.first().is_some_and(|key| *key != handle::NULL);
        let is_hmac = bytes.byte()? == HMAC_SESSION;
        let aes_128_cfb = [bytes.number(2)?, bytes.number(2).unwrap_or(0), bytes.number(2).unwrap_or(0)];
        Ok(is_salted && is_hmac && aes_128_cfb == [6, 128, 0x43])
    }
}

/// What was heard of one launch and its guests.
#[derive(Debug, Default)]
pub(crate) struct Inspection {
    /// How often each command was sent at our locality.
    counts: BTreeMap<&'static str, u32>,
    salted: BTreeSet<u32>,
    plain_random: u32,
    endorsement_keys: u32,
    has_hmac: bool,
}

impl Inspection {
    /// Holds what was heard to the rules. `documented` are the commands that there may be, and each of which there must be;
    /// of `secrets` (what it is, and its bytes) nothing may be heard at any locality.
    pub(crate) fn of(
        heard: &[Exchange],
        documented: &BTreeSet<u32>,
        secrets: &[(&str, &[u8])],
    ) -> Result<Self> {
        let mut inspection = Self::default();
        let mut used = BTreeSet::new();
        for exchange in heard {
            for (what, secret) in secrets {
                ensure!(secret.len() >= GLIMPSE, "{what} is too short to be looked for");
                if shows(&exchange.command, secret) || shows(&exchange.response, secret) {
                    bail!("{what} crosses the bus in the clear: {exchange:02x?}");
                }
            }
            if exchange.locality == OURS {
                let command = Command::decode(exchange)?;
                ensure!(documented.contains(&command.code), "{} is not documented", command.name);
                used.insert(command.code);
                inspection.rule(&command).with_context(|| format!("{command:x?}"))?;
            }
        }
        let unused: Vec<_> = documented.difference(&used).map(|code| name(*code).unwrap_or("?")).collect();
        ensure!(unused.is_empty(), "documented and not used: {unused:?}");
        ensure!(inspection.has_hmac, "no sealing root was derived");
        Ok(inspection)
    }

    /// How often each command was sent.
    pub(crate) fn told(&self) -> String {
        let counts: Vec<_> = self.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        counts.join(", ")
    }

    /// How often this command was sent.
    pub(crate) fn count(&self, code: u32) -> u32 {
        name(code).and_then(|name| self.counts.get(name)).copied().unwrap_or(0)
    }

    /// What `docs/tpm.md` says of this command.
    fn rule(&mut self, command: &Command) -> Result<()> {
        let count = self.counts.entry(command.name).or_default();
        *count = count.saturating_add(1);
        match (command.code, command.handles.as_slice()) {
            (cc::START_AUTH_SESSION, _) if command.outcome == 0 && command.starts_salted_session()? => {
                self.salted.insert(command.made.context("a session without a handle")?);
            }
            // The first of a launch makes the salt of the session that there is not yet.
            (cc::GET_RANDOM, _) if command.sessions.is_empty() => {
                self.plain_random = self.plain_random.saturating_add(1);
                ensure!(self.plain_random == 1, "random bytes in the clear");
            }
            (cc::GET_RANDOM | cc::ACTIVATE_CREDENTIAL, _) => self.must(command, ENCRYPT)?,
            (cc::HMAC, _) => {
                self.has_hmac = true;
                self.must(command, DECRYPT | ENCRYPT)?;
            }
            (cc::CREATE_PRIMARY, [handle::OWNER]) => self.must(command, DECRYPT)?,
            (cc::CREATE_PRIMARY, [handle::ENDORSEMENT]) => {
                self.endorsement_keys = self.endorsement_keys.saturating_add(1);
                // The attestation key of the launch. Others are made on demand, without a secret.
                if self.endorsement_keys == 1 {
                    self.must(command, DECRYPT)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The salted session stands in the command, with these attributes.
    fn must(&self, command: &Command, attributes: u8) -> Result<()> {
        let session = command.sessions.iter().find(|session| self.salted.contains(&session.handle));
        let session = session.context("it must go through the salted session")?;
        ensure!(
            session.attributes & attributes == attributes,
            "the attributes {:#x} lack some of {attributes:#x}",
            session.attributes
        );
        Ok(())
    }
}

/// Whether any piece of `secret` that is long enough is in `bytes`.
fn shows(bytes: &[u8], secret: &[u8]) -> bool {
    secret.windows(GLIMPSE).any(|piece| bytes.windows(GLIMPSE).any(|window| window == piece))
}

/// The commands in the table of `docs/tpm.md`: rows that begin with a command's name and its code.
pub(crate) fn documented(text: &str) -> Result<BTreeSet<u32>> {
    let mut codes = BTreeSet::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("| TPM2_")) {
        let mut cells = row.split('|').map(str::trim);
        let (told, code) = (cells.next().context("no name")?, cells.next().context("no code")?);
        let code = code.strip_suffix('h').context("a code is written as 17Bh")?;
        let code = u32::from_str_radix(code, 16).context("a code is a number")?;
        ensure!(name(code) == Some(&format!("TPM2_{told}")), "{told} has another code than {code:x}h");
        codes.insert(code);
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALTED: u32 = 0x0200_0000;
    const KEY: u32 = 0x8000_0000;

    fn command(code: u32, handles: &[u32], sessions: &[(u32, u8)], parameters: &[u8]) -> Vec<u8> {
        let mut body = code.to_be_bytes().to_vec();
        body.extend(handles.iter().flat_map(|handle| handle.to_be_bytes()));
        if !sessions.is_empty() {
            let area: Vec<u8> = sessions
                .iter()
                .flat_map(|(handle, attributes)| {
                    [&handle.to_be_bytes()[..], &[0, 2, 5, 5, *attributes, 0, 1, 9]].concat()
                })
                .collect();
            body.extend(u32::try_from(area.len()).unwrap().to_be_bytes());
            body.extend(area);
        }
        body.extend(parameters);
        let tag = if sessions.is_empty() { [0x80, 1] } else { [0x80, 2] };
        let size = u32::try_from(body.len() + 6).unwrap().to_be_bytes();
        [&tag[..], &size, &body].concat()
    }

    fn exchange(command: Vec<u8>, body: &[u8]) -> Exchange {
        let size = u32::try_from(body.len() + 10).unwrap().to_be_bytes();
        let response = [&[0x80, 1][..], &size, &[0; 4], body].concat();
        Exchange { locality: OURS, command, response }
    }

    fn start(key: u32, salt: &[u8]) -> Exchange {
        let salt = [&u16::try_from(salt.len()).unwrap().to_be_bytes()[..], salt].concat();
        let parameters = [&[0, 1, 7][..], &salt, &[0, 0, 6, 0, 128, 0, 0x43, 0, 0x0b]].concat();
        exchange(
            command(cc::START_AUTH_SESSION, &[key, handle::NULL], &[], &parameters),
            &SALTED.to_be_bytes(),
        )
    }

    /// A launch as it must be.
    fn launch() -> Vec<Exchange> {
        let both = DECRYPT | ENCRYPT | 1;
        vec![
            exchange(command(cc::GET_RANDOM, &[], &[], &[0, 32]), &[0, 1, 4]),
            exchange(command(cc::CREATE_PRIMARY, &[handle::NULL], &[(0x4000_0009, 0)], &[1]), &[]),
            start(KEY, &[1, 2]),
            exchange(command(cc::GET_RANDOM, &[], &[(SALTED, ENCRYPT | 1)], &[0, 32]), &[]),
            exchange(
                command(cc::CREATE_PRIMARY, &[handle::ENDORSEMENT], &[(SALTED, DECRYPT | 1)], &[1]),
                &[],
            ),
            exchange(command(cc::CREATE_PRIMARY, &[handle::OWNER], &[(SALTED, DECRYPT | 1)], &[1]), &[]),
            exchange(command(cc::HMAC, &[KEY], &[(0x0300_0001, 0), (SALTED, both)], &[1]), &[]),
            exchange(command(cc::CREATE_PRIMARY, &[handle::ENDORSEMENT], &[(0x4000_0009, 0)], &[1]), &[]),
            exchange(
                command(cc::ACTIVATE_CREDENTIAL, &[KEY, KEY], &[(3, 0), (4, 0), (SALTED, ENCRYPT)], &[1]),
                &[],
            ),
        ]
    }

    fn all() -> BTreeSet<u32> {
        [cc::CREATE_PRIMARY, cc::ACTIVATE_CREDENTIAL, cc::HMAC, cc::START_AUTH_SESSION, cc::GET_RANDOM].into()
    }

    fn complaint(heard: &[Exchange]) -> String {
        format!("{:#}", Inspection::of(heard, &all(), &[]).unwrap_err())
    }

    #[test]
    fn a_launch_as_it_must_be_passes() {
        let inspection = Inspection::of(&launch(), &all(), &[("a secret", b"never heard of")]).unwrap();
        assert_eq!((inspection.count(cc::CREATE_PRIMARY), inspection.count(cc::HMAC)), (4, 1));
        assert!(inspection.told().contains("TPM2_GetRandom 2"), "{}", inspection.told());
    }

    #[test]
    fn a_piece_of_a_secret_is_found_at_any_locality_and_either_way() {
        let secret = b"0123456789abcdef";
        for (locality, is_command) in [(0, true), (0, false), (2, false)] {
            let mut heard = launch();
            let last = heard.last_mut().unwrap();
            last.locality = locality;
            let into = if is_command { &mut last.command } else { &mut last.response };
            into.extend(&secret[5..13]);
            let error = Inspection::of(&heard, &all(), &[("the secret", secret)]).unwrap_err();
            assert!(error.to_string().contains("the secret crosses the bus"), "{error}");
        }
        assert!(Inspection::of(&launch(), &all(), &[("too little", b"short")]).is_err());
    }

    #[test]
    fn a_cleared_attribute_is_found_wherever_it_must_stand() {
        let protected = [(3, ENCRYPT), (4, DECRYPT), (5, DECRYPT), (6, DECRYPT), (6, ENCRYPT), (8, ENCRYPT)];
        for (index, attribute) in protected {
            let mut heard = launch();
            let bytes = &mut heard.get_mut(index).unwrap().command;
            let at = bytes.windows(4).rposition(|window| window == SALTED.to_be_bytes()).unwrap() + 8;
            *bytes.get_mut(at).unwrap() &= !attribute;
            assert!(complaint(&heard).contains("lack some of"), "{index}: {}", complaint(&heard));
        }
    }

    #[test]
    fn a_session_without_salt_or_cipher_protects_nothing() {
        for other in [start(handle::NULL, &[1, 2]), start(KEY, &[])] {
            let mut heard = launch();
            *heard.get_mut(2).unwrap() = other;
            assert!(
                complaint(&heard).contains("must go through the salted session"),
                "{}",
                complaint(&heard)
            );
        }
        let mut heard = launch();
        let bytes = &mut heard.get_mut(2).unwrap().command;
        let cipher = bytes.windows(4).rposition(|window| window == [0, 6, 0, 128]).unwrap();
        bytes.splice(cipher..cipher + 6, [0, 0x10]);
        let size = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        bytes.splice(2..6, size);
        assert!(complaint(&heard).contains("must go through the salted session"), "{}", complaint(&heard));
    }

    #[test]
    fn a_command_in_the_clear_an_undocumented_one_and_a_missing_one_are_found() {
        let mut heard = launch();
        heard.push(exchange(command(cc::GET_RANDOM, &[], &[], &[0, 32]), &[]));
        assert!(complaint(&heard).contains("random bytes in the clear"));
        let mut heard = launch();
        heard.push(exchange(command(0x17e, &[], &[], &[]), &[]));
        assert!(complaint(&heard).contains("TPM2_PCR_Read is not documented"));
        heard.pop();
        heard.push(exchange(command(0x153, &[KEY], &[], &[]), &[]));
        assert!(complaint(&heard).contains("no rule for the command 0x153"));
        heard.pop();
        heard.pop();
        assert!(complaint(&heard).contains("documented and not used: [\"TPM2_ActivateCredential\"]"));
    }

    #[test]
    fn the_documents_table_is_read_and_its_codes_fit_the_names() {
        let text = "| command | code |\n|---|---|\n| TPM2_HMAC | 155h | x |\n| TPM2_GetRandom | 17Bh | y |\n";
        assert_eq!(documented(text).unwrap(), [cc::HMAC, cc::GET_RANDOM].into());
        assert!(documented("| TPM2_HMAC | 156h |").is_err());
    }
}
