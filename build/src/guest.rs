//! What the story asks of the guest: the `dolmen` command, as a user of the guest would type it.

use anyhow::{Result, bail};

use crate::machine::shell::Shell;

/// Where the guest keeps a blob that came from outside.
const BLOB: &str = "/tmp/blob";
/// Exit status of `dolmen unseal` for a blob that does not open here.
const SHUT: i32 = 3;

/// What became of an attempt to unseal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// It opened: the secret.
    Secret(String),
    /// It stayed shut: what the guest was told.
    Shut(String),
}

/// Seals `secret`, which must be harmless in a shell's quotes, under `label`, and takes the blob out.
pub(crate) fn seal(shell: &mut Shell, label: &str, secret: &str) -> Result<Vec<u8>> {
    seal_to(shell, "guest", label, secret)
}

/// The same under a policy.
pub(crate) fn seal_to(shell: &mut Shell, policy: &str, label: &str, secret: &str) -> Result<Vec<u8>> {
    shell.receive(&format!("printf %s '{secret}' | dolmen --frame seal --policy {policy} --label {label} -"))
}

/// Gives a blob to the guest and lets it unseal.
pub(crate) fn unseal(shell: &mut Shell, label: &str, blob: &[u8]) -> Result<Opened> {
    shell.send(BLOB, blob)?;
    let answer = shell.run(&format!("dolmen unseal --label {label} {BLOB}"))?;
    match answer.status {
        0 => Ok(Opened::Secret(answer.text())),
        SHUT => Ok(Opened::Shut(answer.text().replace('\n', " "))),
        other => bail!("`dolmen unseal` ended with {other}: {}", answer.text()),
    }
}

/// Extends one of the guest's registers with the digest of some text.
pub(crate) fn extend(shell: &mut Shell, register: u32, text: &str) -> Result<String> {
    shell.expect(&format!("dolmen extend {register} --data '{text}'"))
}

/// Asks for evidence over a nonce, given as hexadecimal digits.
pub(crate) fn quote(shell: &mut Shell, nonce: &str) -> Result<Vec<u8>> {
    shell.receive(&format!("dolmen --frame quote --nonce {nonce}"))
}

/// The same by a key of this kind.
pub(crate) fn quote_by(shell: &mut Shell, key: &str, nonce: &str) -> Result<Vec<u8>> {
    shell.receive(&format!("dolmen --frame quote --key {key} --nonce {nonce}"))
}

/// Asks for evidence about the host.
pub(crate) fn host_quote(shell: &mut Shell, key: &str, pcrs: &str, nonce: &str) -> Result<Vec<u8>> {
    shell.receive(&format!("dolmen --frame host-quote --key {key} --pcrs {pcrs} --nonce {nonce}"))
}
