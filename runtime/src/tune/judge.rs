//! Whether a tuned model may replace the one in use: both answer the validation examples, which trained neither.
use std::sync::Arc;

use super::{Batcher, Examples, TuneError};
use crate::graph::Graph;
use crate::learn::gate::{self, Answered, Verdict};
use crate::learn::{Decision, GateConfig, argmax};
use crate::plan::{RunOptions, Runner};
use crate::tensor::Tensor;
use crate::train::{Objective, TrainError};

/// Classes a graph answers to examples, by its value `output`, and what is right.
///
/// # Errors
/// [`TuneError`] when an example cannot be read or the graph does not run.
pub fn answers(
    graph: &Graph,
    output: &str,
    examples: &mut dyn Examples,
    of: &[usize],
    options: &RunOptions,
) -> Result<Vec<(usize, usize)>, TuneError> {
    let mut one = graph.clone();
    let v = graph.values.iter().position(|v| v.name == output);
    one.outputs = v.into_iter().collect();
    one.prune();
    // Targets are of no interest here, and may be of any kind.
    let batcher = Batcher::new(graph, Objective::CrossEntropy, 1);
    let mut runner = Runner::new(Arc::new(one), options.clone());
    let mut out = Vec::with_capacity(of.len());
    for &i in of {
        let Some(truth) = examples.class(i) else { continue };
        for batch in batcher.batches(examples, &[i])? {
            let found = runner.run(&batch.inputs.iter().collect::<Vec<&Tensor>>()).map_err(TrainError::from)?;
            if let Some(t) = found.first() {
                out.push((argmax(t.as_f32()?), truth));
            }
        }
    }
    Ok(out)
}

/// Share of right answers; `None` without any.
pub fn accuracy(answers: &[(usize, usize)]) -> Option<f64> {
    let right = answers.iter().filter(|(a, t)| a == t).count();
    (!answers.is_empty()).then(|| right as f64 / answers.len() as f64)
}

/// The gate on what the candidate, the model in use and the factory model answered to the same examples.
pub fn judge(
    config: &GateConfig,
    candidate: &[(usize, usize)],
    incumbent: &[(usize, usize)],
    factory: &[(usize, usize)],
) -> Decision {
    let answered = |&(class, truth): &(usize, usize)| {
        let right = class == truth;
        // Of examples only the answers are kept.
        Answered { class, right: f64::from(u8::from(right)), possible: right, foretold: 0.5 }
    };
    let evidence: Vec<Verdict> = candidate
        .iter()
        .zip(incumbent)
        .zip(factory)
        .map(|((c, i), f)| Verdict { candidate: answered(c), incumbent: answered(i), factory: answered(f) })
        .collect();
    gate::judge(config, &evidence)
}
