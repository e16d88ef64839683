//! The two forms of the same iteration under one prior; see [`super`] for when each is taken.
use hone_kernels::refit;

use super::super::error::LearnError;
use super::super::head::Theta;
use super::super::linalg::{Cholesky, Packed, axpy, dot};
use super::super::objective::softmax_into;
use super::rows::{Kernel, Phi, Rows};
use super::{Prior, SCORED_ROWS, SolverConfig};

/// The iteration under one prior: its state and how well it has foretold the presses.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    pub(super) prior: Prior,
    pub(super) state: State,
    /// `log share + Σ log P(press | the presses before it)`, over the first [`SCORED_ROWS`] presses.
    pub(super) score: f64,
}

#[derive(Clone, Debug)]
pub(super) enum State {
    Dual(Dual),
    Primal(Primal),
}

/// How far to go, and with which settings.
pub(super) struct Course {
    pub(super) lambda: f64,
    pub(super) delta: f64,
    pub(super) iterations: usize,
    /// Largest β; 0 for plain iterations.
    pub(super) momentum: f64,
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

impl Fit {
    /// The canonical refit of `rows`: from zero, fresh Cholesky, the configured iterations. A primal form has no preconditioner
    /// to go on with; see [`Fit::ready_to_go_on`].
    pub(super) fn canonical(rows: &Rows, prior: Prior, config: &SolverConfig) -> Result<Fit, LearnError> {
        let course = Course {
            lambda: rows.lambda(config) * prior.lambda_factor,
            delta: config.delta(rows.pressed()),
            iterations: config.canonical_iterations,
            momentum: config.canonical_momentum,
        };
        let state = if rows.n <= dual_limit(rows) {
            let mut dual = Dual::of(rows, course.lambda, prior.kappa)?;
            dual.iterate(rows, &course);
            State::Dual(dual)
        } else {
            let factor = Cholesky::of(&curvature(rows, course.lambda, prior.kappa))?;
            let mut theta = vec![0.0; rows.classes * phi_width(rows, prior.kappa)];
            descend(rows, prior.kappa, &mut theta, &course, |g| factor.solve(g));
            State::Primal(Primal { inverse: Packed::default(), theta, lambda: course.lambda, updates: 0 })
        };
        Ok(Fit { prior, state, score: 0.0 })
    }

    /// With the preconditioner that further rows need.
    pub(super) fn ready_to_go_on(mut self, rows: &Rows) -> Result<Fit, LearnError> {
        if let State::Primal(primal) = self.state {
            let Primal { theta, lambda, .. } = primal;
            self.state = State::Primal(Primal::of(rows, lambda, self.prior.kappa, Some(theta))?);
        }
        Ok(self)
    }

    /// Takes up the last row of `rows`; `kernel` holds its products with every row (see [`Rows::kernel`]).
    ///
    /// The score grows by how well the row's likelihood was foretold, at a belief no surer than `1 − SURE` allows.
    pub(super) fn absorb_last(
        &mut self,
        rows: &Rows,
        kernel: &Kernel,
        config: &SolverConfig,
    ) -> Result<(), LearnError> {
        let n = rows.n;
        let lambda = rows.lambda(config) * self.prior.lambda_factor;
        let kappa = self.prior.kappa;
        let held = self.state.lambda();
        let drifted = (held - lambda).abs() > 0.25 * held;
        let foretold = self.foretell(rows, n - 1, Some(kernel));
        match &mut self.state {
            State::Dual(dual) if n <= dual_limit(rows) && !drifted => {
                dual.push(&kernel.at(kappa, n))?;
            }
            State::Dual(dual) if n <= dual_limit(rows) => {
                let mut fresh = Dual::of(rows, lambda, kappa)?;
                fresh.adopt(rows, kappa, dual);
                self.state = State::Dual(fresh);
            }
            State::Primal(primal) if !drifted && primal.updates < config.refresh_every => {
                primal.update(&rows.phi(n - 1, kappa));
            }
            _ => {
                let theta = self.state.theta(rows, kappa);
                self.state = State::Primal(Primal::of(rows, lambda, kappa, Some(theta))?);
            }
        }
        if rows.pressed() <= SCORED_ROWS {
            self.score += foretold;
        }
        Ok(())
    }

    /// Takes back [`Fit::absorb_last`] of the row after the first `n`, before any iteration. A primal form keeps the row in its
    /// preconditioner, which does not move the minimum.
    pub(super) fn forget_last(&mut self, n: usize) {
        if let State::Dual(dual) = &mut self.state {
            dual.truncate(n);
        }
    }

