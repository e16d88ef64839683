//! How the log becomes a correction: the MAP refit or the minibatch replay, as the objective asks.
use super::error::LearnError;
use super::head::{HeadBase, Theta};
use super::learner::LearnerConfig;
use super::objective::{HeadFit, ObjectiveDef, find};
use super::solver::minibatch::{MinibatchSolver, Pressed};
use super::solver::{HeadSolver, Row, SolverConfig, canonical_refit};
use crate::Note;

/// One training prediction in the form its objective learns from.
#[derive(Clone, Debug)]
pub(crate) enum TrainingRow {
    Likelihood(Row),
    Pressed(Pressed),
}

/// The incremental solver of an objective.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    Map(Box<HeadSolver>),
    Minibatch(Box<MinibatchSolver>),
}

/// The objective that `config` names.
///
/// # Errors
/// [`LearnError::UnknownObjective`].
pub(crate) fn objective(config: &LearnerConfig) -> Result<&'static ObjectiveDef, LearnError> {
    find(&config.objective).ok_or_else(|| LearnError::UnknownObjective { name: config.objective.clone() })
}

/// The settings of the refit: cross-entropy is the refit that takes presses at their word.
pub(crate) fn solver_config(config: &LearnerConfig) -> SolverConfig {
    let mut solver = config.solver.clone();
    if config.objective == super::objective::ce::CE.name {
        solver.hyper.delta = 0.0;
    }
    solver
}

impl Engine {
    /// An engine that has heard nothing.
    pub(crate) fn new(base: &HeadBase, config: &LearnerConfig) -> Result<Engine, LearnError> {
        let objective = objective(config)?;
        Ok(match objective.fit {
            HeadFit::Map => Engine::Map(Box::new(HeadSolver::for_head(base, solver_config(config))?)),
            HeadFit::Minibatch { learning_rate } => {
                config.solver.check()?;
                Engine::Minibatch(Box::new(MinibatchSolver::new(
                    base.classes(),
                    base.width() - 1,
                    objective,
                    config.solver.hyper,
                    config.learning_rate.unwrap_or(learning_rate),
                    config.minibatch.clone(),
                )?))
            }
        })
    }

    /// An engine that holds `rows` and stands at their canonical correction.
    pub(crate) fn with_rows(
        base: &HeadBase,
        config: &LearnerConfig,
        rows: &[TrainingRow],
    ) -> Result<Engine, LearnError> {
        let mut engine = Engine::new(base, config)?;
        match &mut engine {
            Engine::Map(solver) => **solver = HeadSolver::with_rows(base, &likelihoods(rows), solver_config(config))?,
            Engine::Minibatch(_) => {
                for row in rows {
                    engine.push(row)?;
                }
            }
        }
        Ok(engine)
    }

    /// The canonical correction of `rows` in their order; a function of them alone.
    pub(crate) fn canonical(
        base: &HeadBase,
        config: &LearnerConfig,
        rows: &[TrainingRow],
    ) -> Result<Theta, LearnError> {
        match objective(config)?.fit {
            HeadFit::Map => canonical_refit(base, &likelihoods(rows), &solver_config(config)),
            HeadFit::Minibatch { .. } => Ok(Engine::with_rows(base, config, rows)?.theta()),
        }
    }

    /// The canonical correction of the rows it holds, where what it keeps from press to press tells it; else it takes
    /// [`Engine::canonical`].
    pub(crate) fn refit(&self) -> Result<Option<Theta>, LearnError> {
        match self {
            Engine::Map(solver) => solver.refit(),
            Engine::Minibatch(_) => Ok(None),
        }
    }

    pub(crate) fn push(&mut self, row: &TrainingRow) -> Result<(), LearnError> {
        match (self, row) {
            (Engine::Map(solver), TrainingRow::Likelihood(row)) => solver.push(row).map(|_| ()),
            (Engine::Minibatch(solver), TrainingRow::Pressed(pressed)) => solver.push(pressed),
            _ => unreachable!("rows are made for the engine's objective"),
        }
    }

    /// Replaces what was said about row `index`; false when that takes a fresh engine.
    pub(crate) fn replace(&mut self, index: usize, row: &TrainingRow) -> Result<bool, LearnError> {
        match (self, row) {
            (Engine::Map(solver), TrainingRow::Likelihood(row)) => {
                solver.replace(index, &row.likelihood, row.names_class)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    pub(crate) fn theta(&self) -> Theta {
        match self {
            Engine::Map(solver) => solver.theta(),
            Engine::Minibatch(solver) => solver.theta(),
        }
    }

    pub(crate) fn novelty(&self, z: &[f32], lambda: f64) -> Result<f64, LearnError> {
        match self {
            Engine::Map(solver) => solver.novelty(z),
            Engine::Minibatch(_) => Ok(z.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / lambda),
        }
    }

    pub(crate) fn note(&self) -> Option<Note> {
        match self {
            Engine::Map(solver) => solver.note(),
            Engine::Minibatch(_) => None,
        }
    }
}

fn likelihoods(rows: &[TrainingRow]) -> Vec<Row> {
    let of = |row: &TrainingRow| match row {
        TrainingRow::Likelihood(row) => Some(row.clone()),
        TrainingRow::Pressed(_) => None,
    };
    rows.iter().filter_map(of).collect()
}
