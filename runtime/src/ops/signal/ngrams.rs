//! `TfIdfVectorizer`: n-grams of a sequence of integers, counted and weighed.
use std::collections::HashMap;

use super::super::shape::elements;
use super::super::{Attrs, Fact, OpDef, OpError, ints_of, need};
use super::zeros;
use crate::tensor::{DType, Tensor};

/// How often each n-gram of a pool occurs
pub(super) static TF_IDF_VECTORIZER: OpDef = OpDef::new(
    "TfIdfVectorizer",
    "how often each n-gram of a pool occurs in a sequence of integers, whether it does, or either weighed",
    |attrs, inputs| {
        let x = need(inputs, 0, "X")?;
        Ok(Some(vec![Fact::new(DType::F32, output_shape(&x.shape, width(attrs)?)?)]))
    },
    reference,
);

fn ints<'a>(attrs: &'a Attrs, name: &str) -> Result<&'a [i64], OpError> {
    attrs.ints(name)?.ok_or_else(|| OpError::attribute(name, "is missing"))
}

/// Entries of a row of the result: one more than the largest coordinate.
fn width(attrs: &Attrs) -> Result<usize, OpError> {
    let at = ints(attrs, "ngram_indexes")?;
    let top = at.iter().copied().max().unwrap_or(-1);
    match usize::try_from(top.saturating_add(1)) {
        Ok(n) if at.iter().all(|&i| i >= 0) => Ok(n),
        _ => Err(OpError::attribute("ngram_indexes", "has a negative entry")),
    }
}

fn output_shape(x: &[usize], width: usize) -> Result<Vec<usize>, OpError> {
    let to = match *x {
        [] | [_] => vec![width],
        [batch, _] => vec![batch, width],
        _ => return Err(OpError::shape("X", "[C] or [N, C]", x)),
    };
    elements(&to)?;
    Ok(to)
}

/// The n-grams of the lengths asked for, and the number and coordinate of each.
fn pool(attrs: &Attrs, lengths: std::ops::RangeInclusive<i64>) -> Result<HashMap<&[i64], (usize, usize)>, OpError> {
    if attrs.has("pool_strings") {
        return Err(OpError::unsupported("n-grams of strings"));
    }
    let (items, starts, at) =
        (ints(attrs, "pool_int64s")?, ints(attrs, "ngram_counts")?, ints(attrs, "ngram_indexes")?);
    let mut pool = HashMap::new();
    let mut id = 0;
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(items.len() as i64);
        let part = usize::try_from(start).ok().zip(usize::try_from(end).ok()).filter(|(s, e)| s <= e);
        let part = part.and_then(|(s, e)| items.get(s..e));
        let Some(part) = part else {
            return Err(OpError::attribute(
                "ngram_counts",
                format!("{starts:?} does not divide {} items", items.len()),
            ));
        };
        for gram in part.chunks_exact(i + 1) {
            let Some(&at) = at.get(id) else {
                return Err(OpError::attribute("ngram_indexes", format!("has no entry for n-gram {id}")));
            };
            if lengths.contains(&(i as i64 + 1)) {
                pool.insert(gram, (id, at as usize));
            }
            id += 1;
        }
    }
    Ok(pool)
}

fn reference(attrs: &Attrs, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let x = need(inputs, 0, "X")?;
    if !x.dtype().is_integer() {
        return Err(OpError::unsupported(format!("n-grams of {}", x.dtype())));
    }
    let to = output_shape(x.shape(), width(attrs)?)?;
    let (least, most) = (attrs.int("min_gram_length", 1)?, attrs.int("max_gram_length", 1)?);
    let skips = attrs.int("max_skip_count", 0)?;
    let pool = pool(attrs, least..=most)?;
    let width = to[to.len() - 1];
    let mut y = zeros(elements(&to)?)?;
    let weights = attrs.floats("weights")?;
    let weight = |id: usize| weights.and_then(|w| w.get(id)).map_or(1.0, |&w| f64::from(w));
    let count: &dyn Fn(&mut f64, usize) = match attrs.str("mode", "")? {
        "TF" => &|y, _| *y += 1.0,
        "IDF" => &|y, id| *y = weight(id),
        "TFIDF" => &|y, id| *y += weight(id),
        other => return Err(OpError::attribute("mode", format!("is `{other}`, not TF, IDF or TFIDF"))),
    };
    let row_len = x.shape().last().copied().unwrap_or(1);
    let v = ints_of(x);
    let longest = usize::try_from(most).unwrap_or(0).min(row_len);
    let shortest = usize::try_from(least).unwrap_or(0).max(1);
    let mut gram = Vec::with_capacity(longest);
    if width == 0 || row_len == 0 {
        return Ok(vec![Tensor::from_f64(DType::F32, &to, &y)?]);
    }
    for (row, y) in v.chunks_exact(row_len).zip(y.chunks_exact_mut(width)) {
        // A skip of the row's length or more leaves single elements, which are counted once.
        for distance in 1..=usize::try_from(skips).unwrap_or(0).min(row_len) + 1 {
            for start in 0..row_len {
                gram.clear();
                for at in (start..row_len).step_by(distance).take(longest) {
                    gram.push(row[at]);
                    if gram.len() >= shortest
                        && !(gram.len() == 1 && distance > 1)
                        && let Some(&(id, column)) = pool.get(&gram[..])
                    {
                        count(&mut y[column], id);
                    }
                }
            }
        }
    }
    Ok(vec![Tensor::from_f64(DType::F32, &to, &y)?])
}
