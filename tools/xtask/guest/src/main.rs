//! The only process of a virtual machine: hears pads by the product's own sources and listeners, on a real kernel with real
//! GPIO lines and a real USB serial adapter, and says on the console what it hears.
//!
//! Lines that it writes begin with `guest: `; `up SPEC`, `down SPEC`, `committed SPEC KIND BUTTON`.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;

use hone_runtime::feedback::source::{self, Keeper, Terms};
use hone_runtime::feedback::{Listener, Notice, Opening};
use hone_wire::host::{Ledger, LedgerError, Received};
use hone_wire::message::PadHello;
use rustix::mount::{MountFlags, mount};
use rustix::system::finit_module;

/// In the order in which they need each other.
const MODULES: [&str; 6] = ["usb-common", "usbcore", "xhci-hcd", "xhci-pci", "usbserial", "ftdi_sio"];
/// What the kernel's command line says of us.
const SOURCES: &str = "hone.sources=";

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
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let specs = line.split_whitespace().find_map(|word| word.strip_prefix(SOURCES)).unwrap_or_default().to_owned();
    for spec in specs.split(';') {
        hear(spec);
    }
    say("ready");
    loop {
        thread::park();
    }
}

/// Serves a source, and says what is heard, on threads of their own.
fn hear(spec: &str) {
    let (told, notices) = channel();
    let started = source::parse(spec)
        .and_then(|source| Listener::start(source, Opening::WhenThere, Box::new(Book::default()), told));
    let listener = match started {
        Ok(listener) => listener,
        Err(error) => return say(&format!("{spec}: {error}")),
    };
    let spec = spec.to_owned();
    thread::spawn(move || {
        let _listener = listener;
        for notice in notices {
            match notice {
                Notice::Up { port, .. } => say(&format!("up {spec} on {port}")),
                Notice::Down { why, .. } => say(&format!("down {spec}: {why:?}")),
                Notice::Committed { events, .. } => events.iter().for_each(|received| {
                    let event = received.event;
                    say(&format!("committed {spec} {:?} {}", event.kind, event.button()));
                }),
                Notice::Searching { why } => say(&format!("searching {spec}: {why}")),
                Notice::Remark { text, .. } => say(&format!("remark {spec}: {text}")),
                _ => {}
            }
        }
    });
}

fn say(text: &str) {
    println!("guest: {text}");
}

/// A ledger in memory, which does not look for repeats itself: that is the link's to do.
#[derive(Default)]
struct Book {
    marks: HashMap<([u8; 8], u32), u32>,
    epochs: u32,
}

impl Ledger for Book {
    fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError> {
        Ok(*self.marks.get(&(*uid, epoch)).unwrap_or(&1))
    }

    fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError> {
        if let Some(last) = events.last() {
            self.marks.insert((*uid, epoch), last.event.seq + 1);
        }
        Ok(())
    }

    fn new_epoch(&mut self, _: &[u8; 8]) -> Result<u32, LedgerError> {
        self.epochs += 1;
        Ok(self.epochs)
    }
}

impl Keeper for Book {
    fn terms(&mut self, _: &PadHello) -> Terms {
        Terms { allow_unpaired: true, ..Terms::default() }
    }
}
