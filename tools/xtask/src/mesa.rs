//! `cargo xtask mesa`: a newer software Vulkan than the system's, for the tests of kernels for GPUs.
//!
//! What real GPUs have, cooperative matrices above all, Mesa's software driver has only in newer versions than a stable Debian
//! brings; and another compiler of shaders and another validation layer judge the kernels. A later Debian's packages are fetched by
//! apt into a root of their own, signed as the system's are, and unpacked; nothing is installed. They bring their own C library, so
//! that a program runs on them only through their loader of programs: a script does it, which cargo takes as its runner and the
//! programs know nothing of.
//!
//! The mirror is the machine's: whatever apt is told to use here is asked for the later suites too.
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::ci::{cargo_command, gpu_example};
use crate::python::quietly;
use crate::target_dir;

/// The release, and the part of it whose Mesa is newer still.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
/// A driver and who finds it, the layer that judges how it is used, and the C library they are made for.
const PACKAGES: [&str; 5] = ["mesa-vulkan-drivers", "libvulkan1", "vulkan-validationlayers", "libc6", "libgcc-s1"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What an adapter of a newer driver has, in the words of `runtime/gpu/examples/adapters.rs`.
const NEWER: &str = "cooperative matrices";

/// What came of it.
pub(crate) enum Ended {
    Ready(Driver),
    /// It cannot be had here, and why.
    Unavailable(String),
}

/// A driver that is there.
#[derive(Debug)]
pub(crate) struct Driver {
    /// Mesa's.
    pub(crate) version: String,
    /// Runs the program that it is given, on this driver.
    runner: PathBuf,
}

impl Driver {
    /// The setting by which cargo runs what it builds on the driver. Not a variable of the environment: those are split at spaces.
    pub(crate) fn setting(&self) -> String {
        format!("target.\"cfg(all())\".runner=[{:?}]", self.runner.to_string_lossy())
    }

    /// That what cargo runs by [`Driver::setting`] really finds this driver and no other.
    ///
    /// # Errors
    /// When it does not, or nothing can be run so.
    pub(crate) fn holds(&self, root: &Path) -> anyhow::Result<()> {
        let found = adapters(root, Some(self))?;
        println!("{found}");
        self.judge(&found)
    }

    fn judge(&self, found: &str) -> anyhow::Result<()> {
        let version = &self.version;
        let ours = |line: &str| line.split_once("Mesa ").is_some_and(|(_, of)| number(of) == version);
        ensure!(
            !found.is_empty() && found.lines().all(ours),
            "by its runner programs do not find Mesa {version} alone, but: {found}"
        );
        ensure!(found.contains(NEWER), "Mesa {version} has no {NEWER}, so that nothing is gained by it: {found}");
        Ok(())
    }
}

/// How packages and folders are named for this machine.
#[derive(Clone, Copy)]
struct Machine {
    /// Debian's.
    architecture: &'static str,
    /// Under `usr/lib`.
    libraries: &'static str,
    /// Loads programs.
    loader: &'static str,
}

fn machine(os: &str, architecture: &str) -> Option<Machine> {
    let of = |architecture, libraries, loader| Some(Machine { architecture, libraries, loader });
    match (os, architecture) {
        ("linux", "x86_64") => of("amd64", "x86_64-linux-gnu", "ld-linux-x86-64.so.2"),
        ("linux", "aarch64") => of("arm64", "aarch64-linux-gnu", "ld-linux-aarch64.so.1"),
        _ => None,
    }
}

/// Makes it ready and says how it is used. Asked for by name, a machine that cannot have it is a failure.
///
/// # Errors
/// When it cannot be had or does not work.
pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    match ready(root)? {
        Ended::Unavailable(why) => bail!("{why}"),
        Ended::Ready(driver) => {
            driver.holds(root)?;
            println!("Mesa {}. A program on it: {} PROGRAM", driver.version, driver.runner.display());
            println!(
                "Tests on it: cargo --config '{}' test -p hone-gpu --features device\n\
                 It is kept; a newer one is fetched once {} is gone.",
                driver.setting(),
                home(root).display()
            );
            Ok(true)
        }
    }
}

/// Whether the system's own driver has what the newer one is for: then, its adapters.
///
/// # Errors
/// When the program that asks cannot be built.
pub(crate) fn of_system(root: &Path) -> anyhow::Result<Option<String>> {
    Ok(Some(adapters(root, None)?).filter(|found| found.contains(NEWER)))
}

