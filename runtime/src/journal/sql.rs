//! The database under the journal: how it is opened, its tables, and how one record enters it.
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::body::Body;
use super::record::{Digest, Kind, Record};
use super::{Stamp, StoreError};
use crate::state::{self, StateDir, StateError};

/// `PRAGMA application_id`: "hone".
pub(super) const APPLICATION_ID: i64 = 0x686f_6e65;
/// `PRAGMA user_version`: the newest format version of FORMAT.md.
pub(super) const FORMAT_VERSION: i64 = 3;
/// The version of a journal that holds nothing newer.
const OLDEST_VERSION: i64 = 1;

/// Length the write-ahead log is given before its first use. A log that grows changes its inode with every commit, and
/// a power cut between the two flushes could lose the newest one; one that is as long as it will ever be does not.
pub(super) const WAL_BYTES: usize = 1 << 20;
/// Checkpoint after so many pages, so that the log is begun anew before it outgrows [`WAL_BYTES`]
/// (192 frames of 4,120 bytes are 791,040; the rest is room for the transaction that crosses the line).
const AUTOCHECKPOINT_PAGES: u32 = 192;
/// How long a connection waits for another one (a reader that checkpoints while closing).
const BUSY_WAIT: Duration = Duration::from_secs(2);

const SCHEMA: &str = "
CREATE TABLE records(
  seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, boot_id TEXT NOT NULL, mono_ns INTEGER NOT NULL, wall_ms INTEGER NOT NULL,
  payload TEXT, digest BLOB NOT NULL, chain BLOB NOT NULL) STRICT;
CREATE TABLE shown(
  prediction_id INTEGER PRIMARY KEY, seq INTEGER NOT NULL UNIQUE REFERENCES records(seq)) STRICT;
CREATE TABLE press(
  press_id INTEGER PRIMARY KEY REFERENCES records(seq), prediction_id INTEGER REFERENCES shown(prediction_id),
  source TEXT NOT NULL) STRICT;
CREATE INDEX press_prediction ON press(prediction_id);
CREATE TABLE mark(uid TEXT NOT NULL, epoch INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY(uid, epoch)) STRICT, WITHOUT ROWID;
CREATE TABLE epoch(uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TRIGGER records_are_never_deleted BEFORE DELETE ON records
  BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER records_are_only_redacted BEFORE UPDATE ON records
  WHEN NEW.payload IS NOT NULL OR NEW.seq IS NOT OLD.seq OR NEW.kind IS NOT OLD.kind OR NEW.boot_id IS NOT OLD.boot_id
    OR NEW.mono_ns IS NOT OLD.mono_ns OR NEW.wall_ms IS NOT OLD.wall_ms OR NEW.digest IS NOT OLD.digest
    OR NEW.chain IS NOT OLD.chain
  BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
";

/// Opens the journal of `state` for writing, with the settings every writer needs; makes its tables in a new file.
pub(super) fn connect(state: &StateDir, max_pages: Option<u32>) -> Result<Connection, StoreError> {
    let path = state.journal_db();
    // SQLite's own message for a file it may not open does not say why.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| StateError::io(&path, e))?;
    let fail = |e| StoreError::sql(&path, e);
    let mut conn =
        Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(fail)?;
    conn.busy_timeout(BUSY_WAIT).map_err(fail)?;
    let mode: String = conn.query_row("PRAGMA journal_mode=WAL", [], |r| r.get(0)).map_err(fail)?;
    if mode != "wal" {
        return Err(StoreError::Disk { path, message: format!("the file system only allows journal mode {mode}") });
    }
    conn.execute_batch(&format!(
        "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA secure_delete=ON; PRAGMA trusted_schema=OFF;
         PRAGMA wal_autocheckpoint={AUTOCHECKPOINT_PAGES}; PRAGMA journal_size_limit={WAL_BYTES};"
    ))
    .map_err(fail)?;
    if let Some(pages) = max_pages {
        conn.query_row(&format!("PRAGMA max_page_count={pages}"), [], |_| Ok(())).map_err(fail)?;
    }
    if is_blank(&conn).map_err(fail)? {
        let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(fail)?;
        tx.execute_batch(SCHEMA).map_err(fail)?;
        tx.execute_batch(&format!("PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={OLDEST_VERSION};"))
            .map_err(fail)?;
        tx.commit().map_err(fail)?;
        state::sync_dir(state.root())?;
    }
    check_identity(&conn, &path)?;
    Ok(conn)
}

/// Opens the journal of `state` for reading only.
pub(super) fn connect_read(state: &StateDir) -> Result<Connection, StoreError> {
    let path = state.journal_db();
    if !path.exists() {
        return Err(StateError::Missing { path: state.root().to_path_buf() }.into());
    }
    let fail = |e| StoreError::sql(&path, e);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = |flags| -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(&path, flags)?;
        conn.busy_timeout(BUSY_WAIT)?;
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(conn)
    };
    let conn = match open(flags) {
        Ok(conn) => conn,
        // In a directory that cannot be written SQLite cannot make its index of the log. Without a log there is nothing
        // to index, so the file alone is the journal and nobody can be changing it under us.
        Err(e) if !wal_holds_anything(&wal_path(&path)) => {
            let uri = format!("file:{}?immutable=1", percent_encoded(&path));
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI).map_err(|_| fail(e))?
        }
        Err(e) => return Err(fail(e)),
    };
    // Who made the file was killed before it had tables: nothing was ever said here.
    if is_blank(&conn).map_err(fail)? {
        return Err(StateError::Missing { path: state.root().to_path_buf() }.into());
    }
    check_identity(&conn, &path)?;
    Ok(conn)
}

