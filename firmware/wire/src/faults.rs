//! Deliberate faults, for the tests that show that the exactly-once simulation notices them.
//!
//! The production code consults this struct, so that a mutant is the shipped code with one rule removed; there is no
//! second implementation to drift. Every fault is off by default and none can be set from the wire.

/// Which rules of the protocol are to be broken on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The host commits whatever arrives instead of only the number it waits for.
    pub no_dedupe: bool,
    /// The pad forgets an event once it was sent, not once it was acknowledged.
    pub trim_at_send: bool,
    /// Neither side looks at the checksum.
    pub ignore_crc: bool,
    /// Neither side checks that a greeting answers its own.
    pub greet_without_echo: bool,
    /// The host acknowledges what its ledger refused.
    pub ack_unstored: bool,
}

impl Faults {
    /// All rules kept.
    pub const NONE: Self = Self {
        no_dedupe: false,
        trim_at_send: false,
        ignore_crc: false,
        greet_without_echo: false,
        ack_unstored: false,
    };
}
