//! The Linux side: the product's own sources on a real kernel, in a virtual machine.
//!
//! Debian's kernel for arm64 runs `tools/xtask/guest` as its only process. Its GPIO chip is a PL061, whose lines are moved
//! from outside; its USB serial adapter is an FTDI, which is pulled out and put back while the pad at its other end (`hone
//! pad emulate`) goes on. Every press is to be heard once, and the adapter again within three seconds.
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;

use super::process::Process;
use crate::boards;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
/// In the order in which they need each other, as the guest loads them.
const MODULES: [&str; 6] = ["usb-common", "usbcore", "xhci-hcd", "xhci-pci", "usbserial", "ftdi_sio"];
const GPIO: &str = "gpio:9030000.pl061/0,1";
const USB: &str = "usb:0403:6001";
const PATIENCE: Duration = Duration::from_secs(60);
/// From the adapter's return to the pad's being heard.
const RETURN: Duration = Duration::from_secs(3);
const CLICKS: usize = 6;

/// What a virtual machine is made of.
pub(super) struct Parts {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// How it went.
pub(super) struct Outcome {
    pub(super) pressed: usize,
    pub(super) heard: usize,
    /// From the adapter's return to the pad's being heard.
    pub(super) back: Duration,
}

impl Outcome {
    pub(super) fn is_well(&self) -> bool {
        self.pressed == self.heard && self.back < RETURN
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.is_well() { "ok    " } else { "FAILED" };
        let back = self.back.as_secs_f64();
        write!(f, "{verdict}  pressed {}, heard {}, adapter back after {back:.2} s", self.pressed, self.heard)
    }
}

/// Sees to kernel and guest.
///
/// # Errors
/// When the guest does not build. What this machine lacks is the inner error.
pub(super) fn see_to(root: &Path, target_dir: &Path) -> anyhow::Result<Result<Parts, String>> {
    let missing = |program: &str| Command::new(program).arg("--version").output().is_err();
    for (program, package) in [("qemu-system-aarch64", "qemu-system-arm"), (COMPILER, "gcc-aarch64-linux-gnu")] {
        if missing(program) {
            return Ok(Err(format!("{program} is not installed (Debian: apt-get install {package})")));
        }
    }
    if let Err(why) = boards::see_to_target(TARGET) {
        return Ok(Err(why));
    }
    let dir = target_dir.join("e2e/linux");
    let tree = match kernel(&dir) {
        Ok(tree) => tree,
        Err(why) => return Ok(Err(format!("no kernel of Debian's for arm64: {why:#}"))),
    };
    let guest = build(root, &target_dir.join("guest"))?;
    let kernel = find(&tree.join("boot"), |name| name.starts_with("vmlinuz-")).context("the package has no kernel")?;
    let mut archive = Archive::default();
    archive.folder("dev");
    archive.console();
    archive.folder("modules");
    for module in MODULES {
        let name = format!("{module}.ko");
        let file = find(&tree.join("lib/modules"), |found| found == name).with_context(|| format!("no {name}"))?;
        archive.file(&format!("modules/{name}"), &std::fs::read(file)?);
    }
    archive.file("init", &std::fs::read(guest)?);
    let initrd = dir.join("initrd");
    std::fs::write(&initrd, archive.end())?;
    Ok(Ok(Parts { kernel, initrd }))
}

/// Debian's kernel package taken apart, fetched the first time: with state of its own, so that this machine's is not
/// touched.
fn kernel(dir: &Path) -> anyhow::Result<PathBuf> {
    let tree = dir.join("kernel");
    if tree.join("boot").exists() {
        return Ok(tree);
    }
    let state = dir.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(state.join(folder))?;
    }
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.args(["-q", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64", "-o"]);
        command.arg(format!("Dir::State::lists={}/lists", state.display())).arg("-o");
        command.arg(format!("Dir::Cache={}/cache", state.display())).current_dir(&state);
        command
    };
    println!("e2e: fetching Debian's kernel for arm64");
    let run = |command: &mut Command| -> anyhow::Result<String> {
        let out = command.stderr(Stdio::inherit()).output()?;
        ensure!(out.status.success(), "{} ended with {}", command.get_program().display(), out.status);
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    run(apt("apt-get").arg("update"))?;
    let depends = run(apt("apt-cache").args(["depends", "linux-image-arm64"]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).context("no such package")?;
    run(apt("apt-get").args(["download", package.trim()]))?;
    let file = find(&state, |name| name.starts_with("linux-image-") && name.ends_with(".deb")).context("no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&tree))?;
    Ok(tree)
}

fn build(root: &Path, target_dir: &Path) -> anyhow::Result<PathBuf> {
    let mut command = crate::ci::cargo_command(&root.join("tools/xtask/guest"));
    command.args(["build", "--locked", "--target", TARGET, "--target-dir"]).arg(target_dir);
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER);
    command.env("CC_aarch64_unknown_linux_gnu", COMPILER).env("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar");
    println!("$ cargo build --target {TARGET} (in tools/xtask/guest)");
    ensure!(command.status()?.success(), "the guest does not build");
    Ok(target_dir.join(TARGET).join("debug/hone-guest"))
}

/// The first file below `dir` with such a name.
fn find(dir: &Path, is_it: impl Fn(&str) -> bool + Copy) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| is_it(&name.to_string_lossy()));
    let here = entries.iter().find(|path| path.is_file() && named(path)).cloned();
    here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find(path, is_it)))
}

