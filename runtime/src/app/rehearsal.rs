//! A rehearsal: a person who is not there presses a pad that is not there, and everything between is real.
//!
//! The pad is the real core on a pseudo-terminal (`feedback::emulate`), served over the real line (`feedback::serial`)
//! into the real journal; only the finger and the eye are simulated. Gestures take virtual time, latencies are wall
//! time.
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hone_wire::message::{Labels, Prompt};

use super::{App, AppError, Learned};
use crate::class::{Class, Classified};
use crate::dataset::Row;
use crate::feedback::emulate::{Emulator, EmulatorConfig, EmulatorError, Gesture, Step};
use crate::feedback::ledger::{JournalLedger, lock};
use crate::feedback::limit::Limit;
use crate::feedback::listener::{Listener, Notice, Opening};
use crate::feedback::meaning::{Layout, Role};
use crate::feedback::policy::{Policy, Rules};
use crate::feedback::serial::SerialPad;
use crate::feedback::source::SourceError;
use crate::journal::{Filter, Kind, Press, PressKind, Record, Source};
use crate::learn::Task;

/// How long anything on the line may take before the rehearsal gives up.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the person looks before pressing, ms of the pad's clock.
const LOOKS_MS: u32 = 400;

/// Why a rehearsal broke off.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The loop.
    #[error(transparent)]
    App(#[from] AppError),
    /// The emulated pad.
    #[error("the emulated pad: {0}")]
    Pad(#[from] EmulatorError),
    /// The line.
    #[error("the line to the emulated pad: {0}")]
    Serial(#[from] SourceError),
    /// A label of the data that the model does not know.
    #[error("the data says `{label}`, which is no label of the model")]
    Label {
        /// The label.
        label: String,
    },
    /// Nothing was acknowledged.
    #[error("{what} did not come within {} s; the journal has all that was acknowledged", PATIENCE.as_secs())]
    Silence {
        /// What was waited for.
        what: &'static str,
    },
}

impl Classified for RehearsalError {
    fn class(&self) -> Class {
        match self {
            RehearsalError::App(e) => e.class(),
            RehearsalError::Label { .. } => Class::Invalid,
            _ => Class::Device,
        }
    }
}

/// What the person says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// 👍 or 👎, on a pad with two buttons.
    Thumbs,
    /// What is right each time, on a pad with a button for each class; or, where the task has remarks, what is wrong
    /// with the answer, on a pad with a button for each and one for 👍. What no pad has a button for is chosen from a
    /// list: an item of many, and, where it is said with emphasis, a whole set of labels.
    Corrections,
}

/// The person and the plan.
#[derive(Clone, Debug)]
pub struct Script {
    /// What is said.
    pub says: Says,
    /// Presses to make.
    pub presses: usize,
    /// Share of plain presses that are wrong, 0 to 1. Confirmed presses are made with care and are right.
    pub wrong: f64,
    /// The press (from 0) that is made by mistake, taken back with a chord, and made again.
    pub undo_at: Option<usize>,
    /// Order of the samples and which presses are wrong.
    pub seed: u64,
}

/// One shown answer and what was said about it.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Number of the press, from 0.
    pub index: usize,
    /// The prediction's id.
    pub prediction_id: u32,
    /// Index of the row in the data.
    pub row: usize,
    /// The class shown.
    pub shown: usize,
    /// Its probability.
    pub p: f32,
    /// What it really is.
    pub truth: usize,
    /// Whether the answer is right, as the task counts it.
    pub right: bool,
    /// What was said, in words.
    pub said: String,
    /// Said with emphasis: evidence for the gate, never trained.
    pub confirmed: bool,
    /// The press was wrong.
    pub mistaken: bool,
    /// A first press was taken back.
    pub undone: bool,
    /// Preprocessing and inference.
    pub latency: Duration,
    /// From the press to its commit being known here; the gesture takes no wall time.
    pub durable: Duration,
    /// From the commit to the answer being better: learner, gate, and publishing when it was due.
    pub adapted: Duration,
    /// What the learner did.
    pub learned: Vec<Learned>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The turns.
    pub turns: Vec<Turn>,
    /// Presses made on the pad, undo and repeated ones included.
    pub made: usize,
    /// Of those, how many the journal does not have.
    pub lost: usize,
    /// Records in the journal beyond those made.
    pub doubled: usize,
    /// Where the pad was.
    pub port: String,
}

