//! How sure an answer really is: one temperature, fitted on presses that never trained.
//!
//! A confirmed press tells the truth about an answer or excludes it. `T` minimises `−Σ ln P_T(what was told) + (ln
//! T)²/(2σ²)`, with `P_T = softmax(f/T)` and σ = ½: few presses leave `T` near one (Guo et al. 2017, with a prior).
//! Dividing by `T` changes no answer, only how sure it is; an answer that is not sure enough can then be held back, and
//! how sure is enough means what it says.
use serde::{Deserialize, Serialize};

use super::objective::softmax_into;

/// σ of the prior on `ln T`.
const PRIOR: f64 = 0.5;
/// The range of `ln T`: a tenth to ten.
const RANGE: f64 = std::f64::consts::LN_10;

/// What a confirmed press tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is this class.
    Is(usize),
    /// It is not this class.
    IsNot(usize),
}

/// A fitted temperature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Temperature {
    /// `T`; above one the raw probabilities are too sure.
    pub t: f64,
    /// Confirmed presses it was fitted on.
    pub n: usize,
}

impl Default for Temperature {
    fn default() -> Temperature {
        Temperature { t: 1.0, n: 0 }
    }
}

impl Temperature {
    /// Fits to logits `[C]` of the head in use and what was told about each.
    pub fn fit(told: &[(Vec<f32>, Told)]) -> Temperature {
        if told.is_empty() {
            return Temperature::default();
        }
        // The criterion is smooth in ln T; a grid finds the valley, golden sections its floor.
        let steps = 64;
        let at = |i: usize| RANGE * (2.0 * i as f64 / steps as f64 - 1.0);
        let value = |ln_t: f64| criterion(told, ln_t);
        let best = (0..=steps).min_by(|&a, &b| value(at(a)).total_cmp(&value(at(b)))).unwrap_or(steps / 2);
        let (mut low, mut high) = (at(best.saturating_sub(1)), at((best + 1).min(steps)));
        let golden = (5f64.sqrt() - 1.0) / 2.0;
        for _ in 0..40 {
            let (a, b) = (high - golden * (high - low), low + golden * (high - low));
            if value(a) < value(b) { high = b } else { low = a }
        }
        Temperature { t: (0.5 * (low + high)).exp(), n: told.len() }
    }

    /// Logits divided by `T`.
    pub fn apply(&self, logits: &[f32]) -> Vec<f32> {
        logits.iter().map(|&f| (f64::from(f) / self.t) as f32).collect()
    }
}

fn criterion(told: &[(Vec<f32>, Told)], ln_t: f64) -> f64 {
    let t = ln_t.exp();
    let nll: f64 = told
        .iter()
        .map(|(logits, told)| {
            let scaled: Vec<f64> = logits.iter().map(|&f| f64::from(f) / t).collect();
            let mut p = vec![0.0; scaled.len()];
            softmax_into(&scaled, &mut p);
            let told = match *told {
                Told::Is(class) => p.get(class).copied().unwrap_or(0.0),
                // Summed and not 1 − p: that would be rounding where the answer was sure.
                Told::IsNot(class) => p.iter().enumerate().filter(|(c, _)| *c != class).map(|(_, p)| p).sum(),
            };
            -told.max(f64::MIN_POSITIVE).ln()
        })
        .sum();
    nll + ln_t * ln_t / (2.0 * PRIOR * PRIOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::head::argmax;
    use crate::metrics::Calibration;

    fn uniform(x: u64) -> f64 {
        (crate::learn::solver::splitmix64(x) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Logits that mean what they say, times `factor`: a head that is `factor` times too sure.
    fn told(n: usize, factor: f32, seed: u64, only_thumbs: bool) -> Vec<(Vec<f32>, Told)> {
        (0..n as u64)
            .map(|i| {
                let draw = |k: u64| uniform(seed.wrapping_mul(7_919) + i * 31 + k);
                let logits: Vec<f64> = (0..5).map(|k| 4.0 * (draw(k) - 0.5)).collect();
                let mut p = vec![0.0; 5];
                softmax_into(&logits, &mut p);
                let (mut left, mut truth) = (draw(9), 0);
                while truth < 4 && left >= p[truth] {
                    left -= p[truth];
                    truth += 1;
                }
                let served: Vec<f32> = logits.iter().map(|&f| factor * f as f32).collect();
                let shown = argmax(&served);
                let says = match only_thumbs && shown != truth {
                    true => Told::IsNot(shown),
                    false => Told::Is(truth),
                };
                (served, says)
            })
            .collect()
    }

    #[test]
    fn a_head_three_times_too_sure_is_found_out_from_corrections_and_from_thumbs() {
        for (factor, thumbs) in [(3.0, false), (3.0, true), (0.5, false), (1.0, true)] {
            let fitted = Temperature::fit(&told(2_000, factor, 1, thumbs));
            // The standard error of ln T at 2,000 is about 0.04.
            assert!((fitted.t.ln() - f64::from(factor).ln()).abs() < 0.15, "{factor} {thumbs}: {fitted:?}");
        }
    }

    #[test]
    fn the_minimum_is_that_of_a_fine_grid() {
        for seed in 0..20 {
            let told = told(3 + seed as usize * 3, 2.0, seed, seed % 2 == 0);
            let fitted = Temperature::fit(&told);
            let grid = (-4_000..=4_000).map(|i| RANGE * f64::from(i) / 4_000.0);
            let best = grid.min_by(|&a, &b| criterion(&told, a).total_cmp(&criterion(&told, b))).unwrap();
            assert!((fitted.t.ln() - best).abs() < 1e-3, "seed {seed}: {} and {}", fitted.t.ln(), best);
        }
    }

    #[test]
    fn a_reservoir_of_presses_makes_confidence_better_and_no_press_leaves_it_alone() {
        assert_eq!(Temperature::fit(&[]), Temperature { t: 1.0, n: 0 });
        let (few, many) = (told(64, 3.0, 5, true), told(3_000, 3.0, 6, false));
        let fitted = Temperature::fit(&few);
        assert!(fitted.t > 1.5, "{fitted:?}");
        let error = |t: &Temperature| {
            let (mut confidence, mut right) = (Vec::new(), Vec::new());
            for (logits, told) in &many {
                let p = crate::learn::fixture::probabilities(&t.apply(logits));
                let class = argmax(&p);
                confidence.push(f64::from(p[class]));
                right.push(*told == Told::Is(class));
            }
            Calibration::from_answers(&confidence, &right).unwrap().expected_calibration_error
        };
        let (raw, calibrated) = (error(&Temperature::default()), error(&fitted));
        assert!(calibrated < 0.5 * raw, "{raw} before, {calibrated} after");
    }

    #[test]
    fn three_presses_cannot_make_a_head_look_sure_or_clueless() {
        let wrong = vec![(vec![9.0, 0.0], Told::Is(1)); 3];
        let right = vec![(vec![0.2, 0.0], Told::Is(0)); 3];
        assert!(Temperature::fit(&wrong).t <= 10.0);
        assert!(Temperature::fit(&right).t > 0.4, "{:?}", Temperature::fit(&right));
    }
}
