//! The learner: keeps the press log, a quick correction for the next answer, and offers canonical refits to the gate.
//!
//! The log is the truth and `Θ` a function of it. Per prediction the last press of each source counts and the sources'
//! likelihoods multiply; rows are summed in the order of prediction ids, so late presses, replays and other orders of
//! arrival give the same canonical `Θ` bit for bit.
//!
//! A prediction with a *confirmed* press (long press, repeat, a demonstration made to measure) is evidence for the gate
//! and never trains; earlier presses on it are withdrawn from training too. A confirmed correction, demonstration, 👍 or
//! five stars says which class is true, a confirmed 👎 or one star only which is not; see [`gate`] for what another
//! answer is worth then. A demonstration that is *not* flagged as confirmed trains.
//!
//! Without I/O, clocks or randomness: the app decides what is shown and when presses arrive, the journal makes them
//! durable, the adapter directory keeps what is published. The two-second rule for changed minds is the journal's.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::classes::{self, Grouped, Merged};
use super::contradiction::{self, Contradiction};
use super::engine::{Engine, TrainingRow, objective};
use super::error::{LearnError, check_finite, check_len};
use super::gate::{self, Action, Decision, GateConfig, Mode, Verdict};
use super::head::{HeadBase, Theta};
use super::input::Input;
use super::objective::{Feedback, HeadFit, ObjectiveDef, Press, ce, posterior, softmax_into};
use super::rater::Rater;
use super::retention::SourceSample;
use super::solver::minibatch::{MinibatchConfig, Pressed};
use super::solver::{Row, SolverConfig, splitmix64};
use super::task::Task;
use super::temperature::Told;
use super::tripwire::{Trip, Tripwire, TripwireConfig};
use super::truth::Truth;

/// Settings of a learner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnerConfig {
    /// The objective's name in [`OBJECTIVES`](super::OBJECTIVES).
    pub objective: String,
    /// The refit, for objectives that have one, and the settings of every objective.
    pub solver: SolverConfig,
    /// The minibatch solver, for the others.
    pub minibatch: MinibatchConfig,
    /// Step of the minibatch solver; `None` for the objective's own.
    pub learning_rate: Option<f64>,
    /// The gate.
    pub gate: GateConfig,
    /// The trip-wires.
    pub tripwire: TripwireConfig,
    /// Training presses between two candidates.
    pub publish_every: usize,
    /// Every how many presses a confirmed one is asked for.
    pub confirm_every: usize,
    /// Confirmed predictions the gate looks at.
    pub reservoir: usize,
    /// Seed of the reservoir's choice.
    pub seed: u64,
    /// From which press on which classes are one, oldest first; empty where all are apart.
    pub merged: Vec<Merged>,
    /// Samples of the source that are held on to beside the presses.
    pub source: Vec<SourceSample>,
    /// What answers and presses mean.
    #[serde(skip)]
    pub task: Task,
}

impl Default for LearnerConfig {
    fn default() -> LearnerConfig {
        LearnerConfig {
            objective: posterior::POSTERIOR.name.to_string(),
            solver: SolverConfig::default(),
            minibatch: MinibatchConfig::default(),
            learning_rate: None,
            gate: GateConfig::default(),
            tripwire: TripwireConfig::default(),
            publish_every: 5,
            confirm_every: 10,
            reservoir: 64,
            seed: 0,
            merged: Vec::new(),
            source: Vec::new(),
            task: Task::default(),
        }
    }
}

/// One press with what was stored when its prediction was shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingPress {
    /// Unique id; the same id again is the same press.
    pub press_id: u64,
    /// The prediction it is about.
    pub prediction_id: u32,
    /// Pooled backbone feature, `[d]`.
    pub feature: Vec<f32>,
    /// The graph's logits, without any correction, `[C]`.
    pub logits: Vec<f32>,
    /// The class shown, `a`.
    pub shown: usize,
    /// Probability with which `a` was chosen to be shown, in (0, 1].
    pub mu: f32,
    /// What was said.
    pub feedback: Feedback,
    /// Whether it is evidence (never trains) rather than training.
    pub confirmed: bool,
    /// Who pressed, the source with the badge that counted there: one vote per rater and prediction.
    pub source: String,
}

