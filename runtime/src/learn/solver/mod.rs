//! The MAP refit of a head: `min_Θ Σ ℓ(graph logits + Θz) + (λ/2)‖Θ‖²`, without a learning rate.
//!
//! Böhning's bound majorises the softmax Hessian by `½ Σ z zᵀ + λI`, so `Θ ← Θ − (Σ g zᵀ + λΘ) M` with its inverse `M`
//! never overshoots. Two forms of the same iteration:
//!
//! * **primal**, `M [d+1, d+1]` kept by rank-1 updates: per iteration `2nC(d+1) + C(d+1)²` multiply-adds;
//! * **dual** while presses are not many more than weights: `Θ = AᵀZ`, `A ← A − (½K + λI)⁻¹(g + λA)` with `K = ZZᵀ [n,
//!   n]` and a Cholesky factor that grows a row per press: `n²C`.
//!
//! [`HeadSolver`] is the incremental one (a few warm iterations a press); [`canonical_refit`] is a function of the rows
//! alone and starts at zero, so it has to travel the whole way: with plain iterations 30 left `Θ` half its size away
//! from the fixed point and cost up to 12 points of accuracy. It therefore extrapolates, `Θ + β(Θ − Θ_previous)` with
//! `β_k = min(k/(k+3), 0.9)`: 60 such iterations end where some 300 plain ones do. No restart rule, so that no branch
//! depends on rounding. The incremental one keeps the last step from press to press and extrapolates by β = 0.9 from
//! the first iteration on. Without, three iterations a press lag behind: where the shipped head is sure, the true
//! curvature is far below the bound, and `Θ` was 20 to 60 % of its norm away from where the presses so far had put it,
//! most of all under priors that look along the shipped head. What is foretold from there says more about the lag than
//! about the prior.
//!
//! All arithmetic is f64 in a fixed order on one thread; `Θ` is rounded to f32 at the end.
//!
//! **Which prior.** `(λ/2)‖Θ‖²` is a guess about what has changed, and no single guess fits. Where sensors drift, every
//! direction of the feature may matter; where names were traded, the answer lies in the directions the shipped head
//! reads already; where little changed, a strong λ keeps what was known. So each of [`SolverConfig::priors`] is fitted,
//! a covariance `λ⁻¹(I + κBᵀB)` with `B` the shipped head, and the corrections are averaged with the weights `∝
//! exp(s_h)`, `s_h` the logarithm of the probability the prior gave to each press *before* it was told (prequential
//! scores, Dawid 1984). Fits of the presses already told cannot judge: every prior explains those, and the marginal
//! likelihood by Laplace's method chose worse than no choice. The scores are kept press by press over the first
//! [`SCORED_ROWS`]; the canonical refit, which may depend on the log alone, tells itself those presses once more, one
//! by one, and so weighs the priors as the incremental solver does. Where that one was told the rows in their order,
//! its judgement is the same and is taken ([`HeadSolver::refit`]). Past [`SCORED_ROWS`] the likeliest prior is kept
//! alone: the others' factors take most of the memory, and no accuracy came of them.
//!
//! A prior's certainty is not held against it: what it foretells is averaged over several factors of its logits
//! (`record.rs`). Three priors gain three points at 100 and 200 thumbs on average over tasks
//! (`benches/feedback/README.md`). A head without directions of its own, as of a [`Link`], is fitted under the priors
//! with κ = 0 alone.
//!
//! λ of a log that mixes presses: the mean over its rows of λ(partial) for thumbs, stars and preferences and λ(label)
//! for rows in which a class was named. The preconditioner keeps the λ it was factored with until the mean has moved by
//! a quarter: the minimum does not depend on it, and Böhning's factor has that much slack.
//!
//! Wider than [`SolverConfig::max_features`], features go through a fixed random sign projection; `Θ` is folded back to
//! `[C, d+1]`, so serving and merging do not know of it.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{LearnError, check_len};
use super::head::{HeadBase, Theta};
use super::input::Input;
use super::objective::Hyper;
use crate::Note;

