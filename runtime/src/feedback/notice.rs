//! What the notices of a pad's line say to people: one line each, with what to do about it.
use std::fmt;

use hone_wire::host::{LedgerError, Refusal};

use super::listener::{Down, Notice};

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Up { port, authenticated, .. } => {
                write!(f, "the pad on {port} is connected{}", if *authenticated { "" } else { ", unpaired" })
            }
            Notice::Down { source, why } => {
                write!(f, "the pad {source} is gone: {why}; what it has not handed over waits on it")
            }
            Notice::Committed { events, .. } => write!(f, "{} events of the pad are durable", events.len()),
            Notice::Refused { source, why } => write!(f, "{source}: {}", refused(*why)),
            Notice::Ended { source } => write!(f, "{source} has ended"),
            Notice::Remark { source, text } => write!(f, "{source}: {text}"),
            Notice::Searching { why, .. } => write!(f, "looking for the pad: {why}"),
            Notice::Paired { kept: Ok(()), .. } => f.write_str("the pad took the pairing key"),
            Notice::Paired { kept: Err(why), .. } => {
                write!(f, "the pad took the pairing key, but it could not be kept here: {why}; pair it again")
            }
            Notice::Input(_) => f.write_str("the pad's inputs have changed"),
            Notice::Stats(s) => write!(
                f,
                "the pad has run for {} s (restart cause {}), holds {} events, lost {} presses, and refused {} frames for noise, \
                 {} for their tag, {} for something else",
                s.uptime_ms / 1_000,
                s.reset_cause,
                s.queued,
                s.lost,
                s.noise,
                s.tag,
                s.other
            ),
            Notice::Nak(nak) => write!(f, "the pad could not use a frame: {nak:?}"),
        }
    }
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Down::Silent => f.write_str("it has fallen silent"),
            Down::Restarted => f.write_str("it has restarted"),
            Down::Replaced => f.write_str("another pad is in its place"),
            Down::PortLost { detail } => write!(f, "its port is lost ({detail})"),
        }
    }
}

fn refused(why: Refusal) -> String {
    match why {
        Refusal::Unpaired => {
            "the pad is not paired, so it is not heard; `hone pad pair` pairs it, --allow-unpaired hears it".into()
        }
        Refusal::NoKey => "the pad is paired with another host, whose key is not known here; it is not heard".into(),
        Refusal::WrongKey => "the pad has another key than this host; it is not heard".into(),
        Refusal::Version { min, max } => {
            format!("the pad speaks protocol versions {min} to {max}, which are not spoken here; flash it anew")
        }
        Refusal::Ledger(LedgerError::Full) => {
            "the disk is full: presses are not acknowledged and wait on the pad until there is room".into()
        }
        Refusal::Ledger(LedgerError::Failed) => {
            "the journal could not be written: presses are not acknowledged and wait on the pad".into()
        }
    }
}
