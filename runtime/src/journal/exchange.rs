//! Export and import: JSON Lines that hold everything a journal holds, blobs excepted.
use std::io::{BufRead, Read, Write};

use rusqlite::{Connection, ErrorCode, params};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::body::Body;
use super::reader::Reader;
use super::record::{Digest, Kind, MAX_PAYLOAD_BYTES, check_uid};
use super::sql::{self, RECORD_COLUMNS, Stored, record_row};
use super::verify::body_fault;
use super::writer::Journal;
use super::{Stamp, StoreError};

/// The schema named on the first line, before the version the journal needs.
pub const EXPORT_SCHEMA: &str = "hone.journal";
/// Longest line of an import, in bytes.
const MAX_LINE_BYTES: u64 = MAX_PAYLOAD_BYTES as u64 + 4_096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    epochs: u64,
    marks: u64,
    next_prediction_id: u64,
    records: u64,
    schema: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLine {
    boot_id: String,
    chain: Digest,
    digest: Digest,
    kind: String,
    mono_ns: u64,
    payload: Option<Box<RawValue>>,
    seq: u64,
    wall_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EpochLine {
    epoch: u32,
    uid: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkLine {
    epoch: u32,
    next: u32,
    uid: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    end: Digest,
}

impl Reader {
    /// Writes the whole journal as JSON Lines (FORMAT.md); returns the number of records. Blobs are not in it: copy the
    /// folder `blobs/` beside it.
    ///
    /// # Errors
    /// [`StoreError::Stream`] when `out` fails; [`StoreError::Damaged`] for an unreadable kind; disk trouble.
    pub fn export(&self, out: &mut dyn Write) -> Result<u64, StoreError> {
        let sql = |e| self.fail(e);
        let snapshot = self.conn().unchecked_transaction().map_err(sql)?;
        let count = |table: &str| -> Result<i64, StoreError> {
            self.conn().query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0)).map_err(sql)
        };
        let records = count("records")?;
        let header = Header {
            epochs: count("epoch")? as u64,
            marks: count("mark")? as u64,
            next_prediction_id: self.next_prediction_id()?,
            records: records as u64,
            schema: schema(sql::version(self.conn()).map_err(sql)?),
        };
        put(out, &header.line())?;
        let mut statement =
            self.conn().prepare(&format!("SELECT {RECORD_COLUMNS} FROM records ORDER BY seq")).map_err(sql)?;
        for row in statement.query_map([], record_row).map_err(sql)? {
            put(out, &record_line(&row.map_err(sql)?))?;
        }
        let mut statement = self.conn().prepare("SELECT uid, epoch FROM epoch ORDER BY uid").map_err(sql)?;
        let rows = statement.query_map([], |r| Ok(EpochLine { uid: r.get(0)?, epoch: r.get(1)? })).map_err(sql)?;
        for row in rows {
            put(out, &row.map_err(sql)?.line())?;
        }
        let mut statement =
            self.conn().prepare("SELECT uid, epoch, next FROM mark ORDER BY uid, epoch").map_err(sql)?;
        let rows = statement
            .query_map([], |r| Ok(MarkLine { uid: r.get(0)?, epoch: r.get(1)?, next: r.get(2)? }))
            .map_err(sql)?;
        for row in rows {
            put(out, &row.map_err(sql)?.line())?;
        }
        let (_, chain) = sql::head(self.conn()).map_err(sql)?;
        put(out, &EndLine { end: chain }.line())?;
        out.flush().map_err(|source| StoreError::Stream { doing: "writing the export", source })?;
        drop(statement);
        drop(snapshot);
        Ok(records as u64)
    }
}

impl Journal {
    /// Reads what [`Reader::export`] wrote into this journal, which must be empty; returns the number of records.
    ///
    /// All or nothing, in one transaction: every line is checked to be, byte for byte, the line an export of the result
    /// would write, so export → import → export is the identity. At the next start prediction ids go on 1,000 higher,
    /// because the journal the export was taken from may have given out some since.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`]; [`StoreError::Import`] naming the line; [`StoreError::Stream`]; disk trouble.
    pub fn import(&mut self, input: &mut dyn BufRead) -> Result<u64, StoreError> {
        self.flush()?;
        let path = self.state().journal_db();
        self.rebuild(|conn| {
            let (held, _) = sql::head(conn).map_err(|e| StoreError::sql(&path, e))?;
            if held > 0 {
                return Err(StoreError::NotEmpty { path: path.clone(), records: held });
            }
            let mut import = Import { lines: Lines { input, line: 0 }, conn, chain: sql::CHAIN_START };
            import.run(&path)
        })
    }
}

