//! The MAP refit of a head: `min_Θ Σ ℓ(graph logits + Θz) + (λ/2)‖Θ‖²`, without a learning rate.
//!
//! Böhning's bound majorises the softmax Hessian by `½ Σ z zᵀ + λI`, so `Θ ← Θ − (Σ g zᵀ + λΘ) M` with its inverse `M` never
//! overshoots. Two forms of the same iteration:
//!
//! * **primal**, `M [d+1, d+1]` kept by rank-1 updates: per iteration `2nC(d+1) + C(d+1)²` multiply-adds;
//! * **dual** while presses are fewer than weights: `Θ = AᵀZ`, `A ← A − (½K + λI)⁻¹(g + λA)` with `K = ZZᵀ [n, n]` and a
//!   Cholesky factor that grows a row per press: `2n²C`.
//!
//! [`HeadSolver`] is the incremental one (a few warm iterations a press); [`canonical_refit`] is a function of the rows alone
//! and starts at zero, so it has to travel the whole way: with plain iterations 30 left `Θ` half its size away from the fixed
//! point and cost up to 12 points of accuracy. It therefore extrapolates, `Θ + β(Θ − Θ_previous)` with
//! `β_k = min(k/(k+3), 0.9)`: 60 such iterations end where some 300 plain ones do. No restart rule, so that no branch depends on
//! rounding.
//!
//! All arithmetic is f64 in a fixed order on one thread; `Θ` is rounded to f32 at the end.
//!
//! λ of a log that mixes presses: the mean over its rows of λ(partial) for thumbs, stars and preferences and λ(label) for rows
//! in which a class was named. The preconditioner keeps the λ it was factored with until the mean has moved by a quarter: the
//! minimum does not depend on it, and Böhning's factor has that much slack.
//!
//! Wider than [`SolverConfig::max_features`], features go through a fixed random sign projection; `Θ` is folded back to
//! `[C, d+1]`, so serving and merging do not know of it.
use serde::{Deserialize, Serialize};

use super::error::{LearnError, check_finite, check_len};
use super::head::Theta;
use super::linalg::{Cholesky, Packed, axpy, dot};
use super::objective::posterior::gradient_in_place;
use super::objective::{Hyper, softmax_into};
use crate::Note;

/// Settings of the refit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SolverConfig {
    /// Settings of the objective.
    pub hyper: Hyper,
    /// λ of a row on which only thumbs, stars or preferences were pressed.
    pub lambda_partial: f64,
    /// λ of a row for which somebody named the class.
    pub lambda_label: f64,
    /// Iterations after each press of the incremental solver.
    pub warm_iterations: usize,
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
    /// Rows that are held on to beside the presses: their `likelihood` is what the head shall go on believing, a fixed target.
    pub source: Vec<Row>,
}

