//! Operators that draw random numbers.
//!
//! They are never computed beforehand, but they are not free: a node begins its generator anew at every run, from its
//! attribute `seed` and from 0 when it has none, so that equal runs give equal results. The generator and the ways
//! numbers are drawn from it are those of NumPy's `RandomState`, and so those of the standard's reference operators.
use super::shape::elements;
use super::{Attrs, Fact, Kind, OpDef, OpError, need};
use crate::tensor::{DType, Tensor};

/// The rows of this family.
pub(super) static OPS: &[&OpDef] =
    &[&RANDOM_NORMAL, &RANDOM_NORMAL_LIKE, &RANDOM_UNIFORM, &RANDOM_UNIFORM_LIKE, &BERNOULLI, &MULTINOMIAL];

static RANDOM_NORMAL: OpDef =
    OpDef::new("RandomNormal", "drawn from a normal distribution", drawn_shape, |attrs, _| {
        normal(attrs, &shape_attribute(attrs)?, dtype(attrs, DType::F32)?)
    })
    .kind(Kind::Random);

static RANDOM_NORMAL_LIKE: OpDef = OpDef::new(
    "RandomNormalLike",
    "drawn from a normal distribution, of the shape of another tensor",
    like_shape,
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        normal(attrs, x.shape(), dtype(attrs, x.dtype())?)
    },
)
.kind(Kind::Random);

static RANDOM_UNIFORM: OpDef =
    OpDef::new("RandomUniform", "drawn evenly between low and high", drawn_shape, |attrs, _| {
        uniform(attrs, &shape_attribute(attrs)?, dtype(attrs, DType::F32)?)
    })
    .kind(Kind::Random);

static RANDOM_UNIFORM_LIKE: OpDef = OpDef::new(
    "RandomUniformLike",
    "drawn evenly between low and high, of the shape of another tensor",
    like_shape,
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        uniform(attrs, x.shape(), dtype(attrs, x.dtype())?)
    },
)
.kind(Kind::Random);

static BERNOULLI: OpDef =
    OpDef::new("Bernoulli", "1 with the given probability, else 0", like_shape, |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        let mut g = Generator::of(attrs)?;
        let y: Vec<f64> = x.data().to_f64().iter().map(|&p| f64::from(u8::from(g.uniform() < p))).collect();
        Ok(vec![Tensor::from_f64(dtype(attrs, x.dtype())?, x.shape(), &y)?])
    })
    .kind(Kind::Random);

static MULTINOMIAL: OpDef = OpDef::new(
    "Multinomial",
    "classes drawn by their unnormalised log-probabilities",
    |attrs, inputs| {
        let x = need(inputs, 0, "input")?;
        Ok(Some(vec![Fact::new(dtype(attrs, DType::I32)?, samples_shape(attrs, &x.shape)?)]))
    },
    multinomial,
)
.kind(Kind::Random);

fn dtype(attrs: &Attrs, default: DType) -> Result<DType, OpError> {
    let number = attrs.int("dtype", i64::from(default.onnx()))?;
    DType::from_onnx(number).ok_or_else(|| OpError::unsupported(format!("random numbers of ONNX type {number}")))
}

fn shape_attribute(attrs: &Attrs) -> Result<Vec<usize>, OpError> {
    let Some(dims) = attrs.ints("shape")? else { return Err(OpError::attribute("shape", "is missing")) };
    dims.iter()
        .map(|&d| usize::try_from(d).map_err(|_| OpError::attribute("shape", format!("{dims:?} is no shape"))))
        .collect()
}

fn drawn_shape(attrs: &Attrs, _: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    Ok(Some(vec![Fact::new(dtype(attrs, DType::F32)?, shape_attribute(attrs)?)]))
}

fn like_shape(attrs: &Attrs, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>, OpError> {
    let x = need(inputs, 0, "input")?;
    Ok(Some(vec![Fact::new(dtype(attrs, x.dtype)?, x.shape.clone())]))
}

fn normal(attrs: &Attrs, shape: &[usize], dtype: DType) -> Result<Vec<Tensor>, OpError> {
    let (mean, scale) = (f64::from(attrs.float("mean", 0.0)?), f64::from(attrs.float("scale", 1.0)?));
    let mut g = Generator::of(attrs)?;
    let y: Vec<f64> = (0..elements(shape)?).map(|_| g.normal() * scale + mean).collect();
    Ok(vec![Tensor::from_f64(dtype, shape, &y)?])
}

fn uniform(attrs: &Attrs, shape: &[usize], dtype: DType) -> Result<Vec<Tensor>, OpError> {
    let (low, high) = (f64::from(attrs.float("low", 0.0)?), f64::from(attrs.float("high", 1.0)?));
    let mut g = Generator::of(attrs)?;
    let y: Vec<f64> = (0..elements(shape)?).map(|_| g.uniform() * (high - low) + low).collect();
    Ok(vec![Tensor::from_f64(dtype, shape, &y)?])
}

fn samples_shape(attrs: &Attrs, x: &[usize]) -> Result<Vec<usize>, OpError> {
    let &[batch, _] = x else { return Err(OpError::shape("input", "[batch, classes]", x)) };
    let samples = attrs.int("sample_size", 1)?;
    let samples = usize::try_from(samples)
        .map_err(|_| OpError::attribute("sample_size", format!("{samples} is no number of samples")))?;
    Ok(vec![batch, samples])
}

fn multinomial(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "input")?;
    let to = samples_shape(attrs, x.shape())?;
    let classes = x.shape()[1];
    if classes == 0 && elements(&to)? > 0 {
        return Err(OpError::shape("input", "at least one class", x.shape()));
    }
    let mut g = Generator::of(attrs)?;
    let mut out: Vec<i128> = Vec::with_capacity(elements(&to)?);
    for row in x.data().to_f64().chunks_exact(classes.max(1)) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        let reached: Vec<f64> = row
            .iter()
            .map(|v| {
                sum += (v - top).exp();
                sum
            })
            .collect();
        for _ in 0..to[1] {
            let at = g.uniform() * sum;
            out.push(reached.partition_point(|&r| r <= at).min(classes - 1) as i128);
        }
    }
    Ok(vec![Tensor::from_i128(dtype(attrs, DType::I32)?, &to, &out)?])
}