/// What became of a press.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It trains.
    Trained,
    /// It is evidence for the gate.
    Confirmed,
    /// It is logged and says nothing a head could use (`not-sure`, three stars, a kind the objective does not learn
    /// from), or its prediction is held out as evidence.
    Silent,
    /// Its id was in the log already; nothing changed.
    Duplicate,
}

/// A learner of one head.
#[derive(Clone, Debug)]
pub struct Learner {
    base: HeadBase,
    config: LearnerConfig,
    /// Boxed, as the nodes of a tree are half empty.
    predictions: BTreeMap<u32, Box<Prediction>>,
    /// The name of each source, once.
    sources: BTreeSet<Arc<str>>,
    /// Prediction of each press.
    presses: BTreeMap<u64, u32>,
    objective: &'static ObjectiveDef,
    engine: Engine,
    /// Row of each training prediction in `engine`.
    rows: BTreeMap<u32, usize>,
    /// Whether the engine was told of them in the order of the canonical sum.
    in_order: bool,
    /// What confirmed presses have shown of each source.
    raters: BTreeMap<String, Rater>,
    published: Theta,
    tripwire: Tripwire,
    contradiction: Contradiction,
    since_candidate: usize,
    since_confirmed: usize,
}

#[derive(Clone, Debug)]
struct Prediction {
    /// Its feature, and the graph's logits: the engine shares them.
    input: Input,
    logits: Arc<[f32]>,
    shown: usize,
    mu: f32,
    /// In the order of arrival.
    presses: Vec<Said>,
}

#[derive(Clone, Debug, PartialEq)]
struct Said {
    press_id: u64,
    feedback: Feedback,
    confirmed: bool,
    source: Arc<str>,
}

impl Learner {
    /// A learner with an empty log that serves the factory head.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] or [`LearnError::Length`] for settings that make no sense,
    /// [`LearnError::UnknownObjective`], [`LearnError::CannotRetain`], [`LearnError::NoDiscount`],
    /// [`LearnError::OtherTask`] for an objective of classes with a task of its own.
    pub fn new(base: HeadBase, mut config: LearnerConfig) -> Result<Learner, LearnError> {
        config.solver.source =
            config.source.iter().map(|sample| source_row(&base, sample)).collect::<Result<_, _>>()?;
        config.solver.link = config.task.link();
        config.gate.check()?;
        for (what, value) in [
            ("publish_every", config.publish_every),
            ("confirm_every", config.confirm_every),
            ("reservoir", config.reservoir),
        ] {
            if value == 0 {
                return Err(LearnError::OutOfRange { what, value: 0.0, range: "[1, inf)" });
            }
        }
        let objective = objective(&config)?;
        objective.check(&config.solver.hyper)?;
        if matches!(objective.fit, HeadFit::Minibatch { .. }) && !config.source.is_empty() {
            return Err(LearnError::CannotRetain { objective: objective.name });
        }
        if matches!(objective.fit, HeadFit::Minibatch { .. }) && !config.task.is_plain() {
            return Err(LearnError::OtherTask { objective: objective.name, task: config.task.name() });
        }
        let factory = Theta::zeros(base.classes(), base.width());
        Ok(Learner {
            objective,
            engine: Engine::new(&base, &config)?,
            raters: BTreeMap::new(),
            tripwire: Tripwire::new(base.classes(), config.tripwire.clone())?,
            contradiction: Contradiction::default(),
            base,
            config,
            predictions: BTreeMap::new(),
            sources: BTreeSet::new(),
            presses: BTreeMap::new(),
            rows: BTreeMap::new(),
            in_order: true,
            published: factory,
            since_candidate: 0,
            since_confirmed: 0,
        })
    }

