//! How much of this machine a pad may take. Frames by the thousand, made by a fault or by malice, must not cost the models
//! their time: what comes faster than any pad of ours speaks stays on the line until its turn, and is lost there if the line
//! holds no more.
use std::time::{Duration, Instant};

/// Bytes heard a second for as long as it lasts: five times a line of 115,200 baud.
const PER_SECOND: u64 = 64 * 1024;
/// Bytes heard at once after silence.
const BURST: u64 = 16 * 1024;
/// What an event costs beyond its bytes: each commit waits for the disk. It makes 128 events a second.
const PER_EVENT: u64 = 512;

/// The allowance of one line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// When there is nothing left to pay for.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { paid: now }
    }

    /// Counts what was heard.
    pub(super) fn spend(&mut self, bytes: usize, events: usize) {
        self.paid += cost(bytes as u64 + events as u64 * PER_EVENT);
    }

    /// How long nothing more is to be heard, if the allowance is used up.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.paid = self.paid.max(now);
        (self.paid - now).checked_sub(cost(BURST)).filter(|pause| !pause.is_zero())
    }
}

fn cost(bytes: u64) -> Duration {
    Duration::from_nanos(bytes * 1_000_000_000 / PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_heard_at_its_pace_and_a_pad_at_once() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut heard = 0;
        // Ten seconds of a line that always has more.
        let end = now + Duration::from_secs(10);
        while now < end {
            match pace.pause(now) {
                Some(pause) => now += pause,
                None => {
                    heard += 256;
                    pace.spend(256, 0);
                }
            }
        }
        assert!((10 * PER_SECOND..=10 * PER_SECOND + BURST + 256).contains(&heard), "{heard}");
        // A pad with a full queue, after a while: 200 events in frames of eight.
        now += Duration::from_secs(1);
        let began = now;
        for _ in 0..25 {
            while let Some(pause) = pace.pause(now) {
                now += pause;
            }
            pace.spend(200, 8);
        }
        assert!(now - began < Duration::from_secs(2), "{:?}", now - began);
        // 30 presses a minute, as many as count at all, are never kept waiting.
        for _ in 0..300 {
            now += Duration::from_secs(2);
            assert_eq!(pace.pause(now), None);
            pace.spend(120, 1);
        }
    }
}
