//! Builds everything that runs on the machine, reproducibly, into `target/dolmen`.
//!
//! The same sources give the same bytes in any folder: the date is fixed, the lock file is obeyed, and
//! paths of this machine are replaced in what the compiler writes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::image::Parts;
use crate::kernel::Kernel;
use crate::setup::Tools;
use crate::{initramfs, place, process, ui};

/// Date of everything that wants a date: a fixed second, for reproducibility.
const SOURCE_DATE_EPOCH: &str = "1";
/// The processor measures at most this much, and the launch image must fit with stack and tables.
const LAUNCH_LIMIT: u64 = 0xf000;

/// One program built by cargo for the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) what: &'static str,
    pub(crate) package: &'static str,
    bin: &'static str,
    pub(crate) target: &'static str,
    pub(crate) features: &'static str,
    built: &'static str,
    pub(crate) output: &'static str,
}

/// Bare machine.
const BARE: &str = "x86_64-unknown-none";
/// UEFI firmware.
const UEFI: &str = "x86_64-unknown-uefi";
/// User space of the guest, statically linked.
const MUSL: &str = "x86_64-unknown-linux-musl";

/// The launch image: what the processor measures.
pub(crate) const LAUNCH: Program = Program {
    what: "launch image",
    package: "dolmen-launch",
    bin: "dolmen-launch",
    target: BARE,
    features: "",
    built: "dolmen-launch",
    output: "launch.bin",
};
/// The hypervisor.
pub(crate) const CORE: Program = Program {
    what: "core",
    package: "dolmen-core",
    bin: "dolmen-core",
    target: BARE,
    features: "",
    built: "dolmen-core",
    output: "core.bin",
};
/// The hypervisor with a check of itself, for tests.
pub(crate) const CORE_SELF_CHECK: Program = Program {
    features: "self-check",
    what: "core that checks itself",
    output: "core-self-check.bin",
    ..CORE
};
/// The core of the development image, which nothing measures.
const CORE_UNMEASURED: Program = Program {
    features: "unmeasured",
    what: "core of the UNMEASURED development image",
    output: "core-unmeasured.bin",
    ..CORE
};
/// The same with a check of itself, for tests.
pub(crate) const CORE_UNMEASURED_SELF_CHECK: Program = Program {
    features: "unmeasured,self-check",
    what: "core of the UNMEASURED development image that checks itself",
    output: "core-unmeasured-self-check.bin",
    ..CORE
};
/// The development image's first stage.
const UNMEASURED: Program = Program {
    what: "first stage of the UNMEASURED development image",
    package: "dolmen-unmeasured",
    bin: "dolmen-unmeasured",
    built: "dolmen-unmeasured",
    output: "unmeasured.bin",
    ..LAUNCH
};
/// The loader of the development image.
const LOADER_UNMEASURED: Program = Program {
    features: "unmeasured",
    what: "loader of the UNMEASURED development image",
    output: "loader-unmeasured.elf",
    ..LOADER_MULTIBOOT
};
/// The loader as a Multiboot kernel.
pub(crate) const LOADER_MULTIBOOT: Program = Program {
    what: "loader (Multiboot)",
    package: "dolmen-loader",
    bin: "dolmen-loader-multiboot",
    target: BARE,
    features: "",
    built: "dolmen-loader-multiboot",
    output: "loader.elf",
};
/// The loader as a UEFI application.
pub(crate) const LOADER_UEFI: Program = Program {
    what: "loader (UEFI)",
    package: "dolmen-loader",
    bin: "dolmen-loader-uefi",
    target: UEFI,
    features: "",
    built: "dolmen-loader-uefi.efi",
    output: "loader.efi",
};
/// A loader that lies, for the attack tests.
pub(crate) const LOADER_HOSTILE: Program =
    Program { features: "hostile", what: "hostile loader", output: "loader-hostile.elf", ..LOADER_MULTIBOOT };
/// A bare guest that looks at the hypervisor from the inside.
pub(crate) const MICRO_GUEST: Program = Program {
    what: "micro-guest",
    package: "dolmen-micro-guest",
    bin: "micro-guest",
    target: BARE,
    features: "",
    built: "micro-guest",
    output: "micro-guest.elf",
};
/// The relying party's verifier.
const VERIFIER: Program = Program {
    what: "verifier",
    package: "dolmen-verify",
    bin: "dolmen-verify",
    target: "x86_64-unknown-linux-gnu",
    features: "",
    built: "dolmen-verify",
    output: "dolmen-verify",
};
/// The guest's command.
pub(crate) const COMMAND: Program = Program {
    what: "guest command",
    package: "dolmen-cli",
    bin: "dolmen",
    target: MUSL,
    features: "",
    built: "dolmen",
    output: "dolmen",
};