/// The Mersenne Twister MT19937 with 32-bit seeds, and the numbers NumPy's `RandomState` draws from it.
///
/// Source: Matsumoto and Nishimura, "Mersenne Twister", 1998, with the initialisation of 2002; NumPy's
/// `random_sample` (53 bits) and `legacy_gauss` (polar method).
pub(super) struct Generator {
    state: Vec<u32>,
    at: usize,
    /// The second of a pair of normal numbers.
    second: Option<f64>,
}

/// Words of state, and the distance of the recurrence.
const N: usize = 624;
const M: usize = 397;

impl Generator {
    /// A generator that begins at `seed`.
    pub(super) fn new(seed: u32) -> Generator {
        let mut state = vec![seed; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Generator { state, at: N, second: None }
    }

    /// The generator of a node.
    fn of(attrs: &Attrs) -> Result<Generator, OpError> {
        Ok(Generator::new(attrs.float("seed", 0.0)? as i64 as u32))
    }

    fn word(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7fff_ffff;
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number in `[0, 1)`, a multiple of 2⁻⁵³.
    pub(super) fn uniform(&mut self) -> f64 {
        let (a, b) = (self.word() >> 5, self.word() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// A number of the standard normal distribution.
    fn normal(&mut self) -> f64 {
        if let Some(v) = self.second.take() {
            return v;
        }
        loop {
            let (x, y) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let r = x * x + y * y;
            if r < 1.0 && r != 0.0 {
                let f = (-2.0 * r.ln() / r).sqrt();
                self.second = Some(f * x);
                return f * y;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Attr;

    #[test]
    fn the_numbers_are_those_of_numpy() {
        // numpy.random.RandomState(0).random_sample(2) and .standard_normal(3).
        let mut g = Generator::new(0);
        assert_eq!([g.uniform(), g.uniform()], [0.548_813_503_927_324_8, 0.715_189_366_372_419_5]);
        let mut g = Generator::new(0);
        let n = [g.normal(), g.normal(), g.normal()];
        let numpy = [1.764_052_345_967_664, 0.400_157_208_367_223_3, 0.978_737_984_105_739_2];
        assert!(n.iter().zip(numpy).all(|(a, b)| (a - b).abs() < 1e-15), "{n:?}");
    }

    fn moments(v: &[f64]) -> (f64, f64) {
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        (mean, v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n)
    }

    fn run(op: &OpDef, attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Vec<f64> {
        let out = (op.reference)(attrs, inputs).unwrap();
        assert_eq!((op.shape)(attrs, &[]).map(|_| ()).is_ok(), inputs.is_empty());
        out[0].data().to_f64()
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let shape = ("shape", Attr::Ints(vec![200, 500]));
        let attrs = Attrs::of([shape.clone(), ("mean", Attr::Float(3.0)), ("scale", Attr::Float(2.0))]);
        // Five standard errors of the mean and of the variance of 100 000 draws.
        let (mean, var) = moments(&run(&RANDOM_NORMAL, &attrs, &[]));
        assert!((mean - 3.0).abs() < 0.032 && (var - 4.0).abs() < 0.09, "{mean} {var}");
        let attrs =
            Attrs::of([shape, ("low", Attr::Float(-1.0)), ("high", Attr::Float(2.0)), ("seed", Attr::Float(7.0))]);
        let (mean, var) = moments(&run(&RANDOM_UNIFORM, &attrs, &[]));
        assert!((mean - 0.5).abs() < 0.014 && (var - 0.75).abs() < 0.011, "{mean} {var}");
    }

    #[test]
    fn classes_and_ones_come_as_often_as_their_probability_says() {
        let p = Tensor::f32(&[100_000], vec![0.3; 100_000]).unwrap();
        let (mean, _) = moments(&run(&BERNOULLI, &Attrs::default(), &[Some(&p)]));
        assert!((mean - 0.3).abs() < 0.0073, "{mean}");
        let logs = Tensor::f32(&[1, 3], vec![0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()]).unwrap();
        let drawn = run(&MULTINOMIAL, &Attrs::of([("sample_size", Attr::Int(100_000))]), &[Some(&logs)]);
        for (class, p) in [(0.0, 0.2), (1.0, 0.5), (2.0, 0.3)] {
            let share = drawn.iter().filter(|&&c| c == class).count() as f64 / 1e5;
            assert!((share - p).abs() < 0.008, "{class}: {share}");
        }
    }

    #[test]
    fn equal_runs_give_equal_numbers_and_other_seeds_others() {
        let of = |seed: f32| {
            let attrs = Attrs::of([("shape", Attr::Ints(vec![5])), ("seed", Attr::Float(seed))]);
            run(&RANDOM_UNIFORM, &attrs, &[])
        };
        assert_eq!(of(3.0), of(3.0));
        assert_ne!(of(3.0), of(4.0));
    }
}
