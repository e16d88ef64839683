//! Operators that change nothing are not there: `Identity`, and `Cast` to the type that a tensor has.
//!
//! Between other operators they would hide what belongs together. One whose result must be there under its own name stays.
use std::collections::HashSet;

use super::Net;
use crate::graph::ValueId;
use crate::ops::OpError;

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    if !(0..net.len()).any(|i| through(net, i).is_some()) {
        return Ok(());
    }
    let lasting: HashSet<ValueId> = net.lasting().into_iter().collect();
    let mut same: Vec<Option<ValueId>> = vec![None; net.special.names.len()];
    for i in 0..net.len() {
        if let Some((x, y)) = through(net, i).filter(|(_, y)| !lasting.contains(y)) {
            // What it reads may be such a result itself.
            same[y] = Some(same[x].unwrap_or(x));
        }
    }
    for mut p in net.drain() {
        if p.node.outputs.iter().flatten().any(|&v| same[v].is_some()) {
            continue;
        }
        for v in p.node.inputs.iter_mut().flatten() {
            *v = same[*v].unwrap_or(*v);
        }
        net.push(p);
    }
    Ok(())
}

/// What node `i` reads and what it makes, when both are the same.
fn through(net: &Net<'_>, i: usize) -> Option<(ValueId, ValueId)> {
    let here = net.is(i, "Identity").or_else(|| net.is(i, "Cast"))?;
    let (x, y) = (here.input(0)?, here.output()?);
    (net.fact(x)?.dtype == net.fact(y)?.dtype).then_some((x, y))
}
