//! Trip-wires: signs of a learner gone wrong that need no labels. A trip freezes publication until confirmed evidence
//! arrives.
//!
//! The gate asks whether a candidate is worse on confirmed presses; the wires watch between them, when there may be
//! none.
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::{LearnError, check_len};
use super::head::argmax;
use super::objective::softmax_into;

/// Settings of the wires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TripwireConfig {
    /// Expected share of each class among displays, `[C]`, summing to 1; empty for uniform.
    pub prior: Vec<f64>,
    /// Displays over which shares and entropies are taken.
    pub displays: usize,
    /// A class shown more than this many times its expected share trips.
    pub share_factor: f64,
    /// Thumbs over which the share of 👍 is taken.
    pub thumbs: usize,
    /// Share of 👍 under which the wire trips.
    pub least_up_share: f64,
    /// ‖Θ‖ above this many times its running median trips.
    pub norm_factor: f64,
}

impl Default for TripwireConfig {
    fn default() -> TripwireConfig {
        TripwireConfig {
            prior: Vec::new(),
            displays: 100,
            share_factor: 3.0,
            thumbs: 40,
            least_up_share: 0.1,
            norm_factor: 10.0,
        }
    }
}

/// Why learning was frozen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trip {
    /// A logit or a weight is NaN or infinite.
    NonFinite,
    /// One class takes too many of the answers.
    TopClass {
        /// The class.
        class: usize,
        /// Its share among the last displays.
        share: f64,
        /// The larger of its prior and of the factory head's own share on the same displays.
        expected: f64,
    },
    /// The answers have become certain on inputs where the factory head is not.
    EntropyCollapse {
        /// Mean entropy of the answers, nats.
        mean: f64,
        /// Mean entropy of the factory head on the same displays, nats.
        factory: f64,
    },
    /// The correction grew suddenly.
    Norm {
        /// ‖Θ‖ now.
        norm: f64,
        /// Its running median.
        median: f64,
    },
    /// Nearly every thumb is 👎.
    ThumbsDown {
        /// 👍 among them.
        up: usize,
        /// Thumbs looked at.
        thumbs: usize,
    },
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trip::NonFinite => write!(f, "an answer or a weight is not a finite number"),
            Trip::TopClass { class, share, expected } => {
                write!(
                    f,
                    "class {class} takes {:.0} % of the answers, {:.0} % expected",
                    share * 100.0,
                    expected * 100.0
                )
            }
            Trip::EntropyCollapse { mean, factory } => {
                write!(f, "answers have become certain: mean entropy {mean:.4} nats, factory {factory:.4}")
            }
            Trip::Norm { norm, median } => write!(f, "the correction grew to {norm:.3}, its median is {median:.3}"),
            Trip::ThumbsDown { up, thumbs } => write!(f, "only {up} of the last {thumbs} thumbs were up"),
        }
    }
}

impl Trip {
    /// What tripped, as named figures for a record; [`Trip::told`] reads them back.
    pub fn figures(&self) -> BTreeMap<String, f64> {
        let figures: &[(&str, f64)] = match self {
            Trip::NonFinite => &[("trip_non_finite", 1.0)],
            Trip::TopClass { class, share, expected } => {
                &[("trip_top_class", *class as f64), ("trip_share", *share), ("trip_expected_share", *expected)]
            }
            Trip::EntropyCollapse { mean, factory } => &[("trip_entropy", *mean), ("trip_factory_entropy", *factory)],
            // A record holds finite numbers; how far beyond all bounds makes no difference.
            Trip::Norm { norm, median } => &[("trip_norm", norm.min(f64::MAX)), ("trip_median_norm", *median)],
            Trip::ThumbsDown { up, thumbs } => &[("trip_thumbs_up", *up as f64), ("trip_thumbs", *thumbs as f64)],
        };
        figures.iter().map(|&(name, value)| (name.to_string(), value)).collect()
    }

