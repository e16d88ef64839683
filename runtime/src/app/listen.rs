//! The loop on a device: sources in, answers shown, presses heard, adapters changed, until told to stop.
//!
//! One thread runs it. Sources and pads have threads of their own; what they bring waits in their mailboxes and in the
//! journal, so that a slow model delays answers and loses no press.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hone_wire::message::{Labels, Prompt};

use super::question::Ask;
use super::{Answer, App, AppError, Learned};
use crate::adapters::AdapterId;
use crate::capture::{
    self, CaptureError, Frame, Kind, Medium, Picture, Poll, ShowReason, ShownConfig, ShownRule, Sound,
};
use crate::class::{Class, Classified};
use crate::feedback::ledger::JournalLedger;
use crate::feedback::listener::{Listener, Notice, Opening};
use crate::feedback::policy::Policy;
use crate::feedback::source::{Source as PressSource, SourceError};
use crate::journal::{ClassChange, Press, PressKind, Source};
use crate::learn::ClassesError;
use crate::modality::{Audio, Image, ModalityError, Pixels, Sample};
use crate::model::ModelError;
use crate::note::Note;

/// A picture or reading older than this is not joined with a newer sound or the other way round.
const JOINED_WITHIN: Duration = Duration::from_secs(2);
/// How long one turn waits for a frame.
const TURN: Duration = Duration::from_millis(20);

/// Why the loop stopped.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The app.
    #[error(transparent)]
    App(#[from] AppError),
    /// A source.
    #[error("{medium}: {source}")]
    Capture {
        /// Which.
        medium: Medium,
        /// Why.
        source: CaptureError,
    },
    /// A pad.
    #[error(transparent)]
    Pad(#[from] SourceError),
    /// The configuration gives buttons meanings that this model does not have.
    #[error("the configuration does not fit the model: {}", wrong.join("; "))]
    Meanings {
        /// Each with its file and line.
        wrong: Vec<String>,
    },
    /// Nothing to look at.
    #[error("nothing to look at: give --camera, --mic or --sensor; the model takes {}", takes.join(", "))]
    NoSource {
        /// The model's modalities.
        takes: Vec<&'static str>,
    },
    /// A source of something the model does not take.
    #[error("the model takes {}, not {medium}", takes.join(", "))]
    NotTaken {
        /// What was given.
        medium: Medium,
        /// The model's modalities.
        takes: Vec<&'static str>,
    },
}

impl Classified for ListenError {
    fn class(&self) -> Class {
        match self {
            ListenError::App(e) => e.class(),
            ListenError::Capture { source, .. } => source.class(),
            ListenError::Pad(e) => e.class(),
            ListenError::Meanings { .. } => Class::Config,
            ListenError::NoSource { .. } | ListenError::NotTaken { .. } => Class::Usage,
        }
    }
}

/// What to look at, whom to hear, when to show.
#[derive(Default)]
pub struct ListenConfig {
    /// Sources by what they give, each in the words of `capture::SOURCES`.
    pub sources: Vec<(Medium, String)>,
    /// Where presses come from; what is not there is waited for.
    pub pads: Vec<Box<dyn PressSource>>,
    /// Whom to hear, and what buttons mean.
    pub policy: Policy,
    /// When an answer counts as shown.
    pub shown: ShownConfig,
    /// After a 👎, offer the class next in line.
    pub offer: bool,
}

/// Something said by other means than a pad: a line of text, a key, a page.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// Something about the answer shown last.
    Said {
        /// What.
        kind: PressKind,
        /// With emphasis.
        confirmed: bool,
        /// By whom.
        source: Source,
    },
    /// A class, named.
    Named {
        /// The class, by its name.
        label: String,
        /// What is said of it.
        naming: Naming,
        /// With emphasis.
        confirmed: bool,
        /// By whom.
        source: Source,
    },
    /// Change the classes.
    Classes(ClassChange),
    /// Show the next answer, whatever it is.
    Trigger,
    /// Go back to the adapter before.
    Rollback,
    /// End the loop.
    Stop,
}

/// What is said by naming a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// The answer shown last should have been it.
    Right,
    /// The answer shown last, rather than it.
    RatherThan,
    /// What is seen now is it, whatever was shown.
    Now,
}

