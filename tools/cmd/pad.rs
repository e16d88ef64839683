//! `hone pad`: the pads at this machine, and one without hardware.
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use hone_runtime::Class;
use hone_runtime::bundle::Bundle;
use hone_runtime::config::Config;
use hone_runtime::feedback::emulate::{Emulator, EmulatorConfig, parse_script};
use hone_runtime::feedback::keys::{PadKeys, check_code, parse_uid};
use hone_runtime::feedback::serial::{PortInfo, list_ports};
use hone_runtime::feedback::setup::{self, Guest, PadHello, SetupError};
use hone_runtime::feedback::source::{self, Source, SourceError};
use hone_runtime::feedback::{Notice, uid_text};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde_json::{Value, json};

use crate::exit::fail;
use crate::{input, output};

/// How long a pad is waited for.
const GREETING: Duration = Duration::from_secs(10);

/// Lists, tests, pairs and explains pads, or runs the pad's firmware core on a pseudo-terminal.
#[derive(Args)]
pub(crate) struct Pad {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The serial ports of this machine, with what --pad takes for each.
    List {
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Shows what a pad does, button by button, until stopped; its presses stay on it.
    Test(Test),
    /// Gives a pad a key, by which it and this host know each other from then on; hold two of its buttons together.
    Pair(PairArgs),
    /// Shows what each button of a pad means here, and where that stands.
    Config(ConfigArgs),
    /// A pad without hardware; its port's path is the first line on standard output.
    ///
    /// Without --script, lines on standard input are done one by one until its end: click B, long B, double B, hold B
    /// MS, chord A B [MS], wait MS, prompt, drained, unplug, replug, crash, reboot. A line that cannot be done is said
    /// and skipped.
    Emulate(Emulate),
}

#[derive(Args)]
struct Test {
    /// The pad, as `hone listen --pad` takes it.
    #[arg(default_value = "auto")]
    pad: String,
    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// The state directory, for the pad's key.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Args)]
struct PairArgs {
    /// The pad, as `hone listen --pad` takes it.
    #[arg(default_value = "auto")]
    pad: String,
    /// Wait so long for the buttons.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// The state directory, where the key is kept.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Args)]
struct ConfigArgs {
    /// The pad, as `hone listen --pad` takes it.
    #[arg(default_value = "auto")]
    pad: String,
    /// A .hone bundle, for the names of its classes.
    #[arg(long, value_name = "BUNDLE")]
    bundle: Option<PathBuf>,
    /// The configuration; otherwise /etc/hone/hone.toml and ~/.config/hone/hone.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The state directory, for the pad's key.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

#[derive(Args)]
struct Emulate {
    /// Lines to do, then stop.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Gestures and waits advance the pad's clock in place of sleeping.
    #[arg(long = "virtual")]
    virtual_time: bool,
    /// Its identity, 16 hexadecimal digits.
    #[arg(long, value_name = "HEX", value_parser = uid)]
    uid: Option<[u8; 8]>,
    /// How many buttons it has.
    #[arg(long, default_value_t = 2)]
    buttons: u8,
    /// A link to keep pointing at its port, so that it has one name for as long as it lives and when it comes back.
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
}

impl Pad {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::List { json } => list(json)?,
            What::Test(t) => t.run()?,
            What::Pair(p) => p.run()?,
            What::Config(c) => c.run()?,
            What::Emulate(e) => e.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What `--pad` names: pads of the configuration by name, every pad there is for `auto`, else a way to name one.
/// Without any, the pads of the configuration that have a port.
pub(super) fn sources(named: &[String], settings: &Config) -> Result<Vec<Box<dyn Source>>, SourceError> {
    let mut specs = Vec::new();
    for name in named {
        let known = settings.pads.iter().find(|pad| pad.name == *name).and_then(|pad| pad.port.clone());
        let here = || list_ports().iter().filter(|port| port.is_pad()).map(spec).collect::<Vec<String>>();
        match known {
            Some(port) => specs.push(port),
            None if name == "auto" => match here() {
                // The first one to come.
                none if none.is_empty() => specs.push(name.clone()),
                some => specs.extend(some),
            },
            None => specs.push(name.clone()),
        }
    }
    if named.is_empty() {
        specs.extend(settings.pads.iter().filter_map(|pad| pad.port.clone()));
    }
    specs.iter().map(|spec| source::parse(spec)).collect()
}

/// Firmware's version as people write it.
pub(super) fn version([major, minor, patch]: [u8; 3]) -> String {
    format!("{major}.{minor}.{patch}")
}

/// What `--pad` takes for a port.
fn spec(port: &PortInfo) -> String {
    port.spec().to_string()
}

fn list(as_json: bool) -> anyhow::Result<()> {
    let ports = list_ports();
    if as_json {
        let row = |p: &PortInfo| {
            let usb = p.usb.as_ref();
            json!({
                "device": p.device, "spec": spec(p), "vid": usb.map(|u| format!("{:04x}", u.vid)),
                "pid": usb.map(|u| format!("{:04x}", u.pid)), "serial": usb.and_then(|u| u.serial.clone()),
                "product": usb.and_then(|u| u.product.clone()), "pad": p.is_pad(),
            })
        };
        return output::document("hone.pad-list/1", json!({"ports": ports.iter().map(row).collect::<Vec<Value>>()}));
    }
    if ports.is_empty() {
        output::say("hone: no serial ports here; plug a pad in, or try `hone pad emulate`");
    }
    for p in &ports {
        let product = p.usb.as_ref().and_then(|u| u.product.clone()).unwrap_or_default();
        output::line(output::table(&[vec![p.device.clone(), spec(p), product]]))?;
    }
    Ok(())
}

/// Greets the one pad that `name` names.
pub(super) fn greet(name: &str, state: Option<&Path>, patience: Duration) -> anyhow::Result<(Guest, PadHello)> {
    meet(name, state, patience, false)?.map_err(|error| fail(Class::Device, error.to_string()))
}

/// As [`greet`], or for a pad that may have another host; that it does not greet is told apart from a name that names
/// no one pad.
pub(super) fn meet(
    name: &str,
    state: Option<&Path>,
    patience: Duration,
    for_pairing: bool,
) -> anyhow::Result<Result<(Guest, PadHello), SetupError>> {
    let settings = Config::load(None)?;
    let mut found = sources(&[name.to_owned()], &settings)?;
    if found.len() > 1 {
        let specs: Vec<String> = found.iter().map(|source| source.spec()).collect();
        return Err(fail(Class::Usage, format!("there are several pads: {}; say which", specs.join(", "))));
    }
    let source = found.pop().ok_or_else(|| fail(Class::Usage, "name a pad; `hone pad list` has what is here"))?;
    let keys = PadKeys::of(&StateDir::resolve(state)?);
    Ok(if for_pairing {
        Guest::greet_for_pairing(source, keys, patience)
    } else {
        Guest::greet(source, Some(keys), patience)
    })
}

fn introduce(hello: &PadHello) -> String {
    format!(
        "pad {}: {} buttons, firmware {} {}, {}, {} presses waiting on it",
        uid_text(&hello.uid),
        hello.buttons,
        version(hello.firmware),
        digits(&hello.firmware_hash),
        if hello.is_paired() { "paired" } else { "not paired" },
        hello.next.wrapping_sub(hello.first),
    )
}

/// Bytes in hexadecimal.
pub(super) fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Test {
    fn run(self) -> anyhow::Result<()> {
        let (guest, hello) = greet(&self.pad, self.state.as_deref(), GREETING)?;
        output::line(introduce(&hello))?;
        output::say("press its buttons; presses made before or now stay on the pad");
        let end = self.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let (mut down, mut since_ms) = (0u16, [0u32; 16]);
        loop {
            let left = end.map_or(Duration::from_secs(3600), |end| end.saturating_duration_since(Instant::now()));
            let notice = match guest.next(left) {
                Some(notice) => notice,
                None if end.is_some() => return Ok(()),
                None => continue,
            };
            let Notice::Input(input) = notice else {
                if !setup::is_expected(&notice) {
                    output::line(notice.to_string())?;
                }
                continue;
            };
            for button in (0..16).filter(|b| (down ^ input.buttons) & 1 << b != 0) {
                if input.buttons & 1 << button != 0 {
                    since_ms[button] = input.now_ms;
                    output::line(format!("button {button} down"))?;
                } else {
                    let held_ms = input.now_ms.wrapping_sub(since_ms[button]);
                    output::line(format!("button {button} up after {held_ms} ms"))?;
                }
            }
            down = input.buttons;
        }
    }
}

impl PairArgs {
    fn run(self) -> anyhow::Result<()> {
        let (guest, hello) = meet(&self.pad, self.state.as_deref(), GREETING, true)?
            .map_err(|error| fail(Class::Device, error.to_string()))?;
        output::say(introduce(&hello));
        if hello.buttons < 2 {
            output::say("it has one button; a pad with fewer than two is paired when it is flashed");
        }
        output::say(format!(
            "hold two of its buttons together until this ends, at most {} s; after 10 s lift them and hold them again",
            self.seconds
        ));
        let key = guest.key_for(&hello.uid).map_err(|error| fail(Class::Failed, error.to_string()))?;
        let paired = guest.pair(key, Duration::from_secs(self.seconds));
        paired.map_err(|error| fail(Class::Device, error.to_string()))?;
        output::line(format!("paired: pad {}, check code {:06}", uid_text(&hello.uid), check_code(&key)))?;
        Ok(())
    }
}

impl ConfigArgs {
    fn run(self) -> anyhow::Result<()> {
        let settings = Config::load(self.config.as_deref())?;
        let labels = match &self.bundle {
            Some(bundle) => Model::open(Bundle::open(bundle)?, SessionOptions::default())?.vocabulary(),
            None => (0..256).map(|class| format!("class {class}")).collect(),
        };
        let (_guest, hello) = greet(&self.pad, self.state.as_deref(), GREETING)?;
        output::line(introduce(&hello))?;
        let rules = settings.policy.rules(&hello.uid);
        if let Some(name) = &rules.name {
            output::line(format!("its rules are those of pads.{name}"))?;
        }
        let layout = settings.policy.layout(&hello.uid, hello.buttons, None, &labels);
        let layout = layout.map_err(|why| fail(Class::Config, why))?;
        let rows: Vec<Vec<String>> = layout
            .meanings()
            .map(|(act, meaning)| {
                let origin = rules.mapping.get(&act).map_or("default", |given| given.origin.as_str());
                vec![act.to_string(), meaning.in_words(&labels), format!("# {origin}")]
            })
            .collect();
        output::line(output::table(&rows))?;
        Ok(())
    }
}

impl Emulate {
    fn run(self) -> anyhow::Result<()> {
        let script = match &self.script {
            None => None,
            Some(path) => {
                let text = input::read_text(path)?;
                // Before the pad starts: a script that cannot be read should not leave a port behind.
                parse_script(&text).map_err(|e| fail(Class::Usage, format!("{}: {e}", path.display())))?;
                Some(text)
            }
        };
        let base = EmulatorConfig::default();
        let uid = self.uid.unwrap_or(base.uid);
        let (buttons, virtual_time, link) = (self.buttons, self.virtual_time, self.link);
        let config = EmulatorConfig { uid, buttons, virtual_time, link, ..base };
        let pad = Arc::new(Emulator::start(config).map_err(|e| fail(Class::Device, e.to_string()))?);
        let port = pad.port_name().ok_or_else(|| fail(Class::Device, "the pad has no port"))?;
        output::line(&port)?;
        output::say(format!(
            "a pad with {buttons} buttons is at {port}; `hone listen BUNDLE --pad {port} --allow-unpaired` hears it"
        ));

        let done = Arc::new(AtomicBool::new(false));
        let watcher = {
            let (pad, done, buttons) = (Arc::clone(&pad), Arc::clone(&done), usize::from(buttons));
            std::thread::spawn(move || watch(&pad, &done, buttons))
        };
        let result = match script {
            Some(text) => pad.script(&text).map_err(|e| fail(Class::Device, e.to_string())),
            None => keys(&pad),
        };
        done.store(true, Ordering::Relaxed);
        // It ends within its own pause; a panic there has been reported by its hook.
        let _ = watcher.join();
        result
    }
}

fn keys(pad: &Emulator) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.context("reading standard input")?;
        if let Err(e) = pad.script(&line) {
            output::say(format!("hone: {e}"));
        }
    }
    Ok(())
}

/// Says what can be seen of the pad, whenever it changes.
fn watch(pad: &Emulator, done: &AtomicBool, buttons: usize) {
    let mut last = String::new();
    loop {
        let last_look = done.load(Ordering::Relaxed);
        let lamps: Vec<String> = pad.lamps()[..buttons].iter().map(|l| format!("{l:?}").to_lowercase()).collect();
        let host = if pad.is_up() { "host" } else { "no host" };
        let prompt = pad.current_prompt().map(|p| {
            let labels: Vec<&str> = p.labels.iter().collect();
            format!(", asked {} [{}]", p.prompt_id, labels.join(", "))
        });
        let port = pad.port_name().map_or("unplugged".to_string(), |p| p);
        let now = format!(
            "{port}: {host}, {} pending, lamps {}{}",
            pad.pending(),
            lamps.join(" "),
            prompt.unwrap_or_default()
        );
        if now != last {
            output::say(&now);
            last = now;
        }
        if last_look {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn uid(text: &str) -> Result<[u8; 8], String> {
    parse_uid(text).ok_or(format!("`{text}` is not 16 hexadecimal digits"))
}
