//! Links the guest with its own script.
fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=guest.ld");
    println!("cargo::rustc-link-arg-bins=-T{root}/guest.ld");
}