impl Default for SolverConfig {
    fn default() -> SolverConfig {
        SolverConfig {
            hyper: Hyper::default(),
            lambda_partial: 0.03,
            lambda_label: 0.1,
            warm_iterations: 3,
            canonical_iterations: 60,
            canonical_momentum: 0.9,
            refresh_every: 256,
            max_features: 1024,
            projected_features: 512,
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
        if !(0.0..1.0).contains(&self.canonical_momentum) {
            let value = self.canonical_momentum;
            return Err(LearnError::OutOfRange { what: "canonical_momentum", value, range: "[0, 1)" });
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

/// One pressed prediction as the solver sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Standardised feature with its constant, `[d+1]`.
    pub z: Vec<f32>,
    /// The graph's logits, `[C]`.
    pub logits: Vec<f32>,
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
    state: State,
}

impl HeadSolver {
    /// A solver for `C = classes` and `d = features` with no rows.
    ///
    /// # Errors
    /// Those of [`SolverConfig::check`]; [`LearnError::Length`] when `classes < 2` or `features < 1`.
    pub fn new(classes: usize, features: usize, config: SolverConfig) -> Result<HeadSolver, LearnError> {
        config.check()?;
        let rows = Rows::new(classes, features, &config)?;
        let state = at_rest(&rows, &config)?;
        Ok(HeadSolver { config, rows, state })
    }

    /// A solver that holds `rows` and stands at their canonical refit.
    ///
    /// # Errors
    /// Those of [`HeadSolver::new`] and [`HeadSolver::push`].
    pub fn with_rows(
        classes: usize,
        features: usize,
        rows: &[Row],
        config: SolverConfig,
    ) -> Result<HeadSolver, LearnError> {
        let mut solver = HeadSolver::new(classes, features, config)?;
        for row in rows {
            solver.rows.push(row)?;
        }
        solver.state = at_rest(&solver.rows, &solver.config)?;
        Ok(solver)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.n - self.rows.fixed
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a row and takes the warm iterations; returns the row's index.
    ///
    /// # Errors
    /// [`LearnError::Length`], [`LearnError::NonFinite`]; [`LearnError::NotPositiveDefinite`] when the feature is so large
    /// that the curvature loses all precision. The solver is unchanged then.
    pub fn push(&mut self, row: &Row) -> Result<usize, LearnError> {
        let index = self.len();
        self.rows.push(row)?;
        if let Err(error) = self.absorb_last() {
            self.rows.pop();
            return Err(error);
        }
        self.iterate(self.config.warm_iterations);
        Ok(index)
    }

    /// Replaces what was said about row `index` (another presser, or a changed mind) and takes the warm iterations.
    ///
    /// # Errors
    /// [`LearnError::Length`]; [`LearnError::OutOfRange`] for an unknown index or a likelihood that is not in [0, 1].
    pub fn replace(&mut self, index: usize, likelihood: &[f64], names_class: bool) -> Result<(), LearnError> {
        if index >= self.len() {
            return Err(LearnError::OutOfRange { what: "the row", value: index as f64, range: "[0, rows)" });
        }
        self.rows.set_likelihood(self.rows.fixed + index, likelihood, names_class)?;
        self.iterate(self.config.warm_iterations);
        Ok(())
    }

    /// The correction as it stands, `[C, d+1]`.
    pub fn theta(&self) -> Theta {
        self.rows.unproject(&self.state.theta(&self.rows))
    }

    /// `zᵀMz` of a standardised feature `[d+1]`: how unlike the pressed inputs it is; `|z|²/λ` before the first press.
    ///
    /// # Errors
    /// [`LearnError::Length`].
    pub fn novelty(&self, z: &[f32]) -> Result<f64, LearnError> {
        check_len("z", self.rows.features + 1, z.len())?;
        let z = self.rows.project(z);
        Ok(match &self.state {
            State::Dual(dual) => {
                let mut k: Vec<f64> = (0..self.rows.n).map(|i| dot(self.rows.z(i), &z)).collect();
                dual.factor.solve_lower(&mut k);
                (dot(&z, &z) - 0.5 * dot(&k, &k)) / dual.lambda
            }
            State::Primal(primal) => {
                let mut mz = vec![0.0; z.len()];
                primal.inverse.times(&z, &mut mz);
                dot(&z, &mz)
            }
        })
    }

    /// What was done to the features, when they are wider than the solver takes: code `projected`.
    pub fn note(&self) -> Option<Note> {
        self.rows.projection.as_ref().map(|projection| {
            Note::new("projected", format!("{} features", self.rows.features), format!("{} features", projection.width))
        })
    }

    fn absorb_last(&mut self) -> Result<(), LearnError> {
        let (n, m) = (self.rows.n, self.rows.width);
        let lambda = self.rows.lambda(&self.config);
        let drifted = (self.state.lambda() - lambda).abs() > 0.25 * self.state.lambda();
        match &mut self.state {
            // The dual form is left at n = d+1, where both cost the same per press, and never taken up again.
            State::Dual(dual) if n <= m && !drifted => dual.push(&self.rows),
            State::Dual(dual) if n <= m => {
                let mut fresh = Dual::of(&self.rows, lambda)?;
                fresh.adopt(dual);
                self.state = State::Dual(fresh);
                Ok(())
            }
            State::Primal(primal) if !drifted && primal.updates < self.config.refresh_every => {
                primal.update(self.rows.z(n - 1));
                Ok(())
            }
            _ => {
                let theta = self.state.theta(&self.rows);
                self.state = State::Primal(Primal::of(&self.rows, lambda, theta)?);
                Ok(())
            }
        }
    }

    fn iterate(&mut self, iterations: usize) {
        let course = Course {
            lambda: self.rows.lambda(&self.config),
            delta: self.config.hyper.delta,
            iterations,
            momentum: 0.0,
        };
        match &mut self.state {
            State::Dual(dual) => dual.iterate(&self.rows, &course),
            State::Primal(primal) => {
                let inverse = &primal.inverse;
                let mut product = vec![0.0; self.rows.width];
                descend(&self.rows, &mut primal.theta, &course, |gradient| {
                    inverse.times(gradient, &mut product);
                    gradient.copy_from_slice(&product);
                });
            }
        }
    }
}

/// The correction that a set of rows asks for: `Θ = 0`, fresh Cholesky, [`SolverConfig::canonical_iterations`] iterations.
///
/// A function of the rows in their order: bitwise equal when recomputed by the same build; another order of the same rows
/// changes only the rounding of f64 sums. No rows give zeros.
///
/// # Errors
/// Those of [`HeadSolver::new`] and [`HeadSolver::push`].
pub fn canonical_refit(
    classes: usize,
    features: usize,
    rows: &[Row],
    config: &SolverConfig,
) -> Result<Theta, LearnError> {
    config.check()?;
    let mut all = Rows::new(classes, features, config)?;
    for row in rows {
        all.push(row)?;
    }
    if all.n == all.fixed {
        return Ok(Theta::zeros(classes, features + 1));
    }
    let theta = match canonical(&all, config)? {
        Canonical::Dual(dual) => State::Dual(dual).theta(&all),
        Canonical::Primal(theta, _) => theta,
    };
    Ok(all.unproject(&theta))
}

/// The state of the incremental solver at the canonical solution of its rows.
fn at_rest(rows: &Rows, config: &SolverConfig) -> Result<State, LearnError> {
    if rows.n == 0 {
        return Ok(State::Dual(Dual::new(rows.classes, config.lambda_partial)));
    }
    Ok(match canonical(rows, config)? {
        Canonical::Dual(dual) => State::Dual(dual),
        Canonical::Primal(theta, factor) => {
            State::Primal(Primal { inverse: factor.inverse(), theta, lambda: rows.lambda(config), updates: 0 })
        }
    })
}

/// The dual form's state or the primal form's `Θ [C, m]`, with the factor that led there.
enum Canonical {
    Dual(Dual),
    Primal(Vec<f64>, Cholesky),
}

fn canonical(rows: &Rows, config: &SolverConfig) -> Result<Canonical, LearnError> {
    let course = Course {
        lambda: rows.lambda(config),
        delta: config.hyper.delta,
        iterations: config.canonical_iterations,
        momentum: config.canonical_momentum,
    };
    if rows.n <= rows.width {
        let mut dual = Dual::of(rows, course.lambda)?;
        dual.iterate(rows, &course);
        return Ok(Canonical::Dual(dual));
    }
    let factor = Cholesky::of(&rows.curvature(course.lambda))?;
    let mut theta = vec![0.0; rows.classes * rows.width];
    descend(rows, &mut theta, &course, |g| factor.solve(g));
    Ok(Canonical::Primal(theta, factor))
}

/// How far to go, and with which settings.
struct Course {
    lambda: f64,
    delta: f64,
    iterations: usize,
    /// Largest β; 0 for plain iterations.
    momentum: f64,
}

impl Course {
    /// `point` has just become the iterate of step `k`; moves it ahead of itself and keeps the iterate in `previous`.
    fn extrapolate(&self, k: usize, point: &mut [f64], previous: &mut [f64]) {
        let beta = (k as f64 / (k + 3) as f64).min(self.momentum);
        for (point, previous) in point.iter_mut().zip(previous) {
            let iterate = *point;
            *point += beta * (iterate - *previous);
            *previous = iterate;
        }
    }
}

/// Takes `Θ ← Θ − (Σ g zᵀ + λΘ) M` along `course`; `precondition` multiplies one class's gradient `[m]` by `M` in place.
fn descend(rows: &Rows, theta: &mut [f64], course: &Course, mut precondition: impl FnMut(&mut [f64])) {
    let (classes, m) = (rows.classes, rows.width);
    let mut gradient = vec![0.0; classes * m];
    let mut previous = theta.to_vec();
    let (mut logits, mut g) = (vec![0.0; classes], vec![0.0; classes]);
    for k in 0..course.iterations {
        for (gradient, theta) in gradient.iter_mut().zip(theta.iter()) {
            *gradient = course.lambda * theta;
        }
        for i in 0..rows.n {
            let z = rows.z(i);
            for c in 0..classes {
                logits[c] = rows.logits(i)[c] + dot(&theta[c * m..(c + 1) * m], z);
            }
            softmax_into(&logits, &mut g);
            rows.gradient(i, &mut g, course.delta);
            for c in 0..classes {
                axpy(g[c], z, &mut gradient[c * m..(c + 1) * m]);
            }
        }
        for c in 0..classes {
            let step = &mut gradient[c * m..(c + 1) * m];
            precondition(step);
            axpy(-1.0, step, &mut theta[c * m..(c + 1) * m]);
        }
        course.extrapolate(k, theta, &mut previous);
    }
    theta.copy_from_slice(&previous);
}

/// The rows, flat.
#[derive(Clone, Debug)]
struct Rows {
    classes: usize,
    /// `d` as the caller has it.
    features: usize,
    /// Width the solver works in: `d + 1`, or the projection's width + 1.
    width: usize,
    projection: Option<Projection>,
    n: usize,
    /// The first rows, whose likelihood is a fixed target.
    fixed: usize,
    z: Vec<f64>,
    logits: Vec<f64>,
    likelihood: Vec<f64>,
    names_class: Vec<bool>,
}

impl Rows {
    fn new(classes: usize, features: usize, config: &SolverConfig) -> Result<Rows, LearnError> {
        for (what, least, found) in [("the classes of a head", 2, classes), ("the features of a head", 1, features)] {
            if found < least {
                return Err(LearnError::Length { what, expected: least, found });
            }
        }
        let projection = (features > config.max_features).then(|| Projection::new(features, config.projected_features));
        let width = projection.as_ref().map_or(features, |p| p.width) + 1;
        let mut rows = Rows {
            classes,
            features,
            width,
            projection,
            n: 0,
            fixed: 0,
            z: Vec::new(),
            logits: Vec::new(),
            likelihood: Vec::new(),
            names_class: Vec::new(),
        };
        for row in &config.source {
            rows.push(row)?;
        }
        rows.fixed = rows.n;
        Ok(rows)
    }

    fn push(&mut self, row: &Row) -> Result<(), LearnError> {
        check_len("z", self.features + 1, row.z.len())?;
        check_finite("z", &row.z)?;
        check_len("the graph's logits", self.classes, row.logits.len())?;
        check_finite("the graph's logits", &row.logits)?;
        check_likelihood(&row.likelihood, self.classes)?;
        let z = self.project(&row.z);
        self.z.extend_from_slice(&z);
        self.logits.extend(row.logits.iter().map(|&f| f64::from(f)));
        self.likelihood.extend_from_slice(&row.likelihood);
        self.names_class.push(row.names_class);
        self.n += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.n -= 1;
        self.z.truncate(self.n * self.width);
        self.logits.truncate(self.n * self.classes);
        self.likelihood.truncate(self.n * self.classes);
        self.names_class.truncate(self.n);
    }

    fn set_likelihood(&mut self, index: usize, likelihood: &[f64], names_class: bool) -> Result<(), LearnError> {
        check_likelihood(likelihood, self.classes)?;
        self.likelihood[index * self.classes..(index + 1) * self.classes].copy_from_slice(likelihood);
        self.names_class[index] = names_class;
        Ok(())
    }

    fn z(&self, i: usize) -> &[f64] {
        &self.z[i * self.width..(i + 1) * self.width]
    }

    fn logits(&self, i: usize) -> &[f64] {
        &self.logits[i * self.classes..(i + 1) * self.classes]
    }

    fn likelihood(&self, i: usize) -> &[f64] {
        &self.likelihood[i * self.classes..(i + 1) * self.classes]
    }

    /// Writes `g` over the probabilities `pi` of row `i`: `π − t` with its fixed target, or as the presses on it ask.
    fn gradient(&self, i: usize, pi: &mut [f64], delta: f64) {
        if i < self.fixed {
            pi.iter_mut().zip(self.likelihood(i)).for_each(|(p, t)| *p -= t);
        } else {
            gradient_in_place(pi, self.likelihood(i), delta);
        }
    }

    /// λ of this log; counted rather than summed so that the order of rows cannot change it.
    fn lambda(&self, config: &SolverConfig) -> f64 {
        let labels = self.names_class[self.fixed..].iter().filter(|n| **n).count();
        let presses = self.n - self.fixed;
        if presses == 0 {
            return config.lambda_partial;
        }
        (labels as f64 * config.lambda_label + (presses - labels) as f64 * config.lambda_partial) / presses as f64
    }

    /// `½ Σ z zᵀ + λI`.
    fn curvature(&self, lambda: f64) -> Packed {
        let mut curvature = Packed::scaled_identity(self.width, lambda);
        for i in 0..self.n {
            curvature.add_outer(0.5, self.z(i));
        }
        curvature
    }

    fn project(&self, z: &[f32]) -> Vec<f64> {
        match &self.projection {
            None => z.iter().map(|&v| f64::from(v)).collect(),
            Some(projection) => projection.apply(z),
        }
    }

    fn unproject(&self, theta: &[f64]) -> Theta {
        let mut full = vec![0.0_f32; self.classes * (self.features + 1)];
        for c in 0..self.classes {
            let row = &theta[c * self.width..(c + 1) * self.width];
            let out = &mut full[c * (self.features + 1)..(c + 1) * (self.features + 1)];
            match &self.projection {
                None => out.iter_mut().zip(row).for_each(|(o, &v)| *o = v as f32),
                Some(projection) => projection.transpose(row, out),
            }
        }
        Theta::from_parts(self.classes, self.features + 1, full)
    }
}

fn check_likelihood(likelihood: &[f64], classes: usize) -> Result<(), LearnError> {
    check_len("the likelihood", classes, likelihood.len())?;
    match likelihood.iter().find(|l| !(0.0..=1.0).contains(*l)) {
        None => Ok(()),
        Some(&value) => Err(LearnError::OutOfRange { what: "a likelihood", value, range: "[0, 1]" }),
    }
}

#[derive(Clone, Debug)]
enum State {
    Dual(Dual),
    Primal(Primal),
}

impl State {
    fn lambda(&self) -> f64 {
        match self {
            State::Dual(dual) => dual.lambda,
            State::Primal(primal) => primal.lambda,
        }
    }

    /// `Θ [C, m]` in the solver's width.
    fn theta(&self, rows: &Rows) -> Vec<f64> {
        match self {
            State::Primal(primal) => primal.theta.clone(),
            State::Dual(dual) => {
                let mut theta = vec![0.0; rows.classes * rows.width];
                for (c, coefficients) in dual.coefficients.iter().enumerate() {
                    for (i, &a) in coefficients.iter().enumerate() {
                        axpy(a, rows.z(i), &mut theta[c * rows.width..(c + 1) * rows.width]);
                    }
                }
                theta
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Primal {
    /// `M = (½ Σ z zᵀ + λI)⁻¹`.
    inverse: Packed,
    theta: Vec<f64>,
    lambda: f64,
    updates: usize,
}

impl Primal {
    fn of(rows: &Rows, lambda: f64, theta: Vec<f64>) -> Result<Primal, LearnError> {
        let inverse = Cholesky::of(&rows.curvature(lambda))?.inverse();
        Ok(Primal { inverse, theta, lambda, updates: 0 })
    }

    /// `M −= ½ M z zᵀ M / (1 + ½ zᵀ M z)`.
    fn update(&mut self, z: &[f64]) {
        let mut mz = vec![0.0; z.len()];
        self.inverse.times(z, &mut mz);
        let scale = -0.5 / (1.0 + 0.5 * dot(z, &mz));
        self.inverse.add_outer(scale, &mz);
        self.updates += 1;
    }
}

#[derive(Clone, Debug)]
struct Dual {
    /// `K = Z Zᵀ`.
    gram: Packed,
    /// Of `½K + λI`.
    factor: Cholesky,
    /// `A`, per class `[n]`.
    coefficients: Vec<Vec<f64>>,
    lambda: f64,
}

impl Dual {
    fn new(classes: usize, lambda: f64) -> Dual {
        let (gram, factor) = Default::default();
        Dual { gram, factor, coefficients: vec![Vec::new(); classes], lambda }
    }

    fn of(rows: &Rows, lambda: f64) -> Result<Dual, LearnError> {
        let mut dual = Dual::new(rows.classes, lambda);
        for _ in 0..rows.n {
            dual.push(rows)?;
        }
        Ok(dual)
    }

    /// Takes up the next row of `rows` this form does not hold yet, with a coefficient of zero.
    fn push(&mut self, rows: &Rows) -> Result<(), LearnError> {
        let n = self.gram.order();
        let k: Vec<f64> = (0..=n).map(|i| dot(rows.z(i), rows.z(n))).collect();
        let mut curvature: Vec<f64> = k.iter().map(|k| 0.5 * k).collect();
        curvature[n] += self.lambda;
        self.factor.push_row(&curvature)?;
        self.gram.push_row(&k);
        for coefficients in &mut self.coefficients {
            coefficients.push(0.0);
        }
        Ok(())
    }

    /// Continues from the coefficients of a state with fewer rows.
    fn adopt(&mut self, older: &Dual) {
        for (new, old) in self.coefficients.iter_mut().zip(&older.coefficients) {
            new[..old.len()].copy_from_slice(old);
        }
    }

    fn iterate(&mut self, rows: &Rows, course: &Course) {
        let (n, classes) = (self.gram.order(), rows.classes);
        let mut change: Vec<Vec<f64>> = vec![vec![0.0; n]; classes];
        let mut previous = self.coefficients.clone();
        let (mut logits, mut g) = (vec![0.0; classes], vec![0.0; classes]);
        for k in 0..course.iterations {
            for c in 0..classes {
                self.gram.times(&self.coefficients[c], &mut change[c]);
            }
            for i in 0..n {
                for c in 0..classes {
                    logits[c] = rows.logits(i)[c] + change[c][i];
                }
                softmax_into(&logits, &mut g);
                rows.gradient(i, &mut g, course.delta);
                for c in 0..classes {
                    change[c][i] = g[c] + course.lambda * self.coefficients[c][i];
                }
            }
            for c in 0..classes {
                self.factor.solve(&mut change[c]);
                axpy(-1.0, &change[c], &mut self.coefficients[c]);
                course.extrapolate(k, &mut self.coefficients[c], &mut previous[c]);
            }
        }
        self.coefficients = previous;
    }
}

/// A fixed random sign projection `P [width, d]`, `±1/√width`, which keeps inner products in expectation.
#[derive(Clone, Debug)]
struct Projection {
    width: usize,
    features: usize,
    /// `P`, four bytes a weight: 4 MiB at d = 2048 buys a tenfold over unpacking bits on every press.
    rows: Vec<f32>,
}

impl Projection {
    /// The same signs for the same sizes on every machine, for ever: adapters depend on them.
    const SEED: u64 = 0x686f_6e65_2d68_6561;

    fn new(features: usize, width: usize) -> Projection {
        let scale = 1.0 / (width as f32).sqrt();
        let words = features.div_ceil(64);
        let rows = (0..width)
            .flat_map(|i| (0..features).map(move |j| (i * words + j / 64, j % 64)))
            .map(|(word, bit)| {
                let signs = splitmix64(Self::SEED.wrapping_add(word as u64));
                if signs >> bit & 1 == 1 { scale } else { -scale }
            })
            .collect();
        Projection { width, features, rows }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.rows[i * self.features..(i + 1) * self.features]
    }

    /// `(P z, 1)` of `z [d+1]`.
    fn apply(&self, z: &[f32]) -> Vec<f64> {
        let (wide, constant) = z.split_at(self.features);
        let wide: Vec<f64> = wide.iter().map(|&v| f64::from(v)).collect();
        let mut weights = vec![0.0; self.features];
        let mut out = Vec::with_capacity(self.width + 1);
        for i in 0..self.width {
            weights.iter_mut().zip(self.row(i)).for_each(|(w, &p)| *w = f64::from(p));
            out.push(dot(&weights, &wide));
        }
        out.extend(constant.iter().map(|&v| f64::from(v)));
        out
    }

    /// `(Pᵀ row, bias)` of one class's `[width+1]`.
    fn transpose(&self, row: &[f64], out: &mut [f32]) {
        let mut wide = vec![0.0_f64; self.features];
        for i in 0..self.width {
            wide.iter_mut().zip(self.row(i)).for_each(|(w, &p)| *w += row[i] * f64::from(p));
        }
        out.iter_mut().zip(&wide).for_each(|(o, &w)| *o = w as f32);
        out[self.features] = row[self.width] as f32;
    }
}

/// Steele, Lea and Flood's SplitMix64: a bijective hash of its argument.
pub(crate) fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
#[path = "solver_tests.rs"]
mod tests;
