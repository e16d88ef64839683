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
    AdapterAction, AdapterEvent, Changes, EffectivePress, Example, Follower, Inference, Journal, Press, PressId, Shown,
    Signal, StoreError,
};
use crate::learn::{
    Action, Decision, Feedback, LearnError, Learner, LearnerConfig, Mode, Outcome, Theta, TrainingPress, argmax,
};
use crate::modality::Sample;
use crate::model::{Model, ModelError, Seen, probabilities};
use crate::state::{StateDir, StateError};

mod kept;
pub mod listen;
mod presses;
pub mod rehearsal;
mod rollback;
mod tuned;

use kept::Kept;
pub use kept::Quota;
pub use presses::Presses;
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
}

impl Classified for AppError {
    fn class(&self) -> Class {
        match self {
            AppError::Model(e) => e.class(),
            AppError::State(e) => e.class(),
            AppError::Store(e) => e.class(),
            AppError::Adapter(e) => e.class(),
            AppError::Learn(e) => e.class(),
        }
    }
}

/// An answer, not yet shown.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the graph made of the sample.
    pub seen: Seen,
    /// Logits with the adapter in use, `[C]`.
    pub served: Vec<f32>,
    /// Their softmax.
    pub probabilities: Vec<f32>,
    /// The class to show.
    pub class: usize,
}