    /// `log Σ_y π̃_y L_y` of row `i`, which this fit need not hold, with π as it stands. A dual form needs the row's products with
    /// the rows it holds.
    fn foretell(&self, rows: &Rows, i: usize, kernel: Option<&Kernel>) -> f64 {
        let classes = rows.classes;
        let change: Vec<f64> = match &self.state {
            State::Primal(primal) => {
                let phi = rows.phi(i, self.prior.kappa);
                let m = primal.theta.len() / classes;
                (0..classes).map(|c| phi.dot(&primal.theta[c * m..(c + 1) * m])).collect()
            }
            State::Dual(dual) => {
                let k = kernel.map_or_else(Vec::new, |kernel| kernel.at(self.prior.kappa, dual.len()));
                (0..classes).map(|c| dot(&k, &dual.coefficients[c])).collect()
            }
        };
        let logits = rows.changed(i, &change);
        let mut pi = vec![0.0; logits.len()];
        softmax_into(&logits, &mut pi);
        let believed = |p: f64| (1.0 - SURE) * p + SURE / logits.len() as f64;
        let mass: f64 = pi.iter().zip(rows.likelihood(i)).map(|(&p, &l)| believed(p) * l).sum();
        mass.max(f64::MIN_POSITIVE).ln()
    }

    pub(super) fn iterate(&mut self, rows: &Rows, config: &SolverConfig, iterations: usize) {
        let course = Course {
            lambda: rows.lambda(config) * self.prior.lambda_factor,
            delta: config.delta(rows.pressed()),
            iterations,
            momentum: 0.0,
        };
        match &mut self.state {
            State::Dual(dual) => dual.iterate(rows, &course),
            State::Primal(primal) => {
                let inverse = &primal.inverse;
                descend(rows, self.prior.kappa, &mut primal.theta, &course, |gradient| inverse.times(gradient));
            }
        }
    }

    /// The correction it stands for.
    #[cfg(test)]
    pub(super) fn theta(&self, rows: &Rows) -> Theta {
        mixed(std::slice::from_ref(self), &[1.0], rows)
    }

    /// `φᵀMφ` under this prior.
    pub(super) fn novelty(&self, rows: &Rows, z: &[f64], b: &[f64]) -> f64 {
        let kappa = self.prior.kappa;
        let phi = Phi { z, b, scale: kappa.sqrt() };
        match &self.state {
            State::Dual(dual) => {
                let mut k: Vec<f64> = (0..dual.len())
                    .map(|i| {
                        let row = rows.phi(i, kappa);
                        dot(row.z, z) + kappa * dot(row.b, b)
                    })
                    .collect();
                dual.factor.solve_lower(&mut k);
                (dot(z, z) + kappa * dot(b, b) - 0.5 * dot(&k, &k)) / dual.lambda
            }
            State::Primal(primal) => {
                let mut full = vec![0.0; primal.inverse.order()];
                phi.axpy(1.0, &mut full);
                let mut product = full.clone();
                primal.inverse.times(&mut product);
                dot(&full, &product)
            }
        }
    }
}

/// Share of the uniform distribution in the belief by which priors are judged: one press that was wrong, or that the best of
/// them did not foresee, must not settle the matter.
const SURE: f64 = 0.2;

/// `Σ w_h Θ_h` as a correction of the head.
pub(super) fn mixed(fits: &[Fit], weights: &[f64], rows: &Rows) -> Theta {
    let (classes, m) = (rows.classes, rows.width);
    let mut theta = vec![0.0; classes * m];
    let mut along = if rows.has_directions() { vec![0.0; classes * classes] } else { Vec::new() };
    // The dual forms of all priors multiply the same rows: their coefficients are added first, `[n, C]`.
    let (mut own, mut with_head) = (Vec::new(), Vec::new());
    for (fit, &weight) in fits.iter().zip(weights).filter(|(_, w)| **w > 0.0) {
        let scale = fit.prior.kappa.sqrt();
        match &fit.state {
            State::Primal(primal) => {
                let width = primal.theta.len() / classes;
                for c in 0..classes {
                    let row = &primal.theta[c * width..(c + 1) * width];
                    axpy(weight, &row[..m], &mut theta[c * m..(c + 1) * m]);
                    if width > m {
                        axpy(weight * scale, &row[m..], &mut along[c * classes..(c + 1) * classes]);
                    }
                }
            }
            State::Dual(state) => {
                let coefficients = state.by_row();
                own.resize(coefficients.len(), 0.0);
                with_head.resize(coefficients.len(), 0.0);
                axpy(weight, &coefficients, &mut own);
                axpy(weight * fit.prior.kappa, &coefficients, &mut with_head);
            }
        }
    }
    axpy(1.0, &rows.gather(&own).0, &mut theta);
    axpy(1.0, &rows.gather(&with_head).1, &mut along);
    rows.unproject(&theta, &along)
}

/// Up to so many rows the dual form costs less: `n²` against `2n(d+1) + (d+1)²` multiply-adds an iteration and class. It needs a
/// factor of order n, so it is left at twice the width rather than at the 2.4 where the costs meet.
fn dual_limit(rows: &Rows) -> usize {
    2 * rows.width
}

impl State {
    pub(super) fn lambda(&self) -> f64 {
        match self {
            State::Dual(dual) => dual.lambda,
            State::Primal(primal) => primal.lambda,
        }
    }

