//! A TPM that fails, asks for repetition or answers garbage, while guests run and during the launch: nothing that it says is
//! believed, the guest that asked is told, the others go on, and once the TPM is honest again all is well.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dolmen_tpm::constant::{ResponseCode, cc};

use super::errands::{Asker, ask};
use super::{ALL_BANKS, Case, Scene, slow};
use crate::artifact::{self, MICRO_GUEST};
use crate::lab::{self, LAUNCH, Lab, Release};
use crate::machine::Machine;
use crate::machine::bus::OURS;
use crate::machine::fault::{Plan, Reply};
use crate::machine::stream::Stream;
use crate::machine::traffic::name;
use crate::{demo, place, ui};

/// TPM_RC that ask for the same command again.
const RETRY: u32 = ResponseCode::RETRY.0;
const TESTING: u32 = ResponseCode::TESTING.0;
const YIELDED: u32 = ResponseCode::YIELDED.0;
/// TPM_RC that do not.
const FAILURE: u32 = ResponseCode::FAILURE.0;
const MEMORY: u32 = 0x904;
const LOCKOUT: u32 = ResponseCode::LOCKOUT.0;
/// How often the driver repeats a command.
const REPETITIONS: u32 = 20;
/// How long the meter runs while nobody asks.
const QUIET: Duration = Duration::from_secs(3);
/// Longest wait for a launch to stop.
const STOP: Duration = Duration::from_secs(120);

/// The test of this file that measures rates.
pub(super) const MEASURING: &[Case] =
    &[Case { name: "a_tpm_that_fails_or_lies_is_not_believed_and_harms_nobody_for_long", run: at_run_time }];

/// The others.
pub(super) const CASES: &[Case] = &[
    Case { name: "a_launch_with_a_tpm_that_fails_or_lies_stops_and_says_why", run: at_launch },
    Case { name: "no_command_of_a_launch_may_fail_or_be_answered_by_noise", run: at_each_command },
];

/// Ways to garble an answer that has a body.
const GARBAGE: [Reply; 7] = [
    Reply::Half,
    Reply::Longer,
    Reply::TooLong,
    Reply::WrongTag,
    Reply::WrongBody,
    Reply::Noise,
    Reply::WrongSizes,
];

/// The guests and who sits on the bus.
struct Company {
    machine: Machine,
    alpha: Asker,
    beta: Asker,
    meter: Stream,
    failures: u32,
}

fn at_run_time(scene: &Scene<'_>) -> Result<()> {
    let release = release(scene)?;
    let lab = lab(scene, "machine")?.with_tpm_bus(&[]);
    let mut machine = lab.boot("run", &release.parts)?;
    lab::measured(&mut machine)?;
    let mut meter = machine.console.take().context("no console")?;
    meter.wait_for("here", LAUNCH)?;
    let (alpha, beta) = (machine.log.guest("alpha")?, machine.log.guest("beta")?);
    let (alpha, beta) = (Asker::wait(alpha, LAUNCH)?, Asker::wait(beta, LAUNCH)?);
    let mut company = Company { machine, alpha, beta, meter, failures: 0 };
    slow::measure(&mut company.meter, b'0')?;
    std::thread::sleep(QUIET);
    let quiet = slow::measure(&mut company.meter, b'1')?;
    company.repetitions()?;
    company.refusals()?;
    company.garbage()?;
    company.leftovers()?;
    company.credentials(&scene.folder)?;
    company.reseed()?;
    let busy = slow::measure(&mut company.meter, b'2')?;
    let (calls, ticks) = slow::judge_rates(&quiet, &busy)?;
    company.no_stop()?;
    ui::fact(&format!(
        "{} errands failed by as many faults, one worked after each; a third guest kept {:.0} % of its calls, {:.0} % of its ticks",
        company.failures,
        calls * 100.0,
        ticks * 100.0
    ));
    Ok(())
}

impl Company {
    fn plan(&self, plans: Vec<Plan>) -> Result<()> {
        self.machine.tpm_bus()?.plan(plans);
        Ok(())
    }

    fn changed(&self) -> Result<u32> {
        Ok(self.machine.tpm_bus()?.changed())
    }

