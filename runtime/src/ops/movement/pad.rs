//! Elements with a border around them, or with their edges cut off.
use hone_gpu::copy as gpu;
use hone_kernels::strided::{Axis, Layout};

use super::operands::{Facts, Operands, Tensors};
use crate::autodiff::Backward;
use crate::graph::ValueId;
use crate::ops::shape::{axes_of, elements};
use crate::ops::{Attr, Attrs, Fact, MICROSOFT, OpDef, OpError, need, record, strides_of};
use crate::plan::{Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{Data, Tensor};

/// `Pad`: elements added (or with negative numbers cut off) at both ends of each axis.
pub(super) static PAD: OpDef =
    OpDef::new("Pad", "a border of a constant, or of the tensor's own elements, around it", pad_rule, pad)
        .kernel(pad_lower)
        .gpu(pad_record)
        .vjp(pad_vjp);

/// ONNX Runtime's `Pad`, whose pads were an input before the standard's were.
pub(super) static PAD_MICROSOFT: OpDef =
    OpDef::new("Pad", "a border of a constant, or of the tensor's own elements, around it", pad_rule, pad)
        .kernel(pad_lower)
        .gpu(pad_record)
        .domain(MICROSOFT)
        .vjp(pad_vjp);

/// Of a border of a constant, the gradient of the inside; else what was copied to the border is gathered along each axis.
fn pad_vjp(b: &mut Backward<'_>) -> Result<(), OpError> {
    if b.wants(2) {
        let dy = b.dy()?;
        let whole: Vec<usize> = (0..b.shape(dy).len()).collect();
        let sum = b.sum(dy, &whole)?;
        let facts = operand_facts(b);
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let border = Border::of_pad(&Facts(&b.attrs(), &refs))?;
        let inside = match border {
            Some(border) if border.mode == Mode::Constant => inner(b, dy, &border)?,
            _ => return Err(OpError::unsupported("a gradient by the constant of a border that is none")),
        };
        let inside = b.sum(inside, &whole)?;
        let shape = b.x_shape(2)?;
        let g = b.sub(sum, inside)?;
        let g = b.reshape(g, &shape)?;
        b.give(2, g);
    }
    unpadded(b, |o| Border::of_pad(o))
}

fn operand_facts(b: &Backward<'_>) -> Vec<Option<Fact>> {
    b.operands().iter().map(|v| v.map(|v| b.fact(v).clone())).collect()
}

/// The part of `dy` the operand is in, with zeros where the operand was cut.
fn inner(b: &mut Backward<'_>, dy: ValueId, border: &Border) -> Result<ValueId, OpError> {
    let shape = b.x_shape(0)?;
    let before = border.edges.iter().map(|e| e.start as i64 - e.before as i64);
    let after = border.edges.iter().zip(&shape).map(|(e, &d)| (d - e.start - e.kept) as i64 - e.after as i64);
    let pads = b.ints(before.chain(after).collect::<Vec<_>>())?;
    b.standard("Pad", [], &[dy, pads])
}

fn unpadded(
    b: &mut Backward<'_>,
    border: impl Fn(&dyn Operands) -> Result<Option<Border>, OpError>,
) -> Result<(), OpError> {
    if !b.wants(0) {
        return Ok(());
    }
    let facts = operand_facts(b);
    let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let border = border(&Facts(&b.attrs(), &refs))?.ok_or_else(|| OpError::unsupported("pads that depend on data"))?;
    if border.mode == Mode::Constant {
        let dy = b.dy()?;
        let dx = inner(b, dy, &border)?;
        b.give(0, dx);
        return Ok(());
    }
    b.through(|b| {
        let mut x = b.x(0)?;
        for (axis, edge) in border.edges.iter().enumerate() {
            let at: Vec<i64> = edge.sources(border.mode).into_iter().flatten().map(|i| i as i64).collect();
            let at = b.ints(at)?;
            x = b.standard("Gather", [("axis", Attr::Int(axis as i64))], &[x, at])?;
        }
        Ok(vec![x])
    })
}

fn pad_rule(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "data")?;
    Ok(Border::of_pad(&Facts(attrs, inputs))?.map(|b| vec![Fact::new(x.dtype, b.shape())]))
}