/// What keeps the host attested at Keylime, from a guest.
pub(crate) const KEYLIME_AGENT: Program = Program {
    what: "guest's agent for Keylime",
    package: "dolmen-keylime",
    bin: "dolmen-keylime",
    built: "dolmen-keylime",
    output: "dolmen-keylime",
    ..COMMAND
};

/// What the machine and its guest are made of.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    /// Folder with all of it.
    pub(crate) folder: PathBuf,
}

impl Artifacts {
    /// A file of the given name.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The launch image.
    pub(crate) fn launch(&self) -> PathBuf {
        self.file(LAUNCH.output)
    }

    /// The core.
    pub(crate) fn core(&self) -> PathBuf {
        self.file(CORE.output)
    }

    /// The relying party's verifier.
    pub(crate) fn verifier(&self) -> PathBuf {
        self.file(VERIFIER.output)
    }

    /// The guest's command.
    pub(crate) fn command(&self) -> PathBuf {
        self.file(COMMAND.output)
    }

    /// A module of the driver for the kernel of most guests.
    pub(crate) fn module(&self, name: &str) -> PathBuf {
        self.folder.join("driver").join("stripped").join(name)
    }

    /// The Multiboot loader.
    pub(crate) fn loader_multiboot(&self) -> PathBuf {
        self.file(LOADER_MULTIBOOT.output)
    }

    /// The UEFI loader.
    pub(crate) fn loader_uefi(&self) -> PathBuf {
        self.file(LOADER_UEFI.output)
    }
}

/// What is measured, and the loader that carries it.
pub(crate) const RELEASED: [Program; 4] = [LAUNCH, CORE, LOADER_MULTIBOOT, LOADER_UEFI];

/// The development image.
const DEVELOPED: [Program; 3] = [LOADER_UNMEASURED, UNMEASURED, CORE_UNMEASURED];

/// What `cargo xtask reproduce` compares.
pub(crate) fn reproduced() -> impl Iterator<Item = Program> {
    RELEASED.into_iter().chain(DEVELOPED)
}

/// The development image: runs guests on machines without a dynamic launch, and says UNMEASURED. Never shipped.
#[derive(Clone, Debug)]
pub(crate) struct Development {
    /// The loader, a Multiboot kernel.
    pub(crate) loader: PathBuf,
    /// The first stage, in the launch image's place.
    pub(crate) stage: PathBuf,
    /// The core.
    pub(crate) core: PathBuf,
}

impl Development {
    /// What a release has for this machine, with the development image in place of the measured ones.
    pub(crate) fn instead_of(&self, release: Parts) -> Parts {
        Parts { launch: self.stage.clone(), core: self.core.clone(), ..release }
    }
}

/// Builds the development image.
pub(crate) fn development(folder: &Path) -> Result<Development> {
    develop(&place::root(), &place::target(), folder)
}

/// Builds the development image from the sources in `root` into `folder`.
pub(crate) fn develop(root: &Path, target: &Path, folder: &Path) -> Result<Development> {
    let [loader, stage, core] = DEVELOPED.map(|program| compile(&program, root, target, folder));
    Ok(Development { loader: loader?, stage: stage?, core: core? })
}

/// Builds all that the machine and its guest need.
pub(crate) fn build(tools: &Tools) -> Result<Artifacts> {
    let folder = place::output();
    place::make(&folder)?;
    hypervisor(&place::root(), &place::target(), &folder)?;
    guests(tools, &folder)?;
    ui::note(&format!("built in {}", folder.display()));
    compile(&VERIFIER, &place::root(), &place::target(), &folder)?;
    Ok(Artifacts { folder })
}

/// Builds launch image, core and loader from the sources in `root` into `folder`.
pub(crate) fn hypervisor(root: &Path, target: &Path, folder: &Path) -> Result<()> {
    for program in &RELEASED {
        compile(program, root, target, folder)?;
    }
    let length = folder.join(LAUNCH.output).metadata().context("no launch image")?.len();
    if length > LAUNCH_LIMIT {
        bail!("the launch image has {length} bytes; at most {LAUNCH_LIMIT} fit beside its last page");
    }
    Ok(())
}

