//! Links the launch image as a flat binary; see `launch.ld`.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=launch.ld");
    println!("cargo::rustc-link-arg-bins=-T{here}/launch.ld");
    println!("cargo::rustc-link-arg-bins=--oformat=binary");
    println!("cargo::rustc-link-arg-bins=--no-pie");
}
