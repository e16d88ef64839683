//! A plan on a GPU: its steps as calls in one arena that mirrors the CPU's, offset by offset.
//!
//! What has no kernel for the device runs on the CPU in between; values cross only where the other side reads them. Where
//! they cross was settled when the plan was made. The CPU's own plan stays whole beside it: when the device is lost, or an
//! operand has no result, the run is made again there.
use std::ops::Range;
use std::sync::Arc;

use hone_gpu::device::{Binding, Builder, Device, GpuError, Recording};
use hone_gpu::kernel::Call;

use super::record::{At, Image, Recorded};
use super::resident::Residents;
use super::{Packs, Place, Slot, Step};
use crate::graph::ValueId;

/// Steps that run together on one side.
enum Part {
    /// Segment of the recording; bytes to put there before, those of residents apart, and to fetch after it.
    Gpu { segment: usize, up: Vec<Range<usize>>, residents: Vec<Range<usize>>, down: Vec<Range<usize>> },
    /// Steps of the plan.
    Cpu(Range<usize>),
}

/// What became of a run.
pub(super) enum Outcome {
    /// The results that outlive the steps are in the CPU's arena.
    Done,
    /// An operand has no result.
    Fault,
    /// The device is gone.
    Lost(GpuError),
}

/// The recorded part of a plan.
pub(super) struct Accelerated {
    recording: Recording,
    parts: Vec<Part>,
    /// Where the fault word is; `None` when no call writes it.
    fault: Option<Range<usize>>,
    /// What a run updates in place, and room for it as it was: a run that is made again begins there.
    updated: Vec<Range<usize>>,
    before: Vec<u8>,
    /// Whether every resident is on the device as it is in the arena, once a run is done.
    keeps: bool,
    /// The state of the arena whose residents are on the device.
    seen: Option<u64>,
    /// For each step, whether it runs on the device.
    pub(super) on_gpu: Vec<bool>,
    /// How many of those a call of a later step stands for.
    pub(super) joined: usize,
    /// Calls of kernels that multiply f16, or have weights in it.
    pub(super) halves: usize,
    /// Why steps that could have been there are not.
    pub(super) refused: Vec<String>,
    /// What is to be said of the file that the device keeps compiled kernels in.
    pub(super) cache: Option<String>,
}

/// What a plan tells of itself to be recorded.
pub(super) struct Planned<'p> {
    pub(super) steps: &'p [Step],
    pub(super) recorded: Vec<Option<Recorded>>,
    pub(super) slots: &'p [Slot],
    pub(super) packs: &'p Packs,
    /// The value whose bytes each value is.
    pub(super) area: &'p dyn Fn(ValueId) -> ValueId,
    pub(super) inputs: &'p [ValueId],
    pub(super) resident: &'p Residents,
    /// Values that outlive the steps.
    pub(super) kept: &'p [bool],
    pub(super) arena_bytes: usize,
}

