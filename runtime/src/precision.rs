//! What float products are computed in, and whether 16 bits are good enough for a model: by its own golden samples, or by recorded cases.
//!
//! Only products and convolutions come in 16 bits; everything between them, and every sum, stays `f32`. A CPU has bf16, of those with
//! frozen `f32` weights. A GPU rounds the weights alone, to bf16 or f16, which then take half the memory; where it multiplies matrices
//! of f16, all products of f16 round both operands. It knows no graph and no session; the session asks it, and runs.
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hone_kernels::bf16::{self, Native, Pair};
use hone_kernels::gemm::{self, Gemm, Packed};

use crate::tensor::Tensor;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// `f32`.
    #[default]
    F32,
    /// bf16, on every CPU and GPU; an error where golden samples or recorded cases refuse it.
    Bf16,
    /// f16, on every GPU; an error on a CPU, and where golden samples or recorded cases refuse it.
    F16,
    /// What a CPU (bf16) or GPU (f16) multiplies faster, where golden samples or recorded cases accept it, otherwise `f32`.
    Auto,
}

/// A float of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Eight bits of significand, the range of `f32`.
    Bf16,
    /// Eleven bits of significand, up to 65504.
    F16,
}

impl Half {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Half::Bf16 => "bf16",
            Half::F16 => "f16",
        }
    }
}

impl Precision {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
            Precision::Auto => "auto",
        }
    }
}

/// Whether this CPU computes products in bf16 faster than in `f32`, by a fifth at least, or why not. Where it does so in vectors, the
/// first call measures one product both ways, which takes a millisecond: some CPUs gain nothing by it. A matrix unit
/// always gains.
pub fn cpu() -> Result<(), &'static str> {
    static SAID: OnceLock<Result<(), &'static str>> = OnceLock::new();
    *SAID.get_or_init(|| match bf16::native() {
        Native::Widened => Err("this CPU has no instructions that multiply bf16"),
        Native::Tiles => Ok(()),
        Native::Pairs if is_faster() => Ok(()),
        Native::Pairs => Err("this CPU multiplies bf16 no faster than f32"),
    })
}

/// Measures a product of the size of a small layer, in the nearest caches.
fn is_faster() -> bool {
    let (m, k, n) = (48, 256, 64);
    let (x, mut y) = (vec![0.5f32; m * k], vec![0f32; m * n]);
    let mut floats = vec![0f32; gemm::packed_len(n, k)];
    let mut pairs = vec![Pair::default(); bf16::packed_len(n, k)];
    gemm::pack(n, k, |_, _| 0.25, &mut floats);
    bf16::pack(n, k, |_, _| 0.25, &mut pairs);
    let mut time = |w: Packed<'_>| {
        let product = Gemm { m, k, n, x: &x, x_stride: k, w, bias: None, accumulate: false };
        let began = Instant::now();
        gemm::gemm(&product, &mut y);
        began.elapsed()
    };
    // In turns, so that whatever else runs slows both; and a gain that one measurement cannot doubt: a run that is called
    // again must come to the same.
    let turns = (0..40).map(|_| (time(Packed::Bf16(&pairs)), time(Packed::F32(&floats))));
    let (pairs, floats) = turns.fold((Duration::MAX, Duration::MAX), |(a, b), (p, f)| (a.min(p), b.min(f)));
    pairs < floats * 4 / 5
}

/// Largest difference that is accepted, as a part of the largest recorded magnitude of the output.
pub const RELATIVE: f64 = 2e-2;
/// Least cosine between recorded and computed output that is accepted.
pub const COSINE: f64 = 0.999;

/// How outputs in 16 bits agree with recorded ones: the worst of each over all outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Largest difference, as a part of the largest recorded magnitude of its output.
    pub relative: f64,
    /// Least cosine.
    pub cosine: f64,
    /// Rows whose largest element is the same one.
    pub top1: usize,
    /// Rows compared so.
    pub rows: usize,
}

