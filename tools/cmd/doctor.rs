//! `hone doctor`: everything this machine needs for the loop, each with a verdict and the next command.
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use hone_runtime::choice;
use hone_runtime::config::Config;
use hone_runtime::cpu;
use hone_runtime::device::{Adapter, Gpu};
use hone_runtime::feedback::serial::list_ports;
use hone_runtime::feedback::source;
use hone_runtime::journal::Reader;
use hone_runtime::state::{StateDir, StateError};
use hone_runtime::{Class, Classified};
use serde::Serialize;

use crate::device;
use crate::machine::{Machine, which};
use crate::output;

/// Memory below which a model of a few megabytes and its training get tight.
const LITTLE_MEMORY: u64 = 64 << 20;
/// 2026-01-01: no build of this program is older, so a clock before it was never set.
const CLOCK_FLOOR_S: u64 = 1_767_225_600;

/// Checks this machine: processor, GPU, memory, state directory, journal, clock, serial ports, GPIO, camera and
/// microphone.
///
/// The exit code is 0 unless something is broken; a warning only limits what can be done.
#[derive(Args)]
pub(crate) struct Doctor {
    /// The state directory; $STATE_DIRECTORY, or the XDG one, if not given.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    #[serde(skip)]
    class: Option<Class>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Ok, found: found.into(), next: None, class: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Check {
        Check { verdict: Verdict::Warn, next: Some(next.into()), ..Check::ok(name, found) }
    }

    fn fail(name: &'static str, class: Class, found: impl Into<String>, next: impl Into<String>) -> Check {
        Check { verdict: Verdict::Fail, class: Some(class), ..Check::warn(name, found, next) }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    ok: bool,
    machine: &'a Machine,
    checks: &'a [Check],
}

impl Doctor {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let machine = Machine::now();
        let mut checks = vec![processor(&machine), memory(&machine)];
        checks.push(gpu());
        checks.extend(load(&machine));
        checks.push(clock());
        checks.extend(state(self.state.as_deref()));
        checks.push(serial());
        checks.push(gpio());
        checks.extend(pads());
        checks.push(command(
            "camera",
            &["rpicam-vid", "libcamera-vid", "ffmpeg"],
            "apt install rpicam-apps, or ffmpeg",
        ));
        checks.push(command("microphone", &["arecord", "ffmpeg"], "apt install alsa-utils, or ffmpeg"));
        let broken = checks.iter().find(|c| c.verdict == Verdict::Fail);
        if self.json {
            let body = Body { ok: broken.is_none(), machine: &machine, checks: &checks };
            output::document("hone.doctor/1", body)?;
        } else {
            for c in &checks {
                let mark = match c.verdict {
                    Verdict::Ok => "ok  ",
                    Verdict::Warn => "warn",
                    Verdict::Fail => "FAIL",
                };
                output::line(format!("{mark}  {:<12}{}", c.name, c.found))?;
                if let Some(next) = &c.next {
                    output::line(format!("      {:<12}-> {next}", ""))?;
                }
            }
        }
        Ok(ExitCode::from(broken.and_then(|c| c.class).map_or(0, Class::exit_code)))
    }
}

fn processor(m: &Machine) -> Check {
    let kernels = cpu::gemm_kernels();
    let lacking: Vec<&str> = kernels.iter().filter(|k| !k.available).map(|k| k.name).collect();
    let found = format!(
        "{}, {} x {}; matrix products run {}, in bf16 {}, of 8-bit codes {}",
        m.cpu, m.cpus, m.arch, m.kernel, m.kernel_bf16, m.kernel_int8
    );
    if m.kernel.starts_with("any-") && !lacking.is_empty() {
        return Check::warn(
            "processor",
            format!("{found}; it lacks {}", lacking.join(", ")),
            "nothing to do: it is slower",
        );
    }
    Check::ok("processor", found)
}

fn gpu() -> Check {
    let all = match Gpu::all() {
        Ok(all) => all,
        Err(e) => return Check::ok("gpu", e.to_string()),
    };
    let found: Vec<String> = all.iter().map(|a| format!("{} ({}, {})", a.name, a.kind, a.driver)).collect();
    match () {
        () if all.is_empty() => Check::ok("gpu", "none that a driver offers; models run on the CPU"),
        () if all.iter().all(Adapter::is_software) => {
            Check::ok("gpu", format!("{}: for tests, `--device auto` never takes it", found.join(", ")))
        }
        () => Check::ok("gpu", format!("{}; {}", found.join(", "), verdicts(device::store().as_deref()))),
    }
}