/// What programs find: a line an adapter.
fn adapters(root: &Path, driver: Option<&Driver>) -> anyhow::Result<String> {
    let mut command = cargo_command(root);
    if let Some(driver) = driver {
        command.arg("--config").arg(driver.setting());
    }
    command.args(gpu_example("adapters"));
    Ok(quietly(&mut command)?.trim().to_owned())
}

fn home(root: &Path) -> PathBuf {
    target_dir(root).join("xtask/mesa")
}

/// Fetches and unpacks what is not there, and writes the runner.
///
/// # Errors
/// When what was fetched is not as expected, or a file cannot be written.
pub(crate) fn ready(root: &Path) -> anyhow::Result<Ended> {
    let Some(machine) = machine(std::env::consts::OS, std::env::consts::ARCH) else {
        return Ok(Ended::Unavailable("the newer Mesa is fetched for Linux on x86-64 and 64-bit Arm alone".into()));
    };
    let home = home(root);
    let (system, stamp) = (home.join("root"), home.join("ready"));
    let recipe = format!("{} {} of {}", machine.architecture, PACKAGES.join(" "), SUITES.join(" "));
    // Its first line is Mesa's version, the second what it was made by.
    let version = match std::fs::read_to_string(&stamp).unwrap_or_default().split_once('\n') {
        Some((version, by)) if by == recipe => version.to_owned(),
        _ => {
            if home.exists() {
                std::fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
            }
            let packages = match fetched(&home, machine) {
                Ok(packages) => packages,
                Err(why) => return Ok(Ended::Unavailable(format!("the newer Mesa cannot be fetched: {why:#}"))),
            };
            let version = unpacked(&packages, &system)?;
            std::fs::remove_dir_all(home.join("apt")).context("cannot remove what was fetched")?;
            std::fs::write(&stamp, format!("{version}\n{recipe}"))?;
            version
        }
    };
    let icd = home.join("icd.json");
    let libraries = system.join("usr/lib").join(machine.libraries);
    std::fs::write(&icd, described(&system.join("usr/share/vulkan/icd.d"), &libraries)?)?;
    let runner = home.join("run");
    write_runner(&runner, &script(&system, machine, &icd))?;
    Ok(Ended::Ready(Driver { version, runner }))
}

/// The packages and all that they need, by the first of the machine's mirrors that has them.
fn fetched(home: &Path, machine: Machine) -> anyhow::Result<Vec<PathBuf>> {
    let here = |program: &str| Path::new("/usr/bin").join(program).exists();
    ensure!(here("apt-get") && here("dpkg-deb"), "this is no Debian (no apt-get, or no dpkg-deb)");
    ensure!(Path::new(KEYRING).exists(), "there is no {KEYRING} (Debian: debian-archive-keyring)");
    let apt = home.join("apt");
    let archives = apt.join("cache/archives");
    for folder in [apt.join("state/lists/partial"), archives.join("partial")] {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let (settings, sources, status) = (apt.join("apt.conf"), apt.join("sources.list"), apt.join("status"));
    std::fs::write(&status, "")?;
    std::fs::write(&settings, apt_settings(&apt, &status, machine))?;
    let command = || {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").arg("-c").arg(&settings);
        command
    };
    // Told to be quiet, apt does not print them either.
    let mirrors = mirrors(&quietly(command().args(["update", "--print-uris"]))?);
    ensure!(!mirrors.is_empty(), "apt has no sources on this machine");
    let mut why = Vec::new();
    for mirror in &mirrors {
        println!("mesa: {} of {} from {mirror}", PACKAGES.join(" "), SUITES[1]);
        let lines = SUITES.map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"));
        std::fs::write(&sources, lines.concat())?;
        let list = |command: &mut Command| {
            let of = format!("Dir::Etc::SourceList={}", sources.display());
            quietly(command.args(["-qq", "-o", &of, "-o", "Dir::Etc::SourceParts=/dev/null"]))
        };
        let got = list(command().args(["-o", "APT::Update::Error-Mode=any", "update"])).and_then(|_| {
            let install = ["install", "-y", "--download-only", "--no-install-recommends", "-t", SUITES[1]];
            list(command().args(install).args(PACKAGES))
        });
        match got {
            Ok(_) => {
                let all = std::fs::read_dir(&archives)?.flatten().map(|e| e.path());
                let mut all: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e == "deb")).collect();
                all.sort();
                return Ok(all);
            }
            Err(e) => why.push(format!("{mirror}: {e:#}")),
        }
    }
    bail!("{}", why.join("; "))
}