    /// A learner as it stands after a restart: the journal's presses and what the adapter directory holds as published.
    ///
    /// What the presses tell is told again, in their order: the thumbs that the wires and the search for contradictions
    /// look back on, and when a confirmed press came last. What was displayed and how the correction grew are not among
    /// them; a wire that tripped by those is on record elsewhere, see [`Learner::freeze`]. The incremental correction
    /// is the canonical one.
    ///
    /// # Errors
    /// Those of [`Learner::new`] and [`Learner::press`]; [`LearnError::Length`] when `published` is of another head.
    pub fn resume(
        base: HeadBase,
        config: LearnerConfig,
        presses: impl IntoIterator<Item = TrainingPress>,
        published: Theta,
    ) -> Result<Learner, LearnError> {
        let mut learner = Learner::new(base, config)?;
        check_len("the published theta", learner.published.values().len(), published.values().len())?;
        check_len("the published theta's classes", learner.base.classes(), published.classes())?;
        check_finite("the published theta", published.values())?;
        let mut thumbs = VecDeque::new();
        for press in presses {
            let input = learner.check(&press)?;
            let (id, prediction_id, feedback, confirmed) =
                (press.press_id, press.prediction_id, press.feedback, press.confirmed);
            let first = !learner.predictions.contains_key(&prediction_id);
            if !learner.record(press, input)? {
                continue;
            }
            if confirmed {
                learner.since_confirmed = 0;
                learner.tripwire.thaw();
                continue;
            }
            learner.since_confirmed += 1;
            if let Feedback::Thumb { up } = feedback {
                learner.tripwire.thumb(up);
                if first {
                    // Each of the last pairs was found among as many thumbs before it; what is older is forgotten.
                    thumbs.push_back((prediction_id, id, up));
                    if thumbs.len() > 2 * contradiction::WINDOW {
                        thumbs.pop_front();
                    }
                }
            }
        }
        for (prediction_id, id, up) in thumbs {
            learner.compare_thumb(prediction_id, id, up);
        }
        learner.rebuild()?;
        learner.published = published;
        learner.since_candidate = learner.rows.len();
        Ok(learner)
    }

    /// The head it corrects.
    pub fn base(&self) -> &HeadBase {
        &self.base
    }

    /// Its settings.
    pub fn config(&self) -> &LearnerConfig {
        &self.config
    }

    /// Predictions that train, each counted once.
    pub fn training_predictions(&self) -> usize {
        self.rows.len()
    }

    /// Presses in the log.
    pub fn presses(&self) -> usize {
        self.presses.len()
    }

    /// The correction in use: the last one the gate let through. With the gate off it follows every press.
    pub fn published(&self) -> &Theta {
        &self.published
    }

    /// The correction after the last press, before any gate; the next candidate will resemble it.
    pub fn incremental(&self) -> Theta {
        self.engine.theta()
    }

    /// Logits to be shown for an input: the graph's plus the published correction, `[C]`.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`].
    pub fn logits(&self, feature: &[f32], graph_logits: &[f32]) -> Result<Vec<f32>, LearnError> {
        self.published.apply(&self.base.standardise(feature)?, graph_logits)
    }

    /// How unlike the pressed inputs a feature is, see [`HeadSolver::novelty`](super::HeadSolver::novelty). Objectives
    /// fitted by minibatches keep no curvature; for them it stays at `|z|²/λ`.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`].
    pub fn novelty(&self, feature: &[f32]) -> Result<f64, LearnError> {
        self.engine.novelty(&self.base.standardise(feature)?, self.config.solver.lambda_partial)
    }

    /// What was done to the features, see [`HeadSolver::note`](super::HeadSolver::note).
    pub fn note(&self) -> Option<crate::Note> {
        self.engine.note()
    }

    /// What confirmed presses have shown of the sources that pressed on the same predictions, by source.
    pub fn raters(&self) -> &BTreeMap<String, Rater> {
        &self.raters
    }

    /// Tells the trip-wires what was put before a person. Displays never change a parameter.
    ///
    /// Returns the trip that holds learning frozen, if any.
    ///
    /// # Errors
    /// [`LearnError::Length`].
    pub fn displayed(&mut self, served: &[f32], graph_logits: &[f32]) -> Result<Option<&Trip>, LearnError> {
        self.tripwire.display(served, graph_logits)?;
        Ok(self.tripwire.tripped())
    }