/// What happens while it runs.
#[derive(Debug)]
pub enum Happening<'a> {
    /// An answer is put before the person; its record is durable.
    Shown {
        /// Binds what is said about it.
        prediction_id: u32,
        /// The answer.
        answer: &'a Answer,
        /// What is asked with it.
        ask: Ask,
        /// Why now.
        reason: ShowReason,
        /// Lossy steps between sensor and model.
        notes: Vec<Note>,
    },
    /// The class next in line is put before the person who refused the answer shown last; its record is durable.
    Offered {
        /// Binds what is said about it.
        prediction_id: u32,
        /// The refused answer.
        after: u32,
        /// The answer.
        answer: &'a Answer,
    },
    /// The learner did something.
    Learned(Learned),
    /// Something said was recorded, and may now be acknowledged to whoever said it.
    Recorded {
        /// Its number in the journal.
        press: u64,
    },
    /// The classes have changed.
    Classes,
    /// The adapter before is back; `None` is the factory head.
    RolledBack(Option<AdapterId>),
    /// A frame could not be used; the loop goes on with the next.
    BadFrame(&'a ModalityError),
    /// A source speaks about itself.
    Source {
        /// Which.
        medium: Medium,
        /// What.
        event: capture::Event,
    },
    /// A pad or its line speaks about itself.
    Pad(Notice),
    /// Something was said or asked for that could not be done; nothing was lost.
    Refused(&'a AppError),
}

/// Runs until `stop` is set, a [`Word::Stop`] comes, or every source has ended and no word can come any more.
///
/// # Errors
/// [`ListenError`] when a source gives up or the journal cannot be written any more; what was acknowledged is durable.
pub fn listen(
    app: &mut App,
    config: ListenConfig,
    words: &Receiver<Word>,
    stop: &AtomicBool,
    mut tell: impl FnMut(&App, Happening<'_>),
) -> Result<(), ListenError> {
    let takes = app.model().modalities();
    let mut sources = Vec::new();
    for (medium, spec) in &config.sources {
        if *medium != Medium::Trigger && !takes.contains(&medium.name()) {
            return Err(ListenError::NotTaken { medium: *medium, takes });
        }
        let source = capture::open(*medium, spec).map_err(|source| ListenError::Capture { medium: *medium, source })?;
        sources.push((*medium, source, false));
    }
    if !sources.iter().any(|(m, ..)| *m != Medium::Trigger) {
        return Err(ListenError::NoSource { takes });
    }
    let (notices, heard) = channel();
    let mut pads = Vec::new();
    // By class number, as buttons name them; merged classes under their old names.
    let names = app.vocabulary();
    config.policy.check(&names).map_err(|wrong| ListenError::Meanings { wrong })?;
    let policy = Arc::new(Policy { remarks: app.task().remarks().len(), ..config.policy });
    for source in config.pads {
        let ledger = JournalLedger::new(app.journal(), policy.clone(), &names);
        pads.push(Listener::start(source, Opening::WhenThere, Box::new(ledger), notices.clone())?);
    }
    let mut open_pads = pads.len();
    let mut rule = ShownRule::new(config.shown);
    let mut latest = Latest::default();
    let (mut last_shown, mut newest) = (None, None);
    let mut words_open = true;
    finish_rollbacks(app, &mut tell)?;
    while !stop.load(Ordering::Relaxed) {
        let mut ended = true;
        let mut fresh = None;
        let share = TURN / sources.len() as u32;
        for (medium, source, done) in &mut sources {
            for event in source.events() {
                tell(app, Happening::Source { medium: *medium, event });
            }
            if *done {
                continue;
            }
            match source.next(share).map_err(|source| ListenError::Capture { medium: *medium, source })? {
                Poll::Frame(frame) => {
                    ended = false;
                    match frame.kind {
                        Kind::Trigger(t) => {
                            if t.pressed {
                                rule.trigger(frame.at);
                            }
                        }
                        _ => fresh = latest.take(frame).or(fresh),
                    }
                }
                Poll::Nothing => ended = false,
                Poll::Ended => *done = *medium != Medium::Trigger,
            }
        }
        if let Some(at) = fresh {
            match app.answer_next(&latest.sample(at)) {
                Ok(seen) => match rule.observe(seen.class, seen.p(), Instant::now()) {
                    Some(reason) => {
                        let answer = app.explore(newest.insert(seen).clone());
                        let ask = app.ask(&answer);
                        let prediction_id = app.show(&answer)?;
                        last_shown = Some(prediction_id);
                        let second = if let Ask::Which { or } = ask { Some(or) } else { None };
                        prompt(app, &pads, prediction_id, [Some(answer.class), second].into_iter().flatten())?;
                        let notes = std::mem::take(&mut latest.notes);
                        tell(app, Happening::Shown { prediction_id, answer: &answer, ask, reason, notes });
                    }
                    None => app.pass(newest.insert(seen))?,
                },
                Err(AppError::Model(ModelError::Modality(e))) => tell(app, Happening::BadFrame(&e)),
                Err(e) => return Err(e.into()),
            }
            latest.audio = None;
        }
        while let Ok(notice) = heard.try_recv() {
            if let Notice::Committed { events, .. } = &notice {
                // First, because it is about what is in use and not about what may be published in a moment.
                if events.iter().any(|e| policy.may_roll_back(&e.event)) {
                    finish_rollbacks(app, &mut tell)?;
                }
                learn(app, &mut tell)?;
            }
            open_pads -= usize::from(matches!(notice, Notice::Ended { .. }));
            tell(app, Happening::Pad(notice));
        }
        while words_open {
            match words.try_recv() {
                Ok(Word::Stop) => return Ok(()),
                Ok(Word::Trigger) => rule.trigger(Instant::now()),
                Ok(Word::Rollback) => roll_back(app, &mut tell)?,
                Ok(Word::Said { kind: PressKind::Correction { class }, .. })
                    if class as usize >= app.vocabulary().len() =>
                {
                    let (class, known) = (
                        class.to_string(),
                        match app.task().is_plain() {
                            true => app.classes().visible_names(),
                            false => app.vocabulary(),
                        },
                    );
                    tell(app, Happening::Refused(&ClassesError::Unknown { class, known }.into()));
                }
                Ok(Word::Said { kind, confirmed, source }) => {
                    let about = if matches!(kind, PressKind::Undo { .. }) { None } else { last_shown };
                    say(app, &mut tell, Press { confirmed, ..Press::new(about, kind, source) });
                }
                Ok(Word::Named { label, naming, confirmed, source }) => {
                    match named(app, &label, naming, newest.as_ref()) {
                        Ok(kind) => {
                            let about = last_shown.filter(|_| naming != Naming::Now);
                            say(app, &mut tell, Press { confirmed, ..Press::new(about, kind, source) });
                        }
                        Err(e) => tell(app, Happening::Refused(&e)),
                    }
                }
                Ok(Word::Classes(change)) => match app.change_classes(&change) {
                    Ok(_) => tell(app, Happening::Classes),
                    Err(e) => tell(app, Happening::Refused(&e)),
                },
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => words_open = false,
            }
        }
        if config.offer
            && let Some((after, answer)) = app.runner_up()
        {
            let prediction_id = app.offer(&answer, after)?;
            last_shown = Some(prediction_id);
            prompt(app, &pads, prediction_id, [answer.class])?;
            tell(app, Happening::Offered { prediction_id, after, answer: &answer });
        }
        if ended && open_pads == 0 && !words_open {
            return Ok(());
        }
        if ended {
            std::thread::sleep(TURN);
        }
    }
    Ok(())
}

/// Puts the classes on the pads' labels; without room for all of them the pads ask without labels.
fn prompt(
    app: &App,
    pads: &[Listener],
    prompt_id: u32,
    classes: impl IntoIterator<Item = usize>,
) -> Result<(), SourceError> {
    let names = classes.into_iter().map(|class| app.classes().name(class));
    let labels = Labels::pack(names).unwrap_or_default();
    pads.iter().try_for_each(|pad| pad.prompt(Prompt { prompt_id, ttl_ms: 0, labels: labels.clone() }))
}

/// What naming a class says; `newest` is the answer to what is seen now.
fn named(app: &mut App, label: &str, naming: Naming, newest: Option<&Answer>) -> Result<PressKind, AppError> {
    let class = app.choice(label)?;
    match naming {
        Naming::Right => Ok(PressKind::Correction { class: class as u32 }),
        Naming::RatherThan => app.rather_than(class),
        Naming::Now => app.example_of(class, newest.ok_or(AppError::NothingSeen)?),
    }
}

/// Records what was said and learns from it.
fn say(app: &mut App, tell: &mut impl FnMut(&App, Happening<'_>), press: Press) {
    match app.press(&press) {
        Ok((id, learned)) => {
            tell(app, Happening::Recorded { press: id.0 });
            learned.into_iter().for_each(|l| tell(app, Happening::Learned(l)));
        }
        Err(e) => tell(app, Happening::Refused(&e)),
    }
}

fn learn(app: &mut App, tell: &mut impl FnMut(&App, Happening<'_>)) -> Result<(), AppError> {
    for l in app.catch_up()? {
        tell(app, Happening::Learned(l));
    }
    Ok(())
}

fn finish_rollbacks(app: &mut App, tell: &mut impl FnMut(&App, Happening<'_>)) -> Result<(), AppError> {
    for done in app.finish_rollbacks()? {
        tell_rollback(app, tell, done);
    }
    Ok(())
}

fn roll_back(app: &mut App, tell: &mut impl FnMut(&App, Happening<'_>)) -> Result<(), AppError> {
    let done = match app.rollback() {
        // Being at the factory weights already is an answer, not a reason to stop.
        Err(AppError::Adapter(e)) => Err(e.into()),
        other => Ok(other?),
    };
    tell_rollback(app, tell, done);
    Ok(())
}

fn tell_rollback(app: &App, tell: &mut impl FnMut(&App, Happening<'_>), done: Result<Option<AdapterId>, AppError>) {
    match done {
        Ok(id) => tell(app, Happening::RolledBack(id)),
        Err(e) => tell(app, Happening::Refused(&e)),
    }
}

/// The newest of each modality.
#[derive(Default)]
struct Latest {
    picture: Option<(Instant, Seen)>,
    audio: Option<(Instant, Heard)>,
    sensor: Option<(Instant, String)>,
    notes: Vec<Note>,
}

enum Seen {
    File(Vec<u8>),
    Pixels(Pixels),
}

enum Heard {
    File(Vec<u8>),
    Pcm(u32, Vec<f32>),
}

impl Latest {
    /// Keeps a frame; the moment it came if it can be used.
    fn take(&mut self, frame: Frame) -> Option<Instant> {
        let at = frame.at;
        self.notes = frame.notes;
        if frame.dropped_before > 0 {
            self.notes.push(Note::new("frames-dropped", frame.dropped_before.to_string(), "the newest"));
        }
        match frame.kind {
            Kind::Image(Picture::Encoded(bytes)) => self.picture = Some((at, Seen::File(bytes))),
            Kind::Image(Picture::Raw { width, height, channels, data }) => {
                let pixels =
                    if channels == 1 { Pixels::gray(width, height, data) } else { Pixels::rgb(width, height, data) };
                self.picture = Some((at, Seen::Pixels(pixels.ok()?)));
            }
            Kind::Audio(Sound::File(bytes)) => self.audio = Some((at, Heard::File(bytes))),
            Kind::Audio(Sound::Pcm(pcm)) => {
                let rate_hz = pcm.rate_hz;
                let (samples, note) = pcm.into_mono();
                self.notes.extend(note);
                self.audio = Some((at, Heard::Pcm(rate_hz, samples)));
            }
            Kind::Sensor(text) => self.sensor = Some((at, text)),
            Kind::Trigger(_) => return None,
        }
        Some(at)
    }

    /// Everything that belongs to the moment `at`.
    fn sample(&self, at: Instant) -> Sample<'_> {
        let recent = |t: Instant| at.saturating_duration_since(t) <= JOINED_WITHIN;
        Sample {
            image: self.picture.as_ref().filter(|(t, _)| recent(*t)).map(|(_, p)| match p {
                Seen::File(bytes) => Image::File(bytes),
                Seen::Pixels(pixels) => Image::Pixels(pixels),
            }),
            audio: self.audio.as_ref().filter(|(t, _)| recent(*t)).map(|(_, a)| match a {
                Heard::File(bytes) => Audio::File(bytes),
                Heard::Pcm(rate_hz, samples) => Audio::Pcm { rate_hz: *rate_hz, samples },
            }),
            text: None,
            sensor: self.sensor.as_ref().filter(|(t, _)| recent(*t)).map(|(_, s)| s.as_str()),
        }
    }
}
