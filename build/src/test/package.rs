//! The Debian packages of the guest tools: the same bytes each time, well formed, and the driver in them builds with
//! the real DKMS for every kernel that is supported.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Bench, Tally};
use crate::artifact;
use crate::deb::{self, VERSION};
use crate::kernel::{self, CURRENT, OLDER};
use crate::{package, place, process, ui};

/// What is in each package, by its name: rights, owner and path, without folders.
const CONTENT: [(&str, &[(&str, &str)]); 3] = [
    (
        "dolmen-tools",
        &[
            ("-rwxr-xr-x", "usr/bin/dolmen"),
            ("-rw-r--r--", "usr/share/doc/dolmen-tools/changelog.Debian.gz"),
            ("-rw-r--r--", "usr/share/doc/dolmen-tools/copyright"),
        ],
    ),
    (
        "dolmen-keylime",
        &[
            ("-rw-r--r--", "etc/default/dolmen-keylime"),
            ("-rwxr-xr-x", "usr/bin/dolmen-keylime"),
            ("-rw-r--r--", "usr/lib/systemd/system/dolmen-keylime.service"),
            ("-rw-r--r--", "usr/share/doc/dolmen-keylime/changelog.Debian.gz"),
            ("-rw-r--r--", "usr/share/doc/dolmen-keylime/copyright"),
        ],
    ),
    (
        "dolmen-dkms",
        &[
            ("-rw-r--r--", "usr/lib/modules-load.d/dolmen.conf"),
            ("-rw-r--r--", "usr/share/doc/dolmen-dkms/changelog.Debian.gz"),
            ("-rw-r--r--", "usr/share/doc/dolmen-dkms/copyright"),
            ("-rw-r--r--", "usr/src/dolmen-@/Kbuild"),
            ("-rw-r--r--", "usr/src/dolmen-@/Makefile"),
            ("-rw-r--r--", "usr/src/dolmen-@/README.md"),
            ("-rw-r--r--", "usr/src/dolmen-@/dkms.conf"),
            ("-rw-r--r--", "usr/src/dolmen-@/dolmen.c"),
            ("-rw-r--r--", "usr/src/dolmen-@/dolmen.h"),
            ("-rw-r--r--", "usr/src/dolmen-@/evidence.c"),
            ("-rw-r--r--", "usr/src/dolmen-@/evidence.h"),
            ("-rw-r--r--", "usr/src/dolmen-@/internal.h"),
            ("-rw-r--r--", "usr/src/dolmen-@/tsm.c"),
        ],
    ),
];

/// Runs these tests.
pub(super) fn run(bench: &Bench) -> Result<Tally> {
    let folder = place::scratch()?;
    let programs = [bench.artifacts.command(), artifact::keylime_agent()?];
    let [first, second] = ["a", "another-folder"].map(|name| folder.path().join(name));
    let packages = deb::build(&programs, &first)?;
    let again = deb::build(&programs, &second)?;
    let mut tally = Tally::default();
    for ((package, again), (name, content)) in packages.iter().zip(&again).zip(CONTENT) {
        tally =
            tally.plus(judge(&format!("{name} has the same bytes each time, and is well formed"), || {
                ensure!(place::read(package)? == place::read(again)?, "two builds differ");
                form(package, name)?;
                inside(package, content)
            }));
    }
    let root = folder.path().join("root");
    for package in &packages {
        process::output(Command::new("dpkg-deb").arg("-x").arg(package).arg(&root))?;
    }
    for program in ["dolmen", "dolmen-keylime"] {
        let what = format!("the program {program} in its package is complete in itself");
        tally = tally.plus(judge(&what, || whole(&root, program)));
    }
    tally = tally
        .plus(judge("the service of dolmen-keylime is one, and says what the program knows", || {
            service(&root, folder.path())
        }));
    tally = tally.plus(judge("licences that must be repeated are in the packages of the programs", || {
        licences(&root)
    }));
    let Bench { tools, .. } = bench;
    let generic = [kernel::ensure_generic_headers(&CURRENT)?, kernel::ensure_generic_headers(&OLDER)?];
    let cloud = [&tools.kernel, &tools.older]
        .map(|kernel| (format!("{}-cloud-amd64", kernel.version), kernel.headers.clone()));
    for (release, headers) in cloud.iter().chain(&generic) {
        tally = tally
            .plus(judge(&format!("DKMS builds the driver for Linux {release} without a warning"), || {
                dkms(&root, folder.path(), release, headers)
            }));
    }
    Ok(tally)
}

fn judge(what: &str, test: impl FnOnce() -> Result<()>) -> Tally {
    match test() {
        Ok(()) => ui::good(what),
        Err(error) => {
            ui::bad(&format!("{what}: {error:#}"));
            return Tally::one(false);
        }
    }
    Tally::one(true)
}