/// A root of apt's own beside the system's: nothing is installed in it. How the machine reaches its mirrors (proxies, names and
/// passwords) stays as it is; what it prefers, and does after an update, is the system's affair. `_apt`, as whom root fetches, may
/// not enter every folder that a tree is checked out in.
fn apt_settings(apt: &Path, status: &Path, machine: Machine) -> String {
    let (apt, status, architecture) = (apt.display(), status.display(), machine.architecture);
    format!(
        "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n\
         #clear APT::Architectures;\n#clear APT::Default-Release;\n#clear Acquire::IndexTargets::deb::DEP-11;\n\
         APT::Architecture \"{architecture}\";\nAPT::Architectures {{ \"{architecture}\"; }};\n\
         APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
         Dir::State \"{apt}/state/\";\nDir::State::status \"{status}\";\nDir::Cache \"{apt}/cache/\";\n\
         Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n"
    )
}

/// The mirrors of the machine, by what apt says it would fetch: a line a file, of a release first `<mirror>/dists/<suite>/InRelease`.
/// Those of security updates alone have no suite of a later release's other packages.
fn mirrors(said: &str) -> Vec<String> {
    let mut all = Vec::new();
    for line in said.lines() {
        let uri = line.strip_prefix('\'').and_then(|l| l.split('\'').next());
        let of = uri.and_then(|u| u.strip_suffix("/InRelease")?.split_once("/dists/"));
        match of {
            Some((mirror, suite)) if !suite.contains("security") && !all.iter().any(|m| m == mirror) => {
                all.push(mirror.to_owned());
            }
            _ => {}
        }
    }
    all
}

/// Lays the packages' files under `system`; Mesa's version.
fn unpacked(packages: &[PathBuf], system: &Path) -> anyhow::Result<String> {
    std::fs::create_dir_all(system).with_context(|| format!("cannot make {}", system.display()))?;
    let mut mesa = None;
    for package in packages {
        quietly(Command::new("dpkg-deb").arg("-x").arg(package).arg(system))?;
        mesa = mesa.or_else(|| version(&package.file_name()?.to_string_lossy()));
    }
    mesa.with_context(|| format!("{} is not among what apt fetched", PACKAGES[0]))
}

/// Mesa's own, of the name of Debian's package: `mesa-vulkan-drivers_26.1.6-1~bpo13+1_amd64.deb` has 26.1.6.
fn version(package: &str) -> Option<String> {
    let whole = package.strip_prefix(PACKAGES[0])?.strip_prefix('_')?;
    Some(number(whole).to_owned())
}

/// The number that a version begins with; a distribution's own follows.
fn number(version: &str) -> &str {
    version.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default()
}

/// What tells the Vulkan loader of the driver in software: the package's own file, with the path that its library has here.
fn described(folder: &Path, libraries: &Path) -> anyhow::Result<String> {
    let files = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let lavapipe = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("lvp_icd"));
    let file = files.flatten().map(|e| e.path()).find(lavapipe);
    let file = file.with_context(|| format!("{} has no driver in software", folder.display()))?;
    let mut icd: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let path = icd.pointer_mut("/ICD/library_path").with_context(|| format!("{} names no library", file.display()))?;
    let name = path.as_str().and_then(|p| p.rsplit('/').next()).context("the library of the driver has no name")?;
    *path = libraries.join(name).to_string_lossy().into();
    Ok(serde_json::to_string_pretty(&icd)?)
}

/// The system's own layers are made for another C library: none is found but those beside the driver.
fn script(system: &Path, machine: Machine, icd: &Path) -> String {
    let libraries = system.join("usr/lib").join(machine.libraries);
    let quoted = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"));
    format!(
        "#!/bin/sh\n\
         # Runs a program on the newer Mesa, by its own C library; made by `cargo xtask mesa`.\n\
         export VK_DRIVER_FILES={}\n\
         export VK_LAYER_PATH={}\n\
         export VK_LOADER_LAYERS_DISABLE='~implicit~'\n\
         exec {} --library-path {} \"$@\"\n",
        quoted(icd),
        quoted(&system.join("usr/share/vulkan/explicit_layer.d")),
        quoted(&libraries.join(machine.loader)),
        quoted(&libraries),
    )
}