fn pad(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let o = Tensors(attrs, inputs);
    let border = Border::of_pad(&o)?.ok_or_else(|| OpError::unsupported("pads without a value"))?;
    let fill = pad_value(&o)?.ok_or_else(|| OpError::unsupported("a constant without a value"))?;
    Ok(vec![border.around(need(inputs, 0, "data")?, &fill)?])
}

fn pad_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (Some(border), Some(fill)) = (Border::of_pad(l)?, pad_value(l)?) else { return Ok(None) };
    border.lower(l, &fill)
}

fn pad_record(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let (Some(border), Some(fill), Some(dtype)) = (Border::of_pad(l)?, pad_value(l)?, l.dtype(0)) else {
        return Ok(None);
    };
    let from = l.shape(0)?;
    let (own, there) = (strides_of(from), strides_of(&border.shape()));
    let axis = |a: usize| {
        let e = &border.edges[a];
        gpu::Axis { len: e.len(), from: own[a] as isize, to: there[a], before: e.before as isize, kept: e.kept }
    };
    let outside = match border.mode {
        Mode::Constant => {
            let mut bytes = [0; 8];
            let value = fill.as_bytes();
            if value.len() > 8 {
                return Ok(None);
            }
            bytes[..value.len()].copy_from_slice(value);
            gpu::Border::Fill(bytes)
        }
        Mode::Edge => gpu::Border::Edge,
        Mode::Reflect => gpu::Border::Reflect,
        Mode::Wrap => gpu::Border::Wrap,
    };
    let base = border.edges.iter().zip(&own).map(|(e, s)| e.start * s).sum::<usize>() as isize;
    let axes = (0..from.len()).map(axis).collect();
    let copy = gpu::Copy { unit: dtype.size_bytes(), base, to: 0, axes, border: outside };
    Ok(if border.shape() == l.output_shape(0) { record::copied(&copy) } else { None })
}

/// What a constant border is made of, as data of one element. `None` when it is not known.
fn pad_value(o: &dyn Operands) -> Result<Option<Data>, OpError> {
    let Some(dtype) = o.dtype(0) else { return Err(OpError::MissingInput { index: 0, name: "data" }) };
    match (o.dtype(2), o.value(2)) {
        (Some(_), None) => Ok(None),
        (Some(_), Some(t)) if t.len() == 1 && t.dtype() == dtype => Ok(Some(t.data().clone())),
        // An empty tensor stands for an absent one in some exporters.
        (Some(_), Some(t)) if !t.is_empty() => {
            Err(OpError::shape("constant_value", format!("one {dtype}"), format!("{} {:?}", t.dtype(), t.shape())))
        }
        _ => Ok(Some(Data::from_f64(dtype, &[f64::from(o.attrs().float("value", 0.0)?)]))),
    }
}

/// The elements before and after each axis of a `Pad` with those operands, when they are known and zeros around the whole of the operand.
pub(crate) fn border_of_zeros(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Option<Vec<(usize, usize)>> {
    let operands = Facts(attrs, inputs);
    let shape = operands.shape(0, "data").ok()?;
    let border = Border::of_pad(&operands).ok()??;
    let zero = pad_value(&operands).ok()??.to_f64() == [0.0];
    let whole = border.edges.iter().zip(shape).all(|(e, d)| e.kept == *d);
    let edges = border.edges.iter().map(|e| (e.before, e.after)).collect();
    (zero && whole && border.mode == Mode::Constant).then_some(edges)
}

/// `CenterCropPad`: each named axis cut or padded with zeros on both sides to the given length.
pub(super) static CENTER_CROP_PAD: OpDef = OpDef::new(
    "CenterCropPad",
    "cut or padded with zeros around the middle to the given lengths",
    |attrs, inputs| {
        let x = need(inputs, 0, "input_data")?;
        Ok(Border::of_center(&Facts(attrs, inputs))?.map(|b| vec![Fact::new(x.dtype, b.shape())]))
    },
    |attrs, inputs| {
        let x = need(inputs, 0, "input_data")?;
        let border = Border::of_center(&Tensors(attrs, inputs))?;
        let border = border.ok_or_else(|| OpError::unsupported("a shape without a value"))?;
        Ok(vec![border.around(x, &Data::zeros(x.dtype(), 1))?])
    },
)
.kernel(|l| match (Border::of_center(l)?, l.dtype(0)) {
    (Some(border), Some(dtype)) => border.lower(l, &Data::zeros(dtype, 1)),
    _ => Ok(None),
})
.vjp(|b| unpadded(b, |o| Border::of_center(o)));

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Constant,
    Edge,
    Reflect,
    Wrap,
}

