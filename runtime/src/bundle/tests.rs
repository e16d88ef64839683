//! What a bundle refuses, and that it is never a panic.
use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::*;
use crate::{Class, Classified};

const CREATED: &str = "2026-11-23T18:00:00Z";

fn small() -> Bundle {
    let mut manifest = Manifest::new("tiny", "1.2.3", CREATED);
    manifest.min_runtime = "0.1.0".into();
    manifest.inputs.push(Port {
        name: "image".into(),
        dtype: crate::DType::F32,
        shape: vec![Dim::Fixed(1), Dim::Symbol("N".into())],
        modality: Some("image".into()),
        of: None,
    });
    let state = |name: &str| Port {
        name: name.into(),
        dtype: crate::DType::F32,
        shape: vec![Dim::Fixed(1), Dim::Fixed(4)],
        modality: None,
        of: None,
    };
    manifest.inputs.push(state("h"));
    manifest.outputs.push(state("h2"));
    manifest.graphs.push(GraphEntry {
        name: "main".into(),
        path: "onnx/model.onnx".into(),
        role: "main".into(),
        state: vec![StateEntry { input: "h".into(), output: "h2".into(), init: "zeros".into() }],
    });
    manifest.metrics.insert("accuracy".into(), 0.875);
    manifest.limits.peak_bytes = Some(1 << 20);
    let mut writer = BundleWriter::new(manifest);
    writer.add("onnx/model.onnx", "graph", (0..200u8).collect::<Vec<u8>>()).unwrap();
    writer.add("config.json", "config", br#"{"id2label":{"0":"no","1":"yes"}}"#.to_vec()).unwrap();
    writer.add("README.md", "card", b"# tiny".to_vec()).unwrap();
    writer.add("train/recipe.json", "recipe", recipe("[0.5,0.5]")).unwrap();
    writer.add("empty", "config", vec![]).unwrap();
    writer.finish().unwrap()
}

fn recipe(prior: &str) -> Vec<u8> {
    format!(r#"{{"task":"classification","feature":"z","logits":"y","mean":[0],"std":[1],"prior":{prior}}}"#).into()
}

fn parts(bundle: &Bundle) -> Vec<(String, Cow<'static, [u8]>)> {
    bundle.each_file().unwrap().into_iter().map(|(p, b)| (p.to_string(), Cow::Owned(b.into_owned()))).collect()
}

/// The small bundle with its manifest object changed and sealed again, so that only the rule under test can refuse it.
fn with_manifest(change: impl Fn(&mut serde_json::Value)) -> Result<Bundle, BundleError> {
    let bundle = small();
    let mut value: serde_json::Value = serde_json::from_slice(bundle.manifest_bytes()).unwrap();
    change(&mut value);
    value.as_object_mut().unwrap().remove("seal");
    let seal = manifest::sha256_hex(&serde_jcs::to_vec(&value).unwrap());
    value["seal"] = seal.into();
    let mut files = parts(&bundle);
    files[0].1 = Cow::Owned(serde_jcs::to_vec(&value).unwrap());
    Bundle::from_files(files)
}

fn on_disk() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.hone");
    small().write_dir(&path, Overwrite::Refuse).unwrap();
    (dir, path)
}

/// A small repeatable generator (SplitMix64), so that a failure names its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

#[test]
fn what_was_written_opens_from_directory_zip_and_memory_with_the_same_content() {
    let bundle = small();
    let (dir, path) = on_disk();
    let zip = dir.path().join("tiny.zip");
    bundle.write_zip(&zip, Overwrite::Refuse).unwrap();
    for opened in
        [Bundle::open(&path).unwrap(), Bundle::open(&zip).unwrap(), Bundle::from_files(parts(&bundle)).unwrap()]
    {
        assert_eq!(opened.manifest(), bundle.manifest());
        assert_eq!(opened.digest(), bundle.digest());
        assert_eq!(opened.read("onnx/model.onnx").unwrap(), (0..200u8).collect::<Vec<u8>>());
        assert_eq!(opened.text("README.md").unwrap(), "# tiny");
        assert_eq!(opened.labels().unwrap(), ["no", "yes"]);
        assert_eq!(opened.recipe().unwrap().prior, Some(vec![0.5, 0.5]));
        assert!(matches!(opened.read("manifest.json"), Err(BundleError::NoSuchFile { .. })));
        assert!(matches!(opened.read("../tiny.zip"), Err(BundleError::NoSuchFile { .. })));
    }
}

#[test]
fn write_open_write_is_byte_identical_as_zip_and_as_directory() {
    let (dir, path) = on_disk();
    let first = small().to_zip().unwrap();
    let opened = Bundle::open(&path).unwrap();
    assert_eq!(opened.to_zip().unwrap(), first);
    assert_eq!(BundleWriter::from_bundle(&opened).unwrap().finish().unwrap().to_zip().unwrap(), first);
    let (zip, unpacked) = (dir.path().join("a.zip"), dir.path().join("b.hone"));
    pack(&path, &zip, Overwrite::Refuse).unwrap();
    unpack(&zip, &unpacked, Overwrite::Refuse).unwrap();
    assert_eq!(fs::read(&zip).unwrap(), first);
    assert_eq!(Bundle::open(&unpacked).unwrap().to_zip().unwrap(), first);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "a stage was left behind: {left:?}");
}

