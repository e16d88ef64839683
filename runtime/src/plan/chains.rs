//! Steps of a plan for a GPU that are one call there: functions of elements, of which all but the last make what only others of them
//! read. What lies between them is in no memory then, and every operand is read once.
//!
//! They stay steps of their own, with calls of their own: for the CPU, and for a device that does not take the call.
use std::collections::BTreeMap;

use hone_gpu::kernel::Call;
use hone_gpu::map::Chain;

use super::Step;
use super::record::{At, Recorded};
use crate::graph::ValueId;

/// By how many steps what a function reads may be kept for longer than without the call: more would take memory that others want.
const NEAR: usize = 8;

/// The calls of a step, one of which stands for those of others, too.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) calls: Vec<(Call, Vec<At>)>,
    /// The others, which come before it.
    pub(super) steps: Vec<usize>,
}

/// What a plan knows of its values.
pub(super) struct Values<'p> {
    /// The value whose bytes each value is.
    pub(super) area: &'p dyn Fn(ValueId) -> ValueId,
    /// Whether somebody else than steps needs an area.
    pub(super) apart: &'p dyn Fn(ValueId) -> bool,
    /// The step that replaces an area.
    pub(super) replaced: &'p BTreeMap<ValueId, usize>,
}

/// Gives steps [`Recorded::joined`], the last ones first, and each as many others as there are for it.
pub(super) fn join(steps: &[Step], recorded: &mut [Option<Recorded>], values: &Values<'_>) {
    let mut net =
        Net { steps, values, readers: BTreeMap::new(), makers: BTreeMap::new(), taken: vec![false; steps.len()] };
    for (i, (step, recorded)) in steps.iter().zip(&*recorded).enumerate() {
        let there = recorded.iter().flat_map(|r| Recorded::reads(&r.calls, &step.all_inputs));
        for v in step.reads.iter().flatten().copied().chain(there) {
            net.readers.entry((values.area)(v)).or_default().push(i);
        }
        net.makers.extend(step.writes.iter().flatten().map(|&v| ((values.area)(v), i)));
    }
    for last in (0..steps.len()).rev() {
        let Some(own) = recorded[last].as_ref().filter(|_| !net.taken[last]) else { continue };
        let mut joined = Joined { calls: own.calls.clone(), steps: Vec::new() };
        for which in 0..joined.calls.len() {
            net.grow(last, which, &mut joined, recorded);
        }
        joined.steps.iter().for_each(|&s| net.taken[s] = true);
        if let Some(own) = recorded[last].as_mut().filter(|_| !joined.steps.is_empty()) {
            own.joined = Some(joined);
        }
    }
}

struct Net<'p> {
    steps: &'p [Step],
    values: &'p Values<'p>,
    /// The steps that read each area, ascending.
    readers: BTreeMap<ValueId, Vec<usize>>,
    /// The step that makes each area.
    makers: BTreeMap<ValueId, usize>,
    /// Steps that a call of another one stands for.
    taken: Vec<bool>,
}