/// One axis of a border: what is kept of the operand, and how much is put before and after it.
#[derive(Clone, Copy)]
struct Edge {
    /// First kept index.
    start: usize,
    /// Kept indices.
    kept: usize,
    before: usize,
    after: usize,
}

impl Edge {
    /// `before` and `after` elements more, or fewer where negative, than `dim`.
    fn new(dim: usize, before: i64, after: i64) -> Option<Edge> {
        let cut = |v: i64| usize::try_from(-v.min(0)).ok();
        let more = |v: i64| usize::try_from(v.max(0)).ok();
        // i64::MIN has no negative.
        let (before, after) = (before.max(-i64::MAX), after.max(-i64::MAX));
        let kept = dim.checked_sub(cut(before)?)?.checked_sub(cut(after)?)?;
        let edge = Edge { start: cut(before)?, kept, before: more(before)?, after: more(after)? };
        edge.before.checked_add(kept)?.checked_add(edge.after)?;
        Some(edge)
    }

    fn len(&self) -> usize {
        self.before + self.kept + self.after
    }

    /// The operand's index at each place of the result; `None` in a constant border.
    fn sources(&self, mode: Mode) -> Vec<Option<usize>> {
        let n = self.kept as i128;
        let of = |i: i128| match mode {
            Mode::Constant => (0..n).contains(&i).then_some(i),
            Mode::Edge => Some(i.clamp(0, n - 1)),
            Mode::Wrap => Some(i.rem_euclid(n)),
            // Without repeating the edge, as often as it takes.
            Mode::Reflect if n == 1 => Some(0),
            Mode::Reflect => {
                let at = i.rem_euclid(2 * n - 2);
                Some(if at < n { at } else { 2 * n - 2 - at })
            }
        };
        (0..self.len()).map(|i| of(i as i128 - self.before as i128).map(|i| self.start + i as usize)).collect()
    }
}

/// A border around a tensor.
struct Border {
    mode: Mode,
    edges: Vec<Edge>,
}

impl Border {
    fn of_pad(o: &dyn Operands) -> Result<Option<Border>, OpError> {
        let (attrs, from) = (o.attrs(), o.shape(0, "data")?);
        let mode = match attrs.str("mode", "constant")? {
            "constant" => Mode::Constant,
            "edge" => Mode::Edge,
            "reflect" => Mode::Reflect,
            "wrap" => Mode::Wrap,
            other => return Err(OpError::attribute("mode", format!("{other} is not one of ONNX's"))),
        };
        let name = if attrs.has("paddings") { "paddings" } else { "pads" };
        let (Some(pads), Some(axes)) = (o.list(1, name)?, o.list(3, "axes")?) else { return Ok(None) };
        let pads = pads.ok_or(OpError::MissingInput { index: 1, name: "pads" })?;
        let axes = axes_of(&axes.unwrap_or_else(|| (0..from.len() as i64).collect()), from.len())?;
        if pads.len() != 2 * axes.len() {
            return Err(OpError::shape("pads", format!("{} numbers", 2 * axes.len()), &pads));
        }
        let mut border = Border::none(from, mode);
        for (i, &a) in axes.iter().enumerate() {
            border.set(a, from[a], pads[i], pads[i + axes.len()])?;
        }
        border.checked()
    }

