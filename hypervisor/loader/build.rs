//! Gives the Multiboot program its layout; the UEFI program needs none.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/bin/multiboot/layout.ld");
    if env::var("CARGO_CFG_TARGET_OS")? == "none" {
        let layout = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/bin/multiboot/layout.ld");
        println!("cargo::rustc-link-arg-bin=dolmen-loader-multiboot=-T{}", layout.display());
    }
    Ok(())
}
