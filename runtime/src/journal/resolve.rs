//! Which presses count: a pure function of the log, in journal order.
//!
//! 1. A press that names a prediction the journal did not know is an *orphan* and never counts.
//! 2. One press per prediction and *rater*: whoever shares a source without a badge is one rater. A second one made
//!    within [`REPLACE_WINDOW_MS`] of the **first** takes its place; one made later, or at a time that cannot be compared
//!    (another run of the machine, a pad that has restarted), is *late* and does not count. What different raters say of
//!    one prediction counts side by side: only so can be told who of them is wrong how often.
//! 3. A confirmed press that comes too late to take the place of a plain one of its rater counts beside it: the plain one
//!    is what was said, the confirmed one what was held to be true.
//! 4. An undo takes back the press it names, whoever made it, or else the newest press of its own rater that counts at
//!    that point of the log. What that press had replaced does not come back; it is as if that press had never been.
//!    An undo cannot be undone.
//! 5. A demonstration is about no prediction and always counts.
//!
//! Before version 3 of the format there was one press per prediction, whoever made it, and no rule 3. A press that the two
//! readings tell apart says so in its record (`beside`); the others are what they always were.
use std::collections::{BTreeMap, HashMap};

use super::Stamp;
use super::body::{PressBody, Said};
use super::record::{Age, PressId, RaterId};

/// How long a press may be replaced by another one about the same prediction, in milliseconds.
pub const REPLACE_WINDOW_MS: u64 = 2_000;

/// What became of a press.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PressStatus {
    /// It counts.
    Effective,
    /// It names no prediction the journal knew.
    Orphan,
    /// A press soon after it took its place.
    Superseded {
        /// That press.
        by: PressId,
    },
    /// Its rater had answered the prediction before.
    Late {
        /// The press that counts or counted.
        first: PressId,
    },
    /// It was taken back.
    Undone {
        /// The undo; `None` when that record has been redacted.
        by: Option<PressId>,
    },
    /// It is an undo.
    Undo {
        /// What it took back; `None` when there was nothing.
        of: Option<PressId>,
    },
}

/// Takes presses in journal order and knows the status of each.
#[derive(Default)]
pub(super) struct Resolver {
    status: BTreeMap<PressId, PressStatus>,
    /// What counts about each prediction: of every rater a plain press, a confirmed one, or both.
    answered: HashMap<u32, Vec<Answer>>,
    prediction: HashMap<PressId, u32>,
    by_rater: HashMap<RaterId, Vec<PressId>>,
    /// Presses that have stopped counting since [`Resolver::take_stopped`].
    stopped: Vec<PressId>,
}

struct Answer {
    rater: RaterId,
    confirmed: bool,
    first: Option<Instant>,
    current: PressId,
}

/// When a press was made, comparable within one run of the machine.
#[derive(Clone, PartialEq, Eq)]
struct Instant {
    boot_id: String,
    ms: i128,
}

impl Instant {
    fn of(stamp: &Stamp, age: Age) -> Option<Instant> {
        match age {
            Age::Exact { ms } => Some(Instant {
                boot_id: stamp.boot_id.clone(),
                ms: i128::from(stamp.mono_ns / 1_000_000) - i128::from(ms),
            }),
            Age::Between { .. } | Age::Unknown => None,
        }
    }

    fn is_near(&self, other: &Instant) -> bool {
        self.boot_id == other.boot_id && self.ms.abs_diff(other.ms) <= u128::from(REPLACE_WINDOW_MS)
    }
}

impl Resolver {
    /// Takes the next press of the log.
    pub(super) fn press(&mut self, id: PressId, stamp: &Stamp, body: &PressBody) {
        let status = match (&body.said, body.bound()) {
            (Said::Undo { press_id }, _) => PressStatus::Undo { of: self.undo(id, *press_id, &body.rater()) },
            (Said::Demonstration { .. }, _) => PressStatus::Effective,
            (_, None) => PressStatus::Orphan,
            (_, Some(prediction)) => self.answer(id, prediction, Instant::of(stamp, body.age), body),
        };
        self.status.insert(id, status);
        if status == PressStatus::Effective {
            self.by_rater.entry(body.rater()).or_default().push(id);
        }
    }

    /// Takes the place of an undo of `press` whose record is no longer readable.
    pub(super) fn keep_undone(&mut self, press: PressId) {
        if self.is_effective(press) {
            self.take_back(press, None);
        }
    }

    /// Whether a press counts as the log stands.
    pub(super) fn is_effective(&self, press: PressId) -> bool {
        self.status.get(&press) == Some(&PressStatus::Effective)
    }

    /// The presses that have stopped counting since this was asked last.
    pub(super) fn take_stopped(&mut self) -> Vec<PressId> {
        std::mem::take(&mut self.stopped)
    }

    /// The status of every press, in journal order.
    pub(super) fn finish(self) -> BTreeMap<PressId, PressStatus> {
        self.status
    }

    fn answer(&mut self, id: PressId, prediction: u32, made: Option<Instant>, body: &PressBody) -> PressStatus {
        let (rater, confirmed) = (body.rater(), body.confirmed);
        let answers = self.answered.entry(prediction).or_default();
        // Without the mark there is one answer, whoever gave it.
        let own = |a: &Answer| !body.beside || a.rater == rater;
        let alike = answers.iter().position(|a| own(a) && (!body.beside || a.confirmed == confirmed));
        let before = alike.or_else(|| answers.iter().position(own)).map(|at| &mut answers[at]);
        let near = before.as_ref().and_then(|a| Some(a.first.as_ref()?.is_near(made.as_ref()?))).unwrap_or(false);
        let status = match before {
            Some(answer) if near => {
                self.status.insert(answer.current, PressStatus::Superseded { by: id });
                self.stopped.push(answer.current);
                (answer.current, answer.confirmed, answer.rater) = (id, confirmed, rater);
                PressStatus::Effective
            }
            Some(answer) if !body.beside || !confirmed || answer.confirmed => {
                PressStatus::Late { first: answer.current }
            }
            _ => {
                answers.push(Answer { rater, confirmed, first: made, current: id });
                PressStatus::Effective
            }
        };
        if status == PressStatus::Effective {
            self.prediction.insert(id, prediction);
        }
        status
    }

    fn undo(&mut self, id: PressId, named: Option<PressId>, rater: &RaterId) -> Option<PressId> {
        let target = match named {
            Some(press) => Some(press).filter(|p| self.is_effective(*p)),
            None => self.newest_effective(rater),
        }?;
        self.take_back(target, Some(id));
        Some(target)
    }

    fn newest_effective(&mut self, rater: &RaterId) -> Option<PressId> {
        let stack = self.by_rater.get_mut(rater)?;
        // What stopped counting never counts again, so it can be dropped for good.
        while let Some(top) = stack.pop() {
            if self.status.get(&top) == Some(&PressStatus::Effective) {
                return Some(top);
            }
        }
        None
    }

    fn take_back(&mut self, press: PressId, by: Option<PressId>) {
        self.status.insert(press, PressStatus::Undone { by });
        self.stopped.push(press);
        if let Some(prediction) = self.prediction.remove(&press) {
            let answers = self.answered.entry(prediction).or_default();
            answers.retain(|a| a.current != press);
        }
    }
}