mod forms;
pub mod minibatch;
mod record;
mod rows;

use forms::{Fit, mixed};
use rows::Rows;

/// Rows by which priors are judged, the first ones. So many presses outweigh any prior: past them the likeliest is kept
/// alone.
pub const SCORED_ROWS: usize = 256;
/// A prior whose weight falls below this is left out of the average.
const NEGLIGIBLE: f64 = 1e-2;
/// Weight from which a prior gets every warm iteration; the others get one, which keeps them ready.
const LIKELY: f64 = 0.05;
/// A prior without weight gets its one iteration every so many rows.
const OUT_OF_THE_RUNNING: usize = 4;

/// A guess about what has changed: Θ is normal with covariance `(lambda_factor · λ)⁻¹ (I + kappa BᵀB)`, `B` the shipped
/// head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// Multiplies λ.
    pub lambda_factor: f64,
    /// How much more the directions count that the shipped head reads; 0 where all count the same.
    pub kappa: f64,
    /// How much it counts beside the others before a press has told, above 0; only ratios matter.
    pub share: f64,
}

impl Prior {
    /// λ as it is, every direction alike.
    pub const PLAIN: Prior = Prior { lambda_factor: 1.0, kappa: 0.0, share: 1.0 };
    /// The plain one, and two by which what is to be learned lies mostly in the directions that the shipped head reads
    /// already.
    pub const THREE: [Prior; 3] = [
        Prior { share: 0.8, ..Prior::PLAIN },
        Prior { lambda_factor: 10.0, kappa: 3.0, share: 0.1 },
        Prior { lambda_factor: 10.0, kappa: 30.0, share: 0.1 },
    ];
}

/// A correction of `P` outputs as one of `C` logits: `logits = graph's + M Θ z`, Θ `[P, d+1]`.
///
/// What is handed out is `MΘ`, a correction of the logits as any other. Priors look at no directions of the shipped
/// head then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// `P`, at least 1.
    pub outputs: usize,
    /// `M [C, P]`, row-major, so scaled that the curvature of the loss in `Θz` is at most ½.
    pub matrix: Vec<f64>,
    /// What δ mixes into the belief is `softmax(doubt · logits)`: at 0 the uniform distribution, as with classes; below
    /// 1 the same belief less sure of itself. In [0, 1].
    pub doubt: f64,
}

impl Link {
    /// `logits += M outputs`.
    fn push(&self, outputs: &[f64], logits: &mut [f64]) {
        for (logit, row) in logits.iter_mut().zip(self.matrix.chunks_exact(self.outputs)) {
            *logit += row.iter().zip(outputs).map(|(m, o)| m * o).sum::<f64>();
        }
    }

    /// `outputs = Mᵀ logits`.
    fn pull(&self, logits: &[f64], outputs: &mut [f64]) {
        outputs.fill(0.0);
        for (logit, row) in logits.iter().zip(self.matrix.chunks_exact(self.outputs)) {
            outputs.iter_mut().zip(row).for_each(|(o, m)| *o += m * logit);
        }
    }
}