#[test]
fn the_manifest_of_this_version_has_exactly_these_bytes() {
    let golden = include_str!("testdata/manifest.json");
    assert_eq!(String::from_utf8(small().manifest_bytes().to_vec()).unwrap(), golden);
}

#[test]
fn every_single_bit_flip_of_the_manifest_is_refused() {
    let bundle = small();
    let files = parts(&bundle);
    for bit in 0..bundle.manifest_bytes().len() * 8 {
        let mut bad = files.clone();
        bad[0].1.to_mut()[bit / 8] ^= 1 << (bit % 8);
        let e = Bundle::from_files(bad).expect_err(&format!("bit {bit} passed"));
        assert!(matches!(e.class(), Class::Invalid | Class::Unsupported));
    }
}

#[test]
fn two_thousand_random_flips_of_the_files_are_refused_and_name_the_file() {
    let files = parts(&small());
    let mut random = Random(1);
    let mut flips = 0;
    while flips < 2000 {
        let mut bad = files.clone();
        let (path, bytes) = &mut bad[1 + random.below(files.len() - 1)];
        if bytes.is_empty() {
            continue;
        }
        let at = random.below(bytes.len() * 8);
        bytes.to_mut()[at / 8] ^= 1 << (at % 8);
        let path = path.clone();
        let e = Bundle::from_files(bad).unwrap_err();
        assert!(matches!(&e, BundleError::Digest { path: p, .. } if *p == path), "{e}");
        flips += 1;
    }
}

#[test]
fn every_byte_flip_of_a_zip_is_refused_or_changes_no_file() {
    let bundle = small();
    let zip = bundle.to_zip().unwrap();
    let mut refused = 0;
    for at in 0..zip.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut bad = zip.clone();
            bad[at] ^= mask;
            match Bundle::from_zip(bad) {
                Err(_) => refused += 1,
                // Times and modes of entries decide nothing.
                Ok(opened) => assert_eq!(opened.to_zip().unwrap(), zip, "byte {at}"),
            }
        }
    }
    assert!(refused > zip.len(), "only {refused} refused");
}

#[test]
fn a_zip_cut_at_any_length_is_an_error() {
    let zip = small().to_zip().unwrap();
    for length in 0..zip.len() {
        Bundle::from_zip(zip[..length].to_vec()).unwrap_err();
    }
    let mut longer = zip.clone();
    longer.push(0);
    Bundle::from_zip(longer).unwrap_err();
}

