//! Any bytes at all, through everything that happens before a graph is planned.
#![no_main]
#![forbid(unsafe_code)]

use hone_runtime::import;
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "this target runs nothing")]
mod drive;

fuzz_target!(|bytes: &[u8]| {
    let _ = import::from_onnx(bytes, &drive::limits());
});
