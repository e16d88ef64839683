//! The Pico's image in `rp2040js`, from the UF2 file that `hone flash` would copy to its drive.
//!
//! `rp2040/run.mjs` is the board; this side gives its UART, or its serial port on USB, a pseudo-terminal. Presses are timed by the board's own clock.
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use serialport::SerialPort;

use super::PATIENCE;
use super::rig::{Rig, hex};

const FILES: [(&str, &str); 3] = [
    ("package.json", include_str!("rp2040/package.json")),
    ("package-lock.json", include_str!("rp2040/package-lock.json")),
    ("run.mjs", include_str!("rp2040/run.mjs")),
];
/// GPIO numbers, by button.
const PINS: [u8; 5] = [2, 3, 4, 5, 6];

/// Sees to the emulator in the target directory. Returns the script that runs a board.
///
/// # Errors
/// What is missing.
pub(super) fn see_to(target_dir: &Path) -> Result<PathBuf, String> {
    let dir = target_dir.join("e2e/rp2040");
    let write = |(name, text): &(&str, &str)| std::fs::write(dir.join(name), text);
    if let Err(error) = std::fs::create_dir_all(&dir).and_then(|()| FILES.iter().try_for_each(write)) {
        return Err(format!("cannot write {}: {error}", dir.display()));
    }
    let runs = |command: &mut Command| command.stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !runs(Command::new("node").arg("--version")) {
        return Err("node is not installed".into());
    }
    if !runs(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&dir)) {
        return Err("`npm ci` does not bring rp2040js".into());
    }
    Ok(dir.join("run.mjs"))
}

/// What a board has to talk by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Uart,
    Usb,
}

/// The serial line of a board that is not there yet.
pub(super) struct Line {
    near: serialport::TTYPort,
    far: serialport::TTYPort,
    /// What a host opens.
    pub(super) pty: String,
}

impl Line {
    /// A pseudo-terminal.
    pub(super) fn new() -> anyhow::Result<Line> {
        let (mut near, far) = serialport::TTYPort::pair().context("cannot make a pseudo-terminal")?;
        near.set_timeout(Duration::from_millis(10))?;
        let pty = far.name().context("the pseudo-terminal has no name")?;
        Ok(Line { near, far, pty })
    }
}

/// A running board. Dropping it ends it.
pub(super) struct Rp2040 {
    child: Child,
    orders: Arc<Mutex<ChildStdin>>,
    /// What it says, but for bytes.
    said: Receiver<String>,
    pty: String,
    _far: serialport::TTYPort,
}

impl Rp2040 {
    /// Starts a board with the image in the file `uf2` whose `port` is on `line`; its buttons are up.
    pub(super) fn start(script: &Path, uf2: &Path, port: Port, line: Line) -> anyhow::Result<Rp2040> {
        let mut child = Command::new("node")
            .arg(script)
            .arg(uf2)
            .arg(match port {
                Port::Uart => "uart",
                Port::Usb => "usb",
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start node")?;
        let orders = Arc::new(Mutex::new(child.stdin.take().context("piped")?));
        let said = BufReader::new(child.stdout.take().context("piped")?);
        let Line { mut near, far, pty } = line;
        let mut from_host = near.try_clone_native()?;
        let (tell, told) = channel();
        thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                match line.strip_prefix("tx ").and_then(hex) {
                    // What nobody reads is lost, as on a real line.
                    Some(bytes) => drop(near.write_all(&bytes)),
                    None if tell.send(line).is_err() => return,
                    None => {}
                }
            }
        });
        let board = Arc::downgrade(&orders);
        thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Some(board) = board.upgrade() {
                // Nothing has come, or nobody is there yet.
                let Ok(n @ 1..) = from_host.read(&mut bytes) else { continue };
                let mut line = String::from("rx ");
                for byte in &bytes[..n] {
                    let _ = write!(line, "{byte:02x}");
                }
                if order(&board, &line).is_err() {
                    return;
                }
            }
        });
        let rig = Rp2040 { child, orders, said: told, pty, _far: far };
        rig.until("boot")?;
        Ok(rig)
    }

    fn order(&self, line: &str) -> anyhow::Result<()> {
        order(&self.orders, line).context("the emulator has ended")
    }

    /// The next line that begins so.
    fn until(&self, begin: &str) -> anyhow::Result<String> {
        loop {
            let line =
                self.said.recv_timeout(PATIENCE).with_context(|| format!("the emulator does not say `{begin}`"))?;
            if let Some(rest) = line.strip_prefix(begin) {
                return Ok(rest.trim().to_owned());
            }
        }
    }
}

fn order(to: &Mutex<ChildStdin>, line: &str) -> std::io::Result<()> {
    to.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{line}\n").as_bytes())
}

impl Rig for Rp2040 {
    fn pty(&self) -> &str {
        &self.pty
    }

    fn set(&mut self, button: usize, down: bool) -> anyhow::Result<()> {
        self.set_together(&[button], down)
    }

    /// In one write: the emulator obeys all lines of one before the board runs on.
    fn set_together(&mut self, buttons: &[usize], down: bool) -> anyhow::Result<()> {
        let set = |button: &usize| format!("set {} {}", PINS[*button], u8::from(!down));
        let lines: Vec<String> = buttons.iter().map(set).collect();
        self.order(&lines.join("\n"))
    }

    fn press(&mut self, button: usize, hold: Duration) -> anyhow::Result<()> {
        self.order(&format!("press {} {}", PINS[button], hold.as_millis()))?;
        self.until("released").map(drop)
    }

    fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        self.order(&format!("pass {}", time.as_millis()))?;
        self.until("passed").map(drop)
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        self.order("reset")?;
        self.until("boot").map(drop)
    }

    fn memory(&mut self, address: u32, len: u32) -> anyhow::Result<Vec<u8>> {
        self.order(&format!("read {address} {len}"))?;
        let bytes = hex(&self.until("memory")?).context("no bytes")?;
        ensure!(bytes.len() == len as usize, "{} bytes of {len}", bytes.len());
        Ok(bytes)
    }
}

impl Drop for Rp2040 {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
