//! `hone config` and `hone flash pad`, with an emulated pad and a directory for a drive.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hone_runtime::feedback::emulate::{Emulator, EmulatorConfig, Gesture};
use hone_runtime::feedback::keys::PadKeys;
use hone_runtime::flash::Image;
use hone_runtime::state::StateDir;

use crate::support::{bundle, fails, hone, said};

/// A name plate for a pico, version 1.2.3; `runtime/src/flash/testdata/record.py` made it.
fn image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/src/flash/testdata/toy.elf")
}

fn drive(dir: &Path) -> PathBuf {
    let drive = dir.join("drive");
    fs::create_dir(&drive).unwrap();
    fs::write(drive.join("INFO_UF2.TXT"), "UF2 Bootloader v2.0\nModel: Raspberry Pi RP2\nBoard-ID: RPI-RP2\n").unwrap();
    drive
}

fn pad(config: EmulatorConfig) -> (Emulator, String) {
    let pad = Emulator::start(EmulatorConfig { virtual_time: true, ..config }).unwrap();
    let port = pad.port_name().unwrap();
    (pad, port)
}

#[test]
fn firmware_is_flashed_when_the_pad_itself_says_that_it_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let drive = drive(dir.path());
    let plate = Image::parse(&fs::read(image()).unwrap()).unwrap().plate().unwrap();
    let (_pad, port) = pad(EmulatorConfig { firmware: (plate.version, plate.digest), ..EmulatorConfig::default() });
    let out = hone()
        .args(["flash", "pad", "--board", "pico", "--pad", &port, "--drive"])
        .arg(&drive)
        .arg("--state")
        .arg(dir.path())
        .arg(image())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stdout).starts_with("the pad runs 1.2.3 "), "{}", said(&out));
    let written = fs::read(drive.join("hone.uf2")).unwrap();
    assert_eq!(Image::parse(&written).unwrap().plate().unwrap(), plate);
}

#[test]
fn a_board_without_a_drive_is_given_to_picotool_where_it_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    let tool = dir.path().join("picotool");
    let log = dir.path().join("log");
    fs::write(&tool, format!("#!/bin/sh\necho \"$@\" >> {}\n", log.display())).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let plate = Image::parse(&fs::read(image()).unwrap()).unwrap().plate().unwrap();
    let (_pad, port) = pad(EmulatorConfig { firmware: (plate.version, plate.digest), ..EmulatorConfig::default() });
    let flash = |more: &[&str]| {
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let mut command = hone();
        command.env("PATH", path).args(["flash", "pad", "--board", "pico", "--pad", &port, "--state"]);
        command.arg(dir.path()).arg(image()).args(more).output().unwrap()
    };
    let out = flash(&["--dry-run"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("given to `picotool load -x {}`"), "{}", said(&out));
    assert!(!log.exists());
    let out = flash(&[]);
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("load -x {}\n", image().display()));
}

#[cfg(feature = "firmware")]
#[test]
fn the_firmware_built_in_is_for_every_board_that_can_be_flashed() {
    let dir = tempfile::tempdir().unwrap();
    for board in hone_runtime::flash::BOARDS {
        let mut command = hone();
        command.args([
            "flash",
            "pad",
            "--dry-run",
            "--pad",
            "/nonexistent",
            "--board",
            board.name,
            "built-in",
            "--state",
        ]);
        let out = command.arg(dir.path()).output().unwrap();
        assert!(out.status.success(), "{}: {}", board.name, said(&out));
    }
}

#[test]
fn a_pad_that_still_holds_presses_or_another_board_is_not_flashed() {
    let dir = tempfile::tempdir().unwrap();
    let drive = drive(dir.path());
    let (pad, port) = pad(EmulatorConfig::default());
    pad.press(0, Gesture::Click).unwrap();
    let flash = |board: &str| {
        hone()
            .args(["flash", "pad", "--board", board, "--pad", &port, "--drive"])
            .arg(&drive)
            .arg("--state")
            .arg(dir.path())
            .arg(image())
            .output()
            .unwrap()
    };
    fails(&flash("pico"), 75, &["still holds 1 events", "--force"]);
    fails(&flash("pico2"), 3, &["firmware is for pico", "pico2"]);
    fails(&flash("toaster"), 2, &["toaster", "nrf52840"]);
    assert!(!drive.join("hone.uf2").exists());
    assert_eq!(pad.pending(), 1, "looking took nothing");
}

