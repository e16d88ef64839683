//! The rows a solver fits, flat, and the second view of them: what the shipped head makes of each.
use std::ops::Range;
use std::sync::Arc;

use hone_kernels::refit;

use super::super::error::{LearnError, check_finite, check_len};
use super::super::head::{HeadBase, Theta};
use super::super::input::Input;
use super::super::linalg::{axpy, dot};
use super::super::objective::posterior::{gradient_in_place, gradient_with_doubt};
use super::super::objective::softmax_into;
use super::{Link, Row, SolverConfig, splitmix64};

/// Products of one row with others.
pub(super) struct Kernel {
    own: Vec<f64>,
    along: Vec<f64>,
}

impl Kernel {
    /// `φ · φ` with each of the first `n` rows.
    pub(super) fn at(&self, kappa: f64, n: usize) -> Vec<f64> {
        self.own[..n].iter().zip(&self.along).map(|(own, along)| own + kappa * along).collect()
    }
}

/// Rows whose features are made at a time: they are multiplied with the classes and back while they lie in the cache.
/// The kernels sum four rows at a time, so any other multiple of four gives the same bits.
const BLOCK: usize = 32;

/// The rows. What is told about an input is flat; the inputs themselves are shared with whoever keeps the log.
///
/// `φ = (z, s·b)` is what a prior looks at, with `b = Bz` the shipped head's own directions and `s² = κ`.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// Rows of Θ: the classes, or the outputs of a link.
    pub(super) classes: usize,
    /// Logits and likelihoods of a row; as many as classes where there is no link.
    hypotheses: usize,
    pub(super) link: Option<Link>,
    /// `d` as the caller has it.
    pub(super) features: usize,
    /// Width of `z` as the solver has it: `d + 1`, or the projection's width + 1.
    pub(super) width: usize,
    projection: Option<Arc<Projection>>,
    /// `B [C, d+1]`, the shipped head over `z`, centred over classes and scaled so that `E|Bz|² = 1` on source data;
    /// empty where no head was given.
    directions: Arc<[f32]>,
    pub(super) n: usize,
    /// The first rows, [`SolverConfig::source`], whose likelihood is a fixed target.
    pub(super) fixed: usize,
    /// Empty where features are projected.
    inputs: Vec<Input>,
    /// `z [n, width]` where features are projected.
    projected: Vec<f64>,
    /// `[n, C]`, or empty.
    b: Vec<f64>,
    logits: Vec<Arc<[f32]>>,
    likelihood: Vec<f64>,
    names_class: Vec<bool>,
}

impl Rows {
    /// The source's rows of a head whose own directions are not known.
    pub(super) fn new(classes: usize, features: usize, config: &SolverConfig) -> Result<Rows, LearnError> {
        Rows::empty(classes, features, config)?.with_source(config)
    }

    fn empty(classes: usize, features: usize, config: &SolverConfig) -> Result<Rows, LearnError> {
        for (what, least, found) in [("the classes of a head", 2, classes), ("the features of a head", 1, features)] {
            if found < least {
                return Err(LearnError::Length { what, expected: least, found });
            }
        }
        let projection =
            (features > config.max_features).then(|| Arc::new(Projection::new(features, config.projected_features)));
        let width = projection.as_ref().map_or(features, |p| p.width) + 1;
        let link = config.link.clone();
        if let Some(link) = &link {
            check_len("the link", classes * link.outputs, link.matrix.len())?;
        }
        Ok(Rows {
            classes: link.as_ref().map_or(classes, |l| l.outputs),
            hypotheses: classes,
            link,
            features,
            width,
            projection,
            directions: Arc::default(),
            n: 0,
            fixed: 0,
            inputs: Vec::new(),
            projected: Vec::new(),
            b: Vec::new(),
            logits: Vec::new(),
            likelihood: Vec::new(),
            names_class: Vec::new(),
        })
    }

    fn with_source(mut self, config: &SolverConfig) -> Result<Rows, LearnError> {
        for row in &config.source {
            self.push(row)?;
        }
        self.fixed = self.n;
        Ok(self)
    }

    /// Rows that also know the directions of the shipped head. A head that answers the same to everything has none.
    pub(super) fn of_head(base: &HeadBase, config: &SolverConfig) -> Result<Rows, LearnError> {
        let mut rows = Rows::empty(base.classes(), base.width() - 1, config)?;
        if rows.link.is_some() {
            return rows.with_source(config);
        }
        // Classes added on the device have no directions, and random features are none of the head's.
        let (shipped, m, d) = (base.shipped_classes(), base.width(), base.features());
        let mut directions = base.over_z();
        for j in 0..m {
            let mean = (0..shipped).map(|c| directions[c * m + j]).sum::<f64>() / shipped as f64;
            (0..shipped).for_each(|c| directions[c * m + j] -= mean);
        }
        // z has mean 0 and variance 1/d on source data, so E|Bz|² is the mean square of the graph's columns.
        let power =
            (0..shipped).map(|c| dot(&directions[c * m..][..d], &directions[c * m..][..d])).sum::<f64>() / d as f64;
        if power > 0.0 {
            rows.directions = directions.iter().map(|v| (v / power.sqrt()) as f32).collect();
        }
        rows.with_source(config)
    }