/// What `dpkg-deb -I` says of it.
fn form(package: &Path, name: &str) -> Result<()> {
    let field = |field: &str| -> Result<String> {
        Ok(process::output(Command::new("dpkg-deb").arg("-f").arg(package).arg(field))?.trim().to_owned())
    };
    ensure!(field("Package")? == name && field("Version")? == format!("{VERSION}-1"), "another name");
    let file = package.file_name().and_then(|file| file.to_str()).context("no name")?;
    ensure!(
        file == format!("{name}_{VERSION}-1_{}.deb", field("Architecture")?),
        "the file is called {file}"
    );
    for wanted in ["Maintainer", "Section", "Priority", "Installed-Size", "Description"] {
        ensure!(!field(wanted)?.is_empty(), "no {wanted}");
    }
    let description = field("Description")?;
    let title = description.lines().next().unwrap_or_default();
    ensure!(title.len() <= 80 && !title.ends_with('.'), "the description begins with {title:?}");
    let told = process::output(Command::new("dpkg-deb").arg("-I").arg(package))?;
    ensure!(!told.contains('@') || told.matches('@').count() == 1, "something was not filled in:\n{told}");
    let settings = process::output(Command::new("dpkg-deb").args(["--info"]).arg(package).arg("conffiles"));
    let wanted = if name == "dolmen-keylime" { "/etc/default/dolmen-keylime" } else { "" };
    ensure!(settings.unwrap_or_default().trim() == wanted, "other files are for the administrator to change");
    // What it says of its files is so.
    let folder = place::scratch()?;
    process::output(Command::new("dpkg-deb").arg("-R").arg(package).arg(folder.path()))?;
    let mut sums = Command::new("md5sum");
    process::output(
        sums.args(["--check", "--strict", "--quiet", "DEBIAN/md5sums"]).current_dir(folder.path()),
    )?;
    let scripts = ["postinst", "prerm"].map(|script| folder.path().join("DEBIAN").join(script));
    for script in scripts.iter().filter(|script| script.exists()) {
        process::output(Command::new("sh").arg("-n").arg(script))?;
        ensure!(!std::fs::read_to_string(script)?.contains("@VERSION"), "a script was not filled in");
    }
    Ok(())
}

/// What `dpkg-deb -c` says of it: exactly these files, all root's.
fn inside(package: &Path, content: &[(&str, &str)]) -> Result<()> {
    let told = process::output(Command::new("dpkg-deb").arg("-c").arg(package).env("TZ", "UTC"))?;
    let mut found = Vec::new();
    for line in told.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [rights, owner, _size, date, _time, path] = words.as_slice() else {
            anyhow::bail!("an entry of another kind: {line}")
        };
        ensure!(*owner == "root/root" && *date == "2026-11-28", "not root's, or of another date: {line}");
        if rights.starts_with('d') {
            ensure!(*rights == "drwxr-xr-x", "a folder with other rights: {line}");
        } else {
            found.push(((*rights).to_owned(), path.trim_start_matches("./").to_owned()));
        }
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    let wanted: Vec<(String, String)> =
        content.iter().map(|(rights, path)| ((*rights).to_owned(), path.replace('@', VERSION))).collect();
    ensure!(found == wanted, "it holds {found:?}");
    Ok(())
}

/// A program says its version; it needs no library, or it would not run in a guest of another distribution.
fn whole(root: &Path, program: &str) -> Result<()> {
    let command = root.join("usr/bin").join(program);
    let said = process::output(Command::new(&command).arg("--version"))?;
    ensure!(said.trim() == format!("{program} {VERSION}"), "it says {said:?}");
    let needs = process::output(Command::new("readelf").arg("--dynamic").arg(&command))?;
    ensure!(!needs.contains("(NEEDED)"), "it needs libraries:\n{needs}");
    Ok(())
}

/// systemd takes the service, which gives the program what it knows and nothing else.
fn service(root: &Path, work: &Path) -> Result<()> {
    let program = root.join("usr/bin/dolmen-keylime");
    let known = process::output(Command::new(&program).arg("--help"))?;
    let text = std::fs::read_to_string(root.join("usr/lib/systemd/system/dolmen-keylime.service"))?;
    let start = text.lines().find(|line| line.starts_with("ExecStart=")).context("it starts nothing")?;
    let settings = std::fs::read_to_string(root.join("etc/default/dolmen-keylime"))?;
    for word in start.split_whitespace() {
        ensure!(!word.starts_with("--") || known.contains(word), "the program does not know {word}");
        let variable = word.trim_matches(['$', '{', '}']);
        ensure!(
            !word.starts_with('$') || settings.contains(&format!("\n{variable}=")),
            "nobody sets {variable}"
        );
    }
    if !process::installed("systemd-analyze") {
        ui::note("systemd-analyze is not installed: it did not look at the service");
        return Ok(());
    }
    // It looks for the program too, which is installed elsewhere here.
    let unit = work.join("dolmen-keylime.service");
    let program = program.to_str().context("a path that is not text")?;
    place::write(&unit, text.replace("=/usr/bin/dolmen-keylime", &format!("={program}")).as_bytes())?;
    let judged = Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(&unit).output()?;
    let complaint = String::from_utf8_lossy(&judged.stderr);
    ensure!(judged.status.success() && complaint.is_empty(), "systemd-analyze: {complaint}");
    Ok(())
}

