//! Links the stage as a flat binary of the launch image's layout; see `../launch/launch.ld`.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=../launch/launch.ld");
    println!("cargo::rustc-link-arg-bins=-T{here}/../launch/launch.ld");
    println!("cargo::rustc-link-arg-bins=--oformat=binary");
    println!("cargo::rustc-link-arg-bins=--no-pie");
}
