//! What is shown, what is asked with it, and what is offered after a 👎.
use super::{Answer, App, AppError};
use crate::feedback::ledger::lock;
use crate::journal::{Digest, EffectivePress, Example, PressKind, Shown, Signal};
use crate::learn::Feedback;
use crate::learn::ask::margin;

/// What a person is asked with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing: a press is welcome.
    Nothing,
    /// "Is this right?" The answer is among the least sure of late.
    Right,
    /// "Is this right? Hold to confirm." Evidence is due.
    Confirm,
    /// "I am not sure: is it this, or the second?" The answer itself is held back.
    Which {
        /// The class next in line.
        or: usize,
    },
}

impl Ask {
    /// The name in messages to programs.
    pub fn name(self) -> &'static str {
        match self {
            Ask::Nothing => "nothing",
            Ask::Right => "right",
            Ask::Confirm => "confirm",
            Ask::Which { .. } => "which",
        }
    }
}

/// The answer shown last.
pub(super) struct Last {
    id: u32,
    answer: Answer,
    /// It was offered in the place of another one.
    offered: bool,
    /// Somebody said 👎.
    refused: bool,
}

impl App {
    /// The answer that is shown in the place of the most probable one, where the display explores, with the probability
    /// it was chosen with; else the answer as it is.
    pub fn explore(&mut self, mut answer: Answer) -> Answer {
        let chance = self.chance.unit();
        let p = &answer.probabilities;
        let (class, mu) = self.settings.display.choose(p, answer.class, self.shown, chance);
        answer.class = class;
        answer.near = self.near(class);
        answer.mu = mu as f32;
        answer
    }

    /// What is asked with this answer. It counts as shown; ask once for each.
    pub fn ask(&mut self, answer: &Answer) -> Ask {
        let low = self.asker.as_mut().is_some_and(|a| a.observe(margin(&answer.probabilities)));
        let unsure = self.settings.abstain.is_some_and(|least| f64::from(answer.confidence) < least);
        if unsure && let Some(&or) = answer.ranking().iter().find(|c| !answer.near.contains(c)) {
            return Ask::Which { or };
        }
        if self.learner.wants_confirmation() && self.learner.training_predictions() > 0 {
            return Ask::Confirm;
        }
        if low { Ask::Right } else { Ask::Nothing }
    }

    /// Records an answer that is about to be put before a person; durable when this returns. The id binds what is said.
    ///
    /// # Errors
    /// [`AppError::Store`]; the answer must then not be shown as one that can be judged.
    pub fn show(&mut self, answer: &Answer) -> Result<u32, AppError> {
        let inputs = self.keep(answer)?;
        let id = lock(&self.journal).shown(&self.shown_record(answer, inputs))?;
        self.told_of(id, answer, false)?;
        Ok(id)
    }

    /// The class next in line when the answer shown last was refused and was no runner-up itself. It must be offered
    /// with [`App::offer`] before the next answer is shown.
    pub fn runner_up(&self) -> Option<(u32, Answer)> {
        let last = self.last.as_ref().filter(|l| l.refused && !l.offered)?;
        let next = last.answer.ranking().into_iter().find(|c| !last.answer.near.contains(c))?;
        let possible = last.answer.probabilities[next] > 0.0;
        possible.then(|| (last.id, Answer { class: next, near: self.near(next), mu: 1.0, ..last.answer.clone() }))
    }

    /// As [`App::show`], for a class offered in the place of the refused prediction `after`.
    ///
    /// # Errors
    /// As [`App::show`].
    pub fn offer(&mut self, answer: &Answer, after: u32) -> Result<u32, AppError> {
        let inputs = self.keep(answer)?;
        let id = lock(&self.journal).offered(&self.shown_record(answer, inputs), after)?;
        self.told_of(id, answer, true)?;
        Ok(id)
    }

    /// "The answer shown last, rather than that class."
    ///
    /// # Errors
    /// [`AppError::NothingSeen`] before the first answer; [`AppError::Learn`] for the very class that was shown, or
    /// what is no class.
    pub fn rather_than(&self, class: usize) -> Result<PressKind, AppError> {
        let shown = self.last.as_ref().ok_or(AppError::NothingSeen)?.answer.class;
        Feedback::Preference { over: class }.check(shown, self.classes.len())?;
        Ok(PressKind::Preference { over: class as u32 })
    }

    /// "What this answer is to is of that class": a demonstration, whatever was answered. Its inputs are kept where
    /// inputs are.
    ///
    /// # Errors
    /// [`AppError::Learn`] for what is no class, [`AppError::Store`].
    pub fn example_of(&mut self, class: usize, answer: &Answer) -> Result<PressKind, AppError> {
        Feedback::Demonstration { class }.check(answer.class, self.classes.len())?;
        let inputs = self.keep(answer)?;
        let example = Box::new(Example { inputs, ..self.example(answer) });
        Ok(PressKind::Demonstration { class: class as u32, example })
    }

    /// A press was taken up: whether the answer shown last is refused by it.
    pub(super) fn heard(&mut self, p: &EffectivePress) {
        if let Some(last) = self.last.as_mut().filter(|l| p.prediction_id == Some(l.id)) {
            last.refused = p.signal == Signal::Thumb { up: false };
        }
    }

    fn told_of(&mut self, id: u32, answer: &Answer, offered: bool) -> Result<(), AppError> {
        self.shown = u64::from(id);
        if !offered {
            self.displayed(answer)?;
        }
        self.last = Some(Last { id, answer: answer.clone(), offered, refused: false });
        Ok(())
    }

    /// Keeps what was put into the model, if inputs are kept; what the record refers to.
    fn keep(&mut self, answer: &Answer) -> Result<Vec<Digest>, AppError> {
        let inputs = self.kept.put(&answer.seen.inputs)?;
        if self.kept.is_full() {
            let presses = lock(&self.journal).reader().effective_presses()?;
            self.kept.make_room(&presses.iter().flat_map(|p| p.example.inputs.iter().copied()).collect())?;
        }
        Ok(inputs)
    }

    fn shown_record(&self, answer: &Answer, inputs: Vec<Digest>) -> Shown {
        Shown {
            example: Example { inputs, ..self.example(answer) },
            class: answer.class as u32,
            label: self.classes.name(answer.class).to_string(),
            mu: answer.mu,
            p: answer.p().clamp(0.0, 1.0),
        }
    }
}
