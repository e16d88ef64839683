//! Pooling over one or two spatial axes.
use hone_kernels::conv::Geometry;
use hone_kernels::pool;

use super::conv::Sliding;
use super::{Attrs, Fact, OpDef, OpError, Origin, need};
use crate::graph::Dim;
use crate::plan::{Io, Kernel, Lowered, Lowering};
use crate::tensor::{DType, Tensor};

macro_rules! pooling {
    ($konst:ident, $name:literal, $doc:literal, $of:expr) => {
        #[doc = $doc]
        pub(super) static $konst: OpDef = OpDef {
            name: $name,
            doc: $doc,
            origin: Origin::Onnx,
            shape: |attrs, inputs| {
                let x = need(inputs, 0, "X")?;
                let mut shape = x.shape[..2.min(x.shape.len())].to_vec();
                shape.extend(if $name.starts_with("Global") {
                    vec![Dim::Val(1); x.shape.len().saturating_sub(2)]
                } else {
                    Sliding::of(attrs, x.shape.len(), None)?.output_dims(&x.shape[2..])?
                });
                Ok(vec![Fact::new(x.dtype, shape)])
            },
            reference: |attrs, inputs, shapes| {
                let x = need(inputs, 0, "X")?;
                let kernel = planes(attrs, x.shape(), &shapes[0], $of)?;
                let mut y = vec![0.0; shapes[0].iter().product()];
                kernel.each(x.as_f32()?, &mut y);
                Ok(vec![Tensor::f32(&shapes[0], y)?])
            },
            lower: |l: &Lowering<'_>| {
                // The second output of MaxPool (indices) has no kernel.
                if l.dtype(0) != Some(DType::F32) || l.wants(1) {
                    return Ok(None);
                }
                let kernel = planes(l.attrs, l.shape(0)?, l.output_shape(0), $of)?;
                Ok(Some(Lowered::new(kernel, vec![0])))
            },
        };
    };
}

pooling!(MAX_POOL, "MaxPool", "the largest value under a sliding window", Kind::Max);
pooling!(AVERAGE_POOL, "AveragePool", "the mean under a sliding window", Kind::Average);
pooling!(GLOBAL_AVERAGE_POOL, "GlobalAveragePool", "the mean of each plane", Kind::GlobalAverage);

#[derive(Clone, Copy)]
enum Kind {
    Max,
    Average,
    GlobalAverage,
}

struct Planes {
    kind: Kind,
    /// Height and width with padding, when padding counts in a mean.
    padded: Option<[usize; 2]>,
    planes: usize,
    geometry: Geometry,
}

fn planes(attrs: &Attrs, x: &[usize], y: &[usize], kind: Kind) -> Result<Planes, OpError> {
    if x.len() < 3 {
        return Err(OpError::Unsupported { what: format!("pooling over an input of rank {}", x.len()) });
    }
    let mut padded = None;
    let geometry = match kind {
        Kind::GlobalAverage => {
            let n: usize = x[2..].iter().product();
            Geometry {
                c: 1,
                input: [1, n],
                kernel: [1, n],
                output: [1, 1],
                stride: [1, 1],
                dilation: [1, 1],
                pad: [0, 0],
            }
        }
        _ => {
            let s = Sliding::of(attrs, x.len(), None)?;
            if attrs.int("count_include_pad", 0)? != 0 {
                padded = Some(s.padded(&x[2..], &y[2..]));
            }
            s.geometry(1, &x[2..], &y[2..])
        }
    };
    if attrs.int("storage_order", 0)? != 0 {
        return Err(OpError::Unsupported { what: "MaxPool with storage_order".into() });
    }
    Ok(Planes { kind, padded, planes: x[0] * x[1], geometry })
}

impl Planes {
    fn each(&self, x: &[f32], y: &mut [f32]) {
        let g = &self.geometry;
        let (n_in, n_out) = (g.input[0] * g.input[1], g.p());
        for i in 0..self.planes {
            let (x, y) = (&x[i * n_in..][..n_in], &mut y[i * n_out..][..n_out]);
            match self.kind {
                Kind::Max => pool::max_plane(g, x, y),
                Kind::Average => pool::average_plane(g, self.padded, x, y),
                Kind::GlobalAverage => y[0] = x.iter().sum::<f32>() / n_in.max(1) as f32,
            }
        }
    }
}

impl Kernel for Planes {
    fn name(&self) -> &'static str {
        "pool-f32"
    }

    fn run(&self, io: &mut Io<'_>) {
        let (reads, writes) = io.split();
        self.each(reads.f32(0), writes.f32(0));
    }
}
