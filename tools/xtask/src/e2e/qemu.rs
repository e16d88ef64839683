//! A board in QEMU whose pins, keys and reset are moved from outside.
//!
//! Two sockets: QMP for keys, reset and the list of devices; qtest for pins. Traps met: QEMU *connects* to the qtest
//! socket, so this side listens; the PL061 port forgets its input levels at a reset, so lines at rest are raised again;
//! without `-icount` a busy machine swallows the guest's clock ticks.
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// A line of a GPIO port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Index of the port, from A.
    pub(super) port: usize,
    /// Bit of it.
    pub(super) bit: u8,
}

/// A running machine. Dropping it ends it.
pub(super) struct Qemu {
    child: Child,
    qmp: BufReader<UnixStream>,
    qtest: BufReader<UnixStream>,
    /// The serial port's end on this machine.
    pub(super) pty: String,
    ports: Vec<String>,
}

impl Qemu {
    /// Starts the LM3S6965 board with `image`, stopped. `dir` holds the sockets.
    ///
    /// # Errors
    /// When QEMU is not there or does not do what it is known to do.
    pub(super) fn lm3s6965(image: &Path, dir: &Path) -> anyhow::Result<Qemu> {
        let (qmp_at, qtest_at) = (dir.join("qmp"), dir.join("qtest"));
        let _ = (std::fs::remove_file(&qmp_at), std::fs::remove_file(&qtest_at));
        let listener = UnixListener::bind(&qtest_at).context("cannot make the qtest socket")?;
        let mut child = Command::new("qemu-system-arm")
            .args(["-M", "lm3s6965evb", "-display", "none", "-serial", "pty", "-monitor", "none", "-S"])
            .args(["-accel", "tcg", "-icount", "shift=7", "-qtest-log", "/dev/null", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp_at.display()))
            .arg("-qtest")
            .arg(format!("unix:{}", qtest_at.display()))
            .arg("-kernel")
            .arg(image)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-arm")?;
        let started = Self::attach(&mut child, &qmp_at, &listener);
        let (qmp, qtest, pty) = match started {
            Ok(parts) => parts,
            Err(error) => {
                let _ = (child.kill(), child.wait());
                return Err(error);
            }
        };
        let mut qemu = Qemu { child, qmp, qtest, pty, ports: Vec::new() };
        qemu.command("qmp_capabilities", json!({}))?;
        qemu.ports = qemu.ports()?;
        Ok(qemu)
    }

