//! `cargo xtask e2e`: a pad's real firmware, emulated, on a real terminal, heard by a real `hone listen`.
//!
//! The board is QEMU's LM3S6965 with the image of `cargo xtask boards`. Fingers come from outside: keys by QMP, levels on
//! pins by qtest. In each run presses are made with a host, without one after a SIGKILL, and after a reset of the board;
//! in the end the journal must have each of them once, in order. Runs differ in the line (clean; flipping and losing
//! bytes) and in whether the pad was paired first, with two of its buttons held, so that every frame is tagged.
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

mod qemu;

use crate::boards;
use qemu::{BadLine, Line, Qemu};

const PATIENCE: Duration = Duration::from_secs(40);
/// Keys of the board's model, by button.
const KEYS: [&str; 5] = ["up", "down", "left", "right", "ctrl"];
/// Pins, by button.
const PINS: [Line; 5] = [
    Line { port: 4, bit: 0 },
    Line { port: 4, bit: 1 },
    Line { port: 4, bit: 2 },
    Line { port: 4, bit: 3 },
    Line { port: 5, bit: 1 },
];
/// PF0, the lamp, through its own address of the port's data register.
const LAMP: u32 = 0x4002_5004;
const CLICK: Duration = Duration::from_millis(120);
const BETWEEN: Duration = Duration::from_millis(120);

/// What `cargo xtask e2e` was asked.
#[derive(Debug)]
pub(crate) struct Options {
    /// Runs of each kind.
    runs: usize,
    /// A built program; `cargo build` otherwise.
    hone: Option<PathBuf>,
    /// Presses to time.
    timed: usize,
}

impl Options {
    /// `None` when an argument is not understood.
    pub(crate) fn parse(args: &[&str]) -> Option<Self> {
        let mut options = Self { runs: 1, hone: None, timed: 0 };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            match *arg {
                "--runs" => options.runs = rest.next()?.parse().ok()?,
                "--hone" => options.hone = Some(rest.next()?.into()),
                "--timed" => options.timed = rest.next()?.parse().ok()?,
                _ => return None,
            }
        }
        Some(options)
    }

    /// With a program that is built already, and so many runs of each kind.
    pub(crate) fn with_program(hone: PathBuf, runs: usize) -> Self {
        Self { runs, hone: Some(hone), timed: 0 }
    }
}

/// How it ended.
pub(crate) enum Ended {
    Well,
    Badly,
    /// QEMU is not here.
    Unavailable(String),
}

/// One kind of run.
#[derive(Clone, Copy, Debug)]
struct Scene {
    name: &'static str,
    noisy: bool,
    tagged: bool,
}

const SCENES: [Scene; 2] = [
    Scene { name: "clean line", noisy: false, tagged: false },
    Scene { name: "noisy line, tagged frames", noisy: true, tagged: true },
];

/// Runs every scene so many times.
///
/// # Errors
/// When something cannot be started. A journal that differs from what was pressed ends it badly.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<Ended> {
    if Command::new("qemu-system-arm").arg("--version").output().is_err() {
        return Ok(Ended::Unavailable(
            "qemu-system-arm is not installed (Debian: apt-get install qemu-system-arm)".into(),
        ));
    }
    let image = crate::target_dir(root).join("boards/images/lm3s6965.elf");
    if let boards::Ended::Unavailable(why) = boards::run(root, &boards::Options::only("lm3s6965"))? {
        return Ok(Ended::Unavailable(why));
    }
    let hone = match &options.hone {
        Some(path) => path.clone(),
        None => {
            let status = crate::ci::cargo_command(root).args(["build", "--locked", "--package", "hone"]).status()?;
            ensure!(status.success(), "the program does not build");
            crate::target_dir(root).join("debug/hone")
        }
    };
    let mut well = true;
    for scene in SCENES {
        for run in 1..=options.runs {
            let began = Instant::now();
            let dir = tempfile::tempdir()?;
            let stage = Stage { root, hone: &hone, image: &image, dir: dir.path(), scene };
            let outcome = stage.play().with_context(|| format!("{}, run {run}", scene.name))?;
            println!("e2e {:<28} run {run}  {outcome}  {:.1} s", scene.name, began.elapsed().as_secs_f64());
            well &= outcome.pressed == outcome.recorded;
            if outcome.pressed != outcome.recorded {
                println!("  pressed  {:?}\n  recorded {:?}", outcome.pressed, outcome.recorded);
            }
        }
    }
    if options.timed > 0 {
        let dir = tempfile::tempdir()?;
        let scene = SCENES[0];
        Stage { root, hone: &hone, image: &image, dir: dir.path(), scene }.time(options.timed)?;
    }
    Ok(if well { Ended::Well } else { Ended::Badly })
}

