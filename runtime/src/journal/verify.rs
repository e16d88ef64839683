//! Checking a journal from end to end: nothing is repaired, everything wrong is listed.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rusqlite::Connection;

use super::body::{Body, Said};
use super::reader::Reader;
use super::record::{Digest, Kind};
use super::sql::{self, RECORD_COLUMNS, Stored, record_row};
use super::{Blobs, StoreError};

/// What [`Reader::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Records read.
    pub records: u64,
    /// How many of them are redacted.
    pub redacted: u64,
    /// Blobs referred to by readable records; each was read and compared with its digest.
    pub blobs: u64,
    /// The chain after the last record. Two journals with the same one hold the same records in the same order.
    pub chain: Option<Digest>,
    /// Everything that is wrong, in the order it was met.
    pub faults: Vec<Fault>,
}

impl VerifyReport {
    /// True when nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A number is missing before this record.
    Gap {
        /// The record after the gap.
        seq: u64,
    },
    /// The payload is not what was written.
    Digest {
        /// The record.
        seq: u64,
    },
    /// The header, the digest or the order is not what was written.
    Chain {
        /// The record.
        seq: u64,
    },
    /// The payload cannot be read, although it is what was written.
    Payload {
        /// The record.
        seq: u64,
        /// Why.
        why: String,
    },
    /// The payload is missing and no redaction lists it.
    Vanished {
        /// The record.
        seq: u64,
    },
    /// A derived table says something else than the records.
    Derived {
        /// The record.
        seq: u64,
        /// What.
        what: String,
    },
    /// A kept input is missing or damaged.
    Blob {
        /// The record that refers to it.
        seq: u64,
        /// Its digest.
        digest: Digest,
        /// `missing` or `damaged`.
        what: &'static str,
    },
    /// SQLite finds the file's structure wrong.
    Structure {
        /// What it says.
        what: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Gap { seq } => write!(f, "records are missing before record {seq}"),
            Fault::Digest { seq } => write!(f, "record {seq}: the payload does not have its digest"),
            Fault::Chain { seq } => write!(f, "record {seq}: the chain does not hold"),
            Fault::Payload { seq, why } => write!(f, "record {seq}: {why}"),
            Fault::Vanished { seq } => write!(f, "record {seq}: the payload is gone and no redaction lists it"),
            Fault::Derived { seq, what } => write!(f, "record {seq}: {what}"),
            Fault::Blob { seq, digest, what } => write!(f, "record {seq}: blob {digest} is {what}"),
            Fault::Structure { what } => write!(f, "the database file: {what}"),
        }
    }
}

impl Reader {
    /// Reads everything and lists what is wrong: the file's structure, numbers without a gap, every digest, the chain,
    /// every payload, the derived tables, redactions, and every blob.
    ///
    /// The chain shows damage and mistakes. It does not stop a forger who can write the file: who rewrites every record
    /// after the one changed has a chain that holds. Compare [`VerifyReport::chain`] with a copy kept elsewhere.
    ///
    /// # Errors
    /// Only when the journal cannot be read at all; anything wrong in what was read is a [`Fault`].
    pub fn verify(&self) -> Result<VerifyReport, StoreError> {
        let snapshot = self.conn().unchecked_transaction().map_err(|e| self.fail(e))?;
        let mut report = VerifyReport::default();
        self.structure(&mut report).map_err(|e| self.fail(e))?;
        report.faults.extend(chain_faults(self.conn(), 1).map_err(|e| self.fail(e))?);
        self.contents(&mut report).map_err(|e| self.fail(e))?;
        let (last, chain) = sql::head(self.conn()).map_err(|e| self.fail(e))?;
        report.chain = (last > 0).then_some(chain);
        drop(snapshot);
        Ok(report)
    }

