//! When a prediction is *shown*: on a trigger, or when the top class has changed and the change has lasted.
//!
//! At ten frames a second most predictions are nobody's business; only those that were put before a person get an id, a
//! record and a prompt. A pure state machine: time comes as an argument, no clock is read.
use std::time::{Duration, Instant};

/// When a prediction counts as shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShownConfig {
    /// How long a new top class must hold.
    pub hold: Duration,
    /// Probability under which a top class is not counted as one; it interrupts the holding of another.
    pub min_p: f32,
    /// Longest time between two observations over which a class is believed to have held.
    pub max_gap: Duration,
    /// How long a trigger waits for the next observation before it is void.
    pub trigger_valid: Duration,
    /// Whether changes are shown at all; if not, only triggers are.
    pub on_change: bool,
}

impl Default for ShownConfig {
    /// Held 2 s, any probability, gaps up to 5 s, triggers good for 5 s, changes shown.
    fn default() -> Self {
        ShownConfig {
            hold: Duration::from_secs(2),
            min_p: 0.0,
            max_gap: Duration::from_secs(5),
            trigger_valid: Duration::from_secs(5),
            on_change: true,
        }
    }
}

/// Why a prediction is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowReason {
    /// Somebody asked.
    Triggered {
        /// How long ago.
        waited: Duration,
    },
    /// The top class has changed.
    Changed {
        /// The class shown before; none at the beginning.
        from: Option<usize>,
        /// How long the new one has held.
        held: Duration,
    },
}

/// Decides which predictions are shown.
#[derive(Clone, Debug)]
pub struct ShownRule {
    config: ShownConfig,
    shown: Option<usize>,
    candidate: Option<Candidate>,
    trigger: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    class: usize,
    since: Instant,
    last: Instant,
}

impl ShownRule {
    /// A rule that has shown nothing yet.
    pub fn new(config: ShownConfig) -> ShownRule {
        ShownRule { config, shown: None, candidate: None, trigger: None }
    }

    /// Asks for the *next* observation to be shown, whatever it is: what was seen before the trigger may not be what the
    /// person meant. Triggers in a row are one.
    pub fn trigger(&mut self, now: Instant) {
        self.trigger = Some(now);
    }

    /// The class shown last.
    pub fn shown(&self) -> Option<usize> {
        self.shown
    }

