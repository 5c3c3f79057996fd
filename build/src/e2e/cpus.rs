//! Processors: all that firmware names come up, and a list that lies can only make the launch stop.

use anyhow::{Context, Result, bail};

use super::{Case, Scene, release};
use crate::artifact::{self, LOADER_HOSTILE, MICRO_GUEST};
use crate::lab::{self, GUEST, LAUNCH, MEASURED};
use crate::machine::Machine;
use crate::{place, ui};

/// Said at the end of every way out.
const CAPPED: &str = "stop: memory wiped, PCR 17 and 18 capped";

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "one_two_four_and_eight_processors_come_up_and_are_parked_at_the_end", run: all_come_up },
    Case { name: "processors_come_up_under_uefi_firmware_too", run: uefi },
    Case { name: "a_processor_that_does_not_come_up_stops_the_launch_by_its_apic_id", run: ghost },
    Case { name: "a_processor_that_is_listed_twice_stops_the_launch", run: twice },
    Case { name: "processors_that_the_loader_hides_stay_parked", run: hidden },
    Case { name: "the_way_out_parks_processors_that_are_all_busy_whichever_takes_it", run: busy },
];

fn all_come_up(scene: &Scene<'_>) -> Result<()> {
    for cpus in [1, 2, 4, 8] {
        let lab = scene.lab("bios")?.with_cpus(cpus);
        let mut machine = lab.boot(&format!("cpus-{cpus}"), &scene.micro.parts)?;
        until(&mut machine, &format!("virtualise: cpus={cpus} left_out=0"))?;
        guest_passes(&mut machine)?;
        machine.log.wait_for(CAPPED, GUEST)?;
        if machine.log.lines().iter().any(|line| line.contains("does not stand still")) {
            bail!("of {cpus} processors not all stood still on the way out");
        }
        machine.switch_off()?;
    }
    Ok(())
}

/// Another firmware makes another list, and leaves other memory types behind.
fn uefi(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("uefi")?.with_cpus(4);
    let mut machine = lab.boot("uefi", &scene.micro.parts)?;
    until(&mut machine, "virtualise: cpus=4 left_out=0")?;
    guest_passes(&mut machine)?;
    machine.log.wait_for(CAPPED, GUEST)?;
    machine.switch_off()
}

/// Waits for `line`, before anything stops.
fn until(machine: &mut Machine, line: &str) -> Result<()> {
    let found = machine.log.find(line, LAUNCH, |said| {
        (said.contains("stop: ") || said.contains(line)).then(|| said.to_owned())
    })?;
    if found.contains(line) { Ok(()) } else { bail!("the launch stopped: {found}") }
}

/// The guest's own tests find nothing wrong.
fn guest_passes(machine: &mut Machine) -> Result<()> {
    let mut console = machine.console.take().context("no console")?;
    let sum = console.wait_for("micro: ", GUEST)?;
    if sum.ends_with(", 0 failed") { Ok(()) } else { bail!("the guest finds something wrong: {sum}") }
}

/// Starts with a loader that lies about the processors.
fn lied_to(scene: &Scene<'_>, word: &str) -> Result<Machine> {
    let bench = scene.bench;
    let loader =
        artifact::compile(&LOADER_HOSTILE, &place::root(), &place::target(), &bench.artifacts.folder)?;
    let arguments = format!("attack={word}");
    let lab = scene.lab("smp")?;
    lab.boot_with(
        word,
        &scene.micro.parts,
        Some((&loader, &arguments)),
        &lab::STANDS_STILL.map(str::to_owned),
    )
}

/// The launch stops with `why`, caps the registers, and no guest ran.
fn stops(mut machine: Machine, why: &str) -> Result<()> {
    let line = machine.log.find("a stop or a guest", LAUNCH, |line| {
        (line.contains("stop: ") || line.contains("serve: ")).then(|| line.to_owned())
    })?;
    if !line.contains(why) {
        bail!("expected a stop with \"{why}\": {line}");
    }
    ui::fact(&line);
    machine.log.wait_for("capped", LAUNCH)?;
    machine.switch_off()
}

fn ghost(scene: &Scene<'_>) -> Result<()> {
    stops(lied_to(scene, "cpu-ghost")?, "the processor with APIC ID 77 did not come up")
}

fn twice(scene: &Scene<'_>) -> Result<()> {
    stops(lied_to(scene, "cpu-twice")?, "twice")
}

fn hidden(scene: &Scene<'_>) -> Result<()> {
    let mut machine = lied_to(scene, "cpu-hidden")?;
    until(&mut machine, MEASURED)?;
    until(&mut machine, "virtualise: cpus=1 left_out=0")?;
    guest_passes(&mut machine)?;
    machine.log.wait_for(CAPPED, GUEST)?;
    machine.switch_off()
}

/// Six guests keep four processors busy, and the one on processor 3, then on 0, ends the machine's run.
fn busy(scene: &Scene<'_>) -> Result<()> {
    let bench = scene.bench;
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &bench.artifacts.folder)?;
    for last in [3, 0] {
        let guest = |name: &str, ending: &str, more: &str| {
            let kernel = kernel.display();
            format!(
                "[[guest]]\nname = \"{name}\"\nmemory_mib = 16\nformat = \"pvh\"\nconsoles = [\"none\"]\n\
                 on_crash = \"halt-machine\"\nkernel = \"{kernel}\"\ncmdline = \"ends={ending}\"\n{more}\n"
            )
        };
        let mut text: String = (0..5).map(|n| guest(&format!("busy-{n}"), "never", "")).collect();
        text.push_str(&guest("last", "later", &format!("affinity = [{last}]\nweight = 1000\n")));
        let release = release(bench, &scene.folder.join(format!("busy-{last}")), &text)?;
        let lab = scene.lab("smp")?;
        let mut machine = lab.boot(&format!("busy-{last}"), &release.parts)?;
        until(&mut machine, "virtualise: cpus=4")?;
        machine.log.wait_for("triple-fault", GUEST)?;
        machine.log.wait_for(CAPPED, LAUNCH)?;
        if machine.log.lines().iter().any(|line| line.contains("does not stand still")) {
            bail!("not all processors stood still");
        }
        machine.switch_off()?;
    }
    Ok(())
}
