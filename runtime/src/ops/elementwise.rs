//! Elementwise operators: arithmetic with NumPy broadcasting, and activations.
use super::{Attrs, Fact, Lower, OpDef, OpError, Origin, need, shape_is_known, strides_of};
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Data, Tensor};

macro_rules! binary {
    ($konst:ident, $name:literal, $doc:literal, $f32:expr, $i64:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef = OpDef {
            name: $name,
            doc: $doc,
            origin: Origin::Core,
            shape: shape_is_known,
            reference: |_, inputs, shapes| binary_reference(inputs, &shapes[0], $f32, $i64),
            lower: |l| binary_lower(l, $name, $f32),
        };
    };
}

binary!(ADD, "Add", "a + b, broadcast", |a, b| a + b, i64::checked_add);
binary!(SUB, "Sub", "a - b, broadcast", |a, b| a - b, i64::checked_sub);
binary!(MUL, "Mul", "a * b, broadcast", |a, b| a * b, i64::checked_mul);
binary!(DIV, "Div", "a / b, broadcast; integers truncate", |a, b| a / b, i64::checked_div);
binary!(MIN, "Min", "the smaller, broadcast; NaN wins", nan_min, |a, b| Some(a.min(b)));
binary!(MAX, "Max", "the larger, broadcast; NaN wins", nan_max, |a, b| Some(a.max(b)));
binary!(POW, "Pow", "a to the power b, broadcast", f32::powf, |a: i64, b: i64| {
    u32::try_from(b).ok().and_then(|b| a.checked_pow(b))
});

fn nan_min(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.min(b) }
}

fn nan_max(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

/// For an operand of `shape` broadcast to `to` (NumPy rules, aligned at the end): the element offset to add per step of
/// each output axis; 0 on broadcast axes.
pub fn broadcast_index(shape: &[usize], to: &[usize]) -> Vec<usize> {
    let own = strides_of(shape);
    let lead = to.len() - shape.len();
    (0..to.len()).map(|i| if i < lead || shape[i - lead] == 1 { 0 } else { own[i - lead] }).collect()
}

/// Calls `f(output index, index in a, index in b)` over `shape`.
fn for_each_pair(shape: &[usize], sa: &[usize], sb: &[usize], mut f: impl FnMut(usize, usize, usize)) {
    let rank = shape.len();
    if rank == 0 {
        return f(0, 0, 0);
    }
    let n: usize = shape.iter().product();
    if n == 0 {
        return;
    }
    let inner = shape[rank - 1];
    let mut at = [0usize; 8];
    let (mut ia, mut ib, mut o) = (0, 0, 0);
    loop {
        for j in 0..inner {
            f(o + j, ia + j * sa[rank - 1], ib + j * sb[rank - 1]);
        }
        o += inner;
        if o == n {
            return;
        }
        for ax in (0..rank - 1).rev() {
            at[ax] += 1;
            ia += sa[ax];
            ib += sb[ax];
            if at[ax] < shape[ax] {
                break;
            }
            ia -= sa[ax] * at[ax];
            ib -= sb[ax] * at[ax];
            at[ax] = 0;
        }
    }
}

fn binary_reference(
    inputs: &[Option<&Tensor>],
    shape: &[usize],
    f: fn(f32, f32) -> f32,
    fi: fn(i64, i64) -> Option<i64>,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (need(inputs, 0, "A")?, need(inputs, 1, "B")?);
    if shape.len() > 8 {
        return Err(OpError::Unsupported { what: format!("arithmetic on rank {}", shape.len()) });
    }
    let (sa, sb) = (broadcast_index(a.shape(), shape), broadcast_index(b.shape(), shape));
    let n: usize = shape.iter().product();
    match (a.data(), b.data()) {
        (Data::F32(x), Data::F32(y)) => {
            let mut out = vec![0.0; n];
            for_each_pair(shape, &sa, &sb, |o, i, j| out[o] = f(x[i], y[j]));
            Ok(vec![Tensor::f32(shape, out)?])
        }
        (Data::I64(x), Data::I64(y)) => {
            let mut out = vec![0; n];
            let mut bad = false;
            for_each_pair(shape, &sa, &sb, |o, i, j| match fi(x[i], y[j]) {
                Some(v) => out[o] = v,
                None => bad = true,
            });
            if bad {
                return Err(OpError::Unsupported {
                    what: "integer arithmetic that overflows or divides by zero".into(),
                });
            }
            Ok(vec![Tensor::i64(shape, out)?])
        }
        (a, b) => Err(OpError::Unsupported { what: format!("arithmetic on {} and {}", a.dtype(), b.dtype()) }),
    }
}

struct Binary {
    f: fn(f32, f32) -> f32,
    name: &'static str,
    shape: Vec<usize>,
    sa: Vec<usize>,
    sb: Vec<usize>,
    same: bool,
}

impl Kernel for Binary {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        let (x, y, out) = (reads.f32(0), reads.f32(1), writes.f32(0));
        let f = self.f;
        if self.same {
            for ((o, a), b) in out.iter_mut().zip(x).zip(y) {
                *o = f(*a, *b);
            }
        } else {
            for_each_pair(&self.shape, &self.sa, &self.sb, |o, i, j| out[o] = f(x[i], y[j]));
        }
    }
}