impl Accelerated {
    /// Records what can be; `None` when nothing can.
    pub(super) fn new(device: &Device, plan: Planned<'_>) -> Result<Option<Accelerated>, GpuError> {
        let Planned { steps, recorded, slots, packs, area, inputs, resident, kept, arena_bytes } = plan;
        let fault = arena_bytes.next_multiple_of(hone_gpu::device::ALIGN);
        let fault = fault..fault + 4;
        let mut builder = Builder::new(device, fault.end + 12);
        let mut faulty = false;
        let mut refused: Vec<String> = Vec::new();
        let mut on_gpu = vec![false; steps.len()];
        let mut parts: Vec<Part> = Vec::new();
        let (mut segments, mut halves) = (0, 0);
        // Where each area has its bytes now.
        let mut here = vec![false; slots.len()];
        let mut there = vec![false; slots.len()];
        inputs.iter().chain(resident.places.keys()).for_each(|&v| here[area(v)] = true);
        let mut keeps = true;
        let range = |v: ValueId| match &slots[v].place {
            Place::Arena(r) if !r.is_empty() => Some(r.clone()),
            _ => None,
        };
        let mut taken = |calls: &[(Call, Vec<At>)], step: &Step, others: &[usize]| {
            let with = if others.is_empty() { "" } else { " with those before it that it stands for" };
            let mut usable = Vec::with_capacity(calls.len());
            for (call, at) in calls {
                // A kernel that is none for this device is no reason to leave the device.
                let (call, why) = device.usable(call)?;
                refused.extend(why.iter().map(|e| format!("node `{}` ({}){with}: {e}", step.node, step.op)));
                let Some(call) = call else { return Ok(None) };
                usable.push((call, at));
            }
            Ok(resolve(&usable, step, slots, packs, &fault, device.most_bytes()))
        };
        // What stands for several steps is settled before the first of them.
        let mut with_others: Vec<Option<Calls>> = Vec::with_capacity(steps.len());
        let mut within = vec![false; steps.len()];
        for (step, recorded) in steps.iter().zip(&recorded) {
            let joined = recorded.as_ref().and_then(|r| r.joined.as_ref());
            let calls = joined.map_or(Ok(None), |j| taken(&j.calls, step, &j.steps))?;
            calls.iter().zip(joined).for_each(|(_, j)| j.steps.iter().for_each(|&s| within[s] = true));
            with_others.push(calls);
        }
        for (i, (step, recorded)) in steps.iter().zip(recorded).enumerate() {
            if within[i] {
                on_gpu[i] = true;
                continue;
            }
            let together = with_others[i].take();
            let form = recorded.as_ref().map(|r| match &r.joined {
                Some(joined) if together.is_some() => &joined.calls,
                _ => &r.calls,
            });
            let resolved = match (together, form) {
                (None, Some(calls)) => taken(calls, step, &[])?,
                (together, _) => together,
            };
            if let Some(calls) = resolved {
                if !matches!(parts.last(), Some(Part::Gpu { .. })) {
                    if segments > 0 {
                        builder.segment();
                    }
                    let (up, residents, down) = Default::default();
                    parts.push(Part::Gpu { segment: segments, up, residents, down });
                    segments += 1;
                }
                for (call, operands) in calls {
                    halves += usize::from(call.kernel.halves);
                    let mut bindings = Vec::with_capacity(operands.len());
                    for o in operands {
                        bindings.push(match o {
                            Resolved::Arena(r) => Binding::Arena(r),
                            Resolved::Weights(image) => {
                                let make = image.make.clone();
                                Binding::Weights(builder.weights(image.name.0, image.len, move || make())?)
                            }
                            Resolved::Fault => {
                                faulty = true;
                                Binding::Arena(fault.clone())
                            }
                        });
                    }
                    builder.dispatch(&call, &bindings)?;
                }
                let read = form.into_iter().flat_map(|calls| Recorded::reads(calls, &step.all_inputs));
                if let Some(Part::Gpu { up, residents, .. }) = parts.last_mut() {
                    for v in read {
                        if let Some(r) = range(v).filter(|_| !there[area(v)]) {
                            if resident.place(v).is_some() {
                                residents.push(r)
                            } else {
                                up.push(r)
                            }
                            there[area(v)] = true;
                        }
                    }
                }
                for &v in step.writes.iter().flatten() {
                    (there[area(v)], here[area(v)]) = (true, false);
                }
                on_gpu[i] = true;
                continue;
            }
            let fetched: Vec<ValueId> = step.reads.iter().flatten().copied().filter(|&v| range(v).is_some()).collect();
            fetch(&mut parts, &fetched, &range, area, &mut here, &there);
            match parts.last_mut() {
                Some(Part::Cpu(steps)) => steps.end = i + 1,
                _ => parts.push(Part::Cpu(i..i + 1)),
            }
            for &v in step.writes.iter().flatten() {
                (here[area(v)], there[area(v)]) = (true, false);
                keeps &= resident.place(v).is_none();
            }
        }
        let last: Vec<ValueId> = (0..slots.len()).filter(|&v| kept[v] && range(v).is_some()).collect();
        fetch(&mut parts, &last, &range, area, &mut here, &there);
        if segments == 0 {
            return Ok(None);
        }
        refused.extend(builder.refused().iter().map(ToString::to_string));
        let recording = builder.finish()?;
        device.keep();
        let cache = device.cache_told();
        let fault = faulty.then_some(fault);
        let (updated, before, seen) = (resident.updated(), Vec::new(), None);
        let joined = within.iter().filter(|w| **w).count();
        Ok(Some(Accelerated {
            recording,
            parts,
            fault,
            updated,
            before,
            keeps,
            seen,
            on_gpu,
            joined,
            halves,
            refused,
            cache,
        }))
    }

    /// Bytes of weights on the device.
    pub(super) fn weight_bytes(&self) -> usize {
        self.recording.weight_bytes()
    }

    /// Bytes of the arena on the device.
    pub(super) fn arena_bytes(&self) -> usize {
        self.recording.arena_bytes()
    }

    /// Calls on the device, and how often it is waited for.
    pub(super) fn calls(&self) -> (usize, usize) {
        (self.recording.calls(), self.parts.iter().filter(|p| matches!(p, Part::Gpu { .. })).count())
    }

    /// Runs every part; `cpu` runs steps of the plan. `state` is that of the arena before, and becomes a new one when
    /// residents were updated: those that are on the device in that state are not put there again. Unless the outcome is
    /// [`Outcome::Done`], residents are as they were, after an error too.
    ///
    /// # Errors
    /// Those of `cpu`.
    pub(super) fn run<E>(
        &mut self,
        bytes: &mut [u8],
        state: &mut u64,
        cpu: impl FnMut(&mut [u8], Range<usize>) -> Result<(), E>,
    ) -> Result<Outcome, E> {
        self.before.clear();
        self.updated.iter().for_each(|r| self.before.extend_from_slice(&bytes[r.clone()]));
        let fresh = self.seen.take() == Some(*state);
        let outcome = self.run_parts(bytes, fresh, cpu);
        if matches!(outcome, Ok(Outcome::Done)) {
            if !self.updated.is_empty() || *state == 0 {
                *state = super::run::new_state();
            }
            self.seen = self.keeps.then_some(*state);
        } else {
            let mut at = 0;
            for r in &self.updated {
                bytes[r.clone()].copy_from_slice(&self.before[at..at + r.len()]);
                at += r.len();
            }
        }
        outcome
    }

