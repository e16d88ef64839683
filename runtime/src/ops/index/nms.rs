//! Boxes that do not overlap a better one too much.
use crate::ops::shape::depends_on_data;
use crate::ops::{OpDef, OpError, ints_of, need, optional};
use crate::tensor::Tensor;

/// `NonMaxSuppression`: of each class of each batch entry the boxes by falling score, without those whose intersection
/// over union with one already taken exceeds the threshold; rows `[batch, class, box]`.
pub(super) static NON_MAX_SUPPRESSION: OpDef = OpDef::new(
    "NonMaxSuppression",
    "the boxes that do not overlap a box with a higher score too much",
    depends_on_data,
    |attrs, inputs| {
        let (boxes, scores) = (need(inputs, 0, "boxes")?, need(inputs, 1, "scores")?);
        let (&[batches, count, 4], &[b, classes, n]) = (boxes.shape(), scores.shape()) else {
            return Err(OpError::shape("boxes and scores", "[B, N, 4] and [B, C, N]", (boxes.shape(), scores.shape())));
        };
        if (b, n) != (batches, count) {
            return Err(OpError::shape("scores", [batches, classes, count], scores.shape()));
        }
        let number = |i: usize| optional(inputs, i).and_then(|t| t.as_f32().ok()?.first().copied());
        let most = optional(inputs, 2).and_then(|t| ints_of(t).first().copied()).unwrap_or(0).max(0) as usize;
        let threshold = number(3).unwrap_or(0.0);
        let least = number(4);
        let center = attrs.flag("center_point_box", false)?;
        let (boxes, scores) = (boxes.as_f32()?, scores.as_f32()?);
        let corners: Vec<Corners> = boxes.as_chunks::<4>().0.iter().map(|b| Corners::new(b, center)).collect();
        let mut out: Vec<i64> = Vec::new();
        for batch in 0..batches {
            let corners = &corners[batch * count..][..count];
            for class in 0..classes {
                let scores = &scores[(batch * classes + class) * count..][..count];
                let mut order: Vec<usize> = (0..count).filter(|&i| least.is_none_or(|l| scores[i] > l)).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                let mut taken: Vec<usize> = Vec::new();
                for i in order {
                    if taken.len() >= most {
                        break;
                    }
                    if taken.iter().all(|&t| corners[i].overlap(&corners[t]) <= threshold) {
                        taken.push(i);
                        out.extend([batch as i64, class as i64, i as i64]);
                    }
                }
            }
        }
        Ok(vec![Tensor::i64(&[out.len() / 3, 3], out)?])
    },
);

/// A box as its lower and upper corner.
struct Corners {
    low: [f32; 2],
    high: [f32; 2],
}

impl Corners {
    /// From two opposite corners, whichever they are, or from a centre and sides.
    fn new(b: &[f32; 4], center: bool) -> Corners {
        let [p, q, r, s] = *b;
        if center {
            let (w, h) = (r / 2.0, s / 2.0);
            return Corners { low: [p - w, q - h], high: [p + w, q + h] };
        }
        Corners { low: [p.min(r), q.min(s)], high: [p.max(r), q.max(s)] }
    }

    fn area(&self) -> f32 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }

    /// Intersection over union, in `f32` as ONNX Runtime computes it, since it is compared with a threshold.
    fn overlap(&self, other: &Corners) -> f32 {
        let side = |i: usize| self.high[i].min(other.high[i]) - self.low[i].max(other.low[i]);
        let (w, h) = (side(0), side(1));
        if !(w > 0.0 && h > 0.0 && self.area() > 0.0 && other.area() > 0.0) {
            return f32::NEG_INFINITY;
        }
        let both = w * h;
        both / (self.area() + other.area() - both)
    }
}
