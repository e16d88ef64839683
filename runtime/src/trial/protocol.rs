//! One run: a learner meets a changed world and a simulated person.
use serde::Serialize;

use crate::learn::objective::softmax_into;
use crate::learn::{
    Action, Coreset, Feedback, HeadBase, LearnError, Learner, LearnerConfig, Mode, Outcome, Retain, SourceSample,
    Theta, TrainingPress, argmax,
};

/// Presses after which accuracy is measured.
pub const CHECKPOINTS: [usize; 4] = [50, 100, 200, 500];

/// What the graph gave for one input, and the truth.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Pooled backbone feature, `[d]`.
    pub feature: Vec<f32>,
    /// The graph's logits, `[C]`.
    pub logits: Vec<f32>,
    /// The true class, by the names of its world.
    pub label: usize,
}

/// A source model and a world that has changed.
#[derive(Clone, Debug)]
pub struct World {
    /// The task's name.
    pub task: String,
    /// Seed of split, model, change and person.
    pub seed: u64,
    /// The shipped head.
    pub base: HeadBase,
    /// Inputs that are shown and pressed on.
    pub stream: Vec<Sample>,
    /// Held-out inputs of the changed world.
    pub test: Vec<Sample>,
    /// Held-out inputs of the old world.
    pub source_test: Vec<Sample>,
    /// Inputs of the old world, none of them among the others.
    pub source: Vec<Sample>,
    /// Which input of the stream is shown at each press.
    pub order: Vec<usize>,
    /// The press is wrong where this is below the share of wrong presses.
    pub error: Vec<f32>,
    /// A wrong correction names `(truth + other) mod C`.
    pub other: Vec<usize>,
}

/// What the person says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Says {
    /// 👍 or 👎 on the answer shown.
    Thumbs,
    /// The right class, each time.
    Corrections,
}

/// Which learner, which person.
#[derive(Clone, Debug)]
pub struct Condition {
    /// The learner.
    pub learner: LearnerConfig,
    /// What is said.
    pub says: Says,
    /// Share of plain presses that are wrong. Confirmed ones, which the person makes when asked under a gate, are
    /// right.
    pub wrong: f64,
    /// Presses made, at most as many as the world has.
    pub presses: usize,
    /// How much of the source is learned beside the presses.
    pub retain: Retain,
    /// Random Fourier features beside the model's.
    pub random_features: usize,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Presses and the accuracy on the changed world's test after them.
    pub at: Vec<(usize, f64)>,
    /// Wrong answers shown.
    pub regret: usize,
    /// Accuracy on the old world's test at the end.
    pub kept: f64,
    /// The factory head's accuracy on the changed world's test.
    pub factory: f64,
    /// Presses that trained.
    pub trained: usize,
    /// Presses that were confirmed.
    pub confirmed: usize,
    /// Presses made, and the accuracy after them on what was confirmed until then, less the factory head's.
    pub over_factory: Vec<(usize, f64)>,
    /// Candidates published, refused and rolled back.
    pub decisions: [usize; 3],
    /// Press at which the learner first said that presses contradict each other.
    pub contradiction: Option<usize>,
}

