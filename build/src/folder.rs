//! Folders that a user names: what is in them may be the user's, so nothing goes that we did not put there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::place;

/// The folder `wanted`, which we may fill: there is none yet, it is empty, or all in it `is_ours`. Links are followed,
/// so that what is replaced is the folder and not what leads to it.
pub(crate) fn claim(wanted: &Path, option: &str, is_ours: impl Fn(&str) -> bool) -> Result<PathBuf> {
    if !wanted.exists() {
        return std::path::absolute(wanted).with_context(|| format!("{option} names no folder"));
    }
    let folder = wanted.canonicalize().with_context(|| format!("cannot look at {}", wanted.display()))?;
    for path in entries(&folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !is_ours(&name) {
            bail!(
                "{} holds `{name}`, which would be lost and is none of ours; choose a new or an empty folder with \
                 {option}, or empty this one yourself",
                folder.display()
            );
        }
    }
    Ok(folder)
}

/// Removes everything in a folder, and makes it if there is none.
pub(crate) fn clear(folder: &Path) -> Result<()> {
    place::make(folder)?;
    for path in entries(folder)? {
        // A link goes, and not what it leads to.
        let is_folder = path.symlink_metadata().is_ok_and(|data| data.is_dir());
        let removed = if is_folder { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Puts what `fill` makes in the place of `folder`, all at once. Where `fill` fails, the old folder stays as it was.
pub(crate) fn replace(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = folder.parent().context("the top folder cannot be replaced")?;
    place::make(beside)?;
    let work = tempfile::Builder::new()
        .prefix(".dolmen-")
        .tempdir_in(beside)
        .with_context(|| format!("cannot make a folder in {}", beside.display()))?;
    let (fresh, old) = (work.path().join("new"), work.path().join("old"));
    place::make(&fresh)?;
    fill(&fresh)?;
    let had_one = folder.exists();
    if had_one {
        std::fs::rename(folder, &old).with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    if let Err(error) = std::fs::rename(&fresh, folder) {
        if had_one && std::fs::rename(&old, folder).is_err() {
            bail!(
                "cannot replace {}: {error}; what it held is in {}",
                folder.display(),
                work.keep().display()
            );
        }
        return Err(error).with_context(|| format!("cannot make {}", folder.display()));
    }
    Ok(())
}

/// Paths of what is in a folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))?;
    listed.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a file in it, below one that goes with the test.
    fn filled(name: &str) -> (tempfile::TempDir, PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(name), "letter").unwrap();
        (top, folder)
    }

    #[test]
    fn a_folder_is_claimed_if_it_is_new_or_empty_or_holds_only_what_is_ours() {
        let (top, folder) = filled("core.bin");
        let is_ours = |name: &str| name == "core.bin";
        assert!(claim(&top.path().join("new"), "--output", is_ours).is_ok());
        assert!(claim(tempfile::tempdir().unwrap().path(), "--output", is_ours).is_ok());
        assert_eq!(claim(&folder, "--output", is_ours).unwrap(), folder.canonicalize().unwrap());
    }

    #[test]
    fn a_folder_with_anything_else_is_refused_by_name_with_what_to_do() {
        let (_top, folder) = filled("my-novel.txt");
        let error = claim(&folder, "--output", |name| name == "core.bin").unwrap_err().to_string();
        assert!(
            error.contains("`my-novel.txt`") && error.contains("an empty folder with --output"),
            "{error}"
        );
        assert!(folder.join("my-novel.txt").exists());
    }

    #[test]
    fn the_folder_above_is_seen_through_its_dots() {
        let (_top, folder) = filled("my-novel.txt");
        std::fs::create_dir(folder.join("below")).unwrap();
        assert!(claim(&folder.join("below/.."), "--output", |name| name == "below").is_err());
    }

    #[test]
    fn what_fails_leaves_the_old_folder_whole() {
        let (top, folder) = filled("core.bin");
        let failed = replace(&folder, |fresh| {
            std::fs::write(fresh.join("core.bin"), "half")?;
            bail!("no room")
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(folder.join("core.bin")).unwrap(), b"letter");
        assert_eq!(entries(top.path()).unwrap(), [folder]);
    }

    #[test]
    fn what_succeeds_takes_the_place_of_the_old_folder() {
        let (top, folder) = filled("old.bin");
        replace(&folder, |fresh| Ok(std::fs::write(fresh.join("core.bin"), "new")?)).unwrap();
        assert_eq!(entries(&folder).unwrap(), [folder.join("core.bin")]);
        assert_eq!(entries(top.path()).unwrap(), [folder]);
    }

    #[test]
    fn a_cleared_folder_is_empty_and_what_its_links_lead_to_is_not() {
        let (top, folder) = filled("core.bin");
        let (_other, kept) = filled("my-novel.txt");
        std::os::unix::fs::symlink(&kept, folder.join("link")).unwrap();
        std::fs::create_dir(folder.join("machine")).unwrap();
        clear(&folder).unwrap();
        assert!(entries(&folder).unwrap().is_empty() && kept.join("my-novel.txt").exists());
        clear(&top.path().join("new")).unwrap();
        assert!(top.path().join("new").is_dir());
    }
}
