//! Search: which of the things on file is meant. Embedding models; "this match is wrong".
//!
//! The hypotheses are the `N` items of a gallery, `logits = G e / T` of the graph's embedding `e [P]`: the InfoNCE
//! belief. What is learned is a linear map of features to a change of the embedding, `P` rows whatever the number of
//! items, so that what is learned about one item moves the others as the embedding has them: the gradient `Gᵀ(π − t)/T`
//! is the contrastive one, the shown item pushed away and what the belief finds next pulled near. The curvature is at
//! most `½ λ_max(GᵀCG)/T²` with `C` the centring over items.
use super::{Form, Shipped, TaskDef};
use crate::bundle::Recipe;
use crate::learn::solver::Link;

/// The row of [`super::TASKS`].
pub(super) static RETRIEVAL: TaskDef = TaskDef {
    name: "retrieval",
    answer: "one item of those on file, the others ranked behind it",
    up: "this match is right",
    down: "this match is wrong",
    named: "it is the item named, as chosen from the list",
    remarks: "none",
    right: "the item is the true one",
    measures: "recall among the first 1 and 5, mean reciprocal rank (MRR)",
    form,
};

/// Most items.
const MOST: usize = 1024;
/// Power iterations for the largest eigenvalue, and what is added for those that were not made.
const POWER: (usize, f64) = (100, 1.02);

/// The gallery.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Items {
    outputs: usize,
    /// `G / T [N, P]`.
    gallery: Vec<f64>,
}

fn form(recipe: &Recipe, labels: &[String], shipped: &Shipped) -> Result<Form, String> {
    let temperature = f64::from(recipe.answers.temperature.unwrap_or(1.0));
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(format!("answers.temperature is {temperature}, not above 0"));
    }
    if !(2..=MOST).contains(&labels.len()) {
        return Err(format!("there are {} items, 2 to {MOST} are possible", labels.len()));
    }
    let gallery = shipped.gallery.as_ref().ok_or("answers.gallery names no tensor of train/head.safetensors")?;
    if gallery.len() != labels.len() * shipped.outputs {
        return Err(format!(
            "the gallery has {} numbers, not {} for each of {} items",
            gallery.len(),
            shipped.outputs,
            labels.len()
        ));
    }
    if gallery.iter().any(|v| !v.is_finite()) {
        return Err("the gallery is not finite".into());
    }
    let gallery = gallery.iter().map(|&v| f64::from(v) / temperature).collect();
    Ok(Form::Items(Items { outputs: shipped.outputs, gallery }))
}

impl Items {
    pub(super) fn logits(&self, embedding: &[f32]) -> Vec<f32> {
        let of = |item: &[f64]| item.iter().zip(embedding).map(|(g, &e)| g * f64::from(e)).sum::<f64>() as f32;
        self.gallery.chunks_exact(self.outputs).map(of).collect()
    }

    /// What one unit of each output adds to the logits.
    pub(super) fn columns(&self) -> Vec<Vec<f64>> {
        (0..self.outputs).map(|p| self.gallery.iter().skip(p).step_by(self.outputs).copied().collect()).collect()
    }

    pub(super) fn link(&self) -> Link {
        let scale = 1.0 / self.largest().sqrt().max(f64::MIN_POSITIVE.sqrt());
        Link { outputs: self.outputs, matrix: self.gallery.iter().map(|v| v * scale).collect(), doubt: 0.0 }
    }

    /// The largest eigenvalue of `GᵀCG/T²`, a little above.
    fn largest(&self) -> f64 {
        let (p, n) = (self.outputs, self.gallery.len() / self.outputs);
        let mean: Vec<f64> = (0..p).map(|j| self.gallery.iter().skip(j).step_by(p).sum::<f64>() / n as f64).collect();
        let mut v: Vec<f64> = (0..p).map(|j| 1.0 + j as f64 / p as f64).collect();
        let mut value = 0.0;
        for _ in 0..POWER.0 {
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            if norm == 0.0 {
                break;
            }
            v.iter_mut().for_each(|x| *x /= norm);
            let mut next = vec![0.0; p];
            for row in self.gallery.chunks_exact(p) {
                let along: f64 = row.iter().zip(&mean).zip(&v).map(|((g, m), x)| (g - m) * x).sum();
                next.iter_mut().zip(row.iter().zip(&mean)).for_each(|(o, (g, m))| *o += along * (g - m));
            }
            value = next.iter().map(|x| x * x).sum::<f64>().sqrt();
            v = next;
        }
        value * POWER.1
    }
}