    /// Alpha's errand fails by the plans, with one of these codes if there are any; then, with the TPM honest again, beta's works.
    fn fails(&mut self, what: u8, plans: Vec<Plan>, codes: &[u32]) -> Result<()> {
        let told = format!("{plans:x?}");
        self.plan(plans)?;
        let code = self.alpha.fail(what).with_context(|| told.clone())?;
        ensure!(codes.is_empty() || codes.contains(&code), "{told}: the code is {code:#x}");
        ensure!(self.changed()? > 0, "{told}: nothing was changed");
        self.failures = self.failures.saturating_add(1);
        self.plan(Vec::new())?;
        self.beta.get(ask::QUOTE).map(drop).with_context(|| format!("after {told}"))
    }

    /// Who is asked to repeat does so, but not for ever.
    fn repetitions(&mut self) -> Result<()> {
        for code in [RETRY, TESTING, YIELDED] {
            let all = [cc::START_AUTH_SESSION, cc::POLICY_PCR, cc::POLICY_LOCALITY, cc::QUOTE];
            self.plan(all.map(|command| Plan::always(command, Reply::Code(code)).times(2)).to_vec())?;
            self.alpha.get(ask::QUOTE).with_context(|| format!("{code:#x}"))?;
            ensure!(self.changed()? == 8, "{code:#x}: {} commands were repeated", self.changed()?);
        }
        self.plan(vec![Plan::always(cc::QUOTE, Reply::Code(RETRY))])?;
        ensure!(self.alpha.fail(ask::QUOTE)? == RETRY, "a TPM that asks for ever");
        ensure!(self.changed()? == REPETITIONS + 1, "sent {} times", self.changed()?);
        self.plan(Vec::new())?;
        self.alpha.get(ask::QUOTE).map(drop)
    }

    /// A plain error reaches the guest with its code.
    fn refusals(&mut self) -> Result<()> {
        for command in [cc::START_AUTH_SESSION, cc::POLICY_PCR, cc::POLICY_LOCALITY, cc::QUOTE] {
            for code in [FAILURE, MEMORY, LOCKOUT] {
                self.fails(ask::QUOTE, vec![Plan::always(command, Reply::Code(code))], &[code])?;
            }
        }
        let makes = vec![Plan::always(cc::CREATE_PRIMARY, Reply::Code(FAILURE))];
        self.fails(ask::RSA_QUOTE, makes, &[FAILURE])?;
        for command in [cc::START_AUTH_SESSION, cc::CERTIFY] {
            for code in [FAILURE, LOCKOUT] {
                self.fails(ask::CERTIFY, vec![Plan::always(command, Reply::Code(code))], &[code])?;
            }
        }
        let none = vec![Plan::always(cc::CREATE_PRIMARY, Reply::CodeAfter(MEMORY))];
        self.fails(ask::ENDORSEMENT_KEY, none, &[MEMORY])
    }

    /// Garbage and forgeries are never believed.
    fn garbage(&mut self) -> Result<()> {
        for reply in GARBAGE {
            self.fails(ask::QUOTE, vec![Plan::always(cc::START_AUTH_SESSION, reply)], &[0])?;
            self.fails(ask::QUOTE, vec![Plan::always(cc::QUOTE, reply)], &[0])?;
            self.fails(ask::CERTIFY, vec![Plan::always(cc::CERTIFY, reply)], &[0])?;
        }
        for reply in [Reply::Longer, Reply::TooLong, Reply::WrongTag, Reply::Noise] {
            self.fails(ask::QUOTE, vec![Plan::always(cc::POLICY_PCR, reply)], &[])?;
        }
        // The signature's two numbers, and what it is over. (Behind them stands a session's entry that protects nothing.)
        for behind in [40, 60, 90, 120, 160, 200] {
            self.fails(ask::QUOTE, vec![Plan::always(cc::QUOTE, Reply::Flip(behind))], &[])?;
            self.fails(ask::CERTIFY, vec![Plan::always(cc::CERTIFY, Reply::Flip(behind))], &[])?;
        }
        // The handle of a session.
        self.fails(ask::QUOTE, vec![Plan::always(cc::START_AUTH_SESSION, Reply::Flip(34))], &[])
    }

