//! A graph at concrete shapes that grows: the one way passes add nodes, by which every new value has a known shape.
use std::sync::Arc;

use crate::graph::{Graph, Node, Op, ValueId};
use crate::ops::{Attr, Attrs, Fact, MICROSOFT, OpDef, OpError, find};
use crate::plan::Concrete;
use crate::tensor::{DType, Tensor};

/// A graph and what is known of its values.
#[derive(Clone, Debug)]
pub struct Tape {
    graph: Graph,
    facts: Vec<Fact>,
    /// What new nodes are called after.
    context: String,
    /// Type of gradients of values that are not floats.
    float: DType,
}

impl Tape {
    /// A tape that holds `concrete` so far.
    pub fn new(concrete: Concrete) -> Tape {
        let Concrete { graph, facts } = concrete;
        let wide = graph.inputs.iter().any(|&v| facts[v].dtype == DType::F64);
        Tape { graph, facts, context: String::new(), float: if wide { DType::F64 } else { DType::F32 } }
    }

    /// The graph as it is now.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The graph and its facts, given away.
    pub fn into_parts(self) -> (Graph, Vec<Fact>) {
        (self.graph, self.facts)
    }

    /// Replaces the outputs.
    pub fn set_outputs(&mut self, outputs: Vec<ValueId>) {
        self.graph.outputs = outputs;
    }

    /// Replaces the nodes.
    pub(crate) fn set_nodes(&mut self, nodes: Vec<Node>) {
        self.graph.nodes = nodes;
    }

    /// A new value of the same type and shape.
    pub(crate) fn copy_of(&mut self, v: ValueId) -> ValueId {
        let fact = Fact { value: None, ..self.facts[v].clone() };
        let name = format!("{}~again{}", self.graph.values[v].name, self.facts.len());
        self.value(&name, fact)
    }

    /// New nodes are called after `context`.
    pub fn enter(&mut self, context: &str) {
        self.context = context.to_string();
    }

    /// What is known of a value.
    pub fn fact(&self, v: ValueId) -> &Fact {
        &self.facts[v]
    }

    /// Shape of a value.
    pub fn shape(&self, v: ValueId) -> &[usize] {
        &self.facts[v].shape
    }

    /// Element type of a value.
    pub fn dtype(&self, v: ValueId) -> DType {
        self.facts[v].dtype
    }

    /// Element type of the gradient of a value: its own, or that of floats for codes of a quantised tensor.
    pub fn cotangent(&self, v: ValueId) -> DType {
        let dtype = self.facts[v].dtype;
        if dtype.is_float() { dtype } else { self.float }
    }

