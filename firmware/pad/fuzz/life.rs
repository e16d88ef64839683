//! Any bytes at all, read as the life of a pad and its host; see `firmware/pad/tests/common/script.rs`.
#![no_main]
#![forbid(unsafe_code)]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

#[path = "../tests/common/mod.rs"]
mod common;

use common::script::{Warm, play};

thread_local! {
    static MEMORY: RefCell<Option<&'static mut Warm>> = RefCell::new(Some(Box::leak(Box::new(Warm::ZEROS))));
}

fuzz_target!(|script: &[u8]| {
    let memory = MEMORY.take().expect("given back after each run");
    MEMORY.set(Some(play(script, memory).1));
});
