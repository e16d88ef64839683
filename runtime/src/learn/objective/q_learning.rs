//! Q-learning: how well an answer will be received, learned for the answer shown alone.
//!
//! **γ = 0**, the row of [`super::OBJECTIVES`]: a Bernoulli reward model on the shown action, `Q(x, a) = σ(f_a −
//! c(x))`, binary cross-entropy with `r = 1` for 👍, `(s−1)/4` for `s` stars. `c(x)` is the level at which the
//! reference's values sum to one, as exactly one class is right; it is common to all classes, so the class with the
//! largest value is the class with the largest logit, and what is served needs no second head. A class that was named
//! has `r = 1`, and the shown one, where it was another, `r = 0`.
//!
//! **γ > 0**, [`Sequence`]: decisions that lead to the next situation, `y = r + γ (1 − done) Q⁻(s', argmax_b Q(s', b))`
//! (double DQN, van Hasselt et al. 2016) on linear features with Huber's loss, a replay of the newest transitions and a
//! target `Q⁻` that follows slowly. The loop that shows single answers has γ = 0; this is for callers whose answers
//! have consequences.
use super::{
    Example, Feedback, GradientCase, HeadFit, Hyper, ObjectiveDef, Press, Step, check_example, mean_over_presses,
    sigmoid, softplus,
};
use crate::learn::error::{LearnError, check_class, check_finite, check_len};
use crate::learn::solver::splitmix64;

/// The row of [`super::OBJECTIVES`].
pub static Q_LEARNING: ObjectiveDef = ObjectiveDef {
    name: "q-learning",
    summary: "a reward model of the shown answer, one yes-or-no regression per class; learns nothing about classes not \
        shown",
    learns_from: &["thumb", "stars", "correction", "demonstration", "not-sure"],
    fit: HeadFit::Minibatch { learning_rate: 1.0 },
    step,
    cases: CASES,
};

fn step(example: &Example<'_>, hyper: &Hyper) -> Result<Step, LearnError> {
    check_example(example, hyper)?;
    let level = level(example.reference);
    let regress = |class: usize, r: f64, gradient: &mut [f64]| {
        let value = example.logits[class] - level;
        gradient[class] += sigmoid(value) - r;
        r * softplus(-value) + (1.0 - r) * softplus(value)
    };
    mean_over_presses(&Q_LEARNING, example, |press, gradient| {
        gradient.fill(0.0);
        match press.feedback {
            Feedback::Thumb { up } => Some(regress(example.shown, f64::from(u8::from(up)), gradient)),
            Feedback::Stars { stars } => Some(regress(example.shown, f64::from(stars - 1) / 4.0, gradient)),
            Feedback::Correction { class } | Feedback::Demonstration { class } => {
                let mut loss = regress(class, 1.0, gradient);
                if class != example.shown && matches!(press.feedback, Feedback::Correction { .. }) {
                    loss += regress(example.shown, 0.0, gradient);
                }
                Some(loss)
            }
            _ => None,
        }
    })
}

