//! `cargo xtask e2e`: a pad's real firmware, emulated, on a real terminal, heard by a real `hone listen`.
//!
//! | board | emulated by | its queue is in |
//! |---|---|---|
//! | lm3s6965 | QEMU | memory that a reset does not clear |
//! | microbit | QEMU | flash |
//! | pico | rp2040js, from the UF2 file that `hone flash` writes to a drive | flash |
//!
//! The other side, Linux, is in [`linux`].
//!
//! Fingers come from outside: keys by QMP, levels on pins by qtest or by the emulator. In each run presses are made with a
//! host, without one after a SIGKILL, across a reset of the board that no host sees and across one that it sees; in the
//! end the journal must have each of them once, in order, and the stack must have kept to its budget. Runs differ in the
//! line (clean; flipping and losing bytes) and in whether the pad was paired first, with two of its buttons held, so that
//! every frame is tagged.
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

mod host;
mod line;
mod linux;
mod process;
mod qemu;
mod rig;
mod rp2040;

use crate::boards;
use host::Host;
use line::BadLine;
use qemu::{Machine, Qemu};
use rig::Rig;
use rp2040::{Port, Rp2040};

const PATIENCE: Duration = Duration::from_secs(40);
/// PF0, the LM3S6965's lamp, through its own address of the port's data register.
const LAMP: u32 = 0x4002_5004;
const CLICK: Duration = Duration::from_millis(120);
const BETWEEN: Duration = Duration::from_millis(120);
/// Longer than a pad wants two buttons held for a key, and shorter than it takes for stuck.
const HOLD: Duration = Duration::from_secs(9);
/// The name of the virtual machine among the boards.
const LINUX: &str = "linux";
const RAM: u32 = 0x2000_0000;

/// What `cargo xtask e2e` was asked.
#[derive(Debug)]
pub(crate) struct Options {
    /// Runs of each kind.
    runs: usize,
    /// A built program; `cargo build` otherwise.
    hone: Option<PathBuf>,
    /// Presses to time.
    timed: usize,
    /// Only scenes on these boards; all when empty.
    boards: Vec<String>,
}

impl Options {
    /// `None` when an argument is not understood.
    pub(crate) fn parse(args: &[&str]) -> Option<Self> {
        let mut options = Self { runs: 1, hone: None, timed: 0, boards: Vec::new() };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match *arg {
                "--runs" => options.runs = rest.next()?.parse().ok()?,
                "--hone" => options.hone = Some(rest.next()?.into()),
                "--board" => options.boards.push((*rest.next()?).into()),
                "--timed" => options.timed = rest.next()?.parse().ok()?,
                _ => return None,
            }
        }
        Some(options)
    }

    /// With a program that is built already, and so many runs of each scene on these boards, or on all.
    pub(crate) fn with_program(hone: PathBuf, runs: usize, boards: &[&str]) -> Self {
        Self { runs, hone: Some(hone), timed: 0, boards: boards.iter().map(|&board| board.into()).collect() }
    }
}

/// How it ended.
pub(crate) enum Ended {
    Well,
    Badly,
    /// An emulator is not here.
    Unavailable(String),
}

/// A board that can be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Board {
    Lm3s6965,
    Microbit,
    Pico,
}

impl Board {
    fn name(self) -> &'static str {
        match self {
            Board::Lm3s6965 => "lm3s6965",
            Board::Microbit => "microbit",
            Board::Pico => "pico",
        }
    }

    fn buttons(self) -> usize {
        match self {
            Board::Lm3s6965 | Board::Pico => 5,
            Board::Microbit => 2,
        }
    }

    /// Bytes of memory; the stack grows down from its end.
    fn ram(self) -> u32 {
        match self {
            Board::Lm3s6965 => 8 << 10,
            Board::Microbit => 16 << 10,
            Board::Pico => 264 << 10,
        }
    }
}

/// One kind of run.
#[derive(Clone, Copy, Debug)]
struct Scene {
    board: Board,
    noisy: bool,
    tagged: bool,
    /// Of a Pico.
    port: Port,
}