#[test]
fn unlisted_missing_resized_and_doubled_files_are_named() {
    let files = parts(&small());
    let mut bad = files.clone();
    bad.push(("extra".into(), Cow::Borrowed(b"x")));
    assert!(matches!(Bundle::from_files(bad), Err(BundleError::Unlisted { path }) if path == "extra"));
    for i in 1..files.len() {
        let mut bad = files.clone();
        let (name, _) = bad.remove(i);
        assert!(matches!(Bundle::from_files(bad), Err(BundleError::Missing { path }) if path == name));
        let mut bad = files.clone();
        bad[i].1.to_mut().push(0);
        assert!(matches!(Bundle::from_files(bad), Err(BundleError::Size { path, .. }) if path == name));
    }
    let mut bad = files.clone();
    bad.push(bad[2].clone());
    assert!(matches!(Bundle::from_files(bad), Err(BundleError::Duplicate { .. })));
    let e = Bundle::from_files(files[1..].to_vec()).unwrap_err();
    assert!(matches!(e, BundleError::ManifestMissing { .. }));
    let mut bad = files;
    bad.push(("readme.MD".into(), Cow::Borrowed(b"x")));
    assert!(matches!(Bundle::from_files(bad), Err(BundleError::Duplicate { .. })));
}

#[test]
fn sealed_manifests_that_break_a_rule_are_refused_by_that_rule() {
    with_manifest(|_| {}).unwrap();
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change); 23] = [
        ("schema", |m| m["schema"] = "hone.bundle/2".into()),
        ("name", |m| m["name"] = "../x".into()),
        ("version", |m| m["version"] = "1.2".into()),
        ("created", |m| m["created"] = "2026-13-23T18:00:00Z".into()),
        ("99.0.0", |m| m["min_runtime"] = "99.0.0".into()),
        ("unknown field", |m| m["surprise"] = 1.into()),
        ("dimension of 0", |m| m["inputs"][0]["shape"][0] = 0.into()),
        ("f33", |m| m["inputs"][0]["dtype"] = "f33".into()),
        ("not another input", |m| m["inputs"][0]["of"] = serde_json::json!(["image"])),
        ("at least one graph", |m| m["graphs"] = serde_json::json!([])),
        ("not among files", |m| m["graphs"][0]["path"] = "onnx/other.onnx".into()),
        ("zeros", |m| m["graphs"][0]["state"][0]["init"] = "ones".into()),
        ("'g' is not among inputs", |m| m["graphs"][0]["state"][0]["in"] = "g".into()),
        ("'h' is not among outputs", |m| m["graphs"][0]["state"][0]["out"] = "h".into()),
        ("made from a sample", |m| m["inputs"][1]["modality"] = "sensor".into()),
        ("another type or rank", |m| m["outputs"][0]["dtype"] = "i64".into()),
        ("carried twice", |m| {
            let first = m["graphs"][0]["state"][0].clone();
            m["graphs"][0]["state"].as_array_mut().unwrap().push(first);
        }),
        ("base_digest", |m| m["base_digest"] = "00".repeat(32).into()),
        ("not in sorted order", |m| m["files"].as_array_mut().unwrap().reverse()),
        ("hexadecimal", |m| m["files"][0]["sha256"] = "AB".repeat(32).into()),
        ("limit", |m| m["files"][0]["size"] = (1u64 << 53).into()),
        ("..", |m| m["files"][0]["path"] = "../../etc/passwd".into()),
        ("list itself", |m| m["files"][0]["path"] = "Manifest.json".into()),
    ];
    for (sentence, change) in cases {
        let e = with_manifest(change).unwrap_err();
        assert!(e.to_string().contains(sentence), "expected '{sentence}' in: {e}");
    }
}

#[test]
fn a_manifest_that_is_not_canonical_is_refused_with_the_place() {
    let files = parts(&small());
    let text = String::from_utf8(files[0].1.to_vec()).unwrap();
    for bad in [
        format!("{text}\n"),
        format!(" {text}"),
        text.replacen(':', ": ", 1),
        text.replace("0.875", "0.8750"),
        text.replacen('{', "{\"a\":1,\"a\":1,", 1),
        text.replace("tiny", "\\u0074iny"),
    ] {
        let mut changed = files.clone();
        changed[0].1 = Cow::Owned(bad.into_bytes());
        assert!(matches!(Bundle::from_files(changed), Err(BundleError::ManifestNotCanonical { .. })));
    }
    for bad in ["", "{", "[]", "null", "\u{feff}{}", &"[".repeat(100_000)] {
        let mut changed = files.clone();
        changed[0].1 = Cow::Owned(bad.as_bytes().to_vec());
        Bundle::from_files(changed).unwrap_err();
    }
}