/// Settings of the refit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SolverConfig {
    /// Settings of the objective.
    pub hyper: Hyper,
    /// λ of a row on which only thumbs, stars or preferences were pressed.
    pub lambda_partial: f64,
    /// λ of a row for which somebody named the class.
    pub lambda_label: f64,
    /// The priors that are tried, at least one.
    pub priors: Vec<Prior>,
    /// Rows `h` at which δ is `hyper.delta`: `2δ/(1 + n/h)`, twice as much at first and ever less later. Infinite for a
    /// δ that stays.
    ///
    /// δ is there because a model in a changed world is wrong and sure of it; the more has been said since, the less
    /// doubt has to be added from outside.
    pub delta_presses: f64,
    /// Iterations after each press of the incremental solver.
    pub warm_iterations: usize,
    /// Extrapolation factor β of the incremental solver, in [0, 1); 0 for plain iterations.
    #[serde(default)]
    pub warm_momentum: f64,
    /// Iterations of the canonical refit.
    pub canonical_iterations: usize,
    /// Largest extrapolation factor β of the canonical refit, in [0, 1); 0 for plain iterations.
    pub canonical_momentum: f64,
    /// Rank-1 updates of `M` before a fresh factorisation.
    pub refresh_every: usize,
    /// Feature width up to which no projection is used.
    pub max_features: usize,
    /// Width after projection.
    pub projected_features: usize,
    /// How fewer outputs move the logits; `None` where each logit has a row of Θ.
    #[serde(default)]
    pub link: Option<Link>,
    /// Rows that are held on to beside the presses: their `likelihood` is what the head shall go on believing, a fixed
    /// target.
    #[serde(skip)]
    pub source: Vec<Row>,
}

impl Default for SolverConfig {
    fn default() -> SolverConfig {
        SolverConfig {
            hyper: Hyper::default(),
            lambda_partial: 0.03,
            lambda_label: 0.1,
            priors: Prior::THREE.to_vec(),
            delta_presses: 50.0,
            warm_iterations: 3,
            warm_momentum: 0.9,
            canonical_iterations: 60,
            canonical_momentum: 0.9,
            refresh_every: 256,
            max_features: 1024,
            projected_features: 512,
            link: None,
            source: Vec::new(),
        }
    }
}

impl SolverConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] naming the field.
    pub fn check(&self) -> Result<(), LearnError> {
        self.hyper.check()?;
        for (what, value) in [("lambda_partial", self.lambda_partial), ("lambda_label", self.lambda_label)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(LearnError::OutOfRange { what, value, range: "(0, inf)" });
            }
        }
        if self.delta_presses.is_nan() || self.delta_presses <= 0.0 {
            let value = self.delta_presses;
            return Err(LearnError::OutOfRange { what: "delta_presses", value, range: "(0, inf]" });
        }
        if self.priors.is_empty() {
            return Err(LearnError::OutOfRange { what: "the number of priors", value: 0.0, range: "[1, inf)" });
        }
        for prior in &self.priors {
            let value = prior.lambda_factor;
            if !(value > 0.0 && value.is_finite()) {
                return Err(LearnError::OutOfRange { what: "a prior's lambda_factor", value, range: "(0, inf)" });
            }
            if !(prior.kappa >= 0.0 && prior.kappa.is_finite()) {
                return Err(LearnError::OutOfRange { what: "a prior's kappa", value: prior.kappa, range: "[0, inf)" });
            }
            if !(prior.share > 0.0 && prior.share.is_finite()) {
                return Err(LearnError::OutOfRange { what: "a prior's share", value: prior.share, range: "(0, inf)" });
            }
        }
        for (what, value) in [("canonical_momentum", self.canonical_momentum), ("warm_momentum", self.warm_momentum)] {
            if !(0.0..1.0).contains(&value) {
                return Err(LearnError::OutOfRange { what, value, range: "[0, 1)" });
            }
        }
        if let Some(link) = &self.link
            && (link.outputs == 0 || link.matrix.iter().any(|m| !m.is_finite()) || !(0.0..=1.0).contains(&link.doubt))
        {
            return Err(LearnError::OutOfRange {
                what: "a link",
                value: link.outputs as f64,
                range: "finite, outputs >= 1, doubt in [0, 1]",
            });
        }
        for (what, value) in [
            ("warm_iterations", self.warm_iterations),
            ("canonical_iterations", self.canonical_iterations),
            ("refresh_every", self.refresh_every),
            ("max_features", self.max_features),
            ("projected_features", self.projected_features),
        ] {
            if value == 0 {
                return Err(LearnError::OutOfRange { what, value: 0.0, range: "[1, inf)" });
            }
        }
        Ok(())
    }
}

