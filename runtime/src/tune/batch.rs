//! Examples put together: those of one shape in one batch.
use super::{Example, Examples, Target, TuneError, no_examples};
use crate::graph::{Dim, Graph};
use crate::tensor::{DType, Data, Tensor};
use crate::train::{Batch, Objective};

/// Examples between which all others lie, so that what fits for these fits for all.
pub(super) struct Extremes {
    /// Examples that no other one is as long as along every axis.
    pub(super) largest: Vec<Example>,
    /// The one of the fewest numbers, where there are others: weights of products with few rows are packed beforehand,
    /// which takes memory that a product with many does without.
    pub(super) smallest: Option<Example>,
}

/// Puts examples together.
pub(super) struct Batcher {
    pub(super) objective: Objective,
    /// Whether each input has a row for each example.
    pub(super) rowed: Vec<bool>,
    /// Rows of a batch.
    pub(super) rows: usize,
    /// Whether examples can have different shapes.
    pub(super) varies: bool,
}

impl Batcher {
    pub(super) fn new(graph: &Graph, objective: Objective, batch: usize) -> Batcher {
        let dims = |v: &usize| graph.values[*v].declared.as_ref().and_then(|d| d.shape.clone()).unwrap_or_default();
        let inputs: Vec<Vec<Dim>> = graph.inputs.iter().map(dims).collect();
        let rowed: Vec<bool> = inputs.iter().map(|d| d.first().is_some_and(|d| d.known().is_none())).collect();
        // A model of fixed shapes takes one example at a time; its gradients are accumulated.
        let rows = if rowed.iter().any(|r| *r) { batch } else { 1 };
        let varies = inputs.iter().any(|d| d.iter().skip(1).any(|d| d.known().is_none()));
        Batcher { objective, rowed, rows, varies }
    }

    /// Whether each example is two rows that belong together.
    pub(super) fn pairs(&self) -> bool {
        matches!(self.objective, Objective::Contrastive { .. })
    }

    /// Whether a short batch is filled with rows that weigh nothing. Among pairs such rows would be found as well.
    pub(super) fn fills(&self) -> bool {
        !self.varies && !self.pairs()
    }

    /// The extremes of examples, all of which are made once where they can differ.
    pub(super) fn extremes(&self, examples: &mut dyn Examples, of: &[usize]) -> Result<Extremes, TuneError> {
        let first = examples.example(*of.first().ok_or_else(no_examples)?)?;
        let mut out = Extremes { largest: vec![first], smallest: None };
        if !self.varies {
            return Ok(out);
        }
        let numbers = |e: &Example| e.inputs.iter().map(Tensor::len).sum::<usize>();
        let same = |a: &Example, b: &Example| a.inputs.iter().zip(&b.inputs).all(|(a, b)| a.shape() == b.shape());
        let within = |a: &Example, b: &Example| {
            let fits = |(a, b): (&Tensor, &Tensor)| {
                a.shape().len() == b.shape().len() && a.shape().iter().zip(b.shape()).all(|(a, b)| a <= b)
            };
            a.inputs.iter().zip(&b.inputs).all(fits)
        };
        let mut smallest = out.largest[0].clone();
        for &i in &of[1..] {
            let e = examples.example(i)?;
            if numbers(&e) < numbers(&smallest) {
                smallest = e.clone();
            }
            if !out.largest.iter().any(|l| within(&e, l)) {
                out.largest.retain(|l| !within(l, &e));
                out.largest.push(e);
            }
        }
        out.smallest = (!out.largest.iter().any(|l| same(l, &smallest))).then_some(smallest);
        // The largest of all is what smaller runs are looked for with.
        out.largest.sort_by_key(|e| std::cmp::Reverse(numbers(e)));
        Ok(out)
    }

    /// Types and shapes of whole batches of the largest examples, and before them of what packs most: the smallest one
    /// alone, where batches can be that short.
    pub(super) fn all_shapes(&self, extremes: &Extremes) -> Vec<Vec<(DType, Vec<usize>)>> {
        let Extremes { largest, smallest } = extremes;
        let few = smallest.as_ref().or(largest.first()).filter(|_| !self.fills()).map(|e| self.shapes_of(e, 1));
        few.into_iter().chain(largest.iter().map(|e| self.shapes_of(e, self.rows))).collect()
    }

    /// Types and shapes of that many examples like `one`.
    pub(super) fn shapes_of(&self, one: &Example, rows: usize) -> Vec<(DType, Vec<usize>)> {
        let rows = if self.pairs() { 2 * rows } else { rows };
        let of = |(t, rowed): (&Tensor, &bool)| {
            let mut shape = t.shape().to_vec();
            if *rowed && let Some(first) = shape.first_mut() {
                *first = rows;
            }
            (t.dtype(), shape)
        };
        one.inputs.iter().zip(&self.rowed).map(of).collect()
    }