    fn run_parts<E>(
        &mut self,
        bytes: &mut [u8],
        fresh: bool,
        mut cpu: impl FnMut(&mut [u8], Range<usize>) -> Result<(), E>,
    ) -> Result<Outcome, E> {
        if let Some(fault) = &self.fault
            && let Err(e) = self.recording.upload(fault.start, &[0; 4])
        {
            return Ok(Outcome::Lost(e));
        }
        let mut ranges = Vec::new();
        for part in &self.parts {
            let (segment, up, residents, down) = match part {
                Part::Cpu(steps) => {
                    cpu(bytes, steps.clone())?;
                    continue;
                }
                Part::Gpu { segment, up, residents, down } => (*segment, up, residents, down),
            };
            for r in up.iter().chain(residents.iter().filter(|_| !fresh)) {
                if let Err(e) = self.recording.upload(r.start, &bytes[r.clone()]) {
                    return Ok(Outcome::Lost(e));
                }
            }
            ranges.clear();
            ranges.extend(down.iter().chain(&self.fault).cloned());
            let mut fault = false;
            let read = |i: usize, found: &[u8]| match down.get(i) {
                Some(r) => bytes[r.clone()].copy_from_slice(found),
                None => fault = found.iter().any(|b| *b != 0),
            };
            if let Err(e) = self.recording.run(segment, &ranges, read) {
                return Ok(Outcome::Lost(e));
            }
            if fault {
                return Ok(Outcome::Fault);
            }
        }
        Ok(Outcome::Done)
    }
}

/// Adds to the last part on the device what the CPU needs of it.
fn fetch(
    parts: &mut [Part],
    values: &[ValueId],
    range: &dyn Fn(ValueId) -> Option<Range<usize>>,
    area: &dyn Fn(ValueId) -> ValueId,
    here: &mut [bool],
    there: &[bool],
) {
    let last = parts.iter_mut().rev().find_map(|p| match p {
        Part::Gpu { down, .. } => Some(down),
        Part::Cpu(_) => None,
    });
    let Some(down) = last else { return };
    for &v in values {
        let of = area(v);
        if let Some(r) = range(v).filter(|_| there[of] && !here[of]) {
            down.push(r);
            here[of] = true;
        }
    }
}

enum Resolved {
    Arena(Range<usize>),
    Weights(Image),
    Fault,
}

type Calls = Vec<(Call, Vec<Resolved>)>;

/// Where the operands of those calls of a step are; `None` when one is nowhere the device can read, or takes more than `most` bytes.
fn resolve(
    calls: &[(&Call, &Vec<At>)],
    step: &Step,
    slots: &[Slot],
    packs: &Packs,
    fault: &Range<usize>,
    most: usize,
) -> Option<Calls> {
    let value = |v: ValueId| match &slots[v].place {
        Place::Arena(r) if !r.is_empty() => Some(Resolved::Arena(r.clone())),
        Place::Constant(t) => {
            let (name, len, from) = (packs.name("as it lies", &[t], &[]), t.data().as_bytes().len(), t.clone());
            let make = Arc::new(move || from.data().as_bytes().to_vec());
            Some(Resolved::Weights(Image { name, len, make }))
        }
        _ => None,
    };
    let one = |at: &At| match at {
        At::In(i) => value((*step.all_inputs.get(*i)?)?),
        At::Out(i) => match value((*step.writes.get(*i)?)?)? {
            Resolved::Weights(_) => None,
            r => Some(r),
        },
        At::Update(i, o) => {
            let (old, new) = ((*step.all_inputs.get(*i)?)?, (*step.writes.get(*o)?)?);
            match (value(old)?, value(new)?) {
                (Resolved::Arena(a), Resolved::Arena(b)) if a == b => Some(Resolved::Arena(a)),
                _ => None,
            }
        }
        At::Value(v) => value(*v),
        At::Weights(image) => Some(Resolved::Weights(image.clone())),
        At::Scratch(r) => {
            let at = step.scratch.start + r.start..step.scratch.start + r.end;
            (at.end <= step.scratch.end && at.end <= fault.start).then_some(Resolved::Arena(at))
        }
        At::Fault => Some(Resolved::Fault),
    };
    let call = |&(call, at): &(&Call, &Vec<At>)| {
        let operands = at.iter().map(one).collect::<Option<Vec<_>>>()?;
        let bytes = |o: &Resolved| match o {
            Resolved::Arena(r) => r.len(),
            Resolved::Weights(image) => image.len,
            Resolved::Fault => 0,
        };
        operands.iter().all(|o| bytes(o).next_multiple_of(256) <= most).then(|| (call.clone(), operands))
    };
    calls.iter().map(call).collect()
}