impl Answer {
    /// Probability of the class to show.
    pub fn p(&self) -> f32 {
        self.probabilities[self.class]
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
    /// A candidate went before the gate.
    Decided {
        /// The verdict with its numbers.
        decision: Decision,
        /// The adapter now in use, when it changed; `None` inside is the factory head.
        changed: Option<Option<AdapterId>>,
    },
}

/// A model, a person's state, and the learner between them.
pub struct App {
    model: Model,
    journal: SharedJournal,
    adapters: AdapterStore,
    learner: Learner,
    current: Option<AdapterId>,
    /// Presses the learner holds.
    taken: BTreeSet<PressId>,
    /// How far the journal has been followed.
    follower: Follower,
    /// What the journal has told and the learner has not taken up yet.
    backlog: Backlog,
    last_seq: u64,
    /// The newest asked-for rollback that is known to be settled.
    rollbacks_until: u64,
    kept: Kept,
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

/// A learner's settings from a bundle's recipe.
pub fn learner_config(model: &Model, gate: Mode) -> LearnerConfig {
    let mut config = LearnerConfig::default();
    let defaults = &model.recipe().defaults;
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
    if let Some(prior) = &model.recipe().prior {
        config.tripwire.prior = prior.iter().map(|&p| f64::from(p)).collect();
    }
    config.gate.mode = gate;
    config
}

impl App {
    /// Opens the state of a person for writing and takes the learner up where the journal left it.
    ///
    /// # Errors
    /// [`AppError::State`] with [`Class::TryAgain`] when another process holds the state; otherwise whatever is wrong
    /// with journal, adapter or model.
    pub fn open(mut model: Model, state: &StateDir, gate: Mode) -> Result<App, AppError> {
        state.create()?;
        let journal = Journal::open(state.lock()?)?;
        let adapters = AdapterStore::new(state, model.bundle().base_digest())?;
        let current = adapters.current_id()?;
        let published = put_on(&mut model, &adapters, current.as_ref())?;
        let config = learner_config(&model, gate);
        let mut app = App {
            learner: Learner::new(model.base().clone(), config.clone())?,
            model,
            journal: Arc::new(Mutex::new(journal)),
            adapters,
            current,
            taken: BTreeSet::new(),
            follower: Follower::default(),
            backlog: Backlog::default(),
            last_seq: 0,
            rollbacks_until: 0,
            kept: Kept::new(state),
        };
        let mut presses = Vec::new();
        let effective = lock(&app.journal).reader().changes(&mut app.follower)?.appeared;
        app.kept.remake(&mut app.model, &effective);
        for p in &effective {
            app.last_seq = app.last_seq.max(p.press_id.0);
            if let Some(press) = app.training_press(p) {
                app.taken.insert(p.press_id);
                presses.push(press);
            }
        }
        app.learner = Learner::resume(app.model.base().clone(), config, presses, published)?;
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

    /// Presses about this bundle that cannot train: another body has made their features, and their inputs are not kept.
    ///
    /// # Errors
    /// [`AppError::Store`].
    pub fn stale(&self) -> Result<usize, AppError> {
        let presses = lock(&self.journal).reader().effective_presses()?;
        Ok(presses.iter().filter(|p| self.kept.is_stale(&self.model, p)).count())
    }

    /// Answers one sample with the adapter in use. Nothing is recorded.
    ///
    /// # Errors
    /// [`AppError::Model`].
    pub fn answer(&mut self, sample: &Sample<'_>) -> Result<Answer, AppError> {
        let seen = self.model.see(sample)?;
        let served = self.learner.logits(&seen.feature, &seen.logits)?;
        let probabilities = probabilities(&served);
        let class = argmax(&served);
        Ok(Answer { seen, served, probabilities, class })
    }

    /// Records an answer that is about to be put before a person; durable when this returns. The id binds what is said.
    ///
    /// # Errors
    /// [`AppError::Store`]; the answer must then not be shown as one that can be judged.
    pub fn show(&mut self, answer: &Answer) -> Result<u32, AppError> {
        let inputs = self.kept.put(&answer.seen.inputs)?;
        if self.kept.is_full() {
            let presses = lock(&self.journal).reader().effective_presses()?;
            self.kept.make_room(&presses.iter().flat_map(|p| p.example.inputs.iter().copied()).collect())?;
        }
        let shown = Shown {
            example: Example { inputs, ..self.example(answer) },
            class: answer.class as u32,
            label: self.model.labels()[answer.class].clone(),
            mu: 1.0,
            p: answer.p().clamp(0.0, 1.0),
        };
        let id = lock(&self.journal).shown(&shown)?;
        self.learner.displayed(&answer.served, &answer.seen.logits)?;
        Ok(id)
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
            label: self.model.labels()[answer.class].clone(),
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
        let mut learned = Vec::new();
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
            if let Some(press) = self.training_press(p) {
                let outcome = self.learner.press(press)?;
                self.taken.insert(id);
                learned.push(Learned::Press { id, outcome });
            }
            self.last_seq = self.last_seq.max(id.0);
            self.backlog.appeared.pop_front();
        }
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
        let decision = self.learner.candidate()?;
        let mut changed = None;
        let (action, id) = match decision.action {
            Action::Publish => {
                let id = self.adapters.publish(&self.adapter(self.learner.published()))?;
                self.current = Some(id.clone());
                changed = Some(Some(id.clone()));
                (AdapterAction::Published, id.to_string())
            }
            Action::Rollback => {
                self.adapters.switch(None)?;
                self.current = None;
                changed = Some(None);
                (AdapterAction::RolledBack, FACTORY.to_string())
            }
            Action::Veto => (AdapterAction::Vetoed, self.current_name()),
            Action::Freeze => (AdapterAction::Frozen, self.current_name()),
            Action::Hold => return Ok(Learned::Decided { decision, changed }),
        };
        self.record(id, action, numbers(&decision, self.learner.training_predictions()))?;
        Ok(Learned::Decided { decision, changed })
    }

    /// The canonical correction of the presses recorded up to `journal_seq`: what an adapter of that provenance must hold.
    ///
    /// # Errors
    /// [`AppError::Store`] or [`AppError::Learn`].
    pub fn recompute(&self, journal_seq: u64) -> Result<Theta, AppError> {
        let presses: Vec<TrainingPress> = lock(&self.journal)
            .reader()
            .effective_presses()?
            .iter()
            .filter(|p| p.press_id.0 <= journal_seq)
            .filter_map(|p| self.training_press(p))
            .collect();
        let factory = Theta::zeros(self.model.base().classes(), self.model.base().features() + 1);
        let config = self.learner.config().clone();
        Ok(Learner::resume(self.model.base().clone(), config, presses, factory)?.refit()?)
    }

    /// Goes back to the adapter before, or to the factory head. One press does this; the learner then rests until as many
    /// presses have come as it takes for a candidate.
    ///
    /// # Errors
    /// [`AdapterError::AtFactory`] when there is nothing before.
    pub fn rollback(&mut self) -> Result<Option<AdapterId>, AppError> {
        self.roll_back(None)
    }

