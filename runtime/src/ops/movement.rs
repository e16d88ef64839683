//! Operators that move elements and compute nothing.
use super::{OpDef, OpError, Origin, for_each_strided, need, shape_is_known, strides_of};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Data, Tensor};

/// The value itself.
pub(super) static IDENTITY: OpDef = OpDef {
    name: "Identity",
    doc: "the value itself; changes of element type keep it where the new type can hold it",
    origin: Origin::Core,
    shape: shape_is_known,
    reference: |_, inputs, _| Ok(vec![need(inputs, 0, "input")?.clone()]),
    lower: copy_lower,
};

/// The same elements under the planned shape.
pub(super) static RESHAPE: OpDef = OpDef {
    name: "Reshape",
    doc: "the same elements in the same order under another shape",
    origin: Origin::Core,
    shape: shape_is_known,
    reference: |_, inputs, shapes| Ok(vec![need(inputs, 0, "data")?.clone().reshaped(&shapes[0])?]),
    lower: copy_lower,
};

struct Copy;

impl Kernel for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        writes.bytes(0).copy_from_slice(reads.bytes(0));
    }
}

fn copy_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let same: bool = l.shape(0)?.iter().product::<usize>() == l.output_shape(0).iter().product::<usize>();
    Ok(same.then(|| Lowered::new(Copy, vec![0])))
}

/// Axes in another order; attribute `perm`.
pub(super) static TRANSPOSE: OpDef = OpDef {
    name: "Transpose",
    doc: "axes in another order: output axis i is input axis perm[i]",
    origin: Origin::Core,
    shape: shape_is_known,
    reference: |attrs, inputs, shapes| {
        let x = need(inputs, 0, "data")?;
        let perm = permutation(attrs.ints("perm")?, x.shape().len())?;
        let own = strides_of(x.shape());
        let strides: Vec<usize> = perm.iter().map(|&p| own[p]).collect();
        gathered(x, 0, &strides, &shapes[0])
    },
    lower: |l| {
        let perm = permutation(l.attrs.ints("perm")?, l.shape(0)?.len())?;
        let own = strides_of(l.shape(0)?);
        strided_lower(l, 0, perm.iter().map(|&p| own[p]).collect())
    },
};

fn permutation(perm: Option<&[i64]>, rank: usize) -> Result<Vec<usize>, OpError> {
    let wrong = |why: String| OpError::Attribute { name: "perm".into(), why };
    let Some(perm) = perm else { return Ok((0..rank).rev().collect()) };
    let mut seen = vec![false; rank];
    for &p in perm {
        let p = usize::try_from(p).ok().filter(|&p| p < rank && !seen[p]);
        let p = p.ok_or_else(|| wrong(format!("{perm:?} is no permutation of {rank} axes")))?;
        seen[p] = true;
    }
    if perm.len() != rank {
        return Err(wrong(format!("{perm:?} has not {rank} entries")));
    }
    Ok(perm.iter().map(|&p| p as usize).collect())
}

/// A contiguous part of one axis; attributes `axis`, `start`; the length is the planned one.
pub(super) static SLICE: OpDef = OpDef {
    name: "Slice",
    doc: "a contiguous part of one axis",
    origin: Origin::Core,
    shape: shape_is_known,
    reference: |attrs, inputs, shapes| {
        let x = need(inputs, 0, "data")?;
        let (axis, start) = (attrs.int("axis", 0)? as usize, attrs.int("start", 0)? as usize);
        let strides = strides_of(x.shape());
        if axis >= strides.len() || start + shapes[0][axis] > x.shape()[axis] {
            return Err(OpError::Shape {
                what: format!("slice of axis {axis} from {start}"),
                expected: format!("{} elements", shapes[0][axis]),
                found: format!("{:?}", x.shape()),
            });
        }
        gathered(x, start * strides[axis], &strides, &shapes[0])
    },
    lower: |l| {
        let (axis, start) = (l.attrs.int("axis", 0)? as usize, l.attrs.int("start", 0)? as usize);
        let strides = strides_of(l.shape(0)?);
        if axis >= strides.len() || start + l.output_shape(0)[axis] > l.shape(0)?[axis] {
            return Ok(None);
        }
        strided_lower(l, start * strides[axis], strides)
    },
};

/// Broadcast to the planned shape.
pub(super) static EXPAND: OpDef = OpDef {
    name: "Expand",
    doc: "repeated along axes of length one (NumPy broadcasting)",
    origin: Origin::Core,
    shape: shape_is_known,
    reference: |_, inputs, shapes| {
        let x = need(inputs, 0, "input")?;
        gathered(x, 0, &super::broadcast_index(x.shape(), &shapes[0]), &shapes[0])
    },
    lower: |l| strided_lower(l, 0, super::broadcast_index(l.shape(0)?, l.output_shape(0))),
};

fn gathered(x: &Tensor, base: usize, strides: &[usize], shape: &[usize]) -> Result<Vec<Tensor>, OpError> {
    macro_rules! take {
        ($variant:ident, $v:expr) => {{
            let mut out = Vec::with_capacity(shape.iter().product());
            for_each_strided(base, strides, shape, |i| out.push($v[i]));
            Data::$variant(out)
        }};
    }
    let data = match x.data() {
        Data::F32(v) => take!(F32, v),
        Data::F16(v) => take!(F16, v),
        Data::F64(v) => take!(F64, v),
        Data::I8(v) => take!(I8, v),
        Data::U8(v) => take!(U8, v),
        Data::I32(v) => take!(I32, v),
        Data::I64(v) => take!(I64, v),
        Data::Bool(v) => take!(Bool, v),
    };
    Ok(vec![Tensor::new(shape, data)?])
}