    fn of_center(o: &dyn Operands) -> Result<Option<Border>, OpError> {
        let from = o.shape(0, "input_data")?;
        let Some(shape) = o.list(1, "shape")? else { return Ok(None) };
        let shape = shape.ok_or(OpError::MissingInput { index: 1, name: "shape" })?;
        let axes = match o.attrs().ints("axes")? {
            Some(axes) => axes_of(axes, from.len())?,
            None => (0..from.len()).collect(),
        };
        if shape.len() != axes.len() {
            return Err(OpError::shape("shape", format!("{} numbers", axes.len()), &shape));
        }
        let mut border = Border::none(from, Mode::Constant);
        for (&a, &want) in axes.iter().zip(&shape) {
            if want < 0 {
                return Err(OpError::shape("shape", "lengths that are not negative", &shape));
            }
            // What cannot be shared out evenly is at the end, cut or added.
            let more = want - from[a] as i64;
            border.set(a, from[a], more / 2, more - more / 2)?;
        }
        border.checked()
    }

    fn none(from: &[usize], mode: Mode) -> Border {
        Border { mode, edges: from.iter().map(|&kept| Edge { start: 0, kept, before: 0, after: 0 }).collect() }
    }

    fn set(&mut self, axis: usize, dim: usize, before: i64, after: i64) -> Result<(), OpError> {
        let edge = Edge::new(dim, before, after);
        self.edges[axis] = edge.ok_or_else(|| {
            OpError::shape(format!("pads of axis {axis}"), format!("at most {dim} cut"), (before, after))
        })?;
        Ok(())
    }

    fn checked(self) -> Result<Option<Border>, OpError> {
        elements(&self.shape())?;
        let bare = |e: &Edge| e.kept == 0 && e.before + e.after > 0;
        if self.mode != Mode::Constant
            && let Some(a) = self.edges.iter().position(bare)
        {
            return Err(OpError::shape(format!("axis {a} to pad with its own elements"), "at least one element", 0));
        }
        Ok(Some(self))
    }

    fn shape(&self) -> Vec<usize> {
        self.edges.iter().map(Edge::len).collect()
    }

    fn around(&self, x: &Tensor, fill: &Data) -> Result<Tensor, OpError> {
        let shape = self.shape();
        let n = elements(&shape)?;
        let mut source = vec![Some(0usize)];
        for (edge, stride) in self.edges.iter().zip(strides_of(x.shape())) {
            let own = edge.sources(self.mode);
            source = source.iter().flat_map(|s| own.iter().map(move |o| Some((*s)? + (*o)? * stride))).collect();
        }
        source.truncate(n);
        Ok(Tensor::new(&shape, x.data().pick_or(&source, fill))?)
    }

    fn lower(&self, l: &Lowering<'_>, fill: &Data) -> Result<Option<Lowered>, OpError> {
        let (Some(dtype), from) = (l.dtype(0), l.shape(0)?) else { return Ok(None) };
        let (unit, shape) = (dtype.size_bytes(), self.shape());
        if shape != l.output_shape(0) {
            return Ok(None);
        }
        let (own, there) = (strides_of(from), strides_of(&shape));
        // Whether an axis has no border.
        let whole = |a: &usize| self.edges[*a].kept == from[*a] && self.edges[*a].len() == from[*a];
        if self.mode == Mode::Constant || self.edges.iter().all(|e| e.before + e.after == 0) {
            // Leading axes without a border are slabs, each for itself.
            let lead = (0..from.len().saturating_sub(1)).take_while(whole).count();
            let (edges, own, there) = (&self.edges[lead..], &own[lead..], &there[lead..]);
            let axes: Vec<Axis> = (0..edges.len())
                .map(|a| Axis { len: edges[a].kept, from: own[a] as isize, to: there[a] as isize })
                .collect();
            let empty = edges.iter().any(|e| e.kept == 0);
            let at = |f: fn(&Edge) -> usize, strides: &[usize]| match empty {
                true => 0,
                false => edges.iter().zip(strides).map(|(e, s)| f(e) * s).sum(),
            };
            let layout = Layout::new(unit, at(|e| e.start, own), at(|e| e.before, there), &axes);
            let bordered = edges.iter().any(|e| e.before + e.after > 0);
            let fill = if bordered { fill.as_bytes().to_vec() } else { Vec::new() };
            let bytes = |lengths: &[usize]| unit * lengths[lead..].iter().product::<usize>();
            let slab = (bytes(from), bytes(&shape));
            return Ok(layout.map(|inner| Lowered::new(Framed { fill, inner, slab }, vec![0])));
        }
        // Trailing axes without a border move as one block.
        let rank = (0..from.len()).rev().find(|a| !whole(a)).map_or(0, |a| a + 1);
        let Some(last) = rank.checked_sub(1) else { return Ok(None) };
        let block = own[last] * unit;
        let mut rows = vec![0usize];
        for a in 0..last {
            let (sources, stride) = (self.edges[a].sources(self.mode), own[a] * unit);
            rows = rows.iter().flat_map(|r| sources.iter().flatten().map(move |s| r + s * stride)).collect();
        }
        let edge = self.edges[last];
        let columns: Vec<usize> = edge.sources(self.mode).into_iter().flatten().map(|s| s * block).collect();
        Ok(Some(Lowered::new(Mirrored { rows, columns, edge, block }, vec![0])))
    }
}

