//! `cargo xtask package`: Debian packages of the guest tools, the same bytes from the same sources.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::artifact::{self, Program};
use crate::{copyright, place, process, setup, ui};

/// The tools' own version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Folder of what only the packages need.
const DESCRIPTIONS: &str = "guest-tools/package";
/// Folder of the driver's sources.
const DRIVER: &str = "guest-tools/driver";

/// A package.
struct Package {
    name: &'static str,
    architecture: &'static str,
    /// What the files that describe it begin with.
    prefix: &'static str,
    /// The file that says who has the rights to it, and under what licence it is.
    copyright: &'static str,
    /// The program in it, whose libraries have licences of their own.
    program: Option<&'static Program>,
    /// Scripts that run when it comes and goes.
    scripts: &'static [&'static str],
}

/// The command.
const TOOLS: Package = Package {
    name: "dolmen-tools",
    architecture: "amd64",
    prefix: "tools",
    copyright: "tools.copyright",
    program: Some(&artifact::COMMAND),
    scripts: &[],
};
/// The agent for Keylime, apart from the command: it brings TLS.
const KEYLIME: Package = Package {
    name: "dolmen-keylime",
    prefix: "keylime",
    program: Some(&artifact::KEYLIME_AGENT),
    scripts: &["postinst", "prerm"],
    ..TOOLS
};
/// The driver.
const DKMS: Package = Package {
    name: "dolmen-dkms",
    architecture: "all",
    prefix: "dkms",
    copyright: "dkms.copyright",
    program: None,
    scripts: &["postinst", "prerm"],
};

/// Builds the packages into `target/dolmen/packages`.
pub(crate) fn run() -> Result<()> {
    setup::host()?;
    let programs = [artifact::command()?, artifact::keylime_agent()?];
    for package in build(&programs, &place::output().join("packages"))? {
        ui::good(&format!("built {}", package.display()));
    }
    Ok(())
}