    /// The examples as batches. Those of different shapes do not share one, and a batch that is short for that is
    /// computed as short as it is: filled, sixteen lengths would cost sixteen whole batches. Where all have one shape the
    /// last batch of an epoch is filled with copies of its first row, which weigh nothing, so that one plan serves all.
    pub(super) fn batches(&self, examples: &mut dyn Examples, of: &[usize]) -> Result<Vec<Batch>, TuneError> {
        let mut groups: Vec<Vec<Example>> = Vec::new();
        for &i in of {
            let e = examples.example(i)?;
            let alike = |other: &Example| {
                other.inputs.iter().zip(&e.inputs).all(|(a, b)| a.shape() == b.shape()) && other.target.alike(&e.target)
            };
            match groups.iter_mut().find(|g| g.len() < self.rows && alike(&g[0])) {
                Some(group) => group.push(e),
                None => groups.push(vec![e]),
            }
        }
        groups.into_iter().map(|g| self.batch(&g)).collect()
    }

    fn batch(&self, group: &[Example]) -> Result<Batch, TuneError> {
        if self.pairs() {
            return self.pairs_of(group);
        }
        let n = if self.fills() { self.rows } else { group.len() };
        let row = |i: usize| group.get(i).unwrap_or(&group[0]);
        let mut inputs = Vec::with_capacity(self.rowed.len());
        for (k, rowed) in self.rowed.iter().enumerate() {
            let all: Vec<&Tensor> = (0..if *rowed { n } else { 1 }).map(|i| &row(i).inputs[k]).collect();
            inputs.push(stacked(&all)?);
        }
        let weight = |i: usize| if i < group.len() { 1.0 } else { 0.0 };
        let rows: Vec<&Target> = (0..n).map(|i| &row(i).target).collect();
        let (target, weights) = match (&rows[0], self.objective) {
            (Target::None, _) => {
                return Err(TuneError::Data { what: "an example has no target, and its objective needs one".into() });
            }
            (Target::Class(_), _) => {
                let classes = rows.iter().map(|t| if let Target::Class(c) = t { *c as i64 } else { -1 }).collect();
                let weights = (0..n).map(weight).collect();
                (Tensor::i64(&[n], classes)?, Tensor::f32(&[n], weights)?)
            }
            (Target::Values(_), objective) => {
                let all: Vec<&Tensor> =
                    rows.iter().filter_map(|t| if let Target::Values(v) = t { Some(v) } else { None }).collect();
                let target = stacked(&all)?;
                let labels = objective == Objective::Labels;
                let shape =
                    if labels { target.shape().to_vec() } else { target.shape()[..target.shape().len() - 1].to_vec() };
                let inner: usize = shape.iter().skip(1).product();
                let mut weights: Vec<f32> = (0..n).flat_map(|i| vec![weight(i); inner]).collect();
                if labels {
                    // A negative label is no label: a masked token.
                    weights.iter_mut().zip(target.as_i64()?).filter(|(_, l)| **l < 0).for_each(|(w, _)| *w = 0.0);
                }
                (target, Tensor::f32(&shape, weights)?)
            }
        };
        Ok(Batch { inputs, target: Some(target), weights: Some(weights) })
    }
}

impl Batcher {
    /// Pairs as a batch: the first of each, then the second of each.
    fn pairs_of(&self, group: &[Example]) -> Result<Batch, TuneError> {
        let wrong = |what: &str| TuneError::Data { what: what.into() };
        if self.rowed.iter().any(|r| !r) {
            return Err(wrong(
                "pairs need a model that takes several samples at once; export it with a batch of any size",
            ));
        }
        let mut inputs = Vec::with_capacity(self.rowed.len());
        for k in 0..self.rowed.len() {
            let mut halves = Vec::with_capacity(2 * group.len());
            for half in 0..2 {
                for e in group {
                    let t = &e.inputs[k];
                    let [2, inner @ ..] = t.shape() else { return Err(wrong("an example of a pair has not two rows")) };
                    let n: usize = inner.iter().product();
                    let data = t.data().pick(&(half * n..(half + 1) * n).collect::<Vec<_>>());
                    halves.push(Tensor::new(&[&[1], inner].concat(), data)?);
                }
            }
            inputs.push(stacked(&halves.iter().collect::<Vec<_>>())?);
        }
        let weights = Tensor::f32(&[group.len()], vec![1.0; group.len()])?;
        Ok(Batch { inputs, target: None, weights: Some(weights) })
    }
}

/// Tensors of one row each, as one.
fn stacked(rows: &[&Tensor]) -> Result<Tensor, TuneError> {
    let mut data = Data::zeros(rows[0].dtype(), 0);
    rows.iter().for_each(|t| data.append(t.data()));
    let mut shape = rows[0].shape().to_vec();
    match shape.first_mut() {
        Some(first) => *first *= rows.len(),
        None if rows.len() > 1 => shape.push(rows.len()),
        None => {}
    }
    Ok(Tensor::new(&shape, data)?)
}
