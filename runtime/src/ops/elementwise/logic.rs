//! Comparisons, booleans, bits, and choice.
use hone_gpu::functions::function;
use hone_gpu::map::Element;
use hone_kernels::elementwise::zip;

use super::super::shape::{broadcast_all, broadcast_indices};
use super::super::{Attrs, Fact, OpDef, OpError, need, record};
use super::walk::{Walk, mapped, zipped};
use super::{aligned, alike, broadcast_shape, pairs, same_as_input};
use crate::plan::{Io, Kernel, Lowered, Lowering, Recorded};
use crate::tensor::{DType, Data, Tensor};

macro_rules! comparison {
    ($konst:ident, $name:literal, $doc:literal, $op:tt) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef =
            OpDef::new($name, $doc, truth_shape, |attrs, inputs| compare(attrs, inputs, $name, |a, b| a $op b, |a, b| a $op b))
                .kernel(|l| {
                    let (a, b) = (l.shape(0)?, l.shape(1)?);
                    let b = &aligned(l.attrs, a, b)?;
                    match (l.dtype(0), l.dtype(1)) {
                        (Some(DType::F32), Some(DType::F32)) =>
                            zipped::<f32, f32, u8, _>(l, $name, a, b, |a, b| u8::from(a $op b)),
                        (Some(DType::I64), Some(DType::I64)) =>
                            zipped::<i64, i64, u8, _>(l, $name, a, b, |a, b| u8::from(a $op b)),
                        (Some(DType::I32), Some(DType::I32)) =>
                            zipped::<i32, i32, u8, _>(l, $name, a, b, |a, b| u8::from(a $op b)),
                        (Some(DType::Bool | DType::U8), Some(DType::Bool | DType::U8)) =>
                            zipped::<u8, u8, u8, _>(l, $name, a, b, |a, b| u8::from(a $op b)),
                        _ => Ok(None),
                    }
                })
                .gpu(|l| {
                    let (a, b) = (l.shape(0)?, l.shape(1)?);
                    Ok(record::binary(l, $name, a, &aligned(l.attrs, a, b)?))
                });
    };
}

comparison!(EQUAL, "Equal", "a = b", ==);
comparison!(GREATER, "Greater", "a > b", >);
comparison!(GREATER_OR_EQUAL, "GreaterOrEqual", "a ≥ b", >=);
comparison!(LESS, "Less", "a < b", <);
comparison!(LESS_OR_EQUAL, "LessOrEqual", "a ≤ b", <=);

/// The shape rule of operators on two operands, with booleans as results.
fn truth_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    Ok(broadcast_shape(attrs, inputs)?.map(|l| l.into_iter().map(|f| Fact::new(DType::Bool, f.shape)).collect()))
}

fn compare(
    attrs: &Attrs,
    inputs: &[Option<&Tensor>],
    name: &str,
    float: fn(f64, f64) -> bool,
    int: fn(i128, i128) -> bool,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = alike(inputs, name)?;
    let (ia, ib, to) = pairs(attrs, a.shape(), b.shape())?;
    let out = if a.dtype().is_float() {
        let (x, y) = (a.data().to_f64(), b.data().to_f64());
        ia.iter().zip(&ib).map(|(&i, &j)| float(x[i], y[j])).collect()
    } else {
        let (x, y) = (a.data().to_i128(), b.data().to_i128());
        ia.iter().zip(&ib).map(|(&i, &j)| int(x[i], y[j])).collect()
    };
    Ok(vec![Tensor::new(&to, Data::Bool(out))?])
}

macro_rules! boolean {
    ($konst:ident, $name:literal, $doc:literal, $op:tt) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef = OpDef::new($name, $doc, truth_shape, |attrs, inputs| {
            let (a, _) = alike(inputs, $name)?;
            if a.dtype() != DType::Bool {
                return Err(OpError::unsupported(format!("{} of {}", $name, a.dtype())));
            }
            compare(attrs, inputs, $name, |_, _| false, |a, b| (a != 0) $op (b != 0))
        })
        .kernel(|l| {
            let (a, b) = (l.shape(0)?, l.shape(1)?);
            let b = &aligned(l.attrs, a, b)?;
            match (l.dtype(0), l.dtype(1)) {
                (Some(DType::Bool), Some(DType::Bool)) => zipped::<u8, u8, u8, _>(l, $name, a, b, |a, b| a $op b),
                _ => Ok(None),
            }
        })
        .gpu(|l| {
            let (a, b) = (l.shape(0)?, l.shape(1)?);
            let b = aligned(l.attrs, a, b)?;
            let booleans = [0, 1].into_iter().all(|i| l.dtype(i) == Some(DType::Bool));
            let f = function($name).filter(|_| booleans);
            Ok(record::mapped(l, f, vec![], &[(0, a), (1, &b)], Element::U8))
        });
    };
}

boolean!(AND, "And", "both", &);
boolean!(OR, "Or", "either", |);
boolean!(XOR, "Xor", "one and not the other", ^);

