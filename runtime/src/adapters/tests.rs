use std::collections::BTreeSet;
use std::time::Duration;

use ::safetensors::tensor::{Dtype, SafeTensors};
use tempfile::TempDir;

use super::*;
use crate::journal::crash::{child_dir, kill_after, moments, start_child, tell};

const BASE: &str = "5f1c2a3b4d";

fn adapter(seed: u32) -> Adapter {
    Adapter {
        provenance: Provenance {
            base_digest: BASE.into(),
            objective: "posterior".into(),
            presses: u64::from(seed),
            journal_seq: 2 * u64::from(seed),
            lambda: 0.03,
            delta: 0.2,
            epsilon: 0.1,
            scope: "head".into(),
            order: 0,
            parent: None,
            body: None,
            classes: None,
            retain: Default::default(),
            random_features: 0,
        },
        classes: 2,
        columns: 3,
        theta: (0..6).map(|i| (seed * 10 + i) as f32 / 8.0).collect(),
        tuned: None,
    }
}

fn fresh() -> (TempDir, AdapterStore) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::at(dir.path());
    state.create().unwrap();
    (dir, AdapterStore::new(&state, BASE).unwrap())
}

#[test]
fn a_published_adapter_is_the_one_in_use_and_reads_back_bit_for_bit() {
    let (dir, store) = fresh();
    assert_eq!(store.current().unwrap(), None);
    let id = store.publish(&adapter(1)).unwrap();
    let found = store.current().unwrap().unwrap();
    assert_eq!(found.theta, adapter(1).theta);
    assert_eq!((found.classes, found.columns), (2, 3));
    assert_eq!(found.provenance, Provenance { order: 1, parent: None, ..adapter(1).provenance });
    let link = fs::read_link(dir.path().join("current")).unwrap();
    assert_eq!(link, Path::new("adapters").join(BASE).join(id.as_str()));
    assert!(dir.path().join("current").join("adapter_config.json").is_file());
    let second = store.publish(&adapter(2)).unwrap();
    assert_eq!(store.current().unwrap().unwrap().provenance.parent, Some(id.clone()));
    let listed: Vec<_> = store.list().unwrap().into_iter().map(|l| (l.id, l.current)).collect();
    assert_eq!(listed, [(id, false), (second, true)]);
}

