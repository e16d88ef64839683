//! Milliseconds from a counter that runs by itself: writing or erasing flash stops a core, and its tick with it.

/// Milliseconds since boot, wrapping.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    hertz: u32,
    mask: u32,
    /// The counter when it was last read.
    last: u32,
    /// What has been counted and is no millisecond yet, in thousandths of a tick.
    rest: u32,
    ms: u32,
}

impl Clock {
    /// Of a counter of `bits` bits that rises `hertz` times a second. It is to be read before it has gone round, and
    /// before it has risen by four million.
    ///
    /// # Panics
    /// When compiled, if it has no bits or more than 32.
    #[must_use]
    pub const fn new(hertz: u32, bits: u32) -> Self {
        assert!(bits > 0 && bits <= 32, "a counter of 1 to 32 bits");
        Self { hertz, mask: u32::MAX >> (32 - bits), last: 0, rest: 0, ms: 0 }
    }

    /// The time when the counter shows `count`.
    pub fn at(&mut self, count: u32) -> u32 {
        let ticks = count.wrapping_sub(self.last) & self.mask;
        self.last = count;
        self.rest = self.rest.saturating_add(ticks.saturating_mul(1000));
        self.ms = self.ms.wrapping_add(self.rest / self.hertz);
        self.rest %= self.hertz;
        self.ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_millisecond_is_lost_whenever_it_is_read_and_when_the_counter_goes_round() {
        for (hertz, bits, step) in [(1_000_000u64, 32, 999_983), (1_024, 24, 97), (2_000, 16, 31)] {
            let mut clock = Clock::new(hertz as u32, bits);
            for count in (0..3u64 << bits).step_by(step).take(1_000_000) {
                let shown = (count & ((1 << bits) - 1)) as u32;
                assert_eq!(clock.at(shown), (count * 1000 / hertz) as u32, "{hertz} Hz, {count}");
            }
        }
    }
}