    /// What tripped, by its figures; `None` where they tell of no wire.
    pub fn told(figures: &BTreeMap<String, f64>) -> Option<Trip> {
        let of = |name: &str| figures.get(name).copied();
        let count = |name: &str| of(name).map(|n| n as usize);
        if let Some(class) = count("trip_top_class") {
            return Some(Trip::TopClass { class, share: of("trip_share")?, expected: of("trip_expected_share")? });
        }
        if let Some(mean) = of("trip_entropy") {
            return Some(Trip::EntropyCollapse { mean, factory: of("trip_factory_entropy")? });
        }
        if let Some(norm) = of("trip_norm") {
            return Some(Trip::Norm { norm, median: of("trip_median_norm")? });
        }
        if let Some(up) = count("trip_thumbs_up") {
            return Some(Trip::ThumbsDown { up, thumbs: count("trip_thumbs")? });
        }
        of("trip_non_finite").map(|_| Trip::NonFinite)
    }
}

/// Norms kept for the running median, and the number from which it is trusted.
const NORMS: (usize, usize) = (64, 16);
/// Entropy collapse: mean entropy under this share of `ln C` and under [`ENTROPY_OF_FACTORY`] of the factory head's.
/// Learning makes a head more certain rightly; only certainty without precedent on the same inputs is a sign.
const ENTROPY_OF_UNIFORM: f64 = 0.01;
const ENTROPY_OF_FACTORY: f64 = 0.1;

/// The wires' memory.
#[derive(Clone, Debug)]
pub struct Tripwire {
    config: TripwireConfig,
    classes: usize,
    displays: VecDeque<Display>,
    thumbs: VecDeque<bool>,
    norms: VecDeque<f64>,
    tripped: Option<Trip>,
}

#[derive(Clone, Copy, Debug)]
struct Display {
    top: usize,
    factory_top: usize,
    entropy: f64,
    factory_entropy: f64,
}

impl Tripwire {
    /// Wires for `C = classes`.
    ///
    /// # Errors
    /// [`LearnError::Length`] for a prior that is neither empty nor `[C]`, [`LearnError::OutOfRange`] for windows of
    /// zero, a prior with a value outside [0, 1], or factors outside their ranges.
    pub fn new(classes: usize, config: TripwireConfig) -> Result<Tripwire, LearnError> {
        if !config.prior.is_empty() {
            check_len("the class prior", classes, config.prior.len())?;
        }
        let out = |what, value, range| Err(LearnError::OutOfRange { what, value, range });
        if let Some(&p) = config.prior.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            return out("a class prior", p, "[0, 1]");
        }
        if config.displays == 0 || config.thumbs == 0 {
            return out("a trip-wire's window", 0.0, "[1, inf)");
        }
        for (what, value) in [("share_factor", config.share_factor), ("norm_factor", config.norm_factor)] {
            if value.is_nan() || value <= 1.0 {
                return out(what, value, "(1, inf)");
            }
        }
        if !(0.0..=1.0).contains(&config.least_up_share) {
            return out("least_up_share", config.least_up_share, "[0, 1]");
        }
        let (displays, thumbs, norms) = Default::default();
        Ok(Tripwire { config, classes, displays, thumbs, norms, tripped: None })
    }

    /// The trip that froze learning, if any; the first one stays until [`Tripwire::thaw`].
    pub fn tripped(&self) -> Option<&Trip> {
        self.tripped.as_ref()
    }

    /// Confirmed evidence arrived: clears the trip and the windows, so that what tripped must happen anew to trip
    /// again.
    pub fn thaw(&mut self) {
        if self.tripped.take().is_some() {
            self.displays.clear();
            self.thumbs.clear();
            self.norms.clear();
        }
    }

    /// One answer was put before a person: its logits and the graph's own, both `[C]`.
    ///
    /// # Errors
    /// [`LearnError::Length`].
    pub fn display(&mut self, served: &[f32], graph: &[f32]) -> Result<(), LearnError> {
        check_len("the served logits", self.classes, served.len())?;
        check_len("the graph's logits", self.classes, graph.len())?;
        if served.iter().chain(graph).any(|f| !f.is_finite()) {
            self.trip(Trip::NonFinite);
            return Ok(());
        }
        let display = Display {
            top: argmax(served),
            factory_top: argmax(graph),
            entropy: entropy(served),
            factory_entropy: entropy(graph),
        };
        if !push(&mut self.displays, display, self.config.displays) {
            return Ok(());
        }
        let n = self.displays.len() as f64;
        for class in 0..self.classes {
            let share_of = |f: fn(&Display) -> usize| self.displays.iter().filter(|d| f(d) == class).count() as f64 / n;
            let share = share_of(|d| d.top);
            let prior = self.config.prior.get(class).copied().unwrap_or(1.0 / self.classes as f64);
            // A camera that mostly sees one thing is no collapse: the factory head says so too.
            let expected = prior.max(share_of(|d| d.factory_top));
            if share > self.config.share_factor * expected {
                self.trip(Trip::TopClass { class, share, expected });
                return Ok(());
            }
        }
        let mean = self.displays.iter().map(|d| d.entropy).sum::<f64>() / n;
        let factory = self.displays.iter().map(|d| d.factory_entropy).sum::<f64>() / n;
        if mean < ENTROPY_OF_UNIFORM * (self.classes as f64).ln() && mean < ENTROPY_OF_FACTORY * factory {
            self.trip(Trip::EntropyCollapse { mean, factory });
        }
        Ok(())
    }

    /// A thumb was pressed (thumbs only: corrections say nothing about contentment).
    pub fn thumb(&mut self, up: bool) {
        if push(&mut self.thumbs, up, self.config.thumbs) {
            let up = self.thumbs.iter().filter(|up| **up).count();
            if (up as f64) < self.config.least_up_share * self.thumbs.len() as f64 {
                self.trip(Trip::ThumbsDown { up, thumbs: self.thumbs.len() });
            }
        }
    }

    /// ‖Θ‖ after a press.
    pub fn norm(&mut self, norm: f64) {
        if !norm.is_finite() {
            self.trip(Trip::NonFinite);
            return;
        }
        if self.norms.len() >= NORMS.1 {
            let mut sorted: Vec<f64> = self.norms.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            let median = sorted[sorted.len() / 2];
            if median > 0.0 && norm > self.config.norm_factor * median {
                self.trip(Trip::Norm { norm, median });
            }
        }
        push(&mut self.norms, norm, NORMS.0);
    }

    /// A wire trips, or is known to have tripped before a stop; the first stays.
    pub fn trip(&mut self, trip: Trip) {
        self.tripped.get_or_insert(trip);
    }
}