/// The first line's schema of a journal of that version.
fn schema(version: i64) -> String {
    format!("{EXPORT_SCHEMA}/{version}")
}

struct Import<'a> {
    lines: Lines<'a>,
    conn: &'a Connection,
    chain: Digest,
}

impl Import<'_> {
    fn run(&mut self, path: &std::path::Path) -> Result<u64, StoreError> {
        let text = self.lines.next()?;
        let header: Header = self.lines.parse(&text)?;
        if !(1..=sql::FORMAT_VERSION).any(|version| header.schema == schema(version)) {
            let newest = schema(sql::FORMAT_VERSION);
            return Err(self.lines.wrong(format!("schema {:?}, this hone reads up to {newest:?}", header.schema)));
        }
        if header.next_prediction_id == 0 || header.next_prediction_id > u64::from(u32::MAX) + 1 {
            return Err(self.lines.wrong("next_prediction_id is out of range".to_string()));
        }
        self.lines.same(&header.line(), &text)?;
        for seq in 1..=header.records {
            self.record(seq)?;
        }
        let sql = |e| StoreError::sql(path, e);
        for _ in 0..header.epochs {
            let text = self.lines.next()?;
            let line: EpochLine = self.lines.parse(&text)?;
            self.lines.same(&line.line(), &text)?;
            check_uid(&line.uid).map_err(|e| self.lines.wrong(e.to_string()))?;
            let done = self.conn.execute("INSERT INTO epoch(uid, epoch) VALUES(?,?)", params![line.uid, line.epoch]);
            self.inserted(done)?;
        }
        for _ in 0..header.marks {
            let text = self.lines.next()?;
            let line: MarkLine = self.lines.parse(&text)?;
            self.lines.same(&line.line(), &text)?;
            check_uid(&line.uid).map_err(|e| self.lines.wrong(e.to_string()))?;
            let done = self
                .conn
                .execute("INSERT INTO mark(uid, epoch, next) VALUES(?,?,?)", params![line.uid, line.epoch, line.next]);
            self.inserted(done)?;
        }
        let text = self.lines.next()?;
        let end: EndLine = self.lines.parse(&text)?;
        self.lines.same(&end.line(), &text)?;
        if end.end != self.chain {
            return Err(self.lines.wrong("the chain ends elsewhere".to_string()));
        }
        if !self.lines.is_at_end()? {
            return Err(self.lines.wrong("there is more after the end".to_string()));
        }
        // An empty journal has given out no id, so its own floor may be replaced.
        sql::set_meta(self.conn, "next_prediction_id", header.next_prediction_id as i64).map_err(sql)?;
        if sql::next_prediction(self.conn).map_err(sql)? != header.next_prediction_id {
            return Err(self
                .lines
                .wrong("its first line's next_prediction_id is not above every prediction".to_string()));
        }
        sql::set_meta(self.conn, "jump", 1).map_err(sql)?;
        let needed = schema(sql::version(self.conn).map_err(sql)?);
        if needed != header.schema {
            return Err(self.lines.wrong(format!("schema {:?}, its records need {needed:?}", header.schema)));
        }
        Ok(header.records)
    }

    fn record(&mut self, seq: u64) -> Result<(), StoreError> {
        let text = self.lines.next()?;
        let line: RecordLine = self.lines.parse(&text)?;
        let RecordLine { boot_id, chain, digest, kind, mono_ns, payload, wall_ms, .. } = line;
        if line.seq != seq {
            return Err(self.lines.wrong(format!("record {}, expected record {seq}", line.seq)));
        }
        if i64::try_from(mono_ns).is_err() {
            return Err(self.lines.wrong("mono_ns is out of range".to_string()));
        }
        let payload = payload.map(|raw| raw.get().to_string());
        let stamp = Stamp { boot_id, mono_ns, wall_ms };
        let stored = Stored { seq, kind, stamp, payload, digest, chain };
        self.lines.same(&record_line(&stored), &text)?;
        let Some(kind) = Kind::from_name(&stored.kind) else {
            return Err(self.lines.wrong(format!("unknown kind {:?}", stored.kind)));
        };
        let mut body = None;
        if let Some(text) = &stored.payload {
            if Digest::of(text.as_bytes()) != stored.digest {
                return Err(self.lines.wrong("the payload does not have its digest".to_string()));
            }
            let parsed = Body::parse(kind, text).map_err(|why| self.lines.wrong(why))?;
            if let Some(why) = body_fault(&parsed, text) {
                return Err(self.lines.wrong(why));
            }
            body = Some(parsed);
        }
        if sql::link(&self.chain, seq, &stored.kind, &stored.stamp, &stored.digest) != stored.chain {
            return Err(self.lines.wrong("the chain does not hold".to_string()));
        }
        self.chain = stored.chain;
        let done = sql::insert(self.conn, &stored, body.as_ref());
        self.inserted(done)
    }

    /// A row the tables refuse is a fault of the line: a prediction id twice, a press about nothing.
    fn inserted<T>(&self, done: rusqlite::Result<T>) -> Result<(), StoreError> {
        match done {
            Ok(_) => Ok(()),
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(self.lines.wrong(format!("it contradicts an earlier line ({e})")))
            }
            Err(e) => Err(StoreError::sql(std::path::Path::new(self.conn.path().unwrap_or("journal.db")), e)),
        }
    }
}

