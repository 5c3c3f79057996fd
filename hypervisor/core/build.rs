//! Links the core as a flat image; see `core.ld`.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=core.ld");
    println!("cargo::rustc-link-arg-bins=-T{here}/core.ld");
    println!("cargo::rustc-link-arg-bins=--oformat=binary");
    println!("cargo::rustc-link-arg-bins=--no-pie");
}