#[test]
fn the_files_are_peft_shaped_and_readable_by_any_safetensors_reader() {
    let (dir, store) = fresh();
    store.publish(&adapter(3)).unwrap();
    let config = fs::read(dir.path().join("current/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["peft_type"], "HONE_HEAD");
    assert_eq!(config["base_model_name_or_path"], BASE);
    assert_eq!(config["hone"]["lambda"], 0.03);
    assert_eq!(config["hone"]["scope"], "head");
    let bytes = fs::read(dir.path().join("current/adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.names(), [THETA]);
    let theta = tensors.tensor("base_model.model.head.theta").unwrap();
    assert_eq!((theta.dtype(), theta.shape()), (Dtype::F32, &[2, 3][..]));
    assert_eq!(&theta.data()[..4], 3.75f32.to_le_bytes());
}

/// A rollback as the loop makes it.
fn back(store: &AdapterStore) -> Result<Option<AdapterId>, AdapterError> {
    let target = store.before()?;
    store.switch(target.as_ref())?;
    Ok(target)
}

#[test]
fn rollback_goes_back_publication_by_publication_to_factory() {
    let (_dir, store) = fresh();
    let ids: Vec<AdapterId> = (1..=3).map(|n| store.publish(&adapter(n)).unwrap()).collect();
    assert_eq!(back(&store).unwrap().as_ref(), Some(&ids[1]));
    assert_eq!(store.current_id().unwrap().as_ref(), Some(&ids[1]));
    // Published after a rollback: its parent is what was in use, not the newest.
    let fourth = store.publish(&adapter(4)).unwrap();
    assert_eq!(store.load(&fourth).unwrap().provenance.order, 4);
    assert_eq!(back(&store).unwrap().as_ref(), Some(&ids[1]));
    assert_eq!(back(&store).unwrap().as_ref(), Some(&ids[0]));
    assert_eq!(back(&store).unwrap(), None);
    assert_eq!(store.current().unwrap(), None);
    assert!(matches!(back(&store), Err(AdapterError::AtFactory)));
    store.switch(Some(&ids[2])).unwrap();
    assert_eq!(store.current().unwrap().unwrap().theta, adapter(3).theta);
    store.switch(None).unwrap();
    assert_eq!(store.current().unwrap(), None);
}

#[test]
fn rollback_passes_over_a_removed_parent_to_the_one_before() {
    let (_dir, store) = fresh();
    let ids: Vec<AdapterId> = (1..=3).map(|n| store.publish(&adapter(n)).unwrap()).collect();
    assert!(matches!(store.remove(&ids[2]), Err(AdapterError::InUse { .. })));
    store.remove(&ids[1]).unwrap();
    assert!(matches!(store.remove(&ids[1]), Err(AdapterError::Unknown { .. })));
    assert!(matches!(store.switch(Some(&ids[1])), Err(AdapterError::Unknown { .. })));
    assert_eq!(back(&store).unwrap().as_ref(), Some(&ids[0]));
}

#[test]
fn every_flipped_bit_and_every_cut_of_either_file_is_refused() {
    let (dir, store) = fresh();
    let id = store.publish(&adapter(1)).unwrap();
    let home = dir.path().join("adapters").join(BASE).join(id.as_str());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = home.join(name);
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bad).unwrap();
            assert!(matches!(store.load(&id), Err(AdapterError::Damaged { .. })), "{name} bit {bit}");
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(matches!(store.load(&id), Err(AdapterError::Damaged { .. })), "{name} cut at {length}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(store.current(), Err(AdapterError::Damaged { .. })));
        assert!(matches!(store.switch(Some(&id)), Err(AdapterError::Damaged { .. })));
        assert_eq!(store.list().unwrap()[0].provenance, None);
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(store.current().unwrap().unwrap().theta, adapter(1).theta);
}

#[test]
fn a_file_that_has_its_digest_and_still_makes_no_sense_is_refused() {
    let (dir, store) = fresh();
    let good = config_text(&adapter(1), BASE).unwrap();
    let tensors = encode(&adapter(1)).unwrap();
    let mut not_finite = tensors.clone();
    let end = not_finite.len();
    not_finite[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let other_base = good.replace(BASE, "0000000000");
    for (tensors, config) in [
        (b"no tensors".to_vec(), good.clone()),
        (not_finite, good),
        (tensors.clone(), "{}".into()),
        (tensors, other_base),
    ] {
        let id = AdapterId::of(&tensors, config.as_bytes());
        let home = dir.path().join("adapters").join(BASE).join(id.as_str());
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join(TENSOR_FILE), &tensors).unwrap();
        fs::write(home.join(CONFIG_FILE), &config).unwrap();
        assert!(matches!(store.load(&id), Err(AdapterError::Damaged { .. })), "{config}");
    }
}

#[test]
fn an_adapter_of_another_bundle_is_said_and_replaced_by_publishing() {
    let (dir, store) = fresh();
    store.publish(&adapter(1)).unwrap();
    let other = AdapterStore::new(&StateDir::at(dir.path()), "eeeeeeeeee").unwrap();
    let e = other.current().unwrap_err();
    assert!(matches!(e, AdapterError::OtherBase { .. }));
    assert_eq!(e.class(), Class::Invalid);
    let mut theirs = adapter(2);
    assert!(matches!(other.publish(&theirs), Err(AdapterError::Unfit { field: "base_digest", .. })));
    theirs.provenance.base_digest = "eeeeeeeeee".into();
    other.publish(&theirs).unwrap();
    assert_eq!(other.current().unwrap().unwrap().provenance.parent, None);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn values_that_are_no_adapter_are_refused_and_leave_the_one_in_use() {
    let (_dir, store) = fresh();
    let id = store.publish(&adapter(1)).unwrap();
    let refuse = |change: fn(&mut Adapter)| {
        let mut bad = adapter(2);
        change(&mut bad);
        assert!(matches!(store.publish(&bad), Err(AdapterError::Unfit { .. })));
        assert_eq!(store.current_id().unwrap().as_ref(), Some(&id));
    };
    refuse(|a| a.theta[2] = f32::NAN);
    refuse(|a| a.columns = 4);
    refuse(|a| a.classes = usize::MAX);
    refuse(|a| a.provenance.lambda = f64::INFINITY);
    for base in ["../../etc", "", "short", "UPPERCASE0", "with/slash0"] {
        assert!(AdapterStore::new(&StateDir::at("/nowhere"), base).is_err(), "{base:?}");
    }
}

#[test]
fn what_is_no_link_of_ours_is_not_followed() {
    let (dir, store) = fresh();
    let current = dir.path().join("current");
    for target in ["/etc/passwd", "adapters/5f1c2a3b4d/../../x", "adapters/5f1c2a3b4d/0123", "elsewhere"] {
        std::os::unix::fs::symlink(target, &current).unwrap();
        assert!(matches!(store.current(), Err(AdapterError::NotALink { .. })), "{target}");
        fs::remove_file(&current).unwrap();
    }
    fs::write(&current, b"a file").unwrap();
    assert!(matches!(store.current(), Err(AdapterError::NotALink { .. })));
    store.switch(None).unwrap();
    assert_eq!(store.current().unwrap(), None);
}

#[test]
fn a_switch_killed_at_any_moment_leaves_the_old_adapter_or_the_new_one() {
    if let Some(dir) = child_dir() {
        let state = StateDir::at(dir);
        let _lock = state.lock().unwrap();
        let store = AdapterStore::new(&state, BASE).unwrap();
        let begun = store.current().unwrap().map_or(0, |a| a.provenance.presses as u32);
        tell(&format!("at {begun}"));
        for n in begun + 1.. {
            tell(&format!("to {n}"));
            store.publish(&adapter(n)).unwrap();
            tell(&format!("at {n}"));
            // Few enough that listing them stays quick.
            for old in store.list().unwrap().iter().rev().skip(3) {
                store.remove(&old.id).unwrap();
            }
        }
    }
    let (dir, store) = fresh();
    let name = "adapters::tests::a_switch_killed_at_any_moment_leaves_the_old_adapter_or_the_new_one";
    let mut unfinished = 0;
    let mut published = BTreeSet::new();
    for wait in moments(3, 30_000).take(100) {
        let lines = kill_after(start_child(name, dir.path()), "at ", Duration::from_micros(wait));
        let number = |prefix: &str| lines.iter().rev().find_map(|l| l.strip_prefix(prefix)?.parse::<u32>().ok());
        let (at, to) = (number("at ").unwrap(), number("to ").unwrap_or(0));
        let found = store.current().unwrap().map_or(0, |a| {
            assert_eq!(a.theta, adapter(a.provenance.presses as u32).theta);
            a.provenance.presses as u32
        });
        assert!(found == at || found == to, "found {found}, was at {at}, on the way to {to}");
        unfinished += u32::from(to > at);
        published.insert(found);
    }
    assert!(unfinished > 20, "only {unfinished} of 100 kills came while publishing");
    assert!(published.len() > 20);
    // What the kills left lying about is swept up by the next publication.
    store.publish(&adapter(1_000_000)).unwrap();
    for place in [dir.path().to_path_buf(), dir.path().join("adapters").join(BASE)] {
        let left = fs::read_dir(&place).unwrap().flatten();
        assert_eq!(left.filter(|e| e.file_name().to_string_lossy().starts_with(UNFINISHED)).count(), 0);
    }
    println!("{unfinished} of 100 kills came while publishing");
}
