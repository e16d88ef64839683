//! `hone pad`: the pads at this machine, and one without hardware.
use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use hone_runtime::Class;
use hone_runtime::config::Config;
use hone_runtime::feedback::emulate::{Emulator, EmulatorConfig, parse_script};
use hone_runtime::feedback::keys::parse_uid;
use hone_runtime::feedback::serial::{PortInfo, list_ports};
use hone_runtime::feedback::source::{self, Source, SourceError};
use serde_json::{Value, json};

use crate::exit::fail;
use crate::{input, output};

/// Lists serial ports, or runs the pad's firmware core on a pseudo-terminal.
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
    /// A pad without hardware; its port's path is the first line on standard output.
    ///
    /// Without --script, lines on standard input are done one by one until its end: click B, long B, double B, hold B MS,
    /// chord A B [MS], wait MS, prompt, drained, unplug, replug, crash, reboot. A line that cannot be done is said and
    /// skipped.
    Emulate(Emulate),
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
            What::Emulate(e) => e.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What `--pad` names: pads of the configuration by name, every pad there is for `auto`, else a way to name one. Without
/// any, the pads of the configuration that have a port.
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
