//! The loop: see → show → be told → learn → answer better.
//!
//! An [`App`] joins a model with the state directory of one person: the journal is the truth, the learner a function of
//! it, the adapter in use the last one the gate let through. Whoever shows answers calls [`App::answer`] and
//! [`App::show`]; whoever hears something said hands it to [`App::press`], or, where a transport has already made it
//! durable, calls [`App::catch_up`].
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use crate::adapters::{Adapter, AdapterError, AdapterId, AdapterStore, Provenance};
use crate::class::{Class, Classified};
use crate::feedback::ledger::{SharedJournal, lock};
use crate::journal::{
    AdapterAction, AdapterEvent, Changes, EffectivePress, Example, Follower, Inference, Journal, Press, PressId,
    StoreError,
};
use crate::learn::classes::continued;
use crate::learn::{
    Action, Asker, Classes, ClassesError, Decision, Display, HeadBase, Kept, LearnError, Learner, LearnerConfig, Mode,
    Outcome, Retain, Task, Temperature, Theta, Trip,
};
use crate::modality::Sample;
use crate::model::{Model, ModelError, Seen};
use crate::state::{StateDir, StateError};

pub mod classes;
mod freeze;
mod kept;
pub mod listen;
pub mod offpolicy;
mod presses;
pub mod question;
pub mod redacted;
pub mod rehearsal;
mod relearn;
mod rollback;
mod tuned;

use freeze::numbers;
use kept::KeptInputs;
pub use kept::Quota;
pub use presses::Presses;
use question::Last;
use rehearsal::Chance;
use rollback::History;

/// The name of the factory head in the journal.
const FACTORY: &str = "factory";

/// Why the loop cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The learner.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// A change of the classes.
    #[error(transparent)]
    Classes(#[from] ClassesError),
    /// An adapter of classes nobody has told of.
    #[error(
        "the adapter has {adapter} classes and {known} are known; the journal it was learned with is not the one here. \
         `hone adapter use factory` goes on without"
    )]
    ForeignClasses {
        /// Classes of the adapter.
        adapter: usize,
        /// Classes known.
        known: usize,
    },
    /// Something is said about an answer before there is one.
    #[error("nothing was answered yet that this could be about")]
    NothingSeen,
    /// Something is to be retained that the bundle does not ship.
    #[error(
        "the bundle ships no source samples (train/coreset.safetensors), so there is nothing to retain by `{retain}`; \
         `hone export --source DIR` makes a bundle with some"
    )]
    NoSource {
        /// What was asked for.
        retain: &'static str,
    },
    /// An adapter over other random features than are asked for.
    #[error(
        "the adapter is over {adapter} random features, not {asked}; leave --random-features out to go on with it, or \
         `hone adapter use factory` first"
    )]
    OtherFeatures {
        /// Random features of the adapter.
        adapter: usize,
        /// Random features asked for.
        asked: usize,
    },
    /// What the task of this model does not have.
    #[error("this model's task is {task}, which knows no {what}")]
    OtherTask {
        /// The task.
        task: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// No randomness for exploration.
    #[error("the operating system gives no randomness, without which nothing can be explored: {why}")]
    NoRandomness {
        /// Why.
        why: String,
    },
}

impl Classified for AppError {
    fn class(&self) -> Class {
        match self {
            AppError::Model(e) => e.class(),
            AppError::State(e) => e.class(),
            AppError::Store(e) => e.class(),
            AppError::Adapter(e) => e.class(),
            AppError::Learn(e) => e.class(),
            AppError::Classes(e) => e.class(),
            AppError::ForeignClasses { .. } => Class::Store,
            AppError::NoSource { .. } | AppError::OtherFeatures { .. } | AppError::OtherTask { .. } => Class::Usage,
            AppError::NoRandomness { .. } | AppError::NothingSeen => Class::Failed,
        }
    }
}

/// An answer, not yet shown.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the graph made of the sample.
    pub seen: Seen,
    /// Logits with the adapter in use, of every class it knows.
    pub served: Vec<f32>,
    /// Probabilities of every class known, `[K]`; 0 for one that is merged into another or that nobody has named yet.
    pub probabilities: Vec<f32>,
    /// The class to show.
    pub class: usize,
    /// Which classes are as good as it: itself alone but where the task is about numbers. Probabilities of all of them
    /// count.
    pub near: std::ops::RangeInclusive<usize>,
    /// Probability with which it was chosen to be shown; 1 where nothing is explored.
    pub mu: f32,
    /// How sure it is by the temperature fitted on confirmed presses; [`Answer::p`] where there were none.
    pub confidence: f32,
}