    /// [`Rows::of_head`] and `rows`.
    pub(super) fn of_rows(base: &HeadBase, rows: &[Row], config: &SolverConfig) -> Result<Rows, LearnError> {
        let mut all = Rows::of_head(base, config)?;
        rows.iter().try_for_each(|row| all.push(row))?;
        Ok(all)
    }

    /// Rows of the same head with only the source's in them.
    pub(super) fn emptied(&self) -> Rows {
        let n = self.fixed;
        Rows {
            n,
            inputs: self.inputs[..n.min(self.inputs.len())].to_vec(),
            projected: self.projected[..(n * self.width).min(self.projected.len())].to_vec(),
            b: self.b[..n * self.directions_len()].to_vec(),
            logits: self.logits[..n].to_vec(),
            likelihood: self.likelihood[..n * self.hypotheses].to_vec(),
            names_class: self.names_class[..n].to_vec(),
            projection: self.projection.clone(),
            directions: Arc::clone(&self.directions),
            link: self.link.clone(),
            ..*self
        }
    }

    pub(super) fn push(&mut self, row: &Row) -> Result<(), LearnError> {
        check_len("z", self.features + 1, row.z.len())?;
        let z = row.z.z();
        check_finite("z", &z)?;
        check_len("the graph's logits", self.hypotheses, row.logits.len())?;
        check_finite("the graph's logits", &row.logits)?;
        check_likelihood(&row.likelihood, self.hypotheses)?;
        match &self.projection {
            None => self.inputs.push(row.z.clone()),
            Some(projection) => self.projected.extend(projection.apply(&z)),
        }
        self.b.extend(self.along(&z));
        self.logits.push(Arc::clone(&row.logits));
        self.likelihood.extend_from_slice(&row.likelihood);
        self.names_class.push(row.names_class);
        self.n += 1;
        Ok(())
    }

    /// Takes up row `i` of rows of the same head.
    pub(super) fn copy(&mut self, other: &Rows, i: usize) {
        match self.projection {
            None => self.inputs.push(other.inputs[i].clone()),
            Some(_) => self.projected.extend_from_slice(&other.projected[i * self.width..(i + 1) * self.width]),
        }
        self.b.extend_from_slice(other.b(i));
        self.logits.push(Arc::clone(&other.logits[i]));
        self.likelihood.extend_from_slice(other.likelihood(i));
        self.names_class.push(other.names_class[i]);
        self.n += 1;
    }

    pub(super) fn pop(&mut self) {
        self.n -= 1;
        self.inputs.truncate(self.n);
        self.projected.truncate(self.n * self.width);
        self.b.truncate(self.n * self.directions_len());
        self.logits.truncate(self.n);
        self.likelihood.truncate(self.n * self.hypotheses);
        self.names_class.truncate(self.n);
    }

    pub(super) fn set_likelihood(
        &mut self,
        index: usize,
        likelihood: &[f64],
        names_class: bool,
    ) -> Result<(), LearnError> {
        check_likelihood(likelihood, self.hypotheses)?;
        self.likelihood[index * self.hypotheses..(index + 1) * self.hypotheses].copy_from_slice(likelihood);
        self.names_class[index] = names_class;
        Ok(())
    }

    /// Whether the head has directions of its own.
    pub(super) fn has_directions(&self) -> bool {
        !self.directions.is_empty()
    }

    fn directions_len(&self) -> usize {
        if self.has_directions() { self.classes } else { 0 }
    }

    fn b(&self, i: usize) -> &[f64] {
        let c = self.directions_len();
        &self.b[i * c..(i + 1) * c]
    }

    /// Width of `φ`.
    pub(super) fn phi_width(&self, kappa: f64) -> usize {
        self.width + if kappa > 0.0 { self.directions_len() } else { 0 }
    }

    /// `φ` of row `i`.
    pub(super) fn phi(&self, i: usize, kappa: f64) -> Vec<f64> {
        let mut phi = vec![0.0; self.phi_width(kappa)];
        self.phi_into(i, kappa, &mut phi);
        phi
    }