/// Plays the presses of `world` under `condition`; `watch` sees the learner after each press.
///
/// # Errors
/// [`LearnError`], of a configuration that makes no sense.
pub fn run(world: &World, condition: &Condition, mut watch: impl FnMut(usize, &Learner)) -> Result<Curve, LearnError> {
    let base = world.base.with_fourier(condition.random_features);
    let mut config = condition.learner.clone();
    config.source = retained(world, condition.retain);
    let mut learner = Learner::new(base.clone(), config)?;
    let gated = condition.learner.gate.mode != Mode::Off;
    // Only this objective needs answers that were drawn.
    let draws = condition.learner.objective == "policy-gradient";
    let classes = base.classes();
    let presses = condition.presses.min(world.order.len());
    let mut curve = Curve {
        at: Vec::new(),
        regret: 0,
        kept: 0.0,
        factory: accuracy(&base, &Theta::zeros(classes, base.width()), &world.test)?,
        trained: 0,
        confirmed: 0,
        over_factory: Vec::new(),
        decisions: [0; 3],
        contradiction: None,
    };
    let factory = Theta::zeros(classes, base.width());
    let mut reservoir = Vec::new();
    for t in 0..presses {
        let sample = &world.stream[world.order[t]];
        let served = learner.logits(&sample.feature, &sample.logits)?;
        learner.displayed(&served, &sample.logits)?;
        let (shown, mu) = if draws { drawn(&served, world.seed, t) } else { (argmax(&served), 1.0) };
        let right = shown == sample.label;
        curve.regret += usize::from(!right);
        let confirmed = gated && learner.wants_confirmation();
        let wrong = !confirmed && f64::from(world.error[t]) < condition.wrong;
        let feedback = match condition.says {
            Says::Thumbs if !confirmed => Feedback::Thumb { up: right != wrong },
            _ if wrong => Feedback::Correction { class: (sample.label + world.other[t]) % classes },
            _ => Feedback::Correction { class: sample.label },
        };
        let outcome = learner.press(TrainingPress {
            press_id: t as u64,
            prediction_id: t as u32,
            feature: sample.feature.clone(),
            logits: sample.logits.clone(),
            shown,
            mu,
            feedback,
            confirmed,
            source: "pad".to_string(),
        })?;
        curve.trained += usize::from(outcome == Outcome::Trained);
        if outcome == Outcome::Confirmed {
            curve.confirmed += 1;
            reservoir.push(sample.clone());
        }
        if gated && learner.candidate_due() {
            match learner.candidate()?.action {
                Action::Publish => curve.decisions[0] += 1,
                Action::Veto => curve.decisions[1] += 1,
                Action::Rollback => curve.decisions[2] += 1,
                Action::Hold | Action::Freeze => {}
            }
        }
        if learner.contradicted() {
            curve.contradiction.get_or_insert(t + 1);
        }
        watch(t, &learner);
        if CHECKPOINTS.contains(&(t + 1)) || t + 1 == presses {
            curve.at.push((t + 1, accuracy(&base, learner.published(), &world.test)?));
            if gated {
                let on_confirmed = |theta: &Theta| accuracy(&base, theta, &reservoir);
                curve.over_factory.push((t + 1, on_confirmed(learner.published())? - on_confirmed(&factory)?));
            }
        }
    }
    curve.kept = accuracy(&base, learner.published(), &world.source_test)?;
    Ok(curve)
}

/// The samples of the source that a bundle would ship to be learned beside the presses.
fn retained(world: &World, retain: Retain) -> Vec<SourceSample> {
    if retain == Retain::Adapt {
        return Vec::new();
    }
    let of = |s: &Sample| SourceSample { feature: s.feature.clone(), logits: s.logits.clone(), label: Some(s.label) };
    let source: Vec<SourceSample> = world.source.iter().map(of).collect();
    let most = Retain::ALL.map(Retain::samples).into_iter().max().unwrap_or(0);
    Coreset::choose(&source, most, 0).train.into_iter().take(retain.samples()).collect()
}

/// Share of `samples` that the head corrected by `theta` answers rightly.
///
/// # Errors
/// [`LearnError::Length`] when `theta` is of another head.
pub fn accuracy(base: &HeadBase, theta: &Theta, samples: &[Sample]) -> Result<f64, LearnError> {
    let mut right = 0;
    for sample in samples {
        let served = theta.apply(&base.standardise(&sample.feature)?, &sample.logits)?;
        right += usize::from(argmax(&served) == sample.label);
    }
    Ok(right as f64 / samples.len().max(1) as f64)
}

/// A class drawn from `softmax(logits)` by a hash of seed and step, and its probability.
fn drawn(logits: &[f32], seed: u64, t: usize) -> (usize, f32) {
    let logits: Vec<f64> = logits.iter().map(|&f| f64::from(f)).collect();
    let mut pi = vec![0.0; logits.len()];
    softmax_into(&logits, &mut pi);
    let mut left = crate::learn::solver::unit(seed.wrapping_mul(1_000_003).wrapping_add(t as u64));
    for (class, &p) in pi.iter().enumerate() {
        if left < p {
            return (class, p as f32);
        }
        left -= p;
    }
    // Rounding has left a crumb: the likeliest class takes it.
    let top = (0..pi.len()).fold(0, |best, c| if pi[c] > pi[best] { c } else { best });
    (top, pi[top] as f32)
}
