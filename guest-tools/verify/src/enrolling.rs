//! `dolmen-verify enrol`: both steps of an enrolment on the relying party's side.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Subcommand;
use dolmen_verify::enrol::{Certificate, State, begin, finish};

/// Longest file that is read: a request with a certificate is far shorter.
const MOST: usize = 256 * 1024;

#[derive(Subcommand)]
pub(crate) enum Enrol {
    /// Check a guest's request (`dolmen enrol`), and print a challenge for it.
    Begin {
        /// File with the request.
        request: PathBuf,
        /// The relying party's policy: which hypervisors may hold the key.
        #[arg(long)]
        policy: PathBuf,
        /// File with certificates that are trusted (PEM): the TPM maker's roots.
        #[arg(long)]
        roots: PathBuf,
        /// File with certificates between them and the TPM's (PEM).
        #[arg(long)]
        intermediates: Option<PathBuf>,
        /// Where to keep what the answer is judged by. It is secret: who reads it can forge the answer.
        #[arg(long)]
        state: PathBuf,
    },
    /// Judge the guest's answer (`dolmen answer`), and print the enrolment record.
    Finish {
        /// File with the answer.
        answer: PathBuf,
        /// The relying party's policy.
        #[arg(long)]
        policy: PathBuf,
        /// What `begin` kept. It is removed when the record is printed: an answer counts once.
        #[arg(long)]
        state: PathBuf,
    },
}

/// Does one step; true if the key is, or may be, enrolled.
pub(crate) fn run(step: &Enrol) -> Result<bool> {
    match step {
        Enrol::Begin { request, policy, roots, intermediates, state } => {
            let policy = crate::read_policy(policy)?;
            let roots = certificates(roots)?;
            let between = intermediates.as_deref().map_or_else(|| Ok(Vec::new()), certificates)?;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            match begin(&read(request)?, &policy, &between, &roots, now) {
                Ok((challenge, kept)) => {
                    keep(state, &kept)?;
                    crate::print(&format!("{}\n", serde_json::to_string_pretty(&challenge)?))
                }
                Err(error) => refuse(&error),
            }
        }
        Enrol::Finish { answer, policy, state } => {
            let kept: State = serde_json::from_slice(&read(state)?)
                .with_context(|| format!("{} is none that `begin` kept", state.display()))?;
            match finish(&read(answer)?, &kept, &crate::read_policy(policy)?) {
                Ok(record) => {
                    // First the record: without it and without the state, all would have to be done again.
                    crate::print(&format!("{}\n", serde_json::to_string_pretty(&record)?))?;
                    forget(state)?;
                    Ok(true)
                }
                Err(error) => refuse(&error),
            }
        }
    }
}

fn refuse(error: &dolmen_verify::enrol::EnrolError) -> Result<bool> {
    let written = writeln!(io::stderr(), "dolmen-verify: not enrolled: {error}");
    written.context("cannot write to standard error")?;
    Ok(false)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    crate::read_up_to(path, MOST)
}

fn certificates(path: &Path) -> Result<Vec<Certificate>> {
    let all = Certificate::from_pem(&read(path)?);
    let all = all.map_err(|error| anyhow!("{} holds no certificates in PEM: {error}", path.display()))?;
    ensure!(!all.is_empty(), "{} holds no certificates in PEM", path.display());
    Ok(all)
}

/// Removes the state of a key that is enrolled now, which stays so if that fails.
fn forget(path: &Path) -> Result<()> {
    let Err(error) = fs::remove_file(path) else { return Ok(()) };
    let path = path.display();
    let written = writeln!(
        io::stderr(),
        "dolmen-verify: the key is enrolled, but {path} cannot be removed ({error}): remove it, an answer counts once"
    );
    written.context("cannot write to standard error")
}

/// Keeps the state where only its owner reads it; never over a file that is there.
fn keep(path: &Path, state: &State) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    let text = serde_json::to_string_pretty(state)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