impl Agreement {
    /// Of nothing that could differ.
    pub const FULL: Agreement = Agreement { relative: 0.0, cosine: 1.0, top1: 0, rows: 0 };

    /// That of two sets of outputs together.
    pub fn and(self, other: Agreement) -> Agreement {
        Agreement {
            relative: self.relative.max(other.relative),
            cosine: self.cosine.min(other.cosine),
            top1: self.top1 + other.top1,
            rows: self.rows + other.rows,
        }
    }

    /// Recorded outputs against computed ones, each output by its name. `ranked` says of which the largest element of every row
    /// is the answer. Infinitely far apart where a computed output is missing or of another type or shape.
    pub fn of(want: &[(String, Tensor)], got: &[(String, Tensor)], ranked: impl Fn(&str) -> bool) -> Agreement {
        let mut all = Agreement::FULL;
        for (name, want) in want {
            let got = got.iter().find(|(n, _)| n == name).map(|(_, t)| t);
            let (Some(got), Ok(a)) = (got, want.as_f32()) else {
                // What is no float is the same or it is not.
                if got != Some(want) {
                    all.relative = f64::INFINITY;
                }
                continue;
            };
            let Some(b) = got.as_f32().ok().filter(|_| got.shape() == want.shape()) else {
                all.relative = f64::INFINITY;
                continue;
            };
            let pairs = || a.iter().zip(b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
            // A NaN must not be lost in a maximum.
            let largest = |v: f64, of: f64| if of.is_nan() { f64::INFINITY } else { v.max(of) };
            let worst = pairs().map(|(x, y)| (x - y).abs()).fold(0.0, largest);
            let most = pairs().map(|(x, _)| x.abs()).fold(0.0, largest);
            if worst > 0.0 {
                all.relative = largest(all.relative, worst / most);
            }
            let sum = |f: fn((f64, f64)) -> f64| pairs().map(f).sum::<f64>();
            let (xx, yy, xy) = (sum(|(x, _)| x * x), sum(|(_, y)| y * y), sum(|(x, y)| x * y));
            if xx > 0.0 {
                let cosine = xy / (xx * yy).sqrt();
                all.cosine = if cosine.is_nan() { 0.0 } else { all.cosine.min(cosine) };
            }
            let columns = want.shape().last().copied().unwrap_or(0);
            if columns > 1 && ranked(name) {
                for (x, y) in a.chunks_exact(columns).zip(b.chunks_exact(columns)) {
                    all.rows += 1;
                    all.top1 += usize::from(largest_of(x) == largest_of(y));
                }
            }
        }
        all
    }

    /// Whether it is good enough.
    pub fn accepted(&self) -> bool {
        self.relative <= RELATIVE && self.cosine >= COSINE && self.top1 == self.rows
    }
}

fn largest_of(row: &[f32]) -> Option<usize> {
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best })
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Agreement { relative, cosine, top1, rows } = self;
        write!(
            f,
            "outputs differ by at most {:.3} % of the largest value ({} % allowed), cosine {cosine:.6} \
             (at least {COSINE})",
            100.0 * relative,
            100.0 * RELATIVE
        )?;
        if *rows > 0 {
            write!(f, ", {top1} of {rows} top answers equal")?;
        }
        Ok(())
    }
}

/// What products are computed in, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// What was asked for.
    pub asked: Precision,
    /// What of 16 bits products are computed in; `None` for `f32`.
    pub half: Option<Half>,
    /// Why, for people.
    pub why: String,
    /// What the golden samples, or recorded cases, said of 16 bits, where they were asked.
    pub agreement: Option<Agreement>,
    /// What of 16 bits there is for what was asked; `None` where that is nothing.
    offered: Option<Half>,
}

