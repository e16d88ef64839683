//! Data of tensors in other files: every known way for a model to reach a file that is not its own.
//!
//! What a model must not reach is a pipe nobody writes to: whoever opens it waits for ever, and the test says so. The
//! program under test is the whole one, because what it opens is what counts.
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use hone_runtime::bundle::{Bundle, Manifest, Overwrite, npz};

use crate::onnx::*;
use crate::support::{fails, hone};

/// Longest a refusal may take.
const LONGEST: Duration = Duration::from_secs(30);

/// `y = x + w` over four floats, `w` elsewhere.
fn model_at(entries: &[(&str, &str)]) -> Vec<u8> {
    let shape = [Dim::Length(4)];
    let t = tensor_external("secret", FLOAT, &[4], entries);
    let parts =
        [(5, t), input("x", &[4]), node("Add", "a", &["x", "secret"], &["y"], &[]), value(12, "y", FLOAT, &shape)];
    model(&graph(&parts))
}

fn weights_file() -> Vec<u8> {
    [1f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn pipe(at: &Path) {
    assert!(Command::new("mkfifo").arg(at).status().unwrap().success(), "mkfifo makes no pipe at {}", at.display());
}

/// Waits for a program that must not wait for anything.
fn finished(mut child: Child, what: &str) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LONGEST {
            child.kill().unwrap();
            panic!("{what}: opened a file it must not open, or never ends");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn exported(dir: &Path, what: &str) -> Output {
    let mut c = hone();
    c.arg("export").arg(dir.join("m.onnx")).arg("-o").arg(dir.join("m.hone")).arg("--force");
    c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    finished(c.spawn().unwrap(), what)
}

/// A bundle of that graph with one more file, listed or not.
fn bundle_of(dir: &Path, onnx: Vec<u8>, listed: Option<(&str, Vec<u8>)>) -> std::path::PathBuf {
    let mut manifest = Manifest::new("m", "1.0.0", "2026-01-01T00:00:00Z");
    let entry = |path: &str| hone_runtime::bundle::GraphEntry {
        name: "main".into(),
        path: path.into(),
        role: "main".into(),
        state: Vec::new(),
    };
    let port = |name: &str| hone_runtime::bundle::Port {
        name: name.into(),
        dtype: hone_runtime::DType::F32,
        shape: vec![hone_runtime::bundle::Dim::Fixed(4)],
        modality: None,
        of: None,
    };
    manifest.graphs = vec![entry("onnx/model.onnx")];
    manifest.inputs = vec![port("x")];
    manifest.outputs = vec![port("y")];
    let mut writer = hone_runtime::bundle::BundleWriter::new(manifest);
    writer.add("onnx/model.onnx", "graph", onnx).unwrap();
    if let Some((path, bytes)) = listed {
        writer.add(path, "graph", bytes).unwrap();
    }
    let at = dir.join("made.hone");
    writer.finish().unwrap().write_dir(&at, Overwrite::Replace).unwrap();
    at
}

fn inspected(model: &Path, what: &str) -> Output {
    let mut c = hone();
    c.arg("inspect").arg(model).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    finished(c.spawn().unwrap(), what)
}

/// Places a model may name and must not reach, seen from a folder beside which `outside` is a pipe.
const TRICKS: &[&str] = &[
    "../outside",
    "./../outside",
    "sub/../../outside",
    "sub\\..\\..\\outside",
    "..\\outside",
    "..",
    ".",
    "./",
    "",
    "sub",
    "sub/",
    "sub/outside",
    "//outside",
    "file://outside",
    "http://127.0.0.1/outside",
    "\\\\host\\share\\outside",
    "C:outside",
    "outside\0.bin",
    "%2e%2e/outside",
    "~/outside",
    "$HOME/outside",
    "W.bin",
    "w.bin ",
    "w.bin/",
    "w.bin/../../outside",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/environ",
];

#[test]
fn a_model_in_a_bundle_reaches_no_file_that_the_bundle_does_not_list() {
    let dir = tempfile::tempdir().unwrap();
    pipe(&dir.path().join("outside"));
    let absolute = dir.path().join("outside").display().to_string();
    for place in TRICKS.iter().copied().chain([absolute.as_str()]) {
        let bundle = bundle_of(dir.path(), model_at(&[("location", place)]), Some(("onnx/w.bin", weights_file())));
        fails(&inspected(&bundle, place), 3, &["secret"]);
        // A bundle does not hold pipes; what is named lies beside it.
        fs::remove_dir_all(bundle).unwrap();
    }
}

#[test]
fn a_model_that_is_exported_or_opened_reaches_only_plain_files_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("model");
    fs::create_dir_all(inner.join("sub")).unwrap();
    pipe(&dir.path().join("outside"));
    pipe(&inner.join("sub/outside"));
    pipe(&inner.join("pipe.bin"));
    fs::write(inner.join("w.bin"), weights_file()).unwrap();
    fs::write(inner.join("twice.bin"), weights_file()).unwrap();
    fs::hard_link(inner.join("twice.bin"), dir.path().join("other name")).unwrap();
    fs::create_dir(inner.join("folder.bin")).unwrap();
    #[cfg(unix)]
    for (link, to) in [("link.bin", "../outside"), ("near.bin", "w.bin"), ("gone.bin", "nowhere")] {
        std::os::unix::fs::symlink(to, inner.join(link)).unwrap();
    }
    let absolute = dir.path().join("outside").display().to_string();
    let more =
        ["pipe.bin", "twice.bin", "folder.bin", "link.bin", "near.bin", "gone.bin", "m.onnx/", absolute.as_str()];
    for place in TRICKS.iter().copied().chain(more) {
        fs::write(inner.join("m.onnx"), model_at(&[("location", place)])).unwrap();
        fails(&exported(&inner, place), 3, &["secret"]);
        fails(&inspected(&inner.join("m.onnx"), place), 3, &["secret"]);
        assert!(!inner.join("m.hone").exists(), "{place}: a bundle was made");
    }
}

#[test]
fn a_file_much_longer_than_what_the_model_takes_from_it_is_refused_and_not_read() {
    let dir = tempfile::tempdir().unwrap();
    // A hole of sixty-four gibibytes: it takes no room on the disk, and all memory when it is read.
    fs::File::create(dir.path().join("w.bin")).unwrap().set_len(64 << 30).unwrap();
    fs::write(dir.path().join("m.onnx"), model_at(&[("location", "w.bin")])).unwrap();
    fails(&exported(dir.path(), "a file with a hole"), 3, &["secret", "w.bin"]);
}

#[test]
fn offsets_and_lengths_that_are_not_in_the_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let top = u64::MAX.to_string();
    let signed = i64::MAX.to_string();
    let rows: &[&[(&str, &str)]] = &[
        &[("offset", "1")],
        &[("offset", "4096")],
        &[("offset", "-4")],
        &[("offset", &top)],
        &[("offset", &signed)],
        &[("offset", "18446744073709551616")],
        &[("offset", "0x0")],
        &[("offset", "")],
        &[("length", "15")],
        &[("length", "17")],
        &[("length", "0")],
        &[("length", "-16")],
        &[("length", &top)],
        &[("offset", &top), ("length", "16")],
        &[("offset", "8"), ("length", "16")],
    ];
    for row in rows {
        let entries: Vec<(&str, &str)> = [("location", "w.bin")].into_iter().chain(row.iter().copied()).collect();
        let bundle = bundle_of(dir.path(), model_at(&entries), Some(("onnx/w.bin", weights_file())));
        fails(&inspected(&bundle, "an offset"), 3, &["secret"]);
        fs::remove_dir_all(&bundle).unwrap();
        fs::write(dir.path().join("w.bin"), weights_file()).unwrap();
        fs::write(dir.path().join("m.onnx"), model_at(&entries)).unwrap();
        fails(&exported(dir.path(), "an offset"), 3, &["secret"]);
    }
}

#[test]
fn a_small_listed_file_cannot_become_any_amount_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = vec![input("x", &[1]), node("Relu", "r", &["x"], &["y"], &[]), output("y")];
    for i in 0..1000 {
        let t = tensor_external(&format!("copy{i}"), FLOAT, &[1 << 18], &[("location", "w.bin")]);
        parts.push((5, t));
    }
    let bundle = bundle_of(dir.path(), model(&graph(&parts)), Some(("onnx/w.bin", vec![0; 1 << 20])));
    fails(&inspected(&bundle, "a thousand copies"), 3, &["copy4", "w.bin"]);
}

