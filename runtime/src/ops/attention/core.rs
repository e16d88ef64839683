//! Scaled dot-product attention as a formula, in `f64`.
use crate::ops::{OpError, shape::elements};

/// The lengths of one attention. Letters as in the head of this family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    /// Batch.
    pub(crate) b: usize,
    /// Query heads.
    pub(crate) h: usize,
    /// Key and value heads; query head `i` reads key head `i / (h / g)`.
    pub(crate) g: usize,
    /// Queries.
    pub(crate) s: usize,
    /// Keys, those of the past included.
    pub(crate) l: usize,
    /// Head size of Q and K.
    pub(crate) d: usize,
    /// Head size of V.
    pub(crate) e: usize,
}

/// `hidden / heads`, when that is a whole number.
///
/// # Errors
/// [`OpError::Attribute`] naming `attribute` when it is not, or there are no heads.
pub(super) fn head_size(attribute: &str, heads: usize, hidden: usize) -> Result<usize, OpError> {
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(OpError::attribute(attribute, format!("is {heads}, which does not divide {hidden}")));
    }
    Ok(hidden / heads)
}

/// A number of heads given by an attribute.
///
/// # Errors
/// [`OpError::Attribute`] when it is missing or not positive.
pub(super) fn heads_of(attrs: &crate::ops::Attrs, name: &str) -> Result<usize, OpError> {
    match attrs.int(name, 0)? {
        n if n > 0 => Ok(n as usize),
        n => Err(OpError::attribute(name, format!("must be positive, is {n}"))),
    }
}

/// The factor of the scores: the attribute `scale`, or `1 / √D`.
pub(super) fn scale_of(attrs: &crate::ops::Attrs, d: usize) -> Result<f64, OpError> {
    Ok(match attrs.float("scale", 0.0)? {
        0.0 => 1.0 / (d.max(1) as f64).sqrt(),
        s => f64::from(s),
    })
}

/// One attention.
pub(crate) struct Core<'a> {
    /// Its lengths.
    pub(crate) sizes: Sizes,
    /// `[B, H, S, D]`.
    pub(crate) q: &'a [f64],
    /// `[B, G, L, D]`.
    pub(crate) k: &'a [f64],
    /// `[B, G, L, E]`.
    pub(crate) v: &'a [f64],
    /// Factor of the products.
    pub(crate) scale: f64,
    /// `c · tanh(score / c)` is taken before the mask, when positive.
    pub(crate) softcap: f64,
    /// Called with batch, query head, query and a row of `L` zeros, to which it adds what is added to the scores; `-inf`
    /// hides a key.
    pub(crate) mask: &'a dyn Fn(usize, usize, usize, &mut [f64]),
    /// `H` scores of one more key whose value is zero, when given.
    pub(crate) sink: Option<&'a [f64]>,
}

/// Which scores to give beside the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    /// None.
    Nothing,
    /// Scaled products.
    Raw,
    /// After the soft cap.
    Capped,
    /// After the mask.
    Masked,
    /// After the softmax.
    Softmax,
}

/// What [`core`] gives.
pub(crate) struct Attended {
    /// `[B, H, S, E]`.
    pub(crate) y: Vec<f64>,
    /// `[B, H, S, L]`, empty when nothing was asked for.
    pub(crate) scores: Vec<f64>,
}

/// `softmax(cap(scale · Q · Kᵀ) + mask) · V` of every head. A query that sees no key (its mask is `-inf` throughout)
/// gives zeros.
///
/// # Errors
/// [`OpError::Shape`] when a slice does not have the length its sizes say, or `H` is no multiple of `G`.
pub(crate) fn core(c: &Core<'_>, stage: Stage) -> Result<Attended, OpError> {
    let Sizes { b, h, g, s, l, d, e } = c.sizes;
    if g == 0 || !h.is_multiple_of(g) {
        return Err(OpError::shape("query heads", format!("a multiple of {g} key heads"), h));
    }
    for (what, found, shape) in
        [("Q", c.q.len(), [b, h, s, d]), ("K", c.k.len(), [b, g, l, d]), ("V", c.v.len(), [b, g, l, e])]
    {
        if elements(&shape)? != found {
            return Err(OpError::shape(format!("elements of {what}"), shape, found));
        }
    }
    let group = h / g;
    let mut y = vec![0.0; elements(&[b, h, s, e])?];
    let mut scores = Vec::new();
    if stage != Stage::Nothing {
        scores.reserve(elements(&[b, h, s, l])?);
    }
    let (mut row, mut mask) = (vec![0.0; l], vec![0.0; l]);
    for head in 0..b * h {
        let (batch, qh) = (head / h, head % h);
        let kv = (batch * g + qh / group) * l;
        for i in 0..s {
            let at = head * s + i;
            let q = &c.q[at * d..][..d];
            for (j, x) in row.iter_mut().enumerate() {
                let k = &c.k[(kv + j) * d..][..d];
                *x = c.scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
            }
            if stage == Stage::Raw {
                scores.extend_from_slice(&row);
            }
            if c.softcap > 0.0 {
                row.iter_mut().for_each(|x| *x = c.softcap * (*x / c.softcap).tanh());
            }
            if stage == Stage::Capped {
                scores.extend_from_slice(&row);
            }
            mask.fill(0.0);
            (c.mask)(batch, qh, i, &mut mask);
            // A hidden key is hidden whatever its score, infinite and not-a-number included.
            for (x, &m) in row.iter_mut().zip(&mask) {
                *x = if m == f64::NEG_INFINITY { m } else { *x + m };
            }
            if stage == Stage::Masked {
                scores.extend_from_slice(&row);
            }
            softmax(&mut row, c.sink.and_then(|sinks| sinks.get(qh).copied()));
            if stage == Stage::Softmax {
                scores.extend_from_slice(&row);
            }
            let out = &mut y[at * e..][..e];
            for (j, &p) in row.iter().enumerate().filter(|&(_, &p)| p != 0.0) {
                for (o, v) in out.iter_mut().zip(&c.v[(kv + j) * e..][..e]) {
                    *o += p * v;
                }
            }
        }
    }
    Ok(Attended { y, scores })
}

