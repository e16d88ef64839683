//! One axis resized: every place of the result is a weighted sum of a few places of the operand.
use std::sync::Arc;

use hone_kernels::resample::{self, Axis};

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bytes_of, bytes_of_words, filled};

/// `y[o, i, k] = Σ_t w[i, t] · x[o, at[i, t], k]`. Operands x, positions as `u32` and weights, `taps` a place of the result.
#[derive(Clone, Copy, Debug)]
pub struct Resample {
    /// Elements before the axis.
    pub outer: usize,
    /// Elements of the axis.
    pub length: usize,
    /// Elements of the axis of the result.
    pub count: usize,
    /// Elements after it.
    pub inner: usize,
    /// Terms of a sum.
    pub taps: usize,
}

impl Resample {
    /// The call; `None` when it is larger than a grid, or there is nothing to do.
    pub fn call(&self) -> Option<Call> {
        let word = |v: usize| u32::try_from(v).ok();
        let n = self.outer.checked_mul(self.count)?.checked_mul(self.inner)?;
        word(self.outer.checked_mul(self.length)?.checked_mul(self.inner)?)?;
        word(self.count.checked_mul(self.taps)?)?;
        if n == 0 {
            return None;
        }
        let params = [n, self.length, self.count, self.inner, self.taps].map(word);
        kernel().line(params.into_iter().collect::<Option<_>>()?, n)
    }
}

fn kernel() -> Arc<Kernel> {
    let source = filled(include_str!("resample.wgsl"), &[]);
    Kernel::new("resample".into(), source, 3, 1, || [1, 2, 4].into_iter().filter_map(trial).collect())
}

fn trial(taps: usize) -> Option<Trial> {
    let r = Resample { outer: 2, length: 5, count: 7, inner: 3, taps };
    let call = r.call()?;
    let mut draws = Draws::new(taps as u64);
    let x = draws.floats(r.outer * r.length * r.inner);
    let at: Vec<u32> = (0..r.count * taps).map(|_| draws.word() % 5).collect();
    let weights = draws.floats(r.count * taps);
    let Resample { outer, length: input, count: output, inner, .. } = r;
    let mut y = vec![0.0; outer * output * inner];
    resample::reference(&Axis { outer, input, output, inner, taps, at: &at, weights: &weights }, &x, &mut y);
    let operands = vec![bytes_of(&x), bytes_of_words(&at), bytes_of(&weights)];
    Some(Trial { call, operands, before: vec![], results: vec![bytes_of(&y)], allowed: Allowed::Floats(1e-6) })
}
