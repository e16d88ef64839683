//! A board in QEMU whose pins, keys and reset are moved from outside.
//!
//! Traps met: the PL061 port forgets its input levels at a reset, so lines at rest are raised again; without `-icount` a
//! busy machine swallows the guest's clock ticks.
use std::io::BufRead;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::BETWEEN;
use super::process::Process;
use super::rig::{Rig, hex};
use crate::boards;

/// The micro:bit's timer, by a register that its firmware does not use.
const CAPTURE_2: u32 = 0x4000_8048;
const CC_2: u32 = 0x4000_8548;
const PATIENCE: Duration = Duration::from_secs(20);

/// A board that QEMU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    Lm3s6965,
    Microbit,
}

/// A button's pin, low when pressed.
#[derive(Clone, Copy, Debug)]
struct Pin {
    /// Index of the GPIO port.
    port: usize,
    line: u8,
    /// The key that the board's model has on it.
    key: Option<&'static str>,
}

const LM3S6965: [Pin; 5] = [
    Pin { port: 4, line: 0, key: Some("up") },
    Pin { port: 4, line: 1, key: Some("down") },
    Pin { port: 4, line: 2, key: Some("left") },
    Pin { port: 4, line: 3, key: Some("right") },
    Pin { port: 5, line: 1, key: Some("ctrl") },
];
const MICROBIT: [Pin; 2] = [Pin { port: 0, line: 17, key: None }, Pin { port: 0, line: 26, key: None }];

impl Machine {
    fn name(self) -> &'static str {
        match self {
            Machine::Lm3s6965 => "lm3s6965evb",
            Machine::Microbit => "microbit",
        }
    }

    fn pins(self) -> &'static [Pin] {
        match self {
            Machine::Lm3s6965 => &LM3S6965,
            Machine::Microbit => &MICROBIT,
        }
    }
}

/// A running board. Dropping it ends it.
pub(super) struct Qemu {
    process: Process,
    /// The serial port's end on this machine.
    pty: String,
    ports: Vec<String>,
    machine: Machine,
    /// Where the board counts its ticks.
    ticks: u32,
    presses: usize,
}

impl Qemu {
    /// Starts a board with `image`; its buttons are up. `dir` holds the sockets.
    ///
    /// # Errors
    /// When QEMU is not there or does not do what it is known to do.
    pub(super) fn start(machine: Machine, image: &Path, dir: &Path) -> anyhow::Result<Qemu> {
        let ticks = match machine {
            Machine::Lm3s6965 => boards::symbol(image, "HONE_TICKS")?,
            Machine::Microbit => 0,
        };
        let mut command = Command::new("qemu-system-arm");
        command.args(["-M", machine.name(), "-serial", "pty", "-S", "-icount", "shift=7", "-kernel"]).arg(image);
        let (mut process, mut said) = Process::start(command, dir)?;
        let mut line = String::new();
        let pty = loop {
            line.clear();
            ensure!(said.read_line(&mut line)? > 0, "QEMU ended before it named its serial port");
            if let Some(at) = line.find("/dev/pts/") {
                let rest = &line[at..];
                break rest[..rest.find(char::is_whitespace).unwrap_or(rest.len())].to_owned();
            }
        };
        // Read on, or QEMU would stop when the pipe is full.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let ports = match machine {
            Machine::Lm3s6965 => process.devices("pl061_luminary")?,
            Machine::Microbit => vec!["/machine/nrf51".into()],
        };
        let mut qemu = Qemu { process, pty, ports, machine, ticks, presses: 0 };
        qemu.at_rest()?;
        qemu.process.command("cont", json!({}))?;
        Ok(qemu)
    }

    fn at_rest(&mut self) -> anyhow::Result<()> {
        self.machine.pins().iter().try_for_each(|pin| self.level(*pin, true))
    }

    /// Presses or lets go of a key.
    fn key(&mut self, name: &str, down: bool) -> anyhow::Result<()> {
        let key = json!({"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}});
        self.process.command("input-send-event", json!({"events": [key]})).map(drop)
    }

    /// Puts a level on a pin.
    fn level(&mut self, pin: Pin, high: bool) -> anyhow::Result<()> {
        let port = self.ports.get(pin.port).context("the board has fewer GPIO ports than it should")?;
        self.process.level(port, pin.line, high)
    }

    /// The board's own clock: on a busy machine it stands while the wall's goes on.
    fn board_ms(&mut self) -> anyhow::Result<u32> {
        match self.machine {
            Machine::Lm3s6965 => self.read(self.ticks),
            Machine::Microbit => {
                self.process.qtest(&format!("writel {CAPTURE_2:#x} 1"))?;
                Ok(self.read(CC_2)? / 1000)
            }
        }
    }

    /// A word of memory or of a register.
    pub(super) fn read(&mut self, address: u32) -> anyhow::Result<u32> {
        let text = self.process.qtest(&format!("readl {address:#x}"))?;
        u32::from_str_radix(text.trim_start_matches("0x"), 16).with_context(|| format!("`{text}` is no word"))
    }
}

impl Rig for Qemu {
    fn pty(&self) -> &str {
        &self.pty
    }

    /// By key and by pin in turn, where there are keys.
    fn set(&mut self, button: usize, down: bool) -> anyhow::Result<()> {
        let pin = self.machine.pins()[button];
        match pin.key.filter(|_| self.presses.is_multiple_of(2)) {
            Some(key) => self.key(key, down),
            None => self.level(pin, !down),
        }
    }

    /// By pin: a machine that stands takes no keys.
    fn set_together(&mut self, buttons: &[usize], down: bool) -> anyhow::Result<()> {
        self.process.command("stop", json!({}))?;
        buttons.iter().try_for_each(|button| self.level(self.machine.pins()[*button], !down))?;
        self.process.command("cont", json!({})).map(drop)
    }

    fn press(&mut self, button: usize, hold: Duration) -> anyhow::Result<()> {
        self.set(button, true)?;
        self.pass(hold)?;
        self.set(button, false)?;
        self.presses += 1;
        self.pass(BETWEEN)
    }

    fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let (mut began, wall) = (self.board_ms()?, Instant::now());
        loop {
            let now = self.board_ms()?;
            // It begins anew with a reset.
            began = began.min(now);
            if u128::from(now - began) >= time.as_millis() {
                return Ok(());
            }
            ensure!(wall.elapsed() < PATIENCE, "the board's clock stands still");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        self.process.command("system_reset", json!({}))?;
        // Ports forget what is on their pins.
        self.at_rest()
    }

    fn memory(&mut self, address: u32, len: u32) -> anyhow::Result<Vec<u8>> {
        let text = self.process.qtest(&format!("read {address:#x} {len:#x}"))?;
        hex(text.trim_start_matches("0x")).with_context(|| format!("`{text}` are no bytes"))
    }
}
