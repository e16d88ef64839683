//! `Einsum`: sums of products over named axes.
use std::collections::BTreeMap;

use super::Contraction;
use super::contraction::{Epilogue, Numbers, lower, offsets};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::shape::elements;
use crate::ops::{Attr, Attrs, Fact, OpDef, OpError, need, no_kernel, strides_of};
use crate::plan::{Lowered, Lowering};
use crate::tensor::Tensor;

/// `out[o…] = Σ_s… Π operands`, axes named by letters.
pub(super) static EINSUM: OpDef = OpDef::new(
    "Einsum",
    "sums of products over axes named by an equation",
    |attrs, inputs| {
        let shapes = operands(inputs, |f| &f.shape)?;
        let e = Equation::new(attrs.str("equation", "")?, &shapes)?;
        Ok(Some(vec![Fact::new(need(inputs, 0, "Inputs")?.dtype, e.shape(&e.output))]))
    },
    |attrs, inputs| {
        let shapes = operands(inputs, |t| t.shape())?;
        let e = Equation::new(attrs.str("equation", "")?, &shapes)?;
        let first = need(inputs, 0, "Inputs")?;
        let numbers: Vec<Numbers> = inputs.iter().flatten().map(|t| Numbers::of(t)).collect();
        let summed = e.summed();
        let mut out_at = Vec::with_capacity(numbers.len());
        let mut sum_at = Vec::with_capacity(numbers.len());
        for (term, shape) in e.terms.iter().zip(&shapes) {
            out_at.push(offsets(&e.shape(&e.output), &strides(term, shape, &e.output))?);
            sum_at.push(offsets(&e.shape(&summed), &strides(term, shape, &summed))?);
        }
        let n = elements(&e.shape(&e.output))?;
        let s = elements(&e.shape(&summed))?;
        let place = |operand: usize, o: usize, s: usize| out_at[operand][o] + sum_at[operand][s];
        let reals: Vec<&[f64]> =
            numbers.iter().filter_map(|v| if let Numbers::Real(v) = v { Some(&v[..]) } else { None }).collect();
        let wholes: Vec<&[i64]> =
            numbers.iter().filter_map(|v| if let Numbers::Whole(v) = v { Some(&v[..]) } else { None }).collect();
        let y = if reals.len() == numbers.len() {
            let product =
                |o: usize, s: usize| reals.iter().enumerate().map(|(i, v)| v[place(i, o, s)]).product::<f64>();
            Numbers::Real((0..n).map(|o| (0..s).map(|s| product(o, s)).sum()).collect())
        } else if wholes.len() == numbers.len() {
            let product = |o: usize, s: usize| {
                wholes.iter().enumerate().fold(1i64, |p, (i, v)| p.wrapping_mul(v[place(i, o, s)]))
            };
            Numbers::Whole((0..n).map(|o| (0..s).fold(0i64, |sum, s| sum.wrapping_add(product(o, s)))).collect())
        } else {
            return Err(OpError::unsupported("operands of floats and integers in one equation"));
        };
        Ok(vec![Tensor::new(&e.shape(&e.output), y.into_data(first.dtype()))?])
    },
)
.kernel(einsum_kernel)
.vjp(einsum_vjp);

/// The shapes of all operands.
fn operands<'a, T>(
    inputs: &[Option<&'a T>],
    shape: impl Fn(&'a T) -> &'a [usize],
) -> Result<Vec<&'a [usize]>, OpError> {
    (0..inputs.len()).map(|i| need(inputs, i, "Inputs").map(&shape)).collect()
}

/// An axis: a letter's code, or from [`ELLIPSIS`] on one of those that `...` stands for, counted from the left.
type Label = u32;

/// The first label of an ellipsis.
const ELLIPSIS: Label = 256;

struct Equation {
    terms: Vec<Vec<Label>>,
    output: Vec<Label>,
    lengths: BTreeMap<Label, usize>,
}