    /// Weights over φ, `[C, width of φ]`.
    fn theta(&self, rows: &Rows, kappa: f64) -> Vec<f64> {
        match self {
            State::Primal(primal) => primal.theta.clone(),
            State::Dual(dual) => dual.theta(rows, kappa),
        }
    }
}

fn phi_width(rows: &Rows, kappa: f64) -> usize {
    rows.width + if kappa > 0.0 && rows.has_directions() { rows.classes } else { 0 }
}

/// `½ Σ φ φᵀ + λI`.
pub(super) fn curvature(rows: &Rows, lambda: f64, kappa: f64) -> Packed {
    let mut curvature = Packed::scaled_identity(phi_width(rows, kappa), lambda);
    curvature.add_outer(0.5, &rows.dense(kappa));
    curvature
}

/// Rows that are multiplied with the classes and back while they lie in the cache.
const BLOCK: usize = 32;

/// Takes `Θ ← Θ − (Σ g φᵀ + λΘ) M` along `course`; `precondition` multiplies the gradient of every class, `[C, width]`, by `M`.
pub(super) fn descend(
    rows: &Rows,
    kappa: f64,
    theta: &mut [f64],
    course: &Course,
    mut precondition: impl FnMut(&mut [f64]),
) {
    let classes = rows.classes;
    let m = theta.len() / classes;
    let phi = rows.dense(kappa);
    let mut gradient = vec![0.0; classes * m];
    let mut previous = theta.to_vec();
    let (mut logits, mut g) = (Vec::new(), Vec::new());
    for k in 0..course.iterations {
        for (gradient, theta) in gradient.iter_mut().zip(theta.iter()) {
            *gradient = course.lambda * theta;
        }
        for first in (0..rows.n).step_by(BLOCK) {
            let until = rows.n.min(first + BLOCK);
            let phi = &phi[first * m..until * m];
            logits.clear();
            match &rows.link {
                None => (first..until).for_each(|i| logits.extend_from_slice(rows.logits(i))),
                Some(_) => logits.resize((until - first) * classes, 0.0),
            }
            refit::products(m, phi, theta, &mut logits);
            g.resize(logits.len(), 0.0);
            for ((i, f), g) in (first..until).zip(logits.chunks_exact(classes)).zip(g.chunks_exact_mut(classes)) {
                match &rows.link {
                    None => {
                        softmax_into(f, g);
                        rows.gradient(i, g, course.delta);
                    }
                    Some(link) => rows.linked_gradient(link, i, f, course.delta, g),
                }
            }
            refit::gather(m, phi, &g, &mut gradient);
        }
        precondition(&mut gradient);
        axpy(-1.0, &gradient, theta);
        course.extrapolate(k, theta, &mut previous);
    }
    theta.copy_from_slice(&previous);
}

#[derive(Clone, Debug)]
pub(super) struct Primal {
    /// `M = (½ Σ φ φᵀ + λI)⁻¹`.
    pub(super) inverse: Packed,
    pub(super) theta: Vec<f64>,
    pub(super) lambda: f64,
    pub(super) updates: usize,
}

impl Primal {
    pub(super) fn of(rows: &Rows, lambda: f64, kappa: f64, theta: Option<Vec<f64>>) -> Result<Primal, LearnError> {
        let inverse = Cholesky::of(&curvature(rows, lambda, kappa))?.inverse();
        let theta = theta.unwrap_or_else(|| vec![0.0; rows.classes * inverse.order()]);
        Ok(Primal { inverse, theta, lambda, updates: 0 })
    }

    /// `M −= ½ M φ φᵀ M / (1 + ½ φᵀ M φ)`.
    pub(super) fn update(&mut self, phi: &Phi<'_>) {
        let mut full = vec![0.0; self.inverse.order()];
        phi.axpy(1.0, &mut full);
        let mut product = full.clone();
        self.inverse.times(&mut product);
        let scale = -0.5 / (1.0 + 0.5 * dot(&full, &product));
        self.inverse.add_outer(scale, &product);
        self.updates += 1;
    }
}

#[derive(Clone, Debug)]
pub(super) struct Dual {
    /// Of `S = ½K + λI`, `K = ΦΦᵀ`.
    pub(super) factor: Cholesky,
    /// `A`, per class `[n]`.
    pub(super) coefficients: Vec<Vec<f64>>,
    /// `KA`, per class `[n]`: what the correction adds to the logits of the rows. Kept along, because
    /// `K S⁻¹ r = 2(r − λ S⁻¹ r)` makes it free.
    change: Vec<Vec<f64>>,
    pub(super) lambda: f64,
}

impl Dual {
    pub(super) fn new(classes: usize, lambda: f64) -> Dual {
        let empty = vec![Vec::new(); classes];
        Dual { factor: Cholesky::default(), coefficients: empty.clone(), change: empty, lambda }
    }