/// What was pressed and what the journal has, by button.
struct Outcome {
    pressed: Vec<Said>,
    recorded: Vec<Said>,
    damaged: u32,
}

/// A button, and whether it was pressed long.
type Said = (usize, bool);

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.pressed == self.recorded { "ok    " } else { "FAILED" };
        write!(f, "{verdict}  pressed {}, recorded {}", self.pressed.len(), self.recorded.len())?;
        write!(f, ", bytes damaged {}", self.damaged)
    }
}

struct Stage<'a> {
    root: &'a Path,
    hone: &'a Path,
    image: &'a Path,
    dir: &'a Path,
    scene: Scene,
}

impl Stage<'_> {
    fn play(&self) -> anyhow::Result<Outcome> {
        let mut board = self.board()?;
        let line = if self.scene.noisy { Some(BadLine::before(&board.pty)?) } else { None };
        let pty = line.as_ref().map_or(board.pty.clone(), |line| line.pty.clone());
        if self.scene.tagged {
            self.pair(&mut board, &pty)?;
        }
        let mut pressed = Vec::new();

        let mut host = Host::start(self, &pty)?;
        for (button, key) in KEYS.iter().enumerate() {
            press(&mut board, key, CLICK)?;
            pressed.push((button, false));
        }
        for (button, pin) in PINS[..4].iter().enumerate() {
            board.level(*pin, false)?;
            thread::sleep(CLICK);
            board.level(*pin, true)?;
            thread::sleep(BETWEEN);
            pressed.push((button, false));
        }
        press(&mut board, KEYS[0], Duration::from_millis(1_500))?;
        pressed.push((0, true));
        thread::sleep(Duration::from_millis(300));

        host.kill()?;
        for _ in 0..6 {
            press(&mut board, KEYS[2], CLICK)?;
            pressed.push((2, false));
        }
        host = Host::start(self, &pty)?;
        // The board has no flash: a reset before its presses are acknowledged would rightly lose them.
        self.wait_recorded(pressed.len())?;
        if !self.scene.tagged {
            board.reset()?;
            at_rest(&mut board)?;
            host.until("pad-up")?;
        }
        for _ in 0..3 {
            press(&mut board, KEYS[3], CLICK)?;
            pressed.push((3, false));
        }
        for _ in 0..if self.scene.noisy { 20 } else { 5 } {
            press(&mut board, KEYS[1], Duration::from_millis(60))?;
            pressed.push((1, false));
        }
        // Whatever is doubled would come while it is waited for the last.
        let recorded = self.wait_recorded(pressed.len())?;
        host.quit()?;
        let recorded = if recorded.len() == pressed.len() { self.recorded()? } else { recorded };
        Ok(Outcome { pressed, recorded, damaged: line.map_or(0, BadLine::end) })
    }

    /// From the release of a button to "recorded" on its lamp.
    fn time(&self, presses: usize) -> anyhow::Result<()> {
        let mut board = self.board()?;
        let pty = board.pty.clone();
        let host = Host::start(self, &pty)?;
        let (mut durable, mut lit) = (Vec::new(), Vec::new());
        for _ in 0..presses {
            while host.events.try_recv().is_ok() {}
            board.key(KEYS[1], true)?;
            thread::sleep(CLICK);
            board.key(KEYS[1], false)?;
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
        let fsync = fsync(self.dir)?;
        for (name, mut times) in [("release to durable", durable), ("release to lamp", lit), ("fsync of 4 KiB", fsync)]
        {
            times.sort();
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
            println!("e2e {name:<20} p50 {:.1} ms  p99 {:.1} ms  (n {})", at(0.5), at(0.99), times.len());
        }
        Ok(())
    }

    fn board(&self) -> anyhow::Result<Qemu> {
        let mut board = Qemu::lm3s6965(self.image, self.dir)?;
        at_rest(&mut board)?;
        board.go()?;
        Ok(board)
    }

    /// `hone pad pair`, and two buttons held until it ends.
    fn pair(&self, board: &mut Qemu, pty: &str) -> anyhow::Result<()> {
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
        board.key(KEYS[0], true)?;
        board.key(KEYS[1], true)?;
        let status = pairing.wait()?;
        board.key(KEYS[0], false)?;
        board.key(KEYS[1], false)?;
        thread::sleep(BETWEEN);
        ensure!(status.success(), "`hone pad pair` ended with {status}");
        Ok(())
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.hone);
        command.args(arguments).current_dir(self.root).stdin(Stdio::null());
        // Not whatever is configured on this machine.
        command.env("CONFIGURATION_DIRECTORY", self.dir).env("XDG_CONFIG_HOME", self.dir).env_remove("HONE_CONFIG");
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
                Some("correction") => press["said"]["class"].as_u64().context("a class")? as usize,
                // The last of five buttons, by default.
                Some("thumb") => 4,
                other => bail!("{other:?} was not pressed"),
            };
            Ok((button, press["confirmed"] == true))
        };
        std::str::from_utf8(&out.stdout)?.lines().map(line).collect()
    }
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

