//! The agent's life: registration, session, attestations; and what becomes of failures.
//!
//! Registration says which keys there are; a session begins with a proof that the attestation key can be used now and brings a
//! token; with it attestations go out until the verifier no longer takes it.

use std::io::Write;

use dolmen_guest::Transport;
use zeroize::Zeroizing;

use crate::answer::{self, Wanted};
use crate::failure::{Failure, Hindrance};
use crate::host::Host;
use crate::request::{self, Evidence, Request};
use crate::say::{Event, Voice};
use crate::web::Web;

/// How often something is tried if there is to be an end.
const TRIES: u32 = 5;
/// Proofs that may be refused before the keys are registered anew.
const PATIENCE: u32 = 5;
/// Longest pause between two tries that nobody asked for.
const LONGEST_PAUSE: u64 = 60;
/// Where the kernel tells when it was started.
const STATISTICS: &str = "/proc/stat";

/// An agent.
#[derive(Debug)]
pub(crate) struct Agent<T, W> {
    host: Host<T>,
    web: W,
    name: String,
    /// The attestation key that the registrar knows.
    ak: Option<Vec<u8>>,
    token: Option<Zeroizing<String>>,
    /// Proofs that were not taken since the registration.
    refused: u32,
}

impl<T: Transport<Error: Hindrance>, W: Web> Agent<T, W> {
    /// An agent of this name.
    pub(crate) const fn new(host: Host<T>, web: W, name: String) -> Self {
        Self { host, web, name, ak: None, token: None, refused: 0 }
    }

    /// Lives until so many attestations are sent; for ever, if no number is given, or until nothing helps any more.
    pub(crate) fn run(
        &mut self,
        count: Option<u64>,
        interval: u64,
        voice: &mut Voice<impl Write>,
    ) -> Result<(), Failure> {
        let (mut sent, mut failures): (u64, u32) = (0, 0);
        loop {
            let (why, asked) = match self.step(interval) {
                Ok(event) => {
                    voice.say(&event);
                    if let Event::Sent { next, .. } = event {
                        (sent, failures) = (sent.saturating_add(1), 0);
                        if count.is_some_and(|count| sent >= count) {
                            return Ok(());
                        }
                        self.web.pause(next);
                    }
                    continue;
                }
                Err(Failure::Fatal(why)) => return Err(Failure::Fatal(why)),
                Err(Failure::Session(why)) => {
                    self.token = None;
                    (why, None)
                }
                Err(Failure::Later(why, asked)) => (why, asked),
            };
            failures = failures.saturating_add(1);
            if count.is_some() && failures >= TRIES {
                return Err(Failure::Fatal(why));
            }
            let pause = asked.unwrap_or_else(|| back_off(failures)).max(1);
            voice.say(&Event::Trouble { why, pause });
            self.web.pause(pause);
        }
    }

    /// What comes next.
    fn step(&mut self, interval: u64) -> Result<Event, Failure> {
        match (self.ak.clone(), self.token.clone()) {
            (None, _) => self.register(),
            (Some(_), None) => self.open_session(),
            (Some(ak), Some(token)) => self.attest(&ak, &token, interval),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<serde_json::Value, Failure> {
        self.web.ask(request)?.accepted(request.server)
    }

    fn register(&mut self) -> Result<Event, Failure> {
        let identity = self.host.identity()?;
        let answer = self.ask(&request::register(&self.name, &identity))?;
        let (credential, secret) =
            answer::credential(&answer).ok_or_else(|| strange("the registrar's credential"))?;
        let content = self.host.activate(&credential, &secret)?;
        self.ask(&request::activate(&self.name, &content))?;
        (self.ak, self.refused) = (Some(identity.ak), 0);
        Ok(Event::Registered)
    }

    fn open_session(&mut self) -> Result<Event, Failure> {
        let answer = self.ask(&request::session(&self.name))?;
        let (session, challenge) =
            answer::challenge(&answer).ok_or_else(|| strange("the verifier's challenge"))?;
        let proof = self.host.certify(&challenge)?;
        let refused = match self.ask(&request::proof(&self.name, &session, &proof)) {
            Ok(answer) => match answer::token(&answer) {
                Some(token) => {
                    (self.token, self.refused) = (Some(token), 0);
                    return Ok(Event::Session);
                }
                None => String::new(),
            },
            Err(Failure::Session(why)) => format!(" ({why})"),
            Err(other) => return Err(other),
        };
        // The registrar may have been told to forget us meanwhile: then the tenant needs the keys anew. Not each time,
        // since for the moment between both requests of a registration it has no keys to tell the tenant.
        self.refused = self.refused.saturating_add(1);
        if self.refused >= PATIENCE {
            self.ak = None;
        }
        Err(Failure::Later(
            format!(
                "the verifier does not take the proof of possession{refused}. Hint: it must know the agent \
                 (`keylime_tenant -c add --push-model`), with the key that the registrar has now"
            ),
            None,
        ))
    }

    fn attest(&mut self, ak: &[u8], token: &str, interval: u64) -> Result<Event, Failure> {
        let answer = self.ask(&request::capabilities(&self.name, token, ak, boot_time()?))?;
        let (index, wanted) =
            answer::wanted(&answer).ok_or_else(|| strange("what the verifier wants to be sent"))?;
        let collected: Result<Vec<Evidence>, Failure> =
            wanted.iter().map(|wanted| self.collect(wanted)).collect();
        let answer = self.ask(&request::evidence(&self.name, token, &index, &collected?))?;
        let next = answer::pause(&answer).unwrap_or(0).max(interval);
        Ok(Event::Sent { index, next })
    }

    fn collect(&mut self, wanted: &Wanted) -> Result<Evidence, Failure> {
        Ok(match wanted {
            Wanted::Quote { pcrs, challenge } => {
                Evidence::Quote(*pcrs, Box::new(self.host.quote(*pcrs, challenge)?))
            }
            Wanted::Log => Evidence::Log(self.host.log()?),
        })
    }
}

fn strange(what: &str) -> Failure {
    Failure::Fatal(format!(
        "{what} is of a form that this program does not know. Hint: it was tested with Keylime 7.14"
    ))
}

/// Seconds before the next try, after so many that failed.
fn back_off(failures: u32) -> u64 {
    1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(LONGEST_PAUSE).clamp(1, LONGEST_PAUSE)
}

/// When this guest was started, in seconds since 1970.
fn boot_time() -> Result<u64, Failure> {
    let fatal = |why: &str| {
        Failure::Fatal(format!("cannot read when this guest was started from {STATISTICS}: {why}"))
    };
    let text = std::fs::read_to_string(STATISTICS).map_err(|error| fatal(&error.to_string()))?;
    started(&text).ok_or_else(|| fatal("no such line"))
}

fn started(statistics: &str) -> Option<u64> {
    statistics.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
