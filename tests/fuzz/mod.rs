//! A short, repeatable run of what `cargo fuzz` does at length: the same changes to the same models, from fixed seeds.
//!
//! The targets for cargo-fuzz are `preflight.rs` and `import.rs` here; `Cargo.toml` says how to run them. An input they
//! find goes to `regressions/` with the fix.
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

mod drive;
mod mutate;
mod seeds;

use drive::{Reached, import_and_run};
use mutate::Random;

/// Models made by changes in the short run.
const MUTATIONS: usize = 10_000;
/// Changed models kept to be changed again.
const KEPT: usize = 200;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

/// The files of a folder by name.
fn files(name: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder(name)).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(p).unwrap())).collect()
}

#[test]
fn the_corpus_is_what_its_recipe_makes_and_every_model_of_it_runs() {
    let made: BTreeMap<String, Vec<u8>> = seeds::seeds().into_iter().map(|(n, b)| (format!("{n}.onnx"), b)).collect();
    let wrong: Vec<_> = made.iter().map(|(n, b)| (n, import_and_run(b))).filter(|(_, r)| *r != Reached::Ran).collect();
    assert!(wrong.is_empty(), "models that do not run: {wrong:?}");
    if std::env::var_os("HONE_WRITE_CORPUS").is_some() {
        files("corpus").keys().for_each(|n| fs::remove_file(folder("corpus").join(n)).unwrap());
        made.iter().for_each(|(n, b)| fs::write(folder("corpus").join(n), b).unwrap());
    }
    let there = files("corpus");
    let names = |m: &BTreeMap<String, Vec<u8>>| m.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&there), names(&made));
    for (name, bytes) in &made {
        assert!(there[name] == *bytes, "corpus/{name} is not what seeds.rs makes; HONE_WRITE_CORPUS=1 writes it anew");
    }
}

#[test]
fn what_fuzzing_has_found_stays_found() {
    for (name, bytes) in files("regressions") {
        assert!(catch_unwind(|| import_and_run(&bytes)).is_ok(), "regressions/{name}: panicked");
    }
}

#[test]
fn thousands_of_models_that_are_nearly_right_never_cause_a_panic() {
    let seeds = seeds::seeds();
    let mut random = Random::new(28);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut reached: BTreeMap<Reached, usize> = BTreeMap::new();
    for i in 0..MUTATIONS {
        let any = |random: &mut Random, kept: &[Vec<u8>]| -> Vec<u8> {
            let n = random.below(seeds.len() + kept.len());
            seeds.get(n).map_or_else(|| kept[n - seeds.len()].clone(), |s| s.1.clone())
        };
        let (model, donor) = (any(&mut random, &kept), any(&mut random, &kept));
        let changed = mutate::mutate(&model, Some(&donor), &mut random);
        match catch_unwind(AssertUnwindSafe(|| import_and_run(&changed))) {
            Ok(how) => {
                *reached.entry(how).or_default() += 1;
                // What still runs is changed further, so that changes add up.
                if how == Reached::Ran && kept.len() < KEPT {
                    kept.push(changed);
                } else if how == Reached::Ran {
                    let at = random.below(KEPT);
                    kept[at] = changed;
                }
            }
            Err(_) => {
                let at = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{i}.onnx"));
                fs::write(&at, &changed).unwrap();
                panic!("model {i} caused a panic; it is at {}", at.display());
            }
        }
    }
    println!("{reached:?}");
    for how in [Reached::Refused, Reached::Imported, Reached::Ran] {
        let n = reached.get(&how).copied().unwrap_or(0);
        assert!(n > MUTATIONS / 20, "{n} of {MUTATIONS} models were {how:?}: the changes are too coarse or too tame");
    }
}
