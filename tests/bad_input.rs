//! Bad input: a one-paragraph error, the right exit code, nothing lost, no panic.
use std::fs;
use std::io::Write;

use crate::support::{bundle, copy_dir, fails, hone, model_dir};

fn run_with(args: &[&std::ffi::OsStr]) -> std::process::Output {
    hone().arg("run").arg(bundle()).args(args).output().unwrap()
}

#[test]
fn a_truncated_bundle_is_refused_with_code_3() {
    let dir = tempfile::tempdir().unwrap();
    let zip = dir.path().join("b.hone");
    let whole = hone_runtime::Bundle::open(bundle()).unwrap().to_zip().unwrap();
    fs::write(&zip, &whole[..whole.len() / 2]).unwrap();
    fails(&hone().arg("run").arg(&zip).args(["--text", "one"]).output().unwrap(), 3, &[]);
}

#[test]
fn a_flipped_byte_in_the_model_is_refused_with_code_3_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("b.hone");
    copy_dir(&bundle(), &copy);
    let model = copy.join("onnx/model.onnx");
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&model, bytes).unwrap();
    fails(&hone().arg("run").arg(&copy).args(["--text", "one"]).output().unwrap(), 3, &["onnx/model.onnx"]);
}

#[test]
fn a_text_file_named_onnx_is_refused_with_code_3() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.onnx");
    fs::write(&file, "buy milk, flour, two lemons\n").unwrap();
    let npz = model_dir().join("src/check/case0.npz");
    let out = hone().arg("run").arg(&file).arg("--tensors").arg(npz).output().unwrap();
    fails(&out, 3, &["notes.onnx", "not an ONNX model"]);
}

#[test]
fn an_empty_sound_is_refused_with_code_3() {
    let dir = tempfile::tempdir().unwrap();
    let wav = dir.path().join("silence.wav");
    fs::write(&wav, "").unwrap();
    fails(&run_with(&["--audio".as_ref(), wav.as_os_str()]), 3, &[]);
}

#[test]
fn a_picture_that_claims_forty_thousand_by_forty_thousand_pixels_is_refused_before_it_is_made_room_for() {
    let dir = tempfile::tempdir().unwrap();
    let png = dir.path().join("huge.png");
    let mut bytes = vec![0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a];
    let mut header = b"IHDR".to_vec();
    header.extend(40_000u32.to_be_bytes());
    header.extend(40_000u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut crc = u32::MAX;
    for &b in &header {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    bytes.extend(13u32.to_be_bytes());
    bytes.extend(header);
    bytes.extend((!crc).to_be_bytes());
    fs::File::create(&png).unwrap().write_all(&bytes).unwrap();
    fails(&run_with(&["--image".as_ref(), png.as_os_str()]), 3, &[]);
}

#[test]
fn a_pad_that_is_not_there_is_looked_for_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = hone()
        .args(["listen", bundle().to_str().unwrap(), "--state"])
        .arg(dir.path().join("state"))
        .args(["--pad", "/dev/no-such-pad", "--allow-unpaired", "--stdin", "--camera"])
        .arg(format!("file:{}", model_dir().join("golden/gray-28x28.png").display()))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut c| {
            std::thread::sleep(std::time::Duration::from_millis(1500));
            c.stdin.take().unwrap().write_all(b"quit\n")?;
            c.wait_with_output()
        })
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stderr).contains("looking for the pad: "));
}

#[test]
fn a_state_directory_that_cannot_be_made_is_an_error_with_code_6() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    // Below a file nobody can make a directory, root included, which ignores permissions.
    let out = hone().args(["demo", "--json", "--presses", "1", "--state"]).arg(file.join("state")).output().unwrap();
    fails(&out, 6, &[]);
}

#[test]
fn a_modality_the_model_does_not_take_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("s.csv");
    fs::write(&csv, "x\n1\n").unwrap();
    fails(&run_with(&["--sensor".as_ref(), csv.as_os_str()]), 2, &["sensor", "image, audio, text"]);
}

#[test]
fn an_empty_text_and_no_presses_are_usage_errors() {
    fails(&run_with(&["--text".as_ref(), " ".as_ref()]), 2, &["--text is empty"]);
    fails(&hone().args(["demo", "--presses", "0"]).output().unwrap(), 2, &["--presses"]);
}

#[test]
fn a_directory_of_data_sets_names_them() {
    let mut eval = hone();
    eval.arg("eval").arg(bundle()).arg("--data").arg(model_dir().join("worlds/new-language"));
    fails(&eval.output().unwrap(), 3, &["new-language", "de, es, fr, it"]);
}
