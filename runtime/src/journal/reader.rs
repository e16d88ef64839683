//! Reading: needs no lock, also works while a writer is at it and from a read-only directory.
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::body::{Body, PressBody, Said, ShownBody};
use super::follow::Follower;
use super::record::{Age, Digest, Example, Kind, PressId, RaterId, Record, Source};
use super::resolve::{PressStatus, Resolver};
use super::sql::{self, RECORD_COLUMNS, record_row};
use super::{Stamp, StoreError};
use crate::state::StateDir;

/// No record has a greater number.
pub(super) const NEWEST: u64 = i64::MAX as u64;

/// A journal open for reading.
pub struct Reader {
    conn: Connection,
    state: StateDir,
}

/// Which records [`Reader::list`] returns; the default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only presses of this source.
    pub source: Option<Source>,
    /// Only the record of this prediction and the presses bound to it.
    pub prediction_id: Option<u32>,
    /// Only records after this one.
    pub after_seq: u64,
    /// At most so many, the newest ones; they come in journal order all the same.
    pub limit: Option<usize>,
}

/// What was said, without the example a demonstration carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// 👍 or 👎.
    Thumb {
        /// True for 👍.
        up: bool,
    },
    /// "It is class c."
    Correction {
        /// The right class.
        class: u32,
    },
    /// "This is class c", about an example of its own.
    Demonstration {
        /// Its class.
        class: u32,
    },
    /// One to five stars.
    Stars {
        /// 1..=5.
        stars: u8,
    },
    /// The shown class rather than `over`.
    Preference {
        /// The class liked less.
        over: u32,
    },
    /// "I do not know."
    NotSure,
    /// A press taken back.
    Undo,
}

/// A press that counts, with everything needed to learn from it.
#[derive(Clone, Debug, PartialEq)]
pub struct EffectivePress {
    /// Its number.
    pub press_id: PressId,
    /// The prediction it is about; `None` for a demonstration.
    pub prediction_id: Option<u32>,
    /// What was said; never [`Signal::Undo`].
    pub signal: Signal,
    /// What the model saw: feature as stored (f16 widened to f32), logits of the graph without adapter.
    pub example: Example,
    /// The class that was shown; `None` for a demonstration.
    pub shown_class: Option<u32>,
    /// The probability with which it was chosen to be shown; `None` for a demonstration.
    pub mu: Option<f32>,
    /// The refused prediction of the same sample in whose place this one was offered.
    pub after: Option<u32>,
    /// Said with emphasis: never trains.
    pub confirmed: bool,
    /// Made within 150 ms of a change of the answer.
    pub ambiguous: bool,
    /// Over the rate limit, or from a source under suspicion.
    pub suspect: bool,
    /// Where it comes from.
    pub source: Source,
    /// The badge that counted there.
    pub badge: Option<u16>,
    /// The wall clock when it was recorded, milliseconds since 1970 UTC.
    pub wall_ms: i64,
}

impl EffectivePress {
    /// Whose word it is.
    pub fn rater(&self) -> RaterId {
        RaterId { source: self.source.clone(), badge: self.badge }
    }
}

/// A press as recorded, with what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PressLine {
    /// Its number.
    pub press_id: PressId,
    /// The prediction it names.
    pub prediction_id: Option<u32>,
    /// What was said.
    pub signal: Signal,
    /// What became of it.
    pub status: PressStatus,
    /// Said with emphasis.
    pub confirmed: bool,
    /// Made within 150 ms of a change of the answer.
    pub ambiguous: bool,
    /// Over the rate limit, or from a source under suspicion.
    pub suspect: bool,
    /// Where it comes from.
    pub source: Source,
    /// The badge that counted there.
    pub badge: Option<u16>,
    /// How long before `wall_ms` it was made.
    pub age: Age,
    /// The wall clock when it was recorded, milliseconds since 1970 UTC.
    pub wall_ms: i64,
}

impl PressLine {
    /// Whose word it is.
    pub fn rater(&self) -> RaterId {
        RaterId { source: self.source.clone(), badge: self.badge }
    }
}

/// A prediction and everything said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    /// Its id.
    pub prediction_id: u32,
    /// What the model saw.
    pub example: Example,
    /// The class shown.
    pub class: u32,
    /// Its label.
    pub label: String,
    /// The probability with which it was chosen to be shown.
    pub mu: f32,
    /// The probability the model gave it.
    pub p: f32,
    /// The wall clock when it was recorded, milliseconds since 1970 UTC.
    pub wall_ms: i64,
    /// The presses about it, in journal order.
    pub presses: Vec<PressLine>,
}

