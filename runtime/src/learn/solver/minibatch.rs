//! The solver for objectives without a convex loss: momentum on minibatches of replayed presses, anchored to the start.
//!
//! After each press, [`MinibatchConfig::steps`] steps on 16 examples drawn from the newest [`MinibatchConfig::replay`],
//! the newest press always among them: `v ← 0.9 v + ḡ + aΘ`, `Θ ← Θ − ηv`, with the anchor `a` pulling back to the
//! factory head. The draw is a function of the seed and the number of draws so far, so the same presses in the same
//! order give the same Θ bit for bit, and the canonical refit is the replay of the log. No step is taken without a
//! press.
//!
//! The state that objectives need stands here: the mean reward before a press (`policy-gradient`), the batch's KL and
//! the balance of wanted and unwanted examples within 4 : 3 (`kto`), and, where answers have consequences, a Θ that
//! follows slowly (`q-learning`).
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::classes::Grouped;
use super::super::error::{LearnError, check_class, check_finite, check_len};
use super::super::head::Theta;
use super::super::input::Input;
use super::super::objective::{Example, Hyper, ObjectiveDef, Press, check_example, mean_reward, q_learning};
use super::splitmix64;

/// Settings of the minibatch solver; the step size is the objective's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MinibatchConfig {
    /// Steps after each press.
    pub steps: usize,
    /// Examples in a step, the newest among them.
    pub batch: usize,
    /// Share of the last step that goes on.
    pub momentum: f64,
    /// Pull towards the factory head.
    pub anchor: f64,
    /// Newest examples that are replayed.
    pub replay: usize,
    /// Share of the mean reward that each press leaves of what was before.
    pub baseline_decay: f64,
    /// Share τ of the way to Θ that the slow Θ of [`Hyper::discount`] goes in each step, in (0, 1].
    pub follow: f64,
    /// Seed of the draw.
    pub seed: u64,
}

impl Default for MinibatchConfig {
    fn default() -> MinibatchConfig {
        MinibatchConfig {
            steps: 8,
            batch: 16,
            momentum: 0.9,
            anchor: 1e-3,
            replay: 512,
            baseline_decay: 0.9,
            follow: 0.01,
            seed: 0,
        }
    }
}

impl MinibatchConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] naming the field.
    pub fn check(&self) -> Result<(), LearnError> {
        for (what, value) in [("momentum", self.momentum), ("baseline_decay", self.baseline_decay)] {
            if !(0.0..1.0).contains(&value) {
                return Err(LearnError::OutOfRange { what, value, range: "[0, 1)" });
            }
        }
        if !(self.anchor >= 0.0 && self.anchor < 1.0) {
            return Err(LearnError::OutOfRange { what: "anchor", value: self.anchor, range: "[0, 1)" });
        }
        if !(self.follow > 0.0 && self.follow <= 1.0) {
            return Err(LearnError::OutOfRange { what: "follow", value: self.follow, range: "(0, 1]" });
        }
        for (what, value) in [("steps", self.steps), ("batch", self.batch), ("replay", self.replay)] {
            if value == 0 {
                return Err(LearnError::OutOfRange { what, value: 0.0, range: "[1, inf)" });
            }
        }
        Ok(())
    }
}

/// One pressed prediction as this solver sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pressed {
    /// Standardised feature with its constant, `[d+1]`.
    pub z: Input,
    /// The graph's logits, `[C]`: the reference.
    pub logits: Arc<[f32]>,
    /// The class shown.
    pub shown: usize,
    /// Probability with which it was shown.
    pub mu: f32,
    /// What was said.
    pub presses: Vec<Press>,
    /// Which classes are one; `None` where every class stands for itself.
    pub group: Option<Grouped>,
}

/// The head's correction under an objective, by minibatches.
#[derive(Clone)]
pub struct MinibatchSolver {
    objective: &'static ObjectiveDef,
    hyper: Hyper,
    learning_rate: f64,
    config: MinibatchConfig,
    classes: usize,
    width: usize,
    examples: Vec<Held>,
    theta: Vec<f64>,
    velocity: Vec<f64>,
    /// Θ as it was a while ago; empty where nothing is looked ahead by.
    slow: Vec<f64>,
    baseline: f64,
    draws: u64,
}

