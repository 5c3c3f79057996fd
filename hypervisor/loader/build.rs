//! Link arguments: the Multiboot program's layout, and a UEFI program that comes out the same each time.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/bin/multiboot/layout.ld");
    match env::var("CARGO_CFG_TARGET_OS")?.as_str() {
        "none" => {
            let layout = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/bin/multiboot/layout.ld");
            println!("cargo::rustc-link-arg-bin=dolmen-loader-multiboot=-T{}", layout.display());
        }
        "uefi" => {
            // Neither the time of day nor the path of a debug database gets into the program.
            println!("cargo::rustc-link-arg-bin=dolmen-loader-uefi=/Brepro");
            println!("cargo::rustc-link-arg-bin=dolmen-loader-uefi=/DEBUG:NONE");
        }
        _ => {}
    }
    Ok(())
}