/// The crates that bring terms of their own are named in the file of the package that they are in.
fn licences(root: &Path) -> Result<()> {
    let named =
        [("dolmen-keylime", "ring-"), ("dolmen-keylime", "rustls-webpki-"), ("dolmen-tools", "subtle-")];
    for (package, crate_name) in named {
        let text = std::fs::read_to_string(root.join("usr/share/doc").join(package).join("copyright"))?;
        ensure!(text.contains(&format!("vendor/{crate_name}")), "{package}: nothing of {crate_name}");
    }
    Ok(())
}

/// Debian's DKMS, unmodified, builds what the package puts under `/usr/src`.
fn dkms(root: &Path, work: &Path, release: &str, headers: &Path) -> Result<()> {
    let program = package::file("dkms", "usr/sbin/dkms")?;
    let tree = work.join(format!("tree-{release}"));
    place::make(&tree)?;
    let perform = |action: &str, more: &[&str]| {
        let mut command = Command::new("bash");
        command.arg(&program).args([action, "-m", "dolmen", "-v", VERSION]).args(more);
        command.arg("--dkmstree").arg(&tree).arg("--sourcetree").arg(root.join("usr/src"));
        process::output(&mut command)
    };
    let headers_text = headers.to_str().context("a path that is not text")?;
    perform("add", &[])?;
    perform("build", &["-k", release, "-a", "x86_64", "--kernelsourcedir", headers_text])?;
    let built = tree.join("dolmen").join(VERSION).join(release).join("x86_64");
    let log = std::fs::read_to_string(built.join("log/make.log")).context("DKMS has no log")?;
    ensure!(!log.contains("warning:"), "the compiler warns:\n{log}");
    let mut modules: Vec<PathBuf> = Vec::new();
    for entry in built.join("module").read_dir().context("DKMS built nothing")? {
        modules.push(entry?.path());
    }
    modules.sort();
    let configuration =
        std::fs::read_to_string(headers.join(".config")).context("headers without .config")?;
    let has_reports = configuration.contains("\nCONFIG_TSM_REPORTS=");
    ensure!(has_reports == release.starts_with("6.12."), "the kernel is configured otherwise than known");
    let wanted = if has_reports { vec!["dolmen.ko", "dolmen_tsm.ko"] } else { vec!["dolmen.ko"] };
    let names: Vec<_> = modules.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    ensure!(names == wanted, "it built {names:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel's version, how distributions name their builds of it, and whether it has the interface for reports
    /// that the driver is written for.
    const KERNELS: [(&str, &[&str], bool); 7] = [
        ("6.7", &["6.7.12-amd64", "6.7-amd64"], false),
        ("6.8", &["6.8.0-31-generic"], false),
        ("6.9", &["6.9.7+bpo-amd64", "6.9.0-rc1"], false),
        ("6.10", &["6.10.11+bpo-amd64", "6.10-amd64", "6.10.0"], false),
        ("6.11", &["6.11.0-8-generic", "6.11-amd64"], true),
        ("6.12", &["6.12.57+deb13-cloud-amd64"], true),
        ("6.100", &["6.100.1"], true),
    ];

    fn driver() -> PathBuf {
        place::root().join("guest-tools/driver")
    }

    /// The modules that Kbuild names for a kernel with configfs-tsm.
    fn by_kbuild(version: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let rules = format!("include {}\nall:\n\t@echo $(obj-m)\n", driver().join("Kbuild").display());
        std::fs::write(folder.path().join("Makefile"), rules).unwrap();
        let (major, minor) = version.split_once('.').unwrap();
        let mut make = Command::new("make");
        make.args([
            &format!("VERSION={major}"),
            &format!("PATCHLEVEL={minor}"),
            "CONFIG_TSM_REPORTS=m",
            "all",
        ]);
        process::output(make.arg("--silent").current_dir(folder.path())).unwrap().trim().replace(".o", "")
    }

    /// The modules that dkms.conf names for it, as DKMS reads that.
    fn by_dkms(release: &str) -> String {
        let headers = tempfile::tempdir().unwrap();
        std::fs::write(headers.path().join(".config"), "CONFIG_TSM_REPORTS=m\n").unwrap();
        let mut bash = Command::new("bash");
        bash.args(["-euc", ". \"$0\"; echo ${BUILT_MODULE_NAME[@]}"]).arg(driver().join("dkms.conf"));
        bash.env("kernelver", release).env("kernel_source_dir", headers.path()).env("dkms_tree", "/tree");
        process::output(&mut bash).unwrap().trim().to_owned()
    }

    #[test]
    fn reports_are_built_for_kernels_with_the_interface_that_linux_6_11_brought() {
        for (version, releases, has_interface) in KERNELS {
            let wanted = if has_interface { "dolmen dolmen_tsm" } else { "dolmen" };
            assert_eq!(by_kbuild(version), wanted, "Kbuild for {version}");
            for release in releases {
                assert_eq!(by_dkms(release), wanted, "dkms.conf for {release}");
            }
        }
    }
}
