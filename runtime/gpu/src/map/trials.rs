//! What chains are tried on, and against what: formulas in `f64`, and a call for each function.
use super::{Access, Chain, Element, Form, Map, Operand, Source, elements, own_strides};
use crate::kernel::{Allowed, Draws, Given, Part, Trial};

/// Constants of every function.
const CONSTANTS: [f32; 4] = [0.75, 1.5, 0.0, 0.0];

/// How far a device's 32-bit floats may be from a formula, absolutely and relatively: several functions are compositions of ones
/// that a device may compute to 3 or 4 units in the last place.
const NEAR: f64 = 1e-5;

/// The chain of that form that is tried.
fn chain(form: &Form) -> Chain {
    // Axes enough that strides can be anything; operands that are strided are turned around, each in a way of its own.
    let (shape, turned) = if form.axes > 1 {
        (vec![2, 3, 2, 3, 2], [vec![1, 2, 0, 6, 18], vec![6, 12, 36, 1, 3]])
    } else {
        (vec![3, 5, 7], [vec![1, 0, 3], vec![7, 21, 1]])
    };
    let strides = |k: usize, access: Access| match access {
        Access::Same => own_strides(&shape),
        Access::First => vec![0; shape.len()],
        Access::Strided => turned[k % 2].clone(),
    };
    let one = |(k, (element, access)): (usize, &(Element, Access))| Operand {
        element: *element,
        strides: strides(k, *access),
    };
    let operands = form.operands.iter().enumerate().map(one).collect();
    let mut links = form.links.clone();
    links.iter_mut().for_each(|l| l.constants = CONSTANTS.to_vec());
    Chain { shape, operands, links }
}

/// A number, and how far from it what a device has in its place may be.
#[derive(Clone, Copy)]
struct Known {
    value: f64,
    off: f64,
}

pub(super) fn trials(form: &Form) -> Vec<Trial> {
    let chain = chain(form);
    // The same kernel as the one tried: its name says all that its text depends on.
    let Some(call) = chain.call() else { return Vec::new() };
    let n = elements(&chain.shape);
    let mut draws = Draws::new(n as u64);
    let mut drawn = |k: usize, o: &Operand| {
        let reads = |l: &&super::Link| l.sources.contains(&Source::Operand(k));
        let positive = chain.links.iter().filter(reads).any(|l| l.function.positive);
        (0..n).map(|_| o.element.drawn(&mut draws, positive)).collect()
    };
    let values: Vec<Vec<f64>> = chain.operands.iter().enumerate().map(|(k, o)| drawn(k, o)).collect();
    let (mut y, mut within) = (Vec::new(), Vec::new());
    for i in 0..n {
        let mut rest = i;
        let mut at = vec![0; chain.shape.len()];
        for (at, d) in at.iter_mut().zip(&chain.shape).rev() {
            (*at, rest) = (rest % d, rest / d);
        }
        let place = |o: &Operand| o.strides.iter().zip(&at).map(|(s, a)| s * a).sum::<usize>();
        let read = |(v, o): (&Vec<f64>, &Operand)| Known { value: v[place(o)], off: 0.0 };
        let operands: Vec<Known> = values.iter().zip(&chain.operands).map(read).collect();
        let made = computed(&chain, &operands);
        y.extend(form.result().bytes(made.value));
        within.push(made.off);
    }
    let bytes = |(v, o): (&Vec<f64>, &Operand)| v.iter().flat_map(|v| o.element.bytes(*v)).collect();
    let operands = values.iter().zip(&chain.operands).map(bytes).collect();
    let allowed = Allowed::Each { element: form.result(), within };
    vec![Trial { call, before: vec![], operands, results: vec![y], allowed }]
}

/// What the chain makes of one element of each operand, every result rounded as its elements are. How far a device may be off
/// grows from function to function: each is also computed of what its operands may be in place of what they are.
fn computed(chain: &Chain, operands: &[Known]) -> Known {
    let mut made: Vec<Known> = Vec::with_capacity(chain.links.len());
    for link in &chain.links {
        let constants: Vec<f64> = link.constants.iter().map(|c| f64::from(*c)).collect();
        let of = |s: &Source| match s {
            Source::Operand(k) => operands[*k],
            Source::Link(l) => made[*l],
        };
        let x: Vec<Known> = link.sources.iter().map(of).collect();
        let rounded = |x: &[f64]| {
            let element = link.result;
            element.numbers(&element.bytes((link.function.formula)(x, &constants)))[0]
        };
        let value = rounded(&x.iter().map(|k| k.value).collect::<Vec<_>>());
        let corner = |bits: usize| {
            let moved = |(i, k): (usize, &Known)| k.value + if bits >> i & 1 == 0 { k.off } else { -k.off };
            let off = (rounded(&x.iter().enumerate().map(moved).collect::<Vec<_>>()) - value).abs();
            if off.is_nan() { f64::INFINITY } else { off }
        };
        // What may be no number says nothing here: formulas do not all keep it.
        let lost = x.iter().any(|k| k.value.is_nan() || k.off == f64::INFINITY);
        let moves = x.iter().any(|k| k.off > 0.0);
        let spread = match () {
            () if lost => f64::INFINITY,
            () if moves => (0..1 << x.len()).map(corner).fold(0.0, f64::max),
            () => 0.0,
        };
        let rounds = link.result == Element::F32 && !value.is_nan();
        let own = if rounds { NEAR + NEAR * value.abs() } else { 0.0 };
        // Between its corners a function may go a little further.
        made.push(Known { value, off: 2.0 * spread + own });
    }
    made.pop().unwrap_or(Known { value: 0.0, off: 0.0 })
}

/// A call for each function of the chain that is tried; none where there is but one.
pub(super) fn parts(form: &Form) -> Vec<Part> {
    let Chain { shape, operands, links } = chain(form);
    if links.len() < 2 {
        return Vec::new();
    }
    let results: Vec<Element> = links.iter().map(|l| l.result).collect();
    let one = |link: super::Link| {
        let operand = |s: &Source| match s {
            Source::Operand(k) => operands[*k].clone(),
            Source::Link(l) => Operand { element: results[*l], strides: own_strides(&shape) },
        };
        let from = |s: &Source| match s {
            Source::Operand(k) => Given::Operand(*k),
            Source::Link(l) => Given::Part(*l),
        };
        let map = Map {
            function: link.function,
            constants: link.constants.clone(),
            shape: shape.clone(),
            operands: link.sources.iter().map(operand).collect(),
            result: link.result,
        };
        let bytes = elements(&shape) * link.result.size();
        Some(Part { call: map.call()?, at: link.sources.iter().map(from).collect(), bytes })
    };
    links.into_iter().map(one).collect::<Option<_>>().unwrap_or_default()
}