impl Equation {
    /// Reads `equation` for operands of those shapes.
    ///
    /// # Errors
    /// [`OpError::Attribute`] when it is none, [`OpError::Shape`] when the operands do not fit it.
    fn new(equation: &str, shapes: &[&[usize]]) -> Result<Equation, OpError> {
        let wrong = |why: &str| OpError::attribute("equation", format!("`{equation}` {why}"));
        let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match text.split_once("->") {
            Some((l, r)) => (l, Some(r)),
            None => (&text[..], None),
        };
        let parts: Vec<&str> = left.split(',').collect();
        if parts.len() != shapes.len() {
            return Err(wrong(&format!("names {} operands, there are {}", parts.len(), shapes.len())));
        }
        let letters = |part: &str| -> Result<Vec<Option<Label>>, OpError> {
            let mut out = Vec::new();
            let mut rest = part;
            while let Some(c) = rest.chars().next() {
                if let Some(after) = rest.strip_prefix("...") {
                    if out.contains(&None) {
                        return Err(wrong("has two ellipses in one term"));
                    }
                    out.push(None);
                    rest = after;
                } else if c.is_ascii_alphabetic() {
                    out.push(Some(Label::from(c)));
                    rest = &rest[1..];
                } else {
                    return Err(wrong(&format!("has `{c}` in a term")));
                }
            }
            Ok(out)
        };
        let read: Vec<Vec<Option<Label>>> = parts.iter().map(|p| letters(p)).collect::<Result<_, _>>()?;
        // Axes each operand's ellipsis stands for; they are aligned at the right.
        let mut hidden = Vec::with_capacity(read.len());
        for (term, shape) in read.iter().zip(shapes) {
            let named = term.iter().flatten().count();
            let any = term.contains(&None);
            if named > shape.len() || (!any && named != shape.len()) {
                return Err(OpError::shape("operand of Einsum", equation, shape));
            }
            hidden.push(shape.len() - named);
        }
        let most = hidden.iter().copied().max().unwrap_or(0);
        let ellipsis = |n: usize| (most - n..most).map(|i| ELLIPSIS + i as Label);
        let mut lengths = BTreeMap::new();
        let mut terms = Vec::with_capacity(read.len());
        for ((term, shape), &n) in read.iter().zip(shapes).zip(&hidden) {
            let mut labels = Vec::with_capacity(shape.len());
            for l in term {
                match l {
                    Some(l) => labels.push(*l),
                    None => labels.extend(ellipsis(n)),
                }
            }
            for (&l, &d) in labels.iter().zip(*shape) {
                let known = lengths.entry(l).or_insert(d);
                if *known == 1 {
                    *known = d;
                } else if d != 1 && d != *known {
                    return Err(OpError::shape("operand of Einsum", equation, shape));
                }
            }
            terms.push(labels);
        }
        let output = match right {
            Some(right) => {
                let mut out = Vec::new();
                for l in letters(right)? {
                    match l {
                        Some(l) if !lengths.contains_key(&l) => {
                            return Err(wrong("has a letter in its result that no operand has"));
                        }
                        Some(l) if out.contains(&l) => return Err(wrong("has a letter twice in its result")),
                        Some(l) => out.push(l),
                        None => out.extend(ellipsis(most)),
                    }
                }
                out
            }
            // Without `->`: the ellipsis, then what occurs once, in alphabetical order.
            None => {
                let once = |l: &Label| terms.iter().flatten().filter(|&o| o == l).count() == 1;
                ellipsis(most).chain(lengths.keys().copied().filter(|l| *l < ELLIPSIS && once(l))).collect()
            }
        };
        Ok(Equation { terms, output, lengths })
    }

    fn shape(&self, labels: &[Label]) -> Vec<usize> {
        labels.iter().map(|l| self.lengths[l]).collect()
    }

    /// The labels that are not in the result.
    fn summed(&self) -> Vec<Label> {
        self.lengths.keys().copied().filter(|l| !self.output.contains(l)).collect()
    }
}

/// Step in an operand for a step along each label: the sum over its axes of that label, 0 where it is broadcast.
fn strides(term: &[Label], shape: &[usize], labels: &[Label]) -> Vec<usize> {
    let own = strides_of(shape);
    let of = |l: &Label| (0..term.len()).filter(|&i| term[i] == *l && shape[i] != 1).map(|i| own[i]).sum();
    labels.iter().map(of).collect()
}

/// Two operands are one matrix product: axes of both and the result are the batch, axes of one are rows or columns, what
/// is summed is the reduction.
fn einsum_kernel(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    if l.inputs() != 2 {
        return no_kernel(l);
    }
    let (a, b) = (l.shape(0)?, l.shape(1)?);
    let e = Equation::new(attr_equation(l.attrs)?, &[a, b])?;
    let side = |in_a: bool, in_b: bool| -> Vec<Label> {
        let has = |i: usize, l: &Label| e.terms[i].contains(l);
        e.output.iter().copied().filter(|l| has(0, l) == in_a && has(1, l) == in_b).collect()
    };
    let (batch, rows, columns, summed) = (side(true, true), side(true, false), side(false, true), e.summed());
    let on =
        |i: usize, shape: &[usize], labels: &[Label]| offsets(&e.shape(labels), &strides(&e.terms[i], shape, labels));
    let contraction = Contraction {
        batches: on(0, a, &batch)?.into_iter().zip(on(1, b, &batch)?).collect(),
        a_rows: on(0, a, &rows)?,
        a_steps: on(0, a, &summed)?,
        b_steps: on(1, b, &summed)?,
        b_columns: on(1, b, &columns)?,
    };
    // Where each result of the product goes.
    let made = [batch, rows, columns.clone()].concat();
    let scatter = if made == e.output {
        None
    } else {
        Some(offsets(&e.shape(&made), &strides(&e.output, &e.shape(&e.output), &made))?)
    };
    // The axis of a weight that is the columns, when one is.
    let row_axis = match columns[..] {
        [only] if e.terms[1].iter().filter(|&&l| l == only).count() == 1 => e.terms[1].iter().position(|&l| l == only),
        _ => None,
    };
    lower(l, contraction, row_axis, Epilogue::default(), scatter)
}