impl std::fmt::Display for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = if self.noisy { "noisy line" } else { "clean line" };
        let frames = if self.tagged { ", tagged frames" } else { "" };
        let usb = if self.port == Port::Usb { ", USB" } else { "" };
        f.pad(&format!("{}{usb}, {line}{frames}", self.board.name()))
    }
}

const SCENES: [Scene; 5] = [
    Scene { board: Board::Lm3s6965, noisy: false, tagged: false, port: Port::Uart },
    Scene { board: Board::Lm3s6965, noisy: true, tagged: true, port: Port::Uart },
    Scene { board: Board::Microbit, noisy: false, tagged: true, port: Port::Uart },
    Scene { board: Board::Pico, noisy: false, tagged: false, port: Port::Uart },
    Scene { board: Board::Pico, noisy: false, tagged: true, port: Port::Usb },
];

/// Runs every scene so many times.
///
/// # Errors
/// When something cannot be started. A journal that differs from what was pressed ends it badly.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<Ended> {
    let wanted = |name: &str| options.boards.is_empty() || options.boards.iter().any(|board| board == name);
    let scenes: Vec<Scene> = SCENES.iter().filter(|scene| wanted(scene.board.name())).copied().collect();
    ensure!(!scenes.is_empty() || wanted(LINUX), "there is no emulator for {}", options.boards.join(", "));
    let on = |boards: &[Board]| scenes.iter().any(|scene| boards.contains(&scene.board));
    if on(&[Board::Lm3s6965, Board::Microbit]) && Command::new("qemu-system-arm").arg("--version").output().is_err() {
        let why = "qemu-system-arm is not installed (Debian: apt-get install qemu-system-arm)";
        return Ok(Ended::Unavailable(why.into()));
    }
    let target_dir = crate::target_dir(root);
    let script = match on(&[Board::Pico]).then(|| rp2040::see_to(&target_dir)).transpose() {
        Ok(script) => script.unwrap_or_default(),
        Err(why) => return Ok(Ended::Unavailable(why)),
    };
    for board in [Board::Lm3s6965, Board::Microbit, Board::Pico].into_iter().filter(|board| on(&[*board])) {
        if let boards::Ended::Unavailable(why) = boards::run(root, &boards::Options::only(board.name()))? {
            return Ok(Ended::Unavailable(why));
        }
    }
    let machine = match wanted(LINUX).then(|| linux::see_to(root, &target_dir)).transpose()?.transpose() {
        Ok(machine) => machine,
        Err(why) => return Ok(Ended::Unavailable(why)),
    };
    let hone = match &options.hone {
        Some(path) => path.clone(),
        None => {
            let status = crate::ci::cargo_command(root).args(["build", "--locked", "--package", "hone"]).status()?;
            ensure!(status.success(), "the program does not build");
            target_dir.join("debug/hone")
        }
    };
    let stage = |scene: Scene, dir: &Path| {
        let image = target_dir.join("boards/images").join(format!("{}.elf", scene.board.name()));
        Stage { root, hone: &hone, image, script: &script, dir: dir.into(), scene }
    };
    let mut well = true;
    for scene in scenes {
        for run in 1..=options.runs {
            let began = Instant::now();
            let dir = tempfile::tempdir()?;
            let outcome = stage(scene, dir.path()).play().with_context(|| format!("{scene}, run {run}"))?;
            println!("e2e {scene:<38} run {run}  {outcome}  {:.1} s", began.elapsed().as_secs_f64());
            well &= outcome.pressed == outcome.recorded;
            if outcome.pressed != outcome.recorded {
                println!("  pressed  {:?}\n  recorded {:?}", outcome.pressed, outcome.recorded);
            }
        }
    }
    for (run, parts) in (1..=options.runs).zip(std::iter::repeat(&machine)) {
        let Some(parts) = parts else { break };
        let began = Instant::now();
        let dir = tempfile::tempdir()?;
        let outcome = linux::play(parts, &hone, dir.path()).with_context(|| format!("{LINUX}, run {run}"))?;
        let what = "linux, GPIO lines, USB adapter pulled";
        println!("e2e {what:<38} run {run}  {outcome}  {:.1} s", began.elapsed().as_secs_f64());
        well &= outcome.is_well();
    }
    if options.timed > 0 {
        let dir = tempfile::tempdir()?;
        stage(SCENES[0], dir.path()).time(options.timed)?;
    }
    Ok(if well { Ended::Well } else { Ended::Badly })
}