/// `<journal.db>-wal`.
pub(super) fn wal_path(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_os_string();
    name.push("-wal");
    PathBuf::from(name)
}

/// Gives the write-ahead log its full length, if there is none yet.
///
/// SQLite takes a log whose header is not valid, as zeros are not, for an empty one (file format, section 4.1), and
/// writes over it from the start; `journal_size_limit` keeps it from being cut back.
///
/// # Errors
/// [`StoreError::State`], full disk included: with so little room left no press could be recorded anyway.
pub(super) fn presize_wal(state: &StateDir) -> Result<(), StoreError> {
    let path = wal_path(&state.journal_db());
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        // A reader still has the old one open; it is as long as it got.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(StateError::io(&path, e).into()),
    };
    if let Err(e) = file.write_all(&vec![0u8; WAL_BYTES]).and_then(|()| file.sync_all()) {
        let _ = fs::remove_file(&path);
        return Err(StateError::io(&path, e).into());
    }
    Ok(state::sync_dir(state.root())?)
}

fn wal_holds_anything(wal: &Path) -> bool {
    fs::metadata(wal).is_ok_and(|m| m.len() > 0)
}

/// A path as the `file:` URI SQLite reads.
fn percent_encoded(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

fn is_blank(conn: &Connection) -> rusqlite::Result<bool> {
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    let id: i64 = conn.query_row("PRAGMA application_id", [], |r| r.get(0))?;
    Ok(tables == 0 && id == 0)
}

fn check_identity(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    let fail = |e| StoreError::sql(path, e);
    let id: i64 = conn.query_row("PRAGMA application_id", [], |r| r.get(0)).map_err(fail)?;
    if id != APPLICATION_ID {
        return Err(StoreError::NotAJournal { path: path.to_path_buf() });
    }
    let found = version(conn).map_err(fail)?;
    if !(OLDEST_VERSION..=FORMAT_VERSION).contains(&found) {
        return Err(StoreError::Newer { path: path.to_path_buf(), found, known: FORMAT_VERSION });
    }
    Ok(())
}

/// The version of the format this journal needs: that of the newest thing in it.
pub(super) fn version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("PRAGMA user_version", [], |r| r.get(0))
}

// ---- records --------------------------------------------------------------------------------------------------------

/// The chain value before the first record.
pub(super) const CHAIN_START: Digest = Digest([0; 32]);

/// The chain after a record: BLAKE3 over the chain before it, its header and the digest of its payload (FORMAT.md).
pub(super) fn link(previous: &Digest, seq: u64, kind: &str, stamp: &Stamp, digest: &Digest) -> Digest {
    let mut h = blake3::Hasher::new();
    h.update(&previous.0);
    h.update(&seq.to_le_bytes());
    h.update(&stamp.mono_ns.to_le_bytes());
    h.update(&stamp.wall_ms.to_le_bytes());
    for text in [kind, &stamp.boot_id] {
        h.update(&(text.len() as u32).to_le_bytes());
        h.update(text.as_bytes());
    }
    h.update(&digest.0);
    Digest(*h.finalize().as_bytes())
}

/// The columns of `records` in the order [`record_row`] reads them.
pub(super) const RECORD_COLUMNS: &str = "seq, kind, boot_id, mono_ns, wall_ms, payload, digest, chain";

/// A row of `records` with its kind still as text: a damaged one may name none.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub seq: u64,
    pub kind: String,
    pub stamp: Stamp,
    pub payload: Option<String>,
    pub digest: Digest,
    pub chain: Digest,
}