    fn structure(&self, report: &mut VerifyReport) -> rusqlite::Result<()> {
        let mut check = self.conn().prepare("PRAGMA integrity_check(100)")?;
        for line in check.query_map([], |r| r.get::<_, String>(0))? {
            let what = line?;
            if what != "ok" {
                report.faults.push(Fault::Structure { what });
            }
        }
        let mut keys = self.conn().prepare("PRAGMA foreign_key_check")?;
        for row in keys.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, Option<i64>>(1)?)))? {
            let (table, row) = row?;
            let what = format!("a row of table {table} refers to nothing");
            report.faults.push(Fault::Derived { seq: row.unwrap_or(0) as u64, what });
        }
        Ok(())
    }

    fn contents(&self, report: &mut VerifyReport) -> rusqlite::Result<()> {
        let mut shown: BTreeMap<u64, u32> = BTreeMap::new();
        let mut statement = self.conn().prepare("SELECT seq, prediction_id FROM shown")?;
        for row in statement.query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?)))? {
            let (seq, id) = row?;
            shown.insert(seq, id);
        }
        let mut press: BTreeMap<u64, (Option<u32>, String)> = BTreeMap::new();
        let mut statement = self.conn().prepare("SELECT press_id, prediction_id, source FROM press")?;
        for row in statement.query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, (r.get(1)?, r.get(2)?))))? {
            let (seq, about) = row?;
            press.insert(seq, about);
        }
        let mut marks: BTreeMap<(String, u32), u32> = BTreeMap::new();
        let mut statement = self.conn().prepare("SELECT uid, epoch, next FROM mark")?;
        for row in statement.query_map([], |r| Ok(((r.get(0)?, r.get(1)?), r.get(2)?)))? {
            let (pad, next) = row?;
            marks.insert(pad, next);
        }

        let blobs = Blobs::new(self.state());
        let mut seen: BTreeSet<Digest> = BTreeSet::new();
        let mut empty: BTreeSet<u64> = BTreeSet::new();
        let mut listed: BTreeSet<u64> = BTreeSet::new();
        let mut statement = self.conn().prepare(&format!("SELECT {RECORD_COLUMNS} FROM records ORDER BY seq"))?;
        for row in statement.query_map([], record_row)? {
            let Stored { seq, kind, payload, .. } = row?;
            report.records += 1;
            let derived = |what: &str| Fault::Derived { seq, what: what.to_string() };
            let Some(text) = payload else {
                report.redacted += 1;
                empty.insert(seq);
                if shown.remove(&seq).is_some() || press.remove(&seq).is_some() {
                    report.faults.push(derived("it is redacted and still stands in a derived table"));
                }
                continue;
            };
            let body = match Kind::from_name(&kind).map(|k| Body::parse(k, &text)) {
                Some(Ok(body)) => body,
                Some(Err(why)) => {
                    report.faults.push(Fault::Payload { seq, why });
                    continue;
                }
                None => {
                    report.faults.push(Fault::Payload { seq, why: format!("unknown kind {kind:?}") });
                    continue;
                }
            };
            if let Some(why) = body_fault(&body, &text) {
                report.faults.push(Fault::Payload { seq, why });
            }
            match &body {
                Body::Shown(b) if shown.remove(&seq) != Some(b.prediction_id) => {
                    report.faults.push(derived("table shown says something else"));
                }
                Body::Press(b) => {
                    if press.remove(&seq) != Some((b.bound(), b.source.to_string())) {
                        report.faults.push(derived("table press says something else"));
                    }
                    if let Some(pad) = &b.pad
                        && marks.get(&(pad.uid.clone(), pad.epoch)).is_none_or(|&next| next <= pad.seq)
                    {
                        report.faults.push(derived("the pad's mark is not above it"));
                    }
                }
                Body::Redaction(b) => listed.extend(&b.seqs),
                _ => {}
            }
            for digest in body.inputs() {
                if !seen.insert(*digest) {
                    continue;
                }
                report.blobs += 1;
                match blobs.get(digest) {
                    Ok(_) => {}
                    Err(StoreError::Blob { what: super::DROPPED, .. }) => {}
                    Err(StoreError::Blob { what, .. }) => {
                        report.faults.push(Fault::Blob { seq, digest: *digest, what })
                    }
                    Err(_) => report.faults.push(Fault::Blob { seq, digest: *digest, what: "damaged" }),
                }
            }
        }
        for &seq in empty.difference(&listed) {
            report.faults.push(Fault::Vanished { seq });
        }
        for seq in shown.keys().chain(press.keys()) {
            report
                .faults
                .push(Fault::Derived { seq: *seq, what: "a derived table has it, the records do not".to_string() });
        }
        Ok(())
    }
}

/// Numbers, digests and chain from record `from` on; the chain before it is taken as it stands.
pub(super) fn chain_faults(conn: &Connection, from: u64) -> rusqlite::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let (mut expected, mut chain) = (1, Some(sql::CHAIN_START));
    if from > 1 {
        expected = from - 1;
        chain = None;
    }
    let mut statement = conn.prepare(&format!("SELECT {RECORD_COLUMNS} FROM records WHERE seq >= ? ORDER BY seq"))?;
    for row in statement.query_map([expected as i64], record_row)? {
        let stored = row?;
        let seq = stored.seq;
        if seq != expected {
            faults.push(Fault::Gap { seq });
        }
        if let Some(text) = &stored.payload
            && Digest::of(text.as_bytes()) != stored.digest
        {
            faults.push(Fault::Digest { seq });
        }
        if let Some(previous) = chain
            && sql::link(&previous, seq, &stored.kind, &stored.stamp, &stored.digest) != stored.chain
        {
            faults.push(Fault::Chain { seq });
        }
        expected = seq + 1;
        chain = Some(stored.chain);
    }
    Ok(faults)
}

/// What is wrong with a payload that parses: not canonical, or an example that does not decode.
pub(super) fn body_fault(body: &Body, text: &str) -> Option<String> {
    let example = match body {
        Body::Shown(b) => Some(&b.example),
        Body::Press(b) => match &b.said {
            Said::Demonstration { example, .. } => Some(example.as_ref()),
            _ => None,
        },
        _ => None,
    };
    if let Some(why) = example.and_then(|e| e.to_example().err()) {
        return Some(why);
    }
    match body.canonical() {
        Ok(same) if same == text => None,
        Ok(_) => Some("the payload is not in canonical form".to_string()),
        Err(e) => Some(e.to_string()),
    }
}
