//! `cargo xtask`: the one entry to building, running, testing and measuring Dolmen.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]

mod artifact;
mod bench;
mod conformance;
mod copyright;
mod cpio;
mod deb;
mod demo;
mod e2e;
mod emulator;
mod folder;
mod guest;
mod image;
mod initramfs;
mod kernel;
mod lab;
mod linked;
mod lint;
mod machine;
mod manifest;
mod measure;
mod package;
mod place;
mod pool;
mod prepush;
mod process;
mod proof;
mod release;
mod reproduce;
mod run;
mod setup;
mod test;
mod ui;
mod vectors;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and tests Dolmen. Every command first sets up what it needs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Task {
    /// Show the whole story on an emulated machine: launch, seal, quote, verify, attack.
    Demo(demo::Options),
    /// Install what is missing on this machine: packages, toolchain parts, emulator, guest kernels.
    Setup,
    /// Build hypervisor, loader and guest into target/dolmen.
    Build,
    /// Run an emulated machine with its guests' console on this terminal.
    Run(run::Options),
    /// Compute PCR 17, PCR 18 and every guest's identity from the files.
    Measure(measure::Options),
    /// Make a bootable disk image for UEFI, and the reference values that go with it.
    Image(image::task::Options),
    /// Make Debian packages of the guest tools.
    Package,
    /// Run every level of tests, or those chosen, and count.
    Test(test::Options),
    /// Count bytes, lines and executed instructions, beside those of KVM and Xen.
    Bench(bench::Options),
    /// Build twice in two folders and compare.
    Reproduce,
    /// Put a release together: programs, reference values (JSON and CoRIM), what they are made of, checksums.
    Release(release::Options),
    /// Run what must hold before a change is pushed.
    Prepush,
    /// Check the tree's own rules and write the ledger of unsafe code.
    Lint,
    /// Take evidence from a whole machine into tests/vectors, after the format of evidence has changed.
    Vectors,
    /// Pass bytes between a tpm2 tool and a relay; started by the tools themselves.
    #[command(hide = true)]
    TpmRelay {
        /// The relay's socket.
        socket: PathBuf,
    },
}

fn main() -> ExitCode {
    match perform(Line::parse().task) {
        Ok(code) => code,
        Err(error) => {
            ui::bad(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Demo(options) => return demo::run(&options),
        Task::Setup => set_up()?,
        Task::Build => build()?,
        Task::Run(options) => run::run(&options)?,
        Task::Measure(options) => measure::run(&options)?,
        Task::Image(options) => image::task::run(&options)?,
        Task::Package => deb::run()?,
        Task::Prepush => return prepush::run(),
        Task::Test(options) => return test::run(&options),
        Task::Bench(options) => bench::run(&options)?,
        Task::Reproduce => reproduce::run()?,
        Task::Release(options) => release::run(&options)?,
        Task::Lint => lint::run()?,
        Task::Vectors => vectors::run()?,
        Task::TpmRelay { socket } => machine::relay::pass_bytes(&socket)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn set_up() -> anyhow::Result<()> {
    let tools = setup::ensure()?;
    ui::good(&format!(
        "ready: emulator {}, guest kernels {} and {}",
        tools.qemu.display(),
        tools.kernel.version,
        tools.older.version
    ));
    Ok(())
}

fn build() -> anyhow::Result<()> {
    let artifacts = artifact::build(&setup::ensure()?)?;
    ui::good(&format!("built in {}", artifacts.folder.display()));
    Ok(())
}