/// To each operand the sum over everything it does not have of the gradient times the other operands: one equation more.
fn einsum_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    let dy = b.dy()?;
    let xs: Vec<ValueId> = (0..b.inputs()).map(|i| b.x(i)).collect::<Result<_, _>>()?;
    let shapes: Vec<Vec<usize>> = xs.iter().map(|&v| b.shape(v).to_vec()).collect();
    let e = Equation::new(attr_equation(&b.attrs())?, &shapes.iter().map(|s| &s[..]).collect::<Vec<_>>())?;
    // Letters for the axes an ellipsis stands for.
    let free = (b'a'..=b'z').chain(b'A'..=b'Z').map(Label::from).filter(|l| !e.lengths.contains_key(l));
    let hidden: BTreeMap<Label, Label> = e.lengths.keys().copied().filter(|&l| l >= ELLIPSIS).zip(free).collect();
    let letter = |l: &Label| -> Result<char, OpError> {
        let l = if *l < ELLIPSIS { Some(l) } else { hidden.get(l) };
        l.and_then(|&l| char::from_u32(l)).ok_or_else(|| OpError::unsupported("a gradient by that many axes"))
    };
    let text = |labels: &[Label]| labels.iter().map(letter).collect::<Result<String, _>>();
    for i in 0..xs.len() {
        if !b.wants(i) {
            continue;
        }
        let term = &e.terms[i];
        if (1..term.len()).any(|k| term[..k].contains(&term[k])) {
            return Err(OpError::unsupported("a gradient by an operand with a letter twice (a diagonal)"));
        }
        let others: Vec<usize> = (0..xs.len()).filter(|&j| j != i).collect();
        // An axis of an operand that has length one there while it is longer elsewhere is broadcast: that operand is read
        // without it.
        let mut operands = vec![dy];
        let mut parts = vec![text(&e.output)?];
        let mut seen: Vec<Label> = e.output.clone();
        for &j in &others {
            let real: Vec<usize> =
                (0..e.terms[j].len()).filter(|&k| shapes[j][k] == e.lengths[&e.terms[j][k]]).collect();
            let labels: Vec<Label> = real.iter().map(|&k| e.terms[j][k]).collect();
            let shape: Vec<usize> = real.iter().map(|&k| shapes[j][k]).collect();
            operands.push(b.reshape(xs[j], &shape)?);
            parts.push(text(&labels)?);
            seen.extend(labels);
        }
        // Broadcast axes of this operand are summed away; those nobody else has are repeated.
        let own: Vec<usize> = (0..term.len()).filter(|&k| shapes[i][k] == e.lengths[&term[k]]).collect();
        let made: Vec<Label> = own.iter().map(|&k| term[k]).filter(|l| seen.contains(l)).collect();
        let equation = format!("{}->{}", parts.join(","), text(&made)?);
        let g = b.standard("Einsum", [("equation", Attr::Str(equation))], &operands)?;
        let kept: Vec<usize> = (0..term.len())
            .map(|k| if own.contains(&k) && seen.contains(&term[k]) { shapes[i][k] } else { 1 })
            .collect();
        let g = b.reshape(g, &kept)?;
        let g = b.expand(g, &shapes[i])?;
        b.give(i, g);
    }
    Ok(())
}

fn attr_equation(attrs: &Attrs) -> Result<&str, OpError> {
    attrs.str("equation", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_arrow_the_result_has_the_ellipsis_and_then_the_letters_that_occur_once_in_order() {
        let e = Equation::new("...ij, jk", &[&[5, 2, 3], &[3, 4]]).unwrap();
        assert_eq!(e.shape(&e.output), [5, 2, 4]);
        let e = Equation::new("ba", &[&[2, 3]]).unwrap();
        assert_eq!(e.shape(&e.output), [3, 2]);
        let e = Equation::new("ii", &[&[2, 2]]).unwrap();
        assert!(e.output.is_empty());
    }

    #[test]
    fn what_is_no_equation_of_its_operands_is_refused() {
        for (equation, shapes) in [
            ("ij,jk->ik", &[&[2usize, 3][..]][..]),
            ("ij->ik", &[&[2, 3]]),
            ("ij->ii", &[&[2, 3]]),
            ("i1->i", &[&[2, 3]]),
            ("ii->i", &[&[2, 3]]),
            ("......->", &[&[2, 3]]),
            ("é", &[&[2]]),
        ] {
            assert!(Equation::new(equation, shapes).is_err(), "{equation}");
        }
    }
}