/// On which device models run by `--device auto`, and why, in a line.
fn verdicts(store: Option<&Path>) -> String {
    let all = store.map(choice::remembered).unwrap_or_default();
    let won = all.values().filter(|v| v.gpu).count();
    let closest = all.values().filter(|v| !v.gpu).map(|v| v.gpu_ms / v.cpu_ms).min_by(f64::total_cmp);
    match (all.len(), closest) {
        (0, _) => "no model was measured on it yet; `hone bench --device auto MODEL` does".into(),
        (n, None) => format!("it was faster with all {n} models that were measured (`hone inspect --devices`)"),
        (n, Some(ratio)) => format!(
            "it was faster with {won} of {n} models that were measured, and took {ratio:.2} of the CPU's time at best with the \
             others; it has to win by more than 10 % (`hone inspect --devices`)"
        ),
    }
}

fn memory(m: &Machine) -> Check {
    let mib = |b: Option<u64>| b.map_or("unknown".to_string(), |b| format!("{} MiB", b >> 20));
    let found = format!("{} of {} available", mib(m.memory_available_bytes), mib(m.memory_bytes));
    match m.memory_available_bytes {
        Some(b) if b < LITTLE_MEMORY => {
            Check::warn("memory", found, "stop other programs, or `hone inspect --memory BUNDLE`")
        }
        _ => Check::ok("memory", found),
    }
}

fn load(m: &Machine) -> Vec<Check> {
    // That this is a debug build is no fault of the machine.
    let trouble: Vec<String> = m.warnings().into_iter().filter(|w| !w.contains("debug build")).collect();
    let temperature = m.temperature_c.map_or("temperature unknown".into(), |t| format!("{t:.0} °C"));
    let load = m.load_1min.map_or("load unknown".into(), |l| format!("load {l:.2}"));
    let governor = m.governor.as_ref().map_or("governor unknown".into(), |g| format!("governor {g}"));
    let found = format!("{load}, {governor}, {temperature}");
    if trouble.is_empty() {
        return vec![Check::ok("pace", found)];
    }
    trouble.into_iter().map(|t| Check::warn("pace", found.clone(), t)).collect()
}

fn clock() -> Check {
    let now = SystemTime::now();
    let shown = humantime::format_rfc3339_seconds(now).to_string();
    if now.duration_since(UNIX_EPOCH).is_ok_and(|d| d.as_secs() >= CLOCK_FLOOR_S) {
        return Check::ok("clock", shown);
    }
    let next = "`timedatectl set-ntp true`; order is kept all the same, only shown times are wrong";
    Check::warn("clock", format!("{shown} cannot be right"), next)
}

fn state(explicit: Option<&Path>) -> Vec<Check> {
    const NAME: &str = "state";
    let state = match StateDir::resolve(explicit) {
        Ok(state) => state,
        Err(e) => return vec![Check::fail(NAME, e.class(), e.to_string(), "hone doctor --state DIR")],
    };
    let root = state.root();
    if !root.exists() {
        let parent = root.ancestors().skip(1).find(|p| p.exists()).filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        return vec![match probe(parent) {
            Ok(()) => Check::ok(NAME, format!("{} is not there yet; `hone listen` makes it", root.display())),
            Err(e) => Check::fail(
                NAME,
                Class::Store,
                format!("{} is not there and cannot be made in {}: {e}", root.display(), parent.display()),
                "hone doctor --state DIR, with a directory that may be written",
            ),
        }];
    }
    if let Err(e) = probe(root) {
        let next = format!("ls -ld {0}; chown it, or choose another with --state", root.display());
        return vec![Check::fail(NAME, Class::Store, format!("{} cannot be written: {e}", root.display()), next)];
    }
    let mut checks = Vec::new();
    // Looked at without making anything: locking would create what is missing.
    let held = state.lock_file().exists().then(|| state.lock_within(Duration::ZERO));
    checks.push(match held {
        Some(Err(StateError::Locked { by, .. })) => {
            let who = by.map_or("another process".into(), |pid| format!("process {pid}"));
            Check::ok(NAME, format!("{} is writable; {who} is its writer now", root.display()))
        }
        Some(Err(e)) => Check::fail(NAME, e.class(), e.to_string(), "hone doctor --state DIR"),
        _ => Check::ok(NAME, format!("{} is writable, nobody holds it", root.display())),
    });
    if !state.journal_db().exists() {
        checks.push(Check::ok("journal", "there is none yet"));
        return checks;
    }
    let next = "hone feedback verify; hone feedback export -o FILE saves what is readable";
    checks.push(match Reader::open(&state).and_then(|r| r.verify()) {
        Ok(r) if r.is_sound() => Check::ok("journal", format!("{} records, the chain holds", r.records)),
        Ok(r) => {
            let first = r.faults.first().map(|f| f.to_string()).unwrap_or_default();
            Check::fail("journal", Class::Store, format!("{} faults, the first: {first}", r.faults.len()), next)
        }
        Err(e) => Check::fail("journal", e.class(), e.to_string(), next),
    });
    checks
}

