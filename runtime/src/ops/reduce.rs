//! Reductions over axes that keep their place with length one; attribute `axes`.
use super::{Attrs, OpDef, OpError, Origin, axis_of, for_each_strided, need, shape_is_known, strides_of};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

macro_rules! reduction {
    ($konst:ident, $name:literal, $doc:literal, $init:expr, $fold:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef = OpDef {
            name: $name,
            doc: $doc,
            origin: Origin::Core,
            shape: shape_is_known,
            reference: |attrs, inputs, shapes| {
                let x = need(inputs, 0, "data")?;
                let r = Reduce { name: $name, init: $init, fold: $fold, map: targets(attrs, x.shape())? };
                let mut y = vec![0.0; shapes[0].iter().product()];
                r.over(x.as_f32()?, &mut y);
                Ok(vec![Tensor::f32(&shapes[0], y)?])
            },
            lower: |l: &Lowering<'_>| {
                if l.dtype(0) != Some(DType::F32) {
                    return Ok(None);
                }
                let map = targets(l.attrs, l.shape(0)?)?;
                Ok(Some(Lowered::new(Reduce { name: $name, init: $init, fold: $fold, map }, vec![0])))
            },
        };
    };
}

reduction!(REDUCE_SUM, "ReduceSum", "the sum over axes", 0.0, |a, b| a + b);
reduction!(REDUCE_MAX, "ReduceMax", "the largest over axes", f32::NEG_INFINITY, |a: f32, b: f32| {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
});
reduction!(REDUCE_MIN, "ReduceMin", "the smallest over axes", f32::INFINITY, |a: f32, b: f32| {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.min(b) }
});

/// The output element each run of input elements goes to: `(target, step per element, run length)` is flattened into
/// one index per input element, worked out once.
fn targets(attrs: &Attrs, shape: &[usize]) -> Result<Vec<u32>, OpError> {
    let axes = attrs.ints("axes")?.unwrap_or(&[]);
    let mut kept = shape.to_vec();
    for &a in axes {
        kept[axis_of(a, shape.len())?] = 1;
    }
    let mut strides = strides_of(&kept);
    for (s, &k) in strides.iter_mut().zip(&kept) {
        if k == 1 {
            *s = 0;
        }
    }
    let n: usize = shape.iter().product();
    if u32::try_from(n).is_err() {
        return Err(OpError::Unsupported { what: format!("a reduction of {n} elements") });
    }
    let mut out = Vec::with_capacity(n);
    // `n` fits in 32 bits, so every target does.
    for_each_strided(0, &strides, shape, |i| out.push(i as u32));
    Ok(out)
}

struct Reduce {
    name: &'static str,
    init: f32,
    fold: fn(f32, f32) -> f32,
    map: Vec<u32>,
}

impl Reduce {
    fn over(&self, x: &[f32], y: &mut [f32]) {
        y.fill(self.init);
        for (&v, &t) in x.iter().zip(&self.map) {
            let o = &mut y[t as usize];
            *o = (self.fold)(*o, v);
        }
    }
}

impl Kernel for Reduce {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        self.over(reads.f32(0), writes.f32(0));
    }
}