/// The `c` at which `Σ_a σ(f_a − c) = 1`, by bisection: the sum falls from above one to below it within `ln C` of the
/// largest.
fn level(logits: &[f64]) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut low, mut high) = (largest - 60.0, largest + (logits.len() as f64).ln() + 1.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if logits.iter().map(|f| sigmoid(f - middle)).sum::<f64>() > 1.0 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Settings of a [`Sequence`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceConfig {
    /// γ, in [0, 1).
    pub discount: f64,
    /// Share τ of the way that the target follows after each update, in (0, 1].
    pub follow: f64,
    /// Step of the plain gradient descent.
    pub learning_rate: f64,
    /// Transitions in one update, the newest among them.
    pub batch: usize,
    /// Updates after each transition.
    pub updates: usize,
    /// Transitions kept.
    pub replay: usize,
    /// Seed of the choice from the replay.
    pub seed: u64,
}

impl Default for SequenceConfig {
    fn default() -> SequenceConfig {
        SequenceConfig { discount: 0.9, follow: 0.01, learning_rate: 0.1, batch: 16, updates: 8, replay: 512, seed: 0 }
    }
}

/// One decision and where it led.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// Feature of the situation, `[d]`.
    pub state: Vec<f32>,
    /// The action taken.
    pub action: usize,
    /// What was said, in [−1, 1].
    pub reward: f32,
    /// Feature of the next situation, `[d]`; `None` when the episode ended.
    pub next: Option<Vec<f32>>,
}

/// Double Q-learning over linear features with a slowly moving target.
#[derive(Clone, Debug)]
pub struct Sequence {
    config: SequenceConfig,
    actions: usize,
    features: usize,
    /// `[actions, d]`.
    weights: Vec<f64>,
    target: Vec<f64>,
    replay: Vec<Transition>,
    seen: u64,
}

impl Sequence {
    /// Values of zero for `actions` actions over features of width `features`.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] naming the setting, [`LearnError::Length`] without actions or features.
    pub fn new(actions: usize, features: usize, config: SequenceConfig) -> Result<Sequence, LearnError> {
        for (what, least, found) in [("the actions", 1, actions), ("the features of a state", 1, features)] {
            if found < least {
                return Err(LearnError::Length { what, expected: least, found });
            }
        }
        let out = |what, value, range| Err(LearnError::OutOfRange { what, value, range });
        if !(0.0..1.0).contains(&config.discount) {
            return out("discount", config.discount, "[0, 1)");
        }
        for (what, value) in [("follow", config.follow), ("learning_rate", config.learning_rate)] {
            if !(value > 0.0 && value <= 1.0) {
                return out(what, value, "(0, 1]");
            }
        }
        for (what, value) in [("batch", config.batch), ("updates", config.updates), ("replay", config.replay)] {
            if value == 0 {
                return out(what, 0.0, "[1, inf)");
            }
        }
        let weights = vec![0.0; actions * features];
        Ok(Sequence { config, actions, features, target: weights.clone(), weights, replay: Vec::new(), seen: 0 })
    }

    /// `Q(state, ·)`, `[actions]`, within `±1/(1−γ)`, what rewards in [−1, 1] can add up to.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`].
    pub fn values(&self, state: &[f32]) -> Result<Vec<f64>, LearnError> {
        check_len("the state", self.features, state.len())?;
        check_finite("the state", state)?;
        Ok(self.q(&self.weights, state))
    }

    /// Takes up a transition and makes the updates.
    ///
    /// # Errors
    /// [`LearnError`] for a transition that does not fit; nothing is changed then.
    pub fn observe(&mut self, transition: Transition) -> Result<(), LearnError> {
        for state in [Some(&transition.state), transition.next.as_ref()].into_iter().flatten() {
            check_len("the state", self.features, state.len())?;
            check_finite("the state", state)?;
        }
        check_class("the action", transition.action, self.actions)?;
        if !(-1.0..=1.0).contains(&transition.reward) {
            let value = f64::from(transition.reward);
            return Err(LearnError::OutOfRange { what: "the reward", value, range: "[-1, 1]" });
        }
        if self.replay.len() == self.config.replay {
            self.replay.remove(0);
        }
        self.replay.push(transition);
        for _ in 0..self.config.updates {
            self.update();
        }
        Ok(())
    }

    fn q(&self, weights: &[f64], state: &[f32]) -> Vec<f64> {
        let bound = 1.0 / (1.0 - self.config.discount);
        let dot = |w: &[f64]| w.iter().zip(state).map(|(w, &s)| w * f64::from(s)).sum::<f64>().clamp(-bound, bound);
        weights.chunks_exact(self.features).map(dot).collect()
    }

    fn update(&mut self) {
        let n = self.replay.len();
        let batch = self.config.batch.min(n);
        let mut gradient = vec![0.0; self.weights.len()];
        for k in 0..batch {
            self.seen += 1;
            let i = if k == 0 { n - 1 } else { (splitmix64(self.config.seed ^ self.seen) % n as u64) as usize };
            let Transition { state, action, reward, next } = &self.replay[i];
            let ahead = next.as_ref().map_or(0.0, |next| {
                let own = self.q(&self.weights, next);
                let best = (0..self.actions).fold(0, |b, a| if own[a] > own[b] { a } else { b });
                self.q(&self.target, next)[best]
            });
            let aim = f64::from(*reward) + self.config.discount * ahead;
            // Huber's loss with δ = 1.
            let error = (self.q(&self.weights, state)[*action] - aim).clamp(-1.0, 1.0);
            for (g, &s) in gradient[action * self.features..].iter_mut().zip(state) {
                *g += error * f64::from(s) / batch as f64;
            }
        }
        for ((w, t), g) in self.weights.iter_mut().zip(&mut self.target).zip(gradient) {
            *w -= self.config.learning_rate * g;
            *t += self.config.follow * (*w - *t);
        }
    }
}

const FIVE: &[f64] = &[0.3, -1.2, 2.0, 0.1, -0.4];
const OTHER: &[f64] = &[0.1, 0.4, 1.0, -0.6, 0.2];

const fn case(name: &'static str, shown: usize, presses: &'static [Press]) -> GradientCase {
    GradientCase { name, logits: FIVE, reference: OTHER, shown, mu: 1.0, presses, hyper: Hyper::DEFAULT }
}

const CASES: &[GradientCase] = &[
    case("thumb up", 2, &[Press::plain(Feedback::Thumb { up: true })]),
    case("thumb down", 2, &[Press::plain(Feedback::Thumb { up: false })]),
    case("two stars", 1, &[Press::plain(Feedback::Stars { stars: 2 })]),
    case("correction", 2, &[Press::plain(Feedback::Correction { class: 3 })]),
    case("demonstration", 2, &[Press::plain(Feedback::Demonstration { class: 3 })]),
    case("not sure", 2, &[Press::plain(Feedback::NotSure)]),
    case("two people", 2, &[Press::plain(Feedback::Thumb { up: false }), Press::plain(Feedback::Stars { stars: 4 })]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::fixture::uniform;

    #[test]
    fn the_level_makes_the_values_of_the_reference_sum_to_one() {
        for logits in [&[0.0, 0.0][..], FIVE, &[30.0, -30.0, 0.0], &[0.0; 100]] {
            let c = level(logits);
            let sum: f64 = logits.iter().map(|f| sigmoid(f - c)).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
    }

    /// Five states in a row, one-hot; action 1 goes right, 0 left (the wall holds). Reaching the last state gives 1 and
    /// ends.
    fn chain(state: usize, action: usize) -> (f32, Option<usize>) {
        match (state, action) {
            (3, 1) => (1.0, None),
            (s, 1) => (0.0, Some(s + 1)),
            (s, _) => (0.0, Some(s.saturating_sub(1))),
        }
    }

    fn one_hot(state: usize) -> Vec<f32> {
        (0..5).map(|s| if s == state { 1.0 } else { 0.0 }).collect()
    }

    #[test]
    fn on_a_chain_of_five_states_the_values_come_within_five_hundredths_of_the_exact_ones() {
        let gamma = 0.9;
        // Value iteration to the fixed point.
        let mut exact = [[0.0_f64; 2]; 4];
        for _ in 0..500 {
            let before = exact;
            for s in 0..4 {
                for a in 0..2 {
                    let (r, next) = chain(s, a);
                    exact[s][a] = f64::from(r) + gamma * next.map_or(0.0, |n| before[n][0].max(before[n][1]));
                }
            }
        }
        assert!((exact[0][1] - 0.729).abs() < 1e-9);
        let mut learner = Sequence::new(2, 5, SequenceConfig::default()).unwrap();
        let mut state = 0;
        for t in 0..3000 {
            let action = usize::from(uniform(3, t) < 0.5);
            let (reward, next) = chain(state, action);
            let transition = Transition { state: one_hot(state), action, reward, next: next.map(one_hot) };
            learner.observe(transition).unwrap();
            state = next.unwrap_or((uniform(4, t) * 4.0) as usize);
        }
        for s in 0..4 {
            let found = learner.values(&one_hot(s)).unwrap();
            for a in 0..2 {
                assert!((found[a] - exact[s][a]).abs() < 0.05, "Q({s}, {a}) = {}, exactly {}", found[a], exact[s][a]);
            }
        }
    }

    #[test]
    fn transitions_that_do_not_fit_are_refused_and_change_nothing() {
        let mut learner = Sequence::new(2, 5, SequenceConfig::default()).unwrap();
        let good = Transition { state: one_hot(0), action: 1, reward: 1.0, next: None };
        for bad in [
            Transition { action: 2, ..good.clone() },
            Transition { reward: 1.5, ..good.clone() },
            Transition { reward: f32::NAN, ..good.clone() },
            Transition { state: vec![0.0; 4], ..good.clone() },
            Transition { next: Some(vec![f32::INFINITY; 5]), ..good.clone() },
        ] {
            assert!(learner.observe(bad).is_err());
        }
        assert_eq!(learner.values(&one_hot(0)).unwrap(), [0.0, 0.0]);
        learner.observe(good).unwrap();
        assert!(learner.values(&one_hot(0)).unwrap()[1] > 0.0);
        assert!(Sequence::new(2, 5, SequenceConfig { discount: 1.0, ..SequenceConfig::default() }).is_err());
        assert!(Sequence::new(0, 5, SequenceConfig::default()).is_err());
        assert!(Sequence::new(2, 5, SequenceConfig { batch: 0, ..SequenceConfig::default() }).is_err());
    }
}
