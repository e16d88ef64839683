//! `If`, `Loop` and `Scan`: operators that run graphs.
//!
//! The graphs are attributes of the node; values they take from around them are listed after the node's own operands,
//! as many as the attribute `captures` says, and after the graph's formal inputs in the same order.
use std::sync::Arc;

use super::runner::{Budget, RunOptions, Runner};
use super::{PlanError, specialise::Special};
use crate::device::Device;
use crate::graph::Graph;
use crate::ops::{Attr, Attrs, Fact, OpDef, OpError, axis_of, need, optional, strides_of};
use crate::tensor::{DType, Data, Tensor};

/// The branch of an `If` whose condition is constant, and the index of its first captured operand.
pub(super) fn decided(
    def: &OpDef,
    attrs: &Attrs,
    inputs: &[Option<&Fact>],
) -> Result<Option<(Arc<Graph>, usize)>, OpError> {
    if def.name != "If" {
        return Ok(None);
    }
    let Some(value) = &need(inputs, 0, "cond")?.value else { return Ok(None) };
    Ok(Some((attrs.graph(branch(truth(value)?))?.clone(), 1)))
}

fn branch(condition: bool) -> &'static str {
    if condition { "then_branch" } else { "else_branch" }
}

/// A condition: one boolean, whatever the shape around it.
fn truth(t: &Tensor) -> Result<bool, OpError> {
    match t.data() {
        Data::Bool(v) if v.len() == 1 => Ok(v[0]),
        _ => Err(OpError::shape("a condition", "one bool", format!("{} {:?}", t.dtype(), t.shape()))),
    }
}

/// Output facts, when they can be known without running.
pub(super) fn shapes(
    def: &OpDef,
    attrs: &Attrs,
    inputs: &[Option<&Fact>],
    bytes: usize,
) -> Result<Option<Vec<Fact>>, PlanError> {
    // What is not known of a nested graph is found out when it runs, and so are its mistakes.
    let of = |graph: &Graph, inputs: &[Fact]| Special::new(graph, inputs, bytes).ok().and_then(|s| s.output_facts());
    let shape_of = |f: &Fact| (f.dtype, f.shape.clone());
    let captures = attrs.int("captures", 0).unwrap_or(0) as usize;
    let captured: Vec<Fact> =
        inputs[inputs.len().saturating_sub(captures)..].iter().copied().flatten().cloned().collect();
    match def.name {
        "If" => {
            let (Ok(yes), Ok(no)) = (attrs.graph("then_branch"), attrs.graph("else_branch")) else { return Ok(None) };
            let (Some(a), Some(b)) = (of(yes, &captured), of(no, &captured)) else { return Ok(None) };
            let same = a.len() == b.len() && a.iter().zip(&b).all(|(x, y)| shape_of(x) == shape_of(y));
            Ok(same.then(|| a.iter().map(|f| Fact::new(f.dtype, f.shape.clone())).collect()))
        }
        "Scan" => {
            let Ok(scan) = Scan::new(attrs, inputs.len() - captures) else { return Ok(None) };
            let Some(given) = inputs[..inputs.len() - captures].iter().map(|f| f.cloned()).collect::<Option<Vec<_>>>()
            else {
                return Ok(None);
            };
            let mut body_inputs: Vec<Fact> =
                given[..scan.states].iter().map(|f| Fact::new(f.dtype, f.shape.clone())).collect();
            let mut steps = None;
            for (f, axis) in given[scan.states..].iter().zip(&scan.input_axes) {
                let Ok(axis) = axis_of(*axis, f.shape.len()) else { return Ok(None) };
                if steps.is_some_and(|s| s != f.shape[axis]) {
                    return Ok(None);
                }
                steps = Some(f.shape[axis]);
                let mut shape = f.shape.clone();
                shape.remove(axis);
                body_inputs.push(Fact::new(f.dtype, shape));
            }
            body_inputs.extend(captured);
            let (Some(steps), Some(out)) = (steps, of(&scan.body, &body_inputs)) else { return Ok(None) };
            if out.len() < scan.states
                || steps == 0
                || out[..scan.states].iter().zip(&given).any(|(a, b)| shape_of(a) != shape_of(b))
            {
                return Ok(None);
            }
            let mut all: Vec<Fact> = out[..scan.states].iter().map(|f| Fact::new(f.dtype, f.shape.clone())).collect();
            for (i, f) in out[scan.states..].iter().enumerate() {
                let Ok(axis) = axis_of(scan.output_axis(i), f.shape.len() + 1) else { return Ok(None) };
                let mut shape = f.shape.clone();
                shape.insert(axis, steps);
                all.push(Fact::new(f.dtype, shape));
            }
            Ok(Some(all))
        }
        _ => Ok(None),
    }
}

