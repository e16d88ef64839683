//! What the journal says about a head that was not the one shown.
use super::AppError;
use super::classes::Head;
use crate::journal::{Reader, Signal};
use crate::metrics::offpolicy::Logged;
use crate::model::{Model, Seen, probabilities};

/// The decisions of the journal after record `after`, as `head` would have made them: it always shows its most probable
/// class.
///
/// The reward is what was said of the class shown: 1 for 👍 or being named, 0 for 👎 or another class named, stars
/// between. Presses that do not tell (a preference, "not sure"), runner-ups and presses under suspicion are no
/// decisions. The reward model is the shipped head, which has seen none of the presses. Only what was pressed on is
/// known: a person who presses on some answers more than on others is a bias no estimate here removes.
///
/// # Errors
/// [`AppError::Store`], [`AppError::Learn`].
pub fn decisions(model: &Model, reader: &Reader, head: &Head, after: u64) -> Result<Vec<Logged>, AppError> {
    let mut log = Vec::new();
    for p in reader.effective_presses()? {
        let same_model = p.example.model_digest == model.bundle().base_digest();
        let (Some(shown), Some(mu)) = (p.shown_class.map(|c| c as usize), p.mu) else { continue };
        if !same_model || p.suspect || p.ambiguous || p.after.is_some() || p.press_id.0 <= after {
            continue;
        }
        if shown >= head.classes.len() {
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
        let seen = Seen { feature: p.example.feature, logits: p.example.logits, ..Seen::default() };
        let best = head.classes.top(&head.logits(&seen)?);
        let mut target = vec![0.0; head.classes.len()];
        target[best] = 1.0;
        let expected = probabilities(&seen.logits);
        let mut expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        expected.resize(target.len(), 0.0);
        let action = head.classes.stands_for(shown);
        log.push(Logged { action, mu: f64::from(mu), reward, target, model: expected });
    }
    Ok(log)
}