    /// The trip that holds learning frozen, if any.
    pub fn frozen(&self) -> Option<&Trip> {
        self.tripwire.tripped()
    }

    /// Holds learning frozen by a trip that is known from before a stop, until the next confirmed press.
    pub fn freeze(&mut self, trip: Trip) {
        self.tripwire.trip(trip);
    }

    /// Share of the last thumbs that differ from the one given to the most similar input; `None` before there are
    /// enough of them.
    pub fn thumbs_apart(&self) -> Option<f64> {
        self.contradiction.apart()
    }

    /// Whether the last thumbs contradict each other, so that only confirmed presses and corrections help.
    pub fn contradicted(&self) -> bool {
        self.contradiction.is_one()
    }

    /// Whether the next press should be asked for as a confirmed one.
    pub fn wants_confirmation(&self) -> bool {
        self.since_confirmed + 1 >= self.config.confirm_every || self.frozen().is_some()
    }

    /// Takes up a press, early or late.
    ///
    /// # Errors
    /// [`LearnError`] for a press that does not fit the head, an id used for another press, or a prediction id used for
    /// another input. The learner is unchanged then.
    pub fn press(&mut self, press: TrainingPress) -> Result<Outcome, LearnError> {
        let input = self.check(&press)?;
        let (id, prediction_id, feedback, confirmed) =
            (press.press_id, press.prediction_id, press.feedback, press.confirmed);
        let first = !self.predictions.contains_key(&prediction_id);
        if !self.record(press, input)? {
            return Ok(Outcome::Duplicate);
        }
        if let Err(error) = self.refresh_row(prediction_id) {
            // The solver refuses before it changes anything.
            self.forget(id);
            return Err(error);
        }
        if confirmed {
            self.refresh_raters()?;
            self.since_confirmed = 0;
            self.tripwire.thaw();
            if self.config.gate.mode != Mode::Off && !self.published.is_zero() {
                let evidence = self.evidence(&self.published)?;
                if gate::review(&self.config.gate, &evidence).action == Action::Rollback {
                    // Nobody waits for more presses with a head in use that has just been found wanting.
                    self.since_candidate = self.config.publish_every;
                }
            }
            return Ok(Outcome::Confirmed);
        }
        self.since_confirmed += 1;
        if let Feedback::Thumb { up } = feedback {
            self.tripwire.thumb(up);
            if first {
                self.compare_thumb(prediction_id, id, up);
            }
        }
        if !self.rows.contains_key(&prediction_id) {
            return Ok(Outcome::Silent);
        }
        self.since_candidate += 1;
        Ok(Outcome::Trained)
    }

    /// Takes a press back; returns the canonical correction of what remains, bit for bit what it was before the press.
    ///
    /// What is published changes at the next [`Learner::candidate`], which is due at once.
    ///
    /// # Errors
    /// [`LearnError::UnknownPress`].
    pub fn undo(&mut self, press_id: u64) -> Result<Theta, LearnError> {
        if !self.presses.contains_key(&press_id) {
            return Err(LearnError::UnknownPress { press_id });
        }
        self.forget(press_id);
        self.rebuild()?;
        self.since_candidate = self.config.publish_every;
        self.refit()
    }

    /// The canonical correction of the log: Θ = 0, fresh Cholesky, fixed order.
    ///
    /// # Errors
    /// [`LearnError::NotPositiveDefinite`].
    pub fn refit(&self) -> Result<Theta, LearnError> {
        if self.in_order
            && let Some(theta) = self.engine.refit()?
        {
            return Ok(theta);
        }
        let rows: Vec<TrainingRow> = self
            .predictions
            .values()
            .map(|p| self.row_of(p))
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()?;
        Engine::canonical(&self.base, &self.config, &rows)
    }

    /// Waits for as many presses as ever until the next candidate: what is published was just chosen by a person.
    pub fn rest(&mut self) {
        self.since_candidate = 0;
    }