/// A control operator and the runners of its graphs.
pub(super) enum Control {
    If { yes: Runner, no: Runner },
    Loop { body: Runner, captures: usize, bytes: usize },
    Scan { scan: Scan, body: Runner, captures: usize, bytes: usize },
}

impl Control {
    /// # Errors
    /// [`OpError::Attribute`] when a graph is missing.
    pub(super) fn new(def: &OpDef, attrs: &Attrs, options: &RunOptions) -> Result<Control, OpError> {
        // What runs again and again in small pieces would wait for a device each time.
        let options = &RunOptions { device: Device::Cpu, ..options.clone() };
        let runner = |name: &str| Ok::<_, OpError>(Runner::new(attrs.graph(name)?.clone(), options.clone()));
        let captures = usize::try_from(attrs.int("captures", 0)?).unwrap_or(0);
        match def.name {
            "If" => Ok(Control::If { yes: runner("then_branch")?, no: runner("else_branch")? }),
            "Loop" => Ok(Control::Loop { body: runner("body")?, captures, bytes: options.bytes }),
            "Scan" => {
                let body = runner("body")?;
                let given = body.graph().inputs.len().saturating_sub(captures);
                Ok(Control::Scan { scan: Scan::new(attrs, given)?, body, captures, bytes: options.bytes })
            }
            other => Err(OpError::unsupported(format!("{other} as a control operator"))),
        }
    }

    /// Runs it on the operands of the node.
    ///
    /// # Errors
    /// [`PlanError`] from the graphs, or when operands do not fit.
    pub(super) fn run(&mut self, inputs: &[Option<&Tensor>], budget: &mut Budget) -> Result<Vec<Tensor>, ControlError> {
        match self {
            Control::If { yes, no } => {
                let taken = if truth(need(inputs, 0, "cond")?)? { yes } else { no };
                let captured: Vec<&Tensor> = inputs[1..].iter().copied().flatten().collect();
                Ok(taken.run_within(&captured, budget)?)
            }
            Control::Loop { body, captures, bytes } => run_loop(body, *captures, inputs, *bytes, budget),
            Control::Scan { scan, body, captures, bytes } => scan.run(body, *captures, inputs, *bytes, budget),
        }
    }
}

/// Why a control operator fails: its own operands, or the graph it runs.
#[derive(Debug)]
pub(super) enum ControlError {
    Op(OpError),
    Plan(PlanError),
}

impl From<OpError> for ControlError {
    fn from(e: OpError) -> ControlError {
        ControlError::Op(e)
    }
}

impl From<PlanError> for ControlError {
    fn from(e: PlanError) -> ControlError {
        ControlError::Plan(e)
    }
}

impl From<crate::tensor::TensorError> for ControlError {
    fn from(e: crate::tensor::TensorError) -> ControlError {
        ControlError::Op(e.into())
    }
}