#[test]
fn data_beside_a_model_goes_into_the_bundle_and_the_bundle_opens_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = vec![0xff; 64];
    file.extend(weights_file());
    fs::write(dir.path().join("weights.bin"), &file).unwrap();
    let entries = [("location", "weights.bin"), ("offset", "64"), ("length", "16")];
    fs::write(dir.path().join("m.onnx"), model_at(&entries)).unwrap();
    let out = exported(dir.path(), "a model with its data beside it");
    assert!(out.status.success(), "{}", crate::support::said(&out));
    // Nothing of the folder is needed any more.
    fs::remove_file(dir.path().join("weights.bin")).unwrap();
    let bundle = Bundle::open(dir.path().join("m.hone")).unwrap();
    assert!(bundle.contains("onnx/weights.bin"));
    let mut session = hone_runtime::session::Session::from_bundle(&bundle, Default::default()).unwrap();
    let x = hone_runtime::Tensor::new(&[4], hone_runtime::Data::F32(vec![10.0; 4])).unwrap();
    let out = session.run(&[("x".to_string(), x)]).unwrap();
    assert_eq!(out[0].1.as_f32().unwrap(), [11.0, 12.0, 13.0, 14.0]);
}

#[test]
fn a_plain_file_whose_data_lies_beside_it_is_opened_by_every_verb_that_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    // 32 × 32, so that there is something to quantise.
    let w: Vec<f32> = (0..32 * 32).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect();
    let stored: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(dir.path().join("weights.bin"), &stored).unwrap();
    let t = tensor_external("w", FLOAT, &[32, 32], &[("location", "weights.bin")]);
    let shape = [Dim::Length(1), Dim::Length(32)];
    let parts =
        [(5, t), input("x", &[1, 32]), node("MatMul", "a", &["x", "w"], &["y"], &[]), value(12, "y", FLOAT, &shape)];
    let onnx = model(&graph(&parts));
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::write(at("m.onnx"), &onnx).unwrap();
    let x = hone_runtime::Tensor::f32(&[1, 32], (0..32).map(|i| i as f32 / 32.0).collect()).unwrap();
    fs::write(at("in.npz"), npz::write_npz([("x", &x)]).unwrap()).unwrap();
    let run = |args: &[&str]| {
        let out = hone().args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", crate::support::said(&out));
        String::from_utf8(out.stdout).unwrap()
    };
    run(&["inspect", &at("m.onnx"), "--memory"]);
    run(&["bench", &at("m.onnx"), "--runs", "2"]);
    let y = |model: &str| {
        run(&["run", &at(model), "--tensors", &at("in.npz"), "-o", &at("out.npz")]);
        npz::read_npz(&fs::read(at("out.npz")).unwrap()).unwrap()[0].1.as_f32().unwrap().to_vec()
    };
    let want = y("m.onnx");
    assert!((want[3] - (0..32).map(|k| k as f32 / 32.0 * w[k * 32 + 3]).sum::<f32>()).abs() < 1e-5);
    let said = run(&["quantize", &at("m.onnx"), "-o", &at("small.onnx"), "--scheme", "int8-weights", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["before"]["bytes"], (onnx.len() + stored.len()) as u64);
    // What was made needs nothing beside it.
    fs::remove_file(at("weights.bin")).unwrap();
    for (a, b) in want.iter().zip(y("small.onnx")) {
        assert!((a - b).abs() < 0.05, "{a} {b}");
    }
    let out = hone().args(["inspect", &at("m.onnx")]).output().unwrap();
    fails(&out, 3, &["weights.bin"]);
}

