//! `dolmen`: what the hypervisor offers its guest, from the shell.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

mod args;
mod command;
mod enrol;
mod failure;
mod frame;
mod guests;
mod manage;
mod output;
mod provision;
mod receive;
mod reference;
mod report;
mod terminal;
mod top;
mod tpm;

use std::process::ExitCode;

use dolmen_guest::Client;
use dolmen_guest::linux::Device;

use args::{Action, Arguments};
use failure::Failure;

fn main() -> ExitCode {
    match run(&Arguments::read(std::env::args_os()).unwrap_or_else(|error| error.exit())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("dolmen: {failure}");
            failure.exit_code()
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let action = &arguments.action;
    let product = if let Action::Receive { file, timeout } = action {
        receive::run(file, *timeout)?
    } else if let Action::Provision(options) = action {
        provision::run(options)?
    } else {
        let input = command::gather(action)?;
        let device = Device::open(&arguments.device).map_err(|error| Failure::plain(&error))?;
        let mut client = Client::new(device);
        if let Action::Top { interval, count } = action {
            return top::watch(&mut client, *interval, *count, arguments.json);
        }
        command::run(&mut client, action, &input)?
    };
    output::deliver(&product, arguments)
}