    pub(super) fn of(rows: &Rows, lambda: f64, kappa: f64) -> Result<Dual, LearnError> {
        let mut dual = Dual::new(rows.classes, lambda);
        for n in 0..rows.n {
            dual.push(&rows.kernel(n).at(kappa, n + 1))?;
        }
        Ok(dual)
    }

    /// Number of rows it holds.
    pub(super) fn len(&self) -> usize {
        self.coefficients[0].len()
    }

    /// Takes up a row by its products with the rows held and itself (`n + 1` values), with a coefficient of zero.
    fn push(&mut self, k: &[f64]) -> Result<(), LearnError> {
        let n = self.len();
        let mut curvature: Vec<f64> = k.iter().map(|k| 0.5 * k).collect();
        curvature[n] += self.lambda;
        self.factor.push_row(&curvature)?;
        for (coefficients, change) in self.coefficients.iter_mut().zip(&mut self.change) {
            change.push(dot(coefficients, &k[..n]));
            coefficients.push(0.0);
        }
        Ok(())
    }

    fn truncate(&mut self, n: usize) {
        self.factor.truncate(n);
        for values in self.coefficients.iter_mut().chain(&mut self.change) {
            values.truncate(n);
        }
    }

    /// Continues from the coefficients of a state with fewer rows.
    pub(super) fn adopt(&mut self, rows: &Rows, kappa: f64, older: &Dual) {
        for (new, old) in self.coefficients.iter_mut().zip(&older.coefficients) {
            new[..old.len()].copy_from_slice(old);
        }
        let (theta, phi) = (self.theta(rows, kappa), rows.dense(kappa));
        let mut change = vec![0.0; self.len() * rows.classes];
        refit::products(
            theta.len() / rows.classes,
            &phi[..self.len() * theta.len() / rows.classes],
            &theta,
            &mut change,
        );
        for (i, change) in change.chunks_exact(rows.classes).enumerate() {
            change.iter().enumerate().for_each(|(c, &v)| self.change[c][i] = v);
        }
    }

    /// `A`, `[n, C]`.
    fn by_row(&self) -> Vec<f64> {
        (0..self.len()).flat_map(|i| self.coefficients.iter().map(move |of| of[i])).collect()
    }

    /// Weights over φ, `[C, width of φ]`.
    fn theta(&self, rows: &Rows, kappa: f64) -> Vec<f64> {
        let (m, phi) = (phi_width(rows, kappa), rows.dense(kappa));
        let mut theta = vec![0.0; rows.classes * m];
        refit::gather(m, &phi[..self.len() * m], &self.by_row(), &mut theta);
        theta
    }

    pub(super) fn iterate(&mut self, rows: &Rows, course: &Course) {
        let (n, classes) = (self.len(), rows.classes);
        if n == 0 {
            return;
        }
        let mut step = vec![0.0; classes * n];
        // Without momentum nothing moves ahead of itself, so nothing has to be remembered.
        let mut previous = (course.momentum > 0.0).then(|| (self.coefficients.clone(), self.change.clone()));
        let (mut logits, mut g) = (vec![0.0; classes], vec![0.0; classes]);
        for k in 0..course.iterations {
            for i in 0..n {
                if let Some(link) = &rows.link {
                    (0..classes).for_each(|c| logits[c] = self.change[c][i]);
                    rows.linked_gradient(link, i, &logits, course.delta, &mut g);
                } else {
                    for c in 0..classes {
                        logits[c] = rows.logits(i)[c] + self.change[c][i];
                    }
                    softmax_into(&logits, &mut g);
                    rows.gradient(i, &mut g, course.delta);
                }
                for c in 0..classes {
                    step[c * n + i] = g[c] + course.lambda * self.coefficients[c][i];
                }
            }
            let right = step.clone();
            self.factor.solve(&mut step);
            for c in 0..classes {
                let (step, right) = (&step[c * n..(c + 1) * n], &right[c * n..(c + 1) * n]);
                axpy(-1.0, step, &mut self.coefficients[c]);
                for i in 0..n {
                    self.change[c][i] -= 2.0 * (right[i] - self.lambda * step[i]);
                }
                if let Some((coefficients, change)) = &mut previous {
                    course.extrapolate(k, &mut self.coefficients[c], &mut coefficients[c]);
                    course.extrapolate(k, &mut self.change[c], &mut change[c]);
                }
            }
        }
        if let Some((coefficients, change)) = previous {
            (self.coefficients, self.change) = (coefficients, change);
        }
    }
}
