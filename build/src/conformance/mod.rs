//! The emulator's SKINIT does what the manual says: boots the image of `qemu/conformance` once per case.
//!
//! The image checks what a program can see and reports it on COM1. What only the outside can see is checked here: PCR 17
//! as `tpm2-tools` read it after the machine's power is cut, and what became of the hostile device's accesses.

mod attack;
mod case;
mod image;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dolmen_drtm::digest::Algorithm;
use dolmen_drtm::pcr;

use crate::machine::profile::{Firmware, Profile};
use crate::machine::relay::ToolTpm;
use crate::machine::swtpm::Record;
use crate::machine::{ConsoleTo, Machine, Medium, Setting};
use crate::measure::bank_name;
use crate::pool::{self, Job};
use crate::test::Tally;
use crate::{place, ui};
use case::{Case, Register};
use image::Image;

/// Longest time for one case.
const LIMIT: Duration = Duration::from_secs(30);
/// What the image asks for when the TPM is to die.
const KILL: &str = "kill the TPM";

/// Runs every case whose name contains `only`; prints a line for each.
pub(crate) fn run(qemu: &Path, only: Option<&str>) -> Result<Tally> {
    let folder = place::output().join("conformance");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    let source = place::root().join("qemu/conformance");
    let image = Image::build(&source, &folder)?;
    let cases = case::load(&source.join("cases.toml"))?;
    let chosen =
        cases.iter().enumerate().filter(|(_, case)| only.is_none_or(|only| case.name.contains(only)));
    let jobs = chosen.map(|(index, case)| {
        let bench = Bench { qemu, image: &image, folder: folder.join(format!("case-{index:02}")) };
        Job::new(case.name.as_str(), 1, move || {
            let verdict = bench.run(case);
            match &verdict {
                Ok(()) => ui::good(&case.name),
                Err(error) => {
                    ui::bad(&case.name);
                    ui::note(&format!("{error:#}"));
                }
            }
            Tally::one(verdict.is_ok())
        })
    });
    Ok(pool::run("One small machine for each case", jobs.collect()))
}

/// What one case runs on.
struct Bench<'a> {
    qemu: &'a Path,
    image: &'a Image,
    folder: PathBuf,
}

impl Bench<'_> {
    fn run(&self, case: &Case) -> Result<()> {
        let report = self.folder.join("attack.log");
        let profile = profile(case, &report)?;
        let medium = Medium::Multiboot {
            kernel: self.image.file.clone(),
            modules: Vec::new(),
            arguments: case.run.clone(),
        };
        let mut machine = Machine::start(&Setting {
            qemu: self.qemu,
            profile: &profile,
            medium: &medium,
            folder: &self.folder,
            cycle: "case",
            more: &[],
            console: ConsoleTo::Harness,
            record: Record::default(),
            bus: None,
        })?;
        if case.kill_tpm {
            machine.log.wait_for(KILL, LIMIT)?;
            machine.kill_tpm()?;
            machine.log.send(b"\n")?;
        }
        machine.log.find("the end of the case", LIMIT, |line| (line == "end").then_some(()))?;
        let lines = machine.log.lines();
        checks(&lines)?;
        if let Some(last) = case.pcr17.last() {
            self.inside(case, &lines)?;
            let tpm = machine.cut_power()?;
            let tools = ToolTpm::serve(tpm.attach()?)?;
            self.outside(case, *last, &tools)?;
        }
        match &case.attack {
            Some(expected) => attack::judge(expected, &report),
            None => Ok(()),
        }
    }

    /// What PCR 17 of a bank should hold.
    fn value(&self, case: &Case, register: Register, algorithm: Algorithm) -> Result<String> {
        let measured = match register {
            Register::Nothing => Vec::new(),
            Register::Measured | Register::Changed => self.image.measured(case.length()?)?,
        };
        Ok(hex::encode(pcr::launched(algorithm, &measured).bytes()))
    }

    /// Compares what the image reported from locality 2.
    fn inside(&self, case: &Case, lines: &[String]) -> Result<()> {
        for algorithm in Algorithm::ALL {
            let prefix = format!("pcr 17 {} ", bank_name(algorithm));
            let reported: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(&prefix)).collect();
            for (got, register) in reported.iter().zip(&case.pcr17) {
                self.compare(case, *register, algorithm, got)
                    .with_context(|| format!("the image reads PCR 17 ({})", bank_name(algorithm)))?;
            }
            if reported.len() != case.pcr17.len() && !case.is_silent() {
                bail!("the image reported PCR 17 {} times, not {}", reported.len(), case.pcr17.len());
            }
        }
        Ok(())
    }

    /// Compares what `tpm2_pcrread` shows; the registers that a launch resets are zero unless extended.
    fn outside(&self, case: &Case, register: Register, tools: &ToolTpm) -> Result<()> {
        for algorithm in Algorithm::ALL {
            let bank = bank_name(algorithm);
            self.compare(case, register, algorithm, &tools.pcr(bank, 17)?)
                .with_context(|| format!("tpm2_pcrread shows PCR 17 ({bank})"))?;
        }
        for index in 18..=22 {
            let value = tools.pcr("sha256", index)?;
            if value.bytes().any(|digit| digit != b'0') {
                bail!("tpm2_pcrread shows PCR {index} (sha256) = {value}, want zero");
            }
        }
        Ok(())
    }

    fn compare(&self, case: &Case, register: Register, algorithm: Algorithm, got: &str) -> Result<()> {
        let want = self.value(case, register, algorithm)?;
        let nothing = self.value(case, Register::Nothing, algorithm)?;
        match register {
            Register::Measured | Register::Nothing if got != want => bail!("{got}, want {want}"),
            Register::Changed if got == want => bail!("the value of the unchanged block"),
            Register::Changed if got == nothing => bail!("the value of a launch that is not to be trusted"),
            Register::Measured | Register::Nothing | Register::Changed => Ok(()),
        }
    }
}

/// The small machine of a case.
fn profile(case: &Case, report: &Path) -> Result<Profile> {
    let report = report.to_str().context("the target folder's name is not UTF-8")?.replace(',', ",,");
    let mut devices: Vec<String> =
        case.devices.iter().map(|device| device.replace("{report}", &report)).collect();
    if devices.is_empty() {
        devices.push("amd-sldev".to_owned());
    }
    Ok(Profile {
        description: case.name.clone(),
        machine: "q35".to_owned(),
        cpu: case.cpu.clone(),
        cpus: case.cpus,
        memory_mib: 256,
        firmware: Firmware::Bios,
        tpm: case.tpm,
        devices,
        arguments: case.arguments.clone(),
    })
}

/// Every check of the image is good, and it came to its end.
fn checks(lines: &[String]) -> Result<()> {
    let failed: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("check FAIL ")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    if !lines.iter().any(|line| line == "end") {
        bail!("the image did not come to its end");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_the_case() {
        let lines = ["check ok a", "check FAIL b: got 1, want 2", "end"].map(str::to_owned);
        assert_eq!(checks(&lines).unwrap_err().to_string(), "b: got 1, want 2");
        assert!(checks(&lines[..1]).is_err());
        assert!(checks(&lines[2..]).is_ok());
    }
}
