//! How often one may press: a stuck contact, a child or a hostile device must not teach a model.
use std::collections::VecDeque;

const MINUTE_MS: u32 = 60_000;

/// The limits of one pad, counted in the pad's own time, so that presses delivered late count for when they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Two presses are at least so far apart, ms.
    pub apart_ms: u32,
    /// Presses in any minute.
    pub per_minute: u32,
}

impl Default for Limit {
    fn default() -> Limit {
        Limit { apart_ms: 200, per_minute: 30 }
    }
}

/// What has been pressed in the last minute. Presses over the limit count as well: who goes on pressing stays over it.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    boot: u16,
    times_ms: VecDeque<u32>,
}

impl Meter {
    /// Counts a press that began at `t_ms` of boot `boot`; whether it is over the limit.
    pub fn is_over(&mut self, limit: &Limit, boot: u16, t_ms: u32) -> bool {
        if boot != self.boot {
            // How long the pad was off is not known: not at all, as far as this is concerned.
            self.boot = boot;
            self.times_ms.iter_mut().for_each(|t| *t = 0);
        }
        // The pad's clock wraps; presses come in the order of their ends, which is nearly that of their beginnings.
        let since = |then: u32| (t_ms.wrapping_sub(then) as i32).max(0) as u32;
        while self.times_ms.front().is_some_and(|&t| since(t) >= MINUTE_MS) {
            self.times_ms.pop_front();
        }
        let close = self.times_ms.back().is_some_and(|&t| since(t) < limit.apart_ms);
        let many = self.times_ms.len() >= limit.per_minute as usize;
        self.times_ms.push_back(t_ms);
        if self.times_ms.len() > limit.per_minute as usize {
            // More would say no more.
            self.times_ms.pop_front();
        }
        close || many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(presses: &[(u16, u32)]) -> Vec<bool> {
        let mut meter = Meter::default();
        presses.iter().map(|&(boot, t_ms)| meter.is_over(&Limit::default(), boot, t_ms)).collect()
    }

    #[test]
    fn presses_closer_than_a_person_makes_them_are_over_the_limit_all_but_the_first() {
        let flutter: Vec<_> = (0..1_000).map(|i| (1, i * 50)).collect();
        assert_eq!(over(&flutter).iter().filter(|over| !**over).count(), 1);
    }

    #[test]
    fn a_minute_has_thirty_presses_and_one_who_goes_on_stays_over() {
        let steady: Vec<_> = (0..1_000).map(|i| (1, i * 250)).collect();
        let allowed: Vec<usize> =
            over(&steady).iter().enumerate().filter(|(_, over)| !**over).map(|(i, _)| i).collect();
        assert_eq!(allowed, (0..30).collect::<Vec<_>>());
        let calm: Vec<_> = (0..200).map(|i| (1, i * 2_001)).collect();
        assert!(over(&calm).iter().all(|over| !over), "thirty a minute are nobody's fault");
        let mut paused = steady[..40].to_vec();
        paused.push((1, 40 * 250 + MINUTE_MS));
        assert_eq!(over(&paused).last(), Some(&false), "a minute of rest makes good");
    }

    #[test]
    fn restarting_the_pad_or_its_clock_going_round_is_no_way_around_the_limit() {
        let restarts: Vec<_> = (0..200).map(|i| (i as u16, 10_000)).collect();
        assert_eq!(over(&restarts).iter().filter(|over| !**over).count(), 30);
        let wrap: Vec<_> = (0..100u32).map(|i| (1, (i * 250).wrapping_sub(10_000))).collect();
        assert_eq!(over(&wrap).iter().filter(|over| !**over).count(), 30);
    }
}
