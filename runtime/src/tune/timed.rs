//! One step of a run by itself, to be timed: which of two devices a run takes is measured, not believed.
use super::batch::Batcher;
use super::body::Featured;
use super::{TuneError, Work, check, chosen, examples, memory, renew};
use crate::scope;

impl Work<'_> {
    /// Lets `time` make the first step of the run as often as it likes, on the device of the options; what `time` gives. Nothing is learned, and
    /// the run is the same afterwards.
    ///
    /// # Errors
    /// [`TuneError`] as [`Work::run`] before its first step, and that of `time`.
    pub fn timed<R>(
        &mut self,
        time: impl FnOnce(&mut dyn FnMut() -> Result<(), TuneError>) -> Result<R, TuneError>,
    ) -> Result<R, TuneError> {
        let Work { graph, opset, settings, options, .. } = self;
        let (mut spec, examples) = (self.spec.clone(), &mut *self.examples);
        check(settings)?;
        let (train, validation) = examples::divide(examples, settings.validation, settings.seed)?;
        let batcher = Batcher::new(graph, settings.objective, settings.batch);
        if spec.scopes.iter().any(|s| s == "sparse") && spec.tensors.is_empty() {
            spec.tensors = chosen::chosen(graph, *opset, &spec, settings, options, examples, &batcher, &train)?;
        }
        let scoped = scope::place(graph, *opset, &spec)?;
        let all = [&train[..], &validation].concat();
        let extremes = batcher.extremes(examples, &all)?;
        let planned = memory::plan(&scoped, &spec, settings, options, &batcher, &extremes, (all.len(), 0))?;
        let memory::Planned { mut trainer, needs, body } = planned;
        if examples.renews() {
            let values = scope::values(&scoped.graph, &scoped.trainable);
            renew(examples, &scoped, &values, &spec.output, options)?;
        }
        let part = &train[..train.len().min(settings.batch * settings.accumulate)];
        let batches = match (body, needs.stored) {
            (Some(body), Some(mut stored)) => {
                let batcher = body.batcher(&batcher);
                stored.kept = 0;
                batcher.batches(&mut Featured::new(examples, body, part, &mut stored)?, part)?
            }
            _ => batcher.batches(examples, part)?,
        };
        // Without a rate nothing moves.
        time(&mut || Ok(trainer.step(&batches, 0.0).map(drop)?))
    }
}