    fn attach(
        child: &mut Child,
        qmp_at: &Path,
        listener: &UnixListener,
    ) -> anyhow::Result<(BufReader<UnixStream>, BufReader<UnixStream>, String)> {
        let mut said = BufReader::new(child.stdout.take().context("QEMU has no output")?);
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
        let (qtest, _) = listener.accept().context("QEMU does not connect to the qtest socket")?;
        let begun = Instant::now();
        let qmp = loop {
            match UnixStream::connect(qmp_at) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > PATIENCE => return Err(error).context("no QMP socket"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        for stream in [&qmp, &qtest] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        let mut qmp = BufReader::new(qmp);
        qmp.read_line(&mut line).context("QMP does not greet")?;
        Ok((qmp, BufReader::new(qtest), pty))
    }

    /// The GPIO ports in the order of their letters: devices are numbered as they were made.
    fn ports(&mut self) -> anyhow::Result<Vec<String>> {
        const AT: &str = "/machine/unattached";
        let list = self.command("qom-list", json!({"path": AT}))?;
        let mut found: Vec<(u32, String)> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter(|child| child["type"] == "child<pl061_luminary>")
            .filter_map(|child| {
                let name = child["name"].as_str()?;
                let number = name.strip_prefix("device[")?.strip_suffix(']')?.parse().ok()?;
                Some((number, format!("{AT}/{name}")))
            })
            .collect();
        ensure!(found.len() == 7, "the board has {} GPIO ports and should have 7", found.len());
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    fn command(&mut self, name: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = json!({"execute": name, "arguments": arguments});
        writeln!(self.qmp.get_mut(), "{request}")?;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.qmp.read_line(&mut line)? > 0, "QEMU has ended");
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("{name}: {error}");
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn qtest(&mut self, request: &str) -> anyhow::Result<String> {
        writeln!(self.qtest.get_mut(), "{request}")?;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.qtest.read_line(&mut line)? > 0, "QEMU has ended");
            if line.starts_with("OK") {
                return Ok(line.trim()[2..].trim().to_owned());
            }
            ensure!(line.starts_with("IRQ"), "{request}: {}", line.trim());
        }
    }

    /// Lets it run.
    pub(super) fn go(&mut self) -> anyhow::Result<()> {
        self.command("cont", json!({})).map(drop)
    }

    /// Presses or lets go of a key, which the board's model has on its buttons.
    pub(super) fn key(&mut self, name: &str, down: bool) -> anyhow::Result<()> {
        let key = json!({"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}});
        self.command("input-send-event", json!({"events": [key]})).map(drop)
    }

    /// Puts a level on a line.
    pub(super) fn level(&mut self, line: Line, high: bool) -> anyhow::Result<()> {
        let port = self.ports[line.port].clone();
        self.qtest(&format!("set_irq_in {port} unnamed-gpio-in {} {}", line.bit, u8::from(high))).map(drop)
    }

    /// A word of memory or of a register.
    pub(super) fn read(&mut self, address: u32) -> anyhow::Result<u32> {
        let text = self.qtest(&format!("readl {address:#x}"))?;
        u32::from_str_radix(text.trim_start_matches("0x"), 16).with_context(|| format!("`{text}` is no word"))
    }

    /// Resets the board.
    pub(super) fn reset(&mut self) -> anyhow::Result<()> {
        self.command("system_reset", json!({})).map(drop)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A serial line that damages what it carries: of every 256 bytes either way one is flipped or lost. Its near end is a
/// pseudo-terminal of its own. Dropping it ends it.
pub(super) struct BadLine {
    /// What to open.
    pub(super) pty: String,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<thread::JoinHandle<u32>>,
    _far: serialport::TTYPort,
}

impl BadLine {
    /// In front of the serial port at `pty`.
    pub(super) fn before(pty: &str) -> anyhow::Result<BadLine> {
        use serialport::SerialPort;
        let (near, far) = serialport::TTYPort::pair().context("cannot make a pseudo-terminal")?;
        let board = serialport::new(pty, 115_200).timeout(Duration::from_millis(10)).open_native()?;
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let mut near = near;
        near.set_timeout(Duration::from_millis(10))?;
        let name = far.name().context("the pseudo-terminal has no name")?;
        let ends = [(board.try_clone_native()?, near.try_clone_native()?, 1u64), (near, board, 2)];
        let threads = ends
            .into_iter()
            .map(|(mut from, mut to, seed)| {
                let stop = std::sync::Arc::clone(&stop);
                thread::spawn(move || {
                    let (mut chance, mut damaged) = (seed, 0);
                    let mut bytes = [0; 256];
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        // Nothing has come, or nobody is there yet.
                        let Ok(n) = from.read(&mut bytes) else { continue };
                        let mut out = Vec::with_capacity(n);
                        for &byte in &bytes[..n] {
                            chance =
                                chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                            match (chance >> 33) % 512 {
                                0 => out.push(byte ^ 0x04),
                                1 => {}
                                _ => {
                                    out.push(byte);
                                    continue;
                                }
                            }
                            damaged += 1;
                        }
                        // What nobody reads is lost, as on a real line.
                        let _ = to.write_all(&out);
                    }
                    damaged
                })
            })
            .collect();
        Ok(BadLine { pty: name, stop, threads, _far: far })
    }

    /// Ends it; how many bytes it damaged.
    pub(super) fn end(mut self) -> u32 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.threads.drain(..).filter_map(|thread| thread.join().ok()).sum()
    }
}

impl Drop for BadLine {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