/// How a loop learns, shows and asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The gate's rule.
    pub gate: Mode,
    /// The objective, by its name; `None`: as the recipe says, else `posterior`.
    pub objective: Option<String>,
    /// How much what comes after an answer counts, see [`Hyper::discount`](crate::learn::Hyper::discount); `None`: as
    /// the recipe says, else not at all.
    pub discount: Option<f64>,
    /// How much of the source is learned beside the presses; `None`: as with the adapter in use, else as the recipe
    /// says, else nothing.
    pub retain: Option<Retain>,
    /// Random Fourier features beside the graph's; `None`: those of the adapter in use, else as the recipe says, else
    /// none.
    pub random_features: Option<usize>,
    /// Which answer is shown.
    pub display: Display,
    /// The share of what is shown that may be asked about; `None`: nobody is asked.
    pub ask: Option<f64>,
    /// Answers less sure than this are held back; `None`: none is.
    pub abstain: Option<f64>,
    /// What exploration draws from; `None`: the operating system.
    pub seed: Option<u64>,
}

impl Answer {
    /// Probability that the answer is right.
    pub fn p(&self) -> f32 {
        let near = self.near.clone().filter_map(|c| self.probabilities.get(c));
        near.map(|&p| f64::from(p)).sum::<f64>().min(1.0) as f32
    }

    /// Classes by falling probability.
    pub fn ranking(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.probabilities.len()).collect();
        order.sort_by(|&a, &b| self.probabilities[b].total_cmp(&self.probabilities[a]).then(a.cmp(&b)));
        order
    }
}

/// Something the learner did because of what was said.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a handful for each press, read and dropped")]
pub enum Learned {
    /// A press was taken up.
    Press {
        /// The press.
        id: PressId,
        /// What became of it.
        outcome: Outcome,
    },
    /// A press was taken back.
    Undone {
        /// The press.
        id: PressId,
    },
    /// The last thumbs have begun to contradict each other: only confirmed presses and corrections help now.
    Contradicted {
        /// Share of them that differ from the thumb given to the most similar input.
        apart: f64,
    },
    /// A candidate went before the gate.
    Decided {
        /// The verdict with its numbers.
        decision: Decision,
        /// The adapter now in use, when it changed; `None` inside is the factory head.
        changed: Option<Option<AdapterId>>,
        /// What the candidate keeps of the source; `None` where the bundle ships nothing to measure by.
        kept: Option<Kept>,
    },
}

/// A model, a person's state, and the learner between them.
pub struct App {
    model: Model,
    journal: SharedJournal,
    adapters: AdapterStore,
    /// The shipped head, with random features where they are learned on.
    base: HeadBase,
    learner: Learner,
    settings: Settings,
    retain: Retain,
    asker: Option<Asker>,
    chance: Chance,
    /// The id of the answer shown last; about how many were shown.
    shown: u64,
    last: Option<Last>,
    temperature: Temperature,
    classes: Classes,
    current: Option<AdapterId>,
    /// Classes of the adapter in use.
    live: usize,
    /// Presses about classes added on the device, with the class.
    named: BTreeMap<PressId, usize>,
    /// Presses the learner holds.
    taken: BTreeSet<PressId>,
    /// How far the journal has been followed.
    follower: Follower,
    /// What the journal has told and the learner has not taken up yet.
    backlog: Backlog,
    last_seq: u64,
    /// The newest asked-for rollback that is known to be settled.
    rollbacks_until: u64,
    kept: KeptInputs,
    /// That presses contradict each other has been said.
    contradicted: bool,
    /// The trip that is on record.
    frozen: Option<Trip>,
}

/// Changes of the journal on their way to the learner. They wait here, so that an error on the way loses none of them.
#[derive(Default)]
struct Backlog {
    vanished: VecDeque<PressId>,
    appeared: VecDeque<EffectivePress>,
}