/// Bytes written below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;

/// In every slab one value everywhere, then the tensor in its place.
struct Framed {
    /// Bytes of the value; empty when there is no border.
    fill: Vec<u8>,
    inner: Layout,
    /// Bytes of a slab of the tensor and of the result.
    slab: (usize, usize),
}

impl Kernel for Framed {
    fn name(&self) -> &'static str {
        "pad-constant"
    }

    fn run(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let (x, y, (of, to)) = (reads.bytes(0), writes.bytes(0), self.slab);
        if to == 0 {
            return;
        }
        let piece = pool.share(y.len(), to, WORTH_SHARING);
        pool.pieces(y, piece, |i, y| {
            for (k, y) in y.chunks_exact_mut(to).enumerate() {
                fill_bytes(&self.fill, y);
                self.inner.copy(&x[(i * piece / to + k) * of..][..of], y);
            }
        });
    }
}

/// `value` again and again; nothing when it is empty.
pub(super) fn fill_bytes(value: &[u8], out: &mut [u8]) {
    match value {
        [] => {}
        [first, rest @ ..] if rest.iter().all(|b| b == first) => out.fill(*first),
        _ => out.chunks_exact_mut(value.len()).for_each(|o| o.copy_from_slice(value)),
    }
}

/// The same bytes in every run.
pub(super) struct Stored(pub(super) Vec<u8>);

impl Kernel for Stored {
    fn name(&self) -> &'static str {
        "stored"
    }

    fn run(&self, io: &mut Io<'_>) {
        io.split().1.bytes(0).copy_from_slice(&self.0);
    }
}

/// Rows of the tensor, each with a border of its own blocks.
struct Mirrored {
    /// First byte of the source row of each row of the result.
    rows: Vec<usize>,
    /// Bytes to go in the source row to each block of a row of the result.
    columns: Vec<usize>,
    edge: Edge,
    /// Bytes that move together.
    block: usize,
}

impl Kernel for Mirrored {
    fn name(&self) -> &'static str {
        "pad-own"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (x, mut y) = (reads.bytes(0), writes.bytes(0));
        let block = self.block;
        let (before, kept) = (self.edge.before, self.edge.kept);
        for &row in &self.rows {
            let (here, rest) = y.split_at_mut(self.columns.len() * block);
            y = rest;
            let (left, inner) = here.split_at_mut(before * block);
            let (inner, right) = inner.split_at_mut(kept * block);
            let first = row + self.edge.start * block;
            inner.copy_from_slice(&x[first..first + inner.len()]);
            let border = |columns: &[usize], out: &mut [u8]| {
                for (&c, o) in columns.iter().zip(out.chunks_exact_mut(block.max(1))) {
                    o.copy_from_slice(&x[row + c..][..block]);
                }
            };
            border(&self.columns[..before], left);
            border(&self.columns[before + kept..], right);
        }
    }
}
