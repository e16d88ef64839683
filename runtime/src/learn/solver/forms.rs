//! The two forms of the same iteration under one prior; see [`super`] for when each is taken.
use hone_kernels::refit;

use super::super::error::LearnError;
use super::super::head::Theta;
use super::super::linalg::{Cholesky, Packed, axpy, dot};
use super::super::objective::softmax_into;
use super::record::Record;
use super::rows::{Kernel, Rows};
use super::{Prior, SolverConfig};

/// The iteration under one prior: its state and how well it has foretold the presses.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    pub(super) prior: Prior,
    pub(super) state: State,
    /// Of the first [`SCORED_ROWS`](super::SCORED_ROWS) presses.
    pub(super) record: Record,
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
    /// Whether β grows from 0, as it has to where nothing moves yet.
    pub(super) from_rest: bool,
}

impl Course {
    /// β before step `k`.
    fn beta(&self, k: usize) -> f64 {
        if self.from_rest { (k.saturating_sub(1) as f64 / (k + 2) as f64).min(self.momentum) } else { self.momentum }
    }
}

/// What an iteration moves, and the step it took last: the next one starts ahead of it, at `at + β·step`.
#[derive(Clone, Debug, Default)]
pub(super) struct Moving {
    pub(super) at: Vec<f64>,
    step: Vec<f64>,
}

impl Moving {
    pub(super) fn resting(at: Vec<f64>) -> Moving {
        Moving { step: vec![0.0; at.len()], at }
    }

    /// Moves `at` ahead of itself; the iterate it was is left in `step` until [`Moving::arrive`].
    fn lead(&mut self, beta: f64) {
        for (at, step) in self.at.iter_mut().zip(&mut self.step) {
            let iterate = *at;
            *at += beta * *step;
            *step = iterate;
        }
    }

    /// `at` is the next iterate.
    fn arrive(&mut self) {
        for (at, step) in self.at.iter().zip(&mut self.step) {
            *step = at - *step;
        }
    }

    fn push(&mut self, at: f64, step: f64) {
        self.at.push(at);
        self.step.push(step);
    }

    fn truncate(&mut self, n: usize) {
        self.at.truncate(n);
        self.step.truncate(n);
    }

    fn rest(&mut self) {
        self.step.fill(0.0);
    }
}

impl Fit {
    /// The canonical refit of `rows`: from zero, fresh Cholesky, the configured iterations. A primal form has no
    /// preconditioner to go on with; see [`Fit::ready_to_go_on`].
    pub(super) fn canonical(rows: &Rows, prior: Prior, config: &SolverConfig) -> Result<Fit, LearnError> {
        let course = Course {
            lambda: rows.lambda(config) * prior.lambda_factor,
            delta: config.delta(rows.pressed()),
            iterations: config.canonical_iterations,
            momentum: config.canonical_momentum,
            from_rest: true,
        };
        let state = if rows.n <= dual_limit(rows) {
            let mut dual = Dual::of(rows, course.lambda, prior.kappa)?;
            dual.iterate(rows, &course);
            State::Dual(dual)
        } else {
            let factor = Cholesky::of(&curvature(rows, course.lambda, prior.kappa))?;
            let mut theta = Moving::resting(vec![0.0; rows.classes * rows.phi_width(prior.kappa)]);
            descend(rows, prior.kappa, &mut theta, &course, |g| factor.solve(g));
            State::Primal(Primal { inverse: Packed::default(), theta, lambda: course.lambda, updates: 0 })
        };
        Ok(Fit { prior, state, record: Record::of(&prior) })
    }

    /// With the preconditioner that further rows need, and at rest.
    pub(super) fn ready_to_go_on(mut self, rows: &Rows) -> Result<Fit, LearnError> {
        match &mut self.state {
            State::Dual(dual) => dual.coefficients.iter_mut().chain(&mut dual.change).for_each(Moving::rest),
            State::Primal(primal) => {
                let theta = Moving::resting(std::mem::take(&mut primal.theta.at));
                *primal = Primal::of(rows, primal.lambda, self.prior.kappa, Some(theta))?;
            }
        }
        Ok(self)
    }