impl Stored {
    /// The public form; the reason when the kind is unknown.
    pub(super) fn into_record(self) -> Result<Record, String> {
        let kind =
            Kind::from_name(&self.kind).ok_or_else(|| format!("record {}: unknown kind {:?}", self.seq, self.kind))?;
        let Stored { seq, stamp: Stamp { boot_id, mono_ns, wall_ms }, payload, digest, chain, .. } = self;
        Ok(Record { seq, kind, boot_id, mono_ns, wall_ms, payload, digest, chain })
    }
}

pub(super) fn record_row(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        seq: row.get::<_, i64>(0)? as u64,
        kind: row.get(1)?,
        stamp: Stamp { boot_id: row.get(2)?, mono_ns: row.get::<_, i64>(3)? as u64, wall_ms: row.get(4)? },
        // Bytes that are no UTF-8 are damage. Replaced they no longer have their digest, so the check finds them.
        payload: row.get_ref(5)?.as_bytes_or_null()?.map(|b| String::from_utf8_lossy(b).into_owned()),
        digest: Digest(row.get(6)?),
        chain: Digest(row.get(7)?),
    })
}

/// The last record of the journal: its number (0 in an empty one) and the chain up to it.
pub(super) fn head(conn: &Connection) -> rusqlite::Result<(u64, Digest)> {
    let row = conn
        .query_row("SELECT seq, chain FROM records ORDER BY seq DESC LIMIT 1", [], |r| {
            Ok((r.get::<_, i64>(0)? as u64, Digest(r.get(1)?)))
        })
        .optional()?;
    Ok(row.unwrap_or((0, CHAIN_START)))
}

/// The chain up to and with record `seq`; `None` when there is no such record.
pub(super) fn chain_at(conn: &Connection, seq: u64) -> rusqlite::Result<Option<Digest>> {
    conn.prepare_cached("SELECT chain FROM records WHERE seq=?")?
        .query_row([seq as i64], |r| Ok(Digest(r.get(0)?)))
        .optional()
}

/// Writes a record and the rows derived from it.
pub(super) fn insert(conn: &Connection, stored: &Stored, body: Option<&Body>) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO records(seq, kind, boot_id, mono_ns, wall_ms, payload, digest, chain) VALUES(?,?,?,?,?,?,?,?)",
    )?
    .execute(params![
        stored.seq as i64,
        stored.kind,
        stored.stamp.boot_id,
        stored.stamp.mono_ns as i64,
        stored.stamp.wall_ms,
        stored.payload,
        stored.digest.0,
        stored.chain.0,
    ])?;
    if let Some(needed) = body.map(Body::version)
        && needed > OLDEST_VERSION
        && needed > version(conn)?
    {
        conn.execute_batch(&format!("PRAGMA user_version={needed}"))?;
    }
    match body {
        Some(Body::Shown(b)) => conn
            .prepare_cached("INSERT INTO shown(prediction_id, seq) VALUES(?,?)")?
            .execute(params![b.prediction_id, stored.seq as i64])
            .map(drop),
        Some(Body::Press(b)) => conn
            .prepare_cached("INSERT INTO press(press_id, prediction_id, source) VALUES(?,?,?)")?
            .execute(params![stored.seq as i64, b.bound(), b.source.to_string()])
            .map(drop),
        _ => Ok(()),
    }
}

/// A number of `meta`.
pub(super) fn meta(conn: &Connection, key: &str) -> rusqlite::Result<Option<i64>> {
    conn.query_row("SELECT value FROM meta WHERE key=?", [key], |r| r.get(0)).optional()
}

/// Sets a number of `meta`.
pub(super) fn set_meta(conn: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    conn.execute(
        "INSERT INTO meta(key, value) VALUES(?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value",
        params![key, value],
    )
    .map(drop)
}

/// True when prediction `id` has a record that can be read.
pub(super) fn is_shown(conn: &Connection, id: u32) -> rusqlite::Result<bool> {
    conn.prepare_cached("SELECT 1 FROM shown WHERE prediction_id=?")?.exists([id])
}

/// The id after the highest one ever given out, as far as the tables know.
pub(super) fn next_prediction(conn: &Connection) -> rusqlite::Result<u64> {
    let highest: Option<i64> = conn.query_row("SELECT max(prediction_id) FROM shown", [], |r| r.get(0))?;
    let floor = meta(conn, "next_prediction_id")?.unwrap_or(1);
    Ok((highest.unwrap_or(0) + 1).max(floor) as u64)
}