impl SolverConfig {
    /// δ for a log of `n` pressed rows.
    pub fn delta(&self, n: usize) -> f64 {
        let delta = self.hyper.delta;
        if self.delta_presses.is_infinite() {
            return delta;
        }
        (2.0 * delta / (1.0 + n as f64 / self.delta_presses)).min(delta.max(MOST_DOUBT))
    }
}

/// Most that δ is raised to at first.
const MOST_DOUBT: f64 = 0.5;

/// One pressed prediction as the solver sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Standardised feature with its constant, `[d+1]`.
    pub z: Input,
    /// The graph's logits, `[C]`.
    pub logits: Arc<[f32]>,
    /// `L(y)`, the product over its pressers, `[C]`.
    pub likelihood: Vec<f64>,
    /// Whether a presser named the class (chooses λ).
    pub names_class: bool,
}

/// The incremental solver: what drives the next answer between two canonical refits.
#[derive(Clone, Debug)]
pub struct HeadSolver {
    config: SolverConfig,
    rows: Rows,
    fits: Vec<Fit>,
    /// Whether the priors were judged by what the rows say now, in their order.
    judged: bool,
}

impl HeadSolver {
    /// A solver for `C = classes` and `d = features` with no rows, which knows no shipped head: priors with κ > 0 are
    /// as with 0.
    ///
    /// # Errors
    /// Those of [`SolverConfig::check`]; [`LearnError::Length`] when `classes < 2` or `features < 1`.
    pub fn new(classes: usize, features: usize, config: SolverConfig) -> Result<HeadSolver, LearnError> {
        config.check()?;
        HeadSolver::at_rest(Rows::new(classes, features, &config)?, config)
    }

    /// A solver of the corrections of `base`, with no rows.
    ///
    /// # Errors
    /// Those of [`SolverConfig::check`].
    pub fn for_head(base: &HeadBase, config: SolverConfig) -> Result<HeadSolver, LearnError> {
        config.check()?;
        HeadSolver::at_rest(Rows::of_head(base, &config)?, config)
    }

    /// The solver that stands at the canonical refit of `rows` under every prior, none of which has been judged.
    fn at_rest(rows: Rows, config: SolverConfig) -> Result<HeadSolver, LearnError> {
        let fits = applicable(&rows, &config)
            .into_iter()
            .map(|prior| Fit::canonical(&rows, prior, &config)?.ready_to_go_on(&rows))
            .collect::<Result<_, _>>()?;
        Ok(HeadSolver { config, rows, fits, judged: true })
    }

    /// A solver that holds `rows` and has judged its priors by them, told one by one. Where there is nothing to judge,
    /// and past the [`SCORED_ROWS`], it stands at the canonical refit; before, where pushing the rows one by one has
    /// led.
    ///
    /// # Errors
    /// Those of [`HeadSolver::for_head`] and [`HeadSolver::push`].
    pub fn with_rows(base: &HeadBase, rows: &[Row], config: SolverConfig) -> Result<HeadSolver, LearnError> {
        config.check()?;
        let all = Rows::of_rows(base, rows, &config)?;
        let mut solver = HeadSolver::told(&all, config)?;
        if solver.len() < all.pressed() {
            solver.rows = all;
            for fit in &mut solver.fits {
                let stands = Fit::canonical(&solver.rows, fit.prior, &solver.config)?.ready_to_go_on(&solver.rows)?;
                fit.state = stands.state;
            }
        }
        Ok(solver)
    }

    /// A solver that was told those of `all` that judge its priors, one by one; none where there is but one prior.
    fn told(all: &Rows, config: SolverConfig) -> Result<HeadSolver, LearnError> {
        let mut solver = HeadSolver::at_rest(all.emptied(), config)?;
        if solver.fits.len() > 1 {
            for i in all.fixed..all.n.min(all.fixed + SCORED_ROWS) {
                solver.rows.copy(all, i);
                solver.absorb_last()?;
            }
        }
        Ok(solver)
    }