/// Counts over a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records in all, redacted ones included.
    pub records: u64,
    /// Records by kind, redacted ones included.
    pub kinds: BTreeMap<Kind, u64>,
    /// Records made unreadable.
    pub redacted: u64,
    /// Readable presses by source.
    pub sources: BTreeMap<Source, u64>,
    /// Presses that count.
    pub effective: u64,
    /// Presses that count and were confirmed.
    pub confirmed: u64,
    /// Presses that count and are suspect.
    pub suspect: u64,
    /// 👍 that count.
    pub thumbs_up: u64,
    /// 👎 that count.
    pub thumbs_down: u64,
    /// Presses about predictions the journal did not know.
    pub orphans: u64,
    /// Presses replaced within two seconds.
    pub superseded: u64,
    /// Presses about predictions that their rater had answered.
    pub late: u64,
    /// Presses taken back.
    pub undone: u64,
    /// Bytes of the database file.
    pub file_bytes: u64,
    /// Wall clock of the first record, milliseconds since 1970 UTC.
    pub first_wall_ms: Option<i64>,
    /// Wall clock of the last record.
    pub last_wall_ms: Option<i64>,
}

impl Reader {
    /// Opens the journal of `state` for reading.
    ///
    /// # Errors
    /// [`StoreError::State`] when there is none; [`StoreError::NotAJournal`], [`StoreError::Newer`], disk trouble.
    pub fn open(state: &StateDir) -> Result<Reader, StoreError> {
        Ok(Reader::over(sql::connect_read(state)?, state.clone()))
    }

    pub(super) fn over(conn: Connection, state: StateDir) -> Reader {
        Reader { conn, state }
    }

    pub(super) fn conn(&self) -> &Connection {
        &self.conn
    }

    pub(super) fn conn_mut(&mut self) -> &mut Connection {
        &mut self.conn
    }

    /// The directory this journal lies in.
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    pub(super) fn fail(&self, e: rusqlite::Error) -> StoreError {
        StoreError::sql(&self.state.journal_db(), e)
    }