impl Backlog {
    fn add(&mut self, changes: Changes) {
        self.appeared.retain(|p| !changes.vanished.contains(&p.press_id));
        self.vanished.extend(changes.vanished);
        self.appeared.extend(changes.appeared);
    }
}

/// A learner's settings from a bundle's recipe, where `settings` do not say otherwise.
pub fn learner_config(model: &Model, settings: &Settings) -> LearnerConfig {
    let mut config = LearnerConfig::default();
    let defaults = &model.recipe().defaults;
    if let Some(name) = settings.objective.as_ref().or(defaults.objective.as_ref()) {
        config.objective = name.clone();
    }
    if let Some(v) = settings.discount.or(defaults.discount.map(f64::from)) {
        config.solver.hyper.discount = v;
    }
    if let Some(v) = defaults.epsilon {
        config.solver.hyper.epsilon = f64::from(v);
    }
    if let Some(v) = defaults.delta {
        config.solver.hyper.delta = f64::from(v);
    }
    if let Some(v) = defaults.lambda_thumb {
        config.solver.lambda_partial = f64::from(v);
    }
    if let Some(v) = defaults.lambda_corrections {
        config.solver.lambda_label = f64::from(v);
    }
    if let Some(n) = defaults.iterations {
        config.solver.canonical_iterations = n as usize;
    }
    if let Some(v) = defaults.momentum {
        config.solver.canonical_momentum = f64::from(v);
    }
    config.tripwire.prior = model.task().displayed_shares(model.recipe().prior.as_deref());
    config.task = model.task().clone();
    config.gate.mode = settings.gate;
    config
}

impl App {
    /// Opens the state of a person for writing and takes the learner up where the journal left it.
    ///
    /// # Errors
    /// [`AppError::State`] with [`Class::TryAgain`] when another process holds the state; otherwise whatever is wrong
    /// with journal, adapter or model.
    pub fn open(model: Model, state: &StateDir, gate: Mode) -> Result<App, AppError> {
        App::open_with(model, state, Settings { gate, ..Settings::default() })
    }