/// `e^(x - max) / (e^(sink - max) + Σ)` in place; zeros when everything is `-inf`.
fn softmax(row: &mut [f64], sink: Option<f64>) {
    let none = f64::NEG_INFINITY;
    let max = row.iter().copied().chain(sink).fold(none, |a, x| if x > a || x.is_nan() { x } else { a });
    if max == none {
        row.fill(0.0);
        return;
    }
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum = row.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
    row.iter_mut().for_each(|x| *x /= sum);
}

/// Where the rows of an operand lie: that of batch `b`, head `h` and token `t` starts at
/// `base + b · batch + h · head + t · token`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rows {
    /// Element of the first row.
    pub(crate) base: usize,
    /// Elements from one batch to the next.
    pub(crate) batch: usize,
    /// Elements from one head to the next.
    pub(crate) head: usize,
    /// Elements from one token to the next.
    pub(crate) token: usize,
}

impl Rows {
    /// `[B, heads, tokens, width]`.
    pub(crate) fn heads_first(heads: usize, tokens: usize, width: usize) -> Rows {
        Rows { base: 0, batch: heads * tokens * width, head: tokens * width, token: width }
    }

    /// `heads · width` elements from `base` on in each row of `[B, tokens, row]`.
    pub(crate) fn tokens_first(tokens: usize, row: usize, base: usize, width: usize) -> Rows {
        Rows { base, batch: tokens * row, head: width, token: row }
    }

    /// Part `part` of `[B, tokens, heads, parts, width]`.
    pub(crate) fn interleaved(tokens: usize, heads: usize, [part, parts]: [usize; 2], width: usize) -> Rows {
        let token = heads * parts * width;
        Rows { base: part * width, batch: tokens * token, head: parts * width, token }
    }

    /// Where a row starts.
    #[inline(always)]
    pub(crate) fn at(&self, batch: usize, head: usize, token: usize) -> usize {
        self.base + batch * self.batch + head * self.head + token * self.token
    }

    /// The rows as `[B, heads, tokens, width]`.
    pub(crate) fn gather<T: Copy>(&self, x: &[T], [b, heads, tokens, width]: [usize; 4]) -> Vec<T> {
        let mut y = Vec::with_capacity(b * heads * tokens * width);
        for batch in 0..b {
            for h in 0..heads {
                for t in 0..tokens {
                    y.extend_from_slice(&x[self.at(batch, h, t)..][..width]);
                }
            }
        }
        y
    }
}

/// `[B, T, heads · width]` as `[B, heads, T, width]`.
pub(crate) fn heads_first<T: Copy>(x: &[T], b: usize, tokens: usize, heads: usize, width: usize) -> Vec<T> {
    let mut y = Vec::with_capacity(x.len());
    for batch in 0..b {
        for h in 0..heads {
            for t in 0..tokens {
                y.extend_from_slice(&x[((batch * tokens + t) * heads + h) * width..][..width]);
            }
        }
    }
    y
}

/// `[B, heads, T, width]` as `[B, T, heads · width]`.
pub(crate) fn tokens_first<T: Copy>(x: &[T], b: usize, tokens: usize, heads: usize, width: usize) -> Vec<T> {
    heads_first(x, b, heads, tokens, width)
}

/// Keys or values of the past `[B·G, P, width]` followed by new ones `[B·G, N, width]`.
pub(super) fn joined<T: Copy>(past: &[T], new: &[T], heads: usize, p: usize, n: usize, width: usize) -> Vec<T> {
    let mut y = Vec::with_capacity(past.len() + new.len());
    for h in 0..heads {
        y.extend_from_slice(&past[h * p * width..][..p * width]);
        y.extend_from_slice(&new[h * n * width..][..n * width]);
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_sees_no_key_gives_zeros_and_one_that_sees_one_gives_its_value() {
        let sizes = Sizes { b: 1, h: 2, g: 1, s: 1, l: 2, d: 1, e: 2 };
        let mask = |_: usize, h: usize, _: usize, row: &mut [f64]| row[..2 - h].fill(f64::NEG_INFINITY);
        let c = Core {
            sizes,
            q: &[1.0, 1.0],
            k: &[f64::INFINITY, 1.0],
            v: &[1.0, 2.0, 3.0, 4.0],
            scale: 1.0,
            softcap: 0.0,
            mask: &mask,
            sink: None,
        };
        let got = core(&c, Stage::Softmax).unwrap();
        assert_eq!(got.y, [0.0, 0.0, 3.0, 4.0]);
        assert_eq!(got.scores, [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_sink_takes_its_share() {
        let sizes = Sizes { b: 1, h: 1, g: 1, s: 1, l: 1, d: 1, e: 1 };
        let c = Core {
            sizes,
            q: &[0.0],
            k: &[0.0],
            v: &[2.0],
            scale: 1.0,
            softcap: 0.0,
            mask: &|_, _, _, _| {},
            sink: Some(&[0.0]),
        };
        assert_eq!(core(&c, Stage::Nothing).unwrap().y, [1.0]);
    }
}
