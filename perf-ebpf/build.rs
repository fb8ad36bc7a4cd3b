//! How the programs are linked.

fn main() {
    // Without this the linker has LLVM write copies in order for other targets' sake, and then every small copy or fill
    // that is not a plain `memcpy` becomes a call of a loop over bytes: a tenth of what the HTTP programs cost.
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    println!("cargo::rerun-if-changed=build.rs");
}