    pub(super) fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.state.journal_db(), what }
    }

    /// The records `filter` names, in journal order.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a record of unknown kind; disk trouble.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Record>, StoreError> {
        let mut wheres = vec!["seq > ?".to_string()];
        let mut values: Vec<rusqlite::types::Value> = vec![(filter.after_seq.min(i64::MAX as u64) as i64).into()];
        if let Some(kind) = filter.kind {
            wheres.push("kind = ?".to_string());
            values.push(kind.name().to_string().into());
        }
        if let Some(source) = &filter.source {
            wheres.push("seq IN (SELECT press_id FROM press WHERE source = ?)".to_string());
            values.push(source.to_string().into());
        }
        if let Some(id) = filter.prediction_id {
            wheres.push(
                "seq IN (SELECT seq FROM shown WHERE prediction_id = ?
                         UNION SELECT press_id FROM press WHERE prediction_id = ?)"
                    .to_string(),
            );
            values.extend([i64::from(id).into(), i64::from(id).into()]);
        }
        values.push(filter.limit.map_or(-1, |n| n.min(i64::MAX as usize) as i64).into());
        let text =
            format!("SELECT {RECORD_COLUMNS} FROM records WHERE {} ORDER BY seq DESC LIMIT ?", wheres.join(" AND "));
        let mut statement = self.conn.prepare(&text).map_err(|e| self.fail(e))?;
        let rows = statement.query_map(params_from_iter(values), record_row).map_err(|e| self.fail(e))?;
        let mut records = Vec::new();
        for row in rows {
            let stored = row.map_err(|e| self.fail(e))?;
            records.push(stored.into_record().map_err(|what| self.damaged(what))?);
        }
        records.reverse();
        Ok(records)
    }

    /// A prediction with everything said about it; `None` when its id is unknown or it has been redacted.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a payload that cannot be read; disk trouble.
    pub fn show(&self, prediction_id: u32) -> Result<Option<Story>, StoreError> {
        let Some((shown, stamp)) = self.shown_body(prediction_id)? else { return Ok(None) };
        let example =
            shown.example.to_example().map_err(|why| self.damaged(format!("prediction {prediction_id}: {why}")))?;
        let presses = self.presses()?.into_iter().filter(|p| p.prediction_id == Some(prediction_id)).collect();
        Ok(Some(Story {
            prediction_id,
            example,
            class: shown.class,
            label: shown.label,
            mu: shown.mu as f32,
            p: shown.p as f32,
            wall_ms: stamp.wall_ms,
            presses,
        }))
    }

    /// Every readable press in journal order, with what became of it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a payload that cannot be read; disk trouble.
    pub fn presses(&self) -> Result<Vec<PressLine>, StoreError> {
        let mut resolver = Resolver::default();
        let lines = self.resolve(&mut resolver, 0..=NEWEST, &self.redacted_undos()?)?;
        let status = resolver.finish();
        let settled = |line: PressLine| status.get(&line.press_id).map(|&status| PressLine { status, ..line });
        Ok(lines.into_iter().filter_map(settled).collect())
    }

    /// The presses that count, in journal order, with the stored feature, logits, class and μ of what they are about.
    ///
    /// A pure function of the log: orphans, undone, superseded, late and redacted presses are not among them; confirmed
    /// and suspect ones are, marked. The module documentation says how doubles and undos are settled.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a payload that cannot be read; disk trouble.
    pub fn effective_presses(&self) -> Result<Vec<EffectivePress>, StoreError> {
        Ok(self.changes(&mut Follower::default())?.appeared)
    }

    /// The presses that counted when record `seq` was the last one. A press that came later and took the place of one of
    /// them, or took it back, is as if it had not come; what has been redacted since is gone all the same.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a payload that cannot be read; disk trouble.
    pub fn effective_presses_at(&self, seq: u64) -> Result<Vec<EffectivePress>, StoreError> {
        let snapshot = self.conn.unchecked_transaction().map_err(|e| self.fail(e))?;
        let mut resolver = Resolver::default();
        let mut lines = self.resolve(&mut resolver, 0..=seq, &self.redacted_undos()?)?;
        lines.retain(|line| resolver.is_effective(line.press_id));
        let counted = lines.into_iter().map(|line| PressLine { status: PressStatus::Effective, ..line });
        let presses = counted.map(|line| self.effective(line)).collect();
        drop(snapshot);
        presses
    }

    /// A press that counts, with what it is about.
    pub(super) fn effective(&self, line: PressLine) -> Result<EffectivePress, StoreError> {
        let damaged = |why: String| self.damaged(format!("press {}: {why}", line.press_id.0));
        let (example, about) = match line.signal {
            Signal::Demonstration { .. } => match self.press_body(line.press_id)?.said {
                Said::Demonstration { example, .. } => (example.to_example().map_err(damaged)?, None),
                _ => return Err(damaged("it has changed while it was read".to_string())),
            },
            _ => {
                let shown = line.prediction_id.map(|id| self.shown_body(id)).transpose()?.flatten();
                let (shown, _) = shown.ok_or_else(|| damaged("what it is about is gone".to_string()))?;
                (shown.example.to_example().map_err(damaged)?, Some((shown.class, shown.mu as f32, shown.after)))
            }
        };
        Ok(EffectivePress {
            press_id: line.press_id,
            prediction_id: about.and(line.prediction_id),
            signal: line.signal,
            example,
            shown_class: about.map(|(class, ..)| class),
            mu: about.map(|(_, mu, _)| mu),
            after: about.and_then(|(.., after)| after),
            confirmed: line.confirmed,
            ambiguous: line.ambiguous,
            suspect: line.suspect,
            source: line.source,
            badge: line.badge,
            wall_ms: line.wall_ms,
        })
    }

    /// Counts over the whole journal.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a record that cannot be read; disk trouble.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let snapshot = self.conn.unchecked_transaction().map_err(|e| self.fail(e))?;
        let mut stats = Stats::default();
        let mut statement = self
            .conn
            .prepare("SELECT kind, count(*), sum(payload IS NULL) FROM records GROUP BY kind")
            .map_err(|e| self.fail(e))?;
        let rows = statement
            .query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?, r.get::<_, i64>(2)?)))
            .map_err(|e| self.fail(e))?;
        for row in rows {
            let (name, count, redacted) = row.map_err(|e| self.fail(e))?;
            let kind = Kind::from_name(&name).ok_or_else(|| self.damaged(format!("unknown kind {name:?}")))?;
            stats.kinds.insert(kind, count as u64);
            stats.records += count as u64;
            stats.redacted += redacted as u64;
        }
        let wall = |order: &str| {
            let text = format!("SELECT wall_ms FROM records ORDER BY seq {order} LIMIT 1");
            self.conn.query_row(&text, [], |r| r.get(0)).optional().map_err(|e| self.fail(e))
        };
        stats.first_wall_ms = wall("ASC")?;
        stats.last_wall_ms = wall("DESC")?;
        stats.file_bytes = self
            .conn
            .query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |r| {
                r.get::<_, i64>(0)
            })
            .map_err(|e| self.fail(e))? as u64;
        for press in self.presses()? {
            *stats.sources.entry(press.source).or_default() += 1;
            match press.status {
                PressStatus::Effective => {
                    stats.effective += 1;
                    stats.confirmed += u64::from(press.confirmed);
                    stats.suspect += u64::from(press.suspect);
                    stats.thumbs_up += u64::from(press.signal == Signal::Thumb { up: true });
                    stats.thumbs_down += u64::from(press.signal == Signal::Thumb { up: false });
                }
                PressStatus::Orphan => stats.orphans += 1,
                PressStatus::Superseded { .. } => stats.superseded += 1,
                PressStatus::Late { .. } => stats.late += 1,
                PressStatus::Undone { .. } => stats.undone += 1,
                PressStatus::Undo { .. } => {}
            }
        }
        drop(statement);
        drop(snapshot);
        Ok(stats)
    }

    /// The epoch assigned to a pad; `None` for a pad never greeted.
    ///
    /// # Errors
    /// Disk trouble.
    pub fn epoch(&self, uid: &str) -> Result<Option<u32>, StoreError> {
        super::writer::epoch_of(&self.conn, uid).map_err(|e| self.fail(e))
    }

    /// The number expected next from a pad in an epoch; 1 where nothing is known.
    ///
    /// # Errors
    /// Disk trouble.
    pub fn mark(&self, uid: &str, epoch: u32) -> Result<u32, StoreError> {
        Ok(super::writer::mark_of(&self.conn, uid, epoch).map_err(|e| self.fail(e))?.unwrap_or(1))
    }

    /// The id the next shown prediction gets at the least.
    ///
    /// # Errors
    /// Disk trouble.
    pub fn next_prediction_id(&self) -> Result<u64, StoreError> {
        sql::next_prediction(&self.conn).map_err(|e| self.fail(e))
    }

    /// What became of every press.
    pub(super) fn statuses(&self) -> Result<BTreeMap<PressId, PressStatus>, StoreError> {
        let mut resolver = Resolver::default();
        self.resolve(&mut resolver, 0..=NEWEST, &self.redacted_undos()?)?;
        Ok(resolver.finish())
    }

    /// The blobs readable records refer to.
    pub(super) fn referenced_blobs(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let mut found = BTreeSet::new();
        let text = format!(
            "SELECT {RECORD_COLUMNS} FROM records WHERE payload IS NOT NULL AND kind IN ('shown','press') ORDER BY seq"
        );
        let mut statement = self.conn.prepare(&text).map_err(|e| self.fail(e))?;
        for row in statement.query_map([], record_row).map_err(|e| self.fail(e))? {
            let stored = row.map_err(|e| self.fail(e))?;
            let (Some(kind), Some(text)) = (Kind::from_name(&stored.kind), &stored.payload) else { continue };
            let body = Body::parse(kind, text).map_err(|why| self.damaged(format!("record {}: {why}", stored.seq)))?;
            found.extend(body.inputs());
        }
        Ok(found)
    }

    /// Undos that are no longer readable, with what each took back: the undo keeps its place in the log, what it undid
    /// stands in the redaction, a later record.
    pub(super) fn redacted_undos(&self) -> Result<BTreeMap<u64, PressId>, StoreError> {
        let mut ghosts = BTreeMap::new();
        for record in self.list(&Filter { kind: Some(Kind::Redaction), ..Filter::default() })? {
            if let Some(text) = &record.payload
                && let Body::Redaction(body) = self.parse(&record, text)?
            {
                ghosts.extend(body.undone.into_iter().map(|(undo, press)| (undo.0, press)));
            }
        }
        Ok(ghosts)
    }

    /// Of each redaction that took presses: its own number, and that of the first press it took. What was learned from
    /// the journal between the two may hold them.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a payload that cannot be read; disk trouble.
    pub fn redacted_presses(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        let mut found = Vec::new();
        for record in self.list(&Filter { kind: Some(Kind::Redaction), ..Filter::default() })? {
            let Some(text) = &record.payload else { continue };
            let Body::Redaction(body) = self.parse(&record, text)? else { continue };
            for seq in body.seqs {
                let press = "SELECT 1 FROM records WHERE seq = ? AND kind = 'press'";
                let is_press = self.conn.prepare_cached(press).and_then(|mut s| s.exists([seq as i64]));
                if is_press.map_err(|e| self.fail(e))? {
                    // They are listed as they rise.
                    found.push((record.seq, seq));
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Takes the presses among `records` into `resolver`, which knows those before; gives the readable ones, without
    /// their status, which is known only at the end of the log. `ghosts` are the [`Reader::redacted_undos`].
    pub(super) fn resolve(
        &self,
        resolver: &mut Resolver,
        records: RangeInclusive<u64>,
        ghosts: &BTreeMap<u64, PressId>,
    ) -> Result<Vec<PressLine>, StoreError> {
        let mut lines = Vec::new();
        let text =
            format!("SELECT {RECORD_COLUMNS} FROM records WHERE seq BETWEEN ? AND ? AND kind = 'press' ORDER BY seq");
        let mut statement = self.conn.prepare_cached(&text).map_err(|e| self.fail(e))?;
        let ends = [records.start(), records.end()].map(|&seq| seq.min(NEWEST) as i64);
        for row in statement.query_map(ends, record_row).map_err(|e| self.fail(e))? {
            let stored = row.map_err(|e| self.fail(e))?;
            let stamp = stored.stamp.clone();
            let record = stored.into_record().map_err(|what| self.damaged(what))?;
            let id = PressId(record.seq);
            let Some(text) = &record.payload else {
                if let Some(&press) = ghosts.get(&record.seq) {
                    resolver.keep_undone(press);
                }
                continue;
            };
            if let Body::Press(body) = self.parse(&record, text)? {
                resolver.press(id, &stamp, &body);
                lines.push(press_line(id, &stamp, body));
            }
        }
        Ok(lines)
    }

    fn parse(&self, record: &Record, text: &str) -> Result<Body, StoreError> {
        Body::parse(record.kind, text).map_err(|why| self.damaged(format!("record {}: {why}", record.seq)))
    }

    fn press_body(&self, id: PressId) -> Result<PressBody, StoreError> {
        let text: Option<String> = self
            .conn
            .prepare_cached("SELECT payload FROM records WHERE seq=?")
            .and_then(|mut s| s.query_row([id.0 as i64], |r| r.get(0)))
            .map_err(|e| self.fail(e))?;
        match text.map(|t| Body::parse(Kind::Press, &t)) {
            Some(Ok(Body::Press(body))) => Ok(body),
            Some(Err(why)) => Err(self.damaged(format!("press {}: {why}", id.0))),
            _ => Err(self.damaged(format!("press {} is gone", id.0))),
        }
    }

    fn shown_body(&self, prediction_id: u32) -> Result<Option<(ShownBody, Stamp)>, StoreError> {
        let text = "SELECT r.seq, kind, boot_id, mono_ns, wall_ms, payload, digest, chain
                    FROM shown s JOIN records r ON r.seq = s.seq WHERE s.prediction_id = ?";
        let stored = self
            .conn
            .prepare_cached(text)
            .and_then(|mut s| s.query_row([prediction_id], record_row).optional())
            .map_err(|e| self.fail(e))?;
        let Some(stored) = stored else { return Ok(None) };
        let Some(text) = stored.payload else { return Ok(None) };
        match Body::parse(Kind::Shown, &text) {
            Ok(Body::Shown(body)) => Ok(Some((body, stored.stamp))),
            Ok(_) => Ok(None),
            Err(why) => Err(self.damaged(format!("prediction {prediction_id}: {why}"))),
        }
    }
}

/// A line without its status, which is known only at the end of the log.
fn press_line(press_id: PressId, stamp: &Stamp, body: PressBody) -> PressLine {
    let signal = match body.said {
        Said::Thumb { up } => Signal::Thumb { up },
        Said::Correction { class } => Signal::Correction { class },
        Said::Demonstration { class, .. } => Signal::Demonstration { class },
        Said::Stars { stars } => Signal::Stars { stars },
        Said::Preference { over } => Signal::Preference { over },
        Said::NotSure => Signal::NotSure,
        Said::Undo { .. } => Signal::Undo,
    };
    PressLine {
        press_id,
        prediction_id: body.prediction_id,
        signal,
        status: PressStatus::Orphan,
        confirmed: body.confirmed,
        ambiguous: body.ambiguous,
        suspect: body.suspect,
        source: body.source,
        badge: body.badge,
        age: body.age,
        wall_ms: stamp.wall_ms,
    }
}