/// A reproducible source of chance: SplitMix64.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Seeded.
    pub fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..1`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Plays `script` over `rows`; `watch` sees every turn as it ends.
///
/// # Errors
/// [`RehearsalError`]; what was acknowledged until then is in the journal.
pub fn play(
    app: &mut App,
    rows: &[&Row],
    script: &Script,
    mut watch: impl FnMut(&App, &Turn),
) -> Result<Summary, RehearsalError> {
    let truths = rows
        .iter()
        .map(|r| app.model().class_of(&r.label).ok_or_else(|| RehearsalError::Label { label: r.label.clone() }))
        .collect::<Result<Vec<usize>, _>>()?;
    let mut chance = Chance::new(script.seed);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    chance.shuffle(&mut order);

    let classes = app.model().labels().len();
    let task = app.task().clone();
    let names = app.vocabulary();
    let remarks = if script.says == Says::Corrections { task.remarks().len() } else { 0 };
    let buttons = match script.says {
        Says::Thumbs => 2,
        Says::Corrections if remarks > 0 => remarks + 1,
        Says::Corrections if classes < hone_pad::MAX_BUTTONS => classes + 1,
        // More than a pad has buttons for.
        Says::Corrections => 2,
    };
    let listed = script.says == Says::Corrections && remarks == 0 && classes >= hone_pad::MAX_BUTTONS;
    let layout = match remarks {
        0 => Layout::for_buttons(buttons),
        _ => Layout::for_remarks(buttons, classes..names.len()),
    };
    let emulator = Emulator::start(EmulatorConfig {
        buttons: u8::try_from(buttons).unwrap_or(u8::MAX),
        virtual_time: true,
        ..EmulatorConfig::default()
    })?;
    let port = emulator.port_name().unwrap_or_default();
    let (notices, heard) = channel();
    // Whoever presses at the speed of a machine is a machine, here with leave.
    let limit = Limit { apart_ms: 0, per_minute: u32::MAX };
    let common = Rules { allow_unpaired: true, limit, ..Rules::default() };
    let policy = Policy { common, remarks, ..Policy::default() };
    let ledger = JournalLedger::new(app.journal(), policy.into(), &names);
    let serial = Listener::start(Box::new(SerialPad::at(&port)), Opening::Now, Box::new(ledger), notices)?;
    let finger = Finger { emulator: &emulator, heard: &heard };
    finger.wait_up()?;

    let before = press_records(app, 0)?.last().map_or(0, |r| r.seq);
    let mut summary = Summary { port, ..Summary::default() };
    let mut typed = 0;
    for index in 0..script.presses {
        let row = order[index % order.len().max(1)];
        let truth = truths[row];
        let answer = app.answer(&rows[row].sample())?;
        let prediction_id = app.show(&answer)?;
        let label = app.model().labels()[answer.class].as_str();
        let labels = Labels::pack([label]).unwrap_or_default();
        serial.prompt(Prompt { prompt_id: prediction_id, ttl_ms: 0, labels })?;
        emulator.await_prompt(prediction_id, PATIENCE)?;
        emulator.step(Step::Wait(LOOKS_MS))?;

        let confirmed = app.learner().wants_confirmation();
        let mistaken = !confirmed && chance.unit() < script.wrong;
        let right = task.near(answer.class, truth);
        let role = match script.says {
            Says::Thumbs if right != mistaken => Role::Up,
            Says::Thumbs => Role::Down,
            Says::Corrections if remarks > 0 => {
                let said = remark(&task, answer.class, truth, mistaken, &mut chance);
                said.map_or(Role::Up, |class| Role::Class(class as u32))
            }
            Says::Corrections if mistaken => Role::Class(((truth + 1 + chance.below(classes - 1)) % classes) as u32),
            Says::Corrections => Role::Class(truth as u32),
        };
        // The whole truth, chosen from a list, where the pad has no button for it.
        let chosen = match role {
            Role::Class(class) if listed => Some(class),
            Role::Class(_) if confirmed && task.parts().is_some() => Some(truth as u32),
            _ => None,
        };
        let undone = script.undo_at == Some(index) && chosen.is_none();
        let mut learned = Vec::new();
        if undone {
            let slip = match role {
                Role::Up if remarks > 0 => Role::Class(classes as u32),
                Role::Class(_) if remarks > 0 => Role::Up,
                Role::Up => Role::Down,
                Role::Down => Role::Up,
                Role::Class(c) => Role::Class((c + 1) % classes as u32),
            };
            finger.press(&layout, slip, Gesture::Click)?;
            learned.extend(app.catch_up()?);
            emulator.step(Step::Wait(LOOKS_MS))?;
            emulator.step(Step::Chord { mask: 0b11, ms: 150 })?;
            finger.wait_committed()?;
            learned.extend(app.catch_up()?);
            emulator.step(Step::Wait(LOOKS_MS))?;
            summary.made += 2;
        }
        let gesture = if confirmed { Gesture::Long } else { Gesture::Click };
        let (durable, start) = match chosen {
            None => {
                let durable = finger.press(&layout, role, gesture)?;
                summary.made += 1;
                (durable, Instant::now())
            }
            Some(class) => {
                let start = Instant::now();
                let press = Press::new(Some(prediction_id), PressKind::Correction { class }, Source::Key);
                lock(&app.journal()).press(&Press { confirmed, ..press }).map_err(AppError::from)?;
                typed += 1;
                (start.elapsed(), Instant::now())
            }
        };
        learned.extend(app.catch_up()?);
        let turn = Turn {
            index,
            prediction_id,
            row,
            shown: answer.class,
            p: answer.p(),
            truth,
            right,
            said: match role {
                _ if chosen.is_some() => format!("it is {}, from the list", names[chosen.unwrap_or_default() as usize]),
                Role::Up => "👍".into(),
                Role::Down => "👎".into(),
                Role::Class(c) if remarks > 0 => names[c as usize].clone(),
                Role::Class(c) => format!("it is {}", app.model().labels()[c as usize]),
            },
            confirmed,
            mistaken,
            undone,
            latency: answer.seen.latency,
            durable,
            adapted: start.elapsed(),
            learned,
        };
        watch(app, &turn);
        summary.turns.push(turn);
    }
    emulator.await_drained(PATIENCE)?;
    // By the pad's own numbers, so that a press lost and another doubled cannot make up for each other.
    let records = press_records(app, before)?;
    let numbers: BTreeSet<String> = records.iter().filter_map(pad_number).collect();
    summary.lost = summary.made.saturating_sub(numbers.len());
    summary.doubled = records.len() - typed - numbers.len() + numbers.len().saturating_sub(summary.made);
    Ok(summary)
}

/// What a person with a button for each remark presses, as a class number; `None` for 👍. Of several that are true, any.
fn remark(task: &Task, shown: usize, truth: usize, mistaken: bool, chance: &mut Chance) -> Option<usize> {
    let all = task.names().len()..task.names().len() + task.remarks().len();
    let fitting = task.true_remarks(shown, truth);
    if !mistaken {
        return (!fitting.is_empty()).then(|| fitting[chance.below(fitting.len())]);
    }
    let mut wrong: Vec<Option<usize>> = all.filter(|c| !fitting.contains(c)).map(Some).collect();
    if !fitting.is_empty() {
        wrong.push(None);
    }
    wrong[chance.below(wrong.len())]
}

/// The records of presses after `after_seq`.
fn press_records(app: &App, after_seq: u64) -> Result<Vec<Record>, AppError> {
    let filter = Filter { kind: Some(Kind::Press), after_seq, ..Filter::default() };
    Ok(lock(&app.journal()).reader().list(&filter)?)
}

/// The pad, epoch and number under which a press was recorded.
fn pad_number(record: &Record) -> Option<String> {
    let payload: serde_json::Value = serde_json::from_str(record.payload.as_deref()?).ok()?;
    payload.get("pad").filter(|p| !p.is_null()).map(|p| p.to_string())
}

struct Finger<'a> {
    emulator: &'a Emulator,
    heard: &'a Receiver<Notice>,
}

impl Finger<'_> {
    fn wait_up(&self) -> Result<(), RehearsalError> {
        self.until("the pad's greeting", |n| matches!(n, Notice::Up { .. }))
    }

    fn wait_committed(&self) -> Result<(), RehearsalError> {
        self.until("an acknowledgement", |n| matches!(n, Notice::Committed { .. }))
    }

    /// Presses the button of `role`; the time until the commit is known.
    fn press(&self, layout: &Layout, role: Role, gesture: Gesture) -> Result<Duration, RehearsalError> {
        let button = layout.button(role).and_then(|b| u8::try_from(b).ok()).unwrap_or_default();
        // The gesture itself takes only the pad's virtual time, so that what is measured is the way from pad to disk.
        let start = Instant::now();
        self.emulator.press(button, gesture)?;
        self.wait_committed()?;
        // A long press is two events, the second when the finger lifts: both must be durable before the next question.
        self.emulator.await_drained(PATIENCE)?;
        let elapsed = start.elapsed();
        while self.heard.try_recv().is_ok() {}
        Ok(elapsed)
    }

    fn until(&self, what: &'static str, wanted: impl Fn(&Notice) -> bool) -> Result<(), RehearsalError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(n) if wanted(&n) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(RehearsalError::Silence { what });
                }
            }
        }
    }
}