/// Keeps the last `limit`; true when the window is full.
fn push<T>(window: &mut VecDeque<T>, value: T, limit: usize) -> bool {
    if window.len() == limit {
        window.pop_front();
    }
    window.push_back(value);
    window.len() == limit
}

/// Entropy of `softmax(logits)` in nats.
fn entropy(logits: &[f32]) -> f64 {
    let logits: Vec<f64> = logits.iter().map(|&f| f64::from(f)).collect();
    let mut pi = vec![0.0; logits.len()];
    softmax_into(&logits, &mut pi);
    pi.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_hot(class: usize, height: f32) -> Vec<f32> {
        (0..10).map(|c| if c == class { height } else { 0.0 }).collect()
    }

    fn wires() -> Tripwire {
        Tripwire::new(10, TripwireConfig::default()).unwrap()
    }

    #[test]
    fn a_class_shown_above_three_times_its_prior_over_a_hundred_displays_freezes_with_the_class_named() {
        let mut wire = wires();
        for t in 0..99 {
            wire.display(&one_hot(if t % 3 == 0 { 7 } else { t % 10 }, 3.0), &one_hot(t % 10, 3.0)).unwrap();
        }
        assert_eq!(wire.tripped(), None, "before the window is full nothing trips");
        wire.display(&one_hot(7, 3.0), &one_hot(9, 3.0)).unwrap();
        match wire.tripped() {
            Some(Trip::TopClass { class: 7, share, expected }) => {
                assert!(*share > 0.3 && (*expected - 0.1).abs() < 0.02);
            }
            other => panic!("{other:?}"),
        }
        assert!(wire.tripped().unwrap().to_string().contains("class 7"));
    }

    #[test]
    fn one_class_most_of_the_time_is_no_collapse_when_prior_or_factory_head_say_so() {
        let mut by_factory = wires();
        let mut prior = vec![0.05; 10];
        prior[2] = 0.55;
        let mut by_prior = Tripwire::new(10, TripwireConfig { prior, ..TripwireConfig::default() }).unwrap();
        for t in 0..300 {
            by_factory.display(&one_hot(2, 3.0), &one_hot(if t % 2 == 0 { 2 } else { t % 10 }, 3.0)).unwrap();
            by_prior.display(&one_hot(2, 3.0), &one_hot(t % 10, 3.0)).unwrap();
        }
        assert_eq!(by_factory.tripped(), None);
        assert_eq!(by_prior.tripped(), None);
    }

    #[test]
    fn certainty_the_factory_head_does_not_share_freezes() {
        let mut wire = wires();
        let mut fair = wires();
        for t in 0..100 {
            wire.display(&one_hot(t % 10, 40.0), &one_hot(t % 10, 1.0)).unwrap();
            fair.display(&one_hot(t % 10, 40.0), &one_hot(t % 10, 40.0)).unwrap();
        }
        assert!(matches!(wire.tripped(), Some(Trip::EntropyCollapse { .. })), "{:?}", wire.tripped());
        assert_eq!(fair.tripped(), None);
    }

    #[test]
    fn a_non_finite_answer_or_norm_freezes_at_once() {
        let mut wire = wires();
        let mut logits = one_hot(1, 1.0);
        logits[4] = f32::NAN;
        wire.display(&logits, &one_hot(1, 1.0)).unwrap();
        assert_eq!(wire.tripped(), Some(&Trip::NonFinite));
        let mut wire = wires();
        wire.norm(f64::INFINITY);
        assert_eq!(wire.tripped(), Some(&Trip::NonFinite));
    }

    #[test]
    fn a_norm_above_ten_times_its_running_median_freezes() {
        let mut wire = wires();
        for _ in 0..16 {
            wire.norm(2.0);
        }
        wire.norm(19.9);
        assert_eq!(wire.tripped(), None);
        wire.norm(20.1);
        assert_eq!(wire.tripped(), Some(&Trip::Norm { norm: 20.1, median: 2.0 }));
    }

    #[test]
    fn three_ups_in_forty_thumbs_freeze_four_do_not_and_a_thaw_starts_afresh() {
        let run = |ups: usize| {
            let mut wire = wires();
            (0..40).for_each(|t| wire.thumb(t < ups));
            wire
        };
        assert_eq!(run(4).tripped(), None);
        let mut wire = run(3);
        assert_eq!(wire.tripped(), Some(&Trip::ThumbsDown { up: 3, thumbs: 40 }));
        wire.thaw();
        assert_eq!(wire.tripped(), None);
        (0..39).for_each(|_| wire.thumb(false));
        assert_eq!(wire.tripped(), None, "the window begins anew after a thaw");
        wire.thumb(false);
        assert!(wire.tripped().is_some());
    }

    #[test]
    fn every_trip_comes_back_from_its_figures_and_a_decision_without_any_tells_of_none() {
        for trip in [
            Trip::NonFinite,
            Trip::TopClass { class: 7, share: 0.5, expected: 0.1 },
            Trip::EntropyCollapse { mean: 0.01, factory: 1.2 },
            Trip::Norm { norm: 20.1, median: 2.0 },
            Trip::ThumbsDown { up: 0, thumbs: 40 },
        ] {
            assert_eq!(Trip::told(&trip.figures()), Some(trip));
        }
        assert_eq!(Trip::told(&BTreeMap::from([("confirmed".to_string(), 3.0)])), None);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let bad = |change: fn(&mut TripwireConfig)| {
            let mut config = TripwireConfig::default();
            change(&mut config);
            Tripwire::new(10, config).is_err()
        };
        assert!(bad(|c| c.prior = vec![0.5; 3]));
        assert!(bad(|c| c.prior = vec![f64::NAN; 10]));
        assert!(bad(|c| c.displays = 0));
        assert!(bad(|c| c.share_factor = 0.5));
        assert!(bad(|c| c.norm_factor = f64::NAN));
        assert!(bad(|c| c.least_up_share = 2.0));
        assert!(wires().display(&[0.0; 3], &[0.0; 10]).is_err());
    }
}
