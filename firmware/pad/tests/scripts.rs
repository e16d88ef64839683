//! Lives of a pad and its host from random bytes: a short, repeatable run of what the fuzz target does at length
//! (`firmware/pad/fuzz`). An input that it finds goes to `REGRESSIONS` with the fix.

mod common;

use common::Rng;
use common::script::{Life, Warm, play};

const SCRIPTS: usize = 3_000;

/// Inputs that once failed.
const REGRESSIONS: &[&[u8]] = &[];

#[test]
fn what_fuzzing_has_found_stays_found() {
    let mut memory: &'static mut Warm = Box::leak(Box::new(Warm::ZEROS));
    for script in REGRESSIONS {
        memory = play(script, memory).1;
    }
}

#[test]
fn whatever_is_forged_lost_or_restarted_each_press_that_was_kept_is_recorded_once() {
    let mut memory: &'static mut Warm = Box::leak(Box::new(Warm::ZEROS));
    let mut rng = Rng::new(7);
    let mut sum = Life::default();
    for _ in 0..SCRIPTS {
        let len = rng.below(600) as usize;
        let script: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
        let (life, back) = play(&script, memory);
        memory = back;
        sum.kept += life.kept;
        sum.overflowed += life.overflowed;
        sum.restarts += life.restarts;
        sum.refused += life.refused;
    }
    println!("{sum:?}");
    assert!(sum.kept > SCRIPTS && sum.overflowed > SCRIPTS / 4, "the scripts are too tame: {sum:?}");
    assert!(sum.restarts > SCRIPTS && sum.refused as usize > SCRIPTS, "the scripts are too tame: {sum:?}");
}