    /// A new input of the graph.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> ValueId {
        let v = self.value(name, Fact::new(dtype, shape));
        self.graph.inputs.push(v);
        v
    }

    /// A constant.
    pub fn constant(&mut self, t: Tensor) -> ValueId {
        let t = Arc::new(t);
        let v = self.value("constant", Fact::constant(t.clone()));
        self.graph.values[v].constant = Some(t);
        v
    }

    /// One number of that type.
    ///
    /// # Errors
    /// [`OpError::Tensor`].
    pub fn scalar(&mut self, dtype: DType, value: f64) -> Result<ValueId, OpError> {
        Ok(self.constant(Tensor::from_f64(dtype, &[], &[value])?))
    }

    /// One number of the type of `x`.
    ///
    /// # Errors
    /// [`OpError::Tensor`].
    pub fn scalar_like(&mut self, x: ValueId, value: f64) -> Result<ValueId, OpError> {
        self.scalar(self.dtype(x), value)
    }

    /// A list of integers.
    ///
    /// # Errors
    /// [`OpError::Tensor`].
    pub fn ints(&mut self, list: impl IntoIterator<Item = i64>) -> Result<ValueId, OpError> {
        let list: Vec<i64> = list.into_iter().collect();
        Ok(self.constant(Tensor::i64(&[list.len()], list)?))
    }

    fn value(&mut self, stem: &str, fact: Fact) -> ValueId {
        let name = match stem {
            "constant" | "grad" => format!("{}~{stem}{}", self.context, self.facts.len()),
            named => named.to_string(),
        };
        self.facts.push(fact);
        self.graph.add_value(&name, None, None)
    }

    /// Adds a node of `op`; for each output, whether it is wanted. Results are `None` where it is not.
    ///
    /// # Errors
    /// The operator's own, and [`OpError::Unsupported`] when its shapes depend on data.
    pub fn apply(
        &mut self,
        op: &'static OpDef,
        attrs: Attrs,
        inputs: &[Option<ValueId>],
        wanted: &[bool],
    ) -> Result<Vec<Option<ValueId>>, OpError> {
        let attrs = Attrs { outputs: wanted.len(), ..attrs };
        let facts: Vec<Option<&Fact>> = inputs.iter().map(|v| v.map(|v| &self.facts[v])).collect();
        let made = (op.shape)(&attrs, &facts)?
            .ok_or_else(|| OpError::unsupported(format!("{} of shapes that depend on data", op.spelled())))?;
        let mut outputs = Vec::with_capacity(wanted.len());
        for (i, &wanted) in wanted.iter().enumerate() {
            let fact = made.get(i).filter(|_| wanted).map(|f| Fact { value: None, ..f.clone() });
            if wanted && fact.is_none() {
                return Err(OpError::unsupported(format!("output {i} of {} is asked for", op.spelled())));
            }
            outputs.push(fact.map(|f| self.value("grad", f)));
        }
        let name = format!("{}~{}{}", self.context, op.name, self.graph.nodes.len());
        let inputs = inputs.to_vec();
        self.graph.nodes.push(Node { name, op: Op::Own(op, Arc::new(attrs)), inputs, outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Adds a node with one output.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn one(&mut self, op: &'static OpDef, attrs: Attrs, inputs: &[Option<ValueId>]) -> Result<ValueId, OpError> {
        let made = self.apply(op, attrs, inputs, &[true])?;
        made.first().copied().flatten().ok_or_else(|| OpError::unsupported(format!("{} makes nothing", op.spelled())))
    }

    /// Adds a node of the standard operator of that name.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn standard<const N: usize>(
        &mut self,
        name: &str,
        attrs: [(&str, Attr); N],
        inputs: &[ValueId],
    ) -> Result<ValueId, OpError> {
        let op = find("", name).or_else(|| find(MICROSOFT, name));
        let op = op.ok_or_else(|| OpError::unsupported(format!("an operator `{name}`")))?;
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.one(op, Attrs::of(attrs), &inputs)
    }

    /// A function of one operand.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn unary(&mut self, name: &str, x: ValueId) -> Result<ValueId, OpError> {
        self.standard(name, [], &[x])
    }

    /// A function of two operands that broadcast.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn binary(&mut self, name: &str, a: ValueId, b: ValueId) -> Result<ValueId, OpError> {
        self.standard(name, [], &[a, b])
    }

    /// `a · b`.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, OpError> {
        self.binary("Mul", a, b)
    }

    /// `a + b`.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, OpError> {
        self.binary("Add", a, b)
    }

    /// `a - b`.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, OpError> {
        self.binary("Sub", a, b)
    }

    /// `a / b`.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn div(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, OpError> {
        self.binary("Div", a, b)
    }

    /// `x · factor`; `x` itself when the factor is 1.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn scaled(&mut self, x: ValueId, factor: f64) -> Result<ValueId, OpError> {
        if factor == 1.0 {
            return Ok(x);
        }
        let factor = self.scalar(self.dtype(x), factor)?;
        self.mul(x, factor)
    }

    /// `x` where `condition` holds, 0 elsewhere.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn only(&mut self, condition: ValueId, x: ValueId) -> Result<ValueId, OpError> {
        let zero = self.scalar(self.dtype(x), 0.0)?;
        self.standard("Where", [], &[condition, x, zero])
    }

    /// 1 where `condition` holds, 0 elsewhere.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn indicator(&mut self, condition: ValueId, dtype: DType) -> Result<ValueId, OpError> {
        self.cast(condition, dtype)
    }

    /// `x` as elements of `dtype`; `x` itself when it has them.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn cast(&mut self, x: ValueId, dtype: DType) -> Result<ValueId, OpError> {
        if self.dtype(x) == dtype {
            return Ok(x);
        }
        self.standard("Cast", [("to", Attr::Int(i64::from(dtype.onnx())))], &[x])
    }

    /// Zeros of that type and shape.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn zeros(&mut self, dtype: DType, shape: &[usize]) -> Result<ValueId, OpError> {
        let zero = self.scalar(dtype, 0.0)?;
        self.expand(zero, shape)
    }

    /// The same elements under another shape; `x` itself when it has it.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn reshape(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, OpError> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        let to = self.ints(shape.iter().map(|&d| d as i64))?;
        self.standard("Reshape", [("allowzero", Attr::Int(1))], &[x, to])
    }

    /// Axes in another order: result axis `i` is operand axis `perm[i]`.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn transpose(&mut self, x: ValueId, perm: &[usize]) -> Result<ValueId, OpError> {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(x);
        }
        self.standard("Transpose", [("perm", Attr::Ints(perm.iter().map(|&p| p as i64).collect()))], &[x])
    }

    /// Broadcast to `shape`; `x` itself when it has it.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn expand(&mut self, x: ValueId, shape: &[usize]) -> Result<ValueId, OpError> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        let to = self.ints(shape.iter().map(|&d| d as i64))?;
        self.standard("Expand", [], &[x, to])
    }

    /// A reduction over axes.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn reduce(&mut self, name: &str, x: ValueId, axes: &[usize], keep: bool) -> Result<ValueId, OpError> {
        let axes = self.ints(axes.iter().map(|&a| a as i64))?;
        let attrs = [("keepdims", Attr::Int(i64::from(keep))), ("noop_with_empty_axes", Attr::Int(1))];
        self.standard(name, attrs, &[x, axes])
    }

    /// The sum over axes, which stay with length one.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn sum(&mut self, x: ValueId, axes: &[usize]) -> Result<ValueId, OpError> {
        if axes.is_empty() {
            return Ok(x);
        }
        self.reduce("ReduceSum", x, axes, true)
    }

    /// The gradient of something of shape `aligned` that was broadcast to the shape of `x`, under the shape `own`, which
    /// has as many elements.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn unbroadcast(&mut self, x: ValueId, aligned: &[usize], own: &[usize]) -> Result<ValueId, OpError> {
        let to = self.shape(x).to_vec();
        let lead = to.len().saturating_sub(aligned.len());
        let axes: Vec<usize> = (0..to.len()).filter(|&i| to[i] != 1 && (i < lead || aligned[i - lead] == 1)).collect();
        let sum = self.sum(x, &axes)?;
        self.reshape(sum, own)
    }

    /// `alpha · a' · b'`, each of two axes at least, its last two exchanged when asked for.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn matmul(
        &mut self,
        (a, transposed_a): (ValueId, bool),
        (b, transposed_b): (ValueId, bool),
        alpha: f32,
    ) -> Result<ValueId, OpError> {
        if !transposed_a && !transposed_b && alpha == 1.0 {
            return self.binary("MatMul", a, b);
        }
        let attrs = [
            ("transA", Attr::Int(i64::from(transposed_a))),
            ("transB", Attr::Int(i64::from(transposed_b))),
            ("alpha", Attr::Float(alpha)),
        ];
        self.standard("FusedMatMul", attrs, &[a, b])
    }

    /// Elements `start..end` of one axis.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn slice(&mut self, x: ValueId, axis: usize, start: usize, end: usize) -> Result<ValueId, OpError> {
        if start == 0 && end == self.shape(x)[axis] {
            return Ok(x);
        }
        let (start, end, axis) = (self.ints([start as i64])?, self.ints([end as i64])?, self.ints([axis as i64])?);
        self.standard("Slice", [], &[x, start, end, axis])
    }

    /// Tensors one after another along an axis.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> Result<ValueId, OpError> {
        match parts {
            &[only] => Ok(only),
            parts => self.standard("Concat", [("axis", Attr::Int(axis as i64))], parts),
        }
    }

    /// The node that makes a value.
    pub fn producer(&self, v: ValueId) -> Option<&Node> {
        self.graph.nodes.iter().find(|n| n.outputs.contains(&Some(v)))
    }
}
