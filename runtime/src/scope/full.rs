//! `full`: every weight and bias of a model in f32.
use super::parameters::{self, Behind, Role};
use super::{Placing, Scope, ScopeError};

/// The row of [`super::SCOPES`].
pub(super) static FULL: Scope =
    Scope { name: "full", doc: "every weight and bias of an f32 model", changes_features: true, place };

fn place(p: &mut Placing<'_>) -> Result<(), ScopeError> {
    let mut quantised = Vec::new();
    for node in p.nodes() {
        if p.headed.contains(&node) {
            continue;
        }
        for (_, role, behind) in parameters::of(&p.edit, node) {
            match behind {
                Behind::Float(v) => p.train(v, role == Role::Weight),
                Behind::Quantised(v) => quantised.push(p.edit.name(v)),
            }
        }
        quantised.extend(whole_weight(p, node));
    }
    quantised.sort();
    quantised.dedup();
    match quantised.first() {
        Some(example) => Err(ScopeError::Quantised { count: quantised.len(), example: example.clone() }),
        None => Ok(()),
    }
}

/// The weight of an operator that computes with whole numbers.
fn whole_weight(p: &Placing<'_>, node: usize) -> Option<String> {
    let slot = match p.edit.graph.nodes[node].op.name() {
        "MatMulInteger" | "ConvInteger" | "MatMulNBits" | "DynamicQuantizeMatMul" | "DynamicQuantizeLSTM" => 1,
        "QLinearConv" | "QLinearMatMul" | "QGemm" => 3,
        _ => return None,
    };
    let v = p.edit.graph.nodes[node].inputs.get(slot).copied().flatten()?;
    p.edit.graph.values[v].constant.is_some().then(|| p.edit.name(v))
}