/// Makes and removes a file in `dir`: permissions, read-only mounts and full disks are found by trying.
fn probe(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".hone-doctor-{}", std::process::id()));
    fs::write(&path, b"probe")?;
    fs::remove_file(&path)
}

fn serial() -> Check {
    let ports = list_ports();
    if ports.is_empty() {
        return Check::ok("serial", "no ports; `hone pad emulate` is a pad without hardware");
    }
    let closed: Vec<String> = ports
        .iter()
        .filter_map(|p| {
            let e = OpenOptions::new().read(true).write(true).open(&p.device).err()?;
            (e.kind() == std::io::ErrorKind::PermissionDenied).then(|| p.device.clone())
        })
        .collect();
    let names: Vec<&str> = ports.iter().map(|p| p.device.as_str()).collect();
    if closed.is_empty() {
        return Check::ok("serial", names.join(", "));
    }
    let next = "sudo usermod -aG dialout $USER, then log in again";
    Check::warn("serial", format!("may not open {}", closed.join(", ")), next)
}

fn gpio() -> Check {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut chips: Vec<PathBuf> =
        entries.map(|e| e.path()).filter(|p| p.to_string_lossy().starts_with("/dev/gpiochip")).collect();
    chips.sort();
    if chips.is_empty() {
        return Check::ok("gpio", "no GPIO chips");
    }
    let names: Vec<String> = chips.iter().map(|p| p.display().to_string()).collect();
    if chips.iter().all(|p| OpenOptions::new().read(true).write(true).open(p).is_ok()) {
        return Check::ok("gpio", names.join(", "));
    }
    let next = "sudo usermod -aG gpio $USER, then log in again";
    Check::warn("gpio", format!("may not open all of {}", names.join(", ")), next)
}

/// The configuration, and every pad in it that has a port: whether it opens, and what its lines say at rest.
fn pads() -> Vec<Check> {
    let settings = match Config::load(None) {
        Ok(settings) => settings,
        Err(e) => return vec![Check::fail("config", e.class(), e.to_string(), "hone config check")],
    };
    let found: Vec<String> = settings.files.iter().map(|f| f.display().to_string()).collect();
    let found = if found.is_empty() { "no file, all is by default".into() } else { found.join(", ") };
    let mut checks = vec![Check::ok("config", found)];
    for pad in &settings.pads {
        let Some(port) = &pad.port else { continue };
        if port.contains("gpio:") && is_tegra() {
            let what = format!(
                "{}: lines not tried: this kernel disconnects one that is let go until the next boot",
                pad.name
            );
            checks.push(Check::ok("pad", what));
            continue;
        }
        let opened = source::parse(port).and_then(|mut source| source.open());
        checks.push(match opened {
            Err(e) => {
                Check::warn("pad", format!("{}: {e}", pad.name), "hone pad list; plug it in, or correct its port")
            }
            Ok(mut port) => match port.io.remark() {
                Some(remark) => Check::warn("pad", format!("{}: {remark}", pad.name), "see to the wiring"),
                None => Check::ok("pad", format!("{} opens at {}", pad.name, port.device)),
            },
        });
    }
    checks
}

/// Whether this is a Jetson, by its device tree.
fn is_tegra() -> bool {
    fs::read("/proc/device-tree/compatible").is_ok_and(|text| String::from_utf8_lossy(&text).contains("nvidia,tegra"))
}

/// The first of `commands` on `$PATH`; having none of them only matters to who wants that input.
fn command(name: &'static str, commands: &[&str], install: &str) -> Check {
    match commands.iter().find_map(|c| which(c)) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::warn(name, format!("none of {} is on PATH", commands.join(", ")), install),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_and_the_closest_loss_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("devices.json");
        let told = || verdicts(Some(&file));
        let measured = |key: &str, cpu: f64, gpu: f64| {
            let now = SystemTime::now();
            choice::choose(key, Some(&file), now, || Ok::<_, ()>(cpu), |_| Ok(gpu)).unwrap()
        };
        assert!(told().contains("no model") && verdicts(None).contains("no model"));
        measured("won", 10.0, 5.0);
        assert!(told().contains("all 1 models"), "{}", told());
        measured("lost", 10.0, 40.0);
        measured("nearly", 10.0, 9.5);
        let told = told();
        assert!(told.contains("1 of 3") && told.contains("0.95") && told.contains("10 %"), "{told}");
    }
}
