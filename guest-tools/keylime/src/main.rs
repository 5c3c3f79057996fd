//! `dolmen-keylime`: keeps the host attested at a Keylime verifier, from a guest (`docs/keylime.md`).
//!
//! Everything goes out from here: no port is opened. A program of its own beside `dolmen`, so that TLS and HTTP are
//! only where they are needed.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

mod agent;
mod answer;
mod args;
mod failure;
mod host;
mod register;
mod request;
mod say;
mod web;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use dolmen_guest::Client;
use dolmen_guest::linux::Device;

use agent::Agent;
use args::Arguments;
use failure::Failure;
use host::Host;
use say::Voice;
use web::Https;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say::tell(&mut io::stderr(), &format_args!("dolmen-keylime: {failure}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let web = Https::new(arguments)?;
    let device = Device::open(&arguments.device).map_err(|error| Failure::Fatal(error.to_string()))?;
    let host = Host::new(Client::new(device), arguments.ek);
    let mut voice = Voice { json: arguments.json, out: io::stdout() };
    Agent::new(host, web, arguments.agent.clone()).run(arguments.count(), arguments.interval, &mut voice)
}
