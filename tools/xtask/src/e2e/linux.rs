//! The Linux side: the product on a real kernel, in a virtual machine.
//!
//! Debian's kernel for arm64 runs `hone listen`, built for it, which `tools/xtask/guest` starts. Its GPIO chip is a PL061, whose
//! lines are moved from outside and one of which has a name, by the device tree; its USB serial adapter is an FTDI, which is
//! pulled out and put back while the pad at its other end (`hone pad emulate`) goes on. The journal is to have every press
//! once, and the adapter is to be heard again within three seconds.
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::process::Process;
use crate::boards;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const QEMU: &str = "qemu-system-aarch64";
/// Of machine and memory. The rest is not in the device tree.
const MACHINE: [&str; 6] = ["-cpu", "cortex-a57", "-m", "1024", "-nic", "none"];
const EDIT_TREE: &str = "fdtput";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
const STRIP: &str = "aarch64-linux-gnu-strip";
/// In the order in which they need each other, as the guest loads them.
const MODULES: [&str; 6] = ["usb-common", "usbcore", "xhci-hcd", "xhci-pci", "usbserial", "ftdi_sio"];
/// What a program built for arm64 is loaded with, from Debian's cross packages.
const LIBRARIES: [&str; 4] = ["ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1"];
const LIBRARIES_AT: &str = "/usr/aarch64-linux-gnu/lib";
/// Two pads: buttons on GPIO lines, one by its number and one by its name, and one behind the adapter.
const CONFIG: &str = "\
feedback.allow_unpaired = true
[pads.desk]
port = \"gpio:9030000.pl061/0,thumb-down\"
[pads.hall]
port = \"usb:0403:6001\"
";
const PATIENCE: Duration = Duration::from_secs(120);
/// From the adapter's return to the pad's being heard.
const RETURN: Duration = Duration::from_secs(3);
const CLICKS: usize = 6;

/// What a virtual machine is made of.
pub(super) struct Parts {
    kernel: PathBuf,
    initrd: PathBuf,
    device_tree: PathBuf,
}

/// A source of presses, and whether it was thumbs up.
type Said = (String, bool);

/// How it went.
pub(super) struct Outcome {
    pub(super) pressed: Vec<Said>,
    pub(super) recorded: Vec<Said>,
    /// From the adapter's return to the pad's being heard.
    pub(super) back: Duration,
}

impl Outcome {
    pub(super) fn is_well(&self) -> bool {
        self.pressed == self.recorded && self.back < RETURN
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.is_well() { "ok    " } else { "FAILED" };
        let (pressed, recorded, back) = (self.pressed.len(), self.recorded.len(), self.back.as_secs_f64());
        write!(f, "{verdict}  pressed {pressed}, recorded {recorded}, adapter back after {back:.2} s")?;
        if self.pressed != self.recorded {
            write!(f, "\n  pressed  {:?}\n  recorded {:?}", self.pressed, self.recorded)?;
        }
        Ok(())
    }
}