    /// The canonical correction of its rows, see [`canonical_refit`]. `None` while the priors were judged by something
    /// else than the rows as they are, see [`HeadSolver::replace`].
    ///
    /// # Errors
    /// [`LearnError::NotPositiveDefinite`].
    pub fn refit(&self) -> Result<Option<Theta>, LearnError> {
        self.judged.then(|| self.canonical()).transpose()
    }

    fn canonical(&self) -> Result<Theta, LearnError> {
        if self.is_empty() {
            return Ok(self.rows.zeros());
        }
        let mut weights = self.weights();
        let mut fits = Vec::new();
        for (fit, _) in self.fits.iter().zip(&weights).filter(|(_, w)| **w > 0.0) {
            fits.push(Fit::canonical(&self.rows, fit.prior, &self.config)?);
        }
        weights.retain(|w| *w > 0.0);
        Ok(mixed(&fits, &weights, &self.rows))
    }

    /// Number of rows, those of the source left out.
    pub fn len(&self) -> usize {
        self.rows.pressed()
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a row and takes the warm iterations; returns the row's index.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`]; [`LearnError::NotPositiveDefinite`] when the feature is so
    /// large that the curvature loses all precision. The solver is unchanged then.
    pub fn push(&mut self, row: &Row) -> Result<usize, LearnError> {
        self.rows.push(row)?;
        self.absorb_last()?;
        Ok(self.len() - 1)
    }

    /// Takes up the last of the rows and the warm iterations; takes the row out again where that fails.
    fn absorb_last(&mut self) -> Result<(), LearnError> {
        let last = self.rows.n - 1;
        let kernel = self.rows.kernel(last);
        let foretold: Vec<_> = self.fits.iter().map(|fit| fit.foretell_last(&self.rows, &kernel)).collect();
        for f in 0..self.fits.len() {
            if let Err(error) = self.fits[f].absorb_last(&self.rows, &kernel, &self.config) {
                self.rows.pop();
                for fit in &mut self.fits[..f] {
                    fit.forget_last(last);
                }
                return Err(error);
            }
        }
        if self.rows.pressed() <= SCORED_ROWS {
            for (fit, logits) in self.fits.iter_mut().zip(foretold) {
                fit.record.tell(&logits, self.rows.likelihood(last));
            }
        }
        if self.rows.pressed() == SCORED_ROWS {
            let best = likeliest(&self.fits);
            self.fits.swap(0, best);
            self.fits.truncate(1);
        }
        self.iterate();
        Ok(())
    }

    /// Replaces what was said about row `index` (another presser, or a changed mind) and takes the warm iterations.
    /// Priors that the row has judged stay judged as they are: [`HeadSolver::refit`] then leaves it to
    /// [`HeadSolver::with_rows`].
    ///
    /// # Errors
    /// [`LearnError::Length`]; [`LearnError::OutOfRange`] for an unknown index or a likelihood that is not in [0, 1].
    pub fn replace(&mut self, index: usize, likelihood: &[f64], names_class: bool) -> Result<(), LearnError> {
        self.set(index, likelihood, names_class)?;
        self.iterate();
        Ok(())
    }

    /// [`HeadSolver::replace`] without the iterations, for callers who change many rows: the next call that iterates
    /// counts.
    ///
    /// # Errors
    /// Those of [`HeadSolver::replace`].
    pub fn set(&mut self, index: usize, likelihood: &[f64], names_class: bool) -> Result<(), LearnError> {
        if index >= self.len() {
            return Err(LearnError::OutOfRange { what: "the row", value: index as f64, range: "[0, rows)" });
        }
        self.rows.set_likelihood(self.rows.fixed + index, likelihood, names_class)?;
        self.judged &= index >= SCORED_ROWS || applicable(&self.rows, &self.config).len() == 1;
        Ok(())
    }

    /// The correction as it stands, `[C, d+1]`.
    pub fn theta(&self) -> Theta {
        mixed(&self.fits, &self.weights(), &self.rows)
    }

    /// How much each prior that is still in question counts, in the order of [`SolverConfig::priors`]; they sum to 1.
    pub fn weights(&self) -> Vec<f64> {
        weights(self.fits.iter().map(|f| f.record.score()))
    }

    /// `zᵀMz` of a standardised feature `[d+1]` under the likeliest prior: how unlike the pressed inputs it is;
    /// `|z|²/λ` before the first press.
    ///
    /// # Errors
    /// [`LearnError::Length`].
    pub fn novelty(&self, z: &[f32]) -> Result<f64, LearnError> {
        check_len("z", self.rows.features + 1, z.len())?;
        let likeliest = &self.fits[likeliest(&self.fits)];
        Ok(likeliest.novelty(&self.rows, z))
    }

    /// What was done to the features, when they are wider than the solver takes: code `projected`.
    pub fn note(&self) -> Option<Note> {
        self.rows.projected().map(|width| {
            Note::new("projected", format!("{} features", self.rows.features), format!("{width} features"))
        })
    }

    fn iterate(&mut self) {
        let (weights, n) = (self.weights(), self.rows.pressed());
        let most = weights.iter().copied().fold(0.0, f64::max);
        for (fit, weight) in self.fits.iter_mut().zip(weights) {
            let iterations = match weight {
                w if w == most => self.config.warm_iterations,
                w if w >= LIKELY => self.config.warm_iterations,
                // Out of the running, but not for good: kept within a few presses of where it would be.
                0.0 if !n.is_multiple_of(OUT_OF_THE_RUNNING) => 0,
                _ => 1,
            };
            fit.iterate(&self.rows, &self.config, iterations);
        }
    }
}

/// The correction of `base` that a set of rows asks for: `Θ = 0`, fresh Cholesky,
/// [`SolverConfig::canonical_iterations`] iterations under each prior that counts when the rows are told one by one.
///
/// A function of the rows in their order: bitwise equal when recomputed by the same build. Another order of the same
/// rows changes the rounding of f64 sums and, where there are several priors, how they are judged: the caller keeps to
/// one order. No rows give zeros.
///
/// # Errors
/// Those of [`HeadSolver::for_head`] and [`HeadSolver::push`].
pub fn canonical_refit(base: &HeadBase, rows: &[Row], config: &SolverConfig) -> Result<Theta, LearnError> {
    config.check()?;
    let all = Rows::of_rows(base, rows, config)?;
    let told = HeadSolver::told(&all, config.clone())?;
    HeadSolver { rows: all, ..told }.canonical()
}

/// The priors that apply to the head of `rows`: without directions those with κ > 0 would only repeat others.
fn applicable(rows: &Rows, config: &SolverConfig) -> Vec<Prior> {
    let plain = config.priors.iter().filter(|prior| prior.kappa == 0.0).copied();
    match plain.collect::<Vec<_>>() {
        plain if !plain.is_empty() && !rows.has_directions() => plain,
        _ => config.priors.clone(),
    }
}

/// Which fit has foretold the presses best; the first of several.
fn likeliest(fits: &[Fit]) -> usize {
    (0..fits.len()).fold(0, |best, f| if fits[f].record.score() > fits[best].record.score() { f } else { best })
}

/// `∝ exp(score)`, what is negligible set to 0; they sum to 1.
fn weights(scores: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let best = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = scores.map(|s| (s - best).exp()).collect();
    for _ in 0..2 {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w = if *w < NEGLIGIBLE * sum { 0.0 } else { *w / sum });
    }
    weights
}

/// Steele, Lea and Flood's SplitMix64: a bijective hash of its argument.
pub(crate) fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in [0, 1) that is a hash of its argument.
pub(crate) fn unit(x: u64) -> f64 {
    (splitmix64(x) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