/// A script that may be executed.
fn write_runner(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o755);
    let mut file = options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD64: Machine =
        Machine { architecture: "amd64", libraries: "x86_64-linux-gnu", loader: "ld-linux-x86-64.so.2" };

    #[test]
    fn mirrors_are_those_of_the_machine_each_once_and_none_of_security_updates() {
        let said = "Reading\n\
            'https://a.example/debian/dists/bookworm/InRelease' a_InRelease 0 \n\
            'https://a.example/debian/dists/bookworm-updates/InRelease' b_InRelease 0 \n\
            'https://a.example/debian-security/dists/bookworm-security/InRelease' c_InRelease 0 \n\
            'https://a.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' d 0 \n\
            'mirror+file:/etc/mirrors/dists/bookworm/InRelease' e 0 \n";
        assert_eq!(mirrors(said), ["https://a.example/debian", "mirror+file:/etc/mirrors"]);
        assert!(mirrors("E: nothing\n").is_empty());
    }

    #[test]
    fn the_version_is_that_of_the_driver_and_of_no_other_package() {
        assert_eq!(version("mesa-vulkan-drivers_26.1.6-1~bpo13+1_amd64.deb").as_deref(), Some("26.1.6"));
        assert_eq!(version("mesa-vulkan-drivers_26.2.0~rc1-1_arm64.deb").as_deref(), Some("26.2.0"));
        assert_eq!(version("libvulkan1_1.4.309.0-1_amd64.deb"), None);
    }

    #[test]
    fn only_adapters_of_the_driver_with_what_it_is_for_are_what_programs_should_find() {
        let driver = Driver { version: "26.1.6".into(), runner: "/a b/run".into() };
        let line =
            |version: &str, has: &str| format!("llvmpipe\tsoftware\tllvmpipe Mesa {version} (LLVM 19.1.7)\t{has}");
        driver.judge(&line("26.1.6-1~bpo13+1", NEWER)).unwrap();
        driver.judge(&line("26.1.6", NEWER)).unwrap();
        for found in [
            String::new(),
            line("22.3.6", NEWER),
            line("26.1.66", NEWER),
            line("26.1.6", "subgroups"),
            line("26.1.6", NEWER) + "\n" + &line("22.3.6", NEWER),
        ] {
            driver.judge(&found).unwrap_err();
        }
        assert_eq!(driver.setting(), r#"target."cfg(all())".runner=["/a b/run"]"#);
    }

    #[test]
    fn the_driver_in_software_is_described_by_where_its_library_is_here() {
        let dir = tempfile::tempdir().unwrap();
        let icd = |name: &str| format!(r#"{{"ICD":{{"api_version":"1.4","library_path":"/usr/lib/{name}.so"}}}}"#);
        std::fs::write(dir.path().join("intel_icd.json"), icd("intel")).unwrap();
        described(dir.path(), Path::new("/here")).unwrap_err();
        std::fs::write(dir.path().join("lvp_icd.json"), icd("lvp")).unwrap();
        let found: serde_json::Value =
            serde_json::from_str(&described(dir.path(), Path::new("/here")).unwrap()).unwrap();
        assert_eq!(found["ICD"]["library_path"], "/here/lvp.so");
        assert_eq!(found["ICD"]["api_version"], "1.4");
    }

    /// The loader is one that says what it is given.
    #[cfg(unix)]
    #[test]
    fn the_runner_hands_program_and_words_to_the_loader_from_whatever_folder() {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("it's here");
        let libraries = system.join("usr/lib").join(AMD64.libraries);
        std::fs::create_dir_all(&libraries).unwrap();
        let says = "#!/bin/sh\nprintf '%s\\n' \"$@\" \"$VK_DRIVER_FILES\" \"$VK_LAYER_PATH\"\n";
        write_runner(&libraries.join(AMD64.loader), says).unwrap();
        let runner = dir.path().join("run");
        write_runner(&runner, &script(&system, AMD64, Path::new("/an icd.json"))).unwrap();
        let said = quietly(Command::new(&runner).args(["program", "two words", "$HOME"])).unwrap();
        let layers = system.join("usr/share/vulkan/explicit_layer.d");
        let (libraries, layers) = (libraries.to_string_lossy(), layers.to_string_lossy());
        let expected =
            ["--library-path", &libraries, "program", "two words", "$HOME", "/an icd.json", &layers].join("\n") + "\n";
        assert_eq!(said, expected);
    }

    #[test]
    fn only_machines_that_the_packages_are_made_for_are_known() {
        assert_eq!(machine("linux", "x86_64").unwrap().architecture, "amd64");
        assert_eq!(machine("linux", "aarch64").unwrap().architecture, "arm64");
        assert!(machine("linux", "riscv64").is_none() && machine("macos", "aarch64").is_none());
    }
}