fn at_rest(board: &mut Qemu) -> anyhow::Result<()> {
    PINS.iter().try_for_each(|pin| board.level(*pin, true))
}

fn press(board: &mut Qemu, key: &str, hold: Duration) -> anyhow::Result<()> {
    board.key(key, true)?;
    thread::sleep(hold);
    board.key(key, false)?;
    thread::sleep(BETWEEN);
    Ok(())
}

/// A running `hone listen`. Dropping it kills it.
struct Host {
    child: Child,
    events: Receiver<Value>,
}

impl Host {
    /// Starts it and waits until it hears the pad.
    fn start(stage: &Stage<'_>, pty: &str) -> anyhow::Result<Host> {
        let model = stage.root.join("models/which-digit");
        let mut command = stage.command(&["listen"]);
        command.arg(model.join("which-digit.hone")).arg("--state").arg(stage.state()).args(["--pad", pty]);
        command.args(["--hold", "0", "--stdin", "--jsonl", "--camera"]);
        command.arg(format!("fps=5,repeat=yes,file:{}", model.join("golden/gray-28x28.png").display()));
        if !stage.scene.tagged {
            command.arg("--allow-unpaired");
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(stage.dir.join("listen.log"))?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let (told, events) = channel();
        thread::spawn(move || {
            for event in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
                if told.send(event).is_err() {
                    return;
                }
            }
        });
        let host = Host { child, events };
        host.until("pad-up")
            .with_context(|| std::fs::read_to_string(stage.dir.join("listen.log")).unwrap_or_default())?;
        Ok(host)
    }

    fn until(&self, event: &str) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let told: Value = self.events.recv_timeout(left).with_context(|| format!("no {event} in {PATIENCE:?}"))?;
            if told["event"] == event {
                return Ok(());
            }
        }
    }

    /// SIGKILL.
    fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn quit(mut self) -> anyhow::Result<()> {
        let mut stdin = self.child.stdin.take().context("piped")?;
        writeln!(stdin, "quit")?;
        drop(stdin);
        let status = self.child.wait()?;
        ensure!(status.success(), "`hone listen` ended with {status}");
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
