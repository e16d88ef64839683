//! A QEMU process and its two control sockets.
//!
//! QMP is for keys, reset, devices; qtest for pins and memory. A trap met: QEMU *connects* to the qtest socket, so this
//! side listens.
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// Where QEMU has the devices that a board's model makes.
const DEVICES: &str = "/machine/unattached";
const PATIENCE: Duration = Duration::from_secs(20);

/// A running QEMU. Dropping it ends it.
pub(super) struct Process {
    child: Child,
    typed: Option<ChildStdin>,
    qmp: BufReader<UnixStream>,
    qtest: BufReader<UnixStream>,
}

impl Process {
    /// Starts `command` with control sockets in `dir`. Returns what it prints, too, which is to be read until its end.
    ///
    /// # Errors
    /// When QEMU is not there or does not do what it is known to do.
    pub(super) fn start(mut command: Command, dir: &Path) -> anyhow::Result<(Process, BufReader<ChildStdout>)> {
        let (qmp_at, qtest_at) = (dir.join("qmp"), dir.join("qtest"));
        let log = dir.join("qemu.log");
        let _ = (std::fs::remove_file(&qmp_at), std::fs::remove_file(&qtest_at));
        let listener = UnixListener::bind(&qtest_at).context("cannot make the qtest socket")?;
        let mut child = command
            .args(["-display", "none", "-monitor", "none", "-accel", "tcg", "-qtest-log", "/dev/null", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp_at.display()))
            .arg("-qtest")
            .arg(format!("unix:{}", qtest_at.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        match Self::attach(&mut child, &qmp_at, &listener) {
            Ok((qmp, qtest, said)) => {
                let mut process = Process { typed: child.stdin.take(), child, qmp, qtest };
                process.command("qmp_capabilities", json!({}))?;
                Ok((process, said))
            }
            Err(error) => {
                let _ = (child.kill(), child.wait());
                Err(error.context(std::fs::read_to_string(&log).unwrap_or_default()))
            }
        }
    }

    fn attach(
        child: &mut Child,
        qmp_at: &Path,
        listener: &UnixListener,
    ) -> anyhow::Result<(BufReader<UnixStream>, BufReader<UnixStream>, BufReader<ChildStdout>)> {
        let said = BufReader::new(child.stdout.take().context("QEMU has no output")?);
        listener.set_nonblocking(true)?;
        let begun = Instant::now();
        let qtest = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) if begun.elapsed() > PATIENCE => bail!("QEMU does not connect to the qtest socket"),
                Err(_) => ensure!(child.try_wait()?.is_none(), "QEMU ended at once"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        qtest.set_nonblocking(false)?;
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
        qmp.read_line(&mut String::new()).context("QMP does not greet")?;
        Ok((qmp, BufReader::new(qtest), said))
    }

    /// A line typed on the console, where that is standard input.
    pub(super) fn type_line(&mut self, line: &str) -> anyhow::Result<()> {
        let typed = self.typed.as_mut().context("QEMU has no input")?;
        writeln!(typed, "{line}")?;
        Ok(typed.flush()?)
    }

    /// A command of QMP's.
    pub(super) fn command(&mut self, name: &str, arguments: Value) -> anyhow::Result<Value> {
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

    /// A command of qtest's.
    pub(super) fn qtest(&mut self, request: &str) -> anyhow::Result<String> {
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

    /// Puts a level on an input of a device.
    pub(super) fn level(&mut self, device: &str, line: u8, high: bool) -> anyhow::Result<()> {
        self.qtest(&format!("set_irq_in {device} unnamed-gpio-in {line} {}", u8::from(high))).map(drop)
    }

    /// The devices of a type, in the order in which they were made: by that they are numbered.
    pub(super) fn devices(&mut self, kind: &str) -> anyhow::Result<Vec<String>> {
        let list = self.command("qom-list", json!({"path": DEVICES}))?;
        let kind = format!("child<{kind}>");
        let mut found: Vec<(u32, String)> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter(|child| child["type"] == kind.as_str())
            .filter_map(|child| {
                let name = child["name"].as_str()?;
                let number = name.strip_prefix("device[")?.strip_suffix(']')?.parse().ok()?;
                Some((number, format!("{DEVICES}/{name}")))
            })
            .collect();
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
