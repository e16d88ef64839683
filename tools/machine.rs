//! What a measurement was made on: processor, memory, and whether the machine was quiet. Read from the kernel's files;
//! what a system does not tell is absent, never guessed.
use std::fs;
use std::path::{Path, PathBuf};

use hone_runtime::cpu;
use serde::Serialize;

/// The machine at one moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Logical processors this process may use.
    pub(crate) cpus: usize,
    /// Instruction set, `x86_64`, `aarch64` …
    pub(crate) arch: &'static str,
    /// Operating system.
    pub(crate) os: &'static str,
    /// The matrix product that runs.
    pub(crate) kernel: &'static str,
    /// The same with weights of bf16.
    pub(crate) kernel_bf16: &'static str,
    /// That of 8-bit codes.
    pub(crate) kernel_int8: &'static str,
    /// Memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Memory that is free or can be freed, in bytes.
    pub(crate) memory_available_bytes: Option<u64>,
    /// Frequency governor of the first processor.
    pub(crate) governor: Option<String>,
    /// Hottest thermal zone, in degrees Celsius.
    pub(crate) temperature_c: Option<f64>,
    /// What has slowed the processors down since the machine began.
    pub(crate) throttled: Option<String>,
    /// Mean number of waiting and running threads over one minute.
    pub(crate) load_1min: Option<f64>,
    /// `release` or `debug`.
    pub(crate) build: &'static str,
    /// This program's version.
    pub(crate) hone: &'static str,
}

impl Machine {
    /// This machine, now.
    pub(crate) fn now() -> Machine {
        let runs = |kernels: &[cpu::KernelInfo]| kernels.iter().find(|k| k.runs).map_or("none", |k| k.name);
        Machine {
            cpu: cpu_model(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get()),
            arch: std::env::consts::ARCH,
            os: std::env::consts::OS,
            kernel: runs(&cpu::gemm_kernels()),
            kernel_bf16: runs(&cpu::bf16_kernels()),
            kernel_int8: runs(&cpu::int8_kernels()),
            memory_bytes: kib_line("/proc/meminfo", "MemTotal:"),
            memory_available_bytes: kib_line("/proc/meminfo", "MemAvailable:"),
            governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            temperature_c: temperature_c(),
            throttled: throttled(),
            load_1min: text("/proc/loadavg").and_then(|t| t.split_whitespace().next()?.parse().ok()),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            hone: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Reasons not to believe a measurement made now.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.build == "debug" {
            out.push("this is a debug build: times mean nothing; cargo build --release".to_string());
        }
        if let Some(load) = self.load_1min
            && load > 0.5 * self.cpus as f64
        {
            out.push(format!("the machine is busy: load {load:.1} on {} processors; stop other work", self.cpus));
        }
        if let Some(g) = &self.governor
            && g != "performance"
        {
            out.push(format!(
                "the frequency governor is `{g}`; `cpupower frequency-set -g performance` steadies times"
            ));
        }
        if let Some(t) = &self.throttled {
            out.push(format!("the processor has been throttled ({t}); cool it or feed it better"));
        }
        out
    }
}

/// Most memory this process has had resident, in bytes.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    kib_line("/proc/self/status", "VmHWM:")
}

/// Memory this process has resident now, in bytes.
pub(crate) fn rss_bytes() -> Option<u64> {
    kib_line("/proc/self/status", "VmRSS:")
}

/// Of the memory this process has resident now, what no file stands behind, in bytes.
pub(crate) fn anonymous_bytes() -> Option<u64> {
    kib_line("/proc/self/status", "RssAnon:")
}

/// Where `command` lies on `$PATH`.
pub(crate) fn which(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(command)).find(|p| is_executable(p))
}

fn is_executable(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    }
    #[cfg(not(unix))]
    path.is_file()
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_string()).filter(|t| !t.is_empty())
}

fn cpu_model() -> String {
    let info = text("/proc/cpuinfo").unwrap_or_default();
    let named = info.lines().find_map(|l| {
        let (key, value) = l.split_once(':')?;
        matches!(key.trim(), "model name" | "Model").then(|| value.trim().to_string())
    });
    // A board with a device tree names itself there, ended by a zero byte.
    let board = || text("/proc/device-tree/model").map(|t| t.trim_end_matches('\0').to_string());
    named.filter(|n| !n.is_empty()).or_else(board).unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// The value of a line such as `MemTotal:  1024 kB`, in bytes.
fn kib_line(path: &str, key: &str) -> Option<u64> {
    let content = text(path)?;
    let line = content.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn temperature_c() -> Option<f64> {
    let zones = fs::read_dir("/sys/class/thermal").ok()?;
    let read = |e: fs::DirEntry| text(e.path().join("temp"))?.parse::<f64>().ok().map(|milli| milli / 1000.0);
    zones.flatten().filter_map(read).fold(None, |max: Option<f64>, t| Some(max.map_or(t, |m| m.max(t))))
}

fn throttled() -> Option<String> {
    // The Raspberry Pi's firmware says it in bits; Intel counts events for each core.
    if let Some(bits) = text("/sys/devices/platform/soc/soc:firmware/get_throttled")
        && bits != "0"
    {
        return Some(format!("firmware bits 0x{bits}"));
    }
    let cpus = fs::read_dir("/sys/devices/system/cpu").ok()?;
    let count = |e: fs::DirEntry| text(e.path().join("thermal_throttle/core_throttle_count"))?.parse::<u64>().ok();
    let events: u64 = cpus.flatten().filter_map(count).sum();
    (events > 0).then(|| format!("{events} thermal events"))
}
