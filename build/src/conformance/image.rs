//! The boot image: freestanding C and assembly, built with the compiler that builds the emulator.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{place, process};

/// Compiler and linker options: 32-bit code without anything from the host.
const OPTIONS: &[&str] = &[
    "-m32",
    "-march=i686",
    "-mgeneral-regs-only",
    "-O2",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,--no-warn-rwx-segments",
];

/// The image and what of it SKINIT measures.
#[derive(Debug)]
pub(super) struct Image {
    /// Multiboot kernel.
    pub(super) file: PathBuf,
    block: Vec<u8>,
}

impl Image {
    /// Builds the image of the folder `source` in the folder `output`.
    pub(super) fn build(source: &Path, output: &Path) -> Result<Self> {
        place::make(output)?;
        let file = output.join("image.elf");
        let mut compile = Command::new("gcc");
        compile.args(OPTIONS).arg("-T").arg(source.join("link.ld")).arg("-o").arg(&file);
        process::run("Building the conformance image", compile.args(sources(source)?))?;
        let raw = output.join("block.bin");
        process::output(
            Command::new("objcopy").args(["-O", "binary", "--only-section=.slb"]).arg(&file).arg(&raw),
        )?;
        let block = place::read(&raw)?;
        Ok(Self { file, block })
    }

    /// The bytes that SKINIT measures, if the image sets the length to `length` first.
    pub(super) fn measured(&self, length: Option<usize>) -> Result<Vec<u8>> {
        let mut block = self.block.clone();
        let field = block.get_mut(2..4).context("the image has no loader block")?;
        if let Some(length) = length {
            field.copy_from_slice(&u16::try_from(length).context("a block is shorter")?.to_le_bytes());
        }
        let length = usize::from(u16::from_le_bytes(<[u8; 2]>::try_from(&*field)?));
        block.truncate(length);
        Ok(block)
    }
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "c" || end == "S") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
