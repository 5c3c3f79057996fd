//! Many guests at once on few processors.

use anyhow::Result;

use super::{Case, Scene};
use crate::lab::{self, GUEST, LAUNCH, Release};
use crate::machine::stream::Stream;

/// Guests of the crowd.
const CROWD: usize = 32;

/// The tests of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "thirty_two_guests_on_two_processors_boot_and_answer", run: crowd }];

fn crowd(scene: &Scene<'_>) -> Result<()> {
    let kernel = scene.bench.artifacts.file("micro-guest.elf");
    let names: Vec<String> = (0..CROWD).map(|number| format!("small-{number}")).collect();
    let text: String = names
        .iter()
        .map(|name| {
            format!(
                "[[guest]]\nname = \"{name}\"\nmemory_mib = 16\nformat = \"pvh\"\nkernel = \"{}\"\n\
                 cmdline = \"answer\"\n",
                kernel.display()
            )
        })
        .collect();
    let release = Release::of(&scene.bench.artifacts, &scene.folder, &text)?;
    let lab = scene.lab("bios")?.with_cpus(2);
    let mut machine = lab.boot("crowd", &release.parts)?;
    lab::measured(&mut machine)?;
    let mut consoles: Vec<Stream> =
        names.iter().map(|name| machine.log.guest(name)).collect::<Result<_>>()?;
    for console in &mut consoles {
        console.wait_for("here", LAUNCH)?;
    }
    // All at once, so that all are awake together; then again, in case that one answers only once.
    for key in [b'a', b'b'] {
        for console in &mut consoles {
            console.send(&[key])?;
        }
        for console in &mut consoles {
            console.wait_for(&format!("answer {key}"), GUEST)?;
        }
    }
    Ok(())
}