fn binary_lower(l: &Lowering<'_>, name: &'static str, f: fn(f32, f32) -> f32) -> Result<Option<Lowered>, OpError> {
    if l.dtype(0) != Some(DType::F32) || l.dtype(1) != Some(DType::F32) || l.output_shape(0).len() > 8 {
        return Ok(None);
    }
    let (a, b, shape) = (l.shape(0)?, l.shape(1)?, l.output_shape(0));
    let k = Binary {
        f,
        name,
        shape: shape.to_vec(),
        sa: broadcast_index(a, shape),
        sb: broadcast_index(b, shape),
        same: a == shape && b == shape,
    };
    Ok(Some(Lowered::new(k, vec![0, 1])))
}

macro_rules! unary {
    ($konst:ident, $name:literal, $doc:literal, $make:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef = OpDef {
            name: $name,
            doc: $doc,
            origin: Origin::Onnx,
            shape: same_as_input,
            reference: |attrs, inputs, _| {
                let f = ($make)(attrs)?;
                let x = need(inputs, 0, "X")?;
                Ok(vec![Tensor::f32(x.shape(), x.as_f32()?.iter().map(|&v| f(v)).collect())?])
            },
            lower: (|l: &Lowering<'_>| {
                if l.dtype(0) != Some(DType::F32) {
                    return Ok(None);
                }
                let f = ($make)(l.attrs)?;
                Ok(Some(Lowered::new(Unary { name: $name, f: Box::new(f) }, vec![0])))
            }) as Lower,
        };
    };
}

fn same_as_input(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let x = need(inputs, 0, "X")?;
    Ok(vec![Fact::new(x.dtype, x.shape.clone())])
}

struct Unary {
    name: &'static str,
    f: Box<dyn Fn(f32) -> f32 + Send + Sync>,
}

impl Kernel for Unary {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        for (o, &x) in writes.f32(0).iter_mut().zip(reads.f32(0)) {
            *o = (self.f)(x);
        }
    }
}

type Made<F> = Result<F, OpError>;

unary!(RELU, "Relu", "max(x, 0)", |_: &Attrs| -> Made<_> { Ok(|x: f32| if x < 0.0 { 0.0 } else { x }) });
unary!(LEAKY_RELU, "LeakyRelu", "x below zero is multiplied by alpha", |a: &Attrs| -> Made<_> {
    let alpha = a.float("alpha", 0.01)?;
    Ok(move |x: f32| if x < 0.0 { alpha * x } else { x })
});
unary!(SIGMOID, "Sigmoid", "1 / (1 + exp(-x))", |_: &Attrs| -> Made<_> { Ok(hone_kernels::activation::sigmoid) });
unary!(TANH, "Tanh", "hyperbolic tangent", |_: &Attrs| -> Made<_> { Ok(hone_kernels::activation::tanh) });
unary!(HARD_SIGMOID, "HardSigmoid", "clamp(alpha x + beta, 0, 1)", |a: &Attrs| -> Made<_> {
    let (alpha, beta) = (a.float("alpha", 0.2)?, a.float("beta", 0.5)?);
    Ok(move |x: f32| (alpha * x + beta).clamp(0.0, 1.0))
});
unary!(HARD_SWISH, "HardSwish", "x · clamp(x/6 + 1/2, 0, 1)", |_: &Attrs| -> Made<_> {
    Ok(|x: f32| x * (x / 6.0 + 0.5).clamp(0.0, 1.0))
});
unary!(ERF, "Erf", "Gauss error function", |_: &Attrs| -> Made<_> { Ok(hone_kernels::activation::erf) });
unary!(EXP, "Exp", "e to the x", |_: &Attrs| -> Made<_> { Ok(f32::exp) });
unary!(LOG, "Log", "natural logarithm", |_: &Attrs| -> Made<_> { Ok(f32::ln) });
unary!(SQRT, "Sqrt", "square root", |_: &Attrs| -> Made<_> { Ok(f32::sqrt) });