fn run_loop(
    body: &mut Runner,
    captures: usize,
    inputs: &[Option<&Tensor>],
    bytes: usize,
    budget: &mut Budget,
) -> Result<Vec<Tensor>, ControlError> {
    let trips = match optional(inputs, 0) {
        Some(m) => *crate::ops::ints_of(m).first().ok_or_else(|| OpError::shape("M", "one integer", m.shape()))?,
        None => i64::MAX,
    };
    let mut going = optional(inputs, 1).map_or(Ok(true), truth)?;
    let formal = body.graph().inputs.len().saturating_sub(captures);
    let carried_count = formal.saturating_sub(2);
    let results = body.graph().outputs.len();
    if formal < 2 || results < 1 + carried_count || inputs.len() != formal + captures {
        let found = format!("{formal} inputs, {results} outputs, {} operands", inputs.len());
        return Err(OpError::shape("the body of a Loop", "condition and carried values in and out", found).into());
    }
    let captured: Vec<&Tensor> = inputs[formal..].iter().copied().flatten().collect();
    let mut carried: Vec<Tensor> =
        (2..formal).map(|i| need(inputs, i, "v_initial").cloned()).collect::<Result<_, _>>()?;
    let mut gathered: Vec<Stack> = (1 + carried_count..results).map(|_| Stack::new(bytes)).collect();
    let mut turn = 0i64;
    while going && turn < trips {
        spend(budget)?;
        let (i, c) = (Tensor::i64(&[], vec![turn])?, Tensor::new(&[], Data::Bool(vec![going]))?);
        let mut given: Vec<&Tensor> = vec![&i, &c];
        given.extend(&carried);
        given.extend(&captured);
        let mut out = body.run_within(&given, budget)?.into_iter();
        going = truth(&out.next().ok_or(OpError::MissingInput { index: 0, name: "cond" })?)?;
        carried = out.by_ref().take(carried_count).collect();
        for (stack, t) in gathered.iter_mut().zip(out) {
            stack.push(t)?;
        }
        turn += 1;
    }
    let declared = &body.graph().outputs[1 + carried_count..];
    let declared: Vec<_> = declared.iter().map(|&v| body.graph().values[v].declared.clone()).collect();
    let mut all = carried;
    for (stack, declared) in gathered.into_iter().zip(declared) {
        // Of a loop that never turned, only what the file declares is known.
        let empty = declared.map(|d| {
            let dims = d.shape.unwrap_or_default();
            (d.dtype, dims.iter().map(|n| n.known().unwrap_or(0)).collect::<Vec<_>>())
        });
        all.push(stack.finish(0, false, empty)?);
    }
    Ok(all)
}

/// Takes one turn from what is left.
fn spend(budget: &mut Budget) -> Result<(), OpError> {
    budget.turns = budget.turns.checked_sub(1).ok_or_else(|| {
        OpError::unsupported("more turns of loops than a run may take (Limits::turns); does it ever end?")
    })?;
    Ok(())
}

/// Results of the turns of a loop, to be stacked along a new axis.
struct Stack {
    items: Vec<Tensor>,
    /// Bytes there may still be.
    left: usize,
}

impl Stack {
    fn new(bytes: usize) -> Stack {
        Stack { items: Vec::new(), left: bytes }
    }

    fn push(&mut self, t: Tensor) -> Result<(), OpError> {
        if let Some(first) = self.items.first()
            && (first.shape() != t.shape() || first.dtype() != t.dtype())
        {
            return Err(OpError::shape("a result collected over turns", first.shape(), t.shape()));
        }
        let bytes = t.data().as_bytes().len().max(size_of::<Tensor>());
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            OpError::unsupported("results of turns that together take more bytes than a run may (Limits::run_bytes)")
        })?;
        self.items.push(t);
        Ok(())
    }

    fn finish(mut self, axis: i64, reverse: bool, empty: Option<(DType, Vec<usize>)>) -> Result<Tensor, OpError> {
        if reverse {
            self.items.reverse();
        }
        let Some(first) = self.items.first() else {
            let (dtype, mut shape) = empty.unwrap_or((DType::F32, Vec::new()));
            shape.insert(axis_of(axis, shape.len() + 1)?, 0);
            return Ok(Tensor::zeros(dtype, &shape)?);
        };
        let inner = first.shape().to_vec();
        let axis = axis_of(axis, inner.len() + 1)?;
        let mut data = Data::zeros(first.dtype(), 0);
        self.items.iter().for_each(|t| data.append(t.data()));
        let mut shape = vec![self.items.len()];
        shape.extend(&inner);
        if axis == 0 {
            return Ok(Tensor::new(&shape, data)?);
        }
        // Stacked in front; the new axis moves to its place.
        let own = strides_of(&shape);
        let mut strides = own[1..].to_vec();
        strides.insert(axis, own[0]);
        let mut out_shape = inner;
        out_shape.insert(axis, shape[0]);
        let mut picked = Vec::with_capacity(data.len());
        crate::ops::for_each_strided(0, &strides, &out_shape, |i| picked.push(i));
        Ok(Tensor::new(&out_shape, data.pick(&picked))?)
    }
}

/// What the attributes of a `Scan` say.
pub(super) struct Scan {
    body: Arc<Graph>,
    states: usize,
    input_axes: Vec<i64>,
    input_reverse: Vec<bool>,
    output_axes: Vec<i64>,
    output_reverse: Vec<bool>,
}

