//! `sparse`: the tensors that promise most for their bytes (after Lin et al., "On-device training under 256 KB memory",
//! 2022).
//!
//! What a tensor promises is measured, not guessed: the square of the norm of its gradient over some examples, which is
//! by how much a small step along it makes the loss smaller, to first order.
use super::parameters::{self, Behind, Role};
use super::{Placing, Scope, ScopeError};

/// The row of [`super::SCOPES`].
pub(super) static SPARSE: Scope = Scope {
    name: "sparse",
    doc: "the f32 tensors that promise most for their bytes, as measured on the data",
    changes_features: true,
    place,
};

fn place(p: &mut Placing<'_>) -> Result<(), ScopeError> {
    let wanted = &p.spec.tensors;
    for node in p.nodes() {
        if p.headed.contains(&node) {
            continue;
        }
        for (_, role, behind) in parameters::of(&p.edit, node) {
            if let Behind::Float(v) = behind
                && (wanted.is_empty() || wanted.contains(&p.edit.name(v)))
            {
                p.train(v, role == Role::Weight);
            }
        }
    }
    match wanted.iter().find(|w| !p.trainable.contains(w)) {
        Some(name) => Err(ScopeError::Misfit { name: name.clone(), why: "is no f32 parameter of the model".into() }),
        None => Ok(()),
    }
}

/// What a tensor promises, and what it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Contribution {
    /// The tensor.
    pub name: String,
    /// Square of the norm of its gradient.
    pub promise: f64,
    /// Its bytes.
    pub bytes: usize,
}

/// The tensors that promise most for their bytes and take no more than `budget` bytes together, in the order given.
pub fn choose(contributions: &[Contribution], budget: usize) -> Vec<String> {
    let density = |c: &Contribution| c.promise / c.bytes.max(1) as f64;
    let mut order: Vec<usize> = (0..contributions.len()).collect();
    // Equal ones stay in the order of the graph.
    order.sort_by(|&a, &b| density(&contributions[b]).total_cmp(&density(&contributions[a])).then(a.cmp(&b)));
    let mut left = budget;
    let mut chosen = Vec::new();
    for i in order {
        let c = &contributions[i];
        if c.bytes <= left && c.promise > 0.0 {
            left -= c.bytes;
            chosen.push(i);
        }
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|i| contributions[i].name.clone()).collect()
}