/// Why 16 bits cannot be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PrecisionError {
    /// The golden samples, or recorded cases, refuse it.
    #[error("{} is not good enough for this model: on {on} {agreement}; use --precision f32, or auto", half.name())]
    Refused {
        /// What is refused.
        half: Half,
        /// What refuses it.
        on: String,
        /// The figures.
        agreement: Agreement,
    },
    /// What runs the model has it not.
    #[error("{} is not to be had: {why}; use --precision f32, or auto", asked.name())]
    Impossible {
        /// What was asked for.
        asked: Precision,
        /// Why.
        why: &'static str,
    },
}

impl Chosen {
    /// What to begin with, before golden samples or recorded cases are asked. `offered` is what of 16 bits there is for what is asked, or
    /// why there is nothing.
    ///
    /// # Errors
    /// [`PrecisionError::Impossible`] when it is asked for and there is nothing.
    pub fn first(asked: Precision, offered: Result<Half, &'static str>) -> Result<Chosen, PrecisionError> {
        let of = |half, why: String| Chosen { asked, half, why, agreement: None, offered: offered.ok() };
        Ok(match (asked, offered) {
            (Precision::F32, _) => of(None, "as asked".into()),
            (Precision::Auto, Err(why)) => of(None, why.into()),
            (Precision::Bf16 | Precision::F16, Err(why)) => return Err(PrecisionError::Impossible { asked, why }),
            (Precision::Auto, Ok(half)) => of(None, format!("nothing judged {}: {NO_JUDGE}", half.name())),
            (_, Ok(half)) => of(Some(half), format!("as asked, and nothing judged it: {NO_JUDGE}")),
        })
    }

    /// What golden samples or recorded cases are to be asked about; `None` when nothing. `gain` is whether that is faster there: of a
    /// CPU, what [`cpu`] says.
    pub fn asks(&mut self, gain: impl FnOnce() -> Result<(), &'static str>) -> Option<Half> {
        let half = self.offered.filter(|_| self.asked != Precision::F32)?;
        if let (Precision::Auto, Err(why)) = (self.asked, gain()) {
            self.why = why.to_string();
            return None;
        }
        Some(half)
    }

    /// What golden samples or recorded cases say of `half`, which `on` names. `products` says whether anything at all was computed in it.
    ///
    /// # Errors
    /// [`PrecisionError::Refused`] when they refuse it and it was asked for.
    pub fn judged(self, half: Half, agreement: Agreement, on: &str, products: bool) -> Result<Chosen, PrecisionError> {
        let accepted = agreement.accepted();
        if !accepted && self.asked != Precision::Auto {
            return Err(PrecisionError::Refused { half, on: on.to_string(), agreement });
        }
        let why = match (products, accepted) {
            (false, _) => format!("there is no product that is computed in {}", half.name()),
            (true, true) => format!("accepted on {on}: {agreement}"),
            (true, false) => format!("{} is refused: on {on} {agreement}", half.name()),
        };
        let chosen = (products && accepted).then_some(half);
        Ok(Chosen { half: chosen, why, agreement: Some(agreement).filter(|_| products), ..self })
    }

    /// What is computed: `f32`, `bf16` or `f16`.
    pub fn name(&self) -> &'static str {
        self.half.map_or("f32", Half::name)
    }
}