/// The lines of an import, counted.
struct Lines<'a> {
    input: &'a mut dyn BufRead,
    line: u64,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<String, StoreError> {
        self.line += 1;
        let mut bytes = Vec::new();
        Read::take(&mut *self.input, MAX_LINE_BYTES)
            .read_until(b'\n', &mut bytes)
            .map_err(|source| StoreError::Stream { doing: "reading the import", source })?;
        if bytes.pop() != Some(b'\n') {
            return Err(self.wrong(format!("it has no end within {MAX_LINE_BYTES} bytes: the export is cut short")));
        }
        String::from_utf8(bytes).map_err(|e| self.wrong(e.to_string()))
    }

    fn is_at_end(&mut self) -> Result<bool, StoreError> {
        let rest =
            self.input.fill_buf().map_err(|source| StoreError::Stream { doing: "reading the import", source })?;
        Ok(rest.is_empty())
    }

    fn parse<'t, T: Deserialize<'t>>(&self, text: &'t str) -> Result<T, StoreError> {
        serde_json::from_str(text).map_err(|e| self.wrong(e.to_string()))
    }

    fn same(&self, ours: &str, theirs: &str) -> Result<(), StoreError> {
        if ours == theirs { Ok(()) } else { Err(self.wrong("it is not in canonical form".to_string())) }
    }

    fn wrong(&self, reason: String) -> StoreError {
        StoreError::Import { line: self.line, reason }
    }
}

impl Header {
    fn line(&self) -> String {
        let Header { epochs, marks, next_prediction_id, records, schema } = self;
        let schema = Value::from(schema.as_str());
        format!(
            r#"{{"epochs":{epochs},"marks":{marks},"next_prediction_id":{next_prediction_id},"records":{records},"schema":{schema}}}"#
        )
    }
}

impl EpochLine {
    fn line(&self) -> String {
        format!(r#"{{"epoch":{},"uid":{}}}"#, self.epoch, Value::from(self.uid.as_str()))
    }
}

impl MarkLine {
    fn line(&self) -> String {
        format!(r#"{{"epoch":{},"next":{},"uid":{}}}"#, self.epoch, self.next, Value::from(self.uid.as_str()))
    }
}

impl EndLine {
    fn line(&self) -> String {
        format!(r#"{{"end":"{}"}}"#, self.end)
    }
}

/// The line of a record; the payload stands in it as it was written, byte for byte.
fn record_line(stored: &Stored) -> String {
    let Stored { seq, kind, stamp, payload, digest, chain } = stored;
    let (boot_id, kind) = (Value::from(stamp.boot_id.as_str()), Value::from(kind.as_str()));
    let payload = payload.as_deref().unwrap_or("null");
    format!(
        r#"{{"boot_id":{boot_id},"chain":"{chain}","digest":"{digest}","kind":{kind},"mono_ns":{},"payload":{payload},"seq":{seq},"wall_ms":{}}}"#,
        stamp.mono_ns, stamp.wall_ms
    )
}

fn put(out: &mut dyn Write, line: &str) -> Result<(), StoreError> {
    out.write_all(line.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .map_err(|source| StoreError::Stream { doing: "writing the export", source })
}