#[test]
fn a_configuration_is_checked_with_file_and_line_and_against_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hone.toml");
    let check = |text: &str, more: &[&str]| {
        fs::write(&file, text).unwrap();
        hone().args(["config", "check"]).arg(&file).args(more).output().unwrap()
    };
    let wrong = check("[feedback]\nper_minute = -1\nbuttons.0.triple = \"up\"\n", &[]);
    fails(&wrong, 78, &["hone.toml:2: -1 is not", "hone.toml:3: `0.triple`"]);
    let bundle = bundle();
    let against = ["--bundle", bundle.to_str().unwrap()];
    let cow = "feedback.buttons.0.click = \"correct cow\"\n";
    assert!(check(cow, &[]).status.success());
    fails(&check(cow, &against), 78, &["hone.toml:1: 0.click: `cow` is no label"]);
    let good = check("feedback.buttons.0.click = \"correct 3\"\n", &against);
    assert!(good.status.success(), "{}", said(&good));
    let shown = hone().args(["config", "show", "--origin"]).arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("feedback.buttons.0.click")).unwrap();
    assert!(line.contains("\"correct 3\"") && line.ends_with("hone.toml:1"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("feedback.per_minute") && line.ends_with("# default")), "{text}");
}

#[test]
fn a_board_on_its_way_into_its_loader_is_waited_for_by_picotool_too() {
    let dir = tempfile::tempdir().unwrap();
    let tool = dir.path().join("picotool");
    let log = dir.path().join("log");
    // There is no board for it the first time.
    fs::write(&tool, format!("#!/bin/sh\necho \"$@\" >> {0}\n[ $(wc -l < {0}) -gt 1 ]\n", log.display())).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let config = EmulatorConfig { pairing_key: Some([7; 16]), ..EmulatorConfig::default() };
    PadKeys::of(&StateDir::at(dir.path())).put(&config.uid, &[7; 16]).unwrap();
    let (_pad, port) = pad(config);
    let out = hone()
        .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
        .args(["flash", "pad", "--board", "pico", "--no-wait", "--pad", &port, "--state"])
        .arg(dir.path())
        .arg(image())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", said(&out));
    assert!(said(&out).contains("trying again"), "{}", said(&out));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 2);
}

#[test]
fn a_pad_that_may_not_be_heard_is_not_flashed() {
    let dir = tempfile::tempdir().unwrap();
    let drive = drive(dir.path());
    let flash = |port: &str, more: &[&str]| {
        let mut command = hone();
        command.args(["flash", "pad", "--board", "pico", "--no-wait", "--pad", port, "--drive"]).arg(&drive);
        command.arg("--state").arg(dir.path()).arg(image()).args(more).output().unwrap()
    };
    // Of another host: what it holds is not for this one to see.
    let (paired, port) = pad(EmulatorConfig { pairing_key: Some([7; 16]), ..EmulatorConfig::default() });
    paired.press(0, Gesture::Click).unwrap();
    fails(&flash(&port, &[]), 75, &["cannot be seen", "another host", "--force"]);
    // In another program's hands.
    let (_pad, port) = pad(EmulatorConfig::default());
    let held = serialport::new(&port, 115_200).open().unwrap();
    fails(&flash(&port, &[]), 75, &["cannot be seen", "in use", "--force"]);
    drop(held);
    assert!(!drive.join("hone.uf2").exists());
    // And what is not there at all holds nothing.
    let out = flash("usb:ffff:fffe", &[]);
    assert!(out.status.success(), "{}", said(&out));
    assert!(drive.join("hone.uf2").exists());
}