    /// Whether enough was pressed for [`Learner::candidate`], or the last press has shown the head in use to be worse
    /// than the factory head.
    pub fn candidate_due(&self) -> bool {
        self.since_candidate >= self.config.publish_every
    }

    /// Refits, asks the gate, and publishes, keeps or rolls back accordingly.
    ///
    /// # Errors
    /// Those of [`Learner::refit`]; the published correction is unchanged then.
    pub fn candidate(&mut self) -> Result<Decision, LearnError> {
        let theta = self.refit()?;
        self.decide(theta)
    }

    /// The second half of [`Learner::candidate`], for callers that [`Learner::refit`] a clone on another thread.
    ///
    /// # Errors
    /// [`LearnError::Length`] when `candidate` is of another head.
    pub fn decide(&mut self, candidate: Theta) -> Result<Decision, LearnError> {
        let decision = self.judge(&candidate)?;
        self.settle(&decision, candidate);
        Ok(decision)
    }

    /// What the gate and the trip-wires say of `candidate`. Nothing is published: a caller to whom that takes more than
    /// memory does its part first, then [`Learner::settle`]s what was decided.
    ///
    /// # Errors
    /// [`LearnError::Length`] when `candidate` is of another head.
    pub fn judge(&mut self, candidate: &Theta) -> Result<Decision, LearnError> {
        check_len("the candidate's classes", self.base.classes(), candidate.classes())?;
        check_len("the candidate's width", self.base.width(), candidate.width())?;
        if !candidate.is_finite() {
            self.tripwire.norm(f64::NAN);
        }
        let evidence = self.evidence(candidate)?;
        let mut decision = if *candidate == self.published {
            gate::review(&self.config.gate, &evidence)
        } else {
            gate::judge(&self.config.gate, &evidence)
        };
        if let Some(trip) = self.tripwire.tripped()
            && decision.action == Action::Publish
        {
            decision.action = Action::Freeze;
            decision.reason = format!("frozen, a confirmed press is needed: {trip}");
        }
        Ok(decision)
    }

    /// Does what was decided of `candidate`: publishes it, goes back to the factory head, or keeps what is in use. The
    /// next candidate is due when enough has been pressed since.
    pub fn settle(&mut self, decision: &Decision, candidate: Theta) {
        self.since_candidate = 0;
        match decision.action {
            Action::Publish => self.published = candidate,
            Action::Rollback => self.published = self.factory(),
            Action::Veto | Action::Hold | Action::Freeze => {}
        }
    }