    /// Takes up the last row of `rows`; `kernel` holds its products with every row (see [`Rows::kernel`]).
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
        Ok(())
    }

    /// Takes back [`Fit::absorb_last`] of the row after the first `n`, before any iteration. A primal form keeps the
    /// row in its preconditioner, which does not move the minimum.
    pub(super) fn forget_last(&mut self, n: usize) {
        if let State::Dual(dual) = &mut self.state {
            dual.truncate(n);
        }
    }

    /// The logits of the last of `rows`, which this fit does not hold yet; `kernel` as in [`Fit::absorb_last`].
    pub(super) fn foretell_last(&self, rows: &Rows, kernel: &Kernel) -> Vec<f64> {
        let last = rows.n - 1;
        let change: Vec<f64> = match &self.state {
            State::Primal(primal) => {
                let phi = rows.phi(last, self.prior.kappa);
                primal.theta.at.chunks_exact(phi.len()).map(|theta| dot(&phi, theta)).collect()
            }
            State::Dual(dual) => {
                let k = kernel.at(self.prior.kappa, dual.len());
                dual.coefficients.iter().map(|of| dot(&k, &of.at)).collect()
            }
        };
        rows.changed(last, &change)
    }

    pub(super) fn iterate(&mut self, rows: &Rows, config: &SolverConfig, iterations: usize) {
        let course = Course {
            lambda: rows.lambda(config) * self.prior.lambda_factor,
            delta: config.delta(rows.pressed()),
            iterations,
            momentum: config.warm_momentum,
            from_rest: false,
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

    /// `φᵀMφ` of `z [d+1]` under this prior.
    pub(super) fn novelty(&self, rows: &Rows, z: &[f32]) -> f64 {
        let phi = rows.phi_of(z, self.prior.kappa);
        match &self.state {
            State::Dual(dual) => {
                let mut k = vec![0.0; dual.len()];
                rows.blocks(k.len(), self.prior.kappa, |at, block| {
                    refit::products(phi.len(), block, &phi, &mut k[at]);
                });
                dual.factor.solve_lower(&mut k);
                (dot(&phi, &phi) - 0.5 * dot(&k, &k)) / dual.lambda
            }
            State::Primal(primal) => {
                let mut product = phi.clone();
                primal.inverse.times(&mut product);
                dot(&phi, &product)
            }
        }
    }
}

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
                let width = primal.theta.at.len() / classes;
                for (c, row) in primal.theta.at.chunks_exact(width).enumerate() {
                    axpy(weight, &row[..m], &mut theta[c * m..(c + 1) * m]);
                    if width > m {
                        axpy(weight * scale, &row[m..], &mut along[c * classes..(c + 1) * classes]);
                    }
                }
            }
            State::Dual(state) => {
                let coefficients = state.by_row(|of| &of.at);
                own.resize(coefficients.len(), 0.0);
                with_head.resize(coefficients.len(), 0.0);
                axpy(weight, &coefficients, &mut own);
                axpy(weight * fit.prior.kappa, &coefficients, &mut with_head);
            }
        }
    }
    axpy(1.0, &rows.gather_phi(0.0, &own), &mut theta);
    axpy(1.0, &rows.gather_along(&with_head), &mut along);
    rows.unproject(&theta, &along)
}

/// Up to so many rows the dual form costs less: `n²` against `2n(d+1) + (d+1)²` multiply-adds an iteration and class.
/// It needs a factor of order n, so it is left at twice the width rather than at the 2.4 where the costs meet.
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
    fn theta(&self, rows: &Rows, kappa: f64) -> Moving {
        match self {
            State::Primal(primal) => primal.theta.clone(),
            State::Dual(dual) => {
                Moving { at: dual.theta(rows, kappa, |of| &of.at), step: dual.theta(rows, kappa, |of| &of.step) }
            }
        }
    }
}

/// `½ Σ φ φᵀ + λI`.
pub(super) fn curvature(rows: &Rows, lambda: f64, kappa: f64) -> Packed {
    let mut curvature = Packed::scaled_identity(rows.phi_width(kappa), lambda);
    rows.blocks(rows.n, kappa, |_, phi| curvature.add_outer(0.5, phi));
    curvature
}

