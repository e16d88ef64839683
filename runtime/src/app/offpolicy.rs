//! What the journal says about a head that was not the one shown.
use std::collections::BTreeMap;

use super::AppError;
use super::classes::Head;
use super::kept::KeptInputs;
use crate::adapters::{AdapterId, AdapterStore};
use crate::journal::{EffectivePress, Reader, Signal};
use crate::metrics::offpolicy::Logged;
use crate::model::{Model, Seen, probabilities};

/// The decisions of a journal as one head would have made them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decisions {
    /// By the prediction that was shown.
    pub log: BTreeMap<u32, Logged>,
    /// Predictions with presses that are too old: the head may have been learned from them.
    pub too_old: usize,
    /// Predictions that another body has seen and whose inputs are not kept, so that nobody can say what this one would
    /// make of them.
    pub unseen: usize,
}

/// The decisions of the journal after record `after`, as `head` of the adapter `id` would have made them on the body it
/// stands on: it always shows its most probable class. That body is put on `model`; what another body has seen is
/// looked at again where the inputs are kept.
///
/// The reward is what was said of the class shown: 1 for 👍 or being named, 0 for 👎 or another class named, stars
/// between. Several presses on one prediction are one decision: the mean of them, or of the confirmed ones where there
/// are any. Presses that do not tell (a preference, "not sure"), runner-ups and presses under suspicion are no
/// decisions. The reward model is the graph's own head, without what was learned from presses. Only what was pressed on
/// is known: a person who presses on some answers more than on others is a bias no estimate here removes.
///
/// # Errors
/// [`AppError::Store`], [`AppError::Learn`], [`AppError::Model`] when the body of the adapter cannot be put on.
pub fn decisions(
    model: &mut Model,
    store: &AdapterStore,
    id: Option<&AdapterId>,
    reader: &Reader,
    head: &Head,
    after: u64,
) -> Result<Decisions, AppError> {
    model.put_on(store, id)?;
    let presses = reader.effective_presses()?;
    let mut kept = KeptInputs::new(reader.state());
    kept.remake(model, &presses);
    let mut found = Decisions::default();
    let mut rewards: BTreeMap<u32, Vec<(&EffectivePress, f64)>> = BTreeMap::new();
    for p in &presses {
        let same_bundle = p.example.model_digest.split('+').next() == Some(model.bundle().base_digest());
        let (Some(prediction), Some(shown)) = (p.prediction_id, p.shown_class.map(|c| c as usize)) else { continue };
        if !same_bundle || p.suspect || p.ambiguous || p.after.is_some() || shown >= head.classes.len() {
            continue;
        }
        let one = |class: u32| {
            (class as usize) < head.classes.len() && {
                head.classes.stands_for(class as usize) == head.classes.stands_for(shown)
            }
        };
        let reward = match p.signal {
            Signal::Thumb { up } => f64::from(u8::from(up)),
            Signal::Correction { class } => f64::from(u8::from(one(class))),
            Signal::Stars { stars } => f64::from(stars.saturating_sub(1)) / 4.0,
            Signal::Preference { .. } | Signal::NotSure | Signal::Demonstration { .. } | Signal::Undo => continue,
        };
        rewards.entry(prediction).or_default().push((p, reward));
    }
    for (prediction, said) in rewards {
        // One press that was learned from is enough to know the answer by heart.
        if said.iter().any(|(p, _)| p.press_id.0 <= after) {
            found.too_old += 1;
            continue;
        }
        let (p, _) = said[0];
        let Some((feature, logits)) = kept.current(model, p) else {
            found.unseen += 1;
            continue;
        };
        let (Some(shown), Some(mu)) = (p.shown_class, p.mu) else { continue };
        let confirmed = said.iter().any(|(p, _)| p.confirmed);
        let counting: Vec<f64> =
            said.iter().filter(|(p, _)| p.confirmed == confirmed).map(|(_, reward)| *reward).collect();
        let reward = counting.iter().sum::<f64>() / counting.len() as f64;
        let seen = Seen { feature: feature.to_vec(), logits: logits.to_vec(), ..Seen::default() };
        let best = head.classes.top(&head.logits(&seen)?);
        let mut target = vec![0.0; head.classes.len()];
        target[best] = 1.0;
        let mut expected: Vec<f64> = probabilities(&seen.logits).into_iter().map(f64::from).collect();
        expected.resize(target.len(), 0.0);
        let action = head.classes.stands_for(shown as usize);
        found.log.insert(prediction, Logged { action, mu: f64::from(mu), reward, target, model: expected });
    }
    Ok(found)
}