/// Sees to kernel and guest.
///
/// # Errors
/// When the guest does not build. What this machine lacks is the inner error.
pub(super) fn see_to(root: &Path, target_dir: &Path) -> anyhow::Result<Result<Parts, String>> {
    let missing = |program: &str| Command::new(program).arg("--version").output().is_err();
    let needed = [(QEMU, "qemu-system-arm"), (COMPILER, "gcc-aarch64-linux-gnu"), (EDIT_TREE, "device-tree-compiler")];
    for (program, package) in needed {
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
    let guest = guest(root, &target_dir.join("guest"))?;
    let hone = hone(root, target_dir, &dir)?;
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
    archive.file("hone", &std::fs::read(hone)?);
    archive.folder("lib");
    for library in LIBRARIES {
        let file = Path::new(LIBRARIES_AT).join(library);
        let bytes = std::fs::read(&file).with_context(|| format!("no {} (libc6-dev-arm64-cross)", file.display()))?;
        archive.file(&format!("lib/{library}"), &bytes);
    }
    archive.file("hone.toml", CONFIG.as_bytes());
    let model = root.join("models/which-digit");
    archive.file("digit.png", &std::fs::read(model.join("golden/gray-28x28.png"))?);
    archive.tree("which-digit.hone", &model.join("which-digit.hone"))?;
    let initrd = dir.join("initrd");
    std::fs::write(&initrd, archive.end())?;
    let device_tree = dir.join("tree.dtb");
    name_lines(&device_tree)?;
    Ok(Ok(Parts { kernel, initrd, device_tree }))
}

/// The machine's own device tree, in which the chip's second line has a name, as those of a real board have.
fn name_lines(file: &Path) -> anyhow::Result<()> {
    run(Command::new(QEMU)
        .arg("-M")
        .arg(format!("virt,dumpdtb={}", file.display()))
        .args(MACHINE)
        .args(["-display", "none"]))?;
    run(Command::new(EDIT_TREE).args(["-t", "s"]).arg(file).args([
        "/pl061@9030000",
        "gpio-line-names",
        "",
        "thumb-down",
    ]))?;
    Ok(())
}

/// What a command printed; what it complained of is seen.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let out = command.stderr(Stdio::inherit()).output()?;
    ensure!(out.status.success(), "{} ended with {}", command.get_program().display(), out.status);
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
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
    run(apt("apt-get").arg("update"))?;
    let depends = run(apt("apt-cache").args(["depends", "linux-image-arm64"]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).context("no such package")?;
    run(apt("apt-get").args(["download", package.trim()]))?;
    let file = find(&state, |name| name.starts_with("linux-image-") && name.ends_with(".deb")).context("no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&tree))?;
    Ok(tree)
}

/// The first process, with all it needs in one file.
fn guest(root: &Path, target_dir: &Path) -> anyhow::Result<PathBuf> {
    let mut command = across(&root.join("tools/xtask/guest"));
    command.args(["build", "--locked", "--target", TARGET, "--target-dir"]).arg(target_dir);
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    println!("$ cargo build --target {TARGET} (in tools/xtask/guest)");
    ensure!(command.status()?.success(), "the guest does not build");
    Ok(target_dir.join(TARGET).join("debug/hone-guest"))
}

/// The product for arm64, without what only a debugger reads.
fn hone(root: &Path, target_dir: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    println!("$ cargo build --package hone --target {TARGET}");
    let mut command = across(root);
    command.args(["build", "--locked", "--package", "hone", "--target", TARGET]);
    ensure!(command.status()?.success(), "the program does not build for {TARGET}");
    let hone = dir.join("hone");
    let built = target_dir.join(TARGET).join("debug/hone");
    let status = Command::new(STRIP).arg("-o").arg(&hone).arg(built).status().with_context(|| format!("no {STRIP}"))?;
    ensure!(status.success(), "{STRIP} ended with {status}");
    Ok(hone)
}

/// Cargo, with what C and links need for arm64.
fn across(dir: &Path) -> Command {
    let mut command = crate::ci::cargo_command(dir);
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER);
    command.env("CC_aarch64_unknown_linux_gnu", COMPILER).env("AR_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-ar");
    command
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
    let mut command = Command::new(QEMU);
    command.args(["-M", "virt"]).args(MACHINE).args(["-serial", "stdio", "-dtb"]).arg(&parts.device_tree);
    command.args(["-chardev", &format!("serial,id=c,path={}", pad.port), "-device", "qemu-xhci,id=x", "-kernel"]);
    command.arg(&parts.kernel).arg("-initrd").arg(&parts.initrd).arg("-append");
    command.arg("console=ttyAMA0 quiet loglevel=3 panic=1");
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
    let guest = Guest { said };
    // In whichever order; the adapter's pad has an identity of its own.
    let mut up = Vec::new();
    while up.len() < 2 {
        up.push(guest.event("pad-up")?);
    }
    let is_usb = |event: &Value| event["port"].as_str().is_some_and(|port| port.contains("ttyUSB"));
    let usb = up.iter().find(|event| is_usb(event)).context("no pad at the adapter")?["uid"].clone();
    let gpio = up.iter().find(|event| !is_usb(event)).context("no pad at the GPIO lines")?["uid"].clone();
    // Buttons that are up are to be seen so first.
    thread::sleep(Duration::from_millis(500));
    let mut pressed = Vec::new();
    let mut press = |uid: &Value, button: usize| {
        pressed.push((format!("pad:{}", uid.as_str().unwrap_or_default()), button == 0));
        json!({"event": "committed", "uid": uid, "events": [{"kind": "click", "button": button}]})
    };
    for click in 0..CLICKS {
        let line = (click % 2) as u8;
        process.level(&chip, line, false)?;
        thread::sleep(Duration::from_millis(250));
        process.level(&chip, line, true)?;
        let committed = press(&gpio, line.into());
        guest.until("a press on a line", |event| *event == committed)?;
    }
    pad.click(0)?;
    let committed = press(&usb, 0);
    guest.until("a press at the adapter", |event| *event == committed)?;

    process.command("device_del", json!({"id": "u0"}))?;
    guest.event("pad-down")?;
    pad.click(1)?;
    let committed = press(&usb, 1);
    thread::sleep(Duration::from_secs(1));
    let plugged = Instant::now();
    plug(&mut process, 1)?;
    guest.until("the adapter's pad again", |event| event["event"] == "pad-up" && event["uid"] == usb)?;
    let back = plugged.elapsed();
    guest.until("the press made meanwhile", |event| *event == committed)?;
    // Whatever is doubled would come now.
    thread::sleep(Duration::from_secs(2));
    process.type_line("quit")?;
    Ok(Outcome { pressed, recorded: guest.journal()?, back })
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
}

impl Guest {
    /// The next line; `what` is waited for.
    fn line(&self, what: &str) -> anyhow::Result<String> {
        self.said.recv_timeout(PATIENCE).with_context(|| format!("the guest is silent; waited for: {what}"))
    }

    /// The first thing told that is so.
    fn until(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let began = Instant::now();
        let mut last = String::new();
        loop {
            ensure!(began.elapsed() < PATIENCE, "waited for {what}; last the guest said `{last}`");
            let line = self.line(&format!("{what}, last `{last}`"))?;
            match serde_json::from_str(&line) {
                Ok(event) if is_it(&event) => return Ok(event),
                // Answers come all the time.
                Ok(event) if event["event"] == "shown" => {}
                _ => last = line,
            }
        }
    }

    fn event(&self, name: &str) -> anyhow::Result<Value> {
        self.until(name, |event| event["event"] == name)
    }

    /// Of each press in the journal its source, and whether it was thumbs up.
    fn journal(&self) -> anyhow::Result<Vec<Said>> {
        while self.line("the journal")? != "guest: journal" {}
        let mut presses = Vec::new();
        loop {
            let line = self.line("a press of the journal")?;
            if let Some(how) = line.strip_prefix("guest: ended ") {
                ensure!(how == "well well", "`hone listen` and `hone feedback list` in the machine: {how}");
                return Ok(presses);
            }
            let press: Value = serde_json::from_str(&line).with_context(|| format!("`{line}`"))?;
            let up = press["said"]["up"].as_bool().with_context(|| format!("{press} is no thumb"))?;
            presses.push((press["source"].as_str().unwrap_or_default().to_owned(), up));
        }
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

    /// A directory of this machine with all that is in it.
    fn tree(&mut self, name: &str, dir: &Path) -> anyhow::Result<()> {
        self.folder(name);
        let mut entries = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => self.tree(&name, &entry.path())?,
                false => self.file(&name, &std::fs::read(entry.path())?),
            }
        }
        Ok(())
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