/// Takes `Θ ← Θ − (Σ g φᵀ + λΘ) M` along `course`; `precondition` multiplies the gradient of every class, `[C, width]`,
/// by `M`.
pub(super) fn descend(
    rows: &Rows,
    kappa: f64,
    theta: &mut Moving,
    course: &Course,
    mut precondition: impl FnMut(&mut [f64]),
) {
    let classes = rows.classes;
    let m = theta.at.len() / classes;
    let mut gradient = vec![0.0; classes * m];
    let (mut logits, mut g) = (Vec::new(), Vec::new());
    for k in 0..course.iterations {
        theta.lead(course.beta(k));
        for (gradient, theta) in gradient.iter_mut().zip(&theta.at) {
            *gradient = course.lambda * theta;
        }
        rows.blocks(rows.n, kappa, |at, phi| {
            logits.clear();
            match &rows.link {
                None => at.clone().for_each(|i| logits.extend(rows.logits(i).iter().map(|&f| f64::from(f)))),
                Some(_) => logits.resize(at.len() * classes, 0.0),
            }
            refit::products(m, phi, &theta.at, &mut logits);
            g.resize(logits.len(), 0.0);
            for ((i, f), g) in at.zip(logits.chunks_exact(classes)).zip(g.chunks_exact_mut(classes)) {
                match &rows.link {
                    None => {
                        softmax_into(f, g);
                        rows.gradient(i, g, course.delta);
                    }
                    Some(link) => rows.linked_gradient(link, i, f, course.delta, g),
                }
            }
            refit::gather(m, phi, &g, &mut gradient);
        });
        precondition(&mut gradient);
        axpy(-1.0, &gradient, &mut theta.at);
        theta.arrive();
    }
}

#[derive(Clone, Debug)]
pub(super) struct Primal {
    /// `M = (½ Σ φ φᵀ + λI)⁻¹`.
    pub(super) inverse: Packed,
    pub(super) theta: Moving,
    pub(super) lambda: f64,
    pub(super) updates: usize,
}

impl Primal {
    pub(super) fn of(rows: &Rows, lambda: f64, kappa: f64, theta: Option<Moving>) -> Result<Primal, LearnError> {
        let inverse = Cholesky::of(&curvature(rows, lambda, kappa))?.inverse();
        let theta = theta.unwrap_or_else(|| Moving::resting(vec![0.0; rows.classes * inverse.order()]));
        Ok(Primal { inverse, theta, lambda, updates: 0 })
    }

    /// `M −= ½ M φ φᵀ M / (1 + ½ φᵀ M φ)`.
    pub(super) fn update(&mut self, phi: &[f64]) {
        let mut product = phi.to_vec();
        self.inverse.times(&mut product);
        let scale = -0.5 / (1.0 + 0.5 * dot(phi, &product));
        self.inverse.add_outer(scale, &product);
        self.updates += 1;
    }
}

#[derive(Clone, Debug)]
pub(super) struct Dual {
    /// Of `S = ½K + λI`, `K = ΦΦᵀ`.
    pub(super) factor: Cholesky,
    /// `A`, per class `[n]`.
    pub(super) coefficients: Vec<Moving>,
    /// `KA`, per class `[n]`: what the correction adds to the logits of the rows. Kept along, because
    /// `K S⁻¹ r = 2(r − λ S⁻¹ r)` makes it free.
    change: Vec<Moving>,
    pub(super) lambda: f64,
}

impl Dual {
    pub(super) fn new(classes: usize, lambda: f64) -> Dual {
        let empty = vec![Moving::default(); classes];
        Dual { factor: Cholesky::default(), coefficients: empty.clone(), change: empty, lambda }
    }

    pub(super) fn of(rows: &Rows, lambda: f64, kappa: f64) -> Result<Dual, LearnError> {
        let mut dual = Dual::new(rows.classes, lambda);
        dual.factor.reserve(rows.n);
        rows.kernels(|kernel| dual.push(&kernel.at(kappa, dual.len() + 1)))?;
        Ok(dual)
    }