#[test]
fn bytes_without_a_place_have_no_files_beside_them() {
    let onnx = model_at(&[("location", "weights.bin")]);
    let Err(e) = hone_runtime::session::Session::from_onnx(onnx, "m.onnx", Default::default()) else {
        panic!("a file was opened")
    };
    assert!(e.to_string().contains("secret") && e.to_string().contains("weights.bin"), "{e}");
}

#[test]
fn a_bundle_of_two_graphs_keeps_what_the_other_one_needs_when_the_first_is_replaced() {
    let mut manifest = Manifest::new("m", "1.0.0", "2026-01-01T00:00:00Z");
    let entry = |name: &str, path: &str| hone_runtime::bundle::GraphEntry {
        name: name.into(),
        path: path.into(),
        role: name.into(),
        state: Vec::new(),
    };
    manifest.graphs = vec![entry("main", "onnx/model.onnx"), entry("decoder", "onnx/decoder.onnx")];
    let of = |files: &[&str]| {
        let mut parts = vec![input("x", &[4]), node("Relu", "r", &["x"], &["y"], &[]), output("y")];
        let tensor = |f: &&str| (5, tensor_external(f, FLOAT, &[4], &[("location", f)]));
        parts.extend(files.iter().map(tensor));
        model(&graph(&parts))
    };
    let mut writer = hone_runtime::bundle::BundleWriter::new(manifest);
    writer.add("onnx/model.onnx", "graph", of(&["own.bin", "both.bin"])).unwrap();
    writer.add("onnx/decoder.onnx", "graph", of(&["decoder.bin", "both.bin"])).unwrap();
    for file in ["own.bin", "both.bin", "decoder.bin"] {
        writer.add(&format!("onnx/{file}"), "graph", weights_file()).unwrap();
    }
    let small = of(&[]);
    let after = hone_runtime::compress::rebundle(&writer.finish().unwrap(), &small).unwrap();
    assert_eq!(*after.read("onnx/model.onnx").unwrap(), small[..]);
    for (file, stays) in [("own.bin", false), ("both.bin", true), ("decoder.bin", true), ("decoder.onnx", true)] {
        assert_eq!(after.contains(&format!("onnx/{file}")), stays, "{file}");
    }
}