/// Copies runs of elements whose source positions were worked out when the plan was made.
struct Runs {
    /// Source byte offset of each run of the output.
    sources: Vec<u32>,
    run_bytes: usize,
    name: &'static str,
}

impl Kernel for Runs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (src, dst) = (reads.bytes(0), writes.bytes(0));
        for (&s, d) in self.sources.iter().zip(dst.chunks_exact_mut(self.run_bytes)) {
            d.copy_from_slice(&src[s as usize..][..self.run_bytes]);
        }
    }
}

fn strided_lower(l: &Lowering<'_>, base: usize, strides: Vec<usize>) -> Result<Option<Lowered>, OpError> {
    let shape = l.output_shape(0);
    let Some(dtype) = l.dtype(0) else { return Ok(None) };
    // The trailing axes that are contiguous in both source and output make one run.
    let mut run = 1;
    let mut rank = shape.len();
    while rank > 0 && (shape[rank - 1] == 1 || strides[rank - 1] == run) {
        run *= shape[rank - 1];
        rank -= 1;
    }
    // One entry a run: beyond this many the list would outweigh what it saves.
    if shape[..rank].iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none_or(|n| n > 1 << 26) {
        return Ok(None);
    }
    let mut sources = Vec::new();
    for_each_strided(base, &strides[..rank], &shape[..rank], |i| {
        sources.push(u32::try_from(i * dtype.size_bytes()).unwrap_or(u32::MAX));
    });
    if sources.contains(&u32::MAX) || run == 0 {
        return Ok(None);
    }
    Ok(Some(Lowered::new(Runs { sources, run_bytes: run * dtype.size_bytes(), name: "strided-copy" }, vec![0])))
}

/// Tensors one after another along an axis; attribute `axis`.
pub(super) static CONCAT: OpDef = OpDef {
    name: "Concat",
    doc: "tensors one after another along one axis",
    origin: Origin::Core,
    shape: shape_is_known,
    reference: |attrs, inputs, shapes| {
        let axis = attrs.int("axis", 0)? as usize;
        let parts: Vec<&Tensor> = inputs.iter().copied().flatten().collect();
        let first = need(inputs, 0, "inputs")?;
        let outer: usize = shapes[0][..axis].iter().product();
        macro_rules! join {
            ($variant:ident) => {{
                let mut out = Vec::with_capacity(shapes[0].iter().product());
                for o in 0..outer {
                    for p in &parts {
                        let Data::$variant(v) = p.data() else {
                            return Err(OpError::Unsupported { what: "Concat of different element types".into() });
                        };
                        let run = v.len() / outer.max(1);
                        out.extend_from_slice(&v[o * run..][..run]);
                    }
                }
                Data::$variant(out)
            }};
        }
        let data = match first.dtype() {
            DType::F32 => join!(F32),
            DType::F16 => join!(F16),
            DType::F64 => join!(F64),
            DType::I8 => join!(I8),
            DType::U8 => join!(U8),
            DType::I32 => join!(I32),
            DType::I64 => join!(I64),
            DType::Bool => join!(Bool),
        };
        Ok(vec![Tensor::new(&shapes[0], data)?])
    },
    lower: |l| {
        let axis = l.attrs.int("axis", 0)? as usize;
        let outer: usize = l.output_shape(0)[..axis].iter().product();
        Ok(Some(Lowered::new(Join { outer, parts: l.inputs() }, (0..l.inputs()).collect())))
    },
};

struct Join {
    outer: usize,
    parts: usize,
}

impl Kernel for Join {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let out = writes.bytes(0);
        let mut at = 0;
        for o in 0..self.outer {
            for p in 0..self.parts {
                let src = reads.bytes(p);
                let run = src.len() / self.outer;
                out[at..at + run].copy_from_slice(&src[o * run..][..run]);
                at += run;
            }
        }
    }
}

/// Slices of `data` chosen by integer `indices` along `axis`.
pub(super) static GATHER: OpDef = OpDef {
    name: "Gather",
    doc: "slices of the first operand chosen by integer indices along one axis; negative indices count from the end",
    origin: Origin::Core,
    shape: shape_is_known,
    reference: |attrs, inputs, shapes| {
        let (x, indices) = (need(inputs, 0, "data")?, need(inputs, 1, "indices")?);
        let axis = attrs.int("axis", 0)? as usize;
        let (outer, len, inner) = split_at(x.shape(), axis);
        let indices: Vec<i64> = match indices.data() {
            Data::I64(v) => v.clone(),
            Data::I32(v) => v.iter().map(|&i| i64::from(i)).collect(),
            other => return Err(OpError::Unsupported { what: format!("indices of {}", other.dtype()) }),
        };
        let mut sources = Vec::with_capacity(outer * indices.len() * inner);
        for o in 0..outer {
            for &i in &indices {
                let at = if i < 0 { i + len as i64 } else { i };
                if at < 0 || at >= len as i64 {
                    return Err(OpError::Shape {
                        what: format!("index {i}"),
                        expected: format!("-{len}..{len}"),
                        found: i.to_string(),
                    });
                }
                sources.extend((0..inner).map(|j| (o * len + at as usize) * inner + j));
            }
        }
        macro_rules! take {
            ($($variant:ident),*) => {
                match x.data() { $(Data::$variant(v) => Data::$variant(sources.iter().map(|&i| v[i]).collect()),)* }
            };
        }
        let data = take!(F32, F16, F64, I8, U8, I32, I64, Bool);
        Ok(vec![Tensor::new(&shapes[0], data)?])
    },
    // An index out of range must be an error that names the node, which a kernel cannot give.
    lower: super::no_kernel,
};

fn split_at(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}