impl Net<'_> {
    /// Makes call `which` of step `last` stand for as many steps before it as it can.
    fn grow(&self, last: usize, which: usize, joined: &mut Joined, recorded: &[Option<Recorded>]) {
        let (call, at) = &joined.calls[which];
        let Some(chain) = &call.chain else { return };
        let Some((result, operands)) = at.split_last() else { return };
        let (result, own) = (result.clone(), operands.to_vec());
        let mut grown = Grown { chain: Chain::clone(chain), at: own, call: call.clone() };
        grown.unite(|at| self.known(at, last));
        let mut members = vec![last];
        let mut refused = Vec::new();
        loop {
            let others: Vec<&At> =
                joined.calls.iter().enumerate().filter(|(i, _)| *i != which).flat_map(|(_, (_, at))| at).collect();
            let candidate = |k: usize| {
                let area = self.value(&grown.at[k], last)?;
                let maker = *self.makers.get(&area)?;
                let read = |at: &At| self.value(at, last) == Some(area);
                let alone = grown.at.iter().filter(|at| read(at)).count() == 1 && !others.iter().any(|at| read(at));
                let inside = self.readers.get(&area)?.iter().all(|r| members.contains(r));
                let free = maker < last && !self.taken[maker] && !refused.contains(&maker);
                (alone && inside && free && !(self.values.apart)(area)).then_some((maker, k))
            };
            // The latest first: by then all that read an earlier one may be inside.
            let Some((maker, k)) = (0..grown.at.len()).filter_map(candidate).max() else { break };
            match self
                .first(maker, last, recorded)
                .and_then(|(first, at)| grown.after(k, first, at, |at| self.known(at, last)))
            {
                Some(more) => {
                    grown = more;
                    members.push(maker);
                }
                None => refused.push(maker),
            }
        }
        if members.len() > 1 {
            grown.at.push(result);
            joined.calls[which] = (grown.call, grown.at);
            joined.steps.extend(&members[1..]);
        }
    }

    /// What step `maker` makes and of what, if it is one call of functions of elements that `last` can make in its place.
    fn first<'r>(&self, maker: usize, last: usize, recorded: &'r [Option<Recorded>]) -> Option<(&'r Chain, Vec<At>)> {
        let [(call, at)] = &recorded[maker].as_ref()?.calls[..] else { return None };
        let (At::Out(0), operands) = at.split_last()? else { return None };
        let step = &self.steps[maker];
        let moved = |at: &At| match at {
            At::In(i) => {
                let v = (*step.all_inputs.get(*i)?)?;
                let area = (self.values.area)(v);
                // Read at the later step it must still be what it was, and not be kept for long for that alone.
                let gone = self.values.replaced.get(&area).is_some_and(|by| (maker..=last).contains(by));
                let until = self.readers.get(&area).and_then(|r| r.last()).copied().unwrap_or(maker);
                let there = (self.values.apart)(area) || until + NEAR >= last;
                (!gone && there).then_some(At::Value(v))
            }
            At::Weights(image) => Some(At::Weights(image.clone())),
            _ => None,
        };
        Some((call.chain.as_deref()?, operands.iter().map(moved).collect::<Option<_>>()?))
    }

    /// The area that a call of step `last` works on there.
    fn value(&self, at: &At, last: usize) -> Option<ValueId> {
        match at {
            At::In(i) | At::Update(i, _) => Some((self.values.area)((*self.steps[last].all_inputs.get(*i)?)?)),
            At::Value(v) => Some((self.values.area)(*v)),
            _ => None,
        }
    }

    fn known(&self, at: &At, last: usize) -> Option<Known> {
        match at {
            At::Weights(image) => Some(Known::Weights(image.name)),
            _ => self.value(at, last).map(Known::Area),
        }
    }
}

/// What a call works on, when it can be said whether it is what another works on.
#[derive(PartialEq)]
enum Known {
    Area(ValueId),
    Weights(super::packs::Name),
}

/// A call in the making.
struct Grown {
    chain: Chain,
    /// Its operands.
    at: Vec<At>,
    call: Call,
}

impl Grown {
    /// With `first` in the place of operand `k`; `None` where there is no such call.
    fn after(&self, k: usize, first: &Chain, at: Vec<At>, known: impl Fn(&At) -> Option<Known>) -> Option<Grown> {
        let mut grown = Grown { chain: self.chain.after(k, first)?, at: self.at.clone(), call: self.call.clone() };
        grown.at.remove(k);
        grown.at.extend(at);
        grown.unite(known);
        grown.call = grown.chain.call()?;
        Some(grown)
    }

    /// Makes operands one that are the same.
    fn unite(&mut self, known: impl Fn(&At) -> Option<Known>) {
        let mut j = 1;
        while j < self.at.len() {
            let of = known(&self.at[j]);
            let same = |i: &usize| of.is_some() && known(&self.at[*i]) == of && self.chain.alike(*i, j);
            match (0..j).find(same).and_then(|i| self.chain.united(i, j)) {
                Some(united) => {
                    self.chain = united;
                    self.at.remove(j);
                }
                None => j += 1,
            }
        }
    }
}