    /// As [`App::open`], with every setting.
    ///
    /// # Errors
    /// As [`App::open`]; [`AppError::OtherTask`], [`AppError::NoSource`], [`AppError::OtherFeatures`],
    /// [`AppError::Learn`] for settings that cannot be.
    pub fn open_with(model: Model, state: &StateDir, settings: Settings) -> Result<App, AppError> {
        if settings.display == Display::Explore && model.task().is_graded() {
            return Err(AppError::OtherTask { task: model.task().name(), what: "displays that explore" });
        }
        state.create()?;
        let journal = Journal::open(state.lock()?)?;
        let adapters = AdapterStore::new(state, model.bundle().base_digest())?;
        let classes = classes::told(model.labels(), model.bundle().base_digest(), journal.reader())?;
        let defaults = &model.recipe().defaults;
        let before = adapters.current()?.map(|a| a.provenance);
        let from_recipe = defaults.retain.as_deref().and_then(Retain::find);
        let retain = settings.retain.or(before.as_ref().map(|p| p.retain)).or(from_recipe).unwrap_or_default();
        if retain != Retain::Adapt && model.coreset().is_none_or(|c| c.train.is_empty()) {
            return Err(AppError::NoSource { retain: retain.name() });
        }
        let in_use = before.map_or(0, |p| p.random_features);
        let from_recipe = defaults.random_features.map_or(0, |n| n as usize);
        let random = settings.random_features.unwrap_or(if in_use > 0 { in_use } else { from_recipe });
        let base = model.base().with_fourier(random);
        let seed = match (settings.seed, settings.display) {
            (Some(seed), _) => seed,
            (None, Display::Argmax) => 0,
            (None, Display::Explore) => getrandom::u64().map_err(|e| AppError::NoRandomness { why: e.to_string() })?,
        };
        let shown = journal.reader().next_prediction_id()?.saturating_sub(1);
        let mut app = App {
            learner: Learner::new(base.clone(), learner_config(&model, &settings))?,
            live: base.classes(),
            base,
            retain,
            asker: settings.ask.map(Asker::new).transpose()?,
            chance: Chance::new(seed),
            shown,
            last: None,
            temperature: Temperature::default(),
            settings,
            model,
            journal: Arc::new(Mutex::new(journal)),
            adapters,
            classes,
            current: None,
            named: BTreeMap::new(),
            taken: BTreeSet::new(),
            follower: Follower::default(),
            backlog: Backlog::default(),
            last_seq: 0,
            rollbacks_until: 0,
            kept: KeptInputs::new(state),
            contradicted: false,
            frozen: None,
        };
        let effective = lock(&app.journal).reader().changes(&mut app.follower)?.appeared;
        let published = app.in_use(app.adapters.current_id()?)?;
        app.relearn(&effective, app.follower.at(), published)?;
        app.record_freeze()?;
        app.contradicted = app.learner.contradicted();
        app.rollbacks_until = History::read(lock(&app.journal).reader(), 0)?.settled();
        Ok(app)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The learner.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// The journal, to share with the threads that serve pads.
    pub fn journal(&self) -> SharedJournal {
        self.journal.clone()
    }

    /// The adapters of this bundle.
    pub fn adapters(&self) -> &AdapterStore {
        &self.adapters
    }

    /// How much of the source is learned beside the presses.
    pub fn retain(&self) -> Retain {
        self.retain
    }

    /// The temperature of the head in use, by its confirmed presses.
    pub fn temperature(&self) -> Temperature {
        self.temperature
    }

    /// What a correction keeps of the source; `None` where the bundle ships nothing to measure by.
    ///
    /// # Errors
    /// [`AppError::Learn`] for one of another head.
    pub fn kept(&self, theta: &Theta) -> Result<Option<Kept>, AppError> {
        Ok(self.model.coreset().map(|c| c.kept(self.model.task(), &self.base, theta)).transpose()?.flatten())
    }

    /// The classes known now.
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// The adapter in use; `None` is the factory head.
    pub fn current(&self) -> Option<&AdapterId> {
        self.current.as_ref()
    }

    /// Keeps the inputs of predictions from now on, within a quota.
    ///
    /// # Errors
    /// [`AppError::Store`] when the kept ones cannot be counted.
    pub fn keep_inputs(&mut self, quota: Quota) -> Result<(), AppError> {
        Ok(self.kept.keep(quota)?)
    }

    /// Presses about this bundle that cannot train: another body has made their features, and their inputs are not
    /// kept.
    ///
    /// # Errors
    /// [`AppError::Store`].
    pub fn stale(&self) -> Result<usize, AppError> {
        let presses = lock(&self.journal).reader().effective_presses()?;
        Ok(presses.iter().filter(|p| self.kept.is_stale(&self.model, p)).count())
    }

    /// Answers one sample, which stands for itself, with the adapter in use. Nothing is recorded.
    ///
    /// # Errors
    /// [`AppError::Model`].
    pub fn answer(&mut self, sample: &Sample<'_>) -> Result<Answer, AppError> {
        let seen = self.model.see(sample)?;
        self.answered(seen)
    }

    /// Answers the next sample of a stream, see [`Model::see_next`].
    ///
    /// # Errors
    /// [`AppError::Model`].
    pub fn answer_next(&mut self, sample: &Sample<'_>) -> Result<Answer, AppError> {
        let seen = self.model.see_next(sample)?;
        self.answered(seen)
    }

    fn answered(&self, seen: Seen) -> Result<Answer, AppError> {
        let mut served = self.learner.logits(&seen.feature, &continued(&seen.logits, self.awake()))?;
        // Presses of a moment ago may be about classes the adapter in use does not have.
        served.truncate(if self.settings.gate == Mode::Off { self.awake() } else { self.live });
        let probabilities = self.classes.probabilities(&served);
        let class = self.classes.top(&served);
        let confidence = match self.temperature.n {
            0 => self.model.task().mass(&probabilities, class),
            _ => self.classes.probabilities(&self.temperature.apply(&served))[class],
        };
        let near = self.near(class);
        Ok(Answer { seen, served, probabilities, class, near, mu: 1.0, confidence })
    }

    /// What answers and presses mean.
    pub fn task(&self) -> &Task {
        self.model.task()
    }

    /// Names of what can be said by number: the classes, merged ones under their old names, then the task's remarks.
    pub fn vocabulary(&self) -> Vec<String> {
        [self.classes.names(), self.task().remarks()].concat()
    }

    /// The class number a name stands for: a class, or a remark of the task.
    ///
    /// # Errors
    /// [`AppError::Classes`] for a name nobody knows.
    pub fn choice(&self, name: &str) -> Result<usize, AppError> {
        match self.task() {
            task if task.is_plain() => Ok(self.classes.find(name)?),
            task => task
                .choice(name)
                .ok_or_else(|| ClassesError::Unknown { class: name.to_string(), known: self.vocabulary() }.into()),
        }
    }

    /// The classes that are as good an answer as `class`.
    fn near(&self, class: usize) -> std::ops::RangeInclusive<usize> {
        let (task, n) = (self.task(), self.classes.len());
        match task.is_graded() {
            false => class..=class,
            true => {
                let first = (0..class).rev().take_while(|&c| task.near(class, c)).last().unwrap_or(class);
                first..=(class + 1..n).take_while(|&c| task.near(class, c)).last().unwrap_or(class)
            }
        }
    }

    /// Tells the trip-wires what was put before a person.
    fn displayed(&mut self, answer: &Answer) -> Result<(), AppError> {
        let graph = continued(&answer.seen.logits, self.awake());
        let mut served = answer.served.clone();
        served.extend_from_slice(graph.get(served.len()..).unwrap_or_default());
        self.learner.displayed(&served, &graph)?;
        self.record_freeze()
    }

    /// Records an answer nobody is asked about: grouped, for drift figures.
    ///
    /// # Errors
    /// [`AppError::Store`].
    pub fn pass(&mut self, answer: &Answer) -> Result<(), AppError> {
        let inference = Inference {
            model_digest: self.model.bundle().base_digest().to_string(),
            adapter_id: self.current.as_ref().map(|a| a.to_string()),
            class: answer.class as u32,
            label: self.classes.name(answer.class).to_string(),
            p: answer.p().clamp(0.0, 1.0),
        };
        Ok(lock(&self.journal).inference(&inference)?)
    }

    fn example(&self, answer: &Answer) -> Example {
        Example {
            model_digest: self.model.maker(),
            adapter_id: self.current.as_ref().map(|a| a.to_string()),
            feature: answer.seen.feature.clone(),
            logits: answer.seen.logits.clone(),
            inputs: Vec::new(),
        }
    }

    /// Records something said, then learns from it. It is durable when this returns, whatever the learner makes of it.
    ///
    /// # Errors
    /// [`AppError::Store`]: nothing was recorded and nothing may be acknowledged.
    pub fn press(&mut self, press: &Press) -> Result<(PressId, Vec<Learned>), AppError> {
        let id = lock(&self.journal).press(press)?;
        Ok((id, self.catch_up()?))
    }

    /// Brings the learner in line with the journal: new presses are taken up, vanished ones taken back, and when enough
    /// has been said a candidate goes before the gate.
    ///
    /// # Errors
    /// [`AppError`]; the journal is untouched and the next call tries again.
    pub fn catch_up(&mut self) -> Result<Vec<Learned>, AppError> {
        let changes = lock(&self.journal).reader().changes(&mut self.follower)?;
        self.kept.remake(&mut self.model, &changes.appeared);
        self.backlog.add(changes);
        self.last_seq = self.last_seq.max(self.follower.at());
        let mut learned = Vec::new();
        for id in &self.backlog.vanished {
            self.named.remove(id);
        }
        let about: Vec<_> =
            self.backlog.appeared.iter().filter_map(|p| Some((p.press_id, self.added_class(p)?))).collect();
        self.named.extend(about);
        if self.awake() != self.learner.base().classes() {
            learned.extend(self.take_up_anew()?);
        }
        while let Some(&id) = self.backlog.vanished.front() {
            // One that could not train was never taken.
            if self.taken.contains(&id) {
                self.learner.undo(id.0)?;
                self.taken.remove(&id);
                learned.push(Learned::Undone { id });
            }
            self.backlog.vanished.pop_front();
        }
        while let Some(p) = self.backlog.appeared.front() {
            let id = p.press_id;
            let refused = p.clone();
            if let Some(press) = self.training_press(p, self.awake()) {
                let outcome = self.learner.press(press)?;
                self.taken.insert(id);
                learned.push(Learned::Press { id, outcome });
                if self.learner.frozen().is_none() {
                    // Should the very same wire trip again before this returns, that is another freeze.
                    self.frozen = None;
                }
            }
            self.backlog.appeared.pop_front();
            if refused.confirmed {
                self.temperature = Temperature::fit(&self.learner.told()?);
            }
            self.heard(&refused);
        }
        let said = std::mem::replace(&mut self.contradicted, self.learner.contradicted());
        if let Some(apart) = self.learner.thumbs_apart().filter(|_| self.contradicted && !said) {
            learned.push(Learned::Contradicted { apart });
        }
        self.record_freeze()?;
        if self.learner.candidate_due() {
            learned.push(self.decide()?);
        }
        Ok(learned)
    }

    /// Puts the canonical refit before the gate now, due or not.
    ///
    /// # Errors
    /// [`AppError`]; the adapter in use is then the one before.
    pub fn decide(&mut self) -> Result<Learned, AppError> {
        let theta = self.learner.refit()?;
        let before = self.kept(self.learner.published())?;
        let kept = self.kept(&theta)?;
        let decision = self.learner.judge(&theta)?;
        // First the disk, then the learner: a head that could not be published must not answer as if it had been, and
        // its candidate stays due.
        let mut changed = None;
        let done = match decision.action {
            Action::Publish => {
                let id = self.adapters.publish(&self.adapter(&theta))?;
                self.current = Some(id.clone());
                self.live = theta.classes();
                changed = Some(Some(id.clone()));
                Some((AdapterAction::Published, id.to_string()))
            }
            Action::Rollback => {
                self.adapters.switch(None)?;
                self.current = None;
                self.live = self.classes.shipped_len();
                changed = Some(None);
                Some((AdapterAction::RolledBack, FACTORY.to_string()))
            }
            Action::Veto => Some((AdapterAction::Vetoed, self.current_name())),
            Action::Freeze => Some((AdapterAction::Frozen, self.current_name())),
            Action::Hold => None,
        };
        self.learner.settle(&decision, theta);
        let Some((action, id)) = done else { return Ok(Learned::Decided { decision, changed, kept }) };
        self.temperature = Temperature::fit(&self.learner.told()?);
        let mut numbers = numbers(&decision, &self.learner);
        numbers.insert("temperature".to_string(), self.temperature.t);
        if let (Some(before), Some(kept)) = (before, kept) {
            numbers.insert("kept_samples".to_string(), kept.n as f64);
            numbers.insert("kept_factory".to_string(), kept.factory);
            numbers.insert("kept_before".to_string(), before.now);
            numbers.insert("kept_candidate".to_string(), kept.now);
        }
        self.record(id, action, numbers)?;
        Ok(Learned::Decided { decision, changed, kept })
    }

    /// The canonical correction of the presses that counted when `journal_seq` was the journal's last record: what an
    /// adapter of that provenance must hold.
    ///
    /// # Errors
    /// [`AppError::Store`] or [`AppError::Learn`].
    pub fn recompute(&self, journal_seq: u64) -> Result<Theta, AppError> {
        let effective = lock(&self.journal).reader().effective_presses_at(journal_seq)?;
        let awake = self.awake_by(effective.iter().filter_map(|p| self.added_class(p)));
        Ok(self.resumed(&effective, awake, Theta::zeros(0, self.base.width()))?.refit()?)
    }

    /// Goes back to the adapter before, or to the factory head. One press does this; the learner then rests until as
    /// many presses have come as it takes for a candidate.
    ///
    /// # Errors
    /// [`AdapterError::AtFactory`] when there is nothing before.
    pub fn rollback(&mut self) -> Result<Option<AdapterId>, AppError> {
        self.roll_back(None)
    }

    /// Does the rollbacks that were asked for on a pad and are not done yet: now, or before a stop that came between
    /// the commit of the chord and the switch. Each is done once, whatever stops in between.
    ///
    /// Returns what came of each: the adapter it led to, or that there was nothing before.
    ///
    /// # Errors
    /// [`AppError`]; the next call goes on where this one stopped.
    pub fn finish_rollbacks(&mut self) -> Result<Vec<Result<Option<AdapterId>, AppError>>, AppError> {
        let base = self.model.bundle().base_digest().to_string();
        let history = History::read(lock(&self.journal).reader(), self.rollbacks_until)?;
        let mut done = Vec::new();
        if let Some(id) = history.unfinished(&base, self.current.as_ref())
            && id.as_ref().is_none_or(|id| self.adapters.load(id).is_ok())
        {
            self.switch_back(id.clone())?;
            done.push(Ok(id));
        }
        for seq in history.asked(&base) {
            done.push(match self.roll_back(Some(seq)) {
                // On record as settled all the same, or it would be done once there is something to roll back.
                Err(AppError::Adapter(e @ AdapterError::AtFactory)) => {
                    self.record(self.current_name(), AdapterAction::RolledBack, rollback::request(Some(seq)))?;
                    Err(e.into())
                }
                other => Ok(other?),
            });
            self.rollbacks_until = seq;
        }
        Ok(done)
    }

    /// The decision is recorded before the switch, so that a stop between the two is found and made good at the next
    /// start, and not taken for a rollback that nobody has acted on.
    fn roll_back(&mut self, request: Option<u64>) -> Result<Option<AdapterId>, AppError> {
        let id = self.adapters.before()?;
        self.record(name_of(id.as_ref()), AdapterAction::RolledBack, rollback::request(request))?;
        self.switch_back(id.clone())?;
        Ok(id)
    }

    fn switch_back(&mut self, id: Option<AdapterId>) -> Result<(), AppError> {
        self.adapters.switch(id.as_ref())?;
        self.adopt(id)?;
        self.learner.rest();
        Ok(())
    }

    /// Takes up the adapter `id` of the store as the one in use.
    fn adopt(&mut self, id: Option<AdapterId>) -> Result<(), AppError> {
        let mut whole = Follower::default();
        let effective = lock(&self.journal).reader().changes(&mut whole)?.appeared;
        let theta = self.in_use(id)?;
        self.relearn(&effective, whole.at(), theta)
    }

    /// Makes `id` the adapter that answers; its correction.
    fn in_use(&mut self, id: Option<AdapterId>) -> Result<Theta, AppError> {
        let theta = match &id {
            None => Theta::zeros(self.base.classes(), self.base.width()),
            Some(id) => {
                let a = self.adapters.load(id)?;
                classes::check(&self.classes, Some(&a))?;
                let (adapter, asked) = (a.provenance.random_features, self.base.random_features());
                let theta = Theta::new(a.classes, a.columns, a.theta)?;
                // A linear correction is one over more features too; the other way round there is none.
                match adapter {
                    0 => theta.with_random(asked),
                    _ if adapter == asked => theta,
                    _ => return Err(AppError::OtherFeatures { adapter, asked }),
                }
            }
        };
        self.model.put_on(&self.adapters, id.as_ref()).map_err(|e| match e {
            ModelError::Adapter(e) => AppError::from(e),
            e => e.into(),
        })?;
        self.live = theta.classes();
        self.current = id;
        Ok(theta)
    }

    fn current_name(&self) -> String {
        name_of(self.current.as_ref())
    }

    fn record(&self, id: String, action: AdapterAction, numbers: BTreeMap<String, f64>) -> Result<(), AppError> {
        let base_digest = self.model.bundle().base_digest().to_string();
        lock(&self.journal).adapter(&AdapterEvent { id, base_digest, action, numbers })?;
        Ok(())
    }

    /// The adapter whose Θ is `theta`, with where it comes from.
    fn adapter(&self, theta: &Theta) -> Adapter {
        let solver = &self.learner.config().solver;
        Adapter {
            provenance: Provenance {
                base_digest: self.model.bundle().base_digest().to_string(),
                objective: self.learner.config().objective.clone(),
                presses: self.learner.training_predictions() as u64,
                journal_seq: self.last_seq,
                lambda: solver.lambda_partial,
                delta: solver.hyper.delta,
                epsilon: solver.hyper.epsilon,
                scope: "head".to_string(),
                order: 0,
                parent: None,
                body: self.model.body().cloned(),
                classes: self.known_classes(),
                retain: self.retain,
                random_features: self.base.random_features(),
            },
            classes: theta.classes(),
            columns: theta.width(),
            theta: theta.values().to_vec(),
            tuned: None,
        }
    }
}

/// An adapter's name in the journal.
fn name_of(id: Option<&AdapterId>) -> String {
    id.map_or_else(|| FACTORY.to_string(), |a| a.to_string())
}