    /// Takes in that `top_class` has been predicted with probability `p` at `now`; a reason if this one is to be shown.
    ///
    /// A probability that is not a number counts as zero. `now` is expected not to go back; if it does, no time has passed.
    pub fn observe(&mut self, top_class: usize, p: f32, now: Instant) -> Option<ShowReason> {
        if let Some(asked) = self.trigger.take() {
            let waited = now.saturating_duration_since(asked);
            if waited <= self.config.trigger_valid {
                self.shown = Some(top_class);
                self.candidate = None;
                return Some(ShowReason::Triggered { waited });
            }
        }
        let sure = !p.is_nan() && p >= self.config.min_p || self.config.min_p <= 0.0;
        if !sure || self.shown == Some(top_class) {
            self.candidate = None;
            return None;
        }
        let since = match self.candidate {
            Some(c) if c.class == top_class && now.saturating_duration_since(c.last) <= self.config.max_gap => c.since,
            _ => now,
        };
        let held = now.saturating_duration_since(since);
        if held < self.config.hold || !self.config.on_change {
            self.candidate = Some(Candidate { class: top_class, since, last: now });
            return None;
        }
        let from = self.shown.replace(top_class);
        self.candidate = None;
        Some(ShowReason::Changed { from, held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `classes` at ten a second from `t0`, and gives the indices that were shown.
    fn shown_at(rule: &mut ShownRule, t0: Instant, classes: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let step = Duration::from_millis(100);
        let times = (0u32..).map(|n| t0 + step * n);
        let seen = classes.into_iter().zip(times).enumerate();
        seen.filter_map(|(n, (class, now))| rule.observe(class, 0.9, now).map(|_| n)).collect()
    }

    #[test]
    fn a_class_is_shown_once_after_it_has_held_two_seconds_and_not_again() {
        let mut rule = ShownRule::new(ShownConfig::default());
        assert_eq!(shown_at(&mut rule, Instant::now(), [3; 100]), [20]);
        assert_eq!(rule.shown(), Some(3));
    }

    #[test]
    fn a_flicker_starts_the_two_seconds_again_and_a_flicker_away_from_the_shown_class_shows_nothing() {
        let mut rule = ShownRule::new(ShownConfig::default());
        let classes = [vec![3; 15], vec![4; 1], vec![3; 30]].concat();
        assert_eq!(shown_at(&mut rule, Instant::now(), classes), [16 + 20]);
        let classes = [vec![4; 15], vec![3; 5], vec![4; 19], vec![3; 100]].concat();
        assert_eq!(shown_at(&mut rule, Instant::now(), classes), Vec::<usize>::new());
    }

    #[test]
    fn there_and_back_are_two_changes_that_name_where_they_came_from() {
        let mut rule = ShownRule::new(ShownConfig { hold: Duration::ZERO, ..ShownConfig::default() });
        let now = Instant::now();
        let from = |from| Some(ShowReason::Changed { from, held: Duration::ZERO });
        assert_eq!(rule.observe(1, 0.9, now), from(None));
        assert_eq!(rule.observe(2, 0.9, now), from(Some(1)));
        assert_eq!(rule.observe(1, 0.9, now), from(Some(2)));
        assert_eq!(rule.observe(1, 0.9, now), None);
    }

    #[test]
    fn a_trigger_shows_the_next_observation_once_and_even_of_the_class_already_shown() {
        let mut rule = ShownRule::new(ShownConfig::default());
        let now = Instant::now();
        shown_at(&mut rule, now, [3; 30]);
        let later = now + Duration::from_secs(10);
        rule.trigger(later);
        rule.trigger(later);
        let waited = Duration::from_millis(80);
        assert_eq!(rule.observe(3, 0.1, later + waited), Some(ShowReason::Triggered { waited }));
        assert_eq!(rule.observe(3, 0.1, later + waited * 2), None);
        rule.trigger(later);
        assert!(rule.observe(5, 0.9, later).is_some());
        assert_eq!(rule.shown(), Some(5), "what a trigger showed is what changes are measured against");
        assert_eq!(shown_at(&mut rule, later, [5; 50]), Vec::<usize>::new());
    }

    #[test]
    fn a_trigger_nothing_answered_in_time_is_void() {
        let mut rule = ShownRule::new(ShownConfig::default());
        let now = Instant::now();
        rule.trigger(now);
        assert_eq!(rule.observe(1, 0.9, now + Duration::from_secs(60)), None);
    }

    #[test]
    fn a_class_seen_before_and_after_a_long_gap_has_not_held_in_between() {
        let mut rule = ShownRule::new(ShownConfig::default());
        let now = Instant::now();
        assert_eq!(rule.observe(1, 0.9, now), None);
        assert_eq!(rule.observe(1, 0.9, now + Duration::from_secs(60)), None);
        assert!(rule.observe(1, 0.9, now + Duration::from_secs(62)).is_some());
    }

    #[test]
    fn an_unsure_or_undefined_answer_is_no_class_and_interrupts_one() {
        let mut rule = ShownRule::new(ShownConfig { min_p: 0.5, ..ShownConfig::default() });
        let now = Instant::now();
        let at = |s: u64| now + Duration::from_secs(s);
        for p in [0.4, f32::NAN] {
            assert_eq!(rule.observe(1, 0.9, at(0)), None);
            assert_eq!(rule.observe(1, p, at(1)), None);
            assert_eq!(rule.observe(1, 0.9, at(2)), None);
            rule = ShownRule::new(rule.config);
        }
        assert_eq!(rule.observe(1, 0.9, at(0)), None);
        assert!(rule.observe(1, 0.5, at(2)).is_some());
    }

    #[test]
    fn without_changes_only_triggers_show() {
        let mut rule = ShownRule::new(ShownConfig { on_change: false, ..ShownConfig::default() });
        let now = Instant::now();
        assert_eq!(shown_at(&mut rule, now, [1; 100]), Vec::<usize>::new());
        rule.trigger(now);
        assert_eq!(shown_at(&mut rule, now, [1; 100]), [0]);
    }

    #[test]
    fn time_that_goes_back_is_no_time_and_no_panic() {
        let mut rule = ShownRule::new(ShownConfig::default());
        let now = Instant::now() + Duration::from_secs(100);
        assert_eq!(rule.observe(1, 0.9, now), None);
        assert_eq!(rule.observe(1, 0.9, now - Duration::from_secs(50)), None);
        rule.trigger(now);
        assert!(rule.observe(1, 0.9, now - Duration::from_secs(50)).is_some());
    }
}
