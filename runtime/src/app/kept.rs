//! Kept inputs: what was put into the model for predictions a person pressed about, within a quota.
//!
//! With them a feature that another body has made is made again when the body changes, and scopes that change the body
//! can be trained from the journal. An input is kept as the tensors the graph takes, one `.npz` blob for each
//! prediction. Those nobody pressed about go first when the quota is full, then the oldest. What is dropped stays in
//! the journal by its digest.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::str::FromStr;

use crate::bundle::npz;
use crate::journal::{Blobs, Digest, EffectivePress, StoreError};
use crate::model::Model;
use crate::state::StateDir;
use crate::tensor::Tensor;

/// Most bytes of kept inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota(pub u64);

/// How a quota is written.
const FORM: &str = "a number of bytes with KiB, MiB or GiB behind it, such as 64MiB";

impl FromStr for Quota {
    type Err = String;

    /// # Errors
    /// A sentence unless `text` is a whole number with a unit.
    fn from_str(text: &str) -> Result<Quota, String> {
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let shift = match unit {
            "" | "B" => 0,
            "KiB" | "K" => 10,
            "MiB" | "M" => 20,
            "GiB" | "G" => 30,
            _ => return Err(format!("`{text}` is not {FORM}")),
        };
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        bytes.map(Quota).ok_or_else(|| format!("`{text}` is not {FORM}"))
    }
}

/// Predictions shown last whose inputs stay although nobody has pressed yet.
const RECENT: usize = 8;

/// The kept inputs, and features made from them.
pub(super) struct KeptInputs {
    blobs: Blobs,
    quota: Option<Quota>,
    total: u64,
    recent: VecDeque<Digest>,
    /// What `maker` makes of inputs whose features something else has made.
    remade: BTreeMap<Digest, (Vec<f32>, Vec<f32>)>,
    maker: String,
}

impl KeptInputs {
    pub(super) fn new(state: &StateDir) -> KeptInputs {
        let (remade, recent) = (BTreeMap::new(), VecDeque::new());
        KeptInputs { blobs: Blobs::new(state), quota: None, total: 0, recent, remade, maker: String::new() }
    }

    /// Where inputs are kept.
    pub(super) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Keeps inputs from now on.
    pub(super) fn keep(&mut self, quota: Quota) -> Result<(), StoreError> {
        self.quota = Some(quota);
        self.total = self.blobs.sizes()?.iter().map(|b| b.bytes).sum();
        Ok(())
    }

    /// Whether another blob would be more than the quota.
    pub(super) fn is_full(&self) -> bool {
        self.quota.is_some_and(|q| self.total > q.0)
    }

    /// Stores the inputs of a prediction that is about to be recorded; none without a quota, or when one alone is above
    /// it.
    pub(super) fn put(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<Digest>, StoreError> {
        let Some(quota) = self.quota else { return Ok(Vec::new()) };
        let bytes = npz::write_npz(inputs.iter().map(|(n, t)| (n.as_str(), t)))
            .map_err(|e| StoreError::Unfit { field: "inputs", reason: e.to_string() })?;
        if bytes.len() as u64 > quota.0 {
            return Ok(Vec::new());
        }
        let digest = self.blobs.put(&bytes)?;
        self.total += bytes.len() as u64;
        self.recent.push_back(digest);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        Ok(vec![digest])
    }

    /// Drops until a tenth of the quota is free again; `pressed` are the ones to drop last.
    pub(super) fn make_room(&mut self, pressed: &BTreeSet<Digest>) -> Result<(), StoreError> {
        let Some(Quota(quota)) = self.quota else { return Ok(()) };
        let mut all = self.blobs.sizes()?;
        self.total = all.iter().map(|b| b.bytes).sum();
        all.sort_by_key(|b| (pressed.contains(&b.digest), b.written, b.digest));
        for b in all {
            if self.total <= quota - quota / 10 {
                break;
            }
            if !self.recent.contains(&b.digest) {
                self.blobs.drop_content(&b.digest)?;
                self.total -= b.bytes;
            }
        }
        Ok(())
    }

    /// Makes the features anew of presses that another body of this bundle has seen and whose inputs are kept. An input
    /// that cannot be read any more leaves its feature stale.
    pub(super) fn remake(&mut self, model: &mut Model, presses: &[EffectivePress]) {
        let maker = model.maker();
        if maker != self.maker {
            self.remade.clear();
            self.maker = maker;
        }
        for p in presses {
            let Some(digest) = p.example.inputs.first() else { continue };
            if p.example.model_digest == self.maker
                || !same_base(&p.example.model_digest, model)
                || self.remade.contains_key(digest)
            {
                continue;
            }
            if let Some(made) = inputs(&self.blobs, digest).and_then(|inputs| model.look(&inputs).ok()) {
                self.remade.insert(*digest, made);
            }
        }
    }

    /// Feature and logits of a press as the model would make them now; `None` for another model's, and for stale ones.
    pub(super) fn current<'a>(&'a self, model: &Model, p: &'a EffectivePress) -> Option<(&'a [f32], &'a [f32])> {
        if p.example.model_digest == model.maker() {
            return Some((&p.example.feature, &p.example.logits));
        }
        if !same_base(&p.example.model_digest, model) || self.maker != model.maker() {
            return None;
        }
        self.remade.get(p.example.inputs.first()?).map(|(f, l)| (&f[..], &l[..]))
    }

    /// Whether a press is about this bundle, but its feature is another body's and cannot be made again.
    pub(super) fn is_stale(&self, model: &Model, p: &EffectivePress) -> bool {
        same_base(&p.example.model_digest, model) && self.current(model, p).is_none()
    }
}

/// The inputs of a blob.
pub(super) fn inputs(blobs: &Blobs, digest: &Digest) -> Option<Vec<(String, Tensor)>> {
    npz::read_npz(&blobs.get(digest).ok()?).ok()
}

fn same_base(maker: &str, model: &Model) -> bool {
    maker.split('+').next() == Some(model.bundle().base_digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_number_with_a_unit() {
        for (text, bytes) in [("64MiB", 64 << 20), ("1G", 1 << 30), ("10", 10), ("3KiB", 3 << 10)] {
            assert_eq!(text.parse(), Ok(Quota(bytes)));
        }
        for text in ["", "MiB", "-1", "1.5MiB", "3 MiB", "9999999999999G"] {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
    }
}