    /// Number of rows it holds.
    pub(super) fn len(&self) -> usize {
        self.coefficients[0].at.len()
    }

    /// Takes up a row by its products with the rows held and itself (`n + 1` values), with a coefficient of zero.
    fn push(&mut self, k: &[f64]) -> Result<(), LearnError> {
        let n = self.len();
        let mut curvature: Vec<f64> = k.iter().map(|k| 0.5 * k).collect();
        curvature[n] += self.lambda;
        self.factor.push_row(&curvature)?;
        for (coefficients, change) in self.coefficients.iter_mut().zip(&mut self.change) {
            change.push(dot(&coefficients.at, &k[..n]), dot(&coefficients.step, &k[..n]));
            coefficients.push(0.0, 0.0);
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
            new.at[..old.at.len()].copy_from_slice(&old.at);
            new.step[..old.step.len()].copy_from_slice(&old.step);
        }
        let (at, step) = (self.products(rows, kappa, |of| &of.at), self.products(rows, kappa, |of| &of.step));
        for (c, change) in self.change.iter_mut().enumerate() {
            let of = |products: &[f64]| products.iter().skip(c).step_by(rows.classes).copied().collect();
            *change = Moving { at: of(&at), step: of(&step) };
        }
    }

    /// `K` times what `of` takes of the coefficients, `[n, C]`.
    fn products(&self, rows: &Rows, kappa: f64, of: fn(&Moving) -> &[f64]) -> Vec<f64> {
        let (theta, classes) = (self.theta(rows, kappa, of), rows.classes);
        let mut products = vec![0.0; self.len() * classes];
        rows.blocks(self.len(), kappa, |at, phi| {
            refit::products(theta.len() / classes, phi, &theta, &mut products[at.start * classes..at.end * classes]);
        });
        products
    }

    /// What `of` takes of `A`, `[n, C]`.
    fn by_row(&self, of: fn(&Moving) -> &[f64]) -> Vec<f64> {
        (0..self.len()).flat_map(|i| self.coefficients.iter().map(move |class| of(class)[i])).collect()
    }

    /// What `of` takes of the weights over φ, `[C, width of φ]`.
    fn theta(&self, rows: &Rows, kappa: f64, of: fn(&Moving) -> &[f64]) -> Vec<f64> {
        rows.gather_phi(kappa, &self.by_row(of))
    }

    pub(super) fn iterate(&mut self, rows: &Rows, course: &Course) {
        let (n, classes) = (self.len(), rows.classes);
        if n == 0 {
            return;
        }
        let mut step = vec![0.0; classes * n];
        let (mut logits, mut g) = (vec![0.0; classes], vec![0.0; classes]);
        for k in 0..course.iterations {
            let beta = course.beta(k);
            self.coefficients.iter_mut().chain(&mut self.change).for_each(|of| of.lead(beta));
            for i in 0..n {
                if let Some(link) = &rows.link {
                    (0..classes).for_each(|c| logits[c] = self.change[c].at[i]);
                    rows.linked_gradient(link, i, &logits, course.delta, &mut g);
                } else {
                    for c in 0..classes {
                        logits[c] = f64::from(rows.logits(i)[c]) + self.change[c].at[i];
                    }
                    softmax_into(&logits, &mut g);
                    rows.gradient(i, &mut g, course.delta);
                }
                for c in 0..classes {
                    step[c * n + i] = g[c] + course.lambda * self.coefficients[c].at[i];
                }
            }
            let right = step.clone();
            self.factor.solve(&mut step);
            for c in 0..classes {
                let (step, right) = (&step[c * n..(c + 1) * n], &right[c * n..(c + 1) * n]);
                axpy(-1.0, step, &mut self.coefficients[c].at);
                for i in 0..n {
                    self.change[c].at[i] -= 2.0 * (right[i] - self.lambda * step[i]);
                }
            }
            self.coefficients.iter_mut().chain(&mut self.change).for_each(Moving::arrive);
        }
    }
}