    /// The predictions whose presses train, in the order of the canonical sum.
    pub fn training_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.rows.keys().copied()
    }

    /// The predictions the gate looks at: the configured number of confirmed ones, chosen by a hash of their ids.
    ///
    /// Keeping the smallest hashes is reservoir sampling that does not depend on the order of arrival.
    pub fn reservoir_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> =
            self.predictions.iter().filter(|(_, p)| self.truth(p).is_some()).map(|(&id, _)| id).collect();
        ids.sort_by_key(|&id| splitmix64(self.config.seed ^ u64::from(id)));
        ids.truncate(self.config.reservoir);
        ids
    }

    /// What confirmed presses tell of the answers of the head in use: its logits and the truth, for a temperature.
    /// Classes that are one stand as one.
    ///
    /// # Errors
    /// [`LearnError::Length`] when the correction in use is of another head.
    pub fn told(&self) -> Result<Vec<(Vec<f32>, Told)>, LearnError> {
        let mut told = Vec::new();
        for id in self.reservoir_ids() {
            let prediction = &self.predictions[&id];
            let Some(truth) = self.truth(prediction) else { continue };
            let mut logits = self.published.apply(&prediction.input.z(), &prediction.logits)?;
            classes::collapse(self.group_now(), &mut logits);
            told.extend(truth.told(&self.config.task).map(|truth| (logits, truth)));
        }
        Ok(told)
    }

    /// Holds the thumb `press_id` against the one that was given to the most similar input.
    fn compare_thumb(&mut self, prediction_id: u32, press_id: u64, up: bool) {
        let predictions = &self.predictions;
        let prediction = &predictions[&prediction_id];
        let shown = classes::stands_for(classes::group_at(&self.config.merged, press_id), prediction.shown);
        self.contradiction.thumb(prediction_id, shown, up, |other| {
            predictions.get(&other).map(|other| prediction.input.distance(&other.input))
        });
    }

    fn factory(&self) -> Theta {
        Theta::zeros(self.base.classes(), self.base.width())
    }

    fn evidence(&self, candidate: &Theta) -> Result<Vec<Verdict>, LearnError> {
        let mut evidence = Vec::new();
        for id in self.reservoir_ids() {
            let prediction = &self.predictions[&id];
            let Some(truth) = self.truth(prediction) else { continue };
            let z = prediction.input.z();
            let factory = prediction.logits.to_vec();
            let (candidate, incumbent) = (candidate.apply(&z, &factory)?, self.published.apply(&z, &factory)?);
            let mut heads = [candidate, incumbent, factory];
            heads.iter_mut().for_each(|logits| classes::collapse(self.group_now(), logits));
            let answered = truth.judge(&self.config.task, [&heads[0], &heads[1], &heads[2]]);
            evidence.push(Verdict { candidate: answered[0], incumbent: answered[1], factory: answered[2] });
        }
        Ok(evidence)
    }

    /// Which classes are one now.
    fn group_now(&self) -> Option<&[usize]> {
        classes::group_at(&self.config.merged, u64::MAX)
    }

    /// The truth as a prediction's last confirmed press tells it, in the classes of now; `None` without one or when
    /// that press does not tell.
    fn truth(&self, prediction: &Prediction) -> Option<Truth> {
        let said = prediction.presses.iter().rev().find(|said| said.confirmed)?;
        let (then, now) = (classes::group_at(&self.config.merged, said.press_id), self.group_now());
        let truth = Truth::of(said.feedback, prediction.shown)?;
        match truth {
            Truth::Remarked { .. } => Some(truth),
            Truth::Is(class) => Some(Truth::Is(classes::stands_for(now, class))),
            // "Not a" of a time when a was one class says nothing about what a has been merged with since.
            Truth::IsNot(class) => classes::same_members(then, now, class, self.base.classes())
                .then(|| Truth::IsNot(classes::stands_for(now, class))),
        }
    }

    /// Checks a press; its feature in the form that is kept.
    fn check(&self, press: &TrainingPress) -> Result<Input, LearnError> {
        let input = self.base.input(&press.feature)?;
        check_len("the graph's logits", self.base.classes(), press.logits.len())?;
        check_finite("the graph's logits", &press.logits)?;
        press.feedback.check(press.shown, self.base.classes())?;
        self.config.task.check(press.feedback)?;
        if !(press.mu > 0.0 && press.mu <= 1.0) {
            return Err(LearnError::OutOfRange { what: "mu", value: f64::from(press.mu), range: "(0, 1]" });
        }
        Ok(input)
    }

    /// Appends a checked press to the log; false when it was there already.
    fn record(&mut self, press: TrainingPress, input: Input) -> Result<bool, LearnError> {
        let TrainingPress { press_id, prediction_id, feature: _, logits, shown, mu, feedback, confirmed, source } =
            press;
        let source = self.source(&source);
        let said = Said { press_id, feedback, confirmed, source };
        if let Some(known) = self.predictions.get(&prediction_id) {
            let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            for (what, equal) in [
                ("feature", same(&known.input.z(), &input.z())),
                ("logits", same(&known.logits, &logits)),
                ("shown class", known.shown == shown),
                ("mu", known.mu.to_bits() == mu.to_bits()),
            ] {
                if !equal {
                    return Err(LearnError::PredictionConflict { prediction_id, what });
                }
            }
        }
        if let Some(known) = self.presses.get(&press_id) {
            let same = *known == prediction_id && self.predictions[known].presses.contains(&said);
            return if same { Ok(false) } else { Err(LearnError::PressConflict { press_id }) };
        }
        self.presses.insert(press_id, prediction_id);
        let fresh = || Box::new(Prediction { input, logits: logits.into(), shown, mu, presses: Vec::new() });
        let prediction = self.predictions.entry(prediction_id).or_insert_with(fresh);
        // Nearly always the only one.
        prediction.presses.reserve_exact(1);
        prediction.presses.push(said);
        Ok(true)
    }

    /// The one copy of a source's name.
    fn source(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.sources.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.sources.insert(Arc::clone(&name));
        name
    }

    fn forget(&mut self, press_id: u64) {
        let Some(prediction_id) = self.presses.remove(&press_id) else { return };
        if let Some(prediction) = self.predictions.get_mut(&prediction_id) {
            prediction.presses.retain(|said| said.press_id != press_id);
            if prediction.presses.is_empty() {
                self.predictions.remove(&prediction_id);
            }
        }
    }

    /// Brings the solver in line with what is now known about one prediction.
    fn refresh_row(&mut self, prediction_id: u32) -> Result<(), LearnError> {
        let row = self.row_of(&self.predictions[&prediction_id])?;
        match (self.rows.get(&prediction_id).copied(), row) {
            (None, None) => return Ok(()),
            (None, Some(row)) => {
                self.engine.push(&row)?;
                self.in_order &= self.rows.last_key_value().is_none_or(|(&last, _)| last < prediction_id);
                self.rows.insert(prediction_id, self.rows.len());
            }
            (Some(index), Some(row)) => {
                if !self.engine.replace(index, &row)? {
                    return self.rebuild();
                }
            }
            // A row leaves the sum: rare enough for a fresh solver.
            (Some(_), None) => return self.rebuild(),
        }
        self.adopt_incremental();
        Ok(())
    }

    fn rebuild(&mut self) -> Result<(), LearnError> {
        self.raters = self.estimate_raters();
        let mut ids = Vec::new();
        let mut rows = Vec::new();
        for (&id, prediction) in &self.predictions {
            if let Some(row) = self.row_of(prediction)? {
                ids.push(id);
                rows.push(row);
            }
        }
        self.engine = Engine::with_rows(&self.base, &self.config, &rows)?;
        self.rows = ids.into_iter().enumerate().map(|(index, id)| (id, index)).collect();
        self.in_order = true;
        self.adopt_incremental();
        Ok(())
    }

    /// How often each source was right where a confirmed press tells.
    fn estimate_raters(&self) -> BTreeMap<String, Rater> {
        let mut raters: BTreeMap<String, Rater> = BTreeMap::new();
        for prediction in self.predictions.values() {
            let Some(truth) = self.truth(prediction) else { continue };
            for (source, said) in prediction.last_plain() {
                if let Some(right) = self.was_right(said, prediction.shown, truth) {
                    raters.entry(source.to_string()).or_default().count(right);
                }
            }
        }
        raters
    }

    /// Whether a press agrees with the truth in the classes of now; `None` where that does not tell.
    fn was_right(&self, said: &Said, shown: usize, truth: Truth) -> Option<bool> {
        let (then, now) = (classes::group_at(&self.config.merged, said.press_id), self.group_now());
        // What was said of a class that has been merged with others since was not said of those.
        if !said.feedback.names_class() && !classes::same_members(then, now, shown, self.base.classes()) {
            return None;
        }
        let feedback = match said.feedback {
            Feedback::Correction { class } => Feedback::Correction { class: classes::stands_for(now, class) },
            Feedback::Demonstration { class } => Feedback::Demonstration { class: classes::stands_for(now, class) },
            other => other,
        };
        let shown = classes::stands_for(now, shown);
        truth.confirms(&self.config.task, self.base.classes(), feedback, shown)
    }

    /// A confirmed press may have told something about those who pressed before it: their other presses then count
    /// anew.
    fn refresh_raters(&mut self) -> Result<(), LearnError> {
        let raters = self.estimate_raters();
        if raters == self.raters {
            return Ok(());
        }
        self.rebuild()
    }

    fn adopt_incremental(&mut self) {
        let theta = self.incremental();
        self.tripwire.norm(theta.norm());
        if self.config.gate.mode == Mode::Off && self.tripwire.tripped().is_none() {
            self.published = theta;
        }
    }

    /// The training row of a prediction; `None` when it is evidence or nothing was said about it that the objective
    /// learns from.
    fn row_of(&self, prediction: &Prediction) -> Result<Option<TrainingRow>, LearnError> {
        if prediction.presses.iter().any(|said| said.confirmed) {
            return Ok(None);
        }
        // Remarks are likelihoods and nothing else.
        let remarks = self.objective.name == posterior::POSTERIOR.name;
        let learns = |said: &Said| match said.feedback {
            Feedback::Remark { .. } => remarks,
            _ => self.objective.learns_from.contains(&said.feedback.kind()),
        };
        let last: BTreeMap<&str, &Said> =
            prediction.last_plain().into_iter().filter(|(_, said)| learns(said)).collect();
        let press =
            |source: &str, said: &Said| Press { epsilon: self.epsilon_of(source), ..Press::plain(said.feedback) };
        let presses: Vec<Press> = last.iter().map(|(source, said)| press(source, said)).collect();
        let (z, logits) = (prediction.input.clone(), Arc::clone(&prediction.logits));
        // Two presses on one prediction may stand on both sides of a merge; where they have to be taken together, the
        // newer meaning counts for both.
        let newest = last.values().map(|said| said.press_id).max().unwrap_or(0);
        let group = classes::group_at(&self.config.merged, newest);
        if let HeadFit::Minibatch { .. } = self.objective.fit {
            let says = presses.iter().any(|p| p.feedback.says_something());
            let (shown, mu) = (prediction.shown, prediction.mu);
            let group = group.map(|group| Grouped::of(group, self.base.classes()));
            return Ok(says.then_some(TrainingRow::Pressed(Pressed { z, logits, shown, mu, presses, group })));
        }
        let likelihood = if self.objective.name == ce::CE.name {
            ce::target(self.base.classes(), &presses).map(|target| match group {
                Some(group) => Grouped::of(group, target.len()).spread(&target),
                None => target,
            })
        } else {
            let mut likelihood = vec![1.0; self.base.classes()];
            let hyper = self.config.solver.hyper;
            for (&press, said) in presses.iter().zip(last.values()) {
                let group = classes::group_at(&self.config.merged, said.press_id);
                match &self.config.task {
                    task if task.is_plain() => {
                        classes::multiply_likelihood(&mut likelihood, press, prediction.shown, &hyper, group)?;
                    }
                    task => task.multiply_likelihood(&mut likelihood, press, prediction.shown, &hyper)?,
                }
            }
            posterior::is_informative(&likelihood).then_some(likelihood)
        };
        let names_class = last.values().any(|said| said.feedback.names_class());
        Ok(likelihood.map(|likelihood| TrainingRow::Likelihood(Row { z, logits, likelihood, names_class })))
    }

    /// How often a rater is wrong, as confirmed presses tell; `None` while they tell nothing of it.
    pub fn epsilon_of(&self, rater: &str) -> Option<f64> {
        self.raters.get(rater).map(|seen| seen.epsilon(self.config.solver.hyper.epsilon))
    }
}

/// A source sample for the solver: what the shipped head believes, to go on being believed.
fn source_row(base: &HeadBase, sample: &SourceSample) -> Result<Row, LearnError> {
    let logits = classes::continued(&sample.logits, base.classes());
    let mut belief = vec![0.0; logits.len()];
    softmax_into(&logits.iter().map(|&f| f64::from(f)).collect::<Vec<f64>>(), &mut belief);
    Ok(Row { z: base.input(&sample.feature)?, logits: logits.into(), likelihood: belief, names_class: false })
}

impl Prediction {
    /// The last press of each source that is not a confirmed one.
    fn last_plain(&self) -> BTreeMap<&str, &Said> {
        self.presses.iter().filter(|said| !said.confirmed).map(|said| (&*said.source, said)).collect()
    }
}

#[cfg(test)]
#[path = "learner_tests.rs"]
mod tests;