/// What was pressed and what the journal has, by button.
struct Outcome {
    pressed: Vec<Said>,
    recorded: Vec<Said>,
    /// Bytes that the line damaged.
    damaged: u32,
    /// Bytes that the stack ever took.
    stack: u32,
}

/// What a person did at the pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Press {
        button: usize,
        long: bool,
    },
    /// Two buttons held.
    Undo,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.pressed == self.recorded { "ok    " } else { "FAILED" };
        write!(f, "{verdict}  pressed {}, recorded {}", self.pressed.len(), self.recorded.len())?;
        write!(f, ", bytes damaged {}, stack {}", self.damaged, self.stack)
    }
}

struct Stage<'a> {
    root: &'a Path,
    hone: &'a Path,
    image: PathBuf,
    /// What runs a Pico.
    script: &'a Path,
    dir: PathBuf,
    scene: Scene,
}

impl Stage<'_> {
    fn play(&self) -> anyhow::Result<Outcome> {
        let mut board = self.board()?;
        let buttons = self.scene.board.buttons();
        let line = if self.scene.noisy { Some(BadLine::before(board.pty())?) } else { None };
        let pty = line.as_ref().map_or_else(|| board.pty().to_owned(), |line| line.pty.clone());
        // Holds that were too early or too long are kept by the pad, and told like all else.
        let lapsed = if self.scene.tagged { self.pair(&mut *board, &pty)? } else { 0 };
        let mut pressed = vec![Said::Undo; lapsed];
        let mut press = |board: &mut dyn Rig, button: usize, hold: Duration| -> anyhow::Result<usize> {
            let button = button % buttons;
            board.press(button, hold)?;
            pressed.push(Said::Press { button, long: hold > Duration::from_secs(1) });
            Ok(pressed.len())
        };

        let mut host = Host::start(self, &pty)?;
        for button in 0..2 * buttons {
            press(&mut *board, button, CLICK)?;
        }
        press(&mut *board, 0, Duration::from_millis(1_500))?;
        board.pass(Duration::from_millis(300))?;

        host.kill()?;
        for button in [2, 2, 3] {
            press(&mut *board, button, CLICK)?;
        }
        restart(&mut *board)?;
        for button in [1, 2, 0] {
            press(&mut *board, button, CLICK)?;
        }
        host = Host::start(self, &pty)?;
        let so_far = press(&mut *board, 1, CLICK)?;
        self.wait_recorded(so_far)?;
        // Not a greeting of before.
        while host.events.try_recv().is_ok() {}
        restart(&mut *board)?;
        host.until("pad-up")?;
        let mut all = so_far;
        for button in [3, 3, 0] {
            all = press(&mut *board, button, CLICK)?;
        }
        for _ in 0..if self.scene.noisy { 20 } else { 5 } {
            all = press(&mut *board, 1, Duration::from_millis(60))?;
        }
        // Whatever is doubled would come while it is waited for the last.
        let recorded = self.wait_recorded(all)?;
        host.quit()?;
        let recorded = if recorded.len() == all { self.recorded()? } else { recorded };
        let stack = self.stack(&mut *board)?;
        Ok(Outcome { pressed, recorded, damaged: line.map_or(0, BadLine::end), stack })
    }

    fn board(&self) -> anyhow::Result<Box<dyn Rig>> {
        match self.scene.board {
            Board::Lm3s6965 => Ok(Box::new(Qemu::start(Machine::Lm3s6965, &self.image, &self.dir)?)),
            Board::Microbit => Ok(Box::new(Qemu::start(Machine::Microbit, &self.image, &self.dir)?)),
            Board::Pico => Ok(Box::new(self.flash()?)),
        }
    }

    /// A Pico with what `hone flash` puts on its drive; the program is done when the pad greets.
    fn flash(&self) -> anyhow::Result<Rp2040> {
        let drive = self.dir.join("RPI-RP2");
        std::fs::create_dir(&drive)?;
        std::fs::write(
            drive.join("INFO_UF2.TXT"),
            "UF2 Bootloader v3.0\r\nModel: Raspberry Pi RP2\r\nBoard-ID: RPI-RP2\r\n",
        )?;
        let line = rp2040::Line::new()?;
        let mut flashing = self
            .command(&["flash", "pad", "--board", "pico", "--pad", &line.pty, "--drive"])
            .arg(&drive)
            .arg("--state")
            .arg(self.state())
            .arg(&self.image)
            .stdout(Stdio::null())
            .spawn()?;
        let uf2 = drive.join("hone.uf2");
        let began = Instant::now();
        while !is_whole(&uf2) {
            ensure!(flashing.try_wait()?.is_none_or(|status| status.success()), "`hone flash` failed");
            ensure!(began.elapsed() < PATIENCE, "`hone flash` writes nothing");
            thread::sleep(Duration::from_millis(50));
        }
        let board = Rp2040::start(self.script, &uf2, self.scene.port, line)?;
        let status = flashing.wait()?;
        ensure!(status.success(), "`hone flash` ended with {status}");
        Ok(board)
    }

    /// How deep the stack has ever been, by what is not zero below its start.
    fn stack(&self, board: &mut dyn Rig) -> anyhow::Result<u32> {
        let budget = boards::memory(self.root, self.scene.board.name())?;
        let end = self.scene.board.ram();
        let bytes = board.memory(RAM + budget.statics, end - budget.statics)?;
        let untouched = bytes.iter().take_while(|byte| **byte == 0).count() as u32;
        let stack = end - budget.statics - untouched;
        ensure!(stack <= budget.stack, "the stack took {stack} bytes, its budget is {}", budget.stack);
        Ok(stack)
    }

    /// From the release of a button to "recorded" on its lamp.
    fn time(&self, presses: usize) -> anyhow::Result<()> {
        let mut board = Qemu::start(Machine::Lm3s6965, &self.image, &self.dir)?;
        let host = Host::start(self, board.pty())?;
        let (mut durable, mut lit) = (Vec::new(), Vec::new());
        for _ in 0..presses {
            while host.events.try_recv().is_ok() {}
            board.set(1, true)?;
            thread::sleep(CLICK);
            board.set(1, false)?;
            let released = Instant::now();
            host.until("committed")?;
            durable.push(released.elapsed());
            // The flash of "recorded"; a press that waits blinks, but this one is recorded by now.
            while board.read(LAMP)? == 0 {
                ensure!(released.elapsed() < PATIENCE, "the lamp stays dark");
            }
            lit.push(released.elapsed());
            thread::sleep(Duration::from_millis(400));
        }
        host.quit()?;
        let fsync = fsync(&self.dir)?;
        for (name, mut times) in [("release to durable", durable), ("release to lamp", lit), ("fsync of 4 KiB", fsync)]
        {
            times.sort();
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
            println!("e2e {name:<20} p50 {:.1} ms  p99 {:.1} ms  (n {})", at(0.5), at(0.99), times.len());
        }
        Ok(())
    }

    /// `hone pad pair`, and two buttons held until it ends; held anew, as it says, where a hold came to nothing: a board that
    /// waits for a busy machine makes up for seconds at once, in which no key is offered. Returns the holds that did.
    fn pair(&self, board: &mut dyn Rig, pty: &str) -> anyhow::Result<usize> {
        let mut pairing = self
            .command(&["pad", "pair", pty])
            .args(["--seconds", "60", "--state"])
            .arg(self.state())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(pairing.stderr.take().context("piped")?);
        let mut line = String::new();
        while !line.contains("hold two") {
            line.clear();
            ensure!(said.read_line(&mut line)? > 0, "`hone pad pair` ended: {:?}", pairing.wait());
        }
        let mut lapsed = 0;
        let status = loop {
            board.set_together(&[0, 1], true)?;
            ends_within(&mut pairing, board, HOLD)?;
            board.set_together(&[0, 1], false)?;
            // The key may have been taken in the last moment.
            if let Some(status) = ends_within(&mut pairing, board, Duration::from_secs(2))? {
                break status;
            }
            lapsed += 1;
        };
        let mut why = String::new();
        said.read_to_string(&mut why)?;
        ensure!(status.success(), "`hone pad pair` ended with {status}: {why}");
        Ok(lapsed)
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.hone);
        command.args(arguments).current_dir(self.root).stdin(Stdio::null());
        // Not whatever is configured on this machine.
        command.env("CONFIGURATION_DIRECTORY", &self.dir).env("XDG_CONFIG_HOME", &self.dir).env_remove("HONE_CONFIG");
        command
    }

    /// What the journal has, waiting until it is so much.
    fn wait_recorded(&self, presses: usize) -> anyhow::Result<Vec<Said>> {
        let began = Instant::now();
        loop {
            let recorded = self.recorded()?;
            if recorded.len() >= presses || began.elapsed() > PATIENCE {
                return Ok(recorded);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn recorded(&self) -> anyhow::Result<Vec<Said>> {
        let out = self.command(&["feedback", "list", "--jsonl", "--state"]).arg(self.state()).output()?;
        ensure!(out.status.success(), "`hone feedback list`: {}", String::from_utf8_lossy(&out.stderr));
        let line = |text: &str| -> anyhow::Result<Said> {
            let press: Value = serde_json::from_str(text)?;
            let button = match press["said"]["kind"].as_str() {
                Some("undo") => return Ok(Said::Undo),
                Some("correction") => press["said"]["class"].as_u64().context("a class")? as usize,
                // The last button of more than two, the first and the last of two, by default.
                Some("thumb") if press["said"]["up"] == true => 0,
                Some("thumb") => self.scene.board.buttons() - 1,
                other => bail!("{other:?} was not pressed"),
            };
            Ok(Said::Press { button, long: press["confirmed"] == true })
        };
        std::str::from_utf8(&out.stdout)?.lines().map(line).collect()
    }
}

/// How a program ended while so much of the board's time passed; `None` when it has not.
fn ends_within(program: &mut Child, board: &mut dyn Rig, time: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let mut passed = Duration::ZERO;
    loop {
        let status = program.try_wait()?;
        if status.is_some() || passed >= time {
            board.pass(BETWEEN)?;
            return Ok(status);
        }
        board.pass(BETWEEN)?;
        passed += BETWEEN;
    }
}

/// Resets a board and waits until it has seen that its buttons are up: one that is down when a pad starts says nothing, and
/// the pad greets before it knows.
fn restart(board: &mut dyn Rig) -> anyhow::Result<()> {
    board.reset()?;
    board.pass(Duration::from_millis(500))
}

/// How long this disk takes to make a page durable.
fn fsync(dir: &Path) -> anyhow::Result<Vec<Duration>> {
    let mut file = std::fs::File::create(dir.join("fsync"))?;
    (0..100)
        .map(|_| {
            file.write_all(&[7; 4096])?;
            let began = Instant::now();
            file.sync_data()?;
            Ok(began.elapsed())
        })
        .collect()
}

/// Whether a UF2 file has all blocks that its first speaks of.
fn is_whole(uf2: &Path) -> bool {
    let Ok(bytes) = std::fs::read(uf2) else { return false };
    let blocks = bytes.get(24..28).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    blocks.is_some_and(|blocks| bytes.len() == blocks as usize * 512)
}