const NO_JUDGE: &str = "there are no golden samples, and no recorded cases (--cases DIR)";

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "products in {}: {}", self.name(), self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(v: &[f32]) -> Vec<(String, Tensor)> {
        vec![("logits".to_string(), Tensor::f32(&[1, v.len()], v.to_vec()).unwrap())]
    }

    fn agreement(want: &[f32], got: &[f32]) -> Agreement {
        Agreement::of(&outputs(want), &outputs(got), |_| true)
    }

    #[test]
    fn each_of_the_three_conditions_refuses_alone() {
        assert!(agreement(&[4.0, 1.0, -2.0], &[4.05, 1.0, -2.0]).accepted());
        // Just outside 2 % of 4.
        let far = agreement(&[4.0, 1.0, -2.0], &[4.09, 1.0, -2.0]);
        assert!(far.relative > RELATIVE && far.cosine > COSINE && far.top1 == far.rows && !far.accepted());
        // Two that are nearly equal change places.
        let other = agreement(&[4.0, 3.99, 0.0], &[3.99, 4.0, 0.0]);
        assert!(other.relative < RELATIVE && other.cosine > COSINE && other.top1 == 0 && !other.accepted());
        // Many small elements, one large: each is near, the direction is not.
        let mut want = vec![0.019f32; 2000];
        want[0] = 1.0;
        let got: Vec<f32> = want.iter().map(|&v| if v < 1.0 { 0.0 } else { v }).collect();
        let turned = agreement(&want, &got);
        assert!(turned.relative < RELATIVE && turned.cosine < COSINE && !turned.accepted());
    }

    #[test]
    fn what_is_missing_no_number_or_of_another_shape_is_refused() {
        assert!(!agreement(&[1.0, 2.0], &[1.0, f32::NAN]).accepted());
        assert!(!agreement(&[1.0, 2.0], &[1.0, 2.0, 3.0]).accepted());
        assert!(!Agreement::of(&outputs(&[1.0]), &[], |_| true).accepted());
        assert!(agreement(&[0.0, 0.0], &[0.0, 0.0]).accepted());
        assert!(!agreement(&[0.0, 0.0], &[0.0, 1e-9]).accepted());
    }

    #[test]
    fn auto_takes_bf16_only_with_instructions_samples_and_their_consent() {
        let (good, bad) = (agreement(&[1.0, 0.0], &[1.0, 0.0]), agreement(&[1.0, 0.0], &[0.0, 1.0]));
        let auto = || Chosen::first(Precision::Auto, Ok(Half::Bf16)).unwrap();
        assert_eq!(auto().half, None, "without samples");
        let mut on_old = auto();
        assert!(on_old.asks(|| Err("no instructions")).is_none() && on_old.why.contains("instructions"));
        assert_eq!(auto().asks(|| Ok(())), Some(Half::Bf16));
        let judged = |agreement, products| auto().judged(Half::Bf16, agreement, "a case", products).unwrap();
        assert_eq!(judged(good, true).half, Some(Half::Bf16));
        let refused = judged(bad, true);
        assert!(
            refused.half.is_none() && refused.why.contains("on a case") && refused.why.contains("0 of 1"),
            "{refused}"
        );
        let both = good.and(bad);
        assert_eq!((both.relative, both.cosine, both.top1, both.rows), (bad.relative, bad.cosine, 1, 2));
        let nothing = judged(good, false);
        assert!(nothing.half.is_none() && nothing.agreement.is_none());
        assert!(Chosen::first(Precision::Auto, Err("why")).unwrap().asks(|| Ok(())).is_none());
    }

    #[test]
    fn what_was_asked_for_is_had_or_an_error() {
        let bad = agreement(&[1.0, 0.0], &[0.0, 1.0]);
        for (asked, half) in [(Precision::Bf16, Half::Bf16), (Precision::F16, Half::F16)] {
            let first = || Chosen::first(asked, Ok(half)).unwrap();
            assert_eq!(first().half, Some(half));
            assert_eq!(first().asks(|| Err("no instructions")), Some(half));
            let refused = first().judged(half, bad, "a case", true).unwrap_err().to_string();
            assert!(refused.contains("100.000 %") && refused.contains("0 of 1"), "{refused}");
            assert!(refused.starts_with(half.name()), "{refused}");
            let none = Chosen::first(asked, Err("of a reason")).unwrap_err().to_string();
            assert!(none.starts_with(half.name()) && none.contains("of a reason"), "{none}");
        }
        assert!(Chosen::first(Precision::F32, Ok(Half::Bf16)).unwrap().asks(|| Ok(())).is_none());
    }
}