/// the other boolean
pub(super) static NOT: OpDef = OpDef::new("Not", "the other boolean", same_as_input, |_, inputs| {
    let x = need(inputs, 0, "X")?;
    match x.data() {
        Data::Bool(v) => Ok(vec![Tensor::new(x.shape(), Data::Bool(v.iter().map(|v| !v).collect()))?]),
        other => Err(OpError::unsupported(format!("Not of {}", other.dtype()))),
    }
})
.kernel(|l| Ok((l.dtype(0) == Some(DType::Bool)).then(|| mapped::<u8, u8, _>("Not", |x| x ^ 1))))
.gpu(|l| {
    let f = function("Not").filter(|_| l.dtype(0) == Some(DType::Bool));
    Ok(record::mapped(l, f, vec![], &[(0, l.shape(0)?)], Element::U8))
});

macro_rules! bitwise {
    ($konst:ident, $name:literal, $doc:literal, $op:tt) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef = OpDef::new($name, $doc, broadcast_shape, |attrs, inputs| {
            integers(attrs, inputs, $name, |a, b| a $op b)
        });
    };
}

bitwise!(BITWISE_AND, "BitwiseAnd", "bits set in both integers", &);
bitwise!(BITWISE_OR, "BitwiseOr", "bits set in either integer", |);
bitwise!(BITWISE_XOR, "BitwiseXor", "bits set in one of two integers", ^);

/// the bits of an integer inverted
pub(super) static BITWISE_NOT: OpDef =
    OpDef::new("BitwiseNot", "the bits of an integer inverted", same_as_input, |_, inputs| {
        let x = need(inputs, 0, "X")?;
        if !x.dtype().is_integer() {
            return Err(OpError::unsupported(format!("BitwiseNot of {}", x.dtype())));
        }
        let out: Vec<i128> = x.data().to_i128().into_iter().map(|x| !x).collect();
        Ok(vec![Tensor::from_i128(x.dtype(), x.shape(), &out)?])
    });

/// integers shifted
pub(super) static BIT_SHIFT: OpDef = OpDef::new(
    "BitShift",
    "integers shifted by integers; the right shift of a signed one keeps its sign",
    broadcast_shape,
    |attrs, inputs| {
        let bits = need(inputs, 0, "X")?.dtype().bits() as i128;
        let left = match attrs.str("direction", "")? {
            "LEFT" => true,
            "RIGHT" => false,
            other => return Err(OpError::attribute("direction", format!("is `{other}`, not LEFT or RIGHT"))),
        };
        integers(attrs, inputs, "BitShift", |x, by| match (0..bits).contains(&by) {
            // An element has at most 64 bits, so that nothing is lost here before it wraps.
            true if left => x << by,
            true => x >> by,
            false if left || x >= 0 => 0,
            false => -1,
        })
    },
);

fn integers(
    attrs: &Attrs,
    inputs: &[Option<&Tensor>],
    name: &str,
    f: impl Fn(i128, i128) -> i128,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = alike(inputs, name)?;
    if !a.dtype().is_integer() {
        return Err(OpError::unsupported(format!("{name} of {}", a.dtype())));
    }
    let (ia, ib, to) = pairs(attrs, a.shape(), b.shape())?;
    let (x, y) = (a.data().to_i128(), b.data().to_i128());
    let out: Vec<i128> = ia.iter().zip(&ib).map(|(&i, &j)| f(x[i], y[j])).collect();
    Ok(vec![Tensor::from_i128(a.dtype(), &to, &out)?])
}

fn truth_like(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    Ok(Some(vec![Fact::new(DType::Bool, need(inputs, 0, "X")?.shape.clone())]))
}

fn test(inputs: &[Option<&Tensor>], name: &str, f: impl Fn(f64) -> bool) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    if !x.dtype().is_float() {
        return Err(OpError::unsupported(format!("{name} of {}", x.dtype())));
    }
    Ok(vec![Tensor::new(x.shape(), Data::Bool(x.data().to_f64().into_iter().map(f).collect()))?])
}

/// whether it is no number
pub(super) static IS_NAN: OpDef =
    OpDef::new("IsNaN", "whether it is no number", truth_like, |_, inputs| test(inputs, "IsNaN", f64::is_nan))
        .kernel(|l| {
            Ok((l.dtype(0) == Some(DType::F32)).then(|| mapped::<f32, u8, _>("IsNaN", |x| u8::from(x.is_nan()))))
        })
        .gpu(|l| {
            let f = function("IsNaN").filter(|_| l.dtype(0) == Some(DType::F32));
            Ok(record::mapped(l, f, vec![], &[(0, l.shape(0)?)], Element::U8))
        });

/// whether it is infinite
pub(super) static IS_INF: OpDef =
    OpDef::new("IsInf", "whether it is infinite, of the signs asked for", truth_like, |attrs, inputs| {
        let (low, high) = (attrs.flag("detect_negative", true)?, attrs.flag("detect_positive", true)?);
        test(inputs, "IsInf", |x| low && x == f64::NEG_INFINITY || high && x == f64::INFINITY)
    });