    /// Does the rollbacks that were asked for on a pad and are not done yet: now, or before a stop that came between the
    /// commit of the chord and the switch. Each is done once, whatever stops in between.
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

    /// The decision is recorded before the switch, so that a stop between the two is found and made good at the next start,
    /// and not taken for a rollback that nobody has acted on.
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
        let theta = put_on(&mut self.model, &self.adapters, id.as_ref())?;
        let effective = lock(&self.journal).reader().effective_presses()?;
        self.kept.remake(&mut self.model, &effective);
        let presses: Vec<TrainingPress> = effective.iter().filter_map(|p| self.training_press(p)).collect();
        let config = self.learner.config().clone();
        self.learner = Learner::resume(self.model.base().clone(), config, presses, theta)?;
        self.current = id;
        Ok(())
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
                objective: "posterior".to_string(),
                presses: self.learner.training_predictions() as u64,
                journal_seq: self.last_seq,
                lambda: solver.lambda_partial,
                delta: solver.hyper.delta,
                epsilon: solver.hyper.epsilon,
                scope: "head".to_string(),
                order: 0,
                parent: None,
                body: self.model.body().cloned(),
            },
            classes: theta.classes(),
            columns: theta.width(),
            theta: theta.values().to_vec(),
            tuned: None,
        }
    }

    /// The learner's form of an effective press; `None` when it may not train this model.
    fn training_press(&self, p: &EffectivePress) -> Option<TrainingPress> {
        let (feature, logits) = self.kept.current(&self.model, p)?;
        if p.suspect || p.ambiguous {
            return None;
        }
        let class = |c: u32| c as usize;
        let feedback = match p.signal {
            Signal::Thumb { up } => Feedback::Thumb { up },
            Signal::Correction { class: c } => Feedback::Correction { class: class(c) },
            Signal::Demonstration { class: c } => Feedback::Demonstration { class: class(c) },
            Signal::Stars { stars } => Feedback::Stars { stars },
            Signal::Preference { over } => Feedback::Preference { over: class(over) },
            Signal::NotSure => Feedback::NotSure,
            Signal::Undo => return None,
        };
        let shown = p.shown_class.map_or_else(|| argmax(logits), class);
        if feedback.check(shown, self.model.base().classes()).is_err() {
            return None;
        }
        // A demonstration has no prediction; its press number, out of the way of prediction ids, stands in.
        let prediction_id = p.prediction_id.unwrap_or(0x8000_0000 | (p.press_id.0 as u32 & 0x7fff_ffff));
        Some(TrainingPress {
            press_id: p.press_id.0,
            prediction_id,
            feature: feature.to_vec(),
            logits: logits.to_vec(),
            shown,
            mu: p.mu.unwrap_or(1.0),
            feedback,
            confirmed: p.confirmed,
            source: p.source.to_string(),
        })
    }
}

/// The model with the adapter `id` and its Θ; zeros for the factory's.
fn put_on(model: &mut Model, adapters: &AdapterStore, id: Option<&AdapterId>) -> Result<Theta, AppError> {
    match model.put_on(adapters, id) {
        Ok(Some(theta)) => Ok(theta),
        Ok(None) => Ok(Theta::zeros(model.base().classes(), model.base().features() + 1)),
        Err(ModelError::Adapter(e)) => Err(e.into()),
        Err(e) => Err(e.into()),
    }
}

/// An adapter's name in the journal.
fn name_of(id: Option<&AdapterId>) -> String {
    id.map_or_else(|| FACTORY.to_string(), |a| a.to_string())
}

/// A decision's figures, for the journal.
fn numbers(d: &Decision, presses: usize) -> BTreeMap<String, f64> {
    let mut out =
        BTreeMap::from([("confirmed".to_string(), d.n_confirmed as f64), ("presses".to_string(), presses as f64)]);
    for (name, pair) in [
        ("candidate_factory", &d.candidate_factory),
        ("candidate_incumbent", &d.candidate_incumbent),
        ("incumbent_factory", &d.incumbent_factory),
    ] {
        out.insert(format!("{name}_wins"), pair.wins);
        out.insert(format!("{name}_losses"), pair.losses);
        out.insert(format!("{name}_p_worse"), pair.p_worse);
        out.insert(format!("{name}_p_worse_harsh"), pair.p_worse_harsh);
    }
    out
}
