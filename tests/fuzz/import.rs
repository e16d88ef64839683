//! Models that are nearly right, imported, planned and run.
#![no_main]
#![forbid(unsafe_code)]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

mod drive;
mod mutate;

fuzz_target!(init: let_contained_panics_pass(), |bytes: &[u8]| {
    drive::import_and_run(bytes);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Now and then libFuzzer's own way: what a protobuf can be is more than what the schema says.
    if seed % 16 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let mutated = mutate::mutate(&data[..size], None, &mut mutate::Random::new(u64::from(seed)));
    let n = mutated.len().min(max_size);
    data[..n].copy_from_slice(&mutated[..n]);
    n
});

/// Lets panics of the code that runs foreign operators reach the place where they become errors: libFuzzer would end
/// the process at any panic, also at one that is caught.
fn let_contained_panics_pass() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let contained = |file: &str| ["tract", "ndarray"].iter().any(|name| file.contains(name));
        if !panic.location().is_some_and(|l| contained(l.file())) {
            abort(panic);
        }
    }));
}