    /// `φ` of any `z [d+1]`.
    pub(super) fn phi_of(&self, z: &[f32], kappa: f64) -> Vec<f64> {
        let mut phi = match &self.projection {
            None => widened(z),
            Some(projection) => projection.apply(z),
        };
        if kappa > 0.0 {
            let scale = kappa.sqrt();
            phi.extend(self.along(z).iter().map(|b| scale * b));
        }
        phi
    }

    fn phi_into(&self, i: usize, kappa: f64, phi: &mut [f64]) {
        let (z, along) = phi.split_at_mut(self.width);
        match self.projection {
            None => self.inputs[i].z_into(z),
            Some(_) => z.copy_from_slice(&self.projected[i * self.width..(i + 1) * self.width]),
        }
        let scale = kappa.sqrt();
        along.iter_mut().zip(self.b(i)).for_each(|(to, b)| *to = scale * b);
    }

    /// Calls `f` with the first `n` rows, [`BLOCK`] at a time: which they are, and their `φ`, `[_, width of φ]`.
    pub(super) fn blocks(&self, n: usize, kappa: f64, mut f: impl FnMut(Range<usize>, &[f64])) {
        let width = self.phi_width(kappa);
        let mut phi = vec![0.0; BLOCK.min(n) * width];
        for first in (0..n).step_by(BLOCK) {
            let rows = first..n.min(first + BLOCK);
            let phi = &mut phi[..rows.len() * width];
            rows.clone().zip(phi.chunks_exact_mut(width)).for_each(|(i, phi)| self.phi_into(i, kappa, phi));
            f(rows, phi);
        }
    }

    /// `φᵢ · φⱼ` at κ = 0 and what κ multiplies, of row `i` with each up to itself.
    pub(super) fn kernel(&self, i: usize) -> Kernel {
        let n = i + 1;
        let mut own = vec![0.0; n];
        let z = self.phi(i, 0.0);
        self.blocks(n, 0.0, |rows, block| refit::products(self.width, block, &z, &mut own[rows]));
        Kernel { own, along: self.kernel_along(i) }
    }

    fn kernel_along(&self, i: usize) -> Vec<f64> {
        let mut along = vec![0.0; i + 1];
        if let m @ 1.. = self.directions_len() {
            refit::products(m, &self.b[..(i + 1) * m], self.b(i), &mut along);
        }
        along
    }

    /// Calls `f` with [`Rows::kernel`] of each row in turn, made for many at a time.
    pub(super) fn kernels(&self, mut f: impl FnMut(Kernel) -> Result<(), LearnError>) -> Result<(), LearnError> {
        for first in (0..self.n).step_by(BLOCK) {
            let until = self.n.min(first + BLOCK);
            let these: Vec<f64> = (first..until).flat_map(|i| self.phi(i, 0.0)).collect();
            let mut products = vec![0.0; until * (until - first)];
            self.blocks(until, 0.0, |rows, with| {
                let into = &mut products[rows.start * (until - first)..rows.end * (until - first)];
                refit::products(self.width, with, &these, into);
            });
            for i in first..until {
                let own = products.iter().skip(i - first).step_by(until - first).take(i + 1).copied().collect();
                f(Kernel { own, along: self.kernel_along(i) })?;
            }
        }
        Ok(())
    }

    /// `Σ_i g[i, c] bᵢ` over the first rows, for `g [_, C]`: `[C, C]`, or nothing where there are no directions.
    pub(super) fn gather_along(&self, g: &[f64]) -> Vec<f64> {
        let (n, m) = (g.len() / self.classes, self.directions_len());
        let mut along = vec![0.0; self.classes * m];
        if m > 0 {
            refit::gather(m, &self.b[..n * m], g, &mut along);
        }
        along
    }

    /// `Σ_i g[i, c] φᵢ` over the first rows, for `g [_, C]`: `[C, width of φ]`.
    pub(super) fn gather_phi(&self, kappa: f64, g: &[f64]) -> Vec<f64> {
        let (classes, width) = (self.classes, self.phi_width(kappa));
        let mut sum = vec![0.0; classes * width];
        self.blocks(g.len() / classes, kappa, |rows, phi| {
            refit::gather(width, phi, &g[rows.start * classes..rows.end * classes], &mut sum);
        });
        sum
    }

    /// The graph's logits of row `i`.
    pub(super) fn logits(&self, i: usize) -> &[f32] {
        &self.logits[i]
    }

    pub(super) fn likelihood(&self, i: usize) -> &[f64] {
        &self.likelihood[i * self.hypotheses..(i + 1) * self.hypotheses]
    }

    /// Rows that were pressed.
    pub(super) fn pressed(&self) -> usize {
        self.n - self.fixed
    }