impl Scan {
    /// `given`: operands of the node without captured ones.
    fn new(attrs: &Attrs, given: usize) -> Result<Scan, OpError> {
        if attrs.opset < 9 {
            return Err(OpError::unsupported("Scan of opset 8, which has a batch axis of its own"));
        }
        let scans = usize::try_from(attrs.int("num_scan_inputs", 0)?).ok().filter(|n| (1..=given).contains(n));
        let scans =
            scans.ok_or_else(|| OpError::attribute("num_scan_inputs", format!("does not fit {given} inputs")))?;
        let body = attrs.graph("body")?.clone();
        let states = given - scans;
        let outs = body
            .outputs
            .len()
            .checked_sub(states)
            .ok_or_else(|| OpError::attribute("body", "gives fewer results than there are states"))?;
        let ints = |name: &str, n: usize| -> Result<Vec<i64>, OpError> {
            let v = attrs.ints(name)?.map_or(vec![0; n], <[i64]>::to_vec);
            if v.len() == n { Ok(v) } else { Err(OpError::attribute(name, format!("{v:?} has not {n} entries"))) }
        };
        let flags = |name: &str, n: usize| Ok::<_, OpError>(ints(name, n)?.iter().map(|&d| d != 0).collect::<Vec<_>>());
        Ok(Scan {
            states,
            input_axes: ints("scan_input_axes", scans)?,
            input_reverse: flags("scan_input_directions", scans)?,
            output_axes: ints("scan_output_axes", outs)?,
            output_reverse: flags("scan_output_directions", outs)?,
            body,
        })
    }

    fn output_axis(&self, i: usize) -> i64 {
        self.output_axes.get(i).copied().unwrap_or(0)
    }

    fn run(
        &self,
        body: &mut Runner,
        captures: usize,
        inputs: &[Option<&Tensor>],
        bytes: usize,
        budget: &mut Budget,
    ) -> Result<Vec<Tensor>, ControlError> {
        let given = inputs.len().saturating_sub(captures);
        let captured: Vec<&Tensor> = inputs[given..].iter().copied().flatten().collect();
        let mut states: Vec<Tensor> =
            (0..self.states).map(|i| need(inputs, i, "state").cloned()).collect::<Result<_, _>>()?;
        let sequences: Vec<&Tensor> =
            (self.states..given).map(|i| need(inputs, i, "scan input")).collect::<Result<_, _>>()?;
        let mut axes = Vec::with_capacity(sequences.len());
        let mut steps = None;
        for (t, &axis) in sequences.iter().zip(&self.input_axes) {
            let axis = axis_of(axis, t.shape().len())?;
            if steps.is_some_and(|s| s != t.shape()[axis]) {
                return Err(OpError::shape("the scanned axis", steps, t.shape()).into());
            }
            steps = Some(t.shape()[axis]);
            axes.push(axis);
        }
        let steps = steps.unwrap_or(0);
        let mut gathered: Vec<Stack> = self.output_axes.iter().map(|_| Stack::new(bytes)).collect();
        for step in 0..steps {
            spend(budget)?;
            let slices: Vec<Tensor> = sequences
                .iter()
                .zip(&axes)
                .zip(&self.input_reverse)
                .map(|((t, &axis), &reverse)| slice(t, axis, if reverse { steps - 1 - step } else { step }))
                .collect::<Result<_, _>>()?;
            let given: Vec<&Tensor> = states.iter().chain(&slices).chain(captured.iter().copied()).collect();
            let mut out = body.run_within(&given, budget)?.into_iter();
            states = out.by_ref().take(self.states).collect();
            for (stack, t) in gathered.iter_mut().zip(out) {
                stack.push(t)?;
            }
        }
        let mut all = states;
        for (i, stack) in gathered.into_iter().enumerate() {
            all.push(stack.finish(self.output_axis(i), self.output_reverse[i], None)?);
        }
        Ok(all)
    }
}

/// One step along `axis`, without that axis.
fn slice(t: &Tensor, axis: usize, at: usize) -> Result<Tensor, OpError> {
    let mut strides = strides_of(t.shape());
    let base = at * strides[axis];
    let mut shape = t.shape().to_vec();
    strides.remove(axis);
    shape.remove(axis);
    let mut picked = Vec::new();
    crate::ops::for_each_strided(base, &strides, &shape, |i| picked.push(i));
    Ok(Tensor::new(&shape, t.data().pick(&picked))?)
}

/// The attributes of a control operator with one more: how many operands its graphs take from around them.
pub fn with_captures(mut attrs: Attrs, captures: usize) -> Attrs {
    attrs.map.insert("captures".into(), Attr::Int(captures as i64));
    attrs
}