impl std::fmt::Debug for MinibatchSolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MinibatchSolver")
            .field("objective", &self.objective.name)
            .field("n", &self.examples.len())
            .finish()
    }
}

#[derive(Clone)]
struct Held {
    z: Input,
    /// The graph's logits.
    graph: Arc<[f32]>,
    /// The graph's logits of the classes that presses tell apart, which `shown` and `presses` are about too.
    reference: Vec<f64>,
    group: Option<Grouped>,
    shown: usize,
    mu: f64,
    presses: Vec<Press>,
    /// Whether what was said was, on the whole, praise; `None` when it does not say.
    praise: Option<bool>,
}

impl MinibatchSolver {
    /// A solver for `C = classes` and `d = features` that has heard nothing.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] naming the setting, [`LearnError::Length`] when `classes < 2` or `features < 1`.
    pub fn new(
        classes: usize,
        features: usize,
        objective: &'static ObjectiveDef,
        hyper: Hyper,
        learning_rate: f64,
        config: MinibatchConfig,
    ) -> Result<MinibatchSolver, LearnError> {
        config.check()?;
        objective.check(&hyper)?;
        if !(learning_rate > 0.0 && learning_rate.is_finite()) {
            return Err(LearnError::OutOfRange { what: "learning_rate", value: learning_rate, range: "(0, inf)" });
        }
        for (what, least, found) in [("the classes of a head", 2, classes), ("the features of a head", 1, features)] {
            if found < least {
                return Err(LearnError::Length { what, expected: least, found });
            }
        }
        let width = features + 1;
        let theta = vec![0.0; classes * width];
        Ok(MinibatchSolver {
            objective,
            hyper,
            learning_rate,
            config,
            classes,
            width,
            examples: Vec::new(),
            velocity: theta.clone(),
            slow: if hyper.discount > 0.0 { theta.clone() } else { Vec::new() },
            theta,
            baseline: 0.0,
            draws: 0,
        })
    }

    /// Takes up a pressed prediction and makes the steps.
    ///
    /// # Errors
    /// [`LearnError`] for an example that does not fit or a kind of press the objective does not learn from; the solver
    /// is unchanged then.
    pub fn push(&mut self, pressed: &Pressed) -> Result<(), LearnError> {
        check_len("z", self.width, pressed.z.len())?;
        check_finite("z", &pressed.z.z())?;
        check_len("the graph's logits", self.classes, pressed.logits.len())?;
        let (mut shown, mut presses) = (pressed.shown, pressed.presses.clone());
        if let Some(group) = &pressed.group {
            presses.iter().try_for_each(|p| p.feedback.check(shown, self.classes))?;
            check_class("the shown class", shown, self.classes)?;
            presses.iter_mut().for_each(|p| *p = group.press(*p, shown));
            shown = group.place(shown);
        }
        let reward = mean_reward(&presses, shown);
        let graph: Vec<f64> = pressed.logits.iter().map(|&v| f64::from(v)).collect();
        let held = Held {
            z: pressed.z.clone(),
            reference: pressed.group.as_ref().map_or_else(|| graph.clone(), |group| group.logits(&graph)),
            graph: Arc::clone(&pressed.logits),
            group: pressed.group.clone(),
            shown,
            mu: f64::from(pressed.mu),
            presses,
            praise: reward.filter(|r| *r != 0.0).map(|r| r > 0.0),
        };
        let step = (self.objective.step)(&self.example(&held, &held.reference), &self.hyper)?;
        if step.gradient.iter().all(|g| *g == 0.0) {
            // Nothing was said: no step towards the reference either.
            return Ok(());
        }
        self.examples.push(held);
        for _ in 0..self.config.steps {
            self.step()?;
        }
        if let Some(reward) = reward {
            let decay = self.config.baseline_decay;
            self.baseline = decay * self.baseline + (1.0 - decay) * reward;
        }
        Ok(())
    }

