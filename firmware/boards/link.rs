//! Build script of the boards: gives the linker the board's `memory.x`, and the scripts its crates bring.

use std::{env, fs, path::Path};

fn main() {
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "riscv32") {
        // The chip's support crate has a whole script.
        println!("cargo:rustc-link-arg-bins=-Tlinkall.x");
        return;
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    // `device.x` names a chip's interrupt handlers, for boards that write their own table.
    for script in ["memory.x", "device.x"].iter().filter(|script| Path::new(script).exists()) {
        fs::copy(script, Path::new(&out).join(script)).expect("OUT_DIR can be written to");
        println!("cargo:rerun-if-changed={script}");
    }
    println!("cargo:rustc-link-search={out}");
    println!("cargo:rustc-link-arg-bins=--nmagic");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    if fs::read_to_string("memory.x").is_ok_and(|script| script.contains("BOOT2")) {
        // Where the RP2040's second-stage loader goes.
        println!("cargo:rustc-link-arg-bins=-Tlink-rp.x");
    }
}