#[cfg(unix)]
#[test]
fn symbolic_links_hard_links_and_special_files_in_a_directory_are_refused() {
    use std::os::unix::fs::symlink;

    let refused = |prepare: &dyn Fn(&Path), expected: &str| {
        let (_dir, path) = on_disk();
        prepare(&path);
        let e = Bundle::open(&path).unwrap_err();
        assert!(matches!(&e, BundleError::Link { kind, .. } if *kind == expected), "{e}");
    };
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("card");
    fs::write(&secret, "# tiny").unwrap();
    // The content is right in each case: only the link can be the reason.
    refused(
        &|p| {
            fs::remove_file(p.join("README.md")).unwrap();
            symlink(&secret, p.join("README.md")).unwrap();
        },
        "symbolic link",
    );
    refused(
        &|p| {
            fs::rename(p.join("onnx"), outside.path().join("onnx")).unwrap();
            symlink(outside.path().join("onnx"), p.join("onnx")).unwrap();
        },
        "symbolic link",
    );
    refused(
        &|p| {
            fs::remove_file(p.join("README.md")).unwrap();
            fs::hard_link(&secret, p.join("README.md")).unwrap();
        },
        "hard link",
    );
    refused(
        &|p| {
            std::os::unix::net::UnixListener::bind(p.join("socket")).unwrap();
        },
        "special file",
    );
    // The directory itself may be reached through a link: that is how a release is switched.
    let (dir, path) = on_disk();
    symlink(&path, dir.path().join("current")).unwrap();
    Bundle::open(dir.path().join("current")).unwrap();
}

