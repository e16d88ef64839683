//! A border of zeros around what a convolution reads is padding of its window: exporters that pad as TensorFlow does write a `Pad`
//! before each convolution, whose result is as large as the operand and holds nothing new.
use std::sync::Arc;

use super::Net;
use crate::graph::ValueId;
use crate::ops::{Attr, Attrs, Fact, OpError, border_of_zeros};

pub(super) fn run(net: &mut Net<'_>) -> Result<(), OpError> {
    for i in 0..net.len() {
        if let Some((x, attrs)) = padded(net, i)
            && let Some(conv) = net.at(i)
        {
            let (def, mut inputs) = (conv.def, conv.node.inputs.clone());
            let bordered = inputs[0].replace(x);
            net.replace(i, def, Arc::new(attrs), inputs);
            bordered.into_iter().for_each(|v| net.forget(v));
        }
    }
    Ok(())
}

/// What is inside the border of what convolution `i` reads, and the convolution's attributes with the border as padding.
fn padded(net: &Net<'_>, i: usize) -> Option<(ValueId, Attrs)> {
    let conv = net.is(i, "Conv")?;
    if !matches!(conv.attrs.str("auto_pad", "NOTSET").ok()?, "NOTSET" | "VALID") {
        return None;
    }
    let pad = net.made_by(conv.input(0)?, "Pad")?;
    let facts: Vec<Option<&Fact>> = pad.node.inputs.iter().map(|v| v.and_then(|v| net.fact(v))).collect();
    let border = border_of_zeros(pad.attrs, &facts)?;
    let (lead, space) = border.split_at_checked(2)?;
    if lead.iter().any(|e| *e != (0, 0)) {
        return None;
    }
    let more = space.iter().map(|e| e.0).chain(space.iter().map(|e| e.1));
    let own = conv.attrs.ints("pads").ok()?.map_or_else(|| vec![0; 2 * space.len()], <[i64]>::to_vec);
    let pads =
        own.iter().zip(more).map(|(own, more)| own.checked_add(i64::try_from(more).ok()?)).collect::<Option<_>>()?;
    let mut attrs = Attrs::clone(conv.attrs);
    attrs.map.remove("auto_pad");
    attrs.map.insert("pads".into(), Attr::Ints(pads));
    Some((pad.input(0)?, attrs))
}