/// Runs the machine once. `dir` is for its sockets.
pub(super) fn play(parts: &Parts, hone: &Path, dir: &Path) -> anyhow::Result<Outcome> {
    let mut pad = Pad::start(hone, dir)?;
    let mut command = Command::new("qemu-system-aarch64");
    command.args(["-M", "virt", "-cpu", "cortex-a57", "-m", "512", "-nic", "none", "-serial", "stdio"]);
    command.args(["-chardev", &format!("serial,id=c,path={}", pad.port), "-device", "qemu-xhci,id=x", "-kernel"]);
    command.arg(&parts.kernel).arg("-initrd").arg(&parts.initrd).arg("-append");
    command.arg(format!("console=ttyAMA0 quiet loglevel=3 panic=1 hone.sources={GPIO};{USB}"));
    let (mut process, mut console) = Process::start(command, dir)?;
    let (told, said) = channel();
    thread::spawn(move || {
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if told.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    let chip = process.devices("pl061")?.into_iter().next().context("the machine has no GPIO chip")?;
    for line in [0, 1] {
        process.level(&chip, line, true)?;
    }
    plug(&mut process, 0)?;
    let mut guest = Guest { said, heard: 0 };
    // In whichever order.
    guest.until_all(&[&format!("up {GPIO}"), &format!("up {USB}")])?;
    // Buttons that are up are to be seen so first.
    thread::sleep(Duration::from_millis(500));
    let mut pressed = 0;
    for click in 0..CLICKS {
        let line = (click % 2) as u8;
        process.level(&chip, line, false)?;
        thread::sleep(Duration::from_millis(250));
        process.level(&chip, line, true)?;
        pressed += 1;
        guest.until(&format!("committed {GPIO} Click {line}"))?;
    }
    pad.click(0)?;
    pressed += 1;
    guest.until(&format!("committed {USB} Click 0"))?;

    process.command("device_del", json!({"id": "u0"}))?;
    guest.until(&format!("down {USB}: PortLost"))?;
    pad.click(1)?;
    pressed += 1;
    thread::sleep(Duration::from_secs(1));
    let plugged = Instant::now();
    plug(&mut process, 1)?;
    guest.until(&format!("up {USB}"))?;
    let back = plugged.elapsed();
    guest.until(&format!("committed {USB} Click 1"))?;
    // Whatever is doubled would come now.
    guest.listen(Duration::from_secs(2));
    Ok(Outcome { pressed, heard: guest.heard, back })
}

/// Puts the adapter in. It has a serial number as real ones have; the emulator's own would be another in each socket.
fn plug(process: &mut Process, time: u32) -> anyhow::Result<()> {
    let id = format!("u{time}");
    let device = json!({
        "driver": "usb-serial", "chardev": "c", "id": id, "bus": "x.0", "always-plugged": true, "serial": "HONE0001",
    });
    process.command("device_add", device).map(drop)
}

/// What the guest says.
struct Guest {
    said: Receiver<String>,
    /// Presses so far.
    heard: usize,
}

impl Guest {
    fn next(&mut self, wait: Duration) -> Option<String> {
        let line = self.said.recv_timeout(wait).ok()?;
        let text = line.split_once("guest: ").map_or(String::new(), |(_, text)| text.to_owned());
        self.heard += usize::from(text.starts_with("committed "));
        Some(text)
    }

    fn until(&mut self, begin: &str) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut last = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let text =
                self.next(left).with_context(|| format!("the guest does not say `{begin}`; last it said `{last}`"))?;
            if text.starts_with(begin) {
                return Ok(());
            }
            if !text.is_empty() {
                last = text;
            }
        }
    }

    fn until_all(&mut self, begins: &[&str]) -> anyhow::Result<()> {
        let mut left: Vec<&str> = begins.to_vec();
        while !left.is_empty() {
            let text = self.next(PATIENCE).with_context(|| format!("the guest does not say {left:?}"))?;
            left.retain(|begin| !text.starts_with(begin));
        }
        Ok(())
    }

    fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.next(end.saturating_duration_since(Instant::now())).is_some() {}
    }
}