    /// Writes `g` over the probabilities `pi` of row `i`: `π − t` with its fixed target, or as the presses on it ask.
    pub(super) fn gradient(&self, i: usize, pi: &mut [f64], delta: f64) {
        if i < self.fixed {
            pi.iter_mut().zip(self.likelihood(i)).for_each(|(p, t)| *p -= t);
        } else {
            gradient_in_place(pi, self.likelihood(i), delta);
        }
    }

    /// As [`Rows::gradient`] through the link: `g [P]` of row `i` for the change `Θz [P]` of its outputs.
    pub(super) fn linked_gradient(&self, link: &Link, i: usize, change: &[f64], delta: f64, g: &mut [f64]) {
        let mut logits = self.changed(i, change);
        let mut pi = vec![0.0; logits.len()];
        softmax_into(&logits, &mut pi);
        if i < self.fixed || link.doubt == 0.0 {
            self.gradient(i, &mut pi, delta);
        } else {
            logits.iter_mut().for_each(|l| *l *= link.doubt);
            let mut doubtful = vec![0.0; logits.len()];
            softmax_into(&logits, &mut doubtful);
            gradient_with_doubt(&mut pi, &doubtful, self.likelihood(i), delta);
        }
        link.pull(&pi, g);
    }

    /// Logits of row `i` for the change `Θz` of its outputs.
    pub(super) fn changed(&self, i: usize, change: &[f64]) -> Vec<f64> {
        let mut logits = widened(self.logits(i));
        match &self.link {
            Some(link) => link.push(change, &mut logits),
            None => logits.iter_mut().zip(change).for_each(|(l, c)| *l += c),
        }
        logits
    }

    /// λ of this log; counted rather than summed so that the order of rows cannot change it.
    pub(super) fn lambda(&self, config: &SolverConfig) -> f64 {
        let labels = self.names_class[self.fixed..].iter().filter(|n| **n).count();
        let n = self.pressed();
        if n == 0 {
            return config.lambda_partial;
        }
        (labels as f64 * config.lambda_label + (n - labels) as f64 * config.lambda_partial) / n as f64
    }

    /// `B z`, empty without directions.
    fn along(&self, z: &[f32]) -> Vec<f64> {
        let wide = widened(z);
        self.directions.chunks_exact(wide.len()).map(|direction| dot(&widened(direction), &wide)).collect()
    }

    /// Weights over `(z, b)` as the correction of the head they are: `Θ + ΨB`; `along [C, C]` is empty where κ = 0.
    pub(super) fn unproject(&self, theta: &[f64], along: &[f64]) -> Theta {
        let m = self.features + 1;
        let mut full = vec![0.0_f32; self.classes * m];
        let mut wide = vec![0.0_f64; m];
        for c in 0..self.classes {
            let row = &theta[c * self.width..(c + 1) * self.width];
            match &self.projection {
                None => wide.copy_from_slice(row),
                Some(projection) => projection.transpose(row, &mut wide),
            }
            for (k, direction) in self.directions.chunks_exact(m).enumerate().filter(|_| !along.is_empty()) {
                axpy(along[c * self.classes + k], &widened(direction), &mut wide);
            }
            full[c * m..(c + 1) * m].iter_mut().zip(&wide).for_each(|(o, &v)| *o = v as f32);
        }
        let Some(link) = &self.link else { return Theta::from_parts(self.classes, m, full) };
        let mut linked = vec![0.0_f32; self.hypotheses * m];
        for (out, weights) in linked.chunks_exact_mut(m).zip(link.matrix.chunks_exact(link.outputs)) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = weights.iter().enumerate().map(|(p, w)| w * f64::from(full[p * m + j])).sum::<f64>() as f32;
            }
        }
        Theta::from_parts(self.hypotheses, m, linked)
    }

    /// No correction of the head.
    pub(super) fn zeros(&self) -> Theta {
        Theta::zeros(self.hypotheses, self.features + 1)
    }

    /// The width features are projected to, where they are.
    pub(super) fn projected(&self) -> Option<usize> {
        self.projection.as_ref().map(|p| p.width)
    }
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn check_likelihood(likelihood: &[f64], classes: usize) -> Result<(), LearnError> {
    check_len("the likelihood", classes, likelihood.len())?;
    match likelihood.iter().find(|l| !(0.0..=1.0).contains(*l)) {
        None => Ok(()),
        Some(&value) => Err(LearnError::OutOfRange { what: "a likelihood", value, range: "[0, 1]" }),
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
        let wide = widened(wide);
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
    fn transpose(&self, row: &[f64], out: &mut [f64]) {
        out.fill(0.0);
        for i in 0..self.width {
            out.iter_mut().zip(self.row(i)).for_each(|(w, &p)| *w += row[i] * f64::from(p));
        }
        out[self.features] = row[self.width];
    }
}