/// x where the condition holds, else y
pub(super) static WHERE: OpDef =
    OpDef::new("Where", "x where the condition holds, else y", where_shape, where_reference)
        .kernel(where_lower)
        .gpu(where_record)
        .vjp(|b| {
            let (dy, condition) = (b.dy()?, b.x(0)?);
            let zero = b.scalar_like(dy, 0.0)?;
            for (i, sides) in [(1, [dy, zero]), (2, [zero, dy])] {
                if b.wants(i) {
                    let g = b.standard("Where", [], &[condition, sides[0], sides[1]])?;
                    b.give_unbroadcast(i, g)?;
                }
            }
            Ok(())
        });

fn where_shape(_: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let (c, x, y) = (need(inputs, 0, "condition")?, need(inputs, 1, "X")?, need(inputs, 2, "Y")?);
    Ok(Some(vec![Fact::new(x.dtype, broadcast_all([&c.shape[..], &x.shape, &y.shape])?)]))
}

fn where_reference(_: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let (c, x, y) = (need(inputs, 0, "condition")?, need(inputs, 1, "X")?, need(inputs, 2, "Y")?);
    let Data::Bool(condition) = c.data() else {
        return Err(OpError::unsupported(format!("Where with a condition of {}", c.dtype())));
    };
    if x.dtype() != y.dtype() {
        return Err(OpError::unsupported(format!("Where of {} and {}", x.dtype(), y.dtype())));
    }
    let to = broadcast_all([c.shape(), x.shape(), y.shape()])?;
    let from = |t: &Tensor| broadcast_indices(t.shape(), &to);
    let (ic, ix, iy) = (from(c)?, from(x)?, from(y)?);
    let mut both = x.data().clone();
    both.append(y.data());
    let at: Vec<usize> = (0..ic.len()).map(|k| if condition[ic[k]] { ix[k] } else { x.len() + iy[k] }).collect();
    Ok(vec![Tensor::new(&to, both.pick(&at))?])
}

fn where_lower(l: &Lowering<'_>) -> Result<Option<Lowered>, OpError> {
    let (Some(DType::Bool), Some(x), Some(y)) = (l.dtype(0), l.dtype(1), l.dtype(2)) else { return Ok(None) };
    if x != y {
        return Ok(None);
    }
    let Some(walk) = Walk::new([l.shape(0)?, l.shape(1)?, l.shape(2)?], l.output_shape(0))? else { return Ok(None) };
    Ok(Some(Lowered::new(Where { walk, bytes: x.size_bytes() }, vec![0, 1, 2])))
}

fn where_record(l: &Lowering<'_>) -> Result<Option<Recorded>, OpError> {
    let floats = [1, 2].into_iter().all(|i| l.dtype(i) == Some(DType::F32));
    let f = function("Where").filter(|_| floats && l.dtype(0) == Some(DType::Bool));
    let operands = [(0, l.shape(0)?), (1, l.shape(1)?), (2, l.shape(2)?)];
    Ok(record::mapped(l, f, vec![], &operands, Element::F32))
}

struct Where {
    walk: Walk<3>,
    /// Of an element.
    bytes: usize,
}

impl Where {
    fn choose<T: super::walk::Element>(&self, io: &mut Io<'_>) {
        let pool = io.pool;
        let (reads, writes) = io.split();
        let c = reads.bytes(0);
        let (x, y): (&[T], &[T]) = (bytemuck::cast_slice(reads.bytes(1)), bytemuck::cast_slice(reads.bytes(2)));
        let out: &mut [T] = bytemuck::cast_slice_mut(writes.bytes(0));
        let [sc, sx, sy] = self.walk.steps;
        self.walk.pieces(pool, out, |out, [i, j, k]| match (sc, sx, sy) {
            (1, 1, 1) => {
                let n = out.len();
                let (c, x, y) = (&c[i..i + n], &x[j..j + n], &y[k..k + n]);
                for e in 0..n {
                    out[e] = if c[e] != 0 { x[e] } else { y[e] };
                }
            }
            (1, 0, 1) => {
                let x = x[j];
                zip(&c[i..], &y[k..], out, move |c, y| if c != 0 { x } else { y });
            }
            (1, 1, 0) => {
                let y = y[k];
                zip(&c[i..], &x[j..], out, move |c, x| if c != 0 { x } else { y });
            }
            _ => {
                for (e, out) in out.iter_mut().enumerate() {
                    *out = if c[i + e * sc] != 0 { x[j + e * sx] } else { y[k + e * sy] };
                }
            }
        });
    }
}

impl Kernel for Where {
    fn name(&self) -> &'static str {
        "Where"
    }

    fn run(&self, io: &mut Io<'_>) {
        match self.bytes {
            1 => self.choose::<u8>(io),
            2 => self.choose::<u16>(io),
            4 => self.choose::<u32>(io),
            _ => self.choose::<u64>(io),
        }
    }
}