    /// Sessions and keys whose handles nobody learned, or that could not be flushed, fill no places: a TPM has three of each.
    fn leftovers(&mut self) -> Result<()> {
        for _ in 0..5 {
            let failing = |command| Plan::always(command, Reply::Code(FAILURE)).times(1);
            self.fails(ask::QUOTE, vec![failing(cc::QUOTE), failing(cc::FLUSH_CONTEXT)], &[FAILURE])?;
        }
        for reply in [Reply::Half, Reply::Noise, Reply::CodeAfter(FAILURE), Reply::WrongBody] {
            self.fails(ask::ENDORSEMENT_KEY, vec![Plan::always(cc::CREATE_PRIMARY, reply)], &[])?;
        }
        self.alpha.get(ask::RSA_QUOTE)?;
        self.alpha.get(ask::ENDORSEMENT_KEY).map(drop)
    }

    /// What comes through the salted session: after an answer that was forged or lost there is another session.
    fn credentials(&mut self, folder: &Path) -> Result<()> {
        let secret = demo::nonce()?;
        self.alpha.challenge(&secret, folder)?;
        self.alpha.open(&secret)?;
        for reply in [Reply::Flip(0), Reply::Flip(120), Reply::Half, Reply::WrongBody] {
            self.fails(ask::OPEN_CREDENTIAL, vec![Plan::always(cc::ACTIVATE_CREDENTIAL, reply)], &[0])?;
            self.alpha.open(&secret).with_context(|| format!("after {reply:x?}"))?;
        }
        // A forged refusal of what the TPM has done is found out when it refuses the session.
        let forged = vec![Plan::always(cc::ACTIVATE_CREDENTIAL, Reply::CodeAfter(FAILURE))];
        self.fails(ask::OPEN_CREDENTIAL, forged, &[FAILURE])?;
        self.alpha.fail(ask::OPEN_CREDENTIAL)?;
        self.alpha.open(&secret)
    }

    /// A reseed whose answer is forged is no seed; the next one is, through another session.
    fn reseed(&mut self) -> Result<()> {
        self.plan(vec![Plan::always(cc::GET_RANDOM, Reply::Flip(0)).times(1)])?;
        self.beta.get(ask::MUCH_RANDOM)?;
        self.machine.log.wait_for("no fresh seed from the TPM", LAUNCH)?;
        ensure!(self.changed()? == 1, "no reseed was forged");
        let before = self.machine.tpm_bus()?.seeds();
        self.beta.get(ask::MUCH_RANDOM)?;
        self.beta.get(ask::MUCH_RANDOM)?;
        self.machine.tpm_bus()?.wait_for_seed(before, LAUNCH)
    }

    /// The host went on all the time, and nothing of it broke.
    fn no_stop(&mut self) -> Result<()> {
        let bad = |line: &&String| line.contains("stop: ") || line.contains("panic");
        if let Some(line) = self.machine.log.lines().iter().find(bad) {
            bail!("the host says: {line}");
        }
        ensure!(!self.machine.is_off()?, "the machine is off");
        self.alpha.get(ask::RANDOM).map(drop)
    }
}

/// The answers to the launch's commands, one fault each, and what the stop must say of it.
const LAUNCHES: [(u32, u32, Reply, &str); 10] = [
    (cc::PCR_EXTEND, 0, Reply::Code(FAILURE), "TPM"),
    (cc::GET_CAPABILITY, 1, Reply::Noise, "TPM"),
    (cc::GET_RANDOM, 0, Reply::Half, "TPM command 0x17b failed"),
    (cc::CREATE_PRIMARY, 0, Reply::WrongBody, "TPM command 0x131 failed"),
    (cc::START_AUTH_SESSION, 0, Reply::Noise, "TPM command 0x176 failed"),
    (cc::GET_RANDOM, 1, Reply::Flip(0), "TPM command 0x17b failed: Forged"),
    (cc::CREATE_PRIMARY, 1, Reply::Code(MEMORY), "TPM command 0x131 failed: Refused(0x904)"),
    (cc::CREATE_PRIMARY, 2, Reply::Flip(40), "TPM command 0x131 failed: Forged"),
    (cc::POLICY_PCR, 0, Reply::Longer, "TPM command 0x17f failed"),
    (cc::HMAC, 0, Reply::Flip(120), "TPM command 0x155 failed: Forged"),
];