/// Builds the guest's command alone.
pub(crate) fn command() -> Result<PathBuf> {
    alone(&COMMAND)
}

/// Builds the guest's agent for Keylime alone.
pub(crate) fn keylime_agent() -> Result<PathBuf> {
    alone(&KEYLIME_AGENT)
}

fn alone(program: &Program) -> Result<PathBuf> {
    let folder = place::output();
    place::make(&folder)?;
    compile(program, &place::root(), &place::target(), &folder)
}

/// Builds kernels, user space and drivers of the guests into `folder`.
fn guests(tools: &Tools, folder: &Path) -> Result<()> {
    compile(&COMMAND, &place::root(), &place::target(), folder)?;
    for (kernel, suffix) in [(&tools.kernel, ""), (&tools.older, "-6.1")] {
        place::copy(&kernel.image, &folder.join(format!("vmlinuz{suffix}")))?;
        let driver = driver(kernel, &folder.join(format!("driver{suffix}")))?.join(DEVICE_MODULE);
        let archive = initramfs::build(&folder.join(COMMAND.output), &driver, &[])?;
        place::write(&folder.join(format!("initramfs{suffix}.cpio")), &archive)?;
    }
    Ok(())
}

/// Builds one program and copies it to its place in `folder`.
pub(crate) fn compile(program: &Program, root: &Path, target: &Path, folder: &Path) -> Result<PathBuf> {
    // Variants of a program have one name in cargo's folder: nobody may build between building and copying.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _building =
        (target == place::target()).then(|| ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
    let mut command = Command::new("cargo");
    command
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--package", program.package, "--bin", program.bin, "--target", program.target])
        .arg("--config")
        .arg(format!("target.{}.rustflags={}", program.target, remapping(root)?))
        .current_dir(root)
        .env("CARGO_TARGET_DIR", target)
        .env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if !program.features.is_empty() {
        command.args(["--features", program.features]);
    }
    process::run(&format!("Building the {}", program.what), &mut command)?;
    let built = target.join(program.target).join("release").join(program.built);
    let output = folder.join(program.output);
    place::copy(&built, &output)?;
    Ok(output)
}

/// Compiler options that keep this machine's paths out of the programs, as a TOML array.
fn remapping(root: &Path) -> Result<String> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let option = |path: &Path, name: &str| {
        serde_json::to_string(&format!("--remap-path-prefix={}={name}", path.display()))
            .context("a path that is not text")
    };
    Ok(format!("[{},{}]", option(&home, "/cargo")?, option(root, "/dolmen")?))
}

/// The module with the device `/dev/dolmen`.
pub(crate) const DEVICE_MODULE: &str = "dolmen.ko";
/// The module that provides reports by configfs-tsm; only kernels that have that get it.
pub(crate) const REPORT_MODULE: &str = "dolmen_tsm.ko";

/// Builds the guest's driver against the kernel's headers, in a copy of its sources; the folder with the modules.
pub(crate) fn driver(kernel: &Kernel, work: &Path) -> Result<PathBuf> {
    let sources = place::root().join("guest-tools/driver");
    place::make(work)?;
    for entry in sources.read_dir().with_context(|| format!("no driver in {}", sources.display()))? {
        let path = entry?.path();
        if path.is_file() {
            copy_if_changed(&path, &work.join(path.file_name().context("a nameless file")?))?;
        }
    }
    process::run(
        &format!("Building the guest's driver for Linux {}", kernel.version),
        Command::new("make")
            .arg("--silent")
            .arg("-C")
            .arg(&kernel.headers)
            .arg(format!("M={}", work.display()))
            .arg("modules")
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KCFLAGS", format!("-Werror -ffile-prefix-map={}=/dolmen", work.display())),
    )?;
    let stripped = work.join("stripped");
    place::make(&stripped)?;
    for module in [DEVICE_MODULE, REPORT_MODULE] {
        let (built, to) = (work.join(module), stripped.join(module));
        if built.exists() {
            process::output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(&built))?;
        }
    }
    Ok(stripped)
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let fresh = place::read(from)?;
    if std::fs::read(to).is_ok_and(|old| old == fresh) {
        return Ok(());
    }
    place::write(to, &fresh)
}
