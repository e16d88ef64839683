//! The classes of a state: what the bundle ships and the journal tells of changes.
use super::AppError;
use crate::adapters::Adapter;
use crate::journal::{ClassesEvent, Filter, Kind, Reader, StoreError};
use crate::learn::classes::continued;
use crate::learn::{Classes, HeadBase, Kept, Theta};
use crate::model::{Model, Seen};
use crate::state::{StateDir, StateError};

/// The classes of the bundle `base_digest` as the journal tells them.
///
/// # Errors
/// [`AppError::Store`]; [`AppError::Classes`] for a journal whose changes contradict each other.
pub fn told(labels: &[String], base_digest: &str, reader: &Reader) -> Result<Classes, AppError> {
    let mut classes = Classes::shipped(labels);
    for record in reader.list(&Filter { kind: Some(Kind::Classes), ..Filter::default() })? {
        let Some(event) = record.payload.as_deref().and_then(|text| serde_json::from_str::<ClassesEvent>(text).ok())
        else {
            continue;
        };
        if event.base_digest == base_digest {
            classes.apply(record.seq, &event.change)?;
        }
    }
    Ok(classes)
}

/// The classes to show answers of `adapter` in: as the journal of `state` tells them, else as they were when the
/// adapter was published, else as shipped. Takes no lock.
///
/// # Errors
/// [`AppError`] when the journal cannot be read, or knows fewer classes than the adapter has.
pub fn known(state: Option<&StateDir>, model: &Model, adapter: Option<&Adapter>) -> Result<Classes, AppError> {
    let (labels, base) = (model.labels(), model.bundle().base_digest());
    let told = match state.map(Reader::open) {
        None | Some(Err(StoreError::State(StateError::Missing { .. }))) => None,
        Some(reader) => Some(told(labels, base, &reader?)?),
    };
    let stored = adapter.and_then(|a| a.provenance.classes.clone());
    let classes = match (told, stored) {
        // A journal that knows of nothing may be younger than the adapter.
        (Some(told), Some(stored)) if told.len() < stored.len() => stored,
        (Some(told), _) => told,
        (None, stored) => stored.unwrap_or_else(|| Classes::shipped(labels)),
    };
    check(&classes, adapter)?;
    Ok(classes)
}

/// An adapter has no class that is not known.
pub(super) fn check(classes: &Classes, adapter: Option<&Adapter>) -> Result<(), AppError> {
    match adapter {
        Some(a) if a.classes < classes.shipped_len() || a.classes > classes.len() => {
            Err(AppError::ForeignClasses { adapter: a.classes, known: classes.len() })
        }
        _ => Ok(()),
    }
}

/// What answers when nobody learns: the shipped head, with the correction of an adapter or without, in the classes
/// known.
#[derive(Clone, Debug)]
pub struct Head {
    /// The classes of its answers.
    pub classes: Classes,
    base: HeadBase,
    theta: Option<Theta>,
}

impl Head {
    /// The head of `adapter`, `None` being the factory head, in the classes that `state` knows.
    ///
    /// # Errors
    /// Those of [`known`]; [`AppError::Learn`] for a correction of another head.
    pub fn new(model: &Model, state: Option<&StateDir>, adapter: Option<Adapter>) -> Result<Head, AppError> {
        let classes = known(state, model, adapter.as_ref())?;
        let base = model.base().with_fourier(adapter.as_ref().map_or(0, |a| a.provenance.random_features));
        let theta = adapter.map(|a| Theta::new(a.classes, a.columns, a.theta)).transpose()?;
        Ok(Head { classes, base, theta })
    }

    /// What it keeps of the source; `None` where the bundle ships nothing to measure by.
    ///
    /// # Errors
    /// [`AppError::Learn`] for a correction of another head.
    pub fn kept(&self, model: &Model) -> Result<Option<Kept>, AppError> {
        let factory = Theta::zeros(self.base.classes(), self.base.width());
        let theta = self.theta.as_ref().unwrap_or(&factory);
        Ok(model.coreset().map(|c| c.kept(model.task(), &self.base, theta)).transpose()?.flatten())
    }

    /// Logits of what the graph made of a sample, of every class this head has a say about.
    ///
    /// # Errors
    /// [`AppError::Learn`] for a correction of another head.
    pub fn logits(&self, seen: &Seen) -> Result<Vec<f32>, AppError> {
        Ok(match &self.theta {
            Some(theta) => {
                theta.apply(&self.base.standardise(&seen.feature)?, &continued(&seen.logits, theta.classes()))?
            }
            None => seen.logits.clone(),
        })
    }
}