/// Builds the packages, with the command and the agent for Keylime, into `folder`.
pub(crate) fn build([command, agent]: &[PathBuf; 2], folder: &Path) -> Result<Vec<PathBuf>> {
    place::make(folder)?;
    let tools = Stage::new(&TOOLS)?;
    tools.add("usr/bin/dolmen", 0o755, &place::read(command)?)?;
    let keylime = Stage::new(&KEYLIME)?;
    keylime.add("usr/bin/dolmen-keylime", 0o755, &place::read(agent)?)?;
    let service = place::read(&description("keylime.service"))?;
    keylime.add("usr/lib/systemd/system/dolmen-keylime.service", 0o644, &service)?;
    keylime.add("etc/default/dolmen-keylime", 0o644, &place::read(&description("keylime.default"))?)?;
    let dkms = Stage::new(&DKMS)?;
    let sources = place::root().join(DRIVER);
    for entry in sources.read_dir().with_context(|| format!("cannot list {}", sources.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        dkms.add(&format!("usr/src/dolmen-{VERSION}/{name}"), 0o644, &filled(&path, &DKMS, 0)?)?;
    }
    let load = place::read(&description("dkms.modules-load"))?;
    dkms.add("usr/lib/modules-load.d/dolmen.conf", 0o644, &load)?;
    [tools, keylime, dkms].into_iter().map(|stage| stage.finish(folder)).collect()
}

fn description(name: &str) -> PathBuf {
    place::root().join(DESCRIPTIONS).join(name)
}

/// A file of text with version, architecture and size filled in.
fn filled(path: &Path, package: &Package, kib: u64) -> Result<Vec<u8>> {
    let text =
        String::from_utf8(place::read(path)?).with_context(|| format!("{} is no text", path.display()))?;
    let text = text.replace("@VERSION@", VERSION).replace("@ARCHITECTURE@", package.architecture);
    Ok(text.replace("@SIZE@", &kib.to_string()).into_bytes())
}

/// A package that is being put together.
struct Stage {
    package: &'static Package,
    folder: tempfile::TempDir,
}

impl Stage {
    /// Begins with what every package has.
    fn new(package: &'static Package) -> Result<Self> {
        let stage = Self { package, folder: place::scratch()? };
        let documents = format!("usr/share/doc/{}", package.name);
        let mut copyright = String::from_utf8(place::read(&description(package.copyright))?)?;
        if let Some(program) = package.program {
            copyright = copyright::of(&copyright, &place::root(), program)?;
        }
        stage.add(&format!("{documents}/copyright"), 0o644, copyright.as_bytes())?;
        let changelog = format!("{documents}/changelog.Debian");
        let text = String::from_utf8(filled(&description("changelog"), package, 0)?)?;
        // The packages' entries are in one file, under the name of the whole.
        stage.add(&changelog, 0o644, text.replace("dolmen (", &format!("{} (", package.name)).as_bytes())?;
        process::output(Command::new("gzip").arg("-9n").arg(stage.path(&changelog)))?;
        Ok(stage)
    }

    fn path(&self, within: &str) -> PathBuf {
        self.folder.path().join(within)
    }

    fn add(&self, within: &str, rights: u32, bytes: &[u8]) -> Result<()> {
        let path = self.path(within);
        place::write(&path, bytes)?;
        permit(&path, rights)
    }

    /// Makes the package in `folder`.
    fn finish(self, folder: &Path) -> Result<PathBuf> {
        let files = files(self.folder.path())?;
        let mut bytes: u64 = 0;
        for file in &files {
            bytes = bytes.saturating_add(self.path(file).metadata().context("a file has gone")?.len());
        }
        // What the administrator may change is dpkg's to keep, and no file with a known sum.
        let (settings, files): (Vec<String>, Vec<String>) =
            files.into_iter().partition(|file| file.starts_with("etc/"));
        if !settings.is_empty() {
            let list: String = settings.iter().map(|file| format!("/{file}\n")).collect();
            self.add("DEBIAN/conffiles", 0o644, list.as_bytes())?;
        }
        let sums = process::output(Command::new("md5sum").args(&files).current_dir(self.folder.path()))?;
        self.add("DEBIAN/md5sums", 0o644, sums.as_bytes())?;
        let control = description(&format!("{}.control", self.package.prefix));
        self.add("DEBIAN/control", 0o644, &filled(&control, self.package, bytes.div_ceil(1024))?)?;
        for script in self.package.scripts {
            let text = filled(&description(&format!("{}.{script}", self.package.prefix)), self.package, 0)?;
            self.add(&format!("DEBIAN/{script}"), 0o755, &text)?;
        }
        // Whatever rights this user's new folders have.
        for entry in
            process::output(Command::new("find").arg(self.folder.path()).args(["-type", "d"]))?.lines()
        {
            permit(Path::new(entry), 0o755)?;
        }
        let Package { name, architecture, .. } = self.package;
        let package = folder.join(format!("{name}_{VERSION}-1_{architecture}.deb"));
        let mut command = Command::new("dpkg-deb");
        // One thread: with several, the compressed bytes would depend on their number.
        command.args(["--root-owner-group", "--threads-max=1", "-Zxz", "--build"]);
        command.arg(self.folder.path()).arg(&package).env("SOURCE_DATE_EPOCH", date()?);
        process::output(&mut command)?;
        Ok(package)
    }
}

fn permit(path: &Path, rights: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(rights))
        .with_context(|| format!("cannot set the rights of {}", path.display()))
}

/// All files below `folder`, in order, relative to it.
fn files(folder: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("find");
    let found = process::output(command.args([".", "-type", "f", "-printf", "%P\n"]).current_dir(folder))?;
    let mut files: Vec<String> = found.lines().map(str::to_owned).collect();
    files.sort();
    Ok(files)
}

/// The date of the newest entry in the changelog, in seconds since the epoch.
fn date() -> Result<String> {
    let text = String::from_utf8(place::read(&description("changelog"))?)?;
    let date = text.lines().find_map(|line| line.strip_prefix(" -- ")?.split_once(">  "));
    let Some((_, date)) = date else { bail!("the changelog of the packages has no date") };
    let seconds = process::output(Command::new("date").args(["--utc", "+%s", "--date", date]))?;
    Ok(seconds.trim().to_owned())
}
