//! The shipped model against what ONNX Runtime recorded when it was exported.
use std::path::{Path, PathBuf};

use hone_runtime::bundle::npz::read_npz;
use hone_runtime::session::{Session, SessionOptions, difference};
use hone_runtime::tensor::Tensor;

fn model_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/which-digit")
}

type Named = Vec<(String, Tensor)>;

/// Inputs and expected outputs of a recorded case.
fn case(path: &Path) -> (Named, Named) {
    let all = read_npz(&std::fs::read(path).unwrap()).unwrap();
    let named = |prefix: &str| -> Vec<(String, Tensor)> {
        all.iter()
            .filter_map(|(n, t)| n.strip_prefix(prefix).map(|n| (n.to_string(), t.clone())))
            .filter(|(n, _)| n.parse::<usize>().is_err())
            .collect()
    };
    (named("in_"), named("out_"))
}

fn cases(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "npz"))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no recorded cases in {}", dir.display());
    found
}

fn agree(model: &Path, cases_dir: &Path, reference: bool) {
    let options = SessionOptions { reference, ..SessionOptions::default() };
    let mut session = Session::from_onnx(std::fs::read(model).unwrap(), &model.display().to_string(), options).unwrap();
    for path in cases(cases_dir) {
        let (inputs, expected) = case(&path);
        for turn in 0..2 {
            let found = session.run(&inputs).unwrap();
            for (name, want) in &expected {
                let (_, got) = found.iter().find(|(n, _)| n == name).expect("an output of that name");
                let (worst, _) = difference(want, got);
                assert!(worst <= 1e-4, "{} {} {name} turn {turn}: {worst:e}", model.display(), path.display());
            }
        }
    }
}

#[test]
fn all_three_fusions_agree_with_onnx_runtime_to_one_in_ten_thousand() {
    let mut checked = 0;
    for variant in ["attention", "concat", "weighted"] {
        let dir = model_dir().join("variants").join(variant);
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "onnx") {
                let f32 = path.file_name().is_some_and(|n| n == "model.f32.onnx");
                let cases = dir.join(if f32 { "check.f32" } else { "check" });
                agree(&path, &cases, false);
                agree(&path, &cases, true);
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 6, "three fusions, float and int8");
}