    /// The correction as it stands, `[C, d+1]`.
    pub fn theta(&self) -> Theta {
        Theta::from_parts(self.classes, self.width, self.theta.iter().map(|&v| v as f32).collect())
    }

    /// Places in [`MinibatchSolver::push`]'s order of the examples of the next step, the newest first.
    fn draw(&mut self) -> Vec<usize> {
        let n = self.examples.len();
        let oldest = n.saturating_sub(self.config.replay);
        (0..self.config.batch.min(n - oldest))
            .map(|k| {
                self.draws += 1;
                let hash = splitmix64(self.config.seed.wrapping_mul(0x9e37_79b9).wrapping_add(self.draws));
                if k == 0 { n - 1 } else { oldest + (hash % (n - oldest) as u64) as usize }
            })
            .collect()
    }

    fn step(&mut self) -> Result<(), LearnError> {
        let batch = self.draw();
        let mut z = vec![0.0; batch.len() * self.width];
        for (&i, z) in batch.iter().zip(z.chunks_exact_mut(self.width)) {
            self.examples[i].z.z_into(z);
        }
        let of = |(&i, z): (&usize, &[f64])| self.logits(&self.theta, &self.examples[i], z);
        let full: Vec<Vec<f64>> = batch.iter().zip(z.chunks_exact(self.width)).map(of).collect();
        let logits: Vec<Vec<f64>> = batch.iter().zip(&full).map(|(&i, f)| self.examples[i].told_apart(f)).collect();
        let hyper = self.settings(&batch, &logits)?;
        // One reward is a share 1 − γ of a value, and a pull that was not would count 1/(1 − γ) times as much beside
        // it.
        let anchor = self.config.anchor * (1.0 - self.hyper.discount);
        let mut gradient: Vec<f64> = self.theta.iter().map(|t| anchor * t).collect();
        for (((&i, logits), full), z) in batch.iter().zip(&logits).zip(&full).zip(z.chunks_exact(self.width)) {
            let held = &self.examples[i];
            let hyper = Hyper { ahead: self.ahead(i), ..hyper };
            let mut g = (self.objective.step)(&self.example(held, logits), &hyper)?.gradient;
            if let Some(group) = &held.group {
                g = group.gradient(&g, full);
            }
            for (c, g) in g.iter().enumerate() {
                let row = &mut gradient[c * self.width..(c + 1) * self.width];
                row.iter_mut().zip(z).for_each(|(o, z)| *o += g * z / batch.len() as f64);
            }
        }
        for ((theta, velocity), g) in self.theta.iter_mut().zip(&mut self.velocity).zip(gradient) {
            *velocity = self.config.momentum * *velocity + g;
            *theta -= self.learning_rate * *velocity;
        }
        for (slow, theta) in self.slow.iter_mut().zip(&self.theta) {
            *slow += self.config.follow * (theta - *slow);
        }
        Ok(())
    }

    /// What is expected of the prediction pressed about after example `i`; `None` for the newest, and where nothing is
    /// looked ahead by.
    fn ahead(&self, i: usize) -> Option<f64> {
        let next = self.examples.get(i + 1).filter(|_| !self.slow.is_empty())?;
        let mut z = vec![0.0; self.width];
        next.z.z_into(&mut z);
        let logits = |theta| next.told_apart(&self.logits(theta, next, &z));
        Some(q_learning::worth(&logits(&self.theta), &logits(&self.slow), &next.reference))
    }

    /// The settings for one batch.
    fn settings(&self, batch: &[usize], logits: &[Vec<f64>]) -> Result<Hyper, LearnError> {
        let mut kl = 0.0;
        for (&i, logits) in batch.iter().zip(logits) {
            kl += check_example(&self.example(&self.examples[i], logits), &self.hyper)?.kl() / batch.len() as f64;
        }
        let count = |praise| self.examples.iter().filter(|e| e.praise == Some(praise)).count();
        let hyper = self.hyper.balanced(count(true), count(false));
        Ok(Hyper { baseline: self.baseline.clamp(-1.0, 1.0), kl_batch: Some(kl), ..hyper })
    }

