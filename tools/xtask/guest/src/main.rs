//! The first process of a virtual machine: makes a Linux system of a bare kernel and runs the product on it, with real GPIO
//! lines and a real USB serial adapter.
//!
//! What `hone listen` says goes to the console as it is. When it has ended, so do the presses that its journal has, after the
//! line `guest: journal`, and then `guest: ended` with how the two programs ended.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;

use rustix::mount::{MountFlags, mount};
use rustix::system::finit_module;

/// In the order in which they need each other.
const MODULES: [&str; 6] = ["usb-common", "usbcore", "xhci-hcd", "xhci-pci", "usbserial", "ftdi_sio"];

fn main() {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(at).unwrap_or_else(|error| say(&format!("no {at}: {error}")));
        if let Err(error) = mount(kind, at, kind, MountFlags::empty(), None::<&std::ffi::CStr>) {
            say(&format!("no {kind}: {error}"));
        }
    }
    for name in MODULES {
        let path = Path::new("/modules").join(format!("{name}.ko"));
        let loaded = File::open(&path).map(|file| finit_module(file, c"", 0));
        if !matches!(loaded, Ok(Ok(()))) {
            say(&format!("no {name}: {loaded:?}"));
        }
    }
    let listened = hone(&[
        "listen",
        "/which-digit.hone",
        "--state",
        "/state",
        "--config",
        "/hone.toml",
        "--camera",
        "fps=2,repeat=yes,file:/digit.png",
        "--hold",
        "0",
        "--stdin",
        "--jsonl",
    ]);
    say("journal");
    let listed = hone(&["feedback", "list", "--jsonl", "--state", "/state"]);
    say(&format!("ended {listened} {listed}"));
    // The kernel panics when its first process ends.
    loop {
        thread::park();
    }
}

/// Runs the product until it ends.
fn hone(arguments: &[&str]) -> String {
    match Command::new("/hone").args(arguments).status() {
        Ok(status) if ExitStatus::success(&status) => "well".into(),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

fn say(text: &str) {
    println!("guest: {text}");
}
