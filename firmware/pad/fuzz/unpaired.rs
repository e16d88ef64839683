//! Any bytes and any frames at both ends of a link without a key: neither side panics, and once the noise is over they meet.
#![no_main]
#![forbid(unsafe_code)]

use hone_wire::frame::encode_body;
use libfuzzer_sys::fuzz_target;

#[path = "../tests/common/mod.rs"]
mod common;

use common::table::Table;

fuzz_target!(|script: &[u8]| {
    let mut table = Table::up();
    let mut rest = script;
    while let Some((&[what, len], after)) = rest.split_first_chunk() {
        let (bytes, after) = after.split_at(after.len().min(usize::from(len)));
        rest = after;
        match what % 8 {
            0 => table.inject_to_pad(bytes),
            1 => table.inject_to_host(bytes),
            2 => table.buttons = u16::from(len & 1),
            3 => table.run(u64::from(len)),
            4 => table.plugged = len & 1 == 0,
            way => {
                // A frame that is right, of a session that may be: its type, session, counter, then its body.
                let Some((&[kind, session, ctr], body)) = bytes.split_first_chunk() else { continue };
                let body = body.iter().take(200).copied().collect();
                let base = u32::from_le_bytes(*b"\x01hos");
                let session = if session & 0x80 == 0 { base + u32::from(session) } else { 0 };
                let frame = encode_body(kind, &body, session, 8 * u32::from(ctr), None);
                if way == 5 { table.inject_to_host(&frame) } else { table.inject_to_pad(&frame) }
            }
        }
    }
    (table.buttons, table.plugged) = (0, true);
    for _ in 0..240 {
        // In steps as coarse as a host's.
        table.now += 49;
        table.run(1);
    }
    assert!(table.host.is_up() && table.pad.is_up());
});