    /// Logits of an example under `theta`; `z` are those of its feature.
    fn logits(&self, theta: &[f64], held: &Held, z: &[f64]) -> Vec<f64> {
        let rows = theta.chunks_exact(self.width);
        let dot = |row: &[f64]| row.iter().zip(z).map(|(t, z)| t * z).sum::<f64>();
        rows.zip(held.graph.iter()).map(|(row, &r)| f64::from(r) + dot(row)).collect()
    }

    fn example<'a>(&self, held: &'a Held, logits: &'a [f64]) -> Example<'a> {
        Example { logits, reference: &held.reference, shown: held.shown, mu: held.mu, presses: &held.presses }
    }
}

impl Held {
    /// Logits of the classes that presses tell apart.
    fn told_apart(&self, logits: &[f64]) -> Vec<f64> {
        self.group.as_ref().map_or_else(|| logits.to_vec(), |group| group.logits(logits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::{Kind, World, uniform, vectors};
    use crate::learn::head::argmax;
    use crate::learn::objective::{Feedback, HeadFit, OBJECTIVES};

    fn solver(objective: &'static ObjectiveDef) -> MinibatchSolver {
        let HeadFit::Minibatch { learning_rate } = objective.fit else { panic!("{} has a better fit", objective.name) };
        MinibatchSolver::new(10, 64, objective, Hyper::default(), learning_rate, MinibatchConfig::default()).unwrap()
    }

    fn by_minibatch() -> impl Iterator<Item = &'static ObjectiveDef> {
        OBJECTIVES.iter().copied().filter(|o| matches!(o.fit, HeadFit::Minibatch { .. }))
    }

    fn pressed(world: &World, t: usize, shown: usize, feedback: Feedback) -> Pressed {
        let sample = &world.stream[t % world.stream.len()];
        Pressed {
            z: world.base.input(&sample.feature).unwrap(),
            logits: sample.logits.clone().into(),
            shown,
            mu: 1.0,
            presses: vec![Press::plain(feedback)],
            group: None,
        }
    }

    /// Presses a person makes on what the solver answers; thumbs where the objective takes them.
    fn live(world: &World, objective: &'static ObjectiveDef, presses: usize, down_only: bool) -> MinibatchSolver {
        live_and_watch(world, objective, presses, down_only, |_| ())
    }

    /// [`live`] with a look at the correction after each press.
    fn live_and_watch(
        world: &World,
        objective: &'static ObjectiveDef,
        presses: usize,
        down_only: bool,
        mut look: impl FnMut(&[f64]),
    ) -> MinibatchSolver {
        let mut solver = solver(objective);
        for t in 0..presses {
            let sample = &world.stream[t % world.stream.len()];
            let shown = world.answer(&solver.theta(), sample);
            let feedback = if objective.learns_from.contains(&"thumb") {
                Feedback::Thumb { up: shown == sample.label && !down_only }
            } else {
                Feedback::Correction { class: sample.label }
            };
            solver.push(&pressed(world, t, shown, feedback)).unwrap();
            look(&solver.theta);
        }
        solver
    }

    /// The largest weight there was in two hundred 👎, and whether all were finite.
    fn largest_of_two_hundred_down(objective: &'static ObjectiveDef) -> (f64, bool) {
        let (mut largest, mut finite) = (0.0_f64, true);
        live_and_watch(&vectors().world(Kind::Relabelled), objective, 200, true, |theta| {
            finite &= theta.iter().all(|v| v.is_finite());
            largest = theta.iter().fold(largest, |m, v| m.max(v.abs()));
        });
        (largest, finite)
    }

    #[test]
    fn every_objective_learns_from_two_hundred_presses_and_the_same_log_gives_the_same_bits() {
        let world = vectors().world(Kind::Shifted);
        let factory = world.accuracy(&world.factory());
        for objective in by_minibatch() {
            let solver = live(&world, objective, 200, false);
            let accuracy = world.accuracy(&solver.theta());
            assert!(accuracy > factory + 0.03, "{}: {factory} -> {accuracy}", objective.name);
            let mut again = self::solver(objective);
            for held in &solver.examples {
                let (z, logits, presses) = (held.z.clone(), Arc::clone(&held.graph), held.presses.clone());
                let (shown, mu) = (held.shown, held.mu as f32);
                again.push(&Pressed { z, logits, shown, mu, presses, group: None }).unwrap();
            }
            assert_eq!(again.theta(), solver.theta(), "{}", objective.name);
        }
    }

    #[test]
    fn two_hundred_thumbs_down_in_a_row_stay_finite_for_every_objective() {
        for objective in by_minibatch().filter(|o| o.learns_from.contains(&"thumb")) {
            let (largest, finite) = largest_of_two_hundred_down(objective);
            assert!(finite && largest < 100.0, "{}: {largest}", objective.name);
        }
    }

    /// The safeguard removed: cross-entropy times the feedback, which for 👎 has no lower bound.
    static UNBOUNDED: ObjectiveDef = ObjectiveDef {
        name: "unbounded",
        summary: "what two hundred thumbs down do to a loss that falls for ever",
        learns_from: &["thumb"],
        fit: HeadFit::Minibatch { learning_rate: 0.3 },
        step: |example, hyper| {
            let mut gradient = check_example(example, hyper)?.pi;
            gradient[example.shown] -= 1.0;
            let sign = crate::learn::objective::reward(example.presses[0].feedback, example.shown).unwrap();
            gradient.iter_mut().for_each(|g| *g *= sign);
            Ok(crate::learn::objective::Step { loss: 0.0, gradient })
        },
        cases: &[],
    };

    #[test]
    fn a_loss_without_a_bound_runs_away_on_thumbs_down_so_the_test_above_can_fail() {
        // It swings further and further, so that its last weights may be small again.
        let (largest, _) = largest_of_two_hundred_down(&UNBOUNDED);
        assert!(largest >= 100.0, "{largest}");
    }

    #[test]
    fn one_press_moves_the_shown_answer_the_right_way_for_every_objective() {
        let world = vectors().world(Kind::Shifted);
        for objective in by_minibatch().filter(|o| o.learns_from.contains(&"thumb")) {
            for up in [true, false] {
                let mut solver = solver(objective);
                let shown = argmax(&world.stream[0].logits);
                let press = pressed(&world, 0, shown, Feedback::Thumb { up });
                solver.push(&press).unwrap();
                let before = crate::learn::objective::log_softmax(&solver.examples[0].reference)[shown];
                let mut z = vec![0.0; solver.width];
                solver.examples[0].z.z_into(&mut z);
                let after =
                    crate::learn::objective::log_softmax(&solver.logits(&solver.theta, &solver.examples[0], &z))[shown];
                assert_eq!(after > before, up, "{}", objective.name);
            }
        }
    }

    #[test]
    fn the_newest_press_is_in_every_batch_and_the_replay_forgets_the_oldest() {
        let world = vectors().world(Kind::Shifted);
        let objective = by_minibatch().next().expect("there are some");
        let mut solver = solver(objective);
        solver.config.replay = 40;
        for t in 0..100 {
            solver.push(&pressed(&world, t, 3, Feedback::Thumb { up: uniform(1, t as u64) < 0.5 })).unwrap();
            let batch = solver.draw();
            assert_eq!(batch[0], t);
            assert_eq!(batch.len(), 16.min(t + 1));
            assert!(batch.iter().all(|&i| i + 40 > t), "{batch:?} at {t}");
        }
    }

    #[test]
    fn a_press_that_says_nothing_or_does_not_fit_takes_no_step() {
        let world = vectors().world(Kind::Shifted);
        for objective in by_minibatch() {
            let mut solver = live(&world, objective, 5, false);
            let before = solver.theta();
            solver.push(&pressed(&world, 7, 3, Feedback::NotSure)).unwrap();
            let good = pressed(&world, 7, 3, Feedback::Correction { class: 1 });
            for bad in [
                Pressed { z: vec![0.0; 3].into(), ..good.clone() },
                Pressed { mu: 0.0, ..good.clone() },
                Pressed { shown: 10, ..good.clone() },
                Pressed { presses: vec![Press::plain(Feedback::Correction { class: 10 })], ..good.clone() },
            ] {
                solver.push(&bad).unwrap_err();
            }
            assert_eq!(solver.theta(), before, "{}", objective.name);
        }
    }

    /// Five places in a row, one-hot; answer 1 goes right, 0 left (the wall holds). Reaching the last is praised, and
    /// it begins anew in one of the others.
    fn chain(place: usize, answer: usize) -> (bool, usize) {
        match (place, answer) {
            (3, 1) => (true, 4),
            (p, 1) => (false, p + 1),
            (p, _) => (false, p.saturating_sub(1)),
        }
    }

    #[test]
    fn on_a_chain_of_five_places_the_values_come_within_five_hundredths_of_the_exact_ones() {
        let gamma = 0.9;
        // Value iteration to the fixed point. From the last place every way leads to one of the four others.
        let mut exact = [[0.0_f64; 2]; 5];
        for _ in 0..500 {
            let best: Vec<f64> = exact.iter().map(|q| q[0].max(q[1])).collect();
            exact[4] = [gamma * best[..4].iter().sum::<f64>() / 4.0; 2];
            for p in 0..4 {
                for a in 0..2 {
                    let (praised, next) = chain(p, a);
                    exact[p][a] = (1.0 - gamma) * f64::from(u8::from(praised)) + gamma * best[next];
                }
            }
        }
        let run = |discount: f64| {
            let hyper = Hyper { discount, ..Hyper::default() };
            let HeadFit::Minibatch { learning_rate } = q_learning::Q_LEARNING.fit else { panic!("by minibatches") };
            let config = MinibatchConfig::default();
            let mut solver = MinibatchSolver::new(2, 5, &q_learning::Q_LEARNING, hyper, learning_rate, config).unwrap();
            let mut place = 0;
            for t in 0..3000 {
                let answer = usize::from(uniform(3, t) < 0.5);
                let (praised, next) = match place {
                    4 => (false, (uniform(4, t) * 4.0) as usize),
                    p => chain(p, answer),
                };
                let mut z = vec![0.0; 6];
                z[place] = 1.0;
                let press = Pressed {
                    z: z.into(),
                    logits: vec![0.0; 2].into(),
                    shown: answer,
                    mu: 0.5,
                    presses: vec![Press::plain(Feedback::Thumb { up: praised })],
                    group: None,
                };
                solver.push(&press).unwrap();
                place = next;
            }
            // The reference's values are a half each, so the level is zero.
            let value = |p: usize, a: usize| 1.0 / (1.0 + (-solver.theta[a * 6 + p]).exp());
            (0..5).map(|p| [value(p, 0), value(p, 1)]).collect::<Vec<_>>()
        };
        let far = |found: &[[f64; 2]]| {
            let pairs = found.iter().flatten().zip(exact.iter().flatten());
            pairs.map(|(f, e)| (f - e).abs()).fold(0.0, f64::max)
        };
        let found = run(gamma);
        assert!(far(&found) < 0.05, "{found:?}, exactly {exact:?}");
        assert!((0..4).all(|p| found[p][1] > found[p][0]), "the way to the end is known: {found:?}");
        // Answers judged by themselves know nothing of the way.
        assert!(far(&run(0.0)) > 0.2);
    }

    #[test]
    fn what_comes_after_an_answer_counts_for_q_learning_alone() {
        let hyper = Hyper { discount: 0.5, ..Hyper::default() };
        for objective in by_minibatch() {
            let made = MinibatchSolver::new(3, 2, objective, hyper, 0.1, MinibatchConfig::default());
            match objective.name {
                "q-learning" => assert!(made.is_ok()),
                name => assert!(matches!(made, Err(LearnError::NoDiscount { objective }) if objective == name)),
            }
        }
        let (still, beyond) =
            (MinibatchConfig { follow: 0.0, ..MinibatchConfig::default() }, Hyper { discount: 1.0, ..hyper });
        assert!(still.check().is_err() && beyond.check().is_err());
    }
}