/// A pad on a pseudo-terminal. Dropping it ends it.
struct Pad {
    child: Child,
    orders: ChildStdin,
    port: String,
}

impl Pad {
    fn start(hone: &Path, dir: &Path) -> anyhow::Result<Pad> {
        let link = dir.join("pad");
        let mut child = Command::new(hone)
            .args(["pad", "emulate", "--link"])
            .arg(&link)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let orders = child.stdin.take().context("piped")?;
        let began = Instant::now();
        let port = loop {
            match std::fs::read_link(&link) {
                Ok(port) => break port.display().to_string(),
                Err(_) => ensure!(began.elapsed() < PATIENCE, "`hone pad emulate` makes no port"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        Ok(Pad { child, orders, port })
    }

    fn click(&mut self, button: usize) -> anyhow::Result<()> {
        writeln!(self.orders, "click {button}")?;
        Ok(self.orders.flush()?)
    }
}

impl Drop for Pad {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A `cpio` archive of the kind that a kernel unpacks ("newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.entries += 1;
        let fields =
            [self.entries, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08X}").bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn folder(&mut self, name: &str) {
        self.entry(name, 0o40_755, (0, 0), &[]);
    }

    fn file(&mut self, name: &str, data: &[u8]) {
        self.entry(name, 0o100_755, (0, 0), data);
    }

    /// `/dev/console`, without which the first process has no output.
    fn console(&mut self) {
        self.entry("dev/console", 0o20_600, (5, 1), &[]);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_read_by_cpio() {
        if Command::new("cpio").arg("--version").output().is_err() {
            println!("skipped: cpio is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        archive.folder("a");
        archive.file("a/b", b"hello");
        let file = dir.path().join("archive");
        std::fs::write(&file, archive.end()).unwrap();
        let input = std::fs::File::open(&file).unwrap();
        let out = Command::new("cpio").arg("-i").current_dir(dir.path()).stdin(input).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read(dir.path().join("a/b")).unwrap(), b"hello");
    }

    #[test]
    fn an_entry_is_a_header_a_name_and_data_each_filled_up_to_four_bytes() {
        let mut archive = Archive::default();
        archive.file("ab", b"xyzzy");
        let text = String::from_utf8(archive.bytes.clone()).unwrap();
        assert!(text.starts_with("07070100000001000081ED0000000000000000000000010000000000000005"), "{text}");
        assert_eq!(&archive.bytes[110..], b"ab\0\0\0\0xyzzy\0\0\0");
    }
}