fn at_launch(scene: &Scene<'_>) -> Result<()> {
    let release = &scene.micro;
    for (index, (command, skip, reply, reason)) in LAUNCHES.into_iter().enumerate() {
        let what = format!("{} {skip} {reply:x?}", name(command).context("a command without a name")?);
        let plan = Plan::always(command, reply).after(skip);
        let lab = lab(scene, &format!("launch-{index}"))?.with_tpm_bus(&[plan]);
        let line = stopped(&lab, release).with_context(|| what.clone())?;
        ensure!(line.contains(reason), "{what}: {line}");
    }
    ui::fact(&format!("{} launches stopped, each for the reason that there was", LAUNCHES.len()));
    Ok(())
}

/// Each command that a launch sends, failed and answered by noise in turn.
fn at_each_command(scene: &Scene<'_>) -> Result<()> {
    let commands = launch_commands(scene)?;
    ensure!(!commands.is_empty(), "no command of the launch was heard");
    for (index, (command, skip)) in commands.iter().copied().enumerate() {
        for (kind, reply) in [Reply::Code(FAILURE), Reply::Noise].into_iter().enumerate() {
            let command_name = name(command).context("a command without a name")?;
            let what = format!("command {index}, {command_name} {skip}, {reply:x?}");
            let plan = Plan::always(command, reply).after(skip).times(1);
            let lab = lab(scene, &format!("each-{index}-{kind}"))?.with_tpm_bus(&[plan]);
            stopped(&lab, &scene.micro).with_context(|| what)?;
        }
    }
    let count = commands.len();
    ui::fact(&format!(
        "{count} commands, each failed and garbled: {} launches stopped",
        count.saturating_mul(2)
    ));
    Ok(())
}

/// What an undisturbed launch sends from the first command to the first guest: codes, and how many of each came before.
fn launch_commands(scene: &Scene<'_>) -> Result<Vec<(u32, u32)>> {
    let mut machine = lab(scene, "each")?.with_tpm_bus(&[]).boot("run", &scene.micro.parts)?;
    machine.log.wait_for("guest runs", LAUNCH)?;
    let mut before = BTreeMap::new();
    let ours = machine.tpm_bus()?.heard().into_iter().filter(|one| one.locality == OURS);
    ours.map(|one| {
        let code = one.code().context("a short command")?;
        let count: &mut u32 = before.entry(code).or_default();
        let skip = *count;
        *count = count.saturating_add(1);
        Ok((code, skip))
    })
    .collect()
}

/// Boots; what the launch said when it stopped. No guest has run.
fn stopped(lab: &Lab<'_>, release: &Release) -> Result<String> {
    let mut machine = lab.boot("run", &release.parts)?;
    let line = machine.log.find("the launch to stop", STOP, |line| {
        (line.contains("stop: ") || line.contains("guest runs")).then(|| line.to_owned())
    })?;
    ensure!(line.contains("stop: "), "a guest runs");
    ensure!(machine.tpm_bus()?.changed() > 0, "it stopped before anything was changed: {line}");
    Ok(line)
}

fn lab<'a>(scene: &'a Scene<'_>, folder: &str) -> Result<Lab<'a>> {
    let (bench, folder) = (scene.bench, scene.folder.join(folder));
    Ok(Lab::new(&bench.tools, &bench.artifacts, "bios", &folder, ALL_BANKS)?.with_cpus(1))
}

fn release(scene: &Scene<'_>) -> Result<Release> {
    let artifacts = &scene.bench.artifacts;
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &artifacts.folder)?;
    let mut text = String::new();
    for (name, role, console) in
        [("meter", "meter", "com2"), ("alpha", "errands", "multiplexed"), ("beta", "errands", "multiplexed")]
    {
        write!(
            text,
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nformat = \"pvh\"\nconsoles = [\"{console}\"]\n\
             hypercalls = [\"random\", \"quote\", \"host-quote\", \"enrol\"]\non_reboot = \"stop\"\non_power_off = \"stop\"\n\
             kernel = \"{}\"\ncmdline = \"{role}\"\n",
            kernel.display()
        )?;
    }
    super::release(scene.bench, &scene.folder, &text)
}