#[test]
fn a_sparse_or_huge_file_is_refused_by_its_size_without_being_read() {
    let (_dir, path) = on_disk();
    let file = fs::OpenOptions::new().write(true).open(path.join("onnx/model.onnx")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(Bundle::open(&path), Err(BundleError::Size { found, .. }) if found == 1 << 40));
    let (_dir, path) = on_disk();
    let file = fs::OpenOptions::new().write(true).open(path.join("manifest.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(Bundle::open(&path), Err(BundleError::TooLarge { .. })));
    let (dir, _) = on_disk();
    let zip = dir.path().join("huge.zip");
    fs::File::create(&zip).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(Bundle::open(&zip), Err(BundleError::TooLarge { .. })));
}

#[test]
fn a_file_changed_after_opening_is_refused_when_read() {
    let (_dir, path) = on_disk();
    let bundle = Bundle::open(&path).unwrap();
    fs::write(path.join("README.md"), "# tinY").unwrap();
    assert!(matches!(bundle.read("README.md"), Err(BundleError::Digest { .. })));
    fs::write(path.join("README.md"), "# tiny and more").unwrap();
    assert!(matches!(bundle.read("README.md"), Err(BundleError::Size { .. })));
}

#[test]
fn zips_with_hidden_doubled_compressed_or_escaping_entries_are_refused() {
    let files = parts(&small());
    let borrowed: Vec<(&str, &[u8])> = files.iter().map(|(p, b)| (p.as_str(), b.as_ref())).collect();
    let escaping = stored::write([("../x", &b"x"[..])]).unwrap();
    assert!(matches!(Bundle::from_zip(escaping), Err(BundleError::Path { .. })));
    let absolute = stored::write([("/etc/passwd", &b"x"[..])]).unwrap();
    assert!(Bundle::from_zip(absolute).is_err());

    // Bytes between the entries and the central directory that no entry covers: shift the directory by hand.
    let zip = stored::write(borrowed.iter().copied()).unwrap();
    let eocd = zip.len() - 22;
    let directory = u32::from_le_bytes(zip[eocd + 16..eocd + 20].try_into().unwrap());
    let mut hidden = zip[..directory as usize].to_vec();
    hidden.extend_from_slice(b"hidden");
    hidden.extend_from_slice(&zip[directory as usize..]);
    let at = hidden.len() - 6;
    hidden[at..at + 4].copy_from_slice(&(directory + 6).to_le_bytes());
    let e = Bundle::from_zip(hidden).unwrap_err();
    assert!(e.to_string().contains("hidden"), "{e}");

    // Two entries of one name: rename 'empty' (5 bytes) wherever it stands to a name of the same length.
    let doubled = stored::write(borrowed.iter().copied().chain([("emptz", &b""[..])])).unwrap();
    let mut bytes = doubled.clone();
    for i in 0..bytes.len() - 5 {
        if &bytes[i..i + 5] == b"emptz" {
            bytes[i + 4] = b'y';
        }
    }
    assert!(Bundle::from_zip(doubled).is_err());
    let e = Bundle::from_zip(bytes).unwrap_err();
    assert!(e.to_string().contains("same name"), "{e}");

    // A symbolic link: the external attributes of the first central entry say S_IFLNK.
    let mut link = zip.clone();
    let attributes = directory as usize + 38;
    link[attributes..attributes + 4].copy_from_slice(&(0o120777u32 << 16).to_le_bytes());
    assert!(matches!(Bundle::from_zip(link), Err(BundleError::Link { .. })));
}

#[test]
fn a_write_refuses_an_existing_target_unless_told_and_never_replaces_what_is_not_a_bundle() {
    let (dir, path) = on_disk();
    let bundle = small();
    let e = bundle.write_dir(&path, Overwrite::Refuse).unwrap_err();
    assert!(matches!(e, BundleError::Exists { .. }));
    assert_eq!(e.class(), Class::Usage);
    bundle.write_dir(&path, Overwrite::Replace).unwrap();
    Bundle::open(&path).unwrap();
    let photos = dir.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("one"), "x").unwrap();
    assert!(matches!(bundle.write_dir(&photos, Overwrite::Replace), Err(BundleError::WillNotReplace { .. })));
    assert!(matches!(bundle.write_zip(&photos, Overwrite::Replace), Err(BundleError::WillNotReplace { .. })));
    assert_eq!(fs::read_to_string(photos.join("one")).unwrap(), "x");
    let missing = dir.path().join("no/such/place.zip");
    assert_eq!(bundle.write_zip(&missing, Overwrite::Refuse).unwrap_err().class(), Class::Store);
}

#[test]
fn the_base_digest_ignores_the_card_and_adapters_and_nothing_else() {
    let bundle = small();
    let changed = |path: &str| {
        let mut writer = BundleWriter::from_bundle(&bundle).unwrap();
        writer.add(path, "x", b"changed".to_vec()).unwrap();
        writer.finish().unwrap().base_digest().to_string()
    };
    assert_eq!(changed("README.md"), bundle.base_digest());
    assert_eq!(changed("adapters/factory/adapter_model.safetensors"), bundle.base_digest());
    for path in ["onnx/model.onnx", "config.json", "train/recipe.json", "docs/README.md", "adapters.json"] {
        assert_ne!(changed(path), bundle.base_digest(), "{path}");
    }
    // The recipe of the format document, followed by hand.
    let mut digests: Vec<String> = ["onnx/model.onnx", "config.json", "train/recipe.json", "empty"]
        .iter()
        .map(|p| manifest::sha256_hex(&bundle.read(p).unwrap()) + "\n")
        .collect();
    digests.sort();
    assert_eq!(manifest::sha256_hex(digests.concat().as_bytes()), bundle.base_digest());
}

#[test]
fn a_recipe_whose_prior_does_not_fit_the_labels_is_refused() {
    let mut writer = BundleWriter::from_bundle(&small()).unwrap();
    writer.add("train/recipe.json", "recipe", recipe("[0.25,0.25,0.5]")).unwrap();
    let e = writer.finish().unwrap().recipe().unwrap_err();
    assert!(e.to_string().contains("prior has 3 shares"), "{e}");
}
